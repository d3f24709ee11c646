//! Clients who said something of late: what they may still say, and what they have not finished saying.
//!
//! Nearly all clients only listen, so what follows from talking is no part of a [client](crate::core::client):
//! it stands here, by the client's index, for as long as it differs from that of a client who never said
//! anything. A bucket that has filled up again is as good as a new one, so nobody gains by falling silent:
//! the entry goes when the time has passed that gives everything back.
//!
//! **Rates.** Each read of a client's bytes costs what it is made of: a token for each frame, whatever is in
//! it, and at least one, since bytes that finish nothing take a read as well. Subscribe and unsubscribe
//! messages cost one of a second bucket besides, for they go on to Redis and PostgreSQL.
//!
//! **Unfinished messages** of all clients are bounded together. When there are too many, those go who use
//! most: what a client holds times how long it has held it. Who hoards is found by that however it is done
//! (much at once, or a byte on each of many connections), and a message that only came in two pieces is not.
//!
//! Bounds: an entry of at most [`ENTRY_BYTES`] a talker. [`tidy`](Talkers::tidy) (once a second while there
//! are any) and [`heaviest`](Talkers::heaviest) (when a quarter of the bound was filled since it was last
//! reached) look at all talkers; everything else looks at one.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::Duration;

use crate::core::millis;
use crate::core::session::Bucket;
use crate::limits::Limits;
use crate::proto::ws::{Decoder, Fed, Incoming, ProtocolError};

/// How often, at least, those are looked for who said nothing any more or did not finish in time.
pub(crate) const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What an entry takes in the table, in bytes: its key, its value, and the table's empty places.
const ENTRY_BYTES: usize = 80;

const _: () = assert!(size_of::<(u32, Talker)>() * 2 <= ENTRY_BYTES);

/// Less than this is as good as nothing: every honest message fits, and its size is no reason to end it.
const LITTLE_BYTES: u64 = 1024;

/// How old a message is when it begins. A client whose message came in pieces over a fraction of that weighs
/// no more than one who just began.
const AGE_MS: u64 = 1000;

/// One of them.
#[derive(Debug, Default)]
struct Talker {
    decoder: Decoder,
    messages: Bucket,
    requests: Bucket,
    /// Since when its message is unfinished: milliseconds of the caller's clock.
    since_ms: u32,
    /// Bytes held for that; 0 while nothing is unfinished.
    held_bytes: u32,
}

/// Those of one reactor.
#[derive(Debug, Default)]
pub(crate) struct Talkers {
    by_client: HashMap<u32, Talker>,
    unfinished_bytes: usize,
}

impl Talkers {
    /// Decodes what a client sent; see [`Decoder::feed`].
    pub fn feed(
        &mut self,
        client: u32,
        bytes: &mut [u8],
        message_bytes_max: usize,
        now: Duration,
        sink: &mut dyn FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<Fed, ProtocolError> {
        let talker = self.by_client.entry(client).or_default();
        let mut finished = false;
        let fed = talker.decoder.feed(bytes, message_bytes_max, &mut |message| {
            finished |= matches!(message, Incoming::Text(_));
            sink(message)
        });
        let before = std::mem::take(&mut talker.held_bytes);
        if !talker.decoder.is_idle() {
            let held = talker.decoder.held_bytes() + ENTRY_BYTES;
            talker.held_bytes = u32::try_from(held).unwrap_or(u32::MAX);
            if before == 0 || finished {
                talker.since_ms = millis(now);
            }
        }
        self.unfinished_bytes += talker.held_bytes as usize;
        self.unfinished_bytes -= before as usize;
        fed
    }

    /// Takes what a read of so many frames costs; false if the client has not as much.
    pub fn pay(&mut self, client: u32, frames: u32, limits: &Limits, now: Duration) -> bool {
        let talker = self.by_client.entry(client).or_default();
        talker.messages.take(frames.max(1), now, limits.client_message_rate, limits.client_message_burst)
    }

    /// Takes what a subscribe or unsubscribe message costs besides; false if the client has not as much.
    pub fn pay_request(&mut self, client: u32, limits: &Limits, now: Duration) -> bool {
        let talker = self.by_client.entry(client).or_default();
        talker.requests.take(1, now, limits.subscribe_rate, limits.subscribe_burst)
    }

    /// The client listens no more: what it had not finished is given up, and its index may be another's.
    pub fn forget(&mut self, client: u32) {
        if let Some(talker) = self.by_client.remove(&client) {
            self.unfinished_bytes -= talker.held_bytes as usize;
        }
    }

    /// Bytes of all unfinished messages together.
    pub fn unfinished_bytes(&self) -> usize {
        self.unfinished_bytes
    }

    /// Whether nobody said anything of late.
    pub fn is_empty(&self) -> bool {
        self.by_client.is_empty()
    }

    /// Whose message was to be whole by now. The others' entries are given back where they say nothing.
    pub fn tidy(&mut self, limits: &Limits, now: Duration) -> Vec<u32> {
        let timeout_ms = limits.unfinished_timeout.as_millis() as u64;
        let mut late = Vec::new();
        self.by_client.retain(|client, talker| {
            if talker.held_bytes > 0 && talker.age_ms(now) >= timeout_ms {
                late.push(*client);
            }
            talker.held_bytes > 0
                || !talker.messages.is_full(now, limits.client_message_rate)
                || !talker.requests.is_full(now, limits.subscribe_rate)
        });
        if self.by_client.capacity() > 64 + 4 * self.by_client.len() {
            self.by_client.shrink_to(2 * self.by_client.len());
        }
        late
    }

    /// Who has to go so that at most three quarters of `bytes_max` stay unfinished, if more than that is; the
    /// heaviest first. A quarter at once, so that a crowd that comes back does not make each read a search.
    pub fn heaviest(&self, bytes_max: usize, now: Duration) -> Vec<u32> {
        if self.unfinished_bytes <= bytes_max {
            return Vec::new();
        }
        let holders = self.by_client.iter().filter(|(_, talker)| talker.held_bytes > 0);
        let mut holders: Vec<(u64, u32, usize)> = holders
            .map(|(client, talker)| (talker.weight(now), *client, talker.held_bytes as usize))
            .collect();
        holders.sort_unstable_by(|one, other| other.cmp(one));
        let mut left = self.unfinished_bytes;
        let goes = |(_, client, held): (u64, u32, usize)| {
            let too_many = left > bytes_max / 4 * 3;
            left -= held;
            too_many.then_some(client)
        };
        holders.into_iter().map_while(goes).collect()
    }
}

impl Talker {
    fn age_ms(&self, now: Duration) -> u64 {
        u64::from(millis(now).wrapping_sub(self.since_ms))
    }

    fn weight(&self, now: Duration) -> u64 {
        u64::from(self.held_bytes).max(LITTLE_BYTES) * (AGE_MS + self.age_ms(now))
    }
}

#[cfg(test)]
mod tests;
