//! From which message on a client is owed. The tests know it without the server's word: from the response head, or
//! from Redis's report of the subscriber. Each message is published once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::time::Duration;

use serde_json::json;
use support::numbers::{gapless_until, numbered};
use support::posts::{message, status, text_message, with_filtered};
use support::proxy::Proxy;
use support::{World, Ws, ours_alone, postgres, streams};

const LOCAL: &str = "timeline:public:local";

/// Nothing is waited for between Redis's report and the message.
#[test]
fn what_redis_hands_to_a_new_subscriber_arrives() {
    let Some(world) = World::start() else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    let [token, system] = viewer.system_channels();
    for _ in 0..5 {
        for stream in streams::all(&viewer) {
            let mut request = stream.request.clone();
            request["type"] = json!("subscribe");
            ws.send_json(&request);
            world.redis.until_subscribed(&stream.channels);
            for channel in &stream.channels {
                for n in ["1", "2", "3"] {
                    assert_eq!(world.publish(channel, &text_message("delete", n)), 1);
                    ws.expect_event(&stream.label, "delete", n);
                }
            }
            request["type"] = json!("unsubscribe");
            ws.send_json(&request);
            world.redis.until_channels(&[&token, &system]);
        }
    }
    drop(ws);
    world.until_empty();
    world.assert_conserved();
}

/// Redis has confirmed the channels, and the server waits for their presence keys.
#[test]
fn what_comes_between_the_confirmation_and_the_presence_keys_arrives() {
    if !ours_alone() {
        return;
    }
    let mut proxy = None;
    let world = World::custom(&[], &[], |redis, env| {
        let router = Proxy::to_port(redis.port);
        let (there, here) = (format!(":{}/", redis.port), format!(":{}/", router.address().port()));
        env.insert("REDIS_URL".into(), env["REDIS_URL"].replace(&there, &here));
        proxy = Some(router);
    });
    let (Some(world), Some(router)) = (world, proxy) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/", &viewer.token);
    // What is sent on the command connection reaches nobody, until the server gives it up and sets the keys on another.
    let port = world.redis.command_port();
    assert_eq!(router.forget(|each| each == port), 1);
    ws.send_json(&json!({"type": "subscribe", "stream": "user"}));
    world.redis.until_subscribed(&viewer.user_channels());
    for n in 0..10 {
        world.publish(&viewer.user_channels()[n as usize % 2], &numbered(n));
    }
    gapless_until(&mut ws, 0, 9);
    assert_eq!(world.redis.ttl(&format!("subscribed:{}", viewer.home())), -2, "no key is set yet");
    ws.patience(Duration::from_secs(60));
    ws.until_answered();
    assert!(world.redis.ttl(&format!("subscribed:{}", viewer.home())) > 0);
    world.publish(&viewer.home(), &numbered(10));
    gapless_until(&mut ws, 10, 10);
    world.assert_conserved();
}

/// A status and what stands behind it wait for PostgreSQL while others come.
#[test]
fn what_was_read_before_a_client_came_is_not_its_own() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with_own_database(&[]) else { return };
    let (viewer, author) = (world.viewer("read"), world.account());
    let label = json!(["public:local"]);
    let mut first = Ws::open(&world.server, "/?stream=public:local", &viewer.token);
    let holder = postgres::shared().unwrap().open(&world.db.name);
    holder.run("BEGIN; LOCK TABLE blocks IN ACCESS EXCLUSIVE MODE");
    let post = status(1, author);
    world.publish(LOCAL, &message("update", &post));
    world.publish(LOCAL, &text_message("delete", "1"));
    world.server.until_metric("tidegate_audience_waiting_messages", &[], 2.0);
    // Of the same account, so that its settings would let it see all of that.
    let mut second = Ws::open(&world.server, "/?stream=public:local", &viewer.token);
    let mut third = Ws::open(&world.server, "/", &viewer.token);
    third.send_json(&json!({"type": "subscribe", "stream": "public:local"}));
    third.until_answered();
    holder.run("COMMIT");
    first.expect_event(&label, "update", &with_filtered(&post, "[]"));
    first.expect_event(&label, "delete", "1");
    world.publish(LOCAL, &text_message("delete", "2"));
    for ws in [&mut first, &mut second, &mut third] {
        ws.expect_event(&label, "delete", "2");
    }
    world.assert_conserved();
}
