package auth

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// cheap are parameters for tests in which the cost is of no interest.
var cheap = params{memory: 64, passes: 1, lanes: 1}

const password = "correct horse battery"

func TestPasswords(t *testing.T) {
	p := NewPasswords(0)
	encoded, err := p.Hash(t.Context(), password)
	if err != nil || len(encoded) != 97 || !strings.HasPrefix(encoded, "$argon2id$v=19$m=65536,t=3,p=4$") || strings.Contains(encoded, password) {
		t.Fatalf("%q, %v", encoded, err)
	}
	for _, test := range []struct {
		encoded, password string
		want              bool
	}{
		{encoded, password, true},
		{encoded, password + " ", false},
		{encoded, "", false},
		{"", password, false},
		{"", "", false},
	} {
		if ok, stale, err := p.Verify(t.Context(), test.encoded, test.password); ok != test.want || stale || err != nil {
			t.Errorf("Verify(%q, %q): %v, %v, %v", test.encoded, test.password, ok, stale, err)
		}
	}
}

// TestVerifyForeign checks a hash that another implementation made (OpenSSL 3.5, through Node.js).
func TestVerifyForeign(t *testing.T) {
	const foreign = "$argon2id$v=19$m=65536,t=3,p=4$MDEyMzQ1Njc4OWFiY2RlZg$UiBIPUuhY3xdXfQ7N3p/au05phWWk9ACmj5PdtUGaas"
	if ok, stale, err := NewPasswords(1).Verify(t.Context(), foreign, password); !ok || stale || err != nil {
		t.Errorf("%v, %v, %v", ok, stale, err)
	}
}

func TestVerifyStale(t *testing.T) {
	p := newPasswords(1, params{memory: 64, passes: 2, lanes: 1})
	for _, test := range []struct {
		params
		want bool
	}{
		{p.params, false},
		{params{memory: 32, passes: 2, lanes: 1}, true},
		{params{memory: 64, passes: 1, lanes: 1}, true},
		{params{memory: 128, passes: 3, lanes: 2}, false},
	} {
		encoded, err := newPasswords(1, test.params).Hash(t.Context(), password)
		if err != nil {
			t.Fatal(err)
		}
		if ok, stale, err := p.Verify(t.Context(), encoded, password); !ok || stale != test.want || err != nil {
			t.Errorf("%+v: %v, %v, %v", test.params, ok, stale, err)
		}
		if ok, stale, err := p.Verify(t.Context(), encoded, "wrong"); ok || stale || err != nil {
			t.Errorf("%+v, wrong password: %v, %v, %v", test.params, ok, stale, err)
		}
	}
}

// TestVerifyUnknownCosts wants the same parameters for an account that does not exist, and the same bytes hashed.
func TestVerifyUnknownCosts(t *testing.T) {
	p := NewPasswords(1)
	if d := p.dummy; d.params != p.params || len(d.salt) != saltBytes || len(d.tag) != tagBytes {
		t.Errorf("%+v", d.params)
	}
	if another := NewPasswords(1); string(another.dummy.tag) == string(p.dummy.tag) {
		t.Error("all processes have the same dummy")
	}
}

func TestVerifyBadHash(t *testing.T) {
	p := newPasswords(1, cheap)
	good, err := p.Hash(t.Context(), password)
	if err != nil {
		t.Fatal(err)
	}
	for _, encoded := range []string{
		"x", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$", good + "$", good + "=", good[1:], strings.Repeat("$", 1000),
		strings.Replace(good, "argon2id", "argon2i", 1), strings.Replace(good, "v=19", "v=16", 1), strings.Replace(good, "m=64", "m=064", 1),
		strings.Replace(good, "m=64", "m=4294967295", 1), strings.Replace(good, "m=64", "m=262145", 1), strings.Replace(good, "m=64", "m=7", 1),
		strings.Replace(good, "m=64", "m=-1", 1), strings.Replace(good, "t=1", "t=0", 1), strings.Replace(good, "t=1", "t=17", 1),
		strings.Replace(good, "p=1", "p=0", 1), strings.Replace(good, "p=1", "p=255", 1), strings.Replace(good, "p=1", "p=16", 1),
		strings.Replace(good, ",p=1", "", 1), strings.Replace(good, "p=1", "p=1,x=1", 1), good[:strings.LastIndex(good, "$")+1] + "AAAA",
	} {
		if ok, _, err := p.Verify(t.Context(), encoded, password); ok || !errors.Is(err, ErrBadHash) {
			t.Errorf("%q: %v, %v", encoded, ok, err)
		}
	}
	if ok, _, err := p.Verify(t.Context(), good, strings.Repeat("x", 1<<20)); ok || err != nil {
		t.Errorf("a password of a megabyte: %v, %v", ok, err)
	}
}

func FuzzParseHash(f *testing.F) {
	f.Add("$argon2id$v=19$m=65536,t=3,p=4$MDEyMzQ1Njc4OWFiY2RlZg$UiBIPUuhY3xdXfQ7N3p/au05phWWk9ACmj5PdtUGaas")
	f.Add("$argon2id$v=19$m=64,t=1,p=1$$")
	f.Add("$$$$$")
	f.Fuzz(func(t *testing.T, encoded string) {
		h, err := parseHash(encoded)
		if err != nil {
			return
		}
		if h.String() != encoded || h.memory > mostMemory || h.passes == 0 || h.passes > mostPasses || h.lanes == 0 || len(h.tag) > mostBytes {
			t.Errorf("%q is read as %+v", encoded, h)
		}
	})
}

// TestTurns has one turn and two who want it: the second waits, and gives up with its context or when people would.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPasswords(1, cheap)
		if err := p.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := p.Hash(t.Context(), password); !errors.Is(err, ErrBusy) || time.Since(begun) != longestWait {
			t.Errorf("Hash without a turn: %v after %v", err, time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := p.Verify(ctx, "", password); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Verify with a context that ends: %v", err)
		}
		var waiting sync.WaitGroup
		waiting.Go(func() {
			if _, err := p.Hash(t.Context(), password); err != nil {
				t.Errorf("Hash after a turn became free: %v", err)
			}
		})
		synctest.Wait()
		p.release()
		waiting.Wait()
		if len(p.turns) != 0 {
			t.Error("a turn was not given back")
		}
	})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newPasswords(1, cheap).Hash(ended, password); !errors.Is(err, context.Canceled) {
		t.Errorf("Hash for nobody: %v", err)
	}
}

func TestCheck(t *testing.T) {
	for _, test := range []struct{ password, want string }{
		{"correct horse", ""},
		{"zwölf Zeichen", ""},
		{strings.Repeat("aéb日", 3), "repeats"},
		{"日本語のパスワードは長い", ""}, // 12 characters
		{strings.Repeat("0123456789abcdef", 8), ""},
		{"elevenchars", "too short"},
		{"日本語のパスワードは長", "too short"}, // 11 characters, 33 bytes
		{"", "too short"},
		{strings.Repeat("0123456789abcdef", 8) + "x", "too long"},
		{"twelve chars\n", "control"},
		{"twelve\x00characters", "control"},
		{"twelve characters\u0085", "control"},
		{"twelve\xffcharacters", "UTF-8"},
		{"ada.lovelace@example.com", "e-mail"},
		{" Ada.Lovelace@Example.com", "e-mail"},
		{"ADA.lovelace", "e-mail"},
		{"aaaaaaaaaaaaaaaa", "repeats"},
		{"123412341234", "repeats"},
		{"passwordpassword", "repeats"},
		{"passwordpasswo", "repeats"},
		{"Password1234", "tries first"},
		{"QWERTYUIOP[]", "tries first"},
	} {
		err := (*Passwords)(nil).Check(test.password, "Ada.Lovelace@example.com ")
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want %q", test.password, err, test.want)
		}
	}
	if err := (*Passwords)(nil).Check("correct horse", ""); err != nil {
		t.Errorf("without an address: %v", err)
	}
	for _, p := range common {
		if err := (*Passwords)(nil).Check(p, ""); err == nil || strings.Contains(err.Error(), "too short") {
			t.Errorf("%q is listed in vain: %v", p, err)
		}
	}
}
