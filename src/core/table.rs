//! Channel → the clients of one reactor that are subscribed to it.
//!
//! An entry is 24 bytes: the channel and, for the usual channel of one client (its account, its token), that
//! client's place, else a crowd's. A crowd's member is 8 bytes, and the member's client knows its slot in the
//! crowd, so leaving costs the same in a crowd of ten thousand.

use std::collections::HashMap;

use slab::Slab;

use crate::core::stream::Channel;

/// Which of a client's subscriptions a membership belongs to.
pub type SubIndex = u16;

/// The subscription index that stands for a connection's two system channels.
pub const SYSTEM: SubIndex = SubIndex::MAX;

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
enum Subscribers {
    One(u32),
    Crowd(u32),
}

const _: () = assert!(std::mem::size_of::<(Channel, Subscribers)>() == 24);

/// Who is subscribed, as the table has it.
#[derive(Debug)]
pub enum Found<'a> {
    /// One client, by one of its subscriptions; which one, the client knows.
    One(u32),
    /// These memberships.
    Crowd(&'a [Member]),
}

/// A reactor's channels and their clients.
#[derive(Debug, Default)]
pub struct Table {
    channels: HashMap<Channel, Subscribers, foldhash::fast::RandomState>,
    crowds: Slab<Vec<Member>>,
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
    /// The channel's subscribers.
    pub fn find(&self, channel: &Channel) -> Option<Found<'_>> {
        match self.channels.get(channel)? {
            Subscribers::One(client) => Some(Found::One(*client)),
            Subscribers::Crowd(crowd) => Some(Found::Crowd(&self.crowds[*crowd as usize])),
        }
    }

    /// Adds a membership and returns its slot. `first` tells the membership of a client that was alone in the
    /// channel so far (asked only when it stops being alone); its slot becomes 0.
    pub fn insert(&mut self, channel: &Channel, member: Member, first: impl FnOnce(u32) -> Member) -> u32 {
        match self.channels.get_mut(channel) {
            None => {
                self.channels.insert(channel.clone(), Subscribers::One(member.client));
                0
            }
            Some(Subscribers::Crowd(crowd)) => {
                let crowd = &mut self.crowds[*crowd as usize];
                crowd.push(member);
                (crowd.len() - 1) as u32
            }
            Some(subscribers @ Subscribers::One(_)) => {
                let Subscribers::One(alone) = *subscribers else { unreachable!() };
                let crowd = self.crowds.insert(vec![first(alone), member]);
                *subscribers = Subscribers::Crowd(crowd as u32);
                1
            }
        }
    }

    /// Removes the membership at `slot`; the one that takes its slot, if any, is returned.
    pub fn remove(&mut self, channel: &Channel, slot: u32) -> Option<Moved> {
        let Some(Subscribers::Crowd(index)) = self.channels.get(channel) else {
            self.channels.remove(channel);
            self.maybe_shrink();
            return None;
        };
        let index = *index as usize;
        let crowd = &mut self.crowds[index];
        crowd.swap_remove(slot as usize);
        let moved = crowd.get(slot as usize).map(|member| Moved { member: *member, slot });
        match crowd.as_slice() {
            [alone] => {
                let client = alone.client;
                self.crowds.remove(index);
                self.channels.insert(channel.clone(), Subscribers::One(client));
            }
            members if members.len() * 4 < crowd.capacity() && crowd.capacity() > 64 => {
                crowd.shrink_to(crowd.len() * 2);
            }
            _ => {}
        }
        moved
    }

    /// Tells a membership's new subscription index, after an earlier subscription of its client went.
    pub fn renumber(&mut self, channel: &Channel, slot: u32, sub: SubIndex) {
        if let Some(Subscribers::Crowd(crowd)) = self.channels.get(channel)
            && let Some(member) = self.crowds[*crowd as usize].get_mut(slot as usize)
        {
            member.sub = sub;
        }
    }

    /// Channels that have subscribers here.
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// Whether nobody is subscribed to anything.
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Every channel and how many subscriptions it has, in no particular order.
    pub fn channels(&self) -> impl Iterator<Item = (&Channel, usize)> {
        self.channels.iter().map(|(channel, subscribers)| match subscribers {
            Subscribers::One(_) => (channel, 1),
            Subscribers::Crowd(crowd) => (channel, self.crowds[*crowd as usize].len()),
        })
    }

    // When most clients have left, the table's memory comes back; the amortised cost is constant.
    fn maybe_shrink(&mut self) {
        if self.channels.capacity() > 1024 && self.channels.len() * 8 < self.channels.capacity() {
            self.channels.shrink_to(self.channels.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(client: u32) -> Member {
        Member { client, sub: 0, leg: 0 }
    }

    fn clients(table: &Table, channel: &Channel) -> Vec<u32> {
        match table.find(channel) {
            None => vec![],
            Some(Found::One(client)) => vec![client],
            Some(Found::Crowd(crowd)) => crowd.iter().map(|member| member.client).collect(),
        }
    }

    proptest::proptest! {
        /// Random joins and leaves: the table has exactly who a naive list has, and every slot is right.
        #[test]
        fn like_a_list(steps in proptest::collection::vec((0u32..20, proptest::bool::ANY), 0..200)) {
            let channel = Channel::Account(1);
            let mut table = Table::default();
            let mut slots: HashMap<u32, u32> = HashMap::new();
            for (client, join) in steps {
                if join && !slots.contains_key(&client) {
                    let slot = table.insert(&channel, member(client), member);
                    slots.insert(client, slot);
                    if slot == 1 {
                        for (other, at) in &mut slots {
                            if *other != client {
                                *at = 0;
                            }
                        }
                    }
                } else if !join
                    && let Some(slot) = slots.remove(&client)
                    && let Some(moved) = table.remove(&channel, slot)
                {
                    slots.insert(moved.member.client, moved.slot);
                }
                let mut have = clients(&table, &channel);
                have.sort_unstable();
                let mut want: Vec<u32> = slots.keys().copied().collect();
                want.sort_unstable();
                proptest::prop_assert_eq!(have, want);
                if let Some(Found::Crowd(crowd)) = table.find(&channel) {
                    for (slot, member) in crowd.iter().enumerate() {
                        proptest::prop_assert_eq!(slots[&member.client], slot as u32);
                    }
                }
            }
        }
    }
}
