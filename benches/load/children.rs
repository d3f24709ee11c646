//! Clients beyond what one process may have open: in further processes of this program, each with a reader thread.
//!
//! A child does what it is told on its standard input and says on its standard output what has come; its clients are
//! held to the same. It ends when its input does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::board::Board;
use crate::readers::{Framing, Plan, Readers};

/// Descriptors that a process needs besides its clients: the floor's, pipes, epoll instances, Redis, PostgreSQL.
const RESERVED: u64 = 300;

/// Clients that this process holds.
static HELD: AtomicU64 = AtomicU64::new(0);

/// How many clients a process may hold: what RLIMIT_NOFILE lets it, or `LOAD_READERS_PER_PROCESS`.
fn per_process() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(RESERVED).max(1);
    let wanted = std::env::var("LOAD_READERS_PER_PROCESS").ok().map(|text| text.parse().expect("a number"));
    wanted.unwrap_or(allowed).min(allowed)
}

/// Takes so many places for clients in this process, or as many as there are.
pub fn take_places(wanted: u64) -> u64 {
    let taken = wanted.min(per_process().saturating_sub(HELD.load(Ordering::SeqCst)));
    HELD.fetch_add(taken, Ordering::SeqCst);
    taken
}

pub fn give_places_back(count: u64) {
    HELD.fetch_sub(count, Ordering::SeqCst);
}

/// A process with readers.
pub struct Crew {
    child: Child,
    input: Option<ChildStdin>,
    listener: Option<JoinHandle<()>>,
    ending: Arc<AtomicBool>,
    held: u64,
}

impl Crew {
    /// Starts one; what its clients get is counted on `board`.
    pub fn start(board: Arc<Board>, yielding: bool) -> Crew {
        static STARTED: AtomicU32 = AtomicU32::new(1);
        let number = STARTED.fetch_add(1, Ordering::SeqCst);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["readers-process", &number.to_string(), &yielding.to_string()])
            .env_remove("LOAD_READERS_PER_PROCESS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let ending = Arc::new(AtomicBool::new(false));
        let expected = Arc::clone(&ending);
        let listener = std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                match line.split_once(' ') {
                    Some(("opened", more)) => board.opened_more(more.parse().unwrap()),
                    Some(("got", figures)) => {
                        let mut figures = figures.split(' ').map(|figure| figure.parse::<u64>().unwrap());
                        let count = figures.next().unwrap();
                        board.got_more(count, &mut figures.map(|latency| latency as u32).collect());
                    }
                    _ => board.fail(line),
                }
                board.tell_waiter();
            }
            if !expected.load(Ordering::SeqCst) {
                board.fail("a process with readers has ended".to_owned());
            }
        });
        Crew { child, input, listener: Some(listener), ending, held: 0 }
    }

    /// How many more clients it may hold.
    pub fn room(&self) -> u64 {
        per_process().saturating_sub(self.held)
    }

    pub fn connect(&mut self, address: SocketAddr, plans: &[Plan]) {
        self.held += plans.len() as u64;
        let mut bytes = format!("connect {address} {}\n", plans.len()).into_bytes();
        for plan in plans {
            let length = plan.request.len();
            bytes.extend(format!("{} {} {length}\n", plan.framing.letter(), plan.first).into_bytes());
            bytes.extend_from_slice(&plan.request);
        }
        self.tell(&bytes);
    }

    pub fn pause(&mut self, pause: bool) {
        self.tell(format!("pause {pause}\n").as_bytes());
    }

    pub fn close(&mut self) {
        self.held = 0;
        self.tell(b"close\n");
    }

    fn tell(&mut self, bytes: &[u8]) {
        // If it has ended, the board knows.
        let _ = self.input.as_mut().map(|input| input.write_all(bytes));
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        drop(self.input.take());
        let _ = self.child.wait();
        let _ = self.listener.take().map(JoinHandle::join);
    }
}

/// Such a process.
pub fn process(arguments: &[String]) {
    let [number, yielding] = arguments else { panic!("a number, and whether to yield") };
    crate::readers::connect_from(number.parse().unwrap());
    let readers = if yielding == "true" { Readers::start_yielding(1) } else { Readers::start(1) };
    let board = Arc::clone(&readers.board);
    // The main thread is told of every turn in which something came.
    board.wait_for_got(0);
    std::thread::spawn(move || obey(readers));
    let (mut opened, mut got) = (0, 0);
    loop {
        std::thread::park_timeout(Duration::from_millis(50));
        let (opened_now, got_now) = (board.opened(), board.got());
        let mut lines = String::new();
        if opened_now != opened {
            lines += &format!("opened {}\n", opened_now as i64 - opened as i64);
        }
        if got_now != got {
            lines += &format!("got {}", got_now - got);
            board.take_latencies().iter().for_each(|latency| lines += &format!(" {latency}"));
            lines.push('\n');
        }
        if let Some(failure) = board.failure() {
            lines += &format!("{failure}\n");
        }
        (opened, got) = (opened_now, got_now);
        if std::io::stdout().write_all(lines.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
            return;
        }
    }
}

fn obey(mut readers: Readers) {
    let mut input = BufReader::new(std::io::stdin());
    let line = |input: &mut BufReader<std::io::Stdin>| {
        let mut line = String::new();
        input.read_line(&mut line).unwrap();
        line.trim_end().split(' ').map(str::to_owned).collect::<Vec<String>>()
    };
    loop {
        let words = line(&mut input);
        match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["connect", address, count] => {
                let plans = (0..count.parse().unwrap()).map(|_| {
                    let words = line(&mut input);
                    let mut request = vec![0; words[2].parse().unwrap()];
                    input.read_exact(&mut request).unwrap();
                    Plan { request, framing: Framing::of_letter(&words[0]), first: words[1].parse().unwrap() }
                });
                let plans = plans.collect();
                readers.begin(address.parse().unwrap(), plans);
            }
            ["pause", pause] => readers.pause(pause == "true"),
            ["close"] => readers.close(),
            _ => std::process::exit(0),
        }
    }
}
