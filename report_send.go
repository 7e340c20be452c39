package pqproxy

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/feed"
)

// reportResult says how an attempt to report went. It is a metric's label.
type reportResult string

const (
	reportTaken     reportResult = "taken"
	reportDuplicate reportResult = "duplicate" // it had been taken before, and the answer was lost
	reportRefused   reportResult = "refused"   // the management plane says that there is a fault in it
	reportFailed    reportResult = "failed"    // it is tried again
)

// reportBook is what is known of the reports that were sent.
type reportBook struct {
	started  time.Time
	sequence uint64        // of the last one
	sealed   *sealedReport // nil: all have been taken
	outgoing []outgoingCell
	states   toldStates
	toldTo   string // the settings that the states were told under

	regular      time.Time // when all domains are looked at next
	sealedAt     time.Time
	saidDraining bool
	saidLast     bool // a report was begun when the process was ending
}

// sealedReport is a report that is sent until the management plane has answered for it: whether it has taken it is not
// known before, so nothing in it may change.
type sealedReport struct {
	sequence uint64
	body     []byte // gzip
	cells    []outgoingCell
	records  int64 // that it has
	dropped  int64 // that it says were left out
}

// reportBuilder writes a report that stays well below what is allowed, as proxies on the way may allow less.
type reportBuilder struct {
	edgereport.Builder
}

const fullReport = 4 << 20 // bytes of JSON; some 500 KB on the wire

func (b *reportBuilder) full() bool { return b.Size() >= fullReport }

// seal writes the next report of what there is. final: there will be no more of them than it takes.
func (s *sender) seal(final bool) {
	r, now := s.reporter, time.Now()
	book := &r.book
	head := edgereport.Report{
		Edge:     edgereport.Edge{Name: s.settings.edge, Region: s.settings.region, Version: cutText(ourVersion(), 64), StartedAt: book.started},
		Sequence: book.sequence + 1, SentAt: now.UTC().Truncate(time.Microsecond),
		Draining: r.draining.Load(), LiveConnections: int64(r.owner.live.count()),
	}
	book.sequence, book.sealedAt = head.Sequence, now
	book.saidDraining, book.saidLast = head.Draining, final
	b := new(reportBuilder)
	if !head.Draining { // what checks the domains ends too, and would say that all is well
		s.look(now)
		head.Revision = book.states.add(b)
	} else {
		book.states.forget()
		book.regular = now.Add(reporting.every)
		r.news.Store(0)
		head.Revision = book.states.revision
	}
	sealed := &sealedReport{sequence: head.Sequence, cells: book.addCounters(&r.counters, b)}
	sealed.records, sealed.dropped = r.addRecords(b)
	head.Dropped = sealed.dropped
	var body bytes.Buffer
	zip, _ := gzip.NewWriterLevel(&body, gzip.BestSpeed) // which is a level
	err := errors.Join(b.WriteTo(zip, &head), zip.Close())
	if err != nil { // the memory does not fail, and what is encoded has no faults
		r.logger().Error("writing a report", zap.Error(err))
	}
	sealed.body = body.Bytes()
	book.sealed = sealed
}

// tellAll has all states told again, soon.
func (b *reportBook) tellAll() {
	b.states.forget()
	b.regular = b.sealedAt.Add(reporting.gap)
}

// look finds out which states are to be told, unless that has been found out and not been told yet.
func (s *sender) look(now time.Time) {
	r := s.reporter
	states := &r.book.states
	if states.telling {
		return
	}
	regular := !states.known || !now.Before(r.book.regular)
	if regular {
		r.book.regular = now.Add(reporting.every - rand.N(reporting.every/10+1))
	}
	if r.news.Swap(0) == 0 && !regular {
		return
	}
	// The revision first: see applying.
	revision := r.owner.remote.revisionNow()
	touched, all := r.takeTouched()
	states.begin(revision, regular || all, append(touched, states.settled...))
}

// addCounters moves cells into a report.
func (b *reportBook) addCounters(from *counters, report *reportBuilder) (cells []outgoingCell) {
	if len(b.outgoing) == 0 {
		b.outgoing = from.drain()
	}
	for len(b.outgoing) > 0 && !report.full() {
		last := len(b.outgoing) - 1
		if !report.AddCounter(b.outgoing[last].wire()) {
			break
		}
		cells = append(cells, b.outgoing[last])
		b.outgoing[last] = outgoingCell{}
		b.outgoing = b.outgoing[:last]
	}
	if len(b.outgoing) == 0 {
		b.outgoing = nil
	}
	return cells
}

// addRecords moves records into a report. It returns how many, and how many were left out since the report before.
func (r *reporter) addRecords(report *reportBuilder) (moved, dropped int64) {
	for _, c := range r.records.take(edgereport.MaxConnections) {
		if !report.AddConnection(c.wire()) {
			metrics.reportDropped.Inc()
			r.records.dropped.Add(1)
		}
	}
	return int64(report.Connections()), r.records.dropped.Swap(0)
}

// send makes one attempt to have the sealed report taken. It reports whether that succeeded.
func (s *sender) send() bool {
	r := s.reporter
	book := &r.book
	sealed := book.sealed
	text, err := s.client.Post(s.ctx, sealed.body, http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}})
	if err != nil && s.ctx.Err() != nil {
		return false
	}
	var answer edgereport.Answer
	if err == nil {
		answer, err = edgereport.ParseAnswer(text)
	}
	var failed *feed.Error
	result := reportTaken
	switch {
	case errors.As(err, &failed) && notTaken(failed, text):
		result = reportRefused
	case err != nil:
		result = reportFailed
	case answer.Duplicate:
		result = reportDuplicate
	}
	metrics.reports.WithLabelValues(string(result)).Inc()
	s.tell(result, err)
	switch result {
	case reportFailed:
		return false
	case reportRefused:
		// None of it was taken: the counters are kept. What is at fault is likelier in what comes from outside, records first;
		// and the states are told anew, as they are then.
		r.counters.putBack(sealed.cells, time.Now())
		metrics.reportDropped.Add(float64(sealed.records))
		r.records.dropped.Add(sealed.records + sealed.dropped)
		book.tellAll()
	default:
		if answer.Resend {
			book.tellAll()
		}
	}
	book.sealed = nil
	return result != reportRefused
}

// notTaken reports whether an answer is the management plane's word that it has not taken a report and never will. What only
// looks like it may come from something on the way, and the report may have been taken all the same.
func notTaken(failed *feed.Error, body []byte) bool {
	switch failed.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
	default:
		return false
	}
	var problem struct {
		Code string `json:"code"`
	}
	if json.Unmarshal(body, &problem) != nil {
		return false
	}
	return problem.Code == "malformed" || problem.Code == "too_large" || problem.Code == "invalid"
}

// tell logs how an attempt went, once for each cause.
func (s *sender) tell(result reportResult, err error) {
	var failed *feed.Error
	if errors.As(err, &failed) {
		err = failed.Err // which does not say that something was fetched
	}
	logger, before := s.reporter.logger(), s.fault
	s.fault = ""
	if err != nil {
		s.fault = fmt.Sprint(result, err)
	}
	switch {
	case err == nil && before != "":
		logger.Info("the management plane takes reports again")
	case err != nil && s.fault == before:
	case result == reportRefused:
		logger.Error("the management plane refuses a report: its records are left out, counters are kept", zap.String("url", s.settings.shownReports()), zap.Error(err))
	case err != nil:
		logger.Error("reporting to the management plane: what is counted is kept", zap.String("url", s.settings.shownReports()), zap.Error(err))
	}
}
