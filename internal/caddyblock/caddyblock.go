// Package caddyblock reads the options of a Caddyfile block, one line each: typed, given once, and with errors that say what to write.
//
//	b := caddyblock.Block{Dispenser: d}
//	for b.More() {
//		switch b.Val() {
//		case "grace_period":
//			b.Duration(&a.GracePeriod)
//		default:
//			b.Unknown("pqproxy", "grace_period")
//		}
//	}
//	return b.Err
package caddyblock

import (
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Block reads the options of a block. The first fault is kept and ends every block.
type Block struct {
	*caddyfile.Dispenser
	Err  error // the first fault; the caller returns it
	seen map[string]bool
	deep int
}

// More moves to the next option of the block that the dispenser is in.
func (b *Block) More() bool { return b.Err == nil && b.NextBlock(b.deep) }

// Within reads the block of the present option, if it has one.
func (b *Block) Within(each func()) {
	outer, seen := b.deep, b.seen
	b.deep, b.seen = b.Nesting(), nil
	for b.More() {
		each()
	}
	b.deep, b.seen = outer, seen
}

// Fail keeps the first fault, with file and line.
func (b *Block) Fail(err error) {
	if b.Err == nil {
		b.Err = err
	}
}

// Unknown faults an option that a block does not have.
func (b *Block) Unknown(block, known string) {
	if b.Val() == "{" {
		b.Fail(b.Errf("the option before this { takes no block; remove the block or write its lines beside the option"))
		return
	}
	b.Fail(b.Errf("%s has no option %q; there are: %s", block, b.Val(), known))
}

// Once faults an option that is given twice in its block.
func (b *Block) Once() {
	if b.seen == nil {
		b.seen = make(map[string]bool)
	}
	if b.seen[b.Val()] {
		b.Fail(b.Errf("%s is given twice; keep one", b.Val()))
	}
	b.seen[b.Val()] = true
}

// NoArgument faults arguments of an option whose settings are in its block.
func (b *Block) NoArgument(option string) {
	if args := b.RemainingArgs(); len(args) > 0 {
		b.Fail(b.Errf("%s takes no argument; write its options in a block after it, not %q", option, args[0]))
	}
}

// Flag reads an option without an argument.
func (b *Block) Flag(into *bool) {
	b.Once()
	option := b.Val()
	if args := b.RemainingArgs(); len(args) > 0 {
		b.Fail(b.Errf("%s takes no argument, its presence switches it on; remove %q", option, args[0]))
	}
	*into = true
}

// Text reads the one argument of an option.
func (b *Block) Text() string {
	b.Once()
	return b.One("a value", "put it in quotes if it has spaces")
}

// One reads the one argument of an option: what it is, and what to do with several.
func (b *Block) One(what, several string) string {
	option := b.Val()
	args := b.RemainingArgs()
	switch {
	case len(args) == 0:
		b.Fail(b.Errf("%s needs %s", option, what))
		return ""
	case len(args) > 1:
		b.Fail(b.Errf("%s takes %s, not %d arguments; %s", option, what, len(args), several))
		return ""
	}
	return args[0]
}

// Count reads a whole number that is not negative.
func (b *Block) Count(into *int) {
	option := b.Val()
	text := b.Text()
	n, err := strconv.Atoi(text)
	if (err != nil || n < 0) && b.Err == nil {
		b.Fail(b.Errf("%s takes a whole number such as 1000, not %q", option, text))
	}
	*into = n
}

// Duration reads a duration such as 30s or 1h.
func (b *Block) Duration(into *caddy.Duration) {
	option := b.Val()
	text := b.Text()
	d, err := caddy.ParseDuration(text)
	if (err != nil || d <= 0) && b.Err == nil {
		b.Fail(b.Errf("%s takes a duration of more than 0 such as %s, not %q", option, 30*time.Second, text))
	}
	*into = caddy.Duration(d)
}

// OneOf reads one of a few words.
func OneOf[T ~string](b *Block, into *T, words ...T) {
	option := b.Val()
	text := T(b.Text())
	for _, w := range words {
		if text == w {
			*into = w
			return
		}
	}
	last := len(words) - 1
	b.Fail(b.Errf("%s is %s or %s, not %q", option, join(words[:last]), words[last], text))
}

// join lists words for a message.
func join[T ~string](words []T) string {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = string(w)
	}
	return strings.Join(texts, ", ")
}
