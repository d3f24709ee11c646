//! Bytes from a sentinel, in pieces: its answers to our greeting and question, and the messages that it pushes. What
//! is read is the same for any split, and agrees with a reader of plain text.
//!
//! Input: a byte that chooses between the two and the splits, then the bytes.

use bytes::BytesMut;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;
use tidegate::config::HostPort;
use tidegate::redis::Options;
use tidegate::redis::connect::{Greeting, Role};
use tidegate::redis::sentinel::{Pushed, take_pushed};

const MASTER: &str = "mymaster";

pub fn run(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else { return };
    let piece = usize::from(choice / 2) + 1;
    if choice % 2 == 0 {
        let whole = greet(bytes, usize::MAX);
        assert_eq!(whole, greet(bytes, piece), "depends on the split");
    } else {
        let whole = listen(bytes, usize::MAX);
        assert_eq!(whole, listen(bytes, piece), "depends on the split");
        judge(bytes, &whole);
    }
}

/// How the greeting ends: not whole, refused or done, and who the master is then.
fn greet(bytes: &[u8], piece: usize) -> (Option<Result<(), String>>, Option<HostPort>) {
    let options = Options::default();
    let (mut out, mut greeting) = Greeting::new(&options, Role::Sentinel);
    greeting.ask_for_master(&mut out, MASTER);
    let mut input = BytesMut::new();
    for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
        input.extend_from_slice(piece);
        match greeting.take(&options, &mut input) {
            Ok(false) => {}
            Ok(true) => return (Some(Ok(())), greeting.into_master()),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.is_empty() && !text.contains(['\n', '\r']), "{text:?}");
                return (Some(Err(text)), None);
            }
        }
    }
    (None, None)
}

/// What is learned from pushed messages, and whether the connection goes on.
#[derive(PartialEq, Eq, Debug, Default)]
struct Heard {
    masters: Vec<HostPort>,
    is_subscribed: bool,
    end: Option<String>,
}

fn listen(bytes: &[u8], piece: usize) -> Heard {
    let mut heard = Heard::default();
    let mut input = BytesMut::new();
    for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
        input.extend_from_slice(piece);
        loop {
            match take_pushed(&mut input, MASTER) {
                Pushed::Master(master) => {
                    heard.is_subscribed = true;
                    heard.masters.push(master);
                }
                Pushed::Other => heard.is_subscribed = true,
                Pushed::Error(_) if heard.is_subscribed => {}
                Pushed::Error(text) => {
                    heard.end = Some(text);
                    return heard;
                }
                Pushed::Nothing => break,
                Pushed::Strange => {
                    heard.end = Some("strange".to_owned());
                    return heard;
                }
            }
        }
    }
    heard
}

/// Frame by frame with the decoder alone; only what it can read in full is compared.
fn judge(mut bytes: &[u8], heard: &Heard) {
    let mut expected = Vec::new();
    // The decoder calls itself for nested arrays: those are left to the other assertions.
    let is_nested = bytes.windows(3).any(|three| three[0] == b'\n' && three[1] == b'*' && three[2] != b'-');
    if is_nested || bytes.starts_with(b"*1\r\n*") {
        return;
    }
    while let Ok(Some((frame, used))) = decode(bytes) {
        bytes = &bytes[used..];
        match &frame {
            OwnedFrame::Error(_) if expected.is_empty() && !heard.is_subscribed => break,
            OwnedFrame::Array(parts) => expected.extend(master(parts)),
            _ => {}
        }
    }
    assert!(expected.starts_with(&heard.masters) || heard.end.is_some(), "{heard:?} instead of {expected:?}");
    if heard.end.is_none() {
        assert_eq!(heard.masters, expected);
    }
}

fn master(parts: &[OwnedFrame]) -> Option<HostPort> {
    let texts: Vec<String> = parts
        .iter()
        .map(|part| match part {
            OwnedFrame::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        })
        .collect();
    let is_text = |part: &OwnedFrame| matches!(part, OwnedFrame::BulkString(_));
    if parts.len() != 3 || texts[0] != "message" || !is_text(&parts[2]) {
        return None;
    }
    let rest = texts[2].strip_prefix(MASTER)?.strip_prefix(' ')?;
    let mut words = rest.splitn(4, ' ').skip(2);
    let (host, port) = (words.next()?, words.next()?);
    Some(HostPort { host: host.to_owned(), port: port.parse().ok()? })
}
