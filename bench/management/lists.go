//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// kind is a kind of request that is measured by itself.
type kind struct {
	name string
	path func(i int) (path, key string) // of the i-th request
}

// measureMix sends requests of all kinds in turn, at a rate that holds for all of them together, and puts down the times of
// each.
func (s *site) measureMix(ctx context.Context, kinds []kind, rate int, d time.Duration) (times map[string][]float64, faults []error) {
	samples := openFor(ctx, rate, d, func(i int) error {
		path, key := kinds[i%len(kinds)].path(i / len(kinds))
		return s.plane.ask(ctx, http.MethodGet, path, key, nil, nil)
	})
	return byKind(samples, len(kinds), func(k int) string { return kinds[k].name })
}

// byKind splits samples of n kinds of requests, which took turns, into the times in ms of each kind and faults.
func byKind(samples []lab.Sample, n int, name func(k int) string) (times map[string][]float64, faults []error) {
	times = make(map[string][]float64)
	for i, sample := range samples { // in the order in which they were due
		name := name(i % n)
		if sample.Err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", name, sample.Err))
			continue
		}
		times[name] = append(times[name], lab.Milliseconds(sample.Took))
	}
	return times, faults
}

// tenants whose lists are asked for.
const (
	largeTenant   = "large"   // the first
	typicalTenant = "typical" // another one each time
)

// accountOf returns the account that the i-th request is for.
func (s *site) accountOf(which string, i int) *account {
	if which == largeTenant {
		return &s.w.accounts[0]
	}
	return &s.w.accounts[typicalAccount(i, s.opts.Size)]
}

// typicalAccount is the number of a typical tenant, another one for each i.
func typicalAccount(i int, s size) int { return 1 + i*7%(s.Tenants-1) }

// measureLists asks for pages of domains and searches them.
func (s *site) measureLists(ctx context.Context) error {
	for _, which := range []string{largeTenant, typicalTenant} {
		cursors, err := s.cursors(ctx, which)
		if err != nil {
			return err
		}
		get := func(query func(i int, a *account) string) func(int) (string, string) {
			return func(i int) (string, string) {
				a := s.accountOf(which, i)
				return "/v1/domains?" + query(i, a), a.key
			}
		}
		kinds := []kind{
			{"first", get(func(int, *account) string { return "limit=50" })},
			{"page", func(i int) (string, string) {
				c := cursors[i*7%len(cursors)]
				return "/v1/domains?limit=50" + c.after, c.key
			}},
			{"status", get(func(int, *account) string { return "status=suspended" })},
			{"q_few", get(func(i int, a *account) string { return fmt.Sprintf("q=%07d", a.domains[i*13%len(a.domains)]) })},
			{"q_many", get(func(int, *account) string { return "q=TENANT" })},
			{"q_none", get(func(int, *account) string { return "q=nowhere" })},
			{"name", get(func(i int, a *account) string { return "name=" + s.w.names[a.domains[i*17%len(a.domains)]] })},
		}
		times, faults := s.measureMix(ctx, kinds, s.opts.Size.ListRate, seconds(s.opts.Size.ListSecs)/2)
		values := map[string]float64{"failed": float64(len(faults))}
		for name, of := range times {
			addTimes(values, name, of)
		}
		if err := s.record(scenarioList, "tenant="+which, values, faults); err != nil {
			return err
		}
	}
	return nil
}

// cursor is the end of a query that asks for a later page of a tenant's list.
type cursor struct{ after, key string }

// cursors walks through lists to find where their pages begin.
func (s *site) cursors(ctx context.Context, which string) (found []cursor, err error) {
	for i := range 20 {
		a := s.accountOf(which, i)
		after := ""
		for page := 0; page == 0 || after != "" && page < 400; page++ {
			var list struct {
				Data []struct {
					ID string `json:"id"`
				} `json:"data"`
				Next *string `json:"next_cursor"`
			}
			if err := s.plane.ask(ctx, http.MethodGet, "/v1/domains?limit=50"+after, a.key, nil, &list); err != nil {
				return nil, err
			}
			if len(list.Data) == 0 {
				return nil, errors.New("a list has an empty page")
			}
			if after = ""; list.Next != nil {
				after = "&cursor=" + url.QueryEscape(*list.Next)
				found = append(found, cursor{after, a.key})
			}
		}
		if which == largeTenant {
			break
		}
	}
	if len(found) == 0 {
		a := s.accountOf(which, 0)
		found = append(found, cursor{"", a.key}) // all of them fit one page
	}
	return found, nil
}

// measureSingles reads domains and changes them, one at a time.
func (s *site) measureSingles(ctx context.Context) error {
	values := map[string]float64{}
	var all []error
	for _, one := range []struct {
		name string
		do   func(i int) error
	}{
		{"get", func(i int) error {
			number := i * 31 % len(s.w.names)
			return s.plane.ask(ctx, http.MethodGet, "/v1/domains/"+s.w.ids[number], s.w.accounts[s.w.owner[number]].key, nil, nil)
		}},
		{"patch", func(i int) error { _, err := s.change(ctx, i*31); return err }},
	} {
		times, faults := timesOf(openFor(ctx, s.opts.Size.SingleRate, seconds(s.opts.Size.SingleSecs), one.do))
		addTimes(values, one.name, times)
		all = append(all, faults...)
	}
	values["failed"] = float64(len(all))
	return s.record(scenarioSingle, "", values, all)
}

// measureQueries asks for what edges reported.
func (s *site) measureQueries(ctx context.Context) error {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	days := "from=" + at(s.since.AddDate(0, 0, -s.opts.Size.Days)) + "&to=" + at(s.since)
	day := "from=" + at(s.since.AddDate(0, 0, -1)) + "&to=" + at(s.since)
	middle := s.since.AddDate(0, 0, -s.opts.Size.Days/2)
	for _, which := range []string{largeTenant, typicalTenant} {
		get := func(path string, query func(i int, a *account) string) func(int) (string, string) {
			return func(i int) (string, string) {
				a := s.accountOf(which, i)
				return path + "?" + query(i, a), a.key
			}
		}
		same := func(query string) func(int, *account) string { return func(int, *account) string { return query } }
		domain := func(query string) func(int, *account) string {
			return func(i int, a *account) string { return query + "&domain=" + s.w.names[a.domains[i*17%len(a.domains)]] }
		}
		kinds := []kind{
			{"newest", get("/v1/connections", same(day))},
			{"middle", get("/v1/connections", same("from="+at(middle.Add(-time.Hour))+"&to="+at(middle)))},
			{"domain", get("/v1/connections", domain(days))},
			{"classical", get("/v1/connections", same(days+"&post_quantum=false"))},
			{"client_day", get("/v1/connections", func(i int, _ *account) string { return day + fmt.Sprintf("&client_ip=198.18.%d.0/24", i%256) })},
			{"usage_days", get("/v1/usage", same(days+"&step=total"))},
			{"usage_hours", get("/v1/usage", domain(day+"&step=hour"))},
			{"pq_days", get("/v1/reports/post-quantum", same(days))},
			{"require", get("/v1/reports/require", same("days=7"))},
		}
		times, faults := s.measureMix(ctx, kinds, s.opts.Size.QueryRate, seconds(s.opts.Size.QuerySecs)/2)
		values := map[string]float64{"failed": float64(len(faults)), "records": float64(s.opts.Size.Records)}
		for name, of := range times {
			addTimes(values, name, of)
		}
		if err := s.record(scenarioQuery, "tenant="+which, values, faults); err != nil {
			return err
		}
	}
	return nil
}

// queryKinds and listKinds are the names of the kinds with what they are, in order.
var (
	listKinds = [][2]string{
		{"first", "the first page of 50"}, {"page", "a later page of 50"}, {"status", "those that are suspended, `status=`"},
		{"q_few", "`q=` that one name has"}, {"q_many", "`q=` that all have"}, {"q_none", "`q=` that none has"}, {"name", "`name=`"},
	}
	queryKinds = [][2]string{
		{"newest", "connections: the newest 50 of a day"}, {"middle", "connections: of an hour a week ago"}, {"domain", "connections: of one domain, all days"},
		{"classical", "connections: `post_quantum=false`, all days"}, {"client_day", "connections: of a client's /24, one day"},
		{"usage_days", "usage by domain, all days"}, {"usage_hours", "usage of a domain by the hour, one day"},
		{"pq_days", "post-quantum report, all days"}, {"require", "require report, seven days"},
	}
)
