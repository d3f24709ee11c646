//! Who sees metrics, readiness and status pages where: the main port, `ADMIN_BIND`, direct and forwarded
//! requests, loopback and other peers, `STATUS_PUBLIC`, `METRICS_MAIN_PORT`.

#![cfg(feature = "stub_status")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use support::http::{Connection, Response, request};
use support::machine::{PATIENCE, wait_for};
use support::ws::UPGRADE;
use support::{Server, World, left_out, ours_alone, wait_until};

const STATUS: [&str; 5] =
    ["/status", "/status/", "/status/per_timeline", "/status/backpressure", "/status/backpresure"];

/// Where the listener of `ADMIN_BIND` is, as the log says.
fn admin_address(server: &Server) -> SocketAddr {
    const SAID: &str = "Metrics and status pages are on ";
    wait_for("the log names the admin listener", PATIENCE, || {
        let output = server.output();
        let (_, rest) = output.split_once(SAID)?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

fn ask(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut connection = Connection::tcp(at);
    connection.send(request(method, path, headers).as_bytes());
    connection.response(method)
}

fn get(at: SocketAddr, path: &str) -> Response {
    ask(at, "GET", path, &[])
}

/// An address of this machine that is not loopback; connecting to it makes it the peer's address too.
fn outside_address() -> Option<IpAddr> {
    // Nothing is sent: connecting only chooses a route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[test]
fn a_listener_of_its_own_has_metrics_readiness_and_every_status_page() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("ADMIN_BIND", "127.0.0.1:0")]) else { return };
    let admin = admin_address(&world.server);
    wait_until("it is ready", PATIENCE, || get(admin, "/ready").status() == 200);
    let metrics = get(admin, "/metrics");
    assert_eq!(metrics.status(), 200);
    assert!(metrics.text().contains("\nconnected_clients{type=\"websocket\"} 0\n"), "{}", metrics.text());
    for path in STATUS {
        let page = get(admin, path);
        assert_eq!(page.status(), 200, "{path}");
        // Nothing that a page of another site could read.
        assert_eq!(page.head.header("Access-Control-Allow-Origin"), None, "{path}");
        // Who can connect may see it: a proxy before it changes nothing.
        assert_eq!(ask(admin, "GET", path, &[("X-Forwarded-For", "203.0.113.9")]).status(), 200, "{path}");
        assert_eq!(ask(admin, "HEAD", path, &[]).status(), 200, "{path}");
    }
    let people = ask(admin, "GET", "/status", &[("Accept", "text/html")]);
    assert_eq!((people.status(), people.header("Location")), (303, "status/"));
    assert!(get(admin, "/status/").text().contains("<html"));
    let json = ask(admin, "GET", "/status", &[("Accept", "application/json")]);
    assert!(json.header("Content-Type").starts_with("application/json"));

    let mut live = Connection::tcp(admin);
    live.send(request("GET", "/status/stream", &[]).as_bytes());
    let head = live.head();
    assert_eq!((head.status, head.header("Content-Type")), (200, Some("text/event-stream")));
    for _ in 0..2 {
        let event = String::from_utf8(live.chunk().unwrap()).unwrap();
        assert!(event.starts_with("data: {") && event.ends_with("\n\n"), "{event}");
    }
    // The main port keeps what it had.
    assert_eq!(world.server.get("/metrics").status(), 200);
    assert_eq!(world.server.get("/status").status(), 200);
}

#[test]
fn streams_are_not_on_the_listener_for_pages() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("ADMIN_BIND", "127.0.0.1:0")]) else { return };
    let admin = admin_address(&world.server);
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    for path in ["/", "/nonsense", "/api/v1/streaming", "/api/v1/streaming/user", "/status/nonsense"] {
        let response = ask(admin, "GET", path, &[("Authorization", &bearer)]);
        assert_eq!(response.status(), 404, "{path}");
        assert!(response.text().contains("/metrics"), "{path}: says what is here: {}", response.text());
    }
    let upgrade = [&[("Authorization", bearer.as_str())][..], &UPGRADE].concat();
    assert_eq!(ask(admin, "GET", "/api/v1/streaming?stream=user", &upgrade).status(), 404);
    for method in ["POST", "DELETE"] {
        assert_eq!(ask(admin, method, "/metrics", &[]).status(), 404, "{method}");
    }
    assert_eq!(get(admin, "/api/v1/streaming/health").text(), "OK");
}

#[test]
fn metrics_leave_the_main_port_only_when_told_to() {
    if !ours_alone() {
        return;
    }
    let off = [("ADMIN_BIND", "127.0.0.1:0"), ("METRICS_MAIN_PORT", "false")];
    let Some(world) = World::with(&off) else { return };
    let main = world.server.address();
    get(main, "/metrics").assert_error(400, "Unknown channel requested");
    get(main, "/metrics/").assert_error(400, "Unknown channel requested");
    assert_eq!(get(admin_address(&world.server), "/metrics").status(), 200);
    // Whether it is ready concerns whoever sends clients here.
    wait_until("it is ready", PATIENCE, || get(main, "/ready").status() == 200);

    // Without the other listener there is nowhere else to look.
    let Some(world) = World::with(&[("METRICS_MAIN_PORT", "false")]) else { return };
    assert_eq!(world.server.get("/metrics").status(), 200);
}

#[test]
fn on_the_main_port_status_pages_are_for_direct_local_requests() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("BIND", "0.0.0.0")]) else { return };
    let port = world.server.address().port();
    let local = SocketAddr::from(([127, 0, 0, 1], port));
    for path in STATUS {
        assert_eq!(get(local, path).status(), 200, "{path}");
        for forwarded in ["X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "X-Real-IP", "Via"] {
            let passed_on = ask(local, "GET", path, &[(forwarded, "127.0.0.1")]);
            passed_on.assert_error(400, "Unknown channel requested");
        }
        get(local, &format!("/api/v1/streaming{path}")).assert_error(400, "Unknown channel requested");
    }
    assert_eq!(ask(local, "GET", "/metrics", &[("X-Forwarded-For", "203.0.113.9")]).status(), 200);
    let Some(outside) = outside_address() else {
        return left_out("needs an address besides loopback");
    };
    let outside = SocketAddr::new(outside, port);
    for path in STATUS {
        get(outside, path).assert_error(400, "Unknown channel requested");
    }
    get(outside, "/status/stream").assert_error(400, "Unknown channel requested");
    assert_eq!(get(outside, "/metrics").status(), 200);
}

#[test]
fn public_status_pages_are_for_everybody_and_under_the_streaming_prefix() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("BIND", "0.0.0.0"), ("STATUS_PUBLIC", "true")]) else { return };
    let port = world.server.address().port();
    let mut peers = vec![SocketAddr::from(([127, 0, 0, 1], port))];
    peers.extend(outside_address().map(|address| SocketAddr::new(address, port)));
    for peer in peers {
        for path in STATUS {
            for path in [path.to_owned(), format!("/api/v1/streaming{path}")] {
                let page = ask(peer, "GET", &path, &[("X-Forwarded-For", "203.0.113.9")]);
                assert_eq!(page.status(), 200, "{peer} {path}");
                // No page names an account or a token, whoever looks.
                assert!(!page.text().contains("access_token"), "{path}");
            }
        }
    }
}

#[test]
fn an_admin_address_in_use_fails_the_start_and_is_named() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut env = world.env.clone();
    env.insert("ADMIN_BIND".to_owned(), taken.local_addr().unwrap().to_string());
    let mut server = Server::spawn(&env);
    assert!(!server.until_exit().success());
    wait_until("it says why", PATIENCE, || {
        let output = server.output();
        output.contains("ADMIN_BIND") && output.contains("in use")
    });
}

#[test]
fn a_full_main_door_leaves_the_admin_listener_free() {
    if !ours_alone() {
        return;
    }
    let few = [("ADMIN_BIND", "127.0.0.1:0"), ("MAX_DOOR_CONNECTIONS", "1"), ("MAX_CONNECTIONS", "1")];
    let Some(world) = World::with(&few) else { return };
    let admin = admin_address(&world.server);
    let _idle: Vec<Connection> = (0..8).map(|_| world.server.connect()).collect();
    assert_eq!(get(admin, "/status").status(), 200);
    // And a crowd at the admin listener is bounded: the oldest idle ones make room.
    let _crowd: Vec<Connection> = (0..200).map(|_| Connection::tcp(admin)).collect();
    assert_eq!(get(admin, "/metrics").status(), 200);
}

#[test]
fn a_live_view_of_the_operators_stays_open_whoever_else_looks() {
    if !ours_alone() {
        return;
    }
    let settings = [("ADMIN_BIND", "127.0.0.1:0"), ("STATUS_PUBLIC", "true"), ("KEEP_ALIVE_SECONDS", "0")];
    let Some(world) = World::with(&settings) else { return };
    let open = |at: SocketAddr| {
        let mut connection = Connection::tcp(at);
        connection.send(request("GET", "/status/stream", &[]).as_bytes());
        let status = connection.head().status;
        (status, connection)
    };
    let public: Vec<_> = std::iter::repeat_with(|| open(world.server.address())).take(17).collect();
    assert_eq!(public.last().unwrap().0, 503, "there are so many for everybody");
    let (status, mut view) = open(admin_address(&world.server));
    assert_eq!(status, 200);
    // One a second, longer than a connection without a request is kept.
    for _ in 0..4 {
        view.chunk().expect("an event");
    }
}
