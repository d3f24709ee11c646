//! Whether the threads turn: a thread that exists and hangs serves nobody.
//!
//! Every thread counts the turns of its loop. Whoever wants to know wakes all threads and waits until each has
//! begun another turn. Nothing is asked periodically, so an idle server sleeps on.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::core::counters::ReactorCounters;
use crate::core::handover::Delivery;
use crate::core::mailbox::Mailbox;
use crate::core::report::{Probe, Wanted};
use crate::reactor::Socket;

/// How often the counts are compared while a thread has not turned.
const LOOK: Duration = Duration::from_millis(5);

/// An answer of so long ago is used again, so that a crowd of visitors to `/ready` wakes nobody more often.
const FRESH: Duration = Duration::from_millis(100);

/// A thread's loop.
pub(super) struct Thread {
    pub name: String,
    /// Turns since the start.
    pub turns: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Makes it begin another turn.
    pub wake: Box<dyn Fn() + Send + Sync>,
}

impl Thread {
    /// A reactor's.
    pub fn reactor(
        number: usize,
        counters: Arc<ReactorCounters>,
        mailbox: Arc<Mailbox<Delivery<Socket>>>,
    ) -> Thread {
        Thread {
            name: format!("reactor-{number}"),
            turns: Box::new(move || counters.turns.load(Relaxed)),
            // Nobody needs the answer: taking the question out of the mailbox is the turn.
            wake: Box::new(move || mailbox.push(Delivery::Probe(Probe::new(Wanted::default(), drop)))),
        }
    }
}

/// All threads that serve, but for the one that asks.
pub(super) struct Threads {
    threads: Vec<Thread>,
    /// When all of them were last seen to turn.
    turned_at: Mutex<Option<Instant>>,
}

impl Threads {
    pub fn new(threads: Vec<Thread>) -> Threads {
        Threads { threads, turned_at: Mutex::new(None) }
    }

    /// The names of the threads that did not begin a turn within `patience` of being woken.
    pub async fn stuck(&self, patience: Duration) -> Vec<String> {
        // A thread that hangs is waited for only by the first who asks.
        let mut turned_at = match timeout(patience, self.turned_at.lock()).await {
            Ok(turned_at) => turned_at,
            Err(_) => return vec!["of the server".to_owned()],
        };
        if turned_at.is_some_and(|at| at.elapsed() < FRESH) {
            return Vec::new();
        }
        let before: Vec<u64> = self.threads.iter().map(|thread| (thread.turns)()).collect();
        for thread in &self.threads {
            (thread.wake)();
        }
        let deadline = Instant::now() + patience;
        loop {
            let stuck: Vec<String> = self
                .threads
                .iter()
                .zip(&before)
                .filter(|(thread, before)| (thread.turns)() == **before)
                .map(|(thread, _)| thread.name.clone())
                .collect();
            if stuck.is_empty() {
                *turned_at = Some(Instant::now());
                return stuck;
            }
            if Instant::now() >= deadline {
                return stuck;
            }
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn thread(name: &str, step: u64) -> Thread {
        let turns = Arc::new(AtomicU64::new(7));
        let woken = Arc::clone(&turns);
        Thread {
            name: name.to_owned(),
            turns: Box::new(move || turns.load(Relaxed)),
            wake: Box::new(move || {
                woken.fetch_add(step, Relaxed);
            }),
        }
    }

    #[tokio::test]
    async fn only_a_thread_that_does_not_turn_is_stuck() {
        let turning = Threads::new(vec![thread("a", 1), thread("b", 3)]);
        assert!(turning.stuck(Duration::from_secs(60)).await.is_empty());
        let threads = Threads::new(vec![thread("a", 1), thread("b", 0)]);
        assert_eq!(threads.stuck(Duration::ZERO).await, ["b"]);
    }
}
