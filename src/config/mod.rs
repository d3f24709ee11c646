//! Configuration: Mastodon's own environment variables, read once, into types.
//!
//! A pure function of [`Env`]: [`Config::from_env`] gives a configuration, or all mistakes at once, each with
//! the variable, its value (never a secret's) and what is allowed. Any environment gives one or the other,
//! never a panic. What a type can say it says: an address is a host and a port, an sslmode is one of six.
//!
//! Tested with tables of Mastodon's and libpq's meanings, with random environments, and against
//! `.env.sample`.

use std::path::PathBuf;

use crate::limits::Limits;

mod database;
pub mod dotenv;
mod env;
mod limits;
mod listen;
mod memory;
mod proxies;
mod read;
mod redis;
#[cfg(feature = "otel")]
mod traces;
mod url;
pub mod variables;

#[cfg(test)]
mod tests;

pub use database::{ChannelBinding, ClientCert, Database, DatabaseHost, DatabaseTls, RootCerts, SslMode};
pub use env::{Env, Environment, Note, current_user, journal_stream};
pub use listen::{HostPort, Listen};
pub use memory::{BudgetsSet, Fit, MemoryLimit};
pub use proxies::{Network, TrustedProxies};
pub use read::{ConfigError, Secret};
pub use redis::{Redis, RedisEndpoint, Sentinel};
#[cfg(feature = "otel")]
pub use traces::{Sampler, Traces};

use read::Reader;

/// What the server is started for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Redis and PostgreSQL, access control by tokens.
    Serve,
    /// Redis alone: public and hashtag streams, no tokens, no access control (`--no-database`).
    NoDatabase,
    /// An embedded broker and made-up posts; neither Redis nor PostgreSQL, and their variables are not read.
    Demo,
}

/// Everything that can be set.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// What for.
    pub mode: Mode,
    /// `NODE_ENV`
    pub environment: Environment,
    /// `SOCKET`, or `BIND` and `PORT`.
    pub listen: Listen,
    /// `TRUSTED_PROXY_IP`
    pub trusted_proxies: TrustedProxies,
    /// How to reach Redis. In the demo a placeholder, to be replaced by the broker's address.
    pub redis: Redis,
    /// How to reach PostgreSQL; some exactly in [`Mode::Serve`].
    pub database: Option<Database>,
    /// For every TLS connection.
    pub tls: Tls,
    /// What is logged, and how.
    pub log: Log,
    /// Metrics and status pages.
    pub monitoring: Monitoring,
    /// Traces, if there are to be any.
    #[cfg(feature = "otel")]
    pub traces: Option<Traces>,
    /// Bounds and intervals.
    pub limits: Limits,
    /// Which budgets among the limits are set.
    pub budgets_set: BudgetsSet,
}

/// Settings for every TLS connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    /// `NODE_EXTRA_CA_CERTS`: certificate authorities (PEM file) besides the system's.
    pub extra_ca: Option<PathBuf>,
    /// `SSL_CERT_FILE`: certificate authorities (PEM file) in place of the system's.
    pub system_ca: Option<PathBuf>,
    /// False with `NODE_TLS_REJECT_UNAUTHORIZED=0`: certificates are not verified where nothing else asks
    /// for it (`rediss://`; PostgreSQL goes by its sslmode).
    pub verify: bool,
}

/// What is logged, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// `LOG_LEVEL`
    pub level: LogLevel,
    /// `LOG_FORMAT`
    pub format: LogFormat,
    /// `RUST_LOG`, which wins over the level.
    pub filter: Option<String>,
}

/// Levels by pino's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people: time, level, message, fields.
    Text,
    /// For machines: a JSON object a line.
    Json,
}

/// Metrics and status pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Monitoring {
    /// `ADMIN_BIND`: a listener of its own.
    pub admin: Option<HostPort>,
    /// `METRICS_MAIN_PORT`: whether `/metrics` is on the main port. Always, unless there is another listener.
    pub metrics_main_port: bool,
    /// `METRICS_PREFIX`
    pub metrics_prefix: String,
    /// `STATUS_PUBLIC`: whether anyone may see the status pages on the main port.
    pub status_public: bool,
}

impl Config {
    /// Reads the configuration, or says all that is wrong with it.
    pub fn from_env(env: &Env, mode: Mode) -> Result<Config, Vec<ConfigError>> {
        let mut reader = Reader::new(env);
        let read = &mut reader;
        let redis = match mode {
            Mode::Demo => Redis::at(([127, 0, 0, 1], 6380).into()),
            Mode::Serve | Mode::NoDatabase => redis::redis(read),
        };
        let config = Config {
            mode,
            environment: env.environment(),
            // A browser is to open the demo's page.
            listen: if mode == Mode::Demo { listen::tcp(read) } else { listen::main(read) },
            trusted_proxies: proxies::trusted(read),
            redis,
            // None only with an error noted, or without being asked for.
            database: if mode == Mode::Serve { database::database(read) } else { None },
            tls: Tls {
                extra_ca: read.text(&variables::NODE_EXTRA_CA_CERTS).map(PathBuf::from),
                system_ca: read.text(&variables::SSL_CERT_FILE).map(PathBuf::from),
                verify: read.text(&variables::NODE_TLS_REJECT_UNAUTHORIZED) != Some("0"),
            },
            log: log(read),
            monitoring: monitoring(read),
            #[cfg(feature = "otel")]
            traces: traces::traces(read),
            limits: limits::limits(read),
            budgets_set: limits::budgets_set(read),
        };
        let errors = reader.into_errors();
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

fn log(read: &mut Reader) -> Log {
    let level = match read.text(&variables::LOG_LEVEL) {
        Some("trace") => LogLevel::Trace,
        Some("debug") => LogLevel::Debug,
        Some("info") => LogLevel::Info,
        Some("warn") => LogLevel::Warn,
        Some("error") => LogLevel::Error,
        Some("fatal") => LogLevel::Fatal,
        _ if read.env().environment() == Environment::Development => LogLevel::Debug,
        _ => LogLevel::Info,
    };
    let format = match read.text(&variables::LOG_FORMAT) {
        None | Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(_) => {
            read.refuse(&variables::LOG_FORMAT, "text or json");
            LogFormat::Text
        }
    };
    let filter = read.text(&variables::RUST_LOG).map(str::to_owned);
    if filter.as_deref().is_some_and(|filter| !crate::logging::is_filter(filter)) {
        read.refuse(&variables::RUST_LOG, "levels by module, such as tidegate::redis=trace,info");
    }
    Log { level, format, filter }
}

fn monitoring(read: &mut Reader) -> Monitoring {
    let admin = listen::admin(read);
    let metrics_prefix = read.text(&variables::METRICS_PREFIX).unwrap_or_default().to_owned();
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    if metrics_prefix.starts_with(|c: char| c.is_ascii_digit()) || !metrics_prefix.chars().all(is_part) {
        read.refuse(&variables::METRICS_PREFIX, "letters, digits, _ and :, the first not a digit");
    }
    let metrics_main_port = read.flag(&variables::METRICS_MAIN_PORT, true) || admin.is_none();
    let status_public = read.flag(&variables::STATUS_PUBLIC, false);
    Monitoring { admin, metrics_main_port, metrics_prefix, status_public }
}
