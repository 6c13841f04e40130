//! The webhook's certificates on the real API server: the job and the replicas with the chart's own rights, the API
//! server as their client.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::ApiKey;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use keywright_testing::{ApiRequest, Fault, FaultProxy, Installation, Occurrence::Nth, Outcome, Program, wait};

const SECRET: &str = "keywright-webhook-ca";

/// What stands in for the webhook's Service: one address, replicas that change, each connection to the next of them.
struct Service {
    address: SocketAddr,
    replicas: Arc<Mutex<Vec<SocketAddr>>>,
    connections: Arc<Mutex<JoinSet<()>>>,
    accepted: Arc<AtomicUsize>,
    severed: watch::Sender<()>,
    _accepting: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (replicas, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(JoinSet::new())));
        let (accepted, severed) = (Arc::new(AtomicUsize::new(0)), watch::Sender::new(()));
        let accepting = {
            let (replicas, connections) = (Arc::clone(&replicas), Arc::clone(&connections));
            let (accepted, severed) = (Arc::clone(&accepted), severed.clone());
            async move {
                loop {
                    let (mut client, _) = listener.accept().await.unwrap();
                    let count = accepted.fetch_add(1, Ordering::SeqCst);
                    let next: Option<SocketAddr> = {
                        let replicas: std::sync::MutexGuard<'_, Vec<SocketAddr>> = replicas.lock().unwrap();
                        (!replicas.is_empty()).then(|| replicas[count % replicas.len()])
                    };
                    let Some(next) = next else { continue };
                    let mut severed = severed.subscribe();
                    connections.lock().unwrap().spawn(async move {
                        let Ok(mut server) = TcpStream::connect(next).await else { return };
                        tokio::select! {
                            _ = copy_bidirectional(&mut client, &mut server) => {}
                            _ = severed.changed() => {
                                client.shutdown().await.ok();
                                timeout(wait::DEADLINE, client.read_to_end(&mut Vec::new())).await.ok();
                            }
                        }
                    });
                }
            }
        };
        let _accepting = AbortOnDrop(tokio::spawn(accepting));
        Self { address, replicas, connections, accepted, severed, _accepting }
    }

    fn direct(&self, replicas: &[&Program]) {
        *self.replicas.lock().unwrap() = replicas.iter().map(|replica| replica.address("https")).collect();
    }

    /// Ends every connection, so that the next review begins with a handshake. Returns once the API server has let go of
    /// them, too: it does not repeat a review that it had begun to send. None may be under way.
    async fn sever(&self) {
        let connections = std::mem::take(&mut *self.connections.lock().unwrap());
        self.severed.send_modify(|_| ());
        connections.join_all().await;
    }
}

struct Bench {
    service: Service,
    installation: Installation,
    /// The webhook configurations' name, as the chart gives it.
    name: String,
}

impl Bench {
    /// An installation without webhook configurations.
    async fn new(test_name: &str) -> Self {
        let installation = Installation::new(test_name).await;
        let name = installation.tenant_namespace.clone();
        Self { service: Service::start().await, installation, name }
    }

    /// With both configurations, as a user has them before the job ran.
    async fn configured(test_name: &str) -> Self {
        let bench = Self::new(test_name).await;
        let webhook = |path: &str| {
            json!({
                "name": format!("{path}.apikeys.keywright.dev"),
                "clientConfig": {"url": format!("https://{}/{path}", bench.service.address)},
                "rules": [{
                    "apiGroups": ["keywright.dev"], "apiVersions": ["v1alpha1"], "resources": ["apikeys"],
                    "operations": ["CREATE", "UPDATE"],
                }],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": bench.name}},
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 10,
            })
        };
        let configuration = |path| json!({"metadata": {"name": bench.name}, "webhooks": [webhook(path)]});
        let mutating = serde_json::from_value(configuration("mutate")).unwrap();
        bench.mutating().create(&PostParams::default(), &mutating).await.unwrap();
        let validating = serde_json::from_value(configuration("validate")).unwrap();
        bench.validating().create(&PostParams::default(), &validating).await.unwrap();
        bench
    }

    fn mutating(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.installation.client.clone())
    }

    fn validating(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.installation.client.clone())
    }

    fn secrets(&self) -> Api<Secret> {
        self.installation.system()
    }

    /// A run of the job: its exit code and what it printed.
    async fn job(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let launch = self.installation.program("certificates");
        let launch = launch.argument(&format!("--webhook-configuration={}", self.name));
        arguments.iter().fold(launch, |launch, argument| launch.argument(argument)).run().await
    }

    /// A run of the job that has to go well.
    async fn heal(&self) -> String {
        let (code, printed) = self.job(&[]).await;
        assert_eq!(code, Some(0), "{printed}");
        printed
    }

    async fn replica(&self, arguments: &[&str]) -> Program {
        let launch = self.installation.program("webhook").argument("--server-name=127.0.0.1");
        let launch = launch.argument("--certificate-poll=1s");
        arguments.iter().fold(launch, |launch, argument| launch.argument(argument)).start().await
    }

    /// The Secret's data.
    async fn data(&self) -> std::collections::BTreeMap<String, ByteString> {
        self.secrets().get(SECRET).await.unwrap().data.unwrap()
    }

    /// What the API server trusts: of both configurations.
    async fn ca_bundles(&self) -> [Option<Vec<u8>>; 2] {
        let mutating = self.mutating().get(&self.name).await.unwrap().webhooks.unwrap().remove(0).client_config;
        let validating = self.validating().get(&self.name).await.unwrap().webhooks.unwrap().remove(0).client_config;
        [mutating.ca_bundle, validating.ca_bundle].map(|bundle| bundle.map(|bundle| bundle.0))
    }

    /// The resource versions of everything that the job may write.
    async fn versions(&self) -> [Option<String>; 3] {
        [
            self.secrets().get(SECRET).await.unwrap().resource_version(),
            self.mutating().get(&self.name).await.unwrap().resource_version(),
            self.validating().get(&self.name).await.unwrap().resource_version(),
        ]
    }

    /// Has the API server trust this certificate, in PEM, and nothing else.
    async fn trust(&self, certificate: &str) {
        let bundle = ByteString(certificate.into());
        let bundle = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]);
        let patch = Patch::<()>::Json(serde_json::from_value(bundle).unwrap());
        self.mutating().patch(&self.name, &PatchParams::default(), &patch).await.unwrap();
        self.validating().patch(&self.name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// One review of either kind, after handshakes of their own.
    async fn review(&self) -> Result<(), kube::Error> {
        self.service.sever().await;
        self.review_on_open_connections().await
    }

    async fn review_on_open_connections(&self) -> Result<(), kube::Error> {
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        let api_key = ApiKey::new("probe", serde_json::from_value(json!({"owner": "ada"})).unwrap());
        self.installation.tenant::<ApiKey>().create(&dry_run, &api_key).await.map(|answered| {
            assert!(answered.annotations().contains_key("keywright.dev/created-by"), "/mutate was asked");
        })
    }

    /// Waits until the API server takes reviews' answers: it hears of new configurations a moment later.
    async fn reviewed(&self) {
        let mut said = None;
        let waited = timeout(wait::DEADLINE, async {
            while let Err(error) = self.review().await {
                said = Some(error);
                sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(waited.await.is_ok(), "{said:?}");
    }

    async fn overwrite(&self, data: Value) {
        self.secrets().patch(SECRET, &PatchParams::default(), &Patch::Merge(json!({"data": data}))).await.unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let kinds = ["mutatingwebhookconfiguration", "validatingwebhookconfiguration"];
        for kind in kinds {
            let mut kubectl =
                self.installation.control_plane.kubectl(["delete", kind, "--ignore-not-found", &self.name]);
            kubectl.stdout(std::process::Stdio::null()).status().ok();
        }
    }
}

/// The answer of a replica's admin page.
async fn admin(replica: &Program, path: &str) -> (u16, String) {
    let mut connection = TcpStream::connect(replica.address("admin")).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: webhook\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer)
}

async fn renewals(replica: &Program) -> u64 {
    let (_, metrics) = admin(replica, "/metrics").await;
    let line = metrics.lines().find_map(|line| line.strip_prefix("keywright_certificate_renewals_total "));
    line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

#[tokio::test]
async fn no_review_fails_in_a_hundred_renewals_and_across_a_rotation() {
    let bench = Bench::configured("renewals").await;
    bench.heal().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(bench.replica(&["--certificate-lifetime=2s"]).await);
    }
    for replica in &replicas {
        replica.ready().await;
    }
    bench.service.direct(&replicas.iter().collect::<Vec<_>>());
    bench.reviewed().await;
    let before = bench.data().await;

    let started = Instant::now();
    let count = async || renewals(&replicas[0]).await + renewals(&replicas[1]).await + renewals(&replicas[2]).await;
    let (handshakes, mut reviews) = (bench.service.accepted.load(Ordering::SeqCst), 0);
    let mut rotation = None;
    let mut is_rotated = false;
    while !is_rotated || count().await < 100 {
        bench.review().await.unwrap_or_else(|error| panic!("review {reviews} failed: {error}"));
        reviews += 1;
        if rotation.is_none() && count().await >= 40 {
            rotation = Some(Box::pin(bench.job(&["--rotate"])));
        }
        if let Some(running) = rotation.as_mut().filter(|_| !is_rotated)
            && let Ok((code, printed)) = timeout(Duration::from_millis(1), running).await
        {
            assert_eq!(code, Some(0), "{printed}");
            is_rotated = true;
        }
    }
    let after = bench.data().await;
    assert_ne!(before["tls.crt"], after["tls.crt"]);
    let both = [&after["tls.crt"].0[..], &before["tls.crt"].0].concat();
    assert!(after["ca.crt"].0 == both, "current, then previous");
    assert_eq!(bench.ca_bundles().await, [Some(after["ca.crt"].0.clone()), Some(after["ca.crt"].0.clone())]);
    let handshakes = bench.service.accepted.load(Ordering::SeqCst) - handshakes;
    assert!(handshakes >= reviews, "{handshakes} handshakes in {reviews} reviews");
    println!("{reviews} reviews with {handshakes} handshakes, {} renewals, {:?}", count().await, started.elapsed());

    // A second rotation leaves the first authority behind; replicas follow within 30 s, with a certificate that lasts.
    let lasting = bench.replica(&[]).await;
    lasting.ready().await;
    bench.service.direct(&[&lasting]);
    bench.reviewed().await;
    let (code, printed) = bench.job(&["--rotate"]).await;
    assert_eq!(code, Some(0), "{printed}");
    let last = bench.data().await;
    assert!(last["ca.crt"].0 == [&last["tls.crt"].0[..], &after["tls.crt"].0].concat(), "the first one is left behind");
    let followed = timeout(Duration::from_secs(30), async {
        while renewals(&lasting).await < 2 {
            bench.review().await.unwrap();
        }
    });
    followed.await.expect("a replica follows within 30 s");
    bench.review().await.unwrap();
}

#[tokio::test]
async fn the_job_makes_what_is_absent_and_a_second_run_changes_nothing() {
    let bench = Bench::new("job").await;
    let (code, printed) = bench.job(&[]).await;
    assert_eq!(code, Some(1), "{printed}");
    let said = format!("MutatingWebhookConfiguration {} does not exist: install the chart first", bench.name);
    assert!(printed.contains(&said), "{printed}");
    assert!(bench.secrets().get_opt(SECRET).await.unwrap().is_none(), "nothing is written for a wrong name");

    // As before an installation: the Secret alone.
    let alone = || bench.installation.program("certificates").argument("--webhook-configuration=");
    let (code, printed) = alone().run().await;
    assert_eq!(code, Some(0), "{printed}");
    let secret = bench.secrets().get(SECRET).await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(secret.data.as_ref().unwrap()["tls.crt"], secret.data.as_ref().unwrap()["ca.crt"]);
    assert_eq!(secret.labels()["app.kubernetes.io/managed-by"], "keywright");
    assert_eq!(alone().run().await.0, Some(0));
    assert_eq!(bench.secrets().get(SECRET).await.unwrap().resource_version(), secret.resource_version());
    let (code, printed) = alone().argument("--rotate").run().await;
    assert_eq!(code, Some(1));
    assert!(printed.contains("--rotate needs --webhook-configuration"), "{printed}");
    drop(bench);

    let bench = Bench::configured("job").await;
    let (_first, printed) = (bench.heal().await, bench.heal().await);
    assert!(printed.contains("everything is up to date"), "{printed}");
    let versions = bench.versions().await;
    let bundle = bench.data().await["ca.crt"].0.clone();
    assert_eq!(bench.ca_bundles().await, [Some(bundle.clone()), Some(bundle.clone())]);
    // Also two at once, as where helm's hooks are ordinary jobs.
    let (one, two) = tokio::join!(bench.job(&[]), bench.job(&[]));
    assert_eq!((one.0, two.0), (Some(0), Some(0)), "{}{}", one.1, two.1);
    assert_eq!(bench.versions().await, versions);

    // What somebody else did to one configuration is mended, and the rest stays.
    let emptied = Patch::Merge(json!({"webhooks": [{
        "name": "mutate.apikeys.keywright.dev", "clientConfig": {"url": "https://127.0.0.1:1/"},
        "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore",
    }]}));
    bench.mutating().patch(&bench.name, &PatchParams::default(), &emptied).await.unwrap();
    bench.heal().await;
    assert_eq!(bench.ca_bundles().await, [Some(bundle.clone()), Some(bundle)]);
    let webhook = bench.mutating().get(&bench.name).await.unwrap().webhooks.unwrap().remove(0);
    assert_eq!(webhook.failure_policy.as_deref(), Some("Ignore"));
    assert_eq!(bench.versions().await[0], versions[0], "the Secret was good");
}

#[tokio::test]
async fn whatever_happens_to_the_secret_is_said_and_mended_without_a_failed_review() {
    let bench = Bench::configured("damage").await;
    bench.heal().await;
    let replica = bench.replica(&[]).await;
    replica.ready().await;
    bench.service.direct(&[&replica]);
    bench.reviewed().await;
    let other = Bench::new("other-ca").await;
    let alone = other.installation.program("certificates").argument("--webhook-configuration=");
    assert_eq!(alone.run().await.0, Some(0));
    let foreign = serde_json::to_value(other.data().await).unwrap();

    let damages = [
        (Value::Null, "it does not exist"),
        (json!({"tls.key": ""}), "it has no tls.key"),
        (json!({"tls.key": "c2VjcmV0"}), "its tls.key is damaged"),
        (json!({"tls.crt": "c2VjcmV0"}), "its tls.crt is damaged"),
        (json!({"tls.key": foreign["tls.key"]}), "its tls.key does not belong to its tls.crt"),
        (json!({"ca.crt": foreign["ca.crt"]}), "its ca.crt does not hold its tls.crt"),
    ];
    for (damage, said) in damages {
        match &damage {
            Value::Null => drop(bench.secrets().delete(SECRET, &DeleteParams::default()).await.unwrap()),
            damage => bench.overwrite(damage.clone()).await,
        }
        replica.says(said).await;
        let (status, _) = admin(&replica, "/readyz").await;
        assert_eq!(status, 200, "{said}: it serves on, with what it has");
        let (_, metrics) = admin(&replica, "/metrics").await;
        assert!(metrics.contains("keywright_certificate_source_good 0"), "{said}");
        bench.review().await.unwrap_or_else(|error| panic!("{said}: {error}"));
        // Mended under reviews: old and new are trusted before the new one signs.
        let mut healing = Box::pin(bench.heal());
        while timeout(Duration::from_millis(1), &mut healing).await.is_err() {
            bench.review().await.unwrap_or_else(|error| panic!("{said}, while it is mended: {error}"));
        }
        let followed = renewals(&replica).await;
        let waited = timeout(wait::DEADLINE, async {
            loop {
                bench.review().await.unwrap_or_else(|error| panic!("{said}, after it was mended: {error}"));
                let (_, metrics) = admin(&replica, "/metrics").await;
                if metrics.contains("keywright_certificate_source_good 1") {
                    break;
                }
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{said}: not followed since renewal {followed}"));
        assert!(bench.heal().await.contains("everything is up to date"), "{said}");
    }

    // The whole Secret of another authority. A replica cannot know that nobody trusts it; the API server does.
    bench.overwrite(foreign).await;
    let refused = timeout(wait::DEADLINE, async {
        loop {
            if let Err(error) = bench.review().await {
                break error.to_string();
            }
        }
    });
    let refused = refused.await.expect("an authority that nobody trusts");
    assert!(refused.contains("certificate signed by unknown authority"), "{refused}");
    replica.says("a client does not accept our certificate").await;
    bench.heal().await;
    bench.reviewed().await;
    let printed = replica.printed();
    assert!(!printed.contains("PRIVATE") && !printed.contains("BEGIN"), "{printed}");
}

#[tokio::test]
async fn an_expired_certificate_is_never_served() {
    let bench = Bench::configured("expiry").await;
    // The authority expires first, and takes the replica's certificate with it.
    let (code, printed) = bench.job(&["--authority-lifetime=6s"]).await;
    assert_eq!(code, Some(0), "{printed}");
    let replica = bench.replica(&[]).await;
    replica.ready().await;
    bench.service.direct(&[&replica]);
    bench.reviewed().await;
    replica.says("its tls.crt expired at").await;
    let (status, said) = admin(&replica, "/readyz").await;
    assert_eq!(status, 503);
    assert!(said.contains("the certificate expired at") && said.contains("Run `keywright certificates`"), "{said}");
    assert!(bench.review().await.is_err());
    // The client hears of it a moment before it is counted.
    let counted = timeout(wait::DEADLINE, async {
        let failures = "keywright_tls_handshake_failures_total{reason=\"no_certificate\"}";
        while !admin(&replica, "/metrics").await.1.contains(failures) {
            sleep(Duration::from_millis(20)).await;
        }
    });
    counted.await.expect("it is counted");
    bench.heal().await;
    replica.ready().await;
    bench.reviewed().await;

    // No Secret, and the replica's own certificate ends.
    let brief = bench.replica(&["--certificate-lifetime=3s"]).await;
    brief.ready().await;
    bench.service.direct(&[&brief]);
    bench.reviewed().await;
    bench.secrets().delete(SECRET, &DeleteParams::default()).await.unwrap();
    brief.says("it does not exist").await;
    let unready = timeout(wait::DEADLINE, async {
        while admin(&brief, "/readyz").await.0 != 503 {
            sleep(Duration::from_millis(50)).await;
        }
    });
    unready.await.expect("not Ready without a certificate");
    assert!(bench.review().await.is_err());
    bench.heal().await;
    brief.ready().await;
    bench.reviewed().await;
}

#[tokio::test]
async fn a_rotation_that_breaks_off_anywhere_leaves_a_webhook_that_works() {
    let bench = Bench::configured("broken-off").await;
    bench.heal().await;
    let replica = bench.replica(&[]).await;
    replica.ready().await;
    bench.service.direct(&[&replica]);
    bench.reviewed().await;
    let writes =
        [("secrets", 1), ("mutatingwebhookconfigurations", 1), ("validatingwebhookconfigurations", 1), ("secrets", 2)];
    for (resource, nth) in writes {
        for fault in [Fault::Before(Outcome::Reset), Fault::After(Outcome::Reset)] {
            let faults = FaultProxy::start(bench.installation.control_plane).await;
            let broken = faults.inject(fault, Nth(nth), move |request| request.is("PUT", resource));
            let launch = bench.installation.program("certificates").through(&faults).argument("--rotate");
            let (code, printed) = launch.argument(&format!("--webhook-configuration={}", bench.name)).run().await;
            assert_eq!((code, broken.hits()), (Some(1), 1), "{resource} {nth} {fault:?}: {printed}");
            assert!(printed.contains("cannot be written"), "{printed}");
            bench.review().await.unwrap_or_else(|error| panic!("{resource} {nth} {fault:?}: {error}"));
            // Whatever the replica finds now, it follows.
            replica.ready().await;
            bench.heal().await;
            bench.review().await.unwrap_or_else(|error| panic!("{resource} {nth} {fault:?}, mended: {error}"));
            let bundle = bench.data().await["ca.crt"].0.clone();
            assert_eq!(bench.ca_bundles().await, [Some(bundle.clone()), Some(bundle)]);
        }
    }
}

#[tokio::test]
async fn a_conflict_is_looked_at_anew_and_not_overwritten() {
    let bench = Bench::configured("conflict").await;
    let faults = FaultProxy::start(bench.installation.control_plane).await;
    let job = || {
        let launch = bench.installation.program("certificates").through(&faults);
        launch.argument(&format!("--webhook-configuration={}", bench.name)).run()
    };
    for (method, resource) in
        [("POST", "secrets"), ("PUT", "mutatingwebhookconfigurations"), ("PUT", "validatingwebhookconfigurations")]
    {
        faults.inject(Fault::Before(Outcome::Status(409)), Nth(1), move |request| request.is(method, resource));
    }
    let (code, printed) = job().await;
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(printed.matches("trying again").count(), 3, "{printed}");
    let bundle = bench.data().await["ca.crt"].0.clone();
    assert_eq!(bench.ca_bundles().await, [Some(bundle.clone()), Some(bundle)]);

    let always = faults.inject(Fault::Before(Outcome::Status(409)), keywright_testing::Occurrence::Every, |request| {
        request.is("PUT", "secrets")
    });
    bench.overwrite(json!({"tls.key": ""})).await;
    let (code, printed) = job().await;
    assert_eq!(code, Some(1));
    assert!(printed.contains("in the meantime, 8 times in a row"), "{printed}");
    always.lift();
    assert_eq!(job().await.0, Some(0));
}

/// The one looked at the Secret before the other's rotation began, and at a configuration after it had been written.
#[tokio::test]
async fn a_run_that_is_late_does_not_undo_a_rotation() {
    let bench = Bench::configured("late").await;
    bench.heal().await;
    let replica = bench.replica(&[]).await;
    replica.ready().await;
    bench.service.direct(&[&replica]);
    bench.reviewed().await;
    let faults = FaultProxy::start(bench.installation.control_plane).await;
    let second_look = |request: &ApiRequest| request.is("GET", "mutatingwebhookconfigurations");
    let delayed = faults.inject(Fault::Delay(Duration::from_secs(4)), Nth(2), second_look);
    let late = bench.installation.program("certificates").through(&faults);
    let late = late.argument(&format!("--webhook-configuration={}", bench.name)).run();
    let rotation = async {
        delayed.hit().await;
        bench.job(&["--rotate"]).await
    };
    let (late, rotation) = tokio::join!(late, rotation);
    assert_eq!((late.0, rotation.0), (Some(0), Some(0)), "{}{}", late.1, rotation.1);
    assert!(late.1.contains("trying again"), "{}", late.1);
    let bundle = bench.data().await["ca.crt"].0.clone();
    assert!(bench.ca_bundles().await == [Some(bundle.clone()), Some(bundle)], "it was undone");
    let followed = timeout(wait::DEADLINE, async {
        while renewals(&replica).await < 2 {
            bench.review().await.unwrap();
        }
    });
    followed.await.expect("the replica follows");
    bench.review().await.unwrap();
}

/// As with cert-manager, which renews what is mounted.
#[tokio::test]
async fn files_that_are_replaced_are_served_without_a_restart() {
    let bench = Bench::configured("files").await;
    let made = || {
        let (certificate, key) = bench.installation.certificate().unwrap();
        [certificate, key].map(|file| std::fs::read_to_string(file).unwrap())
    };
    let mounted = |name: &str, text: &str| {
        let name = format!("{}-mounted-{name}", bench.installation.system_namespace);
        bench.installation.control_plane.write_private(&name, text)
    };
    let [certificate, key] = made();
    let files = [("certificate", mounted("crt", &certificate)), ("key", mounted("key", &key))];
    let files = files.map(|(name, file)| format!("--tls-{name}={}", file.display()));
    let replica = bench.replica(&files.each_ref().map(String::as_str)).await;
    replica.ready().await;
    bench.service.direct(&[&replica]);
    bench.trust(&certificate).await;
    bench.reviewed().await;

    let [certificate, key] = made();
    mounted("crt", &certificate);
    replica.says("cannot use the new certificate files, still serving the old ones").await;
    bench.review().await.expect("with half of the new one there, the old one is served on");
    mounted("key", &key);
    bench.trust(&certificate).await;
    bench.reviewed().await;
    assert_eq!((renewals(&replica).await, admin(&replica, "/readyz").await.0), (2, 200));
}

/// The API server keeps connections to a replica that is no endpoint any more, and sends reviews on them.
#[tokio::test]
async fn replicas_come_and_go_without_a_failed_review() {
    let bench = Bench::configured("replicas").await;
    bench.heal().await;
    let mut serving = bench.replica(&[]).await;
    serving.ready().await;
    bench.service.direct(&[&serving]);
    bench.reviewed().await;
    let mut reviews = 0;
    for _ in 0..3 {
        let next = bench.replica(&[]).await;
        next.ready().await;
        bench.service.direct(&[&next]);
        let admin_address = serving.address("admin");
        let mut ending = Box::pin(serving.terminate());
        let status = loop {
            bench.review_on_open_connections().await.unwrap_or_else(|error| panic!("review {reviews}: {error}"));
            reviews += 1;
            if let Ok(status) = timeout(Duration::from_millis(1), &mut ending).await {
                break status;
            }
        };
        assert_eq!(status.code(), Some(0));
        assert!(TcpStream::connect(admin_address).await.is_err());
        drop(ending);
        serving = next;
    }
    println!("{reviews} reviews");
    assert!(reviews > 30, "{reviews}");
}

#[tokio::test]
async fn a_replica_reads_the_one_secret_and_asks_for_nothing_else() {
    let bench = Bench::configured("webhook-rights").await;
    bench.heal().await;
    let replica = bench.replica(&[]).await;
    replica.ready().await;
    bench.service.direct(&[&replica]);
    bench.reviewed().await;
    let user = format!("system:serviceaccount:{}:keywright-webhook", bench.installation.system_namespace);
    let requests = bench.installation.audited_requests().await;
    let (reads, others): (Vec<_>, Vec<_>) =
        requests.iter().filter(|request| request.user == user).partition(|request| {
            (&*request.verb, &*request.resource, &*request.name, request.code) == ("get", "secrets", SECRET, 200)
        });
    assert!(!reads.is_empty());
    assert!(others.is_empty(), "{others:?}");
    let kubeconfig = bench.installation.credentials("webhook").await.write_kubeconfig(None);
    let client = bench.installation.control_plane.client_of(&kubeconfig).await;
    let secrets = Api::<Secret>::namespaced(client, &bench.installation.system_namespace);
    for refused in [secrets.get("another").await.map(drop), secrets.list(&Default::default()).await.map(drop)] {
        assert!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 403), "{refused:?}");
    }
}

/// An HTTP proxy that tunnels, and counts.
async fn tunnelling_proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, tunnels) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&tunnels);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if client.read_buf(&mut head).await.unwrap() == 0 {
                        return;
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap();
                // eve:p@ss
                let is_authorized = head.to_lowercase().contains("\r\nproxy-authorization: basic zxzlonbac3m=\r\n");
                assert!(is_authorized, "{head}");
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    (address, tunnels)
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used_unless_the_api_server_is_excepted() {
    let installation = Installation::new("proxy").await;
    let run = async |variables: &[(&str, &str)]| {
        let launch = installation.program("certificates").argument("--webhook-configuration=");
        variables.iter().fold(launch, |launch, (name, value)| launch.variable(name, value)).run().await
    };
    let (proxy, tunnels) = tunnelling_proxy().await;
    let nowhere = "http://eve:p%40ss@127.0.0.1:9";
    for variable in ["HTTPS_PROXY", "all_proxy"] {
        let (code, printed) = run(&[(variable, nowhere)]).await;
        assert_eq!(code, Some(1), "{printed}");
        assert!(!printed.contains("p%40ss") && !printed.contains("p@ss"), "{printed}");
    }
    for exceptions in ["127.0.0.1", "*", "localhost, 127.0.0.0/8 ,.svc,", ".svc [::1] 127.0.0.1"] {
        for variable in ["NO_PROXY", "no_proxy"] {
            let (code, printed) = run(&[("HTTPS_PROXY", nowhere), (variable, exceptions)]).await;
            assert_eq!(code, Some(0), "{variable}={exceptions}: {printed}");
        }
    }
    assert_eq!(tunnels.load(Ordering::Relaxed), 0);
    let somewhere = format!("http://eve:p%40ss@{proxy}");
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let before = tunnels.load(Ordering::Relaxed);
        let (code, printed) = run(&[(variable, &somewhere), ("NO_PROXY", "localhost,.svc,10.0.0.0/8")]).await;
        assert_eq!(code, Some(0), "{variable}: {printed}");
        assert!(tunnels.load(Ordering::Relaxed) > before, "{variable}: it went past the proxy");
        assert!(!printed.contains("p%40ss"), "{printed}");
    }
}
