-- +goose Up
CREATE TABLE tenants (
	id          TEXT PRIMARY KEY,
	name        TEXT NOT NULL,
	trusted     BOOLEAN NOT NULL,
	suspended   BOOLEAN NOT NULL,
	max_domains BIGINT NOT NULL,
	version     BIGINT NOT NULL,
	created_at  BIGINT NOT NULL,
	updated_at  BIGINT NOT NULL,
	deleted_at  BIGINT
);
CREATE INDEX tenants_deleted ON tenants (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE TABLE users (
	id            TEXT PRIMARY KEY,
	email         TEXT NOT NULL,
	email_key     TEXT NOT NULL UNIQUE,
	password_hash TEXT NOT NULL,
	operator      BOOLEAN NOT NULL,
	totp          BYTEA,
	totp_pending  BYTEA,
	totp_step     BIGINT NOT NULL,
	created_at    BIGINT NOT NULL,
	updated_at    BIGINT NOT NULL
);

CREATE TABLE members (
	tenant_id TEXT NOT NULL,
	user_id   TEXT NOT NULL,
	role      TEXT NOT NULL,
	version   BIGINT NOT NULL,
	joined_at BIGINT NOT NULL,
	PRIMARY KEY (tenant_id, user_id)
);
CREATE INDEX members_of_user ON members (user_id, joined_at);

CREATE TABLE sessions (
	hash       BYTEA PRIMARY KEY,
	user_id    TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	seen_at    BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX sessions_of_user ON sessions (user_id, created_at);
CREATE INDEX sessions_by_end ON sessions (expires_at);

CREATE TABLE signups (
	hash          BYTEA PRIMARY KEY,
	email         TEXT NOT NULL,
	email_key     TEXT NOT NULL,
	password_hash TEXT NOT NULL,
	tenant_name   TEXT NOT NULL,
	created_at    BIGINT NOT NULL,
	expires_at    BIGINT NOT NULL
);
CREATE INDEX signups_of_email ON signups (email_key);
CREATE INDEX signups_by_end ON signups (expires_at);

CREATE TABLE password_resets (
	hash       BYTEA PRIMARY KEY,
	user_id    TEXT NOT NULL,
	drops_totp BOOLEAN NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX password_resets_of_user ON password_resets (user_id);
CREATE INDEX password_resets_by_end ON password_resets (expires_at);

CREATE TABLE invitations (
	id         TEXT PRIMARY KEY,
	tenant_id  TEXT NOT NULL,
	email      TEXT NOT NULL,
	email_key  TEXT NOT NULL,
	role       TEXT NOT NULL,
	hash       BYTEA NOT NULL UNIQUE,
	invited_by TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT NOT NULL
);
CREATE INDEX invitations_of_tenant ON invitations (tenant_id, id);
CREATE INDEX invitations_by_end ON invitations (expires_at);

CREATE TABLE api_keys (
	id         TEXT PRIMARY KEY,
	tenant_id  TEXT NOT NULL,
	name       TEXT NOT NULL,
	scopes     TEXT NOT NULL,
	prefix     TEXT NOT NULL,
	hash       BYTEA NOT NULL UNIQUE,
	created_by TEXT NOT NULL,
	version    BIGINT NOT NULL,
	created_at BIGINT NOT NULL,
	expires_at BIGINT,
	used_at    BIGINT
);
CREATE INDEX api_keys_of_tenant ON api_keys (tenant_id, id);

CREATE TABLE edge_tokens (
	id         TEXT PRIMARY KEY,
	name       TEXT NOT NULL,
	prefix     TEXT NOT NULL,
	hash       BYTEA NOT NULL UNIQUE,
	created_by TEXT NOT NULL,
	created_at BIGINT NOT NULL,
	used_at    BIGINT
);
