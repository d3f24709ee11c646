//! Single values: numbers, sizes, times, truth values. Each wrong one becomes a [`ConfigError`], and reading
//! goes on with the default, so that one start shows all mistakes.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::env::Env;
use super::variables::Variable;

/// A variable whose value cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct ConfigError {
    /// The variable.
    pub variable: &'static str,
    /// Its value; none where it may hold a secret, or is not set.
    pub value: Option<String>,
    /// What is allowed, or what is wrong and what to do.
    pub allowed: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invalid {} environment variable", self.variable)?;
        if let Some(value) = &self.value {
            write!(f, ": {value:?}")?;
        }
        write!(f, " ({})", self.allowed)
    }
}

/// Text that no message, log line or debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being shown.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text, for the server that it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// Reads variables and collects what is wrong with them.
pub(super) struct Reader<'a> {
    env: &'a Env,
    errors: Vec<ConfigError>,
}

impl<'a> Reader<'a> {
    pub fn new(env: &'a Env) -> Reader<'a> {
        Reader { env, errors: Vec::new() }
    }

    pub fn into_errors(self) -> Vec<ConfigError> {
        self.errors
    }

    pub fn env(&self) -> &'a Env {
        self.env
    }

    /// The value as it is set, perhaps empty.
    pub fn raw(&self, variable: &'static Variable) -> Option<&'a str> {
        self.env.get(variable)
    }

    /// The value, if there is one that is not empty.
    pub fn text(&self, variable: &'static Variable) -> Option<&'a str> {
        self.raw(variable).filter(|value| !value.is_empty())
    }

    /// The first of these that is set and not empty.
    pub fn first(&self, variables: &[&'static Variable]) -> Option<(&'static Variable, &'a str)> {
        variables.iter().find_map(|variable| Some((*variable, self.text(variable)?)))
    }

    /// Notes that a variable cannot be used.
    pub fn refuse(&mut self, variable: &'static Variable, allowed: impl Into<String>) {
        let value = self.raw(variable).filter(|_| !variable.is_secret()).map(shortened);
        self.errors.push(ConfigError { variable: variable.name, value, allowed: allowed.into() });
    }

    /// A whole number.
    pub fn number<T>(&mut self, variable: &'static Variable, default: T, allowed: RangeInclusive<T>) -> T
    where
        T: Copy + PartialOrd + fmt::Display + std::str::FromStr,
    {
        let Some(text) = self.text(variable) else { return default };
        match text.trim().parse::<T>() {
            Ok(number) if allowed.contains(&number) => number,
            _ => {
                self.refuse(
                    variable,
                    format!("a whole number from {} to {}", allowed.start(), allowed.end()),
                );
                default
            }
        }
    }

    /// A TCP port to connect to.
    pub fn port(&mut self, variable: &'static Variable, default: u16) -> u16 {
        self.number(variable, default, 1..=u16::MAX)
    }

    /// A size: bytes, or with KiB, MiB, GiB (or K, M, G) behind the number.
    pub fn bytes(
        &mut self,
        variable: &'static Variable,
        default: usize,
        allowed: RangeInclusive<usize>,
    ) -> usize {
        let Some(text) = self.text(variable) else { return default };
        match parse_bytes(text) {
            Some(bytes) if allowed.contains(&bytes) => bytes,
            _ => {
                let (low, high) = (allowed.start(), allowed.end());
                self.refuse(
                    variable,
                    format!("a size from {low} to {high} bytes, such as 65536, 64KiB or 16MiB"),
                );
                default
            }
        }
    }

    /// A time in seconds, with at most three decimals.
    pub fn seconds(
        &mut self,
        variable: &'static Variable,
        default: Duration,
        ms: RangeInclusive<u64>,
    ) -> Duration {
        let Some(text) = self.text(variable) else { return default };
        match parse_milliseconds(text) {
            Some(value) if ms.contains(&value) => Duration::from_millis(value),
            _ => {
                let (low, high) = (*ms.start() as f64 / 1000.0, ms.end() / 1000);
                self.refuse(variable, format!("a number of seconds from {low} to {high}"));
                default
            }
        }
    }

    /// A truth value.
    pub fn flag(&mut self, variable: &'static Variable, default: bool) -> bool {
        let Some(text) = self.text(variable) else { return default };
        match text.trim().to_ascii_lowercase().as_str() {
            "true" | "t" | "1" | "yes" | "on" => true,
            "false" | "f" | "0" | "no" | "off" => false,
            _ => {
                self.refuse(variable, "true or false");
                default
            }
        }
    }
}

fn shortened(value: &str) -> String {
    if value.chars().count() <= 100 {
        return value.to_owned();
    }
    value.chars().take(100).chain(['…']).collect()
}

fn parse_bytes(text: &str) -> Option<usize> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor: usize = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(factor)
}

fn parse_milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || !all_digits(decimals) || decimals.len() > 3 || text == "." {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    whole.checked_mul(1000)?.checked_add(format!("{decimals:0<3}").parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            (" 65536 ", Some(65536)),
            ("64KiB", Some(65536)),
            ("64 k", Some(65536)),
            ("16MiB", Some(16 << 20)),
            ("1g", Some(1 << 30)),
            ("", None),
            ("-1", None),
            ("1.5M", None),
            ("MiB", None),
            ("1TiB", None),
            ("18446744073709551615G", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn times() {
        for (text, ms) in [
            ("0", Some(0)),
            ("15", Some(15_000)),
            ("0.05", Some(50)),
            (".5", Some(500)),
            ("2.", Some(2000)),
            (" 1.25 ", Some(1250)),
            ("", Some(0)),
            (".", None),
            ("1.2345", None),
            ("-1", None),
            ("+1", None),
            ("1e3", None),
            ("1s", None),
            ("NaN", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(parse_milliseconds(text), ms, "{text:?}");
        }
    }

    #[test]
    fn an_error_names_the_variable_the_value_and_what_is_allowed_but_no_secret() {
        use crate::config::variables;
        let env = Env::from_pairs([("PORT", "http"), ("REDIS_URL", "redis://:hunter2@")]);
        let mut read = Reader::new(&env);
        assert_eq!(read.number(&variables::PORT, 4000u16, 0..=u16::MAX), 4000);
        read.refuse(&variables::REDIS_URL, "no host");
        let text: Vec<String> = read.into_errors().iter().map(|error| error.to_string()).collect();
        assert_eq!(
            text,
            [
                "Invalid PORT environment variable: \"http\" (a whole number from 0 to 65535)",
                "Invalid REDIS_URL environment variable (no host)"
            ]
        );
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "[hidden]");
    }
}
