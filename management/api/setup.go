package api

import (
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// setupState says whether the first run is still to come.
type setupState struct {
	Required bool `json:"required" doc:"Nobody has set the service up yet."`
}

// setupBody is what the first run asks for.
type setupBody struct {
	SetupToken string `json:"setup_token" doc:"What the option setup_token says, or the file setup-token has."`
	Email      string `json:"email" doc:"Of the first user, who owns the tenant and is an operator of the platform."`
	Password   string `json:"password" doc:"12 to 128 characters."`
	Tenant     string `json:"tenant" doc:"Name of the first tenant, which is trusted."`
	APIKey     bool   `json:"api_key,omitempty" doc:"Also make an API key with * and platform:*."`
}

// setupDone is what the first run made.
type setupDone struct {
	Tenant *management.Tenant `json:"tenant"`
	User   *management.User   `json:"user"`
	APIKey *keyWithSecret     `json:"api_key" doc:"null unless asked for"`
}

// signupBody is what somebody signs up with.
type signupBody struct {
	Email    string `json:"email"`
	Password string `json:"password" doc:"12 to 128 characters."`
	Tenant   string `json:"tenant" doc:"Name of the new tenant."`
}

// linkBody is a token of a link, with a password.
type linkBody struct {
	Token    string `json:"token" doc:"The parameter token of the link."`
	Password string `json:"password"`
}

func setupRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/v1/setup", id: "getSetup", tag: "setup", access: byAnybody,
			summary: "Is the service set up?",
		}, func(c *call, _ *struct{}) (*answer[setupState], error) {
			required, err := c.plane.SetupRequired(c.ctx)
			return ok("", setupState{required}), err
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/setup", id: "setUp", tag: "setup", access: byAnybody, status: http.StatusCreated,
			summary:     "Set the service up",
			description: "Works once: makes the first tenant, its owner, who is an operator of the platform, and an API key.",
			codes:       []management.Code{management.Forbidden, management.SetupDone},
		}, func(c *call, in *struct{ Body setupBody }) (*answer[setupDone], error) {
			b := in.Body
			made, err := c.plane.SetUp(c.ctx, c.who, management.Setup{Token: b.SetupToken, Email: b.Email, Password: b.Password, Tenant: b.Tenant, APIKey: b.APIKey})
			if err != nil {
				return nil, err
			}
			done := setupDone{Tenant: made.Tenant, User: made.User}
			if made.APIKey != nil {
				done.APIKey = &keyWithSecret{*made.APIKey, made.Secret.Reveal()}
			}
			return ok("", done), nil
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/signup", id: "signUp", tag: "setup", access: byAnybody, status: http.StatusAccepted,
			summary: "Sign up",
			description: "The answer is the same whether or not the address has an account. With mail, the account begins when the link in the mail is " +
				"followed; without, at once.",
			codes: []management.Code{management.Forbidden},
		}, func(c *call, in *struct{ Body signupBody }) (*answer[none], error) {
			return empty(), c.plane.SignUp(c.ctx, c.who, management.NewAccount{Email: in.Body.Email, Password: in.Body.Password, Tenant: in.Body.Tenant})
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/signup/verify", id: "verifySignup", tag: "setup", access: byAnybody, status: http.StatusCreated,
			summary:     "Confirm the address that was signed up with",
			description: "With the token of the link in the mail and the password that was signed up with. Begins a session.",
			codes:       []management.Code{management.Unauthenticated, management.NotFound},
		}, func(c *call, in *struct{ Body linkBody }) (*answer[signedIn], error) {
			return signedInAs(c.plane.VerifySignup(c.ctx, c.who, in.Body.Token, in.Body.Password))
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/password_resets", id: "requestPasswordReset", tag: "sessions", access: byAnybody, status: http.StatusAccepted,
			summary:     "Ask for a link to set a new password",
			description: "The answer is the same whether or not the address has an account. Without mail nothing is sent: the operator has a command for it.",
		}, func(c *call, in *struct {
			Body struct {
				Email string `json:"email"`
			}
		}) (*answer[none], error) {
			return empty(), c.plane.RequestPasswordReset(c.ctx, c.who, in.Body.Email)
		}),
		endpoint(operation{
			method: http.MethodPut, path: "/v1/password_resets", id: "resetPassword", tag: "sessions", access: byAnybody,
			summary: "Set a new password with the token of a link", description: "Ends all sessions of the user.",
			codes: []management.Code{management.NotFound},
		}, func(c *call, in *struct{ Body linkBody }) (*answer[none], error) {
			return empty(), c.plane.ResetPassword(c.ctx, c.who, in.Body.Token, in.Body.Password)
		}),
	}
}
