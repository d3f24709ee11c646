//! Hashtags: what may stand in one, and what must not matter to it.
//!
//! Ruby itself is the judge in `tests/ruby_hashtag.rs`; here it is Unicode's own invariants, and for ASCII a
//! loop over bytes. Input: the tag as a client may write it.

use tidegate::core::hashtag::normalise;
use tidegate::core::stream::{Channel, Tag};
use unicode_normalization::UnicodeNormalization;

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let tag = normalise(&text);
    let tag = tag.as_str();
    assert!(tag.len() <= 11 * text.len());
    if text.is_ascii() {
        let kept = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let expected: Vec<u8> = text.bytes().filter(kept).map(|byte| byte.to_ascii_lowercase()).collect();
        assert_eq!(tag.as_bytes(), expected);
    }
    assert!(!tag.contains(|c: char| c.is_control() || c.is_whitespace() || ":#.,/?*[]\\\"".contains(c)));

    // However its characters are composed, it is the same tag.
    let nfd: String = text.nfd().collect();
    assert_eq!(normalise(&nfd).as_str(), tag);
    let nfkc: String = text.nfkc().collect();
    assert_eq!(normalise(&nfkc).as_str(), tag);
    // Punctuation keeps neighbours apart and leaves no trace.
    for at in [data.len() / 3, data.len() / 2] {
        let at = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let (left, right) = text.split_at(at);
        let apart = format!("{left}!{right}");
        assert_eq!(
            normalise(&apart).as_str(),
            format!("{}{}", normalise(left).as_str(), normalise(right).as_str())
        );
    }
    // A tag that comes back from the server is the tag that it was, but for marks whose separator went away
    // and that compose now; after that nothing changes.
    let again = normalise(tag);
    let composed: String = tag.nfkc().collect();
    if composed == tag {
        assert_eq!(again.as_str(), tag);
    }
    let third = normalise(again.as_str());
    assert_eq!(third, again, "from {text:?}");

    for local in [false, true] {
        let channel = Channel::Hashtag { tag: Tag::from_normalised(tag), local };
        let mut name = Vec::new();
        channel.write_name(&mut name);
        assert_eq!(Channel::parse(&name), Some(channel));
    }
}
