//! Every limit on what clients may do: it is reached, the client is told, a metric shows it, and whoever keeps
//! to it notices nothing. What bounds requests at the door is in `e2e_door.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use support::http::{Connection, request};
use support::machine::{PATIENCE, wait_for};
use support::ws::{RawWs, upgrade};
use support::{Sse, World, Ws, ours_alone, wait_until};

const USER: &str = "/api/v1/streaming/user";

/// A world with these limits, or none where the test does not apply.
fn world(variables: &[(&str, &str)]) -> Option<World> {
    if ours_alone() { World::with(variables) } else { None }
}

impl World {
    /// Waits until so many clients were closed for that reason.
    #[track_caller]
    fn until_closed(&self, reason: &str, count: u32) {
        self.server.until_metric("tidegate_clients_closed_total", &[("reason", reason)], f64::from(count));
    }

    #[track_caller]
    fn until_refused(&self, reason: &str, count: u32) {
        self.server.until_metric("tidegate_refused_total", &[("reason", reason)], f64::from(count));
    }

    #[track_caller]
    fn until_not_subscribed(&self, reason: &str, count: u32) {
        let labels = [("reason", reason)];
        self.server.until_metric("tidegate_subscribe_refused_total", &labels, f64::from(count));
    }
}

/// Shows that the connection works: an unknown stream is answered.
#[track_caller]
fn is_alive(raw: &mut RawWs) {
    raw.send_text(r#"{"type":"subscribe","stream":"nonsense"}"#);
    assert_eq!(raw.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
}

/// Reads up to the close frame; gives its code.
#[track_caller]
fn close_code(raw: &mut RawWs) -> u16 {
    loop {
        let frame = raw.next();
        if frame.opcode == 8 {
            return u16::from_be_bytes([frame.payload[0], frame.payload[1]]);
        }
    }
}

#[test]
fn a_message_has_a_size() {
    let Some(world) = world(&[]) else { return };
    let viewer = world.viewer("read");
    let open = || RawWs::open(&world.server, "/", &viewer.token);
    let mut raw = open();
    raw.send(0x81, &[b' '; 64 << 10]);
    is_alive(&mut raw);
    raw.send(0x81, &[b' '; (64 << 10) + 1]);
    assert_eq!(close_code(&mut raw), 1009);
    // In fragments: it is the sum that counts.
    let mut raw = open();
    raw.send(0x01, &[b' '; 40 << 10]);
    raw.send(0x89, b"a ping between them");
    assert_eq!(raw.next().opcode, 10);
    raw.send(0x80, &[b' '; 40 << 10]);
    assert_eq!(close_code(&mut raw), 1009);
    // A header that promises too much is enough.
    let mut raw = open();
    let header = RawWs::encode(0x81, &[b' '; 1 << 20]);
    raw.connection.send(&header[..14]);
    assert_eq!(close_code(&mut raw), 1009);
    world.until_closed("too_big", 3);
}

#[test]
fn a_connection_has_so_many_streams() {
    let Some(world) = world(&[("MAX_SUBSCRIPTIONS", "5")]) else { return };
    let viewer = world.viewer("read");
    // The one in the query counts; all others come at once.
    let mut raw = RawWs::open(&world.server, "/?stream=user", &viewer.token);
    let subscribe = |n: u32| {
        RawWs::encode(
            0x81,
            json!({"type": "subscribe", "stream": "hashtag", "tag": format!("t{n}")}).to_string().as_bytes(),
        )
    };
    raw.connection.send(&(0..20).flat_map(subscribe).collect::<Vec<u8>>());
    for _ in 4..20 {
        assert_eq!(raw.next_text(), r#"{"error":"Too many subscriptions","status":429}"#);
    }
    let tags: Vec<String> = (0..4).map(|n| format!("timeline:hashtag:t{n}")).collect();
    let (user, system) = (viewer.user_channels(), viewer.system_channels());
    let expected: Vec<&str> = tags.iter().chain(&user).chain(&system).map(String::as_str).collect();
    world.redis.until_channels(&expected);
    world.until_not_subscribed("too_many", 16);
    // One less makes room for one.
    raw.send_text(r#"{"type":"unsubscribe","stream":"user"}"#);
    raw.connection.send(&subscribe(7));
    world.redis.until_subscribed(&["timeline:hashtag:t7"]);
    raw.connection.send(&subscribe(8));
    assert_eq!(raw.next_text(), r#"{"error":"Too many subscriptions","status":429}"#);
}

#[test]
fn a_connection_asks_only_so_often() {
    let Some(world) = world(&[("SUBSCRIBE_RATE", "1"), ("SUBSCRIBE_BURST", "10")]) else { return };
    let viewer = world.viewer("read");
    let mut hasty = RawWs::open(&world.server, "/", &viewer.token);
    let mut other = RawWs::open(&world.server, "/", &viewer.token);
    // What is no request is not counted as one.
    let ignored = RawWs::encode(0x81, b"{}").repeat(100);
    hasty.connection.send(&ignored);
    let ask = RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#);
    let end = RawWs::encode(0x81, br#"{"type":"unsubscribe","stream":"user"}"#);
    hasty.connection.send(&[ask.repeat(5), end.repeat(200)].concat());
    assert_eq!(close_code(&mut hasty), 1008);
    world.until_closed("rate_limited", 1);
    // Each connection has a measure of its own, and it fills up again.
    for _ in 0..10 {
        is_alive(&mut other);
    }
    world.until_closed("rate_limited", 1);
}

#[test]
fn a_client_says_only_so_much() {
    let settings = [
        ("CLIENT_MESSAGE_RATE", "1"),
        ("CLIENT_MESSAGE_BURST", "50"),
        ("SUBSCRIBE_RATE", "1"),
        ("SUBSCRIBE_BURST", "10"),
    ];
    let Some(world) = world(&settings) else { return };
    let viewer = world.viewer("read");
    let open = || RawWs::open(&world.server, "/", &viewer.token);
    let mut other = open();
    // Whatever it is, and though nothing of it is answered.
    let floods: [(&str, Vec<u8>); 5] = [
        ("pings", RawWs::encode(0x89, b"p").repeat(60)),
        ("pongs that nobody asked for", RawWs::encode(0x8a, b"").repeat(60)),
        ("no JSON", RawWs::encode(0x81, b"{").repeat(60)),
        ("an unknown type", RawWs::encode(0x81, br#"{"type":"x"}"#).repeat(60)),
        ("empty fragments", [RawWs::encode(0x01, b""), RawWs::encode(0x00, b"").repeat(60)].concat()),
    ];
    for (number, (what, flood)) in (1..).zip(&floods) {
        let mut raw = open();
        raw.connection.send(flood);
        assert_eq!(close_code(&mut raw), 1008, "{what}");
        world.until_closed("rate_limited", number);
    }
    // Bytes that finish nothing are read one by one, and so are those that mean nothing.
    let mut trickle = open();
    let mut stream = Sse::open(&world.server, USER, &viewer.token);
    wait_until("both are closed", PATIENCE, || {
        let _ = trickle.connection.try_send(&RawWs::encode(0x81, &[b' '; 10_000])[..1]);
        let _ = trickle.connection.try_send(b"\xfe");
        let _ = stream.connection.try_send(b"x");
        let labels = [("reason", "rate_limited")];
        world.server.metric("tidegate_clients_closed_total", &labels) == Some(7.0)
    });
    let last = String::from_utf8(stream.connection.until_closed()).unwrap();
    assert!(last.contains(":too many messages\n"), "{last:?}");
    is_alive(&mut other);
}

#[test]
fn who_keeps_to_the_measure_may_go_on_for_ever() {
    let settings = [
        ("CLIENT_MESSAGE_RATE", "100"),
        ("CLIENT_MESSAGE_BURST", "10"),
        ("SUBSCRIBE_RATE", "1"),
        ("SUBSCRIBE_BURST", "1"),
    ];
    let Some(world) = world(&settings) else { return };
    let viewer = world.viewer("read");
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    // Five times as many as fit at once.
    let begin = Instant::now();
    for n in 0..50u32 {
        std::thread::sleep((begin + Duration::from_millis(11) * n).saturating_duration_since(Instant::now()));
        raw.send(0x89, &n.to_be_bytes());
        let pong = raw.next();
        assert_eq!((pong.opcode, pong.payload.as_slice()), (10, &n.to_be_bytes()[..]));
    }
    is_alive(&mut raw);
    world.until_closed("rate_limited", 0);
}

#[test]
fn all_columns_of_a_web_client_at_once_are_no_flood() {
    let Some(world) = world(&[]) else { return };
    let viewer = world.viewer("read");
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    let ask = RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#);
    raw.connection.send(&[ask.repeat(200), RawWs::encode(0x89, b"still here").repeat(200)].concat());
    for _ in 0..200 {
        assert_eq!(raw.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
    }
    assert_eq!(raw.next().payload, b"still here");
    world.until_closed("rate_limited", 0);
}

#[test]
fn tags_and_lists_have_a_length() {
    let Some(world) = world(&[]) else { return };
    let viewer = world.viewer("read");
    let (fits, long) = ("x".repeat(512), "x".repeat(513));
    let bearer = viewer.bearer();
    let ask = |path: &str| {
        let mut connection = world.server.connect();
        connection.send(request("GET", path, &[("Authorization", &bearer)]).as_bytes());
        Sse::read_head(connection)
    };
    assert!(ask(&format!("/api/v1/streaming/hashtag?tag={fits}")).is_ok());
    let refused = ask(&format!("/api/v1/streaming/hashtag?tag={long}")).err().unwrap();
    refused.assert_error(400, "Invalid tag name parameter");
    let refused = ask(&format!("/api/v1/streaming/list?list={}", "1".repeat(513))).err().unwrap();
    refused.assert_error(400, "Invalid list name parameter");
    world.until_refused("request", 2);
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.send_json(&json!({"type": "subscribe", "stream": "hashtag", "tag": long}));
    ws.expect_error(400, "Invalid tag name parameter");
    ws.send_json(&json!({"type": "subscribe", "stream": "list", "list": "1".repeat(513)}));
    ws.expect_error(400, "Invalid list name parameter");
    world.until_not_subscribed("bad_tag", 1);
    world.until_not_subscribed("bad_list", 1);
    ws.subscribe(
        &world.redis,
        json!({"stream": "hashtag", "tag": fits}),
        &[format!("timeline:hashtag:{fits}")],
    );
}

#[test]
fn all_unfinished_messages_together_have_a_size() {
    // One thread, so that it has all of it.
    let settings = [("MAX_UNFINISHED_BYTES", "300000"), ("STREAMING_THREADS", "1")];
    let Some(world) = world(&settings) else { return };
    let viewer = world.viewer("read");
    let before = world.server.rss_kib();
    let half = &RawWs::encode(0x81, &[b' '; 64 << 10])[..60 << 10];
    let mut hoarders: Vec<RawWs> = (0..40)
        .map(|_| {
            let mut raw = RawWs::open(&world.server, "/", &viewer.token);
            raw.connection.send(half);
            raw
        })
        .collect();
    let unfinished = wait_for("what came is unfinished, and not more than allowed", PATIENCE, || {
        let labels = [("reason", "unfinished")];
        let closed = world.server.metric("tidegate_clients_closed_total", &labels)?;
        let clients = world.server.metric("connected_clients", &[("type", "websocket")])?;
        (closed >= 30.0 && closed + clients == 40.0)
            .then(|| world.server.metric("tidegate_unfinished_bytes", &[]))?
    });
    assert!((60_000.0..=300_000.0).contains(&unfinished), "{unfinished} bytes are unfinished");
    assert!(world.server.rss_kib() < before + 8192);
    // Whole messages need none of it.
    let mut honest = RawWs::open(&world.server, "/", &viewer.token);
    is_alive(&mut honest);
    let mut told = 0;
    for raw in &mut hoarders {
        raw.connection.patience(Duration::from_millis(1));
        told += u32::from(raw.connection.read_more().is_ok_and(|read| read >= 4));
    }
    assert!(told >= 30, "who has to go is told: {told}");
    drop(hoarders);
    world.server.until_metric("tidegate_unfinished_bytes", &[], 0.0);
}

/// However little each of them holds, and whoever sends the byte that is too much.
#[test]
fn hoarders_go_before_a_client_whose_message_comes_in_two_pieces() {
    let settings = [("MAX_UNFINISHED_BYTES", "100000"), ("STREAMING_THREADS", "1")];
    let Some(world) = world(&settings) else { return };
    let viewer = world.viewer("read");
    let closed = || world.server.metric("tidegate_clients_closed_total", &[("reason", "unfinished")]);
    let whole = RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#);
    let frame = RawWs::encode(0x81, &[b' '; 60_000]);
    for (held, at_once) in [(7, 20), (5000, 2)] {
        let before = closed().unwrap_or(0.0);
        let mut honest = RawWs::open(&world.server, "/", &viewer.token);
        let mut hoarders: Vec<RawWs> = Vec::new();
        let mut until_too_much = || {
            let before = closed();
            while closed() == before {
                for _ in 0..at_once {
                    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
                    raw.connection.send(&frame[..held]);
                    hoarders.push(raw);
                }
            }
        };
        until_too_much();
        honest.connection.send(&whole[..20]);
        until_too_much();
        honest.connection.send(&whole[20..]);
        assert_eq!(honest.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
        let mut told = 0.0;
        for raw in &mut hoarders {
            raw.connection.patience(Duration::from_millis(1));
            if raw.connection.read_more().is_ok_and(|read| read >= 4) {
                assert_eq!(close_code(raw), 1008);
                told += 1.0;
            }
        }
        assert_eq!(closed(), Some(before + told));
        drop(hoarders);
        world.server.until_metric("tidegate_unfinished_bytes", &[], 0.0);
    }
}

#[test]
fn a_message_has_to_be_whole_in_time() {
    let Some(world) = world(&[("UNFINISHED_SECONDS", "0.4")]) else { return };
    let viewer = world.viewer("read");
    let mut slow = RawWs::open(&world.server, "/", &viewer.token);
    let mut fragments = RawWs::open(&world.server, "/", &viewer.token);
    let mut idle = RawWs::open(&world.server, "/", &viewer.token);
    let bytes = RawWs::encode(0x81, &[b' '; 10_000]);
    let mut at = 0;
    wait_until("both are closed, however lively they are", PATIENCE, || {
        let _ = slow.connection.try_send(&bytes[at..=at]);
        let first = if at == 0 { 0x01 } else { 0x00 };
        let _ = fragments.connection.try_send(&RawWs::encode(first, b" "));
        let _ = fragments.connection.try_send(&RawWs::encode(0x8a, b"a pong between"));
        at += 1;
        world.server.metric("tidegate_clients_closed_total", &[("reason", "unfinished")]) == Some(2.0)
    });
    assert_eq!(close_code(&mut slow), 1008);
    assert_eq!(close_code(&mut fragments), 1008);
    is_alive(&mut idle);
}

#[test]
fn there_are_so_many_clients_in_all() {
    let Some(world) = world(&[("MAX_CONNECTIONS", "3")]) else { return };
    let viewer = world.viewer("read");
    let _ws = Ws::open(&world.server, "/", &viewer.token);
    let _sse = Sse::open(&world.server, USER, &viewer.token);
    let third = Sse::open(&world.server, USER, &viewer.token);
    let refused = Sse::try_open(&world.server, USER, &viewer.token).err().unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.header("Retry-After").parse::<u32>().unwrap() > 0);
    let refused = Ws::try_open(world.server.address(), "/", &[("Authorization", &viewer.bearer())]).err();
    assert_eq!(refused.unwrap().0, 503);
    world.until_refused("full", 2);
    // Not for those who want to know how it goes.
    assert_eq!(world.server.get("/api/v1/streaming/health").text(), "OK");
    drop(third);
    wait_until("there is room again", PATIENCE, || Sse::try_open(&world.server, USER, &viewer.token).is_ok());
}

/// A connection from another address of this machine.
fn connect_from(from: IpAddr, to: SocketAddr) -> Connection {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    Connection::over(TcpStream::from(socket))
}

/// Asks for a stream from that address, through whom the list says; the stream, or the refusal's status.
fn ask_from(world: &World, token: &str, from: &str, forwarded: &[&str]) -> Result<Sse, u16> {
    let mut connection = connect_from(from.parse().unwrap(), world.server.address());
    let mut headers = vec![("Authorization", token)];
    headers.extend(forwarded.iter().map(|list| ("X-Forwarded-For", *list)));
    connection.send(request("GET", USER, &headers).as_bytes());
    Sse::read_head(connection).map_err(|refusal| refusal.status())
}

#[test]
fn an_address_has_so_many_clients_whatever_it_claims() {
    let settings = [("MAX_CONNECTIONS_PER_ADDRESS", "2"), ("TRUSTED_PROXY_IP", "127.0.0.9 10.0.0.0/8")];
    let Some(world) = world(&settings) else { return };
    let token = &world.viewer("read").token;
    let ask = |from: &str, forwarded: &[&str]| ask_from(&world, token, from, forwarded);
    let mut open = Vec::new();
    // A peer that is no trusted proxy is who it is, whatever it says.
    open.push(ask("127.0.0.1", &[]).unwrap());
    open.push(ask("127.0.0.1", &["198.51.100.1"]).unwrap());
    assert_eq!(ask("127.0.0.1", &["198.51.100.2"]).err(), Some(429));
    assert_eq!(ask("127.0.0.1", &["198.51.100.3, 10.0.0.1"]).err(), Some(429));
    open.push(ask("127.0.0.2", &["127.0.0.1"]).unwrap());
    // What a trusted proxy reports counts: the nearest address that is no proxy's, not what stands before it.
    open.push(ask("127.0.0.9", &["198.51.100.1"]).unwrap());
    open.push(ask("127.0.0.9", &["203.0.113.1, 198.51.100.1"]).unwrap());
    assert_eq!(ask("127.0.0.9", &["203.0.113.2, 198.51.100.1"]).err(), Some(429));
    assert_eq!(ask("127.0.0.9", &["203.0.113.3, 198.51.100.1, 10.1.2.3"]).err(), Some(429));
    assert_eq!(ask("127.0.0.9", &["203.0.113.3", "198.51.100.1"]).err(), Some(429));
    open.push(ask("127.0.0.9", &["203.0.113.1"]).unwrap());
    // Of IPv6 the network counts: its owner has 2^64 addresses to choose from.
    open.push(ask("127.0.0.9", &["2001:db8:0:1::1"]).unwrap());
    open.push(ask("127.0.0.9", &["2001:db8:0:1:ffff::2"]).unwrap());
    assert_eq!(ask("127.0.0.9", &["2001:db8:0:1::3"]).err(), Some(429));
    open.push(ask("127.0.0.9", &["2001:db8:0:2::1"]).unwrap());
    // Nor does it help to say what is no text.
    open.push(ask("127.0.0.9", &["\u{ff}\u{80}, 203.0.113.9"]).unwrap());
    open.push(ask("127.0.0.9", &["203.0.113.9"]).unwrap());
    assert_eq!(ask("127.0.0.9", &["\u{ff}\u{80}, 203.0.113.9"]).err(), Some(429));
    world.until_refused("address", 7);
    // WebSockets count as well, and a place that was left is free.
    let headers = [("Authorization", token.as_str())];
    assert_eq!(Ws::try_open(world.server.address(), "/", &headers).err().map(|refusal| refusal.0), Some(429));
    drop(open);
    wait_until("there is room again", PATIENCE, || ask("127.0.0.1", &[]).is_ok());
}

#[test]
fn a_connection_has_one_question_under_way() {
    if !ours_alone() {
        return;
    }
    let settings = [("SUBSCRIBE_RATE", "1000000"), ("SUBSCRIBE_BURST", "20")];
    let Some(world) = World::with_own_database(&settings) else { return };
    let viewer = world.viewer("read");
    let lists: Vec<i64> = (0..30).map(|_| viewer.list()).collect();
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    // Nobody can look at lists for a while.
    let holder = support::postgres::shared().unwrap().open(&world.db.name);
    holder.run("BEGIN; LOCK TABLE lists IN ACCESS EXCLUSIVE MODE");
    let subscribe = |list: &i64| {
        RawWs::encode(
            0x81,
            json!({"type": "subscribe", "stream": "list", "list": list}).to_string().as_bytes(),
        )
    };
    raw.connection.send(&lists[..20].iter().flat_map(subscribe).collect::<Vec<u8>>());
    let name = &world.db.name;
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'"
    );
    let admin = support::postgres::shared().unwrap().open("postgres");
    wait_until("its first question waits", PATIENCE, || admin.id(&waiting, &[]) > 0);
    assert_eq!(admin.id(&waiting, &[]), 1, "the others wait here, not there");
    // Somebody else is not held up by that …
    let other = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &other.token);
    ws.probe(&world.redis, &other.user_channels());
    // … and how many may wait is bounded.
    raw.connection.send(&lists[20..].iter().flat_map(subscribe).collect::<Vec<u8>>());
    assert_eq!(close_code(&mut raw), 1008);
    world.until_closed("rate_limited", 1);
    holder.run("COMMIT");
    drop((raw, ws));
    world.until_empty();
}

#[test]
fn requests_that_wait_keep_little_of_their_messages() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let viewer = world.viewer("read");
    let mut crowd: Vec<_> = (0..4).map(|_| RawWs::open(&world.server, "/", &viewer.token)).collect();
    let holder = support::postgres::shared().unwrap().open(&world.db.name);
    holder.run("BEGIN; LOCK TABLE lists IN ACCESS EXCLUSIVE MODE");
    let before = world.server.rss_kib();
    let padding = "x".repeat(64_000);
    let foreign = json!({"type": "subscribe", "stream": "list", "list": "1", "tag": padding}).to_string();
    let long = json!({"type": "subscribe", "stream": "hashtag", "tag": padding}).to_string();
    for raw in &mut crowd {
        // Nearly as many as may wait, each as long as a message may be.
        for text in std::iter::repeat_n([&foreign, &long], 60).flatten() {
            raw.send_text(text);
        }
        raw.send(0x89, b"all of them were read");
        assert_eq!(raw.next().payload, b"all of them were read");
    }
    let used = world.server.rss_kib() - before;
    assert!(used < 8192, "{used} KiB for 480 messages of 64 KiB");
    holder.run("COMMIT");
    for raw in &mut crowd {
        for _ in 0..60 {
            assert_eq!(raw.next_text(), r#"{"error":"Not authorized to stream this list","status":401}"#);
            assert_eq!(raw.next_text(), r#"{"error":"Invalid tag name parameter","status":400}"#);
        }
    }
}

#[test]
fn who_reads_no_answers_is_asked_to_leave() {
    let Some(world) = world(&[]) else { return };
    let viewer = world.viewer("read");
    let mut connection = Connection::narrow(world.server.address());
    connection.send(upgrade("/", &[("Authorization", &viewer.bearer())]).as_bytes());
    assert_eq!(connection.head().status, 101);
    let ping = RawWs::encode(0x89, &[0; 125]);
    let error = RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#);
    // At the rate that is allowed after the burst.
    let mut said = ping.repeat(800);
    wait_until("it is closed", PATIENCE * 4, || {
        let taken = connection.try_send(&said).is_ok();
        said = [&ping[..], &error].concat();
        // The pace is what is tested: twice as fast would be over CLIENT_MESSAGE_RATE, and closed for that.
        std::thread::sleep(Duration::from_millis(50));
        !taken
    });
    world.until_closed("too_slow", 1);
}

#[test]
fn what_clients_ask_for_does_not_pile_up_in_redis() {
    let Some(world) = world(&[("SUBSCRIBE_BURST", "10000"), ("SUBSCRIBE_RATE", "10000")]) else { return };
    let viewer = world.viewer("read");
    let keys = || world.redis.command(&["KEYS", "subscribed:timeline:hashtag:*"]).strings();
    let mut keeper = Ws::open(&world.server, "/", &viewer.token);
    keeper.subscribe(&world.redis, json!({"stream": "hashtag", "tag": "kept"}), &["timeline:hashtag:kept"]);
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    let mut most = 0;
    for round in 0..20 {
        for kind in ["subscribe", "unsubscribe"] {
            for n in 0..50 {
                let tag = if n == 0 { "kept".to_owned() } else { format!("{}{round}x{n}", "y".repeat(400)) };
                raw.send_text(&json!({"type": kind, "stream": "hashtag", "tag": tag}).to_string());
            }
        }
        is_alive(&mut raw);
        most = most.max(keys().len());
    }
    // As many as there are subscriptions, and those of the last second.
    wait_until("only the key that is needed is left", PATIENCE, || {
        keys() == ["subscribed:timeline:hashtag:kept"]
    });
    assert!(world.redis.ttl("subscribed:timeline:hashtag:kept") > 1000);
    assert!(most > 1, "there were keys");
    // Who left and comes back has the key again.
    for _ in 0..10 {
        raw.send_text(r#"{"type":"subscribe","stream":"hashtag","tag":"back"}"#);
        raw.send_text(r#"{"type":"unsubscribe","stream":"hashtag","tag":"back"}"#);
    }
    raw.send_text(r#"{"type":"subscribe","stream":"hashtag","tag":"back"}"#);
    is_alive(&mut raw);
    wait_until("its key lasts", PATIENCE, || world.redis.ttl("subscribed:timeline:hashtag:back") > 1000);
    drop((raw, keeper));
    wait_until("none is left", PATIENCE, || keys().is_empty());
    // Others last, so that Rails goes on for a moment for whoever only reconnects.
    let _sse = Sse::open(&world.server, USER, &viewer.token);
    assert!(world.redis.ttl(&format!("subscribed:{}", viewer.home())) > 1000);
}
