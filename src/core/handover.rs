//! What the rooms hand to each other: a connected client on its way to a reactor, commands to the
//! ingest, deliveries to a reactor, requests that a client sends on its WebSocket.
//!
//! The way of a newcomer (`S` is its socket):
//!
//! 1. The door looks the token up and sends [`Command::Hold`] with the system channels and the channels of
//!    the stream. The ingest subscribes, sets presence keys, and answers when *all* are confirmed.
//! 2. The door looks the token up once more if the first look-up was before that answer.
//! 3. The door sends [`Command::Attach`]; the ingest turns it into a [`Delivery`] in the reactor's mailbox,
//!    in order with the events it reads. A kill seen between 1 and 3 refuses the attachment.
//! 4. The reactor puts the client into its tables and only then writes the response head.
//!
//! A client that subscribes by message is registered first ([`Command::Subscribe`]) and confirmed later, as in
//! Node: whatever Redis sends on the channel from then on is the client's.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::core::event::{Event, Transport};
use crate::core::report::Probe;
use crate::core::stream::{Channel, Channels, Id, Scopes, Stream};

/// A client's place: which reactor, where in its slab, and the how-manieth user of that place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClientId {
    /// The reactor's number, from 0.
    pub reactor: u16,
    /// The place in its slab.
    pub index: u32,
    /// Counts the clients that had this place.
    pub generation: u32,
}

impl std::fmt::Display for ClientId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}-{}", self.reactor, self.index, self.generation)
    }
}

/// Who a connection belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Viewer {
    /// The account; 0 in `--no-database` mode, where nobody has one.
    pub account: Id,
    /// The access token's id; 0 likewise.
    pub token: Id,
    /// What the token may do.
    pub scopes: Scopes,
}

/// A subscription that a client is about to have.
#[derive(Debug)]
pub struct NewSubscription {
    /// What was asked for.
    pub stream: Stream,
    /// Its channels, all held by the ticket.
    pub channels: Channels,
    /// Whose view it is; 0 in `--no-database` mode.
    pub account: Id,
}

/// A client that the door has let in.
#[derive(Debug)]
pub struct NewClient<S> {
    /// The connection, non-blocking, nothing of the response written yet.
    pub socket: S,
    /// How it wants its messages.
    pub transport: Transport,
    /// Who it is. Its system channels are `AccessToken(token)` and `System(account)`, where not 0.
    pub viewer: Viewer,
    /// When its token expires, in seconds since 1970.
    pub expires_at: Option<u64>,
    /// The response head, the SSE greeting, and any frame that follows at once (an error on a WebSocket).
    pub head: Bytes,
    /// What the client sent behind its request (WebSocket only).
    pub read_ahead: Bytes,
    /// The stream asked for in the request, if any.
    pub subscription: Option<NewSubscription>,
    /// Shared by all clients of one address, where those are limited: to be kept as long as the client, since
    /// the door counts its holders.
    pub address: Option<Arc<()>>,
    /// The id of the request that opened it, where the log is to say how it ends.
    pub request: Option<Box<str>>,
}

/// Names a hold between its request and its attachment. Chosen by the door, never 0, never reused.
pub type Ticket = u64;

/// Why a hold or an attachment failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HoldError {
    /// Redis is away, or was lost while waiting.
    #[error("Redis is away")]
    RedisAway,
    /// Redis refused the subscription (ACL).
    #[error("Redis refused the subscription")]
    Refused,
    /// Redis refuses to set presence keys, without which Rails publishes nothing for the newcomer.
    #[error("Redis refuses to set presence keys")]
    PresenceRefused,
    /// A kill came for the token or the account.
    #[error("the token was revoked")]
    Killed,
}

/// Called by the ingest, from its thread, exactly once: it must not block.
pub type Reply = Box<dyn FnOnce(Result<(), HoldError>) + Send>;

/// What is asked of the ingest. One queue, so the order is the senders' order.
pub enum Command<S> {
    /// Subscribe to these channels (reference-counted), set their presence keys, and say when all of that
    /// is confirmed.
    Hold {
        /// The new ticket's name.
        ticket: Ticket,
        /// Each channel at most once.
        channels: SmallVec<[Channel; 4]>,
        /// The answer.
        reply: Reply,
    },
    /// Hand the ticket's references over to a newcomer. If a kill came since the hold was
    /// confirmed, or Redis was lost, the answer is an error, the references are released, and the
    /// client comes back through `refused`.
    Attach {
        /// A confirmed ticket.
        ticket: Ticket,
        /// The reactor's number.
        reactor: u16,
        /// The newcomer.
        client: Box<NewClient<S>>,
        /// Called with the client when it is refused, so that the door can answer on its socket.
        refused: Box<dyn FnOnce(HoldError, Box<NewClient<S>>) + Send>,
    },
    /// One more subscription for a WebSocket client, answering its [`SessionRequest`]. The reactor gets it at once
    /// ([`Delivery::Subscription`]), and the client owns its references; the answer says when all is confirmed. After
    /// an error the reactor is to be told ([`Delivery::Refused`]).
    Subscribe {
        /// Names the answer that is waited for.
        ticket: Ticket,
        /// The client.
        client: ClientId,
        /// What it subscribes to.
        subscription: NewSubscription,
        /// The answer.
        reply: Reply,
    },
    /// The ticket's owner left, or failed a check: release what it holds, confirmed or not. Nobody waits for the
    /// ticket's answer any more.
    Cancel(Ticket),
    /// A client or subscription ended: release these references. Filtered channels carry the account
    /// whose view they were.
    Release(Vec<(Channel, Id)>),
    /// The presence keys of these channels are set, as asked for in that epoch. Keys of an earlier one may
    /// be gone.
    PresenceSet(Vec<Channel>, u32),
    /// Redis refuses to set presence keys, or does so no longer: whoever needs one is refused at once.
    PresenceRefused(bool),
}

impl<S> std::fmt::Debug for Command<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Command::Hold { ticket, channels, .. } => write!(f, "Hold({ticket}, {channels:?})"),
            Command::Attach { ticket, reactor, .. } => write!(f, "Attach({ticket}, to {reactor})"),
            Command::Subscribe { ticket, client, .. } => write!(f, "Subscribe({ticket}, {client})"),
            Command::Cancel(ticket) => write!(f, "Cancel({ticket})"),
            Command::Release(channels) => write!(f, "Release({channels:?})"),
            Command::PresenceSet(channels, epoch) => write!(f, "PresenceSet({channels:?}, {epoch})"),
            Command::PresenceRefused(refused) => write!(f, "PresenceRefused({refused})"),
        }
    }
}

/// What a reactor gets, in the order that ingest decided.
#[derive(Debug)]
pub enum Delivery<S> {
    /// A message of a channel, for all subscriptions that were live when ingest read it.
    Event(Arc<Event>),
    /// A kill for a token or an account, on that system channel.
    Kill(Channel),
    /// A newcomer, live from the next message on: `seq` is that of the last message read.
    Client(Box<NewClient<S>>, u64),
    /// One more subscription of a client, live after `seq`. Its confirmation follows as an answer.
    Subscription(ClientId, NewSubscription, u64),
    /// The door's answer to a [`SessionRequest`]: a text frame's JSON to send (none where the answer is silence).
    Answer(ClientId, Option<Bytes>),
    /// The door's answer to a request for that stream, which failed: if the client has the subscription already, it
    /// ends.
    Refused(ClientId, Stream, Bytes),
    /// Redis was lost: every client here may have missed something from now on. The new epoch's number.
    Gap(u32),
    /// Redis is back and everything is subscribed again.
    Regained,
    /// A message of this channel was too long to relay: its clients are told of the gap.
    ChannelGap(Channel),
    /// Close everyone, spread over that many milliseconds.
    Drain(u64),
    /// A question about this reactor's clients, answered from its thread between two turns.
    Probe(Probe),
}

/// A subscribe or unsubscribe message that needs more than the reactor knows (a list's owner, Redis).
/// One at a time per client: the next one is sent after the answer to this one.
#[derive(Debug)]
pub struct SessionRequest {
    /// Who asks.
    pub client: ClientId,
    /// On whose behalf.
    pub viewer: Viewer,
    /// What is wanted.
    pub want: Want,
}

/// What a client's message asks for, after the checks that need no one else.
#[derive(Clone, PartialEq, Debug)]
pub enum Want {
    /// Subscribe to this stream; scopes were checked, and the client does not have it yet.
    Subscribe(Stream),
    /// Unsubscribe from a list that the client is not subscribed to: silence if it is the account's own,
    /// else the unsubscribe error (as Node, which checks the owner first).
    UnsubscribeList(Id),
}

/// What goes to the audience stage, in ingest's order. Everything that is published on a filtered channel
/// passes through it, so that a `delete` cannot overtake its `update`.
#[derive(Debug)]
pub enum StageItem {
    /// A message of a filtered channel, for the reactors whose bit is set.
    Event(Arc<Event>, u16),
    /// A message of a filtered channel was too long to relay: for the reactors whose bit is set, in order with its
    /// other messages.
    ChannelGap(Channel, u16),
    /// One more connection of that account watches that channel.
    Join(Channel, Id),
    /// One fewer.
    Leave(Channel, Id),
    /// The account's custom filters changed.
    FiltersChanged(Id),
}
