package module

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
	"github.com/pqproxy/caddy-pqproxy/management"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

// The files in the settings' directory.
const (
	setupTokenFile = "setup-token"
	masterKeyFile  = "master.key"
)

// keys are the secrets of a service. What the first start is to make is not there before the database is open.
type keys struct {
	setupToken string              // empty: to be made
	master     *vault.Vault        // nil: to be made
	signer     *feedsig.PrivateKey // nil: sets are not signed
}

// loadKeys reads what there is and makes nothing. Its errors are faults of the config, or of files that the config names.
func loadKeys(s settings) (*keys, error) {
	k := &keys{setupToken: s.setupToken}
	var err error
	if k.setupToken == "" {
		k.setupToken, err = readSecret(filepath.Join(s.directory, setupTokenFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("setup_token: %w", err)
		}
	}
	if k.master, err = s.vault(); err != nil {
		return nil, err
	}
	if s.signingKey != "" {
		if k.signer, err = feedsig.ReadPrivateKey(s.signingKey); err != nil {
			return nil, fmt.Errorf("signing_key: %w", err)
		}
	}
	return k, nil
}

// vault returns one with the master keys given, or of the key file; nil where there is no such file.
func (s *settings) vault() (*vault.Vault, error) {
	all := make([]vault.Key, len(s.masterKeys))
	for i, text := range s.masterKeys {
		key, err := vault.ParseKey(text)
		if err != nil {
			return nil, err // names the option
		}
		all[i] = key
	}
	if len(all) == 0 {
		var err error
		all, err = vault.ReadKeyFile(filepath.Join(s.directory, masterKeyFile))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return vault.New(all...)
}

// complete makes what is missing, and proves that the master keys are those of the database. A new master key for a database
// that has something sealed already would hide that the right one was lost until somebody needs it.
func (k *keys) complete(ctx context.Context, s settings, opened management.Store, log *slog.Logger) error {
	under, err := sealedUnder(ctx, opened)
	if err != nil {
		return err
	}
	file := filepath.Join(s.directory, masterKeyFile)
	if k.master == nil {
		if len(under) > 0 {
			if k.master, err = s.vault(); err != nil { // it may have been put back meanwhile
				return err
			}
			if k.master == nil {
				return fmt.Errorf("master_key: the database holds what is encrypted under the master key %s, and %s is not there: put it back from where it is kept safe", list(under), file)
			}
		} else {
			all, created, err := vault.LoadOrCreateKeyFile(file)
			if err != nil {
				return err
			}
			if created {
				log.Info("made a master key; keep a copy of the file, apart from the backups", "file", file)
			}
			if k.master, err = vault.New(all...); err != nil {
				return err
			}
		}
	}
	if err := k.opens(under); err != nil {
		if len(s.masterKeys) == 0 {
			k.master = nil // the file is read again, next time
		}
		return err
	}
	if k.setupToken == "" {
		file := filepath.Join(s.directory, setupTokenFile)
		token, made, err := readOrMake(file, func() string { return management.NewSecret("setup_").Reveal() })
		if err != nil {
			return fmt.Errorf("setup_token: %w", err)
		}
		if made {
			log.Info("made a set-up token for the first run", "file", file)
		}
		k.setupToken = token
	}
	return nil
}

// sealedUnder returns the master keys that something in the database is encrypted under.
func sealedUnder(ctx context.Context, opened management.Store) (ids []vault.KeyID, err error) {
	var heads [][]byte
	err = opened.View(ctx, func(tx management.Tx) error {
		heads, err = tx.FindSealedHeads(vault.HeadBytes)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for encrypted values: %w", err)
	}
	for _, head := range heads {
		id, err := vault.SealedUnder(head)
		if err != nil {
			return nil, fmt.Errorf("master_key: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// opens returns an error that names the keys that are missing.
func (k *keys) opens(under []vault.KeyID) error {
	have := make(map[vault.KeyID]bool)
	for _, id := range k.master.KeyIDs() {
		have[id] = true
	}
	var missing []vault.KeyID
	for _, id := range under {
		if !have[id] {
			missing = append(missing, id)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("master_key: the database holds what is encrypted under the master key %s, and there is only %s: add the missing one behind it",
		list(missing), list(k.master.KeyIDs()))
}

func list(ids []vault.KeyID) string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return strings.Join(texts, ", ")
}

// readOrMake reads a secret's file, or makes it with what value returns, readable by its owner alone.
func readOrMake(file string, value func() string) (text string, made bool, err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", false, err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		text, err = readSecret(file)
		return text, false, err
	}
	if err != nil {
		return "", false, err
	}
	text = value()
	_, err = io.WriteString(f, text+"\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(file)
		return "", false, err
	}
	return text, true, nil
}

// maxSecret bounds the file of a secret.
const maxSecret = 4096

// readSecret reads a secret's file. No file: fs.ErrNotExist.
func readSecret(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is no file", file)
	case info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows": // whose permission bits say nothing
		return "", fmt.Errorf("%s can be read by others: run `chmod 600 %[1]s`", file)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	if len(content) > maxSecret {
		return "", fmt.Errorf("%s has more than %d bytes", file, maxSecret)
	}
	text := strings.TrimSpace(string(content))
	if text == "" {
		return "", fmt.Errorf("%s is empty: remove it, and a new one is made", file)
	}
	return text, nil
}
