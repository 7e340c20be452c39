//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// offered is how much more than the wanted rate the edges send, so that the wanted one can be exceeded.
const offered = 1.05

// reporters returns how many edges report: each about once a second, as one does that has applied a change or has that many
// records.
func (b *bench) reporters(database string) int {
	return max(b.opts.Size.ReportRate[database]/b.opts.Size.ReportBatch, 1)
}

// sender is an edge that reports connections.
type sender struct {
	edge     *edge
	times    []float64 // ms, of reports
	end      time.Time // when the last was taken
	records  int64     // taken while it counted
	counters int64
	reports  int64
	twice    int64 // reports that were sent again, and not taken again
	again    int64 // tries that were told to come later
	late     time.Duration
	faults   []error
	tallies  map[int]tally // of all that was taken
}

// resendEach is how often a report is sent again, byte for byte, after it was taken.
const resendEach = 10

// run sends a report of n records every so often from start until end, one at a time; where it is late it does not wait.
func (d *sender) run(ctx context.Context, s *site, seed uint64, n int, every time.Duration, start, end time.Time) {
	t := newTraffic(s.w, seed)
	d.tallies = make(map[int]tally)
	revision := s.revision.Load()
	for k := 0; ctx.Err() == nil; k++ {
		due := start.Add(time.Duration(k) * every)
		if !due.Before(end) || !time.Now().Before(end) {
			d.late = max(end.Sub(due), 0)
			return
		}
		time.Sleep(time.Until(due))
		counted := make(counts)
		b := t.batch(n, due.Add(-every), every, func(c *edgereport.Connection, number int) { counted.add(c, number, time.Minute) })
		for _, counter := range counted {
			if !b.AddCounter(*counter) {
				panic("a report has no room for its counters")
			}
		}
		answer, body, took, again, err := d.edge.report(ctx, s.plane, &b.Builder, revision)
		d.again += int64(again)
		switch {
		case err != nil:
			if ctx.Err() == nil {
				d.faults = append(d.faults, err)
			}
			return // what became of it is not known: nothing could be compared any more
		case answer.Duplicate:
			d.faults = append(d.faults, fmt.Errorf("a report of %s was taken for one that came before", d.edge.name))
			return
		}
		d.end = time.Now()
		d.times = append(d.times, lab.Milliseconds(took))
		d.reports++
		d.counters += int64(len(counted))
		if d.end.Before(end) {
			d.records += int64(n)
		}
		for tenant, one := range b.tallies {
			sum := d.tallies[tenant]
			sum.add(one)
			d.tallies[tenant] = sum
		}
		revision = answer.Revision
		if k%resendEach == 1 {
			answer, _, err := s.plane.postReport(ctx, body)
			if err == nil && !answer.Duplicate {
				err = fmt.Errorf("a report of %s was taken twice", d.edge.name)
			}
			if err != nil && ctx.Err() == nil {
				d.faults = append(d.faults, err)
			}
			d.twice++
		}
	}
}

// measureReports has edges report at a rate while people change domains, and then compares what the API says with what was
// sent.
func (s *site) measureReports(ctx context.Context) error {
	size := s.opts.Size
	rate := size.ReportRate[s.db.name]
	senders := make([]*sender, s.reporters(s.db.name))
	took := time.Duration(size.ReportSecs * float64(time.Second))
	every := time.Duration(float64(len(senders)*size.ReportBatch) / (float64(rate) * offered) * float64(time.Second))
	there, err := s.db.count(ctx, recordsTable)
	if err != nil {
		return err
	}
	sizeBefore, err := s.db.size(ctx)
	if err != nil {
		return err
	}
	if err := s.plane.forgetPeak(); err != nil {
		return err
	}
	before, err := s.usageNow()
	if err != nil {
		return err
	}
	start := time.Now()
	end := start.Add(took)
	var all sync.WaitGroup
	for i := range senders {
		senders[i] = &sender{edge: s.edges[i]}
		all.Go(func() {
			first := start.Add(every * time.Duration(i) / time.Duration(len(senders)))
			senders[i].run(ctx, s, uint64(1000+i), size.ReportBatch, every, first, end)
		})
	}
	samples := openFor(ctx, size.WriteRate, took, func(i int) error {
		_, err := s.change(ctx, i*41)
		return err
	})
	all.Wait()
	values := map[string]float64{"edges": float64(len(senders)), "minutes": took.Minutes(), "rows_before": float64(there)}
	if err := before.cores(s, values); err != nil {
		return err
	}
	if values["rss_peak_mib"], err = s.plane.peak(); err != nil {
		return err
	}
	writes, faults := timesOf(samples)
	addTimes(values, "write", writes)
	values["writes_failed"] = float64(len(faults))
	sent := make(map[int]tally)
	var records, reports, counters, twice, again float64
	var times []float64
	for _, d := range senders {
		faults = append(faults, d.faults...)
		values["late_s"] = max(values["late_s"], d.late.Seconds())
		records, reports, counters = records+float64(d.records), reports+float64(d.reports), counters+float64(d.counters)
		twice, again = twice+float64(d.twice), again+float64(d.again)
		times = append(times, d.times...)
		for tenant, one := range d.tallies {
			sum := sent[tenant]
			sum.add(one)
			sent[tenant] = sum
		}
	}
	if reports == 0 {
		return errors.Join(append(faults, errors.New("no report was taken"))...)
	}
	values["records_per_s"] = records / took.Seconds()
	values["cpu_ms"] = (values["plane_cores"] + values["server_cores"]) * took.Seconds() / records * 1e6
	values["reports_per_s"], values["counters_per_report"] = reports/took.Seconds(), counters/reports
	values["sent_twice"], values["tried_again"] = twice, again
	addTimes(values, "report", times)
	if err := s.compare(ctx, sent, there, start, values); err != nil {
		return err
	}
	sizeAfter, err := s.db.size(ctx)
	if err != nil {
		return err
	}
	var total float64
	for _, one := range sent {
		total += float64(one.connections)
	}
	values["database_gib"], values["bytes_per_record"] = float64(sizeAfter)/(1<<30), float64(sizeAfter-sizeBefore)/total
	values["failed"] = float64(len(faults))
	return s.record(scenarioReports, "", values, faults)
}

// compare puts down whether all that was sent is there, once: the sums of every tenant as the API says them, at once, while
// some are not added up yet; the number of all records; and every single record of some tenants.
func (s *site) compare(ctx context.Context, sent map[int]tally, there int64, start time.Time, values map[string]float64) error {
	waiting, err := s.db.count(ctx, inboxTable)
	if err != nil {
		return err
	}
	values["not_added_up"] = float64(waiting)
	begun := time.Now()
	for tenant := range s.w.accounts {
		right, err := s.sumsRight(ctx, tenant, sent[tenant])
		if err != nil {
			return err
		}
		if !right {
			values["sums_wrong"]++
		}
	}
	values["sums_wrong"] += 0
	values["compare_s"] = time.Since(begun).Seconds()

	var total int64
	for _, one := range sent {
		total += one.connections
	}
	rows, err := s.db.count(ctx, recordsTable)
	if err != nil {
		return err
	}
	values["records_off"] = float64(max(rows-there-total, there+total-rows))
	values["rows_after"] = float64(rows)
	for i := range s.opts.Size.CheckOf {
		tenant := 1 + i*7%(len(s.w.accounts)-1)
		found, err := s.recordsOf(ctx, tenant, start)
		if err != nil {
			return err
		}
		want := sent[tenant]
		if found.connections != want.connections || found.ids != want.ids || found.bytesIn != want.bytesIn || found.bytesOut != want.bytesOut {
			values["records_wrong"]++
		}
		values["records_compared"] += float64(found.connections)
	}
	values["records_wrong"] += 0
	// At last: how long the sums take to catch up.
	begun = time.Now()
	return lab.Await("the sums to be added up", 10*time.Minute, 250*time.Millisecond, func() (bool, error) {
		n, err := s.db.count(ctx, inboxTable)
		values["caught_up_s"] = time.Since(begun).Seconds()
		return n == 0, err
	})
}

// sumsRight reports whether usage and post-quantum report of a tenant are what was sent.
func (s *site) sumsRight(ctx context.Context, tenant int, want tally) (bool, error) {
	key := s.w.accounts[tenant].key
	span := "from=" + url.QueryEscape(s.since.Format(time.RFC3339)) + "&to=" + url.QueryEscape(time.Now().UTC().Add(time.Hour).Format(time.RFC3339))
	var used struct {
		Data []struct {
			Connections int64 `json:"connections"`
			BytesIn     int64 `json:"bytes_in"`
			BytesOut    int64 `json:"bytes_out"`
		} `json:"data"`
	}
	if err := s.plane.ask(ctx, http.MethodGet, "/v1/usage?step=total&"+span, key, nil, &used); err != nil {
		return false, err
	}
	var got tally
	for _, one := range used.Data {
		got.add(tally{connections: one.Connections, bytesIn: one.BytesIn, bytesOut: one.BytesOut})
	}
	var report struct {
		Connections  int64 `json:"connections"`
		PostQuantum  int64 `json:"post_quantum"`
		HelloRetries int64 `json:"hello_retries"`
	}
	if err := s.plane.ask(ctx, http.MethodGet, "/v1/reports/post-quantum?"+span, key, nil, &report); err != nil {
		return false, err
	}
	got.postQuantum, got.helloRetries, got.ids = report.PostQuantum, report.HelloRetries, want.ids
	return got == want && report.Connections == want.connections, nil
}

// recordsOf reads all records of a tenant since then, and adds them up.
func (s *site) recordsOf(ctx context.Context, tenant int, start time.Time) (found tally, err error) {
	// A report tells of the second before.
	span := "from=" + url.QueryEscape(start.UTC().Add(-time.Minute).Format(time.RFC3339)) + "&to=" + url.QueryEscape(time.Now().UTC().Add(time.Hour).Format(time.RFC3339))
	for after := ""; ; {
		text, err := s.plane.askText(ctx, http.MethodGet, "/v1/connections?limit=1000&"+span+after, s.w.accounts[tenant].key, "application/x-ndjson", nil)
		if err != nil {
			return found, err
		}
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		for _, line := range lines[:len(lines)-1] {
			var c struct {
				ID       string `json:"id"`
				BytesIn  int64  `json:"bytes_in"`
				BytesOut int64  `json:"bytes_out"`
			}
			if err := json.Unmarshal([]byte(line), &c); err != nil {
				return found, err
			}
			found.add(tally{connections: 1, bytesIn: c.BytesIn, bytesOut: c.BytesOut, ids: hashID(c.ID)})
		}
		next := lines[len(lines)-1] // askText put it there
		if next == "" {
			return found, nil
		}
		after = "&cursor=" + url.QueryEscape(next)
	}
}
