//! What decides about public streams besides relationships: chosen languages, the permission to see feeds that
//! are closed, and which feeds are closed.
//!
//! Rails says nothing when these change, so they are read again every so often, in one batch for all
//! connected accounts. Tested in `tests/db_audience.rs`.

use std::collections::HashMap;

use tokio_postgres::types::Type;

use super::pool::{DbError, Pool};
use super::rows::{Columns, Texts};
use crate::core::event::{StatusFields, Withheld};
use crate::core::stream::{Channel, Id};

/// The role permission `view_feeds`. The administrator bit alone does not imply it, as in Node.
const VIEW_FEEDS: i64 = 1 << 20;

/// What an account's settings say about public streams. The default is that of an account without any.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// The languages that the user wants to see; none for all.
    pub languages: Option<Box<[Box<str>]>>,
    /// Whether closed feeds are open to this account.
    pub sees_closed_feeds: bool,
}

/// Which feeds are closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct FeedAccess {
    pub live_local_closed: bool,
    pub live_remote_closed: bool,
    pub topic_local_closed: bool,
    pub topic_remote_closed: bool,
}

impl FeedAccess {
    /// Whether that channel's feed is closed to statuses from here, or from elsewhere.
    pub fn is_closed(&self, channel: &Channel, local: bool) -> bool {
        match (channel, local) {
            (Channel::Hashtag { .. }, true) => self.topic_local_closed,
            (Channel::Hashtag { .. }, false) => self.topic_remote_closed,
            (_, true) => self.live_local_closed,
            (_, false) => self.live_remote_closed,
        }
    }
}

impl Settings {
    /// Why these settings keep a status from their account, if they do; `closed` says whether the feed it
    /// came by is closed.
    pub fn withhold(&self, status: &StatusFields, closed: bool) -> Option<Withheld> {
        if closed && !self.sees_closed_feeds {
            return Some(Withheld::FeedAccess);
        }
        let languages = self.languages.as_ref()?;
        let chosen = status
            .language
            .as_ref()
            .is_some_and(|language| languages.iter().any(|chosen| chosen == language));
        (!chosen).then_some(Withheld::Language)
    }
}

// Languages that are no language's name, or more of them than there are, take no memory; nor does it matter in how
// many dimensions they stand, of which the table's type says nothing.
const SETTINGS: &str = "\
SELECT u.account_id, CASE WHEN u.chosen_languages IS NOT NULL THEN \
  ARRAY(SELECT one FROM unnest(u.chosen_languages) AS one WHERE length(one) <= 32 LIMIT 1000) END, \
 COALESCE(r.permissions, 0) \
FROM users u LEFT JOIN user_roles r ON r.id = u.role_id \
WHERE u.account_id = ANY (ARRAY (SELECT unnest((SELECT $1))))";

/// The settings of these accounts; those without a user are left out.
///
/// # Errors
/// When PostgreSQL gave no answer.
pub async fn settings_of(pool: &Pool, accounts: &[i64]) -> Result<HashMap<Id, Settings>, DbError> {
    let rows = pool.query(SETTINGS, &[(&accounts, Type::INT8_ARRAY)]).await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let (account, settings) = read_settings(row)?;
        found.insert(account, settings);
    }
    Ok(found)
}

#[doc(hidden)]
pub fn read_settings(row: &impl Columns) -> Result<(Id, Settings), DbError> {
    let account: i64 = row.column(0)?;
    let languages: Option<Texts> = row.column(1)?;
    let permissions: i64 = row.column(2)?;
    let settings = Settings {
        languages: languages.map(|languages| languages.0.into_iter().map(Box::from).collect()),
        sees_closed_feeds: permissions & VIEW_FEEDS != 0,
    };
    Ok((account.unsigned_abs(), settings))
}

const FEEDS: &str = "\
SELECT var, value FROM settings WHERE var IN ('local_live_feed_access', 'remote_live_feed_access', \
 'local_topic_feed_access', 'remote_topic_feed_access')";

/// Which feeds are closed: those whose stored value is exactly Rails' YAML for `disabled`. A setting without
/// a row is open.
///
/// # Errors
/// When PostgreSQL gave no answer.
pub async fn feed_access(pool: &Pool) -> Result<FeedAccess, DbError> {
    let mut access = FeedAccess::default();
    for row in &pool.query(FEEDS, &[]).await? {
        read_feed(row, &mut access)?;
    }
    Ok(access)
}

#[doc(hidden)]
pub fn read_feed(row: &impl Columns, access: &mut FeedAccess) -> Result<(), DbError> {
    let var: &str = row.column(0)?;
    let value: Option<&str> = row.column(1)?;
    let closed = value == Some("--- disabled\n");
    match var {
        "local_live_feed_access" => access.live_local_closed = closed,
        "remote_live_feed_access" => access.live_remote_closed = closed,
        "local_topic_feed_access" => access.topic_local_closed = closed,
        _ => access.topic_remote_closed = closed,
    }
    Ok(())
}
