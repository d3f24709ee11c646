//! The audience stage: between ingest and reactors, it finds out who may see a status.
//!
//! A thread of its own with its own runtime and its own connections. Everything that is published on a filtered
//! channel passes through it, in order within the channel; unfiltered channels never come here, so nothing waits
//! for PostgreSQL that need not.
//!
//! - A status is asked about in one statement for everybody who watches a channel that it goes to; its identical
//!   copies on other channels use the answer, within a second and for accounts that it covered.
//! - PostgreSQL away: statuses are held back and asked about again; after `AUDIENCE_TIMEOUT` they go to nobody, and the
//!   log says so once per outage. Nothing is ever sent to someone who was not asked about.
//! - What waits is bounded by a quarter of `BACKPRESSURE_HIGH_BYTES`; beyond it the oldest statuses go to nobody.
//! - Settings are read again within `SETTINGS_REFRESH_SECONDS`, filters when they change.
//!
//! The deciding part knows no clock and no database and is tested by itself (`machine`); the whole against
//! PostgreSQL in `tests/db_stage.rs`.

mod machine;
mod question;
mod related;
mod stats;
mod viewers;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tracing::error;

use self::machine::{Ask, Machine, Reply};
pub use self::stats::StageStats;
use super::pool::{DbError, Pool};
use super::{Options, audience, feeds, filters};
use crate::clock::Clock;
use crate::core::handover::{Delivery, StageItem};
use crate::core::mailbox::Mailbox;
use crate::core::slack::Slack;
use crate::limits::{Limits, Waits};
use crate::sys::ThreadCache;

/// Connections of the stage's own: questions that are asked at once.
const CONNECTIONS: usize = 4;

/// The audience stage before its thread runs: its inbox can be given to the ingest already.
#[derive(Debug)]
pub struct Stage {
    inbox: Arc<Mailbox<StageItem>>,
    wake: Arc<Notify>,
}

/// The running stage. Dropping it leaves the thread running until the process ends.
#[derive(Debug)]
pub struct StageHandle {
    /// What it counts.
    pub stats: Arc<StageStats>,
    /// Its connections, for their figures only: they belong to the stage's thread.
    pub pool: Pool,
    stopping: Arc<AtomicBool>,
    wake: Arc<Notify>,
    thread: JoinHandle<()>,
}

impl Default for Stage {
    fn default() -> Stage {
        let wake = Arc::new(Notify::new());
        let waker = Arc::clone(&wake);
        Stage { inbox: Arc::new(Mailbox::new(move || waker.notify_one())), wake }
    }
}

impl Stage {
    /// How many of `DB_POOL`'s connections the stage takes for itself.
    pub fn connections(pool_size: usize) -> usize {
        (pool_size / 2).clamp(1, CONNECTIONS)
    }

    /// The connection settings for the stage's pool, from the server's: its share of the connections, and
    /// no statement or connection attempt that outlasts `AUDIENCE_TIMEOUT`.
    pub fn options(options: &Options, limits: &Limits) -> Options {
        let waits = limits.audience_waits();
        Options {
            pool_size: Stage::connections(options.pool_size),
            waits: Waits { connect: options.waits.connect.min(waits.connect), ..waits },
            ..options.clone()
        }
    }

    /// Where the ingest puts everything of filtered channels.
    pub fn inbox(&self) -> Arc<Mailbox<StageItem>> {
        Arc::clone(&self.inbox)
    }

    /// Starts the thread. `pool` must not be used by any other runtime; statuses go on to those `reactors`
    /// whose bit is set in their mask.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start<S: Send + 'static>(
        self,
        pool: Pool,
        connections: usize,
        limits: &Limits,
        clock: Clock,
        reactors: Vec<Arc<Mailbox<Delivery<S>>>>,
    ) -> std::io::Result<StageHandle> {
        let stats = Arc::new(StageStats::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let mut driver = Driver {
            machine: Machine::new(limits, connections, Arc::clone(&stats)),
            cache: ThreadCache::new(limits),
            pool: pool.clone(),
            inbox: self.inbox,
            wake: Arc::clone(&self.wake),
            stopping: Arc::clone(&stopping),
            stats: Arc::clone(&stats),
            clock,
            outboxes: reactors.into_iter().map(|mailbox| (mailbox, Vec::new())).collect(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("audience".to_owned())
            .spawn(move || runtime.block_on(driver.run()))?;
        Ok(StageHandle { stats, pool, stopping, wake: self.wake, thread })
    }
}

impl StageHandle {
    /// Whether the thread has ended; without [`stop`](Self::stop) that is a panic.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Makes the thread begin another turn.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let wake = Arc::clone(&self.wake);
        move || wake.notify_one()
    }

    /// Ends the thread and waits for it; what waits goes nowhere.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        self.wake.notify_one();
        if self.thread.join().is_err() {
            error!("the audience stage ended by a panic");
        }
    }
}

/// Reactors with what is to be put into their mailboxes at the end of the turn.
type Outboxes<S> = Vec<(Arc<Mailbox<Delivery<S>>>, Vec<Delivery<S>>)>;

struct Driver<S> {
    machine: Machine,
    cache: ThreadCache,
    pool: Pool,
    inbox: Arc<Mailbox<StageItem>>,
    wake: Arc<Notify>,
    stopping: Arc<AtomicBool>,
    stats: Arc<StageStats>,
    clock: Clock,
    outboxes: Outboxes<S>,
}

impl<S: Send + 'static> Driver<S> {
    async fn run(&mut self) {
        let mut items = Vec::new();
        let mut flights: JoinSet<Result<Reply, DbError>> = JoinSet::new();
        let mut asked: HashMap<Id, Arc<Ask>> = HashMap::new();
        while !self.stopping.load(Ordering::Acquire) {
            self.stats.turns.fetch_add(1, Ordering::Relaxed);
            while let Some(ask) = self.machine.next_ask(self.clock.now()) {
                let (pool, ask) = (self.pool.clone(), Arc::new(ask));
                let sent = Arc::clone(&ask);
                let flight = flights.spawn(async move { send(&pool, &sent).await });
                asked.insert(flight.id(), ask);
            }
            self.deliver();
            self.machine.publish_stats();
            let now = self.clock.now();
            let pause = self.machine.next_wake().map(|at| at.saturating_sub(now));
            let pause = [pause, self.cache.due_in(now)].into_iter().flatten().min();
            tokio::select! {
                () = self.wake.notified() => {
                    self.inbox.drain(&mut items);
                    let (now, unix_ms) = self.now();
                    self.cache.passed(items.len(), now);
                    for item in items.drain(..) {
                        self.machine.push(item, now, unix_ms);
                    }
                    items.give_back();
                }
                Some(done) = flights.join_next_with_id(), if !flights.is_empty() => {
                    let (id, reply) = done.unwrap_or_else(|failure| (failure.id(), Err(broken(&failure))));
                    if let Some(ask) = asked.remove(&id) {
                        let (now, unix_ms) = self.now();
                        self.machine.answer(&ask, reply, now, unix_ms);
                    }
                }
                () = tokio::time::sleep(pause.unwrap_or(Duration::MAX)), if pause.is_some() => {}
            }
            let now = self.clock.now();
            self.machine.tick(now);
            self.cache.settle(now);
        }
    }

    fn now(&self) -> (Duration, i64) {
        let now = self.clock.now();
        (now, (self.clock.start_unix() + now).as_millis() as i64)
    }

    fn deliver(&mut self) {
        for (event, mask) in self.machine.out.drain(..) {
            for (number, outbox) in self.outboxes.iter_mut().enumerate() {
                if mask & (1 << number) != 0 {
                    outbox.1.push(Delivery::Event(Arc::clone(&event)));
                }
            }
        }
        self.machine.out.give_back();
        for (mailbox, batch) in &mut self.outboxes {
            mailbox.push_all(batch);
            batch.give_back();
        }
    }
}

/// A question whose task ended without an answer; it is asked again.
fn broken(failure: &JoinError) -> DbError {
    error!("a question about who may see a status failed: {failure}");
    DbError::Statement { cause: "its task ended".into() }
}

/// Asks PostgreSQL all that an [`Ask`] is about, at once. As a rule that is one statement.
async fn send(pool: &Pool, ask: &Ask) -> Result<Reply, DbError> {
    let hidden = async {
        let Some(Ok(status)) = ask.event.as_ref().and_then(|event| event.status()) else {
            return Ok(Vec::new());
        };
        // Every account is from this database, so its id fits.
        let viewers: Vec<i64> = ask.covered.asked.iter().map(|id| *id as i64).collect();
        audience::hidden_from(pool, &viewers, status).await
    };
    let settings = async {
        let accounts: Vec<i64> = ask.settings.iter().map(|viewer| viewer.id as i64).collect();
        if accounts.is_empty() {
            return Ok(HashMap::new());
        }
        feeds::settings_of(pool, &accounts).await
    };
    let filters = async {
        let accounts: Vec<i64> = ask.loads.iter().map(|load| load.viewer.id as i64).collect();
        filters::filters_of(pool, &accounts).await
    };
    let feeds = async { if ask.feeds { feeds::feed_access(pool).await.map(Some) } else { Ok(None) } };
    let (hidden, settings, filters, feeds) = tokio::try_join!(hidden, settings, filters, feeds)?;
    Ok(Reply { hidden, settings, filters, feeds })
}
