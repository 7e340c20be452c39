package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// feedIn is what edges ask with. Prefer and If-None-Match are read from the header by hand: what is wrong in them is passed over, as
// RFC 7240 section 2 and RFC 9110 section 13.1.2 have it.
type feedIn struct {
	After *uint64 `query:"after" doc:"The revision that the edge has, to be told what changed since."`
}

// feedDocument is a set of domains, as DESIGN.md section 5 has it. It is written elsewhere; this is for the document.
type feedDocument struct {
	Revision uint64           `json:"revision"`
	Base     uint64           `json:"base,omitempty" doc:"The revision that this is the difference from; absent: the full set."`
	Domains  []map[string]any `json:"domains"`
	Removed  []string         `json:"removed,omitempty"`
}

// feedRoutes are the edges' side of the domains.
func feedRoutes() []route {
	return []route{
		stream(operation{
			method: http.MethodGet, path: "/v1/edge/domains", id: "getFeed", tag: "edges", face: onEdge, access: byEdgeToken, free: true, timeout: -1,
			others:  []int{http.StatusNotModified, http.StatusGone},
			summary: "The set of domains, or what changed in it",
			description: "Answers with an ETag, the revision. `Prefer: wait=25` holds the request until something changes; `Preference-Applied` says so. " +
				"304: nothing changed. 410: the difference cannot be told, ask again without `after`. `PQProxy-Signature` signs the body.",
		}, []media{mediaOf[feedDocument](jsonType)}, serveFeed),
	}
}

// serveFeed answers an edge.
func serveFeed(c *call, in *feedIn, w http.ResponseWriter) error {
	request := management.FeedRequest{After: in.After, IfNoneMatch: strings.Join(c.request.Header.Values("If-None-Match"), ", ")}
	if c.request.Method != http.MethodHead {
		request.Wait = preferredWait(c.request.Header)
	}
	answer, err := c.plane.Feed(c.ctx, c.who, request)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Vary", "Accept-Encoding, Prefer, Authorization")
	if answer.Waited > 0 {
		h.Set("Preference-Applied", fmt.Sprintf("wait=%d", answer.Waited/time.Second))
	}
	switch {
	case answer.Gone:
		w.WriteHeader(http.StatusGone)
		return nil
	case answer.NotModified:
		h.Set("ETag", management.ETag(int64(answer.Revision)))
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	body := answer.Body
	defer body.Close()
	h.Set("ETag", management.ETag(int64(body.Revision)))
	h.Set("Content-Type", jsonType)
	if body.Signature != "" {
		h.Set("PQProxy-Signature", body.Signature)
	}
	from, size := body.Gzip(), body.GzipSize
	if acceptsGzip(c.request.Header.Values("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
	} else {
		size = body.Size
		if from, err = body.Plain(); err != nil {
			return err
		}
	}
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	w.WriteHeader(http.StatusOK)
	if c.request.Method == http.MethodHead {
		return nil
	}
	return copySlowly(w, from)
}

// preferredWait reads Prefer: wait=25 (RFC 7240 section 4.3).
func preferredWait(h http.Header) time.Duration {
	for _, value := range h.Values("Prefer") {
		for one := range strings.SplitSeq(value, ",") {
			one, _, _ = strings.Cut(one, ";")
			name, text, _ := strings.Cut(one, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(text), `"`), 10, 16)
			if err != nil {
				return 0
			}
			return time.Duration(seconds) * time.Second
		}
	}
	return 0
}

// errCut is an answer that broke off.
var errCut = errors.New("the answer broke off")

// copySlowly copies a body of any size to a client that may be slow: each piece has its time, all of it has none.
func copySlowly(w http.ResponseWriter, from io.Reader) error {
	control := http.NewResponseController(w)
	defer control.SetWriteDeadline(time.Time{}) // the connection's next request is not to inherit it
	piece := make([]byte, 64<<10)
	for {
		n, err := from.Read(piece)
		if n > 0 {
			control.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := w.Write(piece[:n]); err != nil {
				return fmt.Errorf("%w: %w", errCut, err)
			}
		}
		if err == io.EOF {
			return control.Flush()
		}
		if err != nil {
			return err
		}
	}
}
