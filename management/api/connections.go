package api

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// Media types of records.
const (
	ndjsonType = "application/x-ndjson"
	eventsType = "text/event-stream"
)

// nextCursorHeader has the cursor where the answer is lines, which have no place for it.
const nextCursorHeader = "PQProxy-Next-Cursor"

// connectionFilter is what records can be searched by.
type connectionFilter struct {
	ofDomain
	Group       string `query:"group" maxLength:"40" doc:"As crypto/tls prints it, such as X25519MLKEM768."`
	PostQuantum *bool  `query:"post_quantum"`
	EndReason   string `query:"end_reason" maxLength:"40"`
	ClientIP    string `query:"client_ip" maxLength:"64" doc:"An address, or a network such as 203.0.113.0/24."`
}

func (f *connectionFilter) query() management.ConnectionQuery {
	return management.ConnectionQuery{Domain: f.Domain, Group: f.Group, PostQuantum: f.PostQuantum, EndReason: f.EndReason, ClientIP: f.ClientIP}
}

type connectionsIn struct {
	timeRange
	connectionFilter
	longPaging
}

// connectionRoutes are the records of connections.
func connectionRoutes() []route {
	op := func(path, id, summary string) operation {
		return operation{method: http.MethodGet, path: path, id: id, tag: "connections", scope: management.ConnectionsRead, summary: summary}
	}
	list, tail := op("/v1/connections", "listConnections", "Records of connections"), op("/v1/connections/tail", "tailConnections", "Records as they come")
	list.description = "Newest first. With `Accept: application/x-ndjson` one record a line, and the cursor in the header " + nextCursorHeader + "."
	tail.description = "Server-sent events: `connection` with a record, `dropped` with how many were left out for a reader that is too slow."
	tail.endless, tail.timeout = true, -1
	return []route{
		stream(list, []media{mediaOf[listOfConnections](jsonType), mediaOf[management.Connection](ndjsonType)}, listConnections),
		stream(tail, []media{mediaOf[management.Connection](eventsType)}, tailConnections),
	}
}

type listOfConnections = list[*management.Connection]

func listConnections(c *call, in *connectionsIn, w http.ResponseWriter) error {
	q := in.query()
	q.From, q.To = in.From, in.To
	found, next, err := c.plane.FindConnections(c.ctx, c.who, q, in.page())
	if err != nil {
		return err
	}
	w.Header().Add("Vary", "Accept")
	if !c.prefers(ndjsonType) {
		return c.writeJSON(w, listOf(found, next).Body)
	}
	var lines []byte
	for _, one := range found {
		line, err := json.Marshal(one)
		if err != nil {
			return err
		}
		lines = append(append(lines, line...), '\n')
	}
	h := http.Header{"Content-Type": {ndjsonType}}
	setHeader(h, nextCursorHeader, next)
	(&response{status: http.StatusOK, header: h, body: lines}).write(w, c.request)
	return nil
}

// Times of a stream of events.
const (
	tailPulse = time.Second      // how often the credential is looked at again, and what was dropped is said
	tailAlive = 15 * time.Second // how often something is sent, so that proxies on the way do not end the stream
)

// tailConnections streams records until the client goes, or its credential does.
func tailConnections(c *call, in *struct{ connectionFilter }, w http.ResponseWriter) error {
	tail, err := c.plane.TailConnections(c.ctx, c.who, in.query())
	if err != nil {
		return err
	}
	defer tail.Close()
	h := w.Header()
	h.Set("Content-Type", eventsType)
	h.Set("X-Accel-Buffering", "no") // nginx would collect them
	control := http.NewResponseController(w)
	defer control.SetWriteDeadline(time.Time{})
	send := func(text string) error {
		control.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write([]byte(text)); err != nil {
			return err
		}
		return control.Flush()
	}
	if err := send(": records follow\n\n"); err != nil {
		return err
	}
	pulse := time.NewTicker(tailPulse)
	defer pulse.Stop()
	spoke := time.Now()
	for {
		text := ""
		select {
		case one := <-tail.Records():
			record, err := json.Marshal(one)
			if err != nil {
				return err
			}
			text = "event: connection\nid: " + one.ID + "\ndata: " + string(record) + "\n\n"
		case <-pulse.C:
			who, _, err := c.api.authenticate(c.ctx, c.request, c.route.access)
			if err != nil || who == nil || who.TenantID != c.who.TenantID || who.Require(management.ConnectionsRead) != nil {
				return nil // the credential ended, and with it the stream
			}
			if n := tail.Dropped(); n > 0 {
				dropped, _ := json.Marshal(map[string]int64{"dropped": n})
				text = "event: dropped\ndata: " + string(dropped) + "\n\n"
			} else if time.Since(spoke) > tailAlive {
				text = ":\n\n"
			}
		case <-c.ctx.Done():
			return nil
		}
		if text == "" {
			continue
		}
		spoke = time.Now()
		if err := send(text); err != nil {
			return nil // the client has gone
		}
	}
}
