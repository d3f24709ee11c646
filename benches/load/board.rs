//! What readers and the thread that measures have in common.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// See the module.
pub struct Board {
    /// Messages received.
    got: AtomicU64,
    /// Connections that have their response head.
    opened: AtomicU64,
    /// What the waiting thread waits for, of either.
    goal: AtomicU64,
    open_goal: AtomicU64,
    failure: Mutex<Option<String>>,
    failed: AtomicBool,
    latencies_us: Mutex<Vec<u32>>,
    waiter: std::thread::Thread,
}

impl Board {
    /// The calling thread is the one that waits.
    pub fn new() -> Board {
        Board {
            got: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            goal: AtomicU64::new(u64::MAX),
            open_goal: AtomicU64::new(u64::MAX),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            latencies_us: Mutex::new(Vec::new()),
            waiter: std::thread::current(),
        }
    }

    /// What is waited for: so many messages.
    pub fn wait_for_got(&self, goal: u64) {
        self.goal.store(goal, Ordering::SeqCst);
    }

    /// What is waited for: so many connections.
    pub fn wait_for_opened(&self, goal: u64) {
        self.open_goal.store(goal, Ordering::SeqCst);
    }

    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::SeqCst)
    }

    /// So many more have their response head; fewer when some were closed.
    pub fn opened_more(&self, more: i64) {
        self.opened.fetch_add(more as u64, Ordering::SeqCst);
    }

    pub fn got(&self) -> u64 {
        self.got.load(Ordering::SeqCst)
    }

    pub fn got_more(&self, count: u64, latencies_us: &mut Vec<u32>) {
        self.latencies_us.lock().unwrap().append(latencies_us);
        self.got.fetch_add(count, Ordering::SeqCst);
    }

    pub fn take_latencies(&self) -> Vec<u32> {
        std::mem::take(&mut *self.latencies_us.lock().unwrap())
    }

    pub fn fail(&self, why: String) {
        self.failure.lock().unwrap().get_or_insert(why);
        self.failed.store(true, Ordering::SeqCst);
        self.waiter.unpark();
    }

    pub fn failure(&self) -> Option<String> {
        self.failed.load(Ordering::SeqCst).then(|| self.failure.lock().unwrap().clone()).flatten()
    }

    /// Wakes the waiting thread if it has what it waits for.
    pub fn tell_waiter(&self) {
        let reached =
            |count: &AtomicU64, goal: &AtomicU64| count.load(Ordering::SeqCst) >= goal.load(Ordering::SeqCst);
        if reached(&self.got, &self.goal) || reached(&self.opened, &self.open_goal) {
            self.waiter.unpark();
        }
    }
}
