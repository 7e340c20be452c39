package management

import (
	"strings"

	"github.com/pqproxy/caddy-pqproxy/internal/id"
)

// Kind is the prefix of an ID, which says what it is of.
type Kind string

// The kinds.
const (
	TenantID      Kind = "ten_"
	UserID        Kind = "usr_"
	InvitationID  Kind = "inv_"
	APIKeyID      Kind = "key_"
	DomainID      Kind = "dom_"
	CertificateID Kind = "crt_"
	EdgeTokenID   Kind = "etk_"
	EdgeID        Kind = "edg_"
	EventID       Kind = "evt_"
)

// NewID returns a new ID of that kind: the prefix and 26 characters. IDs of one kind sort by when they were made.
func NewID(k Kind) string { return string(k) + id.New().String() }

// IsID reports whether text is an ID of that kind, whether or not anything has it.
func IsID(k Kind, text string) bool {
	rest, ok := strings.CutPrefix(text, string(k))
	if !ok {
		return false
	}
	_, err := id.Parse(rest)
	return err == nil
}
