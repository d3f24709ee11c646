use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[path = "../../../fuzz/bodies/ring.rs"]
mod body;

use body::{MESSAGE_BYTES_MAX, Seen, message_of, read};

fn message(channel: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"*3\r\n$7\r\nmessage\r\n".to_vec();
    for part in [channel, payload] {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Puts as much of `bytes` into the ring as there is space for.
fn fill(ring: &mut Ring, bytes: &[u8]) -> usize {
    let space = ring.read_space();
    let n = space.len().min(bytes.len());
    space[..n].copy_from_slice(&bytes[..n]);
    ring.filled(n);
    n
}

#[test]
fn a_message_of_the_ring_s_size_and_one_byte_to_either_side() {
    for frame_bytes in [RING_BYTES - 1, RING_BYTES, RING_BYTES + 1] {
        for reads in [&[][..], &[0], &[1], &[127], &[255], &[128, 3, 200]] {
            let mut stream = Vec::new();
            let expected = vec![
                message_of(&mut stream, 2000),
                message_of(&mut stream, frame_bytes),
                message_of(&mut stream, frame_bytes),
            ];
            let (seen, error, ring) = read(&stream, reads);
            assert_eq!(error, None);
            assert!(seen == expected, "{frame_bytes} bytes in reads of {reads:?}");
            assert_eq!(ring.unread_bytes(), 0);
        }
    }
}

#[test]
fn what_fits_stays_in_the_ring_and_what_does_not_has_its_own_buffer() {
    for (frame_bytes, is_owned) in [(RING_BYTES - 1, false), (RING_BYTES, false), (RING_BYTES + 1, true)] {
        let mut stream = Vec::new();
        message_of(&mut stream, frame_bytes);
        let mut ring = Ring::new(MESSAGE_BYTES_MAX);
        let mut rest = stream.as_slice();
        let payload = loop {
            rest = &rest[fill(&mut ring, rest)..];
            if let Some(Frame::Message { payload, .. }) = ring.next().unwrap() {
                break payload;
            }
        };
        assert_eq!(matches!(payload, Payload::Owned(_)), is_owned, "{frame_bytes} bytes");
    }
}

#[test]
fn a_length_that_lies_allocates_by_what_came() {
    let mut ring = Ring::new(8 << 20);
    fill(&mut ring, b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$8388608\r\n");
    assert!(ring.next().unwrap().is_none());
    assert_eq!(ring.held_bytes(), BODY_STEP_BYTES);
    let mut received = 0;
    while received < 1 << 20 {
        received += fill(&mut ring, &[b'x'; 4096]);
        assert!(ring.next().unwrap().is_none());
        assert!(ring.held_bytes() <= BODY_STEP_BYTES.max(2 * received));
        assert_eq!(ring.unread_bytes(), received);
    }
    ring.clear();
    assert_eq!((ring.held_bytes(), ring.unread_bytes()), (0, 0));
    fill(&mut ring, b"+PONG\r\n");
    assert!(matches!(ring.next(), Ok(Some(Frame::Pong))));
}

#[test]
fn a_large_message_s_buffer_has_exactly_its_size() {
    let payload = vec![b'x'; 100_001];
    let stream = message(b"c", &payload);
    let mut ring = Ring::new(8 << 20);
    let mut rest = stream.as_slice();
    while !rest.is_empty() {
        rest = &rest[fill(&mut ring, rest)..];
        if !rest.is_empty() {
            assert!(ring.next().unwrap().is_none());
        }
    }
    assert_eq!(ring.held_bytes(), payload.len());
    let Ok(Some(Frame::Message { payload: Payload::Owned(bytes), .. })) = ring.next() else {
        panic!("no message")
    };
    assert_eq!(bytes, payload);
}

#[test]
fn what_follows_an_overlong_message_is_not_lost() {
    let mut stream = message(b"before", b"1");
    stream.extend(message(b"long", &vec![b'\n'; MESSAGE_BYTES_MAX + 1]));
    stream.extend(message(b"after", b"2"));
    let expected = [
        Seen::Message(b"before".into(), b"1".into()),
        Seen::TooLong(b"long".into(), MESSAGE_BYTES_MAX as u64 + 1),
        Seen::Message(b"after".into(), b"2".into()),
    ];
    for reads in [&[][..], &[0], &[200], &[255]] {
        let (seen, error, ring) = read(&stream, reads);
        assert_eq!((seen.as_slice(), error), (&expected[..], None));
        assert_eq!((ring.held_bytes(), ring.unread_bytes()), (0, 0));
    }
}

#[test]
fn a_bound_under_the_ring_s_size_holds_too() {
    let mut ring = Ring::new(10);
    fill(&mut ring, &[message(b"c", b"0123456789"), message(b"c", b"0123456789a")].concat());
    assert!(matches!(ring.next(), Ok(Some(Frame::Message { .. }))));
    assert!(matches!(ring.next(), Ok(Some(Frame::TooLong { channel: b"c", bytes: 11 }))));
    assert!(matches!(ring.next(), Ok(None)));
}

#[test]
fn a_channel_longer_than_the_ring_is_passed_over() {
    let mut stream = message(&vec![b'c'; 3 * RING_BYTES], b"x");
    stream.extend_from_slice(b"+PONG\r\n");
    for reads in [&[][..], &[0], &[255]] {
        let (seen, error, _) = read(&stream, reads);
        assert_eq!((seen, error), (vec![Seen::Other, Seen::Pong], None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_frames_in_any_reads(reads in any::<[u8; 16]>(), frames in vec(any::<[u8; 4]>(), 0..24)) {
        body::run(&[&reads[..], &frames.concat()].concat());
    }
}
