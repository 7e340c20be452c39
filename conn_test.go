package pqproxy

import (
	"crypto/tls"
	"fmt"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestServeConn follows one connection through the main job: hybrid key exchange, route by SNI, PROXY v1
// in clear in front of TLS towards the upstream, relay, one record.
func TestServeConn(t *testing.T) {
	pqtest.Leaks(t)
	edge := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{
		Proxy: true,
		TLS:   &tls.Config{Certificates: []tls.Certificate{edge.ca.Issue(t, "app.internal")}},
	})
	edge.load(fmt.Sprintf(`
		domain app.example.com {
			tenant acme
			upstream %s {
				tls_server_name app.internal
				tls_ca $CA
			}
			proxy_protocol v1
			certificate $CHAIN $KEY
		}`, up.Addr()))

	c := edge.dial(edge.client("app.example.com"))
	echo(t, c, "hello")
	got := up.Next(t)
	if got.Header == nil || got.Header.SourceAddr.String() != c.LocalAddr().String() || got.Header.DestinationAddr.String() != edge.addr {
		t.Errorf("upstream was told %+v, want source %s and destination %s", got.Header, c.LocalAddr(), edge.addr)
	}
	if got.State.CurveID != tls.X25519MLKEM768 || got.FirstSegments() != 1 {
		t.Errorf("upstream negotiated %s, header and hello came in %d writes", got.State.CurveID, got.FirstSegments())
	}
	c.Close()

	r := edge.log.nextRecord()
	for key, want := range map[string]any{
		"server_name": "app.example.com", "domain": "app.example.com", "tenant": "acme", "source": "static",
		"tls_version": "TLS 1.3", "group": "X25519MLKEM768", "post_quantum": true, "offered_post_quantum": true,
		"hello_retry": false, "resumed": false, "upstream": up.Addr(), "upstream_group": "X25519MLKEM768",
		"upstream_post_quantum": true, "proxy_protocol": "v1", "bytes_in": 5.0, "bytes_out": 5.0,
		"closed_by": "client", "end_reason": "done", "level": "info", "logger": "pqproxy.log.access",
	} {
		if r[key] != want {
			t.Errorf("record has %s=%v, want %v", key, r[key], want)
		}
	}
}
