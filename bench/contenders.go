//go:build linux

package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// contender is a way to terminate TLS 1.3, add a PROXY v1 header and relay to an upstream.
type contender struct {
	name string
	// program is the file to run; empty: the Go binary under test.
	program string
	// hybrid: it negotiates X25519MLKEM768. The others are compared on X25519.
	hybrid bool
	// caddy: it is a Go program with Caddy's admin endpoint on a unix socket in its directory.
	caddy bool
	// configure writes the configuration into s.dir and returns the arguments.
	configure func(s *site) ([]string, error)
}

var contenders = []contender{
	{name: "pqproxy", hybrid: true, caddy: true, configure: configurePQProxy},
	{name: "caddy-l4", hybrid: true, caddy: true, configure: configureCaddyL4},
	{name: "nginx", program: "nginx", configure: configureNginx},
	{name: "haproxy", program: "haproxy", configure: configureHAProxy},
}

// baseline is the contender whose figures are 1.
const baseline = "caddy-l4"

func contenderNames() []string {
	names := make([]string, len(contenders))
	for i, c := range contenders {
		names[i] = c.name
	}
	return names
}

// groups are the key-exchange groups that the handshake scenarios try with this contender.
func (c *contender) groups() []tls.CurveID {
	if c.hybrid {
		return []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
	}
	return []tls.CurveID{tls.X25519}
}

// site is what one process of a contender is configured for.
type site struct {
	dir       string
	pki       *pki
	group     tls.CurveID             // the one group of both its sides, as far as it can be said
	upstreams map[upstreamKind]string // addresses
	fronts    map[upstreamKind]front
	connLimit int // connections to make room for, clients and upstreams together
}

// frontName is the host name under which every contender offers an upstream. Only pqproxy routes by it; the others
// have a port for each.
func frontName(kind upstreamKind) string { return string(kind) + ".bench.test" }

func frontNames() []string {
	names := make([]string, len(upstreamKinds))
	for i, kind := range upstreamKinds {
		names[i] = frontName(kind)
	}
	return names
}

// running is a contender's process, ready to serve.
type running struct {
	*lab.Process
	contender *contender
	site      *site
}

// start runs a contender and waits until each front answers. A port that was free may be taken by another program
// before the proxy binds it, so a process that ends early gets other ports, twice.
func (b *bench) start(c *contender, group tls.CurveID) (*running, error) {
	var faults []error
	for range 3 {
		r, err := b.startOnce(c, group)
		if err == nil {
			return r, nil
		}
		faults = append(faults, err)
		if !errors.Is(err, errEndedEarly) {
			break
		}
	}
	return nil, errors.Join(faults...)
}

var errEndedEarly = errors.New("ended before it was ready")

func (b *bench) startOnce(c *contender, group tls.CurveID) (*running, error) {
	dir, err := os.MkdirTemp(b.dir, c.name+"-")
	if err != nil {
		return nil, err
	}
	s := &site{
		dir:       dir,
		pki:       b.pki,
		group:     group,
		upstreams: map[upstreamKind]string{},
		fronts:    map[upstreamKind]front{},
		connLimit: 2*b.opts.Size.IdleConns + 512,
	}
	addrs, err := lab.FreeAddrs(len(upstreamKinds))
	if err != nil {
		return nil, err
	}
	for i, kind := range upstreamKinds {
		s.upstreams[kind] = b.upstreams[kind].addr
		s.fronts[kind] = front{addr: addrs[i], name: frontName(kind)}
	}
	args, err := c.configure(s)
	if err != nil {
		return nil, fmt.Errorf("configuring %s: %w", c.name, err)
	}
	program := c.program
	if program == "" {
		program = b.binary
	}
	if program, err = exec.LookPath(program); err != nil {
		return nil, err
	}
	p, err := b.launch(c, append([]string{program}, args...), lab.CleanEnv(dir, "GOMAXPROCS=1"), dir)
	if err != nil {
		return nil, err
	}
	r := &running{Process: p, contender: c, site: s}
	if err := b.awaitReady(r); err != nil {
		tail := p.LogTail()
		b.stop(p)
		return nil, fmt.Errorf("%s: %w\nits log ends:\n%s", c.name, err, tail)
	}
	return r, nil
}

// awaitReady visits every front until it answers.
func (b *bench) awaitReady(r *running) error {
	const patience = 20 * time.Second
	for _, kind := range upstreamKinds {
		visitor := b.client(r, kind)
		// caddy-l4 keeps the groups of its first client for all its connections to an upstream.
		visitor.group = r.site.group
		for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
			_, _, err := visitor.visit()
			// What a proxy does while it starts is no fault of a cell.
			fault := b.upstreams[kind].takeFault()
			if err == nil {
				break
			}
			if !r.Running() {
				return errEndedEarly
			}
			if time.Now().After(end) {
				return fmt.Errorf("upstream %s does not answer through it: %w", kind, errors.Join(err, fault))
			}
		}
	}
	return nil
}

// adminSocket is where the Caddy contenders have their admin endpoint.
func (s *site) adminSocket() string { return filepath.Join(s.dir, "admin.sock") }

// collectGarbage makes a Go contender run a collection now.
func (r *running) collectGarbage() error {
	admin := lab.NewAdmin(r.site.adminSocket())
	defer admin.Close()
	if err := admin.CollectGarbage(); err != nil {
		return fmt.Errorf("asking %s for a collection: %w", r.Name, err)
	}
	return nil
}

// object is a JSON object of a configuration.
type object = map[string]any

// caddyConfig wraps apps into a configuration with the admin endpoint on a socket, and writes it.
func (s *site) caddyConfig(apps object) ([]string, error) {
	content, err := json.MarshalIndent(object{
		"admin": object{"listen": "unix/" + s.adminSocket(), "config": object{"persist": false}},
		"apps":  apps,
	}, "", "\t")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, "config.json")
	return []string{"run", "--config", file}, os.WriteFile(file, content, 0o600)
}

// configurePQProxy has one listener and a domain for each upstream. Its log of one record per connection is on, as it
// is by default; no other contender writes one.
func configurePQProxy(s *site) ([]string, error) {
	policy := "prefer"
	if s.group == tls.X25519 {
		policy = "off" // caddy-l4 hands the client's groups on to the upstream: the same here
	}
	shared := s.fronts[upstreamPlain].addr
	domains := []object{}
	for _, kind := range upstreamKinds {
		s.fronts[kind] = front{addr: shared, name: frontName(kind)}
		to := object{"dial": s.upstreams[kind]}
		if kind != upstreamPlain {
			to["tls"] = object{"server_name": upstreamName, "ca_file": s.pki.caFile, "post_quantum": policy}
		}
		domains = append(domains, object{
			"name":           frontName(kind),
			"tenant":         "bench",
			"upstreams":      []object{to},
			"proxy_protocol": "v1",
			"post_quantum":   policy,
			"certificate":    object{"source": "byoc", "chain_file": s.pki.certFile, "key_file": s.pki.keyFile},
		})
	}
	return s.caddyConfig(object{
		"pqproxy": object{"domains": domains},
		"layer4": object{"servers": object{"front": object{
			"listen": []string{"pqproxy/" + shared},
			"routes": []object{{"handle": []object{{"handler": "pqproxy"}}}},
		}}},
	})
}

// configureCaddyL4 has a server for each upstream: tls, then proxy. session_tickets is set because without it the tls
// handler makes new ticket keys for each connection and never resumes.
func configureCaddyL4(s *site) ([]string, error) {
	servers := object{}
	for _, kind := range upstreamKinds {
		to := object{"dial": []string{s.upstreams[kind]}}
		if kind != upstreamPlain {
			to["tls"] = object{"server_name": upstreamName, "ca": object{"provider": "file", "pem_files": []string{s.pki.caFile}}}
		}
		servers[string(kind)] = object{
			"listen": []string{s.fronts[kind].addr},
			"routes": []object{{"handle": []object{
				{"handler": "tls"},
				{"handler": "proxy", "proxy_protocol": "v1", "upstreams": []object{to}},
			}}},
		}
	}
	return s.caddyConfig(object{
		"tls": object{
			"certificates":    object{"load_files": []object{{"certificate": s.pki.certFile, "key": s.pki.keyFile}}},
			"session_tickets": object{"key_source": object{"provider": "standard"}},
		},
		"layer4": object{"servers": servers},
	})
}

// configureNginx has a server for each upstream in the stream module, which Debian ships as a file to load.
func configureNginx(s *site) ([]string, error) {
	var c strings.Builder
	if module, err := nginxStreamModule(); err != nil {
		return nil, err
	} else if module != "" {
		fmt.Fprintf(&c, "load_module %s;\n", module)
	}
	fmt.Fprintf(&c, `daemon off;
pid %[1]s/nginx.pid;
error_log stderr error;
worker_processes 1;
worker_rlimit_nofile %[2]d;
events {
	worker_connections %[2]d;
}
stream {
	ssl_protocols TLSv1.3;
	ssl_ecdh_curve X25519;
	ssl_certificate %[3]s;
	ssl_certificate_key %[4]s;
	ssl_session_tickets on;
	ssl_session_timeout 1h;
	proxy_timeout 1h;
	proxy_protocol on;
	proxy_ssl_protocols TLSv1.3;
	proxy_ssl_name %[5]s;
	proxy_ssl_server_name on;
	proxy_ssl_verify on;
	proxy_ssl_trusted_certificate %[6]s;
	proxy_ssl_session_reuse on;
`, s.dir, s.connLimit, s.pki.certFile, s.pki.keyFile, upstreamName, s.pki.caFile)
	for _, kind := range upstreamKinds {
		towards := "off"
		if kind != upstreamPlain {
			towards = "on"
		}
		fmt.Fprintf(&c, "\tserver {\n\t\tlisten %s ssl backlog=4096;\n\t\tproxy_pass %s;\n\t\tproxy_ssl %s;\n\t}\n",
			s.fronts[kind].addr, s.upstreams[kind], towards)
	}
	c.WriteString("}\n")
	file := filepath.Join(s.dir, "nginx.conf")
	return []string{"-c", file, "-p", s.dir, "-e", "stderr"}, os.WriteFile(file, []byte(c.String()), 0o600)
}

// nginxStreamModule returns the file of a dynamic stream module, empty where it is compiled in.
func nginxStreamModule() (string, error) {
	output, err := exec.Command("nginx", "-V").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("nginx -V: %w", err)
	}
	modules := ""
	dynamic := false
	for _, word := range strings.Fields(string(output)) {
		if path, ok := strings.CutPrefix(word, "--modules-path="); ok {
			modules = path
		}
		dynamic = dynamic || word == "--with-stream=dynamic"
	}
	if !dynamic {
		return "", nil
	}
	file := filepath.Join(modules, "ngx_stream_module.so")
	if _, err := os.Stat(file); err != nil {
		return "", fmt.Errorf("nginx has no stream module (Debian: apt-get install libnginx-mod-stream): %w", err)
	}
	return file, nil
}

// configureHAProxy has a listen section in TCP mode for each upstream.
func configureHAProxy(s *site) ([]string, error) {
	var c strings.Builder
	fmt.Fprintf(&c, `global
	nbthread 1
	maxconn %d
	ssl-default-bind-options ssl-min-ver TLSv1.3
	ssl-default-bind-curves X25519
	ssl-default-server-options ssl-min-ver TLSv1.3
defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
`, s.connLimit/2)
	for _, kind := range upstreamKinds {
		towards := ""
		if kind != upstreamPlain {
			towards = fmt.Sprintf(" ssl verify required ca-file %s sni str(%s) verifyhost %[2]s", s.pki.caFile, upstreamName)
		}
		fmt.Fprintf(&c, "listen %s\n\tbind %s ssl crt %s\n\tserver upstream %s send-proxy%s\n",
			kind, s.fronts[kind].addr, s.pki.combinedFile, s.upstreams[kind], towards)
	}
	file := filepath.Join(s.dir, "haproxy.cfg")
	return []string{"-db", "-f", file}, os.WriteFile(file, []byte(c.String()), 0o600)
}
