package dashboard

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
)

// upstreamPages edit and probe the upstreams of a domain: as a tab of its page, and as a step of the wizard.
type upstreamPages struct {
	page, path string // the template; below /domains/{id}
	setup      bool
}

func (u upstreamPages) routes() []route {
	path, write := "/domains/{id}"+u.path, management.DomainsWrite
	return []route{
		{method: "GET", path: path, scope: management.DomainsRead, handle: u.show},
		{method: "POST", path: path, scope: write, handle: u.save, again: u.show},
		{method: "POST", path: path + "/probe", scope: write, handle: u.probe, again: u.show},
		{method: "POST", path: path + "/apply", scope: write, handle: u.save, again: u.showApplied},
	}
}

// upstreamRow is an upstream as the form has it; New: an empty one to fill in.
type upstreamRow struct {
	domain.Upstream
	At  string // upstreams.0
	New bool
}

// Number is what people call it, from 1.
func (r upstreamRow) Number() int {
	n, _ := strconv.Atoi(strings.TrimPrefix(r.At, "upstreams.")) // it was written here
	return n + 1
}

// Encrypts is the value of the choice between TLS and plain TCP.
func (r upstreamRow) Encrypts() string {
	if r.TLS == nil {
		return "off"
	}
	return "on"
}

// Settings are those of TLS; without TLS the defaults.
func (r upstreamRow) Settings() domain.UpstreamTLS {
	if r.TLS == nil {
		return domain.UpstreamTLS{PostQuantum: domain.Prefer}
	}
	return *r.TLS
}

// Odd reports whether there is something of it that the form hides at first.
func (r upstreamRow) Odd() bool {
	s := r.Settings()
	return s.CAPEM != "" || s.ServerName != "" || s.InsecureSkipVerify || r.Region != "" || s.PostQuantum != domain.Prefer && s.PostQuantum != ""
}

// upstreamProbe is what was found at an upstream.
type upstreamProbe struct{ management.UpstreamProbe }

// Badge says whether it will do.
func (p upstreamProbe) Badge() badge {
	kind, text := "ok", "works"
	switch {
	case !p.Reachable:
		kind, text = "bad", "not reachable"
	case p.Error != "":
		kind, text = "bad", "does not work as it is set up"
	}
	b, _ := newBadge(kind, text) // the kinds are known
	return b
}

// advice is what a probe recommends where that differs from what is set: the fields of a form that sets it, and what it says.
type advice struct {
	Fields  []adviceField
	Changes []string
}

type adviceField struct{ Name, Value string }

func (u upstreamPages) show(c *ctx) error { return u.render(c, nil) }

// showApplied shows what was recommended in the form, where applying it was refused.
func (u upstreamPages) showApplied(c *ctx) error {
	c.form.Set(formField, "upstreams")
	return u.render(c, nil)
}

func (u upstreamPages) render(c *ctx, probes []management.UpstreamProbe) error {
	p, err := c.domainPage(u.path)
	if err != nil {
		return err
	}
	p.Setup = u.setup
	filled := len(p.Upstreams)
	if c.refusal != nil && c.form.Get(formField) == "upstreams" {
		filled = rows(c.form, "upstreams")
	}
	filled = min(filled, domain.MaxUpstreams)
	for i := range min(filled+1, domain.MaxUpstreams) {
		row := upstreamRow{At: "upstreams." + strconv.Itoa(i), New: i >= filled}
		if i < len(p.Upstreams) && !row.New {
			row.Upstream = p.Upstreams[i]
		}
		p.Rows = append(p.Rows, row)
	}
	for _, found := range probes {
		p.Probes = append(p.Probes, upstreamProbe{found})
	}
	p.Advice = adviseOn(p.Domain, probes)
	return c.render(u.page, p.Name+": upstreams", p)
}

// probe connects to the upstreams and shows what it found. It takes up to 10 s.
func (u upstreamPages) probe(c *ctx) error {
	found, err := c.plane.ProbeDomain(c.ctx, c.who, c.param("id"))
	if err != nil {
		return err
	}
	return u.render(c, found)
}

func (u upstreamPages) save(c *ctx) error {
	d, err := c.plane.PatchDomain(c.ctx, c.who, c.param("id"), c.upstreamsBody(), c.match())
	if err != nil {
		return err
	}
	c.flash("ok", "The upstreams are saved.")
	return c.redirect("/domains/" + d.ID + u.path)
}

// upstreamsBody makes the patch of a form of upstreams. A row that is marked to be removed is left out, and one in which nothing was
// typed; the list is replaced whole.
func (c *ctx) upstreamsBody() []byte {
	for i := range rows(c.form, "upstreams") {
		prefix := "upstreams." + strconv.Itoa(i) + "."
		if !c.form.Has(prefix + "_remove") {
			continue
		}
		for name := range c.form {
			if strings.HasPrefix(name, prefix) {
				delete(c.form, name)
			}
		}
	}
	c.form = renumber(c.form, "upstreams", []part{
		text("upstreams.*.dial"), text("upstreams.*.region"), text("upstreams.*.tls.server_name"), text("upstreams.*.tls.ca_pem"),
	})
	doc := map[string]any{"upstreams": []any{}}
	n := rows(c.form, "upstreams")
	if n > 0 {
		doc["upstreams"] = map[string]any{}
	}
	for i := range n {
		at := "upstreams." + strconv.Itoa(i) + "."
		text("").put(doc, at+"dial", c.form)
		text("").put(doc, at+"region", c.form)
		if c.form.Get(at+"_tls") == "on" {
			flag("").put(doc, at+"tls.insecure_skip_verify", c.form) // it is always there, and with it tls
			for _, name := range []string{"server_name", "ca_pem", "post_quantum"} {
				text("").put(doc, at+"tls."+name, c.form)
			}
		}
	}
	text("").put(doc, "proxy_protocol", c.form)
	out, err := json.Marshal(tidy(doc))
	if err != nil {
		panic(err) // strings, booleans and what holds them
	}
	return out
}

// adviseOn returns what the probes recommend for d; nil: nothing else than what is set.
func adviseOn(d *management.Domain, probes []management.UpstreamProbe) *advice {
	wanted := (&domain.Domain{Upstreams: d.Upstreams}).Clone().Upstreams
	a, proxy := new(advice), ""
	for i, found := range probes {
		if i >= len(wanted) || found.Recommend == nil {
			continue
		}
		u, rec := &wanted[i], found.Recommend
		switch {
		case rec.TLS == nil && u.TLS != nil:
			u.TLS = nil
			a.Changes = append(a.Changes, u.Dial+": plain TCP, without TLS")
		case rec.TLS != nil:
			if u.TLS == nil {
				u.TLS = &domain.UpstreamTLS{PostQuantum: domain.Prefer}
				a.Changes = append(a.Changes, u.Dial+": with TLS")
			}
			if name := rec.TLS.ServerName; name != "" && name != u.TLS.ServerName {
				u.TLS.ServerName = name
				a.Changes = append(a.Changes, u.Dial+": expect a certificate for "+name)
			}
			if policy := domain.PostQuantum(rec.TLS.PostQuantum); policy != "" && policy != u.TLS.PostQuantum && (policy != domain.Prefer || u.TLS.PostQuantum != "") {
				u.TLS.PostQuantum = policy
				a.Changes = append(a.Changes, u.Dial+": post-quantum "+string(policy))
			}
		}
		switch {
		case rec.ProxyProtocol == "":
		case proxy == "":
			proxy = rec.ProxyProtocol
		case proxy != rec.ProxyProtocol:
			proxy = "differ" // the setting is one for all: nothing fits
		}
	}
	sends := d.ProxyProtocol
	if known := []string{"off", "v1", "v2"}; slices.Contains(known, proxy) && proxy != string(sends) {
		sends = domain.ProxyProtocol(proxy)
		a.Changes = append(a.Changes, "PROXY protocol: "+proxy)
	}
	if len(a.Changes) == 0 || reflect.DeepEqual(wanted, d.Upstreams) && sends == d.ProxyProtocol {
		return nil
	}
	add := func(name, value string) { a.Fields = append(a.Fields, adviceField{name, value}) }
	for i, u := range wanted {
		row := upstreamRow{Upstream: u, At: "upstreams." + strconv.Itoa(i)}
		add(row.At+".dial", u.Dial)
		add(row.At+".region", u.Region)
		add(row.At+"._tls", row.Encrypts())
		if u.TLS == nil {
			continue
		}
		add(row.At+".tls.server_name", u.TLS.ServerName)
		add(row.At+".tls.ca_pem", u.TLS.CAPEM)
		add(row.At+".tls.post_quantum", string(u.TLS.PostQuantum))
		if u.TLS.InsecureSkipVerify {
			add(row.At+".tls.insecure_skip_verify", "true")
		}
	}
	add("proxy_protocol", string(sends))
	return a
}
