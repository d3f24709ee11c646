//! Somebody between client and PostgreSQL: shows a certificate, signs with whatever key it has, and passes on what it
//! reads to the real server over a TLS connection of its own.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// It ends with this.
pub struct Impostor {
    pub port: u16,
    _life: tokio::sync::oneshot::Sender<()>,
}

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Believes anybody.
#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Impostor {
    /// Before the PostgreSQL at that port of 127.0.0.1. The library would not take a certificate with another's key by
    /// its usual way.
    pub fn start(server: u16, certificate: &Path, key: &Path, version: &str) -> Impostor {
        static TLS_1_2: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
        static TLS_1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
        let versions = if version == "1.2" { TLS_1_2 } else { TLS_1_3 };
        let provider = Arc::new(ring::default_provider());
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let chain: Vec<_> = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
        let shown = Shown(Arc::new(CertifiedKey::new(chain, key)));
        let to_clients = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shown));
        let to_server = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous))
            .with_no_client_auth();
        let (to_clients, to_server) = (Arc::new(to_clients), Arc::new(to_server));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (life, mut end) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            runtime.block_on(async move {
                loop {
                    let (client, _) = tokio::select! {
                        _ = &mut end => return,
                        accepted = listener.accept() => accepted.unwrap(),
                    };
                    let (to_clients, to_server) = (Arc::clone(&to_clients), Arc::clone(&to_server));
                    tokio::spawn(async move {
                        let _ = pass_on(client, server, to_clients, to_server).await;
                    });
                }
            });
        });
        Impostor { port, _life: life }
    }
}

async fn pass_on(
    mut client: TcpStream,
    server: u16,
    to_clients: Arc<ServerConfig>,
    to_server: Arc<ClientConfig>,
) -> std::io::Result<()> {
    let mut question = [0; 8];
    client.read_exact(&mut question).await?;
    let mut real = TcpStream::connect(("127.0.0.1", server)).await?;
    // SSLRequest; anything else begins a connection without encryption.
    let is_tls = question == [0, 0, 0, 8, 4, 210, 22, 47];
    real.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    let mut answer = [0];
    real.read_exact(&mut answer).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut real = TlsConnector::from(to_server).connect(name, real).await?;
    if is_tls {
        client.write_all(b"S").await?;
        relay(TlsAcceptor::from(to_clients).accept(client).await?, real).await
    } else {
        real.write_all(&question).await?;
        relay(client, real).await
    }
}

async fn relay(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
) -> std::io::Result<()> {
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
