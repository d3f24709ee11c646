//! The frames of an event that were asked for.
//!
//! Nearly everyone gets one of four *usual* frames: the stream's normal name (some channels have two), and the
//! outcome that matches nothing. They are rendered whole, once, and read without a lock. What differs, a tag
//! in another spelling or filters that matched, keeps only a head and a tail of its own and shares the body
//! of a usual frame, and what filters found with all other frames of the account. Of those, so many are kept and
//! further ones rendered each time: 5,000 spellings of one tag must not turn one message into 5,000.
//!
//! All that is kept is charged to the content that it was rendered from. While the budget has no room for a frame
//! ([`Charge::try_add`](crate::core::gate::Charge::try_add)) it is rendered for one write and not kept.

use std::borrow::Cow;
use std::mem::size_of;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::render::{self, Whole};
use super::{Event, Frame, Transport, UNCHANGED};
use crate::core::stream::{Channel, Origin, Param, Stream, StreamKind};
use crate::limits::FRAME_VARIANTS_MAX;

/// What `Bytes` allocates when it is first shared, and the allocator's rounding.
const SHARED_OVERHEAD_BYTES: usize = 64;

/// Room for so many variants is made with the first one.
const VARIANTS_FIRST: usize = 4;

#[derive(Default)]
pub(super) struct Frames {
    // Each holds the outcome that was asked for first: "nothing matched", or unchanged where nobody has an
    // account.
    first_name: OnceLock<Whole>,
    second_name: OnceLock<Whole>,
    sse_chunked: OnceLock<Whole>,
    sse_plain: OnceLock<Whole>,
    variants: Mutex<Vec<Variant>>,
}

struct Variant {
    key: Key,
    head: Bytes,
    tail: Bytes,
}

/// What tells variants apart. The list or tag itself belongs to the channel.
#[derive(PartialEq)]
struct Key {
    transport: Transport,
    /// None on SSE, where the stream has no name.
    name: Option<(StreamKind, Option<Arc<Box<str>>>)>,
    outcome: u16,
}

impl Frames {
    /// `outcome` is [`UNCHANGED`] wherever no outcome is appended.
    pub(super) fn frame(&self, event: &Event, transport: Transport, stream: &Stream, outcome: u16) -> Frame {
        if matches!(outcome, 0 | UNCHANGED)
            && let Some(place) = self.usual_place(event.channel(), transport, stream)
        {
            let whole = usual(place, event, transport, stream, outcome);
            if whole.outcome == outcome {
                return Frame { head: whole.bytes.clone(), ..Frame::default() };
            }
        }
        self.variant(event, transport, stream, outcome)
    }

    fn variant(&self, event: &Event, transport: Transport, stream: &Stream, outcome: u16) -> Frame {
        // Outside the lock: this may render the payload.
        let body = self.body(event, transport);
        let name = match transport {
            Transport::WebSocket => Some((stream.kind, stream.spelling.clone())),
            Transport::SseChunked | Transport::SsePlain => None,
        };
        let (lead, filtered) = render::filtered(event, transport, outcome);
        let key = Key { transport, name, outcome };
        // A push is the last thing done under the lock, so a poisoned list is a whole list.
        let mut variants = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = variants.iter().find(|variant| variant.key == key) {
            return Frame { head: found.head.clone(), body, lead, filtered, tail: found.tail.clone() };
        }
        let apart = body.len() + lead.len() + filtered.len();
        let (head, tail) = render::head_and_tail(event, transport, stream, outcome, apart);
        if variants.len() < FRAME_VARIANTS_MAX {
            let grown = if variants.len() < variants.capacity() {
                0
            } else {
                variants.capacity().max(VARIANTS_FIRST) * size_of::<Variant>()
            };
            let spelling_len = stream.spelling.as_ref().map_or(0, |spelling| spelling.len());
            let bytes = head.len() + tail.len() + spelling_len + grown + SHARED_OVERHEAD_BYTES;
            if event.content.charge.try_add(bytes) {
                if grown > 0 {
                    let more = variants.capacity().max(VARIANTS_FIRST);
                    variants.reserve_exact(more);
                }
                variants.push(Variant { key, head: head.clone(), tail: tail.clone() });
            }
        }
        Frame { head, body, lead, filtered, tail }
    }

    /// The payload as that transport carries it: part of a usual frame, which is rendered if there is none.
    fn body(&self, event: &Event, transport: Transport) -> Bytes {
        let (place, other) = match transport {
            Transport::WebSocket => (&self.first_name, &self.second_name),
            Transport::SseChunked => (&self.sse_chunked, &self.sse_chunked),
            Transport::SsePlain => (&self.sse_plain, &self.sse_plain),
        };
        if let Some(whole) = place.get().or_else(|| other.get()) {
            return whole.body();
        }
        let outcome = if event.is_extensible() { 0 } else { UNCHANGED };
        let stream = usual_stream(event.channel());
        usual(place, event, transport, &stream, outcome).body()
    }

    /// The place of this stream's frame, if its name is spelled the normal way.
    fn usual_place(
        &self,
        channel: &Channel,
        transport: Transport,
        stream: &Stream,
    ) -> Option<&OnceLock<Whole>> {
        match transport {
            Transport::SseChunked => Some(&self.sse_chunked),
            Transport::SsePlain => Some(&self.sse_plain),
            Transport::WebSocket if stream.spelling.is_some() => None,
            Transport::WebSocket => {
                let (first, second) = usual_kinds(channel);
                if stream.kind == first {
                    Some(&self.first_name)
                } else {
                    (Some(stream.kind) == second).then_some(&self.second_name)
                }
            }
        }
    }
}

/// The usual frame of that place. Room for it is reserved before it is rendered, so that threads that need it at once
/// render it once and count it once.
fn usual<'a>(
    place: &'a OnceLock<Whole>,
    event: &Event,
    transport: Transport,
    stream: &Stream,
    outcome: u16,
) -> Cow<'a, Whole> {
    if let Some(whole) = place.get() {
        return Cow::Borrowed(whole);
    }
    let charge = &event.content.charge;
    let reserved = render::whole_len_max(event, transport, stream) + SHARED_OVERHEAD_BYTES;
    if !charge.try_add(reserved) {
        return Cow::Owned(render::whole(event, transport, stream, outcome));
    }
    let mut unused = reserved;
    let whole = place.get_or_init(|| {
        let whole = render::whole(event, transport, stream, outcome);
        let used = whole.bytes.len() + SHARED_OVERHEAD_BYTES;
        debug_assert!(used <= reserved, "{used} of {reserved} bytes");
        unused = reserved.saturating_sub(used);
        whole
    });
    charge.give_back(unused);
    Cow::Borrowed(whole)
}

/// The names under which a channel's messages are usually delivered.
fn usual_kinds(channel: &Channel) -> (StreamKind, Option<StreamKind>) {
    use StreamKind::*;
    match channel {
        Channel::Public { origin: Origin::Any, media: false } => (Public, Some(PublicAllowLocalOnly)),
        Channel::Public { origin: Origin::Any, media: true } => {
            (PublicMedia, Some(PublicAllowLocalOnlyMedia))
        }
        Channel::Public { origin: Origin::Local, media: false } => (PublicLocal, None),
        Channel::Public { origin: Origin::Local, media: true } => (PublicLocalMedia, None),
        Channel::Public { origin: Origin::Remote, media: false } => (PublicRemote, None),
        Channel::Public { origin: Origin::Remote, media: true } => (PublicRemoteMedia, None),
        Channel::Hashtag { local: false, .. } => (Hashtag, None),
        Channel::Hashtag { local: true, .. } => (HashtagLocal, None),
        Channel::Notifications(_) => (User, Some(UserNotification)),
        Channel::Direct(_) => (Direct, None),
        Channel::List(_) => (List, None),
        // Nothing of a system channel is ever delivered.
        Channel::Account(_) | Channel::AccessToken(_) | Channel::System(_) => (User, None),
    }
}

/// The stream that most clients of a channel asked for.
fn usual_stream(channel: &Channel) -> Stream {
    let param = match channel {
        Channel::Hashtag { tag, .. } => Param::Tag(tag.clone()),
        Channel::List(id) => Param::List(*id),
        _ => Param::None,
    };
    Stream { kind: usual_kinds(channel).0, allow_local_only: false, param, spelling: None }
}
