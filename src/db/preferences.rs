//! What viewers have set, and the instance: chosen languages and permissions, custom filters, closed feeds. One
//! statement for all accounts that need any of it.
//!
//! A row says by its first column what it is about; the other columns mean something else in each kind of row. Tested
//! in `tests/db_audience.rs`; what reads a row is fuzzed (target `pg_rows`).

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::types::Type;

use super::feeds::{FeedAccess, Settings, VIEW_FEEDS};
use super::pool::{DbError, Pool};
use super::rows::{Columns, Texts, unreadable};
use crate::core::filter::{FilterRow, Filters};
use crate::core::stream::Id;
use crate::limits::FILTERS_BYTES_MAX;

/// Accounts in one statement: bounds the rows that are held before they are compiled.
const BATCH_MAX: usize = 1000;

// Rails stores times without a zone, in UTC. A time that is not finite cannot be printed: never expires.
//
// Languages that are no language's name, or more of them than there are, take no memory; nor does it matter in how
// many dimensions they stand, of which the table's type says nothing. Neither Rails nor the tables say how many filters
// an account may have, how long their parts may be, or that a context stands in an array once: what is more than
// anybody has is left out, the newest keywords first.
//
// The last part asks whether `accounts.domain` may be read: grants of an older version leave it out.
const PREFERENCES: &str = "\
SELECT 1 AS kind, u.account_id AS account, CASE WHEN u.chosen_languages IS NOT NULL THEN \
  ARRAY(SELECT one FROM unnest(u.chosen_languages) AS one WHERE length(one) <= 32 LIMIT 1000)::text[] END, \
 COALESCE(r.permissions, 0) AS number, NULL::text, NULL::int, NULL::text, NULL::boolean, NULL::bigint, \
 NULL::bigint AS place \
FROM users u LEFT JOIN user_roles r ON r.id = u.role_id \
WHERE u.account_id = ANY (ARRAY (SELECT unnest((SELECT $1)))) \
UNION ALL \
SELECT 2, account_id, ARRAY(SELECT left(one, 32) FROM unnest(context) AS one LIMIT 10)::text[], id, title, action, \
 keyword, whole_word, \
 CASE WHEN isfinite(expires_at) THEN FLOOR(EXTRACT(EPOCH FROM expires_at) * 1000)::bigint END, keyword_id \
FROM (SELECT f.account_id, f.id, left(f.phrase, 512) AS title, f.context, f.action, k.id AS keyword_id, k.keyword, \
  k.whole_word, f.expires_at, \
  sum(octet_length(k.keyword) + octet_length(left(f.phrase, 512)) + 64) \
   OVER (PARTITION BY f.account_id ORDER BY f.id, k.id) AS bytes \
 FROM custom_filters f JOIN custom_filter_keywords k ON k.custom_filter_id = f.id \
 WHERE f.account_id = ANY (ARRAY (SELECT unnest((SELECT $2)))) \
  AND (f.expires_at IS NULL OR f.expires_at > now() AT TIME ZONE 'UTC')) AS all_of_them \
WHERE bytes <= $3 \
UNION ALL \
SELECT 3, NULL, NULL, NULL, var, NULL, value, NULL, NULL, NULL FROM settings \
WHERE $4 AND var IN ('local_live_feed_access', 'remote_live_feed_access', \
 'local_topic_feed_access', 'remote_topic_feed_access') \
UNION ALL \
SELECT 4, NULL, NULL, NULL, NULL, NULL, NULL, \
 COALESCE(has_column_privilege(attrelid, attnum, 'SELECT'), false), NULL, NULL FROM pg_catalog.pg_attribute \
WHERE $4 AND attrelid = to_regclass('accounts') AND attname = 'domain' \
ORDER BY kind, account, number, place";

/// What holds for all accounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Instance {
    /// Which feeds are closed; a setting without a row is open.
    pub feeds: FeedAccess,
    /// Whether `accounts.domain` may be read.
    pub domains_readable: bool,
}

/// What a statement brought.
#[derive(Debug, Default)]
pub struct Preferences {
    /// Settings of the accounts that were asked for; those without a user are left out.
    pub settings: HashMap<Id, Settings>,
    /// Compiled filters of the accounts that were asked for; those without any are left out.
    pub filters: HashMap<Id, Arc<Filters>>,
    /// Where it was asked for.
    pub instance: Option<Instance>,
}

/// One row.
#[derive(Clone, PartialEq, Debug)]
pub enum Preference {
    /// An account's settings.
    Settings(Id, Settings),
    /// A keyword of an account's filters.
    Keyword(Id, FilterRow),
    /// A setting of the instance, and its value.
    Feed(String, Option<String>),
    /// Whether `accounts.domain` may be read.
    DomainsReadable(bool),
}

/// The settings of some accounts, the filters of others, and what holds for the instance if `with_instance`.
///
/// # Errors
/// When PostgreSQL gave no answer.
pub async fn preferences(
    pool: &Pool,
    settings_of: &[i64],
    filters_of: &[i64],
    with_instance: bool,
) -> Result<Preferences, DbError> {
    let mut found = Preferences::default();
    let batches = settings_of.len().max(filters_of.len()).div_ceil(BATCH_MAX).max(1);
    let batch_of = |accounts: &[i64], number: usize| -> Vec<i64> {
        accounts.iter().skip(number * BATCH_MAX).take(BATCH_MAX).copied().collect()
    };
    for number in 0..batches {
        let (settings_of, filters_of) = (batch_of(settings_of, number), batch_of(filters_of, number));
        let bytes_max = FILTERS_BYTES_MAX as i64;
        let is_first = with_instance && number == 0;
        let rows = pool
            .query(
                PREFERENCES,
                &[
                    (&settings_of, Type::INT8_ARRAY),
                    (&filters_of, Type::INT8_ARRAY),
                    (&bytes_max, Type::INT8),
                    (&is_first, Type::BOOL),
                ],
            )
            .await?;
        if is_first {
            found.instance = Some(Instance::default());
        }
        let mut of_account: Vec<FilterRow> = Vec::new();
        let mut account = 0;
        for row in &rows {
            match read_preference(row)? {
                Preference::Settings(account, settings) => {
                    found.settings.insert(account, settings);
                }
                Preference::Keyword(owner, keyword) => {
                    if owner != account {
                        found.add_filters(account, &mut of_account);
                        account = owner;
                    }
                    of_account.push(keyword);
                }
                Preference::Feed(var, value) => {
                    if let Some(instance) = &mut found.instance {
                        instance.feeds.set(&var, value.as_deref());
                    }
                }
                Preference::DomainsReadable(readable) => {
                    if let Some(instance) = &mut found.instance {
                        instance.domains_readable = readable;
                    }
                }
            }
        }
        found.add_filters(account, &mut of_account);
    }
    Ok(found)
}

impl Preferences {
    fn add_filters(&mut self, account: Id, rows: &mut Vec<FilterRow>) {
        if !rows.is_empty() {
            self.filters.insert(account, Arc::new(Filters::compile(rows)));
            rows.clear();
        }
    }
}

#[doc(hidden)]
pub fn read_preference(row: &impl Columns) -> Result<Preference, DbError> {
    Ok(match row.column::<i32>(0)? {
        1 => {
            let languages: Option<Texts> = row.column(2)?;
            let settings = Settings {
                languages: languages.map(|languages| languages.0.into_iter().map(Box::from).collect()),
                sees_closed_feeds: row.column::<i64>(3)? & VIEW_FEEDS != 0,
            };
            Preference::Settings(row.column::<i64>(1)?.unsigned_abs(), settings)
        }
        2 => {
            let context: Texts = row.column(2)?;
            let keyword = FilterRow {
                id: row.column(3)?,
                title: row.column(4)?,
                context: context.0,
                action: row.column(5)?,
                keyword: row.column(6)?,
                whole_word: row.column(7)?,
                expires_at: row.column(8)?,
            };
            Preference::Keyword(row.column::<i64>(1)?.unsigned_abs(), keyword)
        }
        3 => Preference::Feed(row.column(4)?, row.column(6)?),
        4 => Preference::DomainsReadable(row.column(7)?),
        kind => return Err(unreadable(format!("a row of kind {kind}"))),
    })
}
