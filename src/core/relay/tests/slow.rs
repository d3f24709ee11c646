//! Who is closed for room, and who is not.

use std::cell::Cell;

use super::*;
use crate::core::client::Phase;
use crate::core::relay::Pressure;
use crate::core::report::{Probe, ReactorReport, Wanted};
use crate::limits::{LINGER, STALLED_AFTER};

/// Takes as many bytes as there is room for.
#[derive(Clone, Debug, Default)]
struct Valve(Rc<ValveState>);

#[derive(Debug, Default)]
struct ValveState {
    room: Cell<usize>,
    taken: RefCell<Vec<u8>>,
    was_reset: Cell<bool>,
}

impl Valve {
    fn with_room(room: usize) -> Valve {
        let valve = Valve::default();
        valve.0.room.set(room);
        valve
    }

    fn open() -> Valve {
        Valve::with_room(usize::MAX)
    }

    fn taken(&self) -> usize {
        self.0.taken.borrow().len()
    }
}

impl Socket for Valve {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = self.0.taken.borrow_mut();
        let (room, before) = (self.0.room.get(), taken.len());
        for slice in slices {
            let part = slice.len().min(room - (taken.len() - before));
            taken.extend_from_slice(&slice[..part]);
        }
        let count = taken.len() - before;
        if room != usize::MAX {
            self.0.room.set(room - count);
        }
        if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn finish(&mut self) {}

    fn reset(&mut self) {
        self.0.was_reset.set(true);
    }
}

const PAYLOAD_BYTES: usize = 1000;
/// Evict mark 180,000, calm mark 165,000, low mark 120,000.
const HIGH_BYTES: usize = 240_000;
const STEP: Duration = Duration::from_millis(50);

/// A relay with its gate and a clock.
struct Scene {
    relay: Relay<Valve>,
    gate: Arc<Gate>,
    now: Duration,
    seq: u64,
    pressure: Pressure,
}

impl Scene {
    fn new(reactors: usize) -> Scene {
        let limits = Limits { reactors, backpressure_high_bytes: HIGH_BYTES, ..Limits::default() };
        Scene {
            relay: Relay::new(0, limits, Duration::ZERO, Arc::default()),
            gate: Gate::new(HIGH_BYTES, HIGH_BYTES / 2, || {}),
            now: Duration::from_secs(1),
            seq: 0,
            pressure: Pressure::default(),
        }
    }

    /// A client of an account's home timeline on a socket. Its index.
    fn join(&mut self, account: u64, valve: &Valve) -> u32 {
        self.relay.deliver(client(valve.clone(), Transport::WebSocket, account), self.now);
        let index = self.relay.effects.arrived.pop().unwrap();
        self.turn();
        index
    }

    fn publish(&mut self, account: u64, bytes: usize) {
        self.seq += 1;
        let at = Position { epoch: 1, seq: self.seq, read_at: self.now };
        let message = format!(r#"{{"event":"delete","payload":"{}{}"}}"#, self.seq, "x".repeat(bytes));
        let Parsed::Event(event) = Event::parse(Channel::Account(account), at, message.into(), &self.gate)
        else {
            panic!("no event")
        };
        self.relay.deliver(Delivery::Event(event), self.now);
    }

    fn publish_over_the_evict_mark(&mut self, account: u64, bytes: usize) {
        while self.gate.held_bytes() <= self.gate.evict_bytes() {
            self.publish(account, bytes);
        }
    }

    /// What a driver does in a turn.
    fn turn(&mut self) {
        let now = self.now;
        self.relay.tick(now);
        self.relay.flush(&mut || now);
        self.relay.relieve(&self.gate, self.pressure, now);
        self.relay.publish_gauges();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.turn();
        }
    }

    fn phase(&self, index: u32) -> Option<Phase> {
        Some(self.relay.clients.get(index as usize)?.phase)
    }

    fn is_open(&self, index: u32) -> bool {
        self.phase(index) == Some(Phase::Open)
    }

    fn too_slow(&self) -> u64 {
        self.relay.counters.closes[CloseReason::TooSlow as usize].load(Relaxed)
    }

    /// Ends the client's one subscription, as an unsubscribe message does.
    fn unsubscribe(&mut self, index: u32) {
        self.relay.abandon_subscription(index, 0);
        self.relay.leave(index, 0);
    }

    fn subscribe(&mut self, index: u32, account: u64) {
        let id = self.relay.clients[index].id(0, index);
        self.relay.deliver(Delivery::Subscription(id, home(account), self.seq), self.now);
    }
}

#[test]
fn stalled_client_is_closed_before_reading_pauses() {
    let mut scene = Scene::new(1);
    let (reads, stalls) = (Valve::open(), Valve::with_room(5000));
    let (reader, stalled) = (scene.join(1, &reads), scene.join(1, &stalls));
    for _ in 0..200 {
        scene.publish(1, PAYLOAD_BYTES);
        scene.pass(STEP);
        assert!(scene.gate.may_read(), "{:?} at {:?}", scene.gate, scene.now);
    }
    assert!(scene.is_open(reader) && !scene.is_open(stalled));
    assert_eq!(scene.too_slow(), 1);
    assert_eq!(scene.relay.counters.ledger().difference(), 0);
}

#[test]
fn longest_stalled_client_goes_first_and_no_more_than_needed() {
    let mut scene = Scene::new(1);
    let valves = [Valve::with_room(150), Valve::with_room(150), Valve::with_room(150)];
    let clients: Vec<u32> = (0..3).map(|n| scene.join(n as u64 + 1, &valves[n])).collect();
    // The second stalls first.
    for (account, count) in [(2, 30), (1, 10), (3, 10)] {
        (0..count).for_each(|_| scene.publish(account, PAYLOAD_BYTES));
        scene.pass(STEP * 4);
    }
    scene.pass(STALLED_AFTER);
    assert_eq!(scene.too_slow(), 0, "there is room for all: {:?}", scene.gate);
    scene.publish_over_the_evict_mark(3, PAYLOAD_BYTES);
    scene.pass(STEP * 2);
    assert!(scene.gate.held_bytes() <= scene.gate.low_bytes(), "{:?}", scene.gate);
    let open: Vec<bool> = clients.iter().map(|index| scene.is_open(*index)).collect();
    assert_eq!(open, [true, false, true], "{:?}", scene.gate);
}

#[test]
fn client_that_takes_bytes_is_not_stalled() {
    let mut scene = Scene::new(1);
    let slow = Valve::with_room(500);
    let index = scene.join(1, &slow);
    scene.publish_over_the_evict_mark(1, PAYLOAD_BYTES);
    // A frame every half a second, and never a second without a byte.
    for _ in 0..20 {
        slow.0.room.set(1000);
        scene.relay.writable(index);
        scene.pass(STALLED_AFTER / 2);
        scene.publish(1, PAYLOAD_BYTES);
        assert!(scene.is_open(index), "at {:?}", scene.now);
    }
}

#[test]
fn late_reactor_writes_before_it_judges() {
    let mut scene = Scene::new(1);
    let valve = Valve::with_room(500);
    let index = scene.join(1, &valve);
    (0..44).for_each(|_| scene.publish(1, PAYLOAD_BYTES));
    scene.pass(STEP);
    let before = valve.taken();
    // While the reactor was not let run, the client has read; the poll has not reported it yet.
    valve.0.room.set(2000);
    scene.now += STALLED_AFTER * 3;
    scene.publish_over_the_evict_mark(1, PAYLOAD_BYTES);
    scene.turn();
    scene.now += Duration::from_millis(150);
    scene.turn();
    assert!(valve.taken() > before, "it was written to");
    assert!(scene.is_open(index), "it took bytes when it was given a chance");
    // From then on it takes nothing.
    scene.pass(STALLED_AFTER + STEP * 2);
    assert!(!scene.is_open(index));
}

#[test]
fn machine_that_stood_still_gives_its_clients_a_moment() {
    let mut scene = Scene::new(1);
    let valve = Valve::with_room(500);
    let index = scene.join(1, &valve);
    (0..44).for_each(|_| scene.publish(1, PAYLOAD_BYTES));
    scene.pass(STEP);
    scene.now += STALLED_AFTER * 3;
    scene.publish_over_the_evict_mark(1, PAYLOAD_BYTES);
    scene.turn();
    assert!(scene.is_open(index), "the first look after a long sleep closes nobody");
    let longest = Duration::from_secs(5);
    assert!(scene.relay.sleep(scene.now, longest) <= Duration::from_millis(150), "but another one follows");
    scene.pass(STEP * 3);
    assert!(!scene.is_open(index));
}

/// Takes half of a large message and unsubscribes: the client is owed nothing, and holds the message.
fn half_written(scene: &mut Scene) -> (Valve, u32) {
    let valve = Valve::with_room(5000);
    let index = scene.join(1, &valve);
    scene.publish(1, HIGH_BYTES / 3);
    scene.pass(STEP);
    scene.unsubscribe(index);
    assert!(scene.relay.log.is_empty());
    assert!(scene.gate.held_bytes() > scene.gate.low_bytes(), "{:?}", scene.gate);
    (valve, index)
}

#[test]
fn half_written_frame_of_a_given_up_subscription_does_not_hold_the_budget() {
    let mut scene = Scene::new(1);
    let (valve, index) = half_written(&mut scene);
    scene.pass(STALLED_AFTER);
    assert!(scene.is_open(index), "there is room for it");
    // A message to somebody else who takes it, and the mark is passed.
    let other = scene.join(2, &Valve::with_room(1000));
    scene.publish(2, HIGH_BYTES / 6);
    scene.pass(STEP * 3);
    assert!(valve.0.was_reset.get() && scene.phase(index).is_none(), "{:?}", scene.gate);
    assert!(scene.is_open(other));
    assert!(scene.gate.held_bytes() <= scene.gate.low_bytes(), "{:?}", scene.gate);
    assert_eq!((scene.too_slow(), scene.relay.half_written_bytes), (1, 0));
    assert_eq!(scene.relay.counters.ledger().difference(), 0);
}

#[test]
fn half_written_frame_of_a_gapped_client_does_not_hold_the_budget() {
    let mut scene = Scene::new(1);
    let valve = Valve::with_room(5000);
    let index = scene.join(1, &valve);
    scene.publish(1, HIGH_BYTES / 3);
    scene.pass(STEP);
    scene.relay.deliver(Delivery::Gap(2), scene.now);
    assert_eq!(scene.phase(index), Some(Phase::Gapped));
    scene.pass(STALLED_AFTER);
    scene.relay.deliver(Delivery::Regained, scene.now);
    let other = scene.join(2, &Valve::with_room(1000));
    scene.publish(2, HIGH_BYTES / 6);
    scene.pass(STEP * 3);
    assert!(scene.phase(index).is_none() && scene.is_open(other));
    assert!(scene.gate.held_bytes() <= scene.gate.low_bytes(), "{:?}", scene.gate);
}

#[test]
fn pause_that_lasts_ends_with_the_holders_of_half_written_frames_too() {
    let mut scene = Scene::new(1);
    let (valve, index) = half_written(&mut scene);
    let elsewhere = crate::core::gate::Charge::new(&scene.gate, HIGH_BYTES);
    assert!(!scene.gate.may_read());
    drop(elsewhere);
    assert!(scene.gate.is_closed(), "what is held is over the low mark");
    // It takes a byte now and then, so it is not stalled.
    for _ in 0..20 {
        valve.0.room.set(1);
        scene.relay.writable(index);
        scene.pass(STALLED_AFTER / 5);
    }
    assert!(scene.is_open(index));
    scene.pressure = Pressure { headroom_half_used: true, ..Pressure::default() };
    scene.pass(STEP * 3);
    assert!(scene.phase(index).is_none());
    assert!(scene.gate.may_read(), "{:?}", scene.gate);
}

#[test]
fn full_socket_that_is_owed_nothing_for_a_moment_stays_listed() {
    let mut scene = Scene::new(1);
    let valve = Valve::with_room(200);
    let index = scene.join(1, &valve);
    scene.publish(1, PAYLOAD_BYTES);
    scene.publish(1, PAYLOAD_BYTES);
    valve.0.room.set(0);
    scene.pass(STEP);
    // The half-written frame is finished, and then the socket is full at a frame's border.
    scene.unsubscribe(index);
    valve.0.room.set(usize::MAX);
    scene.relay.writable(index);
    valve.0.room.set(PAYLOAD_BYTES * 2);
    scene.pass(STEP);
    scene.subscribe(index, 1);
    (0..4).for_each(|_| scene.publish(1, PAYLOAD_BYTES));
    scene.pass(STEP);
    scene.unsubscribe(index);
    // Nothing is owed, the poll has not said that there is room: more messages must be seen all the same.
    scene.subscribe(index, 1);
    scene.publish_over_the_evict_mark(1, PAYLOAD_BYTES);
    assert!(scene.relay.clients[index].flags.has(crate::core::client::Flags::BLOCKED));
    assert_eq!(scene.relay.lagging, [index]);
    scene.pass(STALLED_AFTER + STEP * 3);
    assert!(!scene.is_open(index));
}

#[test]
fn client_with_an_old_place_and_new_messages_is_not_among_the_oldest() {
    let mut scene = Scene::new(1);
    let (keeps_up, holds) = (Valve::with_room(10_000), Valve::with_room(300));
    let (new, old) = (scene.join(1, &keeps_up), scene.join(2, &holds));
    // The first message of `new` is the oldest of all, and is delivered when the next one waits already.
    scene.publish(1, PAYLOAD_BYTES);
    keeps_up.0.room.set(130 + 500);
    scene.pass(STEP);
    scene.publish_over_the_evict_mark(2, PAYLOAD_BYTES);
    scene.publish(1, PAYLOAD_BYTES);
    keeps_up.0.room.set(600);
    scene.relay.writable(new);
    scene.turn();
    assert_eq!(scene.relay.clients[new].owed, 1);
    while scene.gate.may_read() {
        scene.publish(2, PAYLOAD_BYTES);
    }
    scene.pressure = Pressure { headroom_half_used: true, ..Pressure::default() };
    scene.pass(STEP * 2);
    assert!(!scene.is_open(old), "{:?}", scene.gate);
    assert!(scene.is_open(new), "it holds one of the newest messages only");
}

#[test]
fn nobody_is_closed_for_bytes_that_wait_elsewhere() {
    let mut scene = Scene::new(2);
    let valve = Valve::with_room(200);
    let index = scene.join(1, &valve);
    scene.publish(1, PAYLOAD_BYTES);
    scene.pass(STALLED_AFTER + STEP);
    // Another reactor's, or the audience stage's.
    let elsewhere = crate::core::gate::Charge::new(&scene.gate, HIGH_BYTES);
    assert!(!scene.gate.may_read());
    scene.pressure = Pressure { headroom_half_used: true, ..Pressure::default() };
    scene.pass(STALLED_AFTER * 2);
    assert!(scene.is_open(index));
    drop(elsewhere);
}

#[test]
fn nobody_is_closed_for_statuses_that_wait_for_their_audience() {
    let mut scene = Scene::new(1);
    let valve = Valve::with_room(200);
    let index = scene.join(1, &valve);
    // More than this reactor's share, less than the low mark.
    (0..30).for_each(|_| scene.publish(1, PAYLOAD_BYTES));
    scene.turn();
    let waiting = crate::core::gate::Charge::new(&scene.gate, HIGH_BYTES);
    assert!(!scene.gate.may_read());
    scene.pressure = Pressure { headroom_half_used: true, audience_bytes: HIGH_BYTES, ..Pressure::default() };
    scene.pass(STALLED_AFTER * 2);
    assert!(scene.is_open(index));
    // They have got their audience, and wait for clients now.
    scene.pressure.audience_bytes = 0;
    scene.pass(STEP * 2);
    assert!(!scene.is_open(index));
    drop(waiting);
}

#[test]
fn many_are_closed_in_many_turns() {
    let mut scene = Scene::new(1);
    let valves: Vec<Valve> = (0..40).map(|_| Valve::with_room(200)).collect();
    for valve in &valves {
        scene.join(1, valve);
    }
    // Every client is owed every message.
    (0..100).for_each(|_| scene.publish(1, 1));
    scene.pass(STALLED_AFTER + STEP);
    let messages = crate::limits::EVICT_TURN_MESSAGES;
    scene.publish_over_the_evict_mark(1, 1);
    let owed: usize = scene.relay.clients.iter().map(|(_, client)| client.owed as usize).sum();
    scene.turn();
    let left: usize = scene.relay.clients.iter().map(|(_, client)| client.owed as usize).sum();
    let per_client = owed / 40;
    assert!(owed - left <= messages + per_client, "{} in one turn", owed - left);
    let mut turns = 1;
    while scene.too_slow() < 40 && turns < 40 {
        assert!(scene.relay.sleep(scene.now, STEP).is_zero(), "{} are closed", scene.too_slow());
        scene.turn();
        turns += 1;
    }
    assert_eq!(scene.too_slow(), 40);
    assert!(turns > 1, "{owed} messages given up in one turn");
}

#[test]
fn close_waits_for_the_peers_end_for_all_of_the_time() {
    let mut scene = Scene::new(1);
    let index = scene.join(1, &Valve::open());
    // The close is written in two parts, so that its deadline is set too.
    let narrow = Valve::with_room(200);
    let late = scene.join(2, &narrow);
    narrow.0.room.set(1);
    for account in [1, 2] {
        scene.relay.deliver(Delivery::Kill(Channel::System(account)), scene.now);
    }
    narrow.0.room.set(100);
    scene.relay.writable(late);
    scene.turn();
    assert_eq!((scene.phase(index), scene.phase(late)), (Some(Phase::Lingering), Some(Phase::Lingering)));
    scene.pass(LINGER - STEP);
    assert_eq!(scene.relay.len(), 2, "{:?} early", LINGER);
    scene.pass(STEP * 2);
    assert!(scene.relay.is_empty());
}

#[test]
fn report_costs_the_number_of_lagging_clients_whatever_they_are_owed() {
    let mut scene = Scene::new(1);
    let valves: Vec<Valve> = (0..20).map(|_| Valve::with_room(200)).collect();
    for valve in &valves {
        scene.join(1, valve);
    }
    (0..500).for_each(|_| scene.publish(1, 10));
    scene.turn();
    scene.now += Duration::from_secs(1);
    let before = scene.relay.log.visited();
    let (sender, receiver) = std::sync::mpsc::channel();
    let wanted = Wanted { channels: 0, laggards: 10 };
    scene
        .relay
        .deliver(Delivery::Probe(Probe::new(wanted, move |told| sender.send(told).unwrap())), scene.now);
    let report: ReactorReport = receiver.recv().unwrap();
    assert_eq!(scene.relay.log.visited() - before, 0, "entries of the log were walked");
    assert_eq!(report.laggards.len(), 10);
    // What the report says, counted by hand.
    let client = &scene.relay.clients[report.laggards[0].client.index];
    let by_hand: u64 = crate::core::relay::output::Gathered::new(client, &scene.relay.log)
        .map(|at| u64::from(at.bytes))
        .sum();
    assert_eq!(report.laggards[0].bytes, by_hand);
    assert_eq!(report.laggards[0].owed, u64::from(client.owed));
    assert_eq!(report.laggards[0].oldest, Duration::from_secs(1));
}
