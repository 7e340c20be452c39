package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// Media types.
const (
	jsonType       = "application/json"
	mergePatchType = "application/merge-patch+json"
	problemType    = "application/problem+json"
)

// problem is a problem document (RFC 9457).
type problem struct {
	Type      string             `json:"type" doc:"urn:pqproxy:problem: and the code."`
	Title     string             `json:"title" doc:"The code in words."`
	Status    int                `json:"status"`
	Detail    string             `json:"detail" doc:"What is wrong and what to do. It never quotes the input."`
	Code      management.Code    `json:"code"`
	RequestID string             `json:"request_id" doc:"Also in X-Request-Id, and in the service's log."`
	Errors    []management.Fault `json:"errors,omitempty" doc:"Of a request with faults: all of them."`
}

// kindOfProblem is what HTTP makes of a code.
type kindOfProblem struct {
	status int
	title  string
}

// problems has every code.
var problems = map[management.Code]kindOfProblem{
	management.Malformed:            {http.StatusBadRequest, "Malformed request"},
	management.Unauthenticated:      {http.StatusUnauthorized, "Not signed in"},
	management.TOTPRequired:         {http.StatusUnauthorized, "One-time password required"},
	management.Forbidden:            {http.StatusForbidden, "Forbidden"},
	management.CrossOrigin:          {http.StatusForbidden, "Request from another origin"},
	management.QuotaExceeded:        {http.StatusForbidden, "Quota exceeded"},
	management.NotFound:             {http.StatusNotFound, "Not found"},
	management.MethodNotAllowed:     {http.StatusMethodNotAllowed, "Method not allowed"},
	management.Conflict:             {http.StatusConflict, "Conflict"},
	management.DomainExists:         {http.StatusConflict, "Domain exists"},
	management.SetupDone:            {http.StatusConflict, "Set-up is done"},
	management.PreconditionFailed:   {http.StatusPreconditionFailed, "Precondition failed"},
	management.TooLarge:             {http.StatusRequestEntityTooLarge, "Too large"},
	management.UnsupportedMediaType: {http.StatusUnsupportedMediaType, "Unsupported media type"},
	management.Invalid:              {http.StatusUnprocessableEntity, "Invalid request"},
	management.IdempotencyMismatch:  {http.StatusUnprocessableEntity, "Idempotency-Key was used"},
	management.RateLimited:          {http.StatusTooManyRequests, "Too many requests"},
	management.Internal:             {http.StatusInternalServerError, "Internal error"},
	management.Unavailable:          {http.StatusServiceUnavailable, "Unavailable"},
}

// retryUnavailable is when to try again where the error does not say.
const retryUnavailable = 5 // seconds

// WriteProblem answers r with the problem document of err, which for what is no *management.Error is a neutral sentence. It is
// for whoever has to refuse a request before an API exists.
func WriteProblem(w http.ResponseWriter, r *http.Request, err error) {
	id := newRequestID()
	commonHeader(w.Header(), id)
	problemOf(r.Context(), err, id, nil).write(w, r)
}

// problemOf returns the answer that tells err. What is a defect or a broken part is logged in full, under the request's ID.
func problemOf(ctx context.Context, err error, requestID string, log *slog.Logger, where ...any) *response {
	e, expected := errors.AsType[*management.Error](err)
	switch {
	case expected:
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled) && ctx.Err() != nil:
		e, expected = management.Errorf(management.Unavailable, "This took too long. Try again."), true
	default:
		e = management.Errorf(management.Internal, "Something is wrong here. Try again; if it stays, tell the operator the request_id.")
	}
	kind, known := problems[e.Code]
	if !known {
		kind, expected = problems[management.Internal], false
		e = management.Errorf(management.Internal, "Something is wrong here. Try again; if it stays, tell the operator the request_id.")
	}
	if log != nil {
		where = append([]any{"request_id", requestID, "error", err}, where...)
		switch {
		case !expected || e.Code == management.Internal:
			log.Error("request failed", where...)
		case e.Code == management.Unavailable && ctx.Err() == nil:
			log.Warn("request could not be served", where...)
		}
	}
	doc := problem{
		Type: "urn:pqproxy:problem:" + string(e.Code), Title: kind.title, Status: kind.status, Detail: e.Detail, Code: e.Code, RequestID: requestID,
		Errors: e.Faults,
	}
	text, err := json.Marshal(doc)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	res := &response{status: kind.status, header: http.Header{"Content-Type": {problemType}}, body: append(text, '\n')}
	if e.Code == management.Internal {
		return res
	}
	if e.RetryAfter > 0 {
		res.header.Set("Retry-After", auth.RetryAfter(e.RetryAfter))
	} else if e.Code == management.Unavailable {
		res.header.Set("Retry-After", auth.RetryAfter(retryUnavailable*1e9))
	}
	if len(e.Allow) > 0 {
		res.header.Set("Allow", strings.Join(e.Allow, ", "))
	}
	if kind.status == http.StatusUnauthorized {
		res.header.Set("WWW-Authenticate", "Bearer") // RFC 9110 section 11.6.1: every 401 has one
	}
	return res
}

// invalid returns the Error of these faults, nil for none.
func invalid(faults []management.Fault) error {
	switch len(faults) {
	case 0:
		return nil
	case 1:
		return &management.Error{Code: management.Invalid, Detail: "The request has a fault.", Faults: faults}
	}
	return &management.Error{Code: management.Invalid, Detail: "The request has faults.", Faults: faults}
}

// newRequestID returns what a request is called in the answer, the log and the audit log.
func newRequestID() string { return management.NewID("req_") }
