//! A connection's socket, whatever the address: one type for each of the three ways it is used.
//!
//! With TLS the socket decrypts as it is read, so that whoever reads sees what Redis wrote, and "would block"
//! still means that nothing is left here either: what was decrypted is given out before the kernel is asked.
//! Bound: one record of 16 KiB decrypted and what one read of the kernel brought, besides rustls's own state.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustls::ClientConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::Stream;

/// A blocking socket, while a connection is set up.
#[derive(Debug)]
pub enum BlockingSocket {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// A unix socket.
    Unix(std::os::unix::net::UnixStream),
    /// TLS over TCP.
    Tls(TlsSocket<std::net::TcpStream>),
}

impl BlockingSocket {
    /// How long a read or a write may block; none: for ever.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            BlockingSocket::Tcp(socket) | BlockingSocket::Tls(TlsSocket { socket, .. }) => {
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
            BlockingSocket::Tls(TlsSocket { connection, socket }) => {
                socket.set_nonblocking(true)?;
                PolledSocket::Tls(TlsSocket { connection, socket: mio::net::TcpStream::from_std(socket) })
            }
        })
    }
}

impl Read for BlockingSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            BlockingSocket::Tcp(socket) => socket.read(buffer),
            BlockingSocket::Unix(socket) => socket.read(buffer),
            BlockingSocket::Tls(socket) => socket.read(buffer),
        }
    }
}

impl Write for BlockingSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            BlockingSocket::Tcp(socket) => socket.write(buffer),
            BlockingSocket::Unix(socket) => socket.write(buffer),
            BlockingSocket::Tls(socket) => socket.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            BlockingSocket::Tls(socket) => socket.flush(),
            _ => Ok(()),
        }
    }
}

/// The subscriber's socket in the ingest's poll.
#[derive(Debug)]
pub enum PolledSocket {
    /// TCP.
    Tcp(mio::net::TcpStream),
    /// A unix socket.
    Unix(mio::net::UnixStream),
    /// TLS over TCP.
    Tls(TlsSocket<mio::net::TcpStream>),
}

impl PolledSocket {
    fn source(&mut self) -> &mut dyn Source {
        match self {
            PolledSocket::Tcp(socket) => socket,
            PolledSocket::Unix(socket) => socket,
            PolledSocket::Tls(socket) => &mut socket.socket,
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
            PolledSocket::Tls(socket) => socket.read(buffer),
        }
    }
}

impl Write for PolledSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            PolledSocket::Tcp(socket) => socket.write(buffer),
            PolledSocket::Unix(socket) => socket.write(buffer),
            PolledSocket::Tls(socket) => socket.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            PolledSocket::Tls(socket) => socket.flush(),
            _ => Ok(()),
        }
    }
}

/// A TLS connection over a socket that may block or not. The handshake happens in the first reads and writes.
#[derive(Debug)]
pub struct TlsSocket<T> {
    connection: Box<ClientConnection>,
    socket: T,
}

impl<T: Read + Write> TlsSocket<T> {
    /// Nothing is sent yet.
    pub fn new(connection: ClientConnection, socket: T) -> TlsSocket<T> {
        TlsSocket { connection: Box::new(connection), socket }
    }
}

impl<T: Read + Write> Read for TlsSocket<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            // The handshake, or an answer to the other side's wish for new keys.
            match self.flush() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            self.connection.read_tls(&mut self.socket)?;
            if let Err(error) = self.connection.process_new_packets() {
                // Tells the other side why; if that does not get through, it sees an end without a word.
                let _ = self.flush();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

impl<T: Read + Write> Write for TlsSocket<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // What is taken here and not by the kernel goes with the next flush.
        let taken = self.connection.writer().write(buffer)?;
        match self.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && taken > 0 => Ok(taken),
            Err(error) => Err(error),
            Ok(()) if taken == 0 && !buffer.is_empty() => self.connection.writer().write(buffer),
            Ok(()) => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut self.socket)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// The command connection's socket.
#[derive(Debug)]
pub enum AsyncSocket {
    /// As it is.
    Plain(Stream),
    /// With TLS over it.
    Tls(Box<tokio_rustls::client::TlsStream<Stream>>),
}

impl AsyncRead for AsyncSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            AsyncSocket::Tls(socket) => Pin::new(socket).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for AsyncSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            AsyncSocket::Plain(socket) => Pin::new(socket).poll_write(cx, buffer),
            AsyncSocket::Tls(socket) => Pin::new(socket).poll_write(cx, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Plain(socket) => Pin::new(socket).poll_flush(cx),
            AsyncSocket::Tls(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            AsyncSocket::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            AsyncSocket::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
