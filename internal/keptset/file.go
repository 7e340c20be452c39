package keptset

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
	"time"
)

const (
	// magic begins every file, whatever its format.
	magic = "pqproxy-kept-set "
	// format is the only number that is read, and what is written.
	format = "1"
	// saltSize is that of the hash, as RFC 5869 section 3.1 has it.
	saltSize = 32
	// sealSize is what sealing adds: nonce and tag.
	sealSize = 12 + 16
	// maxHeader bounds what is parsed before anything of a file is proven.
	maxHeader = 64 << 10
)

// header is the first line of a file.
type header struct {
	Key      string    `json:"key"`
	Name     string    `json:"name"`
	SavedAt  time.Time `json:"saved_at"`
	Revision *uint64   `json:"revision,omitempty"`
	ETag     []byte    `json:"etag,omitempty"` // bytes, because ETags need not be UTF-8 (RFC 9110 section 8.8.3)
	Source   string    `json:"source,omitempty"`
	Domains  int       `json:"domains"`
	Salt     []byte    `json:"salt"`
	Size     int64     `json:"size"` // of all that follows; tells a truncated file from a corrupt one
}

func newHeader(name string, meta Meta) *header {
	h := &header{Name: name, SavedAt: meta.Saved.UTC(), ETag: []byte(meta.ETag), Source: meta.Source, Domains: meta.Domains}
	if meta.HasRevision {
		h.Revision = &meta.Revision
	}
	if h.SavedAt.IsZero() {
		h.SavedAt = time.Now().UTC()
	}
	return h
}

func (h *header) meta() Meta {
	meta := Meta{ETag: string(h.ETag), Source: h.Source, Domains: h.Domains, Saved: h.SavedAt.UTC()}
	if h.Revision != nil {
		meta.Revision, meta.HasRevision = *h.Revision, true
	}
	return meta
}

// line returns h as a file has it, with the line feed.
func (h *header) line() ([]byte, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("writing its header: %w", err)
	}
	text = append([]byte(magic+format+" "), append(text, '\n')...)
	if len(text) > maxHeader {
		return nil, fmt.Errorf("its header would have %d bytes, at most %d are read; shorten ETag or Source", len(text), maxHeader)
	}
	return text, nil
}

// seal returns the file of what write writes, which is the content compressed, and sets what is left to set
// in h: Key, Salt and Size.
func seal(key *Key, h *header, write func(w io.Writer) error) ([]byte, error) {
	h.Key, h.Salt, h.Size = key.id, make([]byte, saltSize), math.MaxInt64
	rand.Read(h.Salt) // never fails
	aead, err := key.aead(h.Salt)
	if err != nil {
		return nil, err
	}
	// The header tells the size of what follows, and all is to be in one slice and not copied. So room is left
	// for a header with the longest number, and the true one is put at the end of that room.
	line, err := h.line()
	if err != nil {
		return nil, err
	}
	room := len(line)
	buf := bytes.NewBuffer(line)
	if err := write(buf); err != nil {
		return nil, err
	}
	h.Size = int64(buf.Len()-room) + sealSize
	if line, err = h.line(); err != nil {
		return nil, err
	}
	file, start := buf.Bytes(), room-len(line)
	copy(file[start:], line)
	return aead.Seal(file[:room], nil, file[room:], file[start:room])[start:], nil
}

// open returns the header of a file and the compressed content, in new memory: file is left as it is, because
// a storage may return what it keeps. Nothing is returned that key does not prove to be written as name.
func open(key *Key, name string, file []byte) (*header, []byte, error) {
	line, err := cutHeader(file)
	if err != nil {
		return nil, nil, err
	}
	sealed := file[len(line):]
	var h header
	if err := json.Unmarshal(line[len(magic+format):], &h); err != nil {
		return nil, nil, fmt.Errorf("%w: its header is not read as JSON", ErrCorrupt)
	}
	switch {
	case h.Key != key.id:
		return nil, nil, fmt.Errorf("%w: the key is %.16q, this edge's is %q", ErrOtherKey, h.Key, key.id)
	case h.Name != name:
		return nil, nil, fmt.Errorf("%w: it was saved as %.64q", ErrOtherName, h.Name)
	case len(h.Salt) != saltSize:
		return nil, nil, fmt.Errorf("%w: its salt has %d bytes, not %d", ErrCorrupt, len(h.Salt), saltSize)
	case int64(len(sealed)) < h.Size:
		return nil, nil, fmt.Errorf("%w: %d of %d bytes are left behind its header", ErrTruncated, len(sealed), h.Size)
	case int64(len(sealed)) > h.Size:
		return nil, nil, fmt.Errorf("%w: %d bytes are behind its header, %d were written", ErrCorrupt, len(sealed), h.Size)
	}
	aead, err := key.aead(h.Salt)
	if err != nil {
		return nil, nil, err
	}
	compressed, err := aead.Open(nil, nil, sealed, line)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: it was changed since it was written", ErrCorrupt)
	}
	return &h, compressed, nil
}

// cutHeader returns the first line of a file of our format, with the line feed.
func cutHeader(file []byte) ([]byte, error) {
	start := string(file[:min(len(file), maxHeader)])
	rest, ours := strings.CutPrefix(start, magic)
	if !ours {
		if strings.HasPrefix(magic, start) {
			return nil, fmt.Errorf("%w: it has %d bytes", ErrTruncated, len(start))
		}
		return nil, ErrForeign
	}
	// Of another format nothing is known but the number.
	after := strings.TrimLeft(rest, "0123456789")
	number := rest[:len(rest)-len(after)]
	newline := strings.IndexByte(start, '\n')
	switch {
	case after == "" && len(start) < maxHeader:
		return nil, fmt.Errorf("%w: it ends in its header", ErrTruncated)
	case number == "" || number[0] == '0' || after == "" || after[0] != ' ':
		return nil, fmt.Errorf("%w: its header has no format number", ErrCorrupt)
	case number != format:
		return nil, fmt.Errorf("%w: the format is %.20s, this version reads %s", ErrNewerFormat, number, format)
	case newline >= 0:
		return file[:newline+1], nil
	case len(start) < maxHeader:
		return nil, fmt.Errorf("%w: it ends in its header", ErrTruncated)
	}
	return nil, fmt.Errorf("%w: its header does not end within %d bytes", ErrCorrupt, maxHeader)
}

// content decompresses. After an error it returns that error for good.
type content struct {
	path string
	gz   *gzip.Reader
	left int64 // how many bytes more are allowed
	max  int64 // for the error
	err  error
}

func newContent(path string, compressed []byte, maxSize int64) (*content, error) {
	gz, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return &content{path: path, gz: gz, left: maxSize, max: maxSize}, nil
}

// Read implements io.Reader. gzip checks length and CRC-32 before it returns io.EOF.
func (c *content) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if int64(len(p))-1 > c.left {
		p = p[:c.left+1] // one more than is allowed, to see whether it is there
	}
	n, err := c.gz.Read(p)
	switch {
	case int64(n) > c.left:
		n = int(c.left)
		c.err = fmt.Errorf("reading %s: %w: its content has more than %d bytes", c.path, ErrTooLarge, c.max)
	case err == io.EOF:
		c.err = io.EOF
	case err != nil:
		c.err = fmt.Errorf("reading %s: %w: %w", c.path, ErrCorrupt, err)
	}
	c.left -= int64(n)
	return n, c.err
}

// Close implements io.Closer.
func (c *content) Close() error {
	c.gz, c.err = nil, fs.ErrClosed
	return nil
}
