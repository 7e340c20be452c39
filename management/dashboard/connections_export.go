package dashboard

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/management"
)

const (
	exportTimeout = 10 * time.Minute
	exportWrite   = 30 * time.Second // for a client to take a batch
	exportBatch   = 1000
	exportMost    = 100_000 // records
)

// exportConnections sends what the filter finds, newest first, as lines of JSON or as CSV: at most exportMost records, which the page says.
func exportConnections(c *ctx) error {
	q, err := c.recordFilter()
	if err != nil {
		return err
	}
	if q.From, q.To, err = c.span(recordSpan); err != nil {
		return err
	}
	write, kind, name := writeNDJSON, "application/x-ndjson", "ndjson"
	switch c.query("format") {
	case "", "ndjson":
	case "csv":
		write, kind, name = writeCSV, "text/csv; charset=utf-8; header=present", "csv"
	default:
		return management.InvalidField("?format", "must be ndjson or csv")
	}
	found, next, err := c.plane.FindConnections(c.ctx, c.who, q, management.Page{Limit: exportBatch})
	if err != nil {
		return err // still a page
	}
	h := c.w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Disposition", fmt.Sprintf(`attachment; filename="connections-%s.%s"`, c.now().UTC().Format("20060102T150405Z"), name))
	c.written = true
	control := http.NewResponseController(c.w)
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }()
	if c.r.Method == http.MethodHead {
		return nil
	}
	for sent := 0; ; {
		var out bytes.Buffer
		if err := write(&out, found, sent == 0); err != nil {
			return c.abort(err)
		}
		_ = control.SetWriteDeadline(time.Now().Add(exportWrite)) // a writer of tests has none
		if _, err := c.w.Write(out.Bytes()); err != nil {
			return c.abort(nil) // the client is gone
		}
		if sent += len(found); next == "" || sent >= exportMost {
			return nil
		}
		page := management.Page{Limit: min(exportBatch, exportMost-sent), Cursor: next}
		if found, next, err = c.plane.FindConnections(c.ctx, c.who, q, page); err != nil {
			return c.abort(err)
		}
	}
}

// abort breaks the connection off, so that half a file is not taken for a whole one.
func (c *ctx) abort(err error) error {
	if err != nil {
		c.expected(err) // for the log
	}
	panic(http.ErrAbortHandler)
}

func writeNDJSON(out *bytes.Buffer, found []*management.Connection, _ bool) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for _, r := range found {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// recordColumns are the fields of a record that JSON has too, under the same names.
var recordColumns = func() (columns []reflect.StructField) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[management.Connection]()) {
		if !f.Anonymous && f.Tag.Get("json") != "-" {
			columns = append(columns, f)
		}
	}
	return columns
}()

func writeCSV(out *bytes.Buffer, found []*management.Connection, first bool) error {
	w := csv.NewWriter(out)
	line := make([]string, len(recordColumns))
	if first {
		for i, f := range recordColumns {
			line[i], _, _ = strings.Cut(f.Tag.Get("json"), ",")
		}
		if err := w.Write(line); err != nil {
			return err
		}
	}
	for _, r := range found {
		v := reflect.ValueOf(r).Elem()
		for i, f := range recordColumns {
			line[i] = cell(v.FieldByIndex(f.Index).Interface())
		}
		if err := w.Write(line); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

// cell writes a value for a spreadsheet. Texts come from strangers, who may send a formula as a server name: an apostrophe has it taken
// for text.
func cell(value any) string {
	switch value := value.(type) {
	case string:
		if value != "" && strings.ContainsRune("=+-@\t\r", rune(value[0])) {
			return "'" + value
		}
		return value
	case time.Time:
		return value.UTC().Format(time.RFC3339Nano)
	case float64:
		return strconv.FormatFloat(value, 'g', -1, 64)
	}
	return fmt.Sprint(value)
}
