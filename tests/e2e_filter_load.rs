//! Public streams under load: bursts of statuses, custom filters that cost much work, and results of filters that
//! nobody reads. What one account's filters cost is its own matter, and what is held stays bounded.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use support::http::Connection;
use support::machine::{ours_alone, wait_until};
use support::posts::{message, status, text_message};
use support::redis::encode;
use support::world::fresh_id;
use support::ws::upgrade;
use support::{Sse, World};

const PATIENCE: Duration = Duration::from_secs(120);

const PUBLIC: &str = "timeline:public";

/// One at a time: each of them wants the whole machine.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Publishes all of it in one go.
fn publish_at_once(world: &World, messages: &[(&str, String)]) {
    let mut redis = world.redis.client();
    let commands: Vec<u8> =
        messages.iter().flat_map(|(channel, message)| encode(&["PUBLISH", channel, message])).collect();
    let sender = std::thread::spawn({
        let mut redis = world.redis.client();
        let count = messages.len();
        move || {
            redis.send(&commands);
            for _ in 0..count {
                redis.reply().unwrap();
            }
        }
    });
    sender.join().expect("everything was published");
    assert_eq!(redis.command(&["PING"]).text(), "PONG");
}

/// The ids of the statuses that come before a deletion of `end`.
fn ids_until(sse: &mut Sse, end: &str) -> Vec<u64> {
    let mut ids = Vec::new();
    loop {
        let event = sse.next();
        if event.name == "delete" {
            assert_eq!(event.data, end);
            return ids;
        }
        let payload: serde_json::Value = serde_json::from_str(&event.data).unwrap();
        ids.push(payload["id"].as_str().unwrap().parse().unwrap());
    }
}

fn withheld(world: &World, reason: &str) -> f64 {
    world.server.metric("tidegate_messages_filtered_total", &[("reason", reason)]).unwrap_or_default()
}

/// More than the budget holds, at once, to one reader who reads as fast as it can, while PostgreSQL answers.
#[test]
fn a_burst_of_public_statuses_arrives_whole_and_in_order() {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let author = world.account();
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/public", &viewer.token);
    world.redis.until_subscribed(&[PUBLIC]);
    let first = fresh_id();
    let mut messages: Vec<(&str, String)> = (0..400)
        .map(|n| {
            let mut status = status(first + n, author);
            status["content"] = "x".repeat(60_000).into();
            (PUBLIC, message("update", &status))
        })
        .collect();
    messages.push((PUBLIC, text_message("delete", "end")));
    let reader = std::thread::spawn(move || ids_until(&mut sse, "end"));
    publish_at_once(&world, &messages);
    let ids = reader.join().expect("the reader read to the end");
    assert_eq!(ids.len(), 400, "{} of 400 arrived", ids.len());
    assert!(ids.iter().copied().eq(first..first + 400));
    assert_eq!(withheld(&world, "audience_overflow") + withheld(&world, "audience_timeout"), 0.0);
    world.assert_conserved();
}

/// Forty accounts whose keywords nearly all seem to occur in every status, and one with a filter like other people's.
#[test]
fn expensive_filters_cost_their_owners_and_nobody_else() {
    const EXPENSIVE: u64 = 40;
    const STATUSES: u64 = 60;
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let Some(world) = World::start() else { return };
    let innocent = world.viewer("read");
    let accounts = world.accounts(EXPENSIVE);
    let before = accounts.before;
    // Their runs of four bytes occur in the text, they do not.
    world.db.run(&format!(
        "INSERT INTO custom_filters (id, account_id, phrase, context)
           SELECT {before} + n, {before} + n, 'much', '{{public}}' FROM generate_series(1, {EXPENSIVE}) n;
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword, whole_word)
           SELECT {before} + n, 'seven ' || k || ' waves', false
           FROM generate_series(1, {EXPENSIVE}) n, generate_series(1, 5000) k;
         INSERT INTO custom_filters (id, account_id, phrase, context) VALUES (1, {}, 'mine', '{{public}}');
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword) VALUES (1, 'seagull')",
        innocent.account
    ));
    let open = |token: &str, path: &str| Sse::open(&world.server, path, token);
    let mut crowd: Vec<Sse> =
        (1..=EXPENSIVE).map(|n| open(&accounts.token(n), "/api/v1/streaming/public")).collect();
    let paths = ["public", "public/local", "public?only_media=1", "public/local?only_media=1"];
    let channels = [PUBLIC, "timeline:public:local", "timeline:public:media", "timeline:public:local:media"];
    let mut others: Vec<Sse> = paths[1..]
        .iter()
        .flat_map(|path| {
            let path = format!("/api/v1/streaming/{path}");
            (1..=EXPENSIVE).map(|n| (accounts.token(n), path.clone())).collect::<Vec<_>>()
        })
        .map(|(token, path)| open(&token, &path))
        .collect();
    let mut sse = open(&innocent.token, "/api/v1/streaming/public");
    world.redis.until_subscribed(&channels);
    let author = world.account();
    let first = fresh_id();
    let mut redis = world.redis.client();
    let began = Instant::now();
    for n in 0..STATUSES {
        let mut status = status(first + n, author);
        let text = format!("<p>seven waves at {n}: {} a seagull</p>", "the sea rolls and ".repeat(300));
        status["content"] = text.into();
        status["media_attachments"] = serde_json::json!([{"id": "1", "type": "image", "description": null}]);
        for channel in channels {
            redis.publish(channel, &message("update", &status));
        }
        let due = Duration::from_millis(100) * (n as u32 + 1);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    redis.publish(PUBLIC, &text_message("delete", "end"));
    let published = Instant::now();
    let ids = ids_until(&mut sse, "end");
    let late = published.elapsed();
    assert_eq!(ids.len() as u64, STATUSES, "{} of {STATUSES} arrived, the last {late:?} late", ids.len());
    assert!(late < Duration::from_secs(3), "the last came {late:?} late");
    assert!(withheld(&world, "filter_work") > 0.0, "the expensive ones are withheld from their owners");
    assert_eq!(withheld(&world, "audience_timeout") + withheld(&world, "audience_overflow"), 0.0);
    let log = world.server.output();
    assert!(log.contains("custom filters of account"), "{log}");
    assert!(!log.contains("PostgreSQL has not said"), "{log}");
    drop((crowd.drain(..), others.drain(..)));
}

/// Accounts whose filters say much about every status, on connections that nobody reads.
#[test]
fn filter_results_that_nobody_reads_stay_within_the_budget() {
    const ACCOUNTS: u64 = 20;
    const BUDGET: f64 = (4 << 20) as f64;
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let settings = [("BACKPRESSURE_HIGH_BYTES", "4194304"), ("SLOW_CLIENT_GRACE", "4")];
    let Some(world) = World::with(&settings) else { return };
    let accounts = world.accounts(ACCOUNTS);
    let before = accounts.before;
    world.db.run(&format!(
        "INSERT INTO custom_filters (id, account_id, phrase, context)
           SELECT {before} + n * 1000 + f, {before} + n, repeat('t', 400), '{{public}}'
           FROM generate_series(1, {ACCOUNTS}) n, generate_series(1, 300) f;
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword, whole_word)
           SELECT {before} + n * 1000 + f, 'e', false
           FROM generate_series(1, {ACCOUNTS}) n, generate_series(1, 300) f"
    ));
    let mut unread: Vec<Connection> = Vec::new();
    for n in 1..=ACCOUNTS {
        let mut connection = Connection::narrow(world.server.address());
        let bearer = format!("Bearer {}", accounts.token(n));
        connection.send(upgrade("/api/v1/streaming?stream=public", &[("Authorization", &bearer)]).as_bytes());
        unread.push(connection);
    }
    wait_until("all are connected", PATIENCE, || {
        world.server.metric("connected_clients", &[("type", "websocket")]) == Some(ACCOUNTS as f64)
    });
    let author = world.account();
    let messages: Vec<(&str, String)> = (0..400)
        .map(|_| {
            let small = serde_json::json!({
                "id": fresh_id().to_string(), "content": "the sea", "mentions": [], "language": "en",
                "account": {"id": author.to_string(), "username": "alice", "acct": "alice"},
            });
            (PUBLIC, message("update", &small))
        })
        .collect();
    publish_at_once(&world, &messages);
    let (began, mut most): (Instant, f64) = (Instant::now(), 0.0);
    while began.elapsed() < Duration::from_secs(6) {
        most = most.max(world.server.metric("tidegate_backlog_bytes", &[]).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(most <= 2.0 * BUDGET, "{:.1} MiB of a budget of {:.1}", most / 1048576.0, BUDGET / 1048576.0);
    drop(unread);
}

/// PostgreSQL is away for longer than `AUDIENCE_TIMEOUT`, and more public statuses come than the budget holds: they are
/// withheld, and home timelines go on as before.
#[test]
fn a_dead_database_never_stops_home_timelines() {
    if !ours_alone() {
        return;
    }
    let _alone = alone();
    let settings = [("BACKPRESSURE_HIGH_BYTES", "1048576"), ("AUDIENCE_TIMEOUT", "2")];
    let Some(world) = World::with_own_database(&settings) else { return };
    let viewer = world.viewer("read");
    let author = world.account();
    let mut public = Sse::open(&world.server, "/api/v1/streaming/public", &viewer.token);
    let mut home = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    world.redis.until_subscribed(&[PUBLIC.to_owned(), viewer.home()]);
    let name = world.db.name.clone();
    let admin = support::postgres::shared().unwrap().open("postgres");
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"));
    admin.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", &[&name]);
    let post = || {
        let mut status = status(fresh_id(), author);
        status["content"] = "x".repeat(10_000).into();
        message("update", &status)
    };
    world.publish(PUBLIC, &post());
    world.server.until_output("AUDIENCE_TIMEOUT");
    // Five times the budget, and a home timeline's message behind each hundred statuses.
    let paused = || world.server.metric("tidegate_gate_paused_seconds_total", &[]).unwrap();
    let before = paused();
    for round in 0..5 {
        let marker = round.to_string();
        let mut messages: Vec<(&str, String)> = (0..100).map(|_| (PUBLIC, post())).collect();
        let channel = viewer.home();
        messages.push((&channel, text_message("delete", &marker)));
        publish_at_once(&world, &messages);
        let published = Instant::now();
        home.expect("delete", &marker);
        let late = published.elapsed();
        assert!(late < Duration::from_secs(2), "round {round}: {late:?} late");
    }
    assert!(paused() - before < 1.0, "reading paused for {} s", paused() - before);
    assert!(withheld(&world, "audience_timeout") >= 300.0);
    assert_eq!(withheld(&world, "audience_overflow"), 0.0);
    admin.run(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true"));
    wait_until("statuses are decided again", PATIENCE, || {
        let marker = fresh_id().to_string();
        world.publish(PUBLIC, &post());
        world.publish(PUBLIC, &text_message("delete", &marker));
        !ids_until_any(&mut public, &marker).is_empty()
    });
}

/// As [`ids_until`], past deletions of others.
fn ids_until_any(sse: &mut Sse, end: &str) -> Vec<u64> {
    let mut ids = Vec::new();
    loop {
        let event = sse.next();
        if event.data == end {
            return ids;
        }
        if let Ok(payload) = serde_json::from_str::<serde_json::Value>(&event.data)
            && let Some(id) = payload["id"].as_str()
        {
            ids.push(id.parse().unwrap());
        }
    }
}
