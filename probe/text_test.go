package probe

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

func TestWriteText(t *testing.T) {
	for name, result := range golden() {
		t.Run(name, func(t *testing.T) {
			var text bytes.Buffer
			if err := result.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			compare(t, name+".txt", text.Bytes())
		})
	}
}

// The keys are what scripts and the API rely on.
func TestResultJSON(t *testing.T) {
	for _, name := range []string{"yes", "refused"} {
		got, err := json.MarshalIndent(golden()[name], "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		compare(t, name+".json", append(got, '\n'))
	}
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", file)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s, got:\n%s\nwant (-update rewrites it):\n%s", path, got, want)
	}
}

func golden() map[string]*Result {
	base := func() *Result {
		r := newResult("app.example.com:443", "app.example.com")
		r.RemoteIP = "203.0.113.10"
		r.TLSVersion, r.CipherSuite = "TLS 1.3", "TLS_AES_128_GCM_SHA256"
		r.Group, r.PostQuantum = "X25519MLKEM768", true
		r.OfferedGroups = []string{"X25519MLKEM768", "X25519", "CurveP256"}
		r.ALPN = "h2"
		r.Timings = Timings{DNS: 0.0123, Connect: 0.0201, Handshake: 0.041733, Total: 0.074133}
		r.ChainOK = true
		r.Chain = []Certificate{
			{
				Subject: "CN=app.example.com", Issuer: "CN=Example Intermediate,O=Example,C=US",
				Names:     []string{"app.example.com", "a.example.com", "b.example.com", "c.example.com", "d.example.com", "e.example.com", "203.0.113.10"},
				NotBefore: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC),
				KeyType: "ECDSA P-256", SHA256: strings.Repeat("0123456789abcdef", 4),
			},
			{
				Subject: "CN=Example Intermediate,O=Example,C=US", Issuer: "CN=Example Root,O=Example,C=US",
				Names:     []string{},
				NotBefore: time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2034, 1, 1, 0, 0, 0, 0, time.UTC),
				KeyType: "RSA 2048", SHA256: strings.Repeat("fedcba9876543210", 4),
			},
		}
		return r
	}
	with := func(change func(*Result)) *Result {
		r := base()
		r.Chain = r.Chain[:1]
		change(r)
		return r
	}
	failed := func(stage Stage, message string) *Result {
		r := newResult("app.example.com:443", "app.example.com")
		r.Stage, r.Error = stage, message
		r.Timings = Timings{DNS: 0.001, Total: 0.001}
		return r
	}
	return map[string]*Result{
		"yes":   base(),
		"retry": with(func(r *Result) { r.Group, r.HelloRetryRequest, r.ALPN = "SecP384r1MLKEM1024", true, "" }),
		"no":    with(func(r *Result) { r.Group, r.PostQuantum = "X25519", false }),
		"tls12": with(func(r *Result) {
			r.TLSVersion, r.CipherSuite = "TLS 1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
			r.Group, r.PostQuantum = "CurveP256", false
		}),
		"tls12_rsa": with(func(r *Result) {
			r.TLSVersion, r.CipherSuite = "TLS 1.2", "TLS_RSA_WITH_AES_128_GCM_SHA256"
			r.Group, r.PostQuantum = "", false
		}),
		"not_offered": with(func(r *Result) {
			r.Group, r.PostQuantum = "X25519", false
			r.OfferedGroups = []string{"X25519", "CurveP256"}
		}),
		"untrusted": with(func(r *Result) {
			r.ChainOK, r.ChainError = false, "x509: certificate signed by unknown authority"
			r.Chain[0].Subject = ""
		}),
		"unresolved": failed(StageDNS, "lookup app.example.com: no such host"),
		"refused":    failed(StageConnect, "dial tcp 203.0.113.10:443: connect: connection refused"),
		"not_tls": failed(StageHandshake,
			`the server's answer is not TLS (record header "HTTP/"): tls: first record does not look like a TLS handshake`),
		"invalid": failed("", `address "app.example.com:0": port "0": want a number from 1 to 65535`),
	}
}
