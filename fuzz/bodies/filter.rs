//! Custom filters: what compiled keywords find in a text is what trying every place by hand finds, and the
//! result is JSON of Node's shape.
//!
//! The oracle's case folding and word characters are written down again here from the same definitions;
//! Ruby itself is the judge in `tests/ruby_filters.rs`.
//!
//! Input: the number of keywords, each with its options and text, then the text that is searched. Most bytes
//! stand for characters of a small alphabet, so that keywords occur, overlap and fold into each other.

use serde_json::Value;
use tidegate::core::filter::{FilterRow, Filters, SearchText};
use tidegate::limits::FILTER_WORK_MAX;

use super::input::Input;

const NOW: i64 = 1_785_585_600_000;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut rows = Vec::new();
    let mut id = 1;
    for _ in 0..=input.below(5) {
        let options = input.byte();
        id += i64::from(options & 1);
        let expires_at = [None, None, Some(NOW), Some(NOW - 1)][usize::from(options >> 1 & 3)];
        rows.push(FilterRow {
            id,
            title: format!("title \"{id}"),
            context: vec!["home".to_owned(), "\\".to_owned()],
            expires_at,
            action: i32::from(options >> 4 & 3),
            keyword: text(input.bytes(12)),
            whole_word: options & 8 != 0,
        });
    }
    // Only a filter's first row tells when it expires.
    let searched = text(input.rest());
    let filters = Filters::compile(&rows);
    let mut out = Vec::new();
    let found = filters
        .apply(&SearchText::new(searched.clone()), NOW, &mut { FILTER_WORK_MAX }, &mut out)
        .expect("hardly any work");
    assert_eq!(found, !out.is_empty());
    let results: Vec<Value> =
        if found { serde_json::from_slice(&out).expect("filter results are JSON") } else { Vec::new() };

    let mut results = results.into_iter();
    for rows in rows.chunk_by(|one, next| one.id == next.id) {
        let row = &rows[0];
        let is_live = row.expires_at.is_none_or(|at| at >= NOW);
        let Some(matched) = first_match(rows, &searched).filter(|_| is_live) else { continue };
        let result =
            results.next().unwrap_or_else(|| panic!("{matched:?} was not found in {searched:?}: {rows:?}"));
        assert_eq!(result["filter"]["id"], row.id.to_string());
        assert_eq!(result["filter"]["title"], row.title);
        assert_eq!(result["filter"]["context"], Value::from(row.context.clone()));
        assert_eq!(result["filter"]["expires_at"].is_null(), row.expires_at.is_none());
        assert_eq!(result["filter"]["filter_action"].is_null(), row.action == 3);
        assert_eq!(result["keyword_matches"], Value::from(vec![matched]), "{rows:?} in {searched:?}");
        assert!(result["status_matches"].is_null());
    }
    assert_eq!(results.next(), None, "found in {searched:?}, by hand it is not: {rows:?}");
}

/// The earliest match in the text, there the earliest keyword, and of that the shortest.
fn first_match<'t>(rows: &[FilterRow], text: &'t str) -> Option<&'t str> {
    let keywords: Vec<(String, &FilterRow)> = rows
        .iter()
        .filter(|row| !row.keyword.is_empty())
        .map(|row| (row.keyword.chars().flat_map(folded).collect(), row))
        .collect();
    let word = |c: Option<char>| c.is_some_and(is_word);
    let is_boundary = |at: usize| word(text[..at].chars().next_back()) != word(text[at..].chars().next());
    for (start, _) in text.char_indices() {
        for (keyword, row) in &keywords {
            let mut so_far = String::new();
            for (offset, c) in text[start..].char_indices() {
                so_far.extend(folded(c));
                if !keyword.starts_with(&so_far) {
                    break;
                }
                let end = start + offset + c.len_utf8();
                if so_far == *keyword
                    && (!row.whole_word || !word(row.keyword.chars().next()) || is_boundary(start))
                    && (!row.whole_word || !word(row.keyword.chars().next_back()) || is_boundary(end))
                {
                    return Some(&text[start..end]);
                }
            }
        }
    }
    None
}

/// Full case folding, up to a choice of representatives.
fn folded(c: char) -> Vec<char> {
    if c == 'ı' {
        return vec![c];
    }
    c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// A word character to Ruby.
fn is_word(c: char) -> bool {
    "²³¹¼½¾".contains(c)
        || !"\u{200c}\u{200d}".contains(c) && regex_syntax::try_is_word_character(c).unwrap_or(false)
}

/// Text of arbitrary bytes, more of it from a small alphabet.
fn text(bytes: &[u8]) -> String {
    const ALPHABET: &[char] = &[
        'a', 'b', 'A', ' ', 's', 'S', 'ß', 'ẞ', 'k', '\u{212a}', 'é', 'É', 'i', 'İ', 'ı', 'I', '\u{307}',
        'σ', 'ς', 'Σ', '#', '.', '\n', '猫', 'ﬁ', 'f', '\u{200d}', '½', 'ŉ', 'ʼ', 'n', 'ⱥ', 'Ⱥ',
    ];
    let mut out = String::new();
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match usize::from(*first) {
            letter @ ..224 => out.push(ALPHABET[letter % ALPHABET.len()]),
            _ => {
                // Any character at all: two more bytes are its number.
                let (number, after) = rest.split_at(rest.len().min(2));
                rest = after;
                let code =
                    number.iter().fold(u32::from(first & 1), |code, byte| code << 8 | u32::from(*byte));
                out.push(char::from_u32(code).unwrap_or('x'));
            }
        }
    }
    out
}
