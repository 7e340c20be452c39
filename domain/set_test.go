package domain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// readSet collects what ReadSet hands over, less what it takes back.
type readSet struct {
	header   *SetHeader
	domains  map[string]*Domain
	removed  map[string]bool
	refusals []Refusal
}

func collect(r io.Reader, opts SetOptions) (*readSet, error) {
	got := &readSet{domains: make(map[string]*Domain), removed: make(map[string]bool)}
	opts.Domain = func(d *Domain) error {
		got.domains[d.Name] = d
		return nil
	}
	opts.Removed = func(name string) error {
		got.removed[name] = true
		return nil
	}
	opts.Refused = func(r Refusal) {
		got.refusals = append(got.refusals, r)
		delete(got.domains, r.Name)
		delete(got.removed, r.Name)
	}
	var err error
	got.header, err = ReadSet(r, Remote, opts)
	return got, err
}

// named returns the JSON of a minimal domain of that name.
func named(name string) string {
	return `{"name":"` + name + `","upstreams":[{"dial":"10.0.0.5:8443"}]}`
}

func TestReadSet(t *testing.T) {
	a, b := named("a.example.com"), named("B.example.com.")
	tests := []struct {
		name      string
		in        string
		changeSet bool
		want      SetHeader // without Size
		refused   []string  // LIST[INDEX] NAME: part of the error
	}{
		{name: "least", in: `{"domains":[]}`, want: SetHeader{Full: true}},
		{name: "full", in: `{"revision":420,"domains":[` + a + `,` + b + `]}`, want: SetHeader{Revision: 420, HasRevision: true, Full: true, Domains: 2}},
		{name: "base 0 is full", in: `{"revision":420,"base":0,"domains":[],"removed":[]}`, want: SetHeader{Revision: 420, HasRevision: true, Full: true}},
		{name: "delta", in: `{"revision":420,"base":410,"domains":[` + a + `],"removed":["Old.example.com."]}`, want: SetHeader{Revision: 420, HasRevision: true, Base: 410, Domains: 1, Removed: 1}},
		{name: "header last, white space", in: " {\r\n\t\"removed\" : [ \"o.example.com\" ] , \"domains\" : [ " + a + " , " + b + " ] , \"base\" : 410 , \"revision\" : 420 } \n", want: SetHeader{Revision: 420, HasRevision: true, Base: 410, Domains: 2, Removed: 1}},
		{name: "empty delta", in: `{"revision":420,"base":420,"domains":[]}`, want: SetHeader{Revision: 420, HasRevision: true, Base: 420}},
		{name: "delta of removals", in: `{"revision":420,"base":419,"removed":["a.example.com"]}`, want: SetHeader{Revision: 420, HasRevision: true, Base: 419, Removed: 1}},
		{name: "change set", in: `{"removed":["a.example.com"]}`, changeSet: true, want: SetHeader{Removed: 1}},
		{name: "highest revision", in: `{"revision":9223372036854775807,"domains":[]}`, want: SetHeader{Revision: 1<<63 - 1, HasRevision: true, Full: true}},
		{name: "unknown members", in: `{"generated":{"at":[1,2.5e-3,null,true,"x\"]"]},"domains":[],"a b":0}`, want: SetHeader{Full: true, Ignored: []string{"generated", `"a b"`}}},
		{name: "escaped member", in: `{"dom\u0061ins":[` + a + `]}`, want: SetHeader{Full: true, Domains: 1}},
		{name: "removed twice", in: `{"removed":["a.example.com","A.example.com."]}`, changeSet: true, want: SetHeader{Removed: 1}},
		{
			name: "one bad of three", in: `{"domains":[` + a + `,{"name":"Bad.example.com","upstreams":[],"color":1},` + b + `]}`,
			want: SetHeader{Full: true, Domains: 2, Refused: 1}, refused: []string{"domains[1] bad.example.com: color: unknown field"},
		},
		{
			name: "no records at all", in: `{"domains":[null,5,[` + a + `],"x",{"upstreams":[]},` + a + `]}`,
			want: SetHeader{Full: true, Domains: 1, Refused: 5, Unnamed: 5},
			refused: []string{
				"domains[0] : must be an object, not null", "domains[1] : must be an object, not a number", "domains[2] : must be an object, not an array",
				"domains[3] : must be an object, not a string", "domains[4] : name: is missing",
			},
		},
		{
			name: "name of no normal form", in: `{"domains":[` + named("a b") + `]}`,
			want: SetHeader{Full: true, Refused: 1}, refused: []string{`domains[0] : domain "a b": name: "a b"`},
		},
		{
			name: "not UTF-8", in: `{"domains":[{"name":"a.example.com","tenant":"` + "\xff" + `"}]}`,
			want: SetHeader{Full: true, Refused: 1}, refused: []string{"domains[0] a.example.com: the record is not UTF-8"},
		},
		{
			name: "one name thrice", in: `{"domains":[` + a + `,` + b + `,` + named("A.example.com") + `,` + a + `]}`,
			want: SetHeader{Full: true, Domains: 1, Refused: 3},
			refused: []string{
				"domains[0] a.example.com: name: is that of domains[0] and of domains[2]", "domains[2] a.example.com: name: is that of domains[0] and of domains[2]",
				"domains[3] a.example.com: name: is that of domains[0] and of domains[3]",
			},
		},
		{
			name: "good and bad of one name", in: `{"domains":[` + a + `,{"name":"a.example.com"}]}`,
			want: SetHeader{Full: true, Refused: 2}, refused: []string{"domains[0] a.example.com: name: is that of", "domains[1] a.example.com: upstreams: is missing"},
		},
		{
			name: "bad and good of one name", in: `{"domains":[{"name":"a.example.com"},` + a + `]}`,
			want: SetHeader{Full: true, Refused: 2}, refused: []string{"domains[0] a.example.com: upstreams: is missing", "domains[1] a.example.com: name: is that of"},
		},
		{
			name: "in both lists", in: `{"revision":2,"base":1,"domains":[` + a + `],"removed":["a.example.com"]}`,
			want: SetHeader{Revision: 2, HasRevision: true, Base: 1, Refused: 2}, refused: []string{"domains[0] a.example.com: name: is that of domains[0] and of removed[0]", "removed[0] a.example.com: name: is that of"},
		},
		{
			name: "in both lists, removed first", in: `{"removed":["a.example.com"],"domains":[` + a + `]}`, changeSet: true,
			want: SetHeader{Refused: 2}, refused: []string{"removed[0] a.example.com: name: is that of removed[0] and of domains[0]", "domains[0] a.example.com: name: is that of"},
		},
		{
			name: "bad removals", in: `{"removed":[1,"","10.0.0.1","` + strings.Repeat("a", 70_000) + `","a.example.com"]}`, changeSet: true,
			want:    SetHeader{Removed: 1, Refused: 4},
			refused: []string{"removed[0] : must be a string", "removed[1] : is missing", "removed[2] : domain \"10.0.0.1\"", "removed[3] : "},
		},
		{
			name: "record too large", in: `{"domains":[{"x":{"name":"no.example.com"},"name":"Large.example.com","tenant":"` + strings.Repeat("é", MaxSize) + `"},` + a + `]}`,
			want: SetHeader{Full: true, Domains: 1, Refused: 1}, refused: []string{"domains[0] large.example.com: the record has 2097222 bytes, more than the 1048576 allowed"},
		},
		{
			name: "record too large, name behind", in: `{"domains":[{"tenant":"` + strings.Repeat("x", MaxSize) + `","name":"large.example.com"}]}`,
			want: SetHeader{Full: true, Refused: 1, Unnamed: 1}, refused: []string{"domains[0] : the record has"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := collect(strings.NewReader(tt.in), SetOptions{ChangeSet: tt.changeSet})
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Size = int64(len(tt.in))
			if !reflect.DeepEqual(*got.header, tt.want) {
				t.Errorf("got header %+v, want %+v", *got.header, tt.want)
			}
			if len(got.domains) != tt.want.Domains || len(got.removed) != tt.want.Removed {
				t.Errorf("%d domains and %d removals are left, want %d and %d", len(got.domains), len(got.removed), tt.want.Domains, tt.want.Removed)
			}
			if len(got.refusals) != len(tt.refused) {
				t.Fatalf("refused %v, want %v", got.refusals, tt.refused)
			}
			for i, r := range got.refusals {
				where, what, _ := strings.Cut(tt.refused[i], ": ")
				if fmt.Sprintf("%s[%d] %s", r.List, r.Index, r.Name) != where || !strings.Contains(r.Err.Error(), what) || len(Errors(r.Err)) == 0 {
					t.Errorf("refusal %d is %s[%d] %s: %v, want %s", i, r.List, r.Index, r.Name, r.Err, tt.refused[i])
				}
			}
		})
	}
}

func TestReadSetDocumentFaults(t *testing.T) {
	a := named("a.example.com")
	tests := []struct {
		name, in  string
		want      string // part of the error
		malformed bool
	}{
		{"empty", ``, "byte 0: ", true},
		{"HTML", `<html><body>502</body></html>`, "is this the address of a feed?", true},
		{"array", `[` + a + `]`, "byte 0: a set is a JSON object", true},
		{"byte order mark", "\xef\xbb\xbf" + `{"domains":[]}`, "byte 0: ", true},
		{"truncated", `{"domains":[` + a, "the document ends early", true},
		{"truncated in a string", `{"domains":[{"name":"a.exam`, "the document ends early", true},
		{"truncated behind the list", `{"domains":[` + a + `]`, "ends early", true},
		{"goes on", `{"domains":[]}{}`, "byte 14: the document goes on", true},
		{"goes on with zeros", `{"domains":[]}` + "\x00", "byte 14: the document goes on", true},
		{"bad record syntax", `{"domains":[` + a + `,{"name" "x"}]}`, "expected : behind", true},
		{"trailing comma", `{"domains":[` + a + `,]}`, "expected a value", true},
		{"number", `{"domains":[],"x":01}`, "expected , or }", true},
		{"control character", `{"domains":[{"name":"` + "\n" + `"}]}`, "a control character in a string", true},
		{"escape", `{"domains":["\x"]}`, "an unknown escape", true},
		{"nested", `{"x":` + strings.Repeat("[", 1_000_000), "byte 10004: nested more than 10000 deep", true},
		{"nested record", `{"domains":[{"name":` + strings.Repeat(`{"a":`, 1_000_000), "nested more than 10000 deep", true},
		{"no value", `{"revision":,"domains":[]}`, "a value is missing", true},

		{"no domains", `{"revision":1}`, "domains: is missing", false},
		{"an error of another API", `{"error":"unauthorized"}`, "domains: is missing", false},
		{"delta without anything", `{"revision":1,"base":1}`, "domains: is missing, and so is removed", false},
		{"domains twice", `{"domains":[` + a + `],"domains":[]}`, "domains: is given twice", false},
		{"domains twice, escaped", `{"domains":[],"\u0064omains":[]}`, "domains: is given twice", false},
		{"unknown twice", `{"x":1,"x":2,"domains":[]}`, "x: is given twice", false},
		{"other case", `{"Domains":[],"domains":[]}`, "Domains: is unknown; write it as domains", false},
		{"domains null", `{"domains":null}`, "byte 11: domains: must be an array, not null", false},
		{"domains an object", `{"domains":{"a":1}}`, "domains: must be an array, not an object", false},
		{"removed a string", `{"domains":[],"removed":"a"}`, "removed: must be an array, not a string", false},
		{"revision a string", `{"revision":"420","domains":[]}`, "byte 12: revision: must be a whole number, not a string", false},
		{"revision a boolean", `{"revision":true,"domains":[]}`, "revision: must be a whole number, not a boolean", false},
		{"revision negative", `{"revision":-1,"domains":[]}`, "revision: must be a whole number from 0 to", false},
		{"revision fraction", `{"revision":4.0,"domains":[]}`, "revision: must be a whole number from 0 to", false},
		{"revision too large", `{"revision":9223372036854775808,"domains":[]}`, "byte 12: revision: must be", false},
		{"revision of many digits", `{"revision":` + strings.Repeat("1", 100_000) + `,"domains":[]}`, "revision: must be", false},
		{"base null", `{"base":null,"domains":[]}`, "base: must be a whole number, not null", false},
		{"base without revision", `{"base":1,"domains":[]}`, "revision: is missing", false},
		{"base behind revision", `{"base":5,"revision":4,"domains":[]}`, "base: is 5, later than the revision, 4", false},
		{"removed without base", `{"revision":4,"domains":[],"removed":["a.example.com"]}`, "removed: is not empty, but there is no base", false},
		{"too many entries", `{"domains":[1,2],"removed":["a","b"]}`, "removed: the set has more than 3 entries", false},
		{"long member", `{"` + strings.Repeat("k", 100_000) + `":1,"domains":[]}`, "more than 256 bytes", false},
		{"many members", `{"domains":[]` + manyMembers(64) + `}`, "more than 64 members", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := collect(strings.NewReader(tt.in), SetOptions{MaxRecords: 3})
			e, ok := errors.AsType[*SetError](err)
			if !ok || !strings.Contains(e.Error(), tt.want) || e.Malformed != tt.malformed {
				t.Fatalf("got %#v, %v; want %s", e, err, tt.want)
			}
			if len(err.Error()) > 300 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"m%d":0`, i)
	}
	return b.String()
}

// TestReadSetEveryTruncation: of a document that is cut anywhere, nothing may be applied.
func TestReadSetEveryTruncation(t *testing.T) {
	doc := `{"revision":2,"base":1,"domains":[` + named("a.example.com") + `],"x":[1.5e+3,-0,true,null,"\u00e9"],"removed":["b.example.com"]}`
	for n := range len(doc) {
		_, err := collect(strings.NewReader(doc[:n]), SetOptions{})
		if !errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
			t.Errorf("%s: %v", doc[:n], err)
		}
	}
	if _, err := collect(iotest.OneByteReader(strings.NewReader(doc)), SetOptions{}); err != nil {
		t.Error(err)
	}
}

// TestReadSetOtherErrors: the reader's and the callbacks' errors come out as such, never as the document's.
func TestReadSetOtherErrors(t *testing.T) {
	broken := errors.New("connection reset")
	doc := `{"revision":2,"base":1,"domains":[` + named("a.example.com") + `],"removed":["b.example.com"]}`
	for n := range len(doc) + 1 {
		_, err := ReadSet(io.MultiReader(strings.NewReader(doc[:n]), iotest.ErrReader(broken)), Remote, SetOptions{})
		if _, ok := errors.AsType[*SetError](err); ok || !errors.Is(err, broken) {
			t.Fatalf("at byte %d: %v", n, err)
		}
	}
	stop := errors.New("no room")
	for name, opts := range map[string]SetOptions{
		"domain":  {Domain: func(*Domain) error { return stop }},
		"removed": {Removed: func(string) error { return stop }},
	} {
		if _, err := ReadSet(strings.NewReader(doc), Remote, opts); err != stop {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := ReadSet(stuckReader{}, Remote, SetOptions{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a reader that returns nothing: %v", err)
	}
	if h, err := ReadSet(strings.NewReader(doc), Remote, SetOptions{}); err != nil || h.Domains != 1 || h.Removed != 1 {
		t.Errorf("without callbacks: %+v, %v", h, err)
	}
}

type stuckReader struct{}

func (stuckReader) Read([]byte) (int, error) { return 0, nil }

// generatedSet is a full set of n records that is made as it is read.
type generatedSet struct {
	n, next int
	record  func(b *bytes.Buffer, i int)
	buf     bytes.Buffer
	done    bool
}

func (g *generatedSet) Read(p []byte) (int, error) {
	for g.buf.Len() < len(p) && !g.done {
		switch {
		case g.next == 0:
			g.buf.WriteString(`{"revision":420,"domains":[`)
		case g.next <= g.n:
			if g.next > 1 {
				g.buf.WriteByte(',')
			}
			g.record(&g.buf, g.next-1)
		default:
			g.buf.WriteString(`]}`)
			g.done = true
		}
		g.next++
	}
	return g.buf.Read(p) // io.EOF when all is read
}

// typical is a domain as most tenants have it: two upstreams with TLS, the rest by default.
func typical(b *bytes.Buffer, i int) {
	fmt.Fprintf(b, `{"name":"shop-%d.tenant-%d.example.com","tenant":"ten_%026d","upstreams":[{"dial":"10.%d.%d.%d:8443","tls":{"server_name":"app.internal"}},{"dial":"10.255.0.6:8443","tls":{}}],"proxy_protocol":"v2"}`,
		i, i%5000, i%5000, i>>16&255, i>>8&255, i&255)
}

// TestReadSetMemory reads 100 MB of records, each as large as one may be, and holds to a small ceiling:
// the live heap is looked at every few megabytes.
func TestReadSetMemory(t *testing.T) {
	const records, ceiling = 100, 16 << 20
	padding := strings.Repeat("x", MaxSize-200)
	set := &generatedSet{n: records, record: func(b *bytes.Buffer, i int) {
		fmt.Fprintf(b, `{"name":"d%d.example.com","upstreams":[{"dial":"10.0.0.5:8443"}],"unknown":"%s"}`, i, padding)
	}}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, highest := m.HeapAlloc, uint64(0)
	h, err := ReadSet(set, Remote, SetOptions{Refused: func(r Refusal) {
		if r.Index%4 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&m)
			highest = max(highest, m.HeapAlloc)
		}
	}})
	if err != nil || h.Refused != records || h.Unnamed != 0 || h.Size < 100<<20-50_000 {
		t.Fatalf("got %+v, %v", h, err)
	}
	if highest > before+ceiling {
		t.Errorf("the heap grew by %d bytes over %d bytes of input, more than %d", highest-before, h.Size, ceiling)
	}
}

// TestReadSetManyWithOneBad: one bad record among thirty thousand costs that record alone.
func TestReadSetManyWithOneBad(t *testing.T) {
	const n, bad = 30_000, 17_777
	set := &generatedSet{n: n, record: func(b *bytes.Buffer, i int) {
		if i == bad {
			b.WriteString(`{"name":"bad.example.com","upstreams":[{"dial":"nowhere"}]}`)
			return
		}
		typical(b, i)
	}}
	var refused []Refusal
	h, err := ReadSet(set, Remote, SetOptions{Refused: func(r Refusal) { refused = append(refused, r) }})
	if err != nil || h.Domains != n-1 || len(refused) != 1 || refused[0].Index != bad || refused[0].Name != "bad.example.com" {
		t.Fatalf("got %+v, %v, %v", h, refused, err)
	}
}

// BenchmarkReadSet reads full sets of typical domains (about 230 bytes each) that are made as they are read,
// which is about an eighth of the time (generate=only), and drops them. Decoding and normal form are half of
// it, the scanner and the hashes of names an eighth each; a record takes ten allocations, all of which it keeps
// but one. What it cannot show is the collector's work where a million domains are kept.
//
//	go test -run - -bench ReadSet -benchtime 3x ./domain
func BenchmarkReadSet(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprintf("domains=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				h, err := ReadSet(&generatedSet{n: n, record: typical}, Remote, SetOptions{})
				if err != nil || h.Domains != n {
					b.Fatal(h, err)
				}
				b.SetBytes(h.Size)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/domain")
		})
	}
	b.Run("generate=only", func(b *testing.B) {
		for b.Loop() {
			n, err := io.Copy(io.Discard, struct{ io.Reader }{&generatedSet{n: 1_000_000, record: typical}})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(n)
		}
	})
}
