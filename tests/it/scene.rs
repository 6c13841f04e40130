//! A tenant with a controller and a verifier at work, and the words that tests about keys are told in.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKey, ApiKeyRecord, ConditionType, Reason};
use keywright_core::key::{Digest, Presented};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use keywright_testing::{FaultProxy, Installation, Program, wait};

/// An address that the tests' keys are allowed from.
pub const INSIDE: &str = "192.0.2.44";
/// One that they are not.
pub const OUTSIDE: &str = "198.51.100.7";

pub struct Scene {
    pub verifier: Program,
    pub controller: Option<Program>,
    pub installation: Installation,
}

/// Without leader election.
const ALONE: &str = "--leader-elect=false";

/// What a proxy gets to hear.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Scene {
    pub async fn new(test_name: &str) -> Self {
        Self::in_installation(Installation::new(test_name).await, &[]).await
    }

    /// The controller gets these arguments.
    pub async fn in_installation(installation: Installation, arguments: &[&str]) -> Self {
        let verifier = installation.program("verifier").start().await;
        verifier.ready().await;
        let mut scene = Self { verifier, controller: None, installation };
        scene.start_controller(arguments).await;
        scene
    }

    /// The controller reaches the API server through the proxy.
    pub async fn with_faults(test_name: &str) -> (Self, FaultProxy) {
        let installation = Installation::new(test_name).await;
        let verifier = installation.program("verifier").start().await;
        verifier.ready().await;
        let faults = FaultProxy::start(installation.control_plane).await;
        let controller = installation.program("controller").argument(ALONE).through(&faults).start().await;
        controller.ready().await;
        (Self { verifier, controller: Some(controller), installation }, faults)
    }

    /// Works at once: the lease of one that was killed would have to run out first.
    pub async fn start_controller(&mut self, arguments: &[&str]) {
        let launch = self.installation.program("controller").argument(ALONE);
        let controller = arguments.iter().fold(launch, |launch, argument| launch.argument(argument)).start().await;
        controller.ready().await;
        self.controller = Some(controller);
    }

    pub async fn kill_controller(&mut self) {
        self.controller.take().expect("a controller at work").kill().await;
    }

    pub fn api_keys(&self) -> Api<ApiKey> {
        self.installation.tenant()
    }

    pub fn secrets(&self) -> Api<Secret> {
        self.installation.tenant()
    }

    pub fn records(&self) -> Api<ApiKeyRecord> {
        self.installation.system()
    }

    pub async fn declare(&self, name: &str, spec: Value) -> ApiKey {
        self.api_keys().create(&PostParams::default(), &api_key(name, spec)).await.unwrap()
    }

    /// Changes the spec as `kubectl patch --type=merge` does.
    pub async fn edit(&self, name: &str, spec: Value) -> ApiKey {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.api_keys().patch(name, &PatchParams::default(), &patch).await.unwrap()
    }

    pub async fn delete(&self, name: &str) {
        self.api_keys().delete(name, &DeleteParams::default()).await.unwrap();
        wait::for_absence(&self.api_keys(), name).await;
    }

    /// Waits until `Active` has this reason for the newest generation.
    pub async fn reason(&self, name: &str, reason: Reason) -> ApiKey {
        wait::for_object(&self.api_keys(), name, move |api_key| is(api_key, reason.clone())).await
    }

    /// Waits for the key of this serial, and takes it out of the Secret.
    pub async fn key(&self, name: &str, serial: u32) -> String {
        wait::for_object(&self.api_keys(), name, move |api_key: &ApiKey| {
            api_key.status.as_ref().is_some_and(|status| status.serial == Some(serial))
        })
        .await;
        self.delivered(name).await
    }

    /// The key in the Secret.
    pub async fn delivered(&self, secret: &str) -> String {
        let secret = self.secrets().get(secret).await.unwrap();
        String::from_utf8(secret.data.unwrap()["api-key"].0.clone()).unwrap()
    }

    /// The record of this key.
    pub async fn record(&self, key: &str) -> ApiKeyRecord {
        let digest = Digest::of(key.as_bytes()).to_string();
        let records = self.records().list(&Default::default()).await.unwrap();
        records.into_iter().find(|record| record.spec.digest == digest).unwrap()
    }

    /// The records of this ApiKey whose keys may be let in.
    pub async fn live_records(&self, uid: &str) -> Vec<ApiKeyRecord> {
        let records = self.records().list(&Default::default()).await.unwrap();
        records.into_iter().filter(|record| record.spec.api_key.uid == uid && record.spec.revoked.is_none()).collect()
    }

    /// Lets an administrator write records by hand.
    pub async fn break_glass_of_records(&self) {
        let records = self.records();
        let probe = json!({
            "apiVersion": "keywright.dev/v1alpha1",
            "kind": "ApiKeyRecord",
            "metadata": {"name": "probe"},
            "spec": {
                "digest": Digest::of(b"probe").to_string(),
                "apiKey": {"namespace": "any", "name": "probe", "uid": "probe"},
                "serial": 1,
            },
        });
        let probe: ApiKeyRecord = serde_json::from_value(probe).unwrap();
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        self.installation.break_glass("records", async || records.create(&dry_run, &probe).await).await;
    }

    /// Asks the verifier as a proxy does.
    pub async fn ask(&self, key: &str, client: &str, target: &str) -> Answer {
        ask_at(self.verifier.address("http"), key, client, target).await
    }

    /// Asks until the answer has this status: the verifier hears of a change a moment after the API server.
    pub async fn answers(&self, key: &str, client: &str, status: u16) {
        let asked = Instant::now();
        loop {
            let answer = self.ask(key, client, "/verify").await;
            if answer.status == status {
                return;
            }
            assert!(asked.elapsed() < wait::DEADLINE, "expected {status}, last heard {answer:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The promises that hold for an ApiKey at rest: its Secret holds a well-formed key whose record is live, and that
    /// is let in.
    pub async fn check_in_force(&self, name: &str) -> ApiKey {
        let api_key = wait::for_object(&self.api_keys(), name, |api_key| {
            is(api_key, Reason::Active) || is(api_key, Reason::Rotating)
        })
        .await;
        let key = self.delivered(name).await;
        let prefix = Presented::parse(key.as_bytes()).unwrap().prefix().unwrap().to_string();
        let status = api_key.status.clone().unwrap();
        assert_eq!(status.key_prefix, Some(prefix), "the status is about the key in the Secret");
        let live = self.live_records(&api_key.uid().unwrap()).await;
        let current: Vec<_> = live.iter().filter(|record| Some(record.spec.serial) == status.serial).collect();
        assert_eq!(current.len(), 1, "one live record of the current serial in {live:#?}");
        assert_eq!(current[0].spec.digest, Digest::of(key.as_bytes()).to_string());
        let older = live.iter().filter(|record| Some(record.spec.serial) != status.serial);
        assert!(older.into_iter().all(|record| record.spec.not_after.is_some()), "an older key ends: {live:#?}");
        self.answers(&key, INSIDE, 200).await;
        api_key
    }

    /// How often the controller has read the ApiKey since somebody asked for its deletion.
    pub async fn reads_of(&self, name: &str) -> usize {
        let requests = self.installation.audited_requests().await;
        let of_it = |resource: &str, own: &str| resource == "apikeys" && own == name;
        let mut since = requests.iter().filter(|request| of_it(&request.resource, &request.name));
        since.by_ref().find(|request| request.verb == "delete").expect("a deletion");
        since.filter(|request| request.verb == "get" && request.user.ends_with(":keywright-controller")).count()
    }

    /// How often the controller has searched the records.
    pub async fn searches_of_records(&self) -> usize {
        let requests = self.installation.audited_requests().await;
        let of_controller = requests.iter().filter(|request| request.user.ends_with(":keywright-controller"));
        let of_records = of_controller.filter(|request| request.resource == "apikeyrecords");
        of_records.filter(|request| request.parameters.iter().any(|one| one.starts_with("fieldSelector="))).count()
    }

    /// What the controller wrote, as `verb resource`, Events and Leases apart.
    pub async fn writes(&self) -> Vec<String> {
        let user = format!("system:serviceaccount:{}:keywright-controller", self.installation.system_namespace);
        let requests = self.installation.audited_requests().await;
        requests
            .into_iter()
            .filter(|request| request.user == user && !["get", "list", "watch"].contains(&&*request.verb))
            .filter(|request| !["events", "leases"].contains(&&*request.resource))
            .map(|request| format!("{} {}", request.verb, request.resource))
            .collect()
    }
}

/// Asks the verifier at this address.
pub async fn ask_at(verifier: SocketAddr, key: &str, client: &str, target: &str) -> Answer {
    let mut connection = TcpStream::connect(verifier).await.unwrap();
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: verifier\r\nAuthorization: Bearer {key}\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

pub fn api_key(name: &str, spec: Value) -> ApiKey {
    let object =
        json!({"apiVersion": "keywright.dev/v1alpha1", "kind": "ApiKey", "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// Whether `Active` has this reason for the newest generation.
pub fn is(api_key: &ApiKey, reason: Reason) -> bool {
    let status = api_key.status.as_ref();
    status.is_some_and(|status| {
        status.observed_generation == api_key.metadata.generation
            && status.conditions.iter().any(|active| active.type_ == ConditionType::Active && active.reason == reason)
    })
}
