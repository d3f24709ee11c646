//! Commands as Redis reads them (RESP arrays of bulk strings). Encoded by the redis-protocol crate.

use bytes::BytesMut;
use redis_protocol::resp2::encode::extend_encode_borrowed;
use redis_protocol::resp2::types::BorrowedFrame;

use crate::core::stream::Channel;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = BytesMut::from("before");
        encode(&mut out, &[b"SET", b"a\r\nkey", b""]);
        assert_eq!(&out[..], b"before*3\r\n$3\r\nSET\r\n$6\r\na\r\nkey\r\n$0\r\n\r\n");
    }
}
