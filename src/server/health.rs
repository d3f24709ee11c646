//! `tidegate health`: asks a running server whether it lives, for images that have no `curl`.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::Listen;

/// How long connecting may take, and each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The page that answers `OK` as long as the process lives.
pub const HEALTH: &str = "/api/v1/streaming/health";

/// The page that answers 200 while Redis and PostgreSQL are there.
pub const READY: &str = "/ready";

/// Asks the server that listens there for a page; an error unless it answers 200. "All addresses" is asked on
/// loopback.
///
/// # Errors
/// With what went wrong, or the page's text.
pub fn ask(listen: &Listen, path: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("{listen} does not answer: {error}");
    match listen {
        Listen::Unix(socket) => {
            let stream = UnixStream::connect(socket).map_err(failed)?;
            stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
            get(stream, path)
        }
        Listen::Tcp(at) => {
            let mut addresses =
                (at.host.as_str(), at.port).to_socket_addrs().map_err(failed)?.map(connectable);
            let address = addresses.next().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            let stream = TcpStream::connect_timeout(&address, TIMEOUT)
                .or_else(|error| {
                    // Where all addresses are meant, a kernel without IPv6 has those of the other family.
                    if address.ip() != Ipv6Addr::LOCALHOST {
                        return Err(error);
                    }
                    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, at.port).into(), TIMEOUT)
                })
                .map_err(failed)?;
            stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
            get(stream, path)
        }
    }
}

fn connectable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(at) if at.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, at.port()).into(),
        SocketAddr::V6(at) if at.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, at.port()).into(),
        address => address,
    }
}

fn get(mut stream: impl Read + Write, path: &str) -> Result<(), String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    // A server that does not close is ended by the time-out; what it said counts.
    let read = stream.write_all(request.as_bytes()).and_then(|()| stream.take(8192).read_to_end(&mut answer));
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&answer);
    let said = text.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim());
    match (said, read) {
        ("", Err(error)) => Err(format!("{path}: no answer: {error}")),
        ("", Ok(_)) => Err(format!("{path}: {}", text.lines().next().unwrap_or("an empty answer"))),
        (said, _) => Err(format!("{path}: {said}")),
    }
}
