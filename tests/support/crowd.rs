//! Many clients on one thread: each connection's messages are numbered and checked as they come.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::http::request;
use super::ws::RawWs;
use super::ws::upgrade;

/// First bytes of whole frames.
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// A connection of the crowd.
pub struct Client {
    pub socket: TcpStream,
    pub websocket: bool,
    request: Vec<u8>,
    inbox: Vec<u8>,
    pub has_head: bool,
    /// The number of the message that comes next.
    pub next: u64,
    /// How many came.
    pub got: u64,
    /// When each came, where that is wanted.
    pub arrivals: Option<Vec<Instant>>,
    /// Whether messages may be left out (filtered); never out of order or twice.
    pub filtered: bool,
}

impl Client {
    /// Asks for `user` by WebSocket, or for that stream by Server-Sent Events.
    pub fn connect(server: SocketAddr, token: &str, path: Option<&str>) -> Client {
        let websocket = path.is_none();
        let bearer = format!("Bearer {token}");
        let request = if let Some(path) = path {
            request("GET", path, &[("Authorization", bearer.as_str())])
        } else {
            upgrade("/api/v1/streaming?stream=user", &[("Authorization", &bearer)])
        };
        let socket = TcpStream::connect(server).unwrap();
        Client {
            socket,
            websocket,
            request: request.into(),
            inbox: Vec::new(),
            has_head: false,
            next: 0,
            got: 0,
            arrivals: None,
            filtered: false,
        }
    }

    /// Sends and reads what can be, checks what came, and answers pings.
    pub fn work(&mut self) {
        if !self.send() {
            return;
        }
        let mut buffer = [0; 16 << 10];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("the server closed a connection: {:?}", String::from_utf8_lossy(&self.inbox)),
                Ok(read) => self.inbox.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("a connection broke: {error}"),
            }
        }
        let mut used = 0;
        if !self.has_head {
            let Some(end) = self.inbox.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return };
            let status = if self.websocket { "HTTP/1.1 101" } else { "HTTP/1.1 200" };
            assert!(self.inbox.starts_with(status.as_bytes()), "{:?}", String::from_utf8_lossy(&self.inbox));
            self.has_head = true;
            used = end + 4;
        }
        loop {
            let rest = &self.inbox[used..];
            let Some((length, body)) = (if self.websocket { frame(rest) } else { chunk(rest) }) else {
                break;
            };
            if self.websocket && rest[0] == PING {
                self.request.extend(RawWs::encode(PONG, body));
            } else if body.windows(6).any(|bytes| bytes == b"update") {
                let number = number(body);
                let in_order = if self.filtered { number >= self.next } else { number == self.next };
                assert!(in_order, "{} is next, this came: {}", self.next, String::from_utf8_lossy(body));
                self.next = number + 1;
                self.got += 1;
                if let Some(arrivals) = &mut self.arrivals {
                    arrivals.push(Instant::now());
                }
            }
            used += length;
        }
        self.inbox.drain(..used);
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
        self.send();
    }

    /// Sends what waits, as far as the socket takes it; false while it is not connected.
    fn send(&mut self) -> bool {
        while !self.request.is_empty() {
            match self.socket.write(&self.request) {
                Ok(written) => drop(self.request.drain(..written)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::NotConnected => return false,
                Err(error) => panic!("a request cannot be sent: {error}"),
            }
        }
        true
    }
}

/// A frame's length, and the part that may hold a message.
pub fn frame(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (head, length) = match *bytes.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?) as usize),
        short => (2, usize::from(short)),
    };
    Some((head + length, bytes.get(head..head + length)?))
}

fn chunk(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let line = bytes.windows(2).position(|bytes| bytes == b"\r\n")?;
    let length = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
    bytes.get(line + 2 + length + 1)?;
    Some((line + 2 + length + 2, &bytes[line + 2..line + 2 + length]))
}

/// The status's id, which is its number behind a base; other ids (the author's) are far from it.
fn number(body: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(body).replace('\\', "");
    text.split("\"id\":\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"')?.0.parse::<u64>().ok()?.checked_sub(BASE))
        .find(|number| *number < 1_000_000)
        .expect("a numbered status")
}

/// Statuses of the crowd are numbered from here.
pub const BASE: u64 = 100_000_000_000_000_000;

/// Many connections on one poll.
pub struct Crowd {
    pub poll: Poll,
    pub clients: Vec<Client>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new() -> Crowd {
        Crowd { poll: Poll::new().unwrap(), clients: Vec::new() }
    }

    /// One more; some work is done between many.
    pub fn join(&mut self, mut client: Client, deadline: Instant) {
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut client.socket, Token(self.clients.len()), interest).unwrap();
        self.clients.push(client);
        if self.clients.len().is_multiple_of(128) {
            self.turn(deadline);
        }
    }

    pub fn turn(&mut self, deadline: Instant) {
        assert!(Instant::now() < deadline, "it takes too long: {}", self.state());
        let mut events = Events::with_capacity(1024);
        self.poll.poll(&mut events, Some(Duration::from_millis(100))).unwrap();
        for event in &events {
            self.clients[event.token().0].work();
        }
    }

    pub fn state(&self) -> String {
        let behind = |websocket| {
            self.clients.iter().filter(|c| c.websocket == websocket).map(|c| c.next).min().unwrap_or(0)
        };
        format!("WebSockets have at least {}, SSE {}", behind(true), behind(false))
    }

    pub fn until(&mut self, what: &str, condition: impl Fn(&Client) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(240);
        while !self.clients.iter().all(&condition) {
            self.turn(deadline);
        }
        println!("{what}");
    }
}
