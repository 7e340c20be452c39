package pqproxy

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// domainOf parses a record as the feed has it.
func domainOf(text string) (*domain.Domain, error) { return domain.Parse([]byte(text), domain.Remote) }

// bookReport seals a report without a sender's network, and takes it as acknowledged.
func bookReport(t *testing.T, s *sender) *edgereport.Report {
	t.Helper()
	s.seal(false)
	sealed := s.reporter.book.sealed
	s.reporter.book.sealed = nil
	zip, err := gzip.NewReader(bytes.NewReader(sealed.body))
	if err != nil {
		t.Fatal(err)
	}
	report, err := edgereport.Parse(zip)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// TestReportPieces tells the states of more domains than one report has room for, refusals first, and the revision with the
// last of them. A change tells of what changed alone.
func TestReportPieces(t *testing.T) {
	const domains, refused = 2*edgereport.MaxStates + 1000, edgereport.MaxStates + 10
	st := newTestState(t)
	filled(t, st, domains)
	c := st.newChangeSet(rankRemote, false, nil)
	for i := range refused {
		c.refuse(fmt.Sprintf("bad%d.example.com", i), errors.New("it is bad"))
	}
	if _, err := st.apply(c, nil); err != nil {
		t.Fatal(err)
	}
	st.remote.version = version{revision: 20, hasRevision: true}
	st.reports.on.Store(true)
	s := &sender{reporter: &st.reports, settings: &Management{edge: "e"}}
	book := &st.reports.book
	certs, bad := make(map[string]bool), make(map[string]bool)
	for n := 1; ; n++ {
		r := bookReport(t, s)
		if r.Sequence != uint64(n) {
			t.Errorf("sequence %d, want %d", r.Sequence, n)
		}
		if len(r.Certificates) > 0 && len(bad)+len(r.Rejected) < refused {
			t.Error("certificates come before refusals")
		}
		for _, e := range r.Rejected {
			bad[e.Name] = e.Detail != ""
		}
		for _, e := range r.Certificates {
			certs[e.Name] = e.State == edgereport.CertificatePending
		}
		all := len(certs) == domains && len(bad) == refused
		if all != (r.Revision == 20) {
			t.Fatalf("revision %d with %d certificates and %d refusals", r.Revision, len(certs), len(bad))
		}
		if all {
			break
		}
		if due := s.due(time.Now()); due.After(time.Now()) {
			t.Fatalf("the rest is due at %v", due)
		}
	}
	if len(book.states.names) != domains || len(book.states.rejected) != refused {
		t.Errorf("it remembers %d and %d", len(book.states.names), len(book.states.rejected))
	}
	if r := bookReport(t, s); len(r.Certificates) > 0 || len(r.Rejected) > 0 || r.Revision != 20 {
		t.Errorf("again %d certificates, %d refusals", len(r.Certificates), len(r.Rejected))
	}

	book.regular = time.Now().Add(time.Hour)
	change := st.newChangeSet(rankRemote, false, nil)
	gone, changed := typical(5).Name, typical(domains)
	change.remove(gone)
	if err := change.put(changed); err != nil {
		t.Fatal(err)
	}
	if _, err := st.apply(change, nil); err != nil {
		t.Fatal(err)
	}
	st.reports.applying(change)
	st.remote.version.revision = 21
	if r := bookReport(t, s); r.Revision != 20 || len(r.Certificates) > 0 {
		t.Errorf("told of a change before its time: %d, %v", r.Revision, r.Certificates)
	}
	st.reports.applied()
	if due := s.due(time.Now()); due.Sub(book.sealedAt) > time.Second {
		t.Errorf("due %v after the report before", due.Sub(book.sealedAt))
	}
	r := bookReport(t, s)
	states := make(map[string]string)
	for _, e := range r.Certificates {
		states[e.Name] = e.State
	}
	if len(states) != 2 || states[gone] != "gone" || states[changed.Name] != "pending" || r.Revision != 21 {
		t.Errorf("told %v, revision %d", states, r.Revision)
	}
}

// TestReportDue says when the next report is to be.
func TestReportDue(t *testing.T) {
	before := reporting
	defer func() { reporting = before }()
	reporting = reportTimes{every: 30 * time.Second, soon: 50 * time.Millisecond, gap: 900 * time.Millisecond, settle: time.Second}
	now := time.Now()
	for _, c := range []struct {
		name string
		set  func(*reporter)
		want time.Duration // from now
	}{
		{"regular", func(*reporter) {}, 20 * time.Second},
		{"applied", func(r *reporter) { r.news.Store(now.UnixNano()) }, 50 * time.Millisecond},
		{"applied behind a report", func(r *reporter) { r.news.Store(now.UnixNano()); r.book.sealedAt = now }, 900 * time.Millisecond},
		{"records", func(r *reporter) { r.records.waiting.Store(500) }, 0},
		{"few records", func(r *reporter) { r.records.waiting.Store(499) }, 20 * time.Second},
		{"draining", func(r *reporter) { r.draining.Store(true) }, 0},
		{"draining is told", func(r *reporter) { r.draining.Store(true); r.book.saidDraining = true }, 20 * time.Second},
		{"cells left", func(r *reporter) { r.book.outgoing = make([]outgoingCell, 1) }, 0},
		{"states left", func(r *reporter) { r.book.states.telling = true }, 0},
		{"not acknowledged", func(r *reporter) { r.book.sealed = new(sealedReport) }, 0},
		{"a certificate on its way", func(r *reporter) { r.book.states.unsettled = []string{"a.example"} }, time.Second},
		{"resend", func(r *reporter) { r.book.tellAll() }, -10*time.Second + 900*time.Millisecond},
	} {
		r := new(reporter)
		r.book.regular, r.book.sealedAt = now.Add(20*time.Second), now.Add(-10*time.Second)
		c.set(r)
		s := &sender{reporter: r}
		if got := s.due(now).Sub(now).Round(time.Millisecond); got != c.want {
			t.Errorf("%s: due in %v, want %v", c.name, got, c.want)
		}
	}
}

// TestReportStarts gives every reporter of a process a start of its own, whatever the clock does.
func TestReportStarts(t *testing.T) {
	seen := make(map[time.Time]bool)
	for range 100 {
		r := new(reporter)
		r.open(nil)
		if at := r.book.started; seen[at] || !at.Equal(at.Truncate(time.Millisecond)) {
			t.Fatalf("start %v", at)
		}
		seen[r.book.started] = true
	}
}

// TestReportSettles tells soon that a certificate has come.
func TestReportSettles(t *testing.T) {
	st := newTestState(t)
	filled(t, st, 3)
	st.reports.on.Store(true)
	s := &sender{reporter: &st.reports, settings: &Management{edge: "e"}}
	states, name := &st.reports.book.states, typical(1).Name
	if r := bookReport(t, s); len(r.Certificates) != 3 || len(states.unsettled) != 3 {
		t.Fatalf("told %v; unsettled: %v", r.Certificates, states.unsettled)
	}
	st.reports.book.regular = time.Now().Add(time.Hour)
	now := time.Now().Add(time.Hour)
	if states.settles(now) {
		t.Fatal("it is valid")
	}
	st.certs.known.note(name, pqtest.NewCA(t).Issue(t, name).Leaf)
	if states.settles(now) {
		t.Error("it is looked at all the time")
	}
	if !states.settles(now.Add(time.Hour)) {
		t.Fatal("that it is valid is not seen")
	}
	st.reports.news.Store(1)
	if r := bookReport(t, s); len(r.Certificates) != 1 || r.Certificates[0].Name != name || r.Certificates[0].State != "valid" {
		t.Errorf("told %v", r.Certificates)
	}
	if states.settles(now.Add(2 * time.Hour)) {
		t.Error("it is told again and again")
	}
	if len(states.unsettled) != 2 {
		t.Errorf("unsettled: %v", states.unsettled)
	}
}

// BenchmarkReportStates looks at 100,000 domains for a report, of which none has changed, as every 30 s. Reading what is known of
// each certificate dominates. It gives way as it goes, so that the number is not how long handshakes wait.
//
//	go test -run xxx -bench ReportStates .
func BenchmarkReportStates(b *testing.B) {
	st := newTestState(b)
	filled(b, st, 100_000)
	states := &st.reports.book.states
	for states.begin(1, true, nil); states.telling; states.add(new(reportBuilder)) {
	}
	b.ReportAllocs()
	for b.Loop() {
		states.begin(1, true, nil)
		states.add(new(reportBuilder))
	}
}
