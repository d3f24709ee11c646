//! A client in a reactor: plain data, 112 bytes, no task, no buffer, no timer object while it idles.
//!
//! | what | bytes |
//! |---|---|
//! | socket | 8 |
//! | account, token | 16 |
//! | first subscription inline (further ones on the heap) | 40 |
//! | place in the log, offset, subscription at that place | 14 |
//! | extra (a pointer, null while idle) | 8 |
//! | messages owed, last progress, generation, system slots, flags | 28 |

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use crate::core::event::{Event, Transport};
use crate::core::handover::{ClientId, Viewer};
use crate::core::log::Place;
use crate::core::session::StreamRequest;
use crate::core::stream::{Channel, Channels, Id, Param, Scopes, Stream, StreamKind};
use crate::core::table::{SYSTEM, SubIndex};

/// A client's connection, as far as decisions need it. Non-blocking.
pub trait Socket {
    /// Reads what is there; 0 is the end of the client's sending.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes from the slices, in order; fewer bytes than given means that the socket is full, and that the
    /// driver will say when it is writable.
    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Ends our side of the connection, after everything written.
    fn finish(&mut self);
    /// Makes the coming close a reset: what was written and not sent is thrown away.
    fn reset(&mut self);
}

/// A subscription of a client.
#[derive(Debug)]
pub(crate) struct Subscription {
    /// It gets messages read after this one.
    pub live_after: u64,
    /// The membership's slot in the table, for each channel.
    pub slots: [u32; 2],
    /// The whole stream where kind and flag don't say it all.
    stream: Option<Arc<Stream>>,
    kind: StreamKind,
    allow_local_only: bool,
}

const _: () = assert!(std::mem::size_of::<Subscription>() == 32);

impl Subscription {
    pub fn new(stream: Stream, live_after: u64) -> Subscription {
        let (kind, allow_local_only) = (stream.kind, stream.allow_local_only);
        let plain = stream.param == Param::None && stream.spelling.is_none();
        let stream = (!plain).then(|| Arc::new(stream));
        Subscription { live_after, slots: [0; 2], stream, kind, allow_local_only }
    }

    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    pub fn stream(&self) -> &Stream {
        match &self.stream {
            Some(stream) => stream,
            None => &PLAIN[self.kind as usize][usize::from(self.allow_local_only)],
        }
    }

    pub fn channels(&self, account: Id, scopes: Scopes) -> Channels {
        self.stream().channels(account, scopes.notifications())
    }
}

/// The streams without parameter, so that no client needs one of its own.
static PLAIN: [[Stream; 2]; StreamKind::ALL.len()] = {
    const fn plain(kind: StreamKind, allow_local_only: bool) -> Stream {
        Stream { kind, allow_local_only, param: Param::None, spelling: None }
    }
    const fn both(kind: StreamKind) -> [Stream; 2] {
        [plain(kind, false), plain(kind, true)]
    }
    [
        both(StreamKind::ALL[0]),
        both(StreamKind::ALL[1]),
        both(StreamKind::ALL[2]),
        both(StreamKind::ALL[3]),
        both(StreamKind::ALL[4]),
        both(StreamKind::ALL[5]),
        both(StreamKind::ALL[6]),
        both(StreamKind::ALL[7]),
        both(StreamKind::ALL[8]),
        both(StreamKind::ALL[9]),
        both(StreamKind::ALL[10]),
        both(StreamKind::ALL[11]),
        both(StreamKind::ALL[12]),
        both(StreamKind::ALL[13]),
    ]
};

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Gets its messages.
    Open,
    /// May have missed something: gets nothing more but its close.
    Gapped,
    /// Its last bytes wait to be written.
    Closing,
    /// All was written; waits for the peer to close.
    Lingering,
}

/// One client.
#[derive(Debug)]
pub(crate) struct Client<S> {
    pub socket: S,
    pub account: Id,
    pub token: Id,
    pub subs: SmallVec<[Subscription; 1]>,
    /// While `owed > 0`: the first log entry that it has not finished is at or after this place.
    pub place: Place,
    pub extra: Option<Box<Extra>>,
    /// Messages that it still has to get.
    pub owed: u32,
    /// Bytes written of the frame at `place`.
    pub offset: u32,
    /// When it last finished a whole frame, or began to owe: milliseconds since the start.
    pub progress_ms: u32,
    pub generation: u32,
    pub system_slots: [u32; 2],
    /// At `place`, subscriptions before this one are done.
    pub sub_at: SubIndex,
    pub scopes: Scopes,
    pub transport: Transport,
    pub phase: Phase,
    pub flags: Flags,
}

/// What else is so about a client, a bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags(u8);

impl Flags {
    /// Stands in the list of those who get a message in this turn.
    pub const DIRTY: u8 = 1;
    /// Its socket was full; it goes on when that is writable.
    pub const BLOCKED: u8 = 2;
    /// A ping was sent and no pong came yet.
    pub const AWAITS_PONG: u8 = 8;
    /// Stands in the list of those whose socket may have more to read.
    pub const READ_MORE: u8 = 16;
    /// The peer ended its side while there was more to read.
    pub const HUNG_UP: u8 = 32;
    /// Stands in the list of those to be answered.
    pub const ANSWERED: u8 = 64;

    pub fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// Sets the flag; true if it was not set before.
    pub fn set(&mut self, flag: u8) -> bool {
        let news = !self.has(flag);
        self.0 |= flag;
        news
    }

    pub fn clear(&mut self, flag: u8) {
        self.0 &= !flag;
    }
}

/// What few clients need, and none for long.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Bytes that are no log entries: the response head, pongs, errors, the close. Written first, unless a
    /// frame of the log is half written.
    pub out: Out,
    /// A frame whose entry was given up while it was half written.
    pub half_written: Option<HalfWritten>,
    /// Set while the socket is full or was full and output remains.
    pub lag: Option<Lag>,
    /// Subscribe and unsubscribe messages that wait for the one in flight.
    pub waiting: VecDeque<(bool, StreamRequest)>,
    /// The text in `waiting`.
    pub waiting_bytes: usize,
    /// A request of this client is at the door.
    pub in_flight: bool,
}

/// A frame whose entry was given up while it was half written. Its rest leads [`Extra::out`]; the event is held so
/// that its bytes stay counted, which makes the client a holder of the budget like one that is owed messages.
#[derive(Debug)]
pub(crate) struct HalfWritten {
    pub event: Arc<Event>,
    /// The place of the entry.
    pub place: Place,
    /// Bytes that are still to be written.
    pub left: usize,
}

/// Kept for a client whose socket was full, so that neither a status page nor the choice of whom to close has to
/// walk through what the client is owed.
#[derive(Debug)]
pub(crate) struct Lag {
    /// Index in the relay's list of lagging clients.
    pub listed_at: u32,
    /// When the kernel last took a byte, or the socket was first full: milliseconds since the start.
    pub taken_ms: u32,
    /// When the oldest message that the client is owed was read, in the same unit.
    pub oldest_ms: u32,
    /// Payload bytes of all messages that the client is owed.
    pub bytes: u64,
}

impl Extra {
    pub fn is_idle(&self) -> bool {
        self.out.is_empty()
            && self.half_written.is_none()
            && self.lag.is_none()
            && self.waiting.is_empty()
            && !self.in_flight
    }
}

/// A queue of bytes that knows its length.
#[derive(Debug, Default)]
pub(crate) struct Out {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Out {
    pub fn push_back(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    pub fn push_front(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_front(chunk);
    }

    pub fn replace_back(&mut self, chunk: Bytes) {
        self.bytes -= self.chunks.pop_back().map_or(0, |last| last.len());
        self.push_back(chunk);
    }

    pub fn back(&self) -> Option<&Bytes> {
        self.chunks.back()
    }

    /// Drops this many bytes from the front.
    pub fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some(first) = self.chunks.front_mut() else { break };
            let part = count.min(first.len());
            first.advance(part);
            if first.is_empty() {
                self.chunks.pop_front();
            }
            count -= part;
            self.bytes -= part;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.chunks.iter()
    }

    /// Chunks.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

impl<S> Client<S> {
    pub fn viewer(&self) -> Viewer {
        Viewer { account: self.account, token: self.token, scopes: self.scopes }
    }

    pub fn id(&self, reactor: u16, index: u32) -> ClientId {
        ClientId { reactor, index, generation: self.generation }
    }

    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Gives the extra's memory back when nothing is in it.
    pub fn tidy(&mut self) {
        if self.extra.as_ref().is_some_and(|extra| extra.is_idle()) {
            self.extra = None;
        }
    }

    /// Whether there are bytes to write.
    pub fn has_output(&self) -> bool {
        self.owed > 0 || self.extra.as_ref().is_some_and(|extra| !extra.out.is_empty())
    }

    /// Whether events are held for this client: messages that it is owed, or a half-written one.
    pub fn holds_events(&self) -> bool {
        self.owed > 0 || self.extra.as_ref().is_some_and(|extra| extra.half_written.is_some())
    }

    pub fn lag(&self) -> Option<&Lag> {
        self.extra.as_ref()?.lag.as_ref()
    }

    pub fn lag_mut(&mut self) -> Option<&mut Lag> {
        self.extra.as_mut()?.lag.as_mut()
    }

    pub fn system_channels(&self) -> [Option<Channel>; 2] {
        [
            (self.token != 0).then_some(Channel::AccessToken(self.token)),
            (self.account != 0).then_some(Channel::System(self.account)),
        ]
    }

    /// The channel of a membership of this client.
    pub fn channel(&self, sub: SubIndex, leg: u8) -> Option<Channel> {
        if sub == SYSTEM {
            let [token, account] = self.system_channels();
            return if leg == 0 { token } else { account };
        }
        let subscription = self.subs.get(usize::from(sub))?;
        subscription.channels(self.account, self.scopes).into_iter().nth(usize::from(leg))
    }

    /// Where that membership's slot in the table is kept.
    pub fn slot(&mut self, sub: SubIndex, leg: u8) -> Option<&mut u32> {
        let slots = match sub {
            SYSTEM => &mut self.system_slots,
            _ => &mut self.subs.get_mut(usize::from(sub))?.slots,
        };
        slots.get_mut(usize::from(leg))
    }
}

/// A client as production has it, with a socket of 8 bytes.
const _: () = assert!(std::mem::size_of::<Option<Client<u64>>>() <= 112);
