package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"strings"
	"time"
)

// mostFromServer is what a server may send in one attempt, handshake included: net/textproto reads lines of any length.
const mostFromServer = 256 << 10

// smtpError is a refusal of the server. It carries the codes and not the words: filters like to quote what they dislike, and that
// would be the link.
type smtpError struct {
	step     string // what was asked
	code     int    // of RFC 5321 section 4.2
	enhanced string // of RFC 3463, such as 5.1.1; empty where there is none
}

func (e *smtpError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the SMTP server refused at %s: %d %s", e.step, e.code, e.enhanced))
}

// isPermanent reports whether another attempt would fail in the same way: the server said so.
func isPermanent(err error) bool {
	var refused *smtpError
	return errors.As(err, &refused) && refused.code >= 500
}

// attempt takes a letter to the server. Everything in it has one deadline; the end of stop ends it too.
func (m *Mailer) attempt(stop context.Context, l *letter) error {
	ctx, cancel := context.WithTimeout(stop, m.timeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", m.server)
	if err != nil {
		return fmt.Errorf("connecting to the SMTP server: %w", err)
	}
	defer func() { _ = raw.Close() }()
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	defer context.AfterFunc(stop, func() { _ = raw.Close() })()

	conn := net.Conn(&boundedConn{Conn: raw, left: mostFromServer})
	config := &tls.Config{ServerName: m.host, RootCAs: m.rootCAs, MinVersion: tls.VersionTLS12}
	secure := m.implicitTLS
	if secure {
		client := tls.Client(conn, config)
		if err := client.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("TLS with the SMTP server: %w", err)
		}
		conn = client
	}
	c, err := smtp.NewClient(conn, m.host)
	if err != nil {
		return failed("the greeting", err)
	}
	if err := c.Hello(literal(raw.LocalAddr())); err != nil {
		return failed("EHLO", err)
	}
	// A server on this machine often has a certificate that nobody can verify, and nobody is in between. But a password is never
	// sent in clear: who knows what listens there.
	if !secure && (m.username != "" || !m.isLocal(raw.RemoteAddr())) {
		if ok, _ := c.Extension("STARTTLS"); !ok {
			return errors.New("the SMTP server offers no STARTTLS, so the mail would go over the network in clear; use a server or a port with TLS")
		}
		if err := c.StartTLS(config); err != nil {
			return failed("STARTTLS", err)
		}
	}
	if m.username != "" {
		if ok, mechanisms := c.Extension("AUTH"); !ok || !strings.Contains(" "+mechanisms+" ", " PLAIN ") {
			return errors.New("the SMTP server offers no AUTH PLAIN; leave out username and password, or use another server")
		}
		if err := c.Auth(smtp.PlainAuth("", m.username, m.password, m.host)); err != nil {
			return failed("AUTH", err)
		}
	}
	if err := c.Mail(m.from.Address); err != nil {
		return failed("MAIL FROM", err)
	}
	if err := c.Rcpt(l.to); err != nil {
		return failed("RCPT TO", err)
	}
	w, err := c.Data()
	if err != nil {
		return failed("DATA", err)
	}
	if _, err := w.Write(l.data); err != nil {
		return failed("DATA", err)
	}
	if err := w.Close(); err != nil {
		return failed("the end of the mail", err)
	}
	// It is the server's now. If it will not even take leave, that is no reason to send the mail again.
	_ = raw.SetDeadline(earlier(deadline, time.Now().Add(5*time.Second)))
	_ = c.Quit()
	return nil
}

// failed says at which step an attempt failed, and keeps out what the server said.
func failed(step string, err error) error {
	var refused *textproto.Error
	if errors.As(err, &refused) {
		return &smtpError{step, refused.Code, enhancedCode(refused.Msg)}
	}
	var garbled textproto.ProtocolError
	if errors.As(err, &garbled) {
		return fmt.Errorf("the SMTP server did not speak SMTP at %s", step)
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the SMTP server closed the connection at %s", step)
	}
	return fmt.Errorf("SMTP at %s: %w", step, err)
}

// enhancedCode returns the status code that an answer begins with (RFC 2034 section 4), such as 5.1.1, or nothing.
func enhancedCode(message string) string {
	first, _, _ := strings.Cut(message, " ")
	if len(first) > len("5.123.123") || strings.Count(first, ".") != 2 || strings.Trim(first, "0123456789.") != "" {
		return ""
	}
	return first
}

// literal returns an address as EHLO has it from hosts whose name means nothing elsewhere (RFC 5321 section 4.1.3).
func literal(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	switch {
	case !ok:
		return "localhost"
	case tcp.IP.To4() != nil:
		return "[" + tcp.IP.String() + "]"
	}
	return "[IPv6:" + tcp.IP.String() + "]"
}

func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// boundedConn fails when more than left bytes came in. Only one goroutine reads.
type boundedConn struct {
	net.Conn
	left int
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the SMTP server sent too much")
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}
