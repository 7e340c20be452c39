package pqproxy

import (
	"hash/maphash"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
	"github.com/pqproxy/caddy-pqproxy/internal/edgereport"
	"github.com/pqproxy/caddy-pqproxy/internal/pace"
)

// Bounds of what is looked at for reports. Names that an apply has changed are looked at for the next report; with more of
// them, all domains are, as with every regular report.
const (
	touchedNames   = 1_000
	unsettledNames = 200   // domains without a valid certificate that are looked at every second
	toldUpstreams  = 2_000 // upstreams that do not work
)

// toldStates are the states that the management plane has been told, as far as it has to know when they change, and those
// that it is to be told. They are the sender's alone. For each domain of the management plane there are some 100 bytes.
type toldStates struct {
	owner     *state
	names     map[string]toldCertificate
	rejected  map[string]uint64 // digests, by name
	upstreams map[upstreamName]uint64
	revision  uint64
	known     bool // all domains have been looked at since it was forgotten

	// What is being told, and the revision that belongs to it.
	next         uint64
	telling      bool
	newRejected  []edgereport.Rejected
	newUpstreams []edgereport.UpstreamState
	newNames     []string
	unsettled    []string  // names whose certificate may soon be valid
	lookedAt     time.Time // when that was looked at
	settled      []string  // those of them whose is
	scan         uint32
	pace         pace.Pace
}

type upstreamName struct{ domain, dial string }

// toldCertificate is what was told of one certificate.
type toldCertificate struct {
	digest uint64
	cheap  uint64 // of what it depends on, where it is costly to look at; 0: always look
	valid  bool
}

func (t *toldStates) open(owner *state) {
	t.owner = owner
	t.forget()
}

// forget has all states told again.
func (t *toldStates) forget() {
	t.names, t.rejected, t.upstreams = make(map[string]toldCertificate), make(map[string]uint64), make(map[upstreamName]uint64)
	t.telling, t.known = false, false
	t.newRejected, t.newUpstreams, t.newNames, t.unsettled, t.settled = nil, nil, nil, nil, nil
}

// begin finds out what has changed: of the names given, or, with all, of every domain. All that the revision has changed
// must be in the table, and in the names.
func (t *toldStates) begin(revision uint64, all bool, touched []string) {
	t.next, t.telling, t.settled = revision, true, nil
	t.lookAtRejected()
	t.lookAtUpstreams()
	t.scan++
	if all {
		t.known = true
		t.lookAtAll()
		return
	}
	for _, name := range touched {
		if _, changed := t.lookAt(name); changed {
			t.newNames = append(t.newNames, name)
		}
	}
}

// revisionNow is the revision of the set in force; 0: it has none, or there is no set.
func (r *remoteState) revisionNow() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version.revision
}

// add puts as much as there is room for into a report, rejections first. What has been put there counts as told, since a
// report is sent until it is taken. It returns the revision for it, which is raised when nothing is left.
func (t *toldStates) add(b *reportBuilder) uint64 {
	for len(t.newRejected) > 0 {
		r := t.newRejected[0]
		if b.full() || !b.AddRejected(r) {
			return t.revision
		}
		t.newRejected = t.newRejected[1:]
		if name := r.Name; r.Detail == "" {
			delete(t.rejected, name)
		} else {
			t.rejected[name] = textsDigest(r.Field, r.Detail)
		}
	}
	for len(t.newUpstreams) > 0 {
		u := t.newUpstreams[0]
		if b.full() || !b.AddUpstream(u) {
			return t.revision
		}
		t.newUpstreams = t.newUpstreams[1:]
		if key := (upstreamName{u.Domain, u.Dial}); u.Healthy {
			delete(t.upstreams, key)
		} else {
			t.upstreams[key] = textsDigest(u.Error)
		}
	}
	for len(t.newNames) > 0 {
		name := t.newNames[0]
		now, changed := t.lookAt(name) // again: reports may have waited
		if changed && (b.full() || !b.AddCertificate(now.wire)) {
			return t.revision
		}
		t.newNames = t.newNames[1:]
		if !changed {
			continue
		}
		if now.wire.State == edgereport.CertificateGone {
			delete(t.names, name)
		} else {
			t.names[strings.Clone(name)] = now.toldCertificate // the name may be part of something large
			if !now.valid && len(t.unsettled) < unsettledNames {
				t.unsettled = append(t.unsettled, strings.Clone(name))
			}
		}
	}
	t.newRejected, t.newUpstreams, t.newNames = nil, nil, nil
	if t.telling {
		t.telling, t.revision = false, t.next
	}
	return t.revision
}

// settles looks, now and then, whether names that had no valid certificate have one, and reports whether any has.
func (t *toldStates) settles(now time.Time) bool {
	if t.telling || now.Sub(t.lookedAt) < reporting.settle {
		return len(t.settled) > 0
	}
	t.lookedAt, t.settled = now, nil
	t.unsettled = slices.DeleteFunc(t.unsettled, func(name string) bool {
		told, ok := t.names[name]
		return !ok || told.valid
	})
	for _, name := range t.unsettled {
		if now, changed := t.lookAt(name); changed && now.valid {
			t.settled = append(t.settled, name)
		}
	}
	return len(t.settled) > 0
}

// certificateNow is the state of a certificate, as it is told and as it is remembered.
type certificateNow struct {
	wire edgereport.CertificateState
	toldCertificate
}

// lookAt returns the state of a domain's certificate, and whether that is another one than was told.
func (t *toldStates) lookAt(name string) (now certificateNow, changed bool) {
	told, known := t.names[name]
	e := t.owner.table.Load().named(name)
	if e.none() || e.source != rankRemote { // it has left, or another source shadows it
		return certificateNow{wire: edgereport.CertificateState{Name: name, State: edgereport.CertificateGone}}, known
	}
	d := &domain.Domain{Name: name, Certificate: domain.Certificate{Source: domain.ACME}}
	switch e.certificate {
	case fromInternal:
		d.Certificate.Source = domain.Internal
	case fromTenant, fromTenantOrACME:
		if now.cheap = t.cheap(e, name); known && now.cheap == told.cheap {
			return now, false
		}
		d = e.domain()
	}
	state := t.owner.certificateState(e, d)
	if e.certificate == fromInternal && state.State == edgereport.CertificatePending {
		state.State, state.Error = edgereport.CertificateValid, "" // the local CA issues it in the first handshake: nobody has to wait
	}
	now.wire = edgereport.CertificateState{
		Name: name, Source: string(state.Source), Issuer: state.Issuer, NotAfter: state.NotAfter, State: state.State,
		Error: cutText(state.Error, edgereport.MaxText),
	}
	notAfter := ""
	if state.NotAfter != nil {
		notAfter = state.NotAfter.Format(time.RFC3339)
	}
	now.digest = textsDigest(now.wire.Source, now.wire.Issuer, notAfter, now.wire.State, now.wire.Error)
	now.valid = now.wire.State == edgereport.CertificateValid
	return now, !known || told.digest != now.digest
}

// spreadLooks is in how many regular reports each tenant's own certificate is looked at once, whatever cheap says: it may have been
// revoked.
const spreadLooks = 128

// cheap digests what the state of a tenant's own certificate depends on, as far as that can be had without reading the
// certificate: that takes longer than all else.
func (t *toldStates) cheap(e entry, name string) uint64 {
	if hash := hashOf(name); uint32(hash)%spreadLooks == t.scan%spreadLooks {
		return hash | 1<<63 | uint64(t.scan) // like no other
	}
	var h maphash.Hash
	h.SetSeed(nameSeed)
	route := e.route()
	known, _ := t.owner.certs.known.of(name)
	maphash.WriteComparable(&h, struct {
		epoch   uint64
		expired bool
		faulty  bool
		known   int64
		last    string
	}{e.epoch, e.pairEnds.time().Before(time.Now()), route != nil && route.pairError != nil, known.Unix(), t.owner.certs.orders.report(name).last})
	return h.Sum64()
}

// lookAtAll notes every domain of the management plane whose certificate is not as it was told.
func (t *toldStates) lookAtAll() {
	t.unsettled = t.unsettled[:0]
	table := t.owner.table.Load()
	for e := range table.all {
		t.pace.Step()
		if e.source != rankRemote {
			continue
		}
		name := e.name()
		now, changed := t.lookAt(name)
		if changed {
			t.newNames = append(t.newNames, name)
		} else if told := t.names[name]; !told.valid && len(t.unsettled) < unsettledNames {
			t.unsettled = append(t.unsettled, strings.Clone(name))
		} else if now.cheap != 0 {
			told.cheap = now.cheap
			t.names[strings.Clone(name)] = told
		}
	}
	for name := range t.names {
		t.pace.Step()
		if e := table.named(name); e.none() || e.source != rankRemote {
			t.newNames = append(t.newNames, name)
		}
	}
}

// lookAtRejected notes which records of the management plane are refused now, and which no longer are.
func (t *toldStates) lookAtRejected() {
	now := t.owner.refusedRemote()
	t.newRejected = nil
	for name, r := range now {
		if digest, told := t.rejected[name]; !told || digest != textsDigest(r.Field, r.Detail) {
			t.newRejected = append(t.newRejected, r)
		}
	}
	for name := range t.rejected {
		if _, still := now[name]; !still {
			t.newRejected = append(t.newRejected, edgereport.Rejected{Name: name})
		}
	}
}

// refusedRemote returns the records of the management plane that are not in force as it last gave them, or at all, since
// this edge has the name from somebody who comes first.
func (s *state) refusedRemote() map[string]edgereport.Rejected {
	s.told.Lock()
	names, list, shadowed := maps.Clone(s.rejects.names), slices.Clone(s.rejects.list), slices.Collect(maps.Keys(s.shadowed))
	s.told.Unlock()
	all := make(map[string]edgereport.Rejected, len(names))
	table := s.table.Load()
	for _, name := range shadowed {
		if e := table.named(name); !e.none() && e.source != rankRemote && !e.of(rankRemote).none() {
			all[name] = edgereport.Rejected{Name: name, Field: "name", Detail: "this edge has a domain of this name from another source, " + string(e.source.source()) + ", which comes first"}
		}
	}
	for _, r := range list {
		if _, named := names[r.Name]; named && all[r.Name].Name == "" {
			all[r.Name] = edgereport.Rejected{Name: r.Name, Field: cutText(r.Field, edgereport.MaxText), Detail: cutText(r.Detail, edgereport.MaxText)}
		}
	}
	for name := range names {
		if all[name].Name == "" { // there were too many to keep the details of each
			all[name] = edgereport.Rejected{Name: name, Detail: "the edge refuses the record; its log says why"}
		}
	}
	return all
}

// lookAtUpstreams notes which upstreams do not work now, and which work again.
func (t *toldStates) lookAtUpstreams() {
	list, _ := t.owner.health.unhealthy(toldUpstreams)
	table := t.owner.table.Load()
	now := make(map[upstreamName]bool, len(list))
	t.newUpstreams = nil
	for _, u := range list {
		if e := table.named(u.Domain); e.none() || e.source != rankRemote || len(u.Dial) > edgereport.MaxDial {
			continue
		}
		key, text := upstreamName{u.Domain, u.Dial}, cutText(u.Error, edgereport.MaxText)
		if now[key] { // under other settings
			continue
		}
		now[key] = true
		if digest, told := t.upstreams[key]; !told || digest != textsDigest(text) {
			t.newUpstreams = append(t.newUpstreams, edgereport.UpstreamState{Domain: u.Domain, Dial: u.Dial, Error: text})
		}
	}
	for key := range t.upstreams {
		if !now[key] {
			t.newUpstreams = append(t.newUpstreams, edgereport.UpstreamState{Domain: key.domain, Dial: key.dial, Healthy: true})
		}
	}
}

// textsDigest digests texts.
func textsDigest(texts ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(nameSeed)
	for _, text := range texts {
		_, _ = h.WriteString(text)
		_ = h.WriteByte(0xff) // which no text has
	}
	return h.Sum64()
}
