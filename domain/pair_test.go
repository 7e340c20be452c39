package domain

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// authority is a certificate with its key, which may sign others.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newKey(t testing.TB) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// template returns a certificate that is valid around now; names make it a leaf, none a CA.
func template(subject string, names ...string) *x509.Certificate {
	c := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: subject},
		NotBefore:             now.AddDate(0, -1, 0),
		NotAfter:              now.AddDate(0, 1, 0),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		DNSNames:              names,
	}
	if len(names) == 0 {
		c.IsCA = true
		c.KeyUsage |= x509.KeyUsageCertSign
	} else {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	return c
}

// issue signs a certificate; issuer nil means self-signed.
func issue(t testing.TB, issuer *authority, c *x509.Certificate, key crypto.Signer) *authority {
	t.Helper()
	if key == nil {
		key = newKey(t)
	}
	if issuer == nil {
		issuer = &authority{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer.cert, key.Public(), issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func encodeCerts(list ...*authority) (text []byte) {
	for _, a := range list {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	return text
}

func encodeKey(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func testCertificatePEM(t testing.TB) string {
	return string(encodeCerts(issue(t, nil, template("CA"), nil)))
}

// rsaKey returns one RSA key per size for all tests, since making one takes long.
func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	rsaKeys.Lock()
	defer rsaKeys.Unlock()
	if rsaKeys.bySize[bits] == nil {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		rsaKeys.bySize[bits] = key
	}
	return rsaKeys.bySize[bits]
}

var rsaKeys = struct {
	sync.Mutex
	bySize map[int]*rsa.PrivateKey
}{bySize: map[int]*rsa.PrivateKey{}}

// withSHA1 returns a, which an RSA key signed with SHA-256, signed with SHA-1 by the same key: x509 no
// longer does that.
func withSHA1(t *testing.T, issuer, a *authority) *authority {
	t.Helper()
	// sha256WithRSAEncryption and sha1WithRSAEncryption (RFC 8017 appendix A.2.4) differ in the last byte.
	oid := func(last byte) []byte { return []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, last} }
	var cert struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(bytes.ReplaceAll(a.cert.Raw, oid(11), oid(5)), &cert); err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(cert.TBS.FullBytes)
	signature, err := rsa.SignPKCS1v15(nil, issuer.key.(*rsa.PrivateKey), crypto.SHA1, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	cert.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	der, err := asn1.Marshal(cert)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{parsed, a.key}
}

func TestCheckPairAccepts(t *testing.T) {
	root := issue(t, nil, template("root"), nil)
	middle := issue(t, root, template("middle"), nil)
	leaf := issue(t, middle, template("leaf", "app.example.com", "*.example.com"), nil)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048 := rsaKey(t, 2048)
	rsaLeaf := issue(t, middle, template("leaf", "app.example.com"), rsa2048)
	edLeaf := issue(t, middle, template("leaf", "app.example.com"), edKey)
	oldRoot := issue(t, nil, template("old"), rsa2048)
	byOld := issue(t, oldRoot, template("leaf", "app.example.com"), nil)
	anyTemplate := template("leaf", "app.example.com")
	anyTemplate.ExtKeyUsage, anyTemplate.KeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, 0
	expiredTemplate := template("expired root")
	expiredTemplate.NotAfter = now.AddDate(0, 0, -1)
	expiredRoot := issue(t, nil, expiredTemplate, nil)

	sec1, err := x509.MarshalECPrivateKey(leaf.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	ecText := append([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...)
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsa2048)})
	self := issue(t, nil, template("self", "app.example.com"), nil)
	anyLeaf := issue(t, middle, anyTemplate, nil)
	upper := issue(t, middle, template("leaf", "APP.Example.com"), nil)
	byExpired := issue(t, expiredRoot, template("leaf", "app.example.com"), nil)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf384 := issue(t, middle, template("leaf", "app.example.com"), p384)
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf521 := issue(t, middle, template("leaf", "app.example.com"), p521)
	publishing := func(issuer *authority) *authority {
		c := template("leaf", "app.example.com")
		c.IssuingCertificateURL = []string{"http://ca.example.net/issuer.der"}
		return issue(t, issuer, c, nil)
	}
	known := x509.NewCertPool() // root; nobody knows of lonely
	known.AddCert(root.cert)
	lonely := issue(t, nil, template("lonely"), nil)
	lonelyMiddle := issue(t, lonely, template("lonely middle"), nil)
	byMiddle, byRoot, byLonely, byLonelyMiddle := publishing(middle), publishing(root), publishing(lonely), publishing(lonelyMiddle)
	bound := func(change func(*x509.Certificate)) *authority {
		c := template("bound")
		change(c)
		return issue(t, root, c, nil)
	}
	elsewhere := bound(func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} })
	byElsewhere := issue(t, elsewhere, template("leaf", "app.example.com"), nil)
	mail := bound(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} })
	byMail := issue(t, mail, template("leaf", "app.example.com"), nil)
	shallow := bound(func(c *x509.Certificate) { c.MaxPathLenZero = true })
	below := issue(t, shallow, template("below"), nil)
	byBelow := issue(t, below, template("leaf", "app.example.com"), nil)
	strangeTemplate := template("leaf", "app.example.com")
	strangeTemplate.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
	strange := issue(t, middle, strangeTemplate, nil)

	tests := []struct {
		name    string
		chain   []byte
		key     []byte
		domain  string
		warning string // parts of the warnings, between semicolons; empty: none
	}{
		{"chain", encodeCerts(leaf, middle), encodeKey(t, leaf.key), "app.example.com", ""},
		{"covered by wildcard", encodeCerts(leaf, middle), encodeKey(t, leaf.key), "other.example.com", ""},
		{"wildcard domain", encodeCerts(leaf, middle), encodeKey(t, leaf.key), "*.example.com", ""},
		{"name not in normal form", encodeCerts(leaf, middle), encodeKey(t, leaf.key), "APP.example.com.", ""},
		{"upper case in certificate", encodeCerts(upper, middle), encodeKey(t, upper.key), "app.example.com", ""},
		{"SEC 1 with parameters", encodeCerts(leaf, middle), ecText, "app.example.com", ""},
		{"text around", slices.Concat([]byte("leaf:\n"), encodeCerts(leaf), []byte("middle:\r\n"), encodeCerts(middle), []byte("\n")), encodeKey(t, leaf.key), "app.example.com", ""},
		{"certificate beside the key", encodeCerts(leaf, middle), append(encodeCerts(leaf), encodeKey(t, leaf.key)...), "app.example.com", ""},
		{"PKCS #1", encodeCerts(rsaLeaf, middle), pkcs1, "app.example.com", ""},
		{"Ed25519", encodeCerts(edLeaf, middle), encodeKey(t, edKey), "app.example.com", "the key is Ed25519"},
		{"P-521", encodeCerts(leaf521, middle), encodeKey(t, p521), "app.example.com", "the key is P-521"},
		{"P-384", encodeCerts(leaf384, middle), encodeKey(t, p384), "app.example.com", ""},
		{"any usage", encodeCerts(anyLeaf, middle), encodeKey(t, anyLeaf.key), "app.example.com", ""},
		{"with root", encodeCerts(leaf, middle, root), encodeKey(t, leaf.key), "app.example.com", "is a root"},
		{"with expired root", encodeCerts(byExpired, expiredRoot), encodeKey(t, byExpired.key), "app.example.com", "is a root"},
		{"with SHA-1 root", encodeCerts(byOld, withSHA1(t, oldRoot, oldRoot)), encodeKey(t, byOld.key), "app.example.com", "is a root"},
		{"leaf alone", encodeCerts(byMiddle), encodeKey(t, byMiddle.key), "app.example.com", "only the certificate itself"},
		{"leaf alone, of a private CA", encodeCerts(leaf), encodeKey(t, leaf.key), "app.example.com", ""},
		{"leaf alone, of a known root", encodeCerts(byRoot), encodeKey(t, byRoot.key), "app.example.com", ""},
		{"leaf alone, of a root that nobody knows", encodeCerts(byLonely), encodeKey(t, byLonely.key), "app.example.com", "only the certificate itself"},
		{"chain to a known root", encodeCerts(byMiddle, middle), encodeKey(t, byMiddle.key), "app.example.com", ""},
		{"chain to a root that nobody knows", encodeCerts(byLonelyMiddle, lonelyMiddle), encodeKey(t, byLonelyMiddle.key), "app.example.com", `in certificate 2, whose issuer "CN=lonely" is no root`},
		{"name constraints", encodeCerts(byElsewhere, elsewhere), encodeKey(t, byElsewhere.key), "app.example.com", "clients will probably refuse the chain"},
		{"issuer of mail certificates", encodeCerts(byMail, mail), encodeKey(t, byMail.key), "app.example.com", "clients will probably refuse the chain"},
		{"path length", encodeCerts(byBelow, below, shallow, root), encodeKey(t, byBelow.key), "app.example.com", "is a root; clients will probably refuse the chain"},
		{"critical extension that nobody knows", encodeCerts(strange, middle), encodeKey(t, strange.key), "app.example.com", "clients will probably refuse the chain"},
		{"self-signed", encodeCerts(self), encodeKey(t, self.key), "app.example.com", "self-signed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert, warnings, err := checkPair(tt.chain, tt.key, tt.domain, now, known)
			if err != nil {
				t.Fatal(err)
			}
			if cert.Leaf == nil || !bytes.Equal(cert.Leaf.Raw, cert.Certificate[0]) || cert.PrivateKey == nil {
				t.Errorf("certificate is not complete: %v", cert.Leaf)
			}
			if got := bytes.Count(tt.chain, []byte("BEGIN CERT")); len(cert.Certificate) != got {
				t.Errorf("%d certificates, want %d", len(cert.Certificate), got)
			}
			wanted := strings.Split(tt.warning, "; ")
			if tt.warning == "" {
				wanted = nil
			}
			if len(warnings) != len(wanted) {
				t.Fatalf("warnings %q, want %q", warnings, tt.warning)
			}
			for i, want := range wanted {
				if !strings.Contains(warnings[i], want) || !strings.HasPrefix(warnings[i], "certificate.chain_pem: ") {
					t.Errorf("warning %q, want %q", warnings[i], want)
				}
			}
		})
	}
}

func TestCheckPairRefuses(t *testing.T) {
	root := issue(t, nil, template("root"), nil)
	middle := issue(t, root, template("middle"), nil)
	rsa2048 := rsaKey(t, 2048)
	rsaCA := issue(t, nil, template("rsa"), rsa2048)

	// leafWith issues a leaf after change has been made to its template, which is valid otherwise.
	leafWith := func(issuer *authority, key crypto.Signer, change func(c *x509.Certificate)) *authority {
		c := template("leaf", "app.example.com")
		if change != nil {
			change(c)
		}
		return issue(t, issuer, c, key)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafWith(middle, nil, nil)
	key := encodeKey(t, leaf.key)
	chain := encodeCerts(leaf, middle)

	type change = func(c *x509.Certificate)
	with := func(ch change) (chain, key []byte) {
		l := leafWith(middle, nil, ch)
		return encodeCerts(l, middle), encodeKey(t, l.key)
	}
	expired, expiredKey := with(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	future, futureKey := with(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) })
	ca, caKey := with(func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign })
	client, clientKey := with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	unknownUsage, unknownUsageKey := with(func(c *x509.Certificate) {
		c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
	})
	noSign, noSignKey := with(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
	noNames, noNamesKey := with(func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, "app.example.com" })
	wildcard, wildcardKey := with(func(c *x509.Certificate) { c.DNSNames = []string{"*.example.com"} })
	partial, partialKey := with(func(c *x509.Certificate) { c.DNSNames = []string{"a*.example.com", "*"} })
	many, manyKey := with(func(c *x509.Certificate) { c.DNSNames = strings.Split("a,b,c,d,e,f,g", ",") })
	old := issue(t, root, func() *x509.Certificate { c := template("middle"); c.NotAfter = now.Add(-time.Hour); return c }(), middle.key)
	otherMiddle := issue(t, root, template("middle"), nil) // the same subject, another key
	byRSA := leafWith(rsaCA, nil, nil)
	weakRSA := leafWith(middle, rsaKey(t, 1024), nil)
	weakCurve := leafWith(middle, p224, nil)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
	legacy := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x")})
	long := encodeCerts(slices.Repeat([]*authority{leaf}, maxChain+1)...)

	const chainField, keyField = "certificate.chain_pem", "certificate.key_pem"
	tests := []struct {
		name       string
		chain, key []byte
		domain     string
		want       []string // field: part of the text
	}{
		{"nothing", nil, nil, "app.example.com", []string{chainField + ": holds no certificate", keyField + ": holds no private key"}},
		{"DER", leaf.cert.Raw, []byte{0x30, 0}, "app.example.com", []string{chainField + ": holds no certificate", keyField + ": holds no private key"}},
		{"bad name", chain, key, "*", []string{"name: wildcard"}},
		{"damaged chain", append(slices.Clone(chain), "-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"...), key, "app.example.com", []string{chainField + ": has 3 PEM blocks, of which 2"}},
		{"cut chain", chain[:len(chain)-30], key, "app.example.com", []string{chainField + ": has 2 PEM blocks, of which 1"}},
		{"garbage in a block", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), key, "app.example.com", []string{chainField + ": certificate 1 cannot be read"}},
		{"key in the chain", append(slices.Clone(chain), key...), key, "app.example.com", []string{chainField + ": holds a private key"}},
		{"request in the chain", append(slices.Clone(chain), "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"...), key, "app.example.com", []string{chainField + ": CERTIFICATE REQUEST"}},
		{"too long", long, key, "app.example.com", []string{chainField + ": holds 17 certificates"}},
		{"encrypted key", chain, encrypted, "app.example.com", []string{keyField + ": is encrypted"}},
		{"encrypted key, old format", chain, legacy, "app.example.com", []string{keyField + ": is encrypted"}},
		{"damaged key", chain, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "app.example.com", []string{keyField + ": cannot be read"}},
		{"OpenSSH key", chain, []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"), "app.example.com", []string{keyField + ": format"}},
		{"two keys", chain, append(slices.Clone(key), key...), "app.example.com", []string{keyField + ": more than one"}},
		{"key that cannot sign", chain, encodeKey(t, x25519), "app.example.com", []string{keyField + ": cannot sign"}},
		{"other key", chain, encodeKey(t, newKey(t)), "app.example.com", []string{keyField + ": does not belong"}},
		{"key of the intermediate", chain, encodeKey(t, middle.key), "app.example.com", []string{keyField + ": belongs to certificate 2"}},
		{"expired", expired, expiredKey, "app.example.com", []string{chainField + ": certificate 1 ended at 2026-03-01T11:59:59Z"}},
		{"not yet valid", future, futureKey, "app.example.com", []string{chainField + ": certificate 1 is valid from 2026-03-01T12:00:01Z"}},
		{"expired intermediate", encodeCerts(leaf, old), key, "app.example.com", []string{chainField + ": certificate 2 ended"}},
		{"other name", chain, key, "b.example.com", []string{chainField + `: does not cover "b.example.com" but "app.example.com"`}},
		{"two labels", wildcard, wildcardKey, "a.b.example.com", []string{chainField + ": does not cover"}},
		{"wildcard over itself", wildcard, wildcardKey, "example.com", []string{chainField + ": does not cover"}},
		{"wildcard of part of a label", partial, partialKey, "app.example.com", []string{chainField + ": does not cover"}},
		{"exact for wildcard", chain, key, "*.example.com", []string{chainField + ": does not cover"}},
		{"many names", many, manyKey, "app.example.com", []string{chainField + `: "e" and 2 more`}},
		{"no names", noNames, noNamesKey, "app.example.com", []string{chainField + ": has no host name"}},
		{"CA", ca, caKey, "app.example.com", []string{chainField + ": certificate 1 is a CA"}},
		{"client certificate", client, clientKey, "app.example.com", []string{chainField + ": serverAuth"}},
		{"unknown usage", unknownUsage, unknownUsageKey, "app.example.com", []string{chainField + ": serverAuth"}},
		{"may not sign", noSign, noSignKey, "app.example.com", []string{chainField + ": digitalSignature"}},
		{"weak RSA", encodeCerts(weakRSA, middle), encodeKey(t, weakRSA.key), "app.example.com", []string{chainField + ": RSA key of 1024 bits"}},
		{"weak curve", encodeCerts(weakCurve, middle), encodeKey(t, p224), "app.example.com", []string{chainField + ": P-224"}},
		{"weak signature", encodeCerts(withSHA1(t, rsaCA, byRSA), rsaCA), encodeKey(t, byRSA.key), "app.example.com", []string{chainField + ": SHA1-RSA"}},
		{"leaf twice", encodeCerts(leaf, leaf, middle), key, "app.example.com", []string{chainField + ": certificate 2 is certificate 1 again"}},
		{"wrong order", encodeCerts(leaf, root, middle), key, "app.example.com", []string{
			chainField + `: certificate 1 was issued by "CN=middle", but certificate 2 is of "CN=root"`,
			chainField + `: certificate 2 was issued by "CN=root", but certificate 3 is of "CN=middle"`,
		}},
		{"another intermediate of that name", encodeCerts(leaf, otherMiddle), key, "app.example.com", []string{chainField + ": certificate 1 is not signed by certificate 2"}},
		{"leaf last", encodeCerts(middle, leaf), key, "app.example.com", []string{
			chainField + ": certificate 1 is a CA", chainField + ": has no host name", chainField + ": certificate 1 was issued by", keyField + ": belongs to certificate 2",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cert, _, err := CheckPair(tt.chain, tt.key, tt.domain, now)
			if cert != nil {
				t.Error("a refused pair was returned")
			}
			list := Errors(err)
			if len(list) != len(tt.want) {
				t.Fatalf("%d faults, want %d: %v", len(list), len(tt.want), err)
			}
			for i, want := range tt.want {
				field, text, _ := strings.Cut(want, ": ")
				if list[i].Field != field || !strings.Contains(list[i].Err.Error(), text) {
					t.Errorf("fault %q of %s, want %q of %s", list[i].Err, list[i].Field, text, field)
				}
			}
			if got, want := errors.Is(err, ErrExpired), strings.Contains(tt.name, "expired"); got != want {
				t.Errorf("errors.Is(err, ErrExpired) is %v, want %v", got, want)
			}
			if got, want := errors.Is(err, ErrNotYetValid), tt.name == "not yet valid"; got != want {
				t.Errorf("errors.Is(err, ErrNotYetValid) is %v, want %v", got, want)
			}
		})
	}
}

// Without a list of roots nobody can say what a chain misses but its first issuer.
func TestCheckPairWithoutRoots(t *testing.T) {
	root := issue(t, nil, template("root"), nil)
	middle := issue(t, root, template("middle"), nil)
	c := template("leaf", "app.example.com")
	c.IssuingCertificateURL = []string{"http://ca.example.net/issuer.der"}
	leaf := issue(t, middle, c, nil)
	for _, tt := range []struct {
		chain []byte
		want  int
	}{{encodeCerts(leaf), 1}, {encodeCerts(leaf, middle), 0}} {
		if _, warnings, err := checkPair(tt.chain, encodeKey(t, leaf.key), "app.example.com", now, nil); err != nil || len(warnings) != tt.want {
			t.Errorf("%v, warnings %q, want %d", err, warnings, tt.want)
		}
	}
}

// Base64 of any key, cut anywhere: no error may hold a piece of it.
func TestCheckPairHidesKey(t *testing.T) {
	leaf := issue(t, nil, template("leaf", "app.example.com"), nil)
	key := encodeKey(t, leaf.key)
	lines := strings.Split(string(key), "\n")
	for _, in := range []string{string(key), string(key[:len(key)-40]), strings.ReplaceAll(string(key), "\n", " "), lines[1], "-----BEGIN X-----\n" + lines[1] + "\n-----END X-----\n"} {
		_, warnings, err := CheckPair([]byte(in), []byte(in[:len(in)/2]), in, now)
		if err == nil {
			t.Fatalf("accepted %q", in)
		}
		if text := fmt.Sprintf("%+v %v", err, warnings); in != lines[1] && strings.Contains(text, lines[1][:16]) {
			t.Errorf("the key is shown: %s", text)
		}
	}
}

func TestKeyFaultOfHugeRSA(t *testing.T) {
	for bits, want := range map[int]bool{2048: false, 8192: false, 8193: true} {
		key := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), uint(bits-1)), E: 65537}
		if got := keyFault(key) != ""; got != want {
			t.Errorf("%d bits: refused is %v, want %v", bits, got, want)
		}
	}
	if keyFault("no key") == "" {
		t.Error("an unknown kind of key was accepted")
	}
}

// TestCheckPairRefusesOutsizedKeys: numbers of a million bits are refused before anything is done with them. They are no keys:
// what takes a minute is finding that out.
func TestCheckPairRefusesOutsizedKeys(t *testing.T) {
	n := make([]byte, 1_200_000/8)
	for i := range n {
		n[i] = byte(i*i) | 1
	}
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	subject := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}}
	}
	issue := func(name, parent string, public any) string {
		der, err := x509.CreateCertificate(rand.Reader, subject(name), subject(parent), public, signer)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	huge := issue("ca", "root", &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537})
	leaf := issue("a.example.com", "ca", signer.Public())
	key := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: n}))
	_, _, err = CheckPair([]byte(leaf+huge), []byte(key), "a.example.com", time.Now())
	var fields []string
	for _, fault := range Errors(err) {
		fields = append(fields, fault.Field)
	}
	if !slices.Equal(fields, []string{"certificate.chain_pem", "certificate.key_pem"}) || !strings.Contains(err.Error(), "which nobody can use") {
		t.Errorf("the faults are %v", err)
	}
	d := &Domain{Name: "a.example.com", Upstreams: []Upstream{{Dial: "192.0.2.1:443", TLS: &UpstreamTLS{CAPEM: huge}}}}
	if err := d.Normalize(Remote); err == nil || !strings.Contains(err.Error(), "ca_pem") {
		t.Errorf("as the CA of an upstream: %v", err)
	}
}
