//! The world of the simulation: a model of Redis, sockets of random appetite, and the relay's own types in
//! between.

mod checks;
mod client;
mod redis;
mod way;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tidegate::core::counters::ReactorCounters;
use tidegate::core::event::{Copies, Event, Transport};
use tidegate::core::gate::Gate;
use tidegate::core::handover::{ClientId, Delivery, Viewer};
use tidegate::core::relay::Relay;
use tidegate::core::stream::{Channel, Origin, Param, Scopes, Stream, StreamKind};
use tidegate::core::subscriptions::Subscriptions;
use tidegate::limits::Limits;
use tidegate::proto::ring::Ring;

use client::{Model, Published, SimSocket, Weather};
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
    Subscribe { client: ClientId, stream: Stream },
}

/// A message in the audience stage, with its reactors' mask.
struct Staged {
    event: Arc<Event>,
    mask: u16,
    withheld: Vec<u64>,
}

const ACCOUNTS: u64 = 6;
const HIGH_BYTES: usize = 48 << 10;
const MESSAGE_BYTES_MAX: usize = 24 << 10;
/// `SLOW_CLIENT_GRACE`.
const GRACE: Duration = Duration::from_secs(5);
/// A step that takes long, and some in which it is not the turn of a reactor that has something to do.
const PAUSE_SLACK: Duration = Duration::from_secs(6);

pub struct World {
    random: Random,
    talk: bool,
    now: Duration,
    gate: Arc<Gate>,
    copies: Copies,
    gate_opened: Arc<AtomicBool>,
    paused_since: Option<Duration>,
    weather: Weather,
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
    /// What Redis has sent and the ingest has not read, in order.
    wire: VecDeque<Published>,
    /// What waits in the audience stage.
    stage: BTreeMap<Channel, VecDeque<Staged>>,
    /// Commands about a channel that were sent and whose answers were not read yet.
    unanswered: BTreeMap<Channel, u32>,
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
            slow_client_grace: GRACE,
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
            copies: Copies::default(),
            gate_opened,
            paused_since: None,
            weather: Weather::default(),
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
            wire: VecDeque::new(),
            stage: BTreeMap::new(),
            unanswered: BTreeMap::new(),
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
            17 | 18 => self.give_up_half_written(),
            13 => self.now += Duration::from_millis(self.random.below(3000)),
            _ => {}
        }
        self.now += Duration::from_millis(self.random.below(40));
        if self.random.once_in(3) {
            self.stage_works();
        }
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
            self.unsubscribe(model, &stream);
        }
    }

    fn unsubscribe(&mut self, model: u64, stream: &Stream) {
        let mut json = format!(r#"{{"type":"unsubscribe","stream":"{}""#, stream.kind.name());
        if let Param::List(list) = stream.param {
            json.push_str(&format!(r#","list":"{list}""#));
        }
        json.push('}');
        self.say(|| format!("client {model} sends {json}"));
        let model = self.models.get_mut(&model).expect("it is open");
        model.may_end(stream);
        model.pipe().say(&json);
    }

    /// A client stops reading, most likely in the middle of a frame, and unsubscribes from everything.
    fn give_up_half_written(&mut self) {
        let Some(model) = self.some_open_websocket() else { return };
        self.say(|| format!("client {model} takes nothing and gives up its streams"));
        self.models[&model].pipe().appetite(0);
        let streams: Vec<Stream> = self.models[&model].streams().cloned().collect();
        streams.iter().for_each(|stream| self.unsubscribe(model, stream));
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
            if self.random.once_in(4) {
                self.say(|| format!("client {model} now takes a frame at a time"));
                return self.models[&model].pipe().piecewise();
            }
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
        let withheld = (1..=ACCOUNTS).filter(|_| filtered && self.random.once_in(3)).collect();
        let number = self.published.to_string();
        // A status goes to the home timelines of several followers.
        let copies = if matches!(channel, Channel::Account(_)) { self.random.below(3) } else { 0 };
        self.send(&message, Published { channel, number: number.clone(), withheld });
        for _ in 0..copies {
            let channel = Channel::Account(1 + self.random.below(ACCOUNTS));
            self.send(&message, Published { channel, number: number.clone(), withheld: Vec::new() });
        }
    }

    /// Redis hands a message to its subscribers.
    fn send(&mut self, message: &[u8], published: Published) {
        if self.redis.publish(&published.channel, message) {
            return self.wire.push_back(published);
        }
        let listener = self.models.iter().find(|(_, model)| model.listens_to(&published.channel));
        assert!(listener.is_none(), "Redis is not subscribed to {:?}: {listener:?}", published.channel);
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
        self.wire.clear();
        self.unanswered.clear();
        self.models.values_mut().for_each(Model::redis_lost);
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
}

/// What a client is subscribed to, by its stream's name.
pub fn name_of(stream: &Stream) -> String {
    let mut json = Vec::new();
    stream.write_json(&mut json);
    String::from_utf8(json).unwrap()
}
