//! How many instructions a step takes: this program again under callgrind, once with few calls of the step and once
//! with more. What they differ by is the step's own, whatever came before and after; so nothing need be found by its
//! name in a binary that has none.

use std::collections::VecDeque;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use tidegate::core::event::{Event, Transport, UNCHANGED};

use crate::shared::report::{Report, number};
use crate::steps::{
    HOME, PACKET, PUBLIC, SIZES, WHOLE, gate, judged, log_of, message, parsed, pushed, reached, status,
    stream, through_redis_protocol, through_ring,
};

/// Calls of a step that are not counted: they meet what only the first ones do.
const FIRST: usize = 2;

/// Clients of a log and of an audience.
const CLIENTS: [u32; 3] = [1, 100, 10_000];

/// What a call of a step is.
#[derive(Clone, Copy)]
struct Call {
    /// What it does, so many times.
    operation: &'static str,
    operations: usize,
    /// Bytes it goes through, where they count.
    bytes: usize,
    /// How many calls are counted.
    counted: usize,
}

/// The steps, to be listed or one of them to be run.
enum Steps<'a> {
    List(Vec<(String, Call)>),
    Run(&'a str, usize),
}

impl Steps<'_> {
    /// A step: `prepare` is told how many calls there may be, each of which gets its number.
    fn step<T>(
        &mut self,
        name: &str,
        call: Call,
        prepare: impl FnOnce(usize) -> T,
        mut run: impl FnMut(&mut T, usize),
    ) {
        match self {
            Steps::List(list) => list.push((name.to_owned(), call)),
            Steps::Run(wanted, calls) if *wanted == name => {
                let mut prepared = prepare(FIRST + call.counted);
                (0..*calls).for_each(|number| run(&mut prepared, number));
                // What is left is not the step's.
                std::process::exit(0);
            }
            Steps::Run(..) => {}
        }
    }
}

fn all(steps: &mut Steps) {
    framing(steps);
    events(steps);
    audiences(steps);
    logs(steps);
}

fn framing(steps: &mut Steps) {
    type Reader = fn(&[u8], usize) -> usize;
    let readers: [(&str, Reader, usize); 4] = [
        ("ring, whole", through_ring, WHOLE),
        ("ring, in packets", through_ring, PACKET),
        ("redis-protocol, whole", through_redis_protocol, WHOLE),
        ("redis-protocol, in packets", through_redis_protocol, PACKET),
    ];
    for size in SIZES {
        let (bytes, count) = pushed(size);
        let call = Call { operation: "message", operations: count, bytes: bytes.len(), counted: 2 };
        for (name, read, piece) in readers {
            steps.step(
                &format!("framing {size} B: {name}"),
                call,
                |_| &bytes,
                |bytes, _| {
                    assert_eq!(black_box(read(black_box(bytes), piece)), count);
                },
            );
        }
        let into = vec![0; bytes.len()];
        steps.step(
            &format!("framing {size} B: a plain copy of the same"),
            call,
            |_| into,
            |into, _| {
                // As many copies as messages.
                let one = bytes.len() / count;
                into.chunks_exact_mut(one).zip(bytes.chunks_exact(one)).for_each(|(into, from)| {
                    into.copy_from_slice(black_box(from));
                });
                black_box(into);
            },
        );
    }
}

fn events(steps: &mut Steps) {
    let (message, gate, stream) = (message(), gate(), stream());
    let bytes = message.len();
    for (name, channel) in [("an unfiltered channel", HOME), ("a filtered channel", PUBLIC)] {
        let call = Call { operation: "message", operations: 1, bytes, counted: 200 };
        let kept = |calls: usize| Vec::with_capacity(calls);
        steps.step(&format!("parsing a status of {name}"), call, kept, |events, _| {
            events.push(parsed(channel.clone(), black_box(&message), &gate));
        });
    }
    for transport in [Transport::WebSocket, Transport::SseChunked, Transport::SsePlain] {
        let call = Call { operation: "frame", operations: 1, bytes, counted: 200 };
        let fresh = |calls: usize| -> Vec<Arc<Event>> {
            (0..calls).map(|_| parsed(PUBLIC, &message, &gate)).collect()
        };
        steps.step(&format!("rendering for {transport:?}"), call, fresh, |events, number| {
            drop(black_box(events[number].frame(transport, &stream, UNCHANGED)));
        });
        let again = Call { operation: "frame", operations: 1, bytes: 0, counted: 2000 };
        steps.step(
            &format!("the same frame for a second recipient, {transport:?}"),
            again,
            |_| status(),
            |event, _| {
                drop(black_box(event.frame(transport, black_box(&stream), UNCHANGED)));
            },
        );
    }
}

fn audiences(steps: &mut Steps) {
    let stream = stream();
    for viewers in CLIENTS {
        let counted = (10_000 / viewers as usize).max(2);
        let call = Call { operation: "viewer", operations: viewers as usize, bytes: 0, counted };
        let viewers = u64::from(viewers);
        steps.step(
            &format!("a verdict, audience of {viewers}"),
            call,
            |_| judged(viewers),
            |event, _| {
                black_box(reached(black_box(event), &stream, viewers));
            },
        );
    }
}

fn logs(steps: &mut Steps) {
    for clients in CLIENTS {
        let counted = (10_000 / clients as usize).max(2);
        let name = |what: &str| format!("log with {clients} clients: {what}");
        let event = status();
        let append = Call { operation: "message", operations: 1, bytes: 0, counted: 1000 };
        steps.step(
            &name("append"),
            append,
            |_| log_of(1, clients),
            |log, _| {
                log.append(Arc::clone(&event), clients);
            },
        );
        // Each client stands somewhere in the log.
        let find = Call { operation: "client", operations: clients as usize, bytes: 0, counted };
        steps.step(
            &name("a cursor's next message, of 64"),
            find,
            |_| log_of(64, clients),
            |log, number| {
                for client in 0..clients as usize {
                    let queue = log.queue(&PUBLIC).unwrap();
                    black_box(log.entries_from(queue, ((client + number) % 64) as u64).next());
                }
            },
        );
        let settle = Call { operation: "client", ..find };
        steps.step(
            &name("settle"),
            settle,
            |calls| log_of(calls + 1, clients),
            |log, number| {
                for _ in 0..clients {
                    let queue = log.queue(&PUBLIC).unwrap();
                    log.settle(queue, number as u64);
                    log.sweep(queue);
                }
            },
        );
    }
}

/// Runs a step so often: what callgrind looks at.
pub fn run(step: &str, calls: usize) {
    all(&mut Steps::Run(step, calls));
    panic!("{step}: no such step");
}

/// Counts every step, as many at a time as there are cores, and prints the table.
pub fn table() {
    let there = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        println!("left out: instruction counts need valgrind");
        return;
    }
    let mut steps = Steps::List(Vec::new());
    all(&mut steps);
    let Steps::List(list) = steps else { unreachable!() };
    let waiting: Mutex<VecDeque<usize>> = Mutex::new((0..list.len()).collect());
    let counts: Mutex<Vec<u64>> = Mutex::new(vec![0; list.len()]);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(index) = waiting.lock().unwrap().pop_front() else { return };
                    let (name, call) = &list[index];
                    let count = instructions(name, FIRST + call.counted) - instructions(name, FIRST);
                    counts.lock().unwrap()[index] = count;
                }
            });
        }
    });
    let mut report = Report::new("instructions");
    for ((name, call), count) in list.iter().zip(counts.into_inner().unwrap()) {
        let each = count as f64 / call.counted as f64;
        let (operation, one) = (call.operation, each / call.operations as f64);
        let mut text = format!("{} instructions a {operation}", number(one, ""));
        let mut numbers = vec![("instructions_per_operation", one)];
        if call.bytes > 0 {
            let byte = each / call.bytes as f64;
            text += &format!(", {byte:.3} a byte");
            numbers.push(("instructions_per_byte", byte));
        }
        report.note(name, text, &numbers);
    }
    report.print();
}

/// All instructions of this program when it does so many calls of a step.
fn instructions(step: &str, calls: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["instructions-of", step, &calls.to_string()])
        // A `rep movs` would count once for each byte: copies by vectors, as the C library makes small ones.
        .env(
            "GLIBC_TUNABLES",
            "glibc.cpu.x86_rep_movsb_threshold=1000000000:glibc.cpu.x86_rep_stosb_threshold=1000000000",
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{step}: {said}");
    let count = said.lines().find_map(|line| line.split_once("Collected : ")).expect(&said);
    count.1.trim().parse().expect("a count")
}
