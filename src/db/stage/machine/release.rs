//! What leaves the stage: statuses that are decided, those that are withheld for time or for Redis's patience, and
//! answers that are too old to be used again.

use std::time::Duration;

use tracing::warn;

use super::super::question::State;
use super::{Machine, REUSE, find};
use crate::core::counters::add;
use crate::core::event::{Audience, Withheld};
use crate::core::slack::Slack;
use crate::core::stream::Channel;

impl Machine {
    /// Withholds what PostgreSQL has not answered in time and forgets answers that are too old. To be called at
    /// [`next_wake`](Self::next_wake).
    ///
    /// A question that was sent has `AUDIENCE_TIMEOUT` from then on, whatever else PostgreSQL answers. One that was not
    /// sent has it from PostgreSQL's last answer on: as long as it answers others, it is only slow.
    pub(in crate::db::stage) fn tick(&mut self, now: Duration) {
        if !self.answered.is_empty() {
            // Nothing more is asked while there is no room: PostgreSQL is not to blame for the wait.
            self.heard_at = now;
        }
        while let Some(&(at, id)) = self.asked.first()
            && at + self.audience_timeout <= now
        {
            self.is_away |= now.saturating_sub(self.heard_at) >= self.audience_timeout;
            self.asked.pop_first();
            self.time_out(id);
        }
        while let Some(&id) = self.never_asked.first()
            && self.unsent_deadline(id).is_none_or(|deadline| deadline <= now)
        {
            self.never_asked.pop_first();
            self.time_out(id);
        }
        // A database that is away for longer holds back no more than the stage's share, so that it never stops home
        // timelines.
        while self.is_away && self.bytes > self.bytes_max {
            let Some(id) = self.oldest_unanswered() else { break };
            self.time_out(id);
        }
        self.forget_old(now);
        self.queues.give_back();
        self.questions.give_back();
        self.by_payload.give_back();
        self.unsent.give_back();
        self.answered.give_back();
        self.kept.give_back();
    }

    /// Withholds the oldest statuses until what waits takes no more than the stage's share of the budget. For when
    /// Redis would otherwise drop the connection, and everybody would be closed.
    pub(in crate::db::stage) fn relieve(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(id) = self.oldest_unanswered() else { return };
            if self.overflow_log.allow().is_some() {
                warn!(
                    "statuses are withheld from public streams: PostgreSQL answers too slowly for what is published, and \
                     Redis would drop the connection if reading paused for longer (client-output-buffer-limit pubsub)"
                );
            }
            self.withhold(id, Withheld::AudienceOverflow);
        }
    }

    /// Whether more waits than the stage's share of the budget.
    pub(in crate::db::stage) fn is_over_share(&self) -> bool {
        self.bytes > self.bytes_max
    }

    fn unsent_deadline(&self, id: u64) -> Option<Duration> {
        let question = self.questions.get(&id)?;
        Some(question.since.max(self.heard_at) + self.audience_timeout)
    }

    /// When the next question has waited too long.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let asked = self.asked.first().map(|(at, _)| *at + self.audience_timeout);
        let never_asked = self.never_asked.first().and_then(|id| self.unsent_deadline(*id));
        [asked, never_asked].into_iter().flatten().min()
    }

    fn oldest_unanswered(&self) -> Option<u64> {
        let asked = self.asked.first().map(|(_, id)| *id);
        [asked, self.never_asked.first().copied()].into_iter().flatten().min()
    }

    fn time_out(&mut self, id: u64) {
        // Where PostgreSQL answers now and then, every answer ends an outage: the log need not have each.
        if self.withheld_in_outage == 0 && self.outage_log.allow().is_some() {
            self.outage_logged = true;
            warn!(
                "statuses are withheld from public streams: PostgreSQL has not said within {} s \
                 (AUDIENCE_TIMEOUT) who may see them",
                self.audience_timeout.as_secs_f32()
            );
        }
        let statuses = self.questions.get(&id).map_or(0, |question| question.entries.len() as u64);
        self.withheld_in_outage += statuses;
        add(&self.stats.timed_out, statuses);
        self.withhold(id, Withheld::AudienceTimeout);
    }

    /// Withholds all statuses that wait for this question.
    fn withhold(&mut self, id: u64, reason: Withheld) {
        let Some(question) = self.questions.get_mut(&id) else { return };
        self.never_asked.remove(&id);
        if let Some(first) = question.first_asked_at {
            self.asked.remove(&(first, id));
        }
        let entries = std::mem::take(&mut question.entries);
        self.drop_if_unwanted(id);
        for (channel, number) in &entries {
            if let Some(entry) = find(&mut self.queues, channel, *number) {
                self.bytes += entry.decided(Audience::nobody(reason));
            }
        }
        entries.iter().for_each(|(channel, _)| self.let_go(channel));
    }

    /// Sends on what stands ready at the head of that channel's queue.
    pub(super) fn let_go(&mut self, channel: &Channel) {
        let Some(queue) = self.queues.get_mut(channel) else { return };
        while queue.front().is_some_and(|entry| !entry.waits) {
            let Some(entry) = queue.pop_front() else { break };
            self.bytes -= entry.bytes;
            self.messages -= 1;
            self.out.push((entry.passing, entry.mask));
        }
        if queue.is_empty() {
            self.queues.remove(channel);
        }
    }

    /// A question that nothing waits for any more is not sent.
    pub(super) fn drop_if_unwanted(&mut self, id: u64) {
        let unwanted = self
            .questions
            .get(&id)
            .is_some_and(|question| question.entries.is_empty() && matches!(question.state, State::Unsent));
        if unwanted {
            self.unsent.retain(|unsent| *unsent != id);
            self.remove_question(id);
        }
    }

    /// Keeps a decided question for copies of its status.
    pub(super) fn keep(&mut self, id: u64) {
        let Some(question) = self.questions.get(&id) else { return };
        if self.kept.iter().any(|kept| kept.0 == id) {
            return;
        }
        let bytes = question.event.held_bytes() + question.held_bytes();
        self.kept.push_back((id, bytes));
        self.kept_bytes += bytes;
    }

    pub(super) fn forget_old(&mut self, now: Duration) {
        while let Some(&(id, bytes)) = self.kept.front() {
            let question = self.questions.get(&id);
            // A copy that came waits for room.
            if question.is_some_and(|question| !question.entries.is_empty()) {
                break;
            }
            let age = question.map(|question| now.saturating_sub(question.asked_at));
            if age.is_some_and(|age| age <= REUSE) && self.kept_bytes <= self.bytes_max / 4 {
                break;
            }
            self.kept.pop_front();
            self.kept_bytes -= bytes;
            self.remove_question(id);
        }
    }

    fn remove_question(&mut self, id: u64) {
        let Some(question) = self.questions.remove(&id) else { return };
        if let Some(first) = question.first_asked_at {
            self.asked.remove(&(first, id));
        }
        if let Some(ids) = self.by_payload.get_mut(&question.key) {
            ids.retain(|known| *known != id);
            if ids.is_empty() {
                self.by_payload.remove(&question.key);
            }
        }
    }
}
