package pqproxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// The groups, strongest intention first. The order decides nothing: crypto/tls prefers hybrid groups and,
// among those, ones that the client sent a share for.
var (
	hybridGroups    = []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024}
	classicalGroups = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}
)

// groupPolicy is the set of groups that a `post_quantum` setting allows.
type groupPolicy struct {
	name   domain.PostQuantum
	groups []tls.CurveID
}

var groupPolicies = map[domain.PostQuantum]*groupPolicy{
	domain.Prefer:  {domain.Prefer, slices.Concat(hybridGroups, classicalGroups)},
	domain.Require: {domain.Require, hybridGroups},
	domain.Off:     {domain.Off, classicalGroups},
}

// allows reports whether any of the groups is in the policy.
func (p *groupPolicy) allows(groups ...tls.CurveID) bool {
	return slices.ContainsFunc(groups, func(g tls.CurveID) bool { return slices.Contains(p.groups, g) })
}

// isPostQuantum reports whether a group is a hybrid with ML-KEM.
func isPostQuantum(g tls.CurveID) bool { return slices.Contains(hybridGroups, g) }

// Alerts that we send in clear ourselves (RFC 8446, section 6.2). crypto/tls sends all others.
const (
	alertDecodeError           = 50
	alertInternalError         = 80
	alertUnrecognizedName      = 112
	alertNoApplicationProtocol = 120
)

// errRefused ends a handshake that has been refused with an alert of ours.
var errRefused = errors.New("refused")

// hello is the callback of the one long-lived outer config. It decides everything that the name decides,
// so that a resumed session, for which no certificate is asked, is authorised too, and returns the config
// of this one connection.
func (s *state) hello(info *tls.ClientHelloInfo) (*tls.Config, error) {
	c := info.Conn.(*clientWire).conn
	c.helloWait = time.Since(c.start)
	c.offeredPQ = groupPolicies[domain.Require].allows(info.SupportedCurves...)
	c.clientWire.helloDone()

	host, ok := domain.NormalHost(info.ServerName)
	switch {
	case info.ServerName == "":
		return nil, c.refuse(alertUnrecognizedName, reasonNoSNI, nil)
	case !ok:
		return nil, c.refuse(alertUnrecognizedName, reasonUnknownDomain, fmt.Errorf("%q is not a host name", info.ServerName))
	}
	c.serverName = host
	r := s.routeFor(host)
	validates := slices.Equal(info.SupportedProtos, []string{acmeTLS}) // a certificate authority, or somebody like it
	if r != nil && validates {
		if cert := s.certs.challengeCertificate(host); cert != nil {
			return c.answerChallenge(r, cert), nil // also where clients are kept out
		}
	}
	switch {
	case r == nil:
		return nil, c.refuse(alertUnrecognizedName, reasonUnknownDomain, nil)
	case r.Suspended:
		c.route = r
		return nil, c.refuse(alertUnrecognizedName, reasonSuspended, nil)
	case !s.enter(c, r):
		return nil, c.refuse(alertInternalError, reasonDomainOver,
			fmt.Errorf("the domain has its max_connections (%d) open", r.MaxConnections))
	}

	if validates {
		return nil, c.refuse(alertNoApplicationProtocol, reasonALPNMismatch, errors.New("no certificate authority is expected to validate this name by TLS-ALPN-01 now"))
	}
	cfg := &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		CurvePreferences:            r.policy.groups,
		DynamicRecordSizingDisabled: true, // a relay writes what is there: small stays small, bulk leaves in full records
		VerifyConnection:            c.verifyNegotiated,
		WrapSession:                 c.wrapTicket,
		UnwrapSession:               c.unwrapTicket,
	}
	if c.failsAnyway(info) {
		return cfg, nil // crypto/tls says why; nothing has been opened
	}

	cert, err := s.certificateFor(r)
	if err != nil {
		return nil, c.refuse(alertInternalError, reasonNoCertificate, err)
	}
	cert = c.owner.certs.staples.on(r, cert)
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }

	proto, err := c.chooseALPN(info.SupportedProtos)
	if err != nil {
		return nil, err
	}
	if proto != "" {
		cfg.NextProtos = []string{proto}
	}
	c.offerProto = proto
	c.dialEarly()
	return cfg, nil
}

// answerChallenge has the handshake done with the certificate that a certificate authority is waiting for (RFC 8737). The
// connection ends behind it. The domain's policy is for its clients: a CA without hybrid groups may validate too.
func (c *conn) answerChallenge(r *route, cert *tls.Certificate) *tls.Config {
	c.route, c.challenged = r, true
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       groupPolicies[domain.Prefer].groups,
		SessionTicketsDisabled: true,
		NextProtos:             []string{acmeTLS},
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil },
		VerifyConnection: func(state tls.ConnectionState) error {
			c.session = sessionOf(&state)
			return nil
		},
	}
}

// failsAnyway notes why crypto/tls is about to refuse a hello, if it is.
func (c *conn) failsAnyway(info *tls.ClientHelloInfo) bool {
	switch {
	case !slices.Contains(info.SupportedVersions, tls.VersionTLS13):
		c.expect = reasonTLSVersion
	case slices.Contains(info.Extensions, extensionEarlyData):
		c.expect = reasonEarlyData
	case !c.route.policy.allows(info.SupportedCurves...):
		c.expect = reasonNoCommonGroup
	default:
		return false
	}
	return true
}

// extensionEarlyData is early_data (RFC 8446, section 4.2.10).
const extensionEarlyData = 42

// verifyNegotiated is called when our flight has left and before the client's Finished is awaited, also
// for a resumed session. It trusts what was negotiated, not what was configured.
func (c *conn) verifyNegotiated(state tls.ConnectionState) error {
	if state.Version != tls.VersionTLS13 || !c.route.policy.allows(state.CurveID) {
		c.expect = reasonInternal
		return fmt.Errorf("negotiated %s with %s, which post_quantum %s does not allow",
			tls.VersionName(state.Version), state.CurveID, c.route.policy.name)
	}
	c.session = sessionOf(&state)
	c.clientWire.holdTickets()
	close(c.negotiatedSignal)
	return nil
}

// ticketBinding is what a ticket of this connection is good for: this name, in this epoch of its route.
// crypto/tls would resume it under any name that the process serves.
func (c *conn) ticketBinding() []byte {
	return append(binary.BigEndian.AppendUint64(nil, c.route.epoch), c.serverName...)
}

// wrapTicket seals a ticket with the keys of the outer config, which outlive reloads.
func (c *conn) wrapTicket(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
	session.Extra = append(session.Extra, c.ticketBinding())
	return c.owner.outer.EncryptTicket(state, session)
}

// unwrapTicket opens a ticket, or returns nil for a full handshake if it is of another name, tenant,
// policy or time.
func (c *conn) unwrapTicket(identity []byte, state tls.ConnectionState) (*tls.SessionState, error) {
	session, err := c.owner.outer.DecryptTicket(identity, state)
	if err != nil || session == nil {
		return nil, nil
	}
	binding := c.ticketBinding()
	if !slices.ContainsFunc(session.Extra, func(extra []byte) bool { return string(extra) == string(binding) }) {
		return nil, nil
	}
	return session, nil
}

// proveGroups runs a handshake in memory for every group of every policy that is in use, and returns
// those that this process cannot do: GODEBUG takes groups away from explicit lists without a word.
func proveGroups(policies map[domain.PostQuantum]bool) (lost []tls.CurveID, err error) {
	cert, err := throwawayCertificate()
	if err != nil {
		return nil, err
	}
	tried := make(map[tls.CurveID]bool)
	for name := range policies {
		policy := groupPolicies[name]
		for _, g := range policy.groups {
			if tried[g] {
				continue
			}
			tried[g] = true
			if !handshakesWith(g, policy, cert) {
				lost = append(lost, g)
			}
		}
	}
	slices.Sort(lost)
	return lost, nil
}

// checkGroups proves the groups in use. Without X25519MLKEM768 the proxy would not be what it says; the
// lesser hybrids are reported and missed.
func checkGroups(policies map[domain.PostQuantum]bool) (warning string, err error) {
	lost, err := proveGroups(policies)
	if err != nil || len(lost) == 0 {
		return "", err
	}
	names := make([]string, len(lost))
	for i, g := range lost {
		names[i] = g.String()
	}
	what := "this process cannot negotiate " + strings.Join(names, ", ")
	if slices.Contains(lost, tls.X25519MLKEM768) {
		return "", fmt.Errorf("%s: remove tlsmlkem=0 (or fips140) from GODEBUG; without X25519MLKEM768 recorded traffic can be decrypted later", what)
	}
	return what + ": GODEBUG has tlssecpmlkem=0 or the like", nil
}

// handshakesWith reports whether a server with the policy's groups and a client with one of them agree on it.
func handshakesWith(group tls.CurveID, policy *groupPolicy, cert *tls.Certificate) bool {
	near, far := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	_ = near.SetDeadline(deadline)
	_ = far.SetDeadline(deadline)
	server := tls.Server(far, &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: policy.groups, Certificates: []tls.Certificate{*cert},
		SessionTicketsDisabled: true,
	})
	finished := make(chan error, 1)
	go func() {
		finished <- server.Handshake()
		_ = far.Close()
	}()
	client := tls.Client(near, &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{group},
		InsecureSkipVerify: true, // both ends are ours; what is proven is the key exchange
	})
	err := client.Handshake()
	_ = near.Close()
	return errors.Join(err, <-finished) == nil && client.ConnectionState().CurveID == group
}

// throwawayCertificate makes a certificate for handshakes in memory.
func throwawayCertificate() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
