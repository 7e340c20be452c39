package store

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func TestEvents(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2026, 1, 2, hour, 0, 0, 123000, time.UTC) }
	entries := []*management.Event{
		{ID: "evt_1", Time: at(1), TenantID: "ten_a", Actor: "usr_a", Action: "domain.created", Object: "dom_a", ClientIP: "203.0.113.7",
			RequestID: "r1", Before: json.RawMessage("null"), After: json.RawMessage(`{"name":"ü?' -- %_\""}`)},
		{ID: "evt_2", Time: at(2), TenantID: "ten_b", Actor: "usr_b", Action: "domain.created", Object: "dom_b", Before: json.RawMessage(`{}`), After: json.RawMessage("null")},
		{ID: "evt_3", Time: at(3), Actor: "system", Action: "tenant.created", Object: "ten_a", Before: json.RawMessage("null"), After: json.RawMessage("null")},
		{ID: "evt_4", Time: at(4), TenantID: "ten_a", Actor: "key_a", Action: "domain.updated", Object: "dom_a", Before: json.RawMessage("null"), After: json.RawMessage("null")},
	}
	eachEngine(t, func(t *testing.T, s *Store) {
		update(t, s, func(tx *tx) error {
			for _, e := range entries {
				if err := tx.InsertEvent(e); err != nil {
					return err
				}
			}
			return tx.InsertEvent(&management.Event{ID: "evt_0", Time: at(0)}) // without objects: null
		})
		for name, c := range map[string]struct {
			filter management.EventFilter
			want   []string
		}{
			"all":             {management.EventFilter{}, []string{"evt_4", "evt_3", "evt_2", "evt_1", "evt_0"}},
			"tenant":          {management.EventFilter{TenantID: "ten_a"}, []string{"evt_4", "evt_1"}},
			"actor":           {management.EventFilter{Actor: "usr_b"}, []string{"evt_2"}},
			"action":          {management.EventFilter{Action: "domain.created"}, []string{"evt_2", "evt_1"}},
			"object":          {management.EventFilter{Object: "dom_a"}, []string{"evt_4", "evt_1"}},
			"from inclusive":  {management.EventFilter{From: at(3)}, []string{"evt_4", "evt_3"}},
			"to exclusive":    {management.EventFilter{To: at(2)}, []string{"evt_1", "evt_0"}},
			"limit":           {management.EventFilter{Limit: 2}, []string{"evt_4", "evt_3"}},
			"next page":       {management.EventFilter{Limit: 2, Before: "evt_3"}, []string{"evt_2", "evt_1"}},
			"everything":      {management.EventFilter{TenantID: "ten_a", Actor: "key_a", Action: "domain.updated", Object: "dom_a", From: at(4), To: at(5), Before: "evt_5", Limit: 9}, []string{"evt_4"}},
			"SQL in a filter": {management.EventFilter{TenantID: "ten_a' OR '1'='1", Actor: `"`, Object: "?"}, nil},
		} {
			view(t, s, func(tx *tx) error {
				found, err := tx.FindEvents(c.filter)
				var ids []string
				for _, e := range found {
					ids = append(ids, e.ID)
				}
				if !reflect.DeepEqual(ids, c.want) {
					t.Errorf("%s: %v, want %v", name, ids, c.want)
				}
				return err
			})
		}
		view(t, s, func(tx *tx) error {
			found, err := tx.FindEvents(management.EventFilter{Object: "dom_a"})
			if err == nil && !reflect.DeepEqual(found, []*management.Event{entries[3], entries[0]}) {
				t.Errorf("read back: %+v", found)
			}
			return err
		})
		update(t, s, func(tx *tx) error {
			for _, want := range []int{2, 1, 0} {
				if n, err := tx.DeleteEventsBefore(at(3), 2); n != want || err != nil {
					t.Errorf("removed %d of old entries, want %d; %v", n, want, err)
				}
			}
			found, err := tx.FindEvents(management.EventFilter{})
			if len(found) != 2 {
				t.Errorf("%d entries are left, want 2", len(found))
			}
			return err
		})
	})
}

func TestReplies(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2026, 1, 2, hour, 0, 0, 0, time.UTC) }
	eachEngine(t, func(t *testing.T, s *Store) {
		first := &management.Reply{Credential: "key_a", Key: "k'1", RequestHash: []byte{0, 1, 255}, CreatedAt: at(1)}
		update(t, s, func(tx *tx) error {
			if err := tx.InsertReply(first); err != nil {
				return err
			}
			if err := tx.InsertReply(first); !errors.Is(err, management.ErrRowExists) {
				t.Errorf("the same key again: %v, want ErrRowExists", err)
			}
			// The transaction goes on, and the same key of somebody else is another one.
			return tx.InsertReply(&management.Reply{Credential: "key_b", Key: "k'1", CreatedAt: at(2)})
		})
		view(t, s, func(tx *tx) error {
			found, err := tx.FindReply("key_a", "k'1")
			if err == nil && (found.Status != 0 || string(found.RequestHash) != string(first.RequestHash) || !found.CreatedAt.Equal(at(1)) || len(found.Body) != 0) {
				t.Errorf("read back: %+v", found)
			}
			if _, err := tx.FindReply("key_a", "k"); !errors.Is(err, management.ErrNoRow) {
				t.Errorf("another key: %v, want ErrNoRow", err)
			}
			return err
		})
		update(t, s, func(tx *tx) error {
			answered := *first
			answered.Status, answered.Header, answered.Body = 201, map[string]string{"Location": "/v1/x"}, []byte{0, 'x'}
			if err := tx.UpdateReply(&answered); err != nil {
				return err
			}
			if err := tx.UpdateReply(&management.Reply{Credential: "key_c", Key: "k'1"}); !errors.Is(err, management.ErrNoRow) {
				t.Errorf("an answer to nothing: %v, want ErrNoRow", err)
			}
			found, err := tx.FindReply("key_a", "k'1")
			if err == nil && (found.Status != 201 || found.Header["Location"] != "/v1/x" || string(found.Body) != "\x00x") {
				t.Errorf("read back: %+v", found)
			}
			return err
		})
		update(t, s, func(tx *tx) error {
			if n, err := tx.DeleteRepliesBefore(at(2), 10); n != 1 || err != nil {
				t.Errorf("forgot %d, want 1; %v", n, err)
			}
			if _, err := tx.FindReply("key_a", "k'1"); !errors.Is(err, management.ErrNoRow) {
				t.Errorf("an old reply: %v, want ErrNoRow", err)
			}
			if err := tx.DeleteReply("key_b", "k'1"); err != nil {
				return err
			}
			if err := tx.DeleteReply("key_b", "k'1"); !errors.Is(err, management.ErrNoRow) {
				t.Errorf("removed twice: %v, want ErrNoRow", err)
			}
			return nil
		})
	})
}
