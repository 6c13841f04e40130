//! The verifier at work: records in the real API server, the real program with its own rights, and faults in between.
//! The records are written as the controller writes them, by a test in its place.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::iter;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use keywright_core::api::ApiKeyRecord;
use keywright_core::key::Key;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rand::rngs::SysRng;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::overload::ask_over_grpc;
use keywright_testing::{
    ApiRequest, AuditedRequest, Fault, FaultProxy, Installation,
    Occurrence::{Every, Nth},
    Outcome, Program, wait,
};

/// The uid of the ApiKey that all records are of.
pub(super) const UID: &str = "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b";
/// Where the tests' requests come from.
const CLIENT: &str = "192.0.2.44";

pub(super) fn record_name(serial: u32) -> String {
    format!("{UID}-{serial}")
}

pub(super) struct Bench {
    /// With the controller's rights.
    pub(super) records: Api<ApiKeyRecord>,
    pub(super) faults: FaultProxy,
    pub(super) installation: Installation,
}

impl Bench {
    pub(super) async fn new(test_name: &str) -> Self {
        let installation = Installation::new(test_name).await;
        let kubeconfig = installation.credentials("controller").await.write_kubeconfig(None);
        let client = installation.control_plane.client_of(&kubeconfig).await;
        Self {
            records: Api::namespaced(client, &installation.system_namespace),
            faults: FaultProxy::start(installation.control_plane).await,
            installation,
        }
    }

    /// A verifier that reaches the API server through the faults.
    pub(super) async fn verifier(&self, arguments: &[&str]) -> Program {
        let launch = self.installation.program("verifier").through(&self.faults);
        let launch = arguments.iter().fold(launch, |launch, argument| launch.argument(argument));
        let verifier = launch.start().await;
        verifier.ready().await;
        verifier
    }

    /// A new key, the one with this serial of an ApiKey.
    pub async fn issue(&self, serial: u32) -> String {
        let key = Key::mint(&mut SysRng).unwrap();
        let record = json!({
            "apiVersion": "keywright.dev/v1alpha1",
            "kind": "ApiKeyRecord",
            "metadata": { "name": record_name(serial) },
            "spec": {
                "digest": key.digest().to_string(),
                "keyPrefix": key.prefix().as_str(),
                "apiKey": { "namespace": self.installation.tenant_namespace, "name": "billing", "uid": UID },
                "serial": serial,
            },
        });
        let record = serde_json::from_value(record).unwrap();
        self.records.create(&PostParams::default(), &record).await.unwrap();
        key.reveal().to_owned()
    }

    pub(super) async fn change(&self, serial: u32, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.records.patch(&record_name(serial), &PatchParams::default(), &patch).await.unwrap();
    }

    pub(super) async fn revoke(&self, serial: u32) {
        self.change(serial, json!({ "revoked": { "at": "2026-01-01T00:00:00Z", "reason": "Deleted" } })).await;
    }
}

/// Whether `/readyz` says 200.
async fn is_ready(verifier: &Program) -> bool {
    get(verifier.address("admin"), "/readyz", "").await.0 == 200
}

/// What `path` says to a request with `key`, or with none: the status and the whole answer.
pub(super) async fn get(address: SocketAddr, path: &str, key: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: verifier\r\nX-API-Key: {key}\r\nX-Forwarded-For: {CLIENT}\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

pub(super) async fn ask(verifier: &Program, key: &str) -> u16 {
    get(verifier.address("http"), "/verify", key).await.0
}

/// Asks until the answer has this status. Returns how long that took.
pub(super) async fn answers(verifier: &Program, key: &str, status: u16) -> Duration {
    let started = Instant::now();
    loop {
        let last = ask(verifier, key).await;
        if last == status {
            return started.elapsed();
        }
        assert!(started.elapsed() < wait::DEADLINE, "expected {status}, last heard {last}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the key is let in again; the revoked one never is on the way.
pub(super) async fn is_back(verifier: &Program, key: &str, revoked: &str) {
    let started = Instant::now();
    loop {
        assert_ne!(ask(verifier, revoked).await, 200);
        if ask(verifier, key).await == 200 {
            break;
        }
        assert!(started.elapsed() < wait::DEADLINE, "not back");
    }
    assert_eq!(ask(verifier, revoked).await, 401);
}

pub(super) fn is_list(request: &ApiRequest) -> bool {
    request.is("GET", "apikeyrecords") && !request.watch
}

fn is_watch(request: &ApiRequest) -> bool {
    request.watch && request.resource == "apikeyrecords"
}

#[tokio::test]
async fn every_change_of_a_record_is_enforced() {
    let bench = Bench::new("changes").await;
    let verifier = bench.verifier(&[]).await;
    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let changes = [
        (json!({ "suspended": true }), 401),
        (json!({ "suspended": null }), 200),
        (json!({ "allowedIPs": ["198.51.100.0/24"] }), 403),
        (json!({ "allowedIPs": ["198.51.100.0/24", "192.0.2.44/32"] }), 200),
        (json!({ "notAfter": "2026-01-01T00:00:00Z" }), 401),
        (json!({ "notAfter": "2100-01-01T00:00:00Z" }), 200),
    ];
    for (change, status) in changes {
        bench.change(1, change.clone()).await;
        let took = answers(&verifier, &key, status).await;
        println!("{change} was enforced after {took:?}");
    }
    let deleted = bench.issue(2).await;
    answers(&verifier, &deleted, 200).await;
    bench.records.delete(&record_name(2), &DeleteParams::default()).await.unwrap();
    answers(&verifier, &deleted, 401).await;
    bench.revoke(1).await;
    answers(&verifier, &key, 401).await;
    assert_eq!(verifier.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn more_records_than_fit_into_one_page_are_all_known_when_it_is_ready() {
    let bench = Bench::new("pages").await;
    let keys: Vec<String> = iter(1..=1001).map(|serial| bench.issue(serial)).buffer_unordered(16).collect().await;
    let verifier = bench.verifier(&[]).await;
    let requests = bench.faults.requests();
    // With a limit of one, it is a question for the newest version, which is asked again where a watch is slow.
    let is_page = |request: &&ApiRequest| is_list(request) && request.limit != Some(1);
    let pages: Vec<_> = requests.iter().filter(is_page).collect();
    assert_eq!(pages.len(), 4, "pages of 50, 200, 500 and the rest: {pages:?}");
    for key in &keys {
        assert_eq!(ask(&verifier, key).await, 200);
    }
    let (_, metrics) = get(verifier.address("admin"), "/metrics", "").await;
    assert!(metrics.contains("keywright_records 1001"), "{metrics}");
}

/// All pages show the records as they were at the first one, and the watch that brings what came after it may be late.
#[tokio::test]
async fn a_revocation_that_arrives_during_start_up_is_in_force_before_ready() {
    let bench = Bench::new("start-up").await;
    let issue = async |serial| (record_name(serial), serial, bench.issue(serial).await);
    let mut keys: Vec<_> = iter(1..=2000).map(issue).buffer_unordered(16).collect().await;
    keys.sort_unstable();
    let (read, others) = keys.split_at(40);
    // Pages of 50, 200 and 500 records, and so on.
    let held = bench.faults.inject(Fault::Hold, Nth(2), is_list);
    let hung = bench.faults.inject(Fault::HangWatch, Nth(1), is_watch);
    let verifier = bench.installation.program("verifier").through(&bench.faults).start().await;
    held.hit().await;
    assert!(!is_ready(&verifier).await, "it has read one page of six");
    for (_, serial, _) in read {
        bench.revoke(*serial).await;
    }
    held.lift();
    hung.hit().await;
    assert!(!is_ready(&verifier).await, "it has read all pages, and heard of no revocation");
    verifier.ready().await;
    for (name, _, key) in read {
        assert_eq!(ask(&verifier, key).await, 401, "{name} was revoked before it was Ready");
    }
    for (name, _, key) in others.iter().step_by(100) {
        assert_eq!(ask(&verifier, key).await, 200, "{name}");
    }
}

/// Everything in the cluster counts on one version, so a list is nearly always behind it, and no record tells so.
#[tokio::test]
async fn a_start_among_writes_of_other_things_ends_with_a_bookmark() {
    let bench = Bench::new("bookmark").await;
    let keys: Vec<String> = iter(1..=501).map(|serial| bench.issue(serial)).buffer_unordered(16).collect().await;
    let held = bench.faults.inject(Fault::Hold, Nth(2), is_list);
    let verifier = bench.installation.program("verifier").through(&bench.faults).start().await;
    held.hit().await;
    let other: ConfigMap = serde_json::from_value(json!({ "metadata": { "name": "other" } })).unwrap();
    bench.installation.tenant().create(&PostParams::default(), &other).await.unwrap();
    let started = Instant::now();
    held.lift();
    verifier.ready().await;
    println!("ready after {:?}", started.elapsed());
    assert!(!verifier.printed().contains("the watch is behind"), "{}", verifier.printed());
    assert_eq!(ask(&verifier, &keys[0]).await, 200);
}

#[tokio::test]
async fn a_watch_that_is_cut_off_or_gone_loses_nothing() {
    let bench = Bench::new("cut").await;
    let verifier = bench.verifier(&["--lease-duration=6s"]).await;
    let cut = bench.faults.inject(Fault::CutWatch, Nth(1), is_watch);
    let key = bench.issue(1).await;
    cut.hit().await;
    answers(&verifier, &key, 200).await;
    let outcomes = [Outcome::Status(410), Outcome::Status(500), Outcome::Reset, Outcome::TooManyRequests(1)];
    for (serial, outcome) in (2..).zip(outcomes) {
        let refused = bench.faults.inject(Fault::Before(outcome), Nth(1), is_watch);
        refused.hit().await;
        let key = bench.issue(serial).await;
        answers(&verifier, &key, 200).await;
    }
}

/// The connection stays open and nothing comes any more: no error would ever tell.
#[tokio::test]
async fn a_revocation_is_enforced_although_the_watch_hangs() {
    let bench = Bench::new("hang").await;
    let verifier = bench.verifier(&[]).await;
    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let hung = bench.faults.inject(Fault::HangWatch, Nth(1), is_watch);
    bench.revoke(1).await;
    hung.hit().await;
    let took = answers(&verifier, &key, 401).await;
    assert!(took < Duration::from_secs(27), "{took:?}");
    println!("noticed after {took:?}");
}

/// No watch is answered, as if the cache that it is served from stood still, and lists are: they tell of the revocation.
#[tokio::test]
async fn a_revocation_is_enforced_although_no_watch_is_answered() {
    let bench = Bench::new("no-watch").await;
    let verifier = bench.verifier(&[]).await;
    let (key, revoked) = (bench.issue(1).await, bench.issue(2).await);
    answers(&verifier, &key, 200).await;
    answers(&verifier, &revoked, 200).await;
    let held = bench.faults.inject(Fault::Hold, Every, is_watch);
    bench.faults.sever();
    held.hit().await;
    bench.revoke(2).await;
    let took = answers(&verifier, &revoked, 401).await;
    println!("noticed after {took:?}");
    assert_eq!(ask(&verifier, &key).await, 200, "what the lists say is known");
    let later = bench.issue(3).await;
    answers(&verifier, &later, 200).await;
    assert!(held.hits() > 0 && verifier.printed().contains("the watch is behind"), "{}", verifier.printed());
}

/// Nothing new is answered, and the open watch is silent: the lease is the end of what is let in, and on the way back nothing
/// is let in that was revoked meanwhile.
#[tokio::test]
async fn a_verifier_whose_reads_are_held_refuses_at_the_lease_and_is_right_again_when_they_are_released() {
    let bench = Bench::new("held").await;
    let verifier = bench.verifier(&["--lease-duration=5s"]).await;
    let (key, revoked) = (bench.issue(1).await, bench.issue(2).await);
    answers(&verifier, &key, 200).await;
    answers(&verifier, &revoked, 200).await;
    let hung = bench.faults.inject(Fault::HangWatch, Nth(1), is_watch);
    let held = bench.faults.inject(Fault::Hold, Every, |request| request.is("GET", "apikeyrecords"));
    let started = Instant::now();
    bench.revoke(2).await;
    answers(&verifier, &key, 503).await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(7), "{took:?}");
    assert_eq!(ask(&verifier, &revoked).await, 503);
    held.lift();
    drop(hung);
    is_back(&verifier, &key, &revoked).await;
}

/// Without the right to read records, and where their definition is not served, it is never Ready, and says why.
#[tokio::test]
async fn a_verifier_that_cannot_list_is_not_ready_and_says_what_to_do() {
    let bench = Bench::new("no-list").await;
    for (code, kind) in [(401, "unauthorized"), (403, "forbidden"), (404, "not_found")] {
        let refused = bench.faults.inject(Fault::Before(Outcome::Status(code)), Every, |request| !request.is_write());
        let verifier = bench.installation.program("verifier").through(&bench.faults).start().await;
        refused.hit().await;
        let started = Instant::now();
        while !get(verifier.address("admin"), "/metrics", "")
            .await
            .1
            .contains(&format!("errors_total{{kind=\"{kind}\"}} 2"))
        {
            assert!(started.elapsed() < wait::DEADLINE, "{kind}");
            sleep(Duration::from_millis(20)).await;
        }
        assert!(!is_ready(&verifier).await);
        let printed = verifier.printed();
        let lines = printed.lines().filter(|line| line.contains("cannot follow apikeyrecords: check that")).count();
        assert_eq!(lines, 1, "told once, and then every minute: {printed}");
        refused.lift();
        verifier.ready().await;
    }
}

#[tokio::test]
async fn cut_off_from_the_api_server_it_serves_for_the_lease_duration_and_no_longer() {
    let bench = Bench::new("partition").await;
    let verifier = bench.verifier(&["--lease-duration=5s"]).await;
    let (key, revoked) = (bench.issue(1).await, bench.issue(2).await);
    answers(&verifier, &key, 200).await;
    answers(&verifier, &revoked, 200).await;
    let (serving, not_serving) = (("0".to_owned(), vec![8, 1]), ("14".to_owned(), vec![8, 2]));
    assert_eq!(ask_over_grpc(&verifier, &key).await, serving);
    bench.faults.partition();
    bench.revoke(2).await;
    assert_eq!(ask(&verifier, &key).await, 200);
    let took = answers(&verifier, &key, 503).await;
    assert!((2..6).contains(&took.as_secs()), "{took:?}");
    let (status, answer) = get(verifier.address("admin"), "/readyz", "").await;
    assert!(status == 503 && answer.contains("lapsed 0 s ago: the Lease was not renewed in time"), "{answer}");
    assert_eq!(ask_over_grpc(&verifier, &key).await, not_serving, "UNAVAILABLE, NOT_SERVING");
    bench.faults.heal();
    // Not for a moment on the way back.
    is_back(&verifier, &key, &revoked).await;
    assert_eq!(get(verifier.address("admin"), "/readyz", "").await.0, 200);
    assert_eq!(ask_over_grpc(&verifier, &key).await, serving);
}

#[tokio::test]
async fn it_reads_records_holds_its_lease_and_writes_last_uses_and_does_nothing_else() {
    let bench = Bench::new("rights").await;
    let verifier = bench.verifier(&["--lease-duration=3s"]).await;
    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let (printed, ended) = (verifier.printed(), Timestamp::now());
    assert_eq!(verifier.terminate().await.code(), Some(0));
    let user = format!("system:serviceaccount:{}:keywright-verifier", bench.installation.system_namespace);
    let requests = bench.installation.audited_requests().await;
    // A list that the verifier's end cuts off is one that failed, to the API server.
    let is_cut_off = |request: &AuditedRequest| request.at >= ended && request.verb == "list" && request.code == 500;
    let own = requests.iter().filter(|request| request.user == user && !is_cut_off(request));
    let seen: BTreeSet<_> = own.map(|request| (&*request.verb, &*request.resource, request.code)).collect();
    let expected = [
        ("get", "apikeyrecords", 200),
        ("list", "apikeyrecords", 200),
        ("watch", "apikeyrecords", 200),
        ("patch", "apikeyrecords/status", 200),
        ("create", "leases", 201),
        ("update", "leases", 200),
        ("delete", "leases", 200),
    ];
    assert_eq!(seen, BTreeSet::from(expected));
    assert!(!printed.contains(&key[..15]), "no more of a key than its prefix");
}
