//! The compiled filters of the accounts that watch a filtered channel, under one budget.
//!
//! Filters are dropped on `filters_changed`. A load that began before one must not bring the old ones back: each
//! slot counts its changes, a load remembers the count it began at, and is not kept when that has moved. An
//! account that nobody watches for is forgotten, since nobody would hear of its changes.
//!
//! A slot is part of its owner's record of the viewer; this is the budget that all of them share.
//!
//! Bound: all slots and filters together stay under the budget; the least recently used are dropped, and
//! loaded again when they are needed.

use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwapOption;

use super::Filters;

/// The place of one account's filters, shared by all its connections. Made by [`FilterCache::admit`].
#[derive(Debug)]
pub struct Slot {
    filters: ArcSwapOption<Filters>,
    /// Counts `filters_changed`; [`FORGOTTEN`] at the end.
    generation: AtomicU32,
    /// The cache's turn at which they were last used.
    used: AtomicU32,
}

// It is part of what each viewer costs.
const _: () = assert!(size_of::<Slot>() == 16);

impl Slot {
    /// The filters, if they are loaded; noted as used in that turn.
    pub fn filters(&self, turn: u32) -> Option<Arc<Filters>> {
        let filters = self.filters.load();
        let filters = filters.as_ref()?;
        self.used.store(turn, Ordering::Relaxed);
        Some(Arc::clone(filters))
    }

    /// To be remembered by a load before it begins.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }
}

/// The generation of a slot that takes no more filters.
const FORGOTTEN: u32 = u32::MAX;

/// The budget of all slots. Owned by the audience stage.
#[derive(Debug)]
pub struct FilterCache {
    slots: usize,
    budget_bytes: usize,
    held_bytes: usize,
    /// Wraps around.
    turn: u32,
    evicted: u64,
}

/// What a slot costs besides its filters.
const SLOT_BYTES: usize = size_of::<Slot>();

impl FilterCache {
    /// An empty cache under that budget.
    pub fn new(budget_bytes: usize) -> FilterCache {
        FilterCache { slots: 0, budget_bytes, held_bytes: 0, turn: 0, evicted: 0 }
    }

    /// Begins a turn: what is used from now on is more recent than what was.
    pub fn next_turn(&mut self) -> u32 {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    /// A slot for one more account. It is to be given to [`forget`](Self::forget) in the end.
    pub fn admit(&mut self) -> Slot {
        self.slots += 1;
        self.held_bytes += SLOT_BYTES;
        Slot { filters: ArcSwapOption::empty(), generation: AtomicU32::new(0), used: AtomicU32::new(0) }
    }

    /// The account's filters changed: they are dropped, and loads on their way are not kept.
    pub fn changed(&mut self, slot: &Slot) {
        let next = slot.generation().wrapping_add(1);
        slot.generation.store(if next == FORGOTTEN { 0 } else { next }, Ordering::Release);
        self.held_bytes -= drop_filters(slot);
    }

    /// Nobody watches for that account any more.
    pub fn forget(&mut self, slot: &Slot) {
        slot.generation.store(FORGOTTEN, Ordering::Release);
        self.slots -= 1;
        self.held_bytes -= drop_filters(slot) + SLOT_BYTES;
    }

    /// Keeps filters whose load began at `generation`, unless they have changed since. Others, of `slots`, may
    /// be dropped to stay under the budget.
    pub fn fill<'a>(
        &mut self,
        slot: &Slot,
        generation: u32,
        filters: &Arc<Filters>,
        slots: impl Iterator<Item = &'a Slot>,
    ) -> bool {
        let now = slot.generation();
        if now != generation || now == FORGOTTEN {
            return false;
        }
        self.held_bytes -= drop_filters(slot);
        self.held_bytes += filters.held_bytes();
        slot.filters.store(Some(Arc::clone(filters)));
        slot.used.store(self.turn, Ordering::Relaxed);
        if self.held_bytes > self.budget_bytes {
            self.evict(slots);
        }
        true
    }

    /// What is held, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Accounts with a slot.
    pub fn len(&self) -> usize {
        self.slots
    }

    /// Whether no account has a slot.
    pub fn is_empty(&self) -> bool {
        self.slots == 0
    }

    /// How often filters were dropped for the budget.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Drops the least recently used until a tenth of the budget is free, so that this pass over all slots
    /// comes once in many fills.
    fn evict<'a>(&mut self, slots: impl Iterator<Item = &'a Slot>) {
        let unused_for = |slot: &Slot| self.turn.wrapping_sub(slot.used.load(Ordering::Relaxed));
        let mut by_age: Vec<(u32, &Slot)> =
            slots.filter(|slot| slot.filters.load().is_some()).map(|slot| (unused_for(slot), slot)).collect();
        by_age.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.0));
        for (_, slot) in by_age {
            if self.held_bytes <= self.budget_bytes / 10 * 9 {
                break;
            }
            self.held_bytes -= drop_filters(slot);
            self.evicted += 1;
        }
    }
}

/// Empties the slot; what that frees, in bytes.
fn drop_filters(slot: &Slot) -> usize {
    slot.filters.swap(None).map_or(0, |filters| filters.held_bytes())
}
