//! I/O. The role `verifier`: follows the records, answers proxies, and writes last uses back.
//!
//! `feed.rs` keeps the keyring, and `decisions.rs` decides from it, while `membership.rs` says that it may. `lease.rs` holds
//! the Lease that this takes. `forward_auth.rs` (HTTP) and `ext_authz.rs` (Envoy's messages) are plain functions from a
//! request to an answer. `grpc.rs` transports the latter. `flush.rs` writes last uses.

pub mod decisions;
mod denial;
pub mod ext_authz;
pub mod feed;
#[allow(missing_docs, reason = "the names are those of the definitions")]
mod field;
pub mod flush;
pub mod forward_auth;
pub mod grpc;
pub mod lease;
pub mod membership;
pub mod protobuf;

use std::fmt;
use std::future::{Future, pending};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{FutureExt, future};
use hyper::Request;
use keywright_core::client_address::ClientAddressSource;
use keywright_core::fence::Holder;
use keywright_core::usage;
use kube::Config;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use self::decisions::{DecisionMetrics, Decisions, Tally};
use self::ext_authz::Authorization;
use self::feed::Feed;
use self::flush::Flush;
use self::forward_auth::ForwardAuth;
use self::grpc::Services;
use self::lease::LeaseKeeper;
use self::membership::Membership;
use crate::serve::admin;
use crate::serve::connections::{Leaving, Listener, Server};
use crate::serve::limits::Limits;
use crate::serve::listen::{Address, bind};
use crate::serve::places::Share;
use crate::serve::room::ConnectionMetrics;
use crate::serve::tls::files::{CertificateFiles, PemFiles};
use crate::serve::tls::{Acceptor, HTTP_1, HTTP_2};
use crate::serve::workers::Workers;
use crate::telemetry::WatchErrors;
use crate::{client, clock};

/// The options of a verifier, from its flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// The system namespace, with the records.
    pub namespace: String,
    /// The address for proxies that ask over HTTP.
    pub http_address: Address,
    /// The address for Envoy, which asks over gRPC.
    pub grpc_address: Address,
    /// The address for probes and metrics.
    pub admin_address: Address,
    /// The source of the client's address over HTTP.
    pub http_client_address_source: ClientAddressSource,
    /// The source of the client's address over gRPC.
    pub grpc_client_address_source: ClientAddressSource,
    /// The Lease's name: the Pod's. No two verifiers may have the same.
    pub identity: String,
    /// How long the Lease is valid after each renewal, and how old the records may be. After that, every answer is 503.
    pub lease_duration: Duration,
    /// The share of a listener's connections that one client may have. For probes and metrics it is always a quarter.
    pub connections_per_client: Share,
    /// How often last uses are written to the records.
    pub last_used: usage::Policy,
    /// The files for TLS. `None`: plain text.
    pub tls: Option<PemFiles>,
    /// Whether plain text is refused, if there is TLS.
    pub tls_required: bool,
}

/// How often the certificate files are read. A kubelet updates them within a minute or two of a change of the Secret.
const CERTIFICATE_POLL: Duration = Duration::from_secs(5);

/// Open files besides clients' connections: connections to the API server, listeners, certificates, the runtime.
const OTHER_FILES: u64 = 128;

/// How long the removal of the Lease may take at the end. If it fails, this verifier holds deletions up until its Lease has run
/// out, or until it is started again in the same Pod.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

const REMEDY: &str = "If it is a proxy, let it trust the CA of --tls-certificate";

/// Runs a verifier until `shutdown`: holds its Lease, follows the records, and answers proxies and probes.
///
/// # Errors
/// If it cannot listen on an address, a certificate file cannot be used, or a task stops unexpectedly.
pub async fn run(config: &Config, options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    allow_open_files();
    let mut registry = Registry::with_prefix("keywright");
    let tls = options.tls.clone().map(|files| open(files, &mut registry)).transpose()?;
    let acceptor = |protocol| {
        let acceptor = tls.as_ref().map(|certificates| Acceptor::new(certificates.served(), protocol, REMEDY));
        acceptor.map(|acceptor| acceptor.required(options.tls_required))
    };
    if tls.is_some() && !options.tls_required {
        warn!("plain text is accepted without a certificate. Set --tls-required=true when all proxies speak TLS");
    }
    let listeners = Listeners::bind(&options).await?;
    let errors = WatchErrors::new(&mut registry);
    let (requests, watches) = (client::requesting(config)?, client::watching(config)?);
    let holder = Holder::new(&options.identity, rand::random(), options.lease_duration);
    let membership = Arc::new(Membership::new(holder));
    let feed = Arc::new(Feed::new(Arc::clone(&membership), clock::moment()).with_errors(errors));
    let leaving = Leaving::default();
    let connections = ConnectionMetrics::new(&mut registry);
    let [http_occupancy, grpc_occupancy, admin_occupancy] = ["http", "grpc", "admin"].map(|name| connections.of(name));
    let decides = {
        let (feed, tls, leaving) = (Arc::clone(&feed), tls.clone(), leaving.clone());
        move || readiness(&feed, tls.as_deref(), &leaving)
    };
    let readiness = {
        let (decides, occupancies) = (decides.clone(), [http_occupancy.clone(), grpc_occupancy.clone()]);
        move || {
            occupancies.iter().try_for_each(|occupancy| occupancy.readiness(Instant::now())).and_then(|()| decides())
        }
    };
    let [http_tally, grpc_tally] = ["http", "grpc"].map(|protocol| Arc::new(Tally::new(protocol)));
    registry.register_collector(Box::new(FeedMetrics(Arc::clone(&feed))));
    let tallies = vec![Arc::clone(&http_tally), Arc::clone(&grpc_tally)];
    registry.register_collector(Box::new(DecisionMetrics(tallies)));
    let (namespace, policy) = (options.namespace, options.last_used);
    let keeper = LeaseKeeper::new(Arc::clone(&membership), requests.clone(), &namespace);
    let flush = Flush::new(requests, &namespace, Arc::clone(&feed), policy, &mut registry);

    let workers = Workers::per_core().context("cannot start a thread for each core")?;
    let server = |tcp, protocol, limits: Limits, occupancy| {
        let (workers, leaving) = (workers.clone(), leaving.clone());
        let limits = limits.shared_by(options.connections_per_client);
        Server { listener: Listener { tcp, tls: acceptor(protocol) }, limits, workers, leaving, occupancy }
    };
    let shutdown = shutdown.shared();
    let http = {
        let decisions = Decisions::new(Arc::clone(&feed), clock::now, http_tally);
        let verifier = ForwardAuth::new(decisions, options.http_client_address_source);
        let handler = move |request: &Request<()>, peer: IpAddr| verifier.answer(request, peer);
        server(listeners.http, HTTP_1, Limits::default(), http_occupancy).serve(handler, shutdown.clone())
    };
    let grpc = {
        let decisions = Decisions::new(Arc::clone(&feed), clock::now, grpc_tally);
        let authorization = Authorization::new(decisions, options.grpc_client_address_source);
        // A client that asks for health has a connection. A full listener is no reason to send it elsewhere.
        let services = Services { authorization, is_ready: Box::new(move || decides().is_ok()) };
        grpc::serve(server(listeners.grpc, HTTP_2, grpc::LIMITS, grpc_occupancy), services, shutdown)
    };

    let mut background = JoinSet::new();
    background.spawn(admin::serve(listeners.admin, readiness, Arc::new(registry), admin_occupancy, pending()));
    background.spawn(async move { match feed.follow(watches, &namespace).await {} });
    let last_flush = flush.clone();
    let flushing = background.spawn(async move { match flush.run().await {} });
    if let Some(tls) = tls {
        background.spawn(async move { match tls.follow().await {} });
    }
    let mut holding = JoinSet::new();
    holding.spawn(keeper.run());
    tokio::select! {
        _ = future::join(http, grpc) => {}
        ended = background.join_next() => bail!("a task of the verifier stopped unexpectedly: {ended:?}"),
        ended = holding.join_next() => bail!("the task of the Lease stopped unexpectedly: {ended:?}"),
    }
    // All answers are given, so nobody needs to wait for this verifier any more.
    membership.leave();
    if timeout(LEAVE_TIMEOUT, holding.join_next()).await.is_err() {
        warn!(
            "the Lease is still there: deletions of ApiKeys wait until it has run out, or until this Pod starts again"
        );
    }
    flushing.abort();
    last_flush.finish().await;
    Ok(())
}

/// Where the verifier is asked.
struct Listeners {
    http: TcpListener,
    grpc: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    async fn bind(options: &Options) -> anyhow::Result<Self> {
        let http = bind(options.http_address, "--http-address").await?;
        let grpc = bind(options.grpc_address, "--grpc-address").await?;
        let admin = bind(options.admin_address, "--admin-address").await?;
        let (http_address, grpc_address) = (http.local_addr()?, grpc.local_addr()?);
        info!(%http_address, %grpc_address, admin_address = %admin.local_addr()?, "listening");
        Ok(Self { http, grpc, admin })
    }
}

/// Raises the limit of open files to the number that all connections need. A container runtime may start with 1,024. Clients
/// could use all of them, probes would fail, and the kubelet would restart the verifier.
fn allow_open_files() {
    let connections = 2 * Limits::default().connections + grpc::LIMITS.connections; // HTTP and the administration; gRPC
    let needed = connections as u64 + OTHER_FILES;
    match rlimit::increase_nofile_limit(needed) {
        Ok(allowed) if allowed >= needed => {}
        Ok(allowed) => warn!(
            allowed,
            needed,
            "the limit of open files is too low for all connections, so probes may fail: raise the hard limit \
             (RLIMIT_NOFILE)"
        ),
        Err(error) => {
            warn!(%error, needed, "cannot raise the limit of open files: raise the hard limit (RLIMIT_NOFILE)")
        }
    }
}

/// Reads the certificate files, which must be valid at the start.
fn open(files: PemFiles, registry: &mut Registry) -> anyhow::Result<Arc<CertificateFiles>> {
    // Proxies may use any name for the verifier.
    let certificates = CertificateFiles::new(files, Vec::new(), CERTIFICATE_POLL, registry)?;
    certificates.refresh(clock::now())?;
    Ok(certificates)
}

fn readiness(feed: &Feed, tls: Option<&CertificateFiles>, leaving: &Leaving) -> Result<(), String> {
    if leaving.has_begun() {
        return Err("shutting down".to_owned());
    }
    tls.map_or(Ok(()), |tls| tls.readiness(clock::now()))?;
    feed.membership().readiness(clock::moment()).map_err(|unready| unready.to_string())
}

/// The metrics of the feed, read at each scrape.
struct FeedMetrics(Arc<Feed>);

impl Collector for FeedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("records", "Records in the keyring", self.0.records() as f64)?;
        let now = clock::moment();
        gauge("record_version_lag_seconds", "How old the records are", self.0.age(now).as_secs_f64())?;
        let remaining = self.0.membership().remaining(now).as_secs_f64();
        gauge("lease_remaining_seconds", "How long the verifier answers without another renewal", remaining)
    }
}

impl fmt::Debug for FeedMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeedMetrics")
    }
}

#[cfg(test)]
mod tests;
