//! Whether a server is who it should be.
//!
//! rustls's own checks (webpki), and two that OpenSSL, and so libpq, Rails and Node, have besides: a server's
//! certificate that is itself named as trusted is trusted, authority or not (the usual way with self-signed
//! ones); and where a certificate has no alternative names, its common name counts.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::der;

/// What is verified.
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
    /// Trusted certificates that may be a server's own.
    own: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    pub(super) fn new(
        verify: Verify,
        roots: RootCertStore,
        own: Vec<CertificateDer<'static>>,
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
        if self.own.iter().any(|own| own.as_ref() == certificate.as_ref()) {
            let (from, until) = der::validity(certificate).ok_or(CertificateError::BadEncoding)?;
            return match now.as_secs() {
                now if now < from => Err(CertificateError::NotValidYet.into()),
                now if now > until => Err(CertificateError::Expired.into()),
                _ => Ok(()),
            };
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, self.algorithms.all)
    }

    fn name(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        match verify_server_name(&parsed, name) {
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                presented, ..
            })) if presented.is_empty()
                && der::common_name(certificate).is_some_and(|common| matches(&common, &name.to_str())) =>
            {
                Ok(())
            }
            result => result,
        }
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
        // Without verification a signature proves nothing: whoever stands between would use a key of its own.
        if self.verify == Verify::Nothing {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.verify == Verify::Nothing {
            return Ok(HandshakeSignatureValid::assertion());
        }
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
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
