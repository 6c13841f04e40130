//! Which records there are for an ApiKey, as a watch tells. A hint where to look, never a reason to act: every record is
//! read anew before anything is decided, and the serial after the newest is tried as well.
//!
//! It is small, because history leaves a tombstone for every key that there was: about 100 octets a record.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::{Mutex, PoisonError};

use kube::runtime::watcher::Event;
use prometheus_client::metrics::gauge::Gauge;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::heads::{RecordHead, Versioned};
use keywright_core::key::Digest;
use keywright_core::record_name::serial_in;

/// The records of every ApiKey, by its uid.
pub(super) struct RecordIndex {
    state: Mutex<State>,
    complete: watch::Sender<bool>,
    /// Says how many of the records are revoked.
    tombstones: Gauge,
}

#[derive(Default)]
struct State {
    known: Known,
    /// What a list that is under way has brought so far.
    listed: Known,
}

#[derive(Default)]
struct Known {
    by_api_key: HashMap<Uid, Records>,
    /// Who claims which digest.
    claims: BTreeSet<Claim>,
    revoked: i64,
}

/// The first octets of the SHA-256 of an ApiKey's uid: whatever form a uid has, it takes as much.
type Uid = [u8; 16];

/// The first octets of a digest, and the record that has it.
type Claim = (u64, Uid, u32);

#[derive(Default)]
struct Records {
    /// The highest version of any of them, deleted ones included; `None` once one could not be read.
    newest: Option<u64>,
    /// By ascending serial.
    entries: SmallVec<[Entry; 1]>,
}

#[derive(Clone, Copy)]
struct Entry {
    serial: u32,
    /// Never changes back.
    revoked: bool,
    digest: u64,
}

/// What the watch of records says of one of them.
struct Mention {
    uid: Uid,
    /// `None` where it cannot be read.
    version: Option<u64>,
    entry: Entry,
}

impl RecordIndex {
    pub(super) fn new(tombstones: Gauge) -> Self {
        Self { state: Mutex::default(), complete: watch::Sender::new(false), tombstones }
    }

    /// Waits for the first list. Before it, the older keys of an ApiKey would be overlooked, and a finalizer taken off
    /// while one of them is still let in.
    pub(super) async fn until_complete(&self) {
        // Fails only without a sender, and that is part of this very value.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }

    /// Takes in one event of the watch.
    pub(super) fn observe(&self, event: &Event<RecordHead>) {
        let mut state = self.lock();
        match event {
            Event::Init => state.listed = Known::default(),
            Event::InitApply(record) => state.listed.insert(record),
            Event::InitDone => {
                state.known = mem::take(&mut state.listed);
                self.complete.send_replace(true);
            }
            Event::Apply(record) => state.known.insert(record),
            Event::Delete(record) => state.known.remove(record),
        }
        self.tombstones.set(state.known.revoked);
    }

    /// The serials worth reading: those that are not known to be revoked, and the newest.
    pub(super) fn serials(&self, uid: &str) -> BTreeSet<u32> {
        let state = self.lock();
        let Some(Records { entries, .. }) = state.known.by_api_key.get(&short(uid)) else {
            return BTreeSet::new();
        };
        let live = entries.iter().filter(|entry| !entry.revoked);
        live.chain(entries.last()).map(|entry| entry.serial).collect()
    }

    /// Whether any key of this ApiKey may still be let in.
    pub(super) fn may_be_live(&self, uid: &str) -> bool {
        let state = self.lock();
        let records = state.known.by_api_key.get(&short(uid));
        records.is_some_and(|records| records.entries.iter().any(|entry| !entry.revoked))
    }

    /// The highest resource version that any record of this ApiKey was seen to have, deleted ones included, and 0 if there
    /// was none: the same number as before means that none of them has changed since, as far as the watch tells. `None`
    /// where that cannot be told. Versions are numbers that grow (KEP-5504), but after a new list this one may be lower.
    pub(super) fn newest_version(&self, uid: &str) -> Option<u64> {
        self.lock().known.by_api_key.get(&short(uid)).map_or(Some(0), |records| records.newest)
    }

    /// Whether a record of another ApiKey than this one has the digest, live or revoked, as far as the watch tells.
    pub(super) fn is_claimed_by_others(&self, digest: &Digest, uid: &str) -> bool {
        let (first, own) = (first_octets(digest), short(uid));
        let all = (first, [0; 16], 0)..=(first, [0xff; 16], u32::MAX);
        self.lock().known.claims.range(all).any(|(_, uid, _)| *uid != own)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, record: &RecordHead) {
        let Some(Mention { uid, version, entry }) = mention(record) else { return };
        let records = self.by_api_key.entry(uid).or_insert_with(Records::none);
        records.note(version);
        self.revoked += i64::from(entry.revoked);
        match records.entries.binary_search_by_key(&entry.serial, |known| known.serial) {
            Ok(at) => {
                let Some(known) = records.entries.get_mut(at) else { return };
                let before = mem::replace(known, entry);
                self.revoked -= i64::from(before.revoked);
                self.claims.remove(&(before.digest, uid, before.serial));
            }
            Err(at) => records.entries.insert(at, entry),
        }
        self.claims.insert((entry.digest, uid, entry.serial));
    }

    /// Where the last record goes, its version goes with it: that there is none differs from any that there was.
    fn remove(&mut self, record: &RecordHead) {
        let Some(Mention { uid, version, entry }) = mention(record) else { return };
        let Some(records) = self.by_api_key.get_mut(&uid) else { return };
        records.note(version);
        if let Ok(at) = records.entries.binary_search_by_key(&entry.serial, |known| known.serial) {
            let known = records.entries.remove(at);
            self.revoked -= i64::from(known.revoked);
            self.claims.remove(&(known.digest, uid, known.serial));
        }
        if records.entries.is_empty() {
            self.by_api_key.remove(&uid);
        }
    }
}

impl Records {
    fn none() -> Self {
        Self { newest: Some(0), entries: SmallVec::new() }
    }

    fn note(&mut self, version: Option<u64>) {
        self.newest = self.newest.zip(version).map(|(newest, version)| newest.max(version));
    }
}

fn mention(record: &RecordHead) -> Option<Mention> {
    let uid = &record.spec.api_key.uid;
    let entry = Entry {
        serial: serial_in(&record.metadata.name, uid)?,
        revoked: record.spec.revoked.is_some(),
        // One that cannot be read is nobody's.
        digest: record.spec.digest.parse().as_ref().map_or(0, first_octets),
    };
    Some(Mention { uid: short(uid), version: record.resource_version().parse().ok(), entry })
}

fn short(uid: &str) -> Uid {
    Digest::of(uid.as_bytes()).as_bytes().first_chunk().copied().unwrap_or_default()
}

fn first_octets(digest: &Digest) -> u64 {
    u64::from_be_bytes(digest.as_bytes().first_chunk().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(uid: &str, serial: u32, version: &str, revoked: bool) -> RecordHead {
        with_digest(&digest(&format!("{uid}-{serial}")).to_string(), uid, serial, version, revoked)
    }

    fn with_digest(digest: &str, uid: &str, serial: u32, version: &str, revoked: bool) -> RecordHead {
        let revoked = revoked.then(|| json!({"at": "2026-11-29T00:00:00Z", "reason": "Deleted"}));
        serde_json::from_value(json!({
            "metadata": {"name": format!("{uid}-{serial}"), "resourceVersion": version},
            "spec": {"digest": digest, "apiKey": {"namespace": "n", "name": "a", "uid": uid}, "revoked": revoked},
        }))
        .unwrap()
    }

    fn digest(of: &str) -> Digest {
        Digest::of(of.as_bytes())
    }

    fn index(records: impl IntoIterator<Item = RecordHead>) -> RecordIndex {
        let index = RecordIndex::new(Gauge::default());
        index.observe(&Event::Init);
        records.into_iter().for_each(|record| index.observe(&Event::InitApply(record)));
        index.observe(&Event::InitDone);
        index
    }

    fn serials(index: &RecordIndex, uid: &str) -> Vec<u32> {
        index.serials(uid).into_iter().collect()
    }

    #[test]
    fn the_live_ones_and_the_newest_are_worth_reading() {
        let [a, b, c] = [(1, true), (3, true), (2, false)].map(|(serial, revoked)| record("u", serial, "5", revoked));
        let index = index([a, b, c, record("v", 1, "5", true)]);
        assert_eq!(serials(&index, "u"), [2, 3]);
        assert!(index.may_be_live("u") && !index.may_be_live("v") && !index.may_be_live("w"));
        assert_eq!(index.tombstones.get(), 3);
        index.observe(&Event::Apply(record("u", 2, "6", true)));
        assert_eq!(serials(&index, "u"), [3]);
        assert!(!index.may_be_live("u"));
        index.observe(&Event::Delete(record("u", 3, "7", true)));
        assert_eq!(serials(&index, "u"), [2]);
        assert_eq!(index.tombstones.get(), 3);
        index.observe(&Event::Apply(record("u", 2, "6", true)));
        assert_eq!(index.tombstones.get(), 3, "twice the same");
    }

    #[test]
    fn a_new_list_replaces_what_was_known_once_it_is_complete() {
        let index = index([record("u", 1, "5", false), record("v", 1, "6", true)]);
        index.observe(&Event::Init);
        index.observe(&Event::InitApply(record("v", 1, "6", true)));
        assert!(index.may_be_live("u"));
        index.observe(&Event::Init);
        index.observe(&Event::InitApply(record("v", 1, "6", true)));
        index.observe(&Event::InitDone);
        assert!(serials(&index, "u").is_empty());
        assert_eq!((serials(&index, "v"), index.tombstones.get()), (vec![1], 1));
        assert!(!index.is_claimed_by_others(&digest("u-1"), "w"));
    }

    #[test]
    fn the_newest_version_differs_after_every_change() {
        let index = index([record("u", 1, "5", false), record("u", 2, "9", false), record("v", 1, "100", false)]);
        assert_eq!(index.newest_version("u"), Some(9));
        index.observe(&Event::Apply(record("u", 1, "101", true)));
        assert_eq!(index.newest_version("u"), Some(101));
        index.observe(&Event::Delete(record("u", 1, "102", true)));
        assert_eq!(index.newest_version("u"), Some(102), "a deletion is a change");
        index.observe(&Event::Delete(record("u", 2, "103", true)));
        assert_eq!(index.newest_version("u"), Some(0), "there is none");
        index.observe(&Event::Apply(record("v", 1, "a1", true)));
        assert_eq!(index.newest_version("v"), None, "it cannot be told");
        index.observe(&Event::Apply(record("v", 1, "104", true)));
        assert_eq!(index.newest_version("v"), None);
    }

    #[test]
    fn a_digest_is_claimed_by_whoever_has_a_record_of_it() {
        let shared = digest("shared").to_string();
        let index = index([
            with_digest(&shared, "u", 1, "5", true),
            with_digest(&shared, "v", 1, "6", false),
            record("w", 1, "7", false),
        ]);
        for (uid, expected) in [("u", true), ("v", true), ("w", true)] {
            assert_eq!(index.is_claimed_by_others(&digest("shared"), uid), expected, "{uid}");
        }
        assert!(!index.is_claimed_by_others(&digest("w-1"), "w"));
        index.observe(&Event::Delete(with_digest(&shared, "v", 1, "8", false)));
        assert!(!index.is_claimed_by_others(&digest("shared"), "u"));
        assert!(index.is_claimed_by_others(&digest("shared"), "v"));
    }

    #[test]
    fn what_the_controller_did_not_make_is_not_in_it() {
        let mut stray = record("u", 1, "5", false);
        stray.metadata.name = "u-01".into();
        let index = index([stray]);
        assert!(serials(&index, "u").is_empty());
    }

    #[test]
    fn a_record_takes_little() {
        assert!(size_of::<(Uid, Records)>() + size_of::<Claim>() <= 96, "{}", size_of::<(Uid, Records)>());
    }
}
