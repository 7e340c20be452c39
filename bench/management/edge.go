//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// edge is an edge as the management plane sees it: it polls and it reports.
type edge struct {
	name    string
	started time.Time

	mu       sync.Mutex // one report at a time; guards the rest
	sequence uint64     // of the last report
}

// newEdges returns a fleet.
func newEdges(n int) []*edge {
	edges := make([]*edge, n)
	for i := range edges {
		edges[i] = &edge{name: fmt.Sprintf("edge-%03d", i), started: time.Now().UTC().Truncate(time.Millisecond)}
	}
	return edges
}

// head is the next report without its lists. Call it with the lock held.
func (e *edge) head(revision uint64) *edgereport.Report {
	e.sequence++
	return &edgereport.Report{
		Edge:     edgereport.Edge{Name: e.name, Region: "gru", Version: "bench", StartedAt: e.started},
		Sequence: e.sequence, SentAt: time.Now().UTC().Truncate(time.Microsecond), Revision: revision, LiveConnections: 100,
	}
}

// sealed is a report as it goes over the wire: the same bytes each time that it is sent.
func sealed(b *edgereport.Builder, head *edgereport.Report) ([]byte, error) {
	var body bytes.Buffer
	zip, err := gzip.NewWriterLevel(&body, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	err = errors.Join(b.WriteTo(zip, head), zip.Close())
	return body.Bytes(), err
}

// report sends a report, again and again while the management plane is not available, and returns its answer and how
// long the last attempt took.
func (e *edge) report(ctx context.Context, p *plane, b *edgereport.Builder, revision uint64) (answer edgereport.Answer, body []byte, took time.Duration, again int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if body, err = sealed(b, e.head(revision)); err != nil {
		return answer, nil, 0, 0, err
	}
	for {
		begun := time.Now()
		var retry bool
		answer, retry, err = p.postReport(ctx, body)
		took = time.Since(begun)
		if err == nil || !retry || ctx.Err() != nil {
			return answer, body, took, again, err
		}
		again++
		time.Sleep(200 * time.Millisecond)
	}
}

// postReport sends a report once. retry: it may be taken another time.
func (p *plane) postReport(ctx context.Context, body []byte) (answer edgereport.Answer, retry bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.edgeAddr+"/v1/edge/reports", bytes.NewReader(body))
	if err != nil {
		return answer, false, err
	}
	request.Header = http.Header{
		"Authorization": {"Bearer " + p.token}, "Content-Type": {"application/json"}, "Content-Encoding": {"gzip"},
	}
	res, err := p.client.Do(request)
	if err != nil {
		return answer, true, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return answer, true, err
	}
	if res.StatusCode != http.StatusOK {
		retry := res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusTooManyRequests
		return answer, retry, fmt.Errorf("a report: %s: %s", res.Status, shortened(text))
	}
	answer, err = edgereport.ParseAnswer(text)
	return answer, false, err
}

// fed is one answer of the feed.
type fed struct {
	revision  uint64
	status    int
	header    time.Time // when its header was there
	wire      int64     // bytes, as they came
	unchanged bool      // 304
}

// poll asks the feed: for the full set with after 0, and holding the request for up to wait where that is not 0. The body is
// left compressed, as it came.
func (p *plane) poll(ctx context.Context, after uint64, wait time.Duration) (f fed, err error) {
	url := "http://" + p.edgeAddr + "/v1/edge/domains"
	if after > 0 {
		url += "?after=" + strconv.FormatUint(after, 10)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return f, err
	}
	request.Header = http.Header{"Authorization": {"Bearer " + p.token}, "Accept-Encoding": {"gzip"}}
	if after > 0 {
		request.Header.Set("If-None-Match", `"`+strconv.FormatUint(after, 10)+`"`)
	}
	if wait > 0 {
		request.Header.Set("Prefer", fmt.Sprintf("wait=%d", wait/time.Second))
	}
	res, err := p.client.Do(request)
	if err != nil {
		return f, err
	}
	defer res.Body.Close()
	f.header, f.status = time.Now(), res.StatusCode
	if f.wire, err = io.Copy(io.Discard, res.Body); err != nil {
		return f, err
	}
	switch res.StatusCode {
	case http.StatusNotModified:
		f.unchanged = true
	case http.StatusOK:
	default:
		return f, fmt.Errorf("the feed after %d: %s", after, res.Status)
	}
	f.revision, err = strconv.ParseUint(strings.Trim(res.Header.Get("ETag"), `"`), 10, 64)
	return f, err
}

// shortened is the beginning of an answer, for errors.
func shortened(text []byte) string {
	const most = 300
	return strings.TrimSpace(string(text[:min(len(text), most)]))
}
