package domain

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// HealthCheckType says when an active check of an upstream has passed.
type HealthCheckType string

// The types. The empty value means HealthTLS where every upstream has TLS, else HealthTCP.
const (
	HealthTCP HealthCheckType = "tcp" // a connection was made
	HealthTLS HealthCheckType = "tls" // and the TLS handshake on it, verified as for clients' connections
)

// HealthCheck is how an edge asks the upstreams of a domain whether they work. Each edge asks for itself.
// A value of 0 or "" is the default.
type HealthCheck struct {
	// Type is `tcp` (connect) or `tls` (connect and complete the handshake; every upstream must have `tls`).
	// Default: `tls` if every upstream has `tls`, else `tcp`.
	Type HealthCheckType `json:"type,omitempty"`

	// Interval is the time from one check of an upstream to the next: 1s to 1h. Default: 10s.
	Interval Duration `json:"interval,omitempty"`

	// Timeout is how long one check may take, TLS included: 100ms to Interval. Default: 5s, or Interval if
	// that is less.
	Timeout Duration `json:"timeout,omitempty"`

	// Rise is how many checks in a row an upstream that is down must pass to be up: 1 to 100. Default: 2.
	Rise int `json:"rise,omitempty"`

	// Fall is how many checks in a row an upstream that is up must fail to be down: 1 to 100. Default: 3.
	Fall int `json:"fall,omitempty"`
}

const (
	minInterval, defaultInterval, maxInterval = Duration(time.Second), Duration(10 * time.Second), Duration(time.Hour)
	minTimeout, defaultTimeout                = Duration(100 * time.Millisecond), Duration(5 * time.Second)

	defaultRise, defaultFall, maxInARow = 2, 3, 100
)

// normalizeHealthCheck does n.HealthCheck, which is not nil; n's upstreams are done already.
func normalizeHealthCheck(n *Domain, f *faults) {
	mark := f.enter("health_check")
	defer f.leave(mark)
	h := n.HealthCheck

	plain := slices.IndexFunc(n.Upstreams, func(u Upstream) bool { return u.TLS == nil })
	if h.Type == "" && plain < 0 {
		h.Type = HealthTLS
	}
	h.Type = oneOf(f, "type", h.Type, HealthTCP, HealthTLS)
	if h.Type == HealthTLS && plain >= 0 {
		f.addf("type", "is tls, but upstreams[%d] has no tls; give it tls, or set type to tcp", plain)
	}

	longest := maxInterval // of the timeout, where the interval is no measure
	if h.Interval = orDefault(h.Interval, defaultInterval); within(f, "interval", h.Interval, minInterval, maxInterval) {
		longest = h.Interval
	}
	h.Timeout = orDefault(h.Timeout, min(defaultTimeout, longest))
	if h.Timeout < minTimeout || h.Timeout > longest {
		f.addf("timeout", "is %v; give %v to %v, and never more than the interval", h.Timeout, minTimeout, longest)
	}
	h.Rise = orDefault(h.Rise, defaultRise)
	within(f, "rise", h.Rise, 1, maxInARow)
	h.Fall = orDefault(h.Fall, defaultFall)
	within(f, "fall", h.Fall, 1, maxInARow)
}

func orDefault[T int | Duration](v, byDefault T) T {
	if v == 0 {
		return byDefault
	}
	return v
}

// within reports v if it is not from lowest to highest, and returns whether it is.
func within[T int | Duration](f *faults, key string, v, lowest, highest T) bool {
	if v < lowest || v > highest {
		f.addf(key, "is %v; give %v to %v", v, lowest, highest)
		return false
	}
	return true
}

// Duration is a time.Duration that JSON has as text with a unit, such as "10s" or "1m30s": what
// time.ParseDuration reads. A number is refused, since its reader would have to guess the unit.
type Duration time.Duration

// howDuration ends every fault of a duration.
const howDuration = `write it in quotes with a unit, such as "10s"`

// String returns d as time.Duration does, such as 1m30s.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON returns String in quotes.
func (d Duration) MarshalJSON() ([]byte, error) { return strconv.AppendQuote(nil, d.String()), nil }

// UnmarshalJSON reads what MarshalJSON writes, and any other text that time.ParseDuration takes. On failure d
// stays as it was.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var text *string // nil after null, which encoding/json takes for any string
	if err := json.Unmarshal(data, &text); err != nil || text == nil {
		return errors.New("a duration is text; " + howDuration)
	}
	read, err := parseDuration(*text)
	if err != nil {
		return err
	}
	*d = read
	return nil
}

func parseDuration(text string) (Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s is no duration; %s", quote(text), howDuration) // its own error holds all of the text
	}
	return Duration(d), nil
}

// Interface guards.
var (
	_ json.Marshaler   = Duration(0)
	_ json.Unmarshaler = (*Duration)(nil)
)
