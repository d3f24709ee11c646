//! The log: lines on standard output, for people or as JSON, and a brake for repeats.
//!
//! Levels have pino's names (`fatal` shows what `error` shows). Modules of other crates speak from `warn` up;
//! `RUST_LOG` wins over everything. The `log` crate is not bridged on purpose: the PostgreSQL client logs the
//! parameters of its queries there, which hold access tokens.
//!
//! JSON has one object a line with pino's keys: `level`, `time` (milliseconds since 1970), `pid`, `name`,
//! `msg`, then the event's fields under their own names.
//!
//! No thread that serves waits for the log: lines go through a bounded queue to a thread of their own ([`output`]).
//! A line that cannot be written is counted, and standard error tells so, with the same brake. Panics are lines of
//! the log, too.
//!
//! The brake is pure ([`Repeat`]: time goes in, a verdict comes out), with a wrapper that has a clock and can
//! stand in a `static` ([`Limited`]).

mod output;

use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Log, LogFormat, LogLevel};

pub use output::{flush, last_words, lines_lost, print};

/// Starts logging to standard output, for the whole process. The error says that it has been started before.
pub fn init(log: &Log) -> Result<(), String> {
    let colours = std::io::IsTerminal::is_terminal(&std::io::stdout());
    tracing::subscriber::set_global_default(subscriber(log, output::Output, colours))
        .map_err(|error| error.to_string())?;
    output::start();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!("thread {} panicked: {panic}", thread.name().unwrap_or("without a name"));
    }));
    Ok(())
}

/// Whether text can stand in `RUST_LOG`.
pub fn is_filter(text: &str) -> bool {
    parse_filter(text).is_some()
}

/// Reads `RUST_LOG`. Blanks around its commas are removed first: tracing-subscriber 0.3 would count them as part
/// of a module's name, and fails over those that have more than one byte.
fn parse_filter(text: &str) -> Option<EnvFilter> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    EnvFilter::builder().parse(parts.join(",")).ok()
}

/// Keeps a message that repeats from filling the log: at most one per interval, which then says how many were
/// left out.
#[derive(Clone, Debug)]
pub struct Repeat {
    interval: Duration,
    next: Duration,
    skipped: u64,
}

impl Repeat {
    /// Lets one message through per `interval`.
    pub const fn every(interval: Duration) -> Repeat {
        Repeat { interval, next: Duration::ZERO, skipped: 0 }
    }

    /// Whether to log now: then how many messages were left out since the last one. `now` is on any clock
    /// that does not go back.
    pub fn allow(&mut self, now: Duration) -> Option<u64> {
        if now < self.next {
            self.skipped = self.skipped.saturating_add(1);
            return None;
        }
        self.next = now.saturating_add(self.interval);
        Some(std::mem::take(&mut self.skipped))
    }
}

/// A [`Repeat`] with the system's clock, shared by threads.
#[derive(Debug)]
pub struct Limited {
    inner: Mutex<(Option<Instant>, Repeat)>,
}

impl Limited {
    /// Lets one message through per `interval`.
    pub const fn every(interval: Duration) -> Limited {
        Limited { inner: Mutex::new((None, Repeat::every(interval))) }
    }

    /// Whether to log now: then how many messages were left out since the last one.
    pub fn allow(&self) -> Option<u64> {
        let mut guard = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (start, repeat) = &mut *guard;
        let start = start.get_or_insert_with(Instant::now);
        repeat.allow(start.elapsed())
    }
}

fn filter(log: &Log) -> EnvFilter {
    if let Some(filter) = log.filter.as_deref().and_then(parse_filter) {
        return filter;
    }
    // The pool says of each connection that it was lost; that PostgreSQL is lost is a line of ours, once.
    EnvFilter::new(match log.level {
        LogLevel::Trace => "warn,deadpool.postgres=error,tidegate=trace",
        LogLevel::Debug => "warn,deadpool.postgres=error,tidegate=debug",
        LogLevel::Info => "warn,deadpool.postgres=error,tidegate=info",
        LogLevel::Warn => "warn,deadpool.postgres=error",
        LogLevel::Error | LogLevel::Fatal => "error",
    })
}

fn subscriber<W>(log: &Log, writer: W, colours: bool) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(log))
        .with_writer(writer)
        // It would be a line on standard error for each line lost, and a panic where that cannot be written either.
        .log_internal_errors(false)
        .with_ansi(colours);
    match log.format {
        LogFormat::Text => Box::new(builder.with_target(false).finish()),
        LogFormat::Json => Box::new(builder.with_ansi(false).event_format(Json).finish()),
    }
}

struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::TRACE => "trace",
            Level::DEBUG => "debug",
            Level::INFO => "info",
            Level::WARN => "warn",
            Level::ERROR => "error",
        };
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let mut fields = JsonFields::default();
        event.record(&mut fields);
        let (pid, message) = (std::process::id(), json_text(&fields.message));
        write!(out, r#"{{"level":"{level}","time":{time},"pid":{pid},"name":"streaming","msg":{message}"#)?;
        writeln!(out, "{}}}", fields.rest)
    }
}

#[derive(Default)]
struct JsonFields {
    message: String,
    rest: String,
}

impl JsonFields {
    fn add(&mut self, field: &Field, value: &str) {
        // Keys must not come twice.
        let taken = matches!(field.name(), "level" | "time" | "pid" | "name" | "msg");
        let name = json_text(field.name().strip_prefix("r#").unwrap_or(field.name()));
        let name = if taken { json_text(&format!("{}_", field.name())) } else { name };
        let _ = write!(self.rest, ",{name}:{value}");
    }
}

impl Visit for JsonFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" { self.message = text } else { self.add(field, &json_text(&text)) }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned()
        } else {
            self.add(field, &json_text(value))
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        let text = if value.is_finite() { value.to_string() } else { "null".to_owned() };
        self.add(field, &text);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, if value { "true" } else { "false" });
    }
}

fn json_text(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: Log, action: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        tracing::subscriber::with_default(subscriber(&log, move || writer.clone(), false), action);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn log(level: LogLevel, format: LogFormat) -> Log {
        Log { level, format, filter: None }
    }

    #[test]
    fn json_lines_are_objects_with_pinos_keys_and_the_events_fields() {
        let text = logged(log(LogLevel::Info, LogFormat::Json), || {
            tracing::info!(clients = 3, name = "a\"b\n", good = true, error = %"x", "Redis is {}", "back\u{1}");
            tracing::debug!("not this");
        });
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line["level"], "info");
        assert_eq!(line["msg"], "Redis is back\u{1}");
        assert_eq!(line["name"], "streaming");
        assert_eq!(line["name_"], "a\"b\n");
        assert_eq!(line["clients"], 3);
        assert_eq!(line["good"], true);
        assert_eq!(line["error"], "x");
        assert!(line["time"].as_u64().unwrap() > 1_700_000_000_000);
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn text_lines_show_level_message_and_fields() {
        let text = logged(log(LogLevel::Debug, LogFormat::Text), || {
            tracing::warn!(address = "[::1]:4000", "something");
            tracing::debug!("also this");
        });
        assert!(text.contains("WARN something address=\"[::1]:4000\""), "{text}");
        assert!(text.contains("DEBUG also this"), "{text}");
    }

    #[test]
    fn fatal_shows_errors_only_and_a_filter_wins() {
        let speak = || {
            tracing::error!("one");
            tracing::warn!("two");
        };
        assert_eq!(logged(log(LogLevel::Fatal, LogFormat::Text), speak).lines().count(), 1);
        let filtered = Log { filter: Some("off".into()), ..log(LogLevel::Trace, LogFormat::Text) };
        assert_eq!(logged(filtered, speak), "");
        assert!(is_filter("tidegate::redis=trace,info"));
        assert!(!is_filter("a=b=c"));
        // Blanks are no part of a module's name; found by the fuzz target `env`: this one ended the process.
        assert!(!is_filter("info,\u{3000}a=b=c"));
        let spaced = Log {
            filter: Some("warn, tidegate=error\u{2003}".into()),
            ..log(LogLevel::Trace, LogFormat::Text)
        };
        assert_eq!(logged(spaced, speak).lines().count(), 1);
    }

    #[test]
    fn repeats_are_counted_and_left_out() {
        let ms = Duration::from_millis;
        let mut repeat = Repeat::every(ms(100));
        let verdicts: Vec<_> = [0, 0, 50, 99, 100, 150, 500, 501].map(|at| repeat.allow(ms(at))).into();
        assert_eq!(verdicts, [Some(0), None, None, None, Some(3), None, Some(1), None]);

        let limited = Limited::every(Duration::from_secs(3600));
        assert_eq!((limited.allow(), limited.allow()), (Some(0), None));
    }
}
