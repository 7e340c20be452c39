package dashboard

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// waterfall shows where the time of one connection went until its first byte, for the template "waterfall". The upper lane is the client's side,
// the lower the upstream's. A record does not say when the dial began: it is drawn where an early dial begins, beside the handshake.
type waterfall struct {
	Parts []waterPart
	total float64
}

// waterPart is one bar; Start and Length are in seconds.
type waterPart struct {
	Class, Name, Text string
	Start, Length     float64
	lane              int
}

// newWaterfall returns the waterfall of a connection. Durations that are no numbers, or negative, count as 0.
func newWaterfall(c *management.Connection) waterfall {
	length := func(f float64) float64 {
		if math.IsNaN(f) || f < 0 {
			return 0
		}
		return min(f, 1e6)
	}
	hello, handshake := length(c.HelloWait), length(c.Handshake)
	connect, upstream, first := length(c.UpstreamConnect), length(c.UpstreamHandshake), length(c.FirstByte)
	ready := max(hello+handshake, hello+connect+upstream)
	w := waterfall{total: ready + first}
	for _, p := range []waterPart{
		{Class: "s6", Name: "Hello wait", Length: hello},
		{Class: "s1", Name: "Handshake", Start: hello, Length: handshake},
		{Class: "s2", Name: "Upstream connect", Start: hello, Length: connect, lane: 1},
		{Class: "s4", Name: "Upstream handshake", Start: hello + connect, Length: upstream, lane: 1},
		{Class: "s3", Name: "First byte", Start: ready, Length: first},
	} {
		p.Text, _ = formatSeconds(p.Length) // a float64 is a duration
		w.Parts = append(w.Parts, p)
	}
	return w
}

const (
	waterWidth = 1000
	waterLane  = 14
)

// SVG draws the bars. It is a function of the waterfall alone.
func (w waterfall) SVG() template.HTML {
	var out strings.Builder
	text := "Until the first byte"
	for _, p := range w.Parts {
		text += "; " + strings.ToLower(p.Name) + " " + p.Text
	}
	const height = 2*waterLane + 2
	fmt.Fprintf(&out, `<svg viewBox="0 0 %d %d" width="%d" height="%d" preserveAspectRatio="none" role="img" aria-label="%s">`,
		waterWidth, height, waterWidth, height, html.EscapeString(text))
	fmt.Fprintf(&out, `<rect class="wf-bg" width="%d" height="%d"/>`, waterWidth, height)
	for _, p := range w.Parts {
		if p.Length <= 0 || w.total <= 0 {
			continue
		}
		x, width := waterWidth*p.Start/w.total, max(waterWidth*p.Length/w.total, 2)
		fmt.Fprintf(&out, `<rect class="bar %s" x="%s" y="%d" width="%s" height="%d"/>`, p.Class,
			px(min(x, waterWidth-width)), p.lane*(waterLane+2), px(width), waterLane)
	}
	out.WriteString("</svg>")
	return template.HTML(out.String()) //nolint:gosec // numbers and escaped text
}
