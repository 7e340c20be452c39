package pqproxy

import (
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// allGroups are the groups that a client of crypto/tls can have.
var allGroups = []tls.CurveID{
	tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024,
	tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521,
}

func onlyGroup(g tls.CurveID) func(*tls.Config) {
	return func(cfg *tls.Config) { cfg.CurvePreferences = []tls.CurveID{g} }
}

// TestGroupPolicies connects with every group alone under every policy: exactly the policy's groups are
// negotiated, the rest is refused with handshake_failure before anything is opened.
func TestGroupPolicies(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	want := map[string][]tls.CurveID{
		"prefer":  allGroups[:6],
		"require": allGroups[:3],
		"off":     allGroups[3:6],
	}
	for _, policy := range []string{"prefer", "require", "off"} {
		e.load(fmt.Sprintf(`domain app.example.com {
			upstream %s
			post_quantum %s
			certificate $CHAIN $KEY
		}`, up.Addr(), policy))
		for _, g := range allGroups {
			before := up.Accepted()
			c, err := e.handshake(e.client("app.example.com", onlyGroup(g)))
			if slices.Contains(want[policy], g) {
				if err != nil {
					t.Errorf("%s with %s: %v", policy, g, err)
					continue
				}
				echo(t, c, "hi")
				c.Close()
				r := e.log.nextRecord()
				if r.str("group") != g.String() || r["post_quantum"] != isPostQuantum(g) || r["offered_post_quantum"] != isPostQuantum(g) {
					t.Errorf("%s with %s: record has group %s, post_quantum %v, offered %v", policy, g, r.str("group"), r["post_quantum"], r["offered_post_quantum"])
				}
				continue
			}
			if alert := alertOfHandshake(err); alert != 40 {
				t.Errorf("%s with %s: alert %d (%v), want handshake_failure", policy, g, alert, err)
			}
			if r := e.log.nextRecord(); r.str("end_reason") != "no_common_group" {
				t.Errorf("%s with %s: end_reason %s", policy, g, r.str("end_reason"))
			}
			if up.Accepted() != before {
				t.Errorf("%s with %s: a hello that cannot succeed reached the upstream", policy, g)
			}
		}
	}
}

// TestUpstreamGroupPolicies is the same towards upstreams.
func TestUpstreamGroupPolicies(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	for _, test := range []struct {
		policy string
		has    tls.CurveID
		reason string // empty: it works
	}{
		{"prefer", tls.X25519MLKEM768, ""},
		{"prefer", tls.SecP384r1MLKEM1024, ""}, // by HelloRetryRequest
		{"prefer", tls.X25519, ""},
		{"require", tls.SecP256r1MLKEM768, ""},
		{"require", tls.X25519, "upstream_group"},
		{"off", tls.CurveP256, ""},
		{"off", tls.X25519MLKEM768, "upstream_tls"},
	} {
		t.Run(test.policy+"/"+test.has.String(), func(t *testing.T) {
			cfg := &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(t, "app.internal")}, CurvePreferences: []tls.CurveID{test.has}}
			up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{TLS: cfg})
			e.load(fmt.Sprintf(`domain app.example.com {
				upstream %s {
					tls_server_name app.internal
					tls_ca $CA
					tls_post_quantum %s
				}
				certificate $CHAIN $KEY
			}`, up.Addr(), test.policy))
			c := e.dial(e.client("app.example.com"))
			if test.reason == "" {
				echo(t, c, "hi")
				c.Close()
			} else if _, end := pqtest.ReadToEnd(t, c); end != pqtest.RST {
				t.Errorf("the client saw %s, want a reset", end)
			}
			r := e.log.nextRecord()
			if test.reason != "" {
				if r.str("end_reason") != test.reason {
					t.Errorf("end_reason %s (%s), want %s", r.str("end_reason"), r.str("error"), test.reason)
				}
				return
			}
			if r.str("upstream_group") != test.has.String() || r["upstream_post_quantum"] != isPostQuantum(test.has) {
				t.Errorf("record has upstream_group %s, upstream_post_quantum %v", r.str("upstream_group"), r["upstream_post_quantum"])
			}
		})
	}
}

// TestWildcards shows that an exact name beats a wildcard and that a wildcard covers one label.
func TestWildcards(t *testing.T) {
	e := startEdge(t, "")
	exact, wild := pqtest.StartUpstream(t, pqtest.UpstreamConfig{}), pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	e.load(fmt.Sprintf(`
		domain a.wild.example.com {
			upstream %s
			certificate $CHAIN $KEY
		}
		domain *.wild.example.com {
			upstream %s
			certificate $CHAIN $KEY
		}`, exact.Addr(), wild.Addr()))
	for name, want := range map[string]*pqtest.Upstream{"a.wild.example.com": exact, "B.Wild.example.com": wild} {
		c := e.dial(e.client(name))
		echo(t, c, name)
		c.Close()
		if r := e.log.nextRecord(); r.str("upstream") != want.Addr() || r.str("server_name") != strings.ToLower(name) {
			t.Errorf("%s went to %s as %s", name, r.str("upstream"), r.str("server_name"))
		}
	}
	for _, name := range []string{"wild.example.com", "a.b.wild.example.com"} {
		if _, err := e.handshake(e.client(name)); alertOfHandshake(err) != 112 {
			t.Errorf("%s: %v, want unrecognized_name", name, err)
		}
		if r := e.log.nextRecord(); r.str("end_reason") != "unknown_domain" {
			t.Errorf("%s: end_reason %s", name, r.str("end_reason"))
		}
	}
}

// TestGODEBUG starts this test binary again with groups taken away: GODEBUG is read once. Losing X25519MLKEM768
// refuses the config by name, losing the other hybrids is a warning that names them.
func TestGODEBUG(t *testing.T) {
	use := map[domain.PostQuantum]bool{domain.Prefer: true}
	if os.Getenv("PQPROXY_TEST_GODEBUG") != "" {
		warning, err := checkGroups(use)
		fmt.Printf("warning: %s\nerror: %v\n", warning, err)
		off, err := checkGroups(map[domain.PostQuantum]bool{domain.Off: true})
		fmt.Printf("off: %s %v\n", off, err)
		return
	}
	if warning, err := checkGroups(use); warning != "" || err != nil {
		t.Fatalf("without GODEBUG: %s %v", warning, err)
	}
	for setting, want := range map[string][]string{
		"tlsmlkem=0":     {"error: this process cannot negotiate", "X25519MLKEM768", "tlsmlkem=0", "off:  <nil>"},
		"tlssecpmlkem=0": {"warning: this process cannot negotiate SecP256r1MLKEM768, SecP384r1MLKEM1024", "error: <nil>"},
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGODEBUG$")
		cmd.Env = append(os.Environ(), "PQPROXY_TEST_GODEBUG=1", "GODEBUG="+setting)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", setting, err, out)
		}
		for _, text := range want {
			if !strings.Contains(string(out), text) {
				t.Errorf("GODEBUG=%s prints no %q:\n%s", setting, text, out)
			}
		}
	}
}

// TestInternalCertificate serves a domain and a wildcard from Caddy's local CA.
func TestInternalCertificate(t *testing.T) {
	pqtest.Leaks(t)
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	e := startEdge(t, fmt.Sprintf(`
		domain app.example.com {
			upstream %[1]s
			certificate internal
		}
		domain *.example.com {
			upstream %[1]s
			certificate internal
		}`, up.Addr()))
	for name, want := range map[string]string{"app.example.com": "app.example.com", "x.example.com": "*.example.com"} {
		c := e.dial(e.client(name, func(cfg *tls.Config) { cfg.InsecureSkipVerify = true }))
		leaf := c.ConnectionState().PeerCertificates[0]
		if err := leaf.VerifyHostname(name); err != nil || leaf.DNSNames[0] != want || !strings.Contains(leaf.Issuer.CommonName, "Caddy Local Authority") {
			t.Errorf("%s is served with %v from %s", name, leaf.DNSNames, leaf.Issuer)
		}
		echo(t, c, "hi")
		c.Close()
	}
}
