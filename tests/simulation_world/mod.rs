//! The world of the simulation: a model of Redis, sockets of random appetite, and the relay's own types in
//! between.

mod client;
mod redis;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};
use tidegate::core::counters::ReactorCounters;
use tidegate::core::event::{Audience, Event, Parsed, Position, Transport, Verdict, Withheld};
use tidegate::core::gate::Gate;
use tidegate::core::handover::{ClientId, Delivery, HoldError, NewClient, NewSubscription, Viewer, Want};
use tidegate::core::relay::{Pressure, Relay};
use tidegate::core::stream::{Channel, Origin, Param, Scopes, Stream, StreamKind};
use tidegate::core::subscriptions::Subscriptions;
use tidegate::limits::Limits;
use tidegate::proto::ring::{Frame, Ring};

use client::{Model, Pipe, SimSocket};
use redis::ModelRedis;

/// Small numbers with a seed (splitmix64).
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// What a ticket is for.
enum Errand {
    Arrive { viewer: Viewer, transport: Transport, stream: Option<Stream> },
    Subscribe { client: ClientId, stream: Stream, viewer: Viewer },
}

const ACCOUNTS: u64 = 6;
const HIGH_BYTES: usize = 48 << 10;
const MESSAGE_BYTES_MAX: usize = 24 << 10;

pub struct World {
    random: Random,
    talk: bool,
    now: Duration,
    gate: Arc<Gate>,
    gate_opened: Arc<AtomicBool>,
    paused_since: Option<Duration>,
    redis: ModelRedis,
    connected: bool,
    ring: Ring,
    subscriptions: Subscriptions<u64>,
    errands: HashMap<u64, Errand>,
    confirmed: Vec<u64>,
    next_ticket: u64,
    next_token: u64,
    seq: u64,
    epoch: u32,
    published: u64,
    relays: Vec<Relay<SimSocket>>,
    counters: Vec<Arc<ReactorCounters>>,
    inboxes: Vec<VecDeque<Delivery<SimSocket>>>,
    models: BTreeMap<u64, Model>,
    next_model: u64,
    settling: bool,
}

impl World {
    pub fn new(seed: u64, talk: bool) -> World {
        let mut random = Random(seed);
        let reactors = 1 + random.below(3) as usize;
        let limits = Limits {
            backpressure_high_bytes: HIGH_BYTES,
            message_bytes_max: MESSAGE_BYTES_MAX,
            reactors,
            ..Limits::default()
        };
        let gate_opened = Arc::new(AtomicBool::new(false));
        let opened = Arc::clone(&gate_opened);
        let gate = Gate::new(HIGH_BYTES, HIGH_BYTES / 2, move || opened.store(true, Ordering::SeqCst));
        let counters: Vec<Arc<ReactorCounters>> = (0..reactors).map(|_| Arc::default()).collect();
        let relays = counters
            .iter()
            .enumerate()
            .map(|(number, counters)| {
                Relay::new(number as u16, limits.clone(), Duration::ZERO, Arc::clone(counters))
            })
            .collect();
        let mut subscriptions = Subscriptions::default();
        subscriptions.connected();
        subscriptions.take_regained();
        World {
            random,
            talk,
            now: Duration::from_secs(1),
            ring: Ring::new(limits.message_bytes_max),
            gate,
            gate_opened,
            paused_since: None,
            redis: ModelRedis::default(),
            connected: true,
            subscriptions,
            errands: HashMap::new(),
            confirmed: Vec::new(),
            next_ticket: 1,
            next_token: 100,
            seq: 0,
            epoch: 1,
            published: 0,
            relays,
            counters,
            inboxes: (0..reactors).map(|_| VecDeque::new()).collect(),
            models: BTreeMap::new(),
            next_model: 1,
            settling: false,
        }
    }

    pub fn run(mut self) {
        let steps = 150 + self.random.below(250);
        for _ in 0..steps {
            self.step();
            self.check();
        }
        self.settle();
        self.farewell();
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.talk {
            println!("[{:>7} ms] {}", self.now.as_millis(), what());
        }
    }

    fn step(&mut self) {
        match self.random.below(24) {
            0 | 1 => self.newcomer(),
            2 => self.client_subscribes(),
            3 => self.client_unsubscribes(),
            4 if self.random.once_in(6) => self.client_leaves(),
            5..=8 => self.publish(),
            9 | 14 => {
                for _ in 0..self.random.below(12) {
                    self.publish();
                }
            }
            10 if self.random.once_in(20) => self.lose_redis(),
            11 if self.random.once_in(12) => self.kill(),
            12 | 15 | 16 => self.change_appetite(),
            13 => self.now += Duration::from_millis(self.random.below(3000)),
            _ => {}
        }
        self.now += Duration::from_millis(self.random.below(40));
        if !self.connected && self.random.once_in(6) {
            self.regain_redis();
        }
        if self.random.below(3) > 0 {
            self.redis_works();
        }
        if self.random.below(4) > 0 {
            self.ingest();
        }
        self.work_tickets();
        for reactor in 0..self.relays.len() {
            if self.random.below(4) > 0 {
                self.turn(reactor);
            }
        }
    }

    fn newcomer(&mut self) {
        let account = 1 + self.random.below(ACCOUNTS);
        self.next_token += 1;
        let scopes = if self.random.once_in(4) { Scopes::READ_STATUSES } else { Scopes::READ };
        let viewer = Viewer { account, token: self.next_token, scopes };
        let transport = match self.random.below(3) {
            0 => Transport::SseChunked,
            _ => Transport::WebSocket,
        };
        let stream = (transport != Transport::WebSocket || self.random.below(3) > 0).then(|| self.stream());
        let mut channels: SmallVec<[Channel; 4]> =
            smallvec![Channel::AccessToken(viewer.token), Channel::System(account)];
        if let Some(stream) = &stream {
            channels.extend(stream.channels(account, scopes.notifications()));
        }
        self.hold(channels, Errand::Arrive { viewer, transport, stream });
    }

    fn stream(&mut self) -> Stream {
        let kind = match self.random.below(6) {
            0 | 1 => StreamKind::User,
            2 => StreamKind::UserNotification,
            3 => StreamKind::Public,
            4 => StreamKind::PublicLocal,
            _ => StreamKind::List,
        };
        let param =
            if kind == StreamKind::List { Param::List(1 + self.random.below(3)) } else { Param::None };
        Stream { kind, allow_local_only: false, param, spelling: None }
    }

    fn hold(&mut self, channels: SmallVec<[Channel; 4]>, errand: Errand) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.errands.insert(ticket, errand);
        self.subscriptions.hold(ticket, channels, ticket);
    }

    fn client_subscribes(&mut self) {
        let stream = self.stream();
        if let Some(model) = self.some_open_websocket() {
            let mut json = format!(r#"{{"type":"subscribe","stream":"{}""#, stream.kind.name());
            if let Param::List(list) = stream.param {
                json.push_str(&format!(r#","list":"{list}""#));
            }
            json.push('}');
            self.say(|| format!("client {model} sends {json}"));
            self.models[&model].pipe().say(&json);
        }
    }

    fn client_unsubscribes(&mut self) {
        let stream = self.stream();
        if let Some(model) = self.some_open_websocket() {
            let mut json = format!(r#"{{"type":"unsubscribe","stream":"{}""#, stream.kind.name());
            if let Param::List(list) = stream.param {
                json.push_str(&format!(r#","list":"{list}""#));
            }
            json.push('}');
            self.say(|| format!("client {model} sends {json}"));
            self.models[&model].pipe().say(&json);
        }
    }

    fn client_leaves(&mut self) {
        if let Some(model) = self.some_open() {
            self.say(|| format!("client {model} leaves"));
            self.models[&model].pipe().leave();
        }
    }

    fn some_open(&mut self) -> Option<u64> {
        let open: Vec<u64> =
            self.models.iter().filter(|(_, model)| model.is_open()).map(|(key, _)| *key).collect();
        (!open.is_empty()).then(|| open[self.random.below(open.len() as u64) as usize])
    }

    fn some_open_websocket(&mut self) -> Option<u64> {
        self.some_open().filter(|model| self.models[model].transport == Transport::WebSocket)
    }

    fn change_appetite(&mut self) {
        if let Some(model) = self.some_open() {
            let appetite = match self.random.below(4) {
                0 if self.random.once_in(3) => 0,
                0 | 1 => 1 + self.random.below(700) as usize,
                2 => 4096,
                _ => usize::MAX,
            };
            self.say(|| format!("client {model} now takes {appetite} bytes at a time"));
            self.models[&model].pipe().appetite(appetite);
        }
    }

    fn publish(&mut self) {
        let channel = match self.random.below(5) {
            0 => Channel::Public { origin: Origin::Any, media: false },
            1 => Channel::Public { origin: Origin::Local, media: false },
            2 => Channel::Notifications(1 + self.random.below(ACCOUNTS)),
            3 => Channel::List(1 + self.random.below(3)),
            _ => Channel::Account(1 + self.random.below(ACCOUNTS)),
        };
        self.published += 1;
        let padding = match self.random.below(12) {
            0 => 9000 + self.random.below(14_000) as usize,
            1..=4 => 1000 + self.random.below(4000) as usize,
            _ => self.random.below(300) as usize,
        };
        let filtered = channel.is_filtered() && self.random.below(3) > 0;
        let message = redis::message(self.published, padding, filtered);
        self.redis.publish(&channel, &message);
    }

    fn kill(&mut self) {
        let channel = if self.random.once_in(2) {
            Channel::System(1 + self.random.below(ACCOUNTS))
        } else {
            Channel::AccessToken(101 + self.random.below(self.next_token - 99))
        };
        self.redis.publish(&channel, br#"{"event":"kill"}"#);
    }

    fn lose_redis(&mut self) {
        if !self.connected {
            return;
        }
        self.say(|| "Redis is lost".into());
        self.connected = false;
        self.epoch += 1;
        self.redis = ModelRedis::default();
        self.ring.clear();
        self.subscriptions.connection_lost();
        for inbox in &mut self.inboxes {
            inbox.push_back(Delivery::Gap(self.epoch));
        }
    }

    fn regain_redis(&mut self) {
        self.say(|| "Redis is back".into());
        self.connected = true;
        self.subscriptions.connected();
    }

    /// Commands go out, Redis executes what it got, presence keys are set.
    fn redis_works(&mut self) {
        if !self.connected {
            return;
        }
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        self.subscriptions.next_commands(100, &mut subscribe, &mut unsubscribe);
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
    fn ingest(&mut self) {
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

    fn frames(&mut self) {
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
                    let payload = payload.into_bytes();
                    self.message(channel, payload);
                }
                Frame::Subscribed { channel, .. } => {
                    let channel = Channel::parse(channel).expect("a channel of ours");
                    self.subscriptions.confirmed(&channel);
                }
                Frame::Unsubscribed { channel, .. } => {
                    let channel = Channel::parse(channel).expect("a channel of ours");
                    self.subscriptions.unsubscribed(&channel);
                }
                other => panic!("Redis sent {other:?}"),
            }
        }
    }

    fn message(&mut self, channel: Channel, payload: Bytes) {
        let Some(mask) = self.subscriptions.reactors(&channel) else { return };
        self.seq += 1;
        let at = Position { epoch: self.epoch, seq: self.seq, read_at: self.now };
        match Event::parse(channel.clone(), at, payload, &self.gate) {
            Parsed::Kill => {
                self.say(|| format!("kill on {channel:?}"));
                self.subscriptions.killed(&channel);
                self.each_reactor(mask, |inbox| inbox.push_back(Delivery::Kill(channel.clone())));
            }
            Parsed::Event(event) => {
                if event.needs_audience() {
                    let verdicts = (1..=ACCOUNTS)
                        .map(|account| {
                            let verdict = if self.random.once_in(3) {
                                Verdict::Withheld(Withheld::Relationship)
                            } else {
                                Verdict::Deliver(0)
                            };
                            (account, verdict)
                        })
                        .collect();
                    let audience = Audience {
                        verdicts,
                        outcomes: vec![Bytes::from_static(b"[]")],
                        ..Audience::default()
                    };
                    event.audience().set(audience).expect("asked once");
                }
                self.each_reactor(mask, |inbox| inbox.push_back(Delivery::Event(Arc::clone(&event))));
            }
            other => panic!("{other:?}"),
        }
    }

    fn each_reactor(&mut self, mask: u16, mut push: impl FnMut(&mut VecDeque<Delivery<SimSocket>>)) {
        for (reactor, inbox) in self.inboxes.iter_mut().enumerate() {
            if mask & (1 << reactor) != 0 {
                push(inbox);
            }
        }
    }

    /// What the door does: confirmed tickets are attached, or given up.
    fn work_tickets(&mut self) {
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
                self.attach(ticket);
            }
        }
    }

    /// The errand failed: nobody comes, or the client hears an error.
    fn refused(&mut self, ticket: u64, error: HoldError) {
        self.say(|| format!("ticket {ticket}: {error}"));
        if let Some(Errand::Subscribe { client, .. }) = self.errands.remove(&ticket) {
            let answer = Some(Bytes::from_static(br#"{"error":"Redis is away","status":503}"#));
            self.inboxes[usize::from(client.reactor)].push_back(Delivery::Answer(client, answer));
        }
    }

    fn attach(&mut self, ticket: u64) {
        let reactor = match &self.errands[&ticket] {
            Errand::Subscribe { client, .. } => client.reactor,
            Errand::Arrive { .. } => self.random.below(self.relays.len() as u64) as u16,
        };
        if let Err(error) = self.subscriptions.attach(ticket, reactor) {
            return self.refused(ticket, error);
        }
        let delivery = match self.errands.remove(&ticket).unwrap() {
            Errand::Arrive { viewer, transport, stream } => {
                let key = self.next_model;
                self.next_model += 1;
                let pipe = Pipe::new(if self.random.once_in(3) { 2000 } else { usize::MAX });
                let model = Model::new(transport, viewer, pipe.clone(), reactor);
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
                };
                Delivery::Client(Box::new(newcomer), self.seq)
            }
            Errand::Subscribe { client, stream, viewer } => {
                let channels = stream.channels(viewer.account, viewer.scopes.notifications());
                let new = NewSubscription { channels, stream, account: viewer.account };
                Delivery::Subscription(client, new, self.seq)
            }
        };
        self.inboxes[usize::from(reactor)].push_back(delivery);
    }

    /// One turn of a reactor's loop, as the driver does it.
    fn turn(&mut self, reactor: usize) {
        let now = self.now;
        let count = self.random.below(8) as usize;
        for _ in 0..count {
            let Some(delivery) = self.inboxes[reactor].pop_front() else { break };
            self.read_all();
            if let Delivery::Event(event) = &delivery {
                for model in self.models.values_mut().filter(|model| usize::from(model.reactor) == reactor) {
                    model.expect(event);
                }
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
        self.relays[reactor].tick(now);
        self.sync(reactor);
        self.relays[reactor].flush(&mut || now);
        self.sync(reactor);
        let closed = self.gate.is_closed();
        if !closed {
            self.paused_since = None;
        }
        let paused_for = if closed { now - *self.paused_since.get_or_insert(now) } else { Duration::ZERO };
        let pressure = Pressure {
            over: closed || self.gate.is_over(),
            paused_for,
            headroom_half_used: closed && self.random.once_in(30),
        };
        self.relays[reactor].relieve(pressure, now);
        self.sync(reactor);
        self.take_effects(reactor);
        self.read_all();
    }

    /// What the relay now says of its clients: the models note streams that came and went.
    fn sync(&mut self, reactor: usize) {
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

    fn take_effects(&mut self, reactor: usize) {
        let effects = std::mem::take(&mut self.relays[reactor].effects);
        for (channel, _) in effects.released {
            self.subscriptions.release(&channel);
        }
        for request in effects.requests {
            match request.want {
                Want::Subscribe(stream) => {
                    let viewer = request.viewer;
                    let channels = stream.channels(viewer.account, viewer.scopes.notifications());
                    let errand = Errand::Subscribe { client: request.client, stream, viewer };
                    self.hold(channels.into_iter().collect(), errand);
                }
                Want::UnsubscribeList(_) => {
                    self.inboxes[reactor].push_back(Delivery::Answer(request.client, None));
                }
            }
        }
    }

    fn arrived(&mut self, reactor: usize, index: u32) {
        let Some(socket) = self.relays[reactor].socket(index) else { return };
        let key = socket.key();
        self.models.get_mut(&key).unwrap().index = Some(index);
    }

    /// Reads what the sockets took and compares it with what was expected.
    fn read_all(&mut self) {
        for model in self.models.values_mut() {
            model.read();
        }
        self.models.retain(|_, model| !model.is_gone());
    }

    fn check(&mut self) {
        self.read_all();
        for counters in &self.counters {
            let ledger = counters.ledger();
            assert_eq!(ledger.difference(), 0, "{ledger:?}");
        }
        // A message and all of its frames may be over the mark, and what was read before the gate was asked.
        let bound = 3 * (HIGH_BYTES + MESSAGE_BYTES_MAX);
        assert!(self.gate.held_bytes() <= bound, "{} bytes are held", self.gate.held_bytes());
    }

    /// Fair weather until everything has arrived: whoever is still open must have got all of it.
    fn settle(&mut self) {
        self.settling = true;
        if !self.connected {
            self.regain_redis();
        }
        for model in self.models.values() {
            model.pipe().appetite(usize::MAX);
        }
        for _ in 0..600 {
            self.now += Duration::from_millis(50);
            self.redis_works();
            self.ingest();
            self.work_tickets();
            for reactor in 0..self.relays.len() {
                self.turn(reactor);
            }
            for model in self.models.values() {
                model.pipe().appetite(usize::MAX);
            }
            self.check();
        }
        for (key, model) in &self.models {
            assert!(!model.is_open() || model.owes_nothing(), "client {key} lacks messages: {model:?}");
        }
        assert_eq!(self.gate.held_bytes(), 0, "everything was delivered, and bytes are held");
    }

    /// Everyone leaves: nothing stays behind.
    fn farewell(&mut self) {
        for model in self.models.values() {
            model.pipe().leave();
        }
        for _ in 0..400 {
            self.now += Duration::from_millis(50);
            self.redis_works();
            self.ingest();
            self.work_tickets();
            for reactor in 0..self.relays.len() {
                self.turn(reactor);
            }
            for model in self.models.values() {
                model.pipe().leave();
            }
            self.check();
        }
        assert!(self.relays.iter().all(Relay::is_empty), "clients stay");
        assert_eq!(self.subscriptions.referenced(), 0, "references stay");
        assert_eq!(self.redis.subscribed(), 0, "Redis is still subscribed to");
        for counters in &self.counters {
            assert_eq!(counters.ledger().pending, 0);
            for flow in &counters.clients {
                assert_eq!(flow.live(), 0);
            }
            for flow in counters.subscriptions.iter().flatten() {
                assert_eq!(flow.live(), 0);
            }
        }
    }
}

/// What a client is subscribed to, by its stream's name.
pub fn name_of(stream: &Stream) -> String {
    let mut json = Vec::new();
    stream.write_json(&mut json);
    String::from_utf8(json).unwrap()
}
