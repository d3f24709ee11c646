//! The steps of a message's way that are timed and counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::core::event::{Audience, Event, Parsed, Position, Verdict, Withheld};
use tidegate::core::gate::Gate;
use tidegate::core::log::Log;
use tidegate::core::stream::{Channel, Origin, Param, Stream, StreamKind};
use tidegate::proto::ring::Ring;

use crate::posts;

/// Sizes of bulks.
pub const SIZES: [usize; 3] = [64, 3072, 65_536];

/// How much a network packet brings, or a read of all there is.
pub const PACKET: usize = 1448;
pub const WHOLE: usize = usize::MAX;

/// A channel whose statuses are filtered, and one whose are not.
pub const PUBLIC: Channel = Channel::Public { origin: Origin::Local, media: false };
pub const HOME: Channel = Channel::Account(109_501_234_567_890_001);

/// Published messages as Redis pushes them, half a MiB of them; and how many.
pub fn pushed(body_bytes: usize) -> (Vec<u8>, usize) {
    let body = "x".repeat(body_bytes);
    let one = format!("*3\r\n$7\r\nmessage\r\n$21\r\ntimeline:public:local\r\n${body_bytes}\r\n{body}\r\n");
    let count = (512 << 10) / one.len();
    (one.repeat(count).into_bytes(), count)
}

/// Reads everything through the ring, `piece` bytes at most at a time; returns how many messages that were.
pub fn through_ring(stream: &[u8], piece: usize) -> usize {
    let mut ring = Ring::new(8 << 20);
    let (mut rest, mut messages) = (stream, 0);
    while !rest.is_empty() {
        let space = ring.read_space();
        let part = rest.len().min(space.len()).min(piece);
        space[..part].copy_from_slice(&rest[..part]);
        ring.filled(part);
        rest = &rest[part..];
        while ring.next().unwrap().is_some() {
            messages += 1;
        }
    }
    messages
}

/// The same by redis-protocol's decoder. What is there whole it reads in place; of pieces it begins again with each.
pub fn through_redis_protocol(stream: &[u8], piece: usize) -> usize {
    use redis_protocol::resp2::decode::decode_range;
    let mut messages = 0;
    if piece >= stream.len() {
        let mut rest = stream;
        while let Ok(Some((_, used))) = decode_range(rest) {
            rest = &rest[used..];
            messages += 1;
        }
        return messages;
    }
    let mut buffer = Vec::new();
    for part in stream.chunks(piece) {
        buffer.extend_from_slice(part);
        let mut done = 0;
        while let Ok(Some((_, used))) = decode_range(&buffer[done..]) {
            done += used;
            messages += 1;
        }
        buffer.drain(..done);
    }
    messages
}

/// A status of about 3 KiB as published.
pub fn message() -> Bytes {
    let mut status = posts::status(109_501_234_567_890_001, 1);
    status["content"] = format!("<p>{}</p>", "the tide comes in ".repeat(110)).into();
    posts::message("update", &status).into()
}

pub fn parsed(channel: Channel, message: &Bytes, gate: &Arc<Gate>) -> Arc<Event> {
    let at = Position { epoch: 1, seq: 1, read_at: Duration::ZERO };
    match Event::parse(channel, at, message.clone(), gate) {
        Parsed::Event(event) => event,
        _ => unreachable!("a status"),
    }
}

pub fn gate() -> Arc<Gate> {
    Gate::new(1 << 30, 1 << 29, || {})
}

/// A status of the filtered channel.
pub fn status() -> Arc<Event> {
    parsed(PUBLIC, &message(), &gate())
}

pub fn stream() -> Stream {
    Stream { kind: StreamKind::PublicLocal, allow_local_only: false, param: Param::None, spelling: None }
}

/// A status that 1 of 20 of so many viewers must not see.
pub fn judged(viewers: u64) -> Arc<Event> {
    let event = status();
    let withheld = Verdict::Withheld(Withheld::Relationship);
    event.set_audience(Audience {
        asked: (1..=viewers).collect(),
        verdicts: (1..=viewers).step_by(20).map(|account| (account, withheld)).collect(),
        ..Audience::default()
    });
    event
}

/// How many of the viewers get it.
pub fn reached(event: &Event, stream: &Stream, viewers: u64) -> usize {
    (1..=viewers).filter(|account| matches!(event.verdict(stream, *account), Verdict::Deliver(_))).count()
}

/// A log with so many entries, each owed to so many clients.
pub fn log_of(entries: usize, clients: u32) -> Log {
    let (event, mut log) = (status(), Log::default());
    (0..entries).for_each(|_| log.append(Arc::clone(&event), clients));
    log
}
