package dnscheck

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Options says whom to ask. The zero value of each field is its default.
type Options struct {
	// Servers are recursive resolvers: `address`, `host:port` or `[v6]:port`; the port is 53 where it is missing. They
	// are asked in this order until one answers. At most 8. Default: those of /etc/resolv.conf, which is read again for
	// each question, as DHCP changes it.
	Servers []string

	// Timeout bounds one attempt at one server, over UDP and TCP together. Default, also for negative values: 2 s.
	Timeout time.Duration
}

// Resolver asks recursive resolvers. It keeps nothing between questions and is for any number of goroutines.
type Resolver struct {
	servers []string // empty: those of file
	file    string   // as resolv.conf(5)
	timeout time.Duration
}

const (
	maxServers = 8
	rounds     = 2    // how often the servers are gone through
	maxUDP     = 1232 // what arrives in one piece everywhere (DNS flag day 2020)
	maxStray   = 16   // datagrams of others that are read past
)

// New checks the options. It asks nothing.
func New(o Options) (*Resolver, error) {
	r := &Resolver{file: "/etc/resolv.conf", timeout: o.Timeout}
	if r.timeout <= 0 {
		r.timeout = 2 * time.Second
	}
	if len(o.Servers) > maxServers {
		return nil, fmt.Errorf("resolver: %d servers are given; %d are enough", len(o.Servers), maxServers)
	}
	for _, text := range o.Servers {
		server, err := serverAddress(text)
		if err != nil {
			return nil, fmt.Errorf("resolver %q: %w", text, err)
		}
		r.servers = append(r.servers, server)
	}
	return r, nil
}

// serverAddress returns text as host:port.
func serverAddress(text string) (string, error) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return net.JoinHostPort(addr.String(), "53"), nil
	}
	host, port := text, "53"
	if strings.Contains(text, ":") {
		var err error
		if host, port, err = net.SplitHostPort(text); err != nil {
			return "", errors.New("is no address; write 192.0.2.53, 192.0.2.53:53 or [2001:db8::53]:53")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("has no usable port; write a number from 1 to 65535")
	}
	if host == "" || strings.ContainsAny(host, "/@ ") {
		return "", errors.New("has no usable host; write 192.0.2.53:53")
	}
	return net.JoinHostPort(host, port), nil
}

// list returns whom to ask.
func (r *Resolver) list() ([]string, error) {
	if len(r.servers) > 0 {
		return r.servers, nil
	}
	config, err := dns.ClientConfigFromFile(r.file)
	switch {
	case errors.Is(err, os.ErrNotExist), err == nil && len(config.Servers) == 0: // resolv.conf(5): the one on this host
		return []string{"127.0.0.1:53"}, nil
	case err != nil:
		return nil, fmt.Errorf("reading the system's name servers: %w", err)
	}
	var servers []string
	for _, server := range config.Servers[:min(len(config.Servers), maxServers)] {
		servers = append(servers, net.JoinHostPort(server, config.Port))
	}
	return servers, nil
}

// LookupError says why DNS could not be asked: nothing is known of the record.
type LookupError struct {
	Name   string // without the final dot
	Type   string // such as "AAAA"
	Server string // the last that was asked, for logs; empty: none
	Reason string // for people; does not name the server
	Err    error  // the cause, for logs; nil where Reason says all
}

func (e *LookupError) Error() string {
	text := fmt.Sprintf("asking for %s of %q: %s", e.Type, e.Name, e.Reason)
	if e.Server != "" {
		text += " (server " + e.Server + ")"
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause, or nil.
func (e *LookupError) Unwrap() error { return e.Err }

// ask asks the servers in turn, twice, until one answers with data or says with authority that there is none. Each of
// the others may be the one that is broken. The error is a *LookupError.
func (r *Resolver) ask(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	failed := &LookupError{Name: cut(canonical(name)), Type: dns.TypeToString[qtype]}
	servers, err := r.list()
	if err != nil {
		failed.Reason, failed.Err = "the management plane knows no name server", err
		return nil, failed
	}
	for range rounds {
		for _, server := range servers {
			reply, err := r.exchange(ctx, server, name, qtype)
			if err == nil {
				err = refusal(reply)
			}
			if err == nil {
				return reply, nil
			}
			// The time of all attempts is over: what ended one of them says more than that.
			if failed.Reason == "" || ctx.Err() == nil {
				failed.Server, failed.Reason, failed.Err = server, reason(err), err
			}
			if ctx.Err() != nil {
				return nil, failed
			}
		}
	}
	return nil, failed
}

// refusal returns why a reply that belongs to the question is no answer to it; nil: it is one.
func refusal(m *dns.Msg) error {
	switch {
	case m.Rcode == dns.RcodeNameError:
		return nil
	case m.Rcode != dns.RcodeSuccess:
		text, ok := dns.RcodeToString[m.Rcode]
		if !ok {
			text = "code " + strconv.Itoa(m.Rcode)
		}
		return errors.New("the name server answered " + text + extended(m))
	case len(m.Answer) == 0 && !m.Authoritative && !m.RecursionAvailable && refers(m):
		// A referral (RFC 1034 section 4.3.1): its empty answer says nothing of the name.
		return errors.New("the name server refers to others and resolves nothing itself; the operator has to name a recursive one")
	}
	return nil
}

// refers reports whether a reply names other servers to ask: NS records where an answer that there is nothing would have SOA.
func refers(m *dns.Msg) bool {
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeNS {
			return true
		}
	}
	return false
}

// extended returns what the server says about the cause (RFC 8914), by number: its text is its own.
func extended(m *dns.Msg) string {
	opt := m.IsEdns0()
	if opt == nil {
		return ""
	}
	for _, option := range opt.Option {
		if ede, ok := option.(*dns.EDNS0_EDE); ok && dns.ExtendedErrorCodeToString[ede.InfoCode] != "" {
			return " (" + dns.ExtendedErrorCodeToString[ede.InfoCode] + ")"
		}
	}
	return ""
}

// Why a reply is not taken.
var (
	errTruncated = errors.New("the answer is cut off")
	errMalformed = errors.New("the answer cannot be read")
	errNotOurs   = errors.New("the answer belongs to another question")
)

// reason puts an error into words without the address of the server.
func reason(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if op.Timeout() {
			return "no name server answered in time"
		}
		return "the name server cannot be reached"
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, os.ErrDeadlineExceeded):
		return "no name server answered in time"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the name server closed the connection"
	}
	return err.Error()
}

// exchange asks one server: over UDP, and over TCP where the answer does not fit or cannot be read. A server that does
// not know EDNS0 is asked again without it (RFC 6891 section 7).
func (r *Resolver) exchange(ctx context.Context, server, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	reply, err := exchangeOnce(ctx, server, newQuery(name, qtype, true))
	if err == nil && (reply.Rcode == dns.RcodeFormatError || reply.Rcode == dns.RcodeNotImplemented || reply.Rcode == dns.RcodeBadVers) {
		return exchangeOnce(ctx, server, newQuery(name, qtype, false))
	}
	return reply, err
}

func newQuery(name string, qtype uint16, edns bool) *dns.Msg {
	query := new(dns.Msg)
	query.SetQuestion(dns.Fqdn(name), qtype)
	if edns {
		query.SetEdns0(maxUDP, false)
	}
	return query
}

func exchangeOnce(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
	packed, err := query.Pack()
	if err != nil {
		return nil, errors.New("it is no name that DNS can be asked for")
	}
	reply, err := exchangeUDP(ctx, server, packed, query)
	if errors.Is(err, errTruncated) || errors.Is(err, errMalformed) {
		return exchangeTCP(ctx, server, packed, query)
	}
	return reply, err
}

// dial connects, and lets nothing on the connection outlive ctx.
func dial(ctx context.Context, network, server string) (net.Conn, func(), error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return conn, func() { stop(); conn.Close() }, nil
}

// exchangeUDP reads past what others send to the port: guesses at the answer have to be right in ID, question and port,
// and a wrong one must not end the wait for the right one.
func exchangeUDP(ctx context.Context, server string, packed []byte, query *dns.Msg) (*dns.Msg, error) {
	conn, end, err := dial(ctx, "udp", server)
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDP+1)
	stray := 0
	for {
		n, err := conn.Read(buf)
		if err != nil {
			if stray > 0 {
				return nil, errNotOurs
			}
			return nil, err
		}
		reply, err := readReply(buf[:n], query)
		if !errors.Is(err, errNotOurs) {
			return reply, err
		}
		if stray++; stray == maxStray {
			return nil, err
		}
	}
}

func exchangeTCP(ctx context.Context, server string, packed []byte, query *dns.Msg) (*dns.Msg, error) {
	conn, end, err := dial(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	defer end()
	// One write: some servers want length and message in one segment (RFC 7766 section 8).
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, err
	}
	return readReply(buf, query)
}
