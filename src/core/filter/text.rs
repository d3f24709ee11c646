//! A status's text, prepared once for all filters that will be asked about it.

use std::borrow::Cow;
use std::ops::Range;

use crate::core::html_text::push_text;
use crate::core::json;

/// What custom filters search: spoiler text, content, poll options and media descriptions, joined by blank
/// lines; the content as the text of its HTML, the rest as it is.
pub struct SearchText {
    original: Box<str>,
    /// Case-folded; UTF-8.
    folded: Box<[u8]>,
    /// For each byte of `folded`, and its end, the original's offset, or `INSIDE` where no original
    /// character begins. None where the two have the same offsets.
    offsets: Option<Box<[u32]>>,
    /// One bit per hash of a run of one to four bytes that occurs in `folded`.
    runs: Box<[u64]>,
    /// How far a hash is shifted to be an index of a bit.
    shift: u32,
}

const INSIDE: u32 = u32::MAX;

/// The longest run of bytes that is noted. Short enough that most keywords have one, long enough that few
/// keywords have one in common with a text that they do not occur in.
const RUN: usize = 4;

impl std::fmt::Debug for SearchText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SearchText({} bytes)", self.original.len())
    }
}

impl SearchText {
    /// The text of a status, from its JSON.
    ///
    /// # Errors
    /// When one of the members that it is made of has another type than Rails gives it: says which.
    pub fn of_status(payload: &[u8]) -> Result<SearchText, &'static str> {
        let payload = std::str::from_utf8(payload).map_err(|_| "it is not UTF-8")?;
        let [spoiler, content, poll, media] =
            members(payload, ["spoiler_text", "content", "poll", "media_attachments"])
                .ok_or("it is not an object")?;
        let mut text = text_or_null(spoiler).ok_or("its spoiler_text is not text")?.into_owned();
        text.push_str("\n\n");
        push_text(&text_or_null(content).ok_or("its content is not text")?, &mut text);
        let [options] = members(poll.unwrap_or("null"), ["options"]).ok_or("its poll is not an object")?;
        push_each(options, "title", &mut text).ok_or("its poll's options are not as they should be")?;
        push_each(media, "description", &mut text).ok_or("its media are not as they should be")?;
        Ok(SearchText::new(text))
    }

    /// Prepares any text (of less than 4 GiB).
    pub fn new(original: String) -> SearchText {
        let (folded, offsets) = fold_with_offsets(&original);
        let bits = (folded.len().saturating_mul(4 * 16)).next_power_of_two().clamp(1 << 12, 1 << 24);
        let shift = 32 - bits.trailing_zeros();
        let mut runs = vec![0u64; bits / 64].into_boxed_slice();
        for length in 1..=RUN {
            for run in folded.windows(length) {
                let bit = (hash(run) >> shift) as usize;
                if let Some(word) = runs.get_mut(bit / 64) {
                    *word |= 1 << (bit % 64);
                }
            }
        }
        SearchText { original: original.into(), folded, offsets, runs, shift }
    }

    /// What this holds in memory, in bytes.
    pub fn held_bytes(&self) -> usize {
        let offsets = self.offsets.as_ref().map_or(0, |offsets| size_of_val(&**offsets));
        size_of::<SearchText>() + self.original.len() + self.folded.len() + offsets + size_of_val(&*self.runs)
    }

    /// The text as it was.
    pub fn original(&self) -> &str {
        &self.original
    }

    pub(super) fn folded(&self) -> &[u8] {
        &self.folded
    }

    /// False only if a keyword with these runs does not occur.
    pub(super) fn may_contain(&self, runs: [u32; 2]) -> bool {
        runs.iter().all(|run| {
            let bit = (run >> self.shift) as usize;
            self.runs.get(bit / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
        })
    }

    /// The place in the original that folds to that place; none where it begins or ends inside what one
    /// character folds to.
    pub(super) fn original_range(&self, folded: Range<usize>) -> Option<Range<usize>> {
        let Some(offsets) = &self.offsets else { return Some(folded) };
        let (start, end) = (*offsets.get(folded.start)?, *offsets.get(folded.end)?);
        (start != INSIDE && end != INSIDE).then_some(start as usize..end as usize)
    }

    /// Whether a word begins or ends there.
    pub(super) fn is_boundary(&self, at: usize) -> bool {
        let before = self.original.get(..at).and_then(|text| text.chars().next_back());
        let after = self.original.get(at..).and_then(|text| text.chars().next());
        before.is_some_and(is_word) != after.is_some_and(is_word)
    }
}

/// The tokens of an object's members by these names, which may be missing; of null they all are. None for anything
/// else.
fn members<'a, const N: usize>(token: &'a str, names: [&str; N]) -> Option<[Option<&'a str>; N]> {
    let mut found = [None; N];
    let is_object = json::members(token, |name, token| {
        if let Some((_, place)) = names.iter().zip(&mut found).find(|(wanted, _)| **wanted == name) {
            *place = Some(token);
        }
    });
    (is_object || token == "null").then_some(found)
}

/// Text; empty where it is null or missing. None for anything else.
fn text_or_null(token: Option<&str>) -> Option<Cow<'_, str>> {
    match token {
        None | Some("null") => Some(Cow::Borrowed("")),
        Some(token) => json::text(token),
    }
}

/// Appends the text of that name of each object in an array, which may be null or missing. None where something has
/// another type.
fn push_each(array: Option<&str>, name: &str, out: &mut String) -> Option<()> {
    let Some(array) = array.filter(|token| *token != "null") else { return Some(()) };
    let mut all_good = true;
    let is_array = json::elements(array, |element| {
        let found = members(element, [name]).filter(|_| element != "null");
        let text = found.and_then(|[token]| text_or_null(token));
        all_good &= text.is_some();
        out.push_str("\n\n");
        out.push_str(&text.unwrap_or_default());
    });
    (is_array && all_good).then_some(())
}

/// The hashes of the first and the last run of a keyword.
pub(super) fn run_hashes(folded: &[u8]) -> [u32; 2] {
    let length = folded.len().min(RUN);
    let run = |range: Range<usize>| hash(folded.get(range).unwrap_or_default());
    [run(0..length), run(folded.len() - length..folded.len())]
}

fn hash(run: &[u8]) -> u32 {
    let packed = run.iter().fold(run.len() as u64, |packed, byte| packed << 8 | u64::from(*byte));
    (packed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// A word character in the sense of Ruby's `[[:word:]]` and `\b`: letters, marks, decimal digits and
/// connecting punctuation.
pub(super) fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    // Unicode's own definition of `\w` has the two joiners besides; Ruby has Latin-1's raised digits and
    // fractions, but none of the others.
    if matches!(c, '²' | '³' | '¹' | '¼' | '½' | '¾') {
        return true;
    }
    !matches!(c, '\u{200c}' | '\u{200d}') && regex_syntax::try_is_word_character(c).unwrap_or(false)
}

/// Appends the full case folding of `text`.
pub(super) fn fold_into(text: &str, out: &mut String) {
    for c in text.chars() {
        fold(c, |folded| out.push(folded));
    }
}

fn fold_with_offsets(text: &str) -> (Box<[u8]>, Option<Box<[u32]>>) {
    if text.is_ascii() {
        return (text.to_ascii_lowercase().into_bytes().into(), None);
    }
    let mut folded = String::with_capacity(text.len());
    let mut offsets: Option<Vec<u32>> = None;
    for (start, c) in text.char_indices() {
        let before = folded.len();
        let mut characters = 0;
        fold(c, |part| {
            characters += 1;
            folded.push(part);
        });
        let added = folded.len() - before;
        if offsets.is_none() && (characters != 1 || added != c.len_utf8()) {
            // Up to here both have the same offsets.
            offsets = Some((0..before as u32).collect());
        }
        if let Some(offsets) = &mut offsets {
            offsets.push(start as u32);
            offsets.resize(before + added, INSIDE);
        }
    }
    if let Some(offsets) = &mut offsets {
        offsets.push(text.len() as u32);
    }
    (folded.into_bytes().into(), offsets.map(Vec::into_boxed_slice))
}

/// Full case folding. The standard library has no table for it; but lower case of upper case of lower
/// case is it, up to a choice of representatives that both sides of a comparison share, if the dotless i is
/// left alone.
fn fold(c: char, mut push: impl FnMut(char)) {
    match c {
        '\0'..='\u{7f}' => push(c.to_ascii_lowercase()),
        // The dotless i; and ideographs, kana and hangul, which have no case.
        'ı' | '\u{2e80}'..='\u{a63f}' | '\u{ac00}'..='\u{d7ff}' => push(c),
        _ => c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase).for_each(push),
    }
}
