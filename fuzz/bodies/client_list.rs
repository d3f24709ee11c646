//! The texts of `CLIENT LIST` and of `CONFIG GET client-output-buffer-limit`, against readers that go word by word.
//!
//! Input: a byte that chooses between the two, eight bytes for our client's number, then the text.

use std::time::Duration;

use tidegate::redis::headroom::{Headroom, Held, OutputLimits, find_omem};

pub fn run(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    if choice % 2 == 0 {
        let Some((id, text)) = rest.split_first_chunk::<8>() else { return };
        let text = String::from_utf8_lossy(text);
        // Small numbers, so that lines can have them.
        let id = u64::from_le_bytes(*id) >> (u64::from(choice / 2) % 64);
        let found = find_omem(&text, id);
        assert_eq!(found, omem(&text, id), "{text:?}");
        let headroom = Headroom::default();
        headroom.set_held(found.map_or(Held::Unknown, Held::Bytes), Duration::from_secs(1));
        let reading = headroom.read();
        assert_eq!(reading.last_bytes, found.unwrap_or(0));
        let _ = reading.is_half_used(Duration::from_secs(1), Duration::from_secs(1), u64::MAX);
        return;
    }
    let text = String::from_utf8_lossy(rest);
    let limits = OutputLimits::parse(&text);
    assert_eq!(limits, of_subscribers(&text), "{text:?}");
    let headroom = Headroom::default();
    headroom.set_limits(limits);
    for (held, at) in [(0, 1), (u64::MAX, 2), (1 << 24, 3)] {
        headroom.set_held(Held::Bytes(held), Duration::from_secs(at));
        let reading = headroom.read();
        assert_eq!(reading.limits_told, limits.is_some());
        let used = reading.is_half_used(Duration::from_secs(at), Duration::from_secs(at), 0);
        let hard = reading.limits.hard_bytes;
        assert!(held != 0 || !used || hard == 1, "nothing is held: {reading:?}");
        assert!(held != u64::MAX || hard == 0 || used, "all is held: {reading:?}");
    }
}

/// The number behind `omem=` in the first line whose `id=` is that one.
fn omem(text: &str, id: u64) -> Option<u64> {
    for line in text.split_inclusive('\n') {
        let line = line.strip_suffix("\r\n").or(line.strip_suffix('\n')).unwrap_or(line);
        let mut ids = line.split(' ').filter(|word| word.starts_with("id="));
        if ids.next().and_then(|word| number(&word[3..])) != Some(id) {
            continue;
        }
        let mut amounts = line.split(' ').filter(|word| word.starts_with("omem="));
        if let Some(bytes) = amounts.next().and_then(|word| number(&word[5..])) {
            return Some(bytes);
        }
    }
    None
}

/// The three numbers behind the first word `pubsub`.
fn of_subscribers(text: &str) -> Option<OutputLimits> {
    let words: Vec<&str> =
        text.split(|c: char| c.is_ascii_whitespace()).filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|word| *word == "pubsub")?;
    let [hard, soft, seconds] = [1, 2, 3].map(|n| words.get(at + n).and_then(|word| number(word)));
    Some(OutputLimits { hard_bytes: hard?, soft_bytes: soft?, soft: Duration::from_secs(seconds?) })
}

/// Decimal digits, with a plus sign in front at most, as an unsigned number.
fn number(text: &str) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    if digits.len() > 20 {
        return None;
    }
    let value = digits.bytes().fold(0u128, |value, digit| value * 10 + u128::from(digit - b'0'));
    u64::try_from(value).ok()
}
