//! The admission webhook on the real API server: what a user sees, what is filled in, and what goes on without it.

use keywright_core::api::{ApiKey, FINALIZER, Reason};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::scene::{Scene, api_key};
use keywright_testing::{Installation, output};

const CREATED_BY: &str = "keywright.dev/created-by";
const USER: &str = "ada@example.org";

/// What `kubectl` did and said.
#[derive(Debug)]
struct Said {
    done: bool,
    stdout: String,
    stderr: String,
}

/// A user at a terminal: `kubectl ARGUMENTS --filename`, with the object in the file.
fn kubectl(installation: &Installation, arguments: &[&str], object: &Value) -> Said {
    kubectl_as(USER, installation, arguments, object)
}

fn kubectl_as(user: &str, installation: &Installation, arguments: &[&str], object: &Value) -> Said {
    let file = format!("{}-{:08x}.json", installation.tenant_namespace, rand::random::<u32>());
    let file = installation.control_plane.write_private(&file, &object.to_string());
    let mut kubectl = installation.control_plane.kubectl(arguments);
    kubectl.args(["--namespace", &installation.tenant_namespace, "--as", user, "--as-group", "system:masters"]);
    let output = kubectl.arg("--filename").arg(file).output().unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    Said { done: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn object(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": spec})
}

/// What is stored, as JSON.
async fn stored(installation: &Installation, name: &str) -> Value {
    serde_json::to_value(installation.tenant::<ApiKey>().get(name).await.unwrap()).unwrap()
}

fn check_completed(object: &Value, owner: &str) {
    assert_eq!(object["spec"]["owner"], owner, "{object}");
    assert_eq!(object["metadata"]["annotations"][CREATED_BY], USER, "{object}");
    assert_eq!(object["metadata"]["finalizers"], json!([FINALIZER]), "{object}");
}

#[tokio::test]
async fn what_a_manifest_leaves_out_is_filled_in_however_it_is_sent() {
    let installation = Installation::new("webhook-completion").await;
    let _webhook = installation.webhook().await;
    let dry =
        kubectl(&installation, &["create", "--dry-run=server", "-o=json"], &object("dry", json!({"expiresIn": "1d"})));
    check_completed(&serde_json::from_str(&dry.stdout).unwrap(), USER);

    let forged = |name: &str| {
        let mut object = object(name, json!({"expiresIn": "1d"}));
        object["metadata"]["annotations"] = json!({CREATED_BY: "somebody else"});
        // With which the request would look like one about an object on its way out.
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object
    };
    for (name, arguments) in
        [("created", &["create"][..]), ("applied", &["apply"]), ("applied-by-the-server", &["apply", "--server-side"])]
    {
        let said = kubectl(&installation, arguments, &forged(name));
        assert!(said.done, "{said:?}");
        check_completed(&stored(&installation, name).await, USER);
    }

    // The same manifest again, without owner and finalizer: nothing is taken away, and nothing is said.
    for (name, arguments) in
        [("created", &["replace"][..]), ("applied", &["apply"]), ("applied-by-the-server", &["apply", "--server-side"])]
    {
        let said = kubectl(&installation, arguments, &object(name, json!({"expiresIn": "2d"})));
        assert!(said.done, "{said:?}");
        assert_eq!(said.stderr, "", "{arguments:?}");
        let object = stored(&installation, name).await;
        check_completed(&object, USER);
        assert_eq!(object["spec"]["expiresIn"], "2d");
    }

    let mut generated = object("", json!({"expiresIn": "1d"}));
    generated["metadata"] = json!({"generateName": "generated-"});
    let said = kubectl(&installation, &["create", "--output=json"], &generated);
    check_completed(&serde_json::from_str(&said.stdout).unwrap(), USER);
}

#[tokio::test]
async fn a_user_sees_every_problem_at_once_with_its_path() {
    let installation = Installation::new("webhook-problems").await;
    let _webhook = installation.webhook().await;
    let spec = json!({
        "owner": "Ada L",
        "allowedIPs": ["192.0.2.0/24", "10.0.0.1/8", "192.0.2.1,192.0.2.2", "192.0.2.0/24"],
        "expiresIn": "1w",
    });
    let expected = [
        "The ApiKey \"ci\" is invalid: ",
        "* spec.owner: must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces, not \"Ada L\"",
        "* spec.allowedIPs[1]: \"10.0.0.1/8\" has host bits set; did you mean \"10.0.0.0/8\"?",
        "* spec.allowedIPs[2]: \"192.0.2.1,192.0.2.2\" holds a comma; write each address or CIDR as its own list entry",
        "* spec.allowedIPs[3]: entries 0 and 3 are both 192.0.2.0/24; remove one of them",
        "* spec.expiresIn: must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d, not \"1w\"; did you mean \"7d\"?",
    ];
    for arguments in [&["create"][..], &["apply"], &["create", "--dry-run=server"]] {
        let said = kubectl(&installation, arguments, &object("ci", spec.clone()));
        assert!(!said.done, "{said:?}");
        assert_eq!(said.stderr.lines().collect::<Vec<_>>(), expected, "{arguments:?}");
    }
    let said = kubectl(&installation, &["create"], &object("ci", json!({"owner": "a b"})));
    let expected = "The ApiKey \"ci\" is invalid: spec.owner: must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces, not \"a b\"\n";
    assert_eq!(said.stderr, expected);

    // Programs get a Status that says the same, as a whole.
    let api = installation.tenant::<ApiKey>();
    let refused = api.create(&PostParams::default(), &api_key("ci", json!({"owner": ""}))).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("{refused}") };
    assert_eq!((status.code, &*status.reason), (422, "Invalid"));
    assert_eq!(
        status.message,
        "admission webhook \"mutate.apikeys.keywright.dev\" denied the request: ApiKey.keywright.dev \"ci\" is invalid: \
         spec.owner: must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces, not \"\""
    );
    let details = status.details.unwrap();
    assert_eq!((&*details.kind, &*details.name, details.causes.len()), ("ApiKey", "ci", 1));
}

/// ApiKeys of the tenant, with whatever fields.
fn untyped(installation: &Installation) -> Api<DynamicObject> {
    let resource = kube::api::ApiResource::erase::<ApiKey>(&());
    Api::namespaced_with(installation.client.clone(), &installation.tenant_namespace, &resource)
}

#[tokio::test]
async fn every_row_of_the_address_cases_is_answered_with_rule_and_hint() {
    let installation = Installation::new("webhook-addresses").await;
    let _webhook = installation.webhook().await;
    let api = untyped(&installation);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let mut wrong = Vec::new();
    let mut rows = 0;
    for line in include_str!("../cases/allowed-ips.tsv").lines().filter(|line| !line.starts_with("# ")) {
        let columns: Vec<_> = line.split('\t').collect();
        let entry: String = serde_json::from_str(&format!("\"{}\"", columns[0])).unwrap();
        let row = object("row", json!({"owner": "ada", "allowedIPs": ["198.51.100.0/24", entry]}));
        let said = match api.create(&dry_run, &serde_json::from_value(row).unwrap()).await {
            Ok(_) => String::new(),
            Err(kube::Error::Api(status)) => status.message.clone(),
            Err(other) => panic!("{other}"),
        };
        let expected = match keywright_core::address::Network::parse(&entry) {
            Ok(_) => String::new(),
            Err(refusal) => format!(
                "admission webhook \"mutate.apikeys.keywright.dev\" denied the request: \
                 ApiKey.keywright.dev \"row\" is invalid: spec.allowedIPs[1]: {refusal}"
            ),
        };
        if said != expected || expected.is_empty() != (columns[1] == "accept") {
            wrong.push(format!("{line}: {said}"));
        }
        rows += 1;
    }
    assert_eq!(rows, 144);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn what_deserves_a_second_look_is_printed_and_goes_on() {
    let installation = Installation::new("webhook-warnings").await;
    let _webhook = installation.webhook().await;
    let warning = |name: &str, text: &str| format!("Warning: {}/{name}: {text}", installation.tenant_namespace);
    let never = "spec.expiresIn: this key never expires; consider expiresIn: 90d, so that a leaked key stops working";
    let pieces = json!({"allowedIPs": ["0.0.0.0/1", "128.0.0.0/1", "::/0"]});
    let said = kubectl(&installation, &["apply"], &object("wide", pieces.clone()));
    assert!(said.done, "{said:?}");
    let expected = [
        never,
        "spec.allowedIPs[2]: ::/0 allows every IPv6 address",
        "spec.allowedIPs: together the entries allow every IPv4 address",
    ]
    .map(|text| warning("wide", text));
    assert_eq!(said.stderr.lines().collect::<Vec<_>>(), expected);
    let said = kubectl(&installation, &["apply"], &object("wide", pieces));
    assert_eq!((said.done, &*said.stderr), (true, ""), "not at every sync");
    let said = kubectl(&installation, &["create"], &object("past", json!({"expiresAt": "2026-01-01T00:00:00Z"})));
    assert!(said.done, "{said:?}");
    let expected = warning("past", "spec.expiresAt: the key expired at 2026-01-01T00:00:00Z and is refused");
    assert_eq!(said.stderr, expected + "\n");
    let said = kubectl(&installation, &["create"], &object("far", json!({"expiresAt": "9999-12-31T23:59:59Z"})));
    assert!(said.done && said.stderr.contains("is as late as never; write expiresIn: Never"), "{said:?}");
    assert_eq!(stored(&installation, "far").await["spec"]["expiresAt"], "9999-12-31T23:59:59Z", "as it was written");
    let account = "system:serviceaccount:team-a:deployer";
    let said = kubectl_as(account, &installation, &["create"], &object("pipeline", json!({"expiresIn": "30d"})));
    let expected = format!("spec.owner was filled in with the pipeline's ServiceAccount {account}; name a person");
    assert_eq!((said.done, said.stderr), (true, warning("pipeline", &expected) + "\n"));
}

/// What `kubectl get -o yaml` printed, put into Git, and applied by somebody else ever after.
#[tokio::test]
async fn an_exported_manifest_can_be_applied_by_anybody_for_ever() {
    let scene = Scene::new("webhook-export").await;
    let installation = &scene.installation;
    let _webhook = installation.webhook().await;
    let created = kubectl(installation, &["create"], &object("ci", json!({"expiresIn": "30d"})));
    assert!(created.done, "{created:?}");
    let mut get = installation.control_plane.kubectl(["get", "apikey", "ci", "--output=yaml"]);
    let exported = output(get.args(["--namespace", &installation.tenant_namespace])).unwrap();
    let mut manifest: Value = serde_yaml::from_str(&exported).unwrap();
    assert_eq!(manifest["metadata"]["annotations"][CREATED_BY], USER);
    manifest["metadata"].as_object_mut().unwrap().remove("resourceVersion");

    let robot = "system:serviceaccount:flux-system:kustomize-controller";
    let ways = [&["diff"][..], &["apply"], &["diff"], &["apply", "--server-side"], &["diff", "--server-side"]];
    for suspended in [false, true, false] {
        manifest["spec"]["suspended"] = json!(suspended);
        for arguments in ways {
            let said = kubectl_as(robot, installation, arguments, &manifest);
            // `kubectl diff` ends with 1 where there is a difference, as before the first of these.
            assert!(said.done || (arguments[0] == "diff" && said.stderr.is_empty()), "{arguments:?} {said:?}");
            assert!(!said.stderr.contains(CREATED_BY), "it is what is stored: {said:?}");
        }
        let stored = stored(installation, "ci").await;
        assert_eq!(stored["metadata"]["annotations"][CREATED_BY], USER);
        assert_eq!(stored["spec"].get("suspended").cloned().unwrap_or(json!(false)), json!(suspended));
    }

    // Made again by the robot, it was created by the robot, whatever the manifest goes on to say.
    // Of any kind of object, the API server refuses one with another's uid.
    scene.delete("ci").await;
    manifest["metadata"].as_object_mut().unwrap().remove("uid");
    let of = |what: &str| {
        let place = format!("{}/ci: metadata.annotations[{CREATED_BY}]", installation.tenant_namespace);
        format!("Warning: {place} names the creator of the object: it was {what} to \"{robot}\"\n")
    };
    let said = kubectl_as(robot, installation, &["apply"], &manifest);
    assert!(said.done && said.stderr.contains(&of("set")), "{said:?}");
    for (arguments, suspended) in
        [(&["apply"][..], true), (&["apply"], false), (&["diff"], false), (&["replace"], true)]
    {
        manifest["spec"]["suspended"] = json!(suspended);
        let said = kubectl_as(USER, installation, arguments, &manifest);
        assert!(said.done, "{arguments:?} {said:?}");
        assert!(said.stderr.contains(&of("put back")), "{arguments:?} {said:?}");
        assert_eq!(stored(installation, "ci").await["metadata"]["annotations"][CREATED_BY], robot);
    }
    // The API server itself asks which of two field managers is to win; told so, ours stays.
    for _ in 0..2 {
        let said = kubectl_as(USER, installation, &["apply", "--server-side", "--force-conflicts"], &manifest);
        assert!(said.done, "{said:?}");
        assert_eq!(stored(installation, "ci").await["metadata"]["annotations"][CREATED_BY], robot);
    }
}

#[tokio::test]
async fn every_slip_is_answered_with_what_was_meant() {
    let installation = Installation::new("webhook-slips").await;
    let _webhook = installation.webhook().await;
    let api = untyped(&installation);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let mut wrong = Vec::new();
    for row in include_str!("../cases/slips.tsv").lines().filter(|row| !row.starts_with("# ")) {
        let (spec, expected) = row.split_once('\t').unwrap();
        let object = object("row", serde_json::from_str(spec).unwrap());
        let answer = api.create(&dry_run, &serde_json::from_value(object).unwrap()).await;
        let Err(kube::Error::Api(status)) = answer else { panic!("{row}: {answer:?}") };
        if !status.message.ends_with(&format!("ApiKey.keywright.dev \"row\" is invalid: {expected}")) {
            wrong.push(format!("{row}: {}", status.message));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn what_stands_fast_cannot_be_changed() {
    let installation = Installation::new("webhook-immutable").await;
    let _webhook = installation.webhook().await;
    let api = installation.tenant::<ApiKey>();
    api.create(&PostParams::default(), &api_key("ci", json!({"owner": "ada", "expiresIn": "1d"}))).await.unwrap();
    for (patch, expected) in [
        (
            json!({"spec": {"secret": {"name": "other"}}}),
            "spec.secret.name: is immutable, and is \"ci\": create another ApiKey for another Secret",
        ),
        (
            json!({"spec": {"secret": {"key": "other"}}}),
            "spec.secret.key: is immutable, and is \"api-key\": create another ApiKey for another data key",
        ),
        (
            json!({"spec": {"keyHash": format!("sha256:{}", "7".repeat(64))}}),
            "spec.keyHash: is immutable: create another ApiKey for another key",
        ),
    ] {
        let refused = api.patch("ci", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap_err();
        let kube::Error::Api(status) = refused else { panic!("{refused}") };
        assert!(status.message.ends_with(&format!("\"ci\" is invalid: {expected}")), "{patch}: {}", status.message);
    }
    // Changed or taken away, they come back.
    let before = api.get("ci").await.unwrap();
    let patch = json!({"metadata": {"annotations": {CREATED_BY: "eve"}}});
    let after = api.patch("ci", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(after.annotations(), before.annotations());
    let patch = json!({"metadata": {"annotations": null, "finalizers": null}, "spec": {"owner": null}});
    let after = api.patch("ci", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(after.annotations(), before.annotations());
    assert_eq!(after.finalizers(), [FINALIZER]);
    assert_eq!(after.spec, before.spec);
}

/// Some objects are older than the webhook.
#[tokio::test]
async fn an_object_that_was_bad_before_can_be_touched_and_mended() {
    let installation = Installation::new("webhook-ratchet").await;
    let api = installation.tenant::<ApiKey>();
    // The definition alone takes this for two entries.
    let twice = json!({"owner": "ada", "expiresIn": "1d", "allowedIPs": ["192.0.2.7", "192.0.2.7/32"]});
    api.create(&PostParams::default(), &api_key("old", twice.clone())).await.unwrap();
    let _webhook = installation.webhook().await;
    let problem = "spec.allowedIPs[1]: entries 0 and 1 are both 192.0.2.7/32; remove one of them";
    let with = |field: &str, value: Value| {
        let mut spec = twice.clone();
        spec[field] = value;
        object("old", spec)
    };
    let said = kubectl(&installation, &["replace"], &with("suspended", json!(true)));
    assert_eq!(
        (said.done, said.stderr),
        (true, format!("Warning: {}/old: {problem}\n", installation.tenant_namespace))
    );
    let said = kubectl(&installation, &["replace"], &with("allowedIPs", json!(["192.0.2.7", "192.0.2.7/32", "::1"])));
    assert_eq!((said.done, said.stderr), (false, format!("The ApiKey \"old\" is invalid: {problem}\n")));
    let said = kubectl(&installation, &["replace"], &with("allowedIPs", json!(["192.0.2.7"])));
    assert_eq!((said.done, &*said.stderr), (true, ""));
    let said = kubectl(&installation, &["create"], &object("new", twice));
    assert_eq!((said.done, said.stderr), (false, format!("The ApiKey \"new\" is invalid: {problem}\n")));
}

#[tokio::test]
async fn without_the_webhook_nothing_new_comes_in_and_everything_else_goes_on() {
    let scene = Scene::new("webhook-down").await;
    let mut webhook = scene.installation.webhook().await;
    let spec = json!({"owner": "ada", "expiresIn": "1d"});
    scene.declare("ci", spec.clone()).await;
    scene.reason("ci", Reason::Active).await;
    webhook.take_down().await;

    let edited = object("ci", json!({"owner": "ada", "expiresIn": "2d"}));
    for (arguments, object) in [(["create"], object("new", spec)), (["replace"], edited)] {
        let said = kubectl(&scene.installation, &arguments, &object);
        assert!(!said.done, "{said:?}");
        let expected = "failed calling webhook \"mutate.apikeys.keywright.dev\"";
        assert!(said.stderr.contains(expected) && said.stderr.contains("connection refused"), "{said:?}");
    }

    let api = scene.api_keys();
    let label =
        Patch::Merge(json!({"metadata": {"labels": {"team": "a"}, "annotations": {"keywright.dev/rotate": "1"}}}));
    api.patch("ci", &PatchParams::default(), &label).await.expect("neither label nor annotation is judged");
    let status = Patch::Merge(json!({"status": {"lastUsedAt": "2026-01-01T00:00:00Z"}}));
    api.patch_status("ci", &PatchParams::default(), &status).await.expect("a status is not judged");
    scene.delete("ci").await;
}

#[tokio::test]
async fn nobody_gets_around_the_webhook_by_a_label() {
    let installation = Installation::new("webhook-label").await;
    for configuration in installation.rendered_webhook_configurations().unwrap() {
        for webhook in configuration["webhooks"].as_array().unwrap() {
            for selector in ["namespaceSelector", "objectSelector"] {
                assert_eq!(webhook.get(selector), None, "{selector} of {}", webhook["name"]);
            }
            assert_eq!(webhook["failurePolicy"], "Fail");
            assert_eq!(webhook["clientConfig"].get("caBundle"), None, "no certificate in a manifest");
        }
    }
}
