//! Keeps what is said of PostgreSQL true while nobody asks it for anything: on `/ready`, in the metrics, in the log.
//!
//! Whoever balances load by `/ready` sends nobody to a server without PostgreSQL, so newcomers cannot be the ones by
//! whom it is found again. Nor is one that has just started to be called ready before PostgreSQL was asked.

use std::time::Duration;

use crate::db::Pool;
use crate::limits::Limits;
use crate::redis::backoff::Backoff;

/// So long without a statement, and one is sent to see whether it is answered.
const QUIET: Duration = Duration::from_secs(10);

/// Watches as long as the server runs.
pub(super) async fn watch(pool: Pool, limits: Limits) {
    let mut backoff = Backoff::default();
    let mut statements = pool.statements();
    let mut in_doubt = false;
    loop {
        if in_doubt || !pool.is_up() || pool.statements() == statements {
            // The pool itself says in the log what is lost and what is back.
            let _ = pool.ping().await;
        }
        statements = pool.statements();
        if pool.is_up() {
            backoff.reset();
            in_doubt = tokio::select! {
                () = tokio::time::sleep(limits.every(QUIET)) => false,
                () = pool.in_doubt() => true,
            };
        } else {
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}
