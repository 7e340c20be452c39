package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// document is the OpenAPI document as it is served.
type document struct {
	text, packed []byte
	tag          string // of its content, without quotes
}

const schemaPrefix = "#/components/schemas/"

// Names of security schemes in the document.
const (
	apiKeyScheme  = "apiKey"
	sessionScheme = "session"
	edgeScheme    = "edgeToken"
)

const introduction = "The management plane of pqproxy. Errors are problem documents (RFC 9457) whose `code` says what happened; every answer has an `X-Request-Id`. " +
	"Bodies are JSON of at most 1 MiB; members and parameters that are unknown or there twice are faults. PATCH is a merge patch (RFC 7396). Times are RFC 3339 in UTC; " +
	"`from` is inclusive, `to` exclusive. Lists come in pages: send `next_cursor` as `cursor`. Mutable objects have an `ETag`; send it as `If-Match` to change only what you saw. " +
	"Operations marked `x-face: edge` are for the proxies and are served at the edge face alone."

// newDocument describes the routes. It uses huma's generator of schemas and its types of OpenAPI 3.1, and nothing of its server.
func newDocument(routes []route) *document {
	b := &documentBuilder{registry: huma.NewMapRegistry(schemaPrefix, schemaNamer())}
	b.registry.RegisterTypeAlias(reflect.TypeFor[domain.Duration](), reflect.TypeFor[string]())
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info:    &huma.Info{Title: "pqproxy management", Version: "1", Description: introduction},
		Paths:   map[string]*huma.PathItem{},
		Components: &huma.Components{
			Schemas: b.registry,
			SecuritySchemes: map[string]*huma.SecurityScheme{
				apiKeyScheme:  {Type: "http", Scheme: "bearer", BearerFormat: "pqk_…", Description: "An API key, of one tenant."},
				sessionScheme: {Type: "apiKey", In: "cookie", Name: "__Host-pqproxy_session", Description: "A session of a user. Requests that change something must come from pages of the same origin."},
				edgeScheme:    {Type: "http", Scheme: "bearer", BearerFormat: "pqe_…", Description: "An edge token, at the edge face alone."},
			},
		},
	}
	b.addShared(doc.Components)
	tags := map[string]bool{}
	for i := range routes {
		r := &routes[i]
		item := doc.Paths[r.path]
		if item == nil {
			item = new(huma.PathItem)
			doc.Paths[r.path] = item
		}
		*methodOf(item, r.method) = b.operation(r)
		if !tags[r.tag] {
			tags[r.tag] = true
			doc.Tags = append(doc.Tags, &huma.Tag{Name: r.tag})
		}
	}
	for name, s := range b.registry.Map() {
		tidy(s)
		nullable(s, b.registry.TypeFromRef(schemaPrefix+name))
	}
	text, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("the OpenAPI document: %v", err))
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, text, "", "  "); err != nil {
		panic(fmt.Sprintf("the OpenAPI document: %v", err))
	}
	indented.WriteByte('\n')
	sum := sha256.Sum256(indented.Bytes())
	return &document{text: indented.Bytes(), packed: compress(indented.Bytes()), tag: hex.EncodeToString(sum[:12])}
}

// write answers with the document. Its compressed form is another representation, so it has another entity tag.
func (d *document) write(w http.ResponseWriter, r *http.Request) {
	res := &response{status: http.StatusOK, body: d.text, header: http.Header{
		"Content-Type": {jsonType}, "Etag": {`"` + d.tag + `"`}, "Cache-Control": {"no-cache"}, "Vary": {"Accept-Encoding"},
	}}
	if acceptsGzip(r.Header.Values("Accept-Encoding")) {
		res.body = d.packed
		res.header.Set("ETag", `"`+d.tag+`-gzip"`)
		res.header.Set("Content-Encoding", "gzip")
	}
	res.write(w, r)
}

type documentBuilder struct {
	registry huma.Registry
}

// Names of what many operations share.
const (
	sharedTenant    = "Tenant"
	sharedKey       = "IdempotencyKey"
	sharedRequestID = "RequestID"
)

// addShared adds what operations refer to: the refusals by status, and a few headers.
func (b *documentBuilder) addShared(c *huma.Components) {
	c.Headers = map[string]*huma.Header{sharedRequestID: {Description: "What the service's log calls the request.", Schema: &huma.Schema{Type: huma.TypeString}}}
	c.Parameters = map[string]*huma.Param{
		sharedTenant: headerParam(tenantHeader, "Of a user in several tenants: the one meant. Default: the first."),
		sharedKey: headerParam(keyHeader,
			"Makes it safe to send the request again: for 24 hours the same key gets the same answer, with `"+replayedHeader+": true` and null for secrets."),
	}
	c.Responses = map[string]*huma.Response{}
	schema := b.registry.Schema(reflect.TypeFor[problem](), true, "Problem")
	codes := slices.Sorted(maps.Keys(problems))
	for _, code := range codes {
		status := problems[code].status
		name := responseName(status)
		if c.Responses[name] == nil {
			c.Responses[name] = &huma.Response{Description: http.StatusText(status) + ":", Content: map[string]*huma.MediaType{problemType: {Schema: schema}}}
		}
		res := c.Responses[name]
		res.Description += " `" + string(code) + "`"
		switch status {
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			res.Headers = map[string]*huma.Header{"Retry-After": {Description: "Seconds.", Schema: &huma.Schema{Type: huma.TypeInteger}}}
		case http.StatusUnauthorized:
			res.Headers = map[string]*huma.Header{"WWW-Authenticate": {Schema: &huma.Schema{Type: huma.TypeString}}}
		}
	}
}

// responseName is what the refusals of a status are called: Unauthorized.
func responseName(status int) string { return strings.ReplaceAll(http.StatusText(status), " ", "") }

func methodOf(item *huma.PathItem, method string) **huma.Operation {
	switch method {
	case http.MethodGet:
		return &item.Get
	case http.MethodPost:
		return &item.Post
	case http.MethodPut:
		return &item.Put
	case http.MethodPatch:
		return &item.Patch
	case http.MethodDelete:
		return &item.Delete
	}
	panic("no method of ours: " + method)
}

func (b *documentBuilder) operation(r *route) *huma.Operation {
	op := &huma.Operation{
		OperationID: r.id, Tags: []string{r.tag}, Summary: r.summary, Description: r.description, Responses: map[string]*huma.Response{},
		Extensions: map[string]any{"x-face": [...]string{onPublic: "public", onEdge: "edge", onBoth: "both"}[r.face]},
	}
	if r.scope != "" {
		op.Description = strings.TrimSpace(op.Description + " Needs the scope `" + string(r.scope) + "`.")
		op.Extensions["x-scope"] = string(r.scope)
	}
	switch r.access {
	case byCredential:
		op.Security = []map[string][]string{{apiKeyScheme: {}}, {sessionScheme: {}}}
		op.Parameters = append(op.Parameters, &huma.Param{Ref: "#/components/parameters/" + sharedTenant})
	case byEdgeToken:
		op.Security = []map[string][]string{{edgeScheme: {}}}
		op.Servers = []*huma.Server{{URL: "/", Description: "The edge face, which has an address of its own."}}
	}
	for _, p := range r.in.params {
		op.Parameters = append(op.Parameters, b.param(p))
	}
	if r.idempotent() {
		op.Parameters = append(op.Parameters, &huma.Param{Ref: "#/components/parameters/" + sharedKey})
	}
	if r.in.body != noBody {
		op.RequestBody = b.body(r)
	}
	b.answers(r, op)
	return op
}

func headerParam(name, doc string) *huma.Param {
	return &huma.Param{Name: name, In: "header", Description: doc, Schema: &huma.Schema{Type: huma.TypeString}}
}

func (b *documentBuilder) param(p param) *huma.Param {
	t := underlying(p.typ)
	if t == durationType {
		t = reflect.TypeFor[string]()
	}
	schema := *b.registry.Schema(t, true, p.name)
	schema.Nullable = false
	for _, e := range p.enum {
		schema.Enum = append(schema.Enum, e)
	}
	if p.min != nil {
		schema.Minimum = number(*p.min)
	}
	if p.max != nil {
		schema.Maximum = number(*p.max)
	}
	if schema.Type == huma.TypeString && len(p.enum) == 0 && p.in == "query" {
		schema.MaxLength = &p.maxLen
	}
	switch {
	case p.def == "":
	case schema.Type == huma.TypeInteger:
		n, _ := strconv.ParseInt(p.def, 10, 64) // the shape has read it
		schema.Default = n
	case schema.Type == huma.TypeBoolean:
		schema.Default = p.def == "true"
	default:
		schema.Default = p.def
	}
	return &huma.Param{Name: p.name, In: p.in, Description: p.doc, Required: p.in == "path", Schema: &schema}
}

func number(n int64) *float64 { f := float64(n); return &f }

func (b *documentBuilder) body(r *route) *huma.RequestBody {
	schema := &huma.Schema{}
	if r.in.doc != nil {
		schema = b.registry.Schema(r.in.doc, true, upper(r.id)+"Request")
	}
	body := &huma.RequestBody{Required: r.in.needed, Content: map[string]*huma.MediaType{jsonType: {Schema: schema}}}
	if r.method != http.MethodPatch {
		return body
	}
	if schema.Ref != "" {
		// Of a merge patch nothing is required.
		patch := *b.registry.SchemaFromRef(schema.Ref)
		tidy(&patch)
		patch.Required = nil
		schema = &patch
	}
	body.Content = map[string]*huma.MediaType{mergePatchType: {Schema: schema}, jsonType: {Schema: schema}}
	return body
}

// answers adds the success and every refusal.
func (b *documentBuilder) answers(r *route, op *huma.Operation) {
	success := &huma.Response{Description: http.StatusText(r.status), Headers: map[string]*huma.Header{
		"X-Request-Id": {Ref: "#/components/headers/" + sharedRequestID},
	}}
	if r.status == http.StatusCreated {
		success.Headers["Location"] = &huma.Header{Schema: &huma.Schema{Type: huma.TypeString}}
	}
	for _, m := range r.out {
		content := new(huma.MediaType)
		if m.body != nil {
			content.Schema = b.registry.Schema(m.body, true, upper(r.id)+"Response")
			tidy(content.Schema)
		}
		if success.Content == nil {
			success.Content = map[string]*huma.MediaType{}
		}
		success.Content[m.name] = content
	}
	op.Responses[strconv.Itoa(r.status)] = success

	for _, status := range r.others {
		op.Responses[strconv.Itoa(status)] = &huma.Response{Description: http.StatusText(status)}
	}

	codes := r.refusals()
	op.Extensions["x-codes"] = codes
	for _, code := range codes {
		status := problems[code].status
		op.Responses[strconv.Itoa(status)] = &huma.Response{Ref: "#/components/responses/" + responseName(status)}
	}
}

// refusals are the codes that follow from what the route is, and those that it says itself.
func (r *route) refusals() []management.Code {
	codes := []management.Code{management.Malformed, management.Invalid, management.Internal}
	add := func(when bool, more ...management.Code) {
		if when {
			codes = append(codes, more...)
		}
	}
	add(!r.free, management.RateLimited, management.Unavailable)
	add(r.access != byAnybody, management.Unauthenticated)
	add(r.access == byCredential, management.NotFound) // the tenant that the header names
	add(r.scope != "", management.Forbidden)
	add(r.in.body != noBody, management.TooLarge, management.UnsupportedMediaType)
	add(r.idempotent(), management.IdempotencyMismatch, management.Conflict)
	add(r.method != http.MethodGet && r.access != byEdgeToken, management.CrossOrigin)
	for _, p := range r.in.params {
		add(p.in == "path", management.NotFound)
		add(p.name == "If-Match", management.PreconditionFailed)
	}
	codes = append(codes, r.codes...)
	slices.Sort(codes)
	return slices.Compact(codes)
}

// schemaNamer names schemas as huma does, with the package in front where two types have one name.
func schemaNamer() func(t reflect.Type, hint string) string {
	taken := map[string]reflect.Type{}
	return func(t reflect.Type, hint string) string {
		name := huma.DefaultSchemaNamer(t, hint)
		t = underlying(t)
		if t.Kind() != reflect.Struct {
			return name
		}
		if other, ok := taken[name]; ok && other != t {
			name = upper(path.Base(t.PkgPath())) + name
		}
		taken[name] = t
		return name
	}
}

func upper(name string) string {
	if name == "" {
		return name
	}
	return strings.ToUpper(name[:1]) + name[1:]
}

// tidy takes from schemas what is not so: huma lets every array be null, and ours never are.
func tidy(s *huma.Schema) {
	if s == nil {
		return
	}
	if s.Type == huma.TypeArray {
		s.Nullable = false
	}
	tidy(s.Items)
	for _, p := range s.Properties {
		tidy(p)
	}
	if more, ok := s.AdditionalProperties.(*huma.Schema); ok {
		tidy(more)
	}
}

// nullable says of members that are pointers to objects, and always there, that they may be null: huma cannot say it of a
// reference.
func nullable(s *huma.Schema, t reflect.Type) {
	if t == nil || t.Kind() != reflect.Struct || readsItself(t) {
		return
	}
	members := membersOf(t)
	for _, name := range members.required {
		if p := s.Properties[name]; p != nil && p.Ref != "" && members.types[name].Kind() == reflect.Pointer {
			s.Properties[name] = &huma.Schema{Description: p.Description, AnyOf: []*huma.Schema{{Ref: p.Ref}, {Type: "null"}}}
		}
	}
}
