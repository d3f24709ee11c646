//! Which clients are closed so that the budget suffices for the others.
//!
//! The answer is graded. Over the evict mark, as long as more than the low mark is held, besides what waits for its
//! audience:
//!
//! 1. clients that hold the older half of the log and finished no frame for `SLOW_CLIENT_GRACE`;
//! 2. stalled clients, the longest stalled first: the kernel took no byte for [`STALLED_AFTER`], nor does it now.
//!
//! Between the evict mark and the high mark there is room to read on meanwhile. If the high mark is reached all the
//! same, because clients take bytes but too few of them, the gate pauses reading (3). A pause that has lasted
//! `SLOW_CLIENT_GRACE`, or used up half of what Redis is willing to hold, ends with the close of all clients that hold
//! the older half of the log (4).
//!
//! Held events are always some client's: of one that is owed messages, or of one whose half-written frame must be
//! finished although its subscription or connection was given up. A closing client that does not finish it is reset.
//!
//! A reactor that holds little, a quarter of its share of the low mark, closes nobody: what is over the budget waits
//! elsewhere then, and closing clients here would not help. It is no more than a quarter because the results of custom
//! filters are not counted for this: they take up to half of the low mark.
//!
//! Whether a client takes bytes is never concluded from the clock alone: the socket is written to first. After a long
//! sleep of the thread that happens [`SECOND_LOOK_AFTER`] later, since a machine that stood still has to receive its
//! clients' acknowledgements first.

use std::time::Duration;

use super::output::Gathered;
use super::{Relay, Socket, since_ms};
use crate::core::client::{Client, Phase};
use crate::core::counters::CloseReason;
use crate::core::gate::Gate;
use crate::core::log::Place;
use crate::limits::{
    EVICT_TURN_MESSAGES, HEADROOM_INTERVAL, REACTOR_AWAY_AFTER, SECOND_LOOK_AFTER, STALLED_AFTER,
};

/// What the driver sees in this turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pressure {
    /// How long reading has been paused; of no meaning while the gate is open.
    pub paused_for: Duration,
    /// Redis holds half of what it is willing to hold for us; likewise.
    pub headroom_half_used: bool,
    /// Bytes of the budget that wait for PostgreSQL to say who gets them. No client can be closed for those.
    pub audience_bytes: usize,
}

/// What is remembered from one look at slow clients to the next.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The last turn.
    turned_at: Duration,
    /// When to look again; none while too little is held.
    next_at: Option<Duration>,
    /// The last look did as much as a turn may, and there was more to do.
    cut_short: bool,
    /// A client was closed and holds events yet: if it does not finish its frame, it is reset in the next look.
    holds_on: bool,
    was_closed: bool,
    /// After a long sleep nobody is judged until then.
    judge_from: Duration,
    /// The last turn came after a long sleep and put judgement off.
    puts_off: bool,
}

impl Looks {
    pub fn next_at(&self) -> Option<Duration> {
        self.next_at
    }

    /// Notes a turn. One long sleep puts judgement off once: a machine that never runs this thread in time must close
    /// stalled clients all the same.
    fn turn(&mut self, now: Duration) {
        let slept = now.saturating_sub(std::mem::replace(&mut self.turned_at, now));
        self.puts_off = slept > REACTOR_AWAY_AFTER && !self.puts_off;
        if self.puts_off {
            self.judge_from = now + SECOND_LOOK_AFTER;
        }
    }
}

/// What a write costs, in messages given up: see [`EVICT_TURN_MESSAGES`].
const WRITE_WORK: usize = 64;

/// Why a client may be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Suspect {
    /// No frame finished for the grace period.
    Unfinished,
    /// No byte taken.
    Stalled,
}

impl<S: Socket> Relay<S> {
    /// Closes clients that hold too much. Called once per turn; does nothing unless the gate is closed or soon will
    /// be, and then looks at the listed clients at most every [`HEADROOM_INTERVAL`].
    pub fn relieve(&mut self, gate: &Gate, pressure: Pressure, now: Duration) {
        self.looks.turn(now);
        let closed = gate.is_closed();
        let was_closed = std::mem::replace(&mut self.looks.was_closed, closed);
        // A look that was cut short goes on down to the low mark.
        let enough = gate.low_bytes().saturating_add(pressure.audience_bytes);
        let goes_on = self.looks.cut_short && gate.held_bytes() > enough;
        if !gate.is_over() && !goes_on {
            self.looks.next_at = None;
            self.looks.cut_short = false;
            return;
        }
        if was_closed == closed && self.looks.next_at.is_some_and(|at| at > now) {
            return;
        }
        let mut again_at = now + STALLED_AFTER;
        (self.looks.cut_short, self.looks.holds_on) = (false, false);
        if self.holds_more_than(gate.low_bytes() / 4 / self.limits.reactors.max(1)) {
            let mut work = EVICT_TURN_MESSAGES;
            let is_enough = || gate.held_bytes() <= enough;
            self.evict_suspects(&is_enough, now, &mut work, &mut again_at);
            let waited_long =
                pressure.headroom_half_used || pressure.paused_for >= self.limits.slow_client_grace;
            if waited_long && gate.is_closed() {
                self.evict_older_half(&is_enough, now, &mut work);
            }
            self.looks.cut_short = work == 0;
        }
        let soonest = now + HEADROOM_INTERVAL;
        self.looks.next_at = Some(match () {
            () if self.looks.cut_short => now,
            () if closed || self.looks.holds_on => soonest,
            () => again_at.max(soonest),
        });
    }

    /// Steps 1 and 2, in that order, until it is enough. `again_at` becomes the time at which the next client may have
    /// to be closed, if that is earlier.
    fn evict_suspects(
        &mut self,
        is_enough: &dyn Fn() -> bool,
        now: Duration,
        work: &mut usize,
        again_at: &mut Duration,
    ) {
        let (mut unfinished, mut stalled) = (Vec::new(), Vec::new());
        let grace_ms = u32::try_from(self.limits.slow_client_grace.as_millis()).unwrap_or(u32::MAX);
        let stalled_ms = STALLED_AFTER.as_millis() as u32;
        for index in &self.lagging {
            let Some(client) = self.clients.get(*index as usize) else { continue };
            let Some(lag) = client.lag() else { continue };
            if !client.holds_events() {
                continue;
            }
            let (unfinished_for, stalled_for) =
                (since_ms(client.progress_ms, now), since_ms(lag.taken_ms, now));
            if unfinished_for >= grace_ms {
                unfinished.push((unfinished_for, *index));
            }
            if stalled_for >= stalled_ms {
                stalled.push((stalled_for, *index));
            } else {
                let left_ms = (stalled_ms - stalled_for).min(grace_ms.saturating_sub(unfinished_for));
                if left_ms > 0 {
                    *again_at = (*again_at).min(now + Duration::from_millis(u64::from(left_ms)));
                }
            }
        }
        if now < self.looks.judge_from {
            *again_at = (*again_at).min(self.looks.judge_from);
            return;
        }
        if !unfinished.is_empty() {
            let half = self.older_half_ends();
            unfinished.retain(|(_, index)| self.holds_before(*index, half));
        }
        let longest_first = |suspects: &mut Vec<(u32, u32)>| {
            suspects.sort_unstable_by_key(|(waited, index)| (std::cmp::Reverse(*waited), *index));
        };
        longest_first(&mut unfinished);
        longest_first(&mut stalled);
        let unfinished = unfinished.into_iter().map(|(_, index)| (index, Suspect::Unfinished));
        let stalled = stalled.into_iter().map(|(_, index)| (index, Suspect::Stalled));
        for (index, suspect) in unfinished.chain(stalled) {
            if is_enough() || *work == 0 {
                return;
            }
            self.evict_if(index, suspect, now, work);
        }
    }

    /// Closes a client if a write shows that the suspicion is right.
    fn evict_if(&mut self, index: u32, suspect: Suspect, now: Duration, work: &mut usize) {
        let measure = |relay: &Relay<S>| {
            let client = relay.clients.get(index as usize)?;
            if !client.holds_events() {
                return None;
            }
            match suspect {
                Suspect::Unfinished => Some(client.progress_ms),
                Suspect::Stalled => Some(client.lag()?.taken_ms),
            }
        };
        let Some(before) = measure(self) else { return };
        // The poll may have more to report than this thread came to take.
        self.probe_socket(index, now);
        *work = work.saturating_sub(WRITE_WORK);
        if measure(self) == Some(before) {
            self.evict(index, now, work);
        }
    }

    /// Step 4, the oldest first.
    fn evict_older_half(&mut self, is_enough: &dyn Fn() -> bool, now: Duration, work: &mut usize) {
        let half = self.older_half_ends();
        for index in self.lagging.clone() {
            if is_enough() || *work == 0 {
                return;
            }
            if self.holds_before(index, half) {
                self.evict(index, now, work);
            }
        }
    }

    fn evict(&mut self, index: u32, now: Duration, work: &mut usize) {
        let Some(client) = self.clients.get(index as usize) else { return };
        *work = work.saturating_sub(client.owed.max(1) as usize);
        match client.phase {
            Phase::Open | Phase::Gapped => {
                self.close(index, CloseReason::TooSlow, now);
                self.looks.holds_on |= self.clients.get(index as usize).is_some_and(Client::holds_events);
            }
            // Its half-written frame is in the way of the others; the reason cannot be told.
            Phase::Closing | Phase::Lingering => self.cut(index),
        }
    }

    /// Whether this relay's clients hold more than `share` bytes of the budget. Looks at no more events than it takes
    /// to know.
    fn holds_more_than(&self, share: usize) -> bool {
        let half_written = self.half_written();
        let mut held = half_written.into_iter().chain(self.log.held());
        held.try_fold(0usize, |sum, (_, bytes)| (sum + bytes <= share).then_some(sum + bytes)).is_none()
    }

    /// Events held for half-written frames only, each once: their place and held bytes.
    fn half_written(&self) -> Vec<(Place, usize)> {
        if self.half_written_bytes == 0 {
            return Vec::new();
        }
        let frames = self.lagging.iter().filter_map(|index| {
            let frame = self.clients.get(*index as usize)?.extra.as_ref()?.half_written.as_ref()?;
            Some((frame.place, frame.event.held_bytes()))
        });
        let mut held: Vec<(Place, usize)> = frames.collect();
        held.sort_unstable();
        held.dedup_by_key(|(place, _)| *place);
        held
    }

    /// The place that splits what is held: events before it hold half of the bytes, or just over.
    fn older_half_ends(&self) -> Place {
        let mut held = self.half_written();
        held.extend(self.log.held());
        held.sort_unstable();
        held.dedup_by_key(|(place, _)| *place);
        let half = held.iter().map(|(_, bytes)| bytes).sum::<usize>() / 2;
        let mut sum = 0;
        for (place, bytes) in held {
            sum += bytes;
            if sum > half {
                return place + 1;
            }
        }
        0
    }

    /// Whether the client holds an event before `half`. Its own place is brought up to date: it may lie far before the
    /// first message that the client is still owed.
    fn holds_before(&mut self, index: u32, half: Place) -> bool {
        let Some(client) = self.clients.get_mut(index as usize) else { return false };
        let frame = client.extra.as_ref().and_then(|extra| extra.half_written.as_ref());
        if frame.is_some_and(|frame| frame.place < half) {
            return true;
        }
        if client.owed == 0 || client.place >= half {
            return false;
        }
        if client.offset == 0
            && let Some(first) = Gathered::new(client, &self.log).next()
        {
            (client.place, client.sub_at) = (first.place, first.sub);
        }
        client.place < half
    }
}
