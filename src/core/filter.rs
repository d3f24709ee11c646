//! Custom filters: an account's keywords, compiled, and what they find in a status.
//!
//! Matching is Rails' (Ruby's regular expressions over UTF-8): the whole Unicode case folding, `ß` and `ss`
//! included; a whole-word keyword needs a word boundary where it begins or ends in a word character; everything
//! in a keyword is literal; of each filter only the first match counts, the earliest in the text and there
//! the earliest keyword. The result has the shape of Node's `filtered` member.
//!
//! # How a thousand filter sets are asked per status
//! A regular expression or automaton per account costs tens of kilobytes and a pass over the text each. Here the
//! *text* is prepared once ([`SearchText`]): folded, and its runs of up to four bytes noted in a bit
//! map. A keyword keeps the hashes of its first and last run. Testing a keyword is then two bit look-ups, and
//! hardly any keyword that does not occur passes; only those that pass are searched for. A compiled keyword costs its
//! folded text and 20 bytes.
//!
//! Bounds: a search is linear in the text, but for keywords that repeat within themselves, where it is text times
//! keyword; an account's work for one text ends at what [`WorkBudget`] allows it, its results at
//! [`FILTER_RESULT_BYTES`]. Pure. Tested here, and against Ruby itself in `tests/ruby_filters.rs`.

mod cache;
mod text;
mod work;

use std::fmt::Write as _;
use std::mem::size_of;
use std::ops::Range;
use std::sync::atomic::AtomicU32;

use memchr::memmem;

use crate::limits::FILTER_RESULT_BYTES;
pub use cache::{FilterCache, Slot};
pub use text::SearchText;
use text::{fold_into, is_word, run_hashes};
pub use work::WorkBudget;

/// One keyword of a custom filter, as the database has it. `expires_at` is in milliseconds since 1970.
#[derive(Clone, PartialEq, Debug, Default)]
#[allow(missing_docs)]
pub struct FilterRow {
    pub id: i64,
    pub title: String,
    pub context: Vec<String>,
    pub expires_at: Option<i64>,
    /// 0 warn, 1 hide, 2 blur
    pub action: i32,
    pub keyword: String,
    pub whole_word: bool,
}

/// An account's custom filters, compiled.
#[derive(Debug, Default)]
pub struct Filters {
    filters: Box<[Filter]>,
    keywords: Box<[Keyword]>,
    /// The folded keywords, and what stands before each filter's match in the result.
    text: Box<str>,
    /// What the next text is expected to cost: see [`WorkBudget`].
    expected_work: AtomicU32,
}

/// An account's filters cost more for one text than they may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooMuchWork;

/// What looking at a keyword costs, in bytes searched.
const KEYWORD_WORK: usize = 4;

/// What beginning a search costs, in bytes searched.
const SEARCH_WORK: usize = 64;

#[derive(Debug)]
struct Filter {
    /// `i64::MAX` where it never expires.
    expires_at: i64,
    keywords: Range<u32>,
    head: Range<u32>,
}

#[derive(Debug)]
struct Keyword {
    /// The hashes of the first and the last run of bytes.
    runs: [u32; 2],
    text: Range<u32>,
    /// Whether a word boundary is needed at its start and its end.
    bounds: [bool; 2],
}

impl Filters {
    /// Compiles the rows of one account; those of a filter must stand together, in the order in which the
    /// filters and their keywords are to be tried.
    pub fn compile(rows: &[FilterRow]) -> Filters {
        let (mut filters, mut keywords, mut text) = (Vec::new(), Vec::new(), String::new());
        for rows in rows.chunk_by(|one, next| one.id == next.id) {
            let first_keyword = keywords.len() as u32;
            for row in rows.iter().filter(|row| !row.keyword.is_empty()) {
                keywords.push(compile_keyword(row, &mut text));
            }
            let Some(row) = rows.first() else { continue };
            if keywords.len() as u32 == first_keyword {
                continue;
            }
            let start = text.len() as u32;
            write_head(row, &mut text);
            filters.push(Filter {
                expires_at: row.expires_at.unwrap_or(i64::MAX),
                keywords: first_keyword..keywords.len() as u32,
                head: start..text.len() as u32,
            });
        }
        let expected_work = AtomicU32::new(u32::try_from(keywords.len() * KEYWORD_WORK).unwrap_or(u32::MAX));
        Filters { filters: filters.into(), keywords: keywords.into(), text: text.into(), expected_work }
    }

    /// Whether there is nothing that could match.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// What this holds in memory, in bytes.
    pub fn held_bytes(&self) -> usize {
        size_of::<Filters>()
            + self.filters.len() * size_of::<Filter>()
            + self.keywords.len() * size_of::<Keyword>()
            + self.text.len()
    }

    /// Appends the JSON array of results for `text` at `now` (milliseconds since 1970) to `out`; appends
    /// nothing and answers false when no filter matches. What it costs, in bytes searched, is taken from `work_left`.
    ///
    /// # Errors
    /// When it would cost more than that. What was appended is of no use then.
    pub fn apply(
        &self,
        text: &SearchText,
        now: i64,
        work_left: &mut usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, TooMuchWork> {
        let start = out.len();
        for filter in &self.filters {
            if filter.expires_at < now {
                continue;
            }
            let Some(matched) = self.first_match(filter, text, work_left)? else { continue };
            out.push(if out.len() > start { b',' } else { b'[' });
            out.extend_from_slice(self.slice(&filter.head).as_bytes());
            push_json(out, matched);
            out.extend_from_slice(b"],\"status_matches\":null}");
            if out.len() - start >= FILTER_RESULT_BYTES {
                break;
            }
        }
        let found = out.len() > start;
        if found {
            out.push(b']');
        }
        Ok(found)
    }

    fn first_match<'t>(
        &self,
        filter: &Filter,
        text: &'t SearchText,
        work_left: &mut usize,
    ) -> Result<Option<&'t str>, TooMuchWork> {
        let keywords = self.keywords.get(filter.keywords.start as usize..filter.keywords.end as usize);
        let mut first: Option<Range<usize>> = None;
        let looks = filter.keywords.len() * KEYWORD_WORK;
        *work_left = work_left.checked_sub(looks).ok_or(TooMuchWork)?;
        for keyword in keywords.unwrap_or_default() {
            if !text.may_contain(keyword.runs) {
                continue;
            }
            if let Some(place) = self.find(keyword, text, work_left)?
                && first.as_ref().is_none_or(|first| place.start < first.start)
            {
                first = Some(place);
            }
        }
        Ok(first.and_then(|place| text.original().get(place)))
    }

    /// The first place in the original text where the keyword stands.
    fn find(
        &self,
        keyword: &Keyword,
        text: &SearchText,
        work_left: &mut usize,
    ) -> Result<Option<Range<usize>>, TooMuchWork> {
        let needle = self.slice(&keyword.text).as_bytes();
        let finder = memmem::Finder::new(needle);
        let mut from = 0;
        loop {
            let rest = text.folded().get(from..).unwrap_or_default();
            let found = finder.find(rest);
            let work = found.unwrap_or(rest.len()) + needle.len() + SEARCH_WORK;
            *work_left = work_left.checked_sub(work).ok_or(TooMuchWork)?;
            let Some(found) = found else { return Ok(None) };
            let start = from + found;
            if let Some(place) = text.original_range(start..start + needle.len())
                && (!keyword.bounds[0] || text.is_boundary(place.start))
                && (!keyword.bounds[1] || text.is_boundary(place.end))
            {
                return Ok(Some(place));
            }
            from = start + 1;
        }
    }

    fn slice(&self, range: &Range<u32>) -> &str {
        self.text.get(range.start as usize..range.end as usize).unwrap_or_default()
    }
}

fn compile_keyword(row: &FilterRow, text: &mut String) -> Keyword {
    let start = text.len();
    fold_into(&row.keyword, text);
    let bounds = [row.keyword.chars().next(), row.keyword.chars().next_back()]
        .map(|end| row.whole_word && end.is_some_and(is_word));
    Keyword {
        runs: run_hashes(text.as_bytes().get(start..).unwrap_or_default()),
        text: start as u32..text.len() as u32,
        bounds,
    }
}

/// Everything of a result up to its match.
fn write_head(row: &FilterRow, out: &mut String) {
    // Writing to a string does not fail, nor does a string fail to become JSON.
    let json = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let _ = write!(out, "{{\"filter\":{{\"id\":\"{}\",\"title\":{},\"context\":[", row.id, json(&row.title));
    for (number, context) in row.context.iter().enumerate() {
        let _ = write!(out, "{}{}", if number > 0 { "," } else { "" }, json(context));
    }
    out.push_str("],\"expires_at\":");
    match row.expires_at {
        Some(at) => write_time(at, out),
        None => out.push_str("null"),
    }
    let action = match row.action {
        0 => Some("warn"),
        1 => Some("hide"),
        2 => Some("blur"),
        // A later Rails' action is left out, as Node does.
        _ => None,
    };
    if let Some(action) = action {
        let _ = write!(out, ",\"filter_action\":\"{action}\"");
    }
    out.push_str("},\"keyword_matches\":[");
}

/// A moment as JavaScript prints it, `"2026-08-01T12:00:00.000Z"`.
fn write_time(milliseconds: i64, out: &mut String) {
    let (days, rest) = (milliseconds.div_euclid(86_400_000), milliseconds.rem_euclid(86_400_000));
    // Days to date in the proleptic Gregorian calendar, counted from 1 March of year 0 (H. Hinnant's method).
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, milliseconds) = (rest / 1000, rest % 1000);
    let year = match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{}{:06}", if year < 0 { '-' } else { '+' }, year.abs()),
    };
    let _ = write!(
        out,
        "\"{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{milliseconds:03}Z\"",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
}

fn push_json(out: &mut Vec<u8>, text: &str) {
    if serde_json::to_writer(&mut *out, text).is_err() {
        out.extend_from_slice(b"\"\"");
    }
}

#[cfg(test)]
mod tests;
