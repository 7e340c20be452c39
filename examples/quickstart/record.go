package main

import (
	"encoding/json"
	"io"
	"os"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/examples/internal/demo"
)

func init() { caddy.RegisterModule(new(logWriter)) }

var (
	listening = make(chan string, 1)         // the address, once
	records   = make(chan *demo.Record, 256) // more are dropped while nobody looks
)

// quiet is true while a config is loaded or ends whose management plane and edge are both in this process: they may miss each
// other then, which the edge would complain of. It tries again.
var quiet atomic.Bool

// logWriter is a log writer module: it picks out of Caddy's log what is shown, and passes errors on.
type logWriter struct{}

// CaddyModule returns the Caddy module information.
func (*logWriter) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.quickstart", New: func() caddy.Module { return new(logWriter) }}
}

func (*logWriter) String() string { return "quickstart" }

// WriterKey is that of the writer replaced: otherwise Caddy would announce the change on standard error.
func (*logWriter) WriterKey() string { return caddy.StderrWriter{}.WriterKey() }

func (*logWriter) OpenWriter() (io.WriteCloser, error) { return new(logWriter), nil }
func (*logWriter) Close() error                        { return nil }

// Write gets one line of the log, which is JSON.
func (*logWriter) Write(line []byte) (int, error) {
	var entry struct {
		Level, Logger, Msg, Address string
	}
	if err := json.Unmarshal(line, &entry); err != nil {
		return 0, err
	}
	switch {
	case entry.Msg == "connection" && entry.Logger == "pqproxy.log.access":
		r := new(demo.Record)
		if err := json.Unmarshal(line, r); err != nil {
			return 0, err
		}
		select {
		case records <- r:
		default:
		}
	case entry.Msg == "listening" && entry.Logger == "pqproxy":
		select {
		case listening <- entry.Address:
		default:
		}
	case entry.Level == "error" && !quiet.Load():
		return os.Stderr.Write(line)
	}
	return len(line), nil
}
