//! What is served now, replaced while connections come in.

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

/// What is served now, and to whom: shared by a program's listeners and by whoever renews it.
pub struct Served {
    certificate: Arc<Resolver>,
    /// For every protocol, and made anew for other authorities of clients.
    pub(super) config: ArcSwap<ServerConfig>,
    pub(super) renewals: Counter,
    pub(super) failures: Family<Failure, Counter>,
    pub(super) plain: Counter,
    complaints: Mutex<BTreeMap<&'static str, Instant>>,
}

#[derive(Debug, Default)]
struct Resolver(ArcSwapOption<Certificate>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Failure {
    pub(super) reason: &'static str,
}

/// The metric that tells how it stands with where certificates come from, and its help.
pub const SOURCE_GOOD: (&str, &str) =
    ("certificate_source_good", "Whether the next certificate could be had (1) or not (0)");

/// Clients that fail may come many times a second; one line in this time tells it, for each reason.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);

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

    pub(super) fn may_complain(&self, reason: &'static str, now: Instant) -> bool {
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
