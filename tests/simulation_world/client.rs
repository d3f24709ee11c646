//! A client's side: a socket of random appetite, and the model of what has to come out of it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::rc::Rc;

use tidegate::core::client::Socket;
use tidegate::core::event::{Event, Transport, Verdict};
use tidegate::core::handover::Viewer;
use tidegate::core::relay::Inspection;
use tidegate::core::stream::Stream;

use super::name_of;

/// The response head that every client is given.
pub const HEAD: &[u8] = b"HEAD\n";

#[derive(Debug, Default)]
struct PipeState {
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
    pub fn new(appetite: usize) -> Pipe {
        Pipe(Rc::new(RefCell::new(PipeState { room: appetite, appetite, ..PipeState::default() })))
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
        assert!(!pipe.full, "written while full: one write per turn, none while blocked");
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

/// A message that a client has to get.
#[derive(Clone, PartialEq, Debug)]
struct Expected {
    stream: Stream,
    number: String,
}

/// What a client has to see.
#[derive(Debug)]
pub struct Model {
    pub transport: Transport,
    pub reactor: u16,
    /// Its place in the relay, once it has come.
    pub index: Option<u32>,
    viewer: Viewer,
    pipe: Pipe,
    streams: Vec<(Stream, u64)>,
    expected: VecDeque<Expected>,
    /// Bytes taken by the socket that were compared.
    read: usize,
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
            expected: VecDeque::new(),
            read: 0,
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

    pub fn is_gone(&self) -> bool {
        self.gone
    }

    pub fn owes_nothing(&self) -> bool {
        self.expected.is_empty()
    }

    pub fn gone(&mut self) {
        self.read();
        assert!(self.pipe.0.borrow().dropped, "a client is gone from the relay, its socket is not");
        self.gone = true;
    }

    /// The relay's view of it now: streams that are gone owe nothing, but a frame that was begun.
    pub fn sync(&mut self, seen: &Inspection<'_, SimSocket>) {
        self.read();
        if self.open && !seen.open {
            self.open = false;
            self.give_up(|_| true);
        }
        if self.open {
            let gone: Vec<Stream> = self
                .streams
                .iter()
                .filter(|(stream, _)| !seen.streams.iter().any(|(other, _)| other == stream))
                .map(|(stream, _)| stream.clone())
                .collect();
            self.give_up(|expected| gone.contains(&expected.stream));
        }
        self.streams = seen.streams.clone();
    }

    fn give_up(&mut self, whom: impl Fn(&Expected) -> bool) {
        let begun = self.message_begun();
        let first = begun.then(|| self.expected.pop_front()).flatten();
        self.expected.retain(|expected| !whom(expected));
        if let Some(first) = first {
            self.expected.push_front(first);
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

    /// The relay gets this event now.
    pub fn expect(&mut self, event: &Event) {
        if !self.open || self.index.is_none() {
            return;
        }
        let payload = std::str::from_utf8(event.payload()).unwrap();
        let number = number_in(payload);
        for (stream, live_after) in &self.streams {
            let channels = stream.channels(self.viewer.account, self.viewer.scopes.notifications());
            if !channels.contains(event.channel()) || *live_after >= event.position().seq {
                continue;
            }
            if event.needs_audience() && event.verdict(stream, self.viewer.account) != Verdict::Deliver(0) {
                continue;
            }
            self.expected.push_back(Expected { stream: stream.clone(), number: number.clone() });
        }
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
                let expected = self.expected.pop_front();
                let Some(expected) = expected else { panic!("nothing was expected, {text} came: {self:?}") };
                assert_eq!(number_in(&text), expected.number, "{self:?}");
                if self.transport == Transport::WebSocket {
                    assert!(text.contains(&name_of(&expected.stream)), "{text} is not {expected:?}");
                }
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
