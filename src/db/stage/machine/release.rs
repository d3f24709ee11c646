//! What leaves the stage: statuses that are decided, those that are withheld for time or room, and answers that
//! are too old to be used again.

use std::time::Duration;

use tracing::warn;

use super::{Machine, REUSE, State, find};
use crate::core::event::{Audience, Withheld};
use crate::core::stream::Channel;

impl Machine {
    /// Withholds the oldest statuses while too much waits. One message may always wait, whatever its size.
    pub(super) fn keep_bounds(&mut self) {
        while self.bytes > self.bytes_max && self.messages > 1 {
            let Some((number, channel)) = self.waiting.pop_first() else { return };
            if self.overflow_log.allow().is_some() {
                warn!(
                    "statuses are withheld from public streams: those that wait for PostgreSQL take more than \
                     {} bytes, a quarter of BACKPRESSURE_HIGH_BYTES",
                    self.bytes_max
                );
            }
            self.withhold(number, &channel, Withheld::AudienceOverflow);
        }
    }

    pub(super) fn withhold(&mut self, number: u64, channel: &Channel, reason: Withheld) {
        self.waiting.remove(&number);
        let Some(entry) = find(&mut self.queues, channel, number) else { return };
        entry.decided(Audience { nobody: Some(reason), ..Audience::default() });
        let id = entry.question;
        if let Some(question) = self.questions.get_mut(&id) {
            question.entries.retain(|waiting| waiting.1 != number);
        }
        self.drop_if_unwanted(id);
        self.let_go(channel);
    }

    /// Sends on what stands ready at the head of that channel's queue.
    pub(super) fn let_go(&mut self, channel: &Channel) {
        let Some(queue) = self.queues.get_mut(channel) else { return };
        while queue.front().is_some_and(|entry| entry.deadline.is_none()) {
            let Some(entry) = queue.pop_front() else { break };
            self.bytes -= entry.bytes;
            self.messages -= 1;
            self.out.push((entry.event, entry.mask));
        }
        if queue.is_empty() {
            self.queues.remove(channel);
        }
    }

    /// A question that nobody waits for any more is not sent.
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

    pub(super) fn forget_old(&mut self, now: Duration) {
        while let Some(&(id, bytes)) = self.kept.front() {
            let age = self.questions.get(&id).map(|question| now.saturating_sub(question.asked_at));
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
        if let Some(ids) = self.by_payload.get_mut(&question.key) {
            ids.retain(|known| *known != id);
            if ids.is_empty() {
                self.by_payload.remove(&question.key);
            }
        }
    }
}
