-- +goose Up

-- Where a fillfactor is given, rows change all the time, in columns that no index has: with room beside the row the indexes need not
-- be told.

-- An edge is known by the name it reports under. started_at, revision and what follows are of the life that is the edge:
-- the one whose first report came last. epoch counts how often its states were forgotten: those of other epochs are nothing.
CREATE TABLE edges (
	name             TEXT COLLATE "C" NOT NULL PRIMARY KEY,
	id               TEXT COLLATE "C" NOT NULL UNIQUE,
	token_id         TEXT COLLATE "C" NOT NULL,
	first_seen       BIGINT NOT NULL,
	last_seen        BIGINT NOT NULL,
	region           TEXT NOT NULL,
	version          TEXT NOT NULL,
	started_at       BIGINT NOT NULL,
	epoch            BIGINT NOT NULL,
	revision         BIGINT NOT NULL,
	history_from     BIGINT NOT NULL,
	draining         BOOLEAN NOT NULL,
	live_connections BIGINT NOT NULL,
	dropped          BIGINT NOT NULL,
	unknown          BIGINT NOT NULL,
	other_started_at BIGINT NOT NULL,
	other_seen       BIGINT NOT NULL,
	conflict_at      BIGINT NOT NULL
);
CREATE INDEX edges_by_age ON edges (last_seen);

-- When an edge came to have its last revisions. Apart from the edges, which are read wherever a domain is shown: history_from there
-- is the first revision here.
CREATE TABLE edge_histories (
	edge    TEXT COLLATE "C" NOT NULL PRIMARY KEY,
	history TEXT NOT NULL
) WITH (fillfactor = 50);

-- The last report taken of each life of an edge, so that none is counted twice. resend is what was answered to it.
CREATE TABLE edge_runs (
	edge       TEXT COLLATE "C" NOT NULL,
	started_at BIGINT NOT NULL,
	last       BIGINT NOT NULL,
	resend     BOOLEAN NOT NULL,
	last_seen  BIGINT NOT NULL,
	PRIMARY KEY (edge, started_at)
);
CREATE INDEX edge_runs_by_age ON edge_runs (last_seen);

CREATE TABLE edge_rejected (
	name   TEXT COLLATE "C" NOT NULL,
	edge   TEXT COLLATE "C" NOT NULL,
	epoch  BIGINT NOT NULL,
	field  TEXT NOT NULL,
	detail TEXT NOT NULL,
	since  BIGINT NOT NULL,
	PRIMARY KEY (name, edge)
);
CREATE INDEX edge_rejected_by_edge ON edge_rejected (edge, epoch);

CREATE TABLE edge_certificates (
	name      TEXT COLLATE "C" NOT NULL,
	edge      TEXT COLLATE "C" NOT NULL,
	epoch     BIGINT NOT NULL,
	source    TEXT NOT NULL,
	issuer    TEXT NOT NULL,
	not_after BIGINT,
	state     TEXT NOT NULL,
	error     TEXT NOT NULL,
	since     BIGINT NOT NULL,
	PRIMARY KEY (name, edge)
);
CREATE INDEX edge_certificates_by_edge ON edge_certificates (edge, epoch);

CREATE TABLE edge_upstreams (
	name  TEXT COLLATE "C" NOT NULL,
	dial  TEXT COLLATE "C" NOT NULL,
	edge  TEXT COLLATE "C" NOT NULL,
	epoch BIGINT NOT NULL,
	error TEXT NOT NULL,
	since BIGINT NOT NULL,
	PRIMARY KEY (name, dial, edge)
);
CREATE INDEX edge_upstreams_by_edge ON edge_upstreams (edge, epoch);

-- What edges counted and nobody has added to usage yet. Reports only put rows here; sums are usage and this together. n is any number.
CREATE TABLE usage_inbox (
	tenant_id     TEXT COLLATE "C" NOT NULL,
	domain_id     TEXT COLLATE "C" NOT NULL,
	minute        BIGINT NOT NULL,
	n             BIGINT NOT NULL,
	domain        TEXT COLLATE "C" NOT NULL,
	connections   BIGINT NOT NULL,
	bytes_in      BIGINT NOT NULL,
	bytes_out     BIGINT NOT NULL,
	handshakes    BIGINT NOT NULL,
	post_quantum  BIGINT NOT NULL,
	hello_retries BIGINT NOT NULL,
	refused       BIGINT NOT NULL,
	detail        TEXT NOT NULL,
	PRIMARY KEY (tenant_id, domain_id, minute, n)
);

-- step: 0 a minute, 1 an hour, 2 a UTC day. Each connection is in one row of each step. What is too old is looked for domain by
-- domain: an index by age would be half of what a sum costs.
CREATE TABLE usage (
	domain_id     TEXT COLLATE "C" NOT NULL,
	step          BIGINT NOT NULL,
	start         BIGINT NOT NULL,
	tenant_id     TEXT COLLATE "C" NOT NULL,
	domain        TEXT COLLATE "C" NOT NULL,
	connections   BIGINT NOT NULL,
	bytes_in      BIGINT NOT NULL,
	bytes_out     BIGINT NOT NULL,
	handshakes    BIGINT NOT NULL,
	post_quantum  BIGINT NOT NULL,
	hello_retries BIGINT NOT NULL,
	refused       BIGINT NOT NULL,
	detail        TEXT NOT NULL,
	PRIMARY KEY (domain_id, step, start)
) WITH (fillfactor = 70);
CREATE INDEX usage_of_tenant ON usage (tenant_id, step, start);

-- The sums of all domains of a tenant, which change together with those of each: a tenant may have ten thousand.
CREATE TABLE usage_totals (
	tenant_id     TEXT COLLATE "C" NOT NULL,
	step          BIGINT NOT NULL,
	start         BIGINT NOT NULL,
	connections   BIGINT NOT NULL,
	bytes_in      BIGINT NOT NULL,
	bytes_out     BIGINT NOT NULL,
	handshakes    BIGINT NOT NULL,
	post_quantum  BIGINT NOT NULL,
	hello_retries BIGINT NOT NULL,
	refused       BIGINT NOT NULL,
	PRIMARY KEY (tenant_id, step, start)
) WITH (fillfactor = 70);
-- For what is too old. Of expressions, so that no search of a tenant's uses it: PostgreSQL knows nothing of the hours since its last
-- statistics, takes all indexes for equally good there, and would read those of everybody.
CREATE INDEX usage_totals_by_age ON usage_totals ((step + 0), (start - 0));

-- Connection records that never came, by the hour in which an edge said so.
CREATE TABLE record_drops (
	hour    BIGINT NOT NULL,
	edge    TEXT COLLATE "C" NOT NULL,
	dropped BIGINT NOT NULL,
	PRIMARY KEY (hour, edge)
);

-- What is to be removed of a tenant, or of one domain, from then on.
CREATE TABLE purges (
	tenant_id TEXT COLLATE "C" NOT NULL,
	domain_id TEXT COLLATE "C" NOT NULL,
	due       BIGINT NOT NULL,
	PRIMARY KEY (tenant_id, domain_id)
);
CREATE INDEX purges_by_due ON purges (due);

-- Records of connections, in the order in which they came: n. client_ip has 16 bytes, IPv4 mapped (RFC 4291 section
-- 2.5.5.2), cut to client_bits of them. refused: it would be, or was, under `post_quantum require`.
CREATE TABLE connections (
	n BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
	at           BIGINT NOT NULL,
	tenant_id    TEXT COLLATE "C" NOT NULL,
	domain_id    TEXT COLLATE "C" NOT NULL,
	domain       TEXT COLLATE "C" NOT NULL,
	edge         TEXT COLLATE "C" NOT NULL,
	client_ip    BYTEA,
	client_bits  SMALLINT NOT NULL,
	groupname    TEXT NOT NULL,
	post_quantum SMALLINT NOT NULL,
	refused      SMALLINT NOT NULL,
	end_reason   TEXT NOT NULL,
	alpn         TEXT NOT NULL,
	detail       TEXT NOT NULL
);
-- client_ip, so that who looks for a client of a tenant with many connections reads no others.
CREATE INDEX connections_of_tenant ON connections (tenant_id, at, n, client_ip);
CREATE INDEX connections_of_domain ON connections (domain_id, at, n);
-- With all that the report about them needs, which is made of up to 20,000 rows; SQLite asks for refused too.
CREATE INDEX connections_refused_of_tenant ON connections (tenant_id, at, client_ip, alpn, refused) WHERE refused = 1;
CREATE INDEX connections_refused_of_domain ON connections (domain_id, at, tenant_id, client_ip, alpn, refused) WHERE refused = 1;
