//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
)

// The sets of domains.
const (
	setTen    = "ten"    // what others are compared with: the table's names with certificates, alone
	setStored = "stored" // all have their certificate in storage
	setTable  = "table"  // few have one
)

// servedNames is how many names handshakes take turns with, in every set.
const servedNames = 10

// set is a set of domains, an edge that has it, and another one that has not.
type set struct {
	name    string
	numbers []int // of the domains, as lab.TypicalName has them
	served  []int // of those that have a certificate and an upstream that answers, any of which may be visited

	elements []byte // of the list `domains`
	storage  string // folder of Caddy's file storage, of all edges with this set
	home     string // of the edge that has kept the set
	down     *closedPort
	feed     *lab.Feed // for edges that have not
}

// newSet makes a set of which some domains are served: typical ones, but for what leads to the upstream that there is.
func newSet(name string, numbers, served []int, upstream string) *set {
	isServed := make(map[int]bool, len(served))
	for _, i := range served {
		isServed[i] = true
	}
	s := &set{name: name, numbers: numbers, served: served, elements: make([]byte, 0, len(numbers)*216)}
	for n, i := range numbers {
		if n > 0 {
			s.elements = append(s.elements, ',')
		}
		if isServed[i] {
			const served = `{"name":%q,"tenant":"tenant-%04d","upstreams":[{"dial":%q}],"proxy_protocol":"v1","post_quantum":"prefer"}`
			s.elements = fmt.Appendf(s.elements, served, lab.TypicalName(i), i/100, upstream)
		} else {
			s.elements = lab.AppendTypical(s.elements, i, 0)
		}
	}
	return s
}

// spread returns k numbers below n, as far from each other as can be.
func spread(k, n int) []int {
	numbers := make([]int, k)
	for i := range numbers {
		numbers[i] = i * n / k
	}
	return numbers
}

// upTo returns the numbers below n.
func upTo(n int) []int { return spread(n, n) }

// config makes the configuration of an edge of a set, with Caddy's file storage and a CA that is down.
func (s *set) config(feedURL string, a *authority) func(addr string) lab.Object {
	return func(addr string) lab.Object {
		return lab.Object{
			"storage": lab.Object{"module": "file_system", "root": s.storage},
			"apps": lab.Object{
				"layer4": lab.Object{"servers": lab.Object{"front": lab.Object{
					"listen": []string{"pqproxy/" + addr},
					"routes": []lab.Object{{"handle": []lab.Object{{"handler": "pqproxy"}}}},
				}}},
				"pqproxy": lab.Object{
					"management":      lab.Object{"url": feedURL},
					"issuers":         []lab.Object{{"module": "acme", "ca": a.directory}},
					"upstream_policy": lab.Object{"allow": []string{"127.0.0.0/8", "10.0.0.0/8"}},
				},
			},
		}
	}
}

// prepare fills the storage, has an edge take the set from a feed and keep it, and ends that feed.
func (s *set) prepare(ctx context.Context, b *bench) error {
	fmt.Printf("preparing %d domains, %d with certificates\n", len(s.numbers), len(s.served))
	folder, err := os.MkdirTemp(b.dir, s.name+"-")
	if err != nil {
		return err
	}
	s.storage, s.home = filepath.Join(folder, "storage"), filepath.Join(folder, "home")
	if err := os.Mkdir(s.home, 0o700); err != nil {
		return err
	}
	names := make([]string, len(s.served))
	for n, i := range s.served {
		names[n] = lab.TypicalName(i)
	}
	if err := b.ca.putAll(ctx, s.storage, names); err != nil {
		return err
	}
	if s.feed, err = lab.StartFeed(); err != nil {
		return err
	}
	s.feed.PublishFull(s.elements, true)
	if err := s.keep(b); err != nil {
		return fmt.Errorf("having an edge keep %d domains: %w", len(s.numbers), err)
	}
	return nil
}

// keep has an edge take and keep the set, and ends the feed that it came from.
func (s *set) keep(b *bench) error {
	feed, err := lab.StartFeed()
	if err != nil {
		return err
	}
	defer feed.Close()
	revision, _ := feed.PublishFull(s.elements, true)
	edge, err := b.proxies.Launch(lab.Launch{Name: "pqproxy", Core: proxyCore, Home: s.home, Config: s.config(feed.URL, b.ca)})
	if err != nil {
		return err
	}
	err = s.awaitKept(edge, revision)
	if err != nil {
		err = fmt.Errorf("%w\nits log ends:\n%s", err, edge.LogTail())
	}
	b.proxies.Stop(edge)
	if err = errors.Join(err, feed.Close()); err != nil {
		return err
	}
	addr, _, _ := strings.Cut(strings.TrimPrefix(feed.URL, "http://"), "/")
	s.down, err = closePort(addr)
	return err
}

// awaitKept waits until an edge serves the set and has kept it.
func (s *set) awaitKept(edge *lab.Proxy, revision uint64) error {
	if _, err := edge.AwaitRevision(revision, 20*time.Millisecond); err != nil {
		return err
	}
	status, err := edge.Status()
	if err != nil {
		return err
	}
	if got := status.Domains["remote"]; got != len(s.numbers) {
		return fmt.Errorf("%d domains are live, %d were published", got, len(s.numbers))
	}
	return lab.Await("the set to be kept", 5*time.Minute, 20*time.Millisecond, func() (bool, error) {
		if !edge.Running() {
			return false, errors.New("the edge has ended")
		}
		files, err := keptSets(s.storage)
		return len(files) > 0, err
	})
}

// downURL is where the edge that has kept the set asks for it in vain.
func (s *set) downURL() string { return "http://" + s.down.addr + "/v1/edge/domains" }

// free ends what serves the set.
func (s *set) free() {
	if s.feed != nil {
		_ = s.feed.Close()
	}
	if s.down != nil {
		s.down.free()
	}
}

// sink is the upstream of all names that are visited, part of the load: it reads until the proxy closes.
type sink struct{ net.Listener }

// startSink listens on a free port until Close. Its goroutines end with the listener and with their connections.
func startSink() (sink, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return sink{}, err
	}
	s := sink{listener}
	go s.acceptLoop()
	return s, nil
}

func (s sink) acceptLoop() {
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		go drain(conn)
	}
}

// drainPatience is how long a connection may say nothing.
const drainPatience = 30 * time.Second

func drain(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 1024)
	for conn.SetReadDeadline(time.Now().Add(drainPatience)) == nil {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}
