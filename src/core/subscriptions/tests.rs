//! Random interleavings against a naive Redis that executes commands, and answers them, in order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::core::stream::Tag;

const CHANNELS: u64 = 6;

fn channel(n: u64) -> Channel {
    match n % CHANNELS {
        0 => Channel::AccessToken(1),
        1 => Channel::System(1),
        2 => Channel::Account(1),
        3 => Channel::Notifications(1),
        4 => Channel::List(7),
        _ => Channel::Hashtag { tag: Tag::from_normalised("cats"), local: false },
    }
}

fn held(channels: &[Channel]) -> Held {
    channels.iter().cloned().collect()
}

#[derive(Clone, Debug)]
enum Step {
    Hold(Vec<u64>),
    Subscribe(Vec<u64>, u16),
    Attach(usize),
    Cancel(usize),
    Release(usize),
    Send(usize),
    Execute(usize),
    Read(usize),
    AskPresence(usize),
    SetPresence(usize),
    Kill(u64),
    Refuse(u64, bool),
    Lose,
    Connect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::btree_set(0..CHANNELS, 1..4)
            .prop_map(|set| Step::Hold(set.into_iter().collect())),
        3 => (prop::collection::btree_set(0..CHANNELS, 1..3), 0..3u16)
            .prop_map(|(set, reactor)| Step::Subscribe(set.into_iter().collect(), reactor)),
        4 => any::<usize>().prop_map(Step::Attach),
        2 => any::<usize>().prop_map(Step::Cancel),
        4 => any::<usize>().prop_map(Step::Release),
        5 => (1usize..4).prop_map(Step::Send),
        6 => (1usize..5).prop_map(Step::Execute),
        6 => (1usize..5).prop_map(Step::Read),
        4 => (1usize..4).prop_map(Step::AskPresence),
        4 => (1usize..4).prop_map(Step::SetPresence),
        1 => (0..2u64).prop_map(Step::Kill),
        1 => (0..CHANNELS, any::<bool>()).prop_map(|(n, refused)| Step::Refuse(n, refused)),
        1 => Just(Step::Lose),
        2 => Just(Step::Connect),
    ]
}

#[derive(Clone, Debug)]
enum Sent {
    Subscribe(Vec<Channel>),
    Unsubscribe(Vec<Channel>),
}

#[derive(Clone, Debug)]
enum Answer {
    Subscribed(Channel),
    Unsubscribed(Channel),
    Error(Vec<Channel>),
}

/// The world around the table: Redis, its presence keys, the door and the reactors.
#[derive(Default)]
struct World {
    table: Subscriptions<Ticket>,
    connected: bool,
    commands: VecDeque<Sent>,
    answers: VecDeque<Answer>,
    subscribed: BTreeSet<Channel>,
    refused: BTreeSet<Channel>,
    asked: VecDeque<Channel>,
    keys: BTreeSet<Channel>,
    next_ticket: Ticket,
    waiting: BTreeMap<Ticket, Vec<Channel>>,
    // Those of them that are no newcomers': a client has the references.
    of_clients: BTreeSet<Ticket>,
    ready: BTreeMap<Ticket, Vec<Channel>>,
    killed: BTreeSet<Ticket>,
    clients: Vec<Vec<Channel>>,
    // Clients from before the present connection: they get nothing but their end.
    gapped: Vec<Vec<Channel>>,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Hold(numbers) => {
                self.next_ticket += 1;
                let channels: Vec<Channel> = numbers.into_iter().map(channel).collect();
                self.waiting.insert(self.next_ticket, channels.clone());
                self.table.hold(self.next_ticket, held(&channels), self.next_ticket);
            }
            Step::Subscribe(numbers, reactor) => {
                self.next_ticket += 1;
                let channels: Vec<Channel> = numbers.into_iter().map(channel).collect();
                let begun =
                    self.table.subscribe(self.next_ticket, held(&channels), reactor, self.next_ticket);
                assert_eq!(begun, self.connected);
                self.waiting.insert(self.next_ticket, channels.clone());
                if begun {
                    self.of_clients.insert(self.next_ticket);
                    for channel in &channels {
                        assert!(self.table.reactors(channel).is_some());
                    }
                }
            }
            Step::Attach(which) => {
                let Some(ticket) = pick(&self.ready, which) else { return };
                let channels = self.ready.remove(&ticket).unwrap();
                match self.table.attach(ticket, (which % 3) as u16) {
                    Ok(got) => {
                        assert!(!self.killed.contains(&ticket));
                        assert_eq!(got.to_vec(), channels);
                        for channel in &channels {
                            assert_ne!(self.table.reactors(channel).unwrap() & 1 << (which % 3), 0);
                        }
                        self.clients.push(channels);
                    }
                    Err(error) => {
                        assert_eq!(error, HoldError::Killed);
                        assert!(self.killed.remove(&ticket));
                    }
                }
            }
            Step::Cancel(which) => {
                let ticket = match which % 2 {
                    0 => pick(&self.waiting, which / 2),
                    _ => pick(&self.ready, which / 2),
                };
                if let Some(ticket) = ticket {
                    self.table.cancel(ticket);
                    let channels = self.waiting.remove(&ticket);
                    if self.of_clients.remove(&ticket) {
                        // The client is told, and gives back what it has.
                        channels.iter().flatten().for_each(|channel| self.table.release(channel));
                    }
                    self.ready.remove(&ticket);
                    self.killed.remove(&ticket);
                }
            }
            Step::Release(which) => {
                let list = if which % 2 == 0 { &mut self.clients } else { &mut self.gapped };
                if !list.is_empty() {
                    let channels = list.swap_remove(which / 2 % list.len());
                    channels.iter().for_each(|channel| self.table.release(channel));
                }
            }
            Step::Send(max) if self.connected => {
                let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
                self.table.next_commands(max, &mut subscribe, &mut unsubscribe);
                assert!(subscribe.len() <= max && unsubscribe.len() <= max);
                if !subscribe.is_empty() {
                    self.commands.push_back(Sent::Subscribe(subscribe));
                }
                if !unsubscribe.is_empty() {
                    self.commands.push_back(Sent::Unsubscribe(unsubscribe));
                }
            }
            Step::Execute(count) => (0..count).for_each(|_| self.execute()),
            Step::Read(count) => (0..count).for_each(|_| self.read()),
            Step::AskPresence(max) if self.connected => {
                let mut channels = Vec::new();
                self.table.next_presence(max, &mut channels);
                self.asked.extend(channels);
            }
            Step::SetPresence(count) => {
                for _ in 0..count {
                    if let Some(channel) = self.asked.pop_front() {
                        assert!(!channel.is_system());
                        self.keys.insert(channel.clone());
                        self.table.presence_set(&channel);
                    }
                }
            }
            Step::Kill(n) if self.connected => {
                let channel = channel(n);
                // A waiting ticket fails at once, which `check` sees; a ready one when it is attached.
                self.killed
                    .extend(self.ready.iter().filter(|(_, held)| held.contains(&channel)).map(|(t, _)| *t));
                self.table.killed(&channel);
                for (_, result) in self.take_finished() {
                    assert_eq!(result, Err(HoldError::Killed));
                }
            }
            Step::Refuse(n, true) => drop(self.refused.insert(channel(n))),
            Step::Refuse(n, false) => drop(self.refused.remove(&channel(n))),
            Step::Lose if self.connected => self.lose(),
            Step::Connect if !self.connected => {
                self.connected = true;
                self.gapped.append(&mut self.clients);
                self.table.connected();
            }
            _ => {}
        }
        self.check();
    }

    fn execute(&mut self) {
        match self.commands.pop_front() {
            Some(Sent::Subscribe(channels)) => {
                if channels.iter().any(|channel| self.refused.contains(channel)) {
                    return self.answers.push_back(Answer::Error(channels));
                }
                for channel in channels {
                    self.subscribed.insert(channel.clone());
                    self.answers.push_back(Answer::Subscribed(channel));
                }
            }
            Some(Sent::Unsubscribe(channels)) => {
                for channel in channels {
                    self.subscribed.remove(&channel);
                    self.answers.push_back(Answer::Unsubscribed(channel));
                }
            }
            None => {}
        }
    }

    fn read(&mut self) {
        match self.answers.pop_front() {
            Some(Answer::Subscribed(channel)) => self.table.confirmed(&channel),
            Some(Answer::Unsubscribed(channel)) => self.table.unsubscribed(&channel),
            Some(Answer::Error(channels)) => self.table.refused(&channels),
            None => {}
        }
    }

    fn lose(&mut self) {
        self.connected = false;
        self.table.connection_lost();
        self.commands.clear();
        self.answers.clear();
        self.subscribed.clear();
        self.asked.clear();
        self.keys.clear();
        for (ticket, result) in self.take_finished() {
            assert_eq!(result, Err(HoldError::RedisAway), "ticket {ticket}");
        }
        assert!(self.waiting.is_empty(), "every ticket that waited is answered");
        for ticket in std::mem::take(&mut self.ready).into_keys() {
            assert_eq!(self.table.attach(ticket, 0), Err(HoldError::RedisAway));
        }
        self.killed.clear();
        self.gapped.append(&mut self.clients);
    }

    fn take_finished(&mut self) -> Vec<(Ticket, Result<(), HoldError>)> {
        let mut finished = Vec::new();
        self.table.take_finished(&mut finished);
        for (ticket, result) in &finished {
            let channels = self.waiting.remove(ticket).expect("answered once, and not after a cancel");
            match (self.of_clients.remove(ticket), result) {
                (false, Ok(())) => drop(self.ready.insert(*ticket, channels)),
                (false, Err(_)) => {}
                (true, Ok(())) => self.clients.push(channels),
                (true, Err(HoldError::RedisAway)) => self.gapped.push(channels),
                (true, Err(_)) => channels.iter().for_each(|channel| self.table.release(channel)),
            }
        }
        finished
    }

    fn check(&mut self) {
        for (ticket, result) in self.take_finished() {
            match result {
                Ok(()) => {
                    assert!(self.table.is_live());
                    let of_client = self.clients.last();
                    if let (None, Some(channels)) = (self.ready.get(&ticket), of_client) {
                        // From the answer on at the latest, its messages are the client's.
                        channels.iter().for_each(|channel| assert_ne!(self.table.reactors(channel), Some(0)));
                    }
                    for channel in self.ready.get(&ticket).or(of_client).expect("it is somebody's") {
                        assert!(self.subscribed.contains(channel), "{channel:?} is not subscribed");
                        assert!(channel.is_system() || self.keys.contains(channel), "{channel:?} has no key");
                    }
                }
                Err(HoldError::RedisAway) => assert!(!self.connected),
                Err(HoldError::Refused) => assert!(self.connected),
                Err(HoldError::PresenceRefused) => panic!("keys refused though none was"),
                Err(HoldError::Killed) => panic!("killed without a kill"),
            }
        }
        // A client's channels stay subscribed until the client gives them back.
        for channel in self.clients.iter().flatten() {
            assert!(self.subscribed.contains(channel), "{channel:?} has a client and is not subscribed");
        }
        for (ticket, channels) in &self.ready {
            if !self.killed.contains(ticket) {
                channels.iter().for_each(|channel| assert!(self.subscribed.contains(channel)));
            }
        }

        let mut refs: BTreeMap<Channel, u32> = BTreeMap::new();
        let ready = self.ready.iter().filter(|(ticket, _)| !self.killed.contains(ticket)).map(|(_, c)| c);
        let holders = self.waiting.values().chain(ready).chain(&self.clients).chain(&self.gapped);
        for channel in holders.flatten() {
            *refs.entry(channel.clone()).or_default() += 1;
        }
        let table: BTreeMap<Channel, u32> = self
            .table
            .table
            .iter()
            .filter(|(_, state)| state.refs > 0)
            .map(|(channel, state)| (channel.clone(), state.refs))
            .collect();
        assert_eq!(table, refs);
        assert_eq!(self.table.referenced(), refs.len());
        for (channel, list) in &self.table.waiting {
            assert!(!list.is_empty());
            assert!(list.iter().all(|ticket| self.waiting[ticket].contains(channel)));
        }
        for (channel, state) in self.table.table.iter() {
            assert!(state.refs > 0 || state.in_flight > 0 || state.has(UNSENT), "{channel:?} has leaked");
            assert_eq!(state.has(UNSENT), self.table.unsent.contains(&channel));
        }
    }

    /// Does everything that waits to be done, without anything new.
    fn quiesce(&mut self) {
        for _ in 0..10_000 {
            let idle = self.commands.is_empty() && self.answers.is_empty() && self.asked.is_empty();
            if idle && self.table.unsent.is_empty() && self.table.unset.is_empty() {
                return;
            }
            self.step(Step::Send(3));
            self.step(Step::Execute(1));
            self.step(Step::Read(3));
            self.step(Step::AskPresence(3));
            self.step(Step::SetPresence(3));
        }
        panic!("it never comes to rest");
    }
}

fn pick<V>(map: &BTreeMap<Ticket, V>, which: usize) -> Option<Ticket> {
    (!map.is_empty()).then(|| *map.keys().nth(which % map.len()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_keeps_the_promises(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::default();
        world.step(Step::Connect);
        for step in steps {
            world.step(step);
        }
        world.step(Step::Connect);
        world.refused.clear();
        world.quiesce();
        prop_assert!(world.table.is_live(), "everything is subscribed again");
        prop_assert!(world.waiting.is_empty(), "everybody who waited got an answer");

        while let Some(ticket) = pick(&world.ready, 0) {
            world.table.cancel(ticket);
            world.ready.remove(&ticket);
            world.killed.remove(&ticket);
        }
        while !world.clients.is_empty() || !world.gapped.is_empty() {
            world.step(Step::Release(0));
            world.step(Step::Release(1));
        }
        world.quiesce();
        prop_assert!(world.subscribed.is_empty(), "{:?} leaked in Redis", world.subscribed);
        prop_assert_eq!(world.table.table.len(), 0);
        prop_assert!(world.table.tickets.is_empty());
        prop_assert!(world.table.waiting.is_empty());
    }
}

fn live() -> World {
    let mut world = World::default();
    world.step(Step::Connect);
    world
}

#[test]
fn a_channel_that_comes_and_goes_between_two_batches_costs_redis_nothing() {
    let mut world = live();
    world.step(Step::Hold(vec![2]));
    world.step(Step::Cancel(0));
    world.step(Step::Send(9));
    assert!(world.commands.is_empty());
    assert_eq!(world.table.table.len(), 0);
}

#[test]
fn of_several_commands_in_flight_only_the_last_confirmation_counts() {
    let mut world = live();
    world.step(Step::Hold(vec![0]));
    world.step(Step::Send(9));
    world.step(Step::Cancel(0));
    world.step(Step::Send(9));
    world.step(Step::Hold(vec![0]));
    world.step(Step::Send(9));
    assert_eq!(world.commands.len(), 3);
    world.step(Step::Execute(3));
    world.step(Step::Read(2));
    assert!(world.ready.is_empty());
    world.step(Step::Read(1));
    assert_eq!(world.ready.len(), 1);
}

#[test]
fn a_presence_key_is_asked_for_once_however_many_hold_the_channel() {
    let mut world = live();
    for _ in 0..10 {
        world.step(Step::Hold(vec![2]));
    }
    world.step(Step::AskPresence(99));
    assert_eq!(world.asked.len(), 1);
}

#[test]
fn one_refused_channel_of_a_batch_harms_nobody_else() {
    let mut world = live();
    world.step(Step::Refuse(1, true));
    world.step(Step::Hold(vec![0]));
    world.step(Step::Hold(vec![1]));
    world.quiesce();
    assert_eq!(world.ready.keys().copied().collect::<Vec<_>>(), [1]);
    assert_eq!(world.table.referenced(), 1);
}

#[test]
fn newcomers_wait_until_everything_is_back() {
    let mut world = live();
    world.step(Step::Hold(vec![2]));
    world.quiesce();
    world.step(Step::Attach(0));
    world.step(Step::Lose);
    world.step(Step::Connect);
    world.step(Step::Hold(vec![0]));
    world.step(Step::Send(9));
    world.step(Step::Execute(9));
    world.step(Step::Read(9));
    assert!(world.ready.is_empty(), "the other client's presence key is not set again yet");
    world.table.take_regained();
    world.step(Step::AskPresence(9));
    world.step(Step::SetPresence(9));
    assert_eq!(world.ready.len(), 1);
    assert!(world.table.take_regained());
    assert!(!world.table.take_regained());
}

/// A channel of which there are many.
fn one_of_many(n: u64) -> Channel {
    match n % 2 {
        0 => Channel::Account(n),
        _ => Channel::Hashtag { tag: Tag::from_normalised(&format!("tag{n}")), local: false },
    }
}

#[test]
fn memory_of_tickets_comes_back_when_they_are_cancelled() {
    let mut table: Subscriptions<()> = Subscriptions::default();
    table.connected();
    (0..5000).for_each(|n| table.hold(n, held(&[one_of_many(n)]), ()));
    assert!(table.tickets.capacity() >= 5000 && table.waiting.capacity() >= 5000);
    (0..5000).for_each(|n| table.cancel(n));
    table.next_commands(9, &mut Vec::new(), &mut Vec::new());
    table.next_presence(9, &mut Vec::new());
    assert!(table.capacity() < 500, "room for {} entries is kept", table.capacity());
}

/// Redis does all that is asked of it.
fn settle(table: &mut Subscriptions<Ticket>) {
    loop {
        let (mut subscribe, mut unsubscribe, mut present) = (Vec::new(), Vec::new(), Vec::new());
        table.next_commands(1000, &mut subscribe, &mut unsubscribe);
        table.next_stale(1000, &mut Vec::new());
        table.next_presence(1000, &mut present);
        table.take_finished(&mut Vec::new());
        if subscribe.is_empty() && unsubscribe.is_empty() && present.is_empty() {
            return;
        }
        subscribe.iter().for_each(|channel| table.confirmed(channel));
        unsubscribe.iter().for_each(|channel| table.unsubscribed(channel));
        present.iter().for_each(|channel| table.presence_set(channel));
    }
}

#[test]
fn memory_of_channels_comes_back_when_their_clients_leave() {
    const CLIENTS: u64 = 20_000;
    let mut world = live();
    for n in 0..CLIENTS {
        world.table.hold(n, held(&[one_of_many(n)]), n);
    }
    settle(&mut world.table);
    for n in 0..CLIENTS {
        world.table.attach(n, 0).unwrap();
    }
    assert!(world.table.capacity() >= CLIENTS as usize);
    // No further newcomer: what comes back comes back on departures.
    (0..CLIENTS).for_each(|n| world.table.release(&one_of_many(n)));
    settle(&mut world.table);
    assert_eq!(world.table.referenced(), 0);
    assert!(world.table.capacity() < 500, "room for {} entries is kept", world.table.capacity());
}

#[test]
fn hashtags_whose_keys_are_to_end_are_bounded_by_their_text() {
    let mut world = live();
    for n in 0..50_000 {
        let tag = Tag::from_normalised(&format!("{n:0500}"));
        let channel = Channel::Hashtag { tag, local: false };
        world.table.hold(n, held(std::slice::from_ref(&channel)), n);
        world.table.next_presence(9, &mut Vec::new());
        world.table.cancel(n);
    }
    assert!(world.table.stale.len() > 5000);
    assert!(world.table.stale_bytes <= STALE_BYTES_MAX, "{} bytes", world.table.stale_bytes);
    while !world.table.stale.is_empty() {
        world.table.next_stale(1000, &mut Vec::new());
    }
    assert_eq!(world.table.stale_bytes, 0);
}

#[test]
fn keys_that_cannot_be_set_do_not_pile_up() {
    let mut table: Subscriptions<()> = Subscriptions::default();
    table.connected();
    let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
    for n in 1..100_000 {
        table.hold(n, held(&[Channel::Account(n)]), ());
        table.cancel(n);
        table.next_commands(9, &mut subscribe, &mut unsubscribe);
        assert!(subscribe.is_empty() && unsubscribe.is_empty());
    }
    assert!(table.unset.len() <= UNSET_CLEAN_MIN);
    assert_eq!(table.table.len(), 0);
}

#[test]
fn the_parts_of_a_refresh_make_up_all_channels_with_keys() {
    let mut world = live();
    world.step(Step::Hold(vec![0, 2, 3, 4, 5]));
    world.quiesce();
    let mut channels = Vec::new();
    (0..12).for_each(|shard| world.table.refresh(shard, 12, &mut channels));
    channels.sort();
    let mut expected: Vec<Channel> = [2, 3, 4, 5].map(channel).to_vec();
    expected.sort();
    assert_eq!(channels, expected);
}

#[test]
fn the_key_of_a_hashtag_that_nobody_holds_any_more_is_to_end() {
    let mut world = live();
    let tag = Channel::Hashtag { tag: Tag::from_normalised("sea"), local: false };
    let stale = |world: &mut World| {
        let mut channels = Vec::new();
        world.table.next_stale(9, &mut channels);
        channels
    };
    let ask = |world: &mut World| world.table.next_presence(9, &mut Vec::new());
    // Its key was never asked for: nothing is to end.
    world.table.hold(1, held(std::slice::from_ref(&tag)), 1);
    world.table.cancel(1);
    assert_eq!(stale(&mut world), []);
    // It may be set by now, whether that was answered or not. Somebody else still needs it.
    world.table.hold(2, held(std::slice::from_ref(&tag)), 2);
    ask(&mut world);
    world.table.hold(3, held(std::slice::from_ref(&tag)), 3);
    world.table.cancel(2);
    assert_eq!(stale(&mut world), []);
    world.table.cancel(3);
    assert_eq!(stale(&mut world), std::slice::from_ref(&tag));
    assert_eq!(stale(&mut world), [], "once");
    // Wanted again before it was taken off: it stays.
    world.table.hold(4, held(std::slice::from_ref(&tag)), 4);
    ask(&mut world);
    world.table.cancel(4);
    world.table.hold(5, held(std::slice::from_ref(&tag)), 5);
    assert_eq!(stale(&mut world), []);
    // Nobody invents accounts: their keys end by themselves.
    world.table.hold(6, held(&[channel(2)]), 6);
    ask(&mut world);
    world.table.cancel(6);
    assert_eq!(stale(&mut world), []);
}
