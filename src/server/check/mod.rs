//! `tidegate check`: tries everything that the configuration names, and says of each thing whether it serves,
//! and if not what to do.
//!
//! One line per thing: `ok`, `warn` (works, but look at it) or `FAIL` (the server would not start, or would
//! not serve). Passwords are in no line. Nothing is changed, but for one presence key of no account that
//! Redis drops after a second, and a stale socket file, which a start would replace too. Nothing is started either:
//! systemd is asked before an address is tried ([`units`]).
//!
//! Bounds: each server has [`PATIENCE`] to answer, the receiver of traces its own time
//! (`OTEL_EXPORTER_OTLP_TIMEOUT`). Tested against real servers in `tests/e2e_check.rs`, a real systemd in
//! `tests/systemd.rs`, that receiver in `tests/e2e_otel_receiver.rs`.

mod addresses;
mod database;
mod files;
mod listen;
mod redis;
#[cfg(feature = "otel")]
mod traces;
mod units;

use std::fmt;
use std::io::Write;
use std::time::Duration;

use crate::config::{Config, Env, Environment, Mode, variables};

/// How long one server has for all that is asked of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// How it ended: an exit status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A start would serve; there may be warnings. Exit status 0.
    Ready,
    /// Something would not work. Exit status 1.
    Fails,
    /// The settings are refused, so nothing was tried. Exit status 2.
    Refused,
}

impl Outcome {
    /// The exit status.
    pub fn code(self) -> u8 {
        match self {
            Outcome::Ready => 0,
            Outcome::Fails => 1,
            Outcome::Refused => 2,
        }
    }
}

/// Tries everything and writes a verdict per line to `out`.
pub fn check(env: &Env, mode: Mode, out: &mut dyn Write) -> Outcome {
    let mut report = Report { out, warnings: 0, failures: 0 };
    let config = settings(&mut report, env, mode);
    let outcome = match config {
        None => Outcome::Refused,
        Some(config) => {
            files::check(&mut report, &config);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => {
                    runtime.block_on(async { listen::check(&mut report, &config) });
                    // It blocks, as the server's own connection does while it is made.
                    redis::check(&mut report, &config);
                    runtime.block_on(async {
                        database::check(&mut report, &config).await;
                        addresses::check(&mut report, &config).await;
                    });
                }
                Err(error) => report.fail("Runtime", format_args!("cannot be started: {error}")),
            }
            #[cfg(feature = "otel")]
            traces::check(&mut report, &config);
            if report.failures > 0 { Outcome::Fails } else { Outcome::Ready }
        }
    };
    report.sum_up(outcome);
    outcome
}

/// The configuration, if it can be used.
fn settings(report: &mut Report<'_>, env: &Env, mode: Mode) -> Option<Config> {
    for note in env.notes() {
        if note.is_warning {
            report.warn("Settings", &note.text);
        } else {
            report.ok("Settings", &note.text);
        }
    }
    let is_set =
        |name: &str| variables::ALL.iter().any(|known| known.name == name && env.get(known).is_some());
    if !is_set("NODE_ENV") && env.environment() == Environment::Development {
        report.warn(
            "NODE_ENV",
            format_args!(
                "is not set, so development's defaults hold and .env is read; set NODE_ENV=production, as \
                 the service does"
            ),
        );
    }
    let config = match Config::from_env(env, mode) {
        Ok(config) => config,
        Err(errors) => {
            errors.iter().for_each(|error| report.fail("Settings", error));
            return None;
        }
    };
    let set: Vec<&str> = variables::ALL
        .iter()
        .filter(|variable| env.get(variable).is_some_and(|value| !value.is_empty()))
        .map(|variable| variable.name)
        .collect();
    report.ok("Settings", format_args!("understood; set are {}", set.join(", ")));
    Some(config)
}

/// Writes verdicts and counts them.
struct Report<'a> {
    out: &'a mut dyn Write,
    warnings: usize,
    failures: usize,
}

impl Report<'_> {
    fn ok(&mut self, about: &str, text: impl fmt::Display) {
        self.line("ok  ", about, &text);
    }

    fn warn(&mut self, about: &str, text: impl fmt::Display) {
        self.warnings += 1;
        self.line("warn", about, &text);
    }

    fn fail(&mut self, about: &str, text: impl fmt::Display) {
        self.failures += 1;
        self.line("FAIL", about, &text);
    }

    fn line(&mut self, verdict: &str, about: &str, text: &dyn fmt::Display) {
        // What a server said may have several lines; a verdict has one.
        let text = text.to_string().replace(['\n', '\r'], " ");
        // Whoever does not read it any more still gets the exit status.
        let _ = writeln!(self.out, "{verdict}  {about}: {text}");
    }

    fn sum_up(&mut self, outcome: Outcome) {
        let things = |count: usize, what: &str| match count {
            0 => String::new(),
            1 => format!(", 1 {what}"),
            _ => format!(", {count} {what}s"),
        };
        let counted = things(self.failures, "failure") + &things(self.warnings, "warning");
        let verdict = match outcome {
            Outcome::Ready => "ready to serve",
            Outcome::Fails => "not ready to serve",
            Outcome::Refused => "the settings are refused, so no server was tried",
        };
        let _ = writeln!(self.out, "\n{verdict}{counted}");
    }
}
