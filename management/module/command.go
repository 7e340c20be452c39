package module

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/pqproxy/caddy-pqproxy/management/store"
	"github.com/pqproxy/caddy-pqproxy/management/vault"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "pqproxy-management",
		Short: "Tools for the operator of a pqproxy management plane",
		Long: `
Tools for the operator of a pqproxy management plane. Each reads the same config
file as the service, and works on its database. Run them as the user of the
service and with its environment, where its files and placeholders are found.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Use = "pqproxy-management" // Caddy leaves a space behind a name without Usage
			cmd.AddCommand(backupCommand(), restoreCommand(), rotateCommand(), resetPasswordCommand())
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return cmd.Help()
				}
				return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
			}
		},
	})
}

// config are the flags that name the config file.
type config struct{ file, adapter string }

func (c *config) flags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&c.file, "config", "c", "", "Configuration file of the service")
	cmd.Flags().StringVarP(&c.adapter, "adapter", "a", "", "Name of the config adapter, where the file is no JSON and not called Caddyfile")
	return cmd
}

// settings reads the management plane's settings from the config file.
func (c *config) settings() (settings, error) {
	text, file, _, err := caddycmd.LoadConfig(c.file, c.adapter)
	if err != nil {
		return settings{}, err
	}
	if text == nil {
		return settings{}, errors.New("no config file: name it with --config")
	}
	var read struct {
		Apps map[string]json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(text, &read); err != nil {
		return settings{}, fmt.Errorf("%s: %w", file, err)
	}
	var app App
	raw, ok := read.Apps[appName]
	if !ok && !bytes.Contains(text, []byte(`"`+appName+`"`)) { // a handler alone has the app with its defaults
		return settings{}, fmt.Errorf("%s has no %s: name the config of the service with --config", file, appName)
	}
	if ok {
		if err := caddy.StrictUnmarshalJSON(raw, &app); err != nil {
			return settings{}, fmt.Errorf("%s: %s: %w", file, appName, err)
		}
	}
	s, err := app.resolve(caddy.NewReplacer())
	if err != nil {
		return settings{}, fmt.Errorf("%s: %s: %w", file, appName, err)
	}
	return s, nil
}

// open reads the config and opens its database: an existing one, unless it is to be made.
func (c *config) open(ctx context.Context, create bool) (settings, *store.Store, error) {
	s, err := c.settings()
	if err != nil {
		return s, nil, err
	}
	opened, err := store.Open(ctx, store.Options{Driver: s.driver, Source: s.source, Log: slog.New(slog.DiscardHandler), Existing: !create})
	if errors.Is(err, store.ErrMissing) {
		err = fmt.Errorf("%w (is this the config of the service, and its user and environment?)", err)
	}
	return s, opened, err
}

// plane is open, with the rules on top. sealed says that the command needs the master keys.
func (c *config) plane(ctx context.Context, sealed bool) (*parts, func(), error) {
	s, opened, err := c.open(ctx, false)
	if err != nil {
		return nil, nil, err
	}
	p, err := commandPlane(ctx, s, opened, sealed)
	if err != nil {
		return nil, nil, errors.Join(err, opened.Close())
	}
	return p, func() { p.close(); opened.Close() }, nil
}

// commandPlane is assemble for a command, which makes no keys: they would be its user's, not the service's.
func commandPlane(ctx context.Context, s settings, opened *store.Store, sealed bool) (*parts, error) {
	s.signingKey, s.smtp, s.setupToken = "", nil, "no command asks for it"
	k, err := loadKeys(s)
	if err != nil {
		return nil, err
	}
	switch {
	case sealed && k.master == nil:
		return nil, fmt.Errorf("there is no master key yet: %s is not there", filepath.Join(s.directory, masterKeyFile))
	case sealed:
		err = k.complete(ctx, s, opened, slog.New(slog.DiscardHandler))
	case k.master == nil:
		k.master, err = vault.New(vault.NewKey()) // which nothing is encrypted with
	}
	if err != nil {
		return nil, err
	}
	return assemble(s, k, opened, slog.New(slog.DiscardHandler))
}

func backupCommand() *cobra.Command {
	var c config
	return c.flags(&cobra.Command{
		Use:   "backup FILE",
		Short: "Writes everything but connection records to a file",
		Long: `
Writes a consistent copy of the database to FILE, or to standard output for -,
while the service runs. It holds hashes of passwords and keys, and tenants'
private keys as they are in the database: encrypted. The master key is not in
it: keep that elsewhere. Records of single connections are left out.

A backup of SQLite can be restored to PostgreSQL, and the other way round.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, opened, err := c.open(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer opened.Close()
			if args[0] == "-" {
				return opened.Backup(cmd.Context(), cmd.OutOrStdout())
			}
			return writeWhole(args[0], func(w io.Writer) error { return opened.Backup(cmd.Context(), w) })
		},
	})
}

// writeWhole writes a file that is there with all of its content or not at all, readable by its owner alone.
func writeWhole(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".backup-*") // made with 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // without effect once it was renamed
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func restoreCommand() *cobra.Command {
	var (
		c     config
		force bool
	)
	cmd := c.flags(&cobra.Command{
		Use:   "restore FILE",
		Short: "Fills the database from a backup",
		Long: `
Fills the database from FILE, or from standard input for -. The whole file is
checked first, and written in one transaction. The revision that edges follow is
lifted by 1,000,000, so that they take the restored set although it is older.

Stop the service first. A database that has tenants is not touched without
--force, which replaces all that it has.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			from := io.Reader(cmd.InOrStdin())
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				from = f
			}
			s, opened, err := c.open(cmd.Context(), true)
			if err != nil {
				return err
			}
			defer opened.Close()
			if err := opened.Restore(cmd.Context(), from, force); err != nil {
				return err
			}
			where := s.driver
			if where == store.SQLite {
				where += " " + s.source
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "restored to "+where)
			return err
		},
	})
	cmd.Flags().BoolVar(&force, "force", false, "Replace what the database has")
	return cmd
}

func rotateCommand() *cobra.Command {
	var c config
	return c.flags(&cobra.Command{
		Use:   "rotate-master-key",
		Short: "Puts all private keys under the first master key",
		Long: `
Encrypts the data key of every private key in the database anew, under the first
master_key of the config. To replace a key: put the new one in front of the old
one, restart the service, run this, then remove the old one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, done, err := c.plane(cmd.Context(), true)
			if err != nil {
				return err
			}
			defer done()
			n, err := p.plane.RotateMasterKey(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d keys are under the first master key now\n", n)
			return err
		},
	})
}

func resetPasswordCommand() *cobra.Command {
	var c config
	return c.flags(&cobra.Command{
		Use:   "reset-password EMAIL",
		Short: "Prints a link with which a user sets a new password",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, done, err := c.plane(cmd.Context(), false)
			if err != nil {
				return err
			}
			defer done()
			link, err := p.plane.PasswordResetLink(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), link)
			return err
		},
	})
}
