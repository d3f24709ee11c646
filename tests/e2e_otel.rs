//! Traces, as an OTLP receiver gets them (`support::otel`): what is in spans, whose trace they are in, and that no
//! secret is in any.
//!
//! Needs the feature: `cargo test --features otel --test e2e_otel`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{SystemTime, UNIX_EPOCH};

use support::http::{Connection, request};
use support::otel::{Span, Tap, traced};
use support::posts::{message, status, text_message};
use support::{Server, Sse, Ws};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

const USER: &str = "/api/v1/streaming/user";

fn nanoseconds_now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

fn open_sse(server: &Server, path: &str, headers: &[(&str, &str)]) -> Sse {
    let mut connection = server.connect();
    connection.send(request("GET", path, headers).as_bytes());
    Sse::read_head(connection).unwrap_or_else(|response| panic!("{}", response.text()))
}

#[test]
fn a_handshake_is_part_of_its_proxys_trace_and_the_last_spans_are_sent_at_the_end() {
    // Nothing is sent before the end.
    let variables = [("OTEL_BSP_SCHEDULE_DELAY", "3600000"), ("DRAIN_SECONDS", "0")];
    let Some((receiver, tap, mut world)) = traced(&variables) else { return };
    let viewer = world.viewer("read");
    let parent = traceparent("01");
    let bearer = viewer.bearer();
    let sse = open_sse(&world.server, USER, &[("Authorization", &bearer), ("traceparent", &parent)]);
    let path = format!("/api/v1/streaming/?stream=public&access_token={}", viewer.token);
    let mut ws = Ws::try_open(world.server.address(), &path, &[]).unwrap();
    ws.send("{}");
    assert!(receiver.spans().is_empty());
    drop((sse, ws));
    world.server.signal("TERM");
    assert!(world.server.until_exit().success());

    let span = receiver.named(&format!("GET {USER}"));
    assert_eq!((span.field("Trace ID"), span.field("Parent ID")), (TRACE, PARENT));
    assert_eq!(span.field("Kind"), "SPAN_KIND_SERVER");
    assert_eq!(span.field("Status code"), "STATUS_CODE_UNSET");
    span.expect(&[
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.route", USER),
        ("url.path", USER),
        ("network.protocol.version", "1.1"),
        ("tidegate.stream", "user"),
        ("tidegate.transport", "sse"),
    ]);
    assert_eq!(span.attribute("tidegate.request_id").len(), 36);
    // Each part of the wait, in order and within it.
    let mut children = receiver.children(&span);
    children.sort_by_key(Span::lasts);
    let names: Vec<&str> = children.iter().map(|child| child.field("Name")).collect();
    assert_eq!(
        names,
        ["look up token", "check stream", "wait for Redis", "look up token again", "hand over"]
    );
    let mut before = span.lasts().0;
    for child in &children {
        assert_eq!(child.field("Trace ID"), TRACE);
        let (start, end) = child.lasts();
        assert!(before <= start && start <= end && end <= span.lasts().1, "{children:?}");
        before = end;
    }

    let span = receiver.named("GET /api/v1/streaming");
    assert!(span.field("Trace ID") != TRACE && span.field("Parent ID").is_empty(), "{span:?}");
    span.expect(&[
        ("http.response.status_code", "101"),
        ("url.path", "/api/v1/streaming/"),
        ("tidegate.stream", "public"),
        ("tidegate.transport", "websocket"),
    ]);
    assert!(tap.heard("mastodon/streaming"), "the service's name");
    assert!(!tap.heard(&viewer.token));
}

#[test]
fn what_is_refused_is_an_error_and_no_secret_is_said_wherever_it_stands() {
    let Some((receiver, tap, world)) = traced(&[]) else { return };
    let viewer = world.viewer("read");
    let good = &viewer.token;
    let wrong = "n0-Such-T0ken-4";
    let in_query = format!("{USER}?access_token={wrong}");
    world.server.get(&in_query).assert_error(401, "Invalid access token");
    let span = receiver.named(&format!("GET {USER}"));
    span.expect(&[("http.response.status_code", "401"), ("error.type", "token")]);
    assert_eq!(span.field("Status code"), "STATUS_CODE_ERROR");

    // Wherever a confused client puts it.
    for path in [format!("/{good}"), format!("/api/v1/streaming/{good}?stream={good}&tag={good}")] {
        let headers = [("Sec-WebSocket-Protocol", wrong), ("Cookie", good), ("tracestate", "a=b")];
        assert_eq!(Ws::try_open(world.server.address(), &path, &headers).err().unwrap().0, 401);
        let headers = [("Sec-WebSocket-Protocol", &**good), ("traceparent", &**good), ("baggage", good)];
        drop(Ws::try_open(world.server.address(), &path, &headers));
    }
    let spans = receiver.until("of WebSockets", 4, |span| span.field("Name") == "GET");
    assert!(spans.iter().all(|span| span.attribute("url.path").is_empty()), "{spans:?}");
    assert!(!tap.heard(good) && !tap.heard(wrong));
}

#[test]
fn whoever_leaves_before_there_is_an_answer_is_an_error_too() {
    let Some((receiver, _tap, world)) = traced(&[("LOG_LEVEL", "debug")]) else { return };
    let viewer = world.viewer("read");
    // Redis confirms nothing for a while.
    world.redis.command(&["CLIENT", "PAUSE", "3000"]);
    let mut connection = world.server.connect();
    connection.send(request("GET", USER, &[("Authorization", &viewer.bearer())]).as_bytes());
    world.server.until_output("identified");
    drop(connection);
    let span = receiver.named(&format!("GET {USER}"));
    span.expect(&[("error.type", "left"), ("http.response.status_code", "")]);
    assert_eq!(span.field("Status code"), "STATUS_CODE_ERROR");
    let names: Vec<String> =
        receiver.children(&span).iter().map(|child| child.field("Name").to_owned()).collect();
    assert!(names.contains(&"wait for Redis".to_owned()), "{names:?}");
}

#[test]
fn a_proxy_decides_what_is_traced_and_strangers_do_not() {
    let off = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    let Some((receiver, _tap, world)) = traced(&off) else { return };
    let viewer = world.viewer("read");
    let bearer = viewer.bearer();
    let open = |path: &str, flags: &str| {
        let parent = traceparent(flags);
        drop(open_sse(&world.server, path, &[("Authorization", &bearer), ("traceparent", &parent)]));
    };
    // Neither without a word of the proxy nor against it.
    drop(open_sse(&world.server, "/api/v1/streaming/direct", &[("Authorization", &bearer)]));
    open("/api/v1/streaming/public", "00");
    open(USER, "01");
    assert_eq!(receiver.named(&format!("GET {USER}")).field("Trace ID"), TRACE);
    let servers = receiver.until("of handshakes", 1, |span| span.field("Kind") == "SPAN_KIND_SERVER");
    assert_eq!(servers.len(), 1, "{servers:?}");

    let stranger = [("TRUSTED_PROXY_IP", "10.0.0.1")];
    let Some((receiver, _tap, world)) = traced(&stranger) else { return };
    let bearer = world.viewer("read").bearer();
    let parent = traceparent("01");
    drop(open_sse(&world.server, USER, &[("Authorization", &bearer), ("traceparent", &parent)]));
    let span = receiver.named(&format!("GET {USER}"));
    assert!(span.field("Trace ID") != TRACE && span.field("Parent ID").is_empty(), "{span:?}");
}

#[test]
fn a_message_is_traced_from_redis_to_its_last_write() {
    let Some((receiver, tap, world)) = traced(&[("TRACE_MESSAGE_RATIO", "1")]) else { return };
    let viewer = world.viewer("read");
    let mut quick = Sse::open(&world.server, USER, &viewer.token);
    let mut slow = Connection::narrow(world.server.address());
    slow.send(request("GET", USER, &[("Authorization", &viewer.bearer())]).as_bytes());
    slow.head();
    // Far more than the slow one's buffers take.
    let payload = "x".repeat(4 << 20);
    let published = nanoseconds_now();
    world.publish(&viewer.home(), &text_message("conversation", &payload));
    quick.expect("conversation", &payload);
    let delivered = nanoseconds_now();
    // The slow one still waits.
    let page = world.status();
    assert_eq!(page["messages"]["ledger"]["pending"], 1, "{page}");
    assert!(receiver.spans().iter().all(|span| span.field("Name") != "relay user"));
    slow.take(payload.len());
    let span = receiver.named("relay user");
    let (start, end) = span.lasts();
    assert!(published <= start && start <= delivered && delivered <= end, "{published} {delivered} {span:?}");
    assert!(end <= nanoseconds_now());
    assert_eq!((span.field("Kind"), span.field("Parent ID")), ("SPAN_KIND_CONSUMER", ""));
    span.expect(&[
        ("messaging.system", "redis"),
        ("messaging.message.body.size", &(payload.len() + 2).to_string()),
        ("tidegate.channel", "user"),
        ("tidegate.event", "conversation"),
        ("tidegate.deliveries", "2"),
    ]);

    // A status that PostgreSQL is asked about, on a channel with a name that somebody chose.
    let mut tagged = Sse::open(&world.server, "/api/v1/streaming/hashtag?tag=Tellnobody", &viewer.token);
    let author = world.account();
    let id = 109_501_234_567_890_000 + u64::from(std::process::id());
    let mut read = 0;
    // The second finds PostgreSQL's connection open, so that its question takes no time to speak of.
    for id in [id, id + 1] {
        world.publish("timeline:hashtag:tellnobody", &message("update", &status(id, author)));
        assert_eq!(tagged.next().name, "update");
        read = nanoseconds_now();
    }
    let mut spans = receiver.until("of the tag", 2, |span| span.field("Name") == "relay hashtag");
    spans.sort_by_key(Span::lasts);
    let span = &spans[1];
    span.expect(&[("tidegate.event", "update"), ("tidegate.deliveries", "1")]);
    let children = receiver.children(span);
    assert_eq!(children.len(), 1, "{children:?}");
    assert_eq!(children[0].field("Name"), "find audience");
    let ((start, end), (asked, known)) = (span.lasts(), children[0].lasts());
    // The stage keeps the status for a second: that is no part of its way.
    assert!(start <= asked && asked < known && known <= end && end < read + 500_000_000, "{span:?}");
    assert!(!tap.heard("ellnobody") && !tap.heard(&viewer.account.to_string()));
}

/// The address in a URL is where the tap listens; checked here since a typing mistake would hide what is sent.
#[test]
fn the_tap_hears() {
    let sink = TcpListener::bind("127.0.0.1:0").unwrap();
    let tap = Tap::start(sink.local_addr().unwrap().port());
    let address: SocketAddr = tap.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
    TcpStream::connect(address).unwrap().write_all(b"a token").unwrap();
    let mut passed = String::new();
    sink.accept().unwrap().0.read_to_string(&mut passed).unwrap();
    assert_eq!(passed, "a token");
    assert!(tap.heard("token") && !tap.heard("other"));
}
