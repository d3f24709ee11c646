//! Clients that go on sending after the server has said its close: they cost it no more than a few reads, their
//! connections end all the same, and nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use support::http::Connection;
use support::machine::PATIENCE;
use support::numbers::{gapless_until, numbered, numbered_long};
use support::ws::{RawWs, upgrade};
use support::{Sse, Viewer, World, Ws, ours_alone};

/// What the bucket of a connection holds.
const BURST: usize = 20;

/// A read of the server's takes so much at most.
const READ_BYTES: usize = 16 << 10;

/// What the kernel keeps on both sides of a connection, at most.
const KERNEL_BYTES: usize = 512 << 10;

/// How long a connection stays after its close was begun: 1 s for the reason to be taken, 2 s for the peer's end.
const LASTS_AT_MOST: Duration = Duration::from_secs(3);

/// How much a flood sends at once, and how often.
#[derive(Clone, Copy)]
struct Pace {
    bytes: usize,
    every: Duration,
}

/// All the socket takes.
const FAST: Pace = Pace { bytes: 64 << 10, every: Duration::ZERO };

/// Too little for any rate to be passed.
const SLOW: Pace = Pace { bytes: 1, every: Duration::from_millis(250) };

/// How a connection comes to its close.
type Closing = fn(&World, &Viewer) -> Connection;

const CLOSINGS: [(&str, Closing); 6] = [
    ("too large a message", too_large_a_message),
    ("pings without end", pings_without_end),
    ("a close of its own", a_close_of_its_own),
    ("a revoked token", a_revoked_token),
    ("a stream that talks", a_stream_that_talks),
    ("a close that cannot be said", a_close_that_cannot_be_said),
];

/// Reads up to and with the close frame; its code is that, or it has none.
#[track_caller]
fn until_told(raw: &mut RawWs, code: Option<u16>) {
    let mut frame = raw.next();
    while frame.opcode != 8 {
        frame = raw.next();
    }
    assert_eq!(frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code)), code);
}

fn too_large_a_message(world: &World, viewer: &Viewer) -> Connection {
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    raw.connection.send(&RawWs::encode(0x81, &[0; 1 << 20])[..14]);
    until_told(&mut raw, Some(1009));
    raw.connection
}

fn pings_without_end(world: &World, viewer: &Viewer) -> Connection {
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    raw.connection.send(&RawWs::encode(0x89, b"").repeat(2 * BURST));
    until_told(&mut raw, Some(1008));
    raw.connection
}

fn a_close_of_its_own(world: &World, viewer: &Viewer) -> Connection {
    let mut raw = RawWs::open(&world.server, "/", &viewer.token);
    raw.send(0x88, &1000u16.to_be_bytes());
    until_told(&mut raw, Some(1000));
    raw.connection
}

fn a_revoked_token(world: &World, viewer: &Viewer) -> Connection {
    let (id, token) = world.token(viewer.user, "read");
    let mut raw = RawWs::open(&world.server, "/", &token);
    world.publish(&format!("timeline:access_token:{id}"), r#"{"event":"kill"}"#);
    until_told(&mut raw, None);
    raw.connection
}

fn a_stream_that_talks(world: &World, viewer: &Viewer) -> Connection {
    let (id, token) = world.token(viewer.user, "read");
    let mut stream = Sse::open(&world.server, "/api/v1/streaming/user", &token);
    stream.connection.send(b"x");
    world.publish(&format!("timeline:access_token:{id}"), r#"{"event":"kill"}"#);
    stream.until_end();
    stream.connection
}

fn a_close_that_cannot_be_said(world: &World, _: &Viewer) -> Connection {
    let viewer = world.viewer("read");
    let mut connection = Connection::narrow(world.server.address());
    connection.send(upgrade("/?stream=user", &[("Authorization", &viewer.bearer())]).as_bytes());
    assert_eq!(connection.head().status, 101);
    // More than all buffers on the way hold.
    for n in 0..20 {
        world.publish(&viewer.home(), &numbered_long(n, 100_000));
    }
    // A binary message.
    connection.send(&RawWs::encode(0x82, b""));
    connection
}

/// Sends until the connection is no more: how many bytes were taken, and how long that went on.
fn flood(connection: &Connection, pace: Pace) -> (usize, Duration) {
    let mut socket = connection.tcp_socket().unwrap();
    socket2::SockRef::from(socket).set_send_buffer_size(READ_BYTES).unwrap();
    let (begin, bytes, mut sent) = (Instant::now(), vec![b'x'; pace.bytes], 0);
    while begin.elapsed() < PATIENCE {
        match socket.write(&bytes) {
            Ok(taken) => sent += taken,
            Err(_) => break,
        }
        std::thread::sleep(pace.every);
    }
    (sent, begin.elapsed())
}

#[test]
fn who_goes_on_after_its_close_is_cut_off() {
    if !ours_alone() {
        return;
    }
    let burst = BURST.to_string();
    let settings = [
        ("CLIENT_MESSAGE_RATE", "10"),
        ("CLIENT_MESSAGE_BURST", &*burst),
        ("SUBSCRIBE_RATE", "1"),
        ("SUBSCRIBE_BURST", "10"),
    ];
    let Some(world) = World::with(&settings) else { return };
    let (viewer, neighbour) = (world.viewer("read"), world.viewer("read"));
    let mut neighbours = [(); 2].map(|()| Ws::open(&world.server, "/?stream=user", &neighbour.token));
    let (rss_kib, cpu) = (world.server.rss_kib(), world.server.cpu());
    let begin = Instant::now();
    let mut published = 0;
    std::thread::scope(|scope| {
        let floods: Vec<_> = (0..4)
            .flat_map(|_| CLOSINGS)
            .flat_map(|(what, closing)| [(what, closing, FAST), (what, closing, SLOW)])
            .map(|(what, closing, pace)| {
                let (world, viewer) = (&world, &viewer);
                let flood = scope.spawn(move || flood(&closing(world, viewer), pace));
                (what, pace, flood)
            })
            .collect();
        let mut most_rss_kib = 0;
        while !floods.iter().all(|(_, _, flood)| flood.is_finished()) {
            world.publish(&neighbour.home(), &numbered(published));
            for ws in &mut neighbours {
                gapless_until(ws, published, published);
            }
            published += 1;
            most_rss_kib = most_rss_kib.max(world.server.rss_kib());
        }
        for (what, pace, flood) in floods {
            let (sent, lasted) = flood.join().unwrap();
            let most = 4 * BURST * READ_BYTES + KERNEL_BYTES;
            assert!(sent <= most, "{what}: {sent} bytes were taken, {most} at most should be");
            // The write that notices comes one pause after the one that is answered by a reset.
            let latest = LASTS_AT_MOST + 2 * pace.every + Duration::from_secs(5);
            assert!(lasted < latest, "{what}: it went on for {lasted:.1?}");
        }
        assert!(most_rss_kib < rss_kib + 16_384, "{rss_kib} KiB have become {most_rss_kib}");
    });
    let used = world.server.cpu() - cpu;
    assert!(used < Duration::from_secs(2), "{used:.1?} of CPU in {:.1?}", begin.elapsed());
    assert!(published > 10, "{published} messages were published meanwhile");
    drop(neighbours);
    world.until_empty();
    world.assert_conserved();
}
