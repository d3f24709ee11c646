//! Connections to PostgreSQL: pooled, bounded in number and time, never a reason to panic.
//!
//! A pool belongs to one tokio runtime (a connection's task lives where it was made), so the door and the
//! audience stage have one each. Statements are unnamed (`Parse`, `Bind`, `Describe`, `Execute`, `Sync` in one
//! flight): one round trip, and nothing that a transaction-pooling PgBouncer would lose.
//!
//! Invariants: a statement that was given up (its time ran out, its caller left) never leaves a connection in the
//! pool that still works on it; only reading statements are sent, so one that met a dying connection is
//! sent once more on another. A server that takes no connection is asked for one once per statement: it may be
//! short of them. Losing and regaining PostgreSQL is logged once each.
//!
//! Tested against a private PostgreSQL in `tests/db_accounts.rs`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, PoolError, QueueMode, RecyclingMethod};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Row, Socket};
use tracing::{debug, info, warn};

use super::tls::{self, Attempt, Encryption};
use super::{Host, Options};
use crate::limits::Waits;
use crate::logging::Limited;

/// A statement's parameter with its type: unnamed statements need it up front.
pub type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Why PostgreSQL gave no answer. Says what to do; never part of an answer to a client.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DbError {
    /// It cannot be reached, or is starting or stopping. Worth another try.
    #[error(
        "PostgreSQL at {at} cannot be reached ({cause}); check that it runs, and DB_HOST and DB_PORT or DATABASE_URL"
    )]
    Away {
        /// Its address.
        at: Arc<str>,
        /// What went wrong.
        cause: Arc<str>,
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
    /// It refused the statement: not Mastodon's database, or a version whose tables differ.
    #[error(
        "PostgreSQL refused a statement ({cause}); check that DB_NAME is Mastodon's database and its migrations ran"
    )]
    Statement {
        /// What it said.
        cause: Arc<str>,
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
            DbError::Statement { cause } => format!("PostgreSQL refuses a statement: {cause}"),
        }
    }
}

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

type Cancel = Box<dyn Fn(CancelToken) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    pool: deadpool_postgres::Pool,
    cancel: Cancel,
    at: Arc<str>,
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
        let connector = Connector {
            at: Arc::clone(&at),
            encryption: options.encryption.clone(),
            address_timeout: options.waits.address,
            fell_back: AtomicBool::new(false),
            ended: Arc::clone(&ended),
        };
        let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(client_config(options), connector, config);
        let pool = deadpool_postgres::Pool::builder(manager)
            .max_size(options.pool_size.max(1))
            .runtime(deadpool_postgres::Runtime::Tokio1)
            .wait_timeout(Some(options.waits.answer))
            .create_timeout(Some(options.waits.connect))
            .queue_mode(QueueMode::Lifo)
            .build()
            .map_err(|error| DbError::Away { at: Arc::clone(&at), cause: error.to_string().into() })?;
        let tls = options.encryption.connector();
        let cancel: Cancel = Box::new(move |token: CancelToken| {
            let tls = tls.clone();
            Box::pin(async move {
                if let Ok(Err(error)) = timeout(Duration::from_secs(5), token.cancel_query(tls)).await {
                    debug!("a statement could not be cancelled: {error}");
                }
            })
        });
        Ok(Pool {
            inner: Arc::new(Inner {
                pool,
                cancel,
                at,
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
                Err(Failure::Dying(_)) => {
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
            Err(Failure::Dying(error) | Failure::Final(error)) => error,
        };
        if let DbError::Statement { .. } = &error {
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

    async fn query_once(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Failure> {
        let inner = &self.inner;
        let object = match inner.pool.get().await {
            Ok(object) => object,
            Err(PoolError::Timeout(deadpool_postgres::TimeoutType::Create)) => {
                return Err(Failure::Final(inner.away("it does not take the connection in time")));
            }
            Err(PoolError::Timeout(_)) => return Err(Failure::Final(inner.slow())),
            // There was nothing to die: a server that takes no connection now would not at once again.
            Err(PoolError::Backend(error)) => {
                let (Failure::Dying(error) | Failure::Final(error)) = inner.failure(&error);
                return Err(Failure::Final(error));
            }
            Err(error) => return Err(Failure::Final(inner.away(&error.to_string()))),
        };
        let lease = Lease(Some(object));
        let Some(client) = lease.0.as_ref() else { return Err(Failure::Final(inner.slow())) };
        inner.statements.fetch_add(1, Ordering::Relaxed);
        match timeout(inner.waits.answer, client.query_typed(sql, params)).await {
            Ok(Ok(rows)) => {
                lease.give_back();
                Ok(rows)
            }
            Ok(Err(error)) => {
                let failure = inner.failure(&error);
                // A refused statement leaves the connection as good as before.
                if matches!(&failure, Failure::Final(DbError::Statement { .. })) {
                    lease.give_back();
                }
                Err(failure)
            }
            Err(_) => {
                tokio::spawn((inner.cancel)(client.cancel_token()));
                Err(Failure::Dying(inner.slow()))
            }
        }
    }
}

/// How the library says that PostgreSQL asks for a password that it was not given; there is no code for it.
const NO_PASSWORD: &str = "password missing";

enum Failure {
    /// The connection was going away; on another one it may succeed.
    Dying(DbError),
    Final(DbError),
}

impl Inner {
    fn away(&self, cause: &str) -> DbError {
        DbError::Away { at: Arc::clone(&self.at), cause: cause.into() }
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
            Failure::Final(DbError::Refused {
                at: Arc::clone(&self.at),
                cause: cause.as_str().into(),
                advice,
            })
        };
        let Some(code) = error.code() else {
            if cause.contains(NO_PASSWORD) {
                return refused("it asks for a password: set DB_PASS, or put it into DATABASE_URL");
            }
            // No answer from the server: the connection, or what we sent (which no outside input reaches).
            let away = self.away(&cause);
            return if error.is_closed()
                || std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
            {
                Failure::Dying(away)
            } else {
                Failure::Final(away)
            };
        };
        let class = code.code().get(..2).unwrap_or_default();
        match class {
            "57" if *code == SqlState::QUERY_CANCELED => Failure::Final(self.slow()),
            // 55: among others, a database that takes no connections at the moment.
            "57" | "08" | "55" => Failure::Dying(self.away(&cause)),
            "53" | "58" | "XX" => Failure::Final(self.away(&cause)),
            "28" if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION && self.at.starts_with('/') => {
                refused(
                    "check DB_USER: on its own machine's socket PostgreSQL may ask for the system's user of that name \
                 (with DB_HOST=localhost it goes by DB_PASS)",
                )
            }
            "28" | "3D" => refused("check DB_USER, DB_PASS and DB_NAME or DATABASE_URL"),
            _ => Failure::Final(DbError::Statement { cause: cause.into() }),
        }
    }
}

/// A connection in use. Dropped before [`give_back`](Self::give_back), it is closed: something may still
/// be on its way to it.
struct Lease(Option<Object>);

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

struct Connector {
    at: Arc<str>,
    encryption: Encryption,
    address_timeout: Duration,
    /// Whether it was said that TLS failed and that connections are plain therefore.
    fell_back: AtomicBool,
    ended: Arc<Notify>,
}

impl Connector {
    async fn attempt(&self, config: &tokio_postgres::Config) -> Result<Connection, tokio_postgres::Error> {
        let over_tcp =
            config.get_hosts().iter().any(|host| matches!(host, tokio_postgres::config::Host::Tcp(_)));
        let attempts = if over_tcp { self.encryption.attempts() } else { &[Attempt::Plain] };
        let mut first: Option<tokio_postgres::Error> = None;
        for attempt in attempts {
            let mut config = config.clone();
            config.connect_timeout(self.address_timeout).ssl_mode(match attempt {
                Attempt::Plain => SslMode::Disable,
                Attempt::Offered => SslMode::Prefer,
                Attempt::Encrypted => SslMode::Require,
            });
            match (config.connect(self.encryption.connector()).await, first.take()) {
                (Ok(connection), Some(error)) => {
                    self.note_fall_back(*attempt, &error);
                    return Ok(connection);
                }
                (Ok(connection), None) => return Ok(connection),
                (Err(_), Some(error)) => return Err(error),
                (Err(error), None) if tls::worth_another(&error) => first = Some(error),
                (Err(error), None) => return Err(error),
            }
        }
        match first {
            Some(error) => Err(error),
            None => config.connect(self.encryption.connector()).await,
        }
    }

    fn note_fall_back(&self, attempt: Attempt, error: &tokio_postgres::Error) {
        if attempt == Attempt::Plain && !self.fell_back.swap(true, Ordering::Relaxed) {
            let cause = match tls::advice(error, &self.encryption) {
                Some((cause, _)) => cause,
                None => error.to_string(),
            };
            warn!(
                "PostgreSQL at {}: connections are not encrypted, since TLS failed ({cause}) and {} allows that",
                self.at, self.encryption.variable
            );
        }
    }
}

type Connection = (tokio_postgres::Client, tokio_postgres::Connection<Socket, tls::Encrypted>);
type Connecting<'a> = Pin<
    Box<
        dyn Future<Output = Result<(tokio_postgres::Client, JoinHandle<()>), tokio_postgres::Error>>
            + Send
            + 'a,
    >,
>;

impl Connect for Connector {
    fn connect(&self, config: &tokio_postgres::Config) -> Connecting<'_> {
        let config = config.clone();
        Box::pin(async move {
            let (client, connection) = self.attempt(&config).await?;
            // The next statement finds out that it has ended, and logs the loss once.
            let ended = Arc::clone(&self.ended);
            let task = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    debug!("a connection to PostgreSQL ended: {error}");
                }
                ended.notify_one();
            });
            Ok((client, task))
        })
    }
}

fn client_config(options: &Options) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    match &options.host {
        Host::Tcp(name) => config.host(name),
        Host::Unix(dir) => config.host_path(dir),
    };
    config.port(options.port).user(&options.user).dbname(&options.dbname);
    if let Some(password) = &options.password {
        config.password(password);
    }
    if let Some(session_options) = &options.session_options {
        config.options(session_options);
    }
    // A host that vanished without a word is noticed in tens of seconds instead of hours.
    config.keepalives_idle(Duration::from_secs(30)).keepalives_interval(Duration::from_secs(10));
    config.keepalives_retries(3).tcp_user_timeout(Duration::from_secs(30));
    config
}
