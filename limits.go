package pqproxy

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/caddyserver/caddy/v2"
)

// Limits are the bounds and deadlines of every connection. Zero means the default; negative values are
// refused.
type Limits struct {
	// MaxConnections is how many client connections may be open on listeners of the network `pqproxy/`, all
	// together. Further ones are closed when accepted (`over_limit`). Default: half of what the descriptor
	// limit leaves after a reserve of 512 (a quarter of the limit, if that is less), since each may need two
	// descriptors, and at most a quarter of the memory limit (cgroup or GOMEMLIMIT) at 64 KiB each.
	MaxConnections int `json:"max_connections,omitempty"`

	// EarlyDials is how many upstreams may be dialled beside handshakes that are not finished. Past that
	// the dial waits for the client's Finished. As many connections may learn ALPN from upstreams, counted
	// apart; past that a client waits for its turn, at most dial_timeout. Default: 1024.
	EarlyDials int `json:"early_dials,omitempty"`

	// EarlyDialsPerClient bounds the same for one IPv4 address or IPv6 /64. Default: 64.
	EarlyDialsPerClient int `json:"early_dials_per_client,omitempty"`

	// MaxHello is the longest ClientHello in bytes on the wire, record headers included, from 512 to 65536.
	// Longer ones get the alert decode_error (`hello_too_large`). Default: 16384.
	MaxHello int `json:"max_hello,omitempty"`

	// HandshakeTimeout is how long a client may take from the connection to its Finished, not counting the
	// time that we wait for an upstream. Default: 10s.
	HandshakeTimeout caddy.Duration `json:"handshake_timeout,omitempty"`

	// DialTimeout is how long one attempt to reach an upstream may take, from name resolution to the end of
	// its TLS handshake; all attempts for a connection may take three times that. Default: 5s.
	DialTimeout caddy.Duration `json:"dial_timeout,omitempty"`

	// IdleTimeout ends a connection on which nothing was relayed either way for that long, and (on Linux) nothing that
	// the kernel held was delivered. Default: 1h.
	IdleTimeout caddy.Duration `json:"idle_timeout,omitempty"`

	// Linger is the idle timeout from when one side has ended. Default: 30s.
	Linger caddy.Duration `json:"linger,omitempty"`

	// GracePeriod is how long connections may go on when Caddy exits or a config without this app is loaded,
	// and the time over which the connections of a domain that was removed or suspended are ended. The
	// service manager must allow more (systemd: TimeoutStopSec). Default: 30s.
	GracePeriod caddy.Duration `json:"grace_period,omitempty"`
}

const defaultGracePeriod = caddy.Duration(30 * time.Second)

// Bounds of max_hello: the least that a hybrid hello needs with room for a long name, and what crypto/tls
// reads at most.
const maxHelloLeast, maxHelloMost = 512, 64 << 10

// provision fills in defaults and reports fields that are out of range.
func (l *Limits) provision() error {
	var faults []error
	count := func(field string, value *int, normal int) {
		switch {
		case *value < 0:
			faults = append(faults, fmt.Errorf("limits.%s: %d is negative; leave it out for the default (%d)", field, *value, normal))
		case *value == 0:
			*value = normal
		}
	}
	duration := func(field string, value *caddy.Duration, normal time.Duration) {
		switch {
		case *value < 0:
			faults = append(faults, fmt.Errorf("limits.%s: %s is negative; leave it out for the default (%s)", field, time.Duration(*value), normal))
		case *value == 0:
			*value = caddy.Duration(normal)
		}
	}
	count("max_connections", &l.MaxConnections, defaultMaxConnections(descriptorLimit(), memoryLimit()))
	count("early_dials", &l.EarlyDials, 1024)
	count("early_dials_per_client", &l.EarlyDialsPerClient, 64)
	count("max_hello", &l.MaxHello, 16<<10)
	duration("handshake_timeout", &l.HandshakeTimeout, 10*time.Second)
	duration("dial_timeout", &l.DialTimeout, 5*time.Second)
	duration("idle_timeout", &l.IdleTimeout, time.Hour)
	duration("linger", &l.Linger, 30*time.Second)
	duration("grace_period", &l.GracePeriod, time.Duration(defaultGracePeriod))
	if l.MaxHello > 0 && (l.MaxHello < maxHelloLeast || l.MaxHello > maxHelloMost) {
		faults = append(faults, fmt.Errorf("limits.max_hello: %d is not from %d to %d bytes", l.MaxHello, maxHelloLeast, maxHelloMost))
	}
	return errors.Join(faults...)
}

// connectionMemory is what a connection is reckoned to need at most when memory is what limits them.
const connectionMemory = 64 << 10

// defaultMaxConnections derives max_connections from the limits of the process; either may be unknown:
// math.MaxInt64.
func defaultMaxConnections(descriptors, memory int64) int {
	most := int64(1 << 20)
	if descriptors != math.MaxInt64 {
		reserve := min(512, descriptors/4)
		most = min(most, (descriptors-reserve)/2)
	}
	if memory != math.MaxInt64 {
		most = min(most, memory/4/connectionMemory)
	}
	return int(max(most, 1))
}

// memoryLimit is the smaller of GOMEMLIMIT and the cgroup's limit, in bytes; math.MaxInt64 for none.
func memoryLimit() int64 {
	limit := debug.SetMemoryLimit(-1) // reads only
	if cgroup, err := memlimit.FromCgroup(); err == nil && cgroup < math.MaxInt64 {
		limit = min(limit, int64(cgroup))
	}
	return limit
}
