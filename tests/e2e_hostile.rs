//! A crowd that does everything wrong at once beside a crowd that only reads: the streams of the honest stay whole,
//! in order and quick, and the server's memory bounded.
//!
//! The quick form is an ordinary test. The full one takes the time of each message in turns with and without the
//! hostile, so that what else the machine does meets both alike:
//!
//!     cargo test --release --test e2e_hostile -- --ignored --nocapture

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use support::crowd::{BASE, Client, Crowd};
use support::http::request;
use support::world::Accounts;
use support::ws::{RawWs, upgrade};
use support::{World, ours_alone, posts};

/// When the hostile do what they do.
#[derive(Clone, Copy, PartialEq)]
enum Pace {
    /// Each at a time of its own, as those who know nothing of each other.
    Spread,
    /// All at once, as those whom somebody leads.
    Bursts,
}

/// How often each hostile connection does something.
const PACE: Duration = Duration::from_millis(500);

/// How far apart messages are published.
const BEAT: Duration = Duration::from_millis(100);

/// One hostile client.
struct Slot {
    number: usize,
    step: usize,
    socket: Option<TcpStream>,
}

/// What they aim at.
#[derive(Clone)]
struct Target {
    address: SocketAddr,
    tokens: Arc<[String]>,
}

type Kind = fn(&mut Slot, &Target);

/// All kinds, in turn.
const KINDS: [Kind; 18] = [
    a_byte_now_and_then,
    too_large_a_head,
    no_http,
    wrong_tokens,
    nothing_at_all,
    subscribes_without_end,
    too_large_a_message,
    never_finishes_a_message,
    begins_many_messages,
    pings_without_end,
    says_nothing_at_length,
    never_reads_a_websocket,
    never_reads_a_stream,
    leaves_at_once,
    pipelines,
    hides_requests,
    breaks_the_protocol,
    comes_and_goes,
];

impl Slot {
    /// Connects, with a receive buffer so small that who does not read is noticed.
    fn open(&mut self, target: &Target) {
        self.step = 0;
        let connect = || -> std::io::Result<TcpStream> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_recv_buffer_size(4096)?;
            socket.connect_timeout(&target.address.into(), Duration::from_secs(1))?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        };
        self.socket = connect().ok();
    }

    /// Sends what the socket takes.
    fn write(&mut self, bytes: &[u8]) {
        let Some(socket) = &mut self.socket else { return };
        match socket.write(bytes) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => self.socket = None,
            _ => {}
        }
    }

    /// Reads what has come; the connection is forgotten at its end.
    fn read(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        match socket.read(&mut [0; 16 << 10]) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => self.socket = None,
        }
    }

    /// Opens a connection with these first bytes where there is none; true if there was one.
    fn begin(&mut self, target: &Target, first: impl FnOnce(&Target, usize) -> Vec<u8>) -> bool {
        if self.socket.is_some() {
            self.step += 1;
            return true;
        }
        self.open(target);
        let first = first(target, self.number);
        self.write(&first);
        false
    }
}

fn bearer(target: &Target, number: usize) -> String {
    format!("Bearer {}", target.tokens[number % target.tokens.len()])
}

fn websocket(target: &Target, number: usize) -> Vec<u8> {
    upgrade("/", &[("Authorization", &bearer(target, number))]).into()
}

fn stream(path: &str, target: &Target, number: usize) -> Vec<u8> {
    request("GET", path, &[("Authorization", &bearer(target, number))]).into()
}

const HEALTH: &str = "/api/v1/streaming/health";

fn a_byte_now_and_then(slot: &mut Slot, target: &Target) {
    slot.begin(target, |_, _| Vec::new());
    let text = request("GET", HEALTH, &[("X-Slow", "loris")]);
    slot.write(&[text.as_bytes()[slot.step % (text.len() - 8)]]);
    slot.read();
}

fn too_large_a_head(slot: &mut Slot, target: &Target) {
    let many = |_: &Target, number: usize| {
        let line = if number.is_multiple_of(2) {
            "X: x\r\n".repeat(5000)
        } else {
            format!("X: {}", "x".repeat(30_000))
        };
        format!("GET / HTTP/1.1\r\nHost: x\r\n{line}").into_bytes()
    };
    if slot.begin(target, many) {
        slot.read();
        slot.socket = None;
    }
}

fn no_http(slot: &mut Slot, target: &Target) {
    slot.socket = None;
    slot.begin(target, |_, number| vec![number as u8; 500]);
    slot.write(b"\r\n\r\n");
}

fn wrong_tokens(slot: &mut Slot, target: &Target) {
    slot.begin(target, |_, _| Vec::new());
    let path = format!("/api/v1/streaming/user?access_token=wrong-{}-{}", slot.number, slot.step);
    slot.write(request("GET", &path, &[]).as_bytes());
    slot.read();
}

fn nothing_at_all(slot: &mut Slot, target: &Target) {
    slot.begin(target, |_, _| Vec::new());
    slot.read();
}

fn subscribes_without_end(slot: &mut Slot, target: &Target) {
    slot.begin(target, websocket);
    let mut all = Vec::new();
    for n in 0..25 {
        let tag = format!("t{}x{}x{n}", slot.number, slot.step);
        let kind = if n < 20 { "subscribe" } else { "unsubscribe" };
        let text = format!(r#"{{"type":"{kind}","stream":"hashtag","tag":"{tag}"}}"#);
        all.extend(RawWs::encode(0x81, text.as_bytes()));
    }
    slot.write(&all);
    slot.read();
}

fn too_large_a_message(slot: &mut Slot, target: &Target) {
    if slot.begin(target, websocket) {
        slot.write(&RawWs::encode(0x81, &[b' '; 70_000])[..100]);
        slot.read();
    }
}

fn never_finishes_a_message(slot: &mut Slot, target: &Target) {
    if slot.begin(target, websocket) {
        let frame = RawWs::encode(0x81, &[b' '; 65_000]);
        let at = (slot.step - 1) * 8000;
        slot.write(&frame[at.min(64_000)..(at + 8000).min(64_000)]);
        slot.read();
    }
}

fn begins_many_messages(slot: &mut Slot, target: &Target) {
    if slot.begin(target, websocket) {
        slot.write(&RawWs::encode(0x81, b"  ")[..6 + slot.number % 2]);
        slot.read();
    }
}

fn says_nothing_at_length(slot: &mut Slot, target: &Target) {
    slot.begin(target, websocket);
    let frame: [(u8, &[u8]); 4] = [(0x8a, b""), (0x81, b"{"), (0x81, br#"{"type":"x"}"#), (0x89, b"")];
    let (first, payload) = frame[slot.number % frame.len()];
    slot.write(&RawWs::encode(first, payload).repeat(400));
    slot.read();
}

fn pings_without_end(slot: &mut Slot, target: &Target) {
    slot.begin(target, websocket);
    slot.write(&RawWs::encode(0x89, &[b'p'; 125]).repeat(30));
    if slot.number.is_multiple_of(2) {
        slot.read();
    }
}

fn never_reads_a_websocket(slot: &mut Slot, target: &Target) {
    slot.begin(target, |target, number| {
        upgrade("/?stream=public", &[("Authorization", &bearer(target, number))]).into()
    });
}

fn never_reads_a_stream(slot: &mut Slot, target: &Target) {
    slot.begin(target, |target, number| stream("/api/v1/streaming/public", target, number));
}

fn leaves_at_once(slot: &mut Slot, target: &Target) {
    slot.begin(target, websocket);
    if let Some(socket) = slot.socket.take() {
        let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
}

fn pipelines(slot: &mut Slot, target: &Target) {
    slot.begin(target, |_, _| Vec::new());
    slot.write(request("GET", HEALTH, &[]).repeat(20).as_bytes());
    slot.read();
}

fn hides_requests(slot: &mut Slot, target: &Target) {
    slot.socket = None;
    slot.begin(target, |target, number| {
        let lengths = [("Content-Length", "5"), ("Transfer-Encoding", "chunked")];
        [request("GET", HEALTH, &lengths).as_bytes(), b"0\r\n\r\n", &stream("/metrics", target, number)]
            .concat()
    });
}

fn breaks_the_protocol(slot: &mut Slot, target: &Target) {
    if slot.begin(target, websocket) {
        let wrong: [&[u8]; 5] =
            [b"\x81\x05hello", b"\xf1\x80....", b"\x83\x80....", b"\x88\x81....x", b"\x82\x80...."];
        slot.write(wrong[slot.number % wrong.len()]);
        slot.read();
    }
}

fn comes_and_goes(slot: &mut Slot, target: &Target) {
    if slot.begin(target, |target, number| stream("/api/v1/streaming/user", target, number)) {
        slot.socket = None;
    }
}

/// The hostile, until dropped.
struct Hostile {
    stop: Arc<AtomicBool>,
    acts: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Hostile {
    fn unleash(count: usize, pace: Pace, target: &Target) -> Hostile {
        const THREADS: usize = 2;
        let (stop, acts) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..THREADS).map(|thread| {
            let (stop, acts, target) = (Arc::clone(&stop), Arc::clone(&acts), target.clone());
            let slots = (0..count).filter(move |number| number % THREADS == thread);
            let mut slots: Vec<Slot> = slots
                .map(|number| Slot { number: number / KINDS.len(), step: number % KINDS.len(), socket: None })
                .collect();
            let kinds: Vec<Kind> = slots.iter().map(|slot| KINDS[slot.step]).collect();
            std::thread::spawn(move || {
                let mut due = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let round = due;
                    for (slot, kind) in slots.iter_mut().zip(&kinds) {
                        kind(slot, &target);
                        acts.fetch_add(1, Ordering::Relaxed);
                        if pace == Pace::Spread {
                            due += PACE / kinds.len() as u32;
                            std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
                        }
                    }
                    due = (round + PACE).max(Instant::now());
                    std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
                }
            })
        });
        let threads = threads.collect();
        Hostile { stop, acts, threads }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// What one phase brought.
struct Phase {
    p50: Duration,
    p99: Duration,
    /// By the server's own clock: from the read that completed a message to its last byte taken by the kernel.
    inside_p99: Duration,
    most_rss_kib: u64,
}

/// The server's histogram of latencies: bounds in seconds, cumulative counts.
fn histogram(world: &World) -> Vec<(f64, f64)> {
    let page = world.server.get("/metrics").text();
    let buckets = page.lines().filter_map(|line| line.strip_prefix("tidegate_latency_seconds_bucket{le=\""));
    let bucket = |line: &str| {
        let (bound, count) = line.split_once("\"} ")?;
        Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
    };
    buckets.filter_map(bucket).collect()
}

/// The upper bound of the bucket that holds the 99th percentile of what came in between.
fn p99_between(before: &[(f64, f64)], after: &[(f64, f64)]) -> Duration {
    let counts = before.iter().zip(after).map(|(before, after)| (after.0, after.1 - before.1));
    let total = counts.clone().next_back().map_or(0.0, |(_, count)| count);
    let bound = counts.into_iter().find(|(_, count)| *count >= total * 0.99).map_or(0.0, |(bound, _)| bound);
    Duration::try_from_secs_f64(bound).unwrap_or(Duration::MAX)
}

/// The honest, and what is published for them.
struct Town<'w> {
    world: &'w World,
    crowd: Crowd,
    accounts: Accounts,
    published: u64,
}

impl Town<'_> {
    /// Publishes so many messages to everybody, one per beat, and waits until all have them.
    fn phase(&mut self, rounds: u64) -> Phase {
        let (accounts, from, count) = (self.accounts, self.published, self.crowd.clients.len() as u64);
        let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let mut redis = self.world.redis.client();
        let times = Arc::clone(&sent);
        let publisher = std::thread::spawn(move || {
            let begin = Instant::now();
            for round in from..from + rounds {
                let status = posts::message("update", &posts::status(BASE + round, 1));
                let mut commands = support::redis::encode(&["PUBLISH", "timeline:public", &status]);
                let home = posts::text_message("update", &format!(r#"{{"id":"{}"}}"#, BASE + round));
                for n in (1..=count).filter(|n| n % 2 == 1) {
                    commands.extend(support::redis::encode(&["PUBLISH", &accounts.home(n), &home]));
                }
                let due = begin + BEAT * (round - from) as u32;
                std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
                times.lock().unwrap().push(Instant::now());
                redis.send(&commands);
                for _ in 0..count.div_ceil(2) + 1 {
                    redis.reply().expect("an answer from Redis");
                }
            }
        });
        for client in &mut self.crowd.clients {
            client.arrivals = Some(Vec::with_capacity(rounds as usize));
        }
        self.published += rounds;
        let before = histogram(self.world);
        let deadline = Instant::now() + Duration::from_secs(240);
        let mut most_rss_kib = 0;
        while !self.crowd.clients.iter().all(|client| client.next == self.published) {
            self.crowd.turn(deadline);
            most_rss_kib = most_rss_kib.max(self.world.server.rss_kib());
        }
        publisher.join().unwrap();
        let sent = sent.lock().unwrap();
        let mut times: Vec<Duration> = Vec::new();
        for client in &mut self.crowd.clients {
            let arrivals = client.arrivals.take().unwrap();
            assert_eq!(arrivals.len(), sent.len());
            times.extend(
                arrivals.iter().zip(sent.iter()).map(|(came, sent)| came.saturating_duration_since(*sent)),
            );
        }
        times.sort_unstable();
        Phase {
            p50: times[times.len() / 2],
            p99: times[times.len() * 99 / 100],
            inside_p99: p99_between(&before, &histogram(self.world)),
            most_rss_kib,
        }
    }
}

fn run(honest: u64, hostile: usize, pace: Pace, pairs: usize, rounds: u64) -> Vec<f64> {
    let settings = [("REQUEST_HEAD_SECONDS", "2"), ("UNFINISHED_SECONDS", "3"), ("SLOW_CLIENT_GRACE", "2")];
    let Some(world) = World::with(&settings) else { return Vec::new() };
    let accounts = world.accounts(honest + 32);
    let mut crowd = Crowd::new();
    let deadline = Instant::now() + Duration::from_secs(240);
    for n in 1..=honest {
        let path = n.is_multiple_of(2).then_some("/api/v1/streaming/public");
        crowd.join(Client::connect(world.server.address(), &accounts.token(n), path), deadline);
    }
    crowd.until("the honest are connected", |client| client.has_head);
    let target = Target {
        address: world.server.address(),
        tokens: (honest + 1..=honest + 32).map(|n| accounts.token(n)).collect::<Vec<_>>().into(),
    };
    let mut town = Town { world: &world, crowd, accounts, published: 0 };
    town.phase(10);
    let mut ratios = Vec::new();
    let mut most_kib = [0, 0];
    for pair in 1..=pairs {
        let quiet = town.phase(rounds);
        let crowd = Hostile::unleash(hostile, pace, &target);
        let loud = town.phase(rounds);
        let acts = crowd.acts.load(Ordering::Relaxed);
        drop(crowd);
        ratios.push(loud.p99.as_secs_f64() / quiet.p99.as_secs_f64());
        most_kib = [most_kib[0].max(quiet.most_rss_kib), most_kib[1].max(loud.most_rss_kib)];
        let tell = |phase: &Phase| {
            format!(
                "p50 {:.1?} p99 {:.1?}, in the server p99 <= {:.1?}, RSS {} KiB",
                phase.p50, phase.p99, phase.inside_p99, phase.most_rss_kib
            )
        };
        println!("{pair}: {honest} honest, {rounds} messages each: {}", tell(&quiet));
        println!("   beside {hostile} hostile ({acts} acts): {}", tell(&loud));
        // They leave nothing behind but what still lingers.
        let labels = [("type", "websocket")];
        world.server.until_metric("connected_clients", &labels, honest.div_ceil(2) as f64);
        world.server.until_metric("connected_clients", &[("type", "eventsource")], (honest / 2) as f64);
    }
    // 64 KiB for each of them, and the budget of undelivered messages.
    let bound = most_kib[0] + 64 * hostile as u64 + (16 << 10);
    assert!(most_kib[1] <= bound, "{} KiB, at most {bound} are bounded", most_kib[1]);
    for (family, reasons) in [
        ("tidegate_refused_total", &["token", "malformed", "head_size"][..]),
        (
            "tidegate_clients_closed_total",
            &["too_big", "protocol_error", "binary", "rate_limited", "client_left"],
        ),
    ] {
        for reason in reasons {
            let count = world.server.metric(family, &[("reason", reason)]);
            assert!(
                count > Some(0.0),
                "none was {reason}: the hostile were not as hostile as they should be"
            );
        }
    }
    let status = world.server.request("GET", "/status", &[("Accept", "application/json")]).text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["messages"]["difference"], 0, "{status}");
    println!("closed: {}; refused: {}", status["closes"], status["door"]["refused"]);
    drop(town);
    world.until_empty();
    ratios
}

#[test]
fn the_honest_do_not_notice_the_hostile() {
    if ours_alone() {
        run(100, 126, Pace::Spread, 1, 40);
    }
}

#[test]
#[ignore = "takes minutes, and wants a machine to itself and a release build: tests/run --all"]
fn the_p99_of_1000_beside_1000_hostile_is_at_most_twice_the_quiet_one() {
    if !ours_alone() {
        return;
    }
    let mut ratios = run(1000, 1008, Pace::Spread, 5, 100);
    ratios.sort_by(f64::total_cmp);
    println!("p99 beside the hostile to p99 without, in pairs: {ratios:.2?}");
    if let Some(median) = ratios.get(ratios.len() / 2) {
        assert!(*median <= 2.0, "{ratios:?}");
    }
}

#[test]
#[ignore = "takes minutes, and wants a machine to itself and a release build: tests/run --all"]
fn bursts_of_1000_hostile_leave_the_streams_of_1000_whole() {
    if !ours_alone() {
        return;
    }
    let mut ratios = run(1000, 1008, Pace::Bursts, 5, 100);
    ratios.sort_by(f64::total_cmp);
    // No bar for the time: what the hostile do at once takes the machine's cores from everybody, them included.
    println!("p99 beside bursts of the hostile to p99 without, in pairs: {ratios:.2?}");
}
