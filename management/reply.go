package management

import (
	"bytes"
	"context"
	"errors"
	"time"
)

// replyTakes is how long a request may be worked on: an older one without an answer has died with its instance, and the same
// request may be tried again.
const replyTakes = time.Minute

// BeginReply marks the request with that Idempotency-Key as being worked on, and returns nil: do the work, then call
// FinishReply or DropReply. Where the same request was answered already, it returns what it was answered. hash is a hash
// over the request. It returns IdempotencyMismatch where the key came with another request, and Conflict with RetryAfter while
// the first is being worked on. Keys are the credential's own, and are forgotten after 24 h.
func (p *Plane) BeginReply(ctx context.Context, who *Principal, key string, hash []byte) (done *Reply, err error) {
	err = p.store.Update(ctx, func(tx Tx) error {
		done = nil
		now, credential := p.now(), who.Actor()
		old, err := tx.FindReply(credential, key)
		switch {
		case errors.Is(err, ErrNoRow):
		case err != nil:
			return err
		case !old.CreatedAt.After(now.Add(-repliesFor)), old.Status == 0 && !old.CreatedAt.After(now.Add(-replyTakes)):
			if err := tx.DeleteReply(credential, key); err != nil {
				return err
			}
		case !bytes.Equal(old.RequestHash, hash):
			return Errorf(IdempotencyMismatch, "This Idempotency-Key came with another request before: use a new one.")
		case old.Status == 0:
			e := Errorf(Conflict, "The request with this Idempotency-Key is being worked on.")
			e.RetryAfter = time.Second
			return e
		default:
			done = old
			return nil
		}
		return tx.InsertReply(&Reply{Credential: credential, Key: key, RequestHash: hash, CreatedAt: now})
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// FinishReply keeps the answer. body must hold no secret.
func (p *Plane) FinishReply(ctx context.Context, who *Principal, key string, hash []byte, status int, header map[string]string, body []byte) error {
	return p.ownReply(ctx, who, key, hash, func(tx Tx, own *Reply) error {
		own.Status, own.Header, own.Body = status, header, body
		return tx.UpdateReply(own)
	})
}

// DropReply forgets the key, since the request failed in a way that trying again may mend.
func (p *Plane) DropReply(ctx context.Context, who *Principal, key string, hash []byte) error {
	return p.ownReply(ctx, who, key, hash, func(tx Tx, own *Reply) error { return tx.DeleteReply(own.Credential, own.Key) })
}

// ownReply calls fn with the reply, unless it is not being worked on any more: somebody took over what seemed dead, and
// what he answers counts.
func (p *Plane) ownReply(ctx context.Context, who *Principal, key string, hash []byte, fn func(Tx, *Reply) error) error {
	return p.store.Update(ctx, func(tx Tx) error {
		own, err := tx.FindReply(who.Actor(), key)
		switch {
		case errors.Is(err, ErrNoRow):
			return nil
		case err != nil:
			return err
		case own.Status != 0 || !bytes.Equal(own.RequestHash, hash):
			return nil
		}
		return fn(tx, own)
	})
}
