//! Custom filters from PostgreSQL: all accounts that need theirs in one batch.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::accounts::unreadable;
use super::pool::{DbError, Pool};
use crate::core::filter::{FilterRow, Filters};
use crate::core::stream::Id;

/// Accounts in one statement: bounds the rows that are held before they are compiled.
const BATCH_MAX: usize = 1000;

// Rails stores times without a zone, in UTC. A time that is not finite cannot be printed: never expires.
const FILTERS: &str = "\
SELECT f.account_id, f.id, f.phrase, f.context, f.action, k.keyword, k.whole_word, \
 CASE WHEN isfinite(f.expires_at) THEN FLOOR(EXTRACT(EPOCH FROM f.expires_at) * 1000)::bigint END \
FROM custom_filters f JOIN custom_filter_keywords k ON k.custom_filter_id = f.id \
WHERE f.account_id = ANY (ARRAY (SELECT unnest((SELECT $1)))) AND (f.expires_at IS NULL OR f.expires_at > now() AT TIME ZONE 'UTC') \
ORDER BY f.account_id, f.id, k.id";

/// The compiled filters of these accounts; those without any are left out.
///
/// # Errors
/// When PostgreSQL gave no answer.
pub async fn filters_of(pool: &Pool, accounts: &[i64]) -> Result<HashMap<Id, Arc<Filters>>, DbError> {
    let mut found = HashMap::new();
    for batch in accounts.chunks(BATCH_MAX) {
        let rows = pool.query(FILTERS, &[(&batch, Type::INT8_ARRAY)]).await?;
        let rows: Result<Vec<(i64, FilterRow)>, tokio_postgres::Error> = rows.iter().map(read).collect();
        let rows = rows.map_err(|error| unreadable(&error))?;
        for of_account in rows.chunk_by(|one, next| one.0 == next.0) {
            let Some((account, _)) = of_account.first() else { continue };
            let rows: Vec<FilterRow> = of_account.iter().map(|(_, row)| row.clone()).collect();
            found.insert(account.unsigned_abs(), Arc::new(Filters::compile(&rows)));
        }
    }
    Ok(found)
}

fn read(row: &Row) -> Result<(i64, FilterRow), tokio_postgres::Error> {
    let context: Vec<Option<String>> = row.try_get(3)?;
    let filter = FilterRow {
        id: row.try_get(1)?,
        title: row.try_get(2)?,
        context: context.into_iter().flatten().collect(),
        action: row.try_get(4)?,
        keyword: row.try_get(5)?,
        whole_word: row.try_get(6)?,
        expires_at: row.try_get(7)?,
    };
    Ok((row.try_get(0)?, filter))
}
