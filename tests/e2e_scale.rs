//! Many clients at once: half of them WebSockets on `user` with accounts of their own, half Server-Sent Events
//! on one public channel. All connect, idle, and then each gets 200 messages, both transports at once, in order
//! and once. Prints what the server's memory was.
//!
//! 1,000 clients by default; `SCALE_CLIENTS=10000 cargo test --release --test e2e_scale -- --nocapture` is the
//! whole of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::{Duration, Instant};

use support::crowd::{BASE, Client, Crowd};
use support::{World, posts};

const ROUNDS: u64 = 200;

/// Rounds published and not yet everywhere, at most.
const ROUNDS_OPEN: u64 = 8;

#[test]
fn each_of_many_clients_gets_its_messages_in_order_and_once() {
    let count: u64 = std::env::var("SCALE_CLIENTS").map_or(1000, |count| count.parse().unwrap());
    let Some(world) = World::with(&[]) else { return };
    let accounts = world.accounts(count);
    let empty_kib = world.server.rss_kib();

    let mut crowd = Crowd::new();
    let began = Instant::now();
    for n in 1..=count {
        let path = n.is_multiple_of(2).then_some("/api/v1/streaming/public");
        let client = Client::connect(world.server.address(), &accounts.token(n), path);
        crowd.join(client, began + Duration::from_secs(240));
    }
    crowd.until("all are connected", |client| client.has_head);
    let connected = began.elapsed();
    // What the handshakes needed comes back once it is quiet.
    let mut idle_kib = world.server.rss_kib();
    let quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(10) && idle_kib > empty_kib + 2 * count + 4096 {
        crowd.turn(quiet + Duration::from_secs(60));
        idle_kib = world.server.rss_kib();
    }
    assert!(idle_kib <= empty_kib + 2 * count + 4096, "{empty_kib} KiB empty, {idle_kib} KiB idle");

    let began = Instant::now();
    let mut redis = world.redis.client();
    for round in 0..ROUNDS {
        let status = posts::status(BASE + round, 1);
        let message = posts::message("update", &status);
        let mut commands = support::redis::encode(&["PUBLISH", "timeline:public", &message]);
        let home = posts::text_message("update", &format!(r#"{{"id":"{}"}}"#, BASE + round));
        for n in (1..=count).filter(|n| n % 2 == 1) {
            commands.extend(support::redis::encode(&["PUBLISH", &accounts.home(n), &home]));
        }
        redis.send(&commands);
        for _ in 0..count.div_ceil(2) + 1 {
            assert_eq!(redis.reply().unwrap().integer(), 1, "one server is subscribed");
        }
        let reached = (round + 1).saturating_sub(ROUNDS_OPEN);
        let deadline = Instant::now() + Duration::from_secs(120);
        while !crowd.clients.iter().all(|client| client.next >= reached) {
            crowd.turn(deadline);
        }
    }
    crowd.until("all have got everything", |client| client.next == ROUNDS);
    let took = began.elapsed();
    let after_kib = world.server.rss_kib();
    println!(
        "{count} clients: connected in {:.1} s; {} messages each in {:.1} s ({:.0} deliveries/s); RSS {empty_kib} KiB \
         without clients, {idle_kib} KiB idle, {after_kib} KiB after",
        connected.as_secs_f64(),
        ROUNDS,
        took.as_secs_f64(),
        (count * ROUNDS) as f64 / took.as_secs_f64(),
    );
    drop(crowd);
    world.until_empty();
}
