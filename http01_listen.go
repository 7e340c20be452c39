package pqproxy

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddytls"
	"github.com/mholt/caddy-l4/layer4"
)

// httpAddress is where plain HTTP is served.
type httpAddress struct {
	configured string
	ip         netip.Addr // unspecified: all of the machine, of both families
	port       uint16
}

// parseHTTPAddress reads a listener address. Host names are refused: what they mean can change while we run.
func parseHTTPAddress(text string) (httpAddress, error) {
	const want = "write :80, or an IP address of this machine with a port, such as 192.0.2.1:80 or [2001:db8::1]:80"
	host, portText, err := net.SplitHostPort(text)
	if err != nil {
		return httpAddress{}, fmt.Errorf("%q is no address with a port; %s", text, want)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return httpAddress{}, fmt.Errorf("%q has no port from 0 to 65535; %s", text, want)
	}
	ip := netip.IPv6Unspecified()
	if host != "" {
		if ip, err = netip.ParseAddr(host); err != nil {
			return httpAddress{}, fmt.Errorf("%q has a host that is no IP address; %s", text, want)
		}
		if ip = ip.Unmap(); ip.IsUnspecified() {
			ip = netip.IPv6Unspecified() // package net listens on both families for either
		}
	}
	return httpAddress{text, ip, uint16(port)}, nil
}

// String is the one spelling of what is the same address.
func (a httpAddress) String() string {
	if a.ip.IsUnspecified() {
		return fmt.Sprint(":", a.port) // which works on machines without IPv6 too
	}
	return netip.AddrPortFrom(a.ip, a.port).String()
}

// meets reports whether a socket of the other address would be in the way.
func (a httpAddress) meets(other caddy.NetworkAddress) bool {
	switch other.Network {
	case "tcp", "tcp4", "tcp6", listenNetwork:
	default:
		return false
	}
	if port := uint(a.port); port == 0 || port < other.StartPort || port > other.EndPort {
		return false
	}
	if other.Host == "" || a.ip.IsUnspecified() {
		return true
	}
	if other.Host == "localhost" { // other names are not resolved: the system will refuse the second socket
		return a.ip.IsLoopback()
	}
	ip, err := netip.ParseAddr(other.Host)
	return err == nil && (ip.IsUnspecified() || ip.Unmap() == a.ip)
}

// prepareHTTP reads the addresses of the option http. All faults are reported at once.
func (a *App) prepareHTTP() error {
	repl := caddy.NewReplacer()
	var faults []error
	for i, text := range a.HTTP {
		text, err := repl.ReplaceOrErr(text, true, true)
		var addr httpAddress
		if err == nil {
			addr, err = parseHTTPAddress(text)
		}
		if err == nil {
			for _, before := range a.httpAddrs {
				if before.String() == addr.String() || addr.meets(caddy.NetworkAddress{
					Network: "tcp", Host: before.ip.String(), StartPort: uint(before.port), EndPort: uint(before.port),
				}) {
					err = fmt.Errorf("%s has the same port as %s, which covers it or is covered by it; keep one of them", text, before.configured)
				}
			}
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("http[%d]: %w", i, err))
			continue
		}
		a.httpAddrs = append(a.httpAddrs, addr)
	}
	return errors.Join(faults...)
}

// neighbour is a listener of another app of the same config.
type neighbour struct {
	app, server string
	configured  string
	addr        caddy.NetworkAddress
}

// meetNeighbours looks at the other apps of the config: whether they would share a port with plain HTTP, and where TLS
// is. It goes by the config rather than by what listens, because apps start in any order. When one starts, all are provisioned,
// and the http app has added its automatic redirects to its servers.
func (a *App) meetNeighbours() error {
	web, err1 := configured[*caddyhttp.App](a.ctx, "http")
	front, err2 := configured[*layer4.App](a.ctx, "layer4")
	certs, err3 := configured[*caddytls.TLS](a.ctx, "tls")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	a.caddyTLS = certs
	all := neighboursOf(web, front)
	a.httpsPort = httpsPort(all)
	return httpConflict(a.httpAddrs, all)
}

// configured returns an app of the config, or nil where that has none.
func configured[App any](ctx caddy.Context, name string) (app App, err error) {
	value, err := ctx.AppIfConfigured(name)
	if errors.Is(err, caddy.ErrNotConfigured) {
		return app, nil
	}
	if err != nil {
		return app, err
	}
	return value.(App), nil
}

// neighboursOf returns the listeners of both apps, which may be nil, in the order of their servers' names.
func neighboursOf(web *caddyhttp.App, front *layer4.App) (all []neighbour) {
	repl := caddy.NewReplacer()
	add := func(app, server string, listen []string) {
		for _, configured := range listen {
			text := repl.ReplaceAll(configured, "") // layer4 does so by itself; http has done it
			if addr, err := caddy.ParseNetworkAddress(text); err == nil {
				all = append(all, neighbour{app, server, configured, addr})
			}
		}
	}
	if web != nil {
		for _, name := range slices.Sorted(maps.Keys(web.Servers)) {
			add("http", name, web.Servers[name].Listen)
		}
	}
	if front != nil {
		for _, name := range slices.Sorted(maps.Keys(front.Servers)) {
			add("layer4", name, front.Servers[name].Listen)
		}
	}
	return all
}

// httpConflict returns an error if a neighbour listens where plain HTTP is to be served.
func httpConflict(own []httpAddress, all []neighbour) error {
	for i, a := range own {
		for _, n := range all {
			if !a.meets(n.addr) {
				continue
			}
			err := fmt.Errorf("http[%d]: %s is taken by the %s server %q of this config, which listens on %s", i, a.configured, n.app, n.server, n.configured)
			if n.app == "http" {
				return fmt.Errorf("%w; leave http out and put the directive pqproxy_http01 into a site there, "+
					"or, if all that it does is to redirect Caddy's own sites, switch it off with auto_https disable_redirects", err)
			}
			return fmt.Errorf("%w; give one of them another address", err)
		}
	}
	return nil
}

// httpsPort returns the port that redirects go to, as it stands in a URL: of the first listener for clients, and empty
// for 443, which is looked for first.
func httpsPort(all []neighbour) string {
	port := ""
	for _, n := range all {
		switch {
		case n.addr.Network != listenNetwork || n.addr.StartPort == 0:
		case n.addr.StartPort <= 443 && 443 <= n.addr.EndPort:
			return ""
		case port == "":
			port = fmt.Sprint(":", n.addr.StartPort)
		}
	}
	return port
}

// openHTTP opens the sockets for plain HTTP, or takes them over from the config before. Connections wait in them until
// serveHTTP.
func (a *App) openHTTP() error {
	for i, addr := range a.httpAddrs {
		h, err := hold(a.ctx, "http/"+addr.String(), addr.String(), net.ListenConfig{}, "listening for plain HTTP", a.state.http01.slots.admit)
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w (if the running config uses the port otherwise, load one in between that does not)", err)
		}
		if err != nil {
			return fmt.Errorf("http[%d]: %w", i, err)
		}
		a.httpHandles = append(a.httpHandles, h)
	}
	return nil
}

// serveHTTP begins to accept. closeHTTP ends it.
func (a *App) serveHTTP() {
	for _, h := range a.httpHandles {
		a.serving.Go(func() { _ = a.state.http01.server.Serve(h) }) // it returns when h is closed
	}
}

// closeHTTP gives the sockets back. Connections go on, and end with the state at the latest.
func (a *App) closeHTTP() {
	for _, h := range a.httpHandles {
		_ = h.Close()
	}
	a.serving.Wait()
}
