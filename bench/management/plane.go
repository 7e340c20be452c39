//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/bench/internal/lab"
	"github.com/pqproxy/caddy-pqproxy/management/store"
)

// plane is the management plane: a process of cmd/pqproxy with its two faces on loopback ports, in plain HTTP.
type plane struct {
	*lab.Proxy
	edgeAddr string
	token    string // of edges
	client   *http.Client
}

// startPlane starts it on a database and waits until it serves. Whoever calls it calls stop.
func startPlane(proxies *lab.Proxies, d *database, dir, resolver, token string, edges int) (*plane, error) {
	keyFile := filepath.Join(dir, "master.key") // PostgreSQL's instances need one; nothing is sealed here
	key := make([]byte, 32)
	rand.Read(key)
	if err := os.WriteFile(keyFile, []byte(base64.StdEncoding.EncodeToString(key)+"\n"), 0o600); err != nil {
		return nil, err
	}
	p := &plane{token: token, client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: edges + 256, DisableCompression: true}, Timeout: 5 * time.Minute,
	}}
	face := func(addr, face string) lab.Object {
		return lab.Object{
			"listen": []string{addr}, "automatic_https": lab.Object{"disable": true},
			"routes": []lab.Object{{"handle": []lab.Object{{"handler": "pqproxy_management", "face": face}}}},
		}
	}
	var faults []error
	config := func(addr string) lab.Object {
		addrs, err := lab.FreeAddrs(1)
		if err != nil {
			faults = append(faults, err)
			addrs = []string{"127.0.0.1:0"}
		}
		p.edgeAddr = addrs[0]
		database := lab.Object{"driver": d.name, "source": d.source}
		app := lab.Object{
			"database": database, "rate_limit": 0, "resolvers": []string{resolver},
			"targets":         []lab.Object{{"type": "a", "value": target}},
			"upstream_policy": lab.Object{"allow": []string{"10.0.0.0/8"}},
		}
		if d.name == store.Postgres {
			app["master_keys"] = []string{"{file." + keyFile + "}"}
		}
		return lab.Object{
			"apps": lab.Object{
				"pqproxy_management": app,
				"http":               lab.Object{"servers": lab.Object{"public": face(addr, "public"), "edge": face(p.edgeAddr, "edge")}},
			},
		}
	}
	var err error
	p.Proxy, err = proxies.Launch(lab.Launch{Name: "pqproxy", Core: lab.AnyCore, Config: config, Ready: func(started *lab.Proxy) error {
		return lab.Await("the management plane", time.Minute, 20*time.Millisecond, func() (bool, error) {
			if !started.Running() {
				return false, lab.ErrEndedEarly
			}
			res, err := http.Get("http://" + started.Addr + "/readyz")
			if err != nil {
				return false, nil // it does not listen yet
			}
			res.Body.Close()
			return res.StatusCode == http.StatusOK, nil
		})
	}})
	return p, errors.Join(err, errors.Join(faults...))
}

func (p *plane) stop(proxies *lab.Proxies) {
	p.client.CloseIdleConnections()
	proxies.Stop(p.Proxy)
}

// ask sends a request to the public face with a tenant's key, and reads the answer into one of JSON where it is not nil.
func (p *plane) ask(ctx context.Context, method, path, key string, body, into any) error {
	text, err := p.askText(ctx, method, path, key, "", body)
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// askText is ask for an answer of any type.
func (p *plane) askText(ctx context.Context, method, path, key, accept string, body any) ([]byte, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+p.Addr+path, content)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+key)
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	res, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		path, _, _ := strings.Cut(path, "?")
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, shortened(text))
	}
	if next := res.Header.Get("PQProxy-Next-Cursor"); accept != "" {
		text = append(append(text, next...), '\n') // the last line
	}
	return text, nil
}

// change changes a domain, so that edges must be told, and returns the revision.
func (p *plane) change(ctx context.Context, w *world, number, count int) (revision uint64, err error) {
	var changed struct {
		Revision uint64 `json:"revision"`
	}
	err = p.ask(ctx, http.MethodPatch, "/v1/domains/"+w.ids[number], w.accounts[w.owner[number]].key, lab.Object{"max_connections": count + 1}, &changed)
	if err == nil && changed.Revision == 0 {
		err = errors.New("a change has no revision")
	}
	return changed.Revision, err
}

// forgetPeak makes the kernel forget the largest resident size so far (proc_pid_clear_refs(5)).
func (p *plane) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.PID()), []byte("5"), 0)
}

// peak returns the largest resident size since, in MiB.
func (p *plane) peak() (float64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		return 0, err
	}
	return parsePeak(string(content))
}

// parsePeak reads VmHWM, which is in kB, from /proc/PID/status.
func parsePeak(status string) (float64, error) {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("/proc/PID/status has no VmHWM")
}
