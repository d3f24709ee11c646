//! What an account's custom filters say about a status: the JSON of its `filtered`.
//!
//! An outcome is shared by the copies of a status on all channels and by all frames of its account, whatever the
//! stream's name: a write carries it as a part of its own. What the outcomes of all live statuses take together has a
//! bound of its own, a quarter of the budget, so that accounts whose filters say much cannot use up what home
//! timelines need. The larger a result, the earlier there is no room for it: one may take a sixteenth of the room
//! that is left. So those who say much are the first who do not get a status, and ordinary results pass.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::core::gate::{Charge, Gate};
use crate::core::json;

/// What an outcome takes besides its JSON: itself with the counts of its `Arc`, and rounding of the allocator.
const OUTCOME_OVERHEAD_BYTES: usize = size_of::<Outcome>() + 64;

/// The share of the budget that outcomes may take: one in this many bytes.
const BUDGET_SHARE: usize = 4;

/// The share of the room left that one outcome may take.
const ROOM_SHARE: usize = 16;

/// The room that all outcomes have together.
#[derive(Debug)]
pub struct OutcomeBudget {
    gate: Arc<Gate>,
    held_bytes: AtomicUsize,
    bytes_max: usize,
}

impl OutcomeBudget {
    /// A quarter of the gate's budget.
    pub fn new(gate: &Arc<Gate>) -> Arc<OutcomeBudget> {
        let bytes_max = gate.high_bytes() / BUDGET_SHARE;
        Arc::new(OutcomeBudget { gate: Arc::clone(gate), held_bytes: AtomicUsize::new(0), bytes_max })
    }

    /// What the live outcomes take, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// An outcome with that JSON array, charged to the budget; none where there is no room for it. Only the audience
    /// stage's thread makes outcomes.
    pub fn outcome(self: &Arc<Self>, json: &[u8]) -> Option<Arc<Outcome>> {
        let bytes = json.len() + OUTCOME_OVERHEAD_BYTES;
        let room = self.bytes_max.saturating_sub(self.held_bytes());
        if bytes > room / ROOM_SHARE {
            return None;
        }
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(Arc::new(Outcome {
            json: Bytes::copy_from_slice(json),
            escaped: OnceLock::new(),
            charge: Charge::new(&self.gate, bytes),
            counted_bytes: bytes,
            budget: Arc::clone(self),
        }))
    }
}

/// One account's results for one status.
#[derive(Debug)]
pub struct Outcome {
    json: Bytes,
    /// As it stands in a WebSocket message's payload, which is a JSON string.
    escaped: OnceLock<Bytes>,
    charge: Charge,
    counted_bytes: usize,
    budget: Arc<OutcomeBudget>,
}

impl Outcome {
    /// The JSON array behind `"filtered":`.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// The same inside a JSON string. Kept for the next frame while the budget allows it.
    pub(super) fn escaped(&self) -> Bytes {
        if let Some(escaped) = self.escaped.get() {
            return escaped.clone();
        }
        let mut out = Vec::with_capacity(self.json.len() + self.json.len() / 4);
        json::write_compact_escaped(&self.json, &mut out);
        let escaped = Bytes::from(out.into_boxed_slice());
        if self.charge.try_add(escaped.len()) && self.escaped.set(escaped.clone()).is_err() {
            self.charge.give_back(escaped.len());
        }
        escaped
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.budget.held_bytes.fetch_sub(self.counted_bytes, Ordering::Relaxed);
    }
}
