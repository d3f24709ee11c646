//! The ingest thread: one poll over the subscriber connection and the mailbox of commands.
//!
//! A turn: do what was asked, at most [`TURN_COMMANDS`], read at most [`TURN_READS`] times or [`TURN_BYTES`], write
//! subscriptions, look at the clock, hand everything over with one push per reactor. It waits for nobody: neither
//! for the door, nor for PostgreSQL, nor for a connection to be made (a short-lived thread does that).
//!
//! The gate is asked before each message. While it is closed nothing is read, readiness is remembered, and
//! the clock that looks for a dead link stands still: Redis's answer would wait behind what we do not read.
//!
//! Bounds: what is read and not handed over is at most one turn's reading; the table's are its own.
//! Tested against a real Redis in `tests/redis_ingest`.

mod connecting;
mod probing;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use crate::clock::Clock;
use crate::core::counters::{add, set};
use crate::core::gate::Gate;
use crate::core::handover::{Command, Delivery, StageItem};
use crate::core::inbox::Inbox;
use crate::core::mailbox::Mailbox;
use crate::core::stream::Channel;
use crate::core::subscriptions::REACTORS_MAX;
#[cfg(feature = "otel")]
use crate::core::trail::Trails;
use crate::limits::Limits;
use crate::redis::Options;
use crate::redis::backoff::Backoff;
use crate::redis::link::{Filled, Heart, Link};
use crate::redis::loss::Loss;
use crate::redis::presence::{BATCH_CHANNELS, Batch, Requests};
use crate::redis::route::{Heard, Router};
use crate::redis::stats::IngestStats;
use crate::sys::ThreadCache;

use connecting::Attempt;

/// Reads in a turn, after which commands are looked at again.
pub const TURN_READS: usize = 64;
/// Bytes read in a turn, after which commands are looked at again.
pub const TURN_BYTES: usize = 256 * 1024;
/// Commands done in a turn, after which messages are read again: those of a crowd take milliseconds.
pub const TURN_COMMANDS: usize = 64;
/// Channels in one SUBSCRIBE or UNSUBSCRIBE.
pub const COMMAND_CHANNELS: usize = 1000;
/// Into so many parts the presence keys are divided for their refresh.
pub const REFRESH_SHARDS: u32 = 12;

const WAKER: Token = Token(0);
const SOCKET: Token = Token(1);

/// The ingest before its thread runs: gives out what others need to be made with.
pub struct Ingest<S> {
    poll: Poll,
    waker: Arc<Waker>,
    commands: Arc<Mailbox<Command<S>>>,
    stats: Arc<IngestStats>,
    #[cfg(feature = "otel")]
    trails: Option<Trails>,
}

impl<S> std::fmt::Debug for Ingest<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ingest")
    }
}

/// What the ingest works with.
#[derive(Debug)]
pub struct Setup<S> {
    /// Where Redis is.
    pub options: Options,
    /// Intervals and bounds.
    pub limits: Limits,
    /// Says whether reading may go on. Its `opened` is to be [`Ingest::waker`].
    pub gate: Arc<Gate>,
    /// The reactors' mailboxes by their number, at most [`REACTORS_MAX`].
    pub reactors: Vec<Arc<Mailbox<Delivery<S>>>>,
    /// The audience stage, where there is one: it gets all that filtered channels carry.
    pub stage: Option<Arc<Mailbox<StageItem>>>,
    /// The way to the presence task.
    pub presence: Requests,
    /// The process's clock.
    pub clock: Clock,
}

/// The running thread.
#[derive(Debug)]
pub struct Handle {
    thread: JoinHandle<()>,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
}

impl Handle {
    /// Ends the thread and waits for that. Tickets that wait get no answer any more.
    pub fn stop(self) {
        self.stop.store(true, SeqCst);
        wake(&self.waker);
        if self.thread.join().is_err() {
            tracing::error!("the ingest thread has panicked");
        }
    }

    /// Whether the thread has ended; without [`stop`](Self::stop) that is a panic.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

impl<S: Send + 'static> Ingest<S> {
    /// Makes the poll and the mailbox. Fails where the system gives no more file descriptors.
    pub fn new() -> io::Result<Ingest<S>> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let of_mailbox = Arc::clone(&waker);
        Ok(Ingest {
            poll,
            waker,
            commands: Arc::new(Mailbox::new(move || wake(&of_mailbox))),
            stats: Arc::default(),
            #[cfg(feature = "otel")]
            trails: None,
        })
    }

    /// Has messages followed from when they are read.
    #[cfg(feature = "otel")]
    pub fn follow(&mut self, trails: Trails) {
        self.trails = Some(trails);
    }

    /// Where commands go.
    pub fn commands(&self) -> Arc<Mailbox<Command<S>>> {
        Arc::clone(&self.commands)
    }

    /// Wakes the ingest: what the gate calls when it opens.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let waker = Arc::clone(&self.waker);
        move || wake(&waker)
    }

    /// How it goes.
    pub fn stats(&self) -> Arc<IngestStats> {
        Arc::clone(&self.stats)
    }

    /// Starts the thread. It connects by itself, and again for as long as it takes.
    pub fn start(self, setup: Setup<S>) -> io::Result<Handle> {
        if setup.reactors.len() > REACTORS_MAX {
            let text = format!("STREAMING_THREADS is {}; at most {REACTORS_MAX}", setup.reactors.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let waker = Arc::clone(&self.waker);
        let of_thread = Arc::clone(&stop);
        let thread =
            Builder::new().name("ingest".into()).spawn(move || Worker::new(self, setup, of_thread).run())?;
        Ok(Handle { thread, waker, stop })
    }
}

fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        tracing::error!("the ingest cannot be woken: {error}");
    }
}

struct Worker<S> {
    poll: Poll,
    waker: Arc<Waker>,
    commands: Inbox<Command<S>>,
    cache: ThreadCache,
    router: Router<S>,
    link: Option<Link>,
    attempt: Attempt,
    backoff: Backoff,
    lost_at: Option<Instant>,
    /// Since when everything is subscribed and all presence keys are set; that may have ended since.
    live_at: Option<Instant>,
    /// When to find out again whether channels can be subscribed to.
    probe_at: Instant,
    /// Since when the gate is closed.
    paused: Option<Instant>,
    /// There is more to read, whether the poll says so or not.
    unfinished: bool,
    presence: Requests,
    refreshing: Vec<Channel>,
    refresh_at: Instant,
    refresh_shard: u32,
    options: Options,
    limits: Limits,
    gate: Arc<Gate>,
    stats: Arc<IngestStats>,
    clock: Clock,
    stop: Arc<AtomicBool>,
}

impl<S: Send + 'static> Worker<S> {
    fn new(ingest: Ingest<S>, setup: Setup<S>, stop: Arc<AtomicBool>) -> Worker<S> {
        let Setup { options, limits, gate, reactors, stage, presence, clock } = setup;
        let now = Instant::now();
        #[cfg_attr(not(feature = "otel"), allow(unused_mut))]
        let mut router =
            Router::new(options.clone(), Arc::clone(&gate), reactors, stage, Arc::clone(&ingest.stats));
        #[cfg(feature = "otel")]
        {
            router.trails = ingest.trails;
        }
        Worker {
            poll: ingest.poll,
            waker: ingest.waker,
            commands: Inbox::new(ingest.commands),
            cache: ThreadCache::new(&limits),
            router,
            link: None,
            attempt: Attempt::At(now),
            backoff: Backoff::default(),
            lost_at: None,
            live_at: None,
            probe_at: now,
            paused: None,
            unfinished: false,
            presence,
            refreshing: Vec::new(),
            refresh_at: now + limits.presence_refresh / REFRESH_SHARDS,
            refresh_shard: 0,
            options,
            limits,
            gate,
            stats: ingest.stats,
            clock,
            stop,
        }
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(16);
        let mut look_at = Instant::now();
        loop {
            let wait = if self.unfinished || self.has_commands() {
                Duration::ZERO
            } else {
                look_at.saturating_duration_since(Instant::now())
            };
            match self.poll.poll(&mut events, Some(wait)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!("the ingest cannot wait for its sockets: {error}");
                    return;
                }
            }
            if self.stop.load(SeqCst) {
                return;
            }
            if let Some(link) = &mut self.link {
                events.iter().filter(|event| event.token() == SOCKET).for_each(|event| link.ready(event));
            }
            look_at = self.turn();
        }
    }

    /// Whether there are commands left that could be done.
    fn has_commands(&self) -> bool {
        self.commands.has_more() && self.takes_commands()
    }

    /// Clients that connect during the very first attempt to reach Redis wait for its end: they connect as soon as
    /// the server says that it listens, and nothing is lost yet. That attempt's thread wakes the ingest.
    fn takes_commands(&self) -> bool {
        self.link.is_some() || self.lost_at.is_some()
    }

    /// One turn. When to look again at the latest.
    fn turn(&mut self) -> Instant {
        add(&self.stats.turns, 1);
        let now = Instant::now();
        self.follow_master(now);
        let connect_at = self.connecting(now);
        if self.takes_commands() {
            let part = self.commands.take(TURN_COMMANDS);
            self.cache.passed(part.len(), self.clock.now());
            part.for_each(|command| self.router.command(command));
        }
        let outcome =
            self.read().and_then(|()| self.heartbeat()).and_then(|heart| self.write().map(|()| heart));
        let heart_at = outcome.unwrap_or_else(|loss| {
            self.lost(&loss);
            None
        });
        self.refresh(now);
        if self.router.flush() {
            self.regained();
        }
        self.ask_presence();
        let unread = self.link.as_ref().map_or(0, |link| link.ring.unread_bytes());
        set(&self.stats.unread_bytes, unread as u64);
        // A connection that was lost in this very turn is looked after in the next.
        let connect_at = if self.link.is_none() { connect_at.or(Some(now)) } else { None };
        let since_start = self.clock.now();
        self.cache.settle(since_start);
        let cache_at = self.cache.due_in(since_start).map(|due| now + due);
        [connect_at, heart_at, cache_at].into_iter().flatten().fold(self.refresh_at, Instant::min)
    }

    /// Reads until nothing is there, the turn is over, or the gate is closed. An error is the reason why
    /// the connection is of no more use.
    fn read(&mut self) -> Result<(), Loss> {
        self.unfinished = false;
        if self.paused.is_some() {
            if self.gate.is_closed() {
                return Ok(());
            }
            self.unpause();
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut read_at = self.clock.now();
        let (mut reads, mut bytes) = (0, 0);
        loop {
            loop {
                if !self.gate.may_read() {
                    self.pause();
                    return Ok(());
                }
                match link.ring.next() {
                    Ok(Some(frame)) => {
                        if self.router.frame(frame, &mut link.pipeline, read_at)? == Heard::Pong {
                            link.ponged();
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Err(format!("it does not speak RESP ({error})").into()),
                }
            }
            if reads >= TURN_READS || bytes >= TURN_BYTES {
                self.unfinished = true;
                return Ok(());
            }
            match link.fill(Instant::now()) {
                Ok(Filled::Bytes(n)) => {
                    read_at = self.clock.now();
                    reads += 1;
                    bytes += n;
                    add(&self.stats.bytes, n as u64);
                }
                Ok(Filled::Blocked) => return Ok(()),
                Err(error) => return Err(Loss::io(&error)),
            }
        }
    }

    fn pause(&mut self) {
        let now = Instant::now();
        self.paused = Some(now);
        let rate = self.link.as_ref().map_or(0, |link| link.rate(now));
        set(&self.stats.rate_before_pause, rate);
        // 0 is for open.
        let since = self.clock.now().as_micros().max(1);
        set(&self.stats.paused_since_us, u64::try_from(since).unwrap_or(u64::MAX));
        add(&self.stats.pauses, 1);
        self.presence.subscriber.send_modify(|subscriber| subscriber.paused = true);
    }

    fn unpause(&mut self) {
        let Some(since) = self.paused.take() else { return };
        let now = Instant::now();
        add(&self.stats.paused_us, u64::try_from((now - since).as_micros()).unwrap_or(u64::MAX));
        set(&self.stats.paused_since_us, 0);
        if let Some(link) = &mut self.link {
            link.resumed(now);
        }
        self.presence.subscriber.send_modify(|subscriber| subscriber.paused = false);
    }

    /// Asks whether Redis is there, if it has been silent. When to look again.
    fn heartbeat(&mut self) -> Result<Option<Instant>, Loss> {
        match &self.link {
            Some(_) if self.paused.is_none() && !self.unfinished => {
                self.probe(Instant::now());
                let Some(link) = &mut self.link else { return Ok(None) };
                match link.heartbeat(Instant::now(), self.limits.redis_ping) {
                    Heart::Beats(at) => Ok(Some(at.min(self.probe_at))),
                    Heart::Stopped => {
                        let patience = self.limits.redis_ping * 2;
                        Err(format!("it has not answered for {:.1} s", patience.as_secs_f64()).into())
                    }
                }
            }
            _ => Ok(None),
        }
    }

    /// Writes subscriptions, one batch after the other as long as the socket takes them.
    fn write(&mut self) -> Result<(), Loss> {
        let Some(link) = &mut self.link else { return Ok(()) };
        while link.flush().map_err(|error| Loss::io(&error))? {
            let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
            self.router.table.next_commands(COMMAND_CHANNELS, &mut subscribe, &mut unsubscribe);
            if subscribe.is_empty() && unsubscribe.is_empty() {
                break;
            }
            link.subscribe(self.router.prefix(), subscribe);
            link.unsubscribe(self.router.prefix(), unsubscribe);
        }
        Ok(())
    }

    /// Puts one part of the presence keys on the list to be set again, when its time has come.
    fn refresh(&mut self, now: Instant) {
        if now < self.refresh_at {
            return;
        }
        self.refresh_at = now + self.limits.presence_refresh / REFRESH_SHARDS;
        if let Some(failing) = self.keys_at_risk(now) {
            return self.lost(&Loss::keys_end(failing));
        }
        // While the last part waits (no command connection), this one does too.
        if self.link.is_some() && self.refreshing.is_empty() {
            let (shard, shards) = (u64::from(self.refresh_shard), u64::from(REFRESH_SHARDS));
            self.router.table.refresh(shard, shards, &mut self.refreshing);
            self.refresh_shard = (self.refresh_shard + 1) % REFRESH_SHARDS;
        }
    }

    /// Hands keys to the presence task, as far as its queue has room. Its next answer wakes us for the rest.
    fn ask_presence(&mut self) {
        while self.link.is_some() && self.presence.batches.capacity() > 0 {
            let mut channels = Vec::new();
            self.router.table.next_stale(BATCH_CHANNELS, &mut channels);
            let stale = !channels.is_empty();
            if !stale {
                self.router.table.next_presence(BATCH_CHANNELS, &mut channels);
            }
            if channels.is_empty() {
                let rest = self.refreshing.len().saturating_sub(BATCH_CHANNELS);
                channels = self.refreshing.split_off(rest);
            }
            if channels.is_empty() {
                self.refreshing = Vec::new();
                return;
            }
            if self.presence.batches.try_send(Batch { epoch: self.router.epoch, stale, channels }).is_err() {
                return;
            }
        }
    }
}
