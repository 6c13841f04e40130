//! Nobody who may enter is refused while Keywright's Pods come and go.

use std::time::Instant;

use super::testbed::{Cluster, SYSTEM, Tenant, Traffic, eventually, report, run};

/// How many good requests have to get through between two disturbances.
const SOME: usize = 20;

#[test]
fn no_good_request_is_refused_while_pods_are_replaced() {
    let cluster = Cluster::turn();
    let tenant = Tenant::new(&cluster, "availability");
    let traffic = Traffic::of_requests(&tenant, "insider");
    traffic.goes_on(SOME);

    cluster.restart("keywright-verifier");
    traffic.goes_on(SOME);

    for deployment in ["keywright-controller", "keywright-webhook", "keywright-verifier"] {
        cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, &format!("deployment/{deployment}")]);
    }
    for deployment in ["keywright-controller", "keywright-webhook", "keywright-verifier"] {
        cluster.rolled_out(&format!("deployment/{deployment}"));
    }
    traffic.goes_on(SOME);

    cluster.kubectl(&["delete", "pod", "-n", SYSTEM, &cluster.pods("verifier")[0]]);
    traffic.goes_on(SOME);
    cluster.rolled_out("deployment/keywright-verifier");

    // Those that were replaced take leave of their clients first, which takes some seconds.
    let pods = eventually("there are two", || cluster.pods("verifier"), |pods| pods.len() == 2);
    cluster.evict(&pods[0]).expect("one of two may go");
    let refusal = cluster.evict(&pods[1]).expect_err("the other has to stay until there is a new one").to_string();
    assert!(refusal.contains("disruption budget"), "{refusal}");
    let again = || cluster.evict(&pods[1]).map_err(|error| error.to_string());
    eventually("the other may go", again, Result::is_ok).expect("it is what was awaited");
    cluster.gone(&pods[1..]);
    cluster.rolled_out("deployment/keywright-verifier");
    traffic.goes_on(SOME);

    traffic.stop("good requests while Pods were replaced").flawless(10 * SOME);
}

/// Nothing can be promised to the requests that were on their way to it; but they get no verdict, least of all a wrong
/// one, and it is over soon.
#[test]
fn a_verifier_that_crashes_refuses_nobody() {
    let cluster = Cluster::turn();
    let tenant = Tenant::new(&cluster, "crash");
    let traffic = Traffic::of_requests(&tenant, "insider");
    traffic.goes_on(SOME);
    let before = cluster.restarts("verifier");
    run(&mut cluster.node().command(&["pkill", "--oldest", "--signal", "KILL", "-f", "^/keywright verifier"]), "")
        .expect("a verifier runs");
    // Until the kubelet has seen it, the Deployment counts as rolled out and the Service leads to nobody.
    eventually("the kubelet starts it again", || cluster.restarts("verifier"), |restarts| *restarts > before);
    cluster.rolled_out("deployment/keywright-verifier");
    traffic.goes_on(SOME);
    traffic.stop("good requests while a verifier crashed").no_refusal();

    let traffic = Traffic::of_requests(&tenant, "insider");
    traffic.goes_on(5 * SOME);
    traffic.stop("good requests afterwards").flawless(5 * SOME);
}

#[test]
fn another_controller_takes_over_from_one_that_is_lost() {
    let cluster = Cluster::turn();
    let holder = || {
        let lease = ["get", "lease", "-n", SYSTEM, "keywright-controller", "-o", "jsonpath={.spec.holderIdentity}"];
        cluster.kubectl(&lease).split('_').next().unwrap_or_default().to_owned()
    };
    let lost = eventually("a controller leads", holder, |holder| cluster.pods("controller").contains(holder));
    cluster.kubectl(&["delete", "pod", "-n", SYSTEM, &lost, "--grace-period=0", "--force"]);
    let killed = Instant::now();
    let tenant = Tenant::new(&cluster, "succession");
    report(&format!("another controller has issued a key after {:.1} s", killed.elapsed().as_secs_f32()));
    assert_ne!(holder(), lost);
    tenant.kubectl(&["wait", "--for=condition=Ready", "apikey/client", "--timeout=10s"]);
    cluster.rolled_out("deployment/keywright-controller");
}
