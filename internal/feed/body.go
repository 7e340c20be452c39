package feed

import (
	"bufio"
	"compress/gzip"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/internal/feedsig"
)

// Body is a set as it was received, after content decoding, in a temporary file that has no name any more and
// is gone when it is closed. Where Config.Keys are set, one of them has signed it. It stands at its beginning;
// reading is not buffered.
type Body struct {
	Size   int64             // in bytes
	SHA512 [sha512.Size]byte // of the bytes

	file *os.File
	name string // of a file that could not be removed while open
}

// Read reads on in the set; its error is io.EOF at the end, or of the file.
func (b *Body) Read(p []byte) (int, error) { return b.file.Read(p) }

// Seek is io.Seeker's, to read the set again.
func (b *Body) Seek(offset int64, whence int) (int64, error) { return b.file.Seek(offset, whence) }

// Close gives the disk space back.
func (b *Body) Close() error {
	err := b.file.Close()
	if b.name != "" {
		err = errors.Join(err, os.Remove(b.name))
	}
	return err
}

// newBody makes the file; os.CreateTemp does so with mode 0600.
func (c *Client) newBody() (*Body, error) {
	file, err := c.createTemp()
	if err != nil {
		return nil, err
	}
	b := &Body{file: file}
	// Without a name it goes with the process, however that ends. Windows keeps the name of a file that is open.
	if err := os.Remove(file.Name()); err != nil {
		b.name = file.Name()
	}
	return b, nil
}

// receive takes the set of a 200 into a Body. Nothing of it is given out before all of it is here and verified.
func (a *attempt) receive(resp *http.Response) (*Body, error) {
	if resp.ContentLength > a.c.cfg.MaxBody {
		return nil, a.tooLarge()
	}
	header := strings.Join(resp.Header.Values(feedsig.Header), ", ")
	if err := a.verify(header, nil); err != nil {
		return nil, err
	}
	wire := a.wire(resp.Body)
	decoded, err := a.decode(resp.Header, wire)
	if err != nil {
		return nil, err
	}
	body, err := a.c.newBody()
	if err != nil {
		return nil, a.fail(Storage, fmt.Errorf("making a temporary file: %w", err))
	}
	if err := a.fill(body, decoded, wire); err != nil {
		body.Close()
		return nil, err
	}
	if err := a.verify(header, body); err != nil {
		body.Close()
		return nil, err
	}
	return body, nil
}

// verify checks the signature of body. Without a body it finds what no body could mend, so that it need not
// be received.
func (a *attempt) verify(header string, body *Body) error {
	if len(a.c.cfg.Keys) == 0 {
		return nil
	}
	var digest [sha512.Size]byte
	if body != nil {
		digest = body.SHA512
	}
	err := a.c.cfg.Keys.Verify(header, digest)
	if err == nil || body == nil && (errors.Is(err, feedsig.ErrEd25519) || errors.Is(err, feedsig.ErrMLDSA65)) {
		return nil
	}
	return a.fail(Signature, a.foreign(err))
}

// isGzip reports whether gzip is the one content coding, under either of its names (RFC 9110 section 8.4.1.3).
func isGzip(h http.Header) bool {
	coding := strings.Join(h.Values("Content-Encoding"), ",")
	return strings.EqualFold(coding, "gzip") || strings.EqualFold(coding, "x-gzip")
}

// decode returns the reader of the set. Gzip streams may follow one another, as RFC 1952 section 2.2 has it, and
// nothing else may follow them.
func (a *attempt) decode(h http.Header, wire *wire) (io.Reader, error) {
	coding := strings.Join(h.Values("Content-Encoding"), ",")
	switch {
	case coding == "" || strings.EqualFold(coding, "identity"):
		return wire, nil
	case isGzip(h):
		// gzip.NewReader would read, and fail before there is a Body; this one does so when read.
		return &gzipReader{wire: bufio.NewReaderSize(wire, 64<<10)}, nil
	}
	return nil, a.fail(Encoding, fmt.Errorf("its Content-Encoding is %q; only gzip is asked for", a.quotable(coding, 60)))
}

// gzipReader begins to decode at the first Read.
type gzipReader struct {
	wire *bufio.Reader
	gzip *gzip.Reader
}

func (r *gzipReader) Read(p []byte) (int, error) {
	if r.gzip == nil {
		var err error
		switch r.gzip, err = gzip.NewReader(r.wire); {
		case err == io.EOF:
			return 0, io.ErrUnexpectedEOF // an empty body is no gzip stream
		case err != nil:
			return 0, err
		}
	}
	return r.gzip.Read(p)
}

// fill copies what decoded gives to body, and rewinds it.
func (a *attempt) fill(body *Body, decoded io.Reader, wire *wire) error {
	hash := sha512.New()
	buf := make([]byte, 64<<10)
	for {
		n, err := decoded.Read(buf)
		if body.Size += int64(n); body.Size > a.c.cfg.MaxBody {
			return a.tooLarge()
		}
		hash.Write(buf[:n])
		if a.c.cfg.Pace != nil {
			a.c.cfg.Pace()
		}
		if _, err := body.file.Write(buf[:n]); err != nil {
			return a.fail(Storage, fmt.Errorf("writing a temporary file: %w", err))
		}
		if err == io.EOF {
			break
		}
		if wire.err != nil {
			return wire.err
		}
		if err != nil {
			return a.fail(Encoding, fmt.Errorf("the gzip stream is damaged: %w", err))
		}
	}
	a.clean = true
	hash.Sum(body.SHA512[:0])
	if _, err := body.file.Seek(0, io.SeekStart); err != nil {
		return a.fail(Storage, fmt.Errorf("reading a temporary file: %w", err))
	}
	return nil
}

func (a *attempt) tooLarge() error {
	return a.fail(TooLarge, fmt.Errorf("the set is larger than max_body, %d bytes", a.c.cfg.MaxBody))
}

// wire reads a body as it comes: no more than Config.MaxBody, and at a rate that is kept on average. Only the time
// in which we wait counts, so that a slow disk is not the server's fault.
type wire struct {
	a        *attempt
	body     io.Reader
	received int64
	waited   time.Duration
	slow     string // what the error says if the rate is not kept
	err      error  // the first that is not io.EOF, as the attempt's
}

func (a *attempt) wire(body io.Reader) *wire {
	slow := fmt.Sprintf("the answer comes too slowly: after %v, at less than %d bytes a second", a.c.allowance, a.c.rate)
	return &wire{a: a, body: body, slow: slow}
}

func (w *wire) Read(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	c := w.a.c
	allowed := c.allowance + time.Duration(float64(w.received)/float64(c.rate)*float64(time.Second))
	w.a.within(allowed-w.waited, TooSlow, w.slow)
	start := time.Now()
	n, err := w.body.Read(p)
	w.a.stop()
	w.waited += time.Since(start)
	if err == io.EOF && w.a.ctx.Err() != nil {
		// A server may see that we hang up, and end the body in good order for a reader that is still there.
		err = io.ErrUnexpectedEOF
	}
	switch w.received += int64(n); {
	case w.received > c.cfg.MaxBody:
		w.err = w.a.tooLarge()
	case err != nil && err != io.EOF:
		w.err = w.a.broken(Truncated, fmt.Errorf("the answer broke off after %d bytes: %w", w.received, err))
	default:
		return n, err
	}
	return n, w.err
}
