//! From a key to whose it is, and to why it is refused; and the key is seen nowhere.

use keywright_core::key::Digest;
use keywright_testing::wait;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::person::{INSIDE, OUTSIDE, Scene, keywright_role};

#[tokio::test]
async fn a_leaked_key_leads_to_its_apikey_and_is_not_echoed() {
    let scene = Scene::new("whose", &[keywright_role("keywright-admin")]).await;
    scene.declare("ci", json!({"owner": "ann@x", "expiresIn": "1d"})).await;
    let key = scene.delivered("ci").await;
    let line = format!("{}/ci, owner ann@x, Active, never used (by prefix)", scene.namespace());
    let missing = format!("Not by digest: you may not list apikeyrecords in {}.", scene.installation.system_namespace);
    let command = format!("whose --system-namespace {}", scene.installation.system_namespace);
    let ran = scene.run_with(&command, &format!("{key}\n")).await.exits(0).prints(&line).says(&missing);
    assert!(!format!("{ran:?}").contains(&key));
    let answers = [("Key or digest (not echoed): ", &*format!("{key}\r"))];
    let ran = scene.at_terminal(&command, 120, &answers).await.exits(0).prints(&line);
    assert!(!ran.output.contains(&key), "a terminal shows no key that is typed into it");

    // The terminal has its echo again afterwards, as `at_terminal` checks.
    for end in ["\u{3}", "\0TERM", "\0INT", "\0HUP"] {
        let interrupted = [("Key or digest (not echoed): ", end)];
        let ran = scene.at_terminal(&command, 120, &interrupted).await.exits(130);
        ran.prints("Interrupted. Nothing was looked up.");
    }

    let made = scene.run("create laptop --local --print").await.exits(0).output;
    let digest = Digest::of(made.as_bytes()).to_string();
    for input in [&made, &digest] {
        scene.run_with("whose", input).await.exits(0).prints("/laptop").prints("(by keyHash)");
    }
    scene.run_with("whose", &Digest::of(b"nobody's").to_string()).await.exits(1).says("No ApiKey has it.");
    let ran = scene.run_with("whose", "keyw1_mistyped").await.exits(2).says("neither a digest nor a key");
    assert!(!ran.said.contains("mistyped"));
}

#[tokio::test]
async fn records_are_searched_by_who_may_read_them() {
    let scene = Scene::of_admin("records").await;
    scene.declare("ci", json!({"expiresIn": "1d"})).await;
    let key = scene.delivered("ci").await;
    let system = scene.installation.system_namespace.clone();
    let_read_records(&scene);
    let command = format!("whose --system-namespace {system}");
    let digest = Digest::of(key.as_bytes()).to_string();
    scene.run_with(&command, &digest).await.exits(0).prints("/ci").prints("(by its record)");
    scene.run("revoke ci --yes").await.exits(0);
    scene.run_with(&command, &digest).await.exits(0).prints("/ci").prints("revoked just now");
    let explain = format!("explain --system-namespace {system}");
    scene.run_with(&explain, &key).await.exits(0).prints("refused: revoked\nrevoked yes\n");
}

#[tokio::test]
async fn an_explanation_is_what_the_verifier_decides() {
    let scene = Scene::of_admin("explain").await;
    scene.declare("ci", json!({"allowedIPs": ["192.0.2.0/24"], "scopes": ["read"], "expiresIn": "1d"})).await;
    let key = scene.delivered("ci").await;
    let doubt = format!(", if this is the key of {}/ci: only its prefix was compared", scene.namespace());
    for (from, status, verdict) in [(INSIDE, 200, "allowed"), (OUTSIDE, 403, "refused: address")] {
        assert_eq!(scene.ask(&key, from).await, status);
        for (name, input, doubt) in [("ci", "", ""), ("", &*key, &*doubt)] {
            let ran = scene.run_with(&format!("explain {name} --from {from}"), input).await.exits(0);
            assert_eq!(ran.output.lines().next(), Some(&*format!("{verdict}{doubt}")), "{ran:?}");
            let ran = ran.prints("revoked no, suspended no, expired no, address ");
            assert!(!format!("{ran:?}").contains(&key));
        }
    }
    scene.run(&format!("explain ci --from {INSIDE} --scope write")).await.exits(0).prints("refused: scope\n");
    scene.run("explain ci").await.exits(2).says("add --from ADDRESS");
    let suspend = Patch::Merge(json!({"spec": {"suspended": true}}));
    scene.api_keys().patch("ci", &PatchParams::default(), &suspend).await.unwrap();
    wait::for_object(&scene.api_keys(), "ci", |key: &keywright_core::api::ApiKey| {
        key.status.as_ref().is_some_and(|status| status.enforced_generation == key.metadata.generation)
    })
    .await;
    assert_eq!(scene.ask(&key, INSIDE).await, 401);
    scene
        .run(&format!("explain ci --from {INSIDE}"))
        .await
        .exits(0)
        .prints("refused: suspended\nrevoked no, suspended yes\n");
    scene.run_with(&format!("explain --from {INSIDE}"), "keyw1_x").await.exits(0).prints("refused: malformed\n");
}

#[tokio::test]
async fn a_key_that_only_begins_like_another_is_unknown() {
    let scene = Scene::of_admin("forged").await;
    scene.declare("ci", json!({"expiresIn": "1d"})).await;
    let key = scene.delivered("ci").await;
    let forged = forged(&key);
    let system = scene.installation.system_namespace.clone();
    let (name, command) = (format!("{}/ci", scene.namespace()), format!("--system-namespace {system}"));
    let doubt = format!("allowed, if this is the key of {name}: only its prefix was compared\n");
    assert_eq!((scene.ask(&key, INSIDE).await, scene.ask(&forged, INSIDE).await), (200, 401));
    for key in [&key, &forged] {
        scene.run_with(&format!("explain {command}"), key).await.exits(0).prints(&doubt).says("Not by digest");
    }

    let_read_records(&scene);
    scene.run_with(&format!("explain {command}"), &key).await.exits(0).prints("allowed\n");
    let ran = scene.run_with(&format!("explain {command}"), &forged).await.exits(0).prints("refused: unknown\n");
    let resembles = format!("It begins like the key of {name}, and is another. Searched: ");
    ran.says(&resembles);
    let ran = scene.run_with(&format!("whose {command}"), &forged).await.exits(1).says("No ApiKey has it. ");
    assert_eq!(ran.says(&resembles).output, "");

    // Records that are somewhere else prove nothing.
    let rights = json!([{"apiGroups": ["keywright.dev"], "resources": ["apikeyrecords"], "verbs": ["list"]}]);
    grant(&scene, scene.namespace(), &rights);
    let elsewhere = format!("--system-namespace {}", scene.namespace());
    let missing = format!("the records are not in {}", scene.namespace());
    scene.run_with(&format!("explain {elsewhere}"), &key).await.exits(0).prints(&doubt).says(&missing);
    scene.run_with(&format!("whose {elsewhere}"), &key).await.exits(0).prints("(by prefix)").says(&missing);
}

/// Lets the person list the records.
fn let_read_records(scene: &Scene) {
    let rules = json!([{"apiGroups": ["keywright.dev"], "resources": ["apikeyrecords"], "verbs": ["list"]}]);
    grant(scene, &scene.installation.system_namespace, &rules);
}

fn grant(scene: &Scene, namespace: &str, rules: &Value) {
    let metadata = json!({"name": "reads-records", "namespace": namespace});
    let group = "rbac.authorization.k8s.io";
    scene
        .installation
        .apply(&[
            json!({"apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": metadata, "rules": rules}),
            json!({
                "apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": metadata,
                "roleRef": {"apiGroup": group, "kind": "Role", "name": "reads-records"},
                "subjects": [{"kind": "ServiceAccount", "name": "ann", "namespace": scene.namespace()}],
            }),
        ])
        .unwrap();
}

/// A well-formed key that begins like this one.
fn forged(key: &str) -> String {
    const SYMBOLS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let covered = format!("{}{}", &key[..14], "A".repeat(35));
    // CRC-32/ISO-HDLC.
    let mut checksum = covered.bytes().fold(u32::MAX, |crc, octet| {
        (0..8).fold(crc ^ u32::from(octet), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    }) ^ u32::MAX;
    let mut symbols = [b'0'; 6];
    for symbol in symbols.iter_mut().rev() {
        *symbol = SYMBOLS[(checksum % 62) as usize];
        checksum /= 62;
    }
    format!("{covered}{}", String::from_utf8_lossy(&symbols))
}
