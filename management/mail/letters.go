package mail

import (
	"errors"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// kind is a mail's name in the log.
type kind string

const (
	verification      kind = "verification"
	alreadyRegistered kind = "already_registered"
	invitation        kind = "invitation"
	reset             kind = "reset"
)

// letter is a mail on its way.
type letter struct {
	kind              kind
	to, subject, text string

	id       string // of the header Message-ID, without brackets: the same in all attempts
	made     time.Time
	due      time.Time
	attempts int
	data     []byte // what render returned
}

// The most that is put into a mail from outside.
const (
	mostLink   = 2048
	mostTenant = 100 // characters
)

// SendVerification sends the link with which somebody who signed up shows that the address is theirs.
func (m *Mailer) SendVerification(to, link string) {
	m.send(compose(verification, to, "", link, "Confirm your address for {host}", `Somebody, hopefully you, signed up at {host} with this address. To confirm it, open

{link}

The link works once and for a limited time. If it was not you, do nothing: without
the confirmation the account is never used.
`))
}

// SendAlreadyRegistered tells somebody who signed up with an address that has an account where to sign in. The service answers
// both kinds of people alike; only the owner of the mailbox learns the difference.
func (m *Mailer) SendAlreadyRegistered(to, link string) {
	m.send(compose(alreadyRegistered, to, "", link, "You already have an account at {host}", `Somebody, perhaps you, signed up at {host} with this address, which has an account
already. Nothing was changed. To sign in, or to choose a new password, open

{link}

If it was not you, do nothing.
`))
}

// SendInvitation sends the link with which somebody joins a tenant. The tenant's name is whatever its owner chose, so it stands
// between quotation marks, and nowhere in the subject.
func (m *Mailer) SendInvitation(to, tenant, link string) {
	m.send(compose(invitation, to, tenant, link, "You are invited to {host}", `You are invited to join "{tenant}" at {host}. To accept, open

{link}

The link works once and for a limited time. If you do not know who invites you, do
nothing.
`))
}

// SendReset sends the link with which somebody chooses a new password.
func (m *Mailer) SendReset(to, link string) {
	m.send(compose(reset, to, "", link, "Choose a new password for {host}", `Somebody, hopefully you, asked for a new password at {host}. To choose one, open

{link}

The link works once and for a limited time. If it was not you, do nothing: your
password stays as it is.
`))
}

// compose returns a letter with tenant, link and the link's host in their places. In case of an error too there is a letter, for
// the log.
func compose(k kind, to, tenant, link, subject, text string) (*letter, error) {
	l := &letter{kind: k, to: to}
	if err := CheckAddress(to); err != nil {
		return l, err
	}
	if strings.ContainsFunc(tenant, isControl) {
		return l, errors.New("the tenant's name contains a control character")
	}
	host, err := hostOf(link)
	if err != nil {
		return l, err
	}
	fill := strings.NewReplacer("{tenant}", quoteTenant(tenant), "{host}", host, "{link}", link) // looks at nothing twice
	l.subject, l.text = fill.Replace(subject), fill.Replace(text)
	return l, nil
}

// hostOf returns the host of a link, with its port. The error does not quote the link.
func hostOf(link string) (string, error) {
	u, err := url.Parse(link)
	if err != nil || len(link) > mostLink || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || strings.ContainsFunc(link, notInLink) {
		return "", errors.New("the link is no absolute http or https URL; set public_url")
	}
	return u.Host, nil
}

func notInLink(r rune) bool {
	return r <= ' ' || r >= utf8.RuneSelf || r == '<' || r == '>' || r == '"'
}

// quoteTenant returns a tenant's name for a sentence: one line, no quotation marks, nothing invisible, not too long. What would turn
// it into a link is kept: names of companies have dots.
func quoteTenant(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case !unicode.IsPrint(r) || r == utf8.RuneError: // such as those that turn the direction of text
			return -1
		}
		return r
	}, name)
	if runes := []rune(name); len(runes) > mostTenant {
		name = string(runes[:mostTenant]) + "…"
	}
	return strings.TrimSpace(name)
}
