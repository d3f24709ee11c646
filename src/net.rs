//! Outgoing connections, whatever speaks over them: name look-up, and the race between a name's addresses (RFC 8305,
//! "Happy Eyeballs").
//!
//! One address after the other is tried, each [`Race::stagger`] after the one before or as soon as that has failed,
//! without giving up those that are under way; the first that connects wins. An address that swallows packets, of a
//! dead node or by a broken IPv6, so costs a quarter of a second instead of the time that everything has.
//!
//! Bounds: [`ADDRESSES_MAX`] addresses of a name; each has [`Race::address`]; the caller sets the deadline of it all.
//! Tested with addresses that swallow packets in `tests/net_addresses.rs`.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::limits::{
    ADDRESSES_MAX, Race, TCP_DEAD_AFTER, TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL, TCP_KEEPALIVE_RETRIES,
};

/// Looks a name up and connects to one of its addresses. `limit` is the caller's: for all of it, and more.
///
/// # Errors
/// [`Failure::Name`] where the name leads nowhere, [`Failure::Addresses`] where no address takes the connection.
pub async fn connect(host: &str, port: u16, limit: Duration) -> Result<TcpStream, Failure> {
    let addresses = look_up(host, port).await.map_err(Failure::Name)?;
    race(addresses, Race::within(limit)).await.map_err(Failure::Addresses)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The name cannot be looked up.
    #[error("the host name cannot be looked up: {0}")]
    Name(io::Error),
    /// None of its addresses takes the connection.
    #[error(transparent)]
    Addresses(io::Error),
}

impl Failure {
    /// As an I/O error.
    pub fn into_io(self) -> io::Error {
        match self {
            Failure::Name(error) | Failure::Addresses(error) => error,
        }
    }
}

/// The same for a thread without a runtime, within that time. The socket blocks.
///
/// # Errors
/// As [`connect`]; an I/O error of the kind `TimedOut` where the time runs out.
pub fn connect_blocking(host: &str, port: u16, limit: Duration) -> Result<std::net::TcpStream, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::Addresses)?;
    let connected = runtime.block_on(async {
        let connecting = timeout(limit, connect(host, port, limit));
        let stream = connecting.await.unwrap_or_else(|_| Err(Failure::Addresses(silence())))?;
        stream.into_std().map_err(Failure::Addresses)
    });
    // A look-up that is still going on has a thread, which nobody waits for.
    runtime.shutdown_background();
    let stream = connected?;
    stream.set_nonblocking(false).map_err(Failure::Addresses)?;
    Ok(stream)
}

/// A name's addresses in the order in which they are tried.
///
/// # Errors
/// Where there are none.
pub async fn look_up(host: &str, port: u16) -> io::Result<VecDeque<SocketAddr>> {
    let found = order(tokio::net::lookup_host((host, port)).await?);
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

/// The families take turns (RFC 8305 section 4), beginning with that of the resolver's first choice; within a family
/// its order stays.
fn order(found: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let (mut first, mut second) = (VecDeque::new(), VecDeque::new());
    let mut family = None;
    for address in found {
        let list = match *family.get_or_insert(address.is_ipv6()) == address.is_ipv6() {
            true => &mut first,
            false => &mut second,
        };
        if !list.contains(&address) {
            list.push_back(address);
        }
    }
    let mut ordered = VecDeque::new();
    while !(first.is_empty() && second.is_empty()) && ordered.len() < ADDRESSES_MAX {
        ordered.extend(first.pop_front());
        ordered.extend(second.pop_front());
    }
    ordered.truncate(ADDRESSES_MAX);
    ordered
}

/// Connects to whichever of the addresses takes the connection first.
async fn race(mut addresses: VecDeque<SocketAddr>, race: Race) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    let mut next = Instant::now();
    loop {
        let is_due = attempts.is_empty() || next <= Instant::now();
        if is_due && let Some(address) = addresses.pop_front() {
            attempts.spawn(attempt(address, race.address));
            next = Instant::now() + race.stagger;
        }
        tokio::select! {
            biased;
            joined = attempts.join_next() => match joined {
                Some(Ok((_, Ok(stream)))) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Some(Ok((address, Err(error)))) => {
                    failures.push((address, error));
                    next = Instant::now();
                }
                Some(Err(ended)) => return Err(io::Error::other(ended)),
                None => return Err(all(failures)),
            },
            () = sleep_until(next), if !addresses.is_empty() => {}
        }
    }
}

async fn attempt(address: SocketAddr, limit: Duration) -> (SocketAddr, io::Result<TcpStream>) {
    let connected = timeout(limit, TcpStream::connect(address)).await;
    (address, connected.unwrap_or_else(|_| Err(silence())))
}

fn silence() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it does not answer")
}

/// What each of them said.
fn all(mut failures: Vec<(SocketAddr, io::Error)>) -> io::Error {
    if failures.len() < 2 {
        return failures.pop().map_or_else(|| io::ErrorKind::NotFound.into(), |(_, error)| error);
    }
    let kind = failures.last().map_or(io::ErrorKind::Other, |(_, error)| error.kind());
    let told: Vec<String> =
        failures.iter().map(|(address, error)| format!("{}: {error}", address.ip())).collect();
    io::Error::new(kind, told.join("; "))
}

/// Tries every address of a name, each by itself: whether it takes a connection.
///
/// # Errors
/// Where the name cannot be looked up.
pub async fn probe(host: &str, port: u16, limit: Duration) -> io::Result<Vec<(SocketAddr, io::Result<()>)>> {
    let addresses = look_up(host, port).await?;
    let mut attempts = JoinSet::new();
    addresses.iter().for_each(|address| drop(attempts.spawn(attempt(*address, limit))));
    let mut found: Vec<_> =
        attempts.join_all().await.into_iter().map(|(address, result)| (address, result.map(drop))).collect();
    found.sort_by_key(|(address, _)| addresses.iter().position(|known| known == address));
    Ok(found)
}

/// Lets the kernel find out that the other side, or something in between, has forgotten the connection.
///
/// # Errors
/// The kernel's.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(TCP_KEEPALIVE_IDLE)
        .with_interval(TCP_KEEPALIVE_INTERVAL)
        .with_retries(TCP_KEEPALIVE_RETRIES);
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(TCP_DEAD_AFTER))
}

/// A connection of either kind.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buffer),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Neither kind buffers.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> VecDeque<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_beginning_with_the_resolvers_first_choice() {
        let found = ["[::1]:5", "[::2]:5", "[::2]:5", "10.0.0.1:5", "[::3]:5", "10.0.0.2:5"];
        let expected = ["[::1]:5", "10.0.0.1:5", "[::2]:5", "10.0.0.2:5", "[::3]:5"];
        assert_eq!(order(addresses(&found).into_iter()), addresses(&expected));
        let many = (1..=99).map(|n| SocketAddr::from(([10, 0, 0, n], 5)));
        assert_eq!(order(many).len(), ADDRESSES_MAX);
    }

    #[test]
    fn an_address_that_refuses_is_left_at_once_and_each_is_named_where_all_do() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            // With an hour between them, only its failure can lead to the next.
            let hours = Race { stagger: Duration::from_secs(3600), address: Duration::from_secs(60) };
            let stream =
                race(addresses(&["127.0.0.2:1", &format!("127.0.0.1:{port}")]), hours).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap().port(), port);
            let error = race(addresses(&["127.0.0.2:1", "127.0.0.3:1"]), hours).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            let text = error.to_string();
            assert!(text.contains("127.0.0.2: ") && text.contains("127.0.0.3: "), "{text}");
        });
    }
}
