package pqproxy

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

// The files of keygen where none are given.
const (
	defaultPrivateFile = "feed.key"
	defaultPublicFile  = "feed.pub"
)

func keygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen [PRIVATE_FILE PUBLIC_FILE]",
		Short: "Makes a pair of keys with which sets of domains are signed and verified",
		Long: fmt.Sprintf(`
Makes a key for signing the set of domains that edges fetch, and writes its
private half to one file (mode 0600) and its public half to another, by default
%s and %s. An edge that has the public half accepts only sets that are
signed with the private one, whoever runs the server or the network in between.

A key is a pair, Ed25519 and ML-DSA-65, and both signatures must verify.

Files that exist are never overwritten. The key itself is not printed.`, defaultPrivateFile, defaultPublicFile),
		Example: fmt.Sprintf(`  $ %[1]s pqproxy keygen
  $ %[1]s pqproxy keygen /etc/pqproxy/2027.key /etc/pqproxy/2027.pub`, commandName()),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 0 && len(args) != 2 {
				return fmt.Errorf("accepts 0 or 2 arg(s), received %d; name the private file and the public file, or neither", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{defaultPrivateFile, defaultPublicFile}
			}
			return runKeygen(cmd, args[0], args[1])
		},
	}
}

func runKeygen(cmd *cobra.Command, private, public string) error {
	key, err := feedsig.Generate(rand.Reader)
	if err != nil {
		return err
	}
	if err := key.WriteFiles(private, public); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w; a key is never overwritten, so name new files, two different ones", err)
		}
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), `key ID        %s
private key   %s
public key    %s

The private key goes to the management plane alone (signing_key). The public
key goes to every edge (verify_key).

To rotate: give the edges the new public key beside the old one, then the
management plane the new private key, then take the old one from the edges.
`, key.Public().ID(), private, public)
	if err != nil {
		return fmt.Errorf("the keys are made; writing about them: %w", err)
	}
	return nil
}
