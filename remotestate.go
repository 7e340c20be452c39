package pqproxy

import (
	"encoding/json"
	"strconv"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// remoteState is what is known of the management plane's set. It outlives pollers, and is the poller's alone but for
// what is behind mu.
type remoteState struct {
	feed     string // whose set the table has; empty: no set
	etag     string
	digest   string // of the document, to know one that comes again without an ETag
	verified string // by whose keys the set was verified, see Management.signers; empty: by nobody's
	unkept   bool   // the table has more than the storage

	refusing bool              // records of the set were refused, and may not be
	policy   *netpolicy.Policy // any more where there is another policy than this

	acceptedOf   string // the URL whose revisions these are
	accepted     uint64 // no revision below may come any more; kept across restarts
	acceptedKept uint64 // what the storage has of accepted

	mu       sync.Mutex
	version  version
	last     *syncReport
	lastGood time.Time // when a poll last succeeded, or, before the first, when what is served was kept
}

// reset forgets the set.
func (r *remoteState) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feed, r.etag, r.digest, r.verified, r.unkept = "", "", "", "", false
	r.refusing, r.policy = false, nil
	r.acceptedOf, r.accepted, r.acceptedKept = "", 0, 0
	r.version, r.last, r.lastGood = version{}, nil, time.Time{}
	metrics.revision.Set(0)
}

// version names a set: by its revision where it has one, else by its ETag or digest.
type version struct {
	revision    uint64
	hasRevision bool
	label       string
}

// MarshalJSON writes a number for a revision and a string for anything else; null for no set.
func (v version) MarshalJSON() ([]byte, error) {
	switch {
	case v.hasRevision:
		return strconv.AppendUint(nil, v.revision, 10), nil
	case v.label == "":
		return []byte("null"), nil
	}
	return json.Marshal(v.label) // it may have any bytes
}

// String is the version as a person reads it.
func (v version) String() string {
	if v.hasRevision {
		return strconv.FormatUint(v.revision, 10)
	}
	return v.label
}

// syncStatus is what the status says of the management plane.
type syncStatus struct {
	URL       string
	Revision  version
	Last      *syncReport // nil: none has ended yet
	Staleness *float64    // seconds since a poll last succeeded; nil: none ever did
}

// syncStatus returns what is known of the management plane, or nil if there is none.
func (s *state) syncStatus() *syncStatus {
	p := s.poller.Load()
	if p == nil {
		return nil
	}
	r := &s.remote
	r.mu.Lock()
	defer r.mu.Unlock()
	status := &syncStatus{URL: p.settings.shownURL(), Revision: r.version, Last: r.last}
	if !r.lastGood.IsZero() {
		age := time.Since(r.lastGood).Seconds()
		status.Staleness = &age
	}
	return status
}
