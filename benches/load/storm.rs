//! Everybody comes back at once: handshakes with 64 to 4,096 of them in flight, and a crowd of all clients.
//!
//! Those clients stand for other machines: their threads have a lower priority (10 more of niceness) than the publisher,
//! the reader that measures the `user` stream, and the servers, so that its latency is the server's, not the wait for
//! a core that clients hold. A bare subscriber of Redis listens to the same messages: where cores are few, they come late
//! to anybody.

use std::time::{Duration, Instant};

use crate::fanout::reader_threads;
use crate::handshakes::{self, Load, Measured};
use crate::readers::{Framing, Readers};
use crate::shared::process::{cpu_seconds, family_cpu_seconds};
use crate::shared::report::{Report, median, number, quantile};
use crate::stamp::BASE;
use crate::town::{Stream, Town};

/// How often the `user` stream beside gets a message.
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// How many times all come back.
const STORMS: usize = 7;

/// Handshakes in flight, and how many are made with each.
const IN_FLIGHT: [usize; 4] = [64, 256, 1024, 4096];
const HANDSHAKES: u64 = 10_000;

/// Rounds with each number in flight, in turns.
const ROUNDS: usize = 3;

/// The longest handshake that is allowed with 1,024 in flight, in milliseconds.
const LONGEST_MS: f64 = 300.0;

/// How long all clients may take to come back, in seconds.
const ALL_BACK_SECONDS: f64 = 1.0;

/// Handshakes by how many are in flight.
pub fn in_flight(report: &mut Report) {
    let town = Town::new(HANDSHAKES, 3072, &[]);
    let mut rounds: Vec<Vec<(Measured, f64)>> = IN_FLIGHT.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        for (in_flight, measured) in IN_FLIGHT.iter().zip(&mut rounds) {
            let load = Load { count: HANDSHAKES, in_flight: *in_flight, held: HANDSHAKES as usize };
            let cpu = cpu_seconds(town.pid());
            let plan = &mut |n| town.plan(n + 1, Stream::User, Framing::WebSocket);
            let handshakes = handshakes::run(town.address(), load, plan);
            let cpu = cpu_seconds(town.pid()) - cpu;
            // The first opens connections to PostgreSQL.
            if round > 0 {
                measured.push((handshakes, cpu));
            }
            // The clients' departures are no part of the next round.
            town.world.until_empty();
        }
    }
    let mut rates = Vec::new();
    let mut longest = Vec::new();
    for (in_flight, measured) in IN_FLIGHT.iter().zip(&rounds) {
        let each: Vec<f64> = measured.iter().map(|(handshakes, _)| handshakes.rate()).collect();
        let mut took_us: Vec<u32> =
            measured.iter().flat_map(|(handshakes, _)| &handshakes.took_us).copied().collect();
        took_us.sort_unstable();
        let all =
            Measured { seconds: measured.iter().map(|(handshakes, _)| handshakes.seconds).sum(), took_us };
        let cpu = measured.iter().map(|(_, cpu)| cpu).sum::<f64>() / all.took_us.len() as f64 * 1000.0;
        let rate = median(&each);
        report.note(
            &format!("handshakes, {in_flight} in flight"),
            format!(
                "{}/s ({} to {}), p50 {}, p99 {}, max {}; {} CPU s per 1,000",
                number(rate, ""),
                number(least(&each), ""),
                number(most(&each), ""),
                number(all.ms(0.5), "ms"),
                number(all.ms(0.99), "ms"),
                number(all.max_ms(), "ms"),
                number(cpu, ""),
            ),
            &[
                ("handshakes_per_second", rate),
                ("p50_ms", all.ms(0.5)),
                ("p99_ms", all.ms(0.99)),
                ("max_ms", all.max_ms()),
                ("cpu_seconds_per_1000", cpu),
            ],
        );
        rates.push(rate);
        longest.push(all.max_ms());
    }
    report.at_most("longest handshake, 1,024 in flight", longest[2], LONGEST_MS, "ms");
    report.at_least("handshakes/s with 1,024 in flight against 64", rates[2] / rates[0], 1.0, "");
}

fn least(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}

/// All clients come back at once.
pub fn run(clients: u64, report: &mut Report) {
    let mut town = Town::new(clients + 1, 3072, &[]);
    let mut beside = Readers::start(1);
    let mut probe = town.plan(clients + 1, Stream::User, Framing::WebSocket);
    probe.first = BASE;
    beside.connect(town.address(), vec![probe]);
    let mut probe_number = BASE;

    let witness = town.witness(clients + 1);

    // Quiet, for two seconds.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        ping(&mut town, &beside, clients + 1, &mut probe_number);
    }
    let quiet_p99 = quantile(&beside.take_latencies(), 0.99);
    let quiet_bare_p99 = quantile(&witness.take_latencies(), 0.99);

    let (mut times, mut database_share, mut database_cpu) = (Vec::new(), Vec::new(), Vec::new());
    let (mut p99s, mut bare_p99s) = (Vec::new(), Vec::new());
    let mut readers = Readers::start_yielding(reader_threads());
    readers.connect(town.address(), town.plans(1, clients, Stream::User, Framing::WebSocket));
    let mut served = clients;
    let postgres = town.postgres_pid();
    for _ in 0..STORMS {
        readers.close();
        beside.take_latencies();
        witness.take_latencies();
        let (database, server, began) =
            (family_cpu_seconds(postgres), cpu_seconds(town.pid()), Instant::now());
        readers.begin(town.address(), town.plans(1, clients, Stream::User, Framing::WebSocket));
        while readers.opened() < clients {
            ping(&mut town, &beside, clients + 1, &mut probe_number);
        }
        let took = began.elapsed().as_secs_f64();
        served += clients;
        database_cpu.push(family_cpu_seconds(postgres) - database);
        let database = (family_cpu_seconds(postgres) - database) / took;
        let server = (cpu_seconds(town.pid()) - server) / took;
        times.push(took);
        database_share.push(database);
        p99s.push(quantile(&beside.take_latencies(), 0.99));
        bare_p99s.push(quantile(&witness.take_latencies(), 0.99));
        report.note(
            "a storm",
            format!("{took:.2} s; the server used {server:.2} cores, PostgreSQL {database:.2}"),
            &[("seconds", took), ("server_cores", server), ("postgresql_cores", database)],
        );
    }
    let (took, database) = (median(&times), median(&database_share));
    let (shortest, longest) = (least(&times), most(&times));
    report.holds(
        &format!("{} clients of `user` come back at once, median of {STORMS}", number(clients as f64, "")),
        format!("{took:.2} s ({shortest:.2} to {longest:.2}), PostgreSQL at {database:.2} cores"),
        &[
            ("seconds", took),
            ("seconds_least", shortest),
            ("seconds_most", longest),
            ("postgresql_cores", database),
        ],
        &format!("at most {ALL_BACK_SECONDS} s"),
        took <= ALL_BACK_SECONDS,
    );
    let queries = settled(&town);
    report.figure("clients per query", served as f64 / queries as f64, "");
    // How many share a query depends on how evenly they come; what they cost PostgreSQL does not.
    let per_thousand = median(&database_cpu) * 1000.0 / clients as f64;
    report.at_most("PostgreSQL's CPU for 1,000 of them", per_thousand, 0.05, "s");
    let p99 = median(&p99s);
    report.at_most("p99 of a `user` stream meanwhile, against quiet", p99 / quiet_p99, 2.0, "");
    let text = format!("{} µs, quiet {} µs", number(p99, ""), number(quiet_p99, ""));
    report.note("that p99", text, &[("p99_us", p99), ("quiet_p99_us", quiet_p99)]);
    let bare_p99 = median(&bare_p99s);
    let text = format!("{} µs, quiet {} µs", number(bare_p99, ""), number(quiet_bare_p99, ""));
    let what = "the same messages at a bare subscriber of Redis: p99";
    report.note(what, text, &[("p99_us", bare_p99), ("quiet_p99_us", quiet_bare_p99)]);
}

fn ping(town: &mut Town, beside: &Readers, n: u64, number: &mut u64) {
    let (began, got) = (Instant::now(), beside.got());
    town.publish_to(n, *number);
    *number += 1;
    beside.until_got(got + 1);
    std::thread::park_timeout(PROBE_EVERY.saturating_sub(began.elapsed()));
}

/// The database's count of transactions, once its backends have reported: those that idle do so within 10 s.
fn settled(town: &Town) -> i64 {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        std::thread::park_timeout(Duration::from_secs(1));
    }
    town.transactions()
}
