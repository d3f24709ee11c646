//! The receiver of traces, where there is to be one. Without it the server serves, so it is no failure.

use std::time::Instant;

use super::Report;
use crate::config::Config;
use crate::telemetry::{Fault, probe};

/// Not to be called within a runtime.
pub(super) fn check(report: &mut Report<'_>, config: &Config) {
    let Some(traces) = &config.traces else { return };
    let about = format!("Traces ({})", traces.variable);
    let begun = Instant::now();
    match probe(traces, &config.tls) {
        Ok(place) => {
            let named = traces.resource.iter().find(|(name, _)| name == "service.name");
            let headers: Vec<&str> = traces.headers.iter().map(|(name, _)| name.as_str()).collect();
            report.ok(
                &about,
                format_args!(
                    "{place} takes them, asked in {:.1} ms, as {}{}{}",
                    begun.elapsed().as_secs_f64() * 1000.0,
                    named.map_or("", |(_, name)| name),
                    if headers.is_empty() { "" } else { ", with the headers " },
                    headers.join(", "),
                ),
            );
        }
        Err(Fault::Setup(text)) => report.fail(&about, text),
        Err(Fault::Receiver(text)) => report.warn(&about, text),
    }
}
