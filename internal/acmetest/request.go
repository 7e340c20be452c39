package acmetest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/letsencrypt/pebble/v2/acme"
)

// Endpoint is one of the resources of ACME (RFC 8555, section 7.1; RFC 9773), whatever its path.
type Endpoint string

// The endpoints. POST-as-GET of a resource goes to it like any other request.
const (
	Directory     Endpoint = "directory"
	NewNonce      Endpoint = "newNonce"
	NewAccount    Endpoint = "newAccount"
	Account       Endpoint = "account"
	KeyChange     Endpoint = "keyChange"
	NewOrder      Endpoint = "newOrder"
	Order         Endpoint = "order"
	AccountOrders Endpoint = "orders"
	Authorization Endpoint = "authorization"
	Challenge     Endpoint = "challenge"
	Finalize      Endpoint = "finalize"
	Certificate   Endpoint = "certificate"
	RevokeCert    Endpoint = "revokeCert"
	RenewalInfo   Endpoint = "renewalInfo"
)

// directoryPath and noncePath are Pebble's. Ours of the directory differs from server to server.
const (
	directoryPath = "/dir"
	noncePath     = "/nonce-plz"
)

// endpoints are Pebble's by path; those that end in a slash have an ID behind it.
var endpoints = map[string]Endpoint{
	directoryPath:                          Directory,
	noncePath:                              NewNonce,
	"/sign-me-up":                          NewAccount,
	"/my-account/":                         Account,
	"/rollover-account-key":                KeyChange,
	"/order-plz":                           NewOrder,
	"/my-order/":                           Order,
	"/list-orderz/":                        AccountOrders,
	"/authZ/":                              Authorization,
	"/chalZ/":                              Challenge,
	"/finalize-order/":                     Finalize,
	"/certZ/":                              Certificate,
	"/revoke-cert":                         RevokeCert,
	"/draft-ietf-acme-ari-03/renewalInfo/": RenewalInfo,
}

// Match selects requests. The zero value selects all.
type Match struct {
	// Endpoint is the resource asked for. Empty: any.
	Endpoint Endpoint

	// Name is one of the names that the request is about: those of the order, of the authorization, or of the
	// certificate. Requests about accounts are about none. Empty: any.
	Name string
}

func (m Match) covers(endpoint Endpoint, names []string) bool {
	return (m.Endpoint == "" || m.Endpoint == endpoint) && about(names, m.Name)
}

// about says whether a name, or any if it is empty, is among names.
func about(names []string, name string) bool {
	return name == "" || slices.Contains(names, strings.ToLower(name))
}

// Request is one that reached the server.
type Request struct {
	Endpoint Endpoint // "" where there is no such resource
	Method   string
	Path     string
	Names    []string // in lower case

	// Status is of the answer, and Problem its type (RFC 8555, section 6.7) without the prefix. Both are zero as
	// long as there is none, and when there never was, because the connection was cut.
	Status  int
	Problem string
}

// Requests returns what reached the server, oldest first, refused ones included.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Request, len(s.requests))
	for i, r := range s.requests {
		all[i] = *r
	}
	return all
}

// Count is the number of requests that reached the server. It counts them as they come, before any fault.
func (s *Server) Count(m Match) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if m.covers(r.Endpoint, r.Names) {
			n++
		}
	}
	return n
}

// call is what we know of a request before Pebble does. Signatures have not been looked at.
type call struct {
	endpoint    Endpoint
	id          string // the path behind the endpoint's
	account     string // Pebble's ID
	profile     string // of a new order
	identifiers []acme.Identifier
	names       []string
}

// maxBody is more than any request of ACME needs.
const maxBody = 1 << 20

// read takes a request apart, and leaves its body as if it had not.
func (s *Server) read(w http.ResponseWriter, r *http.Request) (*call, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	c := new(call)
	for path, endpoint := range endpoints {
		if rest, ok := strings.CutPrefix(r.URL.Path, path); ok && (rest == "" || strings.HasSuffix(path, "/")) {
			c.endpoint, c.id = endpoint, rest
		}
	}
	if c.endpoint == NewOrder {
		c.readOrder(body)
	}
	for _, name := range s.namesOf(c) {
		c.names = append(c.names, strings.ToLower(strings.TrimSuffix(name, "."))) // see retire
	}
	return c, nil
}

// readOrder reads a JWS with a new order (RFC 8555, sections 6.2 and 7.4). What it cannot read is for Pebble to refuse.
func (c *call) readOrder(body []byte) {
	var jws acme.JSONSigned
	var header struct {
		Account string `json:"kid"`
	}
	var order acme.Order
	if json.Unmarshal(body, &jws) != nil || decodePart(jws.Protected, &header) != nil || decodePart(jws.Payload, &order) != nil {
		return
	}
	c.account = header.Account[strings.LastIndexByte(header.Account, '/')+1:]
	c.profile, c.identifiers = order.Profile, order.Identifiers
}

func decodePart(part string, v any) error {
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// namesOf returns what a request is about.
func (s *Server) namesOf(c *call) []string {
	switch c.endpoint {
	case NewOrder:
		var names []string
		for _, identifier := range c.identifiers {
			names = append(names, identifier.Value)
		}
		return names
	case Order, Finalize:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.orders[c.id]
	case Authorization:
		if authz := s.pebble.db.GetAuthorizationByID(c.id); authz != nil {
			authz.RLock()
			defer authz.RUnlock()
			return []string{authz.Identifier.Value}
		}
	case Challenge:
		if challenge := s.pebble.db.GetChallengeByID(c.id); challenge != nil {
			challenge.Authz.RLock()
			defer challenge.Authz.RUnlock()
			return []string{challenge.Authz.Identifier.Value}
		}
	case Certificate:
		id, _, _ := strings.Cut(c.id, "/")
		if cert := s.pebble.db.GetCertificateByID(id); cert != nil {
			return certNames(cert.Cert)
		}
	case RenewalInfo:
		if serial, _, err := parseCertID(c.id); err == nil {
			if cert := s.pebble.db.GetCertificateBySerial(serial); cert != nil {
				return certNames(cert.Cert)
			}
		}
	}
	return nil
}

// certNames are the names of a certificate in lower case, addresses among them.
func certNames(cert *x509.Certificate) []string {
	var names []string
	for _, name := range cert.DNSNames {
		names = append(names, strings.ToLower(name))
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}
