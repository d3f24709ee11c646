use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[path = "../../../../fuzz/bodies/ws_decode.rs"]
mod body;

use body::{MESSAGE_BYTES_MAX, Seen, decode};

/// A masked frame with that first byte, its length in the shortest form.
pub(super) fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        len @ ..126 => bytes.push(0x80 | len as u8),
        len @ ..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Feeds all at once and counts the messages; for looking at the decoder afterwards.
fn feed(decoder: &mut Decoder, bytes: &[u8], bytes_max: usize) -> Result<usize, ProtocolError> {
    let mut messages = 0;
    decoder.feed(&mut bytes.to_vec(), bytes_max, &mut |_| {
        messages += 1;
        ControlFlow::Continue(())
    })?;
    Ok(messages)
}

#[test]
fn whole_messages_leave_nothing_behind() {
    let mut decoder = Decoder::default();
    let bytes = [
        frame(0x81, b"one", [1, 2, 3, 4]),
        frame(0x8a, b"", [5; 4]),
        frame(0x82, b"two", [6; 4]),
        frame(0x81, b"", [0; 4]),
    ];
    assert_eq!(feed(&mut decoder, &bytes.concat(), 100), Ok(4));
    assert!(decoder.is_idle());
    assert_eq!(decoder.held_bytes(), 0);
}

#[test]
fn what_is_unfinished_is_held_until_it_is_whole() {
    let mut decoder = Decoder::default();
    let bytes =
        [frame(0x01, b"hello ", [1, 2, 3, 4]), frame(0x89, b"?", [9; 4]), frame(0x80, b"world", [5; 4])]
            .concat();
    for (place, byte) in bytes.iter().enumerate() {
        let last = place + 1 == bytes.len();
        let ping_end = 6 + 6 + 6 + 1;
        let messages = usize::from(last || place + 1 == ping_end);
        assert_eq!(feed(&mut decoder, &[*byte], 100), Ok(messages), "byte {place}");
        assert_eq!(decoder.is_idle(), last, "byte {place}");
    }
    assert_eq!(decoder.held_bytes(), 0);
}

#[test]
fn a_length_that_lies_allocates_by_what_came() {
    let mut decoder = Decoder::default();
    let whole = frame(0x81, &[b'x'; 60_000], [1, 2, 3, 4]);
    assert_eq!(feed(&mut decoder, &whole[..8 + 100], 64 << 10), Ok(0));
    assert!(decoder.held_bytes() < 1000, "{}", decoder.held_bytes());
    assert_eq!(feed(&mut decoder, &whole[8 + 100..], 64 << 10), Ok(1));
    assert!(decoder.is_idle());
}

#[test]
fn binary_messages_are_counted_but_not_held() {
    let mut decoder = Decoder::default();
    assert_eq!(feed(&mut decoder, &frame(0x02, &[0xff; 50_000], [1; 4]), 64 << 10), Ok(0));
    assert!(decoder.held_bytes() < 1000);
    assert_eq!(feed(&mut decoder, &frame(0x80, &[0; 20_000], [1; 4]), 64 << 10), Err(ProtocolError::TooLong));
}

#[test]
fn a_sink_that_breaks_off_is_fed_the_rest_later() {
    let mut decoder = Decoder::default();
    let mut bytes = [frame(0x81, b"one", [1; 4]), frame(0x81, b"two", [2; 4])].concat();
    let Fed { used, frames } = decoder.feed(&mut bytes, 100, &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!((used, frames), (bytes.len() / 2, 1));
    let mut seen = Vec::new();
    let fed = decoder.feed(&mut bytes[used..], 100, &mut |incoming| {
        seen.push(format!("{incoming:?}"));
        ControlFlow::Continue(())
    });
    assert_eq!((fed, seen), (Ok(Fed { used: 9, frames: 1 }), vec!["Text(\"two\")".to_owned()]));
}

#[test]
fn nothing_comes_after_a_close_or_an_error() {
    let close = frame(0x88, &1001u16.to_be_bytes(), [1; 4]);
    let mut decoder = Decoder::default();
    assert_eq!(feed(&mut decoder, &[close, frame(0x81, b"late", [1; 4])].concat(), 100), Ok(1));
    assert_eq!(feed(&mut decoder, &frame(0x81, b"late", [1; 4]), 100), Ok(0));

    let mut decoder = Decoder::default();
    assert_eq!(feed(&mut decoder, b"\xff\xff", 100), Err(ProtocolError::ReservedBits));
    assert_eq!(feed(&mut decoder, &frame(0x81, b"late", [1; 4]), 100), Ok(0));
}

/// A legal message: its kind, the places where it is cut, and its control frames in between.
#[derive(Clone, Debug)]
struct Sent {
    is_text: bool,
    text: String,
    cuts: Vec<prop::sample::Index>,
    pings: Vec<Vec<u8>>,
    mask: [u8; 4],
}

fn sent() -> impl Strategy<Value = Sent> {
    let text = prop_oneof![3 => "\\PC{0,40}", 1 => "[a-z€𝄞]{60,75}"];
    let pings = vec(vec(any::<u8>(), 0..126), 0..2);
    (any::<bool>(), text, vec(any::<prop::sample::Index>(), 0..4), pings, any::<[u8; 4]>())
        .prop_map(|(is_text, text, cuts, pings, mask)| Sent { is_text, text, cuts, pings, mask })
}

fn write(sent: &[Sent]) -> (Vec<u8>, Vec<Seen>) {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for Sent { is_text, text, cuts, pings, mask } in sent {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.push(text.len());
        cuts.sort();
        let (mut from, mut opcode) = (0, if *is_text { 0x01 } else { 0x02 });
        for (k, cut) in cuts.iter().enumerate() {
            let is_final = k + 1 == cuts.len();
            let first = opcode | if is_final { 0x80 } else { 0 };
            bytes.extend(frame(first, &text.as_bytes()[from..*cut], *mask));
            if !is_final {
                for ping in pings {
                    bytes.extend(frame(0x89, ping, *mask));
                    expected.push(Seen::Ping(ping.clone()));
                }
            }
            (from, opcode) = (*cut, 0x00);
        }
        expected.push(if *is_text { Seen::Text(text.clone()) } else { Seen::Binary });
    }
    (bytes, expected)
}

proptest! {
    #[test]
    fn any_split_of_any_messages(sent in vec(sent(), 0..6), splits in any::<[u8; 8]>()) {
        let (bytes, expected) = write(&sent);
        prop_assert_eq!(decode(&bytes, &splits), (expected, None));
        body::run(&[&splits[..], &bytes].concat());
    }

    #[test]
    fn damaged_streams_are_judged_alike(
        sent in vec(sent(), 1..4),
        splits in any::<[u8; 8]>(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (mut bytes, _) = write(&sent);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        body::run(&[&splits[..], &bytes].concat());
    }

    #[test]
    fn any_frames_are_judged_alike(
        splits in any::<[u8; 8]>(),
        frames in vec((
            prop::sample::select(vec![0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8a, 0x08, 0x83, 0xc1]),
            prop_oneof![vec(any::<u8>(), 0..10), vec(Just(b'a'), 100..MESSAGE_BYTES_MAX + 20), "\\PC{0,9}".prop_map(Vec::from)],
            any::<[u8; 4]>(),
        ), 0..8),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|(first, payload, mask)| frame(*first, payload, *mask)).collect();
        body::run(&[&splits[..], &bytes].concat());
    }

    #[test]
    fn every_close_code_is_judged(code in any::<u16>(), reason in "\\PC{0,30}", splits in any::<[u8; 8]>()) {
        let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        body::run(&[&splits[..], &frame(0x88, &payload, [1, 2, 3, 4])].concat());
    }
}
