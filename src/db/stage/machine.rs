//! What the stage decides: whom to ask about, when, and what may go on. No I/O and no clock.
//!
//! Invariants: events of one channel leave in the order in which they came; a status leaves with an audience; an
//! account gets a status only if it watched the channel when the status came, and was asked about.

mod release;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use smallvec::SmallVec;
use tracing::{info, warn};

use super::question::{Answer, Load, Question, State};
use super::related::related;
use super::stats::StageStats;
use super::viewers::{Snapshot, Viewer, Viewers};
use crate::core::counters::{add, set};
use crate::core::event::{Asked, Audience, Event, Withheld};
use crate::core::filter::{FilterCache, Filters, SearchText};
use crate::core::handover::StageItem;
use crate::core::slack::Slack;
use crate::core::stream::{Channel, Id};
use crate::db::feeds::{FeedAccess, Settings};
use crate::db::pool::DbError;
use crate::limits::Limits;
use crate::logging::Limited;

/// How old an answer may be to serve an identical status.
const REUSE: Duration = Duration::from_secs(1);

/// The pauses between attempts while PostgreSQL is away: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What an entry takes besides its event, and a question that is kept besides its answer; bytes.
const ENTRY_BYTES: usize = 256;

/// An event on its way through the stage.
#[derive(Debug)]
struct Entry {
    number: u64,
    event: Arc<Event>,
    mask: u16,
    bytes: usize,
    /// When it is withheld if nothing is known by then; none when it may go on.
    deadline: Option<Duration>,
    asked: Asked,
    /// What `asked` takes, if it was made for this entry.
    asked_bytes: u32,
    question: u64,
}

impl Entry {
    /// Who gets it is known: it may go on.
    fn decided(&mut self, audience: Audience) {
        self.event.set_audience(Audience { asked_bytes: self.asked_bytes, ..audience });
        self.deadline = None;
    }
}

/// Something to ask PostgreSQL.
#[derive(Debug)]
pub(super) struct Ask {
    /// The question, or 0 for settings alone.
    pub(super) question: u64,
    /// The status, for a question.
    pub(super) event: Option<Arc<Event>>,
    pub(super) covered: Arc<Snapshot>,
    /// Whose settings are to be read.
    pub(super) settings: Vec<Arc<Viewer>>,
    /// Whose filters are to be read.
    pub(super) loads: Vec<Load>,
    /// Whether the feed settings are to be read.
    pub(super) feeds: bool,
    pub(super) sent_at: Duration,
}

/// What PostgreSQL said to an [`Ask`].
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) hidden: Vec<(Id, Withheld)>,
    pub(super) settings: HashMap<Id, Settings>,
    pub(super) filters: HashMap<Id, Arc<Filters>>,
    pub(super) feeds: Option<FeedAccess>,
}

#[derive(Debug)]
pub(super) struct Machine {
    viewers: Viewers,
    cache: FilterCache,
    feeds: Option<(FeedAccess, Duration)>,
    queues: HashMap<Channel, VecDeque<Entry>, foldhash::fast::RandomState>,
    /// The statuses that wait, by number, so the oldest is first.
    waiting: BTreeMap<u64, Channel>,
    questions: HashMap<u64, Question, foldhash::fast::RandomState>,
    by_payload: HashMap<u64, SmallVec<[u64; 2]>, foldhash::fast::RandomState>,
    hasher: foldhash::fast::RandomState,
    unsent: VecDeque<u64>,
    /// Answered questions that may serve once more, oldest first, with their bytes.
    kept: VecDeque<(u64, usize)>,
    kept_bytes: usize,
    last_number: u64,
    in_flight: usize,
    in_flight_max: usize,
    paused_until: Duration,
    pause: Duration,
    refresh_at: Duration,
    refreshing: bool,
    joined_at: Duration,
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
    outage_log: Limited,
    malformed_log: Limited,
    overflow_log: Limited,
    stats: Arc<StageStats>,
    /// Events that may go on, with their reactors' mask.
    pub(super) out: Vec<(Arc<Event>, u16)>,
}

impl Machine {
    /// `in_flight_max` questions are asked at once.
    pub(super) fn new(limits: &Limits, in_flight_max: usize, stats: Arc<StageStats>) -> Machine {
        let bytes_max = limits.backpressure_high_bytes / 4;
        set(&stats.budget_bytes, bytes_max as u64);
        set(&stats.filter_budget_bytes, limits.filter_cache_bytes as u64);
        Machine {
            viewers: Viewers::default(),
            cache: FilterCache::new(limits.filter_cache_bytes),
            feeds: None,
            queues: HashMap::default(),
            waiting: BTreeMap::new(),
            questions: HashMap::default(),
            by_payload: HashMap::default(),
            hasher: foldhash::fast::RandomState::default(),
            unsent: VecDeque::new(),
            kept: VecDeque::new(),
            kept_bytes: 0,
            last_number: 0,
            in_flight: 0,
            in_flight_max: in_flight_max.max(1),
            paused_until: Duration::ZERO,
            pause: RETRY.0,
            refresh_at: Duration::ZERO,
            refreshing: false,
            joined_at: Duration::ZERO,
            bytes: 0,
            bytes_max,
            messages: 0,
            epoch: 0,
            audience_timeout: limits.audience_timeout,
            settings_refresh: limits.settings_refresh,
            withheld_in_outage: 0,
            outage_logged: false,
            outage_log: Limited::every(Duration::from_secs(5)),
            malformed_log: Limited::every(Duration::from_secs(10)),
            overflow_log: Limited::every(Duration::from_secs(10)),
            stats,
            out: Vec::new(),
        }
    }

    /// Takes what the ingest sent.
    pub(super) fn push(&mut self, item: StageItem, now: Duration, unix_ms: i64) {
        match item {
            StageItem::Join(channel, account) => {
                if self.viewers.len() == 0 {
                    self.refresh_at = now + self.refresh_every();
                }
                self.viewers.join(channel, account, now, &mut self.cache);
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
            StageItem::Event(event, mask) => self.event(event, mask, now, unix_ms),
        }
    }

    /// What questions on their way know of that account's filters is of yesterday.
    fn outdate(&mut self, account: Id) {
        for question in self.questions.values_mut() {
            question.outdated |= question.covered.asked.binary_search(&account).is_ok();
        }
    }

    fn event(&mut self, event: Arc<Event>, mask: u16, now: Duration, unix_ms: i64) {
        if event.position().epoch != self.epoch {
            self.epoch = event.position().epoch;
            // What changed while Redis was away was said to nobody.
            self.viewers.all().for_each(|viewer| self.cache.changed(&viewer.slot));
            self.questions.values_mut().for_each(|question| question.outdated = true);
        }
        self.last_number += 1;
        let mut entry = Entry {
            number: self.last_number,
            bytes: event.held_bytes() + ENTRY_BYTES,
            event,
            mask,
            deadline: None,
            asked: Asked::default(),
            asked_bytes: 0,
            question: 0,
        };
        let channel = entry.event.channel().clone();
        match entry.event.status() {
            None => {}
            Some(Err(wrong)) => self.malformed(&entry.event, wrong),
            Some(Ok(_)) => self.ask_for(&mut entry, &channel, now, unix_ms),
        }
        let queue = self.queues.get_mut(&channel);
        if entry.deadline.is_none() && queue.as_ref().is_none_or(|queue| queue.is_empty()) {
            self.out.push((entry.event, entry.mask));
            return;
        }
        self.bytes += entry.bytes;
        self.messages += 1;
        if entry.deadline.is_some() {
            self.waiting.insert(entry.number, channel.clone());
        }
        self.queues.entry(channel).or_default().push_back(entry);
        self.keep_bounds();
    }

    /// Finds or makes the question that decides about this status; an answer that is there already is applied.
    fn ask_for(&mut self, entry: &mut Entry, channel: &Channel, now: Duration, unix_ms: i64) {
        let Some((watching, bytes)) = self.viewers.of(channel) else {
            entry.event.set_audience(Audience::default());
            return;
        };
        entry.bytes += bytes;
        entry.asked = Arc::clone(&watching.asked);
        let asked = u32::try_from(std::mem::size_of_val(&*entry.asked)).unwrap_or(u32::MAX);
        entry.asked_bytes = if bytes > 0 { asked } else { 0 };
        let key = self.hasher.hash_one(entry.event.payload());
        if let Some(id) = self.usable(key, entry, &watching, now) {
            add(&self.stats.answers_reused, 1);
            entry.question = id;
            let feeds = self.feeds.map(|known| known.0).unwrap_or_default();
            if let Some(question) = self.questions.get_mut(&id) {
                if let State::Answered(answer) = &question.state {
                    let audience = question.audience(answer, channel, &entry.asked, feeds, unix_ms);
                    entry.decided(audience);
                    return;
                }
                question.entries.push((channel.clone(), entry.number));
            }
        } else {
            // For all channels that the status goes to, so that its copies there find the answer.
            let mut parts = vec![watching];
            for other in related(&entry.event) {
                parts.extend(self.viewers.of(&other).map(|(watching, _)| watching));
            }
            let (covered, bytes) = self.viewers.union(parts);
            entry.bytes += bytes;
            entry.question = entry.number;
            let mut question = Question::new(Arc::clone(&entry.event), key, covered);
            question.entries.push((channel.clone(), entry.number));
            self.questions.insert(entry.number, question);
            self.by_payload.entry(key).or_default().push(entry.number);
            self.unsent.push_back(entry.number);
        }
        entry.deadline = Some(now + self.audience_timeout);
    }

    /// A question about an identical status that serves those who watch, too.
    fn usable(&mut self, key: u64, entry: &Entry, watching: &Arc<Snapshot>, now: Duration) -> Option<u64> {
        for &id in self.by_payload.get(&key)? {
            let Some(question) = self.questions.get_mut(&id) else { continue };
            if question.event.payload() != entry.event.payload() {
                continue;
            }
            if matches!(question.state, State::Unsent) {
                if !question.covered.covers(watching) {
                    let parts = vec![Arc::clone(&question.covered), Arc::clone(watching)];
                    question.covered = self.viewers.union(parts).0;
                }
                return Some(id);
            }
            let is_fresh = !question.outdated && now.saturating_sub(question.asked_at) <= REUSE;
            if is_fresh && question.covered.covers(watching) {
                return Some(id);
            }
        }
        None
    }

    /// What is to be asked now, if anything.
    pub(super) fn next_ask(&mut self, now: Duration) -> Option<Ask> {
        if let Some(ask) = self.refresh(now) {
            return Some(ask);
        }
        if self.in_flight >= self.in_flight_max || now < self.paused_until {
            return None;
        }
        let ready = |id: &u64| self.questions.get(id).is_none_or(|question| question.not_before <= now);
        let id = self.unsent.iter().position(ready).and_then(|at| self.unsent.remove(at))?;
        let question = self.questions.get_mut(&id)?;
        question.state = State::InFlight;
        question.asked_at = now;
        question.outdated = false;
        let loads = question.gather_filters(&mut self.cache);
        let age_max = self.settings_refresh;
        // As old as they may be, but not older than what the latest client to come would find.
        let feeds =
            self.feeds.is_none_or(|known| now.saturating_sub(known.1) > age_max || known.1 < self.joined_at);
        let covered = Arc::clone(&question.covered);
        let settings =
            covered.viewers.iter().filter(|viewer| viewer.needs_settings(now, age_max)).cloned().collect();
        let event = Some(Arc::clone(&question.event));
        self.in_flight += 1;
        add(&self.stats.queries, 1);
        Some(Ask { question: id, event, covered, settings, loads, feeds, sent_at: now })
    }

    /// Settings are read again somewhat before they are too old, so that no status has to wait for it.
    fn refresh_every(&self) -> Duration {
        self.settings_refresh / 4 * 3
    }

    fn refresh(&mut self, now: Duration) -> Option<Ask> {
        if self.refreshing || now < self.refresh_at.max(self.paused_until) || self.viewers.len() == 0 {
            return None;
        }
        self.refreshing = true;
        Some(Ask {
            question: 0,
            event: None,
            covered: Arc::default(),
            settings: self.viewers.all().cloned().collect(),
            loads: Vec::new(),
            feeds: true,
            sent_at: now,
        })
    }

    /// Takes the answer to an ask, or that there is none.
    pub(super) fn answer(&mut self, ask: &Ask, reply: Result<Reply, DbError>, now: Duration, unix_ms: i64) {
        if ask.question == 0 {
            self.refreshing = false;
            self.refresh_at = now + if reply.is_ok() { self.refresh_every() } else { RETRY.1 };
        } else {
            self.in_flight -= 1;
        }
        let mut reply = match reply {
            Ok(reply) => reply,
            Err(error) => return self.failed(ask.question, &error, now),
        };
        self.outage_ended();
        for viewer in &ask.settings {
            viewer.set_settings(reply.settings.remove(&viewer.id).unwrap_or_default(), ask.sent_at);
        }
        if let Some(feeds) = reply.feeds
            && self.feeds.as_ref().is_none_or(|known| known.1 <= ask.sent_at)
        {
            self.feeds = Some((feeds, ask.sent_at));
        }
        let mut loaded = Vec::new();
        for load in &ask.loads {
            let filters = reply.filters.remove(&load.viewer.id).unwrap_or_default();
            let slots = self.viewers.all().map(|viewer| &viewer.slot);
            self.cache.fill(&load.viewer.slot, load.generation, &filters, slots);
            if !filters.is_empty() {
                loaded.push((load.viewer.id, filters));
            }
        }
        if ask.question != 0 {
            self.answered(ask.question, reply.hidden, loaded, now, unix_ms);
        }
    }

    fn answered(
        &mut self,
        id: u64,
        hidden: Vec<(Id, Withheld)>,
        loaded: Vec<(Id, Arc<Filters>)>,
        now: Duration,
        unix_ms: i64,
    ) {
        let Some(question) = self.questions.get_mut(&id) else { return };
        question.add_filters(loaded);
        let brings_filtered = question.fields().is_none_or(|fields| fields.has_filtered);
        let text = (!brings_filtered).then(|| SearchText::of_status(question.event.payload()));
        let wrong = text.as_ref().and_then(|text| text.as_ref().err()).map(ToString::to_string);
        let answer = Answer { hidden, text: text.map(|text| text.map_err(drop)) };
        let feeds = self.feeds.map(|known| known.0).unwrap_or_default();
        let entries = std::mem::take(&mut question.entries);
        for (channel, number) in &entries {
            if let Some(entry) = find(&mut self.queues, channel, *number) {
                let audience = question.audience(&answer, channel, &entry.asked, feeds, unix_ms);
                entry.decided(audience);
                self.waiting.remove(number);
            }
        }
        let bytes = question.event.held_bytes() + ENTRY_BYTES;
        question.state = State::Answered(answer);
        let event = Arc::clone(&question.event);
        self.kept.push_back((id, bytes));
        self.kept_bytes += bytes;
        if let Some(wrong) = wrong {
            for _ in &entries {
                self.malformed(&event, &wrong);
            }
        }
        for (channel, _) in &entries {
            self.let_go(channel);
        }
        self.forget_old(now);
    }

    fn failed(&mut self, id: u64, error: &DbError, now: Duration) {
        add(&self.stats.query_failures, 1);
        let is_its_own = matches!(error, DbError::Statement { .. });
        if !is_its_own {
            // One attempt after the other, however many questions wait.
            self.paused_until = now + self.pause;
            self.pause = (self.pause * 2).min(RETRY.1);
        }
        let Some(question) = self.questions.get_mut(&id) else { return };
        question.state = State::Unsent;
        if is_its_own {
            question.failures += 1;
            question.not_before = now + RETRY.0 * question.failures.min(10);
        }
        self.unsent.push_front(id);
        self.drop_if_unwanted(id);
    }

    /// Withholds what has waited too long and forgets answers that are too old. To be called at
    /// [`next_wake`](Self::next_wake).
    pub(super) fn tick(&mut self, now: Duration) {
        while let Some((&number, channel)) = self.waiting.first_key_value() {
            let channel = channel.clone();
            let deadline = find(&mut self.queues, &channel, number).and_then(|entry| entry.deadline);
            if deadline.is_some_and(|deadline| deadline > now) {
                break;
            }
            // Where PostgreSQL answers now and then, every answer ends an outage: the log need not have each.
            if self.withheld_in_outage == 0 && self.outage_log.allow().is_some() {
                self.outage_logged = true;
                warn!(
                    "statuses are withheld from public streams: PostgreSQL has not said within {} s \
                     (AUDIENCE_TIMEOUT) who may see them",
                    self.audience_timeout.as_secs_f32()
                );
            }
            self.withheld_in_outage += 1;
            add(&self.stats.timed_out, 1);
            self.withhold(number, &channel, Withheld::AudienceTimeout);
        }
        self.forget_old(now);
        self.queues.give_back();
        self.questions.give_back();
        self.by_payload.give_back();
        self.unsent.give_back();
        self.kept.give_back();
    }

    fn outage_ended(&mut self) {
        self.pause = RETRY.0;
        let withheld = std::mem::take(&mut self.withheld_in_outage);
        if std::mem::take(&mut self.outage_logged) {
            info!(
                "PostgreSQL answers again: {withheld} statuses were withheld from public streams meanwhile"
            );
        }
    }

    /// When [`tick`](Self::tick) or [`next_ask`](Self::next_ask) has something to do, if nothing comes
    /// before.
    pub(super) fn next_wake(&mut self) -> Option<Duration> {
        let oldest = self.waiting.first_key_value().map(|(number, channel)| (*number, channel.clone()));
        let deadline =
            oldest.and_then(|(number, channel)| find(&mut self.queues, &channel, number)?.deadline);
        let forget = self.kept.front().and_then(|kept| self.questions.get(&kept.0));
        let forget = forget.map(|question| question.asked_at + REUSE + Duration::from_millis(1));
        let retry = (self.in_flight < self.in_flight_max)
            .then(|| {
                self.unsent
                    .iter()
                    .filter_map(|id| self.questions.get(id))
                    .map(|question| question.not_before)
                    .min()
            })
            .flatten();
        let refresh = (!self.refreshing && self.viewers.len() > 0).then_some(self.refresh_at);
        let ask = [retry, refresh].into_iter().flatten().min().map(|at| at.max(self.paused_until));
        [deadline, forget, ask].into_iter().flatten().min()
    }

    /// Brings the gauges up to date.
    pub(super) fn publish_stats(&self) {
        set(&self.stats.waiting_messages, self.messages as u64);
        set(&self.stats.waiting_bytes, self.bytes as u64);
        set(&self.stats.filter_accounts, self.cache.len() as u64);
        set(&self.stats.filter_bytes, self.cache.held_bytes() as u64);
    }

    fn malformed(&mut self, event: &Event, wrong: &str) {
        add(&self.stats.malformed, 1);
        event.set_audience(Audience { nobody: Some(Withheld::Malformed), ..Audience::default() });
        if self.malformed_log.allow().is_some() {
            let (channel, total) = (event.channel(), self.stats.malformed.load(Relaxed));
            warn!("a malformed status on {channel} goes to nobody: {wrong} ({total} since the start)");
        }
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
