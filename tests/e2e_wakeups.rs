//! Nothing that can proceed waits for an unrelated timer: the server runs with every periodic timer at an hour, so a
//! wake-up that is lost stays lost, and the test that needed it does not end.
//!
//! Deadlines, backoff and the closes that Redis's loss asks for stay as they are. `WAKEUPS_ROUNDS=50 WAKEUPS_CLIENTS=2048`
//! is the long form of the storm.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::crowd::{BASE, Client, Crowd};
use support::http::Connection;
use support::posts::{message, status, text_message, with_filtered};
use support::redis::{Redis, encode};
use support::world::fresh_id;
use support::{Server, Sse, World, Ws, ours_alone, wait_until};

/// Far more than any of this takes, far less than the timers.
const PATIENCE: Duration = Duration::from_secs(120);

const PUBLIC: &str = "/api/v1/streaming/public/local";
const CHANNEL: &str = "timeline:public:local";

/// The variables that set every periodic timer to an hour. Two reactors, so that one may wait for the other.
const NO_TIMERS: [(&str, &str); 9] = [
    ("PERIODIC_TIMERS", "false"),
    ("REDIS_PING_SECONDS", "3600"),
    ("PRESENCE_REFRESH_SECONDS", "3600"),
    ("SETTINGS_REFRESH_SECONDS", "3600"),
    ("SSE_HEARTBEAT_SECONDS", "3600"),
    ("WS_PING_SECONDS", "3600"),
    ("DOOR_TIMEOUT", "3600"),
    ("WRITE_STALL_SECONDS", "3600"),
    ("STREAMING_THREADS", "2"),
];

fn world(variables: &[(&str, &str)]) -> Option<World> {
    World::with(&[&NO_TIMERS, variables].concat())
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn every_handshake_of_a_storm_completes() {
    let (rounds, count) = (number("WAKEUPS_ROUNDS", 4), number("WAKEUPS_CLIENTS", 512));
    let Some(world) = world(&[]) else { return };
    let accounts = world.accounts(count);
    for _ in 0..rounds {
        let mut crowd = Crowd::new();
        let deadline = Instant::now() + PATIENCE;
        for n in 1..=count {
            crowd.join(Client::connect(world.server.address(), &accounts.token(n), None), deadline);
        }
        while !crowd.clients.iter().all(|client| client.has_head) {
            crowd.turn(deadline);
        }
        // A second later by any timer would do for a person, not for this test: each gets one message, published once.
        let mut redis = world.redis.client();
        let commands: Vec<u8> = (1..=count)
            .flat_map(|n| encode(&["PUBLISH", &accounts.home(n), &text_message("update", &numbered(0))]))
            .collect();
        redis.send(&commands);
        for _ in 0..count {
            assert_eq!(redis.reply().unwrap().integer(), 1, "the server has confirmed the subscription");
        }
        while !crowd.clients.iter().all(|client| client.got == 1) {
            crowd.turn(deadline);
        }
        drop(crowd);
        world.until_empty();
    }
}

fn numbered(n: u64) -> String {
    format!(r#"{{"id":"{}"}}"#, BASE + n)
}

#[test]
fn subscriptions_and_releases_in_bursts_complete() {
    let variables =
        [("MAX_SUBSCRIPTIONS", "600"), ("SUBSCRIBE_BURST", "1000000"), ("CLIENT_MESSAGE_BURST", "1000000")];
    let Some(world) = world(&variables) else { return };
    let viewer = world.viewer("read");
    let mut clients: Vec<Ws> =
        (0..8).map(|_| Ws::open(&world.server, "/api/v1/streaming", &viewer.token)).collect();
    for burst in [1, 63, 64, 65, 128, 500, 7] {
        for kind in ["subscribe", "unsubscribe"] {
            for (n, client) in clients.iter_mut().enumerate() {
                for tag in 0..burst {
                    client
                        .send_json(&json!({"type": kind, "stream": "hashtag", "tag": format!("c{n}t{tag}")}));
                }
            }
            let expected = if kind == "subscribe" { burst * clients.len() } else { 0 };
            wait_until(&format!("{kind} in bursts of {burst} has reached Redis"), PATIENCE, || {
                let names = world.redis.channels();
                names.iter().filter(|name| name.starts_with("timeline:hashtag:")).count() == expected
            });
        }
    }
}

#[test]
fn a_full_budget_frees_itself_and_stalled_bytes_on_another_reactor_do_not_stop_it() {
    let Some(world) = world(&[("BACKPRESSURE_HIGH_BYTES", "1048576"), ("SLOW_CLIENT_GRACE", "0.2")]) else {
        return;
    };
    // Newcomers go to the reactor with fewer clients in turn: of each pair one is here and one there.
    let stalled: Vec<_> = (0..2).map(|_| world.viewer("read")).collect();
    let _unread: Vec<Connection> = stalled
        .iter()
        .map(|viewer| {
            let mut connection = Connection::narrow(world.server.address());
            let head = support::ws::upgrade(
                "/api/v1/streaming?stream=user",
                &[("Authorization", viewer.bearer().as_str())],
            );
            connection.send(head.as_bytes());
            world.redis.until_subscribed(&viewer.user_channels());
            connection
        })
        .collect();
    let readers: Vec<_> = (0..2).map(|_| world.viewer("read")).collect();
    let mut crowd = Crowd::new();
    let deadline = Instant::now() + PATIENCE;
    for viewer in &readers {
        crowd.join(Client::connect(world.server.address(), &viewer.token, None), deadline);
    }
    while !crowd.clients.iter().all(|client| client.has_head) {
        crowd.turn(deadline);
    }
    let filler = "x".repeat(8 << 10);
    let mut redis = world.redis.client();
    // Nearly the budget goes to the first stalled client, then the flood to the readers of both reactors, then to the
    // second: wherever the old bytes lie, everything published arrives.
    let count = 400;
    for n in 0..count {
        let text = format!(r#"{{"id":"{}","content":"{filler}"}}"#, BASE + n);
        let mut commands = Vec::new();
        if n < 110 {
            commands.extend(encode(&["PUBLISH", &stalled[0].home(), &text_message("update", &text)]));
        } else if n > 200 {
            commands.extend(encode(&["PUBLISH", &stalled[1].home(), &text_message("update", &text)]));
        }
        for viewer in &readers {
            commands.extend(encode(&["PUBLISH", &viewer.home(), &text_message("update", &text)]));
        }
        redis.send(&commands);
        for _ in 0..commands.iter().filter(|byte| **byte == b'*').count() {
            redis.reply().unwrap();
        }
        crowd.turn(deadline);
    }
    while !crowd.clients.iter().all(|client| client.got == count) {
        crowd.turn(deadline);
    }
}

#[test]
fn redis_lost_and_regained_serves_newcomers_at_once() {
    let Some(mut world) = world(&[("GAP_CLOSE_SPREAD", "0")]) else { return };
    let viewer = world.viewer("read");
    for _ in 0..3 {
        let mut ws = Ws::open(&world.server, "/api/v1/streaming?stream=user", &viewer.token);
        let port = world.redis.port;
        // The test's own connection ends with the server's process.
        let _ = world.redis.client().try_command(&["SHUTDOWN", "NOSAVE"]);
        wait_until("redis-server has ended", PATIENCE, || world.redis.service.is_gone());
        world.redis = Redis::start_on(Some(port), &[]).unwrap();
        assert_eq!(ws.until_close().map(|close| u16::from(close.code)), Some(1012));
        let mut ws = Ws::open(&world.server, "/api/v1/streaming?stream=user", &viewer.token);
        assert_eq!(world.publish(&viewer.home(), &text_message("delete", "7")), 1);
        ws.expect_event(&json!(["user"]), "delete", "7");
    }
}

#[test]
fn postgresql_lost_and_regained_serves_newcomers_and_public_statuses_at_once() {
    let Some(redis) = Redis::start() else { return support::left_out("needs redis-server") };
    let Some(mut postgres) = support::postgres::Postgres::start() else {
        return support::left_out("needs postgresql");
    };
    let database = postgres.own_database();
    let name = database.name.clone();
    let mut env = support::world::environment(&redis, &postgres.url(&name));
    env.extend(NO_TIMERS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    env.insert("AUDIENCE_TIMEOUT".into(), "3600".into());
    let db = std::sync::Arc::new(database);
    let world = World { server: Server::start(&env), env, redis, db };
    let viewer = world.viewer("read");
    for _ in 0..2 {
        let mut sse = Sse::open(&world.server, PUBLIC, &viewer.token);
        let publish = || {
            let post = status(fresh_id(), fresh_id());
            assert_eq!(world.publish(CHANNEL, &message("update", &post)), 1);
            with_filtered(&post, "[]")
        };
        let first = publish();
        sse.expect("update", &first);
        postgres.stop(false);
        let held = publish();
        wait_until("the loss of PostgreSQL shows", PATIENCE, || world.server.get("/ready").status() == 503);
        postgres.start_again();
        sse.expect("update", &held);
        wait_until("the return of PostgreSQL shows", PATIENCE, || world.server.get("/ready").status() == 200);
        let later = publish();
        sse.expect("update", &later);
    }
}

#[test]
fn changed_filters_hold_from_the_next_status_on() {
    let Some(world) = world(&[]) else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, PUBLIC, &viewer.token);
    for round in 0..5 {
        let word = format!("word{round}");
        let sql = "INSERT INTO custom_filters (account_id, phrase, context, action)
            VALUES ($1, $2, '{public}', 0) RETURNING id";
        let id = world.db.id(sql, &[&(viewer.account as i64), &word]);
        world.db.rows(
            "INSERT INTO custom_filter_keywords (custom_filter_id, keyword, whole_word) VALUES ($1, $2, true)",
            &[&id, &word],
        );
        let changed = r#"{"event":"filters_changed"}"#;
        assert_eq!(world.publish(&format!("timeline:system:{}", viewer.account), changed), 1);
        let mut post = status(fresh_id(), fresh_id());
        post["content"] = json!(format!("<p>{word}</p>"));
        assert_eq!(world.publish(CHANNEL, &message("update", &post)), 1);
        let event: serde_json::Value = serde_json::from_str(&sse.next().data).unwrap();
        assert_eq!(event["filtered"][0]["keyword_matches"], json!([word]), "{event}");
    }
}

#[test]
fn a_full_door_lets_newcomers_in_when_clients_of_reactors_leave() {
    if !ours_alone() {
        return;
    }
    // 100 descriptors are kept, so 70 sockets may be open: clients, and at least 32 connections at the door.
    let Some(mut world) = world(&[("LOG_LEVEL", "debug")]) else { return };
    world.server = Server::start_with_descriptors(170, &world.env);
    let viewer = world.viewer("read");
    let clients: Vec<Sse> =
        (0..36).map(|_| Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token)).collect();
    // Redis is stopped, so these keep their places at the door: 34 are left of 70.
    support::machine::signal(world.redis.service.pid(), "STOP");
    let others: Vec<_> = (0..34).map(|_| world.viewer("read")).collect();
    let held: Vec<Connection> = others
        .iter()
        .map(|viewer| {
            let mut connection = world.server.connect();
            let head = [("Authorization", viewer.bearer())];
            let head: Vec<_> = head.iter().map(|(name, value)| (*name, value.as_str())).collect();
            connection.send(support::http::request("GET", "/api/v1/streaming/user", &head).as_bytes());
            connection
        })
        .collect();
    // Whoever is in the backlog gets no answer before there is room.
    let mut newcomer = world.server.connect();
    newcomer.send(support::http::request("GET", "/api/v1/streaming/health", &[]).as_bytes());
    // All of them wait for Redis, so nothing happens at the door by itself any more.
    wait_until("everybody's token is looked up", PATIENCE, || {
        world.server.output().matches("identified").count() == 36 + 34
    });
    until_asleep(&world.server);
    drop(clients);
    newcomer.patience(PATIENCE);
    assert_eq!(newcomer.response("GET").status(), 200);
    support::machine::signal(world.redis.service.pid(), "CONT");
    drop(held);
}

/// Waits until the server's main thread, which the door is on, has slept for longer than `DOOR_GRACE`, the door's own
/// deadline for connections without a request.
fn until_asleep(server: &Server) {
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{0}/task/{0}/status", server.pid())).unwrap();
        status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned()
    };
    let (mut last, mut since) = (switches(), Instant::now());
    wait_until("the door's thread sleeps", PATIENCE, || {
        let now = switches();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_millis(1500)
    });
}
