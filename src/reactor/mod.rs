//! How messages go out: one thread, one poll, many sockets.
//!
//! It holds no decision: [`Relay`] decides, the simulator runs the same. This room only moves bytes, wakes
//! and sleeps.
//!
//! A turn: sleep until something comes; take the mailbox; hand each delivery to the relay; look at the first sockets
//! that are readable or writable; run timers; write to whoever got something, one write each; send what the
//! relay wants elsewhere. Sockets are registered once, edge-triggered, for reading and writing. The work of a
//! turn does not depend on how many clients there are, nor on how many come, go or talk at once: what is more than a
//! turn's part waits for the next, behind the messages that came meanwhile.

mod socket;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};

use crate::clock::Clock;
use crate::core::counters::{ReactorCounters, TRANSPORT_LABELS, add, transport_index};
use crate::core::gate::Gate;
use crate::core::handover::{Command, Delivery, SessionRequest};
use crate::core::mailbox::Mailbox;
use crate::core::relay::{Pressure, Relay};
use crate::core::slack::Slack;
use crate::limits::Limits;
use crate::sys::ThreadCache;

pub use socket::Socket;

const WAKE: Token = Token(usize::MAX);

/// Sockets looked at in a turn, before the mailbox is looked at again: 16 that end take half a millisecond, and no
/// message is to wait longer for them. One call of epoll for so many is a twentieth of what they cost.
const EVENTS: usize = 16;

/// The buffer that all of a reactor's reads share, in bytes.
const READ_BYTES: usize = 16 << 10;

/// The longest sleep. Nothing waits for its end: it only keeps times far from the ends of their range.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);

/// What a reactor needs from the other rooms.
pub struct Links {
    /// The ingest's mailbox, for references given back.
    pub commands: Arc<Mailbox<Command<Socket>>>,
    /// Takes requests of WebSocket clients to the door; must not block.
    pub requests: Box<dyn Fn(SessionRequest) + Send>,
    /// How full the budget is.
    pub gate: Arc<Gate>,
    /// How long reading has been paused; asked once per turn.
    pub pressure: Box<dyn Fn() -> Pressure + Send>,
    /// Clients of each reactor: the door adds those it sends, the reactor takes off those that are gone.
    pub load: Arc<[AtomicUsize]>,
    /// Called after clients were taken off `load`, once per turn; must not block.
    pub client_left: Box<dyn Fn() + Send>,
    /// The process's clock.
    pub clock: Clock,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Links")
    }
}

/// A reactor before its thread runs: its mailbox can be given out already.
#[derive(Debug)]
pub struct Reactor {
    number: u16,
    poll: Poll,
    waker: Arc<Waker>,
    inbox: Arc<Mailbox<Delivery<Socket>>>,
    counters: Arc<ReactorCounters>,
}

impl Reactor {
    /// The `number`-th reactor, with a poll of its own.
    pub fn new(number: u16) -> io::Result<Reactor> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        let of_mailbox = Arc::clone(&waker);
        let inbox = Arc::new(Mailbox::new(move || wake(&of_mailbox)));
        Ok(Reactor { number, poll, waker, inbox, counters: Arc::default() })
    }

    /// Makes the reactor take a turn: for changes of the gate, which it looks at in every turn.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let waker = Arc::clone(&self.waker);
        move || wake(&waker)
    }

    /// Where its deliveries go.
    pub fn inbox(&self) -> Arc<Mailbox<Delivery<Socket>>> {
        Arc::clone(&self.inbox)
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<ReactorCounters> {
        Arc::clone(&self.counters)
    }

    /// Starts its thread, which runs until the process ends.
    pub fn start(self, limits: Limits, links: Links) -> io::Result<JoinHandle<()>> {
        let name = format!("reactor-{}", self.number);
        let cache = ThreadCache::new(&limits);
        let relay = Relay::new(self.number, limits, links.clock.start_unix(), Arc::clone(&self.counters));
        let mut running = Running {
            number: self.number,
            poll: self.poll,
            inbox: self.inbox,
            counters: self.counters,
            relay,
            links,
            cache,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        };
        std::thread::Builder::new().name(name).spawn(move || running.run())
    }
}

fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        tracing::error!(%error, "a reactor cannot be woken");
    }
}

struct Running {
    number: u16,
    poll: Poll,
    inbox: Arc<Mailbox<Delivery<Socket>>>,
    counters: Arc<ReactorCounters>,
    relay: Relay<Socket>,
    links: Links,
    cache: ThreadCache,
    buffer: Box<[u8]>,
}

impl Running {
    fn run(&mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut deliveries = Vec::new();
        loop {
            let sleep = self.sleep();
            if let Err(error) = self.poll.poll(&mut events, Some(sleep))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, reactor = self.number, "epoll failed");
                std::thread::sleep(Duration::from_millis(10));
            }
            self.turn(&events, &mut deliveries);
        }
    }

    fn sleep(&self) -> Duration {
        let now = self.links.clock.now();
        self.relay.sleep(now, self.cache.due_in(now).map_or(SLEEP_MAX, |due| SLEEP_MAX.min(due)))
    }

    fn turn(&mut self, events: &Events, deliveries: &mut Vec<Delivery<Socket>>) {
        let now = self.links.clock.now();
        add(&self.counters.turns, 1);
        self.inbox.drain(deliveries);
        for delivery in deliveries.drain(..) {
            self.relay.deliver(delivery, now);
        }
        deliveries.give_back();
        self.cache.passed(self.relay.effects.arrived.len(), now);
        self.register_arrived();
        for event in events {
            if event.token() == WAKE {
                continue;
            }
            let index = event.token().0 as u32;
            if event.is_writable() {
                self.relay.writable(index);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                let hung_up = event.is_read_closed() || event.is_error();
                self.relay.readable(index, hung_up, &mut self.buffer, now);
            }
        }
        self.relay.read_on(&mut self.buffer, now);
        self.relay.set_started_unix(self.links.clock.start_unix_now());
        self.relay.tick(now);
        self.relay.flush(&mut || self.links.clock.now());
        self.relay.relieve(&self.links.gate, (self.links.pressure)(), now);
        self.relay.publish_gauges();
        self.send_effects(now);
        self.cache.settle(now);
    }

    /// Registers newcomers. Their first bytes may be there already: an edge that came before the
    /// registration is reported with it.
    fn register_arrived(&mut self) {
        for index in std::mem::take(&mut self.relay.effects.arrived) {
            let Some(socket) = self.relay.socket(index) else { continue };
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = self.poll.registry().register(socket, Token(index as usize), interest) {
                tracing::warn!(%error, "a client's socket cannot be watched; its connection ends");
                self.relay.unwatchable(index);
            }
        }
    }

    fn send_effects(&mut self, now: Duration) {
        let effects = &mut self.relay.effects;
        if !effects.released.is_empty() {
            self.links.commands.push(Command::Release(std::mem::take(&mut effects.released)));
        }
        let departed = std::mem::take(&mut effects.departed);
        self.cache.passed(departed, now);
        if departed > 0
            && let Some(load) = self.links.load.get(usize::from(self.number))
        {
            load.fetch_sub(departed, Ordering::Relaxed);
            (self.links.client_left)();
        }
        for ended in effects.ended.drain(..) {
            tracing::debug!(
                request = &*ended.request,
                client = %ended.client,
                transport = TRANSPORT_LABELS[transport_index(ended.transport)],
                reason = ended.reason.label(),
                seconds = now.saturating_sub(ended.since).as_secs_f64(),
                "client ended"
            );
        }
        effects.ended.give_back();
        for request in effects.requests.drain(..) {
            (self.links.requests)(request);
        }
        effects.requests.give_back();
    }
}
