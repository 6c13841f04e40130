//! The records, from the API server to a [`Keyring`]; and how far that keyring can be relied on.
//!
//! ```text
//! list, paged, consistent ──> keyring, swapped whole ──> watch from the list's version ──> keyring, record by record
//!      ^                                                       │ ends: opened again from the last version seen
//!      └─ the version is gone (410), or from the future ───────┘
//! ```
//!
//! All pages of a list show the records as they were at its first one. What is written while the others are read comes
//! with the watch, and a key may have been revoked by it; so a list is relied on only once the watch has reached a
//! version that was read after its last page.
//!
//! Every read asks for the newest data: a list at `resourceVersion=0`, or one that is streamed, may be older than what
//! this very process had seen before, and bring a revoked key back.

use std::convert::Infallible;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use futures::TryStreamExt;
use kube::Resource;
use kube::api::{ListParams, ObjectList, WatchEvent, WatchParams};
use kube::client::Client;
use kube::core::{Request, Status};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{error::Elapsed, sleep, timeout};
use tracing::{debug, info, warn};

use crate::api::ApiKeyRecord;
use crate::keyring::{Contest, Distrust, Keyring, StoredRecord};
use crate::usage::{self, Marks, Told};

/// The newest keyring, shared by whoever follows the API server and all who decide.
pub struct Feed {
    keyring: ArcSwap<Keyring>,
    /// Whether a first list is complete, and what was written while it was read is known too.
    is_synced: AtomicBool,
    lease_duration: Duration,
    /// What `heard` counts from.
    origin: Instant,
    /// When the API server was last heard, in milliseconds since `origin`.
    heard: AtomicU64,
    marks: Marks,
    told: watch::Sender<Told>,
}

/// Why there is no keyring to rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unready {
    /// The first list of records is not complete, or what was written while it was read is not known yet.
    #[error("the records are not read yet: waiting for the API server's list of apikeyrecords, and its watch of them")]
    Syncing,
    /// Nothing was heard from the API server for the lease duration.
    #[error("nothing heard from the API server for {} s: check its address and this ServiceAccount's rights", .0.as_secs())]
    Stale(Duration),
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// For one page of a list.
    page: Duration,
    /// For the API server to end a watch; at least one second.
    watch: Duration,
    /// The same for a watch after a list, until it has caught up. Where no record changes, only a bookmark tells that
    /// it has, and the API server sends one two seconds before it ends a watch (KEP-956).
    catch_up: Duration,
    /// For an event or the end of a watch. More silence than the watch lasts is a connection whose other end is gone;
    /// nothing else would tell, as kube sets no TCP keepalive.
    silence: Duration,
    /// Before the first retry; doubled with each one after it.
    first_retry: Duration,
    longest_retry: Duration,
    /// A watch that ends sooner than this and told nothing counts as a failure, or a server that ends them all at
    /// once would be asked without pause.
    shortest_watch: Duration,
}

/// Records in one page of a list.
const PAGE_SIZE: u32 = 500;

impl Pace {
    /// Where nothing happens, the API server is heard three times within `lease_duration`; and a watch that is silent
    /// is given up before the records are stale, so that nothing that comes late on it makes them look fresh.
    fn within(lease_duration: Duration) -> Self {
        let watch = (lease_duration / 3).clamp(Duration::from_secs(1), Duration::from_secs(20));
        Self {
            page: Duration::from_secs(10),
            watch,
            catch_up: Duration::from_secs(3),
            silence: watch + watch.min(Duration::from_secs(5)),
            first_retry: Duration::from_millis(100),
            longest_retry: Duration::from_secs(5),
            shortest_watch: Duration::from_millis(500),
        }
    }
}

impl Feed {
    /// A feed that knows nothing yet at `now`, and that is stale once nothing was heard for `lease_duration`.
    pub fn new(lease_duration: Duration, now: Instant) -> Self {
        Self {
            keyring: ArcSwap::default(),
            is_synced: AtomicBool::new(false),
            lease_duration,
            origin: now,
            heard: AtomicU64::new(0),
            marks: Marks::default(),
            told: watch::Sender::default(),
        }
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
        let silence = self.silence(now);
        if silence >= self.lease_duration { Err(Unready::Stale(silence)) } else { Ok(self.keyring.load()) }
    }

    /// How long nothing was heard from the API server, as of `now`.
    pub fn silence(&self, now: Instant) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Acquire));
        now.saturating_duration_since(self.origin).saturating_sub(heard)
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
        let records = Request::new(ApiKeyRecord::url_path(&(), Some(namespace)));
        let keyring = Keyring::default();
        let mut follower = Follower { feed: self, client, records, pace, keyring, version: None, goal: None };
        let mut retry = pace.first_retry;
        loop {
            match follower.advance().await {
                Ok(()) => retry = pace.first_retry,
                Err(interruption) => {
                    warn!(%interruption, retry_in = ?retry, "cannot follow the records");
                    if interruption.voids_version() {
                        follower.version = None;
                    }
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

    /// Takes note that the API server was heard, and answers whether that was in time. Once the records are stale, what
    /// comes bit by bit does not make them fresh: the part that matters may still be on its way.
    fn hear(&self, now: Instant) -> bool {
        let is_in_time = self.silence(now) < self.lease_duration;
        if is_in_time {
            self.renew(now);
        }
        is_in_time
    }

    fn renew(&self, now: Instant) {
        let heard = now.saturating_duration_since(self.origin).as_millis();
        self.heard.fetch_max(u64::try_from(heard).unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    fn publish(&self, keyring: &Keyring) {
        self.marks.reach(keyring.slots());
        self.keyring.store(Arc::new(keyring.clone()));
    }

    /// Lets decisions be made from the keyring, which shows all that was written before `now`.
    fn rely(&self, now: Instant) {
        self.renew(now);
        self.is_synced.store(true, Ordering::Release);
    }
}

/// The one writer of a [`Feed`].
struct Follower<'f> {
    feed: &'f Feed,
    client: Client,
    records: Request,
    pace: Pace,
    keyring: Keyring,
    /// The version that `keyring` has reached; `None` if it has to be read anew.
    version: Option<String>,
    /// What `version` has to reach before the list is relied on; `None` once it has.
    goal: Option<Goal>,
}

/// A version that was the newest after a list.
#[derive(Clone, Debug)]
struct Goal {
    version: String,
    /// Before it was asked for. All that the API server had answered to by then is known once the version is reached.
    asked: Instant,
    /// A watch has lasted its time without reaching it.
    is_overdue: bool,
}

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
    #[error("an answer is not JSON of the expected shape: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the watch ended in an error: {} (code {})", .0.message, .0.code)]
    Watch(Box<Status>),
    #[error("an event cannot be read: {0}")]
    Event(kube::Error),
    #[error("the list has no resourceVersion to watch from")]
    NoVersion,
    #[error("no answer in time")]
    Silence(#[from] Elapsed),
    #[error("the watch ended as soon as it had begun")]
    CutShort,
    #[error("nothing was heard for too long: all records are to be read anew")]
    TooLate,
}

impl Follower<'_> {
    /// Follows one watch to its end, on from where the last one came to or from a new list.
    async fn advance(&mut self) -> Result<(), Interruption> {
        let version = match self.version.clone() {
            Some(version) if !self.is_rewound(&version).await? => version,
            _ => self.relist().await?,
        };
        self.watch(&version).await
    }

    /// Relies on the keyring if it has reached what a list has to reach.
    fn settle(&mut self) {
        let Some(goal) = &self.goal else { return };
        let reached = self.version.as_deref();
        if reached.is_some_and(|version| version == goal.version || !is_older(version, &goal.version)) {
            self.rely();
        }
    }

    fn rely(&mut self) {
        if let Some(goal) = self.goal.take() {
            info!(version = goal.version, "all records are known as of this version");
            self.feed.rely(goal.asked);
        }
    }

    /// Reads all records, and swaps the keyring only once it is complete. What is gone from the list is gone from it.
    /// Answers the version that it is of.
    async fn relist(&mut self) -> Result<String, Interruption> {
        let mut keyring = self.keyring.successor();
        let mut page = ListParams::default().limit(PAGE_SIZE);
        let version = loop {
            let list = self.list(&page).await?;
            for record in &list.items {
                let is_new = || self.keyring.slot_of(record.stored()).is_none();
                tell(record, keyring.carry_over(&self.keyring, record.stored()), is_new);
            }
            self.note_list_of_uses(&keyring, &list.items);
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => break list.metadata.resource_version,
            }
        };
        let version = version.filter(|version| !version.is_empty()).ok_or(Interruption::NoVersion)?;
        let asked = Instant::now();
        let newest = self.newest_version().await?.ok_or(Interruption::NoVersion)?;
        info!(records = keyring.len(), %version, %newest, "all records read");
        self.keyring = keyring;
        self.version = Some(version.clone());
        self.goal = Some(Goal { version: newest, asked, is_overdue: false });
        self.feed.publish(&self.keyring);
        self.settle();
        Ok(version)
    }

    async fn newest_version(&self) -> Result<Option<String>, Interruption> {
        let list = self.list(&ListParams::default().limit(1)).await?;
        Ok(list.metadata.resource_version)
    }

    /// Whether the API server is at an older version than `version`: its etcd was restored from a backup. It takes a
    /// watch from the future without complaint and says nothing on it until the future is reached; a key revoked in
    /// the meantime would stay good here.
    async fn is_rewound(&self, version: &str) -> Result<bool, Interruption> {
        let is_rewound = self.newest_version().await?.is_none_or(|newest| is_older(&newest, version));
        if is_rewound {
            warn!(%version, "the API server has gone back in time: reading all records anew");
        }
        Ok(is_rewound)
    }

    async fn list(&self, page: &ListParams) -> Result<ObjectList<Record>, Interruption> {
        let request = self.records.list(page).map_err(kube::Error::BuildRequest)?;
        let text = timeout(self.pace.page, self.client.request_text(request)).await??;
        Ok(serde_json::from_str(&text)?)
    }

    async fn watch(&mut self, version: &str) -> Result<(), Interruption> {
        let (duration, silence) = match self.goal {
            Some(_) => (self.pace.catch_up, self.pace.catch_up * 2),
            None => (self.pace.watch, self.pace.silence),
        };
        let parameters = WatchParams::default().timeout(u32::try_from(duration.as_secs()).unwrap_or(u32::MAX));
        let request = self.records.watch(&parameters, version).map_err(kube::Error::BuildRequest)?;
        let opened = Instant::now();
        let events = timeout(silence, self.client.request_events(request)).await??;
        let mut events = pin!(events);
        let mut is_silent = true;
        // That it was opened says nothing about what is still to come on it.
        self.check_in_time(|feed, now| feed.silence(now) < feed.lease_duration)?;
        while let Some(event) = timeout(silence, events.try_next()).await?.map_err(Interruption::of_watch)? {
            is_silent = false;
            self.apply(event)?;
            self.settle();
            self.check_in_time(Feed::hear)?;
        }
        if opened.elapsed() >= duration
            && let Some(goal) = &mut self.goal
            && mem::replace(&mut goal.is_overdue, true)
        {
            // The second one that has lasted its time, far longer than what was there when it began takes to come. An
            // API server promises no bookmark, and kube-apiserver has none for a watch while the newest write of all is that
            // of a record in another namespace: that delays a start, and does not prevent it.
            warn!("no bookmark has come: what the watch has brought to its end is taken for all that was written");
            self.rely();
        }
        self.check_in_time(Feed::hear)?;
        if is_silent && opened.elapsed() < self.pace.shortest_watch { Err(Interruption::CutShort) } else { Ok(()) }
    }

    /// Fails if the keyring was relied on for too long while nothing was heard. It is not while it catches up.
    fn check_in_time(&self, is_in_time: impl Fn(&Feed, Instant) -> bool) -> Result<(), Interruption> {
        let is_fine = self.goal.is_some() || is_in_time(self.feed, Instant::now());
        is_fine.then_some(()).ok_or(Interruption::TooLate)
    }

    /// Takes note of a last use that the watch tells of. It is counted first, so that whoever sees it has it counted.
    fn note_last_use(&self, record: &Record) {
        let Some((slot, second)) = record.last_use_in(&self.keyring) else { return };
        if self.feed.marks.usage(slot).written < second {
            self.feed.told.send_modify(|told| told.writes += 1);
            self.feed.marks.note_written(slot, second);
        }
    }

    /// Takes note of the last uses in a page of a list, which may stand for any number of writes.
    fn note_list_of_uses(&self, keyring: &Keyring, records: &[Record]) {
        self.feed.marks.reach(keyring.slots());
        self.feed.told.send_modify(|told| told.lists += 1);
        for (slot, second) in records.iter().filter_map(|record| record.last_use_in(keyring)) {
            self.feed.marks.note_written(slot, second);
        }
    }

    fn apply(&mut self, event: WatchEvent<Record>) -> Result<(), Interruption> {
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

    /// Whether the records have to be read anew: the version is too old to watch from (410), or an event was lost
    /// because it could not be read.
    fn voids_version(&self) -> bool {
        match self {
            Self::Request(kube::Error::Api(status)) | Self::Watch(status) => is_gone(status),
            Self::Event(_) | Self::TooLate => true,
            _ => false,
        }
    }
}

/// Some proxies and old API servers leave the code out.
fn is_gone(status: &Status) -> bool {
    status.code == 410 || ["Expired", "Gone"].contains(&status.reason.as_str())
}

/// Whether version `a` comes before version `b`. Versions of one resource are decimal numbers of any length that can
/// be compared (KEP-5504); one that is not a number counts as older, which costs no more than a list.
fn is_older(a: &str, b: &str) -> bool {
    let is_number = |version: &str| !version.is_empty() && version.bytes().all(|octet| octet.is_ascii_digit());
    !is_number(a) || !is_number(b) || (a.len(), a) < (b.len(), b)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::io::{self, BufRead, BufReader, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::sync::Mutex;
    use std::thread;

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
        /// `replies` come with a part of the query that each one is for: `watch=true`, `limit=500` or `limit=1&`.
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
                    if !format!("{target}&").contains(part) {
                        state.wrong.get_or_insert(format!("{target} where {part} was expected"));
                    }
                    reply
                }
            };
            if let Reply::Answer(200, list) = &reply
                && target.contains("limit=500")
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
        for event in events {
            let line = format!("{event}\n");
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
        }
        Ok(())
    }

    const QUICK: Pace = Pace {
        page: Duration::from_secs(2),
        watch: Duration::from_secs(20),
        catch_up: Duration::from_secs(1),
        silence: Duration::from_secs(2),
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
                ("limit=500&", list("100", "next", &[record(1, "7", &spec(1)), record(2, "8", &broken)])),
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
            assert!(!is_watch || target.contains("timeoutSeconds=20&allowWatchBookmarks=true"), "{target}");
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
                ("limit=500&", list("100", "", &[record(1, "7", &spec(1)), used(2, "8", "1970-01-01T00:01:40Z")])),
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
                ("limit=500&", list("200", "", &[used(3, "150", "1970-01-01T00:04:00Z"), used(2, "151", "?")])),
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
                ("limit=500&", list("100", "next", &[record(1, "7", &spec(1))])),
                ("continue=next&", Reply::Answer(410, gone())),
                ("limit=500&", list("300", "next", &[record(2, "7", &spec(2))])),
                ("continue=next&", Reply::Answer(500, json!({}))),
                ("limit=500&", Reply::NoAnswer),
                ("limit=500&", Reply::Answer(200, json!("?"))),
                ("limit=500&", list("", "", &[record(3, "7", &spec(3))])),
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
        let bookmark = |version: &str| {
            event("BOOKMARK", json!({ "kind": "K", "apiVersion": "v1", "metadata": { "resourceVersion": version } }))
        };
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
                "no bookmark, twice to its end",
                late(event("ADDED", record(4, "101", &spec(4)))),
                again(late(deleted())).into_iter().chain(again(silence())).collect(),
            ),
        ];
        let checks = cases.map(async |(case, watch, more)| {
            let mut replies = vec![
                ("limit=500&", list("100", "", &[record(1, "7", &spec(1)), record(2, "8", &spec(2))])),
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
                (
                    "limit=500&",
                    list("100", "", &[1, 2, 3, 4].map(|number: u8| record(number.into(), "7", &spec(number)))),
                ),
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
                vec![("limit=500&", list("100", "", &[record(1, "7", &spec(1))])), ("resourceVersion=100&", watch)];
            if expected == "list" {
                replies.push(("limit=500&", list("150", "", &[record(3, "150", &spec(3))])));
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
                    ("limit=500&", list(before, "", &[record(1, "7", &spec(1))])),
                    ("watch=true", Reply::Events(vec![])),
                    ("limit=1&", list(after, "", &[])),
                    ("limit=500&", list(after, "", &[record(2, "2", &spec(2))])),
                ],
                quiet,
            );
            let feed = feed();
            follow_until(&script, &feed, |feed| names(feed, &["key-2"])).await;
        }
        assert!(!is_older("1000", "1000") && !is_older("1000", "999") && is_older("999", "1000"));
    }

    /// However contact is made again: what was let in before is never let in for a moment on the way back.
    #[tokio::test]
    async fn after_too_long_a_silence_nothing_is_decided_until_all_is_read_anew() {
        let pace = Pace { silence: Duration::from_secs(1), ..QUICK };
        let (lease_duration, delay) = (Duration::from_millis(1600), Duration::from_millis(800));
        let late_event = event("ADDED", record(3, "150", &spec(3)));
        let cases = [
            ("no answer", vec![("limit=1&", Reply::NoAnswer), ("limit=500&", Reply::NoAnswer)]),
            (
                "the question for the version is answered late",
                vec![("limit=1&", Reply::Late(delay, page("100", "", &[])))],
            ),
            (
                "the watch is opened late, and tells of something",
                vec![("limit=1&", list("100", "", &[])), ("watch=true", Reply::Late(delay, late_event))],
            ),
        ];
        let anew = |target: &str| match target.contains("watch=true") {
            true => Reply::Silence(vec![]),
            false => list("200", "", &[record(2, "150", &spec(2))]),
        };
        let checks = cases.map(async |(case, between)| {
            let mut replies = vec![
                ("limit=500&", list("100", "", &[record(1, "7", &spec(1))])),
                ("watch=true", Reply::Silence(vec![])),
            ];
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
            follow_until_at(&script, &feed, pace, is_back).await;
        });
        futures::future::join_all(checks).await;
    }

    #[test]
    fn a_feed_is_stale_once_nothing_was_heard_for_the_lease_duration() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let feed = Feed::new(Duration::from_secs(600), start);
        assert_eq!(feed.current(start).err(), Some(Unready::Syncing));
        feed.hear(after(100.0));
        assert_eq!(feed.current(after(100.0)).err(), Some(Unready::Syncing), "heard, but no list");
        feed.publish(&Keyring::default());
        assert_eq!(feed.current(after(100.0)).err(), Some(Unready::Syncing), "a list, and not what came meanwhile");
        feed.rely(after(90.0));
        assert!(
            feed.current(after(699.9)).is_ok_and(|keyring| {
                keyring.is_empty() && keyring.get(&Digest::of(b"?")) == Err(Untrusted::Absent)
            })
        );
        assert_eq!(feed.current(after(700.0)).err(), Some(Unready::Stale(Duration::from_secs(600))));
        assert!(!feed.hear(after(700.0)) && feed.current(after(700.0)).is_err(), "too late");
        feed.renew(after(50.0));
        assert!(feed.current(after(700.0)).is_err(), "it does not go back");
        feed.renew(after(700.0));
        assert!(feed.current(after(701.0)).is_ok());
        assert_eq!(feed.silence(after(701.0)), Duration::from_secs(1));
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
