package dashboard

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func certificateRoutes() []route {
	return []route{{method: "GET", path: "/certificates", scope: management.DomainsRead, handle: showCertificates}}
}

const (
	certificateRows = 15
	calendarMonths  = 3
	calendarMost    = 150 // certificates in the calendar
)

// certificatesPage is the data of the list.
type certificatesPage struct {
	Fault    *summary
	Rows     []certificateLine
	Next     string
	Within   string // as it was asked for
	Day      string // the one day that is shown; empty: all
	More     int    // that end on that day and are left out
	Calendar *calendar
	Ended    int       // certificates that have ended, of those in the calendar
	Until    time.Time // the calendar is complete up to then; zero: for all of its months
	API      string
}

// certificateLine is a certificate in a list.
type certificateLine struct {
	*management.Certificate
	URL   string
	Names string
	Left  badge

	Warning string
}

func showCertificates(c *ctx) error {
	page := certificatesPage{Within: c.query("expiring_within"), Day: c.query("day")}
	err := page.load(c)
	if page.Fault = c.filterFault(err, map[string]string{"expiring_within": "End within"}); err != nil && page.Fault == nil {
		return err
	}
	return c.render("certificates", "Certificates", page)
}

func (page *certificatesPage) load(c *ctx) error {
	now := c.now().UTC()
	first := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	soonest, more, err := c.plane.FindCertificates(c.ctx, c.who, first.AddDate(0, calendarMonths, 0).Sub(now), management.Page{Limit: calendarMost})
	if err != nil {
		return err
	}
	page.draw(c, now, soonest, more != "")
	within := time.Duration(0)
	switch {
	case page.Day != "":
		day, err := time.Parse(time.DateOnly, page.Day)
		if err != nil {
			return management.InvalidField("?day", "must be a day such as 2026-01-31")
		}
		for _, one := range soonest {
			if one.NotAfter != nil && dayOf(*one.NotAfter).Equal(day) {
				page.Rows = append(page.Rows, c.certificateLine(one, now))
			}
		}
		if page.More = len(page.Rows) - certificateRows; page.More > 0 {
			page.Rows = page.Rows[:certificateRows]
		}
		page.API = "/v1/certificates"
		return nil
	case page.Within != "":
		days, err := strconv.Atoi(strings.TrimSuffix(page.Within, "d"))
		if err != nil || days < 1 || days > 3660 || !strings.HasSuffix(page.Within, "d") {
			return management.InvalidField("?expiring_within", "must be days such as 21d")
		}
		within = time.Duration(days) * 24 * time.Hour
	}
	found, next, err := c.plane.FindCertificates(c.ctx, c.who, within, c.page(certificateRows))
	if err != nil {
		return err
	}
	for _, one := range found {
		page.Rows = append(page.Rows, c.certificateLine(one, now))
	}
	page.Next, page.API = next, apiPath("/v1/certificates", "expiring_within", page.Within)
	return nil
}

// draw makes the calendar of the certificates that end first.
func (page *certificatesPage) draw(c *ctx, now time.Time, soonest []*management.Certificate, more bool) {
	counts := map[time.Time]int{}
	for _, one := range soonest {
		if one.NotAfter == nil {
			continue
		}
		counts[dayOf(*one.NotAfter)]++
		if !one.NotAfter.After(now) {
			page.Ended++
		}
		if more {
			page.Until = *one.NotAfter
		}
	}
	if len(counts) == 0 {
		return
	}
	drawn := newCalendar(now, calendarMonths, "certificate", counts, func(day time.Time) string {
		return c.url("/certificates", "day", day.Format(time.DateOnly))
	})
	page.Calendar = &drawn
}

func dayOf(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

func (c *ctx) certificateLine(one *management.Certificate, now time.Time) certificateLine {
	line := certificateLine{Certificate: one, URL: c.pageURL("/domains/" + one.Domain)}
	if line.URL != "" {
		if tab := c.pageURL("/domains/" + one.Domain + "/certificate"); tab != "" {
			line.URL = tab
		}
	}
	names := slices.DeleteFunc(slices.Clone(one.Names), func(n string) bool { return n == one.Name })
	shown, letters := 0, 0
	for shown < len(names) && shown < 5 && (shown == 0 || letters+len(names[shown]) <= 200) {
		letters += len(names[shown])
		shown++
	}
	line.Names = strings.Join(names[:shown], ", ")
	if more := len(names) - shown; more > 0 {
		line.Names += " and " + strconv.Itoa(more) + " more"
	}
	if len(one.Warnings) > 0 {
		line.Warning = one.Warnings[0]
		if more := len(one.Warnings) - 1; more > 0 {
			line.Warning = brief(160, line.Warning) + " (and " + plural(more, "warning") + " more)"
		}
	}
	line.Left = leftBadge(one.NotAfter, now)
	return line
}

// leftBadge says how much of a certificate's life is left.
func leftBadge(end *time.Time, now time.Time) badge {
	kind, text := "off", "none yet"
	if end != nil {
		days := int(end.Sub(now) / (24 * time.Hour))
		switch {
		case !end.After(now):
			kind, text = "bad", "ended"
		case end.Sub(now) < 7*24*time.Hour:
			kind, text = "bad", plural(days, "day")
		case end.Sub(now) < 21*24*time.Hour:
			kind, text = "warn", plural(days, "day")
		default:
			kind, text = "ok", plural(days, "day")
		}
	}
	b, _ := newBadge(kind, text) // the kinds are known
	return b
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}
