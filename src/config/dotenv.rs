//! Reads a `.env` file as the `dotenv` package (version 17) of Mastodon's own server reads it, so that a file
//! that works there means the same here.
//!
//! Other readers of such files differ: they substitute `$` in a password, or stop at blanks in an unquoted
//! value. That package matches one regular expression repeatedly, and this file takes the same steps in the
//! same order of preference:
//!
//! - `NAME=value`, `export NAME=value` or `NAME: value`; blanks are skipped, line ends among them; text that
//!   does not match is skipped up to the next line;
//! - a value in `'…'`, `"…"` or backquotes may span lines and hold `#`. Only a comment or the line's end may
//!   follow the closing quote: that is the first quote without a backslash before it, else the last of those
//!   with one in front of it;
//! - any other value ends at `#` or at the line's end, and loses quotes around it;
//! - in double quotes `\n` and `\r` are line ends; nothing else is unescaped, nothing is substituted;
//! - the last of several assignments to one name counts.
//!
//! Pure and total: any text gives a list, never an error. The time is linear, except that each unclosed quote
//! is searched for to the text's end. Tested with a table, with random text, and against the package itself
//! (`tests/dotenv.rs`).

/// The assignments in `text`, in its order.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut found = Vec::new();
    let mut rest = text.as_str();
    loop {
        if let Some((name, value)) = name(rest) {
            let (value, after) = value_of(value);
            found.push((name.to_owned(), value));
            rest = after;
        }
        match rest.split_once(ends_line) {
            Some((_, after)) => rest = after,
            None => return found,
        }
    }
}

/// What `\s` matches in JavaScript.
fn is_blank(c: char) -> bool {
    c == '\u{feff}' || c.is_whitespace() && c != '\u{85}'
}

/// What ends a line for `^` and `$` in JavaScript; carriage returns are replaced before.
fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\u{2028}' | '\u{2029}')
}

fn is_quote(c: char) -> bool {
    matches!(c, '\'' | '"' | '`')
}

/// The name that a line assigns to, and the text from its value on.
fn name(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches(is_blank);
    let exported = line.strip_prefix("export").filter(|rest| rest.starts_with(is_blank));
    // A variable may itself be called `export`.
    exported.and_then(|rest| assignment(rest.trim_start_matches(is_blank))).or_else(|| assignment(line))
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let end = line.find(|c| !is_name(c)).filter(|end| *end > 0)?;
    let (name, after) = line.split_at(end);
    let value = match after.trim_start_matches(is_blank).strip_prefix('=') {
        Some(value) => value,
        None => after.strip_prefix(':')?.strip_prefix(is_blank)?,
    };
    Some((name, value))
}

/// The value at the start of `text`, and the text from the end of its last line on.
fn value_of(text: &str) -> (String, &str) {
    let body = text.trim_start_matches(is_blank);
    if let Some(quote) = body.chars().next().filter(|c| is_quote(*c))
        && let Some((inner, after)) = quoted(body, quote)
    {
        return (expanded(inner.to_owned(), quote), after);
    }
    let end = text.find(['#', '\n']).unwrap_or(text.len());
    let (bare, after) = text.split_at(end);
    let bare = bare.trim_matches(is_blank);
    let value = expanded(unquoted(bare), bare.chars().next().unwrap_or_default());
    (value, rest_of_line(after).unwrap_or(after))
}

/// The inside of a quoted value, and the text from the end of its line on; none where no quote closes it.
fn quoted(body: &str, quote: char) -> Option<(&str, &str)> {
    let mut escaped = Vec::new();
    let mut first_bare = None;
    for (at, _) in body.match_indices(quote).skip(1) {
        if body.get(..at).is_some_and(|before| before.ends_with('\\')) {
            escaped.push(at);
        } else {
            first_bare = Some(at);
            break;
        }
    }
    first_bare.into_iter().chain(escaped.into_iter().rev()).find_map(|close| {
        let after = rest_of_line(body.get(close + 1..)?)?;
        Some((body.get(1..close)?, after))
    })
}

/// The text from the end of the line on, if the line has nothing but blanks and a comment. Blanks may be line ends:
/// the last of them then is the end.
fn rest_of_line(text: &str) -> Option<&str> {
    let rest = text.trim_start_matches(is_blank);
    if rest.starts_with('#') {
        return Some(rest.get(rest.find(ends_line).unwrap_or(rest.len())..).unwrap_or_default());
    }
    if rest.is_empty() {
        return Some(rest);
    }
    let blanks = text.get(..text.len() - rest.len())?;
    blanks.rfind(ends_line).and_then(|end| text.get(end..))
}

/// The value without quotes around it. They are removed around each of its lines that begins with one, up to the
/// last line that ends with the same; only U+2028 and U+2029 separate lines here.
fn unquoted(value: &str) -> String {
    let mut out = String::new();
    let mut rest = value;
    loop {
        let mut end = rest.find(ends_line).unwrap_or(rest.len());
        let opened = rest.chars().next().filter(|c| is_quote(*c));
        let close = opened.and_then(|quote| {
            let ends = |at: &usize| {
                *at > 0
                    && rest.get(at + 1..).is_some_and(|rest| rest.is_empty() || rest.starts_with(ends_line))
            };
            rest.rmatch_indices(quote).map(|(at, _)| at).find(ends)
        });
        if let Some(close) = close {
            out.push_str(rest.get(1..close).unwrap_or_default());
            end = close + 1;
        } else {
            out.push_str(rest.get(..end).unwrap_or_default());
        }
        let mut after = rest.get(end..).unwrap_or_default().chars();
        let Some(separator) = after.next() else { return out };
        out.push(separator);
        rest = after.as_str();
    }
}

/// A value's text, by the quote with which it begins.
fn expanded(text: String, quote: char) -> String {
    if quote == '"' { text.replace("\\n", "\n").replace("\\r", "\r") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Option<String> {
        parse(line).into_iter().next_back().map(|(_, value)| value)
    }

    #[test]
    fn values_mean_what_they_mean_to_node() {
        let table = [
            ("A=b", "b"),
            ("A = b ", "b"),
            ("export A=b", "b"),
            ("export\tA=b", "b"),
            ("A: b", "b"),
            ("A=", ""),
            ("A=   ", ""),
            ("A=b # why", "b"),
            ("A=b#c", "b"),
            ("A='b#c' # why", "b#c"),
            ("A=\"b\\nc\"", "b\nc"),
            ("A='b\\nc'", "b\\nc"),
            ("A=\"b\nc\"\nB=1", "b\nc"),
            ("A=pa$$word$HOME", "pa$$word$HOME"),
            ("A=\"pa$HOME\"", "pa$HOME"),
            ("A=Mastodon <a@b.example>", "Mastodon <a@b.example>"),
            ("A='b' c", "'b' c"),
            ("A='b", "'b"),
            ("A=\"b\"c\"", "b\"c"),
            ("A='it''s'", "it''s"),
            ("A='b' 'c' # why", "b' 'c"),
            ("A=\"b\\n", "\"b\n"),
            ("A='", "'"),
            ("A=it's", "it's"),
            ("A=`b'\"c`", "b'\"c"),
            ("A=b=c", "b=c"),
            ("A=b\r\n", "b"),
            ("\u{feff}A=b", "b"),
            ("A.b-c=d", "d"),
            ("A=1\nA=2", "2"),
            // A closing quote may have a backslash before it, if no other one closes the value.
            ("A='has#and ends in\\'", "has#and ends in\\"),
            ("A='has#and ends in\\'\nB=1", "has#and ends in\\"),
            ("A=\"C:\\dir\\\" # why\nB='x'", "C:\\dir\\"),
            ("A=`a#\\` # `", "a#\\` # "),
            ("A='a\\'#b\\'", "a\\'#b\\"),
            ("A='a\\'#b\\' c", "a\\"),
            ("A='a\\'#b'", "a\\'#b"),
            ("A='a\\\\'#b", "a\\\\"),
            ("A='a'#b'", "a"),
            // Blanks may be line ends.
            ("A\n=\n'b\nc'", "b\nc"),
            ("A:\nb", "b"),
            ("export\nA=b", "b"),
            ("A=\nb", ""),
            ("A='b'\n\n  # it's", "b"),
            // JavaScript's blanks and line ends.
            ("\u{a0}A=\u{3000}b\u{feff}", "b"),
            ("A=\u{85}b", "\u{85}b"),
            ("A=x\u{2028}'b'", "x\u{2028}b"),
            ("\u{2029}A=b", "b"),
        ];
        for (text, value) in table {
            let found = parse(text).into_iter().rfind(|(name, _)| name.starts_with('A'));
            assert_eq!(found.map(|(_, value)| value).as_deref(), Some(value), "{text:?}");
        }
    }

    #[test]
    fn other_lines_are_skipped() {
        for line in ["", "# A=b", "A", "A:b", "=b", "  ", "A b=c", "exportA"] {
            assert_eq!(one(line), None, "{line:?}");
        }
        assert_eq!(
            parse("nothing here\nA=b\n!\nB='1\n2'\nC=3"),
            [("A".into(), "b".into()), ("B".into(), "1\n2".into()), ("C".into(), "3".into())]
        );
    }

    proptest! {
        #[test]
        fn any_text_gives_a_list(text in "([A-C]|=|'|\"|`|#|\\n|\\r| |\\\\|:|export |\u{e9}|\u{feff}|\u{2028}){0,60}") {
            parse(&text);
        }

        #[test]
        fn what_follows_a_line_is_not_lost(value in "[a-zA-Z0-9$ <>@%&*()!=:/.-]{0,20}") {
            let found = parse(&format!("A={value}\nB=2\n"));
            prop_assert_eq!(found.len(), 2);
            prop_assert_eq!(&found[0].1, value.trim());
            prop_assert_eq!(&found[1].1, "2");
        }
    }
}
