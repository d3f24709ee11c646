//! The shared log: undelivered messages, each once, whoever is still to get it.
//!
//! One queue per channel that has undelivered messages, positions counted over all of them, so that a client
//! of several channels sees one order. An entry knows how many deliveries it still owes; with the last one it
//! lets go of its event. A client holds a position, not messages: catching up costs a client its own messages.
//!
//! Bounds: an entry is 24 bytes besides the event, which counts against the gate's budget; of a queue's entries at
//! most half, or [`SETTLED_MIN`], are without an event; a channel without undelivered messages costs nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use slab::Slab;

use crate::core::event::Event;
use crate::core::stream::Channel;
use crate::core::trail::Step;

/// A message's place in the order in which this log took messages.
pub type Place = u64;

/// A channel's queue, as long as it is not empty.
pub type QueueIndex = u32;

/// An undelivered message.
#[derive(Debug)]
pub struct Entry {
    /// Its place.
    pub place: Place,
    /// The message; none when all deliveries were made but an earlier entry of the channel still waits.
    pub event: Option<Arc<Event>>,
    /// Deliveries that are still to be made.
    owed: u32,
    /// The length of its payload. Messages are bounded far below 4 GiB.
    pub bytes: u32,
}

/// The undelivered messages of one reactor's clients.
#[derive(Debug, Default)]
pub struct Log {
    by_channel: HashMap<Channel, QueueIndex, foldhash::fast::RandomState>,
    queues: Slab<Queue>,
    spare: Vec<VecDeque<Entry>>,
    next_place: Place,
    entries: usize,
    bytes: u64,
    /// Entries that a reader was given.
    #[cfg(test)]
    visited: std::cell::Cell<u64>,
}

#[derive(Debug)]
struct Queue {
    channel: Channel,
    entries: VecDeque<Entry>,
    /// Entries that are owed to nobody and stand behind one that is.
    settled: usize,
}

/// So many settled entries, and half of a queue, may stand behind one that is still owed: one client that takes nothing
/// of a busy channel, and is owed little of it, must not keep an entry for each message that the others got.
const SETTLED_MIN: usize = 64;

/// Empty queues kept for the next channel, so that a message to a quiet channel allocates nothing.
const SPARE_QUEUES_MAX: usize = 64;

impl Log {
    /// The place that the next message gets.
    pub fn next_place(&self) -> Place {
        self.next_place
    }

    /// Appends a message that `owed` subscriptions (at least one) are to get.
    pub fn append(&mut self, event: Arc<Event>, owed: u32) {
        debug_assert!(owed > 0);
        let channel = event.channel();
        let index = match self.by_channel.get(channel) {
            Some(index) => *index,
            None => {
                let entries = self.spare.pop().unwrap_or_default();
                let index =
                    self.queues.insert(Queue { channel: channel.clone(), entries, settled: 0 }) as QueueIndex;
                self.by_channel.insert(channel.clone(), index);
                index
            }
        };
        event.mark(Step::Owed(owed));
        let bytes = event.payload().len() as u32;
        self.queues[index as usize].entries.push_back(Entry {
            place: self.next_place,
            event: Some(event),
            owed,
            bytes,
        });
        self.bytes += u64::from(bytes);
        self.next_place += 1;
        self.entries += 1;
    }

    /// The channel's queue, if it has undelivered messages.
    pub fn queue(&self, channel: &Channel) -> Option<QueueIndex> {
        self.by_channel.get(channel).copied()
    }

    /// The entries of a queue from `place` on.
    pub fn entries_from(&self, queue: QueueIndex, place: Place) -> impl Iterator<Item = &Entry> {
        let entries = &self.queues[queue as usize].entries;
        // Clients that are caught up with all but the newest are the common case.
        let start = match entries.front() {
            Some(first) if first.place >= place => 0,
            _ => entries.partition_point(|entry| entry.place < place),
        };
        #[cfg(test)]
        let visited = &self.visited;
        entries.range(start..).inspect(move |_| {
            #[cfg(test)]
            visited.set(visited.get() + 1);
        })
    }

    /// Entries that readers were given so far.
    #[cfg(test)]
    pub fn visited(&self) -> u64 {
        self.visited.get()
    }

    /// One delivery of that entry was made, or will never be. Empty queues stay until [`sweep`](Self::sweep),
    /// so queue indexes are good until then.
    pub fn settle(&mut self, queue: QueueIndex, place: Place) {
        let Queue { entries, settled, .. } = &mut self.queues[queue as usize];
        let Ok(found) = entries.binary_search_by_key(&place, |entry| entry.place) else {
            debug_assert!(false, "no entry at place {place}");
            return;
        };
        let entry = &mut entries[found];
        debug_assert!(entry.owed > 0);
        entry.owed -= 1;
        if entry.owed > 0 {
            return;
        }
        if let Some(event) = entry.event.take() {
            event.mark(Step::Done);
        }
        self.bytes -= u64::from(entry.bytes);
        self.entries -= 1;
        *settled += 1;
        while entries.front().is_some_and(|entry| entry.owed == 0) {
            entries.pop_front();
            *settled -= 1;
        }
        if *settled >= SETTLED_MIN && *settled > entries.len() / 2 {
            // Half of the queue goes, so each settled entry is moved past or dropped a constant number of times.
            entries.retain(|entry| entry.owed > 0);
            *settled = 0;
        }
    }

    /// Gives up the queue if nothing waits in it.
    pub fn sweep(&mut self, queue: QueueIndex) {
        if !self.queues.get(queue as usize).is_some_and(|queue| queue.entries.is_empty()) {
            return;
        }
        let mut queue = self.queues.remove(queue as usize);
        self.by_channel.remove(&queue.channel);
        if self.spare.len() < SPARE_QUEUES_MAX {
            queue.entries.shrink_to(8);
            self.spare.push(queue.entries);
        }
        if self.by_channel.is_empty() {
            // After a burst over very many channels the tables' memory comes back.
            self.by_channel.shrink_to(256);
            self.queues.shrink_to_fit();
        }
    }

    /// Undelivered messages, counted once each.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// The bytes of undelivered messages, counted once each, without their frames.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether everything was delivered.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Every undelivered message's place and held bytes, in no particular order.
    pub fn held(&self) -> impl Iterator<Item = (Place, usize)> {
        self.queues
            .iter()
            .flat_map(|(_, queue)| &queue.entries)
            .filter_map(|entry| Some((entry.place, entry.event.as_ref()?.held_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::event::{Parsed, Position};
    use crate::core::gate::Gate;

    #[test]
    fn settled_entries_behind_a_stalled_front_do_not_pile_up() {
        let gate = Gate::new(1 << 20, 1 << 19, || {});
        let mut log = Log::default();
        let append = |log: &mut Log, owed| {
            let at = Position { epoch: 1, seq: log.next_place() + 1, read_at: Duration::ZERO };
            let message = &br#"{"event":"delete","payload":"1"}"#[..];
            let Parsed::Event(event) = Event::parse(Channel::Account(1), at, message.into(), &gate) else {
                panic!("no event")
            };
            let place = log.next_place();
            log.append(event, owed);
            place
        };
        let first = append(&mut log, 1);
        let queue = log.queue(&Channel::Account(1)).unwrap();
        let mut kept = vec![first];
        for n in 0..10_000 {
            let place = append(&mut log, 1);
            // Some stay, so that those between them must be found again.
            if n % 1000 == 0 {
                kept.push(place);
            } else {
                log.settle(queue, place);
            }
            assert_eq!(log.len(), kept.len());
            let entries = log.queues[queue as usize].entries.len();
            assert!(entries <= 2 * (kept.len() + SETTLED_MIN), "{entries} entries, {} are owed", kept.len());
        }
        let left: Vec<Place> = log
            .entries_from(queue, 0)
            .filter_map(|entry| entry.event.as_ref().map(|_| entry.place))
            .collect();
        assert_eq!(left, kept);
        kept.into_iter().for_each(|place| log.settle(queue, place));
        log.sweep(queue);
        assert!(log.is_empty() && log.queue(&Channel::Account(1)).is_none());
        assert_eq!((log.bytes(), gate.held_bytes()), (0, 0));
    }
}
