//! A strict reader of Server-Sent Events: the chunks, then exactly the lines Mastodon's server sends.

use super::http::{Connection, Head, Response, request};
use super::server::Server;

/// An open stream.
pub struct Sse {
    pub head: Head,
    pub connection: Connection,
    /// Bytes of the body that are not read as events yet.
    body: Vec<u8>,
    ended: bool,
    pub heartbeats: usize,
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub data: String,
}

impl Sse {
    /// Opens a stream with a bearer token and checks its head and greeting.
    #[track_caller]
    pub fn open(server: &Server, path: &str, token: &str) -> Sse {
        let mut sse = Sse::try_open(server, path, token).unwrap_or_else(|response| panic!("{response:?}"));
        sse.expect_bytes(b":)\n");
        sse
    }

    /// Opens a stream, or gives the refusal. The greeting is not read yet.
    #[track_caller]
    pub fn try_open(server: &Server, path: &str, token: &str) -> Result<Sse, Response> {
        let mut connection = server.connect();
        let bearer = format!("Bearer {token}");
        connection.send(request("GET", path, &[("Authorization", &bearer)]).as_bytes());
        Sse::read_head(connection)
    }

    /// Reads the head of a stream that was asked for on `connection`.
    #[track_caller]
    pub fn read_head(mut connection: Connection) -> Result<Sse, Response> {
        let head = connection.head();
        if head.status != 200 {
            let length = head.header("Content-Length").map_or(0, |text| text.parse().unwrap());
            let body = if head.header("Transfer-Encoding").is_some() {
                std::iter::from_fn(|| connection.chunk()).flatten().collect()
            } else {
                connection.take(length)
            };
            return Err(Response { head, body });
        }
        assert_eq!(head.header("Transfer-Encoding"), Some("chunked"));
        assert_eq!(head.header("Content-Length"), None);
        Ok(Sse { head, connection, body: Vec::new(), ended: false, heartbeats: 0 })
    }

    /// Reads one more chunk; false at the end of the response.
    #[track_caller]
    fn more(&mut self) -> bool {
        match self.connection.chunk() {
            Some(bytes) => self.body.extend(bytes),
            None => self.ended = true,
        }
        !self.ended
    }

    #[track_caller]
    fn take_line(&mut self) -> String {
        let mut from = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.body[from..]) {
                let line: Vec<u8> = self.body.drain(..=from + at).collect();
                return String::from_utf8(line[..line.len() - 1].to_vec()).expect("lines in UTF-8");
            }
            from = self.body.len();
            let more = self.more();
            assert!(more, "the stream ended within a line: {:?}", String::from_utf8_lossy(&self.body));
        }
    }

    /// Asserts the next bytes of the body.
    #[track_caller]
    pub fn expect_bytes(&mut self, expected: &[u8]) {
        while self.body.len() < expected.len() && self.more() {}
        let length = expected.len().min(self.body.len());
        let found: Vec<u8> = self.body.drain(..length).collect();
        assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(expected));
    }

    /// The next event. Heartbeats are counted; any other line than Mastodon's server sends is an error.
    #[track_caller]
    pub fn next(&mut self) -> Event {
        loop {
            let line = self.take_line();
            if line == ":thump" {
                assert_eq!(self.take_line(), "", "a blank line after the heartbeat");
                self.heartbeats += 1;
                continue;
            }
            let name =
                line.strip_prefix("event: ").unwrap_or_else(|| panic!("an event's name, not {line:?}"));
            let mut data: Option<String> = None;
            loop {
                let line = self.take_line();
                if line.is_empty() {
                    break;
                }
                let part = line.strip_prefix("data: ").unwrap_or_else(|| panic!("data, not {line:?}"));
                data = Some(data.map_or_else(|| part.to_owned(), |before| format!("{before}\n{part}")));
            }
            return Event { name: name.to_owned(), data: data.expect("data") };
        }
    }

    #[track_caller]
    pub fn expect(&mut self, name: &str, data: &str) {
        let event = self.next();
        assert_eq!((event.name.as_str(), event.data.as_str()), (name, data));
    }

    /// Asserts that nothing but heartbeats is here or on its way: `marker` was published last, so it comes
    /// next.
    #[track_caller]
    pub fn expect_marker(&mut self, marker: &str) {
        self.expect("marker", marker);
    }

    /// Reads to the last chunk and gives what came before it; then the server must close.
    #[track_caller]
    pub fn until_end(&mut self) -> String {
        while !self.ended && self.more() {}
        self.connection.finish();
        self.connection.expect_closed();
        String::from_utf8(std::mem::take(&mut self.body)).unwrap()
    }
}
