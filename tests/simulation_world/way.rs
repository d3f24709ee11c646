//! The way of a message from Redis to the sockets, step by step, as production's drivers take it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tidegate::core::event::{Audience, Parsed, Position, Verdict, Withheld};
use tidegate::core::handover::{ClientId, Delivery, HoldError, NewClient, NewSubscription, Viewer, Want};
use tidegate::core::relay::Pressure;
use tidegate::core::stream::{Channel, Stream};
use tidegate::proto::ring::{Frame, Payload};

use super::client::{self, Model, Pipe, SimSocket};
use super::{ACCOUNTS, Errand, GRACE, HIGH_BYTES, Staged, World};

impl World {
    /// Commands go out, Redis executes what it got, presence keys are set.
    pub(super) fn redis_works(&mut self) {
        if !self.connected {
            return;
        }
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        self.subscriptions.next_commands(100, &mut subscribe, &mut unsubscribe);
        for channel in subscribe.iter().chain(&unsubscribe) {
            *self.unanswered.entry(channel.clone()).or_default() += 1;
        }
        for channel in subscribe {
            self.redis.command(channel, true);
        }
        for channel in unsubscribe {
            self.redis.command(channel, false);
        }
        let executed = self.random.below(6) as usize;
        self.redis.execute(executed);
        let mut presence = Vec::new();
        self.subscriptions.next_presence(self.random.below(5) as usize, &mut presence);
        for channel in presence {
            self.subscriptions.presence_set(&channel);
        }
    }

    /// Reads what Redis sent, in random pieces, as long as the gate allows.
    pub(super) fn ingest(&mut self) {
        self.gate_opened.store(false, Ordering::SeqCst);
        for _ in 0..1 + self.random.below(4) {
            if !self.connected || !self.gate.may_read() {
                break;
            }
            let space = self.ring.read_space();
            let most = 1 + (self.random.next() as usize % space.len());
            let read = self.redis.read(&mut space[..most]);
            if read == 0 {
                break;
            }
            self.ring.filled(read);
            self.frames();
        }
        if self.subscriptions.take_regained() {
            self.say(|| "everything is subscribed again".into());
            for inbox in &mut self.inboxes {
                inbox.push_back(Delivery::Regained);
            }
        }
    }

    pub(super) fn frames(&mut self) {
        loop {
            // Between messages only, as in production: what was read and cannot be held yet stays in the ring.
            if !self.gate.may_read() {
                return;
            }
            let frame = match self.ring.next().expect("Redis speaks RESP") {
                None => return,
                Some(frame) => frame,
            };
            match frame {
                Frame::Message { channel, payload } => {
                    let Some(channel) = Channel::parse(channel) else { continue };
                    // The ring's next frame may come before this one's turn.
                    let payload = Payload::Owned(payload.into_bytes());
                    self.message(channel, payload);
                }
                Frame::Subscribed { channel, .. } => {
                    let channel = Channel::parse(channel).expect("a channel of ours");
                    self.command_answered(&channel);
                    self.subscriptions.confirmed(&channel);
                }
                Frame::Unsubscribed { channel, .. } => {
                    let channel = Channel::parse(channel).expect("a channel of ours");
                    self.command_answered(&channel);
                    self.subscriptions.unsubscribed(&channel);
                }
                other => panic!("Redis sent {other:?}"),
            }
        }
    }

    /// The answer to a command about that channel was read.
    fn command_answered(&mut self, channel: &Channel) {
        let unanswered = self.unanswered.get_mut(channel).expect("a command was sent");
        *unanswered -= 1;
        if *unanswered == 0 {
            self.unanswered.remove(channel);
        }
    }

    pub(super) fn message(&mut self, channel: Channel, payload: Payload<'_>) {
        let mut withheld = Vec::new();
        if !channel.is_system() {
            let published = self.wire.pop_front().expect("Redis has sent it");
            assert_eq!(published.channel, channel, "in Redis's order");
            self.read_all();
            // Before the last command's answer Redis sends what was published before it executed an UNSUBSCRIBE: that is
            // nobody's who subscribed since.
            if !self.unanswered.contains_key(&channel) {
                self.models.values_mut().for_each(|model| model.expect(&published));
            }
            withheld = published.withheld;
        }
        let Some(mask) = self.subscriptions.reactors(&channel) else { return };
        self.seq += 1;
        let at = Position { epoch: self.epoch, seq: self.seq, read_at: self.now };
        let published = payload.as_ref().to_vec();
        match self.copies.parse(channel.clone(), at, payload, &self.gate) {
            Parsed::Kill => {
                self.say(|| format!("kill on {channel:?}"));
                self.subscriptions.killed(&channel);
                self.each_reactor(mask, |inbox| inbox.push_back(Delivery::Kill(channel.clone())));
            }
            Parsed::Event(event) => {
                // What is shared with a copy is what was published here.
                let carried = published.windows(event.payload().len()).any(|part| part == event.payload());
                assert!(carried, "{event:?} is not what was published on {channel:?}");
                if channel.is_filtered() {
                    return self.stage.entry(channel).or_default().push_back(Staged {
                        event,
                        mask,
                        withheld,
                    });
                }
                self.each_reactor(mask, |inbox| inbox.push_back(Delivery::Event(Arc::clone(&event))));
            }
            other => panic!("{other:?}"),
        }
    }

    /// PostgreSQL answers some of what was asked: a channel's messages go on in their order, those of different
    /// channels in any.
    pub(super) fn stage_works(&mut self) {
        for _ in 0..self.random.below(6) {
            let waiting: Vec<Channel> = self.stage.keys().cloned().collect();
            if waiting.is_empty() {
                return;
            }
            let channel = &waiting[self.random.below(waiting.len() as u64) as usize];
            self.decided(channel);
        }
    }

    pub(super) fn stage_finishes(&mut self) {
        while let Some(channel) = self.stage.keys().next().cloned() {
            self.decided(&channel);
        }
    }

    fn decided(&mut self, channel: &Channel) {
        let Some(queue) = self.stage.get_mut(channel) else { return };
        if let Some(Staged { event, mask, withheld }) = queue.pop_front() {
            if event.needs_audience() {
                let verdict = |account| match withheld.contains(&account) {
                    true => Verdict::Withheld(Withheld::Relationship),
                    false => Verdict::Deliver(0),
                };
                let verdicts = (1..=ACCOUNTS).map(|account| (account, verdict(account))).collect();
                let audience = Audience { verdicts, ..Audience::default() };
                event.audience().set(audience).expect("asked once");
            }
            self.each_reactor(mask, |inbox| inbox.push_back(Delivery::Event(Arc::clone(&event))));
        }
        if self.stage.get(channel).is_some_and(VecDeque::is_empty) {
            self.stage.remove(channel);
        }
    }

    pub(super) fn each_reactor(
        &mut self,
        mask: u16,
        mut push: impl FnMut(&mut VecDeque<Delivery<SimSocket>>),
    ) {
        for (reactor, inbox) in self.inboxes.iter_mut().enumerate() {
            if mask & (1 << reactor) != 0 {
                push(inbox);
            }
        }
    }

    /// What the door does: confirmed tickets are attached or answered, or given up.
    pub(super) fn work_tickets(&mut self) {
        let mut finished = Vec::new();
        self.subscriptions.take_finished(&mut finished);
        for (ticket, outcome) in finished {
            match outcome {
                Ok(()) => self.confirmed.push(ticket),
                Err(error) => self.refused(ticket, error),
            }
        }
        self.confirmed.sort_unstable();
        for ticket in std::mem::take(&mut self.confirmed) {
            if self.random.once_in(3) && !self.settling {
                self.confirmed.push(ticket);
            } else if self.random.once_in(12) {
                self.subscriptions.cancel(ticket);
                self.refused(ticket, HoldError::Refused);
            } else {
                self.answered(ticket);
            }
        }
    }

    /// The errand failed: nobody comes, or the client hears an error.
    pub(super) fn refused(&mut self, ticket: u64, error: HoldError) {
        self.say(|| format!("ticket {ticket}: {error}"));
        if let Some(Errand::Subscribe { client, stream }) = self.errands.remove(&ticket) {
            if let Some(model) = self.model_of(client) {
                model.may_end(&stream);
            }
            let answer = Bytes::from_static(br#"{"error":"Redis is away","status":503}"#);
            self.inboxes[usize::from(client.reactor)].push_back(Delivery::Refused(client, stream, answer));
        }
    }

    /// The client that has this place, if it is still there.
    fn model_of(&mut self, client: ClientId) -> Option<&mut Model> {
        let seen = self.relays[usize::from(client.reactor)].inspect(client.index)?;
        let key = (seen.generation == client.generation).then(|| seen.socket.key())?;
        self.models.get_mut(&key)
    }

    /// Redis has confirmed what the ticket is for.
    fn answered(&mut self, ticket: u64) {
        let delivery = match &self.errands[&ticket] {
            Errand::Arrive { .. } => return self.attach(ticket),
            Errand::Subscribe { client, .. } => Delivery::Answer(*client, None),
        };
        if let Some(Errand::Subscribe { client, stream }) = self.errands.remove(&ticket) {
            if let Some(model) = self.model_of(client) {
                model.confirm(&stream);
            }
            self.inboxes[usize::from(client.reactor)].push_back(delivery);
        }
    }

    fn attach(&mut self, ticket: u64) {
        let reactor = self.random.below(self.relays.len() as u64) as u16;
        if let Err(error) = self.subscriptions.attach(ticket, reactor) {
            return self.refused(ticket, error);
        }
        let delivery = match self.errands.remove(&ticket).unwrap() {
            Errand::Arrive { viewer, transport, stream } => {
                let key = self.next_model;
                self.next_model += 1;
                self.weather.now.set(self.now);
                let appetite = if self.random.once_in(3) { 2000 } else { usize::MAX };
                let pipe = Pipe::new(appetite, &self.weather);
                let mut model = Model::new(transport, viewer, pipe.clone(), reactor);
                if let Some(stream) = &stream {
                    model.register(stream.clone());
                    model.confirm(stream);
                }
                self.models.insert(key, model);
                self.say(|| format!("client {key} comes to reactor {reactor}: {viewer:?} {stream:?}"));
                let subscription = stream.map(|stream| NewSubscription {
                    channels: stream.channels(viewer.account, viewer.scopes.notifications()),
                    stream,
                    account: viewer.account,
                });
                let newcomer = NewClient {
                    socket: SimSocket::new(key, pipe),
                    transport,
                    viewer,
                    expires_at: None,
                    head: Bytes::from_static(client::HEAD),
                    read_ahead: Bytes::new(),
                    subscription,
                    address: None,
                    request: None,
                };
                Delivery::Client(Box::new(newcomer), self.seq)
            }
            Errand::Subscribe { .. } => unreachable!("answered"),
        };
        self.inboxes[usize::from(reactor)].push_back(delivery);
    }

    /// One turn of a reactor's loop, as the driver does it.
    pub(super) fn turn(&mut self, reactor: usize) {
        let now = self.now;
        self.weather.now.set(now);
        let count = self.random.below(8) as usize;
        for _ in 0..count {
            let Some(delivery) = self.inboxes[reactor].pop_front() else { break };
            self.read_all();
            if let Delivery::Subscription(client, new, _) = &delivery
                && let Some(model) = self.model_of(*client)
            {
                model.arrived(&new.stream);
            }
            self.relays[reactor].deliver(delivery, now);
            let arrived = std::mem::take(&mut self.relays[reactor].effects.arrived);
            for index in arrived {
                self.arrived(reactor, index);
            }
            self.sync(reactor);
        }
        let keys: Vec<u64> = self
            .models
            .iter()
            .filter(|(_, model)| usize::from(model.reactor) == reactor && model.index.is_some())
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            let Some(index) = self.models[&key].index else { continue };
            let pipe = self.models[&key].pipe();
            if pipe.has_become_writable() {
                self.relays[reactor].writable(index);
            }
            if pipe.has_news() {
                self.relays[reactor].readable(index, pipe.has_left(), &mut [0; 300], now);
                self.sync(reactor);
            }
        }
        self.relays[reactor].read_on(&mut [0; 300], now);
        self.sync(reactor);
        self.weather.probing.set(true);
        self.relays[reactor].tick(now);
        self.weather.probing.set(false);
        self.sync(reactor);
        // Writing takes time: each write sees a later clock than the turn began with.
        let mut clock = now;
        self.relays[reactor].flush(&mut || {
            clock += Duration::from_millis(1);
            clock
        });
        self.sync(reactor);
        self.relieve(reactor);
        self.relays[reactor].publish_gauges();
        self.sync(reactor);
        self.take_effects(reactor);
        self.read_all();
    }

    /// Has the relay close slow clients. Each of those must have earned it.
    fn relieve(&mut self, reactor: usize) {
        let closed = self.gate.is_closed();
        let paused_for =
            self.paused_since.filter(|_| closed).map_or(Duration::ZERO, |since| self.now - since);
        let headroom_half_used = closed && self.random.once_in(30);
        let pressure = Pressure { paused_for, headroom_half_used, ..Pressure::default() };
        let pause_ends = pressure.headroom_half_used || paused_for >= GRACE;
        let held = self.gate.held_bytes();
        self.read_all();
        let is_here = |model: &&Model| usize::from(model.reactor) == reactor && model.is_open();
        let open: Vec<u64> =
            self.models.iter().filter(|(_, model)| is_here(model)).map(|(key, _)| *key).collect();
        self.weather.probing.set(true);
        self.relays[reactor].relieve(&self.gate, pressure, self.now);
        self.weather.probing.set(false);
        self.read_all();
        self.sync(reactor);
        for key in open {
            let Some(model) = self.models.get(&key).filter(|model| !model.is_open()) else { continue };
            if model.pipe().has_left() {
                continue;
            }
            let stalled = model.pipe().taken_nothing_for() >= Duration::from_secs(1);
            let unfinished = model.finished_nothing_for() >= GRACE;
            assert!(
                held > HIGH_BYTES / 2,
                "client {key} is closed for room, and there is room: {held} bytes"
            );
            assert!(
                stalled || unfinished || pause_ends,
                "client {key} is closed for room, and it takes bytes: {model:?}"
            );
        }
    }

    /// What the relay now says of its clients: the models note streams that came and went.
    pub(super) fn sync(&mut self, reactor: usize) {
        for (key, model) in &mut self.models {
            if usize::from(model.reactor) != reactor {
                continue;
            }
            let Some(index) = model.index else { continue };
            match self.relays[reactor].inspect(index) {
                Some(seen) if seen.socket.key() == *key => model.sync(&seen),
                _ => model.gone(),
            }
        }
    }

    pub(super) fn take_effects(&mut self, reactor: usize) {
        let effects = std::mem::take(&mut self.relays[reactor].effects);
        for (channel, _) in effects.released {
            self.subscriptions.release(&channel);
        }
        for request in effects.requests {
            match request.want {
                Want::Subscribe(stream) => self.subscribe(request.client, request.viewer, stream),
                Want::UnsubscribeList(_) => {
                    self.inboxes[reactor].push_back(Delivery::Answer(request.client, None));
                }
            }
        }
    }

    /// A client subscribes by message: it is registered at once and confirmed later.
    fn subscribe(&mut self, client: ClientId, viewer: Viewer, stream: Stream) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.errands.insert(ticket, Errand::Subscribe { client, stream: stream.clone() });
        let channels = stream.channels(viewer.account, viewer.scopes.notifications());
        let held = channels.iter().cloned().collect();
        if !self.subscriptions.subscribe(ticket, held, client.reactor, ticket) {
            return;
        }
        self.say(|| format!("{client} is registered for {stream:?}"));
        if let Some(model) = self.model_of(client) {
            model.register(stream.clone());
        }
        let new = NewSubscription { channels, stream, account: viewer.account };
        let delivery = Delivery::Subscription(client, new, self.seq);
        self.inboxes[usize::from(client.reactor)].push_back(delivery);
    }

    fn arrived(&mut self, reactor: usize, index: u32) {
        let Some(seen) = self.relays[reactor].inspect(index) else { return };
        let key = seen.socket.key();
        let model = self.models.get_mut(&key).unwrap();
        model.index = Some(index);
        model.everything_arrived();
    }
}
