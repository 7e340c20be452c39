package management

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// Bounds of what edges are believed.
const (
	edgeFresh  = 90 * time.Second    // an edge is up for so long after a report
	edgeKept   = 30 * 24 * time.Hour // an edge that says nothing is forgotten after
	runsKept   = 7 * 24 * time.Hour  // how long the last report of a life of an edge is remembered
	maxEdges   = 10000
	maxHistory = 64 // revisions of an edge of which is remembered when it applied them
)

// States of an edge.
const (
	EdgeUp    = "up"    // it reported within 90 s
	EdgeStale = "stale" // it did before
)

// Edge is a running proxy as it reports itself. It is known by its name.
type Edge struct {
	ID              string    `json:"id"` // edg_…
	Name            string    `json:"name"`
	Region          string    `json:"region"`
	Version         string    `json:"version"`
	State           string    `json:"state" enum:"up,stale"`
	Revision        uint64    `json:"revision" doc:"The set of domains that it has applied; 0: none yet."`
	Draining        bool      `json:"draining"`
	LiveConnections int64     `json:"live_connections"`
	StartedAt       time.Time `json:"started_at"`
	FirstSeen       time.Time `json:"first_seen"`
	LastSeen        time.Time `json:"last_seen"`
	Conflict        bool      `json:"conflict" doc:"Two edges report under this name. Give each its own."`
	DroppedRecords  int64     `json:"dropped_records" doc:"Connection records that it left out under load."`
	UnknownDomains  int64     `json:"unknown_domains" doc:"Connections that it counted for domains that nobody has any more."`
	TokenID         string    `json:"edge_token"`
}

// EdgeRow is an edge as it is stored. What is said of a life is of the one whose first report came last.
type EdgeRow struct {
	ID, Name, TokenID   string
	FirstSeen, LastSeen time.Time
	Region, Version     string
	StartedAt           time.Time // names the life
	Epoch               int64     // how often the edge's states were forgotten
	Revision            uint64
	HistoryFrom         uint64    // the first revision of History; 0: it is empty
	History             []Applied // oldest first; only where it was asked for
	Draining            bool
	LiveConnections     int64
	Dropped, Unknown    int64

	// OtherStartedAt is another life that reported, at OtherSeen; it did so again at ConflictAt.
	OtherStartedAt, OtherSeen, ConflictAt time.Time
}

// Applied is when an edge first said that it has a revision, or a later one.
type Applied struct {
	Revision uint64 `json:"r"`
	At       int64  `json:"t"` // microseconds since 1970
}

// conflictFor is how long two lives that report in turn are called a conflict.
const conflictFor = 5 * time.Minute

func (r *EdgeRow) edge(now time.Time) *Edge {
	e := &Edge{
		ID: r.ID, Name: r.Name, Region: r.Region, Version: r.Version, State: EdgeStale, Revision: r.Revision, Draining: r.Draining,
		LiveConnections: r.LiveConnections, StartedAt: r.StartedAt, FirstSeen: r.FirstSeen, LastSeen: r.LastSeen,
		Conflict: now.Sub(r.ConflictAt) < conflictFor, DroppedRecords: r.Dropped, UnknownDomains: r.Unknown, TokenID: r.TokenID,
	}
	if r.LastSeen.After(now.Add(-edgeFresh)) {
		e.State = EdgeUp
	}
	return e
}

// SetRevision sets Revision, and adds to History that the edge has it at that time.
func (r *EdgeRow) SetRevision(revision uint64, at time.Time) {
	r.Revision = revision
	if revision == 0 {
		return // it began anew and has not said yet
	}
	for n := len(r.History); n > 0 && r.History[n-1].Revision > revision; n-- {
		r.History = r.History[:n-1] // an operator went back to an older set
	}
	if n := len(r.History); n > 0 && r.History[n-1].Revision == revision {
		return
	}
	r.History = append(r.History, Applied{revision, at.UnixMicro()})
	if n := len(r.History); n > maxHistory {
		r.History = r.History[n-maxHistory:]
	}
	r.HistoryFrom = r.History[0].Revision
}

// MeetOther notes that another life than the one that is the edge reported. Once is a restart; again is a conflict.
func (r *EdgeRow) MeetOther(startedAt, at time.Time) {
	if r.OtherStartedAt.Equal(startedAt) && at.Sub(r.OtherSeen) < conflictFor {
		r.ConflictAt = at
	}
	r.OtherStartedAt, r.OtherSeen = startedAt, at
}

// since returns when the edge first had that revision, made at changed: as it said, or, where that is long ago, when it was made,
// since edges follow within a second.
func (r *EdgeRow) since(revision uint64, changed time.Time) time.Time {
	at := changed
	if len(r.History) > 0 && r.History[0].Revision < revision {
		for _, a := range r.History {
			if a.Revision >= revision {
				at = time.UnixMicro(a.At).UTC()
				break
			}
		}
	}
	if at.Before(r.FirstSeen) {
		return r.FirstSeen
	}
	return at
}

// EdgeTx is the part of Tx about edges and what they report. It writes none of it: see Observations.
type EdgeTx interface {
	// FindEdge finds an edge by its name.
	FindEdge(name string) (*EdgeRow, error)
	// FindEdges returns edges with names after the given one, by name, at most limit, that reported after since.
	FindEdges(after string, since time.Time, limit int) ([]*EdgeRow, error)
	// FindEdgeHistories finds what History of edges is.
	FindEdgeHistories(names []string) (map[string][]Applied, error)
	CountEdges() (int, error)
	// DeleteEdgesBefore removes edges that did not report since t, at most limit, and what they said; and the lives of edges
	// that did not report since runs.
	DeleteEdgesBefore(t, runs time.Time, limit int) (int, error)
	// DeleteOldStates removes what edges said in former lives, at most limit rows.
	DeleteOldStates(limit int) (int, error)

	// FindEdgeStates returns what edges that reported after since say of these names.
	FindEdgeStates(names []string, since time.Time) (*EdgeStates, error)

	// FindDomainKeys returns the domains that have these names.
	FindDomainKeys(names []OwnedName) (map[OwnedName]DomainKey, error)

	// FindRemovedDomainKeys returns the domains that had these names last, of those that are no more while their tenant is. They
	// are remembered for a day.
	FindRemovedDomainKeys(names []OwnedName) (map[OwnedName]DomainKey, error)

	UsageTx
}

// OwnedName is a name as an edge calls it: of that tenant or, where the tenant is empty, of whoever has proven it.
type OwnedName struct {
	TenantID, Name string
}

// DomainKey says which domain a name is.
type DomainKey struct {
	ID, TenantID, Name string
}

// EdgeStates are what edges say of some names.
type EdgeStates struct {
	Rejected     []EdgeRejection
	Certificates []EdgeCertificateState
	Upstreams    []EdgeUpstreamState
}

// EdgeRejection is a record of the feed that an edge did not take.
type EdgeRejection struct {
	Edge string
	edgereport.Rejected
}

// text is what is told of it.
func (r *EdgeRejection) text() string {
	if r.Field == "" {
		return r.Detail
	}
	return r.Field + ": " + r.Detail
}

// EdgeCertificateState is what an edge says of the certificate of a name.
type EdgeCertificateState struct {
	Edge  string
	Since time.Time // when it came to be in this state
	edgereport.CertificateState
}

// EdgeUpstreamState is an upstream that an edge finds faulty.
type EdgeUpstreamState struct {
	Edge string
	edgereport.UpstreamState
}

// edges is what a Plane keeps in memory about edges.
type edges struct {
	feed feedCache
	tail tails

	reports chan struct{} // a place for each report that is being taken: its capacity bounds the memory

	mu      sync.Mutex          // guards what follows
	again   map[string]struct{} // names of which edges said something new: their statuses are to be derived again
	applied span                // and revisions that edges have now: those of the names changed in them
}

// reportsAtOnce bounds the memory that reports take: a few times 8 MiB each.
const reportsAtOnce = 8

func (p *Plane) initEdges() {
	p.edges.reports = make(chan struct{}, reportsAtOnce)
	p.edges.again = make(map[string]struct{})
	p.edges.feed.tokenAge = feedTokenAge
	p.edges.feed.ended = make(chan struct{})
	p.edges.feed.end = sync.OnceFunc(func() { close(p.edges.feed.ended) })
	p.onTenantChange(func(tx Tx, tenant *Tenant) error {
		if tenant.DeletedAt.IsZero() {
			return nil
		}
		return tx.InsertPurge(Purge{TenantID: tenant.ID, Due: p.now()})
	})
}

func (p *Plane) edgeWorkers() []worker {
	return []worker{
		{name: "usage", every: foldEvery, run: p.foldUsage},
		{name: "retention", every: time.Minute, run: p.retain},
		{name: "old-sums", every: oldUsageEvery, run: p.retainUsage},
		{name: "edge-statuses", every: refreshEvery, run: p.refreshTouched, here: true},
		{name: "connection-tail", every: tailEvery, run: p.edges.tail.poll(p), here: true},
	}
}

// Revision returns the newest revision of the set of domains that edges are told. It needs the scope Platform.
func (p *Plane) Revision(ctx context.Context, who *Principal) (revision uint64, err error) {
	if err := who.Require(Platform); err != nil {
		return 0, err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		revision, err = tx.Revision()
		return err
	})
	return revision, err
}

// FindEdges lists the edges, for operators of the platform.
func (p *Plane) FindEdges(ctx context.Context, who *Principal, page Page) (edges []*Edge, next string, err error) {
	if err := who.Require(Platform); err != nil {
		return nil, "", err
	}
	keys, err := page.keys(1)
	if err != nil {
		return nil, "", err
	}
	after := ""
	if keys != nil {
		after = keys[0]
	}
	var rows []*EdgeRow
	err = p.store.View(ctx, func(tx Tx) error {
		rows, err = tx.FindEdges(after, time.Time{}, page.Limit+1)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(rows) > page.Limit {
		rows = rows[:page.Limit]
		next = newCursor(rows[len(rows)-1].Name)
	}
	now := p.now()
	for _, r := range rows {
		edges = append(edges, r.edge(now))
	}
	return edges, next, nil
}

// edgesUp returns the edges that reported after fresh, with the histories that since needs for these domains: of most, which did not
// change lately, none.
func edgesUp(tx Tx, fresh time.Time, rows []*DomainRow) ([]*EdgeRow, error) {
	up, err := tx.FindEdges("", fresh, maxEdges)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range up {
		if e.History == nil && slices.ContainsFunc(rows, func(r *DomainRow) bool { return e.HistoryFrom < r.Revision && r.Revision <= e.Revision }) {
			names = append(names, e.Name)
		}
	}
	if len(names) == 0 {
		return up, nil
	}
	histories, err := tx.FindEdgeHistories(names)
	if err != nil {
		return nil, err
	}
	for _, e := range up {
		if h, ok := histories[e.Name]; ok {
			e.History = h
		}
	}
	return up, nil
}

// edgeStates returns what the edges that are up say of domains, by ID. It asks the database two or three times, however
// many domains there are.
func (p *Plane) edgeStates(tx Tx, rows []*DomainRow) (map[string]EdgeState, error) {
	if len(rows) == 0 {
		return nil, nil
	}
	now := p.now()
	fresh := now.Add(-edgeFresh)
	up, err := edgesUp(tx, fresh, rows)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(rows))
	for i, r := range rows {
		names[i] = r.Name
	}
	said, err := tx.FindEdgeStates(names, fresh)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*nameStates, len(rows))
	of := func(name string) *nameStates {
		s, ok := byName[name]
		if !ok {
			s = &nameStates{rejected: make(map[string]string), certificates: make(map[string]*EdgeCertificateState)}
			byName[name] = s
		}
		return s
	}
	for _, r := range said.Rejected {
		of(r.Name).rejected[r.Edge] = r.text()
	}
	for i := range said.Certificates {
		c := &said.Certificates[i]
		of(c.Name).certificates[c.Edge] = c
	}
	for _, u := range said.Upstreams {
		of(u.Domain).addUpstream(u)
	}
	states := make(map[string]EdgeState, len(rows))
	for _, r := range rows {
		states[r.ID] = of(r.Name).state(r, up, now)
	}
	return states, nil
}

// nameStates are what edges say of one name, by edge.
type nameStates struct {
	rejected     map[string]string
	certificates map[string]*EdgeCertificateState
	upstreams    []EdgeUpstream
}

func (s *nameStates) addUpstream(u EdgeUpstreamState) {
	for i := range s.upstreams {
		if s.upstreams[i].Dial == u.Dial {
			s.upstreams[i].Down++
			return
		}
	}
	s.upstreams = append(s.upstreams, EdgeUpstream{Dial: u.Dial, Error: u.Error, Down: 1})
}

// state adds up what the edges that are up say of a domain.
func (s *nameStates) state(r *DomainRow, up []*EdgeRow, now time.Time) EdgeState {
	state := EdgeState{Of: len(up), Upstreams: s.upstreams}
	var since time.Time
	for _, e := range up {
		c := s.certificates[e.Name]
		held := c != nil && c.Held(now)
		if c != nil {
			state.Certificate.add(c, now)
		}
		if why := s.rejected[e.Name]; why != "" {
			state.Rejected = why
			continue
		}
		if e.Revision < r.Revision || r.Revision == 0 {
			continue
		}
		state.Applied++
		if !held {
			continue
		}
		state.Live++
		if at := e.since(r.Revision, r.UpdatedAt); at.After(since) {
			since = at
		}
		if c.Since.After(since) {
			since = c.Since
		}
	}
	if state.Live == state.Of {
		state.LiveSince = since
	}
	return state
}

// add takes what one edge says of the certificate into what all say.
func (c *EdgeCertificate) add(of *EdgeCertificateState, now time.Time) {
	if of.Error != "" && c.Error == "" {
		c.Error = of.Error
	}
	held := of.Held(now) || of.State == edgereport.CertificateExpired
	if !held || of.NotAfter == nil {
		if c.Source == "" {
			c.Source = of.Source
		}
		return
	}
	c.Held++
	if c.NotAfter.IsZero() || of.NotAfter.Before(c.NotAfter) {
		c.NotAfter, c.Issuer, c.Source = *of.NotAfter, of.Issuer, of.Source
	}
}
