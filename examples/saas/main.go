// Command saas shows a hosted pqproxy on one machine: a management plane, two edges that follow it, an ACME server (Pebble), a
// customer's DNS and web server, and the customer, who uses nothing but HTTP requests. It needs no root and no network, leaves
// nothing behind, and runs until Ctrl-C:
//
//	go run ./examples/saas
//
// Management plane and edges are this binary once more, on free ports of 127.0.0.1: with arguments it is Caddy with pqproxy.
package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4"
	"github.com/pires/go-proxyproto"

	_ "github.com/pqproxy/caddy-pqproxy"
	"github.com/pqproxy/caddy-pqproxy/examples/internal/demo"
	_ "github.com/pqproxy/caddy-pqproxy/management/module"
)

//go:embed management.Caddyfile
var managementCaddyfile string

//go:embed edge.Caddyfile
var edgeCaddyfile string

// patience is how long each step may take: only failures take that long.
const patience = time.Minute

func main() {
	if len(os.Args) > 1 {
		if os.Getenv(childVariable) != "" {
			go endWithParent()
		}
		caddycmd.Main()
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "saas:", err)
		os.Exit(1)
	}
}

// run does everything and returns when ctx ends, or something fails.
func run(signalled context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "pqproxy-saas-")
	if err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(signalled)
	s := &stage{dir: dir, fail: fail}
	defer func() { err = errors.Join(err, s.close(), os.RemoveAll(dir)) }()
	if err := s.open(ctx); err != nil {
		return orNil(signalled, fmt.Errorf("starting: %w", err))
	}
	t := &story{stage: s, out: out}
	if err := t.tell(ctx); err != nil {
		return orNil(signalled, err)
	}
	<-ctx.Done()
	return orNil(signalled, context.Cause(ctx))
}

// orNil returns nil where what went wrong is that the user wants no more.
func orNil(signalled context.Context, err error) error {
	if signalled.Err() != nil {
		return nil
	}
	return err
}

// stage has all that runs.
type stage struct {
	dir  string
	fail func(error) // ends everything

	dns      *nameServer
	acme     *authority
	upstream *demo.Upstream
	acmePort net.Listener // see holdPort

	setupToken string
	public     string // URL of the management plane's public face
	edgeFace   string // and of the edges'
	plane      *process
	edges      []edge
}

// edge is a proxy.
type edge struct {
	*process
	address string
}

// open starts all but the edges.
func (s *stage) open(ctx context.Context) (err error) {
	if s.dns, err = startNameServer(); err != nil {
		return err
	}
	if s.acme, err = startAuthority(s.dir, s.dns.tcp); err != nil {
		return err
	}
	if s.upstream, err = demo.StartUpstream(name, proxyproto.USE); err != nil {
		return err
	}
	if s.acmePort, err = holdPort(); err != nil {
		return err
	}
	public, publicAddress, err := listen()
	if err != nil {
		return err
	}
	defer public.Close()
	face, faceAddress, err := listen()
	if err != nil {
		return err
	}
	defer face.Close()
	s.public, s.edgeFace, s.setupToken = "http://"+publicAddress, "http://"+faceAddress, rand.Text()
	s.plane, err = startProcess(s.dir, "management", managementCaddyfile, map[string]string{
		"SAAS_PUBLIC_URL": s.public, "SAAS_SETUP_TOKEN": s.setupToken, "SAAS_RESOLVER": s.dns.udp,
	}, []*os.File{public, face}, s.fail)
	if err != nil {
		return err
	}
	api := &demo.API{URL: s.public}
	return demo.Until(ctx, "the management plane to serve", patience, 20*time.Millisecond, func(ctx context.Context) (bool, error) {
		return api.Call(ctx, "GET", "/readyz", nil, nil) == nil, nil
	})
}

// listen opens a socket that a process can be given.
func listen() (socket *os.File, address string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	defer ln.Close()
	socket, err = ln.(*net.TCPListener).File()
	return socket, ln.Addr().String(), err
}

// holdPort listens on the port that the edges' ACME client would answer challenges on if it were free. It is not, as port 443
// is not in real life, where the edge itself has it; so the edge answers.
func holdPort() (net.Listener, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() { // until close
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return ln, nil
}

// startEdges starts two edges with one storage, one after the other: the first makes the local CA that every Caddy has there, and
// another that finds half of it does not start.
func (s *stage) startEdges(ctx context.Context, token string) error {
	_, port, err := net.SplitHostPort(s.acmePort.Addr().String())
	if err != nil {
		return err
	}
	for _, at := range []struct{ name, region string }{{"edge-1", "gru"}, {"edge-2", "fra"}} {
		p, err := startProcess(s.dir, at.name, edgeCaddyfile, map[string]string{
			"SAAS_STORAGE": filepath.Join(s.dir, "storage"), "SAAS_EDGE": at.name, "SAAS_REGION": at.region,
			"SAAS_EDGE_FACE": s.edgeFace, "SAAS_EDGE_TOKEN": token,
			"SAAS_ACME": s.acme.url, "SAAS_ACME_ROOT": s.acme.apiRoot, "SAAS_ACME_PORT": port,
		}, nil, s.fail)
		if err != nil {
			return err
		}
		s.edges = append(s.edges, edge{process: p})
		if s.edges[len(s.edges)-1].address, err = p.address(ctx); err != nil {
			return err
		}
	}
	_, port, err = net.SplitHostPort(s.edges[0].address)
	if err != nil {
		return err
	}
	checked, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	return s.acme.open(checked)
}

// close ends all that was started, edges first, so that they can tell the management plane.
func (s *stage) close() error {
	var errs []error
	for _, e := range s.edges {
		errs = append(errs, e.stop())
	}
	if s.plane != nil {
		errs = append(errs, s.plane.stop())
	}
	if s.upstream != nil {
		_ = s.upstream.Close()
	}
	if s.acmePort != nil {
		_ = s.acmePort.Close()
	}
	if s.acme != nil {
		s.acme.close()
	}
	if s.dns != nil {
		s.dns.close()
	}
	return errors.Join(errs...)
}
