package management

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// Step is how long one sum is for.
type Step int

// The steps. Days are UTC days.
const (
	Minute Step = iota
	Hour
	Day
)

// Duration returns how long a step is.
func (s Step) Duration() time.Duration {
	return [...]time.Duration{time.Minute, time.Hour, 24 * time.Hour}[s]
}

// String returns "minute", "hour" or "day".
func (s Step) String() string { return [...]string{"minute", "hour", "day"}[s] }

// ParseStep reads what String writes.
func ParseStep(text string) (Step, bool) {
	for _, s := range []Step{Minute, Hour, Day} {
		if s.String() == text {
			return s, true
		}
	}
	return 0, false
}

// floor returns the beginning of the step that t is in.
func (s Step) floor(t time.Time) time.Time { return t.UTC().Truncate(s.Duration()) } // the zero Time begins a day

// ceil returns t, or the end of the step that it is in.
func (s Step) ceil(t time.Time) time.Time {
	if f := s.floor(t); !f.Equal(t) {
		return f.Add(s.Duration())
	}
	return t.UTC()
}

// minutesKept is for how long sums by minute are kept; by hour and day: Retention.Usage. minutesSure is for how long all of them
// are there, whatever is being removed at this moment.
const (
	minutesKept = 48 * time.Hour
	minutesSure = 47 * time.Hour
)

// Sums are what is counted of connections. They are exact.
type Sums struct {
	Connections  int64
	BytesIn      int64
	BytesOut     int64
	Handshakes   int64 // that were completed
	PostQuantum  int64 // of them, with a hybrid group
	HelloRetries int64 // of them, that took a HelloRetryRequest
	Refused      int64 // that would be, or were, refused under require
}

// MaxSum is where sums that are stored stop, 9 PB of bytes: more is no count but a lie, and must not go where numbers begin anew
// below zero, or where the database refuses to add up anybody's.
const MaxSum = 1 << 53

// plus adds counts, which are 0 or more, and stops at the largest number there is.
func plus(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Add adds other to s.
func (s *Sums) Add(other Sums) {
	s.Connections = plus(s.Connections, other.Connections)
	s.BytesIn = plus(s.BytesIn, other.BytesIn)
	s.BytesOut = plus(s.BytesOut, other.BytesOut)
	s.Handshakes = plus(s.Handshakes, other.Handshakes)
	s.PostQuantum = plus(s.PostQuantum, other.PostQuantum)
	s.HelloRetries = plus(s.HelloRetries, other.HelloRetries)
	s.Refused = plus(s.Refused, other.Refused)
}

// Detail is what is counted of connections, apart.
type Detail struct {
	Groups     map[string]int64 `json:"g,omitempty"` // completed handshakes
	EndReasons map[string]int64 `json:"e,omitempty"`
	Buckets    []int64          `json:"b,omitempty"` // how long handshakes took: edgereport.HandshakeBuckets
}

// Add adds other to d. It shares no memory with other.
func (d *Detail) Add(other Detail) {
	addCounts(&d.Groups, other.Groups, edgereport.MaxGroups)
	addCounts(&d.EndReasons, other.EndReasons, edgereport.MaxEndReasons)
	if len(other.Buckets) == 0 {
		return
	}
	if d.Buckets == nil {
		d.Buckets = make([]int64, len(other.Buckets))
	}
	for i := range min(len(d.Buckets), len(other.Buckets)) {
		d.Buckets[i] = plus(d.Buckets[i], other.Buckets[i])
	}
}

// OtherWords counts what comes under more words than there can be.
const OtherWords = "other"

// addCounts adds other to counts of at most so many words. Each report is bounded, but a document is the sum of many, and is
// read and written whole.
func addCounts(to *map[string]int64, other map[string]int64, most int) {
	if len(other) > 0 && *to == nil {
		*to = make(map[string]int64, len(other))
	}
	for key, n := range other {
		if _, known := (*to)[key]; !known && len(*to) >= most {
			key = OtherWords
		}
		(*to)[key] = plus((*to)[key], n)
	}
}

// UsageEntry is what one counter of an edge adds.
type UsageEntry struct {
	DomainKey
	Minute time.Time
	Sums
	Detail
}

// UsageSum is the sum over a step, of one domain or, where that is empty, of all of the tenant's.
type UsageSum struct {
	Start    time.Time
	DomainID string
	Domain   string
	Sums
	Detail // where UsageQuery.Detail asks for it
}

// UsageQuery selects sums of one tenant.
type UsageQuery struct {
	TenantID  string
	DomainID  string   // empty: all
	DomainIDs []string // at most 1,000; empty: all
	Domain    string   // a name in normal form; empty: all
	Step      Step
	From, To  time.Time // on bounds of steps

	ByStart  bool // one sum for each step, else one for all
	ByDomain bool // one sum for each domain, else one for all
	Detail   bool // only with ByStart, and without ByDomain
	Limit    int  // rows
}

// UsageAge says when the oldest sums begin that are kept.
type UsageAge struct{ Minutes, Hours, Days time.Time }

// UsageTx is the part of Tx about sums.
type UsageTx interface {
	// FindUsage returns sums, by start and name. They are exact: they include what was reported a moment ago.
	FindUsage(q *UsageQuery) ([]UsageSum, error)
	// CountDropped returns how many records edges left out in the hours from until to.
	CountDropped(from, to time.Time) (int64, error)

	// FindOldUsage looks at domains in the order of their IDs, at most limit and those after that one, and returns which of them have
	// sums that are older than they may be. If there are more domains, the next call goes on after last.
	FindOldUsage(age UsageAge, after string, limit int) (domains []string, last string, more bool, err error)
	// DeleteUsageBefore removes sums of such domains that are older than they may be, at most limit.
	DeleteUsageBefore(age UsageAge, domains []string, limit int) (int, error)
	// DeleteTotalsBefore removes sums of tenants, of a step that began before t; at most limit.
	DeleteTotalsBefore(step Step, t time.Time, limit int) (int, error)
	// DeleteDroppedBefore removes what CountDropped counts of before t.
	DeleteDroppedBefore(t time.Time) error
	// DeleteUsageOf removes sums of a tenant or, where it is not empty, of one domain; at most limit.
	DeleteUsageOf(tenantID, domainID string, limit int) (int, error)

	// InsertPurge remembers what is to be removed; a second one of the same things changes when.
	InsertPurge(Purge) error
	// FindPurges returns those that are due.
	FindPurges(now time.Time, limit int) ([]Purge, error)
	DeletePurge(Purge) error
}

// Usage is how much a domain was used from Start on, for one step.
type Usage struct {
	Start       time.Time `json:"start"`
	Domain      string    `json:"domain"`
	DomainID    string    `json:"domain_id"`
	Connections int64     `json:"connections"`
	BytesIn     int64     `json:"bytes_in" doc:"From clients, without TLS."`
	BytesOut    int64     `json:"bytes_out" doc:"To clients, without TLS."`
}

// StepTotal is the step of Plane.FindUsage that is as long as the time asked for.
const StepTotal = "total"

// usageRows is how many rows an answer has at most.
const usageRows = 20000

// FindUsage returns how much the domains of the caller's tenant were used from from on and before to: by "hour", "day" or
// StepTotal, and by name. Both are taken to the minute within the last 47 hours, and are widened to whole hours before. So sums of
// one time are the same by every step. The domain is an ID, a name, or empty for all.
func (p *Plane) FindUsage(ctx context.Context, who *Principal, domain string, from, to time.Time, step string) ([]*Usage, error) {
	if err := who.Require(UsageRead); err != nil {
		return nil, err
	}
	by, ok := ParseStep(step)
	if (!ok || by == Minute) && step != StepTotal {
		return nil, InvalidField("?step", "is none of hour, day, total")
	}
	if err := checkSpan(from, to, p.cfg.Retention.Usage); err != nil {
		return nil, err
	}
	q := UsageQuery{TenantID: who.TenantID, ByDomain: true, ByStart: step != StepTotal, Limit: usageRows + 1}
	var err error
	if q.DomainID, q.Domain, err = p.findDomain(ctx, who, domain); err != nil {
		return nil, err
	}
	most := by
	if step == StepTotal {
		most = Day
	}
	from, to = p.countedSpan(from, to)
	var sums []UsageSum
	err = p.findUsage(ctx, spans(q, most, from, to), func(s []UsageSum) { sums = append(sums, s...) })
	if err != nil {
		return nil, err
	}
	if len(sums) > usageRows {
		return nil, InvalidField("?from", "the answer would have more than %d rows: ask for a shorter time, a longer step, or one domain", usageRows)
	}
	if step == StepTotal {
		sums = total(sums, func(time.Time) time.Time { return from })
	} else {
		sums = total(sums, by.floor)
	}
	used := make([]*Usage, len(sums))
	for i, s := range sums {
		used[i] = &Usage{Start: s.Start, Domain: s.Domain, DomainID: s.DomainID, Connections: s.Connections, BytesIn: s.BytesIn, BytesOut: s.BytesOut}
	}
	return used, nil
}

// findUsage asks all parts of one snapshot.
func (p *Plane) findUsage(ctx context.Context, parts []UsageQuery, each func([]UsageSum)) error {
	return p.search(ctx, func(ctx context.Context) error {
		return p.store.View(ctx, func(tx Tx) error {
			for i := range parts {
				sums, err := tx.FindUsage(&parts[i])
				if err != nil {
					return err
				}
				each(sums)
			}
			return nil
		})
	})
}

// countedSpan widens a time to what was counted: whole minutes where sums by minute are there, whole hours before.
func (p *Plane) countedSpan(from, to time.Time) (time.Time, time.Time) {
	minutes := Hour.ceil(p.now().Add(-minutesSure))
	if from = from.UTC(); from.Before(minutes) {
		from = Hour.floor(from)
	}
	if to = to.UTC(); to.Before(minutes) {
		to = Hour.ceil(to)
	}
	return Minute.floor(from), Minute.ceil(to)
}

// spans cuts a time of whole minutes into whole steps of most and what is around them into shorter ones: few rows.
func spans(q UsageQuery, most Step, from, to time.Time) (parts []UsageQuery) {
	if !from.Before(to) {
		return nil
	}
	first, last := most.ceil(from), most.floor(to)
	if !first.Before(last) {
		return spans(q, most-1, from, to) // of minutes there is always one
	}
	if first.After(from) {
		parts = spans(q, most-1, from, first)
	}
	q.Step, q.From, q.To = most, first, last
	parts = append(parts, q)
	if last.Before(to) {
		parts = append(parts, spans(q, most-1, last, to)...)
	}
	return parts
}

// total adds up the sums of each domain that have the same start, by start and name.
func total(sums []UsageSum, start func(time.Time) time.Time) (all []UsageSum) {
	type key struct {
		start  time.Time
		domain string
	}
	index := make(map[key]int)
	for _, s := range sums {
		k := key{start(s.Start), s.DomainID}
		i, ok := index[k]
		if !ok {
			i = len(all)
			index[k] = i
			all = append(all, UsageSum{Start: k.start, DomainID: s.DomainID, Domain: s.Domain})
		}
		all[i].Add(s.Sums)
	}
	slices.SortFunc(all, func(a, b UsageSum) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.DomainID, b.DomainID))
	})
	return all
}

// Add makes it clear which of the two embedded methods is meant.
func (s *UsageSum) Add(other Sums) { s.Sums.Add(other) }

// checkSpan bounds what is asked for.
func checkSpan(from, to time.Time, most time.Duration) error {
	switch {
	case !from.Before(to):
		return InvalidField("?from", "must be before to")
	case to.Sub(from) > most+24*time.Hour:
		return InvalidField("?from", "the time is longer than what is kept, %d days", int(most.Hours()/24))
	}
	return nil
}

// Series is how a domain did over time: one value for each step from Start on, null where there is none.
type Series struct {
	Start  time.Time             `json:"start"`
	Step   string                `json:"step" enum:"minute,hour,day"`
	Series map[string][]*float64 `json:"series"`
}

// The series of a domain.
const (
	seriesConnections  = "connections"
	seriesBytesIn      = "bytes_in"
	seriesBytesOut     = "bytes_out"
	seriesHandshakes   = "handshakes"
	seriesPostQuantum  = "post_quantum"       // handshakes with a hybrid group
	seriesShare        = "post_quantum_share" // of handshakes
	seriesHelloRetries = "hello_retries"
	seriesUpstream     = "upstream_failures" // connections that ended because of the upstream
	seriesP50          = "handshake_p50"     // seconds
	seriesP95          = "handshake_p95"
	seriesP99          = "handshake_p99"
)

// seriesPoints is how many steps a series has at most.
const seriesPoints = 3000

// FindSeries returns the series of one domain of the caller's tenant. step may be empty: then it fits the time. from and to are
// widened to whole steps. Series by minute go back 48 hours.
func (p *Plane) FindSeries(ctx context.Context, who *Principal, domainID string, from, to time.Time, step string) (*Series, error) {
	if err := who.Require(UsageRead); err != nil {
		return nil, err
	}
	if err := checkSpan(from, to, p.cfg.Retention.Usage); err != nil {
		return nil, err
	}
	by, ok := ParseStep(step)
	switch {
	case ok:
	case step != "":
		return nil, InvalidField("?step", "is none of minute, hour, day")
	case to.Sub(from) <= 6*time.Hour && from.After(p.now().Add(-minutesKept)):
		by = Minute
	case to.Sub(from) <= 14*24*time.Hour:
		by = Hour
	default:
		by = Day
	}
	from, to = by.floor(from), by.ceil(to)
	n := int(to.Sub(from) / by.Duration())
	if n > seriesPoints {
		return nil, InvalidField("?step", "would give more than %d values: take a longer step or a shorter time", seriesPoints)
	}
	var sums []UsageSum
	err := p.search(ctx, func(ctx context.Context) error {
		return p.store.View(ctx, func(tx Tx) error {
			if _, err := tx.FindDomainByID(who.TenantID, domainID); err != nil {
				return found("domain", err)
			}
			var err error
			sums, err = tx.FindUsage(&UsageQuery{
				TenantID: who.TenantID, DomainID: domainID, Step: by, From: from, To: to, ByStart: true, Detail: true, Limit: seriesPoints,
			})
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return newSeries(from, by, n, sums), nil
}

func newSeries(from time.Time, by Step, n int, sums []UsageSum) *Series {
	s := &Series{Start: from, Step: by.String(), Series: make(map[string][]*float64)}
	values := func(key string) []float64 {
		all := make([]float64, n)
		pointers := make([]*float64, n)
		for i := range all {
			pointers[i] = &all[i]
		}
		s.Series[key] = pointers
		return all
	}
	counts := map[string]func(*UsageSum) int64{
		seriesConnections:  func(u *UsageSum) int64 { return u.Connections },
		seriesBytesIn:      func(u *UsageSum) int64 { return u.BytesIn },
		seriesBytesOut:     func(u *UsageSum) int64 { return u.BytesOut },
		seriesHandshakes:   func(u *UsageSum) int64 { return u.Handshakes },
		seriesPostQuantum:  func(u *UsageSum) int64 { return u.PostQuantum },
		seriesHelloRetries: func(u *UsageSum) int64 { return u.HelloRetries },
		seriesUpstream:     upstreamFailures,
	}
	quantiles := map[string]float64{seriesP50: 0.50, seriesP95: 0.95, seriesP99: 0.99}
	for key, of := range counts {
		all := values(key)
		for i := range sums {
			all[sums[i].Start.Sub(from)/by.Duration()] = float64(of(&sums[i]))
		}
	}
	for key := range quantiles {
		s.Series[key] = make([]*float64, n)
	}
	s.Series[seriesShare] = make([]*float64, n)
	for i := range sums {
		u := &sums[i]
		at := u.Start.Sub(from) / by.Duration()
		if u.Handshakes > 0 {
			s.Series[seriesShare][at] = new(share(u.PostQuantum, u.Handshakes))
		}
		for key, q := range quantiles {
			if v := edgereport.Quantile(u.Buckets, q); !math.IsNaN(v) {
				s.Series[key][at] = &v
			}
		}
	}
	return s
}

// upstreamFailures counts the end reasons that begin so, but for one: an upstream that resets a connection in the middle is no
// failure to reach it.
func upstreamFailures(u *UsageSum) (n int64) {
	for reason, count := range u.EndReasons {
		if strings.HasPrefix(reason, "upstream_") && reason != "upstream_reset" {
			n += count
		}
	}
	return n
}

// share returns part of whole, 0 of nothing.
func share(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}
