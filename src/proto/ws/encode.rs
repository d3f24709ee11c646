//! What a server sends: unmasked frames, never fragmented (RFC 6455, section 5).
//!
//! Headers and control frames are inline; a text message's payload is never copied here.

use std::ops::Deref;

/// A ping without payload.
pub const PING: [u8; 2] = [0x89, 0x00];

/// A close frame without a status code; a client sees 1005.
pub const CLOSE_WITHOUT_CODE: [u8; 2] = [0x88, 0x00];

/// Longest payload of a control frame (section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Up to `N` bytes, inline. Read it as a slice.
#[derive(Clone, Copy, Debug)]
pub struct Inline<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

/// The header of a text message.
pub type TextHeader = Inline<10>;

/// A whole control frame.
pub type ControlFrame = Inline<{ 2 + CONTROL_BYTES_MAX }>;

impl<const N: usize> Inline<N> {
    const EMPTY: Inline<N> = Inline { bytes: [0; N], len: 0 };

    /// Appends what there is room for.
    fn push(&mut self, bytes: &[u8]) {
        let free = self.bytes.get_mut(usize::from(self.len)..).unwrap_or_default();
        for (to, from) in free.iter_mut().zip(bytes) {
            *to = *from;
            self.len += 1;
        }
    }
}

impl<const N: usize> Deref for Inline<N> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// The header of a text message of `payload_bytes`, in the shortest form (section 5.2).
pub fn text_header(payload_bytes: usize) -> TextHeader {
    let mut header = TextHeader::EMPTY;
    match (u8::try_from(payload_bytes), u16::try_from(payload_bytes)) {
        (Ok(short @ 0..=125), _) => header.push(&[0x81, short]),
        (_, Ok(medium)) => {
            header.push(&[0x81, 126]);
            header.push(&medium.to_be_bytes());
        }
        _ => {
            header.push(&[0x81, 127]);
            header.push(&(payload_bytes as u64).to_be_bytes());
        }
    }
    header
}

/// The answer to a ping with that payload (section 5.5.3), of which 125 bytes are taken.
pub fn pong(payload: &[u8]) -> ControlFrame {
    control(0x8a, payload.get(..CONTROL_BYTES_MAX).unwrap_or(payload), &[])
}

/// A close frame with a status code (section 5.5.1) and a reason, of which as many characters are taken as
/// fit into 123 bytes.
pub fn close(code: u16, reason: &str) -> ControlFrame {
    let mut end = reason.len().min(CONTROL_BYTES_MAX - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    control(0x88, &code.to_be_bytes(), reason.as_bytes().get(..end).unwrap_or_default())
}

fn control(first: u8, payload: &[u8], more: &[u8]) -> ControlFrame {
    let mut frame = ControlFrame::EMPTY;
    frame.push(&[first, (payload.len() + more.len()) as u8]);
    frame.push(payload);
    frame.push(more);
    frame
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

    use super::*;

    fn header(bytes: &[u8]) -> (FrameHeader, u64, usize) {
        let mut cursor = Cursor::new(bytes);
        let (header, len) = FrameHeader::parse(&mut cursor).unwrap().unwrap();
        (header, len, cursor.position() as usize)
    }

    #[test]
    fn text_headers_have_the_shortest_length_and_read_back() {
        for (len, header_bytes) in
            [(0, 2), (1, 2), (125, 2), (126, 4), (127, 4), (65_535, 4), (65_536, 10), (8 << 20, 10)]
        {
            let bytes = text_header(len);
            let (read, read_len, used) = header(&bytes);
            assert_eq!((read_len, used, bytes.len()), (len as u64, header_bytes, header_bytes));
            assert_eq!(read.opcode, OpCode::Data(Data::Text));
            assert!(read.is_final && read.mask.is_none() && !read.rsv1 && !read.rsv2 && !read.rsv3);
        }
    }

    #[test]
    fn control_frames_read_back() {
        assert_eq!(header(&PING).0.opcode, OpCode::Control(Control::Ping));
        assert_eq!(header(&CLOSE_WITHOUT_CODE).0.opcode, OpCode::Control(Control::Close));
        assert_eq!(*pong(b"abc"), *b"\x8a\x03abc");
        assert_eq!(*pong(b""), *b"\x8a\x00");
        assert_eq!(*close(1001, "bye"), *b"\x88\x05\x03\xe9bye");
    }

    #[test]
    fn a_long_pong_is_cut() {
        assert_eq!(pong(&[7; 200]).len(), 127);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let frame = close(1013, &"é".repeat(100));
        assert_eq!(frame[1], 124);
        assert_eq!(std::str::from_utf8(&frame[4..]).unwrap(), "é".repeat(61));
        assert_eq!(close(1013, &"a".repeat(500)).len(), 127);
    }
}
