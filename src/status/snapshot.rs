//! The state of the whole process at one moment, as plain data: what metrics, pages and the live view show.
//!
//! Everything comes through [`Sources`], which [`server`](crate::server) implements over the rooms' own counters;
//! this room reads and never writes. One model, so that text, JSON, metrics and plots cannot disagree.
//!
//! Bounds: independent of the number of clients and channels, but for the lists that were asked for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::core::counters::{
    CHANNEL_LABELS, CloseReason, HistogramReading, LATENCY_BOUNDS_US, Ledger, ReactorCounters,
    TRANSPORT_LABELS, WITHHELD, transport_index, withheld_label,
};
use crate::core::report::{Laggard, Probe, ReactorReport, Top};
use crate::core::session::RequestError;
use crate::status::process::ProcessStats;

/// Lagging clients on the pages.
pub const LAGGARDS_SHOWN: usize = 10;

/// The names of threads, once it is known which of them do not turn.
pub type Stuck<'a> = Pin<Box<dyn Future<Output = Vec<String>> + Send + 'a>>;

/// Where the figures come from. Called from the door's thread: nothing in here may block.
pub trait Sources: Send + Sync {
    /// Every reactor's counters, by its number.
    fn reactors(&self) -> &[Arc<ReactorCounters>];
    /// Puts the question into that reactor's mailbox.
    fn probe(&self, reactor: usize, probe: Probe);
    /// The reading side.
    fn ingest(&self) -> IngestStats;
    /// The budget.
    fn gate(&self) -> GateStats;
    /// What Redis holds for us, where that is known.
    fn headroom(&self) -> Option<HeadroomStats>;
    /// Those who come in.
    fn door(&self) -> DoorStats;
    /// The connections to PostgreSQL; none where the server runs without it.
    fn database(&self) -> Option<DatabaseStats>;
    /// The audience stage; none where the server runs without it.
    fn audience(&self) -> Option<AudienceStats>;
    /// Why a newcomer would not be served now; empty if it would. For everybody to read.
    fn obstacles(&self) -> Vec<String>;
    /// How setting presence keys goes.
    fn presence(&self) -> PresenceStats;
    /// The threads that do not turn.
    fn stuck(&self) -> Stuck<'_>;
    /// Whether the server is shutting down: live views end then.
    fn draining(&self) -> bool;
}

/// Counts by a fixed set of labels, all of them present, 0 included.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Labelled(pub Vec<(&'static str, u64)>);

impl Labelled {
    /// All counts together.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|entry| entry.1).sum()
    }

    fn add(&mut self, index: usize, more: u64) {
        if let Some(entry) = self.0.get_mut(index) {
            entry.1 += more;
        }
    }
}

impl Serialize for Labelled {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// The ingest's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct IngestStats {
    /// Whether messages are being received: connected, and everything is subscribed.
    pub connected: bool,
    /// Counts the Redis connections since the start.
    pub epoch: u32,
    /// Channels subscribed to.
    pub channels: u64,
    /// Messages received.
    pub messages: u64,
    /// … of channels that nobody was subscribed to any more.
    pub without_subscriber: u64,
    /// … that nobody gets, by reason (`not_json`, `incomplete`, `unknown_system_event`).
    pub ignored: Labelled,
    /// … skipped because they were longer than `MAX_MESSAGE_BYTES`.
    pub too_long: u64,
    /// Bytes received.
    pub read_bytes: u64,
    /// Bytes in the ring that were read and not yet taken.
    pub ring_unread_bytes: u64,
    /// The size of the ring.
    pub ring_bytes: u64,
    /// Redis connections lost.
    pub connections_lost: u64,
    /// Gaps that clients were told of, by cause (`connection_lost`, `redis_output_limit`,
    /// `message_too_long`, `presence_keys`).
    pub gaps: Labelled,
}

/// The keys by which Rails sees who listens.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PresenceStats {
    /// Whether there is a connection for them.
    pub connected: bool,
    /// Keys set since the start, refreshes included.
    pub keys_set: u64,
    /// Attempts to connect or to set keys that failed.
    pub failures: u64,
    /// How long they have not been set, if that fails now, in milliseconds.
    pub failing_ms: Option<u64>,
    /// Why keys could not be set the last time.
    pub last_error: Option<String>,
}

/// The gate's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GateStats {
    /// Bytes of undelivered messages and their frames.
    pub held_bytes: u64,
    /// The budget.
    pub high_bytes: u64,
    /// The mark over which stalled clients are closed.
    pub evict_bytes: u64,
    /// The mark at which reading goes on.
    pub low_bytes: u64,
    /// Whether reading is paused.
    pub closed: bool,
    /// For how long, in milliseconds.
    pub closed_for_ms: Option<u64>,
    /// How often reading was paused.
    pub closes: u64,
    /// All pauses together, the present one included, in milliseconds.
    pub paused_ms: u64,
}

/// What Redis holds for us.
#[derive(Clone, Debug, Default, Serialize)]
pub struct HeadroomStats {
    /// Bytes in our output buffer at Redis.
    pub used_bytes: u64,
    /// The size at which Redis drops us.
    pub limit_bytes: u64,
}

/// The door's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DoorStats {
    /// Connections that have not become a stream.
    pub connections: u64,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// … of those, the ones not turned away for a limit.
    pub handled: u64,
    /// Requests read.
    pub requests: u64,
    /// Requests and connections refused, by reason.
    pub refused: Labelled,
}

/// The database pool's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DatabaseStats {
    /// Whether the last thing asked was answered.
    pub connected: bool,
    /// What newcomers need and PostgreSQL does not give: for everybody to read, without addresses.
    pub obstacle: Option<String>,
    /// Connections.
    pub total: u64,
    /// Connections without work.
    pub idle: u64,
    /// Requests that wait for a connection.
    pub waiting: u64,
    /// Why connections are made without encryption, if TLS was tried and failed.
    pub unencrypted_because: Option<String>,
}

/// The audience stage's figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AudienceStats {
    /// Messages whose audience is not known yet, and those behind them.
    pub waiting_messages: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// What is held back of them once PostgreSQL has been away for `AUDIENCE_TIMEOUT`.
    pub budget_bytes: u64,
    /// Questions asked of PostgreSQL.
    pub queries: u64,
    /// … that failed.
    pub query_failures: u64,
    /// Answers taken from the second before.
    pub answers_reused: u64,
    /// Statuses withheld since PostgreSQL did not answer within `AUDIENCE_TIMEOUT`.
    pub timed_out: u64,
    /// What custom filters cost, in bytes searched.
    pub filter_work_bytes: u64,
    /// What the results of custom filters take, in bytes.
    pub filter_result_bytes: u64,
    /// Accounts with compiled custom filters.
    pub filter_accounts: u64,
    /// Their bytes.
    pub filter_bytes: u64,
    /// `FILTER_CACHE_BYTES`
    pub filter_budget_bytes: u64,
}

/// Everything at one moment.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Snapshot {
    pub version: &'static str,
    /// Seconds since 1970.
    pub started_at: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    pub uptime_ms: u64,
    pub draining: bool,
    pub connections: Connections,
    pub messages: Messages,
    pub latency: Latency,
    pub gate: GateStats,
    pub redis: IngestStats,
    pub redis_headroom: Option<HeadroomStats>,
    pub presence: PresenceStats,
    /// Why a newcomer would not be served.
    pub obstacles: Vec<String>,
    pub door: DoorStats,
    pub database: Option<DatabaseStats>,
    pub audience: Option<AudienceStats>,
    /// Connections ended, by reason.
    pub closes: Labelled,
    pub output: Output,
    /// Lines of the log that were lost because nobody took them.
    pub log_lines_lost: u64,
    pub process: ProcessStats,
    pub reactors: Vec<Reactor>,
    /// The clients with the most bytes waiting; empty where reactors were not asked.
    pub slowest: Vec<Slow>,
    /// Reactors that were asked and did not answer in time.
    pub reactors_silent: usize,
}

/// Clients and their subscriptions.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Connections {
    /// Clients.
    pub total: u64,
    /// … by transport.
    pub clients: Labelled,
    /// Clients since the start, by transport.
    pub opened: Labelled,
    /// Clients that are not caught up.
    pub lagging: u64,
    /// Clients that go on, or are answered, in the next turn.
    pub ready: u64,
    /// Bytes of unfinished messages from clients.
    pub unfinished_bytes: u64,
    /// Subscribe messages refused, by reason, but for what PostgreSQL and Redis decide.
    pub subscribe_refused: Labelled,
    /// Subscriptions by stream: of WebSocket clients …
    pub websocket_streams: Labelled,
    /// … and of Server-Sent Events clients.
    pub eventsource_streams: Labelled,
    /// By transport and stream, whether there was ever one.
    #[serde(skip)]
    pub streams_seen: [[bool; CHANNEL_LABELS.len()]; TRANSPORT_LABELS.len()],
}

/// What became of the messages.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Messages {
    /// owed = delivered + filtered + unsubscribed + closed + pending
    pub ledger: Ledger,
    /// What the identity is off by; where `exact`, anything but 0 is a fault.
    pub difference: i64,
    /// Whether each reactor was asked and answered: then the ledger was read between two turns.
    pub exact: bool,
    /// Delivered, by transport.
    pub delivered: Labelled,
    /// Withheld, by reason.
    pub filtered: Labelled,
    /// Closed, by the connection's reason.
    pub closed: Labelled,
}

/// From the read that completed a message to its last byte taken by the kernel.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    /// Upper bounds of the buckets; one more is open above.
    pub bounds_us: &'static [u64],
    /// Deliveries in each bucket (not cumulative), since the start.
    #[serde(flatten)]
    pub reading: Reading,
    /// Half of all deliveries since the start took at most this.
    pub p50_us: Option<f64>,
    /// 99 of 100 took at most this.
    pub p99_us: Option<f64>,
}

/// A histogram's counts.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Reading {
    pub counts: Vec<u64>,
    pub count: u64,
    pub sum_us: u64,
}

/// What was written.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Output {
    /// Writes to sockets.
    pub writes: u64,
    /// Bytes that the kernel took.
    pub write_bytes: u64,
    /// Writes that found a full socket.
    pub would_block: u64,
}

/// One reactor.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Reactor {
    pub clients: u64,
    pub pending: u64,
    pub log_bytes: u64,
    pub log_entries: u64,
    pub half_written_bytes: u64,
    pub lagging: u64,
    pub ready: u64,
    pub turns: u64,
}

/// A client that is not caught up.
#[derive(Clone, Debug, Serialize)]
pub struct Slow {
    /// Its place: reactor, index, generation. No token, no name.
    pub client: String,
    /// `websocket` or `eventsource`
    pub transport: &'static str,
    /// Messages that wait.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long the oldest has waited.
    pub oldest_ms: u64,
    /// How long ago it took a whole frame.
    pub progress_ms: u64,
}

impl Slow {
    fn new(laggard: &Laggard) -> Slow {
        Slow {
            client: laggard.client.to_string(),
            transport: TRANSPORT_LABELS[transport_index(laggard.transport)],
            messages: laggard.owed,
            bytes: laggard.bytes,
            oldest_ms: millis(laggard.oldest),
            progress_ms: millis(laggard.last_progress),
        }
    }
}

impl Snapshot {
    /// Puts it together. `reports` is none where reactors were not asked.
    pub fn assemble(
        sources: &dyn Sources,
        process: ProcessStats,
        started: SystemTime,
        reports: Option<&[ReactorReport]>,
    ) -> Snapshot {
        let now = SystemTime::now();
        let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            started_at: since_epoch(started).as_secs(),
            at_ms: millis(since_epoch(now)),
            uptime_ms: millis(now.duration_since(started).unwrap_or_default()),
            draining: sources.draining(),
            connections: Connections {
                clients: primed(&TRANSPORT_LABELS),
                opened: primed(&TRANSPORT_LABELS),
                subscribe_refused: Labelled(
                    RequestError::ALL.iter().map(|reason| (reason.label(), 0)).collect(),
                ),
                websocket_streams: primed(&CHANNEL_LABELS),
                eventsource_streams: primed(&CHANNEL_LABELS),
                ..Connections::default()
            },
            messages: Messages {
                delivered: primed(&TRANSPORT_LABELS),
                filtered: Labelled(WITHHELD.iter().map(|reason| (withheld_label(*reason), 0)).collect()),
                closed: closes(),
                ..Messages::default()
            },
            latency: Latency::default(),
            gate: sources.gate(),
            redis: sources.ingest(),
            redis_headroom: sources.headroom(),
            presence: sources.presence(),
            obstacles: sources.obstacles(),
            door: sources.door(),
            database: sources.database(),
            audience: sources.audience(),
            closes: closes(),
            output: Output::default(),
            log_lines_lost: crate::logging::lines_lost(),
            process,
            reactors: Vec::new(),
            slowest: Vec::new(),
            reactors_silent: 0,
        };
        let mut latency = HistogramReading::default();
        for counters in sources.reactors() {
            snapshot.add(counters);
            latency.merge(&counters.latency.read());
        }
        snapshot.latency = Latency::new(&latency);
        snapshot.connections.total = snapshot.connections.clients.sum();
        if let Some(reports) = reports {
            snapshot.add_reports(reports);
        }
        snapshot.messages.difference = snapshot.messages.ledger.difference();
        snapshot
    }

    fn add(&mut self, counters: &ReactorCounters) {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let connections = &mut self.connections;
        let mut clients = 0;
        for transport in 0..TRANSPORT_LABELS.len() {
            let live = counters.clients[transport].live();
            clients += live;
            connections.clients.add(transport, live);
            connections.opened.add(transport, counters.clients[transport].opened());
            self.messages.delivered.add(transport, read(&counters.delivered[transport]));
            let streams = if transport == 0 {
                &mut connections.websocket_streams
            } else {
                &mut connections.eventsource_streams
            };
            for (kind, flow) in counters.subscriptions[transport].iter().enumerate() {
                streams.add(kind, flow.live());
                connections.streams_seen[transport][kind] |= flow.opened() > 0;
            }
        }
        connections.unfinished_bytes += read(&counters.unfinished_bytes);
        for (index, counter) in counters.subscribe_refused.iter().enumerate() {
            connections.subscribe_refused.add(index, read(counter));
        }
        for (index, counter) in counters.filtered.iter().enumerate() {
            self.messages.filtered.add(index, read(counter));
        }
        for (index, counter) in counters.closed.iter().enumerate() {
            self.messages.closed.add(index, read(counter));
        }
        for (index, counter) in counters.closes.iter().enumerate() {
            self.closes.add(index, read(counter));
        }
        self.messages.ledger.merge(&counters.ledger());
        self.output.writes += read(&counters.writes);
        self.output.write_bytes += read(&counters.write_bytes);
        self.output.would_block += read(&counters.would_block);
        let reactor = Reactor {
            clients,
            pending: read(&counters.pending),
            log_bytes: read(&counters.log_bytes),
            log_entries: read(&counters.log_entries),
            half_written_bytes: read(&counters.half_written_bytes),
            lagging: read(&counters.lagging),
            ready: read(&counters.ready),
            turns: read(&counters.turns),
        };
        connections.lagging += reactor.lagging;
        connections.ready += reactor.ready;
        self.reactors.push(reactor);
    }

    fn add_reports(&mut self, reports: &[ReactorReport]) {
        let mut slowest = Top::new(LAGGARDS_SHOWN);
        for laggard in reports.iter().flat_map(|report| &report.laggards) {
            slowest.push(laggard.bytes, laggard);
        }
        self.slowest = slowest.finish().into_iter().map(Slow::new).collect();
        self.reactors_silent = self.reactors.len().saturating_sub(reports.len());
        if self.reactors_silent == 0 {
            self.messages.exact = true;
            self.messages.ledger = Ledger::default();
            for report in reports {
                self.messages.ledger.merge(&report.ledger);
            }
        }
    }
}

impl Latency {
    fn new(reading: &HistogramReading) -> Latency {
        Latency {
            bounds_us: &LATENCY_BOUNDS_US,
            reading: Reading {
                counts: reading.counts.to_vec(),
                count: reading.count(),
                sum_us: reading.sum_us,
            },
            p50_us: reading.quantile_us(0.5),
            p99_us: reading.quantile_us(0.99),
        }
    }
}

fn primed(labels: &[&'static str]) -> Labelled {
    Labelled(labels.iter().map(|label| (*label, 0)).collect())
}

fn closes() -> Labelled {
    Labelled(CloseReason::ALL.iter().map(|reason| (reason.label(), 0)).collect())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
