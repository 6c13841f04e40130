//! Keeps a certificate for the listener: makes one from the authority's Secret, and has the next one in time. Nothing is
//! written, so replicas need not know of each other.

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

/// Where the certificate comes from: made here, for this long, by the authority in the Secret.
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

/// What was found at the last look, and what follows from it.
struct State {
    standing: Standing,
    /// The authority that signed what is served, and all that it trusts.
    issuer: Option<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    authority_not_after: Option<Timestamp>,
    /// When the served certificate is to be replaced.
    renewal_at: Option<Timestamp>,
}

/// How it stands with the source. Each change is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Not looked at yet.
    Unknown,
    /// As it should be.
    Good,
    /// Good, and in the last third of its life, which ends then.
    Ageing(Timestamp),
    /// Of no use.
    Flawed(Flaw),
    /// Nobody knows: the API server did not answer, or refused to.
    Unread(String),
    /// No certificate that would do can be had from it.
    Unusable(String),
}

/// A pause is never shorter: an authority that is about to expire gives lives that are shorter and shorter.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

impl Source {
    pub(super) fn new(client: Client, namespace: &str, lifetime: SignedDuration) -> Self {
        Self { secrets: Api::namespaced(client, namespace), lifetime }
    }
}

impl AuthorityCertificates {
    /// Looks at `source` at least every `poll`, once it is told to [follow](Self::follow).
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

    /// What is served, now and later.
    pub(super) fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served)
    }

    /// Whether a client that trusts what the authority does would accept what is served as of `now`.
    pub(super) fn readiness(&self, now: Timestamp) -> Result<(), String> {
        let state = self.state();
        let certificate = self.served.current(now).ok_or_else(|| match self.served.not_after() {
            Some(end) => format!("the certificate expired at {end} and there is no other: {}", state.standing),
            None => format!("no certificate to serve: {}", state.standing),
        })?;
        self.check(&certificate, &state.bundle, now).map_err(|problem| format!("the certificate does not do {problem}"))
    }

    /// Keeps the certificate good. Never gives up.
    pub(super) async fn follow(&self) -> Infallible {
        loop {
            let standing = self.refresh().await;
            tokio::time::sleep(self.conclude(standing, clock::now())).await;
        }
    }

    /// Tells what is new about the source. Answers how long to wait until the next look.
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

    /// Until the next look: sooner where a renewal is due, and never at the same moments as other replicas.
    fn pause(&self, state: &State, now: Timestamp) -> Duration {
        let poll = self.poll.mul_f64(rand::random_range(0.8..=1.0));
        let until_renewal = state.renewal_at.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
        // One that is overdue could not be had just now.
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
            // Its text may quote the value that it stumbled over.
            Err(kube::Error::SerdeError(_)) => Standing::Unread("its answer cannot be read".to_owned()),
            Err(error) => Standing::Unread(error.to_string()),
        }
    }

    /// Makes a certificate if it is time, or if what is served would not be accepted any more.
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
                    info!(%expires_at, %authority_expires_at, "a new certificate is served");
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

    /// A certificate that clients accept, and when to make the next one.
    fn make(
        &self,
        authority: &Authority,
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<(Certificate, Timestamp), String> {
        let key = KeyPair::generate().map_err(|error| format!("no key can be made: {error}"))?;
        let leaf = authority.issue(key, &self.server_names, lifetime, now).map_err(|error| error.to_string())?;
        let certificate = Certificate::new(vec![leaf.certificate], leaf.key).map_err(|error| format!("{error:#}"))?;
        self.check(&certificate, authority.bundle(), now)?;
        Ok((certificate, leaf.renewal_at))
    }

    /// Whether clients accept it.
    fn check(
        &self,
        certificate: &Certificate,
        bundle: &[CertificateDer<'static>],
        now: Timestamp,
    ) -> Result<(), String> {
        authority::verify(certificate.leaf().ok_or("it is none")?, bundle, &self.server_names, now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let remedy = "run `keywright certificates`";
        match self {
            Self::Unknown => write!(f, "nothing was read yet"),
            Self::Good => write!(f, "the source of certificates is good"),
            Self::Ageing(end) => {
                write!(f, "Secret {SECRET}: the authority expires at {end}: {remedy}")
            }
            Self::Flawed(flaw) => write!(f, "Secret {SECRET} is of no use, {flaw}: {remedy}"),
            Self::Unread(problem) => {
                write!(
                    f,
                    "Secret {SECRET} cannot be read: {problem}; are the API server and this ServiceAccount's rights well?"
                )
            }
            Self::Unusable(problem) => write!(f, "no certificate can be had: {problem}"),
        }
    }
}

/// Read when they are asked for.
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
            let (name, help) = ("authority_expiry_timestamp_seconds", "When the certificate authority expires");
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
