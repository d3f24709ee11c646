//! Hashtags as Rails stores and publishes them.
//!
//! Rails normalises a tag before it names a channel with it (`app/lib/hashtag_normalizer.rb`): NFKC, lower
//! case, accented Latin letters to ASCII, and then only letters, decimal digits and a few joiners stay. A
//! client may write the tag in any spelling, so a subscription has to go the same way or it listens to a
//! channel on which nobody publishes.
//!
//! The last two steps decide for scripts that the Latin alphabet does not think of: Ruby's `[[:alnum:]]` is
//! Unicode's `Alphabetic` (which holds most vowel signs) and `Nd`, and the marks U+0E47 to U+0E4E stay for
//! Thai. Ruby lower-cases character by character: no rule for a final sigma. Which characters are alphabetic
//! depends on the version of Unicode: ours is that of Ruby 3.4 or later; Ruby before knows 38 rare marks fewer.
//!
//! Bounds: the result is at most 11 times as long as the input (NFKC of U+FDFA), and inputs are bounded by
//! the caller. Tested with a table whose right side was printed by Ruby, and by `tests/ruby_hashtag.rs`, which
//! asks Ruby itself about every character where it is installed.

use unicode_normalization::UnicodeNormalization;

use crate::core::stream::Tag;

/// Normalises a hashtag as a client wrote it (without `#`). May end up empty: a tag of punctuation only.
pub fn normalise(text: &str) -> Tag {
    let kept: String = text
        .nfkc()
        .flat_map(char::to_lowercase)
        .map(fold_to_ascii)
        .filter(|&c| may_stand_in_tag(c))
        .collect();
    Tag::from_normalised(&kept)
}

fn may_stand_in_tag(c: char) -> bool {
    match c {
        'a'..='z' | '0'..='9' | '_' => true,
        '\u{B7}' | '\u{30FB}' | '\u{200C}' | '\u{E47}'..='\u{E4E}' => true,
        _ if c.is_ascii() => false,
        _ => c.is_alphabetic() || is_decimal_digit(c),
    }
}

/// The lower-case half of Rails' table (`app/lib/ascii_folding.rb`): folding comes after lower-casing.
fn fold_to_ascii(c: char) -> char {
    match c {
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ā' | 'ă' | 'ą' => 'a',
        'ç' | 'ć' | 'ĉ' | 'ċ' | 'č' => 'c',
        'ð' | 'ď' | 'đ' => 'd',
        'è' | 'é' | 'ê' | 'ë' | 'ē' | 'ĕ' | 'ė' | 'ę' | 'ě' => 'e',
        'ĝ' | 'ğ' | 'ġ' | 'ģ' => 'g',
        'ĥ' | 'ħ' => 'h',
        'ì' | 'í' | 'î' | 'ï' | 'ĩ' | 'ī' | 'ĭ' | 'į' | 'ı' => 'i',
        'ĵ' => 'j',
        'ķ' | 'ĸ' => 'k',
        'ĺ' | 'ļ' | 'ľ' | 'ł' => 'l',
        'ñ' | 'ń' | 'ņ' | 'ň' | 'ŋ' => 'n',
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' | 'ō' | 'ŏ' | 'ő' => 'o',
        'ŕ' | 'ŗ' | 'ř' => 'r',
        'ś' | 'ŝ' | 'ş' | 'š' => 's',
        'ţ' | 'ť' | 'ŧ' => 't',
        'ù' | 'ú' | 'û' | 'ü' | 'ũ' | 'ū' | 'ŭ' | 'ů' | 'ű' | 'ų' => 'u',
        'ŵ' => 'w',
        'ý' | 'ÿ' | 'ŷ' => 'y',
        'ź' | 'ż' | 'ž' => 'z',
        _ => c,
    }
}

/// General category `Nd`: always ten in a row, zero first.
fn is_decimal_digit(c: char) -> bool {
    let code = u32::from(c);
    match ZERO_DIGITS.partition_point(|&zero| zero <= code).checked_sub(1).and_then(|i| ZERO_DIGITS.get(i)) {
        Some(zero) => code - zero < 10,
        None => false,
    }
}

/// The digits zero of all scripts (Unicode 17), sorted.
#[rustfmt::skip]
const ZERO_DIGITS: [u32; 77] = [
    0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66,
    0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0, 0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946,
    0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620, 0xA8D0, 0xA900, 0xA9D0,
    0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x10D40, 0x11066, 0x110F0, 0x11136, 0x111D0,
    0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x116D0, 0x116DA, 0x11730, 0x118E0, 0x11950, 0x11BF0,
    0x11C50, 0x11D50, 0x11DA0, 0x11DE0, 0x11F50, 0x16130, 0x16A60, 0x16AC0, 0x16B50, 0x16D70, 0x1CCF0,
    0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E5F1, 0x1E950, 0x1FBF0,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Left: as written. Right: what Ruby 3.1 made of it, by Rails' four steps.
    const CASES: &[(&str, &str)] = &[
        // Latin
        ("Mastodon", "mastodon"),
        ("Ünïcode", "unicode"),
        ("SÃOPaulo", "saopaulo"),
        ("e\u{301}t\u{e9}", "ete"),
        ("Straße", "straße"),
        ("STRAẞE", "straße"),
        ("Œuvre", "œuvre"),
        ("Łódź", "lodz"),
        ("Þing", "þing"),
        ("Ŋ", "n"),
        ("ĸ", "k"),
        ("ŉ", "ʼn"),
        ("ſ", "s"),
        ("ǅ", "dz"),
        ("Col·lecció", "col·leccio"),
        ("ŀl", "l·l"),
        // Turkish: a dotted capital loses its dot, a dotless letter gains one
        ("İstanbul", "istanbul"),
        ("ISPARTA", "isparta"),
        ("ısı", "isi"),
        // Compatibility forms
        ("ＦｕｌｌＷｉｄｔｈ１２３", "fullwidth123"),
        ("ﬁn", "fin"),
        ("x²", "x2"),
        ("½", "12"),
        ("Ⅷ", "viii"),
        ("Ⓐ", "a"),
        ("𝟘𝟙", "01"),
        ("\u{2126}", "ω"),
        ("\u{212A}", "k"),
        ("\u{212B}", "a"),
        // Greek: every sigma alike
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευσ"),
        ("Οδυσσεύς", "οδυσσεύς"),
        ("ᾼ", "ᾳ"),
        // Other scripts with case
        ("МАСТОДОН", "мастодон"),
        ("Ꭰ", "ꭰ"),
        ("𞤀𞤣", "𞤢𞤣"),
        // Thai keeps its marks, sara am comes apart
        ("ไม่", "ไม่"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("น้ำ", "น้ํา"),
        ("กีฬา", "กีฬา"),
        // Indic scripts keep vowel signs and lose the virama
        ("हिन्दी", "हिनदी"),
        ("क्रिकेट", "करिकेट"),
        ("தமிழ்", "தமிழ"),
        ("বাংলা", "বাংলা"),
        ("ಕನ್ನಡ", "ಕನನಡ"),
        ("සිංහල", "සිංහල"),
        ("မြန်မာ၂၀၂၄", "မြနမာ၂၀၂၄"),
        ("ខ្មែរ", "ខមែរ"),
        // Vocalised Arabic, Persian with its joiner, Hebrew with points
        ("العَرَبِيَّة", "العَرَبِيَّة"),
        ("مُحَمَّد", "مُحَمَّد"),
        ("٢٠٢٤", "٢٠٢٤"),
        ("نمی\u{200C}خواهم", "نمی\u{200C}خواهم"),
        ("שָׁלוֹם", "שָׁלוֹם"),
        // Japanese, Korean, Chinese
        ("ゲーム・オブ・スローンズ", "ゲーム・オブ・スローンズ"),
        ("ｱ･ｲ", "ア・イ"),
        ("ﾊﾝｶｸ", "ハンカク"),
        ("㍿", "株式会社"),
        ("アニメ\u{3000}テスト", "アニメテスト"),
        ("한국어", "한국어"),
        ("中文标签", "中文标签"),
        // Punctuation, emoji, nothing
        ("c++", "c"),
        ("rust-lang", "rustlang"),
        ("foo:bar", "foobar"),
        ("snake_case", "snake_case"),
        ("a b\tc\n", "abc"),
        ("a\u{200D}b", "ab"),
        ("🎉party🎉", "party"),
        ("👩\u{200D}💻", ""),
        ("🇩", ""),
        ("!!!", ""),
        ("", ""),
    ];

    #[test]
    fn normalises_as_rails_does() {
        for (written, normalised) in CASES {
            assert_eq!(normalise(written).as_str(), *normalised, "{written:?}");
        }
    }

    #[test]
    fn knows_every_decimal_digit() {
        let decimal = regex::Regex::new(r"^\p{Nd}$").unwrap();
        for c in '\0'..=char::MAX {
            // The regex crate may know an older Unicode than our table, and the standard library does not
            // tell decimal digits from other numbers: between the two there is no room for a mistake.
            let ours = is_decimal_digit(c);
            assert!(
                ours || !decimal.is_match(c.encode_utf8(&mut [0; 4])),
                "U+{:04X} is missing",
                u32::from(c)
            );
            assert!(!ours || c.is_numeric(), "U+{:04X} is no digit", u32::from(c));
        }
    }

    proptest! {
        #[test]
        fn stays_within_its_bounds_and_out_of_channel_syntax(text in "\\PC{0,40}") {
            let tag = normalise(&text);
            prop_assert!(tag.as_str().len() <= 11 * text.len());
            prop_assert!(!tag.as_str().contains([':', '#', ' ']));
            prop_assert!(tag.as_str().chars().all(may_stand_in_tag));
        }
    }
}
