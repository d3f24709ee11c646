//! The HTTP surface: endpoints, headers, errors, one connection used for several requests, start and stop.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::http::{Connection, request};
use support::machine::{Folder, PATIENCE, free_port};
use support::server::Env;
use support::{Server, Sse, World, left_out, ours_alone, peer, wait_until};

const HEALTH: &str = "/api/v1/streaming/health";

fn is_uuid_v4(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    lengths == [8, 4, 4, 4, 12]
        && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
        && groups[2].starts_with('4')
        && groups[3].starts_with(['8', '9', 'a', 'b'])
}

#[test]
fn health_answers_ok_and_is_never_cached() {
    let Some(world) = World::start() else { return };
    let response = world.server.get(HEALTH);
    assert_eq!((response.status(), response.text().as_str()), (200, "OK"));
    assert!(response.header("Content-Type").starts_with("text/plain"));
    assert_eq!(response.header("Cache-Control"), "private, no-store");
    let head = world.server.request("HEAD", HEALTH, &[]);
    assert_eq!(head.status(), 200);
    assert_eq!(head.header("Cache-Control"), "private, no-store");
    // A query is no other path.
    assert_eq!(world.server.get("/api/v1/streaming/health?x=1").text(), "OK");
}

#[test]
fn favicon_is_an_empty_404() {
    let Some(world) = World::start() else { return };
    let response = world.server.get("/favicon.ico");
    assert_eq!((response.status(), response.text().as_str()), (404, ""));
}

#[test]
fn every_response_has_a_fresh_request_id_and_allows_every_origin() {
    let Some(world) = World::start() else { return };
    let mut seen = std::collections::HashSet::new();
    let own = [("X-Request-Id", "11111111-2222-4333-8444-555555555555"), ("Origin", "https://elk.zone")];
    for path in [HEALTH, "/metrics", "/favicon.ico", "/", "/api/v1/streaming/user", HEALTH] {
        let response = world.server.request("GET", path, &own);
        let id = response.header("X-Request-Id").to_owned();
        assert!(is_uuid_v4(&id), "{path}: {id}");
        assert!(id != own[0].1 && seen.insert(id), "{path}: not fresh");
        assert_eq!(response.header("Access-Control-Allow-Origin"), "*", "{path}");
        if peer().is_none() {
            assert_eq!(response.head.header("X-Powered-By"), None);
        }
    }
    let viewer = world.viewer("read");
    let sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    assert!(is_uuid_v4(sse.head.header("X-Request-Id").unwrap()));
    assert_eq!(sse.head.header("Access-Control-Allow-Origin"), Some("*"));
}

#[test]
fn preflight_allows_what_was_asked_for() {
    let Some(world) = World::start() else { return };
    let asked = [
        ("Origin", "https://elk.zone"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization,x-some-thing"),
    ];
    for path in ["/api/v1/streaming/user", "/api/v1/streaming/nonsense", "/", HEALTH] {
        let response = world.server.request("OPTIONS", path, &asked);
        assert_eq!(response.status(), 204, "{path}");
        assert_eq!(response.header("Access-Control-Allow-Origin"), "*");
        assert_eq!(response.header("Access-Control-Allow-Methods"), "GET,HEAD,PUT,PATCH,POST,DELETE");
        assert_eq!(response.header("Access-Control-Allow-Headers"), "authorization,x-some-thing");
        assert!(response.header("Vary").contains("Access-Control-Request-Headers"));
    }
    let plain = world.server.request("OPTIONS", "/api/v1/streaming/user", &[]);
    assert_eq!(plain.status(), 204);
    assert_eq!(plain.head.header("Access-Control-Allow-Headers"), None);
}

#[test]
fn unknown_paths_are_refused_before_the_token_is_looked_at() {
    let Some(world) = World::start() else { return };
    let good = world.viewer("read");
    let tokens = [None, Some("Bearer wrong".to_owned()), Some(good.bearer())];
    let paths = [
        "/",
        "/api/v1/streaming",
        "/api/v1/streaming/",
        "/api/v1/streaming/user/",
        "/api/v1/streaming/public/",
        "/api/v1/streaming/nonsense",
        "/api/v1/streaming/public/nonsense",
        "/api/v1/streaming/public/local/media",
        "/api/v1/streaming/User",
        "/api/v1/statuses",
    ];
    for path in paths {
        for token in &tokens {
            let headers: Vec<_> = token.iter().map(|token| ("Authorization", token.as_str())).collect();
            let response = world.server.request("GET", path, &headers);
            response.assert_error(400, "Unknown channel requested");
        }
    }
}

#[test]
fn a_stream_path_refuses_other_methods_before_the_token() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        for headers in [vec![], vec![("Authorization", viewer.bearer())]] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let response = world.server.request(method, "/api/v1/streaming/user", &headers);
            assert_eq!(response.status(), 405, "{method}");
            assert!(response.header("Content-Type").starts_with("application/json"));
            let allow = response.head.header("Allow").unwrap_or_default().to_owned();
            assert!(allow.contains("GET"), "Allow: {allow:?}");
        }
    }
}

#[test]
fn head_gives_the_head_of_a_stream_and_opens_none() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let response =
        world.server.request("HEAD", "/api/v1/streaming/user", &[("Authorization", &viewer.bearer())]);
    assert_eq!(response.status(), 200);
    assert_eq!(response.header("Content-Type"), "text/event-stream");
    let refused = world.server.request("HEAD", "/api/v1/streaming/user", &[]);
    assert_eq!(refused.status(), 401);
    world.until_empty();
}

#[test]
fn an_upgrade_to_something_else_is_ignored() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let headers = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
    ];
    let response = world.server.request("GET", HEALTH, &headers);
    assert_eq!((response.status(), response.text().as_str()), (200, "OK"));
}

#[test]
fn requests_pipelined_before_a_stream_are_answered_first() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for _ in 0..20 {
        let mut connection = world.server.connect();
        let bearer = viewer.bearer();
        let stream = request("GET", "/api/v1/streaming/user", &[("Authorization", &bearer)]);
        let both = format!("{}{}{stream}", request("GET", HEALTH, &[]), request("GET", HEALTH, &[]));
        connection.send(both.as_bytes());
        for _ in 0..2 {
            assert_eq!(connection.response("GET").text(), "OK");
        }
        let mut sse = Sse::read_head(connection).unwrap();
        sse.expect_bytes(b":)\n");
        world.redis.until_subscribed(&viewer.user_channels());
        world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
        sse.expect("delete", "1");
    }
}

#[test]
fn a_kept_alive_connection_goes_from_request_to_stream() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut connection = world.server.connect();
    for path in [HEALTH, "/nonsense", HEALTH, "/favicon.ico"] {
        connection.send(request("GET", path, &[]).as_bytes());
        connection.response("GET");
    }
    connection.send(request("GET", "/api/v1/streaming/user", &[]).as_bytes());
    connection.response("GET").assert_error(401, "Missing access token");
    let bearer = viewer.bearer();
    connection.send(request("GET", "/api/v1/streaming/user", &[("Authorization", &bearer)]).as_bytes());
    let mut sse = Sse::read_head(connection).unwrap();
    sse.expect_bytes(b":)\n");
}

#[test]
fn a_body_on_a_stream_path_is_refused_and_the_connection_closed() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let bodies =
        [("Content-Length", "5", "hello"), ("Transfer-Encoding", "chunked", "5\r\nhello\r\n0\r\n\r\n")];
    for (name, value, body) in bodies {
        let mut connection = world.server.connect();
        let headers = [("Authorization", bearer.as_str()), (name, value)];
        let text = format!("{}{body}", request("GET", "/api/v1/streaming/user", &headers));
        connection.send(text.as_bytes());
        let response = connection.response("GET");
        assert_eq!(response.status(), 400, "{name}");
        connection.expect_closed();
    }
    world.until_empty();
}

#[test]
fn metrics_have_the_names_dashboards_know() {
    let Some(world) = World::start() else { return };
    let response = world.server.get("/metrics");
    assert_eq!(response.status(), 200);
    assert!(response.header("Content-Type").starts_with("text/plain; version=0.0.4"));
    assert_eq!(response.header("Cache-Control"), "private, no-store");
    let page = response.text();
    let types = [
        ("connected_clients", "gauge"),
        ("connected_channels", "gauge"),
        ("redis_subscriptions", "gauge"),
        ("redis_messages_received_total", "counter"),
        ("messages_sent_total", "counter"),
        ("pg_pool_total_connections", "gauge"),
        ("pg_pool_idle_connections", "gauge"),
        ("pg_pool_waiting_queries", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_max_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ];
    for (name, kind) in types {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "no {kind} {name} in\n{page}");
        assert!(page.contains(&format!("# HELP {name} ")), "no HELP of {name}");
    }
    // Every series is there before anything happened, so that nothing is lost over a restart.
    let names = [
        "system",
        "user",
        "user:notification",
        "list",
        "direct",
        "public",
        "public:media",
        "public:local",
        "public:local:media",
        "public:remote",
        "public:remote:media",
        "hashtag",
        "hashtag:local",
    ];
    for kind in ["websocket", "eventsource"] {
        let labels = [("type", kind)];
        assert_eq!(world.server.metric("connected_clients", &labels), Some(0.0));
        assert_eq!(world.server.metric("messages_sent_total", &labels), Some(0.0));
        for channel in names {
            let labels = [("type", kind), ("channel", channel)];
            assert_eq!(world.server.metric("connected_channels", &labels), Some(0.0), "{kind} {channel}");
        }
    }
    assert_eq!(world.server.metric("redis_subscriptions", &[]), Some(0.0));
}

#[test]
fn metrics_count_clients_channels_and_messages() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    world.redis.until_subscribed(&viewer.user_channels());
    let server = &world.server;
    server.until_metric("connected_clients", &[("type", "eventsource")], 1.0);
    server.until_metric("connected_channels", &[("type", "eventsource"), ("channel", "user")], 1.0);
    server.until_metric("connected_channels", &[("type", "eventsource"), ("channel", "system")], 2.0);
    server.until_metric("redis_subscriptions", &[], 4.0);
    let received = server.metric("redis_messages_received_total", &[]).unwrap();
    for n in 0..3 {
        world.publish(&viewer.home(), &format!(r#"{{"event":"delete","payload":"{n}"}}"#));
        sse.expect("delete", &n.to_string());
    }
    server.until_metric("messages_sent_total", &[("type", "eventsource")], 3.0);
    server.until_metric("redis_messages_received_total", &[], received + 3.0);
    drop(sse);
    world.until_empty();
}

#[test]
fn sigterm_and_sigint_end_it_with_success() {
    for name in ["TERM", "INT"] {
        let Some(mut world) = World::start() else { return };
        let viewer = world.viewer("read");
        let _sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
        world.server.signal(name);
        assert_eq!(world.server.until_exit().code(), Some(0), "SIG{name}");
        world.redis.until_channels(&[]);
    }
}

#[test]
fn a_port_in_use_fails_the_start_with_a_clear_line() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let mut env = world.env.clone();
    let port = world.server.address().port().to_string();
    env.insert("PORT".into(), port.clone());
    let mut second = Server::spawn(&env);
    let status = second.until_exit();
    assert!(!status.success());
    wait_until("the reason is told", PATIENCE, || second.output().contains(&port));
    assert!(!second.output().contains("panicked"), "{}", second.output());
    assert_eq!(world.server.get(HEALTH).text(), "OK");
}

#[test]
fn a_wrong_setting_fails_the_start_and_is_named() {
    if !ours_alone() {
        return;
    }
    let wrong = [
        ("PORT", "many"),
        ("PORT", "70000"),
        ("DB_PORT", "x"),
        ("DB_POOL", "ten"),
        ("REDIS_PORT", "x"),
        ("REDIS_DB", "x"),
        ("REDIS_URL", "http://127.0.0.1"),
        ("DATABASE_URL", "mysql://127.0.0.1"),
        ("SSE_HEARTBEAT_SECONDS", "soon"),
        ("BACKPRESSURE_HIGH_BYTES", "-1"),
    ];
    for (name, value) in wrong {
        let env: Env = [("NODE_ENV", "production"), ("PORT", "0"), (name, value)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let mut server = Server::spawn(&env);
        let status = server.until_exit();
        assert!(!status.success(), "{name}={value}: {status}");
        wait_until("the variable is named", PATIENCE, || server.output().contains(name));
        // What may hold a password is not repeated.
        let shown = server.output().contains(value);
        assert_eq!(shown, !name.ends_with("_URL"), "{name}={value}: {}", server.output());
        assert!(!server.output().contains("panicked"), "{}", server.output());
    }
}

#[test]
fn it_listens_on_a_socket_file_that_everybody_may_use() {
    use std::os::unix::fs::PermissionsExt;
    let Some(world) = World::start() else { return };
    let folder = Folder::new("socket");
    let path = folder.path().join("streaming.sock");
    let mut env = world.env.clone();
    env.insert("SOCKET".into(), path.to_str().unwrap().into());
    env.insert("PORT".into(), free_port().to_string());
    let server = Server::start(&env);
    assert!(server.listening_on().contains(path.to_str().unwrap()), "{}", server.listening_on());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let mut connection = Connection::unix(&path);
    connection.send(request("GET", HEALTH, &[]).as_bytes());
    assert_eq!(connection.response("GET").text(), "OK");
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    connection.send(request("GET", "/api/v1/streaming/user", &[("Authorization", &bearer)]).as_bytes());
    let mut sse = Sse::read_head(connection).unwrap();
    sse.expect_bytes(b":)\n");
    world.redis.until_subscribed(&viewer.user_channels());
    world.publish(&viewer.home(), r#"{"event":"delete","payload":"7"}"#);
    sse.expect("delete", "7");
}

#[test]
fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let folder = Folder::new("socket");
    let path = folder.path().join("streaming.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut env = world.env.clone();
    env.insert("SOCKET".into(), path.to_str().unwrap().into());
    let first = Server::start(&env);
    let mut second = Server::spawn(&env);
    assert!(!second.until_exit().success());
    let mut connection = Connection::unix(&path);
    connection.send(request("GET", HEALTH, &[]).as_bytes());
    assert_eq!(connection.response("GET").text(), "OK");
    drop(first);
}

#[test]
fn brackets_around_an_ipv6_address_are_taken_off() {
    let Some(world) = World::start() else { return };
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return left_out("needs IPv6");
    }
    let mut env = world.env.clone();
    env.insert("BIND".into(), "[::1]".into());
    let server = Server::start(&env);
    let port: u16 = server.listening_on().rsplit(':').next().unwrap().parse().unwrap();
    let mut connection = Connection::tcp(([0, 0, 0, 0, 0, 0, 0, 1], port).into());
    connection.send(request("GET", HEALTH, &[]).as_bytes());
    assert_eq!(connection.response("GET").text(), "OK");
}
