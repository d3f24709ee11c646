//! A domain as Rails stores it: lower case, NFKC, and Punycode (RFC 3492) in each label that is not ASCII.
//!
//! A status's `acct` carries the domain in Unicode, `account_domain_blocks.domain` in this form. The text comes from
//! Rails, which decoded it from this form, so the mappings of IDNA are not needed again. Tested against the crate
//! `idna`, which with its tables would add more to the program than everything that reads PostgreSQL's rows.

use unicode_normalization::UnicodeNormalization as _;

/// The longest name of a host. What is longer is no domain and stays as it is.
const DOMAIN_BYTES_MAX: usize = 1024;

/// The domain in the form in which Rails compares it.
pub fn to_ascii(domain: &str) -> String {
    if domain.is_ascii() || domain.len() > DOMAIN_BYTES_MAX {
        return domain.to_ascii_lowercase();
    }
    let folded: String = domain.nfkc().flat_map(char::to_lowercase).nfkc().collect();
    let mut out = String::with_capacity(folded.len() + 8);
    for (number, label) in folded.split('.').enumerate() {
        if number > 0 {
            out.push('.');
        }
        if label.is_ascii() {
            out.push_str(label);
        } else {
            out.push_str("xn--");
            encode(label, &mut out);
        }
    }
    out
}

// RFC 3492, section 5.
const BASE: u32 = 36;
const T_MIN: u32 = 1;
const T_MAX: u32 = 26;
const SKEW: u32 = 38;
const DAMP: u32 = 700;
const FIRST_BIAS: u32 = 72;
const FIRST_CODE: u32 = 128;

/// Section 6.3. No number overflows: a label has at most [`DOMAIN_BYTES_MAX`] characters, each below 2^21.
fn encode(label: &str, out: &mut String) {
    let ascii = label.chars().filter(char::is_ascii).count() as u32;
    out.extend(label.chars().filter(char::is_ascii));
    if ascii > 0 {
        out.push('-');
    }
    let total = label.chars().count() as u32;
    let (mut code, mut delta, mut bias, mut done) = (FIRST_CODE, 0u32, FIRST_BIAS, ascii);
    while done < total {
        let Some(next) = label.chars().map(u32::from).filter(|c| *c >= code).min() else { return };
        delta += (next - code) * (done + 1);
        code = next;
        for c in label.chars().map(u32::from) {
            if c < code {
                delta += 1;
            }
            if c == code {
                write_number(delta, bias, out);
                bias = adapted(delta, done + 1, done == ascii);
                delta = 0;
                done += 1;
            }
        }
        delta += 1;
        code += 1;
    }
}

fn write_number(mut number: u32, bias: u32, out: &mut String) {
    let mut at = BASE;
    loop {
        let threshold = at.saturating_sub(bias).clamp(T_MIN, T_MAX);
        if number < threshold {
            return out.push(digit(number));
        }
        out.push(digit(threshold + (number - threshold) % (BASE - threshold)));
        number = (number - threshold) / (BASE - threshold);
        at += BASE;
    }
}

/// `a` to `z`, then `0` to `9`.
fn digit(value: u32) -> char {
    char::from_digit((value + 10) % BASE, BASE).unwrap_or('a')
}

/// Section 6.1.
fn adapted(delta: u32, count: u32, is_first: bool) -> u32 {
    let mut delta = if is_first { delta / DAMP } else { delta / 2 };
    delta += delta / count;
    let mut at = 0;
    while delta > (BASE - T_MIN) * T_MAX / 2 {
        delta /= BASE - T_MIN;
        at += BASE;
    }
    at + (BASE - T_MIN + 1) * delta / (delta + SKEW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn domains_as_rails_stores_them() {
        let cases = [
            ("far.example", "far.example"),
            ("FAR.Example", "far.example"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("B\u{dc}CHER.example", "xn--bcher-kva.example"),
            // Decomposed.
            ("bu\u{308}cher.example", "xn--bcher-kva.example"),
            ("\u{4f8b}\u{3048}.\u{30c6}\u{30b9}\u{30c8}", "xn--r8jz45g.xn--zckzah"),
            ("\u{441}\u{430}\u{439}\u{442}.\u{440}\u{444}", "xn--80aswg.xn--p1ai"),
            ("\u{1f30a}.example", "xn--qg8h.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("", ""),
            ("..", ".."),
        ];
        for (domain, expected) in cases {
            assert_eq!(to_ascii(domain), expected, "{domain}");
        }
        let long = "\u{fc}".repeat(DOMAIN_BYTES_MAX);
        assert_eq!(to_ascii(&long), long);
    }

    proptest! {
        /// What another implementation decodes, this one encodes to what it was: that is the way a domain takes through
        /// Rails.
        #[test]
        fn what_idna_decodes_is_encoded_back(label in "[a-z0-9\u{e0}-\u{f6}\u{430}-\u{44f}\u{3041}-\u{3090}\u{4e00}-\u{4fff}]{1,20}") {
            let Ok(ascii) = idna::domain_to_ascii(&format!("{label}.example")) else { return Ok(()) };
            let (unicode, good) = idna::domain_to_unicode(&ascii);
            prop_assume!(good.is_ok());
            prop_assert_eq!(to_ascii(&unicode), ascii);
        }

        #[test]
        fn any_text_is_encoded_without_harm(text in any::<String>()) {
            let _ = to_ascii(&text);
        }
    }
}
