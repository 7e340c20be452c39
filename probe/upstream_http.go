package probe

import (
	"context"
	"strings"
	"time"
)

// httpAnswer is what came back for a request of HTTP/1.0.
type httpAnswer struct {
	connected bool
	status    int  // of the first line; 0: it is no answer of HTTP
	bytes     bool // something came
}

const (
	maxStatusLine = 64 // is read of an answer: version and status stand in the first 12 bytes
	statusPrefix  = "HTTP/1."
)

// http makes one connection and sends, behind the header, the smallest request that every HTTP server answers and that
// changes nothing. The relay parses no HTTP; a plain TCP server tells otherwise not what it makes of a header.
func (u *upstreamProbe) http(ctx context.Context, header []byte) *httpAnswer {
	ctx, cancel := context.WithTimeout(ctx, u.step)
	defer cancel()
	a := &httpAnswer{}
	conn, err := u.dial(ctx, "tcp", u.address)
	if err != nil {
		return a
	}
	defer conn.Close()
	a.connected = true
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	request := append([]byte(nil), header...)
	request = append(request, "HEAD / HTTP/1.0\r\nHost: "+certificateName(u.name)+"\r\nUser-Agent: pqproxy-probe\r\nConnection: close\r\n\r\n"...)
	if _, err := conn.Write(request); err != nil {
		return a
	}
	line := make([]byte, 0, maxStatusLine)
	for len(line) < maxStatusLine {
		n, err := conn.Read(line[len(line):maxStatusLine])
		line = line[:len(line)+n]
		a.bytes = len(line) > 0
		if a.status = statusOf(line); a.status != 0 || err != nil || !strings.HasPrefix(string(line), statusPrefix[:min(len(line), len(statusPrefix))]) {
			break
		}
	}
	return a
}

// statusOf reads `HTTP/1.x NNN`; 0: it is none.
func statusOf(line []byte) int {
	if len(line) < len("HTTP/1.1 200") || !strings.HasPrefix(string(line), statusPrefix) || line[8] != ' ' {
		return 0
	}
	status := 0
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return 0
		}
		status = status*10 + int(c-'0')
	}
	return status
}

// comparedWith tells from the answer to a request with a header, and to the same one without, what the server made of the
// header. A server that does not know it takes its bytes for the request line, and answers 400 or not at all.
func (a *httpAnswer) comparedWith(bare *httpAnswer) ProxyAnswer {
	switch {
	case !a.connected:
		return ProxyUnknown
	case a.status == 0:
		return ProxyRefused
	case a.status == 400 && bare.status == 400:
		return ProxyUnknown
	case a.status == bare.status, a.status < 400:
		return ProxyAccepted
	case a.status == 400, a.status == 405, a.status == 501, a.status == 505:
		return ProxyRefused
	}
	return ProxyUnknown
}
