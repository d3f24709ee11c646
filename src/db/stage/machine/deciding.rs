//! Who gets the statuses that PostgreSQL has answered about, as far as the budget has room for it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tracing::warn;

use super::{Entry, Machine, Passing, find};
use crate::core::counters::add;
use crate::core::event::{Audience, Event, Withheld};
use crate::core::stream::Channel;

/// After so much work for filters, in bytes searched, the stage looks at what else there is to do.
const TURN_WORK: u64 = 64 << 20;

impl Machine {
    /// Decides about statuses whose answer is there. True if there is more to decide, and room for it; else, when room
    /// is what is missing, the gate announces it.
    pub(in crate::db::stage) fn decide(&mut self, now: Duration, unix_ms: i64) -> bool {
        if self.answered.is_empty() {
            return false;
        }
        self.bench.unix_ms = unix_ms;
        self.bench.work.refill(now);
        let end = self.bench.work.spent() + TURN_WORK;
        while !self.answered.is_empty() {
            if self.bench.work.spent() >= end {
                return true;
            }
            // What waits here does not become less by waiting: only what others hold is a reason to.
            let mark = self.gate.high_bytes() / 2 * 3;
            if !self.gate.announce_below(mark.max(self.bytes + self.gate.low_bytes())) {
                break;
            }
            let Some((question, channel, number)) = self.answered.pop_front() else { break };
            self.decide_one(question, &channel, number);
        }
        self.tell_of_expensive_filters();
        false
    }

    fn decide_one(&mut self, id: u64, channel: &Channel, number: u64) {
        let instance = self.instance.map(|known| known.0).unwrap_or_default();
        let Some(question) = self.questions.get_mut(&id) else { return };
        question.entries.retain(|waiting| waiting.1 != number);
        let is_decided = question.entries.is_empty();
        if let Some(entry) = find(&mut self.queues, channel, number) {
            match question.audience(channel, &entry.asked, instance.feeds, &mut self.bench) {
                Ok(audience) => self.bytes += entry.decided(audience),
                Err(wrong) => {
                    self.bytes += entry.decided(Audience::nobody(Withheld::Malformed));
                    if let Passing::Event(event) = &entry.passing {
                        let event = Arc::clone(event);
                        self.malformed(&event, wrong);
                    }
                }
            }
        }
        if is_decided {
            self.keep(id);
        }
        self.let_go(channel);
    }

    fn tell_of_expensive_filters(&mut self) {
        let expensive = std::mem::take(&mut self.bench.too_expensive);
        if let Some(account) = expensive.first()
            && self.expensive_log.allow().is_some()
        {
            warn!(
                "statuses are withheld from some viewers of public streams: the custom filters of account {account} \
                 cost more work than there is for them (in all {} accounts just now); nobody else is concerned",
                expensive.len()
            );
        }
    }

    /// Counts a malformed status, and has it in the log.
    pub(super) fn malformed(&mut self, event: &Event, wrong: &str) {
        add(&self.stats.malformed, 1);
        if self.malformed_log.allow().is_some() {
            let (channel, total) = (event.channel(), self.stats.malformed.load(Relaxed));
            warn!("a malformed status on {channel} goes to nobody: {wrong} ({total} since the start)");
        }
    }
}

impl Entry {
    /// Sets the audience. By how many bytes the entry grew.
    pub(super) fn decided(&mut self, audience: Audience) -> usize {
        self.waits = false;
        if let Passing::Event(event) = &self.passing {
            event.set_audience(Audience { asked_bytes: self.asked_bytes, ..audience });
        }
        let before = self.bytes;
        self.bytes = before.max(self.passing.held_bytes() + self.charge.bytes());
        self.bytes - before
    }
}
