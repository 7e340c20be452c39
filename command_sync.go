package pqproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/feed"
	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

// errRejected makes the exit status 1 and is not printed: the outcome says it.
var errRejected = errors.New("records were rejected")

// syncOptions are the flags of sync.
type syncOptions struct {
	management, admin   string
	tokenFile, tokenEnv string
	verifyKeys          []string
	ca, cert, key       string
	maxBody             int64
	timeout             time.Duration
	allowEmpty, asJSON  bool
}

func syncCommand() *cobra.Command {
	var o syncOptions
	cmd := &cobra.Command{
		Use:   "sync --management URL",
		Short: "Fetches the set of domains once, and applies it over the admin API",
		Long: `
Fetches the full set of domains from a management URL, checks it, and puts it to
the admin API of a running Caddy, which applies it without a reload.

The domains become those of source "admin": THE SET REPLACES ALL DOMAINS THAT THE
ADMIN API HAS SET BEFORE. Domains of Caddy's configuration (source "static") and of
a management URL that Caddy itself polls (source "remote") stay as they are; for a
name in several sources, static comes before admin, and admin before remote.

Nothing is sent if the set as a whole is at fault: not valid, not signed where
--verify-key is given, without a domain, or only a change of a set. Single records
that are at fault are rejected alone, and their last good version stays. Nothing is
kept between runs, so a signed set that is older than the last one is not noticed;
a Caddy that polls by itself refuses it.

The token is read from a file or from an environment variable, because everybody on
a machine sees its command lines.

The exit status is 0 if the whole set was applied, and 1 if it was not, or if any
record was rejected, though the others were applied.`,
		Example: fmt.Sprintf(`  $ %[1]s pqproxy sync --management https://manage.internal:9443/v1/edge/domains --token-env PQPROXY_EDGE_TOKEN
  $ %[1]s pqproxy sync --management https://feed.internal/domains.json --verify-key feed.pub --admin unix//run/caddy/admin.sock`, commandName()),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runSync(cmd, &o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.management, "management", "", "URL that serves the set, http or https")
	flags.StringVar(&o.admin, "admin", caddy.DefaultAdminListen,
		"Address of Caddy's admin API, HOST:PORT or unix//PATH; the default is CADDY_ADMIN from the environment, where that is set")
	flags.StringVar(&o.tokenFile, "token-file", "", "File with the bearer token for the URL")
	flags.StringVar(&o.tokenEnv, "token-env", "", "Name of the environment variable with the bearer token for the URL")
	flags.StringArrayVar(&o.verifyKeys, "verify-key", nil,
		"File with a public key, as keygen writes it; may be repeated, and one of the keys must have signed the set (default: signatures are not looked at)")
	flags.StringVar(&o.ca, "ca", "", "PEM file of root certificates to trust for the URL instead of the system's")
	flags.StringVar(&o.cert, "cert", "", "PEM file of the client certificate to show to the URL's server")
	flags.StringVar(&o.key, "key", "", "PEM file of the client certificate's key")
	flags.Int64Var(&o.maxBody, "max-body", defaultMaxBody, "Largest set in bytes, after decompression")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Minute, "Time limit for all of it")
	flags.BoolVar(&o.allowEmpty, "allow-empty", false, "Accept a set without a domain, which removes all that the admin API has set")
	flags.BoolVar(&o.asJSON, "json", false, "Print the outcome as JSON")
	cmd.MarkFlagsMutuallyExclusive("token-file", "token-env")
	cmd.MarkFlagsRequiredTogether("cert", "key")
	if err := cmd.MarkFlagRequired("management"); err != nil {
		panic(err)
	}
	return cmd
}

// runSync fetches, checks, puts and prints. Each of its errors is printed but errRejected.
func runSync(cmd *cobra.Command, o *syncOptions) error {
	if o.timeout <= 0 {
		return fmt.Errorf("--timeout %s: must be more than 0", o.timeout)
	}
	admin, err := newAdminClient(o.admin)
	if err != nil {
		return fmt.Errorf("--admin: %w", err)
	}
	client, err := o.feedClient()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()

	answer, err := client.Fetch(ctx, feed.Request{})
	if err != nil {
		return o.timeLimited(ctx, err)
	}
	defer answer.Body.Close() // there is one: nothing else answers a request without ETag and After
	header, err := o.check(cmd, answer.Body)
	if err != nil {
		return fmt.Errorf("the set is not applied: %w", err)
	}
	if _, err := answer.Body.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("reading the set again: %w", err)
	}
	done, err := admin.putDomains(ctx, answer.Body, answer.Body.Size)
	if err != nil {
		return o.timeLimited(ctx, err)
	}
	if err := writeSync(cmd, header, done, o.asJSON); err != nil {
		return fmt.Errorf("the set is applied; writing the outcome: %w", err)
	}
	if done.Rejected > 0 {
		cmd.SilenceErrors = true
		return errRejected
	}
	return nil
}

// timeLimited says that the time limit ended it, where it did.
func (o *syncOptions) timeLimited(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("--timeout of %s is over: %w", o.timeout, err)
	}
	return err
}

// feedClient returns the client of the management URL.
func (o *syncOptions) feedClient() (*feed.Client, error) {
	if o.maxBody <= 0 {
		return nil, fmt.Errorf("--max-body %d: must be more than 0", o.maxBody)
	}
	config := feed.Config{URL: o.management, MaxBody: o.maxBody, UserAgent: userAgent(), TLS: new(tls.Config)}
	token, err := o.token()
	if err != nil {
		return nil, err
	}
	config.Token = func() (string, error) { return token, nil }
	for _, file := range o.verifyKeys {
		key, err := feedsig.ReadPublicKey(file)
		if err != nil {
			return nil, fmt.Errorf("--verify-key: %w", err)
		}
		config.Keys = append(config.Keys, key)
	}
	if o.ca != "" {
		if config.TLS.RootCAs, err = readRoots(o.ca); err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
	}
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, fmt.Errorf("--cert, --key: %w", err)
		}
		config.TLS.Certificates = []tls.Certificate{pair}
	}
	client, err := feed.New(config)
	if err != nil {
		return nil, fmt.Errorf("--management: %w", err)
	}
	return client, nil
}

// maxToken is well above what servers take in a header.
const maxToken = 64 << 10

// token returns the bearer token, or nothing if none was named. Errors never hold it.
func (o *syncOptions) token() (string, error) {
	switch {
	case o.tokenEnv != "":
		token := strings.TrimSpace(os.Getenv(o.tokenEnv))
		if token == "" {
			// What was given may be the token itself, so it is not repeated.
			return "", errors.New("--token-env: there is no environment variable of that name, or it is empty; give the name of one that holds the token")
		}
		return token, nil
	case o.tokenFile != "":
		f, err := os.Open(o.tokenFile)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		defer f.Close()
		text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		token := strings.TrimSpace(string(text))
		switch {
		case len(text) > maxToken:
			return "", fmt.Errorf("--token-file: %s is larger than any token", o.tokenFile)
		case token == "":
			return "", fmt.Errorf("--token-file: %s is empty", o.tokenFile)
		}
		return token, nil
	}
	return "", nil
}

// check reads the set as the admin API will, and refuses it where it is at fault as a whole.
func (o *syncOptions) check(cmd *cobra.Command, set io.Reader) (*domain.SetHeader, error) {
	header, err := domain.ReadSet(set, domain.Admin, domain.SetOptions{})
	switch {
	case err != nil:
		return nil, err
	case len(o.verifyKeys) > 0 && !header.HasRevision:
		return nil, errNoRevision
	case !header.Full:
		return nil, fmt.Errorf("the management URL answers with a change of revision %d, not with the full set; a full set has no base", header.Base)
	case header.Domains+header.Refused == 0 && !o.allowEmpty:
		return nil, errors.New("it has no domain, and would remove all that the admin API has set; if that is meant, give --allow-empty")
	}
	warnOfIgnored(cmd, header)
	return header, nil
}

// writeSync prints what was done.
func writeSync(cmd *cobra.Command, header *domain.SetHeader, done *outcome, asJSON bool) error {
	if asJSON {
		return writeJSON(cmd, done)
	}
	var b strings.Builder
	revision := "none"
	if header.HasRevision {
		revision = strconv.FormatUint(header.Revision, 10)
	}
	fmt.Fprintf(&b, "fetched     %d domains in %d bytes, revision %s\n", header.Domains+header.Refused, header.Size, revision)
	for _, line := range []struct {
		label string
		n     int
	}{
		{"added", done.Added}, {"changed", done.Changed}, {"removed", done.Removed},
		{"unchanged", done.Unchanged}, {"rejected", done.Rejected},
	} {
		fmt.Fprintf(&b, "%-11s %d\n", line.label, line.n)
	}
	for i, r := range done.Rejects {
		if i == 0 {
			b.WriteString("\nRejected; the last good version of each stays:\n")
		}
		fault := &domain.Error{Name: r.Name, Field: r.Field, Err: errors.New(r.Detail)}
		fmt.Fprintf(&b, "  %s\n", printable(fault.Error()))
	}
	if len(done.Rejects) >= refusalsKept {
		b.WriteString("There may be more faults; these are the first.\n")
	}
	_, err := io.WriteString(cmd.OutOrStdout(), b.String())
	return err
}

// printable keeps what others wrote from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}
