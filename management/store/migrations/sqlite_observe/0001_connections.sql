-- +goose Up

-- Records of connections, in the order in which they came: n. client_ip has 16 bytes, IPv4 mapped (RFC 4291 section
-- 2.5.5.2), cut to client_bits of them. refused: it would be, or was, under `post_quantum require`.
CREATE TABLE connections (
	n INTEGER PRIMARY KEY AUTOINCREMENT,
	at           INTEGER NOT NULL,
	tenant_id    TEXT NOT NULL,
	domain_id    TEXT NOT NULL,
	domain       TEXT NOT NULL,
	edge         TEXT NOT NULL,
	client_ip    BLOB,
	client_bits  INTEGER NOT NULL,
	groupname    TEXT NOT NULL,
	post_quantum INTEGER NOT NULL,
	refused      INTEGER NOT NULL,
	end_reason   TEXT NOT NULL,
	alpn         TEXT NOT NULL,
	detail       TEXT NOT NULL
) STRICT;
-- client_ip, so that who looks for a client of a tenant with many connections reads no others.
CREATE INDEX connections_of_tenant ON connections (tenant_id, at, n, client_ip);
CREATE INDEX connections_of_domain ON connections (domain_id, at);
-- With all that the report about them needs, which is made of up to 20,000 rows; SQLite asks for refused too.
CREATE INDEX connections_refused_of_tenant ON connections (tenant_id, at, client_ip, alpn, refused) WHERE refused = 1;
CREATE INDEX connections_refused_of_domain ON connections (domain_id, at, tenant_id, client_ip, alpn, refused) WHERE refused = 1;

-- The last report of each life of an edge whose records are here: they are written before the rest of the report, which
-- is in the other file.
CREATE TABLE edge_runs (
	edge       TEXT NOT NULL,
	started_at INTEGER NOT NULL,
	last       INTEGER NOT NULL,
	last_seen  INTEGER NOT NULL,
	PRIMARY KEY (edge, started_at)
) STRICT, WITHOUT ROWID;
CREATE INDEX edge_runs_by_age ON edge_runs (last_seen);
