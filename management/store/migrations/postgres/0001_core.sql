-- +goose Up

-- One row: the number of the last change that edges see.
CREATE TABLE feed_revision (
	single   SMALLINT PRIMARY KEY CHECK (single = 1),
	revision BIGINT NOT NULL
);
INSERT INTO feed_revision (single, revision) VALUES (1, 0);

CREATE TABLE leases (
	name  TEXT COLLATE "C" PRIMARY KEY,
	owner TEXT NOT NULL,
	until BIGINT NOT NULL
);

-- Texts that are compared or sorted are COLLATE "C": byte by byte, as SQLite and Go do it, whatever the database's own.
CREATE TABLE events (
	id         TEXT COLLATE "C" PRIMARY KEY,
	at         BIGINT NOT NULL,
	tenant_id  TEXT COLLATE "C" NOT NULL,
	actor      TEXT NOT NULL,
	action     TEXT NOT NULL,
	object     TEXT COLLATE "C" NOT NULL,
	client_ip  TEXT NOT NULL,
	request_id TEXT NOT NULL,
	before     TEXT NOT NULL,
	after      TEXT NOT NULL
);
CREATE INDEX events_of_tenant ON events (tenant_id, id);
CREATE INDEX events_of_object ON events (object, id);
CREATE INDEX events_by_age ON events (at);
CREATE INDEX events_about_tenants ON events (id) WHERE action IN ('tenant.created', 'tenant.updated', 'tenant.deleted');

CREATE TABLE replies (
	credential   TEXT COLLATE "C" NOT NULL,
	key          TEXT COLLATE "C" NOT NULL,
	request_hash BYTEA NOT NULL,
	status       BIGINT NOT NULL,
	header       TEXT NOT NULL,
	body         BYTEA NOT NULL,
	created_at   BIGINT NOT NULL,
	PRIMARY KEY (credential, key)
);
CREATE INDEX replies_by_age ON replies (created_at);
