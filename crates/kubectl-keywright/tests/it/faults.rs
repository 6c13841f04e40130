//! What a person hears when the way to the API server is bad.

use std::time::Duration;

use keywright_core::key::Digest;
use keywright_testing::{Fault, FaultProxy, Occurrence, Outcome};

use super::person::{INSIDE, Scene, keywright_role};

#[tokio::test]
async fn a_lost_answer_loses_no_key_and_a_lost_request_makes_none() {
    let scene = Scene::new("lost", &[keywright_role("keywright-admin")]).await;
    let faults = FaultProxy::start(scene.installation.control_plane).await;
    let kubeconfig = scene.kubeconfig_through(&faults);
    let create = |name: &str| format!("create {name} --local --print --kubeconfig {}", kubeconfig.display());

    let after =
        faults.inject(Fault::After(Outcome::Reset), Occurrence::Nth(1), |request| request.is("POST", "apikeys"));
    let ran = scene.run(&create("stored")).await.exits(0).says("known to every verifier");
    after.hit().await;
    let stored = scene.api_keys().get("stored").await.unwrap().spec.key_hash;
    assert_eq!(stored, Some(Digest::of(ran.output.as_bytes()).to_string()));
    assert_eq!(scene.ask(&ran.output, INSIDE).await, 200);

    let before =
        faults.inject(Fault::Before(Outcome::Reset), Occurrence::Nth(1), |request| request.is("POST", "apikeys"));
    let ran =
        scene.run(&create("lost")).await.exits(1).says("is unreachable").says("Whether lost was created is not known.");
    before.hit().await;
    assert_eq!(ran.output, "");
    assert!(scene.api_keys().get_opt("lost").await.unwrap().is_none());
}

#[tokio::test]
async fn a_slow_answer_costs_a_word() {
    let scene = Scene::new("slow", &[keywright_role("keywright-view")]).await;
    let faults = FaultProxy::start(scene.installation.control_plane).await;
    let kubeconfig = scene.kubeconfig_through(&faults);
    let delay = Fault::Delay(Duration::from_millis(500));
    let slow = faults.inject(delay, Occurrence::Every, |request| request.is("GET", "apikeys"));
    scene.run(&format!("list --kubeconfig {}", kubeconfig.display())).await.exits(0).says("Asking testbed...");
    slow.hit().await;
}
