//! A timer wheel: many timers, 8 bytes each, no object per timer, no clock.
//!
//! Time is cut into ticks; a timer stands in the slot of its tick. Timers beyond the horizon (a token that expires
//! within the hour) wait in an ordered map. No single timer is removed: the owner checks whether one that fires is
//! still meant (clients carry a generation for that), and sifts out those of clients that left, now and then. The
//! work of a turn is the timers that are due, whatever their number in all.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::slack::is_sparse;

/// The length of a tick, in milliseconds: the accuracy of every timer here, never early.
pub const TICK_MS: u64 = 50;

/// Slots of the wheel: 102 s ahead, more than any regular interval.
const SLOTS: usize = 2048;

/// Timers with keys that mean something to the caller.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<u64>>,
    far: BTreeMap<u64, Vec<u64>>,
    /// All ticks before this one have been run.
    next_tick: u64,
    waiting: usize,
}

impl Default for Wheel {
    fn default() -> Wheel {
        Wheel { slots: vec![Vec::new(); SLOTS], far: BTreeMap::new(), next_tick: 0, waiting: 0 }
    }
}

impl Wheel {
    /// Calls `key` when `due` (since the start) has passed; at the next [`advance`](Self::advance) at the
    /// earliest.
    pub fn insert(&mut self, due: Duration, key: u64) {
        let tick = (due.as_millis() as u64).div_ceil(TICK_MS).max(self.next_tick);
        self.waiting += 1;
        if tick - self.next_tick < SLOTS as u64 {
            self.slots[(tick % SLOTS as u64) as usize].push(key);
        } else {
            self.far.entry(tick).or_default().push(key);
        }
    }

    /// Appends to `fired` every key that is due at `now`, earlier ticks first.
    pub fn advance(&mut self, now: Duration, fired: &mut Vec<u64>) {
        let now_tick = now.as_millis() as u64 / TICK_MS;
        let before = fired.len();
        // After a long sleep each slot is visited once, not once per tick that passed.
        let first = self.next_tick.max((now_tick + 1).saturating_sub(SLOTS as u64));
        for tick in first..=now_tick {
            let slot = &mut self.slots[(tick % SLOTS as u64) as usize];
            fired.append(slot);
            // Two thousand slots would keep what their fullest moment needed.
            *slot = Vec::new();
        }
        self.next_tick = self.next_tick.max(now_tick + 1);
        while let Some(entry) = self.far.first_entry()
            && *entry.key() <= now_tick
        {
            fired.append(&mut entry.remove());
        }
        self.waiting -= fired.len() - before;
    }

    /// Forgets the timers that are not to be kept. The work is that of looking at all.
    pub fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let mut waiting = 0;
        let mut sift = |keys: &mut Vec<u64>| {
            keys.retain(|key| keep(*key));
            if is_sparse(keys.len(), keys.capacity()) || keys.is_empty() {
                keys.shrink_to_fit();
            }
            waiting += keys.len();
        };
        self.slots.iter_mut().for_each(&mut sift);
        self.far.retain(|_, keys| {
            sift(keys);
            !keys.is_empty()
        });
        self.waiting = waiting;
    }

    /// Timers that wait.
    pub fn len(&self) -> usize {
        self.waiting
    }

    /// Whether no timer waits.
    pub fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How long nothing will be due, at most `longest`.
    pub fn sleep(&self, now: Duration, longest: Duration) -> Duration {
        if self.waiting == 0 {
            return longest;
        }
        let end_tick = (now + longest).as_millis() as u64 / TICK_MS + 1;
        let end = end_tick.min(self.next_tick + SLOTS as u64);
        let tick = (self.next_tick..end)
            .find(|tick| !self.slots[(tick % SLOTS as u64) as usize].is_empty())
            .or_else(|| self.far.keys().next().copied())
            .unwrap_or(end_tick);
        Duration::from_millis(tick * TICK_MS).saturating_sub(now).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn fired(wheel: &mut Wheel, now: u64) -> Vec<u64> {
        let mut keys = Vec::new();
        wheel.advance(ms(now), &mut keys);
        keys
    }

    #[test]
    fn fires_once_in_order_and_never_early() {
        let mut wheel = Wheel::default();
        wheel.insert(ms(1000), 1);
        wheel.insert(ms(30_000), 2);
        wheel.insert(ms(500_000), 3);
        wheel.insert(ms(0), 4);
        assert_eq!(fired(&mut wheel, 0), [4]);
        assert!(fired(&mut wheel, 999).is_empty());
        assert_eq!(fired(&mut wheel, 1000), [1]);
        assert_eq!(wheel.sleep(ms(1000), ms(60_000)), ms(29_000));
        assert_eq!(fired(&mut wheel, 499_999), [2]);
        assert_eq!(wheel.sleep(ms(499_999), ms(60_000)), ms(1));
        assert_eq!(fired(&mut wheel, 500_000), [3]);
        assert_eq!(wheel.sleep(ms(500_000), ms(60_000)), ms(60_000));
    }

    #[test]
    fn a_timer_in_the_past_fires_at_the_next_advance() {
        let mut wheel = Wheel::default();
        assert!(fired(&mut wheel, 10_000).is_empty());
        wheel.insert(ms(3), 7);
        assert_eq!(fired(&mut wheel, 10_050), [7]);
    }

    #[test]
    fn timers_that_are_sifted_out_never_fire_and_leave_no_memory() {
        let mut wheel = Wheel::default();
        (0..100_000).for_each(|key| wheel.insert(ms(key % 300_000), key));
        wheel.retain(|key| key == 77 || key == 99_999);
        assert_eq!(wheel.len(), 2);
        let kept: usize = wheel.slots.iter().chain(wheel.far.values()).map(Vec::capacity).sum();
        assert!(kept <= 64, "room for {kept} timers is kept");
        assert_eq!(fired(&mut wheel, 50_000), [77]);
        assert_eq!(fired(&mut wheel, 300_000), [99_999]);
        assert!(wheel.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn every_timer_fires_within_a_tick(
            timers in proptest::collection::vec(0u64..400_000, 0..100),
            steps in proptest::collection::vec(1u64..150_000, 1..20),
        ) {
            let mut wheel = Wheel::default();
            for (key, due) in timers.iter().enumerate() {
                wheel.insert(ms(*due), key as u64);
            }
            let mut now = 0;
            let mut seen = vec![false; timers.len()];
            for step in steps {
                now += step;
                for key in fired(&mut wheel, now) {
                    let due = timers[key as usize];
                    proptest::prop_assert!(due <= now && !seen[key as usize]);
                    seen[key as usize] = true;
                }
                for (key, due) in timers.iter().enumerate() {
                    proptest::prop_assert!(seen[key] || due + TICK_MS > now);
                }
            }
        }
    }
}
