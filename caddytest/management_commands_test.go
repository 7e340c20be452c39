package caddytest

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/pqtest"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// command runs one of the operator's commands as the service's user would, in its folder.
func (s *service) command(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return s.commandIn(t, s.env, args...)
}

func (s *service) commandIn(t *testing.T, env []string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, append([]string{"pqproxy-management"}, args...)...)
	var out, said bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.dir, env, &out, &said
	err = cmd.Run()
	for _, stream := range []string{out.String(), said.String()} {
		if strings.Contains(stream, "panic:") || strings.Contains(stream, "WARNING: DATA RACE") {
			t.Errorf("%v wrote: %s", args, stream)
		}
	}
	return out.String(), said.String(), err
}

// must is command without an error, and returns what it wrote.
func (s *service) must(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, err := s.command(t, args...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, stderr)
	}
	return stdout
}

// refuses is command with an error that says so.
func (s *service) refuses(t *testing.T, want string, args ...string) {
	t.Helper()
	_, stderr, err := s.command(t, args...)
	if err == nil || !strings.Contains(stderr, want) {
		t.Errorf("%v ended with %v and said %q, want %q", args, err, stderr, want)
	}
}

// TestManagementCommandFaults has what the commands are given wrong. None of it makes what is the service's to make.
func TestManagementCommandFaults(t *testing.T) {
	s := &service{dir: t.TempDir()}
	s.env = append(os.Environ(), "HOME="+s.dir, "XDG_DATA_HOME="+s.dir, "XDG_CONFIG_HOME="+s.dir)
	for _, command := range [][]string{{"backup", "file"}, {"restore", "file"}, {"rotate-master-key"}, {"reset-password", "a@example.com"}} {
		with := func(args ...string) []string { return append(command[:len(command):len(command)], args...) }
		if command[0] == "restore" {
			writeFile(t, s.dir, "file", "no backup")
		}
		s.refuses(t, "no config file: name it with --config", command...)
		s.refuses(t, "nowhere.json", with("--config", "nowhere.json")...)
		writeFile(t, s.dir, "broken.json", "{")
		s.refuses(t, "broken.json", with("--config", "broken.json")...)
		writeFile(t, s.dir, "edge.caddyfile", "{\n\tpqproxy {\n\t}\n}\n")
		s.refuses(t, "has no pqproxy_management", with("--config", "edge.caddyfile")...)
		writeFile(t, s.dir, "wrong.caddyfile", "{\n\tpqproxy_management {\n\t\tsignup maybe\n\t}\n}\n")
		s.refuses(t, "signup", with("--config", "wrong.caddyfile")...)
		if command[0] != "rotate-master-key" {
			s.refuses(t, "accepts 1 arg(s)", with("too", "many")...)
		} else {
			s.refuses(t, "unknown command", with("argument")...)
		}
		writeFile(t, s.dir, "Caddyfile", "{\n\tpqproxy_management\n}\n")
		if command[0] == "restore" { // which may make a database
			s.refuses(t, "the backup is not usable", command...)
		} else {
			s.refuses(t, "there is no database of the management plane", command...)
			if _, err := os.Stat(filepath.Join(s.dir, "caddy", "pqproxy")); err == nil {
				t.Errorf("%s made the service's folder", command[0])
			}
		}
		for _, made := range []string{"setup-token", "master.key"} {
			if _, err := os.Stat(filepath.Join(s.dir, "caddy", "pqproxy", made)); err == nil {
				t.Errorf("%s made %s", command[0], made)
			}
		}
		os.RemoveAll(filepath.Join(s.dir, "caddy"))
		for _, name := range []string{"Caddyfile", "broken.json", "edge.caddyfile", "wrong.caddyfile", "file"} {
			os.Remove(filepath.Join(s.dir, name))
		}
	}
	s.refuses(t, `unknown command "bakcup"`, "bakcup")
	if out := s.must(t, "--help"); !strings.Contains(out, "backup") || !strings.Contains(out, "rotate-master-key") {
		t.Errorf("the help is %s", out)
	}
}

// TestManagementRestore goes back to a backup that an edge is ahead of, and then to PostgreSQL.
func TestManagementRestore(t *testing.T) {
	dns, own := startNameServer(t), newAuthority(t)
	first, second := startNamed(t, "first"), startNamed(t, "second")
	s := startService(t, dns, "")
	s.firstRun(t)
	key, dir := s.key, s.dir
	token := s.call(t, 201, "POST", "/v1/platform/edge_tokens", object{"name": "fleet"}).at("secret").(string)
	way := startRelay(t, strings.TrimPrefix(s.edge, "http://"))
	e := startFollower(t, "edge-1", "http://"+way.addr, token, "")
	s.addDomain(t, own, "first.example.com", first)
	servesPair(t, e, own, "first.example.com")

	s.must(t, "backup", "monday.gz") // while the service runs
	info, err := os.Stat(filepath.Join(dir, "monday.gz"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup has mode %04o, %v", info.Mode().Perm(), err)
	}
	piped, err := gzip.NewReader(strings.NewReader(s.must(t, "backup", "-")))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(piped)
	if err != nil || !bytes.HasPrefix(text, []byte(`{"format":"pqproxy-backup"`)) {
		t.Errorf("the backup on standard output begins %.60q, %v", text, err)
	}
	masterKey, err := os.ReadFile(filepath.Join(dir, "caddy", "pqproxy", "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	for what, secret := range map[string]string{
		"the master key": strings.TrimSpace(string(masterKey)), "a private key": "PRIVATE KEY", "a password": firstPassword, "an API key": key, "an edge token": token,
	} {
		if bytes.Contains(text, []byte(secret)) {
			t.Errorf("the backup has %s", what)
		}
	}
	s.refuses(t, "no such file or directory", "backup", "nowhere/backup")
	elsewhere := t.TempDir()
	if _, said, err := s.commandIn(t, append(s.env, "XDG_DATA_HOME="+elsewhere), "backup", "root.gz"); err == nil || !strings.Contains(said, "user and environment") {
		t.Errorf("a backup by another user ended with %v and said %q", err, said)
	}
	if left, _ := os.ReadDir(elsewhere); len(left) > 0 {
		t.Errorf("it made %s", left[0].Name())
	}
	if _, err := os.Stat(filepath.Join(dir, "root.gz")); err == nil {
		t.Error("it left a backup of nothing")
	}

	s.addDomain(t, own, "second.example.com", second)
	servesPair(t, e, own, "second.example.com")
	s.stop(t)
	way.set("")

	whole, err := os.ReadFile(filepath.Join(dir, "monday.gz"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "half.gz", string(whole[:len(whole)/2]))
	s.refuses(t, "nothing was changed", "restore", "half.gz", "--force")
	s.refuses(t, "the database is not empty", "restore", "monday.gz")
	s.refuses(t, "monday.zip", "restore", "monday.zip")
	if said := s.must(t, "restore", "monday.gz", "--force"); !strings.Contains(said, "restored to sqlite "+dir) {
		t.Errorf("restore said %q", said)
	}

	s = startServiceIn(t, dir, dns, "")
	s.waitReady(t)
	s.key = key
	way.set(strings.TrimPrefix(s.edge, "http://"))
	unknown := func() bool {
		_, err := pqtest.TryDial(t, e.addr, &tls.Config{ServerName: "second.example.com", InsecureSkipVerify: true})
		return err != nil && strings.Contains(err.Error(), "unrecognized name")
	}
	pqtest.Wait(t, "the edge to go back", unknown)
	visit(t, e, own, "first.example.com", "first")
	if feed := poll(t, s, token, "", 0); feed.tag < `"1000000` || len(feed.tag) != len(`"1000000"`) {
		t.Errorf("the revision is %s", feed.tag)
	}
	s.addDomain(t, own, "third.example.com", second)
	servesPair(t, e, own, "third.example.com")

	// The same to PostgreSQL, with the key of the file.
	s.must(t, "backup", "tuesday.gz")
	s.stop(t)
	way.set("")
	options := postgres(t)
	t.Setenv("MASTER_KEY", strings.TrimSpace(string(masterKey)))
	to := startServiceIn(t, t.TempDir(), dns, options)
	to.waitReady(t)
	to.stop(t)
	if said := to.must(t, "restore", filepath.Join(dir, "tuesday.gz")); said != "restored to postgres\n" {
		t.Errorf("restore said %q", said)
	}
	to = startServiceIn(t, to.dir, dns, options)
	to.waitReady(t)
	to.key = key
	if domains := to.call(t, 200, "GET", "/v1/domains", nil)["data"].([]any); len(domains) != 2 {
		t.Errorf("PostgreSQL has %d domains", len(domains))
	}
	way.set(strings.TrimPrefix(to.edge, "http://"))
	to.addDomain(t, own, "fourth.example.com", second)
	servesPair(t, e, own, "fourth.example.com")
	visit(t, e, own, "first.example.com", "first")
	visit(t, e, own, "third.example.com", "second")

	// And back: standard input, into a folder without anything.
	to.stop(t)
	backup := to.must(t, "backup", "-")
	back := &service{dir: t.TempDir()}
	back.env = append(to.env, "HOME="+back.dir, "XDG_DATA_HOME="+back.dir)
	writeFile(t, back.dir, "Caddyfile", "{\n\tpqproxy_management\n}\n")
	bin, err := pqproxy()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "pqproxy-management", "restore", "-")
	cmd.Dir, cmd.Env, cmd.Stdin = back.dir, back.env, strings.NewReader(backup)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Its private keys are encrypted, and the key is not here.
	last := startServiceIn(t, back.dir, dns, "")
	line, ok := last.wait(func(line string) bool { return strings.Contains(line, "does not serve; trying again") })
	if !ok || !strings.Contains(line, "put it back") {
		t.Errorf("without the master key the service says %s", line)
	}
	writeFile(t, filepath.Join(back.dir, "caddy", "pqproxy"), "master.key", string(masterKey))
	last.waitReady(t)
}

// TestManagementMasterKeys replaces the master key as docs/management.md says.
func TestManagementMasterKeys(t *testing.T) {
	dns, own, upstream := startNameServer(t), newAuthority(t), startNamed(t, "upstream")
	older, newer := vault.NewKey(), vault.NewKey()
	t.Setenv("OLDER", older.Reveal())
	t.Setenv("NEWER", newer.Reveal())
	s := startService(t, dns, "master_key {env.OLDER}")
	s.firstRun(t)
	key, dir := s.key, s.dir
	token := s.call(t, 201, "POST", "/v1/platform/edge_tokens", object{"name": "fleet"}).at("secret").(string)
	s.addDomain(t, own, "app.example.com", upstream)
	if said := s.must(t, "rotate-master-key"); said != "0 keys are under the first master key now\n" {
		t.Errorf("with one key the command says %q", said)
	}
	s.stop(t)

	// The new one alone: neither the service nor the command does anything.
	s = startServiceIn(t, dir, dns, "master_key {env.NEWER}")
	line, ok := s.wait(func(line string) bool { return strings.Contains(line, "does not serve; trying again") })
	if !ok || !strings.Contains(line, older.ID().String()) || !strings.Contains(line, newer.ID().String()) {
		t.Errorf("with the wrong key the service says %s", line)
	}
	s.refuses(t, older.ID().String(), "rotate-master-key")
	s.stop(t)

	s = startServiceIn(t, dir, dns, "master_key {env.NEWER}\nmaster_key {env.OLDER}")
	s.waitReady(t)
	for want := range 2 {
		if said := s.must(t, "rotate-master-key"); said != fmt.Sprintf("%d keys are under the first master key now\n", 1-want) {
			t.Errorf("the command says %q", said)
		}
	}
	s.stop(t)

	s = startServiceIn(t, dir, dns, "master_key {env.NEWER}")
	s.waitReady(t)
	s.key = key
	servesPair(t, startFollower(t, "edge-1", s.edge, token, ""), own, "app.example.com")
}

// TestManagementResetPassword makes a link for who has lost the password.
func TestManagementResetPassword(t *testing.T) {
	const fresh = "another long password"
	s := startService(t, startNameServer(t), "public_url https://console.example.com/at")
	s.firstRun(t)
	s.key = ""
	login := func(want int, password string) {
		t.Helper()
		s.call(t, want, "POST", "/v1/sessions", object{"email": "ops@example.com", "password": password})
	}
	login(201, firstPassword)
	for _, nobody := range []string{"nobody@example.com", "not an address", ""} {
		s.refuses(t, "There is no such user", "reset-password", nobody)
	}

	link, err := url.Parse(strings.TrimSpace(s.must(t, "reset-password", "OPS@example.com")))
	if err != nil {
		t.Fatal(err)
	}
	token := link.Query().Get("token")
	if link.Scheme != "https" || link.Host != "console.example.com" || link.Path != "/at/reset" || token == "" {
		t.Errorf("the link is %s", link)
	}
	s.call(t, 422, "PUT", "/v1/password_resets", object{"token": token, "password": "short"})
	s.call(t, 404, "PUT", "/v1/password_resets", object{"token": token + "x", "password": fresh})
	s.call(t, 204, "PUT", "/v1/password_resets", object{"token": token, "password": fresh})
	s.call(t, 404, "PUT", "/v1/password_resets", object{"token": token, "password": fresh})
	login(401, firstPassword)
	login(201, fresh)
	if strings.Contains(s.String(), token) {
		t.Error("the log has the token")
	}
}
