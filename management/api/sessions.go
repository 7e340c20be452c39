package api

import (
	"net/http"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// signedIn is a session that began; its token is in the cookie alone.
type signedIn struct {
	User      *management.User `json:"user"`
	ExpiresAt time.Time        `json:"expires_at" doc:"It ends earlier if it is not used for a day."`
}

// signedInAs returns the answer of who has just signed in.
func signedInAs(in *management.SignedIn, err error) (*answer[signedIn], error) {
	if err != nil {
		return nil, err
	}
	a := ok("", signedIn{in.User, in.ExpiresAt})
	a.Session = in.Token.Reveal()
	return a, nil
}

// signedOut returns the answer of whose session has ended.
func signedOut(err error) (*answer[none], error) {
	if err != nil {
		return nil, err
	}
	a := empty()
	a.SignOut = true
	return a, nil
}

// sessionOf returns the cookie's value; who came with an API key has none.
func sessionOf(c *call) (string, error) {
	cookie, err := c.request.Cookie(auth.SessionCookie)
	if err != nil {
		return "", management.Errorf(management.Forbidden, "This needs somebody who signed in; an API key does not do.")
	}
	return cookie.Value, nil
}

// passwordBody asks for the password again.
type passwordBody struct {
	Password string `json:"password" doc:"The user's password, again."`
}

func sessionRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodPost, path: "/v1/sessions", id: "logIn", tag: "sessions", access: byAnybody, status: http.StatusCreated,
			summary:     "Sign in",
			description: "Sets the session's cookie. 5 tries a minute for each account, 20 for each client address.",
			codes:       []management.Code{management.Unauthenticated, management.TOTPRequired},
		}, func(c *call, in *struct {
			Body struct {
				Email    string `json:"email"`
				Password string `json:"password"`
				TOTP     string `json:"totp,omitempty" doc:"The one-time password, where the user has them."`
			}
		}) (*answer[signedIn], error) {
			return signedInAs(c.plane.LogIn(c.ctx, c.who, management.Login{Email: in.Body.Email, Password: in.Body.Password, TOTP: in.Body.TOTP}))
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/sessions/current", id: "logOut", tag: "sessions", summary: "Sign out",
		}, func(c *call, _ *struct{}) (*answer[none], error) {
			token, err := sessionOf(c)
			if err != nil {
				return nil, err
			}
			return signedOut(c.plane.LogOut(c.ctx, c.who, token))
		}),
		endpoint(operation{
			method: http.MethodGet, path: "/v1/me", id: "getMe", tag: "sessions", summary: "Who calls, and what may he do?",
		}, func(c *call, _ *struct{}) (*answer[*management.Me], error) {
			me, err := c.plane.Me(c.ctx, c.who)
			return ok("", me), err
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/me", id: "deleteMe", tag: "sessions", summary: "Delete the user",
			description: "In the audit log an ID stays. Refused to the last owner of a tenant and to the last operator.",
			codes:       []management.Code{management.Conflict},
		}, func(c *call, in *struct{ Body passwordBody }) (*answer[none], error) {
			return signedOut(c.plane.DeleteUser(c.ctx, c.who, in.Body.Password))
		}),
		endpoint(operation{
			method: http.MethodPut, path: "/v1/me/password", id: "changePassword", tag: "sessions", summary: "Change the password",
			description: "Ends all sessions of the user and begins a new one.", codes: []management.Code{management.Conflict},
		}, func(c *call, in *struct {
			Body struct {
				Password    string `json:"password" doc:"The present one."`
				NewPassword string `json:"new_password" doc:"12 to 128 characters."`
			}
		}) (*answer[signedIn], error) {
			return signedInAs(c.plane.ChangePassword(c.ctx, c.who, in.Body.Password, in.Body.NewPassword))
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/me/totp", id: "beginTOTP", tag: "sessions", summary: "Begin with one-time passwords",
			description: "Returns what an app reads the secret from. They are asked for once a code of the app has confirmed it.",
			codes:       []management.Code{management.Conflict}, once: []string{"uri"},
		}, func(c *call, in *struct{ Body passwordBody }) (*answer[totpBegun], error) {
			uri, err := c.plane.BeginTOTP(c.ctx, c.who, in.Body.Password)
			return ok("", totpBegun{uri}), err
		}),
		endpoint(operation{
			method: http.MethodPut, path: "/v1/me/totp", id: "confirmTOTP", tag: "sessions", summary: "Turn one-time passwords on",
			codes: []management.Code{management.Conflict},
		}, func(c *call, in *struct {
			Body struct {
				Code string `json:"code" doc:"The six digits that the app shows."`
			}
		}) (*answer[none], error) {
			return empty(), c.plane.ConfirmTOTP(c.ctx, c.who, in.Body.Code)
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/me/totp", id: "endTOTP", tag: "sessions", summary: "Turn one-time passwords off",
			codes: []management.Code{management.Conflict},
		}, func(c *call, in *struct{ Body passwordBody }) (*answer[none], error) {
			return empty(), c.plane.EndTOTP(c.ctx, c.who, in.Body.Password)
		}),
	}
}

// totpBegun is what an app reads.
type totpBegun struct {
	URI string `json:"uri" doc:"An otpauth URI, for a QR code. It has the secret, and is shown once."`
}
