mod bounds;
mod slow;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;

use super::{Relay, TURN_ANSWERS_MAX, millis, since_ms};
use crate::core::client::Socket;
use crate::core::counters::{CloseReason, ReactorCounters};
use crate::core::event::{Event, Parsed, Position, Transport};
use crate::core::gate::Gate;
use crate::core::handover::{Delivery, NewClient, NewSubscription, Viewer};
use crate::core::stream::{Channel, Param, Scopes, Stream, StreamKind};
use crate::limits::{ANSWERS_WAITING_MAX, Limits};

/// What all sockets were given, in order: whose it is, and the bytes.
type Wire = Rc<RefCell<Vec<(u64, Vec<u8>)>>>;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

/// Takes everything, but for that of an account that is gone.
#[derive(Debug)]
struct Tape(u64, Wire);

/// Its connection is broken.
const GONE: u64 = 999;

impl Socket for Tape {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.0 == GONE {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let bytes = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
        let taken = bytes.len();
        self.1.borrow_mut().push((self.0, bytes));
        Ok(taken)
    }

    fn finish(&mut self) {}

    fn reset(&mut self) {}
}

/// Takes nothing; what its client says is put in from outside.
#[derive(Debug, Default)]
struct Deaf(Rc<RefCell<Vec<u8>>>);

impl Socket for Deaf {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let said = self.0.take();
        if said.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        into[..said.len()].copy_from_slice(&said);
        Ok(said.len())
    }

    fn write(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn finish(&mut self) {}

    fn reset(&mut self) {}
}

/// A client of its own home timeline.
fn newcomer(account: u64, wire: &Wire) -> Delivery<Tape> {
    client(Tape(account, Rc::clone(wire)), Transport::SseChunked, account)
}

fn home(account: u64) -> NewSubscription {
    let stream =
        Stream { kind: StreamKind::User, allow_local_only: false, param: Param::None, spelling: None };
    NewSubscription { channels: stream.channels(account, true), stream, account }
}

fn client<S>(socket: S, transport: Transport, account: u64) -> Delivery<S> {
    Delivery::Client(
        Box::new(NewClient {
            socket,
            transport,
            viewer: Viewer { account, token: account, scopes: Scopes::READ },
            expires_at: None,
            head: Bytes::from_static(HEAD),
            read_ahead: Bytes::new(),
            subscription: Some(home(account)),
            address: None,
            request: None,
        }),
        0,
    )
}

fn message<S>(account: u64, seq: u64, gate: &Arc<Gate>) -> Delivery<S> {
    let at = Position { epoch: 1, seq, read_at: Duration::ZERO };
    let bytes = Bytes::from_static(br#"{"event":"delete","payload":"1"}"#);
    match Event::parse(Channel::Account(account), at, bytes, gate) {
        Parsed::Event(event) => Delivery::Event(event),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_crowd_that_comes_in_does_not_stand_before_a_message() {
    const CROWD: u64 = 3 * TURN_ANSWERS_MAX as u64;
    let (wire, gate) = (Wire::default(), Gate::new(1 << 20, 1 << 19, || {}));
    let mut relay = Relay::new(0, Limits::default(), Duration::ZERO, Arc::default());
    let now = Duration::from_secs(1);
    let turn = |relay: &mut Relay<Tape>| {
        relay.flush(&mut || now);
        std::mem::take(&mut *wire.borrow_mut())
    };
    relay.deliver(newcomer(1000, &wire), now);
    assert_eq!(turn(&mut relay), [(1000, HEAD.to_vec())]);

    (1..=CROWD).for_each(|account| relay.deliver(newcomer(account, &wire), now));
    // The last of them has a message too, as if it had been published just after they came.
    [1000, CROWD].into_iter().enumerate().for_each(|(number, account)| {
        relay.deliver(message(account, number as u64 + 1, &gate), now);
    });
    let first = turn(&mut relay);
    assert_eq!(first[0].0, 1000, "a message goes before response heads");
    assert_eq!(first[1].0, CROWD);
    assert!(first[1].1.starts_with(HEAD), "the head goes before the newcomer's message");
    assert!(first[1].1.len() > HEAD.len(), "in one write");
    assert_eq!(first.len(), 2 + TURN_ANSWERS_MAX, "and then a turn's part of the crowd is answered");

    let longest = Duration::from_secs(5);
    let mut answered: Vec<u64> = first[2..].iter().map(|(account, _)| *account).collect();
    while relay.sleep(now, longest).is_zero() {
        let part = turn(&mut relay);
        assert!(part.len() <= TURN_ANSWERS_MAX && part.iter().all(|(_, bytes)| bytes == HEAD));
        answered.extend(part.iter().map(|(account, _)| *account));
    }
    assert_eq!(answered, (1..CROWD).collect::<Vec<u64>>(), "everyone, once, in the order in which they came");
}

#[test]
fn a_place_that_changes_hands_within_a_turn_is_registered_once() {
    let wire = Wire::default();
    let mut relay = Relay::new(0, Limits::default(), Duration::ZERO, Arc::default());
    let now = Duration::from_secs(1);
    relay.deliver(newcomer(GONE, &wire), now);
    relay.deliver(newcomer(1, &wire), now);
    // The first is written to before its head's turn comes, and turns out to be gone.
    relay.deliver(Delivery::Kill(Channel::System(GONE)), now);
    assert_eq!(relay.len(), 1);
    relay.deliver(newcomer(2, &wire), now);
    let mut arrived = std::mem::take(&mut relay.effects.arrived);
    arrived.sort_unstable();
    assert_eq!(arrived, [0, 1], "a poll refuses to register a socket twice");
}

#[test]
fn who_is_closed_because_redis_stays_away_is_told_and_counted_so() {
    let wire = Wire::default();
    let limits = Limits { gap_close_spread: Duration::ZERO, ..Limits::default() };
    let away = limits.redis_away_close;
    let counters = Arc::<ReactorCounters>::default();
    let mut relay = Relay::new(0, limits, Duration::ZERO, Arc::clone(&counters));
    let closed = |reason: CloseReason| counters.closes[reason as usize].load(Relaxed);
    let told = || {
        let said: Vec<u8> = wire.borrow_mut().drain(..).flat_map(|(_, bytes)| bytes).collect();
        String::from_utf8(said).unwrap()
    };
    let lost = Duration::from_secs(1);
    relay.deliver(newcomer(1, &wire), lost);
    relay.deliver(Delivery::Gap(2), lost);
    let mut now = lost;
    while now < lost + away {
        relay.tick(now);
        now += Duration::from_millis(100);
    }
    assert_eq!(counters.clients[1].live(), 1, "it may come back");
    (0..10).for_each(|turn| relay.tick(now + Duration::from_millis(100) * turn));
    assert_eq!((closed(CloseReason::RedisAway), closed(CloseReason::Gap)), (1, 0));
    assert!(told().contains(":messages cannot be delivered now"));

    // One that is lost and back is a gap, as is one that is lost again before all were closed.
    now += Duration::from_secs(1);
    relay.deliver(Delivery::Regained, now);
    relay.deliver(newcomer(2, &wire), now);
    relay.deliver(Delivery::Gap(3), now);
    relay.deliver(Delivery::Regained, now);
    relay.deliver(Delivery::Gap(4), now);
    (0..10).for_each(|turn| relay.tick(now + Duration::from_millis(100) * turn));
    assert_eq!((closed(CloseReason::RedisAway), closed(CloseReason::Gap)), (1, 1));
    assert!(told().contains(":messages may have been missed"));
}

/// Losses of Redis at these seconds, each but the first after it came back or not; then when the client is closed.
fn closed_after(losses: &[(u64, bool)]) -> (u64, bool) {
    let wire = Wire::default();
    let limits = Limits { gap_close_spread: Duration::ZERO, ..Limits::default() };
    let counters = Arc::<ReactorCounters>::default();
    let mut relay = Relay::new(0, limits, Duration::ZERO, Arc::clone(&counters));
    for decisecond in 0..2000 {
        let now = Duration::from_millis(100) * decisecond;
        for (n, (at, is_back)) in losses.iter().enumerate() {
            if Duration::from_secs(*at) == now {
                if *is_back {
                    relay.deliver(Delivery::Regained, now);
                    (0..20).for_each(|turn| relay.tick(now + Duration::from_millis(turn)));
                }
                if n == 0 || *is_back {
                    relay.deliver(newcomer(n as u64 + 1, &wire), now);
                }
                relay.deliver(Delivery::Gap(n as u32 + 2), now);
            }
        }
        relay.tick(now);
        let away = counters.closes[CloseReason::RedisAway as usize].load(Relaxed);
        if away > 0 {
            return (now.as_secs(), counters.clients[1].live() == 0);
        }
    }
    panic!("nobody was closed");
}

#[test]
fn redis_away_close_counts_from_the_first_loss_until_all_is_back() {
    assert_eq!(closed_after(&[(1, false)]), (31, true));
    // A Redis that comes up and goes down again while it loads never came back.
    assert_eq!(closed_after(&[(1, false), (15, false)]), (31, true));
    let looping: Vec<(u64, bool)> = (0..9).map(|n| (1 + 20 * n, false)).collect();
    assert_eq!(closed_after(&looping), (31, true));
    // One that came back and is lost again begins anew, though the first loss's timer is still there.
    assert_eq!(closed_after(&[(1, false), (20, true)]), (50, true));
    assert_eq!(closed_after(&[(1, false), (20, true), (40, false)]), (50, true));
}

#[test]
fn clients_that_left_leave_no_timer_for_the_day_on_which_their_token_expires() {
    let wire = Wire::default();
    let counters = Arc::<ReactorCounters>::default();
    let mut relay = Relay::new(0, Limits::default(), Duration::ZERO, Arc::clone(&counters));
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
    let with_token = |account, expires_at: Duration| {
        let Delivery::Client(mut client, seq) = newcomer(account, &wire) else { panic!("no client") };
        client.expires_at = Some(expires_at.as_secs());
        Delivery::Client(client, seq)
    };
    // One stays, and is closed when its token expires, not before.
    relay.deliver(with_token(1, 3 * hour), Duration::ZERO);
    let mut now = Duration::ZERO;
    for account in 2..1000 {
        relay.deliver(with_token(account, now + 30 * day), now);
        relay.deliver(Delivery::Kill(Channel::System(account)), now);
        now += Duration::from_secs(1);
        relay.tick(now);
    }
    while now < 3 * hour {
        assert_eq!(counters.clients[1].live(), 1, "after {now:?}");
        now += Duration::from_secs(10);
        relay.tick(now);
        relay.flush(&mut || now);
    }
    assert_eq!(counters.clients[1].live(), 0);
    assert_eq!(counters.closes[CloseReason::TokenExpired as usize].load(Relaxed), 1);
    now += hour;
    relay.tick(now);
    assert!(relay.is_empty());
    assert_eq!(relay.wheel.sleep(now, 60 * day), 60 * day, "nothing is waited for");

    // One whose token expired on the way has its head first.
    wire.borrow_mut().clear();
    relay.deliver(with_token(1, hour), now);
    relay.flush(&mut || now);
    relay.tick(now + Duration::from_millis(50));
    let said: Vec<u8> = wire.borrow().iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    assert_eq!(said, [HEAD, b"0\r\n\r\n"].concat());
}

#[test]
fn a_moment_later_in_the_turn_is_not_long_ago() {
    let now = Duration::from_millis(5_000);
    assert_eq!(since_ms(4_000, now), 1_000);
    assert_eq!(since_ms(5_001, now), 0, "noted by a write, after the turn's time was taken");
    let much_later = Duration::from_millis(u64::from(u32::MAX) + 10);
    assert_eq!(since_ms(millis(much_later - Duration::from_millis(30)), much_later), 30, "the clock wraps");
}

/// A frame as clients send it, its mask all zeroes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

/// A WebSocket client that reads nothing says `words` every 100 ms, `meanwhile` happens: why its connection ended, and
/// when; and the most answers that waited for it.
fn deaf_until_closed(
    words: &[u8],
    mut meanwhile: impl FnMut(&mut Relay<Deaf>, u64, Duration),
) -> (CloseReason, Duration, usize) {
    let mut relay = Relay::new(0, Limits::default(), Duration::ZERO, Arc::default());
    let (said, mut buffer, mut most) = (Rc::default(), [0; 4096], 0);
    relay.deliver(client(Deaf(Rc::clone(&said)), Transport::WebSocket, 1), Duration::ZERO);
    relay.flush(&mut || Duration::ZERO);
    for round in 1.. {
        let now = Duration::from_millis(100 * round);
        said.borrow_mut().extend_from_slice(words);
        relay.readable(0, false, &mut buffer, now);
        meanwhile(&mut relay, round, now);
        relay.tick(now);
        relay.flush(&mut || now);
        let closed = |reason: &CloseReason| relay.counters.closes[*reason as usize].load(Relaxed) > 0;
        if let Some(reason) = CloseReason::ALL.into_iter().find(closed) {
            return (reason, now, most);
        }
        most = most.max(relay.clients[0].extra.as_ref().map_or(0, |extra| extra.out.len()));
        assert!(now < Duration::from_secs(600), "{most} answers wait");
    }
    unreachable!()
}

#[test]
fn answers_to_a_client_that_reads_none_do_not_pile_up() {
    let words = [frame(0x89, b"ping"), frame(0x81, br#"{"type":"subscribe","stream":"x"}"#)].concat();
    let (reason, _, most) = deaf_until_closed(&words, |_, _, _| {});
    assert_eq!(reason, CloseReason::TooSlow);
    assert!(most <= ANSWERS_WAITING_MAX + 2, "{most}");
}

#[test]
fn who_reads_nothing_gains_no_time_by_leaving_its_streams() {
    let gate = Gate::new(1 << 20, 1 << 19, || {});
    // Pongs that nobody asked for count as signs of life.
    let words = [frame(0x8a, b""), frame(0x81, br#"{"type":"unsubscribe","stream":"user"}"#)].concat();
    let (reason, at, _) = deaf_until_closed(&words, |relay, round, now| {
        let id = relay.clients[0].id(0, 0);
        relay.deliver(Delivery::Subscription(id, home(1), round), now);
        relay.deliver(message(1, round + 1, &gate), now);
    });
    assert_eq!(reason, CloseReason::WriteStalled);
    assert!(at <= Limits::default().write_stall + Limits::default().ws_ping, "{at:?}");
}
