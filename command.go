package pqproxy

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/pqproxy/caddy-pqproxy/probe"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "pqproxy",
		Short: "Post-quantum TLS tools",
		Long: `
Tools for those who run or plan a post-quantum TLS front door.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Use = "pqproxy" // Caddy leaves a space behind a name without Usage
			cmd.AddCommand(probeCommand(), keygenCommand(), signCommand(), syncCommand())
			cmd.RunE = helpOrUnknown
		},
	})
}

// helpOrUnknown runs when no sub-command was recognised. Without it cobra takes a misspelt one for an
// argument, prints the help and exits with status 0.
func helpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return fmt.Errorf("unknown command %q for %q; run '%s pqproxy --help'", args[0], cmd.CommandPath(), commandName())
}

// commandName is how the running binary was called, so that a printed command works as it stands.
func commandName() string {
	if len(os.Args) > 0 && os.Args[0] != "" {
		return os.Args[0]
	}
	if caddy.CustomBinaryName != "" {
		return caddy.CustomBinaryName
	}
	return "caddy"
}

// errNotPostQuantum makes the exit status 1 and is not printed: the probe's own output says it.
var errNotPostQuantum = errors.New("the handshake was not post-quantum")

func probeCommand() *cobra.Command {
	var (
		options probe.Options
		ca      string
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "probe HOST[:PORT]",
		Short: "Shows whether a TLS server negotiates post-quantum key exchange",
		Long: `
Makes one TLS connection to the server, sends no data, and shows what was
negotiated: the key-exchange group above all, then version, cipher suite, ALPN,
the certificate chain, and the time that each step took. The port defaults to
443.

A certificate that does not verify is reported and does not end the probe.

The exit status is 0 only if the handshake was post-quantum, and 1 otherwise,
so that scripts can rely on it.`,
		Example: fmt.Sprintf(`  $ %[1]s pqproxy probe example.com
  $ %[1]s pqproxy probe --json 203.0.113.10:8443 --server-name example.com
  $ %[1]s pqproxy probe --ca root.pem --alpn imap mail.internal:993`, commandName()),
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			options.Address = args[0]
			if options.Timeout <= 0 {
				return fmt.Errorf("--timeout %s: must be more than 0", options.Timeout)
			}
			if ca != "" {
				roots, err := readRoots(ca)
				if err != nil {
					return fmt.Errorf("--ca: %w", err)
				}
				options.RootCAs = roots
			}
			return runProbe(cmd, options, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&asJSON, "json", false, "Print the result as JSON")
	flags.StringVar(&options.ServerName, "server-name", "", "Name for SNI and the certificate (default: HOST)")
	flags.StringSliceVar(&options.ALPN, "alpn", []string{"h2", "http/1.1"},
		"Application protocols to offer, comma-separated or repeated; empty for none")
	flags.StringVar(&ca, "ca", "", "PEM file of root certificates to trust instead of the system's")
	flags.DurationVar(&options.Timeout, "timeout", 10*time.Second, "Time limit for the whole probe")
	return cmd
}

// runProbe prints a result also where there was no handshake. Only faults of the command line are
// returned as errors to be printed.
func runProbe(cmd *cobra.Command, options probe.Options, asJSON bool) error {
	result, err := probe.Run(cmd.Context(), options)
	if _, probed := errors.AsType[*probe.Error](err); err != nil && !probed {
		return err
	}
	if err := writeProbe(cmd, result, asJSON); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	if !result.PostQuantum {
		cmd.SilenceErrors = true
		return errNotPostQuantum
	}
	return nil
}

func writeProbe(cmd *cobra.Command, result *probe.Result, asJSON bool) error {
	if !asJSON {
		return result.WriteText(cmd.OutOrStdout())
	}
	return writeJSON(cmd, result)
}

func writeJSON(cmd *cobra.Command, v any) error {
	encoder := json.NewEncoder(cmd.OutOrStdout())
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

func readRoots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", file)
	}
	return roots, nil
}
