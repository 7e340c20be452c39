package pqproxy

import (
	"container/list"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"weak"

	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// health knows which upstreams may not work: from what became of clients' connections (passive), and from checks of our
// own where a domain asks for them (active, see checker). Such an upstream is tried after the others, never left out.
type health struct {
	checks  checker
	began   time.Time     // what the times of condition.failed are counted from
	markFor time.Duration // failDuration, but in tests

	mu     sync.Mutex               // guards the rest, and what says so elsewhere
	recent []weak.Pointer[upstream] // whose connections failed, the last one at the end; at most recentFailures
	down   list.List                // of *upstream: those that fail a check, the first to do so in front
}

// Bounds of passive health. The time is explained in docs/defaults.md. A failure may concern any of a million upstreams,
// which nobody can walk through: the status tells of the last ones.
const (
	failDuration   = 10 * time.Second
	recentFailures = 64
	troubleText    = 512 // bytes of an error that is kept
)

func (h *health) open(s *state) {
	h.began, h.markFor = time.Now(), failDuration
	h.checks.open(s)
}

// follow takes up what apply has changed: checks begin and end.
func (h *health) follow(changes *changes) { h.checks.follow(changes) }

// stop ends all checks. It returns when none is under way.
func (h *health) stop() { h.checks.stop() }

// now is the time for condition.failed.
func (h *health) now() int64 { return int64(time.Since(h.began)) }

// condition is what is known of an upstream. The zero value: nothing speaks against it.
type condition struct {
	// failed is until when the upstream is tried last because a connection to it failed, as health.now. It stays when
	// that time has come, until a connection succeeds. 0: the last one did.
	failed atomic.Int64

	down atomic.Int32 // checks that it fails

	trouble *trouble // of connections; guarded by health.mu; nil: there never was any
	watch   *watch   // guarded by health.mu; nil: nobody checks it
}

// trouble is since when and why an upstream does not work.
type trouble struct {
	since  time.Time
	domain string // that it was seen with
	err    string
}

// unhealthyUpstream is an upstream that is tried after others, for reports.
type unhealthyUpstream struct {
	Domain string    `json:"domain"` // one that it belongs to: where it was noticed
	Dial   string    `json:"dial"`
	Since  time.Time `json:"since"`
	Error  string    `json:"error"` // the last one
	By     string    `json:"by"`    // "checks", or "traffic": clients' connections
}

// unhealthy returns at most so many upstreams that do not work, and how many there are: those that fail a check, the first
// to do so first, and of those whose connections failed the last ones (recentFailures), the last first.
func (h *health) unhealthy(most int) (found []unhealthyUpstream, total int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	add := func(u *upstream, t *trouble, by string) {
		if total++; total <= most {
			found = append(found, unhealthyUpstream{t.domain, u.Dial, t.since, t.err, by})
		}
	}
	for e := h.down.Front(); e != nil && total < most; e = e.Next() {
		u := e.Value.(*upstream)
		add(u, &u.watch.failing.Front().Value.(*target).trouble, "checks")
	}
	total = h.down.Len()
	for _, p := range slices.Backward(h.recent) {
		u := p.Value()
		if u == nil || u.failed.Load() <= h.now() || u.watch != nil && u.watch.listed != nil {
			continue
		}
		add(u, u.trouble, "traffic")
	}
	return found, total
}

// standing is an upstream's place before load_balancing has its say. What checks have found out weighs more than one
// connection that failed.
type standing uint8

const (
	standingGood   standing = iota
	standingFailed          // a connection failed a moment ago
	standingDown            // checks fail
	standings      = iota
)

func (h *health) standingOf(u *upstream) standing {
	switch {
	case u.down.Load() > 0:
		return standingDown
	case u.failed.Load() > 0 && u.failed.Load() > h.now():
		return standingFailed
	}
	return standingGood
}

// inTurn returns upstreams in the order in which they are tried: those that may not work come last, and keep the order
// that load_balancing gave them.
func (h *health) inTurn(ups []*upstream) []*upstream {
	if len(ups) < 2 {
		return ups
	}
	var found [domain.MaxUpstreams]standing // conditions change while they are looked at
	same := true
	for i, u := range ups {
		found[i] = h.standingOf(u)
		same = same && found[i] == found[0]
	}
	if same {
		return ups
	}
	sorted := make([]*upstream, 0, len(ups))
	for s := range standing(standings) {
		for i, u := range ups {
			if found[i] == s {
				sorted = append(sorted, u)
			}
		}
	}
	return sorted
}

// trial is an attempt to use an upstream on behalf of a client.
type trial struct {
	conn     *conn
	upstream *upstream
	timeout  time.Duration
	held     int64 // what try has put into failed; 0: nothing
}

// try begins an attempt that may take so long. When an upstream has been tried last for long enough, the first one to try
// it again finds out for all: meanwhile the others still try it last. Otherwise each of them would wait for an upstream
// that does not answer.
func (c *conn) try(u *upstream, timeout time.Duration) trial {
	t := trial{conn: c, upstream: u, timeout: timeout}
	if until := u.failed.Load(); until != 0 {
		now := c.owner.health.now()
		if held := now + int64(timeout); until <= now && u.failed.CompareAndSwap(until, held) {
			t.held = held
		}
	}
	return t
}

// overdue stands in failed for a time that has passed.
const overdue = 1

// ended takes what became of the attempt.
func (t trial) ended(err *dialError) {
	h, u := &t.conn.owner.health, t.upstream
	switch {
	case err == nil:
		if u.failed.Load() != 0 && u.failed.Swap(0) != 0 {
			h.logUp("upstream works again", t.conn.route.Name, u)
		}
	case err.blamed && !t.shortOfTime(err):
		h.failed(u, t.conn.route.Name, err.err)
	case t.held != 0: // nobody has found out: the next one may try
		u.failed.CompareAndSwap(t.held, overdue)
	}
}

// shortOfTime reports whether an attempt that ran out of time had less than an upstream must be given: other upstreams, or
// waiting for a slot, have used it up.
func (t trial) shortOfTime(err *dialError) bool {
	return err.reason == reasonUpTimeout && t.timeout < time.Duration(t.conn.limits.DialTimeout)/2
}

// failed notes that a connection failed and that the upstream is to blame.
func (h *health) failed(u *upstream, name string, err error) {
	text := cutText(err.Error(), troubleText)
	pointer := weak.Make(u)
	h.mu.Lock()
	first := u.failed.Swap(h.now()+int64(h.markFor)) == 0
	if first {
		u.trouble = &trouble{since: time.Now(), domain: name}
	}
	u.trouble.err = text
	h.recent = append(slices.DeleteFunc(h.recent, func(p weak.Pointer[upstream]) bool { return p == pointer }), pointer)
	if over := len(h.recent) - recentFailures; over > 0 {
		h.recent = slices.Delete(h.recent, 0, over)
	}
	h.mu.Unlock()
	if first {
		h.logDown("upstream failed: it is tried last for a while", name, u, text)
	}
}

func (h *health) logDown(message, name string, u *upstream, err string) {
	h.logger().Warn(message, zap.String(keyDomain, name), zap.String(keyUpstream, u.Dial), zap.String(keyError, err))
}

func (h *health) logUp(message, name string, u *upstream) {
	h.logger().Info(message, zap.String(keyDomain, name), zap.String(keyUpstream, u.Dial))
}

func (h *health) logger() *zap.Logger { return h.checks.owner.settings.Load().logger }

// unreachable reports whether an error before there is a connection is the upstream's fault, and not our refusal or what
// this edge has run out of.
func unreachable(err error) bool {
	reason := connectReason(err)
	return reason != reasonUpDenied && reason != reasonUpLoop && !edgeExhausted(err)
}

// edgeExhausted reports whether an error says that this edge lacks descriptors or memory.
func edgeExhausted(err error) bool {
	for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, lack) {
			return true
		}
	}
	return false
}

// handshakeFault reports whether a handshake that failed is the upstream's fault. Where the client chose the name that the
// upstream was asked for, it may be the client's: it must not decide where others go.
func (c *conn) handshakeFault(u *upstream, reason endReason) bool {
	switch reason {
	case reasonUpCertificate, reasonUpTLS, reasonUpGroup, reasonUpTimeout, reasonUpClosedEarly:
		return !(strings.HasPrefix(c.route.Name, "*.") && u.namedByClient())
	}
	return false
}

// learningFault is handshakeFault while ALPN is learned, where the client chose the list of protocols too. An upstream
// may well refuse that with another alert than it should, or without any.
func (c *conn) learningFault(u *upstream, reason endReason) bool {
	return (reason == reasonUpCertificate || reason == reasonUpTimeout) && c.handshakeFault(u, reason)
}

// namedByClient reports whether an upstream is asked, in TLS, for the name that the client asked for.
func (u *upstream) namedByClient() bool { return u.tls != nil && u.TLSServerName("") == "" }
