package probe

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Result is what a probe found. Fields that did not become known are empty. Strings that come from the
// server are printable UTF-8 (what is not is escaped as in Go source) and cut where they are very long.
type Result struct {
	// Address is the server that was probed, `host:port`.
	Address string `json:"address"`

	// ServerName is the name that the certificate was checked against, and the SNI if it is no IP address.
	ServerName string `json:"server_name"`

	// RemoteIP is the address that answered; of a name with several, the first that could be connected.
	RemoteIP string `json:"remote_ip"`

	// PostQuantum is whether the handshake finished with a hybrid group. Classical certificates do not
	// change it: it speaks of the key exchange.
	PostQuantum bool `json:"post_quantum"`

	// TLSVersion and CipherSuite are spelled as crypto/tls does: `TLS 1.3`, `TLS_AES_128_GCM_SHA256`.
	TLSVersion  string `json:"tls_version"`
	CipherSuite string `json:"cipher_suite"`

	// Group is the key-exchange group, spelled as crypto/tls does: `X25519MLKEM768`. It is empty where
	// TLS 1.2 used none (key exchange by RSA).
	Group string `json:"group"`

	// OfferedGroups are the groups in the ClientHello as it was sent, in its order. Without a hybrid one
	// among them PostQuantum says nothing about the server.
	OfferedGroups []string `json:"offered_groups"`

	// HelloRetryRequest is whether the server asked for another key share than those in the first
	// ClientHello, which costs a round trip (RFC 8446 section 4.1.4).
	HelloRetryRequest bool `json:"hello_retry_request"`

	// ALPN is the protocol that the server selected. Empty: none.
	ALPN string `json:"alpn"`

	// ChainOK is whether the chain leads to a trusted root, is valid now, and covers ServerName.
	// ChainError says why not; it is empty if ChainOK, or if the server sent no certificate.
	ChainOK    bool   `json:"chain_ok"`
	ChainError string `json:"chain_error,omitempty"`

	// Chain are the certificates as the server sent them, the leaf first: the first 16 of them.
	Chain []Certificate `json:"chain"`

	// Timings are the durations of the stages.
	Timings Timings `json:"timings"`

	// Stage is where the probe failed, and Error why. Both are empty if the handshake finished; Error
	// without Stage means that the options were invalid.
	Stage Stage  `json:"stage,omitempty"`
	Error string `json:"error,omitempty"`
}

// newResult has empty lists where nil ones would become null in JSON.
func newResult(address, serverName string) *Result {
	return &Result{Address: address, ServerName: serverName, OfferedGroups: []string{}, Chain: []Certificate{}}
}

// Certificate is a certificate of a chain.
type Certificate struct {
	// Subject and Issuer are distinguished names as in RFC 2253.
	Subject string `json:"subject"`
	Issuer  string `json:"issuer"`

	// Names are the DNS names, then the IP addresses, that it covers: the first 256 of them.
	Names []string `json:"names"`

	// NotBefore and NotAfter bound its validity, in UTC.
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`

	// KeyType is the algorithm and size of its key: `ECDSA P-256`, `RSA 2048`, `Ed25519`, `unknown`.
	KeyType string `json:"key_type"`

	// SHA256 is the digest of the whole certificate (DER), in lower-case hex.
	SHA256 string `json:"sha256"`
}

// Timings are durations in seconds, to the microsecond. A stage that was not reached has 0; one that
// failed, the time until then.
type Timings struct {
	// DNS is the time in which the name was resolved; 0 for an IP address. A Dial function that resolves
	// names otherwise than with net.Dialer or net.Resolver has it counted as Connect.
	DNS float64 `json:"dns"`

	// Connect is the rest of the dial: the TCP handshake, including addresses that were tried in vain.
	Connect float64 `json:"connect"`

	// Handshake runs from the open connection (so with the PROXY header) to the client's Finished.
	Handshake float64 `json:"handshake"`

	// Total is all of them together.
	Total float64 `json:"total"`
}

func seconds(d time.Duration) float64 { return d.Round(time.Microsecond).Seconds() }

func (r *Result) setOffered(hello []byte) {
	for _, group := range helloGroups(hello) {
		r.OfferedGroups = append(r.OfferedGroups, group.String())
	}
}

func (r *Result) setNegotiated(state tls.ConnectionState, config *tls.Config) {
	if state.Version == 0 {
		return // no ServerHello
	}
	r.TLSVersion = tls.VersionName(state.Version)
	if state.CipherSuite != 0 {
		r.CipherSuite = tls.CipherSuiteName(state.CipherSuite)
	}
	if state.CurveID != 0 {
		r.Group = state.CurveID.String()
	}
	// Only the server's Finished proves that it holds the keys of the group that it named.
	r.PostQuantum = state.HandshakeComplete && isHybrid(r.Group)
	r.HelloRetryRequest = state.HelloRetryRequest
	r.ALPN = clean(state.NegotiatedProtocol, maxText)
	r.setChain(state.PeerCertificates, config)
}

// isHybrid takes a name and not a number so that Result.OfferedGroups can be asked alike.
func isHybrid(group string) bool {
	switch group {
	case tls.X25519MLKEM768.String(), tls.SecP256r1MLKEM768.String(), tls.SecP384r1MLKEM1024.String():
		return true
	}
	return false
}

// What is kept of a chain. crypto/tls takes up to 256 KiB of it, and probes run in a management plane
// that stores and shows what it finds.
const (
	maxChain = 16   // the public web has up to 5
	maxNames = 256  // public CAs issue up to 100, large sites' own CAs somewhat more
	maxText  = 1024 // bytes of one string, before its last escape sequence
	maxDN    = 4096 // bytes of an encoded distinguished name: pkix takes quadratic time to print one
)

func (r *Result) setChain(certificates []*x509.Certificate, config *tls.Config) {
	if len(certificates) == 0 {
		return
	}
	if err := verifyChain(certificates, config); err != nil {
		r.ChainError = clean(err.Error(), maxText)
	} else {
		r.ChainOK = true
	}
	for _, certificate := range certificates[:min(len(certificates), maxChain)] {
		r.Chain = append(r.Chain, describe(certificate))
	}
}

func verifyChain(certificates []*x509.Certificate, config *tls.Config) error {
	intermediates := x509.NewCertPool()
	for _, certificate := range certificates[1:] {
		intermediates.AddCert(certificate)
	}
	_, err := certificates[0].Verify(x509.VerifyOptions{
		DNSName:       config.ServerName,
		Roots:         config.RootCAs,
		Intermediates: intermediates,
	})
	return err
}

func describe(certificate *x509.Certificate) Certificate {
	digest := sha256.Sum256(certificate.Raw)
	c := Certificate{
		Subject:   distinguishedName(certificate.Subject, certificate.RawSubject),
		Issuer:    distinguishedName(certificate.Issuer, certificate.RawIssuer),
		NotBefore: certificate.NotBefore.UTC(),
		NotAfter:  certificate.NotAfter.UTC(),
		KeyType:   keyType(certificate.PublicKey),
		SHA256:    hex.EncodeToString(digest[:]),
		Names:     []string{},
	}
	for _, name := range certificate.DNSNames[:min(len(certificate.DNSNames), maxNames)] {
		c.Names = append(c.Names, clean(name, maxText))
	}
	for _, ip := range certificate.IPAddresses[:min(len(certificate.IPAddresses), maxNames-len(c.Names))] {
		c.Names = append(c.Names, ip.String())
	}
	return c
}

func distinguishedName(name pkix.Name, encoded []byte) string {
	if len(encoded) > maxDN {
		return fmt.Sprintf("(not shown: %d bytes)", len(encoded))
	}
	return clean(name.String(), maxText)
}

func keyType(key any) string {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Curve.Params().Name
	case *rsa.PublicKey:
		return "RSA " + strconv.Itoa(key.N.BitLen())
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "unknown"
}

// clean returns s with everything escaped that a terminal might obey or that would hide text: control
// characters (also those of U+0080 to U+009F), bidirectional overrides, bytes that are not UTF-8. What
// follows the first limit bytes of output is replaced by `…`.
func clean(s string, limit int) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		if b.Len() >= limit {
			b.WriteString("…")
			break
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		i += size
	}
	return b.String()
}
