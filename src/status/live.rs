//! `/status/stream`: the state once a second, as Server-Sent Events, for the page for people.
//!
//! A view is polled by whoever writes its response and holds no task of its own. It ends when the server
//! shuts down, so that it never delays that.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior};

use crate::status::{Snapshot, Status};

const INTERVAL: Duration = Duration::from_secs(1);

/// One live view. Dropping it makes room for another.
pub struct Live {
    status: Arc<Status>,
    ticks: Interval,
    asking: Option<Pin<Box<dyn Future<Output = Snapshot> + Send>>>,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

impl Live {
    pub(crate) fn new(status: Arc<Status>, place: OwnedSemaphorePermit) -> Live {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Live { status, ticks, asking: None, _place: place }
    }

    /// The next event, whole; none at the end. The first comes at once.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let asking = match &mut self.asking {
            Some(asking) => asking,
            none => {
                ready!(self.ticks.poll_tick(context));
                if self.status.sources.draining() {
                    return Poll::Ready(None);
                }
                let status = Arc::clone(&self.status);
                none.insert(Box::pin(async move { status.snapshot().await }))
            }
        };
        let snapshot = ready!(asking.as_mut().poll(context));
        self.asking = None;
        // A figure that JSON cannot carry ends this view rather than the server.
        Poll::Ready(serde_json::to_string(&snapshot).ok().map(|json| format!("data: {json}\n\n").into()))
    }

    /// [`poll_next`](Self::poll_next), to be awaited.
    pub async fn next(&mut self) -> Option<Bytes> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }
}
