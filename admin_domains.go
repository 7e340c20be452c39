package pqproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// domainAnswer is one name as the admin API shows it.
type domainAnswer struct {
	Domain      *domain.Domain   `json:"domain"` // what serves the name
	Source      domain.Source    `json:"source"`
	Shadows     []domain.Source  `json:"shadows,omitempty"`  // who else says something of the name, in order of precedence
	Shadowed    []shadowedDomain `json:"shadowed,omitempty"` // and what, where one name is asked for
	Certificate certificateState `json:"certificate"`
	Warnings    []string         `json:"warnings,omitempty"`
}

// shadowedDomain is what goes live when the sources before it leave.
type shadowedDomain struct {
	Source domain.Source  `json:"source"`
	Domain *domain.Domain `json:"domain"`
}

// shown returns a domain as it may be shown: without its key, and without what is in the files that it names.
func shown(d *domain.Domain) *domain.Domain {
	c := d.Redacted()
	if c.Certificate.ChainFile != "" {
		c.Certificate.ChainPEM = ""
	}
	for i := range c.Upstreams {
		if t := c.Upstreams[i].TLS; t != nil && t.CAFile != "" {
			t.CAPEM = ""
		}
	}
	return c
}

// show describes the name of an entry; full, with what the entry shadows.
func (s *state) show(e entry, full bool) *domainAnswer {
	d := e.domain()
	a := &domainAnswer{
		Domain: shown(d), Source: e.source.source(), Warnings: d.Warnings(), Certificate: s.certificateState(e, d),
	}
	if full {
		a.Warnings = append(a.Warnings, pairWarnings(d)...)
	}
	for below := e.below(); !below.none(); below = below.below() {
		a.Shadows = append(a.Shadows, below.source.source())
		if full {
			a.Shadowed = append(a.Shadowed, shadowedDomain{below.source.source(), shown(below.domain())})
		}
	}
	return a
}

// namesAfter selects up to limit entries whose names follow a name, in order of names. more says that there are others
// behind them. It goes over the table without holding up anybody.
func (q *adminRequest) namesAfter(t *table, after string, limit int, wanted func(entry) bool) (list []entry, more bool, err error) {
	first := lowest[entry]{n: limit + 1, compare: func(a, b entry) int { return strings.Compare(a.name(), b.name()) }}
	var pace pace.Pace
	for e := range t.all {
		if pace.Step(); q.r.Context().Err() != nil {
			return nil, false, errClientLeft
		}
		if e.name() > after && wanted(e) {
			first.add(e)
		}
	}
	list = first.sorted()
	return list[:min(limit, len(list))], len(list) > limit, nil
}

// ofTenant returns what tells the entries of a tenant. It looks at the text, where the tenant follows the name: reading a
// million records for one page would take seconds.
func ofTenant(tenant string) func(entry) bool {
	const before, behind = namePrefix + `"`, `"upstreams":`
	text := string((&domain.Domain{Tenant: tenant}).AppendJSON(nil)) // {"name":"","tenant":"acme","upstreams":null}
	member := strings.TrimSuffix(strings.TrimPrefix(text, before), "null}")
	return func(e entry) bool { return strings.HasPrefix(e.body()[len(before)+int(e.nameLen):], member) }
}

// listBytes is when a page ends before its limit: a record may have a megabyte.
const listBytes = 8 << 20

// listDomains answers with a page of all domains, by name.
func (q *adminRequest) listDomains() error {
	limit, err := q.limit()
	if err != nil {
		return err
	}
	after, err := q.domainParam("after")
	if err != nil {
		return err
	}
	wanted := func(entry) bool { return true }
	if tenant, ok := q.query["tenant"]; ok {
		wanted = ofTenant(tenant)
	}
	t := q.state.table.Load()
	list, more, err := q.namesAfter(t, after, limit, wanted)
	if err != nil {
		return err
	}
	body, err := q.state.domainPage(list, more, listBytes)
	if err != nil {
		return err
	}
	return q.answerTagged(http.StatusOK, setTag(t.adminVersion), body)
}

// domainPage returns the JSON of a page, which has at least one entry of a list that has any, and further ones while it
// has at most so many bytes. more says that there are others behind the list.
func (s *state) domainPage(list []entry, more bool, most int) ([]byte, error) {
	body := []byte(`{"domains":[`)
	for i, e := range list {
		one, err := encodeJSON(s.show(e, false))
		if err != nil {
			return nil, err
		}
		if i > 0 {
			if len(body)+len(one) > most {
				list, more = list[:i], true
				break
			}
			body = append(body, ',')
		}
		body = append(body, one...)
	}
	body = append(body, ']')
	if more {
		body = append(append(append(body, `,"next":"`...), list[len(list)-1].name()...), '"')
	}
	return append(body, '}'), nil
}

// pathName returns the domain's name that the path ends in, in normal form.
func (q *adminRequest) pathName() (string, error) {
	given := strings.TrimPrefix(q.r.URL.Path, adminDomain)
	if given == "" {
		return "", noSuchRoute(q.w, q.r)
	}
	name, err := domain.NormalName(given)
	if err != nil {
		return "", apiError(http.StatusBadRequest, "the name in the path: %w", err)
	}
	return name, nil
}

// getDomain answers with what is known of one name.
func (q *adminRequest) getDomain() error {
	name, err := q.pathName()
	if err != nil {
		return err
	}
	e := q.state.table.Load().named(name)
	if e.none() {
		return noSuchDomain(name)
	}
	return q.showDomain(http.StatusOK, e)
}

func noSuchDomain(name string) error {
	return apiError(http.StatusNotFound, "there is no domain %s", name)
}

func (q *adminRequest) showDomain(status int, e entry) error {
	body, err := encodeJSON(q.state.show(e, true))
	if err != nil {
		return err
	}
	return q.answerTagged(status, domainTag(e.name(), e), body)
}

// putDomain sets what the admin API says of one name.
func (q *adminRequest) putDomain() error {
	name, err := q.pathName()
	if err != nil {
		return err
	}
	reader, err := q.body(domain.MaxSize)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	d, err := parseNamed(body, name)
	if err != nil {
		return refusedRecord(name, err)
	}
	c := q.state.newChangeSet(rankAdmin, false, q.state.settings.Load().policy)
	if err := c.put(d); err != nil {
		return refusedRecord(name, err)
	}
	done, err := q.state.apply(c, func(now *table) error {
		e := now.named(name)
		return q.mayWrite(domainTag(name, e), !e.of(rankAdmin).none())
	})
	if err != nil {
		return err
	}
	if err := q.keep(); err != nil {
		return err
	}
	status := http.StatusOK
	if done.Added > 0 {
		status = http.StatusCreated
	}
	// As it was put: who has changed it since must not hand its ETag to this client.
	return q.showDomain(status, q.state.table.Load().named(name).with(new(room), rankAdmin, newEntry(d, rankAdmin)))
}

// refusedRecord is a record that was refused, with all its faults. Nothing has been applied, so nobody else counts it.
func refusedRecord(name string, err error) error {
	metrics.rejected.Inc()
	var texts []string
	for _, r := range refusals(name, err) {
		if r.Field != "" {
			r.Detail = r.Field + ": " + r.Detail
		}
		texts = append(texts, r.Detail)
	}
	return apiError(http.StatusBadRequest, "domain %q is refused: %s", name, strings.Join(texts, "; "))
}

// parseNamed reads the record that a path names. The record may leave its name out, and may not have another one.
func parseNamed(body []byte, name string) (*domain.Domain, error) {
	d, err := domain.Parse(withName(body, name), domain.Admin)
	given := name
	if d != nil {
		given = d.Name
	} else if faults := domain.Errors(err); len(faults) > 0 && faults[0].Name != "" {
		given = faults[0].Name
	}
	if normal, nameErr := domain.NormalName(given); nameErr == nil && normal != name {
		err = errors.Join(err, &domain.Error{Name: name, Field: "name", Err: fmt.Errorf("is %s, and the path says %s; leave it out or correct one of them", normal, name)})
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// withName adds the name to a record that is an object without one. What is not is for the parser to refuse.
func withName(body []byte, name string) []byte {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil || members == nil {
		return body
	}
	if _, named := members["name"]; named {
		return body
	}
	named := append([]byte(namePrefix), name...)
	named = append(named, '"')
	if len(members) > 0 {
		named = append(named, ',')
	}
	return append(named, bytes.TrimLeft(body, " \t\r\n")[1:]...)
}

// deleteDomain takes back what the admin API says of one name.
func (q *adminRequest) deleteDomain() error {
	name, err := q.pathName()
	if err != nil {
		return err
	}
	c := q.state.newChangeSet(rankAdmin, false, nil)
	c.remove(name)
	_, err = q.state.apply(c, func(now *table) error {
		switch e := now.named(name); {
		case e.none():
			return noSuchDomain(name)
		case e.of(rankAdmin).none() && e.source == rankStatic:
			return apiError(http.StatusConflict, "%s is of source static, not admin; change Caddy's configuration", name)
		case e.of(rankAdmin).none():
			return apiError(http.StatusConflict, "%s is of source %s, not admin; change it in the management plane, or PUT a suspended one in front of it", name, e.source.source())
		default:
			return q.mayWrite(domainTag(name, e), true)
		}
	})
	if err != nil {
		return err
	}
	if err := q.keep(); err != nil {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

// setAnswer says what became of a set.
type setAnswer struct {
	outcome
	Ignored []string `json:"ignored,omitempty"` // members of the document that are unknown
}

// Bounds of sets: bytes of one, and how many are read at a time, since what is staged stays in memory until all has come.
const (
	maxAdminSet     = 1 << 30
	maxAdminUploads = 4
)

var adminUploads = make(chan struct{}, maxAdminUploads)

func (q *adminRequest) replaceDomains() error { return q.writeSet(false) }
func (q *adminRequest) changeDomains() error  { return q.writeSet(true) }

// writeSet replaces all that the admin API says, or changes some of it.
func (q *adminRequest) writeSet(change bool) error {
	select {
	case adminUploads <- struct{}{}:
		defer func() { <-adminUploads }()
	case <-time.After(transferSlack):
		return apiError(http.StatusServiceUnavailable, "%d other sets are being sent; try again", maxAdminUploads)
	case <-q.r.Context().Done():
		return errClientLeft
	}
	body, err := q.body(maxAdminSet)
	if err != nil {
		return err
	}
	c := q.state.newChangeSet(rankAdmin, !change, q.state.settings.Load().policy)
	header, err := domain.ReadSet(body, domain.Admin, domain.SetOptions{
		Domain:    func(d *domain.Domain) error { _ = c.put(d); return nil }, // it notes what it refuses
		Removed:   func(name string) error { c.remove(name); return nil },
		Refused:   func(r domain.Refusal) { c.refuse(r.Name, r.Err) },
		ChangeSet: change,
	})
	var unread caddy.APIError
	switch {
	case errors.As(err, &unread):
		return unread
	case err != nil:
		return apiError(http.StatusBadRequest, "nothing is applied: %w", err)
	case header.Base > 0:
		return apiError(http.StatusBadRequest, "nothing is applied: base: the admin API knows no revisions; leave it out, PATCH what is a change, and use If-Match")
	}
	c.keepAll = header.Unnamed > 0
	var version uint64
	done, err := q.state.apply(c, func(now *table) error {
		version = now.adminVersion
		return q.mayWrite(setTag(version), true)
	})
	if err != nil {
		return err
	}
	if err := q.keep(); err != nil {
		return err
	}
	if done.Added+done.Changed+done.Removed > 0 {
		version++ // by this change alone: who has made another one since must not hand its ETag to this client
	}
	q.w.Header().Set("ETag", `"`+setTag(version)+`"`)
	return q.answer(http.StatusOK, &setAnswer{done, header.Ignored})
}

// keep keeps what the admin API has set across restarts, where the config says so.
func (q *adminRequest) keep() error {
	if err := q.state.keepAdmin(); err != nil {
		return apiError(http.StatusInternalServerError, "the change is in force, but would be lost in a restart; send it again when this is mended: %w", err)
	}
	return nil
}
