package domain

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// checkAppend compares what AppendJSON writes of d with what json.Marshal does.
func checkAppend(t *testing.T, d *Domain) {
	t.Helper()
	text := d.AppendJSON(nil)
	want, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var got, wanted any
	if err := json.Unmarshal(want, &wanted); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, wanted) {
		t.Fatalf("%s, %v; json.Marshal writes %s", text, err, want)
	}
}

// fill sets every field in v, however deep, to something that is not zero.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("text")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(time.Second))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0))
		fill(t, v.Index(1))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	default:
		t.Fatalf("a field of %v is new to this test", v.Type())
	}
}

// TestEveryFieldIsCarried: whatever field a domain gets, AppendJSON writes it, the decoder reads it, and Clone
// copies it.
func TestEveryFieldIsCarried(t *testing.T) {
	var d Domain
	fill(t, reflect.ValueOf(&d).Elem())
	checkAppend(t, &d)
	var back Domain
	if err := back.UnmarshalJSON(d.AppendJSON(nil)); err != nil || !reflect.DeepEqual(back, d) {
		t.Errorf("read back as %+v, %v", back, err)
	}
	if !reflect.DeepEqual(d.Clone(), &d) {
		t.Errorf("cloned as %+v", d.Clone())
	}
}

func TestAppendJSON(t *testing.T) {
	for name, d := range map[string]*Domain{
		"zero":          {},
		"no upstreams":  {Name: "a", Upstreams: []Upstream{}, ALPN: []string{}},
		"zeros in it":   {Upstreams: []Upstream{{}, {TLS: &UpstreamTLS{}}}, HealthCheck: &HealthCheck{}},
		"last alone":    {Upstreams: []Upstream{{TLS: &UpstreamTLS{InsecureSkipVerify: true}}}, HealthCheck: &HealthCheck{Fall: 1}, Certificate: Certificate{Fallback: "none"}},
		"negative":      {MaxConnections: -1, HealthCheck: &HealthCheck{Interval: -1, Rise: -5}},
		"escapes":       {Name: "\"\\/\b\f\n\r\t\x00\x1f\x7f", Tenant: "\"", ALPN: []string{"\\", "a\"", "\"a", "a\x01b\x02c"}},
		"HTML":          {Tenant: "<a href='x'>&amp;</a>\u2028\u2029"},
		"not ASCII":     {Tenant: "Bücher € 🙂 \ufffd"},
		"not UTF-8":     {Tenant: "\xff", ALPN: []string{"a\xc3", "\xc3(", "\xed\xa0\x80", "\xf0\x9f\x99", "ü\xffü"}},
		"a private key": {Certificate: Certificate{Source: BYOC, ChainPEM: "a\nb\n", KeyPEM: secretPEM}},
	} {
		t.Run(name, func(t *testing.T) { checkAppend(t, d) })
	}
}

func TestAppendJSONBeginsWithName(t *testing.T) {
	d, err := Parse([]byte(`{"tenant":"x","upstreams":[{"dial":"a:1"}],"name":"*.Bücher_1.Example.","certificate":{"source":"internal"}}`), Remote)
	if err != nil {
		t.Fatal(err)
	}
	before := []byte("kept ")
	text := d.AppendJSON(before)
	if want := `kept {"name":"*.xn--bcher_1-n2a.example",`; !strings.HasPrefix(string(text), want) {
		t.Errorf("%s does not begin with %s", text, want)
	}
	if !bytes.Equal(before, []byte("kept ")) {
		t.Errorf("what was in the buffer became %q", before)
	}
}

func TestAppendJSONAllocatesNothing(t *testing.T) {
	d := typicalDomain(t)
	d.HealthCheck = &HealthCheck{Type: HealthTLS, Interval: Duration(90 * time.Second), Timeout: Duration(1500 * time.Millisecond), Rise: 2, Fall: 3}
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = d.AppendJSON(buf[:0]) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzAppendJSON: of any values, in normal form or not, AppendJSON writes what json.Marshal does. Bits of has
// say which fields are set. FuzzParse has the same for what Parse accepts.
func FuzzAppendJSON(f *testing.F) {
	f.Add("app.example.com", "10.0.0.5:8443", -7, uint32(0))
	f.Add("a\xff\"", "\u2028<é🙂\\", 1<<40, ^uint32(0))
	f.Add("\n\x00\x7f", "\xed\xa0\x80\xf0\x9f\x99", 0, uint32(0x55555))
	f.Add("", "x", 1, uint32(0xaaaaa))
	f.Fuzz(func(t *testing.T, s1, s2 string, n int, has uint32) {
		var d Domain
		bit := 0
		var set func(v reflect.Value)
		set = func(v reflect.Value) {
			bit++
			if v.Kind() != reflect.Struct && has>>(bit%32)&1 == 0 {
				return
			}
			switch v.Kind() {
			case reflect.String:
				v.SetString([]string{s1, s2, s1 + s2}[bit%3])
			case reflect.Bool:
				v.SetBool(true)
			case reflect.Int, reflect.Int64:
				v.SetInt(int64(n))
			case reflect.Pointer:
				v.Set(reflect.New(v.Type().Elem()))
				set(v.Elem())
			case reflect.Slice:
				v.Set(reflect.MakeSlice(v.Type(), n&3, n&3))
				for i := range v.Len() {
					set(v.Index(i))
				}
			case reflect.Struct:
				for i := range v.NumField() {
					set(v.Field(i))
				}
			}
		}
		set(reflect.ValueOf(&d).Elem())
		checkAppend(t, &d)
	})
}

// typicalDomain is what typical writes, in normal form.
func typicalDomain(t testing.TB) *Domain {
	t.Helper()
	var text bytes.Buffer
	typical(&text, 1234)
	d, err := Parse(text.Bytes(), Remote)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// BenchmarkAppendJSON writes a typical record in normal form, about 400 bytes, beside what json.Marshal takes
// for it. Looking at every byte for what must be escaped is most of it. Run:
//
//	go test -run - -bench AppendJSON -benchtime 1s ./domain
func BenchmarkAppendJSON(b *testing.B) {
	d := typicalDomain(b)
	b.Run("by=AppendJSON", func(b *testing.B) {
		buf := make([]byte, 0, 4096)
		b.ReportAllocs()
		for b.Loop() {
			buf = d.AppendJSON(buf[:0])
		}
		b.SetBytes(int64(len(buf)))
	})
	b.Run("by=json.Marshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			text, err := json.Marshal(d)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(text)))
		}
	})
}
