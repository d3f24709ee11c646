//! Load on a running server, beside the floor that the kernel sets.
//!
//!     cargo bench --bench load -- all                the whole table with its bars
//!     cargo bench --bench load -- fanout [--clients 1000] [--stream public|user] [--transport ws|sse] [--bytes 3072]
//!                                                    [--open 1] [--messages 200] [--rounds 7]
//!     cargo bench --bench load -- beside-floor       server and floor in turns, seven pairs
//!     cargo bench --bench load -- floor              the kernel's own rate: 1, 2, 4 threads, 1, 4, 16 messages a send
//!     cargo bench --bench load -- peer               fanout for this server and for TIDEGATE_PEER_COMMAND's, side by side
//!     cargo bench --bench load -- storm|idle|memory|ingest|backlog|start [--clients N]
//!     cargo bench --bench load -- in-flight                          the storm's first part alone
//!     cargo bench --bench load -- churn [--connections 1000000]      memory after clients came and went, twice
//!
//! Clients beyond what one process may have open are held by further ones: `fanout --clients 30000`. On a machine that
//! does not let the server itself have as many, LOAD_READERS_PER_PROCESS=2000 shows the same with fewer.
//!
//! Redis, PostgreSQL and the server are started privately; everything runs on loopback. A message is a realistic
//! status, numbered: nothing may be lost, come twice or out of order, or the bench ends with an error. CPU is the
//! sending process's own. The table's figures also go to `target/benches/load-COMMAND.json`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "../shared/mod.rs"]
mod shared;

mod board;
mod children;
mod churn;
mod fanout;
mod floor;
mod handshakes;
mod readers;
mod stamp;
mod still;
mod storm;
mod town;
mod witness;

use fanout::Load;
use shared::report::Report;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let command = arguments.first().map_or("all", String::as_str);
    let rest = arguments.get(1..).unwrap_or_default();
    let mut report = Report::new(&format!("load-{command}"));
    match command {
        "floor-process" => return floor::process(rest),
        "readers-process" => return children::process(rest),
        "all" => all(&mut report),
        "fanout" => fanout::run(&Load::from_options(rest), &mut report),
        "floor" => fanout::floors(&mut report),
        "beside-floor" => fanout::against_the_floor(&mut report),
        "peer" => return fanout::peers(rest),
        "storm" => {
            storm::in_flight(&mut report);
            storm::run(option(rest, "--clients", 10_000), &mut report);
        }
        "in-flight" => storm::in_flight(&mut report),
        "churn" => churn::run(option(rest, "--connections", 1_000_000), &mut report),
        "idle" => still::idle(option(rest, "--clients", 10_000), &mut report),
        "memory" => still::memory(option(rest, "--clients", 10_000), &mut report),
        "ingest" => still::ingest(&mut report),
        "backlog" => still::backlog(&mut report),
        "start" => still::start(&mut report),
        other => {
            eprintln!("{other}: no such load; see the head of benches/load/main.rs");
            std::process::exit(2);
        }
    }
    report.print();
}

/// Everything that has a bar. Memory comes first, each on a server of its own.
fn all(report: &mut Report) {
    still::start(report);
    still::memory(10_000, report);
    churn::run(100_000, report);
    still::idle(10_000, report);
    storm::in_flight(report);
    storm::run(10_000, report);
    fanout::against_the_floor(report);
    still::backlog(report);
    still::ingest(report);
    fanout::floors(report);
}

/// A number after its name on the command line.
fn option(arguments: &[String], name: &str, default: u64) -> u64 {
    let at = arguments.iter().position(|word| word == name);
    at.and_then(|at| arguments.get(at + 1)).map_or(default, |text| text.parse().expect("a number"))
}
