package auth

import "net/http"

// SessionCookie is the name of the cookie that carries a session's token. The prefix __Host- makes browsers refuse it without
// Secure, with a Domain, or with another Path (RFC 6265bis section 4.1.3.2), so neither a sibling host nor plain HTTP can set it.
const SessionCookie = "__Host-pqproxy_session"

// SetSession sets the cookie of a session to a token of NewToken. Make a new token whenever somebody signs in, and never take
// over one that the client brought: that would be session fixation.
func SetSession(w http.ResponseWriter, secret string) {
	http.SetCookie(w, sessionCookie(secret, int(SessionLifetime.Seconds())))
}

// ClearSession makes the browser forget the cookie. The session itself ends only where the caller deletes it.
func ClearSession(w http.ResponseWriter) { http.SetCookie(w, sessionCookie("", -1)) }

// SessionHash returns the hash by which the session of a request is looked up, and false if there is no cookie of ours, or no
// token in it, or several cookies of the name: no browser sends two.
func SessionHash(r *http.Request) (hash []byte, ok bool) {
	cookies := r.CookiesNamed(SessionCookie)
	if len(cookies) != 1 {
		return nil, false
	}
	return HashToken(Session, cookies[0].Value)
}

// sessionCookie has SameSite=Lax and not Strict so that a link in a mail opens the dashboard signed in. Lax is not what keeps
// other sites from acting in the user's name: CrossOrigin is.
func sessionCookie(value string, maxAge int) *http.Cookie {
	return &http.Cookie{
		Name: SessionCookie, Value: value, Path: "/", MaxAge: maxAge,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

// CrossOrigin refuses what browsers send in the user's name from pages of other origins (CSRF), by Sec-Fetch-Site or Origin:
// http.CrossOriginProtection. It is for requests with the session's cookie alone, since nobody else's browser has the API key.
// GET, HEAD and OPTIONS always pass, so they must change nothing. An Origin that differs from the Host by scheme alone is told
// apart by Sec-Fetch-Site only, so the host should send Strict-Transport-Security.
type CrossOrigin struct {
	protection http.CrossOriginProtection
}

// NewCrossOrigin returns a CrossOrigin that also lets pages of these origins (`scheme://host[:port]`) through; normally none. An
// origin is needed where a proxy in front changes the Host.
func NewCrossOrigin(trusted ...string) (*CrossOrigin, error) {
	c := new(CrossOrigin)
	for _, origin := range trusted {
		if err := c.protection.AddTrustedOrigin(origin); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Allow reports whether a request may act in the name of the session whose cookie it carries.
func (c *CrossOrigin) Allow(r *http.Request) bool { return c.protection.Check(r) == nil }
