//! I/O. The controller: woken by name, it observes, plans in [`crate::lifecycle`], writes at most once, and observes
//! again until nothing is left to write; the status comes last, and only if it changed.
//!
//! Level-triggered: watches say which ApiKey to look at and never why, and nothing is decided from what they say.

mod apply;
mod cluster;
mod election;
mod error;
mod events;
mod gauges;
mod index;
mod memory;
mod observe;
mod pass;
mod secret;
mod sweep;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt, future};
use jiff::SignedDuration;
use kube::api::{DynamicObject, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::controller::{Config as Scheduling, Controller};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::{self, Event as WatchEvent, watcher};
use kube::{Client, Config, ResourceExt};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::api::{ApiKey, ApiKeyReference};
use crate::client;
use crate::server::admin;
use crate::server::connections::bind;
use crate::telemetry::ControllerMetrics;
use cluster::Cluster;
use error::Error;
use index::RecordIndex;
use pass::{Context, SHORTEST_PAUSE, pass, pause_after_failure};

/// What the controller is told at its start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where records and the leader's Lease are.
    pub system_namespace: String,
    /// Look after the ApiKeys of this namespace only.
    pub watched_namespace: Option<String>,
    /// Where probes and metrics are answered.
    pub admin_address: SocketAddr,
    /// Who this process is; different for any two processes.
    pub identity: String,
    /// Whether to work only while leading.
    pub leader_elect: bool,
    /// How long a revoked record stays.
    pub tombstone_retention: SignedDuration,
    /// How many ApiKeys are worked on at a time.
    pub concurrency: u16,
    /// At the latest after this time every ApiKey is looked at again.
    pub resync: Duration,
}

/// How long passes that are under way may go on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// A watch ends after this time and is opened again, and one that is silent for a little longer is given up: a
/// connection that died without a word is noticed within 25 s.
const WATCH_SECONDS: u32 = 20;

type Watched = PartialObjectMeta<ApiKey>;

/// Whether the controller does its work, for `/readyz`.
#[derive(Clone, Default)]
struct Readiness(Arc<AtomicBool>);

impl Readiness {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), String> {
        let ready = self.0.load(Ordering::Relaxed);
        if ready { Ok(()) } else { Err("the first lists of ApiKeys and records are not in".to_owned()) }
    }
}

/// Works until `shutdown`.
///
/// # Errors
/// If the address cannot be listened on, or the lead is lost: then this process must end, and whoever restarts it gives
/// it a new identity.
pub async fn run(config: &Config, options: Options, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let listener = bind(options.admin_address, "--admin-address").await?;
    info!(admin_address = %listener.local_addr()?, "listening");
    let mut registry = Registry::with_prefix("keywright");
    let metrics = ControllerMetrics::new(&mut registry, &Error::KINDS);
    let readiness = Readiness::default();
    let checked = readiness.clone();
    let admin = admin::serve(listener, move || checked.check(), Arc::new(registry), future::pending());
    tokio::select! {
        done = elect(config, options, metrics, readiness, shutdown) => done,
        () = admin => anyhow::bail!("the listener for probes ended by itself"),
    }
}

/// Works only while leading, where that is asked for.
async fn elect(
    config: &Config,
    options: Options,
    metrics: ControllerMetrics,
    readiness: Readiness,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (requests, watches) = (client::requesting(config)?, client::watching(config)?);
    let shutdown = pin!(shutdown);
    if !options.leader_elect {
        work(requests, watches, &options, metrics, readiness, shutdown).await;
        return Ok(());
    }
    let mut candidate = election::Candidate::new(requests.clone(), &options.system_namespace, options.identity.clone());
    // A standby does its work by standing by.
    readiness.set();
    let shutdown = match future::select(pin!(candidate.lead()), shutdown).await {
        future::Either::Left(((), shutdown)) => shutdown,
        future::Either::Right(_) => return Ok(()),
    };
    info!(identity = options.identity, "leading");
    let lost = {
        let work = pin!(work(requests, watches, &options, metrics, readiness, shutdown));
        matches!(future::select(pin!(candidate.keep()), work).await, future::Either::Left(_))
    };
    anyhow::ensure!(!lost, "lost the lead: another controller works on, and this one must start anew");
    candidate.release().await;
    Ok(())
}

async fn work(
    requests: Client,
    watches: Client,
    options: &Options,
    metrics: ControllerMetrics,
    readiness: Readiness,
    shutdown: impl Future<Output = ()>,
) {
    let cluster = Cluster::new(requests, &options.system_namespace, options.watched_namespace.as_deref());
    let index = Arc::new(RecordIndex::new());
    let (store, writer) = reflector::store::<Watched>();
    let (gone, gone_receiver) = mpsc::unbounded_channel();

    let watched = cluster::api_keys_in(watches.clone(), options.watched_namespace.as_deref());
    let configuration = watcher::Config::default().timeout(WATCH_SECONDS);
    let api_keys = watcher(watched, configuration.clone())
        .inspect_ok(tell_departures(gone, index.clone()))
        .default_backoff()
        .reflect(writer)
        .applied_objects();
    let stored = cluster::stored_records(watches, &options.system_namespace);
    let records = observed_records(watcher(stored, configuration), index.clone());

    let context = Arc::new(Context {
        cluster: cluster.clone(),
        index: index.clone(),
        store: store.clone(),
        memory: Arc::default(),
        metrics,
        identity: options.identity.clone(),
        resync: options.resync,
    });
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut stopped_too = stopped.clone();
    let controller = Controller::for_stream(api_keys, store.clone())
        .with_config(Scheduling::default().concurrency(options.concurrency))
        .watches_stream_with(records, woken_by_record, records_type())
        .graceful_shutdown_on(async move {
            let _ = stopped_too.wait_for(|stopped| *stopped).await;
        })
        .run(pass, pause_after_failure, context)
        .for_each(|_| future::ready(()));

    let tidying = tidy_up(cluster, gone_receiver, options.tombstone_retention, options.resync, stopped);
    let becoming_ready = async {
        if store.wait_until_ready().await.is_ok() {
            index.until_complete().await;
            readiness.set();
        }
        future::pending::<()>().await;
    };
    let mut working = pin!(async {
        tokio::select! {
            _ = future::join(controller, tidying) => {}
            () = becoming_ready => {}
        }
    });
    tokio::select! {
        () = &mut working => {}
        () = shutdown => {
            let _ = stop.send(true);
            if tokio::time::timeout(DRAIN, working).await.is_err() {
                warn!("some passes were still at work: whoever takes over goes on from what is stored");
            }
        }
    }
}

fn records_type() -> kube::api::ApiResource {
    kube::api::ApiResource::erase::<crate::api::ApiKeyRecord>(&())
}

/// Sends the ApiKeys that vanish while one of their keys may still be let in.
fn tell_departures(
    gone: mpsc::UnboundedSender<ApiKeyReference>,
    index: Arc<RecordIndex>,
) -> impl Fn(&WatchEvent<Watched>) {
    move |event| {
        let WatchEvent::Delete(api_key) = event else { return };
        let reference = ApiKeyReference {
            namespace: api_key.namespace().unwrap_or_default(),
            name: api_key.name_any(),
            uid: api_key.uid().unwrap_or_default(),
        };
        if index.may_be_live(&reference.uid) {
            // The receiver is gone only while the controller stops.
            let _ = gone.send(reference);
        }
    }
}

/// The records that changed, once the index knows of them.
fn observed_records(
    events: impl Stream<Item = Result<WatchEvent<DynamicObject>, watcher::Error>> + Send + 'static,
    index: Arc<RecordIndex>,
) -> impl Stream<Item = Result<DynamicObject, watcher::Error>> + Send + 'static {
    events.inspect_ok(move |event| index.observe(event)).default_backoff().try_filter_map(|event| {
        future::ok(match event {
            // The first list tells nothing that the list of ApiKeys does not, and both wake the same passes.
            WatchEvent::Init | WatchEvent::InitApply(_) | WatchEvent::InitDone => None,
            WatchEvent::Apply(record) | WatchEvent::Delete(record) => Some(record),
        })
    })
}

fn woken_by_record(record: DynamicObject) -> Option<ObjectRef<Watched>> {
    let reference = index::reference(&record)?;
    Some(ObjectRef::new(&reference.name).within(&reference.namespace))
}

/// Sweeps at the start and every `resync`, and looks after single departures in between.
async fn tidy_up(
    cluster: Cluster,
    mut gone: mpsc::UnboundedReceiver<ApiKeyReference>,
    retention: SignedDuration,
    resync: Duration,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let mut ticks = tokio::time::interval(resync.max(Duration::from_secs(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            _ = ticks.tick() => sweep::sweep(&cluster, retention).await,
            Some(reference) = gone.recv() => sweep::revoke_orphans_of(&cluster, &reference).await,
        };
        if let Err(error) = done {
            warn!(%error, "cannot look for records without an ApiKey; trying again");
            // Whoever was missed is found by the next sweep, so that one is brought forward.
            ticks.reset_after(SHORTEST_PAUSE * 10);
        }
    }
}

/// `namespace/name`, for the log.
fn record_of(reference: &ApiKeyReference) -> String {
    format!("{}/{}", reference.namespace, reference.name)
}
