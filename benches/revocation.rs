//! What revoking many keys at once costs: issues while a thousand deletions wait for a verifier that is dead, and a
//! namespace with thousands of ApiKeys that goes.
//!
//! The released program with the chart's rights, three verifiers, on a real control plane where nothing else happens.
//! Nothing here is a pass mark.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a measurement, stopping with a message is how a failure is told"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use keywright_core::api::{ApiKey, ConditionType, Reason};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::time::sleep;

use keywright_measure::report::publish;
use keywright_testing::{Installation, Program};

/// Deletions that wait for a verifier which does not answer any more.
const WAITING: usize = 1000;
/// Issues that are timed, with and without them.
const ISSUES: usize = 100;
/// ApiKeys of the namespace that goes.
const GOING: usize = 5000;
const AT_ONCE: usize = 32;
const LOOK: Duration = Duration::from_millis(500);
/// How long anything may take before the measurement is given up.
const DEADLINE: Duration = Duration::from_secs(600);

/// Three verifiers and a controller at work.
struct Programs {
    verifiers: Vec<Program>,
    _controller: Program,
}

impl Programs {
    async fn start(installation: &Installation) -> Self {
        let mut verifiers = Vec::new();
        for _ in 0..3 {
            // For as long as the deletions are to wait.
            verifiers.push(installation.program("verifier").argument("--lease-duration=1h").start().await);
        }
        for verifier in &verifiers {
            verifier.ready().await;
        }
        let controller = installation.program("controller").argument("--leader-elect=false").start().await;
        controller.ready().await;
        Self { verifiers, _controller: controller }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let installation = Installation::new("waiting").await;
    let programs = Programs::start(&installation).await;
    let [without, with, let_go] = behind_a_dead_verifier(&installation, &programs.verifiers[0]).await?;
    drop(programs);
    let installation = Installation::new("going").await;
    let _programs = Programs::start(&installation).await;
    let going = namespace_that_goes(&installation).await?;
    let report = format!(
        "| Figure | Goal | Seen |\n|---|---|---|\n\
         | An issue while {WAITING} deletions wait for a dead verifier, in times of one while none waits | <= 1.1 | {:.2} ({:.1} ms to {:.1} ms, medians of {ISSUES}) |\n\
         | From the verifier's recovery until all of them have returned | | {:.1} s |\n\
         | A namespace of {GOING} ApiKeys, from its deletion until it is gone | | {:.1} s |\n\
         | Writes of Leases by the three verifiers meanwhile | | {} |\n\
         | Objects that somebody tried to create in it meanwhile | at most 32 Events | {} |\n\n\
         Again: `make bench-revocation`.\n",
        with.as_secs_f64() / without.as_secs_f64(),
        with.as_secs_f64() * 1e3,
        without.as_secs_f64() * 1e3,
        let_go.as_secs_f64(),
        going.took.as_secs_f64(),
        going.renewals,
        going.creations,
    );
    Ok(publish(env!("CARGO_TARGET_TMPDIR"), "revocation", "Revoking many keys", &report)?)
}

/// The time of an issue while no deletion waits, and while all do; and the time in which they return at last.
async fn behind_a_dead_verifier(installation: &Installation, dead: &Program) -> Result<[Duration; 3]> {
    let api_keys = installation.tenant::<ApiKey>();
    issue_all(&api_keys, "waiting", WAITING).await?;
    dead.signal("STOP");
    // The first key waits for it. Later ones do not wait for who has missed one.
    issue(&api_keys, "first").await?;
    let without = issue_each(&api_keys, "before").await?;
    stream::iter(0..WAITING)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(AT_ONCE, async |number| {
            api_keys.delete(&format!("waiting-{number}"), &DeleteParams::default()).await?;
            Ok(())
        })
        .await?;
    let is_waiting = |api_key: &ApiKey| reason(api_key) == Some(Reason::Revoking);
    until(&api_keys, |listed| listed.iter().filter(|api_key| is_waiting(api_key)).count() == WAITING).await?;
    let with = issue_each(&api_keys, "beside").await?;
    dead.signal("CONT");
    let let_go = Instant::now();
    until(&api_keys, |listed| !listed.iter().any(is_waiting)).await?;
    Ok([without, with, let_go.elapsed()])
}

struct Going {
    took: Duration,
    renewals: usize,
    creations: usize,
}

async fn namespace_that_goes(installation: &Installation) -> Result<Going> {
    let namespaces = Api::<Namespace>::all(installation.client.clone());
    let (name, api_keys) = (&installation.tenant_namespace, installation.tenant::<ApiKey>());
    issue_all(&api_keys, "key", GOING).await?;
    let (began, at) = (Instant::now(), Timestamp::now());
    namespaces.delete(name, &DeleteParams::default()).await?;
    while namespaces.get_metadata_opt(name).await?.is_some() {
        ensure!(began.elapsed() < DEADLINE, "the namespace {name} does not go");
        sleep(LOOK).await;
    }
    let took = began.elapsed();
    let requests = installation.audited_requests().await;
    let meanwhile = || requests.iter().filter(|request| request.at >= at);
    let of_verifier = |user: &str| user.ends_with(":keywright-verifier");
    Ok(Going {
        took,
        renewals: meanwhile().filter(|request| request.resource == "leases" && of_verifier(&request.user)).count(),
        creations: meanwhile().filter(|request| request.verb == "create" && request.namespace == *name).count(),
    })
}

async fn issue_all(api_keys: &Api<ApiKey>, prefix: &str, count: usize) -> Result<()> {
    stream::iter(0..count)
        .map(Ok::<_, anyhow::Error>)
        .try_for_each_concurrent(AT_ONCE, async |number| create(api_keys, &format!("{prefix}-{number}")).await)
        .await?;
    let is_issued = |api_key: &ApiKey| reason(api_key) == Some(Reason::Active);
    until(api_keys, |listed| listed.iter().filter(|api_key| is_issued(api_key)).count() >= count).await
}

/// The median of issues, one after the other.
async fn issue_each(api_keys: &Api<ApiKey>, prefix: &str) -> Result<Duration> {
    let mut times = Vec::new();
    for number in 0..ISSUES {
        times.push(issue(api_keys, &format!("{prefix}-{number}")).await?);
    }
    times.sort_unstable();
    Ok(times[ISSUES / 2])
}

/// From sending an ApiKey to seeing that its key is in force.
async fn issue(api_keys: &Api<ApiKey>, name: &str) -> Result<Duration> {
    let sent = Instant::now();
    create(api_keys, name).await?;
    let is_active = |api_key: Option<&ApiKey>| api_key.and_then(reason) == Some(Reason::Active);
    let issued = kube::runtime::wait::await_condition(api_keys.clone(), name, is_active);
    tokio::time::timeout(DEADLINE, issued).await.with_context(|| format!("waiting for {name}"))??;
    Ok(sent.elapsed())
}

async fn create(api_keys: &Api<ApiKey>, name: &str) -> Result<()> {
    let object =
        json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": {}});
    api_keys.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

async fn until(api_keys: &Api<ApiKey>, is_so: impl Fn(&[ApiKey]) -> bool) -> Result<()> {
    let began = Instant::now();
    while !is_so(&api_keys.list(&ListParams::default()).await?.items) {
        ensure!(began.elapsed() < DEADLINE, "the ApiKeys do not get there");
        sleep(LOOK).await;
    }
    Ok(())
}

fn reason(api_key: &ApiKey) -> Option<Reason> {
    let mut conditions = api_key.status.as_ref()?.conditions.iter();
    conditions.find(|condition| condition.type_ == ConditionType::Active).map(|condition| condition.reason.clone())
}
