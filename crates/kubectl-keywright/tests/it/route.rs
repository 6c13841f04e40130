//! What a route demands, and whom the verifier takes for the client.

use super::person::{Scene, keywright_role};
use keywright_testing::wait;

#[tokio::test]
async fn a_canary_tells_what_the_verifier_saw_and_goes() {
    let scene = Scene::new("route", &[keywright_role("keywright-admin")]).await;
    // By default the verifier trusts the one entry that the nearest proxy has written.
    let verifier = scene.installation.program("verifier").argument("--http-client-ip=peer").start().await;
    verifier.ready().await;
    let url = format!("http://{}/verify", verifier.address("http"));
    let ran = scene.run(&format!("check-route {url}")).await.exits(0);
    let ran = ran.prints("without a key   refused (401)").prints("with the canary let in (HTTP 200)");
    let ran = ran.prints("scope           none is demanded");
    ran.prints("address         127.0.0.1 is what the verifier sees as the client");

    let demanding = format!("{url}?scope=read&namespace={}", scene.namespace());
    scene.run(&format!("check-route {demanding}")).await.exits(0).prints("the route demands another scope");
    let ran = scene.run(&format!("check-route {demanding} --scope read,write --bearer")).await.exits(0);
    ran.prints("scope           read is demanded").prints("is accepted");
    let elsewhere = scene.run(&format!("check-route {url}?namespace=elsewhere")).await.exits(0);
    elsewhere.prints("the route accepts other namespaces");
    let unresolved = format!("http://{}/verify", scene.verifier.address("http"));
    scene.run(&format!("check-route {unresolved}")).await.exits(0).prints("the verifier cannot tell the client's");

    let unasked = format!("http://{}/readyz", verifier.address("admin"));
    scene.run(&format!("check-route {unasked}")).await.exits(1).says("Nothing on this route asks for a key");
    scene.run("check-route nonsense").await.exits(2).says("Write the URL as");
    wait::until("every canary is gone", async || {
        scene.api_keys().list(&Default::default()).await.unwrap().items.is_empty()
    })
    .await;
}
