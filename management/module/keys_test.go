package module

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// keyID returns the name of the key in the file, as errors spell it.
func (p *plane) keyID() string {
	p.t.Helper()
	keys, err := vault.ReadKeyFile(p.data(masterKeyFile))
	if err != nil {
		p.t.Fatal(err)
	}
	return keys[0].ID().String()
}

// remove ends the service, so that the next load begins another.
func (p *plane) remove() {
	p.t.Helper()
	if err := p.loadFile("{\n\tadmin off\n\tpersist_config off\n}\n"); err != nil {
		p.t.Fatal(err)
	}
	running.Wait()
}

// TestFirstStart makes what is missing, for the owner alone, tells nobody, and keeps it.
func TestFirstStart(t *testing.T) {
	p := newPlane(t)
	st := p.start("")
	contents := make(map[string]string)
	for _, name := range []string{setupTokenFile, masterKeyFile, "management.db", "management-connections.db"} {
		info, err := os.Stat(p.data(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %04o", name, info.Mode().Perm())
		}
		content, err := os.ReadFile(p.data(name))
		if err != nil {
			t.Fatal(err)
		}
		contents[name] = strings.TrimSpace(string(content))
	}
	info, err := os.Stat(filepath.Dir(p.data("x")))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("their directory has mode %04o, %v", info.Mode().Perm(), err)
	}
	a := p.must(201, "POST", "/v1/setup", map[string]any{
		"setup_token": contents[setupTokenFile], "email": "ops@example.com", "password": "a long enough password", "tenant": "Platform", "api_key": true,
	})
	p.key = a.body["api_key"].(map[string]any)["secret"].(string)
	for _, name := range []string{setupTokenFile, masterKeyFile} {
		if strings.Contains(p.log.String(), contents[name]) {
			t.Errorf("the log has the content of %s", name)
		}
	}
	p.load("", "grace_period 1m")
	if inForce(t) != st {
		t.Error("the first reload began another service, although nothing had changed")
	}
	p.upload("app.example.com")
	p.remove()
	p.start("")
	for _, name := range []string{setupTokenFile, masterKeyFile} {
		if content, _ := os.ReadFile(p.data(name)); strings.TrimSpace(string(content)) != contents[name] {
			t.Errorf("%s was made again", name)
		}
	}
	p.upload("b.example.com")
}

// TestNothingIsMadeNeedlessly: where the config has the secrets and the database, the data directory is not written to.
func TestNothingIsMadeNeedlessly(t *testing.T) {
	p := newPlane(t)
	if err := os.WriteFile(filepath.Join(p.dir, "caddy"), nil, 0o600); err != nil { // so it could not be
		t.Fatal(err)
	}
	t.Setenv("MASTER_KEY", vault.NewKey().Reveal())
	p.start(ownToken + "\nmaster_key {env.MASTER_KEY}\ndatabase sqlite " + p.dir + "/elsewhere/management.db")
}

// TestBadFiles: a secret that others can read, or that is none, is a fault of which Caddy is told, and not repaired silently.
func TestBadFiles(t *testing.T) {
	for name, c := range map[string]struct {
		file, content string
		mode          os.FileMode
		want          string
	}{
		"master key of a group":        {masterKeyFile, vault.NewKey().Reveal(), 0o640, "chmod 600"},
		"master key of all":            {masterKeyFile, vault.NewKey().Reveal(), 0o604, "chmod 600"},
		"master key that is none":      {masterKeyFile, secretValue, 0o600, "32 bytes in base64"},
		"master key that is empty":     {masterKeyFile, "", 0o600, "has none"},
		"set-up token of a group":      {setupTokenFile, secretValue, 0o640, "chmod 600"},
		"set-up token that is empty":   {setupTokenFile, "\n", 0o600, "is empty"},
		"set-up token that is a novel": {setupTokenFile, strings.Repeat(secretValue, 1000), 0o600, "more than"},
		"signing key that is none":     {"feed.key", secretValue, 0o600, "signing_key"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			if err := os.MkdirAll(filepath.Dir(p.data(c.file)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p.data(c.file), []byte(c.content), c.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(p.data(c.file), c.mode); err != nil {
				t.Fatal(err)
			}
			options := ""
			if c.file == "feed.key" {
				options = "signing_key " + p.data(c.file)
			}
			err := p.tryLoad(options)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.file) {
				t.Fatalf("loading ended with %v, want an error with %q and the file", err, c.want)
			}
			if strings.Contains(err.Error(), secretValue) || c.content != "" && strings.Contains(err.Error(), strings.TrimSpace(c.content)+"=") {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

// TestLostMasterKey: the key file is gone and the database has something encrypted. A new key would hide that until the day on
// which an edge needs the old one; the service does not run, says which key it wants, and runs when it is put back.
func TestLostMasterKey(t *testing.T) {
	shorten(t)
	p := newPlane(t)
	p.start(ownToken)
	p.setUp()
	p.upload("app.example.com")
	id := p.keyID()
	p.remove()
	aside := filepath.Join(p.dir, "aside")
	if err := os.Rename(p.data(masterKeyFile), aside); err != nil {
		t.Fatal(err)
	}
	p.load(ownToken)
	p.log.wait(t, "the master key "+id+", and "+p.data(masterKeyFile)+" is not there: put it back")
	p.checkUnavailable()
	if _, err := os.Stat(p.data(masterKeyFile)); !os.IsNotExist(err) {
		t.Errorf("a key was made: %v", err)
	}
	if err := os.Rename(aside, p.data(masterKeyFile)); err != nil {
		t.Fatal(err)
	}
	p.waitReady()
	p.upload("b.example.com")
}

// TestLostMasterKeyOfNothing: without anything encrypted a lost key is no loss.
func TestLostMasterKeyOfNothing(t *testing.T) {
	p := newPlane(t)
	p.start(ownToken)
	p.setUp()
	p.remove()
	if err := os.Remove(p.data(masterKeyFile)); err != nil {
		t.Fatal(err)
	}
	p.start(ownToken)
	p.upload("app.example.com")
}

// TestWrongMasterKey: the keys of the config, or of the file, are not those of the database, or not all.
func TestWrongMasterKey(t *testing.T) {
	shorten(t)
	first, second, third := vault.NewKey(), vault.NewKey(), vault.NewKey()
	t.Setenv("FIRST", first.Reveal())
	t.Setenv("SECOND", second.Reveal())
	t.Setenv("THIRD", third.Reveal())
	p := newPlane(t)
	p.start(ownToken + "\nmaster_key {env.FIRST}")
	p.setUp()
	p.upload("a.example.com")
	p.start(ownToken + "\nmaster_key {env.SECOND}\nmaster_key {env.FIRST}")
	p.upload("b.example.com")
	p.remove()

	for _, c := range []struct {
		keys    string
		missing []vault.Key
	}{
		{"\nmaster_key {env.SECOND}", []vault.Key{first}},
		{"\nmaster_key {env.FIRST}", []vault.Key{second}},
		{"\nmaster_key {env.THIRD}", []vault.Key{first, second}},
	} {
		p.log = collectLog(t)
		p.load(ownToken + c.keys)
		p.log.wait(t, "add the missing one behind it")
		p.checkUnavailable()
		for _, k := range []vault.Key{first, second, third} {
			if strings.Contains(p.log.String(), k.Reveal()) {
				t.Errorf("the log has %v", k)
			}
		}
		said, _, _ := strings.Cut(p.log.String()[strings.Index(p.log.String(), "encrypted under"):], ", and there is only")
		for _, k := range []vault.Key{first, second} {
			missing := false
			for _, m := range c.missing {
				missing = missing || m.ID() == k.ID()
			}
			if strings.Contains(said, k.ID().String()) != missing {
				t.Errorf("with%s, the log says %q; missing are %v", c.keys, said, c.missing)
			}
		}
		p.remove()
	}

	// The file that would be made is somebody else's.
	if err := vault.WriteKeyFile(p.data(masterKeyFile), []vault.Key{third}); err != nil {
		t.Fatal(err)
	}
	p.load(ownToken)
	p.log.wait(t, "there is only "+third.ID().String())
	if err := vault.WriteKeyFile(p.data(masterKeyFile), []vault.Key{second, first}); err != nil {
		t.Fatal(err)
	}
	p.waitReady()
}

// TestSigningKeyChanges: another key in the same file is taken by a reload.
func TestSigningKeyChanges(t *testing.T) {
	p := newPlane(t)
	file := filepath.Join(p.dir, "feed.key")
	sign := func() string {
		t.Helper()
		os.Remove(file)
		os.Remove(file + ".pub")
		key, err := feedsig.Generate(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if err := key.WriteFiles(file, file+".pub"); err != nil {
			t.Fatal(err)
		}
		return key.Public().ID()
	}
	signature := func(token map[string][]string) string {
		return p.askWith(p.edge, "GET", "/v1/edge/domains", nil, token).header.Get("PQProxy-Signature")
	}
	id := sign()
	p.start(ownToken + "\nsigning_key " + file)
	p.setUp()
	token := p.edgeToken()
	if got := signature(token); !strings.Contains(got, id) {
		t.Errorf("the feed is signed %q, want with %s", got, id)
	}
	id = sign()
	p.start(ownToken+"\nsigning_key "+file, "grace_period 1m")
	if got := signature(token); !strings.Contains(got, id) {
		t.Errorf("after the reload the feed is signed %q, want with %s", got, id)
	}
}
