//! The test bed itself: a fault that does nothing would let every test pass that relies on it.

use std::time::Duration;

use anyhow::Result;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::time::timeout;

use keywright_testing::Occurrence::{Every, Nth};
use keywright_testing::{ApiRequest, ControlPlane, Fault, FaultProxy, Installation, Outcome, wait};

/// Long enough that an answer on its way would have come.
const SILENCE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn the_control_plane_is_kubernetes_1_37() -> Result<()> {
    let client = ControlPlane::shared().await.client().await;
    assert_eq!(client.apiserver_version().await?.git_version, "v1.37.2");
    Ok(())
}

#[tokio::test]
async fn credentials_are_those_of_a_service_account_in_a_pod() -> Result<()> {
    let installation = Installation::new("credentials").await;
    let credentials = installation.credentials("verifier").await;
    let kubeconfig = credentials.write_kubeconfig(None);
    let arguments = ["auth", "whoami", "--output=json"];
    let answer = installation.control_plane.kubectl(arguments).env("KUBECONFIG", &kubeconfig).output()?.stdout;
    let user = &serde_json::from_slice::<serde_json::Value>(&answer)?["status"]["userInfo"];
    let service_account = format!("system:serviceaccount:{}:keywright-verifier", installation.system_namespace);
    assert_eq!(user["username"], service_account);
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-name"], json!([credentials.pod_name]));

    let client = installation.control_plane.client_of(&kubeconfig).await;
    let secrets = Api::<Secret>::namespaced(client, &installation.system_namespace);
    let refused = secrets.get("any").await.expect_err("a verifier never reads a Secret");
    assert_eq!(code(&refused), Some(403), "{refused}");

    let seen = installation.audited_requests().await;
    let seen: Vec<_> = seen.iter().filter(|request| request.user == service_account).collect();
    let [request] = seen[..] else { panic!("one request, not {seen:?}") };
    let said = (&*request.verb, &*request.resource, &*request.namespace, &*request.name, request.code);
    assert_eq!(said, ("get", "secrets", &*installation.system_namespace, "any", 403));
    Ok(())
}

#[tokio::test]
async fn a_program_is_started_awaited_and_ended() {
    let installation = Installation::new("program").await;
    let verifier = installation.program("verifier").start().await;
    verifier.ready().await;
    assert_ne!(verifier.address("http"), verifier.address("admin"));
    assert!(verifier.printed().contains("listening"));
    assert_eq!(verifier.terminate().await.code(), Some(0));

    let faults = FaultProxy::start(installation.control_plane).await;
    let credentials = installation.credentials("verifier").await;
    for _ in 0..2 {
        let launch = installation.program("verifier").argument("--log-format=json").in_pod(&credentials);
        let verifier = launch.through(&faults).start().await;
        let id = verifier.id();
        verifier.kill().await;
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}

#[tokio::test]
async fn a_wait_that_fails_says_what_it_saw() {
    let installation = Installation::new("wait").await;
    let secrets = installation.tenant::<Secret>();
    let secret = json!({"metadata": {"name": "seen"}, "stringData": {"a": "hidden"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    wait::for_object(&secrets, "seen", |secret| secret.data.is_some()).await;
    let all = secrets.clone();
    let never = async move { wait::for_objects(&all, Default::default(), SILENCE, |all| all.len() > 1).await };
    let failure = tokio::spawn(never).await.expect_err("there is one Secret").into_panic();
    let message = failure.downcast::<String>().expect("a message");
    assert!(message.contains("bed.rs") && message.contains("name: seen"), "{message}");
    assert!(!message.contains("aGlkZGVu"), "a Secret's data is in {message}");

    secrets.delete("seen", &DeleteParams::default()).await.unwrap();
    wait::for_absence(&secrets, "seen").await;
}

/// A tenant namespace, reached through a fault proxy, and directly.
struct Bench {
    faults: FaultProxy,
    through: Api<ConfigMap>,
    direct: Api<ConfigMap>,
    _installation: Installation,
}

impl Bench {
    async fn new(test_name: &str) -> Self {
        let installation = Installation::new(test_name).await;
        let control_plane = installation.control_plane;
        let faults = FaultProxy::start(control_plane).await;
        // An administrator's token: the faults are what is tried, not the rights.
        let kubeconfig = control_plane.write_kubeconfig(None, Some(&faults.url()));
        let client = control_plane.client_of(&kubeconfig).await;
        let through = Api::namespaced(client, &installation.tenant_namespace);
        let direct = installation.tenant::<ConfigMap>();
        Self { faults, through, direct, _installation: installation }
    }

    async fn create(&self, name: &str) -> kube::Result<ConfigMap> {
        self.through.create(&PostParams::default(), &config_map(name)).await
    }

    async fn exists(&self, name: &str) -> bool {
        self.direct.get_opt(name).await.expect("the API server answers").is_some()
    }

    /// A watch through the proxy; every ConfigMap made from here on is an event of it.
    async fn watch(&self) -> impl Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + use<> {
        let now = self.direct.list(&Default::default()).await.expect("the API server answers");
        let now = now.metadata.resource_version.expect("a list has a version");
        self.through.watch(&WatchParams::default(), &now).await.expect("the watch starts").boxed()
    }

    async fn make(&self, names: &[&str]) {
        for name in names {
            self.direct.create(&PostParams::default(), &config_map(name)).await.expect("a new ConfigMap");
        }
    }
}

#[tokio::test]
async fn faults_before_the_request() {
    let bench = Bench::new("before").await;
    let create = |request: &_| is_creation(request);
    for (outcome, expected) in [
        (Outcome::Status(503), Some(503)),
        (Outcome::Status(409), Some(409)),
        (Outcome::TooManyRequests(7), Some(429)),
        (Outcome::Reset, None),
    ] {
        let injected = bench.faults.inject(Fault::Before(outcome), Nth(1), create);
        let failed = bench.create("absent").await.expect_err("the fault");
        assert_eq!(code(&failed), expected, "{outcome:?}: {failed}");
        assert_eq!(is_reset(&failed), expected.is_none(), "{outcome:?}: {failed:?}");
        injected.hit().await;
        assert_eq!(injected.hits(), 1);
        assert!(!bench.exists("absent").await, "{outcome:?}");
    }
    let hung = bench.faults.inject(Fault::Before(Outcome::Hang), Nth(1), create);
    assert!(timeout(SILENCE, bench.create("absent")).await.is_err());
    hung.hit().await;
    assert!(!bench.exists("absent").await);
    bench.create("present").await.expect("no fault is left");
    let requests = bench.faults.requests();
    assert_eq!(requests.len(), 6, "{requests:?}");
    assert!(requests.iter().all(ApiRequest::is_write));
}

#[tokio::test]
async fn faults_after_the_request() {
    let bench = Bench::new("after").await;
    for (name, outcome, expected) in
        [("timeout", Outcome::Status(504), Some(504)), ("reset", Outcome::Reset, None), ("hang", Outcome::Hang, None)]
    {
        let injected = bench.faults.inject(Fault::After(outcome), Nth(1), is_creation);
        let answer = timeout(SILENCE, bench.create(name)).await;
        match (answer, outcome) {
            (Err(_), Outcome::Hang) => {}
            (Ok(Err(failed)), _) => {
                assert_eq!(code(&failed), expected, "{outcome:?}: {failed}");
                assert_eq!(is_reset(&failed), expected.is_none(), "{outcome:?}: {failed:?}");
            }
            (answer, _) => panic!("{outcome:?}: {answer:?}"),
        }
        injected.hit().await;
        assert!(bench.exists(name).await, "{outcome:?}");
    }
}

#[tokio::test]
async fn occurrences_are_counted() {
    let bench = Bench::new("occurrences").await;
    let second = bench.faults.inject(Fault::Before(Outcome::Status(503)), Nth(2), is_creation);
    assert!(bench.create("one").await.is_ok());
    assert!(bench.create("two").await.is_err());
    assert!(bench.create("two").await.is_ok());
    assert_eq!(second.hits(), 1);

    let every = bench.faults.inject(Fault::Before(Outcome::Status(503)), Every, is_creation);
    assert!(bench.create("three").await.is_err());
    assert!(bench.create("three").await.is_err());
    assert!(bench.through.get("one").await.is_ok());
    every.lift();
    assert!(bench.create("three").await.is_ok());

    let delayed = bench.faults.inject(Fault::Delay(SILENCE), Nth(1), is_creation);
    let (four, ()) = tokio::join!(bench.create("four"), async {
        delayed.hit().await;
        assert!(!bench.exists("four").await);
    });
    assert!(four.is_ok());

    let held = bench.faults.inject(Fault::Hold, Nth(1), is_creation);
    let (five, ()) = tokio::join!(bench.create("five"), async {
        held.hit().await;
        assert!(bench.create("six").await.is_ok(), "only the first one is held");
        assert!(!bench.exists("five").await);
        held.lift();
    });
    assert!(five.is_ok());

    assert_eq!(bench.faults.count("POST", "configmaps"), 9);
    assert_eq!(bench.faults.count("GET", "configmaps"), 1);
    assert!(bench.faults.requests().iter().all(|request| request.namespace.as_deref() == bench.direct.namespace()));
}

#[tokio::test]
async fn faults_of_a_watch() {
    let bench = Bench::new("watch").await;
    let watch = |request: &ApiRequest| request.watch;
    let mut events = bench.watch().await;
    let dropped = bench.faults.inject(Fault::DropEvent, Nth(2), watch);
    bench.make(&["a", "b", "c"]).await;
    assert_eq!((next(&mut events).await, next(&mut events).await), ("a".into(), "c".into()));
    assert_eq!(dropped.hits(), 1);

    let cut = bench.faults.inject(Fault::CutWatch, Nth(2), watch);
    bench.make(&["d", "e"]).await;
    assert_eq!(next(&mut events).await, "d");
    let end = timeout(wait::DEADLINE, events.next()).await.expect("the end, soon");
    assert!(end.is_none(), "{end:?}");
    cut.hit().await;

    let mut events = bench.watch().await;
    let hung = bench.faults.inject(Fault::HangWatch, Nth(2), watch);
    bench.make(&["f", "g", "h"]).await;
    assert_eq!(next(&mut events).await, "f");
    hung.hit().await;
    assert!(timeout(SILENCE, events.next()).await.is_err(), "neither an event nor an end");
    assert!(bench.through.get("h").await.is_ok(), "other requests go through");
    bench.faults.sever();
    let end = timeout(wait::DEADLINE, events.next()).await.expect("the end, soon");
    assert!(end.is_none(), "{end:?}");
}

#[tokio::test]
async fn a_partition_stops_everything_and_closes_nothing() {
    let bench = Bench::new("partition").await;
    let mut events = bench.watch().await;
    bench.faults.partition();
    bench.make(&["a"]).await;
    let (event, created) = tokio::join!(timeout(SILENCE, events.next()), timeout(SILENCE, bench.create("b")));
    assert!(event.is_err() && created.is_err());
    assert!(!bench.exists("b").await);
    bench.faults.heal();
    assert_eq!(next(&mut events).await, "a");
    bench.create("c").await.expect("the network is back");
}

/// The next event of a watch: which ConfigMap it is about.
async fn next(events: &mut (impl Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin)) -> String {
    loop {
        match timeout(wait::DEADLINE, events.next()).await.expect("an event, soon") {
            Some(Ok(WatchEvent::Added(config_map))) => return config_map.name_any(),
            Some(Ok(WatchEvent::Bookmark(_))) => {}
            other => panic!("no event: {other:?}"),
        }
    }
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}})).expect("a ConfigMap")
}

fn is_creation(request: &ApiRequest) -> bool {
    request.is("POST", "configmaps")
}

/// The HTTP status of an answer; none where there was no answer.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn is_reset(error: &kube::Error) -> bool {
    format!("{error:?}").contains("ConnectionReset")
}
