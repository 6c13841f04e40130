//! Lost answers, refusals, broken watches, crashes, and two controllers at once: between the real program and the real
//! API server.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use keywright_core::api::{ApiKeyRecord, Reason};
use keywright_core::key::Digest;
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::scene::{INSIDE, Scene};
use keywright_testing::{ApiRequest, Fault, FaultProxy, Installation, Occurrence, Outcome, wait};

/// The writes of an issue, in their order.
const WRITES: [(&str, &str); 4] =
    [("PATCH", "apikeys"), ("POST", "apikeyrecords"), ("POST", "secrets"), ("PUT", "apikeys/status")];

#[tokio::test]
async fn a_lost_answer_to_any_write_of_an_issue_loses_nothing_and_mints_nothing_twice() {
    let (scene, faults) = Scene::with_faults("lost-answers").await;
    for (index, (method, resource)) in WRITES.into_iter().enumerate() {
        for (kind, outcome) in [("status", Outcome::Status(504)), ("reset", Outcome::Reset)] {
            let name = format!("lost-{index}-{kind}");
            let about = name.clone();
            let is_write = move |request: &ApiRequest| request.is_about(method, resource, &about);
            let lost = faults.inject(Fault::After(outcome), Occurrence::Nth(1), is_write);
            let uid = scene.declare(&name, json!({})).await.uid().unwrap();
            lost.hit().await;
            let api_key = scene.check_in_force(&name).await;
            assert_eq!(api_key.status.unwrap().serial, Some(1), "{method} {resource}, {kind}: one key is enough");
            assert_eq!(scene.live_records(&uid).await.len(), 1, "{method} {resource}, {kind}");
        }
    }
}

#[tokio::test]
async fn a_write_that_does_not_get_through_is_tried_again() {
    let (scene, faults) = Scene::with_faults("refusals").await;
    for (index, (method, resource)) in WRITES.into_iter().enumerate() {
        for (kind, outcome) in [
            ("500", Outcome::Status(500)),
            ("409", Outcome::Status(409)),
            ("429", Outcome::TooManyRequests(1)),
            ("reset", Outcome::Reset),
        ] {
            let name = format!("refused-{index}-{kind}");
            let about = name.clone();
            let is_write = move |request: &ApiRequest| request.is_about(method, resource, &about);
            let refused = faults.inject(Fault::Before(outcome), Occurrence::Nth(1), is_write);
            let uid = scene.declare(&name, json!({})).await.uid().unwrap();
            refused.hit().await;
            scene.check_in_force(&name).await;
            assert_eq!(scene.live_records(&uid).await.len(), 1, "{method} {resource}, {kind}");
        }
    }
}

#[tokio::test]
async fn what_takes_the_secrets_place_between_look_and_write_is_not_overwritten() {
    let (scene, faults) = Scene::with_faults("races").await;
    scene.declare("ci", json!({})).await;
    scene.key("ci", 1).await;
    let is_secret = |request: &ApiRequest| request.is("PUT", "secrets");
    let late = faults.inject(Fault::Delay(Duration::from_secs(2)), Occurrence::Nth(1), is_secret);
    let changed = Patch::Merge(json!({"stringData": {"api-key": "changed by hand"}}));
    scene.secrets().patch("ci", &PatchParams::default(), &changed).await.unwrap();
    scene.edit("ci", json!({"description": "look again"})).await;
    late.hit().await;
    scene.secrets().delete("ci", &DeleteParams::default()).await.unwrap();
    let foreign = json!({"metadata": {"name": "ci"}, "stringData": {"api-key": "somebody else's"}});
    let foreign = serde_json::from_value(foreign).unwrap();
    let foreign = scene.secrets().create(&PostParams::default(), &foreign).await.unwrap();
    scene.reason("ci", Reason::SecretNameTaken).await;
    assert_eq!(scene.secrets().get("ci").await.unwrap().metadata, foreign.metadata, "it is still somebody else's");
    // Where OwnerReferencesPermissionEnforcement is on, it would be refused with 403 even without a precondition.
    let requests = scene.installation.audited_requests().await;
    let mut writes = requests.iter().filter(|request| request.verb == "update" && request.resource == "secrets");
    assert_eq!(writes.next().map(|request| request.code), Some(409), "refused for its resource version");
}

#[tokio::test]
async fn a_record_that_changes_between_look_and_write_is_looked_at_again() {
    let (scene, faults) = Scene::with_faults("late-write").await;
    scene.break_glass_of_records().await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    let key = scene.key("ci", 1).await;
    let is_record = |request: &ApiRequest| request.is("PUT", "apikeyrecords");
    let late = faults.inject(Fault::Delay(Duration::from_secs(1)), Occurrence::Nth(1), is_record);
    scene.edit("ci", json!({"allowedIPs": ["192.0.2.0/24"]})).await;
    late.hit().await;
    let suspended = Patch::Merge(json!({"spec": {"suspended": true}}));
    let by_hand = scene
        .records()
        .patch(&format!("{uid}-1"), &PatchParams::default(), &suspended)
        .await
        .unwrap()
        .resource_version();
    let written = wait::for_object(&scene.records(), &format!("{uid}-1"), move |record: &ApiKeyRecord| {
        record.resource_version() != by_hand && record.spec.allowed_ips.is_some()
    })
    .await;
    // The late write is refused (409), and the next look sees the change and plans from it.
    assert!(!written.spec.suspended);
    assert_eq!(faults.count("PUT", "apikeyrecords"), 2, "the first one was refused");
    scene.answers(&key, INSIDE, 200).await;
}

#[tokio::test]
async fn a_crash_between_record_and_secret_costs_a_serial_and_strands_no_key() {
    let (mut scene, faults) = Scene::with_faults("crash").await;
    let is_secret = |request: &ApiRequest| request.is("POST", "secrets");
    let stuck = faults.inject(Fault::Before(Outcome::Hang), Occurrence::Nth(1), is_secret);
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    stuck.hit().await;
    scene.kill_controller().await;
    assert_eq!(scene.live_records(&uid).await.len(), 1, "announced, and in nobody's hands");
    scene.start_controller(&[]).await;
    let api_key = scene.check_in_force("ci").await;
    assert_eq!(api_key.status.unwrap().serial, Some(2));
    let lost = scene.records().get(&format!("{uid}-1")).await.unwrap();
    assert_eq!(lost.spec.revoked.unwrap().reason, "NotDelivered");
    assert_eq!(scene.live_records(&uid).await.len(), 1);
}

#[tokio::test]
async fn a_record_that_no_watch_has_told_of_is_found_before_a_key_is_handed_out() {
    let (mut scene, faults) = Scene::with_faults("untold").await;
    let blind = FaultProxy::start(scene.installation.control_plane).await;
    let _untold = blind.inject(Fault::DropEvent, Occurrence::Every, |request| request.resource == "apikeyrecords");
    let is_read = |request: &ApiRequest| request.is("GET", "apikeys") && request.name.is_some();
    let waits = blind.inject(Fault::Hold, Occurrence::Every, is_read);
    let successor = scene.installation.program("controller").argument("--leader-elect=false").through(&blind);
    let successor = successor.start().await;
    successor.ready().await;

    let is_secret = |request: &ApiRequest| request.is("POST", "secrets");
    let stuck = faults.inject(Fault::Before(Outcome::Hang), Occurrence::Nth(1), is_secret);
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    stuck.hit().await;
    waits.hit().await;
    scene.kill_controller().await;
    waits.lift();

    let api_key = scene.check_in_force("ci").await;
    assert_eq!(api_key.status.unwrap().serial, Some(2));
    assert_eq!(blind.count("POST", "apikeyrecords"), 2, "the first one was refused");
    let lost = scene.records().get(&format!("{uid}-1")).await.unwrap();
    assert_eq!(lost.spec.revoked.unwrap().reason, "NotDelivered");
    assert_eq!(scene.live_records(&uid).await.len(), 1);
    assert_eq!(successor.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_lost_answer_while_deleting_still_ends_in_a_revoked_key() {
    let (scene, faults) = Scene::with_faults("deleting").await;
    for (index, (method, resource)) in [("PUT", "apikeyrecords"), ("PATCH", "apikeys")].into_iter().enumerate() {
        let name = format!("going-{index}");
        scene.declare(&name, json!({})).await;
        let key = scene.key(&name, 1).await;
        let about = name.clone();
        let is_write = move |request: &ApiRequest| request.is_about(method, resource, &about);
        let lost = faults.inject(Fault::After(Outcome::Reset), Occurrence::Nth(1), is_write);
        scene.delete(&name).await;
        lost.hit().await;
        scene.answers(&key, INSIDE, 401).await;
    }
}

#[tokio::test]
async fn a_deletion_during_a_broken_watch_is_noticed() {
    let (scene, faults) = Scene::with_faults("watches").await;
    for (index, fault) in [Fault::CutWatch, Fault::HangWatch].into_iter().enumerate() {
        let name = format!("ci-{index}");
        scene.declare(&name, json!({})).await;
        let key = scene.key(&name, 1).await;
        scene.answers(&key, INSIDE, 200).await;
        let broken = faults.inject(fault, Occurrence::Nth(1), |request| request.watch && request.resource == "apikeys");
        scene.api_keys().delete(&name, &DeleteParams::default()).await.unwrap();
        broken.hit().await;
        // A silent connection is given up after 25 s.
        wait::for_objects(&scene.api_keys(), Default::default(), 2 * wait::DEADLINE, |left| left.is_empty()).await;
        scene.answers(&key, INSIDE, 401).await;
    }
}

#[tokio::test]
async fn a_partition_is_survived_and_nothing_is_minted_in_it() {
    let (scene, faults) = Scene::with_faults("partition").await;
    scene.declare("before", json!({})).await;
    let key = scene.key("before", 1).await;
    faults.partition();
    scene.declare("during", json!({})).await;
    assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 200, "the verifier is not cut off");
    faults.heal();
    faults.sever();
    for name in ["before", "during"] {
        let api_key = scene.check_in_force(name).await;
        assert_eq!(api_key.status.unwrap().serial, Some(1), "{name}");
    }
}

#[tokio::test]
async fn two_controllers_that_both_believe_they_lead_do_no_harm() {
    let mut scene = Scene::new("two-leaders").await;
    let other = scene.installation.program("controller").argument("--leader-elect=false").start().await;
    other.ready().await;
    let names: Vec<_> = (0..20).map(|index| format!("key-{index}")).collect();
    for name in &names {
        scene.declare(name, json!({})).await;
    }
    let mut keys = BTreeSet::new();
    for name in &names {
        let api_key = scene.check_in_force(name).await;
        let live = scene.live_records(&api_key.uid().unwrap()).await;
        assert_eq!(live.len(), 1, "one key for one ApiKey: {live:#?}");
        keys.insert(scene.delivered(name).await);
    }
    assert_eq!(keys.len(), names.len());
    for name in &names {
        scene.api_keys().delete(name, &DeleteParams::default()).await.unwrap();
    }
    wait::for_objects(&scene.api_keys(), Default::default(), wait::DEADLINE, |left| left.is_empty()).await;
    for key in &keys {
        scene.answers(key, INSIDE, 401).await;
    }
    let records = scene.records().list(&Default::default()).await.unwrap();
    let handed_out: BTreeSet<_> = keys.iter().map(|key| Digest::of(key.as_bytes()).to_string()).collect();
    for record in records {
        let revoked = record.spec.revoked.expect("nothing is left to be let in");
        let expected = if handed_out.contains(&record.spec.digest) { "Deleted" } else { "NotDelivered" };
        assert_eq!(revoked.reason, expected);
    }
    scene.kill_controller().await;
    assert_eq!(other.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_standby_takes_over_from_a_leader_that_stops_and_from_one_that_dies() {
    let installation = Installation::new("election").await;
    let verifier = installation.program("verifier").start().await;
    verifier.ready().await;
    let first = installation.program("controller").start().await;
    let mut scene = Scene { verifier, controller: None, installation };
    scene.declare("first", json!({})).await;
    scene.reason("first", Reason::Active).await;
    let leader = holder(&scene).await;

    let second = scene.installation.program("controller").start().await;
    second.ready().await;
    assert_eq!(holder(&scene).await, leader, "a standby is Ready and does not lead");
    assert_eq!(first.terminate().await.code(), Some(0));
    scene.declare("second", json!({})).await;
    scene.check_in_force("second").await;
    assert_ne!(holder(&scene).await, leader);

    let third = scene.installation.program("controller").start().await;
    second.kill().await;
    scene.declare("third", json!({})).await;
    // The Lease has to stand unchanged for 15 s first.
    scene.check_in_force("third").await;
    scene.controller = Some(third);
}

async fn holder(scene: &Scene) -> String {
    let lease = scene.installation.system::<Lease>().get("keywright-controller").await.unwrap();
    lease.spec.unwrap().holder_identity.unwrap()
}

#[tokio::test]
async fn a_leader_that_cannot_renew_stops() {
    for outcome in [Outcome::Status(500), Outcome::Hang] {
        let installation = Installation::new("lost-lead").await;
        let faults = FaultProxy::start(installation.control_plane).await;
        let controller = installation.program("controller").through(&faults).start().await;
        let leases = installation.system::<Lease>();
        wait::for_object(&leases, "keywright-controller", |_: &Lease| true).await;
        let is_renewal = |request: &ApiRequest| request.is("PUT", "leases");
        faults.inject(Fault::Before(outcome), Occurrence::Every, is_renewal);
        let ended = tokio::time::timeout(Duration::from_secs(30), controller.exited()).await;
        assert_eq!(ended.expect("it goes on without a lease").code(), Some(1), "{outcome:?}");
    }
}

/// A controller that is stopped for a while is as late as its request here, and another one has worked meanwhile.
#[tokio::test]
async fn a_record_that_lands_after_its_apikey_has_gone_is_revoked_and_its_key_handed_to_nobody() {
    let (mut scene, faults) = Scene::with_faults("late-record").await;
    let held = faults.inject(Fault::Hold, Occurrence::Every, |request| request.is("POST", "apikeyrecords"));
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    held.hit().await;
    scene.api_keys().delete("ci", &DeleteParams::default()).await.unwrap();
    let late = scene.controller.take();
    scene.start_controller(&[]).await;
    wait::for_absence(&scene.api_keys(), "ci").await;
    held.lift();
    let record =
        wait::for_object(&scene.records(), &format!("{uid}-1"), |record: &ApiKeyRecord| record.spec.revoked.is_some())
            .await;
    assert_eq!(record.spec.revoked.unwrap().reason, "Orphaned");
    assert!(scene.secrets().get_opt("ci").await.unwrap().is_none());
    let secrets = faults.requests().into_iter().filter(|request| request.is("POST", "secrets")).count();
    assert_eq!(secrets, 0, "nobody is handed the key");
    drop(late);
}
