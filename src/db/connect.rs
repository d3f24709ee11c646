//! How a connection to PostgreSQL is made: its addresses raced, encrypted as `sslmode` says, logged in. The pool's
//! manager.
//!
//! Bounds: those of [`Waits`](crate::limits::Waits); the pool ends an attempt after `connect`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::{Manager, Metrics, RecycleError, RecycleResult};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;
use tracing::{debug, info, warn};

use super::tls::{self, Attempt, Encryption};
use super::{ChannelBinding, Host, Options};
use crate::net::{self, Stream};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// It was not reached.
    #[error(transparent)]
    Network(#[from] net::Failure),
    /// It was reached, and does not let us in.
    #[error(transparent)]
    Postgres(#[from] tokio_postgres::Error),
}

/// Makes connections for the pool.
pub(super) struct Connector {
    at: Arc<str>,
    host: Host,
    port: u16,
    config: tokio_postgres::Config,
    encryption: Encryption,
    limit: Duration,
    /// Notified when a connection has ended.
    ended: Arc<Notify>,
}

/// A connection that is logged in. Dropped, it is closed.
pub(super) struct Connection {
    pub(super) client: Client,
    /// To which of the name's addresses, for cancelling.
    peer: Peer,
    task: JoinHandle<()>,
}

#[derive(Clone)]
enum Peer {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Asks the server to give up what the connection is working on. To be spawned.
    pub(super) fn cancel(
        &self,
        encryption: &Encryption,
        host: &Host,
        limit: Duration,
    ) -> impl Future<Output = ()> + use<> {
        let (token, peer) = (self.client.cancel_token(), self.peer.clone());
        let tls = encryption.connector(host);
        async move {
            let cancelling = async {
                let stream = match peer {
                    Peer::Tcp(address) => Stream::Tcp(TcpStream::connect(address).await?),
                    Peer::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
                };
                token.cancel_query_raw(stream, tls).await.map_err(io::Error::other)
            };
            if let Ok(Err(error)) = timeout(limit, cancelling).await {
                debug!("a statement could not be cancelled: {error}");
            }
        }
    }
}

impl Manager for Connector {
    type Type = Connection;
    type Error = ConnectError;

    async fn create(&self) -> Result<Connection, ConnectError> {
        let attempts = match self.host {
            Host::Tcp(_) => self.encryption.attempts(),
            Host::Unix(_) => &[Attempt::Plain],
        };
        let mut first: Option<tokio_postgres::Error> = None;
        for (number, attempt) in attempts.iter().enumerate() {
            let (stream, peer) = self.open().await?;
            let mut config = self.config.clone();
            config.ssl_mode(match attempt {
                Attempt::Plain => SslMode::Disable,
                Attempt::Offered => SslMode::Prefer,
                Attempt::Encrypted => SslMode::Require,
            });
            match config.connect_raw(stream, self.encryption.connector(&self.host)).await {
                Ok((client, connection)) => {
                    self.note(*attempt, first.as_ref());
                    // The next statement finds out that it has ended, and logs the loss once.
                    let ended = Arc::clone(&self.ended);
                    let task = tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            debug!("a connection to PostgreSQL ended: {error}");
                        }
                        ended.notify_one();
                    });
                    return Ok(Connection { client, peer, task });
                }
                Err(error) if number + 1 < attempts.len() && tls::worth_another(&error) => {
                    first = Some(error)
                }
                // Of two failures the first is what the operator asked for first.
                Err(error) => return Err(first.unwrap_or(error).into()),
            }
        }
        Err(ConnectError::Network(net::Failure::Addresses(io::ErrorKind::NotFound.into())))
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<ConnectError> {
        if connection.client.is_closed() { Err(RecycleError::message("closed")) } else { Ok(()) }
    }
}

impl Connector {
    pub(super) fn new(options: &Options, at: Arc<str>, ended: Arc<Notify>) -> Connector {
        let mut config = tokio_postgres::Config::new();
        config.user(&options.user).dbname(&options.dbname).channel_binding(match options.channel_binding {
            ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
            ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
            ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
        });
        if let Some(password) = &options.password {
            config.password(password);
        }
        if let Some(session_options) = &options.session_options {
            config.options(session_options);
        }
        let (host, port) = (options.host.clone(), options.port);
        Connector {
            at,
            host,
            port,
            config,
            encryption: options.encryption.clone(),
            limit: options.waits.connect,
            ended,
        }
    }

    async fn open(&self) -> Result<(Stream, Peer), net::Failure> {
        match &self.host {
            Host::Tcp(name) => {
                let stream = net::connect(name, self.port, self.limit).await?;
                // Without it the connection serves all the same.
                let _ = net::keep_alive(&stream);
                let peer = stream.peer_addr().map_err(net::Failure::Addresses)?;
                Ok((Stream::Tcp(stream), Peer::Tcp(peer)))
            }
            Host::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", self.port));
                let stream = UnixStream::connect(&path).await.map_err(net::Failure::Addresses)?;
                Ok((Stream::Unix(stream), Peer::Unix(path)))
            }
        }
    }

    /// Says when encryption is given up that was asked for, once, and when it is back.
    fn note(&self, attempt: Attempt, error: Option<&tokio_postgres::Error>) {
        let (at, variable) = (&self.at, self.encryption.variable);
        match error.filter(|_| attempt == Attempt::Plain) {
            Some(error) => {
                let cause = tls::advice(error, &self.encryption)
                    .map_or_else(|| error.to_string(), |(cause, _)| cause);
                if self.encryption.set_fallback(Some(&cause)) {
                    warn!(
                        "PostgreSQL at {at}: connections are NOT encrypted, since TLS failed ({cause}) and {variable} \
                         allows that; set it to require to have none without"
                    );
                }
            }
            None => {
                if self.encryption.set_fallback(None) {
                    info!("PostgreSQL at {at}: new connections are encrypted again");
                }
            }
        }
    }
}
