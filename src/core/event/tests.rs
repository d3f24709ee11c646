//! Bytes for each kind of payload, and properties that read frames back with other parsers.

use super::*;
use crate::core::json::tests::{any_json, any_text};
use crate::core::stream::{Origin, Param, StreamKind, Tag};
use crate::limits::FRAME_VARIANTS_MAX;
use crate::proto::ring::Payload;
use proptest::prelude::*;
use serde_json::{Value, json};

const AT: Position = Position { epoch: 1, seq: 7, read_at: Duration::from_millis(3) };
const HOME: Channel = Channel::Account(1);
const PUBLIC: Channel = Channel::Public { origin: Origin::Any, media: false };
const TRANSPORTS: [Transport; 3] = [Transport::WebSocket, Transport::SseChunked, Transport::SsePlain];

fn gate() -> Arc<Gate> {
    Gate::new(1 << 20, 1 << 19, || {})
}

fn parse(channel: Channel, message: &str) -> Parsed {
    Event::parse(channel, AT, Bytes::copy_from_slice(message.as_bytes()), &gate())
}

fn event(channel: Channel, message: &str) -> Arc<Event> {
    match parse(channel, message) {
        Parsed::Event(event) => event,
        other => panic!("{message}: {other:?}"),
    }
}

fn stream(kind: StreamKind) -> Stream {
    Stream { kind, allow_local_only: false, param: Param::None, spelling: None }
}

fn hashtag(tag: &str, spelling: Option<&str>) -> Stream {
    Stream {
        kind: StreamKind::Hashtag,
        allow_local_only: false,
        param: Param::Tag(Tag::from_normalised(tag)),
        spelling: spelling.map(|spelling| Arc::new(json!(spelling).to_string().into())),
    }
}

fn bytes(frame: &Frame) -> Vec<u8> {
    [&frame.head[..], &frame.body[..], &frame.tail[..]].concat()
}

/// A WebSocket frame's text, by another implementation.
fn ws_text(frame: &Frame) -> String {
    use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};
    let config = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
    let mut socket =
        WebSocket::from_raw_socket(std::io::Cursor::new(bytes(frame)), Role::Client, Some(config));
    let Message::Text(text) = socket.read().unwrap() else { panic!("not a text message") };
    assert_eq!(socket.get_ref().position() as usize, frame.len(), "one message and nothing behind it");
    text.to_string()
}

/// The name and data of the one event in an SSE frame.
fn sse_event(transport: Transport, frame: &Frame) -> (String, String) {
    let mut bytes = bytes(frame);
    if transport == Transport::SseChunked {
        let line = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        assert_eq!(&bytes[line + 2 + size..], b"\r\n");
        bytes = bytes[line + 2..line + 2 + size].to_vec();
    }
    let text = String::from_utf8(bytes).unwrap();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let lines = text.strip_suffix("\n\n").expect("ends with a blank line").split('\n').collect::<Vec<_>>();
    let name = lines[0].strip_prefix("event: ").unwrap();
    let data = lines[1..].iter().map(|line| line.strip_prefix("data: ").unwrap()).collect::<Vec<_>>();
    (name.to_owned(), data.join("\n"))
}

fn ws(channel: Channel, kind: StreamKind, message: &str) -> String {
    ws_text(&event(channel, message).frame(Transport::WebSocket, &stream(kind), 0))
}

fn sse(channel: Channel, message: &str) -> String {
    let event = event(channel, message);
    let plain = event.frame(Transport::SsePlain, &stream(StreamKind::User), 0);
    let plain = String::from_utf8(bytes(&plain)).unwrap();
    let chunked = event.frame(Transport::SseChunked, &stream(StreamKind::User), 0);
    assert_eq!(String::from_utf8(bytes(&chunked)).unwrap(), format!("{:x}\r\n{plain}\r\n", plain.len()));
    plain
}

#[test]
fn every_kind_of_payload_goes_out_as_from_node() {
    // payload, on a WebSocket, on SSE
    let cases = [
        (r#""109""#, r#""109""#, "data: 109"),
        (r#""a\"b\\c\u00e9\ud800\/""#, r#""a\"b\\c\u00e9\ud800\/""#, "data: a\"b\\cé\u{FFFD}/"),
        (r#""a\nb\r\nc\rd\n""#, r#""a\nb\r\nc\rd\n""#, "data: a\ndata: b\ndata: c\ndata: d\ndata: "),
        (
            r#"{"id":"1","x":[1,"\"\\"]}"#,
            r#""{\"id\":\"1\",\"x\":[1,\"\\\"\\\\\"]}""#,
            r#"data: {"id":"1","x":[1,"\"\\"]}"#,
        ),
        ("{ \"a b\" :\r\n\t1 }", r#""{\"a b\":1}""#, r#"data: {"a b":1}"#),
        ("{}", r#""{}""#, "data: {}"),
        ("[]", r#""[]""#, "data: []"),
        ("[1, [2 ]]", r#""[1,[2]]""#, "data: [1,[2]]"),
        ("12345678901234567890", "12345678901234567890", "data: 12345678901234567890"),
        ("1.50", "1.50", "data: 1.50"),
        ("true", "true", "data: true"),
        ("\"\u{2028}é\"", "\"\u{2028}é\"", "data: \u{2028}é"),
    ];
    for (payload, on_ws, on_sse) in cases {
        let message = format!(r#"{{"event":"x.y","payload":{payload},"queued_at":5}}"#);
        let expected = format!(r#"{{"stream":["user"],"event":"x.y","payload":{on_ws}}}"#);
        assert_eq!(ws(HOME, StreamKind::User, &message), expected, "{payload}");
        assert_eq!(sse(HOME, &message), format!("event: x.y\n{on_sse}\n\n"), "{payload}");
    }
}

#[test]
fn a_frame_is_these_bytes() {
    let event = event(HOME, r#"{"event":"delete","payload":"109"}"#);
    let frame = event.frame(Transport::WebSocket, &stream(StreamKind::User), 0);
    assert_eq!(bytes(&frame), b"\x81\x34{\"stream\":[\"user\"],\"event\":\"delete\",\"payload\":\"109\"}");
    let frame = event.frame(Transport::SseChunked, &stream(StreamKind::User), 0);
    assert_eq!(bytes(&frame), b"19\r\nevent: delete\ndata: 109\n\n\r\n");
    let frame = event.frame(Transport::SsePlain, &stream(StreamKind::User), 0);
    assert_eq!(bytes(&frame), b"event: delete\ndata: 109\n\n");
    assert!(frame.body.is_empty() && frame.tail.is_empty(), "the usual frame is one piece");
}

#[test]
fn lengths_are_encoded_in_the_shortest_form() {
    let overhead = ws(HOME, StreamKind::User, r#"{"event":"x","payload":"1"}"#).len() - 1;
    for (len, header) in [(125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
        let message = format!(r#"{{"event":"x","payload":"{}"}}"#, "a".repeat(len - overhead));
        let frame = event(HOME, &message).frame(Transport::WebSocket, &stream(StreamKind::User), 0);
        assert_eq!(frame.len(), len + header);
        assert_eq!(ws_text(&frame).len(), len);
    }
}

#[test]
fn what_node_ignores_is_ignored() {
    let ignored = |channel: Channel, message: &str| match parse(channel, message) {
        Parsed::Ignored(why) => why,
        other => panic!("{message}: {other:?}"),
    };
    for message in [
        "",
        "x",
        "{",
        "{\"event\":\"a\",\"payload\":\"b\"",
        "{\"event\":\"a\",\"payload\":\"b\"}x",
        "\u{feff}{}",
    ] {
        assert_eq!(ignored(HOME, message), Ignored::NotJson, "{message}");
    }
    for message in ["null", "1", "\"update\"", "[]", "[{\"event\":\"a\",\"payload\":\"b\"}]", "{}"] {
        assert_eq!(ignored(HOME, message), Ignored::Incomplete, "{message}");
    }
    for falsy in ["null", "false", "0", "-0.0", "\"\""] {
        assert_eq!(
            ignored(HOME, &format!(r#"{{"event":"a","payload":{falsy}}}"#)),
            Ignored::Incomplete,
            "{falsy}"
        );
        assert_eq!(
            ignored(HOME, &format!(r#"{{"event":{falsy},"payload":"b"}}"#)),
            Ignored::Incomplete,
            "{falsy}"
        );
    }
    assert_eq!(ignored(HOME, r#"{"event":"filters_changed"}"#), Ignored::Incomplete);
    assert_eq!(ignored(HOME, r#"{"event":"a","payload":"b","payload":null}"#), Ignored::Incomplete);
    assert_eq!(ignored(Channel::System(1), r#"{"payload":"kill"}"#), Ignored::Incomplete);
    assert_eq!(
        ignored(Channel::System(1), r#"{"event":"update","payload":{}}"#),
        Ignored::UnknownSystemEvent
    );
    assert_eq!(ignored(Channel::System(1), r#"{"event":["kill"]}"#), Ignored::UnknownSystemEvent);
}

#[test]
fn system_channels_carry_signals() {
    for channel in [Channel::System(1), Channel::AccessToken(1)] {
        assert!(matches!(parse(channel.clone(), r#"{"event":"kill"}"#), Parsed::Kill));
        assert!(matches!(parse(channel.clone(), r#"{"event":"k\u0069ll","payload":null}"#), Parsed::Kill));
        assert!(matches!(parse(channel, r#"{"event":"filters_changed"}"#), Parsed::FiltersChanged));
    }
    // Elsewhere such a name is a message like any other.
    assert_eq!(sse(HOME, r#"{"event":"kill","payload":"1"}"#), "event: kill\ndata: 1\n\n");
}

#[test]
fn the_last_of_equal_members_counts() {
    let message = r#"{"event":"a","payload":"1","\u0065vent":"b","payload":"2"}"#;
    assert_eq!(sse(HOME, message), "event: b\ndata: 2\n\n");
}

#[test]
fn names_cannot_break_out_of_their_line() {
    let message = r#"{"event":"a\r\ndata: x\n\nb\u0000\u0085","payload":"1"}"#;
    assert_eq!(sse(HOME, message), "event: a  data: x  b\u{0}\u{85}\ndata: 1\n\n");
    let back: Value = serde_json::from_str(&ws(HOME, StreamKind::User, message)).unwrap();
    assert_eq!(back["event"], "a\r\ndata: x\n\nb\u{0}\u{85}");
    // Node lets any true value pass as a name.
    assert_eq!(sse(HOME, r#"{"event":5,"payload":"1"}"#), "event: 5\ndata: 1\n\n");
    assert_eq!(sse(HOME, "{\"event\":[1,\n2],\"payload\":\"1\"}"), "event: [1,2]\ndata: 1\n\n");
    assert!(
        ws(HOME, StreamKind::User, "{\"event\":{\"a\": \"\\n\"},\"payload\":\"1\"}")
            .contains(r#""event":{"a":"\n"}"#)
    );
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    let message = Bytes::from_static(b"{\"event\":\"a\xff\",\"payload\":{\"b\":\"\xe4\xbd\"}}");
    let Parsed::Event(event) = Event::parse(HOME, AT, message, &gate()) else { panic!() };
    let expected = r#"{"stream":["user"],"event":"a�","payload":"{\"b\":\"�\"}"}"#;
    assert_eq!(ws_text(&event.frame(Transport::WebSocket, &stream(StreamKind::User), 0)), expected);
}

#[test]
fn any_depth_passes() {
    for depth in [300, 100_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let message = format!(r#"{{"x":{deep},"event":"update","payload":{{"account":{deep},"y":{deep}}}}}"#);
        assert!(sse(HOME, &message).contains(&deep));
        let event = event(PUBLIC, &message);
        assert_eq!(event.status(), Some(Err("its account is not an object")));
        let frame = event.frame(Transport::WebSocket, &stream(StreamKind::Public), 0);
        assert_eq!(ws_text(&frame).matches('[').count(), 2 * depth + 2);
        assert!(matches!(parse(HOME, &message[..message.len() / 2]), Parsed::Ignored(Ignored::NotJson)));
    }
}

fn status_with(change: impl FnOnce(&mut Value)) -> String {
    let mut status = json!({
        "id": "5",
        "language": "de",
        "account": {"id": "12", "username": "ada", "acct": "ada@example.org"},
        "mentions": [{"id": "13", "acct": "bob"}, {"id": 14}, {"id": "-99", "acct": "social.example"}],
        "content": "<p>\"hi\"</p>",
    });
    change(&mut status);
    json!({"event": "update", "payload": status}).to_string()
}

#[test]
fn a_status_on_a_filtered_channel_is_read() {
    let event_of = |change: fn(&mut Value)| event(PUBLIC, &status_with(change));
    let fields = |event: &Event| event.status().unwrap().unwrap().clone();
    let plain = event_of(|_| {});
    assert!(plain.needs_audience());
    let expected = StatusFields {
        author: 12,
        domain: Some("example.org".into()),
        local: false,
        mentions: Box::new([13, 14, -99]),
        language: Some("de".into()),
        has_filtered: false,
        local_only: false,
    };
    assert_eq!(fields(&plain), expected);

    let local = fields(&event_of(|status| {
        status["account"]["acct"] = "ada".into();
        status["language"] = Value::Null;
        status["local_only"] = true.into();
        status["filtered"] = json!([]);
        status["mentions"] = json!([]);
    }));
    let expected = StatusFields {
        domain: None,
        local: true,
        mentions: Box::new([]),
        language: None,
        has_filtered: true,
        local_only: true,
        ..expected
    };
    assert_eq!(local, expected);
    assert_eq!(fields(&event_of(|status| status["account"]["acct"] = "ada@".into())).domain, None);
    assert_eq!(
        fields(&event_of(|status| status["account"]["acct"] = "a@b@c".into())).domain.as_deref(),
        Some("b")
    );

    // Elsewhere, and in other events, a status is opaque.
    assert!(!event(HOME, &status_with(|_| {})).needs_audience());
    assert!(!event(PUBLIC, r#"{"event":"delete","payload":"5"}"#).needs_audience());
    assert!(event(PUBLIC, &status_with(|_| {}).replace("update", "status.update")).needs_audience());
    assert!(event(PUBLIC, &status_with(|_| {}).replace("update", "upd\\u0061te")).needs_audience());
}

#[test]
fn a_malformed_status_says_what_is_wrong() {
    let wrong = |change: fn(&mut Value)| event(PUBLIC, &status_with(change)).status().unwrap().unwrap_err();
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 15] = [
        ("its payload is not an object", |status| *status = "text".into()),
        ("its payload is not an object", |status| *status = json!([1])),
        ("it has no account", |status| *status = json!({"mentions": []})),
        ("its account is not an object", |status| status["account"] = Value::Null),
        ("its account is not an object", |status| status["account"] = "ada".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "x".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "-1".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "".into()),
        ("its account's id is not a number", |status| status["account"]["id"] = 1.5.into()),
        ("its account's id is not a number", |status| status["account"]["id"] = "9223372036854775808".into()),
        ("its account's username is not text", |status| status["account"]["username"] = 5.into()),
        ("its account's acct is not text", |status| status["account"]["acct"] = Value::Null),
        ("its mentions are not an array", |status| status["mentions"] = Value::Null),
        ("its mentions are not an array", |status| status["mentions"] = json!({"id": "1"})),
        ("one of its mentions has no id that is a number", |status| {
            status["mentions"] = json!([{"id": "1"}, null])
        }),
    ];
    for (text, change) in cases {
        assert_eq!(wrong(change), text);
    }
    let event = event(PUBLIC, &status_with(|status| status["mentions"] = Value::Null));
    assert_eq!(event.verdict(&stream(StreamKind::Public), 1), Verdict::Withheld(Withheld::Malformed));
}

#[test]
fn verdicts_join_audience_and_stream() {
    let public = stream(StreamKind::Public);
    let event_of = |change: fn(&mut Value)| event(PUBLIC, &status_with(change));
    let plain = event_of(|_| {});
    assert_eq!(plain.verdict(&public, 1), Verdict::Withheld(Withheld::NotAsked));
    assert_eq!(plain.verdict(&public, 0), Verdict::Deliver(UNCHANGED));
    let before = plain.held_bytes();
    let verdicts =
        vec![(1, Verdict::Deliver(0)), (2, Verdict::Withheld(Withheld::Language)), (3, Verdict::Deliver(1))];
    let outcomes = vec![Bytes::from_static(b"[]"), Bytes::from_static(b"[{\"x\":1}]")];
    assert!(plain.set_audience(Audience { verdicts, outcomes, ..Audience::default() }));
    assert!(plain.held_bytes() >= before + 3 * 16);
    assert!(!plain.set_audience(Audience::default()));
    assert_eq!(plain.verdict(&public, 1), Verdict::Deliver(0));
    assert_eq!(plain.verdict(&public, 2), Verdict::Withheld(Withheld::Language));
    assert_eq!(plain.verdict(&public, 3), Verdict::Deliver(1));
    assert_eq!(plain.verdict(&public, 4), Verdict::Withheld(Withheld::NotAsked));

    let local = event_of(|status| status["local_only"] = true.into());
    local.set_audience(Audience { verdicts: vec![(1, Verdict::Deliver(0))], ..Audience::default() });
    let allowing = Stream { allow_local_only: true, ..public.clone() };
    for account in [0, 1] {
        assert_eq!(local.verdict(&public, account), Verdict::Withheld(Withheld::LocalOnly));
        assert!(matches!(local.verdict(&allowing, account), Verdict::Deliver(_)));
    }
    assert!(matches!(local.verdict(&hashtag("a", None), 1), Verdict::Deliver(0)));
    let remote = stream(StreamKind::PublicRemote);
    assert_eq!(local.verdict(&remote, 1), Verdict::Withheld(Withheld::LocalOnly));

    let deletion = event(PUBLIC, r#"{"event":"delete","payload":"5"}"#);
    assert_eq!(deletion.verdict(&remote, 9), Verdict::Deliver(0));
    let nobody = event_of(|_| {});
    nobody.set_audience(Audience { nobody: Some(Withheld::AudienceTimeout), ..Audience::default() });
    assert_eq!(nobody.verdict(&public, 1), Verdict::Withheld(Withheld::AudienceTimeout));
}

#[test]
fn outcomes_are_the_last_member() {
    let event = event(PUBLIC, r#"{"event":"update","payload":{"a": "\"" }}"#);
    let outcomes = vec![Bytes::from_static(b"[]"), Bytes::from_static(br#"[{"k":["\"x\\"]}]"#)];
    event.set_audience(Audience { outcomes, ..Audience::default() });
    let public = stream(StreamKind::Public);
    let payload = |outcome| {
        let frame = event.frame(Transport::WebSocket, &public, outcome);
        let message: Value = serde_json::from_str(&ws_text(&frame)).unwrap();
        let on_ws = message["payload"].as_str().unwrap().to_owned();
        for transport in [Transport::SseChunked, Transport::SsePlain] {
            let (_, on_sse) = sse_event(transport, &event.frame(transport, &public, outcome));
            assert_eq!(on_sse, on_ws);
        }
        on_ws
    };
    assert_eq!(payload(0), r#"{"a":"\"","filtered":[]}"#);
    assert_eq!(payload(1), r#"{"a":"\"","filtered":[{"k":["\"x\\"]}]}"#);
    assert_eq!(payload(UNCHANGED), r#"{"a":"\""}"#);
    assert_eq!(payload(77), payload(0), "an outcome that nobody set matches nothing");
}

#[test]
fn outcomes_are_added_where_filters_apply_and_nowhere_else() {
    let text = |channel: Channel, message: &str| ws(channel, StreamKind::Public, message);
    assert!(
        text(PUBLIC, r#"{"event":"update","payload":{ }}"#).ends_with(r#""payload":"{\"filtered\":[]}"}"#)
    );
    assert!(text(PUBLIC, r#"{"event":"update","payload":[1]}"#).ends_with(r#""payload":"[1]"}"#));
    assert!(text(PUBLIC, r#"{"event":"update","payload":"x"}"#).ends_with(r#""payload":"x"}"#));
    assert!(text(PUBLIC, r#"{"event":"delete","payload":{}}"#).ends_with(r#""payload":"{}"}"#));
    assert!(
        text(PUBLIC, r#"{"event":"update","payload":{"filtered":null}}"#)
            .ends_with(r#""payload":"{\"filtered\":null}"}"#)
    );
    let home = event(HOME, r#"{"event":"update","payload":{"a":1}}"#).frame(
        Transport::WebSocket,
        &stream(StreamKind::User),
        3,
    );
    assert!(ws_text(&home).ends_with(r#""payload":"{\"a\":1}"}"#));
}

#[test]
fn both_usual_names_are_whole_and_other_spellings_share_the_body() {
    let status = status_with(|_| {});
    let event_on = |channel| event(channel, &status);
    let usual = [
        (Channel::Notifications(1), StreamKind::User),
        (Channel::Notifications(1), StreamKind::UserNotification),
        (PUBLIC, StreamKind::Public),
        (PUBLIC, StreamKind::PublicAllowLocalOnly),
        (Channel::Public { origin: Origin::Any, media: true }, StreamKind::PublicMedia),
        (Channel::Public { origin: Origin::Remote, media: true }, StreamKind::PublicRemoteMedia),
        (Channel::Direct(1), StreamKind::Direct),
        (HOME, StreamKind::User),
    ];
    for (channel, kind) in usual {
        for outcome in [0, UNCHANGED] {
            let frame = event_on(channel.clone()).frame(Transport::WebSocket, &stream(kind), outcome);
            assert!(frame.body.is_empty() && frame.tail.is_empty(), "{kind:?}");
            assert!(
                ws_text(&frame).starts_with(&format!(r#"{{"stream":["{}"],"event":"update""#, kind.name()))
            );
        }
    }

    let event = event_on(Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false });
    let usual = event.frame(Transport::WebSocket, &hashtag("rust", None), 0);
    let spelled = event.frame(Transport::WebSocket, &hashtag("rust", Some("Rüst\"")), 0);
    assert_eq!(ws_text(&spelled), ws_text(&usual).replace(r#""rust""#, r#""Rüst\"""#));
    let shared = usual.head.as_ptr_range();
    assert!(shared.contains(&spelled.body.as_ptr()), "the body is a part of the usual frame");
    let again = event.frame(Transport::WebSocket, &hashtag("rust", Some("Rüst\"")), 0);
    assert_eq!(again.head.as_ptr(), spelled.head.as_ptr(), "a kept variant is not rendered again");
}

#[test]
fn variants_are_bounded_and_the_rest_is_rendered_alike() {
    let gate = gate();
    let channel = Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false };
    let message = Bytes::from(status_with(|status| status["content"] = "x".repeat(100_000).into()));
    let Parsed::Event(event) = Event::parse(channel, AT, message, &gate) else { panic!() };
    let frame = |n: usize| event.frame(Transport::WebSocket, &hashtag("rust", Some(&format!("Rust{n}"))), 0);
    let first: Vec<_> = (0..5000).map(|n| bytes(&frame(n))).collect();
    assert!(event.held_bytes() < 250_000 + FRAME_VARIANTS_MAX * 500, "{}", event.held_bytes());
    let held = event.held_bytes();
    for (n, rendered) in first.iter().enumerate().step_by(7) {
        assert_eq!(&bytes(&frame(n)), rendered);
    }
    assert_eq!(ws_text(&frame(4999)), ws_text(&frame(3)).replace("Rust3", "Rust4999"));
    assert_eq!(event.held_bytes(), held);
    assert_eq!(gate.held_bytes(), held);
    drop(event);
    assert_eq!(gate.held_bytes(), 0);
}

#[test]
fn ignored_messages_hold_nothing() {
    let gate = gate();
    for message in ["x", "{}", r#"{"event":"a"}"#] {
        assert!(matches!(Event::parse(HOME, AT, Bytes::from(message), &gate), Parsed::Ignored(_)));
    }
    assert_eq!(gate.held_bytes(), 0);
}

#[test]
fn threads_that_ask_at_once_get_the_same_frame() {
    let event = event(PUBLIC, &status_with(|_| {}));
    let frames: Vec<_> = std::thread::scope(|scope| {
        let ask = || event.frame(Transport::WebSocket, &stream(StreamKind::Public), 0).head.as_ptr() as usize;
        (0..4)
            .map(|_| scope.spawn(ask))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(frames.iter().all(|frame| *frame == frames[0]));
}

#[test]
fn logs_show_no_payload() {
    let shown = format!("{:?}", event(HOME, r#"{"event":"update","payload":"secret"}"#));
    assert!(shown.contains("update") && !shown.contains("secret"), "{shown}");
}

proptest! {
    #[test]
    fn frames_read_back_to_what_was_published(name in any_text(), payload in any_json(), filtered: bool, pretty: bool) {
        prop_assume!(!name.is_empty());
        let message = json!({"event": name, "payload": payload});
        let message = if pretty { serde_json::to_string_pretty(&message) } else { serde_json::to_string(&message) };
        let channel = if filtered { PUBLIC } else { HOME };
        let Parsed::Event(event) = parse(channel, &message.unwrap()) else {
            let falsy = matches!(&payload, Value::Null | Value::Bool(false)) || payload == 0 || payload == "";
            prop_assert!(falsy);
            return Ok(());
        };
        let (kind, stream_name) = if filtered { (StreamKind::Public, "public") } else { (StreamKind::User, "user") };
        let frame = event.frame(Transport::WebSocket, &stream(kind), 0);
        let text = ws_text(&frame);
        let back: Value = serde_json::from_str(&text).unwrap();
        let on_wire = if payload.is_object() || payload.is_array() { payload.to_string().into() } else { payload.clone() };
        prop_assert_eq!(&back, &json!({"stream": [stream_name], "event": name, "payload": on_wire}));

        let shown = if let Value::String(text) = &payload {
            text.replace("\r\n", "\n").replace('\r', "\n")
        } else {
            payload.to_string()
        };
        for transport in [Transport::SseChunked, Transport::SsePlain] {
            let (sse_name, data) = sse_event(transport, &event.frame(transport, &stream(kind), 0));
            prop_assert_eq!(sse_name, name.replace(['\r', '\n'], " "));
            prop_assert_eq!(&data, &shown);
        }
    }

    #[test]
    fn whatever_is_published_frames_are_whole(message in prop::collection::vec(any::<u8>(), 0..60), name in "[\"\\\\\\[{a1 ]{0,8}", payload in "[\"\\\\\\[\\]{}:a1 ]{0,10}") {
        let gate = gate();
        let built = format!(r#"{{"event":"update{name}","payload":{payload}}}"#).into_bytes();
        for message in [message, built] {
            for channel in [HOME, PUBLIC, Channel::System(1)] {
                if let Parsed::Event(event) = Event::parse(channel, AT, Bytes::from(message.clone()), &gate) {
                    for outcome in [0, 1, UNCHANGED] {
                        let frame = event.frame(Transport::WebSocket, &stream(StreamKind::User), outcome);
                        prop_assert!(json::is_valid(&ws_text(&frame)));
                        sse_event(Transport::SseChunked, &event.frame(Transport::SseChunked, &stream(StreamKind::User), outcome));
                    }
                }
            }
        }
        prop_assert_eq!(gate.held_bytes(), 0);
    }

    #[test]
    fn every_outcome_and_order_of_asking_gives_the_same_bytes(
        keys in prop::collection::vec((0usize..3, 0usize..4, 0u16..4), 1..40),
        members in prop::collection::vec((any_text(), any_json()), 0..4),
    ) {
        let payload: Value = Value::Object(members.into_iter().filter(|(name, _)| name != "filtered").collect());
        let message = json!({"event": "update", "payload": payload}).to_string();
        let outcomes: Vec<_> = (0..3).map(|n| Bytes::from(json!(vec!["\"\\"; n]).to_string())).collect();
        let channel = Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false };
        let spellings = [None, Some("Rust"), Some("R\u{fc}st\n"), Some("ＲＵＳＴ")];
        let fresh = || {
            let event = event(channel.clone(), &message);
            event.set_audience(Audience { outcomes: outcomes.clone(), ..Audience::default() });
            event
        };
        let shared = fresh();
        for (transport, spelling, outcome) in keys {
            let outcome = if outcome == 3 { UNCHANGED } else { outcome };
            let stream = hashtag("rust", spellings[spelling]);
            let frame = shared.frame(TRANSPORTS[transport], &stream, outcome);
            prop_assert_eq!(bytes(&frame), bytes(&fresh().frame(TRANSPORTS[transport], &stream, outcome)));

            let data = match TRANSPORTS[transport] {
                Transport::WebSocket => {
                    let back: Value = serde_json::from_str(&ws_text(&frame)).unwrap();
                    prop_assert_eq!(&back["stream"], &json!(["hashtag", spellings[spelling].unwrap_or("rust")]));
                    back["payload"].as_str().unwrap().to_owned()
                }
                transport => sse_event(transport, &frame).1,
            };
            let mut expected = payload.clone();
            if outcome != UNCHANGED {
                expected["filtered"] = serde_json::from_slice(&outcomes[usize::from(outcome)]).unwrap();
            }
            prop_assert_eq!(serde_json::from_str::<Value>(&data).unwrap(), expected);
        }
    }
}

#[test]
fn copies_in_home_timelines_are_one_content_while_it_is_under_way() {
    let gate = gate();
    let mut copies = Copies::default();
    let mut parse = |channel: Channel, message: &str| {
        let parsed = copies.parse(channel, AT, Payload::Slice(message.as_bytes()), &gate);
        let Parsed::Event(event) = parsed else { panic!("{parsed:?}") };
        event
    };
    let frame = |event: &Event, kind| event.frame(Transport::WebSocket, &stream(kind), 0);
    let message = status_with(|status| status["content"] = "x".repeat(10_000).into());

    let first = parse(Channel::Account(1), &message);
    let rendered = frame(&first, StreamKind::User);
    let held = gate.held_bytes();
    let second = parse(Channel::Account(2), &message);
    assert_eq!(second.channel(), &Channel::Account(2));
    assert_eq!(frame(&second, StreamKind::User).head.as_ptr(), rendered.head.as_ptr());
    assert!(gate.held_bytes() < held + 1000, "{held} bytes, then {}", gate.held_bytes());

    // A byte that differs, another kind of channel: a content of its own.
    let other = parse(Channel::Account(3), &message.replacen('x', "y", 1));
    assert_eq!(ws_text(&frame(&other, StreamKind::User)), ws_text(&rendered).replacen('x', "y", 1));
    let list = parse(Channel::Notifications(1), &message);
    let as_notification = frame(&list, StreamKind::UserNotification);
    assert!(ws_text(&as_notification).contains("user:notification"));

    // Nothing is held by remembering it.
    drop((first, second, other, list));
    assert_eq!(gate.held_bytes(), 0);
    let again = parse(Channel::Account(1), &message);
    assert_eq!(bytes(&frame(&again, StreamKind::User)), bytes(&rendered));
}
