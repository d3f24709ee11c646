//! Logs when newcomers are refused because the server is full, and when that is over: two lines for each such time,
//! however many are refused.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::door::{Door, Reason};
use crate::limits::{CLIENTS_FEW, Limits};
use crate::reactor::Socket;

/// How often the counter is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// After so long without a refusal the server is no longer full.
const QUIET: Duration = Duration::from_secs(60);

/// What is worth a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Begins,
    /// How many were refused.
    Ends(u64),
}

/// Tells one time of refusals from the next.
#[derive(Debug, Default)]
struct Episode {
    seen: u64,
    /// Refusals before it began, and when the last one was seen.
    now: Option<(u64, Duration)>,
}

impl Episode {
    /// Takes a look at `at`, on any clock that does not go back.
    fn look(&mut self, at: Duration, refused: u64) -> Option<Change> {
        let before = std::mem::replace(&mut self.seen, refused);
        match &mut self.now {
            None if refused > before => {
                self.now = Some((before, at));
                Some(Change::Begins)
            }
            Some((_, last)) if refused > before => {
                *last = at;
                None
            }
            Some((began, last)) if at.saturating_sub(*last) >= QUIET => {
                let change = Change::Ends(refused - *began);
                self.now = None;
                Some(change)
            }
            _ => None,
        }
    }
}

/// Watches as long as the server runs.
pub(super) async fn watch(door: Arc<Door<Socket>>, limits: Limits, clock: Clock) {
    let mut ticks = tokio::time::interval(limits.every(LOOK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut episode = Episode::default();
    loop {
        ticks.tick().await;
        match episode.look(clock.now(), door.counters().refused(Reason::Full)) {
            Some(Change::Begins) => tracing::warn!(
                clients_max = limits.connections_max,
                "the server is full, so newcomers are refused with 503; raise {}",
                what_to_raise(&limits)
            ),
            Some(Change::Ends(refused)) => {
                tracing::info!(refused, "newcomers are no longer refused for want of room")
            }
            None => {}
        }
    }
}

/// Warns where few clients have room.
pub(super) fn warn_if_small(limits: &Limits) {
    if limits.connections_max < CLIENTS_FEW && limits.connections_max >= limits.sockets_max {
        tracing::warn!(
            clients_max = limits.connections_max,
            "there is room for few clients; raise {}",
            what_to_raise(limits)
        );
    }
}

fn what_to_raise(limits: &Limits) -> &'static str {
    if limits.connections_max < limits.sockets_max {
        "MAX_CONNECTIONS"
    } else {
        "the limit of open files (LimitNOFILE= in the unit, ulimit -n elsewhere)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_refusals_is_two_lines() {
        let mut episode = Episode::default();
        let mut look = |second: u64, refused: u64| episode.look(Duration::from_secs(second), refused);
        assert_eq!(look(0, 0), None);
        assert_eq!(look(1, 3), Some(Change::Begins));
        assert_eq!(look(2, 900), None);
        assert_eq!(look(61, 900), None);
        assert_eq!(look(62, 900), Some(Change::Ends(900)));
        assert_eq!(look(63, 900), None);
        assert_eq!(look(64, 901), Some(Change::Begins));
    }
}
