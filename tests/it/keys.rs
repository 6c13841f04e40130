//! A key's life on the real API server, told through what its users notice.

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::api::events::v1::Event;
use keywright_core::api::{ApiKey, ConditionStatus, ConditionType, Reason};
use keywright_core::key::{Digest, Key, Presented};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::scene::{INSIDE, OUTSIDE, Scene, api_key, is};
use keywright_testing::{Installation, output, wait};

#[tokio::test]
async fn a_declared_key_is_handed_out_recognised_and_enforced() {
    let scene = Scene::new("issue").await;
    let spec = json!({"owner": "ada@example.org", "scopes": ["read", "write"], "allowedIPs": ["192.0.2.0/24"], "expiresIn": "90d"});
    scene.declare("ci", spec).await;
    let key = scene.key("ci", 1).await;

    let prefix = Presented::parse(key.as_bytes()).unwrap().prefix().unwrap().to_string();
    scene.answers(&key, INSIDE, 200).await;
    let allowed = scene.ask(&key, INSIDE, "/verify?namespace=elsewhere&scope=read").await;
    assert_eq!(allowed.status, 403, "the route asks for another namespace");
    let route = format!("/verify?namespace={}&scope=read", scene.installation.tenant_namespace);
    let allowed = scene.ask(&key, INSIDE, &route).await;
    for header in [
        format!("x-keywright-key: {prefix}"),
        format!("x-keywright-namespace: {}", scene.installation.tenant_namespace),
        "x-keywright-name: ci".to_owned(),
        "x-keywright-owner: ada@example.org".to_owned(),
        "x-keywright-scopes: read write".to_owned(),
        "cache-control: no-store".to_owned(),
    ] {
        assert!(allowed.head.contains(&header), "{header} is not in {}", allowed.head);
    }
    assert_eq!(scene.ask(&key, OUTSIDE, "/verify").await.status, 403);
    assert_eq!(scene.ask(&format!("{}000000", &key[..49]), INSIDE, "/verify").await.status, 401);

    let api_key = scene.check_in_force("ci").await;
    let status = api_key.status.unwrap();
    assert_eq!((status.serial, status.secret_name.as_deref()), (Some(1), Some("ci")));
    assert_eq!(status.observed_generation, api_key.metadata.generation);
    let secret = scene.secrets().get("ci").await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(secret.annotations()["keywright.dev/key-prefix"], prefix);
    assert_eq!(secret.annotations()["keywright.dev/serial"], "1");
    assert_eq!(secret.annotations()["keywright.dev/expires-at"], status.expires.unwrap());
    assert_eq!(secret.labels()["app.kubernetes.io/managed-by"], "keywright");
    let [owner] = secret.owner_references() else { panic!("one owner") };
    assert_eq!((owner.kind.as_str(), owner.controller), ("ApiKey", Some(true)));
    let record = scene.record(&key).await;
    assert!(record.owner_references().is_empty(), "the garbage collector deletes what a foreign namespace owns");
}

#[tokio::test]
async fn a_secret_is_named_as_declared_and_holds_the_key_and_nothing_else() {
    let scene = Scene::new("secret").await;
    let mut declared = api_key("ci", json!({"secret": {"name": "other", "key": "TOKEN"}, "expiresIn": "1d"}));
    declared.labels_mut().insert("team".to_owned(), "a".to_owned());
    declared.annotations_mut().insert("example.org/note".to_owned(), "to be kept apart".to_owned());
    scene.api_keys().create(&PostParams::default(), &declared).await.unwrap();
    scene.reason("ci", Reason::Active).await;
    let secret = scene.secrets().get("other").await.unwrap();
    let data = secret.data.clone().unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["TOKEN"]);
    let key = String::from_utf8(data["TOKEN"].0.clone()).unwrap();
    assert_eq!(key.len(), 55, "without a newline");
    scene.answers(&key, INSIDE, 200).await;
    assert_eq!(secret.labels().keys().collect::<Vec<_>>(), ["app.kubernetes.io/managed-by"]);
    let annotations = ["keywright.dev/expires-at", "keywright.dev/key-prefix", "keywright.dev/serial"];
    assert_eq!(secret.annotations().keys().collect::<Vec<_>>(), annotations);
    assert!(scene.secrets().get_opt("ci").await.unwrap().is_none());
}

#[tokio::test]
async fn issuing_takes_four_writes_and_a_restart_none() {
    let mut scene = Scene::new("writes").await;
    scene.declare("ci", json!({"expiresIn": "30d"})).await;
    scene.check_in_force("ci").await;
    let issue = ["patch apikeys", "create apikeyrecords", "create secrets", "update apikeys/status"];
    assert_eq!(scene.writes().await, issue);

    scene.kill_controller().await;
    scene.start_controller(&["--resync=1s"]).await;
    // Whatever the restart and the resync had to write comes before the answer to something new.
    scene.declare("another", json!({})).await;
    scene.check_in_force("another").await;
    // Both ApiKeys are due again, twice.
    let controller = scene.controller.as_ref().unwrap();
    let passes = async || {
        let metrics = controller.metrics().await;
        let count = metrics.lines().find_map(|line| line.strip_prefix("keywright_reconcile_duration_seconds_count "));
        count.unwrap().parse::<u32>().unwrap()
    };
    let before = passes().await;
    wait::until("four more passes", async || passes().await >= before + 4).await;
    assert_eq!(scene.writes().await, [issue, issue].concat());
}

#[tokio::test]
async fn the_key_is_in_its_secret_and_nowhere_else() {
    let scene = Scene::in_installation(Installation::new("secrecy").await, &["--log-filter=trace"]).await;
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    scene.secrets().delete("ci", &DeleteParams::default()).await.unwrap();
    touch(&scene, "ci").await;
    let second = scene.key("ci", 2).await;
    wait_for_event(&scene, "ci", "SecretRecreated").await;
    let system = &scene.installation.system_namespace;
    let tenant = &scene.installation.tenant_namespace;
    let mut told = scene.controller.as_ref().unwrap().printed() + &scene.verifier.printed();
    for (namespace, kinds) in [(tenant, "apikeys,events"), (system, "apikeyrecords,leases,secrets")] {
        let mut kubectl =
            scene.installation.control_plane.kubectl(["get", kinds, "--output=yaml", "--namespace", namespace]);
        told += &output(&mut kubectl).unwrap();
    }
    assert!(told.contains(&key[..14]), "the prefix is what people recognise a key by");
    for key in [key, second] {
        assert!(!told.contains(&key[..15]), "more than the prefix of a key was told");
        assert!(!told.contains(&key[14..]), "the secret part of a key was told");
    }
}

#[tokio::test]
async fn what_is_edited_is_enforced() {
    let scene = Scene::new("edits").await;
    scene.declare("ci", json!({"owner": "ada", "allowedIPs": ["192.0.2.0/24"]})).await;
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    scene.edit("ci", json!({"allowedIPs": ["198.51.100.0/24"]})).await;
    scene.answers(&key, INSIDE, 403).await;
    scene.answers(&key, OUTSIDE, 200).await;
    scene.edit("ci", json!({"allowedIPs": null, "scopes": ["read"], "owner": "grace"})).await;
    scene.answers(&key, INSIDE, 200).await;
    let record = scene.record(&key).await.name_any();
    wait::for_object(&scene.records(), &record, |record: &keywright_core::api::ApiKeyRecord| {
        record.spec.owner.as_deref() == Some("grace") && record.spec.scopes == ["read"]
    })
    .await;
    scene.edit("ci", json!({"suspended": true})).await;
    scene.answers(&key, INSIDE, 401).await;
    let suspended = scene.reason("ci", Reason::Suspended).await;
    assert_eq!(condition(&suspended, ConditionType::Ready), ConditionStatus::True, "suspended as declared");
    wait_for_event(&scene, "ci", "Suspended").await;
    scene.edit("ci", json!({"suspended": false})).await;
    scene.answers(&key, INSIDE, 200).await;
    let back = scene.check_in_force("ci").await;
    assert_eq!(back.status.unwrap().serial, Some(1), "no edit makes a new key");
}

#[tokio::test]
async fn an_expired_key_is_refused_shown_and_can_come_back() {
    let scene = Scene::new("expiry").await;
    let expires_at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(6);
    let expires_at = jiff::Timestamp::from_second(expires_at.as_second()).unwrap();
    scene.declare("brief", json!({"expiresAt": expires_at.to_string()})).await;
    let key = scene.key("brief", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    loop {
        let before = jiff::Timestamp::now();
        let status = scene.ask(&key, INSIDE, "/verify").await.status;
        let after = jiff::Timestamp::now();
        assert!(status != 200 || before < expires_at, "let in at {before}, expired at {expires_at}");
        assert!(status != 401 || after >= expires_at, "refused at {after}, expires at {expires_at}");
        if status == 401 {
            break;
        }
    }
    let expired = scene.reason("brief", Reason::Expired).await;
    assert_eq!(condition(&expired, ConditionType::Ready), ConditionStatus::True, "expired as declared");
    assert_eq!(condition(&expired, ConditionType::ExpiringSoon), ConditionStatus::False);
    for reason in ["Issued", "ExpiringSoon", "Expired"] {
        wait_for_event(&scene, "brief", reason).await;
    }
    scene.edit("brief", json!({"expiresAt": "2036-01-01T00:00:00Z"})).await;
    scene.answers(&key, INSIDE, 200).await;
    let back = scene.check_in_force("brief").await.status.unwrap();
    assert_eq!((back.serial, back.expires.as_deref()), (Some(1), Some("2036-01-01T00:00:00Z")));
    wait::for_object(&scene.secrets(), "brief", |secret: &k8s_openapi::api::core::v1::Secret| {
        secret.annotations()["keywright.dev/expires-at"] == "2036-01-01T00:00:00Z"
    })
    .await;
}

#[tokio::test]
async fn a_deleted_apikey_leaves_a_tombstone_and_its_name_gets_a_new_key() {
    let mut scene = Scene::new("deletion").await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    scene.delete("ci").await;
    scene.answers(&key, INSIDE, 401).await;
    assert_eq!(scene.record(&key).await.spec.revoked.unwrap().reason, "Deleted");
    wait_for_event(&scene, "ci", "Revoked").await;
    // The garbage collector looks for new kinds every 30 s, and this one is as new as the control plane.
    let gone = |secrets: &[k8s_openapi::api::core::v1::Secret]| secrets.is_empty();
    wait::for_objects(&scene.secrets(), Default::default(), 3 * wait::DEADLINE, gone).await;

    let again = scene.declare("ci", json!({})).await;
    assert_ne!(again.uid().unwrap(), uid);
    let second = scene.key("ci", 1).await;
    assert_ne!(second, key);
    scene.check_in_force("ci").await;
    assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 401, "a revoked key never comes back");

    scene.kill_controller().await;
    scene.start_controller(&["--tombstone-retention=0s", "--resync=1s"]).await;
    wait::for_absence(&scene.records(), &format!("{uid}-1")).await;
    scene.check_in_force("ci").await;
    assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 401);
}

#[tokio::test]
async fn a_key_dies_with_its_apikey_even_when_the_finalizer_is_stripped() {
    let mut scene = Scene::new("stripped").await;
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    scene.kill_controller().await;
    scene.api_keys().delete("ci", &DeleteParams::default()).await.unwrap();
    let nothing = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    let api_keys = scene.api_keys();
    let strip = async || api_keys.patch("ci", &dry_run, &nothing).await;
    scene.installation.break_glass("finalizer", strip).await;
    scene.api_keys().patch("ci", &PatchParams::default(), &nothing).await.unwrap();
    wait::for_absence(&scene.api_keys(), "ci").await;
    assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 200, "nobody was there to revoke it");
    scene.start_controller(&[]).await;
    scene.answers(&key, INSIDE, 401).await;
    assert_eq!(scene.record(&key).await.spec.revoked.unwrap().reason, "Orphaned");
}

#[tokio::test]
async fn a_deletion_that_a_restarted_controller_finds_revokes_older_keys_too() {
    let mut scene = Scene::new("older-keys").await;
    scene.declare("ci", json!({})).await;
    let first = scene.key("ci", 1).await;
    scene.secrets().delete("ci", &DeleteParams::default()).await.unwrap();
    touch(&scene, "ci").await;
    let second = scene.key("ci", 2).await;
    for key in [&first, &second] {
        scene.answers(key, INSIDE, 200).await;
    }
    scene.kill_controller().await;
    scene.api_keys().delete("ci", &DeleteParams::default()).await.unwrap();
    scene.start_controller(&[]).await;
    wait::for_absence(&scene.api_keys(), "ci").await;
    let records = scene.records().list(&Default::default()).await.unwrap();
    for record in &records {
        assert_eq!(record.spec.revoked.as_ref().unwrap().reason, "Deleted", "before the finalizer went: {record:#?}");
    }
    for key in [&first, &second] {
        scene.answers(key, INSIDE, 401).await;
    }
}

#[tokio::test]
async fn a_deleted_namespace_takes_its_keys_with_it() {
    let scene = Scene::new("namespace").await;
    let mut keys = Vec::new();
    for index in 0..10 {
        scene.declare(&format!("key-{index}"), json!({})).await;
        keys.push(scene.key(&format!("key-{index}"), 1).await);
    }
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(scene.installation.client.clone());
    namespaces.delete(&scene.installation.tenant_namespace, &DeleteParams::default()).await.unwrap();
    wait::for_absence(&namespaces, &scene.installation.tenant_namespace).await;
    for key in keys {
        scene.answers(&key, INSIDE, 401).await;
    }
    let records = scene.records().list(&Default::default()).await.unwrap();
    assert!(records.iter().all(|record| record.spec.revoked.is_some()), "{records:#?}");
}

/// As many as an ApiKey can have: the keys of a Secret that somebody removed again and again.
#[tokio::test]
async fn sixteen_live_keys_are_revoked_in_one_pass() {
    let mut scene = Scene::new("sixteen").await;
    scene.break_glass_of_records().await;
    let uid = scene.declare("ci", json!({"rotation": {"overlap": "90d"}})).await.uid().unwrap();
    let first = scene.key("ci", 1).await;
    scene.kill_controller().await;
    let template = scene.record(&first).await;
    let newest = Key::mint(&mut rand::rngs::SysRng).unwrap();
    for serial in 2..=16 {
        let mut record = keywright_core::api::ApiKeyRecord::new(&format!("{uid}-{serial}"), template.spec.clone());
        record.spec.serial = serial;
        let key = if serial == 16 { newest.digest() } else { Digest::of(&serial.to_le_bytes()) };
        record.spec.digest = key.to_string();
        record.spec.key_prefix = Some(newest.prefix().to_string());
        scene.records().create(&PostParams::default(), &record).await.unwrap();
    }
    let delivered = Patch::Merge(json!({"stringData": {"api-key": newest.reveal()}}));
    scene.secrets().patch("ci", &PatchParams::default(), &delivered).await.unwrap();
    scene.start_controller(&[]).await;
    scene.key("ci", 16).await;
    assert_eq!(scene.live_records(&uid).await.len(), 16);
    scene.check_in_force("ci").await;
    let before = scene.writes().await.len();
    scene.delete("ci").await;
    assert!(scene.live_records(&uid).await.is_empty());
    let mut expected = vec!["update apikeyrecords"; 16];
    expected.push("patch apikeys");
    assert_eq!(scene.writes().await[before..], expected, "no write but these");
    let deleted = scene.reads_of("ci").await;
    assert_eq!(deleted, 1, "the ApiKey is read once for all of it");
}

#[tokio::test]
async fn a_missing_or_changed_secret_gets_a_new_key_within_the_budget() {
    let scene = Scene::new("secrets").await;
    scene.declare("ci", json!({"rotation": {"overlap": "1h"}})).await;
    let first = scene.key("ci", 1).await;
    scene.secrets().delete("ci", &DeleteParams::default()).await.unwrap();
    touch(&scene, "ci").await;
    let second = scene.key("ci", 2).await;
    assert_ne!(first, second);
    let api_key = scene.check_in_force("ci").await;
    let status = api_key.status.clone().unwrap();
    assert_eq!(status.retiring.iter().map(|old| old.serial).collect::<Vec<_>>(), [1]);
    assert!(is(&api_key, Reason::Rotating));
    scene.answers(&first, INSIDE, 200).await;
    wait_for_event(&scene, "ci", "SecretRecreated").await;

    let planted = Patch::Merge(json!({"stringData": {"api-key": first}}));
    scene.secrets().patch("ci", &PatchParams::default(), &planted).await.unwrap();
    touch(&scene, "ci").await;
    // The old key is a live one: it becomes the current key's place only until its overlap ends, and never for longer.
    let planted = Patch::Merge(json!({"stringData": {"api-key": "keyw1_not-a-key"}}));
    scene.secrets().patch("ci", &PatchParams::default(), &planted).await.unwrap();
    touch(&scene, "ci").await;
    let waiting = scene.reason("ci", Reason::MintBudget).await;
    let message = &waiting.status.unwrap().conditions[0].message;
    assert!(message.contains("the next key is issued at 20"), "{message}");
    assert_eq!(scene.live_records(&api_key.uid().unwrap()).await.len(), 2, "nothing was minted");
}

#[tokio::test]
async fn a_foreign_secret_is_left_alone_until_the_name_is_free() {
    let scene = Scene::new("foreign").await;
    let foreign = json!({"metadata": {"name": "ci"}, "stringData": {"api-key": "somebody else's"}});
    let foreign = serde_json::from_value(foreign).unwrap();
    let foreign = scene.secrets().create(&PostParams::default(), &foreign).await.unwrap();
    scene.declare("ci", json!({})).await;
    let taken = scene.reason("ci", Reason::SecretNameTaken).await;
    assert_eq!(condition(&taken, ConditionType::Stalled), ConditionStatus::True);
    wait_for_event(&scene, "ci", "SecretNameTaken").await;
    assert_eq!(scene.secrets().get("ci").await.unwrap().resource_version(), foreign.resource_version());
    assert!(scene.live_records(&taken.uid().unwrap()).await.is_empty(), "no key without a place for it");
    scene.secrets().delete("ci", &DeleteParams::default()).await.unwrap();
    touch(&scene, "ci").await;
    assert_eq!(scene.check_in_force("ci").await.status.unwrap().serial, Some(1));
}

#[tokio::test]
async fn a_secret_that_cannot_be_created_is_told_and_keys_are_not_made_in_vain() {
    let scene = Scene::new("quota").await;
    let quotas = scene.installation.tenant::<ResourceQuota>();
    let quota = json!({"metadata": {"name": "no-secrets"}, "spec": {"hard": {"count/secrets": "0"}}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    // The test bed runs no quota controller that would count.
    let counted = Patch::Merge(json!({"status": {"hard": {"count/secrets": "0"}, "used": {"count/secrets": "0"}}}));
    quotas.patch_status("no-secrets", &PatchParams::default(), &counted).await.unwrap();
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let probe = serde_json::from_value(json!({"metadata": {"name": "probe"}})).unwrap();
    wait::until("the quota is in force", async || scene.secrets().create(&dry_run, &probe).await.is_err()).await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    let told = wait::for_object(&scene.api_keys(), "ci", |api_key: &ApiKey| {
        let conditions = api_key.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.message.contains("no-secrets"))
    })
    .await;
    assert!(is(&told, Reason::Issuing));
    for _ in 0..10 {
        touch(&scene, "ci").await;
    }
    assert!(scene.live_records(&uid).await.is_empty());
    quotas.delete("no-secrets", &DeleteParams::default()).await.unwrap();
    touch(&scene, "ci").await;
    let api_key = scene.check_in_force("ci").await;
    assert_eq!(api_key.status.unwrap().serial, Some(2), "one key was made in vain");
}

#[tokio::test]
async fn a_record_that_is_revoked_or_removed_by_hand_is_not_restored() {
    let scene = Scene::new("records").await;
    scene.break_glass_of_records().await;
    for (name, revoke) in [("revoked", true), ("removed", false)] {
        scene.declare(name, json!({})).await;
        let first = scene.key(name, 1).await;
        scene.answers(&first, INSIDE, 200).await;
        let record = scene.record(&first).await.name_any();
        if revoke {
            let patch = Patch::Merge(json!({"spec": {"revoked": {"at": "2026-11-01T00:00:00Z", "reason": "ByHand"}}}));
            scene.records().patch(&record, &PatchParams::default(), &patch).await.unwrap();
        } else {
            scene.records().delete(&record, &DeleteParams::default()).await.unwrap();
        }
        let second = scene.key(name, 2).await;
        assert_ne!(first, second);
        scene.check_in_force(name).await;
        scene.answers(&first, INSIDE, 401).await;
        wait_for_event(&scene, name, "SecretRecreated").await;
    }
}

#[tokio::test]
async fn rules_edited_into_a_record_by_hand_do_not_last() {
    let scene = Scene::new("widened").await;
    scene.break_glass_of_records().await;
    scene.declare("ci", json!({"allowedIPs": ["192.0.2.0/24"]})).await;
    let key = scene.key("ci", 1).await;
    let record = scene.record(&key).await.name_any();
    let widened = Patch::Merge(json!({"spec": {"allowedIPs": ["0.0.0.0/0"]}}));
    let widened = scene.records().patch(&record, &PatchParams::default(), &widened).await.unwrap();
    wait::for_object(&scene.records(), &record, move |record: &keywright_core::api::ApiKeyRecord| {
        record.resource_version() != widened.resource_version()
            && record.spec.allowed_ips.as_deref() == Some(&["192.0.2.0/24".to_owned()])
    })
    .await;
    scene.answers(&key, OUTSIDE, 403).await;
}

#[tokio::test]
async fn what_the_definition_cannot_refuse_is_not_acted_on() {
    let scene = Scene::new("invalid").await;
    let twice = json!(["192.0.2.1", "192.0.2.1/32"]);
    scene.declare("never", json!({"allowedIPs": twice})).await;
    let invalid = scene.reason("never", Reason::Invalid).await;
    assert_eq!(condition(&invalid, ConditionType::Ready), ConditionStatus::False);
    assert_eq!(condition(&invalid, ConditionType::Stalled), ConditionStatus::True);
    let message = &invalid.status.unwrap().conditions[0].message;
    assert!(message.starts_with("spec.allowedIPs[1]: "), "{message}");
    assert!(scene.secrets().get_opt("never").await.unwrap().is_none());

    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    scene.edit("ci", json!({"allowedIPs": twice})).await;
    scene.answers(&key, INSIDE, 401).await;
    scene.edit("ci", json!({"allowedIPs": ["192.0.2.0/24"]})).await;
    scene.answers(&key, INSIDE, 200).await;
}

#[tokio::test]
async fn a_key_made_elsewhere_is_enforced_and_never_delivered() {
    let scene = Scene::new("submitted").await;
    let key = include_str!("../cases/keys.tsv").lines().nth(2).unwrap().split('\t').next().unwrap();
    let digest = Digest::of(key.as_bytes()).to_string();
    scene.declare("laptop", json!({"keyHash": digest, "owner": "ada"})).await;
    let active = scene.reason("laptop", Reason::Active).await.status.unwrap();
    assert_eq!((active.key_prefix.as_deref(), active.secret_name), (Some(&digest[..19]), None));
    scene.answers(key, INSIDE, 200).await;
    let answer = scene.ask(key, INSIDE, "/verify").await;
    assert!(answer.head.contains(&format!("x-keywright-key: {}", &key[..14])), "{}", answer.head);
    assert!(scene.secrets().get_opt("laptop").await.unwrap().is_none());
    scene.delete("laptop").await;
    scene.answers(key, INSIDE, 401).await;
    scene.declare("laptop", json!({"keyHash": digest})).await;
    scene.reason("laptop", Reason::DigestRevoked).await;
    assert_eq!(scene.ask(key, INSIDE, "/verify").await.status, 401, "what was revoked stays revoked");
}

#[tokio::test]
async fn a_very_long_name_has_its_events_and_the_end_of_all_times_is_for_ever() {
    let scene = Scene::new("extremes").await;
    for name in [format!("{}.b", "a".repeat(251)), format!("{}.{}", "c".repeat(235), "d"), "e".repeat(236)] {
        scene.declare(&name, json!({"expiresAt": "9999-12-31T23:59:59Z"})).await;
        let active = scene.reason(&name, Reason::Active).await.status.unwrap();
        assert_eq!(active.expires.as_deref(), Some("9999-12-30T22:00:00Z"));
        let key = scene.delivered(&name).await;
        scene.answers(&key, INSIDE, 200).await;
        wait_for_event(&scene, &name, "Issued").await;
    }
}

/// The ApiKey is looked at again: there is no watch on Secrets.
async fn touch(scene: &Scene, name: &str) {
    let touched = jiff::Timestamp::now().to_string();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"example.org/touched": touched}}}));
    scene.api_keys().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

pub async fn wait_for_event(scene: &Scene, name: &str, reason: &str) {
    let events = scene.installation.tenant::<Event>();
    wait::for_objects(&events, Default::default(), wait::DEADLINE, |events| {
        events.iter().any(|event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(name))
        })
    })
    .await;
}

fn condition(api_key: &ApiKey, type_: ConditionType) -> ConditionStatus {
    let conditions = &api_key.status.as_ref().unwrap().conditions;
    conditions.iter().find(|condition| condition.type_ == type_).unwrap().status
}
