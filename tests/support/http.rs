//! HTTP/1.1 by hand: exact bytes out, strict reading in, every read bounded in time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::machine::PATIENCE;

/// The text of a request without body.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: streaming.example\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection that reads with a deadline and keeps what it has read too much.
pub struct Connection {
    socket: Socket,
    pub buffer: Vec<u8>,
}

/// A response's head.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub reason: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// A header's value; panics if it is there twice.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let first = found.next();
        assert!(found.next().is_none(), "the header {name} is there twice: {:?}", self.headers);
        first.map(|(_, value)| value.as_str())
    }

    fn parse(text: &str) -> Head {
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let rest = first.strip_prefix("HTTP/1.1 ").or_else(|| first.strip_prefix("HTTP/1.0 "));
        let rest = rest.unwrap_or_else(|| panic!("no status line: {first:?}"));
        let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let headers = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
                assert!(!name.contains(' '), "blank in a header's name: {line:?}");
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Head { status: status.parse().unwrap(), reason: reason.to_owned(), headers }
    }
}

/// A response with its body.
#[derive(Clone, Debug)]
pub struct Response {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.head.header(name).unwrap_or_else(|| panic!("no header {name} in {:?}", self.head))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    /// Asserts a JSON error: status, type, and the exact body.
    #[track_caller]
    pub fn assert_error(&self, status: u16, text: &str) {
        assert_eq!(self.text(), format!("{{\"error\":\"{text}\"}}"), "{:?}", self.head);
        assert_eq!(self.status(), status);
        assert!(self.header("Content-Type").starts_with("application/json"), "{:?}", self.head);
    }
}

impl Connection {
    #[track_caller]
    pub fn tcp(address: SocketAddr) -> Connection {
        let socket = TcpStream::connect_timeout(&address, PATIENCE).expect("the server accepts");
        Connection::over(socket)
    }

    /// With the smallest receive buffer: what is not read soon stays with the server.
    #[track_caller]
    pub fn narrow(address: SocketAddr) -> Connection {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect_timeout(&address.into(), PATIENCE * 4).expect("the server accepts");
        Connection::over(socket.into())
    }

    pub fn over(socket: TcpStream) -> Connection {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        Connection { socket: Socket::Tcp(socket), buffer: Vec::new() }
    }

    #[track_caller]
    pub fn unix(path: &Path) -> Connection {
        let socket = UnixStream::connect(path).expect("the server accepts on its socket file");
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { socket: Socket::Unix(socket), buffer: Vec::new() }
    }

    /// How long each further read may take.
    pub fn patience(&self, time: Duration) {
        match &self.socket {
            Socket::Tcp(socket) => socket.set_read_timeout(Some(time)).unwrap(),
            Socket::Unix(socket) => socket.set_read_timeout(Some(time)).unwrap(),
        }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("a write to the server");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.socket {
            Socket::Tcp(socket) => socket.write_all(bytes),
            Socket::Unix(socket) => socket.write_all(bytes),
        }
    }

    /// Closes our sending half.
    pub fn finish(&self) {
        let _ = match &self.socket {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    /// Makes the coming close a reset.
    pub fn reset_on_close(&self) {
        if let Socket::Tcp(socket) = &self.socket {
            socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Reads once into the buffer; `Ok(0)` at the end of the stream.
    pub fn read_more(&mut self) -> std::io::Result<usize> {
        let mut chunk = [0; 1 << 16];
        loop {
            let result = match &mut self.socket {
                Socket::Tcp(socket) => socket.read(&mut chunk),
                Socket::Unix(socket) => socket.read(&mut chunk),
            };
            match result {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(length) => {
                    self.buffer.extend_from_slice(&chunk[..length]);
                    return Ok(length);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads until the buffer holds `length` bytes and takes them.
    #[track_caller]
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            self.must_read();
        }
        self.buffer.drain(..length).collect()
    }

    /// Reads up to and with `end`, and takes it.
    #[track_caller]
    pub fn take_until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut from = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer[from..], end) {
                return self.buffer.drain(..from + at + end.len()).collect();
            }
            from = self.buffer.len().saturating_sub(end.len());
            self.must_read();
        }
    }

    #[track_caller]
    fn must_read(&mut self) {
        match self.read_more() {
            Ok(0) => panic!("the server closed; unread: {:?}", String::from_utf8_lossy(&self.buffer)),
            Ok(_) => {}
            Err(error) => panic!("{error}; unread: {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    #[track_caller]
    pub fn head(&mut self) -> Head {
        let bytes = self.take_until(b"\r\n\r\n");
        Head::parse(std::str::from_utf8(&bytes[..bytes.len() - 4]).expect("a head in UTF-8"))
    }

    /// A whole response to a request of `method`.
    #[track_caller]
    pub fn response(&mut self, method: &str) -> Response {
        let head = self.head();
        let body = if method == "HEAD" || head.status == 204 || head.status == 304 {
            Vec::new()
        } else if let Some(length) = head.header("Content-Length") {
            self.take(length.parse().unwrap())
        } else if head.header("Transfer-Encoding") == Some("chunked") {
            std::iter::from_fn(|| self.chunk()).flatten().collect()
        } else {
            self.until_closed()
        };
        Response { head, body }
    }

    /// The next chunk, strictly read: a length in hexadecimal digits, CRLF, the bytes, CRLF. `None` is the
    /// last chunk.
    #[track_caller]
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.take_until(b"\r\n");
        let digits = std::str::from_utf8(&line[..line.len() - 2]).expect("a chunk's length");
        let digits_only = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(digits_only, "a chunk's length is {digits:?}");
        let length = usize::from_str_radix(digits, 16).unwrap();
        let mut bytes = self.take(length + 2);
        assert!(bytes.ends_with(b"\r\n"), "a chunk of {length} bytes ends with {:?}", &bytes[length..]);
        bytes.truncate(length);
        (length > 0).then_some(bytes)
    }

    /// Everything until the server closes; a reset counts as closing.
    #[track_caller]
    pub fn until_closed(&mut self) -> Vec<u8> {
        loop {
            match self.read_more() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{error} instead of the end; so far {:?}", self.buffer),
            }
        }
        std::mem::take(&mut self.buffer)
    }

    /// Asserts that the server has closed and sent nothing more.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        let rest = self.until_closed();
        assert!(rest.is_empty(), "more before the end: {:?}", String::from_utf8_lossy(&rest));
    }

    pub fn tcp_socket(&self) -> Option<&TcpStream> {
        match &self.socket {
            Socket::Tcp(socket) => Some(socket),
            Socket::Unix(_) => None,
        }
    }
}
