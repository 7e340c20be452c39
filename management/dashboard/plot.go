package dashboard

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strconv"
	"strings"
	"time"
)

// plot is a chart over time, for the template "plot": drawn on the server as SVG, with a legend and, where there are not too many, the figures as
// a table. Every text of it is escaped here.
type plot struct {
	Title  string
	Kind   plotKind
	Unit   plotUnit
	Times  []time.Time // ascending: of stepped plots when each step begins
	Series []series
	Step   time.Duration // how long one value is for; 0: values are of moments
	Max    float64       // the top of the axis is at least this; of shares 1
	Bare   bool          // without the table: the page has one of the same figures
}

// series is one line, area, or part of the bars. NaN and Inf are gaps; what is missing at the end too.
type series struct {
	Name   string
	Values []float64
	Note   string // in the legend
}

type plotKind uint8

const (
	linePlot plotKind = iota
	areaPlot          // a line with what is under it
	barPlot           // stacked bars; negative values count as 0
)

type plotUnit uint8

const (
	countUnit plotUnit = iota
	bytesUnit
	secondsUnit
	shareUnit // from 0 to 1
)

const (
	plotWidth  = 720
	plotHeight = 260
	plotTop    = 24 // room for the highest tick's text
	plotBottom = 28 // room for the times
	plotSeries = 6  // as many colours there are
	plotRows   = 70
)

// format writes a value with its unit.
func (u plotUnit) format(f float64) string {
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return "–"
	case u == bytesUnit:
		return formatBytes(int64(min(max(f, -1<<62), 1<<62)))
	case u == shareUnit:
		return formatPercent(f)
	case u == secondsUnit:
		text, _ := formatSeconds(f) // a float64 is a duration
		return text
	}
	if f == math.Trunc(f) && math.Abs(f) < 1e6 {
		text, _ := formatCount(int64(f)) // an int64 is counted
		return text
	}
	return short(f)
}

// tick writes a value at an axis: short, and without digits that say nothing.
func (u plotUnit) tick(f float64) string {
	trim := func(text string) string {
		number, unit, _ := strings.Cut(text, " ")
		if strings.Contains(number, ".") {
			number = strings.TrimRight(strings.TrimRight(number, "0"), ".")
		}
		return strings.TrimSuffix(number+" "+unit, " ")
	}
	switch u {
	case bytesUnit, secondsUnit, shareUnit:
		return trim(u.format(f))
	}
	return short(f)
}

// short writes 1.5 k, 20 M, 3e+15.
func short(f float64) string {
	abs := math.Abs(f)
	for _, s := range []struct {
		of   float64
		name string
	}{{1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e3, " k"}} {
		if abs >= s.of && abs < 1e15 {
			return strconv.FormatFloat(f/s.of, 'g', 4, 64) + s.name
		}
	}
	return strconv.FormatFloat(f, 'g', 4, 64)
}

// niceStep returns a step of ticks, so that n of them reach most: 1, 2 or 5 times a power of ten; of bytes, a power of two.
func niceStep(most float64, n int, u plotUnit) float64 {
	if !(most > 0) || math.IsInf(most, 0) {
		return 1
	}
	raw := most / float64(n)
	if u == bytesUnit {
		return math.Exp2(math.Ceil(math.Log2(raw)))
	}
	if u == countUnit && raw < 1 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5} {
		if step := m * power; step >= raw*(1-1e-9) {
			return step
		}
	}
	return 10 * power
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

// shown are the series that have a colour; more than there are colours is a mistake of the caller, and left out.
func (p *plot) shown() []series { return p.Series[:min(len(p.Series), plotSeries)] }

// at returns a value, NaN for a gap.
func (s *series) at(i int) float64 {
	if i >= len(s.Values) || !finite(s.Values[i]) {
		return math.NaN()
	}
	return s.Values[i]
}

// top returns the highest value, of bars the highest sum, and whether there is any value at all.
func (p *plot) top() (most float64, any bool) {
	most = p.Max
	for i := range p.Times {
		sum := 0.0
		for _, s := range p.shown() {
			f := s.at(i)
			if math.IsNaN(f) {
				continue
			}
			any = true
			if p.Kind == barPlot {
				sum += max(f, 0)
				f = sum
			}
			most = max(most, f)
		}
	}
	return min(most, 1e300), any // so that no sum of ticks is infinite
}

// SVG draws the plot. It is a function of the plot alone.
func (p *plot) SVG() template.HTML {
	var out strings.Builder
	fmt.Fprintf(&out, `<svg viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`, plotWidth, plotHeight, plotWidth, plotHeight,
		html.EscapeString(p.describe()))
	most, any := p.top()
	if !any {
		fmt.Fprintf(&out, `<line class="axis" x1="0" y1="%d" x2="%d" y2="%d"/><text x="%d" y="%d" text-anchor="middle">Nothing in this time</text></svg>`,
			plotHeight-plotBottom, plotWidth, plotHeight-plotBottom, plotWidth/2, plotHeight/2)
		return template.HTML(out.String()) //nolint:gosec // numbers and escaped text
	}
	step := niceStep(most, 4, p.Unit)
	top := step * max(1, math.Ceil(most/step*(1-1e-9)))
	y := func(f float64) float64 {
		return plotTop + (plotHeight-plotTop-plotBottom)*(1-min(max(f/top, 0), 1))
	}
	p.drawAxes(&out, y, top, step)
	switch p.Kind {
	case barPlot:
		p.drawBars(&out, y)
	default:
		for i, s := range p.shown() {
			p.drawLine(&out, y, i, &s)
		}
	}
	out.WriteString("</svg>")
	return template.HTML(out.String()) //nolint:gosec // numbers and escaped text
}

// x returns where a time is: the span of the plot is from the first time to the end of the last step.
func (p *plot) x(t time.Time) float64 {
	first, last := p.Times[0], p.Times[len(p.Times)-1].Add(p.Step)
	span := last.Sub(first)
	if span <= 0 {
		return plotWidth / 2
	}
	return plotWidth * float64(t.Sub(first)) / float64(span)
}

func (p *plot) drawAxes(out *strings.Builder, y func(float64) float64, top, step float64) {
	for i := 0; i <= 10; i++ {
		f := float64(i) * step
		if f > top*(1+1e-9) {
			break
		}
		class := "grid"
		if i == 0 {
			class = "axis"
		}
		fmt.Fprintf(out, `<line class="%s" x1="0" y1="%s" x2="%d" y2="%s"/>`, class, px(y(f)), plotWidth, px(y(f)))
		if i > 0 {
			fmt.Fprintf(out, `<text x="2" y="%s">%s</text>`, px(y(f)-4), html.EscapeString(p.Unit.tick(f)))
		}
	}
	end := 0.0 // of the text before
	for i, t := range p.timeTicks() {
		x, wide := p.x(t.at), tickLetter*float64(len(t.text))
		anchor, class, begin := "middle", "", x-wide/2
		switch {
		case x < 40:
			anchor, x, begin = "start", 2, 2
		case x > plotWidth-40:
			anchor, x, begin = "end", plotWidth-2, plotWidth-2-wide
		}
		if begin < end {
			continue // it would be written over the one before
		}
		end = begin + wide + tickLetter
		if i%2 == 1 {
			class = ` class="minor"` // left out on phones
		}
		fmt.Fprintf(out, `<text%s x="%s" y="%d" text-anchor="%s">%s</text>`, class, px(x), plotHeight-6, anchor, html.EscapeString(t.text))
	}
}

// tickLetter is how wide a letter of a tick is, about, in the units of the plot.
const tickLetter = 7.0

type timeTick struct {
	at   time.Time
	text string
}

// timeTicks returns at most seven round times.
func (p *plot) timeTicks() []timeTick {
	first := p.Times[0].UTC()
	last := p.Times[len(p.Times)-1].Add(p.Step).UTC()
	span := last.Sub(first)
	layout := "15:04"
	const day = 24 * time.Hour
	switch {
	case span <= 0:
		return []timeTick{{first, first.Format("2 Jan 15:04")}}
	case span > 300*day:
		layout = "Jan 2006"
	case span > 2*day:
		layout = "2 Jan"
	case span > day:
		layout = "2 Jan 15:04"
	}
	every := span
	for _, e := range []time.Duration{time.Second, 5 * time.Second, 15 * time.Second, time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour, 12 * time.Hour, day, 2 * day, 5 * day, 7 * day, 14 * day, 30 * day, 61 * day, 122 * day, 365 * day} {
		if span/e <= 6 {
			every = e
			break
		}
	}
	if every < time.Minute {
		layout = "15:04:05"
	}
	var ticks []timeTick
	at := first.Truncate(every)
	if at.Before(first) {
		at = at.Add(every)
	}
	for ; !at.After(last) && len(ticks) < 8; at = at.Add(every) {
		ticks = append(ticks, timeTick{at, at.Format(layout)})
	}
	return ticks
}

// drawLine draws one series: what is between gaps is one line, a value alone a dot.
func (p *plot) drawLine(out *strings.Builder, y func(float64) float64, number int, s *series) {
	class := "s" + strconv.Itoa(number+1)
	floor := px(y(0))
	for i := 0; i < len(p.Times); {
		if math.IsNaN(s.at(i)) {
			i++
			continue
		}
		end := i
		var path strings.Builder
		for ; end < len(p.Times) && !math.IsNaN(s.at(end)); end++ {
			verb := "L"
			if end == i {
				verb = "M"
			}
			fmt.Fprintf(&path, "%s%s %s", verb, px(p.x(p.middle(end))), px(y(s.at(end))))
		}
		if end-i == 1 {
			fmt.Fprintf(out, `<circle class="dot %s" cx="%s" cy="%s" r="3"/>`, class, px(p.x(p.middle(i))), px(y(s.at(i))))
		} else {
			if p.Kind == areaPlot {
				fmt.Fprintf(out, `<path class="area %s" d="%sL%s %sL%s %sZ"/>`, class, path.String(),
					px(p.x(p.middle(end-1))), floor, px(p.x(p.middle(i))), floor)
			}
			fmt.Fprintf(out, `<path class="line %s" d="%s"/>`, class, path.String())
		}
		i = end
	}
}

// middle is where the value of a step is drawn.
func (p *plot) middle(i int) time.Time { return p.Times[i].Add(p.Step / 2) }

// drawBars draws one bar for each step, its series on top of each other, the first at the bottom.
func (p *plot) drawBars(out *strings.Builder, y func(float64) float64) {
	step := p.Step
	if step <= 0 && len(p.Times) > 1 {
		step = p.Times[1].Sub(p.Times[0])
	}
	width := plotWidth / float64(max(len(p.Times), 1))
	if span := p.Times[len(p.Times)-1].Add(p.Step).Sub(p.Times[0]); span > 0 && step > 0 {
		width = plotWidth * float64(step) / float64(span)
	}
	gap := min(4, width*0.15)
	width = min(width, plotWidth)
	wide := px(max(width-gap, 0.5))
	paths := make([]strings.Builder, len(p.shown())) // one for each series: an element for each bar is most of a page
	for i, t := range p.Times {
		left := min(p.x(t), plotWidth-width)
		if len(p.Times) == 1 {
			left = (plotWidth - width) / 2
		}
		sum := 0.0
		for n, s := range p.shown() {
			f := s.at(i)
			if math.IsNaN(f) || f <= 0 {
				continue
			}
			bottom, top := y(sum), y(sum+f)
			sum += f
			fmt.Fprintf(&paths[n], "M%s %sh%sv%sh-%sz", px(left+gap/2), px(top), wide, px(bottom-top), wide)
		}
	}
	for n := range paths {
		if paths[n].Len() > 0 {
			fmt.Fprintf(out, `<path class="bar s%d" d="%s"/>`, n+1, paths[n].String())
		}
	}
}

// px writes a coordinate with one digit.
func px(f float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0")
}

// describe is what is read aloud: how far each series goes, and where it ends.
func (p *plot) describe() string {
	text := p.Title + "."
	if len(p.Times) == 0 {
		return text + " No data."
	}
	text += fmt.Sprintf(" From %s to %s.", p.Times[0].UTC().Format("2 Jan 2006 15:04"),
		p.Times[len(p.Times)-1].Add(p.Step).UTC().Format("2 Jan 2006 15:04 UTC"))
	for _, s := range p.shown() {
		least, most, last := math.NaN(), math.NaN(), math.NaN()
		for i := range p.Times {
			if f := s.at(i); !math.IsNaN(f) {
				least, most, last = fmin(least, f), fmax(most, f), f
			}
		}
		if math.IsNaN(last) {
			text += " " + s.Name + ": no data."
			continue
		}
		text += fmt.Sprintf(" %s: %s to %s, last %s.", s.Name, p.Unit.format(least), p.Unit.format(most), p.Unit.format(last))
	}
	return text
}

func fmin(a, b float64) float64 {
	if math.IsNaN(a) {
		return b
	}
	return min(a, b)
}

func fmax(a, b float64) float64 {
	if math.IsNaN(a) {
		return b
	}
	return max(a, b)
}

// legendItem is one colour of a picture.
type legendItem struct{ Class, Name, Note string }

// Legend lists the series; one that has no name needs none.
func (p *plot) Legend() []legendItem {
	var all []legendItem
	for i, s := range p.shown() {
		if s.Name != "" {
			all = append(all, legendItem{"s" + strconv.Itoa(i+1), s.Name, s.Note})
		}
	}
	return all
}

// Names are the columns of the table.
func (p *plot) Names() []string {
	all := make([]string, len(p.shown()))
	for i, s := range p.shown() {
		all[i] = s.Name
	}
	return all
}

// figures is a row of the table.
type figures struct {
	Time   string
	Values []string
}

// Rows are the figures, newest first; none where they would be a page of their own.
func (p *plot) Rows() []figures {
	if p.Bare || len(p.Times) > plotRows {
		return nil
	}
	layout := "2006-01-02 15:04"
	if p.Step >= 24*time.Hour {
		layout = time.DateOnly
	}
	all := make([]figures, 0, len(p.Times))
	for i := len(p.Times) - 1; i >= 0; i-- {
		row := figures{Time: p.Times[i].UTC().Format(layout)}
		for _, s := range p.shown() {
			row.Values = append(row.Values, p.Unit.format(s.at(i)))
		}
		all = append(all, row)
	}
	return all
}
