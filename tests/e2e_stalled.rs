//! Clients that stall: the kernel takes no byte for them. They are closed before reading from Redis has to pause, and
//! nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use support::crowd::{BASE, Client, Crowd};
use support::http::Connection;
use support::machine::{ours_alone, wait_until};
use support::posts::text_message;
use support::redis::encode;
use support::ws::{RawWs, upgrade};
use support::{Viewer, World};

const PATIENCE: Duration = Duration::from_secs(60);

/// One at a time: each of them measures how long something takes.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A WebSocket on `user` that nobody reads, and that little fits into.
fn unread(world: &World, token: &str) -> Connection {
    let mut connection = Connection::narrow(world.server.address());
    let bearer = format!("Bearer {token}");
    connection.send(upgrade("/api/v1/streaming?stream=user", &[("Authorization", &bearer)]).as_bytes());
    connection
}

fn until_websockets(world: &World, count: usize) {
    wait_until("all are connected", PATIENCE, || {
        world.server.metric("connected_clients", &[("type", "websocket")]) == Some(count as f64)
    });
}

/// So many messages of that size at once, each another: equal ones would share their bytes.
fn burst(world: &World, channel: &str, count: usize, bytes: usize) {
    let mut redis = world.redis.client();
    let commands: Vec<u8> = (0..count)
        .flat_map(|n| {
            let payload = format!(r#"{{"id":"{n}","content":"{}"}}"#, "x".repeat(bytes));
            encode(&["PUBLISH", channel, &text_message("update", &payload)])
        })
        .collect();
    redis.send(&commands);
    for _ in 0..count {
        assert_eq!(redis.reply().unwrap().integer(), 1, "the server is subscribed");
    }
}

fn clients_of(world: &World, reactor: &str) -> Option<f64> {
    world.server.metric("tidegate_reactor_clients", &[("reactor", reactor)])
}

/// A message to a client of one reactor closes the gate. Most of the budget is held by a client of another reactor that
/// has nothing else to do. Nothing may wake that one but the gate: `/status` would, `/metrics` does not.
#[test]
fn gate_closed_by_one_reactor_wakes_the_one_that_holds_the_bytes() {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let settings =
        [("STREAMING_THREADS", "2"), ("BACKPRESSURE_HIGH_BYTES", "4000000"), ("SLOW_CLIENT_GRACE", "1")];
    let Some(world) = World::with(&settings) else { return };
    let (holder, other) = (world.viewer("read"), world.viewer("read"));
    let holds = unread(&world, &holder.token);
    until_websockets(&world, 1);
    let overfills = unread(&world, &other.token);
    until_websockets(&world, 2);
    assert_eq!((clients_of(&world, "0"), clients_of(&world, "1")), (Some(1.0), Some(1.0)));

    let began = Instant::now();
    burst(&world, &holder.home(), 140, 20_000);
    // By now it has taken no byte for longer than a client may.
    let pause = Duration::from_millis(1500);
    std::thread::sleep(pause);
    assert_eq!(world.server.metric("tidegate_gate_closes_total", &[]), Some(0.0), "there is room for it");
    burst(&world, &other.home(), 80, 20_000);
    wait_until("one of the two is closed", PATIENCE, || {
        world.server.metric("tidegate_clients_closed_total", &[("reason", "too_slow")]) == Some(1.0)
    });
    wait_until("reading goes on", PATIENCE, || world.server.metric("tidegate_gate_closed", &[]) == Some(0.0));
    let paused = world.server.metric("tidegate_gate_paused_seconds_total", &[]).unwrap();
    println!("paused for {paused} s; one is closed {:?} after the first message", began.elapsed());
    assert!(paused < 1.0, "reading paused for {paused} s: the reactor that holds the bytes was not woken");
    assert_eq!((clients_of(&world, "0"), clients_of(&world, "1")), (Some(0.0), Some(1.0)));
    world.assert_conserved();
    drop((holds, overfills));
}

/// An account's stream, read by a crowd.
struct Flood {
    channel: String,
    rate: u64,
    bytes: usize,
    /// The number of the next message.
    next: u64,
}

impl Flood {
    /// Publishes for so long while the crowd reads; `meanwhile` is called between reads, with the time since the
    /// beginning. Every message's way to every client that has all of them in the end, which all have but `left_out`.
    fn run(
        &mut self,
        world: &World,
        crowd: &mut Crowd,
        time: Duration,
        mut meanwhile: impl FnMut(&mut Crowd, Duration) -> BTreeMap<usize, Duration>,
    ) -> Vec<Duration> {
        let count = (time.as_secs_f64() * self.rate as f64) as u64;
        let (first, rate) = (self.next, self.rate);
        let began = Instant::now();
        let published: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
        let publisher = std::thread::spawn({
            let (mut redis, published) = (world.redis.client(), Arc::clone(&published));
            let (channel, padding) = (self.channel.clone(), "x".repeat(self.bytes));
            move || {
                for n in 0..count {
                    let due = Duration::from_secs_f64(n as f64 / rate as f64);
                    std::thread::sleep(due.saturating_sub(began.elapsed()));
                    let payload = format!(r#"{{"id":"{}","content":"{padding}"}}"#, BASE + first + n);
                    let command = encode(&["PUBLISH", &channel, &text_message("update", &payload)]);
                    published[n as usize].store(began.elapsed().as_nanos() as u64, Ordering::SeqCst);
                    redis.send(&command);
                    assert_eq!(redis.reply().unwrap().integer(), 1, "the server is subscribed");
                }
            }
        });
        crowd.clients.iter_mut().for_each(|client| client.arrivals = Some(Vec::new()));
        let deadline = Instant::now() + time + PATIENCE;
        self.next = first + count;
        let mut left_out = BTreeMap::new();
        loop {
            left_out.append(&mut meanwhile(crowd, began.elapsed()));
            let mut reading = crowd.clients.iter().enumerate().filter(|(n, _)| !left_out.contains_key(n));
            if reading.all(|(_, client)| client.next == self.next) {
                break;
            }
            crowd.turn(deadline);
        }
        publisher.join().expect("everything was published");
        let mut took = Vec::new();
        for (_, client) in crowd.clients.iter_mut().enumerate().filter(|(n, _)| !left_out.contains_key(n)) {
            for (arrival, published) in client.arrivals.take().unwrap().iter().zip(&*published) {
                let published = Duration::from_nanos(published.load(Ordering::SeqCst));
                took.push(arrival.duration_since(began).saturating_sub(published));
            }
        }
        took
    }
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

fn crowd_of(world: &World, viewer: &Viewer, count: usize, path: Option<&str>) -> Crowd {
    let mut crowd = Crowd::new();
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..count {
        crowd.join(Client::connect(world.server.address(), &viewer.token, path), deadline);
    }
    crowd.until("all are connected", |client| client.has_head);
    crowd
}

/// Nobody but `closed` was closed, and reading never paused.
fn assert_undisturbed(world: &World, closed: u64) {
    let status = world.assert_conserved();
    println!("closed: {}; {}", status["closes"]["too_slow"], status["gate"]);
    assert_eq!(status["gate"]["closes"], json!(0), "reading paused: {}", status["gate"]);
    assert_eq!(status["closes"]["too_slow"], json!(closed), "{}", status["closes"]);
}

/// `p99` with a stalled client is at most three times as long as without. Under a millisecond the scheduler decides.
fn assert_not_slower(quiet: Duration, with_stalled: Duration) {
    println!("p99 {quiet:?} without stalled clients, {with_stalled:?} with them");
    assert!(with_stalled <= 3 * quiet.max(Duration::from_millis(1)), "{with_stalled:?} against {quiet:?}");
}

/// One of a crowd never reads.
fn one_never_reads(
    path: Option<&str>,
    settings: &[(&str, &str)],
    count: usize,
    flood: (u64, usize),
    measured: bool,
) {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::with(settings) else { return };
    let viewer = world.viewer("read");
    let mut crowd = crowd_of(&world, &viewer, count, path);
    let mut flood = Flood { channel: viewer.home(), rate: flood.0, bytes: flood.1, next: 0 };
    let time = Duration::from_secs(if measured { 15 } else { 5 });
    let quiet =
        if measured { flood.run(&world, &mut crowd, time, |_, _| BTreeMap::new()) } else { Vec::new() };
    let mut stalled = Connection::narrow(world.server.address());
    let bearer = format!("Bearer {}", viewer.token);
    match path {
        None => {
            stalled.send(upgrade("/api/v1/streaming?stream=user", &[("Authorization", &bearer)]).as_bytes())
        }
        Some(path) => {
            let headers = [("Authorization", bearer.as_str())];
            stalled.send(support::http::request("GET", path, &headers).as_bytes());
        }
    }
    let kind = if path.is_none() { "websocket" } else { "eventsource" };
    world.server.until_metric("connected_clients", &[("type", kind)], (count + 1) as f64);
    let with_stalled = flood.run(&world, &mut crowd, time, |_, _| BTreeMap::new());
    assert_undisturbed(&world, 1);
    if measured {
        assert_not_slower(p99(quiet), p99(with_stalled));
    }
    drop(stalled);
}

const SSE: Option<&str> = Some("/api/v1/streaming/user");
const EIGHT_MB: [(&str, &str); 1] = [("BACKPRESSURE_HIGH_BYTES", "8000000")];

#[test]
fn stalled_websocket_is_closed_before_reading_pauses() {
    one_never_reads(None, &EIGHT_MB, 20, (250, 6600), false);
}

#[test]
fn stalled_event_stream_is_closed_before_reading_pauses() {
    one_never_reads(SSE, &EIGHT_MB, 20, (250, 6600), false);
}

#[test]
#[ignore = "half a minute, measured, nothing shortened: tests/run --all"]
fn stalled_websocket_costs_a_hundred_others_nothing() {
    one_never_reads(None, &[], 100, (500, 3300), true);
}

#[test]
#[ignore = "half a minute, measured, nothing shortened: tests/run --all"]
fn stalled_event_stream_costs_a_hundred_others_nothing() {
    one_never_reads(SSE, &[], 100, (500, 3300), true);
}

/// Some of a crowd stop reading, at moments that a seed decides.
fn some_stop_reading(
    settings: &[(&str, &str)],
    count: usize,
    stalling: usize,
    rate: u64,
    seconds: u64,
    measured: bool,
) {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::with(settings) else { return };
    let viewer = world.viewer("read");
    let mut crowd = crowd_of(&world, &viewer, count, None);
    let mut flood = Flood { channel: viewer.home(), rate, bytes: 3300, next: 0 };
    let time = Duration::from_secs(seconds);
    let quiet =
        if measured { flood.run(&world, &mut crowd, time, |_, _| BTreeMap::new()) } else { Vec::new() };
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut moments: Vec<(Duration, usize)> = (0..stalling)
        .map(|n| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = (seed >> 40) as f64 / (1u64 << 24) as f64;
            // In the first half, so that there is time to see them closed.
            (Duration::from_secs_f64(seconds as f64 * 0.5 * share), n * count / stalling)
        })
        .collect();
    moments.sort_unstable();
    moments.reverse();
    let with_stalled = flood.run(&world, &mut crowd, time, |crowd, since| {
        let mut stopped = BTreeMap::new();
        while let Some((moment, n)) = moments.pop_if(|(moment, _)| *moment <= since) {
            crowd.poll.registry().deregister(&mut crowd.clients[n].socket).unwrap();
            stopped.insert(n, moment);
        }
        stopped
    });
    let closed = world.status()["closes"]["too_slow"].as_u64().unwrap();
    assert!(closed > 0 && closed <= stalling as u64, "{closed} of {stalling} were closed");
    assert_undisturbed(&world, closed);
    if measured {
        assert_not_slower(p99(quiet), p99(with_stalled));
    }
}

#[test]
fn clients_that_stop_reading_at_any_moment_disturb_nobody() {
    some_stop_reading(&[("BACKPRESSURE_HIGH_BYTES", "6000000")], 40, 8, 150, 15, false);
}

#[test]
#[ignore = "a minute and a half, measured, a thousand clients: tests/run --all"]
fn a_hundred_of_a_thousand_stop_reading_and_cost_the_others_nothing() {
    some_stop_reading(&[("BACKPRESSURE_HIGH_BYTES", "4MiB")], 1000, 100, 50, 40, true);
}

/// The flood and its readers are on one reactor; a client that stalled holds most of the budget on the other.
fn stalled_elsewhere(settings: &[(&str, &str)], held: usize, readers: usize, rate: u64, measured: bool) {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::with(&[&[("STREAMING_THREADS", "2")], settings].concat()) else { return };
    let (holder, idle, viewer) = (world.viewer("read"), world.viewer("read"), world.viewer("read"));
    let holds = unread(&world, &holder.token);
    until_websockets(&world, 1);
    // The door sends each client to the reactor that has fewer: reader, idle one, reader and so on.
    let (mut crowd, mut others) = (Crowd::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE;
    for n in 0..readers {
        crowd.join(Client::connect(world.server.address(), &viewer.token, None), deadline);
        while !crowd.clients[n].has_head {
            crowd.turn(deadline);
        }
        until_websockets(&world, 2 * n + 2);
        others.push(unread(&world, &idle.token));
        until_websockets(&world, 2 * n + 3);
    }
    let mut flood = Flood { channel: viewer.home(), rate, bytes: 3300, next: 0 };
    let time = Duration::from_secs(if measured { 10 } else { 4 });
    let quiet =
        if measured { flood.run(&world, &mut crowd, time, |_, _| BTreeMap::new()) } else { Vec::new() };
    burst(&world, &holder.home(), held / 20_000, 20_000);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(clients_of(&world, "0"), Some((readers + 1) as f64), "there is room for what it holds");
    others.push(unread(&world, &viewer.token));
    until_websockets(&world, 2 * readers + 2);
    assert_eq!(
        clients_of(&world, "1"),
        Some((readers + 1) as f64),
        "the readers, and one that reads nothing"
    );
    let with_stalled = flood.run(&world, &mut crowd, time, |_, _| BTreeMap::new());
    let closed = world.status()["closes"]["too_slow"].as_u64().unwrap();
    assert_undisturbed(&world, closed);
    assert_eq!(clients_of(&world, "0"), Some(readers as f64), "the holder is closed, nobody else there");
    if measured {
        assert_not_slower(p99(quiet), p99(with_stalled));
    }
    drop(holds);
}

#[test]
fn stalled_client_of_another_reactor_and_channel_is_closed_before_reading_pauses() {
    stalled_elsewhere(&EIGHT_MB, 4_200_000, 8, 400, false);
}

#[test]
#[ignore = "half a minute, measured, nothing shortened: tests/run --all"]
fn stalled_client_of_another_reactor_and_channel_costs_a_hundred_others_nothing() {
    stalled_elsewhere(&[], 10_000_000, 100, 500, true);
}

/// WebSockets that each take half of a large message of their own account and then unsubscribe. What they hold is owed to
/// nobody.
fn holders_of_half_a_frame(world: &World, count: usize) -> Vec<RawWs> {
    (0..count)
        .map(|n| {
            let viewer = world.viewer("read");
            let mut connection = Connection::narrow(world.server.address());
            let bearer = viewer.bearer();
            connection
                .send(upgrade("/api/v1/streaming?stream=user", &[("Authorization", &bearer)]).as_bytes());
            world.redis.until_subscribed(&viewer.user_channels());
            let head = connection.head();
            assert_eq!(head.status, 101);
            // Each of another length: equal messages would share their bytes.
            burst(world, &viewer.home(), 1, 500_000 + n);
            let mut ws = RawWs { head, connection };
            // The server has begun to write the message before it reads the unsubscribe.
            ws.connection.read_more().unwrap();
            ws.send_text(r#"{"type":"unsubscribe","stream":"user"}"#);
            wait_until("the subscription has ended", PATIENCE, || {
                !world.redis.has_subscriber(&viewer.home())
            });
            ws
        })
        .collect()
}

#[test]
fn half_written_frames_of_given_up_subscriptions_do_not_hold_up_reading() {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::with(&[("BACKPRESSURE_HIGH_BYTES", "4000000")]) else { return };
    let viewer = world.viewer("read");
    let mut crowd = crowd_of(&world, &viewer, 1, None);
    let holders = holders_of_half_a_frame(&world, 10);
    let mut flood = Flood { channel: viewer.home(), rate: 100, bytes: 10_000, next: 0 };
    flood.run(&world, &mut crowd, Duration::from_secs(8), |_, _| BTreeMap::new());
    let gate = &world.assert_conserved()["gate"];
    println!("{gate}");
    // What they were sent at once does not fit, but each of them is closed when it has stalled for a second.
    let (pauses, paused) = (gate["closes"].as_u64().unwrap(), gate["paused_ms"].as_u64().unwrap());
    assert!(paused < 2500 * pauses.max(1), "reading paused {pauses} times, for {paused} ms");
    drop(holders);
}

/// The same, and the connection to Redis is lost and back at once. A closed gate reads no confirmations of
/// subscriptions.
#[test]
fn half_written_frames_of_gapped_clients_do_not_refuse_newcomers() {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::with(&[("BACKPRESSURE_HIGH_BYTES", "4000000"), ("GAP_CLOSE_SPREAD", "60")])
    else {
        return;
    };
    let holders = holders_of_half_a_frame(&world, 10);
    let epoch = world.status()["redis"]["epoch"].as_u64().unwrap();
    world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("Redis is back", PATIENCE, || world.status()["redis"]["epoch"].as_u64() > Some(epoch));
    let viewer = world.viewer("read");
    let began = Instant::now();
    drop(crowd_of(&world, &viewer, 1, None));
    let took = began.elapsed();
    println!("a newcomer waits {took:?}");
    assert!(took < Duration::from_secs(4), "a newcomer waited {took:?}");
    drop(holders);
}
