//! Redis behind Sentinel: three sentinels, a master and a replica, and each way in which the master can change.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use support::certificates::{Authority, path};
use support::machine::{PATIENCE, free_port, signal, wait_for};
use support::posts::text_message;
use support::redis::Redis;
use support::sentinel::{Cluster, LONG, MASTER, Sentinel};
use support::server::Env;
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
    ws.probe(redis, &viewer.user_channels());
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

/// What a server without PostgreSQL needs that knows that sentinel.
fn environment(port: u16) -> Env {
    let pairs = [
        ("BIND", "127.0.0.1"),
        ("PORT", "0"),
        ("REDIS_SENTINELS", &*format!("127.0.0.1:{port}")),
        ("REDIS_SENTINEL_MASTER", MASTER),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn a_master_that_is_announced_while_the_old_one_is_connected_to_is_followed() {
    if !ours_alone() {
        return;
    }
    let (Some(old), Some(new)) = (Redis::start(), Redis::start()) else { return };
    // The old one is slow to answer, and believes to be the master still.
    signal(old.service.pid(), "STOP");
    let sentinel = Named::start(old.port, 1);
    let server = support::Server::start_ours(&["--no-database"], &environment(sentinel.port));
    wait_until("it asked who the master is, and listens", PATIENCE, || {
        sentinel.answers.load(Ordering::SeqCst) >= 1 && sentinel.heard() == 1
    });
    *sentinel.master.lock().unwrap() = (new.port, 2);
    let text = format!("{MASTER} 127.0.0.1 {} 127.0.0.1 {}", old.port, new.port);
    let message = format!("*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n${}\r\n{text}\r\n", text.len());
    // What follows it is no answer: the server listens anew, and that shows that it has read the announcement.
    sentinel.listeners.lock().unwrap()[0].write_all(format!("{message}?\r\n").as_bytes()).unwrap();
    wait_until("it has heard the announcement", PATIENCE, || sentinel.heard() == 2);
    signal(old.service.pid(), "CONT");
    server.until_output(&format!("Redis at 127.0.0.1:{} (master {MASTER}) is", new.port));
}

/// A stand-in for a sentinel: names the master of the moment, and lets go of those who listen when it is told to.
struct Named {
    port: u16,
    master: Arc<Mutex<(u16, u64)>>,
    listeners: Arc<Mutex<Vec<TcpStream>>>,
    answers: Arc<AtomicUsize>,
}

impl Named {
    fn start(master: u16, epoch: u64) -> Named {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let master = Arc::new(Mutex::new((master, epoch)));
        let named = Named { port, master, listeners: Arc::default(), answers: Arc::default() };
        let (master, listeners, answers) =
            (Arc::clone(&named.master), Arc::clone(&named.listeners), Arc::clone(&named.answers));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (master, listeners) = (Arc::clone(&master), Arc::clone(&listeners));
                let answers = Arc::clone(&answers);
                std::thread::spawn(move || converse(stream, &master, &listeners, &answers));
            }
        });
        named
    }

    fn heard(&self) -> usize {
        self.listeners.lock().unwrap().len()
    }

    /// Another master, which nobody hears announced, and the end of whoever listened.
    fn switch_unheard(&self, master: u16, epoch: u64) {
        *self.master.lock().unwrap() = (master, epoch);
        self.listeners.lock().unwrap().clear();
    }
}

fn converse(
    mut stream: TcpStream,
    master: &Mutex<(u16, u64)>,
    listeners: &Mutex<Vec<TcpStream>>,
    answers: &AtomicUsize,
) {
    let mut said = Vec::new();
    let mut part = [0; 512];
    while let Ok(length @ 1..) = stream.read(&mut part) {
        said.extend_from_slice(&part[..length]);
        let text = String::from_utf8_lossy(&said).into_owned();
        if !text.ends_with("tidegate\r\n") && !text.ends_with("mymaster\r\n") && !text.ends_with("master\r\n")
        {
            continue;
        }
        said.clear();
        let (port, epoch) = *master.lock().unwrap();
        let (port, epoch) = (port.to_string(), epoch.to_string());
        let mut answer = String::new();
        if text.contains("SETNAME") {
            answer += "+OK\r\n";
        }
        if text.contains("get-master-addr-by-name") {
            answer += &format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len());
            answer += &format!("*2\r\n$12\r\nconfig-epoch\r\n${}\r\n{epoch}\r\n", epoch.len());
            answers.fetch_add(1, Ordering::SeqCst);
        }
        if text.contains("SUBSCRIBE") {
            answer += "*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n";
            listeners.lock().unwrap().push(stream.try_clone().unwrap());
            stream.write_all(answer.as_bytes()).unwrap();
            // The list's end of it is the last: dropped there, it is closed.
            return;
        }
        stream.write_all(answer.as_bytes()).unwrap();
    }
}

#[test]
fn switch_that_nobody_heard_announced_is_followed_and_an_old_masters_name_is_not() {
    if !ours_alone() {
        return;
    }
    let (Some(old), Some(new)) = (Redis::start(), Redis::start()) else { return };
    let sentinel = Named::start(old.port, 5);
    let server = support::Server::start_ours(&["--no-database"], &environment(sentinel.port));
    server.until_output(&format!("Redis at 127.0.0.1:{} (master {MASTER}) is", old.port));
    wait_until("it listens", PATIENCE, || sentinel.heard() == 1);
    // A sentinel that was cut off names who was the master before.
    let asked = sentinel.answers.load(Ordering::SeqCst);
    sentinel.switch_unheard(new.port, 4);
    wait_until("it listens and has asked again", PATIENCE, || {
        sentinel.heard() == 1 && sentinel.answers.load(Ordering::SeqCst) > asked
    });
    wait_until("it is ready", PATIENCE, || server.get("/ready").status() == 200);
    assert!(!server.output().contains("is lost"), "{}", server.output());
    sentinel.switch_unheard(new.port, 6);
    server.until_output(&format!("Redis at 127.0.0.1:{} (master {MASTER}) is back", new.port));
}

#[test]
fn a_sentinel_that_lets_nobody_listen_is_told_once() {
    if !ours_alone() {
        return;
    }
    let Some(redis) = Redis::start() else { return };
    let port = free_port();
    let settings = format!(
        "port {port}\nuser default on nopass ~* resetchannels +@all\nsentinel monitor {MASTER} 127.0.0.1 {} 1",
        redis.port
    );
    let Some(sentinel) = Sentinel::start(port, &settings, None) else { return };
    wait_until("the sentinel answers", PATIENCE, || sentinel.ask(&["PING"]).is_some());
    let connections = || {
        let stats = sentinel.ask(&["INFO", "stats"]).unwrap().text();
        let count = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    let server = support::Server::start_ours(&["--no-database"], &environment(port));
    server.until_output(&format!("(master {MASTER}) is connected"));
    let told = format!("the sentinel at 127.0.0.1:{port} refuses to be listened to");
    server.until_output(&told);
    let (before, mut looks) = (connections(), 0);
    wait_until("it has tried again", PATIENCE, || {
        looks += 1;
        // Each look is a connection, too.
        connections() > before + looks + 2
    });
    assert_eq!(server.output().matches(&told).count(), 1, "{}", server.output());
}

/// A sentinel that is cut off from the others goes on naming the master that it knew.
#[test]
fn sentinels_that_name_no_master_do_not_keep_us_from_asking_the_others() {
    if !ours_alone() {
        return;
    }
    let Some(redis) = Redis::start() else { return };
    let Some(replica) = Redis::start_on(None, &["--replicaof", "127.0.0.1", &redis.port.to_string()]) else {
        return;
    };
    // Too few to agree on anything.
    let start = |named: u16| {
        let port = free_port();
        let settings = format!("port {port}\nsentinel monitor {MASTER} 127.0.0.1 {named} 9");
        let sentinel = Sentinel::start(port, &settings, None)?;
        wait_until("the sentinel answers", PATIENCE, || sentinel.ask(&["PING"]).is_some());
        Some(sentinel)
    };
    let sentinels = [free_port(), replica.port, redis.port].map(start);
    let list: Vec<String> =
        sentinels.iter().flatten().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    let list = list.join(",");
    let variables = [("REDIS_URL", ""), ("REDIS_SENTINELS", &*list), ("REDIS_SENTINEL_MASTER", MASTER)];
    let Some(world) = World::with_redis(redis, &variables) else { return };
    let viewer = world.viewer("read");
    is_served_by(&world, &viewer, &world.redis);
    let output = world.server.output();
    assert!(output.contains("is named as the master, and is a replica"), "{output}");
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
