// Package auth is what signing in is made of: passwords, the tokens of sessions and of links in mails, the session's cookie,
// the refusal of requests from other origins, one-time passwords, and limits on how often something may be tried. It keeps no
// accounts and knows no database: what must be remembered is handed out and handed back in.
//
//	passwords := auth.NewPasswords(0)
//	if err := passwords.Check(password, email); err != nil {
//		return err // for people: it may be shown
//	}
//	hash, err := passwords.Hash(ctx, password)
package auth
