package management_test

import (
	"context"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// Work that has more to do than may be done under one lease goes on at once, not after its rest.
func TestWorkGoesOn(t *testing.T) {
	eachSite(t, func(t *testing.T, s *site) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		calls := 0
		management.RunWorker(ctx, s.Plane, time.Hour, func(more error) error {
			if calls++; calls == 3 {
				cancel()
				return nil
			}
			return more
		})
		if calls != 3 {
			t.Errorf("%d calls, want 3", calls)
		}
	})
}
