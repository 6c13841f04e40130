//! Decisions, whatever the protocol: made, logged and counted.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use tracing::{debug, field, info};

use crate::clock;
use crate::serve::problem::ProblemDocument;
use crate::verifier::feed::Feed;
use keywright_core::fence::Moment;
use keywright_core::key::Presented;
use keywright_core::usage;
use keywright_core::verify::{self, Denial, Known, Permit};

/// Decides for one protocol.
pub struct Decisions {
    feed: Arc<Feed>,
    now: fn() -> Timestamp,
    tally: Arc<Tally>,
    denials_logged: Throttle,
}

/// What is counted of one protocol's decisions. Each thread counts for itself: one place for all would be passed to and
/// fro between the cores with each request.
pub struct Tally {
    protocol: &'static str,
    shards: Box<[Shard]>,
}

/// One thread's counts, on cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    allowed: AtomicU64,
    /// In the order of [`Denial::REASONS`].
    denied: [AtomicU64; Denial::REASONS.len()],
    /// By the first of [`BUCKETS`] that it fits in; the last is for what fits in none.
    durations: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

/// Upper bounds of the histogram, in nanoseconds.
const BUCKETS: [u64; 10] = [1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000];

/// More threads than this share places, and lose nothing but time.
const SHARDS: usize = 64;

/// Lines about denials of what is no known key in a second. Whoever sends junk at full rate must not fill the disk, nor make
/// the others wait for the log; all denials are counted in the metrics. A known key has a line in each second, which no
/// junk can take.
const DENIALS_LOGGED: u32 = 100;

/// So many in each second, and no more.
struct Throttle {
    limit: u32,
    /// The second in the upper half, how many there were in it in the lower.
    state: AtomicU64,
    held_back: AtomicU64,
}

impl Decisions {
    /// Decides from `feed`, at the time that `now` tells, and counts in `tally`.
    pub fn new(feed: Arc<Feed>, now: fn() -> Timestamp, tally: Arc<Tally>) -> Self {
        Self { feed, now, tally, denials_logged: Throttle::new(DENIALS_LOGGED) }
    }

    /// Decides on `request`, and has `allow` make the answer of a permit, which must be sent before the moment that it gets.
    ///
    /// # Errors
    /// What the caller is told of a denial.
    pub fn decide<R>(
        &self,
        request: &verify::Request<'_>,
        allow: impl FnOnce(&Permit<'_>, Moment) -> R,
    ) -> Result<R, ProblemDocument> {
        let started = clock::moment();
        let now = (self.now)();
        let keyring = self.feed.keyring();
        let decided = verify::recognize(&keyring, request).map(|known| (known, known.check(request, now)));
        // After the keyring was asked, and while it is held: rules 3 and 4 of `keywright_core::fence`.
        let reading = self.feed.membership().read();
        let decision = match (reading.until, decided) {
            (None, _) => Err(self.deny(Denial::Stale, None, now)),
            (Some(until), Ok((_, Ok(permit)))) => {
                self.allow(&permit, now);
                Ok(allow(&permit, until))
            }
            (_, Ok((known, Err(denial)))) => Err(self.deny_known(denial, known, request, now)),
            (_, Err(denial)) => Err(self.deny(denial, request.credential.ok().map(|credential| credential.key), now)),
        };
        self.tally.observe(u64::try_from(reading.now.since(started).as_nanos()).unwrap_or(u64::MAX));
        decision
    }

    fn allow(&self, permit: &Permit<'_>, now: Timestamp) {
        self.feed.marks().note(permit.entry().slot(), usage::second(now));
        debug!(
            namespace = permit.entry().namespace(),
            name = permit.entry().name(),
            prefix = %permit.shown(),
            client = permit.client_address().map(field::display),
            "allowed"
        );
        self.tally.count(Ok(()));
    }

    /// Denies what is no known key. Nothing is shown of a foreign one, which may be a password for something else: the start
    /// of its digest would be enough to try guesses on.
    fn deny(&self, denial: Denial, key: Option<Presented<'_>>, now: Timestamp) -> ProblemDocument {
        self.tally.count(Err(denial));
        if let Some(held_back) = self.denials_logged.admit(now.as_second()) {
            info!(
                reason = denial.reason(),
                cause = denial.cause(),
                remedy = denial.remedy(),
                prefix = key.and_then(Presented::prefix).map(field::display),
                not_logged = (held_back > 0).then_some(held_back),
                "denied"
            );
        }
        denial.into()
    }

    /// Denies a key that has a record, with a line for each record and second.
    fn deny_known(
        &self,
        denial: Denial,
        known: Known<'_, '_>,
        request: &verify::Request<'_>,
        now: Timestamp,
    ) -> ProblemDocument {
        self.tally.count(Err(denial));
        let entry = known.entry();
        if self.feed.marks().note_denial(entry.slot(), usage::second(now)) {
            info!(
                reason = denial.reason(),
                cause = denial.cause(),
                record = %entry.record_name(),
                namespace = entry.namespace(),
                name = entry.name(),
                prefix = %known.shown(),
                client = (request.client_address)().ok().map(field::display),
                "denied"
            );
        }
        denial.into()
    }
}

impl Throttle {
    fn new(limit: u32) -> Self {
        Self { limit, state: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// Whether one more may pass in this second, and how many were held back before it.
    fn admit(&self, second: i64) -> Option<u64> {
        let second = u64::from(second as u32) << 32; // for the next hundred years, and then anew
        let admitted = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
            let passed = if state & !u64::from(u32::MAX) == second { state - second } else { 0 };
            (passed < u64::from(self.limit)).then_some(second + passed + 1)
        });
        if admitted.is_ok() {
            Some(self.held_back.swap(0, Ordering::Relaxed))
        } else {
            self.held_back.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

impl Tally {
    /// For the decisions of `protocol`.
    pub fn new(protocol: &'static str) -> Self {
        Self { protocol, shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    fn shard(&self) -> Option<&Shard> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static INDEX: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        self.shards.get(INDEX.get())
    }

    fn count(&self, decision: Result<(), Denial>) {
        let Some(shard) = self.shard() else { return };
        let counter = match decision {
            Ok(()) => Some(&shard.allowed),
            Err(denial) => shard.denied.get(denial.number()),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn observe(&self, nanoseconds: u64) {
        let Some(shard) = self.shard() else { return };
        let bucket = BUCKETS.iter().position(|bound| nanoseconds <= *bound).unwrap_or(BUCKETS.len());
        if let Some(counter) = shard.durations.get(bucket) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        shard.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn sum(&self, count: impl Fn(&Shard) -> u64) -> u64 {
        self.shards.iter().map(count).sum()
    }

    fn decisions(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let allowed = ("allow", "allowed", self.sum(|shard| read(&shard.allowed)));
        let denied = Denial::REASONS
            .iter()
            .enumerate()
            .map(|(index, reason)| ("deny", *reason, self.sum(|shard| shard.denied.get(index).map_or(0, read))));
        denied.chain([allowed])
    }
}

/// The metrics of all protocols.
pub struct DecisionMetrics(pub Vec<Arc<Tally>>);

impl Collector for DecisionMetrics {
    /// Every reason is there from the start, at 0: a rate needs a value to rise from.
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut decisions =
            encoder.encode_descriptor("verify_decisions", "Decisions, by reason", None, MetricType::Counter)?;
        for tally in &self.0 {
            for (decision, reason, count) in tally.decisions() {
                let labels = [("decision", decision), ("reason", reason), ("protocol", tally.protocol)];
                decisions.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let sum = |counter: &dyn Fn(&Shard) -> u64| -> u64 { self.0.iter().map(|tally| tally.sum(counter)).sum() };
        let buckets: Vec<(f64, u64)> = (0..=BUCKETS.len())
            .map(|index| {
                let bound = BUCKETS.get(index).map_or(f64::MAX, |nanoseconds| *nanoseconds as f64 / 1e9);
                (bound, sum(&|shard| shard.durations.get(index).map_or(0, read)))
            })
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = sum(&|shard| read(&shard.nanoseconds)) as f64 / 1e9;
        let help = "Time that a decision takes";
        let unit = Unit::Seconds;
        let mut durations = encoder.encode_descriptor("verify_duration", help, Some(&unit), MetricType::Histogram)?;
        durations.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }
}

impl fmt::Debug for DecisionMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DecisionMetrics")
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::AtomicI64;
    use std::thread;

    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::telemetry::tests::Lines;
    use keywright_core::credential::credential;
    use keywright_core::key::Digest;
    use keywright_core::keyring::Keyring;
    use keywright_core::testing::{record_name, stored};
    use keywright_core::verify::Route;

    /// What is denied of known keys stands in the log, with whose it is and where it comes from, once a second for each
    /// record, however much junk comes with it.
    #[test]
    fn junk_does_not_crowd_denials_of_known_keys_out_of_the_log() {
        const REVOKED: &str = "keyw1_x3dylZ3lzYKIhQQXeAJ94cGS4sbYtvgcYDsSikFczMP1KVy2b";
        const SUSPENDED: &str = "keyw1_5LdvPPYbsFuXItWtxeRYxNSM0lFE7WG6AJPOloe336t3XOvuE";
        const UNKNOWN: &str = "keyw1_00000000000000000000000000000000000000000003dznj0";
        static NOW: AtomicI64 = AtomicI64::new(1_795_000_000);
        let mut keyring = Keyring::default();
        let keys = [(REVOKED, "revoked", serde_json::json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" }))];
        let keys = keys.into_iter().chain([(SUSPENDED, "suspended", serde_json::json!(true))]);
        for (number, (key, field, value)) in (1..).zip(keys) {
            let api_key = serde_json::json!({ "namespace": "team-a", "name": format!("{field}-key"), "uid": "c" });
            let mut spec = serde_json::json!({ "digest": Digest::of(key.as_bytes()).to_string(), "apiKey": api_key });
            spec[field] = value;
            keyring.upsert(&stored(&record_name(number), &spec)).unwrap();
        }
        let now = || Timestamp::from_second(NOW.load(Ordering::SeqCst)).unwrap();
        let decisions = Decisions::new(Arc::new(Feed::holding(&keyring)), now, Arc::new(Tally::new("http")));
        let deny = |key: Option<&str>| {
            let credential = credential([].into_iter(), key.iter().map(|key| key.as_bytes()));
            let client_address = || Ok(IpAddr::from([203, 0, 113, 7]));
            let request = verify::Request { credential, route: Ok(Route::default()), client_address: &client_address };
            assert!(decisions.decide(&request, |_, _| ()).is_err());
        };
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(log, || {
            for _ in 0..5 {
                (0..150).for_each(|number| deny([None, Some("junk"), Some(UNKNOWN)][number % 3]));
                (0..35).for_each(|_| deny(Some(REVOKED)));
                (0..150).for_each(|_| deny(Some("junk")));
                (0..3).for_each(|_| deny(Some(SUSPENDED)));
                NOW.fetch_add(1, Ordering::SeqCst);
            }
        });
        let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        for (reason, number) in [("revoked", 1), ("suspended", 2)] {
            let of_key: Vec<_> = said.lines().filter(|line| line.contains(&format!("{reason}-key"))).collect();
            assert_eq!(of_key.len(), 5, "one a second: {of_key:?}");
            let words = [&*format!("reason=\"{reason}\""), &*record_name(number), "team-a", "client=203.0.113.7"];
            assert!(words.iter().all(|word| of_key[0].contains(word)), "{}", of_key[0]);
        }
        assert_eq!(said.lines().count(), 5 * (DENIALS_LOGGED as usize + 2));
        assert!(![REVOKED, SUSPENDED, UNKNOWN].iter().any(|key| said.contains(&key[..15])), "no more than a prefix");
    }

    /// Rule 3 of the fence: the Lease counts after the lookup, and not before it.
    #[test]
    fn a_lease_that_ends_during_the_lookup_lets_nobody_in() {
        const OPEN: &str = "keyw1_x3dylZ3lzYKIhQQXeAJ94cGS4sbYtvgcYDsSikFczMP1KVy2b";
        let mut keyring = Keyring::default();
        let spec = serde_json::json!({
            "digest": Digest::of(OPEN.as_bytes()).to_string(),
            "apiKey": { "namespace": "team-a", "name": "open", "uid": "c" },
            "allowedIPs": ["203.0.113.7/32"],
        });
        keyring.upsert(&stored(&record_name(1), &spec)).unwrap();
        let feed = Arc::new(Feed::holding(&keyring));
        let decisions = Decisions::new(Arc::clone(&feed), Timestamp::now, Arc::new(Tally::new("http")));
        let ask = |is_left: bool| {
            let credential = credential([].into_iter(), [OPEN.as_bytes()].into_iter());
            // Called in the middle of the lookup.
            let client_address = || {
                if is_left {
                    feed.membership().leave();
                }
                Ok(IpAddr::from([203, 0, 113, 7]))
            };
            let request = verify::Request { credential, route: Ok(Route::default()), client_address: &client_address };
            decisions.decide(&request, |_, _| ()).map_err(|problem| problem.status)
        };
        assert_eq!(ask(false), Ok(()));
        assert_eq!(ask(true), Err(hyper::StatusCode::SERVICE_UNAVAILABLE));
    }

    #[test]
    fn a_throttle_lets_so_many_pass_in_a_second_and_tells_how_many_it_held_back() {
        let throttle = Throttle::new(2);
        let admitted = [7, 7, 7, 7, 8, 8, 8, 10].map(|second| throttle.admit(second));
        assert_eq!(admitted, [Some(0), Some(0), None, None, Some(2), Some(0), None, Some(1)]);
    }

    #[test]
    fn what_threads_count_for_themselves_is_told_as_one_number() {
        let tally = Arc::new(Tally::new("http"));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let tally = Arc::clone(&tally);
                thread::spawn(move || {
                    for _ in 0..250 {
                        tally.count(Ok(()));
                        tally.count(Err(Denial::Stale));
                        tally.observe(2_000);
                        tally.observe(u64::from(u32::MAX));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut registry = Registry::with_prefix("keywright");
        registry.register_collector(Box::new(DecisionMetrics(vec![tally, Arc::new(Tally::new("grpc"))])));
        let mut said = String::new();
        text::encode(&mut said, &registry).unwrap();
        for line in [
            r#"keywright_verify_decisions_total{decision="allow",reason="allowed",protocol="http"} 1000"#,
            r#"keywright_verify_decisions_total{decision="deny",reason="stale",protocol="http"} 1000"#,
            r#"keywright_verify_decisions_total{decision="deny",reason="missing",protocol="http"} 0"#,
            r#"keywright_verify_decisions_total{decision="allow",reason="allowed",protocol="grpc"} 0"#,
            r#"keywright_verify_duration_seconds_bucket{le="0.000001"} 0"#,
            r#"keywright_verify_duration_seconds_bucket{le="0.0000025"} 1000"#,
            r#"keywright_verify_duration_seconds_bucket{le="+Inf"} 2000"#,
            "keywright_verify_duration_seconds_count 2000",
        ] {
            assert!(said.lines().any(|said| said == line), "{line} in {said}");
        }
    }
}
