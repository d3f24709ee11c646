//! A question about one status, its answer, and what follows from it for each viewer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::viewers::{Snapshot, Viewer};
use crate::core::event::{Asked, Audience, Event, StatusFields, Verdict, Withheld};
use crate::core::filter::{FilterCache, Filters, SearchText, TooMuchWork};
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
    /// Who waits for the answer: channels, and the numbers of entries in their queues.
    pub(super) entries: Vec<(Channel, u64)>,
    pub(super) state: State,
    /// When its statement was last sent.
    pub(super) asked_at: Duration,
    /// Not to be sent again before this.
    pub(super) not_before: Duration,
    /// Failures that were about this question and not about PostgreSQL's absence.
    pub(super) failures: u32,
    /// What it covers has changed since: later copies of the status ask anew.
    pub(super) outdated: bool,
    /// The filters of those covered who have any, as they were when the statement was sent; sorted.
    pub(super) filters: Vec<(Id, Arc<Filters>)>,
}

#[derive(Debug)]
pub(super) enum State {
    Unsent,
    InFlight,
    Answered(Answer),
}

/// What PostgreSQL said, and the status's text for the filters.
#[derive(Debug)]
pub(super) struct Answer {
    /// Sorted by account.
    pub(super) hidden: Vec<(Id, Withheld)>,
    /// None where the payload brings its own `filtered`; an error where it has no text to search.
    pub(super) text: Option<Result<SearchText, ()>>,
}

/// Filters to be loaded with a question: whose, and which changes they must not be older than.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) viewer: Arc<Viewer>,
    pub(super) generation: u32,
}

impl Question {
    pub(super) fn new(event: Arc<Event>, key: u64, covered: Arc<Snapshot>) -> Question {
        Question {
            event,
            key,
            covered,
            entries: Vec::new(),
            state: State::Unsent,
            asked_at: Duration::ZERO,
            not_before: Duration::ZERO,
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
                Some(filters) => self.filters.push((viewer.id, filters)),
                None => loads.push(Load { viewer: Arc::clone(viewer), generation: viewer.slot.generation() }),
            }
        }
        loads
    }

    /// Adds filters that were loaded with the question.
    pub(super) fn add_filters(&mut self, loaded: Vec<(Id, Arc<Filters>)>) {
        if !loaded.is_empty() {
            self.filters.extend(loaded);
            self.filters.sort_unstable_by_key(|entry| entry.0);
        }
    }

    /// Who of `asked` gets the status on `channel`, at `unix_ms` milliseconds since 1970.
    pub(super) fn audience(
        &self,
        answer: &Answer,
        channel: &Channel,
        asked: &Asked,
        feeds: FeedAccess,
        unix_ms: i64,
    ) -> Audience {
        let (Some(fields), Some(Ok(_)) | None) = (self.fields(), &answer.text) else {
            return Audience { nobody: Some(Withheld::Malformed), ..Audience::default() };
        };
        let text = answer.text.as_ref().and_then(|text| text.as_ref().ok());
        let closed = feeds.is_closed(channel, fields.local);
        let mut covered = Cursor(&self.covered.viewers, |viewer| viewer.id);
        let mut hidden = Cursor(&answer.hidden, |entry| entry.0);
        let mut filters = Cursor(&self.filters, |entry| entry.0);
        let (mut verdicts, mut outcomes) = (Vec::new(), Vec::new());
        let mut rendered = Vec::new();
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
            let (Some(text), Some((_, filters))) = (text, filters.at(id)) else { continue };
            rendered.clear();
            match filters.apply(text, unix_ms, &mut rendered) {
                Ok(false) => {}
                Ok(true) => {
                    if outcomes.is_empty() {
                        outcomes.push(Bytes::from_static(b"[]"));
                    }
                    verdicts.push((id, verdict_of(outcomes.len())));
                    outcomes.push(Bytes::copy_from_slice(&rendered));
                }
                // What its owner may want hidden is not shown, and nobody else waits for it.
                Err(TooMuchWork) => verdicts.push((id, Verdict::Withheld(Withheld::AudienceOverflow))),
            }
        }
        Audience { asked: Arc::clone(asked), verdicts, outcomes, ..Audience::default() }
    }
}

fn verdict_of(outcome: usize) -> Verdict {
    match u16::try_from(outcome) {
        // The last number means something else to an event.
        Ok(outcome) if outcome < u16::MAX => Verdict::Deliver(outcome),
        _ => Verdict::Withheld(Withheld::AudienceOverflow),
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
