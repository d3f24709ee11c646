//! The deciding part, driven with answers in any order, failures and time, against an oracle.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::core::event::{Parsed, Position, Verdict};
use crate::core::filter::FilterRow;
use crate::core::gate::Gate;
use crate::core::stream::{Origin, Tag};

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn channel(number: usize) -> Channel {
    match number {
        0 => Channel::Public { origin: Origin::Any, media: false },
        1 => Channel::Public { origin: Origin::Local, media: false },
        2 => Channel::Public { origin: Origin::Remote, media: false },
        _ => Channel::Hashtag { tag: Tag::from_normalised("x"), local: false },
    }
}

/// A test's stage: a machine, a gate, and what came out of it.
struct Bench {
    machine: Machine,
    gate: Arc<Gate>,
    seq: u64,
    now: Duration,
}

impl Bench {
    fn new(limits: &Limits) -> Bench {
        Bench {
            machine: Machine::new(limits, 3, Arc::default()),
            gate: Gate::new(1 << 30, 1 << 29, || {}),
            seq: 0,
            now: Duration::ZERO,
        }
    }

    fn event(&mut self, channel: Channel, message: String) -> Arc<Event> {
        self.seq += 1;
        let at = Position { epoch: 1, seq: self.seq, read_at: Duration::ZERO };
        match Event::parse(channel, at, Bytes::from(message), &self.gate) {
            Parsed::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }

    fn status(&mut self, channel: Channel, author: u64, text: &str) -> Arc<Event> {
        self.event(
            channel,
            format!(
                r#"{{"event":"update","payload":{{"id":"1","account":{{"id":"{author}","username":"u","acct":"u"}},"#
            ) + &format!(r#""mentions":[],"content":"<p>{text}</p>","media_attachments":[],"tags":[{{"name":"x"}}]}}}}"#),
        )
    }

    fn delete(&mut self, channel: Channel) -> Arc<Event> {
        self.event(channel, r#"{"event":"delete","payload":"1"}"#.to_owned())
    }

    fn push(&mut self, item: StageItem) {
        self.machine.push(item, self.now, 0);
    }

    fn push_event(&mut self, event: &Arc<Event>) {
        self.push(StageItem::Event(Arc::clone(event), 1));
    }

    fn ask(&mut self) -> Option<Ask> {
        self.machine.next_ask(self.now)
    }

    fn answer(&mut self, ask: &Ask, hidden: &[Id]) {
        let hidden = hidden.iter().map(|id| (*id, Withheld::Relationship)).collect();
        let feeds = ask.feeds.then(FeedAccess::default);
        self.machine.answer(ask, Ok(Reply { hidden, feeds, ..Reply::default() }), self.now, 0);
    }

    fn fail(&mut self, ask: &Ask) {
        let error = DbError::Away { at: "x".into(), cause: "y".into() };
        self.machine.answer(ask, Err(error), self.now, 0);
    }

    fn out(&mut self) -> Vec<u64> {
        self.machine.out.drain(..).map(|(event, _)| event.position().seq).collect()
    }
}

fn covered(ask: &Ask) -> Vec<Id> {
    ask.covered.asked.to_vec()
}

#[test]
fn of_two_answers_about_settings_the_one_asked_for_last_counts() {
    let mut bench = Bench::new(&Limits::default());
    bench.push(StageItem::Join(channel(0), 1));
    let event = bench.status(channel(0), 9, "a");
    bench.push_event(&event);
    let first = bench.ask().unwrap();
    bench.now = ms(1);
    let second = Ask {
        question: 0,
        event: None,
        covered: Arc::default(),
        settings: first.settings.clone(),
        loads: Vec::new(),
        feeds: true,
        sent_at: bench.now,
    };
    let german = Settings { languages: Some(Box::new(["de".into()])), ..Settings::default() };
    let reply = Reply { settings: HashMap::from([(1, german)]), ..Reply::default() };
    bench.machine.answer(&second, Ok(reply), bench.now, 0);
    bench.answer(&first, &[]);
    let verdict = event.audience().get().unwrap().verdict(1);
    assert_eq!(verdict, Verdict::Withheld(Withheld::Language));
}

#[test]
fn one_question_for_all_copies_and_the_answer_serves_for_a_second() {
    let mut bench = Bench::new(&Limits::default());
    for (number, account) in [(0, 1), (0, 2), (1, 2), (1, 3), (3, 4)] {
        bench.push(StageItem::Join(channel(number), account));
    }
    let copies: Vec<_> = [0, 1, 3].map(|number| bench.status(channel(number), 9, "a")).into();
    bench.push_event(&copies[0]);
    let ask = bench.ask().unwrap();
    assert_eq!(covered(&ask), [1, 2, 3, 4]);
    assert!(bench.ask().is_none());
    bench.push_event(&copies[1]);
    assert!(bench.ask().is_none() && bench.out().is_empty());
    bench.now += ms(10);
    bench.answer(&ask, &[2]);
    assert_eq!(bench.out(), [1, 2]);
    bench.push_event(&copies[2]);
    assert_eq!(bench.out(), [3]);
    let verdicts = |event: &Event| -> Vec<Verdict> {
        (1..=4).map(|id| event.audience().get().unwrap().verdict(id)).collect()
    };
    let (yes, no) = (Verdict::Deliver(0), Verdict::Withheld(Withheld::Relationship));
    let not_asked = Verdict::Withheld(Withheld::NotAsked);
    assert_eq!(verdicts(&copies[0]), [yes, no, not_asked, not_asked]);
    assert_eq!(verdicts(&copies[1]), [not_asked, no, yes, not_asked]);
    assert_eq!(verdicts(&copies[2]), [not_asked, not_asked, not_asked, yes]);
    // One who came later was not covered; and an answer is good for a second only.
    bench.push(StageItem::Join(channel(3), 5));
    let again = bench.status(channel(3), 9, "a");
    bench.push_event(&again);
    let ask = bench.ask().unwrap();
    bench.answer(&ask, &[]);
    assert_eq!(bench.out(), [4]);
    bench.now += ms(1001);
    let late = bench.status(channel(0), 9, "a");
    bench.push_event(&late);
    assert!(bench.ask().is_some());
}

#[test]
fn a_delete_waits_for_its_update_and_for_nothing_else() {
    let mut bench = Bench::new(&Limits::default());
    bench.push(StageItem::Join(channel(0), 1));
    let events = [bench.status(channel(0), 9, "a"), bench.delete(channel(0)), bench.delete(channel(1))];
    events.iter().for_each(|event| bench.push_event(event));
    assert_eq!(bench.out(), [3]);
    let ask = bench.ask().unwrap();
    bench.answer(&ask, &[]);
    assert_eq!(bench.out(), [1, 2]);
    // Nobody watches: nothing to ask.
    let unwatched = bench.status(channel(1), 9, "a");
    bench.push_event(&unwatched);
    assert_eq!(bench.out(), [4]);
    assert_eq!(unwatched.audience().get().unwrap().verdict(1), Verdict::Withheld(Withheld::NotAsked));
}

#[test]
fn malformed_statuses_go_to_nobody_and_disturb_nobody() {
    let mut bench = Bench::new(&Limits::default());
    bench.push(StageItem::Join(channel(0), 1));
    let wrong = [
        r#"{"event":"update","payload":{"id":"1"}}"#,
        r#"{"event":"update","payload":{"account":{"id":"9","username":"u","acct":"u"},"mentions":null}}"#,
        r#"{"event":"update","payload":{"account":{"id":"9","username":"u","acct":"u"},"mentions":[],"content":[1]}}"#,
    ];
    let wrong: Vec<_> = wrong.iter().map(|message| bench.event(channel(0), (*message).to_owned())).collect();
    let right = bench.status(channel(0), 9, "a");
    wrong.iter().chain([&right]).for_each(|event| bench.push_event(event));
    assert_eq!(bench.out(), [1, 2]);
    while let Some(ask) = bench.ask() {
        bench.answer(&ask, &[]);
    }
    assert_eq!(bench.out(), [3, 4]);
    for event in &wrong {
        assert_eq!(event.audience().get().unwrap().verdict(1), Verdict::Withheld(Withheld::Malformed));
    }
    assert_eq!(right.audience().get().unwrap().verdict(1), Verdict::Deliver(0));
    assert_eq!(bench.machine.stats.malformed.load(Relaxed), 3);
}

#[test]
fn held_back_while_postgresql_is_away_and_withheld_after_the_timeout() {
    let mut bench = Bench::new(&Limits { audience_timeout: ms(1000), ..Limits::default() });
    bench.push(StageItem::Join(channel(0), 1));
    let events: Vec<_> = ["a", "b", "c"].map(|text| bench.status(channel(0), 9, text)).into();
    bench.push_event(&events[0]);
    let ask = bench.ask().unwrap();
    bench.fail(&ask);
    assert!(bench.ask().is_none(), "not at once again");
    bench.now = bench.machine.next_wake().unwrap();
    assert!(bench.now > Duration::ZERO && bench.now < ms(200));
    bench.push_event(&events[1]);
    let (one, two) = (bench.ask().unwrap(), bench.ask().unwrap());
    bench.now = ms(999);
    bench.machine.tick(bench.now);
    assert!(bench.out().is_empty());
    bench.now = ms(1000);
    bench.machine.tick(bench.now);
    assert_eq!(bench.out(), [1]);
    assert_eq!(events[0].audience().get().unwrap().nobody, Some(Withheld::AudienceTimeout));
    // The answer that comes after all is for nobody, the next one is in time.
    bench.answer(&one, &[]);
    assert!(bench.out().is_empty());
    bench.answer(&two, &[]);
    assert_eq!(bench.out(), [2]);
    bench.push_event(&events[2]);
    let ask = bench.ask().unwrap();
    bench.answer(&ask, &[]);
    assert_eq!(bench.out(), [3]);
    assert_eq!(bench.machine.stats.timed_out.load(Relaxed), 1);
}

#[test]
fn the_oldest_are_withheld_when_too_much_waits() {
    let mut bench = Bench::new(&Limits { backpressure_high_bytes: 4 * 8000, ..Limits::default() });
    bench.push(StageItem::Join(channel(0), 1));
    let events: Vec<_> =
        (0..20).map(|number| bench.status(channel(0), 9, &format!("{number}{}", "x".repeat(500)))).collect();
    events.iter().for_each(|event| bench.push_event(event));
    let withheld = bench.out();
    assert!(withheld.len() > 3 && withheld.len() < 18, "{withheld:?}");
    assert!(withheld.iter().copied().eq(1..=withheld.len() as u64));
    assert!(bench.machine.bytes <= 8000);
    assert_eq!(events[0].audience().get().unwrap().nobody, Some(Withheld::AudienceOverflow));
    // A message larger than the whole share may still pass alone.
    let huge = bench.status(channel(0), 9, &"y".repeat(20_000));
    bench.push_event(&huge);
    assert_eq!(bench.out().len(), 20 - withheld.len());
    let ask = bench.ask().unwrap();
    assert_eq!(ask.event.as_ref().unwrap().position(), huge.position());
    bench.answer(&ask, &[]);
    assert_eq!(bench.out(), [21]);
}

#[test]
fn filters_are_loaded_once_dropped_on_change_and_an_old_load_is_not_kept() {
    let mut bench = Bench::new(&Limits::default());
    bench.push(StageItem::Join(channel(0), 1));
    bench.push(StageItem::Join(channel(0), 2));
    let row = FilterRow { id: 7, keyword: "cat".into(), ..FilterRow::default() };
    let filters = || -> HashMap<Id, Arc<Filters>> {
        [(1, Arc::new(Filters::compile(std::slice::from_ref(&row))))].into()
    };
    let reply = |ask: &Ask| Reply {
        filters: if ask.loads.is_empty() { HashMap::new() } else { filters() },
        feeds: ask.feeds.then(FeedAccess::default),
        ..Reply::default()
    };
    let run = |bench: &mut Bench, text: &str, change: bool| {
        let event = bench.status(channel(0), 9, text);
        bench.push_event(&event);
        let ask = bench.ask().unwrap();
        if change {
            bench.push(StageItem::FiltersChanged(1));
        }
        bench.machine.answer(&ask, Ok(reply(&ask)), bench.now, 0);
        let audience = event.audience().get().unwrap();
        assert_eq!(audience.verdict(2), Verdict::Deliver(0));
        (ask.loads.len(), audience.verdict(1))
    };
    assert_eq!(run(&mut bench, "a cat", true), (2, Verdict::Deliver(1)));
    assert_eq!(run(&mut bench, "that cat", false), (1, Verdict::Deliver(1)));
    assert_eq!(run(&mut bench, "no dog", false), (0, Verdict::Deliver(0)));
    bench.push(StageItem::FiltersChanged(1));
    assert_eq!(run(&mut bench, "one cat", false), (1, Verdict::Deliver(1)));
    // Gone and back: nobody listened meanwhile.
    bench.push(StageItem::Leave(channel(0), 1));
    bench.push(StageItem::Join(channel(0), 1));
    assert_eq!(run(&mut bench, "two cats", false), (1, Verdict::Deliver(1)));
}

#[test]
fn settings_are_read_again_for_all_at_once() {
    let mut bench = Bench::new(&Limits { settings_refresh: ms(1000), ..Limits::default() });
    for account in 1..=3 {
        bench.push(StageItem::Join(channel(0), account));
    }
    let event = bench.status(channel(0), 9, "a");
    bench.push_event(&event);
    let ask = bench.ask().unwrap();
    assert_eq!((ask.settings.len(), ask.feeds), (3, true));
    bench.answer(&ask, &[]);
    let event = bench.status(channel(0), 9, "b");
    bench.push_event(&event);
    let ask = bench.ask().unwrap();
    assert_eq!((ask.settings.len(), ask.feeds), (0, false));
    bench.answer(&ask, &[]);
    // One who comes back finds what holds now.
    bench.now = ms(100);
    bench.push(StageItem::Join(channel(0), 2));
    let event = bench.status(channel(0), 9, "back");
    bench.push_event(&event);
    let ask = bench.ask().unwrap();
    assert_eq!((ask.settings.len(), ask.feeds), (1, true));
    bench.answer(&ask, &[]);
    bench.now = ms(750);
    let ask = bench.ask().unwrap();
    assert_eq!((ask.question, ask.settings.len(), ask.feeds), (0, 3, true));
    assert!(bench.ask().is_none());
    // Refreshing fails: what is known holds for its time, and no longer.
    bench.fail(&ask);
    bench.now = ms(1101);
    let event = bench.status(channel(0), 9, "c");
    bench.push_event(&event);
    let asks: Vec<Ask> = std::iter::from_fn(|| bench.ask()).collect();
    assert!(asks.iter().any(|ask| ask.question != 0 && ask.settings.len() == 3 && ask.feeds));
}

#[derive(Clone, Debug)]
enum Step {
    Join(usize, Id),
    Leave(usize, Id),
    Status { channel: usize, author: Id, text: u8 },
    Delete(usize),
    FiltersChanged(Id),
    Ask,
    Answer(usize),
    Fail(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4usize, 1..6u64).prop_map(|(channel, id)| Step::Join(channel, id)),
        2 => (0..4usize, 1..6u64).prop_map(|(channel, id)| Step::Leave(channel, id)),
        6 => (0..4usize, 10..13u64, 0..3u8).prop_map(|(channel, author, text)| Step::Status { channel, author, text }),
        2 => (0..4usize).prop_map(Step::Delete),
        1 => (1..6u64).prop_map(Step::FiltersChanged),
        5 => Just(Step::Ask),
        5 => (0..4usize).prop_map(Step::Answer),
        2 => (0..4usize).prop_map(Step::Fail),
        2 => (0..700u64).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn each_event_leaves_once_in_order_to_those_who_watched_and_may_see_it(
        steps in proptest::collection::vec(step(), 0..120),
        small in any::<bool>(),
    ) {
        let bytes = if small { 4 * 3000 } else { 1 << 20 };
        let limits = Limits { backpressure_high_bytes: bytes, audience_timeout: ms(2000), ..Limits::default() };
        let mut bench = Bench::new(&limits);
        let hates = |viewer: Id, author: Id| (viewer + author).is_multiple_of(3);
        let mut watching: HashMap<(usize, Id), u32> = HashMap::new();
        let mut flying: Vec<Ask> = Vec::new();
        // What was pushed, by sequence number: the event, its author, and who watched.
        let mut pushed: Vec<(Arc<Event>, Option<Id>, BTreeSet<Id>)> = Vec::new();
        let mut left: Vec<u64> = Vec::new();
        let answer = |bench: &mut Bench, ask: &Ask| {
            let author = ask.event.as_ref().map_or(0, |event| event.status().unwrap().unwrap().author);
            let hidden: Vec<Id> = covered(ask).into_iter().filter(|id| hates(*id, author)).collect();
            bench.answer(ask, &hidden);
        };
        for step in steps {
            match step {
                Step::Join(number, id) => {
                    *watching.entry((number, id)).or_default() += 1;
                    bench.push(StageItem::Join(channel(number), id));
                }
                Step::Leave(number, id) => {
                    if let Some(count) = watching.get_mut(&(number, id)).filter(|count| **count > 0) {
                        *count -= 1;
                        bench.push(StageItem::Leave(channel(number), id));
                    }
                }
                Step::Status { channel: number, author, text } => {
                    let event = bench.status(channel(number), author, &format!("{text}"));
                    let who = watching.iter().filter(|entry| entry.0.0 == number && *entry.1 > 0);
                    pushed.push((Arc::clone(&event), Some(author), who.map(|entry| entry.0.1).collect()));
                    bench.push_event(&event);
                }
                Step::Delete(number) => {
                    let event = bench.delete(channel(number));
                    pushed.push((Arc::clone(&event), None, BTreeSet::new()));
                    bench.push_event(&event);
                }
                Step::FiltersChanged(id) => bench.push(StageItem::FiltersChanged(id)),
                Step::Ask => flying.extend(bench.ask()),
                Step::Answer(at) if at < flying.len() => {
                    let ask = flying.remove(at);
                    answer(&mut bench, &ask);
                }
                Step::Fail(at) if at < flying.len() => {
                    let ask = flying.remove(at);
                    bench.fail(&ask);
                }
                Step::Answer(_) | Step::Fail(_) => {}
                Step::Wait(time) => {
                    bench.now += ms(time);
                    bench.machine.tick(bench.now);
                }
            }
            left.extend(bench.out());
        }
        // PostgreSQL is back and quick: everything leaves.
        for _ in 0..10_000 {
            flying.extend(std::iter::from_fn(|| bench.ask()));
            for ask in std::mem::take(&mut flying) {
                answer(&mut bench, &ask);
            }
            left.extend(bench.out());
            if bench.machine.messages == 0 {
                break;
            }
            bench.now = bench.machine.next_wake().unwrap().max(bench.now);
            bench.machine.tick(bench.now);
            left.extend(bench.out());
        }
        prop_assert_eq!(left.iter().copied().collect::<BTreeSet<u64>>().len(), pushed.len());
        prop_assert_eq!(left.len(), pushed.len());
        for number in 0..4 {
            let order: Vec<u64> = left.iter().copied()
                .filter(|seq| *pushed[*seq as usize - 1].0.channel() == channel(number)).collect();
            prop_assert!(order.is_sorted());
        }
        for (event, author, watched) in &pushed {
            let Some(author) = author else { continue };
            let audience = event.audience().get().unwrap();
            for id in 0..8 {
                let verdict = audience.verdict(id);
                if audience.nobody.is_some() {
                    prop_assert!(matches!(verdict, Verdict::Withheld(_)));
                } else if !watched.contains(&id) {
                    prop_assert_eq!(verdict, Verdict::Withheld(Withheld::NotAsked));
                } else if hates(id, *author) {
                    prop_assert_eq!(verdict, Verdict::Withheld(Withheld::Relationship));
                } else {
                    prop_assert_eq!(verdict, Verdict::Deliver(0));
                }
            }
        }
        prop_assert_eq!((bench.machine.bytes, bench.machine.messages, bench.machine.waiting.len()), (0, 0, 0));
        // Nothing is kept for longer than it may serve.
        bench.now += ms(2000);
        bench.machine.tick(bench.now);
        prop_assert!(bench.machine.questions.is_empty() && bench.machine.by_payload.is_empty());
        prop_assert!(bench.machine.queues.is_empty() && bench.machine.unsent.is_empty());
        drop(pushed);
        prop_assert_eq!(bench.gate.held_bytes(), 0);
    }
}
