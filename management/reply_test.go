package management_test

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func TestReplies(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		one, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
		begin := func(who *management.Principal, hash []byte) (*management.Reply, management.Code) {
			t.Helper()
			done, err := w.BeginReply(t.Context(), who, "a key", hash)
			return done, management.CodeOf(err)
		}
		finish := func(hash []byte, body string) {
			t.Helper()
			if err := w.FinishReply(t.Context(), w.root, "a key", hash, 201, map[string]string{"ETag": `"1"`}, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		want := func(what string, done *management.Reply, code, wantCode management.Code, body string) {
			t.Helper()
			switch {
			case code != wantCode, (done != nil) != (body != ""):
				t.Fatalf("%s: %+v, %q", what, done, code)
			case done != nil && (string(done.Body) != body || done.Status != 201 || done.Header["ETag"] != `"1"`):
				t.Fatalf("%s: %+v", what, done)
			}
		}

		done, code := begin(w.root, one)
		want("first", done, code, "", "")
		done, code = begin(w.root, one)
		want("while it works", done, code, management.Conflict, "")
		done, code = begin(w.root, other)
		want("another request", done, code, management.IdempotencyMismatch, "")
		done, code = begin(&management.Principal{APIKeyID: "key_other"}, other)
		want("another credential", done, code, "", "")
		finish(one, "made")
		done, code = begin(w.root, one)
		want("again", done, code, "", "made")
		done, code = begin(w.root, other)
		want("another request, later", done, code, management.IdempotencyMismatch, "")

		// A day later the key is free again, whether or not the old answer was cleared away.
		w.clock.pass(24 * time.Hour)
		done, code = begin(w.root, other)
		want("a day later", done, code, "", "")

		// The first died: after a minute another may try, and what the first still says counts no more.
		w.clock.pass(time.Minute)
		done, code = begin(w.root, one)
		want("after a minute", done, code, "", "")
		finish(other, "too late")
		if err := w.DropReply(t.Context(), w.root, "a key", other); err != nil {
			t.Fatal(err)
		}
		done, code = begin(w.root, one)
		want("still worked on", done, code, management.Conflict, "")

		if err := w.DropReply(t.Context(), w.root, "a key", one); err != nil {
			t.Fatal(err)
		}
		done, code = begin(w.root, other)
		want("after it was dropped", done, code, "", "")
		finish(other, "made")
		finish(other, "made twice")
		if err := w.DropReply(t.Context(), w.root, "a key", other); err != nil {
			t.Fatal(err)
		}
		done, code = begin(w.root, other)
		want("an answer stays as it is", done, code, "", "made")
	})
}

// TestRepliesAtOnce: of many equal requests at once, one is worked on.
func TestRepliesAtOnce(t *testing.T) {
	eachPeople(t, nil, func(t *testing.T, w *people) {
		var first, refused atomic.Int32
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				switch done, err := w.BeginReply(t.Context(), w.root, "k", []byte("hash")); {
				case err == nil && done == nil:
					first.Add(1)
				case management.CodeOf(err) == management.Conflict:
					refused.Add(1)
				default:
					t.Errorf("%+v, %v", done, err)
				}
			})
		}
		all.Wait()
		if first.Load() != 1 || refused.Load() != 15 {
			t.Errorf("%d worked on, %d refused", first.Load(), refused.Load())
		}
	})
}
