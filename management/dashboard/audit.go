package dashboard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func auditRoutes() []route {
	return []route{
		{method: "GET", path: "/audit", scope: management.AuditRead, handle: showAudit},
		{method: "GET", path: "/audit/{id}", scope: management.AuditRead, handle: showEvent},
	}
}

const (
	eventRows    = 20
	eventChanges = 3   // of an event in the list
	mostChanges  = 40  // of an event on its own page
	valueShown   = 200 // bytes of a value
)

// auditPage is the data of the log.
type auditPage struct {
	Fault *summary
	Rows  []eventRow
	Next  string
	Asked bool
	API   string
}

// eventRow is an entry of the log.
type eventRow struct {
	*management.Event
	URL      string
	Who      string // a name for Actor; empty: none is known
	ByActor  string // links
	ByObject string
	Open     string // where the object is; empty: it is not, or it has no page
	Changes  []change
	More     int // changes that are left out
}

// change is a field that an event changed. Old or New is empty where there was nothing.
type change struct{ Field, Old, New string }

var auditFields = map[string]string{"actor": "Who", "action": "What", "object": "Object", "from": "From", "to": "To"}

func showAudit(c *ctx) error {
	page := auditPage{}
	err := page.load(c)
	if page.Fault = c.filterFault(err, auditFields); err != nil && page.Fault == nil {
		return err
	}
	return c.render("audit", "Audit log", page)
}

func (page *auditPage) load(c *ctx) error {
	filter := management.EventFilter{Actor: c.query("actor"), Action: c.query("action"), Object: c.query("object"), Before: c.query("cursor")}
	var err error
	if filter.From, err = readTime(c.query("from"), false); err != nil {
		return management.InvalidField("?from", "must be a day such as 2026-01-31")
	}
	if filter.To, err = readTime(c.query("to"), true); err != nil {
		return management.InvalidField("?to", "must be a day such as 2026-01-31")
	}
	if filter.Before != "" && !management.IsID(management.EventID, filter.Before) {
		return management.InvalidField("?cursor", "no cursor of this list: begin again without one")
	}
	page.Asked = filter.Actor+filter.Action+filter.Object+c.query("from")+c.query("to") != ""
	asked := []string{"actor", filter.Actor, "action", filter.Action, "object", filter.Object}
	for name, t := range map[string]time.Time{"from": filter.From, "to": filter.To} {
		if !t.IsZero() {
			asked = append(asked, name, t.Format(time.RFC3339))
		}
	}
	page.API = apiPath("/v1/audit", asked...)
	rows := c.page(eventRows).Limit
	filter.Limit = rows + 1 // one more tells whether there is a next page
	events, err := c.plane.FindEvents(c.ctx, c.who, filter)
	if err != nil {
		return err
	}
	if len(events) > rows {
		events = events[:rows]
		page.Next = events[rows-1].ID
	}
	names, err := c.actorNames()
	if err != nil {
		return err
	}
	for _, e := range events {
		row := c.eventRow(e, names)
		if row.More = len(row.Changes) - eventChanges; row.More > 0 {
			row.Changes = row.Changes[:eventChanges]
		}
		page.Rows = append(page.Rows, row)
	}
	return nil
}

// actorNames are e-mail addresses and names of keys by ID, as far as who looks may see them.
func (c *ctx) actorNames() (map[string]string, error) {
	names := map[string]string{"system": "the service itself"}
	if c.who.Require(management.MembersWrite) == nil {
		members, _, err := c.plane.FindMembers(c.ctx, c.who, management.Page{Limit: mostMembers})
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			names[m.UserID] = m.Email
		}
	}
	if c.who.Require(management.KeysWrite) == nil {
		keys, _, err := c.plane.FindAPIKeys(c.ctx, c.who, management.Page{Limit: 1000})
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			names[k.ID] = "API key " + k.Name
		}
	}
	return names, nil
}

func (c *ctx) eventRow(e *management.Event, names map[string]string) eventRow {
	row := eventRow{Event: e, URL: c.url("/audit/" + e.ID), Who: names[e.Actor], ByActor: c.url("/audit", "actor", e.Actor), Changes: changes(e.Before, e.After)}
	if e.Object == "" {
		return row
	}
	row.ByObject = c.url("/audit", "object", e.Object)
	if strings.HasSuffix(e.Action, ".deleted") {
		return row
	}
	for kind, path := range map[management.Kind]string{management.DomainID: "/domains/", management.APIKeyID: "/keys/", management.UserID: "/members/",
		management.EdgeTokenID: "/edges/tokens/", management.TenantID: "/tenants/"} {
		operators := kind == management.EdgeTokenID || kind == management.TenantID
		if management.IsID(kind, e.Object) && (!operators || c.who.Require(management.Platform) == nil) {
			row.Open = c.pageURL(path + e.Object)
		}
	}
	return row
}

// showEvent shows one entry with all that it changed.
func showEvent(c *ctx) error {
	missing := management.Errorf(management.NotFound, "There is no such entry.")
	id := c.param("id")
	if !management.IsID(management.EventID, id) {
		return missing
	}
	events, err := c.plane.FindEvents(c.ctx, c.who, management.EventFilter{Before: id + "0", Limit: 1}) // the first at or below it
	if err != nil {
		return err
	}
	if len(events) == 0 || events[0].ID != id {
		return missing
	}
	names, err := c.actorNames()
	if err != nil {
		return err
	}
	row := c.eventRow(events[0], names)
	if row.More = len(row.Changes) - mostChanges; row.More > 0 {
		row.Changes = row.Changes[:mostChanges]
	}
	return c.render("event", words(strings.ReplaceAll(events[0].Action, ".", " ")), row)
}

// changes compares two JSON objects, field by field.
func changes(before, after json.RawMessage) (all []change) {
	old, now := map[string]string{}, map[string]string{}
	flatten(old, "", before)
	flatten(now, "", after)
	fields := slices.Concat(slices.Collect(maps.Keys(old)), slices.Collect(maps.Keys(now)))
	slices.Sort(fields)
	for _, field := range slices.Compact(fields) {
		if old[field] != now[field] {
			all = append(all, change{field, old[field], now[field]})
		}
	}
	return all
}

const mostFields = 500 // of an object that is compared

// flatten writes the values of a JSON document by their paths: upstreams.0.dial. What is deeper, or more, than any of ours is left as JSON.
func flatten(to map[string]string, path string, raw json.RawMessage) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" || len(to) >= mostFields {
		return
	}
	join := func(key string) string {
		if path == "" {
			return key
		}
		return path + "." + key
	}
	deep := strings.Count(path, ".") >= 6
	switch {
	case raw[0] == '{' && !deep:
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) == nil {
			for _, key := range slices.Sorted(maps.Keys(object)) {
				flatten(to, join(key), object[key])
			}
			return
		}
	case raw[0] == '[' && !deep:
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) == nil {
			if texts, ok := plainList(list); ok {
				to[path] = shorten(strings.Join(texts, ", "))
				return
			}
			for i, value := range list {
				flatten(to, join(strconv.Itoa(i)), value)
			}
			return
		}
	}
	to[path] = shorten(plain(raw))
}

// plainList returns a list of simple values as texts.
func plainList(list []json.RawMessage) (texts []string, ok bool) {
	for _, value := range list {
		if value = bytes.TrimSpace(value); len(value) > 0 && (value[0] == '{' || value[0] == '[') {
			return nil, false
		}
		texts = append(texts, plain(value))
	}
	return texts, true
}

// plain writes a simple value for people.
func plain(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return string(raw)
	}
	if text == "" {
		return `""`
	}
	return text
}

func shorten(text string) string {
	if len(text) <= valueShown {
		return text
	}
	cut := valueShown
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return fmt.Sprintf("%s… (%d bytes)", text[:cut], len(text))
}
