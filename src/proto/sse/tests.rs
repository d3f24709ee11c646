use proptest::prelude::*;

use super::*;

type Bytes = Vec<u8>;

/// A parser by the specification: the events' names and data, and the comments.
fn parse(stream: &[u8]) -> (Vec<(Bytes, Bytes)>, Vec<Bytes>) {
    let mut events = Vec::new();
    let mut comments = Vec::new();
    let (mut name, mut data) = (Vec::new(), Vec::new());
    let mut rest = stream;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).expect("an unfinished line");
        let line = &rest[..end];
        rest = &rest[end + if rest[end..].starts_with(b"\r\n") { 2 } else { 1 }..];
        if line.is_empty() {
            if data.pop().is_some() {
                events.push((std::mem::take(&mut name), std::mem::take(&mut data)));
            }
        } else if let Some(comment) = line.strip_prefix(b":") {
            comments.push(comment.to_vec());
        } else if let Some(value) = line.strip_prefix(b"event: ") {
            name = value.to_vec();
        } else if let Some(value) = line.strip_prefix(b"data: ") {
            data.extend_from_slice(value);
            data.push(b'\n');
        } else {
            panic!("an unknown field in {:?}", line.escape_ascii().to_string());
        }
    }
    (events, comments)
}

fn rendered(name: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    event(&mut out, name, payload);
    out
}

#[test]
fn the_bytes_that_clients_know() {
    assert_eq!(GREETING, b":)\n");
    assert_eq!(HEARTBEAT, b":thump\n\n");
    assert_eq!(rendered(b"update", b"{\"id\":\"1\"}"), b"event: update\ndata: {\"id\":\"1\"}\n\n");
    assert_eq!(rendered(b"delete", b""), b"event: delete\ndata: \n\n");
}

#[test]
fn each_line_has_a_data_line() {
    assert_eq!(rendered(b"x", b"a\nb\r\nc\rd"), b"event: x\ndata: a\ndata: b\ndata: c\ndata: d\n\n");
    assert_eq!(rendered(b"x", b"\n\r\n\n"), b"event: x\ndata: \ndata: \ndata: \ndata: \n\n");
}

#[test]
fn a_name_cannot_become_a_field() {
    assert_eq!(rendered(b"a\ndata: b\r\n\r\n", b"c"), b"event: a data: b    \ndata: c\n\n");
}

#[test]
fn a_reason_is_a_comment() {
    let mut out = Vec::new();
    comment(&mut out, "slow\nclient");
    assert_eq!(out, b":slow client\n\n");
}

#[test]
fn chunks() {
    for (bytes, head) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (255, "ff\r\n"), (3400, "d48\r\n")] {
        assert_eq!(*chunk_head(bytes), *head.as_bytes());
    }
    assert_eq!(chunk_head(usize::MAX).len(), ChunkHead::BYTES_MAX);
    let mut out = Vec::new();
    chunk(&mut out, GREETING);
    chunk(&mut out, b"");
    out.extend_from_slice(LAST_CHUNK);
    assert_eq!(out, b"3\r\n:)\n\r\n0\r\n\r\n");
}

proptest! {
    #[test]
    fn any_name_and_payload_are_read_back(
        name in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r')], 1..20),
        payload in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r')], 0..60),
    ) {
        let mut stream = GREETING.to_vec();
        stream.extend(rendered(&name, &payload));
        stream.extend_from_slice(HEARTBEAT);
        let one_line = |text: &[u8]| String::from_utf8_lossy(text).replace(['\r', '\n'], " ").into_bytes();
        let (events, comments) = parse(&stream);
        prop_assert_eq!(events.len(), 1);
        prop_assert_eq!(String::from_utf8_lossy(&events[0].0).into_owned().into_bytes(), one_line(&name));
        // Line ends are unified, as every client's parser does.
        let lines = String::from_utf8_lossy(&payload).replace("\r\n", "\n").replace('\r', "\n");
        prop_assert_eq!(String::from_utf8_lossy(&events[0].1).into_owned(), lines);
        prop_assert_eq!(comments, vec![b")".to_vec(), b"thump".to_vec()]);
    }

    #[test]
    fn a_chunk_s_head_is_its_length(bytes in 1..usize::MAX) {
        let expected = format!("{bytes:x}\r\n");
        prop_assert_eq!(&*chunk_head(bytes), expected.as_bytes());
    }
}
