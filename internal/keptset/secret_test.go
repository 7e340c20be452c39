package keptset

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/certmagic"
)

// inflations returns what is found in data, and what any part of it inflates to.
func inflations(data []byte) string {
	found := string(data)
	for i := range data {
		text, _ := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(data[i:])), 1<<16))
		found += string(text)
		if gz, err := gzip.NewReader(bytes.NewReader(data[i:])); err == nil {
			text, _ := io.ReadAll(io.LimitReader(gz, 1<<16))
			found += string(text)
		}
	}
	return found
}

// TestNothingInClear looks for a private key, and for the edge's own, in all that is stored.
func TestNothingInClear(t *testing.T) {
	const secret = "MC4CAQAwBQYDK2VwBCIEIFR0dHR0"
	text := strings.Repeat(`{"name":"a.example.com","key_pem":"`+secret+`"}`, 20)
	var compressed bytes.Buffer
	if err := compress(&compressed, writes(text)); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(compressed.Bytes(), []byte(secret)) || !strings.Contains(inflations(append([]byte("x"), compressed.Bytes()...)), secret) {
		t.Fatal("this test would not find a file that is compressed alone")
	}

	data, folder := t.TempDir(), t.TempDir()
	key, _, err := OpenKey(data)
	if err != nil {
		t.Fatal(err)
	}
	save(t, New(&certmagic.FileStorage{Path: folder}, key), "remote", text)
	var found string
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		found += path + inflations(content)
		return err
	})
	if err != nil || !strings.Contains(found, magic) {
		t.Fatalf("%v, %.200q", err, found)
	}
	secretKey := key.secret()
	raw := string(secretKey[:])
	for _, hidden := range []string{secret, "example.com", "key_pem", raw, hex.EncodeToString([]byte(raw)), base64.StdEncoding.EncodeToString([]byte(raw))} {
		if strings.Contains(found, hidden) {
			t.Errorf("%q is in the storage", hidden)
		}
	}
}

// TestNothingIsPrinted prints what holds the key in every way there is.
func TestNothingIsPrinted(t *testing.T) {
	key := testKey(1)
	password := &certmagic.FileStorage{Path: "postgres://user:hunter2@db"}
	s := New(password, key)
	type byValue struct {
		Key Key
		key Key
		ptr *Key
		s   Store
		m   map[string]any
	}
	holder := byValue{*key, *key, key, *s, map[string]any{"key": *key, "store": s}}
	var out strings.Builder
	for _, v := range []any{key, *key, s, *s, &holder, holder, []any{key, s}, []*Key{key}} {
		for _, verb := range "vsxXqdoObcegtTpUw" {
			for _, flags := range []string{"%", "%+", "%#", "% ", "%0100."} {
				fmt.Fprintf(&out, flags+string(verb)+"\n", v)
			}
		}
		text, err := json.Marshal(v)
		fmt.Fprintln(&out, string(text), err)
		slog.New(slog.NewTextHandler(&out, nil)).Info("text", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "v", v)
	}
	if !strings.Contains(out.String(), key.ID()) {
		t.Error("not even the ID is printed")
	}
	printed := strings.ToLower(out.String())
	raw := key.secret()
	for _, form := range []string{
		string(raw[:8]), hex.EncodeToString(raw[:8]), fmt.Sprintf("% x", raw[:8]), base64.StdEncoding.EncodeToString(raw[:9]),
		"1 2 3 4 5 6", "0x1, 0x2, 0x3", "1, 2, 3, 4", "1,2,3,4",
	} {
		if strings.Contains(printed, strings.ToLower(form)) {
			t.Errorf("the key is printed as %q", form)
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		if text := fmt.Sprintf(verb, key); text != key.String() {
			t.Errorf("%s prints %q", verb, text)
		}
	}
	for _, v := range []any{s, *s} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, "hunter2") || !strings.Contains(text, key.ID()) {
				t.Errorf("%s prints %q", verb, text)
			}
		}
	}
}
