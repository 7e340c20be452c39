package caddytest

import (
	"crypto/tls"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestChromium has a browser load a page through the proxy over HTTP/2, and shows from both sides that
// the key exchange was X25519MLKEM768: by Chromium's own network log and by the proxy's record.
func TestChromium(t *testing.T) {
	const name = "app.example.com"
	ca := newAuthority(t)
	nginx := startNginx(t, ca.files(t, upstreamName))
	cert := ca.files(t, name)
	p := startProxy(t, domainBlock(name, tlsUpstream(nginx, ca), "proxy_protocol v1", "post_quantum require", certificate(cert)))

	home := t.TempDir()
	netLog := filepath.Join(home, "net-log.json")
	page := run(t, []string{"HOME=" + home}, "", peer(t, "chromium"),
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
		"--user-data-dir="+filepath.Join(home, "profile"),
		// Trust without a certificate store, and names without DNS.
		"--ignore-certificate-errors-spki-list="+cert.pin,
		"--host-resolver-rules=MAP "+name+" "+p.addr+", MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
		"--log-net-log="+netLog, "--dump-dom", "https://"+name+"/")

	// The page is nginx's JSON, which Chromium shows inside an element.
	_, body, _ := strings.Cut(page, "{")
	body, _, _ = strings.Cut(body, "}")
	a := reply{Body: "{" + body + "}"}.answer(t)
	want := answer{Server: "nginx", ClientIP: "127.0.0.1", ClientPort: a.ClientPort, Protocol: "HTTP/2.0", TLS: "TLSv1.3", ServerName: upstreamName}
	if a != want {
		t.Errorf("the page says\n%+v, want\n%+v", a, want)
	}

	handshakes := tlsHandshakes(t, netLog)
	if len(handshakes) == 0 {
		t.Error("Chromium's log has no TLS handshake")
	}
	for _, h := range handshakes {
		if want := (tlsHandshake{Group: tls.X25519MLKEM768, Protocol: "h2", Version: "TLS 1.3"}); h != want {
			t.Errorf("Chromium's log says %+v, want %+v", h, want)
		}
	}

	r := p.recordOf(t, name, a.ClientPort)
	wantRecord := record{
		ID: r.ID, ServerName: name, Domain: name, ClientIP: "127.0.0.1", ClientPort: a.ClientPort,
		TLSVersion: "TLS 1.3", Group: hybrid, PostQuantum: true, OfferedPostQuantum: true, ALPN: "h2", Upstream: nginx, UpstreamGroup: upstreamGroup,
		ProxyProtocol: "v1", BytesIn: r.BytesIn, BytesOut: r.BytesOut, ClosedBy: r.ClosedBy, EndReason: r.EndReason, Error: r.Error,
	}
	if r != wantRecord {
		t.Errorf("the record is\n%+v, want\n%+v", r, wantRecord)
	}
}

// tlsHandshake is a finished handshake as Chromium's network log tells it.
type tlsHandshake struct {
	Group    tls.CurveID `json:"key_exchange_group"`
	Protocol string      `json:"next_proto"`
	Version  string      `json:"version"`
}

// tlsHandshakes reads the handshakes that came to an end with a result from a network log: the ends of
// its SSL_CONNECT events. A log names its event types once and then uses numbers.
func tlsHandshakes(t *testing.T, file string) []tlsHandshake {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var log struct {
		Constants struct {
			Types  map[string]int `json:"logEventTypes"`
			Phases map[string]int `json:"logEventPhase"`
		} `json:"constants"`
		Events []struct {
			Type   int             `json:"type"`
			Phase  int             `json:"phase"`
			Params json.RawMessage `json:"params"`
		} `json:"events"`
	}
	if err := json.Unmarshal(raw, &log); err != nil {
		t.Fatal(err)
	}
	sslConnect, ok := log.Constants.Types["SSL_CONNECT"]
	if !ok {
		t.Fatal("Chromium's log knows no SSL_CONNECT")
	}
	var list []tlsHandshake
	for _, event := range log.Events {
		if event.Type != sslConnect || event.Phase != log.Constants.Phases["PHASE_END"] {
			continue
		}
		var h tlsHandshake
		if err := json.Unmarshal(event.Params, &h); err != nil {
			t.Fatalf("%v in %s", err, event.Params)
		}
		list = append(list, h)
	}
	return list
}
