package feedsig

import (
	"bytes"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json")

// testKey returns the key whose seeds are all b, b+1, b+2 and so on.
func testKey(tb testing.TB, b byte) *PrivateKey {
	tb.Helper()
	seeds := make([]byte, privateSize)
	for i := range seeds {
		seeds[i] = b + byte(i)
	}
	k, err := Generate(bytes.NewReader(seeds))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

var body = []byte(`{"revision":420,"domains":[]}`)

func TestSignVerify(t *testing.T) {
	k, err := Generate(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512(body)
	header := k.Sign(digest)
	if err := k.Public().Verify(header, digest); err != nil {
		t.Error(err)
	}
	if again := k.Sign(digest); again != header {
		t.Error("signing again gives another header")
	}
	if !strings.HasPrefix(header, `keyid="`+k.Public().ID()+`", ed25519=:`) || len(header) > 4700 {
		t.Errorf("the header has %d bytes and begins with %.40s", len(header), header)
	}
}

func TestRotation(t *testing.T) {
	old, next, foreign := testKey(t, 1), testKey(t, 2), testKey(t, 3)
	digest := sha512.Sum512(body)
	both := Keys{old.Public(), next.Public()}
	for _, k := range []*PrivateKey{old, next} {
		if err := both.Verify(k.Sign(digest), digest); err != nil {
			t.Error(err)
		}
	}
	err := both.Verify(foreign.Sign(digest), digest)
	if !errors.Is(err, ErrUnknownKey) {
		t.Fatalf("a foreign key: %v", err)
	}
	for _, k := range []*PrivateKey{old, next, foreign} {
		if !strings.Contains(err.Error(), k.Public().ID()) {
			t.Errorf("%v: key %s is not named", err, k.Public().ID())
		}
	}
	// A foreign key that claims the ID of a trusted one.
	forged := strings.Replace(foreign.Sign(digest), foreign.Public().ID(), old.Public().ID(), 1)
	if err := both.Verify(forged, digest); !errors.Is(err, ErrEd25519) {
		t.Errorf("a foreign key under a trusted ID: %v", err)
	}
	for _, none := range []Keys{nil, {PublicKey{}}} {
		if err := none.Verify(old.Sign(digest), digest); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("without keys: %v", err)
		}
	}
}

// TestVerifyRefuses has each check failing alone.
func TestVerifyRefuses(t *testing.T) {
	k := testKey(t, 1)
	digest, other := sha512.Sum512(body), sha512.Sum512([]byte("another set"))
	good, foreign := mustParse(t, k.Sign(digest)), mustParse(t, k.Sign(other))
	text := good.String()
	part := func(key string) string { // of text, as KEY=VALUE
		for _, p := range strings.Split(text, ", ") {
			if strings.HasPrefix(p, key) {
				return p
			}
		}
		panic(key)
	}
	id, classical, pq := part("keyid"), part("ed25519"), part("mldsa65")
	with := func(change func(s *signature)) string {
		s := mustParse(t, text)
		change(s)
		return s.String()
	}
	tests := []struct {
		name, header string
		want         error
		says         string
	}{
		{"no header", "", ErrNoSignature, Header},
		{"other set", foreign.String(), ErrEd25519, k.Public().ID()},
		{"ed25519 of another set", with(func(s *signature) { s.ed25519 = foreign.ed25519 }), ErrEd25519, "ed25519"},
		{"mldsa65 of another set", with(func(s *signature) { s.mldsa65 = foreign.mldsa65 }), ErrMLDSA65, "mldsa65"},
		{"first bit of ed25519", with(func(s *signature) { s.ed25519[0] ^= 1 }), ErrEd25519, ""},
		{"last bit of ed25519", with(func(s *signature) { s.ed25519[63] ^= 128 }), ErrEd25519, ""},
		{"first bit of mldsa65", with(func(s *signature) { s.mldsa65[0] ^= 1 }), ErrMLDSA65, ""},
		{"last bit of mldsa65", with(func(s *signature) { s.mldsa65[3308] ^= 128 }), ErrMLDSA65, ""},
		{"zeros", with(func(s *signature) { clear(s.ed25519); clear(s.mldsa65) }), ErrEd25519, ""},
		{"unknown key", with(func(s *signature) { s.keyID = "0123456789abcdef" }), ErrUnknownKey, "names 0123456789abcdef; trusted are " + k.Public().ID()},

		{"not a dictionary", "yes", ErrMalformed, "KEY=VALUE"},
		{"blank", " ", ErrMalformed, "KEY=VALUE"},
		{"no keyid", classical + ", " + pq, ErrMalformed, "keyid is missing"},
		{"no ed25519", id + ", " + pq, ErrMalformed, "ed25519 is missing"},
		{"no mldsa65", id + ", " + classical, ErrMalformed, "mldsa65 is missing"},
		{"keyid twice", text + ", " + id, ErrMalformed, "keyid is given twice"},
		{"ed25519 twice", text + ", " + classical, ErrMalformed, "ed25519 is given twice"},
		{"mldsa65 twice", id + ", " + pq + ", " + pq, ErrMalformed, "bytes; at most"},
		{"header twice", text + ", " + text, ErrMalformed, "at most"},
		{"short, twice", "mldsa65=::", ErrMalformed, "mldsa65 has 0 bytes; a signature has 3309"},
		{"another member", text + ", alg=1", ErrMalformed, `member "alg"`},
		{"upper case", strings.Replace(text, "ed25519", "Ed25519", 1), ErrMalformed, `member "Ed25519"`},
		{"parameter", text + ";v=1", ErrMalformed, "base64 between colons"},
		{"trailing comma", text + ",", ErrMalformed, "KEY=VALUE"},
		{"truncated", text[:len(text)-1], ErrMalformed, "base64 between colons"},
		{"truncated base64", strings.Replace(text, pq, pq[:len(pq)-5]+":", 1), ErrMalformed, "mldsa65 has 3306 bytes"},
		{"unpadded", strings.Replace(text, "==:", ":", 1), ErrMalformed, "ed25519 is not padded base64"},
		{"bits behind the end", id + ", ed25519=:" + strings.Repeat("A", 85) + "B==:, " + pq, ErrMalformed, "ed25519 is not padded base64"},
		{"line break in base64", strings.Replace(text, "mldsa65=:", "mldsa65=:\n", 1), ErrMalformed, "mldsa65 is not padded base64"},
		{"URL alphabet", id + ", ed25519=:" + strings.Repeat("-", 86) + "==:, " + pq, ErrMalformed, "ed25519 is not padded base64"},
		{"ed25519 too long", id + ", ed25519=:" + strings.Repeat("A", 88) + ":, " + pq, ErrMalformed, "ed25519 has 66 bytes"},
		{"keyid without marks", strings.ReplaceAll(text, `"`, ""), ErrMalformed, "keyid is not 16"},
		{"keyid in upper case", strings.Replace(text, id, `keyid="0123456789ABCDEF"`, 1), ErrMalformed, "keyid is not 16"},
		{"keyid cut", strings.Replace(text, id, `keyid="0123456789abcde"`, 1), ErrMalformed, "keyid is not 16"},
		{"keyid one mark", strings.Replace(text, id, `keyid="`, 1), ErrMalformed, "keyid is not 16"},
		{"spaces in a member", strings.Replace(text, "keyid=", "keyid =", 1), ErrMalformed, `member "keyid "`},
		{"huge", strings.Repeat("a=1, ", 1<<20), ErrMalformed, "at most 8192 are read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := k.Public().Verify(tt.header, digest)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %v, want %v, %s", err, tt.want, tt.says)
			}
			for _, one := range []error{ErrNoSignature, ErrMalformed, ErrUnknownKey, ErrEd25519, ErrMLDSA65} {
				if one != tt.want && errors.Is(err, one) {
					t.Errorf("%v is also %v", err, one)
				}
			}
			if len(err.Error()) > 300 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
	for name, header := range map[string]string{
		"other order":    pq + ", " + classical + ", " + id,
		"no white space": strings.ReplaceAll(text, ", ", ","),
		"white space":    " \t" + strings.ReplaceAll(text, ", ", "\t ,\t ") + " ",
	} {
		if err := k.Public().Verify(header, digest); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mustParse(t *testing.T, header string) *signature {
	t.Helper()
	s, err := parseHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestMessage pins what is signed: an edge of any version checks what any management plane signs.
func TestMessage(t *testing.T) {
	want := "pqproxy-set-v1\ncf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e"
	if got := string(message(sha512.Sum512(nil))); got != want {
		t.Errorf("signed is %q, want %q", got, want)
	}
}

// vector is one entry of testdata/vectors.json.
type vector struct {
	Seeds   string `json:"seeds"` // hexadecimal: Ed25519, then ML-DSA-65
	KeyID   string `json:"keyid"`
	Private string `json:"private"` // the files
	Public  string `json:"public"`
	Body    string `json:"body"`
	Header  string `json:"header"`
}

// TestVectors compares with files that were made once: what changes here locks out the edges that are there.
func TestVectors(t *testing.T) {
	path := filepath.Join("testdata", "vectors.json")
	if *update {
		writeVectors(t, path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) == 0 {
		t.Fatal(len(vectors), err)
	}
	for i, v := range vectors {
		seeds, err := hex.DecodeString(v.Seeds)
		if err != nil {
			t.Fatal(err)
		}
		k, err := Generate(bytes.NewReader(seeds))
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(k, v.Body); got != v {
			t.Errorf("vector %d: got %+v, want %+v", i, got, v)
		}
		public, err := ParsePublicKey([]byte(v.Public))
		if err != nil {
			t.Fatal(err)
		}
		if err := public.Verify(v.Header, sha512.Sum512([]byte(v.Body))); err != nil {
			t.Errorf("vector %d: %v", i, err)
		}
	}
}

func describe(k *PrivateKey, body string) vector {
	return vector{
		Seeds: hex.EncodeToString(append(k.ed25519.Seed(), k.mldsa65.Bytes()...)), KeyID: k.Public().ID(),
		Private: string(k.Marshal()), Public: string(k.Public().Marshal()),
		Body: body, Header: k.Sign(sha512.Sum512([]byte(body))),
	}
}

func writeVectors(t *testing.T, path string) {
	t.Helper()
	vectors := []vector{describe(testKey(t, 1), string(body)), describe(testKey(t, 200), "")}
	text, err := json.MarshalIndent(vectors, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	private, public := filepath.Join(dir, "feed.key"), filepath.Join(dir, "feed.pub")
	k := testKey(t, 1)
	if err := k.WriteFiles(private, public); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(private); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private file is %v, %v", info.Mode(), err)
	}
	readK, err := ReadPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	readP, err := ReadPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512(body)
	if err := readP.Verify(readK.Sign(digest), digest); err != nil {
		t.Error(err)
	}

	other := testKey(t, 2)
	if err := other.WriteFiles(private, filepath.Join(dir, "new.pub")); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a private key: %v", err)
	}
	if err := other.WriteFiles(filepath.Join(dir, "new.key"), public); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a public key: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "new.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if again, err := ReadPublicKey(public); err != nil || again.ID() != k.Public().ID() {
		t.Errorf("the public key is now %v, %v", again, err)
	}
	if _, err := ReadPublicKey(private); err == nil || !strings.Contains(err.Error(), private) {
		t.Errorf("a private key as public one: %v", err)
	}
	if _, err := ReadPrivateKey(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	k := testKey(t, 1)
	private, public := string(k.Marshal()), string(k.Public().Marshal())
	id, foreign := k.Public().ID(), testKey(t, 2).Public().ID()
	fields := strings.Fields(private)
	tests := []struct{ name, private, public, want string }{
		{"empty", "", "", "is not one line of the form"},
		{"of the other kind", public, private, "is expected"},
		{"two lines", private + private, public + public, "is not one line of the form"},
		{"more words", strings.TrimSpace(private) + " x", strings.TrimSpace(public) + " x", "is not one line of the form"},
		{"two blanks", strings.Replace(private, " ", "  ", 1), strings.Replace(public, " ", "  ", 1), "is not one line of the form"},
		{"later format", strings.Replace(private, "-v1", "-v2", 1), strings.Replace(public, "-v1", "-v2", 1), "is not one line of the form"},
		{"other ID", strings.Replace(private, id, foreign, 1), strings.Replace(public, id, foreign, 1), "the key ID in the file is not that of the key"},
		{"ID in upper case", strings.Replace(private, id, strings.ToUpper(id), 1), strings.Replace(public, id, strings.ToUpper(id), 1), "is not one line"},
		{"cut", private[:len(private)-6], public[:len(public)-6], "the third word"},
		{"changed", strings.Replace(private, fields[2][:4], "AAAA", 1), strings.Replace(public, strings.Fields(public)[2][:4], "AAAA", 1), "is not that of the key"},
		{"line break", strings.Replace(private, fields[2][:4], "AAAA\n", 1), strings.Replace(public, strings.Fields(public)[2][:4], "AAAA\r\n", 1), "not padded base64"},
		{"large", strings.Repeat("x", maxFile+1), strings.Repeat("x", maxFile+1), "more than any key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := ParsePrivateKey([]byte(tt.private)); got != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("private: %v, want %s", err, tt.want)
			} else if strings.Contains(err.Error(), fields[2][:20]) {
				t.Errorf("private: %v shows the key", err)
			}
			if _, err := ParsePublicKey([]byte(tt.public)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("public: %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := ParsePrivateKey([]byte("\r\n" + strings.TrimSpace(private) + "\r\n")); err != nil {
		t.Errorf("with other line ends: %v", err)
	}
}

func TestGenerateFails(t *testing.T) {
	broken := errors.New("no entropy")
	if k, err := Generate(iotest.ErrReader(broken)); k != nil || !errors.Is(err, broken) {
		t.Errorf("got %v, %v", k, err)
	}
	if k, err := Generate(bytes.NewReader(make([]byte, 63))); k != nil || err == nil {
		t.Errorf("too few bytes: %v, %v", k, err)
	}
	if k, err := Generate(bytes.NewReader(make([]byte, 64))); k != nil || err == nil {
		t.Errorf("zeros: %v, %v", k, err)
	}
}

// TestPrivateKeyIsNeverShown prints a key in every way that a mistake could.
func TestPrivateKeyIsNeverShown(t *testing.T) {
	k := testKey(t, 'A') // the seeds print as ABC...
	secret := strings.Fields(string(k.Marshal()))[2]
	var shown strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%t"} {
		fmt.Fprintf(&shown, verb+"\n", k)
		fmt.Fprintf(&shown, verb+"\n", *k)
		fmt.Fprintf(&shown, verb+"\n", []PrivateKey{*k})
		fmt.Fprintf(&shown, verb+"\n", struct{ K PrivateKey }{*k})
	}
	slog.New(slog.NewJSONHandler(&shown, nil)).Info("key", "k", k, "v", *k, "s", []any{*k})
	slog.New(slog.NewTextHandler(&shown, nil)).Info("key", "k", k, "v", *k, "s", []any{*k})
	if err := json.NewEncoder(&shown).Encode(map[string]any{"k": k, "v": *k}); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"ABCDEF", "4142434445", "0x41, 0x42", "65 66 67", secret, secret[8:40]} {
		if strings.Contains(strings.ToLower(shown.String()), strings.ToLower(part)) {
			t.Errorf("%q is shown", part)
		}
	}
	if !strings.Contains(shown.String(), k.Public().ID()) || !strings.Contains(k.Public().String(), k.Public().ID()) {
		t.Error("the key ID is not shown")
	}
}

// BenchmarkVerify is what an edge does per set beside hashing it.
func BenchmarkVerify(b *testing.B) {
	k := testKey(b, 1)
	digest := sha512.Sum512(body)
	header, keys := k.Sign(digest), Keys{k.Public()}
	b.ReportAllocs()
	for b.Loop() {
		if err := keys.Verify(header, digest); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSign is what a management plane does per set beside hashing it.
func BenchmarkSign(b *testing.B) {
	k := testKey(b, 1)
	digest := sha512.Sum512(body)
	b.ReportAllocs()
	for b.Loop() {
		k.Sign(digest)
	}
}
