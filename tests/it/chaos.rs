//! The promise of revocation, while everything that it stands on is disturbed: processes, connections, answers and the API
//! server itself.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use futures::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use keywright_core::api::{ApiKey, ApiKeyRecord};
use keywright_testing::{
    ApiRequest, ControlPlane, Credentials, Fault, FaultProxy, Injection, Installation, Occurrence, Outcome, Program,
};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::scene::{INSIDE, api_key};

const LEASE: Duration = Duration::from_secs(5);
/// An unoptimised verifier takes in 50,000 records within this time, or would never join.
const LEASE_OF_MANY: Duration = Duration::from_secs(60);
const VERIFIERS: usize = 3;
/// Clients of one verifier. More of them, and other tests beside this one would time out.
const CLIENTS: usize = 2;
const HEALTHY: usize = 20;
/// `KEYWRIGHT_DELETIONS` asks for more.
const DELETED: usize = 120;
const EDITED: usize = 12;
/// Records that verifiers read at a restart. `KEYWRIGHT_RECORDS` asks for more.
const RECORDS: usize = 3000;
/// Restarts of all verifiers at once, each with a key that is revoked meanwhile.
const RESTARTS: usize = 5;
/// A key that nobody is to let in any more is presented for this long.
const AFTERMATH: Duration = Duration::from_secs(15);
/// A deletion may wait for one disturbance after another, and each ends with a Lease.
const LONGEST: Duration = Duration::from_secs(150);
/// What a client may take to read an answer that was given before.
const READING: Duration = Duration::from_secs(3);

/// A key, and what has become of it.
struct Issued {
    name: String,
    key: String,
    fate: Mutex<Fate>,
}

#[derive(Default)]
struct Fate {
    /// When it was reported that nobody is let in with it any more.
    reported: Option<Instant>,
    /// The last request that was let in: when it was sent and answered, and by which verifier.
    let_in: Option<(Instant, Instant, usize)>,
}

/// A verifier's Pod.
struct Place {
    credentials: Credentials,
    faults: FaultProxy,
    program: Mutex<Option<Program>>,
}

struct Stage {
    lease: Duration,
    installation: Installation,
    places: Vec<Place>,
    controller: Program,
    keys: Mutex<Vec<Arc<Issued>>>,
    asked: AtomicUsize,
    is_over: AtomicBool,
    log: Mutex<Vec<(Instant, String)>>,
}

impl Stage {
    async fn new(lease: Duration) -> Self {
        let installation = Installation::on(ControlPlane::of_its_own().await, "chaos").await;
        let mut places = Vec::new();
        for _ in 0..VERIFIERS {
            let credentials = installation.credentials("verifier").await;
            let faults = FaultProxy::start(installation.control_plane).await;
            places.push(Place { credentials, faults, program: Mutex::default() });
        }
        let controller = installation.program("controller").argument("--leader-elect=false").start().await;
        controller.ready().await;
        Self {
            lease,
            installation,
            places,
            controller,
            keys: Mutex::default(),
            asked: AtomicUsize::default(),
            is_over: AtomicBool::default(),
            log: Mutex::default(),
        }
    }

    async fn start(&self, place: usize) {
        let Place { credentials, faults, program } = &self.places[place];
        let launch = self.installation.program("verifier").in_pod(credentials).through(faults);
        let started = launch.argument(&format!("--lease-duration={}s", self.lease.as_secs())).start().await;
        *program.lock().unwrap() = Some(started);
    }

    fn note(&self, what: String) {
        self.log.lock().unwrap().push((Instant::now(), what));
    }

    fn api_keys(&self) -> Api<ApiKey> {
        self.installation.tenant()
    }

    async fn issue(&self, name: String) {
        let created = self.api_keys().create(&PostParams::default(), &api_key(&name, json!({}))).await;
        created.unwrap_or_else(|error| panic!("{name}: {error}"));
        let secrets: Api<k8s_openapi::api::core::v1::Secret> = self.installation.tenant();
        let secret = loop {
            match secrets.get_opt(&name).await.unwrap() {
                Some(secret) => break secret,
                None => sleep(Duration::from_millis(50)).await,
            }
        };
        let key = String::from_utf8(secret.data.unwrap()["api-key"].0.clone()).unwrap();
        self.keys.lock().unwrap().push(Arc::new(Issued { name, key, fate: Mutex::default() }));
    }

    fn named(&self, prefix: &str) -> Vec<Arc<Issued>> {
        self.keys.lock().unwrap().iter().filter(|issued| issued.name.starts_with(prefix)).cloned().collect()
    }

    /// Presents keys to a verifier until it is over.
    async fn present(&self, place: usize, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.is_over.load(Ordering::Relaxed) {
            let chosen = {
                let keys = self.keys.lock().unwrap();
                let candidate = keys.get(random.random_range(0..keys.len().max(1))).cloned();
                candidate.filter(|issued| {
                    issued.fate.lock().unwrap().reported.is_none_or(|reported| reported.elapsed() < AFTERMATH)
                })
            };
            let address = self.places[place].program.lock().unwrap().as_ref().map(|program| program.address("http"));
            let Some((issued, address)) = chosen.zip(address) else {
                sleep(Duration::from_millis(1)).await;
                continue;
            };
            let sent = Instant::now();
            self.asked.fetch_add(1, Ordering::Relaxed);
            // A process that was killed has no answer.
            let status = ask(address, &issued.key).await.ok();
            let answered = Instant::now();
            if status == Some(200) {
                let mut fate = issued.fate.lock().unwrap();
                fate.let_in = fate.let_in.into_iter().chain([(sent, answered, place)]).max();
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Deletes an ApiKey as `kubectl delete` does. Answers how long it took.
    async fn delete(&self, issued: &Issued) -> Duration {
        let (began, api_keys) = (Instant::now(), self.api_keys());
        while api_keys.delete(&issued.name, &DeleteParams::default()).await.is_err_and(|error| !is_absent(&error)) {
            sleep(Duration::from_millis(50)).await;
        }
        self.until(issued, async || {
            api_keys.get_metadata_opt(&issued.name).await.is_ok_and(|api_key| api_key.is_none())
        })
        .await;
        began.elapsed()
    }

    /// Edits an ApiKey, and waits until that is enforced.
    async fn edit(&self, issued: &Issued, spec: Value) -> Duration {
        let (began, api_keys) = (Instant::now(), self.api_keys());
        let patch = Patch::Merge(json!({ "spec": spec }));
        let generation = loop {
            match api_keys.patch(&issued.name, &PatchParams::default(), &patch).await {
                Ok(api_key) => break api_key.metadata.generation,
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        };
        self.until(issued, async || {
            let enforced = |api_key: ApiKey| api_key.status.and_then(|status| status.enforced_generation);
            api_keys.get(&issued.name).await.is_ok_and(|api_key| enforced(api_key) >= generation)
        })
        .await;
        began.elapsed()
    }

    async fn until(&self, issued: &Issued, mut is_reported: impl AsyncFnMut() -> bool) {
        let (began, mut pause) = (Instant::now(), Duration::from_millis(10));
        while !is_reported().await {
            if began.elapsed() > LONGEST {
                let stored = self.api_keys().get_opt(&issued.name).await;
                panic!("{} waits for ever: {stored:?}\n{}", issued.name, self.told());
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(250));
        }
        issued.fate.lock().unwrap().reported = Some(Instant::now());
    }

    /// Nobody was let in with a key after it was reported that nobody is.
    fn check(&self) {
        let (mut sent_last, mut answered_last) = (f64::MIN, f64::MIN);
        let mut violations = String::new();
        for issued in self.keys.lock().unwrap().iter() {
            let fate = issued.fate.lock().unwrap();
            let reported = fate.reported.unwrap_or_else(|| panic!("{} was not revoked", issued.name));
            let Some((sent, answered, place)) = fate.let_in else { continue };
            let after = |at: Instant| {
                let early = reported.saturating_duration_since(at).as_secs_f64();
                at.saturating_duration_since(reported).as_secs_f64() - early
            };
            (sent_last, answered_last) = (sent_last.max(after(sent)), answered_last.max(after(answered)));
            if sent > reported || answered > reported + READING {
                let (sent, answered) = (after(sent), after(answered));
                writeln!(
                    violations,
                    "{}: verifier {place}, sent {sent:.3} s, answered {answered:.3} s after",
                    issued.name
                )
                .unwrap();
            }
        }
        println!("max(last accept - return): sent {sent_last:.4} s, answered {answered_last:.4} s");
        assert!(violations.is_empty(), "{violations}{}", self.told());
        assert!(sent_last > f64::MIN, "some key was let in before");
    }

    fn told(&self) -> String {
        let log = self.log.lock().unwrap();
        let mut text = self.controller.printed() + "\n";
        for (at, what) in log.iter() {
            let ago = at.elapsed().as_secs_f32();
            writeln!(text, "{ago:8.2} s ago: {what}").unwrap();
        }
        text
    }

    fn signal(&self, place: usize, signal: &str) {
        let id = self.places[place].program.lock().unwrap().as_ref().map(Program::id);
        if let Some(id) = id {
            let sent = std::process::Command::new("kill").args([signal, &id.to_string()]).status();
            assert!(sent.is_ok_and(|status| status.success()), "{signal} to {id}");
        }
    }

    async fn kill(&self, place: usize) {
        let program = self.places[place].program.lock().unwrap().take();
        if let Some(program) = program {
            program.kill().await;
        }
    }

    /// One disturbance after another, each of one verifier or of all.
    async fn disturb(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let beyond = LEASE + Duration::from_secs(3);
        for turn in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let place = random.random_range(0..VERIFIERS);
            let moment = Duration::from_millis(random.random_range(50..2000));
            // In turn, so that each happens, and of a verifier and length that differ.
            let (what, length) = DISTURBANCES[turn % DISTURBANCES.len()];
            let length = if length == Length::BeyondLease { beyond } else { moment };
            self.note(format!("{what:?} at verifier {place} for {length:?}"));
            match what {
                Disturbance::Stop => {
                    self.signal(place, "-STOP");
                    sleep(length).await;
                    self.signal(place, "-CONT");
                }
                Disturbance::Kill => {
                    self.kill(place).await;
                    sleep(length).await;
                    self.start(place).await;
                }
                Disturbance::KillAll => {
                    for place in 0..VERIFIERS {
                        self.kill(place).await;
                    }
                    for place in 0..VERIFIERS {
                        self.start(place).await;
                    }
                }
                Disturbance::Sever => self.places[place].faults.sever(),
                Disturbance::Partition => {
                    self.places[place].faults.partition();
                    sleep(length).await;
                    self.places[place].faults.heal();
                }
                Disturbance::HangWatch => self.inject(place, Fault::HangWatch, is_watch, length).await,
                Disturbance::DelayRenewals => self.inject(place, Fault::Delay(length), is_renewal, length).await,
                Disturbance::LoseAnswers => {
                    self.inject(place, Fault::After(Outcome::Reset), is_of_lease, length).await;
                }
                Disturbance::RestartApiServer => self.installation.control_plane.restart_api_server(),
            }
            sleep(moment).await;
        }
    }

    async fn inject(&self, place: usize, fault: Fault, matches: fn(&ApiRequest) -> bool, length: Duration) {
        let injection: Injection = self.places[place].faults.inject(fault, Occurrence::Every, matches);
        sleep(length).await;
        injection.lift();
    }
}

/// The status of the answer.
async fn ask(verifier: SocketAddr, key: &str) -> std::io::Result<u16> {
    let mut connection = TcpStream::connect(verifier).await?;
    let head = format!("GET /verify HTTP/1.1\r\nHost: verifier\r\nX-API-Key: {key}\r\n");
    connection.write_all(format!("{head}X-Forwarded-For: {INSIDE}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Stop,
    Kill,
    KillAll,
    Sever,
    Partition,
    HangWatch,
    DelayRenewals,
    LoseAnswers,
    RestartApiServer,
}

#[derive(Clone, Copy, PartialEq)]
enum Length {
    AMoment,
    BeyondLease,
}

const DISTURBANCES: [(Disturbance, Length); 14] = [
    (Disturbance::Stop, Length::AMoment),
    (Disturbance::Sever, Length::AMoment),
    (Disturbance::Kill, Length::AMoment),
    (Disturbance::Stop, Length::BeyondLease),
    (Disturbance::LoseAnswers, Length::AMoment),
    (Disturbance::HangWatch, Length::AMoment),
    (Disturbance::RestartApiServer, Length::AMoment),
    (Disturbance::Partition, Length::AMoment),
    (Disturbance::DelayRenewals, Length::BeyondLease),
    (Disturbance::Kill, Length::BeyondLease),
    (Disturbance::KillAll, Length::AMoment),
    (Disturbance::HangWatch, Length::BeyondLease),
    (Disturbance::Partition, Length::BeyondLease),
    (Disturbance::LoseAnswers, Length::BeyondLease),
];

fn is_watch(request: &ApiRequest) -> bool {
    request.watch
}

fn is_renewal(request: &ApiRequest) -> bool {
    request.is("PUT", "leases")
}

fn is_of_lease(request: &ApiRequest) -> bool {
    request.resource == "leases"
}

fn is_absent(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

fn quantiles(mut durations: Vec<Duration>) -> String {
    durations.sort();
    let at = |share: f64| durations[((durations.len() - 1) as f64 * share) as usize].as_millis();
    format!("p50 {} ms, p99 {} ms", at(0.5), at(0.99))
}

fn clients(stage: &Arc<Stage>, seed: u64) -> Vec<JoinHandle<()>> {
    let client = |client: usize| {
        let stage = stage.clone();
        tokio::spawn(async move { stage.present(client % VERIFIERS, seed ^ client as u64).await })
    };
    (0..VERIFIERS * CLIENTS).map(client).collect()
}

async fn end(stage: &Stage, clients: Vec<JoinHandle<()>>) {
    stage.is_over.store(true, Ordering::Relaxed);
    let ended = timeout(Duration::from_secs(60), join_all(clients)).await;
    assert!(ended.is_ok(), "each request has an answer, or none: {}", stage.told());
}

fn asked_for(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |number| number.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_in_once_a_deletion_has_returned_whatever_happens() {
    let seed = rand::random();
    println!("seed {seed}");
    let stage = Arc::new(Stage::new(LEASE).await);
    for place in 0..VERIFIERS {
        stage.start(place).await;
    }
    let deleted = asked_for("KEYWRIGHT_DELETIONS", DELETED);
    let names = [("healthy", HEALTHY), ("deleted", deleted), ("edited", EDITED)];
    let names = names.into_iter().flat_map(|(kind, count)| (0..count).map(move |number| format!("{kind}-{number}")));
    stream::iter(names).for_each_concurrent(16, |name| stage.issue(name)).await;

    let clients = clients(&stage, seed);
    let healthy = stream::iter(stage.named("healthy"));
    let healthy: Vec<_> = healthy
        .map(|issued| {
            let stage = &stage;
            async move { stage.delete(&issued).await }
        })
        .buffer_unordered(2)
        .collect()
        .await;

    let chaos = tokio::spawn({
        let stage = stage.clone();
        async move { stage.disturb(seed).await }
    });
    let deletions = async {
        let deleted = stream::iter(stage.named("deleted"));
        deleted
            .map(|issued| {
                let stage = &stage;
                async move { stage.delete(&issued).await }
            })
            .buffer_unordered(12)
            .collect::<Vec<_>>()
            .await
    };
    let edits = async {
        let edited = stream::iter(stage.named("edited").into_iter().enumerate());
        edited
            .map(|(number, issued)| {
                let stage = &stage;
                let narrowed = [json!({"suspended": true}), json!({"allowedIPs": ["198.51.100.0/24"]})];
                async move { stage.edit(&issued, narrowed[number % 2].clone()).await }
            })
            .buffer_unordered(2)
            .collect::<Vec<_>>()
            .await
    };
    let (deletions, edits) = join(deletions, edits).await;
    // Those that are stopped or cut off go on, and may still have something to say.
    sleep(LEASE).await;
    stage.is_over.store(true, Ordering::Relaxed);
    chaos.await.unwrap();
    end(&stage, clients).await;

    println!("deletions, healthy: {}; in chaos: {}", quantiles(healthy), quantiles(deletions));
    println!("edits until enforced, in chaos: {}; {} requests", quantiles(edits), stage.asked.load(Ordering::Relaxed));
    stage.check();
    stage.installation.control_plane.end();
}

/// All verifiers read thousands of records again, and are not ready for seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_in_with_a_key_that_is_revoked_while_every_verifier_restarts() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let stage = Arc::new(Stage::new(LEASE_OF_MANY).await);
    fill(&stage.installation, asked_for("KEYWRIGHT_RECORDS", RECORDS)).await;
    join_all((0..VERIFIERS).map(|place| stage.start(place))).await;
    for number in 0..RESTARTS {
        stage.issue(format!("revoked-{number}")).await;
    }
    let clients = clients(&stage, seed);
    let mut deletions = Vec::new();
    for issued in stage.named("revoked") {
        while issued.fate.lock().unwrap().let_in.is_none() {
            sleep(Duration::from_millis(50)).await;
        }
        let restart = async {
            join_all((0..VERIFIERS).map(|place| stage.kill(place))).await;
            join_all((0..VERIFIERS).map(|place| stage.start(place))).await;
        };
        let wait = Duration::from_millis(random.random_range(0..2000));
        let deletion = async {
            sleep(wait).await;
            stage.delete(&issued).await
        };
        deletions.push(join(restart, deletion).await.1);
    }
    sleep(LEASE).await;
    end(&stage, clients).await;
    println!("deletions: {}; {} requests", quantiles(deletions), stage.asked.load(Ordering::Relaxed));
    stage.check();
    stage.installation.control_plane.end();
}

/// Writes so many records of other keys. Only a controller may.
async fn fill(installation: &Installation, count: usize) {
    let client = installation.credentials("controller").await.client().await;
    let records = Api::<ApiKeyRecord>::namespaced(client, &installation.system_namespace);
    let write = async |number: usize| {
        let uid = format!("00000000-0000-4000-8000-{number:012x}");
        let record = json!({
            "apiVersion": "keywright.dev/v1alpha1",
            "kind": "ApiKeyRecord",
            "metadata": {"name": format!("{uid}-1")},
            "spec": {
                "digest": format!("sha256:{number:064x}"),
                "apiKey": {"namespace": "elsewhere", "name": format!("key-{number}"), "uid": uid},
                "serial": 1,
                "revoked": {"at": Timestamp::now(), "reason": "Deleted"},
            },
        });
        records.create(&PostParams::default(), &serde_json::from_value(record).unwrap()).await.map(drop)
    };
    stream::iter(1..=count).map(write).buffer_unordered(64).try_collect::<()>().await.unwrap();
}
