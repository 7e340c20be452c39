//go:build linux

package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Main is the main function of the program of that name: it parses the arguments, and runs with a context that the user's
// interrupt ends, so that nothing is left running and no file behind. An error is printed, and the exit status is 1.
func Main[O any](name string, parse func(args []string) (O, error), run func(context.Context, O) error) {
	opts, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = interruptible(opts, run)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

func interruptible[O any](opts O, run func(context.Context, O) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, opts)
	if ctx.Err() != nil {
		return errors.New("interrupted") // whatever failed, failed because of it
	}
	return err
}
