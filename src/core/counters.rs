//! What a reactor counts: clients, subscriptions, every message owed and what became of it, writes, latency.
//!
//! Plain atomics without locks or names to look up. Each [`ReactorCounters`] has exactly one writer, the
//! thread of its reactor, so an increment is a load and a store, not a locked read-modify-write; each
//! stands on cache lines of its own, so reactors do not slow each other down. Anybody may read at any time.
//!
//! Invariant, the conservation of messages: *owed = delivered + filtered + unsubscribed + closed + pending*.
//! [`ReactorCounters::ledger`] is exact where the reactor itself asks, between two turns (as it does for a
//! [`Probe`](crate::core::report::Probe)); from other threads it can be off by what happened while reading.
//!
//! Bounds: about 2 KiB a reactor, whatever the number of clients.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use crate::core::event::{Transport, Withheld};
use crate::core::session::RequestError;
use crate::core::stream::StreamKind;

/// Adds to a counter that only the calling thread writes. Two writers would lose increments.
#[inline]
pub fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

/// Takes from a gauge that only the calling thread writes; it stays at 0 rather than wrap.
#[inline]
pub fn sub(gauge: &AtomicU64, less: u64) {
    gauge.store(gauge.load(Relaxed).saturating_sub(less), Relaxed);
}

/// Sets a gauge.
#[inline]
pub fn set(gauge: &AtomicU64, value: u64) {
    gauge.store(value, Relaxed);
}

/// The transports' names in metrics, by [`transport_index`].
pub const TRANSPORT_LABELS: [&str; 2] = ["websocket", "eventsource"];

/// Where a transport is counted: both kinds of Server-Sent Events together.
#[inline]
pub fn transport_index(transport: Transport) -> usize {
    match transport {
        Transport::WebSocket => 0,
        Transport::SseChunked | Transport::SsePlain => 1,
    }
}

/// The streams' names in metrics, by [`StreamKind`]'s number; the last is [`SYSTEM`].
pub const CHANNEL_LABELS: [&str; 15] = [
    "user",
    "user:notification",
    "public",
    "public:media",
    "public:local",
    "public:local:media",
    "public:remote",
    "public:remote:media",
    "public:allow_local_only",
    "public:allow_local_only:media",
    "hashtag",
    "hashtag:local",
    "list",
    "direct",
    "system",
];

const _: () = assert!(StreamKind::Direct as usize + 1 == SYSTEM);

/// Where a connection's system channels are counted.
pub const SYSTEM: usize = 14;

/// Why a connection ended. The label is what metrics, logs and pages call it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CloseReason {
    /// The client closed, with a close frame or by ending the connection.
    ClientLeft,
    /// It held old messages and finished no frame for too long, or stood in the way at the high mark.
    TooSlow,
    /// Messages may be missing: the Redis connection was lost, or a message was too long to relay.
    Gap,
    /// Redis stayed away so long that clients had better poll.
    RedisAway,
    /// The token was revoked, or the account disabled or suspended.
    Killed,
    /// The token's `expires_in` passed.
    TokenExpired,
    /// The server is shutting down.
    Drain,
    /// No pong until the next ping.
    NoPong,
    /// The client broke RFC 6455, text that is not UTF-8 included.
    ProtocolError,
    /// The client sent a binary message.
    Binary,
    /// An incoming message longer than allowed.
    TooBig,
    /// An incoming message that was not whole in time, or too many unfinished ones at once.
    Unfinished,
    /// More messages per second than allowed.
    RateLimited,
    /// It had messages waiting and finished no frame for too long, though there was room for all.
    WriteStalled,
    /// The socket failed (reset, timed out, unreachable).
    SocketError,
    /// A fault of this server.
    ServerError,
}

impl CloseReason {
    /// All reasons, by their number.
    pub const ALL: [CloseReason; 16] = [
        CloseReason::ClientLeft,
        CloseReason::TooSlow,
        CloseReason::Gap,
        CloseReason::RedisAway,
        CloseReason::Killed,
        CloseReason::TokenExpired,
        CloseReason::Drain,
        CloseReason::NoPong,
        CloseReason::ProtocolError,
        CloseReason::Binary,
        CloseReason::TooBig,
        CloseReason::Unfinished,
        CloseReason::RateLimited,
        CloseReason::WriteStalled,
        CloseReason::SocketError,
        CloseReason::ServerError,
    ];

    /// Its name in metrics, logs and on the status pages.
    pub fn label(self) -> &'static str {
        match self {
            CloseReason::ClientLeft => "client_left",
            CloseReason::TooSlow => "too_slow",
            CloseReason::Gap => "gap",
            CloseReason::RedisAway => "redis_away",
            CloseReason::Killed => "killed",
            CloseReason::TokenExpired => "token_expired",
            CloseReason::Drain => "drain",
            CloseReason::NoPong => "no_pong",
            CloseReason::ProtocolError => "protocol_error",
            CloseReason::Binary => "binary",
            CloseReason::TooBig => "too_big",
            CloseReason::Unfinished => "unfinished",
            CloseReason::RateLimited => "rate_limited",
            CloseReason::WriteStalled => "write_stalled",
            CloseReason::SocketError => "socket_error",
            CloseReason::ServerError => "server_error",
        }
    }
}

/// All reasons for withholding a message, by their number.
pub const WITHHELD: [Withheld; 11] = [
    Withheld::LocalOnly,
    Withheld::FeedAccess,
    Withheld::Language,
    Withheld::Relationship,
    Withheld::DomainBlock,
    Withheld::Malformed,
    Withheld::AudienceTimeout,
    Withheld::AudienceOverflow,
    Withheld::NotAsked,
    Withheld::FilterWork,
    Withheld::FilterResults,
];

/// A withholding's name in metrics and on the status pages.
pub fn withheld_label(reason: Withheld) -> &'static str {
    match reason {
        Withheld::LocalOnly => "local_only",
        Withheld::FeedAccess => "feed_access",
        Withheld::Language => "language",
        Withheld::Relationship => "relationship",
        Withheld::DomainBlock => "domain_block",
        Withheld::Malformed => "malformed",
        Withheld::AudienceTimeout => "audience_timeout",
        Withheld::AudienceOverflow => "audience_overflow",
        Withheld::NotAsked => "not_asked",
        Withheld::FilterWork => "filter_work",
        Withheld::FilterResults => "filter_results",
    }
}

/// How many came and how many went; the difference is how many there are.
#[derive(Debug, Default)]
pub struct Flow {
    opened: AtomicU64,
    ended: AtomicU64,
}

impl Flow {
    /// `count` more have come. Single writer.
    pub fn open(&self, count: u64) {
        add(&self.opened, count);
    }

    /// `count` of them have gone. Single writer.
    pub fn end(&self, count: u64) {
        add(&self.ended, count);
    }

    /// How many ever came.
    pub fn opened(&self) -> u64 {
        self.opened.load(Relaxed)
    }

    /// How many ever went.
    pub fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// How many there are. Never negative, whatever happens while it reads.
    pub fn live(&self) -> u64 {
        let ended = self.ended.load(Relaxed);
        self.opened.load(Relaxed).saturating_sub(ended)
    }
}

/// The upper bounds of the latency histogram's buckets, in microseconds; one more bucket is open above.
pub const LATENCY_BOUNDS_US: [u64; 22] = [
    50, 100, 200, 300, 500, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 30_000, 50_000, 100_000, 200_000,
    300_000, 500_000, 1_000_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000,
];

/// Durations in fixed buckets from 50 µs to 10 s. Single writer.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts `times` occurrences of that duration.
    #[inline]
    pub fn record(&self, took: Duration, times: u64) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < micros);
        if let Some(count) = self.counts.get(bucket) {
            add(count, times);
        }
        add(&self.sum_us, micros.saturating_mul(times));
    }

    /// What was counted so far.
    pub fn read(&self) -> HistogramReading {
        HistogramReading {
            counts: std::array::from_fn(|bucket| self.counts[bucket].load(Relaxed)),
            sum_us: self.sum_us.load(Relaxed),
        }
    }
}

/// A histogram's counts at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HistogramReading {
    /// How many fell into each bucket (not cumulative), the open one last.
    pub counts: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// All durations together, in microseconds.
    pub sum_us: u64,
}

impl HistogramReading {
    /// Adds another reactor's counts.
    pub fn merge(&mut self, other: &HistogramReading) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum_us = self.sum_us.wrapping_add(other.sum_us);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration, in microseconds, that a share of all stays at or under (0.99: the 99th percentile),
    /// as a straight line within its bucket. None while nothing was counted; 10 s at most.
    pub fn quantile_us(&self, share: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = share.clamp(0.0, 1.0) * total as f64;
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, count) in LATENCY_BOUNDS_US.iter().zip(self.counts) {
            let upper = *bound as f64;
            if count > 0 && below + count as f64 >= rank {
                return Some(lower + (upper - lower) * ((rank - below) / count as f64).clamp(0.0, 1.0));
            }
            below += count as f64;
            lower = upper;
        }
        Some(lower)
    }
}

/// The conservation of messages at one moment, counted per message and subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Ledger {
    /// Messages for subscriptions that were live when the message was read.
    pub owed: u64,
    /// … whose last byte the kernel took.
    pub delivered: u64,
    /// … that the viewer's settings withheld.
    pub filtered: u64,
    /// … whose subscription ended first.
    pub unsubscribed: u64,
    /// … whose connection ended first.
    pub closed: u64,
    /// … that still wait.
    pub pending: u64,
}

impl Ledger {
    /// What is owed and stands nowhere (positive), or was settled more than once (negative). 0 always.
    pub fn difference(&self) -> i64 {
        let settled =
            [self.delivered, self.filtered, self.unsubscribed, self.closed, self.pending].iter().sum::<u64>();
        self.owed.wrapping_sub(settled).cast_signed()
    }

    /// Adds another reactor's.
    pub fn merge(&mut self, other: &Ledger) {
        self.owed += other.owed;
        self.delivered += other.delivered;
        self.filtered += other.filtered;
        self.unsubscribed += other.unsubscribed;
        self.closed += other.closed;
        self.pending += other.pending;
    }
}

/// Everything that one reactor counts. Written by its thread alone.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ReactorCounters {
    /// Connected clients, by [`transport_index`].
    pub clients: [Flow; TRANSPORT_LABELS.len()],
    /// Subscriptions by transport and [`StreamKind`] (or [`SYSTEM`]).
    pub subscriptions: [[Flow; CHANNEL_LABELS.len()]; TRANSPORT_LABELS.len()],
    /// Messages owed.
    pub owed: AtomicU64,
    /// Messages of which the kernel took the last byte, by transport.
    pub delivered: [AtomicU64; TRANSPORT_LABELS.len()],
    /// Messages withheld, by reason.
    pub filtered: [AtomicU64; WITHHELD.len()],
    /// Messages whose subscription ended before they were sent.
    pub unsubscribed: AtomicU64,
    /// Messages whose connection ended before they were sent, by the connection's reason.
    pub closed: [AtomicU64; CloseReason::ALL.len()],
    /// Messages that wait (a gauge, kept by the reactor from what it holds, not from the other counters).
    pub pending: AtomicU64,
    /// Connections that ended, by reason.
    pub closes: [AtomicU64; CloseReason::ALL.len()],
    /// Subscribe messages refused by this reactor, by reason.
    pub subscribe_refused: [AtomicU64; RequestError::ALL.len()],
    /// Bytes of unfinished messages from clients (gauge).
    pub unfinished_bytes: AtomicU64,
    /// Calls of `write` and `writev`.
    pub writes: AtomicU64,
    /// Bytes that the kernel took.
    pub write_bytes: AtomicU64,
    /// Writes that found a full socket.
    pub would_block: AtomicU64,
    /// Turns of the loop.
    pub turns: AtomicU64,
    /// From the read that completed a message to its last byte taken by the kernel.
    pub latency: Histogram,
    /// Bytes of the messages in the log (gauge).
    pub log_bytes: AtomicU64,
    /// Messages in the log (gauge).
    pub log_entries: AtomicU64,
    /// Bytes of messages that were given up while half written, and are held until that frame is finished (gauge).
    pub half_written_bytes: AtomicU64,
    /// Clients that are not caught up (gauge).
    pub lagging: AtomicU64,
    /// Clients that go on, or are answered, in the next turn: this one had no room for them (gauge).
    pub ready: AtomicU64,
}

impl ReactorCounters {
    /// A client is in the table, with so many system channels.
    pub fn client_opened(&self, transport: Transport, system_channels: u64) {
        let transport = transport_index(transport);
        self.clients[transport].open(1);
        self.subscriptions[transport][SYSTEM].open(system_channels);
    }

    /// A client is gone; its subscriptions are ended apart.
    pub fn client_closed(&self, transport: Transport, system_channels: u64, reason: CloseReason) {
        let transport = transport_index(transport);
        self.clients[transport].end(1);
        self.subscriptions[transport][SYSTEM].end(system_channels);
        add(&self.closes[reason as usize], 1);
    }

    /// Subscriptions that ended so far, each client's system channels among them.
    pub fn ended(&self) -> u64 {
        self.subscriptions.iter().flatten().map(Flow::ended).sum()
    }

    /// A client has one more stream.
    pub fn subscription_opened(&self, transport: Transport, kind: StreamKind) {
        self.subscriptions[transport_index(transport)][kind as usize].open(1);
    }

    /// A client has one stream less.
    pub fn subscription_ended(&self, transport: Transport, kind: StreamKind) {
        self.subscriptions[transport_index(transport)][kind as usize].end(1);
    }

    /// The kernel took the last byte of a message, that long after the read that completed it.
    #[inline]
    pub fn message_delivered(&self, transport: Transport, took: Duration) {
        add(&self.delivered[transport_index(transport)], 1);
        self.latency.record(took, 1);
    }

    /// A viewer's settings withheld a message.
    #[inline]
    pub fn message_filtered(&self, reason: Withheld) {
        if let Some(count) = self.filtered.get(reason as usize) {
            add(count, 1);
        }
    }

    /// A connection ended with so many messages unsent.
    pub fn messages_closed(&self, reason: CloseReason, count: u64) {
        add(&self.closed[reason as usize], count);
    }

    /// What became of the messages owed. Exact on the reactor's own thread, between two turns.
    pub fn ledger(&self) -> Ledger {
        Ledger {
            owed: self.owed.load(Relaxed),
            delivered: sum(&self.delivered),
            filtered: sum(&self.filtered),
            unsubscribed: self.unsubscribed.load(Relaxed),
            closed: sum(&self.closed),
            pending: self.pending.load(Relaxed),
        }
    }
}

fn sum(counters: &[AtomicU64]) -> u64 {
    counters.iter().map(|counter| counter.load(Relaxed)).sum()
}

#[cfg(test)]
mod tests;
