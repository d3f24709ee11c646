//! WebSockets (RFC 6455), the server's side, without extensions.
//!
//! [`Decoder`] turns what a client sends into messages and checks every rule that a server must enforce;
//! while nothing is unfinished it takes 8 bytes and no buffer. [`encode`] writes headers of frames whose
//! payload stays where it is. [`handshake`] answers the key.

mod decode;
pub mod encode;
pub mod handshake;

pub use decode::{Decoder, Fed, Incoming, ProtocolError};
