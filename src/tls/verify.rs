//! Whether a server is who it should be.
//!
//! rustls's own checks (webpki), and what OpenSSL, and so libpq, Rails and Node, have besides: a server's
//! certificate that is itself named as trusted is trusted, authority or not (the usual way with self-signed
//! ones); where a certificate has no alternative names, its common name counts; and what webpki does not know is
//! looked at by [`chain`].
//!
//! Whatever is verified of the certificate, the server must prove that it has the certificate's key: passwords are
//! bound to the certificate (`tls-server-end-point`), so anybody could show a copy of it otherwise.

use std::collections::HashSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use super::chain::{Fault, Judge, long_enough};
use super::der::{Certificate, oid};
use super::signature::{self, Refused, SCHEMES};

/// What is verified of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verify {
    /// Nothing: encrypted, but to whom is not known.
    Nothing,
    /// That the certificate comes from a trusted authority.
    Chain,
    /// And that it is for that host.
    ChainAndName,
}

#[derive(Debug)]
pub(super) struct Verifier {
    verify: Verify,
    roots: Arc<RootCertStore>,
    /// Trusted certificates that may be a server's own, by their SHA-256.
    own: HashSet<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(
        verify: Verify,
        roots: RootCertStore,
        own: HashSet<[u8; 32]>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Verifier {
        Verifier { verify, roots: Arc::new(roots), own, algorithms }
    }

    fn chain(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let judge = Judge { known: &self.algorithms, anchors: &self.roots.roots, now: now.as_secs() };
        let read = Certificate::parse(certificate);
        if self.own.contains::<[u8; 32]>(&Sha256::digest(certificate).into()) {
            return judge.usable(&read.ok_or(CertificateError::BadEncoding)?).map_err(Error::from);
        }
        let algorithms = self.algorithms.all;
        let refused = match ParsedCertificate::try_from(certificate).and_then(|parsed| {
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, algorithms)
        }) {
            Ok(()) => return read.map_or(Ok(()), |read| long_enough(&read.key).map_err(Error::from)),
            Err(refused) => refused,
        };
        match read.map(|certificate| judge.chain(&certificate, between)) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) if is_ignorance(&refused) => Err(error.into()),
            _ => Err(refused),
        }
    }

    fn name(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
        let refused = match ParsedCertificate::try_from(certificate) {
            Ok(parsed) => match verify_server_name(&parsed, name) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            },
            Err(refused) => refused,
        };
        let read = Certificate::parse(certificate).ok_or(CertificateError::BadEncoding)?;
        let presents_none = match &refused {
            Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
                presented.is_empty()
            }
            _ => read.extension(oid::ALTERNATIVE_NAMES).is_none(),
        };
        match read.common_name() {
            Some(common) if presents_none && matches(&common, &name.to_str()) => Ok(()),
            // rustls has it only for names that it read itself.
            Some(common) if presents_none => Err(CertificateError::NotValidForNameContext {
                expected: name.to_owned(),
                presented: vec![common],
            }
            .into()),
            _ => Err(refused),
        }
    }

    fn handshake(
        &self,
        is_tls13: bool,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let read = Certificate::parse(certificate).ok_or(CertificateError::BadEncoding)?;
        let (scheme, bytes) = (signature.scheme, signature.signature());
        match signature::verify_handshake(&self.algorithms, &read.key, scheme, is_tls13, message, bytes) {
            Ok(()) => Ok(HandshakeSignatureValid::assertion()),
            Err(Refused::Wrong) => Err(CertificateError::from(Fault::NotOwner).into()),
            Err(Refused::Unknown) => Err(Error::General(format!(
                "the server signs with a key of a kind that is not known here ({scheme:?})"
            ))),
        }
    }
}

/// Whether webpki refuses what it does not know, rather than what it knows to be wrong.
fn is_ignorance(refused: &Error) -> bool {
    use CertificateError as Bad;
    match refused {
        Error::InvalidCertificate(bad) => matches!(
            bad,
            Bad::BadEncoding
                // Which it calls a signature by a key that is too short, too.
                | Bad::BadSignature
                | Bad::Other(_)
                | Bad::UnhandledCriticalExtension
                | Bad::UnsupportedSignatureAlgorithmContext { .. }
                | Bad::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        ),
        _ => true,
    }
}

/// Whether a common name is for that host; `*.` stands for one label.
fn matches(common: &str, host: &str) -> bool {
    match common.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(label, rest)| {
            !label.is_empty() && domain.contains('.') && rest.eq_ignore_ascii_case(domain)
        }),
        None => common.eq_ignore_ascii_case(host),
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.verify != Verify::Nothing {
            self.chain(certificate, between, now)?;
        }
        if self.verify == Verify::ChainAndName {
            self.name(certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.handshake(false, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.handshake(true, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn common_names() {
        for (common, host, expected) in [
            ("db.example", "DB.example", true),
            ("db.example", "a.db.example", false),
            ("*.db.example", "a.db.example", true),
            ("*.db.example", "a.b.db.example", false),
            ("*.db.example", "db.example", false),
            ("*.example", "db.example", false),
            ("*", "db", false),
        ] {
            assert_eq!(matches(common, host), expected, "{common} {host}");
        }
    }
}
