//! Why a subscriber connection ended, and whether it was our own slowness.
//!
//! Redis does not say that it drops a subscriber for holding too much for it: the connection just ends. What
//! is known here decides: how far behind we were, what Redis held for us when it was last asked, and whether
//! it still answers on the command connection, which a Redis that went down does not.

use std::io;
use std::time::Duration;

use crate::redis::headroom::Reading;

/// Who is so far behind when Redis ends the connection was dropped for it: bytes read since the socket was
/// last found empty. What Redis's own buffer holds waits behind the kernel's, which hold more than this, so a
/// connection that Redis drops always ends with so much; a quiet one that is cut never does.
const FAR_BEHIND_BYTES: u64 = 1 << 20;

/// The end of a connection.
#[derive(Debug)]
pub(super) struct Loss {
    text: String,
    by_peer: bool,
    /// Presence keys were about to end.
    for_keys: bool,
}

impl Loss {
    /// What reading or writing brought.
    pub(super) fn io(error: &io::Error) -> Loss {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Loss { text: "it closed the connection".into(), by_peer: true, for_keys: false }
            }
            kind => Loss {
                text: error.to_string(),
                by_peer: matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
                for_keys: false,
            },
        }
    }

    /// Presence keys could not be set for so long that those of clients may end.
    pub(super) fn keys_end(failing: Duration) -> Loss {
        let text = format!(
            "presence keys could not be set for {:.0} s and are about to end, so Mastodon stops publishing for those \
             who are connected",
            failing.as_secs_f64()
        );
        Loss { text, by_peer: false, for_keys: true }
    }

    /// Whether presence keys were about to end.
    pub(super) fn is_for_keys(&self) -> bool {
        self.for_keys
    }

    /// Whether Redis dropped us since more waited for us than it is willing to hold.
    pub(super) fn is_output_limit(&self, behind_bytes: u64, patience: &Reading, now: Duration) -> bool {
        let measured = patience.was_half_used(now);
        self.by_peer && patience.answers && (measured || behind_bytes >= FAR_BEHIND_BYTES)
    }

    /// The reason, for the log; for a limit what to do about it.
    pub(super) fn tell(&self, output_limit: bool, patience: &Reading) -> String {
        if !output_limit {
            return self.text.clone();
        }
        let limits = patience.limits;
        let now = if patience.limits_told {
            format!(" (pubsub {} {} {})", limits.hard_bytes, limits.soft_bytes, limits.soft.as_secs())
        } else {
            String::new()
        };
        format!(
            "it dropped us, since messages came faster than they could be relayed and more waited for us than \
             its client-output-buffer-limit allows{now}; everybody is told that messages are missing. If that \
             happens again, raise client-output-buffer-limit pubsub in redis.conf"
        )
    }
}

impl From<String> for Loss {
    /// Our own verdict on a connection that stands.
    fn from(text: String) -> Loss {
        Loss { text, by_peer: false, for_keys: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::headroom::{Headroom, Held};

    const NOW: Duration = Duration::from_secs(9);

    fn dropped() -> Loss {
        Loss::io(&io::ErrorKind::UnexpectedEof.into())
    }

    #[test]
    fn only_who_was_behind_was_dropped_for_it() {
        let headroom = Headroom::default();
        headroom.set_answers(true);
        assert!(!dropped().is_output_limit(FAR_BEHIND_BYTES - 1, &headroom.read(), NOW));
        assert!(dropped().is_output_limit(FAR_BEHIND_BYTES, &headroom.read(), NOW));
        let reset = Loss::io(&io::ErrorKind::ConnectionReset.into());
        assert!(reset.is_output_limit(FAR_BEHIND_BYTES, &headroom.read(), NOW));
        let silent = Loss::from("it has not answered".to_owned());
        assert!(!silent.is_output_limit(FAR_BEHIND_BYTES, &headroom.read(), NOW), "we ended it");
        headroom.set_answers(false);
        assert!(!dropped().is_output_limit(u64::MAX, &headroom.read(), NOW), "Redis itself has gone");
    }

    #[test]
    fn what_redis_held_for_us_just_before_is_evidence_as_well() {
        let headroom = Headroom::default();
        headroom.set_answers(true);
        let limit = || dropped().is_output_limit(0, &headroom.read(), NOW);
        headroom.set_held(Held::Bytes((16 << 20) - 1), NOW);
        assert!(!limit());
        headroom.set_held(Held::Bytes(16 << 20), NOW);
        assert!(limit());
        headroom.set_held(Held::Gone, NOW);
        assert!(limit(), "it held that when it dropped us");
        headroom.set_held(Held::Bytes(0), NOW);
        headroom.set_held(Held::Gone, NOW);
        assert!(!limit(), "killed while hardly anything waited");
    }

    #[test]
    fn the_setting_to_raise_is_named() {
        let headroom = Headroom::default();
        headroom.set_limits(None);
        let told = dropped().tell(true, &headroom.read());
        assert!(told.contains("client-output-buffer-limit pubsub in redis.conf"), "{told}");
        assert!(!told.contains('('), "its value is not known: {told}");
        headroom.set_limits(Some(Default::default()));
        let told = dropped().tell(true, &headroom.read());
        assert!(told.contains("(pubsub 33554432 8388608 60)"), "{told}");
        assert_eq!(dropped().tell(false, &headroom.read()), "it closed the connection");
    }
}
