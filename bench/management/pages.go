//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// Who looks at pages, beside members of the large tenant and of typical ones.
const platformOperator = "operator" // who is a member of a typical tenant too

// pageUsers are all of them, in the order in which they are measured.
var pageUsers = []string{largeTenant, typicalTenant, platformOperator}

// pageKind is a page, or one with certain parameters, that is measured by itself.
type pageKind struct {
	name, what string
	users      string // who looks at it; empty: everybody
	at         func(s *site, b *browser, i int) (path, want string)
}

// still is a page with one address. want is what must be in it.
func still(path, want string) func(*site, *browser, int) (string, string) {
	return func(*site, *browser, int) (string, string) { return path, want }
}

// ofDomain is a page of a domain, another one each time.
func ofDomain(part string) func(*site, *browser, int) (string, string) {
	return func(s *site, b *browser, i int) (string, string) {
		number := b.domain(i)
		return "/domains/" + s.w.ids[number] + part, "<h1>" + s.w.names[number]
	}
}

// ofTop is a page of the domain that has most connections.
func ofTop(part string) func(*site, *browser, int) (string, string) {
	return func(s *site, _ *browser, _ int) (string, string) {
		return "/domains/" + s.w.ids[topDomain] + part, "<h1>" + s.w.names[topDomain]
	}
}

// What pages have that show rows of connections, or a plot.
const (
	aRecord = `data-label="Group"`
	aPlot   = `role="img"`
)

// tenants are who looks at most pages: operators only look at what is their own, and at what is in the navigation.
const tenants = largeTenant + " " + typicalTenant

var pageKinds = []pageKind{
	{"overview", "overview", "", still("/", aPlot)},
	{"domains", "domains", "", func(_ *site, b *browser, _ int) (string, string) { return "/domains", b.suffix }},
	{"domains_next", "domains: the next page", tenants, func(_ *site, b *browser, _ int) (string, string) { return b.next, b.suffix }},
	{"domains_q", "domains: a part of one name", tenants, func(s *site, b *browser, i int) (string, string) {
		number := b.domain(i)
		return fmt.Sprintf("/domains?q=%07d", number), s.w.names[number]
	}},
	{"domains_status", "domains: those that are suspended", tenants, still("/domains?status=suspended", "<h1>Domains")},
	{"domain", "a domain: overview", "", ofDomain("")},
	{"domain_connections", "a domain: connections", tenants, ofDomain("/connections")},
	{"domain_certificate", "a domain: certificate", tenants, ofDomain("/certificate")},
	{"domain_upstreams", "a domain: upstreams", tenants, ofDomain("/upstreams")},
	{"domain_policy", "a domain: policy", tenants, ofDomain("/policy")},
	{"domain_activity", "a domain: activity", tenants, ofDomain("/activity")},
	{"top", "the domain with most connections: overview", largeTenant, ofTop("")},
	{"top_connections", "the domain with most connections: connections", largeTenant, ofTop("/connections")},
	{"connections", "connections: of the last day", "", still("/connections", aRecord)},
	{"connections_domain", "connections: of one domain, all days", tenants, func(s *site, b *browser, i int) (string, string) {
		return "/connections?domain=" + s.w.names[b.domain(i)] + "&" + s.days(), "<h1>Connections"
	}},
	{"connections_client", "connections: of a client's /24, one day", tenants, func(_ *site, _ *browser, i int) (string, string) {
		return fmt.Sprintf("/connections?client_ip=198.18.%d.0/24", i%256), "<h1>Connections"
	}},
	{"connections_classical", "connections: classical ones, all days", tenants, func(s *site, _ *browser, _ int) (string, string) {
		return "/connections?post_quantum=false&" + s.days(), aRecord
	}},
	{"connections_hour", "connections: of an hour some days ago", tenants, func(s *site, _ *browser, _ int) (string, string) {
		middle := s.since.AddDate(0, 0, -s.opts.Size.Days/2)
		return "/connections?" + span(middle.Add(-time.Hour), middle), "<h1>Connections"
	}},
	{"connection", "one connection", tenants, func(_ *site, b *browser, _ int) (string, string) { return b.record, aPlot }},
	{"tail", "connections as they end", tenants, still("/connections/tail", "<h1>Connections")},
	{"report", "post-quantum report, 30 days", "", still("/reports/post-quantum", aPlot)},
	{"report_domain", "the same, of one domain, simulated", tenants, func(s *site, b *browser, i int) (string, string) {
		name := s.w.names[b.domain(i)]
		return "/reports/post-quantum?days=7&domain=" + name, name + "</b> would have refused"
	}},
	{"simulator", "the same, of all domains, simulated", tenants, still("/reports/post-quantum?days=7", "would have refused since")},
	{"certificates", "certificates with the calendar", "", func(_ *site, b *browser, _ int) (string, string) { return "/certificates", b.suffix }},
	{"keys", "API keys", "", still("/keys", "bench")},
	{"members", "members", "", still("/members", "@example.com")},
	{"audit", "audit log", "", still("/audit", "domain.")},
	{"audit_none", "audit log: what never happened", "", still("/audit?action=domain.nothing", "<h1>Audit log")},
	{"settings", "settings", "", still("/settings", "@example.com")},
	{"wizard", "add a domain: the first step", tenants, still("/domains/new", "<h1>Add a domain")},
	{"edges", "edges", platformOperator, still("/edges", "edge-000")},
	{"edge_tokens", "edge tokens", platformOperator, still("/edges/tokens", "<h1>Edge tokens")},
	{"tenants", "tenants", platformOperator, still("/tenants", "Tenant 1")},
	{"tenant", "a tenant", platformOperator, func(s *site, _ *browser, i int) (string, string) {
		number := i * 37 % len(s.w.accounts)
		return "/tenants/" + s.w.accounts[number].id, fmt.Sprintf("<h1>Tenant %d<", number)
	}},
}

// pagesOf are the pages that somebody looks at.
func pagesOf(user string) (kinds []pageKind) {
	for _, k := range pageKinds {
		if k.users == "" || slices.Contains(strings.Fields(k.users), user) {
			kinds = append(kinds, k)
		}
	}
	return kinds
}

// pageNames are the names of pages with what they are.
func pageNames(kinds []pageKind) (names [][2]string) {
	for _, k := range kinds {
		names = append(names, [2]string{k.name, k.what})
	}
	return names
}

func span(from, to time.Time) string {
	return "from=" + from.UTC().Format(time.RFC3339) + "&to=" + to.UTC().Format(time.RFC3339)
}

// days are the parameters of all that was there before.
func (s *site) days() string { return span(s.since.AddDate(0, 0, -s.opts.Size.Days), s.since) }

// measurePages has people look at the dashboard, while all edges report that they are up.
func (s *site) measurePages(ctx context.Context) error {
	edges := s.edges[:s.opts.Size.Edges]
	for _, e := range edges {
		if _, _, _, _, err := e.report(ctx, s.plane, new(edgereport.Builder), s.revision.Load()); err != nil {
			return err
		}
	}
	alive, stop := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer stop()
	reporting.Go(func() {
		const round = 30 * time.Second
		every := time.NewTicker(round / time.Duration(len(edges)))
		defer every.Stop()
		for i := 0; ; i++ {
			select {
			case <-every.C:
				_, _, _, _, _ = edges[i%len(edges)].report(alive, s.plane, new(edgereport.Builder), s.revision.Load()) // the next one will do
			case <-alive.Done():
				return
			}
		}
	})
	for _, user := range pageUsers {
		if err := s.measurePagesOf(ctx, user); err != nil {
			return fmt.Errorf("%s: %w", user, err)
		}
	}
	return nil
}

// seen is what is known of a page after it was loaded several times.
type seen struct {
	sent, size int // bytes of the largest
}

func (s *site) measurePagesOf(ctx context.Context, user string) error {
	var browsers []*browser
	for _, v := range s.w.visitors[user] {
		b, err := s.signIn(ctx, v)
		if err != nil {
			return fmt.Errorf("signing in: %w", err)
		}
		browsers = append(browsers, b)
	}
	kinds := pagesOf(user)
	assets, err := s.lookAround(ctx, browsers, kinds)
	if err != nil {
		return err
	}
	values := map[string]float64{"static_kib": kib(assets.size), "static_sent_kib": kib(assets.sent)}
	var mu sync.Mutex
	found := make(map[string]seen)
	load := func(k pageKind, i int) error {
		b := browsers[i%len(browsers)]
		path, want := k.at(s, b, i/len(browsers))
		p, err := b.open(ctx, path, want)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		largest := found[k.name]
		found[k.name] = seen{max(largest.sent, p.sent), max(largest.size, len(p.text))}
		return nil
	}
	// Each of them alone, the second time, when what it takes to do so at all has been done.
	for _, k := range kinds {
		for i := range 2 {
			begun := time.Now()
			if err := load(k, i*len(browsers)); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			values[k.name+"_alone_ms"] = lab.Milliseconds(time.Since(begun))
		}
	}
	samples := openFor(ctx, s.opts.Size.PageRate, seconds(s.opts.Size.PageSecs), func(i int) error {
		return load(kinds[i%len(kinds)], i/len(kinds))
	})
	times, faults := byKind(samples, len(kinds), func(k int) string { return kinds[k].name })
	for name, of := range times {
		for _, p := range []int{50, 95, 99} {
			values[fmt.Sprintf("%s_p%d_ms", name, p)] = lab.PercentileOf(of, p)
		}
		values["worst_p95_ms"] = max(values["worst_p95_ms"], values[name+"_p95_ms"])
	}
	for name, p := range found {
		values[name+"_kib"] = kib(p.size + assets.size)
		values["worst_kib"] = max(values["worst_kib"], values[name+"_kib"])
		values["worst_sent_kib"] = max(values["worst_sent_kib"], kib(p.sent+assets.sent))
	}
	values["failed"] = float64(len(faults))
	return s.record(scenarioPages, "user="+user, values, faults)
}

func kib(bytes int) float64 { return float64(bytes) / 1024 }

// lookAround finds what the pages that are measured need to know of others, and returns the sizes of styles and scripts. It
// fails where the navigation has a page that is not measured.
func (s *site) lookAround(ctx context.Context, browsers []*browser, kinds []pageKind) (assets seen, err error) {
	for _, b := range browsers {
		b.suffix = s.w.names[b.account.domains[0]]
		_, b.suffix, _ = strings.Cut(b.suffix, ".")
		for _, one := range []struct {
			path string
			is   func(a *html.Node) bool
			to   *string
		}{
			{"/domains", func(a *html.Node) bool { return attr(a, "rel") == "next" }, &b.next},
			{"/connections?" + s.days(), func(a *html.Node) bool { return strings.Contains(attr(a, "href"), "at=") }, &b.record},
		} {
			p, err := b.open(ctx, one.path, "<h1>")
			if err != nil {
				return assets, err
			}
			doc, err := html.Parse(bytes.NewReader(p.text))
			if err != nil {
				return assets, err
			}
			for a := range doc.Descendants() {
				if a.Data == "a" && *one.to == "" && one.is(a) {
					*one.to = attr(a, "href")
				}
			}
			if *one.to == "" {
				return assets, fmt.Errorf("%s has not the link that is looked for", one.path)
			}
		}
	}
	b := browsers[0]
	p, err := b.open(ctx, "/", "<h1>")
	if err != nil {
		return assets, err
	}
	doc, err := html.Parse(bytes.NewReader(p.text))
	if err != nil {
		return assets, err
	}
	known := make(map[string]bool)
	for _, k := range kinds {
		path, _ := k.at(s, b, 0)
		path, _, _ = strings.Cut(path, "?")
		known[path] = true
	}
	for n := range doc.Descendants() {
		address := ""
		switch {
		case n.Data == "link" && attr(n, "rel") == "stylesheet":
			address = attr(n, "href")
		case n.Data == "script":
			address = attr(n, "src")
		case n.Data == "a" && inNavigation(n):
			if path, _, _ := strings.Cut(attr(n, "href"), "?"); !known[path] {
				return assets, fmt.Errorf("%s is in the navigation and not measured", path)
			}
		}
		if address == "" {
			continue
		}
		file, err := b.open(ctx, address, "")
		if err != nil {
			return assets, err
		}
		assets.sent, assets.size = assets.sent+file.sent, assets.size+len(file.text)
	}
	if assets.size == 0 {
		return assets, errors.New("a page has no styles and no scripts")
	}
	return assets, nil
}

func attr(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// inNavigation reports whether a link is in the menu.
func inNavigation(n *html.Node) bool {
	for above := range n.Ancestors() {
		if above.Data == "nav" && attr(above, "aria-label") == "Main" {
			return true
		}
	}
	return false
}

// browser is what somebody who is signed in looks at pages with: it keeps cookies, and follows no redirects.
type browser struct {
	origin  string
	client  *http.Client
	account *account

	// What lookAround has found.
	suffix       string // of the names of the tenant's domains
	next, record string // paths: the second page of domains, a connection
}

// domain returns the number of one of the tenant's domains, another one each time.
func (b *browser) domain(i int) int { return b.account.domains[i*17%len(b.account.domains)] }

// signIn signs somebody in as a browser does: it loads the page, fills in its form and sends all its fields.
func (s *site) signIn(ctx context.Context, v visitor) (*browser, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	b := &browser{origin: "http://" + s.plane.Addr, account: &s.w.accounts[v.account], client: &http.Client{
		Transport: s.plane.client.Transport, Jar: jar, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	const path = "/login"
	p, err := b.open(ctx, path, "<h1>")
	if err != nil {
		return nil, err
	}
	fields, err := formOf(p.text, path)
	if err != nil {
		return nil, err
	}
	fields.Set("email", v.email)
	fields.Set("password", s.w.password)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, b.origin+path, strings.NewReader(fields.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Origin", b.origin)
	request.Header.Set("Sec-Fetch-Site", "same-origin")
	res, _, err := b.do(request)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSeeOther {
		return nil, fmt.Errorf("the answer to the form is %s", res.Status)
	}
	_, err = b.open(ctx, res.Header.Get("Location"), "<h1>")
	return b, err
}

// formOf returns the fields of the form that posts to a path, as they are in the page.
func formOf(page []byte, action string) (url.Values, error) {
	doc, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		return nil, err
	}
	for form := range doc.Descendants() {
		if form.Data != "form" || attr(form, "method") != "post" || attr(form, "action") != action {
			continue
		}
		fields := make(url.Values)
		for n := range form.Descendants() {
			if name := attr(n, "name"); n.Data == "input" && name != "" {
				fields.Add(name, attr(n, "value"))
			}
		}
		return fields, nil
	}
	return nil, fmt.Errorf("the page has no form that posts to %s", action)
}

// loaded is a page or a file.
type loaded struct {
	sent int // bytes as they came
	text []byte
}

// open loads a page, which must have want in it.
func (b *browser) open(ctx context.Context, path, want string) (p loaded, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.origin+path, nil)
	if err != nil {
		return p, err
	}
	res, p, err := b.do(request)
	switch path, _, _ := strings.Cut(path, "?"); {
	case err != nil:
		return p, err
	case res.StatusCode != http.StatusOK:
		return p, fmt.Errorf("%s: %s, %s", path, res.Status, res.Header.Get("Location"))
	case !bytes.Contains(p.text, []byte(want)):
		return p, fmt.Errorf("%s has no %q", path, want)
	}
	return p, nil
}

// do sends a request as browsers do, and reads the answer.
func (b *browser) do(request *http.Request) (res *http.Response, p loaded, err error) {
	request.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	request.Header.Set("Accept-Encoding", "gzip")
	if res, err = b.client.Do(request); err != nil {
		return nil, p, err
	}
	defer res.Body.Close()
	if p.text, err = io.ReadAll(res.Body); err != nil {
		return nil, p, err
	}
	p.sent = len(p.text)
	if res.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(bytes.NewReader(p.text))
		if err != nil {
			return nil, p, err
		}
		if p.text, err = io.ReadAll(unpacked); err != nil {
			return nil, p, err
		}
	}
	return res, p, nil
}

// slowest names the page that took longest, of a row of figures; empty: there is none.
func slowest(values map[string]float64) (name string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		page, ok := strings.CutSuffix(key, "_p95_ms")
		if ok && page != "worst" && (name == "" || values[key] > values[name+"_p95_ms"]) {
			name = page
		}
	}
	return name
}
