package pqproxy

import (
	"crypto/sha512"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

// keygen makes a key with the command and returns its two files.
func keygen(t *testing.T) (private, public string) {
	t.Helper()
	dir := t.TempDir()
	private, public = filepath.Join(dir, "feed.key"), filepath.Join(dir, "feed.pub")
	if _, _, err := runCommand(t, "keygen", private, public); err != nil {
		t.Fatal(err)
	}
	return private, public
}

func TestKeygenCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	stdout, stderr, err := runCommand(t, "keygen")
	if err != nil || stderr != "" {
		t.Fatalf("error %v, stderr %q", err, stderr)
	}
	private, err := feedsig.ReadPrivateKey("feed.key")
	if err != nil {
		t.Fatal(err)
	}
	public, err := feedsig.ReadPublicKey("feed.pub")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512([]byte("a set"))
	if err := public.Verify(private.Sign(digest), digest); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"key ID        " + public.ID() + "\n", "feed.key\n", "feed.pub\n", "signing_key", "verify_key", "rotate"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("stdout lacks %q:\n%s", want, stdout)
		}
	}
	for _, key := range []string{string(private.Marshal()), string(public.Marshal())} {
		if text := strings.Fields(key)[2]; strings.Contains(stdout, text[:12]) || strings.Contains(stdout, text[len(text)-12:]) {
			t.Errorf("stdout has key material:\n%s", stdout)
		}
	}
	if runtime.GOOS == "windows" {
		return // no such modes
	}
	for name, want := range map[string]fs.FileMode{"feed.key": 0o600, "feed.pub": 0o644} {
		if info, err := os.Stat(name); err != nil || info.Mode()&^0o022 != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
}

// TestKeygenCommandKeepsFiles: whatever exists stays as it is, and no half of a pair is left.
func TestKeygenCommandKeepsFiles(t *testing.T) {
	for _, taken := range []string{"private", "public"} {
		t.Run(taken, func(t *testing.T) {
			dir := t.TempDir()
			files := map[string]string{"private": filepath.Join(dir, "private"), "public": filepath.Join(dir, "public")}
			writeFile(t, files[taken], []byte("precious"))
			stdout, stderr, err := runCommand(t, "keygen", files["private"], files["public"])
			if !errors.Is(err, fs.ErrExist) || stdout != "" || !strings.Contains(stderr, "never overwritten") {
				t.Errorf("error %v, stdout %q, stderr %q", err, stdout, stderr)
			}
			if text := read(t, files[taken]); text != "precious" {
				t.Errorf("the file holds %q now", text)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("there are %v, %v", entries, err)
			}
		})
	}
	same := filepath.Join(t.TempDir(), "key")
	if _, stderr, err := runCommand(t, "keygen", same, same); err == nil || !strings.Contains(stderr, "two different ones") {
		t.Errorf("one file for both: error %v, stderr %q", err, stderr)
	}
	if _, err := os.Stat(same); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one file for both is left behind: %v", err)
	}
}

func TestKeygenCommandUsage(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"one file", []string{filepath.Join(dir, "a")}, "accepts 0 or 2 arg(s), received 1"},
		{"three files", []string{"a", "b", "c"}, "accepts 0 or 2 arg(s), received 3"},
		{"no folder", []string{filepath.Join(dir, "none", "a"), filepath.Join(dir, "none", "b")}, "writing the private key: open "},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, err := runCommand(t, append([]string{"keygen"}, test.args...)...)
			if err == nil || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("error %v, stdout %q, stderr %q, want %q", err, stdout, stderr, test.want)
			}
		})
	}
}

// signed returns what `sign` prints for a file of that content.
func signed(t *testing.T, set, private string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "domains.json")
	writeFile(t, file, []byte(set))
	return runCommand(t, append([]string{"sign", file, "--key", private}, args...)...)
}

const smallSet = `{"revision": 7, "domains": [
	{"name": "a.example.com", "upstreams": [{"dial": "192.0.2.1:443"}]},
	{"name": "b.example.com", "upstreams": [{"dial": "192.0.2.1:443"}]}
]}
`

func TestSignCommand(t *testing.T) {
	private, public := keygen(t)
	key, err := feedsig.ReadPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512([]byte(smallSet))

	stdout, stderr, err := signed(t, smallSet, private)
	if err != nil || stderr != "" {
		t.Fatalf("error %v, stderr %q", err, stderr)
	}
	value, ok := strings.CutPrefix(stdout, "PQProxy-Signature: ")
	if value = strings.TrimSuffix(value, "\n"); !ok {
		t.Fatalf("stdout is %.60q...", stdout)
	}
	if err := key.Verify(value, digest); err != nil {
		t.Error(err)
	}

	if alone, _, err := signed(t, smallSet, private, "--format", "value"); err != nil || alone != value+"\n" {
		t.Errorf("--format value: error %v, stdout %q", err, alone)
	}

	directives, _, err := signed(t, smallSet, private, "--format=nginx")
	if err != nil {
		t.Fatal(err)
	}
	if joined := readNginx(t, directives); joined != value {
		t.Errorf("nginx would send %q", joined)
	}
}

// readNginx returns the header's value that the directives make, as nginx reads them.
func readNginx(t *testing.T, directives string) string {
	t.Helper()
	lines := strings.SplitAfter(directives, "\n")
	add := regexp.MustCompile(`^add_header PQProxy-Signature "(.*)";\n$`).FindStringSubmatch(lines[len(lines)-2])
	if add == nil {
		t.Fatalf("the last line is %q", lines[len(lines)-2])
	}
	value := add[1]
	set := regexp.MustCompile(`^set \$(\w+) '([^'\\$]*)';\n$`)
	for _, line := range lines[:len(lines)-2] {
		parts := set.FindStringSubmatch(line)
		if parts == nil || len(parts[2]) >= 4000 {
			t.Fatalf("nginx does not take the line %q", line)
		}
		value = strings.Replace(value, "${"+parts[1]+"}", parts[2], 1)
	}
	return value
}

// TestSignCommandWarns: what edges refuse alone does not keep the set from being signed, and is told.
func TestSignCommandWarns(t *testing.T) {
	private, _ := keygen(t)
	bad := strings.Repeat(`{"name": "bad\u001b[2J"},`, refusalsKept+20)
	for _, test := range []struct {
		name, set string
		want      []string // in stderr
	}{
		{
			"refused records",
			`{"revision": 1, "domains": [{"name": "a.example.com", "upstreams": [{"dial": "192.0.2.1:443"}]},
				{"name": "b.example.com", "upstreams": [{"dial": "nowhere"}]}], "comment": ""}`,
			[]string{
				`warning: domains[1]: domain "b.example.com": upstreams[0].dial: `,
				"warning: edges will refuse 1 of the records and apply the others (1)\n",
				"warning: members of the set that are not known here have no effect: comment\n",
			},
		},
		{"many of them", `{"revision": 1, "domains": [` + bad[:len(bad)-1] + `]}`, []string{"there are more faults than the 100 listed\n", "will refuse 120 of the records"}},
		{"no domain", `{"revision": 1, "domains": []}`, []string{"allow_empty"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			stdout, stderr, err := signed(t, test.set, private)
			if err != nil || !strings.HasPrefix(stdout, "PQProxy-Signature: keyid=") {
				t.Errorf("error %v, stdout %q", err, stdout)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr lacks %q:\n%s", want, stderr)
				}
			}
			if lines := strings.Count(stderr, "\n"); lines > refusalsKept+2 || strings.Contains(stderr, "\x1b") {
				t.Errorf("stderr has %d lines:\n%q", lines, stderr)
			}
		})
	}
}

func TestSignCommandRefuses(t *testing.T) {
	private, public := keygen(t)
	file := filepath.Join(t.TempDir(), "domains.json")
	for _, test := range []struct {
		name, set string
		args      []string
		want      string // in stderr
	}{
		{"no revision", `{"domains": []}`, []string{file, "--key", private}, "revision is missing"},
		{"no set", `{"revision": 1}`, []string{file, "--key", private}, "domains: is missing"},
		{"cut", `{"revision": 1, "domains": [`, []string{file, "--key", private}, "ends early"},
		{"two", `{"revision": 1, "domains": []}{}`, []string{file, "--key", private}, "goes on behind its object"},
		{"no file", smallSet, []string{file + "x", "--key", private}, "open "},
		{"two files", smallSet, []string{file, file, "--key", private}, "accepts 1 arg(s), received 2"},
		{"no key", smallSet, []string{file}, `required flag(s) "key" not set`},
		{"public key", smallSet, []string{file, "--key", public}, "--key: " + public},
		{"missing key", smallSet, []string{file, "--key", private + "x"}, "--key: signing key: open "},
		{"format", smallSet, []string{file, "--key", private, "--format", "apache"}, `--format "apache": must be header, value or nginx`},
	} {
		t.Run(test.name, func(t *testing.T) {
			writeFile(t, file, []byte(test.set))
			stdout, stderr, err := runCommand(t, append([]string{"sign"}, test.args...)...)
			if err == nil || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("error %v, stdout %q, stderr %q, want %q", err, stdout, stderr, test.want)
			}
		})
	}
}

// TestSignedFile is the whole way of a signed file: a key, a signature, a web server that sends both, and an edge's
// check of them.
func TestSignedFile(t *testing.T) {
	private, public := keygen(t)
	line, _, err := signed(t, smallSet, private)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign := keygen(t)
	name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
	web := startPlane(t)
	web.set(smallSet, name, value)
	admin := startAdmin(t, answerWith(http.StatusOK, `{"added": 2}`))
	sync := func(keys ...string) error {
		args := []string{"--management", web.URL, "--admin", admin.address}
		for _, key := range keys {
			args = append(args, "--verify-key", key)
		}
		_, _, err := runSyncCommand(t, args...)
		return err
	}

	if err := sync(foreign, public); err != nil || string(admin.taken(t).body) != smallSet {
		t.Errorf("signed by one of two keys: %v", err)
	}
	if err := sync(foreign); !errors.Is(err, feedsig.ErrUnknownKey) {
		t.Errorf("signed by another key: %v", err)
	}
	web.set(strings.Replace(smallSet, "192.0.2.1", "192.0.2.9", 1), name, value)
	if err := sync(public); !errors.Is(err, feedsig.ErrEd25519) {
		t.Errorf("changed: %v", err)
	}
	admin.idle(t)
}
