//! Custom filters from PostgreSQL: all accounts that need theirs in one batch.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::types::Type;

use super::pool::{DbError, Pool};
use super::rows::{Columns, Texts};
use crate::core::filter::{FilterRow, Filters};
use crate::core::stream::Id;
use crate::limits::FILTERS_BYTES_MAX;

/// Accounts in one statement: bounds the rows that are held before they are compiled.
const BATCH_MAX: usize = 1000;

// Rails stores times without a zone, in UTC. A time that is not finite cannot be printed: never expires.
//
// Neither Rails nor the tables say how many filters an account may have, how long their parts may be, or that a
// context stands in an array once: what is more than anybody has is left out, the newest keywords first.
const FILTERS: &str = "\
SELECT account_id, id, title, ARRAY(SELECT left(one, 32) FROM unnest(context) AS one LIMIT 10), action, keyword, whole_word, \
 CASE WHEN isfinite(expires_at) THEN FLOOR(EXTRACT(EPOCH FROM expires_at) * 1000)::bigint END \
FROM (SELECT f.account_id, f.id, left(f.phrase, 512) AS title, f.context, f.action, k.id AS keyword_id, k.keyword, \
  k.whole_word, f.expires_at, \
  sum(octet_length(k.keyword) + octet_length(left(f.phrase, 512)) + 64) \
   OVER (PARTITION BY f.account_id ORDER BY f.id, k.id) AS bytes \
 FROM custom_filters f JOIN custom_filter_keywords k ON k.custom_filter_id = f.id \
 WHERE f.account_id = ANY (ARRAY (SELECT unnest((SELECT $1)))) \
  AND (f.expires_at IS NULL OR f.expires_at > now() AT TIME ZONE 'UTC')) AS all_of_them \
WHERE bytes <= $2 ORDER BY account_id, id, keyword_id";

/// The compiled filters of these accounts; those without any are left out.
///
/// # Errors
/// When PostgreSQL gave no answer.
pub async fn filters_of(pool: &Pool, accounts: &[i64]) -> Result<HashMap<Id, Arc<Filters>>, DbError> {
    let mut found = HashMap::new();
    for batch in accounts.chunks(BATCH_MAX) {
        let bytes_max = FILTERS_BYTES_MAX as i64;
        let rows = pool.query(FILTERS, &[(&batch, Type::INT8_ARRAY), (&bytes_max, Type::INT8)]).await?;
        let rows: Vec<(i64, FilterRow)> = rows.iter().map(read_filter).collect::<Result<_, _>>()?;
        for of_account in rows.chunk_by(|one, next| one.0 == next.0) {
            let Some((account, _)) = of_account.first() else { continue };
            let rows: Vec<FilterRow> = of_account.iter().map(|(_, row)| row.clone()).collect();
            found.insert(account.unsigned_abs(), Arc::new(Filters::compile(&rows)));
        }
    }
    Ok(found)
}

#[doc(hidden)]
pub fn read_filter(row: &impl Columns) -> Result<(i64, FilterRow), DbError> {
    let context: Texts = row.column(3)?;
    let filter = FilterRow {
        id: row.column(1)?,
        title: row.column(2)?,
        context: context.0,
        action: row.column(4)?,
        keyword: row.column(5)?,
        whole_word: row.column(6)?,
        expires_at: row.column(7)?,
    };
    Ok((row.column(0)?, filter))
}
