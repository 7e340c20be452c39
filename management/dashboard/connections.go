package dashboard

import (
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func connectionRoutes() []route {
	const scope = management.ConnectionsRead
	return []route{
		{method: "GET", path: "/connections", scope: scope, handle: showConnections},
		{method: "GET", path: "/connections/tail", scope: scope, handle: showTail},
		{method: "GET", path: "/connections/tail/live", scope: scope, handle: followTail, endless: true},
		{method: "GET", path: "/connections/export", scope: scope, handle: exportConnections, timeout: exportTimeout},
		{method: "GET", path: "/connections/{id}", scope: scope, handle: showConnection},
	}
}

const (
	recordSpan = 24 * time.Hour // that is searched where no time is asked for
	recordRows = 15             // a page: each has a picture
)

// recordsPage is the data of the explorer and of the tail.
type recordsPage struct {
	Tail    bool
	Rows    []recordRow
	Left    int64 // of the tail: records that came too fast to be shown
	Next    string
	From    time.Time
	To      time.Time
	Fault   *summary
	Asked   bool // there is a filter
	Live    string
	Here    string // which of the two tabs
	Search  string
	Follow  string
	CSV     string
	NDJSON  string
	API     string // path and query of the same question
	Groups  []option
	Reasons []option
}

// recordRow is one record in a list.
type recordRow struct {
	*management.Connection
	URL   string
	When  string
	Took  string // until the first byte
	Group badge
	End   badge
	Water waterfall
}

func showConnections(c *ctx) error {
	page := c.recordsPage()
	q, err := c.recordFilter()
	if err == nil {
		q.From, q.To, err = c.span(recordSpan)
		page.From, page.To = q.From, q.To
	}
	if err == nil {
		var found []*management.Connection
		found, page.Next, err = c.plane.FindConnections(c.ctx, c.who, q, c.page(recordRows))
		page.Rows = c.recordRows(found)
	}
	if page.Fault = c.filterFault(err, recordFields); err != nil && page.Fault == nil {
		return err
	}
	page.Here = page.Search
	asked := append(c.recordParams(), "from", page.From.Format(time.RFC3339Nano), "to", page.To.Format(time.RFC3339Nano))
	page.CSV = c.url("/connections/export", append(asked, "format", "csv")...)
	page.NDJSON = c.url("/connections/export", append(asked, "format", "ndjson")...)
	page.API = apiPath("/v1/connections", asked...)
	// What the inputs for times take.
	for name, t := range map[string]time.Time{"from": page.From, "to": page.To} {
		if page.Fault == nil && c.query(name) != "" {
			c.asked.Set(name, t.Format("2006-01-02T15:04:05"))
			page.Asked = true
		}
	}
	return c.render("connections", "Connections", page)
}

// recordFields are the labels of the filter.
var recordFields = map[string]string{
	"domain": "Domain", "from": "From", "to": "To", "group": "Key exchange group", "post_quantum": "Key exchange", "end_reason": "End", "client_ip": "Client",
}

// recordsPage is what search and tail have in common.
func (c *ctx) recordsPage() recordsPage {
	params := c.recordParams()
	page := recordsPage{Search: c.url("/connections", params...), Follow: c.url("/connections/tail", params...)}
	for i := 1; i < len(params); i += 2 {
		page.Asked = page.Asked || params[i] != ""
	}
	page.Groups = withAsked(c.query("group"), "Any group", "X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024", "X25519", "CurveP256", "CurveP384", "CurveP521")
	page.Reasons = withAsked(c.query("end_reason"), "Any end", endReasons...)
	return page
}

// endReasons are how connections end (DESIGN.md section 8). Edges may know more.
var endReasons = []string{
	"done", "idle_timeout", "drained", "ended_by_admin", "domain_removed", "suspended", "over_limit", "domain_over_limit", "no_hello", "hello_timeout", "not_tls",
	"bad_hello", "hello_too_large", "no_sni", "unknown_domain", "tls_version", "no_common_group", "alpn_mismatch", "early_data", "no_certificate",
	"handshake_timeout", "handshake_failed", "client_gone", "acme_challenge", "upstream_refused", "upstream_timeout", "upstream_unreachable", "upstream_denied",
	"upstream_loop", "upstream_certificate", "upstream_tls", "upstream_group", "upstream_alpn", "upstream_closed_early", "client_reset", "upstream_reset", "internal",
}

// withAsked returns choices, of which the empty one is first, and what was asked for among them.
func withAsked(asked, none string, values ...string) []option {
	all := []option{{Text: none}}
	if asked != "" && !slices.Contains(values, asked) {
		values = append(slices.Clone(values), asked)
	}
	for _, v := range values {
		all = append(all, option{Value: v, Text: v})
	}
	return all
}

// recordParams are the filter as it was asked for, times aside: names and values.
func (c *ctx) recordParams() (pairs []string) {
	for _, name := range []string{"domain", "group", "post_quantum", "end_reason", "client_ip"} {
		pairs = append(pairs, name, c.query(name))
	}
	return pairs
}

// recordFilter reads the filter, times aside.
func (c *ctx) recordFilter() (q management.ConnectionQuery, err error) {
	q = management.ConnectionQuery{Domain: c.query("domain"), Group: c.query("group"), EndReason: c.query("end_reason"), ClientIP: c.query("client_ip")}
	switch text := c.query("post_quantum"); text {
	case "":
	case "true", "false":
		q.PostQuantum = new(text == "true")
	default:
		return q, management.InvalidField("?post_quantum", "must be true or false")
	}
	return q, nil
}

func (c *ctx) recordRows(found []*management.Connection) []recordRow {
	rows := make([]recordRow, len(found))
	for i, r := range found {
		row := recordRow{Connection: r, When: r.Time.UTC().Format("2006-01-02 15:04:05"), URL: c.recordURL(r), Group: groupBadge(r), End: endBadge(r.EndReason), Water: newWaterfall(r)}
		row.Took, _ = formatSeconds(row.Water.total) // a float64 is a duration
		rows[i] = row
	}
	return rows
}

// recordURL leads to one record. Its time is what it is found by.
func (c *ctx) recordURL(r *management.Connection) string {
	return c.url("/connections/"+url.PathEscape(r.ID), "at", r.Time.UTC().Format(time.RFC3339Nano))
}

// groupBadge says which group the keys were exchanged with.
func groupBadge(r *management.Connection) badge {
	kind, text := "off", r.Group
	switch {
	case r.PostQuantum:
		kind = "ok"
	case r.Refused:
		kind = "warn"
	}
	if text == "" {
		text = "none"
	}
	b, _ := newBadge(kind, text) // the kinds are known
	return b
}

// endBadge says how a connection ended.
func endBadge(reason string) badge {
	kind := "bad"
	switch reason {
	case "done":
		kind = "ok"
	case "idle_timeout", "drained", "ended_by_admin", "domain_removed", "suspended", "acme_challenge", "client_gone", "client_reset":
		kind = "off"
	case "over_limit", "domain_over_limit", "no_common_group", "tls_version", "alpn_mismatch":
		kind = "warn"
	}
	b, _ := newBadge(kind, words(reason)) // the kinds are known
	return b
}

// recordPage is the data of the page of one record.
type recordPage struct {
	*management.Connection
	Water  waterfall
	End    badge
	Groups []factGroup
	Domain string // links
	Client string
	Like   string
}

type factGroup struct {
	Title string
	Facts []fact
}

type fact struct{ Name, Value string }

// showConnection shows one record. Records have no index by ID, but one by time: the link says when it was.
func showConnection(c *ctx) error {
	missing := management.Errorf(management.NotFound, "There is no such record. Records are kept for a limited time.")
	at, err := time.Parse(time.RFC3339Nano, c.query("at"))
	if err != nil || at.Year() < 1970 || at.Year() >= 9999 {
		return missing
	}
	at = at.UTC().Truncate(time.Microsecond) // what the database keeps
	q := management.ConnectionQuery{From: at, To: at.Add(time.Microsecond)}
	found, _, err := c.plane.FindConnections(c.ctx, c.who, q, management.Page{Limit: 1000})
	if err != nil {
		return err
	}
	i := slices.IndexFunc(found, func(r *management.Connection) bool { return r.ID == c.param("id") })
	if i < 0 {
		return missing
	}
	r := found[i]
	around := []string{"from", at.Add(-time.Hour).Format("2006-01-02T15:04:05"), "to", at.Add(time.Hour).Format("2006-01-02T15:04:05")}
	page := recordPage{
		Connection: r, Water: newWaterfall(r), End: endBadge(r.EndReason), Groups: recordFacts(r),
		Domain: c.pageURL("/domains/" + r.DomainID), Client: c.url("/connections", append(around, "client_ip", r.ClientIP)...),
		Like: c.url("/connections", append(around, "domain", r.Domain, "end_reason", r.EndReason)...),
	}
	return c.render("connection", "Connection to "+r.Domain, page)
}

func recordFacts(r *management.Connection) []factGroup {
	yes := map[bool]string{true: "yes", false: "no"}
	seconds := func(f float64) string { text, _ := formatSeconds(f); return text } // a float64 is a duration
	port := ""
	if r.ClientPort != 0 {
		port = strconv.Itoa(int(r.ClientPort))
	}
	groups := []factGroup{
		{"The client's side", []fact{
			{"Client", r.ClientIP}, {"Port", port}, {"Server name", r.ServerName}, {"TLS", r.TLSVersion}, {"Cipher suite", r.CipherSuite}, {"Group", r.Group},
			{"Offered post-quantum", yes[r.OfferedPostQuantum]}, {"HelloRetryRequest", yes[r.HelloRetry]}, {"Resumed", yes[r.Resumed]}, {"ALPN", r.ALPN},
			{"Waited for the hello", seconds(r.HelloWait)}, {"Handshake", seconds(r.Handshake)},
		}},
		{"The upstream's side", []fact{
			{"Upstream", r.Upstream}, {"Group", r.UpstreamGroup}, {"Post-quantum", yes[r.UpstreamPostQuantum]}, {"Resumed", yes[r.UpstreamResumed]},
			{"PROXY protocol", r.ProxyProtocol}, {"Connect", seconds(r.UpstreamConnect)}, {"Handshake", seconds(r.UpstreamHandshake)}, {"First byte", seconds(r.FirstByte)},
		}},
		{"All of it", []fact{
			{"Lasted", seconds(r.Duration)}, {"From the client", formatBytes(r.BytesIn)}, {"To the client", formatBytes(r.BytesOut)}, {"Closed by", r.ClosedBy}, {"Error", r.Error},
			{"Edge", r.Edge}, {"Region", r.Region}, {"Configured by", r.Source}, {"ID", r.ID},
		}},
	}
	if r.Upstream == "" {
		groups[1].Facts = nil // it did not get that far
	}
	for i := range groups {
		groups[i].Facts = slices.DeleteFunc(groups[i].Facts, func(f fact) bool { return f.Value == "" })
	}
	return slices.DeleteFunc(groups, func(g factGroup) bool { return len(g.Facts) == 0 })
}

// pageURL returns a link to a page, empty where nothing is served there.
func (c *ctx) pageURL(path string) string {
	if !c.dash.serves(path) {
		return ""
	}
	return c.url(path)
}

// apiPath returns a path of the API with parameters; empty ones are left out.
func apiPath(path string, pairs ...string) string {
	values := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			values.Set(pairs[i], pairs[i+1])
		}
	}
	return path + query(values.Encode())
}

// filterFault has a page shown whose filter is at fault, or asks for too much at once: the fields say what to change. It returns nil for
// other errors, and for none.
func (c *ctx) filterFault(err error, labels map[string]string) *summary {
	switch management.CodeOf(err) {
	case management.Invalid, management.Unavailable:
	default:
		return nil
	}
	e, status := c.expected(err)
	c.refusal, c.status = e, status
	s := &summary{Title: problems[e.Code].title, Detail: e.Detail}
	for _, fault := range e.Faults {
		item := summaryItem{Label: fault.Pointer, Detail: fault.Detail}
		if name := fault.Pointer[min(1, len(fault.Pointer)):]; labels[name] != "" {
			item.Label, item.Target = labels[name], "f-filter-"+name
		}
		s.Items = append(s.Items, item)
	}
	return s
}
