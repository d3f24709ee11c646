use proptest::collection::vec;
use proptest::prelude::*;
use redis_protocol::resp2::encode::encode;
use redis_protocol::resp2::types::{OwnedFrame, Resp2Frame};

use super::*;

#[path = "../../../fuzz/bodies/resp.rs"]
mod body;

use body::{Seen, framed};

/// Frames the text whole and byte by byte.
fn both(stream: &[u8]) -> (Vec<Seen>, Option<ProtocolError>) {
    let whole = framed(stream, &[]);
    assert_eq!(framed(stream, &[0]), whole);
    body::run(&[&[0; 8], stream].concat());
    whole
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[test]
fn what_a_subscriber_is_sent() {
    let table: &[(&[u8], Seen)] = &[
        (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\n{}\r\n", Seen::Message(b"c".into(), b"{}".into())),
        (b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$0\r\n\r\n", Seen::Message(b"c".into(), b"".into())),
        (b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:4\r\n", Seen::Subscribed(b"c".into(), 4)),
        (b"*3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n", Seen::Unsubscribed(b"c".into(), 0)),
        (b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n", Seen::Unsubscribed(b"".into(), 0)),
        (b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n", Seen::Unsubscribed(b"".into(), 0)),
        (b"+PONG\r\n", Seen::Pong),
        (b"*2\r\n$4\r\npong\r\n$0\r\n\r\n", Seen::Pong),
        (b"-NOPERM this user\r\n", Seen::Error(b"NOPERM this user".into())),
        (b"+OK\r\n", Seen::Other),
        (b":-9223372036854775808\r\n", Seen::Other),
        (b"$-1\r\n", Seen::Other),
        (b"_\r\n", Seen::Other),
        (b"*-1\r\n", Seen::Other),
        (b"*0\r\n", Seen::Other),
        (b"$5\r\nhello\r\n", Seen::Other),
        (b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\nc\r\n$1\r\nx\r\n", Seen::Other),
        (b"*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n", Seen::Other),
        (b"*2\r\n$7\r\nmessage\r\n$1\r\nc\r\n", Seen::Other),
        (b"*3\r\n$7\r\nmessage\r\n$-1\r\n$1\r\nx\r\n", Seen::Other),
        (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$-1\r\n", Seen::Other),
        (b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n:1\r\n", Seen::Other),
        (b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n$1\r\n1\r\n", Seen::Other),
        (b"*3\r\n+message\r\n$1\r\nc\r\n$1\r\nx\r\n", Seen::Other),
        (b"*2\r\n*2\r\n:1\r\n*1\r\n-inner\r\n$3\r\nabc\r\n", Seen::Other),
        (b"+one\nline\r\n", Seen::Other),
    ];
    let mut all = Vec::new();
    for (bytes, expected) in table {
        assert_eq!(both(bytes), (vec![expected.clone()], None), "{:?}", bytes.escape_ascii().to_string());
        all.extend_from_slice(bytes);
    }
    assert_eq!(both(&all).0, table.iter().map(|(_, seen)| seen.clone()).collect::<Vec<_>>());
}

#[test]
fn what_is_refused() {
    let deep = b"*1\r\n".repeat(DEPTH_MAX + 1);
    let long = [b"+".as_slice(), &b"x".repeat(LINE_BYTES_MAX)].concat();
    let zeros = [b"$".as_slice(), &b"0".repeat(HEADER_BYTES_MAX)].concat();
    let table: &[(&[u8], ProtocolError)] = &[
        (b"HTTP/1.1 400", ProtocolError::UnknownType(b'H')),
        (b"%1\r\n", ProtocolError::UnknownType(b'%')),
        (b":12a\r\n", ProtocolError::BadNumber),
        (b":\r\n", ProtocolError::BadNumber),
        (b":-\r\n", ProtocolError::BadNumber),
        (b":9223372036854775808\r\n", ProtocolError::BadNumber),
        (b"$1 \r\n", ProtocolError::BadNumber),
        (b"_x\r\n", ProtocolError::BadNumber),
        (b"$-2\r\n", ProtocolError::NegativeLength),
        (b"*-2\r\n", ProtocolError::NegativeLength),
        (b">-1\r\n", ProtocolError::NegativeLength),
        (b"*3\n", ProtocolError::MissingLineEnd),
        (b"$1\r\nabc", ProtocolError::MissingLineEnd),
        (b"*1\r\n$7\r\nmessage..", ProtocolError::MissingLineEnd),
        (&long, ProtocolError::LineTooLong),
        (&zeros, ProtocolError::LineTooLong),
        (b"*1048577\r\n", ProtocolError::ArrayTooLong),
        (b"*9000000000\r\n", ProtocolError::ArrayTooLong),
        (b"$4294967296\r\n", ProtocolError::BulkTooLong),
        (&deep, ProtocolError::TooDeep),
    ];
    for (bytes, expected) in table {
        assert_eq!(both(bytes), (vec![], Some(*expected)), "{:?}", bytes.escape_ascii().to_string());
    }
}

#[test]
fn a_channel_is_understood_up_to_its_bound() {
    for (bytes, is_message) in [(CHANNEL_BYTES_MAX, true), (CHANNEL_BYTES_MAX + 1, false), (100_000, false)] {
        let channel = b"c".repeat(bytes);
        let stream = [b"*3\r\n$7\r\nmessage\r\n".to_vec(), bulk(&channel), bulk(b"x"), b"+PONG\r\n".to_vec()];
        let first = if is_message { Seen::Message(channel, b"x".into()) } else { Seen::Other };
        assert_eq!(both(&stream.concat()), (vec![first, Seen::Pong], None));
    }
}

#[test]
fn a_body_that_does_not_fit_is_announced_by_its_header() {
    let mut framer = Framer::new(RING_BYTES, 1 << 20);
    let input = b"*3\r\n$7\r\nmessage\r\n$4\r\nchan\r\n$10000\r\nthe beginning";
    let Ok(Step::Body { channel, used, bytes }) = framer.step(input) else { panic!("no body") };
    assert_eq!((channel.of(input), &input[used..], bytes), (&b"chan"[..], &b"the beginning"[..], 10_000));
    assert_eq!(framer.step(b"\r"), Ok(Step::More(1)));
    assert_eq!(framer.step(b"\r\n+PONG"), Ok(Step::Frame { used: 2, found: Found::BodyEnd }));
}

#[test]
fn more_says_how_much() {
    let mut framer = Framer::new(RING_BYTES, 1 << 20);
    assert_eq!(framer.step(b""), Ok(Step::More(1)));
    let start = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$100\r\n";
    assert_eq!(framer.step(start), Ok(Step::More(102)));
    assert_eq!(framer.step(&[start, &b"x".repeat(60)[..]].concat()), Ok(Step::More(42)));
}

/// Any frame that RESP2 can write.
fn frame() -> impl Strategy<Value = OwnedFrame> {
    let text = "[ -~]{0,20}";
    let bytes =
        prop_oneof![vec(any::<u8>(), 0..40), vec(any::<u8>(), 8000..9000), vec(any::<u8>(), 16_000..20_000)];
    let leaf = prop_oneof![
        text.prop_map(|text| OwnedFrame::SimpleString(text.into())),
        text.prop_map(OwnedFrame::Error),
        any::<i64>().prop_map(OwnedFrame::Integer),
        bytes.prop_map(OwnedFrame::BulkString),
        Just(OwnedFrame::Null),
    ];
    let nested = leaf.clone().prop_recursive(4, 24, 5, |inner| vec(inner, 0..5).prop_map(OwnedFrame::Array));
    let name =
        prop_oneof![Just("message"), Just("subscribe"), Just("unsubscribe"), Just("pong"), Just("pmessage")];
    let push = (name, "[a-z:0-9]{0,30}", leaf).prop_map(|(name, channel, last)| {
        let bulk = |text: &str| OwnedFrame::BulkString(text.into());
        OwnedFrame::Array(vec![bulk(name), bulk(&channel), last])
    });
    prop_oneof![3 => push, 1 => nested]
}

proptest! {
    #[test]
    fn any_split_of_any_frames_is_read_as_the_judge_reads_it(
        frames in vec(frame(), 1..8),
        splits in any::<[u8; 8]>(),
    ) {
        let mut data = splits.to_vec();
        for frame in &frames {
            let start = data.len();
            data.resize(start + frame.encode_len(false), 0);
            encode(&mut data[start..], frame, false).unwrap();
        }
        let (seen, error) = framed(&data[8..], &splits);
        prop_assert_eq!((seen.len(), error), (frames.len(), None));
        body::run(&data);
    }

    #[test]
    fn damaged_streams_are_judged_alike(
        frames in vec(frame(), 1..4),
        splits in any::<[u8; 8]>(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut data = splits.to_vec();
        for frame in &frames {
            let start = data.len();
            data.resize(start + frame.encode_len(false), 0);
            encode(&mut data[start..], frame, false).unwrap();
        }
        for (place, byte) in damage {
            let place = 8 + place.index(data.len() - 8);
            data[place] = byte;
        }
        body::run(&data);
    }

    #[test]
    fn made_of_resp_s_own_pieces(
        splits in any::<[u8; 8]>(),
        pieces in vec(prop::sample::select(vec![
            "*3\r\n", "*2\r\n", "*0\r\n", "*-1\r\n", ">3\r\n", "$7\r\n", "message\r\n", "$9\r\nsubscribe\r\n",
            "$11\r\nunsubscribe\r\n", "$4\r\npong\r\n", "$1\r\n", "c\r\n", "$-1\r\n", "_\r\n", ":1\r\n", ":-1\r\n",
            "+PONG\r\n", "-ERR\r\n", "\r", "\n", "\r\n", "$", "1", "-", "+", "*",
        ]), 0..20),
    ) {
        body::run(&[&splits[..], pieces.concat().as_bytes()].concat());
    }
}
