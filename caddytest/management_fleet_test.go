package caddytest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// addDomain makes a domain with a pair of its own.
func (s *service) addDomain(t *testing.T, own authority, name, upstream string) object {
	t.Helper()
	domain := s.call(t, 201, "POST", "/v1/domains", object{"name": name, "upstreams": []object{{"dial": upstream}}})
	chain, key := pqtest.EncodePair(t, own.Issue(t, name))
	s.call(t, 200, "PUT", "/v1/domains/"+domain.at("id").(string)+"/certificate", object{"chain_pem": string(chain), "key_pem": string(key)})
	return domain
}

// startFollower runs an edge that follows the management plane at a URL and takes its certificates from there.
func startFollower(t *testing.T, name, url, token, options string) edge {
	t.Helper()
	t.Setenv("EDGE_TOKEN", token)
	return startEdge(t, t.TempDir(), "Caddyfile", fmt.Sprintf(`{
	admin off
	skip_install_trust
	layer4 {
		pqproxy/127.0.0.1:0 {
			route {
				pqproxy
			}
		}
	}
	pqproxy {
		issuer acme https://127.0.0.1:1/directory
		management %s/v1/edge/domains {
			token {env.EDGE_TOKEN}
			edge %s
			%s
		}
		upstream_policy {
			allow 127.0.0.0/8
		}
	}
}
`, url, name, options))
}

// visit makes a connection to a name and ends it.
func visit(t *testing.T, e edge, own authority, name, upstream string) {
	t.Helper()
	conn, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: name, RootCAs: own.Pool()})
	if err != nil {
		t.Fatalf("connecting to %s: %v", name, err)
	}
	readLine(t, conn, upstream)
	checkEcho(t, conn)
	conn.Close()
}

// servesPair waits until an edge serves a name with a certificate of that authority.
func servesPair(t *testing.T, e edge, own authority, name string) {
	t.Helper()
	pqtest.Wait(t, name+" to be live on "+e.addr, func() bool {
		conn, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: name, RootCAs: own.Pool()})
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// TestManagementOutage kills the management plane while edges serve, and while what it has taken of their reports has not been
// acknowledged: open connections and new ones notice nothing, and in the end every connection is counted, once. Sets are signed.
func TestManagementOutage(t *testing.T) {
	const name = "app.example.com"
	dir, own, upstream := t.TempDir(), newAuthority(t), startNamed(t, "upstream")
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	run(t, nil, "", bin, "pqproxy", "keygen", filepath.Join(dir, "feed.key"), filepath.Join(dir, "feed.pub"))
	dns, options := startNameServer(t), "signing_key "+filepath.Join(dir, "feed.key")
	s := startServiceIn(t, dir, dns, options)
	s.waitReady(t)
	s.firstRun(t)
	token := s.call(t, 201, "POST", "/v1/platform/edge_tokens", object{"name": "fleet"}).at("secret").(string)
	way := startRelay(t, strings.TrimPrefix(s.edge, "http://"))
	verify := "verify_key " + filepath.Join(dir, "feed.pub")
	edges := []edge{startFollower(t, "edge-1", "http://"+way.addr, token, verify), startFollower(t, "edge-2", "http://"+way.addr, token, verify)}

	// An edge with another key takes nothing of this.
	other := t.TempDir()
	run(t, nil, "", bin, "pqproxy", "keygen", filepath.Join(other, "feed.key"), filepath.Join(other, "feed.pub"))
	stranger := startFollower(t, "edge-3", "http://"+way.addr, token, "verify_key "+filepath.Join(other, "feed.pub"))

	id := s.addDomain(t, own, name, upstream).at("id").(string)
	// Asked by the way: handshakes that fail are counted too.
	s.until(t, "two edges to serve the domain", "/v1/domains/"+id, func(d object) bool { return d.at("axes", "edges", "live") == 2.0 })
	made := 0
	stranger.failed(t, "signature", 0)
	if _, err := pqtest.TryDial(t, stranger.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true}); err == nil {
		t.Error("an edge with another verify_key serves the domain")
	}
	open, err := pqtest.TryDial(t, edges[0].addr, &tls.Config{ServerName: name, RootCAs: own.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	readLine(t, open, "upstream")

	// Connections that are counted by a report whose answer is lost. A change makes edges report soon.
	for range 3 {
		for _, e := range edges {
			visit(t, e, own, name, "upstream")
			made++
		}
	}
	way.loseAnswers(true)
	s.addDomain(t, own, "b.example.com", upstream)
	pqtest.Wait(t, "answers to be lost", func() bool { return way.loseAnswers(true) >= 2 })

	s.kill(t)
	way.set("")
	way.loseAnswers(false)
	checkEcho(t, open)
	for range 2 {
		for _, e := range edges {
			visit(t, e, own, name, "upstream")
			made++
		}
	}
	for _, e := range edges {
		e.failed(t, "unreachable", 0)
	}
	checkEcho(t, open)

	key := s.key
	s = startServiceIn(t, dir, dns, options)
	s.waitReady(t)
	s.key = key
	way.set(strings.TrimPrefix(s.edge, "http://"))
	for _, e := range edges {
		visit(t, e, own, name, "upstream")
		made++
	}
	checkEcho(t, open)
	open.Close()
	made++
	s.addDomain(t, own, "c.example.com", upstream)
	for _, e := range edges {
		servesPair(t, e, own, "c.example.com")
	}

	count := func(u object) int {
		n, _ := u.at("data", 0, "connections").(float64)
		return int(n)
	}
	usage := s.until(t, "all connections to be counted", "/v1/usage?step=total&domain="+id, func(u object) bool { return count(u) >= made })
	if n := count(usage); n != made {
		t.Errorf("%d connections are counted, %d were made", n, made)
	}
	log := s.until(t, "all connections to be in the log", "/v1/connections?limit=1000&domain="+id, func(l object) bool { return len(l["data"].([]any)) >= made })
	if n := len(log["data"].([]any)); n != made {
		t.Errorf("%d connections are in the log, %d were made", n, made)
	}
	if n := count(s.call(t, 200, "GET", "/v1/usage?step=total&domain="+id, nil)); n != made {
		t.Errorf("in the end %d connections are counted, %d were made", n, made)
	}
	listed := s.call(t, 200, "GET", "/v1/platform/edges", nil)
	for i := range edges {
		if state, dropped := listed.at("data", i, "state"), listed.at("data", i, "dropped_records"); state != "up" || dropped != 0.0 {
			t.Errorf("an edge is %v and has dropped %v records", state, dropped)
		}
	}
}

// TestManagementInstances runs two instances on one PostgreSQL: what is changed through one is seen by the other at once, and by
// who waits there, and each piece of background work is done by one of them.
func TestManagementInstances(t *testing.T) {
	options, dns := postgres(t), startNameServer(t)
	services := []*service{startService(t, dns, options), startService(t, dns, options)}
	a, b := services[0], services[1]
	a.firstRun(t)
	b.key = a.key
	b.call(t, 409, "POST", "/v1/setup", object{"setup_token": setupToken, "email": "x@example.com", "password": firstPassword, "tenant": "X"})
	token := a.call(t, 201, "POST", "/v1/platform/edge_tokens", object{"name": "fleet"}).at("secret").(string)

	limit := time.Second
	if raceEnabled {
		limit = 5 * time.Second
	}
	for i, pair := range [][2]*service{{a, b}, {b, a}} {
		at, other := pair[0], pair[1]
		now := poll(t, other, token, "", 0)
		held := make(chan *polled, 1)
		sent := make(chan struct{})
		go func() { held <- pollWith(t, other, token, now.tag, 25, sent) }()
		other.taken(t, sent)
		name := fmt.Sprintf("app%d.example.com", i)
		at.call(t, 201, "POST", "/v1/domains", object{"name": name, "upstreams": []object{{"dial": "127.0.0.1:9"}}})
		begun := time.Now()
		select {
		case got := <-held:
			if took := time.Since(begun); took > limit || got.status != 200 || !strings.Contains(got.body, name) {
				t.Errorf("the poll was answered %d after %v: %s", got.status, took, got.body)
			}
		case <-time.After(patience):
			t.Fatal("the poll is not answered")
		}
	}

	// Both write at once: nothing is lost, and both tell the same.
	var writing sync.WaitGroup
	const each = 10
	for i, s := range services {
		writing.Go(func() {
			for j := range each {
				body := fmt.Sprintf(`{"name":"w%d-%d.example.com","upstreams":[{"dial":"127.0.0.1:9"}]}`, i, j)
				r, err := http.NewRequestWithContext(t.Context(), "POST", s.public+"/v1/domains", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Authorization", "Bearer "+s.key)
				r.Header.Set("Content-Type", "application/json")
				answer, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				answer.Body.Close()
				if answer.StatusCode != http.StatusCreated {
					t.Errorf("POST %s: %s", body, answer.Status)
				}
			}
		})
	}
	writing.Wait()
	one, two := poll(t, a, token, "", 0), poll(t, b, token, "", 0)
	if one.tag != two.tag || strings.Count(one.body, `"name":"w`) != 2*each || strings.Count(two.body, `"name":"w`) != 2*each {
		t.Errorf("the instances tell\n%s %s\n%s %s", one.tag, one.body, two.tag, two.body)
	}

	// A key that one revokes is no key for the other, within a second.
	spare := a.call(t, 201, "POST", "/v1/api_keys", object{"name": "spare", "scopes": []string{"*"}})
	id, secret := spare.at("id").(string), spare.at("secret").(string)
	mine := b.key
	b.key = secret
	b.call(t, 200, "GET", "/v1/me", nil)
	a.call(t, 204, "DELETE", "/v1/api_keys/"+id, nil)
	b.call(t, 401, "GET", "/v1/me", nil)
	b.key = mine

	leases(t, a, b)
}

// leases watches who does the background work that is done by one alone, and takes him away.
func leases(t *testing.T, services ...*service) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	db, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	look := func() (owner string, until int64) {
		t.Helper()
		if err := db.QueryRow(ctx, `SELECT owner, until FROM leases WHERE name = 'usage'`).Scan(&owner, &until); err != nil {
			t.Fatal(err)
		}
		return owner, until
	}
	byName := make(map[string]*service)
	for _, s := range services {
		byName[s.instance(t)] = s
	}
	if len(byName) != len(services) {
		t.Fatalf("the instances call themselves %v", byName)
	}
	owner, until := look()
	for renewed := 0; renewed < 2; {
		now, later := look()
		if now != owner {
			t.Fatalf("the lease went from %s to %s while both run", owner, now)
		}
		if later != until {
			renewed++
			until = later
		}
	}
	s := byName[owner]
	if s == nil {
		t.Fatalf("the lease is %s's, which is none of the instances", owner)
	}
	s.kill(t)
	if _, err := db.Exec(ctx, `UPDATE leases SET until = 1 WHERE owner = $1`, owner); err != nil { // as time would
		t.Fatal(err)
	}
	pqtest.Wait(t, "the other instance to take over", func() bool {
		now, _ := look()
		return now != owner && byName[now] != nil
	})
}

// instance returns what the service calls itself.
func (s *service) instance(t *testing.T) string {
	t.Helper()
	line, ok := s.wait(func(line string) bool { return isEvent(line, "pqproxy_management", "management plane serves") })
	if !ok {
		t.Fatal("the service does not say that it serves")
	}
	var event struct {
		Instance string `json:"instance"`
	}
	if err := json.Unmarshal([]byte(line), &event); err != nil {
		t.Fatal(err)
	}
	return event.Instance
}

// polled is what a poll of the feed brought.
type polled struct {
	status    int
	tag, body string
}

// poll asks the edge face for the feed, and waits up to so many seconds for one with another tag.
func poll(t *testing.T, s *service, token, tag string, seconds int) *polled {
	return pollWith(t, s, token, tag, seconds, make(chan struct{}))
}

// pollWith is poll, and closes sent when the request is on its way.
func pollWith(t *testing.T, s *service, token, tag string, seconds int, sent chan<- struct{}) *polled {
	trace := &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { close(sent) }}
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", s.edge+"/v1/edge/domains", nil)
	if err != nil {
		t.Error(err)
		return new(polled)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if tag != "" {
		r.Header.Set("If-None-Match", tag)
		r.Header.Set("Prefer", fmt.Sprintf("wait=%d", seconds))
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return &polled{body: err.Error()}
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return &polled{body: err.Error()}
	}
	return &polled{answer.StatusCode, answer.Header.Get("ETag"), string(body)}
}

// taken returns when a request that is on its way should have arrived: after it others have been answered.
func (s *service) taken(t *testing.T, sent <-chan struct{}) {
	t.Helper()
	<-sent
	for range 5 {
		s.call(t, 200, "GET", "/v1/me", nil)
	}
}

// TestManagementExit ends the management plane while an edge waits for a change and a page watches connections, neither of which
// would end by itself for long: it must not take that long to end.
func TestManagementExit(t *testing.T) {
	s := startService(t, startNameServer(t), "")
	s.firstRun(t)
	token := s.call(t, 201, "POST", "/v1/platform/edge_tokens", object{"name": "fleet"}).at("secret").(string)
	now := poll(t, s, token, "", 0)
	held := make(chan *polled, 1)
	sent := make(chan struct{})
	go func() { held <- pollWith(t, s, token, now.tag, 60, sent) }()
	s.taken(t, sent)

	r, err := http.NewRequestWithContext(t.Context(), "GET", s.public+"/v1/connections/tail", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.key)
	stream, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	if _, err := io.ReadFull(stream.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}

	begun := time.Now()
	s.terminate(t)
	if got := <-held; got.status != http.StatusNotModified {
		t.Errorf("the edge is answered %d %s, want 304", got.status, got.body)
	}
	s.waitExit(t)
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
}
