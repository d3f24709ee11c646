//! A public channel with 1,000 signed-in viewers, filtered for each, against the same channel with messages that
//! need no filtering, in one run.
//!
//! Of the viewers 30 % have five filters of ten keywords, 20 % chosen languages, all 100 blocks and 100 mutes; 1 of
//! 20 statuses matches a filter. Real Redis, real PostgreSQL, the release binary: `cargo bench --bench audience`.
//! `AUDIENCE_VIEWERS=5000` changes their number; `AUDIENCE_PACED=1` publishes 20 statuses a second for a minute
//! instead, beside a `user` stream.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use support::crowd::{BASE, Client, Crowd};
use support::{Viewer, World, posts};

const MESSAGES: u64 = 400;

/// Statuses published and not yet with everyone, at most: the stage's share of the budget holds hundreds.
const OPEN: u64 = 16;

fn main() {
    let count: u64 = std::env::var("AUDIENCE_VIEWERS").map_or(1000, |count| count.parse().unwrap());
    // The crowd answers no pings.
    let Some(world) = World::with(&[("WS_PING_SECONDS", "600")]) else { return };
    let beside = world.viewer("read");
    let accounts = world.accounts(count);
    let (first, others) = (accounts.before, accounts.before + 10_000_000);
    world.db.run(&format!(
        "INSERT INTO accounts (id, username) SELECT {others} + n, 'o' || n FROM generate_series(1, 5000) n;
         UPDATE users SET chosen_languages = '{{en,de}}' WHERE id > {first} AND (id - {first}) % 5 = 0;
         INSERT INTO blocks (account_id, target_account_id)
           SELECT {first} + n, {others} + 1 + (n * 7 + k * 31) % 4999 FROM generate_series(1, {count}) n, generate_series(1, 100) k
           ON CONFLICT DO NOTHING;
         INSERT INTO mutes (account_id, target_account_id)
           SELECT {first} + n, {others} + 1 + (n * 11 + k * 37) % 4999 FROM generate_series(1, {count}) n, generate_series(1, 100) k
           ON CONFLICT DO NOTHING;
         INSERT INTO custom_filters (id, account_id, phrase, context, action)
           SELECT n * 10 + f, {first} + n, 'filter ' || f, '{{public}}', 0 FROM generate_series(1, {count}) n, generate_series(1, 5) f
           WHERE n % 10 < 3;
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword, whole_word)
           SELECT f.id, CASE WHEN k = 1 AND f.id % 10 = 1 THEN 'seagull' ELSE 'word' || f.id || 'x' || k END, true
           FROM custom_filters f, generate_series(1, 10) k;
         ANALYZE"
    ));
    let mut crowd = Crowd::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    for n in 1..=count {
        let mut client = Client::connect(
            world.server.address(),
            &accounts.token(n),
            Some("/api/v1/streaming/public/local"),
        );
        client.filtered = true;
        crowd.join(client, deadline);
    }
    crowd.until("all are connected", |client| client.has_head);

    if std::env::var_os("AUDIENCE_PACED").is_some() {
        return paced(&world, crowd, others, &beside);
    }
    let queries = || world.server.metric("tidegate_audience_queries_total", &[]).unwrap_or_default();
    let mut number = 0;
    let mut results = Vec::new();
    // Once to warm the caches, then in turns.
    for (round, filtered) in [true, false, true, false, true, false, true].into_iter().enumerate() {
        let (asked, cpu, got) = (queries(), cpu(world.server.pid()), total(&crowd));
        let began = Instant::now();
        let mut redis = world.redis.client();
        let end = number + MESSAGES;
        while number < end {
            let mut status = posts::status(BASE + number, others);
            status["content"] = status["content"].as_str().unwrap_or_default().into();
            if number % 20 == 0 {
                status["content"] = "<p>a seagull on the tide</p>".into();
            }
            // Another event passes unasked; `update` in it is what the crowd counts.
            let event = if filtered { "update" } else { "not.an.update" };
            redis.publish("timeline:public:local", &posts::message(event, &status));
            number += 1;
            let reached = number.saturating_sub(OPEN);
            while crowd.clients.iter().any(|client| client.next < reached) {
                crowd.turn(Instant::now() + Duration::from_secs(60));
            }
        }
        while crowd.clients.iter().any(|client| client.next < end) {
            crowd.turn(Instant::now() + Duration::from_secs(60));
        }
        let took = began.elapsed().as_secs_f64();
        let delivered = (total(&crowd) - got) as f64;
        let used = self::cpu(world.server.pid()) - cpu;
        if round > 0 {
            results.push((filtered, delivered / took, used / delivered * 1e6, queries() - asked));
        }
    }
    println!("{count} viewers, {MESSAGES} messages a round, at most {OPEN} open");
    println!("filtered  deliveries/s  server CPU s per million  questions per message");
    for (filtered, rate, cpu, asked) in &results {
        println!("{filtered:8}  {rate:12.0}  {cpu:24.2}  {:21.2}", asked / MESSAGES as f64);
    }
    let median = |wanted: bool| {
        let mut cpus: Vec<f64> = results.iter().filter(|row| row.0 == wanted).map(|row| row.2).collect();
        cpus.sort_by(f64::total_cmp);
        cpus[cpus.len() / 2]
    };
    println!("deliveries per CPU second, filtered against not: {:.2}", median(false) / median(true));
}

/// 20 statuses a second for a minute, and a `user` stream beside them: nothing is lost on either, and how long
/// deliveries took.
fn paced(world: &World, mut crowd: Crowd, author: u64, viewer: &Viewer) {
    const COUNT: u64 = 1200;
    let deadline = Instant::now() + Duration::from_secs(180);
    crowd.join(Client::connect(world.server.address(), &viewer.token, None), deadline);
    crowd.until("the user stream is open", |client| client.has_head);
    let mut redis = world.redis.client();
    let began = Instant::now();
    for number in 0..COUNT {
        let status = posts::status(BASE + number, author);
        redis.publish("timeline:public:local", &posts::message("update", &status));
        let home = format!(r#"{{"id":"{}"}}"#, BASE + number);
        redis.publish(&viewer.home(), &posts::text_message("update", &home));
        while began.elapsed() < Duration::from_millis(50) * (number as u32 + 1) {
            crowd.turn(deadline);
        }
    }
    crowd.until("all have got everything", |client| client.next == COUNT);
    let asked = world.server.metric("tidegate_audience_queries_total", &[]).unwrap_or_default();
    let answer = world.server.request("GET", "/status", &[("Accept", "application/json")]);
    let status: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    println!(
        "{COUNT} statuses in {:.0} s to {} clients, each in order and once; {asked} questions; latency p50 {} µs, \
         p99 {} µs (from the read in Redis's connection to the last byte taken by the kernel)",
        began.elapsed().as_secs_f64(),
        crowd.clients.len(),
        status["latency"]["p50_us"],
        status["latency"]["p99_us"],
    );
}

fn total(crowd: &Crowd) -> u64 {
    crowd.clients.iter().map(|client| client.got).sum()
}

/// Processor seconds that a process has used, in user and system mode.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), counted behind the name; a tick is 10 ms on Linux.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
