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

use crate::api::ApiKeyRecord;
use crate::keyring::{Contest, Distrust, Keyring, StoredRecord};
use crate::pages::Pages;
use crate::resource_version::{compare, is_older};
use crate::telemetry::{WatchErrorKind, WatchErrors};
use crate::usage::{self, Marks, Told};

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
            keyring: Keyring::default(),
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
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::io::{self, BufRead, BufReader, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::slice;
    use std::sync::Mutex;
    use std::thread;

    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;
    use serde_json::json;

    use super::*;
    use crate::key::Digest;
    use crate::keyring::Untrusted;
    use crate::keyring::tests::record_name;

    /// What a scripted server sends in reply to a request; the client's behaviour is what is tested with it.
    #[derive(Clone, Debug)]
    pub(crate) enum Reply {
        /// A whole answer.
        Answer(u16, Value),
        /// Lines of a watch, and then its end.
        Events(Vec<Value>),
        /// Lines of a watch that stays open; nothing more is ever sent.
        Silence(Vec<Value>),
        /// The same, but not before [`Script::release`].
        Held(Vec<Value>),
        /// A whole answer after this time.
        Late(Duration, Value),
        /// Lines of a watch that is cut off in the middle of the next one.
        Cut(Vec<Value>),
        /// Nothing at all.
        NoAnswer,
        /// A line of a watch that stays open, again and again.
        Trickle(Value),
    }

    /// Stands for the query of a list's page, whose size depends on the ones before.
    pub(crate) const LIST: &str = "a list";

    fn is_for(target: &str, part: &str) -> bool {
        let target = format!("{target}&");
        match part {
            LIST => !target.contains("watch=true") && !target.contains("limit=1&"),
            part => target.contains(part),
        }
    }

    /// A server on loopback that answers requests one after the other from a script, and with `last` once it has run
    /// out. Knows nothing of Kubernetes, except that a list is followed by a question for the newest version: where the
    /// script has no reply to that, it is the list's, and the question does not count.
    #[derive(Clone)]
    pub(crate) struct Script {
        state: Arc<Mutex<State>>,
        url: String,
    }

    struct State {
        replies: std::vec::IntoIter<(&'static str, Reply)>,
        last: fn(&str) -> Reply,
        targets: Vec<String>,
        wrong: Option<String>,
        is_released: bool,
        /// Of a list whose last page was sent just now.
        listed: Option<Value>,
    }

    impl Script {
        /// `replies` come with a part of the query that each one is for: `watch=true`, or `limit=1&` for the newest version;
        /// or [`LIST`] for any page of a list.
        pub(crate) fn start(replies: Vec<(&'static str, Reply)>, last: fn(&str) -> Reply) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let replies = replies.into_iter();
            let state = State { replies, last, targets: Vec::new(), wrong: None, is_released: false, listed: None };
            let script = Self { state: Arc::new(Mutex::new(state)), url };
            let server = script.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let server = server.clone();
                    thread::spawn(move || server.converse(stream.unwrap()));
                }
            });
            script
        }

        pub(crate) fn client(&self) -> Client {
            let mut config = kube::Config::new(self.url.parse().unwrap());
            config.default_retry = false;
            Client::try_from(config).unwrap()
        }

        pub(crate) fn release(&self) {
            self.state.lock().unwrap().is_released = true;
        }

        /// Ends in an error where the client goes away in the middle of an answer.
        fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
            let mut reader = BufReader::new(stream.try_clone()?);
            while let Some(target) = read_target(&mut reader) {
                match self.reply(target) {
                    Reply::Answer(status, body) => answer(&mut stream, status, &body)?,
                    Reply::Late(delay, body) => {
                        thread::sleep(delay);
                        answer(&mut stream, 200, &body)?;
                    }
                    Reply::Events(events) => {
                        send(&mut stream, &events)?;
                        stream.write_all(b"0\r\n\r\n")?;
                    }
                    Reply::Silence(events) => send(&mut stream, &events)?,
                    Reply::Held(events) => {
                        while !self.state.lock().unwrap().is_released {
                            thread::sleep(Duration::from_millis(1));
                        }
                        send(&mut stream, &events)?;
                    }
                    Reply::Cut(events) => {
                        send(&mut stream, &events)?;
                        stream.write_all(b"400\r\n{\"type\":\"MODIF")?;
                        stream.shutdown(Shutdown::Both)?;
                    }
                    Reply::NoAnswer => {}
                    Reply::Trickle(event) => {
                        send(&mut stream, &[])?;
                        loop {
                            send_lines(&mut stream, slice::from_ref(&event))?;
                            thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
            }
            Ok(())
        }

        fn reply(&self, target: String) -> Reply {
            let mut state = self.state.lock().unwrap();
            if let Some(metadata) = state.listed.take()
                && state.replies.as_slice().first().is_none_or(|(part, _)| *part != "limit=1&")
            {
                return Reply::Answer(200, json!({ "metadata": metadata, "items": [] }));
            }
            let reply = match state.replies.next() {
                None => (state.last)(&target),
                Some((part, reply)) => {
                    if !is_for(&target, part) {
                        state.wrong.get_or_insert(format!("{target} where {part} was expected"));
                    }
                    reply
                }
            };
            if let Reply::Answer(200, list) = &reply
                && is_for(&target, LIST)
                && list["metadata"]["continue"] == ""
                && list["metadata"]["resourceVersion"] != ""
            {
                state.listed = Some(list["metadata"].clone());
            }
            state.targets.push(target);
            reply
        }

        fn targets(&self) -> Vec<String> {
            let state = self.state.lock().unwrap();
            assert_eq!(state.wrong, None, "{:?}", state.targets);
            state.targets.clone()
        }
    }

    /// The request's target, or `None` at the connection's end.
    fn read_target(reader: &mut impl BufRead) -> Option<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        head.split(' ').nth(1).map(str::to_owned)
    }

    fn answer(stream: &mut TcpStream, status: u16, body: &Value) -> io::Result<()> {
        let body = body.to_string();
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn send(stream: &mut TcpStream, events: &[Value]) -> io::Result<()> {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        send_lines(stream, events)
    }

    fn send_lines(stream: &mut TcpStream, events: &[Value]) -> io::Result<()> {
        for event in events {
            let line = format!("{event}\n");
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
        }
        Ok(())
    }

    const QUICK: Pace = Pace {
        page: Duration::from_secs(2),
        watch: Duration::from_secs(2),
        catch_up: Duration::from_secs(1),
        reach: Duration::from_secs(3),
        renewal: Duration::from_secs(300),
        first_retry: Duration::from_millis(2),
        longest_retry: Duration::from_millis(20),
        shortest_watch: Duration::from_millis(5),
    };

    pub(crate) fn record(number: u32, version: &str, spec: &Value) -> Value {
        json!({ "metadata": { "name": record_name(number), "resourceVersion": version }, "spec": spec })
    }

    pub(crate) fn event(kind: &str, object: Value) -> Value {
        json!({ "type": kind, "object": object })
    }

    fn page(version: &str, continue_token: &str, records: &[Value]) -> Value {
        let metadata = json!({ "resourceVersion": version, "continue": continue_token });
        json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": records })
    }

    pub(crate) fn list(version: &str, continue_token: &str, records: &[Value]) -> Reply {
        Reply::Answer(200, page(version, continue_token, records))
    }

    fn spec(number: u8) -> Value {
        let api_key = json!({ "namespace": "a", "name": format!("key-{number}"), "uid": "c" });
        json!({ "digest": Digest::of(&[number]).to_string(), "apiKey": api_key })
    }

    fn bookmark(version: &str) -> Value {
        event("BOOKMARK", json!({ "kind": "K", "apiVersion": "v1", "metadata": { "resourceVersion": version } }))
    }

    fn gone() -> Value {
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
            "message": "too old resource version" })
    }

    /// For ever the same: nothing new, on a watch that stays open.
    fn quiet(target: &str) -> Reply {
        if target.contains("watch=true") { Reply::Silence(vec![]) } else { list("900", "", &[]) }
    }

    /// The names of the keys with numbers 0 to 9 that are good.
    fn good(feed: &Feed) -> Result<Vec<String>, Unready> {
        let keyring = feed.current(Instant::now())?;
        let entries =
            (0..10).filter_map(|number| keyring.get(&Digest::of(&[number])).ok().map(|entry| entry.name().to_owned()));
        Ok(entries.collect())
    }

    /// Follows the script until `condition` holds.
    async fn follow_until(script: &Script, feed: &Feed, condition: impl Fn(&Feed) -> bool) {
        follow_until_at(script, feed, QUICK, condition).await;
    }

    async fn follow_until_at(script: &Script, feed: &Feed, pace: Pace, condition: impl Fn(&Feed) -> bool) {
        let wait = async {
            while !condition(feed) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            never = feed.follow_at(script.client(), "keywright-system", pace) => match never {},
            waited = timeout(Duration::from_secs(20), wait) => {
                waited.unwrap_or_else(|_| panic!("{:?} after {:?}", good(feed), script.targets()));
            }
        }
    }

    fn feed() -> Feed {
        Feed::new(Duration::from_secs(600), Instant::now())
    }

    fn names(feed: &Feed, expected: &[&str]) -> bool {
        good(feed).is_ok_and(|names| names == expected)
    }

    #[tokio::test]
    async fn records_are_listed_by_pages_and_then_watched() {
        let broken = json!({ "digest": Digest::of(&[2]).to_string(), "apiKey": 7 });
        let script = Script::start(
            vec![
                (LIST, list("100", "next", &[record(1, "7", &spec(1)), record(2, "8", &broken)])),
                ("continue=next&", list("100", "", &[record(3, "9", &spec(3))])),
                (
                    "resourceVersion=100&",
                    Reply::Events(vec![
                        event("ADDED", record(4, "101", &spec(4))),
                        event("MODIFIED", record(1, "102", &spec(5))),
                        event("DELETED", record(3, "103", &spec(3))),
                        event(
                            "BOOKMARK",
                            json!({ "kind": "K", "apiVersion": "v1", "metadata": { "resourceVersion": "200" } }),
                        ),
                    ]),
                ),
                ("limit=1&", list("200", "", &[])),
                ("resourceVersion=200&", Reply::Silence(vec![event("MODIFIED", record(2, "201", &spec(2)))])),
            ],
            quiet,
        );
        let feed = feed();
        assert_eq!(good(&feed), Err(Unready::Syncing));
        follow_until(&script, &feed, |feed| names(feed, &["key-2", "key-4", "key-5"])).await;
        assert_eq!(feed.records(), 3);
        for target in script.targets() {
            assert!(target.starts_with("/apis/keywright.dev/v1alpha1/namespaces/keywright-system/apikeyrecords?"));
            let is_watch = target.contains("watch=true");
            assert_eq!(target.contains("resourceVersion="), is_watch, "a list asks for the newest data: {target}");
            assert!(!is_watch || target.contains("timeoutSeconds=2&allowWatchBookmarks=true"), "{target}");
            assert!(!target.contains("sendInitialEvents"), "{target}");
        }
    }

    #[tokio::test]
    async fn last_uses_are_counted_as_the_watch_tells_them_and_outlive_a_list() {
        let used = |number: u8, version, last_used_at: &str| {
            let mut record = record(number.into(), version, &spec(number));
            record["status"] = json!({ "lastUsedAt": last_used_at });
            record
        };
        let script = Script::start(
            vec![
                (LIST, list("100", "", &[record(1, "7", &spec(1)), used(2, "8", "1970-01-01T00:01:40Z")])),
                (
                    "watch=true",
                    Reply::Events(vec![
                        event("MODIFIED", used(1, "101", "1970-01-01T00:02:00Z")),
                        event("MODIFIED", used(2, "102", "1970-01-01T00:01:40Z")),
                        event("MODIFIED", used(2, "103", "1970-01-01T00:01:30Z")),
                        event("MODIFIED", used(2, "104", "now")),
                        event("MODIFIED", used(2, "105", "1970-01-01T00:03:00.5Z")),
                        event("ERROR", gone()),
                    ]),
                ),
                (LIST, list("200", "", &[used(3, "150", "1970-01-01T00:04:00Z"), used(2, "151", "?")])),
            ],
            quiet,
        );
        let feed = feed();
        follow_until(&script, &feed, |feed| names(feed, &["key-2", "key-3"])).await;
        let usage = |number: u8| {
            let (name, spec) = (record_name(number.into()), spec(number));
            let slot = feed.newest().slot_of(StoredRecord { name: &name, created: None, spec: &spec });
            slot.map(|slot| feed.marks().usage(slot).written)
        };
        assert_eq!([usage(1), usage(2), usage(3)], [None, Some(180), Some(240)]);
        assert_eq!(*feed.told().borrow(), Told { writes: 2, lists: 2 });
    }

    #[tokio::test]
    async fn nothing_is_known_before_the_last_page() {
        let script = Script::start(
            vec![
                (LIST, list("100", "next", &[record(1, "7", &spec(1))])),
                ("continue=next&", Reply::Answer(410, gone())),
                (LIST, list("300", "next", &[record(2, "7", &spec(2))])),
                ("continue=next&", Reply::Answer(500, json!({}))),
                (LIST, Reply::NoAnswer),
                (LIST, Reply::Answer(200, json!("?"))),
                (LIST, list("", "", &[record(3, "7", &spec(3))])),
            ],
            |_| Reply::NoAnswer,
        );
        let feed = feed();
        follow_until(&script, &feed, |_| script.targets().len() > 7).await;
        assert_eq!(good(&feed), Err(Unready::Syncing));
    }

    /// Whatever a watch after a list does: nothing is decided before it has told of what was written during the list.
    #[tokio::test]
    async fn what_was_written_while_it_listed_is_known_before_anything_is_decided() {
        let deleted = || event("DELETED", record(1, "103", &spec(1)));
        let again = |watch| vec![("limit=1&", list("106", "", &[])), ("watch=true", watch)];
        let silence = || Reply::Silence(vec![]);
        let late = |event| Reply::Late(Duration::from_millis(1100), event);
        let cases = [
            ("a later change", Reply::Silence(vec![deleted(), event("ADDED", record(3, "105", &spec(3)))]), vec![]),
            ("a bookmark", Reply::Silence(vec![deleted(), bookmark("105")]), vec![]),
            ("it ends early", Reply::Events(vec![]), again(Reply::Silence(vec![deleted(), bookmark("105")]))),
            (
                "a bookmark too old",
                Reply::Silence(vec![bookmark("102")]),
                again(Reply::Silence(vec![deleted(), bookmark("106")])),
            ),
            ("it hangs", silence(), again(Reply::Silence(vec![deleted(), bookmark("106")]))),
            ("no answer", Reply::NoAnswer, again(Reply::Silence(vec![deleted(), bookmark("106")]))),
            (
                "no bookmark, and all are listed anew",
                late(event("ADDED", record(4, "101", &spec(4)))),
                again(late(deleted()))
                    .into_iter()
                    .chain(again(silence()))
                    .chain([(LIST, list("107", "", &[record(2, "8", &spec(2))])), ("watch=true", silence())])
                    .collect(),
            ),
        ];
        let checks = cases.map(async |(case, watch, more)| {
            let mut replies = vec![
                (LIST, list("100", "", &[record(1, "7", &spec(1)), record(2, "8", &spec(2))])),
                ("limit=1&", list("105", "", &[])),
                ("timeoutSeconds=1&", watch),
            ];
            replies.extend(more);
            let (script, feed) = (Script::start(replies, |_| Reply::NoAnswer), feed());
            follow_until(&script, &feed, |feed| {
                let good = good(feed).unwrap_or_default();
                assert!(!good.contains(&"key-1".to_owned()), "{case}");
                good.contains(&"key-2".to_owned())
            })
            .await;
            script.targets();
        });
        futures::future::join_all(checks).await;
    }

    /// The API server lets nobody change a digest. If it ever does, the old key must not stay good, nor must a record that
    /// can no longer be found by its digest.
    #[tokio::test]
    async fn a_record_whose_digest_has_changed_is_found_all_the_same() {
        let without = json!({ "digest": "?", "apiKey": { "namespace": "a", "name": "b", "uid": "c" } });
        let script = Script::start(
            vec![
                (LIST, list("100", "", &[1, 2, 3, 4].map(|number: u8| record(number.into(), "7", &spec(number))))),
                (
                    "resourceVersion=100&",
                    Reply::Silence(vec![
                        event("MODIFIED", record(1, "101", &spec(5))),
                        event("MODIFIED", record(2, "102", &without)),
                        event("DELETED", record(3, "103", &without)),
                        event("DELETED", record(2, "104", &without)),
                        event("MODIFIED", record(9, "105", &spec(9))),
                    ]),
                ),
            ],
            quiet,
        );
        let feed = feed();
        follow_until(&script, &feed, |feed| names(feed, &["key-4", "key-5", "key-9"])).await;
        assert_eq!((feed.records(), script.targets().len()), (3, 2), "without a new list");
    }

    /// However a watch breaks off: the records are in step again afterwards, read anew only where that is needed.
    #[tokio::test]
    async fn a_watch_that_breaks_off_is_taken_up_again() {
        let added = || event("ADDED", record(2, "101", &spec(2)));
        let unknown = event("UNKNOWN", json!({}));
        let server_error = json!({ "kind": "Status", "status": "Failure", "code": 500, "message": "?" });
        let cases = [
            ("ended", Reply::Events(vec![added()]), "resourceVersion=101&"),
            ("cut off", Reply::Cut(vec![added()]), "resourceVersion=101&"),
            ("half-open", Reply::Silence(vec![added()]), "resourceVersion=101&"),
            ("no answer", Reply::NoAnswer, "resourceVersion=100&"),
            ("ended at once", Reply::Events(vec![]), "resourceVersion=100&"),
            (
                "an error in the stream",
                Reply::Events(vec![added(), event("ERROR", server_error.clone())]),
                "resourceVersion=101&",
            ),
            ("an error instead", Reply::Answer(500, server_error), "resourceVersion=100&"),
            ("forbidden", Reply::Answer(403, json!({ "kind": "Status", "code": 403 })), "resourceVersion=100&"),
            ("gone in the stream", Reply::Events(vec![added(), event("ERROR", gone())]), "list"),
            ("gone instead", Reply::Answer(410, gone()), "list"),
            ("gone without a body", Reply::Answer(410, json!("?")), "list"),
            ("not to be read", Reply::Events(vec![added(), unknown]), "list"),
        ];
        let checks = cases.map(async |(case, watch, expected)| {
            let mut replies =
                vec![(LIST, list("100", "", &[record(1, "7", &spec(1))])), ("resourceVersion=100&", watch)];
            if expected == "list" {
                replies.push((LIST, list("150", "", &[record(3, "150", &spec(3))])));
            } else {
                replies.push(("limit=1&", list("150", "", &[])));
                replies.push((
                    expected,
                    Reply::Silence(vec![
                        event("DELETED", record(1, "149", &spec(1))),
                        event("DELETED", record(2, "150", &spec(2))),
                        event("ADDED", record(3, "151", &spec(3))),
                    ]),
                ));
            }
            let (script, feed) = (Script::start(replies, quiet), feed());
            follow_until(&script, &feed, |feed| names(feed, &["key-3"])).await;
            assert!(script.targets().len() >= 3, "{case}");
        });
        futures::future::join_all(checks).await;
    }

    #[tokio::test]
    async fn a_server_that_went_back_in_time_is_read_anew() {
        for (before, after) in [("1000", "999"), ("1000", "99"), ("1000", "2"), ("1000", "x")] {
            let script = Script::start(
                vec![
                    (LIST, list(before, "", &[record(1, "7", &spec(1))])),
                    ("watch=true", Reply::Events(vec![])),
                    ("limit=1&", list(after, "", &[])),
                    (LIST, list(after, "", &[record(2, "2", &spec(2))])),
                ],
                quiet,
            );
            let feed = feed();
            follow_until(&script, &feed, |feed| names(feed, &["key-2"])).await;
        }
    }

    /// However contact is made again: what was let in before is never let in for a moment on the way back.
    #[tokio::test]
    async fn after_too_long_a_silence_nothing_is_decided_until_what_was_written_is_known() {
        let lease_duration = Duration::from_millis(1500);
        let silence = |count| (0..count).map(|_| ("", Reply::NoAnswer));
        let late = Duration::from_millis(1700);
        let cases = [
            ("no answer", silence(8).collect::<Vec<_>>()),
            (
                "an answer that is as old as the lease when it comes",
                vec![("", Reply::Late(late, page("100", "", &[])))],
            ),
            (
                "an event after such an answer",
                vec![
                    ("", Reply::Late(late, page("100", "", &[]))),
                    ("", Reply::Silence(vec![event("ADDED", record(3, "150", &spec(3)))])),
                ],
            ),
        ];
        let anew = |target: &str| match target.contains("watch=true") {
            true => Reply::Silence(vec![]),
            false => list("200", "", &[record(2, "150", &spec(2))]),
        };
        let checks = cases.map(async |(case, between)| {
            let mut replies =
                vec![(LIST, list("100", "", &[record(1, "7", &spec(1))])), ("watch=true", Reply::Silence(vec![]))];
            let page = if between.len() > 2 { Duration::from_millis(250) } else { Duration::from_secs(3) };
            replies.extend(between);
            let (script, feed) = (Script::start(replies, anew), Feed::new(lease_duration, Instant::now()));
            let was_stale = Cell::new(false);
            let is_back = |feed: &Feed| match good(feed) {
                Ok(names) if was_stale.get() => {
                    assert_eq!(names, ["key-2"], "{case}");
                    true
                }
                answer => {
                    was_stale.set(matches!(answer, Err(Unready::Stale(_))));
                    false
                }
            };
            follow_until_at(&script, &feed, Pace { page, ..Pace::within(lease_duration) }, is_back).await;
        });
        futures::future::join_all(checks).await;
    }

    /// A watch cache that stands still: lists are consistent, and tell of versions that no watch ever comes to, whatever else
    /// it brings. A key that was revoked there is let in for the lease and no longer, even where no list can be had.
    #[tokio::test]
    async fn a_watch_that_does_not_advance_is_not_trusted() {
        type Watch = (&'static str, fn(&str) -> Reply);
        let watches: [Watch; 4] = [
            ("it ends with an old bookmark", |target| stuck(target, Reply::Events(vec![bookmark("105")]))),
            ("it is open, and silent", |target| stuck(target, Reply::Silence(vec![bookmark("105")]))),
            ("it tells of old events without end", |target| {
                stuck(target, Reply::Trickle(event("MODIFIED", record(1, "105", &spec(1)))))
            }),
            ("it is not even opened", |target| stuck(target, Reply::NoAnswer)),
        ];
        fn stuck(target: &str, watch: Reply) -> Reply {
            match target {
                target if target.contains("watch=true") => watch,
                target if is_for(target, "limit=1&") => list("9000", "", &[]),
                _ => Reply::Answer(500, json!({})),
            }
        }
        let checks = watches.map(async |(case, last)| {
            let lease_duration = Duration::from_millis(1500);
            let replies =
                vec![(LIST, list("100", "", &[record(1, "7", &spec(1))])), ("watch=true", Reply::Events(vec![]))];
            let (script, feed) = (Script::start(replies, last), Feed::new(lease_duration, Instant::now()));
            let started = Instant::now();
            let was_good = Cell::new(false);
            follow_until_at(&script, &feed, Pace::within(lease_duration), |feed| match good(feed) {
                Ok(names) => {
                    was_good.set(names == ["key-1"]);
                    false
                }
                Err(unready) => was_good.get() && matches!(unready, Unready::Stale(_)),
            })
            .await;
            println!("{case}: stale after {:?}", started.elapsed());
        });
        futures::future::join_all(checks).await;
    }

    /// The same where a list can be had: that tells of the revocation, long before the lease is over.
    #[tokio::test]
    async fn what_a_watch_does_not_bring_a_list_brings() {
        let pace = Pace { reach: Duration::from_millis(200), ..QUICK };
        let replies = vec![(LIST, list("100", "", &[record(1, "7", &spec(1)), record(2, "8", &spec(2))]))];
        let script = Script::start(replies, |target| match target.contains("watch=true") {
            true => Reply::Events(vec![bookmark("105")]),
            false => list("9000", "", &[record(2, "8", &spec(2))]),
        });
        let feed = feed();
        follow_until_at(&script, &feed, pace, |feed| names(feed, &["key-2"])).await;
        let (age, limit) = (feed.age(Instant::now()), Duration::from_secs(60));
        assert!(age < limit, "known as of {age:?} ago");
    }

    /// A watch that is served from an old cache may tell of a record that is gone by now, or was revoked.
    #[tokio::test]
    async fn what_is_past_is_not_told_again() {
        let all = || list("9000", "", &[record(2, "8", &spec(2))]);
        let past = Reply::Events(vec![bookmark("105"), event("ADDED", record(1, "106", &spec(1)))]);
        let replies = vec![(LIST, all()), ("resourceVersion=9000&", past), (LIST, all())];
        let (script, feed) = (Script::start(replies, quiet), feed());
        follow_until(&script, &feed, |feed| {
            assert!(!good(feed).unwrap_or_default().contains(&"key-1".to_owned()));
            script.targets().len() > 3
        })
        .await;
    }

    /// What is known is as old as the question that it answers, and not as the answer, or any event.
    #[tokio::test]
    async fn a_goal_counts_from_when_it_was_asked_for() {
        let late = Duration::from_millis(700);
        let replies = vec![
            (LIST, list("100", "", &[])),
            ("limit=1&", list("100", "", &[])),
            ("watch=true", Reply::Events(vec![event("ADDED", record(1, "101", &spec(1)))])),
            ("limit=1&", Reply::Late(late, page("102", "", &[]))),
            ("watch=true", Reply::Silence(vec![event("ADDED", record(2, "102", &spec(2)))])),
        ];
        let (script, feed) = (Script::start(replies, quiet), feed());
        let mut oldest = Duration::ZERO;
        let ages = Mutex::new(Vec::new());
        follow_until(&script, &feed, |feed| {
            ages.lock().unwrap().push(feed.age(Instant::now()));
            names(feed, &["key-1", "key-2"])
        })
        .await;
        for age in ages.into_inner().unwrap() {
            oldest = oldest.max(age);
        }
        assert!(feed.age(Instant::now()) >= late && oldest >= late, "{oldest:?}");
    }

    #[test]
    fn a_lease_of_any_length_is_renewed_in_time() {
        for seconds in [1, 2, 3, 5, 10, 15, 20, 60, 600, 86_400] {
            let lease_duration = Duration::from_secs(seconds);
            let pace = Pace::within(lease_duration);
            let oldest = longest(pace.catch_up) + longest(pace.watch) + pace.reach;
            assert!(oldest <= lease_duration.mul_f64(0.75), "{oldest:?} of {lease_duration:?}");
            let requests = 3.0 / (pace.catch_up + pace.watch).as_secs_f64();
            assert!(seconds < 600 || requests < 0.3, "{requests} a second at {lease_duration:?}");
        }
    }

    /// The next page may be of other records than the last one, so a size that was right before may be far too large.
    #[tokio::test]
    async fn a_page_that_is_too_large_is_asked_for_again_in_smaller_ones() {
        let mut large = spec(2);
        large["rotateRequest"] = json!("x".repeat(crate::pages::PAGE_OCTETS_AT_MOST));
        let script = Script::start(
            vec![
                ("limit=50&", list("100", "next", &[record(1, "7", &spec(1))])),
                ("limit=200&continue=next&", list("100", "more", &[record(2, "8", &large), record(3, "9", &spec(3))])),
                ("limit=25&continue=next&", list("100", "", &[record(3, "9", &spec(3))])),
            ],
            quiet,
        );
        let feed = feed();
        let pace = Pace { page: Duration::from_secs(20), ..QUICK };
        follow_until_at(&script, &feed, pace, |feed| names(feed, &["key-1", "key-3"])).await;
        assert_eq!(script.targets().iter().filter(|target| is_for(target, LIST)).count(), 3);
    }

    /// A feed that cannot have its first list is not ready, and its errors are counted by kind, and told.
    #[tokio::test]
    async fn errors_of_lists_and_watches_are_counted_by_kind() {
        let status = |code: u16| Reply::Answer(code, json!({ "kind": "Status", "status": "Failure", "code": code }));
        let first = || (LIST, list("100", "", &[]));
        let cases = [
            ("unauthorized", vec![(LIST, status(401))]),
            ("forbidden", vec![(LIST, status(403))]),
            ("not_found", vec![(LIST, Reply::Answer(404, json!("404 page not found")))]),
            ("refused", vec![(LIST, status(500))]),
            ("other", vec![(LIST, Reply::Answer(200, json!("?")))]),
            ("forbidden", vec![first(), ("watch=true", status(403))]),
            ("expired", vec![first(), ("watch=true", Reply::Events(vec![event("ERROR", gone())]))]),
        ];
        let checks = cases.map(async |(kind, replies)| {
            let is_first = replies.len() == 1;
            let script = Script::start(replies, |_| Reply::NoAnswer);
            assert_eq!(kinds_after(&script, script.client()).await, [kind], "{is_first}");
        });
        futures::future::join_all(checks).await;
        let script = Script::start(vec![], quiet);
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        assert_eq!(kinds_after(&script, Client::try_from(config).unwrap()).await, ["unreachable"]);
    }

    /// The kinds of errors that are counted, once there are any.
    async fn kinds_after(script: &Script, client: Client) -> Vec<String> {
        let mut registry = Registry::default();
        let feed = feed().with_errors(WatchErrors::new(&mut registry));
        let kinds = || {
            let mut metrics = String::new();
            text::encode(&mut metrics, &registry).unwrap();
            let counters = metrics.lines().filter_map(|line| line.strip_prefix("watch_errors_total{kind=\""));
            let counted =
                counters.filter(|counter| !counter.ends_with(" 0")).filter_map(|counter| counter.split('"').next());
            counted.map(str::to_owned).collect::<Vec<_>>()
        };
        let wait = async {
            while kinds().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            never = feed.follow_at(client, "keywright-system", QUICK) => match never {},
            waited = timeout(Duration::from_secs(20), wait) => waited.unwrap_or_else(|_| panic!("{:?}", script.targets())),
        }
        kinds()
    }

    #[test]
    fn a_feed_is_stale_once_what_it_knows_is_as_old_as_the_lease() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let feed = Feed::new(Duration::from_secs(600), start);
        assert_eq!(feed.current(start).err(), Some(Unready::Syncing));
        feed.publish(&Keyring::default());
        assert_eq!(feed.current(after(100.0)).err(), Some(Unready::Syncing), "a list, and not what came meanwhile");
        feed.rely(after(90.0));
        assert!(
            feed.current(after(689.9)).is_ok_and(|keyring| {
                keyring.is_empty() && keyring.get(&Digest::of(b"?")) == Err(Untrusted::Absent)
            })
        );
        assert_eq!(feed.current(after(690.0)).err(), Some(Unready::Stale(Duration::from_secs(600))));
        feed.rely(after(50.0));
        assert!(feed.current(after(690.0)).is_err(), "it does not go back");
        feed.rely(after(690.0));
        assert!(feed.current(after(700.0)).is_ok());
        assert_eq!(feed.age(after(701.0)), Duration::from_secs(11));
    }

    #[tokio::test]
    async fn a_server_that_fails_is_asked_at_growing_intervals() {
        let script = Script::start(vec![], |_| Reply::Answer(500, json!({})));
        let pace = Pace { first_retry: Duration::from_millis(20), longest_retry: Duration::from_secs(5), ..QUICK };
        let started = Instant::now();
        follow_until_at(&script, &feed(), pace, |_| script.targets().len() > 6).await;
        // 20, 40, 80, 160, 320 and 640 ms, each cut by half at most.
        assert!(started.elapsed() >= Duration::from_millis(630), "{:?}", started.elapsed());
    }
}
