package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// tenantHeader names one of the tenants of a user who is in several.
const tenantHeader = "PQProxy-Tenant"

// principals finds who a credential belongs to. *management.Plane does. A credential that is not known, or not any more, is an
// Unauthenticated Error.
type principals interface {
	PrincipalOfKey(ctx context.Context, secret management.Secret) (*management.Principal, error)
	// PrincipalOfSession takes the cookie's value, and the tenant that the user named or "".
	PrincipalOfSession(ctx context.Context, token, tenantID string) (*management.Principal, error)
	PrincipalOfEdge(ctx context.Context, secret management.Secret) (*management.Principal, error)
}

// errUnauthenticated is all that is said about a credential that does not let in.
func errUnauthenticated(a access) *management.Error {
	if a == byEdgeToken {
		return management.Errorf(management.Unauthenticated, "Send a valid edge token as `Authorization: Bearer pqe_…`.")
	}
	return management.Errorf(management.Unauthenticated, "Sign in, or send a valid API key as `Authorization: Bearer pqk_…`.")
}

// authenticate returns who calls. presented says that the request had something like a credential.
func (a *API) authenticate(ctx context.Context, r *http.Request, need access) (who *management.Principal, presented bool, err error) {
	bearer, hasBearer, wellFormed := bearerOf(r)
	if need == byEdgeToken {
		if !hasBearer {
			return nil, false, errUnauthenticated(need)
		}
		secret, err := management.ParseSecret(management.EdgeTokenSecret, bearer)
		if err != nil || !wellFormed {
			return nil, true, errUnauthenticated(need)
		}
		who, err = a.core.PrincipalOfEdge(ctx, secret)
		return who, true, err
	}

	tenants := r.Header.Values(tenantHeader)
	tenant := r.Header.Get(tenantHeader)
	if len(tenants) > 1 || tenant != "" && !management.IsID(management.TenantID, tenant) {
		return nil, false, management.Errorf(management.Malformed, "The header %s is not the ID of one tenant.", tenantHeader)
	}
	cookies := r.CookiesNamed(auth.SessionCookie)
	switch {
	case hasBearer && len(cookies) > 0:
		// Whichever were taken, somebody would act as somebody else than he thinks.
		return nil, true, management.Errorf(management.Malformed, "The request has both an API key and a session: send one of them.")
	case hasBearer:
		secret, err := management.ParseSecret(management.APIKeySecret, bearer)
		if err != nil || !wellFormed {
			return nil, true, errUnauthenticated(need)
		}
		who, err := a.core.PrincipalOfKey(ctx, secret)
		if err == nil && tenant != "" && tenant != who.TenantID {
			err = management.Errorf(management.NotFound, "There is no such tenant for this API key.")
		}
		return who, true, err
	case len(cookies) > 1:
		return nil, true, errUnauthenticated(need) // no browser sends two of that name
	case len(cookies) == 1:
		if !a.crossOrigin.Allow(r) {
			return nil, true, errCrossOrigin()
		}
		who, err := a.core.PrincipalOfSession(ctx, cookies[0].Value, tenant)
		return who, true, err
	}
	return nil, false, errUnauthenticated(need)
}

// errCrossOrigin is for requests that a page of another origin made a browser send.
func errCrossOrigin() *management.Error {
	return management.Errorf(management.CrossOrigin, "A page of another origin sent this in the name of somebody who is signed in here.")
}

// bearerOf returns the token of Authorization (RFC 6750 section 2.1). given: there is such a header; ok: it is one, and Bearer.
func bearerOf(r *http.Request) (token string, given, ok bool) {
	values := r.Header.Values("Authorization")
	if len(values) == 0 {
		return "", false, false
	}
	scheme, token, found := strings.Cut(values[0], " ")
	if len(values) != 1 || !found || !strings.EqualFold(scheme, "Bearer") {
		return "", true, false
	}
	return strings.TrimLeft(token, " "), true, true
}
