package dashboard

import "time"

// calendar shows on which days something ends, for the template "calendar".
type calendar struct {
	Months   []calendarMonth
	Weekdays []weekday
}

type weekday struct{ Short, Long string }

// calendarMonth is one month, in weeks from Monday.
type calendarMonth struct {
	Name  string
	Weeks [][7]calendarDay
}

// calendarDay is one day; Day 0: of another month.
type calendarDay struct {
	Day, Count  int
	Month, Ends string // what is read beside Day and Count: "November 2026", "certificates end"
	URL, Class  string // Class: late, soon, far, today
}

const soon = 14 * 24 * time.Hour

// newCalendar returns n months from that of now. counts has how many end on a UTC day, by its beginning; link is where a day leads, what is
// what ends: "certificate".
func newCalendar(now time.Time, n int, what string, counts map[time.Time]int, link func(day time.Time) string) calendar {
	var c calendar
	for i := range 7 {
		name := time.Weekday((i + 1) % 7).String() // from Monday
		c.Weekdays = append(c.Weekdays, weekday{name[:2], name})
	}
	today := now.UTC().Truncate(24 * time.Hour)
	first := time.Date(today.Year(), today.Month(), 1, 0, 0, 0, 0, time.UTC)
	for i := range n {
		month := first.AddDate(0, i, 0)
		m := calendarMonth{Name: month.Format("January 2006")}
		week := [7]calendarDay{}
		for day := month; day.Month() == month.Month(); day = day.AddDate(0, 0, 1) {
			at := (int(day.Weekday()) + 6) % 7
			if at == 0 && day.Day() > 1 {
				m.Weeks = append(m.Weeks, week)
				week = [7]calendarDay{}
			}
			week[at] = oneDay(day, today, what, counts[day], link)
		}
		c.Months = append(c.Months, calendarMonth{m.Name, append(m.Weeks, week)})
	}
	return c
}

func oneDay(day, today time.Time, what string, count int, link func(time.Time) string) calendarDay {
	d := calendarDay{Day: day.Day(), Count: count}
	if day.Equal(today) {
		d.Class = "today"
	}
	if count == 0 {
		return d
	}
	if d.URL = link(day); count > 1 {
		what += "s"
	}
	verb := "ends"
	if count > 1 {
		verb = "end"
	}
	d.Month, d.Ends = day.Format("January 2006"), what+" "+verb
	switch {
	case !day.After(today):
		d.Class += " late"
	case day.Sub(today) < soon:
		d.Class += " soon"
	default:
		d.Class += " far"
	}
	return d
}
