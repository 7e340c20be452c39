//go:build linux

package lab

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strconv"
)

// RawSuffix is what the name of a file with raw results ends in, behind the prefix of the run.
const RawSuffix = "-raw.jsonl"

// RawFile takes one JSON object a line: the environment, then each measurement as it is made, so that a run which is
// interrupted leaves what it has.
type RawFile struct {
	file    *os.File
	encoder *json.Encoder
}

// CreateRaw creates the file, which must not exist, with the environment as its first line.
func CreateRaw(name string, environment any) (*RawFile, error) {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	raw := &RawFile{file: file, encoder: json.NewEncoder(file)}
	if err := raw.Write(environment); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return raw, nil
}

// Write adds a line.
func (r *RawFile) Write(line any) error { return r.encoder.Encode(line) }

// Close closes the file.
func (r *RawFile) Close() error { return r.file.Close() }

// Spread is the median of some values and their range.
type Spread struct {
	Median, Least, Most float64
}

// SpreadOf returns the spread of at least one value, and leaves values as they are.
func SpreadOf(values []float64) Spread {
	sorted := slices.Sorted(slices.Values(values))
	return Spread{Median: Median(sorted), Least: sorted[0], Most: sorted[len(sorted)-1]}
}

// String is `median [least–most]`, or the median alone where they are one.
func (s Spread) String() string {
	text := Number(s.Median)
	if s.Least != s.Most {
		text += " [" + Number(s.Least) + "–" + Number(s.Most) + "]"
	}
	return text
}

// Number prints three significant digits, never an exponent.
func Number(v float64) string {
	digits := 2
	switch a := max(v, -v); {
	case a >= 100:
		digits = 0
	case a >= 10:
		digits = 1
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}

// Median returns the middle of sorted values, the mean of the two middle ones where there are two.
func Median(sorted []float64) float64 {
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// Percentile returns the least of sorted values that p percent of them do not exceed (nearest rank).
func Percentile(sorted []float64, p int) float64 {
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(rank, 1)-1]
}

// PercentileOf returns a percentile of values in any order, 0 where there are none.
func PercentileOf(values []float64, p int) float64 {
	if len(values) == 0 {
		return 0
	}
	return Percentile(slices.Sorted(slices.Values(values)), p)
}
