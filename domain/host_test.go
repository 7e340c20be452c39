package domain

import (
	"strings"
	"testing"
)

func TestNormalName(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	name253 := strings.Repeat(label63+".", 3) + strings.Repeat("b", 61)
	tests := []struct {
		name    string
		in      string
		want    string
		wantErr string // part of the error; empty: none
	}{
		{"plain", "app.example.com", "app.example.com", ""},
		{"upper case", "App.EXAMPLE.com", "app.example.com", ""},
		{"final dot", "app.example.com.", "app.example.com", ""},
		{"single label", "localhost", "localhost", ""},
		{"underscore", "_a.b_c.example.com", "_a.b_c.example.com", ""},
		{"hyphens inside", "r3---sn-apo3.example.com", "r3---sn-apo3.example.com", ""},
		{"digits", "1.2.3.example", "1.2.3.example", ""},
		{"digits and letters last", "a.1b", "a.1b", ""},
		{"hex-like last label", "a.0xyz", "a.0xyz", ""},
		{"unicode", "Bücher.example.com", "xn--bcher-kva.example.com", ""},
		{"a-label", "XN--Bcher-KVA.example.com", "xn--bcher-kva.example.com", ""},
		{"sharp s stays", "straße.example", "xn--strae-oqa.example", ""},
		{"ideographic stops", "例え。テスト。", "xn--r8jz45g.xn--zckzah", ""},
		{"full-width letters", "ａｐｐ.example", "app.example", ""},
		{"right to left", "אבג.example", "xn--4dbcd.example", ""},
		{"unicode beside odd hyphens", "r3---x.bücher.example", "r3---x.xn--bcher-kva.example", ""},
		{"longest label", label63 + ".com", label63 + ".com", ""},
		{"longest name", name253, name253, ""},
		{"longest name and dot", name253 + ".", name253, ""},
		{"wildcard", "*.Example.com", "*.example.com", ""},
		{"wildcard over one label", "*.localhost", "*.localhost", ""},
		{"unicode wildcard", "*.bücher.example", "*.xn--bcher-kva.example", ""},
		{"longest wildcard", "*." + name253[2:], "*." + name253[2:], ""},

		{"empty", "", "", "is missing"},
		{"dot", ".", "", "empty label"},
		{"two final dots", "a.example..", "", "empty label"},
		{"empty label", "a..example", "", "empty label"},
		{"leading dot", ".example", "", "empty label"},
		{"star alone", "*", "", "wildcard is written"},
		{"star and dot", "*.", "", "is missing"},
		{"star inside", "a.*.example", "", "wildcard is written"},
		{"two stars", "*.*.example", "", "wildcard is written"},
		{"part of a label", "a*.example", "", "wildcard is written"},
		{"full-width star", "＊.example", "", "character"},
		{"long label", label63 + "a.com", "", "more than 63 bytes"},
		{"long unicode label", strings.Repeat("ü", 60) + ".com", "", "more than 63 bytes"},
		{"long name", name253 + "b", "", "253 bytes"},
		{"long wildcard", "*." + name253, "", "253 bytes"},
		{"long input", strings.Repeat("ü", 600), "", "253 bytes"},
		{"leading hyphen", "-a.example", "", "hyphen"},
		{"trailing hyphen", "a-.example", "", "hyphen"},
		{"space", "a b.example", "", "character"},
		{"colon", "app.example:443", "", "character"},
		{"nul", "a\x00.example", "", "character"},
		{"ipv4", "192.0.2.1", "", "IP address"},
		{"ipv6", "2001:db8::1", "", "IP address"},
		{"ipv6 in brackets", "[2001:db8::1]", "", "IP address"},
		{"ipv6 with zone", "fe80::1%eth0", "", "IP address"},
		{"ipv4 with dot", "192.0.2.1.", "", "ends in a number"},
		{"short ipv4", "127.1", "", "ends in a number"},
		{"one number", "2130706433", "", "ends in a number"},
		{"octal", "0177.0.0.01", "", "ends in a number"},
		{"hex", "0x7f.0x1", "", "ends in a number"},
		{"empty hex", "a.0X", "", "ends in a number"},
		{"full-width digits", "１２７.０.０.１", "", "ends in a number"},
		{"wildcard over address", "*.0.0.1", "", "ends in a number"},
		{"wildcard over ipv6", "*.::1", "", "IP address"},
		{"bad punycode", "xn--a.example", "", "UTS #46"},
		{"punycode of ascii", "xn--abc-.example", "", "UTS #46"},
		{"mixed directions", "aאב1ג.example", "", "UTS #46"},
		{"direction of a mapped letter", "ℸ𧯔𪚻.example", "", "UTS #46"},
		{"joiner out of place", "a\u200db.example", "", "UTS #46"},
		{"invalid utf-8", "a\xff.example", "", "UTS #46"},
		{"mapped to a slash", "a℀b.example", "", "character"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NormalName(tt.in)
			checkResult(t, got, err, tt.want, tt.wantErr)
			if err != nil {
				return
			}
			if again, err := NormalName(got); err != nil || again != got {
				t.Errorf("the normal form is no normal form: %q, %v", again, err)
			}
			if strings.HasPrefix(got, "*.") {
				return
			}
			if host, ok := NormalHost(got); !ok || host != got {
				t.Errorf("NormalHost(%q) = %q, %v; want the same name, true", got, host, ok)
			}
		})
	}
}

// checkResult compares what a normalizing function returned; wantErr is part of the error's text.
func checkResult(t *testing.T, got string, err error, want, wantErr string) {
	t.Helper()
	switch {
	case wantErr == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
		t.Errorf("error %v, want one with %q", err, wantErr)
	case got != want:
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNormalHost(t *testing.T) {
	name253 := strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61)
	tests := []struct {
		in   string
		want string // empty: refused
	}{
		{"app.example.com", "app.example.com"},
		{"APP.Example.com", "app.example.com"},
		{"localhost", "localhost"},
		{"_x.a_b.example", "_x.a_b.example"},
		{"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
		{name253, name253},
		{"", ""},
		{name253 + "b", ""},
		{"app.example.com.", ""},
		{".", ""},
		{"a..b", ""},
		{"-a.example", ""},
		{"a-.example", ""},
		{strings.Repeat("a", 64), ""},
		{"*.example.com", ""},
		{"bücher.example", ""},
		{"a b.example", ""},
		{"a\x00b", ""},
		{"192.0.2.1", ""},
		{"127.1", ""},
		{"0x7f000001", ""},
		{"0X7F000001", ""},
		{"2001:db8::1", ""},
		{"[::1]", ""},
		{"::ffff:192.0.2.1", ""},
	}
	for _, tt := range tests {
		got, ok := NormalHost(tt.in)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("NormalHost(%q) = %q, %v; want %q", tt.in, got, ok, tt.want)
		}
	}
}

// normalHostSink keeps the call under measurement.
var normalHostSink string

func TestNormalHostAllocatesNothing(t *testing.T) {
	for _, sni := range []string{"app.example.com", "192.0.2.1", "a..b"} {
		if n := testing.AllocsPerRun(100, func() { normalHostSink, _ = NormalHost(sni) }); n != 0 {
			t.Errorf("NormalHost(%q) allocates %v times, want 0", sni, n)
		}
	}
}

func TestWildcardOf(t *testing.T) {
	tests := []struct {
		in   string
		want string // empty: none
	}{
		{"a.b.c", "*.b.c"},
		{"a.b", "*.b"},
		{"*.b", "*.b"},
		{"a", ""},
		{"", ""},
		{".a", ""},
		{"a.", ""},
	}
	for _, tt := range tests {
		got, ok := WildcardOf(tt.in)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("WildcardOf(%q) = %q, %v; want %q", tt.in, got, ok, tt.want)
		}
	}
}

func TestNormalDial(t *testing.T) {
	path107 := "/" + strings.Repeat("s", 106)
	tests := []struct {
		name    string
		src     Source
		in      string
		want    string
		wantErr string
	}{
		{"ipv4", Remote, "10.0.0.5:8443", "10.0.0.5:8443", ""},
		{"name", Remote, "App.Internal:443", "app.internal:443", ""},
		{"single label", Remote, "db:5432", "db:5432", ""},
		{"final dot", Remote, "app.internal.:443", "app.internal.:443", ""},
		{"unicode", Remote, "bücher.internal:443", "xn--bcher-kva.internal:443", ""},
		{"ipv6", Remote, "[2001:DB8:0::5]:8443", "[2001:db8::5]:8443", ""},
		{"mapped ipv4", Remote, "[::ffff:10.0.0.5]:8443", "10.0.0.5:8443", ""},
		{"lowest port", Remote, "a:1", "a:1", ""},
		{"highest port", Remote, "a:65535", "a:65535", ""},
		{"zeros before the port", Remote, "a:0443", "a:443", ""},
		{"zone", Static, "[fe80::1%eth0]:443", "[fe80::1%eth0]:443", ""},
		{"socket", Static, "unix//run/app.sock", "unix//run/app.sock", ""},
		{"longest socket", Static, "unix/" + path107, "unix/" + path107, ""},

		{"empty", Remote, "", "", "is missing"},
		{"no port", Remote, "10.0.0.5", "", "not an address with a port"},
		{"no host", Remote, ":443", "", "not an address with a port"},
		{"empty port", Remote, "a:", "", "not an address with a port"},
		{"ipv6 without brackets", Remote, "2001:db8::5:443", "", "not an address with a port"},
		{"URL", Remote, "https://app.internal:443", "", "is a URL"},
		{"port zero", Remote, "a:0", "", "1 to 65535"},
		{"port too high", Remote, "a:65536", "", "1 to 65535"},
		{"port with sign", Remote, "a:+443", "", "1 to 65535"},
		{"port by name", Remote, "a:https", "", "1 to 65535"},
		{"ipv4 in brackets", Remote, "[10.0.0.5]:443", "", "brackets"},
		{"name in brackets", Remote, "[app.internal]:443", "", "brackets"},
		{"legacy ipv4", Remote, "127.1:443", "", "ends in a number"},
		{"decimal ipv4", Remote, "2130706433:443", "", "ends in a number"},
		{"hex ipv4", Remote, "0x7f000001:443", "", "ends in a number"},
		{"wildcard", Remote, "*.internal:443", "", "character"},
		{"path", Remote, "a/b:443", "", "character"},
		{"placeholder", Remote, "{env.HOST}:443", "", "character"},
		{"zone from elsewhere", Remote, "[fe80::1%eth0]:443", "", "own configuration"},
		{"zone with control character", Static, "[fe80::1%e\x01]:443", "", "control characters"},
		{"socket from elsewhere", Remote, "unix//run/app.sock", "", "own configuration"},
		{"socket from the admin API", Admin, "unix//run/app.sock", "", "own configuration"},
		{"socket from nobody", "", "unix//run/app.sock", "", "own configuration"},
		{"relative socket", Static, "unix/app.sock", "", "absolute path"},
		{"abstract socket", Static, "unix/@app", "", "absolute path"},
		{"socket without path", Static, "unix//", "", "absolute path"},
		{"long socket", Static, "unix/" + path107 + "s", "", "107"},
		{"socket with NUL", Static, "unix//run/\x00", "", "control characters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := normalDial(tt.in, tt.src)
			if err != nil {
				got = ""
			}
			checkResult(t, got, err, tt.want, tt.wantErr)
		})
	}
}

func TestNormalServerName(t *testing.T) {
	tests := []struct {
		in      string
		want    string
		wantErr string
	}{
		{"App.Internal.", "app.internal", ""},
		{"10.0.0.5", "10.0.0.5", ""},
		{"2001:DB8::5", "2001:db8::5", ""},
		{"::ffff:10.0.0.5", "10.0.0.5", ""},
		{"[2001:db8::5]", "", "brackets"},
		{"fe80::1%eth0", "", "zone"},
		{"*.internal", "", "wildcard"},
		{"127.1", "", "ends in a number"},
		{"a:443", "", "character"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := normalServerName(tt.in)
			checkResult(t, got, err, tt.want, tt.wantErr)
		})
	}
}

func BenchmarkNormalHost(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		NormalHost("tenant-4711.app.example.com")
	}
}
