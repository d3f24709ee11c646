//! A published message: read once, parsed once, rendered once, shared by all who get it.
//!
//! The envelope `{"event": …, "payload": …}` is parsed with raw values; the payload stays the slice that
//! Rails wrote. Per recipient nothing is parsed, copied or locked: a [`Frame`] is a handful of shared
//! slices.
//!
//! What is a message, and what of it goes on the wire, is decided as Node did after `JSON.parse`: see
//! [`Event::parse`]. Payloads stay opaque: only of a status on a filtered channel are the fields read that its
//! audience depends on (`status`).
//!
//! Invariants: the same transport, stream and outcome give the same bytes at any time; whatever was published,
//! a WebSocket frame is one valid UTF-8 text message and an SSE frame one event; every byte held is charged
//! to the gate and given back when the event goes.
//!
//! Bounds: memory and time linear in the message, at any depth of nesting; at most
//! [`FRAME_VARIANTS_MAX`](crate::limits::FRAME_VARIANTS_MAX) unusual frames are kept. Tested with exact bytes
//! for each kind of payload, and by properties that read the frames back with other parsers.

mod content;
mod frames;
mod outcome;
mod render;
mod status;

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use crate::core::gate::{Charge, Gate};
use crate::core::json;
use crate::core::stream::{Channel, Id, Stream};
use crate::core::trail::Step;
#[cfg(feature = "otel")]
use crate::core::trail::Trail;

pub use content::Copies;
pub use outcome::{Outcome, OutcomeBudget};

use content::Content;
use status::Status;

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
pub struct Event {
    channel: Channel,
    position: Position,
    /// What was published, and its frames.
    content: Arc<Content>,
    /// Of an `update` or `status.update` on a filtered channel.
    status: Option<Box<Status>>,
    audience: OnceLock<Audience>,
    charge: Charge,
    /// Boxed twice, for its size: nearly no message has one.
    #[cfg(feature = "otel")]
    trail: Option<Box<Box<dyn Trail>>>,
}

const _: () = assert!(std::mem::size_of::<Event>() <= 256);

/// What an event takes besides its content: itself with the counts of its `Arc`, and rounding of the allocator.
const EVENT_OVERHEAD_BYTES: usize = std::mem::size_of::<Event>() + 32;

impl std::fmt::Debug for Event {
    /// Without the payload: it may be large, and is not for logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = String::from_utf8_lossy(self.name());
        write!(
            f,
            "Event({name} on {:?}, {:?}, {} bytes)",
            self.channel,
            self.position,
            self.content.message.len()
        )
    }
}

/// The outcome of the viewer who has no filters at all: the payload goes out as it came.
pub const UNCHANGED: u16 = u16::MAX;

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
    /// Accounts that the status mentions; the instance's own, which anyone can mention, has the number -99.
    pub mentions: Box<[i64]>,
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
    /// Delivered with that outcome of the account's custom filters: the number of an entry of
    /// [`Audience::outcomes`], from 1. 0 is `"filtered":[]`; [`UNCHANGED`] adds nothing.
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
    FilterWork,
    FilterResults,
}

/// The accounts that a question was about, sorted; shared by all statuses that were asked about for the
/// same ones.
pub type Asked = Arc<[Id]>;

/// Who may see a status: the answer of the audience stage, for the accounts it asked about.
#[derive(Debug, Default)]
pub struct Audience {
    /// The accounts that get outcome 0, unless [`verdicts`](Self::verdicts) has another for them. An account that is in
    /// neither was not asked about and gets nothing.
    pub asked: Asked,
    /// What [`asked`](Self::asked) takes, for the first event that carries it: it is charged to that one. 0 for
    /// those that share it.
    pub asked_bytes: u32,
    /// Sorted by account.
    pub verdicts: Vec<(Id, Verdict)>,
    /// What filters say, for those accounts of which they say anything.
    pub outcomes: Vec<Arc<Outcome>>,
    /// Set when nobody gets it, whoever was asked about (malformed, timeout, overflow).
    pub nobody: Option<Withheld>,
}

impl Audience {
    /// Nobody gets it, for that reason.
    pub fn nobody(reason: Withheld) -> Audience {
        Audience { nobody: Some(reason), ..Audience::default() }
    }

    /// What that account gets.
    pub fn verdict(&self, account: Id) -> Verdict {
        if let Some(reason) = self.nobody {
            return Verdict::Withheld(reason);
        }
        match self.verdicts.binary_search_by_key(&account, |entry| entry.0) {
            Ok(found) => self.verdicts[found].1,
            Err(_) if self.asked.binary_search(&account).is_ok() => Verdict::Deliver(0),
            Err(_) => Verdict::Withheld(Withheld::NotAsked),
        }
    }
}

/// Bytes to write for one message to one client, in parts; empty ones are left out.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Everything up to the shared body; for the usual stream name and outcome, all of the frame.
    pub head: Bytes,
    /// The payload as this transport carries it, shared by all variants.
    pub body: Bytes,
    /// The name of the payload's last member, `filtered`, where filters found something.
    pub lead: &'static [u8],
    /// What they found, shared by all frames of the account.
    pub filtered: Bytes,
    /// What follows.
    pub tail: Bytes,
}

/// Parts of a [`Frame`].
pub const FRAME_PARTS: usize = 5;

impl Frame {
    /// The parts, in order.
    pub fn parts(&self) -> [&[u8]; FRAME_PARTS] {
        [&self.head, &self.body, self.lead, &self.filtered, &self.tail]
    }

    /// The parts, in order, each shared with this frame.
    pub fn into_parts(self) -> [Bytes; FRAME_PARTS] {
        [self.head, self.body, Bytes::from_static(self.lead), self.filtered, self.tail]
    }

    /// All bytes of the frame.
    pub fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Event {
    /// Parses a message that was published on `channel`. `message` is owned by the event from now on and
    /// counts, with every frame rendered from it, against `gate`'s budget.
    ///
    /// Both `event` and `payload` must be there and true in JavaScript's sense; of two members with the same
    /// name the last counts. On a system channel only the event's name matters. What is not UTF-8 becomes
    /// U+FFFD, as in Node.
    pub fn parse(channel: Channel, at: Position, message: Bytes, gate: &Arc<Gate>) -> Parsed {
        let (message, envelope) = match std::str::from_utf8(&message) {
            Ok(text) => {
                let envelope = Envelope::read(&channel, text);
                (message, envelope)
            }
            Err(_) => {
                let text = String::from_utf8_lossy(&message).into_owned();
                let envelope = Envelope::read(&channel, &text);
                (Bytes::from(text), envelope)
            }
        };
        let Envelope { name, payload, status } = match envelope {
            Ok(envelope) => envelope,
            Err(parsed) => return parsed,
        };
        let content = Content::new(message, name, payload, gate);
        Parsed::Event(Event::of(channel, at, content, status, gate))
    }

    fn of(
        channel: Channel,
        at: Position,
        content: Arc<Content>,
        status: Option<Box<Status>>,
        gate: &Arc<Gate>,
    ) -> Arc<Event> {
        let status_bytes = status.as_ref().map_or(0, |status| status.held_bytes());
        let charge = Charge::new(gate, EVENT_OVERHEAD_BYTES + status_bytes);
        Arc::new(Event {
            channel,
            position: at,
            content,
            status,
            audience: OnceLock::new(),
            charge,
            #[cfg(feature = "otel")]
            trail: None,
        })
    }

    /// Has the message followed, from before anybody else gets it.
    #[cfg(feature = "otel")]
    pub fn follow(&mut self, trail: Box<dyn Trail>) {
        self.trail = Some(Box::new(trail));
    }

    /// Tells whoever follows the message that it has come so far.
    #[inline]
    pub fn mark(&self, step: Step) {
        #[cfg(feature = "otel")]
        if let Some(trail) = &self.trail {
            trail.mark(step);
        }
        #[cfg(not(feature = "otel"))]
        let _ = step;
    }

    /// Where it was published.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// When it was read.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Whether a viewer's settings decide (an `update` or `status.update` on a filtered channel).
    pub fn needs_audience(&self) -> bool {
        self.status.is_some()
    }

    /// The fields that decide; `Err` says what is wrong with the status (nobody gets it then).
    /// None where [`needs_audience`](Self::needs_audience) is false.
    pub fn status(&self) -> Option<Result<&StatusFields, &'static str>> {
        self.status.as_ref().map(|status| status.fields.as_ref().map_err(|wrong| *wrong))
    }

    /// The payload as Rails wrote it: a JSON value.
    pub fn payload(&self) -> &[u8] {
        self.content.payload()
    }

    /// The event's name as it was published: a JSON value, nearly always a string.
    pub fn name(&self) -> &[u8] {
        self.content.name()
    }

    /// The answer of the audience stage, set once before the event goes to the reactors
    /// (by [`set_audience`](Self::set_audience), which charges it to the budget).
    pub fn audience(&self) -> &OnceLock<Audience> {
        &self.audience
    }

    /// Sets the answer of the audience stage and charges its bytes to the budget. False, and nothing
    /// changed, if there is one already.
    pub fn set_audience(&self, audience: Audience) -> bool {
        let bytes = audience.verdicts.capacity() * std::mem::size_of::<(Id, Verdict)>()
            + audience.outcomes.capacity() * std::mem::size_of::<Arc<Outcome>>()
            + audience.asked_bytes as usize;
        let is_withheld = audience.nobody.is_some();
        let set = self.audience.set(audience).is_ok();
        if set {
            self.charge.add(bytes);
            self.mark(Step::AudienceKnown { is_withheld });
        }
        set
    }

    /// What a viewer gets, by the audience and the stream's own rules; always delivered where no audience
    /// is needed. `account` 0 is the anonymous viewer of `--no-database`: everything but local-only, unchanged.
    ///
    /// Any other account gets nothing of a status whose audience was not set.
    pub fn verdict(&self, stream: &Stream, account: Id) -> Verdict {
        let Some(status) = &self.status else {
            return Verdict::Deliver(0);
        };
        if status.local_only && !stream.shows_local_only() {
            return Verdict::Withheld(Withheld::LocalOnly);
        }
        if account == 0 {
            return Verdict::Deliver(UNCHANGED);
        }
        if status.fields.is_err() {
            return Verdict::Withheld(Withheld::Malformed);
        }
        match self.audience.get() {
            Some(audience) => audience.verdict(account),
            None => Verdict::Withheld(Withheld::NotAsked),
        }
    }

    /// The frame for that transport, stream name and filter outcome, rendered on first need. Deterministic:
    /// the same key gives the same bytes at any time.
    pub fn frame(&self, transport: Transport, stream: &Stream, outcome: u16) -> Frame {
        let outcome = if self.is_extensible() { outcome } else { UNCHANGED };
        self.content.frames.frame(self, transport, stream, outcome)
    }

    /// Bytes held against the budget by this event and its frames; those that it shares with copies in other
    /// home timelines are counted once by the budget, but here for each.
    pub fn held_bytes(&self) -> usize {
        self.charge.bytes() + self.content.charge.bytes()
    }

    /// Whether outcomes of filters are appended to the payload.
    fn is_extensible(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.is_extensible)
    }

    /// What filters found, by an outcome's number; none where they found nothing.
    fn outcome(&self, number: u16) -> Option<&Arc<Outcome>> {
        let index = usize::from(number).checked_sub(1)?;
        self.audience.get()?.outcomes.get(index)
    }
}

/// A message's outer object.
struct Envelope {
    name: Range<usize>,
    payload: Range<usize>,
    status: Option<Box<Status>>,
}

impl Envelope {
    /// Err is what becomes of a message that is not relayed.
    fn read(channel: &Channel, text: &str) -> Result<Envelope, Parsed> {
        let (mut event, mut payload) = (None, None);
        let is_object = json::members(text, |name, token| match name {
            "event" => event = Some(token),
            "payload" => payload = Some(token),
            _ => {}
        });
        if !is_object {
            let why = if json::is_valid(text) { Ignored::Incomplete } else { Ignored::NotJson };
            return Err(Parsed::Ignored(why));
        }
        let event = truthy(event)?;
        let name = json::text(event);
        if channel.is_system() {
            return Err(match name.as_deref() {
                Some("kill") => Parsed::Kill,
                Some("filters_changed") => Parsed::FiltersChanged,
                _ => Parsed::Ignored(Ignored::UnknownSystemEvent),
            });
        }
        let payload = truthy(payload)?;
        let is_status = matches!(name.as_deref(), Some("update" | "status.update"));
        let status = (is_status && channel.is_filtered()).then(|| Box::new(Status::read(payload)));
        Ok(Envelope { name: range_in(text, event), payload: range_in(text, payload), status })
    }
}

fn truthy(token: Option<&str>) -> Result<&str, Parsed> {
    token.filter(|token| json::is_truthy(token)).ok_or(Parsed::Ignored(Ignored::Incomplete))
}

/// Where `part`, a slice of `text`, stands in it.
fn range_in(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    start..start + part.len()
}

#[cfg(test)]
mod tests;
