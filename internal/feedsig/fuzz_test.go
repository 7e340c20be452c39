package feedsig

import (
	"crypto/sha512"
	"errors"
	"strings"
	"testing"
)

// FuzzParseHeader: what is read has one form but for order and white space, so that written again it is as
// long or shorter and reads the same; what is refused is refused as malformed; nothing found by chance verifies.
func FuzzParseHeader(f *testing.F) {
	k := testKey(f, 1)
	digest := sha512.Sum512(body)
	header := k.Sign(digest)
	f.Add(header)
	f.Add(strings.ReplaceAll(header, ", ", "\t,"))
	f.Add(header[:200])
	f.Add(`keyid="0123456789abcdef", ed25519=::, mldsa65=:AA==:`)
	f.Add(`mldsa65=1, keyid`)
	f.Fuzz(func(t *testing.T, in string) {
		verified := k.Public().Verify(in, digest)
		s, err := parseHeader(in)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || verified == nil || len(err.Error()) > 300 {
				t.Fatalf("%v, %v", err, verified)
			}
			return
		}
		text := s.String()
		if verified == nil && text != header {
			t.Fatalf("%q verifies", in)
		}
		// parseHeader takes no white space, so what was left out is ", " at most.
		if len(strings.ReplaceAll(text, " ", "")) > len(in) {
			t.Fatalf("%q is written longer, %q", in, text)
		}
		again, err := parseHeader(text)
		if err != nil || again.String() != text {
			t.Fatalf("%q reads as %v, %v", text, again, err)
		}
	})
}

// FuzzParseKey: a key that is read is written as it was, but for surrounding white space.
func FuzzParseKey(f *testing.F) {
	k := testKey(f, 1)
	f.Add(k.Marshal())
	f.Add(k.Public().Marshal())
	f.Add([]byte("\n" + strings.TrimSpace(string(k.Marshal())) + "\r\n"))
	f.Add([]byte(publicWord + " 0123456789abcdef AAAA"))
	f.Fuzz(func(t *testing.T, in []byte) {
		trimmed := strings.Trim(string(in), " \t\r\n") + "\n"
		private, err := ParsePrivateKey(in)
		if err == nil && string(private.Marshal()) != trimmed {
			t.Fatalf("%q is written %q", in, private.Marshal())
		}
		public, publicErr := ParsePublicKey(in)
		if publicErr == nil && string(public.Marshal()) != trimmed {
			t.Fatalf("%q is written %q", in, public.Marshal())
		}
		if err == nil && publicErr == nil {
			t.Fatalf("%q is both kinds of key", in)
		}
	})
}
