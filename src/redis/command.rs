//! Commands as Redis reads them (RESP arrays of bulk strings), and its answers to them. Encoded and decoded by the
//! redis-protocol crate.

use bytes::BytesMut;
use redis_protocol::resp2::decode;
use redis_protocol::resp2::encode::extend_encode_borrowed;
use redis_protocol::resp2::types::{BorrowedFrame, OwnedFrame};

use crate::core::stream::Channel;
use crate::limits::RING_BYTES;
use crate::proto::resp::{Framer, Step};

/// Appends one command.
pub fn encode(out: &mut BytesMut, parts: &[&[u8]]) {
    let frames: Vec<BorrowedFrame<'_>> = parts.iter().map(|part| BorrowedFrame::BulkString(part)).collect();
    let before = out.len();
    let encoded = extend_encode_borrowed(out, &BorrowedFrame::Array(&frames), false);
    // Encoding fails only into a buffer that is too small, and this one grows as needed.
    debug_assert!(encoded.is_ok());
    if encoded.is_err() {
        out.truncate(before);
    }
}

/// Appends one command on channels: SUBSCRIBE or UNSUBSCRIBE. `prefix` stands before each name.
pub fn encode_channels(out: &mut BytesMut, verb: &str, prefix: &str, channels: &[Channel]) {
    let mut names = Vec::with_capacity(channels.len() * 24);
    let mut ends = Vec::with_capacity(channels.len());
    for channel in channels {
        names.extend_from_slice(prefix.as_bytes());
        channel.write_name(&mut names);
        ends.push(names.len());
    }
    let mut parts: Vec<&[u8]> = Vec::with_capacity(channels.len() + 1);
    parts.push(verb.as_bytes());
    let mut start = 0;
    for end in ends {
        parts.push(names.get(start..end).unwrap_or_default());
        start = end;
    }
    encode(out, &parts);
}

/// Appends the command that sets a channel's presence key for that many seconds:
/// `SET [NAMESPACE:]subscribed:CHANNEL 1 EX SECONDS`. Rails looks whether it exists.
pub fn encode_presence(out: &mut BytesMut, prefix: &str, channel: &Channel, seconds: u64) {
    let mut key = Vec::with_capacity(64);
    key.extend_from_slice(prefix.as_bytes());
    key.extend_from_slice(b"subscribed:");
    channel.write_name(&mut key);
    encode(out, &[b"SET", &key, b"1", b"EX", seconds.to_string().as_bytes()]);
}

/// What answers does not speak as Redis does.
#[derive(Debug)]
pub struct Strange;

/// The answer that `input` begins with, and its length; none while it is not whole.
///
/// The crate's decoder calls itself for an array in an array: enough of them would end the process for want of
/// stack. So the framer, which only counts, looks first whether they are nested deeper than it allows.
pub fn decode_answer(input: &[u8]) -> Result<Option<(OwnedFrame, usize)>, Strange> {
    let mut framer = Framer::new(RING_BYTES, 0);
    let mut rest = input;
    loop {
        let taken = match framer.step(rest).map_err(|_| Strange)? {
            Step::Frame { .. } => return decode::decode(input).map_err(|_| Strange),
            Step::More(_) => return Ok(None),
            Step::Discard { used, skip } => (used as u64).saturating_add(skip),
            Step::Body { used, bytes, .. } => (used as u64).saturating_add(bytes),
        };
        let Some(after) = usize::try_from(taken).ok().and_then(|taken| rest.get(taken..)) else {
            return Ok(None);
        };
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = BytesMut::from("before");
        encode(&mut out, &[b"SET", b"a\r\nkey", b""]);
        assert_eq!(&out[..], b"before*3\r\n$3\r\nSET\r\n$6\r\na\r\nkey\r\n$0\r\n\r\n");
    }

    #[test]
    fn an_answer_is_decoded_when_it_is_whole() {
        let role = "*3\r\n$6\r\nmaster\r\n:7\r\n*1\r\n*3\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\n2\r\n";
        let message = "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$3\r\nb\r\n\r\n";
        let list = format!("${}\r\n{}\r\n", 20_000, "id=5 omem=0\n".repeat(1667).get(..20_000).unwrap());
        for whole in ["+OK\r\n", "-ERR no\r\n", ":-5\r\n", "$-1\r\n", "*0\r\n", role, message, &list] {
            for end in 0..whole.len().min(100) {
                assert!(matches!(decode_answer(&whole.as_bytes()[..end]), Ok(None)), "{whole:?} to {end}");
            }
            let more = format!("{whole}+next");
            let (frame, used) = decode_answer(more.as_bytes()).unwrap().unwrap();
            assert_eq!((frame, used), decode::decode(whole.as_bytes()).unwrap().unwrap());
        }
        for strange in ["HTTP/1.1 400\r\n", ">1\r\n+a\r\n", "*9999999999\r\n", "$-2\r\n"] {
            assert!(decode_answer(strange.as_bytes()).is_err(), "{strange:?}");
        }
    }

    #[test]
    fn arrays_nested_beyond_reason_are_an_error() {
        for nested in ["*1\r\n", "*2\r\n:1\r\n"] {
            assert!(decode_answer(nested.repeat(200_000).as_bytes()).is_err());
        }
    }
}
