//! What comes in at the door and is not the HTTP of a well-behaved client: each gets a right status or a close,
//! soon, and at a bounded cost; and nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use support::http::{Connection, request};
use support::machine::PATIENCE;
use support::ws::{KEY, upgrade};
use support::{Server, Sse, World, ours_alone, wait_until};

const HEALTH: &str = "/api/v1/streaming/health";
const USER: &str = "/api/v1/streaming/user";

/// What a connection is like after its answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Ended by the server, without another byte.
    Closed,
    /// Ready for another request, which is read as one.
    Open,
}
use Then::{Closed, Open};

struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    answers: &'static [u16],
    then: Then,
}

fn case(what: &'static str, bytes: impl Into<Vec<u8>>, answers: &'static [u16], then: Then) -> Case {
    Case { what, bytes: bytes.into(), answers, then }
}

/// Sends a case's bytes and checks what comes back.
#[track_caller]
fn check(world: &World, case: &Case) {
    let mut connection = world.server.connect();
    // The answer may come, and the connection end, before everything is sent.
    let _ = connection.try_send(&case.bytes);
    for (number, status) in case.answers.iter().enumerate() {
        let response = answer(&mut connection)
            .unwrap_or_else(|| panic!("{}: closed before answer {number} ({status})", case.what));
        assert_eq!(response, *status, "{}: answer {number}", case.what);
    }
    match case.then {
        Closed => {
            let rest = connection.until_closed();
            assert!(rest.is_empty(), "{}: {:?}", case.what, String::from_utf8_lossy(&rest));
        }
        Open => {
            connection.send(request("GET", HEALTH, &[]).as_bytes());
            assert_eq!(connection.response("GET").text(), "OK", "{}: one request further", case.what);
        }
    }
}

/// The status of the next response, whose body is read too; `None` at the end.
fn answer(connection: &mut Connection) -> Option<u16> {
    while !connection.buffer.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if connection.read_more().ok()? == 0 {
            return None;
        }
    }
    Some(connection.response("GET").status())
}

/// A request in these very bytes, but for `\n`, which stands for CR LF.
fn raw(text: &str) -> Vec<u8> {
    text.replace('\n', "\r\n").into_bytes()
}

fn health(extra: &str) -> Vec<u8> {
    raw(&format!("GET {HEALTH} HTTP/1.1\nHost: x\n{extra}\n"))
}

#[test]
fn what_is_no_http_is_refused_and_closed() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let cases = [
        case("nonsense", "nonsense\r\n\r\n", &[400], Closed),
        case("a NUL in the request line", &b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[400], Closed),
        case("two blanks", raw("GET  / HTTP/1.1\nHost: x\n\n"), &[400], Closed),
        case("a blank in the target", raw("GET /a b HTTP/1.1\nHost: x\n\n"), &[400], Closed),
        case("no version", raw("GET /\nHost: x\n\n"), &[400], Closed),
        case("a version of the future", raw("GET / HTTP/3.7\nHost: x\n\n"), &[400], Closed),
        case("HTTP/2 without asking", raw("PRI * HTTP/2.0\n\nSM\n\n"), &[], Closed),
        case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(4), &[400], Closed),
        case("a method of junk", raw("G(T / HTTP/1.1\nHost: x\n\n"), &[400], Closed),
        case("a header without a colon", raw("GET / HTTP/1.1\nHost: x\nnonsense\n\n"), &[400], Closed),
        case("a blank before the colon", raw("GET / HTTP/1.1\nHost: x\nA : b\n\n"), &[400], Closed),
        case("a blank in a name", raw("GET / HTTP/1.1\nHost: x\nA b: c\n\n"), &[400], Closed),
        case("no name", raw("GET / HTTP/1.1\nHost: x\n: c\n\n"), &[400], Closed),
        case("a NUL in a header", &b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n"[..], &[400], Closed),
        case("a bare CR", &b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n"[..], &[400], Closed),
        case("a folded header", raw("GET / HTTP/1.1\nHost: x\nA: b\n c\n\n"), &[400], Closed),
        case("a folded first header", raw("GET / HTTP/1.1\n Host: x\n\n"), &[400], Closed),
        case("a non-ASCII name", raw("GET / HTTP/1.1\nHost: x\nÄ: b\n\n"), &[400], Closed),
    ];
    for case in &cases {
        check(&world, case);
    }
    world.server.until_metric("tidegate_refused_total", &[("reason", "malformed")], cases.len() as f64);
    // A half request and then the end is just over.
    let mut connection = world.server.connect();
    connection.send(b"GET / HTTP/1.1\r\nHo");
    connection.finish();
    connection.expect_closed();
}

#[test]
fn nothing_hides_behind_a_request() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let hidden = raw(&format!("GET {HEALTH} HTTP/1.1\nHost: x\n\n"));
    let with = |head: &str, rest: &[u8]| [health(head), rest.to_vec()].concat();
    let chunked = |hidden: &[u8]| [b"0\r\n\r\n", hidden].concat();
    let cases = [
        // Whoever stands in front may have taken either length: only one answer, and no second request.
        case(
            "both lengths",
            with("Content-Length: 5\nTransfer-Encoding: chunked\n", &chunked(&hidden)),
            &[200],
            Closed,
        ),
        case(
            "both, the other way",
            with("Transfer-Encoding: chunked\nContent-Length: 5\n", &chunked(&hidden)),
            &[200],
            Closed,
        ),
        case("two lengths", with("Content-Length: 0\nContent-Length: 5\n", &hidden), &[400], Closed),
        case("two lengths in one", with("Content-Length: 0, 5\n", &hidden), &[400], Closed),
        case("a signed length", with("Content-Length: +0\n", &hidden), &[400], Closed),
        case("a negative length", with("Content-Length: -1\n", &hidden), &[400], Closed),
        case("a length in hexadecimal", with("Content-Length: 0x0\n", &hidden), &[400], Closed),
        case(
            "a length that overflows",
            with("Content-Length: 99999999999999999999\n", &hidden),
            &[400],
            Closed,
        ),
        case("a coding that is not chunked", with("Transfer-Encoding: gzip\n", &hidden), &[400], Closed),
        case("chunked is not the last", with("Transfer-Encoding: chunked, gzip\n", &hidden), &[400], Closed),
        case("almost chunked", with("Transfer-Encoding: xchunked\n", &hidden), &[400], Closed),
        case("chunked, folded", with("Transfer-Encoding:\n chunked\n", &hidden), &[400], Closed),
        case("a body on GET", with("Content-Length: 5\n", b"hello"), &[200], Closed),
        case(
            "a request as a body",
            with(&format!("Content-Length: {}\n", hidden.len()), &hidden),
            &[200],
            Closed,
        ),
        case(
            "chunks on GET",
            with("Transfer-Encoding: chunked\n", b"5\r\nhello\r\n0\r\n\r\n"),
            &[200],
            Closed,
        ),
        case("a body that never comes", with("Content-Length: 1000000\n", b""), &[200], Closed),
        case("a body of no length", with("Content-Length: 0\n", b""), &[200], Open),
        case(
            "old and chunked",
            [&raw(&format!("GET {HEALTH} HTTP/1.0\nTransfer-Encoding: chunked\n\n"))[..], &hidden].concat(),
            &[400],
            Closed,
        ),
    ];
    for case in &cases {
        check(&world, case);
    }
    // A line may end in LF alone (RFC 9112, 2.2); then it ends there for everything.
    let bare = format!("GET {HEALTH} HTTP/1.1\nHost: x\n\nGET /nonsense HTTP/1.1\nHost: x\n\n");
    check(&world, &case("bare LF", bare, &[200, 400], Open));
    let mixed = format!("GET {HEALTH} HTTP/1.1\r\nHost: x\nContent-Length: 5\r\n\nhello");
    check(&world, &case("mixed line ends", mixed, &[200], Closed));
}

#[test]
fn requests_are_answered_in_their_order_one_by_one() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let nonsense = raw("GET /nonsense HTTP/1.1\nHost: x\n\n");
    let both = [health(""), nonsense].concat();
    let cases = [
        case("two", both.clone(), &[200, 400], Open),
        case("six", both.repeat(3), &[200, 400, 200, 400, 200, 400], Open),
        case("empty lines before", [b"\r\n\r\n", &health("")[..]].concat(), &[200], Open),
        case(
            "a refusal on the way",
            [raw(&format!("GET {USER} HTTP/1.1\nHost: x\n\n")), health("")].concat(),
            &[401, 200],
            Open,
        ),
        case("bytes after the last", [&health("Connection: close\n")[..], b"more"].concat(), &[200], Closed),
        case("nothing after the last", [health("Connection: close\n"), health("")].concat(), &[200], Closed),
        case("junk after a request", [&health("")[..], b"\0\0\0\0\r\n\r\n"].concat(), &[200, 400], Closed),
    ];
    for case in &cases {
        check(&world, case);
    }
    // What follows a stream's request is no request: the stream goes on undisturbed.
    let viewer = world.viewer("read");
    let mut connection = world.server.connect();
    let stream = request("GET", USER, &[("Authorization", &viewer.bearer())]);
    connection.send(&[stream.as_bytes(), &health("").repeat(20), b"junk"].concat());
    let mut sse = Sse::read_head(connection).unwrap();
    sse.expect_bytes(b":)\n");
    sse.connection.send(&health(""));
    world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
    sse.expect("delete", "1");
    drop(sse);
    world.until_empty();
}

#[test]
fn odd_targets_and_versions() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let get = |target: &str| raw(&format!("GET {target} HTTP/1.1\nHost: x\n\n"));
    let cases = [
        case("an absolute URI", get(&format!("http://other.example{HEALTH}")), &[200], Open),
        case("an absolute URI of nothing", get("http://other.example"), &[400], Open),
        case("a URI of another scheme", get("gopher://x/1"), &[400], Open),
        case("no slash", get("nonsense"), &[400], Open),
        case("an asterisk", raw("OPTIONS * HTTP/1.1\nHost: x\n\n"), &[204], Open),
        case("a way through", raw("CONNECT other.example:443 HTTP/1.1\nHost: x\n\n"), &[400], Open),
        case("TRACE", raw("TRACE / HTTP/1.1\nHost: x\n\n"), &[400], Open),
        case("a method of its own", raw(&format!("BREW {USER} HTTP/1.1\nHost: x\n\n")), &[405], Open),
        case("two slashes", get(&format!("/{HEALTH}")), &[400], Open),
        case("a way up", get("/api/v1/streaming/../streaming/health"), &[400], Open),
        case("a backslash", get("\\api\\v1"), &[400], Closed),
        case("a fragment", get(&format!("{HEALTH}#x")), &[200], Open),
        case("an encoded slash", get("/api/v1/streaming%2Fhealth"), &[400], Open),
        case("an encoded letter", get("/api/v1/streaming/%75ser"), &[400], Open),
        case("no hexadecimal digits", get("/api/v1/streaming/%zz"), &[400], Open),
        case("half an encoding", get("/api/v1/streaming/user%"), &[400], Open),
        case("an encoded NUL", get("/api/v1/streaming/user%00"), &[400], Open),
        case("no UTF-8", get("/api/v1/streaming/%ff%fe"), &[400], Open),
        case("junk in the query", get(&format!("{USER}?%zz=%&&=&a=b=c&%ff")), &[401], Open),
        case("a query of question marks", get(&format!("{USER}????")), &[401], Open),
        case("raw bytes in the path", &b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[400], Closed),
        case("no host", raw(&format!("GET {HEALTH} HTTP/1.1\n\n")), &[400], Open),
        case("two hosts", raw(&format!("GET {HEALTH} HTTP/1.1\nHost: x\nHost: y\n\n")), &[400], Open),
        case("an old client", raw(&format!("GET {HEALTH} HTTP/1.0\n\n")), &[200], Closed),
        case(
            "an old client without a token",
            raw(&format!("GET {USER} HTTP/1.0\nHost: x\n\n")),
            &[401],
            Closed,
        ),
        case("an expectation", health("Expect: 100-continue\n"), &[200], Open),
        case("an expectation of its own", health("Expect: the unexpected\n"), &[200], Open),
        // No 100 Continue asks for a body that nobody wants.
        case(
            "an expectation and a body",
            health("Expect: 100-continue\nContent-Length: 5\n"),
            &[200],
            Closed,
        ),
        case(
            "an expectation on a stream",
            raw(&format!("POST {USER} HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: 5\n\n")),
            &[405],
            Closed,
        ),
    ];
    for case in &cases {
        check(&world, case);
    }
    // An old client gets its stream without chunks; its end is the end of the connection.
    let viewer = world.viewer("read");
    let mut connection = world.server.connect();
    let old = raw(&format!("GET {USER} HTTP/1.0\nAuthorization: {}\n\n", viewer.bearer()));
    connection.send(&old);
    let head = connection.head();
    assert_eq!((head.status, head.header("Transfer-Encoding")), (200, None));
    assert_eq!(head.header("Connection"), Some("close"));
    assert_eq!(connection.take(3), b":)\n");
    world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
    assert_eq!(connection.take_until(b"\n\n"), b"event: delete\ndata: 1\n\n");
}

#[test]
fn a_bad_upgrade_is_told_what_a_good_one_is() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let ask = |version: &str, headers: &[(&str, &str)]| {
        let mut text = format!("GET /api/v1/streaming {version}\r\nHost: x\r\nAuthorization: {bearer}\r\n");
        for (name, value) in [("Connection", "Upgrade"), ("Upgrade", "websocket")].iter().chain(headers) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut connection = world.server.connect();
        connection.send(format!("{text}\r\n").as_bytes());
        (connection.head(), connection)
    };
    let key = ("Sec-WebSocket-Key", KEY);
    let version = ("Sec-WebSocket-Version", "13");
    for versions in [&[][..], &[("Sec-WebSocket-Version", "12")], &[("Sec-WebSocket-Version", "13, 8")]] {
        let (head, mut connection) = ask("HTTP/1.1", &[&[key], versions].concat());
        assert_eq!(head.status, 426, "{versions:?}");
        assert_eq!(head.header("Sec-WebSocket-Version"), Some("13"));
        assert_eq!(head.header("Upgrade"), Some("websocket"));
        assert!(head.header("Connection").unwrap().contains("close"), "{head:?}");
        connection.expect_closed();
    }
    let short = ("Sec-WebSocket-Key", "dG9vIHNob3J0");
    let junk = ("Sec-WebSocket-Key", "!!!!!!!!!!!!!!!!!!!!!!==");
    for keys in [&[][..], &[short], &[junk], &[("Sec-WebSocket-Key", "")]] {
        let (head, mut connection) = ask("HTTP/1.1", &[&[version], keys].concat());
        assert_eq!(head.status, 400, "{keys:?}");
        assert!(head.header("X-Error-Message").is_some_and(|text| text.contains("Sec-WebSocket-Key")));
        connection.expect_closed();
    }
    // An upgrade with a body is none.
    let (head, mut connection) = ask("HTTP/1.1", &[version, key, ("Content-Length", "5")]);
    assert_eq!(head.status, 400);
    connection.expect_closed();
    let (head, _) = ask("HTTP/1.0", &[version, key]);
    assert_eq!((head.status, head.header("Upgrade")), (101, Some("websocket")));
    let post = upgrade("/", &[("Authorization", &bearer)]).replacen("GET", "POST", 1);
    check(&world, &case("an upgrade by POST", post, &[405], Closed));
    world.until_empty();
}

#[test]
fn a_head_has_a_size() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let long = |bytes: usize| health(&format!("X-Long: {}\n", "x".repeat(bytes)));
    let many = |count: usize| health(&(0..count).map(|n| format!("X-{n}: x\n")).collect::<String>());
    let target = |bytes: usize| raw(&format!("GET {HEALTH}?{} HTTP/1.1\nHost: x\n\n", "x".repeat(bytes)));
    let cases = [
        case("a long header", long(15 << 10), &[200], Open),
        case("a header that is too long", long(17 << 10), &[431], Closed),
        case("a header that never ends", long(1 << 20), &[431], Closed),
        case("many headers", many(98), &[200], Open),
        case("more headers than most servers take", many(1_000), &[200], Open),
        case("too many headers", many(2_001), &[431], Closed),
        case("a flood of headers", many(20_000), &[431], Closed),
        case(
            "a flood of nameless headers",
            [health(""), b":\r\n".repeat(1000)].concat(),
            &[200, 400],
            Closed,
        ),
        case("a long target", target(15 << 10), &[200], Open),
        case("a target that is too long", target(17 << 10), &[431], Closed),
        case("a target that never ends", target(1 << 20), &[431], Closed),
        case("a line that never ends", b"x".repeat(1 << 20), &[431], Closed),
        case("empty lines for ever", b"\r\n".repeat(1 << 18), &[431], Closed),
    ];
    let before = world.server.rss_kib();
    for case in &cases {
        check(&world, case);
    }
    let after = world.server.rss_kib();
    assert!(after < before + 4096, "{before} KiB before, {after} KiB after");
    assert!(world.server.metric("tidegate_refused_total", &[("reason", "head_size")]).unwrap() >= 7.0);
}

#[test]
fn a_byte_now_and_then_is_not_enough() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("REQUEST_HEAD_SECONDS", "0.5")]) else { return };
    let text = health("X-Slow: loris\n");
    let mut slow: Vec<(Connection, bool)> = (0..60).map(|_| (world.server.connect(), false)).collect();
    // The second head of a connection has the same time as the first.
    for (connection, _) in slow.iter_mut().take(20) {
        connection.send(&health(""));
        assert_eq!(connection.response("GET").status(), 200);
    }
    let began = Instant::now();
    let mut at = 0;
    wait_until("all have been sent away", PATIENCE, || {
        let byte = [text[at.min(text.len() - 8)]];
        at += 1;
        for (connection, gone) in &mut slow {
            connection.patience(Duration::from_millis(1));
            *gone = *gone || connection.try_send(&byte).is_err() || matches!(connection.read_more(), Ok(0));
        }
        // Nobody else has to wait.
        assert_eq!(world.server.get(HEALTH).text(), "OK");
        slow.iter().all(|(_, gone)| *gone)
    });
    assert!(began.elapsed() >= Duration::from_millis(400), "they had some time: {:?}", began.elapsed());
    for (connection, _) in &mut slow {
        let told = connection.until_closed();
        assert!(
            told.starts_with(b"HTTP/1.1 408 ") || told.is_empty(),
            "{:?}",
            String::from_utf8_lossy(&told)
        );
    }
    world.server.until_metric("tidegate_refused_total", &[("reason", "head_time")], 60.0);
    world.server.until_metric("tidegate_door_connections", &[], 1.0);
}

#[test]
fn an_idle_connection_has_a_time_of_its_own() {
    if !ours_alone() {
        return;
    }
    let settings = [("REQUEST_HEAD_SECONDS", "0.3"), ("KEEP_ALIVE_SECONDS", "60")];
    let Some(world) = World::with(&settings) else { return };
    let mut idle = world.server.connect();
    idle.send(&health(""));
    assert_eq!(idle.response("GET").header("Keep-Alive"), "timeout=60");
    // One that came later and says nothing is sent away first …
    world.server.connect().expect_closed();
    // … and the idle one is still welcome.
    idle.send(&health(""));
    assert_eq!(idle.response("GET").text(), "OK");

    let Some(world) = World::with(&[("KEEP_ALIVE_SECONDS", "0")]) else { return };
    let mut live = world.server.connect();
    live.send(request("GET", "/status/stream", &[]).as_bytes());
    assert_eq!(live.head().status, 200);
    let mut idle = world.server.connect();
    idle.send(&health(""));
    assert_eq!(idle.response("GET").header("Keep-Alive"), "timeout=0");
    idle.expect_closed();
    assert_eq!(world.server.metric("tidegate_refused_total", &[("reason", "head_time")]), Some(0.0));
    // A page without an end is not idle.
    live.buffer.clear();
    assert!(live.read_more().is_ok_and(|read| read > 0), "the live view has ended");
}

#[test]
fn who_asks_again_and_again_does_not_keep_the_door_full() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("MAX_DOOR_CONNECTIONS", "8")]) else { return };
    let wrong = request("GET", USER, &[("Authorization", "Bearer wrong")]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    let mut connection = world.server.connect();
                    // Never without a question for a second. Each waits for PostgreSQL.
                    while connection.try_send(wrong.as_bytes()).is_ok()
                        && answer(&mut connection).is_some()
                        && !done.load(Relaxed)
                    {
                        std::thread::park_timeout(Duration::from_millis(100));
                    }
                }
            });
        }
        let newcomers = scope.spawn(|| (0..5).map(|_| world.server.get(HEALTH).text()).collect::<Vec<_>>());
        let answers = newcomers.join();
        done.store(true, Relaxed);
        assert_eq!(answers.unwrap(), ["OK"; 5]);
    });
}

#[test]
fn a_crowd_at_the_door_leaves_descriptors_for_everything_else() {
    if !ours_alone() {
        return;
    }
    const DESCRIPTORS: u32 = 200;
    let Some(mut world) = World::start() else { return };
    world.server = Server::start_with_descriptors(DESCRIPTORS, &world.env);
    let mut crowd = Vec::new();
    let mut most = 0;
    // The kernel takes them all; the server takes as many as it has room for.
    for _ in 0..DESCRIPTORS + 50 {
        crowd.push(world.server.connect());
        most = most.max(world.server.descriptors());
    }
    // Those who say nothing for a second make room.
    assert_eq!(world.server.get(HEALTH).text(), "OK");
    most = most.max(world.server.descriptors());
    assert!(most < DESCRIPTORS as usize - 50, "{most} of {DESCRIPTORS} are in use");
    assert!(!world.server.output().contains("cannot accept"), "{}", world.server.output());
    drop(crowd);
}

#[test]
fn what_is_too_long_for_a_token_costs_no_more_than_its_head() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let before = world.server.rss_kib();
    let long = "q".repeat(15 << 10);
    let mut crowd: Vec<Connection> = (0..200).map(|_| world.server.connect()).collect();
    for _ in 0..5 {
        for (n, connection) in crowd.iter_mut().enumerate() {
            let bearer = format!("Bearer {n}{long}");
            connection.send(request("GET", USER, &[("Authorization", &bearer)]).as_bytes());
        }
        for connection in &mut crowd {
            connection.response("GET").assert_error(401, "Invalid access token");
        }
    }
    let after = world.server.rss_kib();
    assert!(after < before + 200 * 64, "{before} KiB have become {after} KiB");
}

#[test]
fn unfinished_heads_cost_little_and_are_given_back() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("MAX_DOOR_CONNECTIONS", "500")]) else { return };
    let before = world.server.rss_kib();
    let half = [&b"GET / HTTP/1.1\r\nX-Long: "[..], &b"x".repeat(15 << 10)].concat();
    // More than there is room for: the oldest make room.
    let mut crowd: Vec<Connection> = Vec::new();
    for _ in 0..700 {
        let mut connection = world.server.connect();
        connection.send(&half);
        crowd.push(connection);
    }
    // Who has to go is told so, and counts until it has gone.
    wait_until("the door is full and no fuller", PATIENCE, || {
        let count = world.server.metric("tidegate_door_connections", &[]);
        count.is_some_and(|count| (490.0..=501.0).contains(&count))
    });
    let evicted = world.server.metric("tidegate_refused_total", &[("reason", "evicted")]).unwrap();
    assert!(evicted >= 190.0, "{evicted} made room");
    let full = world.server.rss_kib();
    assert!(full < before + 500 * 64, "{before} KiB empty, {full} KiB with half heads");
    assert_eq!(world.server.get(HEALTH).text(), "OK");
    drop(crowd);
    world.server.until_metric("tidegate_door_connections", &[], 1.0);
    wait_until("memory comes back", PATIENCE, || world.server.rss_kib() < before + 8192);
}
