package edgereport

import (
	"encoding/json"
	"errors"
	"io"
)

// Builder writes a report entry by entry, within the bounds. The zero value is an empty one. An Add returns false,
// and leaves the report as it was, where there is no room for the entry any more.
type Builder struct {
	rejected, certificates, upstreams, counters, connections list
	size                                                     int
}

// list is the entries of one list, encoded, with commas between.
type list struct {
	json  []byte
	count int
}

// headRoom is what the members of a report take beside its lists, names at their longest included: each byte may become
// six.
const headRoom = 8 << 10

// AddRejected adds an entry of Rejected.
func (b *Builder) AddRejected(r Rejected) bool { return b.add(&b.rejected, MaxStates, r) }

// AddCertificate adds an entry of Certificates.
func (b *Builder) AddCertificate(c CertificateState) bool {
	return b.add(&b.certificates, MaxStates, c)
}

// AddUpstream adds an entry of Upstreams.
func (b *Builder) AddUpstream(u UpstreamState) bool { return b.add(&b.upstreams, MaxStates, u) }

// AddCounter adds an entry of Counters.
func (b *Builder) AddCounter(c Counter) bool { return b.add(&b.counters, MaxCounters, c) }

// AddConnection adds an entry of Connections.
func (b *Builder) AddConnection(c *Connection) bool {
	return b.add(&b.connections, MaxConnections, c)
}

// Connections returns how many records there are.
func (b *Builder) Connections() int { return b.connections.count }

// Size returns how many bytes of JSON the entries are.
func (b *Builder) Size() int { return b.size }

func (b *Builder) add(l *list, most int, entry any) bool {
	if l.count == most {
		return false
	}
	text, err := json.Marshal(entry)
	if err != nil {
		panic(err) // strings, numbers and times of four-digit years
	}
	if b.size+len(text)+1 > MaxSize-headRoom {
		return false
	}
	if l.count > 0 {
		l.json = append(l.json, ',')
	}
	l.json = append(l.json, text...)
	l.count++
	b.size += len(text) + 1
	return true
}

// WriteTo writes the report: the members of head, whose lists must be empty, and the entries that were added.
func (b *Builder) WriteTo(w io.Writer, head *Report) error {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	pieces := [][]byte{text[:len(text)-1]}
	for _, l := range []struct {
		key string
		*list
	}{
		{"rejected", &b.rejected}, {"certificates", &b.certificates}, {"upstreams", &b.upstreams},
		{"counters", &b.counters}, {"connections", &b.connections},
	} {
		if l.count > 0 {
			pieces = append(pieces, []byte(`,"`+l.key+`":[`), l.json, []byte{']'})
		}
	}
	for _, piece := range append(pieces, []byte{'}'}) {
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// ParseAnswer reads an answer to a report. Members that are not known are ignored. What has no revision is no answer of a
// management plane, but perhaps of something on the way to it.
func ParseAnswer(text []byte) (Answer, error) {
	var a struct {
		Revision  *uint64 `json:"revision"`
		Duplicate bool    `json:"duplicate"`
		Resend    bool    `json:"resend"`
	}
	if err := json.Unmarshal(text, &a); err != nil || a.Revision == nil {
		return Answer{}, errors.New("the answer is not that of a management plane, which has a revision")
	}
	return Answer{*a.Revision, a.Duplicate, a.Resend}, nil
}
