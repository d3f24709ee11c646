//! Whether newcomers could subscribe, found out before one comes: each kind of channel is subscribed to and left
//! again, in the name of an account that does not exist.

use std::time::{Duration, Instant};

use super::{REFRESH_SHARDS, Worker};
use crate::core::stream::{Channel, Id, Tag};
use crate::redis::presence::KEY_LIFETIMES;

/// Between two probes that succeed there is room for so many PINGs.
const PROBE_PINGS: u32 = 3;

impl<S: Send + 'static> Worker<S> {
    /// Sends the probe when its time has come.
    pub(super) fn probe(&mut self, now: Instant) {
        if now < self.probe_at {
            return;
        }
        // What is refused is tried again soon: it may be what keeps everybody away.
        let periods = if self.stats.obstacle.read().is_some() { 1 } else { PROBE_PINGS };
        self.probe_at = now + self.limits.redis_ping * periods;
        let Some(link) = &mut self.link else { return };
        let mut channels = probed().to_vec();
        // What is subscribed already needs no probe, and must not be left.
        channels.retain(|channel| !self.router.table.knows(channel));
        link.probe(self.router.prefix(), channels);
    }

    /// How long presence keys have not been set, if those of clients may end before the next look: Rails publishes
    /// nothing for a client without them.
    pub(super) fn keys_at_risk(&self, now: Instant) -> Option<Duration> {
        let failing = self.presence.stats.failing(self.clock.now())?;
        // Everything was set when it became live.
        let failing = failing.min(now.saturating_duration_since(self.live_at?));
        let refresh = self.limits.presence_refresh;
        let safe = refresh * (KEY_LIFETIMES - 1) - refresh / REFRESH_SHARDS;
        (self.router.table.is_live() && self.router.table.referenced() > 0 && failing >= safe)
            .then_some(failing)
    }
}

/// PostgreSQL's largest id, which Mastodon's ids (made from the time) do not reach.
const NOBODY: Id = i64::MAX as Id;

/// One channel of each kind, of no account.
fn probed() -> [Channel; 7] {
    [
        Channel::AccessToken(NOBODY),
        Channel::System(NOBODY),
        Channel::Account(NOBODY),
        Channel::Notifications(NOBODY),
        Channel::Direct(NOBODY),
        Channel::List(NOBODY),
        Channel::Hashtag { tag: Tag::from_normalised("tidegate"), local: true },
    ]
}
