package pqproxy

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// statusAnswer is how the edge is.
type statusAnswer struct {
	Version     string       `json:"version"`
	Caddy       string       `json:"caddy"` // its version
	Started     time.Time    `json:"started"`
	Uptime      float64      `json:"uptime"`   // seconds
	Draining    bool         `json:"draining"` // no config is in force, and what is open is being ended
	Connections int          `json:"connections"`
	Domains     domainCounts `json:"domains"`
	Conflicts   conflictList `json:"conflicts"`
	Rejected    rejectedList `json:"rejected"`

	Revision   *version          `json:"revision"`   // of the management plane's set; null: there is none
	Management *managementAnswer `json:"management"` // null: none is configured
	LastSync   *lastSync         `json:"last_sync"`  // null: as management

	UnhealthyUpstreams unhealthyList `json:"unhealthy_upstreams"`
}

// managementAnswer is the management URL that is polled.
type managementAnswer struct {
	URL string `json:"url"`
}

// lastSync is how the last poll of it went. Of the report there is nothing until one has ended.
type lastSync struct {
	*syncReport
	Staleness *float64 `json:"staleness"` // seconds since one last succeeded; null: none ever did
}

// domainCounts are names, by the source that serves them.
type domainCounts struct {
	Total  int `json:"total"`
	Static int `json:"static"`
	Admin  int `json:"admin"`
	Remote int `json:"remote"`
}

// conflictList has the names that several sources give, in order.
type conflictList struct {
	Count int        `json:"count"`
	List  []conflict `json:"list"` // the first of them
}

type conflict struct {
	Name    string          `json:"name"`
	Source  domain.Source   `json:"source"` // who serves it
	Shadows []domain.Source `json:"shadows"`
}

// rejectedList has the records of the management plane that are not in force as it last said them.
type rejectedList struct {
	Count int       `json:"count"` // names, and records without one
	List  []refusal `json:"list"`  // the last of them
}

// unhealthyList has upstreams that are tried last.
type unhealthyList struct {
	Count int                 `json:"count"`
	List  []unhealthyUpstream `json:"list"` // the first of them
}

// statusListed is how many entries the lists of the status have.
const statusListed = 100

// processStarted is when this process did.
var processStarted = time.Now()

// ourVersion is the version of this module in the running program, `(devel)` where that was built from a checkout.
func ourVersion() string {
	const module = "github.com/pqproxy/caddy-pqproxy"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Path == module && m.Version != "" {
			return m.Version
		}
	}
	return "(devel)"
}

// status answers with how the edge is.
func (q *adminRequest) status() error {
	s, t := q.state, q.state.table.Load()
	caddyVersion, _ := caddy.Version()
	a := statusAnswer{
		Version: ourVersion(), Caddy: caddyVersion,
		Started: processStarted.UTC(), Uptime: time.Since(processStarted).Seconds(),
		Draining: inForce.Load() != s || caddy.Exiting(), Connections: s.live.count(),
		Domains:   domainCounts{t.size, t.live[rankStatic], t.live[rankAdmin], t.live[rankRemote]},
		Conflicts: s.conflicts(statusListed),
		Rejected:  s.rejected(),
	}
	if sync := s.syncStatus(); sync != nil {
		a.Revision, a.Management = &sync.Revision, &managementAnswer{sync.URL}
		a.LastSync = &lastSync{sync.Last, sync.Staleness}
	}
	unhealthy, total := s.health.unhealthy(statusListed)
	a.UnhealthyUpstreams = unhealthyList{total, append([]unhealthyUpstream{}, unhealthy...)}
	return q.answer(http.StatusOK, &a)
}

// conflicts returns the first names that several sources give.
func (s *state) conflicts(most int) conflictList {
	first := lowest[string]{n: most, compare: strings.Compare}
	s.told.Lock()
	found := conflictList{Count: len(s.shadowed), List: []conflict{}}
	for name := range s.shadowed {
		first.add(name)
	}
	s.told.Unlock()
	t := s.table.Load()
	for _, name := range first.sorted() {
		e := t.named(name)
		if e.none() || e.below().none() { // it is being changed
			continue
		}
		one := conflict{Name: name, Source: e.source.source()}
		for below := e.below(); !below.none(); below = below.below() {
			one.Shadows = append(one.Shadows, below.source.source())
		}
		found.List = append(found.List, one)
	}
	return found
}

func (s *state) rejected() rejectedList {
	s.told.Lock()
	defer s.told.Unlock()
	return rejectedList{Count: len(s.rejects.names) + s.rejects.unnamed, List: append([]refusal{}, slices.Clone(s.rejects.list)...)}
}

// syncTimeout bounds how long a poll is waited for. It goes on then.
const syncTimeout = 10 * time.Minute

// sync polls the management plane now and answers with how that went.
func (q *adminRequest) sync() error {
	var accept *uint64
	if _, ok := q.query["accept_revision"]; ok {
		n, err := q.number("accept_revision", 0, 1<<63-1, 0)
		if err != nil {
			return err
		}
		accept = &n
	}
	ctx, cancel := context.WithTimeout(q.r.Context(), syncTimeout)
	defer cancel()
	report, err := q.state.syncNow(ctx, accept)
	switch {
	case errors.Is(err, errNoManagement):
		return apiError(http.StatusConflict, "%w", err)
	case err != nil && ctx.Err() != nil:
		return apiError(http.StatusGatewayTimeout, "the poll is not waited for any longer, and goes on; the status will tell how it went")
	case err != nil:
		return apiError(http.StatusServiceUnavailable, "%w", err)
	case report.Error != "":
		return apiError(http.StatusBadGateway, "the poll failed (%s), and what was served before goes on being served: %s", report.Result, report.Error)
	}
	return q.answer(http.StatusOK, report)
}
