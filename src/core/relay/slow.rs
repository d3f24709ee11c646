//! Who has to go when the budget is used up.
//!
//! The answer is graded. Over the high mark those go at once who hold the older half of the log and finished
//! no frame for the grace period. If that frees too little, the gate pauses Redis; when the pause has lasted
//! as long as the grace period, or Redis's own patience is half used, all holders of the older half go, moving
//! or not. So one who will not read costs the others at most one pause, and Redis never drops us for it.

use std::time::Duration;

use super::{Relay, Socket, since_ms};
use crate::core::client::{Client, Flags, Phase};
use crate::core::counters::{CloseReason, set};
use crate::core::report::{Laggard, Probe, ReactorReport};

/// How full the budget is, as the driver sees it in this turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pressure {
    /// More is held than the budget allows, or reading is paused.
    pub over: bool,
    /// How long reading has been paused.
    pub paused_for: Duration,
    /// Redis holds half of what it is willing to hold for us.
    pub headroom_half_used: bool,
    /// The budget is used up by what waits for PostgreSQL. No client is to blame for that; it has to be looked at
    /// again, since nobody announces when that changes.
    pub by_audience: bool,
}

impl<S: Socket> Relay<S> {
    /// Closes who stands in the way, if the budget is used up. Called once per turn; does nothing while the
    /// budget is not used up, and otherwise looks at the lagging clients and the log.
    pub fn relieve(&mut self, pressure: Pressure, now: Duration) {
        if !pressure.over || self.log.is_empty() {
            return;
        }
        self.tidy_lagging();
        if self.lagging.is_empty() {
            return;
        }
        let all = pressure.headroom_half_used || pressure.paused_for >= self.limits.slow_client_grace;
        let half = self.log.older_half_ends();
        let grace_ms = self.limits.slow_client_grace.as_millis();
        let slow: Vec<u32> = self
            .lagging
            .iter()
            .copied()
            .filter(|index| {
                self.clients.get(*index as usize).is_some_and(|client| {
                    let waited = u128::from(since_ms(client.progress_ms, now));
                    client.owed > 0 && client.place < half && (all || waited >= grace_ms)
                })
            })
            .collect();
        for index in slow {
            self.close(index, CloseReason::TooSlow, now);
        }
    }

    /// Takes out of the list who has caught up or gone.
    fn tidy_lagging(&mut self) {
        let clients = &mut self.clients;
        self.lagging.retain(|index| match clients.get_mut(*index as usize) {
            Some(client) if client.flags.has(Flags::LISTED) && client.has_output() => true,
            Some(client) => {
                client.flags.clear(Flags::LISTED);
                false
            }
            None => false,
        });
    }

    /// Refreshes the gauges that are not kept up with every message. Cheap: no walk over clients.
    pub fn publish_gauges(&mut self) {
        if self.lagging.len() > 16 {
            self.tidy_lagging();
        }
        set(&self.counters.log_entries, self.log.len() as u64);
        set(&self.counters.log_bytes, self.log.bytes());
        set(&self.counters.lagging, self.lagging.len() as u64);
        set(&self.counters.ready, (self.dirty.len() + self.answers.len()) as u64);
        set(&self.counters.unfinished_bytes, self.talkers.unfinished_bytes() as u64);
    }

    /// Answers a question about this reactor's clients.
    pub(super) fn probe(&mut self, probe: Probe, now: Duration) {
        self.tidy_lagging();
        let names = |member| super::membership::channel_of(&self.clients, member);
        let channels = self.table.channels(names).map(|(channel, count)| (channel, count as u32));
        let laggards = self.lagging.iter().filter_map(|index| {
            let client = self.clients.get(*index as usize)?;
            (client.phase == Phase::Open).then(|| self.laggard(*index, client, now))
        });
        let report = ReactorReport::gather(self.reactor, probe.wanted(), &self.counters, channels, laggards);
        probe.answer(report);
    }

    fn laggard(&self, index: u32, client: &Client<S>, now: Duration) -> Laggard {
        let mut bytes = client.extra.as_ref().map_or(0, |extra| extra.out_bytes()) as u64;
        let mut oldest = Duration::ZERO;
        for at in super::output::Gathered::new(client, &self.log) {
            if let Some(entry) = self.log.entries_from(at.queue, at.place).next()
                && let Some(event) = &entry.event
            {
                bytes += event.payload().len() as u64;
                oldest = oldest.max(now.saturating_sub(event.position().read_at));
            }
        }
        let waited_ms = since_ms(client.progress_ms, now);
        Laggard {
            client: client.id(self.reactor, index),
            transport: client.transport,
            owed: u64::from(client.owed),
            bytes,
            oldest,
            last_progress: Duration::from_millis(u64::from(waited_ms)),
        }
    }
}
