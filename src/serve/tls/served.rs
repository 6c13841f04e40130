//! The certificate that is served, which can be replaced at any time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoClientAuth, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::certificate::{Certificate, ClientAuthorities};
use crate::clock;

/// The certificate that is served, and the CAs for client certificates. Shared by listeners and the renewing task.
pub struct Served {
    certificate: Arc<Resolver>,
    /// The configuration for all protocols. Replaced when the CAs for client certificates change.
    pub(super) config: ArcSwap<ServerConfig>,
    pub(super) renewals: Counter,
    pub(super) failures: Family<HandshakeFailure, Counter>,
    pub(super) plain: Counter,
    logged: Mutex<BTreeMap<&'static str, Instant>>,
}

#[derive(Debug, Default)]
struct Resolver(ArcSwapOption<Certificate>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HandshakeFailure {
    pub(super) reason: &'static str,
}

/// Name and help of the metric about the source of certificates.
pub const SOURCE_GOOD: (&str, &str) =
    ("certificate_source_good", "Whether the source of certificates is usable (1) or not (0), as the log explains");

/// Failing clients may connect many times a second. Each reason is logged at most once in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

impl Served {
    /// Starts without a certificate and without client authentication.
    ///
    /// # Errors
    /// If the TLS library refuses its configuration.
    pub fn new(registry: &mut Registry) -> anyhow::Result<Arc<Self>> {
        let certificate = Arc::new(Resolver::default());
        let config = ArcSwap::from_pointee(config(Arc::clone(&certificate), Arc::new(NoClientAuth))?);
        let (renewals, failures) = (Counter::default(), Family::<HandshakeFailure, Counter>::default());
        let plain = Counter::default();
        registry.register(
            "certificate_renewals",
            "Certificates that replaced the one before, or were the first",
            renewals.clone(),
        );
        registry.register(
            "tls_handshake_failures",
            "Connections that ended in the TLS handshake, by reason",
            failures.clone(),
        );
        registry.register(
            "plain_text_connections",
            "Connections without TLS, accepted because of --tls-required=false",
            plain.clone(),
        );
        registry.register_collector(Box::new(Expiry(Arc::clone(&certificate))));
        Ok(Arc::new(Self { certificate, config, renewals, failures, plain, logged: Mutex::default() }))
    }

    /// Serves this certificate from the next connection on.
    pub fn replace(&self, certificate: Certificate) {
        self.certificate.0.store(Some(Arc::new(certificate)));
        self.renewals.inc();
    }

    /// Requires a certificate by one of these CAs of every client, from the next connection on.
    ///
    /// # Errors
    /// If the TLS library refuses its configuration.
    pub fn demand(&self, authorities: &ClientAuthorities) -> anyhow::Result<()> {
        let config = config(Arc::clone(&self.certificate), Arc::clone(&authorities.verifier))?;
        self.config.store(Arc::new(config));
        Ok(())
    }

    /// The certificate that is served at `now`. `None` if there is none, or it has expired.
    pub fn current(&self, now: Timestamp) -> Option<Arc<Certificate>> {
        self.certificate.current(now)
    }

    /// When the certificate expires or expired.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.certificate.not_after()
    }

    pub(super) fn may_log(&self, reason: &'static str, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let may = logged.get(reason).is_none_or(|at| now.duration_since(*at) >= LOG_INTERVAL);
        if may {
            logged.insert(reason, now);
        }
        may
    }
}

fn config(certificate: Arc<Resolver>, clients: Arc<dyn ClientCertVerifier>) -> anyhow::Result<ServerConfig> {
    let versions = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let versions = versions.with_safe_default_protocol_versions()?;
    let mut config = versions.with_client_cert_verifier(clients).with_cert_resolver(certificate);
    // No session resumption: every connection is checked against the present certificates.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

impl Resolver {
    fn current(&self, now: Timestamp) -> Option<Arc<Certificate>> {
        self.0.load_full().filter(|certificate| now < certificate.not_after())
    }

    fn not_after(&self) -> Option<Timestamp> {
        self.0.load().as_ref().map(|certificate| certificate.not_after())
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current(clock::now()).map(|certificate| Arc::clone(&certificate.certified))
    }
}

/// The expiry of the certificate, read at each scrape.
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
