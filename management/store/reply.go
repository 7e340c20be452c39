package store

import (
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// InsertReply remembers an answer; management.ErrRowExists where there is one of that credential and key.
func (t *tx) InsertReply(r *management.Reply) error {
	header, err := text(r.Header)
	if err != nil {
		return err
	}
	return t.insert(`INSERT INTO replies (credential, key, request_hash, status, header, body, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT DO NOTHING`,
		r.Credential, r.Key, blob(r.RequestHash), r.Status, header, blob(r.Body), r.CreatedAt.UnixMicro())
}

// UpdateReply sets what was answered.
func (t *tx) UpdateReply(r *management.Reply) error {
	header, err := text(r.Header)
	if err != nil {
		return err
	}
	return t.execOne(`UPDATE replies SET status = ?, header = ?, body = ? WHERE credential = ? AND key = ?`,
		r.Status, header, blob(r.Body), r.Credential, r.Key)
}

// FindReply returns the remembered answer.
func (t *tx) FindReply(credential, key string) (*management.Reply, error) {
	r := &management.Reply{Credential: credential, Key: key}
	err := t.get(`SELECT request_hash, status, header, body, created_at FROM replies WHERE credential = ? AND key = ?`,
		[]any{credential, key}, &r.RequestHash, &r.Status, document{&r.Header}, &r.Body, moment{&r.CreatedAt})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// DeleteReply forgets an answer; one that is not there is management.ErrNoRow.
func (t *tx) DeleteReply(credential, key string) error {
	return t.execOne(`DELETE FROM replies WHERE credential = ? AND key = ?`, credential, key)
}

// DeleteRepliesBefore forgets answers that are older, at most limit, and returns how many.
func (t *tx) DeleteRepliesBefore(before time.Time, limit int) (int, error) {
	n, err := t.exec(`DELETE FROM replies WHERE (credential, key) IN
		(SELECT credential, key FROM replies WHERE created_at < ? ORDER BY created_at LIMIT ?)`, before.UnixMicro(), limit)
	return int(n), err
}
