package api

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const (
	defaultMaxBody   = 1 << 20
	strangersMaxBody = 32 << 10 // where nobody in particular asks: a password and an address need less
	maxQuery         = 8 << 10  // bytes
	bodyTimeout      = 30 * time.Second
)

// decode fills an In of the route from the request: parameters, body, and what the In itself adds. All faults come at once.
func (c *call) decode(w http.ResponseWriter, path map[string]string) (in any, err error) {
	s := c.route.in
	v := reflect.New(s.typ)
	faults, err := c.params(v.Elem(), path)
	if err != nil {
		return nil, err
	}
	bodyFaults, err := c.readBody(w, v.Elem())
	if err != nil {
		return nil, err
	}
	faults = append(faults, bodyFaults...)
	if r, ok := v.Interface().(resolver); ok && len(faults) == 0 {
		faults = r.resolve(c.api.now())
	}
	if len(faults) > mostTold {
		faults = faults[:mostTold]
	}
	return v.Interface(), invalid(faults)
}

// params reads path, query and headers.
func (c *call) params(v reflect.Value, path map[string]string) (faults []management.Fault, err error) {
	raw := c.request.URL.RawQuery
	if len(raw) > maxQuery {
		return nil, management.Errorf(management.TooLarge, "The query is longer than %d bytes.", maxQuery)
	}
	query, err := url.ParseQuery(raw)
	if err != nil {
		return nil, management.Errorf(management.Malformed, "The query is malformed: write name=value, separated by &, escaped with %%.")
	}
	known := map[string]bool{}
	for _, p := range c.route.in.params {
		field := v.FieldByIndex(p.field)
		var text string
		given := false
		switch p.in {
		case "path":
			if p.set(field, path[p.name]) != "" {
				return nil, errNoRoute() // nothing is called like that
			}
			continue
		case "header":
			values := c.request.Header.Values(p.name)
			text, given = strings.Join(values, ", "), len(values) > 0
		case "query":
			known[p.name] = true
			values := query[p.name]
			if len(values) > 1 {
				faults = append(faults, management.Fault{Pointer: "?" + p.name, Detail: "is there more than once"})
				continue
			}
			if len(values) == 1 {
				text, given = values[0], true
			}
			if text == "" && underlying(p.typ).Kind() == reflect.String {
				given = false // a form sends its empty fields
			}
		}
		if !given {
			if text = p.def; text == "" {
				continue
			}
		}
		if fault := p.set(field, text); fault != "" {
			pointer := "?" + p.name
			if p.in == "header" {
				pointer = p.name
			}
			faults = append(faults, management.Fault{Pointer: pointer, Detail: fault})
		}
	}
	names := make([]string, 0, len(query))
	for name := range query {
		if !known[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fault := management.Fault{Pointer: "?", Detail: "a parameter is not known here; its name is too long or too odd to be repeated"}
		if _, shown := under("", name); shown {
			fault = management.Fault{Pointer: "?" + name, Detail: "is not known here"}
		}
		faults = append(faults, fault)
	}
	return faults, nil
}

func underlying(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

// readBody reads the body into the field of the In.
func (c *call) readBody(w http.ResponseWriter, v reflect.Value) (faults []management.Fault, err error) {
	s := c.route.in
	if s.body == noBody {
		return nil, c.expectNoBody(w)
	}
	limit := c.route.maxBody
	if limit == 0 {
		limit = defaultMaxBody
		if c.route.access == byAnybody {
			limit = strangersMaxBody
		}
	}
	r := c.request
	if r.ContentLength == 0 && !s.needed {
		return nil, nil
	}
	if err := c.checkType(); err != nil {
		return nil, err
	}
	body, err := c.open(w, limit)
	if err != nil {
		return nil, err
	}
	field := v.FieldByIndex(s.field)
	if s.body == readerBody {
		c.deadline(w, bodyTimeout) // serve takes it away
		field.Set(reflect.ValueOf(&body).Elem())
		return nil, nil
	}
	c.deadline(w, bodyTimeout)
	c.body, err = io.ReadAll(body)
	c.deadline(w, 0)
	if err != nil {
		return nil, err
	}
	if len(c.body) == 0 && !s.needed {
		return nil, nil
	}
	if s.body == textBody {
		field.SetBytes(c.body)
		return readJSON(c.body, nil, false, nil)
	}
	to := field.Addr()
	if field.Kind() == reflect.Pointer {
		to = reflect.New(field.Type().Elem())
		field.Set(to)
	}
	return readJSON(c.body, to.Type().Elem(), r.Method == http.MethodPatch, to.Interface())
}

// expectNoBody refuses what would be ignored. The empty object passes: tools send it where there is nothing to say.
func (c *call) expectNoBody(w http.ResponseWriter) error {
	if c.request.ContentLength == 0 || c.request.Body == nil || c.request.Body == http.NoBody {
		return nil
	}
	c.deadline(w, bodyTimeout)
	defer c.deadline(w, 0)
	const some = 64
	text, err := io.ReadAll(io.LimitReader(c.request.Body, some))
	if err != nil {
		return bodyError(err)
	}
	if text := strings.TrimSpace(string(text)); text != "" && text != "{}" {
		return management.InvalidField("", "this request takes no body")
	}
	return nil
}

// checkType refuses bodies that do not say that they are JSON.
func (c *call) checkType() error {
	mediaType, params, err := mime.ParseMediaType(c.request.Header.Get("Content-Type"))
	patch := c.request.Method == http.MethodPatch
	switch charset, ok := params["charset"]; {
	case err != nil || len(c.request.Header.Values("Content-Type")) != 1:
	case ok && !strings.EqualFold(charset, "utf-8"):
	case mediaType == jsonType, mediaType == mergePatchType && patch:
		return nil
	}
	if patch {
		return management.Errorf(management.UnsupportedMediaType, "Send the body as Content-Type: %s or %s.", mergePatchType, jsonType)
	}
	return management.Errorf(management.UnsupportedMediaType, "Send the body as Content-Type: %s.", jsonType)
}

// open returns the body, decompressed, which ends in a TooLarge Error behind limit bytes. What comes over the network has the
// same limit, so that empty blocks without end are not read for ever.
func (c *call) open(w http.ResponseWriter, limit int64) (io.Reader, error) {
	r := c.request
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	body := io.Reader(&errorReader{http.MaxBytesReader(w, r.Body, limit)})
	switch coding := strings.ToLower(strings.TrimSpace(strings.Join(r.Header.Values("Content-Encoding"), ","))); {
	case coding == "" || coding == "identity":
		return body, nil
	case coding == "gzip" && c.route.gzipBody:
		return &errorReader{&gzipReader{from: body, left: limit}}, nil
	}
	return nil, management.Errorf(management.UnsupportedMediaType, "The body has a Content-Encoding that is not read here.")
}

// deadline bounds how long the body may take from now on; 0: no bound any more, lest the connection's end be taken for the
// client's.
func (c *call) deadline(w http.ResponseWriter, d time.Duration) {
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	http.NewResponseController(w).SetReadDeadline(at) // a writer that has none, of tests, is not waited for either
}

// gzipReader decompresses, at most left bytes. It begins at the first read, since the header is in the body.
type gzipReader struct {
	from io.Reader
	z    *gzip.Reader
	left int64
}

func (g *gzipReader) Read(b []byte) (int, error) {
	if g.z == nil {
		z, err := gzip.NewReader(g.from)
		if err != nil {
			return 0, err
		}
		g.z = z
	}
	if int64(len(b)) > g.left+1 {
		b = b[:g.left+1]
	}
	n, err := g.z.Read(b)
	if g.left -= int64(n); g.left < 0 {
		return 0, tooLarge(0)
	}
	return n, err
}

// errorReader turns what can go wrong with a body into an *management.Error.
type errorReader struct{ io.Reader }

func (e *errorReader) Read(b []byte) (int, error) {
	n, err := e.Reader.Read(b)
	if err == nil || err == io.EOF {
		return n, err
	}
	return n, bodyError(err)
}

func bodyError(err error) error {
	if _, ok := errors.AsType[*management.Error](err); ok {
		return err
	}
	if big, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(big.Limit)
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return management.Errorf(management.Malformed, "The body came too slowly.")
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return management.Errorf(management.Malformed, "The body is not gzip.")
	}
	return management.Errorf(management.Malformed, "The body ended early or is damaged.")
}

func tooLarge(limit int64) error {
	if limit <= 0 {
		return management.Errorf(management.TooLarge, "The body is too large.")
	}
	return management.Errorf(management.TooLarge, "The body is larger than %d bytes.", limit)
}
