//! Ready means served: whatever makes newcomers fail shows on `/ready` with its reason, though no newcomer comes, and
//! those who come are refused at once. And what a router forgot is found in time.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::http::{Head, request};
use support::machine::{PATIENCE, wait_for};
use support::numbers::numbered;
use support::proxy::Proxy;
use support::redis::USER;
use support::server::{Env, Server};
use support::{Viewer, World, Ws, ours_alone, wait_until};

/// `DOOR_TIMEOUT` where newcomers are not to wait for it.
const LONG: Duration = Duration::from_secs(60);

fn ask(server: &Server, viewer: &Viewer, path: &str) -> Head {
    let mut connection = server.connect();
    connection.patience(LONG * 2);
    connection.send(request("GET", path, &[("Authorization", &viewer.bearer())]).as_bytes());
    connection.head()
}

/// Refused with 503 and a word when to come back, long before `DOOR_TIMEOUT`.
#[track_caller]
fn is_refused_at_once(world: &World, viewer: &Viewer) {
    let begun = Instant::now();
    let head = ask(&world.server, viewer, "/api/v1/streaming/user");
    assert_eq!(head.status, 503, "{head:?}");
    assert!(head.header("Retry-After").is_some(), "{head:?}");
    assert!(begun.elapsed() < LONG / 3, "refused after {:?}", begun.elapsed());
}

#[track_caller]
fn until_ready(server: &Server) {
    wait_until("it is ready", PATIENCE, || server.get("/ready").status() == 200);
}

#[track_caller]
fn until_not_ready(server: &Server, reason: &str) {
    wait_until(&format!("/ready says {reason:?}"), PATIENCE, || {
        let answer = server.get("/ready");
        answer.status() == 503 && answer.text().contains(reason)
    });
}

#[test]
fn what_redis_refuses_shows_before_a_newcomer_comes_and_is_not_waited_for() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("REDIS_PING_SECONDS", "0.3")]) else { return };
    let viewer = world.viewer("read");
    let acl = |rule: &[&str]| drop(world.redis.command(&[&["ACL", "SETUSER", USER], rule].concat()));
    let set = |name: &str, value: &str| drop(world.redis.command(&["CONFIG", "SET", name, value]));
    type Act<'a> = Box<dyn Fn() + 'a>;
    let cases: [(&str, Act<'_>, Act<'_>); 4] = [
        ("OOM", Box::new(|| set("maxmemory", "1")), Box::new(|| set("maxmemory", "0"))),
        ("NOPERM", Box::new(|| acl(&["-set"])), Box::new(|| acl(&["+set"]))),
        (
            "READONLY",
            Box::new(|| drop(world.redis.command(&["REPLICAOF", "127.0.0.1", "1"]))),
            Box::new(|| drop(world.redis.command(&["REPLICAOF", "NO", "ONE"]))),
        ),
        ("NOPERM", Box::new(|| acl(&["resetchannels"])), Box::new(|| acl(&["&timeline:*"]))),
    ];
    for (code, break_it, mend_it) in cases {
        until_ready(&world.server);
        let mut ws = Ws::open(&world.server, "/", &viewer.token);
        break_it();
        until_not_ready(&world.server, code);
        assert_eq!(world.server.metric("tidegate_ready", &[]), Some(0.0), "{code}");
        assert!(world.server.get("/status").text().contains("NOT READY: Redis refuses"), "{code}");
        is_refused_at_once(&world, &viewer);
        // The same by a message on an open WebSocket, unless Redis dropped everybody who was subscribed.
        if world.server.metric("tidegate_gaps_total", &[("cause", "connection_lost")]) == Some(0.0) {
            let begun = Instant::now();
            ws.send_json(&json!({"type": "subscribe", "stream": "user"}));
            ws.expect_error(503, "Redis refuses what this stream needs, try again later");
            assert!(begun.elapsed() < LONG / 3);
        }
        mend_it();
        until_ready(&world.server);
        assert_eq!(ask(&world.server, &viewer, "/api/v1/streaming/user").status, 200, "{code}");
    }
    let output = world.server.output();
    assert!(output.contains("Redis takes presence keys again"), "{output}");
    assert!(world.server.metric("tidegate_presence_failures_total", &[]).unwrap() >= 3.0);
    assert!(!world.server.get("/ready").text().contains("127.0.0.1"));
}

#[test]
fn keys_that_cannot_be_set_again_are_a_gap_before_they_end() {
    if !ours_alone() {
        return;
    }
    let variables = [
        ("PRESENCE_REFRESH_SECONDS", "4"),
        ("REDIS_AWAY_CLOSE", "0.2"),
        ("GAP_CLOSE_SPREAD", "0"),
        ("DOOR_TIMEOUT", "10"),
    ];
    let Some(world) = World::with(&variables) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    world.redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    world.server.until_output("Redis refuses to set presence keys");
    wait_until("the metric counts the time", LONG, || {
        world.server.metric("tidegate_presence_failing_seconds", &[]).unwrap() > 0.0
    });
    ws.patience(LONG);
    assert_eq!(ws.until_close().map(|frame| u16::from(frame.code)), Some(1012));
    assert_eq!(world.server.metric("tidegate_gaps_total", &[("cause", "presence_keys")]), Some(1.0));
    assert!(world.server.output().contains("presence keys could not be set for"));
    world.assert_conserved();
    let told = "Redis takes presence keys again";
    assert!(!world.server.output().contains(told), "{}", world.server.output());
    world.redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    world.server.until_output(told);
    until_ready(&world.server);
    let mut again = Ws::open(&world.server, "/?stream=user", &viewer.token);
    again.probe(&world.redis, &viewer.user_channels());
}

#[test]
fn what_postgresql_refuses_shows_before_a_newcomer_comes() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let viewer = world.viewer("read");
    for (table, columns) in [
        ("oauth_access_tokens", "id, token, scopes, resource_owner_id, created_at, expires_in, revoked_at"),
        ("lists", "id, account_id"),
    ] {
        until_ready(&world.server);
        world.db.run(&format!("REVOKE SELECT ({columns}) ON {table} FROM tidegate"));
        until_not_ready(&world.server, &format!("permission denied for table {table}"));
        if table != "lists" {
            is_refused_at_once(&world, &viewer);
        }
        world.db.run(&format!("GRANT SELECT ({columns}) ON {table} TO tidegate"));
        until_ready(&world.server);
        assert_eq!(ask(&world.server, &viewer, "/api/v1/streaming/user").status, 200);
    }
    // A wrong password is a refusal, too.
    let mut env: Env = world.env.clone();
    let url = env["DATABASE_URL"].replacen(support::postgres::PASSWORD, "wrong", 1);
    env.insert("DATABASE_URL".into(), url);
    let other = Server::start(&env);
    until_not_ready(&other, "PostgreSQL refuses the connection: check DB_USER");
    let begun = Instant::now();
    assert_eq!(ask(&other, &viewer, "/api/v1/streaming/user").status, 503);
    assert!(begun.elapsed() < LONG / 3, "{:?}", begun.elapsed());
}

/// A router between the server and both of its servers.
fn behind_routers() -> Option<(World, Proxy, Proxy)> {
    let mut proxies = None;
    // Nothing asks in time by itself whether the connections are still there.
    let variables = [("REDIS_PING_SECONDS", "600"), ("DOOR_TIMEOUT", "10"), ("PERIODIC_TIMERS", "false")];
    let world = World::custom(&[], &variables, |redis, env| {
        let to_redis = Proxy::to_port(redis.port);
        let redis_url = env["REDIS_URL"]
            .replace(&format!(":{}/", redis.port), &format!(":{}/", to_redis.address().port()));
        env.insert("REDIS_URL".into(), redis_url);
        let url = env["DATABASE_URL"].clone();
        let (rest, name) = url.rsplit_once('/').unwrap();
        let (rest, port) = rest.rsplit_once(':').unwrap();
        let to_postgres = Proxy::to_port(port.parse().unwrap());
        env.insert("DATABASE_URL".into(), format!("{rest}:{}/{name}", to_postgres.address().port()));
        proxies = Some((to_redis, to_postgres));
    })?;
    let (to_redis, to_postgres) = proxies?;
    Some((world, to_redis, to_postgres))
}

/// The command connection is forgotten.
fn forget_commands(world: &World, router: &Proxy) {
    let port = world.redis.command_port();
    assert_eq!(router.forget(|each| each == port), 1);
}

#[test]
fn newcomer_and_subscribe_message_are_served_though_idle_connections_were_forgotten() {
    if !ours_alone() {
        return;
    }
    let Some((world, to_redis, to_postgres)) = behind_routers() else { return };
    let (viewer, other) = (world.viewer("read"), world.viewer("read"));
    until_ready(&world.server);
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    ws.patience(LONG);

    forget_commands(&world, &to_redis);
    assert_eq!(ask(&world.server, &other, "/api/v1/streaming/user").status, 200, "Redis's was forgotten");

    forget_commands(&world, &to_redis);
    ws.send_json(&json!({"type": "subscribe", "stream": "hashtag", "tag": "cats"}));
    wait_until("the tag is subscribed to", LONG, || world.redis.has_subscriber("timeline:hashtag:cats"));
    wait_until("its key is set", LONG, || world.redis.ttl("subscribed:timeline:hashtag:cats") > 0);
    wait_until("the subscription is there", LONG, || {
        world.server.metric("connected_channels", &[("type", "websocket"), ("channel", "hashtag")])
            == Some(1.0)
    });
    world.publish("timeline:hashtag:cats", &numbered(7).replace("update", "delete"));
    ws.expect_event(&json!(["hashtag", "cats"]), "delete", r#"{"id":"7"}"#);

    let list = viewer.list();
    assert!(to_postgres.forget(|_| true) > 0);
    assert_eq!(
        ask(&world.server, &other, "/api/v1/streaming/user").status,
        200,
        "PostgreSQL's were forgotten"
    );
    assert!(to_postgres.forget(|_| true) > 0);
    ws.send_json(&json!({"type": "subscribe", "stream": "list", "list": list.to_string()}));
    let channel = format!("timeline:list:{list}");
    wait_until("the list is subscribed to", LONG, || {
        world.server.metric("connected_channels", &[("type", "websocket"), ("channel", "list")]) == Some(1.0)
    });
    world.publish(&channel, &numbered(8));
    ws.expect_event(&json!(["list", list.to_string()]), "update", r#"{"id":"8"}"#);
    wait_for("it is ready", LONG, || (world.server.get("/ready").status() == 200).then_some(()));
}

#[test]
fn forgotten_connection_is_found_before_a_newcomer_needs_it() {
    if !ours_alone() {
        return;
    }
    let mut proxy = None;
    let variables = [("REDIS_PING_SECONDS", "0.5"), ("DOOR_TIMEOUT", "10")];
    let world = World::custom(&[], &variables, |redis, env| {
        let router = Proxy::to_port(redis.port);
        let url =
            env["REDIS_URL"].replace(&format!(":{}/", redis.port), &format!(":{}/", router.address().port()));
        env.insert("REDIS_URL".into(), url);
        proxy = Some(router);
    });
    let (Some(world), Some(router)) = (world, proxy) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    forget_commands(&world, &router);
    until_not_ready(&world.server, "Redis does not answer");
    until_ready(&world.server);
}
