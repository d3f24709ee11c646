//! What a server costs while little happens: memory, idling, starting, a backlog, messages for nobody.

use std::time::{Duration, Instant};

use crate::fanout::reader_threads;
use crate::readers::{Framing, Readers};
use crate::shared::process::{Memory, cpu_seconds, memory as memory_of};
use crate::shared::report::{Report, median};
use crate::support::Server;
use crate::town::{Stream, Town};

/// Memory is read so long after the last client came.
pub const SETTLE: Duration = Duration::from_secs(5);

/// Memory per idle client, from 1,000 clients to `clients`.
pub fn memory(clients: u64, report: &mut Report) {
    let shapes = [
        ("shared channel, one token", Stream::Shared, Framing::WebSocket, 256.0),
        ("SSE on a shared channel, own tokens", Stream::SharedOwnTokens, Framing::Events, 384.0),
        ("WebSocket `user`, own accounts", Stream::User, Framing::WebSocket, 512.0),
    ];
    for (name, stream, framing, bar) in shapes {
        let town = Town::new(clients, 3072, &[("WS_PING_SECONDS", "600"), ("SSE_HEARTBEAT_SECONDS", "600")]);
        let mut readers = Readers::start(reader_threads());
        let empty = settled(&town);
        readers.connect(town.address(), town.plans(1, 1000, stream, framing));
        let few = settled(&town);
        readers.connect(town.address(), town.plans(1001, clients, stream, framing));
        let many = settled(&town);
        let marginal = (many.rss_kib as f64 - few.rss_kib as f64) * 1024.0 / (clients - 1000) as f64;
        report.at_most(&format!("memory per idle client, {name}"), marginal, bar, "B");
        let kib = |memory: Memory| format!("{:.1}", memory.rss_kib as f64 / 1024.0);
        report.note(
            "RSS without, with 1,000, with all",
            format!("{}, {}, {} MiB ({} KiB PSS at last)", kib(empty), kib(few), kib(many), many.pss_kib),
            &[
                ("rss_kib_without", empty.rss_kib as f64),
                ("rss_kib_with_1000", few.rss_kib as f64),
                ("rss_kib_with_all", many.rss_kib as f64),
                ("pss_kib_without", empty.pss_kib as f64),
                ("pss_kib_with_1000", few.pss_kib as f64),
                ("pss_kib_with_all", many.pss_kib as f64),
            ],
        );
        if stream == Stream::User {
            let mib = |memory: Memory| memory.rss_kib as f64 / 1024.0;
            report.at_most("RSS without clients, Redis and PostgreSQL connected", mib(empty), 8.0, "MiB");
            report.at_most("RSS with 10,000 clients of `user` idle", mib(many), 14.0, "MiB");
        }
    }
}

fn settled(town: &Town) -> Memory {
    pause(SETTLE);
    memory_of(town.pid())
}

pub fn pause(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::thread::park_timeout(time - began.elapsed());
    }
}

/// CPU of clients that only answer pings.
pub fn idle(clients: u64, report: &mut Report) {
    let town = Town::new(clients, 3072, &[]);
    let mut readers = Readers::start(reader_threads());
    readers.connect(town.address(), town.plans(1, clients / 2, Stream::User, Framing::WebSocket));
    readers.connect(
        town.address(),
        town.plans(clients / 2 + 1, clients, Stream::SharedOwnTokens, Framing::Events),
    );
    pause(SETTLE);
    // One interval of pings, two of heartbeats.
    let (cpu, began) = (cpu_seconds(town.pid()), Instant::now());
    pause(Duration::from_secs(30));
    let used = (cpu_seconds(town.pid()) - cpu) * 1e6 / began.elapsed().as_secs_f64();
    let what = "idle CPU per second and client, half WebSocket, half SSE";
    report.at_most(what, used / clients as f64, 1.0, "µs");
}

/// Messages on a subscribed channel that nobody is to get.
pub fn ingest(report: &mut Report) {
    let mut town = Town::new(1, 3072, &[]);
    let mut readers = Readers::start(1);
    readers.connect(town.address(), town.plans(1, 1, Stream::User, Framing::WebSocket));
    let redis = town.world.redis.service.pid();
    let mut shares = Vec::new();
    for round in 0..6 {
        let (ours, theirs) = (cpu_seconds(town.pid()), cpu_seconds(redis));
        town.publish_ignored(1, 50_000, 3072);
        let (ours, theirs) = (cpu_seconds(town.pid()) - ours, cpu_seconds(redis) - theirs);
        if round > 0 {
            shares.push(ours / theirs);
        }
    }
    let what = "ingest of ignored 3 KiB messages: the server's CPU against redis-server's";
    report.at_most(what, median(&shares), 1.0, "");
}

/// 16 messages open to 5,000 clients that do not read.
pub fn backlog(report: &mut Report) {
    const CLIENTS: u64 = 5000;
    let mut town = Town::new(CLIENTS, 3072, &[]);
    let mut readers = Readers::start(reader_threads());
    readers.connect(town.address(), town.plans(1, CLIENTS, Stream::SharedOwnTokens, Framing::WebSocket));
    // What the handshakes needed is another figure.
    pause(SETTLE);
    readers.pause(true);
    let got = readers.got();
    town.publish(Stream::SharedOwnTokens, 16);
    let (mut most, began) = (0, Instant::now());
    while began.elapsed() < Duration::from_secs(2) {
        most = most.max(memory_of(town.pid()).rss_kib);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    readers.pause(false);
    readers.until_got(got + 16 * CLIENTS);
    report.at_most("RSS with 16 messages open to 5,000 clients", most as f64 / 1024.0, 32.0, "MiB");
}

/// The binary's size, and how long it takes to listen.
pub fn start(report: &mut Report) {
    let binary = env!("CARGO_BIN_EXE_tidegate");
    let bytes = std::fs::metadata(binary).unwrap().len();
    report.at_most("release binary", bytes as f64 / 1_048_576.0, 8.0, "MiB");
    let town = Town::new(1, 3072, &[]);
    let times: Vec<f64> = (0..7)
        .map(|_| {
            let began = Instant::now();
            let server = Server::start(&town.world.env);
            let took = began.elapsed().as_secs_f64() * 1000.0;
            drop(server);
            took
        })
        .collect();
    report.at_most("start to listening", median(&times), 50.0, "ms");
    report.figure("slowest of seven starts", times.iter().copied().fold(0.0, f64::max), "ms");
}
