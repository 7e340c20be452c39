package management

// What tests of domains call of the background work.
var (
	CheckDue         = (*Plane).checkDue
	RemoveDeleted    = (*Plane).removeDeleted
	WalkStatuses     = (*Plane).walkStatuses
	TenantChanged    = (*Plane).tenantChanged
	ForgetHistory    = (*Plane).forgetHistory
	RefreshReported  = (*Plane).refreshReported
	AppendFeedRecord = (*Plane).appendFeedRecord
	TakeCheckPlace   = func(p *Plane, tenantID string) (func(), error) { return p.domains.begin(tenantID) }
)
