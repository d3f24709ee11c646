//! What the audience stage counts.

use std::sync::atomic::AtomicU64;

/// Written by the stage's thread only; anybody may read at any time.
#[derive(Debug, Default)]
pub struct StageStats {
    /// Turns of the thread's loop.
    pub turns: AtomicU64,
    /// Messages that wait, those behind a status included.
    pub waiting_messages: AtomicU64,
    /// Their bytes.
    pub waiting_bytes: AtomicU64,
    /// The stage's share of the budget, in bytes.
    pub budget_bytes: AtomicU64,
    /// Questions about statuses sent to PostgreSQL, one round trip each.
    pub queries: AtomicU64,
    /// … that got no answer.
    pub query_failures: AtomicU64,
    /// Statuses that were answered with the question of an identical one.
    pub answers_reused: AtomicU64,
    /// Statuses withheld since PostgreSQL did not answer in time.
    pub timed_out: AtomicU64,
    /// Statuses withheld since they are not what Rails sends.
    pub malformed: AtomicU64,
    /// What custom filters cost, in bytes searched.
    pub filter_work_bytes: AtomicU64,
    /// What the results of custom filters take, in bytes.
    pub filter_result_bytes: AtomicU64,
    /// Accounts with a place in the filter cache.
    pub filter_accounts: AtomicU64,
    /// What the filter cache holds, in bytes.
    pub filter_bytes: AtomicU64,
    /// `FILTER_CACHE_BYTES`
    pub filter_budget_bytes: AtomicU64,
}
