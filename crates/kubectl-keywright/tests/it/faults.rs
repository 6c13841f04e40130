//! What a person hears when the way to the API server is bad.

use std::time::Duration;

use keywright_core::key::Digest;
use keywright_testing::{Fault, FaultProxy, Occurrence, Outcome, wait};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

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
    let ran = scene
        .run(&create("lost"))
        .await
        .exits(1)
        .says("is unreachable")
        .says("lost on testbed was created is not known. If it was, revoke it");
    before.hit().await;
    assert_eq!(ran.output, "");
    assert!(scene.api_keys().get_opt("lost").await.unwrap().is_none());
}

#[tokio::test]
async fn a_key_that_was_made_here_stays_in_its_file_while_nobody_knows() {
    let scene = Scene::new("unknown", &[keywright_role("keywright-admin")]).await;
    let faults = FaultProxy::start(scene.installation.control_plane).await;
    let kubeconfig = scene.kubeconfig_through(&faults);
    let file = scene.installation.control_plane.folder().join("unknown.key");
    let line = format!(
        "create ci --local --expires 1d --output-file {} --kubeconfig {}",
        file.display(),
        kubeconfig.display()
    );
    let hang = faults.inject(Fault::After(Outcome::Hang), Occurrence::Every, |request| request.is("POST", "apikeys"));
    let ran = scene.at_terminal(&line, 120, &[("Asking testbed...", "\u{3}")]).await.exits(130);
    ran.prints("ci on testbed was created is not known. If it was, its key is in ");
    hang.hit().await;
    let stored = scene.api_keys().get("ci").await.unwrap().spec.key_hash;
    assert_eq!(stored, Some(Digest::of(&std::fs::read(&file).unwrap()).to_string()));
}

#[tokio::test]
async fn ctrl_c_is_heard_while_a_secret_is_asked_for() {
    let scene = Scene::of_admin("fetched").await;
    let faults = FaultProxy::start(scene.installation.control_plane).await;
    let kubeconfig = scene.kubeconfig_through(&faults);
    let hang = faults.inject(Fault::Before(Outcome::Hang), Occurrence::Every, |request| request.is("GET", "secrets"));
    let line = format!("create ci --expires 1d --kubeconfig {}", kubeconfig.display());
    let ran = scene.at_terminal(&line, 120, &[("known to every verifier", "\u{3}")]).await.exits(130);
    ran.prints("The key is in Secret ci, entry api-key.");
    hang.hit().await;
    hang.lift();

    let file = scene.installation.control_plane.folder().join("fetched.key");
    let hang = faults.inject(Fault::Before(Outcome::Hang), Occurrence::Every, |request| {
        request.is("POST", "selfsubjectaccessreviews")
    });
    let line = format!("create cd --output-file {} --kubeconfig {}", file.display(), kubeconfig.display());
    let ran = scene.at_terminal(&line, 120, &[("Asking testbed...", "\u{3}")]).await.exits(130);
    ran.prints("Nothing was created.");
    hang.hit().await;
    assert!(!file.exists(), "an empty file would be in the way of the next try");
}

#[tokio::test]
async fn ctrl_c_is_heard_while_a_rotation_is_asked_for() {
    let scene = Scene::of_admin("asked").await;
    scene.declare("ci", json!({"expiresIn": "1d"})).await;
    let faults = FaultProxy::start(scene.installation.control_plane).await;
    let line = format!("rotate ci --kubeconfig {}", scene.kubeconfig_through(&faults).display());
    let hang = faults.inject(Fault::After(Outcome::Hang), Occurrence::Every, |request| request.is("PATCH", "apikeys"));
    let ran = scene.at_terminal(&line, 120, &[("Asking testbed...", "\u{3}")]).await.exits(130);
    ran.prints("Whether ci is being rotated is not known.");
    hang.hit().await;
}

#[tokio::test]
async fn a_deletion_whose_answer_is_lost_is_looked_up() {
    let scene = Scene::new("deletion", &[keywright_role("keywright-admin")]).await;
    for name in ["a", "b", "c", "d", "e"] {
        scene.declare(name, json!({"expiresIn": "1d"})).await;
    }
    let faults = FaultProxy::start(scene.installation.control_plane).await;
    let kubeconfig = scene.kubeconfig_through(&faults);
    let revoke = |names: &str| format!("revoke {names} --yes --kubeconfig {}", kubeconfig.display());

    let after =
        faults.inject(Fault::After(Outcome::Reset), Occurrence::Nth(1), |request| request.is("DELETE", "apikeys"));
    scene.run(&revoke("a")).await.exits(0).prints("No verifier accepts it any more.");
    after.hit().await;

    let before = faults
        .inject(Fault::Before(Outcome::Reset), Occurrence::Every, |request| request.is_about("DELETE", "apikeys", "c"));
    let ran = scene.run(&revoke("b c d e")).await.exits(1).says("Whether c is being revoked is not known");
    ran.says("1 before it is being revoked. Not reached, and not revoked: d, e.");
    before.hit().await;
    before.lift();
    wait::for_absence(&scene.api_keys(), "b").await;
    assert!(scene.api_keys().get_opt("d").await.unwrap().is_some());

    let hang =
        faults.inject(Fault::Before(Outcome::Hang), Occurrence::Every, |request| request.is("DELETE", "apikeys"));
    let ran = scene.at_terminal(&revoke("d e"), 200, &[("Revoking 0 of 2...", "\u{3}")]).await.exits(130);
    ran.prints("Whether d is being revoked is not known").prints("Not reached, and not revoked: e.");
    hang.hit().await;
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

#[tokio::test]
async fn a_server_that_takes_no_connection_is_given_up() {
    let scene = Scene::new("full", &[keywright_role("keywright-view")]).await;
    let (full, _waiting) = full().await;
    let mut kubeconfig: Value = serde_yaml::from_str(&std::fs::read_to_string(scene.kubeconfig()).unwrap()).unwrap();
    kubeconfig["clusters"][0]["cluster"] = json!({"server": format!("http://{}", full.local_addr().unwrap())});
    let kubeconfig = scene.installation.control_plane.write_private("full.kubeconfig", &kubeconfig.to_string());
    scene.run(&format!("list --kubeconfig {}", kubeconfig.display())).await.exits(1).says("is unreachable");
}

/// A place that neither takes connections nor refuses them, as behind a firewall: its queue is full.
async fn full() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(connection) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        waiting.push(connection.unwrap());
    }
    (listener, waiting)
}
