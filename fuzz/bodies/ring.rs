//! The ring with reads of any size: frames of any size come out as they went in, and arbitrary bytes do no
//! harm.
//!
//! Input: 16 bytes that choose the sizes of the reads, then four bytes for each frame of the stream (kind,
//! size, filling). The whole input is also fed as it is.

use std::sync::LazyLock;

use tidegate::proto::resp::{CHANNEL_BYTES_MAX, ProtocolError};
use tidegate::proto::ring::{Frame, Ring};

/// Small, so that it is met; over the first size of a large message's buffer.
pub const MESSAGE_BYTES_MAX: usize = 72 * 1024;
const RING_BYTES: usize = 8 * 1024;
/// No frame is added to a stream that is longer: an input is to take a fraction of a millisecond.
const STREAM_BYTES_MAX: usize = 24 * 1024;
/// Reads of one stream, about: a longer one is not read byte by byte.
const READS_MAX: usize = 2048;

/// A frame, owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    Message(Vec<u8>, Vec<u8>),
    TooLong(Vec<u8>, u64),
    Subscribed(Vec<u8>, u64),
    Unsubscribed(Vec<u8>, u64),
    Pong,
    Error(Vec<u8>),
    Other,
}

pub fn run(data: &[u8]) {
    let (reads, frames) = data.split_at(data.len().min(16));
    let mut stream = Vec::new();
    let mut expected = Vec::new();
    for frame in frames.chunks_exact(4) {
        if stream.len() > STREAM_BYTES_MAX {
            break;
        }
        expected.push(build(
            &mut stream,
            frame[0],
            usize::from(u16::from_le_bytes([frame[1], frame[2]])),
            frame[3],
        ));
    }
    let (seen, error, ring) = read(&stream, reads);
    assert_eq!(error, None);
    assert!(seen == expected, "other frames came out: {}", difference(&seen, &expected));
    assert_eq!((ring.unread_bytes(), ring.held_bytes()), (0, 0));

    let (seen, error, _) = read(data, reads);
    let (whole, whole_error, _) = read(data, &[]);
    assert!(seen == whole && error == whole_error, "depends on the reads");
}

/// Reads `stream` through a ring, in reads of at most the sizes that `reads` gives in turn.
pub fn read(stream: &[u8], reads: &[u8]) -> (Vec<Seen>, Option<ProtocolError>, Ring) {
    let mut ring = Ring::new(MESSAGE_BYTES_MAX);
    let mut seen = Vec::new();
    let mut sizes = reads.iter().cycle().map(|size| match usize::from(*size) {
        size @ ..128 => size + 1,
        size => (size - 127) * 256,
    });
    let least = stream.len() / READS_MAX;
    let mut rest = stream;
    while !rest.is_empty() {
        let space = ring.read_space();
        assert!(!space.is_empty(), "no space to read into");
        let n = space.len().min(rest.len()).min(sizes.next().unwrap_or(usize::MAX).max(least));
        space[..n].copy_from_slice(&rest[..n]);
        ring.filled(n);
        rest = &rest[n..];
        loop {
            match ring.next() {
                Ok(Some(frame)) => seen.push(own(frame)),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(ring.next().err(), Some(error), "an error does not last");
                    return (seen, Some(error), ring);
                }
            }
        }
        assert!(ring.held_bytes() <= (2 * ring.unread_bytes()).max(64 * 1024), "more is held than came");
        assert!(ring.held_bytes() <= MESSAGE_BYTES_MAX);
    }
    (seen, None, ring)
}

fn own(frame: Frame<'_>) -> Seen {
    match frame {
        Frame::Message { channel, payload } => Seen::Message(channel.to_vec(), payload.into_bytes().to_vec()),
        Frame::TooLong { channel, bytes } => Seen::TooLong(channel.to_vec(), bytes),
        Frame::Subscribed { channel, count } => Seen::Subscribed(channel.to_vec(), count),
        Frame::Unsubscribed { channel, count } => Seen::Unsubscribed(channel.to_vec(), count),
        Frame::Pong => Seen::Pong,
        Frame::Error(text) => Seen::Error(text.to_vec()),
        Frame::Other => Seen::Other,
    }
}

/// Appends one frame, and says what should come out.
fn build(stream: &mut Vec<u8>, kind: u8, size: usize, filling: u8) -> Seen {
    let channel = format!("timeline:{filling}").into_bytes();
    match kind % 12 {
        0 | 1 => message(stream, &channel, &filled(size % 600, filling)),
        2 => message(stream, &channel, &filled(size % (3 * RING_BYTES), filling)),
        // Around the ring's size, the whole frame counted.
        3 | 4 => message_of(stream, RING_BYTES - 8 + size % 17),
        // Around the largest allowed.
        5 => message(stream, &channel, &filled(MESSAGE_BYTES_MAX - 8 + size % 17, filling)),
        6 => {
            // A channel name of up to twice the ring: passed over if it is too long to be ours.
            let channel = filled(size % (2 * RING_BYTES), b'c');
            let seen = message(stream, &channel, &filled(usize::from(filling), filling));
            if channel.len() > CHANNEL_BYTES_MAX { Seen::Other } else { seen }
        }
        7 => {
            let count = size as u64;
            array(stream, &[b"subscribe", &channel], Some(count));
            Seen::Subscribed(channel, count)
        }
        8 => {
            let count = size as u64;
            array(stream, &[b"unsubscribe", &channel], Some(count));
            Seen::Unsubscribed(channel, count)
        }
        9 => {
            match size % 3 {
                0 => stream.extend_from_slice(b"+PONG\r\n"),
                1 => array(stream, &[b"pong", b""], None),
                _ => array(stream, &[b"pong", &filled(size % 600, filling)], None),
            }
            Seen::Pong
        }
        10 => {
            let text = b"E".repeat(size % 4000);
            stream.push(b'-');
            stream.extend_from_slice(&text);
            stream.extend_from_slice(b"\r\n");
            Seen::Error(text)
        }
        _ => {
            match size % 5 {
                0 => array(
                    stream,
                    &[b"pmessage", b"*", &channel, &filled(size % (2 * RING_BYTES), filling)],
                    None,
                ),
                1 => stream.extend_from_slice(b"*3\r\n*2\r\n:1\r\n$-1\r\n+two\r\n*0\r\n"),
                2 => bulk(stream, &filled(size % (2 * RING_BYTES), filling)),
                3 => stream.extend_from_slice(b":-12\r\n"),
                _ => stream.extend_from_slice(b"+OK\r\n"),
            }
            Seen::Other
        }
    }
}

/// Appends a message that is, as a frame, exactly that long.
pub fn message_of(stream: &mut Vec<u8>, frame_bytes: usize) -> Seen {
    // Headers, name and line ends take 47 bytes with a payload length of four digits.
    let mut frame = Vec::new();
    message(&mut frame, b"timeline:1", &filled(4000, 0));
    let payload = frame_bytes - (frame.len() - 4000);
    let before = stream.len();
    let seen = message(stream, b"timeline:1", &filled(payload, 7));
    assert_eq!(stream.len() - before, frame_bytes);
    seen
}

fn message(stream: &mut Vec<u8>, channel: &[u8], payload: &[u8]) -> Seen {
    array(stream, &[b"message", channel, payload], None);
    if payload.len() > MESSAGE_BYTES_MAX {
        Seen::TooLong(channel.to_vec(), payload.len() as u64)
    } else {
        Seen::Message(channel.to_vec(), payload.to_vec())
    }
}

fn array(stream: &mut Vec<u8>, bulks: &[&[u8]], count: Option<u64>) {
    stream.extend_from_slice(format!("*{}\r\n", bulks.len() + usize::from(count.is_some())).as_bytes());
    for bytes in bulks {
        bulk(stream, bytes);
    }
    if let Some(count) = count {
        stream.extend_from_slice(format!(":{count}\r\n").as_bytes());
    }
}

fn bulk(stream: &mut Vec<u8>, bytes: &[u8]) {
    stream.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    stream.extend_from_slice(bytes);
    stream.extend_from_slice(b"\r\n");
}

/// Bytes that differ by place, line ends and RESP's own signs among them.
fn filled(bytes: usize, filling: u8) -> Vec<u8> {
    const SIGNS: &[u8] = b"\r\n*3$>+-:abc{}\"";
    static LONG: LazyLock<Vec<u8>> =
        LazyLock::new(|| SIGNS.repeat((2 * MESSAGE_BYTES_MAX).div_ceil(SIGNS.len())));
    LONG[usize::from(filling) % SIGNS.len()..][..bytes].to_vec()
}

fn difference(seen: &[Seen], expected: &[Seen]) -> String {
    let place = seen.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let short = |frames: &[Seen]| {
        let mut text = format!("{:?}", frames.get(place));
        text.truncate(200);
        text
    };
    format!("frame {place} is {} instead of {}", short(seen), short(expected))
}
