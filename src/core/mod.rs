//! What is decided: which message goes to whom, in which order, who is too slow, when reading pauses.
//!
//! Pure: no sockets, no clock, no threads. Bytes and times go in, decisions come out, so that the
//! simulator drives the very types that production runs. Imports nothing but [`crate::proto`] and
//! [`crate::limits`].

pub mod client;
pub mod counters;
pub mod event;
pub mod filter;
pub mod gate;
pub mod handover;
pub mod hashtag;
pub mod html_text;
pub mod inbox;
pub mod json;
pub mod log;
pub mod lowest;
pub mod mailbox;
pub mod relay;
pub mod report;
pub mod session;
pub mod slack;
pub mod stream;
pub mod subscriptions;
pub mod sync;
pub mod table;
mod talkers;
pub mod trail;
pub mod wheel;

use std::time::Duration;

/// Milliseconds since the start; wraps after 49 days, compared by difference.
pub(crate) fn millis(now: Duration) -> u32 {
    now.as_millis() as u32
}
