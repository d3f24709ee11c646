//! The ring: one reusable buffer of 8 KiB between a Redis subscriber connection and its frames.
//!
//! The next read goes into its free end ([`Ring::read_space`]); every complete frame is taken
//! ([`Ring::next`]); an incomplete one moves to the front before the next read. It never grows. A message
//! that cannot fit is read straight into an exact-size buffer of its own, which is handed out without a
//! copy; one over the largest allowed is skipped on the wire, with the ring as the place to read it into,
//! and what follows it is not lost.
//!
//! Invariants: after [`Ring::next`] said that there is nothing, there is space to read into; the buffer of
//! a large message has at most twice the bytes received of it (and 64 KiB at least), so that a length that
//! lies costs nothing.
//!
//! Budget: [`RING_BYTES`], a channel name, and the buffer of one large message. Nothing is allocated for
//! messages that fit. Tested by properties with reads of any size, at the ring's very size and one byte to
//! either side, and fuzzed (target `ring`).

use bytes::Bytes;

use crate::limits::RING_BYTES;
use crate::proto::resp::{Found, Framer, ProtocolError, Span, Step};

#[cfg(test)]
mod tests;

/// First size of a large message's buffer, unless the message is smaller.
const BODY_STEP_BYTES: usize = 64 * 1024;

/// The buffer of a Redis subscriber connection.
#[derive(Debug)]
pub struct Ring {
    bytes: Box<[u8]>,
    /// The first byte that no frame has taken.
    start: usize,
    /// Behind the last byte received.
    end: usize,
    framer: Framer,
    message_bytes_max: usize,
    /// Bytes on the wire that nobody wants. The ring is empty while there are any.
    skip: u64,
    /// The large message that is being received, or waits for its line end.
    large: Option<Large>,
    /// The channel of the large or overlong message.
    channel: Vec<u8>,
}

/// A message that does not fit the ring.
#[derive(Debug)]
enum Large {
    /// Being received. `body` is what is allocated so far, `bytes` what there will be.
    Body { body: Vec<u8>, received: usize, bytes: usize },
    /// Longer than allowed: skipped.
    TooLong(u64),
}

/// What Redis said.
#[derive(Debug)]
pub enum Frame<'a> {
    /// A published message.
    Message {
        /// Where it was published.
        channel: &'a [u8],
        /// What was published.
        payload: Payload<'a>,
    },
    /// A message over the largest allowed was skipped.
    TooLong {
        /// Where it was published.
        channel: &'a [u8],
        /// Its length.
        bytes: u64,
    },
    /// A subscription is confirmed.
    Subscribed {
        /// The channel.
        channel: &'a [u8],
        /// How many the connection has now.
        count: u64,
    },
    /// The end of a subscription is confirmed.
    Unsubscribed {
        /// The channel; empty when there was none to end.
        channel: &'a [u8],
        /// How many the connection still has.
        count: u64,
    },
    /// The answer to PING.
    Pong,
    /// An error, without its `-`.
    Error(&'a [u8]),
    /// Anything else.
    Other,
}

/// A message's body.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Still in the ring: whoever keeps it copies it.
    Slice(&'a [u8]),
    /// In an exact-size buffer of its own.
    Owned(Bytes),
}

impl Payload<'_> {
    /// The body in a buffer of exactly its size; copied if it is in the ring.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Payload::Slice(slice) => Bytes::copy_from_slice(slice),
            Payload::Owned(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Payload<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Payload::Slice(slice) => slice,
            Payload::Owned(bytes) => bytes,
        }
    }
}

impl Ring {
    /// The ring of a new connection. A message over `message_bytes_max` is skipped.
    pub fn new(message_bytes_max: usize) -> Ring {
        Ring {
            bytes: vec![0; RING_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            framer: Framer::new(RING_BYTES, message_bytes_max),
            message_bytes_max,
            skip: 0,
            large: None,
            channel: Vec::new(),
        }
    }

    /// Forgets everything: for the next connection.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
        self.framer = Framer::new(RING_BYTES, self.message_bytes_max);
        self.skip = 0;
        self.large = None;
    }

    /// Where the next read goes. Never empty after [`next`](Self::next) has returned `Ok(None)`.
    pub fn read_space(&mut self) -> &mut [u8] {
        if self.skip > 0 {
            return &mut self.bytes;
        }
        if let Some(Large::Body { body, received, bytes }) = &mut self.large
            && *received < *bytes
        {
            if *received == body.len() {
                let grown = (body.len() * 2).min(*bytes);
                body.reserve_exact(grown - body.len());
                body.resize(grown, 0);
            }
            return body.get_mut(*received..).unwrap_or_default();
        }
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `n` bytes of [`read_space`](Self::read_space) were read.
    pub fn filled(&mut self, n: usize) {
        if self.skip > 0 {
            // What follows the unwanted bytes is in the ring already, in the right place.
            let n = n.min(self.bytes.len());
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(n);
            self.skip -= skipped as u64;
            self.start = skipped;
            self.end = n;
            return;
        }
        if let Some(Large::Body { body, received, bytes }) = &mut self.large
            && *received < *bytes
        {
            debug_assert!(n <= body.len() - *received, "more was read than there is space for");
            *received = (*received + n).min(body.len());
            return;
        }
        debug_assert!(n <= self.bytes.len() - self.end, "more was read than there is space for");
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// Takes the next whole frame, if there is one. An error repeats for ever: the connection is to be
    /// closed.
    // Its frames borrow from the ring, so it cannot be an iterator.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        let (base, found) = loop {
            if self.is_body_unfinished() {
                return Ok(None);
            }
            let input = self.bytes.get(self.start..self.end).unwrap_or_default();
            match self.framer.step(input)? {
                Step::More(_) => return Ok(None),
                Step::Discard { used, skip } => {
                    self.start += used;
                    self.skip = skip;
                }
                Step::Body { channel, used, bytes } => self.begin_large(channel, used, bytes),
                Step::Frame { used, found } => {
                    let base = self.start;
                    self.start += used;
                    break (base, found);
                }
            }
        };
        let input = self.bytes.get(base..self.end).unwrap_or_default();
        Ok(Some(match found {
            Found::Message { channel, payload } => {
                Frame::Message { channel: channel.of(input), payload: Payload::Slice(payload.of(input)) }
            }
            Found::BodyEnd => match self.large.take() {
                Some(Large::Body { body, .. }) => {
                    Frame::Message { channel: &self.channel, payload: Payload::Owned(Bytes::from(body)) }
                }
                Some(Large::TooLong(bytes)) => Frame::TooLong { channel: &self.channel, bytes },
                None => Frame::Other,
            },
            Found::Subscribed { channel, count } => Frame::Subscribed { channel: channel.of(input), count },
            Found::Unsubscribed { channel, count } => {
                Frame::Unsubscribed { channel: channel.of(input), count }
            }
            Found::Pong => Frame::Pong,
            Found::Error(text) => Frame::Error(text.of(input)),
            Found::Other => Frame::Other,
        }))
    }

    /// Bytes received that no frame has taken yet, those of an unfinished large message included.
    pub fn unread_bytes(&self) -> usize {
        let received = match &self.large {
            Some(Large::Body { received, .. }) => *received,
            _ => 0,
        };
        self.end - self.start + received
    }

    /// Bytes allocated for an unfinished large message; 0 between messages. What the gate leaves room for.
    pub fn held_bytes(&self) -> usize {
        match &self.large {
            Some(Large::Body { body, .. }) => body.capacity(),
            _ => 0,
        }
    }

    /// Whether bytes of a body are to be read (or skipped) before there can be another frame.
    fn is_body_unfinished(&self) -> bool {
        match &self.large {
            Some(Large::Body { received, bytes, .. }) if received < bytes => true,
            _ => self.skip > 0,
        }
    }

    /// A body that does not stay in the ring begins `used` bytes behind `start`.
    fn begin_large(&mut self, channel: Span, used: usize, bytes: u64) {
        let input = self.bytes.get(self.start..self.end).unwrap_or_default();
        self.channel.clear();
        self.channel.extend_from_slice(channel.of(input));
        let rest = input.get(used..).unwrap_or_default();
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= self.message_bytes_max => {
                let here = rest.get(..bytes).unwrap_or(rest);
                let mut body = vec![0; bytes.min(BODY_STEP_BYTES)];
                if let Some(front) = body.get_mut(..here.len()) {
                    front.copy_from_slice(here);
                }
                self.start += used + here.len();
                self.large = Some(Large::Body { body, received: here.len(), bytes });
            }
            _ => {
                let here = usize::try_from(bytes).map_or(rest.len(), |bytes| bytes.min(rest.len()));
                self.start += used + here;
                self.skip = bytes - here as u64;
                self.large = Some(Large::TooLong(bytes));
            }
        }
    }
}
