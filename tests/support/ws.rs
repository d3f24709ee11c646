//! WebSocket clients: tungstenite for ordinary use, and frames by hand for what must be exact.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::CloseFrame;
use tungstenite::{Error, Message, WebSocket};

use super::http::{Connection, Head};
use super::machine::PATIENCE;
use super::redis::Redis;
use super::server::Server;

/// The key and its answer from RFC 6455, section 1.3.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A socket whose reads and writes go on after a signal. The kernel does not see to that where there is a
/// timeout, and whoever stops and continues the tests would end them.
pub struct Steady(pub TcpStream);

fn steady<T>(mut attempt: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Read for Steady {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        steady(|| self.0.read(buffer))
    }
}

impl Write for Steady {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        steady(|| self.0.write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// A WebSocket opened by tungstenite.
pub struct Ws {
    pub socket: WebSocket<Steady>,
    pub response: tungstenite::handshake::client::Response,
}

impl Ws {
    /// Opens `path` with the token as subprotocol, as browsers do.
    #[track_caller]
    pub fn open(server: &Server, path: &str, token: &str) -> Ws {
        Ws::try_open(server.address(), path, &[("Sec-WebSocket-Protocol", token)]).expect("a WebSocket")
    }

    /// Opens `path` with these headers, or gives the refusal's status and `X-Error-Message`.
    pub fn try_open(server: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Ws, (u16, String)> {
        let stream = TcpStream::connect_timeout(&server, PATIENCE).expect("the server accepts");
        Ws::try_over(stream, path, headers)
    }

    pub fn try_over(stream: TcpStream, path: &str, headers: &[(&str, &str)]) -> Result<Ws, (u16, String)> {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut request = format!("ws://streaming.example{path}").into_client_request().expect("a request");
        for (name, value) in headers {
            let name: tungstenite::http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        match tungstenite::client(request, Steady(stream)) {
            Ok((socket, response)) => Ok(Ws { socket, response }),
            Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => {
                let text = response.headers().get("x-error-message");
                let text = text.and_then(|value| value.to_str().ok()).unwrap_or_default();
                Err((response.status().as_u16(), text.to_owned()))
            }
            Err(error) => panic!("no answer to a WebSocket handshake: {error}"),
        }
    }

    pub fn patience(&self, time: Duration) {
        self.socket.get_ref().0.set_read_timeout(Some(time)).unwrap();
    }

    #[track_caller]
    pub fn send(&mut self, text: &str) {
        self.socket.send(Message::text(text)).expect("a message to the server");
    }

    #[track_caller]
    pub fn send_json(&mut self, value: &Value) {
        self.send(&value.to_string());
    }

    /// The next text message; pings are answered on the way.
    #[track_caller]
    pub fn next(&mut self) -> String {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return text.as_str().to_owned(),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("a text message, not {other:?}"),
            }
        }
    }

    /// The next text message, or the code that the server closed with, if any.
    #[track_caller]
    pub fn try_next(&mut self) -> Result<String, Option<u16>> {
        let mut code = None;
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return Ok(text.as_str().to_owned()),
                Ok(Message::Close(close)) => code = close.map(|close| close.code.into()),
                Ok(_) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_)) => return Err(code),
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Err(code);
                }
                Err(error) => panic!("{error} instead of a message or a close"),
            }
        }
    }

    #[track_caller]
    pub fn next_json(&mut self) -> Value {
        let text = self.next();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("JSON, not {text:?}"))
    }

    /// Asserts the next message's exact bytes.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        assert_eq!(self.next(), text);
    }

    #[track_caller]
    pub fn expect_event(&mut self, stream: &Value, event: &str, payload: &str) {
        self.expect(&frame(stream, event, payload));
    }

    #[track_caller]
    pub fn expect_error(&mut self, status: u16, text: &str) {
        self.expect(&format!("{{\"error\":\"{text}\",\"status\":{status}}}"));
    }

    /// Reads until the server closes, gives the close frame if there was one with a code, and closes our half.
    #[track_caller]
    pub fn until_close(&mut self) -> Option<CloseFrame> {
        let end = Instant::now() + PATIENCE;
        let mut frame = None;
        loop {
            match self.socket.read() {
                Ok(Message::Close(close)) => frame = close,
                Ok(_) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_)) => break,
                Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{error} instead of a close"),
            }
            assert!(Instant::now() < end, "messages for ever instead of a close");
        }
        let _ = self.socket.get_ref().0.shutdown(std::net::Shutdown::Both);
        frame
    }

    /// Subscribes by message, and demands one message of each channel, each published once.
    ///
    /// From when on messages are owed is known without the server's word: from Redis's report of the subscriber. A
    /// channel that was subscribed before says nothing new; there the answer to a later request does, since requests
    /// take effect in the order they were sent.
    #[track_caller]
    pub fn subscribe(&mut self, redis: &Redis, request: Value, channels: &[impl AsRef<str>]) {
        let before = redis.channels();
        let all_new = channels.iter().all(|channel| !before.iter().any(|known| known == channel.as_ref()));
        let mut message = json!({"type": "subscribe"});
        message.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
        self.send_json(&message);
        redis.until_subscribed(channels);
        if !all_new {
            self.until_answered();
        }
        let stream = match &request["stream"] {
            Value::Array(names) => names[0].clone(),
            name => name.clone(),
        };
        let parameter = ["tag", "list"].into_iter().find_map(|name| request.get(name));
        let label: Vec<Value> = std::iter::once(stream).chain(parameter.cloned()).collect();
        for channel in channels {
            let probe = self.publish_probe(redis, channel.as_ref());
            let wanted = frame(&json!(label), "probe", &probe);
            // The client's older subscriptions of the channel get it first.
            while self.next_probe(&probe) != wanted {}
        }
    }

    /// Publishes one message on each channel and demands it.
    #[track_caller]
    pub fn probe(&mut self, redis: &Redis, channels: &[impl AsRef<str>]) {
        for channel in channels {
            let probe = self.publish_probe(redis, channel.as_ref());
            self.next_probe(&probe);
        }
    }

    /// Waits for the answer to a request that is refused, and so for the end of all that were sent before.
    #[track_caller]
    pub fn until_answered(&mut self) {
        self.send(r#"{"type":"subscribe","stream":"nonsense"}"#);
        self.expect_error(400, "Unknown stream type");
    }

    #[track_caller]
    fn publish_probe(&self, redis: &Redis, channel: &str) -> String {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let probe = format!("probe {}", LAST.fetch_add(1, Ordering::Relaxed));
        let message = json!({"event": "probe", "payload": probe}).to_string();
        assert_eq!(redis.publish(channel, &message), 1, "the server alone is subscribed to {channel}");
        probe
    }

    #[track_caller]
    fn next_probe(&mut self, probe: &str) -> String {
        let text = self.next();
        assert!(
            text.ends_with(&format!("\"event\":\"probe\",\"payload\":\"{probe}\"}}")),
            "{probe}, not {text}"
        );
        text
    }
}

/// A message as it stands on the wire: the keys in their order, the payload as a string.
pub fn frame(stream: &Value, event: &str, payload: &str) -> String {
    format!("{{\"stream\":{stream},\"event\":{},\"payload\":{}}}", json!(event), json!(payload))
}

/// One frame from the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// A WebSocket whose frames are read and written by hand.
pub struct RawWs {
    pub head: Head,
    pub connection: Connection,
}

/// What asks for a WebSocket, besides a token.
pub const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", KEY),
];

/// The request that opens a WebSocket.
pub fn upgrade(path: &str, headers: &[(&str, &str)]) -> String {
    super::http::request("GET", path, &[&UPGRADE[..], headers].concat())
}

impl RawWs {
    #[track_caller]
    pub fn open(server: &Server, path: &str, token: &str) -> RawWs {
        let mut connection = server.connect();
        let bearer = format!("Bearer {token}");
        connection.send(upgrade(path, &[("Authorization", &bearer)]).as_bytes());
        let head = connection.head();
        assert_eq!(head.status, 101, "{head:?}");
        assert_eq!(head.header("Sec-WebSocket-Accept"), Some(ACCEPT));
        RawWs { head, connection }
    }

    /// A masked frame as clients send it, with the first byte (FIN, reserved bits, opcode) as given.
    pub fn encode(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            length @ 0..=125 => out.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                out.push(0x80 | 126);
                out.extend((length as u16).to_be_bytes());
            }
            length => {
                out.push(0x80 | 127);
                out.extend((length as u64).to_be_bytes());
            }
        }
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        out.extend(mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }

    #[track_caller]
    pub fn send(&mut self, first: u8, payload: &[u8]) {
        self.connection.send(&RawWs::encode(first, payload));
    }

    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send(0x81, text.as_bytes());
    }

    /// The next frame; it must be unmasked, without reserved bits, its length in the shortest form.
    #[track_caller]
    pub fn next(&mut self) -> Frame {
        let head = self.connection.take(2);
        assert_eq!(head[0] & 0x70, 0, "reserved bits are set");
        assert_eq!(head[1] & 0x80, 0, "a server's frame is masked");
        let length = match head[1] {
            126 => {
                let bytes = self.connection.take(2);
                let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
                assert!(length > 125, "a long form for a length of {length}");
                length
            }
            127 => {
                let bytes = self.connection.take(8);
                let length = u64::from_be_bytes(bytes.try_into().unwrap()) as usize;
                assert!(length > 0xffff, "the longest form for a length of {length}");
                length
            }
            length => usize::from(length),
        };
        Frame { fin: head[0] & 0x80 != 0, opcode: head[0] & 0x0f, payload: self.connection.take(length) }
    }

    /// The next text frame's text.
    #[track_caller]
    pub fn next_text(&mut self) -> String {
        loop {
            let frame = self.next();
            match frame.opcode {
                1 if frame.fin => return String::from_utf8(frame.payload).expect("UTF-8"),
                9 => self.send(0x8a, &frame.payload),
                _ => panic!("a text frame, not {frame:?}"),
            }
        }
    }
}
