use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MAX: usize = 64 << 10;

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A text frame's beginning: so many bytes of 60,000.
fn begun(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x81, 0xfe];
    frame.extend(60_000u16.to_be_bytes());
    frame.resize(8 + bytes, 0);
    frame
}

fn say(talkers: &mut Talkers, client: u32, mut bytes: Vec<u8>, now: Duration) {
    let fed = talkers.feed(client, &mut bytes, MAX, now, &mut |_| ControlFlow::Continue(()));
    assert!(fed.is_ok());
}

#[test]
fn who_falls_silent_costs_nothing_and_gains_nothing() {
    let limits = Limits { client_message_rate: 10, client_message_burst: 100, ..Limits::default() };
    let mut talkers = Talkers::default();
    assert!(talkers.pay(1, 100, &limits, at(0)));
    assert!(!talkers.pay(1, 1, &limits, at(0)));
    assert!(talkers.pay(2, 5, &limits, at(0)));
    for ms in [10, 200, 500] {
        talkers.tidy(&limits, at(ms));
    }
    assert_eq!(talkers.by_client.len(), 1, "the second has as much as a new one");
    assert!(!talkers.pay(1, 6, &limits, at(500)), "the first has what time gave it");
    assert!(talkers.pay(1, 5, &limits, at(500)));
    talkers.tidy(&limits, at(10_499));
    assert!(!talkers.is_empty());
    talkers.tidy(&limits, at(10_500));
    assert!(talkers.is_empty());
    // What both buckets hold is kept apart.
    assert!((0..200).all(|_| talkers.pay_request(3, &limits, at(20_000))));
    assert!(!talkers.pay_request(3, &limits, at(20_000)));
    assert!(talkers.pay(3, 100, &limits, at(20_000)));
    talkers.tidy(&limits, at(29_999));
    assert!(!talkers.is_empty());
    talkers.tidy(&limits, at(30_000));
    assert!(talkers.is_empty());
    assert!(talkers.by_client.capacity() <= 64);
}

#[test]
fn a_message_has_its_time_from_its_own_beginning() {
    let limits = Limits { unfinished_timeout: at(1000), ..Limits::default() };
    let mut talkers = Talkers::default();
    say(&mut talkers, 1, begun(5), at(0));
    say(&mut talkers, 2, begun(5), at(0));
    say(&mut talkers, 1, vec![0; 10], at(900));
    // The second's is whole, and another has begun in the same read.
    let mut rest = vec![0; 60_000 - 5];
    rest.extend(begun(5));
    say(&mut talkers, 2, rest, at(900));
    assert!(talkers.tidy(&limits, at(999)).is_empty());
    assert_eq!(talkers.tidy(&limits, at(1000)), [1]);
    talkers.forget(1);
    assert!(talkers.tidy(&limits, at(1899)).is_empty());
    assert_eq!(talkers.tidy(&limits, at(1900)), [2]);
    talkers.forget(2);
    assert_eq!(talkers.unfinished_bytes(), 0);
    assert!(talkers.is_empty());
}

/// Hoarders of every kind fill the bound; then an honest client's message comes in two pieces.
fn honest_stays(held: &[(usize, u64)], honest_bytes: usize, honest_ms: u64) {
    let mut talkers = Talkers::default();
    let now = 40_000;
    for (client, (bytes, age_ms)) in held.iter().enumerate() {
        say(&mut talkers, 1 + client as u32, begun(*bytes), at(now - age_ms));
    }
    say(&mut talkers, 0, begun(honest_bytes), at(now - honest_ms));
    let bytes_max = talkers.unfinished_bytes() - 1;
    let gone = talkers.heaviest(bytes_max, at(now));
    assert!(!gone.contains(&0), "{gone:?}");
    for client in gone {
        talkers.forget(client);
    }
    let left = talkers.unfinished_bytes();
    assert!(left <= bytes_max / 4 * 3, "{left} of {bytes_max}");
    assert!(left + 70_000 >= bytes_max / 4 * 3, "more went than had to: {left} of {bytes_max}");
    assert!(talkers.heaviest(bytes_max, at(now)).is_empty());
}

#[test]
fn whoever_hoards_goes_before_an_honest_client() {
    // Much, held for long or just begun; little, on very many connections.
    honest_stays(&[(59_000, 20_000); 20], 300, 200);
    honest_stays(&[(59_000, 0); 20], 300, 200);
    honest_stays(&[(1, 5_000); 5_000], 500, 200);
    honest_stays(&[(1, 201); 5_000], 500, 200);
}

proptest! {
    #[test]
    fn a_client_that_holds_little_and_not_for_long_stays(
        held in vec((0usize..20_000, 300u64..30_000), 20..50),
        honest_bytes in 0usize..400,
        honest_ms in 0u64..300,
    ) {
        honest_stays(&held, honest_bytes, honest_ms);
    }

    #[test]
    fn what_is_held_is_counted(says in vec((0u32..4, vec(any::<u8>(), 0..40), any::<bool>()), 0..60)) {
        let mut talkers = Talkers::default();
        for (client, mut bytes, goes) in says {
            let fed = talkers.feed(client, &mut bytes, 50, at(0), &mut |_| ControlFlow::Continue(()));
            if goes || fed.is_err() {
                talkers.forget(client);
            }
            let held = talkers.by_client.values().filter(|talker| !talker.decoder.is_idle());
            let held: usize = held.map(|talker| talker.decoder.held_bytes() + ENTRY_BYTES).sum();
            prop_assert_eq!(talkers.unfinished_bytes(), held);
        }
    }
}
