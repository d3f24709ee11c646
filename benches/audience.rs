//! A public channel with 1,000 signed-in viewers, filtered for each, against the same channel with messages that
//! need no filtering, in one run.
//!
//! Of the viewers 30 % have five filters of ten keywords, 20 % chosen languages, all 100 blocks and 100 mutes; 1 of
//! 20 statuses matches a filter. Real Redis, real PostgreSQL, the release binary: `cargo bench --bench audience`.
//! `AUDIENCE_VIEWERS=5000` changes their number; `AUDIENCE_PACED=1` publishes 20 statuses a second for a minute
//! instead, beside a `user` stream whose reader and whose latency are its own.
//!
//! CPU is the server's; PostgreSQL's, all its processes together, stands beside it. Figures also go to
//! `target/benches/audience.json` and `audience-paced.json`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

#[path = "shared/mod.rs"]
mod shared;

use std::time::{Duration, Instant};

use shared::process::{cpu_seconds, family_cpu_seconds};
use shared::report::{Report, median, number, quantile};
use support::crowd::{BASE, Client, Crowd};
use support::{Viewer, World, postgres, posts};

/// Statuses of a round.
const MESSAGES: u64 = 400;

/// Rounds of each kind, in turns.
const PAIRS: usize = 5;

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
    let mut next = 0;
    // Once to warm the caches.
    round(&world, &mut crowd, &mut next, others, true);
    let (mut filtered, mut open) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        filtered.push(round(&world, &mut crowd, &mut next, others, true));
        open.push(round(&world, &mut crowd, &mut next, others, false));
    }
    let mut report = Report::new("audience");
    let of_all = format!("{count} viewers, {MESSAGES} statuses a round, at most {OPEN} open");
    row(&mut report, &format!("filtered: {of_all}"), &filtered);
    row(&mut report, &format!("not filtered: {of_all}"), &open);
    let ratios: Vec<f64> =
        filtered.iter().zip(&open).map(|(filtered, open)| open.server_cpu / filtered.server_cpu).collect();
    report.at_least("deliveries per CPU second, filtered against not", median(&ratios), 0.5, "");
    report.print();
}

/// One round's figures.
struct Round {
    per_second: f64,
    /// CPU seconds per million deliveries.
    server_cpu: f64,
    postgres_cpu: f64,
    /// PostgreSQL's CPU and questions asked, per message.
    postgres_ms: f64,
    questions: f64,
}

/// So many statuses to all; not filtered means that they come as another event, which passes unasked.
fn round(world: &World, crowd: &mut Crowd, next: &mut u64, author: u64, filtered: bool) -> Round {
    let queries = || world.server.metric("tidegate_audience_queries_total", &[]).unwrap_or_default();
    let database = postgres::shared().unwrap().service.pid();
    let server = world.server.pid();
    let (asked, got) = (queries(), total(crowd));
    let (server_before, database_before) = (cpu_seconds(server), family_cpu_seconds(database));
    let began = Instant::now();
    let mut redis = world.redis.client();
    let end = *next + MESSAGES;
    while *next < end {
        let mut status = posts::status(BASE + *next, author);
        if next.is_multiple_of(20) {
            status["content"] = "<p>a seagull on the tide</p>".into();
        }
        // `update` in the event's name is what the crowd counts.
        let event = if filtered { "update" } else { "not.an.update" };
        redis.publish("timeline:public:local", &posts::message(event, &status));
        *next += 1;
        until_all_have(crowd, next.saturating_sub(OPEN));
    }
    until_all_have(crowd, end);
    let took = began.elapsed().as_secs_f64();
    let server_cpu = cpu_seconds(server) - server_before;
    let postgres_cpu = family_cpu_seconds(database) - database_before;
    let delivered = (total(crowd) - got) as f64;
    Round {
        per_second: delivered / took,
        server_cpu: server_cpu / delivered * 1e6,
        postgres_cpu: postgres_cpu / delivered * 1e6,
        postgres_ms: postgres_cpu * 1e3 / MESSAGES as f64,
        questions: (queries() - asked) / MESSAGES as f64,
    }
}

fn until_all_have(crowd: &mut Crowd, reached: u64) {
    while crowd.clients.iter().any(|client| client.next < reached) {
        crowd.turn(Instant::now() + Duration::from_secs(60));
    }
}

fn row(report: &mut Report, name: &str, rounds: &[Round]) {
    let middle = |figure: fn(&Round) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
    let (per_second, server) = (middle(|round| round.per_second), middle(|round| round.server_cpu));
    let (postgres, each) = (middle(|round| round.postgres_cpu), middle(|round| round.postgres_ms));
    let questions = middle(|round| round.questions);
    report.note(
        name,
        format!(
            "{} deliveries/s, {} CPU s per million; PostgreSQL {} CPU s per million, {} ms a status; {} questions a status",
            number(per_second, ""),
            number(server, ""),
            number(postgres, ""),
            number(each, ""),
            number(questions, ""),
        ),
        &[
            ("deliveries_per_second", per_second),
            ("server_cpu_seconds_per_million_deliveries", server),
            ("postgresql_cpu_seconds_per_million_deliveries", postgres),
            ("postgresql_cpu_ms_per_status", each),
            ("questions_per_status", questions),
        ],
    );
}

/// 20 statuses a second for a minute, and a `user` stream beside them: nothing is lost on either, and how long
/// deliveries took.
fn paced(world: &World, mut crowd: Crowd, author: u64, viewer: &Viewer) {
    const COUNT: u64 = 1200;
    const QUIET: u64 = 300;
    let deadline = Instant::now() + Duration::from_secs(180);
    let mut client = Client::connect(world.server.address(), &viewer.token, None);
    client.arrivals = Some(Vec::new());
    let mut own = Crowd::new();
    own.join(client, deadline);
    own.until("the user stream is open", |client| client.has_head);
    let reader = std::thread::spawn(move || {
        own.until("the user stream has got everything", |client| client.next == QUIET + COUNT);
        own.clients.remove(0).arrivals.unwrap()
    });
    let mut redis = world.redis.client();
    let mut sent = Vec::new();
    let mut to_user = |redis: &mut support::redis::Client, number: u64| {
        let home = format!(r#"{{"id":"{}"}}"#, BASE + number);
        sent.push(Instant::now());
        redis.publish(&viewer.home(), &posts::text_message("update", &home));
    };
    for number in 0..QUIET {
        to_user(&mut redis, number);
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let queries = || world.server.metric("tidegate_audience_queries_total", &[]).unwrap_or_default();
    let database = postgres::shared().unwrap().service.pid();
    let (asked, cpu, began) = (queries(), family_cpu_seconds(database), Instant::now());
    for number in 0..COUNT {
        let status = posts::status(BASE + number, author);
        redis.publish("timeline:public:local", &posts::message("update", &status));
        to_user(&mut redis, QUIET + number);
        while began.elapsed() < Duration::from_millis(50) * (number as u32 + 1) {
            crowd.turn(deadline);
        }
    }
    crowd.until("all have got everything", |client| client.next == COUNT);
    let took = began.elapsed().as_secs_f64();
    let (asked, cpu) = (queries() - asked, family_cpu_seconds(database) - cpu);
    let arrivals = reader.join().unwrap();
    let latency_us = |range: std::ops::Range<usize>| {
        let mut all: Vec<u32> =
            range.map(|number| (arrivals[number] - sent[number]).as_micros() as u32).collect();
        all.sort_unstable();
        (quantile(&all, 0.5), quantile(&all, 0.99))
    };
    let (quiet_p50, quiet_p99) = latency_us(0..QUIET as usize);
    let (p50, p99) = latency_us(QUIET as usize..(QUIET + COUNT) as usize);
    let answer = world.server.request("GET", "/status", &[("Accept", "application/json")]);
    let status: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    let inside = |name: &str| status["latency"][name].as_f64().unwrap_or(f64::NAN);
    let mut report = Report::new("audience-paced");
    report.note(
        &format!("{COUNT} statuses to {} viewers, each in order and once", crowd.clients.len()),
        format!(
            "in {took:.0} s; {} questions a status; PostgreSQL {} CPU ms a status",
            number(asked / COUNT as f64, ""),
            number(cpu * 1e3 / COUNT as f64, "")
        ),
        &[
            ("seconds", took),
            ("questions_per_status", asked / COUNT as f64),
            ("postgresql_cpu_ms_per_status", cpu * 1e3 / COUNT as f64),
        ],
    );
    report.note(
        "latency of all, from the read on Redis's connection to the last byte taken by the kernel",
        format!("p50 {:.0} µs, p99 {:.0} µs", inside("p50_us"), inside("p99_us")),
        &[("p50_us", inside("p50_us")), ("p99_us", inside("p99_us"))],
    );
    report.note(
        "latency of the `user` stream beside it, from the publisher to its reader",
        format!("p50 {p50} µs, p99 {p99} µs; before, quiet: p50 {quiet_p50} µs, p99 {quiet_p99} µs"),
        &[("p50_us", p50), ("p99_us", p99), ("quiet_p50_us", quiet_p50), ("quiet_p99_us", quiet_p99)],
    );
    report.print();
}

fn total(crowd: &Crowd) -> u64 {
    crowd.clients.iter().map(|client| client.got).sum()
}
