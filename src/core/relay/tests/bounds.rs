//! Bounds of what one client may have, and what clients that left leave behind.

use super::super::Effects;
use super::*;
use crate::limits::{SUBSCRIPTION_TEXT_BYTES, SUBSCRIPTIONS_MAX};

fn list(id: u64) -> NewSubscription {
    let stream =
        Stream { kind: StreamKind::List, allow_local_only: false, param: Param::List(id), spelling: None };
    NewSubscription { channels: stream.channels(1, true), stream, account: 1 }
}

#[test]
fn last_subscription_that_the_setting_allows_gets_its_messages() {
    let (wire, gate) = (Wire::default(), Gate::new(1 << 20, 1 << 19, || {}));
    let limits = Limits { subscriptions_max: SUBSCRIPTIONS_MAX, ..Limits::default() };
    let mut relay = Relay::new(0, limits, Duration::ZERO, Arc::default());
    let now = Duration::from_secs(1);
    relay.deliver(client(Tape(1, Rc::clone(&wire)), Transport::WebSocket, 1), now);
    let id = relay.clients[0].id(0, 0);
    // The stream in the request is one of them.
    let lists = SUBSCRIPTIONS_MAX as u64 - 1;
    (1..=lists).for_each(|n| relay.deliver(Delivery::Subscription(id, list(n), 0), now));
    relay.flush(&mut || now);
    wire.borrow_mut().clear();

    let at = Position { epoch: 1, seq: 1, read_at: Duration::ZERO };
    let bytes = Bytes::from_static(br#"{"event":"delete","payload":"1"}"#);
    let Parsed::Event(event) = Event::parse(Channel::List(lists), at, bytes, &gate) else {
        panic!("no event")
    };
    relay.deliver(Delivery::Event(event), now);
    relay.flush(&mut || now);
    let got = wire.borrow_mut().drain(..).flat_map(|(_, bytes)| bytes).collect::<Vec<u8>>();
    assert!(String::from_utf8_lossy(&got).contains(&format!(r#""stream":["list","{lists}"]"#)));
}

/// What a relay keeps room for: clients, channels, crowds, timers.
fn capacity<S>(relay: &Relay<S>) -> [usize; 3] {
    [relay.clients.capacity(), relay.table.capacity(), relay.wheel.len()]
}

#[test]
fn clients_that_left_leave_neither_room_nor_timers() {
    const CLIENTS: u64 = 20_000;
    let wire = Wire::default();
    let mut relay = Relay::new(0, Limits::default(), Duration::ZERO, Arc::default());
    let now = Duration::from_secs(1);
    // Two clients of each account, so that there are crowds too.
    (0..CLIENTS).for_each(|n| relay.deliver(newcomer(n / 2 + 1, &wire), now));
    relay.effects = Effects::default();
    assert!(capacity(&relay).into_iter().all(|room| room >= CLIENTS as usize), "{:?}", capacity(&relay));
    // A few stay, of those that came first.
    (10..CLIENTS as u32).for_each(|index| relay.left(index));
    relay.effects = Effects::default();
    let left = capacity(&relay);
    assert!(left.into_iter().all(|room| room < 500), "{left:?}");
    // Their own timers are among those that are left.
    wire.borrow_mut().clear();
    let heartbeat = now + Limits::default().sse_heartbeat;
    relay.tick(heartbeat + Duration::from_millis(50));
    relay.flush(&mut || heartbeat);
    assert_eq!(wire.borrow().len(), 10);
}

#[test]
fn room_of_a_crowd_comes_back_with_its_last_client_though_others_came_later() {
    let wire = Wire::default();
    let mut relay = Relay::new(0, Limits::default(), Duration::ZERO, Arc::default());
    let now = Duration::from_secs(1);
    (1..=5000).for_each(|account| relay.deliver(newcomer(account, &wire), now));
    (0..4999).for_each(|index| relay.left(index));
    assert!(relay.clients.capacity() >= 5000, "the last client is in the last place");
    (6001..=6100).for_each(|account| relay.deliver(newcomer(account, &wire), now));
    relay.left(4999);
    // The next departure that looks at all finds the room empty.
    (0..50).for_each(|index| relay.left(index));
    assert_eq!(relay.len(), 50);
    let left = capacity(&relay);
    assert!(left.into_iter().all(|room| room < 500), "{left:?}");
}

/// A message that subscribes to that tag.
fn subscribe_to(tag: &str) -> Vec<u8> {
    let text = serde_json::json!({ "type": "subscribe", "stream": "hashtag", "tag": tag }).to_string();
    let length = (text.len() as u16).to_be_bytes();
    [&[0x81, 0x80 | 126, length[0], length[1], 0, 0, 0, 0], text.as_bytes()].concat()
}

/// A client asks for streams of these tags, and Redis confirms each at once; or it confirms none. How many it asked for
/// at the door, and why it was closed, if it was.
fn ask_for(tags: impl Iterator<Item = String>, confirmed: bool) -> (usize, usize, Option<CloseReason>) {
    let mut relay = Relay::new(0, Limits::default(), Duration::ZERO, Arc::default());
    let (said, mut buffer) = (Rc::default(), vec![0; 16 << 10]);
    relay.deliver(client(Deaf(Rc::clone(&said)), Transport::WebSocket, 1), Duration::ZERO);
    let id = relay.clients[0].id(0, 0);
    let (mut asked, mut waiting_most) = (0, 0);
    for (number, tag) in tags.enumerate() {
        said.borrow_mut().extend(subscribe_to(&tag));
        relay.readable(0, false, &mut buffer, Duration::from_secs(number as u64));
        for request in std::mem::take(&mut relay.effects.requests) {
            asked += 1;
            let crate::core::handover::Want::Subscribe(stream) = request.want else { panic!("{request:?}") };
            if confirmed {
                let new = NewSubscription { channels: stream.channels(1, true), stream, account: 1 };
                relay.deliver(Delivery::Subscription(id, new, 0), Duration::ZERO);
                relay.deliver(Delivery::Answer(id, None), Duration::ZERO);
            }
        }
        let Some(client) = relay.clients.get(0) else { break };
        let held: usize = client.subs.iter().map(|sub| sub.stream().text_bytes()).sum();
        let most = Limits::default().subscriptions_max * SUBSCRIPTION_TEXT_BYTES;
        assert!(held <= most, "the client's subscriptions hold {held} bytes of text");
        let waiting = client
            .extra
            .as_ref()
            .map_or(0, |extra| extra.waiting.iter().map(|(_, request)| request.text_bytes()).sum());
        waiting_most = waiting_most.max(waiting);
    }
    let closed = |reason: &CloseReason| relay.counters.closes[*reason as usize].load(Relaxed) > 0;
    (asked, waiting_most, CloseReason::ALL.into_iter().find(closed))
}

#[test]
fn text_of_a_clients_subscriptions_is_bounded_together() {
    let control = |n: usize| format!("t{n}{}", "\u{1}".repeat(500));
    // As JSON, which a client's messages come with, each is six times as long.
    let (asked, _, closed) = ask_for((0..200).map(control), true);
    assert!((5..20).contains(&asked), "{asked} were asked for");
    assert_eq!(closed, None, "it is told, and stays");
    // As many tags as a client may have, each longer than people's.
    let (asked, ..) = ask_for((0..199).map(|n| format!("{n}{}", "x".repeat(100))), true);
    assert_eq!(asked, 199);
}

#[test]
fn text_of_messages_that_wait_is_bounded_together() {
    let long = |n: usize| format!("t{n}{}", "x".repeat(500));
    let (asked, waiting, closed) = ask_for((0..200).map(long), false);
    assert_eq!((asked, closed), (1, Some(CloseReason::RateLimited)));
    assert!(
        waiting <= Limits::default().subscriptions_max * SUBSCRIPTION_TEXT_BYTES,
        "{waiting} bytes waited"
    );
    let (_, _, closed) = ask_for((0..199).map(|n| format!("{n}{}", "x".repeat(100))), false);
    assert_eq!(closed, None);
}

#[test]
fn token_expires_by_the_wall_clock_whatever_happened_to_it() {
    const START_UNIX: Duration = Duration::from_secs(1_000_000);
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    // How far the wall clock is set forward after ten minutes, or the machine was suspended; and set back.
    for (forward, back) in
        [(Duration::ZERO, Duration::ZERO), (hour * 2, Duration::ZERO), (Duration::ZERO, hour)]
    {
        let (wire, counters) = (Wire::default(), Arc::<ReactorCounters>::default());
        let mut relay = Relay::new(0, Limits::default(), START_UNIX, Arc::clone(&counters));
        let expires_at = START_UNIX + hour * 3;
        let Delivery::Client(mut client, seq) = newcomer(1, &wire) else { panic!("no client") };
        client.expires_at = Some(expires_at.as_secs());
        relay.deliver(Delivery::Client(client, seq), Duration::ZERO);
        let mut now = Duration::ZERO;
        loop {
            now += Duration::from_secs(1);
            let started = if now < minute * 10 { START_UNIX } else { START_UNIX + forward - back };
            relay.set_started_unix(started);
            relay.tick(now);
            relay.flush(&mut || now);
            let late = (started + now).saturating_sub(expires_at);
            if counters.closes[CloseReason::TokenExpired as usize].load(Relaxed) > 0 {
                assert!(started + now >= expires_at, "{now:?} is early");
                break;
            }
            assert!(late <= minute, "{late:?} late");
        }
    }
}
