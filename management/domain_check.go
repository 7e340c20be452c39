package management

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// Resolver looks at a domain from outside. Package dnscheck has it.
//
// An implementer MUST end within 10 s and when the context does, be safe for many goroutines at a time, keep apart what is
// not there (FoundAbsent, FoundWrong) from what could not be asked (FoundUnknown), and bound what it hands on.
type Resolver interface {
	// Look asks DNS.
	Look(ctx context.Context, q Lookup) Observation
	// Prove fetches http://NAME/.well-known/pqproxy/TOKEN and compares its body with want, white space around it aside.
	Prove(ctx context.Context, name, token, want string) Finding
	// PublicSuffix reports whether registries register names right under this one, as under com and co.uk: it is nobody's.
	PublicSuffix(name string) bool
}

// Lookup says what to look at.
type Lookup struct {
	Name      string   // in normal form; may be a wildcard
	Targets   []Target // none: Traffic is FoundOff
	Ownership string   // the text expected at _pqproxy.NAME
	Issuers   []string // the domains by which CAA knows the CAs; none: CAA is FoundOff
}

// Found is what looking came to.
type Found string

// What there can be.
const (
	FoundOK      Found = "ok"
	FoundAbsent  Found = "absent"  // asked, and there is nothing
	FoundWrong   Found = "wrong"   // asked, and there is something else
	FoundUnknown Found = "unknown" // could not be asked: nothing follows
	FoundOff     Found = "off"     // there was nothing to compare with
)

// definite reports whether somebody answered.
func (f Found) definite() bool { return f == FoundOK || f == FoundAbsent || f == FoundWrong }

// Finding is what was found, with a text for the owner of the domain: what is wrong, and what to do.
type Finding struct {
	State  Found     `json:"state"`
	Detail string    `json:"detail,omitempty"`
	At     time.Time `json:"at,omitzero"`

	// Trouble is why asking came to nothing since: State is from before.
	Trouble string `json:"trouble,omitempty"`
}

// Observation is what Look saw.
type Observation struct {
	Records   []Record // those for traffic, then ownership
	Traffic   Finding  // does the name point at the targets, and at nothing else?
	Ownership Finding  // is the text there?
	CAA       Finding  // may one of the issuers issue?
}

// What a record is for.
const (
	ForTraffic   = "traffic"
	ForOwnership = "ownership"
)

// Record is a DNS record that a domain needs, and what stands in its place.
type Record struct {
	Purpose string   `json:"purpose" enum:"traffic,ownership"`
	Type    string   `json:"type" doc:"A, AAAA, CNAME, TXT, or ALIAS where the name is the top of a zone"`
	Name    string   `json:"name"`
	Value   string   `json:"value"`
	Seen    []string `json:"seen" nullable:"false" doc:"what DNS has in its place"`
	OK      bool     `json:"ok" doc:"nothing is left to do about it"`
}

// DomainFacts are what the checks of a domain found.
type DomainFacts struct {
	Records   []Record  `json:"records,omitempty"`
	DNS       Finding   `json:"dns,omitzero"`
	TXT       Finding   `json:"txt,omitzero"`
	HTTP      Finding   `json:"http,omitzero"`
	CAA       Finding   `json:"caa,omitzero"`
	CheckedAt time.Time `json:"checked_at,omitzero"`
	PointedAt time.Time `json:"pointed_at,omitzero"` // when the name was first seen to point at the edges
	Contested bool      `json:"contested,omitempty"` // others claim the name, or did: pointing at the edges proves nothing
	Taken     bool      `json:"taken,omitempty"`     // another tenant has proven the name
	Lost      bool      `json:"lost,omitempty"`      // it was this tenant's before
}

// Bounds of what is asked at a time.
const (
	checkTime     = 9500 * time.Millisecond // of one check that somebody waits for: the API answers within 10 s
	workTime      = 6 * time.Second         // of one in the background: slow name servers must not hold up the others'
	checksAtOnce  = 64                      // of all tenants, for people
	checksPerSide = 4                       // of one tenant, for people
)

// domains is the Plane's own state for checks and probes.
type domains struct {
	mu      sync.Mutex     // guards running
	running map[string]int // checks and probes that people wait for, by tenant; "": all

	walk map[Status]string // where walkStatuses goes on; its own
}

// begin takes a place among the checks that run for people; the function gives it back.
func (d *domains) begin(tenantID string) (end func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running[tenantID] >= checksPerSide || d.running[""] >= checksAtOnce {
		return nil, &Error{Code: RateLimited, Detail: "Too many checks run already. Wait for them.", RetryAfter: 5 * time.Second}
	}
	d.running[tenantID]++
	d.running[""]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, side := range []string{tenantID, ""} {
			if d.running[side]--; d.running[side] == 0 {
				delete(d.running, side)
			}
		}
	}, nil
}

// seen is what a check came to.
type seen struct {
	Observation
	http *Finding // nil: it was not asked
	at   time.Time
}

// CheckDomain asks DNS and the name's web server about one of the tenant's domains now, and returns the domain as it is then.
// It takes up to 10 s.
func (p *Plane) CheckDomain(ctx context.Context, who *Principal, id string) (d *Domain, err error) {
	if err := who.Require(DomainsWrite); err != nil {
		return nil, err
	}
	row, err := p.domainToAsk(ctx, who, id)
	if err != nil {
		return nil, err
	}
	end, err := p.domains.begin(who.TenantID)
	if err != nil {
		return nil, err
	}
	defer end()
	looking, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	result := p.look(looking, row)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = p.store.Update(ctx, func(tx Tx) error {
		row, err := tx.FindDomainByID(who.TenantID, id)
		if err != nil {
			return found("domain", err)
		}
		row.Tries = 0 // somebody is at work on it
		views, err := p.record(tx, who, []*DomainRow{row}, []*seen{result})
		if err != nil {
			return err
		}
		d = views[0].shown()
		return nil
	})
	return d, err
}

// domainToAsk finds a domain to look at.
func (p *Plane) domainToAsk(ctx context.Context, who *Principal, id string) (row *DomainRow, err error) {
	err = p.store.View(ctx, func(tx Tx) error {
		_, row, err = p.changingDomain(tx, who, id, "")
		return err
	})
	return row, err
}

// look asks. It changes nothing.
func (p *Plane) look(ctx context.Context, row *DomainRow) *seen {
	result := &seen{at: p.now()}
	var asking sync.WaitGroup
	// A proven name is asked over HTTP only if that is its proof and the name no longer points here: once it does, its web
	// server is an edge.
	if !strings.HasPrefix(row.Name, "*.") && (row.Proof == "" || row.Proof == ProofHTTP && row.Facts.DNS.State != FoundOK) {
		asking.Go(func() {
			finding := p.resolver.Prove(ctx, row.Name, row.Token, proofText(row.Token))
			result.http = &finding
		})
	}
	lookup := Lookup{Name: row.Name, Targets: p.cfg.Targets, Ownership: proofText(row.Token)}
	if row.Settings.Certificate.Source == domain.ACME {
		lookup.Issuers = p.cfg.CAAIssuers
	}
	result.Observation = p.resolver.Look(ctx, lookup)
	asking.Wait()
	return result
}

// record puts what checks came to into rows, of different names, draws the conclusions and stores them. The rows are as they are
// now: they may have changed while the checks ran, and what is not the check's stays.
func (p *Plane) record(tx Tx, who *Principal, rows []*DomainRow, results []*seen) ([]*domainView, error) {
	tenants := map[string]*Tenant{}
	late := make([]bool, len(rows))
	due := make([]time.Time, len(rows)) // of those that changed while the check ran: still, for what they are now
	for i, row := range rows {
		// Gone, or somebody has asked since. A check that seems to be much later was made by a clock that has been put back.
		if since := row.Facts.CheckedAt.Sub(results[i].at); !row.DeletingAt.IsZero() || since > 0 && since < time.Minute {
			late[i] = true
			continue
		}
		if row.UpdatedAt.After(results[i].at) {
			due[i] = row.DueAt
		}
		tenant := tenants[row.TenantID]
		if tenant == nil {
			var err error
			if tenant, err = tx.FindTenant(row.TenantID); err != nil {
				return nil, found("tenant", err)
			}
			tenants[row.TenantID] = tenant
		}
		row.Facts.take(results[i])
		if err := p.decideOwnership(tx, who, row, tenant); err != nil {
			return nil, err
		}
	}
	views, err := p.viewsOf(tx, rows, slices.Collect(maps.Values(tenants))...)
	if err != nil {
		return nil, err
	}
	for i, row := range rows {
		if late[i] {
			continue
		}
		p.settle(views[i])
		if p.schedule(row); !due[i].IsZero() && due[i].Before(row.DueAt) {
			row.DueAt = due[i]
		}
		if err := tx.UpdateDomain(row); err != nil {
			return nil, err
		}
	}
	return views, nil
}

// take puts what was found in place of what was known. What could not be asked leaves what was known.
func (f *DomainFacts) take(result *seen) {
	f.CheckedAt = result.at
	f.DNS = f.DNS.then(result.Traffic, result.at)
	f.TXT = f.TXT.then(result.Ownership, result.at)
	f.CAA = f.CAA.then(result.CAA, result.at)
	if result.http != nil {
		f.HTTP = f.HTTP.then(*result.http, result.at)
	}
	if f.DNS.State == FoundOK && f.PointedAt.IsZero() {
		f.PointedAt = result.at
	}
	records := make([]Record, 0, len(result.Records))
	for purpose, finding := range map[string]Finding{ForTraffic: result.Traffic, ForOwnership: result.Ownership} {
		from := result.Records
		if finding.State == FoundUnknown && slices.ContainsFunc(f.Records, func(r Record) bool { return r.Purpose == purpose }) {
			from = f.Records
		}
		for _, r := range from {
			if r.Purpose == purpose && len(records) < maxRecords {
				records = append(records, r)
			}
		}
	}
	slices.SortStableFunc(records, func(a, b Record) int { return -strings.Compare(a.Purpose, b.Purpose) }) // traffic first
	f.Records = records
}

// maxRecords bounds what is kept of a check: there is one for each target, and the TXT record.
const maxRecords = 32

// then is f after asking again.
func (f Finding) then(now Finding, at time.Time) Finding {
	if now.State == FoundUnknown && f.State.definite() {
		f.Trouble = first(now.Detail, "DNS could not be asked.")
		return f
	}
	now.At, now.Trouble = at, ""
	return now
}

// When domains are checked again: those that wait for something often at first, then less and less; settled ones rarely.
const (
	checkSoon    = 30 * time.Second
	checkLater   = time.Hour
	checkSettled = 6 * time.Hour
	checkIdle    = 24 * time.Hour      // of claims that nobody has done anything about
	idleAfter    = 30 * 24 * time.Hour // for so long
)

// schedule says when row is checked again. Times are spread, lest what was created together is checked together for ever.
func (p *Plane) schedule(row *DomainRow) {
	now := p.now()
	var wait time.Duration
	trouble := row.Facts.DNS.Trouble != "" || row.Facts.TXT.Trouble != "" || row.Facts.DNS.State == FoundUnknown
	switch settled := row.Proof != "" && (row.Facts.DNS.State == FoundOK || row.Facts.DNS.State == FoundOff); {
	case settled && !trouble:
		wait, row.Tries = checkSettled, 0
	case row.Proof == "" && now.Sub(row.UpdatedAt) > idleAfter:
		wait = checkIdle
	default:
		wait = min(checkSoon<<min(row.Tries, 16), checkLater)
		row.Tries++
	}
	wait = wait*9/10 + rand.N(wait/5)
	row.DueAt = now.Add(wait)
	if end := row.CertificateNotAfter; end.After(now) && end.Before(row.DueAt) {
		row.DueAt = end.Add(time.Second) // then its status changes by itself
	}
}
