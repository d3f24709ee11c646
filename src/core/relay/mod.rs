//! A reactor's decisions: who gets what, in which order, and who has to go.
//!
//! Pure: [`Socket`] is a trait, times come in as durations since the start, and whatever has to happen
//! elsewhere (channels to release, requests for the door) is collected in [`Effects`]. Production drives it
//! with epoll and real sockets, the simulator with seeds.
//!
//! The way of a message: [`Relay::deliver`] appends it to the log with the number of subscriptions that get
//! it and marks their clients; [`Relay::flush`] gives each marked client one vectored write of everything it
//! is owed, up to a budget; what the socket did not take stays in the log, at the client's place. A fast
//! client and a slow one run the same code.
//!
//! Work per turn: the messages that came, the clients that get them, the timers that are due. Nothing here
//! walks all clients, except when the budget is used up, Redis was lost, or the server drains.
//!
//! Invariants, checked by the simulator: a client that is open has got every message owed to it in log
//! order, once; `owed = delivered + filtered + unsubscribed + closed + pending`; an entry's count is the
//! number of clients whose place is at or before it and who get it.

mod closing;
mod lagging;
mod membership;
mod output;
mod session;
mod slow;
#[cfg(test)]
mod tests;
mod timers;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::core::client::{Client, Flags, Phase, Socket, Subscription};
use crate::core::counters::{CloseReason, ReactorCounters, add};
use crate::core::event::{Event, Transport, Verdict};
use crate::core::handover::{ClientId, Delivery, NewClient, SessionRequest};
use crate::core::log::Log;
use crate::core::lowest::LowestSlab;
use crate::core::millis;
use crate::core::slack::{Removals, Slack};
use crate::core::stream::{Channel, Id, Stream};
use crate::core::table::{Found, SYSTEM, Table};
use crate::core::talkers::{self, Talkers};
use crate::core::trail::Step;
use crate::core::wheel::Wheel;
use crate::limits::Limits;

pub use slow::Pressure;

use timers::{Timer, timer_key};

/// Bytes that one client is given in one turn at most: it goes on in the next, behind the others.
const TURN_BYTES_MAX: usize = 256 << 10;

/// Pieces of one vectored write at most.
const TURN_PIECES_MAX: usize = 64;

/// Reads per client and turn at most.
const TURN_READS_MAX: usize = 4;

/// Clients that are answered in one turn at most (response heads, pongs, errors): a quarter of a millisecond of writes.
/// A crowd that comes in must not stand between a message and those who wait for it.
const TURN_ANSWERS_MAX: usize = 32;

/// What has to happen outside.
#[derive(Debug, Default)]
pub struct Effects {
    /// References to give back to the ingest, with the account whose view a filtered channel was.
    pub released: Vec<(Channel, Id)>,
    /// Questions for the door.
    pub requests: Vec<SessionRequest>,
    /// Slab places of new clients, to be registered with the poll.
    pub arrived: Vec<u32>,
    /// How many clients have gone.
    pub departed: usize,
    /// Connections that ended, of those whose end is to be told.
    pub ended: Vec<Ended>,
}

/// The end of a connection, for the log.
#[derive(Debug)]
pub struct Ended {
    /// Its place.
    pub client: ClientId,
    /// The id of the request that opened it.
    pub request: Box<str>,
    /// How it was connected.
    pub transport: Transport,
    /// Why it ended.
    pub reason: CloseReason,
    /// When it came, since the start.
    pub since: Duration,
}

/// A client as the simulator sees it.
#[doc(hidden)]
#[derive(Debug)]
pub struct Inspection<'a, S> {
    /// Its socket.
    pub socket: &'a S,
    /// Distinguishes it from others that had the same place.
    pub generation: u32,
    /// Whether it gets messages.
    pub open: bool,
    /// Its streams.
    pub streams: Vec<Stream>,
}

/// A reactor's clients, table, log and timers.
#[derive(Debug)]
pub struct Relay<S> {
    reactor: u16,
    limits: Limits,
    /// The start, in time since 1970: tokens expire by the wall clock.
    started_unix: Duration,
    clients: LowestSlab<Client<S>>,
    table: Table,
    log: Log,
    wheel: Wheel,
    counters: Arc<ReactorCounters>,
    next_generation: u32,
    /// Clients with messages to write in this turn.
    dirty: Vec<u32>,
    /// Clients with something else to write, when it is their turn.
    answers: VecDeque<u32>,
    /// Clients who ran out of their budget, not of their socket's room.
    ready: Vec<u32>,
    /// Clients whose socket may have more to read.
    read_more: Vec<u32>,
    /// Clients whose socket is full, or was and they have output yet.
    lagging: Vec<u32>,
    /// Payload bytes of events that are held for half-written frames of given-up messages.
    half_written_bytes: u64,
    looks: slow::Looks,
    /// What the door counts the clients of an address by, where those are limited.
    addresses: HashMap<u32, Arc<()>>,
    /// When the tokens of clients expire, of those that do: in time since 1970.
    expiries: HashMap<u32, Duration>,
    /// Who said something of late.
    talkers: Talkers,
    /// A timer looks after them.
    watches_talkers: bool,
    /// The opening request's id and time of those whose end is to be told: empty unless the log is at debug.
    requests: HashMap<u32, (Box<str>, Duration)>,
    /// Redis is lost since.
    gap_since: Option<Duration>,
    draining: bool,
    /// A heartbeat that ended its wait: reused for every client.
    fired: Vec<u64>,
    scratch: output::Scratch,
    removals: Removals,
    /// What has to happen outside; the driver takes it after each call.
    pub effects: Effects,
}

impl<S: Socket> Relay<S> {
    /// An empty relay, the `reactor`-th. `started_unix` is the time since 1970 at which the clock of all
    /// other times here stood at zero.
    pub fn new(
        reactor: u16,
        limits: Limits,
        started_unix: Duration,
        counters: Arc<ReactorCounters>,
    ) -> Relay<S> {
        Relay {
            reactor,
            limits,
            started_unix,
            clients: LowestSlab::default(),
            table: Table::default(),
            log: Log::default(),
            wheel: Wheel::default(),
            counters,
            next_generation: 1,
            dirty: Vec::new(),
            answers: VecDeque::new(),
            ready: Vec::new(),
            read_more: Vec::new(),
            lagging: Vec::new(),
            half_written_bytes: 0,
            looks: slow::Looks::default(),
            addresses: HashMap::new(),
            expiries: HashMap::new(),
            talkers: Talkers::default(),
            watches_talkers: false,
            requests: HashMap::new(),
            gap_since: None,
            draining: false,
            fired: Vec::new(),
            scratch: output::Scratch::default(),
            removals: Removals::default(),
            effects: Effects::default(),
        }
    }

    /// Takes what the ingest, the audience stage or the door sent.
    pub fn deliver(&mut self, delivery: Delivery<S>, now: Duration) {
        match delivery {
            Delivery::Event(event) => self.event(event, now),
            Delivery::Kill(channel) => self.kill(&channel, now),
            Delivery::Client(newcomer, seq) => self.arrive(*newcomer, seq, now),
            Delivery::Subscription(id, subscription, seq) => self.subscribed(id, subscription, seq),
            Delivery::Answer(id, answer) => self.answered(id, answer),
            Delivery::Refused(id, stream, answer) => self.refused(id, &stream, answer),
            Delivery::Gap(_) => self.gap(now),
            Delivery::Regained => self.regained(now),
            Delivery::ChannelGap(channel) => self.channel_gap(&channel, now),
            Delivery::Drain(spread_ms) => self.drain(Duration::from_millis(spread_ms), now),
            Delivery::Probe(probe) => self.probe(probe, now),
        }
    }

    fn event(&mut self, event: Arc<Event>, now: Duration) {
        let clients = &self.clients;
        let found = self.table.find(event.channel(), |member| membership::channel_of(clients, member));
        let Some(found) = found else { return event.mark(Step::Done) };
        let seq = event.position().seq;
        let asks = event.needs_audience();
        let place = self.log.next_place();
        let (mut owed, mut delivered_to) = (0u64, 0u32);
        let mut offer = |client: &mut Client<S>, index: u32, sub: u16| {
            let Some(subscription) = client.subs.get(usize::from(sub)) else { return };
            if subscription.live_after >= seq || client.phase != Phase::Open {
                return;
            }
            owed += 1;
            if asks && let Verdict::Withheld(reason) = event.verdict(subscription.stream(), client.account) {
                self.counters.message_filtered(reason);
                return;
            }
            delivered_to += 1;
            let begins = client.owed == 0;
            if let Some(lag) = client.lag_mut() {
                lag.bytes += event.payload().len() as u64;
                if begins {
                    lag.oldest_ms = millis(event.position().read_at);
                }
            }
            if begins {
                client.place = place;
                client.sub_at = 0;
                // Who reads nothing gains no time by giving up what it is owed and asking for it again.
                if !client.flags.has(Flags::BLOCKED) {
                    client.progress_ms = millis(now);
                }
            }
            client.owed += 1;
            if !client.flags.has(Flags::BLOCKED) && client.flags.set(Flags::DIRTY) {
                self.dirty.push(index);
            }
        };
        for member in found.members() {
            if let Some(client) = self.clients.get_mut(member.client as usize) {
                offer(client, member.client, member.sub);
            }
        }
        add(&self.counters.owed, owed);
        if delivered_to > 0 {
            add(&self.counters.pending, u64::from(delivered_to));
            self.log.append(event, delivered_to);
        } else {
            event.mark(Step::Done);
        }
    }

    fn kill(&mut self, channel: &Channel, now: Duration) {
        for index in self.subscribers(channel) {
            // What was published before the kill goes out first, if the socket takes it.
            self.write(index, now);
            self.close(index, CloseReason::Killed, now);
        }
    }

    /// The clients of that channel; one that has several subscriptions of it comes as often.
    fn subscribers(&self, channel: &Channel) -> Vec<u32> {
        let found = self.table.find(channel, |member| membership::channel_of(&self.clients, member));
        found.into_iter().flat_map(Found::members).map(|member| member.client).collect()
    }

    fn arrive(&mut self, newcomer: NewClient<S>, seq: u64, now: Duration) {
        let NewClient {
            socket,
            transport,
            viewer,
            expires_at,
            head,
            read_ahead,
            subscription,
            address,
            request,
        } = newcomer;
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        let index = self.clients.insert(Client {
            socket,
            account: viewer.account,
            token: viewer.token,
            subs: Default::default(),
            place: 0,
            extra: None,
            owed: 0,
            offset: 0,
            progress_ms: millis(now),
            generation,
            system_slots: [0; 2],
            sub_at: 0,
            scopes: viewer.scopes,
            transport,
            phase: Phase::Open,
            flags: Flags::default(),
        });
        let system = [viewer.token, viewer.account].iter().filter(|id| **id != 0).count() as u64;
        self.counters.client_opened(transport, system);
        if let Some(address) = address {
            self.addresses.insert(index, address);
        }
        if let Some(request) = request {
            self.requests.insert(index, (request, now));
        }
        self.join_system(index);
        if let Some(new) = subscription {
            self.join(index, new, seq);
        }
        let interval = self.heartbeat(transport);
        self.wheel.insert(now + interval, timer_key(Timer::Keepalive, index, generation));
        if let Some(expires_at) = expires_at {
            self.expiries.insert(index, Duration::from_secs(expires_at));
            self.await_expiry(index, now);
        }
        self.effects.arrived.push(index);
        // The client stands in the table: now it may be told so.
        self.send(index, head);
        if !read_ahead.is_empty() && transport == Transport::WebSocket {
            let mut bytes = read_ahead.to_vec();
            self.decode(index, &mut bytes, now);
        }
        if self.gap_since.is_some() {
            self.mark_gapped(index);
        } else if self.draining {
            self.close(index, CloseReason::Drain, now);
        }
    }

    /// The socket is readable, or was hung up by its peer. `buffer` is scratch.
    pub fn readable(&mut self, index: u32, hung_up: bool, buffer: &mut [u8], now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if hung_up {
            client.flags.set(Flags::HUNG_UP);
        }
        for _ in 0..TURN_READS_MAX {
            let Some(client) = self.clients.get_mut(index as usize) else { return };
            match client.socket.read(buffer) {
                Ok(0) => return self.left(index),
                Ok(read) => {
                    let drained = read < buffer.len() && !client.flags.has(Flags::HUNG_UP);
                    let speaks = client.transport == Transport::WebSocket;
                    if speaks && matches!(client.phase, Phase::Open | Phase::Gapped) {
                        self.decode(index, &mut buffer[..read], now);
                    } else {
                        self.ignore(index, now);
                    }
                    if drained {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return self.remove(index, CloseReason::SocketError),
            }
        }
        if let Some(client) = self.clients.get_mut(index as usize)
            && client.flags.set(Flags::READ_MORE)
        {
            self.read_more.push(index);
        }
    }

    /// The socket is writable again.
    pub fn writable(&mut self, index: u32) {
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.flags.clear(Flags::BLOCKED);
            if !client.has_output() {
                self.unlist_if_idle(index);
            } else if client.flags.set(Flags::DIRTY) {
                self.dirty.push(index);
            }
        }
    }

    /// Writes to everyone who has a message to get, then to as many of those who are to be answered as a turn has
    /// room for: one write per client.
    ///
    /// `clock` is asked before each write, since a thousand writes take milliseconds and each delivery's
    /// latency is measured.
    pub fn flush(&mut self, clock: &mut dyn FnMut() -> Duration) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            if let Some(client) = self.clients.get_mut(index as usize) {
                client.flags.clear(Flags::DIRTY);
                self.write(index, clock());
            }
        }
        // Writes mark nobody dirty; should one ever, it goes first in the next turn.
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
        for _ in 0..TURN_ANSWERS_MAX {
            let Some(index) = self.answers.pop_front() else { break };
            if let Some(client) = self.clients.get_mut(index as usize) {
                client.flags.clear(Flags::ANSWERED);
                self.write(index, clock());
            }
        }
        self.answers.give_back();
        // Who ran out of budget comes first in the next turn.
        for index in std::mem::take(&mut self.ready) {
            if let Some(client) = self.clients.get_mut(index as usize)
                && client.flags.set(Flags::DIRTY)
            {
                self.dirty.push(index);
            }
        }
    }

    /// Goes on with clients whose budget of reads was used up.
    pub fn read_on(&mut self, buffer: &mut [u8], now: Duration) {
        for index in std::mem::take(&mut self.read_more) {
            if let Some(client) = self.clients.get_mut(index as usize) {
                client.flags.clear(Flags::READ_MORE);
                self.readable(index, false, buffer, now);
            }
        }
    }

    /// How long the driver may sleep when nothing comes: not at all while somebody ran out of budget.
    pub fn sleep(&self, now: Duration, longest: Duration) -> Duration {
        let longest = self.looks.next_at().map_or(longest, |at| longest.min(at.saturating_sub(now)));
        if self.dirty.is_empty() && self.answers.is_empty() && self.read_more.is_empty() {
            self.wheel.sleep(now, longest)
        } else {
            Duration::ZERO
        }
    }

    /// The client's socket cannot be watched: the connection ends.
    pub fn unwatchable(&mut self, index: u32) {
        self.remove(index, CloseReason::ServerError);
    }

    /// The client's socket, for the driver to register.
    pub fn socket(&mut self, index: u32) -> Option<&mut S> {
        Some(&mut self.clients.get_mut(index as usize)?.socket)
    }

    /// What the simulator compares its model with.
    #[doc(hidden)]
    pub fn inspect(&self, index: u32) -> Option<Inspection<'_, S>> {
        let client = self.clients.get(index as usize)?;
        let streams = client.subs.iter().map(|sub| sub.stream().clone()).collect();
        let (generation, open) = (client.generation, client.phase == Phase::Open);
        Some(Inspection { socket: &client.socket, generation, open, streams })
    }

    /// Clients here, closing ones included.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there is no client.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    fn get(&mut self, id: ClientId) -> Option<&mut Client<S>> {
        self.clients.get_mut(id.index as usize).filter(|client| client.generation == id.generation)
    }

    fn join_system(&mut self, index: u32) {
        let channels = match self.clients.get(index as usize) {
            Some(client) => client.system_channels(),
            None => return,
        };
        for (leg, channel) in channels.into_iter().enumerate() {
            if let Some(channel) = channel {
                self.enter(index, &channel, SYSTEM, leg as u8);
            }
        }
    }

    fn join(&mut self, index: u32, new: crate::core::handover::NewSubscription, seq: u64) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let sub = client.subs.len() as u16;
        let transport = client.transport;
        self.counters.subscription_opened(transport, new.stream.kind);
        client.subs.push(Subscription::new(new.stream, seq));
        for (leg, channel) in (0..).zip(&new.channels) {
            self.enter(index, channel, sub, leg);
        }
    }
}

/// How long ago that was, in milliseconds; 0 if it is yet to come, as a moment noted later in the turn is.
fn since_ms(moment_ms: u32, now: Duration) -> u32 {
    let elapsed = millis(now).wrapping_sub(moment_ms).cast_signed();
    u32::try_from(elapsed).unwrap_or(0)
}
