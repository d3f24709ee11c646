//! What the network can do to clients: slowness, single bytes, resets, silence. And what clients' ends, their
//! number and the server's own end do to the others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::TcpListener;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use support::http::{Connection, request};
use support::machine::{ours_alone, wait_for, wait_until};
use support::numbers::{gapless_until, gapless_until_close, numbered, numbered_long};
use support::posts::{self, text_message};
use support::proxy::{Proxy, Weather};
use support::ws::{RawWs, upgrade};
use support::{Server, Sse, Viewer, World, Ws};

const PATIENCE: Duration = Duration::from_secs(60);

/// Tests with thousands of connections, one at a time: the machine may have file descriptors for no more.
static LARGE: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> MutexGuard<'static, ()> {
    LARGE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn websocket_over(proxy: &Proxy, viewer: &Viewer) -> Ws {
    let headers = [("Authorization", &*viewer.bearer())];
    let ws = Ws::try_open(proxy.address(), "/?stream=user", &headers).expect("a WebSocket");
    ws.patience(PATIENCE);
    ws
}

fn stream_over(proxy: &Proxy, viewer: &Viewer) -> Sse {
    let mut connection = Connection::tcp(proxy.address());
    connection.patience(PATIENCE);
    let headers = [("Authorization", &*viewer.bearer())];
    connection.send(request("GET", "/api/v1/streaming/user", &headers).as_bytes());
    let mut sse = Sse::read_head(connection).expect("a stream");
    sse.expect_bytes(b":)\n");
    sse
}

fn until_connected(world: &World, websockets: u32, streams: u32) {
    world.server.until_metric("connected_clients", &[("type", "websocket")], websockets.into());
    world.server.until_metric("connected_clients", &[("type", "eventsource")], streams.into());
}

/// In that weather both transports get every message.
fn nothing_is_lost_in(weather: Weather, count: u64) {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let proxy = Proxy::start(world.server.address());
    let viewer = world.viewer("read");
    // The client library takes a handshake in single bytes for an attack; the other request goes through that.
    let mut ws = websocket_over(&proxy, &viewer);
    proxy.set(weather);
    let mut sse = stream_over(&proxy, &viewer);
    until_connected(&world, 1, 1);
    for n in 0..count {
        world.publish(&viewer.home(), &numbered(n));
    }
    gapless_until(&mut ws, 0, count - 1);
    for n in 0..count {
        sse.expect("update", &format!(r#"{{"id":"{n}"}}"#));
    }
    world.assert_conserved();
}

#[test]
fn who_is_far_away_gets_everything() {
    nothing_is_lost_in(Weather::Delay(Duration::from_millis(50)), 300);
}

#[test]
fn who_gets_one_byte_at_a_time_gets_everything() {
    nothing_is_lost_in(Weather::ByteByByte, 100);
}

#[test]
fn a_reset_concerns_only_who_was_reset() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    let proxy = Proxy::start(world.server.address());
    let viewer = world.viewer("read");
    let mut direct = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let gone: Vec<Ws> = (0..20).map(|_| websocket_over(&proxy, &viewer)).collect();
    let streams: Vec<Sse> = (0..20).map(|_| stream_over(&proxy, &viewer)).collect();
    until_connected(&world, 21, 20);
    for n in 0..100 {
        world.publish(&viewer.home(), &numbered(n));
        if n == 50 {
            proxy.reset();
        }
    }
    gapless_until(&mut direct, 0, 99);
    until_connected(&world, 1, 0);
    world.assert_conserved();
    drop((gone, streams));
    drop(direct);
    world.until_empty();
}

#[test]
fn who_falls_silent_is_noticed() {
    if !ours_alone() {
        return;
    }
    // With so much room nobody has to be closed for it.
    let settings = [
        ("WS_PING_SECONDS", "3"),
        ("SSE_HEARTBEAT_SECONDS", "0.2"),
        ("WRITE_STALL_SECONDS", "2"),
        ("BACKPRESSURE_HIGH_BYTES", "100000000"),
    ];
    let Some(world) = World::with(&settings) else { return };
    let proxy = Proxy::start(world.server.address());
    let viewer = world.viewer("read");
    let mut direct = Ws::open(&world.server, "/?stream=user", &viewer.token);
    direct.patience(PATIENCE);
    let reader = std::thread::spawn(move || {
        gapless_until(&mut direct, 0, 199);
        // Whoever answers pings stays.
        gapless_until(&mut direct, 200, 200);
    });
    let (_ws, _sse) = (websocket_over(&proxy, &viewer), stream_over(&proxy, &viewer));
    until_connected(&world, 2, 1);
    proxy.set(Weather::BlackHole);
    // More than all buffers on the way hold.
    for n in 0..200 {
        world.publish(&viewer.home(), &numbered_long(n, 100_000));
    }
    until_connected(&world, 1, 0);
    let status = world.assert_conserved();
    let closes = |reason: &str| status["closes"][reason].as_u64().unwrap_or(0);
    assert_eq!(closes("no_pong") + closes("write_stalled"), 2, "{status}");
    world.publish(&viewer.home(), &numbered(200));
    reader.join().expect("who answers gets everything");
}

/// Without a file descriptor for a newcomer the server waits, says so, serves those who are there, and goes on.
#[test]
fn without_file_descriptors_it_backs_off_and_goes_on() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::with(&[("STREAMING_THREADS", "1")]) else { return };
    // Fewer than it was promised when it started.
    let few = Rlimit { current: Some(70), maximum: Some(70) };
    let pid = i32::try_from(world.server.pid()).ok().and_then(Pid::from_raw);
    prlimit(pid, Resource::Nofile, few).expect("a limit for our own child");
    let viewer = world.viewer("read");
    let mut ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    ws.probe(&world.redis, &viewer.user_channels());
    let waiting: Vec<Connection> = (0..100).map(|_| world.server.connect()).collect();
    world.server.until_output("RLIMIT_NOFILE");
    for n in 0..100 {
        world.publish(&viewer.home(), &numbered(n));
    }
    gapless_until(&mut ws, 0, 99);
    // One goes, another comes, and again there is none for the next.
    let mut waiting = waiting.into_iter();
    for connection in waiting.by_ref().take(5) {
        let descriptors = world.server.descriptors();
        drop(connection);
        wait_until("it has gone", PATIENCE, || world.server.descriptors() < descriptors);
        wait_until("another came", PATIENCE, || world.server.descriptors() >= descriptors);
    }
    assert_eq!(world.server.output().matches("cannot accept").count(), 1, "it says so once");
    drop(waiting);
    wait_until("newcomers get in", PATIENCE, || world.server.get("/api/v1/streaming/health").text() == "OK");
    let mut late = Ws::open(&world.server, "/?stream=user", &viewer.token);
    until_connected(&world, 2, 0);
    world.publish(&viewer.home(), &numbered(100));
    gapless_until(&mut ws, 100, 100);
    gapless_until(&mut late, 100, 100);
}

/// So few descriptors that nothing is left for clients are no reason to have no bound.
#[test]
fn with_hardly_any_file_descriptors_one_client_gets_in() {
    if !ours_alone() {
        return;
    }
    let Some(mut world) = World::with(&[("STREAMING_THREADS", "1")]) else { return };
    world.server = Server::start_with_descriptors(90, &world.env);
    let viewer = world.viewer("read");
    let _ws = Ws::open(&world.server, "/?stream=user", &viewer.token);
    let headers = [("Authorization", &*viewer.bearer())];
    let refused = world.server.request("GET", "/api/v1/streaming/user", &headers);
    refused.assert_error(503, "Too many clients are connected, try again later");
}

#[test]
fn a_successor_binds_during_the_drain_and_a_second_signal_ends_it() {
    if !ours_alone() {
        return;
    }
    let Some(mut world) = World::with(&[("DRAIN_SECONDS", "600")]) else { return };
    let viewer = world.viewer("read");
    let mut clients: Vec<Ws> =
        (0..10).map(|_| Ws::open(&world.server, "/?stream=user", &viewer.token)).collect();
    until_connected(&world, 10, 0);
    let address = world.server.address();
    world.server.signal("TERM");
    world.server.until_output("draining over");
    let successor = wait_for("a successor can bind", PATIENCE, || TcpListener::bind(address).ok());
    assert!(world.server.exit_status().is_none(), "it still drains");
    // Who has not been sent away yet is served until then.
    let last = clients.last_mut().unwrap();
    world.publish(&viewer.home(), &numbered(0));
    gapless_until(last, 0, 0);
    world.server.signal("TERM");
    assert!(world.server.until_exit().success());
    assert!(world.server.output().contains("a second signal"));
    drop(successor);
    for ws in &mut clients {
        gapless_until_close(ws, 0);
    }
}

fn cut(world: &World, count: usize) {
    let _alone = one_at_a_time();
    let viewer = world.viewer("read");
    let head = request("GET", "/api/v1/streaming/user", &[("Authorization", &*viewer.bearer())]);
    let began = Instant::now();
    let connections: Vec<Connection> = (0..count)
        .map(|_| {
            let mut connection = world.server.connect();
            connection.send(head.as_bytes());
            connection.reset_on_close();
            connection
        })
        .collect();
    wait_until("all are connected", PATIENCE * 3, || {
        world.server.metric("connected_clients", &[("type", "eventsource")]) == Some(count as f64)
    });
    let (connected, descriptors) = (began.elapsed(), world.server.descriptors());
    world.publish(&viewer.home(), &numbered(0));
    let began = Instant::now();
    drop(connections);
    wait_until("all are gone", PATIENCE, || {
        world.server.metric("connected_clients", &[("type", "eventsource")]) == Some(0.0)
    });
    println!("{count} clients: connected in {connected:?}, cut and forgotten in {:?}", began.elapsed());
    world.until_empty();
    world.assert_conserved();
    wait_until("their descriptors are closed", PATIENCE, || {
        world.server.descriptors() + count <= descriptors + 5
    });
}

#[test]
fn a_thousand_clients_cut_at_once_leave_nothing_behind() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    cut(&world, 1000);
}

#[test]
#[ignore = "ten thousand connections take long in a debug build: tests/run --all"]
fn ten_thousand_clients_cut_at_once_leave_nothing_behind() {
    if !ours_alone() {
        return;
    }
    let Some(world) = World::start() else { return };
    cut(&world, 10_000);
}

/// A message's size where thousands get it in thousands of forms.
const BYTES: usize = 50_000;

/// Publishes one message to so many clients who do not read yet, so that everything that is held can be seen:
/// it is the message and a little, not one for each.
fn assert_shared(world: &World, count: usize, channel: &str, message: &str) {
    let before_kib = world.server.rss_kib();
    world.publish(channel, message);
    let mut most = 0;
    wait_until("the message is on its way to all", PATIENCE, || {
        let status = world.status();
        most = most.max(status["gate"]["held_bytes"].as_u64().unwrap());
        status["messages"]["ledger"]["owed"] == json!(count)
    });
    wait_until("the message is in a log", PATIENCE, || {
        let page = world.server.get("/metrics").text();
        let logs = page.lines().filter_map(|line| line.strip_prefix("tidegate_reactor_log_bytes{"));
        logs.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum::<u64>() >= BYTES as u64
    });
    let grown_kib = world.server.rss_kib().saturating_sub(before_kib);
    println!("{count} forms: {most} bytes held at most, {grown_kib} KiB more in memory");
    assert!(most >= BYTES as u64, "nothing was held, so nothing was measured");
    // Each outcome of its own is a few words.
    assert!(most <= (4 * BYTES + 400 * count) as u64, "{most} bytes are held for one message of {BYTES}");
    let apart_kib = (count * BYTES / 1024) as u64;
    assert!(grown_kib <= apart_kib / 4, "{grown_kib} KiB more; each rendered apart: {apart_kib} KiB");
}

/// Thousands are read one after the other: who comes last has not read for long.
const PATIENT: [(&str, &str); 1] = [("WRITE_STALL_SECONDS", "600")];

fn expect_nothing_held(world: &World) {
    wait_until("nothing is held any more", PATIENCE, || world.status()["gate"]["held_bytes"] == json!(0));
    world.assert_conserved();
}

fn spellings(count: usize) {
    if !ours_alone() {
        return;
    }
    let _alone = one_at_a_time();
    let Some(world) = World::with(&PATIENT) else { return };
    let viewer = world.viewer("read");
    let mut clients: Vec<Connection> = (0..count)
        .map(|n| {
            let mut connection = Connection::narrow(world.server.address());
            connection.patience(PATIENCE);
            let path = format!("/?stream=hashtag&tag={}", spelling(n));
            connection.send(upgrade(&path, &[("Authorization", &viewer.bearer())]).as_bytes());
            connection
        })
        .collect();
    wait_until("all are connected", PATIENCE * 3, || {
        world.server.metric("connected_clients", &[("type", "websocket")]) == Some(count as f64)
    });
    let message = text_message("delete", &"7".repeat(BYTES));
    assert_shared(&world, count, "timeline:hashtag:abcdefghijklm", &message);
    for (n, mut connection) in clients.drain(..).enumerate() {
        let mut ws = RawWs { head: connection.head(), connection };
        let message: Value = serde_json::from_str(&ws.next_text()).unwrap();
        assert_eq!(message["stream"], json!(["hashtag", spelling(n)]));
        assert_eq!(message["payload"].as_str().map(str::len), Some(BYTES));
    }
    expect_nothing_held(&world);
}

#[test]
fn a_thousand_spellings_of_a_tag_share_one_message() {
    spellings(1000);
}

#[test]
#[ignore = "five thousand connections want an idle machine: tests/run --all"]
fn five_thousand_spellings_of_a_tag_share_one_message() {
    spellings(5000);
}

fn outcomes(count: u64) {
    if !ours_alone() {
        return;
    }
    let _alone = one_at_a_time();
    let Some(world) = World::with_own_database(&PATIENT) else { return };
    let accounts = world.accounts(count);
    let before = accounts.before;
    world.db.run(&format!(
        "INSERT INTO custom_filters (id, account_id, phrase, context, action)
           SELECT {before} + n, {before} + n, 'mine ' || n, '{{home,public}}', 0 FROM generate_series(1, {count}) n;
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword)
           SELECT {before} + n, 'tide' FROM generate_series(1, {count}) n;
         ANALYZE"
    ));
    let clients: Vec<Connection> = (1..=count)
        .map(|n| {
            let mut connection = Connection::narrow(world.server.address());
            connection.patience(PATIENCE);
            let bearer = format!("Bearer {}", accounts.token(n));
            connection
                .send(request("GET", "/api/v1/streaming/public", &[("Authorization", &bearer)]).as_bytes());
            connection
        })
        .collect();
    wait_until("all are connected", PATIENCE * 3, || {
        world.server.metric("connected_clients", &[("type", "eventsource")]) == Some(count as f64)
    });
    let mut status = posts::status(1, 1);
    status["content"] = json!(format!("<p>The tide {}</p>", "turns ".repeat(BYTES / 6)));
    assert_shared(&world, count as usize, "timeline:public", &posts::message("update", &status));
    for (n, connection) in (1..).zip(clients) {
        let mut sse = Sse::read_head(connection).expect("a stream");
        sse.expect_bytes(b":)\n");
        let status: Value = serde_json::from_str(&sse.next().data).unwrap();
        assert_eq!(status["filtered"][0]["filter"]["title"], json!(format!("mine {n}")));
    }
    expect_nothing_held(&world);
}

#[test]
fn a_thousand_outcomes_of_filters_share_one_message() {
    outcomes(1000);
}

#[test]
#[ignore = "five thousand connections want an idle machine: tests/run --all"]
fn five_thousand_outcomes_of_filters_share_one_message() {
    outcomes(5000);
}

/// The n-th way to write one tag of 13 letters.
fn spelling(n: usize) -> String {
    let letters = "abcdefghijklm".chars().enumerate();
    letters
        .map(|(bit, letter)| if n >> bit & 1 == 1 { letter.to_ascii_uppercase() } else { letter })
        .collect()
}
