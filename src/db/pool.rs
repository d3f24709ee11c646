//! Connections to PostgreSQL: pooled, bounded in number and time, never a reason to panic.
//!
//! A pool belongs to one tokio runtime (a connection's task lives where it was made), so the door and the
//! audience stage have one each. Statements are unnamed (`Parse`, `Bind`, `Describe`, `Execute`, `Sync` in one
//! flight): one round trip, and nothing that a transaction-pooling PgBouncer would lose.
//!
//! Invariants: a statement that was given up (its time ran out, its caller left) never leaves a connection in the
//! pool that still works on it; only reading statements are sent, so one that met a dying connection, or that the
//! server gave up for the sake of something else (a standby that replays, a deadlock), is sent once more. A server
//! that takes no connection is asked for one once per statement: it may be short of them. Losing and regaining
//! PostgreSQL is logged once each.
//!
//! Tested against a private PostgreSQL in `tests/db_accounts.rs`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use deadpool::managed::{self, Object, PoolError, QueueMode, TimeoutType};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::{ToSql, Type};
use tracing::{info, warn};

use super::connect::{ConnectError, Connector};
use super::tls::{self, Encryption};
use super::{Host, Options};
use crate::limits::Waits;
use crate::logging::Limited;

/// A statement's parameter with its type: unnamed statements need it up front.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Why PostgreSQL gave no answer. Says what to do; never part of an answer to a client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DbError {
    /// It cannot be reached, or is starting or stopping. Worth another try.
    #[error("PostgreSQL at {at} cannot be reached ({cause}); {advice}")]
    Away {
        /// Its address.
        at: Arc<str>,
        /// What went wrong.
        cause: Arc<str>,
        /// What to do.
        advice: &'static str,
    },
    /// There is no encrypted connection as `sslmode` asks for. Worth another try only after someone acted.
    #[error("PostgreSQL at {at}: no connection with TLS as {variable} asks for ({cause}); {advice}")]
    Tls {
        /// Its address.
        at: Arc<str>,
        /// The variable that holds the sslmode.
        variable: &'static str,
        /// What went wrong.
        cause: Arc<str>,
        /// What to do.
        advice: Arc<str>,
    },
    /// It does not let us in. Worth another try only after someone acted.
    #[error("PostgreSQL at {at} refuses the connection ({cause}); {advice}")]
    Refused {
        /// Its address.
        at: Arc<str>,
        /// What it said.
        cause: Arc<str>,
        /// What to do.
        advice: &'static str,
    },
    /// No connection was free, or the statement took longer than it may.
    #[error(
        "PostgreSQL at {at} did not answer within {seconds:.1} s; it is overloaded, or DB_POOL is too small"
    )]
    Slow {
        /// Its address.
        at: Arc<str>,
        /// The bound that was reached.
        seconds: f32,
    },
    /// It gave the statement up, twice where a second try was of use. The connection is as good as before.
    #[error("PostgreSQL at {at} cancelled a statement ({cause}); {advice}")]
    Cancelled {
        /// Its address.
        at: Arc<str>,
        /// What it said.
        cause: Arc<str>,
        /// What to do.
        advice: &'static str,
    },
    /// It refused the statement: not Mastodon's database, or a version whose tables differ.
    #[error("PostgreSQL refused a statement ({cause}); {advice}")]
    Statement {
        /// What it said.
        cause: Arc<str>,
        /// What to do.
        advice: &'static str,
    },
}

impl DbError {
    /// For everybody to read, without addresses.
    pub fn obstacle(&self) -> String {
        match self {
            DbError::Away { .. } => "PostgreSQL is away".to_owned(),
            DbError::Tls { variable, .. } => {
                format!("PostgreSQL gives no connection with TLS as {variable} asks for")
            }
            DbError::Refused { advice, .. } => format!("PostgreSQL refuses the connection: {advice}"),
            DbError::Slow { .. } => "PostgreSQL does not answer in time".to_owned(),
            DbError::Cancelled { cause, .. } => format!("PostgreSQL cancels statements: {cause}"),
            DbError::Statement { cause, .. } => format!("PostgreSQL refuses a statement: {cause}"),
        }
    }

    /// A statement that fails for a reason that PostgreSQL does not give.
    pub(super) fn statement(cause: &str) -> DbError {
        DbError::Statement { cause: cause.into(), advice: OTHER_TABLES }
    }
}

const UNREACHABLE: &str = "check that it runs, and DB_HOST and DB_PORT or DATABASE_URL";
const PASSING: &str = "it starts or stops, and is asked again until it answers";
const SHORT: &str = "it is short of connections, memory or disk: lower DB_POOL, or raise its limits";
const OTHER_TABLES: &str = "check that DB_NAME is Mastodon's database and its migrations ran";
const NO_GRANT: &str = "grant its user SELECT as dist/postgresql-grants.sql does";
const ITS_LOG: &str = "see PostgreSQL's log";
const STANDBY: &str = "on a standby, raise max_standby_streaming_delay or set hot_standby_feedback=on";
const TOO_SHORT: &str = "it is overloaded, somebody cancelled it, or its statement_timeout is too short";
const LOCKED: &str = "something holds a lock on Mastodon's tables, such as a migration";

/// How the pool is used at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Connections that exist.
    pub total: usize,
    /// Of these, the ones that nobody uses.
    pub idle: usize,
    /// Statements that wait for a connection.
    pub waiting: usize,
}

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    pool: managed::Pool<Connector>,
    at: Arc<str>,
    host: Host,
    encryption: Encryption,
    waits: Waits,
    lost: AtomicBool,
    /// Notified when a connection has ended, or a statement has found PostgreSQL away.
    ended: Arc<Notify>,
    statements: AtomicU64,
    refusals: Limited,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {:?})", self.inner.at, self.stats())
    }
}

impl Pool {
    /// A pool. Connects when it is first asked. To be used on one tokio runtime only.
    ///
    /// # Errors
    /// Never in practice: the pool's construction can be refused by its library.
    pub fn new(options: &Options) -> Result<Pool, DbError> {
        let at: Arc<str> = options.address().into();
        let ended = Arc::new(Notify::new());
        let connector = Connector::new(options, Arc::clone(&at), Arc::clone(&ended));
        let pool = managed::Pool::builder(connector)
            .max_size(options.pool_size.max(1))
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(options.waits.answer))
            .create_timeout(Some(options.waits.connect))
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|error| DbError::Away {
                at: Arc::clone(&at),
                cause: error.to_string().into(),
                advice: UNREACHABLE,
            })?;
        Ok(Pool {
            inner: Arc::new(Inner {
                pool,
                at,
                host: options.host.clone(),
                encryption: options.encryption.clone(),
                waits: options.waits,
                lost: AtomicBool::new(false),
                ended,
                statements: AtomicU64::new(0),
                refusals: Limited::every(Duration::from_secs(30)),
            }),
        })
    }

    /// Sends one reading statement and gives all its rows.
    ///
    /// # Errors
    /// See [`DbError`]; by then the loss of PostgreSQL has been logged, once.
    pub async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, DbError> {
        let both = async {
            let result = self.query_once(sql, params).await;
            // A connection that died while it was idle is found out by using it; one that a router forgot gives no
            // answer at all. The other idle ones may be as dead: the second attempt has a new one.
            match result {
                // It was the statement that was given up, not the connection.
                Err(Failure::Again(DbError::Cancelled { .. })) => self.query_once(sql, params).await,
                Err(Failure::Again(_)) => {
                    self.inner.pool.retain(|_, _| false);
                    self.query_once(sql, params).await
                }
                result => result,
            }
        };
        let result = timeout(self.inner.waits.question, both).await;
        let result = result.unwrap_or_else(|_| Err(Failure::Final(self.inner.slow())));
        let error = match result {
            Ok(rows) => {
                if self.inner.lost.swap(false, Ordering::Relaxed) {
                    info!("PostgreSQL at {} answers again", self.inner.at);
                }
                return Ok(rows);
            }
            Err(Failure::Again(error) | Failure::Final(error)) => error,
        };
        if let DbError::Statement { .. } | DbError::Cancelled { .. } = &error {
            self.inner.ended.notify_one();
            if self.inner.refusals.allow().is_some() {
                warn!("{error}");
            }
        } else if !self.inner.lost.swap(true, Ordering::Relaxed) {
            self.inner.ended.notify_one();
            warn!("{error}");
        }
        Err(error)
    }

    /// Whether it answers now.
    ///
    /// # Errors
    /// As [`query`](Self::query).
    pub async fn ping(&self) -> Result<(), DbError> {
        self.query("SELECT 1", &[]).await.map(drop)
    }

    /// Whether the last statement found PostgreSQL there (true before the first one has ended).
    pub fn is_up(&self) -> bool {
        !self.inner.lost.load(Ordering::Relaxed)
    }

    /// Resolves when it is worth asking whether PostgreSQL still serves: one of the connections has ended, or a
    /// statement has found it away or was refused. For one waiter.
    pub async fn in_doubt(&self) {
        self.inner.ended.notified().await;
    }

    /// Connections by state.
    pub fn stats(&self) -> PoolStats {
        let status = self.inner.pool.status();
        PoolStats { total: status.size, idle: status.available, waiting: status.waiting }
    }

    /// Statements sent since the start.
    pub fn statements(&self) -> u64 {
        self.inner.statements.load(Ordering::Relaxed)
    }

    /// Why connections are not encrypted though that was asked for, if they are not.
    pub fn fallback(&self) -> Option<Arc<str>> {
        self.inner.encryption.fallback()
    }

    async fn query_once(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failure> {
        let inner = &self.inner;
        let object = match inner.pool.get().await {
            Ok(object) => object,
            Err(PoolError::Timeout(TimeoutType::Create)) => {
                let cause = "it does not take the connection in time";
                return Err(Failure::Final(inner.away(cause, UNREACHABLE)));
            }
            Err(PoolError::Timeout(_)) => return Err(Failure::Final(inner.slow())),
            // There was nothing to die: a server that takes no connection now would not at once again.
            Err(PoolError::Backend(ConnectError::Postgres(error))) => {
                let (Failure::Again(error) | Failure::Final(error)) = inner.failure(&error);
                return Err(Failure::Final(error));
            }
            Err(error) => return Err(Failure::Final(inner.away(&error.to_string(), UNREACHABLE))),
        };
        let lease = Lease(Some(object));
        let Some(connection) = lease.0.as_ref() else { return Err(Failure::Final(inner.slow())) };
        inner.statements.fetch_add(1, Ordering::Relaxed);
        match timeout(inner.waits.answer, connection.client.query_typed(sql, params)).await {
            Ok(Ok(rows)) => {
                lease.give_back();
                Ok(rows)
            }
            Ok(Err(error)) => {
                if leaves_the_connection(&error) {
                    lease.give_back();
                }
                Err(inner.failure(&error))
            }
            Err(_) => {
                tokio::spawn(connection.cancel(&inner.encryption, &inner.host, inner.waits.connect));
                Err(Failure::Again(inner.slow()))
            }
        }
    }
}

/// How the library says that PostgreSQL asks for a password that it was not given; there is no code for it.
const NO_PASSWORD: &str = "password missing";

/// And that the password would not be bound to the encrypted connection.
const NOT_BOUND: &str = "server did not use channel binding";

enum Failure {
    /// The connection was going away, or the server gave the statement up: the next attempt may succeed.
    Again(DbError),
    Final(DbError),
}

/// Whether the server refused the statement alone. Of what is fatal or without an answer, no connection is left.
fn leaves_the_connection(error: &tokio_postgres::Error) -> bool {
    let Some(answer) = error.as_db_error() else { return false };
    let is_fatal = matches!(answer.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
    let class = answer.code().code().get(..2).unwrap_or_default();
    !is_fatal && !matches!(class, "08" | "53" | "58" | "XX") && *answer.code() != SqlState::ADMIN_SHUTDOWN
}

impl Inner {
    fn away(&self, cause: &str, advice: &'static str) -> DbError {
        DbError::Away { at: Arc::clone(&self.at), cause: cause.into(), advice }
    }

    fn slow(&self) -> DbError {
        DbError::Slow { at: Arc::clone(&self.at), seconds: self.waits.answer.as_secs_f32() }
    }

    fn failure(&self, error: &tokio_postgres::Error) -> Failure {
        if let Some((cause, advice)) = tls::advice(error, &self.encryption) {
            return Failure::Final(DbError::Tls {
                at: Arc::clone(&self.at),
                variable: self.encryption.variable,
                cause: cause.into(),
                advice: advice.into(),
            });
        }
        let mut cause = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(deeper) = source {
            let deeper_text = deeper.to_string();
            if !cause.contains(&deeper_text) {
                cause = format!("{cause}: {deeper_text}");
            }
            source = deeper.source();
        }
        let refused = |advice| {
            let cause = cause.as_str().into();
            Failure::Final(DbError::Refused { at: Arc::clone(&self.at), cause, advice })
        };
        let Some(code) = error.code() else {
            if cause.contains(NO_PASSWORD) {
                return refused("it asks for a password: set DB_PASS, or put it into DATABASE_URL");
            }
            if cause.contains(NOT_BOUND) {
                return refused(
                    "channel_binding=require takes only a server that asks for a password by scram-sha-256 over TLS, \
                     with a certificate whose signature has a hash",
                );
            }
            // No answer from the server: the connection, or what we sent (which no outside input reaches).
            let away = self.away(&cause, UNREACHABLE);
            return if error.is_closed()
                || std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
            {
                Failure::Again(away)
            } else {
                Failure::Final(away)
            };
        };
        let cancelled =
            |advice| DbError::Cancelled { at: Arc::clone(&self.at), cause: cause.as_str().into(), advice };
        let statement = |advice| Failure::Final(DbError::Statement { cause: cause.as_str().into(), advice });
        let class = code.code().get(..2).unwrap_or_default();
        match class {
            // A second attempt would take as long.
            "57" if *code == SqlState::QUERY_CANCELED => Failure::Final(cancelled(TOO_SHORT)),
            "40" if *code == SqlState::T_R_DEADLOCK_DETECTED => Failure::Again(cancelled(LOCKED)),
            "40" => Failure::Again(cancelled(STANDBY)),
            "55" if *code == SqlState::LOCK_NOT_AVAILABLE => Failure::Again(cancelled(LOCKED)),
            // 55: among others, a database that takes no connections at the moment.
            "57" | "55" => Failure::Again(self.away(&cause, PASSING)),
            "08" => Failure::Again(self.away(&cause, UNREACHABLE)),
            "53" => Failure::Final(self.away(&cause, SHORT)),
            "58" | "XX" => Failure::Final(self.away(&cause, ITS_LOG)),
            "28" if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION && self.at.starts_with('/') => {
                refused(
                    "check DB_USER: on its own machine's socket PostgreSQL may ask for the system's user of that name \
                     (with DB_HOST=localhost it goes by DB_PASS)",
                )
            }
            "28" | "3D" => refused("check DB_USER, DB_PASS and DB_NAME or DATABASE_URL"),
            "42" if *code == SqlState::INSUFFICIENT_PRIVILEGE => statement(NO_GRANT),
            // Names that are not there.
            "42" | "3F" => statement(OTHER_TABLES),
            _ => statement(ITS_LOG),
        }
    }
}

/// A connection in use. Dropped before [`give_back`](Self::give_back), it is closed: something may still
/// be on its way to it.
struct Lease(Option<Object<Connector>>);

impl Lease {
    fn give_back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
