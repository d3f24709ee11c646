//! PostgreSQL: whether it lets us in, and whether every table and column that is read can be.

use std::collections::BTreeMap;
use std::time::Instant;

use tokio_postgres::types::Type;

use super::{PATIENCE, Report};
use crate::config::Config;
use crate::db::{OPTIONAL, Options, Pool, TABLES};
use crate::limits::Waits;

/// What holds for one column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Readable,
    Hidden,
    NoColumn,
    NoTable,
}

// Names are looked for along the search path, as the server's own statements do.
const COLUMNS: &str = "\
SELECT wanted.tab, wanted.col, c.oid IS NOT NULL, a.attnum IS NOT NULL, \
 COALESCE(has_schema_privilege(c.relnamespace, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT'), false) \
FROM unnest($1, $2) AS wanted (tab, col) \
LEFT JOIN pg_catalog.pg_class c ON c.oid = to_regclass(wanted.tab) \
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = wanted.col AND NOT a.attisdropped";

const SERVER: &str = "\
SELECT current_setting('server_version'), current_setting('max_connections')::int, \
 COALESCE((SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()), false)";

pub(super) async fn check(report: &mut Report<'_>, config: &Config) {
    let about = "PostgreSQL";
    let options = match crate::server::database_options(config) {
        Ok(Some(options)) => Options { waits: Waits::within(PATIENCE), ..options },
        Ok(None) => return,
        Err(failure) => return report.fail(about, failure),
    };
    let pool = match Pool::new(&Options { pool_size: 1, ..options.clone() }) {
        Ok(pool) => pool,
        Err(error) => return report.fail(about, error),
    };
    let begun = Instant::now();
    let rows = match pool.query(SERVER, &[]).await {
        Ok(rows) => rows,
        Err(error) => return report.fail(about, error),
    };
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    let Some(row) = rows.first() else { return report.fail(about, "gave an empty answer") };
    let version: &str = row.try_get(0).unwrap_or("?");
    let connections: i32 = row.try_get(1).unwrap_or(i32::MAX);
    let encrypted: bool = row.try_get(2).unwrap_or(false);
    report.ok(
        about,
        format_args!(
            "connected to {} in {took:.1} ms, user {}, database {}, version {version}, {}",
            options.address(),
            options.user,
            options.dbname,
            if encrypted { "encrypted" } else { "not encrypted" },
        ),
    );
    if let Some(cause) = pool.fallback() {
        report.warn(
            about,
            format_args!(
                "connections are NOT encrypted: TLS failed ({cause}), and {} allows to do without; set it to require",
                options.encryption.variable
            ),
        );
    }
    if i32::try_from(options.pool_size).is_ok_and(|wanted| wanted >= connections) {
        report.warn(
            about,
            format_args!(
                "DB_POOL={} is as much as its max_connections={connections}, which Rails and Sidekiq need \
                 too; set STREAMING_DB_POOL lower",
                options.pool_size
            ),
        );
    }
    tables(report, about, &options, &pool).await;
}

async fn tables(report: &mut Report<'_>, about: &str, options: &Options, pool: &Pool) {
    let pairs: Vec<(&str, &str)> =
        TABLES.iter().flat_map(|(table, columns)| columns.iter().map(|column| (*table, *column))).collect();
    let (names, columns): (Vec<&str>, Vec<&str>) = pairs.into_iter().unzip();
    let params: [crate::db::pool::Param<'_>; 2] = [(&names, Type::TEXT_ARRAY), (&columns, Type::TEXT_ARRAY)];
    let rows = match pool.query(COLUMNS, &params).await {
        Ok(rows) => rows,
        Err(error) => return report.fail(about, error),
    };
    let mut found: BTreeMap<(String, String), Found> = BTreeMap::new();
    for row in &rows {
        let column = (row.try_get(0).unwrap_or_default(), row.try_get(1).unwrap_or_default());
        let is = |at: usize| row.try_get::<_, bool>(at).unwrap_or(false);
        let state = match (is(2), is(3), is(4)) {
            (false, ..) => Found::NoTable,
            (_, false, _) => Found::NoColumn,
            (.., false) => Found::Hidden,
            _ => Found::Readable,
        };
        found.insert(column, state);
    }
    // Since Mastodon 4.0; forks of 3.x lack both.
    let since_4 = ["user_roles", "custom_filter_keywords"];
    let lacks = |table: &str| found.iter().any(|(of, state)| of.0 == table && *state == Found::NoTable);
    if since_4.into_iter().all(lacks) && !lacks("accounts") {
        let names = since_4.join(" and ");
        report.fail(
            about,
            format_args!(
                "{} has no tables {names}: it is a Mastodon older than 4.0, or a fork of one (Fedibird, Ecko), which \
                 Tidegate does not support",
                options.dbname
            ),
        );
        return;
    }
    for (table, columns) in TABLES {
        let state = |column: &str| {
            found.get(&((*table).to_owned(), column.to_owned())).copied().unwrap_or(Found::NoTable)
        };
        let which = |wanted: Found| -> Vec<&str> {
            columns.iter().copied().filter(|column| state(column) == wanted).collect()
        };
        let about = format!("{about} table {table}");
        let (missing, hidden) = (which(Found::NoColumn), which(Found::Hidden));
        if !which(Found::NoTable).is_empty() {
            report.fail(
                &about,
                format_args!(
                    "is not there; check that {} is Mastodon's database (DB_NAME, DATABASE_URL), that its \
                     migrations ran, and that {} may use its schema",
                    options.dbname, options.user
                ),
            );
        } else if !missing.is_empty() {
            let missing = missing.join(", ");
            report.fail(&about, format_args!("has no {missing}; run Mastodon's migrations"));
        } else if let Some(lost) = optional(table, &hidden) {
            report.warn(
                &about,
                format_args!(
                    "{} may not read {}; run postgresql-grants.sql again: {lost}",
                    options.user,
                    hidden.join(", ")
                ),
            );
        } else if !hidden.is_empty() {
            report.fail(
                &about,
                format_args!(
                    "{} may not read {}; GRANT SELECT ON {table} TO \"{}\"; or see postgresql-grants.sql",
                    options.user,
                    hidden.join(", "),
                    options.user.replace('"', "\"\"")
                ),
            );
        } else {
            report.ok(&about, format_args!("{} can be read", columns.join(", ")));
        }
    }
}

/// What is lost without these columns, if everything else works without them.
fn optional(table: &str, hidden: &[&str]) -> Option<&'static str> {
    let lost = |column: &str| OPTIONAL.iter().find(|(of, name, _)| *of == table && *name == column);
    let first = lost(hidden.first()?)?;
    hidden.iter().all(|column| lost(column).is_some()).then_some(first.2)
}
