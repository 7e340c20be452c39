package management

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pqproxy/caddy-pqproxy/domain"
)

// AxisState is how one side of a domain is.
type AxisState string

// The states of an axis.
const (
	AxisOK      AxisState = "ok"
	AxisPending AxisState = "pending" // not yet
	AxisFailed  AxisState = "failed"
	AxisUnknown AxisState = "unknown" // could not be asked, or nobody has reported: nothing follows
	AxisOff     AxisState = "off"     // there is nothing to compare with
)

// Who has to act.
const (
	WhoCustomer = "customer"
	WhoOperator = "operator" // of this service
	WhoService  = "service"  // nobody: it goes on by itself
)

// NextAction is what brings a domain on.
type NextAction struct {
	Who    string       `json:"who" enum:"customer,operator,service"`
	Text   string       `json:"text"`
	Record *RecordToSet `json:"record" doc:"the DNS record to set; null: none"`
}

// RecordToSet is a DNS record.
type RecordToSet struct {
	Type  string `json:"type"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Axes are the sides of a domain.
type Axes struct {
	Ownership   OwnershipAxis   `json:"ownership"`
	DNS         Axis            `json:"dns"`
	Certificate CertificateAxis `json:"certificate"`
	Upstream    Axis            `json:"upstream"`
	Edges       EdgesAxis       `json:"edges"`
}

// Axis is one side of a domain.
type Axis struct {
	State     AxisState  `json:"state" enum:"ok,pending,failed,unknown,off"`
	Detail    string     `json:"detail"`
	CheckedAt *time.Time `json:"checked_at"`
}

// OwnershipAxis says whether the tenant has proven that the name is its own.
type OwnershipAxis struct {
	Axis
	Proof *Proof `json:"proof" enum:"trusted,txt,http,dns" doc:"null: there is none yet"`
}

// CertificateAxis says whether there is a certificate.
type CertificateAxis struct {
	Axis
	NotAfter *time.Time `json:"not_after"`
}

// EdgesAxis says on how many edges the domain is live.
type EdgesAxis struct {
	Axis
	Live  int        `json:"live"`
	Of    int        `json:"of"`
	Since *time.Time `json:"since" doc:"when it became live on the last of them"`
}

// DomainState is what a domain's status and all that explains it are derived as.
type DomainState struct {
	Status     Status      `json:"status" enum:"pending_dns,verifying,issuing,deploying,active,degraded,moved,suspended,deleting"`
	Serving    bool        `json:"serving" doc:"edges serve it"`
	Stuck      bool        `json:"stuck" doc:"it goes on only when somebody acts, or has not gone on for a quarter of an hour"`
	NextAction *NextAction `json:"next_action"`
	Records    []Record    `json:"records" nullable:"false"`
	Axes       Axes        `json:"axes"`
}

// patience is how long the service's own work may take until a domain counts as stuck.
const patience = 15 * time.Minute

// domainView is all that a domain's state depends on.
type domainView struct {
	row     *DomainRow
	tenant  *Tenant
	edges   EdgeState
	targets []Target
	now     time.Time
}

// derive returns the state of a domain. It is a function of the view alone, and total.
func derive(v domainView) DomainState {
	s := DomainState{Records: v.records()}
	s.Axes = Axes{Ownership: v.ownership(), DNS: v.dns(), Certificate: v.certificate(), Upstream: v.upstream(), Edges: v.edgesAxis()}
	s.Status = v.status(&s.Axes)
	s.Serving = v.serving()
	s.NextAction = v.next(&s)
	switch {
	case s.NextAction == nil || s.Status == Deleting || s.Status == Suspended:
	case s.NextAction.Who != WhoService:
		s.Stuck = true
	default:
		s.Stuck = v.now.Sub(latest(v.row.UpdatedAt, v.row.ProvenAt, v.row.Facts.PointedAt)) > patience
	}
	return s
}

func latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (v *domainView) suspended() bool { return v.row.Settings.Suspended || v.tenant.Suspended }

// status is the first stage not yet passed, or how it went on after all were.
func (v *domainView) status(a *Axes) Status {
	switch {
	case !v.row.DeletingAt.IsZero():
		return Deleting
	case v.suspended():
		return Suspended
	}
	passed := func(s AxisState) bool { return s == AxisOK || s == AxisOff }
	if v.row.ActivatedAt.IsZero() {
		switch {
		case !passed(a.DNS.State):
			return PendingDNS
		case a.Ownership.State != AxisOK:
			return Verifying
		case a.Certificate.State != AxisOK:
			return Issuing
		case a.Edges.State != AxisOK:
			return Deploying
		}
	}
	switch {
	case a.Ownership.State != AxisOK:
		return Verifying
	case a.DNS.State == AxisFailed:
		return Moved
	case a.Certificate.State == AxisFailed || a.Upstream.State == AxisFailed || a.Edges.State == AxisFailed,
		a.Certificate.State == AxisPending && v.edges.Of > 0 && v.edges.Applied == v.edges.Of:
		return Degraded
	}
	return Active
}

// serving reports whether edges serve the domain. While they are being told of a change they serve what was before, and while
// none of them reports, what they served goes on.
func (v *domainView) serving() bool {
	if !v.row.Published() || v.suspended() {
		return false
	}
	between := v.edges.Of == 0 || v.edges.Applied < v.edges.Of
	return v.edges.Live > 0 || between && !v.row.ActivatedAt.IsZero()
}

func (v *domainView) ownership() OwnershipAxis {
	row := v.row
	a := OwnershipAxis{Axis: Axis{State: AxisPending, CheckedAt: moment(row.Facts.CheckedAt)}}
	if row.Proof != "" {
		proof := row.Proof
		a.State, a.Proof = AxisOK, &proof
		switch proof {
		case ProofTrusted:
			a.Detail = "The operator of this service vouches for the account."
		case ProofTXT:
			a.Detail = "The TXT record proves it."
		case ProofHTTP:
			a.Detail = "The name's own web server proves it."
		case ProofDNS:
			a.Detail = "The name points at this service and nobody else claims it. Set the TXT record to keep it whatever others claim."
		}
		return a
	}
	switch {
	case row.Facts.Lost && row.Facts.Taken:
		a.State, a.Detail = AxisFailed, "Another account has proven that the name is its own. If that is wrong, the TXT record shows who controls its DNS; then ask the operator."
	case row.Facts.Lost:
		a.State, a.Detail = AxisFailed, "The account is no longer vouched for. Set the TXT record to prove that the name is yours."
	case row.Facts.Taken:
		a.State, a.Detail = AxisFailed, "Another account has proven that the name is its own. Set the TXT record: it outweighs a name that merely points here."
	case row.Facts.CheckedAt.IsZero():
		a.Detail = "It has not been checked yet."
	case row.Facts.TXT.Trouble != "" || row.Facts.TXT.State == FoundUnknown:
		a.State, a.Detail = AxisUnknown, first(row.Facts.TXT.Trouble, row.Facts.TXT.Detail, "DNS could not be asked.")
	case row.Facts.Contested:
		a.Detail = "Other accounts claim the name, or one did in the last 90 days, so that pointing it here proves nothing. Set the TXT record."
	default:
		a.Detail = first(row.Facts.TXT.Detail, "Set the TXT record.")
		if !strings.HasPrefix(row.Name, "*.") {
			a.Detail += " Instead, http://" + row.Name + "/.well-known/pqproxy/" + row.Token + " may answer with the same text."
		}
	}
	return a
}

func first(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

func (v *domainView) dns() Axis {
	found := v.row.Facts.DNS
	a := Axis{Detail: found.Detail, CheckedAt: moment(found.At)}
	if len(v.targets) == 0 {
		return Axis{State: AxisOff, Detail: "This service does not compare names with its addresses."}
	}
	switch found.State {
	case FoundOK:
		a.State = AxisOK
	case FoundAbsent, FoundWrong:
		if a.State = AxisPending; !v.row.Facts.PointedAt.IsZero() {
			a.State = AxisFailed
		}
	case FoundUnknown:
		a.State = AxisUnknown
	default: // not checked yet, or not since the operator named targets
		a.State, a.Detail = AxisPending, "It has not been checked yet."
	}
	if found.Trouble != "" {
		a.Detail = found.Trouble + " What DNS said before still counts."
	}
	return a
}

func (v *domainView) certificate() CertificateAxis {
	row, c := v.row, v.edges.Certificate
	source := row.Settings.Certificate.Source
	a := CertificateAxis{Axis: Axis{State: AxisPending}}
	notAfter := c.NotAfter
	if source == domain.BYOC && !row.CertificateNotAfter.IsZero() {
		notAfter = row.CertificateNotAfter
		if !notAfter.After(v.now) && c.Held > 0 && c.NotAfter.After(v.now) && row.Settings.Certificate.Fallback == domain.FallbackACME {
			a.State, a.NotAfter = AxisOK, moment(c.NotAfter)
			a.Detail = "Your certificate has ended; edges serve one that they obtained. Upload a new one."
			return a
		}
		a.State = AxisOK
	} else if c.Held > 0 {
		a.State = AxisOK
	}
	if v.edges.Of == 0 && row.Published() {
		notAfter = row.CertificateNotAfter // as edges said last
	}
	a.NotAfter = moment(notAfter)
	switch {
	case a.State == AxisOK && !notAfter.IsZero() && !notAfter.After(v.now):
		a.State, a.Detail = AxisFailed, "The certificate has ended."
		if source == domain.BYOC {
			a.Detail += " Upload a new one, or set certificate.source to acme."
		}
	case a.State == AxisOK && !notAfter.IsZero() && notAfter.Sub(v.now) < expiresSoon(source):
		a.Detail = fmt.Sprintf("The certificate ends on %s.", notAfter.UTC().Format(time.DateOnly))
		if c.Error != "" {
			a.Detail += " Renewing it failed: " + c.Error
		} else if source == domain.BYOC {
			a.Detail += " Upload a new one."
		}
	case a.State == AxisOK:
		a.Detail = c.Error
	case row.Proof == "":
		a.Detail = "It is obtained once the name is proven to be yours."
	case source == domain.ACME && row.Facts.CAA.State == FoundWrong:
		a.State, a.Detail = AxisFailed, row.Facts.CAA.Detail
	case c.Error != "":
		a.State, a.Detail = AxisFailed, c.Error
	case v.edges.Of == 0 && !row.ActivatedAt.IsZero():
		a.State, a.Detail = AxisUnknown, "No edge has reported."
	default:
		a.Detail = "Edges are obtaining it."
	}
	return a
}

// expiresSoon is when an end is worth a word: ACME certificates of six days are renewed in time.
func expiresSoon(source domain.CertificateSource) time.Duration {
	if source == domain.BYOC {
		return 21 * 24 * time.Hour
	}
	return 48 * time.Hour
}

func (v *domainView) upstream() Axis {
	a := Axis{State: AxisOK}
	down := 0
	var details []string
	for _, u := range v.row.Settings.Upstreams {
		i := slices.IndexFunc(v.edges.Upstreams, func(e EdgeUpstream) bool { return e.Dial == u.Dial && e.Down > 0 })
		if i < 0 {
			continue
		}
		down++
		details = append(details, u.Dial+": "+first(v.edges.Upstreams[i].Error, "does not answer"))
	}
	a.Detail = strings.Join(details, "; ")
	switch {
	case down > 0 && down == len(v.row.Settings.Upstreams):
		a.State = AxisFailed
	case down > 0:
	case v.edges.Applied == 0:
		a.State, a.Detail = AxisUnknown, "No edge has reported on it. POST …/probe looks at it from here."
	}
	return a
}

func (v *domainView) edgesAxis() EdgesAxis {
	a := EdgesAxis{Axis: Axis{State: AxisPending}, Live: v.edges.Live, Of: v.edges.Of}
	switch {
	case !v.row.Published():
		a.Live = 0
		a.Detail = "Edges are told once the name is proven to be yours."
	case v.edges.Rejected != "":
		a.State, a.Detail = AxisFailed, v.edges.Rejected
	case v.edges.Of == 0 && v.row.ActivatedAt.IsZero():
		a.Detail = "No edge has reported."
	case v.edges.Of == 0:
		a.State, a.Detail = AxisUnknown, "No edge has reported for a while. Edges go on serving what they know."
	case v.edges.Live == v.edges.Of:
		a.State, a.Since = AxisOK, moment(v.edges.LiveSince)
		a.Detail = fmt.Sprintf("Live on %d of %d edges.", a.Live, a.Of)
	case v.edges.Applied == v.edges.Of:
		a.Detail = fmt.Sprintf("Live on %d of %d edges; the others have no certificate for it yet.", a.Live, a.Of)
	default:
		a.Detail = fmt.Sprintf("Live on %d of %d edges; the others have not heard of the last change yet.", a.Live, a.Of)
	}
	return a
}

// records are those of the last check, or, before the first, those that are expected.
func (v *domainView) records() []Record {
	var records []Record
	seen := v.row.Facts.Records
	if !slices.ContainsFunc(seen, func(r Record) bool { return r.Purpose == ForTraffic }) {
		for _, t := range v.targets {
			records = append(records, Record{Purpose: ForTraffic, Type: strings.ToUpper(t.Type), Name: v.row.Name, Value: t.Value})
		}
	}
	ownership := false
	for _, r := range seen {
		if r.Purpose == ForTraffic && len(v.targets) == 0 {
			continue
		}
		ownership = ownership || r.Purpose == ForOwnership
		records = append(records, r)
	}
	if base := "_pqproxy." + strings.TrimPrefix(v.row.Name, "*."); !ownership && len(base) <= 253 {
		records = append(records, Record{Purpose: ForOwnership, Type: "TXT", Name: base, Value: proofText(v.row.Token)})
	}
	out := make([]Record, 0, len(records))
	for _, r := range records {
		if r.Purpose == ForOwnership {
			if v.row.Proof == ProofTrusted {
				continue // nothing is to be set
			}
			r.OK = r.OK || v.row.Proof == ProofTXT || v.row.Proof == ProofHTTP
		}
		if r.Seen == nil {
			r.Seen = []string{}
		}
		out = append(out, r)
	}
	return out
}

// toSet returns the first record of a purpose that is missing; nil: there is none.
func toSet(records []Record, purpose string) *RecordToSet {
	for _, r := range records {
		if r.Purpose == purpose && !r.OK {
			return &RecordToSet{r.Type, r.Name, r.Value}
		}
	}
	return nil
}

// next says what brings the domain on; nil: nothing is to be done.
func (v *domainView) next(s *DomainState) *NextAction {
	a := &s.Axes
	customer := func(record *RecordToSet, text string) *NextAction { return &NextAction{WhoCustomer, text, record} }
	switch s.Status {
	case Deleting:
		return &NextAction{WhoService, "Edges are letting go of it.", nil}
	case Suspended:
		if v.tenant.Suspended {
			return &NextAction{WhoOperator, "The account is suspended. Ask the operator of this service.", nil}
		}
		return customer(nil, "It is suspended by its own setting: set suspended to false to serve it.")
	case PendingDNS, Moved:
		if a.DNS.State == AxisUnknown {
			return &NextAction{WhoService, "DNS could not be asked and is asked again: " + a.DNS.Detail, nil}
		}
		record := toSet(s.Records, ForTraffic)
		text := "Point the name at this service."
		if record != nil {
			text = fmt.Sprintf("Set the %s record of %s to %s.", record.Type, record.Name, record.Value)
		}
		if v.row.Facts.DNS.State == FoundWrong && v.row.Facts.DNS.Detail != "" {
			text += " " + v.row.Facts.DNS.Detail
		}
		if txt := toSet(s.Records, ForOwnership); v.row.Proof == "" && txt != nil {
			text += " With the TXT record set first, it can be tried before."
			if v.row.Facts.Taken || v.row.Facts.Contested {
				text += " Others claim the name, so that the TXT record is needed as well."
			}
		}
		return customer(record, text)
	case Verifying:
		if a.Ownership.State == AxisUnknown {
			return &NextAction{WhoService, "DNS could not be asked and is asked again: " + a.Ownership.Detail, nil}
		}
		return customer(toSet(s.Records, ForOwnership), "Set the TXT record to prove that the name is yours. "+a.Ownership.Detail)
	case Active:
		return nil
	}
	return v.nextOnEdges(a)
}

// nextOnEdges is next for what happens on edges.
func (v *domainView) nextOnEdges(a *Axes) *NextAction {
	byoc := v.row.Settings.Certificate.Source == domain.BYOC
	switch {
	case a.Edges.State == AxisFailed:
		return &NextAction{WhoCustomer, "Edges refuse the domain as it is; change it, or ask the operator: " + a.Edges.Detail, nil}
	case a.Certificate.State == AxisFailed && byoc:
		return &NextAction{WhoCustomer, a.Certificate.Detail, nil}
	case a.Certificate.State == AxisFailed && v.row.Facts.CAA.State == FoundWrong:
		return &NextAction{WhoCustomer, "Let the certificate be issued: " + a.Certificate.Detail, nil}
	case a.Certificate.State == AxisFailed:
		return &NextAction{WhoService, "The certificate could not be obtained and is tried again: " + a.Certificate.Detail, nil}
	case a.Upstream.State == AxisFailed:
		return &NextAction{WhoCustomer, "Edges cannot use your server; look at it, or at the upstreams: " + a.Upstream.Detail, nil}
	case v.edges.Of == 0:
		return &NextAction{WhoOperator, "No edge has reported to this service.", nil}
	case a.Certificate.State == AxisPending:
		return &NextAction{WhoService, "The certificate is being obtained.", nil}
	}
	return &NextAction{WhoService, "Edges are being told.", nil}
}

// refreshRows derives what is stored of the state of domains again, and stores what changed of it.
func (p *Plane) refreshRows(tx Tx, rows []*DomainRow) error {
	views, err := p.viewsOf(tx, rows)
	if err != nil {
		return err
	}
	for _, v := range views {
		if p.settle(v) {
			if err := tx.UpdateDomain(v.row); err != nil {
				return err
			}
		}
	}
	return nil
}

// settle puts what is derived into the row and reports whether that changed it.
func (p *Plane) settle(v *domainView) bool {
	row := v.row
	status, activated, notAfter := row.Status, row.ActivatedAt, row.CertificateNotAfter
	row.Status = derive(*v).Status
	if row.ActivatedAt.IsZero() && (row.Status == Active || row.Status == Degraded) {
		row.ActivatedAt = v.now
	}
	if row.Settings.Certificate.Source != domain.BYOC && (v.edges.Of > 0 || !row.Published()) { // what was known holds while nobody reports
		row.CertificateNotAfter = v.edges.Certificate.NotAfter
	}
	return row.Status != status || !row.ActivatedAt.Equal(activated) || !row.CertificateNotAfter.Equal(notAfter)
}

// viewsOf reads what the states of domains depend on, but for tenants that the caller has read.
func (p *Plane) viewsOf(tx Tx, rows []*DomainRow, read ...*Tenant) ([]*domainView, error) {
	states, err := p.edgeStates(tx, rows)
	if err != nil {
		return nil, err
	}
	tenants := map[string]*Tenant{}
	for _, tenant := range read {
		tenants[tenant.ID] = tenant
	}
	views := make([]*domainView, len(rows))
	for i, row := range rows {
		tenant := tenants[row.TenantID]
		if tenant == nil {
			if tenant, err = tx.FindTenant(row.TenantID); err != nil {
				return nil, fmt.Errorf("the tenant of %s: %w", row.ID, err)
			}
			tenants[row.TenantID] = tenant
		}
		state := states[row.ID]
		if !row.Published() { // edges speak of names, and this name may be another tenant's
			state = EdgeState{Of: state.Of}
		}
		views[i] = &domainView{row: row, tenant: tenant, edges: state, targets: p.cfg.Targets, now: p.now()}
	}
	return views, nil
}
