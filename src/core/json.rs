//! JSON as slices: what an object's members are, without building anything from them.
//!
//! Whatever comes from Redis or a client may be nested as deep as its length allows. So nothing here calls
//! itself: `serde_json` checks raw values with a stack of one byte a level, the rest are loops. A *token* is the
//! text of one JSON value, without white space around it, already known to be valid.
//!
//! The rules are those of JavaScript's `JSON.parse`, since clients and Rails were written against it: of
//! members with the same name the last one counts (callers overwrite), a lone surrogate in `\uXXXX` is no
//! error.
//!
//! Bounds: time and memory linear in the input. Tested by cases and by properties against `serde_json`.

use std::borrow::Cow;
use std::fmt;

use memchr::{memchr, memchr2};
use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

/// Whether `text` is one JSON value with nothing but white space around it.
pub fn is_valid(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Calls `each` with the name and the token of every member, in order. False if `text` is not a JSON
/// object; some members may have been seen by then.
pub fn members<'a>(text: &'a str, each: impl FnMut(&str, &'a str)) -> bool {
    let mut json = Deserializer::from_str(text);
    json.deserialize_map(Members(each)).is_ok() && json.end().is_ok()
}

/// Calls `each` with the token of every element, in order. False if `text` is not a JSON array.
pub fn elements<'a>(text: &'a str, each: impl FnMut(&'a str)) -> bool {
    let mut json = Deserializer::from_str(text);
    json.deserialize_seq(Elements(each)).is_ok() && json.end().is_ok()
}

/// What kind of value a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `"…"`
    Text,
    /// A number.
    Number,
    /// `true` or `false`
    Bool,
    /// `null`
    Null,
    /// `[…]`
    Array,
    /// `{…}`
    Object,
}

/// What kind of value `token` is.
pub fn kind(token: impl AsRef<[u8]>) -> Kind {
    match token.as_ref().first() {
        Some(b'"') => Kind::Text,
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::Array,
        Some(b't' | b'f') => Kind::Bool,
        Some(b'-' | b'0'..=b'9') => Kind::Number,
        _ => Kind::Null,
    }
}

/// Whether JavaScript takes the value for true: not `null`, `false`, `""`, or a zero (`0.0`, `-0`, `1e-999`).
pub fn is_truthy(token: &str) -> bool {
    match kind(token) {
        Kind::Text => token.len() > 2,
        Kind::Number => token.parse::<f64>().is_ok_and(|number| number != 0.0),
        Kind::Bool => token == "true",
        Kind::Null => false,
        Kind::Array | Kind::Object => true,
    }
}

/// The text of a string token; none for other tokens. Lone surrogates become U+FFFD.
pub fn text(token: &str) -> Option<Cow<'_, str>> {
    let inner = token.strip_prefix('"')?.strip_suffix('"')?;
    Some(match memchr(b'\\', inner.as_bytes()) {
        None => Cow::Borrowed(inner),
        Some(_) => Cow::Owned(unescape(inner)),
    })
}

/// Appends the token without insignificant white space.
pub fn write_compact(token: &[u8], out: &mut Vec<u8>) {
    write_compact_with(token, out, |string, out| out.extend_from_slice(string));
}

/// Appends the token without insignificant white space, escaped to stand inside a JSON string.
pub fn write_compact_escaped(token: &[u8], out: &mut Vec<u8>) {
    write_compact_with(token, out, push_escaped);
}

fn write_compact_with(token: &[u8], out: &mut Vec<u8>, push_string: impl Fn(&[u8], &mut Vec<u8>)) {
    let mut rest = token;
    while let Some(quote) = rest.iter().position(|&byte| byte == b'"') {
        let (between, string) = rest.split_at(quote);
        push_without_space(between, out);
        let (string, after) = string.split_at(string_token_len(string));
        push_string(string, out);
        rest = after;
    }
    push_without_space(rest, out);
}

/// Appends `text` as a JSON string token, as JavaScript's `JSON.stringify` does.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0C => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// The length of the string token that `bytes` begins with, quotes included; all of `bytes` if it has no end.
fn string_token_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = bytes.get(at..).and_then(find_quote_or_backslash) {
        at += found;
        if bytes.get(at) == Some(&b'"') {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// Most strings in a status are short: the first bytes are looked at one by one, since a vectorised search
/// costs more to start than they do.
fn find_quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    const NEAR: usize = 16;
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\');
    match bytes.split_at_checked(NEAR) {
        None => bytes.iter().position(is_special),
        Some((near, far)) => {
            near.iter().position(is_special).or_else(|| memchr2(b'"', b'\\', far).map(|found| NEAR + found))
        }
    }
}

/// What stands between strings is short (`,` `:` and brackets), so byte by byte is fast enough.
fn push_without_space(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            out.push(byte);
        }
    }
}

fn push_escaped(bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(found) = find_quote_or_backslash(rest) {
        let (plain, special) = rest.split_at(found);
        let (special, after) = special.split_at(1);
        out.extend_from_slice(plain);
        out.push(b'\\');
        out.extend_from_slice(special);
        rest = after;
    }
    out.extend_from_slice(rest);
}

fn unescape(inner: &str) -> String {
    let mut out = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((plain, escape)) = rest.split_once('\\') {
        out.push_str(plain);
        let mut after = escape.chars();
        match after.next() {
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{C}'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('u') => {
                let (c, used) = unescape_unicode(after.as_str());
                out.push(c);
                rest = after.as_str().get(used..).unwrap_or_default();
                continue;
            }
            Some(other) => out.push(other),
            None => {}
        }
        rest = after.as_str();
    }
    out.push_str(rest);
    out
}

/// The character of `XXXX` or `XXXX\uXXXX`, and how many bytes of `hex` it took.
fn unescape_unicode(hex: &str) -> (char, usize) {
    let unit = |at: usize| u32::from_str_radix(hex.get(at..at + 4)?, 16).ok();
    let Some(high) = unit(0) else { return (char::REPLACEMENT_CHARACTER, 4) };
    if let Some(c) = char::from_u32(high) {
        return (c, 4);
    }
    if high < 0xDC00
        && hex.get(4..6) == Some("\\u")
        && let Some(low @ 0xDC00..=0xDFFF) = unit(6)
        && let Some(c) = char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    {
        return (c, 10);
    }
    (char::REPLACEMENT_CHARACTER, 4)
}

struct Members<F>(F);

impl<'de, F: FnMut(&str, &'de str)> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        // Names are read raw too: as text they would fail over a lone surrogate.
        while let Some((name, value)) = map.next_entry::<&RawValue, &RawValue>()? {
            if let Some(name) = text(name.get()) {
                (self.0)(&name, value.get());
            }
        }
        Ok(())
    }
}

struct Elements<F>(F);

impl<'de, F: FnMut(&'de str)> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element::<&RawValue>()? {
            (self.0)(value.get());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// Any JSON value, a few levels deep, with the characters that matter in strings.
    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any_text().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any_text(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    pub(crate) fn any_text() -> impl Strategy<Value = String> {
        "[a-c\"\\\\/ {}\\[\\]:,\\x00-\\x1f\u{e9}\u{2028}\u{1f389}]{0,12}"
    }

    /// Members with their tokens, or none if it is no object.
    fn list(text: &str) -> Option<Vec<(String, String)>> {
        let mut found = Vec::new();
        members(text, |name, token| found.push((name.to_owned(), token.to_owned()))).then_some(found)
    }

    #[test]
    fn lists_members_as_they_stand() {
        let found = list(" { \"a\" : [1, {\"b\":2}] ,\"\\u0061\":\"x\\ny\", \"\\ud800\":null, \"a\":1.50 } ")
            .unwrap();
        let found: Vec<_> = found.iter().map(|(name, token)| (name.as_str(), token.as_str())).collect();
        let expected = [("a", "[1, {\"b\":2}]"), ("a", "\"x\\ny\""), ("\u{FFFD}", "null"), ("a", "1.50")];
        assert_eq!(found, expected);
        assert_eq!(list("{}"), Some(vec![]));
    }

    #[test]
    fn refuses_what_json_parse_refuses() {
        let wrong = [
            "",
            " ",
            "[]",
            "null",
            "1",
            "\"a\"",
            "{",
            "{}x",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{'a':1}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":.5}",
            "{\"a\":1.}",
            "{\"a\":NaN}",
            "{\"a\":tru}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"\n\"}",
            "{\"a\n\":1}",
            "{1:1}",
            "\u{feff}{}",
            "{\"a\":[}]}",
            "{\"a\":[1,]}",
        ];
        for text in wrong {
            assert_eq!(list(text), None, "{text:?}");
        }
    }

    #[test]
    fn any_depth_is_read_without_recursion() {
        let deep = 1_000_000;
        let array = format!("{}{}", "[".repeat(deep), "]".repeat(deep));
        let object = format!("{}1{}", "{\"a\":".repeat(deep), "}".repeat(deep));
        assert!(is_valid(&array));
        assert!(is_valid(&object));
        assert!(!is_valid(&"[".repeat(deep)));
        assert!(!is_valid(&"{\"a\":".repeat(deep)));
        assert_eq!(list(&object).unwrap().len(), 1);
        let mut compact = Vec::new();
        write_compact_escaped(object.as_bytes(), &mut compact);
        assert_eq!(compact.len(), object.len() + 2 * deep);
    }

    #[test]
    fn truth_is_javascripts() {
        for falsy in ["null", "false", "\"\"", "0", "-0", "0.0", "0e9", "-0.00E+5", "1e-999"] {
            assert!(!is_truthy(falsy), "{falsy}");
        }
        for truthy in
            ["true", "\"0\"", "\"false\"", "1", "-1", "1e999", "0.1", "[]", "{}", "123456789012345678901234"]
        {
            assert!(is_truthy(truthy), "{truthy}");
        }
    }

    #[test]
    fn text_is_unescaped() {
        assert!(matches!(text("\"plain\""), Some(Cow::Borrowed("plain"))));
        assert_eq!(text(r#""\"\\\/\b\f\n\r\t\u00e9\ud83c\udf89""#).unwrap(), "\"\\/\u{8}\u{c}\n\r\té🎉");
        assert_eq!(text(r#""a\ud800b""#).unwrap(), "a\u{FFFD}b");
        assert_eq!(text(r#""\ud800\ud83c\udf89""#).unwrap(), "\u{FFFD}🎉");
        assert_eq!(text(r#""\ud83c\u0041\udf89""#).unwrap(), "\u{FFFD}A\u{FFFD}");
        assert_eq!(text(r#""\ud800\n""#).unwrap(), "\u{FFFD}\n");
        for other in ["1", "null", "[]", "{}"] {
            assert_eq!(text(other), None);
        }
    }

    proptest! {
        #[test]
        fn tokens_keep_their_meaning(value in any_json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let compact = serde_json::to_string(&value).unwrap();

            let mut out = Vec::new();
            write_compact(pretty.as_bytes(), &mut out);
            prop_assert_eq!(std::str::from_utf8(&out).unwrap(), &compact);

            let mut out = vec![b'"'];
            write_compact_escaped(pretty.as_bytes(), &mut out);
            out.push(b'"');
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), compact);

            prop_assert_eq!(list(&pretty).is_some(), value.is_object());
            prop_assert!(is_valid(&pretty));
        }

        #[test]
        fn text_survives_both_ways(string in any_text()) {
            let mut token = Vec::new();
            write_text(&string, &mut token);
            let token = String::from_utf8(token).unwrap();
            prop_assert_eq!(&token, &serde_json::to_string(&string).unwrap());
            let unescaped = text(&token).unwrap();
            prop_assert_eq!(unescaped.as_ref(), string.as_str());
        }

        #[test]
        fn half_objects_are_refused_without_harm(value in any_json(), cut in any::<prop::sample::Index>()) {
            let whole = format!("{{\"k\":{value}}}");
            let mut at = cut.index(whole.len());
            while !whole.is_char_boundary(at) {
                at -= 1;
            }
            prop_assert_eq!(list(&whole[..at]), None);
        }
    }
}
