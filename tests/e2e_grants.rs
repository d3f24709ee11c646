//! Least privilege: the server under test has in every test the role of `dist/postgresql-grants.sql` and the user
//! of `dist/redis.acl`. Here is shown that these can do nothing else, and that nothing in them is superfluous.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;

use support::postgres::{Database, GRANTS, PASSWORD, ROLE};
use support::redis::{self, Reply};
use support::world::servers;
use support::{World, Ws, ours_alone};
use tidegate::core::event::StatusFields;
use tidegate::db::{self, Accounts, DbError, Pool};

/// Tables with the columns that are granted, as the file has them.
fn granted() -> Vec<(String, Vec<String>)> {
    let text: String = GRANTS.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join(" ");
    let grants: Vec<_> = text
        .split(';')
        .filter_map(|statement| statement.trim().strip_prefix("GRANT SELECT ("))
        .map(|rest| {
            let (columns, rest) = rest.split_once(')').unwrap();
            let table = rest.trim().strip_prefix("ON ").unwrap().strip_suffix(" TO tidegate").unwrap();
            (table.trim().to_owned(), columns.split(", ").map(str::to_owned).collect())
        })
        .collect();
    assert_eq!(grants.len(), GRANTS.matches("GRANT SELECT").count(), "{grants:?}");
    grants
}

#[test]
fn the_role_reads_its_columns_and_does_nothing_else() {
    if !ours_alone() {
        return;
    }
    let Some((_, postgres)) = servers() else { return };
    let owner = postgres.own_database();
    let role = postgres.open_as(&format!("user={ROLE} password={PASSWORD}"), &owner.name);
    // Not even its second lock is needed.
    role.run("SET default_transaction_read_only = off");
    let mut granted = granted();
    granted.sort();
    let mut known: Vec<(String, Vec<String>)> = db::TABLES
        .iter()
        .map(|(table, columns)| {
            ((*table).to_owned(), columns.iter().map(|name| (*name).to_owned()).collect())
        })
        .collect();
    known.sort();
    assert_eq!(granted, known, "what `tidegate check` looks at is what is granted");
    let columns = "SELECT table_name::text, column_name::text FROM information_schema.columns WHERE table_schema = 'public'";
    let mut hidden = 0;
    for row in owner.rows(columns, &[]) {
        let (table, column): (String, String) = (row.get(0), row.get(1));
        let is_granted = granted.iter().any(|(name, columns)| *name == table && columns.contains(&column));
        let read = role.try_run(&format!("SELECT {column} FROM {table}"));
        assert_eq!(read.is_ok(), is_granted, "SELECT {column} FROM {table}: {read:?}");
        hidden += u32::from(!is_granted);
        let written = role.try_run(&format!("UPDATE {table} SET {column} = {column}"));
        assert_denied(&written, &format!("UPDATE {table}.{column}"));
    }
    assert!(hidden > 20, "{hidden} columns are not for it");
    for (table, columns) in &granted {
        for sql in [
            format!("SELECT * FROM {table}"),
            format!("INSERT INTO {table} DEFAULT VALUES"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("SELECT {} FROM {table} FOR UPDATE", columns[0]),
            format!("DROP TABLE {table}"),
            format!("ALTER TABLE {table} ADD COLUMN x integer"),
        ] {
            assert_denied(&role.try_run(&sql), &sql);
        }
    }
    for sql in [
        "CREATE ROLE other",
        "CREATE DATABASE other",
        "COPY accounts (id) TO PROGRAM 'true'",
        "COPY accounts (id) TO '/tmp/nothing'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_reload_conf()",
        "SET ROLE mastodon",
    ] {
        assert_denied(&role.try_run(sql), sql);
    }
    // Before version 15 everybody may make tables, unless the administrator has forbidden it.
    if owner.id("SELECT current_setting('server_version_num')::bigint", &[]) >= 150_000 {
        assert_denied(&role.try_run("CREATE TABLE mine (x integer)"), "CREATE TABLE");
    }
}

#[track_caller]
fn assert_denied(result: &Result<(), String>, what: &str) {
    assert!(result.as_ref().is_err_and(|error| error.starts_with("42501")), "{what}: {result:?}");
}

/// Asks everything that the server ever asks.
async fn ask_everything(options: &db::Options) -> Result<(), DbError> {
    let pool = Pool::new(options)?;
    let accounts = Accounts::new(pool.clone());
    accounts.look_up("nobody").await?;
    accounts.owns_list(1, 1).await?;
    let status = StatusFields {
        author: 1,
        domain: Some("far.example".into()),
        local: false,
        mentions: [2].into(),
        language: None,
        has_filtered: false,
        local_only: false,
    };
    db::audience::hidden_from(&pool, &[1], &status, true).await?;
    db::preferences::preferences(&pool, &[1], &[1], true).await?;
    Ok(())
}

#[test]
fn no_grant_is_superfluous() {
    if !ours_alone() {
        return;
    }
    let Some((_, postgres)) = servers() else { return };
    let owner: Database = postgres.own_database();
    let options = db::Options {
        host: db::Host::Tcp("127.0.0.1".into()),
        port: postgres.port,
        user: ROLE.into(),
        password: Some(PASSWORD.into()),
        dbname: owner.name.clone(),
        ..db::Options::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ask_everything(&options)).unwrap();
    for (table, columns) in granted() {
        for column in columns {
            owner.run(&format!("REVOKE SELECT ({column}) ON {table} FROM {ROLE}"));
            let asked = runtime.block_on(ask_everything(&options));
            let missed = matches!(&asked, Err(DbError::Statement { cause, .. }) if cause.contains(&table));
            assert!(missed, "{table}.{column} is granted and not needed: {asked:?}");
            owner.run(&format!("GRANT SELECT ({column}) ON {table} TO {ROLE}"));
        }
    }
}

#[test]
fn the_redis_user_does_what_the_server_needs_and_nothing_else() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    drop(ws);
    world.until_empty();
    // Redis keeps what was denied. Only its output limits are asked for and not granted: CONFIG GET would tell
    // every setting, passwords too; the server takes their defaults then.
    let denied = world.redis.command(&["ACL", "LOG"]);
    let Reply::Array(entries) = denied else { panic!("{denied:?}") };
    let objects: BTreeSet<String> = entries
        .iter()
        .map(|entry| {
            let Reply::Array(fields) = entry else { panic!("{entry:?}") };
            let at = fields.iter().position(|field| *field == Reply::Bulk(Some(b"object".to_vec())));
            fields[at.unwrap() + 1].text()
        })
        .collect();
    let allowed_to_fail = BTreeSet::from(["config|get".to_owned()]);
    assert!(objects.is_subset(&allowed_to_fail), "denied: {objects:?}");

    let mut user = world.redis.client();
    user.command(&["AUTH", redis::USER, redis::PASSWORD]);
    for words in [
        &["PING"][..],
        &["SELECT", "1"],
        &["SET", "subscribed:timeline:1", "1", "EX", "10"],
        &["CLIENT", "ID"],
        &["CLIENT", "SETNAME", "x"],
        &["CLIENT", "LIST", "TYPE", "pubsub"],
    ] {
        user.command(words);
    }
    for words in [
        &["GET", "subscribed:timeline:1"][..],
        &["DEL", "subscribed:timeline:1"],
        &["EXISTS", "subscribed:timeline:1"],
        &["SET", "other", "1"],
        &["SET", "subscribed", "1"],
        &["PUBLISH", "timeline:public", "{}"],
        &["SUBSCRIBE", "other"],
        &["SUBSCRIBE", "timeline:public", "other"],
        &["PSUBSCRIBE", "*"],
        &["PSUBSCRIBE", "timeline:*"],
        &["PUBSUB", "CHANNELS"],
        &["KEYS", "*"],
        &["SCAN", "0"],
        &["DBSIZE"],
        &["FLUSHALL"],
        &["CONFIG", "GET", "requirepass"],
        &["CONFIG", "SET", "maxmemory", "1"],
        &["CLIENT", "KILL", "TYPE", "normal"],
        &["CLIENT", "PAUSE", "1"],
        &["ACL", "LIST"],
        &["EVAL", "return 1", "0"],
        &["INFO"],
        &["MONITOR"],
        &["SHUTDOWN", "NOSAVE"],
        &["REPLICAOF", "NO", "ONE"],
        &["MULTI"],
    ] {
        let answer = user.try_command(words).unwrap();
        assert!(matches!(&answer, Reply::Error(text) if text.starts_with("NOPERM")), "{words:?}: {answer:?}");
    }
    // The rule needs a password of one's own.
    assert!(redis::ACL.contains(">change-me"));
    assert_eq!(redis::ACL.lines().count(), 1, "an ACL file has no comments");
}
