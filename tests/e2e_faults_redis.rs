//! Each way in which Redis can be lost, and bad weather on the way to it. Messages are numbered while it happens:
//! who stays connected gets every one, in order and once; who may have missed something is told so and closed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use support::machine::{ours_alone, wait_until};
use support::numbers::{
    Publisher, gapless_until, gapless_until_close, gapless_until_end, numbered, numbered_long,
};
use support::proxy::{Proxy, Weather};
use support::redis::{Redis, encode};
use support::{Sse, Viewer, World, Ws};

const PATIENCE: Duration = Duration::from_secs(60);

/// How often a message is published while something happens.
const EVERY: Duration = Duration::from_millis(2);

const QUICK: [(&str, &str); 2] = [("GAP_CLOSE_SPREAD", "0.2"), ("REDIS_AWAY_CLOSE", "120")];

/// One account's clients, on both transports, each read by a thread, with a publisher of numbered messages.
struct Scene {
    viewer: Viewer,
    publisher: Publisher,
    websocket: JoinHandle<(u64, Option<u16>)>,
    stream: JoinHandle<(u64, String)>,
    before: u64,
}

impl Scene {
    fn start(world: &World) -> Scene {
        let viewer = world.viewer("read");
        let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
        let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
        for kind in ["websocket", "eventsource"] {
            world.server.until_metric("connected_clients", &[("type", kind)], 1.0);
        }
        ws.patience(PATIENCE);
        sse.connection.patience(PATIENCE);
        let sent = |kind| world.server.metric("messages_sent_total", &[("type", kind)]).expect("a count");
        let sent_before = ["websocket", "eventsource"].map(|kind| (kind, sent(kind)));
        let publisher = Publisher::start(world.redis.port, &viewer.home(), EVERY);
        let scene = Scene {
            viewer,
            websocket: std::thread::spawn(move || gapless_until_close(&mut ws, 0)),
            stream: std::thread::spawn(move || gapless_until_end(&mut sse, 0)),
            publisher,
            before: 30,
        };
        // What the kernel took is on its way to a client that reads.
        for (kind, before) in sent_before {
            let what = format!("messages flow by {kind}");
            wait_until(&what, PATIENCE, || sent(kind) >= before + scene.before as f64);
        }
        scene
    }

    /// Both are told of the gap, and got everything up to somewhere before it, what came before the fault at least.
    fn expect_gap(self, world: &World, cause: &str) -> Viewer {
        let (got, close) = self.websocket.join().expect("the WebSocket's messages have no gap");
        assert_eq!(close, Some(1012));
        let published = self.publisher.stop();
        assert!((self.before..=published).contains(&got), "{got} of {published}");
        let (got, comment) = self.stream.join().expect("the stream's messages have no gap");
        assert!((self.before..=published).contains(&got), "{got} of {published}");
        assert_eq!(comment, ":messages may have been missed");
        assert_eq!(world.server.metric("tidegate_gaps_total", &[("cause", cause)]), Some(1.0));
        let status = world.assert_conserved();
        assert_eq!(status["closes"]["gap"], json!(2), "{status}");
        self.viewer
    }
}

/// Newcomers get in, and everything that is published from then on.
fn all_is_well(world: &World, viewer: &Viewer) {
    wait_until("the server is ready", PATIENCE, || world.server.get("/ready").status() == 200);
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    assert!(world.redis.ttl(&format!("subscribed:{}", viewer.home())) > 0);
    for n in 0..50 {
        world.publish(&viewer.home(), &numbered(n));
    }
    gapless_until(&mut ws, 0, 49);
}

fn behind_a_proxy(variables: &[(&str, &str)]) -> Option<(World, Proxy)> {
    if !ours_alone() {
        return None;
    }
    let mut proxy = None;
    let all: Vec<_> = QUICK.iter().chain(variables).copied().collect();
    let world = World::custom(&[], &all, |redis, env| {
        let between = Proxy::to_port(redis.port);
        env.insert("REDIS_URL".into(), format!("redis://{}/0", between.address()));
        proxy = Some(between);
    })?;
    Some((world, proxy?))
}

#[test]
fn a_reset_connection_is_a_gap() {
    let Some((world, proxy)) = behind_a_proxy(&[]) else { return };
    let scene = Scene::start(&world);
    proxy.reset();
    let viewer = scene.expect_gap(&world, "connection_lost");
    all_is_well(&world, &viewer);
}

#[test]
fn a_killed_connection_is_a_gap() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&QUICK) else { return };
    let scene = Scene::start(&world);
    world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let viewer = scene.expect_gap(&world, "connection_lost");
    all_is_well(&world, &viewer);
}

/// Ends the world's Redis and starts another at the same port.
fn restart(world: &mut World, settings: &[&str], while_away: impl FnOnce(&World)) {
    let port = world.redis.port;
    // The test's own connection ends with the server's process.
    let _ = world.redis.client().try_command(&["SHUTDOWN", "NOSAVE"]);
    wait_until("redis-server has ended", PATIENCE, || world.redis.service.is_gone());
    while_away(world);
    world.redis = Redis::start_on(Some(port), settings).expect("redis-server starts again");
}

fn ask(world: &World, viewer: &Viewer) -> support::http::Head {
    let mut connection = world.server.connect();
    let headers = [("Authorization", &*viewer.bearer())];
    connection.send(support::http::request("GET", "/api/v1/streaming/user", &headers).as_bytes());
    connection.head()
}

#[test]
fn a_restart_without_persistence_is_a_gap_and_newcomers_are_told_when_to_come_back() {
    if !ours_alone() {
        return;
    }
    let Some(mut world) = World::with(&QUICK) else { return };
    let scene = Scene::start(&world);
    restart(&mut world, &[], |world| {
        wait_until("newcomers are sent away", PATIENCE, || {
            let refused = ask(world, &scene.viewer);
            refused.status == 503 && refused.header("Retry-After").is_some()
        });
    });
    let viewer = scene.expect_gap(&world, "connection_lost");
    all_is_well(&world, &viewer);
}

#[test]
fn a_password_changed_by_a_restart_is_named_and_it_heals_when_that_does() {
    if !ours_alone() {
        return;
    }
    let world = World::custom(&[], &QUICK, |redis, env| {
        env.insert("REDIS_URL".into(), format!("redis://127.0.0.1:{}/0", redis.port));
    });
    let Some(mut world) = world else { return };
    let scene = Scene::start(&world);
    let port = world.redis.port;
    let _ = world.redis.client().try_command(&["SHUTDOWN", "NOSAVE"]);
    wait_until("redis-server has ended", PATIENCE, || world.redis.service.is_gone());
    world.redis = Redis::start_on(Some(port), &[]).expect("redis-server starts again");
    world.redis.command(&["CONFIG", "SET", "requirepass", "changed"]);
    // Whoever was back before the password was set is let go once more.
    wait_until("the variable is named", PATIENCE, || {
        world.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        world.server.output().contains("REDIS_PASSWORD")
    });
    assert_eq!(ask(&world, &scene.viewer).status, 503);
    assert!(!world.server.output().contains("changed"));
    world.redis.command(&["CONFIG", "SET", "requirepass", ""]);
    let (_, close) = scene.websocket.join().expect("the WebSocket's messages have no gap");
    assert_eq!(close, Some(1012));
    assert_eq!(scene.stream.join().unwrap().1, ":messages may have been missed");
    scene.publisher.stop();
    world.assert_conserved();
    all_is_well(&world, &scene.viewer);
}

#[test]
fn a_redis_that_loads_its_data_is_waited_for() {
    if !ours_alone() {
        return;
    }
    let settings = ["--enable-debug-command", "yes"];
    let Some(world) = World::custom(&settings, &QUICK, |_, _| ()) else { return };
    let scene = Scene::start(&world);
    // It answers LOADING to nearly everything for some seconds.
    world.redis.command(&["DEBUG", "POPULATE", "2000"]);
    world.redis.command(&["CONFIG", "SET", "key-load-delay", "1500"]);
    world.redis.command(&["CONFIG", "SET", "loading-process-events-interval-bytes", "1024"]);
    let mut loader = world.redis.client();
    loader.send(&encode(&["DEBUG", "RELOAD"]));
    let mut killer = world.redis.client();
    wait_until(
        "Redis loads",
        PATIENCE,
        || matches!(killer.try_command(&["GET", "x"]), Some(support::redis::Reply::Error(text)) if text.starts_with("LOADING")),
    );
    killer.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    wait_until("the reason is told", PATIENCE, || world.server.output().contains("LOADING"));
    // A newcomer waits for its presence keys, and is sent away if that takes too long.
    let newcomer = ask(&world, &scene.viewer);
    assert!(matches!(newcomer.status, 200 | 503), "{newcomer:?}");
    loader.reply();
    let viewer = scene.expect_gap(&world, "connection_lost");
    all_is_well(&world, &viewer);
}

#[test]
fn an_acl_that_takes_the_channels_away_is_a_gap_and_then_a_refusal() {
    if !ours_alone() {
        return;
    }
    let allow = ["ACL", "SETUSER", "streaming", "on", ">secret", "~*", "&*", "+@all"];
    let world = World::custom(&[], &QUICK, |redis, env| {
        redis.command(&allow);
        env.insert("REDIS_URL".into(), format!("redis://streaming:secret@127.0.0.1:{}/0", redis.port));
    });
    let Some(world) = world else { return };
    let scene = Scene::start(&world);
    // Redis cuts whoever is subscribed to what is not allowed any more.
    world.redis.command(&["ACL", "SETUSER", "streaming", "resetchannels"]);
    let viewer = scene.expect_gap(&world, "connection_lost");
    let refusals = || world.server.output().matches("Redis refuses timeline:").count();
    wait_until("newcomers are refused, and the log says why", PATIENCE, || {
        ask(&world, &viewer).status == 503 && refusals() > 0
    });
    assert_eq!(refusals(), 1, "the log says which");
    assert!(
        world.server.get("/ready").text().contains("Redis refuses to let this server subscribe (NOPERM)")
    );
    assert!(world.server.output().contains("NOPERM"), "the log says why");
    assert!(!world.server.output().contains("secret"));
    world.redis.command(&allow);
    wait_until("newcomers get in again", PATIENCE, || ask(&world, &viewer).status == 200);
    all_is_well(&world, &viewer);
    // Once more is worth another line.
    let _stays = Scene::start(&world);
    world.redis.command(&["ACL", "SETUSER", "streaming", "resetchannels"]);
    wait_until("newcomers are refused, and the log says why", PATIENCE, || {
        ask(&world, &viewer).status == 503 && refusals() > 1
    });
    assert_eq!(refusals(), 2);
}

#[test]
fn a_link_that_swallows_everything_is_noticed_and_is_a_gap() {
    let Some((world, proxy)) = behind_a_proxy(&[("REDIS_PING_SECONDS", "2")]) else { return };
    let scene = Scene::start(&world);
    proxy.set(Weather::BlackHole);
    wait_until("the silence is noticed", PATIENCE, || {
        world.server.output().contains("it has not answered for")
    });
    assert_eq!(ask(&world, &scene.viewer).status, 503);
    assert_eq!(world.server.get("/ready").status(), 503);
    proxy.set(Weather::Clear);
    let viewer = scene.expect_gap(&world, "connection_lost");
    all_is_well(&world, &viewer);
}

/// Numbered messages to clients that must all stay, while `weather` changes.
fn nothing_is_lost(world: &World, weather: impl FnOnce(), count: u64) {
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let mut sse = Sse::open(&world.server, "/api/v1/streaming/user", &viewer.token);
    for kind in ["websocket", "eventsource"] {
        world.server.until_metric("connected_clients", &[("type", kind)], 1.0);
    }
    ws.patience(PATIENCE);
    sse.connection.patience(PATIENCE);
    weather();
    for n in 0..count {
        assert_eq!(world.publish(&viewer.home(), &numbered(n)), 1);
    }
    gapless_until(&mut ws, 0, count - 1);
    for n in 0..count {
        sse.expect("update", &format!(r#"{{"id":"{n}"}}"#));
    }
    assert_eq!(world.server.metric("tidegate_gaps_total", &[("cause", "connection_lost")]), Some(0.0));
    world.assert_conserved();
}

#[test]
fn a_redis_far_away_loses_nothing() {
    let Some((world, proxy)) = behind_a_proxy(&[]) else { return };
    nothing_is_lost(&world, || proxy.set(Weather::Delay(Duration::from_millis(50))), 300);
    let viewer = world.viewer("read");
    all_is_well(&world, &viewer);
}

#[test]
fn a_redis_that_comes_byte_by_byte_loses_nothing() {
    let Some((world, proxy)) = behind_a_proxy(&[]) else { return };
    nothing_is_lost(&world, || proxy.set(Weather::ByteByByte), 200);
}

#[test]
fn a_short_silence_loses_nothing() {
    let Some((world, proxy)) = behind_a_proxy(&[("REDIS_PING_SECONDS", "30")]) else { return };
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    ws.patience(PATIENCE);
    for n in 0..20 {
        world.publish(&viewer.home(), &numbered(n));
    }
    gapless_until(&mut ws, 0, 19);
    proxy.set(Weather::BlackHole);
    for n in 20..40 {
        world.publish(&viewer.home(), &numbered(n));
    }
    proxy.set(Weather::Clear);
    gapless_until(&mut ws, 20, 39);
    world.assert_conserved();
}

#[test]
fn a_publisher_beyond_any_rate_is_a_gap_that_names_the_setting_to_raise() {
    if !ours_alone() {
        return;
    }
    let limit = ["--client-output-buffer-limit", "pubsub 4mb 0 0"];
    // As a user who may ask for the limit.
    let world = World::custom(&limit, &QUICK, |redis, env| {
        env.insert("REDIS_URL".into(), format!("redis://127.0.0.1:{}/0", redis.port));
    });
    let Some(world) = world else { return };
    let viewer = world.viewer("read");
    let mut websockets: Vec<Ws> =
        (0..3).map(|_| Ws::open(&world.server, "/?stream=user", &viewer.token)).collect();
    world.server.until_metric("connected_clients", &[("type", "websocket")], 3.0);
    // As if they came faster than anything can read: the server stands still until Redis has had enough.
    world.server.signal("STOP");
    let dropped = (0..1000).find(|n| world.publish(&viewer.home(), &numbered_long(*n, 100_000)) == 0);
    world.server.signal("CONT");
    assert!(dropped.is_some(), "Redis holds 100 MB for us, whatever its limit says");
    for ws in &mut websockets {
        ws.patience(PATIENCE);
        assert_eq!(gapless_until_close(ws, 0).1, Some(1012));
    }
    assert_eq!(world.server.metric("tidegate_gaps_total", &[("cause", "redis_output_limit")]), Some(1.0));
    assert_eq!(world.server.metric("tidegate_gaps_total", &[("cause", "connection_lost")]), Some(0.0));
    let output = world.server.output();
    let told = "raise client-output-buffer-limit pubsub in redis.conf";
    assert_eq!(output.matches(told).count(), 1, "{output}");
    assert!(output.contains("(pubsub 4194304 0 0)"), "{output}");
    let status: Value = world.assert_conserved();
    assert_eq!(status["closes"]["gap"], json!(3), "{status}");
    all_is_well(&world, &viewer);
}
