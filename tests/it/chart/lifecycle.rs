//! What an installation goes through: install, upgrade, rollback, uninstall, install again; by helm and without it.

use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use keywright_core::api::{ApiKey, ApiKeyRecord, Reason};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::timeout;

use super::super::scene::{api_key, is};
use super::chart;
use keywright_testing::{ControlPlane, Installation, output, project, wait};

const SYSTEM_NAMESPACE: &str = "keywright-system";

/// A control plane on which Keywright was never installed. It ends with the test.
struct Cluster {
    control_plane: &'static ControlPlane,
    client: Client,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.control_plane.end();
    }
}

impl Cluster {
    async fn new() -> Self {
        let control_plane = ControlPlane::empty().await;
        let client = control_plane.client().await;
        Self { control_plane, client }
    }

    /// `helm install|upgrade keywright CHART ...`. There is no node, so no hook could run.
    fn helm(&self, subcommand: &str, chart: &Path, options: &[&str]) -> anyhow::Result<String> {
        self.helm_release(subcommand, "keywright", chart, options)
    }

    fn helm_release(&self, subcommand: &str, release: &str, chart: &Path, options: &[&str]) -> anyhow::Result<String> {
        let mut helm = self.control_plane.helm([subcommand, release]);
        helm.arg(chart).args(["--no-hooks", "--namespace", SYSTEM_NAMESPACE]);
        if subcommand == "install" {
            helm.arg("--create-namespace");
        }
        output(helm.args(options))
    }

    fn uninstall(&self) {
        let uninstall =
            ["uninstall", "keywright", "--no-hooks", "--wait", "--timeout=1m", "--namespace", SYSTEM_NAMESPACE];
        output(&mut self.control_plane.helm(uninstall)).unwrap();
    }

    fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        output(self.control_plane.kubectl(words).args(["--namespace", SYSTEM_NAMESPACE]))
    }

    fn validating(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    fn mutating(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// As the Job does: read, set, PUT.
    async fn write_ca_bundle(&self, bundle: &str) {
        let bundle = Some(ByteString(bundle.into()));
        let as_the_job = PostParams { field_manager: Some("keywright".to_owned()), ..PostParams::default() };
        let mut validating = self.validating().get("keywright").await.unwrap();
        validating.webhooks.iter_mut().flatten().for_each(|webhook| webhook.client_config.ca_bundle = bundle.clone());
        self.validating().replace("keywright", &as_the_job, &validating).await.unwrap();
        let mut mutating = self.mutating().get("keywright").await.unwrap();
        mutating.webhooks.iter_mut().flatten().for_each(|webhook| webhook.client_config.ca_bundle = bundle.clone());
        self.mutating().replace("keywright", &as_the_job, &mutating).await.unwrap();
    }

    /// The bundles of all webhooks, and their timeouts.
    async fn webhooks(&self) -> Vec<(String, Option<i32>)> {
        let text = |bundle: Option<ByteString>| String::from_utf8(bundle.unwrap_or_default().0).unwrap();
        let validating = self.validating().get("keywright").await.unwrap().webhooks.unwrap();
        let validating =
            validating.into_iter().map(|webhook| (webhook.client_config.ca_bundle, webhook.timeout_seconds));
        let mutating = self.mutating().get("keywright").await.unwrap().webhooks.unwrap();
        let mutating = mutating.into_iter().map(|webhook| (webhook.client_config.ca_bundle, webhook.timeout_seconds));
        validating.chain(mutating).map(|(bundle, timeout)| (text(bundle), timeout)).collect()
    }

    /// Some certificate.
    async fn certificate(&self) -> String {
        let config_maps = Api::<ConfigMap>::namespaced(self.client.clone(), "kube-system");
        let root = wait::for_object(&config_maps, "kube-root-ca.crt", |root| root.data.is_some()).await;
        root.data.unwrap()["ca.crt"].clone()
    }

    fn definitions(&self) -> Api<CustomResourceDefinition> {
        Api::all(self.client.clone())
    }
}

/// The chart as it was before it last changed, as far as git knows.
fn previous_chart(control_plane: &ControlPlane) -> Option<PathBuf> {
    let git = |words: &[&str]| output(Command::new("git").arg("-C").arg(project()).args(words));
    let commits = git(&["log", "--format=%H", "--", "charts", "crds"]).ok()?;
    let differs = |commit: &&str| git(&["diff", "--quiet", commit, "--", "charts", "crds"]).is_err();
    let previous = commits.lines().find(differs)?;
    let folder = control_plane.folder();
    let archive = folder.join("chart.tar");
    git(&["archive", "--output", archive.to_str()?, previous, "charts", "crds"]).ok()?;
    output(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&folder)).unwrap();
    Some(folder.join("charts/keywright"))
}

#[tokio::test]
async fn a_ca_bundle_that_was_written_stays() {
    let cluster = Cluster::new().await;
    cluster.helm("install", &chart(), &[]).unwrap();
    let nothing_yet = (String::new(), Some(5));
    assert_eq!(cluster.webhooks().await, [nothing_yet.clone(), nothing_yet]);

    let certificate = cluster.certificate().await;
    cluster.write_ca_bundle(&certificate).await;
    let still = async |timeout, after: &str| {
        let expected = (certificate.clone(), Some(timeout));
        assert_eq!(cluster.webhooks().await, [expected.clone(), expected], "after {after}");
    };
    cluster.helm("upgrade", &chart(), &["--set=webhook.timeoutSeconds=7"]).unwrap();
    still(7, "helm upgrade").await;
    let rollback = ["rollback", "keywright", "1", "--no-hooks", "--namespace", SYSTEM_NAMESPACE];
    output(&mut cluster.control_plane.helm(rollback)).unwrap();
    still(5, "helm rollback").await;
    cluster.helm("upgrade", &chart(), &["--server-side=false", "--set=webhook.timeoutSeconds=8"]).unwrap();
    still(8, "helm upgrade by the client's side, as Helm 3 does").await;
    let forced = ["--server-side=true", "--force-conflicts", "--set=webhook.timeoutSeconds=9"];
    cluster.helm("upgrade", &chart(), &forced).unwrap();
    still(9, "helm upgrade with force").await;
}

/// Helm's own default is to forget them.
#[tokio::test]
async fn the_documented_upgrade_keeps_the_values_of_the_installation() {
    let cluster = Cluster::new().await;
    cluster.helm("install", &chart(), &["--set=webhook.timeoutSeconds=7"]).unwrap();
    let mut tried = 0;
    for page in ["README.md", "charts/keywright/README.md", "docs/certificates.md", "docs/security.md"] {
        let text = std::fs::read_to_string(project().join(page)).unwrap();
        let commands = text.split(['`', '\n']).filter_map(|words| words.trim().strip_prefix("helm upgrade keywright "));
        for command in commands {
            // There is no node, so nothing gets Ready. A line that goes on below only adds to it.
            let words = command.split(' ').filter(|word| !["charts/keywright", "--wait", "\\"].contains(word));
            let mut helm = cluster.control_plane.helm(["upgrade", "keywright"]);
            output(helm.arg(chart()).args(words).arg("--no-hooks")).unwrap_or_else(|error| panic!("{page}: {error}"));
            let kept = (String::new(), Some(7));
            assert_eq!(cluster.webhooks().await, [kept.clone(), kept], "{page}: helm upgrade keywright {command}");
            tried += 1;
        }
    }
    assert!(tried >= 4, "the documents do not say how to upgrade: {tried}");
}

/// There is no node here, which for a Job is as good as an image that cannot be pulled.
#[tokio::test]
async fn a_job_that_never_starts_ends_and_helm_says_which() {
    let cluster = Cluster::new().await;
    let install = ["install", "keywright", "--create-namespace", "--namespace", SYSTEM_NAMESPACE, "--timeout=60s"];
    let mut install = cluster.control_plane.helm(install);
    let failed = output(install.arg(chart()).arg("--set=certificates.activeDeadlineSeconds=10"));
    let failed = failed.expect_err("no Job can run").to_string();
    assert!(failed.contains("keywright-certificates") && failed.contains("Failed"), "{failed}");
    let why = "--output=jsonpath={.status.conditions[?(@.type=='Failed')].reason}";
    assert_eq!(cluster.kubectl(&["get", "job", "keywright-certificates", why]).unwrap(), "DeadlineExceeded");
    let pods =
        cluster.kubectl(&["get", "pods", "--selector=app.kubernetes.io/component=certificates", "--output=name"]);
    assert_eq!(pods.unwrap(), "", "nothing tries for ever");
}

#[tokio::test]
async fn plain_manifests_can_be_applied_again_and_again() {
    let cluster = Cluster::new().await;
    let folder = cluster.control_plane.folder();
    let mut render = Command::new(project().join("charts/manifests.sh"));
    output(render.arg(cluster.control_plane.programs().join("helm")).arg(&folder)).unwrap();
    let folder = folder.to_str().unwrap();
    let built = cluster.kubectl(&["kustomize", folder]).unwrap();
    assert!(!built.contains("BEGIN "), "a key or a certificate");

    let apply = ["apply", "--kustomize", folder];
    let made = cluster.kubectl(&apply).unwrap();
    assert_eq!(made.lines().count(), super::parsed(&built).len());
    assert!(made.lines().all(|line| line.ends_with(" created")), "{made}");
    let installation = Installation::existing(cluster.control_plane, SYSTEM_NAMESPACE, "chart-manifests").await;
    let job = || installation.program("certificates").argument("--webhook-configuration=keywright").run();
    let (code, said) = job().await;
    assert_eq!(code, Some(0), "{said}");
    let bundle = cluster.webhooks().await;
    assert!(bundle.iter().all(|(bundle, _)| bundle.starts_with("-----BEGIN CERTIFICATE")), "{bundle:?}");

    // Nothing that the API server, a controller or the Job adds is a difference.
    cluster.kubectl(&["diff", "--kustomize", folder]).unwrap();
    let generations =
        || cluster.kubectl(&["get", "--output=jsonpath={.items[*].metadata.generation}", "--kustomize", folder]);
    let before = generations().unwrap();
    cluster.kubectl(&apply).unwrap();
    assert_eq!(generations().unwrap(), before);
    let server_side = ["--server-side", "--force-conflicts", "--kustomize", folder];
    cluster.kubectl(&[&["apply"], &server_side[..]].concat()).unwrap();
    cluster.kubectl(&[&["diff"], &server_side[..]].concat()).unwrap();
    assert_eq!(cluster.webhooks().await, bundle);
    assert_eq!(job().await.0, Some(0));
    assert_eq!(cluster.webhooks().await, bundle, "after another run of the Job");
}

#[tokio::test]
async fn keys_outlive_upgrade_rollback_and_reinstallation() {
    let cluster = Cluster::new().await;
    let control_plane = cluster.control_plane;
    match previous_chart(control_plane) {
        Some(previous) => {
            cluster.helm("install", &previous, &[]).unwrap();
            cluster.helm("upgrade", &chart(), &[]).unwrap();
        }
        None => {
            eprintln!("git knows no earlier chart: the upgrade from it is not tried");
            cluster.helm("install", &chart(), &[]).unwrap();
            cluster.helm("upgrade", &chart(), &["--set=webhook.timeoutSeconds=7"]).unwrap();
        }
    }
    // There is no node to run a webhook, and without one no ApiKey can be made.
    for configurations in ["validatingwebhookconfiguration", "mutatingwebhookconfiguration"] {
        cluster.kubectl(&["delete", configurations, "keywright"]).unwrap();
    }
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).unwrap();
    cluster.kubectl(&["create", "namespace", "chart-keys"]).unwrap();
    let installation = Installation::existing(control_plane, SYSTEM_NAMESPACE, "chart-keys").await;
    let (api_keys, records) = (installation.tenant::<ApiKey>(), installation.system::<ApiKeyRecord>());
    let controller = installation.program("controller").start().await;
    api_keys.create(&PostParams::default(), &api_key("ci", json!({"owner": "ada"}))).await.unwrap();
    wait::for_object(&api_keys, "ci", |api_key| is(api_key, Reason::Active)).await;
    let key = installation.tenant::<Secret>().get("ci").await.unwrap();
    let record = records.list(&ListParams::default()).await.unwrap().items.remove(0);

    // Back and forth; from here on the webhook is configured, and nobody answers.
    let rollback = ["rollback", "keywright", "1", "--no-hooks", "--namespace", SYSTEM_NAMESPACE];
    output(&mut control_plane.helm(rollback)).unwrap();
    cluster.helm("upgrade", &chart(), &[]).unwrap();
    assert_eq!(installation.tenant::<Secret>().get("ci").await.unwrap(), key);
    assert_eq!(
        records.get_metadata(&name(&record)).await.unwrap().metadata.resource_version,
        record.metadata.resource_version
    );

    let edit = Patch::Merge(json!({"spec": {"suspended": true}}));
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    let refused = timeout(wait::DEADLINE, async {
        loop {
            // The API server learns of a new configuration a moment later.
            if let Err(refused) = api_keys.patch("ci", &dry_run, &edit).await {
                break refused.to_string();
            }
        }
    });
    let refused = refused.await.expect("an edit is refused while no webhook answers");
    assert!(refused.contains("failed calling webhook"), "{refused}");
    let patch = async |change| api_keys.patch("ci", &PatchParams::default(), &Patch::Merge(change)).await;
    patch(json!({"metadata": {"annotations": {"keywright.dev/created-by": "eve"}}}))
        .await
        .expect_err("a change that is judged");
    let disguised = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"suspended": true}});
    let refused = patch(disguised).await.expect_err("nobody looked at it").to_string();
    assert!(refused.contains("failed calling webhook"), "{refused}");
    patch(json!({"metadata": {"labels": {"team": "a"}}})).await.expect("a change that nobody judges");
    let status = json!({"status": {"secretName": "ci"}});
    api_keys.patch_status("ci", &PatchParams::default(), &Patch::Merge(status)).await.expect("a status");

    controller.terminate().await;
    cluster.uninstall();
    assert_eq!(installation.tenant::<Secret>().get("ci").await.unwrap(), key);
    assert_eq!(records.list(&ListParams::default()).await.unwrap().items.len(), 1);
    assert!(
        cluster.validating().get_opt("keywright").await.unwrap().is_none(),
        "it would refuse every ApiKey for ever"
    );
    assert!(cluster.mutating().get_opt("keywright").await.unwrap().is_none());

    let refused = cluster.helm_release("install", "other", &chart(), &["--dry-run=server"]).unwrap_err().to_string();
    assert!(refused.contains("apikeyrecords.keywright.dev") && refused.contains("release-name"), "{refused}");
    cluster.helm_release("install", "other", &chart(), &["--dry-run=server", "--take-ownership"]).unwrap();

    cluster.helm("install", &chart(), &[]).unwrap();
    let controller = installation.program("controller").start().await;
    controller.ready().await;
    // Deleting needs no webhook either, finalizer and all.
    api_keys.delete("ci", &DeleteParams::default()).await.unwrap();
    wait::for_absence(&api_keys, "ci").await;
    assert!(records.get(&name(&record)).await.unwrap().spec.revoked.is_some());
    controller.terminate().await;

    cluster.helm("upgrade", &chart(), &["--set=crds.keep=false"]).unwrap();
    assert!(cluster.definitions().get_opt("apikeys.keywright.dev").await.unwrap().is_some());
    cluster.uninstall();
    wait::for_absence(&cluster.definitions(), "apikeys.keywright.dev").await;
}

fn name(record: &ApiKeyRecord) -> String {
    record.metadata.name.clone().unwrap()
}
