package domain

import (
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// Normalize checks d, which src gave, and brings it into normal form: names as A-labels in lower case
// without a final dot, addresses written in one way, defaults filled in. A domain in normal form stays as
// it is. Placeholders must have been replaced before.
//
// The rules stand at the fields of Domain. In addition: a wildcard needs a `byoc` or `internal`
// certificate; `byoc` needs a pair, either as PEM texts or as files, and nothing else may have one.
//
// On failure it returns all faults, joined (see Error and Errors), and d stays as it was. It may not be
// called while others use d.
func (d *Domain) Normalize(src Source) error {
	var f faults
	n := d.Clone()
	name := normalize(n, src, &f)
	if err := f.err(name); err != nil {
		return err
	}
	*d = *n
	return nil
}

// normalize brings n, whose memory nobody else holds, into normal form, and returns what errors call the record.
// If anything was reported to f, n is of no other use than the name that it was given.
func normalize(n *Domain, src Source, f *faults) (name string) {
	if normal, err := NormalName(n.Name); err != nil {
		f.add("name", err)
		name = shorten(n.Name)
	} else {
		n.Name, name = normal, normal
	}
	checkLabel(f, "tenant", n.Tenant)
	normalizeUpstreams(n, src, f)
	n.LoadBalancing = oneOf(f, "load_balancing", n.LoadBalancing, First, Random, LeastConn, IPHash)
	if n.HealthCheck != nil {
		normalizeHealthCheck(n, f)
	}
	n.ProxyProtocol = oneOf(f, "proxy_protocol", n.ProxyProtocol, ProxyOff, ProxyV1, ProxyV2)
	n.PostQuantum = oneOf(f, "post_quantum", n.PostQuantum, Prefer, Require, Off)
	normalizeALPN(n, f)

	mark := f.enter("certificate")
	normalizeCertificate(&n.Certificate, strings.HasPrefix(n.Name, "*."), src, f)
	f.leave(mark)

	if n.MaxConnections < 0 {
		f.addf("max_connections", "is %d; give 0 for no limit, or a positive number", n.MaxConnections)
	}
	return name
}

func normalizeUpstreams(n *Domain, src Source, f *faults) {
	if len(n.Upstreams) == 0 {
		f.addf("upstreams", `is missing; give at least one, such as [{"dial":"10.0.0.5:8443"}]`)
	}
	if len(n.Upstreams) > MaxUpstreams {
		f.addf("upstreams", "has %d entries; at most %d are allowed", len(n.Upstreams), MaxUpstreams)
		return
	}
	list := f.enter("upstreams")
	defer f.leave(list)
	for i := range n.Upstreams {
		mark := f.index(i)
		normalizeUpstream(&n.Upstreams[i], n.Upstreams[:i], src, f)
		f.leave(mark)
	}
}

// normalizeUpstream does one upstream; before are those listed before it, done already.
func normalizeUpstream(u *Upstream, before []Upstream, src Source, f *faults) {
	if dial, err := normalDial(u.Dial, src); err != nil {
		f.add("dial", err)
	} else {
		u.Dial = dial
		if i := slices.IndexFunc(before, func(b Upstream) bool { return b.Dial == dial }); i >= 0 {
			f.addf("dial", "%s is the address of upstreams[%d] too; list it once", quote(dial), i)
		}
	}
	checkLabel(f, "region", u.Region)
	if u.TLS == nil {
		return
	}
	mark := f.enter("tls")
	defer f.leave(mark)
	t := u.TLS
	if t.ServerName != "" {
		if name, err := normalServerName(t.ServerName); err != nil {
			f.add("server_name", err)
		} else {
			t.ServerName = name
		}
	}
	if t.CAPEM != "" {
		if !utf8.ValidString(t.CAPEM) { // around the blocks, where anything may stand
			f.addf("ca_pem", "is not text; give PEM, which begins with -----BEGIN")
		} else if _, err := certificates([]byte(t.CAPEM)); err != nil {
			f.add("ca_pem", err)
		}
	}
	if t.CAFile != "" {
		checkFile(f, "ca_file", "ca_pem", t.CAFile, src)
		if t.CAPEM != "" {
			f.addf("ca_file", "is given beside ca_pem; keep one of them")
		}
	}
	t.PostQuantum = oneOf(f, "post_quantum", t.PostQuantum, Prefer, Require, Off)
}

// acmeALPN is the protocol of TLS-ALPN-01 (RFC 8737 section 6.2). Whoever answers it can obtain a
// certificate for the name, so it is not for tenants to offer.
const acmeALPN = "acme-tls/1"

func normalizeALPN(n *Domain, f *faults) {
	if len(n.ALPN) == 0 {
		n.ALPN = nil
		return
	}
	if len(n.ALPN) > MaxALPN {
		f.addf("alpn", "has %d names; at most %d are allowed", len(n.ALPN), MaxALPN)
		return
	}
	list := f.enter("alpn")
	defer f.leave(list)
	for i, name := range n.ALPN {
		mark := f.index(i)
		switch {
		case name == "" || len(name) > 255: // RFC 7301 section 3.1: ProtocolName<1..2^8-1>
			f.addf("", "has %d bytes; a protocol name has 1 to 255", len(name))
		case !utf8.ValidString(name):
			f.addf("", "is not UTF-8 text, so no JSON can carry it; leave it out")
		case name == acmeALPN:
			f.addf("", "%s is for the validation of certificates alone (RFC 8737), and whoever answers it can obtain one for the name; remove it", acmeALPN)
		case slices.Contains(n.ALPN[:i], name):
			f.addf("", "%s is listed twice; keep one", quote(name))
		}
		f.leave(mark)
	}
}

func normalizeCertificate(c *Certificate, wildcard bool, src Source, f *faults) {
	known := len(f.list)
	c.Source = oneOf(f, "source", c.Source, ACME, Internal, BYOC)
	if len(f.list) == known {
		if wildcard && c.Source == ACME {
			f.addf("source", "is acme, which cannot prove a wildcard over HTTP; give byoc with a pair, or internal")
		}
		checkPairFields(c, src, f)
	}
	if c.ChainFile != "" {
		checkFile(f, "chain_file", "chain_pem", c.ChainFile, src)
	}
	if c.KeyFile != "" {
		checkFile(f, "key_file", "key_pem", c.KeyFile, src)
	}
	for _, pem := range []struct{ key, text string }{{"chain_pem", c.ChainPEM}, {"key_pem", c.KeyPEM}} {
		if !utf8.ValidString(pem.text) {
			f.addf(pem.key, "is not text; give PEM, which begins with -----BEGIN")
		}
	}
	c.Fallback = oneOf(f, "fallback", c.Fallback, FallbackNone, FallbackACME)
	if c.Fallback != FallbackACME {
		return
	}
	if c.Source == ACME || c.Source == Internal {
		f.addf("fallback", "is acme, which is for source byoc alone; leave it out")
	} else if wildcard {
		f.addf("fallback", "is acme, which cannot prove a wildcard over HTTP; leave it out")
	}
}

// checkPairFields checks which of the four fields of a pair are set: all of one kind for byoc, none else.
func checkPairFields(c *Certificate, src Source, f *faults) {
	fields := []struct{ key, value string }{
		{"chain_pem", c.ChainPEM}, {"key_pem", c.KeyPEM}, {"chain_file", c.ChainFile}, {"key_file", c.KeyFile},
	}
	if c.Source != BYOC {
		for _, field := range fields {
			if field.value != "" {
				f.addf(field.key, "is for source byoc alone, and the source is %s; set source to byoc or leave it out", c.Source)
			}
		}
		return
	}
	pem, file := c.ChainPEM+c.KeyPEM != "", c.ChainFile+c.KeyFile != ""
	for i := range 2 {
		asPEM, asFile := fields[i], fields[i+2]
		switch {
		case asPEM.value == "" && asFile.value == "":
			missing := asPEM.key
			if file && !pem && src == Static {
				missing = asFile.key
			}
			f.addf(missing, "is missing; byoc needs a certificate chain and its key")
		case pem && asFile.value != "":
			f.addf(asFile.key, "is given beside a PEM text; give chain and key both as PEM texts or both as files")
		}
	}
}

// checkFile checks a field that names a file; instead is the field for the file's content.
func checkFile(f *faults, key, instead, path string, src Source) {
	if src != Static {
		f.addf(key, "names a file, which only the edge's own configuration may do; give the content in %s", instead)
	} else if !printable(path) {
		f.addf(key, "%s has characters that do not print; correct the path", quote(path))
	}
}

func checkLabel(f *faults, key, value string) {
	if len(value) > MaxLabel {
		f.addf(key, "has %d bytes; at most %d are allowed", len(value), MaxLabel)
	} else if !printable(value) {
		f.addf(key, "%s has characters that do not print; remove them", quote(value))
	}
}

// oneOf returns v, or first where v is empty, and reports v if it is neither first nor one of others.
func oneOf[T ~string](f *faults, key string, v, first T, others ...T) T {
	if v == "" {
		return first
	}
	if v != first && !slices.Contains(others, v) {
		f.add(key, wrongChoice(v, first, others))
	}
	return v
}

func wrongChoice[T ~string](v, first T, others []T) error {
	text := string(first)
	for i, o := range others {
		if i == len(others)-1 {
			text += " or " + string(o)
		} else {
			text += ", " + string(o)
		}
	}
	return errors.New(quote(string(v)) + " is unknown; give " + text)
}
