//! How a connection to Redis begins: the address, with sentinels whom they name, TLS, and the [`Greeting`],
//! under a blocking and an asynchronous cover. Errors say whose fault it is and what to do.
//!
//! Bound: each attempt has a deadline, which the caller takes from `limits`.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::net::{self, Stream};
pub use crate::redis::greeting::{Greeting, Role, advice, refusal, tell};
use crate::redis::sentinel::Sentinels;
use crate::redis::socket::{AsyncSocket, BlockingSocket, TlsSocket};
use crate::redis::{Address, Options};
use crate::tls;

/// Why there is no connection. The text names the address and what to do, and never a password.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host's name leads nowhere.
    #[error("Redis at {0}: the host name cannot be looked up ({1}); check REDIS_HOST or REDIS_URL")]
    Resolve(Address, io::Error),
    /// Nobody listens there, or the way is closed.
    #[error(
        "Redis at {0} cannot be reached ({1}); check that it runs, and REDIS_HOST and REDIS_PORT or REDIS_URL"
    )]
    Unreachable(Address, io::Error),
    /// It did not answer in time.
    #[error("Redis at {0} does not answer")]
    Timeout(Address),
    /// It broke off in the middle.
    #[error(
        "Redis at {0} broke the connection off while it was set up ({1}); see its log, and whether that port is for \
         TLS (rediss://) or not"
    )]
    Broken(Address, io::Error),
    /// There is no encrypted connection, or not to whom it should be.
    #[error("Redis at {address}: no connection with TLS ({cause}); {advice}")]
    Tls {
        /// Where.
        address: Address,
        /// What went wrong.
        cause: String,
        /// What to do about it.
        advice: String,
    },
    /// No sentinel names a master.
    #[error(
        "no sentinel says who the master {name} is ({failures}); check REDIS_SENTINELS and REDIS_SENTINEL_MASTER"
    )]
    NoMaster {
        /// The master's name.
        name: String,
        /// What each of them said, or why it said nothing.
        failures: String,
    },
    /// A sentinel named one that is none, or not any more.
    #[error("Redis at {0} is named as the master, and is a replica: a failover may be under way")]
    NotMaster(Address),
    /// A sentinel has announced another while it was connected to.
    #[error("Redis at {0} is not the master any more, the sentinels say: a failover is under way")]
    Superseded(Address),
    /// It refused a command.
    #[error("Redis at {address} refuses {command}: {text}; {advice}")]
    Refused {
        /// Where.
        address: Address,
        /// The command, without its arguments.
        command: &'static str,
        /// What Redis said.
        text: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// Something answered that is not Redis.
    #[error(
        "what answers at {0} does not speak as Redis does; check REDIS_PORT or REDIS_URL (rediss:// where it wants TLS)"
    )]
    NotRedis(Address),
}

/// A connection that is ready for commands.
#[derive(Debug)]
pub struct Connected<T> {
    /// The socket.
    pub stream: T,
    /// The connection's number in `CLIENT LIST`, if it was asked for and Redis told it (5.0 and later).
    pub client_id: Option<u64>,
}

/// Connects and greets, blocking for at most about `timeout` (longer only where the system's name look-up
/// takes longer). The socket is in blocking mode, without time-outs.
pub fn connect(
    options: &Options,
    role: Role,
    timeout: Duration,
) -> Result<Connected<BlockingSocket>, ConnectError> {
    let deadline = Instant::now() + timeout;
    let Address::Sentinel(sentinels) = &options.address else {
        let (out, mut greeting) = Greeting::new(options, role);
        let stream = dialogue(options, &out, &mut greeting, deadline)?;
        return Ok(Connected { stream, client_id: greeting.client_id() });
    };
    let master = sentinels.find(deadline)?;
    let options = options.at(&master);
    let (mut out, mut greeting) = Greeting::new(&options, role);
    greeting.ask_for_role(&mut out);
    let stream = dialogue(&options, &out, &mut greeting, deadline).inspect_err(|_| sentinels.doubt())?;
    sentinels.set_current(master);
    Ok(Connected { stream, client_id: greeting.client_id() })
}

/// Connects, says `out`, and waits until the greeting has its answers.
pub(super) fn dialogue(
    options: &Options,
    out: &[u8],
    greeting: &mut Greeting,
    deadline: Instant,
) -> Result<BlockingSocket, ConnectError> {
    let address = &options.address;
    let mut stream = open(options, deadline)?;
    let broken = |error| broken(options, error);
    stream.set_timeout(Some(time_left(address, deadline)?)).map_err(broken)?;
    stream.write_all(out).map_err(broken)?;
    let mut input = BytesMut::new();
    let mut space = [0; 4096];
    while !greeting.take(options, &mut input)? {
        stream.set_timeout(Some(time_left(address, deadline)?)).map_err(broken)?;
        let n = stream.read(&mut space).map_err(broken)?;
        if n == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        input.extend_from_slice(space.get(..n).unwrap_or_default());
    }
    stream.set_timeout(None).map_err(broken)?;
    Ok(stream)
}

/// What a failure in the middle of the dialogue means.
fn broken(options: &Options, error: io::Error) -> ConnectError {
    let address = options.address.clone();
    let timed_out = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    if let Some(found) = tls::inside(&error) {
        let (cause, advice) = (tls::cause(found), tls::advice(found, "NODE_EXTRA_CA_CERTS"));
        return ConnectError::Tls { address, cause, advice };
    }
    match options.tls {
        Some(_) if timed_out => ConnectError::Tls {
            address,
            cause: "it does not answer".to_owned(),
            advice: "check that the port is the one for TLS (Redis's tls-port)".to_owned(),
        },
        None if timed_out => ConnectError::Timeout(address),
        _ => ConnectError::Broken(address, error),
    }
}

fn open(options: &Options, deadline: Instant) -> Result<BlockingSocket, ConnectError> {
    let address = &options.address;
    let (host, port) = match address {
        Address::Tcp { host, port } => (host.as_str(), *port),
        Address::Unix(path) => {
            let connected = UnixStream::connect(path).map(BlockingSocket::Unix);
            return connected.map_err(|error| ConnectError::Unreachable(address.clone(), error));
        }
        Address::Sentinel(sentinels) => return Err(no_master(sentinels)),
    };
    let limit = time_left(address, deadline)?;
    let stream = net::connect_blocking(host, port, limit).map_err(|failure| unreachable(address, failure))?;
    match &options.tls {
        None => Ok(BlockingSocket::Tcp(stream)),
        Some(tls) => {
            let connection = tls.connection(host).map_err(io::Error::other);
            let connection = connection.map_err(|error| broken(options, error))?;
            Ok(BlockingSocket::Tls(TlsSocket::new(connection, stream)))
        }
    }
}

/// Whose fault it is that no address takes the connection.
fn unreachable(address: &Address, failure: net::Failure) -> ConnectError {
    match failure {
        net::Failure::Name(error) => ConnectError::Resolve(address.clone(), error),
        net::Failure::Addresses(error) if error.kind() == io::ErrorKind::TimedOut => {
            ConnectError::Timeout(address.clone())
        }
        net::Failure::Addresses(error) => ConnectError::Unreachable(address.clone(), error),
    }
}

/// Connects and greets within that time; with sentinels, to the master that [`connect`] found last.
pub async fn connect_async(
    options: &Options,
    role: Role,
    limit: Duration,
) -> Result<Connected<AsyncSocket>, ConnectError> {
    let direct = match &options.address {
        Address::Sentinel(sentinels) => sentinels.current().map(|master| options.at(&master)),
        Address::Tcp { .. } | Address::Unix(_) => None,
    };
    let options = direct.as_ref().unwrap_or(options);
    let connected = tokio::time::timeout(limit, greet(options, role, limit)).await;
    connected.unwrap_or_else(|_| Err(ConnectError::Timeout(options.address.clone())))
}

async fn greet(
    options: &Options,
    role: Role,
    limit: Duration,
) -> Result<Connected<AsyncSocket>, ConnectError> {
    let address = &options.address;
    let broken = |error| broken(options, error);
    let stream = match address {
        Address::Tcp { host, port } => {
            let stream = net::connect(host, *port, limit).await;
            Stream::Tcp(stream.map_err(|failure| unreachable(address, failure))?)
        }
        Address::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await;
            Stream::Unix(stream.map_err(|error| ConnectError::Unreachable(address.clone(), error))?)
        }
        Address::Sentinel(sentinels) => return Err(no_master(sentinels)),
    };
    let mut stream = match (address, &options.tls) {
        (Address::Tcp { host, .. }, Some(tls)) => {
            let name = tls.server_name(host).map_err(io::Error::other).map_err(broken)?;
            let connector = TlsConnector::from(tls.config());
            AsyncSocket::Tls(Box::new(connector.connect(name, stream).await.map_err(broken)?))
        }
        _ => AsyncSocket::Plain(stream),
    };
    let (out, mut greeting) = Greeting::new(options, role);
    stream.write_all(&out).await.map_err(broken)?;
    let mut input = BytesMut::with_capacity(512);
    while !greeting.take(options, &mut input)? {
        if stream.read_buf(&mut input).await.map_err(broken)? == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(Connected { stream, client_id: greeting.client_id() })
}

/// Who asks for a connection to the master without asking for the master gets none.
fn no_master(sentinels: &Sentinels) -> ConnectError {
    let failures = "none was asked yet".to_owned();
    ConnectError::NoMaster { name: sentinels.master().to_owned(), failures }
}

fn time_left(address: &Address, deadline: Instant) -> Result<Duration, ConnectError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ConnectError::Timeout(address.clone())) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CONNECT_TIMEOUT;

    #[test]
    fn nobody_there_is_said_with_the_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let options =
            Options { address: Address::Tcp { host: "127.0.0.1".into(), port }, ..Options::default() };
        let error = connect(&options, Role::Subscriber, CONNECT_TIMEOUT).unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("REDIS_PORT"), "{error}");
    }
}
