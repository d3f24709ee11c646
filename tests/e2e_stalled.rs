//! Clients that stall: the kernel takes no byte for them. They are closed before reading from Redis has to pause, and
//! nobody else notices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use support::World;
use support::http::Connection;
use support::machine::{ours_alone, wait_until};
use support::posts::text_message;
use support::redis::encode;
use support::ws::upgrade;

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
