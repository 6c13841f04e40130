//! I/O. The role `webhook`: answers the API server's admission reviews over TLS, with a certificate that it looks after
//! itself.

mod keeper;

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
use crate::server::admin;
use crate::server::connections::{Leaving, Listener, Server};
use crate::server::listen::{Address, bind};
use crate::server::places::Share;
use crate::server::room::ConnectionMetrics;
use crate::server::webhook::{BODY_LIMITS, LIMITS, Webhook};
use crate::server::workers::Workers;
use crate::tls::files::{self, PemFiles};
use crate::tls::{Acceptor, HTTP_1, Served};
use keeper::Source;

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
pub enum Authority {
    /// Made here, by the authority in the Secret; read with this client, which may neither list nor write.
    Secret(Client),
    /// Made elsewhere.
    Files(PemFiles),
}

const REMEDY: &str = "if it is the API server, caBundle is of another authority: run `keywright certificates`";

/// Who has a certificate to serve.
#[derive(Clone)]
enum Keeper {
    Secret(Arc<keeper::Keeper>),
    Files(Arc<files::Keeper>),
}

/// Answers reviews until `shutdown`.
///
/// # Errors
/// If an address cannot be listened on, or a part of the webhook ends by itself.
pub async fn run(authority: Authority, options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let listener = bind(options.https_address, "--https-address").await?;
    let admin_listener = bind(options.admin_address, "--admin-address").await?;
    info!(https_address = %listener.local_addr()?, admin_address = %admin_listener.local_addr()?, "listening");

    let mut registry = Registry::with_prefix("keywright");
    let keeper = Keeper::new(authority, &options, &mut registry)?;
    let tls = Acceptor::new(keeper.served(), HTTP_1, REMEDY);
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
        let (keeper, leaving, occupancy) = (keeper.clone(), server.leaving.clone(), server.occupancy.clone());
        move || match leaving.has_begun() {
            true => Err("shutting down".to_owned()),
            false => occupancy.readiness(Instant::now()).and_then(|()| keeper.readiness(clock::now())),
        }
    };

    let mut background = JoinSet::new();
    let admin_occupancy = connections.of("admin");
    background.spawn(admin::serve(admin_listener, readiness, Arc::new(registry), admin_occupancy, pending()));
    background.spawn(async move { keeper.follow().await });
    tokio::select! {
        () = server.serve_with_bodies(BODY_LIMITS, handler, shutdown) => Ok(()),
        ended = background.join_next() => bail!("a part of the webhook ended by itself: {ended:?}"),
    }
}

impl Keeper {
    fn new(authority: Authority, options: &Options, registry: &mut Registry) -> anyhow::Result<Self> {
        let (server_names, poll) = (options.server_names.clone(), options.certificate_poll);
        Ok(match authority {
            Authority::Secret(client) => {
                let source = Source::new(client, &options.namespace, options.certificate_lifetime);
                Self::Secret(keeper::Keeper::new(source, server_names, poll, registry)?)
            }
            Authority::Files(files) => Self::Files(files::Keeper::new(files, server_names, poll, registry)?),
        })
    }

    fn served(&self) -> Arc<Served> {
        match self {
            Self::Secret(keeper) => keeper.served(),
            Self::Files(keeper) => keeper.served(),
        }
    }

    fn readiness(&self, now: Timestamp) -> Result<(), String> {
        match self {
            Self::Secret(keeper) => keeper.readiness(now),
            Self::Files(keeper) => keeper.readiness(now),
        }
    }

    async fn follow(&self) {
        match self {
            Self::Secret(keeper) => match keeper.follow().await {},
            Self::Files(keeper) => match keeper.follow().await {},
        }
    }
}
