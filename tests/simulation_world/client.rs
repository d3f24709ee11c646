//! A client's side: a socket of random appetite, and the model of what has to come out of it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::time::Duration;

use tidegate::core::client::Socket;
use tidegate::core::event::Transport;
use tidegate::core::handover::Viewer;
use tidegate::core::relay::Inspection;
use tidegate::core::stream::{Channel, Channels, Stream};

use super::name_of;

/// The response head that every client is given.
pub const HEAD: &[u8] = b"HEAD\n";

/// What all sockets know of the world.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// The time of the turn.
    pub now: Rc<Cell<Duration>>,
    /// The relay finds out who is stalled, or runs its timers: it may write to full sockets.
    pub probing: Rc<Cell<bool>>,
}

#[derive(Debug, Default)]
struct PipeState {
    weather: Weather,
    /// When it last took a byte.
    taken_at: Duration,
    /// Bytes that the socket takes before it is full; refilled when the client reads.
    room: usize,
    appetite: usize,
    /// It takes one piece of a write at a time, whole: it is full at the border of a frame.
    piecewise: bool,
    full: bool,
    /// It was full at least once.
    stalled: bool,
    taken: Vec<u8>,
    to_server: VecDeque<u8>,
    left: bool,
    news: bool,
    finished: bool,
    reset: bool,
    dropped: bool,
}

/// Both ends of a connection.
#[derive(Clone, Debug)]
pub struct Pipe(Rc<RefCell<PipeState>>);

impl Pipe {
    pub fn new(appetite: usize, weather: &Weather) -> Pipe {
        let (weather, taken_at) = (weather.clone(), weather.now.get());
        let state = PipeState { room: appetite, appetite, weather, taken_at, ..PipeState::default() };
        Pipe(Rc::new(RefCell::new(state)))
    }

    /// How long it has taken no byte.
    pub fn taken_nothing_for(&self) -> Duration {
        let pipe = self.0.borrow();
        pipe.weather.now.get().saturating_sub(pipe.taken_at)
    }

    /// The client sends a text message, masked with zeros.
    pub fn say(&self, text: &str) {
        let mut pipe = self.0.borrow_mut();
        pipe.to_server.push_back(0x81);
        assert!(text.len() < 126);
        pipe.to_server.push_back(0x80 | text.len() as u8);
        pipe.to_server.extend([0; 4]);
        pipe.to_server.extend(text.as_bytes());
        pipe.news = true;
    }

    pub fn leave(&self) {
        let mut pipe = self.0.borrow_mut();
        pipe.left = true;
        pipe.news = true;
    }

    pub fn has_left(&self) -> bool {
        self.0.borrow().left
    }

    pub fn appetite(&self, appetite: usize) {
        let mut pipe = self.0.borrow_mut();
        pipe.appetite = appetite;
        pipe.piecewise = false;
    }

    pub fn piecewise(&self) {
        self.appetite(usize::MAX);
        self.0.borrow_mut().piecewise = true;
    }

    /// The client reads: there is room again. True if the socket was full, as an edge-triggered poll says it.
    pub fn has_become_writable(&self) -> bool {
        let mut pipe = self.0.borrow_mut();
        pipe.room = pipe.appetite;
        pipe.room > 0 && std::mem::take(&mut pipe.full)
    }

    pub fn has_news(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().news)
    }
}

/// The server's end.
#[derive(Debug)]
pub struct SimSocket {
    key: u64,
    pipe: Pipe,
}

impl SimSocket {
    pub fn new(key: u64, pipe: Pipe) -> SimSocket {
        SimSocket { key, pipe }
    }

    pub fn key(&self) -> u64 {
        self.key
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        self.pipe.0.borrow_mut().dropped = true;
    }
}

impl Socket for SimSocket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.pipe.0.borrow_mut();
        let count = into.len().min(pipe.to_server.len());
        if count == 0 {
            return if pipe.left { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        for (byte, sent) in into.iter_mut().zip(pipe.to_server.drain(..count)) {
            *byte = sent;
        }
        Ok(count)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.pipe.0.borrow_mut();
        assert!(!pipe.finished, "written after the end");
        let probing = pipe.weather.probing.get();
        assert!(!pipe.full || probing, "written while full: one write per turn, none while blocked");
        if pipe.left && pipe.room.is_multiple_of(3) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let first = slices.first().map_or(0, |slice| slice.len());
        let taken = if pipe.piecewise { first.min(pipe.room) } else { offered.min(pipe.room) };
        for byte in slices.iter().flat_map(|slice| slice.iter()).take(taken) {
            pipe.taken.push(*byte);
        }
        pipe.room -= taken;
        if taken > 0 {
            pipe.taken_at = pipe.weather.now.get();
        }
        if taken < offered {
            pipe.full = true;
            pipe.stalled = true;
        }
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    fn finish(&mut self) {
        self.pipe.0.borrow_mut().finished = true;
    }

    fn reset(&mut self) {
        self.pipe.0.borrow_mut().reset = true;
    }
}

/// A message as the simulation knows it: where it was published, and who may not see it.
#[derive(Clone, Debug)]
pub struct Published {
    pub channel: Channel,
    pub number: String,
    /// A status on a filtered channel: accounts that do not get it.
    pub withheld: Vec<u64>,
}

/// A message that a client has to get.
#[derive(Clone, PartialEq, Debug)]
struct Expected {
    stream: Stream,
    channel: Channel,
    number: String,
}

impl Expected {
    /// Whether the two come in the order of their publication: on one channel always; of different channels if
    /// neither passes the audience stage.
    fn keeps_order_with(&self, other: &Expected) -> bool {
        self.channel == other.channel || !self.channel.is_filtered() && !other.channel.is_filtered()
    }
}

/// A subscription, from when the ingest registered it.
#[derive(Debug)]
struct Registered {
    stream: Stream,
    channels: Channels,
    /// The relay has it.
    arrived: bool,
    /// Redis has confirmed it.
    confirmed: bool,
}

/// What a client has to see. It knows what is owed from the world, never from the relay.
#[derive(Debug)]
pub struct Model {
    pub transport: Transport,
    pub reactor: u16,
    /// Its place in the relay, once it has come.
    pub index: Option<u32>,
    viewer: Viewer,
    pipe: Pipe,
    streams: Vec<Registered>,
    /// Streams that the client asked to end, or that were refused.
    ended: Vec<Stream>,
    expected: VecDeque<Expected>,
    /// Messages given up while one message was half written, which may have been one of these.
    begun: Vec<Expected>,
    /// Bytes taken by the socket that were compared.
    read: usize,
    /// When it last took the end of a frame.
    progress_at: Duration,
    open: bool,
    gone: bool,
}

impl Model {
    pub fn new(transport: Transport, viewer: Viewer, pipe: Pipe, reactor: u16) -> Model {
        Model {
            transport,
            reactor,
            index: None,
            viewer,
            pipe,
            streams: Vec::new(),
            ended: Vec::new(),
            expected: VecDeque::new(),
            begun: Vec::new(),
            read: 0,
            progress_at: Duration::ZERO,
            open: true,
            gone: false,
        }
    }

    pub fn pipe(&self) -> Pipe {
        self.pipe.clone()
    }

    pub fn is_open(&self) -> bool {
        self.open && self.index.is_some() && !self.pipe.has_left()
    }

    pub fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().map(|registered| &registered.stream)
    }

    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// How long it has taken no whole message.
    pub fn finished_nothing_for(&self) -> Duration {
        self.pipe.0.borrow().weather.now.get().saturating_sub(self.progress_at)
    }

    pub fn owes_nothing(&self) -> bool {
        self.expected.is_empty()
    }

    pub fn gone(&mut self) {
        self.read();
        assert!(self.pipe.0.borrow().dropped, "a client is gone from the relay, its socket is not");
        self.gone = true;
    }

    /// The ingest has registered this subscription: what it reads from now on is owed.
    pub fn register(&mut self, stream: Stream) {
        let channels = stream.channels(self.viewer.account, self.viewer.scopes.notifications());
        self.streams.push(Registered { stream, channels, arrived: false, confirmed: false });
    }

    /// Redis has confirmed that stream.
    pub fn confirm(&mut self, stream: &Stream) {
        for registered in self.streams.iter_mut().filter(|registered| registered.stream == *stream) {
            registered.confirmed = true;
        }
    }

    /// The connection to Redis is lost: the client may miss something, and will be told.
    pub fn redis_lost(&mut self) {
        self.streams.iter_mut().for_each(|registered| registered.confirmed = false);
    }

    /// The relay has been given that stream.
    pub fn arrived(&mut self, stream: &Stream) {
        for registered in self.streams.iter_mut().filter(|registered| registered.stream == *stream) {
            registered.arrived = true;
        }
    }

    /// The client has come to its relay, with the stream of its request.
    pub fn everything_arrived(&mut self) {
        self.streams.iter_mut().for_each(|registered| registered.arrived = true);
    }

    /// The stream may end: the client has asked for it, or Redis has refused it.
    pub fn may_end(&mut self, stream: &Stream) {
        self.ended.push(stream.clone());
    }

    /// Whether an open client has a confirmed subscription of that channel.
    pub fn listens_to(&self, channel: &Channel) -> bool {
        let confirmed =
            |registered: &&Registered| registered.confirmed && !self.ended.contains(&registered.stream);
        self.is_open() && self.streams.iter().filter(confirmed).any(|sub| sub.channels.contains(channel))
    }

    /// The relay's view of it now: streams that ended owe nothing, but a frame that was begun.
    pub fn sync(&mut self, seen: &Inspection<'_, SimSocket>) {
        self.read();
        if self.open && !seen.open {
            self.open = false;
            self.give_up(|_| true);
        }
        if !self.open {
            return;
        }
        let ended: Vec<Stream> = self
            .streams
            .iter()
            .filter(|registered| registered.arrived && !seen.streams.contains(&registered.stream))
            .map(|registered| registered.stream.clone())
            .collect();
        for stream in &ended {
            assert!(self.ended.contains(stream), "{stream:?} ended, and nobody asked for that: {self:?}");
        }
        self.give_up(|expected| ended.contains(&expected.stream));
        self.streams.retain(|registered| !ended.contains(&registered.stream));
        for stream in &seen.streams {
            let known = self.streams.iter().any(|registered| registered.stream == *stream);
            assert!(known, "the relay has {stream:?}, which was never registered: {self:?}");
        }
    }

    fn give_up(&mut self, whom: impl Fn(&Expected) -> bool) {
        let begun = self.message_begun();
        let (given_up, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.expected).into_iter().partition(whom);
        self.expected = kept.into();
        if begun {
            self.begun.extend(given_up);
        }
    }

    /// Whether the unread rest begins a message (not a control frame, not a comment).
    fn message_begun(&self) -> bool {
        let pipe = self.pipe.0.borrow();
        let rest = &pipe.taken[self.read..];
        match self.transport {
            Transport::WebSocket => rest.first() == Some(&0x81),
            _ => !rest.is_empty() && !(b"8\r\n:thump\n\n\r\n".starts_with(rest)),
        }
    }

    /// The ingest has read that message: each subscription that is registered gets it.
    pub fn expect(&mut self, message: &Published) {
        if !self.open || message.withheld.contains(&self.viewer.account) {
            return;
        }
        for registered in &self.streams {
            if registered.channels.contains(&message.channel) {
                let (stream, channel) = (registered.stream.clone(), message.channel.clone());
                self.expected.push_back(Expected { stream, channel, number: message.number.clone() });
            }
        }
    }

    /// A message has come: it is one that is owed, and none is owed before it.
    fn came(&mut self, text: &str) {
        let number = number_in(text);
        let websocket = self.transport == Transport::WebSocket;
        let is_it = |expected: &Expected| {
            expected.number == number && (!websocket || text.contains(&name_of(&expected.stream)))
        };
        let begun = std::mem::take(&mut self.begun);
        let Some(at) = self.expected.iter().position(is_it) else {
            assert!(begun.iter().any(is_it), "{number} came and is not owed: {text}: {self:?}");
            return;
        };
        let found = &self.expected[at];
        let before = self.expected.iter().take(at).find(|earlier| earlier.keeps_order_with(found));
        assert_eq!(before, None, "{number} came before it: {self:?}");
        self.expected.remove(at);
    }

    /// Compares what the socket took with what was expected.
    pub fn read(&mut self) {
        let pipe = self.pipe.0.clone();
        let pipe = pipe.borrow();
        loop {
            let rest = &pipe.taken[self.read..];
            if self.read < HEAD.len() {
                if rest.len() < HEAD.len() {
                    return;
                }
                assert_eq!(&rest[..HEAD.len()], HEAD, "the head comes first");
                self.read = HEAD.len();
                continue;
            }
            let (used, message) = match self.transport {
                Transport::WebSocket => websocket_frame(rest),
                _ => chunk(rest),
            };
            if used == 0 {
                return;
            }
            if !pipe.stalled {
                // 1013 or its comment.
                let too_slow = rest.starts_with(&[0x88]) && rest.get(2..4) == Some(&[0x03, 0xf5])
                    || memchr::memmem::find(&rest[..used], b":too slow").is_some();
                assert!(!too_slow, "closed as too slow, and its socket was never full: {self:?}");
            }
            self.read += used;
            if let Some(text) = message {
                self.progress_at = pipe.weather.now.get();
                self.came(&text);
            }
        }
    }
}

/// The message's number; the same in any framing.
fn number_in(text: &str) -> String {
    let start = text.find("id\\\":\\\"").map(|at| at + 7).or_else(|| text.find("id\":\"").map(|at| at + 5));
    let start = start.expect("a numbered message");
    text[start..].chars().take_while(char::is_ascii_digit).collect()
}

/// One WebSocket frame: its length, and its text if it is a message. 0 if it is not all there.
fn websocket_frame(bytes: &[u8]) -> (usize, Option<String>) {
    let (Some(first), Some(length)) = (bytes.first(), bytes.get(1)) else { return (0, None) };
    let (head, length) = match length {
        126 if bytes.len() >= 4 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        127 if bytes.len() >= 10 => (10, u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize),
        126 | 127 => return (0, None),
        short => (2, usize::from(*short)),
    };
    if bytes.len() < head + length {
        return (0, None);
    }
    let text = String::from_utf8(bytes[head..head + length].to_vec());
    match first {
        0x81 => {
            let text = text.expect("text is UTF-8");
            let message = (!text.starts_with("{\"error\"")).then_some(text);
            (head + length, message)
        }
        0x88..=0x8a => (head + length, None),
        other => panic!("frame type {other:#x}"),
    }
}

/// One HTTP chunk with an event, a comment or the end.
fn chunk(bytes: &[u8]) -> (usize, Option<String>) {
    let Some(line) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return (0, None) };
    let length = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).expect("a length");
    let all = line + 2 + length + 2;
    if bytes.len() < all {
        return (0, None);
    }
    let text = String::from_utf8(bytes[line + 2..line + 2 + length].to_vec()).unwrap();
    assert_eq!(&bytes[all - 2..all], b"\r\n", "a chunk ends with a line");
    (all, text.starts_with("event: ").then_some(text))
}
