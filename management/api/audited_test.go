package api

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/auth"
	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/store/storetest"
)

// auditedActions says what each operation that changes something writes into the audit log.
var auditedActions = map[string]string{
	"logOut": "session.deleted", "changePassword": "user.password_changed",
	"updateTenant": "tenant.updated", "deleteTenant": "tenant.deleted", "createTenant": "tenant.created", "updateAnyTenant": "tenant.updated",
	"updateMember": "member.updated", "deleteMember": "member.deleted", "createInvitation": "invitation.created", "deleteInvitation": "invitation.deleted",
	"createAPIKey": "api_key.created", "rotateAPIKey": "api_key.rotated", "deleteAPIKey": "api_key.deleted",
	"createDomain": "domain.created", "patchDomain": "domain.updated", "deleteDomain": "domain.deleted",
	"putCertificate": "certificate.uploaded", "deleteCertificate": "certificate.deleted",
	"createEdgeToken": "edge_token.created", "deleteEdgeToken": "edge_token.deleted",
}

// unaudited are those that write nothing, as authCases calls them, and why.
var unaudited = map[string]string{
	"postReport": "what edges see is no change of anybody's", "checkDomain": "nothing is found here", "probeDomain": "it looks, and keeps nothing",
	"beginTOTP": "they are off until they are confirmed", "confirmTOTP": "the code is wrong", "endTOTP": "they are off already", "deleteMe": "the last owner stays",
}

// TestEveryChangeIsAudited calls every operation of the OpenAPI document that is not for anybody and not for reading. What changes something is in
// the audit log, once, with who did it in which request, and with what was before and after; what is refused is not.
func TestEveryChangeIsAudited(t *testing.T) {
	s := storetest.Open(t, store.SQLite)
	w := newAuthWorldOn(t, s, auth.NewPlane("pqproxy", nil), slog.New(slog.DiscardHandler))
	described, _ := operations(t, w.public)
	tried := 0
	for _, op := range described {
		test, action := authCases[op.ID], auditedActions[op.ID]
		if op.method == http.MethodGet || test.open {
			continue
		}
		tried++
		if (action == "") == (unaudited[op.ID] == "") {
			t.Errorf("%s: say in auditedActions or in unaudited what it writes into the audit log", op.ID)
			continue
		}
		t.Run(op.ID, func(t *testing.T) { w.with(t).audited(s, op, test, action) })
	}
	if want := len(auditedActions) + len(unaudited); tried != want {
		t.Errorf("%d operations were tried, and %d are named here", tried, want)
	}
}

// audited does one operation, first as who may not.
func (w *authWorld) audited(s *store.Store, op operationOf, test authCase, action string) {
	t := w.t
	p, path, q := w.request(op, test)
	credential, actor := p.key, "key_"
	switch {
	case op.Face == "edge":
		credential = w.edgeToken
	case test.session:
		credential, actor = p.session, p.user
	case op.Scope == management.Platform:
		credential = w.operator
	}

	refused := "garbage"
	status := http.StatusUnauthorized
	if op.Scope != "" {
		refused, status = w.without(op.Scope), http.StatusForbidden
	}
	known := eventsIn(t, s)
	w.want(q.as(refused), status)
	if now := eventsIn(t, s); len(now) != len(known) {
		t.Errorf("a request that was refused is in the audit log")
	}
	answer := w.send(q.as(credential))
	if answer.Code >= 300 && test.status == 0 {
		t.Fatalf("%d %s", answer.Code, answer.Body)
	}
	var written []*management.Event
	for id, e := range eventsIn(t, s) {
		if known[id] != nil {
			continue
		}
		if action == "" {
			t.Errorf("it writes %s", e.Action)
		}
		if e.Action == action {
			written = append(written, e)
		}
		if e.RequestID != answer.Header().Get("X-Request-Id") || !strings.HasPrefix(e.Actor, actor) || e.ClientIP == "" || e.Time.IsZero() {
			t.Errorf("%s does not say who did it, from where, and in which request: %+v", e.Action, e)
		}
	}
	if action == "" {
		return
	}
	if len(written) != 1 {
		t.Fatalf("%d entries of %s", len(written), action)
	}
	e := written[0]
	before, after := string(e.Before) != "null", string(e.After) != "null"
	wantBefore, wantAfter := true, true
	switch _, verb, _ := strings.Cut(action, "."); {
	case strings.HasPrefix(action, "session."), strings.HasPrefix(action, "user."):
		wantBefore, wantAfter = false, false // there is nothing of them that may be written down
	case verb == "created", verb == "uploaded":
		wantBefore = false
	case verb == "deleted":
		wantAfter = false
	}
	if before != wantBefore || after != wantAfter || before && after && string(e.Before) == string(e.After) {
		t.Errorf("%s: before %s, after %s", action, e.Before, e.After)
	}
	if object := path["id"] + path["user"]; object != "" && !strings.HasPrefix(action, "certificate.") && e.Object != object {
		t.Errorf("%s is of %s, want %s", action, e.Object, object)
	}
}

// eventsIn returns the whole audit log, by ID.
func eventsIn(t *testing.T, s *store.Store) map[string]*management.Event {
	t.Helper()
	all := map[string]*management.Event{}
	err := s.View(t.Context(), func(tx management.Tx) error {
		for before := ""; ; {
			found, err := tx.FindEvents(management.EventFilter{Before: before, Limit: 500})
			if err != nil || len(found) == 0 {
				return err
			}
			for _, e := range found {
				all[e.ID], before = e, e.ID
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
