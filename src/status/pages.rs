//! The stub_status pages: `/status`, `/status/per_timeline`, `/status/backpressure`, and the page for people.
//!
//! Plain text for people and scrapers (the first four lines of `/status` are those of nginx's stub_status,
//! so its scrapers can read them), JSON for programs. No page has a token, a name or an account: channels
//! that belong to one account are summed up by kind.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;

use crate::core::report::{ChannelGroup, ReactorReport, Wanted};
use crate::core::stream::Channel;
use crate::status::snapshot::{AudienceStats, GateStats, HeadroomStats, Labelled, Slow, Snapshot};
use crate::status::{Answer, Body, LIVE_VIEWS_MAX, Listener, Live, Page, Status, TEXT};

/// Channels on `/status/per_timeline`.
const CHANNELS_SHOWN: usize = 100;

/// Channels asked of each reactor: more, since one that is not among the first of each can be among the
/// first of all.
const CHANNELS_ASKED: usize = 1000;

const JSON: &str = "application/json; charset=utf-8";

/// Inline script and style are the page's own; nothing can be loaded from elsewhere.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src \
     'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// How a page is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Form {
    Text,
    Json,
}

/// The form that an `Accept` header asks for; none is HTML. Public for the fuzz target.
#[doc(hidden)]
pub fn chosen_form(accept: Option<&str>) -> Option<Form> {
    let wanted = Preference::of(accept);
    (wanted.html <= wanted.text.max(wanted.json)).then_some(wanted.plain())
}

pub(crate) fn find(path: &str, accept: Option<&str>, listener: Listener) -> Option<Page> {
    let form = Preference::of(accept).plain();
    Some(match path {
        "/status" if chosen_form(accept).is_none() => Page::ToPeople,
        "/status" => Page::Status(form),
        "/status/" => Page::People,
        "/status/stream" => Page::Live(listener),
        "/status/per_timeline" => Page::PerTimeline(form),
        "/status/backpressure" | "/status/backpresure" => Page::Backpressure(form),
        _ => return None,
    })
}

pub(crate) async fn answer(status: &Arc<Status>, page: Page) -> Answer {
    match page {
        Page::Status(form) => negotiated(form, &status.snapshot().await, status_text),
        Page::Backpressure(form) => {
            negotiated(form, &Backpressure::of(status.snapshot().await), backpressure_text)
        }
        Page::PerTimeline(form) => {
            let wanted = Wanted { channels: CHANNELS_ASKED, laggards: 0 };
            let reports = status.channels.ask(&*status.sources, wanted).await;
            let ingest = status.sources.ingest();
            negotiated(
                form,
                &Timelines::of(&reports, ingest.channels, status.sources.reactors().len()),
                timelines_text,
            )
        }
        Page::ToPeople => {
            let mut answer = Answer::full(303, TEXT, "The page for people is at status/\n");
            // Relative, so that it holds under any prefix that a proxy puts before it.
            answer.headers.push(("location", "status/".into()));
            answer.headers.push(("vary", "accept".into()));
            answer
        }
        Page::People => {
            let mut answer = Answer::full(200, "text/html; charset=utf-8", include_str!("page.html"));
            answer.headers.push(("content-security-policy", CONTENT_SECURITY_POLICY.into()));
            answer.headers.push(("x-content-type-options", "nosniff".into()));
            answer.headers.push(("referrer-policy", "no-referrer".into()));
            answer
        }
        Page::Live(listener) => live(status, listener),
        // The caller answers these.
        Page::Metrics | Page::Ready => Answer::full(404, TEXT, ""),
    }
}

fn live(status: &Arc<Status>, listener: Listener) -> Answer {
    let Ok(place) = Arc::clone(&status.live_views[listener as usize]).try_acquire_owned() else {
        let text = format!("{LIVE_VIEWS_MAX} live views are open; close one of them\n");
        let mut answer = Answer::full(503, TEXT, text);
        answer.headers.push(("retry-after", "10".into()));
        return answer;
    };
    let mut answer = Answer::full(200, "text/event-stream", "");
    // For nginx, which else would hold the events back.
    answer.headers.push(("x-accel-buffering", "no".into()));
    answer.body = Body::Stream(Live::new(Arc::clone(status), place));
    answer
}

fn negotiated<T: Serialize>(form: Form, data: &T, text: fn(&T) -> String) -> Answer {
    let mut answer = match form {
        Form::Text => Answer::full(200, TEXT, text(data)),
        Form::Json => match serde_json::to_vec_pretty(data) {
            Ok(mut json) => {
                json.push(b'\n');
                Answer::full(200, JSON, json)
            }
            Err(error) => Answer::full(500, TEXT, format!("The page could not be written: {error}\n")),
        },
    };
    answer.headers.push(("vary", "accept".into()));
    answer
}

/// How much each form is wanted, by `Accept` (RFC 9110, 12.5.1): quality first, then whether it was named
/// itself, then the place in the list. Higher is better.
#[derive(Clone, Copy, Default)]
struct Preference {
    text: (u32, u8, i32),
    json: (u32, u8, i32),
    html: (u32, u8, i32),
}

impl Preference {
    /// The form of a page that there is not in HTML.
    fn plain(&self) -> Form {
        if self.json > self.text { Form::Json } else { Form::Text }
    }

    fn of(accept: Option<&str>) -> Preference {
        let mut wanted = Preference::default();
        for (place, range) in accept.unwrap_or("*/*").split(',').enumerate() {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or("").to_ascii_lowercase();
            let quality = parts
                .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
                .map_or(1.0, |quality| quality.trim().parse::<f32>().unwrap_or(0.0));
            let quality = (quality.clamp(0.0, 1.0) * 1000.0) as u32;
            let place = -i32::try_from(place).unwrap_or(i32::MAX);
            let mut give = |text: bool, json: bool, html: bool, named: u8| {
                let worth = (quality, named, place);
                let forms = [(text, &mut wanted.text), (json, &mut wanted.json), (html, &mut wanted.html)];
                for (given, form) in forms {
                    // The most specific range decides about a form.
                    if given && named >= form.1 {
                        *form = worth;
                    }
                }
            };
            match name.as_str() {
                "text/plain" => give(true, false, false, 3),
                "application/json" => give(false, true, false, 3),
                "text/html" => give(false, false, true, 3),
                "text/*" => give(true, false, true, 2),
                "application/*" => give(false, true, false, 2),
                "*/*" => give(true, true, true, 1),
                _ => {}
            }
        }
        for form in [&mut wanted.text, &mut wanted.json, &mut wanted.html] {
            // Quality 0 is "not at all", however it was named.
            if form.0 == 0 {
                *form = Default::default();
            }
        }
        wanted
    }
}

fn status_text(now: &Snapshot) -> String {
    let mut out = String::with_capacity(4096);
    let connections = &now.connections;
    let waiting = connections.total.saturating_sub(connections.lagging);
    let active = connections.total + now.door.connections;
    // These four lines have nginx's words and blanks, for programs that read nginx's stub_status.
    let _ = write!(
        out,
        "Active connections: {active} \nserver accepts handled requests\n {} {} {} \n\
         Reading: {} Writing: {} Waiting: {waiting} \n\n",
        now.door.accepted, now.door.handled, now.door.requests, now.door.connections, connections.lagging,
    );
    let _ = writeln!(out, "Tidegate {}, up {}", now.version, duration(now.uptime_ms));
    if now.draining {
        let _ = writeln!(out, "It is shutting down.");
    }
    for obstacle in &now.obstacles {
        let _ = writeln!(out, "NOT READY: {obstacle}");
    }
    let _ = writeln!(out, "\nClients: {} ({})", connections.total, list(&connections.clients));
    let _ = writeln!(out, "  streams over WebSocket: {}", list(&connections.websocket_streams));
    let _ = writeln!(out, "  streams over Server-Sent Events: {}", list(&connections.eventsource_streams));
    let _ = writeln!(out, "  not caught up: {}", connections.lagging);
    let _ = writeln!(out, "Closed, by reason: {}", list(&now.closes));
    let _ = writeln!(out, "Refused, by reason: {}", list(&now.door.refused));
    messages_text(&mut out, now);
    redis_text(&mut out, now);
    gate_text(&mut out, &now.gate, now.redis_headroom.as_ref());
    match &now.database {
        Some(database) => {
            let state = if database.connected { "connected" } else { "AWAY" };
            let (total, idle, waiting) = (database.total, database.idle, database.waiting);
            let _ = writeln!(
                out,
                "PostgreSQL: {state}; {total} connections, {idle} of them idle, {waiting} requests waiting"
            );
            if let Some(cause) = &database.unencrypted_because {
                let _ = writeln!(out, "  connections are NOT encrypted, since TLS failed: {cause}");
            }
        }
        None => out.push_str("PostgreSQL: not used\n"),
    }
    if let Some(audience) = &now.audience {
        audience_text(&mut out, audience);
    }
    let process = &now.process;
    let _ = writeln!(
        out,
        "\nProcess: {} resident, {} of {} file descriptors, {} threads, {:.1} s of processor time",
        bytes(process.resident_bytes),
        process.open_fds,
        process.max_fds,
        process.threads,
        process.cpu_user_seconds + process.cpu_system_seconds,
    );
    if now.log_lines_lost > 0 {
        let _ = writeln!(out, "Log: {} lines lost, since nobody took them", now.log_lines_lost);
    }
    for (number, reactor) in now.reactors.iter().enumerate() {
        let _ = writeln!(
            out,
            "Reactor {number}: {} clients, {} messages pending, log {} in {} messages, {} turns",
            reactor.clients,
            reactor.pending,
            bytes(reactor.log_bytes),
            reactor.log_entries,
            reactor.turns,
        );
    }
    silent_text(&mut out, now.reactors_silent);
    out
}

fn messages_text(out: &mut String, now: &Snapshot) {
    let (messages, ledger) = (&now.messages, &now.messages.ledger);
    let _ = writeln!(
        out,
        "\nMessages: {} received; {} owed = {} delivered + {} filtered + {} unsubscribed + {} closed + {} pending",
        now.redis.messages,
        ledger.owed,
        ledger.delivered,
        ledger.filtered,
        ledger.unsubscribed,
        ledger.closed,
        ledger.pending,
    );
    if messages.exact && messages.difference != 0 {
        let _ = writeln!(out, "  FAULT: this does not add up, by {}", messages.difference);
    }
    let _ = writeln!(out, "  delivered: {}", list(&messages.delivered));
    let _ = writeln!(out, "  filtered: {}", list(&messages.filtered));
    let _ = writeln!(out, "  lost to a close, which each client sees: {}", list(&messages.closed));
    let _ = writeln!(out, "  ignored: {}", list(&now.redis.ignored));
    let _ = writeln!(
        out,
        "  without a subscriber: {}, too long: {}",
        now.redis.without_subscriber, now.redis.too_long
    );
    if let (Some(half), Some(late)) = (now.latency.p50_us, now.latency.p99_us) {
        let _ = writeln!(
            out,
            "  latency since the start: half within {}, 99 % within {}",
            micros(half),
            micros(late)
        );
    }
}

fn redis_text(out: &mut String, now: &Snapshot) {
    let redis = &now.redis;
    let _ = writeln!(
        out,
        "\nRedis: {}; {} channels, connection {}, {} lost, gaps: {}",
        if redis.connected { "connected" } else { "AWAY" },
        redis.channels,
        redis.epoch,
        redis.connections_lost,
        list(&redis.gaps),
    );
    let _ = writeln!(out, "  ring: {} of {} bytes unread", redis.ring_unread_bytes, redis.ring_bytes);
    let presence = &now.presence;
    let _ = writeln!(out, "  presence keys: {} set, {} failures", presence.keys_set, presence.failures);
    if let Some(failing) = presence.failing_ms {
        let error = presence.last_error.as_deref().unwrap_or_default();
        let _ = writeln!(out, "  presence keys: NOT SET for {} ({error})", duration(failing));
    }
}

fn gate_text(out: &mut String, gate: &GateStats, headroom: Option<&HeadroomStats>) {
    let state = match gate.closed_for_ms {
        Some(closed_for) if gate.closed => format!("CLOSED for {}", duration(closed_for)),
        _ if gate.closed => "CLOSED".to_owned(),
        _ => "open".to_owned(),
    };
    let share = gate.held_bytes as f64 * 100.0 / gate.high_bytes.max(1) as f64;
    let _ = writeln!(
        out,
        "Gate: {state}; {} of {} held ({share:.1} %), opens again at {}",
        bytes(gate.held_bytes),
        bytes(gate.high_bytes),
        bytes(gate.low_bytes),
    );
    let _ = writeln!(out, "  closed {} times, {} in all", gate.closes, duration(gate.paused_ms));
    if let Some(headroom) = headroom {
        let _ = writeln!(
            out,
            "  Redis holds {} of {} for us",
            bytes(headroom.used_bytes),
            bytes(headroom.limit_bytes),
        );
    }
}

fn audience_text(out: &mut String, audience: &AudienceStats) {
    let _ = writeln!(
        out,
        "Audience: {} messages wait ({}); {} questions, {} failed, {} answers used twice, {} statuses withheld \
         for want of an answer",
        audience.waiting_messages,
        bytes(audience.waiting_bytes),
        audience.queries,
        audience.query_failures,
        audience.answers_reused,
        audience.timed_out,
    );
    let _ = writeln!(
        out,
        "  custom filters: {} accounts, {} of {}; {} searched, {} of results undelivered",
        audience.filter_accounts,
        bytes(audience.filter_bytes),
        bytes(audience.filter_budget_bytes),
        bytes(audience.filter_work_bytes),
        bytes(audience.filter_result_bytes),
    );
}

fn silent_text(out: &mut String, silent: usize) {
    if silent > 0 {
        let _ = writeln!(out, "{silent} reactors did not answer within a second");
    }
}

/// `/status/backpressure`
#[derive(Serialize)]
struct Backpressure {
    gate: GateStats,
    redis_headroom: Option<HeadroomStats>,
    redis_connected: bool,
    ring_unread_bytes: u64,
    ring_bytes: u64,
    audience: Option<AudienceStats>,
    log_bytes: u64,
    log_messages: u64,
    pending: u64,
    lagging: u64,
    slowest: Vec<Slow>,
    closes: Labelled,
    reactors_silent: usize,
}

impl Backpressure {
    fn of(now: Snapshot) -> Backpressure {
        Backpressure {
            log_bytes: now.reactors.iter().map(|reactor| reactor.log_bytes).sum(),
            log_messages: now.reactors.iter().map(|reactor| reactor.log_entries).sum(),
            pending: now.messages.ledger.pending,
            lagging: now.connections.lagging,
            gate: now.gate,
            redis_headroom: now.redis_headroom,
            redis_connected: now.redis.connected,
            ring_unread_bytes: now.redis.ring_unread_bytes,
            ring_bytes: now.redis.ring_bytes,
            audience: now.audience,
            slowest: now.slowest,
            closes: now.closes,
            reactors_silent: now.reactors_silent,
        }
    }
}

fn backpressure_text(now: &Backpressure) -> String {
    let mut out = String::with_capacity(2048);
    gate_text(&mut out, &now.gate, now.redis_headroom.as_ref());
    let _ = writeln!(out, "Ring: {} of {} bytes unread", now.ring_unread_bytes, now.ring_bytes);
    if let Some(audience) = &now.audience {
        audience_text(&mut out, audience);
    }
    let (bytes_held, messages) = (bytes(now.log_bytes), now.log_messages);
    let _ = writeln!(out, "Logs: {bytes_held} in {messages} messages; {} deliveries pending", now.pending);
    let _ = writeln!(out, "Closed, by reason: {}", list(&now.closes));
    let _ = writeln!(out, "\nClients that are not caught up: {}", now.lagging);
    if !now.slowest.is_empty() {
        let _ = writeln!(
            out,
            "{:<22} {:<12} {:>10} {:>11} {:>12} {:>12}",
            "client", "transport", "messages", "bytes", "oldest", "progress"
        );
    }
    for slow in &now.slowest {
        let _ = writeln!(
            out,
            "{:<22} {:<12} {:>10} {:>11} {:>9} ms {:>9} ms",
            slow.client, slow.transport, slow.messages, slow.bytes, slow.oldest_ms, slow.progress_ms
        );
    }
    silent_text(&mut out, now.reactors_silent);
    out
}

/// `/status/per_timeline`
#[derive(Serialize)]
struct Timelines {
    /// Channels subscribed to at Redis, system channels included.
    redis_channels: u64,
    /// Clients by kind of channel.
    groups: Labelled,
    /// Public channels and hashtags, most clients first.
    timelines: Vec<Timeline>,
    /// Whether the list was cut off.
    more: bool,
    reactors_silent: usize,
}

#[derive(Serialize)]
struct Timeline {
    channel: String,
    clients: u64,
}

impl Timelines {
    fn of(reports: &[ReactorReport], redis_channels: u64, reactors: usize) -> Timelines {
        let mut groups = ChannelGroup::LABELS.map(|label| (label, 0));
        let mut clients: HashMap<&Channel, u64> = HashMap::new();
        for report in reports {
            for (group, count) in groups.iter_mut().zip(report.groups) {
                group.1 += count;
            }
            for (channel, count) in &report.channels {
                *clients.entry(channel).or_default() += u64::from(*count);
            }
        }
        let mut timelines: Vec<Timeline> = clients
            .into_iter()
            .map(|(channel, clients)| Timeline { channel: name(channel), clients })
            .collect();
        timelines.sort_by(|a, b| b.clients.cmp(&a.clients).then_with(|| a.channel.cmp(&b.channel)));
        let more = timelines.len() > CHANNELS_SHOWN || reports.iter().any(|report| report.more_channels);
        timelines.truncate(CHANNELS_SHOWN);
        Timelines {
            redis_channels,
            groups: Labelled(groups.to_vec()),
            timelines,
            more,
            reactors_silent: reactors.saturating_sub(reports.len()),
        }
    }
}

fn name(channel: &Channel) -> String {
    // A tag is whatever a client asked for: nothing in it may break the lines or a terminal.
    channel.to_string().chars().filter(|letter| !letter.is_control()).collect()
}

fn timelines_text(now: &Timelines) -> String {
    let mut out = String::with_capacity(4096);
    let _ = writeln!(out, "Channels subscribed to at Redis: {}", now.redis_channels);
    let _ = writeln!(out, "Clients by kind of channel: {}", list(&now.groups));
    let _ = writeln!(out, "\nclients  channel");
    for timeline in &now.timelines {
        let _ = writeln!(out, "{:>7}  {}", timeline.clients, timeline.channel);
    }
    if now.more {
        let _ = writeln!(out, "    ...  and more with fewer clients");
    }
    silent_text(&mut out, now.reactors_silent);
    out
}

/// `a 1, b 2`, zeros left out.
fn list(counts: &Labelled) -> String {
    let counts: Vec<String> = counts
        .0
        .iter()
        .filter(|entry| entry.1 > 0)
        .map(|(label, count)| format!("{label} {count}"))
        .collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
}

fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..0x0010_0000 => format!("{:.1} KiB", count as f64 / 1024.0),
        0x0010_0000..0x4000_0000 => format!("{:.1} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", count as f64 / 1_073_741_824.0),
    }
}

fn micros(count: f64) -> String {
    if count < 1000.0 { format!("{count:.0} µs") } else { format!("{:.1} ms", count / 1000.0) }
}

fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{:.1} s", millis as f64 / 1000.0),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests;
