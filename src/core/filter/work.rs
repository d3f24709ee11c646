//! How much work custom filters may be, all accounts together.
//!
//! One account's work for one status is bounded, but a few dozen accounts that make use of that would keep a thread
//! busy, and everybody's public streams would wait. So work beyond what is free is taken from a budget that refills at
//! a fixed rate, and an account may spend an eighth of what is left of it. A costly account therefore finds too little
//! in the budget long before one that costs less: the most expensive are the first whose statuses are withheld, and
//! accounts that cost no more than the free work never are.
//!
//! What a status will cost an account is expected from what the last ones cost it, so that filters that cost too much
//! are passed over without any work.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Filters, SearchText, TooMuchWork};
use crate::limits::{
    FILTER_WORK_FREE, FILTER_WORK_FREE_MIN, FILTER_WORK_FREE_SUM, FILTER_WORK_MAX, FILTER_WORK_PER_SECOND,
};

/// The share of what is left that one account may spend on one status.
const LEFT_SHARE: usize = 8;

/// How far the expectation falls with a status: by one in so many.
const DECAY: u32 = 16;

/// How far above the work that was allowed filters are expected that would have cost more.
const OVERRUN: u32 = 2;

// One account may cost a status all that it may at the most, while nobody else spends anything.
const _: () = assert!(FILTER_WORK_PER_SECOND / LEFT_SHARE >= FILTER_WORK_MAX);

/// The work that is left, in bytes searched. Time is the process's clock.
#[derive(Debug)]
pub struct WorkBudget {
    left: usize,
    filled_at: Duration,
    spent: u64,
}

impl Default for WorkBudget {
    fn default() -> WorkBudget {
        WorkBudget { left: FILTER_WORK_PER_SECOND, filled_at: Duration::ZERO, spent: 0 }
    }
}

impl WorkBudget {
    /// Gives what the time since the last call has brought: at most a second's.
    pub fn refill(&mut self, now: Duration) {
        let since = now.saturating_sub(self.filled_at).as_micros().min(1_000_000) as usize;
        let gained = (FILTER_WORK_PER_SECOND / 1000).saturating_mul(since) / 1000;
        self.left = self.left.saturating_add(gained).min(FILTER_WORK_PER_SECOND);
        self.filled_at = self.filled_at.max(now);
    }

    /// All work done so far, in bytes searched.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// What is free for each of so many accounts with filters.
    pub fn free(accounts: usize) -> usize {
        (FILTER_WORK_FREE_SUM / accounts.max(1)).clamp(FILTER_WORK_FREE_MIN, FILTER_WORK_FREE)
    }

    /// As [`Filters::apply`], within the budget; `free` is what needs none.
    ///
    /// # Errors
    /// When it costs more, or is expected to. What was appended is of no use then.
    pub fn apply(
        &mut self,
        filters: &Filters,
        text: &SearchText,
        now: i64,
        free: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, TooMuchWork> {
        let allowed = (self.left / LEFT_SHARE).clamp(free, FILTER_WORK_MAX);
        let expected = filters.expected_work.load(Ordering::Relaxed);
        if expected as usize > allowed {
            // What may be allowed another time is tried then. What may never be is tried now and again.
            if expected as usize > FILTER_WORK_MAX {
                filters.expected_work.store(expected - expected / DECAY, Ordering::Relaxed);
            }
            return Err(TooMuchWork);
        }
        let mut work_left = allowed;
        let result = filters.apply(text, now, &mut work_left, out);
        let work = allowed - if result.is_ok() { work_left } else { 0 };
        self.left = self.left.saturating_sub(work.saturating_sub(free));
        self.spent += work as u64;
        // Both are far below 4 GiB.
        let work = work as u32;
        let next = match result {
            Ok(_) => work.max(expected - expected / DECAY),
            Err(TooMuchWork) => work.saturating_mul(OVERRUN),
        };
        filters.expected_work.store(next, Ordering::Relaxed);
        result
    }
}

impl Filters {
    /// What the next status is expected to cost, in bytes searched.
    pub fn expected_work(&self) -> u32 {
        self.expected_work.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::filter::FilterRow;

    fn filters(keywords: impl IntoIterator<Item = String>) -> Filters {
        let rows: Vec<FilterRow> = keywords
            .into_iter()
            .map(|keyword| FilterRow { id: 1, keyword, ..FilterRow::default() })
            .collect();
        Filters::compile(&rows)
    }

    /// Keywords whose runs occur in the text, and that do not.
    fn costly(count: usize) -> Filters {
        filters((0..count).map(|n| format!("seven {n} waves")))
    }

    fn text() -> SearchText {
        SearchText::new(format!("seven waves and {}", "the sea rolls ".repeat(300)))
    }

    #[test]
    fn the_most_expensive_are_passed_over_first_and_the_ordinary_never() {
        let text = text();
        let expensive: Vec<Filters> = (0..40).map(|_| costly(4000)).collect();
        let (medium, ordinary) = (costly(200), costly(10));
        let mut budget = WorkBudget::default();
        let mut passed = [0; 3];
        let mut out = Vec::new();
        // Ten statuses a second for a minute.
        for round in 0..600 {
            budget.refill(Duration::from_millis(100 * round));
            let free = WorkBudget::free(42);
            // As the stage does it: those first that are expected to cost least.
            passed[2] += usize::from(budget.apply(&ordinary, &text, 0, free, &mut out).is_ok());
            passed[1] += usize::from(budget.apply(&medium, &text, 0, free, &mut out).is_ok());
            passed[0] += expensive
                .iter()
                .filter(|filters| budget.apply(filters, &text, 0, free, &mut out).is_ok())
                .count();
        }
        assert_eq!((passed[1], passed[2]), (600, 600));
        assert!((500..3000).contains(&passed[0]), "{} of 24000", passed[0]);
        let allowed = 61 * FILTER_WORK_PER_SECOND as u64 + 600 * 42 * FILTER_WORK_FREE as u64;
        assert!(budget.spent() <= allowed, "{} of {allowed}", budget.spent());
    }

    #[test]
    fn filters_that_are_passed_over_cost_nothing_and_are_tried_again() {
        let text = text();
        // More than one account may cost.
        let endless = costly(20_000);
        let mut budget = WorkBudget::default();
        let mut out = Vec::new();
        let mut tried = Vec::new();
        for round in 0..200u32 {
            budget.refill(Duration::from_secs(u64::from(round)));
            let before = budget.spent();
            assert_eq!(budget.apply(&endless, &text, 0, 0, &mut out), Err(TooMuchWork));
            if budget.spent() > before {
                tried.push(round);
            }
        }
        assert!((5..30).contains(&tried.len()), "{tried:?}");
    }

    #[test]
    fn free_work_is_bounded_in_sum() {
        assert_eq!(WorkBudget::free(0), FILTER_WORK_FREE);
        assert_eq!(WorkBudget::free(1000), FILTER_WORK_FREE);
        assert_eq!(WorkBudget::free(8192), FILTER_WORK_FREE_SUM / 8192);
        assert_eq!(WorkBudget::free(1 << 20), FILTER_WORK_FREE_MIN);
    }
}
