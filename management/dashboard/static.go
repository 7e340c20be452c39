package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
)

//go:embed static
var staticSources embed.FS

const staticPath = "/static/"

// staticFiles are scripts, styles and pictures. Their names hold a hash of the content, so browsers keep them for good.
type staticFiles struct {
	byURL map[string]*staticFile
	urls  map[string]string // by the name in the folder static
}

type staticFile struct {
	kind        string
	plain, gzip []byte // gzip: nil where it would not pay
}

var staticKinds = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

func newStatic() *staticFiles {
	s := &staticFiles{byURL: map[string]*staticFile{}, urls: map[string]string{}}
	entries, err := fs.ReadDir(staticSources, "static")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		content, err := fs.ReadFile(staticSources, "static/"+e.Name())
		kind := staticKinds[path.Ext(e.Name())]
		if err != nil || kind == "" {
			panic(fmt.Sprintf("%s is no static file: %v", e.Name(), err))
		}
		sum := sha256.Sum256(content)
		base, ext, _ := strings.Cut(e.Name(), ".")
		url := staticPath + base + "." + hex.EncodeToString(sum[:8]) + "." + ext
		f := &staticFile{kind: kind, plain: content}
		var packed bytes.Buffer
		z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression) // the level is one
		z.Write(content)
		z.Close()
		if packed.Len() < len(content) {
			f.gzip = packed.Bytes()
		}
		s.urls[e.Name()], s.byURL[url] = url, f
	}
	return s
}

// url returns the address of a file of the folder static.
func (s *staticFiles) url(name string) (string, error) {
	u, ok := s.urls[name]
	if !ok {
		return "", fmt.Errorf("there is no static file %s", name)
	}
	return u, nil
}

func (s *staticFiles) serve(w http.ResponseWriter, r *http.Request) {
	f := s.byURL[r.URL.Path]
	switch {
	case f == nil:
		http.Error(w, "There is no such file.", http.StatusNotFound)
		return
	case !isRead(r):
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "This file can only be read.", http.StatusMethodNotAllowed)
		return
	}
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	body := f.plain
	if f.gzip != nil && acceptsGzip(r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		body = f.gzip
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client may be gone
	}
}

// acceptsGzip reads Accept-Encoding as far as it matters: gzip is named and not refused.
func acceptsGzip(header string) bool {
	for coding := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(coding, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			q := strings.ReplaceAll(weight, " ", "")
			return q != "q=0" && !strings.HasPrefix(q, "q=0.000") && q != "q=0.0" && q != "q=0.00"
		}
	}
	return false
}
