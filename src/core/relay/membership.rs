//! Joining and leaving channels.

use super::{Relay, Socket};
use crate::core::client::Client;
use crate::core::handover::NewSubscription;
use crate::core::lowest::LowestSlab;
use crate::core::slack::is_sparse;
use crate::core::stream::Channel;
use crate::core::table::{Member, Moved, SYSTEM, SubIndex};

/// Which channel a membership is of: what the table asks. A client's subscriptions are in its list before they
/// are in the table, and out of the table before they are out of the list.
pub(super) fn channel_of<S>(clients: &LowestSlab<Client<S>>, member: Member) -> Channel {
    let channel =
        clients.get(member.client as usize).and_then(|client| client.channel(member.sub, member.leg));
    debug_assert!(channel.is_some(), "{member:?} is in the table and has no channel");
    channel.unwrap_or(Channel::System(0))
}

impl<S: Socket> Relay<S> {
    /// Adds a membership.
    pub(super) fn enter(&mut self, index: u32, channel: &Channel, sub: SubIndex, leg: u8) {
        let clients = &self.clients;
        let member = Member { client: index, sub, leg };
        let slot = self.table.insert(channel, member, |member| channel_of(clients, member));
        self.note_slot(Moved { member, slot });
    }

    fn note_slot(&mut self, Moved { member, slot }: Moved) {
        let Some(client) = self.clients.get_mut(member.client as usize) else { return };
        if let Some(place) = client.slot(member.sub, member.leg) {
            *place = slot;
        }
    }

    /// Takes a membership out of the table and gives the reference back to the ingest.
    fn exit(&mut self, index: u32, channel: Channel, sub: SubIndex, leg: u8) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let account = client.account;
        let Some(slot) = client.slot(sub, leg).copied() else { return };
        let (clients, member) = (&self.clients, Member { client: index, sub, leg });
        let moved = self.table.remove(&channel, member, slot, |member| channel_of(clients, member));
        if let Some(moved) = moved {
            self.note_slot(moved);
        }
        self.release(channel, account);
    }

    /// Takes the client out of all its channels and gives the references back to the ingest. What it is
    /// still owed must be settled before.
    pub(super) fn leave_all(&mut self, index: u32) {
        let Some(client) = self.clients.get(index as usize) else { return };
        let mut memberships: Vec<(Channel, SubIndex, u8)> = Vec::new();
        for (sub, subscription) in client.subs.iter().enumerate() {
            self.counters.subscription_ended(client.transport, subscription.kind());
            let channels = subscription.channels(client.account, client.scopes);
            memberships.extend((0..).zip(channels).map(|(leg, channel)| (channel, sub as SubIndex, leg)));
        }
        for (leg, channel) in (0..).zip(client.system_channels()) {
            memberships.extend(channel.map(|channel| (channel, SYSTEM, leg)));
        }
        for (channel, sub, leg) in memberships {
            self.exit(index, channel, sub, leg);
        }
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.subs = Default::default();
        }
    }

    /// Ends one subscription. What it is still owed must be settled before.
    pub(super) fn leave(&mut self, index: u32, sub: SubIndex) {
        let Some(client) = self.clients.get(index as usize) else { return };
        let Some(subscription) = client.subs.get(usize::from(sub)) else { return };
        self.counters.subscription_ended(client.transport, subscription.kind());
        for (leg, channel) in (0..).zip(subscription.channels(client.account, client.scopes)) {
            self.exit(index, channel, sub, leg);
        }
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.subs.remove(usize::from(sub));
        if is_sparse(client.subs.len(), client.subs.capacity()) {
            client.subs.shrink_to_fit();
        }
        if client.sub_at > sub {
            client.sub_at -= 1;
        }
        // Those behind it move up; the table hears of it.
        for (sub, subscription) in client.subs.iter().enumerate().skip(usize::from(sub)) {
            let (old, new) = (sub as SubIndex + 1, sub as SubIndex);
            for (leg, channel) in (0..).zip(subscription.channels(client.account, client.scopes)) {
                let member = Member { client: index, sub: old, leg };
                self.table.renumber(&channel, member, subscription.slots[usize::from(leg)], new);
            }
        }
    }

    /// References of a subscription that no client here will have.
    pub(super) fn release_all(&mut self, new: &NewSubscription) {
        for channel in &new.channels {
            self.release(channel.clone(), new.account);
        }
    }

    fn release(&mut self, channel: Channel, account: crate::core::stream::Id) {
        let viewer = if channel.is_filtered() { account } else { 0 };
        self.effects.released.push((channel, viewer));
    }
}
