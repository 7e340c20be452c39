package domain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// FuzzParse: whatever is accepted is in normal form, which JSON carries unchanged whoever writes it, and
// printing it never shows the key. Whatever is refused has faults.
func FuzzParse(f *testing.F) {
	for _, check := range []string{`{}`, `{"type":"tls","interval":"1h","timeout":"1.5s","rise":100,"fall":1}`, `{"interval":10,"type":null}`} {
		f.Add([]byte(checked(check, "t")), false)
		f.Add([]byte(checked(check, "t-")), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, static bool) {
		src := Remote
		if static {
			src = Static
		}
		d, err := Parse(data, src)
		if err != nil {
			if d != nil || len(Errors(err)) == 0 || len(err.Error()) > maxFaults*2048 {
				t.Fatalf("refused with %v, %d faults, %d bytes of text", d, len(Errors(err)), len(err.Error()))
			}
			return
		}
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		appended := d.AppendJSON(nil)
		for _, text := range [][]byte{text, appended} {
			again, err := Parse(text, src)
			if err != nil {
				t.Fatalf("normal form %s is refused: %v", text, err)
			}
			if !reflect.DeepEqual(again, d) {
				t.Fatalf("normal form changes from %#v to %#v", *d, *again)
			}
		}
		if !bytes.HasPrefix(appended, []byte(`{"name":"`+d.Name+`"`)) {
			t.Fatalf("%s does not begin with the name", appended)
		}
		checkAppend(t, d)
		if strings.HasPrefix(d.Name, "*.") && d.Certificate.Source == ACME {
			t.Fatalf("wildcard %s with a certificate from ACME", d.Name)
		}
		if host, ok := NormalHost(strings.TrimPrefix(d.Name, "*.")); !ok || "*."+host != d.Name && host != d.Name {
			t.Fatalf("a ClientHello cannot ask for %q", d.Name)
		}
		const key = "the key, which is in no seed"
		d.Certificate.KeyPEM = key
		if shown := fmt.Sprintf("%v %+v %#v %d", d, *d, d.Certificate, d.Certificate); strings.Contains(shown, key) {
			t.Fatalf("the key is shown: %s", shown)
		}
	})
}

// FuzzNormalHost: a name accepted from a ClientHello is in lower case, stays as it is, and, unless it
// claims to be an A-label, is what NormalName makes of it. What NormalName makes of any name stays as it is.
// Addresses are told from names as netip does.
func FuzzNormalHost(f *testing.F) {
	for _, addr := range []string{"10.0.0.1", "1.2.3.", "::", "::ffff:10.0.0.1", "fe80::1%eth0", "[::1]", "2001:db8::g"} {
		f.Add(addr)
	}
	f.Fuzz(func(t *testing.T, sni string) {
		addr, addrErr := netip.ParseAddr(sni)
		if got, ok := parseAddr(sni); got != addr || ok != (addrErr == nil) {
			t.Fatalf("parseAddr reads %q as %v, %t; netip as %v, %v", sni, got, ok, addr, addrErr)
		}
		host, ok := NormalHost(sni)
		name, err := NormalName(sni)
		if err == nil {
			if again, err := NormalName(name); err != nil || again != name {
				t.Fatalf("normal form %q of %q becomes %q, %v", name, sni, again, err)
			}
		}
		if !ok {
			if host != "" {
				t.Fatalf("refused, but returned %q", host)
			}
			if err == nil && !strings.HasPrefix(name, "*.") {
				if again, ok := NormalHost(name); !ok || again != name {
					t.Fatalf("no ClientHello can ask for %q, made of %q", name, sni)
				}
			}
			return
		}
		if !strings.EqualFold(host, sni) || host != strings.ToLower(host) {
			t.Fatalf("%q became %q", sni, host)
		}
		if again, ok := NormalHost(host); !ok || again != host {
			t.Fatalf("%q changes to %q, %v", host, again, ok)
		}
		if !needsIDNA(host) && (err != nil || name != host) {
			t.Fatalf("NormalName makes %q, %v of %q", name, err, host)
		}
		if wildcard, ok := WildcardOf(host); ok {
			if n, err := NormalName(wildcard); !needsIDNA(host) && len(wildcard) <= maxName && (err != nil || n != wildcard) {
				t.Fatalf("wildcard %q of %q is %q, %v", wildcard, host, n, err)
			}
		}
	})
}

// FuzzCheckPair: no PEM text makes it panic, and a pair is returned or faults are, never both.
func FuzzCheckPair(f *testing.F) {
	within := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC) // the validity of the pair in the corpus
	f.Fuzz(func(t *testing.T, chain, key []byte, name string) {
		cert, _, err := CheckPair(chain, key, name, within)
		if (cert == nil) != (len(Errors(err)) > 0) || cert != nil && cert.Leaf == nil {
			t.Fatalf("returned %v with %v", cert, err)
		}
	})
}
