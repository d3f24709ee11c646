//! What an operator reads in the log: one line per start and per change of state, nothing per client unless asked
//! for, and JSON that programs can rely on.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use support::http::request;
use support::machine::{PATIENCE, wait_for};
use support::numbers::{gapless_until, numbered};
use support::redis::Redis;
use support::{Server, Sse, World, Ws, ours_alone, wait_until};

/// The lines of a JSON log.
fn lines(server: &Server) -> Vec<Value> {
    let output = server.output();
    output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}")))
        .collect()
}

/// The lines of that level or worse whose text has all of these words.
fn with(lines: &[Value], level: &str, words: &[&str]) -> usize {
    let matches = |line: &&Value| {
        let text = line["msg"].as_str().unwrap();
        line["level"] == level && words.iter().all(|word| text.contains(word))
    };
    lines.iter().filter(matches).count()
}

#[track_caller]
fn until_line(server: &Server, level: &str, words: &[&str]) {
    wait_until(&format!("a line at {level} with {words:?}"), PATIENCE * 2, || {
        with(&lines(server), level, words) > 0
    });
}

const JSON: (&str, &str) = ("LOG_FORMAT", "json");

#[test]
fn a_servers_life_in_json() {
    if !ours_alone() {
        return;
    }
    let Some(mut world) = World::with(&[JSON]) else { return };
    until_line(&world.server, "info", &["Redis at", "is connected"]);
    world.server.signal("TERM");
    assert!(world.server.until_exit().success());
    until_line(&world.server, "info", &["draining"]);
    let lines = lines(&world.server);
    let pid = u64::from(world.server.pid());
    let mut before = 0;
    for line in &lines {
        let keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        for key in ["level", "time", "pid", "name", "msg"] {
            assert!(keys.contains(&key), "{line}");
        }
        assert_eq!((line["pid"].as_u64(), &line["name"]), (Some(pid), &json!("streaming")));
        let time = line["time"].as_u64().unwrap();
        assert!(time >= before && time > 1_700_000_000_000, "{line}");
        before = time;
    }
    let start: Vec<&Value> = lines.iter().filter(|line| line["msg"] == "Tidegate starts").collect();
    assert_eq!(start.len(), 1);
    assert!(start[0]["version"].is_string());
    for field in ["threads", "clients_max", "descriptors"] {
        assert!(start[0][field].as_u64().is_some_and(|number| number > 0), "{field}: {}", start[0]);
    }
    assert_eq!(with(&lines, "info", &["Streaming API now listening on", "127.0.0.1:"]), 1);
    assert_eq!(with(&lines, "info", &["Redis at", "is connected"]), 1);
    assert_eq!(with(&lines, "info", &["draining"]), 1);
    assert_eq!(with(&lines, "info", &["no settings file"]), 1);
    // A life without trouble is these five lines.
    assert_eq!(lines.len(), 5, "{lines:#?}");
}

#[test]
fn a_server_without_room_warns_at_its_start_and_when_it_begins_to_refuse() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let mut env = world.env.clone();
    env.insert("LOG_FORMAT".into(), "json".into());
    // Four clients fit beside what the server keeps for itself.
    let server = Server::start_with_descriptors(104, &env);
    until_line(&server, "warn", &["room for few clients", "LimitNOFILE"]);
    let viewer = world.viewer("read");
    let ask = || Ws::try_open(server.address(), "/?stream=user", &[("Authorization", &viewer.bearer())]);
    let clients: Vec<Ws> = (0..4).map(|_| wait_for("a client is let in", PATIENCE, || ask().ok())).collect();
    for _ in 0..20 {
        assert!(matches!(ask(), Err((503, _))));
    }
    until_line(&server, "warn", &["the server is full", "LimitNOFILE"]);
    assert_eq!(with(&lines(&server), "warn", &["the server is full"]), 1);
    drop(clients);

    env.insert("MAX_CONNECTIONS".into(), "1".into());
    let server = Server::start(&env);
    let _one = wait_for("a client is let in", PATIENCE, || {
        Ws::try_open(server.address(), "/?stream=user", &[("Authorization", &viewer.bearer())]).ok()
    });
    let second = Ws::try_open(server.address(), "/?stream=user", &[("Authorization", &viewer.bearer())]);
    assert!(matches!(second, Err((503, _))));
    until_line(&server, "warn", &["the server is full", "raise MAX_CONNECTIONS"]);
    assert_eq!(with(&lines(&server), "warn", &["room for few clients"]), 0, "it was asked for");
}

#[test]
fn redis_lost_and_regained_is_a_line_each() {
    if !ours_alone() {
        return;
    }
    let Some(mut world) = World::with(&[JSON, ("GAP_CLOSE_SPREAD", "0")]) else { return };
    until_line(&world.server, "info", &["Redis at", "is connected"]);
    let port = world.redis.port;
    let viewer = world.viewer("read");
    // Ends it, and begins another on its port later.
    support::machine::signal(world.redis.service.pid(), "KILL");
    until_line(&world.server, "warn", &["Redis at", "is lost", "connecting again"]);
    // Attempts that fail, and clients that are refused, are not a line each.
    wait_until("it has tried several times", PATIENCE, || {
        world.server.get("/api/v1/streaming/health");
        let response =
            world.server.request("GET", "/api/v1/streaming/user", &[("Authorization", &viewer.bearer())]);
        assert_eq!(response.status(), 503);
        world.server.metric("tidegate_refused_total", &[("reason", "redis")]).unwrap_or(0.0) >= 20.0
    });
    let away = lines(&world.server);
    assert_eq!(with(&away, "warn", &["is lost"]), 1, "{away:#?}");
    // Besides the loss itself: the second connection's, and the first attempt's.
    let troubles = away.iter().filter(|line| line["level"] == "warn" || line["level"] == "error").count();
    assert!(troubles <= 4, "{away:#?}");
    world.redis = Redis::start_on(Some(port), &[]).unwrap();
    until_line(&world.server, "info", &["is back after"]);
    assert_eq!(with(&lines(&world.server), "info", &["is back after"]), 1);
}

#[test]
fn postgresql_lost_and_regained_is_a_line_each() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[JSON]) else { return };
    let viewer = world.viewer("read");
    let ask = || {
        let mut connection = world.server.connect();
        let bearer = viewer.bearer();
        connection.send(request("GET", "/api/v1/streaming/user", &[("Authorization", &bearer)]).as_bytes());
        connection.head().status
    };
    wait_until("it serves", PATIENCE, || ask() == 200);
    let admin = support::postgres::shared().unwrap().open("postgres");
    let name = &world.db.name;
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    admin.run(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"));
    for _ in 0..20 {
        assert_eq!(ask(), 503);
    }
    let away = lines(&world.server);
    assert_eq!(with(&away, "warn", &["PostgreSQL at"]), 1, "{away:#?}");
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    wait_until("it heals", PATIENCE, || ask() == 200);
    until_line(&world.server, "info", &["PostgreSQL at", "answers again"]);
    assert_eq!(with(&lines(&world.server), "info", &["answers again"]), 1);
}

#[test]
fn pauses_are_two_lines_however_many_there_are() {
    if !ours_alone() {
        return;
    }
    let settings = [JSON, ("BACKPRESSURE_HIGH_BYTES", "65536"), ("SLOW_CLIENT_GRACE", "0.5")];
    let Some(world) = World::with(&settings) else { return };
    let viewer = world.viewer("read");
    // It never reads, so the kernel's buffers fill and then the budget.
    let _idle = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    world.redis.until_subscribed(&viewer.user_channels());
    let message = json!({"event": "update", "payload": "x".repeat(60_000)}).to_string();
    wait_until("reading paused", PATIENCE, || {
        world.publish(&viewer.home(), &message);
        world.server.metric("tidegate_gate_closes_total", &[]).unwrap() >= 1.0
    });
    until_line(&world.server, "warn", &["reading from Redis pauses", "BACKPRESSURE_HIGH_BYTES"]);
    until_line(&world.server, "info", &["reading from Redis goes on"]);
    let lines = lines(&world.server);
    let end = lines.iter().find(|line| line["msg"].as_str().unwrap().contains("goes on without")).unwrap();
    assert!(end["pauses"].as_u64().unwrap() >= 1 && end["paused_seconds"].is_number(), "{end}");
    let begin = lines.iter().find(|line| line["msg"].as_str().unwrap().contains("reading from Redis pauses"));
    assert_eq!(begin.unwrap()["high_bytes"], 65536);
}

#[test]
fn clients_are_lines_only_at_debug_and_have_their_request_id() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[JSON]) else { return };
    let viewer = world.viewer("read");
    let visit = |server: &Server| {
        let sse = Sse::open(server, "/api/v1/streaming/user", &viewer.token);
        let ws = Ws::open(server, "/?stream=user", &viewer.token);
        let refused = server.request("GET", "/api/v1/streaming/user", &[("Authorization", "Bearer wrong")]);
        let id = |name: &str| name.to_owned();
        BTreeSet::from([
            id(sse.head.header("X-Request-Id").unwrap()),
            id(ws.response.headers().get("x-request-id").unwrap().to_str().unwrap()),
            id(refused.header("X-Request-Id")),
        ])
    };
    until_line(&world.server, "info", &["Redis at", "is connected"]);
    let quiet = lines(&world.server).len();
    for _ in 0..20 {
        visit(&world.server);
    }
    world.until_empty();
    assert_eq!(lines(&world.server).len(), quiet, "{:#?}", lines(&world.server));

    let mut env = world.env.clone();
    env.insert("LOG_LEVEL".into(), "debug".into());
    let server = Server::start(&env);
    let ids = visit(&server);
    assert_eq!(ids.len(), 3);
    wait_until("each request has its lines", PATIENCE, || {
        let logged: BTreeSet<String> =
            lines(&server).iter().filter_map(|line| Some(line["request"].as_str()?.to_owned())).collect();
        ids.is_subset(&logged)
    });
    until_line(&server, "debug", &["refused"]);
    let all = lines(&server);
    let refused = all.iter().find(|line| line["msg"] == "refused").unwrap();
    assert_eq!(
        (&refused["level"], &refused["status"], &refused["reason"]),
        (&json!("debug"), &json!(401), &json!("token"))
    );
    assert!(!server.output().contains(&viewer.token), "a token is in the log");
}

#[test]
fn each_clients_end_is_a_line_at_debug_with_its_reason() {
    if !ours_alone() {
        return;
    }
    let settings = [JSON, ("LOG_LEVEL", "debug")];
    let Some(mut world) = World::with(&settings) else { return };
    let viewer = world.viewer("read");
    let open_ws = || {
        let ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
        let id = ws.response.headers().get("x-request-id").unwrap().to_str().unwrap().to_owned();
        (ws, id)
    };
    let open_sse = |token: &str| {
        let sse = Sse::open(&world.server, "/api/v1/streaming/user", token);
        let id = sse.head.header("X-Request-Id").unwrap().to_owned();
        (sse, id)
    };
    let ends = |server: &Server, id: &str| -> Vec<Value> {
        let mut all = lines(server);
        all.retain(|line| line["msg"] == "client ended" && line["request"] == id);
        all
    };
    let until_end = |server: &Server, id: &str, transport: &str, reason: &str| {
        wait_until("the end is told", PATIENCE, || !ends(server, id).is_empty());
        let told = ends(server, id);
        assert_eq!(told.len(), 1, "{told:#?}");
        let line = &told[0];
        assert_eq!(
            (&line["level"], &line["transport"], &line["reason"]),
            (&json!("debug"), &json!(transport), &json!(reason))
        );
        assert!(line["seconds"].as_f64().is_some_and(|seconds| (0.0..60.0).contains(&seconds)), "{line}");
        // Its place among the clients, as `/status/backpressure` names it.
        let parts = line["client"].as_str().unwrap().split('-').map(|part| part.parse::<u32>().unwrap());
        assert_eq!(parts.count(), 3, "{line}");
    };

    let (ws, id) = open_ws();
    drop(ws);
    until_end(&world.server, &id, "websocket", "client_left");
    let (sse, id) = open_sse(&viewer.token);
    drop(sse);
    until_end(&world.server, &id, "eventsource", "client_left");
    let (mut ws, id) = open_ws();
    ws.send(&"x".repeat(70_000));
    until_end(&world.server, &id, "websocket", "too_big");
    let (revoked, token) = world.token(viewer.user, "read");
    let (_sse, id) = open_sse(&token);
    world.redis.publish(&format!("timeline:access_token:{revoked}"), r#"{"event":"kill"}"#);
    until_end(&world.server, &id, "eventsource", "killed");
    let (_ws, ws_id) = open_ws();
    let (_sse, sse_id) = open_sse(&viewer.token);
    world.server.signal("TERM");
    assert!(world.server.until_exit().success());
    until_end(&world.server, &ws_id, "websocket", "drain");
    until_end(&world.server, &sse_id, "eventsource", "drain");
    assert!(!world.server.output().contains(&viewer.token), "a token is in the log");
}

/// A server whose output the test reads as far as it likes.
struct Overheard {
    child: Child,
    address: SocketAddr,
}

impl Overheard {
    fn start(world: &World) -> (Overheard, BufReader<ChildStdout>, ChildStderr) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.env_clear().envs(&world.env).env("LOG_LEVEL", "debug");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server's program");
        let (mut out, err) = (BufReader::new(child.stdout.take().unwrap()), child.stderr.take().unwrap());
        let mut server = Overheard { child, address: ([127, 0, 0, 1], 0).into() };
        let mut line = String::new();
        while !line.contains("listening on ") {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the server ended instead of listening");
        }
        let (_, address) = line.split_once("listening on ").unwrap();
        server.address = address.split(['"', '\n']).next().unwrap().parse().unwrap();
        (server, out, err)
    }
}

impl Drop for Overheard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// journald starts again, or a pipe has ended: that is nobody's fault who streams.
#[test]
fn a_log_that_nobody_takes_is_said_once_and_hurts_nobody() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for said in [true, false] {
        let (mut server, out, err) = Overheard::start(&world);
        let address = server.address;
        let open = || Ws::try_open(address, "/?stream=user", &[("Authorization", &viewer.bearer())]).ok();
        let mut stays = wait_for("it serves", PATIENCE, open);
        drop(out);
        let err = said.then_some(err);
        // Each is lines at debug, by the door and by every reactor.
        for _ in 0..20 {
            assert!(open().is_some());
        }
        for n in 0..3 {
            world.publish(&viewer.home(), &numbered(n));
        }
        gapless_until(&mut stays, 0, 2);
        support::machine::signal(server.child.id(), "TERM");
        stays.until_close();
        assert!(server.child.wait().unwrap().success());
        if let Some(mut err) = err {
            let mut text = String::new();
            err.read_to_string(&mut text).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.starts_with("tidegate: the log cannot be written (Broken pipe"), "{text}");
        }
    }
}
