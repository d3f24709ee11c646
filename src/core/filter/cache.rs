//! The compiled filters of the accounts that watch a filtered channel, under one budget.
//!
//! Filters are dropped on `filters_changed`. A load that began before one must not bring the old ones back: each
//! slot counts its changes, a load remembers the count it began at, and is not kept when that has moved. An
//! account that nobody watches for is forgotten, since nobody would hear of its changes.
//!
//! Bound: all slots and filters together stay under the budget; the least recently used are dropped, and
//! loaded again when they are needed.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwapOption;

use super::Filters;
use crate::core::stream::Id;

/// The place of one account's filters, shared by all its connections.
#[derive(Debug, Default)]
pub struct Slot {
    filters: ArcSwapOption<Filters>,
    /// Counts `filters_changed`.
    generation: AtomicU64,
    /// The cache's turn at which they were last used.
    used: AtomicU64,
}

impl Slot {
    /// The filters, if they are loaded; noted as used in that turn.
    pub fn filters(&self, turn: u64) -> Option<Arc<Filters>> {
        let filters = self.filters.load();
        let filters = filters.as_ref()?;
        self.used.store(turn, Ordering::Relaxed);
        Some(Arc::clone(filters))
    }

    /// To be remembered by a load before it begins.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// All slots. Owned by the audience stage.
#[derive(Debug)]
pub struct FilterCache {
    slots: HashMap<Id, Arc<Slot>, foldhash::fast::RandomState>,
    budget_bytes: usize,
    held_bytes: usize,
    turn: u64,
    evicted: u64,
}

/// What a slot costs besides its filters: itself with its counts, and its place in the table.
const SLOT_BYTES: usize = size_of::<Slot>() + 16 + 2 * size_of::<(Id, Arc<Slot>)>();

impl FilterCache {
    /// An empty cache under that budget.
    pub fn new(budget_bytes: usize) -> FilterCache {
        FilterCache { slots: HashMap::default(), budget_bytes, held_bytes: 0, turn: 0, evicted: 0 }
    }

    /// Begins a turn: what is used from now on is more recent than what was.
    pub fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// The account's slot, made if need be.
    pub fn slot(&mut self, account: Id) -> Arc<Slot> {
        Arc::clone(self.slots.entry(account).or_insert_with(|| {
            self.held_bytes += SLOT_BYTES;
            Arc::default()
        }))
    }

    /// The account's filters changed: they are dropped, and loads on their way are not kept.
    pub fn changed(&mut self, account: Id) {
        if let Some(slot) = self.slots.get(&account) {
            slot.generation.fetch_add(1, Ordering::AcqRel);
            self.held_bytes -= drop_filters(slot);
        }
    }

    /// Everybody's filters may have changed unheard (Redis was away).
    pub fn all_changed(&mut self) {
        for slot in self.slots.values() {
            slot.generation.fetch_add(1, Ordering::AcqRel);
            self.held_bytes -= drop_filters(slot);
        }
    }

    /// Nobody watches for that account any more.
    pub fn forget(&mut self, account: Id) {
        if let Some(slot) = self.slots.remove(&account) {
            slot.generation.fetch_add(1, Ordering::AcqRel);
            self.held_bytes -= drop_filters(&slot) + SLOT_BYTES;
        }
    }

    /// Keeps filters whose load began at `generation`, unless they have changed since. Others may be dropped
    /// to stay under the budget.
    pub fn fill(&mut self, account: Id, slot: &Arc<Slot>, generation: u64, filters: &Arc<Filters>) -> bool {
        let current = self.slots.get(&account).is_some_and(|kept| Arc::ptr_eq(kept, slot));
        if !current || slot.generation() != generation {
            return false;
        }
        self.held_bytes -= drop_filters(slot);
        self.held_bytes += filters.held_bytes();
        slot.filters.store(Some(Arc::clone(filters)));
        slot.used.store(self.turn, Ordering::Relaxed);
        if self.held_bytes > self.budget_bytes {
            self.evict();
        }
        true
    }

    /// What is held, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Accounts with a slot.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether no account has a slot.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How often filters were dropped for the budget.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Drops the least recently used until a tenth of the budget is free, so that this pass over all slots
    /// comes once in many fills.
    fn evict(&mut self) {
        let mut by_use: Vec<(u64, &Arc<Slot>)> = self
            .slots
            .values()
            .filter(|slot| slot.filters.load().is_some())
            .map(|slot| (slot.used.load(Ordering::Relaxed), slot))
            .collect();
        by_use.sort_unstable_by_key(|entry| entry.0);
        for (_, slot) in by_use {
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
