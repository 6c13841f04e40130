//! What a controller holds, and how fast it works: memory with many ApiKeys and what earlier ones have left behind, and the
//! time in which many ApiKeys become Ready beside a plain client that makes the same writes.
//!
//! The released program with the chart's rights, on a real control plane where nothing else happens. Nothing here is a
//! pass mark. Smaller runs: `KEYWRIGHT_BENCH_API_KEYS`, `KEYWRIGHT_BENCH_LARGE`, `KEYWRIGHT_BENCH_TOMBSTONES` and
//! `KEYWRIGHT_BENCH_ISSUED`; 0 leaves a part out.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a measurement, stopping with a message is how a failure is told"
)]

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use keywright_core::api::{ApiKey, ApiKeyRecord, ConditionStatus, ConditionType, FINALIZER};
use keywright_core::key::Digest;
use keywright_core::record_name::record_name;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use keywright_measure::report::publish;
use keywright_testing::{Installation, Memory, Program};

/// Octets of an annotation of those ApiKeys that are large: as many as the API server takes, nearly.
const LARGE_OCTETS: usize = 250_000;

/// Requests that a client has under way: as many as the controller's passes, by default.
const CONCURRENCY: usize = 32;

/// How long anything may take before the measurement is given up.
const DEADLINE: Duration = Duration::from_secs(1800);

#[tokio::main]
async fn main() -> Result<()> {
    let api_keys = number("API_KEYS", 10_000)?;
    let large = number("LARGE", 100)?.min(api_keys);
    let tombstones = number("TOMBSTONES", 100_000)?;
    let issued = number("ISSUED", 3000)?;
    let mut report = String::new();
    if api_keys > 0 {
        report += &memory(api_keys, large, tombstones).await?;
    }
    if issued > 0 {
        report += &speed(issued).await?;
    }
    Ok(publish(env!("CARGO_TARGET_TMPDIR"), "capacity", "Capacity of the controller", &report)?)
}

/// Says what is being done, as all of it takes long.
fn tell(what: &str) {
    eprintln!("{} {what}", Timestamp::now().strftime("%H:%M:%S"));
}

fn number(name: &str, default: usize) -> Result<usize> {
    match std::env::var(format!("KEYWRIGHT_BENCH_{name}")) {
        Ok(text) => text.parse().with_context(|| format!("KEYWRIGHT_BENCH_{name} is no number")),
        Err(_) => Ok(default),
    }
}

/// Memory with half of the ApiKeys, with all, and with all and the tombstones.
///
/// The tombstones come last: an API server looks through every record for each submitted digest.
async fn memory(api_keys: usize, large: usize, tombstones: usize) -> Result<String> {
    let installation = Installation::new("capacity").await;
    let half = api_keys / 2;
    issue(&installation, 0..half, large).await?;
    let with_half = restart(&installation, half).await?;
    issue(&installation, half..api_keys, large).await?;
    let with_all = restart(&installation, api_keys).await?;
    tell(&format!("writing {tombstones} tombstones"));
    bury(&installation, tombstones).await?;
    let with_tombstones = restart(&installation, api_keys).await?;
    let slope = |of: fn(&Phases) -> Memory| {
        let resident = |phases| of(phases).resident as f64;
        (resident(&with_all) - resident(&with_half)) / (api_keys - half) as f64
    };
    Ok(format!(
        "{large} of the ApiKeys hold an annotation of {LARGE_OCTETS} octets.\n\n\
         | Figure | Goal | Seen |\n|---|---|---|\n{}{}{}\
         | Resident memory for one more ApiKey, at Ready and after all passes | <= 1.2 KiB | {:.2}, {:.2} KiB |\n\n",
        with_half.rows(&format!("{half} ApiKeys")),
        with_all.rows(&format!("{api_keys} ApiKeys")),
        with_tombstones.rows(&format!("{api_keys} ApiKeys, {tombstones} tombstones")),
        slope(|phases| phases.at_ready),
        slope(|phases| phases.at_rest),
    ))
}

/// The memory of a controller from its start until nothing is left to do.
struct Phases {
    at_ready: Memory,
    after_sweep: Memory,
    at_rest: Memory,
}

impl Phases {
    fn rows(&self, what: &str) -> String {
        let mib = |of: fn(&Memory) -> u64| {
            let [at_ready, after_sweep, at_rest] =
                [self.at_ready, self.after_sweep, self.at_rest].map(|memory| of(&memory) as f64 / 1024.0);
            format!("{at_ready:.1}, {after_sweep:.1}, {at_rest:.1} MiB")
        };
        let (peak, resident) = (mib(|memory| memory.peak), mib(|memory| memory.resident));
        format!(
            "| {what}: peak at Ready, after a sweep, after all passes | < 128 MiB | {peak} |\n\
             | The same, resident | | {resident} |\n"
        )
    }
}

/// Declares ApiKeys and has them issued.
async fn issue(installation: &Installation, numbers: std::ops::Range<usize>, large: usize) -> Result<()> {
    let declared = numbers.end;
    tell(&format!("issuing keys, until there are {declared}"));
    let controller = installation.program("controller").argument("--leader-elect=false").start().await;
    all_ready(installation, declared, declare_submitted(installation, numbers, large)).await?;
    controller.terminate().await;
    Ok(())
}

/// A controller that starts and finds all as it should be.
async fn restart(installation: &Installation, api_keys: usize) -> Result<Phases> {
    let over = leave_one_that_is_over(installation).await?;
    let controller = installation.program("controller").argument("--leader-elect=false").start().await;
    tell("waiting for a new start");
    ready(&controller).await?;
    let at_ready = controller.memory();
    tell("waiting for a sweep");
    let records = installation.system::<ApiKeyRecord>();
    let swept = timeout(DEADLINE, async {
        while records.get_metadata_opt(&over).await?.is_some() {
            sleep(Duration::from_millis(500)).await
        }
        anyhow::Ok(())
    });
    swept.await.context("waiting for a sweep")??;
    let after_sweep = controller.memory();
    tell("waiting for every pass");
    at_rest_after(&controller, api_keys).await?;
    let at_rest = controller.memory();
    controller.terminate().await;
    Ok(Phases { at_ready, after_sweep, at_rest })
}

/// Tombstones of generated keys, 500 to a namespace, as keys that were used in CI leave them behind.
async fn bury(installation: &Installation, tombstones: usize) -> Result<()> {
    let client = installation.credentials("controller").await.client().await;
    let records = Api::<ApiKeyRecord>::namespaced(client, &installation.system_namespace);
    let bury =
        async |number: usize| create(&records, tombstone(number, SignedDuration::from_hours(24))).await.map(drop);
    stream::iter(0..tombstones).map(bury).buffer_unordered(CONCURRENCY).try_collect().await
}

fn tombstone(number: usize, age: SignedDuration) -> Value {
    let uid = format!("00000000-0000-4000-8000-{number:012x}");
    json!({
        "apiVersion": "keywright.dev/v1alpha1",
        "kind": "ApiKeyRecord",
        "metadata": {"name": record_name(&uid, 1), "labels": {"app.kubernetes.io/managed-by": "keywright"}},
        "spec": {
            "digest": Digest::of(uid.as_bytes()).to_string(),
            "keyPrefix": "keyw1_abcdefgh",
            "apiKey": {"namespace": format!("team-{}", number / 500), "name": format!("ci-{number}"), "uid": uid},
            "serial": 1,
            "revoked": {"at": (Timestamp::now() - age).to_string(), "reason": "Deleted"},
        },
    })
}

/// A tombstone that the next sweep removes, which tells that there was one.
async fn leave_one_that_is_over(installation: &Installation) -> Result<String> {
    let client = installation.credentials("controller").await.client().await;
    let records = Api::<ApiKeyRecord>::namespaced(client, &installation.system_namespace);
    let year = SignedDuration::from_hours(365 * 24);
    let mut over = tombstone(usize::try_from(u32::MAX)?, year);
    // Sweeps look after the namespace that the controller watches.
    over["spec"]["apiKey"]["namespace"] = installation.tenant_namespace.clone().into();
    Ok(create(&records, over).await?.name_any())
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// ApiKeys whose keys were made elsewhere: quick to have many of. The first `large` ones are large.
async fn declare_submitted(installation: &Installation, numbers: std::ops::Range<usize>, large: usize) -> Result<()> {
    let api = installation.tenant::<ApiKey>();
    let declare = async |number: usize| {
        let mut object = api_key(&format!("key-{number}"));
        object["spec"]["keyHash"] = Digest::of(&number.to_le_bytes()).to_string().into();
        if number < large {
            object["metadata"]["annotations"] = json!({"example.org/large": "x".repeat(LARGE_OCTETS)});
        }
        create(&api, object).await.map(drop)
    };
    stream::iter(numbers).map(declare).buffer_unordered(CONCURRENCY).try_collect().await
}

fn api_key(name: &str) -> Value {
    json!({
        "apiVersion": "keywright.dev/v1alpha1",
        "kind": "ApiKey",
        // As the webhook does.
        "metadata": {"name": name, "finalizers": [FINALIZER]},
        "spec": {
            "displayName": "Build pipeline",
            "owner": "platform@example.org",
            "expiresIn": "90d",
            "allowedIPs": ["192.0.2.0/24", "2001:db8:7::/48"],
            "scopes": ["packages:read", "packages:write"],
        },
    })
}

/// `Program::ready` waits for less time than a large list may take.
async fn ready(controller: &Program) -> Result<()> {
    let polled = timeout(DEADLINE, async {
        while !controller.readiness().await.0 {
            sleep(Duration::from_millis(20)).await;
        }
    });
    polled.await.context("waiting for Ready")
}

/// Waits until every ApiKey had its pass and nothing is under way.
async fn at_rest_after(controller: &Program, api_keys: usize) -> Result<()> {
    let passes = async || metric(&controller.metrics().await, "keywright_reconcile_duration_seconds_count");
    let waited = timeout(DEADLINE, async {
        let mut before = 0;
        loop {
            let now = passes().await;
            if now >= api_keys as u64 && now == before {
                return;
            }
            before = now;
            sleep(Duration::from_secs(2)).await;
        }
    });
    waited.await.context("waiting for every pass")
}

fn metric(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_default()
}

/// Waits until so many ApiKeys of the tenant are Ready, while `doing` is done.
async fn all_ready(installation: &Installation, count: usize, doing: impl Future<Output = Result<()>>) -> Result<()> {
    let seen = async {
        let events = watcher(installation.tenant::<ApiKey>(), watcher::Config::default()).default_backoff();
        let mut changes = pin!(events.applied_objects());
        let mut ready = HashSet::new();
        while ready.len() < count {
            let api_key = changes.try_next().await?.context("a watch ended by itself")?;
            if is_ready(&api_key) {
                ready.insert(api_key.name_any());
            }
        }
        Ok(())
    };
    let both = async { futures::try_join!(doing, seen).map(drop) };
    timeout(DEADLINE, both).await.context("waiting until every ApiKey is Ready")?
}

fn is_ready(api_key: &ApiKey) -> bool {
    let conditions = api_key.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|condition| condition.type_ == ConditionType::Ready)
        .any(|condition| condition.status == ConditionStatus::True)
}

/// The time from the first creation until all are Ready, and what the controller asked of the API server, beside a client
/// that makes the same writes and decides nothing.
async fn speed(count: usize) -> Result<String> {
    let installation = Installation::new("speed").await;
    let controller = installation.program("controller").argument("--leader-elect=false").start().await;
    ready(&controller).await?;
    let before = controller.memory();
    let api = installation.tenant::<ApiKey>();
    tell(&format!("declaring {count} ApiKeys"));
    let started = Instant::now();
    let declare = async |number: usize| create(&api, api_key(&format!("key-{number}"))).await.map(drop);
    let declaring = stream::iter(0..count).map(declare).buffer_unordered(CONCURRENCY).try_collect::<()>();
    all_ready(&installation, count, declaring).await?;
    let took = started.elapsed();
    let busy = controller.processor_time().as_secs_f64();
    at_rest_after(&controller, count).await?;
    let after = controller.memory();
    controller.terminate().await;
    let requests = requests(&installation).await;

    let plain = plain(&installation, count).await?;
    let each = |wanted: fn(&str) -> bool| -> f64 {
        let total: usize = requests.iter().filter(|(what, _)| wanted(what)).map(|(_, count)| count).sum();
        total as f64 / count as f64
    };
    let reads = each(|what| what.starts_with("get "));
    let writes = each(|what| !what.starts_with("get ") && !what.ends_with(" events"));
    let table: String =
        requests.iter().map(|(what, asked)| format!("- {:.2} {what}\n", *asked as f64 / count as f64)).collect();
    Ok(format!(
        "| Figure, over {count} ApiKeys | Goal | Seen |\n|---|---|---|\n\
         | Speed from the first creation to all Ready, in times of a plain client's | >= 0.8 | {:.2} ({:.1} s beside {:.1} s) |\n\
         | Reads per key issued | <= 6 | {reads:.2} |\n\
         | Writes per key issued, Events apart | <= 4 | {writes:.2} |\n\
         | CPU time of the controller, per key | | {:.2} ms |\n\
         | Resident memory more than before, per key | | {:.2} KiB |\n\n\
         Requests per key:\n\n{table}\n",
        plain.as_secs_f64() / took.as_secs_f64(),
        took.as_secs_f64(),
        plain.as_secs_f64(),
        busy * 1e3 / count as f64,
        (after.resident as f64 - before.resident as f64) / count as f64,
    ))
}

/// What the controller asked for by name, by verb and resource; lists and watches apart.
async fn requests(installation: &Installation) -> BTreeMap<String, usize> {
    let user = format!("system:serviceaccount:{}:keywright-controller", installation.system_namespace);
    let mut counts = BTreeMap::new();
    for request in installation.audited_requests().await {
        if request.user == user && !["list", "watch"].contains(&&*request.verb) {
            *counts.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
        }
    }
    counts
}

/// The time of a client that creates as many ApiKeys and makes the same writes for each.
async fn plain(issued: &Installation, count: usize) -> Result<Duration> {
    let sample = issued.tenant::<ApiKey>().get("key-0").await?;
    let status = sample.status.clone().context("an ApiKey that is Ready has a status")?;
    let record = record_name(&sample.uid().unwrap_or_default(), status.serial.unwrap_or_default());
    let record = issued.system::<ApiKeyRecord>().get(&record).await?;
    let secret = issued.tenant::<Secret>().get("key-0").await?;
    let events = issued.tenant::<Event>().list(&Default::default()).await?;
    let event = events.items.into_iter().next().context("an issued key has an Event")?;

    let installation = Installation::new("plain").await;
    // Only a controller may write records.
    let client = installation.credentials("controller").await.client().await;
    let records = Api::<ApiKeyRecord>::namespaced(client.clone(), &installation.system_namespace);
    let tenant = &installation.tenant_namespace;
    let (api_keys, secrets) =
        (Api::<ApiKey>::namespaced(client.clone(), tenant), Api::<Secret>::namespaced(client.clone(), tenant));
    let (events, declared) = (Api::<Event>::namespaced(client, tenant), installation.tenant::<ApiKey>());
    let post = PostParams::default();
    let write = async |number: usize| -> Result<()> {
        let name = format!("key-{number}");
        let mut api_key = create(&declared, api_key(&name)).await?;
        let uid = api_key.uid().unwrap_or_default();
        let mut record = record.clone();
        record.metadata = copied(&record.metadata, &record_name(&uid, 1));
        records.create(&post, &record).await?;
        let mut secret = secret.clone();
        let mut owners = secret.metadata.owner_references.take();
        owners.iter_mut().flatten().for_each(|owner| (owner.uid, owner.name) = (uid.clone(), name.clone()));
        secret.metadata = ObjectMeta { owner_references: owners, ..copied(&secret.metadata, &name) };
        secrets.create(&post, &secret).await?;
        api_key.status = Some(status.clone());
        api_keys.replace_status(&name, &post, &api_key).await?;
        let mut event = event.clone();
        event.metadata = copied(&event.metadata, &format!("{name}.{number:x}"));
        event.regarding.iter_mut().for_each(|regarding| regarding.namespace = Some(tenant.clone()));
        events.create(&post, &event).await?;
        Ok(())
    };
    tell("making the same writes");
    let started = Instant::now();
    let writing = stream::iter(0..count).map(write).buffer_unordered(CONCURRENCY).try_collect::<()>();
    // Watched until all are Ready like the controller's, so that both pay for whoever measures.
    all_ready(&installation, count, writing).await?;
    Ok(started.elapsed())
}

fn copied(metadata: &ObjectMeta, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..ObjectMeta::default()
    }
}
