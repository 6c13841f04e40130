//! I/O. Follows the records and keeps a [`Keyring`] of them. Tells the [`Membership`] what the keyring has reached.
//!
//! Nothing is asked before the membership orders it. Each order voids everything that was known, and begins with a new list.
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
//!
//! A version counts as reached once the keyring is swapped and nobody decides from an older one any more.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::pending;
use std::hash::RandomState;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

use crate::clock;
use crate::pages::Pages;
use crate::telemetry::{WatchErrorKind, WatchErrors};
use crate::verifier::membership::Membership;
use keywright_core::api::ApiKeyRecord;
use keywright_core::fence::{Moment, Progress, RecordVersion, Round};
use keywright_core::keyring::{Contest, Keyring, RecordError, StoredRecord};
use keywright_core::usage::{self, LastUses, SeenWrites};

/// The newest keyring. Shared by the task that follows the API server and the threads that decide.
pub struct Feed {
    keyring: ArcSwap<Keyring>,
    membership: Arc<Membership>,
    /// When the newest reached goal was requested, in milliseconds since the boot.
    known: AtomicU64,
    errors: WatchErrors,
    last_uses: LastUses,
    seen_writes: watch::Sender<SeenWrites>,
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
    /// A feed without records at `now`, of a verifier with this membership.
    pub fn new(membership: Arc<Membership>, now: Moment) -> Self {
        Self {
            keyring: ArcSwap::from_pointee(Keyring::new(RandomState::new())),
            membership,
            known: AtomicU64::new(milliseconds(now)),
            errors: WatchErrors::default(),
            last_uses: LastUses::default(),
            seen_writes: watch::Sender::default(),
        }
    }

    /// This feed, with errors counted and logged by `errors`.
    pub fn with_errors(self, errors: WatchErrors) -> Self {
        Self { errors, ..self }
    }

    /// The keyring for one decision. Ask [`Membership::read`] before the answer, and drop it then. It is borrowed, because all
    /// threads would write the same reference count.
    pub fn keyring(&self) -> Guard<Arc<Keyring>> {
        self.keyring.load()
    }

    /// Whether, and until when, keys of the keyring may be let in.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// How old the records are at `now`. The keyring has every write that is older than this.
    pub fn age(&self, now: Moment) -> Duration {
        now.since(Moment::since_boot(Duration::from_millis(self.known.load(Ordering::Acquire))))
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

    /// Keeps the keyring in sync with the records in `namespace`, for ever, from the membership's first order on.
    ///
    /// `client` should not retry, and should not have a read timeout: this function does both.
    pub async fn follow(&self, client: Client, namespace: &str) -> Infallible {
        self.follow_at(client, namespace, Timings::within(self.membership.holder().duration())).await
    }

    async fn follow_at(&self, client: Client, namespace: &str, timings: Timings) -> Infallible {
        let url_path = ApiKeyRecord::url_path(&(), Some(namespace));
        let mut follower = Follower {
            feed: self,
            client,
            url_path,
            timings,
            round: Round::default(),
            is_synced: false,
            keyring: Keyring::new(RandomState::new()),
            version: None,
            goals: VecDeque::new(),
            pursued_since: None,
            renewed: Instant::now(),
            replaced: Vec::new(),
            unreported: None,
        };
        let mut ordered = self.membership.ordered();
        loop {
            let round = *ordered.borrow_and_update();
            let follow = async {
                match round {
                    Some(round) => follower.follow(round).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                // Fails only without a sender, and the membership is the sender.
                _ = ordered.changed() => {}
                never = follow => match never {},
            }
        }
    }

    /// A feed with this `keyring`, of a verifier that lets keys in.
    #[cfg(test)]
    pub(crate) fn holding(keyring: &Keyring) -> Self {
        let feed = Self::new(Arc::new(Membership::serving(Duration::from_secs(600))), clock::moment());
        feed.publish(keyring);
        feed
    }

    /// A feed of a verifier that has not joined.
    #[cfg(test)]
    pub(crate) fn of_a_stranger() -> Self {
        use keywright_core::fence::Holder;

        let holder = Holder::new("verifier-0", 1, Duration::from_secs(600));
        Self::new(Arc::new(Membership::new(holder)), clock::moment())
    }

    /// Publishes a keyring. Answers the one that it replaces.
    fn publish(&self, keyring: &Keyring) -> Arc<Keyring> {
        self.last_uses.reach(keyring.slots());
        self.keyring.swap(Arc::new(keyring.clone()))
    }
}

fn milliseconds(moment: Moment) -> u64 {
    u64::try_from(moment.time().as_millis()).unwrap_or(u64::MAX)
}

/// The one writer of a [`Feed`].
struct Follower<'f> {
    feed: &'f Feed,
    client: Client,
    /// The URL path of the records.
    url_path: String,
    timings: Timings,
    round: Round,
    /// Whether decisions may use the keyring, as far as this round goes: its list is complete, and so are the writes during
    /// it.
    is_synced: bool,
    keyring: Keyring,
    /// The version of `keyring`. `None` if all records must be listed again.
    version: Option<RecordVersion>,
    /// The goals that `version` has not reached, the oldest first. At most [`GOALS`].
    goals: VecDeque<Goal>,
    /// When the first watch towards the open goals began. `None` if there is none, or the API server itself caused a delay.
    pursued_since: Option<Instant>,
    /// When a goal was last reached, or a list was complete.
    renewed: Instant,
    /// Keyrings that were replaced, and that somebody may still decide from.
    replaced: Vec<Arc<Keyring>>,
    /// What the membership does not know yet.
    unreported: Option<Progress>,
}

/// A version that was the newest one when it was requested.
#[derive(Clone, Copy, Debug)]
struct Goal {
    version: RecordVersion,
    /// Just before the request. When the version is reached, all writes before this moment are known.
    asked: Moment,
}

/// Maximum number of open goals. A further one replaces the newest.
const GOALS: usize = 8;

/// How long to wait for decisions from an older keyring. One takes some microseconds, unless its thread has to wait.
const DECISION_PAUSE: Duration = Duration::from_millis(1);

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
    #[error("there is no resourceVersion that can be compared: {0:?}")]
    NoVersion(String),
    #[error("no answer in time")]
    Silence(#[from] Elapsed),
    #[error("the watch went backwards to version {0}: listing all records again")]
    Past(RecordVersion),
    #[error("the API server did not answer the watch in time")]
    Unanswered,
    #[error("the watch did not end in time: closing its connection")]
    DeadWatch,
    #[error("the watch ended at once, without an event")]
    CutShort,
    #[error(
        "the watch is behind: it is at version {reached}, and the API server's lists at {goal}. Listing all records again"
    )]
    NotReached { reached: RecordVersion, goal: RecordVersion },
}

impl Follower<'_> {
    /// Keeps the keyring in sync for one round, with nothing that was known before.
    async fn follow(&mut self, round: Round) -> Infallible {
        self.round = round;
        self.is_synced = false;
        (self.version, self.pursued_since, self.unreported) = (None, None, None);
        self.goals.clear();
        let mut retry = self.timings.first_retry;
        loop {
            match self.advance().await {
                Ok(()) => retry = self.timings.first_retry,
                Err(interruption) => {
                    self.feed.errors.note("apikeyrecords", interruption.kind(), &interruption, Instant::now());
                    debug!(%interruption, retry_in = ?retry, "cannot follow the records");
                    self.note_interruption(&interruption);
                    // Jitter, so that verifiers that lost the API server together do not come back together.
                    sleep(retry.mul_f64(rand::random_range(0.5..=1.0))).await;
                    retry = (retry * 2).min(self.timings.longest_retry);
                }
            }
        }
    }

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
        let asked = clock::moment();
        let newest = self.newest_version().await?;
        if let Some(version) = self.version.filter(|version| newest < *version) {
            warn!(
                %version,
                %newest, "the API server's version went backwards (a restored backup?): listing all records again"
            );
            self.feed.membership.saw_newest(self.round, newest, clock::moment());
            return Ok(false);
        }
        self.goals.truncate(GOALS - 1);
        self.goals.push_back(Goal { version: newest, asked });
        self.settle();
        Ok(true)
    }

    /// Removes the reached goals, and notes the newest of them.
    fn settle(&mut self) {
        let is_reached = |goal: &Goal| self.version.is_some_and(|version| version >= goal.version);
        let count = self.goals.iter().rposition(is_reached).map_or(0, |last| last + 1);
        let newest = self.goals.drain(..count).next_back();
        if let Some(newest) = newest {
            self.rely(newest.asked, false);
        }
    }

    /// Notes that the keyring has every write before `asked`, and perhaps changes by a list.
    fn rely(&mut self, asked: Moment, is_changed: bool) {
        if !self.is_synced {
            info!(version = self.version.map(tracing::field::display), "synced: answering requests from now on");
        }
        self.is_synced = true;
        self.feed.known.fetch_max(milliseconds(asked), Ordering::AcqRel);
        self.pursued_since = None;
        self.renewed = Instant::now();
        self.progress(asked, is_changed);
    }

    /// Notes what the keyring has reached, for the membership.
    fn progress(&mut self, asked: Moment, is_awaited: bool) {
        let Some(version) = self.version.filter(|_| self.is_synced) else { return };
        let before = self.unreported;
        self.unreported = Some(Progress {
            version,
            asked: before.map_or(asked, |before| before.asked.max(asked)),
            is_awaited: is_awaited || before.is_some_and(|before| before.is_awaited),
        });
        self.report();
    }

    /// Tells the membership, unless somebody decides from an older keyring: then again in a while.
    fn report(&mut self) {
        // Readers borrow a keyring without counting themselves. `ArcSwap::swap` has counted all that it met, and none comes
        // later, so who has the only reference is alone.
        self.replaced.retain_mut(|keyring| Arc::get_mut(keyring).is_none());
        if self.replaced.is_empty()
            && let Some(progress) = self.unreported.take()
        {
            self.feed.membership.reached(self.round, progress, clock::moment());
        }
    }

    fn publish(&mut self) {
        self.replaced.push(self.feed.publish(&self.keyring));
    }

    /// Lists all records, and replaces the keyring when the list is complete. Records that are not in the list are dropped.
    async fn relist(&mut self) -> Result<(), Interruption> {
        let asked = clock::moment();
        let mut keyring = self.keyring.successor();
        let (mut pages, mut version) = (self.pages(), String::new());
        while let Some(page) = timeout(self.timings.page, pages.next::<Record>()).await?? {
            self.add_page(&mut keyring, &page.items);
            version = page.resource_version;
            self.feed.membership.listed_page(self.round, clock::moment());
        }
        let version = parse(&version)?;
        info!(records = keyring.len(), %version, "listed all records");
        self.keyring = keyring;
        self.version = Some(version);
        self.publish();
        self.pursued_since = None;
        self.renewed = Instant::now();
        // The list was requested after every open goal, so it has reached them. The first list alone is not enough for
        // decisions: the writes during it must be seen too.
        let is_first = self.goals.is_empty() && !self.is_synced;
        self.goals.clear();
        if !is_first {
            self.rely(asked, true);
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

    async fn newest_version(&self) -> Result<RecordVersion, Interruption> {
        parse(&timeout(self.timings.page, self.pages().newest_version()).await??)
    }

    fn pages(&self) -> Pages {
        Pages::new(self.client.clone(), &self.url_path)
    }

    /// Follows one watch of this length from the last version on, until it ends or the goal is not reached in time.
    async fn watch(&mut self, duration: Duration) -> Result<(), Interruption> {
        let Some(version) = self.version else { return Ok(()) };
        let seconds = u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).max(1);
        let parameters = WatchParams::default().timeout(seconds);
        let request = Request::new(&*self.url_path)
            .watch(&parameters, &version.to_string())
            .map_err(kube::Error::BuildRequest)?;
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
                    let next = tokio::select! {
                        biased;
                        next = timeout_at(self.deadline(end), events.try_next()) => next,
                        () = sleep(DECISION_PAUSE), if self.unreported.is_some() => {
                            self.report();
                            continue;
                        }
                    };
                    match next {
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
            return Err(Interruption::NotReached { reached: self.version.unwrap_or(version), goal: goal.version });
        }
        ended?;
        let is_in_vain = !self.goals.is_empty() || self.version == Some(version);
        if is_in_vain && opened.elapsed() < self.timings.shortest_watch { Err(Interruption::CutShort) } else { Ok(()) }
    }

    /// When to stop waiting for a watch that should be over at `end`.
    fn deadline(&self, end: Instant) -> tokio::time::Instant {
        let pursued_since = self.pursued_since.filter(|_| !self.goals.is_empty());
        pursued_since.map_or(end, |since| end.min(since + self.timings.reach)).into()
    }

    /// Has the keyring take in a record that was written, and publishes it if it decides otherwise now.
    fn change(
        &mut self,
        record: &Record,
        is_new: bool,
        change: impl FnOnce(&mut Keyring, &StoredRecord<'_>) -> Result<Option<Contest>, RecordError>,
    ) {
        match record.read() {
            Ok(stored) => {
                let before = self.keyring.changes();
                log_distrust(record, change(&mut self.keyring, &stored), || is_new);
                if self.keyring.changes() != before {
                    self.publish();
                }
                self.note_last_use(&stored, record);
            }
            Err(error) => log_distrust(record, Err(error), || is_new),
        }
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
        let version = match &event {
            WatchEvent::Added(record) | WatchEvent::Modified(record) | WatchEvent::Deleted(record) => {
                parse(&record.metadata.resource_version)?
            }
            WatchEvent::Bookmark(bookmark) => parse(&bookmark.metadata.resource_version)?,
            WatchEvent::Error(status) => return Err(Interruption::Watch(status.clone())),
        };
        // A correct server never sends an old version again. An old event could bring back a revoked key.
        if self.version.is_some_and(|before| version < before) {
            return match event {
                WatchEvent::Bookmark(_) => Ok(()),
                _ => Err(Interruption::Past(version)),
            };
        }
        let changes = self.keyring.changes();
        match &event {
            WatchEvent::Added(record) => self.change(record, true, Keyring::upsert),
            WatchEvent::Modified(record) => self.change(record, false, Keyring::replace),
            WatchEvent::Deleted(record) => self.change(record, false, |keyring, stored| {
                keyring.remove(stored);
                Ok(None)
            }),
            WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
        }
        debug!(%version, "records changed");
        self.version = Some(version);
        self.progress(Moment::default(), self.keyring.changes() != changes);
        Ok(())
    }
}

fn parse(version: &str) -> Result<RecordVersion, Interruption> {
    version.parse().map_err(|_| Interruption::NoVersion(version.to_owned()))
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
            || matches!(self, Self::Event(_) | Self::NoVersion(_) | Self::Past(_) | Self::NotReached { .. })
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
            Self::NoVersion(_) | Self::Past(_) | Self::CutShort | Self::NotReached { .. } => WatchErrorKind::Other,
        }
    }
}

#[cfg(test)]
mod tests;
