package management

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// Connection is the record of one connection of a domain: DESIGN.md section 8's fields. Durations are in seconds; texts are
// empty, and numbers 0, where the connection did not get that far.
type Connection struct {
	Number int64 `json:"-"` // counts records as they came

	ID          string       `json:"id"`
	Time        time.Time    `json:"time" doc:"When it ended."`
	Domain      string       `json:"domain"`
	DomainID    string       `json:"domain_id"`
	Tenant      string       `json:"tenant"`
	Edge        string       `json:"edge"`
	Client      netip.Prefix `json:"-"` // a single address, or what is kept of it; the zero value: unknown
	ClientIP    string       `json:"client_ip" doc:"An address, or the network where single addresses are not kept."`
	Group       string       `json:"group"`
	PostQuantum bool         `json:"post_quantum"`
	Refused     bool         `json:"-"` // it would be, or was, under require
	ALPN        string       `json:"alpn"`
	EndReason   string       `json:"end_reason"`

	ConnectionDetail
}

// ConnectionDetail is what of a record is shown and not searched.
type ConnectionDetail struct {
	Region     string `json:"region"`
	ServerName string `json:"server_name"`
	Source     string `json:"source"`
	ClientPort uint16 `json:"client_port"`

	TLSVersion         string `json:"tls_version"`
	CipherSuite        string `json:"cipher_suite"`
	OfferedPostQuantum bool   `json:"offered_post_quantum"`
	HelloRetry         bool   `json:"hello_retry"`
	Resumed            bool   `json:"resumed"`

	Upstream            string `json:"upstream"`
	UpstreamGroup       string `json:"upstream_group"`
	UpstreamPostQuantum bool   `json:"upstream_post_quantum"`
	UpstreamResumed     bool   `json:"upstream_resumed"`
	ProxyProtocol       string `json:"proxy_protocol"`

	HelloWait         float64 `json:"hello_wait"`
	Handshake         float64 `json:"handshake"`
	UpstreamConnect   float64 `json:"upstream_connect"`
	UpstreamHandshake float64 `json:"upstream_handshake"`
	FirstByte         float64 `json:"first_byte"`
	Duration          float64 `json:"duration"`

	BytesIn  int64  `json:"bytes_in"`
	BytesOut int64  `json:"bytes_out"`
	ClosedBy string `json:"closed_by"`
	Error    string `json:"error"`
}

// ConnectionFilter selects records of one tenant.
type ConnectionFilter struct {
	TenantID  string
	DomainID  string // empty: all
	Domain    string // a name in normal form, for domains that are no more; empty: all
	From, To  time.Time
	Group     string // empty: all
	Post      *bool  // post_quantum; nil: all
	EndReason string
	Client    netip.Prefix // the zero value: all

	// BeforeTime and BeforeNumber are those of the record behind which to go on; zero: from the newest.
	BeforeTime   time.Time
	BeforeNumber int64
	Limit        int
}

// ConnectionQuery is what a caller may ask for.
type ConnectionQuery struct {
	Domain      string // an ID or a name; empty: all
	From, To    time.Time
	Group       string
	PostQuantum *bool
	EndReason   string
	ClientIP    string // an address or a network; empty: all
}

// searchLimit bounds a search of records. Filters that match few rows of many cannot use an index.
const searchLimit = 15 * time.Second

// FindConnections returns records of the caller's tenant, newest first.
func (p *Plane) FindConnections(ctx context.Context, who *Principal, q ConnectionQuery, page Page) (found []*Connection, next string, err error) {
	if err := who.Require(ConnectionsRead); err != nil {
		return nil, "", err
	}
	filter, err := p.connectionFilter(ctx, who, q)
	if err != nil {
		return nil, "", err
	}
	keys, err := page.keys(2)
	if err != nil {
		return nil, "", err
	}
	if keys != nil {
		at, err := strconv.ParseInt(keys[0], 10, 64)
		number, err2 := strconv.ParseInt(keys[1], 10, 64)
		if err != nil || err2 != nil || at <= 0 || number <= 0 {
			return nil, "", InvalidField("?cursor", "no cursor of this list: begin again without one")
		}
		filter.BeforeTime, filter.BeforeNumber = time.UnixMicro(at).UTC(), number
	}
	filter.Limit = page.Limit + 1
	err = p.search(ctx, func(ctx context.Context) error {
		found, err = p.store.FindConnections(ctx, filter)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	if len(found) > page.Limit {
		found = found[:page.Limit]
		last := found[len(found)-1]
		next = newCursor(strconv.FormatInt(last.Time.UnixMicro(), 10), strconv.FormatInt(last.Number, 10))
	}
	return found, next, nil
}

// search bounds a query of many rows, and says what to do where it takes too long.
func (p *Plane) search(ctx context.Context, fn func(ctx context.Context) error) error {
	limited, cancel := context.WithTimeout(ctx, searchLimit)
	defer cancel()
	err := fn(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return &Error{Code: Unavailable, Detail: "The search took too long. Ask for a shorter time, or for one domain."}
	}
	return err
}

func (p *Plane) connectionFilter(ctx context.Context, who *Principal, q ConnectionQuery) (*ConnectionFilter, error) {
	f := &ConnectionFilter{TenantID: who.TenantID, From: q.From, To: q.To, Group: q.Group, Post: q.PostQuantum, EndReason: q.EndReason}
	if q.ClientIP != "" {
		client, ok := parseClient(q.ClientIP)
		if !ok {
			return nil, InvalidField("?client_ip", "no address and no network: write 203.0.113.7 or 203.0.113.0/24")
		}
		if p.cfg.ClientIP == ClientIPPrefix {
			if kept := ClientPrefix(client.Addr()); client.Bits() > kept.Bits() {
				client = kept
			}
		}
		f.Client = client
	}
	var err error
	f.DomainID, f.Domain, err = p.findDomain(ctx, who, q.Domain)
	return f, err
}

// parseClient reads an address or a network.
func parseClient(text string) (netip.Prefix, bool) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		addr = addr.Unmap()
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, false
		}
		return netip.PrefixFrom(addr, addr.BitLen()), true
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	if addr := prefix.Addr(); addr.Is4In6() {
		if prefix.Bits() < 96 {
			return netip.Prefix{}, false
		}
		prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), true
}

// findDomain reads the parameter domain, an ID or a name, for a search of the caller's rows. Of a name that is the tenant's no more
// the name is returned.
func (p *Plane) findDomain(ctx context.Context, who *Principal, text string) (id, name string, err error) {
	switch {
	case text == "":
		return "", "", nil
	case IsID(DomainID, text):
		return text, "", nil // of another tenant: there are no rows of both
	}
	if name, err = domain.NormalName(text); err != nil {
		return "", "", InvalidField("?domain", "neither the ID nor the name of a domain")
	}
	err = p.store.View(ctx, func(tx Tx) error {
		asked := OwnedName{who.TenantID, name}
		keys, err := tx.FindDomainKeys([]OwnedName{asked})
		if key, ok := keys[asked]; ok {
			id, name = key.ID, ""
		}
		return err
	})
	return id, name, err
}

// Bounds of tails.
const (
	tailEvery   = time.Second
	tailBuffer  = 1000 // records that wait for one reader
	tailRead    = 5000 // records read at once
	tailRounds  = 8    // times that it is gone on at once
	tailMost    = 200  // readers of an instance
	tailMostOf  = 10   // of them of one tenant
	tailOverlap = 3    // rounds for which numbers are looked at again, since they may be filled later
)

// Tail is a subscription to a tenant's records as they come.
type Tail struct {
	tenant  string
	filter  func(*Connection) bool
	records chan *Connection
	closed  func()

	mu      sync.Mutex // guards dropped
	dropped int64
}

// Records is where they come, up to a few seconds after the connection ended. It is never closed.
func (t *Tail) Records() <-chan *Connection { return t.records }

// Dropped returns how many were left out since it was called last, because the reader was too slow.
func (t *Tail) Dropped() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.dropped
	t.dropped = 0
	return n
}

// Close ends the subscription.
func (t *Tail) Close() { t.closed() }

func (t *Tail) offer(c *Connection) {
	if !t.filter(c) {
		return
	}
	select {
	case t.records <- c:
	default:
		t.mu.Lock()
		t.dropped++
		t.mu.Unlock()
	}
}

func (t *Tail) lost(n int64) {
	t.mu.Lock()
	t.dropped += n
	t.mu.Unlock()
}

// tails are the subscriptions of this instance. One goroutine reads for all of them.
type tails struct {
	mu  sync.Mutex // guards all
	all map[*Tail]struct{}
}

// TailConnections subscribes to records of the caller's tenant that come from now on, of those that q selects; its times are
// not looked at. Close the Tail.
func (p *Plane) TailConnections(ctx context.Context, who *Principal, q ConnectionQuery) (*Tail, error) {
	if err := who.Require(ConnectionsRead); err != nil {
		return nil, err
	}
	f, err := p.connectionFilter(ctx, who, q)
	if err != nil {
		return nil, err
	}
	t := &Tail{tenant: who.TenantID, filter: f.match, records: make(chan *Connection, tailBuffer)}
	ts := &p.edges.tail
	t.closed = func() {
		ts.mu.Lock()
		delete(ts.all, t)
		ts.mu.Unlock()
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	same := 0
	for other := range ts.all {
		if other.tenant == t.tenant {
			same++
		}
	}
	if same >= tailMostOf || len(ts.all) >= tailMost {
		return nil, &Error{Code: RateLimited, Detail: "Too many streams are open. Close one.", RetryAfter: 10 * time.Second}
	}
	if ts.all == nil {
		ts.all = make(map[*Tail]struct{})
	}
	ts.all[t] = struct{}{}
	return t, nil
}

// match reports whether a record is one of those that the filter selects, times aside.
func (f *ConnectionFilter) match(c *Connection) bool {
	return c.Tenant == f.TenantID && (f.DomainID == "" || f.DomainID == c.DomainID) && (f.Domain == "" || f.Domain == c.Domain) &&
		(f.Group == "" || f.Group == c.Group) && (f.Post == nil || *f.Post == c.PostQuantum) &&
		(f.EndReason == "" || f.EndReason == c.EndReason) && (!f.Client.IsValid() || f.Client.Contains(c.Client.Addr()))
}

// poll returns the worker that reads new records for all tails. Numbers are given before a report is committed, so one with
// lower numbers can appear after one with higher: the last few seconds are read again, and what was seen is left out.
func (ts *tails) poll(p *Plane) func(ctx context.Context) error {
	var (
		marks []int64            // the last numbers of the rounds before; the first is where to read from
		seen  map[int64]struct{} // numbers after marks[0] that were handed out
	)
	return func(ctx context.Context) error {
		tenants := ts.tenants()
		if len(tenants) == 0 {
			marks, seen = nil, nil
			return nil
		}
		if marks == nil { // the first reader came: from now on
			_, last, err := p.store.FindConnectionsAfter(ctx, 0, nil, 0)
			if err != nil {
				return err
			}
			marks, seen = []int64{last}, make(map[int64]struct{})
			return nil
		}
		var last int64
		from := marks[0]
		for round := 0; ; round++ {
			var found []*Connection
			var err error
			if found, last, err = p.store.FindConnectionsAfter(ctx, from, tenants, tailRead); err != nil {
				return err
			}
			for _, c := range found {
				if _, ok := seen[c.Number]; ok {
					continue
				}
				seen[c.Number] = struct{}{}
				ts.offer(c)
			}
			if len(found) < tailRead {
				break
			}
			if from = found[len(found)-1].Number; round == tailRounds {
				ts.lost(max(last-from, 1)) // of all tenants: nobody counts whose they are
				marks, seen = []int64{last}, make(map[int64]struct{})
				return nil
			}
		}
		if marks = append(marks, last); len(marks) > tailOverlap {
			marks = marks[1:]
			for n := range seen {
				if n <= marks[0] {
					delete(seen, n)
				}
			}
		}
		return nil
	}
}

func (ts *tails) tenants() (ids []string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	known := make(map[string]bool)
	for t := range ts.all {
		if !known[t.tenant] {
			known[t.tenant] = true
			ids = append(ids, t.tenant)
		}
	}
	return ids
}

func (ts *tails) offer(c *Connection) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for t := range ts.all {
		if t.tenant == c.Tenant {
			t.offer(c)
		}
	}
}

func (ts *tails) lost(n int64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for t := range ts.all {
		t.lost(n)
	}
}

// ShowClient returns what the API calls a client: an address, or the network where no more is kept.
func ShowClient(client netip.Prefix) string {
	switch {
	case !client.IsValid():
		return ""
	case client.IsSingleIP():
		return client.Addr().String()
	}
	return client.String()
}
