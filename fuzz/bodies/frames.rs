//! What a client makes of the bytes it is sent, by other implementations than Tidegate's.

use std::io::Cursor;

use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

/// All messages of a WebSocket that the server writes. Panics at the first byte that is wrong; a message
/// that is not whole at the end is left out.
pub fn websocket(bytes: &[u8]) -> Vec<Message> {
    let config =
        WebSocketConfig::default().max_frame_size(None).max_message_size(None).read_buffer_size(1024);
    let mut socket = WebSocket::from_raw_socket(OneWay(Cursor::new(bytes)), Role::Client, Some(config));
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(message) => messages.push(message),
            Err(tungstenite::Error::Io(_) | tungstenite::Error::ConnectionClosed) => return messages,
            Err(tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return messages,
            Err(error) => panic!("a client refuses what it is sent: {error}"),
        }
    }
}

/// The text of the one message in these bytes.
pub fn one_text(bytes: &[u8]) -> String {
    match websocket(bytes).as_slice() {
        [Message::Text(text)] => {
            // A server's text frame: two, four or ten bytes, then the text and nothing else.
            let header = match text.len() {
                ..126 => 2,
                126..65_536 => 4,
                _ => 10,
            };
            assert_eq!(bytes.len(), header + text.len(), "something stands behind the message");
            text.to_string()
        }
        other => panic!("not one text message: {} messages", other.len()),
    }
}

/// The content of the one chunk in these bytes (RFC 9112, section 7.1).
pub fn one_chunk(bytes: &[u8]) -> &[u8] {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a chunk's first line");
    let size = std::str::from_utf8(&bytes[..line]).expect("a size in ASCII");
    assert!(size.bytes().all(|digit| digit.is_ascii_hexdigit()), "{size}");
    let size = usize::from_str_radix(size, 16).expect("a size");
    let content = &bytes[line + 2..];
    assert!(size > 0, "an empty chunk ends the body");
    assert_eq!(&content[size..], b"\r\n", "a chunk has its size");
    &content[..size]
}

/// Name and data of the events in a stream, read by the rules of the HTML standard ("interpreting an event
/// stream"). Panics where the stream is not UTF-8, has an unknown field, or ends within an event.
pub fn events(stream: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(stream).expect("an event stream is UTF-8");
    let (mut events, mut name, mut data) = (Vec::new(), String::new(), None::<String>);
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['\r', '\n']).expect("the last line has an end");
        let line = &rest[..end];
        rest = &rest[end + if rest[end..].starts_with("\r\n") { 2 } else { 1 }..];
        if line.is_empty() {
            if let Some(data) = data.take() {
                events.push((std::mem::take(&mut name), data));
            }
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => {}
            "event" => name = value.to_owned(),
            "data" => match &mut data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => data = Some(value.to_owned()),
            },
            other => panic!("unknown field {other:?}"),
        }
    }
    assert!(data.is_none() && name.is_empty(), "the stream ends within an event");
    events
}

struct OneWay<'a>(Cursor<&'a [u8]>);

impl std::io::Read for OneWay<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(std::io::ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }
}

impl std::io::Write for OneWay<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
