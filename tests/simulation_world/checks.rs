//! What must hold after every step and at the end.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tidegate::core::relay::Relay;

use super::client::Pipe;
use super::{GRACE, HIGH_BYTES, MESSAGE_BYTES_MAX, PAUSE_SLACK, World};

impl World {
    /// Reads what the sockets took and compares it with what was expected.
    pub(super) fn read_all(&mut self) {
        for model in self.models.values_mut() {
            model.read();
        }
        self.models.retain(|_, model| !model.is_gone());
    }

    pub(super) fn check(&mut self) {
        self.read_all();
        for counters in &self.counters {
            let ledger = counters.ledger();
            assert_eq!(ledger.difference(), 0, "{ledger:?}");
        }
        // A message and all of its frames may be over the mark, and what was read before the gate was asked.
        let bound = 3 * (HIGH_BYTES + MESSAGE_BYTES_MAX);
        assert!(self.gate.held_bytes() <= bound, "{} bytes are held", self.gate.held_bytes());
        // No pause is longer than the grace: whoever holds the bytes can be closed for it.
        self.paused_since = self.gate.is_closed().then(|| self.paused_since.unwrap_or(self.now));
        let paused_for = self.paused_since.map_or(Duration::ZERO, |since| self.now - since);
        assert!(paused_for <= GRACE + PAUSE_SLACK, "reading has paused for {paused_for:?}: {:?}", self.gate);
    }

    /// Fair weather until everything has arrived: whoever is still open must have got all of it.
    pub(super) fn settle(&mut self) {
        self.settling = true;
        if !self.connected {
            self.regain_redis();
        }
        self.steps(600, |pipe| pipe.appetite(usize::MAX));
        for (key, model) in &self.models {
            assert!(!model.is_open() || model.owes_nothing(), "client {key} lacks messages: {model:?}");
        }
        assert_eq!(self.gate.held_bytes(), 0, "everything was delivered, and bytes are held");
    }

    /// So many steps of 50 ms in which everything works and every client, newcomers too, does this.
    fn steps(&mut self, count: u32, act: impl Fn(&Pipe)) {
        self.models.values().for_each(|model| act(&model.pipe()));
        for _ in 0..count {
            self.now += Duration::from_millis(50);
            self.redis_works();
            self.ingest();
            self.stage_finishes();
            self.work_tickets();
            for reactor in 0..self.relays.len() {
                self.turn(reactor);
            }
            self.models.values().for_each(|model| act(&model.pipe()));
            self.check();
        }
    }

    /// Everyone leaves: nothing stays behind.
    pub(super) fn farewell(&mut self) {
        self.steps(400, Pipe::leave);
        assert!(self.relays.iter().all(Relay::is_empty), "clients stay");
        assert_eq!(self.subscriptions.referenced(), 0, "references stay");
        assert_eq!(self.redis.subscribed(), 0, "Redis is still subscribed to");
        for counters in &self.counters {
            assert_eq!(counters.ledger().pending, 0);
            assert_eq!(counters.log_bytes.load(Relaxed), 0);
            for flow in &counters.clients {
                assert_eq!(flow.live(), 0);
            }
            for flow in counters.subscriptions.iter().flatten() {
                assert_eq!(flow.live(), 0);
            }
        }
    }
}
