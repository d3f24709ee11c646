//! Server-Sent Events: the pieces of the stream and of its HTTP/1.1 chunks.
//!
//! Format: the `text/event-stream` section of <https://html.spec.whatwg.org/multipage/server-sent-events.html>;
//! chunks: RFC 9112, section 7.1. An event is `event: NAME`, one `data:` line for each line of the payload,
//! and a blank line, each key followed by exactly one space: some clients' parsers need it.
//!
//! Invariant: nothing that is written into a name, a comment or a payload can end its line, so it cannot
//! become another field or event. Everything appends to the caller's buffer; the chunk head is inline.
//!
//! Tested with a parser written from the specification, for payloads of any bytes.

use std::ops::Deref;

use memchr::memchr2;

#[cfg(test)]
mod tests;

/// What a stream begins with: a comment, one line feed, no blank line.
pub const GREETING: &[u8] = b":)\n";

/// Keeps proxies and clients from taking silence for death.
pub const HEARTBEAT: &[u8] = b":thump\n\n";

/// What stands between an event's name and its first data line.
const DATA: &[u8] = b"data: ";

/// What each further line of a payload adds to it, in bytes.
pub const DATA_BYTES: usize = DATA.len();

/// What stands behind an event's last data line.
pub const EVENT_END: &[u8] = b"\n\n";

/// Behind the bytes of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// Ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends a whole event.
pub fn event(out: &mut Vec<u8>, name: &[u8], payload: &[u8]) {
    event_start(out, name);
    event_data(out, payload);
    out.extend_from_slice(EVENT_END);
}

/// Appends `event: NAME`, a line feed, and `data: `. A line end in the name becomes a space.
pub fn event_start(out: &mut Vec<u8>, name: &[u8]) {
    out.reserve(b"event: \n".len() + name.len() + DATA.len());
    out.extend_from_slice(b"event: ");
    one_line(out, name);
    out.push(b'\n');
    out.extend_from_slice(DATA);
}

/// Appends data behind [`event_start`]: each line end (LF, CR or CR LF) begins another `data: ` line. May be
/// called with a payload's pieces, as long as no CR LF is cut in two.
pub fn event_data(out: &mut Vec<u8>, payload: &[u8]) {
    let mut rest = payload;
    while let Some((line, after)) = split_line(rest) {
        out.extend_from_slice(line);
        out.push(b'\n');
        out.extend_from_slice(DATA);
        rest = after;
    }
    out.extend_from_slice(rest);
}

/// Appends a comment as a block of its own: `:REASON` and a blank line.
pub fn comment(out: &mut Vec<u8>, reason: &str) {
    out.push(b':');
    one_line(out, reason.as_bytes());
    out.extend_from_slice(b"\n\n");
}

/// Appends `bytes` as one chunk. Nothing for no bytes: an empty chunk would end the body.
pub fn chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let head = chunk_head(bytes.len());
    out.reserve(head.len() + bytes.len() + CHUNK_END.len());
    out.extend_from_slice(&head);
    out.extend_from_slice(bytes);
    out.extend_from_slice(CHUNK_END);
}

/// The line before a chunk of that many bytes (not 0: that would end the body): the length in hexadecimal.
pub fn chunk_head(bytes: usize) -> ChunkHead {
    let digits = (usize::BITS - bytes.leading_zeros()).div_ceil(4).max(1) as usize;
    let mut head = ChunkHead { bytes: [0; ChunkHead::BYTES_MAX], len: (digits + 2) as u8 };
    let line_end = b"\r\n".iter().copied();
    let hex = (0..digits).rev().map(|place| b"0123456789abcdef"[(bytes >> (4 * place)) & 0xf]);
    for (to, from) in head.bytes.iter_mut().zip(hex.chain(line_end)) {
        *to = from;
    }
    head
}

/// A chunk's first line, inline. Read it as a slice.
#[derive(Clone, Copy, Debug)]
pub struct ChunkHead {
    bytes: [u8; ChunkHead::BYTES_MAX],
    len: u8,
}

impl ChunkHead {
    /// 16 digits and the line end.
    pub const BYTES_MAX: usize = 18;
}

impl Deref for ChunkHead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// Appends `text` with every CR and LF as a space.
fn one_line(out: &mut Vec<u8>, text: &[u8]) {
    out.extend(text.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }));
}

/// The first line without its end, and what follows; none if there is no line end.
fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr2(b'\r', b'\n', text)?;
    let (line, rest) = text.split_at_checked(end)?;
    let after = match rest {
        [b'\r', b'\n', after @ ..] => after,
        [_, after @ ..] => after,
        [] => rest,
    };
    Some((line, after))
}
