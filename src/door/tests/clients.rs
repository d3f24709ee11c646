use super::*;
use crate::core::event::Transport;
use crate::core::stream::{Origin, StreamKind};

const SYSTEM: [Channel; 2] = [Channel::AccessToken(11), Channel::System(1)];

fn head(client: &NewClient<Fake>) -> String {
    String::from_utf8(client.head.to_vec()).unwrap()
}

#[tokio::test]
async fn an_event_stream_begins_after_redis_confirmed_it() {
    let mut world = World::new();
    let mut stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    let held = world.held().await;
    let user = [Channel::Account(1), Channel::Notifications(1)];
    assert_eq!(held.channels, [&SYSTEM[..], &user[..]].concat());
    (held.reply)(Ok(()));
    let attached = world.attached().await;
    assert_eq!(attached.ticket, held.ticket);
    let client = attached.client;
    assert_eq!((client.viewer, client.expires_at), (ALICE, Some(4_000_000_000)));
    assert_eq!(client.transport, Transport::SseChunked);
    assert_eq!(client.read_ahead, "");
    let subscription = client.subscription.as_ref().unwrap();
    assert_eq!(subscription.stream.kind, StreamKind::User);
    assert_eq!(subscription.channels.to_vec(), user);

    let text = head(&client);
    let response = Response::parse(text.as_bytes());
    response.is_web("200 OK").has(&[
        ("Content-Type", "text/event-stream"),
        ("Cache-Control", "private, no-store"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "keep-alive"),
    ]);
    assert_eq!(response.body, "3\r\n:)\n\r\n");

    // The socket is the client's, and nothing was written to it.
    let mut socket = client.socket;
    socket.write_all(b"hello").unwrap();
    drop(socket);
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "hello");
    assert_eq!(world.door.coming(), 0);
}

#[tokio::test]
async fn every_path_is_its_stream() {
    let public = |origin, media| Channel::Public { origin, media };
    let cases = [
        ("user/notification", StreamKind::UserNotification, Channel::Notifications(1)),
        ("public", StreamKind::Public, public(Origin::Any, false)),
        ("public?only_media=0", StreamKind::Public, public(Origin::Any, false)),
        ("public?only_media=true", StreamKind::PublicMedia, public(Origin::Any, true)),
        ("public/local", StreamKind::PublicLocal, public(Origin::Local, false)),
        ("public/local?only_media=1", StreamKind::PublicLocalMedia, public(Origin::Local, true)),
        ("public/remote", StreamKind::PublicRemote, public(Origin::Remote, false)),
        ("public/remote?only_media=1", StreamKind::PublicRemoteMedia, public(Origin::Remote, true)),
        ("list?list=77", StreamKind::List, Channel::List(77)),
        ("direct?stream=user", StreamKind::Direct, Channel::Direct(1)),
    ];
    let mut world = World::new();
    for (path, kind, channel) in cases {
        let _stream = world.send(&stream_request(&format!("/api/v1/streaming/{path}"), "alice")).await;
        let attached = world.admitted().await;
        let subscription = attached.client.subscription.unwrap();
        assert_eq!(subscription.stream.kind, kind, "{path}");
        assert_eq!(subscription.channels.to_vec(), [channel], "{path}");
    }
    for (path, kind) in
        [("hashtag?tag=Rust", StreamKind::Hashtag), ("hashtag/local?tag=Rust", StreamKind::HashtagLocal)]
    {
        let _stream = world.send(&stream_request(&format!("/api/v1/streaming/{path}"), "alice")).await;
        let attached = world.admitted().await;
        assert_eq!(attached.client.subscription.unwrap().stream.kind, kind, "{path}");
    }
}

#[tokio::test]
async fn an_old_client_gets_a_plain_stream() {
    let mut world = World::new();
    let request = "GET /api/v1/streaming/public?access_token=alice HTTP/1.0\r\n\r\n";
    let _stream = world.send(request).await;
    let client = world.admitted().await.client;
    assert_eq!(client.transport, Transport::SsePlain);
    let response = Response::parse(&client.head);
    response.is_web("200 OK").has(&[("Connection", "close")]);
    assert!(response.header("Transfer-Encoding").is_none());
    assert_eq!(response.body, ":)\n");
}

#[tokio::test]
async fn a_websocket_opens_on_any_path_and_keeps_what_was_sent_ahead() {
    let mut world = World::new();
    let cases = [
        ("/api/v1/streaming", "Sec-WebSocket-Protocol: alice\r\n", Some("alice")),
        (
            "/api/v1/streaming/",
            "Authorization: Bearer alice\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
            None,
        ),
        ("/anything?access_token=alice&stream=", "Sec-WebSocket-Protocol: a, b\r\n", Some("a")),
        ("/api/v1/streaming/user?access_token=alice", "", None),
    ];
    for (path, headers, protocol) in cases {
        let _stream = world.send(&(upgrade(path, headers) + "early frames")).await;
        let held = world.held().await;
        assert_eq!(held.channels, SYSTEM);
        (held.reply)(Ok(()));
        let client = world.attached().await.client;
        assert_eq!(client.transport, Transport::WebSocket);
        assert_eq!(client.read_ahead, "early frames");
        assert!(client.subscription.is_none());
        let response = Response::parse(&client.head);
        assert_eq!(response.status, "HTTP/1.1 101 Switching Protocols");
        response.has(&[
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ]);
        assert_eq!(response.header("Sec-WebSocket-Protocol"), protocol);
        assert!(response.header("Sec-WebSocket-Extensions").is_none());
        assert!(response.header("X-Request-Id").is_some());
        assert_eq!(response.body, "");
    }
}

#[tokio::test]
async fn a_websocket_opens_whatever_the_checks_of_its_stream_say() {
    let mut world = World::new();
    let scope = "Access token does not have the required scopes";
    let cases = [
        ("stream=user", "notifications", scope, 401),
        ("stream=unheard:of", "nothing", scope, 401),
        ("stream=unheard:of", "alice", "Unknown stream type", 400),
        ("stream=hashtag", "alice", "Missing tag name parameter", 400),
        ("stream=list", "alice", "Missing list name parameter", 400),
        ("stream=list&list=78", "alice", "Not authorized to stream this list", 401),
    ];
    for (query, token, text, status) in cases {
        let _stream = world.send(&upgrade(&format!("/?access_token={token}&{query}"), "")).await;
        let held = world.held().await;
        assert_eq!(held.channels.len(), 2, "{query}");
        (held.reply)(Ok(()));
        let client = world.attached().await.client;
        assert!(client.subscription.is_none(), "{query}");
        let (_, frame) =
            client.head.split_at(client.head.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4);
        let json = format!("{{\"error\":\"{text}\",\"status\":{status}}}");
        assert_eq!(frame, [&[0x81, json.len() as u8], json.as_bytes()].concat(), "{query}");
    }
    let _stream = world.send(&upgrade("/?access_token=alice&stream=list&list=77", "")).await;
    let client = world.admitted().await.client;
    assert_eq!(client.subscription.unwrap().channels.to_vec(), [Channel::List(77)]);
    assert!(client.head.ends_with(b"\r\n\r\n"));
}

#[tokio::test]
async fn a_request_before_the_stream_is_answered_first() {
    let mut world = World::new();
    let health = "GET /api/v1/streaming/health HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stream =
        world.send(&(health.repeat(2) + &stream_request("/api/v1/streaming/public", "alice") + health)).await;
    let mut client = world.admitted().await.client;
    assert_eq!(read_one(&mut stream).await.body, "OK");
    assert_eq!(read_one(&mut stream).await.body, "OK");
    // What came behind the stream's request is nobody's.
    assert_eq!(client.read_ahead, "");
    client.socket.write_all(b"!").unwrap();
    drop(client);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(rest, b"!");
}

#[tokio::test]
async fn a_stream_waits_until_earlier_responses_are_read() {
    let page = "x".repeat(4 << 20);
    let sent = Bytes::from(page.clone());
    let mut world = World::with(|setup| {
        setup.pages.source = Some(one_page(sent.clone()));
    });
    let metrics = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut stream =
        world.send(&(metrics.to_owned() + &stream_request("/api/v1/streaming/public", "alice"))).await;
    let (admitted, response) = tokio::join!(world.admitted(), read_one(&mut stream));
    assert!(response.body == page, "the page is whole");
    drop(admitted);
}

#[tokio::test]
async fn a_body_on_a_streams_path_is_refused() {
    let world = World::new();
    for body in
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"]
    {
        let request =
            format!("GET /api/v1/streaming/public HTTP/1.1\r\nHost: x\r\nAuthorization: alice\r\n{body}");
        let refused = world.ask(&request).await;
        refused.is_web("400 Bad Request").has(&[("Connection", "close")]);
        assert_eq!(refused.body, "{\"error\":\"A request for a stream must not have a body\"}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_releases_everything() {
    for leave in [leave_half as fn(TcpStream) -> Option<TcpStream>, leave_wholly, leave_with_a_reset] {
        for request in [
            stream_request("/api/v1/streaming/user", "alice"),
            // Bytes read ahead must not hide that the client left.
            stream_request("/api/v1/streaming/user", "alice") + "GET / HTTP/1.1\r\n",
            upgrade("/?access_token=alice&stream=user", "") + "frames",
        ] {
            // While PostgreSQL is asked.
            let mut world = World::new();
            world.directory.answers.store(0, Ordering::Relaxed);
            let stream = world.send(&request).await;
            assert_eq!(world.hanging.recv().await, Some("began"));
            let stream = leave(stream);
            assert_eq!(world.hanging.recv().await, Some("given up"));
            drop(stream);

            // While Redis is asked.
            let mut world = World::new();
            let stream = world.send(&request).await;
            let held = world.held().await;
            let stream = leave(stream);
            assert_eq!(world.cancelled().await, held.ticket);
            // A confirmation that comes late disturbs nobody.
            (held.reply)(Ok(()));
            drop(stream);

            // While PostgreSQL is asked once more.
            let mut world = World::new();
            world.directory.answers.store(1, Ordering::Relaxed);
            let stream = world.send(&request).await;
            let held = world.held().await;
            (held.reply)(Ok(()));
            assert_eq!(world.hanging.recv().await, Some("began"));
            let stream = leave(stream);
            assert_eq!(world.cancelled().await, held.ticket);
            assert_eq!(world.hanging.recv().await, Some("given up"));
            drop(stream);
            assert_eq!(world.door.coming(), 0);
            assert!(world.clients.iter().all(|clients| clients.load(Ordering::Relaxed) == 0));
        }
    }
}

fn leave_half(stream: TcpStream) -> Option<TcpStream> {
    socket2::SockRef::from(&stream).shutdown(std::net::Shutdown::Write).unwrap();
    Some(stream)
}

fn leave_wholly(_: TcpStream) -> Option<TcpStream> {
    None
}

fn leave_with_a_reset(stream: TcpStream) -> Option<TcpStream> {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    None
}

#[tokio::test]
async fn a_token_revoked_while_redis_was_asked_is_refused() {
    let mut world = World::new();
    let mut stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    let held = world.held().await;
    world.directory.memory.lock().unwrap().tokens.remove("alice");
    (held.reply)(Ok(()));
    let answer = read_one(&mut stream).await;
    answer.is_web("401 Unauthorized");
    assert_eq!(answer.body, "{\"error\":\"Invalid access token\"}");
    assert_eq!(world.cancelled().await, held.ticket);
}

#[tokio::test]
async fn without_redis_clients_are_told_to_come_back() {
    let text = "The connection to Redis is lost, try again later";
    let mut world = World::new();
    let mut stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    (world.held().await.reply)(Err(HoldError::RedisAway));
    let answer = read_one(&mut stream).await;
    answer.is_web("503 Service Unavailable").has(&[("Retry-After", "5")]);
    assert_eq!(answer.body, format!("{{\"error\":\"{text}\"}}"));
    world.cancelled().await;

    let mut stream = world.send(&upgrade("/?access_token=alice", "")).await;
    (world.held().await.reply)(Err(HoldError::RedisAway));
    let answer = read_all(&mut stream).await;
    answer.has(&[("Retry-After", "5")]).is_upgrade_error("503 Service Unavailable", text);
    assert_eq!(world.door.counters().refused(Reason::Redis), 2);
}

#[tokio::test]
async fn a_refused_attachment_is_answered_on_its_socket() {
    let mut world = World::new();
    let mut stream = world.send(&upgrade("/?access_token=alice", "")).await;
    let attached = world.admitted().await;
    let counts =
        |world: &World| world.clients.iter().map(|clients| clients.load(Ordering::Relaxed)).sum::<usize>();
    assert_eq!(counts(&world), 1);
    (attached.refused)(HoldError::Killed, attached.client);
    read_all(&mut stream).await.is_upgrade_error("401 Unauthorized", "Invalid access token");
    assert_eq!(counts(&world), 0);

    let mut stream = world.send(&stream_request("/api/v1/streaming/user", "alice")).await;
    let attached = world.admitted().await;
    (attached.refused)(HoldError::RedisAway, attached.client);
    let answer = read_all(&mut stream).await;
    answer.is_web("503 Service Unavailable").has(&[("Connection", "close"), ("Retry-After", "5")]);
    assert_eq!(counts(&world), 0);
}

#[tokio::test]
async fn clients_are_spread_over_the_reactors() {
    let mut world = World::new();
    let mut streams = Vec::new();
    let mut places = Vec::new();
    for _ in 0..4 {
        streams.push(world.send(&stream_request("/api/v1/streaming/user", "alice")).await);
        places.push(world.admitted().await.reactor);
    }
    assert_eq!(places, [0, 1, 0, 1]);
}

#[tokio::test]
async fn without_a_database_everybody_has_what_is_public() {
    let mut world = World::with(|setup| setup.directory = None);
    let _stream = world.send("GET /api/v1/streaming/public/local HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let held = world.held().await;
    assert_eq!(held.channels, [Channel::Public { origin: Origin::Local, media: false }]);
    (held.reply)(Ok(()));
    let viewer = world.attached().await.client.viewer;
    assert_eq!((viewer.account, viewer.token), (0, 0));

    for path in ["user", "user/notification", "direct", "list?list=1"] {
        let refused = world.ask(&get(&format!("/api/v1/streaming/{path}"))).await;
        refused.is_web("401 Unauthorized");
        assert!(refused.body.contains("without a database"), "{}", refused.body);
    }
    let _stream = world.send(&upgrade("/?stream=user", "Sec-WebSocket-Protocol: any\r\n")).await;
    let held = world.held().await;
    assert!(held.channels.is_empty());
    (held.reply)(Ok(()));
    let client = world.attached().await.client;
    assert!(client.subscription.is_none());
    assert!(head_contains(&client.head, "without a database"));
}

fn head_contains(head: &[u8], text: &str) -> bool {
    head.windows(text.len()).any(|window| window == text.as_bytes())
}
