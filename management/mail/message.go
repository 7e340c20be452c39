package mail

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	netmail "net/mail"
	"strings"
	"time"
)

// mostSubject keeps the header line under the 998 bytes of RFC 5322 section 2.1.1.
const mostSubject = 300

// render returns the mail as it goes over the wire (RFC 5322, RFC 2045), with CRLF. It refuses a subject or an address that
// could begin another header.
func (l *letter) render(from *netmail.Address) ([]byte, error) {
	if len(l.subject) > mostSubject || strings.ContainsFunc(l.subject, isControl) {
		return nil, errors.New("the subject is too long or contains a control character")
	}
	if err := CheckAddress(l.to); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	header := func(name, value string) { fmt.Fprintf(&b, "%s: %s\r\n", name, value) }
	header("From", from.String())
	header("To", "<"+l.to+">")
	// A long subject outside of ASCII becomes several encoded words, of which each line has one (RFC 2047 section 2).
	header("Subject", strings.ReplaceAll(mime.QEncoding.Encode("utf-8", l.subject), "?= =?", "?=\r\n =?"))
	header("Date", l.made.UTC().Format(time.RFC1123Z)) // as RFC 5322 section 3.3 writes it
	header("Message-ID", "<"+l.id+">")
	header("Auto-Submitted", "auto-generated") // RFC 3834 section 5: no holiday replies, please
	header("MIME-Version", "1.0")
	header("Content-Type", "text/plain; charset=utf-8")
	header("Content-Transfer-Encoding", "quoted-printable")
	b.WriteString("\r\n")
	w := quotedprintable.NewWriter(&b)
	_, err := w.Write([]byte(strings.ReplaceAll(l.text, "\n", "\r\n")))
	if closeErr := w.Close(); err == nil {
		err = closeErr
	}
	return b.Bytes(), err
}

// newMessageID returns a new identifier (RFC 5322 section 3.6.4) in the sender's domain, without angle brackets.
func newMessageID(from string) string {
	return strings.ToLower(rand.Text()) + "@" + domainOf(from)
}
