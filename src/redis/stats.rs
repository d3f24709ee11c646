//! What status pages and metrics tell about the way in. Each value has one writer; readers may see some of
//! them newer than others.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::core::event::Ignored;

/// Written by the ingest thread alone.
#[derive(Debug, Default)]
pub struct IngestStats {
    /// Turns of the thread's loop.
    pub turns: AtomicU64,
    /// Whether there is a subscriber connection.
    pub connected: AtomicBool,
    /// Whether everything is subscribed and newcomers can get in: what `/ready` looks at.
    pub live: AtomicBool,
    /// Connections since the start; the number of the present one.
    pub epoch: AtomicU64,
    /// Connections that Redis ended because it held too much for us (`client-output-buffer-limit`).
    pub output_limits: AtomicU64,
    /// Failed attempts to connect.
    pub failed_attempts: AtomicU64,
    /// Channels that somebody holds.
    pub channels: AtomicU64,
    /// Newcomers and subscriptions on their way, between hold and attach.
    pub tickets: AtomicU64,
    /// Messages read, all of them.
    pub messages: AtomicU64,
    /// Bytes read, subscriptions' confirmations included.
    pub bytes: AtomicU64,
    /// The last message's sequence number: messages on channels that somebody holds.
    pub seq: AtomicU64,
    /// Messages of channels that nobody holds (any more): owed to no one.
    pub unsubscribed_messages: AtomicU64,
    /// Messages of channels held by newcomers only: owed to no one yet.
    pub unattached_messages: AtomicU64,
    /// Messages that go to nobody, as in Node: by [`Ignored`], in its order.
    pub ignored: [AtomicU64; 3],
    /// Messages over `MAX_MESSAGE_BYTES`; their channels' clients were closed.
    pub too_long: AtomicU64,
    /// Kills read.
    pub kills: AtomicU64,
    /// Bytes per second that came just before the last pause: what Redis has to hold, as far as one can
    /// guess, for each second of it.
    pub rate_before_pause: AtomicU64,
    /// Bytes in the ring that wait to be taken.
    pub unread_bytes: AtomicU64,
    /// Since when reading is paused, in microseconds since the process's start; 0 while it is not.
    pub paused_since_us: AtomicU64,
    /// Pauses that have ended or go on.
    pub pauses: AtomicU64,
    /// Length of all pauses that have ended, in microseconds.
    pub paused_us: AtomicU64,
    /// Connections that were given up because presence keys were about to end.
    pub presence_gaps: AtomicU64,
    /// Why there is no connection, or was none the last time.
    pub last_error: LastError,
    /// What Redis refuses on this connection: for everybody to read, without addresses.
    pub obstacle: LastError,
}

impl IngestStats {
    /// The counter of that reason.
    pub fn ignored(&self, reason: Ignored) -> &AtomicU64 {
        let [not_json, incomplete, unknown] = &self.ignored;
        match reason {
            Ignored::NotJson => not_json,
            Ignored::Incomplete => incomplete,
            Ignored::UnknownSystemEvent => unknown,
        }
    }

    /// How long reading has been paused by now, if it is.
    pub fn pause(&self, now: Duration) -> Option<Duration> {
        match self.paused_since_us.load(Relaxed) {
            0 => None,
            since => Some(now.saturating_sub(Duration::from_micros(since))),
        }
    }

    /// How long reading was paused in all, by a clock that shows `now` since the process's start.
    pub fn paused_total(&self, now: Duration) -> Duration {
        let ended = Duration::from_micros(self.paused_us.load(Relaxed));
        ended + self.pause(now).unwrap_or_default()
    }
}

/// Written by the presence task alone.
#[derive(Debug, Default)]
pub struct PresenceStats {
    /// Whether there is a command connection.
    pub connected: AtomicBool,
    /// Presence keys set, refreshes included.
    pub keys_set: AtomicU64,
    /// Failed attempts to connect or to set.
    pub failures: AtomicU64,
    /// Why keys could not be set the last time.
    pub last_error: LastError,
    /// Why keys cannot be set now: for everybody to read, without addresses.
    pub obstacle: LastError,
    /// Since when keys cannot be set, in microseconds since the process's start; 0 while they can.
    pub failing_since_us: AtomicU64,
}

impl PresenceStats {
    /// How long keys have not been set by now, if that fails.
    pub fn failing(&self, now: Duration) -> Option<Duration> {
        match self.failing_since_us.load(Relaxed) {
            0 => None,
            since => Some(now.saturating_sub(Duration::from_micros(since))),
        }
    }
}

/// The text of the last error.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<String>>);

impl LastError {
    /// What it says.
    pub fn read(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets it.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Keeps it; true if it is another than before.
    pub fn set(&self, text: &str) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() == Some(text) {
            return false;
        }
        *last = Some(text.to_owned());
        true
    }
}
