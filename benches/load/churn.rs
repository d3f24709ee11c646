//! Clients come and go by the million: what stays in memory when none is left.
//!
//! A third each open `user` on a WebSocket, a public channel and a hashtag of their own by Server-Sent Events, from ten
//! thousand accounts; a thousand are connected at any time.

use std::time::Duration;

use crate::handshakes::{Load, run as handshakes};
use crate::readers::{Framing, Plan};
use crate::shared::process::{Memory, memory};
use crate::shared::report::Report;
use crate::still::pause;
use crate::town::{Stream, Town};

const ACCOUNTS: u64 = 10_000;

/// Clients that are connected at once, and of these the ones that are only coming.
const HELD: usize = 1000;
const IN_FLIGHT: usize = 256;

/// How long nothing happens before memory is read.
const QUIET: Duration = Duration::from_secs(10);

/// The bar: resident memory afterwards against that of the fresh process.
const GROWTH_MAX: f64 = 1.25;

/// What the second million may add to what the first left: the size of a page cache's luck, not of a leak.
const AGAIN_MAX: f64 = 1.02;

pub fn run(connections: u64, report: &mut Report) {
    let town = Town::new(ACCOUNTS, 3072, &[]);
    pause(QUIET);
    let fresh = memory(town.pid());
    let mut number = 0;
    let mut churn = |report: &mut Report| {
        let load = Load { count: connections, in_flight: IN_FLIGHT, held: HELD };
        let measured = handshakes(town.address(), load, &mut |_| {
            number += 1;
            plan(&town, number)
        });
        let busy = memory(town.pid());
        pause(QUIET);
        let quiet = memory(town.pid());
        report.note(
            "churn",
            format!(
                "{connections} connections in {:.1} s; RSS {:.1} MiB at the end, {:.1} MiB after {} s of quiet",
                measured.seconds,
                mib(busy.rss_kib),
                mib(quiet.rss_kib),
                QUIET.as_secs()
            ),
            &[
                ("seconds", measured.seconds),
                ("rss_kib_at_the_end", busy.rss_kib as f64),
                ("rss_kib_quiet", quiet.rss_kib as f64),
                ("anonymous_kib_quiet", quiet.anonymous_kib as f64),
            ],
        );
        quiet
    };
    let first = churn(report);
    let second = churn(report);
    report.note(
        "RSS of the fresh process, after the first churn, after the second",
        format!("{}, {}, {}", shown(fresh), shown(first), shown(second)),
        &[
            ("fresh_kib", fresh.rss_kib as f64),
            ("first_kib", first.rss_kib as f64),
            ("second_kib", second.rss_kib as f64),
        ],
    );
    let growth = |memory: Memory, before: Memory| memory.rss_kib as f64 / before.rss_kib as f64;
    report.at_most(
        "RSS after the first churn, against the fresh process",
        growth(first, fresh),
        GROWTH_MAX,
        "",
    );
    report.at_most("RSS after the second churn, against the first", growth(second, first), AGAIN_MAX, "");
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn shown(memory: Memory) -> String {
    format!("{:.1} MiB ({:.1} anonymous)", mib(memory.rss_kib), mib(memory.anonymous_kib))
}

/// The `n`-th connection.
fn plan(town: &Town, n: u64) -> Plan {
    let account = n % ACCOUNTS + 1;
    match n % 3 {
        0 => town.plan(account, Stream::User, Framing::WebSocket),
        1 => town.plan(account, Stream::SharedOwnTokens, Framing::Events),
        _ => town.hashtag_plan(account, &format!("tag{n}")),
    }
}
