package management

import "context"

// Ready returns nil while the database answers and has the schema of this binary; else an Unavailable Error that wraps nothing:
// what is wrong is logged.
func (p *Plane) Ready(ctx context.Context) error {
	if err := p.store.Ready(ctx); err != nil {
		if ctx.Err() == nil {
			p.log.Warn("the database is not ready", "error", err)
		}
		return Errorf(Unavailable, "The database is not ready. Traffic is not affected.")
	}
	return nil
}
