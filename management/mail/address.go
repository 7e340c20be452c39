package mail

import (
	"errors"
	"strings"
)

// CheckAddress returns what keeps an e-mail address from being written to; the error does not quote it. It takes what is in use:
// a dot-atom (RFC 5322 section 3.2.3), an @, and a host name in ASCII, of the lengths of RFC 5321 section 4.5.3.1. So no address
// can carry a line break, a space, or an option of an SMTP command. Quoted local parts, address literals and addresses outside
// of ASCII (RFC 6531) are refused; a name outside of ASCII must be in its A-label form.
func CheckAddress(address string) error {
	local, host, ok := strings.Cut(address, "@")
	switch {
	case !ok || local == "" || host == "":
		return errors.New("the e-mail address is not of the form name@example.com")
	case len(local) > 64 || len(host) > 253 || len(address) > 254:
		return errors.New("the e-mail address is too long")
	}
	for atom := range strings.SplitSeq(local, ".") {
		if atom == "" || strings.ContainsFunc(atom, notInAtom) {
			return errors.New("the e-mail address has characters in front of the @ that are not supported; allowed are ASCII letters, digits, single dots and !#$%&'*+-/=?^_`{|}~")
		}
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInLabel) {
			return errors.New("the e-mail address does not end in a host name; write names outside of ASCII as xn--…")
		}
	}
	return nil
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func notInAtom(r rune) bool {
	return !isAlphanumeric(r) && !strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
}
func notInLabel(r rune) bool { return !isAlphanumeric(r) && r != '-' }
func isControl(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029'
}

// domainOf returns what of an address is logged: the part behind the @, if the address is one.
func domainOf(address string) string {
	if CheckAddress(address) != nil {
		return ""
	}
	_, host, _ := strings.Cut(address, "@")
	return host
}
