package management

import "time"

// EdgeState is what the edges say of one domain.
type EdgeState struct {
	Of      int // edges that are up
	Applied int // those of them that have applied the domain's revision and did not reject the record
	Live    int // those of them that also hold its certificate

	// LiveSince is when the last of them became live; zero while not all are. Not needed to the second.
	LiveSince time.Time

	Rejected string // what an edge that is up found wrong with the record; empty: nothing

	Certificate EdgeCertificate // of edges that are up: the one that ends first
	Upstreams   []EdgeUpstream  // of edges that are up: those that at least one of them finds faulty
}

// EdgeCertificate is the state of a domain's certificate on the edges.
type EdgeCertificate struct {
	Held     int    // edges that are up and hold one
	Source   string // "acme", "internal" or "byoc"
	Issuer   string
	NotAfter time.Time // of those held, the first to end; zero: none is held
	Error    string    // why an edge could not obtain or renew it, as the edge says; empty: no trouble
}

// EdgeUpstream is an upstream that edges cannot use.
type EdgeUpstream struct {
	Dial  string
	Error string
	Down  int // edges on which it is
}
