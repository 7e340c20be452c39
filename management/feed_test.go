package management_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// patience is how long a test waits for what comes soon.
const patience = 30 * time.Second

// countingSigner counts how often something is signed.
type countingSigner struct {
	*feedsig.PrivateKey
	signed atomic.Int64
}

func (s *countingSigner) Sign(digest [sha512.Size]byte) string {
	s.signed.Add(1)
	return s.PrivateKey.Sign(digest)
}

// feeder is a Plane with a signed feed, and an edge that reads it.
type feeder struct {
	*management.Plane
	t      *testing.T
	store  *store.Store
	signer *countingSigner
	sealer *vault.Vault
	edge   *management.Principal
}

func newFeeder(t *testing.T, st *store.Store) *feeder {
	t.Helper()
	key, err := feedsig.Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	f := &feeder{t: t, store: st, signer: &countingSigner{PrivateKey: key}}
	if f.sealer, err = vault.New(vault.NewKey()); err != nil {
		t.Fatal(err)
	}
	f.Plane, err = management.New(management.Config{SetupToken: setupToken}, management.Parts{
		Store: st, Sealer: f.sealer, Passwords: &cheapPasswords{}, Resolver: noResolver{}, Prober: noProber{}, Signer: f.signer,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := f.CreateEdgeToken(t.Context(), &management.Principal{UserID: management.NewID(management.UserID), Scopes: management.Scopes{management.Platform}}, "edges")
	if err != nil {
		t.Fatal(err)
	}
	f.edge = &management.Principal{EdgeTokenID: token.ID}
	return f
}

func eachFeeder(t *testing.T, fn func(t *testing.T, f *feeder)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, st *store.Store) { fn(t, newFeeder(t, st)) })
}

// put publishes a name, or removes it.
func (f *feeder) put(name string, removed bool, suspended bool) {
	err := f.store.Update(context.Background(), func(tx management.Tx) error {
		revision, err := tx.NextRevision()
		if err != nil {
			return err
		}
		r := &management.FeedRecord{Name: name, Revision: revision, DomainID: "dom_1", TenantID: "ten_1", Removed: removed, At: time.Now()}
		if !removed {
			r.Suspended = suspended
			r.Settings = fmt.Appendf(nil, `{"name":%q,"tenant":"ten_1","upstreams":[{"dial":"10.0.0.5:%d"}]}`, name, 1+revision%60000)
		}
		return tx.PutFeedRecord(r)
	})
	if err != nil {
		f.t.Error(err)
	}
}

func (f *feeder) ask(r management.FeedRequest) *management.FeedAnswer {
	f.t.Helper()
	answer, err := f.Feed(f.t.Context(), f.edge, r)
	if err != nil {
		f.t.Fatal(err)
	}
	if answer.Body != nil {
		f.t.Cleanup(answer.Body.Close)
	}
	return answer
}

// read checks a body's signature, and both of its forms, and returns it as it says.
func (f *feeder) read(b *management.FeedBody) (text []byte, header *domain.SetHeader, records map[string]string, removed []string) {
	f.t.Helper()
	plain, err := b.Plain()
	if err != nil {
		f.t.Fatal(err)
	}
	if text, err = io.ReadAll(plain); err != nil {
		f.t.Fatal(err)
	}
	compressed, err := io.ReadAll(b.Gzip())
	if err != nil || int64(len(compressed)) != b.GzipSize || int64(len(text)) != b.Size {
		f.t.Fatalf("%d and %d bytes instead of %d and %d: %v", len(text), len(compressed), b.Size, b.GzipSize, err)
	}
	if err := f.signer.Public().Verify(b.Signature, sha512.Sum512(text)); err != nil {
		f.t.Fatal(err)
	}
	records = make(map[string]string)
	header, err = domain.ReadSet(bytes.NewReader(text), domain.Remote, domain.SetOptions{
		Domain:  func(d *domain.Domain) error { records[d.Name] = string(d.AppendJSON(nil)); return nil },
		Removed: func(name string) error { removed = append(removed, name); return nil },
		Refused: func(r domain.Refusal) { records[r.Name] = "refused" },
	})
	if err != nil {
		f.t.Fatalf("%v in %s", err, text)
	}
	if header.Revision != b.Revision || len(header.Ignored) > 0 {
		f.t.Fatalf("revision %d in a body of %d; ignored %v", header.Revision, b.Revision, header.Ignored)
	}
	return text, header, records, removed
}

func ptr[T any](v T) *T { return &v }

func TestFeedAnswers(t *testing.T) {
	eachFeeder(t, func(t *testing.T, f *feeder) {
		empty := f.ask(management.FeedRequest{})
		if text, header, records, _ := f.read(empty.Body); !header.Full || header.Revision != 0 || len(records) != 0 {
			t.Fatalf("an empty set is %s", text)
		}
		f.put("a.example.com", false, false)
		f.put("b.example.com", false, true)
		f.put("c.example.com", false, false)
		f.put("c.example.com", true, false)

		_, header, full, _ := f.read(f.ask(management.FeedRequest{}).Body)
		if !header.Full || header.Revision != 4 || len(full) != 2 || !strings.Contains(full["b.example.com"], `"suspended":true`) {
			t.Fatalf("full set: %+v %v", header, full)
		}
		_, header, changed, removed := f.read(f.ask(management.FeedRequest{After: ptr(uint64(1))}).Body)
		if header.Full || header.Base != 1 || header.Revision != 4 || len(changed) != 1 || len(removed) != 1 || removed[0] != "c.example.com" {
			t.Fatalf("difference: %+v %v %v", header, changed, removed)
		}
		_, header, changed, removed = f.read(f.ask(management.FeedRequest{After: ptr(uint64(4))}).Body)
		if header.Base != 4 || header.Revision != 4 || len(changed)+len(removed) > 0 {
			t.Fatalf("no difference: %+v %v %v", header, changed, removed)
		}
		for name, c := range map[string]struct {
			r                 management.FeedRequest
			notModified, gone bool
		}{
			"the tag":                 {r: management.FeedRequest{IfNoneMatch: `"4"`}, notModified: true},
			"the tag among others":    {r: management.FeedRequest{IfNoneMatch: `"1", W/"4"`}, notModified: true},
			"an old tag":              {r: management.FeedRequest{IfNoneMatch: `"3"`}},
			"the revision and tag":    {r: management.FeedRequest{After: ptr(uint64(4)), IfNoneMatch: `"4"`}, notModified: true},
			"an old one and the tag":  {r: management.FeedRequest{After: ptr(uint64(3)), IfNoneMatch: `"4"`}},
			"a revision to come":      {r: management.FeedRequest{After: ptr(uint64(5))}, gone: true},
			"the highest revision":    {r: management.FeedRequest{After: ptr(^uint64(0))}, gone: true},
			"0 is a full set":         {r: management.FeedRequest{After: ptr(uint64(0))}},
			"a wait that is over":     {r: management.FeedRequest{After: ptr(uint64(4)), IfNoneMatch: `"4"`, Wait: time.Millisecond}, notModified: true},
			"a wait for a difference": {r: management.FeedRequest{After: ptr(uint64(2)), Wait: time.Minute}},
		} {
			answer := f.ask(c.r)
			if answer.NotModified != c.notModified || answer.Gone != c.gone || (answer.Body != nil) == (c.notModified || c.gone) {
				t.Errorf("%s: %+v", name, answer)
			}
			if (answer.Waited > 0) != (c.r.Wait > 0) {
				t.Errorf("%s: waited %v", name, answer.Waited)
			}
		}

		if err := f.store.Update(t.Context(), func(tx management.Tx) error {
			_, err := tx.PruneFeed(time.Now().Add(time.Hour), 100)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		g := newFeeder(t, f.store) // another instance, which has nothing in memory
		if answer := g.ask(management.FeedRequest{After: ptr(uint64(3))}); !answer.Gone {
			t.Errorf("a removal is forgotten, and the difference is told: %+v", answer)
		}
		if answer := g.ask(management.FeedRequest{After: ptr(uint64(4))}); answer.Gone {
			t.Error("the present revision is gone")
		}
	})
}

// Changes come from several sides; an edge that follows the differences has what the full set says, each time.
func TestFeedSkipsNothing(t *testing.T) {
	eachFeeder(t, func(t *testing.T, f *feeder) {
		const writers, changes = 4, 40
		var writing sync.WaitGroup
		for n := range writers {
			random := mathrand.New(mathrand.NewPCG(7, uint64(n)))
			writing.Go(func() {
				for range changes {
					f.put(fmt.Sprintf("n%d.example.com", random.IntN(12)), random.IntN(3) == 0, random.IntN(4) == 0)
				}
			})
		}
		var edges sync.WaitGroup
		for range 3 {
			edges.Go(func() {
				have, revision := make(map[string]string), uint64(0)
				for revision < writers*changes {
					ctx, cancel := context.WithTimeout(context.Background(), patience)
					answer, err := f.Feed(ctx, f.edge, management.FeedRequest{After: &revision, Wait: patience})
					cancel()
					if err != nil || answer.Body == nil {
						t.Errorf("after %d: %+v %v", revision, answer, err)
						return
					}
					_, header, changed, removed := f.read(answer.Body)
					answer.Body.Close()
					if !header.Full && header.Base != revision || header.Revision <= revision && revision > 0 {
						t.Errorf("after %d: %+v", revision, header)
						return
					}
					for name, record := range changed {
						have[name] = record
					}
					for _, name := range removed {
						delete(have, name)
					}
					revision = header.Revision
				}
				_, _, full, _ := f.read(f.ask(management.FeedRequest{}).Body)
				if len(full) != len(have) {
					t.Errorf("%d names instead of %d", len(have), len(full))
				}
				for name, record := range full {
					if have[name] != record {
						t.Errorf("%s: %s instead of %s", name, have[name], record)
					}
				}
			})
		}
		writing.Wait()
		edges.Wait()
	})
}

// silent is a store that tells of no change: that of an instance which another one's changes have not reached yet.
type silent struct{ management.Store }

func (silent) Changed() <-chan struct{} { return silence }

var silence = make(chan struct{})

// An edge that has a revision of another instance is not told that there is none such, which would cost it a full set.
func TestFeedOfAnotherInstance(t *testing.T) {
	eachFeeder(t, func(t *testing.T, f *feeder) {
		plane, err := management.New(management.Config{SetupToken: setupToken}, management.Parts{
			Store: silent{f.store}, Sealer: f.sealer, Passwords: &cheapPasswords{}, Resolver: noResolver{}, Prober: noProber{}, Signer: f.signer,
			Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		f.Plane = plane
		f.put("a.example.com", false, false)
		if answer := f.ask(management.FeedRequest{}); answer.Revision != 1 {
			t.Fatalf("%+v", answer)
		}
		f.put("b.example.com", false, false) // unheard of here
		if answer := f.ask(management.FeedRequest{After: ptr(uint64(2)), IfNoneMatch: `"2"`}); !answer.NotModified || answer.Revision != 2 {
			t.Errorf("an edge that has 2 is answered %+v", answer)
		}
		if answer := f.ask(management.FeedRequest{After: ptr(uint64(3))}); !answer.Gone {
			t.Errorf("an edge that has 3, which there is not, is answered %+v", answer)
		}
	})
}

// Many edges wait; one change wakes them all, and the difference is made and signed once.
func TestFeedLongPoll(t *testing.T) {
	eachFeeder(t, func(t *testing.T, f *feeder) {
		f.put("a.example.com", false, false)
		const edges = 100
		answers := make(chan *management.FeedAnswer, edges)
		for range edges {
			go func() {
				answer, err := f.Feed(context.Background(), f.edge, management.FeedRequest{After: ptr(uint64(1)), IfNoneMatch: `"1"`, Wait: patience})
				if err != nil {
					t.Error(err)
				}
				answers <- answer
			}()
		}
		for f.FeedWaiting() < edges {
			runtime.Gosched()
		}
		before := f.signer.signed.Load()
		f.put("b.example.com", false, false)
		for range edges {
			select {
			case answer := <-answers:
				if answer == nil || answer.Body == nil || answer.Revision != 2 {
					t.Fatalf("%+v", answer)
				}
				answer.Body.Close()
			case <-time.After(patience):
				t.Fatal("an edge was not woken")
			}
		}
		if n := f.signer.signed.Load() - before; n != 1 {
			t.Errorf("signed %d times", n)
		}
		if n := f.FeedWaiting(); n != 0 {
			t.Errorf("%d still wait", n)
		}

		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := f.Feed(ctx, f.edge, management.FeedRequest{After: ptr(uint64(2)), Wait: patience})
			left <- err
		}()
		for f.FeedWaiting() == 0 {
			runtime.Gosched()
		}
		cancel()
		if err := <-left; err != context.Canceled {
			t.Errorf("who has gone gets %v", err)
		}
	})
}

// A change on one instance reaches edges that wait at another.
func TestFeedOfTwoInstances(t *testing.T) {
	o := storetest.Options(t, store.Postgres)
	f, g := newFeeder(t, storetest.Reopen(t, o)), newFeeder(t, storetest.Reopen(t, o))
	f.put("a.example.com", false, false)
	answers := make(chan *management.FeedAnswer, 1)
	go func() {
		answer, err := g.Feed(context.Background(), g.edge, management.FeedRequest{After: ptr(uint64(1)), Wait: patience})
		if err != nil {
			t.Error(err)
		}
		answers <- answer
	}()
	for g.FeedWaiting() == 0 {
		runtime.Gosched()
	}
	f.put("b.example.com", false, false)
	if answer := <-answers; answer == nil || answer.Body == nil || answer.Revision != 2 {
		t.Fatalf("%+v", answer)
	}
}

// A token that is revoked while its request is held gets nothing any more.
func TestFeedRevokedWhileWaiting(t *testing.T) {
	eachFeeder(t, func(t *testing.T, f *feeder) {
		f.put("a.example.com", false, false)
		ended := make(chan error, 1)
		f.CheckTokensAlways()
		go func() {
			_, err := f.Feed(context.Background(), f.edge, management.FeedRequest{After: ptr(uint64(1)), Wait: patience})
			ended <- err
		}()
		for f.FeedWaiting() == 0 {
			runtime.Gosched()
		}
		operator := &management.Principal{UserID: management.NewID(management.UserID), Scopes: management.Scopes{management.Platform}}
		if err := f.DeleteEdgeToken(t.Context(), operator, f.edge.EdgeTokenID); err != nil {
			t.Fatal(err)
		}
		f.put("b.example.com", false, false)
		if err := <-ended; management.CodeOf(err) != management.Unauthenticated {
			t.Errorf("it gets %v", err)
		}
	})
}

// A set larger than what is kept in memory is in a file that nobody finds, and several can read it at once.
func TestFeedLargeSet(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	f := newFeeder(t, storetest.Open(t, store.SQLite))
	const names = 6000
	err := f.store.Update(t.Context(), func(tx management.Tx) error {
		for i := range names {
			revision, err := tx.NextRevision()
			if err != nil {
				return err
			}
			name := fmt.Sprintf("n%d-%s.example.com", i, strings.ToLower(rand.Text())) // hard to compress
			settings := fmt.Appendf(nil, `{"name":%q,"tenant":"ten_%s","upstreams":[{"dial":"%s.internal:443"}]}`, name, rand.Text(), strings.ToLower(rand.Text()))
			if err := tx.PutFeedRecord(&management.FeedRecord{Name: name, Revision: revision, DomainID: "d", TenantID: "t", Settings: settings}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range 4 {
		answer := f.ask(management.FeedRequest{})
		if answer.Body.GzipSize <= int64(management.FeedInMemory) {
			t.Fatalf("%d bytes are kept in memory: make the set larger", answer.Body.GzipSize)
		}
		readers.Go(func() {
			if _, _, records, _ := f.read(answer.Body); len(records) != names {
				t.Errorf("%d records", len(records))
			}
		})
	}
	readers.Wait()
	if n := f.signer.signed.Load(); n != 1 {
		t.Errorf("signed %d times", n)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("in the folder of temporary files: %v %v", left, err)
	}
	held := f.ask(management.FeedRequest{})
	f.put("another.example.com", false, false)
	f.ask(management.FeedRequest{}) // takes the other's place in the cache
	if _, _, records, _ := f.read(held.Body); len(records) != names {
		t.Errorf("a body that is being read was closed: %d records", len(records))
	}
}

// The key of a pair is in the record. One that cannot be opened spoils that record alone.
func TestFeedKeys(t *testing.T) {
	eachFeeder(t, func(t *testing.T, f *feeder) {
		tenant, id := management.NewID(management.TenantID), management.NewID(management.DomainID)
		sealed, err := f.sealer.Seal([]byte("THE KEY"), "byoc/"+tenant+"/"+id)
		if err != nil {
			t.Fatal(err)
		}
		err = f.store.Update(t.Context(), func(tx management.Tx) error {
			for _, name := range []string{"a.example.com", "b.example.com", "c.example.com"} {
				revision, err := tx.NextRevision()
				if err != nil {
					return err
				}
				r := &management.FeedRecord{Name: name, Revision: revision, DomainID: id, TenantID: tenant, SealedKey: sealed, Suspended: true,
					Settings: fmt.Appendf(nil, `{"name":%q,"upstreams":[{"dial":"10.0.0.5:1"}],"certificate":{"source":"byoc","chain_pem":"CHAIN"}}`, name)}
				if name == "b.example.com" {
					r.DomainID = management.NewID(management.DomainID) // the key is bound to another
				}
				if name == "c.example.com" {
					r.SealedKey, r.Settings = nil, []byte(`{"name":"c.example.com","upstreams":[{"dial":"10.0.0.5:1"}]}`)
				}
				if err := tx.PutFeedRecord(r); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		text, header, _, _ := f.read(f.ask(management.FeedRequest{}).Body)
		if n := strings.Count(string(text), "THE KEY"); n != 1 || strings.Count(string(text), `"suspended":true`) != 3 {
			t.Errorf("%d keys in %s", n, text)
		}
		if header.Domains+header.Refused != 3 {
			t.Errorf("%d and %d of 3 records", header.Domains, header.Refused)
		}
	})
}
