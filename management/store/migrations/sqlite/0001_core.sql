-- +goose Up

-- One row: the number of the last change that edges see.
CREATE TABLE feed_revision (
	single   INTEGER PRIMARY KEY CHECK (single = 1),
	revision INTEGER NOT NULL
) STRICT;
INSERT INTO feed_revision (single, revision) VALUES (1, 0);

CREATE TABLE leases (
	name  TEXT NOT NULL PRIMARY KEY,
	owner TEXT NOT NULL,
	until INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
	id         TEXT NOT NULL PRIMARY KEY,
	at         INTEGER NOT NULL,
	tenant_id  TEXT NOT NULL,
	actor      TEXT NOT NULL,
	action     TEXT NOT NULL,
	object     TEXT NOT NULL,
	client_ip  TEXT NOT NULL,
	request_id TEXT NOT NULL,
	before     TEXT NOT NULL,
	after      TEXT NOT NULL
) STRICT;
CREATE INDEX events_of_tenant ON events (tenant_id, id);
CREATE INDEX events_of_object ON events (object, id);
CREATE INDEX events_by_age ON events (at);
CREATE INDEX events_about_tenants ON events (id) WHERE action IN ('tenant.created', 'tenant.updated', 'tenant.deleted');

CREATE TABLE replies (
	credential   TEXT NOT NULL,
	key          TEXT NOT NULL,
	request_hash BLOB NOT NULL,
	status       INTEGER NOT NULL,
	header       TEXT NOT NULL,
	body         BLOB NOT NULL,
	created_at   INTEGER NOT NULL,
	PRIMARY KEY (credential, key)
) STRICT;
CREATE INDEX replies_by_age ON replies (created_at);
