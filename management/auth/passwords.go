package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"
)

// ErrBusy says that too many passwords are being hashed at this moment: try again later.
var ErrBusy = errors.New("too many passwords are being checked at this moment; try again in a few seconds")

// ErrBadHash says that a stored hash is none of ours, or that its parameters are beyond all bounds.
var ErrBadHash = errors.New("the stored password hash cannot be read; the password must be reset")

// DefaultConcurrent is how many passwords NewPasswords lets be hashed at once: 2, that is 128 MiB.
const DefaultConcurrent = 2

// longestWait is how long a caller waits for its turn when all turns are taken. Longer, and people would have given up, while
// what they asked for would still be worked off.
const longestWait = 10 * time.Second

// params are the costs of argon2id (RFC 9106 section 3.1): memory in KiB, passes over it, lanes.
type params struct {
	memory, passes uint32
	lanes          uint8
}

// current is the second recommended option of RFC 9106 section 4, for "memory-constrained environments": 64 MiB, 3 passes,
// 4 lanes, a salt of 16 and a tag of 32 bytes. The first option, 2 GiB for each log-in, is out of the question beside an edge.
// OWASP's least (19 MiB, 2 passes) costs an attacker with much hardware some four times less, and saves nothing that counts:
// the memory is bounded by how many hashes are made at once, not by how many people sign in, and 128 MiB for a moment is what
// a machine of 1 GiB can spare. One hash takes a quarter of a second on two shared cores, less on idle ones.
var current = params{memory: 64 << 10, passes: 3, lanes: 4}

const (
	saltBytes = 16
	tagBytes  = 32
)

// The most that a stored hash may ask for: four times what is current. A database that somebody else wrote to must not be able
// to take all memory.
const (
	mostMemory = 256 << 10
	mostPasses = 16
	mostLanes  = 16
	mostBytes  = 64 // of salt and of tag
)

// Passwords hashes and checks passwords with argon2id (RFC 9106). It is safe for concurrent use, and bounds what all callers
// together cost: whoever comes while all turns are taken waits at most 10 seconds, or as long as its context lets it.
//
// Passwords are compared as the bytes that were sent, in UTF-8: no normal form is made of them.
type Passwords struct {
	turns  chan struct{}
	params params
	dummy  hash // what is computed for an account that does not exist
}

// NewPasswords returns a Passwords that makes at most concurrent hashes at a time, each of 64 MiB; 0 or less: DefaultConcurrent.
func NewPasswords(concurrent int) *Passwords {
	if concurrent <= 0 {
		concurrent = DefaultConcurrent
	}
	return newPasswords(concurrent, current)
}

func newPasswords(concurrent int, costs params) *Passwords {
	p := &Passwords{turns: make(chan struct{}, concurrent), params: costs}
	p.dummy = hash{params: costs, salt: make([]byte, saltBytes), tag: make([]byte, tagBytes)}
	rand.Read(p.dummy.salt)
	rand.Read(p.dummy.tag)
	return p
}

// Hash returns the hash of a password as a PHC string (`$argon2id$v=19$m=65536,t=3,p=4$salt$tag`), 97 characters. It does not ask
// Check. Errors: ErrBusy, or that of the context.
func (p *Passwords) Hash(ctx context.Context, password string) (string, error) {
	if err := p.take(ctx); err != nil {
		return "", err
	}
	defer p.release()
	h := hash{params: p.params, salt: make([]byte, saltBytes)}
	rand.Read(h.salt)
	h.tag = h.derive(password, tagBytes)
	return h.String(), nil
}

// Verify reports whether encoded, which Hash returned, is of that password. With an empty encoded, for accounts that do not
// exist or have no password, it takes the same time and says no. stale: the password is right, and its hash was made with
// parameters weaker than those of today; hash it again and store that. Errors: ErrBusy, ErrBadHash, or that of the context.
func (p *Passwords) Verify(ctx context.Context, encoded, password string) (ok, stale bool, err error) {
	stored := p.dummy
	if encoded != "" {
		if stored, err = parseHash(encoded); err != nil {
			return false, false, err
		}
	}
	if len(password) > 4*mostRunes { // no password of ours: Check lets none of this length through
		password, encoded = "", ""
	}
	if err := p.take(ctx); err != nil {
		return false, false, err
	}
	defer p.release()
	same := subtle.ConstantTimeCompare(stored.derive(password, len(stored.tag)), stored.tag) == 1
	ok = same && encoded != ""
	return ok, ok && stored.weakerThan(p.params), nil
}

// take waits for a turn. Waiting callers are served in the order in which they came.
func (p *Passwords) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case p.turns <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(longestWait)
	defer timer.Stop()
	select {
	case p.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return ErrBusy
	}
}

func (p *Passwords) release() { <-p.turns }

// hash is a password hash with all that is needed to make it again.
type hash struct {
	params
	salt, tag []byte
}

func (h hash) derive(password string, length int) []byte {
	return argon2.IDKey([]byte(password), h.salt, h.passes, h.memory, h.lanes, uint32(length)) //nolint:gosec // at most mostBytes
}

// weakerThan reports whether h costs an attacker less than a hash with costs. More is never called stale, lest two versions
// of the service on one database undo each other's work.
func (h hash) weakerThan(costs params) bool {
	return h.memory < costs.memory || h.passes < costs.passes || len(h.salt) < saltBytes || len(h.tag) < tagBytes
}

// String returns h as a PHC string (github.com/P-H-C/phc-string-format).
func (h hash) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.passes, h.lanes,
		base64.RawStdEncoding.EncodeToString(h.salt), base64.RawStdEncoding.EncodeToString(h.tag))
}

// parseHash reads what String writes, and nothing else: one hash has one spelling.
func parseHash(encoded string) (hash, error) {
	if len(encoded) > 300 {
		return hash{}, ErrBadHash
	}
	parts := strings.Split(encoded, "$")
	if len(parts) != 6 {
		return hash{}, ErrBadHash
	}
	var h hash
	var wrong bool
	number := func(text, key string, least, most uint64) uint64 {
		n, err := strconv.ParseUint(strings.TrimPrefix(text, key), 10, 32)
		wrong = wrong || err != nil || n < least || n > most
		return n
	}
	costs := append(strings.Split(parts[3], ","), "", "", "")
	h.memory = uint32(number(costs[0], "m=", 8, mostMemory)) //nolint:gosec // bounded by number
	h.passes = uint32(number(costs[1], "t=", 1, mostPasses)) //nolint:gosec // bounded by number
	h.lanes = uint8(number(costs[2], "p=", 1, mostLanes))    //nolint:gosec // bounded by number
	bytes := func(text string) []byte {
		b, err := base64.RawStdEncoding.DecodeString(text)
		wrong = wrong || err != nil || len(b) < 8 || len(b) > mostBytes
		return b
	}
	h.salt, h.tag = bytes(parts[4]), bytes(parts[5])
	if wrong || h.memory < 8*uint32(h.lanes) || h.String() != encoded {
		return hash{}, ErrBadHash
	}
	return h, nil
}
