//! Joining and leaving channels.

use super::{Relay, Socket};
use crate::core::client::Client;
use crate::core::handover::NewSubscription;
use crate::core::stream::Channel;
use crate::core::table::{Member, Moved, SYSTEM, SubIndex};

impl<S: Socket> Relay<S> {
    /// Adds a membership of a system channel and notes its slot.
    pub(super) fn enter(&mut self, index: u32, channel: &Channel, sub: SubIndex, leg: u8) {
        let slot = self.enter_slot(index, channel, sub, leg);
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.system_slots[usize::from(leg)] = slot;
        }
    }

    /// Adds a membership and returns its slot.
    pub(super) fn enter_slot(&mut self, index: u32, channel: &Channel, sub: SubIndex, leg: u8) -> u32 {
        let clients = &self.clients;
        self.table.insert(channel, Member { client: index, sub, leg }, |alone| {
            let (sub, leg) =
                clients.get(alone as usize).and_then(|client| client.leg(channel)).unwrap_or((SYSTEM, 0));
            Member { client: alone, sub, leg }
        })
    }

    fn leave_slot(&mut self, channel: &Channel, slot: u32) {
        let Some(Moved { member, slot }) = self.table.remove(channel, slot) else { return };
        let Some(client) = self.clients.get_mut(member.client as usize) else { return };
        if member.sub == SYSTEM {
            client.system_slots[usize::from(member.leg)] = slot;
        } else if let Some(subscription) = client.subs.get_mut(usize::from(member.sub)) {
            subscription.slots[usize::from(member.leg)] = slot;
        }
    }

    /// Takes the client out of all its channels and gives the references back to the ingest. What it is
    /// still owed must be settled before.
    pub(super) fn leave_all(&mut self, index: u32) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let subs = std::mem::take(&mut client.subs);
        let (account, scopes, transport) = (client.account, client.scopes, client.transport);
        let (system, system_slots) = (client.system_channels(), client.system_slots);
        // A later membership of this client may take the slot of an earlier one: the slots move on here.
        let mut memberships: Vec<(Channel, SubIndex, u8)> = Vec::new();
        for (sub, subscription) in subs.iter().enumerate() {
            self.counters.subscription_ended(transport, subscription.kind());
            for (leg, channel) in subscription.channels(account, scopes).into_iter().enumerate() {
                memberships.push((channel, sub as SubIndex, leg as u8));
            }
        }
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.subs = subs;
        }
        for (channel, sub, leg) in memberships {
            let slot = self
                .clients
                .get(index as usize)
                .and_then(|client| client.subs.get(usize::from(sub)))
                .map_or(0, |subscription| subscription.slots[usize::from(leg)]);
            self.leave_slot(&channel, slot);
            self.release(channel, account);
        }
        for (leg, channel) in system.into_iter().enumerate() {
            if let Some(channel) = channel {
                self.leave_slot(&channel, system_slots[leg]);
                self.release(channel, account);
            }
        }
        if let Some(client) = self.clients.get_mut(index as usize) {
            client.subs = Default::default();
        }
    }

    /// Ends one subscription. What it is still owed must be settled before.
    pub(super) fn leave(&mut self, index: u32, sub: SubIndex) {
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let (account, scopes, transport) = (client.account, client.scopes, client.transport);
        let Some(subscription) = client.subs.get(usize::from(sub)) else { return };
        let (kind, channels) = (subscription.kind(), subscription.channels(account, scopes));
        self.counters.subscription_ended(transport, kind);
        for (leg, channel) in channels.into_iter().enumerate() {
            let slot = self
                .clients
                .get(index as usize)
                .and_then(|client| client.subs.get(usize::from(sub)))
                .map_or(0, |subscription| subscription.slots[leg]);
            self.leave_slot(&channel, slot);
            self.release(channel, account);
        }
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        client.subs.remove(usize::from(sub));
        if client.sub_at > sub {
            client.sub_at -= 1;
        }
        // Those behind it move up; the table hears of it.
        let moved_up: Vec<(Channel, u32, SubIndex)> = Self::numbered_from(client, sub);
        for (channel, slot, sub) in moved_up {
            self.table.renumber(&channel, slot, sub);
        }
    }

    fn numbered_from(client: &Client<S>, first: SubIndex) -> Vec<(Channel, u32, SubIndex)> {
        let mut all = Vec::new();
        for (sub, subscription) in client.subs.iter().enumerate().skip(usize::from(first)) {
            for (leg, channel) in subscription.channels(client.account, client.scopes).into_iter().enumerate()
            {
                all.push((channel, subscription.slots[leg], sub as SubIndex));
            }
        }
        all
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
