//! The few fields of a certificate that rustls does not give out: which hash its signature uses, its validity
//! and its common name (X.509, RFC 5280 section 4.1; DER, ITU-T X.690).
//!
//! Pure; never panics, whatever the bytes; nothing here decides whether a certificate is to be trusted.

/// The hash of a `tls-server-end-point` channel binding (RFC 5929 section 4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const EXPLICIT_0: u8 = 0xa0;
/// UTF8String, PrintableString, T61String, IA5String
const TEXTS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 1.2.840.113549.1.1, the signatures by RSA
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
/// 1.2.840.10045.4, the signatures by ECDSA
const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];

/// The hash for channel binding: the signature's own, SHA-256 where that is MD5 or SHA-1; none where the
/// signature names no hash (Ed25519) or hides it in parameters (RSA-PSS).
pub fn signature_hash(certificate: &[u8]) -> Option<Hash> {
    let (_, rest) = take(inside(certificate)?, SEQUENCE)?;
    let (algorithm, _) = take(rest, SEQUENCE)?;
    let (id, _) = take(algorithm, OBJECT_ID)?;
    let by_rsa = id.strip_prefix(RSA);
    let by_ecdsa = id.strip_prefix(ECDSA);
    match (by_rsa, by_ecdsa) {
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => Some(Hash::Sha256),
        (Some([12]), _) | (_, Some([3, 3])) => Some(Hash::Sha384),
        (Some([13]), _) | (_, Some([3, 4])) => Some(Hash::Sha512),
        _ => None,
    }
}

/// From when until when it is valid, in seconds since 1970 (0 for earlier times).
pub fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    let (validity, _) = take(after_issuer(certificate)?, SEQUENCE)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    Some((from, until))
}

/// The first common name of its subject.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, rest) = take(after_issuer(certificate)?, SEQUENCE)?;
    let (mut subject, _) = take(rest, SEQUENCE)?;
    while !subject.is_empty() {
        let (mut set, after) = take(subject, SET)?;
        subject = after;
        while !set.is_empty() {
            let (attribute, after) = take(set, SEQUENCE)?;
            set = after;
            let (id, value) = take(attribute, OBJECT_ID)?;
            if id == COMMON_NAME {
                let (tag, text, _) = element(value)?;
                let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'))?;
                return TEXTS.contains(&tag).then(|| text.to_owned());
            }
        }
    }
    None
}

/// What is inside the certificate: the signed part, the signature's algorithm, the signature.
fn inside(certificate: &[u8]) -> Option<&[u8]> {
    take(certificate, SEQUENCE).map(|(inside, _)| inside)
}

/// The signed part from its validity on: behind version, serial number, algorithm and issuer.
fn after_issuer(certificate: &[u8]) -> Option<&[u8]> {
    let (mut rest, _) = take(inside(certificate)?, SEQUENCE)?;
    if let Some((_, after)) = take(rest, EXPLICIT_0) {
        rest = after;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    Some(rest)
}

/// The contents of the first element, if it has that tag, and what follows it.
fn take(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, contents, rest) = element(input)?;
    (found == tag).then_some((contents, rest))
}

/// Tag, contents and what follows.
fn element(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ` (RFC 5280 section 4.1.2.5).
fn time(input: &[u8]) -> Option<(u64, &[u8])> {
    let (tag, text, rest) = element(input)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, at) = match tag {
        UTC_TIME => {
            let year = number(0, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        }
        GENERALIZED_TIME => (number(0, 4)?, 4),
        _ => return None,
    };
    let (month, day) = (number(at, at + 2)?, number(at + 2, at + 4)?);
    let clock = (number(at + 4, at + 6)? * 60 + number(at + 6, at + 8)?) * 60 + number(at + 8, at + 10)?;
    // Days since 1970 in the Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 719_469;
    Some((u64::try_from(days * 86_400 + clock).unwrap_or(0), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let contents = parts.concat();
        let mut out = vec![tag, 0x82, (contents.len() >> 8) as u8, contents.len() as u8];
        out.extend(contents);
        out
    }

    fn certificate(signature: &[u8], until: &str) -> Vec<u8> {
        let name = wrap(SEQUENCE, &[&wrap(OBJECT_ID, &[COMMON_NAME]), &wrap(0x0c, &[b"db.example"])]);
        let subject = wrap(SEQUENCE, &[&wrap(SET, &[&name])]);
        let validity = wrap(
            SEQUENCE,
            &[&wrap(UTC_TIME, &[b"700101000001Z"]), &wrap(GENERALIZED_TIME, &[until.as_bytes()])],
        );
        let algorithm = wrap(SEQUENCE, &[&wrap(OBJECT_ID, &[signature])]);
        let version = wrap(EXPLICIT_0, &[&[2, 1, 2]]);
        let issuer = wrap(SEQUENCE, &[]);
        let signed = wrap(SEQUENCE, &[&version, &[2, 1, 7], &algorithm, &issuer, &validity, &subject]);
        wrap(SEQUENCE, &[&signed, &algorithm, &[3, 1, 0]])
    }

    #[test]
    fn fields_are_found() {
        let made = certificate(&[RSA, &[12]].concat(), "20240229120000Z");
        assert_eq!(signature_hash(&made), Some(Hash::Sha384));
        assert_eq!(validity(&made), Some((1, 1_709_208_000)));
        assert_eq!(common_name(&made).as_deref(), Some("db.example"));
        assert_eq!(signature_hash(&certificate(&[ECDSA, &[3, 2]].concat(), "")), Some(Hash::Sha256));
        assert_eq!(signature_hash(&certificate(&[0x2b, 0x65, 0x70], "")), None, "Ed25519 has none");
        assert_eq!(validity(&certificate(RSA, "2024022912000")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_something_or_nothing(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..200, at in 0usize..200,
            byte in any::<u8>()
        ) {
            let mut made = certificate(&[RSA, &[11]].concat(), "20300101000000Z");
            if let Some(place) = made.get_mut(at) {
                *place = byte;
            }
            made.truncate(cut.max(1));
            for input in [&bytes, &made] {
                let _ = (signature_hash(input), validity(input), common_name(input));
            }
        }
    }
}
