//! The steps of a message's way, each alone.
//!
//!     cargo bench --bench micro                      wall times of all, or of those named: -- framing
//!     cargo bench --bench micro -- instructions      instructions of each, counted by callgrind
//!
//! Beside the framer stand redis-protocol's decoder and a plain copy of the same bytes. Instructions are the same on a
//! busy machine, but for a few that a hash table's random seed moves.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../../tests/support/posts.rs"]
#[allow(dead_code)]
mod posts;

#[path = "../shared/mod.rs"]
mod shared;

mod instructions;
mod steps;

use std::sync::Arc;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use steps::{PACKET, PUBLIC, SIZES, WHOLE, gate, judged, log_of, message, parsed, pushed, status, stream};
use tidegate::core::event::{Transport, UNCHANGED};
use tidegate::core::log::Log;

fn main() {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["instructions"] => instructions::table(),
        ["instructions-of", step, calls] => instructions::run(step, calls.parse().unwrap()),
        _ => divan::main(),
    }
}

mod framing {
    use super::*;
    use steps::{through_redis_protocol, through_ring};

    fn read(bencher: Bencher, body: usize, by: impl Fn(&[u8]) -> usize + Sync) {
        let (bytes, _) = pushed(body);
        bencher.counter(BytesCount::new(bytes.len())).bench(|| by(black_box(&bytes)));
    }

    #[divan::bench(args = SIZES)]
    fn ring_whole(bencher: Bencher, body: usize) {
        read(bencher, body, |bytes| through_ring(bytes, WHOLE));
    }

    #[divan::bench(args = SIZES)]
    fn ring_split_at_1448(bencher: Bencher, body: usize) {
        read(bencher, body, |bytes| through_ring(bytes, PACKET));
    }

    #[divan::bench(args = SIZES)]
    fn redis_protocol_whole(bencher: Bencher, body: usize) {
        read(bencher, body, |bytes| through_redis_protocol(bytes, WHOLE));
    }

    #[divan::bench(args = SIZES)]
    fn redis_protocol_split_at_1448(bencher: Bencher, body: usize) {
        read(bencher, body, |bytes| through_redis_protocol(bytes, PACKET));
    }

    #[divan::bench(args = SIZES)]
    fn plain_copy(bencher: Bencher, body: usize) {
        let (bytes, _) = pushed(body);
        let mut into = vec![0; bytes.len()];
        bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
            into.copy_from_slice(black_box(&bytes));
            black_box(&mut into);
        });
    }
}

#[divan::bench]
fn parse_status(bencher: Bencher) {
    let (message, gate) = (message(), gate());
    bencher.counter(BytesCount::new(message.len())).bench(|| parsed(PUBLIC, black_box(&message), &gate));
}

#[divan::bench(args = [Transport::WebSocket, Transport::SseChunked])]
fn render_status(bencher: Bencher, transport: Transport) {
    let (message, gate, stream) = (message(), gate(), stream());
    bencher
        .counter(BytesCount::new(message.len()))
        .with_inputs(|| parsed(PUBLIC, &message, &gate))
        .bench_values(|event| event.frame(transport, &stream, UNCHANGED));
}

/// A frame that was rendered before: what each further recipient costs.
#[divan::bench]
fn frame_again(bencher: Bencher) {
    let (event, stream) = (status(), stream());
    drop(event.frame(Transport::WebSocket, &stream, UNCHANGED));
    bencher.bench(|| event.frame(Transport::WebSocket, black_box(&stream), UNCHANGED));
}

/// Who of so many viewers sees a status that 1 of 20 must not.
#[divan::bench(args = [100, 1000, 10_000])]
fn audience_of_all(bencher: Bencher, viewers: u64) {
    let (event, stream) = (judged(viewers), stream());
    bencher.counter(ItemsCount::new(viewers)).bench(|| steps::reached(black_box(&event), &stream, viewers));
}

/// A message appended, found and settled for so many clients.
#[divan::bench(args = [1, 100, 10_000])]
fn log_of_clients(bencher: Bencher, clients: u32) {
    let (event, mut log): (_, Log) = (status(), log_of(0, clients));
    bencher.counter(ItemsCount::new(clients)).bench_local(|| {
        let place = log.next_place();
        log.append(Arc::clone(&event), clients);
        for _ in 0..clients {
            let queue = log.queue(&PUBLIC).unwrap();
            black_box(log.entries_from(queue, place).next());
            log.settle(queue, place);
            log.sweep(queue);
        }
    });
}
