//! The list of clients that are not caught up, and what status pages are told of them.
//!
//! A client is listed while its socket is full, and until all of its output was taken after that. What is known of a
//! listed client ([`Lag`]) is kept up with every message and write, so a report costs the number of listed clients,
//! whatever they are owed.
//!
//! Invariant: a client for which events are held is listed, or it is written to in the next turn. So every byte of
//! the budget that this relay holds is some listed client's once the socket did not take it.

use std::time::Duration;

use super::output::Gathered;
use super::timers::{Timer, timer_key};
use super::{Relay, Socket, millis, since_ms};
use crate::core::client::{Client, Flags, Lag};
use crate::core::counters::set;
use crate::core::report::{Laggard, Probe, ReactorReport};
use crate::core::slack::Slack;
use crate::limits::PROBE_AFTER;

impl<S: Socket> Relay<S> {
    /// Lists a client whose socket is full. Each message that it is owed is looked at here once, or counted when it
    /// comes while the client is listed.
    pub(super) fn list(&mut self, index: u32, now: Duration) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.lag().is_some() {
            return;
        }
        let bytes = Gathered::new(client, &self.log).map(|owed| u64::from(owed.bytes)).sum();
        let now_ms = millis(now);
        let listed_at = self.lagging.len() as u32;
        client.extra().lag = Some(Lag { listed_at, taken_ms: now_ms, oldest_ms: now_ms, bytes });
        // The poll reports room once a third of the send buffer is free. What is acknowledged of the bytes in flight
        // right now may free less; filled once more, the buffer takes bytes only if the client does.
        self.wheel.insert(now + PROBE_AFTER, timer_key(Timer::Probe, index, client.generation));
        self.lagging.push(index);
        self.note_oldest(index);
    }

    /// Writes to a socket although the poll has not reported room.
    pub(super) fn probe_socket(&mut self, index: u32, now: Duration) {
        if let Some(client) = self.clients.get_mut(index as usize)
            && client.has_output()
        {
            client.flags.clear(Flags::BLOCKED);
            self.write(index, now);
        }
    }

    /// Sets when the oldest message that a listed client is owed was read.
    pub(super) fn note_oldest(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.lag().is_none() {
            return;
        }
        let oldest = Gathered::new(client, &self.log).next();
        let entry = oldest.and_then(|at| self.log.entries_from(at.queue, at.place).next());
        if let Some(lag) = client.lag_mut()
            && let Some(event) = entry.and_then(|entry| entry.event.as_ref())
        {
            lag.oldest_ms = millis(event.position().read_at);
        }
    }

    /// Takes a client off the list that has nothing to write and whose socket has room. A full socket keeps its client
    /// listed: nothing else would list it again when the next message comes.
    pub(super) fn unlist_if_idle(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        if client.flags.has(Flags::BLOCKED) || client.has_output() {
            return;
        }
        let Some(lag) = client.extra.as_mut().and_then(|extra| extra.lag.take()) else { return };
        client.tidy();
        self.take_off_list(lag.listed_at);
    }

    /// The last client of the list takes the place of the one that leaves it.
    pub(super) fn take_off_list(&mut self, listed_at: u32) {
        self.lagging.swap_remove(listed_at as usize);
        if let Some(moved) = self.lagging.get(listed_at as usize)
            && let Some(client) = self.clients.get_mut(*moved as usize)
            && let Some(lag) = client.lag_mut()
        {
            lag.listed_at = listed_at;
        }
        self.lagging.give_back();
    }

    /// Refreshes the gauges that are not kept up with every message. No walk over clients.
    pub fn publish_gauges(&mut self) {
        set(&self.counters.log_entries, self.log.len() as u64);
        set(&self.counters.log_bytes, self.log.bytes());
        set(&self.counters.half_written_bytes, self.half_written_bytes);
        set(&self.counters.lagging, self.lagging.len() as u64);
        set(&self.counters.ready, (self.dirty.len() + self.answers.len()) as u64);
        set(&self.counters.unfinished_bytes, self.talkers.unfinished_bytes() as u64);
    }

    /// Answers a question about this reactor's clients.
    pub(super) fn probe(&mut self, probe: Probe, now: Duration) {
        let names = |member| super::membership::channel_of(&self.clients, member);
        let channels = self.table.channels(names).map(|(channel, count)| (channel, count as u32));
        let laggards = self.lagging.iter().filter_map(|index| {
            let client = self.clients.get(*index as usize)?;
            client.has_output().then(|| self.laggard(*index, client, now))?
        });
        let report = ReactorReport::gather(self.reactor, probe.wanted(), &self.counters, channels, laggards);
        probe.answer(report);
    }

    fn laggard(&self, index: u32, client: &Client<S>, now: Duration) -> Option<Laggard> {
        let extra = client.extra.as_ref()?;
        let lag = extra.lag.as_ref()?;
        let since = |moment_ms| Duration::from_millis(u64::from(since_ms(moment_ms, now)));
        Some(Laggard {
            client: client.id(self.reactor, index),
            transport: client.transport,
            owed: u64::from(client.owed) + u64::from(extra.half_written.is_some()),
            bytes: lag.bytes + extra.out.bytes() as u64,
            oldest: if client.owed > 0 { since(lag.oldest_ms) } else { Duration::ZERO },
            last_progress: since(client.progress_ms),
        })
    }
}
