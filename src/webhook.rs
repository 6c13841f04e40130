//! I/O. The role `webhook`: answers the API server's admission reviews over TLS, with a certificate that it looks after
//! itself.

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

/// What a webhook is told by its flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// The system namespace, where the authority's Secret is.
    pub namespace: String,
    /// Where the API server asks.
    pub https_address: Address,
    /// Where probes and metrics are answered.
    pub admin_address: Address,
    /// The names or addresses by which the API server calls.
    pub server_names: Vec<String>,
    /// How long each certificate lasts.
    pub certificate_lifetime: SignedDuration,
    /// How often the Secret, or the files, are looked at.
    pub certificate_poll: Duration,
    /// How many places for reviews one client may hold.
    pub connections_per_client: Share,
}

/// Where certificates come from.
pub enum CertificateOrigin {
    /// Made here, by the authority in the Secret; read with this client, which may neither list nor write.
    Authority(Client),
    /// Made elsewhere.
    Files(PemFiles),
}

const REMEDY: &str = "if it is the API server, caBundle is of another authority: run `keywright certificates`";

/// Who has a certificate to serve.
#[derive(Clone)]
enum CertificateSource {
    FromAuthority(Arc<AuthorityCertificates>),
    FromFiles(Arc<CertificateFiles>),
}

/// Answers reviews until `shutdown`.
///
/// # Errors
/// If an address cannot be listened on, or a part of the webhook ends by itself.
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
        ended = background.join_next() => bail!("a part of the webhook ended by itself: {ended:?}"),
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
