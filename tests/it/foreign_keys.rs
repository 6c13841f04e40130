//! Keys of other makers: let in by their digests, by a real controller and a real verifier.

use std::time::Instant;

use keywright_core::api::{ApiKey, Reason};
use keywright_core::key::Digest;
use kube::ResourceExt;
use rand::TryRng;
use rand::rngs::SysRng;
use serde_json::json;

use super::overload::{check_over_grpc, count};
use super::scene::{INSIDE, OUTSIDE, Scene};
use super::verifier::get;
use keywright_testing::{Installation, output, wait};

/// A random key in the style of many makers: a start that tells the maker, and hexadecimal digits.
fn make_key(start: &str) -> String {
    let mut random = [0; 16];
    SysRng.try_fill_bytes(&mut random).unwrap();
    random.iter().fold(start.to_owned(), |key, byte| format!("{key}{byte:02x}"))
}

fn digest(key: &str) -> String {
    Digest::of(key.as_bytes()).to_string()
}

/// With a verifier that logs every decision, and notes uses at once.
async fn scene(test_name: &str) -> Scene {
    let installation = Installation::new(test_name).await;
    let verifier = installation.program("verifier").argument("--log-filter=debug");
    let verifier = verifier.argument("--last-used-granularity=1s").start().await;
    verifier.ready().await;
    let mut scene = Scene { verifier, controller: None, installation };
    scene.start_controller(&[]).await;
    scene
}

/// What the verifier says over HTTP to a key in `X-API-Key`: the status and the whole answer.
async fn ask(scene: &Scene, key: &str) -> (u16, String) {
    get(scene.verifier.address("http"), "/verify", key).await
}

/// Asks with this key until it is denied for this reason.
async fn is_denied_as(scene: &Scene, key: &str, reason: &str) {
    let started = Instant::now();
    loop {
        let before = count(&scene.verifier, "deny", reason, "http").await;
        let (status, answer) = ask(scene, key).await;
        if status == 401 && count(&scene.verifier, "deny", reason, "http").await == before + 1 {
            return;
        }
        assert!(started.elapsed() < wait::DEADLINE, "not denied as {reason}: {answer}");
    }
}

/// Nothing that was printed holds more than what any key of this maker begins with.
fn assert_unprinted(printed: &str, key: &str, start: &str) {
    assert!(!printed.contains(&key[..start.len() + 6]), "{printed}");
}

#[tokio::test]
async fn a_key_of_any_format_is_let_in_for_as_long_as_its_apikey_is_there() {
    let mut scene = scene("foreign").await;
    let key = make_key("ghp_");
    scene.declare("generated", json!({})).await;
    let generated = scene.key("generated", 1).await;
    scene.answers(&generated, INSIDE, 200).await;
    is_denied_as(&scene, &key, "malformed").await;

    scene.declare("ci", json!({"keyHash": digest(&key), "owner": "ada"})).await;
    let shown = &digest(&key)[..19];
    let active = scene.reason("ci", Reason::Active).await;
    assert_eq!(active.status.unwrap().key_prefix.as_deref(), Some(shown));
    let get_it = ["get", "apikeys", "--namespace", &scene.installation.tenant_namespace];
    let printed = output(&mut scene.installation.control_plane.kubectl(get_it)).unwrap();
    assert!(printed.lines().any(|line| line.starts_with("ci ") && line.contains(shown)), "{printed}");

    scene.answers(&key, INSIDE, 200).await;
    for answer in [ask(&scene, &key).await.1, scene.ask(&key, INSIDE, "/verify").await.head] {
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("x-keywright-key: {shown}")),
            "{answer}"
        );
        assert!(answer.contains("x-keywright-name: ci"), "{answer}");
    }
    for (header, value) in [("x-api-key", key.clone()), ("authorization", format!("Bearer {key}"))] {
        let (is_allowed, answer) = check_over_grpc(&scene.verifier, header, &value).await;
        assert!(is_allowed && answer.contains(shown) && answer.contains(header), "{answer}");
    }
    scene.answers(&generated, INSIDE, 200).await;
    let stranger = make_key("ghp_");
    is_denied_as(&scene, &stranger, "unknown").await;
    is_denied_as(&scene, &generated[..54], "malformed").await;

    let record = scene.record(&key).await.name_any();
    scene.delete("ci").await;
    is_denied_as(&scene, &key, "revoked").await;
    let (is_allowed, _) = check_over_grpc(&scene.verifier, "x-api-key", &key).await;
    assert!(!is_allowed);
    scene.kill_controller().await;
    scene.start_controller(&["--tombstone-retention=0s", "--resync=1s"]).await;
    wait::for_absence(&scene.records(), &record).await;
    is_denied_as(&scene, &key, "malformed").await;
    scene.answers(&generated, INSIDE, 200).await;

    let said = scene.verifier.printed();
    let allowed = said.lines().filter(|line| line.contains("\"allowed\"") && line.contains(shown)).count();
    assert!(allowed >= 4, "{said}");
    assert!(said.lines().any(|line| line.contains("\"revoked\"") && line.contains(shown)), "{said}");
    assert!(!said.contains(&digest(&stranger)[..19]), "nothing is shown of what nobody has declared: {said}");
    assert_unprinted(&said, &key, "ghp_");
    assert_unprinted(&said, &stranger, "ghp_");
    assert_unprinted(&scene.controller.as_ref().unwrap().printed(), &key, "ghp_");
}

#[tokio::test]
async fn a_key_that_is_no_b64token_is_let_in_by_x_api_key_alone() {
    let scene = scene("foreign-marks").await;
    let key = make_key("sk!#$%&'()*+-./:;<=>?@[]^_`{|}~");
    scene.declare("marks", json!({"keyHash": digest(&key)})).await;
    scene.reason("marks", Reason::Active).await;
    let started = Instant::now();
    while ask(&scene, &key).await.0 != 200 {
        assert!(started.elapsed() < wait::DEADLINE, "not let in");
    }
    assert!(check_over_grpc(&scene.verifier, "x-api-key", &key).await.0);
    let before = count(&scene.verifier, "deny", "malformed", "http").await;
    assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 401);
    assert_eq!(count(&scene.verifier, "deny", "malformed", "http").await, before + 1);
    assert!(!check_over_grpc(&scene.verifier, "authorization", &format!("Bearer {key}")).await.0);
    assert_unprinted(&scene.verifier.printed(), &key, "sk!#$%&'()*+-./:;<=>?@[]^_`{|}~");
}

#[tokio::test]
async fn what_an_apikey_says_of_its_key_holds_for_a_foreign_one_too() {
    let scene = scene("foreign-terms").await;
    let key = make_key("live_");
    let spec = json!({"keyHash": digest(&key), "allowedIPs": ["192.0.2.0/24"], "scopes": ["orders:read"]});
    scene.declare("shop", spec.clone()).await;
    scene.reason("shop", Reason::Active).await;
    scene.answers(&key, INSIDE, 200).await;
    scene.answers(&key, OUTSIDE, 403).await;
    for (target, status) in [
        ("/verify?scope=orders:read", 200),
        ("/verify?scope=orders:write", 403),
        ("/verify?namespace=elsewhere", 403),
        (&format!("/verify?namespace={}", scene.installation.tenant_namespace), 200),
    ] {
        assert_eq!(scene.ask(&key, INSIDE, target).await.status, status, "{target}");
    }
    let is_used = |api_key: &ApiKey| api_key.status.as_ref().is_some_and(|status| status.last_used_at.is_some());
    wait::for_object(&scene.api_keys(), "shop", is_used).await;

    for (closed, reason, open) in [
        (json!({"suspended": true}), "suspended", json!({"suspended": null})),
        (json!({"expiresAt": "2026-01-01T00:00:00Z"}), "expired", json!({"expiresAt": null})),
    ] {
        scene.edit("shop", closed).await;
        is_denied_as(&scene, &key, reason).await;
        scene.edit("shop", open).await;
        scene.answers(&key, INSIDE, 200).await;
    }

    scene.delete("shop").await;
    is_denied_as(&scene, &key, "revoked").await;
    scene.declare("shop", spec).await;
    scene.reason("shop", Reason::DigestRevoked).await;
    is_denied_as(&scene, &key, "revoked").await;
    assert_unprinted(&scene.verifier.printed(), &key, "live_");
    assert_unprinted(&scene.controller.as_ref().unwrap().printed(), &key, "live_");
}
