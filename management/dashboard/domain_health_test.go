package dashboard

import (
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// TestHealthCheckForm turns checks on, changes each setting, makes mistakes in them, and turns them off.
func TestHealthCheckForm(t *testing.T) {
	s := newDomainSite(t)
	d := s.add("app.example.com")
	b := s.visitor()
	path := "/domains/" + d.ID + "/policy"
	settings := func() domain.HealthCheck {
		t.Helper()
		if h := s.find(d.ID).HealthCheck; h != nil {
			return *h
		}
		return domain.HealthCheck{}
	}
	seconds := func(n float64) domain.Duration { return domain.Duration(n * 1e9) }

	page := b.get(path).want(http.StatusOK, "Health check", "off: clients' connections alone tell")
	check(t, s.site, page)
	if line := page.copied()[0]; !strings.Contains(line, `"health_check": null`) {
		t.Errorf("the curl line is %s", line)
	}

	// Nothing said stays nothing; a type alone is all defaults.
	b.submit(page, "policy", nil).leadsTo(path)
	if h := settings(); h != (domain.HealthCheck{}) {
		t.Errorf("it is on: %+v", h)
	}
	b.submit(b.get(path), "policy", typed("health_check.type", "tcp")).leadsTo(path)
	if h, want := settings(), (domain.HealthCheck{Type: "tcp", Interval: seconds(10), Timeout: seconds(5), Rise: 2, Fall: 3}); h != want {
		t.Errorf("%+v, want %+v", h, want)
	}

	// All of it, as it was typed, and shown again.
	b.submit(b.get(path), "policy", typed("health_check.interval", "1m30s", "health_check.timeout", " 250ms ", "health_check.rise", "1", "health_check.fall", "100")).leadsTo(path)
	if h, want := settings(), (domain.HealthCheck{Type: "tcp", Interval: seconds(90), Timeout: seconds(0.25), Rise: 1, Fall: 100}); h != want {
		t.Errorf("%+v, want %+v", h, want)
	}
	page = b.get(path)
	check(t, s.site, page)
	if _, form := page.form("policy"); form.Get("health_check.type") != "tcp" || form.Get("health_check.interval") != "1m30s" || form.Get("health_check.timeout") != "250ms" ||
		form.Get("health_check.rise") != "1" || form.Get("health_check.fall") != "100" {
		t.Errorf("the form has %v", form)
	}
	if line := page.copied()[0]; !strings.Contains(line, `"interval": "1m30s"`) || !strings.Contains(line, `"fall": 100`) {
		t.Errorf("the curl line is %s", line)
	}

	// Every mistake is told at its field, what was typed stays, and nothing is stored.
	before := settings()
	for field, wrong := range map[string]string{
		"interval": "500ms", "timeout": "2m", "rise": "101", "fall": "-1",
	} {
		bad := b.submit(page, "policy", typed("health_check."+field, wrong)).want(http.StatusUnprocessableEntity)
		check(t, s.site, bad)
		for _, other := range []string{"type", "interval", "timeout", "rise", "fall"} {
			if fault := bad.fault("f-policy-health_check-" + other); (fault != "") != (other == field) {
				t.Errorf("%s=%s: the fault at %s is %q", field, wrong, other, fault)
			}
		}
		if _, form := bad.form("policy"); form.Get("health_check."+field) != wrong {
			t.Errorf("%s: what was typed is lost", field)
		}
	}
	// What no number and no duration is, is told as well; and what the upstreams do not allow.
	for field, wrong := range map[string]string{"interval": "10", "timeout": "soon", "rise": "two", "fall": "1.5", "type": "tls"} {
		bad := b.submit(page, "policy", typed("health_check."+field, wrong)).want(http.StatusUnprocessableEntity)
		check(t, s.site, bad)
		if bad.fault("f-policy-health_check-"+field) == "" {
			t.Errorf("%s=%s: no fault at the field:\n%s", field, wrong, bad.text())
		}
	}
	b.submit(page, "policy", typed("health_check.type", hostile)).want(http.StatusUnprocessableEntity)
	if h := settings(); h != before {
		t.Errorf("a mistake was stored: %+v", h)
	}

	// Emptied fields go back to their defaults.
	b.submit(b.get(path), "policy", typed("health_check.interval", "", "health_check.timeout", "", "health_check.rise", "", "health_check.fall", "")).leadsTo(path)
	if h, want := settings(), (domain.HealthCheck{Type: "tcp", Interval: seconds(10), Timeout: seconds(5), Rise: 2, Fall: 3}); h != want {
		t.Errorf("%+v, want %+v", h, want)
	}

	// A form without these fields leaves them alone; off means off, whatever the other fields have.
	_, form := b.get(path).form("policy")
	for name := range form {
		if strings.HasPrefix(name, "health_check.") {
			delete(form, name)
		}
	}
	b.post(path, form).leadsTo(path)
	if settings().Type != "tcp" {
		t.Error("a form without the fields turned it off")
	}
	b.submit(b.get(path), "policy", typed("health_check.type", "", "health_check.rise", "500")).leadsTo(path)
	if h := settings(); h != (domain.HealthCheck{}) {
		t.Errorf("it is on: %+v", h)
	}

	// In the wizard it is behind "More", which opens for what is wrong there.
	step := "/domains/" + d.ID + "/setup/policy"
	bad := b.submit(b.get(step), "policy", typed("health_check.type", "tcp", "health_check.rise", "999")).want(http.StatusUnprocessableEntity)
	check(t, s.site, bad)
	b.submit(bad, "policy", typed("health_check.rise", "9")).leadsTo("/domains/" + d.ID + "/setup/done")
	if settings().Rise != 9 {
		t.Error("the wizard does not store it")
	}

	// Two people with it: the second is told what the first made of it.
	one, two := b.get(path), b.get(path)
	b.submit(one, "policy", typed("health_check.rise", "7")).leadsTo(path)
	told := b.submit(two, "policy", typed("health_check.fall", "8", "health_check.type", "")).want(http.StatusPreconditionFailed, "Now it is 7", "Now it is tcp: connect", "Now it is 3")
	check(t, s.site, told)
}

// TestFoldedFault: what a fault is about was in a part of the form that was closed.
func TestFoldedFault(t *testing.T) {
	s := newDomainSite(t)
	d := s.add("app.example.com")
	b := s.visitor()
	bad := b.submit(b.get("/domains/"+d.ID+"/upstreams"), "upstreams", typed("upstreams.0._tls", "on", "upstreams.0.tls.ca_pem", "no PEM"))
	check(t, s.site, bad.want(http.StatusUnprocessableEntity))
	open := bad.find(func(n *html.Node) bool { return n.Data == "details" && has(n, "open") })
	if open == nil {
		t.Error("the part with the fault is closed")
	}
}
