//! What is known of a channel that is referenced or in flight: 8 bytes, and 8 for nearly every channel's name.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::core::slack::Slack;
use crate::core::stream::Channel;

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct State {
    /// Tickets and clients that hold the channel.
    pub refs: u32,
    /// The reactors with a client on it, a bit each.
    pub reactors: u16,
    /// Commands sent and not answered.
    pub in_flight: u8,
    pub flags: u8,
}

const _: () = assert!(std::mem::size_of::<(u64, State)>() == 16);

/// The last command sent for this channel was SUBSCRIBE.
pub(super) const SENT: u8 = 1;
/// It stands in the list of channels to send.
pub(super) const UNSENT: u8 = 2;
/// Its presence key is set.
pub(super) const PRESENT: u8 = 4;
/// It stands in the list of keys to set.
pub(super) const ASKED: u8 = 8;
/// Referenced when the connection was made, and not yet back.
pub(super) const RESUMING: u8 = 16;
/// Redis will not have it, so it is not sent again until somebody asks for it.
pub(super) const REFUSED: u8 = 32;
/// Refused together with others: sent on its own next time, to find out which one it was.
pub(super) const ALONE: u8 = 64;

impl State {
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub fn wanted(self) -> bool {
        self.refs > 0 && !self.has(REFUSED)
    }

    pub fn is_ready(self, channel: &Channel) -> bool {
        self.refs > 0 && self.has(SENT) && self.in_flight == 0 && (channel.is_system() || self.has(PRESENT))
    }
}

/// Channel → state. Channels that pack into a word, which are all but hashtags, are kept as words: a third less
/// for the largest table of this process.
#[derive(Debug, Default)]
pub(super) struct States {
    packed: HashMap<u64, State, RandomState>,
    others: HashMap<Channel, State, RandomState>,
}

impl States {
    pub fn get(&self, channel: &Channel) -> Option<&State> {
        match channel.packed() {
            Some(word) => self.packed.get(&word),
            None => self.others.get(channel),
        }
    }

    pub fn get_mut(&mut self, channel: &Channel) -> Option<&mut State> {
        match channel.packed() {
            Some(word) => self.packed.get_mut(&word),
            None => self.others.get_mut(channel),
        }
    }

    pub fn get_or_insert(&mut self, channel: &Channel) -> &mut State {
        match channel.packed() {
            Some(word) => self.packed.entry(word).or_default(),
            None => self.others.entry(channel.clone()).or_default(),
        }
    }

    pub fn remove(&mut self, channel: &Channel) {
        match channel.packed() {
            Some(word) => self.packed.remove(&word),
            None => self.others.remove(channel),
        };
        self.packed.give_back();
        self.others.give_back();
    }

    pub fn len(&self) -> usize {
        self.packed.len() + self.others.len()
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&mut State) -> bool) {
        self.packed.retain(|_, state| keep(state));
        self.others.retain(|_, state| keep(state));
        self.packed.give_back();
        self.others.give_back();
    }

    pub fn iter(&self) -> impl Iterator<Item = (Channel, &State)> {
        let packed = self.packed.iter().filter_map(|(word, state)| Some((Channel::unpacked(*word)?, state)));
        packed.chain(self.others.iter().map(|(channel, state)| (channel.clone(), state)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Channel, &mut State)> {
        let packed =
            self.packed.iter_mut().filter_map(|(word, state)| Some((Channel::unpacked(*word)?, state)));
        packed.chain(self.others.iter_mut().map(|(channel, state)| (channel.clone(), state)))
    }

    #[cfg(test)]
    pub fn capacity(&self) -> usize {
        self.packed.capacity() + self.others.capacity()
    }
}
