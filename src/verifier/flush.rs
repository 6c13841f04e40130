//! I/O. Writes last uses to the records' status, as [`keywright_core::usage`] decides. At shutdown it writes all the rest.
//!
//! Each write reads the record, compares, and patches under the version that was read. So a time never goes backwards,
//! whatever other verifiers write.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures::stream::{self, FuturesUnordered};
use futures::{StreamExt, future};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::error::Elapsed;
use tokio::time::{sleep_until, timeout};
use tracing::{info, warn};

use crate::client::REQUEST_TIMEOUT;
use crate::clock;
use crate::verifier::feed::Feed;
use keywright_core::api::ApiKeyRecord;
use keywright_core::record_name::RecordName;
use keywright_core::usage::{Due, Next, Outcome, Policy, Schedule, second, unwritten};

/// Writes last uses, for one verifier.
#[derive(Clone)]
pub struct Flush {
    feed: Arc<Feed>,
    records: Api<LastUse>,
    policy: Policy,
    metrics: Metrics,
}

#[derive(Clone, Default)]
struct Metrics {
    writes: Counter,
    errors: Counter,
    granularity: Gauge<f64, AtomicU64>,
    waiting: Gauge,
}

/// The fields of a record that a write needs. The rest is skipped: there may be hundreds of writes a second.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = ApiKeyRecord)]
struct LastUse {
    metadata: ObjectMeta,
    #[serde(default)]
    status: Value,
}

/// How long a verifier goes on writing at shutdown.
const LAST_FLUSH: Duration = Duration::from_secs(30);

/// Writes at the same time at shutdown. More are not faster.
const LAST_FLUSH_AT_ONCE: usize = 32;

/// Attempts per record at shutdown, because other verifiers may write it too.
const LAST_FLUSH_ATTEMPTS: usize = 3;

impl Flush {
    /// Writes the last uses of `feed` to the records in `namespace`, and registers its metrics.
    pub fn new(client: Client, namespace: &str, feed: Arc<Feed>, policy: Policy, registry: &mut Registry) -> Self {
        let records = Api::namespaced(client, namespace);
        let metrics = Metrics::default();
        registry.register("last_used_writes", "Writes of a key's last use to its record", metrics.writes.clone());
        let help = "Failed writes of a last use, which are retried";
        registry.register("last_used_write_errors", help, metrics.errors.clone());
        let help = "Records whose last use waits to be written";
        registry.register("last_used_waiting", help, metrics.waiting.clone());
        let help = "How late last uses in the API are, at most";
        registry.register_with_unit("last_used_granularity", help, Unit::Seconds, metrics.granularity.clone());
        Self { feed, records, policy, metrics }
    }

    /// Writes within the budget, for ever.
    pub async fn run(self) -> Infallible {
        if self.policy.budget.writes_per_second == 0 {
            self.metrics.granularity.set(f64::INFINITY);
            return future::pending().await;
        }
        let mut schedule = Schedule::new(self.policy, rand::random(), Instant::now());
        let mut seen_writes = self.feed.seen_writes();
        let mut survey_at = Instant::now();
        let mut writes = FuturesUnordered::new();
        loop {
            let wait_until = loop {
                let latest = || *seen_writes.borrow_and_update();
                match schedule.next(self.feed.marks(), latest, second(clock::now()), Instant::now()) {
                    Next::Write(due) => writes.push(self.clone().write(due)),
                    Next::Wait(until) => break until,
                }
            };
            tokio::select! {
                () = sleep_until(survey_at.into()) => {
                    self.survey(&mut schedule);
                    survey_at = Instant::now() + schedule.survey_interval();
                }
                // Fails only without a sender, and the feed is the sender.
                _ = seen_writes.changed() => {}
                Some((due, outcome)) = writes.next() => schedule.finish(due, outcome, Instant::now()),
                () = sleep_until(wait_until.into()) => {}
            }
        }
    }

    /// Writes all unwritten last uses, without the budget and without waiting until they are due. Takes 30 s at most.
    pub async fn finish(self) {
        if self.policy.budget.writes_per_second == 0 {
            return;
        }
        let left = unwritten(self.feed.marks(), &self.feed.newest());
        let count = left.len();
        let mut lost = count;
        let writes = stream::iter(left).map(|(slot, name)| self.write_at_last(slot, name));
        let mut writes = pin!(writes.buffer_unordered(LAST_FLUSH_AT_ONCE));
        let all = async {
            while let Some(is_written) = writes.next().await {
                lost -= usize::from(is_written);
            }
        };
        // At the timeout, the rest is counted as lost.
        let _ = timeout(LAST_FLUSH, all).await;
        if lost > 0 {
            warn!(records = count, lost, "shutdown lost some last uses: lastUsedAt stays too early in these records");
        } else {
            info!(records = count, "all last uses are written");
        }
    }

    fn survey(&self, schedule: &mut Schedule) {
        schedule.survey(self.feed.marks(), || self.feed.newest(), second(clock::now()), Instant::now());
        self.metrics.granularity.set(schedule.granularity().as_secs_f64());
        self.metrics.waiting.set(i64::try_from(schedule.waiting()).unwrap_or(i64::MAX));
    }

    async fn write(self, due: Due) -> (Due, Outcome) {
        // A newer time than this verifier knows is another verifier's write, which the watch will show.
        let known = self.feed.marks().usage(due.slot).written;
        let outcome = self.write_unless_newer(due.slot, due.name, known).await;
        if matches!(outcome, Outcome::Refused | Outcome::Unknown(_)) {
            self.metrics.errors.inc();
        }
        (due, outcome)
    }

    /// Writes a last use at shutdown. True if it is in the API, or the record is gone.
    async fn write_at_last(&self, slot: u32, name: RecordName) -> bool {
        for _ in 0..LAST_FLUSH_ATTEMPTS {
            match self.write_unless_newer(slot, name, u32::MAX).await {
                Outcome::Written(_) | Outcome::Unneeded => return true,
                Outcome::Conflict | Outcome::Refused | Outcome::Unknown(_) => {}
            }
        }
        false
    }

    /// Writes a last use, unless the record has the same or a later one, or one that is later than `known`.
    async fn write_unless_newer(&self, slot: u32, name: RecordName, known: u32) -> Outcome {
        let name = name.to_string();
        let record = match in_time(self.records.get_opt(&name)).await {
            Ok(Some(record)) => record,
            Ok(None) => return Outcome::Unneeded,
            Err(failure) => {
                warn!(record = name, %failure, "cannot read a record to write its last use, trying again later: check the API server and the verifier's rights");
                return Outcome::Refused;
            }
        };
        let (used, written) = (self.feed.marks().usage(slot).used, last_use_in(&record));
        if written >= used || written > known {
            return Outcome::Unneeded;
        }
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": record.resource_version() },
            "status": { "lastUsedAt": text(used) },
        }));
        let outcome = match in_time(self.records.patch_status(&name, &PatchParams::default(), &patch)).await {
            Ok(_) => {
                self.metrics.writes.inc();
                return Outcome::Written(used);
            }
            Err(Failure::Request(kube::Error::Api(status))) if status.code == 404 => return Outcome::Unneeded,
            Err(Failure::Request(kube::Error::Api(status))) if status.code == 409 => return Outcome::Conflict,
            Err(failure) => failure,
        };
        warn!(record = name, failure = %outcome, "cannot write a last use, trying again later: check the API server and the verifier's rights");
        match outcome {
            Failure::Request(kube::Error::Api(status)) if status.code < 500 => Outcome::Refused,
            _ => Outcome::Unknown(used),
        }
    }
}

/// Why a request failed, or has no known outcome.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Request(#[from] kube::Error),
    #[error("no answer in time")]
    Silence(#[from] Elapsed),
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    Ok(timeout(REQUEST_TIMEOUT, request).await??)
}

/// The last use in a record. One that cannot be read counts as none.
fn last_use_in(record: &LastUse) -> u32 {
    let text = record.status.get("lastUsedAt").and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).map_or(0, second)
}

fn text(second: u32) -> String {
    Timestamp::from_second(second.into()).unwrap_or_default().to_string()
}
