package management

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// audit adds to the log, in the transaction of the change, that who did action to object. before and after are what is
// shown of the object, JSON objects without secrets; nil where there is none.
func (p *Plane) audit(tx Tx, who *Principal, action, tenantID, object string, before, after any) error {
	event := &Event{
		ID: NewID(EventID), Time: p.now(), TenantID: tenantID, Actor: who.Actor(), Action: action, Object: object, RequestID: who.RequestID,
	}
	if who.ClientAddr.IsValid() {
		event.ClientIP = p.shownAddr(who.ClientAddr)
	}
	for to, v := range map[*json.RawMessage]any{&event.Before: before, &event.After: after} {
		if v == nil {
			*to = json.RawMessage("null")
			continue
		}
		text, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("writing the audit entry %s: %w", action, err)
		}
		*to = text
	}
	return tx.InsertEvent(event)
}

// shownAddr returns addr as it may be kept: as it is, or its /24 or /48 where the operator chose `client_ip prefix`.
func (p *Plane) shownAddr(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	if p.cfg.ClientIP != ClientIPPrefix {
		return addr.String()
	}
	return ClientPrefix(addr).String()
}

// ClientPrefix returns the network that stands for a client's address where single addresses are too much: /24, or /48 of IPv6.
func ClientPrefix(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 48
	if addr.Is4() {
		bits = 24
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // the zero Addr has none
	}
	return prefix
}

// FindEvents returns the audit log of the caller's tenant, newest first: those with lower IDs than before, at most limit. To
// operators of the platform it also tells what is the platform's: edge tokens, tenants, and who signed in.
func (p *Plane) FindEvents(ctx context.Context, who *Principal, filter EventFilter) (events []*Event, err error) {
	if err := who.Require(AuditRead); err != nil {
		return nil, err
	}
	if who.TenantID == "" && !who.System { // no tenant must never mean all
		return nil, Errorf(Forbidden, "This needs a tenant, and the caller belongs to none.")
	}
	filter.TenantID, filter.Platform = who.TenantID, who.Scopes.Has(Platform)
	err = p.store.View(ctx, func(tx Tx) error {
		events, err = tx.FindEvents(filter)
		return err
	})
	return events, err
}

// now returns the time in UTC, in microseconds: what both databases keep.
func (p *Plane) now() time.Time { return p.clock().UTC().Truncate(time.Microsecond) }
