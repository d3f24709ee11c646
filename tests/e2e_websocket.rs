//! WebSocket sessions: subscribing and unsubscribing with all their rules, frames on the wire, pings, closing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::machine::PATIENCE;
use support::posts::text_message;
use support::ws::{Frame, RawWs, upgrade};
use support::{Viewer, World, Ws, ours_alone, peer};

/// The channels of a connection, its two system channels among them.
#[track_caller]
fn until_channels(world: &World, viewer: &Viewer, channels: &[&str]) {
    let system = viewer.system_channels();
    let all: Vec<&str> = system.iter().map(String::as_str).chain(channels.iter().copied()).collect();
    world.redis.until_channels(&all);
}

fn delete(world: &World, channel: &str, id: &str) {
    world.publish(channel, &text_message("delete", id));
}

#[test]
fn two_streams_on_one_socket_keep_their_names() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "public:local"}), &["timeline:public:local"]);
    ws.subscribe(&world.redis, json!({"stream": "hashtag", "tag": "sea"}), &["timeline:hashtag:sea"]);
    for n in 0..20 {
        delete(&world, "timeline:public:local", &format!("l{n}"));
        ws.expect_event(&json!(["public:local"]), "delete", &format!("l{n}"));
        delete(&world, "timeline:hashtag:sea", &format!("t{n}"));
        ws.expect_event(&json!(["hashtag", "sea"]), "delete", &format!("t{n}"));
    }
    ws.send_json(&json!({"type": "unsubscribe", "stream": "public:local"}));
    until_channels(&world, &viewer, &["timeline:hashtag:sea"]);
    delete(&world, "timeline:public:local", "gone");
    delete(&world, "timeline:hashtag:sea", "there");
    ws.expect_event(&json!(["hashtag", "sea"]), "delete", "there");
}

#[test]
fn user_and_user_notification_give_each_notification_twice() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let channels = viewer.user_channels();
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "user"}), &channels);
    ws.subscribe(&world.redis, json!({"stream": "user:notification"}), &channels[1..]);
    let names: Vec<&str> = channels.iter().map(String::as_str).collect();
    until_channels(&world, &viewer, &names);
    // Publishes a message and a marker after it; gives the stream names under which the message came.
    let names_of = |ws: &mut Ws, mark: &str| {
        world.publish(&channels[1], &text_message("notification", mark));
        world.publish(&channels[1], &text_message("marker", mark));
        let mut names = Vec::new();
        loop {
            let message = ws.next_json();
            if message["event"] == "notification" && message["payload"] == mark {
                names.push(message["stream"][0].as_str().unwrap().to_owned());
            }
            if message["event"] == "marker" && message["stream"][0] == "user" && message["payload"] == mark {
                names.sort();
                return names;
            }
        }
    };
    assert_eq!(names_of(&mut ws, "twice"), ["user", "user:notification"]);
    delete(&world, &channels[0], "home");
    let home = |message: &Value| message["payload"] == "home";
    assert_eq!(std::iter::repeat_with(|| ws.next_json()).find(home).unwrap()["stream"], json!(["user"]));
    // After one of the two has ended, the other goes on.
    ws.send_json(&json!({"type": "unsubscribe", "stream": "user"}));
    until_channels(&world, &viewer, &[&channels[1]]);
    world.publish(&channels[1], &text_message("notification", "last"));
    let last = |message: &Value| message["payload"] == "last";
    let message = std::iter::repeat_with(|| ws.next_json()).find(last).unwrap();
    assert_eq!(message["stream"], json!(["user:notification"]));
}

#[test]
fn the_same_channels_are_one_subscription() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let channel = "timeline:hashtag:cafe";
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "hashtag", "tag": "Café"}), &[channel]);
    // Other spellings of the same tag, and the same one again, change nothing; the first spelling stays.
    for tag in ["cafe", "CAFÉ", "Café"] {
        ws.send_json(&json!({"type": "subscribe", "stream": "hashtag", "tag": tag}));
    }
    ws.subscribe(&world.redis, json!({"stream": "public:local"}), &["timeline:public:local"]);
    delete(&world, channel, "1");
    ws.expect_event(&json!(["hashtag", "Café"]), "delete", "1");
    delete(&world, channel, "2");
    ws.expect_event(&json!(["hashtag", "Café"]), "delete", "2");
    // Any spelling ends it, once.
    ws.send_json(&json!({"type": "unsubscribe", "stream": "hashtag", "tag": "CAFE"}));
    until_channels(&world, &viewer, &["timeline:public:local"]);
    // Now another spelling may come first.
    ws.subscribe(&world.redis, json!({"stream": "hashtag", "tag": "cafe"}), &[channel]);
    delete(&world, channel, "3");
    ws.expect_event(&json!(["hashtag", "cafe"]), "delete", "3");
}

#[test]
fn a_list_id_comes_back_as_it_was_given() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let list = viewer.list();
    let channel = format!("timeline:list:{list}");
    for given in [json!(list), json!(list.to_string())] {
        let mut ws = Ws::open(&world.server, "/", &viewer.token);
        ws.subscribe(&world.redis, json!({"stream": "list", "list": given}), &[&channel]);
        delete(&world, &channel, "1");
        ws.expect(&format!(r#"{{"stream":["list",{given}],"event":"delete","payload":"1"}}"#));
        drop(ws);
        world.redis.until_channels(&[]);
    }
}

#[test]
fn a_number_is_taken_as_a_tags_text() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "hashtag", "tag": 2026}), &["timeline:hashtag:2026"]);
    delete(&world, "timeline:hashtag:2026", "1");
    ws.expect(r#"{"stream":["hashtag",2026],"event":"delete","payload":"1"}"#);
}

#[test]
fn of_several_streams_in_one_message_the_first_counts() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": ["public:local", "user"]}), &["timeline:public:local"]);
    until_channels(&world, &viewer, &["timeline:public:local"]);
    delete(&world, "timeline:public:local", "1");
    ws.expect_event(&json!(["public:local"]), "delete", "1");
    ws.send_json(&json!({"type": "unsubscribe", "stream": ["public:local"]}));
    until_channels(&world, &viewer, &[]);
    let mut ws = Ws::open(&world.server, "/?stream=public:remote&stream=user", &viewer.token);
    world.redis.until_subscribed(&["timeline:public:remote"]);
    delete(&world, "timeline:public:remote", "2");
    ws.expect_event(&json!(["public:remote"]), "delete", "2");
}

#[test]
fn what_is_no_request_is_ignored_in_silence() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    for text in [
        "",
        " ",
        "x",
        "{",
        "[]",
        "[1]",
        "5",
        "null",
        "true",
        "\"subscribe\"",
        "{}",
        r#"{"stream":"user"}"#,
        r#"{"type":"subscribed","stream":"user"}"#,
        r#"{"type":"SUBSCRIBE","stream":"user"}"#,
        r#"{"type":null,"stream":"user"}"#,
        r#"{"type":["subscribe"],"stream":"user"}"#,
        r#"{"type":5,"stream":"user"}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"subscribe","stream":"user""#,
        r#"{"type":"subscribe","stream":"user"} x"#,
        // Never subscribed: nothing to end, nothing to say.
        r#"{"type":"unsubscribe","stream":"user"}"#,
        r#"{"type":"unsubscribe","stream":"hashtag","tag":"sea"}"#,
    ] {
        ws.send(text);
    }
    ws.send(r#"{"type":"subscribe","stream":"nonsense"}"#);
    ws.expect_error(400, "Unknown stream type");
    ws.subscribe(&world.redis, json!({"stream": "direct"}), &[format!("timeline:direct:{}", viewer.account)]);
    until_channels(&world, &viewer, &[&format!("timeline:direct:{}", viewer.account)]);
}

#[test]
fn blanks_escapes_order_and_repeats_in_a_message_are_jsons() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.send("\n{ \"x\": {\"type\":\"unsubscribe\"}, \"tag\" : \"caf\\u00e9\" , \"stream\":\"hash\\u0074ag\",\t\"type\":\"subscribe\"}");
    world.redis.until_subscribed(&["timeline:hashtag:cafe"]);
    delete(&world, "timeline:hashtag:cafe", "1");
    ws.expect_event(&json!(["hashtag", "café"]), "delete", "1");
    // Of a repeated key the last one counts, as in JavaScript.
    ws.send(r#"{"type":"x","type":"subscribe","stream":"user","stream":"public:local"}"#);
    world.redis.until_subscribed(&["timeline:public:local"]);
    ws.probe(&world.redis, &["timeline:public:local"]);
}

#[test]
fn requests_take_effect_in_the_order_they_were_sent() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let list = viewer.list();
    let channel = format!("timeline:list:{list}");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    // A list costs a database query, so a hasty server would end it before it began.
    for round in 0..25 {
        ws.send_json(&json!({"type": "subscribe", "stream": "list", "list": list.to_string()}));
        ws.send_json(&json!({"type": "unsubscribe", "stream": "list", "list": list.to_string()}));
        ws.send_json(&json!({"type": "subscribe", "stream": "nonsense"}));
        ws.expect_error(400, "Unknown stream type");
        until_channels(&world, &viewer, &[]);
        ws.send_json(&json!({"type": "unsubscribe", "stream": "list", "list": list.to_string()}));
        ws.subscribe(&world.redis, json!({"stream": "list", "list": list.to_string()}), &[&channel]);
        delete(&world, &channel, &round.to_string());
        ws.expect_event(&json!(["list", list.to_string()]), "delete", &round.to_string());
        ws.send_json(&json!({"type": "unsubscribe", "stream": "list", "list": list.to_string()}));
        until_channels(&world, &viewer, &[]);
    }
}

#[test]
fn public_and_its_local_only_twin_are_two_subscriptions() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let channel = "timeline:public";
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "public"}), &[channel]);
    ws.subscribe(&world.redis, json!({"stream": "public:allow_local_only"}), &[channel]);
    delete(&world, channel, "1");
    ws.expect_event(&json!(["public"]), "delete", "1");
    ws.expect_event(&json!(["public:allow_local_only"]), "delete", "1");
    ws.send_json(&json!({"type": "unsubscribe", "stream": "public"}));
    ws.until_answered();
    for n in ["2", "3"] {
        delete(&world, channel, n);
        ws.expect_event(&json!(["public:allow_local_only"]), "delete", n);
    }
}

#[test]
fn a_binary_message_closes_with_1003() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for bytes in [&b""[..], b"{}", &[0; 300]] {
        let mut raw = RawWs::open(&world.server, "/", &viewer.token);
        raw.send(0x82, bytes);
        let frame = raw.next();
        assert_eq!(frame.opcode, 8);
        assert_eq!(&frame.payload[..2], 1003u16.to_be_bytes());
        let reason = std::str::from_utf8(&frame.payload[2..]).unwrap();
        assert_eq!(reason, "The mastodon streaming server does not support binary messages");
        raw.send(0x88, &frame.payload);
        raw.connection.expect_closed();
    }
    world.until_empty();
}

#[test]
fn a_message_in_fragments_with_control_frames_between_is_one() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    let text = json!({"type": "subscribe", "stream": "hashtag", "tag": "Übersee"}).to_string();
    let bytes = text.as_bytes();
    for (n, byte) in bytes.iter().enumerate() {
        let opcode = if n == 0 { 1 } else { 0 };
        let fin = if n + 1 == bytes.len() { 0x80 } else { 0 };
        raw.send(fin | opcode, &[*byte]);
        if n % 10 == 5 {
            raw.send(0x89, format!("ping {n}").as_bytes());
            let pong = Frame { fin: true, opcode: 10, payload: format!("ping {n}").into_bytes() };
            assert_eq!(raw.next(), pong);
            raw.send(0x8a, b"unasked");
        }
    }
    world.redis.until_subscribed(&["timeline:hashtag:ubersee"]);
    // One byte at a time on the wire, too.
    for byte in RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#) {
        raw.connection.send(&[byte]);
    }
    assert_eq!(raw.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
}

#[test]
fn many_messages_in_one_segment_are_all_read() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    let one = RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#);
    raw.connection.send(&one.repeat(100));
    for _ in 0..100 {
        assert_eq!(raw.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
    }
}

#[test]
fn messages_sent_right_behind_the_handshake_count() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for _ in 0..20 {
        let mut connection = world.server.connect();
        let bearer = viewer.bearer();
        let mut bytes = upgrade("/", &[("Authorization", &bearer)]).into_bytes();
        bytes.extend(RawWs::encode(0x81, br#"{"type":"subscribe","stream":"nonsense"}"#));
        bytes.extend(RawWs::encode(0x89, b"early"));
        connection.send(&bytes);
        let head = connection.head();
        assert_eq!(head.status, 101);
        let mut raw = RawWs { head, connection };
        let mut seen = [raw.next(), raw.next()];
        seen.sort_by_key(|frame| frame.opcode);
        assert_eq!(seen[0].payload, br#"{"error":"Unknown stream type","status":400}"#);
        assert_eq!((seen[1].opcode, seen[1].payload.as_slice()), (10, b"early".as_slice()));
    }
}

#[test]
fn a_clients_close_is_answered_with_its_code() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    for payload in [&b""[..], &1000u16.to_be_bytes(), b"\x03\xe9going", b"\x0f\xa0own code"] {
        let mut raw = RawWs::open(&world.server, "/", &viewer.token);
        raw.send(0x88, payload);
        let frame = raw.next();
        assert_eq!(frame.opcode, 8);
        let code = payload.get(..2).unwrap_or_default();
        assert!(frame.payload.starts_with(code), "{payload:?} answered with {frame:?}");
        raw.connection.expect_closed();
    }
    world.until_empty();
}

#[test]
fn a_client_that_breaks_the_protocol_is_closed() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut unmasked = vec![0x81, 2];
    unmasked.extend(b"{}");
    let table: [(&str, Vec<u8>, u16); 9] = [
        ("an unmasked frame", unmasked, 1002),
        ("a reserved bit", RawWs::encode(0xc1, b"{}"), 1002),
        ("a reserved opcode", RawWs::encode(0x83, b"{}"), 1002),
        ("a reserved control opcode", RawWs::encode(0x8b, b""), 1002),
        ("a fragmented ping", RawWs::encode(0x09, b""), 1002),
        ("a ping of 126 bytes", RawWs::encode(0x89, &[0; 126]), 1002),
        ("a continuation of nothing", RawWs::encode(0x80, b"{}"), 1002),
        ("text that is no UTF-8", RawWs::encode(0x81, b"\"\xc3\x28\""), 1007),
        ("a close code that nobody may send", RawWs::encode(0x88, &1005u16.to_be_bytes()), 1002),
    ];
    for (what, bytes, code) in table {
        let mut raw = RawWs::open(&world.server, "/", &viewer.token);
        raw.connection.send(&bytes);
        let frame = raw.next();
        assert_eq!((frame.opcode, &frame.payload[..2]), (8, &code.to_be_bytes()[..]), "{what}");
        raw.connection.finish();
        raw.connection.until_closed();
    }
    world.until_empty();
}

#[test]
fn a_client_message_over_the_bound_closes_with_1009() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    let request = r#"{"type":"subscribe","stream":"nonsense"}"#;
    raw.send(0x81, format!("{}{request}", " ".repeat(65_536 - request.len())).as_bytes());
    assert_eq!(raw.next_text(), r#"{"error":"Unknown stream type","status":400}"#);
    let _ = raw.connection.try_send(&RawWs::encode(0x81, &[b' '; 65537]));
    let frame = raw.next();
    assert_eq!((frame.opcode, &frame.payload[..2]), (8, &1009u16.to_be_bytes()[..]));
}

#[test]
fn pings_come_in_time_and_without_a_pong_the_socket_is_cut() {
    let Some(world) = World::with(&[("WS_PING_SECONDS", "1")]) else { return };
    let viewer = world.viewer("read");
    let patience = if peer().is_some() { Duration::from_secs(70) } else { PATIENCE };
    let mut lively = RawWs::open(&world.server, "/", &viewer.token);
    let mut silent = RawWs::open(&world.server, "/?stream=user", &viewer.token);
    lively.connection.patience(patience);
    silent.connection.patience(patience);
    let ping = Frame { fin: true, opcode: 9, payload: Vec::new() };
    assert_eq!(silent.next(), ping);
    for _ in 0..2 {
        assert_eq!(lively.next(), ping);
        lively.send(0x8a, b"");
    }
    // No close frame: only the end.
    let rest = silent.connection.until_closed();
    assert!(rest.is_empty(), "{rest:?}");
    assert_eq!(lively.next(), ping);
    lively.send(0x8a, b"");
    until_channels(&world, &viewer, &[]);
}

#[test]
fn a_kill_is_an_empty_close_frame() {
    let Some(world) = World::start() else { return };
    for at in 0..2 {
        let viewer = world.viewer("read");
        let mut raw = RawWs::open(&world.server, "/", &viewer.token);
        world.redis.until_subscribed(&viewer.system_channels());
        world.publish(&viewer.system_channels()[at], r#"{"event":"kill"}"#);
        assert_eq!(raw.connection.take(2), [0x88, 0]);
        raw.send(0x88, b"");
        raw.connection.expect_closed();
    }
    world.until_empty();
}

#[test]
fn what_a_system_channel_carries_besides_disturbs_nobody() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    ws.subscribe(&world.redis, json!({"stream": "direct"}), &[format!("timeline:direct:{}", viewer.account)]);
    for channel in viewer.system_channels() {
        for message in [
            r#"{"event":"filters_changed"}"#,
            r#"{"event":"other","payload":"x"}"#,
            r#"{"event":"Kill"}"#,
            r#"{"kill":true}"#,
            r#"{"payload":"kill"}"#,
            "kill",
            "\"kill\"",
            "[]",
            "",
        ] {
            world.publish(&channel, message);
        }
    }
    delete(&world, &format!("timeline:direct:{}", viewer.account), "1");
    ws.expect_event(&json!(["direct"]), "delete", "1");
}

#[test]
fn subscriptions_on_one_socket_are_bounded() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("MAX_SUBSCRIPTIONS", "5")]) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    for n in 0..5 {
        let channel = format!("timeline:hashtag:t{n}");
        ws.subscribe(&world.redis, json!({"stream": "hashtag", "tag": format!("t{n}")}), &[channel]);
    }
    ws.send_json(&json!({"type": "subscribe", "stream": "hashtag", "tag": "t5"}));
    let answer = ws.next_json();
    assert!(answer["error"].is_string(), "{answer}");
    assert!(!world.redis.has_subscriber("timeline:hashtag:t5"));
    ws.send_json(&json!({"type": "unsubscribe", "stream": "hashtag", "tag": "t0"}));
    ws.subscribe(&world.redis, json!({"stream": "hashtag", "tag": "t5"}), &["timeline:hashtag:t5"]);
}
