// Package mail sends the few mails of the management plane through an SMTP server (RFC 5321): over TLS, unless the server is on
// this machine, from a bounded queue, with a bounded number of tries.
//
//	mailer, err := mail.New(mail.Config{Server: "smtp.example.com:587", From: "pqproxy <no-reply@example.com>", Username: "u", Password: "p"})
//	defer mailer.Close(ctx)
//	mailer.SendReset("ada@example.com", "https://console.example.com/reset/…")
//
// Sending returns at once whatever happens to the mail, so that the time that an answer takes does not tell whether an address
// is known. What cannot be sent is logged: without the text, the link, or more of the address than its domain.
package mail

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	netmail "net/mail"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// mostQueued bounds the queue. A mail is a few KiB.
	mostQueued = 1000
	// mostActive is how many connections there are at once: most relays allow more, few need them.
	mostActive = 4
	// attemptTimeout covers one attempt from DNS to the server's last word. RFC 5321 section 4.5.3.2 would wait for minutes at each
	// step, for servers that look into mails before they answer; who waits for a link does not.
	attemptTimeout = time.Minute
	// giveUpAfter is as long as the shortest link is good for: later, the mail would be of no use.
	giveUpAfter = time.Hour
	// closeTimeout is the most that Close waits, whatever its context says.
	closeTimeout = 15 * time.Second
)

// backoff returns how long to wait after so many attempts: 10 s, 30 s, 90 s, 270 s, then 10 minutes each, which is enough for
// servers that greylist.
func backoff(attempts int) time.Duration {
	wait := 10 * time.Second
	for range attempts - 1 {
		wait = min(3*wait, 10*time.Minute)
	}
	return wait
}

// Config says through which server mail is sent, and as whom.
type Config struct {
	// Server is HOST:PORT. On port 465 TLS comes first (RFC 8314 section 3.3), elsewhere STARTTLS is required (RFC 3207) and the
	// certificate must be of HOST. Only a server on a loopback address is spoken to in clear, unless Username is set.
	Server string

	// From is the sender: an address, or a name and an address in angle brackets. Bounces go there too.
	From string

	// Username and Password are for AUTH PLAIN (RFC 4616), which is only ever done over TLS. Both empty: none.
	Username string
	Password string `json:"-"`

	RootCAs *x509.CertPool `json:"-"` // who may have signed the server's certificate; nil: the system's
	Log     *slog.Logger   `json:"-"` // nil: slog.Default
}

// Format prints c without the password, whatever the verb.
func (c Config) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "mail through %s from %s as user %q", c.Server, c.From, c.Username)
}

// LogValue keeps the password out of log/slog.
func (c Config) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// Mailer sends mail. It is safe for concurrent use.
type Mailer struct {
	server, host       string
	implicitTLS        bool
	from               *netmail.Address
	username, password string
	rootCAs            *x509.CertPool
	log                *slog.Logger

	// What tests change before start.
	most, active    int
	timeout, giveUp time.Duration
	backoff         func(attempts int) time.Duration
	isLocal         func(net.Addr) bool

	ctx    context.Context // ends all attempts
	cancel context.CancelFunc
	wake   chan struct{} // of one: something below changed
	done   chan struct{} // closed when run has ended, and all attempts with it
	works  sync.WaitGroup

	mu      sync.Mutex // guards all below
	waiting []*letter  // at most `most` with those in work; in no order: there are few
	working int
	closing bool
}

// New returns a Mailer that works until Close. It connects to nothing yet: a server that is away must not keep the service from
// starting.
func New(c Config) (*Mailer, error) {
	m, err := newMailer(c)
	if err != nil {
		return nil, err
	}
	go m.run()
	return m, nil
}

// newMailer is New without the goroutine.
func newMailer(c Config) (*Mailer, error) {
	host, port, err := net.SplitHostPort(c.Server)
	if n, convErr := strconv.ParseUint(port, 10, 16); err != nil || host == "" || convErr != nil || n == 0 {
		return nil, fmt.Errorf("smtp %q is not HOST:PORT", c.Server)
	}
	from, err := netmail.ParseAddress(c.From)
	if err != nil || strings.ContainsFunc(c.From, isControl) {
		return nil, fmt.Errorf("from %q is neither an address nor `name <address>`", c.From)
	}
	if err := CheckAddress(from.Address); err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	if (c.Username == "") != (c.Password == "") {
		return nil, errors.New("smtp needs both username and password, or neither")
	}
	m := &Mailer{
		server: c.Server, host: host, implicitTLS: port == "465", from: from, username: c.Username, password: c.Password, rootCAs: c.RootCAs, log: c.Log,
		most: mostQueued, active: mostActive, timeout: attemptTimeout, giveUp: giveUpAfter, backoff: backoff, isLocal: isLoopback,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if m.log == nil {
		m.log = slog.Default()
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m, nil
}

// String says through which server m sends.
func (m *Mailer) String() string { return "mail through " + m.server }

// Format prints String whatever the verb: m has a password.
func (m *Mailer) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, m.String()) }

// send queues a letter, or logs why not. It never waits for the network.
func (m *Mailer) send(l *letter, err error) {
	now := time.Now()
	if err == nil {
		l.made, l.due, l.id = now, now, newMessageID(m.from.Address)
		l.data, err = l.render(m.from)
	}
	if err == nil {
		err = m.enqueue(l)
	}
	if err != nil {
		m.log.Error("mail is not sent", "mail", string(l.kind), "to_domain", domainOf(l.to), "error", err)
	}
}

func (m *Mailer) enqueue(l *letter) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closing:
		return errors.New("the service is stopping")
	case len(m.waiting)+m.working >= m.most:
		return fmt.Errorf("%d mails are waiting already; look at what the SMTP server says of them", m.most)
	}
	m.waiting = append(m.waiting, l)
	m.poke()
	return nil
}

// poke makes run look again.
func (m *Mailer) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run starts attempts as they become due. It ends when Close was called and nothing is left to do.
func (m *Mailer) run() {
	defer close(m.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, finished := m.startDue()
		if finished {
			m.works.Wait()
			return
		}
		timer.Reset(next)
		select {
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// startDue starts what is due, and returns when to look again.
func (m *Mailer) startDue() (next time.Duration, finished bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	next = time.Hour
	for m.working < m.active && len(m.waiting) > 0 {
		first := 0
		for i, l := range m.waiting {
			if l.due.Before(m.waiting[first].due) {
				first = i
			}
		}
		l := m.waiting[first]
		if wait := l.due.Sub(now); wait > 0 {
			next = wait
			break
		}
		m.waiting = slices.Delete(m.waiting, first, first+1)
		m.working++
		m.works.Go(func() { m.work(l) })
	}
	return next, m.closing && m.working == 0 && len(m.waiting) == 0
}

// work makes one attempt at a letter, and queues it again where another may help.
func (m *Mailer) work(l *letter) {
	l.attempts++
	err := m.attempt(m.ctx, l)

	m.mu.Lock()
	m.working--
	wait := m.backoff(l.attempts)
	again := err != nil && !m.closing && !isPermanent(err) && time.Since(l.made)+wait < m.giveUp
	if again {
		l.due = time.Now().Add(wait)
		m.waiting = append(m.waiting, l)
	}
	m.mu.Unlock()

	log := m.log.With("mail", string(l.kind), "to_domain", domainOf(l.to), "message_id", l.id, "attempts", l.attempts)
	switch {
	case err == nil:
		log.Debug("mail is sent")
	case again:
		log.Warn("mail is not sent yet", "error", err, "next", wait)
	default:
		log.Error("mail is not sent, and not tried again", "error", err)
	}
	m.poke()
}

// Close stops taking mails, makes one last attempt at those that were never tried, and drops those that wait for another one. It
// waits until ctx ends and at most 15 seconds, then ends what is under way; what was lost is logged. It can be called again.
func (m *Mailer) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.drop(func(l *letter) bool { return l.attempts > 0 })
	m.poke()
	select {
	case <-m.done:
		m.cancel()
		return nil
	case <-ctx.Done():
	}
	m.drop(func(*letter) bool { return true })
	m.cancel() // no attempt outlasts this by more than a moment
	m.poke()
	<-m.done
	return fmt.Errorf("closing mail: %w", ctx.Err())
}

// drop takes mails out of the queue.
func (m *Mailer) drop(which func(*letter) bool) {
	m.mu.Lock()
	before := len(m.waiting)
	m.waiting = slices.DeleteFunc(m.waiting, which)
	lost := before - len(m.waiting)
	m.mu.Unlock()
	if lost > 0 {
		m.log.Error("mails are lost, as the service is stopping", "mails", lost)
	}
}
