// Package management is the management plane: tenants with their users and keys, the domains that they bring, the
// certificates, the edges that serve them and what the edges report. It holds the nouns and the rules; it knows no SQL,
// no HTTP and no Caddy.
//
//	plane, err := management.New(management.Config{…}, management.Parts{Store: store, …})
//	created, err := plane.CreateDomain(ctx, who, settings)
//
// Whoever calls is a *Principal. Each method of Plane begins by asking it for the scope that the method needs, and reads and
// writes rows of the principal's tenant alone: a row of somebody else does not exist for it. That is the one place where
// tenancy is decided; the layers above pass the principal on and decide nothing.
//
// A change is one call of Store.Update: the row, its audit entry and the revision that edges see are written in one
// transaction, and all such transactions take place one after the other, also across instances. So what a method read
// inside of it still holds when it commits, and no revision becomes visible after a higher one.
//
// What fails returns an *Error with a code, a sentence for people and, for bad input, every fault with its place. Any other
// error is a defect or a broken part: the layer above logs it and shows a neutral sentence.
package management
