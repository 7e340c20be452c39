package dashboard

import (
	"encoding/json"
	"net/url"
	"testing"
)

func TestBody(t *testing.T) {
	parts := []part{text("name"), text("upstreams.*.dial"), text("upstreams.*.tls.server_name"), flag("upstreams.*.tls.insecure_skip_verify"), number("max_connections"), flag("suspended"), list("alpn"),
		multi("scopes"), text("certificate.source"), text("note").orNull(), list("tags").orNull()}
	for name, test := range map[string]struct{ in, want string }{
		"nothing": {"", `{"note":null,"suspended":false,"tags":[]}`},
		"all": {"name=+a.example+&upstreams.0.dial=10.0.0.1:1&upstreams.0.tls.server_name=x&upstreams.1.dial=10.0.0.2:2&upstreams.1.tls.insecure_skip_verify=true&max_connections=12&suspended=true&alpn=h2,+http/1.1&scopes=a&scopes=b&scopes=&certificate.source=acme&note=n&tags=t",
			`{"alpn":["h2","http/1.1"],"certificate":{"source":"acme"},"max_connections":12,"name":"a.example","note":"n","scopes":["a","b"],"suspended":true,"tags":["t"],"upstreams":[{"dial":"10.0.0.1:1","tls":{"insecure_skip_verify":false,"server_name":"x"}},{"dial":"10.0.0.2:2","tls":{"insecure_skip_verify":true}}]}`},
		"gaps":        {"upstreams.0.dial=&upstreams.3.dial=c&upstreams.1.dial=b&upstreams.1.tls.insecure_skip_verify=", `{"note":null,"suspended":false,"tags":[],"upstreams":[{"dial":"b","tls":{"insecure_skip_verify":true}},{"dial":"c","tls":{"insecure_skip_verify":false}}]}`},
		"no number":   {"max_connections=many", `{"max_connections":"many","note":null,"suspended":false,"tags":[]}`},
		"far numbers": {"upstreams.99.dial=x&upstreams.-1.dial=y&upstreams.1e9.dial=z&upstreams.00.dial=w", `{"note":null,"suspended":false,"tags":[]}`},
		"PEM":         {"name=line%0Aline%0A", `{"name":"line\nline\n","note":null,"suspended":false,"tags":[]}`},
	} {
		form, err := url.ParseQuery(test.in)
		if err != nil {
			t.Fatal(err)
		}
		c := &ctx{form: form}
		if got := string(c.body(parts...)); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, test.want)
		}
	}
	c := &ctx{form: url.Values{"upstreams.4.dial": {"x"}, "upstreams.2.dial": {" "}, "other": {"y"}}}
	c.body(text("upstreams.*.dial"))
	if c.form.Encode() != "other=y&upstreams.0.dial=x" {
		t.Errorf("the rows are %s, and faults would be shown elsewhere", c.form.Encode())
	}
}

func FuzzBody(f *testing.F) {
	for _, seed := range []string{"a=b", "upstreams.0.dial=x&upstreams.0=y", "upstreams.0.tls=x&upstreams.0.tls.server_name=y", "certificate=x&certificate.source=y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		form, err := url.ParseQuery(raw)
		if err != nil {
			return
		}
		c := &ctx{form: form}
		got := c.body(text("upstreams.*.dial"), text("upstreams.*.tls.server_name"), flag("upstreams.*.x"), text("certificate.source"), number("n"), list("l"), multi("m"))
		if !json.Valid(got) {
			t.Errorf("%q makes %s", raw, got)
		}
	})
}
