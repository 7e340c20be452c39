package pqproxy

import (
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

// What sign prints, for --format.
const (
	formatHeader = "header"
	formatValue  = "value"
	formatNginx  = "nginx"
)

func signCommand() *cobra.Command {
	var key, format string
	cmd := &cobra.Command{
		Use:   "sign FILE --key PRIVATE_FILE",
		Short: "Signs a set of domains in a file, for a web server to send the signature",
		Long: `
Reads a set of domains from a file, and prints the header ` + feedsig.Header + `
with which a web server must send it to edges that verify signatures. The file
itself is not changed. Each change of it needs a new signature; until the server
sends both, edges refuse the set and go on with the one they have.

A set that edges would refuse as a whole is not signed: one that is not valid, or
has no "revision". Revisions must never go down, so raise it with each change.
Single records that edges would refuse are reported on stderr, and do not keep the
set from being signed.

Formats:
  header  the whole line of the header
  value   its value alone
  nginx   directives for a location block; nginx takes no text as long as the
          signature in one piece, so it is put together from several`,
		Example: fmt.Sprintf(`  $ %[1]s pqproxy sign domains.json --key feed.key
  $ %[1]s pqproxy sign domains.json --key feed.key --format nginx > signature.conf`, commandName()),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			render, ok := signFormats[format]
			if !ok {
				return fmt.Errorf("--format %q: must be %s, %s or %s", format, formatHeader, formatValue, formatNginx)
			}
			private, err := feedsig.ReadPrivateKey(key)
			if err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			signature, err := signSet(cmd, args[0], private)
			if err != nil {
				return err
			}
			if _, err := io.WriteString(cmd.OutOrStdout(), render(signature)); err != nil {
				return fmt.Errorf("writing the signature: %w", err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&key, "key", "", "File with the private key, as keygen writes it")
	flags.StringVar(&format, "format", formatHeader, "What is printed: header, value or nginx")
	if err := cmd.MarkFlagRequired("key"); err != nil {
		panic(err)
	}
	return cmd
}

// signSet checks the set in a file as edges do, and returns its signature.
func signSet(cmd *cobra.Command, file string, key *feedsig.PrivateKey) (signature string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	digest := sha512.New()
	// ReadSet reads to the end, white space behind the set included.
	header, err := domain.ReadSet(io.TeeReader(f, digest), domain.Remote, domain.SetOptions{Refused: warnOfRefusals(cmd)})
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", file, err)
	case !header.HasRevision:
		return "", fmt.Errorf("%s: %w; add it, and raise it with each change", file, errNoRevision)
	case header.Full && header.Domains+header.Refused == 0:
		warnf(cmd, "the set has no domain; edges refuse it unless they have allow_empty")
	}
	if header.Refused > 0 {
		warnf(cmd, "edges will refuse %d of the records and apply the others (%d)", header.Refused, header.Domains+header.Removed)
	}
	warnOfIgnored(cmd, header)
	return key.Sign([sha512.Size]byte(digest.Sum(nil))), nil
}

// errNoRevision is what edges refuse a signed set for.
var errNoRevision = errors.New("revision is missing; without one an old set could be played back")

// warnOfRefusals returns what tells of the first records that are refused.
func warnOfRefusals(cmd *cobra.Command) func(domain.Refusal) {
	lines := 0
	return func(r domain.Refusal) {
		for _, fault := range domain.Errors(r.Err) {
			switch lines++; {
			case lines <= refusalsKept:
				warnf(cmd, "%s[%d]: %v", r.List, r.Index, fault)
			case lines == refusalsKept+1:
				warnf(cmd, "there are more faults than the %d listed", refusalsKept)
			}
		}
	}
}

// warnOfIgnored tells of what is no part of a set: a misspelt member has no effect.
func warnOfIgnored(cmd *cobra.Command, header *domain.SetHeader) {
	if len(header.Ignored) > 0 {
		warnf(cmd, "members of the set that are not known here have no effect: %s", strings.Join(header.Ignored, ", "))
	}
}

// warnf tells of something that does not end the command.
func warnf(cmd *cobra.Command, format string, args ...any) {
	fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", printable(fmt.Sprintf(format, args...)))
}

var signFormats = map[string]func(signature string) string{
	formatHeader: func(signature string) string { return feedsig.Header + ": " + signature + "\n" },
	formatValue:  func(signature string) string { return signature + "\n" },
	formatNginx:  nginxDirectives,
}

// nginxPiece is how much of a signature is in one parameter; nginx takes parameters of less than 4096 bytes
// (NGX_CONF_BUFFER).
const nginxPiece = 2000

// nginxDirectives sends a signature, which has no quotation mark of this kind and nothing that nginx replaces.
func nginxDirectives(signature string) string {
	var set, joined strings.Builder
	for i := 1; signature != ""; i++ {
		n := min(len(signature), nginxPiece)
		fmt.Fprintf(&set, "set $pqproxy_signature_%d '%s';\n", i, signature[:n])
		fmt.Fprintf(&joined, "${pqproxy_signature_%d}", i)
		signature = signature[n:]
	}
	return set.String() + "add_header " + feedsig.Header + " \"" + joined.String() + "\";\n"
}
