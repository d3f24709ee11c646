//! The process's one clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Times everywhere are durations since this clock's start, so that pure code needs no clock and tests can
/// make theirs.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_unix: Duration,
}

impl Clock {
    /// A clock that stands at zero now.
    pub fn start() -> Clock {
        let start_unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), start_unix }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The start, in time since 1970.
    pub fn start_unix(&self) -> Duration {
        self.start_unix
    }
}
