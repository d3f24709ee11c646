//! The decoder: what a client sends, as messages.
//!
//! It is fed whatever a read gave, unmasks it in place and calls the sink once per message. A message that
//! is whole in what was fed is handed on where it lies: nothing is allocated. What is unfinished (part of a
//! header, of a payload, or of a fragmented message) lives in a box that exists only that long, so an idle
//! connection costs the 8 bytes of the pointer.
//!
//! Every MUST of RFC 6455 for a server is checked (the table in the tests goes by section numbers), at the
//! earliest byte that shows it: UTF-8 is checked as it comes in, a length when it is read. So the verdict
//! on a stream does not depend on how it was split. Binary messages are counted, not stored, since no
//! client may send one.
//!
//! Bounds: a message has at most the given number of bytes; its buffer grows with what arrived, never with
//! what a header promises. Tested against tungstenite with any split, and fuzzed (target `ws_decode`).

use std::ops::ControlFlow;
use std::{mem, str};

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;

use super::encode::CONTROL_BYTES_MAX;

/// Two bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

/// Reads what one client sends.
#[derive(Debug, Default)]
pub struct Decoder {
    /// None while nothing is unfinished.
    partial: Option<Box<Partial>>,
}

// Ten thousand idle clients have ten thousand of these.
const _: () = assert!(size_of::<Decoder>() == size_of::<usize>());

/// What a client sent. Borrowed from what was fed, or from the decoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message, whose content is not kept.
    Binary,
    /// To be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// An answer to a ping, or unasked for.
    Pong(&'a [u8]),
    /// The client closes, with a status code and a reason if it gave any. Nothing comes after it.
    Close(Option<(u16, &'a str)>),
}

/// A client broke a rule: its connection is to be closed with [`code`](Self::code).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A reserved bit is set though no extension was negotiated (section 5.2).
    #[error("a reserved bit is set")]
    ReservedBits,
    /// Opcodes 3 to 7 and 11 to 15 (section 5.2).
    #[error("the opcode is reserved")]
    ReservedOpcode,
    /// A frame without a mask (section 5.1).
    #[error("the frame is not masked")]
    NotMasked,
    /// A control frame of more than 125 bytes (section 5.5).
    #[error("the control frame is longer than 125 bytes")]
    ControlTooLong,
    /// A control frame that is not final (section 5.5).
    #[error("the control frame is fragmented")]
    ControlFragmented,
    /// A length that has a shorter form (section 5.2).
    #[error("the length is not in its shortest form")]
    LengthNotMinimal,
    /// A 64-bit length with its highest bit set (section 5.2).
    #[error("the length has its highest bit set")]
    LengthHighBit,
    /// A continuation without a message to continue (section 5.4).
    #[error("there is no message to continue")]
    NothingToContinue,
    /// A new message before the last fragment of another (section 5.4).
    #[error("the message before is not finished")]
    MessageUnfinished,
    /// Half a status code (section 5.5.1).
    #[error("the close frame has half a status code")]
    CloseTooShort,
    /// A status code that must not be sent (section 7.4).
    #[error("the close code is not allowed")]
    CloseCode,
    /// A text message or the reason of a close frame is not UTF-8 (sections 8.1 and 5.5.1).
    #[error("the text is not UTF-8")]
    NotUtf8,
    /// Longer than allowed (section 7.4.1, code 1009).
    #[error("the message is too long")]
    TooLong,
}

impl ProtocolError {
    /// The status code to close with (section 7.4.1).
    pub fn code(self) -> u16 {
        match self {
            ProtocolError::NotUtf8 => 1007,
            ProtocolError::TooLong => 1009,
            _ => 1002,
        }
    }
}

/// What is unfinished.
#[derive(Debug)]
struct Partial {
    header: [u8; HEADER_BYTES_MAX],
    header_len: usize,
    /// The frame whose payload is not whole yet.
    open: Option<Open>,
    /// The payload so far of a control frame.
    control: [u8; CONTROL_BYTES_MAX],
    control_len: usize,
    /// The data message that has begun.
    message: Option<Kind>,
    /// Its length so far.
    message_bytes: usize,
    /// Its text so far.
    text: Vec<u8>,
    /// How much of that is known to be UTF-8.
    text_valid: usize,
    /// After a close frame or an error: nothing more is read.
    over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    header: Header,
    /// Bytes of the payload still to come.
    left: usize,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    is_final: bool,
    opcode: Opcode,
    payload_bytes: u64,
    mask: [u8; 4],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opcode {
    Continuation,
    Message(Kind),
    Close,
    Ping,
    Pong,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Text,
    Binary,
}

/// What a read gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fed {
    /// Bytes that were used.
    pub used: usize,
    /// Frames that began, messages or not: what they cost whoever reads them.
    pub frames: u32,
}

type Sink<'s> = dyn FnMut(Incoming<'_>) -> ControlFlow<()> + 's;

impl Decoder {
    /// Takes in what a read gave and calls `sink` for each message that is whole, in order. `input` is
    /// overwritten. A message over `message_bytes_max` is an error.
    ///
    /// All bytes are used, unless the sink broke off; the rest can be fed later.
    /// After a close frame or an error everything is swallowed.
    pub fn feed(
        &mut self,
        input: &mut [u8],
        message_bytes_max: usize,
        sink: &mut dyn FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<Fed, ProtocolError> {
        let bytes = input.len();
        let mut frames = 0;
        match self.run(input, message_bytes_max, &mut frames, sink) {
            Ok(left) => {
                if self.partial.as_ref().is_some_and(|partial| partial.is_empty()) {
                    self.partial = None;
                }
                Ok(Fed { used: bytes - left, frames })
            }
            Err(error) => {
                self.end();
                Err(error)
            }
        }
    }

    /// Whether nothing is unfinished.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Bytes allocated for what is unfinished, with what the allocator needs for each piece.
    pub fn held_bytes(&self) -> usize {
        const ALLOCATOR_BYTES: usize = 16;
        self.partial.as_ref().map_or(0, |partial| {
            let text = partial.text.capacity();
            let text = if text > 0 { text + ALLOCATOR_BYTES } else { 0 };
            size_of::<Partial>() + ALLOCATOR_BYTES + text
        })
    }

    /// Returns how many bytes were left when the sink broke off.
    fn run(
        &mut self,
        mut rest: &mut [u8],
        message_bytes_max: usize,
        frames: &mut u32,
        sink: &mut Sink<'_>,
    ) -> Result<usize, ProtocolError> {
        while !rest.is_empty() {
            if self.partial.as_ref().is_some_and(|partial| partial.over) {
                return Ok(0);
            }
            let (flow, after) = match self.partial.as_mut().and_then(|partial| partial.open.take()) {
                Some(open) => self.go_on(open, rest, sink)?,
                None => {
                    *frames += 1;
                    self.begin(rest, message_bytes_max, sink)?
                }
            };
            rest = after;
            if flow.is_break() {
                return Ok(rest.len());
            }
        }
        Ok(0)
    }

    /// At the border of a frame, or within a header.
    fn begin<'i>(
        &mut self,
        rest: &'i mut [u8],
        message_bytes_max: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(ControlFlow<()>, &'i mut [u8]), ProtocolError> {
        let (header, rest) = match &mut self.partial {
            Some(partial) if partial.header_len > 0 => {
                let mut used = 0;
                // A header's length is known from its second byte on: byte by byte, at most 14 times.
                let header = loop {
                    let (Some(from), Some(to)) = (rest.get(used), partial.header.get_mut(partial.header_len))
                    else {
                        return Ok((ControlFlow::Continue(()), &mut []));
                    };
                    *to = *from;
                    used += 1;
                    partial.header_len += 1;
                    if let Some((header, _)) = Header::parse(&partial.header[..partial.header_len])? {
                        break header;
                    }
                };
                partial.header_len = 0;
                (header, rest.split_at_mut(used).1)
            }
            _ => match Header::parse(rest)? {
                Some((header, used)) => (header, rest.split_at_mut(used).1),
                None => {
                    let partial = self.partial();
                    // An unfinished header is shorter than a whole one.
                    for (to, from) in partial.header.iter_mut().zip(rest.iter()) {
                        *to = *from;
                    }
                    partial.header_len = rest.len();
                    return Ok((ControlFlow::Continue(()), &mut []));
                }
            },
        };
        let payload_bytes = self.check(header, message_bytes_max)?;
        if payload_bytes > rest.len() {
            let partial = self.partial();
            if let Opcode::Message(kind) = header.opcode {
                partial.message = Some(kind);
            }
            partial.open = Some(Open { header, left: payload_bytes });
            return Ok((ControlFlow::Continue(()), rest));
        }
        let (payload, rest) = rest.split_at_mut(payload_bytes);
        unmask(payload, header.mask);
        Ok((self.whole(header, payload, sink)?, rest))
    }

    /// Checks what depends on the frames before, and the length. Returns the length.
    fn check(&self, header: Header, message_bytes_max: usize) -> Result<usize, ProtocolError> {
        let unfinished = self.partial.as_ref().and_then(|partial| partial.message);
        let before = match (header.opcode, unfinished) {
            (Opcode::Continuation, None) => return Err(ProtocolError::NothingToContinue),
            (Opcode::Message(_), Some(_)) => return Err(ProtocolError::MessageUnfinished),
            (Opcode::Continuation, Some(_)) => {
                self.partial.as_ref().map_or(0, |partial| partial.message_bytes)
            }
            (Opcode::Message(_), None) => 0,
            // At most 125, checked with the header.
            _ => return Ok(header.payload_bytes as usize),
        };
        match usize::try_from(header.payload_bytes) {
            Ok(bytes) if bytes <= message_bytes_max.saturating_sub(before) => Ok(bytes),
            _ => Err(ProtocolError::TooLong),
        }
    }

    /// A frame that is whole in what was fed.
    fn whole(
        &mut self,
        header: Header,
        payload: &[u8],
        sink: &mut Sink<'_>,
    ) -> Result<ControlFlow<()>, ProtocolError> {
        match header.opcode {
            Opcode::Ping => Ok(sink(Incoming::Ping(payload))),
            Opcode::Pong => Ok(sink(Incoming::Pong(payload))),
            Opcode::Close => {
                let close = parse_close(payload)?;
                let _ = sink(Incoming::Close(close));
                self.end();
                Ok(ControlFlow::Continue(()))
            }
            Opcode::Message(Kind::Text) if header.is_final => {
                Ok(sink(Incoming::Text(str::from_utf8(payload).map_err(|_| ProtocolError::NotUtf8)?)))
            }
            Opcode::Message(Kind::Binary) if header.is_final => Ok(sink(Incoming::Binary)),
            Opcode::Message(_) | Opcode::Continuation => {
                let partial = self.partial();
                if let Opcode::Message(kind) = header.opcode {
                    partial.message = Some(kind);
                }
                partial.add_data(payload)?;
                if header.is_final { partial.finish_message(sink) } else { Ok(ControlFlow::Continue(())) }
            }
        }
    }

    /// Within the payload of a frame.
    fn go_on<'i>(
        &mut self,
        open: Open,
        rest: &'i mut [u8],
        sink: &mut Sink<'_>,
    ) -> Result<(ControlFlow<()>, &'i mut [u8]), ProtocolError> {
        let Open { mut header, left } = open;
        let (payload, rest) = rest.split_at_mut(left.min(rest.len()));
        unmask(payload, header.mask);
        header.mask.rotate_left(payload.len() % 4);
        let left = left - payload.len();

        let partial = self.partial();
        let is_data = matches!(header.opcode, Opcode::Message(_) | Opcode::Continuation);
        if is_data {
            partial.add_data(payload)?;
        } else {
            partial.add_control(payload);
        }
        if left > 0 {
            partial.open = Some(Open { header, left });
            return Ok((ControlFlow::Continue(()), rest));
        }
        let flow = if !is_data {
            let (control, len) = (partial.control, mem::take(&mut partial.control_len));
            self.whole(header, &control[..len], sink)?
        } else if header.is_final {
            partial.finish_message(sink)?
        } else {
            ControlFlow::Continue(())
        };
        Ok((flow, rest))
    }

    fn partial(&mut self) -> &mut Partial {
        self.partial.get_or_insert_with(|| Box::new(Partial::new(false)))
    }

    /// Nothing more is read.
    fn end(&mut self) {
        self.partial = Some(Box::new(Partial::new(true)));
    }
}

impl Partial {
    fn new(over: bool) -> Partial {
        Partial {
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            open: None,
            control: [0; CONTROL_BYTES_MAX],
            control_len: 0,
            message: None,
            message_bytes: 0,
            text: Vec::new(),
            text_valid: 0,
            over,
        }
    }

    fn is_empty(&self) -> bool {
        self.header_len == 0 && self.open.is_none() && self.message.is_none() && !self.over
    }

    fn add_control(&mut self, payload: &[u8]) {
        for (to, from) in self.control[self.control_len..].iter_mut().zip(payload) {
            *to = *from;
            self.control_len += 1;
        }
    }

    fn add_data(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        self.message_bytes += payload.len();
        if self.message != Some(Kind::Text) {
            return Ok(());
        }
        self.text.extend_from_slice(payload);
        match str::from_utf8(self.text.get(self.text_valid..).unwrap_or_default()) {
            Ok(_) => self.text_valid = self.text.len(),
            // A character that may still be completed.
            Err(error) if error.error_len().is_none() => self.text_valid += error.valid_up_to(),
            Err(_) => return Err(ProtocolError::NotUtf8),
        }
        Ok(())
    }

    fn finish_message(&mut self, sink: &mut Sink<'_>) -> Result<ControlFlow<()>, ProtocolError> {
        let text = mem::take(&mut self.text);
        self.text_valid = 0;
        self.message_bytes = 0;
        match self.message.take() {
            Some(Kind::Text) => {
                Ok(sink(Incoming::Text(str::from_utf8(&text).map_err(|_| ProtocolError::NotUtf8)?)))
            }
            _ => Ok(sink(Incoming::Binary)),
        }
    }
}

impl Header {
    /// The header that `bytes` begin with, and its length; none if it is not whole. Checks what a header
    /// alone can show, what its first two bytes show first.
    fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, ProtocolError> {
        let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
        let is_final = first & 0x80 != 0;
        if first & 0x70 != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let opcode = match first & 0x0f {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Message(Kind::Text),
            0x2 => Opcode::Message(Kind::Binary),
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return Err(ProtocolError::ReservedOpcode),
        };
        if second & 0x80 == 0 {
            return Err(ProtocolError::NotMasked);
        }
        let short = second & 0x7f;
        if matches!(opcode, Opcode::Close | Opcode::Ping | Opcode::Pong) {
            if !is_final {
                return Err(ProtocolError::ControlFragmented);
            }
            if usize::from(short) > CONTROL_BYTES_MAX {
                return Err(ProtocolError::ControlTooLong);
            }
        }
        let (payload_bytes, rest) = match short {
            126 => {
                let Some((length, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
                let length = u64::from(u16::from_be_bytes(*length));
                if length < 126 {
                    return Err(ProtocolError::LengthNotMinimal);
                }
                (length, rest)
            }
            127 => {
                let Some((length, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
                let length = u64::from_be_bytes(*length);
                if length > u64::MAX / 2 {
                    return Err(ProtocolError::LengthHighBit);
                }
                if length <= u64::from(u16::MAX) {
                    return Err(ProtocolError::LengthNotMinimal);
                }
                (length, rest)
            }
            short => (u64::from(short), rest),
        };
        let Some((mask, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        Ok(Some((Header { is_final, opcode, payload_bytes, mask: *mask }, bytes.len() - rest.len())))
    }
}

/// The payload of a close frame (section 5.5.1).
fn parse_close(payload: &[u8]) -> Result<Option<(u16, &str)>, ProtocolError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(ProtocolError::CloseTooShort) };
    };
    let code = u16::from_be_bytes(*code);
    // Section 7.4.1 with the codes registered since then (1012 to 1014), and section 7.4.2. 1004 to 1006 and
    // 1015 must not be sent.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(ProtocolError::CloseCode);
    }
    let reason = str::from_utf8(reason).map_err(|_| ProtocolError::NotUtf8)?;
    Ok(Some((code, reason)))
}

/// Removes the mask (section 5.3), eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip([a, b, c, d, a, b, c, d]) {
        *byte ^= mask;
    }
}
