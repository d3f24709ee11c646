//! The task that owns the command connection: presence keys, and while reading is paused the question how
//! much Redis holds for us.
//!
//! Rails publishes what is personal only while `subscribed:CHANNEL` exists, so a newcomer waits for its
//! keys. Keys are set in pipelined batches; what could not be set is tried again, on a new connection, until
//! it is set or the subscriber connection it was asked for is gone. A new subscriber connection means a new
//! command connection too, made after it: behind a proxy or after a failover the old one might still lead to
//! the server of before.
//!
//! An answer has so little time that a second attempt on a new connection fits into `DOOR_TIMEOUT`.
//!
//! The task always knows whether Redis takes keys: after each connection and after each silence it sends a `SET` that
//! changes nothing. The answer shows on `/ready`, keeps routers from forgetting the connection, and finds a connection
//! that was forgotten. A refusal is passed to the ingest, so that no newcomer waits for keys that Redis refuses.
//!
//! Bounds: [`QUEUE_BATCHES`] batches wait here, of at most [`BATCH_CHANNELS`] each; the ingest keeps the rest
//! in its table. Tested against a real Redis in `tests/redis_ingest`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use redis_protocol::resp2::types::OwnedFrame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::clock::Clock;
use crate::core::counters::{add, set};
use crate::core::handover::Command;
use crate::core::mailbox::Mailbox;
use crate::core::slack::Slack;
use crate::core::stream::Channel;
use crate::limits::{HEADROOM_INTERVAL, Limits, Waits};
use crate::redis::Options;
use crate::redis::backoff::Backoff;
use crate::redis::command::{decode_answer, encode, encode_presence};
use crate::redis::connect::{ConnectError, Role, advice, connect_async, refusal, tell};
use crate::redis::headroom::{Headroom, Held, OutputLimits, find_omem};
use crate::redis::ingest::REFRESH_SHARDS;
use crate::redis::socket::AsyncSocket;
use crate::redis::stats::PresenceStats;

/// Batches on their way to this task.
pub const QUEUE_BATCHES: usize = 16;
/// Channels in a batch, at most.
pub const BATCH_CHANNELS: usize = 1000;
/// A presence key lives as long as three refreshes take.
pub const KEY_LIFETIMES: u32 = 3;

/// A key that nobody needs is set once more to end so soon: Redis needs to allow nothing but `SET`.
const STALE_SECONDS: u64 = 1;

/// Batches that are asked together.
const TOGETHER: usize = 8;
/// Longest answer: `CLIENT LIST TYPE pubsub` on a busy server.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Larger room for answers is given back once they are read.
const INPUT_BYTES_KEPT: usize = 4096;

/// Presence keys to be set.
#[derive(Debug)]
pub struct Batch {
    /// For the subscriber connection of that number.
    pub epoch: u32,
    /// Nobody needs these keys any more: they are to end at once.
    pub stale: bool,
    /// Whose keys.
    pub channels: Vec<Channel>,
}

/// What the task has to know of the subscriber connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Subscriber {
    /// Its number; 0 before the first.
    pub epoch: u32,
    /// Whether it stands.
    pub connected: bool,
    /// What Redis calls it, if known.
    pub client_id: Option<u64>,
    /// Whether reading from it is paused.
    pub paused: bool,
}

/// The ingest's end.
#[derive(Debug)]
pub struct Requests {
    /// Keys to set. When it is full, an answer to what is in it will come first.
    pub batches: mpsc::Sender<Batch>,
    /// The state of the subscriber connection.
    pub subscriber: watch::Sender<Subscriber>,
    /// What is known of Redis's patience.
    pub headroom: Arc<Headroom>,
    /// Whether keys can be set.
    pub stats: Arc<PresenceStats>,
}

/// The task's end, and what it is to work with.
#[derive(Debug)]
pub struct Presence {
    batches: mpsc::Receiver<Batch>,
    subscriber: watch::Receiver<Subscriber>,
    /// Received, and not set.
    waiting: Vec<Batch>,
    options: Options,
    waits: Waits,
    key_seconds: u64,
    /// After so long a silence Redis is asked whether it takes keys.
    quiet: Duration,
    /// A list of clients is longer than an answer may be: it is not asked for again.
    lists_too_much: bool,
    clock: Clock,
    headroom: Arc<Headroom>,
    stats: Arc<PresenceStats>,
}

/// The two ends.
pub fn new(options: Options, limits: &Limits, clock: Clock) -> (Requests, Presence) {
    let (batches, batches_end) = mpsc::channel(QUEUE_BATCHES);
    let (subscriber, subscriber_end) = watch::channel(Subscriber::default());
    let headroom = Arc::<Headroom>::default();
    let presence = Presence {
        batches: batches_end,
        subscriber: subscriber_end,
        waiting: Vec::new(),
        options,
        waits: limits.door_waits(),
        key_seconds: (limits.presence_refresh * KEY_LIFETIMES).as_secs().max(1),
        quiet: limits.redis_ping.min(limits.presence_refresh / REFRESH_SHARDS),
        lists_too_much: false,
        clock,
        headroom: Arc::clone(&headroom),
        stats: Arc::default(),
    };
    let stats = Arc::clone(&presence.stats);
    stats.obstacle.set("Redis has not been asked yet whether it takes presence keys");
    (Requests { batches, subscriber, headroom, stats }, presence)
}

/// Why a command connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the ingest has ended")]
    Finished,
    #[error("there is another subscriber connection")]
    Outdated,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("Redis closed the command connection ({0})")]
    Lost(#[from] io::Error),
    #[error("Redis does not answer on the command connection")]
    Timeout,
    #[error("Redis answered something strange on the command connection")]
    Strange,
    #[error("Redis refuses to set presence keys: {0}; {1}")]
    Refused(String, &'static str),
}

impl End {
    /// For everybody to read, without addresses; and whether Redis said no, so that waiting is in vain.
    fn obstacle(&self) -> (String, bool) {
        match self {
            End::Refused(text, _) => (refusal("to set presence keys", text), true),
            End::Connect(ConnectError::Refused { command, text, .. }) => (refusal(command, text), true),
            End::Timeout => ("Redis does not answer when presence keys are set".to_owned(), false),
            _ => ("there is no connection to Redis for presence keys".to_owned(), false),
        }
    }
}

impl Presence {
    /// What is known of Redis's patience.
    pub fn headroom(&self) -> Arc<Headroom> {
        Arc::clone(&self.headroom)
    }

    /// How it goes.
    pub fn stats(&self) -> Arc<PresenceStats> {
        Arc::clone(&self.stats)
    }

    /// Sets keys, and tells `commands` which, until the ingest ends. To be spawned.
    pub async fn run<S>(mut self, commands: Arc<Mailbox<Command<S>>>) {
        let mut backoff = Backoff::default();
        loop {
            if self.subscriber.wait_for(|subscriber| subscriber.connected).await.is_err() {
                return;
            }
            let keys_before = self.stats.keys_set.load(Relaxed);
            let epoch = self.subscriber.borrow_and_update().epoch;
            let end = match self.connection(&commands, epoch).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            self.stats.connected.store(false, Relaxed);
            self.headroom.set_answers(false);
            self.headroom.set_held(Held::Unknown, self.clock.now());
            if self.stats.keys_set.load(Relaxed) != keys_before {
                backoff.reset();
            }
            match end {
                End::Finished => return,
                End::Outdated => continue,
                // Redis may close what is idle, and when it goes down the ingest says so. If it matters, the
                // next attempt fails.
                End::Lost(_) if self.stats.failing(self.clock.now()).is_none() => {
                    tracing::debug!("{end}; connecting again");
                    self.rest(epoch, backoff.next_delay()).await;
                    continue;
                }
                _ => {}
            }
            self.failed(&end, &commands);
            self.rest(epoch, backoff.next_delay()).await;
        }
    }

    /// Waits before the next attempt. A newer subscriber connection than the failed attempt's ends the wait: Redis was
    /// reached just now, and clients wait for their keys.
    async fn rest(&mut self, epoch: u32, delay: Duration) {
        // An error means that the ingest has ended, which the caller finds out next.
        let connected =
            self.subscriber.wait_for(|subscriber| subscriber.connected && subscriber.epoch != epoch);
        let _ = timeout(delay, connected).await;
    }

    /// Keys cannot be set: says so wherever it matters.
    fn failed<S>(&self, end: &End, commands: &Mailbox<Command<S>>) {
        let stats = &self.stats;
        add(&stats.failures, 1);
        let (obstacle, is_refusal) = end.obstacle();
        stats.obstacle.set(&obstacle);
        commands.push(Command::PresenceRefused(is_refusal));
        let begins = stats.failing_since_us.load(Relaxed) == 0;
        if begins {
            let since = self.clock.now().as_micros().max(1);
            set(&stats.failing_since_us, u64::try_from(since).unwrap_or(u64::MAX));
        }
        let text = end.to_string();
        if stats.last_error.set(&text) || begins {
            let newcomers = if is_refusal { "are refused" } else { "wait for presence keys" };
            tracing::warn!("{text}; newcomers {newcomers} until that is over");
        }
    }

    /// A key was set, or would have been.
    fn works<S>(&self, commands: &Mailbox<Command<S>>) {
        let stats = &self.stats;
        stats.obstacle.clear();
        if let Some(lasted) = stats.failing(self.clock.now()) {
            set(&stats.failing_since_us, 0);
            commands.push(Command::PresenceRefused(false));
            tracing::info!("Redis takes presence keys again, after {:.1} s", lasted.as_secs_f64());
        }
    }

    /// One command connection, from its beginning to its end.
    async fn connection<S>(
        &mut self,
        commands: &Mailbox<Command<S>>,
        epoch: u32,
    ) -> Result<std::convert::Infallible, End> {
        let client_id = self.subscriber.borrow().client_id;
        let connected = connect_async(&self.options, Role::Command, self.waits.connect).await;
        let stream = connected?.stream;
        let answer = self.waits.answer;
        let mut connection = Connection {
            stream,
            answer,
            input: BytesMut::new(),
            ask_by_type: false,
            denied: false,
            listed: false,
        };
        connection.probe(&self.options).await?;
        self.headroom.set_limits(connection.limits().await?);
        if self.lists_too_much {
            connection.denied = true;
        } else if let Err(end) = connection.held(client_id).await {
            self.lists_too_much = matches!(end, End::Strange);
            return Err(end);
        }
        self.stats.connected.store(true, Relaxed);
        self.headroom.set_answers(true);
        let mut unasked = [0; 64];
        let mut ticks = interval(HEADROOM_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let subscriber = *self.subscriber.borrow_and_update();
            if subscriber.epoch != epoch || !subscriber.connected {
                return Err(End::Outdated);
            }
            self.set_waiting(&mut connection, commands, epoch).await?;
            self.works(commands);
            tokio::select! {
                received = self.batches.recv_many(&mut self.waiting, TOGETHER) => {
                    if received == 0 {
                        return Err(End::Finished);
                    }
                }
                changed = self.subscriber.changed() => {
                    if changed.is_err() {
                        return Err(End::Finished);
                    }
                }
                _ = ticks.tick(), if subscriber.paused => {
                    let held = connection.held(subscriber.client_id).await?;
                    self.headroom.set_held(held, self.clock.now());
                }
                () = sleep(self.quiet) => connection.probe(&self.options).await?,
                // Nothing was asked: it can only be the end.
                read = connection.stream.read(&mut unasked) => {
                    return Err(match read? {
                        0 => End::Lost(io::ErrorKind::UnexpectedEof.into()),
                        _ => End::Strange,
                    });
                }
            }
        }
    }

    /// Sets what waits, if anything does, and says so.
    async fn set_waiting<S>(
        &mut self,
        connection: &mut Connection,
        commands: &Mailbox<Command<S>>,
        epoch: u32,
    ) -> Result<(), End> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let prefix = self.options.prefix();
        let mut out = BytesMut::new();
        for batch in &mut self.waiting {
            // Asked for a connection that is gone: not worth the trouble. It is answered all the same, since
            // the ingest may wait for room in the queue.
            if batch.epoch != epoch {
                batch.channels.clear();
            }
            for channel in &batch.channels {
                let seconds = if batch.stale { STALE_SECONDS } else { self.key_seconds };
                encode_presence(&mut out, &prefix, channel, seconds);
            }
        }
        let asked = self.waiting.iter().map(|batch| batch.channels.len()).sum();
        let answers = connection.ask(&out, asked).await?;
        let mut answers = answers.into_iter();
        let mut refused = None;
        for batch in &mut self.waiting {
            let mut unset = Vec::new();
            let mut set = Vec::with_capacity(batch.channels.len());
            for channel in batch.channels.drain(..) {
                let answer = answers.next();
                // Whatever became of a stale one: it ends by itself, only later.
                if batch.stale {
                    continue;
                }
                match answer {
                    Some(OwnedFrame::Error(text)) => {
                        refused = Some(text);
                        unset.push(channel);
                    }
                    Some(_) => set.push(channel),
                    None => unset.push(channel),
                }
            }
            add(&self.stats.keys_set, set.len() as u64);
            commands.push(Command::PresenceSet(set, batch.epoch));
            batch.channels = unset;
        }
        self.waiting.retain(|batch| !batch.channels.is_empty());
        self.waiting.give_back();
        match refused {
            Some(text) => Err(End::Refused(tell(&self.options, &text), advice(&text))),
            None => Ok(()),
        }
    }
}

/// A command connection.
struct Connection {
    stream: AsyncSocket,
    /// How long Redis may take to answer what was asked together.
    answer: Duration,
    input: BytesMut,
    /// Redis before 6.2: it lists a class of clients, not one.
    ask_by_type: bool,
    /// It does not tell.
    denied: bool,
    /// It has listed our subscriber connection with what it holds for it.
    listed: bool,
}

impl Connection {
    /// Sends commands and reads their answers.
    async fn ask(&mut self, out: &[u8], answers: usize) -> Result<Vec<OwnedFrame>, End> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let input = &mut self.input;
        let write = async { writer.write_all(out).await.map_err(End::from) };
        let read = async {
            let mut frames = Vec::with_capacity(answers);
            while frames.len() < answers {
                match decode_answer(input) {
                    Ok(Some((frame, used))) => {
                        let _ = input.split_to(used);
                        frames.push(frame);
                    }
                    Ok(None) if input.len() <= ANSWER_BYTES_MAX => {
                        if reader.read_buf(input).await? == 0 {
                            return Err(End::Lost(io::ErrorKind::UnexpectedEof.into()));
                        }
                    }
                    _ => return Err(End::Strange),
                }
            }
            Ok(frames)
        };
        let asked = timeout(self.answer, async { tokio::try_join!(write, read) }).await;
        if self.input.is_empty() && self.input.capacity() > INPUT_BYTES_KEPT {
            self.input = BytesMut::new();
        }
        match asked {
            Ok(Ok(((), frames))) => Ok(frames),
            Ok(Err(end)) => Err(end),
            Err(_) => Err(End::Timeout),
        }
    }

    /// Sends a `SET` that changes nothing, since its key never exists: whether Redis takes presence keys.
    async fn probe(&mut self, options: &Options) -> Result<(), End> {
        let key = format!("{}subscribed:timeline:0", options.prefix());
        match self.ask_one(&[b"SET", key.as_bytes(), b"1", b"EX", b"1", b"XX"]).await? {
            // A server that does not know the question says nothing about keys.
            OwnedFrame::Error(text) if !text.starts_with("ERR ") => {
                Err(End::Refused(tell(options, &text), advice(&text)))
            }
            _ => Ok(()),
        }
    }

    async fn ask_one(&mut self, parts: &[&[u8]]) -> Result<OwnedFrame, End> {
        let mut out = BytesMut::new();
        encode(&mut out, parts);
        self.ask(&out, 1).await?.pop().ok_or(End::Strange)
    }

    /// The limits for subscribers; none where Redis does not tell (ACL).
    async fn limits(&mut self) -> Result<Option<OutputLimits>, End> {
        let answer = self.ask_one(&[b"CONFIG", b"GET", b"client-output-buffer-limit"]).await?;
        let OwnedFrame::Array(pair) = answer else { return Ok(None) };
        let Some(OwnedFrame::BulkString(value)) = pair.get(1) else { return Ok(None) };
        Ok(OutputLimits::parse(&String::from_utf8_lossy(value)))
    }

    /// What Redis holds for that client. A list that leaves it out says that Redis has dropped it, if the list has
    /// shown it before; otherwise the list leaves clients or `omem` out, and nothing is known.
    async fn held(&mut self, client_id: Option<u64>) -> Result<Held, End> {
        let Some(id) = client_id else { return Ok(Held::Denied) };
        while !self.denied {
            let answer = if self.ask_by_type {
                self.ask_one(&[b"CLIENT", b"LIST", b"TYPE", b"pubsub"]).await?
            } else {
                self.ask_one(&[b"CLIENT", b"LIST", b"ID", id.to_string().as_bytes()]).await?
            };
            match answer {
                OwnedFrame::BulkString(list) => {
                    let omem = find_omem(&String::from_utf8_lossy(&list), id);
                    self.listed |= omem.is_some();
                    return Ok(match omem {
                        Some(bytes) => Held::Bytes(bytes),
                        None if self.listed => Held::Gone,
                        None => Held::Denied,
                    });
                }
                OwnedFrame::Error(text) if !text.starts_with("NOPERM") && !self.ask_by_type => {
                    self.ask_by_type = true;
                }
                _ => self.denied = true,
            }
        }
        Ok(Held::Denied)
    }
}
