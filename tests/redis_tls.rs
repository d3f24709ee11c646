//! TLS to Redis: a real server with certificates of all kinds; whom we believe, what is said where we do not,
//! and that messages pass as they do without.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::certificates::{Authority, Pair, path};
use support::machine::{PATIENCE, free_port};
use support::posts::text_message;
use support::redis::Redis;
use support::{Sse, World, Ws, left_out, ours_alone, wait_until};

/// A Redis with a TLS port besides the plain one, and that port.
fn redis(authority: &Authority, pair: &Pair, clients: &str) -> Option<(Redis, u16)> {
    let port = free_port();
    let root = authority.root();
    let port_text = port.to_string();
    let settings = [
        ["--tls-port", &port_text],
        ["--tls-cert-file", path(&pair.cert)],
        ["--tls-key-file", path(&pair.key)],
        ["--tls-ca-cert-file", path(&root)],
        ["--tls-auth-clients", clients],
    ];
    let redis = Redis::start_on(None, settings.as_flattened());
    if redis.is_none() {
        left_out("needs redis-server");
    }
    Some((redis?, port))
}

fn world(redis: Redis, url: &str, variables: &[(&str, &str)]) -> Option<World> {
    let mut all = vec![("REDIS_URL", url), ("GAP_CLOSE_SPREAD", "0.1")];
    all.extend(variables);
    World::with_redis(redis, &all)
}

fn until_ready(world: &World) {
    wait_until("it is ready", PATIENCE, || world.server.get("/ready").status() == 200);
}

fn numbered(n: usize, padding: &str) -> String {
    text_message("update", &json!({ "id": n.to_string(), "content": padding }).to_string())
}

#[track_caller]
fn expect_number(ws: &mut Ws, n: usize) {
    let payload: Value = serde_json::from_str(ws.next_json()["payload"].as_str().unwrap()).unwrap();
    assert_eq!(payload["id"], json!(n.to_string()));
}

#[test]
fn messages_pass_and_a_lost_connection_comes_back() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("redis", "redis", &["DNS:localhost"]);
    let Some((redis, port)) = redis(&authority, &pair, "no") else { return };
    let (url, root) = (format!("rediss://localhost:{port}"), authority.root());
    let variables = [("NODE_EXTRA_CA_CERTS", path(&root)), ("BACKPRESSURE_HIGH_BYTES", "400000")];
    let Some(world) = world(redis, &url, &variables) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    world.publish(&viewer.home(), &text_message("update", r#"{"id":"0"}"#));
    expect_number(&mut ws, 0);
    sse.expect("update", r#"{"id":"0"}"#);
    drop(sse);
    let ttl = world.redis.ttl(&format!("subscribed:{}", viewer.home()));
    assert!((1000..=1080).contains(&ttl), "the command connection works too: {ttl}");

    // Longer than any buffer on the way, and more than the budget: reading pauses and goes on many times.
    let (home, padding) = (viewer.home(), "x".repeat(40_000));
    let mut publisher = world.redis.client();
    let to = home.clone();
    let publishing = std::thread::spawn(move || {
        publisher.publish(&to, &numbered(1, &"y".repeat(3 << 20)));
        (2..200).for_each(|n| assert!(publisher.publish(&to, &numbered(n, &padding)) > 0));
    });
    (1..200).for_each(|n| expect_number(&mut ws, n));
    publishing.join().unwrap();

    world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(ws.until_close().map(|frame| u16::from(frame.code)), Some(1012));
    until_ready(&world);
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    world.publish(&home, &numbered(7, ""));
    expect_number(&mut ws, 7);
}

#[test]
fn many_subscriptions_are_written_and_confirmed() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("redis", "localhost", &[]);
    let Some((redis, port)) = redis(&authority, &pair, "no") else { return };
    let (url, root) = (format!("rediss://localhost:{port}"), authority.root());
    let Some(world) = world(redis, &url, &[("SSL_CERT_FILE", path(&root))]) else { return };
    let viewer = world.viewer("read");
    let mut sockets: Vec<Ws> = (0..10).map(|_| Ws::open(&world.server, "/", &viewer.token)).collect();
    for (n, ws) in sockets.iter_mut().enumerate() {
        for tag in 0..150 {
            let tag = format!("{:0>150}x{n}", tag);
            ws.send_json(&json!({ "type": "subscribe", "stream": "hashtag", "tag": tag }));
        }
    }
    wait_until("all tags are subscribed to", PATIENCE * 2, || {
        world.redis.channels().iter().filter(|name| name.starts_with("timeline:hashtag:")).count() == 1500
    });
}

/// What a server says that cannot connect, and that it serves nobody.
fn refused(redis: Redis, url: &str, variables: &[(&str, &str)], expected: &[&str]) -> Option<World> {
    let world = world(redis, url, variables)?;
    for text in expected {
        world.server.until_output(text);
    }
    assert_eq!(world.server.get("/ready").status(), 503);
    Some(world)
}

#[test]
fn whom_we_do_not_know_is_refused_with_a_reason() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let own = authority.self_signed("own", "localhost");
    let Some((redis, port)) = redis(&authority, &own, "no") else { return };
    let url = format!("rediss://localhost:{port}");
    let Some(world) = refused(redis, &url, &[], &["self-signed", "NODE_EXTRA_CA_CERTS"]) else { return };
    // The same server as the operator may let it through: by naming it, or by believing anyone.
    for variables in [("NODE_EXTRA_CA_CERTS", path(&own.cert)), ("NODE_TLS_REJECT_UNAUTHORIZED", "0")] {
        let mut env = world.env.clone();
        env.insert(variables.0.into(), variables.1.into());
        let server = support::Server::start(&env);
        wait_until("it is ready", PATIENCE, || server.get("/ready").status() == 200);
    }
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("redis", "redis", &["DNS:localhost"]);
    let Some((redis, port)) = redis(&authority, &pair, "no") else { return };
    refused(redis, &format!("rediss://localhost:{port}"), &[], &["not trusted", "NODE_EXTRA_CA_CERTS"]);
}

#[test]
fn a_certificate_for_another_host_is_refused() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("redis", "localhost", &["DNS:redis.example"]);
    let root = authority.root();
    let Some((redis, port)) = redis(&authority, &pair, "no") else { return };
    let roots = [("NODE_EXTRA_CA_CERTS", path(&root))];
    refused(redis, &format!("rediss://localhost:{port}"), &roots, &["redis.example", "host name"]);
}

#[test]
fn a_port_of_the_other_kind_is_told() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("redis", "redis", &["DNS:localhost"]);
    let Some((redis, port)) = redis(&authority, &pair, "no") else { return };
    let plain_port = redis.port;
    let world = refused(redis, &format!("rediss://localhost:{plain_port}"), &[], &["TLS", "check"]);
    let Some(world) = world else { return };
    let mut env = world.env.clone();
    env.insert("REDIS_URL".into(), format!("redis://localhost:{port}"));
    let server = support::Server::start(&env);
    server.until_output(&format!("localhost:{port}"));
    server.until_output("rediss://");
}

#[test]
fn a_server_that_wants_client_certificates_is_told() {
    if !ours_alone() {
        return;
    }
    let Some(authority) = Authority::new() else { return };
    let pair = authority.issue("redis", "redis", &["DNS:localhost"]);
    let root = authority.root();
    let Some((redis, port)) = redis(&authority, &pair, "yes") else { return };
    let roots = [("NODE_EXTRA_CA_CERTS", path(&root))];
    refused(redis, &format!("rediss://localhost:{port}"), &roots, &["certificate from its clients"]);
}
