//! The records, from the API server to a [`Keyring`]; and how far that keyring can be relied on.
//!
//! ```text
//! list, paged, consistent ──> keyring, swapped whole ──> watch from the list's version ──> keyring, record by record
//!      ^                                                       │ ends: opened again from the last version seen
//!      └─ the version is gone (410), or from the future, or a goal is not reached ──┘
//! ```
//!
//! What is known is as old as the moment at which the newest goal that was reached was asked for. A goal is the newest
//! version that there is, by a consistent read; the watch reaches it by an event or a bookmark with that version or a later
//! one. Events below it, and that a watch is open or ends, prove nothing: the cache that a watch is served from may stand
//! still (kubernetes/kubernetes#97294, #138728). A watch that does not get there in time is dropped and all records are
//! listed anew, as a list does not come from where the watch does.
//!
//! All pages of a list show the records as they were at its first one. So a list proves what was written before it was asked
//! for, and what is written while its pages are read comes with the watch, which begins with a goal of its own.
//!
//! Every read asks for the newest data: a list at `resourceVersion=0`, or one that is streamed, may be older than what
//! this very process had seen before, and bring a revoked key back.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::RandomState;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use futures::TryStreamExt;
use kube::Resource;
use kube::api::{WatchEvent, WatchParams};
use kube::client::Client;
use kube::core::{Request, Status};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{error::Elapsed, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::pages::Pages;
use crate::telemetry::{WatchErrorKind, WatchErrors};
use keywright_core::api::ApiKeyRecord;
use keywright_core::keyring::{Contest, Distrust, Keyring, StoredRecord};
use keywright_core::resource_version::{compare, is_older};
use keywright_core::usage::{self, Marks, Told};

/// The newest keyring, shared by whoever follows the API server and all who decide.
pub struct Feed {
    keyring: ArcSwap<Keyring>,
    /// Whether a first list is complete, and what was written while it was read is known too.
    is_synced: AtomicBool,
    lease_duration: Duration,
    /// What `known` counts from.
    origin: Instant,
    /// When the newest goal was asked for that was reached, in milliseconds since `origin`.
    known: AtomicU64,
    errors: WatchErrors,
    marks: Marks,
    told: watch::Sender<Told>,
}

/// Why there is no keyring to rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// The first list of records is not complete, or what was written while it was read is not known yet.
    #[error("the records are not read yet: waiting for the API server's list of apikeyrecords, and its watch of them")]
    Syncing,
    /// What is known is as old as the lease duration, or older.
    #[error(
        "what is known of the records is {} s old: check that the API server can be reached, and what the log says of its \
         answers", .0.as_secs()
    )]
    Stale(Duration),
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// For one page of a list.
    page: Duration,
    /// For the API server to end a watch that has no goal to reach.
    watch: Duration,
    /// The same for one that has. Where no record changes, only a bookmark tells that it has reached it, and the API server
    /// sends one two seconds before it ends a watch (KEP-956).
    catch_up: Duration,
    /// For a watch to be answered; and to reach a goal, however often it is opened and a newer goal is asked for meanwhile. kube-apiserver has
    /// no bookmark for a watch while the newest write of all is that of a record in another namespace, and the next
    /// goal is past that, mostly.
    reach: Duration,
    /// For any goal to be reached, or else all records are listed anew, whatever has held it up.
    renewal: Duration,
    /// Before the first retry; doubled with each one after it.
    first_retry: Duration,
    longest_retry: Duration,
    /// A watch that ends sooner than this, and brought neither an event nor reached its goal, counts as a failure, or a
    /// server that ends them all at once would be asked without pause.
    shortest_watch: Duration,
}

impl Pace {
    /// What is known is oldest when the next goal is reached, or the list complete that takes its place: 39 s after it was
    /// asked for, or seven tenths of a short lease, and as long as the answers take.
    fn within(lease_duration: Duration) -> Self {
        let fifth = lease_duration / 5;
        let seconds = |seconds| fifth.min(Duration::from_secs(seconds));
        Self {
            page: Duration::from_secs(10),
            watch: seconds(20),
            catch_up: seconds(3),
            reach: seconds(10),
            renewal: (lease_duration / 2).min(Duration::from_secs(300)),
            first_retry: Duration::from_millis(100),
            longest_retry: seconds(5),
            shortest_watch: Duration::from_millis(500),
        }
    }
}

/// How long to wait for the end of a watch that should last so long. More silence than that is a connection whose other end
/// is gone; nothing else would tell, as kube sets no TCP keepalive.
fn longest(watch: Duration) -> Duration {
    watch + (watch / 4).min(Duration::from_secs(5))
}

impl Feed {
    /// A feed that knows nothing yet at `now`, and that is stale once what it knows is as old as `lease_duration`.
    pub fn new(lease_duration: Duration, now: Instant) -> Self {
        Self {
            keyring: ArcSwap::default(),
            is_synced: AtomicBool::new(false),
            lease_duration,
            origin: now,
            known: AtomicU64::new(0),
            errors: WatchErrors::default(),
            marks: Marks::default(),
            told: watch::Sender::default(),
        }
    }

    /// The same feed, whose errors are counted and told by `errors`.
    pub fn with_errors(self, errors: WatchErrors) -> Self {
        Self { errors, ..self }
    }

    /// The keyring to decide from at `now`: for one decision, and not to be kept. It is borrowed, since a count of its
    /// users would be one number that all threads write.
    ///
    /// # Errors
    /// If there is none, or none to rely on any more.
    pub fn current(&self, now: Instant) -> Result<Guard<Arc<Keyring>>, Unready> {
        if !self.is_synced.load(Ordering::Acquire) {
            return Err(Unready::Syncing);
        }
        // Before the keyring is looked at, which may become newer meanwhile, and not older.
        let age = self.age(now);
        if age >= self.lease_duration { Err(Unready::Stale(age)) } else { Ok(self.keyring.load()) }
    }

    /// How old what is known is at `now`: the keyring shows all that was written longer ago.
    pub fn age(&self, now: Instant) -> Duration {
        let known = Duration::from_millis(self.known.load(Ordering::Acquire));
        now.saturating_duration_since(self.origin).saturating_sub(known)
    }

    /// Number of records in the newest keyring.
    pub fn records(&self) -> usize {
        self.keyring.load().len()
    }

    /// When the keys of all records were last used. Their slots are those of the keyring.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The newest keyring, whether it can be relied on or not.
    pub fn newest(&self) -> Arc<Keyring> {
        self.keyring.load_full()
    }

    /// What the watch tells of last uses, as it comes in. Whoever sees one in [`Feed::marks`] sees it here too.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.subscribe()
    }

    /// Keeps the keyring in step with the records in `namespace`. Never gives up.
    ///
    /// `client` should neither retry nor have a read timeout: both are done here.
    pub async fn follow(&self, client: Client, namespace: &str) -> Infallible {
        self.follow_at(client, namespace, Pace::within(self.lease_duration)).await
    }

    async fn follow_at(&self, client: Client, namespace: &str, pace: Pace) -> Infallible {
        let url_path = ApiKeyRecord::url_path(&(), Some(namespace));
        let mut follower = Follower {
            feed: self,
            client,
            url_path,
            pace,
            keyring: Keyring::new(RandomState::new()),
            version: None,
            goals: VecDeque::new(),
            pursued_since: None,
            renewed: Instant::now(),
        };
        let mut retry = pace.first_retry;
        loop {
            match follower.advance().await {
                Ok(()) => retry = pace.first_retry,
                Err(interruption) => {
                    self.errors.note("apikeyrecords", interruption.kind(), &interruption, Instant::now());
                    debug!(%interruption, retry_in = ?retry, "cannot follow the records");
                    follower.suffer(&interruption);
                    // Jitter, so that verifiers that were cut off together do not come back together.
                    sleep(retry.mul_f64(rand::random_range(0.5..=1.0))).await;
                    retry = (retry * 2).min(pace.longest_retry);
                }
            }
        }
    }

    /// A feed in step with records that give `keyring`.
    #[cfg(test)]
    pub(crate) fn holding(keyring: &Keyring) -> Self {
        let feed = Self::new(Duration::from_secs(600), Instant::now());
        feed.publish(keyring);
        feed.rely(Instant::now());
        feed
    }

    fn publish(&self, keyring: &Keyring) {
        self.marks.reach(keyring.slots());
        self.keyring.store(Arc::new(keyring.clone()));
    }

    /// Lets decisions be made from the keyring, which shows all that was written before `asked`.
    fn rely(&self, asked: Instant) {
        let known = asked.saturating_duration_since(self.origin).as_millis();
        self.known.fetch_max(u64::try_from(known).unwrap_or(u64::MAX), Ordering::AcqRel);
        self.is_synced.store(true, Ordering::Release);
    }
}

/// The one writer of a [`Feed`].
struct Follower<'f> {
    feed: &'f Feed,
    client: Client,
    /// Where the records are.
    url_path: String,
    pace: Pace,
    keyring: Keyring,
    /// The version that `keyring` has reached; `None` if it has to be read anew.
    version: Option<String>,
    /// What `version` has yet to reach, in the order in which it was asked for; at most [`GOALS`].
    goals: VecDeque<Goal>,
    /// When the first watch was opened that has not reached a goal, while the API server answered all along.
    pursued_since: Option<Instant>,
    /// When a goal was last reached, or a list complete.
    renewed: Instant,
}

/// A version that was the newest one.
#[derive(Clone, Debug)]
struct Goal {
    version: String,
    /// Before it was asked for. All that the API server had answered to by then is known once the version is reached.
    asked: Instant,
}

/// Goals to wait for: a newer one then takes the place of the newest.
const GOALS: usize = 8;

/// As much of an ApiKeyRecord as is needed, so that one that is odd elsewhere does not spoil a whole page.
#[derive(Clone, Debug, Deserialize)]
struct Record {
    metadata: RecordMetadata,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordMetadata {
    name: String,
    #[serde(default)]
    resource_version: String,
    /// In RFC 3339. What is no time counts as none, and does not spoil a whole page either.
    #[serde(default)]
    creation_timestamp: Value,
}

impl Record {
    fn stored(&self) -> StoredRecord<'_> {
        let created = self.metadata.creation_timestamp.as_str().and_then(|text| text.parse().ok());
        StoredRecord { name: &self.metadata.name, created, spec: &self.spec }
    }

    /// Its slot, and the second of its key's last use.
    fn last_use_in(&self, keyring: &Keyring) -> Option<(u32, u32)> {
        let last_used_at = self.status.get("lastUsedAt")?.as_str()?.parse().ok()?;
        Some((keyring.slot_of(self.stored())?, usage::second(last_used_at)))
    }
}

/// Why a list or a watch broke off.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Request(#[from] kube::Error),
    #[error("the watch ended in an error: {} (code {})", .0.message, .0.code)]
    Watch(Box<Status>),
    #[error("an event cannot be read: {0}")]
    Event(kube::Error),
    #[error("the list has no resourceVersion to watch from")]
    NoVersion,
    #[error("no answer in time")]
    Silence(#[from] Elapsed),
    #[error("the watch tells of version {0}, which is past: all records are read anew")]
    Past(String),
    #[error("the watch is not answered in time")]
    Unanswered,
    #[error("the watch does not end when it should: its connection is taken for dead")]
    DeadWatch,
    #[error("the watch ended as soon as it had begun")]
    CutShort,
    #[error(
        "the watch has come to version {reached} and not to version {goal}, which the API server's lists have reached: all \
         records are read anew"
    )]
    NotReached { reached: String, goal: String },
}

impl Follower<'_> {
    /// Sets a goal, or reads all records where there is no way from what is known to one; and follows the watch that is to
    /// reach it, and the one after that to its end.
    async fn advance(&mut self) -> Result<(), Interruption> {
        if self.version.is_none() || self.renewed.elapsed() >= self.pace.renewal || !self.aim().await? {
            self.relist().await?;
        }
        if !self.goals.is_empty() {
            self.watch(self.pace.catch_up).await?;
        }
        // Where it has not reached them, a newer goal may be easier to reach.
        if self.goals.is_empty() { self.watch(self.pace.watch).await } else { Ok(()) }
    }

    /// Takes in that it could not go on.
    fn suffer(&mut self, interruption: &Interruption) {
        if interruption.voids_version() {
            self.version = None;
        }
        if interruption.explains_delay() {
            self.pursued_since = None;
        }
    }

    /// Makes the newest version the goal. `false` if the API server is at an older one than `version`: its etcd was restored
    /// from a backup. It takes a watch from the future without complaint and says nothing on it until the future is
    /// reached; a key revoked in the meantime would stay good here.
    async fn aim(&mut self) -> Result<bool, Interruption> {
        let asked = Instant::now();
        let newest = self.newest_version().await?;
        let is_rewound = self.version.as_ref().is_some_and(|version| is_older(&newest, version));
        if is_rewound {
            warn!(version = self.version, newest, "the API server has gone back in time: reading all records anew");
        } else {
            self.goals.truncate(GOALS - 1);
            self.goals.push_back(Goal { version: newest, asked });
            self.settle();
        }
        Ok(!is_rewound)
    }

    /// Relies on the keyring as of when the newest goal was asked for that it has reached.
    fn settle(&mut self) {
        let reached = self.version.as_deref().unwrap_or_default();
        let is_reached = |goal: &Goal| reached == goal.version || !is_older(reached, &goal.version);
        let count = self.goals.iter().rposition(is_reached).map_or(0, |last| last + 1);
        let newest = self.goals.drain(..count).next_back();
        if let Some(newest) = newest {
            self.rely(newest.asked);
        }
    }

    fn rely(&mut self, asked: Instant) {
        if !self.feed.is_synced.load(Ordering::Acquire) {
            info!(version = self.version, "all records are known");
        }
        self.feed.rely(asked);
        self.pursued_since = None;
        self.renewed = Instant::now();
    }

    /// Reads all records, and swaps the keyring only once it is complete. What is gone from the list is gone from it.
    async fn relist(&mut self) -> Result<(), Interruption> {
        let asked = Instant::now();
        let mut keyring = self.keyring.successor();
        let (mut pages, mut version) = (self.pages(), String::new());
        while let Some(page) = timeout(self.pace.page, pages.next::<Record>()).await?? {
            self.take_in(&mut keyring, &page.items);
            version = page.resource_version;
        }
        if version.is_empty() {
            return Err(Interruption::NoVersion);
        }
        info!(records = keyring.len(), version, "all records read");
        self.keyring = keyring;
        self.version = Some(version);
        self.feed.publish(&self.keyring);
        self.pursued_since = None;
        self.renewed = Instant::now();
        // The list was asked for after a goal that is still open, so it has reached that one. Decisions do not begin with a
        // first list, though, before what was written while it was read is known too.
        let is_first = self.goals.is_empty() && !self.feed.is_synced.load(Ordering::Acquire);
        self.goals.clear();
        if !is_first {
            self.rely(asked);
        }
        self.aim().await?;
        Ok(())
    }

    /// Takes in some records of a list. That there is one is counted first, so that whoever sees a use has it counted.
    fn take_in(&self, keyring: &mut Keyring, records: &[Record]) {
        self.feed.told.send_modify(|told| told.lists += 1);
        for record in records {
            let is_new = || self.keyring.slot_of(record.stored()).is_none();
            tell(record, keyring.carry_over(&self.keyring, record.stored()), is_new);
            self.note_listed_use(keyring, record);
        }
    }

    async fn newest_version(&self) -> Result<String, Interruption> {
        let newest = timeout(self.pace.page, self.pages().newest_version()).await??;
        Some(newest).filter(|version| !version.is_empty()).ok_or(Interruption::NoVersion)
    }

    fn pages(&self) -> Pages {
        Pages::new(self.client.clone(), &self.url_path)
    }

    /// Follows a watch of such a length from where the last one came to, until it ends or has not reached its goal in time.
    async fn watch(&mut self, duration: Duration) -> Result<(), Interruption> {
        let version = self.version.clone().ok_or(Interruption::NoVersion)?;
        let seconds = u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).max(1);
        let parameters = WatchParams::default().timeout(seconds);
        let request = Request::new(&*self.url_path).watch(&parameters, &version).map_err(kube::Error::BuildRequest)?;
        let opened = Instant::now();
        if !self.goals.is_empty() {
            self.pursued_since.get_or_insert(opened);
        }
        let end = opened + longest(duration);
        let answered = self.deadline(end.min(opened + self.pace.reach));
        let ended = match timeout_at(answered, self.client.request_events(request)).await {
            Err(_) => Err(Interruption::Unanswered),
            Ok(events) => {
                let mut events = pin!(events?);
                loop {
                    match timeout_at(self.deadline(end), events.try_next()).await {
                        // A server knows no time below a second.
                        Err(_) if opened.elapsed() < Duration::from_secs(seconds.into()) => break Ok(()),
                        Err(_) => break Err(Interruption::DeadWatch),
                        Ok(event) => match event.map_err(Interruption::of_watch)? {
                            Some(event) => self.apply(event)?,
                            None => break Ok(()),
                        },
                    }
                    self.settle();
                }
            }
        };
        if let Some(goal) = self.goals.back()
            && self.pursued_since.is_some_and(|since| since.elapsed() >= self.pace.reach)
        {
            let reached = self.version.clone().unwrap_or_default();
            return Err(Interruption::NotReached { reached, goal: goal.version.clone() });
        }
        ended?;
        let is_in_vain = !self.goals.is_empty() || self.version.as_ref() == Some(&version);
        if is_in_vain && opened.elapsed() < self.pace.shortest_watch { Err(Interruption::CutShort) } else { Ok(()) }
    }

    /// When to wait no longer for a watch that should be over at `end`.
    fn deadline(&self, end: Instant) -> tokio::time::Instant {
        let pursued_since = self.pursued_since.filter(|_| !self.goals.is_empty());
        pursued_since.map_or(end, |since| end.min(since + self.pace.reach)).into()
    }

    /// Takes note of a last use that the watch tells of. It is counted first, so that whoever sees it has it counted.
    fn note_last_use(&self, record: &Record) {
        let Some((slot, second)) = record.last_use_in(&self.keyring) else { return };
        if self.feed.marks.usage(slot).written < second {
            self.feed.told.send_modify(|told| told.writes += 1);
            self.feed.marks.note_written(slot, second);
        }
    }

    /// Takes note of a last use in a list, which may stand for any number of writes.
    fn note_listed_use(&self, keyring: &Keyring, record: &Record) {
        let Some((slot, second)) = record.last_use_in(keyring) else { return };
        self.feed.marks.reach(keyring.slots());
        self.feed.marks.note_written(slot, second);
    }

    fn apply(&mut self, event: WatchEvent<Record>) -> Result<(), Interruption> {
        let told = match &event {
            WatchEvent::Added(record) | WatchEvent::Modified(record) | WatchEvent::Deleted(record) => {
                &record.metadata.resource_version
            }
            WatchEvent::Bookmark(bookmark) => &bookmark.metadata.resource_version,
            WatchEvent::Error(_) => "",
        };
        // What is past is never told again by a server that is in step, and could bring back a key that was revoked since.
        if self.version.as_ref().is_some_and(|version| compare(told, version).is_some_and(|order| order.is_lt())) {
            return if matches!(event, WatchEvent::Bookmark(_)) {
                Ok(())
            } else {
                Err(Interruption::Past(told.to_owned()))
            };
        }
        let version = match event {
            WatchEvent::Added(record) => {
                tell(&record, self.keyring.upsert(record.stored()), || true);
                self.feed.publish(&self.keyring);
                self.note_last_use(&record);
                record.metadata.resource_version
            }
            WatchEvent::Modified(record) => {
                tell(&record, self.keyring.replace(record.stored()), || false);
                self.feed.publish(&self.keyring);
                self.note_last_use(&record);
                record.metadata.resource_version
            }
            WatchEvent::Deleted(record) => {
                self.keyring.remove(record.stored());
                self.feed.publish(&self.keyring);
                record.metadata.resource_version
            }
            WatchEvent::Bookmark(bookmark) => bookmark.metadata.resource_version,
            WatchEvent::Error(status) => return Err(Interruption::Watch(status)),
        };
        debug!(%version, "records changed");
        if !version.is_empty() {
            self.version = Some(version);
        }
        Ok(())
    }
}

/// Logs what is odd about a record. That it contests another one's digest is told once, when it comes.
fn tell(record: &Record, taken_in: Result<Option<Contest>, Distrust>, is_new: impl FnOnce() -> bool) {
    match taken_in {
        Ok(Some(Contest { older, younger })) if is_new() => warn!(
            record = %younger, %older,
            "the record claims a key that an older record has: it counts for nothing, and should be deleted"
        ),
        Ok(_) => {}
        Err(distrust) => warn!(record = record.metadata.name, %distrust, "a key is refused because of its record"),
    }
}

impl Interruption {
    /// kube reports a line that it cannot read in several ways, among them as a `Status` without a code.
    fn of_watch(error: kube::Error) -> Self {
        match error {
            kube::Error::ReadEvents(_) => Self::Request(error),
            _ => Self::Event(error),
        }
    }

    /// Whether the records have to be read anew: the version is too old to watch from (410), an event was lost because it
    /// could not be read, or the watch does not come from where the lists do.
    fn voids_version(&self) -> bool {
        self.kind() == WatchErrorKind::Expired
            || matches!(self, Self::Event(_) | Self::Past(_) | Self::NotReached { .. })
    }

    /// Whether it is the API server that holds a goal up, or the way to it, and not what the watch is served from.
    fn explains_delay(&self) -> bool {
        !matches!(self, Self::Unanswered | Self::DeadWatch | Self::CutShort)
    }

    fn kind(&self) -> WatchErrorKind {
        match self {
            Self::Request(error) | Self::Event(error) => WatchErrorKind::of(error),
            Self::Watch(status) => WatchErrorKind::of_status(status),
            Self::Silence(_) | Self::Unanswered | Self::DeadWatch => WatchErrorKind::Unreachable,
            Self::NoVersion | Self::Past(_) | Self::CutShort | Self::NotReached { .. } => WatchErrorKind::Other,
        }
    }
}

#[cfg(test)]
mod tests;
