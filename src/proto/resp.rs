//! The RESP framer: finds the frames in the bytes that Redis sends a subscriber.
//!
//! RESP2, and of RESP3 the push type `>` and the null `_`
//! (<https://redis.io/docs/latest/develop/reference/protocol-spec/>). A [`Framer`] is pure state over a
//! slice that begins at the first byte it still needs: each [`Framer::step`] goes on where the one before
//! stopped, so no byte is looked at twice however the stream is split. `memchr` finds the ends of header
//! lines; bulk bodies are passed by their length.
//!
//! Only what a subscriber acts on is kept: `message`, `subscribe`, `unsubscribe`, `pong`, errors. Anything
//! else is passed over by its lengths, and its bytes are given up ([`Step::Discard`]) before it is whole.
//!
//! Bounds: a header line has at most [`HEADER_BYTES_MAX`], a text line [`LINE_BYTES_MAX`], a kept channel
//! [`CHANNEL_BYTES_MAX`], an array [`ARRAY_LEN_MAX`], nesting [`DEPTH_MAX`], a bulk [`BULK_BYTES_MAX`];
//! numbers are checked for overflow. So an unfinished frame never fills the ring. No allocation.
//!
//! Tested against redis-protocol's decoder with any split, and fuzzed (target `resp`).

use memchr::memchr;

use crate::limits::RING_BYTES;

#[cfg(test)]
mod tests;

/// Longest line of a length or a number, its type byte and line end included: a sign, 19 digits, and room
/// for leading zeros.
pub const HEADER_BYTES_MAX: usize = 32;

/// Longest simple string or error, type byte and line end included. Redis cuts what it quotes at 128 bytes.
pub const LINE_BYTES_MAX: usize = 4 * 1024;

/// Longest channel name that is understood. A tag parameter of 512 bytes can grow elevenfold when it is
/// normalised; nothing longer can have been subscribed to, so its messages are passed over.
pub const CHANNEL_BYTES_MAX: usize = 7 * 1024;

/// Elements of one array at most: what Redis itself accepts in a command.
pub const ARRAY_LEN_MAX: u32 = 1024 * 1024;

/// Arrays within arrays. Nothing that a subscriber is sent has more than two.
pub const DEPTH_MAX: usize = 8;

/// Longest bulk string that is believed; Redis's own default is 512 MiB.
pub const BULK_BYTES_MAX: u64 = u32::MAX as u64;

/// `unsubscribe`, the longest name of a frame that is kept.
const NAME_BYTES_MAX: usize = 11;

// An unfinished frame that is kept (headers of the array and three elements, name, channel) leaves room in
// the ring, and so does an unfinished line.
const _: () = assert!(4 * HEADER_BYTES_MAX + NAME_BYTES_MAX + 2 + CHANNEL_BYTES_MAX + 2 < RING_BYTES);
const _: () = assert!(LINE_BYTES_MAX < RING_BYTES);

/// Finds frames, one step at a time. It keeps what it knows about the unfinished frame, and no bytes.
#[derive(Debug)]
pub struct Framer {
    /// Longest whole frame that the caller's buffer takes, in bytes.
    room: usize,
    /// Longest body that may be kept, in bytes.
    body_bytes_max: usize,
    /// How far the unfinished frame is understood, from the input's first byte.
    at: usize,
    /// How far the unfinished line was searched for its end; at least `at`.
    searched: usize,
    awaiting: Awaiting,
    shape: Shape,
    /// Elements still to come, for each open array.
    open: [u32; DEPTH_MAX],
    depth: usize,
    failed: Option<ProtocolError>,
}

/// What [`Framer::step`] found. Positions count from the first byte of its input.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// At least that many more bytes are needed; all of the input is still wanted.
    More(usize),
    /// The first `used` bytes are not wanted any more, nor are the `skip` bytes that follow the input
    /// (`used` is all of it then). The next input begins behind them.
    Discard {
        /// Bytes of the input.
        used: usize,
        /// Bytes on the wire.
        skip: u64,
    },
    /// A message whose body does not fit, or is longer than allowed, begins at `used`. The caller takes
    /// the `bytes` of the body (of which the input may hold some, or all) away; the next input begins
    /// behind them, and leads to [`Found::BodyEnd`].
    Body {
        /// Where it was published.
        channel: Span,
        /// Where the body begins.
        used: usize,
        /// The body's length.
        bytes: u64,
    },
    /// A whole frame. The next input begins behind its `used` bytes.
    Frame {
        /// The frame's length in this input.
        used: usize,
        /// What it is.
        found: Found,
    },
}

/// What a whole frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// A published message.
    Message {
        /// Where it was published.
        channel: Span,
        /// What was published.
        payload: Span,
    },
    /// The message announced by [`Step::Body`] is whole.
    BodyEnd,
    /// A subscription is confirmed.
    Subscribed {
        /// The channel.
        channel: Span,
        /// How many the connection has now.
        count: u64,
    },
    /// The end of a subscription is confirmed.
    Unsubscribed {
        /// The channel; empty where Redis had none to name.
        channel: Span,
        /// How many the connection still has.
        count: u64,
    },
    /// The answer to PING, in either of its forms.
    Pong,
    /// An error, without its `-`.
    Error(Span),
    /// Anything else.
    Other,
}

/// A part of the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    start: usize,
    end: usize,
}

impl Span {
    /// Its bytes in the input that it was found in; empty in any that is shorter.
    pub fn of(self, input: &[u8]) -> &[u8] {
        input.get(self.start..self.end).unwrap_or_default()
    }
}

/// The stream is not RESP, or breaks a bound. The connection can't be used any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Not a type byte that is known.
    #[error("Redis sent an unknown type byte 0x{0:02x}: is this a Redis server?")]
    UnknownType(u8),
    /// A line that should be a number is not, or overflows.
    #[error("Redis sent a malformed number")]
    BadNumber,
    /// A negative length other than -1, or -1 where there is no null.
    #[error("Redis sent a negative length")]
    NegativeLength,
    /// No CR LF where there must be one.
    #[error("Redis sent a line or bulk string without CR LF at its end")]
    MissingLineEnd,
    /// A line over [`HEADER_BYTES_MAX`] or [`LINE_BYTES_MAX`].
    #[error("Redis sent a line that is too long")]
    LineTooLong,
    /// An array over [`ARRAY_LEN_MAX`].
    #[error("Redis sent an array that is too long")]
    ArrayTooLong,
    /// A bulk string over [`BULK_BYTES_MAX`].
    #[error("Redis sent a bulk string that is too long")]
    BulkTooLong,
    /// More than [`DEPTH_MAX`] arrays within each other.
    #[error("Redis sent arrays nested too deep")]
    TooDeep,
}

/// What the bytes at `at` are.
#[derive(Clone, Copy, Debug)]
enum Awaiting {
    /// An element's first line.
    Line,
    /// The body and line end of a bulk string that is kept.
    Bulk(usize),
    /// The line end behind a body that is not kept.
    BulkEnd,
}

/// What is known of the unfinished frame. All but `Done` need its bytes.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Nothing.
    Start,
    /// An array of that many; its first element is next.
    Name(u32),
    /// Its channel is next.
    Channel(Verb),
    /// The payload of a message on that channel is next.
    Payload(Span),
    /// The number of subscriptions is next.
    Count(Verb, Span),
    /// It is this, whatever follows.
    Done(Found),
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Message,
    Subscribe,
    Unsubscribe,
}

impl Framer {
    /// A framer for a new connection. `room`: the longest frame that the caller can hold as a whole, at
    /// least the ring's size; `body_bytes_max`: the longest payload that it wants. Both in bytes.
    pub fn new(room: usize, body_bytes_max: usize) -> Framer {
        Framer {
            room: room.max(RING_BYTES),
            body_bytes_max,
            at: 0,
            searched: 0,
            awaiting: Awaiting::Line,
            shape: Shape::Start,
            open: [0; DEPTH_MAX],
            depth: 0,
            failed: None,
        }
    }

    /// Looks for the end of the unfinished frame. `input` begins where the step before left it: at the same
    /// byte after [`Step::More`], else behind what was used. An error repeats for ever.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let step = self.advance(input);
        self.failed = step.err();
        step
    }

    fn advance(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        loop {
            let step = match self.awaiting {
                Awaiting::Line => match self.line(input)? {
                    Some((kind, line)) => self.element(kind, line, input)?,
                    None => Some(self.more(1)),
                },
                Awaiting::Bulk(bytes) => self.kept_bulk(bytes, input)?,
                Awaiting::BulkEnd => self.bulk_end(self.at, input)?,
            };
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    /// The line at `at`, if it is whole: its type byte, and the rest without its end. Moves behind it.
    fn line(&mut self, input: &[u8]) -> Result<Option<(u8, Span)>, ProtocolError> {
        let Some(&kind) = input.get(self.at) else { return Ok(None) };
        let is_text = matches!(kind, b'+' | b'-');
        let bytes_max = match kind {
            b'+' | b'-' => LINE_BYTES_MAX,
            b':' | b'$' | b'*' | b'>' | b'_' => HEADER_BYTES_MAX,
            _ => return Err(ProtocolError::UnknownType(kind)),
        };
        let start = self.at + 1;
        let window_end = input.len().min(self.at + bytes_max);
        let mut from = self.searched.max(start);
        while let Some(found) = input.get(from..window_end).and_then(|window| memchr(b'\n', window)) {
            let line_feed = from + found;
            if line_feed > start && input.get(line_feed - 1) == Some(&b'\r') {
                self.at = line_feed + 1;
                self.searched = self.at;
                return Ok(Some((kind, Span { start, end: line_feed - 1 })));
            }
            // Only a text may have a line feed of its own.
            if !is_text {
                return Err(ProtocolError::MissingLineEnd);
            }
            from = line_feed + 1;
        }
        self.searched = window_end.max(self.at);
        if window_end == self.at + bytes_max {
            return Err(ProtocolError::LineTooLong);
        }
        Ok(None)
    }

    /// Takes an element's first line in.
    fn element(&mut self, kind: u8, line: Span, input: &[u8]) -> Result<Option<Step>, ProtocolError> {
        let text = line.of(input);
        match kind {
            b'*' | b'>' => self.array(kind, number(text)?),
            b'$' => match number(text)? {
                -1 => {
                    self.null();
                    Ok(self.element_end())
                }
                bytes => self.bulk(bytes, input),
            },
            b':' => {
                let value = number(text)?;
                self.shape = Shape::Done(match (self.shape, u64::try_from(value)) {
                    (Shape::Done(found), _) => found,
                    (Shape::Count(Verb::Subscribe, channel), Ok(count)) => {
                        Found::Subscribed { channel, count }
                    }
                    (Shape::Count(Verb::Unsubscribe, channel), Ok(count)) => {
                        Found::Unsubscribed { channel, count }
                    }
                    _ => Found::Other,
                });
                Ok(self.element_end())
            }
            b'_' if !text.is_empty() => Err(ProtocolError::BadNumber),
            b'_' => {
                self.null();
                Ok(self.element_end())
            }
            _ => {
                self.shape = Shape::Done(match (self.shape, kind) {
                    (Shape::Done(found), _) => found,
                    (Shape::Start, b'-') => Found::Error(line),
                    (Shape::Start, _) if text == b"PONG" => Found::Pong,
                    _ => Found::Other,
                });
                Ok(self.element_end())
            }
        }
    }

    fn array(&mut self, kind: u8, len: i64) -> Result<Option<Step>, ProtocolError> {
        if len == -1 && kind == b'*' {
            self.null();
            return Ok(self.element_end());
        }
        if len < 0 {
            return Err(ProtocolError::NegativeLength);
        }
        let len = match u32::try_from(len) {
            Ok(len) if len <= ARRAY_LEN_MAX => len,
            _ => return Err(ProtocolError::ArrayTooLong),
        };
        self.shape = match self.shape {
            Shape::Done(found) => Shape::Done(found),
            Shape::Start if len > 0 => Shape::Name(len),
            _ => Shape::Done(Found::Other),
        };
        if len == 0 {
            return Ok(self.element_end());
        }
        let open = self.open.get_mut(self.depth).ok_or(ProtocolError::TooDeep)?;
        *open = len;
        self.depth += 1;
        Ok(None)
    }

    fn null(&mut self) {
        self.shape = match self.shape {
            Shape::Done(found) => Shape::Done(found),
            // Nothing was subscribed to, so there is no name to give.
            Shape::Channel(Verb::Unsubscribe) => Shape::Count(Verb::Unsubscribe, Span::default()),
            _ => Shape::Done(Found::Other),
        };
    }

    /// A bulk string of that many bytes begins at `at`.
    fn bulk(&mut self, bytes: i64, input: &[u8]) -> Result<Option<Step>, ProtocolError> {
        let bytes = u64::try_from(bytes).map_err(|_| ProtocolError::NegativeLength)?;
        if bytes > BULK_BYTES_MAX {
            return Err(ProtocolError::BulkTooLong);
        }
        let kept_bytes_max = match self.shape {
            Shape::Name(_) => NAME_BYTES_MAX,
            Shape::Channel(_) => CHANNEL_BYTES_MAX,
            Shape::Payload(channel) => {
                let fits = self.room.saturating_sub(self.at + 2).min(self.body_bytes_max);
                if bytes > fits as u64 {
                    let used = self.at;
                    self.give_up(used);
                    self.shape = Shape::Done(Found::BodyEnd);
                    self.awaiting = Awaiting::BulkEnd;
                    return Ok(Some(Step::Body { channel, used, bytes }));
                }
                fits
            }
            Shape::Start | Shape::Count(..) | Shape::Done(_) => 0,
        };
        match usize::try_from(bytes) {
            Ok(kept) if kept <= kept_bytes_max && !matches!(self.shape, Shape::Done(_)) => {
                self.awaiting = Awaiting::Bulk(kept);
                Ok(None)
            }
            _ => {
                if !matches!(self.shape, Shape::Done(_)) {
                    self.shape = Shape::Done(Found::Other);
                }
                Ok(self.pass_over(bytes, input))
            }
        }
    }

    /// A bulk string that nobody wants begins at `at`.
    fn pass_over(&mut self, bytes: u64, input: &[u8]) -> Option<Step> {
        let here = input.len().saturating_sub(self.at);
        self.awaiting = Awaiting::BulkEnd;
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= here => {
                self.at += bytes;
                None
            }
            _ => {
                self.give_up(input.len());
                Some(Step::Discard { used: input.len(), skip: bytes - here as u64 })
            }
        }
    }

    fn kept_bulk(&mut self, bytes: usize, input: &[u8]) -> Result<Option<Step>, ProtocolError> {
        let span = Span { start: self.at, end: self.at + bytes };
        if input.len() < span.end + 2 {
            return Ok(Some(self.more(span.end + 2 - input.len())));
        }
        self.shape = match self.shape {
            Shape::Name(len) => match (span.of(input), len) {
                (b"message", 3) => Shape::Channel(Verb::Message),
                (b"subscribe", 3) => Shape::Channel(Verb::Subscribe),
                (b"unsubscribe", 3) => Shape::Channel(Verb::Unsubscribe),
                (b"pong", 2) => Shape::Done(Found::Pong),
                _ => Shape::Done(Found::Other),
            },
            Shape::Channel(Verb::Message) => Shape::Payload(span),
            Shape::Channel(verb) => Shape::Count(verb, span),
            Shape::Payload(channel) => Shape::Done(Found::Message { channel, payload: span }),
            _ => Shape::Done(Found::Other),
        };
        self.bulk_end(span.end, input)
    }

    /// The line end of a bulk string is at `end`.
    fn bulk_end(&mut self, end: usize, input: &[u8]) -> Result<Option<Step>, ProtocolError> {
        match input.get(end..end + 2) {
            Some(b"\r\n") => {
                self.at = end + 2;
                self.searched = self.at;
                self.awaiting = Awaiting::Line;
                Ok(self.element_end())
            }
            Some(_) => Err(ProtocolError::MissingLineEnd),
            None => Ok(Some(self.more((end + 2).saturating_sub(input.len())))),
        }
    }

    /// An element is whole; so are the arrays that it was the last one of, and maybe the frame.
    fn element_end(&mut self) -> Option<Step> {
        while let Some(open) = self.depth.checked_sub(1).and_then(|top| self.open.get_mut(top)) {
            *open = open.saturating_sub(1);
            if *open > 0 {
                return None;
            }
            self.depth -= 1;
        }
        let used = self.at;
        let found = match self.shape {
            Shape::Done(found) => found,
            _ => Found::Other,
        };
        self.give_up(used);
        self.shape = Shape::Start;
        Some(Step::Frame { used, found })
    }

    /// Asks for more input, and gives up what is understood if it is not needed any more.
    fn more(&mut self, bytes: usize) -> Step {
        match self.shape {
            Shape::Done(_) if self.at > 0 => {
                let used = self.at;
                self.give_up(used);
                Step::Discard { used, skip: 0 }
            }
            _ => Step::More(bytes),
        }
    }

    /// The next input will begin `used` bytes later than this one.
    fn give_up(&mut self, used: usize) {
        self.at = 0;
        self.searched = self.searched.saturating_sub(used);
    }
}

/// A decimal number with an optional sign.
fn number(text: &[u8]) -> Result<i64, ProtocolError> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return Err(ProtocolError::BadNumber);
    }
    let mut value: i64 = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(ProtocolError::BadNumber);
        }
        let digit = i64::from(digit - b'0');
        let shifted = value.checked_mul(10).ok_or(ProtocolError::BadNumber)?;
        // The most negative number has no positive twin, so the sign goes in digit by digit.
        value = if negative { shifted.checked_sub(digit) } else { shifted.checked_add(digit) }
            .ok_or(ProtocolError::BadNumber)?;
    }
    Ok(value)
}
