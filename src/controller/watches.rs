//! What sets the controller to work: the watches of ApiKeys and records, which wake passes by name, and the sweeps, which
//! look for what no watch tells.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::channel::mpsc as channel;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, future, stream};
use kube::runtime::WatchStreamExt;
use kube::runtime::controller::{Config as Scheduling, Controller};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::cluster::Cluster;
use super::events::Events;
use super::fairness::Fairness;
use super::follow::{Pauses, Source, follow};
use super::heads::{ApiKeyHead, RecordHead, Watched};
use super::index::RecordIndex;
use super::known::Known;
use super::memory::Memory;
use super::options::Options;
use super::readiness::Readiness;
use super::reconcile::{Context, LONGEST_PAUSE, SHORTEST_PAUSE, pass, pause_after_failure};
use super::sweep::Sweeper;
use crate::telemetry::{ControllerMetrics, WatchErrorKind, WatchErrors};
use keywright_core::api::{ApiKey, ApiKeyRecord, ApiKeyReference};

/// How long passes that are under way may go on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// ApiKeys that went without our finalizer and are looked after at a time.
const PARALLEL_DEPARTURES: usize = 8;

/// Works until `shutdown`.
pub(super) async fn work(
    requests: Client,
    watches: Client,
    options: &Options,
    metrics: ControllerMetrics,
    Known { memory, verifiers }: Known,
    readiness: Readiness,
    shutdown: impl Future<Output = ()>,
) {
    let cluster = Cluster::new(requests.clone(), &options.system_namespace, options.watched_namespace.as_deref());
    let index = Arc::new(RecordIndex::new(metrics.tombstones.clone()));
    let (store, writer) = reflector::store::<Watched>();
    let (gone, departures) = mpsc::unbounded_channel();
    let orphaned = gone.clone();

    let source = |url_path, metadata_only| Source {
        requests: requests.clone(),
        watches: watches.clone(),
        url_path,
        metadata_only,
    };
    let api_keys = source(ApiKey::url_path(&(), options.watched_namespace.as_deref()), true);
    let api_keys = observed_api_keys(api_keys, metrics.watch_errors.clone())
        .inspect_ok(tell_departures(gone, index.clone(), memory.clone()))
        .backoff(Pauses::default())
        .reflect(writer)
        .applied_objects()
        // They were told, and waited after.
        .filter_map(|api_key| future::ready(api_key.ok().map(Ok)));
    let records = source(ApiKeyRecord::url_path(&(), Some(&options.system_namespace)), false);
    let records = woken_by_records(records, index.clone(), memory.clone(), metrics.watch_errors.clone(), {
        let (store, cluster) = (store.clone(), cluster.clone());
        move |record| {
            if cluster.watches(&record.spec.api_key.namespace) && is_orphan(&store, record) {
                // The receiver is gone only while the controller stops.
                let _ = orphaned.send(record.spec.api_key.clone());
            }
        }
    });

    let sweeper = Sweeper {
        cluster: cluster.clone(),
        store: store.clone(),
        metrics: metrics.clone(),
        retention: options.tombstone_retention,
        most_per_namespace: options.tombstones_per_namespace.try_into().unwrap_or(usize::MAX),
        complained: Mutex::default(),
    };
    let (waking, woken) = channel::unbounded();
    let looking = {
        let (cluster, memory, verifiers, waking) = (cluster.clone(), memory.clone(), verifiers.clone(), waking.clone());
        let errors = metrics.watch_errors.clone();
        async move { verifiers.look_for_ever(&cluster, &memory, &waking, &errors).await }
    };
    let context = Arc::new(Context {
        events: Events::new(cluster.clone(), options.identity.clone()),
        cluster,
        index: index.clone(),
        store: store.clone(),
        memory,
        verifiers,
        fairness: Arc::new(Fairness::new(options.concurrency, waking.clone())),
        waking,
        metrics,
        resync: options.resync,
    });
    let stop = CancellationToken::new();
    let passes = Controller::for_stream(api_keys, store.clone())
        .with_config(Scheduling::default().concurrency(options.concurrency))
        .reconcile_on(stream::select(records, woken))
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(pass, pause_after_failure, context)
        .for_each(|_| future::ready(()));
    let tidying = async {
        // What is not yet listed would look as if it were gone.
        if store.wait_until_ready().await.is_ok() {
            index.until_complete().await;
            readiness.set(true);
            tidy_up(&sweeper, departures, options.resync).await;
        }
    };
    // Passes that are under way at the end may still wait for a look.
    let passes = async {
        tokio::select! {
            () = passes => {}
            never = looking => match never {},
        }
    };
    let working = future::join(passes, stop.run_until_cancelled(tidying));
    drain(pin!(working), shutdown, &stop).await;
}

/// Works until `shutdown`, and then until what is under way is done, for [`DRAIN`] at most.
async fn drain<T>(
    mut working: Pin<&mut impl Future<Output = T>>,
    shutdown: impl Future<Output = ()>,
    stop: &CancellationToken,
) {
    tokio::select! {
        _ = &mut working => {}
        () = shutdown => {
            stop.cancel();
            if tokio::time::timeout(DRAIN, working).await.is_err() {
                warn!("stopped with reconciles in flight. The next leader continues them; nothing to do");
            }
        }
    }
}

fn observed_api_keys(
    source: Source,
    errors: WatchErrors,
) -> impl Stream<Item = watcher::Result<Event<Watched>>> + Send + 'static {
    follow::<ApiKeyHead>(source).inspect_err(told(errors, "apikeys")).map_err(watcher::Error::WatchFailed).map_ok(
        |event| match event {
            Event::Init => Event::Init,
            Event::InitApply(api_key) => Event::InitApply(api_key.into()),
            Event::InitDone => Event::InitDone,
            Event::Apply(api_key) => Event::Apply(api_key.into()),
            Event::Delete(api_key) => Event::Delete(api_key.into()),
        },
    )
}

/// Sends the ApiKeys that vanish while one of their keys may still be let in.
fn tell_departures(
    gone: mpsc::UnboundedSender<ApiKeyReference>,
    index: Arc<RecordIndex>,
    memory: Arc<Memory>,
) -> impl Fn(&Event<Watched>) {
    move |event| {
        if matches!(event, Event::Init) {
            // Versions of before may be higher: an etcd backup may have been restored.
            memory.disturb_all();
        }
        let Event::Delete(api_key) = event else { return };
        let reference = ApiKeyReference {
            namespace: api_key.namespace().unwrap_or_default(),
            name: api_key.name_any(),
            uid: api_key.uid().unwrap_or_default(),
        };
        memory.forget(&reference.uid);
        if index.may_be_live(&reference.uid) {
            // The receiver is gone only while the controller stops.
            let _ = gone.send(reference);
        }
    }
}

/// Whether a key may be let in of an ApiKey that is not there: a controller was late with its record. A list of ApiKeys that is
/// not complete tells nothing, and the sweep after it looks for all of them.
fn is_orphan(store: &Store<Watched>, record: &RecordHead) -> bool {
    let api_key = &record.spec.api_key;
    let is_complete = store.wait_until_ready().now_or_never().is_some_and(|ready| ready.is_ok());
    let present = store.get(&ObjectRef::new(&api_key.name).within(&api_key.namespace));
    let is_there = present.is_some_and(|present| present.uid().as_deref() == Some(&*api_key.uid));
    is_complete && record.spec.revoked.is_none() && !is_there
}

/// The ApiKeys whose records changed, once the index knows of them.
fn woken_by_records(
    source: Source,
    index: Arc<RecordIndex>,
    memory: Arc<Memory>,
    errors: WatchErrors,
    seen: impl Fn(&RecordHead) + Send + 'static,
) -> impl Stream<Item = ObjectRef<Watched>> + Send + 'static {
    follow::<RecordHead>(source)
        .inspect_err(told(errors, "apikeyrecords"))
        .inspect_ok(move |event| index.observe(event))
        .backoff(Pauses::default())
        .filter_map(move |event| {
            match &event {
                Ok(Event::Apply(record)) => seen(record),
                // No version tells that a record is gone.
                Ok(Event::Delete(record)) => memory.disturb(&record.spec.api_key.uid),
                Ok(Event::Init) => memory.disturb_all(),
                _ => {}
            }
            future::ready(match event {
                Ok(Event::Apply(record) | Event::Delete(record)) => {
                    let api_key = record.spec.api_key;
                    Some(ObjectRef::new(&api_key.name).within(&api_key.namespace))
                }
                // The first list tells nothing that the list of ApiKeys does not, and both wake the same passes.
                _ => None,
            })
        })
}

fn told(errors: WatchErrors, watched: &'static str) -> impl Fn(&kube::Error) {
    move |error| errors.note(watched, WatchErrorKind::of(error), error, Instant::now())
}

/// Sweeps at the start and every `resync`, and looks after single departures meanwhile.
async fn tidy_up(
    sweeper: &Sweeper,
    departures: mpsc::UnboundedReceiver<ApiKeyReference>,
    resync: Duration,
) -> (Infallible, ()) {
    let missed = Notify::new();
    let departing = stream::unfold(departures, async |mut departures| Some((departures.recv().await?, departures)));
    let departing = departing.for_each_concurrent(PARALLEL_DEPARTURES, async |api_key: ApiKeyReference| {
        if let Err(error) = sweeper.revoke_orphans_of(&api_key).await {
            warn!(%error, "cannot look for the records of an ApiKey that is gone; the next sweep, which is due, does");
            missed.notify_one();
        }
    });
    future::join(sweep_for_ever(sweeper, &missed, resync), departing).await
}

async fn sweep_for_ever(sweeper: &Sweeper, missed: &Notify, resync: Duration) -> Infallible {
    let shortest = SHORTEST_PAUSE * 10;
    let mut after_failure = shortest;
    loop {
        match sweeper.sweep().await {
            Ok(()) => {
                after_failure = shortest;
                let due = tokio::time::sleep(resync.max(Duration::from_secs(1)));
                tokio::select! {
                    () = due => {}
                    () = missed.notified() => tokio::time::sleep(shortest).await,
                }
            }
            Err(error) => {
                warn!(%error, "cannot look through the records; trying again");
                tokio::time::sleep(after_failure.min(resync)).await;
                after_failure = (after_failure * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
