//! What is known of a channel that is referenced or in flight: 8 bytes.

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

const _: () = assert!(std::mem::size_of::<(Channel, State)>() == 24);

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
