//! What the stage decides: whom to ask about, when, and what may go on. No I/O and no clock.
//!
//! A status waits twice: for PostgreSQL's answer (`asking`), then for room in the budget for its audience (`deciding`),
//! which nearly always is there. `release` has what ends a wait otherwise: time, or Redis's patience.
//!
//! Invariants: events of one channel leave in the order in which they came; a status leaves with an audience; an
//! account gets a status only if it watched the channel when the status came, and was asked about.

mod asking;
mod deciding;
mod release;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::question::{Bench, Question};
use super::stats::StageStats;
use super::viewers::{Snapshot, Viewer, Viewers};
use crate::core::counters::set;
use crate::core::event::{Asked, Audience, Event, OutcomeBudget, Withheld};
use crate::core::filter::FilterCache;
use crate::core::gate::{Charge, Gate};
use crate::core::handover::StageItem;
use crate::core::stream::{Channel, Id};
use crate::db::preferences::Instance;
use crate::limits::Limits;
use crate::logging::Limited;

#[cfg(test)]
use asking::About;
pub(super) use asking::{Ask, Reply};

/// How old an answer may be to serve an identical status.
const REUSE: Duration = Duration::from_secs(1);

/// The pauses between attempts while PostgreSQL is away: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What an entry takes besides its event: itself, and its part of a question.
const ENTRY_BYTES: usize = 512;

/// What passes through the stage.
#[derive(Debug)]
pub(super) enum Passing {
    Event(Arc<Event>),
    /// A message of the channel was too long to relay.
    Gap(Channel),
}

/// Something on its way through the stage.
#[derive(Debug)]
struct Entry {
    number: u64,
    passing: Passing,
    mask: u16,
    /// What it holds against the budget, its event included.
    bytes: usize,
    /// The part of that which it holds besides its event.
    charge: Charge,
    /// Whether its audience is not known yet.
    waits: bool,
    asked: Asked,
    /// What `asked` takes, if it was made for this entry.
    asked_bytes: u32,
    question: u64,
}

#[derive(Debug)]
pub(super) struct Machine {
    viewers: Viewers,
    cache: FilterCache,
    gate: Arc<Gate>,
    bench: Bench,
    /// What holds for all, and when it was read.
    instance: Option<(Instance, Duration)>,
    queues: HashMap<Channel, VecDeque<Entry>, foldhash::fast::RandomState>,
    questions: HashMap<u64, Question, foldhash::fast::RandomState>,
    by_payload: HashMap<u64, SmallVec<[u64; 2]>, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    /// Questions to be sent, or to be sent again.
    unsent: VecDeque<u64>,
    /// Questions without an answer that were never sent, and those that were, by the time of the first.
    never_asked: BTreeSet<u64>,
    asked: BTreeSet<(Duration, u64)>,
    /// Entries whose answer is there, and whose audience has to be made: question, channel and number.
    answered: VecDeque<(u64, Channel, u64)>,
    /// Decided questions that may serve once more, oldest first, with their bytes.
    kept: VecDeque<(u64, usize)>,
    kept_bytes: usize,
    last_number: u64,
    in_flight: usize,
    in_flight_max: usize,
    /// Viewers whose connections came since the last batch was sent.
    newcomers: Vec<Arc<Viewer>>,
    /// Batches of newcomers that were sent, and those that were read or failed.
    batches_sent: u64,
    batches_read: u64,
    paused_until: Duration,
    pause: Duration,
    refresh_at: Duration,
    refreshing: bool,
    joined_at: Duration,
    /// When PostgreSQL last answered anything.
    heard_at: Duration,
    /// Whether it has answered nothing within `audience_timeout` since it was last asked.
    is_away: bool,
    bytes: usize,
    bytes_max: usize,
    messages: usize,
    epoch: u32,
    audience_timeout: Duration,
    settings_refresh: Duration,
    /// Statuses withheld in the outage that is going on.
    withheld_in_outage: u64,
    /// Whether the log has it.
    outage_logged: bool,
    domains_logged: bool,
    outage_log: Limited,
    malformed_log: Limited,
    overflow_log: Limited,
    expensive_log: Limited,
    stats: Arc<StageStats>,
    /// What may go on, with its reactors' mask.
    pub(super) out: Vec<(Passing, u16)>,
}

impl Machine {
    /// `in_flight_max` questions are asked at once.
    pub(super) fn new(
        limits: &Limits,
        in_flight_max: usize,
        gate: Arc<Gate>,
        stats: Arc<StageStats>,
    ) -> Machine {
        let bytes_max = limits.backpressure_high_bytes / 4;
        set(&stats.budget_bytes, bytes_max as u64);
        set(&stats.filter_budget_bytes, limits.filter_cache_bytes as u64);
        let outcomes = OutcomeBudget::new(&gate);
        Machine {
            viewers: Viewers::default(),
            cache: FilterCache::new(limits.filter_cache_bytes),
            gate,
            bench: Bench::new(outcomes),
            instance: None,
            queues: HashMap::default(),
            questions: HashMap::default(),
            by_payload: HashMap::default(),
            hasher: foldhash::fast::RandomState::default(),
            unsent: VecDeque::new(),
            never_asked: BTreeSet::new(),
            asked: BTreeSet::new(),
            answered: VecDeque::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            last_number: 0,
            in_flight: 0,
            in_flight_max: in_flight_max.max(1),
            newcomers: Vec::new(),
            batches_sent: 0,
            batches_read: 0,
            paused_until: Duration::ZERO,
            pause: RETRY.0,
            refresh_at: Duration::ZERO,
            refreshing: false,
            joined_at: Duration::ZERO,
            heard_at: Duration::ZERO,
            is_away: false,
            bytes: 0,
            bytes_max,
            messages: 0,
            epoch: 0,
            audience_timeout: limits.audience_timeout,
            settings_refresh: limits.settings_refresh,
            withheld_in_outage: 0,
            outage_logged: false,
            domains_logged: false,
            outage_log: Limited::every(Duration::from_secs(5)),
            malformed_log: Limited::every(Duration::from_secs(10)),
            overflow_log: Limited::every(Duration::from_secs(10)),
            expensive_log: Limited::every(Duration::from_secs(60)),
            stats,
            out: Vec::new(),
        }
    }

    /// Takes what the ingest sent.
    pub(super) fn push(&mut self, item: StageItem, now: Duration) {
        match item {
            StageItem::Join(channel, account) => {
                if self.viewers.len() == 0 {
                    self.refresh_at = now + self.refresh_every();
                }
                let viewer = self.viewers.join(channel, account, now, &mut self.cache);
                self.came(viewer);
                self.joined_at = now;
            }
            StageItem::Leave(channel, account) => {
                if self.viewers.leave(&channel, account, &mut self.cache) {
                    self.outdate(account);
                }
            }
            StageItem::FiltersChanged(account) => {
                if let Some(viewer) = self.viewers.get(account) {
                    self.cache.changed(&viewer.slot);
                }
                self.outdate(account);
            }
            StageItem::Event(event, mask) => self.event(event, mask, now),
            StageItem::ChannelGap(channel, mask) => self.queue(Passing::Gap(channel), mask),
        }
    }

    /// Marks questions in flight that cover this account as outdated: its filters changed after they were sent.
    fn outdate(&mut self, account: Id) {
        for question in self.questions.values_mut() {
            question.outdated |= question.covered.asked.binary_search(&account).is_ok();
        }
    }

    fn event(&mut self, event: Arc<Event>, mask: u16, now: Duration) {
        if event.position().epoch != self.epoch {
            self.epoch = event.position().epoch;
            // Changes of filters while Redis was away were announced to nobody.
            self.viewers.all().for_each(|viewer| self.cache.changed(&viewer.slot));
            self.questions.values_mut().for_each(|question| question.outdated = true);
        }
        match event.status() {
            None => self.queue(Passing::Event(event), mask),
            Some(Err(wrong)) => {
                event.set_audience(Audience::nobody(Withheld::Malformed));
                self.malformed(&event, wrong);
                self.queue(Passing::Event(event), mask);
            }
            Some(Ok(_)) => match self.viewers.of(event.channel()) {
                Some((watching, bytes)) => self.ask_for(event, mask, &watching, bytes, now),
                None => {
                    event.set_audience(Audience::default());
                    self.queue(Passing::Event(event), mask);
                }
            },
        }
    }

    /// Appends what waits for nothing but what is before it in its channel.
    fn queue(&mut self, passing: Passing, mask: u16) {
        if self.queues.contains_key(passing.channel()) {
            let entry = self.entry(passing, mask);
            self.append(entry);
        } else {
            self.out.push((passing, mask));
        }
    }

    fn entry(&mut self, passing: Passing, mask: u16) -> Entry {
        self.last_number += 1;
        Entry {
            number: self.last_number,
            bytes: passing.held_bytes() + ENTRY_BYTES,
            passing,
            mask,
            charge: Charge::new(&self.gate, ENTRY_BYTES),
            waits: false,
            asked: Asked::default(),
            asked_bytes: 0,
            question: 0,
        }
    }

    fn append(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        self.messages += 1;
        let channel = entry.passing.channel().clone();
        self.queues.entry(channel).or_default().push_back(entry);
    }

    /// When [`tick`](Self::tick) or [`next_ask`](Self::next_ask) has something to do, if nothing comes
    /// before.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        let forget = self.kept.front().and_then(|kept| self.questions.get(&kept.0));
        let forget = forget.map(|question| question.asked_at + REUSE + Duration::from_millis(1));
        [self.next_deadline(), forget, self.next_ask_at()].into_iter().flatten().min()
    }

    /// Brings the gauges up to date.
    pub(super) fn publish_stats(&self) {
        set(&self.stats.waiting_messages, self.messages as u64);
        set(&self.stats.waiting_bytes, self.bytes as u64);
        set(&self.stats.filter_accounts, self.cache.len() as u64);
        set(&self.stats.filter_bytes, self.cache.held_bytes() as u64);
        set(&self.stats.filter_work_bytes, self.bench.work.spent());
        set(&self.stats.filter_result_bytes, self.bench.outcomes.held_bytes() as u64);
    }
}

impl Passing {
    fn channel(&self) -> &Channel {
        match self {
            Passing::Event(event) => event.channel(),
            Passing::Gap(channel) => channel,
        }
    }

    /// What it holds against the budget, results of filters included.
    fn held_bytes(&self) -> usize {
        let Passing::Event(event) = self else { return 0 };
        let outcomes = event
            .audience()
            .get()
            .map_or(0, |audience| audience.outcomes.iter().map(|outcome| outcome.json().len()).sum());
        event.held_bytes() + outcomes
    }
}

fn find<'a>(
    queues: &'a mut HashMap<Channel, VecDeque<Entry>, foldhash::fast::RandomState>,
    channel: &Channel,
    number: u64,
) -> Option<&'a mut Entry> {
    let queue = queues.get_mut(channel)?;
    let at = queue.binary_search_by_key(&number, |entry| entry.number).ok()?;
    queue.get_mut(at)
}
