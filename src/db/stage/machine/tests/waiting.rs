//! What waits: while PostgreSQL answers it waits as long as it takes, without it for a bounded time and in a bounded
//! share of the budget; and for room in the budget.

use super::*;

fn limits(high: usize) -> Limits {
    Limits { backpressure_high_bytes: high, audience_timeout: ms(1000), ..Limits::default() }
}

/// So many different statuses on the first channel, with a viewer.
fn burst(bench: &mut Bench, count: u64) {
    bench.push(StageItem::Join(channel(0), 1));
    for number in 0..count {
        let event = bench.status(channel(0), 9, &format!("{number}{}", "x".repeat(500)));
        bench.push_event(&event);
    }
}

#[test]
fn nothing_is_withheld_while_postgresql_answers_however_long_it_takes() {
    let mut bench = Bench::new(&limits(16_000));
    burst(&mut bench, 30);
    assert!(!bench.gate.may_read(), "a full stage pauses reading");
    // One answer every 0.9 s: the last status waits for 27 s.
    for number in 1..=30 {
        let ask = bench.ask().unwrap();
        bench.now += ms(900);
        bench.machine.tick(bench.now);
        bench.answer(&ask, &[]);
        assert_eq!(bench.out(), [number]);
    }
    assert_eq!(bench.machine.stats.timed_out.load(Relaxed), 0);
    assert_eq!(bench.gate.held_bytes(), bench.machine.kept_events());
}

#[test]
fn while_postgresql_is_away_for_longer_no_more_than_a_quarter_of_the_budget_waits() {
    let mut bench = Bench::new(&limits(64_000));
    burst(&mut bench, 1);
    let ask = bench.ask().unwrap();
    bench.fail(&ask);
    burst(&mut bench, 20);
    assert!(bench.out().is_empty() && bench.machine.bytes > 16_000, "nothing is withheld at first");
    bench.now = ms(999);
    bench.machine.tick(bench.now);
    assert!(bench.out().is_empty());
    bench.now = ms(1000);
    bench.machine.tick(bench.now);
    assert_eq!(bench.out().len(), 21, "all of them have waited for a second");
    burst(&mut bench, 40);
    bench.machine.tick(bench.now);
    let withheld = bench.out();
    assert!(bench.machine.bytes <= 16_000 && bench.machine.messages > 3, "{:?}", bench.machine.bytes);
    assert!(withheld.iter().copied().eq(22..22 + withheld.len() as u64), "the oldest first: {withheld:?}");
    // It answers again: the next burst waits for it.
    while let Some(ask) = bench.machine.next_ask(bench.now + RETRY.1) {
        bench.answer(&ask, &[]);
    }
    bench.out();
    burst(&mut bench, 40);
    bench.machine.tick(bench.now);
    assert!(bench.out().is_empty() && bench.machine.bytes > 16_000);
}

#[test]
fn a_question_that_alone_gets_no_answer_is_given_up_by_itself() {
    let mut bench = Bench::new(&limits(64_000));
    burst(&mut bench, 2);
    let (stuck, other) = (bench.ask().unwrap(), bench.ask().unwrap());
    bench.now = ms(900);
    bench.answer(&other, &[]);
    bench.now = ms(1000);
    bench.machine.tick(bench.now);
    assert_eq!(bench.out(), [1, 2]);
    assert_eq!(
        stuck.event.as_ref().unwrap().audience().get().unwrap().nobody,
        Some(Withheld::AudienceTimeout)
    );
    assert_eq!(bench.machine.stats.timed_out.load(Relaxed), 1);
}

#[test]
fn when_redis_is_pressed_the_oldest_are_withheld_down_to_the_share() {
    let mut bench = Bench::new(&limits(64_000));
    burst(&mut bench, 30);
    assert!(bench.machine.is_over_share());
    bench.machine.relieve();
    let withheld = bench.out();
    assert!(withheld.len() > 3 && withheld.iter().copied().eq(1..=withheld.len() as u64), "{withheld:?}");
    assert!(!bench.machine.is_over_share() && bench.machine.messages > 3);
}

#[test]
fn an_audience_waits_for_room_and_the_gate_announces_it() {
    let mut bench = Bench::new(&limits(16_000));
    let rung = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let bell = Arc::clone(&rung);
    bench.gate.on_announce(move || {
        bell.fetch_add(1, Relaxed);
    });
    burst(&mut bench, 1);
    // Clients hold more than one and a half times the budget.
    let held = Charge::new(&bench.gate, 30_000);
    let ask = bench.ask().unwrap();
    bench.answer(&ask, &[]);
    assert!(bench.out().is_empty(), "no room");
    let event = bench.status(channel(0), 9, "another");
    bench.push_event(&event);
    drop(event);
    assert!(bench.ask().is_none(), "no more is asked meanwhile");
    bench.now = ms(5000);
    bench.machine.tick(bench.now);
    assert!(bench.out().is_empty(), "nor is PostgreSQL to blame");
    assert_eq!(rung.load(Relaxed), 0);
    drop(held);
    assert_eq!(rung.load(Relaxed), 1);
    assert_eq!(bench.out(), [1]);
    let ask = bench.ask().unwrap();
    bench.answer(&ask, &[]);
    assert_eq!(bench.out(), [2]);
}

#[test]
fn a_gap_of_a_channel_stays_behind_what_was_published_before() {
    let mut bench = Bench::new(&limits(64_000));
    burst(&mut bench, 2);
    bench.push(StageItem::ChannelGap(channel(0), 1));
    bench.push(StageItem::ChannelGap(channel(1), 1));
    assert_eq!(bench.out(), [0], "another channel's does not wait");
    let (one, two) = (bench.ask().unwrap(), bench.ask().unwrap());
    bench.answer(&two, &[]);
    assert!(bench.out().is_empty());
    bench.answer(&one, &[]);
    assert_eq!(bench.out(), [1, 2, 0]);
}

#[test]
fn copies_of_a_status_ask_an_accounts_filters_once() {
    let mut bench = Bench::new(&limits(1 << 20));
    let row = FilterRow { id: 7, keyword: "cat".into(), ..FilterRow::default() };
    bench.filters.insert(1, Arc::new(Filters::compile(&[row])));
    for number in 0..4 {
        bench.push(StageItem::Join(channel(number), 1));
    }
    let copies: Vec<_> = (0..4).map(|number| bench.status(channel(number), 9, "a cat")).collect();
    bench.push_event(&copies[0]);
    let ask = bench.ask().unwrap();
    bench.answer(&ask, &[]);
    let work = bench.machine.bench.work.spent();
    assert!(work > 0);
    copies[1..].iter().for_each(|copy| bench.push_event(copy));
    assert_eq!(bench.out(), [1, 2, 3, 4]);
    assert_eq!(bench.machine.bench.work.spent(), work);
    let outcome = |event: &Event| Arc::as_ptr(&event.audience().get().unwrap().outcomes[0]);
    assert!(copies.iter().all(|copy| outcome(copy) == outcome(&copies[0])), "one result for all");
}

impl Machine {
    /// What the gate counts of statuses that are kept for their copies.
    fn kept_events(&self) -> usize {
        self.kept.iter().map(|kept| self.questions[&kept.0].event.held_bytes()).sum()
    }
}
