//! The chart's ValidatingAdmissionPolicies: each tried by those whom it stops and by those whom it does not, with rights by
//! RBAC to everything that they try, so that the policy alone decides.

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use keywright_core::api::{ApiKey, ApiKeyRecord, FINALIZER};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::scene::{INSIDE, Scene, api_key};
use keywright_testing::{Installation, output, wait};

const RULES: [&str; 4] = ["records", "finalizer", "secrets", "leases"];

/// A policy whose expressions do not fit the objects would fail at run time, and refuse everything.
#[tokio::test]
async fn their_expressions_fit_the_objects() {
    let installation = Installation::new("policy-types").await;
    let policies = Api::<ValidatingAdmissionPolicy>::all(installation.client.clone());
    for rule in RULES {
        assert_eq!(warnings(&policies, &installation.policy(rule)).await, Vec::<String>::new(), "{rule}");
    }
    for rule in RULES {
        let mut misspelt = policies.get(&installation.policy(rule)).await.unwrap();
        let constraints = misspelt.spec.as_ref().unwrap().match_constraints.clone();
        let name = format!("{}-misspelt", installation.policy(rule));
        let validations = json!([{"expression": "object.metadata.nmae == 'x'"}]);
        misspelt = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"matchConstraints": constraints, "validations": validations},
        }))
        .unwrap();
        policies.create(&PostParams::default(), &misspelt).await.unwrap();
        let told = warnings(&policies, &name).await;
        policies.delete(&name, &DeleteParams::default()).await.unwrap();
        assert!(told.iter().any(|warning| warning.contains("nmae")), "{rule} is not checked at all: {told:?}");
    }
}

/// What the API server's check of the types has to say.
async fn warnings(policies: &Api<ValidatingAdmissionPolicy>, name: &str) -> Vec<String> {
    let checked = wait::for_object(policies, name, |policy: &ValidatingAdmissionPolicy| {
        let status = policy.status.as_ref();
        status.is_some_and(|status| {
            status.observed_generation == policy.metadata.generation && status.type_checking.is_some()
        })
    })
    .await;
    let warnings = checked.status.and_then(|status| status.type_checking?.expression_warnings).unwrap_or_default();
    warnings.into_iter().map(|warning| format!("{}: {}", warning.field_ref, warning.warning)).collect()
}

#[tokio::test]
async fn only_the_controller_writes_records() {
    let installation = Installation::new("policy-records").await;
    let by_admin: Api<ApiKeyRecord> = installation.system();
    let controller = installation.credentials("controller").await.client().await;
    let by_controller = Api::<ApiKeyRecord>::namespaced(controller, &installation.system_namespace);
    by_controller.create(&PostParams::default(), &record("stays")).await.unwrap();
    installation.in_force("records", async || by_admin.create(&dry_run(), &record("probe")).await).await;
    let before = by_admin.get("stays").await.unwrap();

    let all = json!([{"apiGroups": ["keywright.dev"], "resources": ["*"], "verbs": ["*"]}]);
    let (system, tenant) = (&installation.system_namespace, &installation.tenant_namespace);
    let mut intruders = vec![("an administrator", installation.client.clone())];
    for name in ["keywright-verifier", "somebody"] {
        intruders.push((name, with_rights(&installation, (system, name), system, &all).await));
    }
    intruders.push(("a tenant", with_rights(&installation, (tenant, "tenant"), system, &all).await));
    for (who, client) in intruders {
        let records = Api::<ApiKeyRecord>::namespaced(client, system);
        let stored = by_admin.get("stays").await.unwrap();
        let mut changed = stored.clone();
        changed.spec.allowed_ips = Some(vec!["0.0.0.0/0".to_owned()]);
        let mut marked = stored.clone();
        marked.labels_mut().insert("marked".to_owned(), "true".to_owned());
        let widened = Patch::Merge(json!({"spec": {"allowedIPs": ["0.0.0.0/0"]}}));
        let taken_back = Patch::Merge(json!({"spec": {"revoked": {"at": "2026-01-01T00:00:00Z", "reason": "ByHand"}}}));
        let finalizer = Patch::Merge(json!({"metadata": {"finalizers": ["example.org/stays"]}}));
        let (post, patch, delete) = (PostParams::default(), PatchParams::default(), DeleteParams::default());
        let attempts = [
            ("create", records.create(&post, &record("new")).await.map(drop)),
            ("update", records.replace("stays", &post, &changed).await.map(drop)),
            ("label", records.replace("stays", &post, &marked).await.map(drop)),
            ("patch", records.patch("stays", &patch, &widened).await.map(drop)),
            ("revoke", records.patch("stays", &patch, &taken_back).await.map(drop)),
            ("hold back", records.patch("stays", &patch, &finalizer).await.map(drop)),
            ("delete", records.delete("stays", &delete).await.map(drop)),
            ("delete all", records.delete_collection(&delete, &ListParams::default()).await.map(drop)),
        ];
        for (what, answer) in attempts {
            assert!(installation.is_refused_by("records", &answer), "{who}, {what}: {answer:?}");
        }
        let used = Patch::Merge(json!({"status": {"lastUsedAt": "2026-01-01T00:00:00Z"}}));
        let answer = records.patch_status("stays", &patch, &used).await;
        match who {
            "keywright-verifier" => assert!(answer.is_ok(), "{who}: {answer:?}"),
            _ => assert!(installation.is_refused_by("records", &answer), "{who}, status: {answer:?}"),
        }
    }
    let after = by_admin.get("stays").await.unwrap();
    assert_eq!((&after.spec, after.metadata.generation), (&before.spec, before.metadata.generation));

    // As people have everything stored anew, after the encryption of etcd was changed.
    let list = ["get", "apikeyrecords", "--namespace", system, "--output=json"];
    let list = output(&mut installation.control_plane.kubectl(list)).unwrap();
    let file = installation.control_plane.write_private("records.json", &list);
    output(installation.control_plane.kubectl(["replace", "--filename"]).arg(file)).unwrap();
    let unchanged = by_admin.get("stays").await.unwrap();
    assert_eq!(unchanged.resource_version(), after.resource_version(), "stored alike");

    let answer =
        by_controller.patch_status("stays", &PatchParams::default(), &Patch::Merge(json!({"status": {}}))).await;
    assert!(matches!(&answer, Err(kube::Error::Api(status)) if status.code == 403), "{answer:?}");
    let mut revoked = after;
    revoked.spec.suspended = true;
    by_controller.replace("stays", &PostParams::default(), &revoked).await.unwrap();
    by_controller.delete("stays", &DeleteParams::default()).await.unwrap();
}

/// Another way to break the glass, and one that the audit log tells of. A tenant has no part in it.
#[tokio::test]
async fn whoever_may_impersonate_the_controller_is_the_controller() {
    let installation = Installation::new("policy-as").await;
    let records: Api<ApiKeyRecord> = installation.system();
    installation.in_force("records", async || records.create(&dry_run(), &record("probe")).await).await;
    let file = installation.control_plane.write_private("record.json", &serde_json::to_string(&record("as")).unwrap());
    let as_controller = format!("--as=system:serviceaccount:{}:keywright-controller", installation.system_namespace);
    let create =
        ["create", "--validate=false", "--namespace", &installation.system_namespace, &as_controller, "--filename"];
    output(installation.control_plane.kubectl(create).arg(&file)).unwrap();

    let edit = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    let tenant = &installation.tenant_namespace;
    grant(&installation, (tenant, "tenant"), tenant, &edit).await;
    let kubeconfig =
        installation.control_plane.write_kubeconfig(Some(&token(&installation, tenant, "tenant").await), None);
    let mut kubectl = installation.control_plane.kubectl(create);
    let refused = output(kubectl.arg(&file).env("KUBECONFIG", kubeconfig)).unwrap_err().to_string();
    assert!(refused.contains("cannot impersonate"), "{refused}");
}

#[tokio::test]
async fn only_the_controller_removes_the_finalizer() {
    let installation = Installation::new("policy-finalizer").await;
    let by_admin: Api<ApiKey> = installation.tenant();
    let mut declared = api_key("ci", json!({}));
    declared.finalizers_mut().extend([FINALIZER.to_owned(), "example.org/other".to_owned()]);
    by_admin.create(&PostParams::default(), &declared).await.unwrap();
    let none = json!({"metadata": {"finalizers": null}});
    let strip = async || by_admin.patch("ci", &dry_patch(), &Patch::Merge(none.clone())).await;
    installation.in_force("finalizer", strip).await;

    let manage = json!([{"apiGroups": ["keywright.dev"], "resources": ["*"], "verbs": ["*"]}]);
    let (system, tenant) = (&installation.system_namespace, &installation.tenant_namespace);
    let mut people = vec![("an administrator", installation.client.clone())];
    people
        .push(("the namespace's administrator", with_rights(&installation, (tenant, "tenant"), tenant, &manage).await));
    people.push(("the verifier", with_rights(&installation, (system, "keywright-verifier"), tenant, &manage).await));
    for deleted in [false, true] {
        if deleted {
            by_admin.delete("ci", &DeleteParams::default()).await.unwrap();
        }
        for (who, client) in &people {
            let api_keys = Api::<ApiKey>::namespaced(client.clone(), tenant);
            let (post, patch) = (PostParams::default(), PatchParams::default());
            let mut without = api_keys.get("ci").await.unwrap();
            without.finalizers_mut().retain(|finalizer| finalizer != FINALIZER);
            let first = json!([{"op": "remove", "path": "/metadata/finalizers/0"}]);
            let attempts = [
                ("patch", api_keys.patch("ci", &patch, &Patch::Merge(none.clone())).await),
                ("JSON patch", api_keys.patch("ci", &patch, &json_patch(first)).await),
                ("update", api_keys.replace("ci", &post, &without).await),
            ];
            for (what, answer) in attempts {
                assert!(installation.is_refused_by("finalizer", &answer), "{who}, {what}: {answer:?}");
                // Whoever reads it is stuck: it holds the commands, ready to be typed.
                let said = answer.unwrap_err().to_string();
                let patch = format!("kubectl patch apikeys.keywright.dev ci -n {tenant} --type=merge");
                for command in ["kubectl get pods -n ", "kubectl delete validatingadmissionpolicybinding ", &patch] {
                    assert!(said.contains(command), "{command}: {said}");
                }
            }
            // This one is not refused: it has no effect on the metadata.
            let _ = api_keys.patch_status("ci", &patch, &Patch::Merge(none.clone())).await;
            assert!(api_keys.get("ci").await.unwrap().finalizers().iter().any(|finalizer| finalizer == FINALIZER));
            // Everything else is the tenant's own affair.
            let described = json!({"spec": {"description": format!("seen by {who}, {deleted}")}});
            api_keys.patch("ci", &patch, &Patch::Merge(described)).await.unwrap();
        }
    }
    let others = Patch::Merge(json!({"metadata": {"finalizers": [FINALIZER]}}));
    by_admin.patch("ci", &PatchParams::default(), &others).await.unwrap();
    let controller = installation.credentials("controller").await.client().await;
    let by_controller = Api::<ApiKey>::namespaced(controller, tenant);
    by_controller.patch("ci", &PatchParams::default(), &Patch::Merge(none)).await.unwrap();
    wait::for_absence(&by_admin, "ci").await;
}

#[tokio::test]
async fn the_controller_writes_only_secrets_that_an_apikey_owns() {
    let installation = Installation::new("policy-secrets").await;
    let owner =
        installation.tenant::<ApiKey>().create(&PostParams::default(), &api_key("ci", json!({}))).await.unwrap();
    let another =
        installation.tenant::<ApiKey>().create(&PostParams::default(), &api_key("x", json!({}))).await.unwrap();
    // More than the chart gives it, and what OwnerReferencesPermissionEnforcement asks for.
    let all = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]}]);
    let (system, tenant) = (&installation.system_namespace, &installation.tenant_namespace);
    let client = with_rights(&installation, (system, "keywright-controller"), tenant, &all).await;
    let secrets = Api::<Secret>::namespaced(client, tenant);
    let foreign = secret("foreign", "Opaque", json!([]));
    let foreign = installation.tenant::<Secret>().create(&PostParams::default(), &foreign).await.unwrap();
    installation.in_force("secrets", async || secrets.replace("foreign", &dry_run(), &foreign).await).await;

    let own = |api_key: &ApiKey| {
        json!({
            "apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "name": api_key.name_any(), "uid": api_key.uid(),
            "controller": true,
        })
    };
    let with = |mut reference: Value, field: &str, value: Value| {
        reference[field] = value;
        json!([reference])
    };
    let ours = own(&owner);
    let (post, patch) = (PostParams::default(), PatchParams::default());
    for (what, type_, owners) in [
        ("without an owner", "Opaque", json!([])),
        ("of another kind", "Opaque", with(ours.clone(), "kind", json!("ConfigMap"))),
        ("of another group", "Opaque", with(ours.clone(), "apiVersion", json!("example.org/v1"))),
        ("of a group like ours", "Opaque", with(ours.clone(), "apiVersion", json!("keywright.dev.example.org/v1"))),
        ("that does not control it", "Opaque", with(ours.clone(), "controller", json!(false))),
        ("of another type", "example.org/other", json!([ours])),
    ] {
        for params in [&post, &dry_run()] {
            let answer = secrets.create(params, &secret("new", type_, owners.clone())).await;
            assert!(installation.is_refused_by("secrets", &answer), "create {what}: {answer:?}");
        }
    }
    let marked = json!({"metadata": {"labels": {"marked": "true"}}});
    let adopted = json!({"metadata": {"ownerReferences": [ours]}});
    for (what, change) in [("change", &marked), ("adopt", &adopted)] {
        let answer = secrets.patch("foreign", &patch, &Patch::Merge(change)).await;
        assert!(installation.is_refused_by("secrets", &answer), "{what} a foreign one: {answer:?}");
    }
    let stored = installation.tenant::<Secret>().get("foreign").await.unwrap();
    assert_eq!(stored.resource_version(), foreign.resource_version());

    for type_ in ["Opaque", "kubernetes.io/basic-auth"] {
        let mut allowed = secret("ci", type_, json!([ours]));
        allowed.string_data = Some([("password".to_owned(), "any".to_owned())].into());
        secrets.create(&dry_run(), &allowed).await.unwrap();
    }
    let mut issued = secrets.create(&post, &secret("ci", "Opaque", json!([ours]))).await.unwrap();
    let given_away = json!({"metadata": {"ownerReferences": [own(&another)]}});
    let dropped = json!({"metadata": {"ownerReferences": null}});
    for (what, change) in [("give away", given_away), ("let go of", dropped)] {
        let answer = secrets.patch("ci", &patch, &Patch::Merge(change)).await;
        assert!(installation.is_refused_by("secrets", &answer), "{what} its own: {answer:?}");
    }
    // Somebody else's second reference does not stop it.
    let second = json!({"apiVersion": "v1", "kind": "Secret", "name": "foreign", "uid": foreign.uid()});
    let second = Patch::Merge(json!({"metadata": {"ownerReferences": [ours, second]}}));
    installation.tenant::<Secret>().patch("ci", &patch, &second).await.unwrap();
    issued = secrets.get(&issued.name_any()).await.unwrap();
    issued.string_data = Some([("api-key".to_owned(), "another".to_owned())].into());
    secrets.replace("ci", &post, &issued).await.unwrap();
    // Of people's own Secrets the policy says nothing.
    installation.tenant::<Secret>().patch("foreign", &patch, &Patch::Merge(marked)).await.unwrap();
}

/// It may create any Secret in its namespace, and read one by its name: a token, were it not for the type.
#[tokio::test]
async fn the_certificates_job_writes_only_the_webhooks_secret() {
    let installation = Installation::new("policy-job").await;
    let (system, post) = (&installation.system_namespace, PostParams::default());
    let all = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["*"]}]);
    let client = with_rights(&installation, (system, "keywright-certificates"), system, &all).await;
    let secrets = Api::<Secret>::namespaced(client, system);
    let of = |name: &str, type_: &str| -> Secret {
        let (certificate, account) = ("tls.crt", "kubernetes.io/service-account.name");
        object(json!({
            "metadata": {"name": name, "annotations": {account: "keywright-controller"}},
            "type": type_,
            "stringData": {certificate: "", "tls.key": ""},
        }))
    };
    installation.in_force("secrets", async || secrets.create(&dry_run(), &of("probe", "Opaque")).await).await;
    for (name, type_) in [
        ("keywright-webhook-ca", "kubernetes.io/service-account-token"),
        ("keywright-webhook-ca", "Opaque"),
        ("another", "kubernetes.io/tls"),
        ("another", "kubernetes.io/service-account-token"),
    ] {
        let answer = secrets.create(&post, &of(name, type_)).await;
        assert!(installation.is_refused_by("secrets", &answer), "{name} of {type_}: {answer:?}");
    }
    let mut made = secrets.create(&post, &of("keywright-webhook-ca", "kubernetes.io/tls")).await.unwrap();
    made.string_data = Some([("ca.crt".to_owned(), "another".to_owned())].into());
    secrets.replace("keywright-webhook-ca", &post, &made).await.unwrap();
    installation.system::<Secret>().create(&post, &of("another", "kubernetes.io/tls")).await.unwrap();
    let answer =
        secrets.patch("another", &PatchParams::default(), &Patch::Merge(json!({"stringData": {"a": "b"}}))).await;
    assert!(installation.is_refused_by("secrets", &answer), "change another: {answer:?}");
}

#[tokio::test]
async fn a_verifier_writes_only_its_own_lease() {
    let installation = Installation::new("policy-leases").await;
    let (system, post, patch) = (&installation.system_namespace, PostParams::default(), PatchParams::default());
    let all = json!([{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]}]);
    for name in ["keywright-verifier", "keywright-controller"] {
        grant(&installation, (system, name), system, &all).await;
    }
    let leases = async |component| {
        let credentials = installation.credentials(component).await;
        (Api::<Lease>::namespaced(credentials.client().await, system), credentials.pod_name)
    };
    let (by_first, first) = leases("verifier").await;
    let (by_second, second) = leases("verifier").await;
    let (by_controller, controller_pod) = leases("controller").await;
    let tokens_without_pod = token(&installation, system, "keywright-verifier").await;
    let kubeconfig = installation.control_plane.write_kubeconfig(Some(&tokens_without_pod), None);
    let nowhere = installation.control_plane.client_of(&kubeconfig).await;
    let by_no_pod = Api::<Lease>::namespaced(nowhere, system);
    installation.in_force("leases", async || by_first.create(&dry_run(), &lease("another")).await).await;

    by_first.create(&post, &lease(&first)).await.unwrap();
    by_second.create(&post, &lease(&second)).await.unwrap();
    by_controller.create(&post, &lease("keywright-controller")).await.unwrap();
    let renewed = Patch::Merge(json!({"spec": {"holderIdentity": "renewed"}}));
    for (who, leases, names) in [
        ("the first verifier", &by_first, [&*second, "keywright-controller", "another"]),
        ("the second verifier", &by_second, [&*first, "keywright-controller", &controller_pod]),
        ("a token for no Pod", &by_no_pod, [&*first, "keywright-controller", ""]),
        ("the controller", &by_controller, [&*first, &*second, &controller_pod]),
    ] {
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            // The policy is asked before it is seen that there is one of that name already.
            let answer = leases.create(&post, &lease(name)).await;
            assert!(installation.is_refused_by("leases", &answer), "{who}, create {name}: {answer:?}");
            if [&*first, &*second, "keywright-controller"].contains(&name) {
                let answer = leases.patch(name, &patch, &renewed).await;
                assert!(installation.is_refused_by("leases", &answer), "{who}, renew {name}: {answer:?}");
            }
        }
    }
    for (who, leases, name) in [
        ("the first verifier", &by_first, &*second),
        ("a token for no Pod", &by_no_pod, &*first),
        ("the controller", &by_controller, "keywright-controller"),
    ] {
        let answer = leases.delete(name, &DeleteParams::default()).await.map(drop);
        assert!(installation.is_refused_by("leases", &answer), "{who}, delete {name}: {answer:?}");
    }
    by_first.patch(&first, &patch, &renewed).await.unwrap();
    by_controller.patch("keywright-controller", &patch, &renewed).await.unwrap();
    by_first.delete(&first, &DeleteParams::default()).await.unwrap();
    by_controller.delete(&second, &DeleteParams::default()).await.unwrap();
    // Other programs in the namespace have Leases of their own.
    installation.system::<Lease>().create(&post, &lease("another")).await.unwrap();
}

#[tokio::test]
async fn namespaces_go_and_garbage_is_collected_under_them() {
    let scene = Scene::new("policy-namespaces").await;
    let installation = &scene.installation;
    scene.declare("ci", json!({})).await;
    let key = scene.key("ci", 1).await;
    let records = scene.records();
    installation.in_force("records", async || records.create(&dry_run(), &record("probe")).await).await;
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let api_keys = scene.api_keys();
    installation.in_force("finalizer", async || api_keys.patch("ci", &dry_patch(), &none).await).await;

    let namespaces = Api::<Namespace>::all(installation.client.clone());
    namespaces.delete(&installation.tenant_namespace, &DeleteParams::default()).await.unwrap();
    wait::for_absence(&namespaces, &installation.tenant_namespace).await;
    scene.answers(&key, INSIDE, 401).await;
    assert_eq!(records.list(&ListParams::default()).await.unwrap().items.len(), 1);
    namespaces.delete(&installation.system_namespace, &DeleteParams::default()).await.unwrap();
    wait::for_absence(&namespaces, &installation.system_namespace).await;
}

/// With the controller and the policies gone, nothing holds a finalizer that nobody would ever remove.
#[tokio::test]
async fn an_uninstalled_keywright_holds_nothing_up() {
    let installation = Installation::new("policy-uninstall").await;
    let api_keys: Api<ApiKey> = installation.tenant();
    let mut declared = api_key("ci", json!({}));
    declared.finalizers_mut().push(FINALIZER.to_owned());
    api_keys.create(&PostParams::default(), &declared).await.unwrap();
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    installation.in_force("finalizer", async || api_keys.patch("ci", &dry_patch(), &none).await).await;
    api_keys.delete("ci", &DeleteParams::default()).await.unwrap();
    installation.remove_cluster_scoped().unwrap();
    installation.permitted("finalizer", async || api_keys.patch("ci", &PatchParams::default(), &none).await).await;
    wait::for_absence(&api_keys, "ci").await;
}

/// A client of this ServiceAccount, which is made where it is absent and gets these rights in a namespace.
async fn with_rights(
    installation: &Installation,
    (namespace, name): (&str, &str),
    place: &str,
    rules: &Value,
) -> Client {
    grant(installation, (namespace, name), place, rules).await;
    let token = token(installation, namespace, name).await;
    let kubeconfig = installation.control_plane.write_kubeconfig(Some(&token), None);
    installation.control_plane.client_of(&kubeconfig).await
}

async fn grant(installation: &Installation, (namespace, name): (&str, &str), place: &str, rules: &Value) {
    let post = PostParams::default();
    let accounts = Api::<ServiceAccount>::namespaced(installation.client.clone(), namespace);
    if accounts.get_opt(name).await.unwrap().is_none() {
        accounts.create(&post, &object(json!({"metadata": {"name": name}}))).await.unwrap();
    }
    let role = format!("{name}-{:06x}", rand::random::<u32>() >> 8);
    let roles = Api::<Role>::namespaced(installation.client.clone(), place);
    roles.create(&post, &object(json!({"metadata": {"name": role}, "rules": rules}))).await.unwrap();
    let binding = json!({
        "metadata": {"name": role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    });
    let bindings = Api::<RoleBinding>::namespaced(installation.client.clone(), place);
    bindings.create(&post, &object(binding)).await.unwrap();
}

/// A token of this ServiceAccount that is bound to no Pod.
async fn token(installation: &Installation, namespace: &str, name: &str) -> String {
    let accounts = Api::<ServiceAccount>::namespaced(installation.client.clone(), namespace);
    let request: TokenRequest = object(json!({"metadata": {}, "spec": {"audiences": []}}));
    let answer = accounts.create_token_request(name, &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token
}

fn record(name: &str) -> ApiKeyRecord {
    object(json!({
        "apiVersion": "keywright.dev/v1alpha1",
        "kind": "ApiKeyRecord",
        "metadata": {"name": name},
        "spec": {
            "digest": format!("sha256:{:064x}", rand::random::<u64>()),
            "apiKey": {"namespace": "any", "name": name, "uid": name},
            "serial": 1,
        },
    }))
}

fn secret(name: &str, type_: &str, owners: Value) -> Secret {
    object(json!({"metadata": {"name": name, "ownerReferences": owners}, "type": type_}))
}

fn lease(name: &str) -> Lease {
    object(json!({"metadata": {"name": name}}))
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn json_patch(operations: Value) -> Patch<Value> {
    Patch::Json(object(operations))
}

fn dry_run() -> PostParams {
    PostParams { dry_run: true, ..PostParams::default() }
}

fn dry_patch() -> PatchParams {
    PatchParams { dry_run: true, ..PatchParams::default() }
}
