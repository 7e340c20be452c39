package pqproxy

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
)

// The choices of Management.Report.
const (
	ReportOn  = "on"
	ReportOff = "off"
)

// Where management planes have the feed, and reports beside it.
const (
	feedPath    = "/v1/edge/domains"
	feedName    = "/domains"
	reportsName = "/reports"
)

// provisionReports checks what is said of reports, and finds out who reports where. The address is URL without
// placeholders. Each fault names its field.
func (m *Management) provisionReports(address string) (faults []error) {
	fault := func(field string, err error) { faults = append(faults, fmt.Errorf("management.%s: %w", field, err)) }
	replace := func(field string, text string) string {
		replaced, err := caddy.NewReplacer().ReplaceOrErr(text, true, true)
		switch {
		case err != nil:
			fault(field, err)
		case len(replaced) > edgereport.MaxName:
			fault(field, fmt.Errorf("has %d bytes; at most %d are allowed", len(replaced), edgereport.MaxName))
		case strings.ContainsFunc(replaced, func(r rune) bool { return !unicode.IsPrint(r) }):
			fault(field, errors.New("has characters that do not print; remove them"))
		}
		return replaced
	}
	m.edge, m.region = replace("edge", m.Edge), replace("region", m.Region)
	path, query, hasQuery := strings.Cut(address, "?")
	switch m.Report {
	case "":
		m.reports = strings.HasSuffix(path, feedPath)
	case ReportOn:
		if m.reports = strings.HasSuffix(path, feedName); !m.reports {
			fault("report", errors.New("is on, but url does not end in "+feedName+", so that there is no telling where reports go; leave report out for a feed that is no management plane's"))
		}
	case ReportOff:
	default:
		fault("report", errors.New("is on or off"))
	}
	if !m.reports {
		return faults
	}
	if m.edge == "" {
		host, err := os.Hostname()
		if m.edge = host; err != nil || host == "" {
			fault("edge", errors.New("is missing, and this machine has no host name; give the edge a name"))
		}
	}
	m.reportsURL = strings.TrimSuffix(path, feedName) + reportsName
	if hasQuery {
		m.reportsURL += "?" + query
	}
	return faults
}

// shownReports is where reports go, without the query.
func (m *Management) shownReports() string {
	shown, _, _ := strings.Cut(m.reportsURL, "?")
	return shown
}
