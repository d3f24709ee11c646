//! The gate: how many undelivered bytes there are, and whether Redis may be read.
//!
//! Every live [`Event`](crate::core::event::Event) holds a [`Charge`] for its payload and for what is made of it
//! later: filter results, frames. The charge is given back when the last holder drops the event. Over the high mark
//! the gate closes, at the low mark it opens. It is the only place where reading pauses. One atomic add per event
//! and per frame, none per delivery.
//!
//! Halfway between the two marks is a third, the evict mark: over it, stalled clients are closed
//! ([`relay`](crate::core::relay)), so that reading need not pause for a client that reads nothing.
//!
//! Each change is announced: more than the evict mark is held; the gate is closed; the gate is open again. The
//! announcement wakes every thread that acts on the gate, since the bytes may be held by a reactor that has
//! nothing else to do. A fill level that swings a little about the evict mark is announced once; clients are
//! looked at all that time.
//!
//! # The bound: twice the budget
//! Three things add to what is held, and each looks at the sum before it does:
//! - a message is read only while no more than the budget is held ([`Gate::may_read`]);
//! - an audience (who gets a status, and the results of custom filters) is added only while no more than one and a
//!   half times the budget is held; until then the status waits in the audience stage
//!   ([`Gate::announce_below`]). The results of all live statuses together take at most a quarter of the budget;
//! - a frame is kept only while all that is held with it stays within twice the budget ([`Charge::try_add`]);
//!   otherwise it is rendered for the write that needs it, and not kept.
//!
//! So no more than twice the budget is ever held, as long as the longest message and the largest audience fit in
//! half of the budget. A larger one passes alone, with its frames, and is all that is over. Tested with random
//! messages, viewers, filters and spellings in `core/event/tests/bound.rs` and `db/stage/machine/tests`.
//!
//! When nothing at all is held, the gate is open whatever the budget, so that one message of any size
//! always passes.

use std::sync::OnceLock;

use crate::core::sync::Arc;
use crate::core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Counts the bytes held and closes over the high mark. Shared by ingest and all who hold events.
pub struct Gate {
    held_bytes: AtomicUsize,
    high_bytes: usize,
    low_bytes: usize,
    closed: AtomicBool,
    /// More than the evict mark was held, and since then never as little as the calm mark.
    pressed: AtomicBool,
    changed: Box<dyn Fn() + Send + Sync>,
    /// See [`announce_below`](Self::announce_below).
    announce_bytes: AtomicUsize,
    announce: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// No mark is watched: nothing held is ever above it.
const NO_MARK: usize = usize::MAX;

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({} of {} bytes)", self.held_bytes(), self.high_bytes)
    }
}

impl Gate {
    /// A gate over `high_bytes`, opening again at `low_bytes`. `changed` is called after each change, from the
    /// thread that made it; it wakes the ingest and every reactor, and must not block.
    pub fn new(high_bytes: usize, low_bytes: usize, changed: impl Fn() + Send + Sync + 'static) -> Arc<Gate> {
        assert!(low_bytes <= high_bytes);
        Arc::new(Gate {
            held_bytes: AtomicUsize::new(0),
            high_bytes,
            low_bytes,
            closed: AtomicBool::new(false),
            pressed: AtomicBool::new(false),
            changed: Box::new(changed),
            announce_bytes: AtomicUsize::new(NO_MARK),
            announce: OnceLock::new(),
        })
    }

    /// What is called when [`announce_below`](Self::announce_below) has something to announce, from whichever thread
    /// dropped the bytes. Set once, by the audience stage; later calls change nothing.
    pub fn on_announce(&self, announce: impl Fn() + Send + Sync + 'static) {
        let _ = self.announce.set(Box::new(announce));
    }

    /// Whether no more than `mark` bytes are held. If more are, the next fall to `mark` is announced.
    pub fn announce_below(&self, mark: usize) -> bool {
        self.announce_bytes.swap(mark, Ordering::SeqCst);
        // As in `may_read`: the fall that this does not see yet sees the mark.
        let is_below = self.held_bytes.fetch_add(0, Ordering::AcqRel) <= mark;
        if is_below {
            self.announce_bytes.swap(NO_MARK, Ordering::SeqCst);
        }
        is_below
    }

    /// The most that may be held with a frame that is kept, in bytes.
    fn kept_bytes_max(&self) -> usize {
        self.high_bytes.saturating_mul(2)
    }

    /// The bytes of all live events and their frames.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// The budget: the mark over which reading pauses, in bytes.
    pub fn high_bytes(&self) -> usize {
        self.high_bytes
    }

    /// The mark at which reading goes on, in bytes.
    pub fn low_bytes(&self) -> usize {
        self.low_bytes
    }

    /// The mark over which stalled clients are closed, in bytes. The rest of the budget is what may be read while
    /// the reactors do that.
    pub fn evict_bytes(&self) -> usize {
        self.low_bytes + (self.high_bytes - self.low_bytes) / 2
    }

    /// The mark at which passing the evict mark will be announced again: so many bytes below it that the
    /// announcements are rare.
    fn calm_bytes(&self) -> usize {
        self.evict_bytes() - (self.high_bytes - self.low_bytes) / 8
    }

    /// Whether clients that hold bytes are to be looked at: reading is paused, or soon will be. Each time that this
    /// becomes true is announced.
    pub fn is_over(&self) -> bool {
        self.pressed.load(Ordering::SeqCst) || self.is_closed()
    }

    /// Asked by the ingest before each message: closes the gate when too much is held, and says whether
    /// reading may go on.
    pub fn may_read(&self) -> bool {
        if self.closed.load(Ordering::SeqCst) {
            return false;
        }
        if self.held_bytes() <= self.high_bytes {
            return true;
        }
        self.closed.swap(true, Ordering::SeqCst);
        // Bytes given back between the look and the store found the gate open and woke nobody: look again.
        // Both sides change the count, so one of the two comes after the other and sees what it did before;
        // a mere load might see neither. `tests/loom.rs` tries every order.
        if self.held_bytes.fetch_add(0, Ordering::AcqRel) <= self.low_bytes {
            self.closed.swap(false, Ordering::SeqCst);
            return true;
        }
        (self.changed)();
        false
    }

    /// Whether reading is paused now.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// What is held then.
    fn take(&self, bytes: usize) -> usize {
        let held = self.held_bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        if held > self.evict_bytes() && !self.pressed.load(Ordering::SeqCst) {
            self.review_pressed();
        }
        held
    }

    fn give_back(&self, bytes: usize) {
        let before = self.held_bytes.fetch_sub(bytes, Ordering::SeqCst);
        debug_assert!(before >= bytes);
        let held = before - bytes;
        let mark = self.announce_bytes.load(Ordering::SeqCst);
        if before > mark
            && held <= mark
            && let Some(announce) = self.announce.get()
        {
            announce();
        }
        if held <= self.calm_bytes() && self.pressed.load(Ordering::SeqCst) {
            self.review_pressed();
        }
        if held <= self.low_bytes
            && self.closed.load(Ordering::SeqCst)
            && self.closed.swap(false, Ordering::SeqCst)
        {
            (self.changed)();
        }
    }

    /// Makes `pressed` agree with the count. A thread that changes the flag looks at the count again: another
    /// thread that changed the count meanwhile may have seen the flag as it was before. Each look is a change of
    /// the count as well, for the reason given in [`may_read`](Self::may_read).
    fn review_pressed(&self) {
        loop {
            let held = self.held_bytes.fetch_add(0, Ordering::SeqCst);
            if held > self.evict_bytes() {
                if self.pressed.swap(true, Ordering::SeqCst) {
                    return;
                }
                (self.changed)();
            } else if held > self.calm_bytes() || !self.pressed.swap(false, Ordering::SeqCst) {
                return;
            }
        }
    }
}

/// Bytes that count against the budget as long as this lives.
#[derive(Debug)]
pub struct Charge {
    gate: Arc<Gate>,
    bytes: AtomicUsize,
}

impl Charge {
    /// Counts `bytes` from now on.
    pub fn new(gate: &Arc<Gate>, bytes: usize) -> Charge {
        gate.take(bytes);
        Charge { gate: Arc::clone(gate), bytes: AtomicUsize::new(bytes) }
    }

    /// Counts `more` bytes with it, if what is held then is within twice the budget, or if this is more than half
    /// of the budget by itself: such a message is read when little else is held, and rendering it again for each of
    /// its many writes would cost more than the memory does. False, and nothing counted, otherwise.
    pub fn try_add(&self, more: usize) -> bool {
        if self.bytes() > self.gate.high_bytes / 2 {
            self.add(more);
            return true;
        }
        if self.gate.held_bytes().saturating_add(more) > self.gate.kept_bytes_max() {
            return false;
        }
        if self.gate.take(more) > self.gate.kept_bytes_max() {
            self.gate.give_back(more);
            return false;
        }
        self.bytes.fetch_add(more, Ordering::Relaxed);
        true
    }

    /// No longer counts `fewer` of its bytes.
    pub fn give_back(&self, fewer: usize) {
        self.bytes.fetch_sub(fewer, Ordering::Relaxed);
        self.gate.give_back(fewer);
    }

    /// Counts `more` bytes with it (an audience).
    pub fn add(&self, more: usize) {
        self.bytes.fetch_add(more, Ordering::Relaxed);
        self.gate.take(more);
    }

    /// The bytes counted so far.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.gate.give_back(self.bytes());
    }
}
