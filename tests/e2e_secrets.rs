//! Nothing secret comes out: a server that logs everything is led along every path on which it meets a token or a
//! password, and what it wrote and what its pages show is searched for them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::json;
use support::http::{Connection, request};
use support::machine::PATIENCE;
use support::posts::text_message;
use support::ws::{RawWs, upgrade};
use support::{Server, Sse, Viewer, World, Ws, left_out, ours_alone, pgbouncer, postgres, redis, wait_until};

const USER: &str = "/api/v1/streaming/user";

/// What must not be found.
struct Secrets(Vec<String>);

impl Secrets {
    fn new() -> Secrets {
        Secrets(vec![postgres::PASSWORD.into(), redis::PASSWORD.into()])
    }

    fn add(&mut self, secret: &str) -> String {
        assert!(secret.len() >= 20, "too short to be searched for: {secret}");
        self.0.push(secret.to_owned());
        secret.to_owned()
    }

    /// Not even half of one may be there.
    #[track_caller]
    fn assert_absent(&self, from: &str, text: &str) {
        for secret in &self.0 {
            let half = secret.len() / 2;
            for piece in [&secret[..half], &secret[half..]] {
                let found = text.lines().find(|line| line.contains(piece));
                assert!(found.is_none(), "{secret} in {from}: {}", found.unwrap_or_default());
            }
        }
    }
}

/// A token that no row has.
fn unknown(name: &str) -> String {
    format!("{name}-Zq8{}-vX3tokenOfNobody", support::world::fresh_id())
}

/// Sends bytes, and reads what comes for a moment; the connection stays open for what comes later.
fn send(server: &Server, bytes: &[u8]) -> Connection {
    let mut connection = server.connect();
    connection.send(bytes);
    connection
}

/// Sends bytes and waits for the first of the answer.
#[track_caller]
fn ask(server: &Server, bytes: &[u8]) -> Connection {
    let mut connection = send(server, bytes);
    assert!(connection.read_more().is_ok(), "{:?}", String::from_utf8_lossy(bytes));
    connection
}

/// Every way to present a token, in requests that are right and in all kinds of wrong ones.
fn present(server: &Server, token: &str) -> Vec<Connection> {
    let bearer = format!("Bearer {token}");
    let mut requests: Vec<Vec<u8>> = Vec::new();
    for path in [USER, "/api/v1/streaming/public", "/api/v1/streaming/hashtag?tag=sea", "/nonsense", "/"] {
        let with_query =
            |name: &str| format!("{path}{}{name}={token}", if path.contains('?') { "&" } else { "?" });
        for headers in [
            &[("Authorization", bearer.as_str())][..],
            &[("Authorization", token)],
            &[("Sec-WebSocket-Protocol", token)],
        ] {
            requests.push(request("GET", path, headers).into());
            requests.push(upgrade(path, headers).into());
        }
        for name in ["access_token", "token", "%61ccess_token"] {
            requests.push(request("GET", &with_query(name), &[]).into());
            requests.push(upgrade(&with_query(name), &[]).into());
        }
    }
    let header = [("Authorization", bearer.as_str())];
    // Wrong methods, versions, keys, bodies, lists and streams.
    for method in ["POST", "HEAD", "OPTIONS", "DELETE", token] {
        requests.push(request(method, &format!("{USER}?access_token={token}"), &header).into());
    }
    let good = upgrade("/", &header);
    requests.push(good.replace("Version: 13", "Version: 7").into());
    requests.push(good.replace("dGhlIHNhbXBsZSBub25jZQ==", token).into());
    requests.push(request("GET", USER, &[header[0], ("Content-Length", "5")]).into());
    requests.push(upgrade(&format!("/?stream=list&list={token}&access_token={token}"), &[]).into());
    requests.push(upgrade(&format!("/?stream={token}&access_token={token}"), &[]).into());
    requests.push(upgrade(&format!("/?stream=hashtag&access_token={token}"), &[]).into());
    requests.push(request("GET", &format!("/api/v1/streaming/list?list=1&access_token={token}"), &[]).into());
    // In places where no token belongs.
    requests.push(request("GET", &format!("/api/v1/streaming/{token}"), &[]).into());
    requests.push(request("GET", &format!("{USER}%3Faccess_token={token}"), &[]).into());
    requests.push(request("GET", &format!("http://{token}@streaming.example{USER}"), &[]).into());
    requests.push(
        request("GET", USER, &[("Cookie", token), ("X-Forwarded-For", token), ("Accept", token)]).into(),
    );
    requests.push(request("GET", USER, &[(token, "a header's name")]).into());
    requests.push(request("GET", USER, &[("Authorization", &format!("Bearer {token}, {token}"))]).into());
    requests.push(request("GET", &format!("{USER}?access_token={token}&access_token={token}"), &[]).into());
    requests.push(request("GET", &format!("{USER}?access_token={token}%00"), &[]).into());
    requests.push(request("GET", &format!("{USER}?access_token={token}%ff%0a"), &[]).into());
    // What is no HTTP at all.
    requests.push(format!("GET {USER} {token}\r\n\r\n").into());
    requests
        .push(format!("GET {USER}?access_token={token} HTTP/1.1\r\nAuthorization {bearer}\r\n\r\n").into());
    requests.push(format!("GET {USER} HTTP/1.1\r\nHost: x\r\nAuthorization: {bearer}\x01\r\n\r\n").into());
    requests.push(format!("{token}\r\n\r\n").into());
    requests
        .push(format!("GET {USER} HTTP/1.1\r\nHost: x\r\nX: {}{token}\r\n\r\n", "x".repeat(17 << 10)).into());
    let mut connections: Vec<Connection> = requests.iter().map(|bytes| ask(server, bytes)).collect();
    connections.push(send(server, format!("GET {USER} HTTP/1.1\r\nAuthorization: {bearer}").as_bytes()));
    connections
}

/// Every page, in every form.
fn pages(server: &Server) -> String {
    let mut all = String::new();
    let names = [
        "/metrics",
        "/ready",
        "/api/v1/streaming/health",
        "/status",
        "/status/",
        "/status/per_timeline",
        "/status/backpressure",
    ];
    for path in names {
        for accept in ["*/*", "application/json", "text/html"] {
            let response = server.request("GET", path, &[("Accept", accept)]);
            assert!(
                [200, 302, 303, 307, 308, 503].contains(&response.status()),
                "{path}: {:?}",
                response.head
            );
            all.push_str(&format!("{:?}\n{}\n", response.head, response.text()));
        }
    }
    let mut live = send(server, request("GET", "/status/stream", &[]).as_bytes());
    all.push_str(&String::from_utf8_lossy(&live.take_until(b"\n\n")));
    all
}

fn exercise(format: &str) {
    let settings = [
        ("RUST_LOG", "trace"),
        ("LOG_FORMAT", format),
        ("STATUS_PUBLIC", "true"),
        ("SUBSCRIBE_BURST", "30"),
        ("DOOR_TIMEOUT", "2"),
    ];
    let Some(world) = World::with_own_database(&settings) else { return };
    let server = &world.server;
    let mut secrets = Secrets::new();
    let good = world.viewer("read");
    secrets.add(&good.token);
    let refused: Vec<Viewer> = (0..4).map(|_| world.viewer("read")).collect();
    let (revoked, scopeless, suspended, expired) = (&refused[0], &refused[1], &refused[2], &refused[3]);
    revoked
        .sql(&format!("UPDATE oauth_access_tokens SET revoked_at = now() WHERE id = {}", revoked.token_id));
    scopeless
        .sql(&format!("UPDATE oauth_access_tokens SET scopes = 'push' WHERE id = {}", scopeless.token_id));
    suspended.sql(&format!("UPDATE accounts SET suspended_at = now() WHERE id = {}", suspended.account));
    expired.sql(&format!(
        "UPDATE oauth_access_tokens SET expires_in = 1, created_at = '2020-01-01' WHERE id = {}",
        expired.token_id
    ));
    let mut kept = present(server, &good.token);
    for viewer in &refused {
        secrets.add(&viewer.token);
        kept.append(&mut present(server, &viewer.token));
    }
    kept.append(&mut present(server, &secrets.add(&unknown("unknown"))));
    server.until_output("identified");
    server.until_output("refused");

    // A session: messages that hold a token where none belongs, and all that ends it.
    let inside = secrets.add(&unknown("inside"));
    let mut ws = Ws::open(server, "/", &good.token);
    for text in [
        json!({"type": "subscribe", "stream": inside}).to_string(),
        json!({"type": "subscribe", "stream": "list", "list": inside}).to_string(),
        json!({"type": inside, "access_token": inside}).to_string(),
        json!({"type": "unsubscribe", "stream": "list", "list": inside}).to_string(),
        format!("{{{inside}"),
    ] {
        ws.send(&text);
    }
    for _ in 0..3 {
        let answer = ws.next();
        assert!(answer.contains("error") && !answer.contains(&inside), "{answer}");
    }
    ws.subscribe(&world.redis, json!({"stream": "user"}), &good.user_channels());
    world.publish(&good.home(), &text_message("delete", "1"));
    world.publish("timeline:public", &inside);
    world.publish(&good.home(), &inside);
    world.publish(&good.system_channels()[0], &format!("{{\"event\":\"{inside}\"}}"));
    for bytes in [
        RawWs::encode(0x82, inside.as_bytes()),
        RawWs::encode(0x88, inside.as_bytes()),
        inside.clone().into_bytes(),
    ] {
        let mut raw = RawWs::open(server, "/", &good.token);
        raw.connection.send(&bytes);
        raw.connection.until_closed();
    }
    world.publish(&good.system_channels()[0], r#"{"event":"kill"}"#);
    ws.until_close();
    let shown = pages(server);
    secrets.assert_absent("the pages", &shown);

    // PostgreSQL refuses statements, connections, and is away.
    let late = world.viewer("read");
    secrets.add(&late.token);
    world.db.run("ALTER TABLE oauth_access_tokens RENAME COLUMN revoked_at TO gone");
    assert_eq!(Sse::try_open(server, USER, &late.token).err().unwrap().status(), 503);
    kept.append(&mut present(server, &late.token));
    world.db.run("ALTER TABLE oauth_access_tokens RENAME COLUMN gone TO revoked_at");
    let admin = support::postgres::shared().unwrap().open("postgres");
    let name = &world.db.name;
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    admin.run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND usename = 'tidegate'"
    ));
    assert_eq!(Sse::try_open(server, USER, &late.token).err().unwrap().status(), 503);
    kept.append(&mut present(server, &late.token));
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    wait_until("it is back", PATIENCE, || Sse::try_open(server, USER, &late.token).is_ok());

    // Redis refuses channels and keys, breaks, and is away.
    let user = ["ACL", "SETUSER", redis::USER];
    world.redis.command(&[&user[..], &["resetchannels", "&timeline:access*"]].concat());
    let refused = Sse::try_open(server, USER, &late.token).err();
    assert!(refused.is_none_or(|response| response.status() >= 500));
    world.redis.command(&[&user[..], &["allchannels", ">another-password-3Kd8"]].concat());
    secrets.add("another-password-3Kd8");
    world.redis.command(&[&user[..], &[&format!("<{}", redis::PASSWORD)]].concat());
    world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    server.until_output("WRONGPASS");
    assert_eq!(Sse::try_open(server, USER, &late.token).err().unwrap().status(), 503);
    let shown = pages(server);
    secrets.assert_absent("the pages without Redis", &shown);

    drop(kept);
    server.signal("TERM");
    server.until_output("draining");
    let output = server.output();
    assert!(output.lines().count() > 500, "it logged everything: {} lines", output.lines().count());
    secrets.assert_absent("the log", &output);
}

/// What goes wrong here is PostgreSQL's own: a role's password, a database that lets nobody in.
fn ours_and_direct() -> bool {
    if pgbouncer::everywhere() {
        left_out("is about PostgreSQL without PgBouncer");
        return false;
    }
    ours_alone()
}

#[test]
fn nothing_secret_is_logged_or_shown_at_any_level() {
    if ours_and_direct() {
        exercise("text");
    }
}

#[test]
fn nor_in_a_log_for_machines() {
    if ours_and_direct() {
        exercise("json");
    }
}

#[test]
fn passwords_that_are_wrong_are_not_repeated() {
    if !ours_and_direct() {
        return;
    }
    let Some(world) = World::start() else { return };
    let mut secrets = Secrets::new();
    let wrong = secrets.add("wrong-password-8Hn5-Yu2");
    let replaced = |url: &str, password: &str| url.replace(password, &wrong);
    let mut env = world.env.clone();
    env.insert("RUST_LOG".into(), "trace".into());
    env.insert("DATABASE_URL".into(), replaced(&world.env["DATABASE_URL"], postgres::PASSWORD));
    env.insert("REDIS_URL".into(), replaced(&world.env["REDIS_URL"], redis::PASSWORD));
    let server = Server::start(&env);
    server.until_output("WRONGPASS");
    let viewer = world.viewer("read");
    let token = secrets.add(&viewer.token);
    let refused = Sse::try_open(&server, USER, &token).err().unwrap();
    assert_eq!(refused.status(), 503);
    server.until_output("refuses the connection");
    secrets.assert_absent("the log", &server.output());
    secrets.assert_absent("the answer", &format!("{refused:?}"));
    // Settings that are no settings end the start; what may hold a password is not quoted.
    for (name, value) in [
        ("DATABASE_URL", format!("postgres//mastodon:{wrong}@127.0.0.1/x")),
        ("DATABASE_URL", format!("postgres://mastodon:{wrong}@127.0.0.1:{wrong}/x")),
        ("REDIS_URL", format!("redis://:{wrong}@127.0.0.1:{wrong}")),
        ("REDIS_URL", format!("http://:{wrong}@127.0.0.1")),
        ("DB_PORT", wrong.clone()),
    ] {
        let mut env = world.env.clone();
        env.remove("DATABASE_URL");
        env.insert("DB_PASS".into(), wrong.clone());
        env.insert(name.into(), value);
        let mut server = Server::spawn(&env);
        assert!(!server.until_exit().success(), "{name}");
        wait_until("the variable is named", PATIENCE, || server.output().contains(name));
        if name != "DB_PORT" {
            secrets.assert_absent("what it says about its settings", &server.output());
        }
    }
}

#[test]
fn failures_do_not_fill_the_log() {
    if !ours_and_direct() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let server = &world.server;
    let viewer = world.viewer("read");
    server.until_output("is connected");
    let lines = || server.output().lines().count();
    let before = lines();
    for _ in 0..5 {
        present(server, &unknown("unknown"));
    }
    let refused: f64 = ["token", "request", "malformed"]
        .iter()
        .filter_map(|reason| server.metric("tidegate_refused_total", &[("reason", reason)]))
        .sum();
    assert!(refused > 100.0, "{refused} were refused");
    assert_eq!(lines(), before, "{}", server.output());
    // A fault is said once, however many meet it.
    let admin = support::postgres::shared().unwrap().open("postgres");
    let name = &world.db.name;
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    admin.run(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND usename = 'tidegate'"
    ));
    for _ in 0..50 {
        assert_eq!(Sse::try_open(server, USER, &viewer.token).err().unwrap().status(), 503);
    }
    server.until_metric("tidegate_refused_total", &[("reason", "database")], 50.0);
    server.until_output("PostgreSQL");
    assert!(lines() <= before + 4, "{}", server.output());
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
}
