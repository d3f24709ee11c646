//! A second look at chains that webpki refuses for what it does not know: certificates of version 1 (PostgreSQL's
//! manual makes them), an authority's certificate as a server's own, signatures that ring does not verify.
//!
//! The rules are OpenSSL's at security level 2: each certificate is signed by the key of the next, the last by a
//! trusted authority's; all are valid now; authorities are of version 3 and say that they are ones; usages, path
//! lengths and critical extensions are respected; RSA keys have 2048 bits or more, hashes are SHA-2. An authority
//! with name constraints is refused: webpki judges these.
//!
//! Bounds: [`BETWEEN_MAX`] certificates between, [`SIGNATURES_MAX`] signatures.

use rustls::CertificateError;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, TrustAnchor};

use super::der::{Certificate, PublicKey, oid};
use super::signature::{self, RSA_BITS_MIN, Refused};

/// Certificates of a server that are looked at besides its own.
const BETWEEN_MAX: usize = 8;

/// Signatures that are verified for one server.
const SIGNATURES_MAX: usize = 32;

/// Extensions that are respected here, or have no bearing on a server's certificate.
const KNOWN: [&[u8]; 5] =
    [oid::KEY_USAGE, oid::ALTERNATIVE_NAMES, oid::BASIC_CONSTRAINTS, oid::POLICIES, oid::EXTENDED_KEY_USAGE];

/// What rustls has no error for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("its certificate is its own authority (self-signed)")]
    SelfSigned,
    #[error("its certificate, or that of an authority, has an RSA key of {0} bits")]
    ShortKey(usize),
    #[error("its certificate is signed in a way that is not known here, or not secure (SHA-1, MD5)")]
    Signature,
    #[error(
        "its certificate's authority may sign for certain names only, which cannot be checked for this one"
    )]
    NameConstraints,
    #[error("it does not own the key of the certificate that it shows")]
    NotOwner,
    #[error("its certificate has a critical extension that is not known here")]
    Extension,
}

impl From<Fault> for CertificateError {
    fn from(fault: Fault) -> CertificateError {
        CertificateError::Other(rustls::OtherError(std::sync::Arc::new(fault)))
    }
}

/// What is needed to judge a chain.
pub(super) struct Judge<'a> {
    pub(super) known: &'a WebPkiSupportedAlgorithms,
    pub(super) anchors: &'a [TrustAnchor<'static>],
    pub(super) now: u64,
}

impl Judge<'_> {
    /// Whether a server's certificate comes from a trusted authority.
    pub(super) fn chain(
        &self,
        certificate: &Certificate<'_>,
        between: &[CertificateDer<'_>],
    ) -> Result<(), CertificateError> {
        let between: Vec<_> =
            between.iter().take(BETWEEN_MAX).filter_map(|der| Certificate::parse(der)).collect();
        let mut signatures = SIGNATURES_MAX;
        self.usable(certificate)?;
        if !certificate.has_a_servers_key() {
            return Err(CertificateError::InvalidPurpose);
        }
        self.climb(certificate, &between, 0, &mut signatures)
    }

    /// What must hold for a server's certificate whoever signed it.
    pub(super) fn usable(&self, certificate: &Certificate<'_>) -> Result<(), CertificateError> {
        let (from, until) = certificate.validity;
        if self.now < from {
            return Err(CertificateError::NotValidYet);
        }
        if self.now > until {
            return Err(CertificateError::Expired);
        }
        for extension in certificate.extensions() {
            let extension = extension.ok_or(CertificateError::BadEncoding)?;
            if extension.is_critical && !KNOWN.contains(&extension.id) {
                return Err(Fault::Extension.into());
            }
        }
        if !certificate.may_be_a_servers() {
            return Err(CertificateError::InvalidPurpose);
        }
        long_enough(&certificate.key)
    }

    /// Looks for who signed a certificate below which there are `below` authorities already.
    fn climb(
        &self,
        certificate: &Certificate<'_>,
        between: &[Certificate<'_>],
        below: usize,
        signatures: &mut usize,
    ) -> Result<(), CertificateError> {
        let mut failure = match certificate.is_self_issued() {
            true if below == 0 => Fault::SelfSigned.into(),
            _ => CertificateError::UnknownIssuer,
        };
        for anchor in self.anchors.iter().filter(|anchor| anchor.subject.as_ref() == certificate.issuer) {
            let Some(key) = PublicKey::parse(&anchor.subject_public_key_info) else { continue };
            match self.is_signed(certificate, &key, signatures) {
                Ok(()) if anchor.name_constraints.is_some() => failure = Fault::NameConstraints.into(),
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        for issuer in between.iter().filter(|issuer| issuer.subject == certificate.issuer) {
            // As many of them as there are: it is a loop.
            if below >= between.len() || issuer.authority().is_none_or(|most| most < below) {
                continue;
            }
            let judged = self.issuer(issuer).and_then(|()| {
                self.is_signed(certificate, &issuer.key, signatures)?;
                self.climb(issuer, between, below + 1, signatures)
            });
            match judged {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn issuer(&self, issuer: &Certificate<'_>) -> Result<(), CertificateError> {
        self.usable(issuer)?;
        match issuer.extension(oid::NAME_CONSTRAINTS) {
            Some(_) => Err(Fault::NameConstraints.into()),
            None => Ok(()),
        }
    }

    fn is_signed(
        &self,
        certificate: &Certificate<'_>,
        by: &PublicKey<'_>,
        signatures: &mut usize,
    ) -> Result<(), CertificateError> {
        *signatures = signatures.checked_sub(1).ok_or(CertificateError::UnknownIssuer)?;
        long_enough(by)?;
        let signed = certificate.algorithm.signature().ok_or(Fault::Signature)?;
        match signature::verify(self.known, by, signed, certificate.signed, certificate.signature) {
            Ok(()) => Ok(()),
            Err(Refused::Wrong) => Err(CertificateError::BadSignature),
            Err(Refused::Unknown) => Err(Fault::Signature.into()),
        }
    }
}

pub(super) fn long_enough(key: &PublicKey<'_>) -> Result<(), CertificateError> {
    let Some((modulus, _)) = key.rsa() else { return Ok(()) };
    let first = modulus.first().map_or(8, |byte| byte.leading_zeros() as usize);
    match modulus.len() * 8 - first.min(modulus.len() * 8) {
        bits if bits < RSA_BITS_MIN => Err(Fault::ShortKey(bits).into()),
        _ => Ok(()),
    }
}
