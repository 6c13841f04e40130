//! A key is revoked by who means it, at once and for good.

use std::time::Duration;

use serde_json::json;

use super::person::{INSIDE, Scene, keywright_role, secret_reader};
use keywright_testing::wait;

#[tokio::test]
async fn a_revoked_key_is_refused_when_the_command_returns() {
    let scene = Scene::of_admin("revoke").await;
    scene.declare("ci", json!({"expiresIn": "1d"})).await;
    let key = scene.delivered("ci").await;
    assert_eq!(scene.ask(&key, INSIDE).await, 200);
    for nothing in ["exec \"$@\" -n ''", "exec \"$@\" -l ''", "exec \"$@\" --owner ''"] {
        let line = if nothing.contains("-n ") { "revoke ci --yes" } else { "revoke --yes" };
        scene.run_by_shell(nothing, line).await.exits(2);
    }
    scene.run("revoke ci").await.exits(2).says("Add --yes to revoke unasked. Nothing was revoked.");
    assert_eq!(scene.ask(&key, INSIDE).await, 200);
    scene.run("revoke ci --yes").await.exits(0).prints("Revoked in ").prints("No verifier accepts it any more.");
    assert_eq!(scene.ask(&key, INSIDE).await, 401, "at once");
    assert!(scene.api_keys().get_opt("ci").await.unwrap().is_none());
    scene.run("revoke ci --yes").await.exits(1).says("There is no ApiKey ci");
}

#[tokio::test]
async fn a_key_in_use_goes_by_its_name_and_an_idle_one_by_a_yes() {
    let list =
        |group: &str, resources: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": ["list"]});
    let rights = [
        keywright_role("keywright-admin"),
        secret_reader(),
        list("apps", &["deployments", "statefulsets", "daemonsets"]),
        list("batch", &["cronjobs", "jobs"]),
        list("", &["pods"]),
    ];
    let scene = Scene::new("question", &rights).await;
    scene.declare("ci", json!({"expiresIn": "1d"})).await;
    let labels = json!({"app": "runner"});
    let pod = json!({
        "metadata": {"labels": labels},
        "spec": {
            "containers": [{"name": "c", "image": "x"}],
            "volumes": [{"name": "key", "secret": {"secretName": "ci"}}],
        },
    });
    let metadata = json!({"name": "runner", "namespace": scene.namespace()});
    let spec = json!({"replicas": 0, "selector": {"matchLabels": labels}, "template": pod});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec});
    scene.installation.apply(&[deployment]).unwrap();

    let yes_or_no = "Revoke ci? [y/N] ";
    for answer in ["\r", "n\r", "ci\r", "\u{4}"] {
        let ran = scene.at_terminal("revoke ci", 120, &[(yes_or_no, answer)]).await.exits(1);
        ran.prints("never used, mounted by Deployment runner.").prints("Nothing was revoked.");
    }
    let key = scene.delivered("ci").await;
    assert_eq!(scene.ask(&key, INSIDE).await, 200);
    wait::for_object(&scene.api_keys(), "ci", |key: &keywright_core::api::ApiKey| {
        key.status.as_ref().is_some_and(|status| status.last_used_at.is_some())
    })
    .await;
    let by_name = "Type ci to revoke: ";
    for answer in ["y\r", "\r", "Ci\r"] {
        let ran = scene.at_terminal("revoke ci", 120, &[(by_name, answer)]).await.exits(1);
        ran.prints("used just now, mounted by Deployment runner.").prints("Nothing was revoked.");
    }
    assert_eq!(scene.ask(&key, INSIDE).await, 200);
    let ran = scene.at_terminal("revoke ci", 120, &[(by_name, "ci\r")]).await.exits(0);
    ran.prints("Revoked in ");
    assert_eq!(scene.ask(&key, INSIDE).await, 401);
}

#[tokio::test]
async fn many_are_listed_and_go_by_their_number() {
    let scene = Scene::of_admin("many").await;
    for name in ["a", "b", "c"] {
        scene.declare(name, json!({"owner": if name == "c" { "bob@x" } else { "ann@x" }})).await;
    }
    let question = "Type 2 to revoke 2 keys: ";
    let ran = scene.at_terminal("revoke --owner ann@x", 120, &[(question, "3\r")]).await.exits(1);
    ran.prints("a in ").prints("b in ").prints("Nothing was revoked.");
    let ran = scene.at_terminal("revoke --owner ann@x", 120, &[(question, "2\r")]).await.exits(0);
    ran.prints("Revoked 2 keys in ");
    let left: Vec<_> = scene.api_keys().list(&Default::default()).await.unwrap().into_iter().collect();
    assert_eq!(left.iter().filter_map(|key| key.metadata.name.as_deref()).collect::<Vec<_>>(), ["c"]);
    scene.run("revoke --owner ann@x --yes").await.exits(0).says("No API key in ");
}

#[tokio::test]
async fn a_revocation_that_waits_says_for_whom_and_goes_on_without_us() {
    let scene = Scene::of_admin("fence").await;
    scene.declare("ci", json!({"expiresIn": "1d"})).await;
    scene.declare("cd", json!({"expiresIn": "1d"})).await;
    scene.verifier.signal("STOP");
    let ran = scene.run("revoke ci --yes --timeout 4s").await;
    scene.verifier.signal("CONT");
    let ran = ran.exits(3).says("Waiting for keywright-verifier-").says(" at most...");
    ran.says("Still being revoked; cannot be undone.");
    wait::for_absence(&scene.api_keys(), "ci").await;

    scene.verifier.signal("STOP");
    let ran = scene.at_terminal("revoke cd --yes", 120, &[("Waiting for keywright-verifier-", "\u{3}")]).await;
    scene.verifier.signal("CONT");
    ran.exits(130).prints("Still being revoked; cannot be undone.");
    wait::for_absence(&scene.api_keys(), "cd").await;
    tokio::time::timeout(Duration::from_secs(5), scene.run("list")).await.unwrap().exits(0);
}
