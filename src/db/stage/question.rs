//! A question about one status, its answer, and what follows from it for each viewer.

use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use super::viewers::{Snapshot, Viewer};
use crate::core::event::{Asked, Audience, Event, Outcome, OutcomeBudget, StatusFields, Verdict, Withheld};
use crate::core::filter::{FilterCache, Filters, SearchText, TooMuchWork, WorkBudget};
use crate::core::stream::{Channel, Id};
use crate::db::feeds::FeedAccess;

/// One status, asked about for everybody who watches a channel that it goes to.
#[derive(Debug)]
pub(super) struct Question {
    /// The status as it came first.
    pub(super) event: Arc<Event>,
    pub(super) key: u64,
    /// Whom it is about.
    pub(super) covered: Arc<Snapshot>,
    /// What waits for the answer: channels, and the numbers of entries in their queues.
    pub(super) entries: Vec<(Channel, u64)>,
    pub(super) state: State,
    /// When the status came.
    pub(super) since: Duration,
    /// When its statement was first sent.
    pub(super) first_asked_at: Option<Duration>,
    /// When its statement was last sent.
    pub(super) asked_at: Duration,
    /// Not to be sent again before this.
    pub(super) not_before: Duration,
    /// Not to be sent before this batch of newcomers has been read, so that their settings are not asked for twice.
    pub(super) after_batch: u64,
    /// Failures that were about this question and not about PostgreSQL's absence.
    pub(super) failures: u32,
    /// What it covers has changed since: later copies of the status ask anew.
    pub(super) outdated: bool,
    /// The filters of those covered who have any, as they were when the statement was sent; sorted.
    filters: Vec<Matcher>,
}

#[derive(Debug)]
pub(super) enum State {
    Unsent,
    InFlight,
    Answered(Answer),
}

/// What PostgreSQL said.
#[derive(Debug)]
pub(super) struct Answer {
    /// Sorted by account.
    hidden: Vec<(Id, Withheld)>,
    text: Text,
}

/// The status's text for the filters, made when it is first needed.
#[derive(Debug)]
enum Text {
    NotRead,
    /// The payload brings its own `filtered`.
    NotNeeded,
    Read(Box<SearchText>),
    Malformed(&'static str),
}

/// An account's filters, and what they find in the status: asked once, whatever channels it goes to.
#[derive(Debug)]
struct Matcher {
    id: Id,
    filters: Arc<Filters>,
    found: Found,
}

#[derive(Clone, Debug)]
enum Found {
    NotAsked,
    Nothing,
    Outcome(Arc<Outcome>),
    Withheld(Withheld),
}

/// Filters to be loaded with a question: whose, and which changes they must not be older than.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) viewer: Arc<Viewer>,
    pub(super) generation: u32,
}

/// What filters are applied with.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) work: WorkBudget,
    pub(super) outcomes: Arc<OutcomeBudget>,
    /// Milliseconds since 1970.
    pub(super) unix_ms: i64,
    /// Accounts whose filters cost more than they may, since somebody looked.
    pub(super) too_expensive: Vec<Id>,
    rendered: Vec<u8>,
}

impl Bench {
    pub(super) fn new(outcomes: Arc<OutcomeBudget>) -> Bench {
        let (too_expensive, rendered) = (Vec::new(), Vec::new());
        Bench { work: WorkBudget::default(), outcomes, unix_ms: 0, too_expensive, rendered }
    }
}

impl Question {
    pub(super) fn new(event: Arc<Event>, key: u64, covered: Arc<Snapshot>, since: Duration) -> Question {
        Question {
            event,
            key,
            covered,
            entries: Vec::new(),
            state: State::Unsent,
            since,
            first_asked_at: None,
            asked_at: Duration::ZERO,
            not_before: Duration::ZERO,
            after_batch: 0,
            failures: 0,
            outdated: false,
            filters: Vec::new(),
        }
    }

    /// The fields that decide. Questions are asked only about statuses that have them.
    pub(super) fn fields(&self) -> Option<&StatusFields> {
        self.event.status()?.ok()
    }

    /// Takes the filters that are in the cache; what is not there is to be loaded.
    pub(super) fn gather_filters(&mut self, cache: &mut FilterCache) -> Vec<Load> {
        self.filters.clear();
        let mut loads = Vec::new();
        if self.fields().is_none_or(|fields| fields.has_filtered) {
            return loads;
        }
        let turn = cache.next_turn();
        for viewer in &self.covered.viewers {
            match viewer.slot.filters(turn) {
                Some(filters) if filters.is_empty() => {}
                Some(filters) => {
                    self.filters.push(Matcher { id: viewer.id, filters, found: Found::NotAsked })
                }
                None => loads.push(Load { viewer: Arc::clone(viewer), generation: viewer.slot.generation() }),
            }
        }
        loads
    }

    /// Takes PostgreSQL's answer, and the filters that were loaded with the question.
    pub(super) fn answered(&mut self, hidden: Vec<(Id, Withheld)>, loaded: Vec<(Id, Arc<Filters>)>) {
        if !loaded.is_empty() {
            let loaded =
                loaded.into_iter().map(|(id, filters)| Matcher { id, filters, found: Found::NotAsked });
            self.filters.extend(loaded);
            self.filters.sort_unstable_by_key(|matcher| matcher.id);
        }
        let brings_filtered = self.fields().is_none_or(|fields| fields.has_filtered);
        let text = if brings_filtered { Text::NotNeeded } else { Text::NotRead };
        self.state = State::Answered(Answer { hidden, text });
    }

    /// What this takes in memory besides the event, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        let answer = match &self.state {
            State::Answered(answer) => {
                let text = if let Text::Read(text) = &answer.text { text.held_bytes() } else { 0 };
                answer.hidden.capacity() * size_of::<(Id, Withheld)>() + text
            }
            State::Unsent | State::InFlight => 0,
        };
        size_of::<Question>() + self.filters.capacity() * size_of::<Matcher>() + answer
    }

    /// Who of `asked` gets the status on `channel`; what is wrong with it, if nobody does.
    ///
    /// # Errors
    /// The status is not what Rails sends.
    pub(super) fn audience(
        &mut self,
        channel: &Channel,
        asked: &Asked,
        feeds: FeedAccess,
        bench: &mut Bench,
    ) -> Result<Audience, &'static str> {
        let Some(Ok(fields)) = self.event.status() else { return Err("it is no status") };
        let State::Answered(answer) = &mut self.state else { return Err("nobody was asked about it") };
        if matches!(answer.text, Text::NotRead) {
            answer.text = match SearchText::of_status(self.event.payload()) {
                Ok(text) => Text::Read(Box::new(text)),
                Err(wrong) => Text::Malformed(wrong),
            };
        }
        let text = match &answer.text {
            Text::Malformed(wrong) => return Err(wrong),
            Text::Read(text) => Some(&**text),
            Text::NotRead | Text::NotNeeded => None,
        };
        let closed = feeds.is_closed(channel, fields.local);
        let mut covered = Cursor(&self.covered.viewers, |viewer| viewer.id);
        let mut hidden = Cursor(&answer.hidden, |entry| entry.0);
        let mut verdicts = Vec::new();
        // Places in `filters` of those who pass everything else.
        let mut candidates = Vec::new();
        let mut next_matcher = 0;
        for &id in asked.iter() {
            // Only with settings that are known and only about those who were asked about.
            let settings = covered.at(id).map(|viewer| viewer.settings());
            let Some(settings) = settings.as_ref().and_then(|settings| settings.as_ref()) else {
                verdicts.push((id, Verdict::Withheld(Withheld::NotAsked)));
                continue;
            };
            let withheld = settings.0.withhold(fields, closed);
            if let Some(reason) = withheld.or_else(|| hidden.at(id).map(|entry| entry.1)) {
                verdicts.push((id, Verdict::Withheld(reason)));
                continue;
            }
            while self.filters.get(next_matcher).is_some_and(|matcher| matcher.id < id) {
                next_matcher += 1;
            }
            if text.is_some() && self.filters.get(next_matcher).is_some_and(|matcher| matcher.id == id) {
                candidates.push(next_matcher);
            }
        }
        let mut audience = Audience { asked: Arc::clone(asked), ..Audience::default() };
        if let Some(text) = text.filter(|_| !candidates.is_empty()) {
            apply(&mut self.filters, &candidates, text, bench);
            for place in candidates {
                let Some(matcher) = self.filters.get(place) else { continue };
                let verdict = match &matcher.found {
                    Found::Nothing => continue,
                    Found::NotAsked => Verdict::Withheld(Withheld::NotAsked),
                    Found::Withheld(reason) => Verdict::Withheld(*reason),
                    Found::Outcome(outcome) => {
                        audience.outcomes.push(Arc::clone(outcome));
                        verdict_of(audience.outcomes.len())
                    }
                };
                verdicts.push((matcher.id, verdict));
            }
            verdicts.sort_unstable_by_key(|entry| entry.0);
        }
        audience.verdicts = verdicts;
        Ok(audience)
    }
}

/// Asks these filters, those first that are expected to cost least.
fn apply(filters: &mut [Matcher], candidates: &[usize], text: &SearchText, bench: &mut Bench) {
    let free = WorkBudget::free(filters.len());
    let mut order: Vec<(u32, usize)> = candidates
        .iter()
        .filter_map(|place| Some((*place, filters.get(*place)?)))
        .filter(|(_, matcher)| matches!(matcher.found, Found::NotAsked))
        .map(|(place, matcher)| (matcher.filters.expected_work(), place))
        .collect();
    order.sort_unstable();
    for (_, place) in order {
        let Some(matcher) = filters.get_mut(place) else { continue };
        bench.rendered.clear();
        let found = bench.work.apply(&matcher.filters, text, bench.unix_ms, free, &mut bench.rendered);
        matcher.found = match found {
            Ok(false) => Found::Nothing,
            Ok(true) => match bench.outcomes.outcome(&bench.rendered) {
                Some(outcome) => Found::Outcome(outcome),
                None => Found::Withheld(Withheld::FilterResults),
            },
            // What its owner may want hidden is not shown, and nobody else waits for it.
            Err(TooMuchWork) => {
                bench.too_expensive.push(matcher.id);
                Found::Withheld(Withheld::FilterWork)
            }
        };
    }
}

fn verdict_of(outcome: usize) -> Verdict {
    match u16::try_from(outcome) {
        // The last number means something else to an event.
        Ok(outcome) if outcome < u16::MAX => Verdict::Deliver(outcome),
        _ => Verdict::Withheld(Withheld::FilterResults),
    }
}

/// Goes through a sorted slice beside another one.
struct Cursor<'a, T>(&'a [T], fn(&T) -> Id);

impl<'a, T> Cursor<'a, T> {
    /// The entry with that id, which must not be smaller than in the call before.
    fn at(&mut self, id: Id) -> Option<&'a T> {
        while let Some((first, rest)) = self.0.split_first() {
            let here = (self.1)(first);
            if here >= id {
                return (here == id).then_some(first);
            }
            self.0 = rest;
        }
        None
    }
}
