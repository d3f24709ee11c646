//! TLS towards Redis, Sentinel, PostgreSQL and the receiver of traces: whom to trust, and what to do when a
//! handshake fails.
//!
//! rustls with the ring provider, TLS 1.2 and 1.3. A [`Client`] is made once at the start (a file that cannot
//! be read ends the start) and shared by all connections. What is verified of a certificate is chosen per use: nothing,
//! the chain, or the chain and the name ([`Verify`]); [`verify`] does it, with [`signature`] for what ring does not
//! verify and [`chain`] for what webpki does not know. [`der`] reads certificates.
//!
//! ring rather than aws-lc-rs: that adds 2.0 MiB to the program and C code to every build, and knows neither SHA-224
//! nor short RSA keys with PSS nor Ed448 either; RustCrypto's verifiers add a third of a MiB.
//!
//! Bounds: a certificate file is at most [`FILE_BYTES_MAX`] long.
//! Tested against real servers in `tests/db_tls.rs`, `tests/tls_matrix.rs`, `tests/redis_tls.rs` and
//! `tests/e2e_otel_receiver.rs`.

use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, RootCertStore};

use sha2::{Digest, Sha256};

use crate::config::{ClientCert, RootCerts, Tls};
use chain::Fault;

mod chain;
pub mod der;
mod signature;
mod verify;

pub use verify::Verify;

/// Longest certificate file that is read. The system's bundle has about 220 KB.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

/// Where systems keep their certificate authorities, as one PEM file.
const SYSTEM_BUNDLES: [&str; 5] = [
    // Debian, Ubuntu, Arch, Alpine, NixOS
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    // openSUSE
    "/etc/ssl/ca-bundle.pem",
    // Alpine, BSD
    "/etc/ssl/cert.pem",
];

/// Why TLS cannot be set up. Names the file and the variable.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A file is missing, or not ours to read.
    #[error("{variable}: {} cannot be read ({error})", path.display())]
    Unreadable {
        /// What names the file.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// A file is longer than [`FILE_BYTES_MAX`].
    #[error(
        "{variable}: {} is longer than {} MiB; a file of certificates is meant (PEM)",
        path.display(),
        FILE_BYTES_MAX >> 20
    )]
    TooLong {
        /// What names the file.
        variable: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// There is nothing of use in a file.
    #[error("{variable}: {} holds no {wanted} in PEM form", path.display())]
    Empty {
        /// What names the file.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("{} and {} cannot be used ({error})", names.cert, names.key)]
    Identity {
        /// What names the files.
        names: &'static Names,
        /// Why.
        error: rustls::Error,
    },
    /// The library refuses its own defaults.
    #[error("TLS cannot be set up ({0})")]
    Library(rustls::Error),
}

/// What names the files of one kind of connections, for messages.
#[derive(Debug)]
pub struct Names {
    /// Whom to trust.
    pub roots: &'static str,
    /// Our own certificate.
    pub cert: &'static str,
    /// Its key.
    pub key: &'static str,
}

/// PostgreSQL's, in its URL.
pub const POSTGRESQL: Names = Names { roots: "sslrootcert", cert: "sslcert", key: "sslkey" };

/// How connections of one kind are encrypted. Clones share everything.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    verify: Verify,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

impl PartialEq for Client {
    fn eq(&self, other: &Client) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
}

impl Eq for Client {}

impl Client {
    /// For Redis and Sentinel: chain and name, as Node verifies them, unless
    /// `NODE_TLS_REJECT_UNAUTHORIZED=0`.
    ///
    /// # Errors
    /// Only where a file that is named cannot be used.
    pub fn for_redis(tls: &Tls) -> Result<Client, SetupError> {
        let verify = if tls.verify { Verify::ChainAndName } else { Verify::Nothing };
        Client::new(verify, &RootCerts::Default, tls, None, &POSTGRESQL)
    }

    /// For whatever is to be verified by these roots; `identity` is our own certificate.
    ///
    /// # Errors
    /// Where a file that is named cannot be used.
    pub fn new(
        verify: Verify,
        roots: &RootCerts,
        tls: &Tls,
        identity: Option<&ClientCert>,
        names: &'static Names,
    ) -> Result<Client, SetupError> {
        let trusted =
            if verify == Verify::Nothing { Trusted::default() } else { trusted(roots, tls, names)? };
        let mut store = RootCertStore::empty();
        // A bundle may hold one that is not understood.
        let _ = store.add_parsable_certificates(trusted.named.iter().chain(&trusted.system).cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let own = trusted.named.iter().map(|named| Sha256::digest(named).into()).collect();
        let verifier = verify::Verifier::new(verify, store, own, algorithms);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(SetupError::Library)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(ClientCert { cert, key }) => {
                let chain = certificates(names.cert, cert)?;
                let key = private_key(names.key, key)?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| SetupError::Identity { names, error })?
            }
        };
        Ok(Client { config: Arc::new(config), verify })
    }

    /// What asynchronous connections need.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// The state of a new connection to that host.
    ///
    /// # Errors
    /// Where the host is no name that a certificate could be for.
    pub fn connection(&self, host: &str) -> Result<ClientConnection, rustls::Error> {
        let name = self.server_name(host).map_err(|error| rustls::Error::General(error.to_string()))?;
        ClientConnection::new(self.config(), name)
    }

    /// A host as certificates name it.
    ///
    /// # Errors
    /// Where it is neither a name nor an address, and its certificate's name is verified.
    pub fn server_name(&self, host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
        match ServerName::try_from(host.to_owned()) {
            // For an address the server is told no name, and nobody looks whose the certificate is.
            Err(_) if self.verify != Verify::ChainAndName => Ok(IpAddr::from([0, 0, 0, 0]).into()),
            name => name,
        }
    }
}

/// Certificates that are believed.
#[derive(Default)]
struct Trusted {
    /// From a file that the operator names.
    named: Vec<CertificateDer<'static>>,
    /// The system's.
    system: Vec<CertificateDer<'static>>,
}

fn trusted(roots: &RootCerts, tls: &Tls, names: &Names) -> Result<Trusted, SetupError> {
    match roots {
        RootCerts::File(path) => {
            Ok(Trusted { named: certificates(names.roots, path)?, ..Trusted::default() })
        }
        RootCerts::System => Ok(Trusted { system: system(tls)?, ..Trusted::default() }),
        RootCerts::Default => {
            let named = match tls.extra_ca.as_deref().map(|path| certificates("NODE_EXTRA_CA_CERTS", path)) {
                Some(Ok(named)) => named,
                // As Node does: the variable may be meant for another program.
                Some(Err(error)) => {
                    tracing::warn!("{error}; it is not used");
                    Vec::new()
                }
                None => Vec::new(),
            };
            let system = system(tls)?;
            if named.is_empty() && system.is_empty() {
                tracing::warn!(
                    "no certificate authorities are known: install the package ca-certificates, or name a file \
                     by NODE_EXTRA_CA_CERTS"
                );
            }
            Ok(Trusted { named, system })
        }
    }
}

fn system(tls: &Tls) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    if let Some(path) = &tls.system_ca {
        return certificates("SSL_CERT_FILE", path);
    }
    let there = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.is_file());
    there.map_or_else(|| Ok(Vec::new()), |path| certificates("the system's bundle", path))
}

fn certificates(variable: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let text = read(variable, path)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok).collect();
    if found.is_empty() {
        return Err(SetupError::Empty { variable, path: path.to_owned(), wanted: "certificate" });
    }
    Ok(found)
}

fn private_key(variable: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, SetupError> {
    let text = read(variable, path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| SetupError::Empty {
        variable,
        path: path.to_owned(),
        wanted: "private key without a password",
    })
}

fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, SetupError> {
    let unreadable = |error| SetupError::Unreadable { variable, path: path.to_owned(), error };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(SetupError::TooLong { variable, path: path.to_owned() });
    }
    Ok(bytes)
}

/// The TLS library's error inside another, if that is what went wrong.
pub fn inside<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    // An I/O error's source skips the error that it holds itself.
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    if let Some(found) = held.and_then(|held| held.downcast_ref::<rustls::Error>()) {
        return Some(found);
    }
    error.source().and_then(inside)
}

/// What went wrong, in words for an operator.
pub fn cause(error: &rustls::Error) -> String {
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer => "its certificate is from an authority that is not trusted here".into(),
            // As when an authority was made anew under its old name.
            Bad::BadSignature => {
                "its certificate is not signed by the authority of that name that is trusted here".into()
            }
            Bad::NotValidForName => "its certificate is for another name".into(),
            Bad::NotValidForNameContext { expected, presented } if !presented.is_empty() => {
                let presented: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
                format!("its certificate is for {}, not for {}", presented.join(", "), expected.to_str())
            }
            Bad::NotValidForNameContext { expected, .. } => {
                format!("its certificate is not for {}", expected.to_str())
            }
            Bad::Expired | Bad::ExpiredContext { .. } => "its certificate has expired".into(),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => "its certificate is not valid yet".into(),
            Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => {
                "its certificate is not for servers (key usage, extended key usage)".into()
            }
            Bad::UnhandledCriticalExtension => Fault::Extension.to_string(),
            bad => match fault(bad) {
                Some(fault) => fault.to_string(),
                None => format!("its certificate is not acceptable: {bad}"),
            },
        },
        rustls::Error::InvalidMessage(_) => "what answers there does not speak TLS".into(),
        other => other.to_string(),
    }
}

/// A certificate's name without what rustls puts around it: `DnsName("localhost")`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

/// What to do about it. `authorities` is where a file with certificate authorities can be named.
pub fn advice(error: &rustls::Error, authorities: &str) -> String {
    use CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer | Bad::BadSignature => {
                format!("put the authority's certificate into a file and name that by {authorities}")
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "use the host name that the certificate is for, or have one made for this name".into()
            }
            Bad::Expired | Bad::ExpiredContext { .. } => "renew it, and check the clock".into(),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => "check the clocks of both machines".into(),
            Bad::BadEncoding => "have it made anew, in the form of X.509 (RFC 5280)".into(),
            bad => match fault(bad) {
                Some(Fault::SelfSigned) => {
                    format!("put that certificate itself into a file and name that by {authorities}")
                }
                Some(Fault::ShortKey(_)) => {
                    format!("have it made anew with a key of {} bits or more", signature::RSA_BITS_MIN)
                }
                Some(Fault::Signature) => "have it signed anew, with SHA-256".into(),
                Some(Fault::NotOwner) => "find out who answers there: somebody may stand between".into(),
                // Trust in itself overrides what its authority says or may.
                Some(Fault::NameConstraints) => {
                    format!("have it made anew as version 3, or name the certificate itself by {authorities}")
                }
                Some(Fault::Extension) | None => "have it made anew for a server, as version 3".into(),
            },
        },
        rustls::Error::InvalidMessage(_) => "check the port, or do without TLS".into(),
        rustls::Error::AlertReceived(alert) if wants_certificate(*alert) => {
            "the server wants a certificate from its clients, or does not accept ours".into()
        }
        _ => "check which TLS versions, ciphers and keys the server has (known here are TLS 1.2 and 1.3, and keys \
              for RSA, ECDSA on P-256, P-384 and P-521, and Ed25519)"
            .into(),
    }
}

/// What only we refuse.
fn fault(bad: &CertificateError) -> Option<Fault> {
    match bad {
        CertificateError::Other(other) => other.0.downcast_ref().copied(),
        _ => None,
    }
}

fn wants_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::NoCertificate
    )
}
