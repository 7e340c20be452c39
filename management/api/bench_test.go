package api

import (
	"strings"
	"testing"
)

// BenchmarkReadJSON is the most that one body can cost: the largest one, all of it small values. What dominates is
// encoding/json, which goes over it twice.
func BenchmarkReadJSON(b *testing.B) {
	text := []byte(`{"name":"a","tags":[` + strings.Repeat(`"",`, (defaultMaxBody-30)/3) + `""]}`)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		var w widget
		if faults, err := readJSON(text, typeOf[widget](), false, &w); err != nil || len(faults) > 0 {
			b.Fatal(faults, err)
		}
	}
}
