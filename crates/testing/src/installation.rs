//! One installation of Keywright for one test: a system and a tenant namespace, the rendered chart, ServiceAccounts'
//! credentials, and a report when the test fails.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Deserialize;
use serde_json::{Value, json};

use super::command::{output, project};
use super::control_plane::ControlPlane;
use super::printed::Output;
use super::wait::without_secrets;

/// Keywright as a user installs it, except that the test starts the programs itself (there is no node) and that no
/// webhook is configured. Removed when dropped; a failed test's state is printed first.
pub struct Installation {
    pub control_plane: &'static ControlPlane,
    /// An administrator's.
    pub client: Client,
    /// The system namespace: `<test>-<random>-system`.
    pub system_namespace: String,
    /// The namespace that the controller watches: `<test>-<random>`.
    pub tenant_namespace: String,
    cluster_scoped: Vec<Value>,
    outputs: Mutex<Vec<Arc<Output>>>,
}

/// One Pod's way to the API server: a token of its ServiceAccount that is bound to it, as a kubelet would mount.
pub struct Credentials {
    pub pod_name: String,
    token: String,
    control_plane: &'static ControlPlane,
}

impl Installation {
    /// Installs the chart for one test, whose name must do as a part of a namespace's name.
    pub async fn new(test_name: &str) -> Self {
        Self::on(ControlPlane::shared().await, test_name).await
    }

    /// The same, on this control plane.
    pub async fn on(control_plane: &'static ControlPlane, test_name: &str) -> Self {
        let client = control_plane.client().await;
        let release = format!("{test_name}-{:06x}", rand::random::<u32>() >> 8);
        let mut installation = Self {
            control_plane,
            client,
            system_namespace: format!("{release}-system"),
            tenant_namespace: release.clone(),
            cluster_scoped: Vec::new(),
            outputs: Mutex::default(),
        };
        if let Err(error) = installation.install(&release).await {
            panic!("installing the chart: {error:#}");
        }
        installation
    }

    /// What was installed into `system_namespace` by other means, for its programs to be run.
    pub async fn existing(
        control_plane: &'static ControlPlane,
        system_namespace: &str,
        tenant_namespace: &str,
    ) -> Self {
        Self {
            control_plane,
            client: control_plane.client().await,
            system_namespace: system_namespace.to_owned(),
            tenant_namespace: tenant_namespace.to_owned(),
            cluster_scoped: Vec::new(),
            outputs: Mutex::default(),
        }
    }

    async fn install(&mut self, release: &str) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        for name in [&self.system_namespace, &self.tenant_namespace] {
            let restricted = json!({"pod-security.kubernetes.io/enforce": "restricted"});
            let namespace = serde_json::from_value(json!({"metadata": {"name": name, "labels": restricted}}))?;
            namespaces.create(&PostParams::default(), &namespace).await?;
        }
        let objects = self.rendered_chart(release)?;
        self.cluster_scoped = objects.iter().filter(|object| is_own_cluster_scoped(object, release)).cloned().collect();
        self.kubectl_with_objects(&["apply", "--namespace", &self.system_namespace], &objects)
    }

    fn rendered_chart(&self, release: &str) -> Result<Vec<Value>> {
        // The control plane already has the custom resource definitions, and the tenants' roles have one name for all.
        let values = "crds.install=false,tenantRoles.enabled=false";
        let options = ["--namespace", &self.system_namespace, "--set", values];
        let mut helm = self.control_plane.helm(["template", release]);
        let rendered = output(helm.arg(project().join("charts/keywright")).args(options))?;
        let mut objects = Vec::new();
        for document in serde_yaml::Deserializer::from_str(&rendered) {
            let mut object = Value::deserialize(document).context("what helm renders")?;
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            // With no webhook running, a webhook configuration has every ApiKey of every test refused. The others need
            // a node, or controllers that are not there.
            let without = ["Deployment", "Job", "PodDisruptionBudget", "PriorityClass", "FlowSchema"];
            if object.is_null() || kind.ends_with("Configuration") || without.contains(&&*kind) {
                continue;
            }
            if kind == "ClusterRoleBinding" || kind.starts_with("ValidatingAdmissionPolicy") {
                let name = &object["metadata"]["name"];
                let unique = is_own_cluster_scoped(&object, release);
                ensure!(
                    unique,
                    "{kind} {name}: without the release's name in it, two installations overwrite each other"
                );
            }
            if kind == "ValidatingAdmissionPolicyBinding" {
                self.limit_to_own_namespaces(&mut object)?;
            }
            objects.push(object);
        }
        Ok(objects)
    }

    /// Other tests' installations have policies of their own.
    fn limit_to_own_namespaces(&self, binding: &mut Value) -> Result<()> {
        let expressions = &mut binding["spec"]["matchResources"]["namespaceSelector"]["matchExpressions"];
        if expressions.is_null() {
            *expressions = json!([]);
        }
        let own = [&self.system_namespace, &self.tenant_namespace];
        let limit = json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": own});
        expressions.as_array_mut().context("matchExpressions is no list")?.push(limit);
        Ok(())
    }

    fn kubectl_with_objects(&self, arguments: &[&str], objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let file = self.control_plane.write_private(&format!("{}.json", self.system_namespace), &list);
        output(self.control_plane.kubectl(arguments).arg("--filename").arg(file)).map(drop)
    }

    /// Applies cluster-wide objects of somebody else, as an administrator.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.kubectl_with_objects(&["apply"], objects)
    }

    /// Removes what [`Self::apply`] has brought.
    pub fn remove(&self, objects: &[Value]) -> Result<()> {
        self.kubectl_with_objects(&["delete", "--ignore-not-found"], objects)
    }

    /// Objects of the system namespace, as an administrator.
    pub fn system<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
    {
        Api::namespaced(self.client.clone(), &self.system_namespace)
    }

    /// Objects of the tenant namespace, as an administrator.
    pub fn tenant<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
    {
        Api::namespaced(self.client.clone(), &self.tenant_namespace)
    }

    /// A new Pod of `controller`, `verifier` or `webhook`, and a token of its ServiceAccount for it.
    pub async fn credentials(&self, component: &str) -> Credentials {
        self.request_credentials(component)
            .await
            .unwrap_or_else(|error| panic!("credentials of {component}: {error:#}"))
    }

    async fn request_credentials(&self, component: &str) -> Result<Credentials> {
        let service_account = format!("keywright-{component}");
        let pod = serde_json::from_value::<Pod>(json!({
            "metadata": {"name": format!("{service_account}-{:05x}", rand::random::<u32>() >> 12)},
            "spec": {
                "serviceAccountName": service_account,
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "keywright",
                    "image": "keywright",
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        }))?;
        let pod = self.system::<Pod>().create(&PostParams::default(), &pod).await?;
        let bound_to = json!({"kind": "Pod", "apiVersion": "v1", "name": pod.name_any(), "uid": pod.uid()});
        let request = json!({"metadata": {}, "spec": {"audiences": [], "boundObjectRef": bound_to}});
        let request: TokenRequest = serde_json::from_value(request)?;
        let service_accounts = self.system::<ServiceAccount>();
        let answer = service_accounts.create_token_request(&service_account, &PostParams::default(), &request).await?;
        Ok(Credentials {
            pod_name: pod.name_any(),
            token: answer.status.context("a TokenRequest without an answer")?.token,
            control_plane: self.control_plane,
        })
    }

    /// A token that nobody gave out.
    pub fn void_credentials(&self) -> Credentials {
        let (pod_name, token) = ("keywright-nobody".to_owned(), "void".to_owned());
        Credentials { pod_name, token, control_plane: self.control_plane }
    }

    /// Removes what it has beside its namespaces.
    pub fn remove_cluster_scoped(&self) -> Result<()> {
        self.kubectl_with_objects(&["delete", "--wait=false", "--ignore-not-found"], &self.cluster_scoped)
    }

    /// Has this program's output printed if the test fails.
    pub(crate) fn keep_output(&self, output: Arc<Output>) {
        self.outputs.lock().unwrap().push(output);
    }

    /// All that helps to understand a failed test, and no key.
    fn report(&self) -> String {
        let mut report = format!("\n=== The installation of the failed test, {} ===\n", self.tenant_namespace);
        let kinds =
            "apikeys.keywright.dev,apikeyrecords.keywright.dev,secrets,leases.coordination.k8s.io,events.events.k8s.io";
        for namespace in [&self.tenant_namespace, &self.system_namespace] {
            let get = ["get", kinds, "--output=json", "--namespace", namespace];
            let listed = output(&mut self.control_plane.kubectl(get));
            let objects = listed.and_then(|listed| Ok(serde_json::from_str::<Value>(&listed)?));
            let shown = objects.and_then(|objects| Ok(serde_yaml::to_string(&without_secrets(objects)["items"])?));
            report += &format!("--- {namespace} ---\n{}\n", shown.unwrap_or_else(|error| format!("{error:#}")));
        }
        for output in self.outputs.lock().unwrap().iter() {
            report += &format!("--- {} ---\n{}\n", output.title, output.text());
        }
        report
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
        // Best effort: what is left goes with the control plane.
        let delete = ["delete", "--wait=false", "--ignore-not-found"];
        let _ = self.remove_cluster_scoped();
        let namespaces = ["namespace", &self.system_namespace, &self.tenant_namespace];
        let _ =
            self.control_plane.kubectl(delete).args(namespaces).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

impl Credentials {
    /// Writes a kubeconfig file with these credentials, for the API server or for the fault proxy at that address.
    pub fn write_kubeconfig(&self, server: Option<&str>) -> PathBuf {
        self.control_plane.write_kubeconfig(Some(&self.token), server)
    }

    /// A client of their owner.
    pub async fn client(&self) -> Client {
        self.control_plane.client_of(&self.write_kubeconfig(None)).await
    }
}

fn is_own_cluster_scoped(object: &Value, release: &str) -> bool {
    let kinds = ["ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"];
    kinds.iter().any(|kind| object["kind"] == *kind)
        && object["metadata"]["name"].as_str().is_some_and(|name| name.contains(release))
}
