//! The steps of a message's way, each alone: `cargo bench --bench micro`, or with a name, `-- framing`.
//!
//! Beside the framer stand redis-protocol's decoder and a plain copy of the same bytes. For counts of instructions,
//! which are the same on a busy machine: `valgrind --tool=callgrind --collect-atstart=no --toggle-collect='*frame_3k*'`
//! on the bench's binary.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/support/posts.rs"]
#[allow(dead_code)]
mod posts;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use tidegate::core::event::{Audience, Event, Parsed, Position, Transport, UNCHANGED, Verdict};
use tidegate::core::gate::Gate;
use tidegate::core::log::Log;
use tidegate::core::stream::{Channel, Origin, Param, Stream, StreamKind};
use tidegate::proto::ring::Ring;

fn main() {
    divan::main();
}

const SIZES: [usize; 3] = [64, 3072, 65_536];
const CHANNEL: Channel = Channel::Public { origin: Origin::Local, media: false };

/// Published messages as Redis pushes them, half a MiB of them.
fn pushed(body_bytes: usize) -> Vec<u8> {
    let body = "x".repeat(body_bytes);
    let one = format!("*3\r\n$7\r\nmessage\r\n$21\r\ntimeline:public:local\r\n${body_bytes}\r\n{body}\r\n");
    one.repeat((512 << 10) / one.len()).into_bytes()
}

/// Reads everything through the ring, `piece` bytes at most at a time; returns how many messages that were.
fn through_ring(stream: &[u8], piece: usize) -> usize {
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

mod framing {
    use super::*;

    #[divan::bench(args = SIZES)]
    fn ring_whole(bencher: Bencher, body: usize) {
        let stream = pushed(body);
        bencher.counter(BytesCount::new(stream.len())).bench(|| through_ring(black_box(&stream), usize::MAX));
    }

    #[divan::bench(args = SIZES)]
    fn ring_split_at_1448(bencher: Bencher, body: usize) {
        let stream = pushed(body);
        bencher.counter(BytesCount::new(stream.len())).bench(|| through_ring(black_box(&stream), 1448));
    }

    #[divan::bench(args = SIZES)]
    fn redis_protocol(bencher: Bencher, body: usize) {
        let stream = pushed(body);
        bencher.counter(BytesCount::new(stream.len())).bench(|| {
            let (mut rest, mut messages) = (black_box(stream.as_slice()), 0);
            while let Ok(Some((_, used))) = redis_protocol::resp2::decode::decode_range(rest) {
                rest = &rest[used..];
                messages += 1;
            }
            messages
        });
    }

    #[divan::bench(args = SIZES)]
    fn plain_copy(bencher: Bencher, body: usize) {
        let stream = pushed(body);
        let mut into = vec![0; stream.len()];
        bencher.counter(BytesCount::new(stream.len())).bench_local(|| {
            into.copy_from_slice(black_box(&stream));
            black_box(&mut into);
        });
    }
}

/// A status of about 3 KiB as published.
fn message() -> Bytes {
    let mut status = posts::status(109_501_234_567_890_001, 1);
    status["content"] = format!("<p>{}</p>", "the tide comes in ".repeat(110)).into();
    posts::message("update", &status).into()
}

fn parsed(message: &Bytes, gate: &Arc<Gate>) -> Arc<Event> {
    let at = Position { epoch: 1, seq: 1, read_at: Duration::ZERO };
    match Event::parse(CHANNEL, at, message.clone(), gate) {
        Parsed::Event(event) => event,
        _ => unreachable!("a status"),
    }
}

fn gate() -> Arc<Gate> {
    Gate::new(1 << 30, 1 << 29, || {})
}

fn stream() -> Stream {
    Stream { kind: StreamKind::PublicLocal, allow_local_only: false, param: Param::None, spelling: None }
}

#[divan::bench]
fn parse_status(bencher: Bencher) {
    let (message, gate) = (message(), gate());
    bencher.counter(BytesCount::new(message.len())).bench(|| parsed(black_box(&message), &gate));
}

#[divan::bench(args = [Transport::WebSocket, Transport::SseChunked])]
fn render_status(bencher: Bencher, transport: Transport) {
    let (message, gate, stream) = (message(), gate(), stream());
    bencher
        .counter(BytesCount::new(message.len()))
        .with_inputs(|| parsed(&message, &gate))
        .bench_values(|event| event.frame(transport, &stream, UNCHANGED));
}

/// A frame that was rendered before: what each further recipient costs.
#[divan::bench]
fn frame_again(bencher: Bencher) {
    let (message, gate, stream) = (message(), gate(), stream());
    let event = parsed(&message, &gate);
    drop(event.frame(Transport::WebSocket, &stream, UNCHANGED));
    bencher.bench(|| event.frame(Transport::WebSocket, black_box(&stream), UNCHANGED));
}

/// Who of so many viewers sees a status that 1 of 20 must not.
#[divan::bench(args = [100, 1000, 10_000])]
fn audience_of_all(bencher: Bencher, viewers: u64) {
    let (message, gate, stream) = (message(), gate(), stream());
    let event = parsed(&message, &gate);
    let withheld = Verdict::Withheld(tidegate::core::event::Withheld::Relationship);
    event.set_audience(Audience {
        asked: (1..=viewers).collect(),
        verdicts: (1..=viewers).step_by(20).map(|account| (account, withheld)).collect(),
        outcomes: vec![Bytes::from_static(b"[]")],
        ..Audience::default()
    });
    bencher.counter(ItemsCount::new(viewers)).bench(|| {
        (1..=viewers)
            .filter(|account| matches!(event.verdict(&stream, *account), Verdict::Deliver(_)))
            .count()
    });
}

/// A message appended, found and settled for so many clients.
#[divan::bench(args = [1, 100, 10_000])]
fn log_of_clients(bencher: Bencher, clients: u32) {
    let gate = gate();
    let event = parsed(&message(), &gate);
    let mut log = Log::default();
    bencher.counter(ItemsCount::new(clients)).bench_local(|| {
        let place = log.next_place();
        log.append(Arc::clone(&event), clients);
        for _ in 0..clients {
            let queue = log.queue(&CHANNEL).unwrap();
            black_box(log.entries_from(queue, place).next());
            log.settle(queue, place);
            log.sweep(queue);
        }
    });
}
