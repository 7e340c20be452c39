package demo

import (
	"fmt"
	"io"
	"time"
)

// Record is what is shown of a connection's record, as the log and the API have it. docs/connections.md explains all of it.
type Record struct {
	ID                  string
	Edge                string // as the API has it
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
	HelloWait           Seconds `json:"hello_wait"`
	Handshake           Seconds
	UpstreamConnect     Seconds `json:"upstream_connect"`
	UpstreamHandshake   Seconds `json:"upstream_handshake"`
	FirstByte           Seconds `json:"first_byte"`
	Duration            Seconds
	BytesIn             int64  `json:"bytes_in"`
	BytesOut            int64  `json:"bytes_out"`
	ClosedBy            string `json:"closed_by"`
	EndReason           string `json:"end_reason"`
	Error               string
}

// Print writes the record for people.
func (r *Record) Print(out io.Writer) {
	fmt.Fprintf(out, "\nconnection %s", r.ID)
	if r.Edge != "" {
		fmt.Fprintf(out, " on %s", r.Edge)
	}
	fmt.Fprintln(out)
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

// Seconds is a duration as the log and the API have it.
type Seconds float64

// String rounds to a hundredth of a millisecond.
func (s Seconds) String() string {
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
