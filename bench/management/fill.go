//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
)

// holders are the edges that have said of every domain that they hold its certificate.
const holders = 3

// filler puts a world into an empty database, with the management plane's own store and, for what edges say, its own
// reading of reports; in this process, before the measured one starts.
type filler struct {
	db    *database
	size  size
	store *store.Store
	plane *management.Plane
	edge  *management.Principal
	w     *world
	now   time.Time
	until time.Time // when the last record that is there before ended: the beginning of an hour
}

// fill fills a database, and says what it does.
func fill(ctx context.Context, d *database, s size, edges []*edge) (w *world, until time.Time, err error) {
	st, err := store.Open(ctx, store.Options{Driver: d.name, Source: d.source, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, until, err
	}
	defer st.Close()
	f := &filler{db: d, size: s, store: st, w: new(world), now: time.Now().UTC().Truncate(time.Microsecond)}
	f.until = f.now.Truncate(time.Hour)
	// It only reads reports: what it would seal, hash and ask for is not there.
	f.plane, err = management.New(management.Config{SetupToken: "none"}, management.Parts{
		Store: st, Sealer: struct{ management.Sealer }{}, Passwords: struct{ management.Passwords }{},
		Resolver: struct{ management.Resolver }{}, Prober: struct{ management.Prober }{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, until, err
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{fmt.Sprintf("%d tenants", s.Tenants), f.tenants},
		{"people of some of them", f.people},
		{fmt.Sprintf("%d domains", s.Domains), f.domains},
		{fmt.Sprintf("their certificates on %d edges", holders), func(ctx context.Context) error { return f.certificates(ctx, edges) }},
		{fmt.Sprintf("%d records", s.Records), func(ctx context.Context) error {
			return d.withoutIndexes(ctx, func() error { return f.records(ctx, edges) })
		}},
		{"the counters of as many", func(ctx context.Context) error { return f.counters(ctx, edges) }},
		{"the sums of these", f.sums},
		{"statistics", d.settle},
	} {
		begun := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, until, fmt.Errorf("filling in %s: %w", step.what, err)
		}
		fmt.Printf("%s: %s, %.1f s\n", d.name, step.what, time.Since(begun).Seconds())
	}
	return f.w, f.until, nil
}

// tenants adds the tenants, each with an API key, and the edges' token.
func (f *filler) tenants(ctx context.Context) error {
	secret := management.NewSecret(management.EdgeTokenSecret)
	token := &management.EdgeToken{ID: management.NewID(management.EdgeTokenID), Name: "edges", Prefix: secret.Prefix(), Hash: secret.Hash(), CreatedAt: f.now}
	f.w.token, f.edge = secret.Reveal(), &management.Principal{EdgeTokenID: token.ID}
	f.w.accounts = make([]account, f.size.Tenants)
	return f.store.Update(ctx, func(tx management.Tx) error {
		if err := tx.InsertEdgeToken(token); err != nil {
			return err
		}
		for i := range f.w.accounts {
			tenant := &management.Tenant{
				ID: management.NewID(management.TenantID), Name: fmt.Sprintf("Tenant %d", i), MaxDomains: f.size.Domains, Version: 1,
				CreatedAt: f.now, UpdatedAt: f.now,
			}
			secret := management.NewSecret(management.APIKeySecret)
			key := &management.APIKey{
				ID: management.NewID(management.APIKeyID), TenantID: tenant.ID, Name: "bench", Scopes: management.Scopes{management.All},
				Prefix: secret.Prefix(), Hash: secret.Hash(), Version: 1, CreatedAt: f.now,
			}
			if err := tx.InsertTenant(tenant); err != nil {
				return err
			}
			if err := tx.InsertAPIKey(key); err != nil {
				return err
			}
			f.w.accounts[i] = account{id: tenant.ID, key: secret.Reveal()}
		}
		return nil
	})
}

// typicalVisitors is how many typical tenants there are whose member looks at pages.
const typicalVisitors = 5

// people adds those who sign in: members of the large tenant and of typical ones, and an operator of the platform. They have one
// password: to hash one for each would only take time.
func (f *filler) people(ctx context.Context) error {
	f.w.password = rand.Text()
	hash, err := auth.NewPasswords(1).Hash(ctx, f.w.password)
	if err != nil {
		return err
	}
	f.w.visitors = make(map[string][]visitor)
	return f.store.Update(ctx, func(tx management.Tx) error {
		add := func(user string, account int) error {
			row := &management.User{
				ID: management.NewID(management.UserID), Email: fmt.Sprintf("%s-%d@example.com", user, account), Operator: user == platformOperator,
				PasswordHash: hash, CreatedAt: f.now, UpdatedAt: f.now,
			}
			f.w.visitors[user] = append(f.w.visitors[user], visitor{row.Email, account})
			return errors.Join(tx.InsertUser(row), tx.InsertMember(&management.Member{
				TenantID: f.w.accounts[account].id, UserID: row.ID, Role: management.Owner, JoinedAt: f.now, Version: 1,
			}))
		}
		err := errors.Join(add(largeTenant, 0), add(platformOperator, typicalAccount(typicalVisitors, f.size)))
		for i := range typicalVisitors {
			err = errors.Join(err, add(typicalTenant, typicalAccount(i, f.size)))
		}
		return err
	})
}

// One domain in so many is suspended by its own settings; the others are active.
const suspendedEach = 20

// domains adds the domains as they are when all of their life is behind them, each with a revision of its own.
func (f *filler) domains(ctx context.Context) error {
	n := f.size.Domains
	f.w.names, f.w.ids, f.w.owner = make([]string, n), make([]string, n), make([]int, n)
	const atOnce = 1000
	for from := 0; from < n; from += atOnce {
		err := f.store.Update(ctx, func(tx management.Tx) error {
			for i := from; i < min(from+atOnce, n); i++ {
				if err := f.domain(tx, i); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for i, owner := range f.w.owner {
		f.w.accounts[owner].domains = append(f.w.accounts[owner].domains, i)
	}
	return nil
}

func (f *filler) domain(tx management.Tx, i int) error {
	owner := ownerOf(i, f.size)
	tenant, name := f.w.accounts[owner].id, domainName(i, owner)
	settings, err := domain.Parse(fmt.Appendf(nil,
		`{"name":%q,"tenant":%q,"upstreams":[{"dial":"10.%d.%d.%d:8443","tls":{"server_name":"app-%07d.internal"}}],"proxy_protocol":"v1","suspended":%v}`,
		name, tenant, i>>16&0xff, i>>8&0xff, i&0xff, i, i%suspendedEach == suspendedEach-1), domain.Remote)
	if err != nil {
		return err
	}
	status := management.Active
	if settings.Suspended {
		status = management.Suspended
	}
	revision, err := tx.NextRevision()
	if err != nil {
		return err
	}
	found := management.Finding{State: management.FoundOK, At: f.now}
	const settled = 6 * time.Hour // how long until such a domain is checked again: the checks are spread over that
	row := &management.DomainRow{
		ID: management.NewID(management.DomainID), TenantID: tenant, Name: name, Settings: settings, Token: proofToken, Version: 1, Revision: revision,
		Proof: management.ProofTXT, ProvenAt: f.now, Status: status, ActivatedAt: f.now, DueAt: f.now.Add(settled * time.Duration(i) / time.Duration(f.size.Domains)),
		Facts: management.DomainFacts{
			DNS: found, TXT: found, CAA: management.Finding{State: management.FoundOff}, CheckedAt: f.now, PointedAt: f.now,
			Records: []management.Record{
				{Purpose: management.ForTraffic, Type: "A", Name: name, Value: target, Seen: []string{target}, OK: true},
				{Purpose: management.ForOwnership, Type: "TXT", Name: "_pqproxy." + name, Value: "pqproxy-verify=" + proofToken, Seen: []string{"pqproxy-verify=" + proofToken}, OK: true},
			},
		},
		CertificateNotAfter: f.notAfter(i), CreatedAt: f.now, UpdatedAt: f.now,
	}
	if err := tx.InsertDomain(row); err != nil {
		return err
	}
	event := &management.Event{
		ID: management.NewID(management.EventID), Time: f.now, TenantID: tenant, Actor: "system", Action: "domain.created", Object: row.ID,
		After: settings.AppendJSON(nil),
	}
	if err := tx.InsertEvent(event); err != nil {
		return err
	}
	shown := settings.Clone()
	shown.Suspended = false
	f.w.names[i], f.w.ids[i], f.w.owner[i] = name, row.ID, owner
	return tx.PutFeedRecord(&management.FeedRecord{
		Name: name, Revision: revision, DomainID: row.ID, TenantID: tenant, Settings: shown.AppendJSON(nil), Suspended: settings.Suspended,
	})
}

// notAfter is when the certificate of a domain ends: they are of 90 days, and renewed when 30 are left.
func (f *filler) notAfter(i int) time.Time {
	const least, renewals = 30, 60 // days
	return f.now.Truncate(time.Second).Add(24 * time.Hour * time.Duration(least+i*7%renewals))
}

// report has the management plane take a report.
func (f *filler) report(ctx context.Context, e *edge, b *edgereport.Builder, revision uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var body bytes.Buffer
	if err := b.WriteTo(&body, e.head(revision)); err != nil {
		return err
	}
	_, err := f.plane.Report(ctx, f.edge, &body)
	return err
}

// certificates has a few edges say that they hold all certificates and have the set in force.
func (f *filler) certificates(ctx context.Context, edges []*edge) error {
	for _, e := range edges[:holders] {
		b := new(edgereport.Builder)
		for i, name := range f.w.names {
			notAfter := f.notAfter(i)
			state := edgereport.CertificateState{Name: name, Source: "acme", Issuer: "Bench CA", NotAfter: &notAfter, State: edgereport.CertificateValid}
			if b.AddCertificate(state) {
				continue
			}
			if err := f.report(ctx, e, b, 0); err != nil {
				return err
			}
			b = new(edgereport.Builder)
			b.AddCertificate(state)
		}
		if err := f.report(ctx, e, b, uint64(len(f.w.names))); err != nil {
			return err
		}
	}
	return nil
}

// copies is how many times the records are there, each copy later than the one before: to have all of them reported would
// take most of a run.
const copies = 10

// records has two edges report what they relayed in the first of the days before, and copies that over the rest.
func (f *filler) records(ctx context.Context, edges []*edge) error {
	const atOnce = edgereport.MaxConnections
	first := f.size.Records / copies
	batches := (first + atOnce - 1) / atOnce
	total := time.Duration(f.size.Days) * 24 * time.Hour
	over := total / copies / time.Duration(batches)
	const side = 2
	var all sync.WaitGroup
	faults := make([]error, side)
	for k := range side {
		all.Go(func() {
			t := newTraffic(f.w, uint64(k))
			for n := k; n < batches && faults[k] == nil; n += side {
				b := t.batch(min(atOnce, first-n*atOnce), f.until.Add(-total+over*time.Duration(n)), over, nil)
				faults[k] = f.report(ctx, edges[k], &b.Builder, uint64(len(f.w.names)))
			}
		})
	}
	all.Wait()
	return errors.Join(append(faults, f.db.repeatRecords(ctx, copies-1, total/copies))...)
}

// counters has an edge report the counters of as many connections as there are records. They are those of an edge that could not
// report for long, by day, and by hour for the last one: by the minute they would be most of what there is to fill in.
func (f *filler) counters(ctx context.Context, edges []*edge) error {
	const day = 24 * time.Hour
	total := time.Duration(f.size.Days) * day
	begun, byHour := f.until.Add(-total), f.until.Add(-day)
	t, counted := newTraffic(f.w, 2), make(counts)
	for i := range f.size.Records {
		c, number := t.connection(begun.Add(total * time.Duration(i) / time.Duration(f.size.Records)))
		if c.Time.Before(byHour) {
			counted.add(&c, number, day)
		} else {
			counted.add(&c, number, time.Hour)
		}
	}
	return f.reportCounters(ctx, edges[0], counted)
}

// reportCounters has an edge report counters, in as many reports as they take.
func (f *filler) reportCounters(ctx context.Context, e *edge, counted counts) error {
	b := new(edgereport.Builder)
	for _, counter := range counted {
		if b.AddCounter(*counter) {
			continue
		}
		if err := f.report(ctx, e, b, uint64(len(f.w.names))); err != nil {
			return err
		}
		b = new(edgereport.Builder)
		b.AddCounter(*counter)
	}
	return f.report(ctx, e, b, uint64(len(f.w.names)))
}

// sums adds up what was counted, in larger pieces than the management plane does beside people who wait.
func (f *filler) sums(ctx context.Context) error {
	const atOnce = 20_000
	for {
		n, err := f.store.FoldUsage(ctx, f.now, atOnce)
		if err != nil || n < atOnce {
			return err
		}
	}
}
