//! Channel → the clients of one reactor that are subscribed to it.
//!
//! An entry is 8 bytes and holds no channel. For the usual channel of one client (its account, its token) it is
//! that one membership, whose channel its client knows anyway; otherwise it is a crowd's place, and the crowd
//! holds the channel. A crowd's member is 8 bytes too, and the member's client knows its slot in the crowd, so
//! leaving costs the same in a crowd of ten thousand.
//!
//! Four channels a client at 9 bytes an entry, with a hash table's usual slack, are about 60 bytes; with the
//! channels in the table they would be 160.
//!
//! Every method that searches is told by its caller which channel a membership is of (`names`). It must answer
//! for every membership that is in the table, and always the same.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::core::lowest::LowestSlab;
use crate::core::slack::{Slack, is_sparse};
use crate::core::stream::Channel;
use crate::limits::SUBSCRIPTIONS_MAX;

/// Which of a client's subscriptions a membership belongs to.
pub type SubIndex = u16;

/// The subscription index that stands for a connection's two system channels.
pub const SYSTEM: SubIndex = SubIndex::MAX;

const _: () = assert!(SUBSCRIPTIONS_MAX <= SYSTEM as usize, "each subscription's index is below SYSTEM");

/// One subscription's membership in a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The client's place in the slab.
    pub client: u32,
    /// The subscription in the client.
    pub sub: SubIndex,
    /// Which of the subscription's channels it is.
    pub leg: u8,
}

const _: () = assert!(std::mem::size_of::<Member>() == 8);

#[derive(Clone, Copy, Debug)]
enum Entry {
    One { leg: u8, sub: SubIndex, client: u32 },
    Crowd(u32),
}

const _: () = assert!(std::mem::size_of::<Entry>() == 8);

impl Entry {
    fn one(member: Member) -> Entry {
        let Member { client, sub, leg } = member;
        Entry::One { leg, sub, client }
    }

    fn member(self) -> Option<Member> {
        match self {
            Entry::One { leg, sub, client } => Some(Member { client, sub, leg }),
            Entry::Crowd(_) => None,
        }
    }

    /// Whether it is the channel's.
    fn is_of(self, channel: &Channel, crowds: &LowestSlab<Crowd>, names: impl Fn(Member) -> Channel) -> bool {
        match self {
            Entry::One { leg, sub, client } => names(Member { client, sub, leg }) == *channel,
            Entry::Crowd(crowd) => crowds[crowd].channel == *channel,
        }
    }

    /// Whether it is the channel's and holds this membership; `names` need not know it.
    fn holds(self, member: Member, channel: &Channel, crowds: &LowestSlab<Crowd>) -> bool {
        match self {
            Entry::One { .. } => self.member() == Some(member),
            Entry::Crowd(crowd) => crowds[crowd].channel == *channel,
        }
    }

    fn hash(
        self,
        hasher: &RandomState,
        crowds: &LowestSlab<Crowd>,
        names: impl Fn(Member) -> Channel,
    ) -> u64 {
        match self {
            Entry::One { leg, sub, client } => hasher.hash_one(names(Member { client, sub, leg })),
            Entry::Crowd(crowd) => hasher.hash_one(&crowds[crowd].channel),
        }
    }
}

/// A channel with more than one membership.
#[derive(Debug)]
struct Crowd {
    channel: Channel,
    members: Vec<Member>,
}

/// Who is subscribed to a channel: at least one membership.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// This one.
    One(Member),
    /// These.
    Crowd(&'a [Member]),
}

impl<'a> Found<'a> {
    /// The memberships, in no particular order.
    pub fn members(self) -> impl Iterator<Item = Member> + 'a {
        let (one, crowd) = match self {
            Found::One(member) => (Some(member), &[][..]),
            Found::Crowd(members) => (None, members),
        };
        one.into_iter().chain(crowd.iter().copied())
    }
}

/// A reactor's channels and their clients.
#[derive(Debug, Default)]
pub struct Table {
    entries: HashTable<Entry>,
    crowds: LowestSlab<Crowd>,
    hasher: RandomState,
}

/// What a change of the table means for another membership: it now has that slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Whose membership moved.
    pub member: Member,
    /// Its new slot in the crowd.
    pub slot: u32,
}

impl Table {
    /// The channel's subscribers; none if there are none.
    pub fn find(&self, channel: &Channel, names: impl Fn(Member) -> Channel) -> Option<Found<'_>> {
        let hash = self.hasher.hash_one(channel);
        let entry = self.entries.find(hash, |entry| entry.is_of(channel, &self.crowds, &names))?;
        Some(match *entry {
            Entry::One { leg, sub, client } => Found::One(Member { client, sub, leg }),
            Entry::Crowd(crowd) => Found::Crowd(&self.crowds[crowd].members),
        })
    }

    /// Adds a membership and returns its slot. Whoever was alone in the channel so far has slot 0.
    pub fn insert(&mut self, channel: &Channel, member: Member, names: impl Fn(Member) -> Channel) -> u32 {
        let Table { entries, crowds, hasher } = self;
        let hash = hasher.hash_one(channel);
        match entries.find_mut(hash, |entry| entry.is_of(channel, crowds, &names)) {
            None => {
                entries.insert_unique(hash, Entry::one(member), |entry| entry.hash(hasher, crowds, &names));
                0
            }
            Some(Entry::Crowd(crowd)) => {
                let members = &mut crowds[*crowd].members;
                members.push(member);
                (members.len() - 1) as u32
            }
            Some(entry) => {
                let members = entry.member().into_iter().chain([member]).collect();
                let crowd = crowds.insert(Crowd { channel: channel.clone(), members });
                *entry = Entry::Crowd(crowd);
                1
            }
        }
    }

    /// Removes a membership, which has that slot; the one that takes its slot, if any, is returned.
    pub fn remove(
        &mut self,
        channel: &Channel,
        member: Member,
        slot: u32,
        names: impl Fn(Member) -> Channel,
    ) -> Option<Moved> {
        let Table { entries, crowds, hasher } = self;
        let hash = hasher.hash_one(channel);
        let found = entries.find_entry(hash, |entry| entry.holds(member, channel, crowds));
        let Ok(mut found) = found else {
            debug_assert!(false, "{member:?} is not in {channel:?}");
            return None;
        };
        let Entry::Crowd(index) = *found.get() else {
            found.remove();
            self.maybe_shrink(names);
            return None;
        };
        let crowd = &mut crowds[index].members;
        crowd.swap_remove(slot as usize);
        let moved = crowd.get(slot as usize).map(|member| Moved { member: *member, slot });
        match crowd.as_slice() {
            [alone] => {
                *found.get_mut() = Entry::one(*alone);
                crowds.remove(index);
            }
            _ => crowd.give_back(),
        }
        moved
    }

    /// Tells a membership's new subscription index, after an earlier subscription of its client went: `names`
    /// is to know it by the new one from then on.
    pub fn renumber(&mut self, channel: &Channel, member: Member, slot: u32, new_sub: SubIndex) {
        let Table { entries, crowds, hasher } = self;
        let found = entries.find_mut(hasher.hash_one(channel), |entry| entry.holds(member, channel, crowds));
        match found {
            Some(Entry::One { sub, .. }) => *sub = new_sub,
            Some(Entry::Crowd(crowd)) => {
                if let Some(member) = crowds[*crowd].members.get_mut(slot as usize) {
                    member.sub = new_sub;
                }
            }
            None => debug_assert!(false, "{member:?} is not in {channel:?}"),
        }
    }

    /// Channels that have subscribers here.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is subscribed to anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every channel and how many subscriptions it has, in no particular order.
    pub fn channels(&self, names: impl Fn(Member) -> Channel) -> impl Iterator<Item = (Channel, usize)> {
        self.entries.iter().map(move |entry| match *entry {
            Entry::One { leg, sub, client } => (names(Member { client, sub, leg }), 1),
            Entry::Crowd(crowd) => {
                let Crowd { channel, members } = &self.crowds[crowd];
                (channel.clone(), members.len())
            }
        })
    }

    /// Gives back the memory of crowds that are no more. The work is that of looking at all.
    pub fn give_back(&mut self) {
        self.crowds.give_back();
    }

    /// The channels and crowds for which there is room.
    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.entries.capacity() + self.crowds.capacity()
    }

    // When most clients have left, the table's memory comes back; the amortised cost is constant.
    fn maybe_shrink(&mut self, names: impl Fn(Member) -> Channel) {
        let Table { entries, crowds, hasher } = self;
        if is_sparse(entries.len(), entries.capacity()) {
            entries.shrink_to(entries.len() * 2, |entry| entry.hash(hasher, crowds, &names));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A client of these tests is in as many channels as there are, by one subscription each.
    const CHANNELS: u16 = 3;

    fn name(member: Member) -> Channel {
        // Clients share the first channel; the others are each client's own.
        match member.sub {
            0 => Channel::Account(1),
            sub => Channel::List(u64::from(member.client) * 10 + u64::from(sub)),
        }
    }

    fn member(client: u32, sub: SubIndex) -> Member {
        Member { client, sub, leg: 0 }
    }

    fn members(table: &Table, channel: &Channel) -> Vec<Member> {
        let mut members: Vec<_> =
            table.find(channel, name).map(|found| found.members().collect()).unwrap_or_default();
        members.sort_unstable_by_key(|member: &Member| (member.client, member.sub));
        members
    }

    proptest::proptest! {
        /// Random joins and leaves: the table has exactly who a naive list has, and every slot is right.
        #[test]
        fn like_a_list(steps in proptest::collection::vec((0u32..20, 0..CHANNELS, proptest::bool::ANY), 0..300)) {
            let mut table = Table::default();
            let mut slots: HashMap<(u32, u16), u32> = HashMap::new();
            for (client, sub, join) in steps {
                let (key, member) = ((client, sub), member(client, sub));
                let channel = name(member);
                if join && !slots.contains_key(&key) {
                    let slot = table.insert(&channel, member, name);
                    slots.insert(key, slot);
                } else if !join && let Some(slot) = slots.remove(&key)
                    && let Some(moved) = table.remove(&channel, member, slot, name)
                {
                    slots.insert((moved.member.client, moved.member.sub), moved.slot);
                }
                let mut want: Vec<Member> =
                    slots.keys().map(|key| self::member(key.0, key.1)).filter(|m| name(*m) == channel).collect();
                want.sort_unstable_by_key(|member| (member.client, member.sub));
                proptest::prop_assert_eq!(members(&table, &channel), want);
                match table.find(&channel, name) {
                    Some(Found::One(alone)) => proptest::prop_assert_eq!(slots[&(alone.client, alone.sub)], 0),
                    Some(Found::Crowd(crowd)) => {
                        proptest::prop_assert!(crowd.len() > 1);
                        for (slot, member) in crowd.iter().enumerate() {
                            proptest::prop_assert_eq!(slots[&(member.client, member.sub)], slot as u32);
                        }
                    }
                    None => {}
                }
                let mut listed: Vec<_> = table.channels(name).collect();
                listed.sort_unstable();
                let mut counted: HashMap<Channel, usize> = HashMap::new();
                slots.keys().for_each(|key| *counted.entry(name(self::member(key.0, key.1))).or_default() += 1);
                let mut counted: Vec<_> = counted.into_iter().collect();
                counted.sort_unstable();
                proptest::prop_assert_eq!(listed, counted);
            }
        }
    }

    #[test]
    fn thousands_come_and_go() {
        let mut table = Table::default();
        for client in 0..5000 {
            assert_eq!(table.insert(&name(member(client, 1)), member(client, 1), name), 0);
        }
        assert_eq!(table.len(), 5000);
        for client in 0..5000 {
            assert_eq!(members(&table, &name(member(client, 1))), [member(client, 1)]);
            assert_eq!(table.remove(&name(member(client, 1)), member(client, 1), 0, name), None);
        }
        assert!(table.is_empty());
        assert!(table.entries.capacity() <= 64);
    }

    #[test]
    fn a_membership_is_found_by_its_new_number() {
        let mut table = Table::default();
        let channel = Channel::Account(7);
        // Alone: the entry itself is renumbered.
        table.insert(&channel, member(3, 2), |_| channel.clone());
        table.renumber(&channel, member(3, 2), 0, 1);
        let found = |table: &Table| {
            table.find(&channel, |_| channel.clone()).map(|found| found.members().collect::<Vec<_>>())
        };
        assert_eq!(found(&table), Some(vec![member(3, 1)]));
        // In a crowd: the member is.
        table.insert(&channel, member(4, 5), |_| channel.clone());
        table.renumber(&channel, member(4, 5), 1, 4);
        assert_eq!(found(&table), Some(vec![member(3, 1), member(4, 4)]));
    }
}
