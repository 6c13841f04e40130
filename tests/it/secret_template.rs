//! `spec.secret.template` on the real API server: what its users find in the Secret beside the key.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKey, ConditionType, Reason};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::scene::{INSIDE, Scene};
use keywright_testing::{ApiRequest, Fault, Installation, Occurrence, Outcome, output, wait};

fn env() -> Value {
    json!({
        "metadata": {
            "labels": {"app.kubernetes.io/part-of": "shop"},
            "annotations": {"reloader.stakater.com/match": "true"},
        },
        "data": {
            ".env": "API_KEY=$(KEY)\nPRICE=5$$\n",
            "key.json": "{\"key\": \"$(KEY)\", \"of\": \"$(NAMESPACE)/$(NAME)\", \"expires\": \"$(EXPIRES_AT)\"}",
            "prefix": "$(PREFIX)",
        },
    })
}

/// The entries of a Secret as text.
fn entries(secret: &Secret) -> BTreeMap<String, String> {
    let data = secret.data.clone().unwrap_or_default().into_iter();
    data.map(|(name, octets)| (name, String::from_utf8(octets.0).unwrap())).collect()
}

/// Waits until the status is of this generation and its message of `Ready` has these words.
async fn ready_says(scene: &Scene, declared: &ApiKey, words: &str) -> ApiKey {
    let (name, generation, words) = (declared.name_any(), declared.metadata.generation, words.to_owned());
    let says = move |api_key: &ApiKey| {
        let status = api_key.status.as_ref().filter(|status| status.observed_generation == generation);
        let mut conditions = status.iter().flat_map(|status| &status.conditions);
        conditions.any(|ready| ready.type_ == ConditionType::Ready && ready.message.contains(&words))
    };
    wait::for_object(&scene.api_keys(), &name, says).await
}

/// Changes the template, and answers with the Secret once the status is of that change.
async fn change(scene: &Scene, template: Value) -> Secret {
    let declared = scene.edit("ci", json!({"secret": {"template": template}})).await;
    ready_says(scene, &declared, "the key is let in").await;
    scene.secrets().get("ci").await.unwrap()
}

/// The ApiKey is looked at again: there is no watch on Secrets.
async fn touch(scene: &Scene) {
    let patch = json!({"metadata": {"annotations": {"example.org/touched": jiff::Timestamp::now().to_string()}}});
    scene.api_keys().patch("ci", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[tokio::test]
async fn every_entry_comes_with_the_key_in_the_same_write() {
    let scene = Scene::new("template-issue").await;
    let expires = "2036-01-01T00:00:00Z";
    scene.declare("ci", json!({"expiresAt": expires, "secret": {"template": env()}})).await;
    let namespace = &scene.installation.tenant_namespace;
    for serial in 1..=2 {
        let key = scene.key("ci", serial).await;
        let secret = scene.secrets().get("ci").await.unwrap();
        let json = format!("{{\"key\": \"{key}\", \"of\": \"{namespace}/ci\", \"expires\": \"{expires}\"}}");
        let expected = [
            (".env", format!("API_KEY={key}\nPRICE=5$\n")),
            ("api-key", key.clone()),
            ("key.json", json),
            ("prefix", key[..14].to_owned()),
        ];
        assert_eq!(entries(&secret), expected.map(|(name, text)| (name.to_owned(), text)).into());
        assert_eq!(secret.labels()["app.kubernetes.io/part-of"], "shop");
        assert_eq!(secret.labels()["app.kubernetes.io/managed-by"], "keywright");
        assert_eq!(secret.annotations()["reloader.stakater.com/match"], "true");
        scene.answers(&key, INSIDE, 200).await;
        if serial == 1 {
            let rotate = Patch::Merge(json!({"metadata": {"annotations": {"keywright.dev/rotate": "1"}}}));
            scene.api_keys().patch("ci", &PatchParams::default(), &rotate).await.unwrap();
        }
    }
    scene.check_in_force("ci").await;
    let issue = ["patch apikeys", "create apikeyrecords", "create secrets", "update apikeys/status"];
    let rotation = ["create apikeyrecords", "update secrets", "update apikeyrecords", "update apikeys/status"];
    assert_eq!(scene.writes().await, [issue, rotation].concat());
}

#[tokio::test]
async fn a_change_of_the_template_rewrites_the_secret_and_makes_no_new_key() {
    let mut scene = Scene::new("template-change").await;
    let uid = scene.declare("ci", json!({})).await.uid().unwrap();
    let key = scene.key("ci", 1).await;
    let theirs = Patch::Merge(json!({
        "metadata": {"labels": {"theirs": "1"}, "annotations": {"example.org/theirs": "2"}},
    }));
    scene.secrets().patch("ci", &PatchParams::default(), &theirs).await.unwrap();
    let before = scene.writes().await.len();

    let secret = change(&scene, env()).await;
    assert_eq!(entries(&secret).keys().collect::<Vec<_>>(), [".env", "api-key", "key.json", "prefix"]);
    assert_eq!(scene.writes().await[before..], ["update secrets", "update apikeys/status"], "and nothing else");
    let fewer = json!({
        "metadata": {"labels": {"team": "a", "app.kubernetes.io/part-of": null}, "annotations": null},
        "data": {".env": "KEY=$(KEY)", "key.json": null, "prefix": null},
    });
    let secret = change(&scene, fewer).await;
    let expected = [("api-key".to_owned(), key.clone()), (".env".to_owned(), format!("KEY={key}"))];
    assert_eq!(entries(&secret), expected.into());
    assert_eq!((secret.labels().get("app.kubernetes.io/part-of"), &*secret.labels()["team"]), (None, "a"));
    assert!(!secret.annotations().contains_key("reloader.stakater.com/match"));

    // Somebody changes, removes and adds entries, and a label.
    for meddled in [
        json!({"stringData": {".env": "KEY=mine"}}),
        json!({"data": {".env": null}}),
        json!({"stringData": {"theirs": ""}, "metadata": {"labels": {"team": "theirs"}}}),
    ] {
        scene.secrets().patch("ci", &PatchParams::default(), &Patch::Merge(meddled)).await.unwrap();
        touch(&scene).await;
        let (restored, data) = (secret.labels().clone(), secret.data.clone());
        wait::for_object(&scene.secrets(), "ci", move |secret: &Secret| {
            secret.data == data && *secret.labels() == restored
        })
        .await;
    }

    // A restart has nothing to write.
    let before = scene.writes().await;
    scene.kill_controller().await;
    scene.start_controller(&[]).await;
    let secret = change(&scene, Value::Null).await;
    assert_eq!(scene.writes().await[before.len()..], ["update secrets", "update apikeys/status"]);
    assert_eq!(entries(&secret), [("api-key".to_owned(), key.clone())].into());
    assert_eq!((secret.labels().get("team"), &*secret.labels()["theirs"]), (None, "1"));
    assert_eq!(secret.annotations()["example.org/theirs"], "2");
    assert!(!secret.annotations().contains_key("keywright.dev/template"));
    assert_eq!(scene.check_in_force("ci").await.status.unwrap().serial, Some(1));
    assert_eq!(scene.live_records(&uid).await.len(), 1);
    scene.answers(&key, INSIDE, 200).await;
}

#[tokio::test]
async fn another_expiry_is_written_around_the_same_key() {
    let scene = Scene::new("template-expiry").await;
    scene.declare("ci", json!({"secret": {"template": {"data": {"until": "$(EXPIRES_AT)"}}}})).await;
    let key = scene.key("ci", 1).await;
    assert_eq!(entries(&scene.secrets().get("ci").await.unwrap())["until"], "Never");
    let declared = scene.edit("ci", json!({"expiresAt": "2036-01-01T00:00:00Z"})).await;
    ready_says(&scene, &declared, "the key is let in").await;
    let secret = scene.secrets().get("ci").await.unwrap();
    assert_eq!((&*entries(&secret)["until"], &entries(&secret)["api-key"]), ("2036-01-01T00:00:00Z", &key));
    assert_eq!(secret.annotations()["keywright.dev/expires-at"], "2036-01-01T00:00:00Z");
}

#[tokio::test]
async fn a_secret_for_basic_auth_has_its_type() {
    let scene = Scene::new("template-basic-auth").await;
    let template = json!({"type": "kubernetes.io/basic-auth", "data": {"username": "$(NAME)"}});
    scene.declare("ci", json!({"secret": {"key": "password", "template": template}})).await;
    scene.reason("ci", Reason::Active).await;
    let secret = scene.secrets().get("ci").await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/basic-auth"));
    assert_eq!(entries(&secret)["username"], "ci");
    scene.answers(&entries(&secret)["password"], INSIDE, 200).await;
    // The name of a Secret of another type is taken.
    let taken = json!({"metadata": {"name": "taken"}, "type": "Opaque", "stringData": {"password": "x"}});
    scene.secrets().create(&Default::default(), &serde_json::from_value(taken).unwrap()).await.unwrap();
    let spec = json!({"secret": {"template": {"type": "kubernetes.io/basic-auth", "data": {"password": "$(KEY)"}}}});
    scene.declare("taken", spec).await;
    scene.reason("taken", Reason::SecretNameTaken).await;
}

#[tokio::test]
async fn an_immutable_secret_says_what_to_do() {
    let scene = Scene::new("template-immutable").await;
    scene.declare("ci", json!({})).await;
    let first = scene.key("ci", 1).await;
    let immutable = Patch::Merge(json!({"immutable": true}));
    scene.secrets().patch("ci", &PatchParams::default(), &immutable).await.unwrap();
    let declared = scene.edit("ci", json!({"secret": {"template": env()}})).await;
    let told = ready_says(&scene, &declared, "it is immutable: delete it, and the controller creates a new one").await;
    assert_eq!(told.status.unwrap().serial, Some(1));
    scene.secrets().delete("ci", &DeleteParams::default()).await.unwrap();
    touch(&scene).await;
    let second = scene.key("ci", 2).await;
    assert_eq!(entries(&scene.secrets().get("ci").await.unwrap())["prefix"], second[..14]);
    scene.answers(&first, INSIDE, 200).await;
}

#[tokio::test]
async fn a_lost_answer_or_a_crash_at_the_rewrite_ends_in_the_same_key_and_the_new_entries() {
    let (mut scene, faults) = Scene::with_faults("template-faults").await;
    for (index, fault) in [
        Fault::Before(Outcome::Status(409)),
        Fault::Before(Outcome::Status(500)),
        Fault::After(Outcome::Status(504)),
        Fault::After(Outcome::Reset),
        Fault::Before(Outcome::Hang),
        Fault::After(Outcome::Hang),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("ci-{index}");
        scene.declare(&name, json!({})).await;
        let key = scene.key(&name, 1).await;
        let is_crash = index >= 4;
        let broken = faults.inject(fault, Occurrence::Nth(1), |request: &ApiRequest| request.is("PUT", "secrets"));
        let declared = scene.edit(&name, json!({"secret": {"template": env()}})).await;
        broken.hit().await;
        if is_crash {
            scene.kill_controller().await;
            let launch = scene.installation.program("controller").argument("--leader-elect=false");
            scene.controller = Some(launch.through(&faults).start().await);
        }
        ready_says(&scene, &declared, "the key is let in").await;
        let found = entries(&scene.secrets().get(&name).await.unwrap());
        assert_eq!((&found["api-key"], &*found["prefix"]), (&key, &key[..14]), "fault {index}");
        assert_eq!(scene.check_in_force(&name).await.status.unwrap().serial, Some(1), "fault {index}");
    }
}

/// For those who read the manual at the command line.
#[tokio::test]
async fn the_definition_explains_the_template() {
    let installation = Installation::new("template-explain").await;
    let mut kubectl = installation.control_plane.kubectl(["explain", "apikeys.keywright.dev.spec.secret.template"]);
    let said = output(&mut kubectl).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    for words in ["data", "metadata", "type", "$(KEY)", "$$", "kubernetes.io/basic-auth", "makes no new key"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
}
