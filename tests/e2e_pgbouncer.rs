//! PgBouncer in transaction mode between the server and PostgreSQL. One server connection for all: whatever
//! needed a session of its own would fail. The whole suite runs through PgBouncer with `TIDEGATE_PGBOUNCER=1`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::json;
use support::certificates::{Authority, path};
use support::http::request;
use support::machine::PATIENCE;
use support::pgbouncer::Pgbouncer;
use support::posts::{message, status_by, text_message};
use support::world::fresh_id;
use support::{Sse, World, Ws, left_out, ours_alone, postgres, wait_until};

/// A PgBouncer in front of the PostgreSQL that the tests share.
fn pgbouncer(settings: &[&str]) -> Option<Pgbouncer> {
    let Some(postgres) = postgres::shared() else {
        left_out("needs postgresql");
        return None;
    };
    Pgbouncer::start(postgres, settings)
}

#[test]
fn tokens_lists_audiences_and_filters_are_asked_through_one_connection() {
    let Some(pgbouncer) = pgbouncer(&["default_pool_size = 1"]) else { return };
    let Some(world) = World::with(&[("DATABASE_URL", &pgbouncer.url("mastodon_test"))]) else { return };
    let viewers: Vec<_> = (0..8).map(|_| world.viewer("read")).collect();
    let author = world.account();
    let mut streams: Vec<(Ws, Sse)> = std::thread::scope(|scope| {
        let open = viewers.iter().map(|viewer| {
            let server = &world.server;
            scope.spawn(move || {
                let list = format!("/?stream=list&list={}", viewer.list());
                let public = Sse::open(server, "/api/v1/streaming/public", &viewer.token);
                (Ws::open(server, &list, &viewer.token), public)
            })
        });
        let open: Vec<_> = open.collect();
        open.into_iter().map(|opening| opening.join().unwrap()).collect()
    });
    // Every other viewer has blocked the author.
    for viewer in viewers.iter().step_by(2) {
        let account = viewer.account;
        viewer
            .sql(&format!("INSERT INTO blocks (account_id, target_account_id) VALUES ({account}, {author})"));
    }
    let status = status_by(fresh_id(), author, "bob", "bob@far.example");
    world.publish("timeline:public", &message("update", &status));
    world.publish("timeline:public", &text_message("delete", "1"));
    for (n, (_, sse)) in streams.iter_mut().enumerate() {
        if n % 2 == 1 {
            let event = sse.next();
            assert_eq!(event.name, "update", "viewer {n}");
        }
        sse.expect("delete", "1");
    }
    let unknown =
        world.server.request("GET", "/api/v1/streaming/user", &[("Authorization", "Bearer unknown")]);
    assert_eq!(unknown.status(), 401);
}

#[test]
fn its_restart_costs_newcomers_a_moment_and_open_streams_nothing() {
    if !ours_alone() {
        return;
    }
    let Some(pgbouncer) = pgbouncer(&[]) else { return };
    let Some(world) = World::with(&[("DATABASE_URL", &pgbouncer.url("mastodon_test"))]) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    let ask = || {
        let headers = [("Authorization", &*viewer.bearer())];
        let mut connection = world.server.connect();
        connection.send(request("GET", "/api/v1/streaming/user", &headers).as_bytes());
        connection.head().status
    };
    assert_eq!(ask(), 200);
    pgbouncer.stop();
    assert_eq!(ask(), 503);
    world.publish(&viewer.home(), &text_message("update", r#"{"id":"1"}"#));
    ws.expect_event(&json!(["user"]), "update", r#"{"id":"1"}"#);
    pgbouncer.start_again();
    wait_until("newcomers get in again", PATIENCE, || ask() == 200);
}

#[test]
fn it_may_want_tls_and_a_password() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("pgbouncer", "pgbouncer", &["DNS:localhost"]);
    for file in [authority.folder(), &pair.key, &pair.cert] {
        postgres::own(file);
    }
    let settings = [
        "client_tls_sslmode = require".to_owned(),
        format!("client_tls_key_file = {}", path(&pair.key)),
        format!("client_tls_cert_file = {}", path(&pair.cert)),
        "auth_type = scram-sha-256".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let Some(pgbouncer) = pgbouncer(&settings) else { return };
    let url = format!("postgres://mastodon:hunter2@localhost:{}/mastodon_test", pgbouncer.port);
    let root = authority.root();
    let roots = ("PGSSLROOTCERT", path(&root));
    let Some(world) = World::with(&[("DATABASE_URL", &url), ("DB_SSLMODE", "verify-full"), roots]) else {
        return;
    };
    let unknown = |server: &support::Server| {
        server.request("GET", "/api/v1/streaming/user", &[("Authorization", "Bearer unknown")]).status()
    };
    assert_eq!(unknown(&world.server), 401);
    let mut env = world.env.clone();
    env.insert("DB_SSLMODE".into(), "disable".into());
    let server = support::Server::start(&env);
    assert_eq!(unknown(&server), 503);
    server.until_output("set sslmode to require");
}
