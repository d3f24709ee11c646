//! Handshakes with so many in flight: one thread keeps that number of connections between `connect` and the end of the
//! response head, and times each. What is open stays open until further ones have come, then it is closed.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use crate::children::{give_places_back, take_places};
use crate::readers::{Plan, open};
use crate::shared::report::quantile;

/// How long no handshake may end before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many handshakes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Handshakes in all.
    pub count: u64,
    /// Handshakes at once.
    pub in_flight: usize,
    /// Clients that stay; the one that came first leaves for the next.
    pub held: usize,
}

/// What was measured.
#[derive(Debug, Default)]
pub struct Measured {
    pub seconds: f64,
    /// Of each handshake, sorted, in microseconds.
    pub took_us: Vec<u32>,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.took_us.len() as f64 / self.seconds
    }

    /// A quantile in milliseconds.
    pub fn ms(&self, share: f64) -> f64 {
        quantile(&self.took_us, share) / 1000.0
    }

    pub fn max_ms(&self) -> f64 {
        self.took_us.last().map_or(f64::NAN, |us| f64::from(*us) / 1000.0)
    }
}

struct Connection {
    socket: TcpStream,
    request: Vec<u8>,
    sent: usize,
    head: Vec<u8>,
    began: Instant,
    is_open: bool,
}

/// Runs the load; all clients are closed when it returns. `plan` is asked for the `n`-th connection, from 0.
pub fn run(address: SocketAddr, load: Load, plan: &mut dyn FnMut(u64) -> Plan) -> Measured {
    let places = (load.held as u64 + load.in_flight as u64).min(load.count);
    let taken = take_places(places);
    assert_eq!(taken, places, "RLIMIT_NOFILE is too low for {places} connections");
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(1024);
    let mut connections: Slab<Connection> = Slab::with_capacity(places as usize);
    let mut held = VecDeque::new();
    let mut buffer = vec![0; 16 << 10];
    let mut measured = Measured::default();
    let (mut begun, mut in_flight) = (0, 0);
    let (start, mut progress_at) = (Instant::now(), Instant::now());
    while (measured.took_us.len() as u64) < load.count {
        while in_flight < load.in_flight && begun < load.count {
            let request = plan(begun).request;
            let began = Instant::now();
            let mut socket = open(address);
            let place = connections.vacant_entry();
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut socket, Token(place.key()), interest).unwrap();
            place.insert(Connection { socket, request, sent: 0, head: Vec::new(), began, is_open: false });
            begun += 1;
            in_flight += 1;
        }
        poll.poll(&mut events, Some(Duration::from_millis(500))).unwrap();
        for event in &events {
            let index = event.token().0;
            let Some(connection) = connections.get_mut(index).filter(|connection| !connection.is_open) else {
                continue;
            };
            if !advance(connection, &mut buffer) {
                continue;
            }
            connection.is_open = true;
            connection.request = Vec::new();
            connection.head = Vec::new();
            progress_at = Instant::now();
            measured.took_us.push((progress_at - connection.began).as_micros() as u32);
            in_flight -= 1;
            held.push_back(index);
        }
        // Not among the events, which may name places that are another's by then.
        while held.len() > load.held {
            held.pop_front().map(|index| connections.remove(index));
        }
        let (done, waited) = (measured.took_us.len(), progress_at.elapsed());
        assert!(waited < PATIENCE, "no handshake ended for {waited:?}: {done} of {} are done", load.count);
    }
    measured.seconds = start.elapsed().as_secs_f64();
    measured.took_us.sort_unstable();
    drop(connections);
    give_places_back(taken);
    measured
}

/// Sends and reads what can be. True once the head is here.
fn advance(connection: &mut Connection, buffer: &mut [u8]) -> bool {
    while connection.sent < connection.request.len() {
        match connection.socket.write(&connection.request[connection.sent..]) {
            Ok(written) => connection.sent += written,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                return false;
            }
            Err(error) => panic!("a request cannot be sent: {error}"),
        }
    }
    loop {
        match connection.socket.read(buffer) {
            Ok(0) => panic!("closed by the server: {}", String::from_utf8_lossy(&connection.head)),
            Ok(read) => connection.head.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("a connection broke: {error}"),
        }
        if memchr::memmem::find(&connection.head, b"\r\n\r\n").is_some() {
            let status = connection.head.get(9..12).unwrap_or_default();
            assert!(status == b"101" || status == b"200", "{}", String::from_utf8_lossy(&connection.head));
            return true;
        }
    }
}
