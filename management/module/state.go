package module

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/pqproxy/caddy-pqproxy/internal/id"
	"github.com/pqproxy/caddy-pqproxy/management/api"
	"github.com/pqproxy/caddy-pqproxy/management/dashboard"
	"github.com/pqproxy/caddy-pqproxy/management/store"
)

// states holds the running services, by what makes one differ from another, so that a reload that changes nothing here keeps
// database, throttles and caches.
var states = caddy.NewUsagePool()

// running are all services, also those that no config has any more and that are about to end.
var running sync.WaitGroup

// exiting ends when the process does: nothing waits for requests any more. See Handler.Provision.
var exiting, exit = context.WithCancel(context.Background())

// exitLimit bounds how long the end of the process waits for services to end.
const exitLimit = 20 * time.Second

// state is a running service, which outlives configs. Opening its database is tried until it succeeds.
type state struct {
	key      string // in states
	settings settings
	logs     logs
	log      *slog.Logger // of logs

	stop    context.CancelFunc
	serving atomic.Pointer[service] // nil: not yet, or not any more
	tried   chan struct{}           // closed when serving was set, or the first attempt to has failed
	once    func()                  // closes tried, once
}

// acquire returns the service of these settings, begun if there is none. Who gets it calls release.
func acquire(s settings, log *zap.Logger) (*state, error) {
	k, err := loadKeys(s) // faults of files are faults of the config: Caddy says so at once
	if err != nil {
		return nil, err
	}
	key := s.fingerprint
	if k.signer != nil {
		key += " " + k.signer.Public().ID() // the same file may have another key by now
	}
	held, known, err := states.LoadOrNew(key, func() (caddy.Destructor, error) {
		st := &state{key: key, settings: s, tried: make(chan struct{})}
		st.once = sync.OnceFunc(func() { close(st.tried) })
		st.log = slog.New(&logHandler{logs: &st.logs})
		st.logs.add(log)
		ctx, cancel := context.WithCancel(context.Background())
		st.stop = cancel
		running.Go(func() { st.run(ctx, k) })
		return st, nil
	})
	if err != nil {
		return nil, err
	}
	st := held.(*state)
	if known {
		st.logs.add(log) // the config whose service it was may be gone soon
	}
	return st, nil
}

func (st *state) release(log *zap.Logger) error {
	st.logs.remove(log)
	_, err := states.Delete(st.key)
	return err
}

// Destruct ends the service. Caddy's UsagePool calls it when the last config let go. Requests that the service has are answered
// before it ends: nobody waits for that but the end of the process, which waits for none.
func (st *state) Destruct() error {
	st.stop()
	if !caddy.Exiting() {
		return nil
	}
	exit()
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-time.After(exitLimit):
		return fmt.Errorf("%s did not end within %s", appName, exitLimit)
	}
}

// How long to wait before the database is tried again. Variables for tests.
var (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// run serves and does the background work until ctx ends.
func (st *state) run(ctx context.Context, k *keys) {
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		err := st.serve(ctx, k)
		st.once()
		if err == nil || ctx.Err() != nil {
			return
		}
		st.log.Error("the management plane does not serve; trying again", "error", err, "after", delay)
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
	}
}

// serve is one attempt, which ends with ctx if nothing is wrong.
func (st *state) serve(ctx context.Context, k *keys) error {
	opened, err := store.Open(ctx, store.Options{Driver: st.settings.driver, Source: st.settings.source, Log: st.log})
	if err != nil {
		return err
	}
	defer opened.Close()
	if err := k.complete(ctx, st.settings, opened, st.log); err != nil {
		return err
	}
	p, err := assemble(st.settings, k, opened, st.log)
	if err != nil {
		return err
	}
	defer p.close()

	a := api.New(p.plane, api.Options{ClientAddr: clientAddr, RateLimit: st.settings.rateLimit, Log: st.log})
	pages := dashboard.New(p.plane, dashboard.Options{
		PublicURL: st.settings.plane.PublicURL, SignupOpen: st.settings.plane.SignupOpen, RateLimit: st.settings.rateLimit, ClientAddr: clientAddr, Log: st.log,
	})
	serving := newService(publicHandler(a, pages), a.Edge(), func() {
		p.plane.EndWaits()
		pages.Close()
	})
	st.serving.Store(serving)
	st.once()
	defer st.serving.Store(nil)
	host, _ := os.Hostname()
	instance := host + "/" + id.New().String()
	st.log.Info("management plane serves", "database", st.settings.driver, "signed", k.signer != nil, "master_keys", list(k.master.KeyIDs()), "instance", instance)

	p.plane.Run(ctx, instance)
	if n := serving.drain(); n > 0 {
		st.log.Warn("requests were cut off, since the management plane ends", "requests", n)
	}
	return nil
}
