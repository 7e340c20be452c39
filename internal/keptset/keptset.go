// Package keptset keeps sets of domains across restarts: what an edge serves before its first poll succeeds,
// and the domains that were set through the admin API. A set is one file in Caddy's storage, encrypted with
// a key that stays on the edge, because private keys of tenants are in it and storages are shared and copied.
//
//	key, warning, err := keptset.OpenKey(dataDir)
//	sets := keptset.New(storage, key)
//	err = sets.Save(ctx, "remote", keptset.Meta{Domains: len(domains)}, func(w io.Writer) error { … })
//	meta, content, err := sets.Load(ctx, "remote", maxSize)
//
// # File format
//
// The set called NAME is at pqproxy/edges/KEYID/NAME.set, so that the edges of a fleet do not meet. It is a
// line in clear, called the header, and bytes behind it that are sealed:
//
//	pqproxy-kept-set 1 {"key":"f1d2d2f924e986ac","name":"remote","saved_at":…,"salt":"…","size":1234}
//
// The number is that of the format. The sealed part is the content in gzip (RFC 1952) under AES-256-GCM (NIST
// SP 800-38D), 12 bytes of random nonce in front and 16 of tag behind; size counts all of it. The header is
// the additional data, so that neither the Meta in it can be changed nor one set be put in the place of
// another. The AES key is made of the edge's key and the header's salt, 32 random bytes, by HKDF-SHA256 (RFC
// 5869): it is used for this one file, so no number of files brings two nonces together.
//
// What none of this can tell is an older file put back in the place of a newer one.
package keptset

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// The causes for which a file does not open, but for a missing one (fs.ErrNotExist) and errors of the
// storage; errors.Is finds them. Load returns one of them, and reading what it opened ErrCorrupt or ErrTooLarge.
var (
	ErrForeign     = errors.New("the file is not a kept set")
	ErrNewerFormat = errors.New("the kept set was written by a newer version, in a format that this one does not read")
	ErrTruncated   = errors.New("the kept set is truncated")
	ErrCorrupt     = errors.New("the kept set is corrupt")
	ErrOtherKey    = errors.New("the kept set was written with another edge's key")
	ErrOtherName   = errors.New("the kept set is that of another name")
	ErrTooLarge    = errors.New("the kept set is larger than allowed")
)

// Meta says what a kept set is, for the one who keeps it. It is in clear in the file and protected against
// changes, so it may hold no secret. What is empty is not written.
type Meta struct {
	// Revision is that of the set, if HasRevision; else it is not kept.
	Revision    uint64
	HasRevision bool
	// ETag is what the feed called the set, any bytes; with Source, at most 40 KiB.
	ETag string
	// Source identifies the feed, so that the set of another one is not taken for its set. UTF-8, opaque.
	Source string
	// Domains is the number of domains in the set.
	Domains int
	// Saved is when the set was saved, by the edge's clock and in UTC. If it is zero, Save sets it.
	Saved time.Time
}

// Store keeps sets of one edge in a storage. It may be used from several goroutines: of two that save the
// same name, the later one stays. It never prints the key, nor the storage, which may know passwords.
type Store struct {
	storage certmagic.Storage
	key     *Key
}

// New returns the sets that are kept in storage with key; neither may be nil. It touches nothing.
func New(storage certmagic.Storage, key *Key) *Store {
	return &Store{storage: storage, key: key}
}

// Save keeps what write writes under name, in the place of what was kept there. The new file is given to the
// storage whole, once write has returned nil; if write fails, or ctx has ended, the old one stays. If the
// storage fails, either is there. In memory are the compressed content, which grows while write runs (about
// a sixth of a set of domains, more with certificates in it), and never the content itself.
//
// A name has 1 to 64 characters of a-z, 0-9, - and _. Small writes are fine.
func (s *Store) Save(ctx context.Context, name string, meta Meta, write func(w io.Writer) error) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	value, err := seal(s.key, newHeader(name, meta), func(w io.Writer) error { return compress(w, write) })
	if err == nil {
		err = ctx.Err() // not every storage looks
	}
	if err == nil {
		err = s.storage.Store(ctx, path, value)
	}
	if err != nil {
		return fmt.Errorf("saving %s: %w", path, err)
	}
	return nil
}

func compress(w io.Writer, write func(w io.Writer) error) error {
	// The set is written after each change: at the default level that takes twice as long, and the file is 5%
	// smaller.
	gz, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := write(gz); err != nil {
		return err
	}
	return gz.Close()
}

// Load opens what is kept under name. The content is decompressed while it is read, at most maxSize bytes of
// it: one more, and Read returns ErrTooLarge. A file that would have to be larger than that is refused before
// it is fetched, if the storage knows sizes. Who reads to io.EOF has the whole content as it was written; who
// meets another error has to forget what was read.
//
// Errors name the file in the storage and wrap one of the variables above, fs.ErrNotExist if there is none,
// or the storage's own. Close frees the memory and returns nil.
func (s *Store) Load(ctx context.Context, name string, maxSize int64) (Meta, io.ReadCloser, error) {
	path, err := s.path(name)
	if err != nil {
		return Meta{}, nil, err
	}
	meta, content, err := s.load(ctx, path, name, max(maxSize, 0))
	if err != nil {
		return Meta{}, nil, fmt.Errorf("loading %s: %w", path, err)
	}
	return meta, content, nil
}

func (s *Store) load(ctx context.Context, path, name string, maxSize int64) (Meta, io.ReadCloser, error) {
	limit := maxFileSize(maxSize)
	// Load has no limit of its own. Where Stat fails, Load says why.
	if info, err := s.storage.Stat(ctx, path); err == nil && info.Size > limit {
		return Meta{}, nil, tooLarge(info.Size, limit)
	}
	value, err := s.storage.Load(ctx, path)
	if err != nil {
		return Meta{}, nil, err
	}
	if int64(len(value)) > limit {
		return Meta{}, nil, tooLarge(int64(len(value)), limit)
	}
	h, compressed, err := open(s.key, name, value)
	if err != nil {
		return Meta{}, nil, err
	}
	content, err := newContent(path, compressed, maxSize)
	if err != nil {
		return Meta{}, nil, err
	}
	return h.meta(), content, nil
}

// maxFileSize returns an upper bound for the file of a content of size bytes. Deflate adds 5 bytes to 64 KiB
// that it cannot compress (RFC 1951 section 3.2.4), or a little more where blocks end early.
func maxFileSize(size int64) int64 {
	if size > math.MaxInt64/2 {
		return math.MaxInt64
	}
	return size + size/512 + maxHeader + 4<<10
}

func tooLarge(size, limit int64) error {
	return fmt.Errorf("%w: the file has %d bytes; at most %d can be needed", ErrTooLarge, size, limit)
}

// Delete removes what is kept under name. It is no error if there is nothing.
func (s *Store) Delete(ctx context.Context, name string) error {
	path, err := s.path(name)
	if err != nil {
		return err
	}
	if err := s.storage.Delete(ctx, path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleting %s: %w", path, err)
	}
	return nil
}

// path returns where in the storage the set called name is.
func (s *Store) path(name string) (string, error) {
	// As narrow as this, it cannot lead out of the edge's folder, whatever the storage takes for a separator.
	if name == "" || len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return "", fmt.Errorf("the name %.64q of a kept set is not 1 to 64 characters of a-z, 0-9, - and _", name)
	}
	return "pqproxy/edges/" + s.key.id + "/" + name + ".set", nil
}

// String names s by the ID of its key.
func (s Store) String() string { return "sets kept with " + s.key.String() }

// Format prints String whatever the verb: %+v would print the storage.
func (s Store) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// Interface guards.
var (
	_ fmt.Formatter = Store{}
	_ fmt.Formatter = Key{}
)
