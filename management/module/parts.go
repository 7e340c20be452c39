package module

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/dnscheck"
	"github.com/pqproxy/caddy-pqproxy/management/mail"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
	"github.com/pqproxy/caddy-pqproxy/probe"
)

// issuer is what apps for one-time passwords call the service where it has no URL.
const issuer = "pqproxy"

// passwordsAtOnce is how many passwords are hashed at a time: each takes a core and the memory that package auth says.
const passwordsAtOnce = 2

// parts are a Plane and what has to be closed after it.
type parts struct {
	plane  *management.Plane
	mailer *mail.Mailer // nil: no mail
}

// mailWait is how long mails that wait are still tried when the service ends.
const mailWait = 5 * time.Second

func (p *parts) close() {
	if p.mailer != nil {
		ctx, cancel := context.WithTimeout(context.Background(), mailWait)
		defer cancel()
		_ = p.mailer.Close(ctx) // what was not sent is in the log
	}
}

// assemble makes the Plane of these settings on an open store.
func assemble(s settings, k *keys, opened *store.Store, log *slog.Logger) (*parts, error) {
	resolver, err := dnscheck.New(dnscheck.Options{Servers: s.resolvers})
	if err != nil {
		return nil, fmt.Errorf("resolver: %w", err)
	}
	service := issuer
	if s.plane.PublicURL != nil {
		service = s.plane.PublicURL.Hostname()
	}
	made := management.Parts{
		Store: opened, Sealer: k.master, Passwords: auth.NewPasswords(passwordsAtOnce), Auth: auth.NewPlane(service, nil),
		Resolver: asker{resolver, &dnscheck.HTTPProver{Resolver: resolver, Policy: s.plane.UpstreamPolicy}}, Prober: prober{}, Log: log,
	}
	if k.signer != nil {
		made.Signer = k.signer
	}
	p := new(parts)
	if s.smtp != nil {
		p.mailer, err = mail.New(mail.Config{Server: s.smtp.Address, From: s.smtp.From, Username: s.smtp.Username, Password: s.smtp.Password, Log: log})
		if err != nil {
			return nil, fmt.Errorf("smtp: %w", err)
		}
		made.Mailer = p.mailer
	}
	config := s.plane
	config.SetupToken = k.setupToken
	if p.plane, err = management.New(config, made); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// asker is a management.Resolver.
type asker struct {
	resolver *dnscheck.Resolver
	prover   *dnscheck.HTTPProver
}

// Look asks DNS.
func (a asker) Look(ctx context.Context, q management.Lookup) management.Observation {
	request := dnscheck.Request{Name: q.Name, Ownership: q.Ownership, Issuers: q.Issuers}
	for _, t := range q.Targets {
		request.Targets = append(request.Targets, dnscheck.Target(t))
	}
	seen := a.resolver.Look(ctx, request)
	found := management.Observation{Traffic: finding(seen.Traffic), Ownership: finding(seen.Ownership), CAA: finding(seen.CAA)}
	for _, r := range seen.Records {
		found.Records = append(found.Records, management.Record(r))
	}
	return found
}

// Prove fetches a proof over HTTP.
func (a asker) Prove(ctx context.Context, name, token, want string) management.Finding {
	return finding(a.prover.Prove(ctx, name, token, want))
}

// PublicSuffix reports whether registries register names right under this one.
func (asker) PublicSuffix(name string) bool {
	suffix, _ := publicsuffix.PublicSuffix(name)
	return suffix == name
}

func finding(v dnscheck.Verdict) management.Finding {
	return management.Finding{State: management.Found(v.State), Detail: v.Detail}
}

// prober is a management.Prober.
type prober struct{}

// Probe probes the upstreams of a domain, connecting where the policy allows.
func (prober) Probe(ctx context.Context, d *domain.Domain, policy *netpolicy.Policy) []management.UpstreamProbe {
	dialer := &net.Dialer{Control: policy.Control}
	all := make([]probe.UpstreamOptions, len(d.Upstreams))
	for i, u := range d.Upstreams {
		all[i] = probe.UpstreamOptions{Dial: u.Dial, ProxyProtocol: string(d.ProxyProtocol), Asked: d.Name, DialContext: dialer.DialContext}
		if u.TLS == nil {
			continue
		}
		all[i].TLS = &probe.UpstreamTLS{ServerName: u.TLS.ServerName, PostQuantum: string(u.TLS.PostQuantum), InsecureSkipVerify: u.TLS.InsecureSkipVerify}
		if u.TLS.CAPEM != "" {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(u.TLS.CAPEM)) // package domain has read it
			all[i].TLS.RootCAs = roots
		}
	}
	found := make([]management.UpstreamProbe, len(all))
	for i, r := range probe.Upstreams(ctx, all) {
		found[i] = management.UpstreamProbe(*r)
	}
	return found
}

// Interface guards.
var (
	_ management.Resolver = asker{}
	_ management.Prober   = prober{}
)
