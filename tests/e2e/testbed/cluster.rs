//! The one cluster of this run, with Keywright installed as the README says.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::panicking;
use std::time::{Duration, Instant};

use anyhow::Result;

use keywright_testing::command::run;

use super::node::{Node, make_image};
use super::report;

/// The system namespace.
pub const SYSTEM: &str = "keywright-system";

/// What `helm install` is told beyond what the README says: where the image is.
pub const IMAGE: [&str; 3] = ["image.registry=localhost", "image.tag=dev", "image.pullPolicy=Never"];

/// A cluster on which Keywright runs.
pub struct Cluster {
    node: Node,
    /// How long `helm install --wait` took.
    pub installed_in: Duration,
}

/// A test's turn. A test that fails in it prints the cluster's state.
pub struct Turn(MutexGuard<'static, Cluster>);

static SHARED: OnceLock<Result<Mutex<Cluster>>> = OnceLock::new();

impl Cluster {
    /// Waits for this test's turn with the cluster. The first caller starts it, and may have to build it first.
    pub fn turn() -> Turn {
        match SHARED.get_or_init(|| Self::start().map(Mutex::new)) {
            // A test that failed leaves nothing half done that another could not cope with.
            Ok(cluster) => Turn(cluster.lock().unwrap_or_else(PoisonError::into_inner)),
            Err(error) => panic!("no cluster: {error:#}"),
        }
    }

    fn start() -> Result<Self> {
        make_image()?;
        let started = Instant::now();
        let node = Node::start()?;
        report(&format!("a node is ready after {:.1} s", started.elapsed().as_secs_f32()));
        let started = Instant::now();
        let install =
            ["helm", "install", "keywright", "charts/keywright", "-n", SYSTEM, "--create-namespace", "--wait"];
        let mut command = node.command(&install);
        command.arg("--timeout=120s").args(IMAGE.iter().flat_map(|value| ["--set", value]));
        let installed = run(&mut command, "");
        let cluster = Self { node, installed_in: started.elapsed() };
        if let Err(error) = installed {
            cluster.describe();
            return Err(error);
        }
        report(&format!("helm install --wait takes {:.1} s", cluster.installed_in.as_secs_f32()));
        Ok(cluster)
    }

    /// `kubectl ARGUMENTS`: its output, or all that it said where it failed.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String> {
        run(&mut self.node.command(&[&["kubectl"], arguments].concat()), input)
    }

    /// `kubectl ARGUMENTS`, which has to succeed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.kubectl_with_input(arguments, "")
    }

    /// `kubectl ARGUMENTS`, which has to succeed, with this as its standard input.
    #[track_caller]
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> String {
        self.try_kubectl(arguments, input).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A shell script inside the node, as a user at a terminal would run it: its output. It has to succeed.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        run(&mut self.node.command(&["sh", "-ec", script]), "").unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The names of the Running Pods of a component.
    pub fn pods(&self, component: &str) -> Vec<String> {
        let selector = format!("app.kubernetes.io/component={component}");
        let names = "jsonpath={range .items[?(@.status.phase==\"Running\")]}{.metadata.name}{\"\\n\"}{end}";
        let found = self.kubectl(&["get", "pods", "-n", SYSTEM, "-l", &selector, "-o", names]);
        found.lines().map(str::to_owned).collect()
    }

    /// How often the containers of a component's Pods were started again.
    pub fn restarts(&self, component: &str) -> u32 {
        let selector = format!("app.kubernetes.io/component={component}");
        let counts = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
        let counts = self.kubectl(&["get", "pods", "-n", SYSTEM, "-l", &selector, "-o", counts]);
        counts.split_whitespace().filter_map(|count| count.parse::<u32>().ok()).sum()
    }

    /// Evicts a Pod, as `kubectl drain` does with each Pod of a node.
    pub fn evict(&self, pod: &str) -> Result<String> {
        let eviction = format!(
            r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"{SYSTEM}"}}}}"#
        );
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}/eviction");
        self.try_kubectl(&["create", "--raw", &path, "-f", "-"], &eviction)
    }

    /// Waits until these Pods are gone.
    #[track_caller]
    pub fn gone(&self, pods: &[String]) {
        let pods: Vec<_> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
        let wait = ["wait", "-n", SYSTEM, "--for=delete", "--timeout=60s"].into_iter();
        self.kubectl(&wait.chain(pods.iter().map(String::as_str)).collect::<Vec<_>>());
    }

    /// Replaces all Pods of a Deployment, and waits until that is done.
    #[track_caller]
    pub fn restart(&self, deployment: &str) {
        let deployment = format!("deployment/{deployment}");
        self.kubectl(&["rollout", "restart", "-n", SYSTEM, &deployment]);
        self.rolled_out(&deployment);
    }

    /// Waits until a Deployment runs as declared, with the Pods that it replaced gone.
    #[track_caller]
    pub fn rolled_out(&self, deployment: &str) {
        self.kubectl(&["rollout", "status", "-n", SYSTEM, deployment, "--timeout=90s"]);
    }

    fn describe(&self) {
        let commands: [&[&str]; 4] = [
            &["get", "pods,jobs", "-A", "-o", "wide"],
            &["get", "apikeys", "-A", "-o", "wide"],
            &["get", "events", "-A", "--sort-by=.lastTimestamp"],
            &["logs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=keywright", "--prefix", "--tail=30"],
        ];
        for command in commands {
            let said = self.try_kubectl(command, "").unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("--- kubectl {}\n{said}", command.join(" "));
        }
    }
}

impl std::ops::Deref for Turn {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if panicking() {
            self.describe();
        }
    }
}
