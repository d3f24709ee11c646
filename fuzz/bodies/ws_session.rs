//! What a WebSocket client says, and what becomes of it: a relay with one client, a door that answers, Redis
//! that publishes, time that passes, a socket that is full at times.
//!
//! Checked after every step: the bytes that the socket took are whole frames that tungstenite reads, nothing
//! after a close; a client has no more subscriptions than allowed, none twice, and one question at the door;
//! it sent no more frames than allowed, and holds no more unfinished than allowed, nor for longer; only what it
//! subscribed to is delivered; the ledger balances. At the end every channel is given back.
//!
//! Input: a byte for the size of the reads and for how much may be said, one for the token's scopes, then steps (see `Session::step`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tidegate::core::client::Socket;
use tidegate::core::counters::ReactorCounters;
use tidegate::core::event::{Audience, Event, Parsed, Position, Transport};
use tidegate::core::gate::Gate;
use tidegate::core::handover::{Delivery, NewClient, NewSubscription, SessionRequest, Viewer, Want};
use tidegate::core::relay::Relay;
use tidegate::core::stream::{Channel, Origin, Param, Scopes, StreamKind, Tag};
use tidegate::limits::Limits;

use super::frames;
use super::input::Input;

const ACCOUNT: u64 = 7;
const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
const SUBSCRIPTIONS_MAX: usize = 4;
const BURST: u32 = 10;
const UNFINISHED_BYTES_MAX: usize = 800;
const UNFINISHED_TIMEOUT: Duration = Duration::from_secs(30);

/// Messages a second.
const MESSAGE_RATE: u32 = 1;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut session = Session::new(&mut input);
    for _ in 0..200 {
        if input.is_empty() || session.relay.is_empty() {
            break;
        }
        session.step(&mut input);
        session.settle();
    }
    session.end();
}

struct Session {
    relay: Relay<FakeSocket>,
    counters: Arc<ReactorCounters>,
    gate: Arc<Gate>,
    pipe: Rc<RefCell<Pipe>>,
    buffer: Vec<u8>,
    now: Duration,
    seq: u64,
    viewer: Viewer,
    asked: Option<SessionRequest>,
    /// References that the client holds, by channel.
    held: BTreeMap<Channel, usize>,
    /// Every stream that it ever had, as it comes back.
    had: BTreeSet<String>,
    /// Bytes that were looked at.
    read: usize,
    /// How many messages were sent, as long as all were well-formed and no time has passed.
    polite: Option<u32>,
    /// Whether bytes were sent that are no frames: later ones may be taken for something else.
    junk: bool,
    /// Whole frames that were sent since the beginning, of any kind.
    frames: u32,
    began: Duration,
    message_burst: u32,
    /// Since when there is something unfinished, as the client may find by itself.
    unfinished_since: Option<Duration>,
}

impl Session {
    fn new(input: &mut Input<'_>) -> Session {
        let choice = input.below(6);
        let buffer = vec![0; [1, 7, 64, 4096, 64, 4096][choice]];
        // Reads of a byte or two cost more than what is counted here.
        let message_burst = if choice < 4 { 1_000_000 } else { 16 };
        let scopes = input.of(&[Scopes::READ, Scopes::READ_STATUSES, Scopes::READ_NOTIFICATIONS]);
        let viewer = Viewer { account: ACCOUNT, token: 9, scopes };
        let limits = Limits {
            client_message_bytes_max: 600,
            subscriptions_max: SUBSCRIPTIONS_MAX,
            client_message_rate: MESSAGE_RATE,
            client_message_burst: message_burst,
            subscribe_rate: 2,
            subscribe_burst: BURST,
            param_bytes_max: 24,
            unfinished_bytes_max: UNFINISHED_BYTES_MAX,
            unfinished_timeout: UNFINISHED_TIMEOUT,
            reactors: 1,
            ..Limits::default()
        };
        let counters: Arc<ReactorCounters> = Arc::default();
        let mut relay = Relay::new(0, limits, Duration::ZERO, Arc::clone(&counters));
        let pipe = Rc::new(RefCell::new(Pipe { room: usize::MAX, ..Pipe::default() }));
        let now = Duration::from_secs(1);
        let client = NewClient {
            socket: FakeSocket(Rc::clone(&pipe)),
            transport: Transport::WebSocket,
            viewer,
            expires_at: None,
            head: Bytes::from_static(HEAD),
            read_ahead: Bytes::copy_from_slice(if input.below(4) == 0 { input.bytes(64) } else { &[] }),
            subscription: None,
            address: None,
            request: None,
        };
        let junk = !client.read_ahead.is_empty();
        let polite = (!junk && choice < 4).then_some(0);
        relay.deliver(Delivery::Client(Box::new(client), 0), now);
        let held = [(Channel::AccessToken(9), 1), (Channel::System(ACCOUNT), 1)].into();
        let mut session = Session {
            relay,
            counters,
            gate: Gate::new(1 << 20, 1 << 19, || {}),
            pipe,
            buffer,
            now,
            seq: 0,
            viewer,
            asked: None,
            held,
            had: BTreeSet::new(),
            read: 0,
            polite,
            junk,
            frames: 0,
            began: now,
            message_burst,
            unfinished_since: None,
        };
        session.settle();
        session
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(19) {
            0 => {
                (self.polite, self.unfinished_since) = (None, None);
                self.junk = true;
                self.send(input.bytes(80));
            }
            1 | 2 => {
                self.polite = None;
                let fragments = 1 + input.below(3);
                let text = input.bytes(250);
                let piece = text.len().div_ceil(fragments).max(1);
                let count = text.chunks(piece).count();
                for (number, part) in text.chunks(piece).enumerate() {
                    let opcode = u8::from(number == 0) | if number + 1 == count { 0x80 } else { 0 };
                    self.send(&frame(opcode, part));
                    self.frames += 1;
                }
                self.unfinished_since = None;
            }
            3..=7 => {
                if let Some(sent) = &mut self.polite {
                    *sent += 1;
                }
                let text = request(input);
                self.send(&frame(0x81, text.as_bytes()));
                self.frames += 1;
                self.unfinished_since = None;
            }
            8 | 9 => self.answer(true),
            10 => self.answer(false),
            11 | 12 => self.publish(input),
            13 => {
                self.now += Duration::from_millis(u64::from(input.byte()) * 250);
                self.relay.tick(self.now);
                // Messages are counted anew, and a ping may have gone unanswered.
                self.polite = None;
                let open = self.relay.inspect(0).is_some_and(|seen| seen.open);
                if let Some(since) = self.unfinished_since.filter(|_| open) {
                    assert!(self.now - since < UNFINISHED_TIMEOUT + Duration::from_millis(1100));
                }
            }
            14 => {
                let room = [0, 1, 30, 200, usize::MAX][input.below(5)];
                self.pipe.borrow_mut().room = room;
                if std::mem::take(&mut self.pipe.borrow_mut().full) {
                    self.relay.writable(0);
                }
            }
            15 => {
                let payload = input.bytes(125).to_vec();
                let opcode = input.of(&[0x89, 0x89, 0x8a, 0x8a, 0x88]);
                if opcode == 0x88 {
                    self.polite = None;
                }
                self.send(&frame(opcode, &payload));
                self.frames += 1;
            }
            16 => {
                self.polite = None;
                let delivery = match input.below(8) {
                    0 => Delivery::Kill(Channel::System(ACCOUNT)),
                    1 => Delivery::Gap(2),
                    2 => Delivery::Regained,
                    3 => Delivery::Drain(100),
                    4 => Delivery::ChannelGap(Channel::Account(ACCOUNT)),
                    // Somebody else's.
                    _ => Delivery::Kill(Channel::System(ACCOUNT + 1)),
                };
                self.relay.deliver(delivery, self.now);
            }
            17 => {
                if input.byte() == 255 {
                    self.polite = None;
                    self.pipe.borrow_mut().left = true;
                    self.relay.readable(0, true, &mut self.buffer, self.now);
                }
            }
            // A message that goes on without end.
            _ => {
                self.polite = None;
                let opcode = if self.unfinished_since.is_some() { 0x00 } else { 0x01 };
                self.send(&frame(opcode, &[b' '; 200][..input.below(200)]));
                self.frames += 1;
                if !self.junk {
                    self.unfinished_since.get_or_insert(self.now);
                }
            }
        }
    }

    /// The client's bytes arrive.
    fn send(&mut self, bytes: &[u8]) {
        if self.relay.is_empty() {
            return;
        }
        self.pipe.borrow_mut().incoming.extend(bytes);
        self.relay.readable(0, false, &mut self.buffer, self.now);
        for _ in 0..10_000 {
            if self.pipe.borrow().incoming.is_empty() || self.relay.is_empty() {
                return;
            }
            self.relay.read_on(&mut self.buffer, self.now);
        }
        panic!("what was sent is not read");
    }

    /// The door answers what it was asked.
    fn answer(&mut self, well: bool) {
        let Some(SessionRequest { client, want, .. }) = self.asked.take() else { return };
        let error = Bytes::from_static(br#"{"error":"Not authorized to stream this list","status":401}"#);
        let delivery = match want {
            // It is registered before it is confirmed; a refusal may come with or without that.
            Want::Subscribe(stream) if well || self.seq.is_multiple_of(2) => {
                let channels = stream.channels(ACCOUNT, self.viewer.scopes.notifications());
                for channel in &channels {
                    *self.held.entry(channel.clone()).or_default() += 1;
                }
                let mut name = Vec::new();
                stream.write_json(&mut name);
                self.had.insert(String::from_utf8(name).expect("a stream's name is text"));
                let subscription = NewSubscription { stream: stream.clone(), channels, account: ACCOUNT };
                self.relay.deliver(Delivery::Subscription(client, subscription, self.seq), self.now);
                if well { Delivery::Answer(client, None) } else { Delivery::Refused(client, stream, error) }
            }
            Want::Subscribe(stream) => Delivery::Refused(client, stream, error),
            Want::UnsubscribeList(_) if well => Delivery::Answer(client, None),
            _ => Delivery::Answer(client, Some(error)),
        };
        self.relay.deliver(delivery, self.now);
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        let channel = match input.below(6) {
            0 => Channel::Account(ACCOUNT),
            1 => Channel::Notifications(ACCOUNT),
            2 => Channel::Public { origin: Origin::Any, media: false },
            3 => Channel::Hashtag { tag: Tag::from_normalised("rust"), local: false },
            4 => Channel::List(12),
            _ => Channel::Direct(ACCOUNT),
        };
        self.seq += 1;
        let position = Position { epoch: 1, seq: self.seq, read_at: self.now };
        let message = match input.below(3) {
            0 => format!(r#"{{"event":"delete","payload":"{}"}}"#, self.seq),
            1 => format!(r#"{{"event":"x","payload":"{}"}}"#, "a".repeat(300)),
            _ => r#"{"event":"update","payload":{"account":{"id":"1","username":"a","acct":"a"},"mentions":[]}}"#
                .to_owned(),
        };
        let Parsed::Event(event) = Event::parse(channel, position, message.into(), &self.gate) else {
            panic!("an event")
        };
        if event.needs_audience() && input.below(2) == 0 {
            event.set_audience(Audience { asked: Arc::from([ACCOUNT]), ..Audience::default() });
        }
        self.relay.deliver(Delivery::Event(event), self.now);
    }

    /// Everything that is due is written, and looked at.
    fn settle(&mut self) {
        let now = self.now;
        for _ in 0..4 {
            self.relay.flush(&mut || now);
        }
        for request in self.relay.effects.requests.drain(..) {
            assert_eq!(request.viewer, self.viewer);
            // A client that was closed meanwhile has left its question behind.
            assert!(self.asked.is_none(), "two questions at once");
            self.asked = Some(request);
        }
        self.relay.effects.arrived.clear();
        self.relay.publish_gauges();
        let unfinished = self.counters.unfinished_bytes.load(Ordering::Relaxed);
        assert!(unfinished <= UNFINISHED_BYTES_MAX as u64, "{unfinished} bytes are unfinished");
        self.take_released();
        if let Some(seen) = self.relay.inspect(0) {
            assert!(seen.streams.len() <= SUBSCRIPTIONS_MAX);
            let channels: Vec<_> = seen
                .streams
                .iter()
                .map(|stream| {
                    let is_public = matches!(stream.param, Param::None);
                    let channels = stream.channels(ACCOUNT, self.viewer.scopes.notifications());
                    (is_public.then_some(stream.kind), channels)
                })
                .collect();
            for (number, one) in channels.iter().enumerate() {
                assert!(!channels[..number].contains(one), "the same stream twice");
            }
            if seen.open {
                let passed = (self.now - self.began).as_secs() as u32 + 1;
                let allowed = self.message_burst.saturating_add(passed * MESSAGE_RATE);
                assert!(self.junk || self.frames <= allowed, "{} frames of {allowed}", self.frames);
            }
            if let Some(sent) = self.polite {
                assert_eq!(seen.open, sent <= BURST, "{sent} messages of {BURST}");
            }
        }
        let ledger = self.counters.ledger();
        let settled =
            ledger.delivered + ledger.filtered + ledger.unsubscribed + ledger.closed + ledger.pending;
        assert_eq!(ledger.owed, settled, "{ledger:?}");
        self.read();
    }

    fn take_released(&mut self) {
        for (channel, viewer) in self.relay.effects.released.drain(..) {
            assert_eq!(viewer, if channel.is_filtered() { ACCOUNT } else { 0 });
            let count = self.held.get_mut(&channel).unwrap_or_else(|| panic!("{channel:?} is not held"));
            *count -= 1;
            if *count == 0 {
                self.held.remove(&channel);
            }
        }
    }

    /// What the client was sent.
    fn read(&mut self) {
        let pipe = self.pipe.borrow();
        if pipe.taken.len() == self.read {
            return;
        }
        self.read = pipe.taken.len();
        let Some(bytes) = pipe.taken.strip_prefix(HEAD) else {
            assert!(HEAD.starts_with(&pipe.taken), "the head comes first");
            return;
        };
        let mut closed = false;
        for message in frames::websocket(bytes) {
            assert!(!closed, "something after a close");
            match message {
                tungstenite::Message::Text(text) => {
                    let value: Value = serde_json::from_str(&text).expect("JSON");
                    if value.get("error").is_none() {
                        let stream = value["stream"].to_string();
                        assert!(self.had.contains(&stream), "{stream} was never asked for");
                    } else {
                        assert!(value["error"].is_string());
                    }
                }
                tungstenite::Message::Close(_) => closed = true,
                tungstenite::Message::Ping(_) | tungstenite::Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The client leaves; the door's answer comes too late.
    fn end(mut self) {
        self.pipe.borrow_mut().left = true;
        self.relay.readable(0, true, &mut self.buffer, self.now);
        for _ in 0..10 {
            if self.relay.is_empty() {
                break;
            }
            self.relay.read_on(&mut self.buffer, self.now);
            self.settle();
            self.now += Duration::from_secs(40);
            self.relay.tick(self.now);
        }
        self.settle();
        assert!(self.relay.is_empty(), "a client that left is still there");
        self.answer(true);
        self.settle();
        assert!(self.held.is_empty(), "never given back: {:?}", self.held);
        assert_eq!(self.gate.held_bytes(), 0, "messages are held for nobody");
    }
}

/// A subscribe or unsubscribe message.
fn request(input: &mut Input<'_>) -> String {
    let kind = input.of(&["subscribe", "subscribe", "subscribe", "unsubscribe"]);
    let stream = match input.below(20) {
        number @ ..14 => StreamKind::ALL[number].name(),
        14 | 15 => "hashtag",
        16 | 17 => "list",
        18 => "user",
        _ => "unknown",
    };
    let param = input.of(&[
        "",
        r#","tag":"rust","list":"12""#,
        r#","tag":"RUST","list":12"#,
        r#","tag":"R\u0171st","list":"x""#,
        r#","tag":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaa","list":99999999999999999999999999"#,
        r#","tag":["a"],"list":{}"#,
        r#","allow_local_only":true,"list":"13","tag":"a""#,
        r#","tag":"b","list":"14""#,
    ]);
    format!(r#"{{"type":"{kind}","stream":"{stream}"{param}}}"#)
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 250];
    let mut out = vec![first];
    match payload.len() {
        short @ ..126 => out.push(0x80 | short as u8),
        long => {
            out.push(0xfe);
            out.extend((long as u16).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

#[derive(Default)]
struct Pipe {
    incoming: std::collections::VecDeque<u8>,
    left: bool,
    taken: Vec<u8>,
    room: usize,
    full: bool,
    over: bool,
}

struct FakeSocket(Rc<RefCell<Pipe>>);

impl Socket for FakeSocket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        let count = into.len().min(pipe.incoming.len());
        if count == 0 {
            return if pipe.left { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        for (to, from) in into.iter_mut().zip(pipe.incoming.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut pipe = self.0.borrow_mut();
        assert!(!pipe.over, "written after the end");
        assert!(!pipe.full, "written while the socket is full");
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let taken = offered.min(pipe.room);
        pipe.taken.extend(slices.iter().flat_map(|slice| slice.iter()).take(taken));
        if pipe.room != usize::MAX {
            pipe.room -= taken;
        }
        pipe.full = taken < offered;
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    fn finish(&mut self) {
        self.0.borrow_mut().over = true;
    }

    fn reset(&mut self) {
        self.0.borrow_mut().over = true;
    }
}
