//! Memory comes back after a burst: when a crowd has come or gone, or much was held, and it is quiet again, the
//! allocator is told to give its free pages back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::core::counters::ReactorCounters;
use crate::core::gate::Gate;
use crate::door::Door;
use crate::limits::Limits;
use crate::reactor::Socket;
use crate::sys;

const LOOK: Duration = Duration::from_secs(1);

/// So many connections, departures and ended subscriptions since the last time are worth it at the first quiet moment:
/// some MiB of buffers.
const CROWD: u64 = 256;

/// Fewer are worth it after this many looks: a client may have held 50 KiB. A crowd without a quiet moment is too.
const LONGEST_LOOKS: u32 = 30;

/// More than this within [`LOOK`] is not quiet.
const QUIET: u64 = 64;

/// So many bytes of messages held since the last time are worth it.
const BURST_BYTES: usize = 2 << 20;

/// What is seen at a look.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// Connections, departures and ended subscriptions so far.
    changes: u64,
    /// Connections at the door: their buffers would come back only the next time.
    at_door: u64,
    /// Bytes of messages held.
    held_bytes: usize,
}

/// When free memory is to be given back. Knows no clock: it is asked at every look.
#[derive(Default)]
struct Bursts {
    changes_at_last: u64,
    changes_before: u64,
    held_bytes_most: usize,
    looks: u32,
}

impl Bursts {
    /// Whether it is to be given back now.
    fn is_due(&mut self, seen: Seen) -> bool {
        self.looks = self.looks.saturating_add(1);
        self.held_bytes_most = self.held_bytes_most.max(seen.held_bytes);
        let quiet = seen.changes - self.changes_before < QUIET
            && seen.at_door < QUIET
            && seen.held_bytes < BURST_BYTES / 2;
        self.changes_before = seen.changes;
        let changes = seen.changes - self.changes_at_last;
        let is_worth_it = changes >= CROWD || self.held_bytes_most >= BURST_BYTES;
        let waited = self.looks >= LONGEST_LOOKS;
        let due = (is_worth_it && (quiet || waited)) || (changes > 0 && waited);
        if due {
            *self =
                Bursts { changes_at_last: seen.changes, changes_before: seen.changes, ..Bursts::default() };
        }
        due
    }
}

/// Watches for bursts that are over, for as long as the server runs.
pub(super) async fn watch(
    door: Arc<Door<Socket>>,
    gate: Arc<Gate>,
    counters: Vec<Arc<ReactorCounters>>,
    limits: Limits,
) {
    let mut ticks = tokio::time::interval(limits.every(LOOK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut bursts = Bursts::default();
    loop {
        ticks.tick().await;
        let accepted = door.counters().accepted.load(Ordering::Relaxed);
        let ended: u64 = counters.iter().map(|counters| counters.ended()).sum();
        let at_door = door.counters().at_door.load(Ordering::Relaxed) as u64;
        if bursts.is_due(Seen { changes: accepted + ended, at_door, held_bytes: gate.held_bytes() }) {
            door.give_memory_back();
            sys::give_memory_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(changes: u64) -> Seen {
        Seen { changes, ..Seen::default() }
    }

    #[test]
    fn memory_is_given_back_after_departures_too() {
        let mut bursts = Bursts::default();
        // 300 come, and a second later it is quiet.
        assert!(!bursts.is_due(changes(300)));
        assert!(bursts.is_due(changes(300)));
        assert!(!bursts.is_due(changes(300)));
        // They leave.
        assert!(!bursts.is_due(changes(600)));
        assert!(bursts.is_due(changes(600)));
    }

    #[test]
    fn few_changes_wait_and_none_do_nothing() {
        let mut bursts = Bursts::default();
        assert_eq!((0..100).filter(|_| bursts.is_due(changes(0))).count(), 0);
        let due = (1..=40).find(|_| bursts.is_due(changes(1)));
        assert!(due.is_some_and(|look| look <= LONGEST_LOOKS), "{due:?}");
    }

    #[test]
    fn without_a_quiet_moment_it_is_rare() {
        let mut bursts = Bursts::default();
        let due = (1..=300).filter(|look| bursts.is_due(changes(1000 * look))).count();
        assert_eq!(due, 300 / LONGEST_LOOKS as usize);
    }

    #[test]
    fn a_burst_of_messages_counts_when_it_is_over() {
        let mut bursts = Bursts::default();
        assert!(!bursts.is_due(Seen { held_bytes: BURST_BYTES, ..Seen::default() }));
        assert!(bursts.is_due(Seen::default()));
        assert!(!bursts.is_due(Seen::default()));
    }
}
