//! The audience stage: between ingest and reactors, it finds out who may see a status.
//!
//! A thread of its own with its own runtime and its own connections. Everything that is published on a filtered
//! channel passes through it, in order within the channel; unfiltered channels never come here, so nothing waits
//! for PostgreSQL that need not.
//!
//! - A status is asked about in one statement for everybody who watches a channel that it goes to; its identical
//!   copies on other channels use the answer, within a second and for accounts that it covered. What newcomers have set
//!   is read when they join, in one statement for all who joined since the last.
//! - What waits counts against the budget: while PostgreSQL answers, more than it can keep up with pauses reading from
//!   Redis, and nothing is withheld.
//! - PostgreSQL away: statuses are held back and asked about again; those that it has not answered within
//!   `AUDIENCE_TIMEOUT` go to nobody, and the log says so once per outage. From then on until it answers, no more than a
//!   quarter of the budget is held back, so that home timelines go on. Nothing is ever sent to someone who was not
//!   asked about.
//! - If Redis is about to drop the connection because reading pauses, the oldest statuses go to nobody.
//! - Custom filters have a budget of work and one of results ([`crate::core::filter::WorkBudget`],
//!   [`crate::core::event::OutcomeBudget`]): the accounts that cost most are the first to get nothing.
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

use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tracing::error;

use self::machine::{Ask, Machine, Passing, Reply};
pub use self::stats::StageStats;
use super::pool::{DbError, Pool};
use super::preferences::{Preferences, preferences};
use super::{Options, audience};
use crate::clock::Clock;
use crate::core::gate::Gate;
use crate::core::handover::{Delivery, StageItem};
use crate::core::mailbox::Mailbox;
use crate::core::slack::Slack;
use crate::limits::{HEADROOM_INTERVAL, Limits, Waits};
use crate::sys::ThreadCache;

/// Connections of the stage's own: questions that are asked at once.
const CONNECTIONS: usize = 4;

/// The audience stage before its thread runs: its inbox can be given to the ingest already.
#[derive(Debug)]
pub struct Stage {
    inbox: Arc<Mailbox<StageItem>>,
    wake: Arc<Notify>,
    stats: Arc<StageStats>,
}

/// What the stage works with.
pub struct Setup<S> {
    /// Connections that no other runtime uses.
    pub pool: Pool,
    /// How many they are.
    pub connections: usize,
    /// Intervals and bounds.
    pub limits: Limits,
    /// The budget that all events count against.
    pub gate: Arc<Gate>,
    /// Whether Redis holds half of what it is willing to hold for us, while reading is paused.
    pub redis_is_pressed: Box<dyn Fn() -> bool + Send>,
    /// The process's clock.
    pub clock: Clock,
    /// Statuses go on to those whose bit is set in their mask.
    pub reactors: Vec<Arc<Mailbox<Delivery<S>>>>,
}

impl<S> std::fmt::Debug for Setup<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Setup({} connections, {:?})", self.connections, self.gate)
    }
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
        let inbox = Arc::new(Mailbox::new(move || waker.notify_one()));
        Stage { inbox, wake, stats: Arc::default() }
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

    /// What it will count.
    pub fn stats(&self) -> Arc<StageStats> {
        Arc::clone(&self.stats)
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start<S: Send + 'static>(self, setup: Setup<S>) -> std::io::Result<StageHandle> {
        let Setup { pool, connections, limits, gate, redis_is_pressed, clock, reactors } = setup;
        let (stats, wake) = (self.stats, Arc::clone(&self.wake));
        gate.on_announce(move || wake.notify_one());
        let stopping = Arc::new(AtomicBool::new(false));
        let mut driver = Driver {
            cache: ThreadCache::new(&limits),
            machine: Machine::new(&limits, connections, gate, Arc::clone(&stats)),
            pool: pool.clone(),
            inbox: self.inbox,
            wake: Arc::clone(&self.wake),
            stopping: Arc::clone(&stopping),
            stats: Arc::clone(&stats),
            redis_is_pressed,
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
    redis_is_pressed: Box<dyn Fn() -> bool + Send>,
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
            let now = self.clock.now();
            self.machine.tick(now);
            if self.machine.is_over_share() && (self.redis_is_pressed)() {
                self.machine.relieve();
            }
            let has_more = self.machine.decide(now, self.clock.unix_ms());
            while let Some(ask) = self.machine.next_ask(now) {
                let (pool, ask) = (self.pool.clone(), Arc::new(ask));
                let sent = Arc::clone(&ask);
                let flight = flights.spawn(async move { send(&pool, &sent).await });
                asked.insert(flight.id(), ask);
            }
            self.deliver();
            self.machine.publish_stats();
            tokio::select! {
                () = self.wake.notified() => {}
                Some(done) = flights.join_next_with_id(), if !flights.is_empty() => {
                    self.answer(&mut asked, done);
                }
                () = self.pause(has_more) => {}
            }
            // All that is there is taken before time is looked at: what lies here is not late.
            while let Some(done) = flights.try_join_next_with_id() {
                self.answer(&mut asked, done);
            }
            self.inbox.drain(&mut items);
            let now = self.clock.now();
            let is_viewers = |item: &&StageItem| matches!(item, StageItem::Join(..) | StageItem::Leave(..));
            self.cache.passed(items.iter().filter(is_viewers).count(), now);
            for item in items.drain(..) {
                self.machine.push(item, now);
            }
            items.give_back();
            self.cache.settle(now);
        }
    }

    /// Until the machine has to run again, whatever comes.
    fn pause(&self, has_more: bool) -> impl Future<Output = ()> + use<S> {
        let mut at = self.machine.next_wake();
        // Whether Redis is pressed is measured in this interval while reading is paused.
        if self.machine.is_over_share() {
            let look = self.clock.now() + HEADROOM_INTERVAL;
            at = Some(at.map_or(look, |at| at.min(look)));
        }
        let now = self.clock.now();
        let pause = at.map(|at| at.saturating_sub(now));
        let pause = [pause, self.cache.due_in(now)].into_iter().flatten().min();
        async move {
            match pause {
                _ if has_more => tokio::task::yield_now().await,
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        }
    }

    fn answer(
        &mut self,
        asked: &mut HashMap<Id, Arc<Ask>>,
        done: Result<(Id, Result<Reply, DbError>), JoinError>,
    ) {
        let (id, reply) = done.unwrap_or_else(|failure| (failure.id(), Err(broken(&failure))));
        if let Some(ask) = asked.remove(&id) {
            self.machine.answer(&ask, reply, self.clock.now());
        }
    }

    fn deliver(&mut self) {
        for (passing, mask) in self.machine.out.drain(..) {
            for (number, outbox) in self.outboxes.iter_mut().enumerate() {
                if mask & (1 << number) != 0 {
                    outbox.1.push(match &passing {
                        Passing::Event(event) => Delivery::Event(Arc::clone(event)),
                        Passing::Gap(channel) => Delivery::ChannelGap(channel.clone()),
                    });
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
    DbError::statement("its task ended")
}

/// Asks PostgreSQL all that an [`Ask`] is about, at once. As a rule that is one statement.
async fn send(pool: &Pool, ask: &Ask) -> Result<Reply, DbError> {
    let hidden = async {
        let Some(Ok(status)) = ask.event.as_ref().and_then(|event| event.status()) else {
            return Ok(Vec::new());
        };
        // Every account is from this database, so its id fits.
        let viewers: Vec<i64> = ask.covered.asked.iter().map(|id| *id as i64).collect();
        audience::hidden_from(pool, &viewers, status, ask.domains_readable).await
    };
    let preferences = async {
        let settings_of: Vec<i64> = ask.settings.iter().map(|viewer| viewer.id as i64).collect();
        let filters_of: Vec<i64> = ask.loads.iter().map(|load| load.viewer.id as i64).collect();
        if settings_of.is_empty() && filters_of.is_empty() && !ask.instance {
            return Ok(Preferences::default());
        }
        preferences(pool, &settings_of, &filters_of, ask.instance).await
    };
    let (hidden, preferences) = tokio::try_join!(hidden, preferences)?;
    Ok(Reply { hidden, preferences })
}
