//! How connections end.
//!
//! The reason is always counted. It is also on the wire, as a close frame or as a comment and the last chunk,
//! if it can stand at a frame's border within [`Limits::close_flush`](crate::limits::Limits::close_flush);
//! otherwise the connection is reset, so that a truncated stream never looks like a whole one and the kernel
//! keeps nothing for a client that will not read.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::output::{Gathered, Owed};
use super::timers::{Timer, is_meant, timer_key};
use super::{Ended, Relay, Socket, wire};
use crate::core::client::{Flags, HalfWritten, Phase};
use crate::core::counters::{CloseReason, add, sub};
use crate::core::handover::ClientId;
use crate::core::slack::Slack;
use crate::core::stream::Channel;
use crate::core::table::SubIndex;
use crate::limits::LINGER;

impl<S: Socket> Relay<S> {
    /// Ends a connection, telling the peer why if it can be told.
    pub(super) fn close(&mut self, index: u32, reason: CloseReason, now: Duration) {
        let Some(client) = self.clients.get(index as usize) else { return };
        match wire::farewell(reason, client.transport) {
            Some(last) => self.close_with(index, reason, last, now),
            None => self.remove(index, reason),
        }
    }

    /// Ends a connection with these bytes as its last.
    pub(super) fn close_with(&mut self, index: u32, reason: CloseReason, last: Bytes, now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if matches!(client.phase, Phase::Closing | Phase::Lingering) {
            return;
        }
        self.abandon(index, reason);
        self.forget(index, reason);
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.phase = Phase::Closing;
        let extra = client.extra();
        extra.waiting = VecDeque::new();
        extra.waiting_bytes = 0;
        extra.in_flight = false;
        if !last.is_empty() {
            extra.out.push_back(last);
        }
        let deadline = timer_key(Timer::CloseDeadline, index, client.generation);
        if !client.has_output() {
            return self.all_written(index, now);
        }
        self.wheel.insert(now + self.limits.close_flush, deadline);
        self.write(index, now);
    }

    /// The close is written: our side ends, and the peer gets a moment to end its own, so that what it sends
    /// meanwhile does not turn the close into a reset.
    pub(super) fn all_written(&mut self, index: u32, now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.phase = Phase::Lingering;
        client.tidy();
        client.socket.finish();
        // Not the key of the close's deadline, which comes first and would end the wait.
        let deadline = timer_key(Timer::LingerDeadline, index, client.generation);
        self.wheel.insert(now + LINGER, deadline);
    }

    /// The socket did not take the last bytes in time, or its client holds events that others need the room of.
    pub(super) fn cut(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.phase == Phase::Closing {
            client.socket.reset();
            self.drop_client(index);
        }
    }

    pub(super) fn linger_deadline(&mut self, index: u32) {
        if self.clients.get(index as usize).is_some_and(|client| client.phase == Phase::Lingering) {
            self.drop_client(index);
        }
    }

    /// The client ended its side.
    pub(super) fn left(&mut self, index: u32) {
        self.remove(index, CloseReason::ClientLeft);
    }

    /// Ends a connection without a word.
    pub(super) fn remove(&mut self, index: u32, reason: CloseReason) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        match client.phase {
            Phase::Open | Phase::Gapped => {
                if client.has_output() || reason != CloseReason::ClientLeft {
                    client.socket.reset();
                }
                self.abandon(index, reason);
                self.forget(index, reason);
            }
            // It was counted when its close began.
            Phase::Closing => client.socket.reset(),
            Phase::Lingering => {}
        }
        self.drop_client(index);
    }

    /// Counts and unlinks a connection that ends; its socket stays for the last bytes.
    fn forget(&mut self, index: u32, reason: CloseReason) {
        self.leave_all(index);
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let system = client.system_channels().iter().flatten().count() as u64;
        self.counters.client_closed(client.transport, system, reason);
        self.talkers.forget(index);
        if !self.requests.is_empty()
            && let Some((request, since)) = self.requests.remove(&index)
        {
            let client_id = ClientId { reactor: self.reactor, index, generation: client.generation };
            let transport = client.transport;
            self.effects.ended.push(Ended { client: client_id, request, transport, reason, since });
        }
    }

    fn drop_client(&mut self, index: u32) {
        let Some(client) = self.clients.remove(index) else { return };
        self.effects.departed += 1;
        // Gone in the turn in which it came: its place may be the next one's, and that one stands in the list itself.
        self.effects.arrived.retain(|arrived| *arrived != index);
        self.talkers.forget(index);
        if !self.addresses.is_empty() {
            self.addresses.remove(&index);
        }
        if !self.expiries.is_empty() {
            self.expiries.remove(&index);
        }
        if let Some(extra) = client.extra {
            if let Some(lag) = &extra.lag {
                self.take_off_list(lag.listed_at);
            }
            if let Some(frame) = &extra.half_written {
                // A frame that was to be finished never was.
                self.half_written_bytes -= frame.event.payload().len() as u64;
                sub(&self.counters.pending, 1);
                self.counters.messages_closed(CloseReason::SocketError, 1);
            }
        }
        if self.removals.is_walk_due(self.clients.len()) {
            self.give_back();
        }
    }

    /// Gives back the memory of clients that left, their timers included. The work is that of looking at all.
    fn give_back(&mut self) {
        self.clients.give_back();
        let clients = &self.clients;
        self.wheel.retain(|key| is_meant(clients, key));
        self.table.give_back();
        self.addresses.give_back();
        self.expiries.give_back();
        self.requests.give_back();
        for list in [&mut self.dirty, &mut self.ready, &mut self.read_more, &mut self.lagging] {
            list.give_back();
        }
        self.fired.give_back();
    }

    /// Gives up what a connection is still owed. A frame that is half written will be finished if the socket
    /// lets it: its rest moves in front of everything else.
    fn abandon(&mut self, index: u32, reason: CloseReason) {
        let Some(client) = self.clients.get(index as usize) else { return };
        if client.owed == 0 {
            return;
        }
        let owed: Vec<Owed> = Gathered::new(client, &self.log).collect();
        debug_assert_eq!(owed.len(), client.owed as usize);
        let given_up = self.give_up(index, &owed);
        self.counters.messages_closed(reason, given_up);
    }

    /// Gives up what one subscription is still owed. The work is that subscription's messages.
    pub(super) fn abandon_subscription(&mut self, index: u32, subscription: SubIndex) {
        let Some(client) = self.clients.get(index as usize) else { return };
        if client.owed == 0 {
            return;
        }
        let owed: Vec<Owed> = Gathered::of_subscription(client, &self.log, subscription).collect();
        let given_up = self.give_up(index, &owed);
        add(&self.counters.unsubscribed, given_up);
    }

    /// Settles these messages without delivering them; returns how many, without a half-written one, which is
    /// finished.
    fn give_up(&mut self, index: u32, owed: &[Owed]) -> u64 {
        let mut given_up = 0;
        for at in owed {
            let Some(client) = self.clients.get_mut(index as usize) else { break };
            let half_written = client.offset > 0 && (at.place, at.sub) == (client.place, client.sub_at);
            client.owed -= 1;
            if let Some(lag) = client.lag_mut() {
                lag.bytes -= u64::from(at.bytes);
            }
            if half_written {
                self.finish_apart(index, at);
            } else {
                given_up += 1;
            }
            self.log.settle(at.queue, at.place);
        }
        for at in owed {
            self.log.sweep(at.queue);
        }
        sub(&self.counters.pending, given_up);
        self.note_oldest(index);
        self.unlist_if_idle(index);
        given_up
    }

    /// Takes the rest of the half-written frame out of the log into the client's own bytes.
    fn finish_apart(&mut self, index: u32, at: &Owed) {
        let Some((event, frame)) = self.frame_at(index, at) else { return };
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let mut skip = std::mem::take(&mut client.offset) as usize;
        let left = frame.len() - skip;
        let extra = client.extra();
        let mut rest = Vec::with_capacity(3);
        for mut part in frame.into_parts() {
            let skipped = skip.min(part.len());
            skip -= skipped;
            part.advance(skipped);
            if !part.is_empty() {
                rest.push(part);
            }
        }
        for part in rest.into_iter().rev() {
            extra.out.push_front(part);
        }
        self.half_written_bytes += event.payload().len() as u64;
        extra.half_written = Some(HalfWritten { event, place: at.place, left });
    }

    /// Redis was lost: everyone here may miss something from now on, and gets nothing more but the close.
    pub(super) fn gap(&mut self, now: Duration) {
        // A link that is lost again before everything was back prolongs the outage and does not begin another.
        if self.gap_since.is_none() {
            self.gap_since = Some(now);
            self.wheel.insert(now + self.limits.redis_away_close, timer_key(Timer::AwayClose, 0, 0));
        }
        let all: Vec<u32> = self.clients.iter().map(|(index, _)| index as u32).collect();
        for index in all {
            self.mark_gapped(index);
        }
    }

    pub(super) fn mark_gapped(&mut self, index: u32) {
        let Some(client) = self.clients.get(index as usize) else { return };
        if client.phase != Phase::Open {
            return;
        }
        self.abandon(index, CloseReason::Gap);
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.phase = Phase::Gapped;
        }
    }

    /// Redis is back: those who may have missed something are closed, one after the other.
    pub(super) fn regained(&mut self, now: Duration) {
        self.gap_since = None;
        self.spread_closes(now, self.limits.gap_close_spread, |phase| phase == Phase::Gapped);
    }

    /// Whether Redis is away for so long that clients are closed although it is not back.
    pub(super) fn is_away_too_long(&self, now: Duration) -> bool {
        self.gap_since.is_some_and(|since| now >= since + self.limits.redis_away_close)
    }

    pub(super) fn away_too_long(&mut self, now: Duration) {
        // Otherwise Redis came back meanwhile; if it was lost again, that outage has a timer of its own.
        if self.is_away_too_long(now) {
            self.spread_closes(now, self.limits.gap_close_spread, |phase| phase == Phase::Gapped);
        }
    }

    /// A message of this channel was too long to relay: its clients are told of the gap.
    pub(super) fn channel_gap(&mut self, channel: &Channel, now: Duration) {
        for index in self.subscribers(channel) {
            self.write(index, now);
            self.close(index, CloseReason::Gap, now);
        }
    }

    /// The server ends: everyone is sent away over `spread`.
    pub(super) fn drain(&mut self, spread: Duration, now: Duration) {
        self.draining = true;
        self.spread_closes(now, spread, |_| true);
    }

    fn spread_closes(&mut self, now: Duration, spread: Duration, whom: impl Fn(Phase) -> bool) {
        let all: Vec<(u32, u32)> = self
            .clients
            .iter()
            .filter(|(_, client)| whom(client.phase))
            .map(|(index, client)| (index as u32, client.generation))
            .collect();
        let count = all.len() as u32;
        for (number, (index, generation)) in all.into_iter().enumerate() {
            let after = spread * number as u32 / count.max(1);
            self.wheel.insert(now + after, timer_key(Timer::SpreadClose, index, generation));
        }
    }

    /// Whether the client finished no frame for `WRITE_STALL_SECONDS` though there is something to write.
    pub(super) fn stalled(&self, index: u32, now: Duration) -> bool {
        let Some(client) = self.clients.get(index as usize) else { return false };
        let waited = super::since_ms(client.progress_ms, now);
        client.flags.has(Flags::BLOCKED)
            && client.has_output()
            && u128::from(waited) >= self.limits.write_stall.as_millis()
    }
}
