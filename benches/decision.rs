//! The decision alone, without a server around it: among a million records, among a thousand, and against one SHA-256.
//!
//! All of them take turns in one run; only their ratios mean anything elsewhere. Nothing here is a pass mark.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "in a measurement, stopping with a message is how a failure is told"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use jiff::Timestamp;
use keywright_core::credential::credential;
use keywright_core::keyring::{Keyring, StoredRecord};
use keywright_core::verify::{Request, Route, check};
use keywright_measure::population::{KeyText, Random, key_text, record_name, spec};
use keywright_measure::report::publish;
use keywright_measure::statistics::{Quartiles, percentile};
use mimalloc::MiMalloc;
use sha2::{Digest, Sha256};

/// The same as the verifier's: where it puts the records decides how long it takes to reach them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const RECORDS: usize = 1_000_000;
const ROUNDS: usize = 27;

/// Decisions in one sample: few enough that their keys stay in the cache, which the records then do not.
const BATCH: usize = 4096;
const BATCHES: usize = 25;

fn main() -> Result<()> {
    let records = std::env::var("KEYWRIGHT_BENCH_RECORDS").map_or(Ok(RECORDS), |text| text.parse())?;
    let keys: Vec<KeyText> = (0..records).map(key_text).collect();
    let (mut many, few) = (keyring(records)?, keyring(1000)?);
    let (now, mut random) = (Timestamp::now(), Random::new(3));
    let (mut decisions, mut hashes, mut few_decisions) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        decisions.push(nanoseconds(&keys, &mut random, |key| decide(&many, key, now))?);
        hashes.push(nanoseconds(&keys, &mut random, |key| !black_box(Sha256::digest(key)).is_empty())?);
        few_decisions.push(nanoseconds(&keys[..1000], &mut random, |key| decide(&few, key, now))?);
    }
    let ratio = |base: &[f64]| Quartiles::of(decisions.iter().zip(base).map(|(ours, base)| ours / base).collect());
    let (in_hashes, by_size) = (ratio(&hashes), ratio(&few_decisions));
    let change = change(&mut many, records, &mut random)?;
    let [decision, hash, few_decision] = [decisions, hashes, few_decisions].map(|times| Quartiles::of(times).median());
    let report = format!(
        "Medians of {ROUNDS} rounds, lower and upper quartile in brackets.\n\n\
         | What | Base | Goal | Ratio | Ours | Base's |\n|---|---|---|---|---|---|\n\
         | A decision among {records} keys | SHA-256 of 55 octets | <= 9 / 5 | {in_hashes} | {decision:.0} ns | {hash:.0} ns |\n\
         | The same | among 1000 keys | <= 2.2 / 1.5 | {by_size} | {decision:.0} ns | {few_decision:.0} ns |\n\
         | A change of the keyring and its publication, p99 | - | <= 1 ms / 0.1 ms | - | {change:.1?} | - |\n"
    );
    Ok(publish(env!("CARGO_TARGET_TMPDIR"), "decision", "The decision", &report)?)
}

fn keyring(records: usize) -> Result<Keyring> {
    let mut keyring = Keyring::default();
    for number in 0..records {
        keyring.upsert(&StoredRecord::read(&record_name(number), None, &spec(number))?)?;
    }
    Ok(keyring)
}

fn decide(keyring: &Keyring, key: &KeyText, now: Timestamp) -> bool {
    let request = Request {
        credential: credential([].into_iter(), [&key[..]].into_iter()),
        route: Ok(Route::default()),
        client_address: &|| Ok([192, 0, 2, 7].into()),
    };
    black_box(check(keyring, &request, now)).is_ok()
}

/// What `work` takes for one key, on average over many random ones that were just copied together.
fn nanoseconds(keys: &[KeyText], random: &mut Random, work: impl Fn(&KeyText) -> bool) -> Result<f64> {
    let mut taken = Duration::ZERO;
    for _ in 0..BATCHES {
        let batch: Vec<KeyText> = (0..BATCH).map(|_| keys[random.below(keys.len())]).collect();
        let started = Instant::now();
        let good = batch.iter().filter(|key| work(key)).count();
        taken += started.elapsed();
        ensure!(good == BATCH, "a good key was refused");
    }
    Ok(taken.as_secs_f64() * 1e9 / (BATCH * BATCHES) as f64)
}

/// What the feed does with an event, after it has been read.
fn change(keyring: &mut Keyring, count: usize, random: &mut Random) -> Result<Duration> {
    let mut published = keyring.clone();
    let mut times = Vec::new();
    for _ in 0..10_000 {
        let number = random.below(count);
        let (name, spec) = (record_name(number), spec(number));
        let started = Instant::now();
        keyring.replace(&StoredRecord::read(&name, None, &spec)?)?;
        published = keyring.clone();
        times.push(started.elapsed());
    }
    drop(published);
    Ok(percentile(&mut times, 0.99))
}
