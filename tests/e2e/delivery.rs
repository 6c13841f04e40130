//! A key's life as the Pods see it that hold it: mounted, used, replaced, revoked.

use std::time::Instant;

use super::testbed::{Cluster, LET_IN, Tenant, Traffic, eventually, report};

const UNAUTHORIZED: &str = "curl: (22) The requested URL returned error: 401";
const FORBIDDEN: &str = "curl: (22) The requested URL returned error: 403";

#[test]
fn a_pod_uses_the_key_that_is_mounted_until_it_is_revoked() {
    let cluster = Cluster::turn();
    let declared = Instant::now();
    let tenant = Tenant::declared(&cluster, "delivery");
    // A Pod that mounts a Secret does not start before there is one.
    tenant.kubectl(&["wait", "--for=condition=Ready", "pod/insider", "--timeout=60s"]);
    let key = tenant.mounted_key("insider");
    let took = declared.elapsed().as_secs_f32();
    report(&format!("a declared key is mounted in a running Pod after {took:.1} s"));
    let installed_in = cluster.installed_in.as_secs_f32();
    report(&format!("from helm install to the first key in a running Pod: {:.1} s", installed_in + took));
    tenant.kubectl(&["wait", "--for=condition=Ready", "apikey/client", "--timeout=10s"]);
    assert!(key.len() == 55 && key.starts_with("keyw1_"), "not a key");
    tenant.runs();
    assert_eq!(tenant.call("insider"), LET_IN);
    assert_eq!(tenant.call("outsider"), LET_IN);
    assert_eq!(tenant.call_with("insider", "keyw1_00000000000000000000000000000000000000000003dznj0"), UNAUTHORIZED);

    let address = tenant.kubectl(&["get", "pod", "insider", "-o", "jsonpath={.status.podIP}"]);
    tenant.patch("apikey/client", &format!(r#"{{"allowedIPs":["{address}"]}}"#));
    eventually("another address is refused", || tenant.call("outsider"), |answer| answer == FORBIDDEN);
    assert_eq!(tenant.call("insider"), LET_IN);

    tenant.patch("apikey/client", r#"{"suspended":true}"#);
    tenant.kubectl(&["wait", "--for=condition=Active=false", "apikey/client", "--timeout=10s"]);
    eventually("a suspended key is refused", || tenant.call("insider"), |answer| answer == UNAUTHORIZED);
    tenant.patch("apikey/client", r#"{"suspended":false}"#);
    tenant.kubectl(&["wait", "--for=condition=Active", "apikey/client", "--timeout=10s"]);
    eventually("it is let in again", || tenant.call("insider"), |answer| answer == LET_IN);

    // A Secret that somebody removes is made again, with a new key, when its ApiKey is next looked at.
    tenant.kubectl(&["delete", "secret", "client"]);
    tenant.kubectl(&["annotate", "apikey/client", "example.org/look=again"]);
    let replaced = Instant::now();
    let new_key = eventually("the Pod sees the new key", || tenant.mounted_key("insider"), |found| *found != key);
    report(&format!("a replaced key is in the Pod after {:.1} s", replaced.elapsed().as_secs_f32()));
    eventually("the new key works", || tenant.call("insider"), |answer| answer == LET_IN);
    assert_eq!(tenant.call_with("insider", &key), LET_IN, "the old one works until its overlap ends");

    tenant.kubectl(&["delete", "apikey", "client", "--timeout=30s"]);
    for key in [&key, &new_key] {
        let ask = || tenant.call_with("insider", key);
        eventually("a revoked key is refused", ask, |answer| answer == UNAUTHORIZED);
    }
    eventually("also where it is still mounted", || tenant.call("insider"), |answer| answer == UNAUTHORIZED);
}

#[test]
fn a_pod_that_reads_its_key_before_each_request_is_never_refused_through_rotations() {
    let cluster = Cluster::turn();
    let tenant = Tenant::new(&cluster, "rotation");
    let traffic = Traffic::of_requests(&tenant, "insider");
    for request in ["1", "2", "3"] {
        traffic.goes_on(20);
        let key = tenant.mounted_key("insider");
        let asked = Instant::now();
        tenant.kubectl(&["annotate", "apikey/client", &format!("keywright.dev/rotate={request}"), "--overwrite"]);
        let carried_out = format!("--for=jsonpath={{.status.rotateRequest}}={request}");
        tenant.kubectl(&["wait", "apikey/client", &carried_out, "--timeout=30s"]);
        let rotated = asked.elapsed().as_secs_f32();
        eventually("the Pod sees the new key", || tenant.mounted_key("insider"), |found| *found != key);
        let took = asked.elapsed().as_secs_f32();
        report(&format!("a key is rotated after {rotated:.1} s, and the new one is in the Pod after {took:.1} s"));
    }
    traffic.goes_on(20);
    traffic.stop("good requests with the key that is mounted, through rotations").flawless(80);
}
