//! The audience stage as it runs: its thread, a real PostgreSQL, events in, deliveries out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use support::machine::{PATIENCE, wait_until};
use support::postgres::Postgres;
use tidegate::clock::Clock;
use tidegate::core::event::{Audience, Event, Parsed, Position, Verdict, Withheld};
use tidegate::core::gate::Gate;
use tidegate::core::handover::{Delivery, StageItem};
use tidegate::core::mailbox::Mailbox;
use tidegate::core::stream::{Channel, Id, Origin, Tag};
use tidegate::db::Pool;
use tidegate::db::stage::{Setup, Stage, StageHandle};
use tidegate::limits::Limits;

const PUBLIC: Channel = Channel::Public { origin: Origin::Any, media: false };
const LOCAL: Channel = Channel::Public { origin: Origin::Local, media: false };

fn tag(name: &str) -> Channel {
    Channel::Hashtag { tag: Tag::from_normalised(name), local: false }
}

/// A stage with one reactor's mailbox.
struct World {
    inbox: Arc<Mailbox<StageItem>>,
    reactor: Arc<Mailbox<Delivery<()>>>,
    woken: Receiver<()>,
    handle: StageHandle,
    gate: Arc<Gate>,
    seq: u64,
    epoch: u32,
}

/// A status; `more` stands before its end.
fn update(author: &str, more: &str) -> String {
    format!(
        r#"{{"event":"update","payload":{{"id":"1","account":{author},"mentions":[],"media_attachments":[]{more}}}}}"#
    )
}

fn local(id: Id) -> String {
    format!(r#"{{"id":"{id}","username":"u{id}","acct":"u{id}"}}"#)
}

fn remote(id: Id) -> String {
    format!(r#"{{"id":"{id}","username":"u{id}","acct":"u{id}@far.example"}}"#)
}

fn withheld(reason: Withheld) -> Verdict {
    Verdict::Withheld(reason)
}

/// What filters found.
fn outcomes(audience: &Audience) -> Vec<&str> {
    audience.outcomes.iter().map(|outcome| std::str::from_utf8(outcome.json()).unwrap()).collect()
}

impl World {
    fn new(server: &Postgres, name: &str, limits: &Limits) -> World {
        World::at(server, name, limits, Clock::start())
    }

    fn at(server: &Postgres, name: &str, limits: &Limits, clock: Clock) -> World {
        let stage = Stage::default();
        let inbox = stage.inbox();
        let (wake, woken) = channel();
        let reactor = Arc::new(Mailbox::new(move || {
            let _ = wake.send(());
        }));
        let options = Stage::options(&server.options(name), limits);
        let pool = Pool::new(&options).unwrap();
        let gate = Gate::new(1 << 30, 1 << 29, || {});
        let setup = Setup {
            pool,
            connections: options.pool_size,
            limits: limits.clone(),
            gate: Arc::clone(&gate),
            redis_is_pressed: Box::new(|| false),
            clock,
            reactors: vec![Arc::clone(&reactor)],
        };
        let handle = stage.start(setup).unwrap();
        World { inbox, reactor, woken, handle, gate, seq: 0, epoch: 1 }
    }

    fn join(&self, channel: &Channel, accounts: impl IntoIterator<Item = Id>) {
        for account in accounts {
            self.inbox.push(StageItem::Join(channel.clone(), account));
        }
    }

    fn publish(&mut self, channel: &Channel, message: &str) {
        self.seq += 1;
        let at = Position { epoch: self.epoch, seq: self.seq, read_at: Duration::ZERO };
        let message = Bytes::copy_from_slice(message.as_bytes());
        let Parsed::Event(event) = Event::parse(channel.clone(), at, message, &self.gate) else {
            panic!("not an event");
        };
        self.inbox.push(StageItem::Event(event, 1));
    }

    /// The next `count` deliveries.
    fn deliveries(&self, count: usize) -> Vec<Delivery<()>> {
        let (mut deliveries, mut batch) = (Vec::new(), Vec::new());
        while deliveries.len() < count {
            self.woken.recv_timeout(Duration::from_secs(30)).expect("an event within 30 s");
            self.reactor.drain(&mut batch);
            deliveries.append(&mut batch);
        }
        assert_eq!(deliveries.len(), count, "more came than was awaited");
        deliveries
    }

    /// The next `count` events that leave.
    fn next(&self, count: usize) -> Vec<Arc<Event>> {
        let event = |delivery| match delivery {
            Delivery::Event(event) => event,
            other => panic!("{other:?}"),
        };
        self.deliveries(count).into_iter().map(event).collect()
    }

    /// Publishes one message and says what these accounts get of it.
    fn verdicts(
        &mut self,
        channel: &Channel,
        message: &str,
        accounts: impl IntoIterator<Item = Id>,
    ) -> Vec<Verdict> {
        self.publish(channel, message);
        let event = self.next(1).remove(0);
        let audience = event.audience().get().unwrap();
        accounts.into_iter().map(|account| audience.verdict(account)).collect()
    }

    /// Publishes until account 1 gets that verdict: settings take effect some time after they change.
    fn await_verdict(&mut self, channel: &Channel, author: &str, more: &str, verdict: Verdict) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while self.verdicts(channel, &update(author, more), [1]) != [verdict] {
            assert!(std::time::Instant::now() < deadline, "never {verdict:?}");
        }
    }
}

const ACCOUNTS: &str =
    "INSERT INTO accounts (id, username) SELECT g, 'u' || g FROM generate_series(1, 100) g;
    INSERT INTO users (account_id, email) SELECT g, g::text FROM generate_series(1, 100) g;
    INSERT INTO user_roles (id, permissions) VALUES (1, 1048576), (2, 1);";

#[test]
fn relations_filters_and_copies() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    server.psql(
        &name,
        "INSERT INTO blocks (account_id, target_account_id) VALUES (1, 50), (51, 2);
         INSERT INTO account_domain_blocks (account_id, domain) VALUES (3, 'far.example');
         INSERT INTO custom_filters (id, account_id, phrase, action, context) VALUES (7, 4, 'Cats', 2, '{public}');
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword) VALUES (7, 'cat');",
    );
    let mut world = World::new(&server, &name, &Limits::default());
    world.join(&PUBLIC, 1..=4);
    world.join(&LOCAL, 3..=5);
    let gets = Verdict::Deliver(0);
    let relation = withheld(Withheld::Relationship);
    assert_eq!(world.verdicts(&PUBLIC, &update(&local(50), ""), 1..=4), [relation, gets, gets, gets]);
    let domain = withheld(Withheld::DomainBlock);
    wait_until("a message is one round trip, as soon as the viewers are known", PATIENCE, || {
        let before = world.handle.pool.statements();
        assert_eq!(world.verdicts(&PUBLIC, &update(&remote(51), ""), 1..=4), [gets, relation, domain, gets]);
        world.handle.pool.statements() - before == 1
    });
    let asked = world.handle.stats.queries.load(Relaxed);

    // Byte-identical copies on several channels: one question.
    let status = update(&local(50), r#","content":"<p>a <b>Cat</b></p>","tags":[{"name":"Pets"}]"#);
    for channel in [&PUBLIC, &LOCAL, &PUBLIC] {
        world.publish(channel, &status);
    }
    let mut copies = world.next(3);
    copies.sort_by_key(|event| event.position().seq);
    assert_eq!(world.handle.stats.queries.load(Relaxed) - asked, 1);
    let audience = copies[0].audience().get().unwrap();
    assert_eq!(
        [1, 2, 4, 5].map(|id| audience.verdict(id)),
        [relation, gets, Verdict::Deliver(1), withheld(Withheld::NotAsked)]
    );
    let filtered = r#"[{"filter":{"id":"7","title":"Cats","context":["public"],"expires_at":null,"filter_action":"blur"},"keyword_matches":["Cat"],"status_matches":null}]"#;
    assert_eq!(outcomes(audience), [filtered]);
    let audience = copies[1].audience().get().unwrap();
    assert_eq!(
        [1, 3, 4, 5].map(|id| audience.verdict(id)),
        [withheld(Withheld::NotAsked), gets, Verdict::Deliver(1), gets]
    );

    // A filter changes; a payload that brings its own results is not filtered.
    server.psql(&name, "UPDATE custom_filter_keywords SET keyword = 'dog'");
    world.inbox.push(StageItem::FiltersChanged(4));
    assert_eq!(world.verdicts(&PUBLIC, &update(&local(60), r#","content":"cat""#), [4]), [gets]);
    assert_eq!(
        world.verdicts(&PUBLIC, &update(&local(60), r#","content":"DOG""#), [4]),
        [Verdict::Deliver(1)]
    );
    assert_eq!(
        world.verdicts(&PUBLIC, &update(&local(60), r#","content":"DOG","filtered":[]"#), [4]),
        [gets]
    );
    // Changes that nobody heard of while Redis was away.
    server.psql(&name, "UPDATE custom_filter_keywords SET keyword = 'bird'");
    world.epoch += 1;
    assert_eq!(
        world.verdicts(&PUBLIC, &update(&local(60), r#","content":"a bird""#), [4]),
        [Verdict::Deliver(1)]
    );

    // Malformed: nobody, and the next one is not disturbed. Everything else passes by.
    let malformed = r#"{"event":"update","payload":{"id":"1","account":{"id":"60"},"mentions":null}}"#;
    assert_eq!(world.verdicts(&PUBLIC, malformed, [1, 2]), [withheld(Withheld::Malformed); 2]);
    world.publish(&PUBLIC, r#"{"event":"delete","payload":"1"}"#);
    assert!(world.next(1)[0].audience().get().is_none());
    assert_eq!(world.verdicts(&PUBLIC, &update(&local(60), ""), [1]), [gets]);
    world.handle.stop();
}

/// A viewer who joins between two statuses is read about when joining, and costs no status a further round trip.
#[test]
fn a_status_is_one_statement_and_so_is_a_batch_of_newcomers() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    server.psql(
        &name,
        "INSERT INTO custom_filters (id, account_id, phrase, context) VALUES (7, 31, 'Cats', '{public}');
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword) VALUES (7, 'cat');
         UPDATE users SET chosen_languages = '{de}' WHERE account_id = 32;
         INSERT INTO blocks (account_id, target_account_id) VALUES (33, 50);",
    );
    let mut world = World::new(&server, &name, &Limits::default());
    world.join(&PUBLIC, 1..=30);
    let gets = Verdict::Deliver(0);
    let cat = |n: usize| update(&local(50), &format!(r#","language":"en","content":"cat {n}""#));
    assert_eq!(world.verdicts(&PUBLIC, &cat(0), 1..=30), [gets; 30]);
    let mut before = world.handle.pool.statements();
    let mut expected = Vec::new();
    for n in 1..=4 {
        let account = 30 + n as Id;
        world.join(&PUBLIC, [account]);
        expected.push(match account {
            31 => Verdict::Deliver(1),
            32 => withheld(Withheld::Language),
            33 => withheld(Withheld::Relationship),
            _ => gets,
        });
        let verdicts = world.verdicts(&PUBLIC, &cat(n), 31..=account);
        assert_eq!(verdicts, expected);
        let after = world.handle.pool.statements();
        assert_eq!(after - before, 2, "one for who joined and one for the status");
        before = after;
    }
    // A crowd that joins while statuses flow.
    world.join(&PUBLIC, 35..=100);
    world.join(&tag("x"), 1..=100);
    for n in 0..20 {
        world.publish(&PUBLIC, &cat(100 + n));
    }
    world.next(20);
    let statements = world.handle.pool.statements() - before;
    assert!((21..=22).contains(&statements), "{statements} statements for twenty statuses and a crowd");
    world.handle.stop();
}

/// The machine was suspended for an hour, or its clock was set forward: what the process counts lags behind.
#[test]
fn filters_expire_by_the_wall_clock() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    server.psql(
        &name,
        "INSERT INTO custom_filters (id, account_id, phrase, context, expires_at)
           VALUES (7, 1, 'Cats', '{public}', now() AT TIME ZONE 'UTC' + interval '6 seconds');
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword) VALUES (7, 'cat');",
    );
    let clock = Clock::start().behind(Duration::from_secs(3600));
    let mut world = World::at(&server, &name, &Limits::default(), clock);
    world.join(&PUBLIC, [1]);
    let cat = r#","content":"a cat""#;
    assert_eq!(world.verdicts(&PUBLIC, &update(&local(50), cat), [1]), [Verdict::Deliver(1)]);
    world.await_verdict(&PUBLIC, &local(50), cat, Verdict::Deliver(0));
    world.handle.stop();
}

#[test]
fn a_gap_of_a_channel_comes_after_the_statuses_before_it() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    let mut world = World::new(&server, &name, &Limits::default());
    world.join(&PUBLIC, [1]);
    for n in 0..20 {
        world.publish(&PUBLIC, &update(&local(50), &format!(r#","content":"{n}""#)));
    }
    world.inbox.push(StageItem::ChannelGap(PUBLIC, 1));
    world.publish(&PUBLIC, r#"{"event":"delete","payload":"1"}"#);
    let deliveries = world.deliveries(22);
    let place = deliveries.iter().position(|delivery| matches!(delivery, Delivery::ChannelGap(PUBLIC)));
    assert_eq!(place, Some(20));
    world.handle.stop();
}

#[test]
fn absurd_rows_of_some_accounts_are_nobody_elses_matter() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    server.psql(
        &name,
        "INSERT INTO custom_filters (id, account_id, phrase, context) VALUES
           (71, 1, repeat('t', 100000), '{{home},{public}}'), (72, 2, 't', array_fill('public'::text, '{100000}')),
           (73, 3, 'slow', '{public}'), (74, 4, 'many', '{public}');
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword) VALUES (71, 'cat'), (72, 'cat');
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword)
           SELECT 73, repeat('xy-', 160) || 'x' FROM generate_series(1, 1000);
         INSERT INTO custom_filter_keywords (custom_filter_id, keyword)
           SELECT 74, CASE n WHEN 1 THEN 'cat' ELSE n || repeat('k', 500) END FROM generate_series(1, 50000) n;
         UPDATE users SET chosen_languages = '{{de,NULL},{en,fr}}' WHERE account_id = 5;
         UPDATE users SET chosen_languages = array_fill('en'::text, '{100000}') WHERE account_id = 6;",
    );
    let mut world = World::new(&server, &name, &Limits::default());
    world.join(&PUBLIC, 1..=7);
    world.publish(&PUBLIC, &update(&local(50), r#","language":"en","content":"a cat""#));
    let event = world.next(1).remove(0);
    let audience = event.audience().get().unwrap();
    let gets = Verdict::Deliver(0);
    assert_eq!(
        (1..=7).map(|id| audience.verdict(id)).collect::<Vec<_>>(),
        [Verdict::Deliver(1), Verdict::Deliver(2), gets, Verdict::Deliver(3), gets, gets, gets]
    );
    assert!(outcomes(audience).iter().all(|json| json.len() < 1000), "{:?}", audience.outcomes);
    let held = &world.handle.stats.filter_bytes;
    wait_until("filters are counted", PATIENCE, || held.load(Relaxed) > 0);
    assert!(held.load(Relaxed) < 4 << 20, "{held:?}");
    let slow = format!(r#","language":"en","content":"{}""#, "xy-".repeat(30_000));
    assert_eq!(
        world.verdicts(&PUBLIC, &update(&local(50), &slow), [3, 7]),
        [withheld(Withheld::FilterWork), gets]
    );
    world.handle.stop();
}

#[test]
fn languages_permissions_and_feed_access_change_on_open_streams() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    let limits = Limits { settings_refresh: Duration::from_millis(200), ..Limits::default() };
    let mut world = World::new(&server, &name, &limits);
    let topic = tag("x");
    world.join(&PUBLIC, [1]);
    world.join(&topic, [1]);
    let gets = Verdict::Deliver(0);
    let (author, elsewhere) = (local(50), remote(51));
    let german = r#","language":"de""#;
    world.await_verdict(&PUBLIC, &author, "", gets);
    server.psql(&name, "UPDATE users SET chosen_languages = '{de}' WHERE account_id = 1");
    world.await_verdict(&PUBLIC, &author, r#","language":"en""#, withheld(Withheld::Language));
    world.await_verdict(&PUBLIC, &author, german, gets);
    assert_eq!(
        world.verdicts(&PUBLIC, &update(&author, r#","language":null"#), [1]),
        [withheld(Withheld::Language)]
    );
    server.psql(
        &name,
        "INSERT INTO settings (var, value) VALUES ('local_live_feed_access', E'--- disabled\\n')",
    );
    world.await_verdict(&PUBLIC, &author, german, withheld(Withheld::FeedAccess));
    assert_eq!(world.verdicts(&PUBLIC, &update(&elsewhere, german), [1]), [gets]);
    assert_eq!(world.verdicts(&topic, &update(&author, german), [1]), [gets]);
    server.psql(&name, "UPDATE users SET role_id = 2 WHERE account_id = 1; UPDATE settings SET var = 'remote_topic_feed_access'");
    world.await_verdict(&topic, &elsewhere, german, withheld(Withheld::FeedAccess));
    world.await_verdict(&PUBLIC, &author, german, gets);
    server.psql(&name, "UPDATE users SET role_id = 1 WHERE account_id = 1");
    world.await_verdict(&topic, &elsewhere, german, gets);
    world.handle.stop();
}

#[test]
fn postgresql_goes_away_and_comes_back_while_messages_flow() {
    let Some(mut server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    server.psql(&name, "INSERT INTO blocks (account_id, target_account_id) VALUES (1, 50)");
    let limits = Limits { audience_timeout: Duration::from_secs(20), ..Limits::default() };
    let mut world = World::new(&server, &name, &limits);
    world.join(&PUBLIC, [1, 2]);
    assert_eq!(world.verdicts(&PUBLIC, &update(&local(50), ""), [1]), [withheld(Withheld::Relationship)]);
    for crash in [false, true] {
        server.stop(crash);
        let first = world.seq + 1;
        for number in 0..50 {
            world.publish(&PUBLIC, &update(&local(50 + number % 2), &format!(r#","content":"{number}""#)));
            world.publish(&PUBLIC, r#"{"event":"delete","payload":"1"}"#);
        }
        server.start_again();
        let events = world.next(100);
        assert!(events.iter().map(|event| event.position().seq).eq(first..first + 100));
        for event in events.iter().step_by(2) {
            let author = event.status().unwrap().unwrap().author;
            let audience = event.audience().get().unwrap();
            let expected = if author == 50 { withheld(Withheld::Relationship) } else { Verdict::Deliver(0) };
            assert_eq!([1, 2].map(|id| audience.verdict(id)), [expected, Verdict::Deliver(0)]);
        }
    }
    // Its connections terminated, while statuses are asked about.
    for number in 0..20 {
        world.publish(&PUBLIC, &update(&local(50), &format!(r#","content":"again {number}""#)));
        let kill = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
        server.psql("postgres", &kill);
        let event = world.next(1).remove(0);
        assert_eq!(event.audience().get().unwrap().verdict(1), withheld(Withheld::Relationship));
    }
    world.handle.stop();
}

#[test]
fn what_waits_too_long_is_withheld_and_what_comes_after_is_not() {
    let Some(mut server) = Postgres::start() else { return };
    let name = server.fresh();
    server.psql(&name, ACCOUNTS);
    let limits = Limits { audience_timeout: Duration::from_millis(300), ..Limits::default() };
    let mut world = World::new(&server, &name, &limits);
    world.join(&PUBLIC, [1]);
    assert_eq!(world.verdicts(&PUBLIC, &update(&local(50), ""), [1]), [Verdict::Deliver(0)]);
    server.stop(false);
    let verdicts = world.verdicts(&PUBLIC, &update(&local(50), r#","content":"x""#), [1]);
    assert_eq!(verdicts, [withheld(Withheld::AudienceTimeout)]);
    assert_eq!(world.handle.stats.timed_out.load(Relaxed), 1);
    assert!(world.handle.stats.query_failures.load(Relaxed) > 0);
    server.start_again();
    world.await_verdict(&PUBLIC, &local(50), r#","content":"y""#, Verdict::Deliver(0));
    world.handle.stop();
}

#[test]
fn a_stage_that_ended_by_a_panic_can_be_told_from_one_that_runs() {
    let Some(server) = Postgres::start() else { return };
    let name = server.fresh();
    let stage = Stage::default();
    let inbox = stage.inbox();
    let options = Stage::options(&server.options(&name), &Limits::default());
    let broken = Arc::new(Mailbox::<Delivery<()>>::new(|| panic!("this reactor cannot be woken")));
    let pool = Pool::new(&options).unwrap();
    let gate = Gate::new(1 << 30, 1 << 29, || {});
    let setup = Setup {
        pool,
        connections: options.pool_size,
        limits: Limits::default(),
        gate: Arc::clone(&gate),
        redis_is_pressed: Box::new(|| false),
        clock: Clock::start(),
        reactors: vec![broken],
    };
    let handle = stage.start(setup).unwrap();
    assert!(!handle.has_ended());
    let at = Position { epoch: 1, seq: 1, read_at: Duration::ZERO };
    let message = Bytes::from_static(br#"{"event":"delete","payload":"1"}"#);
    let Parsed::Event(event) = Event::parse(PUBLIC, at, message, &gate) else { panic!("no event") };
    inbox.push(StageItem::Event(event, 1));
    wait_until("the thread has ended", PATIENCE, || handle.has_ended());
}
