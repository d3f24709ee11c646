//! Which channels are subscribed, for whom, and who waits for that.
//!
//! One table, channel → 8 bytes (`state`): references, the reactors that have a client on it, how many commands are
//! in flight, and a few flags. What is wanted (a channel has references) is compared with what was last sent
//! whenever a batch of commands is taken, so a channel that comes and goes between two batches costs Redis
//! nothing. Commands and replies pass one ordered connection and each command has one reply per channel:
//! when the last one in flight is answered, the last one sent is what holds. That is all it takes to be
//! right for any interleaving.
//!
//! A newcomer's *ticket* holds references before its client is anywhere else. It is ready when each of its
//! channels is confirmed and has its presence key; system channels have no such key. After a lost
//! connection everything that is referenced is subscribed and set again before any ticket gets ready.
//! The ticket of a client that is there already (`subscribe`) only waits: the references are the client's from the
//! start.
//!
//! Invariants: `refs` is the number of tickets and clients that hold the channel; a waiting list exists
//! exactly while a ticket waits for its channel; a channel with a client on it is never unsubscribed.
//!
//! Bounds: the table by the channels referenced or in flight, the lists of commands by the table; the list
//! of presence keys to set is cleaned whenever it outgrows the channels that want one, that of keys nobody needs
//! any more has a bound of its own. A kill looks at every
//! open ticket, of which the door allows a bounded number. Each gives its memory back as its entries go.
//!
//! Tested by properties against a naive model of a Redis that executes commands in order.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::core::handover::{HoldError, Ticket};
use crate::core::slack::Slack;
use crate::core::stream::Channel;

mod state;
#[cfg(test)]
mod tests;

use state::{ALONE, ASKED, PRESENT, REFUSED, RESUMING, SENT, States, UNSENT};

/// How many reactors there can be: the bits of a channel's mask.
pub const REACTORS_MAX: usize = u16::BITS as usize;

/// The channels that a ticket holds.
pub type Held = SmallVec<[Channel; 4]>;

/// The table of subscriptions. `R` is what a ticket's owner is answered with; it comes back in
/// [`take_finished`](Self::take_finished).
#[derive(Debug)]
pub struct Subscriptions<R> {
    link: Link,
    table: States,
    referenced: usize,
    tickets: HashMap<Ticket, Open<R>, RandomState>,
    waiting: HashMap<Channel, SmallVec<[Ticket; 2]>, RandomState>,
    /// Channels whose wanted state differs from the one last sent. Each once: flag `UNSENT`.
    unsent: VecDeque<Channel>,
    /// Channels that want their presence key. Those without the flag `ASKED` are stale.
    unset: VecDeque<Channel>,
    unset_clean_at: usize,
    /// Channels whose presence key may be set though nobody holds them any more.
    stale: VecDeque<Channel>,
    stale_bytes: usize,
    /// Redis refuses to set presence keys.
    presence_refused: bool,
    resuming: usize,
    regained: bool,
    finished: Vec<(R, Result<(), HoldError>)>,
    /// Tells in which part of the table a channel is for [`refresh`](Self::refresh).
    sharding: RandomState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    /// No connection: nothing can be held.
    Away,
    /// Connected, but not everything that was referenced is back. Tickets wait.
    Resuming,
    /// Everything is as wanted, or on its way.
    Live,
}

/// More commands in flight for one channel wait for a reply first.
const IN_FLIGHT_MAX: u8 = u8::MAX;
const UNSET_CLEAN_MIN: usize = 1024;

/// Hashtags beyond this, in bytes of their text and [`STALE_ENTRY_BYTES`] for each, are not waited for: their keys
/// end by themselves. Clients choose the text.
const STALE_BYTES_MAX: usize = 4 << 20;

/// What a hashtag takes besides its text: its place in the list, and what the allocator adds.
const STALE_ENTRY_BYTES: usize = 96;

#[derive(Debug)]
struct Open<R> {
    /// Empty once killed: its references are given back then.
    channels: Held,
    /// Channels that are not ready.
    missing: usize,
    /// None when it was answered.
    reply: Option<R>,
    killed: bool,
    /// The references are a client's: the ticket only waits for the answer.
    only_waits: bool,
}

impl<R> Open<R> {
    /// The references that end with the ticket.
    fn held(&self) -> &[Channel] {
        if self.only_waits { &[] } else { &self.channels }
    }
}

impl<R> Default for Subscriptions<R> {
    fn default() -> Subscriptions<R> {
        Subscriptions {
            link: Link::Away,
            table: States::default(),
            referenced: 0,
            tickets: HashMap::default(),
            waiting: HashMap::default(),
            unsent: VecDeque::new(),
            unset: VecDeque::new(),
            unset_clean_at: UNSET_CLEAN_MIN,
            stale: VecDeque::new(),
            stale_bytes: 0,
            presence_refused: false,
            resuming: 0,
            regained: false,
            finished: Vec::new(),
            sharding: RandomState::default(),
        }
    }
}

/// What a channel takes in the list of those whose key is to end; none for those whose keys end by themselves.
fn stale_bytes(channel: &Channel) -> Option<usize> {
    match channel {
        Channel::Hashtag { tag, .. } => Some(tag.as_str().len() + STALE_ENTRY_BYTES),
        _ => None,
    }
}

/// What tickets and clients ask for.
impl<R> Subscriptions<R> {
    /// Opens a ticket: references its channels, and answers through `reply` when all are ready. While Redis
    /// is away it is answered at once, and holds nothing.
    pub fn hold(&mut self, ticket: Ticket, channels: Held, reply: R) {
        if self.link == Link::Away {
            self.finished.push((reply, Err(HoldError::RedisAway)));
            return;
        }
        if self.is_refused(&channels) {
            self.finished.push((reply, Err(HoldError::PresenceRefused)));
            return;
        }
        self.open(ticket, channels, reply, false);
    }

    /// References channels for a client of that reactor, which has to [`release`](Self::release) each of them, and
    /// answers through `reply` when all are ready. False, and nothing referenced, while Redis is away.
    pub fn subscribe(&mut self, ticket: Ticket, channels: Held, reactor: u16, reply: R) -> bool {
        if self.link == Link::Away {
            self.finished.push((reply, Err(HoldError::RedisAway)));
            return false;
        }
        if self.is_refused(&channels) {
            self.finished.push((reply, Err(HoldError::PresenceRefused)));
            return false;
        }
        let of_client = channels.clone();
        self.open(ticket, channels, reply, true);
        self.belong(&of_client, reactor);
        true
    }

    fn open(&mut self, ticket: Ticket, channels: Held, reply: R, only_waits: bool) {
        self.cancel(ticket);
        let mut missing = 0;
        for channel in &channels {
            if !self.acquire(channel) {
                missing += 1;
                self.waiting.entry(channel.clone()).or_default().push(ticket);
            }
        }
        let open = Open { channels, missing, reply: Some(reply), killed: false, only_waits };
        self.tickets.insert(ticket, open);
        self.finish_if_ready(ticket);
    }

    /// Closes a ticket that was answered, and leaves its references to a client of that reactor, which has
    /// to [`release`](Self::release) each of the channels returned. An error leaves nothing held.
    pub fn attach(&mut self, ticket: Ticket, reactor: u16) -> Result<Held, HoldError> {
        match self.tickets.get(&ticket) {
            // The references of all tickets went with the connection.
            None => return Err(HoldError::RedisAway),
            Some(open) if open.killed => {
                self.forget(ticket);
                return Err(HoldError::Killed);
            }
            Some(open) if open.reply.is_some() => {
                self.fail(ticket, HoldError::RedisAway);
                return Err(HoldError::RedisAway);
            }
            Some(_) => {}
        }
        let channels = self.forget(ticket).map(|open| open.channels).unwrap_or_default();
        self.belong(&channels, reactor);
        Ok(channels)
    }

    /// A client of that reactor is on these channels from now on.
    fn belong(&mut self, channels: &[Channel], reactor: u16) {
        for channel in channels {
            if let Some(state) = self.table.get_mut(channel) {
                state.reactors |= 1u16.checked_shl(u32::from(reactor)).unwrap_or(0);
            }
        }
    }

    /// Closes a ticket and gives its references back. Its owner gets no answer any more. An unknown ticket
    /// is one that has failed already.
    pub fn cancel(&mut self, ticket: Ticket) {
        if let Some(open) = self.close(ticket) {
            self.give_back(open.held());
        }
    }

    fn forget(&mut self, ticket: Ticket) -> Option<Open<R>> {
        let open = self.tickets.remove(&ticket);
        self.tickets.give_back();
        open
    }

    /// Gives one reference of a client back.
    pub fn release(&mut self, channel: &Channel) {
        let Some(state) = self.table.get_mut(channel) else {
            debug_assert!(false, "{channel:?} was released by someone who did not hold it");
            return;
        };
        debug_assert!(state.refs > 0);
        state.refs = state.refs.saturating_sub(1);
        if state.refs == 0 {
            state.reactors = 0;
            let untouched = state.has(ASKED);
            state.flags &= !(PRESENT | ASKED | REFUSED | ALONE);
            self.referenced -= 1;
            if !untouched {
                self.note_stale(channel);
            }
            self.settle(channel);
            self.reconcile(channel);
        }
    }

    fn note_stale(&mut self, channel: &Channel) {
        let Some(bytes) = stale_bytes(channel) else { return };
        if self.stale_bytes + bytes <= STALE_BYTES_MAX {
            self.stale_bytes += bytes;
            self.stale.push_back(channel.clone());
        }
    }

    /// A kill was read on that channel. Tickets that hold it are refused, now or when they are attached.
    pub fn killed(&mut self, channel: &Channel) {
        let mut hit: SmallVec<[Ticket; 8]> = SmallVec::new();
        for (ticket, open) in &self.tickets {
            if open.channels.contains(channel) {
                hit.push(*ticket);
            }
        }
        for ticket in hit {
            match self.tickets.get_mut(&ticket) {
                Some(open) if open.reply.is_none() => {
                    open.killed = true;
                    let channels = std::mem::take(&mut open.channels);
                    self.give_back(&channels);
                }
                _ => self.fail(ticket, HoldError::Killed),
            }
        }
    }

    fn acquire(&mut self, channel: &Channel) -> bool {
        let state = self.table.get_or_insert(channel);
        if state.refs == 0 {
            self.referenced += 1;
        }
        state.refs = state.refs.saturating_add(1);
        state.flags &= !REFUSED;
        if !channel.is_system() && !state.has(PRESENT) && state.refs == 1 {
            state.flags |= ASKED;
            self.unset.push_back(channel.clone());
        }
        let ready = state.is_ready(channel);
        self.clean_unset();
        self.reconcile(channel);
        ready
    }

    fn give_back(&mut self, channels: &[Channel]) {
        for channel in channels {
            self.release(channel);
        }
    }

    fn fail(&mut self, ticket: Ticket, error: HoldError) {
        let Some(mut open) = self.close(ticket) else { return };
        if let Some(reply) = open.reply.take() {
            self.finished.push((reply, Err(error)));
        }
        self.give_back(open.held());
    }

    fn close(&mut self, ticket: Ticket) -> Option<Open<R>> {
        let open = self.forget(ticket)?;
        if open.missing > 0 {
            for channel in &open.channels {
                if let Some(list) = self.waiting.get_mut(channel) {
                    list.retain(|waiting| *waiting != ticket);
                    if list.is_empty() {
                        self.waiting.remove(channel);
                    }
                }
            }
            self.waiting.give_back();
        }
        Some(open)
    }

    fn finish_if_ready(&mut self, ticket: Ticket) {
        if self.link != Link::Live {
            return;
        }
        if let Some(open) = self.tickets.get_mut(&ticket)
            && open.missing == 0
            && let Some(reply) = open.reply.take()
        {
            self.finished.push((reply, Ok(())));
            if open.only_waits {
                self.forget(ticket);
            }
        }
    }
}

/// What Redis says.
impl<R> Subscriptions<R> {
    /// Redis confirmed a SUBSCRIBE of that channel.
    pub fn confirmed(&mut self, channel: &Channel) {
        if let Some(state) = self.table.get_mut(channel) {
            state.flags &= !ALONE;
        }
        self.answered(channel);
    }

    /// Redis confirmed an UNSUBSCRIBE of that channel.
    pub fn unsubscribed(&mut self, channel: &Channel) {
        self.answered(channel);
    }

    /// Redis answered one SUBSCRIBE of these channels with an error. It does not say which channel it
    /// minds: of several each is sent again by itself; a single one is refused to all who wait for it.
    pub fn refused(&mut self, channels: &[Channel]) {
        for channel in channels {
            let Some(state) = self.table.get_mut(channel) else { continue };
            state.in_flight = state.in_flight.saturating_sub(1);
            if state.in_flight > 0 || !state.has(SENT) {
                self.settle(channel);
                self.reconcile(channel);
                continue;
            }
            state.flags &= !SENT;
            if channels.len() > 1 {
                state.flags |= ALONE;
            } else {
                state.flags = state.flags & !ALONE | REFUSED;
                for ticket in self.take_waiting(channel) {
                    self.fail(ticket, HoldError::Refused);
                }
            }
            self.settle(channel);
            self.reconcile(channel);
        }
    }

    /// The presence key of that channel was set, over the present connection's lifetime.
    pub fn presence_set(&mut self, channel: &Channel) {
        if let Some(state) = self.table.get_mut(channel)
            && state.refs > 0
            && !state.has(PRESENT)
            && self.link != Link::Away
        {
            state.flags = state.flags & !ASKED | PRESENT;
            self.settle(channel);
        }
    }

    /// Redis refuses to set presence keys, or does so no longer. Tickets that need one fail, those to come too.
    pub fn refuse_presence(&mut self, refused: bool) {
        self.presence_refused = refused;
        let open = self.tickets.iter().filter(|(_, open)| open.reply.is_some());
        let hit: Vec<Ticket> =
            open.filter(|(_, open)| self.is_refused(&open.channels)).map(|(ticket, _)| *ticket).collect();
        for ticket in hit {
            self.fail(ticket, HoldError::PresenceRefused);
        }
    }

    /// Whether a ticket for these channels would wait for keys that Redis refuses to set: its own, or those of
    /// everything that is to be resumed first.
    fn is_refused(&self, channels: &[Channel]) -> bool {
        let is_set = |channel: &Channel| {
            channel.is_system() || self.table.get(channel).is_some_and(|state| state.has(PRESENT))
        };
        self.presence_refused && (self.link != Link::Live || !channels.iter().all(is_set))
    }

    /// The connection was lost: every ticket fails, clients keep their references.
    pub fn connection_lost(&mut self) {
        self.link = Link::Away;
        for (_, open) in self.tickets.drain() {
            for channel in open.held() {
                if let Some(state) = self.table.get_mut(channel) {
                    state.refs = state.refs.saturating_sub(1);
                }
            }
            if let Some(reply) = open.reply {
                self.finished.push((reply, Err(HoldError::RedisAway)));
            }
        }
        self.table.retain(|state| {
            state.in_flight = 0;
            state.flags = 0;
            state.refs > 0
        });
        self.referenced = self.table.len();
        self.tickets.give_back();
        self.waiting = HashMap::default();
        self.unsent = VecDeque::new();
        self.unset = VecDeque::new();
        self.unset_clean_at = UNSET_CLEAN_MIN;
        // These keys end by themselves.
        self.stale = VecDeque::new();
        self.stale_bytes = 0;
        self.resuming = 0;
        self.regained = false;
    }

    /// A new connection stands, with no subscriptions and no presence keys that can be relied on.
    pub fn connected(&mut self) {
        debug_assert!(self.link == Link::Away);
        self.link = Link::Resuming;
        self.resuming = self.table.len();
        for (channel, state) in self.table.iter_mut() {
            state.flags = UNSENT | RESUMING;
            self.unsent.push_back(channel.clone());
            if !channel.is_system() {
                state.flags |= ASKED;
                self.unset.push_back(channel);
            }
        }
        self.unset_clean_at = UNSET_CLEAN_MIN.max(self.unset.len() * 2);
        if self.resuming == 0 {
            self.go_live();
        }
    }

    fn answered(&mut self, channel: &Channel) {
        if let Some(state) = self.table.get_mut(channel) {
            state.in_flight = state.in_flight.saturating_sub(1);
            self.settle(channel);
            self.reconcile(channel);
        }
    }

    /// Looks whether the channel got ready, and tells those who wait for that.
    fn settle(&mut self, channel: &Channel) {
        let Some(state) = self.table.get_mut(channel) else { return };
        let ready = state.is_ready(channel);
        let resumed = state.has(RESUMING) && (ready || !state.wanted());
        if resumed {
            state.flags &= !RESUMING;
            self.resuming -= 1;
        }
        if ready {
            for ticket in self.take_waiting(channel) {
                if let Some(open) = self.tickets.get_mut(&ticket) {
                    open.missing -= 1;
                }
                self.finish_if_ready(ticket);
            }
        }
        if resumed && self.resuming == 0 {
            self.go_live();
        }
    }

    fn take_waiting(&mut self, channel: &Channel) -> SmallVec<[Ticket; 2]> {
        let waiting = self.waiting.remove(channel).unwrap_or_default();
        self.waiting.give_back();
        waiting
    }

    fn go_live(&mut self) {
        self.link = Link::Live;
        self.regained = true;
        let finished = &mut self.finished;
        self.tickets.retain(|_, open| {
            if open.missing > 0 {
                return true;
            }
            finished.extend(open.reply.take().map(|reply| (reply, Ok(()))));
            !open.only_waits
        });
    }

    /// Compares what is wanted with what was sent; forgets a channel about which there is nothing to know.
    fn reconcile(&mut self, channel: &Channel) {
        let Some(state) = self.table.get_mut(channel) else { return };
        if state.has(UNSENT) {
            return;
        }
        if self.link != Link::Away && state.wanted() != state.has(SENT) {
            if state.in_flight < IN_FLIGHT_MAX {
                state.flags |= UNSENT;
                self.unsent.push_back(channel.clone());
            }
        } else if state.refs == 0 && state.in_flight == 0 {
            self.table.remove(channel);
        }
    }

    /// Keeps the list of keys to set from growing with newcomers who come and go while no key can be set.
    fn clean_unset(&mut self) {
        if self.unset.len() < self.unset_clean_at {
            return;
        }
        let table = &mut self.table;
        self.unset.retain(|channel| match table.get_mut(channel) {
            Some(state) if state.has(ASKED) => {
                state.flags &= !ASKED;
                true
            }
            _ => false,
        });
        for channel in &self.unset {
            if let Some(state) = table.get_mut(channel) {
                state.flags |= ASKED;
            }
        }
        self.unset_clean_at = UNSET_CLEAN_MIN.max(self.unset.len() * 2);
    }
}

/// What is to be done, and what is.
impl<R> Subscriptions<R> {
    /// Takes the next commands to send, at most `max` channels in each list, and counts them as in flight.
    /// The lists have no channel in common and must be empty. Nothing in either: there is nothing to send.
    pub fn next_commands(
        &mut self,
        max: usize,
        subscribe: &mut Vec<Channel>,
        unsubscribe: &mut Vec<Channel>,
    ) {
        debug_assert!(subscribe.is_empty() && unsubscribe.is_empty());
        while subscribe.len() < max && unsubscribe.len() < max {
            let Some(channel) = self.unsent.pop_front() else { return };
            self.unsent.give_back();
            let Some(state) = self.table.get_mut(&channel) else { continue };
            if state.has(ALONE) && state.wanted() && !subscribe.is_empty() {
                self.unsent.push_front(channel);
                return;
            }
            state.flags &= !UNSENT;
            if state.wanted() == state.has(SENT) {
                self.reconcile(&channel);
                continue;
            }
            state.flags ^= SENT;
            state.in_flight += 1;
            if !state.has(SENT) {
                unsubscribe.push(channel);
                continue;
            }
            let alone = state.has(ALONE);
            subscribe.push(channel);
            if alone {
                return;
            }
        }
    }

    /// Takes at most `max` channels whose presence keys are to be set.
    pub fn next_presence(&mut self, max: usize, into: &mut Vec<Channel>) {
        while into.len() < max {
            let Some(channel) = self.unset.pop_front() else { return };
            self.unset.give_back();
            if let Some(state) = self.table.get_mut(&channel)
                && state.has(ASKED)
            {
                state.flags &= !ASKED;
                into.push(channel);
            }
        }
    }

    /// Takes at most `max` hashtags that nobody holds any more and whose presence keys may be set. Names of
    /// hashtags are a client's to invent, so their keys would pile up in Redis; those of other channels are
    /// as many as accounts and lists, and last until they end by themselves. To be asked for before
    /// [`next_presence`](Self::next_presence), and done in that order: a hashtag may be wanted again by then.
    pub fn next_stale(&mut self, max: usize, into: &mut Vec<Channel>) {
        while into.len() < max {
            let Some(channel) = self.stale.pop_front() else { return };
            self.stale_bytes -= stale_bytes(&channel).unwrap_or(0);
            self.stale.give_back();
            if self.table.get(&channel).is_none_or(|state| state.refs == 0) {
                into.push(channel);
            }
        }
    }

    /// Lists the channels of one of `shards` parts of the table whose presence keys are to be set again.
    pub fn refresh(&self, shard: u64, shards: u64, into: &mut Vec<Channel>) {
        for (channel, state) in self.table.iter() {
            if state.has(PRESENT) && self.sharding.hash_one(&channel) % shards.max(1) == shard {
                into.push(channel);
            }
        }
    }

    /// Moves the tickets that were decided to the end of `into`.
    pub fn take_finished(&mut self, into: &mut Vec<(R, Result<(), HoldError>)>) {
        into.append(&mut self.finished);
        self.finished.give_back();
    }

    /// Whether everything is subscribed again since the last call: once per connection.
    pub fn take_regained(&mut self) -> bool {
        std::mem::take(&mut self.regained)
    }

    /// The reactors with a client that is owed a message of that channel, as bits; none for a channel that nobody holds.
    ///
    /// A message that comes while a command is unanswered was published before an UNSUBSCRIBE on its way to Redis.
    /// Clients that came since are not owed it, and what Redis publishes next would be missing behind it. A kill
    /// counts all the same.
    pub fn reactors(&self, channel: &Channel) -> Option<u16> {
        let state = self.table.get(channel).filter(|state| state.refs > 0)?;
        Some(if state.in_flight > 0 && !channel.is_system() { 0 } else { state.reactors })
    }

    /// Channels that somebody holds.
    pub fn referenced(&self) -> usize {
        self.referenced
    }

    /// Tickets that are open.
    pub fn open_tickets(&self) -> usize {
        self.tickets.len()
    }

    /// Whether something is known of that channel: somebody holds it, or a command for it is in flight.
    pub fn knows(&self, channel: &Channel) -> bool {
        self.table.get(channel).is_some()
    }

    /// Whether tickets can get ready now.
    pub fn is_live(&self) -> bool {
        self.link == Link::Live
    }

    /// The entries for which all tables and lists have room.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.table.capacity()
            + self.tickets.capacity()
            + self.waiting.capacity()
            + self.unsent.capacity()
            + self.unset.capacity()
            + self.stale.capacity()
    }
}
