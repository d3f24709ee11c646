//! Memory comes back after a burst: when a crowd has come in, or much was held, and it is quiet again, the
//! allocator is told to give its free pages back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::core::gate::Gate;
use crate::door::Door;
use crate::limits::Limits;
use crate::reactor::Socket;
use crate::sys;

const LOOK: Duration = Duration::from_secs(1);

/// So many connections since the last time are worth it: some MiB of buffers.
const CROWD: u64 = 256;

/// More than this within [`LOOK`] is not quiet.
const QUIET: u64 = 64;

/// So many bytes of messages held since the last time are worth it.
const BURST_BYTES: usize = 2 << 20;

/// Watches for bursts that are over, for as long as the server runs.
pub(super) async fn watch(door: Arc<Door<Socket>>, gate: Arc<Gate>, limits: Limits) {
    let mut ticks = tokio::time::interval(limits.every(LOOK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut trimmed_at, mut before, mut held_most) = (0, 0, 0);
    loop {
        ticks.tick().await;
        let accepted = door.counters().accepted.load(Ordering::Relaxed);
        let held = gate.held_bytes();
        held_most = held_most.max(held);
        // Who is still at the door has buffers that would come back only the next time.
        let at_door = door.counters().at_door.load(Ordering::Relaxed) as u64;
        let quiet = accepted - before < QUIET && at_door < QUIET && held < BURST_BYTES / 2;
        before = accepted;
        if quiet && (accepted - trimmed_at >= CROWD || held_most >= BURST_BYTES) {
            (trimmed_at, held_most) = (accepted, 0);
            sys::give_memory_back();
        }
    }
}
