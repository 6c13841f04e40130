//! The webhook of one installation: the program, and the chart's configurations, which the real API server calls.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::command::{output, project};
use super::installation::Installation;
use super::program::Program;
use super::wait::DEADLINE;

/// A webhook at work, for the namespaces of its installation alone. Dropping it takes it down, and the configurations
/// with it.
pub struct Webhook<'a> {
    /// `None` once it was taken down.
    pub program: Option<Program>,
    installation: &'a Installation,
    configurations: PathBuf,
}

impl Installation {
    /// Starts the webhook and waits until the API server calls it.
    pub async fn webhook(&self) -> Webhook<'_> {
        let (certificate, key) = self.certificate().unwrap_or_else(|error| panic!("a certificate: {error:#}"));
        let program = self
            .program("webhook")
            .argument("--server-name=127.0.0.1")
            .argument(&format!("--tls-certificate={}", certificate.display()))
            .argument(&format!("--tls-key={}", key.display()))
            .start()
            .await;
        program.ready().await;
        let url = format!("https://{}", program.address("https"));
        let configurations = self.webhook_configurations(&url, &certificate);
        let configurations = configurations.unwrap_or_else(|error| panic!("webhook configurations: {error:#}"));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": configurations}).to_string();
        let file = self.control_plane.write_private(&format!("{}-webhook.json", self.system_namespace), &list);
        output(self.control_plane.kubectl(["apply", "--filename"]).arg(&file)).expect("the chart's configurations");
        let webhook = Webhook { program: Some(program), installation: self, configurations: file };
        webhook.called().await;
        webhook
    }

    /// The chart's webhook configurations, as it renders them.
    pub fn rendered_webhook_configurations(&self) -> Result<Vec<Value>> {
        let mut helm = self.control_plane.helm(["template", &self.tenant_namespace]);
        let options = ["--namespace", &self.system_namespace, "--set", "crds.install=false"];
        let rendered = output(helm.arg(project().join("charts/keywright")).args(options))?;
        let objects = serde_yaml::Deserializer::from_str(&rendered).map(Value::deserialize);
        let objects = objects.collect::<Result<Vec<_>, _>>().context("what helm renders")?;
        let is_configuration =
            |object: &Value| object["kind"].as_str().is_some_and(|kind| kind.ends_with("WebhookConfiguration"));
        let configurations: Vec<_> = objects.into_iter().filter(is_configuration).collect();
        ensure!(configurations.len() == 2, "the chart renders {} webhook configurations", configurations.len());
        Ok(configurations)
    }

    /// The chart's configurations, for a webhook that has no Service, and for this installation's namespaces only.
    fn webhook_configurations(&self, url: &str, certificate: &Path) -> Result<Vec<Value>> {
        let ca_bundle = serde_json::to_value(ByteString(std::fs::read(certificate)?))?;
        let own = [&self.system_namespace, &self.tenant_namespace];
        let mut configurations = self.rendered_webhook_configurations()?;
        for configuration in &mut configurations {
            for webhook in configuration["webhooks"].as_array_mut().context("webhooks is no list")? {
                let path = webhook["clientConfig"]["service"]["path"].as_str().context("a path")?;
                webhook["clientConfig"] = json!({"url": format!("{url}{path}"), "caBundle": ca_bundle});
                webhook["namespaceSelector"] = json!({
                    "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": own}],
                });
            }
        }
        Ok(configurations)
    }

    /// A new certificate for 127.0.0.1 and its key, in PEM files, in the place of those before.
    pub fn certificate(&self) -> Result<(PathBuf, PathBuf)> {
        let file = |kind: &str| self.control_plane.write_private(&format!("{}.{kind}", self.system_namespace), "");
        let (certificate, key) = (file("crt"), file("key"));
        let options = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=webhook \
            -addext subjectAltName=IP:127.0.0.1";
        let mut openssl = Command::new("openssl");
        openssl.args(options.split(' ')).arg("-out").arg(&certificate).arg("-keyout").arg(&key);
        output(&mut openssl)?;
        Ok((certificate, key))
    }
}

impl Webhook<'_> {
    /// Waits until the API server calls both: it notices new configurations a moment later.
    async fn called(&self) {
        let probe = json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": "probe"},
            "spec": {"owner": "ada"}});
        let control_plane = self.installation.control_plane;
        let file = format!("{}-probe.json", self.installation.system_namespace);
        let file = control_plane.write_private(&file, &probe.to_string());
        let mut said = String::new();
        let calls = async {
            loop {
                let create = ["create", "--dry-run=server", "--output=json", "--namespace"];
                let mut kubectl = control_plane.kubectl(create);
                kubectl.arg(&self.installation.tenant_namespace).arg("--filename").arg(&file);
                let probed = kubectl.output().expect("kubectl runs");
                said =
                    format!("{}{}", String::from_utf8_lossy(&probed.stdout), String::from_utf8_lossy(&probed.stderr));
                // The one is what /mutate fills in, the other what /validate warns of.
                if said.contains("keywright.dev/created-by") && said.contains("Warning: ") {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        if timeout(DEADLINE, calls).await.is_err() {
            panic!("the webhook is not called; last seen:\n{said}");
        }
    }

    /// Ends the program and leaves the configurations.
    pub async fn take_down(&mut self) {
        self.program.take().expect("a webhook at work").kill().await;
    }
}

impl Drop for Webhook<'_> {
    fn drop(&mut self) {
        let delete = ["delete", "--ignore-not-found", "--filename"];
        let _ = output(self.installation.control_plane.kubectl(delete).arg(&self.configurations));
    }
}
