package pqproxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
)

// BenchmarkRelay sends bulk through a whole edge, client and upstream in the same process, so that most of what it
// shows is their work; use it for profiles of the relay (-cpuprofile), and bench/ for comparisons.
func BenchmarkRelay(b *testing.B) {
	for _, upstream := range []string{"plain", "tls"} {
		for _, direction := range []string{"up", "down"} {
			b.Run(fmt.Sprintf("upstream=%s/direction=%s", upstream, direction), func(b *testing.B) {
				benchmarkRelay(b, upstream == "tls", direction == "down")
			})
		}
	}
}

func benchmarkRelay(b *testing.B, tlsUpstream, down bool) {
	const chunk = 1 << 20
	e := startEdge(b, "")
	cfg, options := pqtest.UpstreamConfig{}, ""
	if tlsUpstream {
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{e.ca.Issue(b, "app.example.com")}}
		options = "{\n tls_ca $CA\n tls_server_name app.example.com\n}"
	}
	cfg.Handler = func(c *pqtest.UpstreamConn) {
		if !down {
			_, _ = io.Copy(io.Discard, c.Conn)
			return
		}
		for data := make([]byte, chunk); ; {
			if _, err := c.Conn.Write(data); err != nil {
				return
			}
		}
	}
	up := pqtest.StartUpstream(b, cfg)
	e.load(fmt.Sprintf("domain app.example.com {\n upstream %s %s\n certificate $CHAIN $KEY\n}", up.Addr(), options))
	c := e.dial(e.client("app.example.com", func(c *tls.Config) { c.DynamicRecordSizingDisabled = true }))
	defer c.Close()
	data := make([]byte, chunk)
	b.SetBytes(chunk)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if down {
			_, err = io.ReadFull(c, data)
		} else {
			_, err = c.Write(data)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandshake is one connection after the other: handshake, one byte there and back, close.
func BenchmarkHandshake(b *testing.B) {
	for _, resumed := range []bool{false, true} {
		b.Run(fmt.Sprintf("resumed=%v", resumed), func(b *testing.B) {
			e := startEdge(b, "")
			up := pqtest.StartUpstream(b, pqtest.UpstreamConfig{})
			e.load(fmt.Sprintf("domain app.example.com {\n upstream %s\n certificate $CHAIN $KEY\n}", up.Addr()))
			cfg := e.client("app.example.com")
			if resumed {
				cfg.ClientSessionCache = tls.NewLRUClientSessionCache(8)
			}
			one := make([]byte, 1)
			b.ReportAllocs()
			for b.Loop() {
				c, err := tls.Dial("tcp", e.addr, cfg)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Write(one); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, one); err != nil {
					b.Fatal(err)
				}
				_ = c.Close()
			}
		})
	}
}
