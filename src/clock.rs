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

    /// The clock of a machine that was suspended for that long since the start, or whose wall clock was set forward by
    /// as much. For tests.
    #[doc(hidden)]
    pub fn behind(self, by: Duration) -> Clock {
        Clock { start_unix: self.start_unix.saturating_sub(by), ..self }
    }

    /// The time since the start.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The wall clock now, in milliseconds since 1970. Unlike [`start_unix`](Self::start_unix) and the time since, it
    /// follows corrections of the clock, and goes on while the machine is suspended.
    pub fn unix_ms(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
    }

    /// The start, in time since 1970.
    pub fn start_unix(&self) -> Duration {
        self.start_unix
    }

    /// The start as the wall clock has it now. It differs from [`start_unix`](Self::start_unix) after the wall
    /// clock was set, and after the machine was suspended, which this clock does not count.
    pub fn start_unix_now(&self) -> Duration {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        unix.saturating_sub(self.now())
    }
}
