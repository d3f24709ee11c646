//! Keeps what is said of PostgreSQL true while nobody asks it for anything: on `/ready`, in the metrics, in the log.
//!
//! Whoever balances load by `/ready` sends nobody to a server without PostgreSQL, so newcomers cannot be the ones by
//! whom it is found again. Nor is one that has just started to be called ready before PostgreSQL was asked.

use std::sync::Arc;
use std::time::Duration;

use crate::db::{Accounts, DbError, Pool};
use crate::limits::Limits;
use crate::redis::backoff::Backoff;
use crate::redis::stats::LastError;

/// How often PostgreSQL is asked what newcomers ask, unless there is reason to do so at once.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// No token: its name says who asks, in PostgreSQL's log.
const NO_TOKEN: &str = "tidegate-asks-whether-tokens-can-be-read";

/// Watches as long as the server runs; `obstacle` is what newcomers need and do not get.
pub(super) async fn watch(pool: Pool, limits: Limits, obstacle: Arc<LastError>) {
    let mut backoff = Backoff::default();
    let accounts = Accounts::new(pool.clone());
    loop {
        // The log has a line from the pool itself.
        match ask(&accounts).await {
            Ok(()) => {
                obstacle.clear();
                backoff.reset();
                tokio::select! {
                    () = tokio::time::sleep(limits.every(ASK_EVERY)) => {}
                    () = pool.in_doubt() => {}
                }
            }
            Err(error) => {
                obstacle.set(&error.obstacle());
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// What newcomers ask.
async fn ask(accounts: &Accounts) -> Result<(), DbError> {
    accounts.look_up(NO_TOKEN).await?;
    accounts.owns_list(0, 0).await?;
    Ok(())
}
