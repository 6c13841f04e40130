//! When keys were last used: marked by real verifiers, written under their rights, and shown by the real controller.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::iter;
use jiff::Timestamp;
use keywright_core::api::{ApiKey, ApiKeyRecord, Reason};
use keywright_core::key::Key;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use rand::rngs::SysRng;
use rand::seq::SliceRandom;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::scene::{INSIDE, OUTSIDE, Scene};
use keywright_testing::{ApiRequest, Fault, FaultProxy, Installation, Occurrence::Nth, Outcome, Program, output, wait};

/// A verifier that writes as soon as anything is a second old.
const EAGER: &str = "--last-used-granularity=1s";
/// One that in this test's time writes nothing twice.
const LAZY: &str = "--last-used-granularity=1h";

async fn scene(test_name: &str, granularity: &str, faults: Option<&FaultProxy>) -> Scene {
    let installation = Installation::new(test_name).await;
    let launch = installation.program("verifier").argument(granularity);
    let launch = faults.into_iter().fold(launch, |launch, faults| launch.through(faults));
    let verifier = launch.start().await;
    verifier.ready().await;
    let mut scene = Scene { verifier, controller: None, installation };
    scene.start_controller(&[]).await;
    scene
}

async fn faults() -> FaultProxy {
    FaultProxy::start(keywright_testing::ControlPlane::shared().await).await
}

fn last_use_of(record: &ApiKeyRecord) -> Option<Timestamp> {
    Some(record.status.as_ref()?.last_used_at.as_ref()?.0)
}

fn shown_by(api_key: &ApiKey) -> Option<Timestamp> {
    Some(api_key.status.as_ref()?.last_used_at.as_ref()?.0)
}

fn is_status_write(request: &ApiRequest) -> bool {
    request.is("PATCH", "apikeyrecords/status")
}

/// As a verifier writes it, with a verifier's rights.
async fn write_as_another_verifier(scene: &Scene, record: &str, second: &str) {
    let client = scene.installation.credentials("verifier").await.client().await;
    let records = Api::<ApiKeyRecord>::namespaced(client, &scene.installation.system_namespace);
    let patch = Patch::Merge(json!({ "status": { "lastUsedAt": second } }));
    records.patch_status(record, &PatchParams::default(), &patch).await.unwrap();
}

/// The value of a metric without labels.
async fn metric(verifier: &Program, name: &str) -> f64 {
    let metrics = verifier.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

#[tokio::test]
async fn a_use_is_seen_in_the_record_and_in_the_api_key_and_a_refusal_is_none() {
    let mut scene = scene("used", EAGER, None).await;
    for name in ["used", "refused"] {
        scene.declare(name, json!({ "owner": "jane", "allowedIPs": [INSIDE] })).await;
        scene.reason(name, Reason::Active).await;
    }
    let (used, refused) = (scene.key("used", 1).await, scene.key("refused", 1).await);
    scene.answers(&refused, OUTSIDE, 403).await;
    let first_use = Timestamp::now().as_second();
    scene.answers(&used, INSIDE, 200).await;
    let is_shown = move |at: Option<Timestamp>| at.is_some_and(|at| at.as_second() >= first_use);
    wait::for_object(&scene.api_keys(), "used", move |api_key| is_shown(shown_by(api_key))).await;
    assert!(is_shown(last_use_of(&scene.record(&used).await)));
    assert_eq!(last_use_of(&scene.record(&refused).await), None);
    assert_eq!(shown_by(&scene.api_keys().get("refused").await.unwrap()), None);

    let get = ["get", "apikeys", "--namespace", &scene.installation.tenant_namespace];
    let printed = output(&mut scene.installation.control_plane.kubectl(get)).unwrap();
    let lines: Vec<&str> = printed.lines().collect();
    let column = lines[0].find("LAST USED").unwrap_or_else(|| panic!("no column in {printed}"));
    let column_of =
        |name| lines.iter().find(|line| line.starts_with(name)).unwrap()[column..].split(' ').next().unwrap();
    assert!(column_of("used").ends_with('s'), "{printed}");
    assert_eq!(column_of("refused"), "", "{printed}");

    // In steady use; and each change of a record costs one write of the ApiKey's status at most.
    for _ in 0..50 {
        assert_eq!(scene.ask(&used, INSIDE, "/verify").await.status, 200);
        sleep(Duration::from_millis(100)).await;
    }
    let granularity = metric(&scene.verifier, "keywright_last_used_granularity_seconds").await;
    let killed = Timestamp::now().as_second();
    let verifier = std::mem::replace(&mut scene.verifier, scene.installation.program("verifier").start().await);
    verifier.kill().await;
    let written = last_use_of(&scene.record(&used).await).unwrap().as_second();
    assert!(written + granularity.ceil() as i64 + 2 >= killed, "{written}, killed at {killed}, {granularity} s");
    let at = move |api_key: &ApiKey| shown_by(api_key).is_some_and(|at| at.as_second() == written);
    wait::for_object(&scene.api_keys(), "used", at).await;
    let requests = scene.installation.audited_requests().await;
    let written =
        |resource| requests.iter().filter(|request| request.resource == resource && request.code == 200).count();
    let (records, api_keys) = (written("apikeyrecords/status"), written("apikeys/status"));
    let reads =
        requests.iter().filter(|request| request.user.ends_with("keywright-controller") && request.verb == "get");
    println!("{records} times of records, {api_keys} statuses of ApiKeys, {} reads of the controller", reads.count());
    assert!((3..=12).contains(&records), "{records} writes in 5 s, at a granularity of one");
    assert!(api_keys <= records + 2 * 4, "{api_keys} writes of ApiKeys' status, {records} of records'");
}

#[tokio::test]
async fn a_verifier_that_ends_in_order_writes_what_is_left() {
    let scene = scene("stop", LAZY, None).await;
    let names: Vec<String> = (0..20).map(|number| format!("key-{number:02}")).collect();
    let mut keys = Vec::new();
    for name in &names {
        scene.declare(name, json!({ "owner": "jane" })).await;
    }
    for name in &names {
        keys.push(scene.key(name, 1).await);
    }
    // The first use is written soon, and then nothing for an hour.
    scene.answers(&keys[0], INSIDE, 200).await;
    let first = wait::for_object(&scene.api_keys(), &names[0], |api_key| shown_by(api_key).is_some()).await;
    sleep_until(Instant::now() + Duration::from_millis(1100)).await;
    let before = Timestamp::now().as_second();
    for key in &keys {
        scene.answers(key, INSIDE, 200).await;
    }
    let Scene { verifier, controller: _controller, installation } = scene;
    assert_eq!(verifier.terminate().await.code(), Some(0));
    let records = installation.system::<ApiKeyRecord>().list(&ListParams::default()).await.unwrap();
    assert_eq!(records.items.len(), 20);
    for record in &records {
        let written = last_use_of(record).map(Timestamp::as_second);
        assert!(written >= Some(before), "{written:?}, used at {before} or later: {record:?}");
    }
    let at_the_end = move |api_key: &ApiKey| shown_by(api_key).map(Timestamp::as_second) >= Some(before);
    let shown = wait::for_object(&installation.tenant(), &names[0], at_the_end).await;
    assert!(shown_by(&shown) > shown_by(&first));
}

/// Two verifiers with different clocks, or one that comes late: the later time stays, whatever the other one knows.
#[tokio::test]
async fn a_time_never_goes_backwards() {
    let faults = faults().await;
    let scene = scene("backwards", EAGER, Some(&faults)).await;
    for name in ["read", "raced", "unheard"] {
        scene.declare(name, json!({ "owner": "jane" })).await;
    }
    let later = "2090-01-01T00:00:00Z";
    let is_later = |record: &ApiKeyRecord| last_use_of(record) == Some(later.parse().unwrap());

    // It would have written, were it not for what the other one did while its write was on its way.
    let raced = scene.key("raced", 1).await;
    let record = scene.record(&raced).await.name_any();
    let delayed = faults.inject(Fault::Delay(Duration::from_secs(2)), Nth(1), is_status_write);
    scene.answers(&raced, INSIDE, 200).await;
    delayed.hit().await;
    write_as_another_verifier(&scene, &record, later).await;
    sleep(Duration::from_secs(3)).await;
    assert!(is_later(&scene.record(&raced).await));

    // It learns of it from the watch.
    let read = scene.key("read", 1).await;
    write_as_another_verifier(&scene, &scene.record(&read).await.name_any(), later).await;
    scene.answers(&read, INSIDE, 200).await;

    // It does not, and finds out when it writes.
    let unheard = scene.key("unheard", 1).await;
    scene.answers(&unheard, INSIDE, 200).await;
    let hung = faults.inject(Fault::HangWatch, Nth(1), |request| request.watch && request.resource == "apikeyrecords");
    write_as_another_verifier(&scene, &scene.record(&unheard).await.name_any(), later).await;
    hung.hit().await;
    scene.answers(&unheard, INSIDE, 200).await;

    let Scene { verifier, controller: _controller, installation } = scene;
    assert_eq!(verifier.terminate().await.code(), Some(0));
    for record in &installation.system::<ApiKeyRecord>().list(&ListParams::default()).await.unwrap() {
        assert!(is_later(record), "{record:?}");
    }
}

#[tokio::test]
async fn a_write_that_fails_is_made_again() {
    let faults = faults().await;
    let scene = scene("failing", EAGER, Some(&faults)).await;
    scene.declare("used", json!({ "owner": "jane" })).await;
    let key = scene.key("used", 1).await;
    let record = scene.record(&key).await.name_any();
    for fault in [
        Fault::Before(Outcome::Status(500)),
        Fault::Before(Outcome::TooManyRequests(1)),
        Fault::Before(Outcome::Reset),
        Fault::After(Outcome::Status(504)),
        Fault::After(Outcome::Reset),
    ] {
        let injected = faults.inject(fault, Nth(1), is_status_write);
        let before = Timestamp::now().as_second();
        let using = async {
            loop {
                assert_eq!(scene.ask(&key, INSIDE, "/verify").await.status, 200);
                sleep(Duration::from_millis(100)).await;
            }
        };
        scene.answers(&key, INSIDE, 200).await;
        tokio::select! {
            () = injected.hit() => {}
            () = using => {}
        }
        let is_written = move |record: &ApiKeyRecord| last_use_of(record).map(Timestamp::as_second) >= Some(before);
        wait::for_object(&scene.records(), &record, is_written).await;
    }
    assert_eq!(metric(&scene.verifier, "keywright_last_used_write_errors_total").await, 5.0);
}

/// The records of so many keys, written as the controller writes them, and the keys.
async fn issue(installation: &Installation, count: usize) -> HashMap<String, Key> {
    let client = installation.credentials("controller").await.client().await;
    let records = Api::<ApiKeyRecord>::namespaced(client, &installation.system_namespace);
    let issued = iter(0..count).map(|number| {
        let (records, namespace) = (records.clone(), &installation.tenant_namespace);
        async move {
            let key = Key::mint(&mut SysRng).unwrap();
            let uid = format!("0b0e7a4c-93d1-4f5e-8a6b-{number:012x}");
            let record = json!({
                "apiVersion": "keywright.dev/v1alpha1",
                "kind": "ApiKeyRecord",
                "metadata": { "name": format!("{uid}-1") },
                "spec": {
                    "digest": key.digest().to_string(),
                    "keyPrefix": key.prefix().as_str(),
                    "apiKey": { "namespace": namespace, "name": format!("key-{number:04}"), "uid": uid },
                    "serial": 1,
                },
            });
            let record = serde_json::from_value(record).unwrap();
            let record = records.create(&PostParams::default(), &record).await.unwrap();
            (record.name_any(), key)
        }
    });
    issued.buffer_unordered(24).collect().await
}

/// When which record's key was used, by second.
type Uses = Arc<Mutex<HashMap<String, Vec<i64>>>>;

/// Presents one key after the other to a verifier, for ever, on one connection.
async fn use_keys(address: SocketAddr, keys: Arc<HashMap<String, Key>>, uses: Uses) {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let mut order: Vec<_> = keys.iter().collect();
    order.shuffle(&mut rand::rng());
    let mut next = Instant::now();
    for (record, key) in order.into_iter().cycle() {
        let request = format!(
            "GET /verify HTTP/1.1\r\nHost: v\r\nX-API-Key: {}\r\nX-Forwarded-For: {INSIDE}\r\n\r\n",
            key.reveal()
        );
        let second = Timestamp::now().as_second();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            assert!(connection.read_buf(&mut answer).await.unwrap() > 0, "the connection was closed");
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        uses.lock().unwrap().entry(record.clone()).or_default().push(second);
        next += Duration::from_millis(10);
        sleep_until(next).await;
    }
}

/// What a look at all records has found.
struct Look {
    /// The granularity in force, in seconds: the largest that a verifier tells.
    granularity: f64,
    /// The oldest time that a record had, of those that were used; the first use counts where it had none.
    oldest: i64,
    /// How many records have no use yet.
    unused: usize,
}

/// Checks that every use which is older than the granularity in force is in the API.
async fn check_granularity(installation: &Installation, verifiers: &[Program], uses: &Uses) -> Look {
    let mut granularity = 0_f64;
    for verifier in verifiers {
        granularity = granularity.max(metric(verifier, "keywright_last_used_granularity_seconds").await);
    }
    // Uses are noted by the second, and surveys made once in one.
    let due = Timestamp::now().as_second() - granularity.ceil() as i64 - 2;
    let mut oldest = Timestamp::now().as_second();
    let records = installation.system::<ApiKeyRecord>().list(&ListParams::default()).await.unwrap();
    let all_uses = uses.lock().unwrap();
    for record in &records {
        let uses = all_uses.get(&record.name_any()).map_or(&[][..], Vec::as_slice);
        let used = uses.iter().filter(|second| **second <= due).max();
        let written = last_use_of(record).map(Timestamp::as_second);
        assert!(used.is_none() || written.as_ref() >= used, "{used:?}, {written:?}, {granularity} s: {record:?}");
        oldest = uses.iter().min().map_or(oldest, |first| oldest.min(written.unwrap_or(*first)));
    }
    Look { granularity, oldest, unused: records.iter().filter(|record| last_use_of(record).is_none()).count() }
}

#[tokio::test]
async fn three_verifiers_with_2000_keys_in_use_keep_to_the_budget_and_to_the_granularity_in_force() {
    const KEYS: usize = 2000;
    const BUDGET: usize = 50;
    // A quarter more time than it takes to write every key's once; of the budget, 1.8 writes a second are held in reserve:
    // nine tenths of the two that a verifier may have under way.
    const NEEDED: f64 = 1.25 * KEYS as f64 / (BUDGET as f64 - 0.9 * BUDGET.div_ceil(25) as f64);
    let installation = Installation::new("budget").await;
    let keys = Arc::new(issue(&installation, KEYS).await);
    let mut verifiers = Vec::new();
    for _ in 0..3 {
        let launch = installation.program("verifier").argument("--last-used-granularity=10s");
        verifiers.push(launch.argument(&format!("--last-used-write-budget={BUDGET}")).start().await);
    }
    let uses = Uses::default();
    let mut traffic = JoinSet::new();
    for verifier in &verifiers {
        verifier.ready().await;
        traffic.spawn(use_keys(verifier.address("http"), keys.clone(), uses.clone()));
    }
    let started = Instant::now();
    let mut granularities = Vec::new();
    let (mut unused, mut oldest) = (keys.len(), Timestamp::now().as_second());
    while unused > 0 || started.elapsed() < Duration::from_secs(30) {
        sleep(Duration::from_secs(3)).await;
        let look = check_granularity(&installation, &verifiers, &uses).await;
        granularities.push(look.granularity);
        // On a machine that cannot keep up, it is as far behind as can be seen: in the look before, as what a verifier
        // tells is a survey old, and the record that was behind may have been written since.
        let behind = Timestamp::now().as_second() - oldest;
        let at_most = NEEDED.max(behind as f64) + 5.0;
        assert!(look.granularity <= at_most, "at most {at_most}, {behind} behind: {granularities:?}");
        (unused, oldest) = (look.unused, look.oldest);
        assert!(traffic.try_join_next().is_none(), "requests go on");
        assert!(started.elapsed() < wait::DEADLINE * 10, "{unused} records without a time: {granularities:?}");
    }
    println!("granularities {granularities:?}");
    assert!(granularities.iter().any(|granularity| *granularity > KEYS as f64 / BUDGET as f64), "{granularities:?}");
    assert_eq!(uses.lock().unwrap().len(), KEYS);

    let requests = installation.audited_requests().await;
    let is_write = |code| {
        let requests = requests.iter().filter(move |request| request.resource == "apikeyrecords/status");
        requests.filter(move |request| request.verb == "patch" && request.code == code)
    };
    let mut writes: Vec<Timestamp> = is_write(200).map(|request| request.at).collect();
    writes.sort();
    let window = jiff::SignedDuration::from_secs(10);
    let in_window = |at: &Timestamp| writes.iter().filter(|other| **other >= *at && **other < *at + window).count();
    let busiest = writes.iter().map(in_window).max().unwrap();
    println!("{} writes, {busiest} in the busiest 10 s, {} conflicts", writes.len(), is_write(409).count());
    assert!(busiest <= BUDGET * 10, "{busiest}");
    assert!(writes.len() >= KEYS, "every key's use was written: {}", writes.len());
    let mut counted = 0.0;
    for verifier in &verifiers {
        counted += metric(verifier, "keywright_last_used_writes_total").await;
    }
    assert!(counted >= writes.len() as f64, "{counted} counted, {} made", writes.len());

    // Thousands of uses are not written at any moment. The others are told of the burst and give way.
    drop(traffic);
    for verifier in verifiers {
        let output = verifier.output();
        assert_eq!(verifier.terminate().await.code(), Some(0));
        let said = output.text();
        let line = said.lines().find(|line| line.contains("last uses")).unwrap_or_else(|| panic!("{said}"));
        println!("{line}");
        assert!(line.contains("all last uses are written"), "{line}");
    }
    let records = installation.system::<ApiKeyRecord>().list(&ListParams::default()).await.unwrap();
    let uses = uses.lock().unwrap();
    for record in &records {
        let written = last_use_of(record).map(Timestamp::as_second);
        assert!(written.as_ref() >= uses[&record.name_any()].iter().max(), "{written:?}: {record:?}");
    }
}
