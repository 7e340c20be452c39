package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// operation describes one route: what is needed to serve it and what the OpenAPI document says of it.
type operation struct {
	method string // GET, POST, PUT, PATCH or DELETE; GET answers HEAD too
	path   string // such as /v1/domains/{id}; a literal segment beats a parameter

	id          string // operationId, lower camel case: createDomain
	tag         string // the noun, for the document: domains
	summary     string // a few words
	description string // sentences; may be empty

	face   face             // default: the public one
	access access           // default: an API key or a session
	scope  management.Scope // what the Plane method asks for, refused before the body is read; empty: any credential will do

	status   int               // of success; default 200, or 204 where the answer is none
	codes    []management.Code // refusals beyond those that every such route has, for the document
	others   []int             // statuses without a problem document that a stream answers with, beside status
	once     []string          // names of members of the answer, beside secret, that are told once: null in a replay
	maxBody  int64             // bytes, after decompression; default 1 MiB, for anybody 32 KiB
	gzipBody bool              // the body may come with Content-Encoding: gzip
	timeout  time.Duration     // for everything from the body's first byte to the answer's last; default 30 s; negative: none, the stream ends itself
	endless  bool              // a stream without an end: HEAD is refused
	bodyLike any               // where Body is a json.RawMessage or an io.Reader: a value of the type that the document shows
	free     bool              // no limit of rate: for the edges' long polls, and for probes of health
}

// face says where a route is. The other face does not know it.
type face uint8

const (
	onPublic face = iota
	onEdge
	onBoth
)

func (f face) has(other face) bool { return f == other || f == onBoth }

// access says who gets in.
type access uint8

const (
	byCredential access = iota // an API key or a session
	byEdgeToken                // an edge token
	byAnybody                  // no credential is looked at
)

// route is an operation with what answers it. Make one with endpoint or stream.
type route struct {
	operation
	in     *shape
	out    []media
	answer func(c *call, in any) (*response, error)           // of endpoint
	stream func(c *call, in any, w http.ResponseWriter) error // of stream
}

// media is a form in which a route answers.
type media struct {
	name string       // media type
	body reflect.Type // what the document describes; of NDJSON and event streams: one line; nil: bytes
}

// mediaOf returns a form of answer whose content is like T.
func mediaOf[T any](name string) media { return media{name, reflect.TypeFor[T]()} }

// call is one request on its way through a handler.
type call struct {
	ctx     context.Context       // ends with the client or with the route's timeout
	plane   *management.Plane     // what to call
	who     *management.Principal // never nil; on a route for anybody it has only ClientAddr and RequestID
	request *http.Request         // for what In does not say; its body is read already
	route   *route
	api     *API
	body    []byte // the body as it came, decompressed; nil where In has an io.Reader
}

// answer is what an endpoint's function returns.
type answer[T any] struct {
	Status   int // 0: the operation's
	Location string
	ETag     string // management.ETag of the row's version
	Live     bool   // the body also shows what changes without a new version: If-None-Match is not looked at
	Session  string // the token that the cookie is set to
	SignOut  bool   // the cookie is removed
	Body     T
}

// none is the body of an answer without one.
type none struct{}

// ok returns an answer with that body and, if not empty, that entity tag.
func ok[T any](etag string, body T) *answer[T] { return &answer[T]{ETag: etag, Body: body} }

// okLive is ok of what shows states beside what its version counts.
func okLive[T any](etag string, body T) *answer[T] {
	return &answer[T]{ETag: etag, Live: true, Body: body}
}

// created returns an answer 201 with Location.
func created[T any](location, etag string, body T) *answer[T] {
	return &answer[T]{Status: http.StatusCreated, Location: location, ETag: etag, Body: body}
}

// empty returns the answer without a body.
func empty() *answer[none] { return &answer[none]{} }

// list is the form of every list.
type list[T any] struct {
	Data       []T     `json:"data"`
	NextCursor *string `json:"next_cursor" doc:"What to send as cursor for the next page; null: this was the last."`
}

// listOf returns a list; next is "" on the last page.
func listOf[T any](data []T, next string) *answer[list[T]] {
	l := list[T]{Data: data}
	if l.Data == nil {
		l.Data = []T{}
	}
	if next != "" {
		l.NextCursor = &next
	}
	return &answer[list[T]]{Body: l}
}

// endpoint makes a route that reads an In and answers with an Out as JSON.
//
// In is a struct. Its fields, also those of structs embedded by value, are filled from where their tag says:
//
//	ID      string                  `path:"id"`
//	Status  string                  `query:"status" enum:"active,moved" doc:"…"`  // bounded by enum, minimum, maximum, maxLength, default
//	From    time.Time               `query:"from"`                                 // RFC 3339
//	IfMatch management.Precondition `header:"If-Match"`
//	Body    T
//
// Parameters may be strings, integers, booleans, times, durations ("36h", "14d"), whatever reads itself from text
// (encoding.TextUnmarshaler), and pointers to these: nil where the parameter is absent. A parameter that is unknown, repeated
// or malformed is a fault. Embed paging, longPaging, timeRange, byID and conditional for what many routes have.
//
// Body is one of: a struct, read strictly (members that are unknown, twice there, of the wrong type or, except with PATCH,
// missing are faults; a member may be missing where its tag says omitempty or omitzero); json.RawMessage, for who needs the
// text itself: it is one valid document without duplicate members; an io.Reader, which gives at most maxBody bytes and ends
// in an *management.Error where there were more. Without the field, a body that is not empty is a fault.
//
// Where *In has the method resolve(now time.Time) []management.Fault, it is called once all fields are set.
//
// Out is marshalled as it is; none: no body. An error that is no *management.Error is logged and shown as `internal`.
func endpoint[In, Out any](op operation, fn func(c *call, in *In) (*answer[Out], error)) route {
	hasBody := reflect.TypeFor[Out]() != reflect.TypeFor[none]()
	if op.status == 0 {
		op.status = http.StatusOK
		if !hasBody {
			op.status = http.StatusNoContent
		}
	}
	r := route{operation: op, in: shapeOf(reflect.TypeFor[In](), op)}
	if hasBody {
		checkMembers(reflect.TypeFor[Out](), map[reflect.Type]bool{}) // what the document could not show
		r.out = []media{mediaOf[Out](jsonType)}
	}
	r.answer = func(c *call, in any) (*response, error) {
		a, err := fn(c, in.(*In))
		if err != nil {
			return nil, err
		}
		res := &response{status: a.Status, header: http.Header{}}
		if res.status == 0 {
			res.status = op.status
		}
		setHeader(res.header, "Location", a.Location)
		setHeader(res.header, "ETag", a.ETag)
		res.session, res.signOut, res.live = a.Session, a.SignOut, a.Live
		if !hasBody {
			return res, nil
		}
		if res.body, err = json.Marshal(a.Body); err != nil {
			return nil, fmt.Errorf("writing the answer of %s: %w", op.id, err)
		}
		res.body = append(res.body, '\n')
		res.header.Set("Content-Type", jsonType)
		return res, nil
	}
	return r
}

// stream makes a route whose function writes the answer itself: headers, status and bytes, in one of the forms. In is as
// with endpoint. An error returned before the first byte becomes a problem document; after it, the connection is cut, so
// that nobody takes half an answer for a whole one. Flush and deadlines are reached by http.NewResponseController(w).
// writeJSON answers with a document.
func stream[In any](op operation, forms []media, fn func(c *call, in *In, w http.ResponseWriter) error) route {
	if op.status == 0 {
		op.status = http.StatusOK
	}
	return route{operation: op, in: shapeOf(reflect.TypeFor[In](), op), out: forms,
		stream: func(c *call, in any, w http.ResponseWriter) error { return fn(c, in.(*In), w) }}
}

// byID is the parameter of routes of one object.
type byID struct {
	ID string `path:"id" doc:"The object's ID."`
}

// conditional is for routes that change a mutable object.
type conditional struct {
	IfMatch management.Precondition `header:"If-Match" doc:"The ETag that the object must still have."`
}

// paging is for lists.
type paging struct {
	Limit  int    `query:"limit" default:"50" minimum:"1" maximum:"200" doc:"Rows in a page."`
	Cursor string `query:"cursor" maxLength:"1024" doc:"next_cursor of the page before."`
}

// page returns what the Plane's methods take.
func (p paging) page() management.Page { return management.Page{Limit: p.Limit, Cursor: p.Cursor} }

// longPaging is for lists of connections.
type longPaging struct {
	Limit  int    `query:"limit" default:"50" minimum:"1" maximum:"1000" doc:"Rows in a page."`
	Cursor string `query:"cursor" maxLength:"1024" doc:"next_cursor of the page before."`
}

func (p longPaging) page() management.Page { return management.Page{Limit: p.Limit, Cursor: p.Cursor} }

// timeRange is a span of time: From inclusive, To exclusive. After reading, both are set and From is before To.
type timeRange struct {
	From time.Time `query:"from" doc:"Begin, inclusive, RFC 3339. Default: 24 hours before to."`
	To   time.Time `query:"to" doc:"End, exclusive, RFC 3339. Default: now."`
}

const defaultSpan = 24 * time.Hour

// resolve fills in what was not given. A struct that embeds timeRange and has a resolve of its own must call this one.
func (r *timeRange) resolve(now time.Time) []management.Fault {
	if r.To.IsZero() {
		r.To = now
		if r.From.After(now) {
			return []management.Fault{{Pointer: "?from", Detail: "is in the future"}}
		}
	}
	if r.From.IsZero() {
		r.From = r.To.Add(-defaultSpan)
	}
	if !r.From.Before(r.To) {
		return []management.Fault{{Pointer: "?from", Detail: "must be before to"}}
	}
	r.From, r.To = r.From.UTC(), r.To.UTC()
	return nil
}
