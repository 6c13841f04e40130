//! A missing right costs one line, and never more than it must.

use super::person::{Scene, keywright_role};

#[tokio::test]
async fn somebody_with_the_tenant_role_alone_can_do_all_but_read_secrets() {
    let scene = Scene::new("admin", &[keywright_role("keywright-admin")]).await;
    let place = scene.namespace();
    let ran = scene.run("create ci --print").await.exits(2);
    ran.says(&format!("You may not read Secrets in {place}: add --local or --no-print."));
    assert!(scene.api_keys().get_opt("ci").await.unwrap().is_none(), "nothing was made");
    scene.run("create ci --no-print --expires 1d").await.exits(0).says("The key is in Secret ci");
    scene.run("list").await.exits(0).prints("NAME").prints("ci").prints("Active");
    let described = scene.run("describe ci").await.exits(0).prints("Active: callers are let in");
    let described = described.prints(&format!("Events    not shown: you may not list events in {place}"));
    described.prints("Verifiers not shown: you may not list leases in").prints("every verifier enforces generation 1");
    scene.run("rotate ci --wait").await.exits(0).prints("is in Secret ci");
    let ran = scene.run("revoke ci --yes").await.exits(0).prints("No verifier accepts it any more.");
    ran.says("Workloads may be missing here: you may not list deployments");
}

#[tokio::test]
async fn each_refusal_says_which_right_is_missing() {
    let scene = Scene::new("view", &[keywright_role("keywright-view")]).await;
    let (place, who) = (scene.namespace().to_owned(), format!("system:serviceaccount:{}:ann", scene.namespace()));
    scene.declare("ci", serde_json::json!({"expiresIn": "1d"})).await;
    scene.run("list").await.exits(0).prints("ci");
    let may_not = |verb: &str| format!("{who} may not {verb} apikeys in {place} on ");
    let remedy = "Ask for keywright-admin.";
    scene.run("create cd --local --print").await.exits(1).says(&may_not("create")).says(remedy);
    scene.run("rotate ci").await.exits(1).says(&may_not("patch")).says(remedy);
    scene.run("revoke ci --yes").await.exits(1).says(&may_not("delete")).says("Nothing was revoked.");
    scene.run("list -n default").await.exits(1).says("may not list apikeys in default").says("Ask for keywright-view.");
    scene.run("list -A").await.exits(1).says("may not list apikeys in all namespaces");
    scene.run("describe none").await.exits(1).says(&format!("There is no ApiKey none in {place}"));
}

#[tokio::test]
async fn none_and_unreachable_and_unknown_to_the_cluster_differ() {
    let scene = Scene::new("none", &[keywright_role("keywright-view")]).await;
    let ran = scene.run("list").await.exits(0).says(&format!("No API keys in {}.", scene.namespace()));
    assert_eq!(ran.output, "");
    let nobody = scene.installation.control_plane.write_kubeconfig(Some("void"), None);
    scene.run(&format!("list --kubeconfig {}", nobody.display())).await.exits(1).says("does not know you");
    let elsewhere = scene.installation.control_plane.write_kubeconfig(None, Some("http://127.0.0.1:9"));
    scene.run(&format!("list --kubeconfig {}", elsewhere.display())).await.exits(1).says("is unreachable");
    scene.run("list --kubeconfig /nonexistent/kubeconfig").await.exits(2).says("The kubeconfig cannot be used");
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_taken_unless_it_is_excepted() {
    let scene = Scene::new("proxy", &[keywright_role("keywright-view")]).await;
    let proxy = ("HTTPS_PROXY", "http://127.0.0.1:9");
    scene.run_in(&[proxy], "list").await.exits(1).says("is unreachable");
    scene.run_in(&[proxy, ("NO_PROXY", "example.org,127.0.0.0/8")], "list").await.exits(0).says("No API keys in ");
}
