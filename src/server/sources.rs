//! What the status room is told: the rooms' own counters, read in one place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::clock::Clock;
use crate::core::counters::ReactorCounters;
use crate::core::event::Ignored;
use crate::core::gate::Gate;
use crate::core::handover::Delivery;
use crate::core::mailbox::Mailbox;
use crate::core::report::Probe;
use crate::db::{Pool, StageStats};
use crate::door::{Door, Reason};
use crate::limits::{RING_BYTES, THREAD_PATIENCE};
use crate::reactor::Socket;
use crate::redis::headroom::{Headroom, Held};
use crate::redis::stats;
use crate::server::threads::Threads;
use crate::status::snapshot::{
    AudienceStats, DatabaseStats, DoorStats, GateStats, HeadroomStats, IngestStats, Labelled, PresenceStats,
    Stuck,
};

/// Handles on everything that is counted.
pub(super) struct Sources {
    pub clock: Clock,
    pub counters: Vec<Arc<ReactorCounters>>,
    pub mailboxes: Vec<Arc<Mailbox<Delivery<Socket>>>>,
    pub ingest: Arc<stats::IngestStats>,
    pub gate: Arc<Gate>,
    pub headroom: Arc<Headroom>,
    pub presence: Arc<stats::PresenceStats>,
    pub door: Arc<std::sync::OnceLock<Arc<Door<Socket>>>>,
    pub pool: Option<Pool>,
    /// What PostgreSQL refuses newcomers.
    pub database_obstacle: Arc<stats::LastError>,
    /// The audience stage and its own connections.
    pub audience: Option<(Arc<StageStats>, Pool)>,
    pub draining: Arc<AtomicBool>,
    pub threads: Arc<Threads>,
}

impl crate::status::Sources for Sources {
    fn reactors(&self) -> &[Arc<ReactorCounters>] {
        &self.counters
    }

    fn probe(&self, reactor: usize, probe: Probe) {
        if let Some(mailbox) = self.mailboxes.get(reactor) {
            mailbox.push(Delivery::Probe(probe));
        }
    }

    fn ingest(&self) -> IngestStats {
        let ingest = &self.ingest;
        let ignored = |reason| ingest.ignored(reason).load(Relaxed);
        let epoch = ingest.epoch.load(Relaxed);
        let lost = epoch.saturating_sub(u64::from(ingest.connected.load(Relaxed)));
        let output_limits = ingest.output_limits.load(Relaxed);
        let presence_gaps = ingest.presence_gaps.load(Relaxed);
        let too_long = ingest.too_long.load(Relaxed);
        IngestStats {
            connected: ingest.live.load(Relaxed),
            epoch: u32::try_from(epoch).unwrap_or(u32::MAX),
            channels: ingest.channels.load(Relaxed),
            messages: ingest.messages.load(Relaxed),
            without_subscriber: ingest.unsubscribed_messages.load(Relaxed)
                + ingest.unattached_messages.load(Relaxed),
            ignored: Labelled(vec![
                ("not_json", ignored(Ignored::NotJson)),
                ("incomplete", ignored(Ignored::Incomplete)),
                ("unknown_system_event", ignored(Ignored::UnknownSystemEvent)),
            ]),
            too_long,
            read_bytes: ingest.bytes.load(Relaxed),
            ring_unread_bytes: ingest.unread_bytes.load(Relaxed),
            ring_bytes: RING_BYTES as u64,
            connections_lost: lost,
            gaps: Labelled(vec![
                ("connection_lost", lost.saturating_sub(output_limits + presence_gaps)),
                ("redis_output_limit", output_limits),
                ("message_too_long", too_long),
                ("presence_keys", presence_gaps),
            ]),
        }
    }

    fn gate(&self) -> GateStats {
        let now = self.clock.now();
        let since = self.ingest.paused_since_us.load(Relaxed);
        GateStats {
            held_bytes: self.gate.held_bytes() as u64,
            high_bytes: self.gate.high_bytes() as u64,
            evict_bytes: self.gate.evict_bytes() as u64,
            low_bytes: self.gate.low_bytes() as u64,
            closed: self.gate.is_closed(),
            closed_for_ms: (since > 0).then(|| (now.as_micros() as u64).saturating_sub(since) / 1000),
            closes: self.ingest.pauses.load(Relaxed),
            paused_ms: self.ingest.paused_total(now).as_millis() as u64,
        }
    }

    fn headroom(&self) -> Option<HeadroomStats> {
        let reading = self.headroom.read();
        match reading.held {
            Held::Bytes(used_bytes) => {
                Some(HeadroomStats { used_bytes, limit_bytes: reading.limits.hard_bytes })
            }
            Held::Unknown | Held::Gone | Held::Denied => None,
        }
    }

    fn door(&self) -> DoorStats {
        let Some(door) = self.door.get() else { return DoorStats::default() };
        let counters = door.counters();
        let accepted = counters.accepted.load(Relaxed);
        DoorStats {
            connections: counters.at_door.load(Relaxed) as u64,
            accepted,
            handled: accepted.saturating_sub(counters.refused(Reason::Evicted)),
            requests: counters.requests.load(Relaxed),
            refused: Labelled(
                Reason::ALL.iter().map(|reason| (reason.label(), counters.refused(*reason))).collect(),
            ),
        }
    }

    fn database(&self) -> Option<DatabaseStats> {
        let pool = self.pool.as_ref()?;
        let mut shown = DatabaseStats {
            connected: pool.is_up(),
            obstacle: self.database_obstacle.read(),
            unencrypted_because: pool.fallback().map(|cause| cause.to_string()),
            ..DatabaseStats::default()
        };
        for pool in [pool].into_iter().chain(self.audience.as_ref().map(|(_, pool)| pool)) {
            let stats = pool.stats();
            shown.total += stats.total as u64;
            shown.idle += stats.idle as u64;
            shown.waiting += stats.waiting as u64;
        }
        Some(shown)
    }

    fn audience(&self) -> Option<AudienceStats> {
        let (stats, _) = self.audience.as_ref()?;
        Some(AudienceStats {
            waiting_messages: stats.waiting_messages.load(Relaxed),
            waiting_bytes: stats.waiting_bytes.load(Relaxed),
            budget_bytes: stats.budget_bytes.load(Relaxed),
            queries: stats.queries.load(Relaxed),
            query_failures: stats.query_failures.load(Relaxed),
            answers_reused: stats.answers_reused.load(Relaxed),
            timed_out: stats.timed_out.load(Relaxed),
            filter_work_bytes: stats.filter_work_bytes.load(Relaxed),
            filter_result_bytes: stats.filter_result_bytes.load(Relaxed),
            filter_accounts: stats.filter_accounts.load(Relaxed),
            filter_bytes: stats.filter_bytes.load(Relaxed),
            filter_budget_bytes: stats.filter_budget_bytes.load(Relaxed),
        })
    }

    fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.draining.load(Relaxed) {
            obstacles.push("the server is shutting down".to_owned());
        }
        if !self.ingest.live.load(Relaxed) {
            obstacles.push("Redis is away".to_owned());
        }
        obstacles.extend(self.ingest.obstacle.read());
        // Without a subscriber connection there is none for presence keys either.
        if self.ingest.connected.load(Relaxed) {
            obstacles.extend(self.presence.obstacle.read());
        }
        if let Some(database) = self.database() {
            match database.obstacle {
                Some(obstacle) => obstacles.push(obstacle),
                None if !database.connected => obstacles.push("PostgreSQL is away".to_owned()),
                None => {}
            }
        }
        obstacles
    }

    fn presence(&self) -> PresenceStats {
        let stats = &self.presence;
        PresenceStats {
            connected: stats.connected.load(Relaxed),
            keys_set: stats.keys_set.load(Relaxed),
            failures: stats.failures.load(Relaxed),
            failing_ms: stats.failing(self.clock.now()).map(|time| time.as_millis() as u64),
            last_error: stats.last_error.read(),
        }
    }

    fn stuck(&self) -> Stuck<'_> {
        Box::pin(self.threads.stuck(THREAD_PATIENCE))
    }

    fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }
}
