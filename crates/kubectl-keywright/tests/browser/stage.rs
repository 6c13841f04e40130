//! A cluster with keys in every state, and plugins of several users.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use keywright_core::api::{ApiKey, Reason};
use keywright_core::key::Digest;
use keywright_testing::{ControlPlane, FaultProxy, Installation, Program, wait};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::outage;

/// An installation at work, and a person with each set of rights who has the page open.
pub struct Stage {
    pub installation: &'static Installation,
    pub verifier: Program,
    _others: Vec<Program>,
    pages: Vec<(&'static str, Program)>,
    /// Where the way of `remote` to the API server is disturbed.
    outages: SocketAddr,
}

/// Each person, and what they may do: resources and verbs.
const PEOPLE: [(&str, &[(&str, &str, &str)]); 3] = [
    (
        "ann",
        &[
            ("keywright.dev", "apikeys", "get list watch create update patch delete deletecollection"),
            ("apps", "deployments", "list"),
            ("", "events", "list"),
        ],
    ),
    ("viewer", &[LOOK]),
    ("nobody", &[]),
];
const LOOK: (&str, &str, &str) = ("keywright.dev", "apikeys", "get list watch");

/// The namespaces that no controller looks after, and how many ApiKeys are in each.
const CROWDS: [(&str, u32); 3] = [("long", 1), ("few", 100), ("many", 5000)];

impl Stage {
    pub async fn new(name: &str) -> Self {
        // For as long as the process: the webhook borrows it.
        let installation: &Installation = Box::leak(Box::new(Installation::new(name).await));
        let verifier = installation.program("verifier").start().await;
        verifier.ready().await;
        let controller = installation.program("controller").argument("--leader-elect=false").start().await;
        controller.ready().await;
        let webhook: &mut _ = Box::leak(Box::new(installation.webhook().await));
        let mut pages = Vec::new();
        for (person, rules) in PEOPLE {
            pages.push((person, page_of(installation, person, rules).await));
        }
        let administrator = installation.control_plane.write_kubeconfig(None, None);
        pages.push(("administrator", page_with(installation, &administrator).await));
        let faults: &FaultProxy = Box::leak(Box::new(FaultProxy::start(installation.control_plane).await));
        pages.push(("remote", page_through(installation, "remote", &[LOOK], Some(faults)).await));
        let elsewhere = ControlPlane::empty().await.write_kubeconfig(None, None);
        pages.push(("elsewhere", page_with(installation, &elsewhere).await));
        let others = vec![controller, webhook.program.take().unwrap()];
        Self { installation, verifier, _others: others, pages, outages: outage::serve(faults).await }
    }

    /// Many keys, in namespaces of their own.
    pub async fn crowd(&self) {
        for (crowd, count) in CROWDS {
            let namespace = self.namespace(crowd);
            let object = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
            let namespaces: Api<Namespace> = Api::all(self.installation.client.clone());
            namespaces.create(&PostParams::default(), &object).await.unwrap();
            grant(self.installation, &namespace, "remote", &[LOOK]).await;
            let keys: Api<ApiKey> = Api::namespaced(self.installation.client.clone(), &namespace);
            let now = jiff::Timestamp::now();
            stream::iter(0..count).for_each_concurrent(16, |number| one_of_many(&keys, number, now)).await;
        }
        let longest = json!({
            "displayName": "W".repeat(128), "owner": "o".repeat(128), "description": "d ".repeat(512), "expiresIn": "90d",
            "allowedIPs": (0..256).map(|number| format!("2001:db8:1111:2222:3333:4444:5555:{number:x}/128")).collect::<Vec<_>>(),
        });
        let metadata = json!({"name": "n".repeat(253)});
        let longest =
            json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": metadata, "spec": longest});
        let keys: Api<ApiKey> = Api::namespaced(self.installation.client.clone(), &self.namespace("long"));
        keys.create(&PostParams::default(), &serde_json::from_value(longest).unwrap()).await.unwrap();
    }

    /// No page's program has said more of a key than its prefix.
    pub fn assert_that_no_key_was_printed(&self) {
        for (person, page) in &self.pages {
            let printed = page.printed();
            let keys = printed.split("keyw1_").skip(1);
            let longest = keys.map(|key| key.chars().take_while(char::is_ascii_alphanumeric).count()).max();
            assert!(longest.unwrap_or_default() <= 8, "{person}: {printed}");
        }
    }

    fn namespace(&self, crowd: &str) -> String {
        format!("{}-{crowd}", self.installation.tenant_namespace)
    }

    /// Keys in every state, as the real controller has them.
    pub async fn fill(&self) {
        let far = json!({"expiresIn": "90d", "allowedIPs": ["10.0.0.0/8", "2001:db8::/48"]});
        let keys: Api<ApiKey> = self.installation.tenant();
        let taken = json!({"metadata": {"name": "taken"}, "stringData": {"a": "b"}});
        self.create::<Secret>(&taken).await;
        let digest = |text: &str| Digest::of(text.as_bytes()).to_string();
        let foreign = digest(&"f".repeat(40));
        for (name, spec) in [
            (
                "nightly-ci",
                json!({"displayName": "Nightly CI", "owner": "ann@example.org", "description": "Builds and tests every night"}),
            ),
            (
                "deploy-runner",
                json!({"displayName": "Deployment runner", "owner": "ann@example.org", "scopes": ["deploy"]}),
            ),
            (
                "old-cron",
                json!({"displayName": "Old cron", "owner": "bob@example.org", "expiresIn": "Never", "allowedIPs": null}),
            ),
            ("paused", json!({"displayName": "Load test", "owner": "carol@example.org", "suspended": true})),
            (
                "contractor",
                json!({"displayName": "Contractor, summer", "owner": "bob@example.org", "expiresIn": null, "expiresAt": "2026-01-31T00:00:00Z"}),
            ),
            ("hand-over", json!({"displayName": "Hand-over", "owner": "carol@example.org", "expiresIn": "3d"})),
            (
                "legacy-gateway",
                json!({"displayName": "Legacy gateway", "owner": "carol@example.org", "keyHash": foreign}),
            ),
            (
                "legacy-copy",
                json!({"displayName": "Legacy gateway, copied", "owner": "carol@example.org", "keyHash": foreign}),
            ),
            ("taken", json!({"displayName": "Name is taken", "owner": "ann@example.org"})),
            (
                "unmended",
                json!({"displayName": "Source without a key", "owner": "ann@example.org", "keyFrom": {"secretRef": {"name": "none", "key": "k"}}}),
            ),
            (
                "rotated",
                json!({"displayName": "Billing export", "owner": "ann@example.org", "rotation": {"every": "30d"}}),
            ),
            ("unlucky-1", json!({"displayName": "Metrics reader", "owner": "dora@example.org"})),
            ("unlucky-2", json!({"displayName": "Backup", "owner": "dora@example.org"})),
        ] {
            let mut object = json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": far});
            for (field, value) in spec.as_object().unwrap() {
                object["spec"][field] = value.clone();
            }
            object["spec"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
            self.create::<ApiKey>(&object).await;
            if name == "legacy-gateway" {
                self.reason(name, Reason::Active).await;
            }
        }
        for (name, reason) in [
            ("nightly-ci", Reason::Active),
            ("old-cron", Reason::Active),
            ("rotated", Reason::Active),
            ("paused", Reason::Suspended),
            ("contractor", Reason::Expired),
            ("legacy-copy", Reason::DigestTaken),
            ("taken", Reason::SecretNameTaken),
            ("unmended", Reason::SourceUnusable),
        ] {
            self.reason(name, reason).await;
        }
        let rotate = json!({"metadata": {"annotations": {"keywright.dev/rotate": "1"}}});
        keys.patch("rotated", &PatchParams::default(), &Patch::Merge(&rotate)).await.unwrap();
        self.reason("rotated", Reason::Rotating).await;
        self.used_days_ago("old-cron", 94).await;
        self.used_days_ago("nightly-ci", 0).await;
        let container = json!({
            "name": "c", "image": "c",
            "env": [{"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "nightly-ci", "key": "api-key"}}}],
        });
        let pods = json!({"metadata": {"labels": {"app": "runner"}}, "spec": {"containers": [container]}});
        let spec = json!({"selector": {"matchLabels": {"app": "runner"}}, "template": pods});
        self.create::<Deployment>(&json!({"metadata": {"name": "runner"}, "spec": spec})).await;
    }

    /// What the tests in the browser need to know.
    pub async fn told(&self) -> Value {
        let pages: serde_json::Map<String, Value> =
            self.pages.iter().map(|(person, page)| ((*person).to_owned(), json!(address(page)))).collect();
        let control_plane = self.installation.control_plane;
        json!({
            "pages": pages,
            "processes": self.pages.iter().map(|(person, page)| ((*person).to_owned(), json!(page.id()))).collect::<serde_json::Map<_, _>>(),
            "namespace": self.installation.tenant_namespace,
            "long": self.namespace("long"),
            "few": self.namespace("few"),
            "many": self.namespace("many"),
            "outages": self.outages.to_string(),
            "system": self.installation.system_namespace,
            "kubectl": control_plane.programs().join("kubectl"),
            "kubeconfig": control_plane.write_kubeconfig(None, None),
            "verifier": self.verifier.address("http").to_string(),
            "verifierProcess": self.verifier.id(),
            "shots": keywright_testing::project().join("target/screenshots"),
        })
    }

    async fn create<K>(&self, object: &Value)
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = self.installation.tenant();
        api.create(&PostParams::default(), &serde_json::from_value(object.clone()).unwrap()).await.unwrap();
    }

    async fn reason(&self, name: &str, reason: Reason) {
        let keys: Api<ApiKey> = self.installation.tenant();
        wait::for_object(&keys, name, move |key: &ApiKey| {
            let conditions = key.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|condition| condition.reason == reason)
        })
        .await;
    }

    /// Writes a last use as the controller would.
    async fn used_days_ago(&self, name: &str, days: u64) {
        let keys: Api<ApiKey> = self.installation.tenant();
        let then = jiff::Timestamp::now() - Duration::from_secs(days * 86_400 + 250);
        let status = json!({"status": {"lastUsedAt": then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}});
        keys.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }
}

/// The address that a page's program has printed.
pub fn address(page: &Program) -> String {
    let printed = page.printed();
    printed.lines().find(|line| line.starts_with("http://127.0.0.1:")).expect("an address").to_owned()
}

/// The plugin's page of a user with these rights in the tenant's namespace.
pub async fn page_of(installation: &Installation, person: &str, rules: &[(&str, &str, &str)]) -> Program {
    page_through(installation, person, rules, None).await
}

/// The same. It reaches the API server through the proxy.
pub async fn page_through(
    installation: &Installation,
    person: &str,
    rules: &[(&str, &str, &str)],
    faults: Option<&FaultProxy>,
) -> Program {
    let accounts: Api<ServiceAccount> = installation.tenant();
    let account = serde_json::from_value(json!({"metadata": {"name": person}})).unwrap();
    accounts.create(&PostParams::default(), &account).await.unwrap();
    grant(installation, &installation.tenant_namespace, person, rules).await;
    let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": {"audiences": []}})).unwrap();
    let token = accounts.create_token_request(person, &PostParams::default(), &request).await.unwrap();
    let kubeconfig = installation
        .control_plane
        .write_kubeconfig(Some(&token.status.unwrap().token), faults.map(FaultProxy::url).as_deref());
    page_with(installation, &kubeconfig).await
}

/// Lets a person do this in a namespace.
async fn grant(installation: &Installation, namespace: &str, person: &str, rules: &[(&str, &str, &str)]) {
    let rules: Vec<_> = rules
        .iter()
        .map(|(group, resource, verbs)| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs.split(' ').collect::<Vec<_>>()}))
        .collect();
    let roles: Api<Role> = Api::namespaced(installation.client.clone(), namespace);
    let role = serde_json::from_value(json!({"metadata": {"name": person}, "rules": rules})).unwrap();
    roles.create(&PostParams::default(), &role).await.unwrap();
    let bindings: Api<RoleBinding> = Api::namespaced(installation.client.clone(), namespace);
    let binding = serde_json::from_value(json!({
        "metadata": {"name": person},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": person},
        "subjects": [{"kind": "ServiceAccount", "name": person, "namespace": installation.tenant_namespace}],
    }));
    bindings.create(&PostParams::default(), &binding.unwrap()).await.unwrap();
}

/// One key of a crowd, as the controller would have it.
async fn one_of_many(keys: &Api<ApiKey>, number: u32, now: jiff::Timestamp) {
    let ago = |seconds: u32| (now - Duration::from_secs(seconds.into())).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let name = format!("service-{number}");
    let spec = json!({
        "displayName": format!("Service {number}"),
        "description": "What this key is for, in a sentence",
        "owner": format!("person-{}@example.org", number % 40),
        "expiresIn": if number.is_multiple_of(9) { "Never" } else { "90d" },
        "allowedIPs": if number.is_multiple_of(7) { Value::Null } else { json!(["10.0.0.0/8", "2001:db8::/48"]) },
    });
    let object =
        json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": spec});
    keys.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "Active", "message": "callers are let in",
        "observedGeneration": 1, "lastTransitionTime": ago(0),
    });
    let status = json!({"status": {
        "conditions": [ready], "enforcedGeneration": 1, "serial": 1, "lastUsedAt": ago(61 * number),
        "keyPrefix": format!("keyw1_{number:0>8}"), "secretName": name,
    }});
    keys.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
}

/// The plugin's page of whoever this kubeconfig is for.
async fn page_with(installation: &Installation, kubeconfig: &Path) -> Program {
    let command = [
        env!("CARGO_BIN_EXE_kubectl-keywright"),
        "ui",
        "--no-browser",
        "--namespace",
        &installation.tenant_namespace,
        "--kubeconfig",
        &kubeconfig.display().to_string(),
    ];
    let page = Program::other("kubectl keywright ui", &command.map(str::to_owned)).await;
    wait::until("the page's address", async || page.printed().contains("http://127.0.0.1:")).await;
    page
}
