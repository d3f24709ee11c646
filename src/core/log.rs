//! The shared log: undelivered messages, each once, whoever is still to get it.
//!
//! One queue per channel that has undelivered messages, positions counted over all of them, so that a client
//! of several channels sees one order. An entry knows how many deliveries it still owes; with the last one it
//! lets go of its event. A client holds a position, not messages: catching up costs a client its own messages.
//!
//! Bounds: an entry is 24 bytes besides the event, which counts against the gate's budget; a channel without
//! undelivered messages costs nothing.

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
    /// The message's own bytes, while it is held. Messages are bounded far below 4 GiB.
    bytes: u32,
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
}

#[derive(Debug)]
struct Queue {
    channel: Channel,
    entries: VecDeque<Entry>,
}

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
                let index = self.queues.insert(Queue { channel: channel.clone(), entries }) as QueueIndex;
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
        entries.range(start..)
    }

    /// One delivery of that entry was made, or will never be. Empty queues stay until [`sweep`](Self::sweep),
    /// so queue indexes are good until then.
    pub fn settle(&mut self, queue: QueueIndex, place: Place) {
        let entries = &mut self.queues[queue as usize].entries;
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
        while entries.front().is_some_and(|entry| entry.owed == 0) {
            entries.pop_front();
            self.entries -= 1;
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

    /// The place that splits the log: messages before it hold half of the bytes, or just over. The work is
    /// that of sorting the log, so it is for the moment when the budget is used up.
    pub fn older_half_ends(&self) -> Place {
        let mut held: Vec<(Place, usize)> = self.held().collect();
        held.sort_unstable();
        let half = held.iter().map(|(_, bytes)| bytes).sum::<usize>() / 2;
        let mut sum = 0;
        for (place, bytes) in held {
            sum += bytes;
            if sum > half {
                return place + 1;
            }
        }
        0
    }
}
