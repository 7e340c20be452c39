package dashboard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// curl is an API call as a line for a shell.
type curl struct{ Line string }

// curlOf returns the call. body is nil, or what is marshalled as JSON; a []byte or json.RawMessage is JSON already. It holds no key: that is read
// from the environment.
func curlOf(method, url string, body any) (curl, error) {
	var line strings.Builder
	line.WriteString("curl")
	if method != "GET" {
		line.WriteString(" -X " + method)
	}
	line.WriteString(" " + shellQuote(url) + ` \` + "\n" + `  -H "Authorization: Bearer $PQPROXY_API_KEY"`)
	if body != nil {
		text, err := indented(body)
		if err != nil {
			return curl{}, fmt.Errorf("the body of a curl line: %w", err)
		}
		line.WriteString(` \` + "\n" + `  -H 'Content-Type: application/json' \` + "\n" + "  -d " + shellQuote(text))
	}
	return curl{line.String()}, nil
}

func indented(body any) (string, error) {
	raw, ok := body.([]byte)
	if message, is := body.(json.RawMessage); is {
		raw, ok = message, true
	}
	if !ok {
		var plain bytes.Buffer
		enc := json.NewEncoder(&plain)
		enc.SetEscapeHTML(false) // it is for people to read; the template escapes it
		if err := enc.Encode(body); err != nil {
			return "", err
		}
		raw = plain.Bytes()
	}
	var out bytes.Buffer
	if err := json.Indent(&out, bytes.TrimSpace(raw), "", "  "); err != nil {
		return "", err
	}
	return out.String(), nil
}

// shellQuote returns text as one word of a POSIX shell.
func shellQuote(text string) string {
	if text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=%@,") == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
