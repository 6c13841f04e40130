//! Secrets that others also rule: quotas, policies and webhooks of somebody else, and leftovers, on the real API server.

use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKey, ApiKeyRecord, ConditionStatus, ConditionType, Reason};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::scene::{INSIDE, OUTSIDE, Scene, is};
use keywright_testing::wait;

/// Somebody else's admission policy in the tenant's namespace. It goes when it is dropped.
struct Policy<'s> {
    scene: &'s Scene,
    objects: Vec<Value>,
}

impl<'s> Policy<'s> {
    /// Refuses these operations on Secrets that have an owner.
    async fn refusing(scene: &'s Scene, operations: &[&str]) -> Self {
        let name = format!("{}-frozen-{}", scene.installation.tenant_namespace, operations.join("-").to_lowercase());
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": operations, "resources": ["secrets"]},
                ]},
                "validations": [{"expression": "false", "message": "frozen"}],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"], "matchResources": own_namespace(scene)},
        });
        if !operations.contains(&"CREATE") {
            scene.secrets().create(&PostParams::default(), &probe()).await.unwrap();
        }
        let policy = Self::install(scene, vec![policy, binding]);
        wait::until("the policy is in force", async || is_refused(scene).await).await;
        policy
    }

    /// Gives every Secret this label with a value of its own.
    async fn labelling(scene: &'s Scene, label: &str) -> Self {
        let name = format!("{}-labels", scene.installation.tenant_namespace);
        let mutating = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
                "matchConstraints": {"resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]},
                ]},
                "mutations": [{
                    "patchType": "ApplyConfiguration",
                    "applyConfiguration": {
                        "expression": format!(
                            "Object{{metadata: Object.metadata{{labels: {{'{label}': 'somebody-else'}}}}}}"
                        ),
                    },
                }],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "matchResources": own_namespace(scene)},
        });
        let policy = Self::install(scene, vec![mutating, binding]);
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let is_labelled = async || !scene.secrets().create(&dry_run, &probe()).await.unwrap().labels().is_empty();
        wait::until("the policy is in force", is_labelled).await;
        policy
    }

    fn install(scene: &'s Scene, objects: Vec<Value>) -> Self {
        scene.installation.apply(&objects).unwrap();
        Self { scene, objects }
    }

    /// Takes it away, and waits until the API server has let go of it.
    async fn lift(self) {
        let scene = self.scene;
        drop(self);
        wait::until("the policy is gone", async || !is_refused(scene).await).await;
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        let _ = self.scene.installation.remove(&self.objects);
    }
}

fn probe() -> Secret {
    serde_json::from_value(json!({"metadata": {"name": "probe"}})).unwrap()
}

/// Whether a Secret is refused: an update of the probe where there is one, and else its creation. The API server takes a
/// policy up a moment after it is there, and lets go of it a moment after it is gone.
async fn is_refused(scene: &Scene) -> bool {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match scene.secrets().get_opt("probe").await.unwrap() {
        Some(probe) => scene.secrets().replace("probe", &dry_run, &probe).await.is_err(),
        None => scene.secrets().create(&dry_run, &probe()).await.is_err(),
    }
}

fn own_namespace(scene: &Scene) -> Value {
    let namespace = &scene.installation.tenant_namespace;
    json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}})
}

#[tokio::test]
async fn a_refused_update_of_the_secret_costs_one_key() {
    let scene = Scene::new("frozen").await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    let first = scene.key("ci", 1).await;
    let oops = Patch::Merge(json!({"stringData": {"api-key": "oops"}}));
    scene.secrets().patch("ci", &PatchParams::default(), &oops).await.unwrap();
    let policy = Policy::refusing(&scene, &["UPDATE"]).await;
    touch(&scene, "ci").await;
    let told = told(&scene, "ci", "frozen").await;
    assert!(is(&told, Reason::Issuing));
    let stalled = condition(&told, ConditionType::Stalled);
    assert_eq!((stalled.0, stalled.1.contains("nothing needs")), (ConditionStatus::False, false), "{stalled:?}");
    for _ in 0..10 {
        touch(&scene, "ci").await;
    }
    scene.edit("ci", json!({"description": "look again"})).await;
    scene.reason("ci", Reason::Issuing).await;
    assert_eq!(serials(&scene, &uid).await, [1, 2], "one key was made in vain");
    scene.answers(&first, INSIDE, 200).await;

    policy.lift().await;
    touch(&scene, "ci").await;
    assert_eq!(scene.check_in_force("ci").await.status.unwrap().serial, Some(3));
}

#[tokio::test]
async fn a_refused_creation_of_the_secret_costs_one_key() {
    let scene = Scene::new("no-create").await;
    scene.declare("first", json!({})).await;
    scene.key("first", 1).await;
    let policy = Policy::refusing(&scene, &["CREATE"]).await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    told(&scene, "ci", "frozen").await;
    scene.secrets().delete("first", &DeleteParams::default()).await.unwrap();
    touch(&scene, "first").await;
    told(&scene, "first", "frozen").await;
    for _ in 0..5 {
        touch(&scene, "ci").await;
        touch(&scene, "first").await;
    }
    let first = scene.api_keys().get("first").await.unwrap().uid().unwrap();
    assert_eq!((serials(&scene, &uid).await, serials(&scene, &first).await), (vec![1], vec![1, 2]));
    policy.lift().await;
    for (name, serial) in [("ci", 2), ("first", 3)] {
        touch(&scene, name).await;
        assert_eq!(scene.check_in_force(name).await.status.unwrap().serial, Some(serial));
    }
}

#[tokio::test]
async fn a_webhook_that_is_down_costs_one_key_and_is_named() {
    let scene = Scene::new("hook-down").await;
    let name = format!("{}-down", scene.installation.tenant_namespace);
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "down.example.org",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "timeoutSeconds": 2,
            "clientConfig": {"url": "https://127.0.0.1:1/"},
            "namespaceSelector": own_namespace(&scene)["namespaceSelector"],
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": ["secrets"]}],
        }],
    });
    let policy = Policy::install(&scene, vec![webhook]);
    wait::until("the webhook is called", async || is_refused(&scene).await).await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    told(&scene, "ci", "down.example.org").await;
    for _ in 0..5 {
        touch(&scene, "ci").await;
    }
    assert_eq!(serials(&scene, &uid).await, [1]);
    policy.lift().await;
    touch(&scene, "ci").await;
    assert_eq!(scene.check_in_force("ci").await.status.unwrap().serial, Some(2));
}

#[tokio::test]
async fn a_refused_note_in_the_secret_does_not_hold_up_the_status() {
    let scene = Scene::new("courtesy").await;
    scene.declare("ci", json!({})).await;
    scene.key("ci", 1).await;
    let _policy = Policy::refusing(&scene, &["UPDATE"]).await;
    scene.edit("ci", json!({"suspended": true, "expiresAt": "2036-01-01T00:00:00Z"})).await;
    let suspended = scene.reason("ci", Reason::Suspended).await;
    assert_eq!(suspended.status.unwrap().expires.as_deref(), Some("2036-01-01T00:00:00Z"));
}

#[tokio::test]
async fn a_refused_change_of_a_template_is_said_and_made_once_it_is_taken() {
    let scene = Scene::new("template-frozen").await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    let key = scene.key("ci", 1).await;
    let policy = Policy::refusing(&scene, &["UPDATE"]).await;
    let entry =
        json!({"secret": {"template": {"data": {"entry": "$(KEY) $(PREFIX)"}}}, "allowedIPs": ["192.0.2.0/24"]});
    scene.edit("ci", entry).await;
    let told = told(&scene, "ci", "frozen").await;
    assert!(is(&told, Reason::Active), "the key works all the same");
    let (_, message) = condition(&told, ConditionType::Ready);
    assert!(message.contains("what spec.secret.template declares waits"), "{message}");
    assert!(!message.contains(&key[..15]), "{message}");
    scene.answers(&key, OUTSIDE, 403).await;
    for _ in 0..10 {
        touch(&scene, "ci").await;
    }
    scene.edit("ci", json!({"suspended": true})).await;
    scene.reason("ci", Reason::Suspended).await;
    scene.edit("ci", json!({"suspended": false})).await;
    scene.reason("ci", Reason::Active).await;
    let requests = scene.installation.audited_requests().await;
    let by_controller = |user: &str| user.ends_with(":keywright-controller");
    let updates = requests.iter().filter(|request| request.verb == "update" && request.resource == "secrets");
    let tries = updates.filter(|request| by_controller(&request.user)).count();
    assert!(tries <= 9, "{tries}: for each edit a try, its dry run, and what the Secret says of its key");
    assert_eq!(serials(&scene, &uid).await, [1], "no key is made for it");

    policy.lift().await;
    wait::for_object(&scene.secrets(), "ci", move |secret: &Secret| {
        let entry = secret.data.as_ref().and_then(|data| data.get("entry"));
        entry.is_some_and(|entry| entry.0 == format!("{key} {}", &key[..14]).into_bytes())
    })
    .await;
    wait::for_object(&scene.api_keys(), "ci", |api_key: &ApiKey| {
        condition(api_key, ConditionType::Ready).1 == "the key is let in"
    })
    .await;
    assert_eq!(scene.check_in_force("ci").await.status.unwrap().serial, Some(1));
}

/// Somebody's policy has its own idea of a label that a template gives, too.
#[tokio::test]
async fn nobody_is_fought_over_a_templates_label() {
    let scene = Scene::new("template-labels").await;
    let _policy = Policy::labelling(&scene, "team").await;
    scene.declare("ci", json!({"secret": {"template": {"metadata": {"labels": {"team": "a"}}}}})).await;
    scene.key("ci", 1).await;
    for _ in 0..10 {
        touch(&scene, "ci").await;
    }
    scene.edit("ci", json!({"suspended": true})).await;
    scene.reason("ci", Reason::Suspended).await;
    let updates = scene.writes().await.iter().filter(|write| *write == "update secrets").count();
    assert!(updates <= 2, "{updates}: one try for one version of the Secret and one generation of the ApiKey");
}

#[tokio::test]
async fn nobody_is_fought_over_what_a_secret_says() {
    let scene = Scene::new("labels").await;
    let _policy = Policy::labelling(&scene, "app.kubernetes.io/managed-by").await;
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    scene.answers(&key, INSIDE, 200).await;
    for _ in 0..10 {
        touch(&scene, "ci").await;
    }
    scene.edit("ci", json!({"suspended": true})).await;
    scene.reason("ci", Reason::Suspended).await;
    let updates = scene.writes().await.iter().filter(|write| *write == "update secrets").count();
    assert_eq!(updates, 1, "one try for one version of the Secret");
}

#[tokio::test]
async fn the_secret_of_an_earlier_namesake_is_waited_for_without_calling_for_a_person() {
    let scene = Scene::new("leftover").await;
    let leftover = json!({
        "metadata": {
            "name": "ci",
            // Nothing but a person lets go of this one, so that the garbage collector is as late as can be.
            "finalizers": ["example.org/late"],
            "ownerReferences": [{
                "apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "name": "ci", "controller": true,
                "uid": "6a0a1c9e-0000-4000-8000-000000000001",
            }],
        },
        "stringData": {"api-key": "the key of an earlier ApiKey"},
    });
    let leftover: Secret = serde_json::from_value(leftover).unwrap();
    scene.secrets().create(&PostParams::default(), &leftover).await.unwrap();
    scene.declare("ci", json!({})).await;
    let waiting = scene.reason("ci", Reason::Issuing).await;
    assert_eq!(condition(&waiting, ConditionType::Stalled).0, ConditionStatus::False);
    let released = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    scene.secrets().patch("ci", &PatchParams::default(), &released).await.unwrap();
    let _ = scene.secrets().delete("ci", &DeleteParams::default()).await;
    assert_eq!(scene.check_in_force("ci").await.status.unwrap().serial, Some(1));
}

#[tokio::test]
async fn what_an_immutable_secret_says_is_kept_right() {
    let scene = Scene::new("immutable").await;
    scene.declare("ci", json!({"expiresIn": "30d"})).await;
    scene.key("ci", 1).await;
    let immutable = Patch::Merge(json!({"immutable": true}));
    scene.secrets().patch("ci", &PatchParams::default(), &immutable).await.unwrap();
    scene.edit("ci", json!({"expiresIn": null, "expiresAt": "2036-01-01T00:00:00Z"})).await;
    wait::for_object(&scene.secrets(), "ci", |secret: &Secret| {
        secret.annotations()["keywright.dev/expires-at"] == "2036-01-01T00:00:00Z"
    })
    .await;
    scene.check_in_force("ci").await;
}

/// Waits until `Ready` is False with these words in its message, and one Warning says so too.
async fn told(scene: &Scene, name: &str, words: &str) -> ApiKey {
    let expected = words.to_owned();
    let told = wait::for_object(&scene.api_keys(), name, move |api_key: &ApiKey| {
        let conditions = api_key.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|ready| ready.type_ == ConditionType::Ready && ready.message.contains(&expected))
    })
    .await;
    let events = scene.installation.tenant::<k8s_openapi::api::events::v1::Event>();
    wait::for_objects(&events, Default::default(), wait::DEADLINE, |events| {
        events.iter().any(|event| {
            event.type_.as_deref() == Some("Warning")
                && event.regarding.as_ref().is_some_and(|regarding| regarding.name.as_deref() == Some(name))
                && event.note.as_ref().is_some_and(|note| note.contains(words))
        })
    })
    .await;
    told
}

async fn touch(scene: &Scene, name: &str) {
    let touched = jiff::Timestamp::now().to_string();
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"example.org/touched": touched}}}));
    scene.api_keys().patch(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn serials(scene: &Scene, uid: &str) -> Vec<u32> {
    let records = scene.records().list(&Default::default()).await.unwrap();
    let own = records.into_iter().filter(|record: &ApiKeyRecord| record.spec.api_key.uid == uid);
    let mut serials: Vec<_> = own.map(|record| record.spec.serial).collect();
    serials.sort_unstable();
    serials
}

fn condition(api_key: &ApiKey, type_: ConditionType) -> (ConditionStatus, String) {
    let conditions = &api_key.status.as_ref().unwrap().conditions;
    let condition = conditions.iter().find(|condition| condition.type_ == type_).unwrap();
    (condition.status, condition.message.clone())
}
