//! A tenant's workload behind nginx (`tests/e2e/workload.yaml`), in a namespace of its own.

use super::cluster::Cluster;

const WORKLOAD: &str = include_str!("../workload.yaml");

/// Where Pods have their key mounted.
pub const KEY_FILE: &str = "/var/run/keywright/api-key";
/// What the upstream says: it has been told whose key it was, and has not seen the key.
pub const LET_IN: &str = "owner=platform@example.org credential=";

/// The namespace goes with the tenant.
pub struct Tenant<'a> {
    pub cluster: &'a Cluster,
    pub namespace: String,
}

impl<'a> Tenant<'a> {
    /// Applies the workload and waits until all of it runs.
    #[track_caller]
    pub fn new(cluster: &'a Cluster, namespace: &str) -> Self {
        let tenant = Self::declared(cluster, namespace);
        tenant.runs();
        tenant
    }

    /// Applies the workload.
    #[track_caller]
    pub fn declared(cluster: &'a Cluster, namespace: &str) -> Self {
        cluster.kubectl_with_input(&["apply", "-f", "-"], &WORKLOAD.replace("TENANT", namespace));
        Self { cluster, namespace: namespace.to_owned() }
    }

    /// Waits until Pods and Services of the workload are ready.
    #[track_caller]
    pub fn runs(&self) {
        self.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
        self.kubectl(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=60s"]);
    }

    /// `kubectl ARGUMENTS` in the tenant's namespace, which has to succeed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", &self.namespace], arguments].concat())
    }

    /// A merge patch of an object's spec.
    #[track_caller]
    pub fn patch(&self, object: &str, spec: &str) {
        self.kubectl(&["patch", object, "--type=merge", "-p", &format!("{{\"spec\":{spec}}}")]);
    }

    /// What a Pod finds in its volume.
    #[track_caller]
    pub fn mounted_key(&self, pod: &str) -> String {
        self.kubectl(&["exec", pod, "--", "cat", KEY_FILE])
    }

    /// Lets a Pod call the workload with the key that it has mounted: what came back, or curl's complaint, which names
    /// the status.
    pub fn call(&self, pod: &str) -> String {
        self.kubectl(&["exec", pod, "--", "sh", "-c", &format!("{} || true", request(KEY_FILE))]).trim_end().to_owned()
    }

    /// The same with another key.
    pub fn call_with(&self, pod: &str, key: &str) -> String {
        let script = format!("{} || true", request("/dev/stdin"));
        let exec = ["-n", &self.namespace, "exec", "-i", pod, "--", "sh", "-c", &script];
        self.cluster.kubectl_with_input(&exec, key).trim_end().to_owned()
    }
}

impl Drop for Tenant<'_> {
    fn drop(&mut self) {
        let deleted = self.cluster.try_kubectl(&["delete", "namespace", &self.namespace, "--wait=false"], "");
        if let Err(error) = deleted {
            eprintln!("{error:#}");
        }
    }
}

/// A shell command that sends one request with the key in this file, and prints the answer or what was wrong.
pub fn request(key_file: &str) -> String {
    format!("curl -fsS --max-time 10 -H \"Authorization: Bearer $(cat {key_file})\" http://front 2>&1")
}
