//! I/O. Follows the records and keeps a [`Keyring`] of them. Knows how old the keyring is.
//!
//! ```text
//! list, paged, consistent ──> keyring, swapped whole ──> watch from the list's version ──> keyring, record by record
//!      ^                                                       │ ends: opened again from the last version seen
//!      └─ the version is gone (410), or from the future, or a goal is not reached ──┘
//! ```
//!
//! A goal is the newest version of the records, from a consistent read. The watch reaches a goal with an event or a bookmark
//! of that version or a later one. The records are then as new as the request for that goal. Other events prove nothing, and
//! neither does an open watch or its end: the cache behind a watch may have stopped
//! (kubernetes/kubernetes#97294, #138728). If a watch does not reach a goal in time, it is dropped and all records are listed
//! again, because a list does not come from that cache.
//!
//! All pages of a list show the state at its first page. So a list proves everything that was written before its request.
//! Later writes come with the watch, which begins with its own goal.
//!
//! Every read asks for the newest data. A list at `resourceVersion=0`, or a streamed one, may be older than what this process
//! has already seen, and could bring a revoked key back.

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
use keywright_core::keyring::{Contest, Keyring, RecordError, StoredRecord};
use keywright_core::resource_version::{compare, is_older};
use keywright_core::usage::{self, LastUses, SeenWrites};

/// The newest keyring. Shared by the task that follows the API server and the threads that decide.
pub struct Feed {
    keyring: ArcSwap<Keyring>,
    /// Whether the records are synced: the first list is complete, and so are the writes during it.
    is_synced: AtomicBool,
    lease_duration: Duration,
    /// The start of `known`.
    origin: Instant,
    /// When the newest reached goal was requested, in milliseconds since `origin`.
    known: AtomicU64,
    errors: WatchErrors,
    last_uses: LastUses,
    seen_writes: watch::Sender<SeenWrites>,
}

/// Why there is no keyring to decide from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// The first list of records is not complete, or the writes during it are not seen yet.
    #[error("not synced: waiting for the API server's list and watch of apikeyrecords")]
    Syncing,
    /// The records are as old as the lease duration, or older.
    #[error("stale: the records are {} s old. Check that the API server is reachable; the log has its answers", .0.as_secs())]
    Stale(Duration),
}

/// Time limits of lists and watches.
#[derive(Clone, Copy, Debug)]
struct Timings {
    /// For one page of a list to arrive.
    page: Duration,
    /// The requested length of a watch without a goal.
    watch: Duration,
    /// The requested length of a watch with a goal. If no record changes, only a bookmark can reach the goal. The API server
    /// sends one two seconds before it ends a watch (KEP-956).
    catch_up: Duration,
    /// For the answer to a watch, and for reaching a goal, over any number of watches and newer goals. kube-apiserver sends no
    /// bookmark while the newest write is that of a record in another namespace. Usually the next goal is past that.
    reach: Duration,
    /// For reaching any goal. Otherwise all records are listed again, whatever the cause.
    renewal: Duration,
    /// The pause before the first retry. It doubles with each further retry.
    first_retry: Duration,
    /// The longest pause before a retry.
    longest_retry: Duration,
    /// A watch that ends sooner, without an event and without reaching its goal, counts as a failure. Otherwise a server that
    /// ends every watch at once would be asked without a pause.
    shortest_watch: Duration,
}

impl Timings {
    /// The records are oldest just before the next goal is reached, or the list that replaces it is complete. That is 39 s, or
    /// seven tenths of a short lease, plus the time of the answers.
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

/// How long to wait for the end of a watch with this requested length. After that its connection counts as dead. Nothing else
/// would detect this, because kube does not set TCP keepalive.
fn longest(watch: Duration) -> Duration {
    watch + (watch / 4).min(Duration::from_secs(5))
}

impl Feed {
    /// A feed without records at `now`. It is stale when the records are as old as `lease_duration`.
    pub fn new(lease_duration: Duration, now: Instant) -> Self {
        Self {
            keyring: ArcSwap::from_pointee(Keyring::new(RandomState::new())),
            is_synced: AtomicBool::new(false),
            lease_duration,
            origin: now,
            known: AtomicU64::new(0),
            errors: WatchErrors::default(),
            last_uses: LastUses::default(),
            seen_writes: watch::Sender::default(),
        }
    }

    /// This feed, with errors counted and logged by `errors`.
    pub fn with_errors(self, errors: WatchErrors) -> Self {
        Self { errors, ..self }
    }

    /// The keyring for one decision at `now`. Do not keep it. It is borrowed, because all threads would write the same reference
    /// count.
    ///
    /// # Errors
    /// If the records are not synced, or stale.
    pub fn current(&self, now: Instant) -> Result<Guard<Arc<Keyring>>, Unready> {
        if !self.is_synced.load(Ordering::Acquire) {
            return Err(Unready::Syncing);
        }
        // The age first: the keyring may become newer in between, never older.
        let age = self.age(now);
        if age >= self.lease_duration { Err(Unready::Stale(age)) } else { Ok(self.keyring.load()) }
    }

    /// How old the records are at `now`. The keyring has every write that is older than this.
    pub fn age(&self, now: Instant) -> Duration {
        let known = Duration::from_millis(self.known.load(Ordering::Acquire));
        now.saturating_duration_since(self.origin).saturating_sub(known)
    }

    /// Number of records in the newest keyring.
    pub fn records(&self) -> usize {
        self.keyring.load().len()
    }

    /// When the keys of all records were last used, by the keyring's slots.
    pub fn marks(&self) -> &LastUses {
        &self.last_uses
    }

    /// The newest keyring, even if it is stale.
    pub fn newest(&self) -> Arc<Keyring> {
        self.keyring.load_full()
    }

    /// The writes of last uses that the watch has shown. A write that is visible in [`Feed::marks`] is counted here already.
    pub fn seen_writes(&self) -> watch::Receiver<SeenWrites> {
        self.seen_writes.subscribe()
    }

    /// Keeps the keyring in sync with the records in `namespace`, for ever.
    ///
    /// `client` should not retry, and should not have a read timeout: this function does both.
    pub async fn follow(&self, client: Client, namespace: &str) -> Infallible {
        self.follow_at(client, namespace, Timings::within(self.lease_duration)).await
    }

    async fn follow_at(&self, client: Client, namespace: &str, timings: Timings) -> Infallible {
        let url_path = ApiKeyRecord::url_path(&(), Some(namespace));
        let mut follower = Follower {
            feed: self,
            client,
            url_path,
            timings,
            keyring: Keyring::new(RandomState::new()),
            version: None,
            goals: VecDeque::new(),
            pursued_since: None,
            renewed: Instant::now(),
        };
        let mut retry = timings.first_retry;
        loop {
            match follower.advance().await {
                Ok(()) => retry = timings.first_retry,
                Err(interruption) => {
                    self.errors.note("apikeyrecords", interruption.kind(), &interruption, Instant::now());
                    debug!(%interruption, retry_in = ?retry, "cannot follow the records");
                    follower.note_interruption(&interruption);
                    // Jitter, so that verifiers that lost the API server together do not come back together.
                    sleep(retry.mul_f64(rand::random_range(0.5..=1.0))).await;
                    retry = (retry * 2).min(timings.longest_retry);
                }
            }
        }
    }

    /// A synced feed with this `keyring`.
    #[cfg(test)]
    pub(crate) fn holding(keyring: &Keyring) -> Self {
        let feed = Self::new(Duration::from_secs(600), Instant::now());
        feed.publish(keyring);
        feed.rely(Instant::now());
        feed
    }

    fn publish(&self, keyring: &Keyring) {
        self.last_uses.reach(keyring.slots());
        self.keyring.store(Arc::new(keyring.clone()));
    }

    /// Notes that the keyring has every write before `asked`, so that decisions can use it.
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
    /// The URL path of the records.
    url_path: String,
    timings: Timings,
    keyring: Keyring,
    /// The version of `keyring`. `None` if all records must be listed again.
    version: Option<String>,
    /// The goals that `version` has not reached, the oldest first. At most [`GOALS`].
    goals: VecDeque<Goal>,
    /// When the first watch towards the open goals began. `None` if there is none, or the API server itself caused a delay.
    pursued_since: Option<Instant>,
    /// When a goal was last reached, or a list was complete.
    renewed: Instant,
}

/// A version that was the newest one when it was requested.
#[derive(Clone, Debug)]
struct Goal {
    version: String,
    /// Just before the request. When the version is reached, all writes before this moment are known.
    asked: Instant,
}

/// Maximum number of open goals. A further one replaces the newest.
const GOALS: usize = 8;

/// The fields of an ApiKeyRecord that are needed. A record that is malformed elsewhere then does not break its page.
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
    /// In RFC 3339. A value that is not a time counts as none, and does not break the page.
    #[serde(default)]
    creation_timestamp: Value,
}

impl Record {
    /// The one place where a record is read.
    fn read(&self) -> Result<StoredRecord<'_>, RecordError> {
        let created = self.metadata.creation_timestamp.as_str().and_then(|text| text.parse().ok());
        StoredRecord::read(&self.metadata.name, created, &self.spec)
    }

    /// The second of its key's last use.
    fn last_use(&self) -> Option<u32> {
        Some(usage::second(self.status.get("lastUsedAt")?.as_str()?.parse().ok()?))
    }
}

/// Why a list or a watch was interrupted.
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
    #[error("the watch went backwards to version {0}: listing all records again")]
    Past(String),
    #[error("the API server did not answer the watch in time")]
    Unanswered,
    #[error("the watch did not end in time: closing its connection")]
    DeadWatch,
    #[error("the watch ended at once, without an event")]
    CutShort,
    #[error(
        "the watch is behind: it is at version {reached}, and the API server's lists at {goal}. Listing all records again"
    )]
    NotReached { reached: String, goal: String },
}

impl Follower<'_> {
    /// Sets a goal and watches until it is reached, then watches once more. Lists all records first if a watch cannot go on.
    async fn advance(&mut self) -> Result<(), Interruption> {
        if self.version.is_none() || self.renewed.elapsed() >= self.timings.renewal || !self.aim().await? {
            self.relist().await?;
        }
        if !self.goals.is_empty() {
            self.watch(self.timings.catch_up).await?;
        }
        // If goals are still open, the next call sets a newer goal, which may be easier to reach.
        if self.goals.is_empty() { self.watch(self.timings.watch).await } else { Ok(()) }
    }

    /// Prepares the next try after an interruption.
    fn note_interruption(&mut self, interruption: &Interruption) {
        if interruption.voids_version() {
            self.version = None;
        }
        if interruption.explains_delay() {
            self.pursued_since = None;
        }
    }

    /// Makes the newest version the goal. `false` if it is older than `version`: etcd was restored from a backup. The API
    /// server accepts a watch from a future version and sends nothing until that version is reached. A key that is revoked
    /// meanwhile would stay valid here.
    async fn aim(&mut self) -> Result<bool, Interruption> {
        let asked = Instant::now();
        let newest = self.newest_version().await?;
        let is_rewound = self.version.as_ref().is_some_and(|version| is_older(&newest, version));
        if is_rewound {
            warn!(
                version = self.version,
                newest, "the API server's version went backwards (a restored backup?): listing all records again"
            );
        } else {
            self.goals.truncate(GOALS - 1);
            self.goals.push_back(Goal { version: newest, asked });
            self.settle();
        }
        Ok(!is_rewound)
    }

    /// Removes the reached goals, and notes the newest of them.
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
            info!(version = self.version, "synced: answering requests from now on");
        }
        self.feed.rely(asked);
        self.pursued_since = None;
        self.renewed = Instant::now();
    }

    /// Lists all records, and replaces the keyring when the list is complete. Records that are not in the list are dropped.
    async fn relist(&mut self) -> Result<(), Interruption> {
        let asked = Instant::now();
        let mut keyring = self.keyring.successor();
        let (mut pages, mut version) = (self.pages(), String::new());
        while let Some(page) = timeout(self.timings.page, pages.next::<Record>()).await?? {
            self.add_page(&mut keyring, &page.items);
            version = page.resource_version;
        }
        if version.is_empty() {
            return Err(Interruption::NoVersion);
        }
        info!(records = keyring.len(), version, "listed all records");
        self.keyring = keyring;
        self.version = Some(version);
        self.feed.publish(&self.keyring);
        self.pursued_since = None;
        self.renewed = Instant::now();
        // The list was requested after every open goal, so it has reached them. The first list alone is not enough for
        // decisions: the writes during it must be seen too.
        let is_first = self.goals.is_empty() && !self.feed.is_synced.load(Ordering::Acquire);
        self.goals.clear();
        if !is_first {
            self.rely(asked);
        }
        self.aim().await?;
        Ok(())
    }

    /// Adds a page of a list to `keyring`. Counts the list first, so that a visible last use is always counted.
    fn add_page(&self, keyring: &mut Keyring, records: &[Record]) {
        self.feed.seen_writes.send_modify(|seen| seen.lists += 1);
        for record in records {
            let stored = match record.read() {
                Ok(stored) => stored,
                Err(error) => {
                    log_distrust(record, Err(error), || false);
                    continue;
                }
            };
            let added = keyring.carry_over(&self.keyring, &stored);
            log_distrust(record, added, || self.keyring.slot_of(&stored).is_none());
            if let Some((slot, second)) = keyring.slot_of(&stored).zip(record.last_use()) {
                // It may stand for any number of writes.
                self.feed.last_uses.reach(keyring.slots());
                self.feed.last_uses.note_written(slot, second);
            }
        }
    }

    async fn newest_version(&self) -> Result<String, Interruption> {
        let newest = timeout(self.timings.page, self.pages().newest_version()).await??;
        Some(newest).filter(|version| !version.is_empty()).ok_or(Interruption::NoVersion)
    }

    fn pages(&self) -> Pages {
        Pages::new(self.client.clone(), &self.url_path)
    }

    /// Follows one watch of this length from the last version on, until it ends or the goal is not reached in time.
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
        let answered = self.deadline(end.min(opened + self.timings.reach));
        let ended = match timeout_at(answered, self.client.request_events(request)).await {
            Err(_) => Err(Interruption::Unanswered),
            Ok(events) => {
                let mut events = pin!(events?);
                loop {
                    match timeout_at(self.deadline(end), events.try_next()).await {
                        // The timeout of a watch is at least one second.
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
            && self.pursued_since.is_some_and(|since| since.elapsed() >= self.timings.reach)
        {
            let reached = self.version.clone().unwrap_or_default();
            return Err(Interruption::NotReached { reached, goal: goal.version.clone() });
        }
        ended?;
        let is_in_vain = !self.goals.is_empty() || self.version.as_ref() == Some(&version);
        if is_in_vain && opened.elapsed() < self.timings.shortest_watch { Err(Interruption::CutShort) } else { Ok(()) }
    }

    /// When to stop waiting for a watch that should be over at `end`.
    fn deadline(&self, end: Instant) -> tokio::time::Instant {
        let pursued_since = self.pursued_since.filter(|_| !self.goals.is_empty());
        pursued_since.map_or(end, |since| end.min(since + self.timings.reach)).into()
    }

    /// Has the keyring take in a record that has changed, and publishes it. Answers the record's version.
    fn change(
        &mut self,
        record: Record,
        is_new: bool,
        change: impl FnOnce(&mut Keyring, &StoredRecord<'_>) -> Result<Option<Contest>, RecordError>,
    ) -> String {
        match record.read() {
            Ok(stored) => {
                log_distrust(&record, change(&mut self.keyring, &stored), || is_new);
                self.feed.publish(&self.keyring);
                self.note_last_use(&stored, &record);
            }
            Err(error) => log_distrust(&record, Err(error), || is_new),
        }
        record.metadata.resource_version
    }

    /// Notes a last use from the watch. Counts it first, so that a visible last use is always counted.
    fn note_last_use(&self, stored: &StoredRecord<'_>, record: &Record) {
        let Some((slot, second)) = self.keyring.slot_of(stored).zip(record.last_use()) else { return };
        if self.feed.last_uses.usage(slot).written < second {
            self.feed.seen_writes.send_modify(|seen| seen.writes += 1);
            self.feed.last_uses.note_written(slot, second);
        }
    }

    fn apply(&mut self, event: WatchEvent<Record>) -> Result<(), Interruption> {
        let seen = match &event {
            WatchEvent::Added(record) | WatchEvent::Modified(record) | WatchEvent::Deleted(record) => {
                &record.metadata.resource_version
            }
            WatchEvent::Bookmark(bookmark) => &bookmark.metadata.resource_version,
            WatchEvent::Error(_) => "",
        };
        // A correct server never sends an old version again. An old event could bring back a revoked key.
        if self.version.as_ref().is_some_and(|version| compare(seen, version).is_some_and(|order| order.is_lt())) {
            return if matches!(event, WatchEvent::Bookmark(_)) {
                Ok(())
            } else {
                Err(Interruption::Past(seen.to_owned()))
            };
        }
        let version = match event {
            WatchEvent::Added(record) => self.change(record, true, Keyring::upsert),
            WatchEvent::Modified(record) => self.change(record, false, Keyring::replace),
            WatchEvent::Deleted(record) => self.change(record, false, |keyring, stored| {
                keyring.remove(stored);
                Ok(None)
            }),
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

/// Logs a record that cannot be read, or has the digest of another record. The latter only when the record is new.
fn log_distrust(record: &Record, added: Result<Option<Contest>, RecordError>, is_new: impl FnOnce() -> bool) {
    match added {
        Ok(Some(Contest { older, younger })) if is_new() => warn!(
            record = %younger, %older,
            "ignoring the record: an older record has the same digest. Delete the younger one"
        ),
        Ok(_) => {}
        Err(error) => {
            warn!(record = record.metadata.name, %error, "refusing a key: its record cannot be read. Correct the record")
        }
    }
}

impl Interruption {
    /// The interruption for an error of kube's watch. kube reports an unreadable event in several ways, also as a `Status`
    /// without a code.
    fn of_watch(error: kube::Error) -> Self {
        match error {
            kube::Error::ReadEvents(_) => Self::Request(error),
            _ => Self::Event(error),
        }
    }

    /// Whether all records must be listed again: the version is too old to watch from (410), an event was lost because it
    /// cannot be read, or the watch is behind the lists.
    fn voids_version(&self) -> bool {
        self.kind() == WatchErrorKind::Expired
            || matches!(self, Self::Event(_) | Self::Past(_) | Self::NotReached { .. })
    }

    /// Whether the API server or the network delays a goal, and not the cache behind the watch.
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
