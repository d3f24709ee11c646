//! The gate and the mailbox under every order in which their threads can run: the product's own source, with the
//! synchronisation types of a model checker under it.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, missing_docs)]

#[path = "../src/core/gate.rs"]
mod gate;
#[path = "../src/core/inbox.rs"]
mod inbox;
#[path = "../src/core/mailbox.rs"]
pub mod mailbox;
#[path = "../src/core/slack.rs"]
pub mod slack;

mod core {
    pub use crate::{mailbox, slack};

    pub mod sync {
        pub use loom::sync::{Arc, Mutex, MutexGuard, atomic};
    }
}

use gate::{Charge, Gate};
use inbox::Inbox;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use mailbox::Mailbox;

/// What wakes a thread: a wake before the wait counts, as with a poll.
struct Alarm(Mutex<bool>, Condvar);

impl Alarm {
    fn new() -> Arc<Alarm> {
        Arc::new(Alarm(Mutex::new(false), Condvar::new()))
    }

    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    /// What a poll that does not sleep does with wake-ups.
    fn clear(&self) {
        *self.0.lock().unwrap() = false;
    }

    fn wait(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            rung = self.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

/// A gate that counts one event of ten bytes as too much, and what wakes who waits for it.
fn gate(high_bytes: usize, low_bytes: usize) -> (Arc<Gate>, Arc<Alarm>) {
    let opened = Alarm::new();
    let alarm = Arc::clone(&opened);
    (Gate::new(high_bytes, low_bytes, move || alarm.ring()), opened)
}

/// What the ingest does before a message. A wake that is lost is a deadlock, which the model reports.
fn until_open(gate: &Gate, opened: &Alarm) {
    while !gate.may_read() {
        opened.wait();
    }
}

#[test]
fn whoever_finds_the_gate_closed_is_woken_by_the_last_to_let_go() {
    let mut model = loom::model::Builder::new();
    // All orders take minutes; those in which no thread is interrupted more often than this take seconds.
    model.preemption_bound = Some(3);
    model.check(|| {
        let (gate, opened) = gate(15, 5);
        let held = [Charge::new(&gate, 10), Charge::new(&gate, 10)];
        let droppers = held.map(|charge| thread::spawn(move || drop(charge)));
        until_open(&gate, &opened);
        droppers.into_iter().for_each(|dropper| dropper.join().unwrap());
        assert_eq!(gate.held_bytes(), 0);
        assert!(gate.may_read(), "nothing is held");
        assert!(!gate.is_closed());
    });
}

#[test]
fn frames_that_are_rendered_meanwhile_count_and_are_given_back() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (gate, opened) = gate(15, 5);
        let event = Arc::new(Charge::new(&gate, 10));
        let other = Arc::clone(&event);
        let reactor = thread::spawn(move || other.add(10));
        let second = thread::spawn(move || drop(event));
        until_open(&gate, &opened);
        reactor.join().unwrap();
        second.join().unwrap();
        assert_eq!(gate.held_bytes(), 0);
        assert!(gate.may_read());
    });
}

#[test]
fn a_gate_that_closes_again_opens_again() {
    let mut model = loom::model::Builder::new();
    // All orders take minutes; those in which no thread is interrupted more often than this take seconds.
    model.preemption_bound = Some(3);
    model.check(|| {
        let (gate, opened) = gate(5, 5);
        let first = Charge::new(&gate, 10);
        let dropper = thread::spawn(move || drop(first));
        until_open(&gate, &opened);
        let second = Charge::new(&gate, 10);
        let another = thread::spawn(move || drop(second));
        until_open(&gate, &opened);
        dropper.join().unwrap();
        another.join().unwrap();
        assert_eq!(gate.held_bytes(), 0);
    });
}

/// Bytes given back meanwhile, down to the low mark, do not swallow the announcement.
#[test]
fn passing_the_evict_mark_is_announced_whatever_is_given_back_meanwhile() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        // The evict mark is at 10.
        let (gate, changed) = gate(15, 5);
        let held = Charge::new(&gate, 11);
        changed.wait();
        let dropper = thread::spawn(move || drop(held));
        let taken = Charge::new(&gate, 11);
        dropper.join().unwrap();
        // Either it was never at the low mark since the first announcement, or there is another one.
        drop(taken);
        let _third = Charge::new(&gate, 11);
        changed.wait();
    });
}

#[test]
fn whatever_is_put_into_a_mailbox_is_taken_out_in_its_senders_order() {
    loom::model(|| {
        let woken = Alarm::new();
        let alarm = Arc::clone(&woken);
        let mailbox = Arc::new(Mailbox::new(move || alarm.ring()));
        let (one, two) = (Arc::clone(&mailbox), Arc::clone(&mailbox));
        let senders =
            [thread::spawn(move || one.push(1)), thread::spawn(move || two.push_all(&mut vec![10, 11]))];
        let mut all = Vec::new();
        while all.len() < 3 {
            let mut taken = Vec::new();
            mailbox.drain(&mut taken);
            if taken.is_empty() {
                woken.wait();
            }
            all.extend(taken);
        }
        all.retain(|item| *item != 1);
        assert_eq!(all, [10, 11]);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn consumer_that_takes_one_item_per_turn_never_sleeps_while_items_wait() {
    loom::model(|| {
        let woken = Alarm::new();
        let alarm = Arc::clone(&woken);
        let mailbox = Arc::new(Mailbox::new(move || alarm.ring()));
        let producer = thread::spawn({
            let mailbox = Arc::clone(&mailbox);
            move || {
                mailbox.push_all(&mut vec![1, 2]);
                mailbox.push(3);
                mailbox.push(4);
            }
        });
        // The ingest's loop: a turn, then a poll, which sleeps unless something was left behind, and which consumes a
        // wake-up in either case. A lost wake-up is a deadlock.
        let mut inbox = Inbox::new(mailbox);
        let mut all = Vec::new();
        while all.len() < 4 {
            all.extend(inbox.take(1));
            if inbox.has_more() {
                woken.clear();
            } else if all.len() < 4 {
                woken.wait();
            }
        }
        assert_eq!(all, [1, 2, 3, 4]);
        producer.join().unwrap();
    });
}
