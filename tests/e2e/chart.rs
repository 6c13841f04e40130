//! The chart as helm installs, upgrades and rolls it back on a real node, hooks and all.

use super::testbed::{Cluster, LET_IN, SYSTEM, Tenant, Traffic, eventually, run};

/// `helm WORDS`, with hooks, until everything is ready.
fn helm(cluster: &Cluster, words: &str) {
    cluster.shell(&format!("helm {words} -n {SYSTEM} --wait --timeout=120s"));
}

#[test]
fn readme_and_notes_lead_to_a_first_key() {
    let cluster = Cluster::turn();
    let notes = cluster.shell(&format!("helm get notes keywright -n {SYSTEM}"));
    let commands: Vec<_> = notes.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(commands.iter().filter(|line| line.starts_with("kubectl ")).count(), 3, "{notes}");
    let said = cluster.shell(&commands.join("\n"));
    for expected in ["apikey.keywright.dev/first created", "apikey.keywright.dev/first condition met", "secret/first"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    cluster.shell("kubectl apply -f examples/ci.yaml && kubectl wait --for=condition=Ready apikey/ci --timeout=30s");
    cluster.kubectl(&["delete", "apikey", "first", "ci", "--timeout=30s"]);
}

const RIGHTS: &str = "serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings";

/// What there is of these kinds for the Jobs that look after certificates.
fn of_the_jobs(cluster: &Cluster, kinds: &str) -> String {
    cluster.kubectl(&["get", kinds, "-n", SYSTEM, "-l", "app.kubernetes.io/component=certificates", "-o", "name"])
}

/// In between, verifiers are a DaemonSet's.
#[test]
fn upgrade_and_rollback_mend_certificates_and_leave_no_rights_behind() {
    let cluster = Cluster::turn();
    let tenant = Tenant::new(&cluster, "upgrade");
    for (words, verifiers) in [
        ("upgrade keywright charts/keywright --reuse-values --set verifier.kind=DaemonSet", "daemonset"),
        ("rollback keywright", "deployment"),
    ] {
        cluster.kubectl(&["delete", "secret", "-n", SYSTEM, "keywright-webhook-ca"]);
        helm(&cluster, words);
        cluster.kubectl(&["get", "secret", "-n", SYSTEM, "keywright-webhook-ca"]);
        let declare = ["create", "--dry-run=server", "-f", "examples/ci.yaml"];
        let said = || cluster.try_kubectl(&declare, "").map_err(|error| error.to_string());
        eventually("ApiKeys are judged under the new authority", said, Result::is_ok).ok();
        assert_eq!(of_the_jobs(&cluster, &format!("jobs,{RIGHTS}")), "", "after {words}");

        assert_eq!(tenant.call("insider"), LET_IN, "after {words}");
        let traffic = Traffic::of_requests(&tenant, "insider");
        traffic.goes_on(20);
        cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, &format!("{verifiers}/keywright-verifier")]);
        cluster.rolled_out(&format!("{verifiers}/keywright-verifier"));
        traffic.goes_on(20);
        traffic.stop(&format!("good requests while a {verifiers}'s verifiers were replaced")).flawless(40);
    }
}

#[test]
fn a_job_that_fails_leaves_no_rights_behind_either() {
    let cluster = Cluster::turn();
    let upgrade = ["helm", "upgrade", "keywright", "charts/keywright", "-n", SYSTEM, "--reuse-values", "--timeout=10s"];
    let mut upgrade = cluster.node().command(&upgrade);
    let failed = run(upgrade.args(["--set", "image.tag=absent"]), "").expect_err("there is no such image").to_string();
    assert!(failed.contains("pre-upgrade"), "{failed}");
    assert_ne!(of_the_jobs(&cluster, "jobs"), "", "for people to look at");
    assert_eq!(of_the_jobs(&cluster, RIGHTS), "");
    helm(&cluster, "rollback keywright");
}

/// What carries revocations does not queue with other workloads' requests.
#[test]
fn leases_and_records_have_a_priority_level_of_their_own() {
    let cluster = Cluster::turn();
    let dispatched = || -> f64 {
        let metrics = cluster.kubectl(&["get", "--raw", "/metrics"]);
        let ours = |line: &&str| {
            line.starts_with("apiserver_flowcontrol_dispatched_requests_total{")
                && line.contains("flow_schema=\"keywright-enforcement\"")
                && line.contains("priority_level=\"keywright-enforcement\"")
        };
        metrics.lines().filter(ours).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let before = dispatched();
    eventually("verifiers' and controllers' leases are renewed there", dispatched, |now| *now > before);
}
