package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
)

func init() { caddy.RegisterModule(new(logWriter)) }

var (
	listening = make(chan string, 1)    // the address, once
	records   = make(chan *record, 256) // more are dropped while nobody looks
)

// logWriter is a log writer module: it picks out of Caddy's log what is shown, and passes errors on.
type logWriter struct{}

// CaddyModule returns the Caddy module information.
func (*logWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.quickstart", New: func() caddy.Module { return new(logWriter) }}
}

func (*logWriter) String() string { return "quickstart" }

// WriterKey is that of the writer replaced: otherwise Caddy would announce the change on standard error.
func (*logWriter) WriterKey() string { return caddy.StderrWriter{}.WriterKey() }

func (*logWriter) OpenWriter() (io.WriteCloser, error) { return new(logWriter), nil }
func (*logWriter) Close() error                        { return nil }

// Write gets one line of the log, which is JSON.
func (*logWriter) Write(line []byte) (int, error) {
	var entry struct {
		Level, Logger, Msg, Address string
	}
	if err := json.Unmarshal(line, &entry); err != nil {
		return 0, err
	}
	switch {
	case entry.Msg == "connection" && entry.Logger == "pqproxy.log.access":
		r := new(record)
		if err := json.Unmarshal(line, r); err != nil {
			return 0, err
		}
		select {
		case records <- r:
		default:
		}
	case entry.Msg == "listening" && entry.Logger == "pqproxy":
		select {
		case listening <- entry.Address:
		default:
		}
	case entry.Level == "error":
		return os.Stderr.Write(line)
	}
	return len(line), nil
}

// record is what is shown of a connection's record. docs/connections.md explains all of it.
type record struct {
	ID                  string
	ServerName          string `json:"server_name"`
	ClientIP            string `json:"client_ip"`
	ClientPort          int    `json:"client_port"`
	TLSVersion          string `json:"tls_version"`
	Group               string
	PostQuantum         bool `json:"post_quantum"`
	Resumed             bool
	ALPN                string
	Upstream            string
	UpstreamGroup       string  `json:"upstream_group"`
	UpstreamPostQuantum bool    `json:"upstream_post_quantum"`
	UpstreamResumed     bool    `json:"upstream_resumed"`
	ProxyProtocol       string  `json:"proxy_protocol"`
	HelloWait           seconds `json:"hello_wait"`
	Handshake           seconds
	UpstreamConnect     seconds `json:"upstream_connect"`
	UpstreamHandshake   seconds `json:"upstream_handshake"`
	FirstByte           seconds `json:"first_byte"`
	Duration            seconds
	BytesIn             int64  `json:"bytes_in"`
	BytesOut            int64  `json:"bytes_out"`
	ClosedBy            string `json:"closed_by"`
	EndReason           string `json:"end_reason"`
	Error               string
}

// print writes the record for people.
func (r *record) print(out io.Writer) {
	fmt.Fprintf(out, "\nconnection %s\n", r.ID)
	line := func(label, format string, args ...any) {
		fmt.Fprintf(out, "  %-9s "+format+"\n", append([]any{label}, args...)...)
	}
	line("client", "%s:%d asked for %q", r.ClientIP, r.ClientPort, r.ServerName)
	if r.Group != "" {
		line("", "%s, %s (%s), alpn %s, %s", r.TLSVersion, r.Group, strength(r.PostQuantum), orNone(r.ALPN), handshake(r.Resumed))
	}
	if r.Upstream != "" {
		line("upstream", "%s, PROXY %s", r.Upstream, r.ProxyProtocol)
	}
	if r.UpstreamGroup != "" {
		line("", "%s (%s), %s", r.UpstreamGroup, strength(r.UpstreamPostQuantum), handshake(r.UpstreamResumed))
	}
	line("timings", "hello_wait %v, handshake %v", r.HelloWait, r.Handshake)
	line("", "upstream_connect %v, upstream_handshake %v", r.UpstreamConnect, r.UpstreamHandshake)
	line("", "first_byte %v, duration %v", r.FirstByte, r.Duration)
	line("ended", "%s, by the %s; %d bytes in, %d out", r.EndReason, r.ClosedBy, r.BytesIn, r.BytesOut)
	if r.Error != "" {
		line("error", "%s", r.Error)
	}
}

// seconds is a duration as Caddy's JSON log has it.
type seconds float64

// String rounds to a hundredth of a millisecond.
func (s seconds) String() string {
	return time.Duration(float64(s) * float64(time.Second)).Round(10 * time.Microsecond).String()
}

func strength(postQuantum bool) string {
	if postQuantum {
		return "post-quantum"
	}
	return "classical"
}

func handshake(resumed bool) string {
	if resumed {
		return "resumed"
	}
	return "full handshake"
}

func orNone(alpn string) string {
	if alpn == "" {
		return "none"
	}
	return alpn
}
