package auth

import (
	"testing"

	"github.com/pqproxy/caddy-pqproxy/management"
)

var _ management.Auth = (*Plane)(nil)

// TestPlaneAgrees: the plane stores when things end, this package says so to browsers. Both must say the same.
func TestPlaneAgrees(t *testing.T) {
	for purpose, want := range map[management.Purpose]Purpose{
		management.SessionToken: Session, management.ResetToken: PasswordReset,
		management.InvitationToken: Invitation, management.VerificationToken: EmailVerification,
	} {
		if Purpose(purpose) != want {
			t.Errorf("%q is spelled %q", want, purpose)
		}
	}
	if management.SessionLifetime != SessionLifetime || management.SessionIdle != SessionIdle || management.ResetLifetime != PasswordResetLifetime ||
		management.VerificationLifetime != EmailVerificationLifetime || management.InvitationLifetime != InvitationLifetime {
		t.Error("lifetimes differ")
	}
}
