//! I/O. TLS for listeners: a certificate, and the authorities of clients, that are replaced while connections come in.
//! TLS 1.2 and 1.3, by rustls with ring. `tls/files.rs` is for those that come from PEM files.

pub mod files;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::{clock, x509};

/// A certificate with the key that belongs to it.
#[derive(Debug)]
pub struct Certificate {
    certified: Arc<CertifiedKey>,
    not_after: Timestamp,
}

/// Authorities whose clients may come in.
#[derive(Debug)]
pub struct ClientAuthorities {
    certificates: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

/// What is served now, and to whom: shared by a program's listeners and by whoever renews it.
pub struct Served {
    certificate: Arc<Resolver>,
    /// For every protocol, and made anew for other authorities of clients.
    config: ArcSwap<ServerConfig>,
    renewals: Counter,
    failures: Family<Failure, Counter>,
    plain: Counter,
    complaints: Mutex<BTreeMap<&'static str, Instant>>,
}

#[derive(Debug, Default)]
struct Resolver(ArcSwapOption<Certificate>);

/// Ends TLS on accepted connections.
#[derive(Clone)]
pub struct Acceptor {
    served: Arc<Served>,
    protocol: &'static str,
    remedy: &'static str,
    is_required: bool,
}

/// The one protocol of [`Acceptor`]s for HTTP (RFC 7301), although Go would take HTTP/2: with one request at a time on a
/// connection, `Connection: close` ends it where nothing can be lost, and a client has no streams to open and reset by the
/// thousand.
pub const HTTP_1: &str = "http/1.1";

/// The one protocol of [`Acceptor`]s for gRPC (RFC 7301).
pub const HTTP_2: &str = "h2";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    reason: &'static str,
}

/// The metric that tells how it stands with where certificates come from, and its help.
pub const SOURCE_GOOD: (&str, &str) =
    ("certificate_source_good", "Whether the next certificate could be had (1) or not (0)");

/// Clients that fail may come many times a second; one line in this time tells it, for each reason.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);

impl Certificate {
    /// `chain` begins with the server's own certificate.
    ///
    /// # Errors
    /// If there is none, it cannot be read, or the key is another's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> anyhow::Result<Self> {
        let first = chain.first().context("there is no certificate")?;
        let (_, not_after) = x509::validity(first).context("the certificate cannot be read")?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())?;
        Ok(Self { certified: Arc::new(certified), not_after })
    }

    /// The server's own certificate.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// It, and what leads to an authority.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The last moment of its life.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl ClientAuthorities {
    /// At least one certificate of an authority. Its own dates are not looked at (RFC 5280, 6.1.1 (d)).
    ///
    /// # Errors
    /// If there is none, or one that cannot be read or is no authority's.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            ensure!(x509::is_authority(certificate), "certificate {index} is not that of an authority (CA)");
            roots.add(certificate.clone()).with_context(|| format!("certificate {index} cannot be used"))?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Self { certificates, verifier })
    }
}

impl Served {
    /// Nothing yet. From everybody, as no client is asked for a certificate.
    ///
    /// # Errors
    /// If the TLS library refuses its configuration.
    pub fn new(registry: &mut Registry) -> anyhow::Result<Arc<Self>> {
        let certificate = Arc::new(Resolver::default());
        let config = ArcSwap::from_pointee(config(Arc::clone(&certificate), Arc::new(NoClientAuth))?);
        let (renewals, failures) = (Counter::default(), Family::<Failure, Counter>::default());
        let plain = Counter::default();
        registry.register("certificate_renewals", "Certificates taken into use", renewals.clone());
        registry.register("tls_handshake_failures", "Connections that ended before any request", failures.clone());
        registry.register("plain_text_connections", "Connections without TLS, which is not required", plain.clone());
        registry.register_collector(Box::new(Expiry(Arc::clone(&certificate))));
        Ok(Arc::new(Self { certificate, config, renewals, failures, plain, complaints: Mutex::default() }))
    }

    /// Serves this certificate from the next connection on.
    pub fn replace(&self, certificate: Certificate) {
        self.certificate.0.store(Some(Arc::new(certificate)));
        self.renewals.inc();
    }

    /// Demands a certificate by one of these authorities of every client, from the next connection on.
    ///
    /// # Errors
    /// If the TLS library refuses its configuration.
    pub fn demand(&self, authorities: &ClientAuthorities) -> anyhow::Result<()> {
        let config = config(Arc::clone(&self.certificate), Arc::clone(&authorities.verifier))?;
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// What is served as of `now`, if anything: never what has expired.
    pub fn current(&self, now: Timestamp) -> Option<Arc<Certificate>> {
        self.certificate.current(now)
    }

    /// When what is served expires, or did.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.certificate.not_after()
    }

    fn may_complain(&self, reason: &'static str, now: Instant) -> bool {
        let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let may = complaints.get(reason).is_none_or(|at| now.duration_since(*at) >= COMPLAINT_PERIOD);
        if may {
            complaints.insert(reason, now);
        }
        may
    }
}

fn config(certificate: Arc<Resolver>, clients: Arc<dyn ClientCertVerifier>) -> anyhow::Result<ServerConfig> {
    let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let versions = versions.with_safe_default_protocol_versions()?;
    let mut config = versions.with_client_cert_verifier(clients).with_cert_resolver(certificate);
    // Every connection begins with a look at the certificates of that moment: none lives on by resumption.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

impl Resolver {
    fn current(&self, now: Timestamp) -> Option<Arc<Certificate>> {
        self.0.load_full().filter(|certificate| now < certificate.not_after)
    }

    fn not_after(&self) -> Option<Timestamp> {
        self.0.load().as_ref().map(|certificate| certificate.not_after)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current(clock::now()).map(|certificate| Arc::clone(&certificate.certified))
    }
}

impl Acceptor {
    /// Serves what `served` holds at each connection's beginning, for the one `protocol`; without anything there,
    /// connections are refused. `remedy` is for the log: what to do when a client does not accept the certificate.
    pub fn new(served: Arc<Served>, protocol: &'static str, remedy: &'static str) -> Self {
        Self { served, protocol, remedy, is_required: true }
    }

    /// Whether every connection has to speak TLS. Otherwise those that do not are to be taken as they are: while clients are
    /// switched over, one after another.
    pub fn required(self, is_required: bool) -> Self {
        Self { is_required, ..self }
    }

    /// See [`Acceptor::required`].
    pub fn is_required(&self) -> bool {
        self.is_required
    }

    /// One came in plain text.
    pub fn count_plain(&self) {
        self.served.plain.inc();
    }

    /// The configuration of this moment.
    fn acceptor(&self) -> TlsAcceptor {
        let mut config = ServerConfig::clone(&self.served.config.load());
        config.alpn_protocols = vec![self.protocol.into()];
        TlsAcceptor::from(Arc::new(config))
    }

    /// The connection after its handshake, or `None` if that failed or took longer than `limit`.
    pub async fn accept<S>(&self, stream: S, limit: Duration) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match timeout(limit, self.acceptor().accept(stream)).await {
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
        self.served.failures.get_or_create(&Failure { reason }).inc();
        debug!(reason, %error, "a connection ended in its TLS handshake");
        let complaint = match reason {
            DISTRUSTED => format!("a client does not accept our certificate; {}", self.remedy),
            NO_CLIENT_CERTIFICATE => "a client has no certificate, and is refused".to_owned(),
            BAD_CLIENT_CERTIFICATE => "a client's certificate is not good, and it is refused".to_owned(),
            _ => return,
        };
        if self.served.may_complain(reason, Instant::now()) {
            warn!(%error, "{complaint}");
        }
    }
}

/// The client does not accept our certificate.
const DISTRUSTED: &str = "distrusted";
/// The client sent none.
const NO_CLIENT_CERTIFICATE: &str = "no_client_certificate";
/// The client's is of another authority, expired or not for clients.
const BAD_CLIENT_CERTIFICATE: &str = "bad_client_certificate";

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
        )) => DISTRUSTED,
        Some(rustls::Error::NoCertificatesPresented) => NO_CLIENT_CERTIFICATE,
        // Nobody but a client sends us certificates.
        Some(rustls::Error::InvalidCertificate(_)) => BAD_CLIENT_CERTIFICATE,
        Some(_) => "protocol",
        None => "closed",
    }
}

/// Read when it is asked for.
#[derive(Debug)]
struct Expiry(Arc<Resolver>);

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(expiry) = self.0.not_after() else { return Ok(()) };
        let gauge = ConstGauge::new(expiry.as_second() as f64);
        let (name, help) = ("certificate_expiry_timestamp_seconds", "When the served certificate expires");
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }
}

#[cfg(test)]
mod tests;
