package mail

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

const (
	to   = "ada@example.net"
	link = "https://console.example.com:8443/reset/hidden-token-0123456789abcdefghijklmnopqrstuvwxyzABCDEF?x=1&y=2"
)

// read parses a mail as a reader of mails does, and returns its header and text.
func read(t testing.TB, data []byte) (netmail.Header, string) {
	t.Helper()
	m, err := netmail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("%v in %q", err, data)
	}
	text, err := io.ReadAll(quotedprintable.NewReader(m.Body))
	if err != nil {
		t.Fatal(err)
	}
	return m.Header, strings.ReplaceAll(string(text), "\r\n", "\n")
}

func TestSend(t *testing.T) {
	s := newServer(t).serve(t, false)
	m, log := start(t, Config{Server: s.addr, From: "Bücher pqproxy <no-reply@example.com>", Username: username, Password: secret, RootCAs: s.roots}, remote)
	for _, test := range []struct {
		send    func()
		subject string
		says    []string
	}{
		{func() { m.SendVerification(to, link) }, "Confirm your address for console.example.com:8443", []string{"signed up"}},
		{func() { m.SendAlreadyRegistered(to, link) }, "You already have an account at console.example.com:8443", []string{"already", "Nothing was changed"}},
		{func() { m.SendInvitation(to, "Bäckerei 100% {link} \"x\" \u202egmbh", link) }, "You are invited to console.example.com:8443", []string{`"Bäckerei 100% {link} 'x' gmbh"`}},
		{func() { m.SendReset(to, link) }, "Choose a new password for console.example.com:8443", []string{"new password"}},
	} {
		test.send()
		got := s.mail(t)
		if !got.tls || got.user != username || got.from != "no-reply@example.com" || got.to != to || got.hello != "[127.0.0.1]" {
			t.Errorf("envelope: %+v", got)
		}
		header, text := read(t, got.data)
		subject, err := new(mime.WordDecoder).DecodeHeader(header.Get("Subject"))
		if err != nil || subject != test.subject {
			t.Errorf("subject %q, %v", subject, err)
		}
		from, err := header.AddressList("From")
		if err != nil || len(from) != 1 || from[0].Name != "Bücher pqproxy" || from[0].Address != "no-reply@example.com" {
			t.Errorf("From: %v, %v", from, err)
		}
		if list, err := header.AddressList("To"); err != nil || len(list) != 1 || list[0].Address != to {
			t.Errorf("To: %v, %v", list, err)
		}
		if date, err := header.Date(); err != nil || time.Since(date) > time.Minute || time.Since(date) < -time.Second {
			t.Errorf("Date: %v, %v", date, err)
		}
		if id := header.Get("Message-ID"); !strings.HasPrefix(id, "<") || !strings.HasSuffix(id, "@example.com>") {
			t.Errorf("Message-ID: %s", id)
		}
		for name, want := range map[string]string{
			"Auto-Submitted": "auto-generated", "Mime-Version": "1.0", "Content-Type": "text/plain; charset=utf-8", "Content-Transfer-Encoding": "quoted-printable",
		} {
			if header.Get(name) != want {
				t.Errorf("%s: %q", name, header.Get(name))
			}
		}
		if len(header) != 9 {
			t.Errorf("%d headers: %v", len(header), header)
		}
		for _, says := range append(test.says, "\n\n"+link+"\n\n") {
			if !strings.Contains(text, says) {
				t.Errorf("%q is missing in\n%s", says, text)
			}
		}
		for line := range bytes.Lines(got.data) {
			if len(line) > 78+2 && !bytes.HasPrefix(line, []byte("Subject")) || !bytes.HasSuffix(line, []byte("\r\n")) {
				t.Errorf("line %q", line)
			}
		}
	}
	log.wait(t, "mail is sent", 4)
}

func TestSendImplicitTLS(t *testing.T) {
	s := newServer(t).serve(t, true)
	m, _ := start(t, Config{Server: s.addr, Username: username, Password: secret, RootCAs: s.roots}, func(m *Mailer) {
		remote(m)
		m.implicitTLS = true
	})
	m.SendReset(to, link)
	if got := s.mail(t); got.user != username || got.to != to {
		t.Errorf("%+v", got)
	}
	for server, want := range map[string]bool{"smtp.example.com:465": true, "smtp.example.com:587": false, "[::1]:25": false} {
		if m, err := newMailer(Config{Server: server, From: "a@b"}); err != nil || m.implicitTLS != want {
			t.Errorf("%s: %v, %v", server, m.implicitTLS, err)
		}
	}
}

// TestSendNotInClear has servers to which nothing may be said in clear.
func TestSendNotInClear(t *testing.T) {
	for _, test := range []struct {
		name   string
		server func(*server)
		config func(*server, *Config)
		change func(*Mailer)
		want   string
	}{
		{"no STARTTLS", func(s *server) { s.TLSConfig = nil }, nil, remote, "offers no STARTTLS"},
		{"a password for a local server without STARTTLS", func(s *server) { s.TLSConfig, s.AllowInsecureAuth = nil, true },
			func(_ *server, c *Config) { c.Username, c.Password = username, secret }, nil, "offers no STARTTLS"},
		{"a certificate of nobody", nil, func(_ *server, c *Config) { c.RootCAs = nil }, remote, "x509"},
		{"a password for a local server with a certificate of nobody", nil,
			func(_ *server, c *Config) { c.RootCAs, c.Username, c.Password = nil, username, secret }, nil, "x509"},
		{"a certificate of another name", nil, func(s *server, c *Config) {
			_, port, _ := net.SplitHostPort(s.addr)
			c.Server = net.JoinHostPort("localhost", port)
		}, remote, "x509"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			if test.server != nil {
				test.server(s)
			}
			s.serve(t, false)
			c := Config{Server: s.addr, RootCAs: s.roots}
			if test.config != nil {
				test.config(s, &c)
			}
			m, log := start(t, c, func(m *Mailer) {
				if test.change != nil {
					test.change(m)
				}
				m.giveUp = 0
			})
			m.SendReset(to, link)
			log.wait(t, "not tried again", 1)
			if !strings.Contains(log.String(), test.want) {
				t.Errorf("%q is missing in the log:\n%s", test.want, log)
			}
			if auths, data := s.counts(); auths+data > 0 {
				t.Errorf("it was told %d passwords and %d mails", auths, data)
			}
		})
	}
}

// TestSendLocal has a server on this machine: in clear, even if it has a certificate that nobody can verify.
func TestSendLocal(t *testing.T) {
	for _, certified := range []bool{false, true} {
		s := newServer(t)
		if !certified {
			s.TLSConfig = nil
		}
		s.serve(t, false)
		m, _ := start(t, Config{Server: s.addr}, nil)
		m.SendReset(to, link)
		if got := s.mail(t); got.tls || got.user != "" {
			t.Errorf("%+v", got)
		}
	}
}

func TestSendWrongPassword(t *testing.T) {
	s := newServer(t).serve(t, false)
	m, log := start(t, Config{Server: s.addr, Username: username, Password: "hidden-token", RootCAs: s.roots}, nil)
	m.SendReset(to, link)
	log.wait(t, "not tried again", 1)
	if !strings.Contains(log.String(), "refused at AUTH: 535 5.7.8") {
		t.Error(log)
	}
}

func TestSendNoPlainAuth(t *testing.T) {
	s := newServer(t)
	for _, offer := range []string{"AUTH LOGIN XOAUTH2", "AUTH", "SIZE"} {
		addr := peer(t, func(c net.Conn) {
			converse(tls.Server(c, s.TLSConfig), map[string]string{"EHLO": "250-mx\r\n250 " + offer})
		})
		m, log := start(t, Config{Server: addr, Username: username, Password: secret, RootCAs: s.roots}, func(m *Mailer) { m.giveUp, m.implicitTLS = 0, true })
		m.SendReset(to, link)
		log.wait(t, "not tried again", 1)
		if !strings.Contains(log.String(), "offers no AUTH PLAIN") {
			t.Errorf("%s: %s", offer, log)
		}
	}
}

// TestRefusedRecipient wants one attempt where the server says no for good, and words of the server nowhere: they may quote the
// mail.
func TestRefusedRecipient(t *testing.T) {
	s := newServer(t)
	s.onRcpt = func(string) error {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user, and no " + link}
	}
	s.serve(t, false)
	m, log := start(t, Config{Server: s.addr}, nil)
	m.SendReset(to, link)
	log.wait(t, "not tried again", 1)
	for _, want := range []string{"refused at RCPT TO: 550 5.1.1", "mail=reset", "to_domain=example.net", "attempts=1", "@example.com"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q is missing in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log.String(), "ada") || strings.Contains(log.String(), "no such user") {
		t.Errorf("the log says too much:\n%s", log)
	}
	if _, data := s.counts(); data != 0 {
		t.Error("the mail was sent nevertheless")
	}
}

// TestGreylisting wants another attempt where the server says not now, with the same Message-ID.
func TestGreylisting(t *testing.T) {
	s := newServer(t)
	s.onData = func(_ net.Conn, earlier int) error {
		if earlier < 2 {
			return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "later: " + link}
		}
		return nil
	}
	s.serve(t, false)
	m, log := start(t, Config{Server: s.addr}, nil)
	m.SendReset(to, link)
	got := s.mail(t)
	log.wait(t, "mail is sent", 1)
	if strings.Count(log.String(), "refused at the end of the mail: 451 4.7.1") != 2 || !strings.Contains(log.String(), "attempts=3") {
		t.Error(log)
	}
	for _, data := range s.seen {
		if !bytes.Equal(data, got.data) {
			t.Errorf("attempts differ:\n%s\n%s", data, got.data)
		}
	}
}

// TestDyingServer has one that hangs up in the middle, first after the mail and then before the greeting.
func TestDyingServer(t *testing.T) {
	s := newServer(t)
	s.onData = func(conn net.Conn, earlier int) error {
		if earlier == 0 {
			_ = conn.Close()
			return errors.New("gone")
		}
		return nil
	}
	s.serve(t, false)
	m, log := start(t, Config{Server: s.addr}, nil)
	m.SendReset(to, link)
	if got := s.mail(t); got.to != to {
		t.Errorf("%+v", got)
	}
	log.wait(t, "not sent yet", 1)

	for name, test := range map[string]struct {
		talk func(net.Conn)
		want string
	}{
		"hangs up":       {func(net.Conn) {}, "at the greeting"},
		"no SMTP":        {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 "+link+"\r\n\r\n"); deaf(c) }, "did not speak SMTP at the greeting"},
		"endless line":   {func(c net.Conn) { endless(c, "220 ", "x") }, "too much"},
		"endless answer": {func(c net.Conn) { endless(c, "220-x\r\n", "220-x\r\n") }, "too much"},
		"refuses":        {func(c net.Conn) { _, _ = io.WriteString(c, "421 "+link+"\r\n"); deaf(c) }, "refused at the greeting: 421"},
	} {
		t.Run(name, func(t *testing.T) {
			m, log := start(t, Config{Server: peer(t, test.talk)}, func(m *Mailer) { m.giveUp = 0 })
			m.SendReset(to, link)
			log.wait(t, "not tried again", 1)
			if !strings.Contains(log.String(), test.want) {
				t.Errorf("%q is missing in the log:\n%s", test.want, log)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		ln := listen(t)
		_ = ln.Close()
		m, log := start(t, Config{Server: ln.Addr().String()}, func(m *Mailer) { m.giveUp = 50 * time.Millisecond })
		m.SendReset(to, link)
		log.wait(t, "not tried again", 1)
	})
}

// endless writes first, and then more until the other side has had enough.
func endless(c net.Conn, first, more string) {
	_, err := io.WriteString(c, first)
	for more = strings.Repeat(more, 1000); err == nil; {
		_, err = io.WriteString(c, more)
	}
}

// never is no answer.
const never = "never"

// converse answers each command as told, and 250 otherwise.
func converse(c net.Conn, answers map[string]string) {
	_, _ = io.WriteString(c, "220 mx\r\n")
	for lines := bufio.NewScanner(c); lines.Scan(); {
		verb, _, _ := strings.Cut(lines.Text(), " ")
		answer := answers[verb]
		switch answer {
		case "":
			answer = "250 ok"
		case never:
			deaf(c)
			return
		}
		if _, err := io.WriteString(c, answer+"\r\n"); err != nil {
			return
		}
	}
}

// TestSlowServer has servers that stop answering at each step: the attempt ends at its deadline all the same.
func TestSlowServer(t *testing.T) {
	for name, talk := range map[string]func(net.Conn){
		"connect":  deaf,
		"EHLO":     func(c net.Conn) { converse(c, map[string]string{"EHLO": never}) },
		"STARTTLS": func(c net.Conn) { _, _ = io.WriteString(c, "220 x\r\n"); answerThenDeaf(c) },
		"MAIL":     func(c net.Conn) { converse(c, map[string]string{"MAIL": "250-"}) },
	} {
		t.Run(name, func(t *testing.T) {
			m, log := start(t, Config{Server: peer(t, talk)}, func(m *Mailer) {
				if name == "STARTTLS" {
					remote(m)
				}
				m.timeout, m.giveUp = 50*time.Millisecond, 0
			})
			m.SendReset(to, link)
			log.wait(t, "not tried again", 1)
			if !strings.Contains(log.String(), "timeout") {
				t.Error(log)
			}
		})
	}
}

// answerThenDeaf offers STARTTLS, agrees to it, and says no more.
func answerThenDeaf(c net.Conn) {
	lines := bufio.NewScanner(c)
	for _, answer := range []string{"250-mx\r\n250 STARTTLS\r\n", "220 go\r\n"} {
		if !lines.Scan() {
			return
		}
		_, _ = io.WriteString(c, answer)
	}
	deaf(c)
}

// TestQuitUnanswered wants a mail that was taken to count as sent, whatever becomes of the connection.
func TestQuitUnanswered(t *testing.T) {
	addr := peer(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 mx\r\n")
		data := false
		for lines := bufio.NewScanner(c); lines.Scan(); {
			answer := "250 ok"
			switch line := lines.Text(); {
			case data && line != ".":
				continue
			case line == "DATA":
				data, answer = true, "354 go"
			case line == ".":
				data = false
			case line == "QUIT":
				return
			}
			_, _ = io.WriteString(c, answer+"\r\n")
		}
	})
	m, log := start(t, Config{Server: addr}, nil)
	m.SendReset(to, link)
	log.wait(t, "mail is sent", 1)
	if strings.Contains(log.String(), "not") {
		t.Error(log)
	}
}

// TestQueueIsBounded sends more than there is room for to a server that never answers. Sending does not wait.
func TestQueueIsBounded(t *testing.T) {
	m, log := start(t, Config{Server: peer(t, deaf)}, func(m *Mailer) { m.most = 10 })
	for range 15 {
		m.SendReset(to, link)
	}
	if n := strings.Count(log.String(), "10 mails are waiting already"); n != 5 {
		t.Errorf("%d were refused:\n%s", n, log)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting)+m.working != 10 || m.working > mostActive {
		t.Errorf("%d wait, %d are in work", len(m.waiting), m.working)
	}
}

// TestClose wants what was never tried to be tried, and nothing to be taken afterwards.
func TestClose(t *testing.T) {
	s := newServer(t).serve(t, false)
	m, log := start(t, Config{Server: s.addr}, nil)
	for range 10 {
		m.SendReset(to, link)
	}
	for range 2 {
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.mails) != 10 {
		t.Errorf("%d mails were sent", len(s.mails))
	}
	m.SendReset(to, link)
	if !strings.Contains(log.String(), "the service is stopping") {
		t.Error(log)
	}
}

// TestCloseIsBounded has a server that never answers: Close ends the attempts with its context.
func TestCloseIsBounded(t *testing.T) {
	talking := make(chan struct{}, 100)
	addr := peer(t, func(c net.Conn) {
		talking <- struct{}{}
		deaf(c)
	})
	m, log := start(t, Config{Server: addr}, func(m *Mailer) { m.timeout = time.Hour })
	for range 10 {
		m.SendReset(to, link)
	}
	<-talking
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	select {
	case <-m.done:
	default:
		t.Error("Close returned before all was over")
	}
	log.wait(t, "mails are lost", 1)
}

// TestCloseDropsRetries wants Close not to wait for the next attempt.
func TestCloseDropsRetries(t *testing.T) {
	m, log := start(t, Config{Server: peer(t, func(net.Conn) {})}, func(m *Mailer) { m.backoff = func(int) time.Duration { return 30 * time.Minute } })
	m.SendReset(to, link)
	log.wait(t, "not sent yet", 1)
	if err := m.Close(t.Context()); err != nil {
		t.Errorf("Close: %v", err)
	}
	if !strings.Contains(log.String(), "mails are lost") {
		t.Error(log)
	}
}

func TestBackoff(t *testing.T) {
	var total time.Duration
	attempts := 1
	for ; total+backoff(attempts) < giveUpAfter; attempts++ {
		if wait := backoff(attempts); wait < 10*time.Second || wait > 10*time.Minute || attempts > 1 && wait < backoff(attempts-1) {
			t.Errorf("%v after %d attempts", wait, attempts)
		}
		total += backoff(attempts)
	}
	if attempts < 8 || attempts > 12 || total < 50*time.Minute {
		t.Errorf("%d attempts in %v", attempts, total)
	}
}

// TestInjection puts line breaks and more wherever something comes from outside: nothing reaches the server.
func TestInjection(t *testing.T) {
	s := newServer(t).serve(t, false)
	m, log := start(t, Config{Server: s.addr}, nil)
	sent := 0
	for _, bad := range []string{"ada@example.net\r\nBcc: eve@evil.example", "ada@example.net\n", "ada\r@example.net", "ada@example.net> SIZE=1", "<ada@example.net>", "ada@example.net, eve@evil.example", `"a b"@example.net`} {
		m.SendVerification(bad, link)
		m.SendAlreadyRegistered(bad, link)
		m.SendInvitation(bad, "Acme", link)
		m.SendReset(bad, link)
		sent += 4
	}
	for _, bad := range []string{"", "/reset/hidden-token", "javascript:alert(1)", "https:///hidden-token", link + "\r\nx", link + " x", "https://a:b@example.com/", "https://exa\r\nmple.com/", "https://" + strings.Repeat("a", 300) + ".example/", link + strings.Repeat("x", 3000)} {
		m.SendReset(to, bad)
		sent++
	}
	m.SendInvitation(to, "Acme\r\nBcc: eve@evil.example", link)
	sent++
	if n := strings.Count(log.String(), "mail is not sent"); n != sent {
		t.Errorf("%d of %d were refused:\n%s", n, sent, log)
	}
	m.SendReset(to, link) // goes through, so what came before would have too
	s.mail(t)
	if _, data := s.counts(); data != 1 {
		t.Errorf("%d mails came", data)
	}
	from := &netmail.Address{Address: "a@b"}
	for _, l := range []letter{{to: to, subject: "a\r\nBcc: b"}, {to: to, subject: "a\nb"}, {to: to, subject: strings.Repeat("x", 301)}, {to: "a@b\r\nBcc: c", subject: "a"}} {
		if b, err := l.render(from); err == nil {
			t.Errorf("rendered: %q", b)
		}
	}
}

func TestRenderLongSubject(t *testing.T) {
	subject := strings.Repeat("日本語 ", 20)
	data, err := (&letter{to: to, subject: subject, text: ".\n..\n"}).render(&netmail.Address{Address: "a@b"})
	if err != nil {
		t.Fatal(err)
	}
	header, text := read(t, data)
	if got, err := new(mime.WordDecoder).DecodeHeader(header.Get("Subject")); err != nil || got != subject || text != ".\n..\n" {
		t.Errorf("%q, %v, %q", got, err, text)
	}
	for line := range bytes.Lines(data) {
		if len(line) > 78+10 {
			t.Errorf("line of %d bytes: %q", len(line), line)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	for _, good := range []string{"a@b", "ada.lovelace+x@example.com", "o'neill@xn--bcher-kva.example", "!#$%&'*+-/=?^_`{|}~@a-b.c", strings.Repeat("a", 64) + "@example.com"} {
		if err := CheckAddress(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{
		"", "@", "a@", "@b", "a", "a@b@c", ".a@b", "a.@b", "a..b@c", "a b@c", "a@b c", "a@b.", "a@.b", "a@-b", "a@b-", "a@b_c", "ä@b", "a@ä", "a@[127.0.0.1]", "a,b@c", "a<b@c", "a\x00@b", "a@b\n", "a\u2028@b",
		strings.Repeat("a", 65) + "@example.com", "a@" + strings.Repeat("b", 64), "a@" + strings.Repeat("b.", 126) + "b", "\xff@b",
	} {
		if err := CheckAddress(bad); err == nil || len(bad) > 4 && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	good := Config{Server: "smtp.example.com:587", From: "a@example.com"}
	for name, change := range map[string]func(*Config){
		"no server": func(c *Config) { c.Server = "" }, "no port": func(c *Config) { c.Server = "smtp.example.com" }, "no host": func(c *Config) { c.Server = ":25" },
		"port name": func(c *Config) { c.Server = "smtp.example.com:smtp" }, "port 0": func(c *Config) { c.Server = "a:0" }, "port 65536": func(c *Config) { c.Server = "a:65536" },
		"no from": func(c *Config) { c.From = "" }, "name only": func(c *Config) { c.From = "pqproxy" }, "two": func(c *Config) { c.From = "a@b, c@d" },
		"line break": func(c *Config) { c.From = "a\r\nBcc: x <a@b>" }, "encoded break": func(c *Config) { c.From = "a@b\n" },
		"user only": func(c *Config) { c.Username = "u" }, "password only": func(c *Config) { c.Password = secret },
	} {
		c := good
		change(&c)
		if _, err := newMailer(c); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := newMailer(good); err != nil {
		t.Error(err)
	}
}

// TestPasswordIsHidden prints what has the password in every way that somebody might by accident.
func TestPasswordIsHidden(t *testing.T) {
	c := Config{Server: "smtp.example.com:587", From: "a@example.com", Username: username, Password: secret}
	m, err := newMailer(c)
	if err != nil {
		t.Fatal(err)
	}
	var printed bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&printed, verb+verb+verb+"\n", c, &c, m)
	}
	text, err := json.Marshal([]any{c, m})
	if err != nil {
		t.Fatal(err)
	}
	printed.Write(text)
	slog.New(slog.NewJSONHandler(&printed, nil)).Info("x", "config", c, "mailer", m)
	slog.New(slog.NewTextHandler(&printed, nil)).Info("x", "config", c, "mailer", m)
	if strings.Contains(printed.String(), secret) || !strings.Contains(printed.String(), "smtp.example.com") {
		t.Errorf("%s", &printed)
	}
}

// FuzzLetter looks for an address, a name or a link that changes what a mail is.
func FuzzLetter(f *testing.F) {
	f.Add(to, "Acme", link)
	f.Add("a@b\r\nBcc: c@d", "a\r\nb", "https://x/\r\n")
	f.Add("a@b", "{link}{host}", "http://{tenant}/")
	f.Add("a@b", "日本\u202e\"", "https://[::1]:8443/a?b#c")
	from := &netmail.Address{Name: "pqproxy", Address: "no-reply@example.com"}
	f.Fuzz(func(t *testing.T, to, tenant, link string) {
		l, err := compose(invitation, to, tenant, link, "You are invited to {host}", "{tenant} {host}\n\n{link}\n")
		if err != nil {
			return
		}
		l.id = newMessageID(from.Address)
		data, err := l.render(from)
		if err != nil {
			return
		}
		header, text := read(t, data)
		if list, err := header.AddressList("To"); len(header) != 9 || err != nil || len(list) != 1 || list[0].Address != to {
			t.Errorf("%q: %v", data, header)
		}
		if !strings.HasSuffix(text, "\n\n"+link+"\n") || strings.Count(text, "\n") != 3 {
			t.Errorf("%q", text)
		}
	})
}
