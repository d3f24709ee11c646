//! How a client names a stream: by a query string, judged by a decoder that goes byte by byte; by a message,
//! judged by serde_json's tree. What is meant has a channel whose name reads back, and comes back as written.
//!
//! Input: a byte that chooses between the two, then the query or the message.

use serde_json::Value;
use serde_json::value::RawValue;
use tidegate::core::hashtag;
use tidegate::core::session::{ClientMessage, Given, StreamRequest};
use tidegate::core::stream::{Channel, Param, StreamKind};

const PARAM_BYTES_MAX: usize = 64;

pub fn run(data: &[u8]) {
    let Some((choice, text)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    if choice % 2 == 0 {
        let request = StreamRequest::from_query(&text);
        assert_eq!(request, read_query(&text), "{text:?}");
        resolve(&request);
        return;
    }
    let message = ClientMessage::parse(&text);
    let judged = judge_message(&text);
    match &message {
        ClientMessage::Ignored => assert!(judged.is_none_or(|judged| judged.is_none()), "{text:?}"),
        ClientMessage::Subscribe(request) | ClientMessage::Unsubscribe(request) => {
            if let Some(judged) = judged {
                let (is_subscribe, expected) = judged.expect("serde_json takes it for one too");
                assert_eq!(is_subscribe, matches!(message, ClientMessage::Subscribe(_)));
                assert!(same(request, &expected), "{request:?} instead of {expected:?}");
            }
            resolve(request);
        }
    }
}

/// What a request means, if anything, and how it comes back.
fn resolve(request: &StreamRequest) {
    let stream = match request.resolve(PARAM_BYTES_MAX, false) {
        Ok(stream) => stream,
        Err(error) => {
            assert!(matches!(error.status(), 400 | 401) && !error.text().is_empty());
            return;
        }
    };
    assert_eq!(Some(stream.kind.name()), request.stream.as_deref());
    assert_eq!(StreamKind::from_name(stream.kind.name()), Some(stream.kind));
    let given = match &stream.param {
        Param::None => None,
        Param::Tag(_) => Some(&request.tag),
        Param::List(_) => Some(&request.list),
    };
    let mut json = Vec::new();
    stream.write_json(&mut json);
    // Taken apart and no more: a number may be too large for any type, and still be JSON.
    let echoed: Vec<&RawValue> = serde_json::from_slice(&json).expect("a stream's name is JSON");
    let text = |at: usize| serde_json::from_str::<String>(echoed[at].get()).expect("a text");
    assert_eq!(text(0), stream.kind.name());
    assert_eq!(echoed.len(), 1 + usize::from(given.is_some()));
    match (given, &stream.param) {
        (Some(Given::Text(given)), _) => assert_eq!(text(1), **given),
        (Some(Given::Number(given)), _) => assert!(same_number(echoed[1].get(), given), "{given}"),
        (Some(other), _) => panic!("{other:?} was taken"),
        (None, _) => {}
    }
    if let (Some(Given::Text(text) | Given::Number(text)), Param::Tag(tag)) = (given, &stream.param) {
        assert!(text.len() <= PARAM_BYTES_MAX);
        assert_eq!(hashtag::normalise(text), *tag);
    }
    for channel in stream.channels(7, true) {
        let mut name = Vec::new();
        channel.write_name(&mut name);
        assert_eq!(Channel::parse(&name).as_ref(), Some(&channel), "{}", name.escape_ascii());
    }
}

/// A query as Node's `querystring` reads it.
fn read_query(query: &str) -> StreamRequest {
    let pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .take(1000)
        .map(|pair| match pair.find('=') {
            Some(at) => (decode(&pair[..at]), decode(&pair[at + 1..])),
            None => (decode(pair), String::new()),
        })
        .collect();
    let values = |name: &str| -> Vec<&str> {
        pairs.iter().filter(|pair| pair.0 == name).map(|pair| pair.1.as_str()).collect()
    };
    let given = |name: &str| match values(name).as_slice() {
        [] | [""] => Given::Missing,
        [text] => Given::Text((*text).to_owned()),
        _ => Given::Wrong,
    };
    StreamRequest {
        stream: match values("stream").as_slice() {
            [] | [""] => None,
            [first, ..] => Some((*first).to_owned()),
        },
        tag: given("tag"),
        list: given("list"),
        allow_local_only: match values("allow_local_only").as_slice() {
            [] => false,
            [text] => is_true(text),
            _ => true,
        },
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| (*byte as char).to_digit(16));
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            _ => out.push(*byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_true(text: &str) -> bool {
    !["", "0", "f", "F", "false", "FALSE", "off", "OFF"].contains(&text)
}

/// None where serde_json does not read what JavaScript does; `Some(None)` for what is to be ignored.
fn judge_message(text: &str) -> Option<Option<(bool, StreamRequest)>> {
    let members = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(members)) => members,
        Ok(_) => return Some(None),
        Err(error) => {
            let error = error.to_string();
            let silent = ["recursion limit", "surrogate", "hex escape", "number out of range"];
            return if silent.iter().any(|known| error.contains(known)) { None } else { Some(None) };
        }
    };
    let is_subscribe = match members.get("type").and_then(Value::as_str) {
        Some("subscribe") => true,
        Some("unsubscribe") => false,
        _ => return Some(None),
    };
    let given = |name: &str| match members.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => Given::Missing,
        Some(Value::String(text)) if text.is_empty() => Given::Missing,
        Some(Value::Number(number)) if number.as_f64() == Some(0.0) => Given::Missing,
        Some(Value::String(text)) => Given::Text(text.clone()),
        Some(Value::Number(number)) => Given::Number(number.to_string()),
        Some(_) => Given::Wrong,
    };
    let stream = match members.get("stream") {
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        Some(name) => name.as_str(),
        None => None,
    };
    let request = StreamRequest {
        stream: stream.map(str::to_owned),
        tag: given("tag"),
        list: given("list"),
        allow_local_only: match members.get("allow_local_only") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(yes)) => *yes,
            Some(Value::String(text)) => is_true(text),
            Some(Value::Number(number)) => number.as_f64() != Some(0.0),
            Some(Value::Array(_) | Value::Object(_)) => true,
        },
    };
    Some(Some((is_subscribe, request)))
}

/// Numbers may be spelled in another way.
fn same(one: &StreamRequest, other: &StreamRequest) -> bool {
    let given = |one: &Given, other: &Given| match (one, other) {
        (Given::Number(one), Given::Number(other)) => same_number(one, other),
        _ => one == other,
    };
    given(&one.tag, &other.tag)
        && given(&one.list, &other.list)
        && (&one.stream, one.allow_local_only) == (&other.stream, other.allow_local_only)
}

/// Whether two texts are one number, but for the last place: serde_json reads fractions of many digits in a way that
/// may miss the nearest number by that much.
fn same_number(one: &str, other: &str) -> bool {
    match (one.parse::<f64>(), other.parse::<f64>()) {
        (Ok(one), Ok(other)) => one == other || (one - other).abs() <= f64::EPSILON * one.abs(),
        _ => false,
    }
}
