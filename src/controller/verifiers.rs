//! I/O. Looks at the verifiers' Leases: while somebody waits for an acknowledgement, and now and then. Removes those that have
//! run out. [`keywright_core::fence`] decides what that proves.
//!
//! A pass waits in place for a short time. After that its ApiKey is parked, and woken once nothing holds it up.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc::UnboundedSender;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use keywright_core::fence::{
    Awaited, Eviction, Fence, LeaseVersion, MOST_LEASES, Moment, RecordVersion, Verdict, View, Wait,
};
use keywright_core::lifecycle::{Enforcement, Observed, Pending, Purpose, Record};
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::cluster::Cluster;
use super::error::Error;
use super::heads::Watched;
use super::memory::Memory;
use crate::telemetry::WatchErrors;
use crate::{clock, lease};

/// Between two looks while nobody waits.
const AT_REST: Duration = Duration::from_secs(10);

/// Between two looks while parked ApiKeys wait.
const WHILE_PARKED: Duration = Duration::from_secs(1);

/// Before the first look for a new version: about as long as an acknowledgement takes.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Before the second look, which is often the last. The pause doubles with each further one.
const SECOND_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Leases in one page of a list.
const PAGE: u32 = 500;

/// What this controller knows of the verifiers, and who waits for them.
#[derive(Debug)]
pub(super) struct Verifiers {
    state: Mutex<State>,
    /// A pass waits for a look.
    wanted: Notify,
    /// Number of looks, also failed ones.
    looks: watch::Sender<u64>,
    /// From a write of a record to its acknowledgement by every verifier.
    waits: Histogram,
}

#[derive(Debug, Default)]
struct State {
    fence: Fence,
    /// Those whose newest write is not enforced yet, by the uid of the ApiKey.
    waiting: HashMap<String, Waiting>,
    /// Whether a version is awaited that no look was made for.
    is_fresh: bool,
    /// Whether somebody has waited in vain for looks that tell who is behind. The next one does not wait again.
    is_blind: bool,
}

/// An ApiKey whose records are to be enforced.
#[derive(Debug)]
struct Waiting {
    awaited: Awaited,
    /// The records by serial and generation. A write of a last use changes a record's version, and nothing that is enforced.
    records: Vec<(u32, Option<i64>)>,
    api_key: ObjectRef<Watched>,
    /// Whether its pass is over, so that it has to be woken.
    is_parked: bool,
    is_counted: bool,
}

/// What the verifiers have answered.
pub(super) struct Answer {
    pub(super) enforcement: Enforcement,
    /// Those that were waited for in vain; empty if the Leases could not be read. `None`: nobody was.
    pub(super) missed: Option<Vec<Arc<str>>>,
}

impl Verifiers {
    pub(super) fn new(waits: Histogram) -> Self {
        Self { state: Mutex::default(), wanted: Notify::new(), looks: watch::Sender::default(), waits }
    }

    /// Whether every verifier decides by the records of this ApiKey as they were observed. Waits for a while, as long as that
    /// may help.
    pub(super) async fn ask(&self, observed: &Observed, purpose: Purpose) -> Answer {
        let mut looks = self.looks.subscribe();
        if observed.records.is_empty() {
            // There is nothing that a verifier could decide by.
            let verifiers = self.lock().fence.leases().count();
            return Answer { enforcement: Enforcement::Complete { verifiers }, missed: None };
        }
        let Some(awaited) = self.awaited(observed, clock::moment()) else {
            return Answer { enforcement: Enforcement::Pending(Pending::Unread), missed: None };
        };
        loop {
            let now = clock::moment();
            looks.mark_unchanged();
            let wait = self.lock().wait(&awaited, purpose, now);
            let missed = match wait {
                Wait::Until(until) => {
                    self.wanted.notify_one();
                    // The next turn tells whether it is over.
                    let _ = timeout(until.since(now), looks.changed()).await;
                    continue;
                }
                Wait::Over => None,
                Wait::Missed(on) => Some(on),
            };
            return Answer { enforcement: self.settle(&observed.reference.uid, &awaited, now), missed };
        }
    }

    /// Forgets an ApiKey that nothing is left to do for.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().waiting.remove(uid);
    }

    /// Looks for ever, and wakes those that are held up no more.
    pub(super) async fn look_for_ever(
        &self,
        cluster: &Cluster,
        memory: &Memory,
        waking: &UnboundedSender<ObjectRef<Watched>>,
        errors: &WatchErrors,
    ) -> Infallible {
        let mut pause = Duration::ZERO;
        loop {
            let evictions = match self.look(cluster).await {
                Ok(evictions) => evictions,
                Err(error) => {
                    errors.note("leases", error.watch_kind(), &error, Instant::now());
                    Vec::new()
                }
            };
            for (uid, api_key) in self.lock().released(clock::moment(), &self.waits) {
                memory.disturb(&uid);
                // The receiver is gone only while the controller stops.
                let _ = waking.unbounded_send(api_key);
            }
            self.looks.send_modify(|looks| *looks += 1);
            if !evictions.is_empty() {
                for eviction in evictions {
                    evict(cluster, &eviction).await;
                }
                continue;
            }
            let rest = self.lock().rest(clock::moment());
            if timeout(rest, self.wanted.notified()).await.is_ok() {
                pause = self.lock().pause(pause);
                sleep(pause).await;
            }
        }
    }

    /// Takes in what the Leases say now. Answers with those that have run out.
    async fn look(&self, cluster: &Cluster) -> Result<Vec<Eviction>, Error> {
        let look = self.lock().fence.look();
        let (leases, version) = leases(cluster).await?;
        let records: RecordVersion = parse(&cluster.record_pages().newest_version().await?)?;
        let now = clock::moment();
        let mut state = self.lock();
        state.fence.looked(&look, &View { leases: &leases, version, records }, now);
        Ok(state.fence.overdue(now).collect())
    }

    /// What is awaited for the records as they were observed. `None`: one of them has no version that can be compared.
    fn awaited(&self, observed: &Observed, now: Moment) -> Option<Awaited> {
        let version = |record: &Record| record.metadata.resource_version.as_deref()?.parse().ok();
        let versions: Vec<RecordVersion> = observed.records.iter().map(version).collect::<Option<_>>()?;
        let newest = versions.into_iter().max()?;
        let records: Vec<_> =
            observed.records.iter().map(|record| (record.spec.serial, record.metadata.generation)).collect();
        let mut state = self.lock();
        let reference = &observed.reference;
        if let Some(waiting) = state.waiting.get(&reference.uid).filter(|waiting| waiting.records == records) {
            return Some(waiting.awaited);
        }
        state.is_fresh = true;
        let awaited = state.fence.awaited(newest, now);
        let api_key = ObjectRef::new(&reference.name).within(&reference.namespace);
        let waiting = Waiting { awaited, records, api_key, is_parked: false, is_counted: false };
        state.waiting.insert(reference.uid.clone(), waiting);
        Some(awaited)
    }

    /// The answer at the end of a wait. Parks the ApiKey if others are still to acknowledge.
    fn settle(&self, uid: &str, awaited: &Awaited, now: Moment) -> Enforcement {
        let mut state = self.lock();
        let verdict = state.fence.judge(awaited, now);
        match &verdict {
            // What was awaited before is void. The next pass reads the records again.
            Verdict::Restored { .. } => drop(state.waiting.remove(uid)),
            verdict => {
                if let Some(waiting) = state.waiting.get_mut(uid) {
                    waiting.note(verdict, now, &self.waits);
                }
            }
        }
        let clock = Clock { now: clock::now(), boot: now };
        enforcement(verdict, clock)
    }

    /// Calls `visit` with the fence and when the oldest write was made that is not enforced.
    pub(super) fn visit<T>(&self, visit: impl FnOnce(&Fence, Option<Moment>) -> T) -> T {
        let state = self.lock();
        let oldest =
            state.waiting.values().filter(|waiting| !waiting.is_counted).map(|waiting| waiting.awaited.since());
        visit(&state.fence, oldest.min())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wait(&mut self, awaited: &Awaited, purpose: Purpose, now: Moment) -> Wait {
        let wait = self.fence.wait(awaited, purpose.patience(), now);
        let is_telling = matches!(self.fence.judge(awaited, now), Verdict::Passed { .. } | Verdict::Waiting { .. });
        match &wait {
            _ if is_telling => self.is_blind = false,
            Wait::Until(_) if self.is_blind && !self.is_fresh => return Wait::Over,
            Wait::Missed(on) if purpose == Purpose::Delivery => self.is_blind = on.is_empty(),
            _ => {}
        }
        wait
    }

    /// Those that are parked and held up no more.
    fn released(&mut self, now: Moment, waits: &Histogram) -> Vec<(String, ObjectRef<Watched>)> {
        let mut released = Vec::new();
        for (uid, waiting) in self.waiting.iter_mut().filter(|(_, waiting)| waiting.is_parked) {
            let verdict = self.fence.judge(&waiting.awaited, now);
            waiting.note(&verdict, now, waits);
            if !waiting.is_parked {
                released.push((uid.clone(), waiting.api_key.clone()));
            }
        }
        released
    }

    /// How long nobody has to look, unless somebody wants it.
    fn rest(&self, now: Moment) -> Duration {
        let is_parked = self.waiting.values().any(|waiting| waiting.is_parked);
        let longest = if is_parked { WHILE_PARKED } else { AT_REST };
        self.fence.next_overdue().map_or(longest, |overdue| overdue.since(now).min(longest))
    }

    /// How long to wait before a look that somebody wants.
    fn pause(&mut self, last: Duration) -> Duration {
        let is_fresh = std::mem::take(&mut self.is_fresh);
        match self.fence.leases().next() {
            None => Duration::ZERO,
            Some(_) if is_fresh => FIRST_PAUSE,
            Some(_) if last == FIRST_PAUSE => SECOND_PAUSE,
            Some(_) => (last * 2).clamp(SECOND_PAUSE, LONGEST_PAUSE),
        }
    }
}

impl Waiting {
    fn note(&mut self, verdict: &Verdict, now: Moment, waits: &Histogram) {
        let is_over = matches!(verdict, Verdict::Passed { .. });
        self.is_parked = !is_over;
        if is_over && !self.is_counted {
            self.is_counted = true;
            waits.observe(now.since(self.awaited.since()).as_secs_f64());
        }
    }
}

/// One moment by two clocks.
#[derive(Clone, Copy)]
struct Clock {
    now: Timestamp,
    boot: Moment,
}

impl Clock {
    /// The whole second at which `moment` is over.
    fn second(self, moment: Moment) -> Timestamp {
        let left = SignedDuration::try_from(moment.since(self.boot)).unwrap_or(SignedDuration::MAX);
        let at = self.now.saturating_add(left).unwrap_or(Timestamp::MAX);
        let is_whole = at.subsec_nanosecond() == 0;
        let second = if is_whole { at.as_second() } else { at.as_second().saturating_add(1) };
        Timestamp::from_second(second).unwrap_or(Timestamp::MAX)
    }
}

fn enforcement(verdict: Verdict, clock: Clock) -> Enforcement {
    Enforcement::Pending(match verdict {
        Verdict::Passed { verifiers } => return Enforcement::Complete { verifiers },
        Verdict::Waiting { on, latest } => Pending::Verifiers { on, latest: clock.second(latest) },
        Verdict::Unlooked => Pending::Unread,
        Verdict::Incomplete => Pending::TooManyLeases,
        Verdict::Restored { until } => Pending::Restored { until: clock.second(until) },
    })
}

/// All Leases of the system namespace, as they are at the moment of the first request or later, and the list's version.
async fn leases(cluster: &Cluster) -> Result<(Vec<Lease>, LeaseVersion), Error> {
    let mut parameters = ListParams::default().limit(PAGE);
    let mut leases = Vec::new();
    loop {
        let page = cluster.leases().list(&parameters).await?;
        leases.extend(page.items);
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        // More are not looked at, and nothing passes then.
        if next.is_none() || leases.len() > MOST_LEASES + 1 {
            let version = parse(page.metadata.resource_version.as_deref().unwrap_or_default())?;
            return Ok((leases, version));
        }
        parameters.continue_token = next;
    }
}

fn parse<V: std::str::FromStr>(version: &str) -> Result<V, Error> {
    version.parse().map_err(|_| Error::NoVersion)
}

/// Removes a Lease that has run out, if it is still the same. Best effort: the next look tells.
async fn evict(cluster: &Cluster, eviction: &Eviction) {
    let Eviction { name, precondition } = eviction;
    match lease::delete(&cluster.leases(), name, precondition).await {
        Ok(true) => info!(lease = %name, "removed the Lease of a verifier that has let it run out"),
        Ok(false) => {
            warn!(lease = %name, "a finalizer keeps the Lease of a verifier that has let it run out: remove it")
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => {
            warn!(
                lease = %name, %error,
                "cannot remove the Lease of a verifier that has let it run out: deletions wait. Check the controller's rights"
            );
            sleep(WHILE_PARKED).await;
        }
    }
}
