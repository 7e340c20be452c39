package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// API calls a management plane.
type API struct {
	URL string // of the public face
	Key string // an API key; empty: none is sent
}

// Object is a JSON object of a request.
type Object map[string]any

const (
	callTimeout = 30 * time.Second
	maxAnswer   = 4 << 20
	askAgain    = 100 * time.Millisecond // well within the limit of requests a second
)

// Call makes a request with a body as JSON, if not nil, and reads the answer into answer, if not nil. An answer that is no
// success is an error that has what the service says.
func (a *API) Call(ctx context.Context, method, path string, body, answer any) error {
	_, err := a.Send(ctx, method, path, nil, body, answer)
	return err
}

// Send is Call with headers of the request, and returns those of the answer.
func (a *API) Send(ctx context.Context, method, path string, header http.Header, body, answer any) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, a.URL+path, content)
	if err != nil {
		return nil, err
	}
	if header != nil {
		request.Header = header
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if a.Key != "" {
		request.Header.Set("Authorization", "Bearer "+a.Key)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode >= 300 {
		return nil, refused(method, path, response.Status, text)
	}
	if answer != nil {
		if err := json.Unmarshal(text, answer); err != nil {
			return nil, fmt.Errorf("%s %s: reading the answer: %w", method, path, err)
		}
	}
	return response.Header, nil
}

// refused makes an error of a problem document.
func refused(method, path, status string, text []byte) error {
	var problem struct {
		Code, Detail string
		Errors       []struct{ Pointer, Detail string }
	}
	if json.Unmarshal(text, &problem) != nil || problem.Code == "" {
		return fmt.Errorf("%s %s: %s", method, path, status)
	}
	faults := ""
	for _, f := range problem.Errors {
		faults += fmt.Sprintf("; %s: %s", f.Pointer, f.Detail)
	}
	return fmt.Errorf("%s %s: %s, %s: %s%s", method, path, status, problem.Code, problem.Detail, faults)
}

// Until asks for a path again and again, reading into answer, until good, which is called after each. what says in an error what
// never came; wait is how long it is waited for.
func (a *API) Until(ctx context.Context, what, path string, wait time.Duration, answer any, good func() bool) error {
	return Until(ctx, what, wait, askAgain, func(ctx context.Context) (bool, error) {
		if err := a.Call(ctx, http.MethodGet, path, nil, answer); err != nil {
			return false, err
		}
		return good(), nil
	})
}

// Until calls try, with a pause between, until it returns true or an error, or ctx ends, or it took longer than wait.
func Until(ctx context.Context, what string, wait, pause time.Duration, try func(context.Context) (bool, error)) error {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-limited.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("waited %v in vain for %s", wait, what)
		}
		done, err := try(limited)
		if done {
			return nil
		}
		if err != nil && limited.Err() == nil {
			return err
		}
		timer.Reset(pause)
	}
}

// List is a page of objects.
type List[T any] struct{ Data []T }

// Domain is what is shown of a domain.
type Domain struct {
	ID, Name, Status string
	NextAction       *struct {
		Who, Text string
		Record    *DNSRecord
	} `json:"next_action"`
	Axes struct {
		Ownership   Axis
		Certificate Axis
		Edges       struct {
			Axis
			Live, Of int
		}
	}
}

// DNSRecord is a record that somebody has to set.
type DNSRecord struct{ Type, Name, Value string }

// Axis is one side of a domain.
type Axis struct{ State, Proof, Detail string }

// LiveOn reports whether a domain is live on that many edges, and there are no more.
func (d *Domain) LiveOn(edges int) bool {
	return d.Status == "active" && d.Axes.Edges.Live == edges && d.Axes.Edges.Of == edges
}

// UntilLive asks for a domain until it is live on that many edges. The error has what keeps it from that.
func (a *API) UntilLive(ctx context.Context, d *Domain, edges int, wait time.Duration) error {
	err := a.Until(ctx, d.Name+" to be live", "/v1/domains/"+d.ID, wait, d, func() bool { return d.LiveOn(edges) })
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: it is %s; ownership: %s; certificate: %s; edges: %s", err,
			d.Status, d.Axes.Ownership.Detail, d.Axes.Certificate.Detail, d.Axes.Edges.Detail)
	}
	return err
}

// KeyFile is the content of a file for `curl -K` that has curl send the key, which then is on no command line.
func (a *API) KeyFile() string { return fmt.Sprintf("header = \"Authorization: Bearer %s\"\n", a.Key) }
