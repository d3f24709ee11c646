//! A published message: read once, parsed once, rendered once, shared by all who get it.
//!
//! The envelope `{"event": …, "payload": …}` is parsed with raw values; the payload stays the slice that
//! Rails wrote. Per recipient nothing is parsed, copied or locked: a [`Frame`] is a handful of shared
//! slices.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use crate::core::gate::Gate;
use crate::core::stream::{Channel, Id, Stream};

/// How bytes are framed for a client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Transport {
    /// WebSocket text messages (RFC 6455).
    WebSocket,
    /// Server-Sent Events in HTTP/1.1 chunks, one chunk an event.
    SseChunked,
    /// Server-Sent Events to an HTTP/1.0 client: no chunks, the end is the end of the connection.
    SsePlain,
}

/// A message that will be relayed (or a signal on a system channel).
#[derive(Debug)]
pub struct Event {
    _private: (),
}

/// What a channel's message turned out to be.
#[derive(Debug)]
pub enum Parsed {
    /// A message to relay.
    Event(Arc<Event>),
    /// `kill` on a system channel.
    Kill,
    /// `filters_changed` on a system channel.
    FiltersChanged,
    /// Nothing that anyone gets, as in Node: not JSON, not an object, no event, no payload,
    /// an unknown event on a system channel.
    Ignored(Ignored),
}

/// Why a message goes to nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ignored {
    /// Not JSON.
    NotJson,
    /// JSON, but without a truthy `event` or `payload` (Node drops these silently).
    Incomplete,
    /// A system channel's event that is neither `kill` nor `filters_changed`.
    UnknownSystemEvent,
}

/// Where and when a message was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Counts the Redis connections since the start.
    pub epoch: u32,
    /// Counts the messages of all subscribed channels since the start, from 1.
    pub seq: u64,
    /// When the read that completed the message returned, since the process's start.
    pub read_at: Duration,
}

/// What may be known of a status before it goes to viewers of a filtered channel.
#[derive(Clone, PartialEq, Debug)]
pub struct StatusFields {
    /// The author's account.
    pub author: Id,
    /// The domain after `@` in the author's `acct`; none for a local author.
    pub domain: Option<Box<str>>,
    /// `username == acct`
    pub local: bool,
    /// Accounts that the status mentions.
    pub mentions: Box<[Id]>,
    /// `language`, none if null or missing.
    pub language: Option<Box<str>>,
    /// Whether the payload has a `filtered` member: then it is sent unchanged.
    pub has_filtered: bool,
    /// glitch-soc: for local accounts only.
    pub local_only: bool,
}

/// What an account gets of a status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not delivered, for that reason.
    Withheld(Withheld),
    /// Delivered with that outcome of the account's custom filters: an index into
    /// [`Audience::outcomes`]. 0 is `"filtered":[]`.
    Deliver(u16),
}

/// Why a status is not delivered to a viewer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Withheld {
    LocalOnly,
    FeedAccess,
    Language,
    Relationship,
    DomainBlock,
    Malformed,
    AudienceTimeout,
    AudienceOverflow,
    NotAsked,
}

/// Who may see a status: the answer of the audience stage, for the accounts it asked about.
#[derive(Debug, Default)]
pub struct Audience {
    /// Sorted by account. An account that is not here was not asked about and gets nothing.
    pub verdicts: Vec<(Id, Verdict)>,
    /// JSON arrays to stand behind `"filtered":`; the first is `[]`.
    pub outcomes: Vec<Bytes>,
    /// Set when nobody gets it, whoever was asked about (malformed, timeout, overflow).
    pub nobody: Option<Withheld>,
}

impl Audience {
    /// What that account gets.
    pub fn verdict(&self, account: Id) -> Verdict {
        if let Some(reason) = self.nobody {
            return Verdict::Withheld(reason);
        }
        match self.verdicts.binary_search_by_key(&account, |entry| entry.0) {
            Ok(found) => self.verdicts[found].1,
            Err(_) => Verdict::Withheld(Withheld::NotAsked),
        }
    }
}

/// Bytes to write for one message to one client, in at most three pieces; empty pieces are left out.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Everything up to the shared body; for the usual stream name and outcome, all of the frame.
    pub head: Bytes,
    /// The payload as this transport carries it, shared by all variants.
    pub body: Bytes,
    /// What follows the body.
    pub tail: Bytes,
}

impl Frame {
    /// All bytes of the frame.
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len() + self.tail.len()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Event {
    /// Parses a message that was published on `channel`. `message` is owned by the event from now on and
    /// counts, with every frame rendered from it, against `gate`'s budget.
    pub fn parse(channel: Channel, at: Position, message: Bytes, gate: &Arc<Gate>) -> Parsed {
        let _ = (channel, at, message, gate);
        todo!()
    }

    /// Where it was published.
    pub fn channel(&self) -> &Channel {
        todo!()
    }

    /// When it was read.
    pub fn position(&self) -> Position {
        todo!()
    }

    /// Whether a viewer's settings decide (an `update` or `status.update` on a filtered channel).
    pub fn needs_audience(&self) -> bool {
        todo!()
    }

    /// The fields that decide; `Err` says what is wrong with the status (nobody gets it then).
    /// None where [`needs_audience`](Self::needs_audience) is false.
    pub fn status(&self) -> Option<Result<&StatusFields, &'static str>> {
        todo!()
    }

    /// The payload as Rails wrote it: a JSON value.
    pub fn payload(&self) -> &[u8] {
        todo!()
    }

    /// The answer of the audience stage, set once before the event goes to the reactors.
    pub fn audience(&self) -> &OnceLock<Audience> {
        todo!()
    }

    /// What a viewer gets, by the audience and the stream's own rules; always delivered where no audience
    /// is needed. `account` 0 is the anonymous viewer of `--no-database`: everything but local-only, unchanged.
    pub fn verdict(&self, stream: &Stream, account: Id) -> Verdict {
        let _ = (stream, account);
        todo!()
    }

    /// The frame for that transport, stream name and filter outcome, rendered on first need. Deterministic:
    /// the same key gives the same bytes at any time.
    pub fn frame(&self, transport: Transport, stream: &Stream, outcome: u16) -> Frame {
        let _ = (transport, stream, outcome);
        todo!()
    }

    /// Bytes held against the budget by this event and its frames.
    pub fn held_bytes(&self) -> usize {
        todo!()
    }
}
