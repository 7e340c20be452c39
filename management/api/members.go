package api

import (
	"net/http"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
)

// byUser is the parameter of routes of one member.
type byUser struct {
	User string `path:"user" doc:"The user's ID."`
}

// invited is an invitation that was just made.
type invited struct {
	management.Invitation
	URL *string `json:"url" doc:"The link to hand over, shown once; null where it was sent by mail."`
}

// invitedAnswer returns an invitation with its link, if it is to be handed over.
func invitedAnswer(made *management.Invited) invited {
	shown := invited{Invitation: *made.Invitation}
	if link := made.URL.Reveal(); link != "" {
		shown.URL = &link
	}
	return shown
}

func memberRoutes() []route {
	return []route{
		endpoint(operation{
			method: http.MethodGet, path: "/v1/members", id: "listMembers", tag: "members", scope: management.MembersWrite, summary: "The tenant's members",
		}, func(c *call, in *struct{ paging }) (*answer[list[*management.Member]], error) {
			members, next, err := c.plane.FindMembers(c.ctx, c.who, in.page())
			return listOf(members, next), err
		}),
		endpoint(operation{
			method: http.MethodPatch, path: "/v1/members/{user}", id: "updateMember", tag: "members", scope: management.MembersWrite,
			summary: "Change a member's role", codes: []management.Code{management.Conflict},
			description: "To one that gives no more than the caller has. A tenant keeps its last owner.",
		}, func(c *call, in *struct {
			byUser
			conditional
			Body struct {
				Role *management.Role `json:"role,omitempty" enum:"viewer,operator,admin,owner"`
			}
		}) (*answer[*management.Member], error) {
			member, err := c.plane.UpdateMember(c.ctx, c.who, in.User, in.Body.Role, in.IfMatch)
			if err != nil {
				return nil, err
			}
			return ok(management.ETag(member.Version), member), nil
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/members/{user}", id: "deleteMember", tag: "members", summary: "Remove a member, or leave",
			description: "Everybody can leave. To remove somebody else takes members:write. A tenant keeps its last owner.",
			codes:       []management.Code{management.Conflict},
		}, func(c *call, in *struct {
			byUser
			conditional
		}) (*answer[none], error) {
			return empty(), c.plane.DeleteMember(c.ctx, c.who, in.User, in.IfMatch)
		}),
		endpoint(operation{
			method: http.MethodGet, path: "/v1/invitations", id: "listInvitations", tag: "members", scope: management.MembersWrite,
			summary: "Invitations that wait",
		}, func(c *call, in *struct{ paging }) (*answer[list[*management.Invitation]], error) {
			invitations, next, err := c.plane.FindInvitations(c.ctx, c.who, in.page())
			return listOf(invitations, next), err
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/invitations", id: "createInvitation", tag: "members", scope: management.MembersWrite, status: http.StatusCreated,
			summary: "Invite somebody", codes: []management.Code{management.Conflict, management.QuotaExceeded}, once: []string{"url"},
			description: "With a role that gives no more than the caller has, for 7 days. An earlier one for the same address is void.",
		}, func(c *call, in *struct {
			Body struct {
				Email string          `json:"email"`
				Role  management.Role `json:"role" enum:"viewer,operator,admin,owner"`
			}
		}) (*answer[invited], error) {
			made, err := c.plane.CreateInvitation(c.ctx, c.who, in.Body.Email, in.Body.Role)
			if err != nil {
				return nil, err
			}
			return created("/v1/invitations/"+made.ID, "", invitedAnswer(made)), nil
		}),
		endpoint(operation{
			method: http.MethodDelete, path: "/v1/invitations/{id}", id: "deleteInvitation", tag: "members", scope: management.MembersWrite,
			summary: "Revoke an invitation",
		}, func(c *call, in *byID) (*answer[none], error) {
			return empty(), c.plane.DeleteInvitation(c.ctx, c.who, in.ID)
		}),
		endpoint(operation{
			method: http.MethodPost, path: "/v1/invitations/accept", id: "acceptInvitation", tag: "members", access: byAnybody,
			summary: "Accept an invitation", codes: []management.Code{management.Unauthenticated, management.NotFound, management.Conflict},
			description: "With the token of the link and a password: a new user's, or that of the account that the address has. Who is signed in to that " +
				"account needs none.",
		}, func(c *call, in *struct {
			Body struct {
				Token    string `json:"token" doc:"The parameter token of the link."`
				Password string `json:"password,omitempty"`
			}
		}) (*answer[*management.Membership], error) {
			who := c.who
			if _, err := c.request.Cookie(auth.SessionCookie); err == nil && in.Body.Password == "" {
				signedIn, _, err := c.api.authenticate(c.ctx, c.request, byCredential)
				if err != nil {
					return nil, err
				}
				signedIn.ClientAddr, signedIn.RequestID = who.ClientAddr, who.RequestID
				who = signedIn
			}
			joined, err := c.plane.AcceptInvitation(c.ctx, who, in.Body.Token, in.Body.Password)
			return ok("", joined), err
		}),
	}
}
