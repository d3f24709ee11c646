//! A connection's socket, whatever the address: one type for each of the three ways it is used.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A blocking socket, while a connection is set up.
#[derive(Debug)]
pub enum BlockingSocket {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// A unix socket.
    Unix(std::os::unix::net::UnixStream),
}

impl BlockingSocket {
    /// How long a read or a write may block; none: for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            BlockingSocket::Tcp(socket) => {
                socket.set_read_timeout(timeout)?;
                socket.set_write_timeout(timeout)
            }
            BlockingSocket::Unix(socket) => {
                socket.set_read_timeout(timeout)?;
                socket.set_write_timeout(timeout)
            }
        }
    }

    /// The same socket for a poll.
    pub fn into_polled(self) -> io::Result<PolledSocket> {
        Ok(match self {
            BlockingSocket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                PolledSocket::Tcp(mio::net::TcpStream::from_std(socket))
            }
            BlockingSocket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                PolledSocket::Unix(mio::net::UnixStream::from_std(socket))
            }
        })
    }
}

impl Read for BlockingSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            BlockingSocket::Tcp(socket) => socket.read(buffer),
            BlockingSocket::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for BlockingSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            BlockingSocket::Tcp(socket) => socket.write(buffer),
            BlockingSocket::Unix(socket) => socket.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The subscriber's socket in the ingest's poll.
#[derive(Debug)]
pub enum PolledSocket {
    /// TCP.
    Tcp(mio::net::TcpStream),
    /// A unix socket.
    Unix(mio::net::UnixStream),
}

impl PolledSocket {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            PolledSocket::Tcp(socket) => socket,
            PolledSocket::Unix(socket) => socket,
        }
    }
}

impl Source for PolledSocket {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.source().deregister(registry)
    }
}

impl Read for PolledSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            PolledSocket::Tcp(socket) => socket.read(buffer),
            PolledSocket::Unix(socket) => socket.read(buffer),
        }
    }
}

impl Write for PolledSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            PolledSocket::Tcp(socket) => socket.write(buffer),
            PolledSocket::Unix(socket) => socket.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The command connection's socket.
#[derive(Debug)]
pub enum AsyncSocket {
    /// TCP.
    Tcp(tokio::net::TcpStream),
    /// A unix socket.
    Unix(tokio::net::UnixStream),
}

impl AsyncSocket {
    /// Waits until there may be something to read.
    pub async fn readable(&self) -> io::Result<()> {
        match self {
            AsyncSocket::Tcp(socket) => socket.readable().await,
            AsyncSocket::Unix(socket) => socket.readable().await,
        }
    }

    /// Reads what is there.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            AsyncSocket::Tcp(socket) => socket.try_read(buffer),
            AsyncSocket::Unix(socket) => socket.try_read(buffer),
        }
    }
}

impl AsyncRead for AsyncSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            AsyncSocket::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for AsyncSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            AsyncSocket::Tcp(socket) => Pin::new(socket).poll_write(cx, buffer),
            AsyncSocket::Unix(socket) => Pin::new(socket).poll_write(cx, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            AsyncSocket::Unix(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            AsyncSocket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
