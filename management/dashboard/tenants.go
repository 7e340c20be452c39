package dashboard

import (
	"strconv"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func tenantRoutes() []route {
	const scope = management.Platform
	return []route{
		{method: "GET", path: "/tenants", scope: scope, handle: showTenants},
		{method: "POST", path: "/tenants", scope: scope, handle: createTenant, again: showTenants},
		{method: "GET", path: "/tenants/{id}", scope: scope, handle: showTenant},
		{method: "POST", path: "/tenants/{id}", scope: scope, handle: updateTenant, again: showTenant},
	}
}

const tenantRows = 40

// tenantsPage is the data of the list of tenants.
type tenantsPage struct {
	Rows []*management.Tenant
	Next string
	Made *management.Tenant // just now; else nil
	Link string             // of its owner's invitation: told once
}

func showTenants(c *ctx) error { return c.renderTenants(tenantsPage{}) }

func (c *ctx) renderTenants(page tenantsPage) (err error) {
	if page.Rows, page.Next, err = c.plane.FindTenants(c.ctx, c.who, c.page(tenantRows)); err != nil {
		return err
	}
	return c.render("tenants", "Tenants", page)
}

// limitOf reads the field max_domains: nil where it is empty. What is no number is one that Plane refuses, together with all other faults.
func (c *ctx) limitOf() *int {
	text := strings.TrimSpace(c.value("max_domains"))
	if text == "" {
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		n = -1
	}
	return &n
}

func createTenant(c *ctx) error {
	made, invited, err := c.plane.CreateTenant(c.ctx, c.who, management.NewTenant{
		Name: c.value("name"), OwnerEmail: strings.TrimSpace(c.value("owner_email")), Trusted: c.form.Has("trusted"), MaxDomains: c.limitOf(),
	})
	switch {
	case err != nil:
		return err
	case invited == nil:
		c.flash("ok", "The tenant "+made.Name+" is made, and you own it.")
	case invited.URL.Reveal() == "":
		c.flash("ok", "The tenant "+made.Name+" is made. The invitation is on its way to "+invited.Email+".")
	default:
		return c.renderTenants(tenantsPage{Made: made, Link: c.absolute(invited.URL.Reveal())})
	}
	return c.redirect("/tenants")
}

func showTenant(c *ctx) error {
	id := c.param("id")
	for cursor := ""; ; {
		tenants, next, err := c.plane.FindTenants(c.ctx, c.who, management.Page{Limit: 1000, Cursor: cursor})
		if err != nil {
			return err
		}
		for _, t := range tenants {
			if t.ID == id {
				return c.render("tenant", t.Name, t)
			}
			if t.ID > id {
				next = "" // they come by ID
			}
		}
		if cursor = next; cursor == "" {
			return management.Errorf(management.NotFound, "There is no such tenant.")
		}
	}
}

func updateTenant(c *ctx) error {
	name, suspended, trusted := c.value("name"), c.form.Has("suspended"), c.form.Has("trusted")
	update := management.TenantUpdate{Name: &name, Suspended: &suspended, Trusted: &trusted, MaxDomains: c.limitOf()}
	if update.MaxDomains == nil {
		update.MaxDomains = new(-1) // it has one: empty is no number
	}
	tenant, err := c.plane.UpdateTenant(c.ctx, c.who, c.param("id"), update, c.match())
	if err != nil {
		return err
	}
	if tenant.Suspended {
		c.flash("warn", "Saved. "+tenant.Name+" is suspended: its domains are not served, and it can only read.")
	} else {
		c.flash("ok", "Saved "+tenant.Name+".")
	}
	return c.redirect("/tenants/" + tenant.ID)
}
