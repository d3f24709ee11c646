//! A client's connection: TCP, or a unix socket behind a proxy on the same machine.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use crate::core::client;

/// A connected, non-blocking socket. 8 bytes.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(mio::net::TcpStream),
    /// A unix socket.
    Unix(mio::net::UnixStream),
}

// With debug assertions mio's sockets remember their poll.
#[cfg(not(debug_assertions))]
const _: () = assert!(std::mem::size_of::<Socket>() == 8);

impl From<std::net::TcpStream> for Socket {
    /// The stream must be non-blocking.
    fn from(stream: std::net::TcpStream) -> Socket {
        Socket::Tcp(mio::net::TcpStream::from_std(stream))
    }
}

impl From<std::os::unix::net::UnixStream> for Socket {
    /// The stream must be non-blocking.
    fn from(stream: std::os::unix::net::UnixStream) -> Socket {
        Socket::Unix(mio::net::UnixStream::from_std(stream))
    }
}

/// For who answers on a socket that no reactor took.
impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl client::Socket for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(into),
            Socket::Unix(stream) => stream.read(into),
        }
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match (self, slices) {
            // `send` is a little cheaper in the kernel than `sendmsg` with one slice.
            (Socket::Tcp(stream), [one]) => stream.write(one),
            (Socket::Tcp(stream), _) => stream.write_vectored(slices),
            (Socket::Unix(stream), _) => stream.write_vectored(slices),
        }
    }

    fn finish(&mut self) {
        // It may be gone already; then there is nothing to end.
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    fn reset(&mut self) {
        if let Socket::Tcp(stream) = self {
            let _ = SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Source for Socket {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.register(registry, token, interests),
            Socket::Unix(stream) => stream.register(registry, token, interests),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.reregister(registry, token, interests),
            Socket::Unix(stream) => stream.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.deregister(registry),
            Socket::Unix(stream) => stream.deregister(registry),
        }
    }
}
