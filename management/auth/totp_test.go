package auth

import (
	"encoding/base32"
	"net/url"
	"strings"
	"testing"
	"time"
)

// rfcSecret is the one of RFC 6238 appendix B.
var rfcSecret = []byte("12345678901234567890")

// TestTOTPVectors has the values of RFC 6238 appendix B for SHA-1, of which we use the last 6 digits.
func TestTOTPVectors(t *testing.T) {
	for at, want := range map[int64]string{
		59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130",
	} {
		step, ok := CheckTOTP(rfcSecret, want, time.Unix(at, 0), 0)
		if !ok || step != at/30 {
			t.Errorf("%d: %d, %v", at, step, ok)
		}
	}
}

func TestCheckTOTP(t *testing.T) {
	now := time.Unix(1111111111, 0)
	present := now.Unix() / 30
	code := func(step int64) string { return totp(rfcSecret, step) }
	for _, test := range []struct {
		name string
		code string
		last int64
		want int64 // 0: refused
	}{
		{"present", code(present), 0, present},
		{"with a space", code(present)[:3] + " " + code(present)[3:], 0, present},
		{"before", code(present - 1), 0, present - 1},
		{"after", code(present + 1), 0, present + 1},
		{"too early", code(present - 2), 0, 0},
		{"too late", code(present + 2), 0, 0},
		{"replayed", code(present), present, 0},
		{"older than the last", code(present - 1), present, 0},
		{"after the last", code(present), present - 1, present},
		{"clock put back", code(present), present + 1000, 0},
		{"empty", "", 0, 0},
		{"short", code(present)[1:], 0, 0},
		{"long", code(present) + "0", 0, 0},
		{"no digits", "abcdef", 0, 0},
		{"other digits", "０００", 0, 0},
	} {
		if step, ok := CheckTOTP(rfcSecret, test.code, now, test.last); step != test.want || ok != (test.want != 0) {
			t.Errorf("%s: %d, %v; want %d", test.name, step, ok, test.want)
		}
	}
	if _, ok := CheckTOTP(nil, totp(nil, present), now, 0); ok {
		t.Error("a password of no secret is accepted")
	}
	if _, ok := CheckTOTP(rfcSecret, code(0), time.Unix(0, 0), -5); ok {
		t.Error("a machine without a clock accepts passwords")
	}
}

func TestTOTPURI(t *testing.T) {
	secret := NewTOTPSecret()
	if len(secret) != 20 || TOTPText(secret) == TOTPText(NewTOTPSecret()) {
		t.Errorf("%d bytes", len(secret))
	}
	uri := TOTPURI("My: Service", "ada+x@example.com", secret)
	parsed, err := url.Parse(uri)
	if err != nil || parsed.Scheme != "otpauth" || parsed.Host != "totp" || parsed.Path != "/My: Service:ada+x@example.com" {
		t.Fatalf("%s: %v", uri, err)
	}
	if strings.Contains(uri, "+") || strings.Count(parsed.EscapedPath(), ":") != 1 {
		t.Errorf("%s has a plus or a second colon", uri)
	}
	q := parsed.Query()
	decoded, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(q.Get("secret"))
	if err != nil || string(decoded) != string(secret) || q.Get("issuer") != "My: Service" || q.Get("algorithm") != "SHA1" || q.Get("digits") != "6" || q.Get("period") != "30" {
		t.Errorf("%s: %v", uri, err)
	}
}
