//! What operators see: metrics, readiness, the stub_status pages, the page for people.
//!
//! Knows no HTTP library: [`Status::find`] says which page a path means, if this visitor may see it, and
//! [`Status::answer`] makes an [`Answer`] that the door, or the listener of `ADMIN_BIND`, puts on the wire.
//! All figures come through [`Sources`]; nothing here writes to anyone's state, but for the [`Probe`]s that
//! ask reactors for their ledger, their slowest clients or their busiest channels.
//!
//! Bounds: reactors are asked at most [`PROBES_PER_SECOND`] times a second for each kind of list, however
//! many visitors there are, and waited for at most [`PROBE_TIMEOUT`]; at most [`LIVE_VIEWS_MAX`] live views
//! on each listener. Tested with fake sources: texts, shapes, who sees what, reactors that stay silent.

#[cfg(feature = "stub_status")]
mod live;
pub mod metrics;
#[cfg(feature = "stub_status")]
mod pages;
mod process;
pub mod snapshot;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
#[cfg(feature = "stub_status")]
use tokio::sync::Semaphore;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use crate::core::report::{Probe, ReactorReport, Wanted};

#[cfg(feature = "stub_status")]
pub use live::Live;
#[doc(hidden)]
#[cfg(feature = "stub_status")]
pub use pages::{Form, chosen_form};
pub use process::{Process, ProcessStats};
pub use snapshot::{Snapshot, Sources};

/// How often reactors are asked, at most, for each kind of list.
pub const PROBES_PER_SECOND: u32 = 4;

/// How long reactors are waited for; one that is silent for so long is reported as such.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Live views at once on each listener; further ones get 503.
pub const LIVE_VIEWS_MAX: usize = 16;

/// Under this prefix the status pages stand as well, if `STATUS_PUBLIC=true`.
#[cfg(feature = "stub_status")]
const PUBLIC_PREFIX: &str = "/api/v1/streaming";

/// Which listener a request came in on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listener {
    /// The one for clients.
    Main,
    /// The one of `ADMIN_BIND`.
    Admin,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visitor {
    /// Where the request came in.
    pub listener: Listener,
    /// Whether the peer's address is 127.0.0.0/8, ::1 or ::ffff:127.0.0.0/104. A peer on a Unix socket
    /// counts as well: its file's directory says who may connect.
    pub peer_is_loopback: bool,
    /// Whether the request has headers that a proxy adds, so that it is not a direct one.
    pub has_forwarded_headers: bool,
}

/// What is set by configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// `STATUS_PUBLIC`: the status pages are for everybody.
    pub status_public: bool,
    /// Not `METRICS_MAIN_PORT=false`: `/metrics` is on the main port too.
    pub metrics_on_main: bool,
    /// `METRICS_PREFIX`: stands before the metrics' names that come from the Node.js server.
    pub metrics_prefix: String,
}

/// What a path means here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Page {
    Metrics,
    Ready,
    /// `/status` and its kin, in the form that `Accept` prefers.
    #[cfg(feature = "stub_status")]
    Status(pages::Form),
    #[cfg(feature = "stub_status")]
    PerTimeline(pages::Form),
    #[cfg(feature = "stub_status")]
    Backpressure(pages::Form),
    /// From `/status` to `/status/`.
    #[cfg(feature = "stub_status")]
    ToPeople,
    /// `/status/`
    #[cfg(feature = "stub_status")]
    People,
    /// `/status/stream`
    #[cfg(feature = "stub_status")]
    Live(Listener),
}

/// A response. `Content-Type` is apart; the length is the body's. Status pages are not for scripts of other
/// sites: they go out without `Access-Control-Allow-Origin`.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type`
    pub content_type: &'static str,
    /// Further headers, names in lower case.
    pub headers: Vec<(&'static str, Cow<'static, str>)>,
    /// Whether to add `Access-Control-Allow-Origin: *`, as to everything that the Node.js server has.
    pub cross_origin: bool,
    /// What follows.
    pub body: Body,
}

/// A response's body.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Full(Bytes),
    /// Server-Sent Events, one a second.
    #[cfg(feature = "stub_status")]
    Stream(Live),
}

impl Answer {
    fn full(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
        Answer {
            status,
            content_type,
            headers: vec![("cache-control", Cow::Borrowed("private, no-store"))],
            cross_origin: false,
            body: Body::Full(body.into()),
        }
    }
}

/// Whether a visitor of the main port sees the status pages. Where `under_prefix`, the path began with
/// `/api/v1/streaming/`: reverse proxies pass that on, so it is there for all or for none.
pub fn may_see(
    peer_is_loopback: bool,
    has_forwarded_headers: bool,
    status_public: bool,
    under_prefix: bool,
) -> bool {
    status_public || (!under_prefix && peer_is_loopback && !has_forwarded_headers)
}

/// Answers everything about the server's own state.
pub struct Status {
    sources: Arc<dyn Sources>,
    options: Options,
    process: Process,
    laggards: Asked,
    #[cfg(feature = "stub_status")]
    channels: Asked,
    /// Of each listener its own: those that everybody may open leave the operator's free.
    #[cfg(feature = "stub_status")]
    live_views: [Arc<Semaphore>; 2],
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Status({:?})", self.options)
    }
}

impl Status {
    /// `process` was made at the start. Answers need a tokio runtime with time.
    pub fn new(sources: Arc<dyn Sources>, options: Options, process: Process) -> Arc<Status> {
        Arc::new(Status {
            sources,
            options,
            process,
            laggards: Asked::default(),
            #[cfg(feature = "stub_status")]
            channels: Asked::default(),
            #[cfg(feature = "stub_status")]
            live_views: std::array::from_fn(|_| Arc::new(Semaphore::new(LIVE_VIEWS_MAX))),
        })
    }

    /// The page of that path (without its query), or none: then it gets what any unknown path gets. For
    /// GET and HEAD; `accept` is the header of that name.
    pub fn find(&self, path: &str, accept: Option<&str>, who: Visitor) -> Option<Page> {
        let admin = who.listener == Listener::Admin;
        match path {
            "/metrics" => (admin || self.options.metrics_on_main).then_some(Page::Metrics),
            "/ready" => Some(Page::Ready),
            _ => self.find_status(path, accept, who),
        }
    }

    #[cfg(feature = "stub_status")]
    fn find_status(&self, path: &str, accept: Option<&str>, who: Visitor) -> Option<Page> {
        let (path, under_prefix) = match path.strip_prefix(PUBLIC_PREFIX) {
            Some(rest) => (rest, true),
            None => (path, false),
        };
        let public = self.options.status_public;
        let seen = may_see(who.peer_is_loopback, who.has_forwarded_headers, public, under_prefix);
        if !seen && who.listener == Listener::Main {
            return None;
        }
        pages::find(path, accept, who.listener)
    }

    #[cfg(not(feature = "stub_status"))]
    fn find_status(&self, _: &str, _: Option<&str>, _: Visitor) -> Option<Page> {
        None
    }

    /// Makes the response. Ends within little more than [`PROBE_TIMEOUT`].
    pub async fn answer(self: &Arc<Self>, page: Page) -> Answer {
        match page {
            Page::Metrics => {
                let text = metrics::write(&self.assemble(None), &self.options.metrics_prefix);
                Answer { cross_origin: true, ..Answer::full(200, metrics::CONTENT_TYPE, text) }
            }
            Page::Ready => Answer { cross_origin: true, ..self.ready().await },
            #[cfg(feature = "stub_status")]
            page => pages::answer(self, page).await,
        }
    }

    /// Everything at this moment, reactors asked for their ledger and their slowest clients.
    pub async fn snapshot(&self) -> Snapshot {
        let wanted = Wanted { channels: 0, laggards: snapshot::LAGGARDS_SHOWN };
        let reports = self.laggards.ask(&*self.sources, wanted).await;
        self.assemble(Some(&reports))
    }

    fn assemble(&self, reports: Option<&[ReactorReport]>) -> Snapshot {
        Snapshot::assemble(&*self.sources, self.process.read(), self.process.started(), reports)
    }

    async fn ready(&self) -> Answer {
        let mut missing = self.sources.obstacles();
        for thread in self.sources.stuck().await {
            missing.push(format!("the thread {thread} does not turn"));
        }
        if missing.is_empty() {
            return Answer::full(200, TEXT, "ready\n");
        }
        Answer::full(503, TEXT, format!("not ready: {}\n", missing.join(", ")))
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Reactors' reports, fetched for all who wait at once. An answer is never older than its question.
#[derive(Default)]
struct Asked {
    last: Mutex<LastAsked>,
}

#[derive(Default)]
struct LastAsked {
    begun_at: Option<Instant>,
    /// None where the visitor did not wait for the answer: the reactors were asked all the same.
    reports: Option<Arc<[ReactorReport]>>,
}

impl Asked {
    async fn ask(&self, sources: &dyn Sources, wanted: Wanted) -> Arc<[ReactorReport]> {
        let asked_at = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(begun_at) = last.begun_at {
            if begun_at >= asked_at
                && let Some(reports) = &last.reports
            {
                return Arc::clone(reports);
            }
            tokio::time::sleep_until(begun_at + Duration::from_secs(1) / PROBES_PER_SECOND).await;
        }
        *last = LastAsked { begun_at: Some(Instant::now()), reports: None };
        let reports: Arc<[ReactorReport]> = probe(sources, wanted, PROBE_TIMEOUT).await.into();
        last.reports = Some(Arc::clone(&reports));
        reports
    }
}

/// Asks all reactors at once; those that do not answer in time are missing.
async fn probe(sources: &dyn Sources, wanted: Wanted, patience: Duration) -> Vec<ReactorReport> {
    let count = sources.reactors().len();
    let (sender, mut receiver) = mpsc::channel(count.max(1));
    for reactor in 0..count {
        let sender = sender.clone();
        // There is room for one report of each; nobody is there any more when it comes too late.
        sources.probe(reactor, Probe::new(wanted, move |report| drop(sender.try_send(report))));
    }
    drop(sender);
    let deadline = Instant::now() + patience;
    let mut reports = Vec::with_capacity(count);
    while reports.len() < count {
        match tokio::time::timeout_at(deadline, receiver.recv()).await {
            Ok(Some(report)) => reports.push(report),
            Ok(None) | Err(_) => break,
        }
    }
    reports.sort_by_key(|report| report.reactor);
    reports
}

#[cfg(test)]
mod tests;
