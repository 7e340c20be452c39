package mail

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// patience is how long tests wait for what must happen.
const patience = 20 * time.Second

// watched is a buffer that can be waited on: for the log, and for what the server got.
type watched struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed != nil {
		close(w.changed)
	}
	w.changed = make(chan struct{})
	return w.buf.Write(b)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// wait waits until text was written n times.
func (w *watched) wait(t *testing.T, text string, n int) {
	t.Helper()
	timeout := time.After(patience)
	for {
		w.mu.Lock()
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed, got := w.changed, w.buf.String()
		w.mu.Unlock()
		if strings.Count(got, text) >= n {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%q was not written %d times:\n%s", text, n, got)
		}
	}
}

// received is a mail that the server took.
type received struct {
	from, to, user, hello string
	tls                   bool
	data                  []byte
}

// server is a real SMTP server on loopback. Its fields may be changed until serve.
type server struct {
	*smtp.Server
	roots *x509.CertPool // of its certificate, which is for 127.0.0.1
	cert  tls.Certificate
	addr  string

	onRcpt func(to string) error                        // nil: takes all
	onData func(conn net.Conn, earlier int) (err error) // after the data came, of which earlier were seen before; nil: takes all

	mails chan received

	mu    sync.Mutex // guards all below
	auths int
	seen  [][]byte // all data, taken or not
}

const (
	username = "mailer"
	secret   = "smtp-password"
)

func newServer(t *testing.T) *server {
	t.Helper()
	certified := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	defer certified.Close()
	s := &server{roots: x509.NewCertPool(), cert: certified.TLS.Certificates[0], mails: make(chan received, 100)}
	s.roots.AddCert(certified.Certificate())
	s.Server = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		return &session{server: s, conn: c}, nil
	}))
	s.Domain = "mx.example.com"
	s.ErrorLog = silent{}
	s.ReadTimeout, s.WriteTimeout = patience, patience
	s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{s.cert}}
	return s
}

// serve starts the server; secure: TLS from the first byte.
func (s *server) serve(t *testing.T, secure bool) *server {
	t.Helper()
	ln := listen(t)
	s.addr = ln.Addr().String()
	if secure {
		ln = tls.NewListener(ln, s.TLSConfig)
	}
	var done sync.WaitGroup
	done.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() {
		_ = s.Close()
		done.Wait()
	})
	return s
}

// mail waits for the next mail.
func (s *server) mail(t *testing.T) received {
	t.Helper()
	select {
	case m := <-s.mails:
		return m
	case <-time.After(patience):
		t.Fatal("no mail came")
		return received{}
	}
}

// counts returns how many tried to sign in, and how often data came.
func (s *server) counts() (auths, data int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.auths, len(s.seen)
}

type silent struct{}

func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}

type session struct {
	server *server
	conn   *smtp.Conn
	received
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	s.server.mu.Lock()
	s.server.auths++
	s.server.mu.Unlock()
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != username || password != secret {
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "wrong: " + password}
		}
		s.user = user
		return nil
	}), nil
}

func (s *session) Reset()        {}
func (s *session) Logout() error { return nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = to
	if s.server.onRcpt != nil {
		return s.server.onRcpt(to)
	}
	return nil
}

func (s *session) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.data = data
	s.hello = s.conn.Hostname()
	_, s.tls = s.conn.TLSConnectionState()
	s.server.mu.Lock()
	earlier := len(s.server.seen)
	s.server.seen = append(s.server.seen, data)
	s.server.mu.Unlock()
	if s.server.onData != nil {
		if err := s.server.onData(s.conn.Conn(), earlier); err != nil {
			return err
		}
	}
	s.server.mails <- s.received
	return nil
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// peer is a server that speaks as it likes: each connection is handed to talk, which returns when it is done with it.
func peer(t *testing.T, talk func(net.Conn)) (addr string) {
	t.Helper()
	ln := listen(t)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer func() { _ = c.Close() }()
				talk(c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		all.Wait()
	})
	return ln.Addr().String()
}

// deaf says nothing and waits for the end of the connection.
func deaf(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// start returns a Mailer with a watched log and short waits, closed at the end of the test. change sees it before it works.
func start(t *testing.T, c Config, change func(*Mailer)) (*Mailer, *watched) {
	t.Helper()
	log := new(watched)
	c.Log = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if c.From == "" {
		c.From = "pqproxy <no-reply@example.com>"
	}
	m, err := newMailer(c)
	if err != nil {
		t.Fatal(err)
	}
	m.backoff = func(int) time.Duration { return time.Millisecond }
	m.timeout = patience
	if change != nil {
		change(m)
	}
	go m.run()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = m.Close(ctx)
		for _, s := range []string{link, "hidden-token", secret} {
			if strings.Contains(log.String(), s) {
				t.Errorf("the log has %q:\n%s", s, log)
			}
		}
	})
	return m, log
}

// remote makes a server on loopback count as one elsewhere.
func remote(m *Mailer) { m.isLocal = func(net.Addr) bool { return false } }
