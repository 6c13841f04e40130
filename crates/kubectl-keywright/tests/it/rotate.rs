//! A rotation is done when the new key is where it belongs.

use keywright_core::api::ApiKey;
use keywright_testing::{Fault, FaultProxy, Occurrence, Outcome};
use serde_json::json;

use super::person::{INSIDE, Scene};

#[tokio::test]
async fn a_rotated_key_is_in_its_secret_and_the_old_one_still_works() {
    let scene = Scene::of_admin("rotate").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let first = scene.delivered("ci").await;
    let ran = scene.run("rotate ci --wait").await.exits(0).prints("Rotated in ").prints("Old key ends ");
    let second = scene.delivered("ci").await;
    assert_ne!(first, second);
    assert!(ran.output.contains(&second[..14]) && !ran.output.contains(&second[..15]), "{ran:?}");
    for key in [&first, &second] {
        assert_eq!(scene.ask(key, INSIDE).await, 200);
    }
    let described = scene.run("describe ci").await.exits(0).prints("Rotating: let in; old key until ");
    described.prints(&format!("Old key   {}, no. 1, ends in 59 min", &first[..14]));
    scene.run("rotate ci --wait").await.exits(0);
    assert_ne!(scene.delivered("ci").await, second, "each request is a new one");
}

#[tokio::test]
async fn what_cannot_be_rotated_is_told_before_or_instead_of_waiting() {
    let scene = Scene::of_admin("no-rotation").await;
    scene.run("create laptop --local --print").await.exits(0);
    scene.run("rotate laptop --wait").await.exits(2).says("made elsewhere");
    scene.run("rotate ci/../laptop").await.exits(1).says("There is no ApiKey ci/../laptop in ");
    scene.run(&format!("describe laptop -n x/../{}", scene.namespace())).await.exits(2).says("is no DNS name");
    scene.declare("ci", json!({"suspended": true})).await;
    scene.run("rotate ci --wait").await.exits(3).says("is suspended: its rotation waits until it is resumed");
}

#[tokio::test]
async fn a_key_ends_within_its_overlap_only_if_somebody_agrees() {
    let scene = Scene::of_admin("third").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let first = scene.delivered("ci").await;
    for _ in 0..2 {
        scene.run("rotate ci --wait").await.exits(0);
    }
    let ran = scene.run("rotate ci --wait").await.exits(2).says("Add --yes to rotate nevertheless.");
    ran.says(&format!("old key {}, never used since, ends at once and not ", &first[..14]));
    scene.at_terminal("rotate ci --wait", 120, &[("Rotate ci? [y/N] ", "n\r")]).await.exits(1);
    assert_eq!(scene.ask(&first, INSIDE).await, 200);
    let serial = |key: ApiKey| key.status.unwrap().serial;
    assert_eq!(serial(scene.api_keys().get("ci").await.unwrap()), Some(3));
    let ran = scene.run("rotate ci --wait --yes").await.exits(0);
    ran.prints(&format!(" Ended early: {}.", &first[..14]));
    assert_eq!(scene.ask(&first, INSIDE).await, 401);
}

#[tokio::test]
async fn rotations_that_are_asked_for_at_once_end_together() {
    let scene = Scene::of_admin("at-once").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let line = "rotate ci --wait --yes --timeout 20s";
    let (one, two, three) = tokio::join!(scene.run(line), scene.run(line), scene.run(line));
    for ran in [one, two, three] {
        ran.exits(0).prints("Rotated in ");
    }
}

#[tokio::test]
async fn a_lost_answer_is_looked_up_and_a_lost_request_is_told() {
    let scene = Scene::of_admin("rotate-lost").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let faults = FaultProxy::start(scene.installation.control_plane).await;
    let line = format!("rotate ci --wait --kubeconfig {}", scene.kubeconfig_through(&faults).display());
    let after =
        faults.inject(Fault::After(Outcome::Reset), Occurrence::Nth(1), |request| request.is("PATCH", "apikeys"));
    scene.run(&line).await.exits(0).prints("Rotated in ");
    after.hit().await;
    let before =
        faults.inject(Fault::Before(Outcome::Reset), Occurrence::Nth(1), |request| request.is("PATCH", "apikeys"));
    scene.run(&line).await.exits(1).says("Whether ci is being rotated is not known.");
    before.hit().await;
}
