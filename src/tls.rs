//! I/O. TLS for listeners: a certificate that is replaced while connections come in, and the PEM files that it may come
//! from. TLS 1.2 and 1.3, by rustls with ring.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::{authority, clock};

/// A certificate with the key that belongs to it.
#[derive(Debug)]
pub struct Certificate {
    certified: Arc<CertifiedKey>,
    not_after: Timestamp,
}

/// The certificate that is served now, shared by the listener and by whoever renews it.
#[derive(Debug, Default)]
pub struct Served(ArcSwapOption<Certificate>);

/// Ends TLS on accepted connections.
#[derive(Clone)]
pub struct Acceptor {
    acceptor: TlsAcceptor,
    served: Arc<Served>,
    failures: Family<Failure, Counter>,
    complained: Arc<Mutex<Option<Instant>>>,
}

/// A certificate's PEM files: cert-manager's, as a kubelet mounts them.
#[derive(Clone, Debug)]
pub struct PemFiles {
    /// The certificate, and after it what leads to an authority.
    pub certificate: PathBuf,
    /// The key of the first certificate.
    pub key: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    reason: &'static str,
}

/// Clients that do not trust the certificate may come many times a second; one line in this time tells it.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);

impl Certificate {
    /// `chain` begins with the server's own certificate.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or the key is another's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> anyhow::Result<Self> {
        let first = chain.first().context("there is no certificate")?;
        let (_, not_after) = authority::lifetime(first).context("the certificate cannot be read")?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        Ok(Self { certified: Arc::new(certified), not_after })
    }

    /// The server's own certificate.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// The last moment of its life.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl Served {
    /// Serves this certificate from the next connection on.
    pub fn replace(&self, certificate: Certificate) {
        self.0.store(Some(Arc::new(certificate)));
    }

    /// What is served as of `now`, if anything: never what has expired.
    pub fn current(&self, now: Timestamp) -> Option<Arc<Certificate>> {
        self.0.load_full().filter(|certificate| now < certificate.not_after)
    }

    /// When what is served expires, or did.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.0.load().as_ref().map(|certificate| certificate.not_after)
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current(clock::now()).map(|certificate| Arc::clone(&certificate.certified))
    }
}

impl Acceptor {
    /// Serves what `served` holds at each connection's beginning; without anything there, connections are refused.
    ///
    /// # Errors
    /// If the TLS library refuses its configuration.
    pub fn new(served: Arc<Served>, registry: &mut Registry) -> anyhow::Result<Self> {
        let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let versions = versions.with_safe_default_protocol_versions()?;
        let mut config = versions.with_no_client_auth().with_cert_resolver(served.clone());
        // Every connection begins with a look at the certificate of that moment: none lives on by resumption.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        // HTTP/1.1 alone, although Go would take HTTP/2: with one request at a time on a connection, `Connection: close`
        // ends it where nothing can be lost, and a client has no streams to open and reset by the thousand.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let failures = Family::<Failure, Counter>::default();
        registry.register("tls_handshake_failures", "Connections that ended before any request", failures.clone());
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), served, failures, complained: Arc::default() })
    }

    /// The connection after its handshake, or `None` if that failed or took longer than `limit`.
    pub async fn accept<S>(&self, stream: S, limit: Duration) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(limit, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                let is_served = self.served.current(clock::now()).is_some();
                self.fail(if is_served { reason(&error) } else { "no_certificate" }, &error);
                None
            }
            Err(elapsed) => {
                self.fail("timeout", &elapsed);
                None
            }
        }
    }

    fn fail(&self, reason: &'static str, error: &impl fmt::Display) {
        self.failures.get_or_create(&Failure { reason }).inc();
        debug!(reason, %error, "a connection ended in its TLS handshake");
        if reason == "distrusted" && self.may_complain(Instant::now()) {
            warn!(
                %error,
                "a client does not accept our certificate; if it is the API server, caBundle is of another authority: \
                 run `keywright certificates`"
            );
        }
    }

    fn may_complain(&self, now: Instant) -> bool {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let may = complained.is_none_or(|at| now.duration_since(at) >= COMPLAINT_PERIOD);
        if may {
            *complained = Some(now);
        }
        may
    }
}

/// A word for the metric: few and fixed.
fn reason(error: &std::io::Error) -> &'static str {
    use AlertDescription::{
        BadCertificate, CertificateExpired, CertificateRevoked, CertificateUnknown, DecryptError, UnknownCA,
        UnsupportedCertificate,
    };
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(
            BadCertificate
            | UnsupportedCertificate
            | CertificateRevoked
            | CertificateExpired
            | CertificateUnknown
            | UnknownCA
            // Signed by an authority of the same name and with another key.
            | DecryptError,
        )) => "distrusted",
        Some(_) => "protocol",
        None => "closed",
    }
}

impl PemFiles {
    /// Reads both files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it, and nothing of what it holds. A kubelet replaces both at once, but they
    /// are read one after the other: what does not fit together now may do so in a moment.
    pub fn read(&self) -> anyhow::Result<Certificate> {
        let chain = read(&self.certificate)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.with_context(|| format!("{}: not certificates in PEM", self.certificate.display()))?;
        let key = PrivateKeyDer::from_pem_slice(&zeroize::Zeroizing::new(read(&self.key)?)).ok();
        let key = key.with_context(|| format!("{}: not a private key in PEM", self.key.display()))?;
        let fit = || format!("{} and {} cannot be used", self.certificate.display(), self.key.display());
        Certificate::new(chain, key).with_context(fit)
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("{}: cannot be read", file.display()))
}

#[cfg(test)]
mod tests;
