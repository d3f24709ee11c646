//! Memory comes back: after clients have come and gone by the thousand, and after clients that held as much text as they
//! may have left. The long form is `cargo bench --bench load -- churn`.
//!
//! What counts is anonymous memory: a file's pages are the program itself.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;
use support::http::request;
use support::machine::PATIENCE;
use support::ws::{RawWs, upgrade};
use support::{Server, World, ours_alone, wait_until};

/// A server that does nothing else has given memory back by then, on a machine that does.
const GIVEN_BACK: Duration = Duration::from_secs(60);

fn anonymous_kib(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", server.pid())).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("proc(5)")
}

/// Waits until the server has at most so much.
#[track_caller]
fn until_anonymous(server: &Server, kib_max: u64, what: &str) {
    let least = std::cell::Cell::new(u64::MAX);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until(what, GIVEN_BACK, || {
            least.set(least.get().min(anonymous_kib(server)));
            std::thread::park_timeout(Duration::from_millis(200));
            least.get() <= kib_max
        });
    }));
    assert!(result.is_ok(), "{what}: at least {} KiB stayed, at most {kib_max} are allowed", least.get());
}

/// So many clients connect, 64 at a time. Gives their sockets, each with the first bytes of its response read.
fn crowd(world: &World, accounts: support::world::Accounts, numbers: std::ops::Range<u64>) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for batch in numbers.collect::<Vec<u64>>().chunks(64) {
        let began = crowd.len();
        crowd.extend(batch.iter().map(|n| {
            let bearer = format!("Bearer {}", accounts.token(n % ACCOUNTS + 1));
            let headers = [("Authorization", bearer.as_str())];
            let request = match n % 3 {
                0 => upgrade("/api/v1/streaming?stream=user", &headers),
                1 => request("GET", "/api/v1/streaming/public/local", &headers),
                _ => request("GET", &format!("/api/v1/streaming/hashtag?tag=tag{n}"), &headers),
            };
            let mut socket = TcpStream::connect(world.server.address()).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(request.as_bytes()).unwrap();
            socket
        }));
        for socket in &mut crowd[began..] {
            let mut head = [0; 12];
            socket.read_exact(&mut head).unwrap();
            assert!(head.ends_with(b"101") || head.ends_with(b"200"), "{:?}", String::from_utf8_lossy(&head));
        }
    }
    crowd
}

const ACCOUNTS: u64 = 1000;

#[test]
fn memory_of_clients_that_came_and_went_comes_back() {
    const WAVES: u64 = 4;
    const CLIENTS: u64 = 5000;
    /// Code that ran for the first time, connections to PostgreSQL, and pages that are not all free.
    const MORE_KIB: u64 = 1500;
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[]) else { return };
    let accounts = world.accounts(ACCOUNTS);
    let fresh = anonymous_kib(&world.server);
    for wave in 0..WAVES {
        drop(crowd(&world, accounts, wave * CLIENTS..(wave + 1) * CLIENTS));
        world.until_empty();
    }
    until_anonymous(
        &world.server,
        fresh + MORE_KIB,
        "the memory of clients that came and went is given back",
    );
}

#[test]
fn tags_of_clients_are_bounded_and_their_memory_comes_back() {
    const CLIENTS: u32 = 24;
    const TAGS: u32 = 200;
    const PER_CLIENT_KIB: u64 = 128;
    if !ours_alone() {
        return;
    }
    // A client asks for all of them at once, and for an answer now and then.
    let Some(world) = World::with(&[("SUBSCRIBE_BURST", "300")]) else { return };
    let viewer = world.viewer("read");
    // One client of the same kind comes first, so that what everybody shares is there.
    let before = {
        drop(with_tags(&world, &viewer.token, 0, TAGS));
        world.until_empty();
        anonymous_kib(&world.server)
    };
    let clients: Vec<RawWs> = (1..=CLIENTS).map(|n| with_tags(&world, &viewer.token, n, TAGS)).collect();
    let held = anonymous_kib(&world.server).saturating_sub(before);
    assert!(
        held <= u64::from(CLIENTS) * PER_CLIENT_KIB,
        "{CLIENTS} clients with {TAGS} tags hold {held} KiB"
    );
    drop(clients);
    world.until_empty();
    until_anonymous(&world.server, before + 1024, "the memory of their tags is given back when they leave");
}

/// A client that has asked for streams of so many tags, each of 500 control characters: nothing in the channel's name,
/// six times as long in the JSON of each message. Everything it asked for is answered.
fn with_tags(world: &World, token: &str, client: u32, tags: u32) -> RawWs {
    let mut raw = RawWs::open(&world.server, "/", token);
    let ask = |tag: u32| {
        let tag = format!("t{client}x{tag}{}", "\u{1}".repeat(500));
        RawWs::encode(
            0x81,
            json!({"type": "subscribe", "stream": "hashtag", "tag": tag}).to_string().as_bytes(),
        )
    };
    let numbers: Vec<u32> = (0..tags).collect();
    for part in numbers.chunks(20) {
        // Messages take effect in the order in which they are sent, and this one has an answer.
        let last = RawWs::encode(0x81, br#"{"type":"unsubscribe","stream":"nonsense"}"#);
        raw.connection.send(&part.iter().flat_map(|tag| ask(*tag)).chain(last).collect::<Vec<u8>>());
        while raw.next_text() != r#"{"error":"Error unsubscribing from channel"}"# {}
    }
    raw
}
