-- What Tidegate may read: these columns and nothing else. It writes nothing.
--
--     sudo -u postgres createuser --pwprompt tidegate
--     sudo -u postgres psql -d mastodon_production -f postgresql-grants.sql
--
-- Then DB_USER=tidegate and DB_PASS for the streaming service alone (in its unit, not in .env.production, which
-- Rails reads too). Where DB_HOST is the directory of PostgreSQL's socket, DB_HOST=localhost too: through the socket
-- Debian's PostgreSQL lets in only the system's user of that name. To be run again after an upgrade of Tidegate whose
-- notes say so; running it twice does no harm.

GRANT USAGE ON SCHEMA public TO tidegate;

-- Whose a token is, and what it may do.
GRANT SELECT (id, token, scopes, resource_owner_id, created_at, expires_in, revoked_at)
    ON oauth_access_tokens TO tidegate;
GRANT SELECT (id, account_id, role_id, disabled, chosen_languages) ON users TO tidegate;
GRANT SELECT (id, suspended_at, domain) ON accounts TO tidegate;
GRANT SELECT (id, permissions) ON user_roles TO tidegate;
GRANT SELECT (id, account_id) ON lists TO tidegate;

-- Who must not see a public status.
GRANT SELECT (account_id, target_account_id) ON blocks TO tidegate;
GRANT SELECT (account_id, target_account_id) ON mutes TO tidegate;
GRANT SELECT (account_id, domain) ON account_domain_blocks TO tidegate;
GRANT SELECT (var, value) ON settings TO tidegate;

-- Custom filters.
GRANT SELECT (id, account_id, phrase, context, action, expires_at) ON custom_filters TO tidegate;
GRANT SELECT (id, custom_filter_id, keyword, whole_word) ON custom_filter_keywords TO tidegate;

-- A second lock on the same door.
ALTER ROLE tidegate SET default_transaction_read_only = on;
