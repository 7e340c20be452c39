package caddytest

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// proxy is a running pqproxy binary.
type proxy struct {
	*process

	// addr is where it listens: 127.0.0.1 and a port of the kernel's choice.
	addr string
}

// caddyfile wraps the content of a pqproxy block into a config that serves it on an address. The level
// is the lowest, since the record of a peer that never sends a byte is logged at debug.
func caddyfile(addr, block string) string {
	return `{
	admin off
	persist_config off
	log {
		output stderr
		format json
		level DEBUG
	}
	layer4 {
		pqproxy/` + addr + ` {
			route {
				pqproxy
			}
		}
	}
	pqproxy {
` + block + `
	}
}
`
}

// startProxy runs the binary on the content of a pqproxy block, on a free port, and waits until it
// listens. Further arguments are a command to put in front, such as a shell that lowers a limit and then
// becomes what its arguments say.
func startProxy(t *testing.T, block string, prefix ...string) *proxy {
	t.Helper()
	p := &proxy{process: start(t, "pqproxy", proxyCommand(t, "127.0.0.1:0", block, prefix...), syscall.SIGTERM)}
	var listening struct {
		Address string `json:"address"`
	}
	line, ok := p.wait(func(line string) bool { return isEvent(line, "pqproxy", "listening") })
	if !ok {
		t.Fatal("the proxy does not listen")
	}
	if err := json.Unmarshal([]byte(line), &listening); err != nil {
		t.Fatal(err)
	}
	p.addr = listening.Address
	return p
}

// proxyCommand returns the command that serves the content of a pqproxy block on an address.
func proxyCommand(t *testing.T, addr, block string, prefix ...string) *exec.Cmd {
	t.Helper()
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := writeFile(t, dir, "Caddyfile", caddyfile(addr, block))
	args := append(prefix[:len(prefix):len(prefix)], bin, "run", "--adapter", "caddyfile", "--config", config)
	cmd := exec.Command(args[0], args[1:]...)
	// Nothing of the machine's own Caddy is read or written.
	cmd.Env = append(cmd.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	return cmd
}

// record is the part of a connection's log record that these tests look at; DESIGN.md section 8 and
// docs/connection-log.md list all of it.
type record struct {
	ID                 string `json:"id"`
	ServerName         string `json:"server_name"`
	Domain             string `json:"domain"`
	ClientIP           string `json:"client_ip"`
	ClientPort         int    `json:"client_port"`
	TLSVersion         string `json:"tls_version"`
	Group              string `json:"group"`
	PostQuantum        bool   `json:"post_quantum"`
	OfferedPostQuantum bool   `json:"offered_post_quantum"`
	HelloRetry         bool   `json:"hello_retry"`
	ALPN               string `json:"alpn"`
	Upstream           string `json:"upstream"`
	UpstreamGroup      string `json:"upstream_group"`
	ProxyProtocol      string `json:"proxy_protocol"`
	BytesIn            int64  `json:"bytes_in"`
	BytesOut           int64  `json:"bytes_out"`
	ClosedBy           string `json:"closed_by"`
	EndReason          string `json:"end_reason"`
	Error              string `json:"error"`
}

// record waits for the record of a connection, which the proxy writes when it has ended.
func (p *proxy) record(t *testing.T, match func(record) bool) record {
	t.Helper()
	var found record
	_, ok := p.wait(func(line string) bool {
		if !isEvent(line, "pqproxy.log.access", "connection") {
			return false
		}
		found = record{}
		if err := json.Unmarshal([]byte(line), &found); err != nil {
			t.Errorf("a record that is not as DESIGN.md section 8 has it: %v\n%s", err, line)
			return false
		}
		return match(found)
	})
	if !ok {
		t.Fatal("the proxy wrote no such record")
	}
	return found
}

// recordOf waits for the record of the connection that came from a port of 127.0.0.1 for a name.
func (p *proxy) recordOf(t *testing.T, serverName string, port int) record {
	t.Helper()
	return p.record(t, func(r record) bool { return r.ServerName == serverName && r.ClientPort == port })
}

// isEvent reports whether a line of Caddy's JSON log has that logger and message.
func isEvent(line, logger, message string) bool {
	var event struct {
		Logger string `json:"logger"`
		Msg    string `json:"msg"`
	}
	return json.Unmarshal([]byte(line), &event) == nil && event.Logger == logger && event.Msg == message
}

// domainBlock returns a domain of a pqproxy block with the options given, one a line.
func domainBlock(name string, options ...string) string {
	return fmt.Sprintf("domain %s {\n\t%s\n}\n", name, strings.Join(options, "\n\t"))
}
