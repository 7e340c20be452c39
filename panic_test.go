package pqproxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// TestPanicInConnection has a fault of ours meet each part of a connection: that one ends with a record that says so, and a stack in the
// log; whoever else comes is served.
func TestPanicInConnection(t *testing.T) {
	pqtest.Leaks(t)
	e := startEdge(t, "")
	up := pqtest.StartUpstream(t, pqtest.UpstreamConfig{})
	e.load(fmt.Sprintf("domain app.example.com {\n certificate $CHAIN $KEY\n upstream %[1]s\n}\ndomain b.example.com {\n certificate $CHAIN $KEY\n upstream %[1]s\n}", up.Addr()))
	s := inForce.Load()
	whole := *routed(t, s, "app.example.com")
	for name, spoil := range map[string]func(r *route){
		"the handshake": func(r *route) { r.policy = nil },
		"the dial":      func(r *route) { r.upstreams = []*upstream{nil} },
	} {
		t.Run(name, func(t *testing.T) {
			spoilt := whole
			spoil(&spoilt)
			served := s.table.Load().named("app.example.com")
			served.forget()
			served.keep(&spoilt)
			conn, err := tls.Dial("tcp", e.addr, e.client("app.example.com"))
			if err == nil {
				_, err = io.ReadAll(conn)
				conn.Close()
			}
			if err == nil {
				t.Error("the client met a clean end")
			}
			record := e.log.recordWhere("server_name", "app.example.com")
			if record.str("end_reason") != string(reasonInternal) || record.str("closed_by") != string(sideEdge) {
				t.Errorf("record: %v", record)
			}
			line := e.log.message("connection panicked")
			if line.str("id") != record.str("id") || line.str("level") != "error" || !strings.Contains(line.str("stack"), "goroutine") {
				t.Errorf("log: %v", line)
			}
			other := e.dial(e.client("b.example.com"))
			echo(t, other, "hi")
			other.Close()
			e.log.recordWhere("server_name", "b.example.com")
		})
	}
}
