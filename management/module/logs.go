package module

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
)

// logs are the loggers of the configs that have a service, the last of which it writes to: a config's own is closed with it,
// and the service goes on.
type logs struct {
	mu  sync.Mutex // guards all
	of  []*zap.Logger
	now slog.Handler
}

func (l *logs) add(log *zap.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of = append(l.of, log)
	l.choose()
}

// remove takes out a logger that was added. The very last one stays in use: what ends has things to say.
func (l *logs) remove(log *zap.Logger) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.of, log); i >= 0 && len(l.of) > 1 {
		l.of = slices.Delete(l.of, i, i+1)
		l.choose()
	}
}

func (l *logs) choose() {
	last := l.of[len(l.of)-1]
	l.now = zapslog.NewHandler(last.Core(), zapslog.WithName(last.Name()))
}

func (l *logs) handler() slog.Handler {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// logHandler is the slog.Handler of logs.
type logHandler struct {
	logs *logs
	with func(slog.Handler) slog.Handler // adds the attributes and groups; nil: none
}

func (h *logHandler) current() slog.Handler {
	now := h.logs.handler()
	if h.with != nil {
		now = h.with(now)
	}
	return now
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.logs.handler().Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.current().Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.adding(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	return h.adding(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *logHandler) adding(more func(slog.Handler) slog.Handler) slog.Handler {
	before := h.with
	if before == nil {
		return &logHandler{h.logs, more}
	}
	return &logHandler{h.logs, func(to slog.Handler) slog.Handler { return more(before(to)) }}
}
