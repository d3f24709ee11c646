//! Who watches which filtered channel, and what is known of them.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::mem::size_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::core::event::Asked;
use crate::core::filter::{FilterCache, Slot};
use crate::core::millis;
use crate::core::slack::{Slack, is_sparse};
use crate::core::stream::{Channel, Id};
use crate::db::feeds::Settings;

/// An account that watches at least one filtered channel.
#[derive(Debug)]
pub(super) struct Viewer {
    pub(super) id: Id,
    /// Its custom filters' place in the cache.
    pub(super) slot: Slot,
    settings: ArcSwapOption<(Settings, Duration)>,
    /// When the latest of its connections came, in milliseconds of the process's clock; wraps after 49 days.
    joined_ms: AtomicU32,
    /// On all channels. Only [`Viewers`] looks at it.
    connections: AtomicU32,
}

// With the counts of its `Arc` and the allocator's header it fills 64 bytes.
const _: () = assert!(size_of::<Viewer>() <= 40);

impl Viewer {
    /// The account's settings and when they were read.
    pub(super) fn settings(&self) -> arc_swap::Guard<Option<Arc<(Settings, Duration)>>> {
        self.settings.load()
    }

    /// Whether its settings are to be read before they decide anything: none are known, they are older than
    /// `age_max`, or older than its latest connection (a client that comes back gets what holds now).
    pub(super) fn needs_settings(&self, now: Duration, age_max: Duration) -> bool {
        let settings = self.settings.load();
        let Some(known) = settings.as_ref() else { return true };
        // Exact to a millisecond, in which nobody changes settings and comes back; both counted in whole ones, so that
        // what was read after the join is never older. It wraps: then they are read once more.
        let here_ms = millis(now).wrapping_sub(self.joined_ms.load(Ordering::Relaxed));
        let age_ms = millis(now).wrapping_sub(millis(known.1));
        now.saturating_sub(known.1) > age_max || age_ms > here_ms
    }

    /// What PostgreSQL was asked for at `read_at`. Answers may overtake each other: the one asked for last counts.
    pub(super) fn set_settings(&self, settings: Settings, read_at: Duration) {
        if self.settings.load().as_ref().is_none_or(|known| known.1 <= read_at) {
            self.settings.store(Some(Arc::new((settings, read_at))));
        }
    }
}

/// The viewers of one channel, or of several, at one moment; shared while nobody comes or goes.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    /// Sorted by account, each once.
    pub(super) viewers: Vec<Arc<Viewer>>,
    /// Their ids, as events carry them.
    pub(super) asked: Asked,
}

impl Snapshot {
    fn new(viewers: Vec<Arc<Viewer>>) -> Arc<Snapshot> {
        let asked = viewers.iter().map(|viewer| viewer.id).collect();
        Arc::new(Snapshot { viewers, asked })
    }

    /// Whether all of `other`'s viewers are here.
    pub(super) fn covers(&self, other: &Snapshot) -> bool {
        if std::ptr::eq(self, other) {
            return true;
        }
        let mut mine = self.asked.iter();
        other.asked.iter().all(|wanted| mine.by_ref().find(|id| *id >= wanted) == Some(wanted))
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Snapshot>() + self.viewers.len() * (size_of::<Arc<Viewer>>() + size_of::<Id>())
    }
}

#[derive(Debug, Default)]
struct Watched {
    /// Sorted by account; an account stands here once for each of its connections.
    viewers: Vec<Arc<Viewer>>,
    snapshot: Option<Arc<Snapshot>>,
}

impl Watched {
    /// Where the account's connections stand.
    fn range(&self, account: Id) -> std::ops::Range<usize> {
        let start = self.viewers.partition_point(|viewer| viewer.id < account);
        let count = self.viewers.iter().skip(start).take_while(|viewer| viewer.id == account).count();
        start..start + count
    }
}

/// All viewers of all filtered channels.
#[derive(Debug, Default)]
pub(super) struct Viewers {
    channels: HashMap<Channel, Watched, RandomState>,
    /// By account.
    accounts: HashTable<Arc<Viewer>>,
    hasher: RandomState,
    /// Unions of several channels' snapshots that were asked for lately: while nobody comes or goes, the
    /// same few come again with every status.
    unions: Vec<Union>,
}

#[derive(Debug)]
struct Union {
    parts: Vec<Arc<Snapshot>>,
    whole: Arc<Snapshot>,
}

/// Forgets a channel's snapshot, and the unions with it: none of them is asked for again, and each holds what is known
/// of everybody in it.
fn outdate(snapshot: &mut Option<Arc<Snapshot>>, unions: &mut Vec<Union>) {
    if let Some(outdated) = snapshot.take() {
        unions.retain(|union| !union.parts.iter().any(|part| Arc::ptr_eq(part, &outdated)));
    }
}

/// Unions that are kept.
const UNIONS_MAX: usize = 4;

impl Viewers {
    /// One more connection of that account watches that channel.
    pub(super) fn join(
        &mut self,
        channel: Channel,
        account: Id,
        now: Duration,
        cache: &mut FilterCache,
    ) -> Arc<Viewer> {
        let hasher = &self.hasher;
        let entry = self.accounts.entry(
            hasher.hash_one(account),
            |viewer| viewer.id == account,
            |viewer| hasher.hash_one(viewer.id),
        );
        let entry = match entry {
            Entry::Occupied(entry) => entry,
            Entry::Vacant(place) => {
                let slot = cache.admit();
                let settings = ArcSwapOption::empty();
                let (joined_ms, connections) = (AtomicU32::new(0), AtomicU32::new(0));
                place.insert(Arc::new(Viewer { id: account, slot, settings, joined_ms, connections }))
            }
        };
        let viewer = entry.get();
        viewer.connections.fetch_add(1, Ordering::Relaxed);
        viewer.joined_ms.store(millis(now), Ordering::Relaxed);
        let watched = self.channels.entry(channel).or_default();
        let there = watched.range(account);
        if there.is_empty() {
            outdate(&mut watched.snapshot, &mut self.unions);
        }
        watched.viewers.insert(there.start, Arc::clone(viewer));
        Arc::clone(viewer)
    }

    /// One fewer. Who watches nothing any more is forgotten with their filters, since nobody would tell us
    /// when these change; the answer says whether that happened.
    pub(super) fn leave(&mut self, channel: &Channel, account: Id, cache: &mut FilterCache) -> bool {
        let Some(watched) = self.channels.get_mut(channel) else { return false };
        let there = watched.range(account);
        if there.is_empty() {
            return false;
        }
        watched.viewers.remove(there.start);
        watched.viewers.give_back();
        if there.len() == 1 {
            outdate(&mut watched.snapshot, &mut self.unions);
        }
        if watched.viewers.is_empty() {
            self.channels.remove(channel);
            self.channels.give_back();
        }
        let hash = self.hasher.hash_one(account);
        let Ok(entry) = self.accounts.find_entry(hash, |viewer| viewer.id == account) else {
            return false;
        };
        if entry.get().connections.fetch_sub(1, Ordering::Relaxed) > 1 {
            return false;
        }
        cache.forget(&entry.get().slot);
        entry.remove();
        if is_sparse(self.accounts.len(), self.accounts.capacity()) {
            let hasher = &self.hasher;
            self.accounts.shrink_to(self.accounts.len() * 2, |viewer| hasher.hash_one(viewer.id));
        }
        true
    }

    /// What is known of that account, if it watches anything.
    pub(super) fn get(&self, account: Id) -> Option<&Arc<Viewer>> {
        self.accounts.find(self.hasher.hash_one(account), |viewer| viewer.id == account)
    }

    /// Who watches that channel now; none if nobody does. Also the bytes that this snapshot takes, if it
    /// had to be made.
    pub(super) fn of(&mut self, channel: &Channel) -> Option<(Arc<Snapshot>, usize)> {
        let watched = self.channels.get_mut(channel)?;
        if let Some(snapshot) = &watched.snapshot {
            return Some((Arc::clone(snapshot), 0));
        }
        let mut viewers = watched.viewers.clone();
        viewers.dedup_by_key(|viewer| viewer.id);
        let snapshot = Snapshot::new(viewers);
        watched.snapshot = Some(Arc::clone(&snapshot));
        let bytes = snapshot.bytes();
        Some((snapshot, bytes))
    }

    /// Everybody in any of `parts`, and the bytes that it takes, if it had to be made.
    pub(super) fn union(&mut self, mut parts: Vec<Arc<Snapshot>>) -> (Arc<Snapshot>, usize) {
        parts.sort_unstable_by_key(Arc::as_ptr);
        parts.dedup_by(|one, other| Arc::ptr_eq(one, other));
        if let [only] = &*parts {
            return (Arc::clone(only), 0);
        }
        let same = |union: &Union| {
            union.parts.len() == parts.len()
                && union.parts.iter().zip(&parts).all(|(one, other)| Arc::ptr_eq(one, other))
        };
        if let Some(at) = self.unions.iter().position(same) {
            let known = self.unions.remove(at);
            let whole = Arc::clone(&known.whole);
            self.unions.push(known);
            return (whole, 0);
        }
        let largest = parts.iter().max_by_key(|part| part.viewers.len()).map(Arc::clone).unwrap_or_default();
        let (whole, bytes) = if parts.iter().all(|part| largest.covers(part)) {
            (largest, 0)
        } else {
            let mut viewers: Vec<_> = parts.iter().flat_map(|part| part.viewers.iter().cloned()).collect();
            // Stable, so that it profits from the parts' being sorted.
            viewers.sort_by_key(|viewer| viewer.id);
            viewers.dedup_by_key(|viewer| viewer.id);
            let whole = Snapshot::new(viewers);
            let bytes = whole.bytes();
            (whole, bytes)
        };
        if self.unions.len() == UNIONS_MAX {
            self.unions.remove(0);
        }
        self.unions.push(Union { parts, whole: Arc::clone(&whole) });
        (whole, bytes)
    }

    /// Everybody.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Viewer>> {
        self.accounts.iter()
    }

    /// How many accounts watch anything.
    pub(super) fn len(&self) -> usize {
        self.accounts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::stream::Tag;

    #[test]
    fn nothing_is_kept_of_viewers_who_left() {
        let (mut viewers, mut cache) = (Viewers::default(), FilterCache::new(1 << 20));
        let tag = |n: u64| Channel::Hashtag { tag: Tag::from_normalised(&n.to_string()), local: false };
        for account in 1..=5000 {
            viewers.join(tag(account), account, Duration::ZERO, &mut cache);
        }
        let parts: Vec<_> = [1, 2].into_iter().filter_map(|n| Some(viewers.of(&tag(n))?.0)).collect();
        assert_eq!(viewers.union(parts).0.viewers.len(), 2);
        let known: Vec<_> = [1, 2].into_iter().filter_map(|id| viewers.get(id).map(Arc::downgrade)).collect();
        // Somebody else comes: the channel has another snapshot from then on, and the union is of no more use.
        viewers.join(tag(1), 6000, Duration::ZERO, &mut cache);
        for account in 1..=5000 {
            viewers.leave(&tag(account), account, &mut cache);
        }
        assert_eq!(known.len(), 2);
        assert!(known.iter().all(|viewer| viewer.strong_count() == 0), "the union holds viewers who left");
        assert_eq!((viewers.len(), cache.len()), (1, 1));
        let room = viewers.channels.capacity() + viewers.accounts.capacity();
        assert!(room < 200, "room for {room} entries is kept");
    }
}
