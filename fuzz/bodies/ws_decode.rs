//! The WebSocket decoder on arbitrary bytes: the same messages and verdict for any split, and the same as
//! tungstenite's, apart from the rules that tungstenite does not enforce.
//!
//! Input: 8 bytes that choose the splits, then the stream.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use tungstenite::protocol::{Role, WebSocket, WebSocketConfig};
use tungstenite::{Error, Message};

use tidegate::proto::ws::{Decoder, Fed, Incoming, ProtocolError};

/// Small, so that it is met.
pub const MESSAGE_BYTES_MAX: usize = 300;

/// A message, owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    Text(String),
    Binary,
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

pub fn run(data: &[u8]) {
    let (splits, stream) = data.split_at(data.len().min(8));
    let (seen, error) = decode(stream, splits);
    assert_eq!((&seen, error), (&decode(stream, &[]).0, decode(stream, &[]).1), "depends on the split");
    compare(stream, seen, error);
}

/// Decodes `stream` in pieces of the sizes that `splits` gives in turn; in one piece if there are none. The
/// sink breaks off after every third message, and the rest is fed again.
pub fn decode(stream: &[u8], splits: &[u8]) -> (Vec<Seen>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    let mut input = stream.to_vec();
    let mut rest = input.as_mut_slice();
    let mut sizes = splits.iter().cycle().map(|size| usize::from(*size) % 64 + 1);
    while !rest.is_empty() {
        let size = sizes.next().unwrap_or(usize::MAX).min(rest.len());
        let count = seen.len();
        let fed = decoder.feed(&mut rest[..size], MESSAGE_BYTES_MAX, &mut |incoming| {
            seen.push(own(incoming));
            if seen.len() % 3 == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match fed {
            Ok(Fed { used, frames }) => {
                assert!(frames as usize <= size, "frames without bytes");
                assert!(used == size || (used > 0 && seen.len() > count), "no progress");
                rest = &mut rest[used..];
            }
            Err(error) => return (seen, Some(error)),
        }
        assert!(decoder.held_bytes() <= 512 + 2 * MESSAGE_BYTES_MAX);
        assert_eq!(decoder.is_idle(), decoder.held_bytes() == 0);
    }
    (seen, None)
}

fn own(incoming: Incoming<'_>) -> Seen {
    match incoming {
        Incoming::Text(text) => Seen::Text(text.to_owned()),
        Incoming::Binary => Seen::Binary,
        Incoming::Ping(payload) => Seen::Ping(payload.to_vec()),
        Incoming::Pong(payload) => Seen::Pong(payload.to_vec()),
        Incoming::Close(close) => Seen::Close(close.map(|(code, reason)| (code, reason.to_owned()))),
    }
}

/// What tungstenite makes of a stream.
enum Verdict {
    /// It waits for more, or the client has closed.
    Fine,
    Failed,
}

fn compare(stream: &[u8], mut seen: Vec<Seen>, error: Option<ProtocolError>) {
    let (mut judged, verdict) = judge(stream);
    // It answers a code that must not be sent with a close of its own making. It does not know 1014.
    let own_close = Seen::Close(Some((1002, "Protocol violation".to_owned())));
    let closes_with_1014 = matches!(seen.last(), Some(Seen::Close(Some((1014, _)))));
    if error == Some(ProtocolError::CloseCode) || closes_with_1014 {
        if closes_with_1014 {
            seen.pop();
        }
        match verdict {
            Verdict::Fine => assert_eq!(judged.pop(), Some(own_close)),
            // The reason is not UTF-8 either.
            Verdict::Failed => assert!(!closes_with_1014),
        }
        assert_eq!(seen, judged);
        return;
    }
    match error {
        None => {
            assert_eq!(seen, judged);
            assert!(matches!(verdict, Verdict::Fine), "what tungstenite refuses was taken");
        }
        // It takes longer forms of lengths, which a control frame must not have either.
        Some(ProtocolError::LengthNotMinimal | ProtocolError::ControlTooLong) => {
            assert_eq!(seen, judged[..seen.len()]);
            return;
        }
        // It may still wait for the end of the frame whose beginning is wrong.
        Some(_) => assert_eq!(seen, judged),
    }
    // When it has the whole frame, it must find the fault too.
    if let Some(error) = error {
        let mut longer = stream.to_vec();
        longer.resize(stream.len() + 2 * MESSAGE_BYTES_MAX + 16, 0);
        assert!(matches!(judge(&longer).1, Verdict::Failed), "tungstenite does not find {error:?}");
    }
}

fn judge(stream: &[u8]) -> (Vec<Seen>, Verdict) {
    let config = WebSocketConfig::default()
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .read_buffer_size(4096);
    let mut socket = WebSocket::from_raw_socket(OneWay(stream), Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => seen.push(Seen::Text(text.to_string())),
            Ok(Message::Binary(_)) => seen.push(Seen::Binary),
            Ok(Message::Ping(payload)) => seen.push(Seen::Ping(payload.to_vec())),
            Ok(Message::Pong(payload)) => seen.push(Seen::Pong(payload.to_vec())),
            Ok(Message::Close(close)) => {
                seen.push(Seen::Close(close.map(|frame| (frame.code.into(), frame.reason.to_string()))));
                return (seen, Verdict::Fine);
            }
            Ok(Message::Frame(_)) => unreachable!("reading gives whole messages"),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (seen, Verdict::Fine);
            }
            Err(_) => return (seen, Verdict::Failed),
        }
    }
}

/// Gives the stream and then nothing; takes and forgets what is written.
struct OneWay<'a>(&'a [u8]);

impl Read for OneWay<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.0.read(into)
    }
}

impl Write for OneWay<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
