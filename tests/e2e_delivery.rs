//! Nothing missed, nothing twice, nothing out of order, nothing left behind: bursts, sizes, the moment between
//! a stream's head and its first message, kills, clients that leave at any moment.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::json;
use support::http::{Connection, request};
use support::machine::PATIENCE;
use support::posts::{message, status, status_by, text_message, with_filtered};
use support::redis::encode;
use support::ws::{RawWs, upgrade};
use support::{Sse, Viewer, World, Ws, ours_alone, peer};

const USER: &str = "/api/v1/streaming/user";

/// Small deterministic random numbers, so that a failing run can be had again.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Waits without sleeping for times shorter than a scheduler's tick.
fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// 10,000 numbered messages in one pipelined burst, to four clients of both transports, one of them on a
/// filtered stream.
#[test]
fn a_burst_of_ten_thousand_arrives_in_order_and_once() {
    const COUNT: usize = 10_000;
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let (home, public) = (viewer.home(), "timeline:public:local".to_owned());
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    let mut public_sse = Sse::open(&world.server, "/api/v1/streaming/public/local", &viewer.token);
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "user"}), &[&home]);
    let mut public_ws = Ws::open(&world.server, "/", &viewer.token);
    public_ws.subscribe(&world.redis, json!({"stream": "public:local"}), &[&public]);
    world.publish(&home, &text_message("start", "1"));
    world.publish(&public, &text_message("start", "1"));
    while sse.next().name != "start" {}
    while public_sse.next().name != "start" {}
    ws.expect_event(&json!(["user"]), "start", "1");
    public_ws.expect_event(&json!(["public:local"]), "start", "1");

    let mut burst = Vec::new();
    for n in 0..COUNT {
        let numbered = text_message("delete", &n.to_string());
        burst.extend(encode(&["PUBLISH", &home, &numbered]));
        burst.extend(encode(&["PUBLISH", &public, &numbered]));
    }
    let mut publisher = world.redis.client();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            publisher.send(&burst);
            (0..2 * COUNT).for_each(|_| drop(publisher.reply().unwrap()));
        });
        scope.spawn(|| (0..COUNT).for_each(|n| sse.expect("delete", &n.to_string())));
        scope.spawn(|| (0..COUNT).for_each(|n| public_sse.expect("delete", &n.to_string())));
        scope.spawn(|| {
            (0..COUNT).for_each(|n| ws.expect_event(&json!(["user"]), "delete", &n.to_string()));
        });
        let stream = json!(["public:local"]);
        (0..COUNT).for_each(|n| public_ws.expect_event(&stream, "delete", &n.to_string()));
    });
    for channel in [&home, &public] {
        world.publish(channel, &text_message("marker", "end"));
    }
    sse.expect_marker("end");
    public_sse.expect_marker("end");
    ws.expect_event(&json!(["user"]), "marker", "end");
    public_ws.expect_event(&json!(["public:local"]), "marker", "end");
}

/// Statuses, their edits and deletions on a filtered stream, with authors here and elsewhere.
#[test]
fn order_holds_on_filtered_streams_too() {
    if !ours_alone() {
        return;
    }
    const COUNT: u64 = 500;
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let author = world.account();
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/public", &viewer.token);
    let mut publisher = world.redis.client();
    for n in 1..=COUNT {
        let post =
            if n % 3 == 0 { status(n, author) } else { status_by(n, author, "bob", "bob@far.example") };
        let mut all = encode(&["PUBLISH", "timeline:public", &message("update", &post)]);
        all.extend(encode(&["PUBLISH", "timeline:public", &message("status.update", &post)]));
        all.extend(encode(&["PUBLISH", "timeline:public", &text_message("delete", &n.to_string())]));
        publisher.send(&all);
    }
    (0..3 * COUNT).for_each(|_| drop(publisher.reply().unwrap()));
    for n in 1..=COUNT {
        let post =
            if n % 3 == 0 { status(n, author) } else { status_by(n, author, "bob", "bob@far.example") };
        sse.expect("update", &with_filtered(&post, "[]"));
        sse.expect("status.update", &with_filtered(&post, "[]"));
        sse.expect("delete", &n.to_string());
    }
}

#[test]
fn messages_of_every_size_arrive_whole() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    let home = viewer.home();
    ws.subscribe(&world.redis, json!({"stream": "user"}), &[&home]);
    world.publish(&home, &text_message("start", "1"));
    while sse.next().name != "start" {}
    ws.next();
    // Around the frame length steps of WebSockets, the size of the ring, and the largest allowed message.
    let around = |size: usize| [size - 1, size, size + 1];
    let mut sizes: Vec<usize> =
        [125, 126, 8192, 16_384, 65_535, 65_536].into_iter().flat_map(around).collect();
    sizes.extend([4096, 100_000, 1 << 20, (8 << 20) - 200]);
    for size in sizes {
        for filler in ["x", "ü", "\""] {
            let payload = filler.repeat(size / json!(filler).to_string().len().saturating_sub(2).max(1));
            let text = text_message("e", &payload);
            world.publish(&home, &text);
            world.publish(&home, &text_message("delete", &size.to_string()));
            sse.expect("e", &payload);
            sse.expect("delete", &size.to_string());
            ws.expect_event(&json!(["user"]), "e", &payload);
            ws.expect_event(&json!(["user"]), "delete", &size.to_string());
        }
    }
    // Redis messages of every length around the ring's, to the byte.
    let overhead = text_message("e", "").len()
        + format!("*3\r\n$7\r\nmessage\r\n${}\r\n{home}\r\n$8192\r\n\r\n", home.len()).len();
    for size in 8192 - 40..8192 + 10 {
        let payload = "y".repeat(size - overhead);
        world.publish(&home, &text_message("e", &payload));
        sse.expect("e", &payload);
        ws.expect_event(&json!(["user"]), "e", &payload);
    }
}

/// A message is published the instant the head has been read: it must arrive.
#[test]
fn nothing_is_missed_between_a_head_and_the_first_message() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewers: Vec<Viewer> = (0..10).map(|_| world.viewer("read")).collect();
    let mut publisher = world.redis.client();
    for n in 0..400 {
        let viewer = &viewers[n % viewers.len()];
        let marker = text_message("marker", &n.to_string());
        let channel = match n % 4 {
            0 | 1 => viewer.home(),
            2 => format!("timeline:{}:notifications", viewer.account),
            _ => "timeline:public:local".into(),
        };
        let stream = if n % 4 == 3 { "public:local" } else { "user" };
        if n % 2 == 0 {
            let path = if stream == "user" { USER } else { "/api/v1/streaming/public/local" };
            let mut sse = Sse::try_open(&world.server, path, &viewer.token).unwrap();
            assert!(publisher.publish(&channel, &marker) >= 1);
            sse.expect_bytes(b":)\n");
            sse.expect_marker(&n.to_string());
        } else {
            let mut raw = RawWs::open(&world.server, &format!("/?stream={stream}"), &viewer.token);
            assert!(publisher.publish(&channel, &marker) >= 1);
            assert!(raw.next_text().contains("marker"));
        }
        if stream == "user" {
            assert!(world.redis.ttl(&format!("subscribed:{}", viewer.home())) > 0);
        }
    }
    world.until_empty();
}

/// Revokes a token at a random moment of the handshake as Rails does it: the row first, then the kill. However
/// it falls, the client must end outside.
#[test]
fn a_kill_at_any_moment_of_the_handshake_ends_the_client() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let mut random = Random(0x5eed_0001);
    let mut outcomes = [0; 2];
    let mut publisher = world.redis.client();
    for n in 0..300 {
        let viewer = world.viewer("read");
        let websocket = n % 2 == 0;
        let by_account = n % 4 < 2;
        let bearer = viewer.bearer();
        let headers = [("Authorization", bearer.as_str())];
        let text =
            if websocket { upgrade("/?stream=user", &headers) } else { request("GET", USER, &headers) };
        let mut connection = world.server.connect();
        connection.send(text.as_bytes());
        pause(Duration::from_micros(random.next(4000)));
        let [token, system] = viewer.system_channels();
        if by_account {
            viewer.sql(&format!("UPDATE users SET disabled = true WHERE id = {}", viewer.user));
            publisher.publish(&system, r#"{"event":"kill"}"#);
        } else {
            viewer.sql(&format!(
                "UPDATE oauth_access_tokens SET revoked_at = now() WHERE id = {}",
                viewer.token_id
            ));
            publisher.publish(&token, r#"{"event":"kill"}"#);
        }
        let head = connection.head();
        match head.status {
            401 => outcomes[0] += 1,
            101 => {
                outcomes[1] += 1;
                assert_eq!(connection.take(2), [0x88, 0], "round {n}");
            }
            200 => {
                outcomes[1] += 1;
                let rest = connection.until_closed_after_last_chunk();
                assert_eq!(rest, ":)\n", "round {n}");
            }
            other => panic!("round {n}: status {other}"),
        }
    }
    assert!(outcomes.iter().all(|&count| count > 0), "all kills fell on one side: {outcomes:?}");
    world.until_empty();
}

trait LastChunk {
    fn until_closed_after_last_chunk(&mut self) -> String;
}

impl LastChunk for Connection {
    #[track_caller]
    fn until_closed_after_last_chunk(&mut self) -> String {
        let body: Vec<u8> = std::iter::from_fn(|| self.chunk()).flatten().collect();
        String::from_utf8(body).unwrap()
    }
}

#[test]
fn a_kill_ends_an_event_stream_with_its_last_chunk() {
    let Some(world) = World::start() else { return };
    for at in 0..2 {
        let viewer = world.viewer("read");
        let others = world.viewer("read");
        let mut sse = Sse::open(&world.server, USER, &viewer.token);
        let mut other = Sse::open(&world.server, USER, &others.token);
        world.redis.until_subscribed(&viewer.system_channels());
        world.redis.until_subscribed(&others.user_channels());
        world.publish(&viewer.home(), &text_message("delete", "1"));
        sse.expect("delete", "1");
        world.publish(&viewer.system_channels()[at], r#"{"event":"kill"}"#);
        assert_eq!(sse.until_end(), "");
        // Nobody else is touched.
        world.publish(&others.home(), &text_message("delete", "2"));
        other.expect("delete", "2");
    }
}

#[test]
fn a_kill_of_an_account_ends_all_its_clients_and_of_a_token_only_its_own() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let (_, second) = world.token(viewer.user, "read");
    let mut first_sse = Sse::open(&world.server, USER, &viewer.token);
    let mut second_sse = Sse::open(&world.server, USER, &second);
    let mut second_ws = Ws::open(&world.server, "/", &second);
    second_ws.subscribe(&world.redis, json!({"stream": "user"}), &viewer.user_channels());
    let [token, system] = viewer.system_channels();
    world.redis.until_subscribed(&[&token]);
    world.publish(&token, r#"{"event":"kill"}"#);
    first_sse.until_end();
    world.publish(&viewer.home(), &text_message("marker", "still"));
    while second_sse.next().data != "still" {}
    second_ws.expect_event(&json!(["user"]), "marker", "still");
    world.publish(&system, r#"{"event":"kill"}"#);
    assert_eq!(second_sse.until_end(), "");
    second_ws.until_close();
    world.until_empty();
}

/// What was published before a kill still arrives; nothing after it does.
#[test]
fn a_kill_comes_in_order_with_what_was_published() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    for _ in 0..30 {
        let viewer = world.viewer("read");
        let mut sse = Sse::open(&world.server, USER, &viewer.token);
        let mut all = Vec::new();
        for n in 0..20 {
            all.extend(encode(&["PUBLISH", &viewer.home(), &text_message("delete", &n.to_string())]));
        }
        all.extend(encode(&["PUBLISH", &viewer.system_channels()[0], r#"{"event":"kill"}"#]));
        all.extend(encode(&["PUBLISH", &viewer.home(), &text_message("delete", "late")]));
        let mut publisher = world.redis.client();
        publisher.send(&all);
        (0..20).for_each(|n| sse.expect("delete", &n.to_string()));
        assert_eq!(sse.until_end(), "");
    }
}

/// Clients leave at random moments of handshake and subscription, politely or by reset, in ten threads.
#[test]
fn clients_that_leave_at_any_moment_leave_nothing_behind() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewers: Vec<Viewer> = (0..10).map(|_| world.viewer("read")).collect();
    let lists: Vec<i64> = viewers.iter().map(Viewer::list).collect();
    world.server.get("/api/v1/streaming/health");
    let before = world.server.descriptors();
    std::thread::scope(|scope| {
        for (thread, (viewer, list)) in viewers.iter().zip(&lists).enumerate() {
            let world = &world;
            scope.spawn(move || {
                let mut random = Random(0x5eed_1000 + thread as u64);
                for _ in 0..60 {
                    leave_early(world, viewer, *list, &mut random);
                }
            });
        }
    });
    world.until_empty();
    support::wait_until("the descriptors are closed", PATIENCE, || world.server.descriptors() <= before + 10);
    let mut sse = Sse::open(&world.server, USER, &viewers[0].token);
    world.publish(&viewers[0].home(), &text_message("delete", "1"));
    sse.expect("delete", "1");
}

fn leave_early(world: &World, viewer: &Viewer, list: i64, random: &mut Random) {
    let mut connection = world.server.connect();
    let bearer = viewer.bearer();
    let headers = [("Authorization", bearer.as_str())];
    let list_path = format!("/api/v1/streaming/list?list={list}");
    let list_query = format!("/?stream=list&list={list}");
    let text = match random.next(8) {
        0 => request("GET", USER, &headers),
        1 => request("GET", &list_path, &headers),
        2 => request("GET", "/api/v1/streaming/public", &headers),
        3 => request("GET", "/api/v1/streaming/hashtag?tag=sea", &headers),
        4 => upgrade("/", &headers),
        5 => upgrade("/?stream=user", &headers),
        6 => upgrade("/?stream=public", &headers),
        _ => upgrade(&list_query, &headers),
    };
    let websocket = text.contains("Upgrade: ");
    let mut bytes = text.into_bytes();
    if random.next(10) == 0 {
        bytes.truncate(random.next(bytes.len() as u64) as usize);
    }
    connection.send(&bytes);
    let far = random.next(4);
    if far > 1 && bytes.ends_with(b"\r\n\r\n") {
        connection.head();
        if websocket && far > 2 {
            for (stream, rest) in [
                ("user", String::new()),
                ("list", format!(r#","list":"{list}""#)),
                ("hashtag", r#","tag":"a""#.into()),
                ("public:remote", String::new()),
            ] {
                let kind = if random.next(3) == 0 { "unsubscribe" } else { "subscribe" };
                let message = format!(r#"{{"type":"{kind}","stream":"{stream}"{rest}}}"#);
                connection.send(&RawWs::encode(0x81, message.as_bytes()));
            }
        }
    }
    pause(Duration::from_micros(random.next(3000)));
    match random.next(3) {
        0 => connection.reset_on_close(),
        1 => connection.finish(),
        _ => {}
    }
}

/// A client that only closes its sending half has left, as far as a stream is concerned.
#[test]
fn a_client_that_closes_is_noticed_without_any_message() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for reset in [false, true] {
        let sse = Sse::open(&world.server, USER, &viewer.token);
        let raw = RawWs::open(&world.server, "/?stream=user", &viewer.token);
        world.redis.until_subscribed(&viewer.user_channels());
        world.server.until_metric("connected_clients", &[("type", "websocket")], 1.0);
        if reset {
            sse.connection.reset_on_close();
            raw.connection.reset_on_close();
        }
        drop((sse, raw));
        world.until_empty();
    }
}

/// A reader that takes its time gets everything all the same.
#[test]
fn a_slow_reader_gets_everything_in_order() {
    const COUNT: usize = 2000;
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let home = viewer.home();
    let mut slow = Sse::open(&world.server, USER, &viewer.token);
    let mut fast = Ws::open(&world.server, "/", &viewer.token);
    fast.subscribe(&world.redis, json!({"stream": "user"}), &[&home]);
    world.publish(&home, &text_message("start", "1"));
    while slow.next().name != "start" {}
    fast.next();
    let filler = "z".repeat(3000);
    // The slow one reads nothing until the fast one has everything: 6 MB wait for it.
    for n in 0..COUNT {
        world.publish(&home, &text_message("delete", &format!("{n} {filler}")));
    }
    for n in 0..COUNT {
        fast.expect_event(&json!(["user"]), "delete", &format!("{n} {filler}"));
    }
    for n in 0..COUNT {
        slow.expect("delete", &format!("{n} {filler}"));
    }
}

/// Many clients of one channel: each gets the same bytes.
#[test]
fn everybody_on_a_channel_gets_the_same() {
    let Some(world) = World::start() else { return };
    let viewers: Vec<Viewer> = (0..5).map(|_| world.viewer("read")).collect();
    let mut streams: Vec<Sse> = (0..50)
        .map(|n| {
            Sse::open(&world.server, "/api/v1/streaming/public/local", &viewers[n % viewers.len()].token)
        })
        .collect();
    world.redis.until_subscribed(&["timeline:public:local"]);
    if peer().is_none() {
        // One subscription in Redis, however many clients.
        let count = world.redis.command(&["PUBSUB", "NUMSUB", "timeline:public:local"]);
        assert!(format!("{count:?}").contains("Integer(1)"), "{count:?}");
    }
    let author = world.account();
    for n in 1..=20 {
        let post = status(n, author);
        world.publish("timeline:public:local", &message("update", &post));
        for stream in &mut streams {
            stream.expect("update", &with_filtered(&post, "[]"));
        }
    }
    streams.truncate(1);
    world.publish("timeline:public:local", &text_message("marker", "end"));
    streams[0].expect_marker("end");
    streams.clear();
    world.until_empty();
}

/// A new server can take the port at once, and clients that come back miss nothing published from then on.
#[test]
fn a_restart_takes_the_port_over() {
    let Some(mut world) = World::start() else { return };
    let viewer = world.viewer("read");
    let _before = Sse::open(&world.server, USER, &viewer.token);
    world.env.insert("PORT".into(), world.server.address().port().to_string());
    world.server.signal("TERM");
    world.server.until_exit();
    world.server = support::Server::start(&world.env);
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    world.redis.until_subscribed(&viewer.user_channels());
    world.publish(&viewer.home(), &text_message("delete", "1"));
    sse.expect("delete", "1");
}

/// Subscriptions that come and go while messages flow: each sees a contiguous run.
#[test]
fn subscriptions_that_come_and_go_see_contiguous_runs() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let (stop, stopped) = mpsc::channel::<()>();
    let published = &AtomicU64::new(0);
    std::thread::scope(|scope| {
        let mut publisher = world.redis.client();
        let home = viewer.home();
        scope.spawn(move || {
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let n = published.load(SeqCst) + 1;
                publisher.publish(&home, &text_message("delete", &n.to_string()));
                published.store(n, SeqCst);
            }
        });
        // One may be under way when the count is read; the one after it is published later and so is owed.
        let owed_from = || published.load(SeqCst) + 2;
        for round in 0..100 {
            let first: u64;
            if round % 2 == 0 {
                let mut sse = Sse::open(&world.server, USER, &viewer.token);
                let owed_from = owed_from();
                first = sse.next().data.parse().unwrap();
                assert!(first <= owed_from, "{owed_from} was published after the head, {first} came first");
                (1..50).for_each(|n| sse.expect("delete", &(first + n).to_string()));
            } else {
                let mut ws = Ws::open(&world.server, "/", &viewer.token);
                ws.send(r#"{"type":"subscribe","stream":"user"}"#);
                world.redis.until_subscribed(&viewer.user_channels());
                let owed_from = owed_from();
                first = ws.next_json()["payload"].as_str().unwrap().parse().unwrap();
                assert!(
                    first <= owed_from,
                    "{owed_from} was published after Redis had the subscriber, {first} came first"
                );
                (1..50).for_each(|n| ws.expect_event(&json!(["user"]), "delete", &(first + n).to_string()));
            }
        }
        drop(stop);
    });
    world.until_empty();
}

/// The first client's reads never wait for a second one that stays in its handshake.
#[test]
fn half_open_requests_hold_nobody_up() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut halves: Vec<TcpStream> = Vec::new();
    for _ in 0..50 {
        let mut connection = TcpStream::connect(world.server.address()).unwrap();
        std::io::Write::write_all(
            &mut connection,
            b"GET /api/v1/streaming/user HTTP/1.1\r\nHost: x\r\nAuthor",
        )
        .unwrap();
        halves.push(connection);
    }
    let mut sse = Sse::open(&world.server, USER, &viewer.token);
    world.redis.until_subscribed(&viewer.user_channels());
    world.publish(&viewer.home(), &text_message("delete", "1"));
    sse.expect("delete", "1");
    for half in &mut halves {
        half.set_nonblocking(true).unwrap();
        let error = half.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}
