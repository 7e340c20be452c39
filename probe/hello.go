package probe

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
)

// helloRecorder keeps the first ClientHello as it goes out: what is written before the first read. It
// belongs to the goroutine that does the handshake.
type helloRecorder struct {
	net.Conn
	hello    []byte
	answered bool
}

func (r *helloRecorder) Write(b []byte) (int, error) {
	if !r.answered {
		r.hello = append(r.hello, b...)
	}
	return r.Conn.Write(b)
}

func (r *helloRecorder) Read(b []byte) (int, error) {
	r.answered = true
	return r.Conn.Read(b)
}

// helloGroups returns the groups that a recorded ClientHello offers, in its order. The configuration does
// not tell: `GODEBUG=tlsmlkem=0` and FIPS 140 mode take groups away without a word, and a probe that
// offered no hybrid group must not blame the server. crypto/tls itself reads the hello, as a server.
func helloGroups(hello []byte) []tls.CurveID {
	var groups []tls.CurveID
	server := tls.Server(&replay{hello: bytes.NewReader(hello)}, &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			groups = info.SupportedCurves
			return nil, errHelloRead
		},
	})
	_ = server.Handshake() // errHelloRead, or the hello never left
	return groups
}

var errHelloRead = errors.New("hello read")

// replay is a connection on which a recorded hello arrives. crypto/tls calls nothing else of it before
// the callback, and only Write, with its alert, after.
type replay struct {
	net.Conn
	hello *bytes.Reader
}

func (r *replay) Read(b []byte) (int, error)  { return r.hello.Read(b) }
func (r *replay) Write(b []byte) (int, error) { return len(b), nil }
