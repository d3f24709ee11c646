//! From a request to a reactor: the checks, the hold, and the attachment.
//!
//! Invariants:
//! - A head goes out only after Redis confirmed the system channels and the stream, and the reactor writes
//!   it. The token is looked up once more after that confirmation: a revocation either shows in the second
//!   look-up, or its kill comes on a channel that is already held.
//! - Whoever leaves at any moment leaves nothing behind: a [`Ticket`] that is dropped is cancelled, a
//!   [`Seat`] is given back, and both live in the request's future until they go to the ingest.
//!
//! Bound: everything together takes `DOOR_TIMEOUT`. Tested in `door/tests.rs` with an ingest that the test
//! plays.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::header::HeaderMap;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::auth::{self, Token};
use super::errors::Refusal;
use super::headers::{self, Peer, RequestId};
use super::trace::{Part, Trace};
use super::{Door, Socket};
use crate::core::event::Transport;
use crate::core::handover::{ClientId, Command, HoldError, NewClient, NewSubscription, Reply, Viewer};
use crate::core::mailbox::Mailbox;
use crate::core::session::{RequestError, StreamRequest};
use crate::core::slack::Slack;
use crate::core::stream::{Channel, Param, Scopes, Stream, StreamKind};

/// Asks the ingest to hold channels, and names the tickets.
pub(crate) struct Holds<S> {
    commands: Arc<Mailbox<Command<S>>>,
    last: AtomicU64,
}

impl<S> Holds<S> {
    pub(crate) fn new(commands: Arc<Mailbox<Command<S>>>) -> Holds<S> {
        Holds { commands, last: AtomicU64::new(0) }
    }

    /// Holds the channels: subscribed, their presence keys set. Dropped while it waits, it cancels.
    pub(crate) async fn hold(
        self: &Arc<Self>,
        channels: SmallVec<[Channel; 4]>,
    ) -> Result<Ticket<S>, HoldError> {
        self.ask(|ticket, reply| Command::Hold { ticket, channels, reply }).await
    }

    /// Subscribes a client that is there already. It is registered at once; this waits until all is confirmed.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        client: ClientId,
        subscription: NewSubscription,
    ) -> Result<(), HoldError> {
        let ask = |ticket, reply| Command::Subscribe { ticket, client, subscription, reply };
        // Nobody holds anything by this ticket, and with its answer it has ended.
        self.ask(ask).await.map(|mut ticket| ticket.holds = None)
    }

    async fn ask(
        self: &Arc<Self>,
        command: impl FnOnce(crate::core::handover::Ticket, Reply) -> Command<S>,
    ) -> Result<Ticket<S>, HoldError> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (answer, answered) = oneshot::channel();
        let reply = Box::new(move |result| {
            // The one who asked may have left.
            let _ = answer.send(result);
        });
        let ticket = Ticket { number, holds: Some(Arc::clone(self)) };
        self.commands.push(command(number, reply));
        match answered.await {
            Ok(Ok(())) => Ok(ticket),
            Ok(Err(error)) => Err(error),
            // The ingest is gone: the process ends.
            Err(_) => Err(HoldError::RedisAway),
        }
    }
}

/// Channels held for somebody who has not arrived yet. Cancelled when dropped.
pub(crate) struct Ticket<S> {
    number: crate::core::handover::Ticket,
    holds: Option<Arc<Holds<S>>>,
}

impl<S> Ticket<S> {
    /// Hands what is held over to a newcomer. `refused` is called, from another thread, if a kill or
    /// the loss of Redis came first.
    pub(crate) fn attach(
        mut self,
        reactor: u16,
        client: Box<NewClient<S>>,
        refused: impl FnOnce(HoldError, Box<NewClient<S>>) + Send + 'static,
    ) {
        if let Some(holds) = self.holds.take() {
            let refused = Box::new(refused);
            holds.commands.push(Command::Attach { ticket: self.number, reactor, client, refused });
        }
    }
}

impl<S> Drop for Ticket<S> {
    fn drop(&mut self) {
        if let Some(holds) = self.holds.take() {
            holds.commands.push(Command::Cancel(self.number));
        }
    }
}

/// A place among the clients in all, from the request until the reactor counts the client.
pub(crate) struct Seat {
    coming: Arc<AtomicUsize>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.coming.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The clients in all: those on the reactors and those on their way there.
pub(crate) struct Seats {
    clients: Arc<[AtomicUsize]>,
    coming: Arc<AtomicUsize>,
    max: usize,
}

impl Seats {
    /// At most `max` clients, 0 for no bound.
    pub(crate) fn new(clients: Arc<[AtomicUsize]>, max: usize) -> Seats {
        Seats { clients, coming: Arc::new(AtomicUsize::new(0)), max }
    }

    pub(crate) fn coming(&self) -> usize {
        self.coming.load(Ordering::Relaxed)
    }

    /// Clients on the reactors.
    pub(crate) fn seated(&self) -> usize {
        self.clients.iter().map(|clients| clients.load(Ordering::Relaxed)).sum()
    }

    fn take(&self) -> Result<Seat, Refusal> {
        if self.max != 0 && self.seated() + self.coming() >= self.max {
            return Err(Refusal::FULL);
        }
        self.coming.fetch_add(1, Ordering::Relaxed);
        Ok(Seat { coming: Arc::clone(&self.coming) })
    }

    /// The least loaded reactor, with one more client on it: many who arrive at once are spread.
    fn place(&self) -> u16 {
        let least =
            self.clients.iter().enumerate().min_by_key(|(_, clients)| clients.load(Ordering::Relaxed));
        let Some((index, clients)) = least else { return 0 };
        clients.fetch_add(1, Ordering::Relaxed);
        u16::try_from(index).unwrap_or(u16::MAX)
    }

    fn leave(clients: &[AtomicUsize], reactor: u16) {
        if let Some(clients) = clients.get(usize::from(reactor)) {
            clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Clients by address (of IPv6, by network). An address's clients share an `Arc` that they keep for life; its
/// holders are the count.
pub(crate) struct Addresses {
    max: usize,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    holders: HashMap<IpAddr, Arc<()>>,
    sweep_at: usize,
}

impl Known {
    fn sweep(&mut self) {
        self.holders.retain(|_, holder| Arc::strong_count(holder) > 1);
        self.holders.give_back();
        self.sweep_at = 2 * self.holders.len() + 1024;
    }
}

impl Addresses {
    /// At most `max` clients of one address, 0 for no bound.
    pub(crate) fn new(max: usize) -> Addresses {
        Addresses { max, known: Mutex::default() }
    }

    fn take(&self, address: impl FnOnce() -> Option<IpAddr>) -> Result<Option<Arc<()>>, Refusal> {
        if self.max == 0 {
            return Ok(None);
        }
        let Some(address) = address().map(subscriber) else { return Ok(None) };
        let mut known = self.lock();
        if known.holders.len() >= known.sweep_at {
            known.sweep();
        }
        let holder = known.holders.entry(address).or_default();
        // One is the table's.
        if Arc::strong_count(holder) > self.max {
            Err(Refusal::ADDRESS)
        } else {
            Ok(Some(Arc::clone(holder)))
        }
    }

    /// Forgets addresses without a client.
    pub(crate) fn give_back(&self) {
        self.lock().sweep();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one address: of IPv6 the first 64 bits, since the rest is its owner's to choose.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & (u128::MAX << 64)).into()),
        v4 => v4,
    }
}

/// What of a request decides about its stream.
pub(crate) struct Asked<'a> {
    pub(crate) id: &'a RequestId,
    pub(crate) peer: Peer,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: &'a str,
    pub(crate) trace: &'a Trace,
}

/// A request that passed every check before Redis is asked.
pub(crate) struct Admitted<'a> {
    token: Option<Cow<'a, str>>,
    known: Token,
    seat: Seat,
    address: Option<Arc<()>>,
}

/// A client that has passed everything: what is missing is its socket.
pub(crate) struct Handover<S> {
    ticket: Ticket<S>,
    seat: Seat,
    id: RequestId,
    transport: Transport,
    known: Token,
    head: Bytes,
    subscription: Option<NewSubscription>,
    address: Option<Arc<()>>,
    trace: Trace,
}

impl<S: Socket> Door<S> {
    /// Takes a seat and looks the token up.
    pub(crate) async fn admit<'a>(&self, asked: &Asked<'a>) -> Result<Admitted<'a>, Refusal> {
        let (token, known) = match &self.directory {
            Some(_) => (Some(auth::token(asked.headers, asked.query)?), None),
            None => (None, Some(NOBODY)),
        };
        let seat = self.seats.take()?;
        let address =
            self.addresses.take(|| headers::client_address(asked.peer, asked.headers, &self.trusted))?;
        let known = match (known, &token) {
            (Some(known), _) => known,
            (None, Some(token)) => {
                asked.trace.enter(Part::Token);
                self.look_up(token).await?
            }
            (None, None) => return Err(Refusal::MISSING_TOKEN),
        };
        tracing::debug!(request = asked.id.as_str(), account = known.viewer.account, "identified");
        Ok(Admitted { token, known, seat, address })
    }

    /// Which stream is meant, and whether this viewer may have it: scope first, then parameters, then a
    /// list's owner.
    pub(crate) async fn stream(&self, request: &StreamRequest, viewer: Viewer) -> Result<Stream, Refusal> {
        // An unknown name needs what the public streams need, and is then unknown.
        if !viewer.scopes.allow(request.kind().unwrap_or(StreamKind::Public)) {
            return Err(RequestError::Scope.into());
        }
        let stream = request.resolve(self.limits.param_bytes_max, self.limits.local_only_on_public)?;
        self.check_owner(&stream, viewer).await?;
        Ok(stream)
    }

    /// Whether the viewer may have that stream, as far as accounts decide.
    pub(crate) async fn check_owner(&self, stream: &Stream, viewer: Viewer) -> Result<(), Refusal> {
        match &self.directory {
            None if is_personal(stream.kind) => Err(Refusal::NO_ACCOUNTS),
            Some(directory) => match stream.param {
                Param::List(list) => auth::check_list(&**directory, viewer.account, list).await,
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Waits for Redis, and looks the token up once more.
    pub(crate) async fn hand_over(
        &self,
        asked: &Asked<'_>,
        admitted: Admitted<'_>,
        stream: Option<Stream>,
        transport: Transport,
        head: Bytes,
    ) -> Result<Handover<S>, Refusal> {
        let Admitted { token, mut known, seat, address } = admitted;
        let viewer = known.viewer;
        let mut channels = SmallVec::new();
        if viewer.token != 0 {
            channels.push(Channel::AccessToken(viewer.token));
        }
        if viewer.account != 0 {
            channels.push(Channel::System(viewer.account));
        }
        let subscription = stream.map(|mut stream| {
            if transport != Transport::WebSocket {
                // Only WebSocket messages carry the stream's name.
                stream.spelling = None;
            }
            let channels = stream.channels(viewer.account, viewer.scopes.notifications());
            NewSubscription { stream, channels, account: viewer.account }
        });
        if let Some(subscription) = &subscription {
            channels.extend(subscription.channels.iter().cloned());
        }
        asked.trace.enter(Part::Redis);
        let ticket = self.holds.hold(channels).await?;
        tracing::debug!(request = asked.id.as_str(), ticket = ticket.number, "confirmed by Redis");
        if let Some(token) = token {
            asked.trace.enter(Part::TokenAgain);
            known = self.look_up(&token).await?;
            if known.viewer != viewer {
                // Its scopes or its owner changed in between: what was checked is no longer true.
                return Err(Refusal::INVALID_TOKEN);
            }
        }
        let (id, trace) = (asked.id.clone(), asked.trace.clone());
        trace.enter(Part::HandOver);
        Ok(Handover { ticket, seat, id, transport, known, head, subscription, address, trace })
    }

    async fn look_up(&self, token: &str) -> Result<Token, Refusal> {
        match &self.directory {
            Some(directory) => auth::look_up(&**directory, token).await,
            None => Ok(NOBODY),
        }
    }

    /// Gives that everything before a head within `DOOR_TIMEOUT`.
    pub(crate) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let deadline = Instant::now() + self.limits.door_timeout;
        tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(Refusal::TIMEOUT))
    }

    /// Sends the client on to the least loaded reactor.
    pub(crate) fn send_on(&self, handover: Handover<S>, socket: S, read_ahead: Bytes) {
        let Handover { ticket, seat, id, transport, known, head, subscription, address, trace } = handover;
        let is_websocket = transport == Transport::WebSocket;
        trace.answer(if is_websocket { 101 } else { 200 });
        let client = Box::new(NewClient {
            socket,
            transport,
            viewer: known.viewer,
            expires_at: known.expires_at,
            // It is let go when the reactor has written it: that is when the handshake ends.
            head: trace.carried_by(head),
            read_ahead: if is_websocket { read_ahead } else { Bytes::new() },
            subscription,
            address,
            // Its end will be a line of the log too.
            request: tracing::enabled!(tracing::Level::DEBUG).then(|| id.as_str().into()),
        });
        let reactor = self.seats.place();
        drop(seat);
        tracing::debug!(request = id.as_str(), ticket = ticket.number, reactor, ?transport, "handed over");
        let clients = Arc::clone(&self.seats.clients);
        let counters = Arc::clone(&self.counters);
        ticket.attach(reactor, client, move |error, mut client| {
            Seats::leave(&clients, reactor);
            let refusal = Refusal::from(error);
            counters.count(refusal.reason);
            trace.refuse(&refusal);
            tracing::debug!(request = id.as_str(), %error, "handover refused");
            // Nothing was written yet, so the send buffer takes it whole; it does not block.
            let _ = client.socket.write(&refusal.bytes(&id, is_websocket));
        });
    }
}

/// Whoever comes to a server without accounts.
const NOBODY: Token =
    Token { viewer: Viewer { account: 0, token: 0, scopes: Scopes::READ }, expires_at: None };

fn is_personal(kind: StreamKind) -> bool {
    matches!(kind, StreamKind::User | StreamKind::UserNotification | StreamKind::List | StreamKind::Direct)
}

impl Admitted<'_> {
    /// Whose request it is.
    pub(crate) fn viewer(&self) -> Viewer {
        self.known.viewer
    }
}
