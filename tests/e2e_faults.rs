//! What clients see when something fails: Redis, PostgreSQL, other clients, the server's own end. Messages are
//! numbered, so that whoever stayed connected can prove that nothing is missing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::http::request;
use support::machine::{ours_alone, wait_for, wait_until};
use support::numbers::{gapless_until_close, numbered};
use support::posts::text_message;
use support::{Sse, World, Ws};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_lost_redis_connection_is_a_gap_that_everyone_is_told_of() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("GAP_CLOSE_SPREAD", "0.2")]) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    world.server.until_metric("connected_clients", &[("type", "websocket")], 1.0);
    ws.probe(&world.redis, &viewer.user_channels());
    for n in 0..50 {
        world.publish(&viewer.home(), &numbered(n));
    }
    world.redis.command(&["DEL", &format!("subscribed:{}", viewer.home())]);
    world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    world.server.until_output("is connected");
    let (_, close) = gapless_until_close(&mut ws, 0);
    assert_eq!(close, Some(1012));
    let rest = sse.until_end();
    assert!(rest.contains(":messages may have been missed") || rest.contains(": messages"), "{rest}");
    // Channels and presence are back for whoever is still there, and newcomers get in.
    let mut again = Ws::open(&world.server, "/?stream=user", &viewer.token);
    again.probe(&world.redis, &viewer.user_channels());
    assert!(world.redis.ttl(&format!("subscribed:{}", viewer.home())) > 1000);
    world.publish(&viewer.home(), &numbered(7));
    again.expect_event(&json!(["user"]), "update", r#"{"id":"7"}"#);
}

#[test]
fn while_redis_is_away_newcomers_are_told_when_to_come_back() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("GAP_CLOSE_SPREAD", "0.1"), ("REDIS_AWAY_CLOSE", "0.2")]) else {
        return;
    };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    // The test's own connection ends with the server's process.
    let _ = world.redis.client().try_command(&["SHUTDOWN", "NOSAVE"]);
    assert_eq!(gapless_until_close(&mut ws, 0).1, Some(1012), "away too long: clients had better poll");
    world.server.until_metric("tidegate_clients_closed_total", &[("reason", "redis_away")], 1.0);
    let refused =
        world.server.request("GET", "/api/v1/streaming/user", &[("Authorization", &viewer.bearer())]);
    assert_eq!(refused.status(), 503);
    assert!(refused.header("Retry-After").parse::<u32>().is_ok());
    assert_eq!(world.server.get("/ready").status(), 503);
    assert_eq!(world.server.get("/api/v1/streaming/health").text(), "OK");
}

#[test]
fn without_postgresql_open_streams_go_on_and_newcomers_get_503() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    // As good as gone: nobody may connect, and who was connected is not any more.
    let admin = support::postgres::shared().unwrap().open("postgres");
    let name = &world.db.name;
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    admin.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"));
    let ask = || {
        let headers = [("Authorization", &*viewer.bearer())];
        let mut connection = world.server.connect();
        connection.send(request("GET", "/api/v1/streaming/user", &headers).as_bytes());
        connection.head()
    };
    let refused = ask();
    assert_eq!(refused.status, 503);
    world.publish(&viewer.home(), &numbered(1));
    ws.expect_event(&json!(["user"]), "update", r#"{"id":"1"}"#);
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    wait_until("it heals by itself", PATIENCE, || ask().status == 200);
}

#[test]
fn readiness_follows_postgresql_though_no_newcomer_asks() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let viewer = world.viewer("read");
    let ready = |status: u16| {
        wait_until(&format!("/ready answers {status}"), PATIENCE, || {
            world.server.get("/ready").status() == status
        });
    };
    ready(200);
    let admin = support::postgres::shared().unwrap().open("postgres");
    let name = &world.db.name;
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    admin.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"));
    ready(503);
    // Whoever balances load by it sends nobody from now on.
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    ready(200);
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());

    // A server that is started without PostgreSQL is none to send anybody to.
    let mut env = world.env.clone();
    let nowhere = format!("postgresql://tidegate@127.0.0.1:{}/nothing", support::machine::free_port());
    env.insert("DATABASE_URL".into(), nowhere);
    let other = support::Server::start(&env);
    wait_until("it says that PostgreSQL is away", PATIENCE, || {
        other.get("/ready").text().contains("PostgreSQL is away")
    });
}

#[test]
fn who_never_reads_is_closed_and_the_others_get_everything() {
    if !ours_alone() {
        return;
    }
    let settings = [("BACKPRESSURE_HIGH_BYTES", "400000"), ("SLOW_CLIENT_GRACE", "0.5")];
    let Some(world) = World::with(&settings) else { return };
    let viewer = world.viewer("read");
    let mut readers: Vec<Ws> =
        (0..5).map(|_| Ws::open(&world.server, "/?stream=user", &viewer.token)).collect();
    let stalled: Vec<Ws> = (0..3).map(|_| Ws::open(&world.server, "/?stream=user", &viewer.token)).collect();
    world.server.until_metric("connected_clients", &[("type", "websocket")], 8.0);
    let padding = "x".repeat(40_000);
    let count = 150;
    let mut redis = world.redis.client();
    let home = viewer.home();
    let publisher = std::thread::spawn(move || {
        for n in 0..count {
            let payload = format!(r#"{{"id":"{n}","content":"{padding}"}}"#);
            redis.publish(&home, &text_message("update", &payload));
        }
    });
    std::thread::scope(|scope| {
        for reader in &mut readers {
            scope.spawn(|| {
                for n in 0..count {
                    let message = reader.next_json();
                    let payload: Value = serde_json::from_str(message["payload"].as_str().unwrap()).unwrap();
                    assert_eq!(payload["id"], json!(n.to_string()));
                }
            });
        }
    });
    publisher.join().unwrap();
    world.server.until_metric("connected_clients", &[("type", "websocket")], 5.0);
    let status = world.assert_conserved();
    assert_eq!(status["closes"]["too_slow"], json!(3), "{status}");
    drop(stalled);
}

#[test]
fn one_message_always_passes_whatever_the_budget() {
    let Some(world) = World::with(&[("BACKPRESSURE_HIGH_BYTES", "65536")]) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    let payload = format!(r#"{{"id":"1","content":"{}"}}"#, "y".repeat((8 << 20) - 200));
    world.publish(&viewer.home(), &text_message("update", &payload));
    world.publish(&viewer.home(), &numbered(2));
    assert_eq!(ws.next_json()["payload"].as_str().map(str::len), Some(payload.len()));
    ws.expect_event(&json!(["user"]), "update", r#"{"id":"2"}"#);
}

#[test]
fn a_message_over_the_bound_is_told_to_its_channel_and_nobody_else() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("MAX_MESSAGE_BYTES", "100000")]) else { return };
    let (viewer, other) = (world.viewer("read"), world.viewer("read"));
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let mut unconcerned = Ws::open(&world.server, "/?stream=user", &other.token);
    ws.probe(&world.redis, &viewer.user_channels());
    unconcerned.probe(&world.redis, &other.user_channels());
    world.publish(&viewer.home(), &numbered(0));
    world.publish(&viewer.home(), &text_message("update", &format!(r#"{{"id":"{}"}}"#, "1".repeat(100_000))));
    world.publish(&other.home(), &numbered(5));
    assert_eq!(gapless_until_close(&mut ws, 0), (1, Some(1012)));
    unconcerned.expect_event(&json!(["user"]), "update", r#"{"id":"5"}"#);
}

#[test]
fn a_drain_sends_everyone_away_and_ends_well() {
    if !ours_alone() {
        return;
    }
    let Some(mut world) = World::with(&[("DRAIN_SECONDS", "0.3")]) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    world.server.until_metric("connected_clients", &[("type", "websocket")], 1.0);
    let address = world.server.address();
    world.server.signal("TERM");
    assert_eq!(gapless_until_close(&mut ws, 0).1, Some(1001));
    sse.until_end();
    assert!(world.server.until_exit().success());
    wait_for("a successor can bind", PATIENCE, || std::net::TcpListener::bind(address).ok());
}

#[test]
fn the_status_pages_are_for_the_machine_itself() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let _ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    world.server.until_metric("connected_clients", &[("type", "websocket")], 1.0);
    let text = world.server.get("/status").text();
    assert!(text.starts_with("Active connections: "), "{text}");
    for path in ["/status/per_timeline", "/status/backpressure", "/status/backpresure"] {
        assert_eq!(world.server.get(path).status(), 200, "{path}");
    }
    assert_eq!(world.status()["connections"]["clients"]["websocket"], json!(1));
    let proxied = world.server.request("GET", "/status", &[("X-Forwarded-For", "203.0.113.9")]);
    proxied.assert_error(400, "Unknown channel requested");
    world.server.get("/api/v1/streaming/status").assert_error(400, "Unknown channel requested");
    assert!(!text.contains(&viewer.token));
}
