//! When `kubectl delete` of an ApiKey returns, no verifier lets its key in; and no Pod that ends holds it up for long.

use std::io::BufRead;
use std::thread;
use std::time::{Duration, Instant};

use keywright_testing::command::lines;

use super::testbed::{Cluster, SYSTEM, Tenant, Traffic, eventually, report, run};

/// How long a deletion that has waited for a Pod may go on after that.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// How many good requests have to get through between two disturbances.
const SOME: usize = 20;

#[test]
fn no_deletion_waits_for_pods_that_come_and_go() {
    let cluster = Cluster::turn();
    let tenant = Tenant::new(&cluster, "revocation");
    let traffic = Traffic::of_requests(&tenant, "insider");
    traffic.goes_on(SOME);

    let (first, pods) = (Key::issue(&tenant), cluster.pods("verifier"));
    cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, "deployment/keywright-verifier"]);
    revoke_until(&tenant, first, "all verifiers were replaced", || {
        cluster.gone(&pods);
        cluster.rolled_out("deployment/keywright-verifier");
    });

    let (first, pods) = (Key::issue(&tenant), cluster.pods("verifier"));
    cluster.kubectl(&["delete", "pod", "-n", SYSTEM, &pods[0], "--wait=false"]);
    revoke_until(&tenant, first, "a verifier's Pod was deleted", || cluster.gone(&pods[..1]));
    cluster.rolled_out("deployment/keywright-verifier");

    let (first, pods) = (Key::issue(&tenant), cluster.pods("verifier"));
    cluster.evict(&pods[0]).expect("one of two may go");
    revoke_until(&tenant, first, "a verifier's Pod was evicted", || cluster.gone(&pods[..1]));
    cluster.rolled_out("deployment/keywright-verifier");

    traffic.goes_on(SOME);
    traffic.stop("good requests while keys were revoked and Pods replaced").flawless(4 * SOME);
    leases_are_the_verifiers(&cluster);
}

#[test]
fn a_deletion_waits_for_a_verifier_that_was_killed_only_until_it_is_back() {
    let cluster = Cluster::turn();
    let tenant = Tenant::new(&cluster, "killed");
    let traffic = Traffic::of_requests(&tenant, "insider");
    traffic.goes_on(SOME);
    let (first, before) = (Key::issue(&tenant), cluster.restarts("verifier"));
    let kill = ["pkill", "--oldest", "--signal", "KILL", "-f", "^/keywright verifier"];
    run(&mut cluster.node().command(&kill), "").expect("a verifier runs");
    revoke_until(&tenant, first, "a verifier was killed", || {
        eventually("the kubelet starts it again", || cluster.restarts("verifier"), |restarts| *restarts > before);
        cluster.rolled_out("deployment/keywright-verifier");
    });
    traffic.goes_on(SOME);
    traffic.stop("good requests while a verifier was killed").no_refusal();
    leases_are_the_verifiers(&cluster);
}

/// The kubelet kills the process before it has removed its Lease. Nobody can tell that from a node that is cut off.
#[test]
fn a_deletion_waits_for_a_pod_that_was_removed_by_force_until_its_lease_is_removed() {
    let cluster = Cluster::turn();
    let tenant = Tenant::declared(&cluster, "force");
    let (key, pod) = (Key::issue(&tenant), &cluster.pods("verifier")[0]);
    let process = process(&cluster, pod).expect("it runs");
    cluster.kubectl(&["delete", "pod", "-n", SYSTEM, pod, "--grace-period=0", "--force"]);
    let removed = Instant::now();
    eventually("the kubelet kills it", || self::process(&cluster, pod), |found| found.as_ref() != Some(&process));
    report(&format!(
        "the process of a Pod that was removed by force ends after {:.1} s",
        removed.elapsed().as_secs_f32()
    ));

    let name = format!("apikey/{}", key.api_key);
    thread::scope(|scope| {
        let deletion = scope.spawn(|| key.revoke(&tenant));
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}";
        let message = || tenant.kubectl(&["get", &name, "--ignore-not-found", "-o", ready]);
        eventually("the ApiKey says whom it waits for", message, |message| message.contains(pod));
        assert!(!deletion.is_finished());
        let given_up = Instant::now();
        cluster.kubectl(&["delete", "lease", "-n", SYSTEM, pod]);
        let beyond = deletion.join().expect("the key is revoked").returned - given_up;
        report(&format!("a deletion returns {:.2} s after the Lease was removed by hand", beyond.as_secs_f32()));
        assert!(beyond < 2 * AFTERWARDS, "it goes on within seconds, not {beyond:?}");
    });
    cluster.rolled_out("deployment/keywright-verifier");
    leases_are_the_verifiers(&cluster);
}

/// The process id of a verifier's Pod.
fn process(cluster: &Cluster, pod: &str) -> Option<String> {
    let found = "pgrep -f '^/keywright verifier' | while read -r id; do";
    let its = format!("if grep -qsz '^POD_NAME={pod}$' /proc/$id/environ; then echo $id; fi; done");
    cluster.shell(&format!("{found} {its}")).lines().next().map(str::to_owned)
}

/// Revokes this key, and then others, one after the other, until the disturbance is over: none waits for longer.
#[track_caller]
fn revoke_until(tenant: &Tenant<'_>, first: Key, disturbance: &str, over: impl FnOnce() + Send) {
    let (deletions, over) = thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            over();
            Instant::now()
        });
        let mut deletions = vec![first.revoke(tenant)];
        while !waiting.is_finished() {
            deletions.push(Key::issue(tenant).revoke(tenant));
        }
        (deletions, waiting.join().expect("the disturbance is over"))
    });
    let longest = deletions.iter().map(Deletion::took).max().unwrap_or_default();
    let number = deletions.len();
    report(&format!("{number} deletions while {disturbance}: {:.2} s at the longest", longest.as_secs_f32()));
    for deletion in deletions {
        let beyond = deletion.returned.saturating_duration_since(over.max(deletion.began));
        assert!(beyond < AFTERWARDS, "a deletion while {disturbance} took {:?}, {beyond:?} too long", deletion.took());
    }
}

/// The key of an ApiKey of its own.
struct Key {
    api_key: String,
    key: String,
    /// The verifiers that know it.
    verifiers: Vec<String>,
}

/// One `kubectl delete`.
struct Deletion {
    began: Instant,
    returned: Instant,
}

impl Deletion {
    fn took(&self) -> Duration {
        self.returned - self.began
    }
}

impl Key {
    /// A new one, which no verifier refuses.
    #[track_caller]
    fn issue(tenant: &Tenant<'_>) -> Self {
        let api_key = format!("brief-{:08x}", rand::random::<u32>());
        let manifest = format!(
            r#"{{"apiVersion":"keywright.dev/v1alpha1","kind":"ApiKey","metadata":{{"name":"{api_key}","namespace":"{}"}},
                "spec":{{"owner":"platform@example.org","expiresIn":"1d"}}}}"#,
            tenant.namespace
        );
        tenant.cluster.kubectl_with_input(&["create", "-f", "-"], &manifest);
        tenant.kubectl(&["wait", "--for=condition=Ready", &format!("apikey/{api_key}"), "--timeout=30s"]);
        let data = "go-template={{index .data \"api-key\" | base64decode}}";
        let key = tenant.kubectl(&["get", "secret", &api_key, "-o", data]);
        let issued = Self { api_key, key, verifiers: verifiers(tenant.cluster) };
        let answers = tenant.cluster.shell(&issued.ask(tenant, &issued.verifiers));
        assert!(answers.contains("200") && !answers.contains("401"), "a new key works: {answers}");
        issued
    }

    /// `kubectl delete`. As soon as it has returned, no verifier lets the key in, and neither do those that have come since.
    #[track_caller]
    fn revoke(self, tenant: &Tenant<'_>) -> Deletion {
        let delete = format!("kubectl delete apikey {} -n {} --timeout=60s", self.api_key, tenant.namespace);
        let ask = self.ask(tenant, &self.verifiers);
        let script = format!("{delete} >/dev/null; echo deleted; {ask}");
        let began = Instant::now();
        let (mut child, output) =
            lines(&mut tenant.cluster.node().command(&["sh", "-ec", &script])).expect("it starts");
        let mut output = output.lines().map_while(Result::ok);
        assert_eq!(output.next().as_deref(), Some("deleted"), "{}: not within a minute", self.api_key);
        let returned = Instant::now();
        let mut answers: Vec<_> = output.collect();
        child.wait().ok();
        let since = tenant.cluster.shell(&self.ask(tenant, &verifiers(tenant.cluster)));
        answers.extend(since.lines().map(str::to_owned));
        let is_refused = answers.iter().all(|answer| answer != "200") && answers.iter().any(|answer| answer == "401");
        assert!(is_refused, "{} is revoked: {answers:?}", self.api_key);
        Deletion { began, returned }
    }

    /// A shell command that asks each of these addresses at once whether the key is let in: a status each, 000 for none.
    fn ask(&self, tenant: &Tenant<'_>, addresses: &[String]) -> String {
        let urls: Vec<_> = addresses
            .iter()
            .map(|address| format!("'http://{address}:8080/verify?namespace={}'", tenant.namespace))
            .collect();
        let outputs = "-o /dev/null ".repeat(urls.len());
        format!(
            "curl -s --parallel --parallel-immediate --connect-timeout 1 --max-time 5 -w '%{{http_code}}\\n' \
             -H 'Authorization: Bearer {}' {outputs} {} || true",
            self.key,
            urls.join(" ")
        )
    }
}

/// The addresses of the verifiers' Service and of each verifier's Pod, also of those that end.
#[track_caller]
fn verifiers(cluster: &Cluster) -> Vec<String> {
    let selector = "app.kubernetes.io/component=verifier";
    let addresses = "jsonpath={.items[*].spec.clusterIP} {.items[*].status.podIP}";
    let addresses = cluster.kubectl(&["get", "services,pods", "-n", SYSTEM, "-l", selector, "-o", addresses]);
    addresses.split_whitespace().map(str::to_owned).collect()
}

/// Each running verifier has a Lease, and so has the controller that leads. There is no other.
#[track_caller]
fn leases_are_the_verifiers(cluster: &Cluster) {
    let leases = cluster.kubectl(&["get", "leases", "-n", SYSTEM, "-o", "jsonpath={.items[*].metadata.name}"]);
    let mut expected = cluster.pods("verifier");
    expected.push("keywright-controller".to_owned());
    expected.sort();
    assert_eq!(leases.split_whitespace().collect::<Vec<_>>(), expected);
}
