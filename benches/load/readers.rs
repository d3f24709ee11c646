//! The clients of a load: many per thread, none of them trusted to be right.
//!
//! Each connection's messages carry a number and a time; every one is checked for its place (nothing lost, twice or
//! out of order) and timed against the moment it was published. A reader thread has one poll, one large buffer and no
//! allocation per message, so that it takes less of the machine than what it measures. Clients that this process has no
//! descriptors for are held by others (see `children`).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::board::Board;
use crate::children::{Crew, give_places_back, take_places};
use crate::stamp::{self, now_ns};
use crate::support::crowd::frame;

const BUFFER_BYTES: usize = 256 << 10;
const WAKE: Token = Token(usize::MAX);

/// How long anything may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// One connection to be made.
pub struct Plan {
    pub request: Vec<u8>,
    pub framing: Framing,
    /// The number of the first message that it is to get.
    pub first: u64,
}

/// How messages are told apart on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    WebSocket,
    /// Server-Sent Events in HTTP/1.1 chunks, one event a chunk or any other way.
    Events,
    /// WebSocket frames without a handshake: what the floor sends.
    Bare,
}

impl Framing {
    /// For another process.
    pub fn letter(self) -> &'static str {
        match self {
            Framing::WebSocket => "w",
            Framing::Events => "e",
            Framing::Bare => "b",
        }
    }

    pub fn of_letter(letter: &str) -> Framing {
        match letter {
            "w" => Framing::WebSocket,
            "e" => Framing::Events,
            _ => Framing::Bare,
        }
    }
}

enum Command {
    Connect(SocketAddr, Vec<Plan>),
    Pause(bool),
    Close,
    Quit,
}

/// The threads, and further processes if need be.
pub struct Readers {
    pub board: Arc<Board>,
    commands: Vec<(Sender<Command>, Arc<Waker>)>,
    threads: Vec<JoinHandle<()>>,
    crews: Vec<Crew>,
    planned: u64,
    /// Of those, the connections of this process.
    here: u64,
    yielding: bool,
}

impl Readers {
    /// So many threads; the calling thread is the one that waits.
    pub fn start(threads: usize) -> Readers {
        Readers::of(threads, false)
    }

    /// The same, but they let everything else have the processors first.
    pub fn start_yielding(threads: usize) -> Readers {
        Readers::of(threads, true)
    }

    fn of(threads: usize, yielding: bool) -> Readers {
        let (board, crews) = (Arc::new(Board::new()), Vec::new());
        let (commands, handles) = (Vec::new(), Vec::new());
        let mut readers = Readers { board, commands, threads: handles, crews, planned: 0, here: 0, yielding };
        for number in 0..threads {
            let poll = Poll::new().unwrap();
            let waker = Arc::new(Waker::new(poll.registry(), WAKE).unwrap());
            let (sender, receiver) = channel();
            let board = Arc::clone(&readers.board);
            let thread = std::thread::Builder::new().name(format!("reader-{number}"));
            let run = move || {
                if yielding {
                    yield_to_others();
                }
                Reader::new(poll, board).run(&receiver);
            };
            readers.threads.push(thread.spawn(run).unwrap());
            readers.commands.push((sender, waker));
        }
        readers
    }

    /// Opens connections as fast as they come; returns when the last has its response head.
    pub fn connect(&mut self, address: SocketAddr, plans: Vec<Plan>) -> Duration {
        let began = Instant::now();
        self.begin(address, plans);
        self.until_open();
        began.elapsed()
    }

    /// Starts to open connections.
    pub fn begin(&mut self, address: SocketAddr, plans: Vec<Plan>) {
        self.planned += plans.len() as u64;
        self.board.wait_for_opened(self.planned);
        let here = take_places(plans.len() as u64);
        self.here += here;
        let mut plans = VecDeque::from(plans);
        let mut rest = plans.split_off(here as usize);
        let share = plans.len().div_ceil(self.commands.len());
        for (sender, waker) in &self.commands {
            let part = plans.drain(..share.min(plans.len())).collect();
            sender.send(Command::Connect(address, part)).unwrap();
            waker.wake().unwrap();
        }
        while !rest.is_empty() {
            if !self.crews.iter().any(|crew| crew.room() > 0) {
                self.crews.push(Crew::start(Arc::clone(&self.board), self.yielding));
            }
            let crew = self.crews.iter_mut().find(|crew| crew.room() > 0).unwrap();
            let part: Vec<Plan> = rest.drain(..rest.len().min(crew.room() as usize)).collect();
            crew.connect(address, &part);
        }
    }

    pub fn until_open(&self) {
        self.wait("connections", || self.opened() >= self.planned);
    }

    /// How many connections have their response head.
    pub fn opened(&self) -> u64 {
        self.board.opened()
    }

    /// How many further processes have clients.
    pub fn processes(&self) -> usize {
        self.crews.len()
    }

    /// Stops or goes on reading.
    pub fn pause(&mut self, pause: bool) {
        self.tell(|| Command::Pause(pause));
        self.crews.iter_mut().for_each(|crew| crew.pause(pause));
    }

    /// Closes all connections.
    pub fn close(&mut self) {
        self.tell(|| Command::Close);
        self.crews.iter_mut().for_each(Crew::close);
        self.planned = 0;
        self.wait("the closing", || self.opened() == 0);
        give_places_back(std::mem::take(&mut self.here));
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for (sender, waker) in &self.commands {
            sender.send(command()).unwrap();
            waker.wake().unwrap();
        }
    }

    /// Messages received by all since the start.
    pub fn got(&self) -> u64 {
        self.board.got()
    }

    /// Waits until so many messages have been received since the start.
    pub fn until_got(&self, goal: u64) {
        self.board.wait_for_got(goal);
        self.wait("messages", || self.got() >= goal);
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            if let Some(failure) = self.board.failure() {
                panic!("{failure}");
            }
            let (got, opened) = (self.got(), self.opened());
            assert!(Instant::now() < deadline, "waited too long for {what}: {got} messages, {opened} open");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// The latencies since the last call, in microseconds, sorted.
    pub fn take_latencies(&self) -> Vec<u32> {
        let mut latencies = self.board.take_latencies();
        latencies.sort_unstable();
        latencies
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for (sender, waker) in &self.commands {
            let _ = sender.send(Command::Quit);
            let _ = waker.wake();
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        give_places_back(self.here);
    }
}

/// What this thread does is for a machine that stands elsewhere: it waits while others have work.
fn yield_to_others() {
    use rustix::process::{getpriority_process, setpriority_process};
    let nice = getpriority_process(None).unwrap_or(0) + 10;
    // Linux takes the calling thread for "the process".
    setpriority_process(None, nice.min(19)).unwrap();
}

struct Connection {
    socket: TcpStream,
    framing: Framing,
    has_head: bool,
    request: Vec<u8>,
    /// The beginning of what is not whole yet.
    rest: Vec<u8>,
    next: u64,
}

struct Reader {
    poll: Poll,
    board: Arc<Board>,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    latencies_us: Vec<u32>,
    paused: bool,
}

impl Reader {
    fn new(poll: Poll, board: Arc<Board>) -> Reader {
        Reader {
            poll,
            board,
            connections: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
            latencies_us: Vec::new(),
            paused: false,
        }
    }

    fn run(mut self, commands: &Receiver<Command>) {
        let mut events = Events::with_capacity(4096);
        loop {
            self.poll.poll(&mut events, Some(Duration::from_millis(200))).unwrap();
            while let Ok(command) = commands.try_recv() {
                match command {
                    Command::Connect(address, plans) => self.connect(address, plans),
                    Command::Pause(pause) => {
                        self.paused = pause;
                        if !pause {
                            (0..self.connections.len()).for_each(|index| self.work(index));
                        }
                    }
                    Command::Close => {
                        self.board.opened_more(-(self.connections.len() as i64));
                        self.connections = Vec::new();
                    }
                    Command::Quit => return,
                }
            }
            self.turn(&events);
        }
    }

    fn turn(&mut self, events: &Events) {
        if !self.paused {
            for event in events {
                if event.token() != WAKE {
                    self.work(event.token().0);
                }
            }
        }
        if !self.latencies_us.is_empty() {
            // One for each message that came in this turn.
            self.board.got_more(self.latencies_us.len() as u64, &mut self.latencies_us);
        }
        self.board.tell_waiter();
    }

    fn connect(&mut self, address: SocketAddr, plans: Vec<Plan>) {
        let mut events = Events::with_capacity(4096);
        for (count, plan) in plans.into_iter().enumerate() {
            let mut socket = open(address);
            let token = Token(self.connections.len());
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, token, interest).unwrap();
            self.connections.push(Connection {
                socket,
                framing: plan.framing,
                has_head: false,
                request: plan.request,
                rest: Vec::new(),
                next: plan.first,
            });
            if count % 64 == 63 {
                self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
                self.turn(&events);
            }
        }
        // What could be done before the poll was asked brings no further edge.
        (0..self.connections.len()).for_each(|index| self.work(index));
    }

    fn work(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if let Err(error) = advance(connection, &mut self.buffer, &self.board, &mut self.latencies_us) {
            self.board.fail(format!("connection {index}: {error}"));
        }
    }
}

const OF_ONE_ADDRESS: u32 = 4000;

static OPENED: AtomicU32 = AtomicU32::new(0);

/// Source addresses of this process, the bench's `number`-th, are its own.
pub fn connect_from(number: u32) {
    // 65 million connections.
    OPENED.store((number % 128) * (1 << 14) * OF_ONE_ADDRESS, Ordering::Relaxed);
}

/// A connection begun. Each source address is used for so many and then never again: closed connections hold their
/// ports for a minute, and looking for a free one among them takes the kernel milliseconds.
pub fn open(address: SocketAddr) -> TcpStream {
    let source = OPENED.fetch_add(1, Ordering::Relaxed) / OF_ONE_ADDRESS;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_tcp_nodelay(true).unwrap();
    let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 1, 1)) + source);
    socket.bind(&SocketAddr::new(IpAddr::V4(source), 0).into()).unwrap();
    match socket.connect(&address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => panic!("{address}: {error}"),
    }
    TcpStream::from_std(socket.into())
}

fn advance(
    connection: &mut Connection,
    buffer: &mut [u8],
    board: &Board,
    latencies: &mut Vec<u32>,
) -> Result<(), String> {
    while !connection.request.is_empty() {
        match connection.socket.write(&connection.request) {
            Ok(written) => drop(connection.request.drain(..written)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
            Err(error) => return Err(format!("the request cannot be sent: {error}")),
        }
    }
    if connection.request.capacity() > 0 && connection.request.is_empty() {
        connection.request = Vec::new();
    }
    loop {
        let read = match connection.socket.read(buffer) {
            Ok(0) => return Err("closed by the server".to_owned()),
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        let now_ns = now_ns();
        if connection.rest.is_empty() {
            let used = take(connection, &buffer[..read], now_ns, board, latencies)?;
            connection.rest.extend_from_slice(&buffer[used..read]);
        } else {
            let mut whole = std::mem::take(&mut connection.rest);
            whole.extend_from_slice(&buffer[..read]);
            let used = take(connection, &whole, now_ns, board, latencies)?;
            if used < whole.len() {
                whole.drain(..used);
                connection.rest = whole;
            }
        }
        if read < buffer.len() {
            return Ok(());
        }
    }
}

/// Takes every whole message; returns how many bytes that were.
fn take(
    connection: &mut Connection,
    bytes: &[u8],
    now_ns: u64,
    board: &Board,
    latencies: &mut Vec<u32>,
) -> Result<usize, String> {
    let mut used = 0;
    if !connection.has_head {
        if connection.framing != Framing::Bare {
            let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(0) };
            let status = bytes.get(9..12).unwrap_or_default();
            if status != b"101" && status != b"200" {
                return Err(String::from_utf8_lossy(&bytes[..end.min(200)]).into_owned());
            }
            used = end + 4;
        }
        connection.has_head = true;
        board.opened_more(1);
    }
    while let Some((length, body)) = match connection.framing {
        Framing::WebSocket | Framing::Bare => frame(&bytes[used..]),
        Framing::Events => chunk(&bytes[used..])?,
    } {
        if connection.framing == Framing::WebSocket && bytes[used] & 0x0f == 9 {
            pong(connection, body)?;
        } else if let Some((number, sent_ns)) = stamp::read(body) {
            if number != connection.next {
                return Err(format!("{} is next, {number} came", connection.next));
            }
            connection.next += 1;
            latencies.push((now_ns.saturating_sub(sent_ns) / 1000) as u32);
        }
        used += length;
    }
    Ok(used)
}

/// Answers a ping; a masked frame with a mask of zeros (RFC 6455, 5.5.3 and 5.3).
fn pong(connection: &mut Connection, body: &[u8]) -> Result<(), String> {
    let mut bytes = vec![0x8a, 0x80 | body.len() as u8, 0, 0, 0, 0];
    bytes.extend_from_slice(body);
    connection.socket.write_all(&bytes).map_err(|error| format!("a pong: {error}"))
}

/// A chunk's length and what is in it.
fn chunk(bytes: &[u8]) -> Result<Option<(usize, &[u8])>, String> {
    let Some(line) = memchr::memmem::find(&bytes[..bytes.len().min(20)], b"\r\n") else { return Ok(None) };
    let length = std::str::from_utf8(&bytes[..line])
        .ok()
        .and_then(|text| usize::from_str_radix(text, 16).ok())
        .ok_or("a chunk without length")?;
    if length == 0 {
        return Err("the response ended".to_owned());
    }
    let end = line + 2 + length;
    Ok(bytes.get(..end + 2).map(|whole| (end + 2, &whole[line + 2..end])))
}
