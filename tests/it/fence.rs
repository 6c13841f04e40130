//! The controller's side of the fence, with Leases that the test writes in the place of verifiers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use keywright_core::api::{ApiKey, Reason};
use keywright_core::fence::{APPLIED_ANNOTATION, Content, Holder, State, Stored};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::scene::{INSIDE, Scene, is};
use keywright_testing::{Installation, wait};

/// A verifier's Lease without a verifier.
struct Ghost {
    leases: Api<Lease>,
    name: &'static str,
}

impl Ghost {
    async fn new(scene: &Scene, name: &'static str, duration: Duration) -> Self {
        let leases: Api<Lease> = scene.installation.system();
        let content = Content { state: State::Joining, applied: None };
        let lease = content.object(&Holder::new(name, 1, duration), None, Timestamp::now());
        leases.create(&PostParams::default(), &lease).await.unwrap();
        Self { leases, name }
    }

    /// Says that it has applied everything that is stored now.
    async fn acknowledge(&self, scene: &Scene) {
        let list = scene.records().list_metadata(&ListParams::default()).await.unwrap();
        let applied = BTreeMap::from([(APPLIED_ANNOTATION, list.metadata.resource_version.unwrap())]);
        let patch = Patch::Merge(json!({"metadata": {"annotations": applied}}));
        self.leases.patch(self.name, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn acknowledge_for_ever(&self, scene: &Scene) -> std::convert::Infallible {
        loop {
            self.acknowledge(scene).await;
        }
    }
}

/// Without the verifier, whose answers are not what this is about.
async fn scene(test_name: &str) -> Scene {
    let scene = Scene::new(test_name).await;
    let leases: Api<Lease> = scene.installation.system();
    wait::until("the verifier has its Lease", async || {
        let leases = leases.list(&ListParams::default()).await.unwrap().items;
        leases.iter().any(|lease| Stored::read(lease).is_some_and(|stored| stored.applied.is_some()))
    })
    .await;
    scene
}

async fn message(scene: &Scene, name: &str, reason: Reason) -> String {
    let status = scene.reason(name, reason).await.status.unwrap();
    status.conditions.first().unwrap().message.clone()
}

#[tokio::test]
async fn a_deletion_waits_for_every_lease_and_names_it() {
    let scene = scene("fence-waits").await;
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    let ghost = Ghost::new(&scene, "verifier-ghost", Duration::from_secs(600)).await;
    scene.api_keys().delete("ci", &DeleteParams::default()).await.unwrap();
    let said = message(&scene, "ci", Reason::Revoking).await;
    assert!(said.contains("at the latest: verifier-ghost") && !said.contains("verifier-ghost,"), "{said}");
    scene.answers(&key, INSIDE, 401).await;
    let latest: Timestamp = said.split(&[' ', ','][..]).find_map(|word| word.parse().ok()).expect("a time");
    let left = latest.duration_since(Timestamp::now()).as_secs();
    assert!((560..=632).contains(&left), "{left} s: the Lease's duration, a twentieth more and a second");
    ghost.acknowledge(&scene).await;
    wait::for_absence(&scene.api_keys(), "ci").await;
    let metrics = scene.controller.as_ref().unwrap().metrics().await;
    assert!(metrics.lines().any(|line| line == r#"keywright_verifiers{state="serving"} 2"#), "{metrics}");
}

#[tokio::test]
async fn a_lease_that_runs_out_is_removed_and_holds_nothing_up_any_more() {
    let scene = scene("fence-lapses").await;
    scene.declare("ci", json!({})).await;
    scene.key("ci", 1).await;
    let ghost = Ghost::new(&scene, "verifier-ghost", Duration::from_secs(4)).await;
    let began = Instant::now();
    scene.delete("ci").await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(4), "{took:?}: it may be relied on until then");
    assert!(ghost.leases.get_opt(ghost.name).await.unwrap().is_none());
}

#[tokio::test]
async fn a_generation_is_reported_as_enforced_when_every_lease_says_so() {
    let scene = scene("fence-enforced").await;
    scene.declare("ci", json!({})).await;
    let enforced = |generation: i64| {
        move |api_key: &ApiKey| {
            api_key.status.as_ref().is_some_and(|status| status.enforced_generation == Some(generation))
        }
    };
    wait::for_object(&scene.api_keys(), "ci", enforced(1)).await;
    let ghost = Ghost::new(&scene, "verifier-ghost", Duration::from_secs(600)).await;
    scene.edit("ci", json!({"allowedIPs": ["192.0.2.0/24"]})).await;
    let not_enforced = |api_key: &ApiKey| {
        let status = api_key.status.clone().unwrap_or_default();
        status.enforced_generation == Some(1)
            && status.conditions.iter().any(|condition| condition.message.contains("verifier-ghost"))
    };
    wait::for_object(&scene.api_keys(), "ci", not_enforced).await;
    ghost.acknowledge(&scene).await;
    let api_key = wait::for_object(&scene.api_keys(), "ci", enforced(2)).await;
    assert!(is(&api_key, Reason::Active));
    // Who acknowledges within a second needs no second write of the status. A busy machine may need several tries.
    tokio::select! {
        never = ghost.acknowledge_for_ever(&scene) => match never {},
        () = in_one_write(&scene) => {}
    }
}

/// Suspends the ApiKey until the status that says so reports the generation as enforced, too.
async fn in_one_write(scene: &Scene) {
    for _ in 0..5 {
        let edited = scene.edit("ci", json!({"suspended": true})).await.metadata.generation;
        let suspended = wait::for_object(&scene.api_keys(), "ci", |api_key| is(api_key, Reason::Suspended)).await;
        if suspended.status.is_some_and(|status| status.enforced_generation == edited) {
            return;
        }
        scene.edit("ci", json!({"suspended": false})).await;
        scene.reason("ci", Reason::Active).await;
    }
    panic!("each time it took two writes of the status");
}

#[tokio::test]
async fn a_new_key_waits_ten_seconds_for_who_is_silent_says_so_and_does_not_wait_again() {
    let scene = scene("fence-issue").await;
    Ghost::new(&scene, "verifier-ghost", Duration::from_secs(600)).await;
    let began = Instant::now();
    scene.declare("first", json!({})).await;
    scene.key("first", 1).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(10), "{took:?}");
    let events: Api<Event> = scene.installation.tenant();
    wait::until("the Event names the verifier", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.iter().any(|event| {
            event.reason.as_deref() == Some("NotAcknowledged")
                && event.note.as_deref().is_some_and(|note| note.contains("verifier-ghost"))
        })
    })
    .await;
    let began = Instant::now();
    scene.declare("second", json!({})).await;
    scene.key("second", 1).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(9), "{took:?}");
}

#[tokio::test]
async fn without_verifiers_nothing_waits() {
    let installation = Installation::new("fence-alone").await;
    let controller = installation.program("controller").argument("--leader-elect=false").start().await;
    controller.ready().await;
    let api_keys: Api<ApiKey> = installation.tenant();
    api_keys.create(&PostParams::default(), &crate::scene::api_key("ci", json!({}))).await.unwrap();
    wait::for_object(&api_keys, "ci", |api_key: &ApiKey| is(api_key, Reason::Active)).await;
    let patch = Patch::Merge(json!({"metadata": {"finalizers": ["keywright.dev/revocation", "example.com/other"]}}));
    api_keys.patch("ci", &PatchParams::default(), &patch).await.unwrap();
    api_keys.delete("ci", &DeleteParams::default()).await.unwrap();
    let api_key = wait::for_object(&api_keys, "ci", |api_key: &ApiKey| api_key.finalizers().len() == 1).await;
    let message = &api_key.status.unwrap().conditions[0].message;
    assert!(message.contains("no verifier runs"), "{message}");
    let patch = Patch::Merge(json!({"metadata": {"finalizers": []}}));
    api_keys.patch("ci", &PatchParams::default(), &patch).await.unwrap();
    wait::for_absence(&api_keys, "ci").await;
}

#[tokio::test]
async fn a_namespace_that_goes_takes_its_apikeys_along_and_nothing_is_created_in_it() {
    const KEYS: usize = 30;
    let scene = Scene::in_installation(Installation::new("fence-going").await, &["--concurrency=2"]).await;
    for number in 0..KEYS {
        scene.declare(&format!("ci-{number}"), json!({})).await;
    }
    let all_issued =
        |api_keys: &[ApiKey]| api_keys.len() == KEYS && api_keys.iter().all(|api_key| is(api_key, Reason::Active));
    wait::for_objects(&scene.api_keys(), Default::default(), 2 * wait::DEADLINE, all_issued).await;
    let began = Timestamp::now();
    let namespaces = Api::<Namespace>::all(scene.installation.client.clone());
    namespaces.delete(&scene.installation.tenant_namespace, &DeleteParams::default()).await.unwrap();
    wait::for_objects(&scene.api_keys(), Default::default(), 2 * wait::DEADLINE, |left| left.is_empty()).await;
    let requests = scene.installation.audited_requests().await;
    let meanwhile = requests.iter().filter(|request| {
        request.at > began && request.namespace == scene.installation.tenant_namespace && request.verb == "create"
    });
    let tried: Vec<_> = meanwhile.map(|request| (&request.resource, request.code)).collect();
    assert!(tried.iter().all(|(resource, _)| *resource == "events"), "{tried:?}");
    // One for each pass that was under way, and perhaps the last ones of the issues.
    assert!(tried.len() <= 4, "after the first refusal nothing is tried: {tried:?}");
    let live = scene.records().list(&ListParams::default()).await.unwrap();
    assert!(live.iter().all(|record| record.spec.revoked.is_some()));
}
