//! Who must not see a status: one statement for all viewers at once.
//!
//! The rule is Node's: a viewer who blocks or mutes the author or anyone mentioned, whom the author blocks, or
//! who blocks the author's domain. Expired mutes hide until Rails deletes them; what a mentioned account
//! blocks does not matter.
//!
//! A domain block counts against the author's `accounts.domain`, as Rails compares it. Where that may not be read
//! (grants of an older version) or there is no such row yet, it counts against the domain of `acct`, in the form in
//! which Rails stores domains ([`punycode`](super::punycode)).
//!
//! # The statement's plan
//! Mastodon has an index on whom a block or mute is against, and one on (who, against whom). Which is better
//! depends on how hated the author is and how many watch, and a planner that is shown a thousand ids spends longer
//! on estimating than on asking. So the statement decides while it runs, and the planner sees no numbers: first,
//! all who block or mute the author or a mentioned account are read by the one index, but no more than twice as
//! many as there are viewers; only when that is reached the viewers are probed one by one in the other index.
//! Domain blocks, which have only the index on (who, domain), are always probed. The work is bounded by the number
//! of viewers, whoever the author is. On 200,000 accounts with a million blocks and a million mutes, 1,000 viewers:
//! about 1 ms, 7 to 17 ms for an author whom 20,000 block, and 2.5 ms more for the domain of a remote author.
//!
//! Tested in `tests/db_audience.rs` against a viewer by viewer oracle over random relations.

use std::sync::LazyLock;

use tokio_postgres::types::Type;

use super::pool::{DbError, Pool};
use super::punycode::to_ascii;
use super::rows::Columns;
use crate::core::event::{StatusFields, Withheld};
use crate::core::stream::Id;

const AUDIENCE: &str = "\
WITH viewer AS MATERIALIZED (SELECT unnest((SELECT $1)) AS id), \
against AS MATERIALIZED (SELECT id FROM ( \
SELECT b.account_id AS id FROM unnest($2) AS target (id) \
 CROSS JOIN LATERAL (SELECT account_id FROM blocks WHERE target_account_id = target.id OFFSET 0) b \
UNION ALL \
SELECT m.account_id FROM unnest($2) AS target (id) \
 CROSS JOIN LATERAL (SELECT account_id FROM mutes WHERE target_account_id = target.id OFFSET 0) m \
UNION ALL \
SELECT target_account_id FROM blocks WHERE account_id = $3) AS everyone LIMIT $5) \
SELECT id, false FROM against \
 WHERE (SELECT count(*) FROM against) < $5 AND id IN (SELECT id FROM viewer) \
UNION ALL \
SELECT id, false FROM viewer WHERE (SELECT count(*) FROM against) >= $5 AND ( \
 EXISTS (SELECT 1 FROM blocks WHERE account_id = viewer.id AND target_account_id = ANY ($2) OFFSET 0) \
 OR EXISTS (SELECT 1 FROM mutes WHERE account_id = viewer.id AND target_account_id = ANY ($2) OFFSET 0) \
 OR EXISTS (SELECT 1 FROM blocks WHERE account_id = $3 AND target_account_id = viewer.id OFFSET 0)) \
UNION ALL \
SELECT account_id, true FROM account_domain_blocks \
 WHERE account_id = ANY (ARRAY (SELECT id FROM viewer)) AND domain = ";

/// The author's domain, in the statement's end.
const BY_ACCOUNT: &str = "COALESCE((SELECT domain FROM accounts WHERE id = $3), $4)";
const BY_ACCT: &str = "$4";

static STATEMENTS: LazyLock<[String; 2]> =
    LazyLock::new(|| [BY_ACCT, BY_ACCOUNT].map(|domain| format!("{AUDIENCE}{domain}")));

/// Which of `viewers` must not see the status, with the reason; sorted by account, each once. `domains_readable` says
/// whether `accounts.domain` may be read.
///
/// # Errors
/// When PostgreSQL gave no answer.
pub async fn hidden_from(
    pool: &Pool,
    viewers: &[i64],
    status: &StatusFields,
    domains_readable: bool,
) -> Result<Vec<(Id, Withheld)>, DbError> {
    // An id that PostgreSQL cannot hold is in none of its tables.
    let author = i64::try_from(status.author).unwrap_or_default();
    let mut targets = Vec::with_capacity(1 + status.mentions.len());
    targets.push(author);
    targets.extend_from_slice(&status.mentions);
    targets.sort_unstable();
    targets.dedup();
    let domain = status.domain.as_deref().filter(|domain| !domain.contains('\0')).map(to_ascii);
    let limit = (viewers.len() as i64 * 2).max(64);
    let params: [super::pool::Param<'_>; 5] = [
        (&viewers, Type::INT8_ARRAY),
        (&targets, Type::INT8_ARRAY),
        (&author, Type::INT8),
        (&domain, Type::TEXT),
        (&limit, Type::INT8),
    ];
    let rows = pool.query(&STATEMENTS[usize::from(domains_readable)], &params).await?;
    let mut hidden = Vec::with_capacity(rows.len());
    for row in &rows {
        hidden.push(read_hidden(row)?);
    }
    // Where both apply, the relationship is the reason: Node looks at it first.
    hidden.sort_unstable_by_key(|(id, reason)| (*id, *reason == Withheld::DomainBlock));
    hidden.dedup_by_key(|(id, _)| *id);
    Ok(hidden)
}

#[doc(hidden)]
pub fn read_hidden(row: &impl Columns) -> Result<(Id, Withheld), DbError> {
    let (id, by_domain) = (row.column::<i64>(0)?, row.column(1)?);
    let reason = if by_domain { Withheld::DomainBlock } else { Withheld::Relationship };
    Ok((id.unsigned_abs(), reason))
}
