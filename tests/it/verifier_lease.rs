//! A verifier's Lease: there before anything is let in, renewed, lost, and gained anew; on the real API server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::coordination::v1::Lease;
use keywright_core::fence::{APPLIED_ANNOTATION, STATE_ANNOTATION, Stored};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::overload::{h2_client, lets_in};
use super::verifier::{Bench, answers, ask, is_back, is_list, record_name};
use keywright_testing::{
    ApiRequest, Credentials, Fault,
    Occurrence::{Every, Nth},
    Outcome, Program, wait,
};

/// A verifier in a Pod that the test knows.
async fn verifier_in(bench: &Bench, pod: &Credentials, arguments: &[&str]) -> Program {
    let launch = bench.installation.program("verifier").in_pod(pod).through(&bench.faults);
    let verifier = arguments.iter().fold(launch, |launch, argument| launch.argument(argument)).start().await;
    verifier.ready().await;
    verifier
}

fn leases(bench: &Bench) -> Api<Lease> {
    bench.installation.system()
}

fn annotation<'l>(lease: &'l Lease, name: &str) -> Option<&'l str> {
    lease.annotations().get(name).map(String::as_str)
}

fn applies(lease: &Lease, version: &str) -> bool {
    let applied = Stored::read(lease).and_then(|stored| stored.applied);
    applied.is_some_and(|applied| applied >= version.parse().unwrap())
}

fn holder(lease: &Lease) -> String {
    lease.spec.as_ref().unwrap().holder_identity.clone().unwrap()
}

fn is_renewal(request: &ApiRequest) -> bool {
    request.is("PUT", "leases")
}

#[tokio::test]
async fn the_lease_comes_before_the_list_and_says_at_once_what_is_enforced() {
    let bench = Bench::new("lease-first").await;
    let pod = bench.installation.credentials("verifier").await;
    let held = bench.faults.inject(Fault::Hold, Nth(1), |request| request.is("POST", "leases"));
    let verifier = bench.installation.program("verifier").in_pod(&pod).through(&bench.faults).start().await;
    held.hit().await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.faults.requests().len(), 1, "nothing else before the Lease is there");
    held.lift();
    verifier.ready().await;
    let user = format!("system:serviceaccount:{}:keywright-verifier", bench.installation.system_namespace);
    let requests = bench.installation.audited_requests().await;
    let own: Vec<_> = requests.iter().filter(|request| request.user == user).map(|request| &*request.verb).collect();
    assert_eq!(own[..2], ["create", "list"], "{own:?}");

    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let lease = leases(&bench).get(&pod.pod_name).await.unwrap();
    assert_eq!(annotation(&lease, STATE_ANNOTATION), Some("serving"));
    assert!(lease.owner_references().is_empty(), "its process may outlive its Pod");
    for suspended in [true, false, true] {
        let change = Patch::Merge(json!({ "spec": { "suspended": suspended } }));
        let record = bench.records.patch(&record_name(1), &PatchParams::default(), &change).await.unwrap();
        let (version, started) = (record.resource_version().unwrap(), Instant::now());
        let lease = wait::for_object(&leases(&bench), &pod.pod_name, |lease| applies(lease, &version)).await;
        let took = started.elapsed();
        println!("version {version} was acknowledged as {:?} after {took:?}", annotation(&lease, APPLIED_ANNOTATION));
        assert!(took < Duration::from_secs(5), "not with the next renewal: {took:?}");
        assert_eq!(ask(&verifier, &key).await, if suspended { 401 } else { 200 });
    }
}

/// They are most of all writes of records, and nobody waits for one.
#[tokio::test]
async fn last_uses_take_no_renewal_of_their_own() {
    let bench = Bench::new("lease-uses").await;
    let verifier = bench.verifier(&["--last-used-granularity=1s"]).await;
    let keys = join_all((1..=5).map(|serial| bench.issue(serial))).await;
    for key in &keys {
        answers(&verifier, key, 200).await;
    }
    // The last record is acknowledged with a renewal.
    sleep(Duration::from_secs(1)).await;
    let (renewals, uses) = (bench.faults.count("PUT", "leases"), bench.faults.count("PATCH", "apikeyrecords/status"));
    let started = Instant::now();
    while bench.faults.count("PATCH", "apikeyrecords/status") < uses + 15 {
        join_all(keys.iter().map(|key| ask(&verifier, key))).await;
        sleep(Duration::from_millis(50)).await;
    }
    let (renewals, took) = (bench.faults.count("PUT", "leases") - renewals, started.elapsed());
    println!("{renewals} renewals and 15 last uses in {took:?}");
    assert!(renewals <= 1 + took.as_secs() as usize / 10, "{renewals} in {took:?}");
}

#[tokio::test]
async fn at_rest_it_takes_three_requests_in_ten_seconds() {
    let bench = Bench::new("lease-rest").await;
    let _verifier = bench.verifier(&[]).await;
    sleep(Duration::from_secs(1)).await;
    let before = bench.faults.requests().len();
    sleep(Duration::from_secs(30)).await;
    let requests = bench.faults.requests().split_off(before);
    println!("{} requests in 30 s", requests.len());
    assert!(requests.len() <= 9, "{requests:?}");
}

#[tokio::test]
async fn one_that_crashed_is_cleared_by_its_next_start_and_one_that_is_stopped_leaves_nothing() {
    let bench = Bench::new("lease-restart").await;
    let pod = bench.installation.credentials("verifier").await;
    let (key, leases) = (bench.issue(1).await, leases(&bench));
    let mut before = None;
    for _ in 0..2 {
        let verifier = verifier_in(&bench, &pod, &[]).await;
        assert_eq!(ask(&verifier, &key).await, 200);
        let lease = leases.get(&pod.pod_name).await.unwrap();
        let now = Some((lease.uid(), holder(&lease)));
        assert_ne!(now, before, "another Lease, of another start");
        before = now;
        verifier.kill().await;
        assert!(leases.get_opt(&pod.pod_name).await.unwrap().is_some(), "nobody knows that it is gone");
    }
    let started = Instant::now();
    let verifier = verifier_in(&bench, &pod, &[]).await;
    println!("ready {:?} after the crash", started.elapsed());
    assert!(started.elapsed() < wait::DEADLINE, "not when the Lease runs out: {:?}", started.elapsed());
    assert_eq!(verifier.terminate().await.code(), Some(0));
    assert!(leases.get_opt(&pod.pod_name).await.unwrap().is_none());
}

/// The controller deletes the Lease of a verifier that is silent, and lets deletions complete.
#[tokio::test]
async fn one_whose_lease_was_deleted_lets_nobody_in_until_it_has_joined_and_listed_anew() {
    let bench = Bench::new("lease-deleted").await;
    let pod = bench.installation.credentials("verifier").await;
    let verifier = verifier_in(&bench, &pod, &[]).await;
    let (key, revoked) = (bench.issue(1).await, bench.issue(2).await);
    answers(&verifier, &key, 200).await;
    answers(&verifier, &revoked, 200).await;
    let held = bench.faults.inject(Fault::Hold, Every, |request| request.is("POST", "leases"));
    leases(&bench).delete(&pod.pod_name, &DeleteParams::default()).await.unwrap();
    // It acknowledges this at once, if it has a Lease.
    bench.issue(3).await;
    let took = answers(&verifier, &key, 503).await;
    println!("noticed after {took:?}");
    assert!(took < Duration::from_secs(8), "not with the next renewal: {took:?}");
    held.hit().await;
    let lists = bench.faults.requests().iter().filter(|request| is_list(request)).count();
    bench.revoke(2).await;
    let (is_ready, said) = verifier.readiness().await;
    assert!(!is_ready && said.starts_with(&format!("not joined: there is no Lease {}", pod.pod_name)), "{said}");
    assert_eq!(ask(&verifier, &key).await, 503);
    held.lift();
    is_back(&verifier, &key, &revoked).await;
    assert!(bench.faults.requests().iter().filter(|request| is_list(request)).count() > lists);
    assert!(leases(&bench).get_opt(&pod.pod_name).await.unwrap().is_some());
}

/// Whatever becomes of renewals on their way: they are made good in time, or nobody is let in.
#[tokio::test]
async fn renewals_that_are_lost_or_late_cost_nothing_until_the_lease_has_run_out() {
    let bench = Bench::new("lease-late").await;
    let pod = bench.installation.credentials("verifier").await;
    let verifier = verifier_in(&bench, &pod, &["--lease-duration=4s"]).await;
    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let late = Fault::Delay(Duration::from_millis(1600));
    for fault in [Fault::After(Outcome::Reset), Fault::After(Outcome::Status(504)), Fault::After(Outcome::Hang), late] {
        let injected = bench.faults.inject(fault, Nth(1), is_renewal);
        injected.hit().await;
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            assert_eq!(ask(&verifier, &key).await, 200, "{fault:?}");
            sleep(Duration::from_millis(20)).await;
        }
        injected.lift();
    }
    for fault in
        [Fault::After(Outcome::Hang), Fault::Delay(Duration::from_secs(6)), Fault::Before(Outcome::Status(500))]
    {
        let injected = bench.faults.inject(fault, Every, is_renewal);
        let started = Instant::now();
        injected.hit().await;
        answers(&verifier, &key, 503).await;
        let took = started.elapsed();
        println!("{fault:?}: lapsed after {took:?}");
        assert!(took > Duration::from_secs(2) && took < wait::DEADLINE, "{fault:?}: {took:?}");
        let (is_ready, said) = verifier.readiness().await;
        assert!(!is_ready && said.starts_with("lapsed "), "{said}");
        assert_eq!(ask(&verifier, &key).await, 503, "{fault:?}");
        injected.lift();
        answers(&verifier, &key, 200).await;
    }
}

#[tokio::test]
async fn one_that_may_not_have_its_lease_is_not_ready_and_says_what_to_do() {
    let bench = Bench::new("lease-refused").await;
    let client = bench.installation.credentials("verifier").await.client().await;
    let leases = Api::<Lease>::namespaced(client, &bench.installation.system_namespace);
    let another = serde_json::from_value(json!({ "metadata": { "name": "another" } })).unwrap();
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    bench.installation.in_force("leases", async || leases.create(&dry_run, &another).await).await;
    let launch = bench.installation.program("verifier").through(&bench.faults);
    let verifier = launch.argument("--identity=another").start().await;
    verifier.says("cannot create the Lease: Check that --identity is the name of the verifier's own Pod").await;
    let (is_ready, said) = verifier.readiness().await;
    assert!(!is_ready && said.contains("not joined: there is no Lease another. cannot create the Lease"), "{said}");
    assert!(said.contains("A verifier writes only the Lease that is named after its own Pod"), "{said}");
    assert!(bench.faults.requests().iter().all(|request| !is_list(request)), "it has nothing to list for");
}

/// Whatever a process was doing when it was stopped: when it goes on after its Lease has run out, nobody gets in by it.
/// A request may have been read already, decided, or even have been about to be answered.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_stopped_for_longer_than_its_lease_lets_nobody_in_when_it_goes_on() {
    const CONNECTIONS: usize = 48;
    let bench = Bench::new("lease-stopped").await;
    let verifier = bench.verifier(&["--lease-duration=2s"]).await;
    let key = bench.issue(1).await;
    answers(&verifier, &key, 200).await;
    let load = Load::start(&verifier, &key, CONNECTIONS).await;
    let mut late = 0;
    for round in 0..8 {
        answers(&verifier, &key, 200).await;
        load.await_allows().await;
        // Nothing can be renewed any more, so nothing that is answered from now on may be an allow.
        bench.faults.partition();
        sleep(Duration::from_millis(rand::random_range(0..200))).await;
        verifier.signal("STOP");
        sleep(Duration::from_millis(2300)).await;
        let before = load.counts();
        verifier.signal("CONT");
        load.await_others(before.1 + CONNECTIONS).await;
        let after = load.counts();
        println!("round {round}: {} allows before, {} other answers after", before.0, after.1 - before.1);
        late += after.0 - before.0;
        bench.faults.heal();
    }
    // Between the last look at the clock and the write there is a fraction of a microsecond that nothing can close.
    assert!(late <= 1, "{late} allows after the Lease had run out");
    load.end().await;
}

/// Requests by many clients, one after the other on each connection, over HTTP and gRPC.
struct Load {
    shared: Arc<Shared>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    allows: AtomicUsize,
    others: AtomicUsize,
}

impl Shared {
    fn count(&self, is_allow: bool) {
        let counter = if is_allow { &self.allows } else { &self.others };
        counter.fetch_add(1, Ordering::SeqCst);
    }
}

impl Load {
    async fn start(verifier: &Program, key: &str, connections: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let mut clients = Vec::new();
        for number in 0..connections {
            let (shared, key) = (Arc::clone(&shared), key.to_owned());
            let (http, grpc) = (verifier.address("http"), verifier.address("grpc"));
            clients.push(tokio::spawn(async move {
                while !shared.is_over.load(Ordering::SeqCst) {
                    // A connection may be closed instead of an answer.
                    if number % 2 == 0 {
                        let Ok(mut connection) = TcpStream::connect(http).await else { continue };
                        while let Ok(is_allow) = ask_over_http(&mut connection, &key).await {
                            shared.count(is_allow);
                            if shared.is_over.load(Ordering::SeqCst) {
                                return;
                            }
                        }
                    } else {
                        let client = h2_client(grpc).await;
                        while let Ok(is_allow) = lets_in(&client, &key).await {
                            shared.count(is_allow);
                            if shared.is_over.load(Ordering::SeqCst) {
                                return;
                            }
                        }
                    }
                    shared.count(false);
                }
            }));
        }
        Self { shared, clients }
    }

    /// The allows, and the other answers.
    fn counts(&self) -> (usize, usize) {
        (self.shared.allows.load(Ordering::SeqCst), self.shared.others.load(Ordering::SeqCst))
    }

    async fn await_allows(&self) {
        let (before, started) = (self.counts().0, Instant::now());
        while self.counts().0 < before + 1000 {
            assert!(started.elapsed() < wait::DEADLINE);
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn await_others(&self, count: usize) {
        let started = Instant::now();
        while self.counts().1 < count {
            assert!(started.elapsed() < wait::DEADLINE);
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn end(self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        join_all(self.clients).await;
    }
}

/// Whether the answer to one request on a connection that is kept is 200.
async fn ask_over_http(connection: &mut TcpStream, key: &str) -> std::io::Result<bool> {
    let request = format!("GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {key}\r\nX-Forwarded-For: 192.0.2.44\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        if connection.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next()?.parse().ok());
            if body.len() == length.unwrap_or(0) {
                return Ok(head.starts_with("HTTP/1.1 200"));
            }
        }
    }
}
