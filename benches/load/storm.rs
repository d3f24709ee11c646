//! Everybody comes back at once.
//!
//! Those clients stand for other machines: their threads have a lower priority (10 more of niceness) than the publisher,
//! the reader that measures the `user` stream, and the servers, so that its latency is the server's, not the wait for
//! a core that clients hold. A bare subscriber of Redis listens to the same messages: where cores are few, they come late
//! to anybody.

use std::time::{Duration, Instant};

use crate::fanout::reader_threads;
use crate::readers::{Framing, Readers};
use crate::shared::process::{cpu_seconds, family_cpu_seconds};
use crate::shared::report::{Report, median, number, quantile};
use crate::stamp::BASE;
use crate::town::{Stream, Town};

/// How often the `user` stream beside gets a message.
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// How many times all come back.
const STORMS: usize = 3;

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

    let (mut rates, mut database_share) = (Vec::new(), Vec::new());
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
        let database = (family_cpu_seconds(postgres) - database) / took;
        let server = (cpu_seconds(town.pid()) - server) / took;
        rates.push(clients as f64 / took);
        database_share.push(database);
        p99s.push(quantile(&beside.take_latencies(), 0.99));
        bare_p99s.push(quantile(&witness.take_latencies(), 0.99));
        report.note(
            "a storm",
            format!("{took:.2} s; the server used {server:.2} cores, PostgreSQL {database:.2}"),
            &[("seconds", took), ("server_cores", server), ("postgresql_cores", database)],
        );
    }
    let (rate, database) = (median(&rates), median(&database_share));
    report.holds(
        &format!("{} clients of `user` come back at once", number(clients as f64, "")),
        format!("{} handshakes/s, PostgreSQL at {database:.2} cores", number(rate, "")),
        &[("handshakes_per_second", rate), ("postgresql_cores", database)],
        "at least 10,000/s, or PostgreSQL at a full core",
        rate >= 10_000.0 || database >= 0.95,
    );
    let queries = settled(&town);
    report.at_least("clients per query", served as f64 / queries as f64, 20.0, "");
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
