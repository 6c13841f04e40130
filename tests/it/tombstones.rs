//! What is left of revoked keys: how long it stays, how much of it, and what looking after it costs.

use jiff::{SignedDuration, Timestamp};
use keywright_core::api::{ApiKey, ApiKeyRecord};
use keywright_core::key::Digest;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::scene::{Scene, api_key};
use keywright_testing::{ApiRequest, AuditedRequest, Fault, FaultProxy, Installation, Occurrence, Program, wait};

/// Records as the controller writes them, where none is at work yet.
struct Graveyard {
    installation: Installation,
    records: Api<ApiKeyRecord>,
}

impl Graveyard {
    async fn new(test_name: &str) -> Self {
        let installation = Installation::new(test_name).await;
        let client = installation.credentials("controller").await.client().await;
        let records = Api::namespaced(client, &installation.system_namespace);
        Self { installation, records }
    }

    /// Leaves a tombstone behind that is so old; `changes` are merged into its spec. Answers its record's name.
    async fn bury(&self, name: &str, age: SignedDuration, changes: Value) -> String {
        let (uid, revoked_at) = (format!("uid-of-{name}"), Timestamp::now() - age);
        let mut spec = json!({
            "digest": digest(name),
            "keyPrefix": "keyw1_abcdefgh",
            "apiKey": {"namespace": self.installation.tenant_namespace, "name": name, "uid": uid},
            "serial": 1,
            "revoked": {"at": Timestamp::from_second(revoked_at.as_second()).unwrap(), "reason": "Deleted"},
        });
        for (field, value) in changes.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let record = json!({
            "apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKeyRecord",
            "metadata": {"name": format!("{uid}-1")}, "spec": spec,
        });
        let record = serde_json::from_value(record).unwrap();
        self.records.create(&PostParams::default(), &record).await.unwrap().name_any()
    }

    /// Sets a controller to work, with one more argument.
    async fn controller(&self, argument: &str) -> Program {
        let controller = self.installation.program("controller").argument("--leader-elect=false");
        controller.argument("--resync=1s").argument(argument).start().await
    }

    async fn names(&self) -> Vec<String> {
        self.records.list(&Default::default()).await.unwrap().iter().map(ResourceExt::name_any).collect()
    }
}

fn digest(of: &str) -> String {
    Digest::of(of.as_bytes()).to_string()
}

const NONE: SignedDuration = SignedDuration::ZERO;

#[tokio::test]
async fn a_tombstone_stays_for_as_long_as_an_apikey_declares_its_digest() {
    let graveyard = Graveyard::new("declared").await;
    let submitted = json!({"keyPrefix": null});
    let declared = graveyard.bury("kept", NONE, submitted.clone()).await;
    let generated = graveyard.bury("generated", NONE, json!({})).await;
    let forgotten = graveyard.bury("forgotten", NONE, submitted).await;
    let api_keys = graveyard.installation.tenant::<ApiKey>();
    for (name, digest_of) in [("again", "kept"), ("leaked", "generated")] {
        let declaring = api_key(name, json!({"keyHash": digest(digest_of), "expiresIn": "Never"}));
        api_keys.create(&PostParams::default(), &declaring).await.unwrap();
    }
    let _controller = graveyard.controller("--tombstone-retention=0s").await;
    wait::for_absence(&graveyard.records, &forgotten).await;
    let left = graveyard.names().await;
    assert!(left.contains(&declared) && left.contains(&generated), "{left:?}");
    for (name, tombstone) in [("again", &declared), ("leaked", &generated)] {
        api_keys.delete(name, &DeleteParams::default()).await.unwrap();
        wait::for_absence(&api_keys, name).await;
        wait::for_absence(&graveyard.records, tombstone).await;
    }
}

#[tokio::test]
async fn a_namespace_leaves_a_bounded_number_of_tombstones_of_generated_keys() {
    let graveyard = Graveyard::new("bounded").await;
    let hours = SignedDuration::from_hours;
    let oldest = graveyard.bury("oldest", hours(5), json!({})).await;
    let declared = graveyard.bury("declared", hours(4), json!({})).await;
    let mut stay = vec![declared];
    for (name, age, changes) in [
        ("older", hours(3), json!({})),
        ("old", hours(2), json!({})),
        ("young", SignedDuration::from_mins(50), json!({})),
        ("submitted", hours(9), json!({"keyPrefix": null})),
        ("elsewhere", hours(9), json!({"apiKey": {"namespace": "elsewhere", "name": "a", "uid": "uid-of-elsewhere"}})),
    ] {
        stay.push(graveyard.bury(name, age, changes).await);
    }
    let declaring = api_key("leaked", json!({"keyHash": digest("declared"), "expiresIn": "Never"}));
    graveyard.installation.tenant::<ApiKey>().create(&PostParams::default(), &declaring).await.unwrap();

    let controller = graveyard.controller("--tombstones-per-namespace=2").await;
    wait::for_absence(&graveyard.records, &oldest).await;
    let left = graveyard.names().await;
    assert!(stay.iter().all(|name| left.contains(name)), "{stay:?} are not all in {left:?}");
    let metrics = controller.metrics().await;
    assert!(metrics.contains("keywright_tombstones_removed_early_total 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_key_that_is_revoked_already_costs_a_sweep_no_request() {
    let graveyard = Graveyard::new("idle").await;
    for number in 0..20 {
        graveyard.bury(&format!("gone-{number}"), NONE, json!({})).await;
    }
    let before = graveyard.installation.audited_requests().await.len();
    let controller = graveyard.controller("--tombstone-retention=90d").await;
    controller.ready().await;
    let user = format!("system:serviceaccount:{}:keywright-controller", graveyard.installation.system_namespace);
    let mut asked: Vec<String>;
    loop {
        let requests = graveyard.installation.audited_requests().await;
        // What asks for one object asks for the newest version, for the fence.
        let asks_for_version = |request: &AuditedRequest| request.parameters.iter().any(|one| one == "limit=1");
        let own = requests.into_iter().skip(before).filter(|one| one.user == user && !asks_for_version(one));
        asked = own.map(|request| format!("{} {}", request.verb, request.resource)).collect();
        // The first list, and three sweeps.
        if asked.iter().filter(|one| *one == "list apikeyrecords").count() >= 4 {
            break;
        }
        tokio::time::sleep(wait::DEADLINE / 100).await;
    }
    asked.retain(|one| !one.starts_with("watch ") && !one.starts_with("list "));
    assert!(asked.is_empty(), "{asked:?}");
    assert!(controller.metrics().await.contains("keywright_tombstones 20\n"));
}

#[tokio::test]
async fn a_tombstone_that_holds_more_than_it_needs_is_made_smaller() {
    let graveyard = Graveyard::new("slim").await;
    let fat = graveyard
        .bury(
            "fat",
            NONE,
            json!({
                "owner": "platform@example.org", "scopes": ["packages:read"], "allowedIPs": ["192.0.2.0/24"],
                "notAfter": "2036-01-01T00:00:00Z", "suspended": true, "rotateRequest": digest("request"),
            }),
        )
        .await;
    let before = graveyard.records.get(&fat).await.unwrap().spec;
    let _controller = graveyard.controller("--tombstone-retention=90d").await;
    let slim = wait::for_object(&graveyard.records, &fat, |record: &ApiKeyRecord| record.spec.owner.is_none()).await;
    let spec = serde_json::to_value(&slim.spec).unwrap();
    assert_eq!(
        spec.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["apiKey", "digest", "keyPrefix", "revoked", "serial"]
    );
    assert_eq!(
        (slim.spec.digest, slim.spec.api_key, slim.spec.revoked),
        (before.digest, before.api_key, before.revoked)
    );
}

#[tokio::test]
async fn an_apikey_that_is_gone_is_looked_after_while_a_sweep_is_under_way() {
    let installation = Installation::new("departure").await;
    let faults = FaultProxy::start(installation.control_plane).await;
    let verifier = installation.program("verifier").start().await;
    verifier.ready().await;
    let controller = installation.program("controller").argument("--leader-elect=false").argument("--resync=1s");
    let controller = controller.through(&faults).start().await;
    controller.ready().await;
    let scene = Scene { verifier, controller: None, installation };
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    let api_keys = scene.api_keys();
    let nothing = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    scene.installation.break_glass("finalizer", async || api_keys.patch("ci", &dry_run, &nothing).await).await;

    let is_list = |request: &ApiRequest| request.is("GET", "apikeyrecords") && request.name.is_none() && !request.watch;
    let sweep = faults.inject(Fault::Hold, Occurrence::Nth(1), is_list);
    sweep.hit().await;
    let is_look = |request: &ApiRequest| request.is("GET", "apikeys") && request.name.as_deref() == Some("ci");
    let passes = faults.inject(Fault::Hold, Occurrence::Every, is_look);
    api_keys.delete("ci", &DeleteParams::default()).await.unwrap();
    api_keys.patch("ci", &PatchParams::default(), &nothing).await.unwrap();
    wait::for_absence(&api_keys, "ci").await;
    passes.lift();
    let record = scene.record(&key).await.name_any();
    let revoked = |record: &ApiKeyRecord| record.spec.revoked.as_ref().is_some_and(|it| it.reason == "Orphaned");
    wait::for_object(&scene.records(), &record, revoked).await;
    let said = controller.printed();
    assert!(!said.contains("cannot look through the records"), "the sweep was not held any more: {said}");
    sweep.lift();
}
