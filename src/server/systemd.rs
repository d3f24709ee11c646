//! What systemd passes: listening sockets. What it is told: that clients can come, that the end has begun, and
//! that everything still turns.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is said. The watchdog's sign of life is sent only after
//! every thread has begun another turn: a thread that is stuck gets the service restarted.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use sd_notify::NotifyState;

use crate::server::Failure;
use crate::server::threads::Threads;
use crate::sys;

/// `FileDescriptorName=` of the socket that stands in for `ADMIN_BIND`.
pub(super) const ADMIN_NAME: &str = "admin";

/// Listening sockets that systemd passes (sd_listen_fds(3)).
pub(super) struct Passed {
    /// Instead of `BIND`, `PORT` and `SOCKET`, with its name.
    pub(super) main: Option<(OwnedFd, String)>,
    /// Instead of `ADMIN_BIND`.
    pub(super) admin: Option<OwnedFd>,
}

impl Passed {
    /// Takes what is passed. To be called before anything is opened.
    pub(super) fn take() -> Result<Passed, Failure> {
        let sockets = sys::passed_sockets().map_err(|error| {
            Failure(format!(
                "the sockets that systemd passes (LISTEN_FDS, LISTEN_PID) are not there: {error}"
            ))
        })?;
        let mut passed = Passed { main: None, admin: None };
        for (socket, name) in sockets {
            if name == ADMIN_NAME && passed.admin.is_none() {
                passed.admin = Some(socket);
            } else if passed.main.is_none() {
                passed.main = Some((socket, name));
            } else {
                return Err(Failure(format!(
                    "systemd passes one socket too many (LISTEN_FDS): {name:?}; one for clients is used, and \
                     one with FileDescriptorName={ADMIN_NAME}. ListenStream=PORT listens on all addresses"
                )));
            }
        }
        Ok(passed)
    }
}

/// Tells systemd; a failure is worth a line, no more.
pub(super) fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd cannot be notified (NOTIFY_SOCKET)");
    }
}

/// Sends signs of life as often as `WatchdogSec=` asks for, as long as everything turns. Ends at once where
/// there is no watchdog.
pub(super) async fn watchdog(threads: Arc<Threads>) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(timeout / 3);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let stuck = threads.stuck(timeout / 3).await;
        if stuck.is_empty() {
            tell(NotifyState::Watchdog);
        } else {
            tracing::error!("systemd gets no sign of life: the thread {} does not turn", stuck.join(", "));
        }
    }
}
