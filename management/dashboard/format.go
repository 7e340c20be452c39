package dashboard

import (
	"fmt"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// functions are what templates can call, beside the methods of their dot.
var functions = template.FuncMap{
	"count": formatCount, "bytes": formatBytes, "percent": formatPercent, "seconds": formatSeconds, "join": strings.Join,
	"badge": newBadge, "status": statusBadge, "axis": axisBadge, "pq": pqBadge, "edge": edgeBadge,
	"empty": newEmpty, "options": newOptions, "progress": newProgress, "copy": newCopy, "steps": newSteps, "tabs": newTabs, "add": add,
	"words": words, "object": newObject, "brief": brief,
}

func add(a, b int) int { return a + b }

// brief cuts a text that is longer than n bytes: rows of a list that strangers wrote texts for must not fill the page.
func brief(n int, text string) string {
	if len(text) <= n {
		return text
	}
	for !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}

// formatCount writes a whole number with commas: 1,234,567.
func formatCount(n any) (string, error) {
	var text string
	switch n := n.(type) {
	case int, int64, uint64, int32, uint32, uint16:
		text = fmt.Sprint(n)
	default:
		return "", fmt.Errorf("%T is not counted", n)
	}
	digits, sign := strings.TrimPrefix(text, "-"), ""
	if digits != text {
		sign = "−"
	}
	var out strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			out.WriteByte(',')
		}
		out.WriteRune(d)
	}
	return sign + out.String(), nil
}

// formatBytes writes a size with three digits: 1.46 KiB.
func formatBytes(n int64) string {
	if n > -1024 && n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	size, unit := float64(n), 0
	for math.Abs(size) >= 1023.5 && unit < 6 {
		size, unit = size/1024, unit+1
	}
	return threeDigits(size) + " " + [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}[unit]
}

// formatPercent writes a share from 0 to 1. Only all of it is 100 %, and only nothing 0 %: the claim is what people act on.
func formatPercent(share float64) string {
	switch {
	case math.IsNaN(share) || math.IsInf(share, 0):
		return "–"
	case share > 0 && share < 0.001:
		return "< 0.1 %"
	case share < 1 && share > 0.999:
		return "> 99.9 %"
	case share == 0 || share == 1:
		return strconv.Itoa(int(share*100)) + " %"
	}
	return strconv.FormatFloat(share*100, 'f', 1, 64) + " %"
}

// formatSeconds writes a duration in seconds, or a time.Duration, with three digits: 4.10 ms, 12.4 s, 3 min 20 s.
func formatSeconds(value any) (string, error) {
	var s float64
	switch value := value.(type) {
	case float64:
		s = value
	case time.Duration:
		s = value.Seconds()
	default:
		return "", fmt.Errorf("%T is no duration", value)
	}
	switch abs := math.Abs(s); {
	case math.IsNaN(s) || math.IsInf(s, 0):
		return "–", nil
	case abs == 0:
		return "0 s", nil
	case abs < 0.000_999_5:
		return threeDigits(s*1e6) + " µs", nil
	case abs < 0.999_5:
		return threeDigits(s*1e3) + " ms", nil
	case abs < 59.95:
		return threeDigits(s) + " s", nil
	}
	return formatLong(time.Duration(min(math.Abs(s), 1e9) * float64(time.Second))), nil
}

// threeDigits writes 1.23, 12.3, 123, 1234.
func threeDigits(f float64) string {
	switch abs := math.Abs(f); {
	case abs < 9.995:
		return strconv.FormatFloat(f, 'f', 2, 64)
	case abs < 99.95:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 0, 64)
}

// formatLong writes a duration of a minute or more in two units.
func formatLong(d time.Duration) string {
	units := []struct {
		name string
		of   time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	for i, u := range units {
		if d < u.of && i < len(units)-1 {
			continue
		}
		text := fmt.Sprintf("%d %s", d/u.of, u.name)
		if i+1 < len(units) {
			if rest := d % u.of / units[i+1].of; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	return ""
}

// moment is a time for the template "when"; the zero value is "never".
type moment struct {
	Machine  string // RFC 3339, UTC
	Exact    string // for people, UTC
	Relative string // 3 minutes ago, in 12 days
}

func momentOf(t, now time.Time) moment {
	if t.IsZero() {
		return moment{}
	}
	t = t.UTC()
	return moment{t.Format(time.RFC3339), t.Format("2006-01-02 15:04:05 UTC"), relative(t, now)}
}

// relative writes how far t is from now, in the largest unit that there is one of.
func relative(t, now time.Time) string {
	d := t.Sub(now)
	past := d <= 0
	if d = d.Abs(); d < 10*time.Second {
		if past {
			return "just now"
		}
		return "in a few seconds"
	}
	text := ""
	for _, u := range []struct {
		name string
		of   time.Duration
	}{{"year", 365 * 24 * time.Hour}, {"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		if n := int64(d / u.of); n > 0 {
			if text = fmt.Sprintf("%d %s", n, u.name); n > 1 {
				text += "s"
			}
			break
		}
	}
	if past {
		return text + " ago"
	}
	return "in " + text
}

// words makes a code readable: pending_dns becomes pending DNS.
func words(code any) string {
	text := strings.ReplaceAll(fmt.Sprint(code), "_", " ")
	for _, name := range []string{"dns", "tls", "sni", "alpn", "acme", "byoc", "txt", "http", "totp", "api"} {
		text = replaceWord(text, name, strings.ToUpper(name))
	}
	return text
}

func replaceWord(text, from, to string) string {
	all := strings.Fields(text)
	for i, w := range all {
		if w == from {
			all[i] = to
		}
	}
	return strings.Join(all, " ")
}

// badge is a word with a colour and a sign, so that colour alone says nothing.
type badge struct{ Class, Sign, Text, Title string }

// newBadge returns a badge: kind is ok, warn, bad, info or off. A title says more.
func newBadge(kind, text string, title ...string) (badge, error) {
	signs := map[string]string{"ok": "✓", "warn": "!", "bad": "✗", "info": "…", "off": "–"}
	sign, known := signs[kind]
	if !known {
		return badge{}, fmt.Errorf("there is no badge %q", kind)
	}
	return badge{"badge-" + kind, sign, text, strings.Join(title, " ")}, nil
}

// statusBadge shows a domain's status.
func statusBadge(s management.Status) badge {
	kind, title := "info", ""
	switch s {
	case management.Active:
		kind, title = "ok", "It is live."
	case management.PendingDNS, management.Verifying:
		kind, title = "warn", "It waits for a record in your DNS."
	case management.Issuing:
		title = "The edges are obtaining a certificate."
	case management.Deploying:
		title = "The edges are taking it over."
	case management.Degraded:
		kind, title = "bad", "It is live, and something of it fails."
	case management.Moved:
		kind, title = "bad", "The name points elsewhere now."
	case management.Suspended, management.Deleting:
		kind = "off"
	}
	b, _ := newBadge(kind, words(s), title) // the kinds are known
	return b
}

// axisBadge shows how one side of a domain is.
func axisBadge(s management.AxisState) badge {
	kind, ok := map[management.AxisState]string{
		management.AxisOK: "ok", management.AxisPending: "info", management.AxisFailed: "bad", management.AxisUnknown: "warn", management.AxisOff: "off",
	}[s]
	if !ok {
		kind = "off"
	}
	b, _ := newBadge(kind, string(s)) // the kinds are known
	return b
}

// pqBadge says whether a key exchange was post-quantum. It is about the key exchange alone, and its title says so.
func pqBadge(yes bool) badge {
	if yes {
		b, _ := newBadge("ok", "post-quantum",
			"The key exchange was hybrid: X25519MLKEM768 or one of its kind. Certificates on the public web are still classical.")
		return b
	}
	b, _ := newBadge("off", "classical", "The key exchange was classical: who records the traffic today could read it with a quantum computer.")
	return b
}

// edgeBadge shows an edge's state.
func edgeBadge(state any) badge {
	kind := "bad"
	if fmt.Sprint(state) == "up" {
		kind = "ok"
	}
	b, _ := newBadge(kind, fmt.Sprint(state))
	return b
}

// emptyState teaches what would be there.
type emptyState struct{ Title, Text, URL, Action string }

// newEmpty returns an empty state: a title, a sentence that teaches and, if there is something to do, a link and what it is called.
func newEmpty(title, text string, action ...string) emptyState {
	e := emptyState{Title: title, Text: text}
	if len(action) == 2 {
		e.URL, e.Action = action[0], action[1]
	}
	return e
}

// newOptions returns the choices of a field, of pairs of value and text.
func newOptions(pairs ...string) ([]option, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("options come in pairs of value and text")
	}
	all := make([]option, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, option{Value: pairs[i], Text: pairs[i+1]})
	}
	return all, nil
}

// progressBar says how much of something is done.
type progressBar struct {
	Value, Max int
	Text       string
}

func newProgress(value, most int, text string) progressBar {
	most = max(most, 0)
	return progressBar{min(max(value, 0), most), most, text}
}

// copied is a text with a button that copies it.
type copied struct {
	Text, Label string
	Block       bool // of several lines
}

// newCopy returns a text to copy; the label says what it is, for who does not see the page.
func newCopy(text, label string) copied { return copied{text, label, strings.Contains(text, "\n")} }

// step is one of a wizard's.
type step struct {
	Text, URL     string
	Done, Current bool
}

// newSteps returns the steps of a wizard, of which number `at`, from 1, is the present one.
func newSteps(at int, texts ...string) []step {
	all := make([]step, len(texts))
	for i, t := range texts {
		all[i] = step{Text: t, Done: i+1 < at, Current: i+1 == at}
	}
	return all
}

// tab is one of several views of one object.
type tab struct {
	Text, URL string
	Current   bool
}

// newTabs returns tabs, of pairs of link and text; at is the link of the present one.
func newTabs(at string, pairs ...string) []tab {
	var all []tab
	for i := 0; i+1 < len(pairs); i += 2 {
		all = append(all, tab{pairs[i+1], pairs[i], pairs[i] == at})
	}
	return all
}

// newObject returns a JSON object of pairs, for curl lines.
func newObject(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("an object has pairs of name and value")
	}
	all := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		all[fmt.Sprint(pairs[i])] = pairs[i+1]
	}
	return all, nil
}
