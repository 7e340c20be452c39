package module

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/dnscheck"
	"github.com/pqproxy/caddy-pqproxy/management/mail"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/netpolicy"
)

// settings are an App's, checked, with placeholders replaced and defaults filled in. They hold secrets: nothing prints them.
type settings struct {
	fingerprint string // of everything below: the same where a reload changed nothing
	directory   string // for what is made at the first start

	driver, source string
	setupToken     string   // empty: the file's
	masterKeys     []string // base64; empty: the file's
	signingKey     string   // file
	resolvers      []string // host:port
	smtp           *SMTP
	rateLimit      int
	plane          management.Config // SetupToken is filled in when it is known
}

// resolve checks the settings, all of them, and returns every fault with the option's name.
func (a *App) resolve(repl *caddy.Replacer) (settings, error) {
	r := resolver{repl: repl}
	s := settings{directory: filepath.Join(caddy.AppDataDir(), "pqproxy"), signingKey: r.plain("signing_key", a.SigningKey)}

	s.driver, s.source = r.database(a.Database, s.directory)
	if a.SetupToken != "" {
		s.setupToken = r.secret("setup_token", a.SetupToken)
	}
	for _, key := range a.MasterKeys {
		s.masterKeys = append(s.masterKeys, strings.TrimSpace(r.secret("master_key", key)))
	}
	if s.driver == store.Postgres && len(a.MasterKeys) == 0 {
		r.faultf("master_key", "is required with postgres, since all instances need the same: write `master_key {file./path}`, with 32 random bytes in base64 in the file")
	}
	for _, address := range a.Resolvers {
		s.resolvers = append(s.resolvers, r.resolver(address))
	}
	if _, err := dnscheck.New(dnscheck.Options{Servers: s.resolvers}); err != nil && len(r.faults) == 0 {
		r.faults = append(r.faults, err) // names the option
	}
	s.smtp = r.smtp(a.SMTP)

	s.rateLimit = 20
	if a.RateLimit != nil {
		if s.rateLimit = *a.RateLimit; s.rateLimit < 0 {
			r.faultf("rate_limit", "is a number of requests a second, or 0 for no limit, not %d", s.rateLimit)
		}
	}
	s.plane = management.Config{
		PublicURL: r.publicURL(a.PublicURL),
		Targets:   r.targets(a.Targets),
		Retention: management.Retention{
			Connections: r.retention("connections", a.Retention.Connections), Usage: r.retention("usage", a.Retention.Usage), Audit: r.retention("audit", a.Retention.Audit),
		},
		SignupOpen: r.word("signup", a.Signup, "closed", "open") == "open",
		ClientIP:   r.word("client_ip", a.ClientIP, management.ClientIPFull, management.ClientIPPrefix),
	}
	for _, source := range a.CertificateSources {
		known := r.word("certificate_sources", source, string(domain.ACME), string(domain.BYOC), string(domain.Internal))
		if slices.Contains(s.plane.CertificateSources, domain.CertificateSource(known)) {
			r.faultf("certificate_sources", "names %s twice", known)
		}
		s.plane.CertificateSources = append(s.plane.CertificateSources, domain.CertificateSource(known))
	}
	allow := make([]string, len(a.UpstreamPolicy.Allow))
	for i, entry := range a.UpstreamPolicy.Allow {
		allow[i] = r.plain("upstream_policy", entry)
	}
	policy, err := netpolicy.New(allow)
	if err != nil {
		r.faultf("upstream_policy", "%w", err)
	}
	s.plane.UpstreamPolicy = policy

	s.fingerprint = fingerprint(a, &s, allow)
	return s, errors.Join(r.faults...)
}

// fingerprint is a digest over everything that was given, as it was written and as it is with placeholders replaced. It never
// leaves the process: a short secret could be guessed from it.
func fingerprint(a *App, s *settings, allow []string) string {
	publicURL := ""
	if s.plane.PublicURL != nil {
		publicURL = s.plane.PublicURL.String()
	}
	text, err := json.Marshal([]any{a, publicURL, s.directory, s.driver, s.source, s.setupToken, s.masterKeys, s.signingKey, s.resolvers, s.smtp, s.rateLimit, s.plane.Targets, allow})
	if err != nil {
		panic(err) // strings and numbers alone
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// resolver replaces placeholders and collects faults.
type resolver struct {
	repl   *caddy.Replacer
	faults []error
}

func (r *resolver) faultf(option, format string, args ...any) {
	r.faults = append(r.faults, fmt.Errorf(option+" "+format, args...))
}

// plain replaces the placeholders of a value that is no secret.
func (r *resolver) plain(option, value string) string {
	replaced, err := r.repl.ReplaceOrErr(value, true, true)
	if err != nil {
		r.faultf(option, "has a placeholder that is empty or unknown: %w", err)
	}
	return replaced
}

// secret replaces the placeholder that value has to be: a secret in the config would be shown by the admin API and stand in
// Caddy's autosave file.
func (r *resolver) secret(option, value string) string {
	if !isPlaceholder(value) {
		r.faultf(option, "is a secret, which must not stand in the config: write {env.NAME} or {file./path}")
		return ""
	}
	replaced := r.repl.ReplaceKnown(value, "")
	if replaced = strings.TrimSpace(replaced); replaced == "" || replaced == value {
		r.faultf(option, "is empty: nothing is set behind %s", value)
		return ""
	}
	return replaced
}

func isPlaceholder(value string) bool {
	return (strings.HasPrefix(value, "{env.") || strings.HasPrefix(value, "{file.")) && strings.IndexByte(value, '}') == len(value)-1
}

// word returns value where it is one of words, the first where it is empty.
func (r *resolver) word(option, value string, words ...string) string {
	if value == "" {
		return words[0]
	}
	if !slices.Contains(words, value) {
		r.faultf(option, "is one of %s, not %q", strings.Join(words, ", "), value)
	}
	return value
}

func (r *resolver) database(d Database, directory string) (driver, source string) {
	driver = r.word("database", d.Driver, store.SQLite, store.Postgres)
	switch {
	case driver != store.SQLite && driver != store.Postgres:
		return driver, ""
	case driver == store.SQLite && d.Source == "":
		return driver, filepath.Join(directory, "management.db")
	case driver == store.SQLite:
		return driver, r.plain("database", d.Source)
	case d.Source == "":
		r.faultf("database", "postgres needs a URL such as postgres://pqproxy:{env.PGPASSWORD}@db.internal/pqproxy")
		return driver, ""
	}
	if hasPassword(placeholderless(d.Source)) {
		r.faultf("database", "has a password, which must not stand in the config: write {env.NAME} or {file./path} in its place")
		return driver, ""
	}
	replaced, err := r.databaseURL(d.Source)
	if err != nil {
		r.faultf("database", "has a placeholder that is empty or unknown: %w", err)
		return driver, ""
	}
	if u, err := url.Parse(replaced); err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		r.faultf("database", "postgres needs a URL that begins with postgres://") // the parser's error would quote the password
	}
	return driver, replaced
}

// hasPassword reports whether a URL has a password that is no placeholder.
func hasPassword(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false // as a whole it is refused later
	}
	passwords := append(u.Query()["password"], u.Query()["sslpassword"]...)
	if password, ok := u.User.Password(); ok {
		passwords = append(passwords, password)
	}
	return slices.ContainsFunc(passwords, func(p string) bool { return p != "" && p != placeholderMark })
}

// databaseURL replaces the placeholders of a URL. What stands for a part of it may have any characters: a password is written as
// it is, not as URLs want it. What stands for all of it is a URL already.
func (r *resolver) databaseURL(text string) (string, error) {
	masked := []byte(text) // without what placeholders have in them, such as slashes
	for i, within := 0, false; i < len(masked); i++ {
		within = within || masked[i] == '{'
		if within {
			within = masked[i] != '}'
			masked[i] = '_'
		}
	}
	begin := strings.Index(string(masked), "://")
	if begin < 0 {
		whole, err := r.repl.ReplaceOrErr(text, true, true)
		return strings.TrimSpace(whole), err
	}
	begin += len("://")
	authority, query := len(masked), len(masked)
	if i := strings.IndexByte(string(masked), '?'); i >= begin {
		authority, query = i, i
	}
	if i := strings.IndexByte(string(masked[begin:authority]), '/'); i >= 0 {
		authority = begin + i
	}
	user := begin + strings.LastIndexByte(string(masked[begin:authority]), '@') + 1

	var all strings.Builder
	for _, part := range []struct {
		text   string
		escape bool
	}{{text[:begin], false}, {text[begin:user], true}, {text[user:query], false}, {text[query:], true}} {
		filled, err := r.repl.ReplaceFunc(part.text, func(name string, value any) (any, error) {
			v := strings.TrimSpace(caddy.ToString(value))
			if v == "" {
				return nil, fmt.Errorf("nothing is set behind {%s}", name)
			}
			if part.escape {
				v = strings.ReplaceAll(url.QueryEscape(v), "+", "%20")
			}
			return v, nil
		})
		if err != nil {
			return "", err
		}
		all.WriteString(filled)
	}
	return all.String(), nil
}

// placeholderMark stands for a placeholder in a URL, where braces would be no URL.
const placeholderMark = "PLACEHOLDER"

// placeholderless replaces each placeholder by placeholderMark.
func placeholderless(text string) string {
	var b strings.Builder
	for {
		before, rest, opens := strings.Cut(text, "{")
		b.WriteString(before)
		_, after, closes := strings.Cut(rest, "}")
		if !opens || !closes {
			return b.String()
		}
		b.WriteString(placeholderMark)
		text = after
	}
}

func (r *resolver) publicURL(text string) *url.URL {
	if text = r.plain("public_url", text); text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		if err != nil || u.User != nil {
			text = "…" // there may be a password in it
		}
		r.faultf("public_url", "is a URL such as https://console.example.com, without a query, not %q", text)
		return nil
	}
	return u
}

func (r *resolver) targets(written []Target) (targets []management.Target) {
	for _, t := range written {
		value := r.plain("target", t.Value)
		addr, err := netip.ParseAddr(value)
		switch t.Type {
		case "a":
			if err != nil || !addr.Is4() {
				r.faultf("target", "a takes an IPv4 address, not %q", value)
			}
		case "aaaa":
			if err != nil || !addr.Is6() || addr.Is4In6() || addr.Zone() != "" {
				r.faultf("target", "aaaa takes an IPv6 address, not %q", value)
			}
		case "cname":
			name, nameErr := domain.NormalName(value)
			if nameErr != nil || strings.HasPrefix(name, "*.") {
				r.faultf("target", "cname takes a host name, not %q", value)
			}
			targets = append(targets, management.Target{Type: t.Type, Value: name})
			continue
		default:
			r.faultf("target", "is a, aaaa or cname and a value, not %q", t.Type)
		}
		targets = append(targets, management.Target{Type: t.Type, Value: addr.String()})
	}
	return targets
}

// resolver returns the address of a DNS server with its port.
func (r *resolver) resolver(text string) string {
	text = r.plain("resolver", text)
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(addr, 53).String()
	}
	if !isHostPort(text) {
		r.faultf("resolver", "is the address of a DNS server, with or without a port, not %q", text)
	}
	return text
}

func (r *resolver) smtp(written *SMTP) *SMTP {
	if written == nil {
		return nil
	}
	s := SMTP{Address: r.plain("smtp", written.Address), From: r.plain("smtp from", written.From), Username: r.plain("smtp username", written.Username)}
	if !isHostPort(s.Address) {
		r.faultf("smtp", "takes host:port, not %q", s.Address)
	}
	if from, err := netmail.ParseAddress(s.From); err != nil {
		r.faultf("smtp", "from is the address that mails come from, not %q", s.From)
	} else if err := mail.CheckAddress(from.Address); err != nil {
		r.faultf("smtp", "from: %w", err)
	}
	if written.Password != "" {
		s.Password = r.secret("smtp password", written.Password)
	}
	if (s.Username == "") != (written.Password == "") {
		r.faultf("smtp", "needs both username and password, or neither")
	}
	return &s
}

// isHostPort reports whether text is a host and the number of a port.
func isHostPort(text string) bool {
	host, port, err := net.SplitHostPort(text)
	n, portErr := strconv.ParseUint(port, 10, 16)
	return err == nil && portErr == nil && host != "" && n > 0
}

func (r *resolver) retention(option string, d caddy.Duration) time.Duration {
	if d < 0 {
		r.faultf("retention", "%s is negative", option)
	}
	return time.Duration(d)
}
