//! The decision alone, without a server around it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use jiff::Timestamp;
use keywright::key::credential;
use keywright::keyring::Keyring;
use keywright::verify::{Request, Route, check};
use sha2::{Digest, Sha256};

use crate::population::{KeyText, Random, record_name, spec};
use crate::statistics::{Quartiles, percentile};

/// Decisions in one sample: few enough that their keys stay in the cache, which the records then do not.
const BATCH: usize = 4096;
const BATCHES: usize = 25;

pub struct Figures {
    /// A decision among all records, in hashes of 55 octets.
    pub in_hashes: Quartiles,
    /// The same among all records and among 1,000.
    pub by_size: Quartiles,
    pub decision: Quartiles,
    pub few: Quartiles,
    pub hash: Quartiles,
    /// One change of a record and its publication, 99 of 100 take less.
    pub change: Duration,
}

pub fn measure(keys: &[KeyText], rounds: usize) -> Result<Figures> {
    let now = Timestamp::now();
    let mut many = Keyring::default();
    for number in 0..keys.len() {
        many.upsert(&record_name(number), &spec(number))?;
    }
    let mut few = Keyring::default();
    for number in 0..1000 {
        few.upsert(&record_name(number), &spec(number))?;
    }
    let mut random = Random::new(3);
    let (mut in_hashes, mut by_size) = (Vec::new(), Vec::new());
    let (mut decisions, mut few_decisions, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds * 3 {
        let decision = nanoseconds(keys, &mut random, |key| decide(&many, key, now))?;
        let hash = nanoseconds(keys, &mut random, |key| {
            black_box(Sha256::digest(key));
            true
        })?;
        let few_decision = nanoseconds(&keys[..1000], &mut random, |key| decide(&few, key, now))?;
        in_hashes.push(decision / hash);
        by_size.push(decision / few_decision);
        decisions.push(decision);
        few_decisions.push(few_decision);
        hashes.push(hash);
    }
    Ok(Figures {
        in_hashes: Quartiles::of(in_hashes),
        by_size: Quartiles::of(by_size),
        decision: Quartiles::of(decisions),
        few: Quartiles::of(few_decisions),
        hash: Quartiles::of(hashes),
        change: change(&mut many, keys.len(), &mut random)?,
    })
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
        keyring.replace(&name, &spec)?;
        published = keyring.clone();
        times.push(started.elapsed());
    }
    drop(published);
    Ok(percentile(&mut times, 0.99))
}
