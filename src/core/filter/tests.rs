use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::limits::FILTER_WORK_MAX;

fn row(id: i64, keyword: &str, whole_word: bool) -> FilterRow {
    FilterRow {
        id,
        title: format!("title {id}"),
        context: vec!["home".into(), "public".into()],
        keyword: keyword.into(),
        whole_word,
        ..FilterRow::default()
    }
}

fn apply(rows: &[FilterRow], text: &str) -> String {
    let mut out = Vec::new();
    let found = Filters::compile(rows)
        .apply(&SearchText::new(text.into()), 1000, &mut { FILTER_WORK_MAX }, &mut out)
        .unwrap();
    assert_eq!(found, !out.is_empty());
    String::from_utf8(out).unwrap()
}

fn first(keyword: &str, whole_word: bool, text: &str) -> Option<String> {
    let out = apply(&[row(1, keyword, whole_word)], text);
    if out.is_empty() {
        return None;
    }
    let results: serde_json::Value = serde_json::from_str(&out).unwrap();
    Some(results[0]["keyword_matches"][0].as_str().unwrap().to_owned())
}

#[test]
fn the_shape_is_nodes() {
    let rows = [
        FilterRow { expires_at: Some(1_785_585_600_123), action: 1, ..row(7, "cat", true) },
        FilterRow {
            title: "quote \" \u{1f600}".into(),
            action: 2,
            context: vec![],
            ..row(12, "dog\n", false)
        },
        FilterRow { action: 3, ..row(13, "dog", false) },
    ];
    let expected = concat!(
        r#"[{"filter":{"id":"7","title":"title 7","context":["home","public"],"expires_at":"2026-08-01T12:00:00.123Z","#,
        r#""filter_action":"hide"},"keyword_matches":["Cat"],"status_matches":null},"#,
        r#"{"filter":{"id":"12","title":"quote \" 😀","context":[],"expires_at":null,"filter_action":"blur"},"#,
        r#""keyword_matches":["DOG\n"],"status_matches":null},"#,
        r#"{"filter":{"id":"13","title":"title 13","context":["home","public"],"expires_at":null},"#,
        r#""keyword_matches":["DOG"],"status_matches":null}]"#
    );
    assert_eq!(apply(&rows, "A Cat and a DOG\n"), expected);
}

#[test]
fn what_filters_cost_is_bounded() {
    // It stands nearly everywhere, and nowhere at the end of a word.
    let keyword = format!("{}x", "xy-".repeat(160));
    let mut out = Vec::new();
    let text = SearchText::new("xy-".repeat(30_000));
    let slow = Filters::compile(&vec![row(1, &keyword, true); 10]);
    assert_eq!(slow.apply(&text, 0, &mut { FILTER_WORK_MAX }, &mut out), Err(TooMuchWork));
    // Its runs occur, itself it does not.
    let text = SearchText::new(format!("{} keyhole, sword", "word ".repeat(100_000)));
    let absent = Filters::compile(&vec![row(1, "keyh no sword", false); 100]);
    assert_eq!(absent.apply(&text, 0, &mut { FILTER_WORK_MAX }, &mut out), Err(TooMuchWork));
    let ordinary: Vec<FilterRow> = (0..5000).map(|n| row(n, &format!("word{n}"), true)).collect();
    assert_eq!(Filters::compile(&ordinary).apply(&text, 0, &mut { FILTER_WORK_MAX }, &mut out), Ok(false));
}

#[test]
fn what_filters_say_is_bounded() {
    let rows: Vec<FilterRow> = (0..10_000).map(|n| row(n, "e", false)).collect();
    let out = apply(&rows, "hello");
    assert!((FILTER_RESULT_BYTES..FILTER_RESULT_BYTES + 1000).contains(&out.len()), "{} bytes", out.len());
    let results: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(results[49]["filter"]["id"], "49");
}

#[test]
fn times_as_javascript_prints_them() {
    let cases = [
        (0, "1970-01-01T00:00:00.000Z"),
        (951_827_696_789, "2000-02-29T12:34:56.789Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (253_402_300_800_000, "+010000-01-01T00:00:00.000Z"),
    ];
    for (milliseconds, expected) in cases {
        let mut out = String::new();
        write_time(milliseconds, &mut out);
        assert_eq!(out, format!("\"{expected}\""));
    }
}

#[test]
fn expired_filters_and_empty_keywords_match_nothing() {
    let expires = |at| FilterRow { expires_at: Some(at), ..row(1, "cat", true) };
    assert_eq!(apply(&[expires(999)], "cat"), "");
    assert_ne!(apply(&[expires(1000)], "cat"), "");
    assert_eq!(apply(&[row(1, "", true), row(2, "", false)], "cat"), "");
    assert_eq!(first("cat", true, ""), None);
    assert!(Filters::compile(&[row(1, "", false)]).is_empty());
}

#[test]
fn of_each_filter_the_first_match_counts() {
    let rows = [row(1, "later", false), row(1, "first", false), row(1, "fir", false), row(2, "st", false)];
    let results: serde_json::Value =
        serde_json::from_str(&apply(&rows, "the first, then the later")).unwrap();
    assert_eq!(results[0]["keyword_matches"], serde_json::json!(["first"]));
    assert_eq!(results[1]["keyword_matches"], serde_json::json!(["st"]));
    assert_eq!(results.as_array().unwrap().len(), 2);
}

#[test]
fn boundaries_and_folding() {
    let cases = [
        ("cat", true, "concatenate", None),
        ("cat", false, "concatenate", Some("cat")),
        ("cat", true, "con cat-enate", Some("cat")),
        ("cat", true, "concat cats cat", Some("cat")),
        ("été", true, "l'ÉTÉ!", Some("ÉTÉ")),
        ("été", true, "étés", None),
        ("猫", true, "黒猫", None),
        ("猫", false, "黒猫", Some("猫")),
        ("#tag", true, "x#tag", Some("#tag")),
        ("tag#", true, "tag#x", Some("tag#")),
        (".*", false, "a.*b", Some(".*")),
        ("a b", true, "A B", Some("A B")),
        ("ss", false, "Straße", Some("ß")),
        ("s", false, "ß", None),
        ("STRASSE", true, "eine Straße hier", Some("Straße")),
        ("ß", true, "SS", Some("SS")),
        ("ſ", false, "S", Some("S")),
        ("i", false, "ı", None),
        ("οδός", true, "ΟΔΌΣ", Some("ΟΔΌΣ")),
        ("k", true, "\u{212a}", Some("\u{212a}")),
        ("e", true, "e\u{301}", None),
        ("a", true, "a\u{200d}b", Some("a")),
        ("ab", true, "İab ab", Some("ab")),
        ("aa", true, "aaa aa", Some("aa")),
    ];
    for (keyword, whole_word, text, expected) in cases {
        assert_eq!(first(keyword, whole_word, text).as_deref(), expected, "{keyword:?} in {text:?}");
    }
}

#[test]
fn the_text_of_a_status() {
    let status = r#"{"id":"1","spoiler_text":"<b>&amp;","content":"<p>a &amp; b</p><p>c</p>",
        "poll":{"options":[{"title":"<i>"},{"title":"two"}]},
        "media_attachments":[{"description":null},{"description":"d<"}],"other":[[[{}]]]}"#;
    let text = SearchText::of_status(status.as_bytes()).unwrap();
    assert_eq!(text.original(), "<b>&amp;\n\na & b\n\nc\n\n<i>\n\ntwo\n\n\n\nd<");
    assert_eq!(SearchText::of_status(b"{}").unwrap().original(), "\n\n");
    // As JavaScript reads it: the last of two members counts, half of a pair is a character.
    let odd =
        r#"{"content":1,"\ud800":{},"content":"a\ud800b","poll":{"options":null},"media_attachments":null}"#;
    assert_eq!(SearchText::of_status(odd.as_bytes()).unwrap().original(), "\n\na\u{fffd}b");
    for wrong in [
        "[]",
        r#"{"content":1}"#,
        r#"{"poll":[1]}"#,
        r#"{"poll":{"options":[{"title":1},{}]}}"#,
        r#"{"media_attachments":{}}"#,
        r#"{"media_attachments":[null]}"#,
        r#"{"spoiler_text":[]}"#,
    ] {
        assert!(SearchText::of_status(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn a_thousand_accounts_with_ten_keywords_take_little_memory() {
    let rows: Vec<FilterRow> =
        (0..10).map(|number| row(1, &format!("keyword number {number}"), true)).collect();
    let mut cache = FilterCache::new(32 << 20);
    let slots: Vec<_> = (0..1000).map(|_| cache.admit()).collect();
    for slot in &slots {
        assert!(cache.fill(slot, slot.generation(), &Arc::new(Filters::compile(&rows)), slots.iter()));
    }
    assert!(cache.held_bytes() < 2 << 20, "{}", cache.held_bytes());
}

#[test]
fn a_load_that_began_before_a_change_is_not_kept() {
    let filters = Arc::new(Filters::compile(&[row(1, "a", true)]));
    let mut cache = FilterCache::new(1 << 20);
    let slot = cache.admit();
    let began = slot.generation();
    cache.changed(&slot);
    assert!(!cache.fill(&slot, began, &filters, [&slot].into_iter()));
    assert!(slot.filters(1).is_none());
    assert!(cache.fill(&slot, slot.generation(), &filters, [&slot].into_iter()));
    assert!(slot.filters(1).is_some());
    cache.changed(&slot);
    assert!(slot.filters(1).is_none());
    let began = slot.generation();
    cache.forget(&slot);
    for generation in [began, slot.generation()] {
        assert!(!cache.fill(&slot, generation, &filters, [].into_iter()));
    }
    assert!(slot.filters(1).is_none());
    assert_eq!((cache.held_bytes(), cache.len()), (0, 0));
}

#[test]
fn the_least_recently_used_go_first_and_the_budget_holds() {
    let rows: Vec<FilterRow> =
        (0..10).map(|number| row(1, &format!("keyword number {number}"), true)).collect();
    let filters = Arc::new(Filters::compile(&rows));
    let mut cache = FilterCache::new(64 << 10);
    let slots: Vec<_> = (0..200).map(|_| cache.admit()).collect();
    for slot in &slots {
        let turn = cache.next_turn();
        slots[0].filters(turn);
        assert!(cache.fill(slot, slot.generation(), &filters, slots.iter()));
        assert!(cache.held_bytes() <= 64 << 10);
    }
    assert!(cache.evicted() > 0);
    assert!(slots[0].filters(0).is_some() && slots[199].filters(0).is_some());
    assert!(slots[1].filters(0).is_none());
}

proptest! {
    // Over a tiny alphabet, so that keywords occur, overlap and fold into each other.
    #[test]
    fn as_a_search_by_hand(
        keywords in proptest::collection::vec(("[aAsSßK\u{212a} é#猫]{0,4}", any::<bool>()), 1..4),
        text in "[aAsSßkK\u{212a} éÉ#猫]{0,24}",
    ) {
        let rows: Vec<_> = keywords.iter().map(|(keyword, whole)| row(1, keyword, *whole)).collect();
        let got = apply(&rows, &text);
        let got = (!got.is_empty()).then(|| {
            let results: serde_json::Value = serde_json::from_str(&got).unwrap();
            results[0]["keyword_matches"][0].as_str().unwrap().to_owned()
        });
        let fold = |text: &str| { let mut out = String::new(); fold_into(text, &mut out); out };
        let word = |c: Option<char>| c.is_some_and(is_word);
        let mut expected = None;
        let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        'all: for &start in &ends {
            for (keyword, whole) in keywords.iter().filter(|keyword| !keyword.0.is_empty()) {
                for &end in ends.iter().filter(|end| **end >= start) {
                    let boundary = |at: usize| word(text[..at].chars().next_back()) != word(text[at..].chars().next());
                    if fold(&text[start..end]) == fold(keyword)
                        && (!whole || !word(keyword.chars().next()) || boundary(start))
                        && (!whole || !word(keyword.chars().next_back()) || boundary(end))
                    {
                        expected = Some(text[start..end].to_owned());
                        break 'all;
                    }
                }
            }
        }
        prop_assert_eq!(got, expected);
    }
}
