//! Budgets by the memory that the process may use: smaller ones where that is small and nothing else is set, a
//! warning where what is set does not fit.
//!
//! A pure function of the settings and the limit, which `server::memory_limit` reads. Tested by a table.

use super::Config;
use crate::limits::{BUDGET_BYTES_MIN, HELD_BYTES_FACTOR, PROGRAM_BYTES};

/// The least of the limits on the process's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryLimit {
    /// In bytes.
    pub bytes: u64,
    /// What sets it: `memory.max of the cgroup /user.slice`.
    pub source: String,
}

/// Which budgets are set, rather than left to their defaults.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BudgetsSet {
    /// `BACKPRESSURE_HIGH_BYTES`
    pub backpressure: bool,
    /// `FILTER_CACHE_BYTES`
    pub filters: bool,
}

/// What a limit means for the budgets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fit {
    /// The configured budgets fit, or no limit is known.
    Fits,
    /// Smaller defaults were chosen; the text says which.
    Reduced(String),
    /// The process may be killed at the budgets in force; the text says at which, and what to do.
    TooSmall(String),
}

impl Config {
    /// Chooses the budgets that are not set by the memory that there is, and compares all of them with it.
    pub fn fit_memory(&mut self, limit: Option<&MemoryLimit>) -> Fit {
        let Some(MemoryLimit { bytes, source }) = limit else { return Fit::Fits };
        let spare = usize::try_from(bytes.saturating_sub(PROGRAM_BYTES as u64)).unwrap_or(usize::MAX);
        // Of four shares, messages may take two and filters one; the last is for newcomers.
        let share = (spare / 4).max(BUDGET_BYTES_MIN);
        let (set, limits) = (self.budgets_set, &mut self.limits);
        let before = (limits.backpressure_high_bytes, limits.filter_cache_bytes);
        if !set.backpressure {
            limits.backpressure_high_bytes = before.0.min(share);
        }
        if !set.filters {
            limits.filter_cache_bytes = before.1.min(share);
        }
        let (high, filters) = (limits.backpressure_high_bytes, limits.filter_cache_bytes);
        let worst = (PROGRAM_BYTES + filters).saturating_add(high.saturating_mul(HELD_BYTES_FACTOR));
        let budgets =
            format!("BACKPRESSURE_HIGH_BYTES={} and FILTER_CACHE_BYTES={}", shown(high), shown(filters));
        let allowed = usize::try_from(*bytes).unwrap_or(usize::MAX);
        let may_use = format!("this process may use {} ({source})", shown(allowed));
        if worst > allowed {
            let advice = if allowed < PROGRAM_BYTES + 3 * BUDGET_BYTES_MIN {
                "raise the limit".to_owned()
            } else {
                format!("set each to {} or less, or leave them unset, or raise the limit", shown(share))
            };
            return Fit::TooSmall(format!(
                "{may_use}, but needs up to {} with {budgets}, and may be killed then; {advice}",
                shown(worst)
            ));
        }
        if (high, filters) != before {
            return Fit::Reduced(format!("{may_use}, so {budgets} are chosen; set them to change that"));
        }
        Fit::Fits
    }
}

/// A size as variables take it, rounded down.
fn shown(bytes: usize) -> String {
    match bytes {
        0..0x40_0000 => format!("{}KiB", bytes >> 10),
        _ => format!("{}MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Env, Mode};

    const MIB: usize = 1 << 20;

    /// The budgets in force, in MiB, and what is said of them.
    fn fit(limit: Option<usize>, set: &[(&str, &str)]) -> (usize, usize, Fit) {
        let env = Env::from_pairs(set.iter().copied());
        let mut config = Config::from_env(&env, Mode::NoDatabase).unwrap();
        let limit = limit.map(|mib| MemoryLimit { bytes: (mib * MIB) as u64, source: "a test".to_owned() });
        let fit = config.fit_memory(limit.as_ref());
        (config.limits.backpressure_high_bytes / MIB, config.limits.filter_cache_bytes / MIB, fit)
    }

    fn kind(fit: &Fit) -> &'static str {
        match fit {
            Fit::Fits => "fits",
            Fit::Reduced(_) => "reduced",
            Fit::TooSmall(_) => "too small",
        }
    }

    #[test]
    fn budgets_follow_the_memory_unless_they_are_set() {
        const HIGH: &str = "BACKPRESSURE_HIGH_BYTES";
        const FILTERS: &str = "FILTER_CACHE_BYTES";
        type Case<'a> = (Option<usize>, &'a [(&'a str, &'a str)], usize, usize, &'a str);
        let table: &[Case] = &[
            (None, &[], 16, 32, "fits"),
            (Some(1 << 20), &[], 16, 32, "fits"),
            (Some(4096), &[], 16, 32, "fits"),
            (Some(144), &[], 16, 32, "fits"),
            (Some(128), &[], 16, 28, "reduced"),
            (Some(80), &[], 16, 16, "reduced"),
            (Some(64), &[], 12, 12, "reduced"),
            (Some(32), &[], 4, 4, "reduced"),
            (Some(19), &[], 1, 1, "reduced"),
            (Some(16), &[], 1, 1, "too small"),
            (Some(0), &[], 1, 1, "too small"),
            // What is set is not changed.
            (Some(64), &[(HIGH, "16MiB"), (FILTERS, "8MiB")], 16, 8, "fits"),
            (Some(64), &[(HIGH, "8MiB")], 8, 12, "reduced"),
            (Some(64), &[(FILTERS, "0")], 12, 0, "reduced"),
            (Some(64), &[(HIGH, "32MiB")], 32, 12, "too small"),
            (Some(64), &[(FILTERS, "64MiB")], 12, 64, "too small"),
            (Some(4096), &[(HIGH, "2GiB")], 2048, 32, "too small"),
            (Some(4096), &[(HIGH, "64GiB"), (FILTERS, "64GiB")], 65_536, 65_536, "too small"),
        ];
        for (limit, set, high, filters, expected) in table {
            let found = fit(*limit, set);
            assert_eq!((found.0, found.1, kind(&found.2)), (*high, *filters, *expected), "{limit:?} {set:?}");
        }
    }

    #[test]
    fn texts_have_the_figures_and_what_to_do() {
        let reduced = "this process may use 64MiB (a test), so BACKPRESSURE_HIGH_BYTES=12MiB and \
                       FILTER_CACHE_BYTES=12MiB are chosen; set them to change that";
        assert_eq!(fit(Some(64), &[]).2, Fit::Reduced(reduced.to_owned()));
        let too_small = "this process may use 64MiB (a test), but needs up to 108MiB with \
                         BACKPRESSURE_HIGH_BYTES=40MiB and FILTER_CACHE_BYTES=12MiB, and may be killed then; \
                         set each to 12MiB or less, or leave them unset, or raise the limit";
        let set = [("BACKPRESSURE_HIGH_BYTES", "40MiB")];
        assert_eq!(fit(Some(64), &set).2, Fit::TooSmall(too_small.to_owned()));
        let hopeless = "this process may use 16MiB (a test), but needs up to 19MiB with \
                        BACKPRESSURE_HIGH_BYTES=1024KiB and FILTER_CACHE_BYTES=1024KiB, and may be killed then; \
                        raise the limit";
        assert_eq!(fit(Some(16), &[]).2, Fit::TooSmall(hopeless.to_owned()));
    }
}
