use std::collections::{HashMap, HashSet};

use super::*;
use crate::core::counters::{ReactorCounters, add};
use crate::core::event::Transport;
use crate::status::tests::{DIRECT, Fake, body};
use crate::status::{Options, Process, Snapshot};

fn written(fake: &Fake, prefix: &str) -> String {
    let process = Process::starting();
    write(&Snapshot::assemble(fake, process.read(), process.started(), None), prefix)
}

/// Reads the format as its definition has it: every sample belongs to a family that was announced right
/// before with HELP and TYPE, names are legal, no series comes twice, values are numbers.
fn parse(text: &str) -> HashMap<String, f64> {
    let mut families = HashSet::new();
    let (mut name, mut kind) = (String::new(), String::new());
    let mut samples = HashMap::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            name = rest.split_once(' ').expect("a help text").0.to_owned();
            let legal = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
            assert!(name.chars().all(legal) && !name.starts_with(|first: char| first.is_ascii_digit()));
            assert!(families.insert(name.clone()), "{name} is announced twice");
            kind.clear();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (of, what) = rest.split_once(' ').unwrap();
            assert_eq!(of, name);
            assert!(["gauge", "counter", "histogram"].contains(&what));
            assert_eq!(what == "counter", name.ends_with("_total"), "{name} is a {what}");
            kind = what.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let of = series.split('{').next().unwrap();
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| of == format!("{name}{suffix}")), "{line} under {name}");
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
        }
    }
    samples
}

#[test]
fn the_names_of_the_node_server_are_there_from_the_start() {
    let fake = Fake { reactors: vec![std::sync::Arc::new(ReactorCounters::default())], ..Fake::new() };
    let samples = parse(&written(&fake, ""));
    for transport in ["websocket", "eventsource"] {
        assert_eq!(samples[&format!("connected_clients{{type=\"{transport}\"}}")], 0.0);
        assert_eq!(samples[&format!("messages_sent_total{{type=\"{transport}\"}}")], 0.0);
        for channel in [
            "system",
            "user",
            "user:notification",
            "list",
            "direct",
            "public",
            "public:media",
            "public:local",
            "public:local:media",
            "public:remote",
            "public:remote:media",
            "hashtag",
            "hashtag:local",
        ] {
            let series = format!("connected_channels{{type=\"{transport}\",channel=\"{channel}\"}}");
            assert_eq!(samples[&series], 0.0);
        }
    }
    assert_eq!(samples.keys().filter(|series| series.starts_with("connected_channels")).count(), 26);
    for name in [
        "redis_subscriptions",
        "redis_messages_received_total",
        "pg_pool_total_connections",
        "pg_pool_idle_connections",
        "pg_pool_waiting_queries",
        "process_cpu_user_seconds_total",
        "process_cpu_system_seconds_total",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_heap_bytes",
        "process_open_fds",
        "process_max_fds",
    ] {
        assert!(samples.contains_key(name), "{name}");
    }
    assert!(!samples.keys().any(|series| series.starts_with("nodejs_")));
}

#[test]
fn figures_reach_their_series() {
    let samples = parse(&written(&Fake::new(), ""));
    for (series, value) in [
        ("connected_clients{type=\"websocket\"}", 2.0),
        ("connected_channels{type=\"websocket\",channel=\"system\"}", 4.0),
        ("connected_channels{type=\"websocket\",channel=\"user\"}", 2.0),
        ("connected_channels{type=\"eventsource\",channel=\"public:local\"}", 1.0),
        ("messages_sent_total{type=\"eventsource\"}", 4.0),
        ("redis_subscriptions", 9.0),
        ("pg_pool_idle_connections", 4.0),
        ("tidegate_clients_closed_total{reason=\"too_slow\"}", 1.0),
        ("tidegate_clients_closed_total{reason=\"gap\"}", 0.0),
        ("tidegate_messages_owed_total", 24.0),
        ("tidegate_messages_filtered_total{reason=\"language\"}", 1.0),
        ("tidegate_messages_closed_total{reason=\"too_slow\"}", 6.0),
        ("tidegate_messages_pending", 3.0),
        ("tidegate_gate_closed", 1.0),
        ("tidegate_gate_paused_seconds_total", 3.456),
        ("tidegate_redis_output_buffer_limit_bytes", 33_554_432.0),
        ("tidegate_reactor_clients{reactor=\"1\"}", 1.0),
        ("tidegate_refused_total{reason=\"redis_away\"}", 0.0),
    ] {
        assert_eq!(samples[series], value, "{series}");
    }
}

#[test]
fn the_prefix_stands_before_the_node_names_alone() {
    let plain = parse(&written(&Fake::new(), ""));
    let prefixed = parse(&written(&Fake::new(), "mastodon_streaming_"));
    assert_eq!(plain.len(), prefixed.len());
    for series in plain.keys() {
        let own = series.starts_with("tidegate_") || series.starts_with("process_");
        let expected = if own { series.clone() } else { format!("mastodon_streaming_{series}") };
        assert!(prefixed.contains_key(&expected), "{expected}");
    }
}

#[test]
fn the_latency_histogram_is_cumulative() {
    let text = written(&Fake::new(), "");
    let buckets: Vec<(f64, u64)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("tidegate_latency_seconds_bucket{le=\""))
        .map(|rest| rest.split_once("\"} ").unwrap())
        .map(|(bound, count)| (bound.parse().unwrap(), count.parse().unwrap()))
        .collect();
    assert_eq!(buckets.first().unwrap().0, 0.00005);
    assert_eq!(buckets.last().unwrap(), &(f64::INFINITY, 14));
    assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{buckets:?}");
    assert!(buckets.contains(&(0.0003, 10)), "{buckets:?}");
    let samples = parse(&text);
    assert_eq!(samples["tidegate_latency_seconds_count"], 14.0);
    assert!((samples["tidegate_latency_seconds_sum"] - 0.0145).abs() < 1e-9);
}

#[test]
fn the_local_only_streams_of_glitch_soc_stay_once_they_were_used() {
    let fake = Fake::new();
    let series = "connected_channels{type=\"websocket\",channel=\"public:allow_local_only\"}";
    assert!(!parse(&written(&fake, "")).contains_key(series));
    fake.reactors[0].subscription_opened(Transport::WebSocket, StreamKind::PublicAllowLocalOnly);
    assert_eq!(parse(&written(&fake, ""))[series], 1.0);
    fake.reactors[0].subscription_ended(Transport::WebSocket, StreamKind::PublicAllowLocalOnly);
    assert_eq!(parse(&written(&fake, ""))[series], 0.0);
}

#[test]
fn without_a_database_its_pool_is_empty() {
    let samples = parse(&written(&Fake { database: None, ..Fake::new() }, ""));
    assert_eq!(samples["pg_pool_total_connections"], 0.0);
    assert!(!samples.contains_key("tidegate_database_connected"));
}

#[tokio::test]
async fn metrics_go_out_as_text_0_0_4_and_never_ask_a_reactor() {
    let (status, fake) = Fake::new().status(Options { metrics_on_main: true, ..Options::default() });
    add(&fake.reactors[0].turns, 1);
    let answer = status.respond("/metrics", Some("application/openmetrics-text"), DIRECT).await.unwrap();
    assert_eq!((answer.status, answer.content_type), (200, "text/plain; version=0.0.4; charset=utf-8"));
    assert!(answer.headers.contains(&("cache-control", "private, no-store".into())));
    assert!(answer.cross_origin);
    parse(body(&answer));
    assert!(fake.asked.lock().unwrap().is_empty());
}

/// Prometheus' own judge, where it is installed (Debian: prometheus).
#[test]
fn promtool_finds_nothing_wrong() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("left out: promtool is not installed");
        return;
    };
    child.stdin.take().unwrap().write_all(written(&Fake::new(), "").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}");
}
