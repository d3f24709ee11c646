//! How a connection to Redis begins: the address, AUTH, SELECT, CLIENT SETNAME, and for the subscriber its
//! own CLIENT ID.
//!
//! The dialogue is one value without I/O, [`Greeting`], under a blocking and an asynchronous cover. Errors
//! say whose fault it is and what to do; what Redis quotes of our commands never shows a password.
//!
//! Bounds: each attempt has a deadline, [`CONNECT_TIMEOUT`] as a rule; replies are at most
//! `REPLY_BYTES_MAX` long.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::config::HostPort;
use crate::redis::command::encode;
use crate::redis::sentinel::Sentinels;
use crate::redis::socket::{AsyncSocket, BlockingSocket, TlsSocket};
use crate::redis::{Address, Options};
use crate::tls;

/// How long an attempt may take, name look-up included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest reply to a command of the dialogue. They are one line each.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// Longest part of an error text of Redis's that is repeated.
const ERROR_TEXT_MAX: usize = 200;

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

/// What the connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Subscriptions; wants to know its own number.
    Subscriber,
    /// Commands.
    Command,
    /// Questions to a sentinel.
    Sentinel,
}

/// What to do about an error that Redis answered.
pub fn advice(text: &str) -> &'static str {
    let code = text.split([' ', ':']).next().unwrap_or_default();
    match code {
        "WRONGPASS" => "check REDIS_USER and REDIS_PASSWORD, or those in REDIS_URL",
        "NOAUTH" => "it wants a password: set REDIS_PASSWORD, or put it into REDIS_URL",
        "NOPERM" => {
            "the Redis user needs the commands subscribe, unsubscribe, ping, select, client, set, the channels \
             timeline:* and the keys subscribed:*"
        }
        "LOADING" => "it is reading its data and will be back by itself",
        "MASTERDOWN" => "it is a replica that has lost its master",
        "READONLY" => "it is a replica: the address has to be the master's",
        "OOM" => "its memory is full: raise maxmemory",
        "MISCONF" => "it cannot save its data and refuses writes: look into Redis's own log",
        "DENIED" => "it is in protected mode: give it a password or let it listen on loopback",
        _ if text.contains("invalid password") => "check REDIS_PASSWORD, or the one in REDIS_URL",
        _ if text.contains("DB index") => "check REDIS_DB, or the number in REDIS_URL",
        _ if text.contains("max number of clients") => "raise maxclients in Redis",
        _ => "see Redis's own log",
    }
}

/// The first words of an error text, without any secret in them.
pub fn tell(options: &Options, text: &str) -> String {
    // An unknown command's arguments are repeated behind these words.
    let text = text.split(", with args").next().unwrap_or_default();
    let mut told: String = text.chars().filter(|c| !c.is_control()).take(ERROR_TEXT_MAX).collect();
    if let Some(password) = options.password.as_ref().map(|password| password.expose())
        && !password.is_empty()
    {
        told = told.replace(password, "***");
    }
    told
}

/// The dialogue at the beginning of a connection: bytes to send at once, then one reply for each command.
#[derive(Debug)]
pub struct Greeting {
    expected: VecDeque<&'static str>,
    role: Role,
    client_id: Option<u64>,
    master: Option<HostPort>,
}

impl Greeting {
    /// The commands for that role.
    pub fn new(options: &Options, role: Role) -> (BytesMut, Greeting) {
        let mut out = BytesMut::new();
        let mut expected = VecDeque::new();
        if let Some(password) = &options.password {
            let password = password.expose().as_bytes();
            match options.username.as_deref().filter(|name| !name.is_empty()) {
                Some(username) => encode(&mut out, &[b"AUTH", username.as_bytes(), password]),
                None => encode(&mut out, &[b"AUTH", password]),
            }
            expected.push_back("AUTH");
        }
        if options.db != 0 {
            encode(&mut out, &[b"SELECT", options.db.to_string().as_bytes()]);
            expected.push_back("SELECT");
        }
        encode(&mut out, &[b"CLIENT", b"SETNAME", options.client_name.as_bytes()]);
        expected.push_back("CLIENT SETNAME");
        if role == Role::Subscriber {
            encode(&mut out, &[b"CLIENT", b"ID"]);
            expected.push_back("CLIENT ID");
        }
        (out, Greeting { expected, role, client_id: None, master: None })
    }

    /// Asks besides whether it is the master; a replica is an error then.
    pub fn ask_for_role(&mut self, out: &mut BytesMut) {
        encode(out, &[b"ROLE"]);
        self.expected.push_back("ROLE");
    }

    /// Asks a sentinel besides who the master of that name is.
    pub fn ask_for_master(&mut self, out: &mut BytesMut, name: &str) {
        encode(out, &[b"SENTINEL", b"get-master-addr-by-name", name.as_bytes()]);
        self.expected.push_back("SENTINEL");
    }

    /// Who the master is, if the sentinel knows.
    pub fn into_master(self) -> Option<HostPort> {
        self.master
    }

    /// Takes every whole reply out of `input`; true when all are there.
    pub fn take(&mut self, options: &Options, input: &mut BytesMut) -> Result<bool, ConnectError> {
        while !self.expected.is_empty() {
            let (frame, used) = match decode(input) {
                Ok(Some(found)) => found,
                Ok(None) if input.len() <= REPLY_BYTES_MAX => return Ok(false),
                _ => return Err(ConnectError::NotRedis(options.address.clone())),
            };
            let _ = input.split_to(used);
            self.answer(options, frame)?;
        }
        Ok(true)
    }

    fn answer(&mut self, options: &Options, frame: OwnedFrame) -> Result<(), ConnectError> {
        let command = self.expected.pop_front().unwrap_or_default();
        match frame {
            OwnedFrame::Integer(id) if command == "CLIENT ID" => self.client_id = u64::try_from(id).ok(),
            OwnedFrame::Array(parts) if command == "SENTINEL" => self.master = host_and_port(&parts),
            OwnedFrame::Array(parts) if command == "ROLE" && !is_master(&parts) => {
                return Err(ConnectError::NotMaster(options.address.clone()));
            }
            OwnedFrame::Error(text) => {
                let code = text.split(' ').next().unwrap_or_default();
                let text = tell(options, &text);
                // No password is wanted: then the one that was given is not needed, as other clients see it.
                let no_password =
                    text.contains("without any password") || text.contains("no password is set");
                // Whoever may not ask for the role has to believe the sentinels.
                let optional = (command.starts_with("CLIENT") || command == "ROLE")
                    && !matches!(code, "NOAUTH" | "DENIED")
                    && !text.contains("max number of clients");
                if command == "AUTH" && no_password {
                    // A sentinel gets the master's password where it has none of its own.
                    if self.role != Role::Sentinel {
                        tracing::warn!(
                            "Redis at {} wants no password, but one is configured",
                            options.address
                        );
                    }
                } else if !optional {
                    let advice = advice(&text);
                    return Err(ConnectError::Refused {
                        address: options.address.clone(),
                        command,
                        text,
                        advice,
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a ROLE's answer begins as a master's does.
fn is_master(parts: &[OwnedFrame]) -> bool {
    matches!(parts.first(), Some(OwnedFrame::BulkString(role)) if role == b"master")
}

/// Where that name and port are, as a sentinel writes them.
fn host_and_port(parts: &[OwnedFrame]) -> Option<HostPort> {
    let [OwnedFrame::BulkString(host), OwnedFrame::BulkString(port)] = parts else { return None };
    let port = std::str::from_utf8(port).ok()?.parse().ok()?;
    Some(HostPort { host: String::from_utf8(host.clone()).ok()?, port })
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
        return Ok(Connected { stream, client_id: greeting.client_id });
    };
    let master = sentinels.find(deadline)?;
    let options = options.at(&master);
    let (mut out, mut greeting) = Greeting::new(&options, role);
    greeting.ask_for_role(&mut out);
    let stream = dialogue(&options, &out, &mut greeting, deadline)?;
    sentinels.set_current(master);
    Ok(Connected { stream, client_id: greeting.client_id })
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
    let resolve = |error| ConnectError::Resolve(address.clone(), error);
    let found: Vec<_> = (host, port).to_socket_addrs().map_err(resolve)?.collect();
    let mut failure = resolve(io::ErrorKind::NotFound.into());
    for (tried, candidate) in found.iter().enumerate() {
        // One address that swallows everything must not eat the time of the others.
        let share = time_left(address, deadline)? / u32::try_from(found.len() - tried).unwrap_or(1);
        let connected = TcpStream::connect_timeout(candidate, share).and_then(|stream| {
            stream.set_nodelay(true)?;
            match &options.tls {
                None => Ok(BlockingSocket::Tcp(stream)),
                Some(tls) => {
                    let connection = tls.connection(host).map_err(io::Error::other)?;
                    Ok(BlockingSocket::Tls(TlsSocket::new(connection, stream)))
                }
            }
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                failure = ConnectError::Timeout(address.clone());
            }
            Err(error) => failure = ConnectError::Unreachable(address.clone(), error),
        }
    }
    Err(failure)
}

/// Connects and greets; with sentinels, to the master that [`connect`] found last. Whoever calls it sets the
/// deadline.
pub async fn connect_async(options: &Options, role: Role) -> Result<Connected<AsyncSocket>, ConnectError> {
    let direct = match &options.address {
        Address::Sentinel(sentinels) => sentinels.current().map(|master| options.at(&master)),
        Address::Tcp { .. } | Address::Unix(_) => None,
    };
    let options = direct.as_ref().unwrap_or(options);
    let address = &options.address;
    let resolve = |error| ConnectError::Resolve(address.clone(), error);
    let unreachable = |error| ConnectError::Unreachable(address.clone(), error);
    let broken = |error| broken(options, error);
    let mut stream = match address {
        Address::Tcp { host, port } => {
            let found: Vec<_> =
                tokio::net::lookup_host((host.as_str(), *port)).await.map_err(resolve)?.collect();
            let stream = tokio::net::TcpStream::connect(&found[..]).await.map_err(unreachable)?;
            stream.set_nodelay(true).map_err(broken)?;
            match &options.tls {
                None => AsyncSocket::Tcp(stream),
                Some(tls) => {
                    let name = tls::server_name(host).map_err(io::Error::other).map_err(broken)?;
                    let connector = TlsConnector::from(tls.config());
                    AsyncSocket::Tls(Box::new(connector.connect(name, stream).await.map_err(broken)?))
                }
            }
        }
        Address::Unix(path) => {
            AsyncSocket::Unix(tokio::net::UnixStream::connect(path).await.map_err(unreachable)?)
        }
        Address::Sentinel(sentinels) => return Err(no_master(sentinels)),
    };
    let (out, mut greeting) = Greeting::new(options, role);
    stream.write_all(&out).await.map_err(broken)?;
    let mut input = BytesMut::with_capacity(512);
    while !greeting.take(options, &mut input)? {
        if stream.read_buf(&mut input).await.map_err(broken)? == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    Ok(Connected { stream, client_id: greeting.client_id })
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
    use crate::config::Secret;

    fn options() -> Options {
        Options {
            username: Some("streaming".to_owned()),
            password: Some(Secret::new("hunter2")),
            db: 3,
            ..Options::default()
        }
    }

    fn greet(options: &Options, replies: &str) -> Result<Option<u64>, ConnectError> {
        let (_, mut greeting) = Greeting::new(options, Role::Subscriber);
        let mut input = BytesMut::new();
        let mut done = false;
        for byte in replies.bytes() {
            assert!(!done, "the replies are longer than the dialogue");
            input.extend_from_slice(&[byte]);
            done = greeting.take(options, &mut input)?;
        }
        assert!(done, "the replies are shorter than the dialogue");
        Ok(greeting.client_id)
    }

    #[test]
    fn a_connection_authenticates_selects_and_says_its_name() {
        let (out, _) = Greeting::new(&options(), Role::Subscriber);
        assert_eq!(
            &out[..],
            b"*3\r\n$4\r\nAUTH\r\n$9\r\nstreaming\r\n$7\r\nhunter2\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n\
              *3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$8\r\ntidegate\r\n*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n"
        );
        let plain = Options::default();
        let (out, _) = Greeting::new(&plain, Role::Command);
        assert_eq!(&out[..], b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$8\r\ntidegate\r\n");
    }

    #[test]
    fn replies_may_be_split_anywhere_and_only_what_matters_must_succeed() {
        assert_eq!(greet(&options(), "+OK\r\n+OK\r\n+OK\r\n:17\r\n").unwrap(), Some(17));
        let denied = "+OK\r\n+OK\r\n-NOPERM no client|setname\r\n-ERR unknown command\r\n";
        assert_eq!(greet(&options(), denied).unwrap(), None);
        let not_needed =
            "-ERR AUTH <password> called without any password configured\r\n+OK\r\n+OK\r\n:1\r\n";
        assert_eq!(greet(&options(), not_needed).unwrap(), Some(1));
    }

    #[test]
    fn errors_say_what_to_do_and_never_a_password() {
        let cases = [
            ("-WRONGPASS invalid username-password pair or user is disabled.\r\n", "REDIS_PASSWORD"),
            ("+OK\r\n-ERR DB index is out of range\r\n", "REDIS_DB"),
            ("+OK\r\n-LOADING Redis is loading the dataset in memory\r\n", "by itself"),
            ("-ERR unknown command 'AUTH', with args beginning with: 'streaming' 'hunter2'\r\n", "AUTH"),
            ("-ERR you said hunter2\r\n", "***"),
            ("-ERR max number of clients reached\r\n", "maxclients"),
            ("HTTP/1.1 400 Bad Request\r\n", "does not speak"),
        ];
        for (replies, expected) in cases {
            let error = greet(&options(), replies).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(!format!("{:?}", options()).contains("hunter2"));
        let error = greet(&Options::default(), "-NOAUTH Authentication required.\r\n").unwrap_err();
        assert!(error.to_string().contains("set REDIS_PASSWORD"), "{error}");
    }

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
