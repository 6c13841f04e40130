//! A submitted digest has one owner, on the real API server: the oldest record rules alone, live or revoked.

use keywright_core::api::{ApiKey, ApiKeyRecord, ConditionStatus, ConditionType, Reason};
use keywright_core::key::{Digest, Key};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::scene::{INSIDE, Scene, api_key, is};
use keywright_testing::wait;

/// A key that was made elsewhere, and its digest.
fn made_elsewhere() -> (String, String) {
    let key = Key::mint(&mut rand::rngs::SysRng).unwrap();
    (key.reveal().to_owned(), key.digest().to_string())
}

#[tokio::test]
async fn a_digest_that_somebody_else_submits_stays_its_owners() {
    let scene = Scene::new("taken").await;
    scene.declare("generated", json!({})).await;
    let generated = scene.key("generated", 1).await;
    let (submitted, digest) = made_elsewhere();
    scene.declare("submitted", json!({"keyHash": digest})).await;
    scene.reason("submitted", Reason::Active).await;
    for key in [&generated, &submitted] {
        scene.answers(key, INSIDE, 200).await;
        let digest = Digest::of(key.as_bytes()).to_string();
        for round in 0..3 {
            let name = format!("thief-{round}");
            scene.declare(&name, json!({"keyHash": digest, "owner": "mallory"})).await;
            let told = scene.reason(&name, Reason::DigestTaken).await;
            let answer = |type_| condition(&told, type_);
            assert_eq!(answer(ConditionType::Active), ConditionStatus::False);
            assert_eq!(answer(ConditionType::Ready), ConditionStatus::False);
            assert_eq!(answer(ConditionType::Stalled), ConditionStatus::True);
            assert!(records_of(&scene, &told).await.is_empty(), "no record");
            assert_eq!(scene.ask(key, INSIDE, "/verify").await.status, 200);
            scene.delete(&name).await;
            assert_eq!(scene.ask(key, INSIDE, "/verify").await.status, 200);
        }
    }
    for name in ["generated", "submitted"] {
        assert!(is(&scene.api_keys().get(name).await.unwrap(), Reason::Active), "{name}");
    }
}

#[tokio::test]
async fn a_submitted_key_that_was_revoked_never_comes_back() {
    let mut scene = Scene::new("revoked").await;
    let (key, digest) = made_elsewhere();
    let spec = json!({"keyHash": digest, "expiresIn": "90d", "owner": "ops@example.org"});
    let uid = scene.declare("ops", spec.clone()).await.uid().unwrap();
    scene.reason("ops", Reason::Active).await;
    scene.answers(&key, INSIDE, 200).await;
    scene.delete("ops").await;
    scene.answers(&key, INSIDE, 401).await;
    // What GitOps does, and what somebody does under another name.
    for name in ["ops", "other"] {
        scene.declare(name, spec.clone()).await;
        let told = scene.reason(name, Reason::DigestRevoked).await;
        assert_eq!(condition(&told, ConditionType::Stalled), ConditionStatus::True);
    }
    scene.kill_controller().await;
    scene.start_controller(&["--tombstone-retention=0s", "--resync=1s"]).await;
    // Each of these looks at everything once, and the sweeps come in between.
    for round in 0..4 {
        scene.declare(&format!("later-{round}"), json!({})).await;
        scene.key(&format!("later-{round}"), 1).await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 401);
    }
    assert!(scene.records().get_opt(&format!("{uid}-1")).await.unwrap().is_some(), "as long as its digest is declared");
    scene.delete("ops").await;
    scene.delete("other").await;
    wait::for_absence(&scene.records(), &format!("{uid}-1")).await;
    assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 401);
}

#[tokio::test]
async fn of_many_that_submit_one_digest_at_once_one_is_let_in() {
    let mut scene = Scene::new("race").await;
    let other = scene.installation.program("controller").argument("--leader-elect=false").start().await;
    other.ready().await;
    for round in 0..5 {
        let (key, digest) = made_elsewhere();
        let api_keys = scene.api_keys();
        let names: Vec<_> = (0..8).map(|number| format!("racer-{round}-{number}")).collect();
        let objects: Vec<_> = names.iter().map(|name| api_key(name, json!({"keyHash": digest}))).collect();
        let post = PostParams::default();
        futures::future::try_join_all(objects.iter().map(|object| api_keys.create(&post, object))).await.unwrap();
        let is_decided = |api_keys: &[ApiKey]| {
            let racers: Vec<_> = api_keys.iter().filter(|api_key| names.contains(&api_key.name_any())).collect();
            let count = |reason: Reason| racers.iter().filter(|api_key| is(api_key, reason.clone())).count();
            count(Reason::Active) == 1 && count(Reason::DigestTaken) == 7
        };
        wait::for_objects(&api_keys, Default::default(), wait::DEADLINE, is_decided).await;
        scene.answers(&key, INSIDE, 200).await;
        // One controller may tell a loser while the other still takes its record away.
        let is_claim = |record: &&ApiKeyRecord| record.spec.digest == digest;
        let are_gone = |records: &[ApiKeyRecord]| records.iter().filter(is_claim).count() == 1;
        wait::for_objects(&scene.records(), Default::default(), wait::DEADLINE, are_gone).await;
    }
    scene.kill_controller().await;
    drop(other);
}

#[tokio::test]
async fn a_deletion_that_somebody_else_holds_up_says_that_the_keys_are_revoked() {
    let scene = Scene::new("held").await;
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    let held = |finalizers: serde_json::Value| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    let both = held(json!(["keywright.dev/revocation", "example.org/hold"]));
    scene.api_keys().patch("ci", &PatchParams::default(), &both).await.unwrap();
    scene.api_keys().delete("ci", &DeleteParams::default()).await.unwrap();
    let told = wait::for_object(&scene.api_keys(), "ci", |api_key: &ApiKey| {
        condition(api_key, ConditionType::Active) == ConditionStatus::False
            && api_key.finalizers() == ["example.org/hold"]
    })
    .await;
    let active = &told.status.unwrap().conditions[0];
    assert_eq!(active.reason, Reason::Revoking);
    assert!(active.message.contains("example.org/hold"), "{}", active.message);
    scene.answers(&key, INSIDE, 401).await;
    scene.api_keys().patch("ci", &PatchParams::default(), &held(json!([]))).await.unwrap();
    wait::for_absence(&scene.api_keys(), "ci").await;
}

#[tokio::test]
async fn nothing_that_is_edited_into_a_status_revokes_a_key() {
    let scene = Scene::new("status").await;
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    let status = scene.check_in_force("ci").await.status.unwrap();
    for edit in [
        json!({"keyPrefix": "keyw1_00000000"}),
        json!({"keyPrefix": null, "issuedAt": null}),
        json!({"serial": 99}),
        json!({"serial": 0, "expiresAt": "2020-01-01T00:00:00Z"}),
        json!({"serial": null, "conditions": null}),
    ] {
        let patch = Patch::Merge(json!({ "status": edit }));
        scene.api_keys().patch_status("ci", &PatchParams::default(), &patch).await.unwrap();
        let expected = (status.serial, status.key_prefix.clone());
        wait::for_object(&scene.api_keys(), "ci", move |api_key: &ApiKey| {
            let status = api_key.status.clone().unwrap_or_default();
            is(api_key, Reason::Active) && (status.serial, status.key_prefix) == expected
        })
        .await;
        assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 200, "{edit}");
        assert_eq!(scene.delivered("ci").await, key, "{edit}");
    }
}

async fn records_of(scene: &Scene, api_key: &ApiKey) -> Vec<String> {
    let uid = api_key.uid().unwrap();
    let records = scene.records().list(&Default::default()).await.unwrap();
    records.into_iter().map(|record| record.name_any()).filter(|name| name.starts_with(&uid)).collect()
}

fn condition(api_key: &ApiKey, type_: ConditionType) -> ConditionStatus {
    let conditions = api_key.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().find(|condition| condition.type_ == type_).map(|condition| condition.status).unwrap()
}
