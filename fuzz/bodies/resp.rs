//! The RESP framer on arbitrary bytes: the same frames and verdict for any split, and the same as
//! redis-protocol's decoder, which is asked frame by frame.
//!
//! Input: 8 bytes that choose the splits, then the stream.

use redis_protocol::resp2::decode::{decode, decode_range};
use redis_protocol::resp2::types::RangeFrame;

use tidegate::proto::resp::{CHANNEL_BYTES_MAX, Found, Framer, ProtocolError, Step};
use tidegate::redis::command::{Strange, decode_answer};

/// Small, so that bodies over it are met.
const BODY_BYTES_MAX: usize = 16 * 1024;
const ROOM: usize = 8 * 1024;

/// A frame as a subscriber sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    Message(Vec<u8>, Vec<u8>),
    Subscribed(Vec<u8>, u64),
    Unsubscribed(Vec<u8>, u64),
    Pong,
    Error(Vec<u8>),
    Other,
}

pub fn run(data: &[u8]) {
    let (splits, stream) = data.split_at(data.len().min(8));
    let (seen, error) = framed(stream, splits);
    assert_eq!((&seen, error), (&framed(stream, &[]).0, framed(stream, &[]).1), "depends on the split");
    compare(stream, &seen, error);
    answers(stream);
}

/// Who reads answers whole waits for more only where redis-protocol does too.
fn answers(stream: &[u8]) {
    let mut rest = stream;
    loop {
        match decode_answer(rest) {
            Ok(Some((_, used))) => rest = &rest[used..],
            Ok(None) => return assert!(!matches!(decode(rest), Ok(Some(_))), "waits at {rest:?}"),
            Err(Strange) => return,
        }
    }
}

/// Frames `stream` in pieces of the sizes that `splits` gives in turn; in one piece if there are none.
pub fn framed(stream: &[u8], splits: &[u8]) -> (Vec<Seen>, Option<ProtocolError>) {
    let mut framer = Framer::new(ROOM, BODY_BYTES_MAX);
    let mut seen = Vec::new();
    let mut held: Vec<u8> = Vec::new();
    let mut skip = 0;
    let mut body: Option<(Vec<u8>, Vec<u8>, usize)> = None;
    let mut sizes = splits.iter().cycle().map(|size| usize::from(*size) * usize::from(*size) / 16 + 1);
    let mut rest = stream;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap_or(usize::MAX).min(rest.len()));
        rest = after;
        held.extend_from_slice(piece);
        loop {
            let skipped = skip.min(held.len() as u64) as usize;
            held.drain(..skipped);
            skip -= skipped as u64;
            if skip > 0 {
                break;
            }
            if let Some((_, body, bytes)) = &mut body {
                let here = held.len().min(*bytes - body.len());
                body.extend(held.drain(..here));
                if body.len() < *bytes {
                    break;
                }
            }
            match framer.step(&held) {
                Ok(Step::More(bytes)) => {
                    assert!(bytes > 0);
                    assert!(held.len() < ROOM, "an unfinished frame fills the buffer");
                    break;
                }
                Ok(Step::Discard { used, skip: more }) => {
                    assert!(used > 0 || more > 0, "no progress");
                    assert!(more == 0 || used == held.len());
                    held.drain(..used);
                    skip = more;
                }
                Ok(Step::Body { channel, used, bytes }) => {
                    body = Some((channel.of(&held).to_vec(), Vec::new(), bytes as usize));
                    held.drain(..used);
                }
                Ok(Step::Frame { used, found }) => {
                    assert!(used > 0);
                    seen.push(match found {
                        Found::Message { channel, payload } => {
                            Seen::Message(channel.of(&held).to_vec(), payload.of(&held).to_vec())
                        }
                        Found::BodyEnd => {
                            let (channel, body, _) =
                                body.take().unwrap_or_else(|| panic!("no body has begun"));
                            Seen::Message(channel, body)
                        }
                        Found::Subscribed { channel, count } => {
                            Seen::Subscribed(channel.of(&held).to_vec(), count)
                        }
                        Found::Unsubscribed { channel, count } => {
                            Seen::Unsubscribed(channel.of(&held).to_vec(), count)
                        }
                        Found::Pong => Seen::Pong,
                        Found::Error(text) => Seen::Error(text.of(&held).to_vec()),
                        Found::Other => Seen::Other,
                    });
                    held.drain(..used);
                }
                Err(error) => {
                    assert_eq!(framer.step(&held), Err(error), "an error does not last");
                    return (seen, Some(error));
                }
            }
        }
    }
    (seen, None)
}

/// Asks redis-protocol about the same stream.
fn compare(stream: &[u8], seen: &[Seen], error: Option<ProtocolError>) {
    // It reads RESP2: a push is an array to it, and it does not know `_`.
    let mapped: Vec<u8> = stream.iter().map(|byte| if *byte == b'>' { b'*' } else { *byte }).collect();
    let has_null = stream.starts_with(b"_") || stream.windows(2).any(|bytes| bytes == b"\n_");
    let mut at = 0;
    for k in 0.. {
        // It has no limits of its own, not even on nesting.
        if k == seen.len()
            && matches!(
                error,
                Some(
                    ProtocolError::TooDeep
                        | ProtocolError::ArrayTooLong
                        | ProtocolError::BulkTooLong
                        | ProtocolError::LineTooLong
                )
            )
        {
            return;
        }
        match (decode_range(&mapped[at..]), seen.get(k)) {
            (Ok(Some((frame, used))), Some(seen)) => {
                assert_eq!(*seen, interpret(&frame, &stream[at..]), "frame {k} at byte {at}");
                at += used;
            }
            (Ok(Some(_)), None) => {
                // It does not look at the line end of a bulk string, nor does it know pushes.
                let is_stricter =
                    matches!(error, Some(ProtocolError::MissingLineEnd | ProtocolError::NegativeLength));
                assert!(is_stricter, "frame {k} at byte {at} was not found: {error:?}");
                return;
            }
            (Ok(None), None) => return,
            (Err(_), None) => {
                assert!(error.is_some() || has_null, "an error at byte {at} was not found");
                return;
            }
            (Ok(None) | Err(_), Some(seen)) => {
                assert!(has_null, "frame {k} at byte {at} is none: {seen:?}");
                return;
            }
        }
    }
}

fn interpret(frame: &RangeFrame, input: &[u8]) -> Seen {
    use RangeFrame::{Array, BulkString, Error, Integer, Null, SimpleString};
    let of = |(start, end): &(usize, usize)| input[*start..*end].to_vec();
    let elements = match frame {
        SimpleString(text) if of(text) == b"PONG" => return Seen::Pong,
        Error(text) => return Seen::Error(of(text)),
        Array(elements) => elements,
        _ => return Seen::Other,
    };
    let (name, rest) = match elements.split_first() {
        Some((BulkString(name), rest)) => (of(name), rest),
        _ => return Seen::Other,
    };
    let is_short = |channel: &(usize, usize)| channel.1 - channel.0 <= CHANNEL_BYTES_MAX;
    match (name.as_slice(), rest) {
        (b"pong", [_]) => Seen::Pong,
        (b"message", [BulkString(channel), BulkString(payload)]) if is_short(channel) => {
            Seen::Message(of(channel), of(payload))
        }
        (b"subscribe", [BulkString(channel), Integer(count @ 0..)]) if is_short(channel) => {
            Seen::Subscribed(of(channel), *count as u64)
        }
        (b"unsubscribe", [BulkString(channel), Integer(count @ 0..)]) if is_short(channel) => {
            Seen::Unsubscribed(of(channel), *count as u64)
        }
        (b"unsubscribe", [Null, Integer(count @ 0..)]) => Seen::Unsubscribed(Vec::new(), *count as u64),
        _ => Seen::Other,
    }
}
