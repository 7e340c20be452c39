package dashboard

import (
	"errors"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func keyRoutes() []route {
	const scope = management.KeysWrite
	return []route{
		{method: "GET", path: "/keys", scope: scope, handle: showKeys},
		{method: "POST", path: "/keys", scope: scope, handle: createKey, again: showKeys},
		{method: "GET", path: "/keys/{id}", scope: scope, handle: showKey},
		{method: "POST", path: "/keys/{id}/rotate", scope: scope, handle: rotateKey, again: showKey},
		{method: "POST", path: "/keys/{id}/revoke", scope: scope, handle: revokeKey, again: showKey},
	}
}

const keyRows = 30

// keysPage is the data of the list of API keys.
type keysPage struct {
	Rows   []keyRow
	Next   string
	Scopes []option           // that who looks can give
	Made   *management.APIKey // just now; else nil
	Secret string             // of it: told once

	Example map[string]any // of a body for the API
}

// keyPage is the data of the page of one key.
type keyPage struct {
	keyRow
	Secret string // a new one: told once
}

type keyRow struct {
	*management.APIKey
	Scopes []string
	Ends   badge
}

func showKeys(c *ctx) error { return c.renderKeys(keysPage{}) }

func (c *ctx) renderKeys(page keysPage) error {
	keys, next, err := c.plane.FindAPIKeys(c.ctx, c.who, c.page(keyRows))
	if err != nil {
		return err
	}
	for _, k := range keys {
		page.Rows = append(page.Rows, keyRowOf(k, c.now()))
	}
	page.Next, page.Scopes = next, c.scopeOptions()
	page.Example = map[string]any{"name": "deploy", "scopes": []management.Scope{management.DomainsRead}, "expires_at": c.now().UTC().AddDate(1, 0, 0).Truncate(24 * time.Hour)}
	return c.render("keys", "API keys", page)
}

func keyRowOf(k *management.APIKey, now time.Time) keyRow {
	row := keyRow{APIKey: k}
	for _, s := range k.Scopes {
		row.Scopes = append(row.Scopes, string(s))
	}
	kind, text := "ok", ""
	switch left := k.ExpiresAt.Sub(now); {
	case k.ExpiresAt.IsZero():
		kind, text = "off", "never"
	case left <= 0:
		kind, text = "bad", "ended"
	case left < soon:
		kind, text = "warn", relative(k.ExpiresAt, now)
	default:
		text = relative(k.ExpiresAt, now)
	}
	row.Ends, _ = newBadge(kind, text) // the kinds are known
	return row
}

// scopeOptions are the scopes that who looks has, and so can give.
func (c *ctx) scopeOptions() (all []option) {
	for _, o := range []option{
		{Value: string(management.DomainsRead), Hint: "See domains, their records and certificates."},
		{Value: string(management.DomainsWrite), Hint: "Add, change and remove domains."},
		{Value: string(management.CertificatesWrite), Hint: "Upload and remove certificates."},
		{Value: string(management.ConnectionsRead), Hint: "Read records of connections, with clients' addresses."},
		{Value: string(management.UsageRead), Hint: "Read counters and reports."},
		{Value: string(management.KeysWrite), Hint: "Make and revoke API keys."},
		{Value: string(management.MembersWrite), Hint: "Invite, change and remove members."},
		{Value: string(management.AuditRead), Hint: "Read the audit log."},
		{Value: string(management.All), Hint: "All of the above, and the tenant itself."},
		{Value: string(management.Platform), Hint: "Edges, edge tokens and all tenants. It works while you are an operator of the platform."},
	} {
		if o.Text = o.Value; c.who.Scopes.Has(management.Scope(o.Value)) {
			all = append(all, o)
		}
	}
	return all
}

func createKey(c *ctx) error {
	wanted := management.NewAPIKey{Name: c.value("name")}
	for _, s := range c.form["scopes"] {
		wanted.Scopes = append(wanted.Scopes, management.Scope(s))
	}
	ends, unread := readTime(c.value("expires_at"), true)
	if wanted.ExpiresAt = ends; unread != nil {
		wanted.ExpiresAt = time.Unix(0, 0) // refused as past, together with all other faults
	}
	key, secret, err := c.plane.CreateAPIKey(c.ctx, c.who, wanted)
	if e, ok := errors.AsType[*management.Error](err); ok && unread != nil {
		for i, fault := range e.Faults {
			if fault.Pointer == "/expires_at" {
				e.Faults[i].Detail = "must be a day such as 2026-12-31, or empty"
			}
		}
	}
	if err != nil {
		return atField(err, "/scopes")
	}
	return c.renderKeys(keysPage{Made: key, Secret: secret.Reveal()})
}

// atField has a refusal of too much for the caller shown at the field that asked for it.
func atField(err error, pointer string) error {
	if e, ok := errors.AsType[*management.Error](err); ok && e.Code == management.Forbidden && len(e.Faults) == 0 {
		at := *e
		at.Faults = []management.Fault{{Pointer: pointer, Detail: e.Detail}}
		return &at
	}
	return err
}

// findKey finds a key of the tenant: there are not many.
func (c *ctx) findKey() (*management.APIKey, error) {
	keys, _, err := c.plane.FindAPIKeys(c.ctx, c.who, management.Page{Limit: 1000})
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.ID == c.param("id") {
			return k, nil
		}
	}
	return nil, management.Errorf(management.NotFound, "There is no such API key.")
}

func showKey(c *ctx) error {
	key, err := c.findKey()
	if err != nil {
		return err
	}
	return c.render("key", "API key "+key.Name, keyPage{keyRow: keyRowOf(key, c.now())})
}

func rotateKey(c *ctx) error {
	key, secret, err := c.plane.RotateAPIKey(c.ctx, c.who, c.param("id"))
	if err != nil {
		return err
	}
	return c.render("key", "API key "+key.Name, keyPage{keyRowOf(key, c.now()), secret.Reveal()})
}

func revokeKey(c *ctx) error {
	if err := c.plane.DeleteAPIKey(c.ctx, c.who, c.param("id")); err != nil {
		return err
	}
	c.flash("ok", "The API key is revoked: nothing gets in with it any more.")
	return c.redirect("/keys")
}
