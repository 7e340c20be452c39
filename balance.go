package pqproxy

import (
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// upstreams returns the upstreams in the order in which this connection tries them: that of load_balancing, and those
// that may not work at the end. The order is made once.
func (c *conn) upstreams() []*upstream {
	if c.order == nil {
		c.order = c.owner.health.inTurn(c.route.inOrder(c.client.Addr()))
	}
	return c.order
}

// inOrder returns the upstreams of a route in the order of its load_balancing.
func (r *route) inOrder(client netip.Addr) []*upstream {
	ups := r.upstreams
	if len(ups) < 2 || r.LoadBalancing == domain.First {
		return ups
	}
	ups = slices.Clone(ups)
	switch r.LoadBalancing {
	case domain.Random:
		rand.Shuffle(len(ups), func(i, j int) { ups[i], ups[j] = ups[j], ups[i] })
	case domain.LeastConn:
		// Shuffled first, so that equals share the load.
		rand.Shuffle(len(ups), func(i, j int) { ups[i], ups[j] = ups[j], ups[i] })
		open := make(map[*upstream]int64, len(ups)) // the counters move while they are compared
		for _, u := range ups {
			open[u] = u.open.Load()
		}
		slices.SortStableFunc(ups, func(a, b *upstream) int { return int(open[a] - open[b]) })
	case domain.IPHash:
		// Rendezvous hashing: taking one upstream away moves only its own clients.
		ip := client.Unmap().As16()
		score := make(map[*upstream]uint64, len(ups))
		for _, u := range ups {
			h := fnv.New64a()
			_, _ = h.Write(ip[:])
			_, _ = h.Write([]byte(u.Dial))
			score[u] = mix(h.Sum64())
		}
		slices.SortStableFunc(ups, func(a, b *upstream) int {
			switch {
			case score[a] > score[b]:
				return -1
			case score[a] < score[b]:
				return 1
			}
			return 0
		})
	}
	return ups
}

// mix spreads the last bytes of an FNV hash over all its bits (the finaliser of MurmurHash3): FNV alone
// orders dial strings that differ in one digit alike for many addresses.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
