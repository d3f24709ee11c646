//! What PostgreSQL knows: whose a token is, who may see a status, whose filters match it.
//!
//! Mastodon's database is read and never written. Every question is one statement over a set, however many
//! clients or viewers it is about, sent unnamed in one round trip, so that a transaction-pooling PgBouncer
//! may stand in between. PostgreSQL that is away is an error value, never the end of anything.
//!
//! - [`pool`]: connections, bounded statements, errors that say what to do; [`tls`]: how they are encrypted.
//! - [`accounts`]: tokens and list owners, for the door; look-ups that arrive together share a query.
//! - [`audience`], [`preferences`], [`feeds`]: what decides about a status on a public channel; [`punycode`]: domains
//!   as Rails stores them.
//! - [`stage`]: the thread between ingest and reactors that asks all this, in order and bounded.

pub mod accounts;
pub mod audience;
mod connect;
pub mod feeds;
pub mod pool;
pub mod preferences;
pub mod punycode;
pub mod rows;
pub mod stage;
pub mod tls;

use std::path::PathBuf;

use crate::limits::{Limits, Waits};

pub use crate::config::ChannelBinding;
pub use accounts::{Accounts, Token};
pub use pool::{DbError, Pool, PoolStats};
pub use stage::{Stage, StageHandle, StageStats};
pub use tls::Encryption;

/// Everything that is read, by table: what a role needs to be able to `SELECT`. A test runs the server with a
/// role that may read this and nothing else.
pub const TABLES: &[(&str, &[&str])] = &[
    (
        "oauth_access_tokens",
        &["id", "token", "scopes", "resource_owner_id", "created_at", "expires_in", "revoked_at"],
    ),
    ("users", &["id", "account_id", "role_id", "disabled", "chosen_languages"]),
    ("accounts", &["id", "suspended_at", "domain"]),
    ("user_roles", &["id", "permissions"]),
    ("lists", &["id", "account_id"]),
    ("blocks", &["account_id", "target_account_id"]),
    ("mutes", &["account_id", "target_account_id"]),
    ("account_domain_blocks", &["account_id", "domain"]),
    ("custom_filters", &["id", "account_id", "phrase", "context", "action", "expires_at"]),
    ("custom_filter_keywords", &["id", "custom_filter_id", "keyword", "whole_word"]),
    ("settings", &["var", "value"]),
];

/// Columns without which everything works but little: what is lost without them. Grants of older versions leave them
/// out.
pub const OPTIONAL: &[(&str, &str, &str)] = &[(
    "accounts",
    "domain",
    "until then, blocks of a domain do not hide public statuses of accounts whose handle is invalid",
)];

/// Where PostgreSQL listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Host {
    /// A name or address, over TCP.
    Tcp(String),
    /// The directory of its unix socket.
    Unix(PathBuf),
}

/// How to reach PostgreSQL; the defaults are Mastodon's.
#[derive(Clone, PartialEq, Eq)]
pub struct Options {
    /// `DB_HOST`
    pub host: Host,
    /// `DB_PORT`; also the suffix of a unix socket's name.
    pub port: u16,
    /// `DB_USER`
    pub user: String,
    /// `DB_PASS`
    pub password: Option<String>,
    /// `DB_NAME`
    pub dbname: String,
    /// Command-line options for each session (`-c search_path=…`); none are sent by default, since a
    /// pooling PgBouncer refuses them.
    pub session_options: Option<String>,
    /// `DB_SSLMODE` and what belongs to it.
    pub encryption: Encryption,
    /// Whether the password must be bound to the encrypted connection.
    pub channel_binding: ChannelBinding,
    /// `DB_POOL`: connections at most.
    pub pool_size: usize,
    /// How long connecting, a statement (which is then cancelled) and a statement with its retry may take.
    pub waits: Waits,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            host: Host::Tcp("localhost".into()),
            port: 5432,
            user: "mastodon".into(),
            password: None,
            dbname: "mastodon_production".into(),
            session_options: None,
            encryption: Encryption::default(),
            channel_binding: ChannelBinding::Prefer,
            pool_size: 10,
            waits: Limits::default().door_waits(),
        }
    }
}

// The password stays out of logs.
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Options({}, user {}, database {})", self.address(), self.user, self.dbname)
    }
}

impl Options {
    /// The server's address, for messages.
    pub fn address(&self) -> String {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]:{}", self.port),
            Host::Tcp(name) => format!("{name}:{}", self.port),
            Host::Unix(dir) => format!("{}/.s.PGSQL.{}", dir.display(), self.port),
        }
    }
}
