//! `sslmode`, as libpq means it: in which order a connection is tried with and without TLS, and what of the
//! server's certificate is verified.
//!
//! | mode | tried | verified |
//! |---|---|---|
//! | disable | plain | |
//! | allow | plain, then TLS if the server refused that | nothing, or the chain if `sslrootcert` is given |
//! | prefer | TLS if the server has it, then plain | the same |
//! | require | TLS | nothing (with `sslrootcert` it is verify-ca) |
//! | verify-ca | TLS | the chain |
//! | verify-full | TLS | the chain and the name |
//!
//! Where the server offers it, SCRAM is bound to the TLS channel by `tls-server-end-point` (RFC 5929
//! section 4), so that a password is of no use to whoever stands between: `channel_binding=require` insists on that,
//! `disable` does without. In every mode the server must prove that it has its certificate's key. Unix sockets are
//! never encrypted.
//!
//! Tested against real servers in `tests/db_tls.rs`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use super::Host;
use crate::config::{self, RootCerts, SslMode};
use crate::net::Stream;
use crate::tls::der::{Certificate, Hash, Signature};
use crate::tls::{Client, POSTGRESQL, SetupError, Verify};

/// How connections are encrypted. Clones share what is known of it.
#[derive(Clone, Debug)]
pub struct Encryption {
    /// `sslmode`
    pub mode: SslMode,
    /// The variable that asks for it, for messages.
    pub variable: &'static str,
    client: Option<Client>,
    /// Why the last connection was made without, though with was tried.
    fallback: Arc<ArcSwapOption<String>>,
}

impl PartialEq for Encryption {
    fn eq(&self, other: &Encryption) -> bool {
        (self.mode, self.variable, &self.client) == (other.mode, other.variable, &other.client)
    }
}

impl Eq for Encryption {}

impl Default for Encryption {
    /// None.
    fn default() -> Encryption {
        Encryption { mode: SslMode::Disable, variable: "DB_SSLMODE", client: None, fallback: Arc::default() }
    }
}

/// One way of trying to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Attempt {
    Plain,
    /// With TLS if the server has it.
    Offered,
    Encrypted,
}

impl Encryption {
    /// As configured.
    ///
    /// # Errors
    /// Where a file with certificates cannot be used.
    pub fn new(database: &config::DatabaseTls, tls: &config::Tls) -> Result<Encryption, SetupError> {
        let verify = match (database.mode, &database.roots) {
            (SslMode::Disable, _) => {
                return Ok(Encryption { variable: database.variable, ..Encryption::default() });
            }
            (SslMode::VerifyFull, _) => Verify::ChainAndName,
            (SslMode::VerifyCa, _) => Verify::Chain,
            // libpq verifies the chain wherever it has roots; what fails is tried the other way then.
            (SslMode::Allow | SslMode::Prefer, RootCerts::File(_)) => Verify::Chain,
            (SslMode::Allow | SslMode::Prefer | SslMode::Require, _) => Verify::Nothing,
        };
        let client = Client::new(verify, &database.roots, tls, database.client.as_ref(), &POSTGRESQL)?;
        let (mode, variable) = (database.mode, database.variable);
        Ok(Encryption { mode, variable, client: Some(client), ..Encryption::default() })
    }

    /// What is tried, in this order, over TCP.
    pub(super) fn attempts(&self) -> &'static [Attempt] {
        match self.mode {
            SslMode::Disable => &[Attempt::Plain],
            SslMode::Allow => &[Attempt::Plain, Attempt::Encrypted],
            SslMode::Prefer => &[Attempt::Offered, Attempt::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Encrypted],
        }
    }

    /// Why connections are made without encryption though with was tried, if that is so.
    pub fn fallback(&self) -> Option<Arc<str>> {
        self.fallback.load().as_deref().map(|cause| cause.as_str().into())
    }

    /// Notes it; whether that is news.
    pub(super) fn set_fallback(&self, cause: Option<&str>) -> bool {
        let before = self.fallback.swap(cause.map(|cause| Arc::new(cause.to_owned())));
        before.as_deref().map(String::as_str) != cause
    }

    /// For one connection to that host.
    pub(super) fn connector(&self, host: &Host) -> Connector {
        let name = match (host, &self.client) {
            (Host::Tcp(host), Some(client)) => client.server_name(host).ok(),
            // It is asked for unix sockets and plain connections too.
            _ => None,
        };
        Connector { client: self.client.clone(), name }
    }
}

/// Makes one TLS stream for `tokio_postgres`.
pub(super) struct Connector {
    client: Option<Client>,
    name: Option<ServerName<'static>>,
}

impl TlsConnect<Stream> for Connector {
    type Stream = Encrypted;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted>> + Send>>;

    fn connect(self, socket: Stream) -> Self::Future {
        Box::pin(async move {
            let (Some(client), Some(name)) = (self.client, self.name) else {
                let text = "the host is no name that a certificate could be for";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            };
            let stream = TlsConnector::from(client.config()).connect(name, socket).await?;
            Ok(Encrypted { stream: Box::new(stream) })
        })
    }
}

/// An encrypted connection.
pub(super) struct Encrypted {
    stream: Box<tokio_rustls::client::TlsStream<Stream>>,
}

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        let certificates = self.stream.get_ref().1.peer_certificates().unwrap_or_default();
        let Some(certificate) = certificates.first() else { return ChannelBinding::none() };
        let signature = Certificate::parse(certificate).and_then(|read| read.algorithm.signature());
        let hash = match signature {
            Some(Signature::Pkcs1(hash) | Signature::Ecdsa(hash) | Signature::Pss { hash, .. }) => hash,
            // Ed25519 has no hash of its own, so that nothing can be bound to it.
            Some(Signature::Ed25519) | None => return ChannelBinding::none(),
        };
        let digest = match hash {
            // RFC 5929 section 4.1 has no weaker one than SHA-256.
            Hash::Md5 | Hash::Sha1 | Hash::Sha256 => Sha256::digest(certificate).to_vec(),
            Hash::Sha224 => Sha224::digest(certificate).to_vec(),
            Hash::Sha384 => Sha384::digest(certificate).to_vec(),
            Hash::Sha512 => Sha512::digest(certificate).to_vec(),
        };
        ChannelBinding::tls_server_end_point(digest)
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What to do where TLS is why there is no connection: for the words behind [`Encryption::variable`].
pub(super) fn advice(error: &tokio_postgres::Error, encryption: &Encryption) -> Option<(String, String)> {
    const AUTHORITIES: &str = "sslrootcert in DATABASE_URL, PGSSLROOTCERT or NODE_EXTRA_CA_CERTS";
    let variable = encryption.variable;
    if let Some(found) = crate::tls::inside(error) {
        let mut advice = crate::tls::advice(found, AUTHORITIES);
        let is_certificate = matches!(found, rustls::Error::InvalidCertificate(_));
        if is_certificate && encryption.mode != SslMode::Require {
            advice.push_str("; sslmode=require would encrypt without knowing to whom");
        }
        return Some((crate::tls::cause(found), advice));
    }
    if let Some(answer) = error.as_db_error() {
        let text = answer.message();
        // "no pg_hba.conf entry for host …, no encryption"; "SSL off" before PostgreSQL 14.
        let refused =
            text.contains("no encryption") || text.contains("SSL off") || text.contains("SSL required");
        return refused.then(|| {
            (text.to_owned(), "it takes encrypted connections only: set sslmode to require".to_owned())
        });
    }
    // What tokio_postgres says itself has no type of its own.
    let text = std::error::Error::source(error)?.to_string();
    if text == "server does not support TLS" {
        let advice = format!(
            "turn ssl on in postgresql.conf (PgBouncer: client_tls_sslmode), or set {variable} to prefer"
        );
        return Some(("it has TLS turned off".to_owned(), advice));
    }
    error
        .to_string()
        .starts_with("error performing TLS handshake")
        .then(|| (text, "look into the server's log for what it says about TLS".to_owned()))
}

/// Whether the next attempt may succeed where this one failed: the handshake failed, or the server said no for a
/// reason that encryption may have to do with. PostgreSQL's are of class 28 (invalid authorization), PgBouncer's of
/// class 08 (connection exception); a server that is full, starting or stopping refuses the next one as well.
pub(super) fn worth_another(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| state.code().starts_with("28") || state.code().starts_with("08"))
        || crate::tls::inside(error).is_some()
        || error.to_string().starts_with("error performing TLS handshake")
}
