//! Reads a `.env` file the way the `dotenv` package of Mastodon's own server reads it, so that a file that
//! works there means the same here.
//!
//! That rules the usual Rust reader out: it takes `$` in a password for a reference and stops at an unquoted
//! value with blanks, both of which are literal text there. The rules:
//!
//! - `NAME=value`, `export NAME=value` or `NAME: value`, blanks around them ignored; other lines are skipped;
//! - a value in `'…'`, `"…"` or backquotes may span lines and hold `#`; in double quotes `\n` and `\r` are
//!   line ends, nothing else is unescaped and nothing is ever substituted;
//! - an unquoted value ends at `#` or at the line's end;
//! - the last of several lines for one name counts.
//!
//! Pure and total: any text gives a list, never an error. Linear but for unclosed quotes, which are looked for
//! to the text's end once per line. Tested with a table and with random text.

/// The assignments in `text`, in its order.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let line = rest.split('\n').next().unwrap_or_default();
        let Some((name, value_at)) = name(line) else {
            rest = rest.get(line.len() + 1..).unwrap_or_default();
            continue;
        };
        let (value, used) = value(rest.get(value_at..).unwrap_or_default());
        found.push((name.to_owned(), value));
        rest = rest.get(value_at + used..).unwrap_or_default();
    }
    found
}

/// The name at the start of a line, and where its value begins.
fn name(line: &str) -> Option<(&str, usize)> {
    let mut rest = line.trim_start();
    if let Some(after) = rest.strip_prefix("export").filter(|after| after.starts_with([' ', '\t'])) {
        rest = after.trim_start();
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let end = rest.find(|c| !is_name(c)).filter(|end| *end > 0)?;
    let (name, after) = rest.split_at(end);
    let value = match after.trim_start().strip_prefix('=') {
        Some(value) => value,
        None => after.strip_prefix(':').filter(|value| value.starts_with([' ', '\t']))?,
    };
    Some((name, line.len() - value.len()))
}

/// The value at the start of `text`, and how many bytes it takes with the rest of its line.
fn value(text: &str) -> (String, usize) {
    let blanks = text.len() - text.trim_start_matches([' ', '\t']).len();
    let body = text.get(blanks..).unwrap_or_default();
    if let Some(quote) = body.chars().next().filter(|c| is_quote(*c))
        && let Some((inner, end)) = quoted(body, quote)
    {
        return (unescaped(inner, quote), blanks + end);
    }
    let line = body.split('\n').next().unwrap_or_default();
    let bare = line.split('#').next().unwrap_or_default().trim();
    let quote = bare.chars().next().unwrap_or_default();
    // Quotes around it go even where the same stand in it (`"a"b"`), which are not the end of a quoted value.
    let inner = bare.get(1..).and_then(|rest| rest.strip_suffix(quote)).filter(|_| is_quote(quote));
    (unescaped(inner.unwrap_or(bare), quote), (blanks + line.len() + 1).min(text.len()))
}

fn is_quote(c: char) -> bool {
    matches!(c, '\'' | '"' | '`')
}

/// The text of a value that begins with `quote`.
fn unescaped(inner: &str, quote: char) -> String {
    if quote == '"' { inner.replace("\\n", "\n").replace("\\r", "\r") } else { inner.to_owned() }
}

/// The inside of a quoted value, and where its line ends; none where the quote is not closed or is followed
/// by something else than a comment (then it is part of an unquoted value).
fn quoted(body: &str, quote: char) -> Option<(&str, usize)> {
    let mut escaped = false;
    let close = body.char_indices().skip(1).find_map(|(at, c)| {
        let closes = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })?;
    let inner = body.get(1..close)?;
    let line = body.get(close + 1..)?.split('\n').next().unwrap_or_default();
    let after = line.trim_start();
    (after.is_empty() || after.starts_with('#'))
        .then_some((inner, (close + 1 + line.len() + 1).min(body.len())))
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
            ("A=\"b\nc\"\nB=1", "1"),
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
        ];
        for (line, value) in table {
            assert_eq!(one(line).as_deref(), Some(value), "{line:?}");
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
        fn any_text_gives_a_list(text in "([A-C]|=|'|\"|`|#|\\n|\\r| |\\\\|:|export |\u{e9}|\u{feff}){0,60}") {
            parse(&text);
        }

        #[test]
        fn what_follows_a_line_is_not_lost(value in "[a-zA-Z0-9$ <>@%&*()!=:/.-]{0,20}") {
            let found = parse(&format!("A={value}\nB=2\n"));
            prop_assert_eq!(found.len(), 2);
            prop_assert_eq!(&found[0].1, value.trim());
        }
    }
}
