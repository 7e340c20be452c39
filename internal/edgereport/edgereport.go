// Package edgereport is what an edge tells its management plane, as it is sent: the body of `POST /v1/edge/reports` and
// its answer (DESIGN.md section 9, "Edge face"). The edge writes it with a Builder, the management plane reads it with
// Parse; both keep to the same bounds. It knows no HTTP, no SQL and no Caddy.
//
//	report, err := edgereport.Parse(body) // gzip is taken off before
//	var fault *edgereport.Error
//	switch {
//	case errors.Is(err, edgereport.ErrTooLarge): // 413
//	case errors.As(err, &fault): // 400 or 422, with fault.Pointer
//	}
//
// # What the receiver does
//
// A report is named by Edge.Name, Edge.StartedAt and Sequence. The edge sends one at a time, and the same one, byte for
// byte, until it is acknowledged by a 200, with Answer.Duplicate or without; then the next. So the receiver writes all
// that a report holds in one transaction, together with the last sequence of that name and start, and of a sequence that is
// not above it takes nothing and answers Duplicate. It keeps the last sequence for each start of a name, for a day at
// least: a config that left and came back, or two edges that were given one name, send under two of them in turn. Starts
// are only ever equal or different, since clocks go back; the start that appeared last is the edge as it is now, and of
// the others counters and records are taken still, but no states, no revision and no draining. A refusal with 400, 413 or 422 says
// that nothing of the report was taken, now or before: the edge puts its counters into the next one.
//
// Counters are increments: what is reported for one tenant, domain and minute is added to what is there, since one minute
// comes in several reports. A connection counts in the minute in which it ended, however long it was open. While the
// management plane is away for long, the edge merges minutes: then Minute is the first minute of the hour or of the day,
// in UTC, in which the connections ended; sums stay exact. Counters of a tenant or domain that does not exist (any more) are
// left out without an error, and so are records. Counter.Tenant decides whose they are: a name may have been handed over.
//
// Connections are best effort. Report.Dropped counts those that were left out since the report before; where it is
// above 0, what is derived from records alone is not complete.
//
// Rejected, Certificates and Upstreams are changes of states: an absent list says that nothing changed, an entry replaces
// what is known under its key, and an entry that says the good or final thing ends it:
//
//	list          key            ends with         nothing known means
//	rejected      name           detail ""         the edge took the domain as it was given
//	certificates  name           state "gone"      the edge holds no certificate for the name
//	upstreams     domain, dial   healthy true      the upstream works, or nobody has tried
//
// Rejected has a name once, with its first fault. An upstream that several domains of a tenant share is reported with one
// of them. Of a new start the receiver knows nothing: it forgets the states of the start before when the first report
// comes. It answers Resend where a sequence is missing, where the first one that it sees is not 1, or whenever it cannot
// trust what it knows, and forgets the states of the edge in the same transaction. The edge then sends all states
// again, beginning with its next report, in as many reports as they take (see the bounds), at once one after the other.
//
// Revision is the set of domains that is in force, and it is raised only in the report that completes the states that
// belong to it, rejections first. So a domain whose own revision is not above it, that is not rejected and has a
// certificate in state "valid" is live on that edge. It is 0 until the first states are complete. It may go down, when an
// operator went back to an older set.
package edgereport

import (
	"errors"
	"net/netip"
	"time"
)

// Bounds of one report. The edge keeps to them, and Parse refuses what is beyond them.
const (
	MaxSize        = 8 << 20 // bytes of JSON, after content decoding
	MaxConnections = 2000    // records
	MaxCounters    = 5000
	MaxStates      = 5000 // entries of Rejected, of Certificates, of Upstreams
	MaxGroups      = 32   // of a counter
	MaxEndReasons  = 64   // of a counter

	MaxName = 128 // bytes of an edge's name, a region, a tenant
	MaxDial = 300 // bytes of an upstream's address
	MaxText = 512 // bytes of an error, a detail, an issuer
)

// Report is one report. Times are UTC. The zero value of a list is absent.
type Report struct {
	Edge     Edge      `json:"edge"`
	Sequence uint64    `json:"sequence"` // from 1, one more with each report of the same start
	SentAt   time.Time `json:"sent_at"`  // when it was written; it stays while it is tried again

	Revision        uint64 `json:"revision"`         // see above; 0: none, or not yet
	Draining        bool   `json:"draining"`         // the edge ends its connections and takes no new ones
	LiveConnections int64  `json:"live_connections"` // open now, of all domains

	Rejected     []Rejected         `json:"rejected,omitempty"`
	Certificates []CertificateState `json:"certificates,omitempty"`
	Upstreams    []UpstreamState    `json:"upstreams,omitempty"`

	Counters    []Counter    `json:"counters,omitempty"`
	Connections []Connection `json:"connections,omitempty"`
	Dropped     int64        `json:"dropped"` // records left out since the report before
}

// Edge says who reports.
type Edge struct {
	Name      string    `json:"name"`             // 1 to MaxName bytes, printable
	Region    string    `json:"region,omitempty"` // at most MaxName bytes, printable
	Version   string    `json:"version,omitempty"`
	StartedAt time.Time `json:"started_at"` // in whole milliseconds; another one is another life of the edge
}

// Rejected is a record of the feed that the edge does not have in force as it was last given, or, with an empty Detail,
// has again.
type Rejected struct {
	Name   string `json:"name"`            // in normal form
	Field  string `json:"field,omitempty"` // such as `upstreams[0].dial`; empty: the record as a whole
	Detail string `json:"detail,omitempty"`
}

// States of a certificate. A newer edge may know more.
const (
	CertificateValid   = "valid"   // it is served
	CertificatePending = "pending" // there is none yet, or its time has not come
	CertificateFailed  = "failed"  // there is none, and obtaining it failed; or it was revoked
	CertificateExpired = "expired" // it is served all the same
	CertificateGone    = "gone"    // the edge has no such domain from the feed in force any more
)

// CertificateState is what is known of the certificate that a domain is served with.
type CertificateState struct {
	Name     string     `json:"name"`             // of the domain, in normal form
	Source   string     `json:"source,omitempty"` // `acme`, `internal`, `byoc`; empty with "gone"
	Issuer   string     `json:"issuer,omitempty"`
	NotAfter *time.Time `json:"not_after,omitempty"` // nil: there is no certificate
	State    string     `json:"state"`
	Error    string     `json:"error,omitempty"` // what went wrong last, also where the state is "valid"
}

// Held reports whether the domain is served with a certificate that is good: the state says so, or is a word that is not known
// here and there is one that has not ended.
func (c *CertificateState) Held(now time.Time) bool {
	switch c.State {
	case CertificateValid:
		return true
	case CertificatePending, CertificateFailed, CertificateExpired, CertificateGone:
		return false
	}
	return c.NotAfter != nil && c.NotAfter.After(now)
}

// UpstreamState is an upstream that is tried last since it does not work, or one that works again.
type UpstreamState struct {
	Domain  string `json:"domain"` // one that it belongs to, in normal form
	Dial    string `json:"dial"`
	Healthy bool   `json:"healthy"`
	Error   string `json:"error,omitempty"`
}

// Counter counts the connections of one domain that ended within one minute. It is exact.
type Counter struct {
	Domain string    `json:"domain"`           // in normal form
	Tenant string    `json:"tenant,omitempty"` // that had the domain
	Minute time.Time `json:"minute"`           // its beginning, in UTC; see above

	Connections int64 `json:"connections"`
	BytesIn     int64 `json:"bytes_in"`  // from the client, without TLS
	BytesOut    int64 `json:"bytes_out"` // to the client

	// Groups counts completed handshakes by group, as crypto/tls prints it, such as `X25519MLKEM768`. A certificate
	// authority that validates a name is not among them.
	Groups map[string]int64 `json:"groups,omitempty"`

	// EndReasons counts all connections by how they ended (DESIGN.md section 8).
	EndReasons map[string]int64 `json:"end_reasons,omitempty"`

	HelloRetries int64 `json:"hello_retries"` // completed handshakes that a HelloRetryRequest cost a round trip

	// Handshakes is the histogram of how long completed handshakes took, in the order of HandshakeBuckets with one more for
	// those that took longer. It is absent or of that length; Parse leaves out one of another length, whose bounds are not
	// known here.
	Handshakes []int64 `json:"handshake_buckets,omitempty"`
}

// Connection is the record of one connection: DESIGN.md section 8's fields, durations in seconds. Texts are empty where the
// connection did not get that far.
type Connection struct {
	Time       time.Time  `json:"time"` // of the end, in UTC, with fractions of a second
	ID         string     `json:"id"`
	ServerName string     `json:"server_name,omitempty"` // as the client sent it
	Domain     string     `json:"domain"`                // in normal form
	Tenant     string     `json:"tenant,omitempty"`      // that had the domain
	Source     string     `json:"source,omitempty"`
	ClientIP   netip.Addr `json:"client_ip,omitzero"` // the zero value: unknown
	ClientPort uint16     `json:"client_port,omitempty"`

	TLSVersion         string `json:"tls_version,omitempty"`
	CipherSuite        string `json:"cipher_suite,omitempty"`
	Group              string `json:"group,omitempty"`
	PostQuantum        bool   `json:"post_quantum,omitempty"`
	OfferedPostQuantum bool   `json:"offered_post_quantum,omitempty"`
	HelloRetry         bool   `json:"hello_retry,omitempty"`
	Resumed            bool   `json:"resumed,omitempty"`
	ALPN               string `json:"alpn,omitempty"`

	Upstream            string `json:"upstream,omitempty"`
	UpstreamGroup       string `json:"upstream_group,omitempty"`
	UpstreamPostQuantum bool   `json:"upstream_post_quantum,omitempty"`
	UpstreamResumed     bool   `json:"upstream_resumed,omitempty"`
	ProxyProtocol       string `json:"proxy_protocol,omitempty"`

	HelloWait         float64 `json:"hello_wait,omitempty"`
	Handshake         float64 `json:"handshake,omitempty"`
	UpstreamConnect   float64 `json:"upstream_connect,omitempty"`
	UpstreamHandshake float64 `json:"upstream_handshake,omitempty"`
	FirstByte         float64 `json:"first_byte,omitempty"`
	Duration          float64 `json:"duration,omitempty"`

	BytesIn   int64  `json:"bytes_in,omitempty"`
	BytesOut  int64  `json:"bytes_out,omitempty"`
	ClosedBy  string `json:"closed_by,omitempty"`
	EndReason string `json:"end_reason"`
	Error     string `json:"error,omitempty"`
}

// Answer is what the management plane says to a report that it has taken, or had taken before.
type Answer struct {
	Revision  uint64 `json:"revision"`  // of the feed now
	Duplicate bool   `json:"duplicate"` // it had been taken before
	Resend    bool   `json:"resend"`    // all states are wanted again
}

// ErrTooLarge is what Parse returns for a report of more than MaxSize bytes.
var ErrTooLarge = errors.New("the report is larger than 8 MiB; send less at a time")

// Error is why a report is refused. It never holds a value of the report.
type Error struct {
	Pointer   string // the place, as a JSON pointer (RFC 6901), such as `/counters/3/minute`; empty: the report
	Malformed bool   // it is no JSON text; else it is JSON of another shape
	Err       error  // what is wrong
}

// Error returns `report, POINTER: what is wrong`.
func (e *Error) Error() string {
	if e.Pointer == "" {
		return "report: " + e.Err.Error()
	}
	return "report, " + e.Pointer + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }
