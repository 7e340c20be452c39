-- +goose Up

-- An edge is known by the name it reports under. started_at, revision and what follows are of the life that is the edge:
-- the one whose first report came last. epoch counts how often its states were forgotten: those of other epochs are nothing.
CREATE TABLE edges (
	name             TEXT NOT NULL PRIMARY KEY,
	id               TEXT NOT NULL UNIQUE,
	token_id         TEXT NOT NULL,
	first_seen       INTEGER NOT NULL,
	last_seen        INTEGER NOT NULL,
	region           TEXT NOT NULL,
	version          TEXT NOT NULL,
	started_at       INTEGER NOT NULL,
	epoch            INTEGER NOT NULL,
	revision         INTEGER NOT NULL,
	history_from     INTEGER NOT NULL,
	draining         INTEGER NOT NULL,
	live_connections INTEGER NOT NULL,
	dropped          INTEGER NOT NULL,
	unknown          INTEGER NOT NULL,
	other_started_at INTEGER NOT NULL,
	other_seen       INTEGER NOT NULL,
	conflict_at      INTEGER NOT NULL
) STRICT;
CREATE INDEX edges_by_age ON edges (last_seen);

-- When an edge came to have its last revisions. Apart from the edges, which are read wherever a domain is shown: history_from there
-- is the first revision here.
CREATE TABLE edge_histories (
	edge    TEXT NOT NULL PRIMARY KEY,
	history TEXT NOT NULL
) STRICT;

-- The last report taken of each life of an edge, so that none is counted twice. resend is what was answered to it.
CREATE TABLE edge_runs (
	edge       TEXT NOT NULL,
	started_at INTEGER NOT NULL,
	last       INTEGER NOT NULL,
	resend     INTEGER NOT NULL,
	last_seen  INTEGER NOT NULL,
	PRIMARY KEY (edge, started_at)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_runs_by_age ON edge_runs (last_seen);

CREATE TABLE edge_rejected (
	name   TEXT NOT NULL,
	edge   TEXT NOT NULL,
	epoch  INTEGER NOT NULL,
	field  TEXT NOT NULL,
	detail TEXT NOT NULL,
	since  INTEGER NOT NULL,
	PRIMARY KEY (name, edge)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_rejected_by_edge ON edge_rejected (edge, epoch);

CREATE TABLE edge_certificates (
	name      TEXT NOT NULL,
	edge      TEXT NOT NULL,
	epoch     INTEGER NOT NULL,
	source    TEXT NOT NULL,
	issuer    TEXT NOT NULL,
	not_after INTEGER,
	state     TEXT NOT NULL,
	error     TEXT NOT NULL,
	since     INTEGER NOT NULL,
	PRIMARY KEY (name, edge)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_certificates_by_edge ON edge_certificates (edge, epoch);

CREATE TABLE edge_upstreams (
	name  TEXT NOT NULL,
	dial  TEXT NOT NULL,
	edge  TEXT NOT NULL,
	epoch INTEGER NOT NULL,
	error TEXT NOT NULL,
	since INTEGER NOT NULL,
	PRIMARY KEY (name, dial, edge)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_upstreams_by_edge ON edge_upstreams (edge, epoch);

-- What edges counted and nobody has added to usage yet. Reports only put rows here; sums are usage and this together. n is any number.
-- What is taken of it at a time lies side by side: in the order of their coming the rows of one domain would be on as many pages.
CREATE TABLE usage_inbox (
	tenant_id     TEXT NOT NULL,
	domain_id     TEXT NOT NULL,
	minute        INTEGER NOT NULL,
	n             INTEGER NOT NULL,
	domain        TEXT NOT NULL,
	connections   INTEGER NOT NULL,
	bytes_in      INTEGER NOT NULL,
	bytes_out     INTEGER NOT NULL,
	handshakes    INTEGER NOT NULL,
	post_quantum  INTEGER NOT NULL,
	hello_retries INTEGER NOT NULL,
	refused       INTEGER NOT NULL,
	detail        TEXT NOT NULL,
	PRIMARY KEY (tenant_id, domain_id, minute, n)
) STRICT, WITHOUT ROWID;

-- step: 0 a minute, 1 an hour, 2 a UTC day. Each connection is in one row of each step. What is too old is looked for domain by
-- domain: an index by age would be half of what a sum costs.
CREATE TABLE usage (
	domain_id     TEXT NOT NULL,
	step          INTEGER NOT NULL,
	start         INTEGER NOT NULL,
	tenant_id     TEXT NOT NULL,
	domain        TEXT NOT NULL,
	connections   INTEGER NOT NULL,
	bytes_in      INTEGER NOT NULL,
	bytes_out     INTEGER NOT NULL,
	handshakes    INTEGER NOT NULL,
	post_quantum  INTEGER NOT NULL,
	hello_retries INTEGER NOT NULL,
	refused       INTEGER NOT NULL,
	detail        TEXT NOT NULL,
	PRIMARY KEY (domain_id, step, start)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_of_tenant ON usage (tenant_id, step, start);

-- The sums of all domains of a tenant, which change together with those of each: a tenant may have ten thousand.
CREATE TABLE usage_totals (
	tenant_id     TEXT NOT NULL,
	step          INTEGER NOT NULL,
	start         INTEGER NOT NULL,
	connections   INTEGER NOT NULL,
	bytes_in      INTEGER NOT NULL,
	bytes_out     INTEGER NOT NULL,
	handshakes    INTEGER NOT NULL,
	post_quantum  INTEGER NOT NULL,
	hello_retries INTEGER NOT NULL,
	refused       INTEGER NOT NULL,
	PRIMARY KEY (tenant_id, step, start)
) STRICT, WITHOUT ROWID;
-- For what is too old. Of expressions, so that no search of a tenant's uses it: PostgreSQL knows nothing of the hours since its last
-- statistics, takes all indexes for equally good there, and would read those of everybody.
CREATE INDEX usage_totals_by_age ON usage_totals ((step + 0), (start - 0));

-- Connection records that never came, by the hour in which an edge said so.
CREATE TABLE record_drops (
	hour    INTEGER NOT NULL,
	edge    TEXT NOT NULL,
	dropped INTEGER NOT NULL,
	PRIMARY KEY (hour, edge)
) STRICT, WITHOUT ROWID;

-- What is to be removed of a tenant, or of one domain, from then on.
CREATE TABLE purges (
	tenant_id TEXT NOT NULL,
	domain_id TEXT NOT NULL,
	due       INTEGER NOT NULL,
	PRIMARY KEY (tenant_id, domain_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX purges_by_due ON purges (due);
