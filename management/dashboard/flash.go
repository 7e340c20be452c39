package dashboard

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
)

const flashCookie = "__Host-pqproxy_flash"

// flash is a sentence that the next page says once. It travels in a cookie, signed with what only this browser's session knows:
// so no other instance has to remember it, and nobody puts words into our mouth.
type flash struct {
	Kind string `json:"k"` // ok or warn
	Text string `json:"t"`
}

const maxFlash = 1 << 10 // bytes

// flash has the next page say a sentence: what was done. kind is "ok" or "warn". It may name things; it must hold no secret.
func (c *ctx) flash(kind, text string) {
	if len(text) > maxFlash {
		text = strings.ToValidUTF8(text[:maxFlash], "") + "…"
	}
	c.told = &flash{kind, text}
}

// flashMAC signs for the session; without one, for this process.
func (c *ctx) flashMAC(text []byte) []byte {
	key := c.dash.secret[:]
	if c.session != "" {
		sum := sha256.Sum256([]byte("pqproxy flash\n" + c.session))
		key = sum[:]
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	return mac.Sum(nil)
}

// writeFlash sets or removes the cookie.
func (c *ctx) writeFlash() {
	if c.told == nil {
		return
	}
	if c.told.Kind == "" { // it was shown
		c.setCookie(flashCookie, "", -1)
		return
	}
	text, err := json.Marshal(c.told)
	if err != nil {
		return
	}
	c.setCookie(flashCookie, base64.RawURLEncoding.EncodeToString(append(c.flashMAC(text), text...)), 60)
}

// takeFlash returns what the page before left, and has it forgotten.
func (c *ctx) takeFlash() *flash {
	value := cookieValue(c.r, flashCookie)
	if value == "" || c.r.Method == http.MethodHead || c.isFragment() {
		return nil
	}
	if c.told == nil {
		c.told = &flash{}
	}
	both, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil || len(both) < sha256.Size || !hmac.Equal(both[:sha256.Size], c.flashMAC(both[sha256.Size:])) {
		return nil
	}
	f := new(flash)
	if json.Unmarshal(both[sha256.Size:], f) != nil || f.Kind != "ok" && f.Kind != "warn" {
		return nil
	}
	return f
}
