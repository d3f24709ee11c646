//! A slab whose new entries take the lowest free index.
//!
//! The `slab` crate reuses the index that was freed last. After a crowd has left, the entries of those who come later
//! then lie anywhere in the crowd's room, and the room cannot be given back while one of them is there. With the lowest
//! index first, entries gather at the front and the room behind them comes back.
//!
//! Costs: `O(log n)` for an insertion and a removal, four bytes for each free index. An entry that stays at a high
//! index keeps the room in front of it. Tested against a map.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::{Index, IndexMut};

use crate::core::slack::is_sparse;

/// Entries by index. At most 2^32.
#[derive(Debug)]
pub struct LowestSlab<T> {
    entries: Vec<Option<T>>,
    free: BinaryHeap<Reverse<u32>>,
}

impl<T> Default for LowestSlab<T> {
    fn default() -> LowestSlab<T> {
        LowestSlab { entries: Vec::new(), free: BinaryHeap::new() }
    }
}

impl<T> LowestSlab<T> {
    /// Adds an entry and returns its index.
    pub fn insert(&mut self, entry: T) -> u32 {
        if let Some(Reverse(index)) = self.free.pop()
            && let Some(place) = self.entries.get_mut(index as usize)
        {
            *place = Some(entry);
            return index;
        }
        self.entries.push(Some(entry));
        (self.entries.len() - 1) as u32
    }

    /// Takes an entry out.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let entry = self.entries.get_mut(index as usize)?.take()?;
        self.free.push(Reverse(index));
        Some(entry)
    }

    /// The entry at that index.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.entries.get(index)?.as_ref()
    }

    /// The same.
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.entries.get_mut(index)?.as_mut()
    }

    /// All entries with their indexes, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| Some((index, entry.as_ref()?)))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries there is room for.
    pub fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// Gives the room behind the last entry back, if most of the room is unused. The work is that of looking at all.
    pub fn give_back(&mut self) {
        if !is_sparse(self.len(), self.entries.capacity()) {
            return;
        }
        let used = self.entries.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.entries.truncate(used);
        self.free.retain(|Reverse(index)| (*index as usize) < used);
        if is_sparse(used, self.entries.capacity()) {
            self.entries.shrink_to(used * 2);
        }
        if is_sparse(self.free.len(), self.free.capacity()) {
            self.free.shrink_to(self.free.len() * 2);
        }
    }
}

impl<T> Index<u32> for LowestSlab<T> {
    type Output = T;

    #[expect(
        clippy::expect_used,
        reason = "as with a vector, an index that is not there is a fault of the caller's"
    )]
    fn index(&self, index: u32) -> &T {
        self.get(index as usize).expect("an entry at this index")
    }
}

impl<T> IndexMut<u32> for LowestSlab<T> {
    #[expect(
        clippy::expect_used,
        reason = "as with a vector, an index that is not there is a fault of the caller's"
    )]
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.get_mut(index as usize).expect("an entry at this index")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    proptest::proptest! {
        #[test]
        fn like_a_map_with_the_lowest_free_index_first(
            steps in proptest::collection::vec((0..4u8, 0..60u32), 0..400),
        ) {
            let (mut slab, mut map) = (LowestSlab::default(), BTreeMap::new());
            for (number, (step, index)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        let lowest = (0..).find(|index| !map.contains_key(index)).unwrap();
                        proptest::prop_assert_eq!(slab.insert(number), lowest);
                        map.insert(lowest, number);
                    }
                    2 => proptest::prop_assert_eq!(slab.remove(index), map.remove(&index)),
                    _ => slab.give_back(),
                }
                proptest::prop_assert_eq!(slab.len(), map.len());
                proptest::prop_assert_eq!(slab.get(index as usize), map.get(&index));
                let all: Vec<(u32, usize)> = slab.iter().map(|(index, entry)| (index as u32, *entry)).collect();
                proptest::prop_assert_eq!(all, map.iter().map(|(index, entry)| (*index, *entry)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn room_comes_back_when_the_last_of_a_crowd_leaves() {
        let mut slab = LowestSlab::default();
        for n in 0..10_000 {
            slab.insert(n);
        }
        for index in 0..9_999 {
            slab.remove(index);
        }
        slab.give_back();
        assert!(slab.capacity() >= 10_000, "the last one is in the last place");
        assert_eq!((slab.insert(1), slab.insert(2)), (0, 1), "those who come later are in the first places");
        slab.remove(9_999);
        slab.give_back();
        assert!(slab.capacity() <= 32 && slab.free.capacity() <= 32);
        assert_eq!(slab.iter().map(|(_, entry)| *entry).collect::<Vec<_>>(), [1, 2]);
    }
}
