-- The part of Mastodon's database that the server reads: tables, columns and indexes under the names that
-- Mastodon's own schema gives them (4.7), and only those. Enough for PostgreSQL to plan every query as it
-- does in production.

CREATE TABLE user_roles (
    id bigserial PRIMARY KEY,
    name varchar NOT NULL DEFAULT '',
    position integer NOT NULL DEFAULT 0,
    permissions bigint NOT NULL DEFAULT 0,
    created_at timestamp(6) NOT NULL DEFAULT now(),
    updated_at timestamp(6) NOT NULL DEFAULT now()
);

CREATE TABLE accounts (
    id bigserial PRIMARY KEY,
    username varchar NOT NULL DEFAULT '',
    domain varchar,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now(),
    silenced_at timestamp,
    suspended_at timestamp,
    requested_deletion_at timestamp(6)
);
CREATE UNIQUE INDEX index_accounts_on_username_and_domain_lower
    ON accounts (lower(username::text), COALESCE(lower(domain::text), ''::text));
CREATE INDEX index_accounts_on_domain_and_id ON accounts (domain, id);

CREATE TABLE users (
    id bigserial PRIMARY KEY,
    email varchar NOT NULL DEFAULT '',
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    role_id bigint REFERENCES user_roles ON DELETE SET NULL,
    chosen_languages varchar[],
    disabled boolean NOT NULL DEFAULT false,
    approved boolean NOT NULL DEFAULT true,
    confirmed_at timestamp,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX index_users_on_account_id ON users (account_id);
CREATE UNIQUE INDEX index_users_on_email ON users (email);
CREATE INDEX index_users_on_role_id ON users (role_id) WHERE role_id IS NOT NULL;

CREATE TABLE oauth_access_tokens (
    id bigserial PRIMARY KEY,
    token varchar NOT NULL,
    refresh_token varchar,
    resource_owner_id bigint REFERENCES users ON DELETE CASCADE,
    application_id bigint,
    scopes varchar,
    expires_in integer,
    created_at timestamp NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'),
    revoked_at timestamp,
    last_used_at timestamp,
    last_used_ip inet
);
CREATE UNIQUE INDEX index_oauth_access_tokens_on_token ON oauth_access_tokens (token);
CREATE UNIQUE INDEX index_oauth_access_tokens_on_refresh_token
    ON oauth_access_tokens (refresh_token text_pattern_ops) WHERE refresh_token IS NOT NULL;
CREATE INDEX index_oauth_access_tokens_on_resource_owner_id
    ON oauth_access_tokens (resource_owner_id) WHERE resource_owner_id IS NOT NULL;

CREATE TABLE lists (
    id bigserial PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    title varchar NOT NULL DEFAULT '',
    replies_policy integer NOT NULL DEFAULT 0,
    exclusive boolean NOT NULL DEFAULT false,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX index_lists_on_account_id ON lists (account_id);

CREATE TABLE blocks (
    id bigserial PRIMARY KEY,
    account_id bigint NOT NULL,
    target_account_id bigint NOT NULL,
    uri varchar,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX index_blocks_on_account_id_and_target_account_id ON blocks (account_id, target_account_id);
CREATE INDEX index_blocks_on_target_account_id ON blocks (target_account_id);

CREATE TABLE mutes (
    id bigserial PRIMARY KEY,
    account_id bigint NOT NULL,
    target_account_id bigint NOT NULL,
    hide_notifications boolean NOT NULL DEFAULT true,
    expires_at timestamp,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX index_mutes_on_account_id_and_target_account_id ON mutes (account_id, target_account_id);
CREATE INDEX index_mutes_on_target_account_id ON mutes (target_account_id);

CREATE TABLE account_domain_blocks (
    id bigserial PRIMARY KEY,
    account_id bigint NOT NULL,
    domain varchar NOT NULL,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX index_account_domain_blocks_on_account_id_and_domain
    ON account_domain_blocks (account_id, domain);

CREATE TABLE custom_filters (
    id bigserial PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE,
    phrase text NOT NULL DEFAULT '',
    context varchar[] NOT NULL DEFAULT '{}',
    action integer NOT NULL DEFAULT 0,
    expires_at timestamp,
    created_at timestamp NOT NULL DEFAULT now(),
    updated_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX index_custom_filters_on_account_id ON custom_filters (account_id);

CREATE TABLE custom_filter_keywords (
    id bigserial PRIMARY KEY,
    custom_filter_id bigint NOT NULL REFERENCES custom_filters ON DELETE CASCADE,
    keyword text NOT NULL DEFAULT '',
    whole_word boolean NOT NULL DEFAULT true,
    created_at timestamp(6) NOT NULL DEFAULT now(),
    updated_at timestamp(6) NOT NULL DEFAULT now()
);
CREATE INDEX index_custom_filter_keywords_on_custom_filter_id ON custom_filter_keywords (custom_filter_id);

CREATE TABLE settings (
    id bigserial PRIMARY KEY,
    var varchar NOT NULL,
    value text,
    created_at timestamp,
    updated_at timestamp
);
CREATE UNIQUE INDEX index_settings_on_var ON settings (var);
