package dashboard

import (
	"bytes"
	"html/template"
	"math"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// someComponents uses each component once, with hostile texts.
const someComponents = `{{define "main"}}
{{$x := .Data.X}}{{$f := .Form "all" "/x" "version" 3 "multipart" true}}
{{template "form" $f}}
{{template "field" ($f.Text "name" $x "value" $x "hint" $x "required" true "placeholder" $x "maxlength" 9 "unit" $x "code" true)}}
{{template "field" ($f.Area "text" $x "value" $x "rows" 3 "code" true)}}
{{template "field" ($f.Select "choice" $x "value" "b" "options" (options "a" $x "b" $x))}}
{{template "field" ($f.Radio "one" $x "value" "a" "options" (options "a" $x "b" $x))}}
{{template "field" ($f.Check "any" $x "options" (options "a" $x))}}
{{template "field" ($f.Check "flag" $x "checked" true "hint" $x)}}
{{template "field" ($f.Number "n" $x "value" 7 "min" 1 "max" 9)}}
{{template "field" ($f.Password "password" $x "value" "must not be shown")}}
{{template "field" ($f.Text "totp" $x "value" "must not be shown")}}
{{template "field" ($f.File "text_file" $x "accept" ".pem")}}
{{template "field" ($f.Hidden "hidden" $x)}}
{{template "end" $f}}
{{template "badge" (badge "ok" $x $x)}} {{template "badge" (status "pending_dns")}} {{template "badge" (axis "failed")}} {{template "badge" (pq true)}} {{template "badge" (pq false)}} {{template "badge" (edge "stale")}}
{{template "when" (.When .Data.Time)}} {{template "moment" (.When .Data.Time)}} {{template "when" (.When .Data.Never)}}
{{template "copy" (copy $x $x)}} {{template "copy" (copy .Data.Lines "two lines")}}
{{template "curl" (.Curl "POST" "/v1/things" (object "name" $x))}}
{{template "empty" (empty $x $x (.URL "/settings" "q" $x) $x)}} {{template "empty" (empty "T" "text")}}
{{template "pager" (.Pager $x)}}
<form class="filter" role="search" action="/x">{{template "filter" .}}{{template "field" (.Filter "search" "q" "Search")}}{{template "field" (.Filter "select" "s" "Status" "options" (options "" "All" "b" "B"))}}<button type="submit">Filter</button></form>
{{template "progress" (progress 5 3 $x)}}
{{template "steps" (steps 2 "One" $x "Three")}}
{{template "tabs" (tabs "/settings" "/logout" $x "/settings" "B")}}
{{template "live-state" .}}
{{template "plot" .Data.Plot}}
{{template "waterfall" .Data.Waterfall}}
{{template "calendar" .Data.Calendar}}
<p>{{count 1234567}} {{bytes 1536}} {{percent 0.123}} {{seconds 0.0041}} {{words "pending_dns"}}</p>
{{end}}`

func TestComponents(t *testing.T) {
	s := newSite(t)
	base := template.Must(template.New("").Funcs(functions).ParseFS(templateFiles, "templates/*.html"))
	s.pages["all"] = &pageTemplate{template.Must(base.Parse(someComponents))}
	s.routes = append(s.routes, route{method: "GET", path: "/x", handle: func(c *ctx) error {
		now := c.now()
		return c.render("all", "Components", map[string]any{
			"X": hostile, "Lines": "a\nb", "Time": now.Add(-90 * time.Minute), "Never": (*time.Time)(nil),
			"Plot":      &plot{Title: hostile, Times: hours(2), Series: []series{{Name: hostile, Values: []float64{1, 2}, Note: hostile}}},
			"Waterfall": newWaterfall(&management.Connection{ConnectionDetail: management.ConnectionDetail{HelloWait: 0.1, Handshake: 0.2}}),
			"Calendar":  newCalendar(now, 1, hostile, map[time.Time]int{now.Truncate(24 * time.Hour): 1}, func(time.Time) string { return "/settings?" + hostile }),
		})
	}}, route{method: "POST", path: "/x", handle: func(*ctx) error { return management.InvalidField("/name", "x") }})
	page := s.signedIn().get("/x?q=%22%3E%3Cscript%3E&s=b&cursor=c")
	if page.status != 200 {
		t.Fatal(s.log)
	}
	check(t, s, page)
	if strings.Contains(page.body, "must not be shown") {
		t.Error("a secret is filled in")
	}
	for _, n := range page.all(func(n *html.Node) bool { return n.Data == "button" && has(n, "data-copy") }) {
		if !strings.Contains(attr(n, "data-copy"), hostile) && attr(n, "data-copy") != "a\nb" && !strings.HasPrefix(attr(n, "data-copy"), "curl ") {
			t.Errorf("what is copied is not what is shown: %q", attr(n, "data-copy"))
		}
	}
	main := page.find(func(n *html.Node) bool { return n.Data == "main" })
	var out bytes.Buffer
	if err := html.Render(&out, main); err != nil {
		t.Fatal(err)
	}
	golden(t, "components.html", steady(strings.ReplaceAll(out.String(), s.made.Tenant.ID, "TENANT"))+"\n")
}

func TestFormats(t *testing.T) {
	for in, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "−1,234,567", math.MaxInt64: "9,223,372,036,854,775,807", math.MinInt64: "−9,223,372,036,854,775,808"} {
		if got, err := formatCount(in); got != want || err != nil {
			t.Errorf("count %d = %q, %v", in, got, err)
		}
	}
	for in, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1536: "1.50 KiB", 1 << 20: "1.00 MiB", 1<<20 - 1: "1.00 MiB", math.MaxInt64: "8.00 EiB", -2048: "-2.00 KiB"} {
		if got := formatBytes(in); got != want {
			t.Errorf("bytes %d = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[float64]string{0: "0 %", 1: "100 %", 0.5: "50.0 %", 0.00001: "< 0.1 %", 0.99999: "> 99.9 %", 0.9994: "> 99.9 %"} {
		if got := formatPercent(in); got != want {
			t.Errorf("percent %v = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[float64]string{0: "0 s", 0.0000042: "4.20 µs", 0.0041: "4.10 ms", 0.9996: "1.00 s", 12.44: "12.4 s", 200: "3 min 20 s", 3600: "1 h", 90000: "1 d 1 h", 59.97: "59 s"} {
		if got, err := formatSeconds(in); got != want || err != nil {
			t.Errorf("seconds %v = %q, want %q", in, got, want)
		}
	}
	now := time.Date(2026, 3, 14, 0, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{0: "just now", -time.Minute: "1 minute ago", -36 * time.Hour: "1 day ago", 48 * time.Hour: "in 2 days", 5 * time.Second: "in a few seconds", -800 * 24 * time.Hour: "2 years ago"} {
		if got := relative(now.Add(d), now); got != want {
			t.Errorf("relative %v = %q, want %q", d, got, want)
		}
	}
	if got := words("pending_dns"); got != "pending DNS" {
		t.Error(got)
	}
}

func TestCurl(t *testing.T) {
	got, err := curlOf("PATCH", "https://console.example.com/v1/domains/dom_x?a=b&c=d", map[string]string{"name": "it's $(rm -rf /) `x` \\ <b>"})
	want := `curl -X PATCH 'https://console.example.com/v1/domains/dom_x?a=b&c=d' \
  -H "Authorization: Bearer $PQPROXY_API_KEY" \
  -H 'Content-Type: application/json' \
  -d '{
  "name": "it'\''s $(rm -rf /) ` + "`x`" + ` \\ <b>"
}'`
	if err != nil || got.Line != want {
		t.Errorf("got %s, %v\nwant %s", got.Line, err, want)
	}
	if got, err := curlOf("GET", "https://x/v1/me", nil); err != nil || got.Line != "curl https://x/v1/me \\\n  -H \"Authorization: Bearer $PQPROXY_API_KEY\"" {
		t.Error(got.Line, err)
	}
}

// TestSpan reads what filters of time send.
func TestSpan(t *testing.T) {
	s := newSite(t)
	for raw, want := range map[string]string{
		"":                               "2026-03-13T15:09:26Z 2026-03-14T15:09:26Z",
		"?from=2026-01-01&to=2026-01-02": "2026-01-01T00:00:00Z 2026-01-03T00:00:00Z",
		"?to=2026-01-02T10:30":           "2026-01-01T10:30:00Z 2026-01-02T10:30:00Z",
		"?from=2026-01-01T02:00:00%2B02:00&to=2026-01-05T00:00:00Z": "2026-01-01T00:00:00Z 2026-01-05T00:00:00Z",
		"?from=x": "invalid", "?to=99999-01-01": "invalid", "?from=2027-01-01": "invalid", "?from=2026-01-02&to=2026-01-01T00:00": "invalid",
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/x"+raw, nil)
		c := &ctx{dash: s.Dashboard, r: r, asked: r.URL.Query()}
		from, to, err := c.span(24 * time.Hour)
		got := from.Format(time.RFC3339) + " " + to.Format(time.RFC3339)
		if err != nil {
			got = string(management.CodeOf(err))
		}
		if got != want {
			t.Errorf("%s: %s, want %s", raw, got, want)
		}
	}
}
