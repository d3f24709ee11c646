use std::sync::Mutex as Lock;

use super::snapshot::*;
use super::*;
use crate::core::counters::{CloseReason, ReactorCounters, add, set};
use crate::core::event::{Transport, Withheld};
use crate::core::handover::ClientId;
use crate::core::report::Laggard;
use crate::core::stream::{Channel, StreamKind};

/// What a fake's reactors do when they are asked.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Asking {
    Answer,
    /// The reactor has ended: the question is dropped.
    Drop,
    /// The reactor hangs: the question lies there.
    Hang,
}

impl Status {
    /// What a visitor gets, as the door has it made.
    pub(crate) async fn respond(
        self: &Arc<Self>,
        path: &str,
        accept: Option<&str>,
        who: Visitor,
    ) -> Option<Answer> {
        Some(self.answer(self.find(path, accept, who)?).await)
    }
}

/// A server with two reactors, a few clients and one slow one.
pub(crate) struct Fake {
    pub(crate) reactors: Vec<Arc<ReactorCounters>>,
    pub(crate) asking: [Asking; 2],
    pub(crate) asked: Lock<Vec<Wanted>>,
    pub(crate) hanging: Lock<Vec<Probe>>,
    pub(crate) channels: Vec<(Channel, u32)>,
    pub(crate) redis_connected: bool,
    pub(crate) database: Option<DatabaseStats>,
    pub(crate) draining: bool,
    pub(crate) stuck: Vec<String>,
    pub(crate) obstacles: Vec<String>,
    pub(crate) presence_failing_ms: Option<u64>,
}

impl Fake {
    pub(crate) fn new() -> Fake {
        let reactors: Vec<Arc<ReactorCounters>> = (0..2).map(|_| Arc::default()).collect();
        let first = &reactors[0];
        for _ in 0..3 {
            first.client_opened(Transport::WebSocket, 2);
            first.subscription_opened(Transport::WebSocket, StreamKind::User);
        }
        first.client_closed(Transport::WebSocket, 2, CloseReason::TooSlow);
        first.subscription_ended(Transport::WebSocket, StreamKind::User);
        add(&first.owed, 20);
        for _ in 0..10 {
            first.message_delivered(Transport::WebSocket, Duration::from_micros(250));
        }
        first.message_filtered(Withheld::Language);
        first.messages_closed(CloseReason::TooSlow, 6);
        set(&first.pending, 3);
        set(&first.lagging, 1);
        set(&first.log_bytes, 9000);
        set(&first.log_entries, 3);
        reactors[1].client_opened(Transport::SseChunked, 2);
        reactors[1].subscription_opened(Transport::SseChunked, StreamKind::PublicLocal);
        add(&reactors[1].owed, 4);
        for _ in 0..4 {
            reactors[1].message_delivered(Transport::SseChunked, Duration::from_millis(3));
        }
        Fake {
            reactors,
            asking: [Asking::Answer; 2],
            asked: Lock::default(),
            hanging: Lock::default(),
            channels: Vec::new(),
            redis_connected: true,
            database: Some(DatabaseStats {
                connected: true,
                obstacle: None,
                total: 5,
                idle: 4,
                waiting: 0,
                unencrypted_because: None,
            }),
            draining: false,
            stuck: Vec::new(),
            obstacles: Vec::new(),
            presence_failing_ms: None,
        }
    }

    pub(crate) fn status(self, options: Options) -> (Arc<Status>, Arc<Fake>) {
        let fake = Arc::new(self);
        (Status::new(Arc::clone(&fake) as Arc<dyn Sources>, options, Process::starting()), fake)
    }
}

impl Sources for Fake {
    fn obstacles(&self) -> Vec<String> {
        self.obstacles.clone()
    }

    fn presence(&self) -> PresenceStats {
        PresenceStats {
            connected: true,
            keys_set: 7,
            failures: 2,
            failing_ms: self.presence_failing_ms,
            last_error: self
                .presence_failing_ms
                .map(|_| "Redis refuses to set presence keys: OOM".to_owned()),
        }
    }

    fn stuck(&self) -> Stuck<'_> {
        Box::pin(std::future::ready(self.stuck.clone()))
    }

    fn reactors(&self) -> &[Arc<ReactorCounters>] {
        &self.reactors
    }

    fn probe(&self, reactor: usize, probe: Probe) {
        self.asked.lock().unwrap().push(probe.wanted());
        match self.asking[reactor] {
            Asking::Answer => {
                let laggard = Laggard {
                    client: ClientId { reactor: reactor as u16, index: 12, generation: 3 },
                    transport: Transport::WebSocket,
                    owed: 3,
                    bytes: 9000,
                    oldest: Duration::from_millis(1500),
                    last_progress: Duration::from_millis(700),
                };
                let report = ReactorReport::gather(
                    reactor as u16,
                    probe.wanted(),
                    &self.reactors[reactor],
                    self.channels.iter().cloned(),
                    (reactor == 0).then_some(laggard),
                );
                probe.answer(report);
            }
            Asking::Drop => drop(probe),
            Asking::Hang => self.hanging.lock().unwrap().push(probe),
        }
    }

    fn ingest(&self) -> IngestStats {
        IngestStats {
            connected: self.redis_connected,
            epoch: 1,
            channels: 9,
            messages: 24,
            ignored: Labelled(vec![("not_json", 1), ("incomplete", 0)]),
            ring_bytes: 8192,
            ring_unread_bytes: 17,
            gaps: Labelled(vec![("connection_lost", 0), ("redis_output_limit", 0)]),
            ..IngestStats::default()
        }
    }

    fn gate(&self) -> GateStats {
        GateStats {
            held_bytes: 12 << 20,
            high_bytes: 16 << 20,
            evict_bytes: 12 << 20,
            low_bytes: 8 << 20,
            closed: true,
            closed_for_ms: Some(1234),
            closes: 2,
            paused_ms: 3456,
        }
    }

    fn headroom(&self) -> Option<HeadroomStats> {
        Some(HeadroomStats { used_bytes: 1 << 20, limit_bytes: 32 << 20 })
    }

    fn door(&self) -> DoorStats {
        DoorStats {
            connections: 2,
            accepted: 107,
            handled: 106,
            requests: 110,
            refused: Labelled(vec![("token", 5), ("redis_away", 0)]),
        }
    }

    fn database(&self) -> Option<DatabaseStats> {
        self.database.clone()
    }

    fn audience(&self) -> Option<AudienceStats> {
        self.database.as_ref().map(|_| AudienceStats { queries: 8, ..AudienceStats::default() })
    }

    fn draining(&self) -> bool {
        self.draining
    }
}

pub(crate) const DIRECT: Visitor =
    Visitor { listener: Listener::Main, peer_is_loopback: true, has_forwarded_headers: false };

pub(crate) fn body(answer: &Answer) -> &str {
    match &answer.body {
        Body::Full(bytes) => std::str::from_utf8(bytes).unwrap(),
        #[cfg(feature = "stub_status")]
        Body::Stream(live) => panic!("{live:?}"),
    }
}

#[test]
fn pages_are_for_direct_loopback_peers_unless_public() {
    for (loopback, forwarded, public, prefix, seen) in [
        (true, false, false, false, true),
        (true, true, false, false, false),
        (false, false, false, false, false),
        (false, true, false, false, false),
        (true, false, false, true, false),
        (false, true, false, true, false),
        (true, false, true, false, true),
        (false, true, true, false, true),
        (false, true, true, true, true),
        (false, false, true, true, true),
    ] {
        assert_eq!(
            may_see(loopback, forwarded, public, prefix),
            seen,
            "loopback {loopback}, forwarded {forwarded}, public {public}, prefix {prefix}"
        );
    }
}

#[test]
fn metrics_leave_the_main_port_on_demand_and_readiness_stays() {
    let outside = Visitor { peer_is_loopback: false, has_forwarded_headers: true, ..DIRECT };
    let admin = Visitor { listener: Listener::Admin, ..outside };
    let (status, _) = Fake::new().status(Options { metrics_on_main: true, ..Options::default() });
    assert_eq!(status.find("/metrics", None, outside), Some(Page::Metrics));
    let (status, _) = Fake::new().status(Options::default());
    assert_eq!(status.find("/metrics", None, outside), None);
    assert_eq!(status.find("/metrics", None, admin), Some(Page::Metrics));
    assert_eq!(status.find("/ready", None, outside), Some(Page::Ready));
    assert_eq!(status.find("/ready", None, admin), Some(Page::Ready));
    assert_eq!(status.find("/", None, admin), None);
    assert_eq!(status.find("/metrics/", None, admin), None);
}

#[cfg(not(feature = "stub_status"))]
#[test]
fn without_the_feature_the_pages_are_unknown_paths() {
    let (status, _) = Fake::new().status(Options { status_public: true, ..Options::default() });
    for path in ["/status", "/status/", "/status/stream", "/api/v1/streaming/status"] {
        assert_eq!(status.find(path, None, DIRECT), None, "{path}");
    }
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let ready = |fake: Fake| async {
        let (status, _) = fake.status(Options::default());
        let answer = status.respond("/ready", None, DIRECT).await.unwrap();
        (answer.status, body(&answer).to_owned())
    };
    assert_eq!(ready(Fake::new()).await, (200, "ready\n".into()));
    assert_eq!(ready(Fake { database: None, ..Fake::new() }).await.0, 200, "it runs without PostgreSQL");
    let obstacles = vec!["Redis is away".to_owned(), "PostgreSQL is away".to_owned()];
    let away = ready(Fake { obstacles, ..Fake::new() }).await;
    assert_eq!(away, (503, "not ready: Redis is away, PostgreSQL is away\n".into()));
    let stuck = ready(Fake { stuck: vec!["ingest".to_owned()], ..Fake::new() }).await;
    assert_eq!(stuck, (503, "not ready: the thread ingest does not turn\n".into()));
}

#[tokio::test]
async fn a_snapshot_sums_up_the_reactors() {
    let (status, fake) = Fake::new().status(Options::default());
    let now = status.snapshot().await;
    assert_eq!(now.connections.total, 3);
    assert_eq!(now.connections.clients.0, [("websocket", 2), ("eventsource", 1)]);
    assert_eq!(now.messages.ledger.owed, 24);
    assert_eq!(now.messages.ledger.delivered, 14);
    assert!(now.messages.exact);
    assert_eq!(now.messages.difference, 0);
    assert_eq!(now.latency.reading.count, 14);
    assert_eq!(now.slowest.len(), 1);
    assert_eq!(now.slowest[0].client, "0-12-3");
    assert_eq!(now.reactors_silent, 0);
    assert_eq!(*fake.asked.lock().unwrap(), [Wanted { channels: 0, laggards: 10 }; 2]);
}

#[tokio::test]
async fn silent_reactors_are_reported_and_not_waited_for() {
    let gone = Fake { asking: [Asking::Drop, Asking::Answer], ..Fake::new() };
    let (status, _) = gone.status(Options::default());
    let now = status.snapshot().await;
    assert_eq!(now.reactors_silent, 1);
    assert!(!now.messages.exact);
    assert_eq!(now.messages.ledger.owed, 24, "the counters are there whoever answers");

    let hangs = Fake { asking: [Asking::Hang, Asking::Answer], ..Fake::new() };
    let wanted = Wanted { channels: 0, laggards: 1 };
    let reports = probe(&hangs, wanted, Duration::ZERO).await;
    assert!(reports.iter().all(|report| report.reactor == 1), "{reports:?}");
    // The late answer finds nobody and does no harm.
    for probe in hangs.hanging.lock().unwrap().drain(..) {
        probe.answer(ReactorReport::default());
    }
}

#[tokio::test]
async fn who_does_not_wait_for_the_answer_has_asked_all_the_same() {
    let (status, fake) = Fake { asking: [Asking::Hang; 2], ..Fake::new() }.status(Options::default());
    for _ in 0..10 {
        assert!(tokio::time::timeout(Duration::ZERO, status.snapshot()).await.is_err());
    }
    let questions = fake.asked.lock().unwrap().len() / 2;
    assert!(questions < 5, "{questions} rounds of questions for ten who left");
}

#[tokio::test]
async fn who_asks_together_shares_an_answer() {
    let (status, fake) = Fake::new().status(Options::default());
    let (first, second, third) = tokio::join!(status.snapshot(), status.snapshot(), status.snapshot());
    assert!(first.messages.exact && second.messages.exact && third.messages.exact);
    let questions = fake.asked.lock().unwrap().len() / 2;
    assert!(questions < 3, "{questions} rounds of questions for three visitors");
}
