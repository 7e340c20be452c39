package api

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// places returns where the faults are, in their order.
func places(faults []management.Fault) string {
	var all []string
	for _, f := range faults {
		all = append(all, f.Pointer)
	}
	return strings.Join(all, " ")
}

func TestBodyFaults(t *testing.T) {
	a := newTestAPI(t, Options{})
	for _, test := range []struct {
		name, body string
		code       management.Code // "": accepted
		at         string
	}{
		{name: "least", body: `{"name":"a"}`},
		{name: "all", body: ` {"name":"é\u00e9\ud83d\ude00","size":3,"tags":["a"],"parts":[{"dial":"x","at":"2026-01-02T03:04:05Z"}],"secret":""} ` + "\n"},
		{name: "null for a list and for a pointer", body: `{"name":"a","tags":null,"parts":[{"dial":"x","at":null}]}`},
		{name: "empty", body: " ", code: management.Malformed},
		{name: "cut", body: `{"name":"a"`, code: management.Malformed},
		{name: "two documents", body: `{"name":"a"}{}`, code: management.Malformed},
		{name: "not UTF-8", body: "{\"name\":\"\xff\"}", code: management.Malformed},
		{name: "deep", body: `{"name":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + "}", code: management.Malformed},
		{name: "very deep and cut", body: strings.Repeat("[", 1<<19), code: management.Malformed},
		{name: "no object", body: `[]`, code: management.Invalid, at: ""},
		{name: "null", body: `null`, code: management.Invalid, at: ""},
		{name: "missing", body: `{"parts":[{}]}`, code: management.Invalid, at: "/parts/0/dial /name"},
		{name: "unknown", body: `{"name":"a","nam":1,"parts":[{"dial":"x","diall":{}}]}`, code: management.Invalid, at: "/nam /parts/0/diall"},
		{name: "case counts", body: `{"Name":"a"}`, code: management.Invalid, at: "/Name /name"},
		{name: "twice", body: `{"name":"a","name":"a"}`, code: management.Invalid, at: "/name"},
		{name: "twice, spelled differently", body: `{"name":"a","n\u0061me":"a"}`, code: management.Invalid, at: "/name"},
		{name: "twice in depth", body: `{"name":"a","parts":[{"dial":"x","dial":"y"}]}`, code: management.Invalid, at: "/parts/0/dial"},
		{name: "twice in what is unknown", body: `{"name":"a","x":{"y":{"z":1,"z":2}}}`, code: management.Invalid, at: "/x /x/y/z"},
		{name: "wrong types", body: `{"name":1,"size":"3","tags":{},"parts":[3,{"dial":null,"at":"yesterday"}]}`, code: management.Invalid, at: "/name /size /tags /parts/0 /parts/1/dial /parts/1/at"},
		{name: "fraction", body: `{"name":"a","size":1.5}`, code: management.Invalid, at: "/size"},
		{name: "exponent", body: `{"name":"a","size":1e400}`, code: management.Invalid, at: "/size"},
		{name: "large number", body: `{"name":"a","size":99999999999999999999}`, code: management.Invalid, at: "/size"},
		{name: "NUL", body: `{"name":"a\u0000"}`, code: management.Invalid, at: "/name"},
		{name: "NUL in a name", body: `{"name":"a","\u0000":1}`, code: management.Invalid, at: ""},
		{name: "half a character", body: `{"name":"\ud800"}`, code: management.Invalid, at: "/name"},
		{name: "half a character, low", body: `{"name":"\udc00\ud800x"}`, code: management.Invalid, at: "/name"},
		{name: "escaped backslash before u", body: `{"name":"\\u0000"}`},
		{name: "time before our era", body: `{"name":"a","parts":[{"dial":"x","at":"0000-01-02T03:04:05Z"}]}`, code: management.Invalid, at: "/parts/0/at"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := a.send(request{method: "POST", target: "/v1/widgets", body: test.body})
			if test.code == "" {
				wantStatus(t, w, 201)
				return
			}
			p := wantProblem(t, w, test.code)
			if got := places(p.Errors); got != test.at {
				t.Errorf("at %q, want %q: %v", got, test.at, p.Errors)
			}
			if (test.code == management.Invalid) != (len(p.Errors) > 0) {
				t.Errorf("%v", p.Errors)
			}
		})
	}
}

// TestInputIsNotEchoed: neither values nor names that could be anything come back.
func TestInputIsNotEchoed(t *testing.T) {
	a := newTestAPI(t, Options{})
	for _, body := range []string{
		`{"name":{"swordfish":"swordfish"},"size":"swordfish","tags":"swordfish","parts":[{"dial":"swordfish","at":"swordfish"}]}`,
		`{"name":"a","<b>swordfish":1}`,
		`{"name":"a","swordfish ` + strings.Repeat("x", 100) + `":1}`,
		`{"name":"a","swordfish\u202e":1}`,
		`{"name":"a",swordfish}`,
		`swordfish`,
		`{"name":"a","` + fullKey + `":1}`,
	} {
		w := a.send(request{method: "POST", target: "/v1/widgets", body: body})
		// The name that is short and plain is told, so that it can be found; see the first body.
		text := strings.ReplaceAll(w.Body.String(), "/name/swordfish", "")
		if w.Code < 400 || strings.Contains(text, "swordfish") || strings.Contains(text, fullKey) {
			t.Errorf("%d %s", w.Code, text)
		}
	}
	w := a.send(request{target: "/v1/widgets?limit=swordfish&status=swordfish&from=swordfish&big=swordfish&within=swordfish&cursor=" + strings.Repeat("swordfish", 500)})
	if p := wantProblem(t, w, management.Invalid); strings.Contains(w.Body.String(), "swordfish") || len(p.Errors) != 6 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestFaultsAreBounded(t *testing.T) {
	a := newTestAPI(t, Options{})
	w := a.send(request{method: "POST", target: "/v1/widgets", body: `{"name":"a","tags":[` + strings.Repeat("1,", 100_000) + `1]}`})
	if p := wantProblem(t, w, management.Invalid); len(p.Errors) != mostTold {
		t.Errorf("%d faults", len(p.Errors))
	}
}

func TestMediaTypesAndSizes(t *testing.T) {
	a := newTestAPI(t, Options{})
	large := `{"name":"` + strings.Repeat("a", defaultMaxBody) + `"}`
	exact := `{"name":"` + strings.Repeat("a", defaultMaxBody-len(`{"name":""}`)) + `"}`
	for _, test := range []struct {
		name, method, target, body string
		header                     http.Header
		status                     int
	}{
		{name: "form", body: `{}`, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, status: 415},
		{name: "no type", body: `{}`, header: http.Header{"Content-Type": nil}, status: 415},
		{name: "text", body: `{}`, header: http.Header{"Content-Type": {"text/plain"}}, status: 415},
		{name: "two types", body: `{}`, header: http.Header{"Content-Type": {jsonType, jsonType}}, status: 415},
		{name: "other charset", body: `{}`, header: http.Header{"Content-Type": {"application/json; charset=utf-16"}}, status: 415},
		{name: "charset", body: `{"name":"a"}`, header: http.Header{"Content-Type": {"Application/JSON; charset=UTF-8"}}, status: 201},
		{name: "merge patch with POST", body: `{}`, header: http.Header{"Content-Type": {mergePatchType}}, status: 415},
		{name: "merge patch", method: "PATCH", target: "/v1/widgets/1", body: `{}`, header: http.Header{"Content-Type": {mergePatchType}}, status: 200},
		{name: "gzip where it is not read", body: `{}`, header: http.Header{"Content-Encoding": {"gzip"}}, status: 415},
		{name: "largest", body: exact, status: 201},
		{name: "too large", body: large, status: 413},
		{name: "no body", status: 415},
		{name: "body that nobody reads", method: "DELETE", target: "/v1/widgets/1", body: `{"x":1}`, status: 422},
		{name: "empty object that nobody reads", method: "DELETE", target: "/v1/widgets/1", body: `{}`, status: 204},
		{name: "long query", method: "GET", target: "/v1/widgets?name=" + strings.Repeat("a", maxQuery), status: 413},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.method == "" {
				test.method, test.target = "POST", "/v1/widgets"
			}
			wantStatus(t, a.send(request{method: test.method, target: test.target, body: test.body, header: test.header}), test.status)
		})
	}
}

func TestStrangersSendLittle(t *testing.T) {
	a := newTestAPI(t, Options{})
	for size, status := range map[int]int{strangersMaxBody - len(`{"name":""}`): 201, strangersMaxBody: 413} {
		wantStatus(t, a.send(request{method: "POST", target: "/v1/sessions", bearer: "none", body: `{"name":"` + strings.Repeat("a", size) + `"}`}), status)
	}
}

// TestLargeBodyWithoutLength: the length that a client tells is not what bounds.
func TestLargeBodyWithoutLength(t *testing.T) {
	a := newTestAPI(t, Options{})
	server := httptest.NewServer(a.Public())
	defer server.Close()
	r, _ := http.NewRequest("POST", server.URL+"/v1/widgets", io.LimitReader(endless('a'), 1<<30))
	r.Header.Set("Authorization", "Bearer "+fullKey)
	r.Header.Set("Content-Type", jsonType)
	res, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 413 {
		t.Error(res.Status)
	}
}

type endless byte

func (e endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(e)
	}
	return len(b), nil
}

func TestGzippedBody(t *testing.T) {
	a := newTestAPI(t, Options{})
	pack := func(n int) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.CopyN(z, endless('a'), int64(n))
		z.Close()
		return b.String()
	}
	for _, test := range []struct {
		name, body string
		code       management.Code
	}{
		{"fits", pack(2 << 20), ""},
		{"bomb", pack(2<<20 + 1), management.TooLarge},
		{"large bomb", pack(20 << 20), management.TooLarge},
		{"cut", pack(1000)[:20], management.Malformed},
		{"no gzip", "hello", management.Malformed},
		{"empty members without end", strings.Repeat(pack(0), 200_000), management.TooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := a.send(request{method: "POST", target: "/v1/edge/widgets", edge: true, body: test.body, header: http.Header{"Content-Encoding": {"gzip"}}})
			if test.code == "" {
				wantStatus(t, w, 200)
				return
			}
			wantProblem(t, w, test.code)
		})
	}
}

func TestPatches(t *testing.T) {
	a := newTestAPI(t, Options{})
	wantStatus(t, a.send(request{method: "PATCH", target: "/v1/widgets/1", body: `{"size":null}`, header: http.Header{"If-Match": {`"1"`, `"2"`}}}), 200)
	in := a.seen.(*patchWidget)
	if string(in.Body) != `{"size":null}` || in.IfMatch != `"1", "2"` || in.ID != "1" {
		t.Errorf("%+v", in)
	}
	wantProblem(t, a.send(request{method: "PATCH", target: "/v1/widgets/1", body: `{"a":{"b":1,"b":2}}`}), management.Invalid)

	wantStatus(t, a.send(request{method: "PATCH", target: "/v1/widgets/1/size", body: `{}`}), 200)
	wantStatus(t, a.send(request{method: "PATCH", target: "/v1/widgets/1/size", body: `{"size":4}`}), 200)
	p := wantProblem(t, a.send(request{method: "PATCH", target: "/v1/widgets/1/size", body: `{"size":null}`}), management.Invalid)
	if places(p.Errors) != "/size" {
		t.Error(p.Errors)
	}
}

func TestQuery(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	a := newTestAPI(t, Options{Clock: func() time.Time { return now }})
	yes := true
	for _, test := range []struct {
		query string
		want  widgetFilter
		at    string // of faults
	}{
		{query: "", want: widgetFilter{paging: paging{Limit: 50}}},
		{query: "?limit=200&cursor=abc&name=&status=up&big=true&within=14d", want: widgetFilter{
			paging: paging{Limit: 200, Cursor: "abc"}, Status: "up", Big: &yes, Within: 14 * 24 * time.Hour,
		}},
		{query: "?from=2026-03-01T00:00:00%2B02:00&to=2026-03-02T00:00:00Z", want: widgetFilter{paging: paging{Limit: 50}, timeRange: timeRange{
			From: time.Date(2026, 2, 28, 22, 0, 0, 0, time.UTC), To: time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC),
		}}},
		{query: "?limit=0&cursor=%00", at: "?limit ?cursor"},
		{query: "?limit=201", at: "?limit"},
		{query: "?limit=", at: "?limit"},
		{query: "?limit=1&limit=1", at: "?limit"},
		{query: "?limit=+1", at: "?limit"},
		{query: "?nothing=1&%3Cb%3E=2", at: "? ?nothing"},
		{query: "?status=UP&big=1&within=-1h", at: "?status ?big ?within"},
		{query: "?from=2026-03-02&to=1772409600", at: "?from ?to"},
		{query: "?from=2026-03-02T00:00:00Z&to=2026-03-02T00:00:00Z", at: "?from"},
		{query: "?from=2030-03-02T00:00:00Z", at: "?from"},
		{query: "?name=%FF", at: "?name"},
	} {
		t.Run(test.query, func(t *testing.T) {
			w := a.send(request{target: "/v1/widgets" + test.query})
			if test.at != "" {
				p := wantProblem(t, w, management.Invalid)
				if got := places(p.Errors); got != test.at {
					t.Errorf("at %q, want %q", got, test.at)
				}
				return
			}
			wantStatus(t, w, 200)
			if test.want.To.IsZero() {
				test.want.From, test.want.To = now.Add(-defaultSpan), now
			}
			if got := a.seen.(*widgetFilter); !reflect.DeepEqual(*got, test.want) {
				t.Errorf("%+v, want %+v", *got, test.want)
			}
		})
	}
	wantProblem(t, a.send(request{target: "/v1/widgets?a=%zz"}), management.Malformed)
	wantProblem(t, a.send(request{target: "/v1/widgets?a;b"}), management.Malformed)
}

// FuzzReadJSON: whatever is accepted is what encoding/json reads, and nothing panics.
func FuzzReadJSON(f *testing.F) {
	for _, seed := range []string{
		`{"name":"a","size":1,"tags":["x"],"parts":[{"dial":"y","at":"2026-01-02T03:04:05Z"}]}`, `{"name":"a","name":"b"}`, `[[[]]]`, `{"a":`, `"\ud83d\ude00"`, `null`,
		`{"parts":[{"at":1}],"":{}}`, "{\"name\":\"a\"}\n", `{"name":"\u0000"}`, `{"size":-0}`, `{"size":1e2}`,
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, text []byte, sparse bool) {
		var w widget
		faults, err := readJSON(text, typeOf[widget](), sparse, &w)
		if err != nil && management.CodeOf(err) != management.Malformed {
			t.Fatal(err)
		}
		if len(faults) > mostTold {
			t.Fatal(len(faults))
		}
		for _, fault := range faults {
			if fault.Detail == notFound {
				t.Fatalf("%q: the walk missed what Unmarshal found", text)
			}
			if !plain(fault.Pointer) || len(fault.Pointer) > mostPath+mostShown+10 {
				t.Fatalf("pointer %q", fault.Pointer)
			}
		}
		if _, err := readJSON(text, nil, sparse, nil); err != nil && management.CodeOf(err) != management.Malformed {
			t.Fatal(err)
		}
	})
}

func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"", "limit=1&cursor=a", "from=2026-01-02T03:04:05Z", "limit=1&limit=2", "%zz", "a;b", "within=3d&big=true", "=", "%00=%00"} {
		f.Add(seed)
	}
	a := newTestAPI(&testing.T{}, Options{})
	f.Fuzz(func(t *testing.T, query string) {
		r := httptest.NewRequest("GET", "/v1/widgets", nil)
		r.URL.RawQuery = query
		r.Header.Set("Authorization", "Bearer "+fullKey)
		w := httptest.NewRecorder()
		a.Public().ServeHTTP(w, r)
		switch w.Code {
		case 200, 400, 413, 422:
		default:
			t.Fatalf("%d %s", w.Code, w.Body)
		}
	})
}
