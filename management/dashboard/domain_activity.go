package dashboard

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// domainEvent is an entry of the audit log about a domain.
type domainEvent struct {
	*management.Event
	By      string
	Changed []changedMember
	More    int // that are left out
}

// changedMember is a member of the object that is another after the change; empty: it was not there.
type changedMember struct{ Name, Before, After string }

const (
	domainEvents   = 15
	mostOfValue    = 160 // bytes
	mostOfMembers  = 100
	shownMembers   = 5
	eventOfMyself  = "you"
	eventOfService = "this service"
)

func showDomainActivity(c *ctx) error {
	p, err := c.domainPage("/activity")
	if err != nil {
		return err
	}
	filter := management.EventFilter{Object: p.ID, Limit: domainEvents + 1, Before: c.query("cursor")}
	if filter.Before != "" && !management.IsID(management.EventID, filter.Before) {
		return management.InvalidField("?cursor", "no cursor of this list: begin again without one")
	}
	found, err := c.plane.FindEvents(c.ctx, c.who, filter)
	if err != nil {
		return err
	}
	if len(found) > domainEvents {
		found = found[:domainEvents]
		p.Next = found[domainEvents-1].ID
	}
	for _, e := range found {
		by := e.Actor
		switch by {
		case c.who.UserID:
			by = eventOfMyself
		case "system":
			by = eventOfService
		}
		one := domainEvent{Event: e, By: by, Changed: changedMembers(e.Before, e.After)}
		if one.More = len(one.Changed) - shownMembers; one.More > 0 {
			one.Changed = one.Changed[:shownMembers]
		}
		p.Events = append(p.Events, one)
	}
	return c.render("domain_activity", p.Name+": activity", p)
}

// changedMembers compares two JSON objects member by member. What is no object has none.
func changedMembers(before, after json.RawMessage) (changed []changedMember) {
	var was, is map[string]json.RawMessage
	if json.Unmarshal(before, &was) != nil {
		was = nil
	}
	if json.Unmarshal(after, &is) != nil {
		is = nil
	}
	names := maps.Clone(was)
	if names == nil {
		names = map[string]json.RawMessage{}
	}
	maps.Copy(names, is)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		from, to := shortJSON(was[name]), shortJSON(is[name])
		if bytes.Equal(compactJSON(was[name]), compactJSON(is[name])) || len(changed) == mostOfMembers {
			continue
		}
		changed = append(changed, changedMember{name, from, to})
	}
	return changed
}

func compactJSON(raw json.RawMessage) []byte {
	var out bytes.Buffer
	if len(raw) == 0 || json.Compact(&out, raw) != nil {
		return nil
	}
	return out.Bytes()
}

// shortJSON is a value for people: a text without its quotes, and not all of what is long.
func shortJSON(raw json.RawMessage) string {
	text := string(compactJSON(raw))
	var plain string
	if json.Unmarshal(raw, &plain) == nil {
		text = plain
	}
	if len(text) <= mostOfValue {
		return text
	}
	cut := mostOfValue
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
