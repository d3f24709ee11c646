use super::*;

#[test]
fn reactors_stand_on_their_own_cache_lines() {
    assert_eq!(align_of::<ReactorCounters>(), 64);
    assert_eq!(size_of::<ReactorCounters>() % 64, 0);
    assert!(size_of::<ReactorCounters>() <= 2048, "{}", size_of::<ReactorCounters>());
}

#[test]
fn numbers_and_labels_agree() {
    for (number, reason) in CloseReason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, number);
    }
    for (number, reason) in WITHHELD.iter().enumerate() {
        assert_eq!(*reason as usize, number);
    }
    let mut labels: Vec<&str> = CloseReason::ALL.iter().map(|reason| reason.label()).collect();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), CloseReason::ALL.len());
}

#[test]
fn streams_are_counted_under_the_names_that_clients_use() {
    for (number, name) in CHANNEL_LABELS.iter().enumerate() {
        match StreamKind::from_name(name) {
            Some(kind) => assert_eq!((kind as usize, kind.name()), (number, *name)),
            None => assert_eq!((number, *name), (SYSTEM, "system")),
        }
    }
}

#[test]
fn every_message_owed_stands_somewhere() {
    let counters = ReactorCounters::default();
    let fate = |owed: u64, pending: u64| {
        add(&counters.owed, owed);
        set(&counters.pending, pending);
    };
    fate(10, 10);
    assert_eq!(counters.ledger().difference(), 0);
    counters.message_delivered(Transport::WebSocket, Duration::from_micros(80));
    counters.message_delivered(Transport::SsePlain, Duration::from_micros(80));
    counters.message_filtered(Withheld::Language);
    counters.messages_closed(CloseReason::TooSlow, 3);
    add(&counters.unsubscribed, 1);
    assert_eq!(counters.ledger().difference(), -7, "seven are settled and still pending");
    fate(0, 3);
    let ledger = counters.ledger();
    assert_eq!(ledger.difference(), 0);
    assert_eq!(
        ledger,
        Ledger { owed: 10, delivered: 2, filtered: 1, unsubscribed: 1, closed: 3, pending: 3 }
    );
    set(&counters.pending, 2);
    assert_eq!(counters.ledger().difference(), 1, "one was lost");
}

#[test]
fn clients_and_subscriptions_come_and_go() {
    let counters = ReactorCounters::default();
    counters.client_opened(Transport::WebSocket, 2);
    counters.client_opened(Transport::SseChunked, 2);
    counters.client_opened(Transport::SsePlain, 0);
    counters.subscription_opened(Transport::WebSocket, StreamKind::HashtagLocal);
    counters.client_closed(Transport::SseChunked, 2, CloseReason::NoPong);
    assert_eq!(counters.clients[0].live(), 1);
    assert_eq!(counters.clients[1].live(), 1);
    assert_eq!(counters.clients[1].opened(), 2);
    assert_eq!(counters.subscriptions[0][SYSTEM].live(), 2);
    assert_eq!(counters.subscriptions[1][SYSTEM].live(), 0);
    assert_eq!(CHANNEL_LABELS[StreamKind::HashtagLocal as usize], "hashtag:local");
    assert_eq!(counters.subscriptions[0][StreamKind::HashtagLocal as usize].live(), 1);
    assert_eq!(counters.closes[CloseReason::NoPong as usize].load(Relaxed), 1);
}

#[test]
fn a_flow_never_shows_fewer_than_none() {
    let flow = Flow::default();
    flow.end(1);
    assert_eq!(flow.live(), 0);
    let gauge = AtomicU64::new(1);
    sub(&gauge, 2);
    assert_eq!(gauge.load(Relaxed), 0);
}

#[test]
fn latencies_fall_into_buckets_by_their_upper_bound() {
    let histogram = Histogram::default();
    for micros in [0, 50, 51, 100, 10_000_000, 10_000_001] {
        histogram.record(Duration::from_micros(micros), 1);
    }
    histogram.record(Duration::from_millis(1), 4);
    let reading = histogram.read();
    assert_eq!(reading.counts[0], 2);
    assert_eq!(reading.counts[1], 2);
    assert_eq!(reading.counts[LATENCY_BOUNDS_US.iter().position(|bound| *bound == 1000).unwrap()], 4);
    assert_eq!(reading.counts[LATENCY_BOUNDS_US.len() - 1], 1);
    assert_eq!(reading.counts[LATENCY_BOUNDS_US.len()], 1);
    assert_eq!(reading.count(), 10);
    assert_eq!(reading.sum_us, 20_000_001 + 201 + 4_000);
}

#[test]
fn quantiles_lie_within_their_bucket() {
    let histogram = Histogram::default();
    assert_eq!(histogram.read().quantile_us(0.5), None);
    histogram.record(Duration::from_micros(150), 98);
    histogram.record(Duration::from_millis(40), 1);
    histogram.record(Duration::from_secs(60), 1);
    let reading = histogram.read();
    let median = reading.quantile_us(0.5).unwrap();
    assert!((100.0..=200.0).contains(&median), "{median}");
    let late = reading.quantile_us(0.99).unwrap();
    assert!((30_000.0..=50_000.0).contains(&late), "{late}");
    assert_eq!(reading.quantile_us(1.0), Some(10_000_000.0));
}
