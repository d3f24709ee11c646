//! The subscriber connection: socket, ring, what is to be written, and whether it still lives.
//!
//! Registered once, edge-triggered, so readiness is remembered until a read or write says otherwise.
//!
//! Bounds: the ring's; the output is at most one batch of commands and a PING, since nothing is added while
//! any of it waits.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use mio::event::Event;
use mio::{Interest, Registry, Token};

use crate::core::stream::Channel;
use crate::proto::ring::Ring;
use crate::redis::command::{encode, encode_channels};
use crate::redis::connect::Connected;
use crate::redis::pipeline::Pipeline;
use crate::redis::socket::{BlockingSocket, PolledSocket};

/// A connection that has greeted.
pub(super) struct Link {
    socket: PolledSocket,
    pub(super) ring: Ring,
    pub(super) pipeline: Pipeline,
    pub(super) client_id: Option<u64>,
    rate: Rate,
    /// Bytes that came since the socket was last found empty.
    behind_bytes: u64,
    output: BytesMut,
    readable: bool,
    writable: bool,
    /// When the last byte came, or reading went on after a pause.
    heard: Instant,
    /// When the PING was written that waits for its answer.
    pinged: Option<Instant>,
}

/// What a read brought.
pub(super) enum Filled {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    Blocked,
}

/// What the heart says.
pub(super) enum Heart {
    /// Look again then.
    Beats(Instant),
    /// There was no answer.
    Stopped,
}

impl Link {
    /// Registers the connection under that token.
    pub(super) fn new(
        connected: Connected<BlockingSocket>,
        registry: &Registry,
        token: Token,
        message_bytes_max: usize,
    ) -> io::Result<Link> {
        let mut socket = connected.stream.into_polled()?;
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Link {
            socket,
            ring: Ring::new(message_bytes_max),
            pipeline: Pipeline::default(),
            client_id: connected.client_id,
            rate: Rate::default(),
            behind_bytes: 0,
            output: BytesMut::new(),
            readable: true,
            writable: true,
            heard: Instant::now(),
            pinged: None,
        })
    }

    /// The poll says that something changed.
    pub(super) fn ready(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed() || event.is_error();
    }

    /// Reads once into the ring.
    pub(super) fn fill(&mut self, now: Instant) -> io::Result<Filled> {
        if !self.readable {
            return Ok(Filled::Blocked);
        }
        loop {
            match self.socket.read(self.ring.read_space()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.ring.filled(n);
                    self.heard = now;
                    self.rate.count(n, now);
                    self.behind_bytes += n as u64;
                    return Ok(Filled::Bytes(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    self.behind_bytes = 0;
                    return Ok(Filled::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes what waits; true when nothing waits any more and more can be written.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while self.writable && !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(n) => self.output.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // With TLS there may be something behind the socket's front.
        while self.writable {
            match self.socket.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        if self.output.is_empty() && self.output.capacity() > 4096 {
            self.output = BytesMut::new();
        }
        Ok(self.writable && self.output.is_empty())
    }

    /// Adds a SUBSCRIBE to the output.
    pub(super) fn subscribe(&mut self, prefix: &str, channels: Vec<Channel>) {
        if !channels.is_empty() {
            encode_channels(&mut self.output, "SUBSCRIBE", prefix, &channels);
            self.pipeline.subscribe(channels);
        }
    }

    /// Adds an UNSUBSCRIBE to the output.
    pub(super) fn unsubscribe(&mut self, prefix: &str, channels: Vec<Channel>) {
        if !channels.is_empty() {
            encode_channels(&mut self.output, "UNSUBSCRIBE", prefix, &channels);
            self.pipeline.unsubscribe(channels);
        }
    }

    /// Adds a SUBSCRIBE and an UNSUBSCRIBE of channels that nobody needs: whether Redis allows that.
    pub(super) fn probe(&mut self, prefix: &str, channels: Vec<Channel>) {
        if !channels.is_empty() {
            encode_channels(&mut self.output, "SUBSCRIBE", prefix, &channels);
            encode_channels(&mut self.output, "UNSUBSCRIBE", prefix, &channels);
            self.pipeline.probe(channels);
        }
    }

    /// Bytes per second that came lately.
    pub(super) fn rate(&self, now: Instant) -> u64 {
        self.rate.read(now)
    }

    /// Bytes that came since the socket was last found empty: how far behind Redis we are, at least.
    pub(super) fn behind_bytes(&self) -> u64 {
        self.behind_bytes
    }

    /// PING was answered.
    pub(super) fn ponged(&mut self) {
        self.pinged = None;
    }

    /// Reading goes on after a pause, in which silence meant nothing.
    pub(super) fn resumed(&mut self, now: Instant) {
        self.heard = now;
    }

    /// After `patience` of silence asks whether Redis is there; after as much again it is taken for dead.
    pub(super) fn heartbeat(&mut self, now: Instant, patience: Duration) -> Heart {
        let quiet_since = self.pinged.map_or(self.heard, |pinged| pinged.max(self.heard));
        let due = quiet_since + patience;
        if now < due {
            return Heart::Beats(due);
        }
        if self.pinged.is_some() {
            return Heart::Stopped;
        }
        encode(&mut self.output, &[b"PING"]);
        self.pipeline.ping();
        self.pinged = Some(now);
        Heart::Beats(now + patience)
    }
}

/// Bytes per second, over windows of a tenth of a second: a burst is over before a longer one ends.
#[derive(Default)]
struct Rate {
    window: Option<Instant>,
    bytes: u64,
    /// Of the window before, and when that ended.
    last: Option<(u64, Instant)>,
}

impl Rate {
    const WINDOW: Duration = Duration::from_millis(100);
    /// A shorter part of a window says too little.
    const PART: Duration = Duration::from_millis(10);

    fn count(&mut self, bytes: usize, now: Instant) {
        let begun = *self.window.get_or_insert(now);
        if now - begun >= Rate::WINDOW {
            self.last = Some((self.per_second(now - begun), now));
            self.window = Some(now);
            self.bytes = 0;
        }
        self.bytes += bytes as u64;
    }

    fn read(&self, now: Instant) -> u64 {
        let last = self.last.filter(|(_, end)| now - *end < Rate::WINDOW * 2).map_or(0, |(rate, _)| rate);
        let part = self.window.map_or(Duration::ZERO, |begun| now - begun);
        last.max(self.per_second(part.max(Rate::PART)))
    }

    fn per_second(&self, time: Duration) -> u64 {
        (self.bytes as f64 / time.as_secs_f64()) as u64
    }
}
