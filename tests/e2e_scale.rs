//! Many clients at once: half of them WebSockets on `user` with accounts of their own, half Server-Sent Events
//! on one public channel. All connect, idle, and then each gets 200 messages, both transports at once, in order
//! and once. Prints what the server's memory was.
//!
//! 1,000 clients by default; `SCALE_CLIENTS=10000 cargo test --release --test e2e_scale -- --nocapture` is the
//! whole of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use support::World;
use support::http::request;
use support::posts;

const ROUNDS: u64 = 200;

/// Rounds published and not yet everywhere, at most.
const ROUNDS_OPEN: u64 = 8;

struct Client {
    socket: TcpStream,
    websocket: bool,
    request: Vec<u8>,
    inbox: Vec<u8>,
    has_head: bool,
    /// The number of the message that comes next.
    next: u64,
}

impl Client {
    fn connect(server: SocketAddr, token: &str, websocket: bool) -> Client {
        let bearer = format!("Bearer {token}");
        let request = if websocket {
            let upgrade = [
                ("Authorization", bearer.as_str()),
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ];
            request("GET", "/api/v1/streaming?stream=user", &upgrade)
        } else {
            request("GET", "/api/v1/streaming/public", &[("Authorization", bearer.as_str())])
        };
        let socket = TcpStream::connect(server).unwrap();
        Client { socket, websocket, request: request.into(), inbox: Vec::new(), has_head: false, next: 0 }
    }

    fn work(&mut self) {
        while !self.request.is_empty() {
            match self.socket.write(&self.request) {
                Ok(written) => drop(self.request.drain(..written)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == std::io::ErrorKind::NotConnected => return,
                Err(error) => panic!("a request cannot be sent: {error}"),
            }
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
            if body.windows(6).any(|bytes| bytes == b"update") {
                let number = number(body);
                assert_eq!(number, self.next, "order, once: {}", String::from_utf8_lossy(body));
                self.next += 1;
            }
            used += length;
        }
        self.inbox.drain(..used);
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
    }
}

/// A frame's length, and the part that may hold a message.
fn frame(bytes: &[u8]) -> Option<(usize, &[u8])> {
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

/// The status's id, which is its number behind a base; other ids (the author's) are smaller.
fn number(body: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(body).replace('\\', "");
    text.split("\"id\":\"")
        .skip(1)
        .filter_map(|rest| rest.split_once('"')?.0.parse::<u64>().ok()?.checked_sub(BASE))
        .next()
        .expect("a numbered status")
}

const BASE: u64 = 100_000_000_000_000_000;

struct Crowd {
    poll: Poll,
    clients: Vec<Client>,
}

impl Crowd {
    fn turn(&mut self, deadline: Instant) {
        assert!(Instant::now() < deadline, "it takes too long: {}", self.state());
        let mut events = Events::with_capacity(1024);
        self.poll.poll(&mut events, Some(Duration::from_millis(100))).unwrap();
        for event in &events {
            self.clients[event.token().0].work();
        }
    }

    fn state(&self) -> String {
        let behind = |websocket| {
            self.clients.iter().filter(|c| c.websocket == websocket).map(|c| c.next).min().unwrap_or(0)
        };
        format!("WebSockets have at least {}, SSE {}", behind(true), behind(false))
    }

    fn until(&mut self, what: &str, condition: impl Fn(&Client) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(240);
        while !self.clients.iter().all(&condition) {
            self.turn(deadline);
        }
        println!("{what}");
    }
}

#[test]
fn each_of_many_clients_gets_its_messages_in_order_and_once() {
    let count: u64 = std::env::var("SCALE_CLIENTS").map_or(1000, |count| count.parse().unwrap());
    let Some(world) = World::with(&[]) else { return };
    let first = support::world::fresh_id();
    world.db.run(&format!(
        "INSERT INTO accounts (id, username) SELECT {first} + n, 's' || n FROM generate_series(1, {count}) n;
         INSERT INTO users (id, account_id, email)
           SELECT {first} + n, {first} + n, 's' || n || '@scale.example' FROM generate_series(1, {count}) n;
         INSERT INTO oauth_access_tokens (token, scopes, resource_owner_id)
           SELECT 'scale-{first}-' || n, 'read', {first} + n FROM generate_series(1, {count}) n;
         ANALYZE"
    ));
    let empty_kib = world.server.rss_kib();

    let mut crowd = Crowd { poll: Poll::new().unwrap(), clients: Vec::new() };
    let began = Instant::now();
    for n in 1..=count {
        let token = format!("scale-{first}-{n}");
        let mut client = Client::connect(world.server.address(), &token, n % 2 == 1);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let place = Token(crowd.clients.len());
        crowd.poll.registry().register(&mut client.socket, place, interest).unwrap();
        crowd.clients.push(client);
        if n % 128 == 0 {
            crowd.turn(began + Duration::from_secs(240));
        }
    }
    crowd.until("all are connected", |client| client.has_head);
    let connected = began.elapsed();
    // What the handshakes needed comes back once it is quiet.
    let mut idle_kib = world.server.rss_kib();
    let quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(10) && idle_kib > empty_kib + 2 * count + 4096 {
        crowd.turn(quiet + Duration::from_secs(60));
        idle_kib = world.server.rss_kib();
    }
    assert!(idle_kib <= empty_kib + 2 * count + 4096, "{empty_kib} KiB empty, {idle_kib} KiB idle");

    let began = Instant::now();
    let mut redis = world.redis.client();
    for round in 0..ROUNDS {
        let status = posts::status(BASE + round, 1);
        let message = posts::message("update", &status);
        let mut commands = support::redis::encode(&["PUBLISH", "timeline:public", &message]);
        let home = posts::text_message("update", &format!(r#"{{"id":"{}"}}"#, BASE + round));
        for n in (1..=count).filter(|n| n % 2 == 1) {
            let channel = format!("timeline:{}", first + n);
            commands.extend(support::redis::encode(&["PUBLISH", &channel, &home]));
        }
        redis.send(&commands);
        for _ in 0..count.div_ceil(2) + 1 {
            assert_eq!(redis.reply().unwrap().integer(), 1, "one server is subscribed");
        }
        let reached = (round + 1).saturating_sub(ROUNDS_OPEN);
        let deadline = Instant::now() + Duration::from_secs(120);
        while !crowd.clients.iter().all(|client| client.next >= reached) {
            crowd.turn(deadline);
        }
    }
    crowd.until("all have got everything", |client| client.next == ROUNDS);
    let took = began.elapsed();
    let after_kib = world.server.rss_kib();
    println!(
        "{count} clients: connected in {:.1} s; {} messages each in {:.1} s ({:.0} deliveries/s); RSS {empty_kib} KiB \
         without clients, {idle_kib} KiB idle, {after_kib} KiB after",
        connected.as_secs_f64(),
        ROUNDS,
        took.as_secs_f64(),
        (count * ROUNDS) as f64 / took.as_secs_f64(),
    );
    drop(crowd);
    world.until_empty();
}
