//! What a route demands, and whom the verifier takes for the client.

use std::future;
use std::net::SocketAddr;
use std::process::Stdio;

use keywright_testing::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::person::{Scene, keywright_role};

#[tokio::test]
async fn a_canary_tells_what_the_verifier_saw_and_goes() {
    let scene = Scene::new("route", &[keywright_role("keywright-admin")]).await;
    // By default the verifier trusts the one entry that the nearest proxy has written.
    let verifier = scene.installation.program("verifier").argument("--http-client-ip=peer").start().await;
    verifier.ready().await;
    let url = format!("http://{}/verify", verifier.address("http"));
    let ran = scene.run(&format!("check-route {url}")).await.exits(0);
    let ran = ran.prints("without a key   refused (401)").prints("with the canary let in (HTTP 200)");
    let ran = ran.prints("from elsewhere  refused (403): not from this address");
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

#[tokio::test]
async fn a_route_that_asks_no_verifier_is_found_out() {
    let scene = Scene::new("unasked", &[keywright_role("keywright-admin")]).await;
    let credulous = route(|has_key| Some(if has_key { "200 OK" } else { "401 Unauthorized" })).await;
    let silent = route(|_| None).await;
    let moved = route(|_| Some("302 Found")).await;
    let failing = route(|has_key| Some(if has_key { "502 Bad Gateway" } else { "401 Unauthorized" })).await;
    let ((), (), ()) = tokio::join!(
        async {
            let ran = scene.run(&format!("check-route http://{credulous}/")).await.exits(1);
            let ran = ran.prints("from elsewhere  let in (HTTP 200)").says("this route asks no verifier");
            assert!(!ran.output.contains("is accepted") && !ran.output.contains("address"), "{ran:?}");
        },
        async {
            scene.run(&format!("check-route http://{silent}/")).await.exits(1).says("no answer in 10 s");
        },
        async {
            scene.run(&format!("check-route http://{moved}/")).await.exits(1).says("give the address that it leads to");
            scene
                .run(&format!("check-route http://{failing}/"))
                .await
                .exits(1)
                .says("with the canary: try again later");
        },
    );
    assert!(scene.api_keys().list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_canary_goes_when_the_program_is_ended() {
    let scene = Scene::new("ended", &[keywright_role("keywright-admin")]).await;
    let slow = route(|has_key| (!has_key).then_some("401 Unauthorized")).await;
    for signal in ["TERM", "INT", "HUP"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-keywright"));
        command.arg("check-route").arg(format!("http://{slow}/")).env("KUBECONFIG", scene.kubeconfig());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let canaries = async || scene.api_keys().list(&Default::default()).await.unwrap().items.len();
        wait::until("there is a canary", async || canaries().await == 1).await;
        let process = child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-s", signal, &process]).status().await.unwrap().success());
        let ended = child.wait_with_output().await.unwrap();
        assert_eq!(ended.status.code(), Some(130), "{signal} {ended:?}");
        wait::until("the canary is gone", async || canaries().await == 0).await;
    }
}

/// A route that answers as it likes, or never.
async fn route(answer: fn(bool) -> Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(respond(connection, answer));
        }
    });
    address
}

async fn respond(mut connection: TcpStream, answer: fn(bool) -> Option<&'static str>) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(connection.read_u8().await.unwrap());
    }
    let has_key = String::from_utf8(request).unwrap().to_lowercase().contains("x-api-key:");
    let Some(status) = answer(has_key) else { return future::pending().await };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    connection.write_all(answer.as_bytes()).await.unwrap();
}
