//! The listening socket, what accepted sockets inherit from it, and the loop that accepts.
//!
//! Bounds: at most `MAX_DOOR_CONNECTIONS` connections are at the door, and no more than the clients leave file
//! descriptors for. When another one comes, the one that has been without a request for longest, and for
//! `DOOR_GRACE` at least, is closed to make room; when there is none, accepting pauses until one is done, and
//! newcomers wait in the kernel's backlog. A full door keeps no connection after its answer, or those who are
//! there could stay by asking again and again. The loop never ends because of an accept error: without file
//! descriptors it waits a little and tries again.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::connection::{self, Stream};
use super::headers::Peer;
use super::{Door, Socket};
use crate::limits::{
    ACCEPT_BACKOFF, ACCEPT_SAID_EVERY, DOOR_GRACE, LISTEN_BACKLOG, SOCKET_DEAD_AFTER, SOCKET_NOTSENT_BYTES,
    SOCKET_RECEIVE_BYTES, SOCKET_SEND_BYTES,
};
use crate::logging::Limited;

/// Where to listen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `BIND` (a name or an address, without square brackets) and `PORT` (0: any free one).
    Tcp(String, u16),
    /// `SOCKET`: the path of a unix socket, readable and writable for everybody.
    Unix(PathBuf),
    /// `ADMIN_BIND`, like [`Address::Tcp`]: pages alone are served there.
    Admin(String, u16),
}

/// Which variables an address came from: every refusal names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// `BIND` and `PORT`.
    Main,
    /// `ADMIN_BIND`.
    Admin,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Origin::Main => "BIND and PORT",
            Origin::Admin => "ADMIN_BIND",
        })
    }
}

/// Why listening failed: the start ends with this line.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The name has no address.
    #[error("{0}: no such address ({1}); set {2} to an address of this machine")]
    NoAddress(String, io::Error, Origin),
    /// Another process listens there.
    #[error("{0} is in use by another process; set {1} to a free address, or stop that process")]
    PortInUse(SocketAddr, Origin),
    /// The system refused the address.
    #[error("cannot listen on {0}: {1}; set {2} to an address of this machine that this user may use")]
    Tcp(SocketAddr, io::Error, Origin),
    /// A live process listens on that path.
    #[error("SOCKET={0}: another process listens there; stop it, or set SOCKET to another path")]
    SocketInUse(PathBuf),
    /// Something else is at that path: it is not removed.
    #[error("SOCKET={0}: a file that is not a socket is there; remove it, or set SOCKET to another path")]
    NotASocket(PathBuf),
    /// The system refused the path.
    #[error("cannot listen on SOCKET={0}: {1}")]
    Unix(PathBuf, io::Error),
    /// What systemd passed cannot be accepted on.
    #[error("the socket {0:?} that systemd passes (LISTEN_FDS) {1}")]
    Passed(String, &'static str),
    /// The system refused to use what systemd passed.
    #[error("the socket {0:?} that systemd passes (LISTEN_FDS) cannot be used: {1}")]
    PassedFailed(String, io::Error),
}

/// A socket that listens. Dropping it stops that, and removes the file of a unix socket before, so that a
/// successor's is never removed.
#[derive(Debug)]
pub struct Listener {
    socket: ListeningSocket,
    address: String,
    origin: Origin,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    /// The file is systemd's where systemd passed the socket.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a unix socket, removed when dropped, unless another file has taken its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let ListeningSocket::Unix(_, Some(file)) = &self.socket
            && std::fs::symlink_metadata(&file.path)
                .is_ok_and(|found| (found.dev(), found.ino()) == file.identity)
        {
            let _ = std::fs::remove_file(&file.path);
        }
    }
}

impl Listener {
    /// Binds and listens: from now on clients can connect. To be called within the door's runtime.
    ///
    /// # Errors
    /// With one line that names the variable and what to do.
    pub fn bind(address: &Address) -> Result<Listener, ListenError> {
        match address {
            Address::Tcp(host, port) => Listener::bind_tcp(host, *port, Origin::Main),
            Address::Admin(host, port) => Listener::bind_tcp(host, *port, Origin::Admin),
            Address::Unix(path) => Listener::bind_unix(path),
        }
    }

    /// Takes a socket that listens already, passed by systemd under `name`. To be called within the door's
    /// runtime.
    ///
    /// # Errors
    /// With one line that says what the unit should have.
    pub fn passed(socket: OwnedFd, name: &str, origin: Origin) -> Result<Listener, ListenError> {
        let failed = |error| ListenError::PassedFailed(name.to_owned(), error);
        let wrong = |what| Err(ListenError::Passed(name.to_owned(), what));
        let socket = RawSocket::from(socket);
        match socket.r#type() {
            Ok(Type::STREAM) => {}
            Ok(_) => return wrong("takes no connections; use ListenStream="),
            Err(_) => return wrong("is no socket; use ListenStream="),
        }
        if !is_listening(&socket).map_err(failed)? {
            return wrong("is one connection and not a listening socket; set Accept=no");
        }
        let local = socket.local_addr().map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        if let Some(address) = local.as_socket() {
            tune(&SockRef::from(&socket)).map_err(failed)?;
            let listener = TcpListener::from_std(socket.into()).map_err(failed)?;
            return Ok(Listener {
                socket: ListeningSocket::Tcp(listener),
                address: address.to_string(),
                origin,
            });
        }
        if !local.is_unix() {
            return wrong("is neither a TCP nor a unix socket; use ListenStream=");
        }
        let path = local.as_pathname().map_or_else(|| name.to_owned(), |path| path.display().to_string());
        let listener = UnixListener::from_std(socket.into()).map_err(failed)?;
        Ok(Listener { socket: ListeningSocket::Unix(listener, None), address: path, origin })
    }

    /// Where it listens: `127.0.0.1:4000`, or the path.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn bind_tcp(host: &str, port: u16, origin: Origin) -> Result<Listener, ListenError> {
        let no_address = |error| ListenError::NoAddress(host.to_owned(), error, origin);
        let address = (host, port)
            .to_socket_addrs()
            .map_err(no_address)?
            .next()
            .ok_or_else(|| no_address(io::ErrorKind::NotFound.into()))?;
        let listen = |address: SocketAddr| -> io::Result<TcpListener> {
            let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, None)?;
            if address.is_ipv6() && address.ip().is_unspecified() {
                // All addresses are those of both families, whatever net.ipv6.bindv6only says.
                socket.set_only_v6(false)?;
            }
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            // Before listening: the receive buffer decides on the window scale.
            tune(&SockRef::from(&socket))?;
            socket.bind(&address.into())?;
            socket.listen(LISTEN_BACKLOG)?;
            TcpListener::from_std(socket.into())
        };
        let mut listening = listen(address);
        if host == "::"
            && listening.as_ref().is_err_and(|error| {
                [Some(libc::EAFNOSUPPORT), Some(libc::EADDRNOTAVAIL)].contains(&error.raw_os_error())
            })
        {
            // A kernel without IPv6.
            listening = listen(SocketAddr::from(([0, 0, 0, 0], port)));
        }
        let listener = listening.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ListenError::PortInUse(address, origin),
            _ => ListenError::Tcp(address, error, origin),
        })?;
        let address = listener.local_addr().unwrap_or(address).to_string();
        Ok(Listener { socket: ListeningSocket::Tcp(listener), address, origin })
    }

    fn bind_unix(path: &Path) -> Result<Listener, ListenError> {
        let failed = |error| ListenError::Unix(path.to_owned(), error);
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(ListenError::NotASocket(path.to_owned()));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                // Nobody listens: left over from a process that is gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    tracing::debug!(path = %path.display(), "replacing a stale socket file");
                    std::fs::remove_file(path).map_err(failed)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(_) => return Err(ListenError::SocketInUse(path.to_owned())),
                // A full backlog, too, is somebody's.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(ListenError::SocketInUse(path.to_owned()));
                }
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listen = || -> io::Result<(UnixListener, SocketFile)> {
            let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&socket2::SockAddr::unix(path)?)?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
            let metadata = std::fs::symlink_metadata(path)?;
            socket.listen(LISTEN_BACKLOG)?;
            let identity = (metadata.dev(), metadata.ino());
            let listener = UnixListener::from_std(socket.into())?;
            Ok((listener, SocketFile { path: path.to_owned(), identity }))
        };
        let (listener, file) = listen().map_err(failed)?;
        Ok(Listener {
            socket: ListeningSocket::Unix(listener, Some(file)),
            address: path.display().to_string(),
            origin: Origin::Main,
        })
    }

    async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                if !INHERITS {
                    tune(&SockRef::from(&stream))?;
                }
                Ok((Stream::Tcp(stream), Peer::Tcp(address.ip())))
            }
            ListeningSocket::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                // A unix socket's buffers are not inherited; its send buffer holds all that is on the way.
                SockRef::from(&stream).set_send_buffer_size(SOCKET_SEND_BYTES as usize)?;
                Ok((Stream::Unix(stream), Peer::Unix))
            }
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn is_listening(socket: &RawSocket) -> io::Result<bool> {
    socket.is_listener()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn is_listening(_: &RawSocket) -> io::Result<bool> {
    // Accepting tells.
    Ok(true)
}

/// Linux gives an accepted socket all the options of its listener, which saves a dozen calls per client.
const INHERITS: bool = cfg!(target_os = "linux");

/// What a client's TCP socket is to have: no delay, small buffers, and an end when its peer is dead.
fn tune(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SOCKET_SEND_BYTES as usize)?;
    socket.set_recv_buffer_size(SOCKET_RECEIVE_BYTES as usize)?;
    let keepalive = TcpKeepalive::new().with_time(SOCKET_DEAD_AFTER).with_interval(SOCKET_DEAD_AFTER / 4);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        socket.set_tcp_user_timeout(Some(SOCKET_DEAD_AFTER))?;
        socket.set_tcp_notsent_lowat(SOCKET_NOTSENT_BYTES)?;
    }
    Ok(())
}

/// Lets clients in until `shutdown`; then the listening socket is closed first of all, and whoever is still
/// at the door is sent away. Says that it listens, in the words that Mastodon's own tests wait for.
pub async fn serve<S: Socket>(door: Arc<Door<S>>, listener: Listener, shutdown: impl Future<Output = ()>) {
    match listener.origin {
        Origin::Main => tracing::info!("Streaming API now listening on {}", listener.address()),
        Origin::Admin => tracing::info!("Metrics and status pages are on {}", listener.address()),
    }
    let waiting_room = Arc::new(WaitingRoom::default());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let (count, room) = (connections.len(), door.room());
        let is_full = count >= room;
        door.is_full.store(is_full, Ordering::Relaxed);
        // A full door lets somebody in when the one who has waited longest without a request may be sent away.
        // Nobody may at once: in a rush their requests are here and only unread. Nor is the next one let in before
        // the last one sent away has gone.
        let room_from = is_full.then(|| if count > room { None } else { waiting_room.evictable_from() });
        let has_room = room_from.is_none_or(|from| from.is_some_and(|from| from <= Instant::now()));
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {
                door.counters.at_door.store(connections.len(), Ordering::Relaxed);
                continue;
            }
            accepted = listener.accept(), if has_room => accepted,
            () = waiting_room.entered.notified(), if is_full => continue,
            () = door.client_left.notified(), if is_full => continue,
            () = until(room_from.flatten()), if !has_room => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                if is_full {
                    waiting_room.evict_oldest();
                }
                door.counters.accepted.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connection::serve(
                    Arc::clone(&door),
                    stream,
                    peer,
                    Arc::clone(&waiting_room),
                    waiting_room.enter(&Arc::default()),
                ));
                door.counters.at_door.store(connections.len(), Ordering::Relaxed);
            }
            Err(error) if is_the_clients(&error) => tracing::debug!(%error, "a connection was lost"),
            Err(error) => {
                static SAID: Limited = Limited::every(ACCEPT_SAID_EVERY);
                if let Some(unsaid) = SAID.allow() {
                    tracing::warn!(%error, unsaid, "cannot accept connections; trying again (RLIMIT_NOFILE, memory)");
                }
                tokio::select! {
                    () = &mut shutdown => break,
                    () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
    door.counters.at_door.store(0, Ordering::Relaxed);
}

/// One connection, as if the listener had accepted it: for tests that bring their own socket.
#[doc(hidden)]
pub async fn serve_one<S: Socket>(door: Arc<Door<S>>, stream: tokio::net::UnixStream, peer: Peer) {
    let waiting_room = Arc::new(WaitingRoom::default());
    let place = waiting_room.enter(&Arc::default());
    connection::serve(door, Stream::Unix(stream), peer, waiting_room, place).await;
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Errors of one connection, which say nothing about the next.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// The connections that have no request under way, oldest first.
#[derive(Default)]
pub(crate) struct WaitingRoom {
    places: Mutex<Places>,
    /// Somebody came in, so there is somebody who can make room.
    entered: Notify,
}

#[derive(Default)]
struct Places {
    last: u64,
    waiting: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

/// A connection's place in the waiting room, left when dropped.
pub(crate) struct Place {
    number: u64,
    evict: Arc<Notify>,
    room: Arc<WaitingRoom>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.lock().waiting.remove(&self.number);
    }
}

impl Place {
    /// Notified when the place is needed for somebody else.
    pub(crate) fn evict(&self) -> Arc<Notify> {
        Arc::clone(&self.evict)
    }
}

impl WaitingRoom {
    /// Waits from now on; `evict` is notified when the place is needed.
    pub(crate) fn enter(self: &Arc<Self>, evict: &Arc<Notify>) -> Place {
        let mut places = self.lock();
        places.last += 1;
        let number = places.last;
        places.waiting.insert(number, (Instant::now(), Arc::clone(evict)));
        drop(places);
        self.entered.notify_one();
        Place { number, evict: Arc::clone(evict), room: Arc::clone(self) }
    }

    /// When the one who has waited longest may be sent away; none while nobody waits.
    fn evictable_from(&self) -> Option<Instant> {
        let places = self.lock();
        places.waiting.first_key_value().map(|(_, (entered, _))| *entered + DOOR_GRACE)
    }

    fn evict_oldest(&self) {
        if let Some((_, (_, evict))) = self.lock().waiting.pop_first() {
            evict.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
