//! I/O. The role `webhook`: answers the API server's admission reviews over TLS, with a certificate that it renews itself.

mod authority_certificates;
pub mod reviews;

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use hyper::Request;
use hyper::body::Bytes;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tracing::info;

use crate::clock;
use crate::serve::admin;
use crate::serve::connections::{Leaving, Listener, Server};
use crate::serve::listen::{Address, bind};
use crate::serve::places::Share;
use crate::serve::room::ConnectionMetrics;
use crate::serve::tls::files::{CertificateFiles, PemFiles};
use crate::serve::tls::{Acceptor, HTTP_1, Served};
use crate::serve::workers::Workers;
use authority_certificates::{AuthorityCertificates, Source};
use reviews::{BODY_LIMITS, LIMITS, Webhook};

/// The options of a webhook, from its flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// The system namespace, with the CA's Secret.
    pub namespace: String,
    /// The address for the API server.
    pub https_address: Address,
    /// The address for probes and metrics.
    pub admin_address: Address,
    /// The names or addresses that the API server uses.
    pub server_names: Vec<String>,
    /// How long each certificate is valid.
    pub certificate_lifetime: SignedDuration,
    /// How often the Secret, or the files, are read.
    pub certificate_poll: Duration,
    /// The share of the connections for reviews that one client may have.
    pub connections_per_client: Share,
}

/// Where certificates come from.
pub enum CertificateOrigin {
    /// Issued here, by the CA in the Secret. This client reads the Secret; it may not list or write.
    Authority(Client),
    /// Read from files.
    Files(PemFiles),
}

const REMEDY: &str = "If it is the API server, caBundle has another CA: run `keywright certificates`";

/// Where the served certificate comes from.
#[derive(Clone)]
enum CertificateSource {
    FromAuthority(Arc<AuthorityCertificates>),
    FromFiles(Arc<CertificateFiles>),
}

/// Answers reviews until `shutdown`.
///
/// # Errors
/// If it cannot listen on an address, or a task stops unexpectedly.
pub async fn run(
    origin: CertificateOrigin,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let listener = bind(options.https_address, "--https-address").await?;
    let admin_listener = bind(options.admin_address, "--admin-address").await?;
    info!(https_address = %listener.local_addr()?, admin_address = %admin_listener.local_addr()?, "listening");

    let mut registry = Registry::with_prefix("keywright");
    let certificates = CertificateSource::new(origin, &options, &mut registry)?;
    let tls = Acceptor::new(certificates.served(), HTTP_1, REMEDY);
    let connections = ConnectionMetrics::new(&mut registry);
    let reviews = Webhook::new(clock::now, &mut registry);
    let handler = move |request: &Request<Bytes>| reviews.answer(request);
    let server = Server {
        listener: Listener { tcp: listener, tls: Some(tls) },
        limits: LIMITS.shared_by(options.connections_per_client),
        workers: Workers::current(),
        leaving: Leaving::default(),
        occupancy: connections.of("https"),
    };
    let readiness = {
        let (certificates, leaving, occupancy) =
            (certificates.clone(), server.leaving.clone(), server.occupancy.clone());
        move || match leaving.has_begun() {
            true => Err("shutting down".to_owned()),
            false => occupancy.readiness(Instant::now()).and_then(|()| certificates.readiness(clock::now())),
        }
    };

    let mut background = JoinSet::new();
    let admin_occupancy = connections.of("admin");
    background.spawn(admin::serve(admin_listener, readiness, Arc::new(registry), admin_occupancy, pending()));
    background.spawn(async move { certificates.follow().await });
    tokio::select! {
        () = server.serve_with_bodies(BODY_LIMITS, handler, shutdown) => Ok(()),
        ended = background.join_next() => bail!("a task of the webhook stopped unexpectedly: {ended:?}"),
    }
}

impl CertificateSource {
    fn new(origin: CertificateOrigin, options: &Options, registry: &mut Registry) -> anyhow::Result<Self> {
        let (server_names, poll) = (options.server_names.clone(), options.certificate_poll);
        Ok(match origin {
            CertificateOrigin::Authority(client) => {
                let source = Source::new(client, &options.namespace, options.certificate_lifetime);
                Self::FromAuthority(AuthorityCertificates::new(source, server_names, poll, registry)?)
            }
            CertificateOrigin::Files(files) => {
                Self::FromFiles(CertificateFiles::new(files, server_names, poll, registry)?)
            }
        })
    }

    fn served(&self) -> Arc<Served> {
        match self {
            Self::FromAuthority(certificates) => certificates.served(),
            Self::FromFiles(certificates) => certificates.served(),
        }
    }

    fn readiness(&self, now: Timestamp) -> Result<(), String> {
        match self {
            Self::FromAuthority(certificates) => certificates.readiness(now),
            Self::FromFiles(certificates) => certificates.readiness(now),
        }
    }

    async fn follow(&self) {
        match self {
            Self::FromAuthority(certificates) => match certificates.follow().await {},
            Self::FromFiles(certificates) => match certificates.follow().await {},
        }
    }
}
