//! What a reactor tells about its clients when asked: the exact ledger, the busiest channels, the slowest
//! clients.
//!
//! A [`Probe`] travels through the reactor's mailbox like any delivery and is answered between two
//! deliveries, on the reactor's thread, so the ledger in it is exact. What is not wanted is not looked at:
//! the status page asks once a second for the lagging clients alone, and only the list of channels walks
//! through the table.
//!
//! Bounds: a report holds at most as many channels and laggards as were wanted.

use std::time::Duration;

use crate::core::counters::{Ledger, ReactorCounters};
use crate::core::event::Transport;
use crate::core::handover::ClientId;
use crate::core::stream::Channel;

/// What a report shall contain besides the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// The public and hashtag channels with the most clients, at most so many; 0 leaves the table alone.
    pub channels: usize,
    /// The clients with the most bytes waiting, at most so many.
    pub laggards: usize,
}

/// A question to a reactor. Dropped unanswered when the reactor has ended.
pub struct Probe {
    wanted: Wanted,
    answer: Box<dyn FnOnce(ReactorReport) + Send>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Probe({:?})", self.wanted)
    }
}

impl Probe {
    /// A question; `answer` is called from the reactor's thread and must not block.
    pub fn new(wanted: Wanted, answer: impl FnOnce(ReactorReport) + Send + 'static) -> Probe {
        Probe { wanted, answer: Box::new(answer) }
    }

    /// What is wanted.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Answers it.
    pub fn answer(self, report: ReactorReport) {
        (self.answer)(report);
    }
}

/// A client that is not caught up. Names no person: neither token nor account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Laggard {
    /// Its place.
    pub client: ClientId,
    /// How it is connected.
    pub transport: Transport,
    /// Messages that wait for it.
    pub owed: u64,
    /// Bytes that wait for it, as far as they are rendered.
    pub bytes: u64,
    /// How long the oldest of them has waited.
    pub oldest: Duration,
    /// How long ago it last took a whole frame.
    pub last_progress: Duration,
}

/// What kind of channel it is, where single ones do not matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum ChannelGroup {
    User,
    Notifications,
    Direct,
    List,
    Public,
    Hashtag,
    System,
}

impl ChannelGroup {
    /// The groups' names, by their number.
    pub const LABELS: [&str; 7] = ["user", "notifications", "direct", "list", "public", "hashtag", "system"];

    /// The group of that channel.
    pub fn of(channel: &Channel) -> ChannelGroup {
        match channel {
            Channel::Public { .. } => ChannelGroup::Public,
            Channel::Hashtag { .. } => ChannelGroup::Hashtag,
            Channel::Account(_) => ChannelGroup::User,
            Channel::Notifications(_) => ChannelGroup::Notifications,
            Channel::Direct(_) => ChannelGroup::Direct,
            Channel::List(_) => ChannelGroup::List,
            Channel::AccessToken(_) | Channel::System(_) => ChannelGroup::System,
        }
    }
}

/// A reactor's answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReactorReport {
    /// The reactor's number.
    pub reactor: u16,
    /// Its messages' conservation, exact.
    pub ledger: Ledger,
    /// The public and hashtag channels with the most clients; most first. Those of one account would tell
    /// who is there and are only counted, in `groups`.
    pub channels: Vec<(Channel, u32)>,
    /// Whether there are channels that found no place in the list.
    pub more_channels: bool,
    /// Clients per [`ChannelGroup`], all channels; all 0 where channels were not wanted.
    pub groups: [u64; ChannelGroup::LABELS.len()],
    /// The clients with the most bytes waiting; most first.
    pub laggards: Vec<Laggard>,
}

impl ReactorReport {
    /// Makes a report on the reactor's thread. `channels` is every channel of its table with its number of
    /// clients, `laggards` every client that is not caught up; neither is begun unless it is wanted.
    pub fn gather(
        reactor: u16,
        wanted: Wanted,
        counters: &ReactorCounters,
        channels: impl IntoIterator<Item = (Channel, u32)>,
        laggards: impl IntoIterator<Item = Laggard>,
    ) -> ReactorReport {
        let mut report = ReactorReport { reactor, ledger: counters.ledger(), ..ReactorReport::default() };
        if wanted.channels > 0 {
            let mut top = Top::new(wanted.channels);
            for (channel, clients) in channels {
                let group = ChannelGroup::of(&channel);
                report.groups[group as usize] += u64::from(clients);
                if channel.is_filtered() {
                    top.push(u64::from(clients), (channel, clients));
                }
            }
            report.more_channels = top.left_out();
            report.channels = top.finish();
        }
        if wanted.laggards > 0 {
            let mut top = Top::new(wanted.laggards);
            for laggard in laggards {
                top.push(laggard.bytes, laggard);
            }
            report.laggards = top.finish();
        }
        report
    }
}

/// Keeps the largest few of many in linear time, holding at most twice as many as are kept.
pub(crate) struct Top<T> {
    keep: usize,
    left_out: bool,
    held: Vec<(u64, T)>,
}

impl<T> Top<T> {
    pub(crate) fn new(keep: usize) -> Top<T> {
        Top { keep, left_out: false, held: Vec::new() }
    }

    pub(crate) fn push(&mut self, size: u64, item: T) {
        if self.held.len() >= self.keep.saturating_mul(2) {
            self.shrink();
        }
        self.held.push((size, item));
    }

    /// Whether some have found no place.
    pub(crate) fn left_out(&self) -> bool {
        self.left_out || self.held.len() > self.keep
    }

    /// The largest, largest first.
    pub(crate) fn finish(mut self) -> Vec<T> {
        self.held.sort_by_key(|entry| std::cmp::Reverse(entry.0));
        self.held.truncate(self.keep);
        self.held.into_iter().map(|(_, item)| item).collect()
    }

    fn shrink(&mut self) {
        if self.held.len() > self.keep {
            self.held.select_nth_unstable_by_key(self.keep, |entry| std::cmp::Reverse(entry.0));
            self.held.truncate(self.keep);
            self.left_out = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::counters::add;
    use crate::core::stream::Tag;

    fn laggard(index: u32, bytes: u64) -> Laggard {
        Laggard {
            client: ClientId { reactor: 1, index, generation: 1 },
            transport: Transport::WebSocket,
            owed: 1,
            bytes,
            oldest: Duration::ZERO,
            last_progress: Duration::ZERO,
        }
    }

    #[test]
    fn the_largest_come_first_and_the_rest_is_left_out() {
        let counters = ReactorCounters::default();
        add(&counters.owed, 3);
        add(&counters.unsubscribed, 3);
        let table: Vec<(Channel, u32)> = (1..=500)
            .map(|id| (Channel::Account(id), 1))
            .chain((1..=20).map(|size| {
                (Channel::Hashtag { tag: Tag::from_normalised(&format!("t{size}")), local: false }, size * 10)
            }))
            .chain((1..=500).map(|id| (Channel::System(id), 1000)))
            .collect();
        let report = ReactorReport::gather(
            1,
            Wanted { channels: 3, laggards: 2 },
            &counters,
            table,
            (0..100).map(|index| laggard(index, u64::from(index) * 7 % 100)),
        );
        assert_eq!(report.channels.iter().map(|entry| entry.1).collect::<Vec<_>>(), [200, 190, 180]);
        assert!(report.more_channels);
        assert_eq!(report.groups, [500, 0, 0, 0, 0, 2100, 500_000]);
        assert_eq!(report.laggards.iter().map(|laggard| laggard.bytes).collect::<Vec<_>>(), [99, 98]);
        assert_eq!(report.ledger.difference(), 0);
        assert_eq!(report.ledger.owed, 3);
    }

    #[test]
    fn what_is_not_wanted_is_not_looked_at() {
        let never = std::iter::from_fn(|| -> Option<(Channel, u32)> { panic!("the table was walked") });
        let nobody = std::iter::from_fn(|| -> Option<Laggard> { panic!("clients were walked") });
        let counters = ReactorCounters::default();
        let report = ReactorReport::gather(0, Wanted::default(), &counters, never, nobody);
        assert_eq!(report, ReactorReport::default());
    }

    #[test]
    fn a_probe_is_answered_once() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let probe =
            Probe::new(Wanted { channels: 1, laggards: 0 }, move |report| sender.send(report).unwrap());
        assert_eq!(probe.wanted().channels, 1);
        probe.answer(ReactorReport { reactor: 7, ..ReactorReport::default() });
        assert_eq!(receiver.recv().unwrap().reactor, 7);
        assert!(receiver.recv().is_err());
    }
}
