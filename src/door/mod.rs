//! How clients come in: HTTP, tokens, and the way to a reactor.
//!
//! One current-thread tokio runtime. hyper reads a request; `routes` answers what is not a stream at
//! once; a stream's request is checked, its channels are held, and its socket is taken out of hyper and
//! handed over, with the response head that the reactor will write. From then on no task, no buffer and no
//! timer of this room belongs to that client.
//!
//! Bounds, each in [`crate::limits`]: connections that are not yet clients, the size of a request's head and
//! the time for it, the time a stream's request may take, clients in all and per address. A connection at
//! the door costs a task and hyper's buffers, about 20 KiB.
//!
//! What is logged names request ids, accounts and channels; never a query, a header or a token.
//!
//! Tested over real sockets in `door/tests.rs`, with an ingest and reactors that the tests play.

mod auth;
mod connection;
mod errors;
mod handover;
mod headers;
mod listen;
mod routes;
pub mod subscribe;
mod trace;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;

pub use auth::{Answer, Directory, DirectoryError, MemoryDirectory, Token};
pub use errors::{Reason, Refusal};
pub use headers::{Peer, TrustedProxies};
#[doc(hidden)]
pub use listen::serve_one;
pub use listen::{Address, ListenError, Listener, Origin, serve};

use crate::core::handover::Command;
use crate::core::mailbox::Mailbox;
use crate::limits::{DOOR_CONNECTIONS_MIN, Limits};

/// A client's socket as the reactors hold it: non-blocking, made from what the listener accepted. Written to
/// here only where an attachment comes back refused.
pub trait Socket:
    From<std::net::TcpStream> + From<std::os::unix::net::UnixStream> + std::io::Write + Send + 'static
{
}

impl<S> Socket for S where
    S: From<std::net::TcpStream> + From<std::os::unix::net::UnixStream> + std::io::Write + Send + 'static
{
}

/// Everything the door needs from the other rooms.
pub struct Setup<S> {
    /// The bounds.
    pub limits: Limits,
    /// Accounts; none in `--no-database` mode: everybody may have the public and hashtag streams.
    pub directory: Option<Arc<dyn Directory>>,
    /// Which peers' `X-Forwarded-For` is believed.
    pub trusted: TrustedProxies,
    /// The ingest's mailbox.
    pub commands: Arc<Mailbox<Command<S>>>,
    /// Clients of each reactor: one is added here when a client is sent there (and taken back if it is
    /// refused); the reactor subtracts it when the client is gone.
    pub clients: Arc<[AtomicUsize]>,
    /// What is not a stream.
    pub pages: Pages,
    /// Whether there are streams. False for the listener of `ADMIN_BIND`: pages alone, and 404 for the rest.
    pub streams: bool,
}

/// Pages that other rooms render.
#[derive(Clone, Default)]
pub struct Pages {
    /// Asked for every GET and HEAD whose path the door does not know itself; none is "unknown channel".
    pub source: Option<PageSource>,
    /// The demo's page at `/`.
    pub demo: Option<DemoPage>,
}

/// The demo's page.
#[derive(Clone, Debug)]
pub struct DemoPage {
    /// All of it.
    pub html: Bytes,
    /// Its `Content-Security-Policy`.
    pub security_policy: &'static str,
}

/// Finds pages by path. Called on the door's thread: it must not block.
pub type PageSource = Arc<dyn Fn(&PageRequest<'_>) -> Option<PageFuture> + Send + Sync>;

/// A page being made.
pub type PageFuture = Pin<Box<dyn Future<Output = Response<PageBody>> + Send>>;

/// Marks a page (among its extensions) that scripts of other sites may not read: it goes out without
/// `Access-Control-Allow-Origin`.
#[derive(Clone, Copy, Debug)]
pub struct SameOrigin;

/// Asked for a live page's next piece; none at its end.
pub type LivePage = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Bytes>> + Send>;

/// What follows a response's head.
pub enum PageBody {
    /// All of it; none once hyper has taken it.
    Full(Option<Bytes>),
    /// Pieces as they come, until there are no more.
    Live(LivePage),
}

impl std::fmt::Debug for PageBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PageBody::Full(bytes) => write!(f, "Full({} bytes)", bytes.as_ref().map_or(0, Bytes::len)),
            PageBody::Live(_) => f.write_str("Live"),
        }
    }
}

impl From<Bytes> for PageBody {
    fn from(bytes: Bytes) -> PageBody {
        PageBody::Full((!bytes.is_empty()).then_some(bytes))
    }
}

impl hyper::body::Body for PageBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match self.get_mut() {
            PageBody::Full(bytes) => bytes.take(),
            PageBody::Live(next) => ready!(next(context)),
        };
        Poll::Ready(piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, PageBody::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            PageBody::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            PageBody::Live(_) => SizeHint::default(),
        }
    }
}

/// What a page may depend on.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest<'a> {
    /// The path, exactly as requested.
    pub path: &'a str,
    /// The query without `?`.
    pub query: &'a str,
    /// The Accept header.
    pub accept: Option<&'a str>,
    /// Who is at the other end of the connection.
    pub peer: Peer,
    /// Whether the request has headers of a proxy (`X-Forwarded-*`, `Forwarded`, `X-Real-IP`, `Via` and their like).
    pub forwarded: bool,
}

/// The door, shared by its connections and its subscribe requests.
pub struct Door<S> {
    limits: Limits,
    directory: Option<Arc<dyn Directory>>,
    trusted: TrustedProxies,
    pages: Pages,
    streams: bool,
    holds: Arc<handover::Holds<S>>,
    seats: handover::Seats,
    addresses: handover::Addresses,
    counters: Arc<Counters>,
    /// There are as many connections at the door as may be.
    is_full: AtomicBool,
    /// A reactor's clients have left, so there may be room at a full door.
    client_left: Notify,
    #[cfg(feature = "otel")]
    arrivals: std::sync::OnceLock<crate::core::trail::Arrivals>,
}

impl<S> std::fmt::Debug for Door<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({} coming)", self.seats.coming())
    }
}

impl<S: Socket> Door<S> {
    /// A door that is not open yet: [`serve`] and [`subscribe::serve`] open it.
    pub fn new(setup: Setup<S>) -> Arc<Door<S>> {
        let Setup { limits, directory, trusted, commands, clients, pages, streams } = setup;
        Arc::new(Door {
            directory,
            trusted,
            pages,
            streams,
            holds: Arc::new(handover::Holds::new(commands)),
            seats: handover::Seats::new(clients, limits.connections_max),
            addresses: handover::Addresses::new(limits.connections_per_address_max),
            counters: Arc::new(Counters::new()),
            is_full: AtomicBool::new(false),
            client_left: Notify::new(),
            limits,
            #[cfg(feature = "otel")]
            arrivals: std::sync::OnceLock::new(),
        })
    }

    /// Has newcomers followed from when their request is read. Once.
    #[cfg(feature = "otel")]
    pub fn follow(&self, arrivals: crate::core::trail::Arrivals) {
        // The first stays.
        let _ = self.arrivals.set(arrivals);
    }

    /// What the door has counted, for metrics and status pages.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// How many connections may be at the door now: its own bound, or what the clients leave of the file descriptors.
    fn room(&self) -> usize {
        let left = self.limits.sockets_max.saturating_sub(self.seats.seated());
        self.limits.door_connections_max.min(left.max(DOOR_CONNECTIONS_MIN))
    }

    /// Tells the door that clients of a reactor have left, from the reactor's thread: the file descriptors of those
    /// clients are for newcomers who wait in the backlog.
    pub fn client_left(&self) {
        self.client_left.notify_one();
    }

    /// Gives back the memory of what clients that left had here.
    pub fn give_memory_back(&self) {
        self.addresses.give_back();
    }

    /// Clients whose request is being checked or waits for Redis.
    pub fn coming(&self) -> usize {
        self.seats.coming()
    }
}

/// What the door counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Requests whose head was read.
    pub requests: AtomicU64,
    /// Connections that are at the door now: not yet identified, idle, or waiting for their stream.
    pub at_door: AtomicUsize,
    /// Clients that left while their stream's request was waiting.
    pub left: AtomicU64,
    refused: Vec<AtomicU64>,
}

impl Counters {
    fn new() -> Counters {
        Counters { refused: Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect(), ..Counters::default() }
    }

    /// Requests and subscriptions refused for that reason.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused.get(reason as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn count(&self, reason: Reason) {
        if let Some(count) = self.refused.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
