//! The deciding part, driven with answers in any order, failures and time, against an oracle.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::core::event::{Parsed, Position, Verdict};
use crate::core::filter::{FilterRow, Filters};
use crate::core::stream::{Origin, Tag};
use crate::db::feeds::Settings;
use crate::db::pool::DbError;
use crate::db::preferences::Preferences;

mod waiting;

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
    /// What PostgreSQL has.
    filters: HashMap<Id, Arc<Filters>>,
    /// Asks about newcomers that were answered.
    welcomed: Vec<Ask>,
}

impl Bench {
    fn new(limits: &Limits) -> Bench {
        let high = limits.backpressure_high_bytes;
        let gate = Gate::new(high, high / 2, || {});
        Bench {
            machine: Machine::new(limits, 3, Arc::clone(&gate), Arc::default()),
            gate,
            seq: 0,
            now: Duration::ZERO,
            filters: HashMap::new(),
            welcomed: Vec::new(),
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
        self.machine.push(item, self.now);
    }

    fn push_event(&mut self, event: &Arc<Event>) {
        self.push(StageItem::Event(Arc::clone(event), 1));
    }

    /// The next ask that is not about newcomers; those are answered.
    fn ask(&mut self) -> Option<Ask> {
        loop {
            let ask = self.machine.next_ask(self.now)?;
            if !matches!(ask.about, About::Newcomers(_)) {
                return Some(ask);
            }
            self.answer(&ask, &[]);
            self.welcomed.push(ask);
        }
    }

    /// What PostgreSQL would say.
    fn reply(&self, ask: &Ask, hidden: &[Id]) -> Reply {
        let hidden = hidden.iter().map(|id| (*id, Withheld::Relationship)).collect();
        let loaded = ask.loads.iter().filter_map(|load| {
            let filters = self.filters.get(&load.viewer.id)?;
            Some((load.viewer.id, Arc::clone(filters)))
        });
        let instance = ask.instance.then(Instance::default);
        let preferences = Preferences { filters: loaded.collect(), instance, ..Preferences::default() };
        Reply { hidden, preferences }
    }

    fn answer(&mut self, ask: &Ask, hidden: &[Id]) {
        let reply = self.reply(ask, hidden);
        self.machine.answer(ask, Ok(reply), self.now);
        self.decide();
    }

    fn decide(&mut self) {
        while self.machine.decide(self.now, 0) {}
    }

    fn fail(&mut self, ask: &Ask) {
        let error = DbError::Away { at: "x".into(), cause: "y".into(), advice: "z" };
        self.machine.answer(ask, Err(error), self.now);
    }

    fn out(&mut self) -> Vec<u64> {
        self.decide();
        let seq = |passing: Passing| match passing {
            Passing::Event(event) => event.position().seq,
            Passing::Gap(_) => 0,
        };
        self.machine.out.drain(..).map(|(passing, _)| seq(passing)).collect()
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
    let welcome = bench.machine.next_ask(bench.now).unwrap();
    assert_eq!((welcome.about, welcome.settings.len()), (About::Newcomers(1), 1));
    bench.now = ms(1);
    let second = Ask {
        about: About::Refresh,
        event: None,
        covered: Arc::default(),
        domains_readable: false,
        settings: welcome.settings.clone(),
        loads: Vec::new(),
        instance: true,
        sent_at: bench.now,
    };
    let german = Settings { languages: Some(Box::new(["de".into()])), ..Settings::default() };
    let preferences = Preferences { settings: HashMap::from([(1, german)]), ..Preferences::default() };
    bench.machine.answer(&second, Ok(Reply { preferences, ..Reply::default() }), bench.now);
    bench.answer(&welcome, &[]);
    let question = bench.ask().unwrap();
    assert!(question.settings.is_empty());
    bench.answer(&question, &[]);
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
fn filters_are_loaded_once_dropped_on_change_and_an_old_load_is_not_kept() {
    let mut bench = Bench::new(&Limits::default());
    bench.push(StageItem::Join(channel(0), 1));
    bench.push(StageItem::Join(channel(0), 2));
    let row = FilterRow { id: 7, keyword: "cat".into(), ..FilterRow::default() };
    bench.filters.insert(1, Arc::new(Filters::compile(std::slice::from_ref(&row))));
    let run = |bench: &mut Bench, text: &str, change: bool| {
        let event = bench.status(channel(0), 9, text);
        bench.push_event(&event);
        let ask = bench.ask().unwrap();
        if change {
            bench.push(StageItem::FiltersChanged(1));
        }
        bench.answer(&ask, &[]);
        let audience = event.audience().get().unwrap();
        assert_eq!(audience.verdict(2), Verdict::Deliver(0));
        (ask.loads.len(), audience.verdict(1))
    };
    assert_eq!(run(&mut bench, "a cat", true), (0, Verdict::Deliver(1)));
    assert_eq!(bench.welcomed.pop().unwrap().loads.len(), 2);
    assert_eq!(run(&mut bench, "that cat", true), (1, Verdict::Deliver(1)));
    assert_eq!(run(&mut bench, "one more cat", false), (1, Verdict::Deliver(1)));
    assert_eq!(run(&mut bench, "no dog", false), (0, Verdict::Deliver(0)));
    bench.push(StageItem::FiltersChanged(1));
    assert_eq!(run(&mut bench, "one cat", false), (1, Verdict::Deliver(1)));
    // Gone and back: nobody listened meanwhile.
    bench.push(StageItem::Leave(channel(0), 1));
    bench.push(StageItem::Join(channel(0), 1));
    assert_eq!(run(&mut bench, "two cats", false), (0, Verdict::Deliver(1)));
    assert_eq!(bench.welcomed.pop().unwrap().loads.len(), 1);
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
    assert_eq!((ask.settings.len(), ask.instance), (0, false));
    let welcome = bench.welcomed.pop().unwrap();
    assert_eq!((welcome.settings.len(), welcome.instance), (3, true));
    bench.answer(&ask, &[]);
    // One who comes back finds what holds now.
    bench.now = ms(100);
    bench.push(StageItem::Join(channel(0), 2));
    let event = bench.status(channel(0), 9, "back");
    bench.push_event(&event);
    let ask = bench.ask().unwrap();
    let welcome = bench.welcomed.pop().unwrap();
    assert_eq!((welcome.settings.len(), welcome.instance), (1, true));
    bench.answer(&ask, &[]);
    bench.now = ms(750);
    let ask = bench.ask().unwrap();
    assert_eq!((ask.about, ask.settings.len(), ask.instance), (About::Refresh, 3, true));
    assert!(bench.ask().is_none());
    // Refreshing fails: what is known holds for its time, and no longer.
    bench.fail(&ask);
    bench.now = ms(1101);
    let event = bench.status(channel(0), 9, "c");
    bench.push_event(&event);
    let asks: Vec<Ask> = std::iter::from_fn(|| bench.ask()).collect();
    let is_question = |ask: &Ask| matches!(ask.about, About::Question(_));
    assert!(asks.iter().any(|ask| is_question(ask) && ask.settings.len() == 3 && ask.instance));
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

/// What was pushed, and what is expected of it.
struct Pushed {
    channel: Channel,
    /// The author, the text, and who watched; none for a deletion.
    status: Option<(Id, u8, BTreeSet<Id>)>,
}

impl Pushed {
    fn check(&self, event: &Event) -> Result<(), TestCaseError> {
        prop_assert_eq!(event.channel(), &self.channel);
        let Some((author, text, watched)) = &self.status else { return Ok(()) };
        let audience = event.audience().get().unwrap();
        for id in 0..8 {
            let verdict = audience.verdict(id);
            if audience.nobody.is_some() {
                prop_assert!(matches!(verdict, Verdict::Withheld(_)));
            } else if !watched.contains(&id) {
                prop_assert_eq!(verdict, Verdict::Withheld(Withheld::NotAsked));
            } else if hates(id, *author) {
                prop_assert_eq!(verdict, Verdict::Withheld(Withheld::Relationship));
            } else if *text == 1 && FILTERED.contains(&id) {
                let no_room = verdict == Verdict::Withheld(Withheld::FilterResults);
                prop_assert!(no_room || matches!(verdict, Verdict::Deliver(1..)), "{:?}", verdict);
            } else {
                prop_assert_eq!(verdict, Verdict::Deliver(0));
            }
        }
        Ok(())
    }
}

fn hates(viewer: Id, author: Id) -> bool {
    (viewer + author).is_multiple_of(3)
}

/// Accounts whose filters match the text `1`.
const FILTERED: [Id; 2] = [2, 4];

proptest! {
    #[test]
    fn each_event_leaves_once_in_order_to_those_who_watched_and_may_see_it(
        steps in proptest::collection::vec(step(), 0..160),
        small in any::<bool>(),
        undelivered in 0usize..4,
    ) {
        let high = if small { 16_000 } else { 1 << 20 };
        let limits = Limits { backpressure_high_bytes: high, audience_timeout: ms(2000), ..Limits::default() };
        let mut bench = Bench::new(&limits);
        let row = FilterRow { id: 7, keyword: "1".into(), title: "t".repeat(200), ..FilterRow::default() };
        for id in FILTERED {
            bench.filters.insert(id, Arc::new(Filters::compile(std::slice::from_ref(&row))));
        }
        let mut watching: HashMap<(usize, Id), u32> = HashMap::new();
        let mut flying: Vec<Ask> = Vec::new();
        // By sequence number.
        let mut pushed: Vec<Pushed> = Vec::new();
        let mut left: Vec<u64> = Vec::new();
        // What the clients have not read yet.
        let mut held: VecDeque<Arc<Event>> = VecDeque::new();
        let answer = |bench: &mut Bench, ask: &Ask| {
            let author = ask.event.as_ref().map_or(0, |event| event.status().unwrap().unwrap().author);
            let hidden: Vec<Id> = covered(ask).into_iter().filter(|id| hates(*id, author)).collect();
            bench.answer(ask, &hidden);
        };
        let mut take = |bench: &mut Bench, pushed: &[Pushed], keep: usize| -> Result<(), TestCaseError> {
            loop {
                bench.decide();
                if bench.machine.out.is_empty() {
                    break;
                }
                for (passing, _) in std::mem::take(&mut bench.machine.out) {
                    let Passing::Event(event) = passing else { continue };
                    pushed[event.position().seq as usize - 1].check(&event)?;
                    left.push(event.position().seq);
                    held.push_back(event);
                }
                while held.len() > keep {
                    held.pop_front();
                }
            }
            while held.len() > keep {
                held.pop_front();
            }
            prop_assert!(bench.gate.held_bytes() <= 2 * high, "{} of {high}", bench.gate.held_bytes());
            Ok(())
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
                Step::Status { channel: number, author, text } if bench.gate.may_read() => {
                    let event = bench.status(channel(number), author, &format!("{text}"));
                    let who = watching.iter().filter(|entry| entry.0.0 == number && *entry.1 > 0);
                    let who = who.map(|entry| entry.0.1).collect();
                    pushed.push(Pushed { channel: channel(number), status: Some((author, text, who)) });
                    bench.push_event(&event);
                }
                Step::Delete(number) if bench.gate.may_read() => {
                    let event = bench.delete(channel(number));
                    pushed.push(Pushed { channel: channel(number), status: None });
                    bench.push_event(&event);
                }
                Step::Status { .. } | Step::Delete(_) => {}
                Step::FiltersChanged(id) => bench.push(StageItem::FiltersChanged(id)),
                Step::Ask => flying.extend(bench.machine.next_ask(bench.now)),
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
            take(&mut bench, &pushed, undelivered)?;
        }
        // PostgreSQL is back and quick: everything leaves.
        for _ in 0..10_000 {
            flying.extend(std::iter::from_fn(|| bench.machine.next_ask(bench.now)));
            for ask in std::mem::take(&mut flying) {
                answer(&mut bench, &ask);
            }
            take(&mut bench, &pushed, 0)?;
            if bench.machine.messages == 0 {
                break;
            }
            bench.now = bench.machine.next_wake().unwrap().max(bench.now);
            bench.machine.tick(bench.now);
        }
        take(&mut bench, &pushed, 0)?;
        prop_assert_eq!(left.iter().copied().collect::<BTreeSet<u64>>().len(), pushed.len());
        prop_assert_eq!(left.len(), pushed.len());
        for number in 0..4 {
            let order: Vec<u64> =
                left.iter().copied().filter(|seq| pushed[*seq as usize - 1].channel == channel(number)).collect();
            prop_assert!(order.is_sorted());
        }
        prop_assert_eq!((bench.machine.bytes, bench.machine.messages), (0, 0));
        prop_assert!(bench.machine.asked.is_empty() && bench.machine.never_asked.is_empty());
        // Nothing is kept for longer than it may serve.
        bench.now += ms(2000);
        bench.machine.tick(bench.now);
        prop_assert!(bench.machine.questions.is_empty() && bench.machine.by_payload.is_empty());
        prop_assert!(bench.machine.queues.is_empty() && bench.machine.unsent.is_empty());
        prop_assert!(bench.machine.kept.is_empty() && bench.machine.kept_bytes == 0);
        prop_assert_eq!(bench.gate.held_bytes(), 0);
    }
}
