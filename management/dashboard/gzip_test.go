package dashboard

import (
	"compress/gzip"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

func TestPagesAreCompressed(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	s.madeDomain(s.root, "shop.example.com")
	plain := b.get("/domains").want(http.StatusOK)
	for accept, packed := range map[string]bool{"gzip, deflate, br": true, "": false, "br": false, "gzip;q=0": false} {
		got := b.do("GET", "/domains", nil, http.Header{"Accept-Encoding": {accept}})
		if (got.header.Get("Content-Encoding") == "gzip") != packed || got.header.Get("Vary") != "Accept-Encoding" || got.header.Get("Content-Length") != strconv.Itoa(len(got.body)) {
			t.Errorf("%q: %v", accept, got.header)
		}
		text := got.body
		if packed {
			z, err := gzip.NewReader(strings.NewReader(got.body))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(z)
			if text = string(body); err != nil {
				t.Fatal(err)
			}
		}
		if steady(text) != steady(plain.body) {
			t.Errorf("%q: another page", accept)
		}
	}
	// The answer to a form may tell a secret.
	action, form := b.get("/keys").form("create")
	form.Set("name", "deploy")
	form.Set("scopes", "domains:read")
	if got := b.do("POST", action, form, http.Header{"Accept-Encoding": {"gzip"}}).want(http.StatusOK, "pqk_"); got.header.Get("Content-Encoding") != "" {
		t.Errorf("a page that tells a secret is compressed")
	}
	if got := b.do("HEAD", "/domains", nil, http.Header{"Accept-Encoding": {"gzip"}}); got.body != "" || got.header.Get("Content-Encoding") != "gzip" {
		t.Errorf("HEAD: %v", got.header)
	}
}
