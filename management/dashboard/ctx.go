package dashboard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// ctx is one request on its way through a handler.
type ctx struct {
	ctx    context.Context    // ends with the client or with the route's timeout
	cancel context.CancelFunc // of ctx; after the answer, as the page of an error may ask the database too
	dash   *Dashboard
	plane  *management.Plane     // what to call
	who    *management.Principal // never nil; on a page for anybody it has only ClientAddr and RequestID
	me     *management.Me        // of who is signed in: user, tenant, all tenants; else nil
	w      http.ResponseWriter   // for streams alone: pages are rendered
	r      *http.Request
	route  *route
	path   map[string]string
	asked  url.Values // the query
	form   url.Values // of a POST
	unread error      // what of it could not be read, so that it is shown again; nil: nothing

	session string            // the token that the browser has after this answer; empty: none
	refusal *management.Error // why the form is shown again; nil: it is not
	status  int               // of a page; 0: 200
	out     *output
	told    *flash // what the next page says
	cookies []*http.Cookie
	written bool
}

// output is an answer before it is written.
type output struct {
	status   int
	location string
	body     []byte
	plain    bool // text, for a fragment
}

const (
	defaultMaxForm = 1 << 20
	maxQuery       = 8 << 10 // bytes
	maxFields      = 2000
	formTimeout    = 30 * time.Second
	writeTimeout   = 30 * time.Second
)

// param returns a parameter of the path.
func (c *ctx) param(name string) string { return c.path[name] }

// query returns a parameter of the query, without spaces around it; empty: it is not there.
func (c *ctx) query(name string) string { return strings.TrimSpace(c.asked.Get(name)) }

// value returns a field of the form as it was sent.
func (c *ctx) value(name string) string { return c.form.Get(name) }

// now is the time of the service.
func (c *ctx) now() time.Time { return c.dash.now() }

// match returns the precondition of a form that edits something: the version that it was filled from.
func (c *ctx) match() management.Precondition {
	version, err := strconv.ParseInt(c.value(versionField), 10, 64)
	if err != nil {
		return ""
	}
	return management.Precondition(management.ETag(version))
}

// page returns which part of a list is asked for, at most so many rows: as many as keep the page below 60 KB, whatever is in them. The
// parameter limit asks for less; for more there is the API.
func (c *ctx) page(rows int) management.Page {
	if limit, err := strconv.Atoi(c.query("limit")); err == nil && limit > 0 {
		rows = min(rows, limit)
	}
	return management.Page{Limit: rows, Cursor: c.query("cursor")}
}

// span returns the time that a page is about: from and to of the query, as RFC 3339, a date, or what <input type=datetime-local>
// sends, in UTC; a date as `to` includes that day. Default: the last d. What cannot be read is an Invalid Error.
func (c *ctx) span(d time.Duration) (from, to time.Time, err error) {
	to, toErr := readTime(c.query("to"), true)
	from, fromErr := readTime(c.query("from"), false)
	if to.IsZero() {
		to = c.now().UTC()
	}
	if from.IsZero() {
		from = to.Add(-d)
	}
	switch {
	case fromErr != nil:
		return from, to, management.InvalidField("?from", "must be a time such as 2026-01-31T12:00")
	case toErr != nil:
		return from, to, management.InvalidField("?to", "must be a time such as 2026-01-31T12:00")
	case !from.Before(to):
		return from, to, management.InvalidField("?from", "must be before the end")
	}
	return from, to, nil
}

func readTime(text string, end bool) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		if end {
			day = day.AddDate(0, 0, 1)
		}
		return day, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.Parse(layout, text); err == nil && t.Year() >= 1970 && t.Year() < 9999 {
			return t.UTC(), nil
		}
	}
	return time.Time{}, errors.New("no time")
}

// readQuery reads the query. Empty parameters are as good as none.
func (c *ctx) readQuery() error {
	raw := c.r.URL.RawQuery
	if len(raw) > maxQuery {
		return management.Errorf(management.TooLarge, "The address of the page is too long.")
	}
	asked, err := url.ParseQuery(raw)
	if err != nil {
		return management.Errorf(management.Malformed, "The address of the page is damaged behind the question mark.")
	}
	for name, values := range asked {
		for _, value := range values {
			if !clean(name) || !clean(value) {
				return management.Errorf(management.Malformed, "The address of the page has characters that no page takes.")
			}
		}
	}
	c.asked = asked
	return nil
}

// readForm reads the form, urlencoded or multipart. A file of NAME_file stands for the field NAME, where that is empty.
func (c *ctx) readForm() error {
	limit := c.route.maxBody
	if limit == 0 {
		limit = defaultMaxForm
	}
	if c.r.ContentLength > limit {
		return errTooLarge()
	}
	kind, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" && kind != "multipart/form-data" {
		return management.Errorf(management.UnsupportedMediaType, "This is not a form. The API is at /v1.")
	}
	control := http.NewResponseController(c.w)
	_ = control.SetReadDeadline(time.Now().Add(formTimeout)) // a writer that has none, of tests, is not waited for either
	defer func() { _ = control.SetReadDeadline(time.Time{}) }()
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, limit)
	if kind == "multipart/form-data" {
		err = c.r.ParseMultipartForm(limit) // all of it fits into memory
	} else {
		err = c.r.ParseForm()
	}
	if err != nil {
		return formError(err)
	}
	form := url.Values{}
	fields := 0
	for name, values := range c.r.PostForm {
		fields += len(values)
		for i, value := range values {
			if !cleanField(name) || !cleanField(value) {
				return management.Errorf(management.Malformed, "The form has characters that are no text.")
			}
			values[i] = strings.ReplaceAll(value, "\r\n", "\n") // browsers send CRLF
		}
		form[name] = values
	}
	if fields > maxFields {
		return errTooLarge()
	}
	if c.r.MultipartForm != nil {
		for name, files := range c.r.MultipartForm.File {
			field, ok := strings.CutSuffix(name, fileSuffix)
			if !ok || len(files) != 1 || files[0].Size == 0 || strings.TrimSpace(form.Get(field)) != "" {
				continue
			}
			f, err := files[0].Open()
			if err != nil {
				return err
			}
			text, err := io.ReadAll(io.LimitReader(f, limit))
			f.Close()
			if err != nil {
				return err
			}
			if !cleanField(string(text)) {
				c.unread = management.InvalidField("/"+field, "the file is not text: choose a file in PEM form")
				continue
			}
			form.Set(field, string(text))
		}
	}
	c.form = form
	return nil
}

func errTooLarge() error {
	return management.Errorf(management.TooLarge, "The form is larger than this page takes.")
}

func formError(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return errTooLarge()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return management.Errorf(management.Malformed, "The form came too slowly. Send it again.")
	}
	return management.Errorf(management.Malformed, "The form is damaged. Open the page and send it again.")
}

// cleanField is clean for texts of several lines.
func cleanField(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\r' && r != '\t'
	})
}

// redirect sends the browser to a page of ours after a form (post, redirect, get).
func (c *ctx) redirect(path string) error {
	return c.seeOther(c.url(path))
}

func (c *ctx) seeOther(location string) error {
	c.out = &output{status: http.StatusSeeOther, location: location}
	return nil
}

// url returns a link to a page, with parameters as pairs of name and value; empty values are left out. Where the user has several
// tenants it names the present one, so that links can be handed on and two windows do not meet.
func (c *ctx) url(path string, pairs ...string) string {
	path, raw, _ := strings.Cut(path, "?")
	values, err := url.ParseQuery(raw)
	if err != nil {
		values = url.Values{}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			values.Set(pairs[i], pairs[i+1])
		}
	}
	if c.me != nil && len(c.me.Tenants) > 1 && c.who.TenantID != "" && !values.Has(tenantParam) {
		values.Set(tenantParam, c.who.TenantID)
	}
	return path + query(values.Encode())
}

// render makes the page from templates/pages/NAME.html.
func (c *ctx) render(name, title string, data any) error {
	return c.renderTemplate(name, "layout", title, data)
}

func (c *ctx) renderTemplate(name, block, title string, data any) error {
	t := c.dash.pages[name]
	if t == nil {
		return errors.New("there is no template of the page " + name)
	}
	v := &view{Title: title, Data: data, c: c}
	var out bytes.Buffer
	if err := t.execute(&out, block, v); err != nil {
		return err
	}
	status := c.status
	if status == 0 {
		status = http.StatusOK
	}
	c.out = &output{status: status, body: v.fillIn(out.Bytes())}
	return nil
}

// fragment makes a part of a page: the template NAME of that page, with the same dot.
func (c *ctx) fragment(page, name string, data any) error {
	return c.renderTemplate(page, name, "", data)
}

// isFragment reports whether a script asks for a part of a page: it follows no redirect and shows no page to sign in.
func (c *ctx) isFragment() bool {
	return c.r.Header.Get("PQProxy-Fragment") != "" || strings.HasPrefix(c.r.Header.Get("Accept"), "text/event-stream")
}

// write sends what was made.
func (c *ctx) write() {
	if c.written || c.out == nil {
		return
	}
	c.written = true
	h := c.w.Header()
	c.writeFlash()
	for _, cookie := range c.cookies {
		http.SetCookie(c.w, cookie)
	}
	if c.out.location != "" {
		h.Set("Location", c.out.location)
		c.w.WriteHeader(c.out.status)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	if c.out.plain {
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	body := c.encoded(h)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	control := http.NewResponseController(c.w)
	bounded := control.SetWriteDeadline(time.Now().Add(writeTimeout)) == nil
	c.w.WriteHeader(c.out.status)
	if c.r.Method != http.MethodHead {
		if _, err := c.w.Write(body); err != nil {
			return // the client is gone
		}
	}
	if bounded && control.Flush() == nil {
		_ = control.SetWriteDeadline(time.Time{})
	}
}

// signIn gives the browser a new session.
func (c *ctx) signIn(token string) {
	c.session = token
	auth.SetSession(c.w, token)
}
