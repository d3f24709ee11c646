//! When tables and queues give memory back.
//!
//! A container keeps the capacity that its fullest moment needed. After a crowd of clients has left, that would be
//! megabytes for nothing: a container from which entries are removed calls [`Slack::give_back`] then. It shrinks at
//! less than a quarter of its capacity, to twice what is in it, so entries that come and go in equal numbers cause no
//! reallocation, and the cost of shrinking is constant per removed entry.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};

/// A smaller capacity is kept: it is less than a page for most entries.
const KEPT: usize = 32;

/// A walk over this many entries takes a few microseconds.
const FEW: usize = 64;

/// Whether most of a container's capacity is unused.
pub fn is_sparse(length: usize, capacity: usize) -> bool {
    capacity > KEPT && length < capacity / 4
}

/// Containers that can give unused capacity back.
pub trait Slack {
    /// Shrinks if most of the capacity is unused.
    fn give_back(&mut self);
}

impl<T> Slack for Vec<T> {
    fn give_back(&mut self) {
        if is_sparse(self.len(), self.capacity()) {
            self.shrink_to(self.len() * 2);
        }
    }
}

impl<T> Slack for VecDeque<T> {
    fn give_back(&mut self) {
        if is_sparse(self.len(), self.capacity()) {
            self.shrink_to(self.len() * 2);
        }
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> Slack for HashMap<K, V, S> {
    fn give_back(&mut self) {
        if is_sparse(self.len(), self.capacity()) {
            self.shrink_to(self.len() * 2);
        }
    }
}

/// Says when to shrink what has to be walked for that, such as a slab: after as many removals as make the walk's cost
/// constant for each, and after every removal while few entries are left.
#[derive(Debug, Default)]
pub struct Removals(usize);

impl Removals {
    /// One entry was removed and `left` are left: whether a walk over all of them is due.
    pub fn is_walk_due(&mut self, left: usize) -> bool {
        self.0 += 1;
        let due = left <= FEW || self.0 >= left / 2;
        if due {
            self.0 = 0;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_shrink_when_they_are_nearly_empty_and_not_before() {
        let mut queue: VecDeque<u64> = (0..10_000).collect();
        let full = queue.capacity();
        queue.truncate(full / 4);
        queue.give_back();
        assert_eq!(queue.capacity(), full);
        queue.truncate(full / 4 - 1);
        queue.give_back();
        assert!(queue.capacity() < full * 2 / 3);
        queue.clear();
        queue.give_back();
        assert!(queue.capacity() <= KEPT);
        let mut table: HashMap<u64, u64> = (0..10_000).map(|n| (n, n)).collect();
        table.retain(|n, _| *n < 10);
        table.give_back();
        assert!((10..=KEPT).contains(&table.capacity()));
    }

    #[test]
    fn walks_are_rare_and_the_last_entries_are_not_forgotten() {
        let (mut removals, mut walked, mut left_at_last) = (Removals::default(), 0, usize::MAX);
        for left in (0..100_000).rev() {
            if removals.is_walk_due(left) {
                walked += left;
                left_at_last = left;
            }
        }
        assert!(walked < 3 * 100_000, "{walked} entries were walked over for 100,000 removals");
        assert_eq!(left_at_last, 0);
    }
}
