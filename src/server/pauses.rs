//! Says in the log when reading from Redis pauses because too much is undelivered, and when that is over: two
//! lines for each time of overload, however many pauses it has.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::core::gate::Gate;
use crate::limits::Limits;
use crate::redis::stats::IngestStats;

/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// So long without a pause, and the overload is over.
const QUIET: Duration = Duration::from_secs(5);

/// What is known of the pauses at a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Pauses since the start, the present one included.
    pauses: u64,
    /// Time spent in them.
    paused: Duration,
    /// Whether reading is paused.
    is_paused: bool,
}

/// What is worth a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Begins,
    /// How many pauses it had, and their time.
    Ends(u64, Duration),
}

/// Tells one time of overload from the next.
#[derive(Debug, Default)]
struct Overload {
    before: Seen,
    /// What was known before it began, and when the last pause was seen.
    now: Option<(Seen, Duration)>,
}

impl Overload {
    /// Takes a look at `at`, on any clock that does not go back.
    fn look(&mut self, at: Duration, seen: Seen) -> Option<Change> {
        let before = std::mem::replace(&mut self.before, seen);
        let is_new = seen.is_paused || seen.pauses > before.pauses;
        match &mut self.now {
            None if is_new => {
                self.now = Some((before, at));
                Some(Change::Begins)
            }
            Some((_, last)) if is_new => {
                *last = at;
                None
            }
            Some((began, last)) if at.saturating_sub(*last) >= QUIET => {
                let change =
                    Change::Ends(seen.pauses - began.pauses, seen.paused.saturating_sub(began.paused));
                self.now = None;
                Some(change)
            }
            _ => None,
        }
    }
}

/// Where the bytes are that use up the budget, without frames and overhead.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Holders {
    /// Messages that clients have not taken.
    pub log_bytes: u64,
    /// Messages given up while half written.
    pub half_written_bytes: u64,
    /// Messages that wait for their audience.
    pub audience_bytes: u64,
}

impl Holders {
    /// What holds most, and where to look.
    fn cause(self) -> &'static str {
        let Holders { log_bytes, half_written_bytes, audience_bytes } = self;
        if audience_bytes > log_bytes.max(half_written_bytes) {
            "PostgreSQL says too slowly who may see public statuses, and those that wait use up the budget \
             (BACKPRESSURE_HIGH_BYTES)"
        } else if half_written_bytes > log_bytes {
            "half-written frames of clients that unsubscribed or were closed use up the budget \
             (BACKPRESSURE_HIGH_BYTES); clients that do not finish them are cut off"
        } else {
            "too much is undelivered (BACKPRESSURE_HIGH_BYTES); see /status/backpressure for the slowest clients"
        }
    }
}

/// Watches as long as the server runs. `holders` is asked when an overload begins.
pub(super) async fn watch(
    stats: Arc<IngestStats>,
    gate: Arc<Gate>,
    holders: impl Fn() -> Holders,
    limits: Limits,
    clock: Clock,
) {
    use std::sync::atomic::Ordering::Relaxed;
    let mut ticks = tokio::time::interval(limits.every(LOOK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut overload = Overload::default();
    loop {
        ticks.tick().await;
        let now = clock.now();
        let seen = Seen {
            pauses: stats.pauses.load(Relaxed),
            paused: stats.paused_total(now),
            is_paused: stats.pause(now).is_some(),
        };
        match overload.look(now, seen) {
            Some(Change::Begins) => {
                let holders = holders();
                tracing::warn!(
                    held_bytes = gate.held_bytes(),
                    high_bytes = gate.high_bytes(),
                    log_bytes = holders.log_bytes,
                    half_written_bytes = holders.half_written_bytes,
                    audience_bytes = holders.audience_bytes,
                    "reading from Redis pauses: {}",
                    holders.cause(),
                );
            }
            Some(Change::Ends(pauses, paused)) => tracing::info!(
                pauses,
                paused_seconds = paused.as_secs_f64(),
                "reading from Redis goes on without pauses"
            ),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pauses: u64, paused: u64, is_paused: bool) -> Seen {
        Seen { pauses, paused: Duration::from_millis(paused), is_paused }
    }

    #[test]
    fn cause_is_what_holds_most() {
        let cause = |log_bytes, half_written_bytes, audience_bytes| {
            Holders { log_bytes, half_written_bytes, audience_bytes }.cause()
        };
        assert!(cause(0, 0, 0).contains("undelivered"));
        assert!(cause(9, 8, 8).contains("undelivered"));
        assert!(cause(8, 9, 8).contains("half-written frames"));
        assert!(cause(8, 8, 9).contains("PostgreSQL"));
    }

    #[test]
    fn a_time_of_overload_is_two_lines() {
        let mut overload = Overload::default();
        let mut look = |second: u64, seen: Seen| overload.look(Duration::from_secs(second), seen);
        assert_eq!(look(0, seen(0, 0, false)), None);
        // One that came and went between two looks counts.
        assert_eq!(look(1, seen(1, 30, false)), Some(Change::Begins));
        assert_eq!(look(2, seen(40, 700, true)), None);
        assert_eq!(look(3, seen(40, 1700, true)), None);
        for second in 4..8 {
            assert_eq!(look(second, seen(40, 1800, false)), None);
        }
        assert_eq!(look(8, seen(40, 1800, false)), Some(Change::Ends(40, Duration::from_millis(1800))));
        assert_eq!(look(9, seen(40, 1800, false)), None);
        assert_eq!(look(20, seen(41, 1800, true)), Some(Change::Begins));
        assert_eq!(look(25, seen(41, 6800, true)), None);
        assert_eq!(look(30, seen(41, 6800, false)), Some(Change::Ends(1, Duration::from_secs(5))));
    }
}
