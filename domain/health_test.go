package domain

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// checked returns the JSON of a domain with that health check and those upstreams; `-` stands for one without
// TLS, `t` for one with.
func checked(check, upstreams string) string {
	plain := strings.NewReplacer("-", `,{"dial":"#:1"}`, "t", `,{"dial":"#:1","tls":{}}`).Replace(upstreams)
	for _, host := range []string{"a", "b", "c"} {
		plain = strings.Replace(plain, "#", host, 1)
	}
	return `{"name":"a.example","upstreams":[` + strings.TrimPrefix(plain, ",") + `],"health_check":` + check + `}`
}

func TestHealthCheck(t *testing.T) {
	const ms = Duration(time.Millisecond)
	const s = Duration(time.Second)
	tests := []struct {
		name, check, upstreams string
		want                   HealthCheck
	}{
		{"defaults", `{}`, "-", HealthCheck{HealthTCP, 10 * s, 5 * s, 2, 3}},
		{"defaults with TLS", `{}`, "tt", HealthCheck{HealthTLS, 10 * s, 5 * s, 2, 3}},
		{"defaults with TLS for some", `{}`, "t-t", HealthCheck{HealthTCP, 10 * s, 5 * s, 2, 3}},
		{"zero is the default", `{"type":"","interval":"0s","timeout":"0","rise":0,"fall":0}`, "-", HealthCheck{HealthTCP, 10 * s, 5 * s, 2, 3}},
		{"all", `{"type":"tls","interval":"1m30s","timeout":"1.5s","rise":5,"fall":7}`, "t", HealthCheck{HealthTLS, 90 * s, 1500 * ms, 5, 7}},
		{"tcp to a TLS upstream", `{"type":"tcp"}`, "t", HealthCheck{HealthTCP, 10 * s, 5 * s, 2, 3}},
		{"interval below the usual timeout", `{"interval":"2s"}`, "-", HealthCheck{HealthTCP, 2 * s, 2 * s, 2, 3}},
		{"lowest", `{"interval":"1s","timeout":"100ms","rise":1,"fall":1}`, "-", HealthCheck{HealthTCP, s, 100 * ms, 1, 1}},
		{"highest", `{"interval":"1h","timeout":"60m","rise":100,"fall":100}`, "-", HealthCheck{HealthTCP, 3600 * s, 3600 * s, 100, 100}},
		{"an escape", `{"interval":"10\u0073"}`, "-", HealthCheck{HealthTCP, 10 * s, 5 * s, 2, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := Parse([]byte(checked(tt.check, tt.upstreams)), Remote)
			if err != nil {
				t.Fatal(err)
			}
			if *d.HealthCheck != tt.want {
				t.Errorf("got %+v, want %+v", *d.HealthCheck, tt.want)
			}
			again := d.Clone()
			if err := again.Normalize(Remote); err != nil || !reflect.DeepEqual(again, d) {
				t.Errorf("normal form changes to %v, %v", again, err)
			}
			text, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := Parse(text, Remote); err != nil || !reflect.DeepEqual(again, d) {
				t.Errorf("JSON %s becomes %v, %v", text, again, err)
			}
		})
	}
	if d, err := Parse([]byte(record("")), Remote); err != nil || d.HealthCheck != nil {
		t.Errorf("absent: %v, %v; want no checks", d, err)
	}
}

func TestHealthCheckFaults(t *testing.T) {
	const quotes = `in quotes with a unit, such as "10s"`
	tests := []struct{ name, check, upstreams, field, want string }{
		{"tls without TLS", `{"type":"tls"}`, "t-", "type", "upstreams[1] has no tls"},
		{"another type", `{"type":"http"}`, "-", "type", "give tcp or tls"},
		{"type in upper case", `{"type":"TCP"}`, "-", "type", "give tcp or tls"},
		{"interval a number", `{"interval":10}`, "-", "interval", "must be a duration, not a number; write it " + quotes},
		{"interval a negative number", `{"interval":-10}`, "-", "interval", quotes},
		{"timeout a number of nanoseconds", `{"timeout":5000000000}`, "-", "timeout", quotes},
		{"interval without unit", `{"interval":"10"}`, "-", "interval", `"10" is no duration; write it ` + quotes},
		{"interval in days", `{"interval":"1d"}`, "-", "interval", quotes},
		{"interval empty", `{"interval":""}`, "-", "interval", quotes},
		{"interval beyond what fits", `{"interval":"99999999999h"}`, "-", "interval", quotes},
		{"interval null", `{"interval":null}`, "-", "interval", "must be a duration, not null; leave the field out"},
		{"interval an object", `{"interval":{}}`, "-", "interval", "must be a duration, not an object"},
		{"interval short", `{"interval":"999ms"}`, "-", "interval", "is 999ms; give 1s to 1h0m0s"},
		{"interval long", `{"interval":"1h1ns"}`, "-", "interval", "give 1s to 1h0m0s"},
		{"interval negative", `{"interval":"-10s"}`, "-", "interval", "is -10s; give 1s"},
		{"timeout short", `{"timeout":"99ms"}`, "-", "timeout", "is 99ms; give 100ms to 10s"},
		{"timeout negative", `{"timeout":"-1s"}`, "-", "timeout", "is -1s; give 100ms to 10s"},
		{"timeout above the interval", `{"timeout":"3s","interval":"2s"}`, "-", "timeout", "is 3s; give 100ms to 2s, and never more than the interval"},
		{"interval short, timeout in bounds", `{"interval":"1ms","timeout":"2s"}`, "-", "interval", "is 1ms"},
		{"rise negative", `{"rise":-1}`, "-", "rise", "is -1; give 1 to 100"},
		{"rise high", `{"rise":101}`, "-", "rise", "is 101; give 1 to 100"},
		{"rise a string", `{"rise":"2"}`, "-", "rise", "must be a whole number, not a string"},
		{"fall negative", `{"fall":-1}`, "-", "fall", "is -1; give 1 to 100"},
		{"fall high", `{"fall":101}`, "-", "fall", "is 101; give 1 to 100"},
		{"fall a fraction", `{"fall":2.5}`, "-", "fall", "in digits only"},
		{"unknown field", `{"path":"/"}`, "-", "path", "unknown field"},
		{"field twice", `{"rise":1,"rise":2}`, "-", "rise", "given twice"},
		{"field in upper case", `{"Rise":1}`, "-", "Rise", "unknown field"},
		{"null", `null`, "-", "", "must be an object, not null; leave the field out"},
		{"true", `true`, "-", "", "must be an object, not a boolean"},
		{"a word", `"tcp"`, "-", "", "must be an object, not a string"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			field := "health_check"
			if tt.field != "" {
				field += "." + tt.field
			}
			d, err := Parse([]byte(checked(tt.check, tt.upstreams)), Remote)
			list := Errors(err)
			if d != nil || len(list) != 1 || list[0].Field != field || !strings.Contains(list[0].Error(), tt.want) {
				t.Errorf("got %v, %v; want one fault of %s: %s", d, err, field, tt.want)
			}
		})
	}
}

// A check and its copies are apart, and what is refused, or was another's, is not written to.
func TestHealthCheckSharesNoMemory(t *testing.T) {
	given := &HealthCheck{Rise: 9}
	d := &Domain{Name: "a.example", Upstreams: []Upstream{{Dial: "a:1"}}, HealthCheck: given, MaxConnections: -1}
	if err := d.Normalize(Remote); err == nil || d.HealthCheck != given || *given != (HealthCheck{Rise: 9}) {
		t.Errorf("refused with %v, but the check is now %+v", err, d.HealthCheck)
	}
	d.MaxConnections = 0
	if err := d.Normalize(Remote); err != nil || d.HealthCheck.Fall != 3 || *given != (HealthCheck{Rise: 9}) {
		t.Errorf("%v; the check is %+v, the one given %+v", err, d.HealthCheck, given)
	}
	c := d.Clone()
	c.HealthCheck.Rise = 1
	if d.HealthCheck.Rise != 9 {
		t.Error("a clone shares its check")
	}
}

func TestDurationJSON(t *testing.T) {
	for in, want := range map[string]time.Duration{
		`"10s"`: 10 * time.Second, `"1h30m"`: 90 * time.Minute, `"-1.5ms"`: -1500 * time.Microsecond, `"0"`: 0, ` "2µs" `: 2 * time.Microsecond,
	} {
		var d Duration
		if err := json.Unmarshal([]byte(in), &d); err != nil || time.Duration(d) != want {
			t.Errorf("%s: %v, %v; want %v", in, d, err, want)
		}
		text, err := json.Marshal(d)
		if err != nil || string(text) != `"`+want.String()+`"` || d.String() != want.String() {
			t.Errorf("%v is written as %s, %v, and shown as %s", want, text, err, d)
		}
	}
	for _, in := range []string{`10`, `null`, `true`, `{}`, `""`, `"10"`, `"ten seconds"`, `"` + strings.Repeat("1", 100_000) + `"`} {
		d := Duration(7)
		err := json.Unmarshal([]byte(in), &d)
		if err == nil || !strings.Contains(err.Error(), `in quotes with a unit, such as "10s"`) || len(err.Error()) > 200 {
			t.Errorf("%.20s: %v", in, err)
		}
		if d != 7 {
			t.Errorf("%.20s: the value became %v", in, d)
		}
	}
}
