//! A key in somebody else's Secret (`spec.keyFrom`), on the real API server.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKey, ApiKeyStatus, ConditionStatus, ConditionType, Reason};
use keywright_core::key::Digest;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::keys::wait_for_event;
use super::scene::{INSIDE, OUTSIDE, Scene};
use keywright_testing::wait;

const FIRST: &str = "hvs.8SDd3WHDOjf7mq69CyCqYjBXAiQQAVZR";
const SECOND: &str = "hvs.gS5Cq0pYV8mXxXgqF0RmQ1Dx0Vb7tZJk";

/// The source that another program writes.
async fn source(scene: &Scene, name: &str, value: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "labels": {"keywright.dev/source": "true", "team": "a"}},
        "stringData": {"token": value, "user": "ci"},
    });
    scene.secrets().create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
}

async fn change(scene: &Scene, name: &str, patch: Value) -> Secret {
    scene.secrets().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
}

fn from(name: &str) -> Value {
    json!({"keyFrom": {"secretRef": {"name": name, "key": "token"}}, "rotation": {"overlap": "1h"}})
}

/// Asks for a look at the source, and waits until it was taken.
async fn look(scene: &Scene, name: &str, request: &str) -> ApiKeyStatus {
    ask(scene, name, request).await;
    let request = Some(request.to_owned());
    let is_shown =
        move |api_key: &ApiKey| api_key.status.as_ref().is_some_and(|status| status.rotate_request == request);
    wait::for_object(&scene.api_keys(), name, is_shown).await.status.unwrap()
}

async fn ask(scene: &Scene, name: &str, request: &str) {
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"keywright.dev/rotate": request}}}));
    scene.api_keys().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn a_key_in_a_source_lives_like_any_other_and_its_secret_is_never_written() {
    let scene = Scene::new("source").await;
    source(&scene, "vault", FIRST).await;
    let before = scene.secrets().get("vault").await.unwrap();
    scene.declare("ci", from("vault")).await;
    let status = scene.reason("ci", Reason::Active).await.status.unwrap();
    let shown = Digest::of(FIRST.as_bytes()).to_string()[..19].to_owned();
    assert_eq!((status.key_prefix.as_deref(), status.serial), (Some(&*shown), Some(1)));
    assert_eq!(status.secret_name.as_deref(), Some("vault"));
    assert_eq!(scene.writes().await, ["patch apikeys", "create apikeyrecords", "update apikeys/status"]);
    scene.answers(FIRST, INSIDE, 200).await;

    scene.edit("ci", json!({"allowedIPs": [INSIDE]})).await;
    scene.answers(FIRST, OUTSIDE, 403).await;
    scene.edit("ci", json!({"suspended": true})).await;
    scene.answers(FIRST, INSIDE, 401).await;
    scene.edit("ci", json!({"suspended": false})).await;
    scene.answers(FIRST, INSIDE, 200).await;

    // Another value is a rotation.
    change(&scene, "vault", json!({"stringData": {"token": SECOND}})).await;
    let status = look(&scene, "ci", "v2").await;
    assert_eq!(status.serial, Some(2));
    let [old] = &status.retiring[..] else { panic!("one older key: {status:?}") };
    assert_eq!((old.key_prefix.as_deref(), old.serial), (Some(&*shown), 1));
    scene.answers(SECOND, INSIDE, 200).await;
    scene.answers(FIRST, INSIDE, 200).await;
    wait_for_event(&scene, "ci", "Rotated").await;
    scene.edit("ci", json!({"rotation": {"overlap": "0s"}})).await;
    scene.answers(FIRST, INSIDE, 401).await;

    scene.delete("ci").await;
    scene.answers(SECOND, INSIDE, 401).await;
    let after = scene.secrets().get("vault").await.unwrap();
    assert_eq!(after.metadata.labels, before.metadata.labels);
    assert_eq!(after.metadata.annotations, before.metadata.annotations);
    assert!(after.owner_references().is_empty());
    assert!(scene.writes().await.iter().all(|write| !write.contains("secrets")));
    let controller = scene.controller.as_ref().unwrap().output().text();
    for secret in [FIRST, SECOND, &FIRST[4..], &SECOND[4..]] {
        assert!(!controller.contains(secret), "a key is in the controller's log");
    }
}

#[tokio::test]
async fn a_source_that_cannot_be_used_is_told_of_and_taken_once_it_is_mended() {
    let scene = Scene::new("source-unfit").await;
    scene.declare("ci", from("vault")).await;
    let told = scene.reason("ci", Reason::SourceUnusable).await;
    let conditions = &told.status.as_ref().unwrap().conditions;
    for (type_, status) in [
        (ConditionType::Active, ConditionStatus::False),
        (ConditionType::Ready, ConditionStatus::False),
        (ConditionType::Stalled, ConditionStatus::True),
    ] {
        assert_eq!(conditions.iter().find(|condition| condition.type_ == type_).unwrap().status, status, "{type_:?}");
    }
    says(&scene, "does not exist: create it with the label keywright.dev/source").await;
    wait_for_event(&scene, "ci", "SourceUnusable").await;

    source(&scene, "vault", "short").await;
    for (number, (patch, message)) in [
        (json!({"metadata": {"labels": {"keywright.dev/source": null}}}), "has no label keywright.dev/source"),
        (json!({"metadata": {"labels": {"keywright.dev/source": "true"}}}), "shorter than 32 characters"),
        (json!({"stringData": {"token": format!("{FIRST}\n")}}), "ends in a newline"),
        (
            json!({"stringData": {"token": format!("keyw1_{FIRST}")}}),
            "only keys that Keywright made may begin with keyw",
        ),
        (json!({"stringData": {"token": format!("{FIRST},{FIRST}")}}), "a comma"),
        (json!({"data": {"token": null}}), "has no such entry"),
    ]
    .into_iter()
    .enumerate()
    {
        change(&scene, "vault", patch).await;
        ask(&scene, "ci", &format!("look-{number}")).await;
        says(&scene, message).await;
    }
    assert!(scene.records().list(&Default::default()).await.unwrap().items.is_empty());
    change(&scene, "vault", json!({"stringData": {"token": FIRST}})).await;
    look(&scene, "ci", "mended").await;
    scene.reason("ci", Reason::Active).await;
    scene.answers(FIRST, INSIDE, 200).await;
}

/// Waits for what `Ready` says; it names the Secret, and nothing that is in it.
async fn says(scene: &Scene, message: &str) {
    let ready = |api_key: &ApiKey| {
        let conditions = &api_key.status.as_ref()?.conditions;
        conditions.iter().find(|condition| condition.type_ == ConditionType::Ready).map(|ready| ready.message.clone())
    };
    let expected = message.to_owned();
    let is_said = move |api_key: &ApiKey| ready(api_key).is_some_and(|said| said.contains(&expected));
    let said = ready(&wait::for_object(&scene.api_keys(), "ci", is_said).await).unwrap();
    assert!(said.contains("Secret \"vault\"") && !said.contains("short\"") && !said.contains(&FIRST[..12]), "{said}");
}

#[tokio::test]
async fn a_digest_in_a_source_has_one_owner_like_any_other() {
    let mut scene = Scene::new("source-owner").await;
    source(&scene, "vault", FIRST).await;
    scene.declare("owner", json!({"keyHash": Digest::of(FIRST.as_bytes()).to_string()})).await;
    scene.reason("owner", Reason::Active).await;
    scene.declare("ci", from("vault")).await;
    scene.reason("ci", Reason::DigestTaken).await;
    scene.delete("owner").await;
    scene.answers(FIRST, INSIDE, 401).await;

    // Its retention is over, and still a source declares it.
    let tombstone = scene.record(FIRST).await.name_any();
    scene.kill_controller().await;
    scene.start_controller(&["--tombstone-retention=0s", "--resync=1s"]).await;
    scene.reason("ci", Reason::DigestRevoked).await;
    for round in 0..3 {
        // A sweep removes what nobody declares.
        let name = format!("later-{round}");
        let uid = scene.declare(&name, json!({})).await.uid().unwrap();
        scene.key(&name, 1).await;
        scene.delete(&name).await;
        wait::for_absence(&scene.records(), &format!("{uid}-1")).await;
        assert!(scene.records().get_opt(&tombstone).await.unwrap().is_some(), "as long as its digest is declared");
        assert_eq!(scene.ask(FIRST, INSIDE, "/verify").await.status, 401);
    }
    change(&scene, "vault", json!({"stringData": {"token": SECOND}})).await;
    wait::for_absence(&scene.records(), &tombstone).await;
    scene.answers(SECOND, INSIDE, 200).await;
}

/// Whatever the source holds, the ApiKey's own rules reach the keys that it held before.
#[tokio::test]
async fn an_edit_counts_at_once_while_the_source_holds_somebody_elses_key() {
    let scene = Scene::new("source-edit").await;
    source(&scene, "vault", FIRST).await;
    scene.declare("owner", json!({"keyHash": Digest::of(SECOND.as_bytes()).to_string()})).await;
    scene.reason("owner", Reason::Active).await;
    scene.declare("ci", from("vault")).await;
    scene.answers(FIRST, INSIDE, 200).await;
    change(&scene, "vault", json!({"stringData": {"token": SECOND}})).await;
    ask(&scene, "ci", "theirs").await;
    scene.reason("ci", Reason::DigestTaken).await;
    assert_eq!(scene.ask(FIRST, INSIDE, "/verify").await.status, 200, "what it held before is let in");

    let asked = scene.searches_of_records().await;
    scene.edit("ci", json!({"suspended": true})).await;
    scene.answers(FIRST, INSIDE, 401).await;
    scene.edit("ci", json!({"suspended": false})).await;
    scene.answers(FIRST, INSIDE, 200).await;
    scene.edit("ci", json!({"allowedIPs": [INSIDE]})).await;
    scene.answers(FIRST, OUTSIDE, 403).await;
    assert_eq!(scene.searches_of_records().await, asked, "who owns the digest is not asked again for each edit");

    change(&scene, "vault", json!({"stringData": {"token": FIRST}})).await;
    let before = Timestamp::now();
    let status = look(&scene, "ci", "own").await;
    assert_eq!((status.serial, status.retiring.len()), (Some(1), 0));
    assert!(Timestamp::now().duration_since(before).as_secs() < 20, "looked at again at once");
    scene.reason("ci", Reason::Active).await;
    assert_eq!(scene.ask(SECOND, INSIDE, "/verify").await.status, 200, "its owner's");
}
