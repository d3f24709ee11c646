//! Bytes for each kind of payload, and properties that read frames back with other parsers.

mod audience;
mod bound;
mod sharing;

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

/// Outcomes with that JSON, under a budget that has room for them.
fn outcomes(json: &[&str]) -> Vec<Arc<Outcome>> {
    let budget = OutcomeBudget::new(&Gate::new(1 << 24, 1 << 23, || {}));
    json.iter().map(|json| budget.outcome(json.as_bytes()).unwrap()).collect()
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
    frame.parts().concat()
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
fn ignored_messages_hold_nothing() {
    let gate = gate();
    for message in ["x", "{}", r#"{"event":"a"}"#] {
        assert!(matches!(Event::parse(HOME, AT, Bytes::from(message), &gate), Parsed::Ignored(_)));
    }
    assert_eq!(gate.held_bytes(), 0);
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
}
