//! What was published and what became of it, apart from where: shared by the copies of a status in home timelines.
//!
//! Rails publishes a status to the home timeline of each follower by itself, and nearly all of these messages are
//! the same to the byte: what is personal in them (favourited, bookmarked, filtered) is false or empty for most. Copies
//! that come while the one before is still on its way are not copied out of the ring, parsed or rendered again, and
//! the budget holds their bytes once. A comparison costs a fortieth of what it saves.
//!
//! Only home timelines do this: their frames are alike, since neither the account nor anything else of the
//! channel is in them.

use std::ops::Range;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::frames::Frames;
use super::{Event, Parsed, Position};
use crate::core::gate::{Charge, Gate};
use crate::core::stream::Channel;
use crate::proto::ring::Payload;

/// A message's bytes and frames.
pub(super) struct Content {
    pub(super) message: Bytes,
    /// Where in `message` the event's name stands, a JSON token.
    name: Range<usize>,
    /// Where in `message` the payload stands, a JSON token.
    payload: Range<usize>,
    pub(super) frames: Frames,
    pub(super) charge: Charge,
}

/// What a content takes besides its message and frames: itself with the counts of its `Arc`, the handle of
/// the message, and rounding of the allocator.
const CONTENT_OVERHEAD_BYTES: usize = std::mem::size_of::<Content>() + 64;

impl Content {
    pub(super) fn new(
        message: Bytes,
        name: Range<usize>,
        payload: Range<usize>,
        gate: &Arc<Gate>,
    ) -> Arc<Content> {
        let charge = Charge::new(gate, CONTENT_OVERHEAD_BYTES + message.len());
        Arc::new(Content { message, name, payload, frames: Frames::default(), charge })
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.message.get(self.payload.clone()).unwrap_or_default()
    }

    pub(super) fn name(&self) -> &[u8] {
        self.message.get(self.name.clone()).unwrap_or_default()
    }
}

/// Parses messages, and knows a copy of the last one in a home timeline when it sees it. Holds nothing
/// alive: once the last one was delivered everywhere, the next is parsed again.
#[derive(Default)]
pub struct Copies {
    last: Weak<Content>,
}

impl std::fmt::Debug for Copies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Copies")
    }
}

impl Copies {
    /// As [`Event::parse`].
    pub fn parse(
        &mut self,
        channel: Channel,
        at: Position,
        message: Payload<'_>,
        gate: &Arc<Gate>,
    ) -> Parsed {
        if !matches!(channel, Channel::Account(_)) {
            return Event::parse(channel, at, message.into_bytes(), gate);
        }
        if let Some(content) = self.last.upgrade().filter(|last| *last.message == *message.as_ref()) {
            return Parsed::Event(Event::of(channel, at, content, None, gate));
        }
        let parsed = Event::parse(channel, at, message.into_bytes(), gate);
        if let Parsed::Event(event) = &parsed {
            self.last = Arc::downgrade(&event.content);
        }
        parsed
    }
}
