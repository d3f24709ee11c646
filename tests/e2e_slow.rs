//! Clients that do not read, or hardly, beside others that do: the others get everything, in order and once, at
//! nearly the rate that they reach alone, and memory comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use support::crowd::{BASE, Client, Crowd};
use support::http::Connection;
use support::machine::{ours_alone, wait_until};
use support::posts::text_message;
use support::redis::encode;
use support::ws::upgrade;
use support::{Viewer, World};

const PATIENCE: Duration = Duration::from_secs(60);

/// One at a time: each of them wants the whole machine, and thousands of file descriptors.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn numbered(n: u64, bytes: usize) -> String {
    text_message("update", &format!(r#"{{"id":"{}","content":"{}"}}"#, BASE + n, "x".repeat(bytes)))
}

/// A WebSocket on `user` that nobody reads, and that little fits into.
fn unread(world: &World, token: &str) -> Connection {
    let mut connection = Connection::narrow(world.server.address());
    let bearer = format!("Bearer {token}");
    connection.send(upgrade("/api/v1/streaming?stream=user", &[("Authorization", &bearer)]).as_bytes());
    connection
}

fn until_websockets(world: &World, count: usize) {
    wait_until("all are connected", PATIENCE * 2, || {
        world.server.metric("connected_clients", &[("type", "websocket")]) == Some(count as f64)
    });
}

fn honest(world: &World, viewer: &Viewer, count: usize) -> Crowd {
    let mut crowd = Crowd::new();
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..count {
        crowd.join(Client::connect(world.server.address(), &viewer.token, None), deadline);
    }
    crowd.until("all are connected", |client| client.has_head);
    crowd
}

/// Publishes `count` messages from number `first` on, so many per second, while the crowd reads. How long
/// after the last one everybody had everything.
fn publish(world: &World, crowd: &mut Crowd, channel: &str, first: u64, count: u64, rate: u64) -> Duration {
    let mut redis = world.redis.client();
    let channel = channel.to_owned();
    let publisher = std::thread::spawn(move || {
        let began = Instant::now();
        let mut sent = 0;
        while sent < count {
            let due = ((began.elapsed().as_secs_f64() * rate as f64) as u64).min(count);
            let batch: Vec<u8> = (sent..due)
                .flat_map(|n| encode(&["PUBLISH", &channel, &numbered(first + n, BYTES)]))
                .collect();
            redis.send(&batch);
            for _ in sent..due {
                assert_eq!(redis.reply().unwrap().integer(), 1, "the server is subscribed");
            }
            sent = due;
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let deadline = Instant::now() + Duration::from_secs(count / rate) + PATIENCE;
    let mut published = None;
    while !crowd.clients.iter().all(|client| client.next == first + count) {
        crowd.turn(deadline);
        if publisher.is_finished() {
            published.get_or_insert_with(Instant::now);
        }
    }
    publisher.join().expect("everything was published");
    published.map_or(Duration::ZERO, |published| published.elapsed())
}

/// A message's size: about a status.
const BYTES: usize = 2000;

fn one_of_a_hundred(settings: &[(&str, &str)], seconds: u64, rate_max: u64) {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::with(settings) else { return };
    let viewer = world.viewer("read");
    let mut crowd = honest(&world, &viewer, 100);
    // The highest rate that the hundred keep up with, found by doubling.
    let (mut rate, mut next) = (100, 0);
    loop {
        let count = rate / 2;
        let late = publish(&world, &mut crowd, &viewer.home(), next, count, rate);
        next += count;
        if late > Duration::from_millis(500) || rate >= rate_max {
            break;
        }
        rate *= 2;
    }
    let rate = rate * 8 / 10;
    let stalled = unread(&world, &viewer.token);
    until_websockets(&world, 101);
    let began = Instant::now();
    let too_slow = || world.status()["closes"]["too_slow"] == json!(1);
    let mut last_round = false;
    while !last_round {
        // After its end the others are seen a little longer.
        last_round = too_slow() && began.elapsed() >= Duration::from_secs(seconds);
        assert!(began.elapsed() < PATIENCE * 3, "who never reads is still there");
        publish(&world, &mut crowd, &viewer.home(), next, rate, rate);
        next += rate;
    }
    let status = world.assert_conserved();
    println!(
        "{rate}/s to 100 clients, one more never reads: closed, {} messages each, {} pauses, {} ms in all",
        next, status["gate"]["closes"], status["gate"]["paused_ms"]
    );
    for cause in ["connection_lost", "redis_output_limit"] {
        assert_eq!(world.server.metric("tidegate_gaps_total", &[("cause", cause)]), Some(0.0), "{cause}");
    }
    assert_eq!(world.server.metric("connected_clients", &[("type", "websocket")]), Some(100.0));
    drop(stalled);
}

#[test]
fn one_who_never_reads_costs_a_hundred_others_nothing() {
    one_of_a_hundred(&[("BACKPRESSURE_HIGH_BYTES", "1000000"), ("SLOW_CLIENT_GRACE", "1")], 2, 1600);
}

#[test]
#[ignore = "half a minute at the highest rate with nothing shortened: tests/run --all"]
fn one_who_never_reads_costs_a_hundred_others_nothing_for_long() {
    one_of_a_hundred(&[], 30, 100_000);
}

/// `silent` clients that never read, and as many that read a byte every four seconds, beside twenty others.
fn many_who_do_not_read(silent: usize) {
    if !ours_alone() {
        return;
    }
    const HONEST: usize = 20;
    const GRACE: u64 = 1;
    let _alone = alone();
    let settings = [("BACKPRESSURE_HIGH_BYTES", "1000000"), ("SLOW_CLIENT_GRACE", "1")];
    let Some(world) = World::with(&settings) else { return };
    let viewer = world.viewer("read");
    let mut crowd = honest(&world, &viewer, HONEST);
    let never: Vec<Connection> = (0..silent).map(|_| unread(&world, &viewer.token)).collect();
    let mut dribbling: Vec<Connection> = (0..silent).map(|_| unread(&world, &viewer.token)).collect();
    until_websockets(&world, HONEST + 2 * silent);
    let mut redis = world.redis.client();
    let (mut sent, mut byte_read) = (0, Instant::now());
    let mut dribble = |dribbling: &mut Vec<Connection>| {
        if byte_read.elapsed() >= Duration::from_secs(4) {
            byte_read = Instant::now();
            for connection in dribbling.iter_mut() {
                let mut socket = connection.tcp_socket().unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.read(&mut [0]);
            }
        }
    };
    let deadline = Instant::now() + PATIENCE * 2;
    // Until all of those are gone, and then some more.
    let mut after = 0;
    while after < 50 {
        if sent % 10 == 0 || after > 0 {
            let gone = world.status()["closes"]["too_slow"].as_u64().unwrap_or(0);
            after += u64::from(gone == 2 * silent as u64);
        }
        assert_eq!(redis.publish(&viewer.home(), &numbered(sent, 20_000)), 1);
        sent += 1;
        dribble(&mut dribbling);
        while !crowd.clients.iter().all(|client| client.next + 8 >= sent) {
            crowd.turn(deadline);
            dribble(&mut dribbling);
        }
    }
    crowd.until("all have got everything", |client| client.next == sent);
    let status = world.assert_conserved();
    println!("{silent} of each: {sent} messages to the others, {}", status["gate"]);
    assert_eq!(status["closes"]["too_slow"], json!(2 * silent), "{status}");
    let (pauses, paused_ms) = (status["gate"]["closes"].as_u64(), status["gate"]["paused_ms"].as_u64());
    // No pause is longer than the grace, but for a machine that has other things to do.
    assert!(paused_ms <= pauses.map(|pauses| pauses * (GRACE * 1000 + 2000)), "{}", status["gate"]);
    assert_eq!(world.server.metric("tidegate_gaps_total", &[("cause", "connection_lost")]), Some(0.0));
    drop(never);
}

#[test]
fn a_thousand_who_never_read_and_a_thousand_who_hardly_do_cost_the_others_nothing() {
    many_who_do_not_read(1000);
}

/// Nine tenths read, one tenth does not; after the burst memory is what it was.
fn burst(count: usize) {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::with_own_database(&[("SLOW_CLIENT_GRACE", "1")]) else { return };
    let slow = count / 10;
    let accounts = world.accounts(slow as u64);
    let viewer = world.viewer("read");
    let mut crowd = honest(&world, &viewer, count - slow);
    let connections: Vec<Connection> =
        (1..=slow as u64).map(|n| unread(&world, &accounts.token(n))).collect();
    until_websockets(&world, count);
    let settled = |what: &str, enough: &dyn Fn(u64) -> bool| {
        let mut kib = u64::MAX;
        let end = Instant::now() + Duration::from_secs(20);
        while !enough(kib) && Instant::now() < end {
            kib = kib.min(world.server.rss_kib());
            std::thread::sleep(Duration::from_millis(100));
        }
        println!("{what}: {kib} KiB");
        kib
    };
    // What the handshakes needed comes back within seconds.
    let began = Instant::now();
    let before_kib = settled("before", &|_| began.elapsed() > Duration::from_secs(4));
    let mut redis = world.redis.client();
    let mut most_kib = 0;
    for round in 0..100 {
        let mut commands = encode(&["PUBLISH", &viewer.home(), &numbered(round, BYTES)]);
        for n in 1..=slow as u64 {
            commands.extend(encode(&["PUBLISH", &accounts.home(n), &numbered(round, BYTES)]));
        }
        redis.send(&commands);
        (0..=slow).for_each(|_| drop(redis.reply().unwrap()));
        let deadline = Instant::now() + PATIENCE * 2;
        while !crowd.clients.iter().all(|client| client.next + 4 >= round) {
            crowd.turn(deadline);
        }
        most_kib = most_kib.max(world.server.rss_kib());
    }
    crowd.until("all have got everything", |client| client.next == 100);
    drop(connections);
    until_websockets(&world, count - slow);
    wait_until("nothing is held", PATIENCE, || world.status()["gate"]["held_bytes"] == json!(0));
    // Of a small process a tenth is less than one thread's heap.
    let allowed_kib = before_kib + (before_kib / 10).max(3 << 10);
    let after_kib = settled("after", &|kib| kib <= allowed_kib);
    let status = world.assert_conserved();
    println!(
        "{count} clients: {before_kib} KiB before, {most_kib} KiB at most, {after_kib} KiB after; closes {}",
        status["closes"]
    );
    assert!(after_kib <= allowed_kib, "{before_kib} KiB before the burst, {after_kib} KiB after it");
}

#[test]
fn memory_comes_back_after_a_burst_with_slow_clients() {
    burst(1000);
}

#[test]
#[ignore = "ten thousand connections: tests/run --all"]
fn memory_comes_back_after_a_burst_to_ten_thousand() {
    burst(10_000);
}
