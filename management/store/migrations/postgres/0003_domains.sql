-- +goose Up
CREATE TABLE domains (
	id                    TEXT COLLATE "C" PRIMARY KEY,
	tenant_id             TEXT COLLATE "C" NOT NULL,
	name                  TEXT COLLATE "C" NOT NULL,
	covered_by            TEXT COLLATE "C" NOT NULL, -- the wildcard that covers the name, of a wildcard itself; '': there can be none
	settings              TEXT NOT NULL,
	suspended             BOOLEAN NOT NULL, -- as the settings say
	token                 TEXT NOT NULL,
	version               BIGINT NOT NULL,
	revision              BIGINT NOT NULL,
	proof                 TEXT NOT NULL,
	proven_at             BIGINT,
	facts                 TEXT NOT NULL,
	status                TEXT NOT NULL,
	activated_at          BIGINT,
	due_at                BIGINT,
	tries                 BIGINT NOT NULL,
	certificate_not_after BIGINT,
	created_at            BIGINT NOT NULL,
	updated_at            BIGINT NOT NULL,
	deleting_at           BIGINT
);
CREATE UNIQUE INDEX domains_of_tenant ON domains (tenant_id, name) INCLUDE (id);
CREATE UNIQUE INDEX domains_owned ON domains (name) WHERE proof <> '';
CREATE INDEX domains_by_name ON domains (name);
CREATE INDEX domains_by_cover ON domains (covered_by);
CREATE INDEX domains_of_tenant_by_id ON domains (tenant_id, id);
CREATE INDEX domains_of_tenant_by_status ON domains (tenant_id, status, name);
CREATE INDEX domains_by_status ON domains (status, id);
CREATE INDEX domains_due ON domains (due_at, tenant_id) WHERE due_at IS NOT NULL;
CREATE INDEX domains_expiring ON domains (tenant_id, certificate_not_after, id) WHERE certificate_not_after IS NOT NULL;

-- Claims that ended: whose name it was before.
CREATE TABLE domain_claims (
	name       TEXT COLLATE "C" NOT NULL,
	tenant_id  TEXT COLLATE "C" NOT NULL,
	covered_by TEXT COLLATE "C" NOT NULL,
	ended_at   BIGINT NOT NULL,
	PRIMARY KEY (name, tenant_id)
);
CREATE INDEX domain_claims_by_cover ON domain_claims (covered_by);
CREATE INDEX domain_claims_by_age ON domain_claims (ended_at);

CREATE TABLE certificates (
	id         TEXT COLLATE "C" PRIMARY KEY,
	domain_id  TEXT COLLATE "C" NOT NULL UNIQUE,
	tenant_id  TEXT COLLATE "C" NOT NULL,
	chain_pem  TEXT NOT NULL,
	sealed_key BYTEA NOT NULL,
	issuer     TEXT NOT NULL,
	serial     TEXT NOT NULL,
	sha256     TEXT NOT NULL,
	key_type   TEXT NOT NULL,
	names      TEXT NOT NULL,
	warnings   TEXT NOT NULL,
	not_before BIGINT NOT NULL,
	not_after  BIGINT NOT NULL,
	created_at BIGINT NOT NULL
);

-- What edges are told of a name. Apart from the claims, because a name outlives them and goes from one to another.
CREATE TABLE feed (
	name       TEXT COLLATE "C" PRIMARY KEY,
	revision   BIGINT NOT NULL,
	domain_id  TEXT COLLATE "C" NOT NULL,
	tenant_id  TEXT COLLATE "C" NOT NULL,
	removed    BOOLEAN NOT NULL,
	at         BIGINT,
	settings   TEXT NOT NULL,
	sealed_key BYTEA,
	suspended  BOOLEAN NOT NULL
);
CREATE INDEX feed_by_revision ON feed (revision);
CREATE INDEX feed_of_tenant ON feed (tenant_id);
CREATE INDEX certificates_of_tenant ON certificates (tenant_id);
CREATE INDEX feed_of_domain ON feed (domain_id);
CREATE INDEX feed_removed ON feed (at) WHERE removed;

-- A delta is complete only after this revision: removals up to it may be forgotten.
CREATE TABLE feed_horizon (
	single   SMALLINT PRIMARY KEY CHECK (single = 1),
	revision BIGINT NOT NULL
);
INSERT INTO feed_horizon (single, revision) VALUES (1, 0);
