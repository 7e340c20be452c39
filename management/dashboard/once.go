package dashboard

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const (
	onceField   = "_once" // random, of each form that is rendered
	onceWait    = 20 * time.Second
	oncePause   = 50 * time.Millisecond
	keepTimeout = 10 * time.Second
)

// onceOnly runs the handler of a form, unless the same form was sent before: then the browser is led where the first one led. A
// second click waits for the first. The same `_once` with other content is another form: somebody went back and changed it.
func (c *ctx) onceOnly(run func(*ctx) error) error {
	once := c.form.Get(onceField)
	if c.route.access != byUser || once == "" || len(once) > 64 {
		return run(c)
	}
	hash := c.formHash()
	key := "form " + base64.RawURLEncoding.EncodeToString(hash)
	var done *management.Reply
	for begun := time.Now(); ; {
		var err error
		done, err = c.plane.BeginReply(c.ctx, c.who, key, hash)
		if err == nil {
			break
		}
		if management.CodeOf(err) != management.Conflict || time.Since(begun) > onceWait {
			return err
		}
		if err := c.waitFor(oncePause); err != nil {
			return err
		}
	}
	if done != nil {
		var f flash
		if json.Unmarshal([]byte(done.Header["Flash"]), &f) == nil && f.Kind != "" {
			c.told = &f
		}
		return c.seeOther(done.Header["Location"])
	}

	// From here on the answer is kept or forgotten whatever happens, also to the client.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), keepTimeout)
	defer cancel()
	kept := false
	defer func() {
		if kept {
			return
		}
		if err := c.plane.DropReply(ctx, c.who, key, hash); err != nil {
			c.dash.log.Warn("a form stays taken for a minute", "request_id", c.who.RequestID, "error", err)
		}
	}()
	if err := run(c); err != nil {
		return err
	}
	header := map[string]string{"Location": c.url(c.pageAbove())}
	told := c.told
	if c.out != nil && c.out.location != "" {
		header["Location"] = c.out.location
	} else {
		// A page that told something once cannot be told again.
		told = &flash{"warn", "This was done already, when the form was sent the first time. What was shown then is not kept."}
	}
	if text, err := json.Marshal(told); err == nil && told != nil {
		header["Flash"] = string(text)
	}
	if err := c.plane.FinishReply(ctx, c.who, key, hash, http.StatusSeeOther, header, nil); err != nil {
		c.dash.log.Warn("a form's answer could not be kept", "request_id", c.who.RequestID, "error", err)
		return nil
	}
	kept = true
	return nil
}

// formHash is over the path and all fields. `_once` is random and stored nowhere else, so the hash tells nothing of a password.
func (c *ctx) formHash() []byte {
	h := sha256.New()
	part := func(text string) {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(text)))
		h.Write(length[:])
		io.WriteString(h, text)
	}
	part(c.r.URL.EscapedPath())
	part(c.who.TenantID)
	for _, name := range slices.Sorted(maps.Keys(c.form)) {
		part(name)
		for _, value := range c.form[name] {
			part(value)
		}
		part("")
	}
	return h.Sum(nil)
}

// pageAbove returns the nearest page at or above the path of a form.
func (c *ctx) pageAbove() string {
	for path := c.r.URL.EscapedPath(); path != ""; path = path[:max(0, strings.LastIndexByte(path, '/'))] {
		if c.dash.serves(path) {
			return path
		}
	}
	return "/"
}
