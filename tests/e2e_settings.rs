//! How Redis and PostgreSQL are named: each form of each variable, by what the two servers see of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;

use serde_json::json;
use support::machine::{Folder, PATIENCE, free_port, program};
use support::postgres::{self, Postgres, own};
use support::posts::text_message;
use support::redis::Redis;
use support::{World, Ws, left_out, ours_alone, wait_until};

/// Reaches neither, whatever else is set.
const NOTHING: [(&str, &str); 2] = [("REDIS_URL", ""), ("DATABASE_URL", "")];

/// Variables with their values.
type Set<'a> = &'a [(&'a str, &'a str)];

fn two_servers(settings: &[&str]) -> Option<(Redis, &'static Postgres)> {
    let Some(postgres) = postgres::shared() else {
        left_out("needs postgresql");
        return None;
    };
    let Some(redis) = Redis::start_on(None, settings) else {
        left_out("needs redis-server");
        return None;
    };
    Some((redis, postgres))
}

/// A client is served, which takes both servers.
#[track_caller]
fn serves(world: &World, prefix: &str) -> String {
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let home = format!("{prefix}{}", viewer.home());
    wait_until("the stream is subscribed to", PATIENCE, || world.redis.has_subscriber(&home));
    world.redis.publish(&home, &text_message("update", r#"{"id":"1"}"#));
    ws.expect_event(&json!(["user"]), "update", r#"{"id":"1"}"#);
    format!("{prefix}subscribed:{}", viewer.home())
}

/// The connections of the server under test as Redis lists them.
fn clients(redis: &Redis) -> Vec<String> {
    let list = redis.command(&["CLIENT", "LIST"]).text();
    list.lines().filter(|line| line.contains("name=tidegate")).map(str::to_owned).collect()
}

fn has_key(redis: &Redis, db: &str, key: &str) -> bool {
    let mut client = redis.client();
    client.command(&["SELECT", db]);
    client.command(&["EXISTS", key]).integer() == 1
}

#[test]
fn redis_is_found_by_each_variable() {
    if !ours_alone() {
        return;
    }
    let folder = Folder::new("redis-socket");
    let socket = folder.path().join("redis.sock");
    let (unix, port_text) = (socket.to_str().unwrap().to_owned(), free_port().to_string());
    let settings = ["--unixsocket", &unix, "--user", "streaming", "on", ">p@ss:/word", "~*", "&*", "+@all"];
    let Some((redis, _)) = two_servers(&settings) else { return };
    let at = format!("127.0.0.1:{}", redis.port);
    let port = redis.port.to_string();
    let dead = format!("redis://127.0.0.1:{port_text}");
    let (by_path, with_login) =
        (format!("unix://{unix}?db=3"), format!("redis://streaming:p%40ss%3A%2Fword@{at}/2"));
    let (bare, url) = (format!("unix:{unix}"), format!("redis://{at}/5"));
    let by_host = [
        ("REDIS_HOST", "127.0.0.1"),
        ("REDIS_PORT", &*port),
        ("REDIS_DB", "4"),
        ("REDIS_USER", "streaming"),
        ("REDIS_PASSWORD", "p@ss:/word"),
    ];
    // What is set; database, user and namespace that follow from it.
    // 4.3.0 called it so.
    let by_old_name = [&by_host[..3], &[("REDIS_USERNAME", "streaming")], &by_host[4..]].concat();
    let by_both = [&by_host[..], &[("REDIS_USERNAME", "nobody")]].concat();
    let cases: [(Set, &str, &str, &str); 9] = [
        (&[("REDIS_URL", &by_path)], "3", "default", ""),
        (&[("REDIS_URL", &bare)], "0", "default", ""),
        (&[("REDIS_URL", &with_login)], "2", "streaming", ""),
        (&[("REDIS_URL", &at), ("REDIS_DB", "9")], "0", "default", ""),
        (&[("REDIS_URL", &dead), ("STREAMING_REDIS_URL", &url)], "5", "default", ""),
        (&by_host, "4", "streaming", ""),
        (&by_old_name, "4", "streaming", ""),
        (&by_both, "4", "streaming", ""),
        (&[("REDIS_URL", &url), ("REDIS_NAMESPACE", "masto")], "5", "default", "masto:"),
    ];
    let mut redis = Some(redis);
    for (set, db, user, prefix) in cases {
        let variables = [&NOTHING[..1], set].concat();
        let Some(world) = World::with_redis(redis.take().unwrap(), &variables) else { return };
        let key = serves(&world, prefix);
        assert!(has_key(&world.redis, db, &key), "{set:?}");
        let seen = clients(&world.redis);
        assert!(
            seen.len() == 2 && seen.iter().all(|line| line.contains(&format!(" user={user} "))),
            "{set:?} {seen:?}"
        );
        redis = Some(world.into_redis());
        wait_until("it is gone", PATIENCE, || clients(redis.as_ref().unwrap()).is_empty());
    }
}

#[test]
fn postgresql_is_found_by_each_variable() {
    if !ours_alone() {
        return;
    }
    let Some((redis, postgres)) = two_servers(&[]) else { return };
    let url = redis.url();
    let (directory, port) = (postgres.service.folder().to_str().unwrap(), postgres.port.to_string());
    let encoded = directory.replace('/', "%2F");
    let by_authority = format!("postgresql://mastodon@{encoded}:{port}/mastodon_test");
    let by_query = format!("postgres:///mastodon_test?host={encoded}&port={port}&user=mastodon");
    let no_user = format!("postgres://127.0.0.1:{port}/mastodon_test");
    let marked =
        format!("postgres://mastodon@127.0.0.1:{port}/mastodon_test?options=-c%20application_name%3Dmarked");
    let by_socket = [("DB_HOST", directory), ("DB_PORT", &*port), ("DB_NAME", "mastodon_test")];
    let by_host = [("DB_HOST", "127.0.0.1"), by_socket[1], ("DB_USER", "mastodon"), by_socket[2]];
    let left_open = [
        ("DATABASE_URL", "postgres://"),
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &*port),
        ("PGUSER", "mastodon"),
        ("PGDATABASE", "mastodon_test"),
    ];
    let development = [("NODE_ENV", "development"), left_open[1], left_open[2], left_open[3], by_socket[2]];
    // What is set; the application's name and whether it comes by TCP, as PostgreSQL sees them.
    let cases: [(Set, &str, bool); 8] = [
        (&[("DATABASE_URL", &by_authority)], "", false),
        (&[("DATABASE_URL", &by_query)], "", false),
        (&[("DATABASE_URL", &no_user), ("PGUSER", "mastodon")], "", true),
        (&[("DATABASE_URL", &marked), ("DB_HOST", "db.invalid"), ("DB_NAME", "no")], "marked", true),
        (&by_socket, "", false),
        (&by_host, "", true),
        (&left_open, "", true),
        (&development, "", true),
    ];
    let mut redis = Some(redis);
    for (set, name, tcp) in cases {
        let variables = [&NOTHING[1..], &[("REDIS_URL", &*url)], set].concat();
        let Some(world) = World::with_redis(redis.take().unwrap(), &variables) else { return };
        let before = world.db.id("SELECT pg_backend_pid()::bigint", &[]);
        serves(&world, "");
        let sql = "SELECT application_name, client_addr IS NOT NULL FROM pg_stat_activity
            WHERE datname = 'mastodon_test' AND backend_type = 'client backend' AND pid::bigint <> $1";
        let seen: Vec<(String, bool)> =
            world.db.rows(sql, &[&before]).iter().map(|row| (row.get(0), row.get(1))).collect();
        assert!(seen.iter().any(|one| *one == (name.to_owned(), tcp)), "{set:?}: {seen:?}");
        redis = Some(world.into_redis());
    }
}

#[test]
fn passwords_are_used_wherever_they_stand() {
    if !ours_alone() {
        return;
    }
    let rules = Folder::new("hba");
    own(rules.path());
    let file = rules.path().join("hba");
    std::fs::write(
        &file,
        "local all all trust\nhost all fixtures all trust\nhost all all all scram-sha-256\n",
    )
    .unwrap();
    own(&file);
    let setting = format!("hba_file={}", file.display());
    let Some(postgres) = Postgres::start_with(None, &[&setting]) else { return left_out("needs postgresql") };
    let Some(redis) = Redis::start() else { return left_out("needs redis-server") };
    let psql = Command::new(program("psql").expect("psql comes with PostgreSQL"))
        .args(["-qAtX", "-h", postgres.service.folder().to_str().unwrap(), "-p", &postgres.port.to_string()])
        .args(["-U", "mastodon", "-d", "postgres", "-c", "ALTER ROLE mastodon PASSWORD 'p@ss:/word'"])
        .output()
        .unwrap();
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    let url = |login: &str| format!("postgres://{login}@127.0.0.1:{}/mastodon_test", postgres.port);
    let (inside, outside, wrong) = (url("mastodon:p%40ss%3A%2Fword"), url("mastodon"), url("mastodon:no"));
    let mut env = support::world::environment(&redis, &outside);
    let mut status = |set: &[(&str, &str)]| {
        for name in ["DB_PASS", "PGPASSWORD"] {
            env.remove(name);
        }
        env.extend(set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let server = support::Server::start(&env);
        let headers = [("Authorization", "Bearer unknown")];
        (server.request("GET", "/api/v1/streaming/user", &headers).status(), server)
    };
    for set in [
        &[("DATABASE_URL", &*inside), ("DB_PASS", "no")][..],
        &[("DATABASE_URL", &outside), ("DB_PASS", "p@ss:/word")],
        &[("DATABASE_URL", &outside), ("PGPASSWORD", "p@ss:/word")],
    ] {
        assert_eq!(status(set).0, 401, "{set:?}: PostgreSQL says that it knows no such token");
    }
    let (refused, server) = status(&[("DATABASE_URL", &wrong), ("DB_PASS", "p@ss:/word")]);
    assert_eq!(refused, 503);
    server.until_output("check DB_USER, DB_PASS");
    assert!(!server.output().contains("p@ss"), "{}", server.output());
}
