package auth

import (
	"errors"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The length of a password in characters (Unicode code points). The least is above the 8 of NIST SP 800-63B because nothing
// else is asked of a password; the most keeps a phrase possible and the request small.
const (
	leastRunes = 12
	mostRunes  = 128
)

// common are passwords of at least 12 characters that are tried first; what repeats is caught without being listed.
var common = []string{
	"123456789012", "1234567890123", "12345678901234", "123456789012345", "1234567890123456", "0123456789012", "qwertyuiop[]", "qwertyuiop123",
	"qwertyuiopasdfghjkl", "1qaz2wsx3edc", "1q2w3e4r5t6y", "administrator", "changemeplease", "correcthorsebatterystaple", "letmeinletmein",
	"password1234", "password12345", "passwordpassword1", "abcdefghijkl", "abcdefghijklm", "abcdefghijklmnopqrstuvwxyz",
}

// Check returns what is wrong with a new password of the account with that e-mail address, in words for people, without the
// password; nil: nothing. 12 to 128 characters of which none is a control character; not the address or its local part, not
// the same few characters over and over, and none of a short list that everybody tries first.
func (*Passwords) Check(password, email string) error {
	if !utf8.ValidString(password) {
		return errors.New("the password is not valid UTF-8")
	}
	switch n := utf8.RuneCountInString(password); {
	case n < leastRunes:
		return errors.New("the password is too short; use at least 12 characters")
	case n > mostRunes:
		return errors.New("the password is too long; use at most 128 characters")
	case strings.ContainsFunc(password, unicode.IsControl):
		return errors.New("the password contains a control character, such as a line break or a tab; leave it out")
	}
	plain, email := strings.ToLower(strings.TrimSpace(password)), strings.ToLower(strings.TrimSpace(email))
	local, _, _ := strings.Cut(email, "@")
	switch {
	case email != "" && (plain == email || plain == local):
		return errors.New("the password is the e-mail address; choose another")
	case repeats(plain):
		return errors.New("the password repeats the same few characters; choose another")
	case slices.Contains(common, plain):
		return errors.New("the password is one that everybody tries first; choose another")
	}
	return nil
}

// repeats reports whether text is one unit of at most 8 characters over and over, the last of them perhaps cut short.
func repeats(text string) bool {
	runes := []rune(text)
	for unit := 1; unit <= 8 && unit < len(runes); unit++ {
		if slices.Equal(runes[unit:], runes[:len(runes)-unit]) {
			return true
		}
	}
	return false
}
