//! The way in: one subscriber connection that everything published comes through, and one command
//! connection for presence keys and questions.
//!
//! - [`connect`]: addresses, authentication, what a new connection is told first.
//! - [`sentinel`]: who the master is.
//! - [`ingest`]: the thread that owns the subscriber connection and the table of subscriptions.
//! - [`presence`]: the task that owns the command connection.
//! - [`headroom`]: what is known of Redis's patience with us while reading is paused.
//! - [`stats`]: what the status pages and metrics tell about all of this.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{self, HostPort, RedisEndpoint, Secret};
use crate::tls::{Client, SetupError};
use sentinel::Sentinels;

pub mod backoff;
pub mod command;
pub mod connect;
mod greeting;
pub mod headroom;
pub mod ingest;
mod link;
mod loss;
mod pipeline;
pub mod presence;
mod route;
pub mod sentinel;
pub mod socket;
pub mod stats;

/// Where Redis is and how to get in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where it listens.
    pub address: Address,
    /// How it is encrypted, over TCP; none: not at all.
    pub tls: Option<Client>,
    /// The ACL user; with a password only.
    pub username: Option<String>,
    /// The password, if there is one.
    pub password: Option<Secret>,
    /// The database's number. Channels are the same in all, presence keys are not.
    pub db: u32,
    /// `REDIS_NAMESPACE`, without colon: prefix of channels and keys.
    pub namespace: Option<String>,
    /// What `CLIENT LIST` shows.
    pub client_name: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            address: Address::Tcp { host: "127.0.0.1".to_owned(), port: 6379 },
            tls: None,
            username: None,
            password: None,
            db: 0,
            namespace: None,
            client_name: "tidegate".to_owned(),
        }
    }
}

impl Options {
    /// As configured.
    ///
    /// # Errors
    /// Where a file with certificates cannot be used.
    pub fn new(config: &config::Redis, tls: &config::Tls) -> Result<Options, SetupError> {
        let client = |wanted: bool| if wanted { Client::for_redis(tls).map(Some) } else { Ok(None) };
        let (address, tls) = match &config.endpoint {
            RedisEndpoint::Tcp { at, tls } => {
                (Address::Tcp { host: at.host.clone(), port: at.port }, client(*tls)?)
            }
            RedisEndpoint::Unix(path) => (Address::Unix(path.clone()), None),
            RedisEndpoint::Sentinel(config) => {
                let sentinels = Sentinels::new(config, client(config.tls)?);
                (Address::Sentinel(Arc::new(sentinels)), client(config.master_tls)?)
            }
        };
        Ok(Options {
            address,
            tls,
            username: config.user.clone(),
            password: config.password.clone(),
            db: config.db,
            namespace: config.namespace.clone(),
            ..Options::default()
        })
    }

    /// The sentinels, if there are any.
    pub fn sentinels(&self) -> Option<&Arc<Sentinels>> {
        match &self.address {
            Address::Sentinel(sentinels) => Some(sentinels),
            Address::Tcp { .. } | Address::Unix(_) => None,
        }
    }

    /// The same, for that server.
    fn at(&self, at: &HostPort) -> Options {
        Options { address: Address::Tcp { host: at.host.clone(), port: at.port }, ..self.clone() }
    }

    /// What stands before each channel and key: empty, or the namespace with its colon.
    pub fn prefix(&self) -> String {
        self.namespace.as_deref().map(|namespace| format!("{namespace}:")).unwrap_or_default()
    }
}

/// Where Redis listens.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Address {
    /// A host, by name or address (IPv6 without brackets), and a port.
    Tcp {
        /// Looked up anew for each connection.
        host: String,
        /// The port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
    /// Wherever these say that the master is.
    Sentinel(Arc<Sentinels>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Sentinel(sentinels) => write!(f, "{sentinels}"),
        }
    }
}
