//! TLS both ways, and the only place that knows rustls: our certificate for those who come in, and what we ask of
//! the certificates of those whom we call.
//!
//! Inwards, [`Server`] holds one certificate that [`Server::reload`] exchanges while sessions go on: a handshake takes
//! the one that is current, and a session under way needs it no more. A new certificate that cannot be used leaves the
//! old one in place. Outwards, a [`Connector`] either encrypts towards anybody or verifies chain and name.
//!
//! TLS 1.2 and 1.3 with what rustls thinks fit, by AWS-LC. Inwards there are no session tickets, so none can be carried
//! from one listener to another; early data is taken and sent nowhere. Left out: client certificates, a certificate
//! for each name, DANE.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, ProtocolVersion, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::clock::Timestamp;

mod validity;

/// What a listener does about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerTls {
    Off,
    StartTls,
    Implicit,
}

/// Where our certificate stands, as PEM: the chain with our own certificate first, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why a certificate, a key or a file of roots cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read `{}`: {why}", path.display())]
    Unread { path: PathBuf, why: String },
    #[error("`{}` holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    #[error("`{}` holds no private key in PEM", path.display())]
    NoKey { path: PathBuf },
    #[error("`{}` cannot be used: {why}", path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("the key in `{}` is not that of the first certificate in `{}`", path.display(), certificate.display())]
    Mismatch { path: PathBuf, certificate: PathBuf },
    #[error("the certificate in `{}` expired at {at}", path.display())]
    Expired { path: PathBuf, at: Timestamp },
}

impl CertificateError {
    /// The file to look at.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            CertificateError::Unread { path, .. }
            | CertificateError::NoCertificate { path }
            | CertificateError::NoKey { path }
            | CertificateError::Unusable { path, .. }
            | CertificateError::Mismatch { path, .. }
            | CertificateError::Expired { path, .. } => path,
        }
    }
}

/// The server's side.
pub struct Server {
    files: Files,
    current: Arc<Current>,
    config: Arc<ServerConfig>,
}

impl Server {
    /// Reads and checks the certificate. One that has expired is taken: most senders encrypt without looking at it, and
    /// without it there would be no mail at all. Who starts us looks at [`Server::expires`].
    pub fn open(files: Files) -> Result<Server, CertificateError> {
        let certificate = Certificate::read(&files)?;
        Ok(Server::with(files, Some(certificate)))
    }

    /// As [`Server::open`]; where the certificate cannot be used there is none until [`Server::reload`] finds one, and
    /// the error says why. For a start that must not fail for want of it.
    pub fn open_anyway(files: Files) -> (Server, Result<(), CertificateError>) {
        match Certificate::read(&files) {
            Ok(certificate) => (Server::with(files, Some(certificate)), Ok(())),
            Err(error) => (Server::with(files, None), Err(error)),
        }
    }

    fn with(files: Files, certificate: Option<Certificate>) -> Server {
        let current = Arc::new(Current(RwLock::new(certificate)));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .expect("the provider has cipher suites for both versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Server { files, current, config: Arc::new(config) }
    }

    /// Reads the files anew. Handshakes from now on get the new certificate; no session notices. Returns when it
    /// expires. After an error, an expired certificate among them, the old one stays.
    pub fn reload(&self, now: Timestamp) -> Result<Timestamp, CertificateError> {
        let certificate = Certificate::read(&self.files)?;
        let expires = certificate.expires;
        if expires <= now {
            return Err(CertificateError::Expired { path: self.files.certificate.clone(), at: expires });
        }
        *self.current.0.write().expect("no code panics while it holds this lock") = Some(certificate);
        Ok(expires)
    }

    /// When the certificate in use expires; `None` where there is none.
    #[must_use]
    pub fn expires(&self) -> Option<Timestamp> {
        self.current.0.read().expect("no code panics while it holds this lock").as_ref().map(|in_use| in_use.expires)
    }

    /// Where the certificate comes from.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }
}

/// The certificate in use, where rustls asks for it.
#[derive(Debug)]
struct Current(RwLock<Option<Certificate>>);

impl ResolvesServerCert for Current {
    /// Whatever name the client asked for: we have one.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().expect("no code panics while it holds this lock");
        current.as_ref().map(|certificate| Arc::clone(&certificate.certified))
    }
}

#[derive(Debug)]
struct Certificate {
    certified: Arc<CertifiedKey>,
    expires: Timestamp,
}

impl Certificate {
    fn read(files: &Files) -> Result<Certificate, CertificateError> {
        let path = files.certificate.clone();
        let chain = certificates(&path)?;
        let unusable = |path: &Path, why: String| CertificateError::Unusable { path: path.to_owned(), why };
        let expires = chain
            .first()
            .and_then(|first| validity::not_after(first))
            .ok_or_else(|| unusable(&path, "the first certificate cannot be understood".to_owned()))?;
        let text = read_bounded(&files.key)?;
        let key = match PrivateKeyDer::from_pem_slice(&text) {
            Ok(key) => key,
            Err(pem::Error::NoItemsFound) => return Err(CertificateError::NoKey { path: files.key.clone() }),
            Err(error) => return Err(unusable(&files.key, error.to_string())),
        };
        match CertifiedKey::from_der(chain, key, &provider()) {
            Ok(certified) => Ok(Certificate { certified: Arc::new(certified), expires }),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(CertificateError::Mismatch { path: files.key.clone(), certificate: path })
            }
            // Only the key can be at fault: the certificate has been read to its validity.
            Err(Error::General(why)) => Err(unusable(&files.key, why)),
            Err(error) => Err(unusable(&path, error.to_string())),
        }
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let text = read_bounded(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| CertificateError::Unusable { path: path.to_owned(), why: error.to_string() })?;
    if chain.is_empty() {
        return Err(CertificateError::NoCertificate { path: path.to_owned() });
    }
    Ok(chain)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let unread = |why: String| CertificateError::Unread { path: path.to_owned(), why };
    let size = fs::metadata(path).map_err(|error| unread(error.to_string()))?.len();
    if size > FILE_OCTETS_MAX {
        return Err(unread(format!("the file is over {FILE_OCTETS_MAX} octets")));
    }
    fs::read(path).map_err(|error| unread(error.to_string()))
}

/// An inbound stream whose session may turn to TLS. There is no way back: what follows the end of TLS is never read.
pub enum MaybeTls<S> {
    Plain(S),
    /// Boxed: a session in clear text must not pay for the room that TLS takes.
    Tls(Box<tokio_rustls::server::TlsStream<S>>),
    /// A handshake failed, and the stream is gone.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> MaybeTls<S> {
    /// Makes the handshake of a stream in clear text, within [`HANDSHAKE_TIMEOUT`]. Returns the version for people, and
    /// on failure why; then the stream is closed.
    pub async fn accept(&mut self, server: &Server) -> Result<&'static str, String> {
        let MaybeTls::Plain(stream) = std::mem::replace(self, MaybeTls::Closed) else {
            return Err("the session is not in clear text".to_owned());
        };
        // Boxed for the same reason as the stream.
        let handshake = Box::pin(TlsAcceptor::from(Arc::clone(&server.config)).accept(stream));
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                let version = stream.get_ref().1.protocol_version();
                *self = MaybeTls::Tls(Box::new(stream));
                Ok(named(version))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(TOO_LONG.to_owned()),
        }
    }
}

fn named(version: Option<ProtocolVersion>) -> &'static str {
    if version == Some(ProtocolVersion::TLSv1_3) { "TLS1.3" } else { "TLS1.2" }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for MaybeTls<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_read(cx, out),
            MaybeTls::Closed => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MaybeTls<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_write(cx, octets),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_write(cx, octets),
            MaybeTls::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_flush(cx),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_flush(cx),
            MaybeTls::Closed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            MaybeTls::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            MaybeTls::Closed => Poll::Ready(Ok(())),
        }
    }
}

/// The client's side: how a stream to a remote is encrypted.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
    trust: Trust,
}

/// What a connector asks of the other side's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Anybody,
    Verified,
}

/// A stream to a remote, encrypted.
pub type ClientStream<S> = tokio_rustls::client::TlsStream<S>;

impl Connector {
    /// Encrypts, and takes any certificate: it protects from who listens, not from who stands between (RFC 7435).
    #[must_use]
    pub fn anybody() -> Connector {
        let provider = provider();
        let any = AnyCertificate(Arc::clone(&provider));
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)
            .expect("the provider has cipher suites for both versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(any))
            .with_no_client_auth();
        Connector { config: Arc::new(config), trust: Trust::Anybody }
    }

    /// Verifies the certificate against the system's roots and those in `ca`, and the name that was called.
    pub fn verifying(ca: Option<&Path>) -> Result<Connector, CertificateError> {
        let mut roots = RootCertStore::empty();
        // What of the system's roots cannot be read is missing, and the handshake says so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca {
            for certificate in certificates(path)? {
                let unusable =
                    |error: Error| CertificateError::Unusable { path: path.to_owned(), why: error.to_string() };
                roots.add(certificate).map_err(unusable)?;
            }
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .expect("the provider has cipher suites for both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Connector { config: Arc::new(config), trust: Trust::Verified })
    }

    /// The other side's certificate was verified, name and all.
    #[must_use]
    pub fn verifies(&self) -> bool {
        self.trust == Trust::Verified
    }

    /// Makes the handshake with the host called `name` at `ip`. The caller bounds its time. Returns on failure why, in
    /// words of which the peer may have chosen some.
    pub async fn connect<S>(&self, stream: S, name: &str, ip: IpAddr) -> Result<ClientStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let server = match (ServerName::try_from(name.to_owned()), self.trust) {
            (Ok(server), _) => server,
            (Err(_), Trust::Verified) => return Err(format!("`{name}` is no name that a certificate can have")),
            // Names with an underscore exist. Without a name that can be verified the address will do.
            (Err(_), Trust::Anybody) => ServerName::IpAddress(ip.into()),
        };
        let handshake = TlsConnector::from(Arc::clone(&self.config)).connect(server, stream);
        Box::pin(handshake).await.map_err(|error| error.to_string())
    }
}

/// Looks at no certificate, and at no signature either: who may be anybody need not prove it.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Named rather than taken from the process: what another crate installs there must not decide how we encrypt.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// RFC 8996: nothing older.
const VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
/// For the whole of a handshake, whatever trickles in: an honest one takes some round trips.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// What is said where a handshake took longer.
pub const TOO_LONG: &str = "the TLS handshake took too long";
/// All the roots of a system together are some 250 KiB.
const FILE_OCTETS_MAX: u64 = 4 << 20;

#[cfg(test)]
pub(crate) mod tests;
