//! Every rule of RFC 6455 that a server must enforce on what it is sent, by section. Each case is fed whole
//! and byte by byte.

use super::tests::frame;
use super::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const BYTES_MAX: usize = 70_000;

/// What comes of a stream: the messages, then how it ends.
fn outcome(stream: &[u8], piece_bytes: usize) -> (Vec<String>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let mut seen = Vec::new();
    for piece in stream.to_vec().chunks_mut(piece_bytes) {
        let fed = decoder.feed(piece, BYTES_MAX, &mut |incoming| {
            let mut text = format!("{incoming:?}");
            text.truncate(60);
            seen.push(text);
            ControlFlow::Continue(())
        });
        if let Err(error) = fed {
            return (seen, Some(error));
        }
    }
    (seen, None)
}

fn check(section: &str, rule: &str, stream: &[u8], messages: &[&str], error: Option<ProtocolError>) {
    for piece_bytes in [usize::MAX, 1, 2, 7] {
        let (seen, ended) = outcome(stream, piece_bytes);
        assert_eq!(
            (seen, ended),
            (messages.iter().map(|m| (*m).to_owned()).collect(), error),
            "{section}: {rule}"
        );
    }
}

fn text(payload: &[u8]) -> Vec<u8> {
    frame(0x81, payload, MASK)
}

fn close(payload: &[u8]) -> Vec<u8> {
    frame(0x88, payload, MASK)
}

#[test]
fn section_5_1_a_client_must_mask() {
    check("5.1", "text", b"\x81\x05Hello", &[], Some(ProtocolError::NotMasked));
    for first in [0x82, 0x01, 0x02, 0x88, 0x89, 0x8a] {
        check("5.1", "every kind of frame", &[first, 0], &[], Some(ProtocolError::NotMasked));
    }
    check(
        "5.1",
        "after a message that was masked",
        &[text(b"a"), b"\x81\x01b".to_vec()].concat(),
        &["Text(\"a\")"],
        Some(ProtocolError::NotMasked),
    );
    check(
        "5.1",
        "a ping between fragments",
        &[frame(0x01, b"a", MASK), b"\x89\x00".to_vec()].concat(),
        &[],
        Some(ProtocolError::NotMasked),
    );
    check(
        "5.1",
        "continuation",
        &[frame(0x01, b"a", MASK), b"\x80\x00".to_vec()].concat(),
        &[],
        Some(ProtocolError::NotMasked),
    );
}

#[test]
fn section_5_2_reserved_bits_and_opcodes() {
    for bit in [0x40, 0x20, 0x10, 0x70] {
        for first in [0x81, 0x82, 0x01, 0x02, 0x88, 0x89, 0x8a] {
            check(
                "5.2",
                "reserved bits",
                &frame(first | bit, b"", MASK),
                &[],
                Some(ProtocolError::ReservedBits),
            );
        }
        for first in [0x80, 0x00, 0x89] {
            let within = [frame(0x01, b"a", MASK), frame(first | bit, b"b", MASK)].concat();
            check("5.2", "reserved bits within a message", &within, &[], Some(ProtocolError::ReservedBits));
        }
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        for fin in [0x80, 0x00] {
            check(
                "5.2",
                "reserved opcode",
                &frame(fin | opcode, b"", MASK),
                &[],
                Some(ProtocolError::ReservedOpcode),
            );
            let within = [frame(0x01, b"a", MASK), frame(fin | opcode, b"", MASK)].concat();
            check(
                "5.2",
                "reserved opcode within a message",
                &within,
                &[],
                Some(ProtocolError::ReservedOpcode),
            );
        }
    }
}

#[test]
fn section_5_2_lengths_are_in_their_shortest_form() {
    for len in [0u16, 1, 125] {
        let stream = [&[0x81, 0xfe][..], &len.to_be_bytes(), &MASK].concat();
        check("5.2", "16 bits for less than 126", &stream, &[], Some(ProtocolError::LengthNotMinimal));
    }
    for len in [0u64, 125, 126, 65_535] {
        let stream = [&[0x81, 0xff][..], &len.to_be_bytes(), &MASK].concat();
        check("5.2", "64 bits for less than 65536", &stream, &[], Some(ProtocolError::LengthNotMinimal));
    }
    for first in [0x82, 0x01, 0x02] {
        let stream = [&[first, 0xfe, 0, 125][..], &MASK].concat();
        check("5.2", "in every data frame", &stream, &[], Some(ProtocolError::LengthNotMinimal));
    }
    let stream = [&frame(0x01, b"a", MASK)[..], &[0x80, 0xfe, 0, 1], &MASK].concat();
    check("5.2", "in a continuation", &stream, &[], Some(ProtocolError::LengthNotMinimal));
    for len in [1u64 << 63, u64::MAX] {
        let stream = [&[0x81, 0xff][..], &len.to_be_bytes(), &MASK].concat();
        check("5.2", "highest bit", &stream, &[], Some(ProtocolError::LengthHighBit));
    }
    for len in [125, 126, 127, 65_535, 65_536] {
        let expected = format!("{:?}", Incoming::Text(&"x".repeat(len)))[..60].to_owned();
        check("5.2", "every length form", &text(&b"x".repeat(len)), &[&expected], None);
    }
}

#[test]
fn section_5_3_the_mask_is_removed() {
    let stream = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    check("5.3", "the example of section 5.7", &stream, &["Text(\"Hello\")"], None);
    check("5.3", "a mask of zeros", &frame(0x81, b"Hello", [0; 4]), &["Text(\"Hello\")"], None);
}

#[test]
fn section_5_4_fragments() {
    let fragments = [frame(0x01, b"a", MASK), frame(0x00, b"", MASK), frame(0x80, b"b", [0; 4])].concat();
    check("5.4", "in order", &fragments, &["Text(\"ab\")"], None);
    let empty = [frame(0x01, b"", MASK), frame(0x80, b"", MASK)].concat();
    check("5.4", "of no bytes", &empty, &["Text(\"\")"], None);
    let binary = [frame(0x02, b"\xff", MASK), frame(0x80, b"\xff", MASK)].concat();
    check("5.4", "a binary message", &binary, &["Binary"], None);

    let between =
        [frame(0x01, b"a", MASK), frame(0x89, b"p", MASK), frame(0x8a, b"q", MASK), frame(0x80, b"b", MASK)];
    check(
        "5.4",
        "control frames in between",
        &between.concat(),
        &["Ping([112])", "Pong([113])", "Text(\"ab\")"],
        None,
    );
    let binary = [frame(0x02, b"\xff", MASK), frame(0x89, b"", MASK), frame(0x80, b"", MASK)].concat();
    check("5.4", "a ping within a binary message", &binary, &["Ping([])", "Binary"], None);
    let empty =
        [frame(0x01, b"a", MASK), frame(0x00, b"", MASK).repeat(500), frame(0x80, b"", MASK)].concat();
    check("5.4", "any number of empty fragments", &empty, &["Text(\"a\")"], None);
    let two = [frame(0x01, b"a", MASK), frame(0x80, b"b", MASK)].concat().repeat(2);
    check("5.4", "one fragmented message after another", &two, &["Text(\"ab\")", "Text(\"ab\")"], None);
    let closed = [frame(0x01, b"a", MASK), close(b""), frame(0x80, b"b", MASK)].concat();
    check("5.4", "a close in between", &closed, &["Close(None)"], None);

    for first in [0x80, 0x00] {
        check(
            "5.4",
            "nothing to continue",
            &frame(first, b"a", MASK),
            &[],
            Some(ProtocolError::NothingToContinue),
        );
        let after = [text(b"a"), frame(first, b"b", MASK)].concat();
        check(
            "5.4",
            "continued after its end",
            &after,
            &["Text(\"a\")"],
            Some(ProtocolError::NothingToContinue),
        );
    }
    for first in [0x81, 0x82, 0x01, 0x02] {
        let stream = [frame(0x01, b"a", MASK), frame(first, b"b", MASK)].concat();
        check("5.4", "interleaved messages", &stream, &[], Some(ProtocolError::MessageUnfinished));
    }
}

#[test]
fn section_5_5_control_frames() {
    for first in [0x08, 0x09, 0x0a] {
        check("5.5", "fragmented", &frame(first, b"", MASK), &[], Some(ProtocolError::ControlFragmented));
        let within = [frame(0x01, b"a", MASK), frame(first, b"", MASK)].concat();
        check("5.5", "fragmented within a message", &within, &[], Some(ProtocolError::ControlFragmented));
    }
    for first in [0x88, 0x89, 0x8a] {
        check(
            "5.5",
            "126 bytes",
            &frame(first, &[b'a'; 126], MASK),
            &[],
            Some(ProtocolError::ControlTooLong),
        );
        check(
            "5.5",
            "70,000 bytes",
            &frame(first, &[b'a'; 70_000], MASK),
            &[],
            Some(ProtocolError::ControlTooLong),
        );
    }
    for length in [&[0xfe, 0, 1][..], &[0xff, 0, 0, 0, 0, 0, 0, 0, 1]] {
        let stream = [&[0x89][..], length, &MASK, b"a"].concat();
        check("5.5", "a short length in a long form", &stream, &[], Some(ProtocolError::ControlTooLong));
    }
    let ping = format!("{:?}", Incoming::Ping(&[b'a'; 125]))[..60].to_owned();
    check("5.5.2", "125 bytes", &frame(0x89, &[b'a'; 125], MASK), &[&ping], None);
    check("5.5.3", "an unasked-for pong", &frame(0x8a, b"a", MASK), &["Pong([97])"], None);
}

#[test]
fn section_5_5_1_close_frames() {
    check("5.5.1", "without a code", &close(b""), &["Close(None)"], None);
    check("5.5.1", "half a code", &close(b"\x03"), &[], Some(ProtocolError::CloseTooShort));
    check("5.5.1", "with a code", &close(b"\x03\xe8"), &["Close(Some((1000, \"\")))"], None);
    check("5.5.1", "with a reason", &close(b"\x03\xe9bye"), &["Close(Some((1001, \"bye\")))"], None);
    check("5.5.1", "a reason that is not UTF-8", &close(b"\x03\xe8\xff"), &[], Some(ProtocolError::NotUtf8));
    check(
        "5.5.1",
        "a reason cut in a character",
        &close(b"\x03\xe8\xe2\x82"),
        &[],
        Some(ProtocolError::NotUtf8),
    );
    let longest = [&b"\x03\xe8"[..], &[b'a'; 123]].concat();
    let expected = format!("{:?}", Incoming::Close(Some((1000, &"a".repeat(123)))))[..60].to_owned();
    check("5.5.1", "a reason of 123 bytes", &close(&longest), &[&expected], None);
    let longer = [&longest[..], b"a"].concat();
    check("5.5.1", "a reason of 124 bytes", &close(&longer), &[], Some(ProtocolError::ControlTooLong));
    let pinged = [close(b""), frame(0x89, b"late", MASK), close(b"\x03\xe8")].concat();
    check("5.5.1", "a ping or another close after it", &pinged, &["Close(None)"], None);
    let after = [close(b"\x03\xe8"), text(b"late"), frame(0xff, b"", MASK)].concat();
    check("5.5.1", "what comes after is not looked at", &after, &["Close(Some((1000, \"\")))"], None);
}

#[test]
fn section_7_4_close_codes() {
    let good =
        [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999];
    let bad = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535];
    for code in good {
        check(
            "7.4",
            "allowed",
            &close(&u16::to_be_bytes(code)),
            &[&format!("Close(Some(({code}, \"\")))")],
            None,
        );
    }
    for code in bad {
        check("7.4", "not allowed", &close(&u16::to_be_bytes(code)), &[], Some(ProtocolError::CloseCode));
    }
}

#[test]
fn section_7_4_1_messages_that_are_too_long() {
    check(
        "7.4.1",
        "one frame",
        &frame(0x81, &[b'a'; BYTES_MAX + 1], MASK),
        &[],
        Some(ProtocolError::TooLong),
    );
    let header = [&[0x81, 0xff][..], &(u64::MAX / 2).to_be_bytes(), &MASK].concat();
    check("7.4.1", "by its header", &header, &[], Some(ProtocolError::TooLong));
    let fragments = [frame(0x01, &[b'a'; BYTES_MAX], MASK), frame(0x80, b"b", MASK)].concat();
    check("7.4.1", "together", &fragments, &[], Some(ProtocolError::TooLong));
    let fragments = [frame(0x02, &[b'a'; BYTES_MAX - 1], MASK), frame(0x80, b"b", MASK)].concat();
    check("7.4.1", "just as long as allowed", &fragments, &["Binary"], None);
}

#[test]
fn section_8_1_text_is_utf8() {
    let bad: &[&[u8]] = &[
        b"\xff",
        b"\x80",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"a\xe2\x82",
        b"\xf0\x9d\x84",
        b"\xe2\x82a",
    ];
    for payload in bad {
        check("8.1", "whole", &text(payload), &[], Some(ProtocolError::NotUtf8));
        let fragments = [frame(0x01, payload, MASK), frame(0x80, b"", MASK)].concat();
        check("8.1", "in fragments", &fragments, &[], Some(ProtocolError::NotUtf8));
    }
    let treble_clef =
        [frame(0x01, b"\xf0\x9d", MASK), frame(0x00, b"\x84", MASK), frame(0x80, b"\x9e", MASK)].concat();
    check("8.1", "a character across fragments", &treble_clef, &["Text(\"𝄞\")"], None);
    let between =
        [frame(0x01, b"\xe2", MASK), frame(0x89, b"\x82", MASK), frame(0x80, b"\x82\xac", MASK)].concat();
    check("8.1", "a ping within a character", &between, &["Ping([130])", "Text(\"€\")"], None);
    // Found at the byte that shows it, not at the end of a message that never comes.
    let unfinished = [&[0x81, 0x80 | 100][..], &[0; 4], b"ok\xff"].concat();
    check("8.1", "within a frame that is not whole", &unfinished, &[], Some(ProtocolError::NotUtf8));
    let unfinished = [frame(0x01, b"ok", MASK), frame(0x00, b"\xc0", MASK)].concat();
    check("8.1", "within a message that is not whole", &unfinished, &[], Some(ProtocolError::NotUtf8));
    check("8.1", "a noncharacter is text", &text("\u{ffff}".as_bytes()), &["Text(\"\\u{ffff}\")"], None);
    check("8.1", "a binary message is not text", &frame(0x82, b"\xff", MASK), &["Binary"], None);
}

#[test]
fn section_7_4_1_the_codes_to_close_with() {
    assert_eq!(ProtocolError::NotUtf8.code(), 1007);
    assert_eq!(ProtocolError::TooLong.code(), 1009);
    for error in [ProtocolError::NotMasked, ProtocolError::ReservedBits, ProtocolError::CloseCode] {
        assert_eq!(error.code(), 1002);
    }
}
