//! One message to many clients, or one each to many, beside the floor.

use std::process::Command;
use std::time::Instant;

use crate::floor::{Bytes, Floor};
use crate::option;
use crate::readers::{Framing, Readers};
use crate::shared::process::{Memory, SystemCalls, cpu_seconds, memory};
use crate::shared::report::{Report, median, number, quantile};
use crate::stamp::BASE;
use crate::still::{SETTLE, pause};
use crate::support::peer;
use crate::town::{Stream, Town};

/// How many reader threads: half of the cores, so that they do not starve what they measure.
pub fn reader_threads() -> usize {
    (cores() / 2).max(1)
}

/// The server's reactors, unless it is told otherwise.
fn server_threads() -> usize {
    cores().min(4)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Clients that get a message each, at once.
const USERS: u64 = 5000;

/// A shape of load.
pub struct Load {
    clients: u64,
    stream: Stream,
    framing: Framing,
    bytes: usize,
    /// Messages published and not yet everywhere, at most.
    open: u64,
    messages: u64,
    rounds: usize,
}

impl Load {
    pub fn from_options(arguments: &[String]) -> Load {
        let is = |text: &str| arguments.iter().any(|word| word == text);
        Load {
            clients: option(arguments, "--clients", 1000),
            stream: if is("user") { Stream::User } else { Stream::SharedOwnTokens },
            framing: if is("sse") { Framing::Events } else { Framing::WebSocket },
            bytes: option(arguments, "--bytes", 3072) as usize,
            open: option(arguments, "--open", 1),
            messages: option(arguments, "--messages", 200),
            rounds: option(arguments, "--rounds", 7) as usize,
        }
    }
}

/// One round's figures.
struct Round {
    per_second: f64,
    cpu_per_million: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

fn measured(readers: &Readers, pid: u32, deliveries: u64, work: impl FnOnce()) -> Round {
    readers.take_latencies();
    let (cpu, began) = (cpu_seconds(pid), Instant::now());
    work();
    let took = began.elapsed().as_secs_f64();
    // The last reader may be told before the sender has left its last call.
    let used = cpu_seconds(pid) - cpu;
    let latencies = readers.take_latencies();
    Round {
        per_second: deliveries as f64 / took,
        cpu_per_million: used / deliveries as f64 * 1e6,
        p50_us: quantile(&latencies, 0.5),
        p99_us: quantile(&latencies, 0.99),
        p999_us: quantile(&latencies, 0.999),
    }
}

/// The server sends `messages` to `clients`, at most `open` at once.
fn serve(town: &mut Town, readers: &Readers, clients: u64, stream: Stream, messages: u64, open: u64) {
    let mut published = 0;
    let got = readers.got();
    while published < messages {
        let part = open.min(messages - published);
        if stream == Stream::User {
            (0..part).for_each(|_| town.publish_to_each(clients));
        } else {
            town.publish(stream, part);
        }
        published += part;
        readers.until_got(got + published * clients);
    }
}

fn row(report: &mut Report, name: &str, rounds: &[Round]) {
    let middle = |figure: fn(&Round) -> f64| median(&rounds.iter().map(figure).collect::<Vec<_>>());
    let per_second = middle(|round| round.per_second);
    let cpu = middle(|round| round.cpu_per_million);
    let (p50, p99, p999) =
        (middle(|round| round.p50_us), middle(|round| round.p99_us), middle(|round| round.p999_us));
    report.note(
        name,
        format!(
            "{} deliveries/s, {} CPU s per million, p50 {} µs, p99 {} µs, p99.9 {} µs",
            number(per_second, ""),
            number(cpu, ""),
            number(p50, ""),
            number(p99, ""),
            number(p999, ""),
        ),
        &[
            ("deliveries_per_second", per_second),
            ("cpu_seconds_per_million_deliveries", cpu),
            ("p50_us", p50),
            ("p99_us", p99),
            ("p999_us", p999),
        ],
    );
}

/// Memory without clients, with so many that idle, and after they have got messages.
fn memories(report: &mut Report, clients: u64, [empty, idle, after]: [Memory; 3]) {
    let each = (idle.rss_kib as f64 - empty.rss_kib as f64) / clients as f64;
    let mib = |kib: u64| number(kib as f64 / 1024.0, "");
    report.note(
        &format!("RSS without clients, with {clients} idle, after the load"),
        format!(
            "{}, {}, {} MiB (PSS {}, {}, {} MiB); {} KiB per client",
            mib(empty.rss_kib),
            mib(idle.rss_kib),
            mib(after.rss_kib),
            mib(empty.pss_kib),
            mib(idle.pss_kib),
            mib(after.pss_kib),
            number(each, ""),
        ),
        &[
            ("rss_kib_without", empty.rss_kib as f64),
            ("rss_kib_idle", idle.rss_kib as f64),
            ("rss_kib_after", after.rss_kib as f64),
            ("pss_kib_without", empty.pss_kib as f64),
            ("pss_kib_idle", idle.pss_kib as f64),
            ("pss_kib_after", after.pss_kib as f64),
            ("kib_per_client", each),
        ],
    );
}

/// Every message came, once and in order: readers end the bench otherwise, but for what is still to come.
fn none_lost(report: &mut Report, readers: &Readers, expected: u64) {
    let lost = expected as f64 - readers.got() as f64;
    report.holds(
        "lost, twice, out of order",
        format!("{lost:.0}, 0, 0"),
        &[("lost", lost), ("duplicated", 0.0), ("reordered", 0.0), ("deliveries", expected as f64)],
        "none",
        lost == 0.0,
    );
}

/// System calls of the server per delivery: writes by its own count, and all by strace, if that is there.
fn system_calls(report: &mut Report, town: &mut Town, readers: &Readers, load: &Load) {
    let messages = if load.open == 1 { 10 } else { 2 * load.open };
    let deliveries = (load.clients * messages) as f64;
    let writes = |town: &Town| town.world.server.metric("tidegate_writes_total", &[]);
    let before = writes(town);
    let strace = SystemCalls::count(town.pid());
    serve(town, readers, load.clients, load.stream, messages, load.open);
    let all = strace.map(|strace| strace.calls() as f64 / deliveries);
    let writes = before.and_then(|before| Some((writes(town)? - before) / deliveries));
    let shown = |figure: Option<f64>| figure.map_or("not known".to_owned(), |figure| format!("{figure:.3}"));
    let numbers: Vec<(&str, f64)> = [("all", all), ("writes", writes)]
        .into_iter()
        .filter_map(|(name, figure)| Some((name, figure?)))
        .collect();
    let what = format!("system calls per delivery, {} clients, {} open", load.clients, load.open);
    report.note(&what, format!("{}, of which writes {}", shown(all), shown(writes)), &numbers);
}

/// One load, whatever the server.
pub fn run(load: &Load, report: &mut Report) {
    let mut town = Town::new(load.clients, load.bytes, &[]);
    let mut readers = Readers::start(reader_threads());
    let empty = memory(town.pid());
    let plans = town.plans(1, load.clients, load.stream, load.framing);
    let took = readers.connect(town.address(), plans);
    pause(SETTLE);
    let idle = memory(town.pid());
    let (pid, deliveries) = (town.pid(), load.clients * load.messages);
    let rounds: Vec<Round> = (0..load.rounds)
        .map(|_| {
            measured(&readers, pid, deliveries, || {
                serve(&mut town, &readers, load.clients, load.stream, load.messages, load.open);
            })
        })
        .collect();
    let after = memory(pid);
    let name = format!(
        "{} clients of {:?}, {:?}, {} B, {} open",
        load.clients, load.stream, load.framing, load.bytes, load.open
    );
    row(report, &name, &rounds);
    none_lost(report, &readers, deliveries * load.rounds as u64);
    report.figure("processes that hold clients besides the first", readers.processes() as f64, "");
    report.figure("handshakes", load.clients as f64 / took.as_secs_f64(), "/s");
    memories(report, load.clients, [empty, idle, after]);
    system_calls(report, &mut town, &readers, load);
}

/// Server and floor take turns, same bytes, same readers, same number of sending threads.
pub fn against_the_floor(report: &mut Report) {
    const CLIENTS: u64 = 1000;
    const PAIRS: usize = 7;
    let threads = server_threads();
    let mut town = Town::new(USERS, 3072, &[("WS_PING_SECONDS", "600")]);
    let mut readers = Readers::start(reader_threads());
    let frame = town.frame();
    let mut floor = Floor::start(&mut readers, CLIENTS as usize, threads, Bytes::Shared, &frame);
    let mut floor_number = BASE;
    send(&mut floor, &readers, &mut floor_number, CLIENTS, 1, 1);
    let empty = memory(town.pid());
    let plans = town.plans(1, CLIENTS, Stream::SharedOwnTokens, Framing::WebSocket);
    readers.connect(town.address(), plans);
    pause(SETTLE);
    let idle = memory(town.pid());
    let before = readers.got();
    let (mut expected, first_of_floor) = (0, floor_number);

    for (open, messages) in [(1, 150), (64, 640)] {
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        let deliveries = CLIENTS * messages;
        for pair in 0..=PAIRS {
            let (pid, floor_pid) = (town.pid(), floor.pid());
            let server = measured(&readers, pid, deliveries, || {
                serve(&mut town, &readers, CLIENTS, Stream::SharedOwnTokens, messages, open);
            });
            // The floor always sends one message at a time: that is the price to compare with.
            let passes = messages.min(150);
            let bare = measured(&readers, floor_pid, CLIENTS * passes, || {
                send(&mut floor, &readers, &mut floor_number, CLIENTS, passes, 1);
            });
            expected += deliveries;
            // The first pair warms up.
            if pair > 0 {
                ours.push(server);
                floors.push(bare);
            }
        }
        row(report, &format!("1,000 clients of one channel, {open} open"), &ours);
        row(report, "the floor beside it", &floors);
        let ratio = |figure: fn(&Round) -> f64| {
            let ratios: Vec<f64> =
                ours.iter().zip(&floors).map(|(ours, floor)| figure(ours) / figure(floor)).collect();
            median(&ratios)
        };
        let cpu = ratio(|round| round.cpu_per_million);
        if open == 1 {
            report.at_most("CPU per delivery against the floor's, one message at a time", cpu, 1.0 / 0.9, "");
            let p99 = ratio(|round| round.p99_us);
            report.at_most("p99 latency against the floor's, one message to 1,000", p99, 1.2, "");
        } else {
            report.at_most("CPU per delivery against the floor's, 64 messages open", cpu, 1.0 / 2.5, "");
        }
    }
    let floors = (floor_number - first_of_floor) * CLIENTS;
    none_lost(report, &readers, before + expected + floors);
    memories(report, CLIENTS, [empty, idle, memory(town.pid())]);
    for open in [1, 64] {
        let load = Load { clients: CLIENTS, open, ..Load::from_options(&[]) };
        system_calls(report, &mut town, &readers, &load);
    }
    one_each(&mut town, &mut readers, &frame, report);
}

/// As many messages as clients, one each, all at once; against one channel in the same server. Beside it, to tell what
/// of the difference is the number of sockets and the cold bytes: one channel with as many clients, and the floor with
/// as many sockets and bytes of its own for each.
fn one_each(town: &mut Town, readers: &mut Readers, frame: &[u8], report: &mut Report) {
    const MESSAGES: u64 = 20;
    let pid = town.pid();
    let mut each_readers = Readers::start(reader_threads());
    each_readers.connect(town.address(), town.plans(1, USERS, Stream::User, Framing::WebSocket));
    let mut many_readers = Readers::start(reader_threads());
    many_readers.connect(town.address(), town.plans(1, USERS, Stream::OtherOwnTokens, Framing::WebSocket));
    let mut floor_readers = Readers::start(reader_threads());
    let mut floor = Floor::start(&mut floor_readers, USERS as usize, server_threads(), Bytes::Own, frame);
    // Numbers of a stream's messages follow each other.
    let (mut one_number, mut each_number, mut many_number) = (town.number, town.number, town.number);
    let mut floor_number = BASE;
    send(&mut floor, &floor_readers, &mut floor_number, USERS, 1, 1);
    let (mut one, mut each, mut many, mut floors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for turn in 0..=7 {
        let mut of = |readers: &Readers, number: &mut u64, clients, stream, messages| {
            town.number = *number;
            let round = measured(readers, pid, clients * messages, || {
                serve(town, readers, clients, stream, messages, 1);
            });
            *number = town.number;
            round
        };
        let rounds = [
            of(readers, &mut one_number, 1000, Stream::SharedOwnTokens, 150),
            of(&each_readers, &mut each_number, USERS, Stream::User, MESSAGES),
            of(&many_readers, &mut many_number, USERS, Stream::OtherOwnTokens, MESSAGES),
            measured(&floor_readers, floor.pid(), USERS * MESSAGES, || {
                send(&mut floor, &floor_readers, &mut floor_number, USERS, MESSAGES, 1);
            }),
        ];
        if turn > 0 {
            for (all, round) in [&mut one, &mut each, &mut many, &mut floors].into_iter().zip(rounds) {
                all.push(round);
            }
        }
    }
    row(report, "5,000 clients of `user`, one message each, 5,000 open", &each);
    row(report, "5,000 clients of one channel, 1 open", &many);
    row(report, "the floor with 5,000 sockets, bytes of its own for each", &floors);
    let ratio = |of: &[Round], to: &[Round]| {
        let pairs = of.iter().zip(to);
        median(&pairs.map(|(of, to)| of.cpu_per_million / to.cpu_per_million).collect::<Vec<_>>())
    };
    let what = "CPU per delivery of 5,000 messages to one client each, against the one channel's with 1,000";
    report.at_most(what, ratio(&each, &one), 1.25, "");
    let what = "the same of one channel with 5,000, against with 1,000";
    report.figure(what, ratio(&many, &one), "");
    let what = "the same of the floor with 5,000 sockets and bytes, against the one channel's with 1,000";
    report.figure(what, ratio(&floors, &one), "");
    let what = "5,000 messages to one client each, against the one channel's with as many clients";
    report.figure(what, ratio(&each, &many), "");
    let what = "5,000 messages to one client each, against that floor";
    report.figure(what, ratio(&each, &floors), "");
}

fn send(floor: &mut Floor, readers: &Readers, number: &mut u64, clients: u64, passes: u64, coalesced: u64) {
    for _ in 0..passes {
        let got = readers.got();
        floor.send(*number, coalesced as usize);
        *number += coalesced;
        readers.until_got(got + clients * coalesced);
        floor.done();
    }
}

/// The floor alone.
pub fn floors(report: &mut Report) {
    let mut town = Town::new(1, 3072, &[]);
    let mut readers = Readers::start(reader_threads());
    let frame = town.frame();
    drop(town);
    for threads in [1, 2, 4] {
        let mut floor = Floor::start(&mut readers, 1000, threads, Bytes::Shared, &frame);
        let mut number = BASE;
        send(&mut floor, &readers, &mut number, 1000, 1, 1);
        for coalesced in [1, 4, 16] {
            let passes = 200 / coalesced;
            let pid = floor.pid();
            let rounds: Vec<Round> = (0..3)
                .map(|_| {
                    measured(&readers, pid, 1000 * passes * coalesced, || {
                        send(&mut floor, &readers, &mut number, 1000, passes, coalesced);
                    })
                })
                .collect();
            row(report, &format!("floor, {threads} threads, {coalesced} a send"), &rounds);
        }
        readers.close();
    }
}

/// The same load on this server and on the one that `TIDEGATE_PEER_COMMAND` starts.
pub fn peers(arguments: &[String]) {
    let Some(command) = peer() else {
        eprintln!("TIDEGATE_PEER_COMMAND: set it to the command that starts the other server");
        std::process::exit(2);
    };
    for (name, peer) in [("Tidegate", None), ("the peer", Some(command))] {
        println!("\n{name}:");
        let mut bench = Command::new(std::env::current_exe().unwrap());
        bench.arg("fanout").args(arguments).env_remove("TIDEGATE_PEER_COMMAND");
        if let Some(peer) = peer {
            bench.env("TIDEGATE_PEER_COMMAND", peer);
        }
        assert!(bench.status().unwrap().success(), "{name}");
    }
}
