//! The way in, against a real redis-server of each test's own: subscriptions, presence keys, order, pauses,
//! and every way in which Redis can be away.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/redis.rs"]
mod redis;
mod standin;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{PATIENCE, left_out, signal, wait_for, wait_until};
use redis::{Redis, Reply, encode};
use tidegate::config::Secret;
use tidegate::core::handover::{Command, Delivery, HoldError, StageItem};
use tidegate::core::stream::{Channel, Origin};
use tidegate::limits::Limits;
use tidegate::redis::Address;
use tidegate::redis::headroom::Held;
use world::{World, message, plan};

/// A server, or none with a word about it.
fn redis(settings: &[&str]) -> Option<Redis> {
    let redis = Redis::start_on(None, settings);
    if redis.is_none() {
        left_out("redis-server is not installed");
    }
    redis
}

const HOME: Channel = Channel::Account(1);
const TOKEN: Channel = Channel::AccessToken(1);
const PUBLIC: Channel = Channel::Public { origin: Origin::Any, media: false };

/// Numbers of our connections at the server, the subscriber's first.
fn our_subscriber(redis: &Redis) -> String {
    wait_for("we are among the subscribers", PATIENCE, || {
        let list = redis.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).text();
        let line = list.lines().find(|line| line.contains(" name=tidegate "))?;
        Some(line.split(' ').next()?.strip_prefix("id=")?.to_owned())
    })
}

#[test]
fn messages_of_any_size_come_through_and_one_too_long_is_told() {
    let Some(redis) = redis(&[]) else { return };
    let mut world = World::start(plan(&redis));
    let mut seq = world.client(&[TOKEN, HOME]);
    for size in [10, 8100, 8192, 16 << 10, 1 << 20, 1, (2 << 20) - 100] {
        let text = "x".repeat(size);
        assert_eq!(redis.publish("timeline:1", &message(&text)), 1);
        let event = world.event();
        seq += 1;
        assert_eq!(event.channel(), &HOME);
        assert_eq!((event.position().epoch, event.position().seq), (1, seq));
        assert_eq!(event.payload(), format!("\"{text}\"").as_bytes());
    }
    redis.publish("timeline:1", &"x".repeat((2 << 20) + 1));
    redis.publish("timeline:1", &message("after"));
    assert!(matches!(world.inbox.next(), Delivery::ChannelGap(HOME)));
    assert_eq!(world.event().payload(), b"\"after\"");
}

#[test]
fn presence_keys_are_set_once_for_18_minutes_and_not_for_system_channels() {
    let Some(redis) = redis(&[]) else { return };
    let mut world = World::start(plan(&redis));
    world.client(&[TOKEN, Channel::System(1), HOME, Channel::Notifications(1)]);
    for key in ["subscribed:timeline:1", "subscribed:timeline:1:notifications"] {
        assert!((1070..=1080).contains(&redis.ttl(key)), "{key} lives for {} s", redis.ttl(key));
    }
    assert_eq!(redis.command(&["DBSIZE"]).integer(), 2);
    let before = redis.command(&["INFO", "commandstats"]).text();
    // One that changes nothing has asked whether keys can be set.
    assert!(before.contains("cmdstat_set:calls=3,"), "{before}");
    world.client(&[HOME]);
    let after = redis.command(&["INFO", "commandstats"]).text();
    assert!(after.contains("cmdstat_set:calls=3,"), "{after}");
}

#[test]
fn presence_keys_are_set_again_and_again_while_the_channel_is_held() {
    let Some(redis) = redis(&[]) else { return };
    let mut plan = plan(&redis);
    plan.limits.presence_refresh = Duration::from_millis(600);
    let mut world = World::start(plan);
    world.client(&[HOME]);
    for _ in 0..3 {
        redis.command(&["DEL", "subscribed:timeline:1"]);
        wait_until("the key is back", PATIENCE, || redis.ttl("subscribed:timeline:1") >= 0);
    }
    world.release(&[HOME]);
    redis.until_channels(&[]);
    redis.command(&["DEL", "subscribed:timeline:1"]);
    // A refresh of all that is held has passed when another channel's key was set again.
    world.client(&[Channel::Account(2)]);
    for _ in 0..2 {
        redis.command(&["DEL", "subscribed:timeline:2"]);
        wait_until("the other key is back", PATIENCE, || redis.ttl("subscribed:timeline:2") >= 0);
    }
    assert_eq!(redis.ttl("subscribed:timeline:1"), -2);
}

#[test]
fn a_namespace_stands_before_channels_and_keys() {
    let Some(redis) = redis(&[]) else { return };
    let mut plan = plan(&redis);
    plan.options.namespace = Some("masto".into());
    plan.options.db = 3;
    let mut world = World::start(plan);
    world.client(&[HOME]);
    assert_eq!(redis.channels(), ["masto:timeline:1"]);
    redis.publish("masto:timeline:1", &message("hello"));
    assert_eq!(world.event().payload(), b"\"hello\"");
    redis.command(&["SELECT", "3"]);
    assert!(redis.ttl("masto:subscribed:timeline:1") > 0);
}

#[test]
fn a_unix_socket_does_as_well() {
    let folder = machine::Folder::new("redis-socket");
    let path = folder.path().join("redis.sock");
    let Some(redis) = redis(&["--unixsocket", path.to_str().unwrap()]) else { return };
    let mut plan = plan(&redis);
    plan.options.address = Address::Unix(path);
    let mut world = World::start(plan);
    world.client(&[HOME]);
    assert!(redis.ttl("subscribed:timeline:1") > 0);
    redis.publish("timeline:1", &message("hello"));
    assert_eq!(world.event().payload(), b"\"hello\"");
    redis.command(&["CLIENT", "KILL", "ID", &our_subscriber(&redis)]);
    world.expect_gap(2);
    world.expect_regained();
}

#[test]
fn whoever_leaves_leaves_nothing_behind() {
    let Some(redis) = redis(&[]) else { return };
    let mut world = World::start(plan(&redis));
    world.client(&[TOKEN, HOME, PUBLIC]);
    world.client(&[HOME, Channel::List(5)]);
    world.release(&[TOKEN, HOME, PUBLIC]);
    redis.until_channels(&["timeline:1", "timeline:list:5"]);
    let waiting = world.hold(&[Channel::Direct(9)]);
    world.commands.push(Command::Cancel(waiting));
    for n in 0..500 {
        let (ticket, _) = world.ask(&[HOME, Channel::Account(1000 + n), Channel::AccessToken(n + 1)]);
        world.commands.push(Command::Cancel(ticket));
    }
    world.release(&[HOME, Channel::List(5)]);
    redis.until_channels(&[]);
    wait_until("nothing is counted any more", PATIENCE, || {
        use std::sync::atomic::Ordering::Relaxed;
        world.stats.channels.load(Relaxed) == 0 && world.stats.tickets.load(Relaxed) == 0
    });
}

#[test]
fn the_first_message_is_the_first_after_the_attachment() {
    let Some(redis) = redis(&[]) else { return };
    let mut world = World::start(plan(&redis));
    world.client(&[Channel::Account(2)]);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let mut publisher = redis.client();
    let stats = Arc::clone(&world.stats);
    let flood = std::thread::spawn(move || {
        let (mut n, mut handed_over) = (0, 0);
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            let mut batch = Vec::new();
            for _ in 0..50 {
                n += 1;
                batch.extend(encode(&["PUBLISH", "timeline:1", &message(&n.to_string())]));
            }
            publisher.send(&batch);
            handed_over += (0..50).map(|_| publisher.reply().unwrap().integer()).sum::<i64>() as u64;
            // A machine whose other tests leave the ingest little time must not look like a lost connection.
            wait_until("the ingest keeps up", PATIENCE, || {
                handed_over < stats.messages.load(std::sync::atomic::Ordering::Relaxed) + 10_000
            });
        }
    });
    for _ in 0..50 {
        let ticket = world.hold(&[HOME]);
        world.attach(ticket, 7);
        let attached = match world.inbox.next() {
            Delivery::Client(_, seq) => seq,
            other => panic!("expected the client, got {other:?}"),
        };
        let mut number = None;
        for seq in attached + 1..=attached + 120 {
            let event = world.event();
            assert_eq!(event.position().seq, seq);
            let text: String = serde_json::from_slice(event.payload()).unwrap();
            let n: u64 = text.parse().unwrap();
            assert_eq!(n, number.map_or(n, |number| number + 1), "no hole, no repetition");
            number = Some(n);
        }
        world.release(&[HOME]);
        // What was read before the release is still there.
        wait_until("the rest has passed", PATIENCE, || {
            world.inbox.mailbox.drain(&mut Vec::new());
            world.inbox.taken.clear();
            world.stats.channels.load(std::sync::atomic::Ordering::Relaxed) == 1
        });
        let marker = world.hold(&[Channel::Account(2)]);
        world.attach(marker, 8);
        while !matches!(world.inbox.next(), Delivery::Client(client, _) if client.socket == 8) {}
        world.release(&[Channel::Account(2)]);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().unwrap();
}

#[test]
fn a_kill_refuses_who_is_not_attached_yet_and_reaches_who_is() {
    let Some(redis) = redis(&[]) else { return };
    let mut world = World::start(plan(&redis));
    let early = world.hold(&[TOKEN, HOME]);
    redis.publish("timeline:access_token:1", r#"{"event":"kill"}"#);
    wait_until("the kill is read", PATIENCE, || {
        world.stats.kills.load(std::sync::atomic::Ordering::Relaxed) == 1
    });
    let refusal = world.attach(early, 1);
    assert_eq!(refusal.recv_timeout(PATIENCE), Ok(HoldError::Killed));
    redis.until_channels(&[]);

    world.client(&[TOKEN, HOME]);
    redis.publish("timeline:access_token:1", r#"{"event":"kill"}"#);
    assert!(matches!(world.inbox.next(), Delivery::Kill(TOKEN)));
}

#[test]
fn what_filtered_channels_carry_goes_through_the_stage_in_order() {
    let Some(redis) = redis(&[]) else { return };
    let mut plan = plan(&redis);
    plan.stage = true;
    let mut world = World::start(plan);
    world.client(&[TOKEN, Channel::System(1), PUBLIC, HOME]);
    redis.publish("timeline:public", r#"{"event":"delete","payload":"1"}"#);
    redis.publish("timeline:system:1", r#"{"event":"filters_changed"}"#);
    redis.publish("timeline:public", r#"{"event":"delete","payload":"2"}"#);
    redis.publish("timeline:1", &message("home"));
    assert_eq!(world.event().payload(), b"\"home\"", "only this goes to the reactor directly");
    world.release(&[PUBLIC]);
    let stage = world.stage.as_mut().unwrap();
    assert!(matches!(stage.next(), StageItem::Join(PUBLIC, 1)));
    assert!(matches!(stage.next(), StageItem::Event(event, 1) if event.payload() == b"\"1\""));
    assert!(matches!(stage.next(), StageItem::FiltersChanged(1)));
    assert!(matches!(stage.next(), StageItem::Event(event, 1) if event.payload() == b"\"2\""));
    assert!(matches!(stage.next(), StageItem::Leave(PUBLIC, 1)));
}

#[test]
fn a_killed_connection_is_a_gap_and_everything_comes_back() {
    let Some(redis) = redis(&[]) else { return };
    let mut world = World::start(plan(&redis));
    world.client(&[TOKEN, HOME]);
    let ticket = world.hold(&[Channel::Account(2)]);
    for epoch in 2..5 {
        redis.command(&["DEL", "subscribed:timeline:1"]);
        redis.command(&["CLIENT", "KILL", "ID", &our_subscriber(&redis)]);
        world.expect_gap(epoch);
        world.expect_regained();
        assert_eq!(redis.channels(), ["timeline:1", "timeline:access_token:1"]);
        assert!(redis.ttl("subscribed:timeline:1") > 0, "keys are set before newcomers get in");
    }
    let refusal = world.attach(ticket, 1);
    assert_eq!(refusal.recv_timeout(PATIENCE), Ok(HoldError::RedisAway));
    let seq = world.client(&[HOME]);
    redis.publish("timeline:1", &message("again"));
    let position = world.event().position();
    assert_eq!((position.epoch, position.seq), (4, seq + 1));
}

#[test]
fn a_restart_without_persistence_loses_nothing_for_good() {
    let Some(first) = redis(&[]) else { return };
    let port = first.port;
    let mut world = World::start(plan(&first));
    world.client(&[TOKEN, HOME]);
    drop(first);
    world.expect_gap(2);
    assert_eq!(world.try_hold(&[HOME]), Err(HoldError::RedisAway));
    wait_until("the reason is known", PATIENCE, || {
        world.stats.last_error.read().is_some_and(|error| error.contains("cannot be reached"))
    });
    let second = Redis::start_on(Some(port), &[]).unwrap();
    world.expect_regained();
    assert_eq!(second.channels(), ["timeline:1", "timeline:access_token:1"]);
    assert!(second.ttl("subscribed:timeline:1") > 0);
}

#[test]
fn a_link_that_says_nothing_is_noticed() {
    let Some(redis) = redis(&[]) else { return };
    let mut plan = plan(&redis);
    plan.limits.redis_ping = Duration::from_millis(200);
    let mut world = World::start(plan);
    world.client(&[HOME]);
    // Quiet, but alive: several PINGs are answered.
    wait_until("some PINGs are answered", PATIENCE, || {
        let stats = redis.command(&["INFO", "commandstats"]).text();
        stats
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_ping:calls=")?.split(',').next()?.parse().ok())
            >= Some(3)
    });
    let pid = redis.service.pid();
    signal(pid, "STOP");
    world.expect_gap(2);
    // The reactors are told first.
    wait_until("the reason is noted", PATIENCE, || {
        world.stats.last_error.read().is_some_and(|error| error.contains("has not answered"))
    });
    signal(pid, "CONT");
    world.expect_regained();
}

#[test]
fn a_pause_loses_nothing_and_is_not_taken_for_a_dead_link() {
    let Some(redis) = redis(&[]) else { return };
    let mut plan = plan(&redis);
    plan.budget = 1 << 20;
    plan.limits.redis_ping = Duration::from_millis(100);
    let mut world = World::start(plan);
    let seq = world.client(&[HOME]);
    let text = "x".repeat(10_000);
    let count = 1500;
    let mut publisher = redis.client();
    for hundred in 0..count / 100 {
        // No two alike: copies on their way would be held once.
        let batch: Vec<u8> = (0..100)
            .flat_map(|n| encode(&["PUBLISH", "timeline:1", &message(&format!("{hundred} {n} {text}"))]))
            .collect();
        publisher.send(&batch);
        (0..100).for_each(|_| drop(publisher.reply()));
    }
    wait_until("the gate is closed", PATIENCE, || world.gate.is_closed());
    assert!(world.gate.held_bytes() <= (1 << 20) + 20_000, "{} bytes are held", world.gate.held_bytes());
    wait_until(
        "Redis tells what it holds for us",
        PATIENCE,
        || matches!(world.headroom.read().held, Held::Bytes(bytes) if bytes > 1 << 20),
    );
    assert_eq!(world.headroom.read().limits.hard_bytes, 32 << 20);
    wait_until("the pause is longer than any patience", PATIENCE, || {
        world.stats.paused_total(world.clock.now()) > Duration::from_millis(500)
    });
    for n in 1..=count {
        assert_eq!(world.event().position().seq, seq + n, "and in the first epoch");
    }
    assert_eq!(world.stats.epoch.load(std::sync::atomic::Ordering::Relaxed), 1);
    wait_until("the gate is open", PATIENCE, || !world.gate.is_closed() && world.gate.held_bytes() == 0);
}

#[test]
fn a_wrong_password_is_told_without_it_and_tried_again() {
    let Some(redis) = redis(&[]) else { return };
    redis.command(&["CONFIG", "SET", "requirepass", "geheim"]);
    let mut plan = plan(&redis);
    plan.options.password = Some(Secret::new("hunter2"));
    let world = World::start(plan);
    let error = wait_for("the error is known", PATIENCE, || world.stats.last_error.read());
    assert!(error.contains("REDIS_PASSWORD") && !error.contains("hunter2"), "{error}");
    assert_eq!(world.try_hold(&[HOME]), Err(HoldError::RedisAway));
    redis.command(&["CONFIG", "SET", "requirepass", "hunter2"]);
    world.hold(&[HOME]);
}

#[test]
fn what_an_acl_denies_is_refused_to_those_who_want_it_alone() {
    let Some(redis) = redis(&[]) else { return };
    redis.command(&[
        "ACL",
        "SETUSER",
        "streaming",
        "on",
        ">hunter2",
        "resetchannels",
        "&timeline:1",
        "&timeline:access_token:*",
        "~subscribed:*",
        "+subscribe",
        "+unsubscribe",
        "+ping",
        "+set",
    ]);
    let mut plan = plan(&redis);
    plan.options.username = Some("streaming".into());
    plan.options.password = Some(Secret::new("hunter2"));
    let mut world = World::start(plan);
    world.client(&[TOKEN, HOME]);
    let (_, allowed) = world.ask(&[Channel::AccessToken(2), HOME]);
    let (_, denied) = world.ask(&[Channel::AccessToken(3), Channel::Account(2)]);
    assert_eq!(denied.recv_timeout(PATIENCE), Ok(Err(HoldError::Refused)));
    assert_eq!(allowed.recv_timeout(PATIENCE), Ok(Ok(())));
    // It may not ask for its headroom either.
    assert_eq!(world.stats.epoch.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn newcomers_are_refused_at_once_while_keys_cannot_be_set() {
    let Some(redis) = redis(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]) else { return };
    let world = World::start(plan(&redis));
    wait_until("Redis is connected", PATIENCE, || world.try_hold(&[TOKEN]).is_ok());
    // The first one may come before the refusal is known; it is told as soon as it is.
    assert_eq!(world.try_hold(&[HOME]), Err(HoldError::PresenceRefused));
    let error = wait_for("the error is known", PATIENCE, || world.presence_stats.last_error.read());
    assert!(error.contains("maxmemory"), "{error}");
    for _ in 0..20 {
        assert_eq!(world.try_hold(&[HOME]), Err(HoldError::PresenceRefused));
    }
    assert!(world.try_hold(&[TOKEN]).is_ok(), "a kill needs no key");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    wait_until("newcomers are let in", PATIENCE, || world.try_hold(&[HOME]).is_ok());
}

#[test]
fn fifty_thousand_channels_are_back_within_a_second() {
    let Some(redis) = redis(&[]) else { return };
    let mut world = World::start(plan(&redis));
    world.hold(&[TOKEN]);
    let count = 50_000;
    let begun = Instant::now();
    let tickets: Vec<_> = (1..=count).map(|n| world.ask(&[Channel::Account(n)])).collect();
    for (ticket, answer) in tickets {
        assert_eq!(answer.recv_timeout(PATIENCE), Ok(Ok(())));
        world.attach(ticket, 7);
        assert!(matches!(world.inbox.next(), Delivery::Client(..)));
    }
    let held = begun.elapsed();
    assert_eq!(redis.command(&["PUBSUB", "NUMSUB", &format!("timeline:{count}")]), {
        Reply::Array(vec![Reply::Bulk(Some(format!("timeline:{count}").into())), Reply::Integer(1)])
    });
    redis.command(&["FLUSHALL"]);
    redis.command(&["CLIENT", "KILL", "ID", &our_subscriber(&redis)]);
    world.expect_gap(2);
    let begun = Instant::now();
    world.expect_regained();
    let took = begun.elapsed();
    println!("{count} channels: held one by one in {held:?}, back in {took:?}");
    assert_eq!(redis.command(&["DBSIZE"]).integer(), count as i64);
    // The bound is for the released program.
    assert!(cfg!(debug_assertions) || took < Duration::from_secs(1), "{took:?}");
}
