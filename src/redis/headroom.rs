//! Redis's patience with us while reading is paused.
//!
//! What we do not read, Redis holds: `omem` of our line in `CLIENT LIST`. Over the limits of its class
//! `pubsub` (32 MiB at once, or 8 MiB for 60 s by default) it drops us and all of that. The command
//! connection asks every [`HEADROOM_INTERVAL`](crate::limits::HEADROOM_INTERVAL) while reading is paused; what follows from the
//! answer is decided elsewhere. An answer with our line in it also vouches that the subscriber connection
//! lives, when its own PING waits behind what we do not read.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Limits of a class of clients, `client-output-buffer-limit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutputLimits {
    /// Over this many bytes Redis drops the client at once; 0: no limit.
    pub hard_bytes: u64,
    /// Over this many bytes it drops the client after `soft`; 0: no limit.
    pub soft_bytes: u64,
    /// How long more than `soft_bytes` may be held.
    pub soft: Duration,
}

impl Default for OutputLimits {
    /// Redis's own defaults for subscribers.
    fn default() -> OutputLimits {
        OutputLimits { hard_bytes: 32 << 20, soft_bytes: 8 << 20, soft: Duration::from_secs(60) }
    }
}

impl OutputLimits {
    /// Reads the value of `CONFIG GET client-output-buffer-limit`:
    /// `normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60`.
    pub fn parse(value: &str) -> Option<OutputLimits> {
        let mut words = value.split_ascii_whitespace().skip_while(|word| *word != "pubsub").skip(1);
        let mut number = || words.next()?.parse().ok();
        Some(OutputLimits {
            hard_bytes: number()?,
            soft_bytes: number()?,
            soft: Duration::from_secs(number()?),
        })
    }
}

/// What the last question brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Held {
    /// Nothing was asked yet on this connection, or there was no answer.
    #[default]
    Unknown,
    /// Redis holds that many bytes for us.
    Bytes(u64),
    /// Redis does not know our connection any more: what it held is lost.
    Gone,
    /// We may not ask (ACL), or Redis is too old to tell.
    Denied,
}

/// What is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// The last answer.
    pub held: Held,
    /// When it was asked for, since the process's start.
    pub at: Duration,
    /// Since when more than `limits.soft_bytes` are held, since the process's start.
    pub over_soft_since: Option<Duration>,
    /// The last number of bytes that Redis told; it stays when Redis does not know us any more.
    pub last_bytes: u64,
    /// The limits it has to be compared with: Redis's defaults where it does not tell.
    pub limits: OutputLimits,
    /// Whether Redis told them.
    pub limits_told: bool,
    /// Whether there is a command connection: Redis is there, whatever became of the subscriber connection.
    pub answers: bool,
}

/// What the kernel's two buffers hold before Redis has to: measured on loopback with default settings.
const KERNEL_BYTES: u64 = 4 << 20;

/// How long an answer says something: many times the interval of the questions.
const FRESH: Duration = Duration::from_secs(2);

impl Reading {
    /// Whether half of Redis's patience is used up: half of the hard limit, or half of the time over the
    /// soft one. Where Redis does not tell, what it holds is estimated from the pause's length so far and
    /// the rate before it, in bytes per second.
    pub fn is_half_used(&self, now: Duration, paused: Duration, rate: u64) -> bool {
        let OutputLimits { hard_bytes, soft_bytes, soft } = self.limits;
        let asked_in_this_pause = self.at + paused >= now;
        match self.held {
            Held::Gone | Held::Bytes(_) if !asked_in_this_pause => false,
            Held::Gone => true,
            Held::Bytes(_) => self.is_half_filled(now),
            // Not asked yet in this pause; what was held before it says nothing.
            Held::Unknown => false,
            Held::Denied => {
                let arrived = (rate as f64 * paused.as_secs_f64()) as u64;
                let bytes = arrived.saturating_sub(KERNEL_BYTES);
                let too_long = soft_bytes > 0 && bytes >= soft_bytes && paused >= soft / 2;
                hard_bytes > 0 && bytes >= hard_bytes / 2 || too_long
            }
        }
    }

    /// Whether half of it was used up a moment ago, though Redis may have dropped us since.
    pub fn was_half_used(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) <= FRESH && self.is_half_filled(now)
    }

    fn is_half_filled(&self, now: Duration) -> bool {
        let OutputLimits { hard_bytes, soft, .. } = self.limits;
        let too_long = self.over_soft_since.is_some_and(|since| now.saturating_sub(since) >= soft / 2);
        hard_bytes > 0 && self.last_bytes >= hard_bytes / 2 || too_long
    }
}

/// The last reading, shared. Written by the presence task.
#[derive(Debug, Default)]
pub struct Headroom(Mutex<Reading>);

impl Headroom {
    /// The last reading.
    pub fn read(&self) -> Reading {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what was held.
    pub fn set_held(&self, held: Held, at: Duration) {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lasts = at.saturating_sub(reading.at) <= FRESH;
        reading.held = held;
        reading.at = at;
        let soft_bytes = reading.limits.soft_bytes;
        match held {
            Held::Bytes(bytes) => {
                reading.last_bytes = bytes;
                let over = soft_bytes > 0 && bytes >= soft_bytes;
                // Since another pause, long ago, is not since: in between it was read.
                let since = reading.over_soft_since.filter(|_| lasts);
                reading.over_soft_since = if over { since.or(Some(at)) } else { None };
            }
            // What it held when it dropped us is why it did.
            Held::Gone => {}
            Held::Unknown | Held::Denied => {
                reading.last_bytes = 0;
                reading.over_soft_since = None;
            }
        }
    }

    /// Whether there is a command connection.
    pub fn set_answers(&self, answers: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answers = answers;
    }

    /// Replaces the limits; none where Redis does not tell.
    pub fn set_limits(&self, limits: Option<OutputLimits>) {
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reading.limits = limits.unwrap_or_default();
        reading.limits_told = limits.is_some();
    }
}

/// Finds a connection's `omem` in the text of `CLIENT LIST`, if the connection is listed.
pub fn find_omem(list: &str, client_id: u64) -> Option<u64> {
    list.lines().find_map(|line| {
        let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
        if field("id=")?.parse() != Ok(client_id) {
            return None;
        }
        field("omem=")?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_subscribers_are_found_among_the_classes() {
        let value = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        assert_eq!(OutputLimits::parse(value), Some(OutputLimits::default()));
        let unlimited = OutputLimits { hard_bytes: 0, soft_bytes: 0, soft: Duration::ZERO };
        assert_eq!(OutputLimits::parse("pubsub 0 0 0 normal 1 2 3"), Some(unlimited));
        for broken in ["", "pubsub", "pubsub 1 2", "pubsub a b c", "normal 0 0 0"] {
            assert_eq!(OutputLimits::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn half_of_the_patience_is_half_of_either_limit() {
        const MIB: u64 = 1 << 20;
        let second = Duration::from_secs(1);
        let headroom = Headroom::default();
        let half_used = |now: u32, rate| headroom.read().is_half_used(second * now, second * now, rate);
        headroom.set_held(Held::Bytes(16 * MIB - 1), second);
        for now in 1..=30 {
            headroom.set_held(Held::Bytes(16 * MIB - 1), second * now);
        }
        assert!(!half_used(30, 0), "over the soft limit for 29 s");
        assert!(half_used(31, 0), "over the soft limit for 30 s");
        headroom.set_held(Held::Bytes(16 * MIB - 1), second * 99);
        assert!(!half_used(99, 0), "it was read in between");
        headroom.set_held(Held::Bytes(8 * MIB - 1), second * 100);
        assert!(!half_used(100, 0));
        headroom.set_held(Held::Bytes(16 * MIB), second * 101);
        assert!(half_used(101, 0));
        let reading = headroom.read();
        assert!(reading.was_half_used(second * 102) && !reading.was_half_used(second * 104));
        headroom.set_held(Held::Gone, second);
        assert!(half_used(1, 0));
        headroom.set_held(Held::Denied, second);
        assert!(!half_used(1, 20 * MIB - 1), "4 MiB of it are in the kernel");
        assert!(half_used(1, 20 * MIB));
        headroom.set_limits(Some(OutputLimits { hard_bytes: 0, soft_bytes: 0, soft: Duration::ZERO }));
        headroom.set_held(Held::Bytes(1 << 40), second);
        assert!(!half_used(99, 0), "no limits, no end of patience");
    }

    #[test]
    fn our_own_line_is_found_among_many() {
        let list = "id=3 addr=127.0.0.1:1 laddr=127.0.0.1:2 name= age=1 sub=1 oll=0 omem=20504 tot-mem=42 events=r\n\
                    id=31 addr=127.0.0.1:3 name=tidegate sub=9 oll=2 omem=41 events=rw\n";
        assert_eq!(find_omem(list, 31), Some(41));
        assert_eq!(find_omem(list, 3), Some(20_504));
        assert_eq!(find_omem(list, 1), None);
        assert_eq!(find_omem("", 1), None);
    }
}
