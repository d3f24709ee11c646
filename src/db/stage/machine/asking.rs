//! What PostgreSQL is asked for: who must not see a status, what newcomers have set, and that again every so often.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::super::question::{Load, Question, State};
use super::super::related::related;
use super::{Machine, Passing, RETRY, REUSE, Snapshot, Viewer};
use crate::core::counters::add;
use crate::core::event::{Event, Withheld};
use crate::core::filter::Filters;
use crate::core::stream::Id;
use crate::db::feeds::Settings;
use crate::db::pool::DbError;
use crate::db::preferences::{Instance, Preferences};

/// Unsent questions that are looked at for one that may be sent now.
const UNSENT_LOOK: usize = 32;

/// Something to ask PostgreSQL.
#[derive(Debug)]
pub(in crate::db::stage) struct Ask {
    pub(in crate::db::stage) about: About,
    /// The status, for a question.
    pub(in crate::db::stage) event: Option<Arc<Event>>,
    pub(in crate::db::stage) covered: Arc<Snapshot>,
    /// Whether `accounts.domain` may be read.
    pub(in crate::db::stage) domains_readable: bool,
    /// Accounts whose settings are to be read.
    pub(in crate::db::stage) settings: Vec<Arc<Viewer>>,
    /// Accounts whose filters are to be read.
    pub(in crate::db::stage) loads: Vec<Load>,
    /// Whether the instance's settings are to be read.
    pub(in crate::db::stage) instance: bool,
    pub(in crate::db::stage) sent_at: Duration,
}

/// Why something is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::db::stage) enum About {
    /// A status.
    Question(u64),
    /// The viewers that joined before this batch.
    Newcomers(u64),
    /// All viewers, since what is known becomes too old.
    Refresh,
}

/// What PostgreSQL said to an [`Ask`].
#[derive(Debug, Default)]
pub(in crate::db::stage) struct Reply {
    pub(in crate::db::stage) hidden: Vec<(Id, Withheld)>,
    pub(in crate::db::stage) preferences: Preferences,
}

impl Ask {
    fn new(about: About, sent_at: Duration) -> Ask {
        Ask {
            about,
            event: None,
            covered: Arc::default(),
            domains_readable: false,
            settings: Vec::new(),
            loads: Vec::new(),
            instance: false,
            sent_at,
        }
    }
}

impl Machine {
    /// Finds or makes the question that decides about this status.
    pub(super) fn ask_for(
        &mut self,
        event: Arc<Event>,
        mask: u16,
        watching: &Arc<Snapshot>,
        bytes: usize,
        now: Duration,
    ) {
        let channel = event.channel().clone();
        let key = self.hasher.hash_one(event.payload());
        let mut entry = self.entry(Passing::Event(Arc::clone(&event)), mask);
        let number = entry.number;
        entry.waits = true;
        entry.asked = Arc::clone(&watching.asked);
        if bytes > 0 {
            entry.asked_bytes = u32::try_from(std::mem::size_of_val(&*entry.asked)).unwrap_or(u32::MAX);
            entry.charge.add(bytes);
            entry.bytes += bytes;
        }
        let id = if let Some(id) = self.usable(key, &event, watching, now) {
            add(&self.stats.answers_reused, 1);
            id
        } else {
            // For all channels that the status goes to, so that its copies there find the answer.
            let mut parts = vec![Arc::clone(watching)];
            for other in related(&event) {
                parts.extend(self.viewers.of(&other).map(|(watching, _)| watching));
            }
            let (covered, bytes) = self.viewers.union(parts);
            entry.charge.add(bytes);
            entry.bytes += bytes;
            self.questions.insert(number, Question::new(event, key, covered, now));
            self.by_payload.entry(key).or_default().push(number);
            self.unsent.push_back(number);
            self.never_asked.insert(number);
            number
        };
        entry.question = id;
        self.append(entry);
        // Those who joined before this status came.
        let batch = if self.newcomers.is_empty() { self.batches_sent } else { self.batches_sent + 1 };
        let Some(question) = self.questions.get_mut(&id) else { return };
        question.entries.push((channel.clone(), number));
        match question.state {
            State::Unsent => question.after_batch = question.after_batch.max(batch),
            State::InFlight => {}
            State::Answered(_) => self.answered.push_back((id, channel, number)),
        }
    }

    /// A question about an identical status that serves those who watch, too.
    fn usable(&mut self, key: u64, event: &Event, watching: &Arc<Snapshot>, now: Duration) -> Option<u64> {
        for &id in self.by_payload.get(&key)? {
            let Some(question) = self.questions.get_mut(&id) else { continue };
            if question.event.payload() != event.payload() {
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
    pub(in crate::db::stage) fn next_ask(&mut self, now: Duration) -> Option<Ask> {
        if now < self.paused_until {
            return None;
        }
        if let Some(ask) = self.refresh(now).or_else(|| self.welcome(now)) {
            return Some(ask);
        }
        // What is answered and waits for room takes memory that nobody counts: no more of that.
        if self.in_flight >= self.in_flight_max || !self.answered.is_empty() {
            return None;
        }
        let ready = |id: &u64| {
            self.questions.get(id).is_none_or(|question| {
                question.not_before <= now && question.after_batch <= self.batches_read
            })
        };
        let at = self.unsent.iter().take(UNSENT_LOOK).position(ready)?;
        let id = self.unsent.remove(at)?;
        let instance = self.needs_instance(now);
        let question = self.questions.get_mut(&id)?;
        question.state = State::InFlight;
        question.asked_at = now;
        question.outdated = false;
        if question.first_asked_at.is_none() {
            question.first_asked_at = Some(now);
            self.never_asked.remove(&id);
            self.asked.insert((now, id));
        }
        let loads = question.gather_filters(&mut self.cache);
        let covered = Arc::clone(&question.covered);
        let settings = covered
            .viewers
            .iter()
            .filter(|viewer| viewer.needs_settings(now, self.settings_refresh))
            .cloned()
            .collect();
        let event = Some(Arc::clone(&question.event));
        let domains_readable = self.instance.is_some_and(|known| known.0.domains_readable);
        self.in_flight += 1;
        add(&self.stats.queries, 1);
        let ask = Ask::new(About::Question(id), now);
        Some(Ask { event, covered, domains_readable, settings, loads, instance, ..ask })
    }

    /// The instance's settings may be as old as others, but not older than what the latest client to come would find.
    fn needs_instance(&self, now: Duration) -> bool {
        self.instance.is_none_or(|known| {
            now.saturating_sub(known.1) > self.settings_refresh || known.1 < self.joined_at
        })
    }

    /// What those who joined have set, in one batch: so that it need not be asked for with the next status.
    fn welcome(&mut self, now: Duration) -> Option<Ask> {
        if self.batches_read < self.batches_sent || self.newcomers.is_empty() {
            return None;
        }
        self.tidy_newcomers();
        let newcomers = std::mem::take(&mut self.newcomers);
        let turn = self.cache.next_turn();
        let loads = newcomers
            .iter()
            .filter(|viewer| viewer.slot.filters(turn).is_none())
            .map(|viewer| Load { viewer: Arc::clone(viewer), generation: viewer.slot.generation() })
            .collect();
        let instance = self.needs_instance(now);
        let mut settings = newcomers;
        settings.retain(|viewer| viewer.needs_settings(now, self.settings_refresh));
        self.batches_sent += 1;
        let ask = Ask { settings, loads, instance, ..Ask::new(About::Newcomers(self.batches_sent), now) };
        if ask.settings.is_empty() && ask.loads.is_empty() && !ask.instance {
            self.batches_read = self.batches_sent;
            return None;
        }
        Some(ask)
    }

    /// Each newcomer once, and only those that still watch: some have left again, and some of them come back, as other
    /// viewers.
    fn tidy_newcomers(&mut self) {
        let viewers = &self.viewers;
        let watches =
            |viewer: &Arc<Viewer>| viewers.get(viewer.id).is_some_and(|known| Arc::ptr_eq(known, viewer));
        self.newcomers.retain(watches);
        self.newcomers.sort_unstable_by_key(|viewer| viewer.id);
        self.newcomers.dedup_by_key(|viewer| viewer.id);
    }

    /// Remembers a newcomer for the next batch. While PostgreSQL is away there is none: then what is remembered is
    /// bounded by those who watch.
    pub(super) fn came(&mut self, viewer: Arc<Viewer>) {
        self.newcomers.push(viewer);
        if self.newcomers.len() > 64 + self.viewers.len() * 2 {
            self.tidy_newcomers();
        }
    }

    /// Settings are read again somewhat before they are too old, so that no status has to wait for it.
    pub(super) fn refresh_every(&self) -> Duration {
        self.settings_refresh / 4 * 3
    }

    fn refresh(&mut self, now: Duration) -> Option<Ask> {
        if self.refreshing || now < self.refresh_at || self.viewers.len() == 0 {
            return None;
        }
        self.refreshing = true;
        let settings = self.viewers.all().cloned().collect();
        Some(Ask { settings, instance: true, ..Ask::new(About::Refresh, now) })
    }

    /// When there may be something to ask that there is not now.
    pub(super) fn next_ask_at(&self) -> Option<Duration> {
        let retry = || {
            let unsent = self.unsent.iter().take(UNSENT_LOOK).filter_map(|id| self.questions.get(id));
            unsent
                .filter(|question| question.after_batch <= self.batches_read)
                .map(|question| question.not_before)
                .min()
        };
        let may_ask = self.in_flight < self.in_flight_max && self.answered.is_empty();
        let retry = may_ask.then(retry).flatten();
        let refresh = (!self.refreshing && self.viewers.len() > 0).then_some(self.refresh_at);
        let is_due = self.batches_read == self.batches_sent && !self.newcomers.is_empty();
        let newcomers = is_due.then_some(Duration::ZERO);
        [retry, refresh, newcomers].into_iter().flatten().min().map(|at| at.max(self.paused_until))
    }

    /// Takes the answer to an ask, or that there is none.
    pub(in crate::db::stage) fn answer(&mut self, ask: &Ask, reply: Result<Reply, DbError>, now: Duration) {
        match ask.about {
            About::Refresh => {
                self.refreshing = false;
                self.refresh_at = now + if reply.is_ok() { self.refresh_every() } else { RETRY.1 };
            }
            // Those whom a failed batch was about are asked about with the next status.
            About::Newcomers(batch) => self.batches_read = batch,
            About::Question(_) => self.in_flight -= 1,
        }
        let Reply { hidden, preferences } = match reply {
            Ok(reply) => reply,
            Err(error) => return self.failed(ask.about, &error, now),
        };
        self.heard_at = now;
        self.outage_ended();
        let Preferences { mut settings, mut filters, instance } = preferences;
        self.take_settings(ask, &mut settings);
        if let Some(instance) = instance
            && self.instance.is_none_or(|known| known.1 <= ask.sent_at)
        {
            self.take_instance(instance, ask.sent_at);
        }
        let mut loaded = Vec::new();
        for load in &ask.loads {
            let filters = filters.remove(&load.viewer.id).unwrap_or_default();
            let slots = self.viewers.all().map(|viewer| &viewer.slot);
            self.cache.fill(&load.viewer.slot, load.generation, &filters, slots);
            if !filters.is_empty() {
                loaded.push((load.viewer.id, filters));
            }
        }
        if let About::Question(id) = ask.about {
            self.question_answered(id, hidden, loaded, now);
        }
    }

    fn take_settings(&mut self, ask: &Ask, settings: &mut HashMap<Id, Settings>) {
        for viewer in &ask.settings {
            viewer.set_settings(settings.remove(&viewer.id).unwrap_or_default(), ask.sent_at);
        }
    }

    fn take_instance(&mut self, instance: Instance, read_at: Duration) {
        self.instance = Some((instance, read_at));
        if !instance.domains_readable && !std::mem::replace(&mut self.domains_logged, true) {
            warn!(
                "accounts.domain may not be read: run postgresql-grants.sql again; until then, blocks of a domain do \
                 not hide public statuses of accounts whose handle is invalid"
            );
        }
    }

    fn question_answered(
        &mut self,
        id: u64,
        hidden: Vec<(Id, Withheld)>,
        loaded: Vec<(Id, Arc<Filters>)>,
        now: Duration,
    ) {
        let Some(question) = self.questions.get_mut(&id) else { return };
        question.answered(hidden, loaded);
        let entries = question.entries.iter().map(|(channel, number)| (id, channel.clone(), *number));
        self.answered.extend(entries);
        if let Some(first) = question.first_asked_at {
            self.asked.remove(&(first, id));
        }
        if question.entries.is_empty() {
            self.keep(id);
        }
        self.forget_old(now);
    }

    fn failed(&mut self, about: About, error: &DbError, now: Duration) {
        add(&self.stats.query_failures, 1);
        let is_its_own = matches!(error, DbError::Statement { .. } | DbError::Cancelled { .. });
        if is_its_own {
            self.heard_at = now;
            // The grants may have changed.
            self.instance = None;
        } else {
            // One attempt after the other, however many questions wait.
            self.paused_until = now + self.pause;
            self.pause = (self.pause * 2).min(RETRY.1);
        }
        let About::Question(id) = about else { return };
        let Some(question) = self.questions.get_mut(&id) else { return };
        question.state = State::Unsent;
        if is_its_own {
            question.failures += 1;
            question.not_before = now + RETRY.0 * question.failures.min(10);
        }
        self.unsent.push_front(id);
        self.drop_if_unwanted(id);
    }

    fn outage_ended(&mut self) {
        self.pause = RETRY.0;
        self.is_away = false;
        let withheld = std::mem::take(&mut self.withheld_in_outage);
        if std::mem::take(&mut self.outage_logged) {
            info!(
                "PostgreSQL answers again: {withheld} statuses were withheld from public streams meanwhile"
            );
        }
    }
}
