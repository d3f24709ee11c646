//! X.509 certificates as far as they decide about a connection (RFC 5280 section 4.1; DER, ITU-T X.690), of every
//! version: names, validity, key, signature and extensions.
//!
//! Pure; never panics, whatever the bytes; borrows everything from its input. Nothing here decides whether a
//! certificate is to be trusted. Tested by properties here, by the fuzz target `der` (x509-parser is its judge) and
//! with openssl's certificates in `tests/tls_matrix.rs`.

/// A hash function of a signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Hash {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const EXPLICIT_0: u8 = 0xa0;
const EXPLICIT_1: u8 = 0xa1;
const EXPLICIT_2: u8 = 0xa2;
const EXPLICIT_3: u8 = 0xa3;
const IMPLICIT_1: u8 = 0x81;
const IMPLICIT_2: u8 = 0x82;
/// UTF8String, PrintableString, T61String, IA5String
const TEXTS: [u8; 4] = [0x0c, 0x13, 0x14, 0x16];

/// Object identifiers, as DER has their contents.
pub mod oid {
    #![allow(missing_docs)]
    pub const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
    pub const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
    pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
    pub const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
    pub const POLICIES: &[u8] = &[0x55, 0x1d, 0x20];
    pub const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
    pub const SERVER_AUTHENTICATION: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
    /// 1.2.840.113549.1.1, with keys and signatures by RSA
    pub const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    pub const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    pub const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
    pub const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
    /// 1.2.840.10045.4, the signatures by ECDSA
    pub const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    pub const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    pub const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    pub const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
    pub const P521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
    pub const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    pub const SHA1: &[u8] = &[0x2b, 0x0e, 0x03, 0x02, 0x1a];
    /// 2.16.840.1.101.3.4.2, the hashes of SHA-2
    pub const SHA2: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
}

/// A certificate's fields.
#[derive(Clone, Debug)]
pub struct Certificate<'a> {
    /// What the signature is over.
    pub signed: &'a [u8],
    /// How it is signed.
    pub algorithm: Algorithm<'a>,
    /// The signature.
    pub signature: &'a [u8],
    /// 1, 2 or 3.
    pub version: u8,
    /// Who signed it: the contents of its name.
    pub issuer: &'a [u8],
    /// From when until when it is valid, in seconds since 1970 (0 for earlier times).
    pub validity: (u64, u64),
    /// Whose it is: the contents of the name.
    pub subject: &'a [u8],
    /// Its key.
    pub key: PublicKey<'a>,
    extensions: &'a [u8],
}

/// An `AlgorithmIdentifier`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Algorithm<'a> {
    /// All of it, without tag and length.
    pub contents: &'a [u8],
    /// Which.
    pub id: &'a [u8],
    /// Its parameters, with tag and length; may be empty.
    pub parameters: &'a [u8],
}

/// A `SubjectPublicKeyInfo`.
#[derive(Clone, Copy, Debug)]
pub struct PublicKey<'a> {
    /// What kind of key.
    pub algorithm: Algorithm<'a>,
    /// The key.
    pub bits: &'a [u8],
}

/// One extension of version 3.
#[derive(Clone, Copy, Debug)]
pub struct Extension<'a> {
    /// Which.
    pub id: &'a [u8],
    /// Whether whoever does not know it must refuse the certificate.
    pub is_critical: bool,
    /// Its contents.
    pub value: &'a [u8],
}

/// How a certificate is signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Signature {
    Pkcs1(Hash),
    Pss { hash: Hash, salt_bytes: usize },
    Ecdsa(Hash),
    Ed25519,
}

impl<'a> Certificate<'a> {
    /// Reads a certificate; none where it is not one.
    pub fn parse(certificate: &'a [u8]) -> Option<Certificate<'a>> {
        let (inside, after) = take(certificate, SEQUENCE)?;
        let (signed, rest) = whole(inside, SEQUENCE)?;
        let (algorithm, rest) = Algorithm::read(rest)?;
        let (signature, rest) = bit_string(rest)?;
        if !after.is_empty() || !rest.is_empty() {
            return None;
        }
        let (mut rest, _) = take(signed, SEQUENCE)?;
        let mut version = 1;
        if let Some((number, after)) = take(rest, EXPLICIT_0) {
            let (&[number @ 0..=2], _) = take(number, INTEGER)? else { return None };
            version = number + 1;
            rest = after;
        }
        let (_serial, rest) = take(rest, INTEGER)?;
        let (algorithm_inside, rest) = Algorithm::read(rest)?;
        if algorithm_inside != algorithm {
            return None;
        }
        let (issuer, rest) = take(rest, SEQUENCE)?;
        let (validity, rest) = take(rest, SEQUENCE)?;
        let (from, until) = time(validity)?;
        let (until, _) = time(until)?;
        let (subject, rest) = take(rest, SEQUENCE)?;
        let (key, mut rest) = take(rest, SEQUENCE)?;
        // Unique identifiers, of issuer and subject.
        for tag in [IMPLICIT_1, IMPLICIT_2] {
            if let Some((_, after)) = take(rest, tag) {
                rest = after;
            }
        }
        let extensions = match take(rest, EXPLICIT_3) {
            Some((extensions, _)) if version == 3 => take(extensions, SEQUENCE)?.0,
            None if rest.is_empty() => &[],
            _ => return None,
        };
        let key = PublicKey::parse(key)?;
        let validity = (from, until);
        Some(Certificate {
            signed,
            algorithm,
            signature,
            version,
            issuer,
            validity,
            subject,
            key,
            extensions,
        })
    }

    /// Its extensions; an entry is none where it is malformed, and the last then.
    pub fn extensions(&self) -> impl Iterator<Item = Option<Extension<'a>>> + use<'a> {
        let mut rest = self.extensions;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let next = Extension::read(rest);
            rest = next.map_or(&[], |(_, after)| after);
            Some(next.map(|(extension, _)| extension))
        })
    }

    /// An extension's value, the first if there are several.
    pub fn extension(&self, id: &[u8]) -> Option<&'a [u8]> {
        self.extensions().flatten().find(|extension| extension.id == id).map(|extension| extension.value)
    }

    /// The first common name of its subject.
    pub fn common_name(&self) -> Option<String> {
        let mut subject = self.subject;
        while !subject.is_empty() {
            let (mut set, after) = take(subject, SET)?;
            subject = after;
            while !set.is_empty() {
                let (attribute, after) = take(set, SEQUENCE)?;
                set = after;
                let (id, value) = take(attribute, OBJECT_ID)?;
                if id == oid::COMMON_NAME {
                    let (tag, text, _) = element(value)?;
                    let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'))?;
                    return TEXTS.contains(&tag).then(|| text.to_owned());
                }
            }
        }
        None
    }

    /// Whether it names itself as its issuer.
    pub fn is_self_issued(&self) -> bool {
        self.issuer == self.subject
    }

    /// Whether it may sign certificates, and below how many further authorities at most; none where it may not.
    /// Authorities are of version 3 here: in version 1, everybody would be one.
    pub fn authority(&self) -> Option<usize> {
        let (constraints, _) = take(self.extension(oid::BASIC_CONSTRAINTS)?, SEQUENCE)?;
        let (is_authority, rest) = take(constraints, BOOLEAN)?;
        if is_authority.iter().all(|byte| *byte == 0) {
            return None;
        }
        if let Some(usage) = self.extension(oid::KEY_USAGE) {
            // keyCertSign is bit 5, counted from the first byte's highest.
            let (bits, _) = take(usage, BIT_STRING)?;
            bits.get(1).filter(|bits| **bits & 0x04 != 0)?;
        }
        match take(rest, INTEGER) {
            Some((&[most @ 0..=0x7f], _)) => Some(usize::from(most)),
            Some(_) => Some(0x7f),
            None => Some(usize::MAX),
        }
    }

    /// Whether its key may do what a server does with it, as far as it says what its key is for.
    pub fn has_a_servers_key(&self) -> bool {
        let Some(usage) = self.extension(oid::KEY_USAGE) else { return true };
        // digitalSignature, keyEncipherment or keyAgreement
        take(usage, BIT_STRING).and_then(|(bits, _)| bits.get(1)).is_some_and(|bits| bits & 0xa8 != 0)
    }

    /// Whether it may be a server's, as far as it says what it is for.
    pub fn may_be_a_servers(&self) -> bool {
        let Some(usages) = self.extension(oid::EXTENDED_KEY_USAGE) else { return true };
        let Some((mut usages, _)) = take(usages, SEQUENCE) else { return false };
        while let Some((usage, rest)) = take(usages, OBJECT_ID) {
            if usage == oid::SERVER_AUTHENTICATION {
                return true;
            }
            usages = rest;
        }
        false
    }
}

impl<'a> Algorithm<'a> {
    fn read(input: &'a [u8]) -> Option<(Algorithm<'a>, &'a [u8])> {
        let (contents, rest) = take(input, SEQUENCE)?;
        let (id, parameters) = take(contents, OBJECT_ID)?;
        Some((Algorithm { contents, id, parameters }, rest))
    }

    /// The signature that it names, if that is known here.
    pub fn signature(&self) -> Option<Signature> {
        if self.id == oid::RSA_PSS {
            return self.pss();
        }
        let hash = |number: u8| match number {
            1 => Some(Hash::Sha224),
            2 => Some(Hash::Sha256),
            3 => Some(Hash::Sha384),
            4 => Some(Hash::Sha512),
            _ => None,
        };
        if self.id == oid::ED25519 {
            return Some(Signature::Ed25519);
        }
        match (self.id.strip_prefix(oid::RSA), self.id.strip_prefix(oid::ECDSA)) {
            (Some([4]), _) => Some(Signature::Pkcs1(Hash::Md5)),
            (Some([5]), _) => Some(Signature::Pkcs1(Hash::Sha1)),
            (Some([14]), _) => Some(Signature::Pkcs1(Hash::Sha224)),
            (Some([number @ 11..=13]), _) => Some(Signature::Pkcs1(hash(number - 9)?)),
            (_, Some([1])) => Some(Signature::Ecdsa(Hash::Sha1)),
            (_, Some([3, number])) => Some(Signature::Ecdsa(hash(*number)?)),
            _ => None,
        }
    }

    /// RSASSA-PSS has its hash, the hash of its mask and its salt's length in parameters (RFC 4055 section 3.1). The
    /// two hashes are the same everywhere, so others are not known here.
    fn pss(&self) -> Option<Signature> {
        let (mut rest, _) = take(self.parameters, SEQUENCE)?;
        let (mut hash, mut mask, mut salt_bytes) = (Hash::Sha1, Hash::Sha1, 20);
        if let Some((given, after)) = take(rest, EXPLICIT_0) {
            hash = Algorithm::read(given)?.0.hash()?;
            rest = after;
        }
        if let Some((given, after)) = take(rest, EXPLICIT_1) {
            let generator = Algorithm::read(given)?.0;
            if generator.id != oid::MGF1 {
                return None;
            }
            mask = Algorithm::read(generator.parameters)?.0.hash()?;
            rest = after;
        }
        if let Some((given, _)) = take(rest, EXPLICIT_2) {
            salt_bytes = match take(given, INTEGER)?.0 {
                [byte @ 0..=0x7f] => usize::from(*byte),
                [0, byte] => usize::from(*byte),
                [high @ 1..=0x7f, low] => usize::from(*high) << 8 | usize::from(*low),
                _ => return None,
            };
        }
        (hash == mask).then_some(Signature::Pss { hash, salt_bytes })
    }

    fn hash(&self) -> Option<Hash> {
        if self.id == oid::SHA1 {
            return Some(Hash::Sha1);
        }
        match self.id.strip_prefix(oid::SHA2)? {
            [1] => Some(Hash::Sha256),
            [2] => Some(Hash::Sha384),
            [3] => Some(Hash::Sha512),
            [4] => Some(Hash::Sha224),
            _ => None,
        }
    }
}

impl<'a> PublicKey<'a> {
    /// Reads the contents of a `SubjectPublicKeyInfo`.
    pub fn parse(info: &'a [u8]) -> Option<PublicKey<'a>> {
        let (algorithm, rest) = Algorithm::read(info)?;
        let (bits, _) = bit_string(rest)?;
        Some(PublicKey { algorithm, bits })
    }

    /// An RSA key's modulus and exponent, without leading zeros.
    pub fn rsa(&self) -> Option<(&'a [u8], &'a [u8])> {
        if ![oid::RSA_ENCRYPTION, oid::RSA_PSS].contains(&self.algorithm.id) {
            return None;
        }
        let (inside, _) = take(self.bits, SEQUENCE)?;
        let (modulus, rest) = take(inside, INTEGER)?;
        let (exponent, _) = take(rest, INTEGER)?;
        Some((positive(modulus), positive(exponent)))
    }

    /// The curve of an elliptic curve's key, by its object identifier.
    pub fn curve(&self) -> Option<&'a [u8]> {
        (self.algorithm.id == oid::EC_PUBLIC_KEY).then_some(())?;
        take(self.algorithm.parameters, OBJECT_ID).map(|(curve, _)| curve)
    }
}

impl<'a> Extension<'a> {
    fn read(input: &'a [u8]) -> Option<(Extension<'a>, &'a [u8])> {
        let (inside, rest) = take(input, SEQUENCE)?;
        let (id, mut inside) = take(inside, OBJECT_ID)?;
        let mut is_critical = false;
        if let Some((critical, after)) = take(inside, BOOLEAN) {
            is_critical = critical.iter().any(|byte| *byte != 0);
            inside = after;
        }
        let (value, _) = take(inside, OCTET_STRING)?;
        Some((Extension { id, is_critical, value }, rest))
    }
}

/// An integer's bytes without leading zeros.
fn positive(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    integer.get(zeros..).unwrap_or_default()
}

/// A string of whole bytes, and what follows it.
fn bit_string(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (contents, rest) = take(input, BIT_STRING)?;
    match contents.split_first() {
        Some((0, bits)) => Some((bits, rest)),
        _ => None,
    }
}

/// The first element with tag and length, if it has that tag, and what follows it.
fn whole(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (_, rest) = take(input, tag)?;
    input.split_at_checked(input.len() - rest.len())
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

    /// With that signature's algorithm, that end, and these extensions (version 1 without any).
    fn certificate(algorithm: &[u8], until: &str, extensions: &[&[u8]]) -> Vec<u8> {
        let name = wrap(SEQUENCE, &[&wrap(OBJECT_ID, &[oid::COMMON_NAME]), &wrap(0x0c, &[b"db.example"])]);
        let subject = wrap(SEQUENCE, &[&wrap(SET, &[&name])]);
        let validity = wrap(
            SEQUENCE,
            &[&wrap(UTC_TIME, &[b"700101000001Z"]), &wrap(GENERALIZED_TIME, &[until.as_bytes()])],
        );
        let algorithm = wrap(SEQUENCE, &[algorithm]);
        let issuer = wrap(SEQUENCE, &[]);
        let ed25519 = wrap(SEQUENCE, &[&wrap(OBJECT_ID, &[oid::ED25519])]);
        let key = wrap(SEQUENCE, &[&ed25519, &[BIT_STRING, 2, 0, 9]]);
        let (version, extensions) = match extensions {
            [] => (Vec::new(), Vec::new()),
            extensions => (
                wrap(EXPLICIT_0, &[&[INTEGER, 1, 2]]),
                wrap(EXPLICIT_3, &[&wrap(SEQUENCE, &[&extensions.concat()])]),
            ),
        };
        let signed = wrap(
            SEQUENCE,
            &[&version, &[INTEGER, 1, 7], &algorithm, &issuer, &validity, &subject, &key, &extensions],
        );
        wrap(SEQUENCE, &[&signed, &algorithm, &[BIT_STRING, 2, 0, 5]])
    }

    fn id(parts: &[&[u8]]) -> Vec<u8> {
        wrap(OBJECT_ID, parts)
    }

    fn extension(id: &[u8], value: &[u8]) -> Vec<u8> {
        wrap(SEQUENCE, &[&wrap(OBJECT_ID, &[id]), &[BOOLEAN, 1, 0xff], &wrap(OCTET_STRING, &[value])])
    }

    #[test]
    fn fields_are_found() {
        let made = certificate(&id(&[oid::RSA, &[12]]), "20240229120000Z", &[]);
        let read = Certificate::parse(&made).unwrap();
        assert_eq!(read.algorithm.signature(), Some(Signature::Pkcs1(Hash::Sha384)));
        assert_eq!((read.version, read.validity), (1, (1, 1_709_208_000)));
        assert_eq!(read.common_name().as_deref(), Some("db.example"));
        assert_eq!((read.key.bits, read.signature), (&[9][..], &[5][..]));
        assert!(read.may_be_a_servers() && read.authority().is_none() && !read.is_self_issued());
        assert!(Certificate::parse(&certificate(&id(&[oid::RSA, &[12]]), "2024022912000", &[])).is_none());
    }

    #[test]
    fn signatures_are_told_apart() {
        let signature = |algorithm: &[u8]| {
            let made = certificate(algorithm, "20300101000000Z", &[]);
            Certificate::parse(&made).unwrap().algorithm.signature()
        };
        assert_eq!(signature(&id(&[oid::ECDSA, &[3, 4]])), Some(Signature::Ecdsa(Hash::Sha512)));
        assert_eq!(signature(&id(&[oid::RSA, &[14]])), Some(Signature::Pkcs1(Hash::Sha224)));
        assert_eq!(signature(&id(&[oid::ED25519])), Some(Signature::Ed25519));
        assert_eq!(signature(&id(&[oid::RSA, &[2]])), None, "MD2");
        let hash = |number: u8| wrap(SEQUENCE, &[&id(&[oid::SHA2, &[number]])]);
        let pss = |hash: &[u8], mask: &[u8], salt: &[u8]| {
            let mask = wrap(SEQUENCE, &[&id(&[oid::MGF1]), mask]);
            let salt = wrap(EXPLICIT_2, &[&wrap(INTEGER, &[salt])]);
            let given = wrap(SEQUENCE, &[&wrap(EXPLICIT_0, &[hash]), &wrap(EXPLICIT_1, &[&mask]), &salt]);
            signature(&[id(&[oid::RSA_PSS]), given].concat())
        };
        let expected = Signature::Pss { hash: Hash::Sha256, salt_bytes: 222 };
        assert_eq!(pss(&hash(1), &hash(1), &[0, 222]), Some(expected));
        assert_eq!(pss(&hash(1), &hash(2), &[32]), None, "a mask of another hash");
        let defaults = [id(&[oid::RSA_PSS]), wrap(SEQUENCE, &[])].concat();
        assert_eq!(signature(&defaults), Some(Signature::Pss { hash: Hash::Sha1, salt_bytes: 20 }));
    }

    #[test]
    fn extensions_say_who_may_sign_and_serve() {
        let of = |extensions: &[&[u8]]| certificate(&id(&[oid::ED25519]), "20300101000000Z", extensions);
        let authority = |constraints: &[u8], usage: &[&[u8]]| {
            let constraints = extension(oid::BASIC_CONSTRAINTS, &wrap(SEQUENCE, &[constraints]));
            let all = [&[constraints.as_slice()], usage].concat();
            Certificate::parse(&of(&all)).unwrap().authority()
        };
        let usage = |bits: u8| extension(oid::KEY_USAGE, &[BIT_STRING, 2, 1, bits]);
        assert_eq!(authority(&[BOOLEAN, 1, 0xff], &[]), Some(usize::MAX));
        assert_eq!(authority(&[BOOLEAN, 1, 0xff, INTEGER, 1, 0], &[&usage(0x06)]), Some(0));
        assert_eq!(authority(&[BOOLEAN, 1, 0xff], &[&usage(0x80)]), None, "not for signing certificates");
        assert_eq!(authority(&[], &[]), None);
        let serves = |usage: &[u8]| {
            let usages = wrap(SEQUENCE, &[&wrap(OBJECT_ID, &[usage])]);
            Certificate::parse(&of(&[&extension(oid::EXTENDED_KEY_USAGE, &usages)]))
                .unwrap()
                .may_be_a_servers()
        };
        assert!(serves(oid::SERVER_AUTHENTICATION) && !serves(&[0x2b, 6, 1, 5, 5, 7, 3, 2]));
        let cut = certificate(&id(&[oid::ED25519]), "20300101000000Z", &[&[SEQUENCE, 1]]);
        assert_eq!(Certificate::parse(&cut).map(|read| read.extensions().flatten().count()), Some(0));
    }

    proptest! {
        #[test]
        fn any_bytes_give_something_or_nothing(
            bytes in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..300, at in 0usize..300,
            byte in any::<u8>()
        ) {
            let usage = extension(oid::KEY_USAGE, &[BIT_STRING, 2, 1, 6]);
            let mut made = certificate(&id(&[oid::RSA_PSS]), "20300101000000Z", &[&usage]);
            if let Some(place) = made.get_mut(at) {
                *place = byte;
            }
            made.truncate(cut.max(1));
            for input in [&bytes, &made] {
                if let Some(read) = Certificate::parse(input) {
                    let _ = (read.common_name(), read.authority(), read.may_be_a_servers(), read.key.rsa());
                    let _ = read.has_a_servers_key();
                    let _ = (read.algorithm.signature(), read.extensions().count(), read.key.curve());
                }
            }
        }
    }
}
