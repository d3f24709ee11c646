//! TLS to PostgreSQL: real servers with certificates of all kinds, each sslmode, and libpq (psql) as the judge
//! of whether there is a connection and whether it is encrypted.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::certificates::{Authority, Pair, path};
use support::machine::{Folder, program};
use support::postgres::{Postgres, own};
use support::{Server, World, left_out, ours_alone, wait_until};
use tidegate::config::{Config, Env, Mode};
use tidegate::db::{DbError, Encryption, Host, Options, Pool};

const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// Who may come in, with TLS and without.
const ANYONE: &str = "local all all trust\nhost all all all trust\n";
const ENCRYPTED_ONLY: &str = "local all all trust\nhostssl all all all trust\n";
const PLAIN_ONLY: &str = "local all all trust\nhostnossl all all all trust\n";
const BY_PASSWORD: &str = "local all all trust\nhostssl all all all scram-sha-256\n";
const BY_CERTIFICATE: &str = "local all all trust\nhostssl all all all cert\n";

/// What it is about, the server's certificate, its rules, and the roots to try.
type Case<'a> = (&'a str, Option<&'a Pair>, &'a str, &'a [Option<&'a Path>]);

/// A PostgreSQL with that certificate, if any, and these rules.
fn server(authority: &Authority, pair: Option<&Pair>, rules: &str) -> Option<Postgres> {
    let files = Folder::new("pg-tls");
    own(files.path());
    let copy = |from: &Path, name: &str| -> PathBuf {
        let to = files.path().join(name);
        std::fs::copy(from, &to).unwrap();
        own(&to);
        assert!(Command::new("chmod").arg("600").arg(&to).status().unwrap().success());
        to
    };
    let hba = files.path().join("hba");
    std::fs::write(&hba, rules).unwrap();
    own(&hba);
    let mut settings = vec![format!("hba_file={}", path(&hba))];
    if let Some(pair) = pair {
        settings.push("ssl=on".into());
        settings.push(format!("ssl_cert_file={}", path(&copy(&pair.cert, "crt"))));
        settings.push(format!("ssl_key_file={}", path(&copy(&pair.key, "key"))));
        settings.push(format!("ssl_ca_file={}", path(&copy(&authority.root(), "ca"))));
    }
    let words: Vec<&str> = settings.iter().map(String::as_str).collect();
    let started = Postgres::start_with(None, &words);
    if started.is_none() {
        left_out("needs postgresql");
    }
    // It reads its files at the start, and nothing reloads it.
    started
}

/// Whether the connection that a URL and variables ask for is encrypted, or why there is none.
fn ask(url: &str, variables: &[(&str, &str)]) -> Result<bool, DbError> {
    let pairs = [("NODE_ENV", "production"), ("DATABASE_URL", url)];
    let env = Env::from_pairs(pairs.into_iter().chain(variables.iter().copied()));
    let config = Config::from_env(&env, Mode::Serve).unwrap();
    let database = config.database.unwrap();
    let tidegate::config::DatabaseHost::Tcp(host) = database.host.clone() else { panic!("TCP") };
    let options = Options {
        host: Host::Tcp(host),
        port: database.port,
        user: database.user.clone(),
        password: database.password.as_ref().map(|secret| secret.expose().to_owned()),
        dbname: database.name.clone(),
        encryption: Encryption::new(&database.tls, &config.tls).unwrap(),
        pool_size: 1,
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = Pool::new(&options)?;
        let rows = pool.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?;
        Ok(rows[0].get(0))
    })
}

/// The same by libpq; none where it does not connect.
fn judge(url: &str) -> Option<bool> {
    // No ~/.postgresql/root.crt of whoever runs the tests.
    let home = Folder::new("home");
    let output = Command::new(program("psql").expect("psql comes with PostgreSQL"))
        .args(["-qAtX", "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", url])
        .env_clear()
        .env("HOME", home.path())
        .env("PATH", std::env::var_os("PATH").unwrap())
        .output()
        .unwrap();
    output.status.success().then(|| output.stdout == b"t\n")
}

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
    let admin = |postgres: &Postgres, sql: &str| {
        let output = Command::new(program("psql").unwrap())
            .args(["-qAtX", "-h", path(postgres.service.folder()), "-p", &postgres.port.to_string()])
            .args(["-U", "mastodon", "-d", "postgres", "-c", sql])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    admin(&postgres, "ALTER ROLE mastodon PASSWORD 'hunter2'");
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
