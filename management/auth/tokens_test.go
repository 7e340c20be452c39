package auth

import (
	"bytes"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestTokens(t *testing.T) {
	secret, hash := NewToken(PasswordReset)
	if len(secret) != 43 || len(hash) != 32 || strings.Trim(secret, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		t.Fatalf("%q, %d bytes", secret, len(hash))
	}
	if got, ok := HashToken(PasswordReset, secret); !ok || !bytes.Equal(got, hash) {
		t.Error("the token is not found again")
	}
	for _, other := range []Purpose{Session, Invitation, EmailVerification} {
		if got, ok := HashToken(other, secret); !ok || bytes.Equal(got, hash) {
			t.Errorf("the token is also one for %s", other)
		}
	}
	if again, _ := NewToken(PasswordReset); again == secret {
		t.Error("two tokens are alike")
	}
	// The last of 43 characters carries 4 bits; another spelling of them must not be the same token.
	zeros := strings.Repeat("A", 43)
	for _, bad := range []string{"", zeros[1:], zeros + "A", zeros + "=", zeros[1:] + "B", zeros[1:] + "+", zeros[1:] + "\n", "\r\n" + zeros[2:]} {
		if _, ok := HashToken(Session, bad); ok {
			t.Errorf("%q is a token", bad)
		}
	}
	if _, ok := HashToken(Session, zeros); !ok {
		t.Error("the seed of the bad ones is bad")
	}
}

func TestSessionEnds(t *testing.T) {
	created := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if got := SessionEnds(created, created.Add(time.Hour)); got != created.Add(25*time.Hour) {
		t.Errorf("idle: %v", got)
	}
	if got := SessionEnds(created, created.Add(SessionLifetime-time.Hour)); got != created.Add(SessionLifetime) {
		t.Errorf("busy: %v", got)
	}
}

func TestSessionCookie(t *testing.T) {
	secret, hash := NewToken(Session)
	w := httptest.NewRecorder()
	SetSession(w, secret)
	want := "__Host-pqproxy_session=" + secret + "; Path=/; Max-Age=2592000; HttpOnly; Secure; SameSite=Lax"
	if got := w.Header().Get("Set-Cookie"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	w = httptest.NewRecorder()
	ClearSession(w)
	want = "__Host-pqproxy_session=; Path=/; Max-Age=0; HttpOnly; Secure; SameSite=Lax"
	if got := w.Header().Get("Set-Cookie"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}

	for _, test := range []struct {
		cookie string
		want   bool
	}{
		{SessionCookie + "=" + secret, true},
		{"a=b; " + SessionCookie + "=" + secret + "; c=d", true},
		{"", false},
		{SessionCookie + "=", false},
		{SessionCookie + "=x", false},
		{"pqproxy_session=" + secret, false},
		{strings.ToLower(SessionCookie) + "=" + secret, false},
		{SessionCookie + "=" + secret + "; " + SessionCookie + "=" + secret, false},
		{SessionCookie + "=x; " + SessionCookie + "=" + secret, false},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Cookie", test.cookie)
		got, ok := SessionHash(r)
		if ok != test.want || ok && !bytes.Equal(got, hash) {
			t.Errorf("Cookie %q: %v", test.cookie, ok)
		}
	}
}

func TestCrossOrigin(t *testing.T) {
	c, err := NewCrossOrigin("https://front.example.net")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		method, site, origin string
		want                 bool
	}{
		{"POST", "same-origin", "https://console.example.com", true},
		{"POST", "none", "", true},
		{"POST", "cross-site", "https://evil.example", false},
		{"POST", "same-site", "https://other.example.com", false},
		{"DELETE", "cross-site", "", false},
		{"POST", "", "https://evil.example", false},
		{"POST", "", "null", false},
		{"POST", "cross-site", "null", false},
		{"POST", "", "https://console.example.com", true},
		{"POST", "", "https://console.example.com:8443", false},
		{"POST", "cross-site", "https://front.example.net", true},
		{"GET", "cross-site", "https://evil.example", true}, // changes nothing
		{"POST", "", "", true},                              // no browser
	} {
		r := httptest.NewRequest(test.method, "https://console.example.com/v1/domains", nil)
		set := func(name, value string) {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		set("Sec-Fetch-Site", test.site)
		set("Origin", test.origin)
		if got := c.Allow(r); got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
	if _, err := NewCrossOrigin("front.example.net"); err == nil {
		t.Error("an origin without a scheme is trusted")
	}
}
