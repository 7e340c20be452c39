package pqproxy

import (
	"bytes"
	"crypto/tls"
	"net/http"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/id"
)

// connectionAnswer is one open connection. Its fields are those of the connection's record, as far as they are known.
type connectionAnswer struct {
	ID         string        `json:"id"`
	ServerName string        `json:"server_name,omitempty"`
	Domain     string        `json:"domain,omitempty"`
	Tenant     string        `json:"tenant,omitempty"`
	Source     domain.Source `json:"source,omitempty"`
	ClientIP   string        `json:"client_ip,omitempty"`
	ClientPort uint16        `json:"client_port,omitempty"`
	Started    time.Time     `json:"started"`
	Duration   float64       `json:"duration"` // seconds so far
	BytesIn    int64         `json:"bytes_in"`
	BytesOut   int64         `json:"bytes_out"`

	*negotiatedAnswer // nil: it does not relay yet
}

// negotiatedAnswer is what was negotiated with both sides.
type negotiatedAnswer struct {
	TLSVersion    string `json:"tls_version"`
	Group         string `json:"group"`
	PostQuantum   bool   `json:"post_quantum"`
	Resumed       bool   `json:"resumed"`
	ALPN          string `json:"alpn"`
	Upstream      string `json:"upstream"`
	UpstreamGroup string `json:"upstream_group,omitempty"` // empty: plain TCP
}

// show describes a connection while its own goroutines go on.
func (c *conn) show() connectionAnswer {
	a := connectionAnswer{
		ID: c.id.String(), Started: c.start.UTC(), Duration: time.Since(c.start).Seconds(),
		BytesIn: c.in.Load(), BytesOut: c.out.Load(),
	}
	if c.client.IsValid() {
		a.ClientIP, a.ClientPort = c.client.Addr().Unmap().String(), c.client.Port()
	}
	if r := c.routed.Load(); r != nil { // set after serverName
		a.ServerName, a.Domain, a.Tenant, a.Source = c.serverName, r.Name, r.Tenant, r.source
	}
	if c.relaying.Load() { // set after these
		a.negotiatedAnswer = &negotiatedAnswer{
			TLSVersion: tls.VersionName(c.session.version), Group: c.session.group.String(),
			PostQuantum: isPostQuantum(c.session.group), Resumed: c.session.resumed, ALPN: c.session.alpn,
			Upstream: c.upstream,
		}
		if c.upstreamSession.version != 0 {
			a.UpstreamGroup = c.upstreamSession.group.String()
		}
	}
	return a
}

// connections calls each with the open connections of a domain and a tenant, of any where that is not in the query.
func (q *adminRequest) connections(each func(*conn)) error {
	name, err := q.domainParam("domain")
	if err != nil {
		return err
	}
	conns := q.state.live.of(name)
	if name == "" {
		conns = q.state.live.list()
	}
	tenant, ofTenant := q.query["tenant"]
	for _, c := range conns {
		if ofTenant {
			if r := c.routed.Load(); r == nil || r.Tenant != tenant {
				continue
			}
		}
		each(c)
	}
	return nil
}

// listConnections answers with open connections, the newest first.
func (q *adminRequest) listConnections() error {
	limit, err := q.limit()
	if err != nil {
		return err
	}
	// IDs sort as their times do.
	newest := lowest[*conn]{n: limit, compare: func(a, b *conn) int { return bytes.Compare(b.id[:], a.id[:]) }}
	answer := struct {
		Connections []connectionAnswer `json:"connections"`
		Total       int                `json:"total"` // of the domain and the tenant
	}{Connections: []connectionAnswer{}}
	err = q.connections(func(c *conn) {
		newest.add(c)
		answer.Total++
	})
	if err != nil {
		return err
	}
	list := newest.sorted()
	for _, c := range list {
		answer.Connections = append(answer.Connections, c.show())
	}
	return q.answer(http.StatusOK, answer)
}

// endConnections ends connections by resetting both sides.
func (q *adminRequest) endConnections() error {
	if len(q.query) != 1 {
		return apiError(http.StatusBadRequest, "query: give exactly one of id, domain, tenant, so that no more connections end than are meant")
	}
	ended := 0
	end := func(c *conn) {
		if c.abort(reasonEndedByAdmin, sideEdge, nil) { // one that has just ended is listed for a moment still
			ended++
		}
	}
	text, byID := q.query["id"]
	if !byID {
		if err := q.connections(end); err != nil {
			return err
		}
		return q.answer(http.StatusOK, endedAnswer{ended})
	}
	wanted, err := id.Parse(strings.ToLower(text))
	if err != nil {
		return apiError(http.StatusBadRequest, "query: id is %s; give the 26 characters that the list and the log have", quoteShort(text))
	}
	for _, c := range q.state.live.list() {
		if c.id == wanted {
			end(c)
		}
	}
	if ended == 0 {
		return apiError(http.StatusNotFound, "no connection %s is open", wanted)
	}
	return q.answer(http.StatusOK, endedAnswer{ended})
}

// endedAnswer says how many connections were ended.
type endedAnswer struct {
	Ended int `json:"ended"`
}
