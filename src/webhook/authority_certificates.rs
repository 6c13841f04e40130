//! Issues the listener's certificate from the CA's Secret, and renews it in time. Writes nothing to the cluster, so replicas
//! do not depend on each other.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use tracing::{info, warn};

use crate::authority::{self, Authority, Flaw, SECRET};
use crate::clock;
use crate::serve::tls::{Certificate, SOURCE_GOOD, Served};

/// The CA's Secret, and how long certificates from it are valid.
pub(super) struct Source {
    secrets: Api<Secret>,
    lifetime: SignedDuration,
}

/// Keeps one certificate. Shared by the task that renews it, the probes and the metrics.
pub(super) struct AuthorityCertificates {
    source: Source,
    server_names: Vec<String>,
    poll: Duration,
    served: Arc<Served>,
    state: Mutex<State>,
}

/// The result of the last read of the Secret.
struct State {
    standing: Standing,
    /// The CA that signed the served certificate, and the CAs in its bundle.
    issuer: Option<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    authority_not_after: Option<Timestamp>,
    /// When to replace the served certificate.
    renewal_at: Option<Timestamp>,
}

/// The state of the CA's Secret. Each change is logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// The Secret is not read yet.
    Unknown,
    /// The CA is valid.
    Good,
    /// The CA is valid, and in the last third of its life. Holds its expiry.
    Ageing(Timestamp),
    /// The Secret holds no usable CA.
    Flawed(Flaw),
    /// The Secret cannot be read. Holds the error.
    Unread(String),
    /// The CA cannot issue a valid certificate. Holds the error.
    Unusable(String),
}

/// The shortest pause between two reads: a CA that is about to expire issues ever shorter certificates.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

impl Source {
    pub(super) fn new(client: Client, namespace: &str, lifetime: SignedDuration) -> Self {
        Self { secrets: Api::namespaced(client, namespace), lifetime }
    }
}

impl AuthorityCertificates {
    /// [`Self::follow`] reads `source` at least every `poll`.
    ///
    /// # Errors
    /// If the TLS library refuses its configuration.
    pub(super) fn new(
        source: Source,
        server_names: Vec<String>,
        poll: Duration,
        registry: &mut Registry,
    ) -> anyhow::Result<Arc<Self>> {
        let state = State {
            standing: Standing::Unknown,
            issuer: None,
            bundle: Vec::new(),
            authority_not_after: None,
            renewal_at: None,
        };
        let served = Served::new(registry)?;
        let certificates = Arc::new(Self { source, server_names, poll, served, state: Mutex::new(state) });
        registry.register_collector(Box::new(Metrics(Arc::clone(&certificates))));
        Ok(certificates)
    }

    /// The certificate that is served, now and later.
    pub(super) fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }

    /// Whether a client that trusts the CA's bundle would accept the served certificate at `now`.
    pub(super) fn readiness(&self, now: Timestamp) -> Result<(), String> {
        let state = self.state();
        let certificate = self.served.current(now).ok_or_else(|| match self.served.not_after() {
            Some(end) => format!("the certificate expired at {end}: {}", state.standing),
            None => format!("there is no certificate: {}", state.standing),
        })?;
        self.check(&certificate, &state.bundle, now)
            .map_err(|problem| format!("the certificate is not valid {problem}"))
    }

    /// Keeps the certificate valid for ever.
    pub(super) async fn follow(&self) -> Infallible {
        loop {
            let standing = self.refresh().await;
            tokio::time::sleep(self.conclude(standing, clock::now())).await;
        }
    }

    /// Logs a change of the Secret's state. Returns how long to wait until the next read.
    fn conclude(&self, standing: Standing, now: Timestamp) -> Duration {
        let mut state = self.state();
        if state.standing != standing {
            match &standing {
                Standing::Good => info!("{standing}"),
                _ => warn!("{standing}"),
            }
            state.standing = standing;
        }
        self.pause(&state, now)
    }

    /// The pause until the next read: shorter if a renewal is due, with jitter to differ from other replicas.
    fn pause(&self, state: &State, now: Timestamp) -> Duration {
        let poll = self.poll.mul_f64(rand::random_range(0.8..=1.0));
        let until_renewal = state.renewal_at.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
        // An overdue renewal has just failed.
        until_renewal.filter(|left| !left.is_zero()).map_or(poll, |left| left.max(SHORTEST_PAUSE).min(poll))
    }

    async fn refresh(&self) -> Standing {
        match self.source.secrets.get_opt(SECRET).await {
            Ok(secret) => {
                let now = clock::now();
                let data = secret.map(|secret| secret.data.unwrap_or_default());
                match data.map_or(Err(Flaw::Absent), |data| Authority::read(&data, now)) {
                    Ok(authority) => self.renew(&authority, self.source.lifetime, now),
                    Err(flaw) => Standing::Flawed(flaw),
                }
            }
            Err(kube::Error::Api(status)) => Standing::Unread(format!("{} ({})", status.message, status.code)),
            // The error's text may quote the Secret's data.
            Err(kube::Error::SerdeError(_)) => Standing::Unread("its answer cannot be read".to_owned()),
            Err(error) => Standing::Unread(error.to_string()),
        }
    }

    /// Issues a certificate if it is time, or if clients would not accept the served one any more.
    fn renew(&self, authority: &Authority, lifetime: SignedDuration, now: Timestamp) -> Standing {
        let mut state = self.state();
        let is_good =
            self.served.current(now).is_some_and(|served| self.check(&served, authority.bundle(), now).is_ok())
                && state.issuer.as_ref() == Some(authority.certificate())
                && state.renewal_at.is_some_and(|at| now < at);
        if !is_good {
            match self.make(authority, lifetime, now) {
                Ok((certificate, renewal_at)) => {
                    let (expires_at, authority_expires_at) = (certificate.not_after(), authority.not_after());
                    info!(%expires_at, %authority_expires_at, "serving a new certificate");
                    self.served.replace(certificate);
                    state.renewal_at = Some(renewal_at);
                    state.issuer = Some(authority.certificate().clone());
                }
                Err(problem) => return Standing::Unusable(problem),
            }
        }
        state.bundle = authority.bundle().to_vec();
        state.authority_not_after = Some(authority.not_after());
        if now < authority.renewal_at() { Standing::Good } else { Standing::Ageing(authority.not_after()) }
    }

    /// A certificate that clients accept, and when to issue the next one.
    fn make(
        &self,
        authority: &Authority,
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<(Certificate, Timestamp), String> {
        let key = KeyPair::generate().map_err(|error| format!("cannot generate a key: {error}"))?;
        let leaf = authority.issue(key, &self.server_names, lifetime, now).map_err(|error| error.to_string())?;
        let certificate = Certificate::new(vec![leaf.certificate], leaf.key).map_err(|error| format!("{error:#}"))?;
        self.check(&certificate, authority.bundle(), now)?;
        Ok((certificate, leaf.renewal_at))
    }

    /// Whether clients that trust `bundle` accept the certificate at `now`.
    fn check(
        &self,
        certificate: &Certificate,
        bundle: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<(), String> {
        authority::verify(certificate.leaf().ok_or("because it is empty")?, bundle, &self.server_names, now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = "Run `keywright certificates`";
        match self {
            Self::Unknown => write!(f, "Secret {SECRET} is not read yet"),
            Self::Good => write!(f, "Secret {SECRET} holds a valid CA"),
            Self::Ageing(end) => {
                write!(f, "Secret {SECRET}: the CA expires at {end}. {remedy}")
            }
            Self::Flawed(flaw) => write!(f, "Secret {SECRET} cannot be used: {flaw}. {remedy}"),
            Self::Unread(problem) => {
                write!(
                    f,
                    "Secret {SECRET} cannot be read: {problem}; check that the API server is reachable and that this \
                     ServiceAccount may read the Secret"
                )
            }
            Self::Unusable(problem) => write!(f, "cannot make a certificate: {problem}"),
        }
    }
}

/// The state of the CA, read at each scrape.
struct Metrics(Arc<AuthorityCertificates>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let state = self.0.state();
        let is_good = matches!(state.standing, Standing::Good | Standing::Ageing(_));
        let (name, help) = SOURCE_GOOD;
        gauge(name, help, f64::from(u8::from(is_good)))?;
        if let Some(expiry) = state.authority_not_after {
            let (name, help) =
                ("authority_expiry_timestamp_seconds", "When the certificate authority expires, in seconds since 1970");
            gauge(name, help, expiry.as_second() as f64)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests;
