//! Requests for streams as proxies forward them: with a chunked body that has no chunk, in HTTP/1.0, with many header
//! lines.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::json;
use support::http::{Connection, request};
use support::posts::text_message;
use support::ws::{RawWs, UPGRADE, frame, upgrade};
use support::{Server, Sse, Viewer, World, ours_alone};

const HEALTH: &str = "/api/v1/streaming/health";
const USER: &str = "/api/v1/streaming/user";
const CHUNKED: (&str, &str) = ("Transfer-Encoding", "chunked");

/// Every form of the end of a body without bytes (RFC 9112, 7.1).
const EMPTY: &[&str] = &[
    "0\r\n\r\n",
    "000\r\n\r\n",
    "0;a\r\n\r\n",
    "0;a=b;c=\"d e\"\r\n\r\n",
    "0 \r\n\r\n",
    "0\r\nX-Trailer: a\r\nX-Other: b\r\n\r\n",
    "0;a=b\r\nContent-Length: 5\r\nAuthorization: other\r\n\r\n",
];

/// Returns when the server's door has handled what was sent to it before.
fn settle(server: &Server) {
    assert_eq!(server.get(HEALTH).text(), "OK");
}

/// A message reaches the stream whose request was answered on this connection.
#[track_caller]
fn sse_serves(world: &World, viewer: &Viewer, connection: Connection, what: &str) {
    let mut sse = Sse::read_head(connection)
        .unwrap_or_else(|response| panic!("{what}: {} {response:?}", response.text()));
    sse.expect_bytes(b":)\n");
    assert_eq!(world.publish(&viewer.home(), &text_message("delete", "1")), 1, "{what}");
    sse.expect("delete", "1");
}

/// A message reaches the stream `user` of the WebSocket that was asked for on this connection.
#[track_caller]
fn ws_serves(world: &World, viewer: &Viewer, mut connection: Connection, what: &str) -> RawWs {
    let head = connection.head();
    assert_eq!(head.status, 101, "{what}: {head:?}");
    let mut ws = RawWs { head, connection };
    assert_eq!(world.publish(&viewer.home(), &text_message("delete", "1")), 1, "{what}");
    assert_eq!(ws.next_text(), frame(&json!(["user"]), "delete", "1"), "{what}");
    ws
}

#[test]
fn chunked_request_without_a_chunk_opens_a_stream() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let token = ("Authorization", bearer.as_str());
    for end in EMPTY {
        let mut connection = world.server.connect();
        connection.send(format!("{}{end}", request("GET", USER, &[token, CHUNKED])).as_bytes());
        sse_serves(&world, &viewer, connection, end);
        world.redis.until_channels(&[]);

        let mut connection = world.server.connect();
        connection.send(format!("{}{end}", upgrade("/?stream=user", &[token, CHUNKED])).as_bytes());
        ws_serves(&world, &viewer, connection, end);
        world.redis.until_channels(&[]);
    }
    // With an expectation the end comes after the interim response; with no length at all nothing is to come.
    let mut connection = world.server.connect();
    let expecting = [token, CHUNKED, ("Expect", "100-continue")];
    connection.send(request("GET", USER, &expecting).as_bytes());
    assert_eq!(connection.head().status, 100);
    connection.send(b"0\r\n\r\n");
    sse_serves(&world, &viewer, connection, "an expectation");
    world.redis.until_channels(&[]);
    let mut connection = world.server.connect();
    connection.send(request("GET", USER, &[token, ("Content-Length", "0")]).as_bytes());
    sse_serves(&world, &viewer, connection, "Content-Length: 0");
}

#[test]
fn end_of_an_empty_body_may_come_in_pieces() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let token = ("Authorization", bearer.as_str());
    // What follows a WebSocket's request is its first frame.
    let unsubscribe = RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#);
    let end = b"0;a=b\r\nX-Trailer: c\r\n\r\n";
    for at in 0..=end.len() {
        let mut connection = world.server.connect();
        connection.send(&[request("GET", USER, &[token, CHUNKED]).as_bytes(), &end[..at]].concat());
        settle(&world.server);
        connection.send(&end[at..]);
        sse_serves(&world, &viewer, connection, &format!("split at {at}"));
        world.redis.until_channels(&[]);

        let mut connection = world.server.connect();
        let head = upgrade("/?stream=user", &[token, CHUNKED]);
        connection.send(&[head.as_bytes(), &end[..at]].concat());
        settle(&world.server);
        connection.send(&[&end[at..], &unsubscribe].concat());
        let head = connection.head();
        assert_eq!(head.status, 101, "split at {at}: {head:?}");
        let mut ws = RawWs { head, connection };
        assert_eq!(ws.next_text(), r#"{"error":"Unknown stream type","status":400}"#, "split at {at}");
        drop(ws);
        world.redis.until_channels(&[]);
    }
}

#[test]
fn bytes_after_an_empty_body_are_a_websockets_first_frames() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let head = upgrade("/?stream=user", &[("Authorization", &bearer), CHUNKED]);
    let frames = [
        RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#),
        RawWs::encode(0x89, b"0\r\n\r\n"),
    ];
    let all = [head.as_bytes(), b"0\r\nA: b\r\n\r\n", &frames.concat()].concat();
    // Split inside the frames too.
    for at in [all.len(), all.len() - 1, all.len() - frames[1].len(), all.len() - frames[1].len() - 3] {
        let mut connection = world.server.connect();
        connection.send(&all[..at]);
        settle(&world.server);
        connection.send(&all[at..]);
        let mut ws = RawWs { head: connection.head(), connection };
        assert_eq!(ws.head.status, 101, "{:?}", ws.head);
        assert_eq!(ws.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
        let pong = ws.next();
        assert_eq!((pong.opcode, pong.payload.as_slice()), (10, &b"0\r\n\r\n"[..]));
        drop(ws);
        world.redis.until_channels(&[]);
    }
}

#[test]
fn body_with_bytes_stays_refused() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let token = ("Authorization", bearer.as_str());
    let hidden = request("GET", HEALTH, &[]);
    let text = "A request for a stream must not have a body";
    for body in
        ["1\r\nx\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", "0a;b=c\r\n0123456789\r\n0\r\n\r\n", "1\r\nx"]
    {
        let mut connection = world.server.connect();
        connection.send(format!("{}{body}{hidden}", request("GET", USER, &[token, CHUNKED])).as_bytes());
        connection.response("GET").assert_error(400, text);
        connection.expect_closed();
        let mut connection = world.server.connect();
        connection.send(format!("{}{body}{hidden}", upgrade("/", &[token, CHUNKED])).as_bytes());
        let head = connection.head();
        assert_eq!((head.status, head.header("X-Error-Message")), (400, Some(text)), "{body:?}");
        connection.expect_closed();
    }
    // A declared length is not waited for, and asks for nothing.
    let mut connection = world.server.connect();
    let declared = [token, ("Content-Length", "5"), ("Expect", "100-continue")];
    connection.send(request("GET", USER, &declared).as_bytes());
    connection.response("GET").assert_error(400, text);
    connection.expect_closed();

    let text = "The body's chunked encoding is invalid";
    for body in [
        "zz\r\n\r\n",
        "0\rx",
        "0\r\n: x\r\n\r\n",
        "10000000000000000\r\n",
        "-0\r\n\r\n",
        "\r\n",
        "0x0\r\n\r\n",
    ] {
        let mut connection = world.server.connect();
        connection.send(format!("{}{body}{hidden}", request("GET", USER, &[token, CHUNKED])).as_bytes());
        connection.response("GET").assert_error(400, text);
        connection.expect_closed();
    }
    // What ends before its body did is no request.
    let mut connection = world.server.connect();
    connection.send(format!("{}0\r\n", request("GET", USER, &[token, CHUNKED])).as_bytes());
    connection.finish();
    connection.response("GET").assert_error(400, text);
    connection.expect_closed();
    world.until_empty();
}

#[test]
fn nothing_hides_behind_an_empty_body() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let token = ("Authorization", bearer.as_str());
    let hidden = request("GET", "/favicon.ico", &[]);
    let lengths: [&[(&str, &str)]; 4] = [
        &[CHUNKED],
        &[("Content-Length", "5"), CHUNKED],
        &[CHUNKED, ("Content-Length", "5")],
        &[("Transfer-Encoding", "gzip, chunked")],
    ];
    for lengths in lengths {
        // After a stream's request there is no other one.
        let mut connection = world.server.connect();
        let head = request("GET", USER, &[&[token], lengths].concat());
        connection.send(format!("{head}0\r\n\r\n{hidden}").as_bytes());
        sse_serves(&world, &viewer, connection, &format!("{lengths:?}"));
        // A refusal closes the connection, and so does a page.
        for (path, status) in [(USER, 401), (HEALTH, 200)] {
            let mut connection = world.server.connect();
            connection.send(format!("{}0\r\n\r\n{hidden}", request("GET", path, lengths)).as_bytes());
            assert_eq!(connection.response("GET").status(), status);
            connection.expect_closed();
        }
        for (method, status) in [("HEAD", 200), ("OPTIONS", 204)] {
            let mut connection = world.server.connect();
            let head = request(method, USER, &[&[token], lengths].concat());
            connection.send(format!("{head}0\r\n\r\n{hidden}").as_bytes());
            assert_eq!(connection.response(method).status(), status, "{method} {lengths:?}");
            connection.expect_closed();
        }
    }
    world.until_empty();
}

#[test]
fn end_of_an_empty_body_has_the_time_of_a_head() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("REQUEST_HEAD_SECONDS", "1"), ("KEEP_ALIVE_SECONDS", "3600")]) else {
        return;
    };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let token = ("Authorization", bearer.as_str());
    let requests = [
        request("GET", USER, &[token, CHUNKED]),
        upgrade("/", &[token, CHUNKED]),
        // Neither the second request of a connection nor one that was sent with the first has longer.
        request("GET", HEALTH, &[]) + &request("GET", USER, &[token, CHUNKED]),
    ];
    let mut late = Vec::new();
    for text in &requests {
        for end in ["", "0", "0\r\n", "0;a=b\r\nX-Trailer: c\r\n"] {
            let mut connection = world.server.connect();
            let text = format!("{text}{end}");
            connection.send(text.as_bytes());
            late.push((connection, text));
        }
    }
    for (connection, text) in &mut late {
        if text.contains(HEALTH) {
            assert_eq!(connection.response("GET").text(), "OK");
        }
        assert_eq!(connection.head().status, 408, "{text:?}");
        connection.expect_closed();
    }
    let counted = late.len() as f64;
    world.server.until_metric("tidegate_refused_total", &[("reason", "head_time")], counted);
    world.until_empty();
}

#[test]
fn waiting_for_the_end_of_a_body_keeps_no_place_at_a_full_door() {
    if !ours_alone() {
        return;
    }
    let few = [("MAX_DOOR_CONNECTIONS", "8"), ("REQUEST_HEAD_SECONDS", "3600")];
    let Some(world) = World::with(&few) else { return };
    let mut waiting: Vec<Connection> = (0..8)
        .map(|_| {
            let mut connection = world.server.connect();
            connection.send(request("GET", USER, &[CHUNKED]).as_bytes());
            connection
        })
        .collect();
    // Each newcomer takes the place of the one that has waited longest.
    let mut newcomers = Vec::new();
    for connection in &mut waiting {
        newcomers.push(world.server.connect());
        connection.expect_closed();
    }
}

#[test]
fn websocket_opens_by_http_1_0() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let old = |headers: &[(&str, &str)]| {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("GET /?stream=user HTTP/1.0\r\n{lines}\r\n")
    };
    let token = ("Authorization", bearer.as_str());
    let host = ("Host", "streaming.example");
    for more in [&[token][..], &[token, host], &[token, ("Connection", "keep-alive")]] {
        let mut connection = world.server.connect();
        connection.send(old(&[&UPGRADE[..], more].concat()).as_bytes());
        let mut ws = ws_serves(&world, &viewer, connection, &format!("{more:?}"));
        ws.send_text(r#"{"type":"subscribe","stream":"nonsense"}"#);
        assert_eq!(ws.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
        drop(ws);
        world.redis.until_channels(&[]);
    }
    let mut connection = world.server.connect();
    connection.send(old(&[&UPGRADE[..], &[("Authorization", "wrong")]].concat()).as_bytes());
    let head = connection.head();
    assert_eq!((head.status, head.header("X-Error-Message")), (401, Some("Invalid access token")));
    connection.expect_closed();
    if ours_alone() {
        // HTTP/1.0 knows no chunks.
        let mut connection = world.server.connect();
        let chunked = old(&[&UPGRADE[..], &[token, CHUNKED]].concat()) + "0\r\n\r\n";
        connection.send(chunked.as_bytes());
        assert_eq!(connection.head().status, 400);
        connection.expect_closed();
    }
}

/// So many header lines of the least length, with different names.
fn lines(count: usize) -> String {
    let letters = |n: usize| [b'a' + (n / 676 % 26) as u8, b'a' + (n / 26 % 26) as u8, b'a' + (n % 26) as u8];
    (0..count).map(|n| format!("{}:\r\n", String::from_utf8_lossy(&letters(n)))).collect()
}

fn with_lines(text: &str, count: usize) -> String {
    text.replacen("Host:", &format!("{}Host:", lines(count)), 1)
}

#[test]
fn many_header_lines_are_read() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let token = ("Authorization", bearer.as_str());
    for count in [90, 101, 500, 1_900] {
        let mut connection = world.server.connect();
        connection.send(with_lines(&request("GET", HEALTH, &[]), count).as_bytes());
        assert_eq!(connection.response("GET").text(), "OK", "{count} lines");
        // The same connection again.
        connection.send(with_lines(&request("GET", USER, &[token]), count).as_bytes());
        sse_serves(&world, &viewer, connection, &format!("{count} lines"));
        world.redis.until_channels(&[]);
        let mut connection = world.server.connect();
        connection.send(with_lines(&upgrade("/?stream=user", &[token]), count).as_bytes());
        ws_serves(&world, &viewer, connection, &format!("{count} lines"));
        world.redis.until_channels(&[]);
    }
    if ours_alone() {
        let mut connection = world.server.connect();
        connection.send(with_lines(&request("GET", HEALTH, &[]), 2_001).as_bytes());
        assert_eq!(connection.head().status, 431);
        connection.expect_closed();
    }
}

#[test]
fn many_header_lines_mean_the_same() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("MAX_CONNECTIONS_PER_ADDRESS", "1")]) else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let token = ("Authorization", bearer.as_str());
    let ask = |lines: usize, headers: &[(&str, &str)]| {
        let mut connection = world.server.connect();
        connection.send(with_lines(&request("GET", USER, headers), lines).as_bytes());
        let response = connection.head();
        (response.status, connection)
    };
    for lines in [0, 300] {
        // The address is the last one that is no proxy's, however many lines name proxies after it.
        let proxies = vec![("X-Forwarded-For", "127.0.0.1"); 120];
        let ask_from =
            |address: &str| ask(lines, &[&[token, ("X-Forwarded-For", address)], &proxies[..]].concat());
        let (first, second) = (format!("198.51.100.{}", lines % 251), format!("203.0.113.{}", lines % 251));
        let (status, _kept) = ask_from(&format!("{first}, 10.0.0.1"));
        assert_eq!(status, 200);
        assert_eq!(ask_from(&first).0, 429);
        assert_eq!(ask_from(&second).0, 200);
        // Two hosts are one too many.
        assert_eq!(ask(lines, &[token, ("Host", "other")]).0, 400);
        // `close` may stand in any line.
        let mut connection = world.server.connect();
        let closing = [("Connection", "x"), ("Connection", "y, close"), ("Connection", "z")];
        connection.send(with_lines(&request("GET", HEALTH, &closing), lines).as_bytes());
        assert_eq!(connection.response("GET").text(), "OK");
        connection.expect_closed();
        // A proxy's line among them keeps the status pages closed.
        for (header, status) in [("X-Forwarded-Proto", 400), ("Via", 400), ("X-Other", 200)] {
            let mut connection = world.server.connect();
            connection.send(with_lines(&request("GET", "/status", &[(header, "x")]), lines).as_bytes());
            assert_eq!(connection.response("GET").status(), status, "{header} among {lines}");
        }
    }
}

#[test]
fn many_header_lines_cost_nothing_while_a_request_waits() {
    if !ours_alone() {
        return;
    }
    const WAITING: usize = 400;
    let Some(world) = World::with(&[("REQUEST_HEAD_SECONDS", "3600")]) else { return };
    let per_connection = |lines: usize| {
        let before = world.server.rss_kib();
        let waiting: Vec<Connection> = (0..WAITING)
            .map(|_| {
                let mut connection = world.server.connect();
                connection.send(with_lines(&request("GET", USER, &[CHUNKED]), lines).as_bytes());
                connection
            })
            .collect();
        settle(&world.server);
        let grown = world.server.rss_kib().saturating_sub(before);
        drop(waiting);
        world.server.until_metric("tidegate_door_connections", &[], 1.0);
        grown / WAITING as u64
    };
    // The first round is the allocator's own growth.
    let (few, many) = (per_connection(90), per_connection(1_900));
    assert!(many < few + 24, "a waiting request: {few} KiB with 90 header lines, {many} KiB with 1,900");
}
