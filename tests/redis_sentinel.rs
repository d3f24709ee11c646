//! Redis behind Sentinel: three sentinels, a master and a replica, and each way in which the master can change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::json;
use support::certificates::{Authority, path};
use support::machine::{PATIENCE, free_port, signal, wait_for};
use support::posts::text_message;
use support::redis::Redis;
use support::sentinel::{Cluster, LONG, MASTER, Sentinel};
use support::{Viewer, World, Ws, ours_alone, wait_until};

/// A world whose server knows the sentinels only; its `redis` is the master, and the rest.
fn world(cluster: Cluster, more: &[(&str, &str)]) -> Option<(World, Redis, Vec<Sentinel>)> {
    let found = cluster.variables();
    let mut variables: Vec<(&str, &str)> = found.iter().map(|(name, value)| (*name, &**value)).collect();
    variables.extend(more);
    Some((World::with_redis(cluster.master, &variables)?, cluster.replica, cluster.sentinels))
}

fn is_served_by(world: &World, viewer: &Viewer, redis: &Redis) -> Ws {
    let headers = [("Authorization", &*viewer.bearer())];
    let path = "/api/v1/streaming?stream=user";
    let mut ws =
        wait_for("a newcomer gets in", LONG, || Ws::try_open(world.server.address(), path, &headers).ok());
    ws.until_live(redis, &viewer.user_channels());
    redis.publish(&viewer.home(), &text_message("update", r#"{"id":"1"}"#));
    ws.expect_event(&json!(["user"]), "update", r#"{"id":"1"}"#);
    let ttl = redis.ttl(&format!("subscribed:{}", viewer.home()));
    assert!((1000..=1080).contains(&ttl), "the presence key is there: {ttl}");
    ws
}

/// The old master's client is told, and newcomers are served by the new one.
#[track_caller]
fn moves(world: &World, viewer: &Viewer, mut ws: Ws, redis: &Redis) {
    ws.patience(LONG);
    assert_eq!(ws.until_close().map(|frame| u16::from(frame.code)), Some(1012));
    // A replica that is made the master drops its clients.
    redis.reconnect();
    is_served_by(world, viewer, redis);
    let port = redis.port;
    world.server.until_output(&format!("Redis at 127.0.0.1:{port} (master {MASTER}) is back"));
}

#[test]
fn a_killed_master_is_followed_by_its_replica_even_with_a_sentinel_dead() {
    if !ours_alone() {
        return;
    }
    let Some(cluster) = Cluster::start() else { return };
    let Some((world, replica, sentinels)) = world(cluster, &[]) else { return };
    let viewer = world.viewer("read");
    let ws = is_served_by(&world, &viewer, &world.redis);
    let list = world.redis.command(&["CLIENT", "LIST"]).text();
    let ours: Vec<&str> = list.lines().filter(|line| line.contains("name=tidegate")).collect();
    assert!(ours.len() == 2 && ours.iter().all(|line| line.contains("user=streaming")), "{list}");
    assert_eq!(world.server.get("/ready").status(), 200);
    sentinels[0].kill();
    signal(world.redis.service.pid(), "KILL");
    moves(&world, &viewer, ws, &replica);
    assert_eq!(world.server.get("/ready").status(), 200);
}

#[test]
fn a_master_that_hangs_is_left_when_the_sentinels_announce_another() {
    if !ours_alone() {
        return;
    }
    let Some(cluster) = Cluster::start() else { return };
    // Without an announcement nobody would notice for a quarter of an hour.
    let Some((world, replica, _sentinels)) = world(cluster, &[("REDIS_PING_SECONDS", "600")]) else { return };
    let viewer = world.viewer("read");
    let ws = is_served_by(&world, &viewer, &world.redis);
    signal(world.redis.service.pid(), "STOP");
    moves(&world, &viewer, ws, &replica);
    world.server.until_output("the sentinels have made another server the master");
}

#[test]
fn a_master_that_steps_down_is_left() {
    if !ours_alone() {
        return;
    }
    let Some(cluster) = Cluster::start() else { return };
    let Some((world, replica, sentinels)) = world(cluster, &[]) else { return };
    let viewer = world.viewer("read");
    let ws = is_served_by(&world, &viewer, &world.redis);
    sentinels[1].ask(&["SENTINEL", "FAILOVER", MASTER]);
    moves(&world, &viewer, ws, &replica);
}

#[test]
fn what_the_sentinels_refuse_is_told() {
    if !ours_alone() {
        return;
    }
    let Some(redis) = Redis::start() else { return };
    let port = free_port();
    let settings = format!(
        "port {port}\nuser default on >other ~* &* +@all\nsentinel monitor {MASTER} 127.0.0.1 {} 1",
        redis.port
    );
    let Some(sentinel) = Sentinel::start(port, &settings, Some(("default", "other"))) else { return };
    wait_until("the sentinel answers", PATIENCE, || sentinel.ask(&["PING"]).is_some());
    let list = format!("127.0.0.1:{port}");
    let variables = [
        ("REDIS_URL", ""),
        ("REDIS_SENTINELS", &*list),
        ("REDIS_SENTINEL_MASTER", "another"),
        ("REDIS_SENTINEL_PASSWORD", "wrong"),
    ];
    let Some(world) = World::with_redis(redis, &variables) else { return };
    world.server.until_output("check REDIS_SENTINEL_USERNAME and REDIS_SENTINEL_PASSWORD");
    assert!(!world.server.output().contains("wrong"), "{}", world.server.output());
    assert_eq!(world.server.get("/ready").status(), 503);
    let mut env = world.env.clone();
    env.insert("REDIS_SENTINEL_PASSWORD".into(), "other".into());
    let server = support::Server::start(&env);
    server.until_output("knows no master of that name");
    server.until_output("REDIS_SENTINEL_MASTER");
}

#[test]
fn sentinels_and_master_are_reached_over_tls() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("redis", "redis", &["IP:127.0.0.1"]);
    let (root, tls_port, port) = (authority.root(), free_port().to_string(), free_port());
    let (cert, key, ca) = (path(&pair.cert), path(&pair.key), path(&root));
    let settings = [
        ["--tls-port", &tls_port],
        ["--tls-cert-file", cert],
        ["--tls-key-file", key],
        ["--tls-ca-cert-file", ca],
        ["--tls-auth-clients", "no"],
    ];
    let Some(redis) = Redis::start_on(None, settings.as_flattened()) else { return };
    let settings = format!(
        "port 0\ntls-port {port}\ntls-cert-file {cert}\ntls-key-file {key}\ntls-ca-cert-file {ca}\n\
         tls-auth-clients no\ntls-replication yes\nsentinel monitor {MASTER} 127.0.0.1 {tls_port} 1"
    );
    let Some(sentinel) = Sentinel::start(port, &settings, None) else { return };
    wait_until("the sentinel watches", PATIENCE, || sentinel.log().contains("+monitor"));
    let list = format!("127.0.0.1:{port}");
    let variables = [
        ("REDIS_URL", ""),
        ("REDIS_SENTINELS", &*list),
        ("REDIS_SENTINEL_MASTER", MASTER),
        ("REDIS_SENTINEL_TLS", "true"),
        ("NODE_EXTRA_CA_CERTS", ca),
    ];
    let Some(world) = World::with_redis(redis, &variables) else { return };
    let viewer = world.viewer("read");
    is_served_by(&world, &viewer, &world.redis);
}
