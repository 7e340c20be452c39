package management

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// EdgeReport and EdgeAnswer are what edges send and are answered.
type (
	EdgeReport = edgereport.Report
	EdgeAnswer = edgereport.Answer
)

// MaxReport is how many bytes a report has at most, decompressed.
const MaxReport = edgereport.MaxSize

// Observations is the part of Store about what edges report. Reports come many times a second, so none of it waits for
// Updates, nor holds them up: each method has transactions of its own.
type Observations interface {
	// Ingest stores a report, if it has not been stored before: all of it, or nothing and an error. Reports of one edge are
	// stored one after the other, those of several side by side.
	Ingest(ctx context.Context, in *Ingest) (*Ingested, error)

	// FoldUsage adds at most limit rows of what came to the sums by minute, hour and day, and returns how many it took. Minutes
	// before from are in the sums by hour and day alone. What UsageTx reads is the same before and after.
	FoldUsage(ctx context.Context, from time.Time, limit int) (int, error)
	// OneWriter reports whether Updates wait for all of this after all, one transaction at a time: the database has no other way.
	OneWriter() bool

	// FindConnections returns records, newest first.
	FindConnections(ctx context.Context, filter *ConnectionFilter) ([]*Connection, error)
	// FindConnectionsAfter returns records of those tenants, in the order in which they came, that came after the one with that
	// number; with an empty list of tenants, none but the last number. Of reports that are stored side by side, one with
	// higher numbers can be seen before one with lower.
	FindConnectionsAfter(ctx context.Context, number int64, tenants []string, limit int) (found []*Connection, last int64, err error)
	// CountRefused counts records of connections that `require` would refuse, by client network and ALPN, most first, of the
	// newest scan records.
	CountRefused(ctx context.Context, filter *ConnectionFilter, scan int) (found []*RefusedClient, scanned int, err error)

	// DeleteConnectionsBefore removes records of before t, at most limit.
	DeleteConnectionsBefore(ctx context.Context, t time.Time, limit int) (int, error)
	// DeleteConnectionsOf removes records of a tenant or, where it is not empty, of one domain; at most limit.
	DeleteConnectionsOf(ctx context.Context, tenantID, domainID string, limit int) (int, error)
}

// Ingest is a report as it is to be stored: with domains for names, times that can be believed, and addresses as they may be
// kept.
type Ingest struct {
	Edge     edgereport.Edge
	TokenID  string
	Sequence uint64
	Now      time.Time
	Fresh    time.Time // an edge that did not report since is not up: another life of it takes over

	Revision        uint64
	Draining        bool
	LiveConnections int64
	Rejected        []edgereport.Rejected
	Certificates    []edgereport.CertificateState
	Upstreams       []edgereport.UpstreamState

	Usage       []UsageEntry
	Connections []*Connection
	Dropped     int64 // records that the edge left out
	Unknown     int64 // connections counted for nobody's domains
}

// Ingested is what became of a report.
type Ingested struct {
	Duplicate bool
	Resend    bool
	Before    uint64 // the edge's revision before
	Main      bool   // the report is of the life that is the edge
}

// Report takes a report of an edge, an uncompressed one of at most edgereport.MaxSize bytes, and answers it. What it holds is
// stored once, however often it is sent.
func (p *Plane) Report(ctx context.Context, who *Principal, body io.Reader) (*EdgeAnswer, error) {
	if err := requireEdge(who); err != nil {
		return nil, err
	}
	select {
	case p.edges.reports <- struct{}{}:
		defer func() { <-p.edges.reports }()
	case <-ctx.Done():
		return nil, &Error{Code: Unavailable, Detail: "Too many reports come at once. Send it again.", RetryAfter: 5 * time.Second}
	}
	report, err := edgereport.Parse(body)
	if err != nil {
		return nil, errReport(err)
	}
	in := p.ingest(who, report)
	answer := new(EdgeAnswer)
	err = p.store.View(ctx, func(tx Tx) error {
		if answer.Revision, err = tx.Revision(); err != nil {
			return err
		}
		if _, err := tx.FindEdge(in.Edge.Name); errors.Is(err, ErrNoRow) {
			n, err := tx.CountEdges()
			if err != nil {
				return err
			}
			if n >= maxEdges {
				return Errorf(QuotaExceeded, "There are %d edges already. Those that say nothing for 30 days are forgotten.", maxEdges)
			}
		} else if err != nil {
			return err
		}
		return p.resolve(tx, in, report)
	})
	if err != nil {
		return nil, err
	}
	done, err := p.store.Ingest(ctx, in)
	if err != nil {
		return nil, err
	}
	answer.Duplicate, answer.Resend = done.Duplicate, done.Resend
	if !done.Duplicate && done.Main {
		p.touched(in, done)
	}
	return answer, nil
}

// requireEdge refuses who is no edge.
func requireEdge(who *Principal) error {
	switch {
	case who == nil:
		return Errorf(Unauthenticated, "Send an edge token as `Authorization: Bearer pqe_…`.")
	case who.EdgeTokenID == "" && !who.System:
		return Errorf(Forbidden, "This is for edges: it needs an edge token.")
	}
	return nil
}

// errReport is how a report is refused.
func errReport(err error) error {
	if errors.Is(err, edgereport.ErrTooLarge) {
		return Errorf(TooLarge, "A report has at most 8 MiB. Send less at a time.")
	}
	fault, ok := errors.AsType[*edgereport.Error](err)
	if !ok {
		return err // the reader's
	}
	code := Invalid
	if fault.Malformed {
		code = Malformed
	}
	return &Error{Code: code, Detail: "The report has a fault; nothing of it was taken.", Faults: []Fault{{fault.Pointer, fault.Err.Error()}}}
}

func (p *Plane) ingest(who *Principal, r *edgereport.Report) *Ingest {
	now := p.now()
	return &Ingest{
		Edge: r.Edge, TokenID: who.EdgeTokenID, Sequence: r.Sequence, Now: now, Fresh: now.Add(-edgeFresh),
		Revision: r.Revision, Draining: r.Draining, LiveConnections: r.LiveConnections, Dropped: r.Dropped,
	}
}

// resolve finds the domains that a report names, as they are now. States of names that nobody has are left out, so that no
// edge can store more than there are domains; so are counters and records. It asks the database once, or, where names are of
// domains that were deleted, twice.
func (p *Plane) resolve(tx Tx, in *Ingest, r *edgereport.Report) error {
	wanted := make(map[OwnedName]struct{})
	want := func(tenant, name string) {
		if tenant == "" || IsID(TenantID, tenant) { // else of another management plane, or a static domain's label
			wanted[OwnedName{tenant, name}] = struct{}{}
		}
	}
	for i := range r.Counters {
		want(r.Counters[i].Tenant, r.Counters[i].Domain)
	}
	for i := range r.Connections {
		want(r.Connections[i].Tenant, r.Connections[i].Domain)
	}
	counted := slices.Collect(maps.Keys(wanted))
	for i := range r.Rejected {
		want("", r.Rejected[i].Name)
	}
	for i := range r.Certificates {
		want("", r.Certificates[i].Name)
	}
	for i := range r.Upstreams {
		want("", r.Upstreams[i].Domain)
	}
	found, err := tx.FindDomainKeys(slices.Collect(maps.Keys(wanted)))
	if err != nil {
		return err
	}
	known := func(name string) bool { _, ok := found[OwnedName{"", name}]; return ok }
	// Connections outlive their domain by as long as edges give them to end, and what they carried counts.
	var had map[OwnedName]DomainKey
	if gone := slices.DeleteFunc(counted, func(name OwnedName) bool { _, ok := found[name]; return ok }); len(gone) > 0 {
		if had, err = tx.FindRemovedDomainKeys(gone); err != nil {
			return err
		}
	}
	find := func(tenant, name string) (key DomainKey, ok bool) {
		if key, ok = found[OwnedName{tenant, name}]; !ok {
			key, ok = had[OwnedName{tenant, name}]
		}
		return key, ok
	}
	for _, s := range r.Rejected {
		if s.Detail == "" || known(s.Name) { // the end of a state is always taken
			in.Rejected = append(in.Rejected, s)
		}
	}
	for _, s := range r.Certificates {
		if s.State == edgereport.CertificateGone || known(s.Name) {
			in.Certificates = append(in.Certificates, s)
		}
	}
	for _, s := range r.Upstreams {
		if s.Healthy || known(s.Domain) {
			in.Upstreams = append(in.Upstreams, s)
		}
	}
	for i := range r.Counters {
		c := &r.Counters[i]
		if key, ok := find(c.Tenant, c.Domain); ok {
			in.Usage = append(in.Usage, p.usageEntry(key, c, in.Now))
		} else {
			in.Unknown += c.Connections
		}
	}
	for i := range r.Connections {
		c := &r.Connections[i]
		if key, ok := find(c.Tenant, c.Domain); ok {
			in.Connections = append(in.Connections, p.connection(key, in, c))
		}
	}
	return nil
}

// Bounds of the times that edges give.
const (
	edgeAhead  = 5 * time.Minute     // more is a clock that is wrong
	edgeBehind = 40 * 24 * time.Hour // more is too: an edge that could not report for so long had no feed either
)

// believable returns at, or now where the edge's clock must be wrong: what was counted is not lost, and is not counted in a
// future that nobody asks for, nor in a past that retention removes at once.
func believable(at, now time.Time) time.Time {
	if at.After(now.Add(edgeAhead)) || at.Before(now.Add(-edgeBehind)) {
		return now
	}
	return at
}

// usageEntry is what one counter adds.
func (p *Plane) usageEntry(key DomainKey, c *edgereport.Counter, now time.Time) UsageEntry {
	e := UsageEntry{DomainKey: key, Minute: believable(c.Minute, now).Truncate(time.Minute)}
	e.Connections, e.BytesIn, e.BytesOut, e.HelloRetries = c.Connections, c.BytesIn, c.BytesOut, c.HelloRetries
	e.Groups, e.EndReasons, e.Buckets = c.Groups, c.EndReasons, c.Handshakes
	for group, n := range c.Groups {
		e.Handshakes += n
		if postQuantumGroup(group) {
			e.PostQuantum += n
		}
	}
	// A client without a group in common with `prefer` has none with `require` either.
	e.Refused = e.Handshakes - e.PostQuantum + c.EndReasons[reasonNoCommonGroup]
	return e
}

// reasonNoCommonGroup is the end reason of a client that offers no group that the domain takes (DESIGN.md section 8).
const reasonNoCommonGroup = "no_common_group"

// postQuantumGroup reports whether a group, as crypto/tls prints it, is a hybrid: all have ML-KEM (FIPS 203) in their names.
func postQuantumGroup(group string) bool { return strings.Contains(group, "MLKEM") }

// connection is a record as it is kept.
func (p *Plane) connection(key DomainKey, in *Ingest, c *edgereport.Connection) *Connection {
	r := &Connection{
		ID: c.ID, Time: believable(c.Time, in.Now).Truncate(time.Microsecond), Domain: key.Name, DomainID: key.ID, Tenant: key.TenantID,
		Edge: in.Edge.Name, Group: c.Group, EndReason: c.EndReason, ALPN: c.ALPN,
		ConnectionDetail: ConnectionDetail{
			Region: in.Edge.Region, ServerName: c.ServerName, Source: c.Source, ClientPort: c.ClientPort, TLSVersion: c.TLSVersion,
			CipherSuite: c.CipherSuite, OfferedPostQuantum: c.OfferedPostQuantum, HelloRetry: c.HelloRetry, Resumed: c.Resumed,
			Upstream: c.Upstream, UpstreamGroup: c.UpstreamGroup, UpstreamPostQuantum: c.UpstreamPostQuantum,
			UpstreamResumed: c.UpstreamResumed, ProxyProtocol: c.ProxyProtocol, HelloWait: c.HelloWait, Handshake: c.Handshake,
			UpstreamConnect: c.UpstreamConnect, UpstreamHandshake: c.UpstreamHandshake, FirstByte: c.FirstByte, Duration: c.Duration,
			BytesIn: c.BytesIn, BytesOut: c.BytesOut, ClosedBy: c.ClosedBy, Error: c.Error,
		},
	}
	r.PostQuantum = c.Group != "" && postQuantumGroup(c.Group)
	r.Refused = c.Group != "" && !r.PostQuantum || c.EndReason == reasonNoCommonGroup
	if addr := c.ClientIP.Unmap().WithZone(""); addr.IsValid() {
		r.Client = netip.PrefixFrom(addr, addr.BitLen())
		if p.cfg.ClientIP == ClientIPPrefix {
			r.Client = ClientPrefix(addr)
			r.ClientPort = 0 // with it, somebody behind the network could be told apart
		}
	}
	return r
}

// refreshEvery is how soon a domain's status follows what edges say of it.
const refreshEvery = 250 * time.Millisecond

// Bounds of what is derived again at once. What is beyond is found when the domain is checked next.
const (
	refreshMost  = 20000
	refreshBatch = 100
)

// touched remembers which domains a report has news of.
func (p *Plane) touched(in *Ingest, done *Ingested) {
	p.edges.mu.Lock()
	defer p.edges.mu.Unlock()
	add := func(name string) {
		if len(p.edges.again) < refreshMost {
			p.edges.again[name] = struct{}{}
		}
	}
	for _, s := range in.Rejected {
		add(s.Name)
	}
	for _, s := range in.Certificates {
		add(s.Name)
	}
	for _, s := range in.Upstreams {
		add(s.Domain)
	}
	if in.Revision > done.Before {
		p.edges.applied.add(done.Before, in.Revision)
	}
}

// span is revisions that edges have applied: after from, up to to.
type span struct{ from, to uint64 }

func (s *span) add(from, to uint64) {
	if s.to == 0 {
		*s = span{from, to}
		return
	}
	s.from, s.to = min(s.from, from), max(s.to, to)
}

// refreshTouched derives the statuses of domains anew of which edges said something: of many reports at once, so that the
// number of edges does not multiply the work.
func (p *Plane) refreshTouched(ctx context.Context) error {
	p.edges.mu.Lock()
	again, applied := p.edges.again, p.edges.applied
	if len(again) == 0 && applied.to == 0 {
		p.edges.mu.Unlock()
		return nil
	}
	p.edges.again, p.edges.applied = make(map[string]struct{}), span{}
	p.edges.mu.Unlock()
	if applied.to > 0 {
		err := p.store.View(ctx, func(tx Tx) error {
			return tx.EachFeedRecord(applied.from, func(r *FeedRecord) error {
				if r.Revision > applied.to || len(again) >= refreshMost {
					return errEnough
				}
				again[r.Name] = struct{}{}
				return nil
			})
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
	}
	for names := range slices.Chunk(slices.Sorted(maps.Keys(again)), refreshBatch) {
		if err := p.refreshReported(ctx, names); err != nil {
			return err // the rest is found when the domains are checked next
		}
	}
	return nil
}

// refreshReported derives the statuses of domains again, by the names that edges call them. Most stay as they are, which is seen
// without keeping people from writing.
func (p *Plane) refreshReported(ctx context.Context, names []string) error {
	var changed []string
	err := p.store.View(ctx, func(tx Tx) error {
		rows, err := tx.FindDomainsOwnedByName(names)
		if err != nil {
			return err
		}
		changed, err = p.unsettled(tx, rows)
		return err
	})
	if err != nil {
		return err
	}
	return p.refreshByID(ctx, changed)
}

// errEnough ends a loop.
var errEnough = errors.New("enough")
