package pqproxy

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

func init() {
	reporting = reportTimes{
		every: 30 * time.Millisecond, soon: time.Millisecond, gap: 3 * time.Millisecond, settle: 5 * time.Millisecond,
		retry: 2 * time.Millisecond, longest: 10 * time.Millisecond, last: patience,
	}
}

// mood is what the receiving end does with a report.
type mood int

const (
	takes      mood = iota
	takesAndDo      // takes it, and closes the connection without an answer
	isDown          // 503
	refuses         // with a problem that names a fault
	blames          // 400, from something on the way
	resends         // takes it and asks for all states
	stalls          // takes nothing and does not answer
)

// receiver is the receiving end of reports, as package edgereport has it, beside the feed of a plane.
type receiver struct {
	t *testing.T
	*plane

	mu    sync.Mutex
	moods func(n int) mood // of the n-th request
	asked int
	token string

	last       map[string]uint64 // by name and start
	start      string            // that states are of
	counters   map[string]edgereport.Counter
	minutes    map[string]int64 // connections, by domain and minute
	records    map[string]edgereport.Connection
	rejected   map[string]edgereport.Rejected
	certs      map[string]edgereport.CertificateState
	upstreams  map[string]edgereport.UpstreamState
	reports    []*edgereport.Report // that were taken
	duplicates int
	refused    int
	dropped    int64
}

func newReceiver(t *testing.T) *receiver {
	p := &receiver{
		t: t, moods: func(int) mood { return takes }, last: make(map[string]uint64), counters: make(map[string]edgereport.Counter),
		minutes: make(map[string]int64), records: make(map[string]edgereport.Connection),
	}
	p.forget()
	return p
}

func (p *receiver) forget() {
	p.rejected, p.certs, p.upstreams = make(map[string]edgereport.Rejected), make(map[string]edgereport.CertificateState), make(map[string]edgereport.UpstreamState)
}

// feel sets what it does from now on.
func (p *receiver) feel(m mood) { p.feels(func(int) mood { return m }) }

func (p *receiver) feels(moods func(n int) mood) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moods = moods
}

// post is the handler.
func (p *receiver) post(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Encoding") != "gzip" || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Authorization") != "Bearer "+p.token {
		p.t.Errorf("%s with %v", r.Method, r.Header)
	}
	zip, err := gzip.NewReader(r.Body)
	if err != nil {
		p.t.Errorf("gzip: %v", err)
		return
	}
	text, err := io.ReadAll(zip)
	if err != nil {
		p.t.Errorf("gzip: %v", err)
		return
	}
	if strings.Contains(string(text), p.token) || strings.Contains(string(text), "PRIVATE KEY") {
		p.t.Error("the body has a secret")
	}
	report, err := edgereport.Parse(strings.NewReader(string(text)))
	if err != nil {
		p.t.Errorf("the report: %v", err)
		return
	}
	p.mu.Lock()
	p.asked++
	m := p.moods(p.asked)
	p.mu.Unlock()
	switch m {
	case isDown:
		http.Error(w, "", http.StatusServiceUnavailable)
		return
	case refuses:
		p.mu.Lock()
		p.refused++
		p.mu.Unlock()
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"code":"invalid"}`)
		return
	case blames:
		http.Error(w, "what is this?", http.StatusBadRequest)
		return
	case stalls:
		<-r.Context().Done()
		return
	}
	answer := p.take(report, m == resends)
	if m == takesAndDo {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// take does with a report what the package's documentation says.
func (p *receiver) take(r *edgereport.Report, resend bool) edgereport.Answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	start := r.Edge.StartedAt.Format(time.RFC3339Nano)
	id := r.Edge.Name + " " + start
	last := p.last[id]
	if r.Sequence <= last {
		p.duplicates++
		return edgereport.Answer{Duplicate: true}
	}
	resend = resend || r.Sequence != last+1
	p.last[id] = r.Sequence
	p.reports = append(p.reports, r)
	if id != p.start {
		p.start = id
		p.forget()
	}
	for _, e := range r.Rejected {
		if p.rejected[e.Name] = e; e.Detail == "" {
			delete(p.rejected, e.Name)
		}
	}
	for _, e := range r.Certificates {
		if p.certs[e.Name] = e; e.State == edgereport.CertificateGone {
			delete(p.certs, e.Name)
		}
	}
	for _, e := range r.Upstreams {
		key := e.Domain + " " + e.Dial
		if p.upstreams[key] = e; e.Healthy {
			delete(p.upstreams, key)
		}
	}
	for _, c := range r.Counters {
		p.counters[c.Domain] = addCounter(p.counters[c.Domain], c)
		p.minutes[c.Domain+" "+c.Minute.Format(time.RFC3339)] += c.Connections
	}
	for _, c := range r.Connections {
		if _, again := p.records[c.ID]; again {
			p.t.Errorf("record %s came twice", c.ID)
		}
		p.records[c.ID] = c
	}
	p.dropped += r.Dropped
	if resend {
		p.forget()
	}
	return edgereport.Answer{Revision: r.Revision, Resend: resend}
}

// until waits until the condition holds, which is asked with the lock held.
func (p *receiver) until(what string, cond func() bool) {
	p.t.Helper()
	pqtest.Wait(p.t, what, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return cond()
	})
}

// counted waits until so many connections of a domain have been counted, and returns the sums. That there are no more of
// them shows in the next reports.
func (p *receiver) counted(name string, n int) edgereport.Counter {
	p.t.Helper()
	p.until(fmt.Sprintf("%d connections of %s", n, name), func() bool { return p.counters[name].Connections >= int64(n) })
	p.settle()
	p.mu.Lock()
	defer p.mu.Unlock()
	if got := p.counters[name].Connections; got != int64(n) {
		p.t.Errorf("%s has %d connections, want %d", name, got, n)
	}
	return p.counters[name]
}

// settle waits for two reports that were begun from now on.
func (p *receiver) settle() {
	p.t.Helper()
	p.mu.Lock()
	n := len(p.reports)
	p.mu.Unlock()
	p.until("two more reports", func() bool { return len(p.reports) >= n+2 })
}

// newest returns the report that was taken last.
func (p *receiver) newest() *edgereport.Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.reports) == 0 {
		return new(edgereport.Report)
	}
	return p.reports[len(p.reports)-1]
}

// reportingEdge is a managed edge that reports to a receiver.
type reportingEdge struct {
	*managed
	*receiver
	settings string // of the management block
}

func startReporting(t *testing.T, settings ...string) *reportingEdge {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	const token = "pqe_geheim"
	t.Setenv("PQPROXY_TEST_TOKEN", token)
	e := &reportingEdge{receiver: newReceiver(t), settings: strings.Join(settings, "\n")}
	e.managed = &managed{plane: startPlane(t), up: pqtest.StartUpstream(t, pqtest.UpstreamConfig{})}
	e.receiver.plane, e.receiver.token = e.managed.plane, token
	e.serve(`{"revision":1,"domains":[]}`)
	e.edge = startEdge(t, e.option())
	e.failedOrUnchanged() // the poll that it begins with takes nothing that the test serves later
	return e
}

func (e *reportingEdge) option() string {
	return fmt.Sprintf("management %s/v1/edge/domains {\n interval 1h\n allow_empty\n token {env.PQPROXY_TEST_TOKEN}\n%s\n}\nlimits {\n grace_period 50ms\n}\n%s",
		e.managed.plane.URL, e.settings, loopbackAllowed)
}

// serve has the feed give a document.
func (e *reportingEdge) serve(document string) {
	e.managed.plane.answers(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/edge/reports":
			e.post(w, r)
		case "/v1/edge/domains":
			_, _ = io.WriteString(w, document)
		default:
			e.receiver.t.Errorf("asked for %s", r.URL)
		}
	})
}

// apply has a document applied.
func (e *reportingEdge) apply(document string) {
	e.managed.t.Helper()
	e.serve(document)
	e.want(syncApplied, "")
}

// visits makes so many connections, each with the same few bytes.
func (e *reportingEdge) visits(name string, n int) {
	e.managed.t.Helper()
	for range n {
		if err := visit(e.addr, e.client(name)); err != nil {
			e.managed.t.Fatal(err)
		}
	}
}

// certificate waits for the state of a domain's certificate.
func (p *receiver) certificate(name, state string) edgereport.CertificateState {
	p.t.Helper()
	p.until("the certificate of "+name+" to be "+state, func() bool { return p.certs[name].State == state })
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.certs[name]
}

func names[V any](m map[string]V) []string {
	var all []string
	for name := range m {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
