package storetest_test

import (
	"testing"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
)

// TestEachStoreIsEmpty takes two of each database: what is in one is not in the other, and the same options open it again.
func TestEachStoreIsEmpty(t *testing.T) {
	for range 2 {
		storetest.Each(t, func(t *testing.T, s *store.Store) {
			err := s.Update(t.Context(), func(tx management.Tx) error {
				if n, err := tx.NextRevision(); n != 1 {
					t.Errorf("the first revision is %d; %v", n, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for _, driver := range []string{store.SQLite, store.Postgres} {
		o := storetest.Options(t, driver)
		for range 2 {
			if err := storetest.Reopen(t, o).Ready(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}
