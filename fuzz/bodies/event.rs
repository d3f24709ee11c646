//! Arbitrary bytes as a published message, through to every rendered frame.
//!
//! What is a message, and what the frames carry, is judged by serde_json's tree; frames are read back by
//! tungstenite and by the event stream rules of the HTML standard.
//!
//! Input: a byte that chooses the channel, one for the filters' outcome, one for the spelling of a tag, then
//! the message.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tidegate::core::event::{
    Audience, Event, Frame, Outcome, OutcomeBudget, Parsed, Position, StatusFields, Transport, UNCHANGED,
};
use tidegate::core::filter::SearchText;
use tidegate::core::gate::Gate;
use tidegate::core::stream::{Channel, Origin, Param, Stream, StreamKind, Tag};

use super::frames;

const AT: Position = Position { epoch: 1, seq: 1, read_at: Duration::ZERO };

pub fn run(data: &[u8]) {
    let Some((&[channel, outcome, spelling], message)) = data.split_first_chunk::<3>() else { return };
    let (channel, streams) = channel_and_streams(channel, spelling);
    let gate = Gate::new(1 << 20, 1 << 19, || {});
    let text = String::from_utf8_lossy(message);
    let judged = judge(&text);
    match Event::parse(channel.clone(), AT, Bytes::copy_from_slice(message), &gate) {
        Parsed::Event(event) => {
            let judged = match judged {
                Judged::Message(name, payload) if !channel.is_system() => Some((name, payload)),
                Judged::Silent => None,
                other => panic!("relayed, though it is {other:?}: {text:?}"),
            };
            check(event, &channel, &streams, u16::from(outcome % 5), judged.as_ref(), message);
        }
        signal @ (Parsed::Kill | Parsed::FiltersChanged) => {
            assert!(channel.is_system());
            let name = if matches!(signal, Parsed::Kill) { "kill" } else { "filters_changed" };
            match judged {
                Judged::Message(found, _) | Judged::NoPayload(found) => assert_eq!(found, name),
                Judged::Silent => {}
                other => panic!("a signal, though it is {other:?}"),
            }
        }
        Parsed::Ignored(_) => match judged {
            Judged::Message(name, _) => {
                assert!(
                    channel.is_system() && name != "kill" && name != "filters_changed",
                    "ignored: {text:?}"
                );
            }
            Judged::NoPayload(name) => {
                assert!(!channel.is_system() || (name != "kill" && name != "filters_changed"));
            }
            Judged::Nothing | Judged::Silent => {}
        },
    }
    assert_eq!(gate.held_bytes(), 0, "an event that is gone is still charged");
}

/// What serde_json makes of a message.
#[derive(Debug)]
enum Judged {
    Message(Value, Value),
    /// An event that only a system channel takes.
    NoPayload(Value),
    Nothing,
    /// It does not read what Tidegate and JavaScript read: deep nesting, lone surrogates, huge numbers.
    Silent,
}

fn judge(text: &str) -> Judged {
    let truthy = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Array(_) | Value::Object(_) => true,
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(mut members)) => {
            match (members.remove("event").filter(truthy), members.remove("payload").filter(truthy)) {
                (Some(event), Some(payload)) => Judged::Message(event, payload),
                (Some(event), None) => Judged::NoPayload(event),
                _ => Judged::Nothing,
            }
        }
        Ok(_) => Judged::Nothing,
        Err(error) => {
            let error = error.to_string();
            let is_silent = ["recursion limit", "surrogate", "hex escape", "number out of range"]
                .iter()
                .any(|known| error.contains(known));
            if is_silent { Judged::Silent } else { Judged::Nothing }
        }
    }
}

fn check(
    event: Arc<Event>,
    channel: &Channel,
    streams: &[Stream],
    outcome: u16,
    judged: Option<&(Value, Value)>,
    message: &[u8],
) {
    let gate = Gate::new(1 << 20, 1 << 19, || {});
    let budget = OutcomeBudget::new(&gate);
    let outcomes: Vec<Arc<Outcome>> =
        [&br#"[{"filter":{"id":"1","title":"a \"b\" \\"},"keyword_matches":["\n"]}]"#[..], b"[1, 2]"]
            .iter()
            .filter_map(|json| budget.outcome(json))
            .collect();
    let outcome = if outcome == 4 { UNCHANGED } else { outcome };
    let audience = || Audience { outcomes: outcomes.clone(), ..Audience::default() };
    event.set_audience(audience());
    check_status(&event, channel, judged);
    let _ = SearchText::of_status(event.payload());

    let is_extended = judged.is_none_or(|(name, payload)| {
        channel.is_filtered()
            && (name == "update" || name == "status.update")
            && payload.as_object().is_some_and(|payload| !payload.contains_key("filtered"))
    });
    let expected = judged.map(|(_, payload)| {
        let mut payload = payload.clone();
        if is_extended && outcome != UNCHANGED {
            let found = usize::from(outcome).checked_sub(1).and_then(|index| outcomes.get(index));
            let json = found.map_or(&b"[]"[..], |found| found.json());
            payload["filtered"] = serde_json::from_slice(json).expect("an outcome is JSON");
        }
        payload
    });
    for stream in streams {
        for transport in [Transport::WebSocket, Transport::SseChunked, Transport::SsePlain] {
            let frame = all(&event.frame(transport, stream, outcome));
            assert!(!frame.is_empty());
            match Event::parse(channel.clone(), AT, Bytes::copy_from_slice(message), &gate) {
                Parsed::Event(again) => {
                    again.set_audience(audience());
                    let other_way = all(&again.frame(transport, stream, outcome));
                    assert!(frame == other_way, "a frame depends on what was rendered before");
                }
                other => panic!("{other:?} the second time"),
            }
            match transport {
                Transport::WebSocket => read_websocket(&frame, stream, judged, expected.as_ref()),
                Transport::SseChunked => read_sse(frames::one_chunk(&frame), judged, expected.as_ref()),
                Transport::SsePlain => read_sse(&frame, judged, expected.as_ref()),
            }
        }
    }
    assert!(event.held_bytes() < 4096 + 16 * message.len(), "{} bytes are held", event.held_bytes());
}

fn all(frame: &Frame) -> Vec<u8> {
    frame.parts().concat()
}

fn read_websocket(frame: &[u8], stream: &Stream, judged: Option<&(Value, Value)>, expected: Option<&Value>) {
    let text = frames::one_text(frame);
    assert!(tidegate::core::json::is_valid(&text), "not JSON: {text}");
    let (Some((name, _)), Some(payload)) = (judged, expected) else { return };
    let message: Value = serde_json::from_str(&text).expect("JSON that its parts were");
    let mut names = vec![json!(stream.kind.name())];
    match (&stream.spelling, &stream.param) {
        (Some(spelling), _) => names.push(serde_json::from_str(spelling).expect("a spelling is JSON")),
        (None, Param::Tag(tag)) => names.push(json!(tag.as_str())),
        (None, Param::List(list)) => names.push(json!(list.to_string())),
        (None, Param::None) => {}
    }
    assert_eq!(message["stream"], Value::from(names));
    assert_eq!(message["event"], *name);
    let found = &message["payload"];
    if payload.is_object() || payload.is_array() {
        let inner = found.as_str().expect("an object goes out as text");
        assert_eq!(serde_json::from_str::<Value>(inner).expect("JSON in JSON"), *payload);
    } else {
        assert_eq!(found, payload);
    }
    assert_eq!(message.as_object().map(|members| members.len()), Some(3));
}

fn read_sse(stream: &[u8], judged: Option<&(Value, Value)>, expected: Option<&Value>) {
    let events = frames::events(stream);
    let [(name, data)] = events.as_slice() else { panic!("{} events", events.len()) };
    let (Some((event, _)), Some(payload)) = (judged, expected) else { return };
    match event {
        Value::String(event) => assert_eq!(*name, event.replace(['\r', '\n'], " ")),
        event => assert_eq!(serde_json::from_str::<Value>(name).expect("a name's JSON"), *event),
    }
    match payload {
        Value::String(payload) => {
            assert_eq!(*data, payload.replace("\r\n", "\n").replace('\r', "\n"));
        }
        payload => assert_eq!(serde_json::from_str::<Value>(data).expect("a payload's JSON"), *payload),
    }
}

/// What decides about a status is what stands in it.
fn check_status(event: &Event, channel: &Channel, judged: Option<&(Value, Value)>) {
    let Some((name, payload)) = judged else { return };
    let is_status = name == "update" || name == "status.update";
    assert_eq!(event.needs_audience(), channel.is_filtered() && is_status);
    let Some(Ok(fields)) = event.status() else { return };
    let StatusFields { author, domain, local, mentions, language, has_filtered, local_only } = fields;
    let account = &payload["account"];
    assert_eq!(id(&account["id"]), i64::try_from(*author).ok());
    let (username, acct) = (account["username"].as_str().unwrap(), account["acct"].as_str().unwrap());
    assert_eq!(*local, username == acct);
    assert_eq!(domain.as_deref().unwrap_or_default(), acct.split('@').nth(1).unwrap_or_default());
    let found: Vec<_> =
        payload["mentions"].as_array().unwrap().iter().map(|mention| id(&mention["id"])).collect();
    assert_eq!(found, mentions.iter().copied().map(Some).collect::<Vec<_>>());
    assert_eq!(payload["language"].as_str(), language.as_deref());
    assert_eq!(payload.get("filtered").is_some(), *has_filtered);
    if !local_only {
        assert!(!payload["local_only"].is_array() && payload["local_only"] != true);
    }
}

fn id(value: &Value) -> Option<i64> {
    match value {
        Value::String(digits) => digits.parse().ok(),
        number => number.as_i64(),
    }
}

/// A channel, and streams that it carries, each in a usual and an unusual spelling.
fn channel_and_streams(choice: u8, spelling: u8) -> (Channel, Vec<Stream>) {
    let stream = |kind, param, spelling: Option<&str>| Stream {
        kind,
        allow_local_only: false,
        param,
        spelling: spelling.map(|json| Arc::new(json.into())),
    };
    let plain = |kind| stream(kind, Param::None, None);
    let tag = Tag::from_normalised("rust");
    let spellings = [None, Some("\"Rust\""), Some("12"), Some("\"\\\"\u{fc}\\n\\u0000\"")];
    let spelling = spellings[usize::from(spelling) % 4];
    match choice % 8 {
        0 => (Channel::Account(7), vec![plain(StreamKind::User)]),
        1 => (Channel::Notifications(7), vec![plain(StreamKind::User), plain(StreamKind::UserNotification)]),
        2 => (
            Channel::List(12),
            vec![
                stream(StreamKind::List, Param::List(12), None),
                stream(StreamKind::List, Param::List(12), spelling),
            ],
        ),
        3 | 4 => (
            Channel::Public { origin: Origin::Any, media: false },
            vec![plain(StreamKind::Public), plain(StreamKind::PublicAllowLocalOnly)],
        ),
        5 | 6 => (
            Channel::Hashtag { tag: tag.clone(), local: false },
            vec![
                stream(StreamKind::Hashtag, Param::Tag(tag.clone()), None),
                stream(StreamKind::Hashtag, Param::Tag(tag), spelling),
            ],
        ),
        _ => (Channel::System(7), Vec::new()),
    }
}
