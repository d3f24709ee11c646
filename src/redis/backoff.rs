//! How long to wait before the next attempt: exponential, capped, with jitter, so that many servers do not
//! come back at the same moment.

use std::hash::BuildHasher;
use std::time::Duration;

use crate::limits::{RETRY_DELAY_FIRST, RETRY_DELAY_MAX};

/// Counts failed attempts.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
    random: foldhash::fast::RandomState,
}

impl Backoff {
    /// It worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed: wait that long, between half of the step and all of it; the steps double from 0.1 to 5 s.
    pub fn next_delay(&mut self) -> Duration {
        let step = RETRY_DELAY_FIRST.saturating_mul(1 << self.failures.min(16)).min(RETRY_DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        let share = self.random.hash_one(self.failures) % 1000;
        step / 2 + step.mul_f64(share as f64 / 2000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_double_up_to_five_seconds_with_jitter() {
        let mut backoff = Backoff::default();
        for step in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000] {
            let delay = backoff.next_delay().as_millis();
            assert!((step / 2..=step).contains(&delay), "{delay} ms in a step of {step} ms");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= RETRY_DELAY_FIRST);
    }
}
