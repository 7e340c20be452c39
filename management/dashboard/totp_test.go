package dashboard

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what RFC 6238 and the apps have
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"testing"
	"time"
)

func totpSecret(t *testing.T, text string) []byte {
	t.Helper()
	secret, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(text)
	if err != nil || len(secret) == 0 {
		t.Fatalf("the page shows no secret: %v", err)
	}
	return secret
}

// code is what an app shows (RFC 6238).
func code(t *testing.T, secret []byte, now time.Time) string {
	t.Helper()
	mac := hmac.New(sha1.New, secret)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(now.Unix()/30))) //nolint:gosec // after 1970
	sum := mac.Sum(nil)
	at := sum[len(sum)-1] & 0xf
	return fmt.Sprintf("%06d", (binary.BigEndian.Uint32(sum[at:])&0x7fffffff)%1_000_000)
}
