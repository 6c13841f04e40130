//! How fast verifiers follow the API server: the start of one with many records, and a revocation at three of them, at rest
//! and under load, beside a bare watch.
//!
//! The released program with the chart's rights, on a real control plane where nothing else happens. Starts and plain
//! lists take turns in one run; only their ratio means anything elsewhere. Under load one of the verifiers has core 0 and
//! what loads it has core 1, while etcd, the API server and the probes run on both. Nothing here is a pass mark.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a measurement, stopping with a message is how a failure is told"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use keywright_core::api::ApiKeyRecord;
use keywright_core::key::{Digest, Key};
use keywright_measure::population;
use keywright_measure::report::publish;
use keywright_testing::{Installation, Memory, Program};
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use rand::rngs::SysRng;
use serde_json::json;
use tokio::time::sleep;

const RECORDS: usize = 50_000;
const ROUNDS: usize = 7;
/// At rest, and as many again under load.
const REVOCATIONS: usize = 200;
/// Keys that the load asks about.
const LOADED: usize = 1000;
const CONNECTIONS: usize = 4;
const STREAMS: usize = 16;
/// How long the load lasts, which has to be longer than its revocations.
const LOAD: Duration = Duration::from_secs(30);
const VERIFIERS: usize = 3;
/// Between two requests of a probe: three that never pause take what they measure.
const PROBE_PAUSE: Duration = Duration::from_micros(100);
const VERIFIER_CORE: &str = "0";
const LOAD_CORE: &str = "1";

#[tokio::main]
async fn main() -> Result<()> {
    let records = std::env::var("KEYWRIGHT_BENCH_RECORDS").map_or(Ok(RECORDS), |text| text.parse())?;
    let installation = Installation::new("follow").await;
    // Only a controller may write records.
    let client = installation.credentials("controller").await.client().await;
    let api = Api::<ApiKeyRecord>::namespaced(client, &installation.system_namespace);
    let keys = (0..2 * REVOCATIONS).map(|_| Key::mint(&mut SysRng)).collect::<Result<Vec<_>, _>>()?;
    let loaded = (0..LOADED).map(|number| Digest::of(&population::key_text(number)));
    let digests: Vec<Digest> = keys.iter().map(Key::digest).chain(loaded).collect();
    ensure!(records >= digests.len(), "at least {} records", digests.len());
    fill(&api, &digests, records).await?;

    let credentials = installation.credentials("verifier").await;
    let (mut starts, mut lists, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut processor_times, mut memories) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let verifier = installation.program("verifier").in_pod(&credentials).start().await;
        verifier.ready().await;
        let start = started.elapsed();
        processor_times.push(processor_time_until_idle(&verifier).await);
        memories.push(verifier.memory());
        verifier.terminate().await;
        let list = list(&api, records).await?;
        ratios.push(start.as_secs_f64() / list.as_secs_f64());
        starts.push(start.as_secs_f64());
        lists.push(list.as_secs_f64());
    }

    let mut verifiers = vec![installation.program("verifier").in_pod(&credentials).start().await];
    while verifiers.len() < VERIFIERS {
        verifiers.push(installation.program("verifier").start().await);
    }
    for verifier in &verifiers {
        verifier.ready().await;
    }
    let addresses: Vec<_> = verifiers.iter().map(|verifier| verifier.address("http")).collect();
    let mut bare = BareWatch::start(api.clone()).await?;
    let at_rest = revoke_each(&api, 0, &keys[..REVOCATIONS], &addresses, &mut bare).await?;

    pin(verifiers[0].id())?;
    let mut load = load(verifiers[0].address("grpc"))?;
    let loaded = revoke_each(&api, REVOCATIONS, &keys[REVOCATIONS..], &addresses, &mut bare).await?;
    ensure!(load.try_wait()?.is_none(), "the load ended before the revocations");
    let load = load.wait_with_output()?;
    ensure!(load.status.success(), "the load failed");
    let per_second = String::from_utf8(load.stdout)?.trim().to_owned();

    let mebibytes = |of: fn(&Memory) -> u64| median(memories.iter().map(|memory| of(memory) as f64 / 1024.0).collect());
    let (peak, resident) = (mebibytes(|memory| memory.peak), mebibytes(|memory| memory.resident));
    let [ratio, start, list, processor_time] = [ratios, starts, lists, processor_times].map(median);
    let report = format!(
        "| Figure | Goal | Seen |\n|---|---|---|\n\
         | Start to Ready with {records} records, in times of a paged list of them | <= 1.5 / 1.1 | {ratio:.2} ({start:.2} s to {list:.2} s) |\n\
         | CPU seconds until idle after that | <= 3 / 1 | {processor_time:.2} |\n\
         | Memory's peak by then, in times of what is resident at rest | <= 2 | {:.2} ({peak:.1} MiB to {resident:.1} MiB) |\n\
         | Revocation answered by the API server to refused by all of {VERIFIERS}, at rest | p99 <= 5 / 2 ms | {} |\n\
         | To an event of a bare watch, of the same revocations | | {} |\n\
         | Refused by all under {CONNECTIONS}x{STREAMS} gRPC load of one ({per_second} a second) | p99 <= 50 / 10 ms | {} |\n\
         | To an event of a bare watch | | {} |\n",
        peak / resident,
        quantiles(at_rest.refused),
        quantiles(at_rest.watched),
        quantiles(loaded.refused),
        quantiles(loaded.watched),
    );
    Ok(publish(env!("CARGO_TARGET_TMPDIR"), "follow", "Following the API server", &report)?)
}

fn quantiles(mut delays: Vec<Duration>) -> String {
    delays.sort_unstable();
    let count = delays.len();
    let milliseconds = |percent: usize| delays[count * percent / 100].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms of {count}", milliseconds(50), milliseconds(99))
}

/// Has all threads of the verifier on its core.
fn pin(verifier: u32) -> Result<()> {
    let arguments = ["--all-tasks", "--cpu-list", "--pid", VERIFIER_CORE, &verifier.to_string()];
    let output = Command::new("taskset").args(arguments).output().context("starting taskset")?;
    ensure!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Begins to ask about the keys of the population by gRPC, as Envoy does.
fn load(verifier: SocketAddr) -> Result<Child> {
    let program = target()?.join("bench-verifier/release/keywright-bench-verifier");
    let numbers = [CONNECTIONS, STREAMS, LOADED].map(|number| number.to_string());
    Command::new("taskset")
        .args(["--cpu-list", LOAD_CORE])
        .arg(&program)
        .args(["load", &verifier.to_string()])
        .args(numbers)
        .arg(LOAD.as_secs().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {} by taskset", program.display()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn record_name(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}-1")
}

/// Writes so many records; the first ones have these digests.
async fn fill(api: &Api<ApiKeyRecord>, digests: &[Digest], records: usize) -> Result<()> {
    let digest = |number: usize| match digests.get(number) {
        Some(digest) => digest.to_string(),
        None => format!("sha256:{number:064x}"),
    };
    let write = async |number: usize| -> Result<()> {
        let record = serde_json::from_value(json!({
            "apiVersion": "keywright.dev/v1alpha1",
            "kind": "ApiKeyRecord",
            "metadata": {"name": record_name(number)},
            "spec": {
                "digest": digest(number),
                "apiKey": {
                    "namespace": format!("team-{}", number % 500),
                    "name": format!("billing-{number}"),
                    "uid": &record_name(number)[..36],
                },
                "serial": 1,
                "owner": "platform@example.org",
                "scopes": ["packages:read", "packages:write"],
            },
        }))?;
        api.create(&PostParams::default(), &record).await?;
        Ok(())
    };
    stream::iter(0..records).map(write).buffer_unordered(64).try_collect().await
}

/// The time that a plain client takes for all of them, page by page.
async fn list(api: &Api<ApiKeyRecord>, records: usize) -> Result<Duration> {
    let started = Instant::now();
    let mut page = ListParams::default().limit(500);
    let mut seen = 0;
    loop {
        let list = api.list(&page).await?;
        seen += list.items.len();
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => break,
        }
    }
    ensure!(seen == records, "{seen} records of {records}");
    Ok(started.elapsed())
}

/// All that the program has used by the time that it does nothing more, in CPU seconds.
async fn processor_time_until_idle(program: &Program) -> f64 {
    let mut before = program.processor_time();
    loop {
        sleep(Duration::from_millis(500)).await;
        let now = program.processor_time();
        if now - before < Duration::from_millis(10) {
            return now.as_secs_f64();
        }
        before = now;
    }
}

/// From the API server's answer to a revocation.
#[derive(Default)]
struct Delays {
    /// Until the last verifier refused.
    refused: Vec<Duration>,
    /// Until a bare watch had the event.
    watched: Vec<Duration>,
}

/// A watch of records that does nothing with them.
struct BareWatch(tokio::sync::mpsc::UnboundedReceiver<(String, Instant)>);

impl BareWatch {
    async fn start(api: Api<ApiKeyRecord>) -> Result<Self> {
        let newest = api.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version;
        let version = newest.context("a list has a version")?;
        let (seen, revocations) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut events = api.watch(&WatchParams::default().timeout(290), &version).await?.boxed();
            while let Some(event) = events.try_next().await? {
                if let WatchEvent::Modified(record) = event {
                    seen.send((record.name_any(), Instant::now()))?;
                }
            }
            anyhow::Ok(())
        });
        Ok(Self(revocations))
    }

    async fn saw(&mut self, name: &str) -> Result<Instant> {
        loop {
            let (seen, at) = self.0.recv().await.context("the bare watch ended")?;
            if seen == name {
                return Ok(at);
            }
        }
    }
}

/// How long each revocation took, one after the other; the first key's record has the number `first`.
async fn revoke_each(
    api: &Api<ApiKeyRecord>,
    first: usize,
    keys: &[Key],
    verifiers: &[SocketAddr],
    bare: &mut BareWatch,
) -> Result<Delays> {
    let mut delays = Delays::default();
    for (number, key) in (first..).zip(keys) {
        let probes = verifiers.iter().map(|verifier| Probe::start(*verifier, key)).collect::<Result<Vec<_>>>()?;
        let name = record_name(number);
        let revoked = json!({"spec": {"revoked": {"at": "2026-11-23T12:00:00Z", "reason": "Measured"}}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(revoked)).await?;
        let answered = Instant::now();
        delays.watched.push(bare.saw(&name).await?.saturating_duration_since(answered));
        let refused = probes.into_iter().map(Probe::refused).collect::<Result<Vec<_>>>()?;
        let last = refused.into_iter().max().context("a verifier")?;
        delays.refused.push(last.saturating_duration_since(answered));
    }
    Ok(delays)
}

/// A client that presents a key until it is refused.
struct Probe(thread::JoinHandle<Result<Instant>>);

impl Probe {
    /// Returns once the key has been let in.
    fn start(verifier: SocketAddr, key: &Key) -> Result<Self> {
        let (say, heard) = mpsc::channel();
        let request = format!("GET /verify HTTP/1.1\r\nhost: a\r\nx-api-key: {}\r\n\r\n", key.reveal());
        let asking = thread::spawn(move || -> Result<Instant> {
            let mut stream = TcpStream::connect(verifier)?;
            stream.set_nodelay(true)?;
            let mut answer = [0; 4096];
            loop {
                stream.write_all(request.as_bytes())?;
                let length = stream.read(&mut answer)?;
                if answer[..length].starts_with(b"HTTP/1.1 401") {
                    return Ok(Instant::now());
                }
                ensure!(answer[..length].starts_with(b"HTTP/1.1 200"), "neither allowed nor refused");
                say.send(()).ok();
                thread::sleep(PROBE_PAUSE);
            }
        });
        heard.recv().context("the key was refused before it was revoked")?;
        Ok(Self(asking))
    }

    fn refused(self) -> Result<Instant> {
        self.0.join().expect("it does not panic")
    }
}

fn target() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    Ok(target.context("a target folder")?.to_owned())
}
