//go:build !linux

package pqproxy

// unsent is 0: what the kernel holds is not known here.
func (w *wire) unsent() int { return 0 }
