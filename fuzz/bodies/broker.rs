//! The demo's broker, without sockets: bytes from two clients, in pieces, through its reader and its store. Every
//! reply is RESP2, the same for any split; what is published arrives at the other one; bounds hold.
//!
//! Input: a byte for the splits; then pieces, each with a byte for the client and its length.

use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;
use tidegate::demo::broker::{Conversation, OUTBOX_BYTES_MAX};

use super::input::Input;

pub fn run(data: &[u8]) {
    let Some((&splits, rest)) = data.split_first() else { return };
    let whole = converse(rest, usize::MAX);
    assert_eq!(whole, converse(rest, usize::from(splits) + 1), "depends on the split");
}

/// All that each client is sent, and whether it is still connected.
fn converse(bytes: &[u8], piece: usize) -> [(Vec<u8>, bool); 3] {
    let mut input = Input::new(bytes);
    let mut conversation = Conversation::default();
    let clients = [(); 3].map(|()| conversation.connect());
    let [_, _, listener] = clients;
    assert!(conversation.send(listener, b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nz\r\n"));
    let mut out = clients.map(|_| (Vec::new(), true));
    while !input.is_empty() {
        let client = input.below(2);
        let text = input.bytes(255);
        for part in text.chunks(piece.min(text.len().max(1))) {
            out[client].1 = out[client].1 && conversation.send(clients[client], part);
        }
        for (client, (out, _)) in clients.iter().zip(&mut out) {
            let sent = conversation.take_output(*client);
            assert!(sent.len() <= OUTBOX_BYTES_MAX);
            out.extend_from_slice(&sent);
        }
    }
    // Whatever was said, the broker lives and the third client hears what is published.
    let publisher = conversation.connect();
    assert!(conversation.send(publisher, b"PUBLISH z last\r\n"));
    // The others may listen there too.
    let heard = conversation.take_output(publisher);
    assert!([&b":1\r\n"[..], b":2\r\n", b":3\r\n"].contains(&&heard[..]), "{}", heard.escape_ascii());
    out[2].0.extend_from_slice(&conversation.take_output(listener));
    let last = b"*3\r\n$7\r\nmessage\r\n$1\r\nz\r\n$4\r\nlast\r\n";
    assert!(out[2].0.ends_with(last), "{}", out[2].0.escape_ascii());
    for (bytes, _) in &out {
        replies(bytes);
    }
    out
}

/// Checks that these are whole replies.
fn replies(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let shown = bytes.escape_ascii().to_string();
        let (frame, used) = decode(bytes).expect("RESP2").unwrap_or_else(|| panic!("not whole: {shown}"));
        if let OwnedFrame::Error(text) = &frame {
            assert!(!text.contains(['\r', '\n']), "{text:?}");
        }
        bytes = &bytes[used..];
    }
}
