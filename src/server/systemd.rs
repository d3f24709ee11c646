//! What systemd passes: listening sockets. What it is told: that clients can come, that the end has begun, and
//! that everything still turns.
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is said. The watchdog's sign of life is sent only after
//! every reactor has answered a question, and while the ingest's thread runs: a thread that is stuck gets the
//! service restarted.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::mpsc;

use crate::core::handover::Delivery;
use crate::core::mailbox::Mailbox;
use crate::core::report::{Probe, Wanted};
use crate::reactor::Socket;
use crate::server::Failure;
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
pub(super) async fn watchdog(
    mailboxes: Vec<Arc<Mailbox<Delivery<Socket>>>>,
    ingest_runs: impl Fn() -> bool + Send,
) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(timeout / 3);
    loop {
        ticks.tick().await;
        if ingest_runs() && all_turn(&mailboxes, timeout / 3).await {
            tell(NotifyState::Watchdog);
        } else {
            tracing::error!("a thread is stuck or has ended: systemd gets no sign of life");
        }
    }
}

async fn all_turn(mailboxes: &[Arc<Mailbox<Delivery<Socket>>>], patience: Duration) -> bool {
    let (answers, mut answered) = mpsc::unbounded_channel();
    for mailbox in mailboxes {
        let answers = answers.clone();
        // Nobody listens any more once the patience has ended.
        mailbox.push(Delivery::Probe(Probe::new(Wanted::default(), move |_| {
            let _ = answers.send(());
        })));
    }
    drop(answers);
    let all = async {
        for _ in mailboxes {
            if answered.recv().await.is_none() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(patience, all).await.unwrap_or(false)
}
