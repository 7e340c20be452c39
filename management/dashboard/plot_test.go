package dashboard

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func hours(n int) []time.Time {
	all := make([]time.Time, n)
	for i := range all {
		all[i] = time.Date(2026, 3, 14, i, 0, 0, 0, time.UTC)
	}
	return all
}

var nan = math.NaN()

// somePlots are the plots of which pictures are kept.
func somePlots() map[string]*plot {
	return map[string]*plot{
		"line":       {Title: "Handshakes", Unit: secondsUnit, Times: hours(6), Series: []series{{Name: "p50", Values: []float64{0.01, 0.012, nan, 0.02, 0.018, 0.016}}, {Name: "p99", Values: []float64{0.1, nan, 0.2, nan, 0.15, 0.13}, Note: "slowest"}}},
		"area":       {Title: "Share", Kind: areaPlot, Unit: shareUnit, Max: 1, Step: time.Hour, Times: hours(24), Series: []series{{Name: "post-quantum", Values: []float64{0, .5, .6, .7, 1, 1, .9}}}},
		"bars":       {Title: "Connections", Kind: barPlot, Step: time.Hour, Times: hours(5), Series: []series{{Name: "post-quantum", Values: []float64{10, 20, 0, 5, 1234}}, {Name: "classical", Values: []float64{1, nan, -3, 5, 100}}}},
		"bytes":      {Title: "Traffic", Unit: bytesUnit, Step: time.Hour, Times: hours(3), Series: []series{{Name: "in", Values: []float64{1 << 20, 3 << 20, 2 << 20}}}},
		"empty":      {Title: "Nothing"},
		"gaps":       {Title: "Only gaps", Times: hours(3), Series: []series{{Name: "x", Values: []float64{nan, math.Inf(1), math.Inf(-1)}}}},
		"one":        {Title: "One point", Times: hours(1), Series: []series{{Name: "x", Values: []float64{42}}}},
		"one_bar":    {Title: "One bar", Kind: barPlot, Step: 24 * time.Hour, Times: hours(1), Series: []series{{Name: "x", Values: []float64{42}}}},
		"zero":       {Title: "All zero", Times: hours(3), Series: []series{{Name: "x", Values: []float64{0, 0, 0}}}},
		"huge":       {Title: "Huge", Times: hours(3), Series: []series{{Name: "x", Values: []float64{math.MaxFloat64, 1, 1e300}}}},
		"same_times": {Title: "No span", Times: []time.Time{hours(1)[0], hours(1)[0]}, Series: []series{{Name: "x", Values: []float64{1, 2}}}},
		"hostile":    {Title: hostile, Times: hours(2), Series: []series{{Name: hostile, Values: []float64{1, 2, 3, 4}, Note: hostile}}},
		"negative":   {Title: "Negative", Times: hours(3), Series: []series{{Name: "x", Values: []float64{-1, 5, -7}}}},
	}
}

func TestPlots(t *testing.T) {
	for name, p := range somePlots() {
		got := string(p.SVG())
		checkSVG(t, name, got)
		golden(t, "plot_"+name+".svg", got+"\n")
		for _, row := range p.Rows() {
			if len(row.Values) != len(p.Names()) {
				t.Errorf("%s: %v has not a value for each of %v", name, row, p.Names())
			}
		}
	}
}

// checkSVG wants one well-formed picture with finite coordinates inside of its box, and neither scripts nor styles.
func checkSVG(t *testing.T, name, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	depth, roots := 0, 0
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, text)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if depth == 0 {
				roots++
			}
			depth++
			if tok.Name.Local == "script" || tok.Name.Local == "style" || tok.Name.Local == "img" {
				t.Errorf("%s has a <%s>", name, tok.Name.Local)
			}
			for _, a := range tok.Attr {
				if a.Name.Local == "style" || strings.HasPrefix(a.Name.Local, "on") || a.Name.Local != "aria-label" && (strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || strings.Contains(a.Value, "e+")) {
					t.Errorf("%s: %s=%q", name, a.Name.Local, a.Value)
				}
				if a.Name.Local == "height" && strings.HasPrefix(a.Value, "-") || a.Name.Local == "width" && strings.HasPrefix(a.Value, "-") {
					t.Errorf("%s: %s=%q", name, a.Name.Local, a.Value)
				}
			}
		case xml.CharData:
			if text := string(tok); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
				t.Errorf("%s says %q", name, text)
			}
		case xml.EndElement:
			depth--
		}
	}
	if roots != 1 {
		t.Errorf("%s has %d pictures", name, roots)
	}
}

func FuzzPlot(f *testing.F) {
	f.Add(uint8(0), uint8(0), 1.0, 2.0, 0.0, int64(3600))
	f.Add(uint8(2), uint8(1), math.MaxFloat64, -1.0, 1e-300, int64(0))
	f.Add(uint8(1), uint8(2), nan, math.Inf(1), 5e-324, int64(1<<40))
	f.Fuzz(func(t *testing.T, kind, unit uint8, a, b, c float64, step int64) {
		if step < 0 || step > 1e9 {
			return
		}
		start := time.Unix(1e9, 0)
		p := &plot{Title: "x", Kind: plotKind(kind % 3), Unit: plotUnit(unit % 4), Step: time.Duration(step) * time.Second,
			Times: []time.Time{start, start.Add(time.Duration(step) * time.Second), start.Add(time.Duration(step) * 2 * time.Second)}, Series: []series{{Name: "a", Values: []float64{a, b, c}}, {Name: "b", Values: []float64{c, a}}}}
		checkSVG(t, "fuzz", string(p.SVG()))
		p.Rows()
	})
}

func TestNiceStep(t *testing.T) {
	for _, test := range []struct {
		most float64
		unit plotUnit
		want float64
	}{{10, countUnit, 5}, {4, countUnit, 1}, {1, countUnit, 1}, {0.3, countUnit, 1}, {1234, countUnit, 500}, {1, shareUnit, 0.5}, {0.0041, secondsUnit, 0.002}, {4 << 20, bytesUnit, 1 << 20}, {0, countUnit, 1}, {nan, countUnit, 1}} {
		if got := niceStep(test.most, 4, test.unit); math.Abs(got-test.want) > 1e-12 {
			t.Errorf("niceStep(%v, %d) = %v, want %v", test.most, test.unit, got, test.want)
		}
	}
}

func TestWaterfall(t *testing.T) {
	for name, d := range map[string]management.ConnectionDetail{
		"usual":   {HelloWait: 0.0004, Handshake: 0.0411, UpstreamConnect: 0.0009, UpstreamHandshake: 0.0024, FirstByte: 0.0131, Duration: 12.4},
		"refused": {HelloWait: 0.01},
		"none":    {},
		"odd":     {HelloWait: nan, Handshake: -5, UpstreamConnect: math.Inf(1), FirstByte: 1e-12},
	} {
		w := newWaterfall(&management.Connection{ConnectionDetail: d})
		got := string(w.SVG())
		checkSVG(t, name, got)
		golden(t, "waterfall_"+name+".svg", got+"\n")
	}
}

func TestCalendar(t *testing.T) {
	now := time.Date(2028, 2, 29, 23, 30, 0, 0, time.UTC)
	day := func(m time.Month, d int) time.Time { return time.Date(2028, m, d, 0, 0, 0, 0, time.UTC) }
	counts := map[time.Time]int{day(2, 28): 3, day(3, 1): 1, day(3, 31): 12}
	c := newCalendar(now, 2, "certificate", counts, func(day time.Time) string { return "/certificates?day=" + day.Format(time.DateOnly) })
	if len(c.Months) != 2 || c.Months[0].Name != "February 2028" || c.Months[1].Name != "March 2028" {
		t.Fatalf("%+v", c.Months)
	}
	days, seen := 0, map[string]calendarDay{}
	for _, m := range c.Months {
		for _, week := range m.Weeks {
			for i, d := range week {
				if d.Day == 0 {
					continue
				}
				days++
				seen[fmt.Sprintf("%d %s: %d %s", d.Day, d.Month, d.Count, d.Ends)] = d
				if m.Name == "March 2028" && d.Day == 1 && i != 2 {
					t.Errorf("1 March 2028 is a Wednesday, and in column %d", i)
				}
			}
		}
	}
	if days != 29+31 {
		t.Errorf("%d days", days)
	}
	for text, class := range map[string]string{"28 February 2028: 3 certificates end": " late", "1 March 2028: 1 certificate ends": " soon", "31 March 2028: 12 certificates end": " far"} {
		if d, ok := seen[text]; !ok || d.Class != class {
			t.Errorf("%s: %+v", text, d)
		}
	}
}
