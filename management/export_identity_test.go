package management

// What tests of identity call of the background work.
var (
	StoreUses    = (*Plane).storeUses
	TidyIdentity = (*Plane).tidyIdentity
	RewrapUsers  = (*Plane).rewrapUsers
	CheckTitle   = checkTitle
)

// OnTenantChange registers a hook as other nouns do.
func (p *Plane) OnTenantChange(fn func(Tx, *Tenant) error) { p.onTenantChange(fn) }
