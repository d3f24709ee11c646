//! `/metrics`: the Prometheus text format 0.0.4 (prometheus.io, "Exposition formats").
//!
//! Three groups: the names of Mastodon's Node.js server, all label values there from the start, so that
//! its dashboards go on working, with `METRICS_PREFIX` before them; `process_` with the names that every
//! Prometheus client library uses; `tidegate_` for what only Tidegate knows. Written by hand: every value
//! comes from a [`Snapshot`], so a registry would only be a second copy, and the common crate writes
//! OpenMetrics, whose counters are named otherwise.
//!
//! Bounds: a few hundred lines, whatever the number of clients. Tested by parsing what is written.

use std::fmt::{Display, Write};

use crate::core::counters::{LATENCY_BOUNDS_US, TRANSPORT_LABELS};
use crate::core::stream::StreamKind;
use crate::status::snapshot::{Labelled, Snapshot};

/// What `Content-Type` to send with it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes all metrics; `prefix` stands before the names of the Node.js server.
pub fn write(snapshot: &Snapshot, prefix: &str) -> String {
    let mut out = Text(String::with_capacity(24 * 1024));
    node(&mut out, snapshot, prefix);
    process(&mut out, snapshot);
    connections(&mut out, snapshot);
    messages(&mut out, snapshot);
    redis(&mut out, snapshot);
    stages(&mut out, snapshot);
    reactors(&mut out, snapshot);
    out.0
}

fn node(out: &mut Text, snapshot: &Snapshot, prefix: &str) {
    let name = |name: &str| format!("{prefix}{name}");
    let database = snapshot.database.clone().unwrap_or_default();
    out.gauge(&name("pg_pool_total_connections"), "PostgreSQL connections in the pool", database.total);
    out.gauge(&name("pg_pool_idle_connections"), "PostgreSQL connections without work", database.idle);
    out.gauge(&name("pg_pool_waiting_queries"), "Requests that wait for a connection", database.waiting);
    let clients = name("connected_clients");
    out.family(&clients, "gauge", "Clients connected to the streaming server, by transport");
    out.labelled(&clients, "type", &snapshot.connections.clients);
    let channels = name("connected_channels");
    out.family(&channels, "gauge", "Streams that clients are subscribed to, by transport and name");
    let streams = [&snapshot.connections.websocket_streams, &snapshot.connections.eventsource_streams];
    for (transport, streams) in streams.into_iter().enumerate() {
        for (kind, (channel, count)) in streams.0.iter().enumerate() {
            if is_primed(kind) || snapshot.connections.streams_seen[transport][kind] {
                let labels = [("type", TRANSPORT_LABELS[transport]), ("channel", channel)];
                out.sample(&channels, &labels, count);
            }
        }
    }
    out.gauge(&name("redis_subscriptions"), "Redis channels subscribed to", snapshot.redis.channels);
    out.counter(
        &name("redis_messages_received_total"),
        "Messages received from Redis",
        snapshot.redis.messages,
    );
    let sent = name("messages_sent_total");
    out.family(&sent, "counter", "Messages sent to clients, by transport");
    out.labelled(&sent, "type", &snapshot.messages.delivered);
}

/// The Node.js server shows these streams from the start, and glitch-soc's two once they were used.
fn is_primed(kind: usize) -> bool {
    kind != StreamKind::PublicAllowLocalOnly as usize
        && kind != StreamKind::PublicAllowLocalOnlyMedia as usize
}

fn process(out: &mut Text, snapshot: &Snapshot) {
    let process = &snapshot.process;
    let (user, system) = (process.cpu_user_seconds, process.cpu_system_seconds);
    out.counter("process_cpu_user_seconds_total", "Processor time in user mode, in seconds", user);
    out.counter("process_cpu_system_seconds_total", "Processor time in the kernel, in seconds", system);
    out.counter("process_cpu_seconds_total", "Processor time, in seconds", user + system);
    out.gauge("process_start_time_seconds", "Start, in seconds since 1970", snapshot.started_at);
    out.gauge("process_resident_memory_bytes", "Resident memory", process.resident_bytes);
    out.gauge("process_virtual_memory_bytes", "Virtual memory", process.virtual_bytes);
    out.gauge("process_heap_bytes", "Data segment", process.heap_bytes);
    out.gauge("process_open_fds", "Open file descriptors", process.open_fds);
    out.gauge("process_max_fds", "File descriptors allowed", process.max_fds);
}

fn connections(out: &mut Text, snapshot: &Snapshot) {
    let ready = u8::from(snapshot.obstacles.is_empty());
    out.gauge("tidegate_ready", "Whether newcomers are served, as far as is known without asking", ready);
    out.family("tidegate_build_info", "gauge", "The version that runs; always 1");
    out.sample("tidegate_build_info", &[("version", snapshot.version)], 1);
    out.family("tidegate_clients_opened_total", "counter", "Clients since the start, by transport");
    out.labelled("tidegate_clients_opened_total", "type", &snapshot.connections.opened);
    out.family("tidegate_clients_closed_total", "counter", "Connections of clients that ended, by reason");
    out.labelled("tidegate_clients_closed_total", "reason", &snapshot.closes);
    let lagging = snapshot.connections.lagging;
    out.gauge("tidegate_clients_lagging", "Clients that have messages waiting", lagging);
    let ready = snapshot.connections.ready;
    out.gauge("tidegate_clients_ready", "Clients that go on, or are answered, in the next turn", ready);
    let unfinished = snapshot.connections.unfinished_bytes;
    out.gauge("tidegate_unfinished_bytes", "Bytes of unfinished messages from clients", unfinished);
    let help = "Subscribe messages refused, by reason";
    out.family("tidegate_subscribe_refused_total", "counter", help);
    out.labelled("tidegate_subscribe_refused_total", "reason", &snapshot.connections.subscribe_refused);
    let door = &snapshot.door;
    out.gauge("tidegate_door_connections", "Connections that are no stream yet", door.connections);
    out.counter("tidegate_connections_accepted_total", "Connections accepted", door.accepted);
    out.counter("tidegate_connections_handled_total", "Connections not turned away", door.handled);
    out.counter("tidegate_requests_total", "Requests read", door.requests);
    out.family("tidegate_refused_total", "counter", "Requests and connections refused, by reason");
    out.labelled("tidegate_refused_total", "reason", &door.refused);
}

fn messages(out: &mut Text, snapshot: &Snapshot) {
    let (messages, ledger) = (&snapshot.messages, &snapshot.messages.ledger);
    out.counter("tidegate_messages_owed_total", "Messages owed to subscriptions", ledger.owed);
    out.family("tidegate_messages_delivered_total", "counter", "Messages taken by the kernel, by transport");
    out.labelled("tidegate_messages_delivered_total", "type", &messages.delivered);
    out.family("tidegate_messages_filtered_total", "counter", "Messages withheld from a viewer, by reason");
    out.labelled("tidegate_messages_filtered_total", "reason", &messages.filtered);
    let help = "Messages whose subscription ended first";
    out.counter("tidegate_messages_unsubscribed_total", help, ledger.unsubscribed);
    let help = "Messages whose connection ended first, by the connection's reason";
    out.family("tidegate_messages_closed_total", "counter", help);
    out.labelled("tidegate_messages_closed_total", "reason", &messages.closed);
    out.gauge("tidegate_messages_pending", "Messages that wait for their client", ledger.pending);
    latency(out, snapshot);
    let help = "Lines of the log that nobody took";
    out.counter("tidegate_log_lines_lost_total", help, snapshot.log_lines_lost);
    let output = &snapshot.output;
    out.counter("tidegate_writes_total", "Writes to sockets", output.writes);
    out.counter("tidegate_write_bytes_total", "Bytes taken by sockets", output.write_bytes);
    out.counter("tidegate_writes_blocked_total", "Writes that found a full socket", output.would_block);
}

fn latency(out: &mut Text, snapshot: &Snapshot) {
    let reading = &snapshot.latency.reading;
    let help = "From the read that completed a message to its last byte taken by the kernel";
    out.family("tidegate_latency_seconds", "histogram", help);
    let mut total = 0;
    for (bound, count) in LATENCY_BOUNDS_US.iter().zip(&reading.counts) {
        total += count;
        let bound = seconds(*bound).to_string();
        out.sample("tidegate_latency_seconds_bucket", &[("le", &bound)], total);
    }
    out.sample("tidegate_latency_seconds_bucket", &[("le", "+Inf")], reading.count);
    out.sample("tidegate_latency_seconds_sum", &[], seconds(reading.sum_us));
    out.sample("tidegate_latency_seconds_count", &[], reading.count);
}

fn redis(out: &mut Text, snapshot: &Snapshot) {
    let (redis, gate) = (&snapshot.redis, &snapshot.gate);
    out.gauge("tidegate_redis_connected", "Whether Redis is there", u8::from(redis.connected));
    out.gauge("tidegate_redis_epoch", "Counts the Redis connections", redis.epoch);
    let lost = redis.connections_lost;
    out.counter("tidegate_redis_connections_lost_total", "Redis connections lost", lost);
    out.counter("tidegate_redis_read_bytes_total", "Bytes received from Redis", redis.read_bytes);
    let unread = redis.ring_unread_bytes;
    out.gauge("tidegate_ring_unread_bytes", "Bytes in the ring that were not taken yet", unread);
    let alone = redis.without_subscriber;
    let help = "Messages that nobody was subscribed to any more";
    out.counter("tidegate_messages_without_subscriber_total", help, alone);
    out.family("tidegate_messages_ignored_total", "counter", "Messages that nobody gets, by reason");
    out.labelled("tidegate_messages_ignored_total", "reason", &redis.ignored);
    let help = "Messages skipped because they were too long";
    out.counter("tidegate_messages_too_long_total", help, redis.too_long);
    out.family("tidegate_gaps_total", "counter", "Gaps that clients were told of, by cause");
    out.labelled("tidegate_gaps_total", "cause", &redis.gaps);
    let presence = &snapshot.presence;
    let help = "Presence keys set, refreshes included";
    out.counter("tidegate_presence_keys_set_total", help, presence.keys_set);
    let help = "Attempts to connect or to set presence keys that failed";
    out.counter("tidegate_presence_failures_total", help, presence.failures);
    let help = "How long presence keys have not been set; 0 while they are";
    let failing = presence.failing_ms.unwrap_or(0) as f64 / 1000.0;
    out.gauge("tidegate_presence_failing_seconds", help, failing);
    out.gauge("tidegate_backlog_bytes", "Bytes of undelivered messages", gate.held_bytes);
    out.gauge("tidegate_backlog_high_bytes", "The budget: reading pauses over it", gate.high_bytes);
    let help = "Stalled clients are closed over this";
    out.gauge("tidegate_backlog_evict_bytes", help, gate.evict_bytes);
    out.gauge("tidegate_backlog_low_bytes", "Reading goes on at this", gate.low_bytes);
    out.gauge("tidegate_gate_closed", "Whether reading is paused", u8::from(gate.closed));
    out.counter("tidegate_gate_closes_total", "How often reading was paused", gate.closes);
    let paused = gate.paused_ms as f64 / 1000.0;
    out.counter("tidegate_gate_paused_seconds_total", "How long reading was paused", paused);
    if let Some(headroom) = &snapshot.redis_headroom {
        let help = "Bytes that Redis holds for this server";
        out.gauge("tidegate_redis_output_buffer_bytes", help, headroom.used_bytes);
        let help = "Bytes at which Redis drops this server";
        out.gauge("tidegate_redis_output_buffer_limit_bytes", help, headroom.limit_bytes);
    }
}

fn stages(out: &mut Text, snapshot: &Snapshot) {
    if let Some(database) = &snapshot.database {
        let connected = u8::from(database.connected);
        out.gauge("tidegate_database_connected", "Whether PostgreSQL answers", connected);
        out.gauge(
            "tidegate_database_unencrypted_fallback",
            "Whether connections to PostgreSQL are made without encryption because TLS failed",
            u8::from(database.unencrypted_because.is_some()),
        );
    }
    let Some(audience) = &snapshot.audience else { return };
    let help = "Messages that wait for their audience";
    out.gauge("tidegate_audience_waiting_messages", help, audience.waiting_messages);
    out.gauge("tidegate_audience_waiting_bytes", "Their bytes", audience.waiting_bytes);
    let help = "Bytes that may wait so once PostgreSQL has been away for AUDIENCE_TIMEOUT";
    out.gauge("tidegate_audience_budget_bytes", help, audience.budget_bytes);
    out.counter("tidegate_audience_queries_total", "Questions asked of PostgreSQL", audience.queries);
    let help = "Questions that PostgreSQL did not answer";
    out.counter("tidegate_audience_query_failures_total", help, audience.query_failures);
    let help = "Answers used for a second message";
    out.counter("tidegate_audience_answers_reused_total", help, audience.answers_reused);
    let help = "Public statuses withheld because PostgreSQL did not answer within AUDIENCE_TIMEOUT";
    out.counter("tidegate_audience_timeouts_total", help, audience.timed_out);
    let help = "Work of custom filters, in bytes searched";
    out.counter("tidegate_filter_work_bytes_total", help, audience.filter_work_bytes);
    let help = "Bytes of results of custom filters that are not delivered yet";
    out.gauge("tidegate_filter_result_bytes", help, audience.filter_result_bytes);
    let help = "Accounts with compiled custom filters";
    out.gauge("tidegate_filter_cache_accounts", help, audience.filter_accounts);
    out.gauge("tidegate_filter_cache_bytes", "Bytes of compiled filters", audience.filter_bytes);
    out.gauge("tidegate_filter_cache_budget_bytes", "Bytes they may have", audience.filter_budget_bytes);
}

fn reactors(out: &mut Text, snapshot: &Snapshot) {
    type Value = fn(&crate::status::snapshot::Reactor) -> u64;
    let families: [(&str, &str, &str, Value); 6] = [
        ("tidegate_reactor_clients", "gauge", "Clients of a reactor", |reactor| reactor.clients),
        ("tidegate_reactor_pending", "gauge", "Messages that wait in it", |reactor| reactor.pending),
        ("tidegate_reactor_log_bytes", "gauge", "Bytes of the messages in its log", |reactor| {
            reactor.log_bytes
        }),
        ("tidegate_reactor_log_entries", "gauge", "Messages in its log", |reactor| reactor.log_entries),
        (
            "tidegate_reactor_half_written_bytes",
            "gauge",
            "Bytes of given-up messages that are held until a half-written frame is finished",
            |reactor| reactor.half_written_bytes,
        ),
        ("tidegate_reactor_turns_total", "counter", "Turns of its loop", |reactor| reactor.turns),
    ];
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        for (number, reactor) in snapshot.reactors.iter().enumerate() {
            out.sample(name, &[("reactor", &number.to_string())], value(reactor));
        }
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// The format's lines. Writing to a string cannot fail.
struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn labelled(&mut self, name: &str, label: &str, counts: &Labelled) {
        for (value, count) in &counts.0 {
            self.sample(name, &[(label, value)], count);
        }
    }

    /// Label values are this program's own words and need no escapes.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{text}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

#[cfg(test)]
mod tests;
