//! Rotation on request and by schedule, on the real API server.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use keywright_core::api::{ApiKey, ApiKeyStatus, ConditionStatus, ConditionType, Reason};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::keys::wait_for_event;
use super::scene::{INSIDE, Scene, ask_at};
use keywright_testing::{ApiRequest, Fault, Installation, Occurrence, Outcome, output, wait};

/// The writes of a rotation, in their order.
const WRITES: [(&str, &str); 4] =
    [("POST", "apikeyrecords"), ("PUT", "secrets"), ("PUT", "apikeyrecords"), ("PUT", "apikeys/status")];

/// Asks for a rotation, as `kubectl annotate --overwrite` does.
async fn rotate(scene: &Scene, name: &str, request: &str) {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"keywright.dev/rotate": request}}}));
    scene.api_keys().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

/// Waits until this request is carried out.
async fn carried_out(scene: &Scene, name: &str, request: &str) -> ApiKeyStatus {
    let request = Some(request.to_owned());
    let is_shown =
        move |api_key: &ApiKey| api_key.status.as_ref().is_some_and(|status| status.rotate_request == request);
    wait::for_object(&scene.api_keys(), name, is_shown).await.status.unwrap()
}

#[tokio::test]
async fn a_pipeline_asks_for_a_rotation_and_waits_for_it() {
    let scene = Scene::new("rotation").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let first = scene.key("ci", 1).await;
    scene.answers(&first, INSIDE, 200).await;
    let before = scene.writes().await.len();

    let asked = Timestamp::now();
    rotate(&scene, "ci", "release-7").await;
    let control_plane = scene.installation.control_plane;
    let namespace = format!("--namespace={}", scene.installation.tenant_namespace);
    let for_it = "--for=jsonpath={.status.rotateRequest}=release-7";
    let mut wait = control_plane.kubectl(["wait", "apikeys.keywright.dev/ci", for_it, "--timeout=30s", &namespace]);
    output(&mut wait).unwrap();
    let status = scene.api_keys().get("ci").await.unwrap().status.unwrap();
    let done = Timestamp::now();
    let second = scene.delivered("ci").await;
    assert_ne!(first, second);
    scene.answers(&second, INSIDE, 200).await;
    assert_eq!(scene.ask(&first, INSIDE, "/verify").await.status, 200, "the old key works for the overlap");
    assert_eq!(status.serial, Some(2));
    assert_eq!(status.key_prefix.as_deref(), Some(&second[..14]));
    let [old] = &status.retiring[..] else { panic!("one older key: {status:?}") };
    assert_eq!((old.key_prefix.as_deref(), old.serial), (Some(&first[..14]), 1));
    let began = old.retires_at.0 - jiff::SignedDuration::from_hours(1);
    assert!(asked - jiff::SignedDuration::from_secs(1) <= began && began <= done, "{asked} {began} {done}");
    scene.reason("ci", Reason::Rotating).await;
    wait_for_event(&scene, "ci", "Rotated").await;
    let writes = ["create apikeyrecords", "update secrets", "update apikeyrecords", "update apikeys/status"];
    assert_eq!(scene.writes().await[before..], writes);

    // The same value again, and an edit of something else, ask for nothing.
    rotate(&scene, "ci", "release-7").await;
    scene.edit("ci", json!({"rotation": {"overlap": "0s"}})).await;
    scene.answers(&first, INSIDE, 401).await;
    let api_key = scene.reason("ci", Reason::Active).await;
    assert_eq!(api_key.status.unwrap().serial, Some(2));
    assert_eq!(scene.record(&first).await.spec.revoked.unwrap().reason, "Replaced");
    scene.check_in_force("ci").await;
}

#[tokio::test]
async fn a_lost_answer_or_a_refusal_anywhere_in_a_rotation_ends_in_one_new_key() {
    let (scene, faults) = Scene::with_faults("rotation-faults").await;
    for (index, (method, resource)) in WRITES.into_iter().enumerate() {
        for (kind, fault) in [
            ("lost-504", Fault::After(Outcome::Status(504))),
            ("lost-reset", Fault::After(Outcome::Reset)),
            ("500", Fault::Before(Outcome::Status(500))),
            ("409", Fault::Before(Outcome::Status(409))),
        ] {
            let name = format!("ci-{index}-{kind}");
            let uid = scene.declare(&name, json!({"rotation": {"overlap": "1h"}})).await.uid().unwrap();
            let first = scene.key(&name, 1).await;
            let about = name.clone();
            let is_write = move |request: &ApiRequest| request.is_about(method, resource, &about);
            let broken = faults.inject(fault, Occurrence::Nth(1), is_write);
            rotate(&scene, &name, kind).await;
            broken.hit().await;
            let status = carried_out(&scene, &name, kind).await;
            assert_eq!(status.serial, Some(2), "{method} {resource}, {kind}: one key is enough");
            scene.check_in_force(&name).await;
            assert_eq!(scene.live_records(&uid).await.len(), 2, "{method} {resource}, {kind}");
            assert_eq!(scene.ask(&first, INSIDE, "/verify").await.status, 200, "{method} {resource}, {kind}");
        }
    }
}

#[tokio::test]
async fn a_crash_anywhere_in_a_rotation_ends_in_one_new_key() {
    let (mut scene, faults) = Scene::with_faults("rotation-crash").await;
    for (index, (method, resource)) in WRITES.into_iter().enumerate() {
        for (kind, fault) in [("before", Fault::Before(Outcome::Hang)), ("after", Fault::After(Outcome::Hang))] {
            let name = format!("ci-{index}-{kind}");
            let uid = scene.declare(&name, json!({"rotation": {"overlap": "1h"}})).await.uid().unwrap();
            let first = scene.key(&name, 1).await;
            scene.answers(&first, INSIDE, 200).await;
            let about = name.clone();
            let is_write = move |request: &ApiRequest| request.is_about(method, resource, &about);
            let stuck = faults.inject(fault, Occurrence::Nth(1), is_write);
            rotate(&scene, &name, kind).await;
            stuck.hit().await;
            scene.kill_controller().await;
            let delivered = scene.delivered(&name).await;
            scene.answers(&delivered, INSIDE, 200).await;
            let launch = scene.installation.program("controller").argument("--leader-elect=false");
            scene.controller = Some(launch.through(&faults).start().await);
            let status = carried_out(&scene, &name, kind).await;
            // The record was there, and its key in no Secret: that key is lost.
            let lost = (index, kind) == (0, "after") || (index, kind) == (1, "before");
            assert_eq!(status.serial, Some(if lost { 3 } else { 2 }), "{method} {resource}, {kind}");
            scene.check_in_force(&name).await;
            assert_eq!(scene.live_records(&uid).await.len(), 2, "{method} {resource}, {kind}");
            assert_eq!(scene.ask(&first, INSIDE, "/verify").await.status, 200, "{method} {resource}, {kind}");
        }
    }
}

/// The shortest period is a minute, so that this takes one.
#[tokio::test]
async fn a_scheduled_rotation_comes_at_its_time_and_a_restart_does_not_move_it() {
    let mut scene = Scene::new("rotation-schedule").await;
    scene.declare("ci", json!({"rotation": {"every": "1m", "overlap": "30s"}})).await;
    let first = scene.key("ci", 1).await;
    let due = |status: ApiKeyStatus| (status.issued_at.unwrap().0, status.next_rotation_at.unwrap().0);
    let (issued_at, next) = due(scene.check_in_force("ci").await.status.unwrap());
    let age = next.duration_since(issued_at).as_secs();
    assert!((60..66).contains(&age), "spread over a tenth of the period: {age}");
    scene.kill_controller().await;
    scene.start_controller(&[]).await;

    let is_second =
        |api_keys: &[ApiKey]| api_keys.iter().any(|api_key| api_key.status.as_ref().unwrap().serial == Some(2));
    wait::for_objects(&scene.api_keys(), Default::default(), Duration::from_secs(66) + wait::DEADLINE, is_second).await;
    let status = scene.check_in_force("ci").await.status.unwrap();
    let (issued_again_at, following) = due(status);
    assert!(issued_again_at >= next, "{next} {issued_again_at}");
    assert_eq!(following.duration_since(issued_again_at).as_secs(), age, "the same spread again");
    scene.answers(&first, INSIDE, 200).await;
    wait_for_event(&scene, "ci", "Rotated").await;
}

#[tokio::test]
async fn a_rotation_of_a_suspended_apikey_waits_and_is_done_once() {
    let scene = Scene::new("rotation-suspended").await;
    scene.declare("ci", json!({"suspended": true})).await;
    scene.key("ci", 1).await;
    for request in ["1", "2", "3"] {
        rotate(&scene, "ci", request).await;
    }
    wait::for_object(&scene.api_keys(), "ci", |api_key: &ApiKey| {
        let message = &api_key.status.as_ref().unwrap().conditions[0].message;
        message.ends_with("the rotation that was asked for waits until then")
    })
    .await;
    scene.edit("ci", json!({"suspended": false})).await;
    let status = carried_out(&scene, "ci", "3").await;
    assert_eq!(status.serial, Some(2), "once, and not as many times as were missed");
    scene.check_in_force("ci").await;
}

/// Everybody has read the new key but one.
#[tokio::test]
async fn an_older_key_that_is_still_used_is_told_of_and_held() {
    let installation = Installation::new("rotation-in-use").await;
    let verifier = installation.program("verifier").argument("--last-used-granularity=1s").start().await;
    verifier.ready().await;
    let mut scene = Scene { verifier, controller: None, installation };
    scene.start_controller(&[]).await;
    scene.declare("ci", json!({"rotation": {"overlap": "24s", "holdWhileInUse": true}})).await;
    let first = scene.key("ci", 1).await;
    rotate(&scene, "ci", "1").await;
    let retires_at = carried_out(&scene, "ci", "1").await.retiring[0].retires_at.0;

    let shown = async || scene.api_keys().get("ci").await.unwrap().status.unwrap();
    wait::until("the use of the older key is told", async || {
        scene.ask(&first, INSIDE, "/verify").await;
        let status = shown().await;
        let mut conditions = status.conditions.iter();
        let told = conditions.find(|condition| condition.type_ == ConditionType::OldKeyStillInUse);
        told.is_some_and(|told| told.status == ConditionStatus::True && told.message.starts_with(&first[..14]))
    })
    .await;
    wait_for_event(&scene, "ci", "OldKeyStillInUse").await;
    wait::until("its end is moved", async || {
        scene.ask(&first, INSIDE, "/verify").await;
        shown().await.retiring[0].retires_at.0 == retires_at + jiff::SignedDuration::from_secs(6)
    })
    .await;
    wait_for_event(&scene, "ci", "OverlapExtended").await;

    let has_ended = |api_key: &ApiKey| api_key.status.as_ref().unwrap().retiring.is_empty();
    let api_key = wait::for_object(&scene.api_keys(), "ci", has_ended).await;
    assert!(Timestamp::now() >= retires_at);
    let conditions = api_key.status.unwrap().conditions;
    assert!(conditions.iter().all(|condition| condition.type_ != ConditionType::OldKeyStillInUse));
    scene.answers(&first, INSIDE, 401).await;
}

#[tokio::test]
async fn the_oldest_of_three_older_keys_ends_at_once_with_an_event() {
    let scene = Scene::new("rotation-again").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let mut keys = vec![scene.key("ci", 1).await];
    for request in ["1", "2", "3"] {
        rotate(&scene, "ci", request).await;
        carried_out(&scene, "ci", request).await;
        keys.push(scene.delivered("ci").await);
    }
    scene.answers(&keys[0], INSIDE, 401).await;
    for key in &keys[1..] {
        scene.answers(key, INSIDE, 200).await;
    }
    wait_for_event(&scene, "ci", "RetiredEarly").await;
    let status = scene.check_in_force("ci").await.status.unwrap();
    assert_eq!(status.retiring.iter().map(|old| old.serial).collect::<Vec<_>>(), [2, 3]);
}

/// A new key goes into its Secret when every verifier knows it.
#[tokio::test]
async fn a_client_that_reads_its_secret_before_each_request_passes_through_a_hundred_rotations() {
    const ROTATIONS: usize = 100;
    let scene = Scene::new("rotation-client").await;
    let mut verifiers = Vec::new();
    for _ in 0..2 {
        verifiers.push(scene.installation.program("verifier").start().await);
    }
    let addresses = verifiers.iter().chain([&scene.verifier]).map(|verifier| verifier.address("http"));
    let addresses: Vec<_> = addresses.collect();
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let first = scene.key("ci", 1).await;
    scene.answers(&first, INSIDE, 200).await;
    for verifier in &verifiers {
        verifier.ready().await;
    }
    let (calls, refusals) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let client = |address| {
        let (scene, calls, refusals) = (&scene, &calls, &refusals);
        async move {
            loop {
                let key = scene.delivered("ci").await;
                let answer = ask_at(address, &key, INSIDE, "/verify").await;
                calls.fetch_add(1, Ordering::Relaxed);
                if answer.status != 200 {
                    refusals.lock().unwrap().push(format!("{address}: {} {}", &key[..14], answer.head));
                }
            }
        }
    };
    let rotations = async {
        for number in 0..ROTATIONS {
            let request = format!("request-{number}");
            rotate(&scene, "ci", &request).await;
            carried_out(&scene, "ci", &request).await;
        }
    };
    tokio::select! {
        () = rotations => {}
        _ = futures::future::join_all(addresses.into_iter().map(client)) => {}
    }
    let (calls, refusals) = (calls.into_inner(), refusals.into_inner().unwrap());
    println!("{calls} calls, {} refused", refusals.len());
    assert!(calls >= 3 * ROTATIONS, "{calls} calls");
    assert!(refusals.is_empty(), "{} of {calls} were refused: {refusals:#?}", refusals.len());
}

/// Where the API server lets only those change owner references who may delete the object.
#[tokio::test]
async fn an_owner_reference_that_somebody_changed_holds_no_rotation_up() {
    let scene = Scene::new("rotation-owner").await;
    for (name, changed) in [("unblocked", json!(false)), ("bare", Value::Null)] {
        scene.declare(name, json!({})).await;
        let first = scene.key(name, 1).await;
        let mut owner = serde_json::to_value(&scene.secrets().get(name).await.unwrap().owner_references()[0]).unwrap();
        owner["blockOwnerDeletion"] = changed;
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        scene.secrets().patch(name, &PatchParams::default(), &patch).await.unwrap();
        rotate(&scene, name, "now").await;
        assert_eq!(carried_out(&scene, name, "now").await.serial, Some(2));
        assert_ne!(scene.delivered(name).await, first);
    }
}
