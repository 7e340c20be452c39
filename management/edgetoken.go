package management

import (
	"context"
	"errors"
	"time"
)

// EdgeToken is the credential of edges, which can read the feed and report. Several edges may share one.
type EdgeToken struct {
	ID         string    `json:"id"` // etk_…
	Name       string    `json:"name"`
	Prefix     string    `json:"prefix"`     // what can be shown of the secret
	CreatedBy  string    `json:"created_by"` // usr_…
	CreatedAt  time.Time `json:"created_at"`
	LastUsedAt time.Time `json:"last_used_at,omitzero"` // by the minute; absent: not used yet
	Hash       []byte    `json:"-"`
}

// maxEdgeTokens is how many edge tokens there are.
const maxEdgeTokens = 1000

// CreateEdgeToken makes an edge token, for operators of the platform.
func (p *Plane) CreateEdgeToken(ctx context.Context, who *Principal, name string) (*EdgeToken, Secret, error) {
	if err := who.Require(Platform); err != nil {
		return nil, Secret{}, err
	}
	if err := refuse(faultAt("/name", checkTitle(name))); err != nil {
		return nil, Secret{}, err
	}
	secret := NewSecret(EdgeTokenSecret)
	token := &EdgeToken{
		ID: NewID(EdgeTokenID), Name: name, Prefix: secret.Prefix(), Hash: secret.Hash(), CreatedBy: who.UserID, CreatedAt: p.now(),
	}
	err := p.store.Update(ctx, func(tx Tx) error {
		if n, err := tx.CountEdgeTokens(); err != nil {
			return err
		} else if n >= maxEdgeTokens {
			return Errorf(QuotaExceeded, "There are %d edge tokens: delete some.", maxEdgeTokens)
		}
		if err := tx.InsertEdgeToken(token); err != nil {
			return err
		}
		return p.audit(tx, who, "edge_token.created", "", token.ID, nil, token)
	})
	if err != nil {
		return nil, Secret{}, err
	}
	return token, secret, nil
}

// FindEdgeTokens lists the edge tokens, for operators of the platform.
func (p *Plane) FindEdgeTokens(ctx context.Context, who *Principal, page Page) (tokens []*EdgeToken, next string, err error) {
	if err := who.Require(Platform); err != nil {
		return nil, "", err
	}
	after, err := afterID(page, EdgeTokenID)
	if err != nil {
		return nil, "", err
	}
	err = p.store.View(ctx, func(tx Tx) error {
		tokens, err = tx.FindEdgeTokens(after, page.Limit+1)
		return err
	})
	tokens, next = onePage(tokens, page, func(t *EdgeToken) string { return t.ID })
	return tokens, next, err
}

// DeleteEdgeToken revokes an edge token, for operators of the platform.
func (p *Plane) DeleteEdgeToken(ctx context.Context, who *Principal, id string) error {
	if err := who.Require(Platform); err != nil {
		return err
	}
	if err := isID(EdgeTokenID, id, "edge token"); err != nil {
		return err
	}
	return p.store.Update(ctx, func(tx Tx) error {
		token, err := tx.FindEdgeToken(id)
		if err != nil {
			return found("edge token", err)
		}
		if err := tx.DeleteEdgeToken(id); err != nil {
			return err
		}
		return p.audit(tx, who, "edge_token.deleted", "", id, token, nil)
	})
}

// PrincipalOfEdge returns which edge token an edge presents: a principal without scopes, but with EdgeTokenID. Unauthenticated:
// it is unknown or revoked. ClientAddr and RequestID are the caller's to set.
func (p *Plane) PrincipalOfEdge(ctx context.Context, secret Secret) (*Principal, error) {
	var token *EdgeToken
	err := p.store.View(ctx, func(tx Tx) (err error) {
		token, err = tx.FindEdgeTokenByHash(secret.Hash())
		return err
	})
	if errors.Is(err, ErrNoRow) {
		return nil, errNoCredential()
	}
	if err != nil {
		return nil, err
	}
	p.touch(use{edgeToken: token.ID}, token.LastUsedAt)
	return &Principal{EdgeTokenID: token.ID}, nil
}
