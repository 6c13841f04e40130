//! What issuing, rotating and revoking a key costs: API writes a key, API writes where nothing changed, the time from an
//! ApiKey to its Secret against four plain writes, and the time of a deletion against one that a bare client lets pass. Three
//! verifiers acknowledge all of it.
//!
//! The released program with the chart's rights, on a real control plane where nothing else happens. Issues and plain
//! writes take turns in one run, so that the machine's moods meet both; only their ratio means anything elsewhere.
//! Nothing here is a pass mark.

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
use futures::{Stream, TryStreamExt};
use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKey, ApiKeyRecord, ConditionStatus, ConditionType, FINALIZER, ROTATE_ANNOTATION};
use keywright_core::record_name::record_name;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio::time::{sleep, timeout};

use keywright_measure::report::publish;
use keywright_testing::Installation;

const KEYS: usize = 200;
const VERIFIERS: usize = 3;

/// After an issue come an Event and passes that find nothing to do; they are over by then, so that what is timed next
/// meets an idle control plane.
const REST: Duration = Duration::from_millis(100);

/// How long anything may take before the measurement is given up.
const DEADLINE: Duration = Duration::from_secs(60);

const WRITES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];

#[tokio::main]
async fn main() -> Result<()> {
    let installation = Installation::new("bench").await;
    let unattended = Installation::new("bench-unattended").await;

    // Only a controller may write records, also where none is at work.
    let client = unattended.credentials("controller").await.client().await;
    let records = Api::<ApiKeyRecord>::namespaced(client.clone(), &unattended.system_namespace);
    // And only a controller may remove the finalizer.
    let plain_keys = Api::<ApiKey>::namespaced(client, &unattended.tenant_namespace);

    let mut verifiers = Vec::new();
    for _ in 0..VERIFIERS {
        verifiers.push(installation.program("verifier").start().await);
    }
    for verifier in &verifiers {
        verifier.ready().await;
    }
    let controller = installation.program("controller").start().await;
    controller.ready().await;
    let mut issues = Vec::new();
    let mut plain_writes = Vec::new();
    {
        let mut api_keys = pin!(changes(installation.tenant::<ApiKey>()));
        let mut secrets = pin!(changes(installation.tenant::<Secret>()));
        for number in 0..KEYS {
            let name = format!("key-{number}");
            issues.push(issue(&installation, &name, &mut secrets).await?);
            let api_key = seen(&mut api_keys, |api_key| api_key.name_any() == name && is_ready(api_key)).await?;
            sleep(REST).await;
            plain_writes.push(write_alike(&unattended, &records, &installation, api_key).await?);
            sleep(REST).await;
        }
    }
    controller.terminate().await;
    let issuing = Requests::since_start(&installation).await;

    // 1s is not reached: all resyncs together are limited to a rate, so that 200 ApiKeys take some 16 s.
    let controller = installation.program("controller").argument("--resync=1s").start().await;
    let restart = looked_at_all(&installation, issuing.all).await?;
    looked_at_all(&installation, restart.all).await?;
    let nothing_new = Requests::after(&installation, restart.all).await;
    rotate_all(&installation).await?;
    let rotating = Requests::after(&installation, nothing_new.all).await;
    let (deletions, plain_deletions) = delete_all(&installation.tenant(), &unattended.tenant(), plain_keys).await?;
    controller.terminate().await;

    let kubernetes = installation.client.apiserver_version().await?.git_version;
    let figures = Figures {
        issuing,
        restart,
        nothing_new,
        rotating,
        issues: Quartiles::of(issues),
        plain_writes: Quartiles::of(plain_writes),
        deletions: Tail::of(deletions),
        plain_deletions: Tail::of(plain_deletions),
    };
    let report = format!("{}\n{}", figures.describe(), conditions(&kubernetes));
    Ok(publish(env!("CARGO_TARGET_TMPDIR"), "issue", "Issuing a key", &report)?)
}

/// The objects of one kind as they change, beginning with those that are there.
fn changes<K>(api: Api<K>) -> impl Stream<Item = Result<K, watcher::Error>>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(api, watcher::Config::default()).default_backoff().applied_objects()
}

async fn seen<K>(
    changes: &mut (impl Stream<Item = Result<K, watcher::Error>> + Unpin),
    wanted: impl Fn(&K) -> bool,
) -> Result<K> {
    let found = async {
        while let Some(object) = changes.try_next().await? {
            if wanted(&object) {
                return Ok(object);
            }
        }
        anyhow::bail!("a watch ended by itself")
    };
    timeout(DEADLINE, found).await.context("waiting for a change of an object")?
}

/// From sending an ApiKey to seeing its Secret.
async fn issue(
    installation: &Installation,
    name: &str,
    secrets: &mut (impl Stream<Item = Result<Secret, watcher::Error>> + Unpin),
) -> Result<Duration> {
    let api_key = api_key(name)?;
    let api_keys = installation.tenant::<ApiKey>();
    let sent = Instant::now();
    let posted = async { Ok(api_keys.create(&PostParams::default(), &api_key).await?) };
    let delivered = async { seen(secrets, |secret| secret.name_any() == name).await.map(|_| sent.elapsed()) };
    futures::try_join!(posted, delivered).map(|(_, took)| took)
}

/// Asks for a rotation of every key, one after the other, and waits until each is carried out.
async fn rotate_all(installation: &Installation) -> Result<()> {
    const REQUEST: &str = "bench";
    let api_keys = installation.tenant::<ApiKey>();
    let asked = Patch::Merge(json!({"metadata": {"annotations": {ROTATE_ANNOTATION: REQUEST}}}));
    let mut rotated = pin!(changes(api_keys.clone()));
    for number in 0..KEYS {
        let name = format!("key-{number}");
        api_keys.patch(&name, &PatchParams::default(), &asked).await?;
        let is_done = |api_key: &ApiKey| {
            let status = api_key.status.as_ref();
            let shown = status.and_then(|status| status.rotate_request.as_deref());
            api_key.name_any() == name && shown == Some(REQUEST)
        };
        seen(&mut rotated, is_done).await?;
    }
    Ok(())
}

/// Deletes every key, and as many ApiKeys that no controller looks after and a bare client lets go, in turns.
async fn delete_all(
    attended: &Api<ApiKey>,
    unattended: &Api<ApiKey>,
    of_bare_client: Api<ApiKey>,
) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let letting_go = tokio::spawn(async move {
        let mut going = pin!(changes(of_bare_client.clone()));
        for _ in 0..KEYS {
            let api_key = seen(&mut going, |api_key| api_key.metadata.deletion_timestamp.is_some()).await?;
            let metadata = json!({"resourceVersion": api_key.resource_version(), "finalizers": []});
            let patch = Patch::Merge(json!({ "metadata": metadata }));
            of_bare_client.patch(&api_key.name_any(), &PatchParams::default(), &patch).await?;
        }
        anyhow::Ok(())
    });
    let (mut deletions, mut plain) = (Vec::new(), Vec::new());
    for number in 0..KEYS {
        let name = format!("key-{number}");
        deletions.push(delete(attended, &name).await?);
        sleep(REST).await;
        plain.push(delete(unattended, &name).await?);
        sleep(REST).await;
    }
    letting_go.await??;
    Ok((deletions, plain))
}

/// From sending a deletion to seeing that the object is gone.
async fn delete(api_keys: &Api<ApiKey>, name: &str) -> Result<Duration> {
    let selected = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(api_keys.clone(), selected));
    let gone = async {
        let mut sent = None;
        while let Some(event) = events.try_next().await? {
            match (event, sent) {
                (watcher::Event::InitDone, _) => {
                    sent = Some(Instant::now());
                    api_keys.delete(name, &DeleteParams::default()).await?;
                }
                (watcher::Event::Delete(_), Some(sent)) => return Ok(sent.elapsed()),
                _ => {}
            }
        }
        anyhow::bail!("a watch ended by itself")
    };
    timeout(DEADLINE, gone).await.context("waiting for a deletion")?
}

fn api_key(name: &str) -> Result<ApiKey> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "keywright.dev/v1alpha1",
        "kind": "ApiKey",
        "metadata": {"name": name},
        "spec": {
            "displayName": "Build pipeline",
            "owner": "platform@example.org",
            "expiresIn": "90d",
            "allowedIPs": ["192.0.2.0/24", "2001:db8:7::/48"],
            "scopes": ["packages:read", "packages:write"],
            // With an overlap a deletion revokes two keys.
            "rotation": {"overlap": "0s"},
        },
    }))?)
}

fn is_ready(api_key: &ApiKey) -> bool {
    let conditions = api_key.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|condition| condition.type_ == ConditionType::Ready)
        .any(|condition| condition.status == ConditionStatus::True)
}

/// The time that the writes of an issue take when nobody decides on them: the same objects, one after another, where no
/// controller looks after them.
async fn write_alike(
    unattended: &Installation,
    records: &Api<ApiKeyRecord>,
    installation: &Installation,
    issued: ApiKey,
) -> Result<Duration> {
    let name = issued.name_any();
    let status = issued.status.clone().context("an ApiKey that is Ready has a status")?;
    let record = record_name(&issued.uid().unwrap_or_default(), status.serial.unwrap_or_default());
    let mut record = installation.system::<ApiKeyRecord>().get(&record).await?;
    record.metadata = copied(&record.metadata);
    let mut secret = installation.tenant::<Secret>().get(&name).await?;
    let mut owners = secret.metadata.owner_references.take();
    secret.metadata = copied(&secret.metadata);

    let (post, api_keys) = (PostParams::default(), unattended.tenant::<ApiKey>());
    let api_key = api_keys.create(&post, &api_key(&name)?).await?;
    for owner in owners.iter_mut().flatten() {
        owner.uid = api_key.uid().unwrap_or_default(); // or the garbage collector would see to this Secret
    }
    secret.metadata.owner_references = owners;
    let finalizer = json!({"metadata": {"resourceVersion": api_key.resource_version(), "finalizers": [FINALIZER]}});

    let started = Instant::now();
    let mut api_key = api_keys.patch(&name, &PatchParams::default(), &Patch::Merge(finalizer)).await?;
    records.create(&post, &record).await?;
    unattended.tenant::<Secret>().create(&post, &secret).await?;
    api_key.status = Some(status);
    api_keys.replace_status(&name, &post, &api_key).await?;
    Ok(started.elapsed())
}

fn copied(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.clone(),
        labels: metadata.labels.clone(),
        annotations: metadata.annotations.clone(),
        ..ObjectMeta::default()
    }
}

/// What the controller asked of the API server in a stretch of the audit log.
struct Requests {
    /// How far the log went, in requests of everybody.
    all: usize,
    /// Successful writes to what it issues with, by resource and verb.
    writes: BTreeMap<String, usize>,
    /// Successful writes to Events and Leases.
    writes_apart: BTreeMap<String, usize>,
    /// The ApiKeys that it read by name.
    looked_at: HashSet<String>,
}

impl Requests {
    async fn since_start(installation: &Installation) -> Self {
        Self::after(installation, 0).await
    }

    /// Those beyond the first `known` requests of the log.
    async fn after(installation: &Installation, known: usize) -> Self {
        let audited = installation.audited_requests().await;
        let user = format!("system:serviceaccount:{}:keywright-controller", installation.system_namespace);
        let mut requests = Self {
            all: audited.len(),
            writes: BTreeMap::new(),
            writes_apart: BTreeMap::new(),
            looked_at: HashSet::new(),
        };
        let own = audited.into_iter().skip(known).filter(|request| request.user == user);
        for request in own.filter(|request| (200..300).contains(&request.code)) {
            if request.resource == "apikeys" && request.verb == "get" {
                requests.looked_at.insert(request.name);
            } else if WRITES.contains(&&*request.verb) {
                let apart = ["events", "leases"].contains(&&*request.resource);
                let counts = if apart { &mut requests.writes_apart } else { &mut requests.writes };
                *counts.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
            }
        }
        requests
    }

    fn total(&self) -> usize {
        self.writes.values().sum()
    }
}

/// Waits until every ApiKey was read again; what was asked until then, beyond the first `known` requests of the log.
async fn looked_at_all(installation: &Installation, known: usize) -> Result<Requests> {
    let waited = timeout(DEADLINE, async {
        loop {
            let requests = Requests::after(installation, known).await;
            if requests.looked_at.len() >= KEYS {
                return requests;
            }
            sleep(Duration::from_millis(500)).await;
        }
    });
    waited.await.context("waiting until every ApiKey is read again")
}

struct Quartiles([Duration; 3]);

impl Quartiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self([1, 2, 3].map(|quarter| times[times.len() * quarter / 4]))
    }

    fn describe(&self) -> String {
        let [lower, median, upper] = self.0.map(|time| time.as_secs_f64() * 1e3);
        format!("median {median:.1} ms, quartiles {lower:.1} and {upper:.1} ms")
    }
}

struct Tail {
    median: Duration,
    p99: Duration,
}

impl Tail {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self { median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
    }

    fn describe(&self) -> String {
        let [median, p99] = [self.median, self.p99].map(|time| time.as_secs_f64() * 1e3);
        format!("median {median:.1} ms, p99 {p99:.1} ms")
    }
}

struct Figures {
    issuing: Requests,
    restart: Requests,
    nothing_new: Requests,
    rotating: Requests,
    issues: Quartiles,
    plain_writes: Quartiles,
    deletions: Tail,
    plain_deletions: Tail,
}

impl Figures {
    fn describe(&self) -> String {
        let each = |counts: &BTreeMap<String, usize>| -> String {
            let each = |(what, count): (&String, &usize)| format!("- {:.2} {what}\n", *count as f64 / KEYS as f64);
            counts.iter().map(each).collect()
        };
        let ratio = self.issues.0[1].as_secs_f64() / self.plain_writes.0[1].as_secs_f64();
        format!(
            "| Figure, over {KEYS} keys | Goal | Seen |\n|---|---|---|\n\
             | API writes per key issued | 4 | {:.2} |\n\
             | API writes per key rotated | 4 | {:.2} |\n\
             | API writes of a restart | 0 | {} |\n\
             | API writes of passes that change nothing | 0 | {} |\n\
             | From ApiKey to Secret, in times of four plain writes | <= 2 | {ratio:.2} |\n\
             | p99 of a deletion, beyond that of a plain one | <= 60 ms | {:.1} ms |\n\n\
             From ApiKey to Secret: {}.\nFour plain writes, taking turns with it: {}.\n\n\
             A deletion: {}.\nOne whose finalizer a bare client removes, taking turns with it: {}.\n\n\
             Writes per key issued:\n\n{}\nApart from these:\n\n{}\nWrites per key rotated:\n\n{}",
            self.issuing.total() as f64 / KEYS as f64,
            self.rotating.total() as f64 / KEYS as f64,
            self.restart.total(),
            self.nothing_new.total(),
            (self.deletions.p99.as_secs_f64() - self.plain_deletions.p99.as_secs_f64()) * 1e3,
            self.issues.describe(),
            self.plain_writes.describe(),
            self.deletions.describe(),
            self.plain_deletions.describe(),
            each(&self.issuing.writes),
            each(&self.issuing.writes_apart),
            each(&self.rotating.writes),
        )
    }
}

/// On what, and how to do it again.
fn conditions(kubernetes: &str) -> String {
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<&str> = processors
        .lines()
        .filter(|line| line.starts_with("model name"))
        .filter_map(|line| Some(line.split_once(':')?.1.trim()))
        .collect();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let rustc = std::process::Command::new("rustc").arg("--version").output();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!(
        "{} x {}, Linux {}; Keywright {}, Kubernetes {kubernetes} (etcd without fsync), {}.\nAgain: `make bench-issue`.\n",
        models.len(),
        models.first().unwrap_or(&"unknown processor"),
        kernel.trim(),
        env!("CARGO_PKG_VERSION"),
        rustc.unwrap_or_else(|_| "rustc unknown".to_owned()),
    )
}
