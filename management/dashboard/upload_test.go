package dashboard

import (
	"bytes"
	"encoding/pem"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/pqproxy/caddy-pqproxy/management"
)

// upload fills in the form of that name, chooses files, and sends it as a browser does: a field for a file that is not chosen has no name of one.
func (b *browser) upload(page *seen, name string, fields url.Values, files map[string]string) *seen {
	b.t.Helper()
	action, form := page.form(name)
	for field, values := range fields {
		form[field] = values
	}
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	write := func(field, file, content string) {
		part, err := w.CreateFormFile(field, file)
		if err == nil {
			_, err = part.Write([]byte(content))
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
	for field, values := range form {
		for _, value := range values {
			if err := w.WriteField(field, value); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	for _, n := range page.all(func(n *html.Node) bool { return n.Data == "input" && attr(n, "type") == "file" }) {
		field := attr(n, "name")
		if content, chosen := files[field]; chosen {
			write(field, "../"+field+".pem", content)
		} else {
			write(field, "", "")
		}
	}
	if err := w.Close(); err != nil {
		b.t.Fatal(err)
	}
	return b.sendBody(action, w.FormDataContentType(), body.String())
}

func (b *browser) sendBody(action, kind, body string) *seen {
	b.t.Helper()
	r := httptest.NewRequestWithContext(b.t.Context(), "POST", "https://console.example.com"+action, strings.NewReader(body))
	r.RemoteAddr = b.address
	r.Header.Set("Content-Type", kind)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Origin", "https://console.example.com")
	return b.send(r)
}

// TestUpload gives a pair as files, and what is no pair.
func TestUpload(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	d := s.madeDomain(s.root, "shop.example.com")
	path := "/domains/" + d.ID + "/certificate"
	chain, key := aPair(t, d.Name, s.now().AddDate(0, 0, -1), s.now().AddDate(0, 0, 90))
	otherChain, otherKey := aPair(t, "other.example.com", s.now().AddDate(0, 0, -1), s.now().AddDate(0, 0, 90))
	block, _ := pem.Decode([]byte(chain))
	page := b.get(path)
	if form := page.find(func(n *html.Node) bool { return attr(n, "id") == "form-certificate" }); attr(form, "enctype") != "multipart/form-data" {
		t.Fatalf("the form cannot send files: %v", form.Attr)
	}
	secret := strings.Split(key, "\n")[1]
	kept := func(why string) {
		t.Helper()
		cert, err := s.plane.FindCertificate(t.Context(), s.root, d.ID)
		if err != nil || cert.Source != "acme" {
			t.Errorf("%s: the domain has another certificate: %+v, %v", why, cert, err)
		}
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("%s: the key is in the log", why)
		}
	}

	for why, c := range map[string]struct {
		fields, files map[string]string
		status        int
		says          string
		at            []string // the inputs that are marked
	}{
		"no files":                 {status: http.StatusUnprocessableEntity, at: []string{"chain_pem", "key_pem"}},
		"an empty file":            {files: map[string]string{"chain_pem_file": "", "key_pem_file": key}, status: http.StatusUnprocessableEntity, at: []string{"chain_pem"}},
		"a file that is no text":   {files: map[string]string{"chain_pem_file": string(block.Bytes), "key_pem_file": key}, status: http.StatusUnprocessableEntity, says: "the file is not text: choose a file in PEM form"},
		"a key that is no text":    {files: map[string]string{"chain_pem_file": chain, "key_pem_file": "\x30\x82\x00" + secret}, status: http.StatusUnprocessableEntity, says: "the file is not text: choose a file in PEM form"},
		"the two swapped":          {files: map[string]string{"chain_pem_file": key, "key_pem_file": chain}, status: http.StatusUnprocessableEntity, at: []string{"chain_pem", "key_pem"}},
		"another name":             {files: map[string]string{"chain_pem_file": otherChain, "key_pem_file": otherKey}, status: http.StatusUnprocessableEntity, at: []string{"chain_pem"}},
		"another key":              {files: map[string]string{"chain_pem_file": chain, "key_pem_file": otherKey}, status: http.StatusUnprocessableEntity, at: []string{"key_pem"}},
		"a text beats a file":      {fields: map[string]string{"chain_pem": "typed"}, files: map[string]string{"chain_pem_file": chain, "key_pem_file": key}, status: http.StatusUnprocessableEntity, at: []string{"chain_pem"}},
		"more than a page takes":   {files: map[string]string{"chain_pem_file": strings.Repeat("x", defaultMaxForm), "key_pem_file": key}, status: http.StatusRequestEntityTooLarge, says: "larger than this page takes"},
		"a file with hostile text": {files: map[string]string{"chain_pem_file": hostile, "key_pem_file": hostile}, status: http.StatusUnprocessableEntity, at: []string{"chain_pem", "key_pem"}},
	} {
		fields := url.Values{}
		for name, value := range c.fields {
			fields.Set(name, value)
		}
		got := b.upload(page, "certificate", fields, c.files)
		got.want(c.status, c.says)
		check(t, s, got)
		for _, name := range c.at {
			if got.fault("f-certificate-"+name) == "" {
				t.Errorf("%s: %s is not marked:\n%s", why, name, got.text())
			}
		}
		if strings.Contains(got.body, secret) {
			t.Errorf("%s: the page has the key", why)
		}
		kept(why)
	}

	for why, c := range map[string]struct {
		kind, body string
		status     int
	}{
		"no boundary":       {"multipart/form-data", "--x\r\n", http.StatusBadRequest},
		"no end":            {"multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"key_pem\"\r\n\r\n" + secret, http.StatusBadRequest},
		"no parts":          {"multipart/form-data; boundary=x", "", 0},
		"another type":      {"multipart/mixed; boundary=x", "--x--\r\n", http.StatusUnsupportedMediaType},
		"many parts":        {"multipart/form-data; boundary=x", strings.Repeat("--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n\r\n", 5000) + "--x--\r\n", 0},
		"control in a name": {"multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"a\x01\"\r\n\r\nb\r\n--x--\r\n", 0},
	} {
		got := b.sendBody(path, c.kind, c.body)
		if c.status != 0 && got.status != c.status || got.status < 400 || got.status >= 500 || strings.Contains(got.body, secret) {
			t.Errorf("%s: %d, want %d", why, got.status, c.status)
		}
		check(t, s, got)
		kept(why)
	}

	good := b.upload(page, "certificate", nil, map[string]string{"chain_pem_file": chain, "key_pem_file": key})
	shown := b.follow(good.leadsTo(path)).want(http.StatusOK, "The certificate is in place", "Replace it")
	if strings.Contains(shown.body, secret) {
		t.Error("the page has the key")
	}
}

// TestSessionEndsInUpload has a session end while somebody looks for the files: what was chosen is there after signing in, apart from the key, which
// no page holds.
func TestSessionEndsInUpload(t *testing.T) {
	s := newSite(t)
	b := s.signedIn()
	d := s.madeDomain(s.root, "shop.example.com")
	path := "/domains/" + d.ID + "/certificate"
	chain, key := aPair(t, d.Name, s.now().AddDate(0, 0, -1), s.now().AddDate(0, 0, 90))
	secret := strings.Split(key, "\n")[1]
	page := b.get(path)
	s.pass(management.SessionIdle + time.Second)
	asks := b.upload(page, "certificate", nil, map[string]string{"chain_pem_file": chain, "key_pem_file": key})
	asks.want(http.StatusUnauthorized, "Nothing that you typed is lost", "keys in it have to be typed again")
	check(t, s, asks)
	back := b.submit(asks, "login", url.Values{"email": {testEmail}, "password": {testPassword}})
	back.want(http.StatusUnprocessableEntity, "Something has to be put right")
	check(t, s, back)
	_, form := back.form("certificate")
	if strings.TrimSpace(form.Get("chain_pem")) != strings.TrimSpace(chain) || form.Get("key_pem") != "" {
		t.Errorf("the form has %v", form)
	}
	if back.fault("f-certificate-key_pem") == "" || back.fault("f-certificate-chain_pem") != "" {
		t.Errorf("it is not the key alone that is missed:\n%s", back.text())
	}
	for _, p := range []*seen{asks, back} {
		if strings.Contains(p.body, secret) {
			t.Errorf("%s: the page has the key", p.path)
		}
	}
	b.follow(b.upload(back, "certificate", nil, map[string]string{"key_pem_file": key}).leadsTo(path)).want(http.StatusOK, "The certificate is in place")
}
