//! Bytes ↔ meaning: what Redis sends a subscriber, and what clients are sent and send.
//!
//! Pure: no sockets, no clock, no threads. Bytes go in; frames, or bytes to write, come out. Each parser has
//! another implementation as its judge in the tests: redis-protocol for [`resp`] and [`ring`], tungstenite for
//! [`ws`]. Imports nothing but [`crate::limits`].

pub mod resp;
pub mod ring;
pub mod sse;
pub mod ws;
