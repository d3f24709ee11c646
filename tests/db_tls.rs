//! TLS to PostgreSQL: real servers with certificates of all kinds, each sslmode, and libpq (psql) as the judge
//! of whether there is a connection and whether it is encrypted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use support::certificates::{Authority, Pair, path};
use support::encrypted::{
    ANYONE, BY_CERTIFICATE, BY_PASSWORD, ENCRYPTED_ONLY, PLAIN_ONLY, ask, judge, server, superuser,
};
use support::impostor::Impostor;
use support::machine::Folder;
use support::postgres::Postgres;
use support::{Server, World, check, left_out, ours_alone, wait_until};
use tidegate::db::DbError;

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What it is about, the server's certificate, its rules, and the roots to try.
type Case<'a> = (&'a str, Option<&'a Pair>, &'a str, &'a [Option<&'a Path>]);

#[test]
fn each_sslmode_means_what_it_means_to_libpq() {
    let Some(authority) = Authority::new() else { return };
    let good = authority.issue("good", "db", &["DNS:localhost", "IP:127.0.0.1"]);
    let other = authority.issue("other", "localhost", &["DNS:db.example"]);
    let common = authority.issue("common", "localhost", &[]);
    let expired = authority.issue_expired("expired", "localhost", &["DNS:localhost"]);
    let own = authority.self_signed("own", "localhost");
    let stranger = Authority::new().unwrap();
    let (root, own_root, strange_root) = (authority.root(), own.cert.clone(), stranger.root());
    let cases: [Case; 8] = [
        ("no TLS", None, ANYONE, &[None]),
        ("a good certificate", Some(&good), ANYONE, &[None, Some(&root), Some(&strange_root)]),
        (
            "encrypted connections only",
            Some(&good),
            ENCRYPTED_ONLY,
            &[None, Some(&root), Some(&strange_root)],
        ),
        ("plain connections only", Some(&good), PLAIN_ONLY, &[None, Some(&root)]),
        ("a certificate for another name", Some(&other), ANYONE, &[None, Some(&root)]),
        ("a common name and no other", Some(&common), ANYONE, &[Some(&root)]),
        ("a self-signed certificate", Some(&own), ANYONE, &[None, Some(&own_root), Some(&root)]),
        ("an expired certificate", Some(&expired), ANYONE, &[Some(&root)]),
    ];
    std::thread::scope(|scope| {
        for (what, pair, rules, roots) in cases {
            let authority = &authority;
            scope.spawn(move || compare(authority, what, pair, rules, roots));
        }
    });
}

fn compare(authority: &Authority, what: &str, pair: Option<&Pair>, rules: &str, roots: &[Option<&Path>]) {
    let Some(postgres) = server(authority, pair, rules) else { return };
    let mut wrong = Vec::new();
    // Only some are for the address too, or might be.
    let by_address = ["a good certificate", "a common name and no other"].contains(&what);
    let hosts = if by_address { &["localhost", "127.0.0.1"][..] } else { &["localhost"] };
    for (host, root) in hosts.iter().flat_map(|host| roots.iter().map(move |root| (host, root))) {
        for mode in MODES {
            // Without a file libpq has no authorities at all; here the system's count.
            if root.is_none() && mode.starts_with("verify") {
                continue;
            }
            let root = root.map(|root| format!("&sslrootcert={}", path(root))).unwrap_or_default();
            let url = format!("postgres://mastodon@{host}:{}/postgres?sslmode={mode}{root}", postgres.port);
            let (expected, got) = (judge(&url), ask(&url, &[]));
            if got.as_ref().ok() != expected.as_ref() {
                wrong.push(format!("{what}, {url}: libpq {expected:?}, here {got:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn refusal(url: &str, variables: &[(&str, &str)]) -> String {
    let error = ask(url, variables).expect_err(url);
    assert!(matches!(error, DbError::Tls { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_refusal_names_the_variable_and_says_what_to_do() {
    let Some(authority) = Authority::new() else { return };
    let other = authority.issue("other", "db", &["DNS:db.example"]);
    let Some(postgres) = server(&authority, Some(&other), ENCRYPTED_ONLY) else { return };
    let Some(plain) = server(&authority, None, ANYONE) else { return };
    let url = |port: u16| format!("postgres://mastodon@localhost:{port}/postgres");
    let (root, encrypted, plain) = (authority.root(), url(postgres.port), url(plain.port));
    let root = [("PGSSLROOTCERT", path(&root))];
    let with = |mode: &'static str| [("DB_SSLMODE", mode), root[0]];

    let text = refusal(&encrypted, &with("verify-full"));
    assert!(
        text.contains("DB_SSLMODE") && text.contains("db.example") && text.contains("host name"),
        "{text}"
    );
    let text = refusal(&encrypted, &[("DB_SSLMODE", "verify-full")]);
    assert!(text.contains("not trusted") && text.contains("NODE_EXTRA_CA_CERTS"), "{text}");
    let text = refusal(&encrypted, &[("DB_SSLMODE", "disable")]);
    assert!(text.contains("DB_SSLMODE") && text.contains("require"), "{text}");
    let text = refusal(&plain, &[("DB_SSLMODE", "require")]);
    assert!(text.contains("DB_SSLMODE") && text.contains("turned off"), "{text}");
    let text = refusal(&format!("{encrypted}?sslmode=verify-full"), &[]);
    assert!(text.contains("DATABASE_URL asks for"), "{text}");
}

#[test]
fn a_server_that_takes_no_connection_is_asked_for_one_once() {
    let Some(postgres) = Postgres::start_with(None, &["log_connections=on", "max_connections=8"]) else {
        return left_out("needs postgresql");
    };
    postgres.psql("postgres", "CREATE DATABASE closed ALLOW_CONNECTIONS false");
    let asked = |database: &str| {
        let received = || postgres.service.log().matches("connection received: host=127.0.0.1").count();
        let before = received();
        // Without encryption where that fails, which is no reason to knock again here.
        let url = format!("postgres://mastodon@127.0.0.1:{}/{database}?sslmode=prefer", postgres.port);
        (ask(&url, &[]), received() - before)
    };
    let (answer, times) = asked("postgres");
    assert_eq!((answer.is_ok(), times), (true, 1));
    let (answer, times) = asked("closed");
    assert!(matches!(&answer, Err(DbError::Away { .. })), "{answer:?}");
    assert_eq!(times, 1, "{answer:?}");
    let _everything_there_is: Vec<_> = (0..8).map(|_| postgres.open("postgres")).collect();
    let (answer, times) = asked("postgres");
    assert!(matches!(&answer, Err(DbError::Away { cause, .. }) if cause.contains("too many clients")));
    assert_eq!(times, 1, "{answer:?}");
}

#[test]
fn authorities_come_from_three_places() {
    let Some(authority) = Authority::new() else { return };
    let good = authority.issue("good", "db", &["DNS:localhost"]);
    let Some(postgres) = server(&authority, Some(&good), ANYONE) else { return };
    let url = format!("postgres://mastodon@localhost:{}/postgres", postgres.port);
    let root = authority.root();
    for place in [
        &[("PGSSLROOTCERT", path(&root))][..],
        &[("NODE_EXTRA_CA_CERTS", path(&root))],
        &[("SSL_CERT_FILE", path(&root))],
        &[("SSL_CERT_FILE", path(&root)), ("PGSSLROOTCERT", "system")],
    ] {
        let mut variables = vec![("DB_SSLMODE", "verify-full")];
        variables.extend(place);
        assert!(matches!(ask(&url, &variables), Ok(true)), "{place:?}");
    }
    // Node's own mode: encrypted to whoever it is.
    assert!(matches!(
        ask(&url, &[("DB_SSLMODE", "no-verify"), ("PGSSLROOTCERT", path(&good.key))]),
        Ok(true)
    ));
}

#[test]
fn passwords_are_bound_to_the_channel_and_client_certificates_are_shown() {
    let Some(authority) = Authority::new() else { return };
    let good = authority.issue("good", "db", &["DNS:localhost"]);
    let Some(postgres) = server(&authority, Some(&good), BY_PASSWORD) else { return };
    superuser(&postgres, "ALTER ROLE mastodon PASSWORD 'hunter2'");
    let root = authority.root();
    let url = |password: &str, mode: &str| {
        let at = format!("localhost:{}", postgres.port);
        format!("postgres://mastodon:{password}@{at}/postgres?sslmode={mode}&sslrootcert={}", path(&root))
    };
    for mode in ["prefer", "require", "verify-full"] {
        assert!(matches!(ask(&url("hunter2", mode), &[]), Ok(true)), "{mode}");
        let refused = ask(&url("wrong", mode), &[]);
        assert!(matches!(refused, Err(DbError::Refused { .. })), "{mode}: {refused:?}");
    }
    drop(postgres);

    let Some(postgres) = server(&authority, Some(&good), BY_CERTIFICATE) else { return };
    let ours = authority.issue("ours", "mastodon", &[]);
    let url = format!("postgres://mastodon@localhost:{}/postgres?sslmode=require", postgres.port);
    let with = format!("{url}&sslcert={}&sslkey={}", path(&ours.cert), path(&ours.key));
    assert!(matches!(ask(&with, &[]), Ok(true)), "{:?}", ask(&with, &[]));
    let without = ask(&url, &[]);
    assert!(matches!(without, Err(DbError::Refused { .. })), "{without:?}");
}

/// A server that wants a password, and its URL without parameters.
fn with_password(authority: &Authority, pair: &Pair) -> Option<(Postgres, String)> {
    let postgres = server(authority, Some(pair), BY_PASSWORD)?;
    superuser(&postgres, "ALTER ROLE mastodon PASSWORD 'hunter2'");
    let url = format!("postgres://mastodon:hunter2@localhost:{}/postgres", postgres.port);
    Some((postgres, url))
}

#[test]
fn a_server_that_does_not_own_its_certificates_key_is_refused_whatever_is_verified() {
    let Some(authority) = Authority::new() else { return };
    for (key, version) in [("rsa", "1.2"), ("rsa", "1.3"), ("p256", "1.2"), ("p256", "1.3")] {
        let genuine = authority.issue_with(key, "localhost", &["DNS:localhost"], key);
        let Some((postgres, _)) = with_password(&authority, &genuine) else { return };
        let other = authority.issue_with("other", "localhost", &["DNS:localhost"], key);
        let between = Impostor::start(postgres.port, &genuine.cert, &other.key, version);
        let root = authority.root();
        for mode in ["require", "verify-ca&sslrootcert=ROOT", "verify-full&sslrootcert=ROOT"] {
            let mode = mode.replace("ROOT", path(&root));
            let url =
                format!("postgres://mastodon:hunter2@localhost:{}/postgres?sslmode={mode}", between.port);
            assert_eq!(judge(&url), None, "{url}");
            let error = ask(&url, &[]).expect_err(&url);
            let text = error.to_string();
            assert!(matches!(error, DbError::Tls { .. }) && text.contains("does not own the key"), "{text}");
            assert!(text.contains("somebody may stand between"), "{text}");
        }
        // The impostor itself is sound: with the right key everything passes through it.
        let honest = Impostor::start(postgres.port, &genuine.cert, &genuine.key, version);
        let url = format!("postgres://mastodon:hunter2@localhost:{}/postgres?sslmode=require", honest.port);
        assert_eq!(judge(&url), Some(true), "{url}");
        assert!(matches!(ask(&url, &[]), Ok(true)), "{:?}", ask(&url, &[]));
    }
}

#[test]
fn channel_binding_means_what_it_means_to_libpq() {
    let Some(authority) = Authority::new() else { return };
    let good = authority.issue("good", "localhost", &["DNS:localhost"]);
    let hashless = authority.issue_with("hashless", "localhost", &["DNS:localhost"], "ed25519-signed");
    let Some((bound, bound_url)) = with_password(&authority, &good) else { return };
    let Some((_hashless, hashless_url)) = with_password(&authority, &hashless) else { return };
    let Some(trusting) = server(&authority, Some(&good), ANYONE) else { return };
    let Some(plain) = server(&authority, None, ANYONE) else { return };
    let to = |port: u16| format!("postgres://mastodon:hunter2@localhost:{port}/postgres");
    let mut wrong = Vec::new();
    for (what, url) in [("bound", &bound_url), ("trusting", &to(trusting.port)), ("plain", &to(plain.port))] {
        for mode in ["disable", "prefer", "require"] {
            for binding in ["disable", "prefer", "require"] {
                let url = format!("{url}?sslmode={mode}&channel_binding={binding}");
                let (expected, got) = (judge(&url), ask(&url, &[]));
                if got.as_ref().ok() != expected.as_ref() {
                    wrong.push(format!("{what}, {url}: libpq {expected:?}, here {got:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // libpq cannot log in there at all unless binding is off. Where it is not required, we do without.
    let url = |binding: &str| format!("{hashless_url}?sslmode=require&channel_binding={binding}");
    assert_eq!((judge(&url("require")), judge(&url("disable"))), (None, Some(true)));
    assert!(matches!(ask(&url("prefer"), &[]), Ok(true)));
    let error = ask(&url("require"), &[]).unwrap_err();
    assert!(error.to_string().contains("channel_binding=require"), "{error}");
    // The variable counts where the URL says nothing.
    let required = [("PGCHANNELBINDING", "require"), ("DB_SSLMODE", "require")];
    assert!(matches!(ask(&bound_url, &required), Ok(true)));
    assert!(matches!(ask(&to(trusting.port), &required), Err(DbError::Refused { .. })));
    assert!(matches!(ask(&format!("{}?channel_binding=prefer", to(trusting.port)), &required), Ok(true)));
    drop(bound);
}

#[test]
fn a_fallback_to_plain_text_is_seen_everywhere() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let stranger = Authority::new().unwrap();
    let good = authority.issue("good", "db", &["DNS:localhost"]);
    let Some(postgres) = server(&authority, Some(&good), ANYONE) else { return };
    let root = stranger.root();
    let url = format!(
        "postgres://mastodon@localhost:{}/mastodon_test?sslmode=prefer&sslrootcert={}",
        postgres.port,
        path(&root)
    );
    let Some(world) = World::with(&[("DATABASE_URL", &*url)]) else { return };
    world.server.until_output("connections are NOT encrypted");
    wait_until("it is ready", support::machine::PATIENCE, || world.server.get("/ready").status() == 200);
    let because = &world.status()["database"]["unencrypted_because"];
    assert!(because.as_str().is_some_and(|because| because.contains("trusted here")), "{because}");
    assert!(world.server.get("/status").text().contains("NOT encrypted"));
    world.server.until_metric("tidegate_database_unencrypted_fallback", &[], 1.0);
    let checked = check::run(&["check"], &world.env);
    checked.expect(checked.code, "warn", &["PostgreSQL", "NOT encrypted", "trusted here", "DATABASE_URL"]);
    // With the right file there is nothing to tell.
    let right = url.replace(path(&root), path(&authority.root()));
    let Some(world) = World::with(&[("DATABASE_URL", &*right)]) else { return };
    wait_until("it is ready", support::machine::PATIENCE, || world.server.get("/ready").status() == 200);
    assert!(world.status()["database"]["unencrypted_because"].is_null());
    world.server.until_metric("tidegate_database_unencrypted_fallback", &[], 0.0);
    assert!(!check::run(&["check"], &world.env).text.contains("NOT encrypted"));
}

#[test]
fn a_file_of_certificates_that_is_too_long_is_refused_by_name() {
    let folder = Folder::new("long");
    let file = folder.path().join("root.crt");
    std::fs::write(&file, vec![b'\n'; (tidegate::tls::FILE_BYTES_MAX + 1) as usize]).unwrap();
    let database = tidegate::config::DatabaseTls {
        mode: tidegate::config::SslMode::VerifyFull,
        roots: tidegate::config::RootCerts::File(file.clone()),
        client: None,
        variable: "DB_SSLMODE",
    };
    let env = tidegate::config::Env::from_pairs([("NODE_ENV", "production")]);
    let config = tidegate::config::Config::from_env(&env, tidegate::config::Mode::Serve).unwrap();
    let error = tidegate::db::Encryption::new(&database, &config.tls).unwrap_err().to_string();
    assert!(error.contains(path(&file)) && error.contains("longer than 16 MiB"), "{error}");
}

#[test]
fn the_server_serves_over_tls_and_says_what_is_wrong_where_it_cannot() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let good = authority.issue("good", "db", &["DNS:localhost"]);
    let Some(postgres) = server(&authority, Some(&good), ENCRYPTED_ONLY) else { return };
    let root = authority.root();
    let url = format!("postgres://mastodon@localhost:{}/mastodon_test", postgres.port);
    let good = [("DATABASE_URL", &*url), ("DB_SSLMODE", "verify-full"), ("NODE_EXTRA_CA_CERTS", path(&root))];
    let Some(world) = World::with(&good) else { return };
    wait_until("it is ready", support::machine::PATIENCE, || world.server.get("/ready").status() == 200);
    let refused =
        world.server.request("GET", "/api/v1/streaming/user", &[("Authorization", "Bearer unknown")]);
    assert_eq!(refused.status(), 401, "PostgreSQL was asked");

    let Some(world) = World::with(&good[..2]) else { return };
    let refused =
        world.server.request("GET", "/api/v1/streaming/user", &[("Authorization", "Bearer unknown")]);
    assert_eq!(refused.status(), 503);
    world.server.until_output("as DB_SSLMODE asks for");

    let mut env = world.env.clone();
    env.insert("PGSSLROOTCERT".into(), "/nowhere/root.crt".into());
    let mut unable = Server::spawn(&env);
    assert!(!unable.until_exit().success());
    unable.until_output("/nowhere/root.crt cannot be read");
}
