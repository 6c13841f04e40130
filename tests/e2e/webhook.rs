//! ApiKeys are declared and edited while the webhook's Pods come and go, and deleted although there are none.

use super::testbed::{Cluster, SYSTEM, Traffic, eventually};

/// Each time with another description, so that each is an update.
const APPLIES: &str = r#"
i=0
while :; do
  i=$((i + 1))
  printf '{"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": "steady"},
    "spec": {"owner": "platform@example.org", "expiresIn": "90d", "description": "%s"}}' $i |
    kubectl apply -n "$0" -f - 2>&1 || echo failed
done"#;

fn api_key(name: &str) -> String {
    format!(
        r#"{{"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {{"name": "{name}"}},
            "spec": {{"owner": "platform@example.org", "expiresIn": "90d"}}}}"#
    )
}

/// A namespace that goes with its test.
struct Namespace<'a>(&'a Cluster, &'static str);

impl<'a> Namespace<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        cluster.kubectl(&["create", "namespace", name]);
        Self(cluster, name)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        self.0.try_kubectl(&["delete", "namespace", self.1, "--wait=false"], "").ok();
    }
}

#[test]
fn no_apply_fails_while_the_webhook_is_replaced() {
    let cluster = Cluster::turn();
    let namespace = Namespace::new(&cluster, "applies");
    let applies = Traffic::start(cluster.node().command(&["sh", "-c", APPLIES, namespace.1]), |line| {
        ["apikey.keywright.dev/steady created", "apikey.keywright.dev/steady configured"].contains(&line)
    });
    applies.goes_on(3);
    for _ in 0..2 {
        cluster.restart("keywright-webhook");
        applies.goes_on(3);
    }
    applies.stop("applies while the webhook was replaced").flawless(10);
}

#[test]
fn without_a_webhook_apikeys_are_deleted_but_not_declared() {
    let cluster = Cluster::turn();
    let namespace = Namespace::new(&cluster, "alone");
    let in_namespace = |arguments: &[&str], input: &str| {
        cluster.try_kubectl(&[&["-n", namespace.1], arguments].concat(), input).map_err(|error| error.to_string())
    };
    in_namespace(&["apply", "-f", "-"], &api_key("present")).expect("there is a webhook");
    in_namespace(&["wait", "--for=condition=Ready", "apikey/present", "--timeout=30s"], "").expect("it is issued");

    cluster.kubectl(&["scale", "-n", SYSTEM, "deployment/keywright-webhook", "--replicas=0"]);
    let scaled_up = ScaledUp(&cluster);
    eventually("the webhook is gone", || cluster.pods("webhook"), Vec::is_empty);
    let created = || in_namespace(&["apply", "-f", "-"], &api_key("absent"));
    let refusal = eventually("no ApiKey is declared", created, Result::is_err).unwrap_err();
    assert!(refusal.contains("failed calling webhook") && refusal.contains("keywright-webhook"), "{refusal}");
    let edit = ["patch", "apikey/present", "--type=merge", "-p", r#"{"spec":{"suspended":true}}"#];
    let refusal = in_namespace(&edit, "").expect_err("nor edited");
    assert!(refusal.contains("failed calling webhook") && refusal.contains("keywright-webhook"), "{refusal}");
    let status = ["patch", "apikey/present", "--subresource=status", "--type=merge"];
    let status = [&status[..], &["-p", r#"{"status":{"lastUsedAt":"2026-01-01T00:00:00Z"}}"#]].concat();
    in_namespace(&status, "").expect("a status is written");
    in_namespace(&["delete", "apikey/present", "--timeout=30s"], "").expect("an ApiKey is deleted, finalizer and all");

    drop(scaled_up);
    let declared = in_namespace(&["apply", "-f", "-"], &api_key("absent"));
    declared.expect("the webhook answers as soon as it is Ready");
}

/// Two replicas again, whatever became of the test.
struct ScaledUp<'a>(&'a Cluster);

impl Drop for ScaledUp<'_> {
    fn drop(&mut self) {
        for command in [
            &["scale", "-n", SYSTEM, "deployment/keywright-webhook", "--replicas=2"][..],
            &["rollout", "status", "-n", SYSTEM, "deployment/keywright-webhook", "--timeout=60s"],
        ] {
            if let Err(error) = self.0.try_kubectl(command, "") {
                eprintln!("{error:#}");
            }
        }
    }
}
