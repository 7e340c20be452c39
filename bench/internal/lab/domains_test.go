//go:build linux

package lab

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// The sets are the same on every machine and in every run: results are compared.
func TestTypicalSetIsTheSameForEver(t *testing.T) {
	sum := sha256.Sum256(TypicalSet(1000, 1))
	if got, want := hex.EncodeToString(sum[:8]), "360a620392192344"; got != want {
		t.Errorf("the hash of the set begins with %s, want %s: results cannot be compared with earlier ones", got, want)
	}
}

func TestTypicalDomainIsTypical(t *testing.T) {
	record := AppendTypical(nil, 1234, 0)
	if want := `{"name":"app-0001234.tenant-0012.example.com","tenant":"tenant-0012","upstreams":[{"dial":"10.0.4.210:8443",` +
		`"tls":{"server_name":"app-0001234.internal"}}],"proxy_protocol":"v1","post_quantum":"prefer"}`; string(record) != want {
		t.Errorf("domain 1234 is\n%s, want\n%s", record, want)
	}
	if bytes.Equal(record, AppendTypical(nil, 1234, 1)) {
		t.Error("its versions are the same")
	}
	for _, i := range []int{0, 999_999, MaxDomains - 1} {
		if n := len(AppendTypical(nil, i, 0)); n < 190 || n > 210 {
			t.Errorf("domain %d has %d bytes of JSON, want about 200", i, n)
		}
	}
}

// What is published is a set without a fault, all names different.
func TestTypicalSetIsValid(t *testing.T) {
	const n = 5000
	further := AppendTypical(nil, n, 0)
	document := slices.Concat([]byte(`{"revision":1,"domains":[`), TypicalSet(n, 3, further), []byte("]}"))
	header, err := domain.ReadSet(bytes.NewReader(document), domain.Remote, domain.SetOptions{
		Refused: func(r domain.Refusal) { t.Errorf("domain %d is refused: %v", r.Index, r.Err) },
	})
	if err != nil || !header.Full || header.Domains != n+1 {
		t.Errorf("ReadSet = %+v, %v, want %d domains", header, err, n+1)
	}
}

func TestTypicalSetOfNone(t *testing.T) {
	if got := TypicalSet(0, 0); len(got) != 0 || got == nil {
		t.Errorf("a set of none is %q, want one that is empty and there", got)
	}
	if got := TypicalSet(0, 0, []byte("{}")); string(got) != "{}" {
		t.Errorf("a set of one further record is %q", got)
	}
}
