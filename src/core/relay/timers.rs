//! What happens when a time has come: signs of life, ends of tokens and of closes.

use std::time::Duration;

use super::{Relay, Socket, wire};
use crate::core::client::{Client, Flags, Phase};
use crate::core::counters::CloseReason;
use crate::core::event::Transport;
use crate::core::lowest::LowestSlab;
use crate::limits::EXPIRY_CHECK;

/// What a timer is about, in the top bits of its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Timer {
    Keepalive = 0,
    Expiry = 1,
    CloseDeadline = 2,
    SpreadClose = 3,
    Talkers = 4,
    AwayClose = 5,
    LingerDeadline = 6,
    Probe = 7,
}

const INDEX_BITS: u32 = 29;

pub(super) fn timer_key(timer: Timer, index: u32, generation: u32) -> u64 {
    debug_assert!(index < 1 << INDEX_BITS);
    (timer as u64) << 61 | u64::from(index) << 32 | u64::from(generation)
}

/// The client of a timer that is a client's.
fn client_of(key: u64) -> Option<(u32, u32)> {
    const OF_NOBODY: [u64; 2] = [Timer::AwayClose as u64, Timer::Talkers as u64];
    let index = ((key >> 32) & ((1 << INDEX_BITS) - 1)) as u32;
    (!OF_NOBODY.contains(&(key >> 61))).then_some((index, key as u32))
}

/// Whether the timer is nobody's, or of a client that is still here.
pub(super) fn is_meant<S>(clients: &LowestSlab<Client<S>>, key: u64) -> bool {
    client_of(key).is_none_or(|(index, generation)| {
        clients.get(index as usize).is_some_and(|client| client.generation == generation)
    })
}

impl<S: Socket> Relay<S> {
    /// Runs the timers that are due.
    pub fn tick(&mut self, now: Duration) {
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(now, &mut fired);
        for key in fired.drain(..) {
            self.timer(key, now);
        }
        self.fired = fired;
    }

    fn timer(&mut self, key: u64, now: Duration) {
        const KEEPALIVE: u64 = Timer::Keepalive as u64;
        const EXPIRY: u64 = Timer::Expiry as u64;
        const CLOSE_DEADLINE: u64 = Timer::CloseDeadline as u64;
        const SPREAD_CLOSE: u64 = Timer::SpreadClose as u64;
        const LINGER_DEADLINE: u64 = Timer::LingerDeadline as u64;
        const PROBE: u64 = Timer::Probe as u64;
        let kind = key >> 61;
        if kind == Timer::AwayClose as u64 {
            return self.away_too_long(now);
        }
        if kind == Timer::Talkers as u64 {
            return self.look_after_talkers(now);
        }
        let Some((index, generation)) = client_of(key) else { return };
        let Some(client) = self.clients.get(index as usize) else { return };
        if client.generation != generation {
            return;
        }
        match kind {
            KEEPALIVE => self.keepalive(index, now),
            EXPIRY => self.expiry(index, now),
            CLOSE_DEADLINE => self.cut(index),
            LINGER_DEADLINE => self.linger_deadline(index),
            PROBE if client.flags.has(Flags::BLOCKED) => self.probe_socket(index, now),
            PROBE => {}
            SPREAD_CLOSE => {
                let reason = match client.phase {
                    Phase::Gapped if self.is_away_too_long(now) => CloseReason::RedisAway,
                    Phase::Gapped => CloseReason::Gap,
                    _ => CloseReason::Drain,
                };
                self.close(index, reason, now);
            }
            _ => debug_assert!(false, "no such timer"),
        }
    }

    pub(super) fn heartbeat(&self, transport: Transport) -> Duration {
        match transport {
            Transport::WebSocket => self.limits.ws_ping,
            Transport::SseChunked | Transport::SsePlain => self.limits.sse_heartbeat,
        }
    }

    /// Sets the wall clock: the time since 1970 at which the clock of all other times here stood at zero. It changes
    /// when the wall clock is set, and while the machine is suspended.
    pub fn set_started_unix(&mut self, started_unix: Duration) {
        self.started_unix = started_unix;
    }

    /// Has the client looked at when its token expires, or before, since the wall clock may be set meanwhile.
    pub(super) fn await_expiry(&mut self, index: u32, now: Duration) {
        if let Some(at_unix) = self.expiries.get(&index)
            && let Some(client) = self.clients.get(index as usize)
        {
            let due = at_unix.saturating_sub(self.started_unix);
            let key = timer_key(Timer::Expiry, index, client.generation);
            self.wheel.insert(due.min(now + EXPIRY_CHECK), key);
        }
    }

    fn expiry(&mut self, index: u32, now: Duration) {
        match self.expiries.get(&index) {
            Some(at_unix) if *at_unix > self.started_unix + now => self.await_expiry(index, now),
            _ => self.close(index, CloseReason::TokenExpired, now),
        }
    }

    fn keepalive(&mut self, index: u32, now: Duration) {
        let stalled = self.stalled(index, now);
        let Some(client) = self.clients.get_mut(index as usize) else { return };
        let (transport, generation) = (client.transport, client.generation);
        if client.phase == Phase::Closing || client.phase == Phase::Lingering {
            return;
        }
        if stalled {
            return self.close(index, CloseReason::WriteStalled, now);
        }
        let busy = client.has_output();
        match transport {
            Transport::WebSocket => {
                if !client.flags.set(Flags::AWAITS_PONG) {
                    return self.remove(index, CloseReason::NoPong);
                }
                self.send(index, wire::ping());
            }
            // Whoever has bytes on the way needs no sign of life.
            _ if busy => {}
            Transport::SseChunked | Transport::SsePlain => self.send(index, wire::heartbeat(transport)),
        }
        let due = now + self.heartbeat(transport);
        self.wheel.insert(due, timer_key(Timer::Keepalive, index, generation));
    }
}
