//! An event's bytes on each transport.
//!
//! A frame is head, body and tail. The *body* is the payload as the transport carries it and the same for all
//! who get the event on that transport; the *head* holds the transport's own framing and, on a WebSocket,
//! the stream's name; the *tail* closes what was opened. Where custom filters were applied, the payload's last member,
//! `filtered`, stands between body and tail: what they found is shared and not rendered here.
//!
//! | payload | WebSocket | Server-Sent Events |
//! |---|---|---|
//! | string | the JSON string as it came | its text, one `data:` line per line |
//! | object, array | a JSON string that holds the compact JSON | the compact JSON |
//! | number, `true` | as it came | as it came |
//!
//! The transports' own framing comes from [`crate::proto`].

use std::borrow::Cow;

use bytes::Bytes;

use super::{Event, Transport, UNCHANGED};
use crate::core::json::{self, Kind};
use crate::core::stream::{Param, Stream};
use crate::proto::sse::{self, ChunkHead};
use crate::proto::ws;

/// A frame in one piece, and where its body stands.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    pub(super) outcome: u16,
    body_start: usize,
    body_len: usize,
}

impl Whole {
    /// The part that variants share.
    pub(super) fn body(&self) -> Bytes {
        self.bytes.slice(self.body_start..self.body_start + self.body_len)
    }
}

/// Renders a frame in one piece.
pub(super) fn whole(event: &Event, transport: Transport, stream: &Stream, outcome: u16) -> Whole {
    let mut out = Vec::with_capacity(whole_len_max(event, transport, stream));
    out.resize(HEADER_BYTES_MAX, 0);
    write_head(event, transport, stream, &mut out);
    let body_start = out.len();
    write_body(event, transport, &mut out);
    let body_len = out.len() - body_start;
    write_tail(event, transport, outcome, &mut out);
    let unused = write_framing(transport, 0, &mut out);
    // What is held is what is charged: no spare capacity.
    let bytes = Bytes::from(out.into_boxed_slice()).slice(unused..);
    Whole { bytes, outcome, body_start: body_start - unused, body_len }
}

/// Renders what stands before and after `apart` bytes that are shared, in one allocation.
pub(super) fn head_and_tail(
    event: &Event,
    transport: Transport,
    stream: &Stream,
    outcome: u16,
    apart: usize,
) -> (Bytes, Bytes) {
    let mut out = vec![0; HEADER_BYTES_MAX];
    write_head(event, transport, stream, &mut out);
    let head_end = out.len();
    write_tail(event, transport, outcome, &mut out);
    let unused = write_framing(transport, apart, &mut out);
    let bytes = Bytes::from(out.into_boxed_slice());
    (bytes.slice(unused..head_end), bytes.slice(head_end..))
}

/// Room for the longest framing in front of a frame: a chunk's first line.
const HEADER_BYTES_MAX: usize = ChunkHead::BYTES_MAX;

/// Writes the transport's framing into the end of the room that `out` begins with, and behind the content;
/// `apart` bytes of content stand elsewhere. Returns how much of the room was not needed.
fn write_framing(transport: Transport, apart: usize, out: &mut Vec<u8>) -> usize {
    let content_len = out.len() - HEADER_BYTES_MAX + apart;
    let mut put = |header: &[u8]| {
        let unused = HEADER_BYTES_MAX - header.len();
        for (place, byte) in out.iter_mut().skip(unused).zip(header) {
            *place = *byte;
        }
        unused
    };
    match transport {
        Transport::WebSocket => put(&ws::encode::text_header(content_len)),
        Transport::SseChunked => {
            let unused = put(&sse::chunk_head(content_len));
            out.extend_from_slice(sse::CHUNK_END);
            unused
        }
        Transport::SsePlain => put(&[]),
    }
}

fn write_head(event: &Event, transport: Transport, stream: &Stream, out: &mut Vec<u8>) {
    match transport {
        Transport::WebSocket => {
            out.extend_from_slice(b"{\"stream\":");
            stream.write_json(out);
            out.extend_from_slice(b",\"event\":");
            json::write_compact(event.name(), out);
            out.extend_from_slice(b",\"payload\":");
        }
        Transport::SseChunked | Transport::SsePlain => {
            sse::event_start(out, &name_text(event.name()));
        }
    }
}

fn write_body(event: &Event, transport: Transport, out: &mut Vec<u8>) {
    let payload = event.payload();
    // The tail closes an object that is extended.
    let open = if event.is_extensible() { payload.strip_suffix(b"}").unwrap_or(payload) } else { payload };
    match (transport, json::kind(payload)) {
        (Transport::WebSocket, Kind::Object | Kind::Array) => {
            out.push(b'"');
            json::write_compact_escaped(open, out);
        }
        (Transport::WebSocket, _) => out.extend_from_slice(payload),
        (Transport::SseChunked | Transport::SsePlain, Kind::Text) => {
            let text = json::text(as_str(payload)).unwrap_or_default();
            sse::event_data(out, text.as_bytes());
        }
        (Transport::SseChunked | Transport::SsePlain, _) => json::write_compact(open, out),
    }
}

/// The payload's last member where filters found something, as that transport carries it: its name, and its value.
pub(super) fn filtered(event: &Event, transport: Transport, outcome: u16) -> (&'static [u8], Bytes) {
    let is_ws = transport == Transport::WebSocket;
    match event.outcome(outcome).filter(|_| event.is_extensible()) {
        Some(found) if is_ws => (filtered_lead(event, is_ws), found.escaped()),
        Some(found) => (filtered_lead(event, is_ws), found.json().clone()),
        None => (b"", Bytes::new()),
    }
}

fn filtered_lead(event: &Event, is_ws: bool) -> &'static [u8] {
    match (is_ws, is_empty_object(event.payload())) {
        (true, false) => b",\\\"filtered\\\":",
        (true, true) => b"\\\"filtered\\\":",
        (false, false) => b",\"filtered\":",
        (false, true) => b"\"filtered\":",
    }
}

fn write_tail(event: &Event, transport: Transport, outcome: u16, out: &mut Vec<u8>) {
    let is_ws = transport == Transport::WebSocket;
    let payload = event.payload();
    if event.is_extensible() {
        if outcome != UNCHANGED && event.outcome(outcome).is_none() {
            out.extend_from_slice(filtered_lead(event, is_ws));
            out.extend_from_slice(b"[]");
        }
        out.push(b'}');
    }
    if !is_ws {
        out.extend_from_slice(sse::EVENT_END);
    } else if matches!(json::kind(payload), Kind::Object | Kind::Array) {
        out.extend_from_slice(b"\"}");
    } else {
        out.push(b'}');
    }
}

/// An event's name as SSE carries it: its text, or the JSON of what is no string.
fn name_text(name: &[u8]) -> Cow<'_, [u8]> {
    match json::text(as_str(name)) {
        Some(Cow::Borrowed(text)) => Cow::Borrowed(text.as_bytes()),
        Some(Cow::Owned(text)) => Cow::Owned(text.into_bytes()),
        None => {
            let mut compact = Vec::with_capacity(name.len());
            json::write_compact(name, &mut compact);
            Cow::Owned(compact)
        }
    }
}

fn is_empty_object(payload: &[u8]) -> bool {
    let inner = payload.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
    inner.is_some_and(|inner| inner.trim_ascii().is_empty())
}

/// A token as text, which it is: an event is checked when it is parsed. Takes time with its length.
fn as_str(token: &[u8]) -> &str {
    std::str::from_utf8(token).unwrap_or("null")
}

/// The length of a frame in one piece, or somewhat more.
pub(super) fn whole_len_max(event: &Event, transport: Transport, stream: &Stream) -> usize {
    let payload = event.payload();
    let escapes = match transport {
        Transport::WebSocket => payload.iter().filter(|byte| matches!(byte, b'"' | b'\\')).count(),
        // Each line of a text is a line of its own.
        Transport::SseChunked | Transport::SsePlain => match json::kind(payload) {
            Kind::Text => {
                let ends_line = |pair: &[u8]| matches!(pair, [b'\\', b'n' | b'r' | b'u']);
                payload.windows(2).filter(|pair| ends_line(pair)).count() * sse::DATA_BYTES
            }
            _ => 0,
        },
    };
    let name = match (&stream.spelling, &stream.param) {
        (Some(spelling), _) => spelling.len(),
        (None, Param::Tag(tag)) => tag.as_str().len() * 6,
        (None, Param::List(_) | Param::None) => 0,
    };
    HEADER_BYTES_MAX + 160 + name + event.name().len() * 2 + payload.len() + escapes
}
