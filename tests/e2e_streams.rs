//! Every stream on both transports: its channels, its presence keys, and exactly what its clients receive.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::machine::PATIENCE;
use support::posts::{message, status, text_message, with_filtered};
use support::streams::Stream;
use support::{Sse, Viewer, World, Ws, ours_alone, peer, streams, wait_until};

/// What is published on a stream, and what its clients get: event and data.
fn messages(stream: &Stream, author: u64) -> Vec<(String, Option<(&'static str, String)>)> {
    let post = status(110_000_000_000_000_001, author);
    let edited = status(110_000_000_000_000_003, author);
    let rendered = |post: &Value| {
        if stream.filtered { with_filtered(post, "[]") } else { post.to_string() }
    };
    let notification = json!({"id": "34975861", "type": "mention", "account": {"id": "7"}, "status": post});
    vec![
        (message("update", &post), Some(("update", rendered(&post)))),
        (message("status.update", &edited), Some(("status.update", rendered(&edited)))),
        (text_message("delete", "110000000000000001"), Some(("delete", "110000000000000001".into()))),
        (message("notification", &notification), Some(("notification", notification.to_string()))),
        (text_message("notifications_merged", "1"), Some(("notifications_merged", "1".into()))),
        (message("announcement.reaction", &json!({"name": "🌊", "count": 3, "announcement_id": "5"})), None),
        (message("an.event of tomorrow", &json!([1, {"a": null}])), None),
        // A further member of the message stays behind.
        (
            r#"{"event":"delete","payload":"2","queued_at":1700000000000}"#.into(),
            Some(("delete", "2".into())),
        ),
        (r#"{"queued_at":1,"payload":"3","event":"delete"}"#.into(), Some(("delete", "3".into()))),
        // What has no event or no payload is nothing.
        (r#"{"event":"filters_changed"}"#.into(), Some(("", String::new()))),
        (r#"{"payload":"3"}"#.into(), Some(("", String::new()))),
        (r#"{"event":"delete","payload":null}"#.into(), Some(("", String::new()))),
        (r#"{"event":"delete","payload":""}"#.into(), Some(("", String::new()))),
        (r#"{"event":"","payload":"x"}"#.into(), Some(("", String::new()))),
        ("null".into(), Some(("", String::new()))),
        (text_message("marker", "end"), Some(("marker", "end".into()))),
    ]
    .into_iter()
    .map(|(sent, got)| match got {
        Some(got) => (sent, Some(got)),
        None => {
            // An object or a list arrives as its own text.
            let value: Value = serde_json::from_str(&sent).unwrap();
            let name =
                if sent.contains("announcement") { "announcement.reaction" } else { "an.event of tomorrow" };
            (sent, Some((name, value["payload"].to_string())))
        }
    })
    .map(|(sent, got)| (sent, got.filter(|(name, _)| !name.is_empty())))
    .collect()
}

fn system_and(stream: &Stream, viewer: &Viewer) -> Vec<String> {
    stream.channels.iter().cloned().chain(viewer.system_channels()).collect()
}

#[test]
fn every_stream_by_sse() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let author = world.account();
    for stream in streams::all(&viewer) {
        let Some(path) = &stream.path else { continue };
        let mut sse = Sse::open(&world.server, path, &viewer.token);
        let head = &sse.head;
        assert_eq!(head.header("Content-Type"), Some("text/event-stream"), "{path}");
        assert_eq!(head.header("Cache-Control"), Some("private, no-store"), "{path}");
        let channels = system_and(&stream, &viewer);
        let names: Vec<&str> = channels.iter().map(String::as_str).collect();
        world.redis.until_channels(&names);
        for channel in &stream.channels {
            wait_until("the presence key is set", PATIENCE, || {
                (1079..=1080).contains(&world.redis.ttl(&format!("subscribed:{channel}")))
            });
        }
        for channel in viewer.system_channels() {
            assert_eq!(world.redis.ttl(&format!("subscribed:{channel}")), -2);
        }
        let labels = [("type", "eventsource"), ("channel", stream.name)];
        world.server.until_metric("connected_channels", &labels, 1.0);
        for channel in &stream.channels {
            for (sent, got) in messages(&stream, author) {
                assert_eq!(world.publish(channel, &sent), 1, "{channel}");
                if let Some((name, data)) = got {
                    sse.expect(name, &data);
                }
            }
        }
        drop(sse);
        world.until_empty();
        // Keys stay until they expire: Rails counts on that. Those of hashtags nobody reads.
        if !stream.name.starts_with("hashtag") {
            assert!(world.redis.ttl(&format!("subscribed:{}", stream.channels[0])) > 1000);
        }
        world.redis.command(&["FLUSHALL"]);
    }
}

#[test]
fn every_stream_by_websocket_message() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let author = world.account();
    for stream in streams::all(&viewer) {
        let mut ws = Ws::open(&world.server, "/api/v1/streaming", &viewer.token);
        ws.subscribe(&world.redis, stream.request.clone(), &stream.channels);
        check_websocket(&world, &viewer, &stream, &mut ws, author);
        let mut message = stream.request.clone();
        message["type"] = json!("unsubscribe");
        ws.send_json(&message);
        let names = viewer.system_channels();
        world.redis.until_channels(&[&names[0], &names[1]]);
        drop(ws);
        world.until_empty();
        world.redis.command(&["FLUSHALL"]);
    }
}

#[test]
fn every_stream_by_websocket_query() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let author = world.account();
    for stream in streams::all(&viewer) {
        let mut query = format!("stream={}", stream.name);
        for name in ["tag", "list"] {
            if let Some(value) = stream.request.get(name).and_then(Value::as_str) {
                query.push_str(&format!("&{name}={}", value.replace('é', "%C3%A9")));
            }
        }
        let mut ws = Ws::open(&world.server, &format!("/api/v1/streaming/?{query}"), &viewer.token);
        if peer().is_some() {
            world.redis.until_subscribed(&stream.channels);
        }
        check_websocket(&world, &viewer, &stream, &mut ws, author);
        drop(ws);
        world.until_empty();
        world.redis.command(&["FLUSHALL"]);
    }
}

#[track_caller]
fn check_websocket(world: &World, viewer: &Viewer, stream: &Stream, ws: &mut Ws, author: u64) {
    let channels = system_and(stream, viewer);
    let names: Vec<&str> = channels.iter().map(String::as_str).collect();
    world.redis.until_channels(&names);
    for channel in &stream.channels {
        wait_until("the presence key is set", PATIENCE, || {
            (1079..=1080).contains(&world.redis.ttl(&format!("subscribed:{channel}")))
        });
    }
    if !stream.name.contains("allow_local_only") {
        let labels = [("type", "websocket"), ("channel", stream.name)];
        world.server.until_metric("connected_channels", &labels, 1.0);
    }
    for channel in &stream.channels {
        for (sent, got) in messages(stream, author) {
            assert_eq!(world.publish(channel, &sent), 1, "{channel}");
            if let Some((name, data)) = got {
                ws.expect_event(&stream.label, name, &data);
            }
        }
    }
}

#[test]
fn a_number_stays_a_number_and_other_payloads_become_text() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let channels = viewer.user_channels();
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "user"}), &channels);
    world.publish(&channels[1], r#"{"event":"marker","payload":"live"}"#);
    while sse.next().data != "live" {}
    ws.expect(r#"{"stream":["user"],"event":"marker","payload":"live"}"#);
    for (payload, in_frame, in_event) in [
        ("12", "12", "12"),
        ("-1.5", "-1.5", "-1.5"),
        ("true", "true", "true"),
        ("[]", r#""[]""#, "[]"),
        ("{}", r#""{}""#, "{}"),
        (r#"[1,"a",null]"#, r#""[1,\"a\",null]""#, r#"[1,"a",null]"#),
        (r#"{"b":1,"a":{"x":[]}}"#, r#""{\"b\":1,\"a\":{\"x\":[]}}""#, r#"{"b":1,"a":{"x":[]}}"#),
        (r#""plain""#, r#""plain""#, "plain"),
        (r#""a \"b\" \\ / ü 🌊""#, r#""a \"b\" \\ / ü 🌊""#, r#"a "b" \ / ü 🌊"#),
        (r#""0""#, r#""0""#, "0"),
    ] {
        world.publish(&channels[0], &format!("{{\"event\":\"e\",\"payload\":{payload}}}"));
        ws.expect(&format!("{{\"stream\":[\"user\"],\"event\":\"e\",\"payload\":{in_frame}}}"));
        sse.expect("e", in_event);
    }
    for falsy in ["0", "false", "null", "\"\"", "-0", "0.0"] {
        world.publish(&channels[0], &format!("{{\"event\":\"e\",\"payload\":{falsy}}}"));
    }
    // What Redis carries besides JSON objects disturbs nobody.
    for junk in ["", "x", "{", "[]", "5", "\"text\"", "{\"event\":\"e\",\"payload\":", "\u{0}"] {
        world.publish(&channels[0], junk);
    }
    world.publish(&channels[0], r#"{"event":"marker","payload":"end"}"#);
    ws.expect(r#"{"stream":["user"],"event":"marker","payload":"end"}"#);
    sse.expect_marker("end");
}

#[test]
fn large_numbers_and_deep_nesting_arrive_whole() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    let deep = format!("{}1{}", "[".repeat(300), "]".repeat(300));
    for payload in ["12345678901234567890123", r#"{"id":12345678901234567890123,"x":1.0e5}"#, &deep] {
        world.publish(&viewer.home(), &format!("{{\"event\":\"e\",\"payload\":{payload}}}"));
        sse.expect("e", payload);
    }
    // Line feeds: one data line each. Between the tokens of an object they are JSON's own.
    world.publish(&viewer.home(), r#"{"event":"e","payload":"one\ntwo\n\nfour"}"#);
    sse.expect("e", "one\ntwo\n\nfour");
    world.publish(&viewer.home(), "{\"event\":\"e\",\"payload\":{\n\"a\": 1,\r\n\"b\": 2\n}}");
    let event = sse.next();
    assert_eq!(serde_json::from_str::<Value>(&event.data).unwrap(), json!({"a": 1, "b": 2}));
}

/// Rails escapes `<`, `>`, `&`, U+2028 and U+2029; a client reads the same characters.
#[test]
fn escapes_mean_the_same_after_the_relay() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let channels = viewer.user_channels();
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "user"}), &channels);
    world.publish(&channels[1], r#"{"event":"marker","payload":"live"}"#);
    while sse.next().data != "live" {}
    ws.next();
    let payload = r#"{"content":"\u003cp\u003e\u0026amp; \u2028\u2029 \u00fc \ud83c\udf0a \/ \t \b\u0000\u001f\u003c/p\u003e"}"#;
    world.publish(&channels[0], &format!("{{\"event\":\"update\",\"payload\":{payload}}}"));
    let expected: Value = serde_json::from_str(payload).unwrap();
    let message = ws.next_json();
    let inner: Value = serde_json::from_str(message["payload"].as_str().unwrap()).unwrap();
    assert_eq!(inner, expected);
    let event = sse.next();
    assert_eq!(serde_json::from_str::<Value>(&event.data).unwrap(), expected);
}

#[test]
fn only_media_is_true_unless_it_is_empty_or_says_no() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let values = [
        ("", false),
        ("=", false),
        ("=0", false),
        ("=f", false),
        ("=F", false),
        ("=false", false),
        ("=FALSE", false),
        ("=off", false),
        ("=OFF", false),
        ("=1", true),
        ("=true", true),
        ("=no", true),
        ("=False", true),
        ("=%30", false),
    ];
    for (value, media) in values {
        let path = format!("/api/v1/streaming/public/local?only_media{value}");
        let sse = Sse::open(&world.server, &path, &viewer.token);
        let channel = if media { "timeline:public:local:media" } else { "timeline:public:local" };
        world.redis.until_subscribed(&[channel]);
        drop(sse);
        world.redis.until_channels(&[]);
    }
    // On a WebSocket it means nothing: the name says it.
    let mut ws = Ws::open(&world.server, "/?stream=public:local&only_media=true", &viewer.token);
    ws.subscribe(
        &world.redis,
        json!({"stream": "public:remote", "only_media": true}),
        &["timeline:public:remote"],
    );
    assert!(world.redis.has_subscriber("timeline:public:local"));
}

#[test]
fn hashtags_are_normalised_into_their_channel() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let both = [
        ("cats", "cats"),
        ("CaTs", "cats"),
        ("Café", "cafe"),
        ("ÅÄÖøß", "aaooß"),
        ("ｆｕｌｌ", "full"),
        ("ﬁn", "fin"),
        ("#cats", "cats"),
        ("c-a t.s!", "cats"),
        ("snake_case_2", "snake_case_2"),
        ("日本語", "日本語"),
        ("l·l", "l·l"),
        ("🌊sea", "sea"),
        ("ΑΒΓ", "αβγ"),
        ("ПРИВЕТ", "привет"),
    ];
    let ours =
        [("ไม่", "ไม่"), ("हिन्दी", "हिनदी"), ("العَرَبِيَّة", "العَرَبِيَّة"), ("スター・ウォーズ", "スター・ウォーズ")];
    let extra = if peer().is_none() { ours.as_slice() } else { &[] };
    for (tag, channel) in both.iter().chain(extra) {
        let mut ws = Ws::open(&world.server, "/", &viewer.token);
        let channel = format!("timeline:hashtag:{channel}");
        ws.subscribe(&world.redis, json!({"stream": "hashtag", "tag": tag}), &[&channel]);
        world.publish(&channel, r#"{"event":"delete","payload":"1"}"#);
        ws.expect_event(&json!(["hashtag", tag]), "delete", "1");
        let encoded: String = tag.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/streaming/hashtag/local?tag={encoded}");
        let mut sse = Sse::open(&world.server, &path, &viewer.token);
        let local = format!("{channel}:local");
        world.redis.until_subscribed(&[&local]);
        world.publish(&local, r#"{"event":"delete","payload":"2"}"#);
        sse.expect("delete", "2");
    }
}

#[test]
fn heartbeats_come_between_events() {
    let Some(world) = World::with(&[("SSE_HEARTBEAT_SECONDS", "1")]) else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    if peer().is_some() {
        sse.connection.patience(PATIENCE * 2);
    }
    sse.expect_bytes(b":thump\n\n");
    world.redis.until_subscribed(&viewer.user_channels());
    world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
    sse.expect_bytes(b"event: delete\ndata: 1\n\n");
    if peer().is_none() {
        sse.expect_bytes(b":thump\n\n:thump\n\n");
    }
}

/// The first bytes of a stream, and of each event, as they stand in the body.
#[test]
fn sse_bytes_are_exact() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut sse = Sse::try_open(&world.server, "/api/v1/streaming/user", &viewer.token).unwrap();
    sse.expect_bytes(b":)\n");
    world.redis.until_subscribed(&viewer.user_channels());
    world.publish(&viewer.home(), r#"{"event":"update","payload":{"id":"1","content":"a: b"}}"#);
    world.publish(&viewer.home(), r#"{"event":"delete","payload":"1"}"#);
    sse.expect_bytes(
        b"event: update\ndata: {\"id\":\"1\",\"content\":\"a: b\"}\n\nevent: delete\ndata: 1\n\n",
    );
}

/// The presence keys live as long as their subscription: they are set again in time.
#[test]
fn presence_keys_are_set_again_while_subscribed() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("PRESENCE_REFRESH_SECONDS", "1")]) else { return };
    let viewer = world.viewer("read");
    let sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    let keys = viewer.user_channels().map_keys();
    for _ in 0..2 {
        for key in &keys {
            assert_eq!(world.redis.command(&["DEL", key]).integer(), 1, "{key}");
        }
        wait_until("the keys are there again", PATIENCE, || keys.iter().all(|key| world.redis.ttl(key) > 0));
    }
    drop(sse);
    world.until_empty();
    keys.iter().for_each(|key| drop(world.redis.command(&["DEL", key])));
    // Another client's refresh shows that time has passed; the gone client's keys stay gone.
    let other = world.viewer("read");
    let _sse = Sse::open(&world.server, "/api/v1/streaming/direct", &other.token);
    let key = format!("subscribed:timeline:direct:{}", other.account);
    for _ in 0..2 {
        world.redis.command(&["DEL", &key]);
        wait_until("the key is there again", PATIENCE, || world.redis.ttl(&key) > 0);
    }
    assert!(keys.iter().all(|key| world.redis.ttl(key) == -2));
}

trait Keys {
    fn map_keys(&self) -> Vec<String>;
}

impl Keys for Vec<String> {
    fn map_keys(&self) -> Vec<String> {
        self.iter().map(|channel| format!("subscribed:{channel}")).collect()
    }
}
