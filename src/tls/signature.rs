//! Signatures of servers and of their certificates, as far as OpenSSL verifies them at its usual security level.
//!
//! rustls's provider (ring) verifies the common ones. The rest is done by RustCrypto: RSA with keys under 2048 bits,
//! with SHA-224 or a salt of any length; ECDSA on P-521, or with a hash that is not the curve's own. Keys are
//! public and so is everything here: no time has to be constant.
//!
//! Not supported: Ed448, DSA, MD5 and SHA-1, other curves.

use rsa::Pkcs1v15Sign;
use rsa::signature::hazmat::PrehashVerifier;
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::SignatureVerificationAlgorithm;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

use super::der::{Hash, PublicKey, Signature, oid};

/// A shorter RSA key proves nothing to somebody who wants proof (NIST SP 800-131A; OpenSSL's security level 2).
pub(super) const RSA_BITS_MIN: usize = 2048;

/// RSASSA-PSS by a key of that kind alone (RFC 8446 section 4.2.3); rustls has no names for these.
const PSS_KEY_SHA256: SignatureScheme = SignatureScheme::Unknown(0x0809);
const PSS_KEY_SHA384: SignatureScheme = SignatureScheme::Unknown(0x080a);
const PSS_KEY_SHA512: SignatureScheme = SignatureScheme::Unknown(0x080b);

/// What is offered to servers, the best first.
pub(super) const SCHEMES: [SignatureScheme; 13] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP521_SHA512,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    PSS_KEY_SHA256,
    PSS_KEY_SHA384,
    PSS_KEY_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// Whether that is an ECDSA signature of a digest, by the crate of its curve.
macro_rules! ec {
    ($curve:ident, $key:expr, $digest:expr, $signature:expr) => {
        match (
            $curve::ecdsa::VerifyingKey::from_sec1_bytes($key.bits),
            $curve::ecdsa::DerSignature::try_from($signature),
        ) {
            (Ok(key), Ok(signature)) => key.verify_prehash($digest, &signature).is_ok(),
            _ => false,
        }
    };
}

/// Why a signature is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refused {
    /// It is not that key's signature.
    Wrong,
    /// Key, algorithm or their combination are not known here.
    Unknown,
}

/// Checks a signature in a handshake. With TLS 1.3 a scheme stands for a curve too.
pub(super) fn verify_handshake(
    known: &WebPkiSupportedAlgorithms,
    key: &PublicKey<'_>,
    scheme: SignatureScheme,
    is_tls13: bool,
    message: &[u8],
    signature: &[u8],
) -> Result<(), Refused> {
    let (hash, kind) = match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => (Hash::Sha256, Some(oid::P256)),
        SignatureScheme::ECDSA_NISTP384_SHA384 => (Hash::Sha384, Some(oid::P384)),
        SignatureScheme::ECDSA_NISTP521_SHA512 => (Hash::Sha512, Some(oid::P521)),
        SignatureScheme::RSA_PSS_SHA256 | PSS_KEY_SHA256 => (Hash::Sha256, None),
        SignatureScheme::RSA_PSS_SHA384 | PSS_KEY_SHA384 => (Hash::Sha384, None),
        SignatureScheme::RSA_PSS_SHA512 | PSS_KEY_SHA512 => (Hash::Sha512, None),
        SignatureScheme::RSA_PKCS1_SHA256 if !is_tls13 => (Hash::Sha256, None),
        SignatureScheme::RSA_PKCS1_SHA384 if !is_tls13 => (Hash::Sha384, None),
        SignatureScheme::RSA_PKCS1_SHA512 if !is_tls13 => (Hash::Sha512, None),
        SignatureScheme::ED25519 => (Hash::Sha512, None),
        _ => return Err(Refused::Unknown),
    };
    if is_tls13 && kind.is_some() && key.curve() != kind {
        return Err(Refused::Wrong);
    }
    let named = known.mapping.iter().filter(|(named, _)| *named == scheme);
    let provided = named.flat_map(|(_, algorithms)| algorithms.iter());
    if is_one_valid(provided.copied(), key, message, signature) {
        return Ok(());
    }
    let signed = match scheme {
        SignatureScheme::ED25519 => Signature::Ed25519,
        SignatureScheme::RSA_PKCS1_SHA256
        | SignatureScheme::RSA_PKCS1_SHA384
        | SignatureScheme::RSA_PKCS1_SHA512 => Signature::Pkcs1(hash),
        _ if kind.is_some() => Signature::Ecdsa(hash),
        _ => Signature::Pss { hash, salt_bytes: bytes(hash) },
    };
    verify(known, key, signed, message, signature)
}

/// Checks a signature of a certificate, or any that is not the provider's.
pub(super) fn verify(
    known: &WebPkiSupportedAlgorithms,
    key: &PublicKey<'_>,
    signed: Signature,
    message: &[u8],
    signature: &[u8],
) -> Result<(), Refused> {
    let is_valid = match signed {
        Signature::Ed25519 if key.algorithm.id == oid::ED25519 => {
            is_one_valid(known.all.iter().copied(), key, message, signature)
        }
        Signature::Pkcs1(hash) if key.algorithm.id == oid::RSA_ENCRYPTION => {
            let padding = match hash {
                Hash::Md5 | Hash::Sha1 => return Err(Refused::Unknown),
                Hash::Sha224 => Pkcs1v15Sign::new::<Sha224>(),
                Hash::Sha256 => Pkcs1v15Sign::new::<Sha256>(),
                Hash::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
                Hash::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
            };
            rsa_key(key)?.verify(padding, &digest(hash, message)?, signature).is_ok()
        }
        Signature::Pss { hash, salt_bytes } => {
            let key = rsa_key(key)?;
            match hash {
                Hash::Md5 | Hash::Sha1 => return Err(Refused::Unknown),
                Hash::Sha224 => pss::<Sha224>(key, salt_bytes, message, signature),
                Hash::Sha256 => pss::<Sha256>(key, salt_bytes, message, signature),
                Hash::Sha384 => pss::<Sha384>(key, salt_bytes, message, signature),
                Hash::Sha512 => pss::<Sha512>(key, salt_bytes, message, signature),
            }
        }
        Signature::Ecdsa(hash) => {
            let digest = digest(hash, message)?;
            match key.curve() {
                Some(oid::P256) => ec!(p256, key, &digest, signature),
                Some(oid::P384) => ec!(p384, key, &digest, signature),
                Some(oid::P521) => ec!(p521, key, &digest, signature),
                _ => return Err(Refused::Unknown),
            }
        }
        Signature::Ed25519 | Signature::Pkcs1(_) => return Err(Refused::Unknown),
    };
    if is_valid { Ok(()) } else { Err(Refused::Wrong) }
}

fn is_one_valid<'a>(
    mut algorithms: impl Iterator<Item = &'a dyn SignatureVerificationAlgorithm>,
    key: &PublicKey<'_>,
    message: &[u8],
    signature: &[u8],
) -> bool {
    algorithms.any(|algorithm| {
        algorithm.public_key_alg_id().as_ref() == key.algorithm.contents
            && algorithm.verify_signature(key.bits, message, signature).is_ok()
    })
}

fn digest(hash: Hash, message: &[u8]) -> Result<Vec<u8>, Refused> {
    Ok(match hash {
        Hash::Md5 | Hash::Sha1 => return Err(Refused::Unknown),
        Hash::Sha224 => Sha224::digest(message).to_vec(),
        Hash::Sha256 => Sha256::digest(message).to_vec(),
        Hash::Sha384 => Sha384::digest(message).to_vec(),
        Hash::Sha512 => Sha512::digest(message).to_vec(),
    })
}

fn bytes(hash: Hash) -> usize {
    match hash {
        Hash::Md5 => 16,
        Hash::Sha1 => 20,
        Hash::Sha224 => 28,
        Hash::Sha256 => 32,
        Hash::Sha384 => 48,
        Hash::Sha512 => 64,
    }
}

/// Of 1024 to 8192 bits.
fn rsa_key(key: &PublicKey<'_>) -> Result<rsa::PublicKey, Refused> {
    let (modulus, exponent) = key.rsa().ok_or(Refused::Unknown)?;
    if modulus.len() > 1024 || exponent.len() > 8 {
        return Err(Refused::Unknown);
    }
    let number = rsa::BoxedUint::from_be_slice_vartime;
    rsa::PublicKey::new(number(modulus), number(exponent)).map_err(|_| Refused::Unknown)
}

fn pss<D>(key: rsa::PublicKey, salt_bytes: usize, message: &[u8], signature: &[u8]) -> bool
where
    D: Digest + rsa::signature::digest::FixedOutputReset,
{
    let Ok(signature) = rsa::pss::Signature::try_from(signature) else { return false };
    let key = rsa::pss::VerifyingKey::<D>::new_with_salt_len(key, salt_bytes);
    key.verify_prehash(&D::digest(message), &signature).is_ok()
}
