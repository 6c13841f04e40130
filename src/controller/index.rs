//! Which records there are for an ApiKey, as a watch tells. A hint where to look, never a reason to act: every record is
//! read anew before anything is decided, and the serial after the newest is tried as well.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use crate::api::ApiKeyReference;

/// The records of every ApiKey, by its uid.
pub(super) struct RecordIndex {
    state: Mutex<State>,
    complete: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    known: HashMap<String, Serials>,
    /// What a list that is under way has brought so far.
    listed: HashMap<String, Serials>,
}

/// Serial to whether that key is revoked, which never changes back.
type Serials = BTreeMap<u32, bool>;

/// What the watch of records says of one of them.
struct Mention {
    uid: String,
    serial: u32,
    revoked: bool,
}

impl RecordIndex {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), complete: watch::Sender::new(false) }
    }

    /// Waits for the first list. Before it, the older keys of an ApiKey would be overlooked, and a finalizer taken off
    /// while one of them is still let in.
    pub(super) async fn until_complete(&self) {
        // Fails only without a sender, and that is part of this very value.
        let _ = self.complete.subscribe().wait_for(|complete| *complete).await;
    }

    /// Takes in one event of the watch.
    pub(super) fn observe(&self, event: &Event<DynamicObject>) {
        let mut state = self.lock();
        match event {
            Event::Init => state.listed.clear(),
            Event::InitApply(record) => insert(&mut state.listed, record),
            Event::InitDone => {
                state.known = std::mem::take(&mut state.listed);
                self.complete.send_replace(true);
            }
            Event::Apply(record) => insert(&mut state.known, record),
            Event::Delete(record) => {
                let Some(mention) = mention(record) else { return };
                if let Some(serials) = state.known.get_mut(&mention.uid) {
                    serials.remove(&mention.serial);
                    if serials.is_empty() {
                        state.known.remove(&mention.uid);
                    }
                }
            }
        }
    }

    /// The serials worth reading: those that are not known to be revoked, and the newest.
    pub(super) fn serials(&self, uid: &str) -> BTreeSet<u32> {
        let state = self.lock();
        let Some(serials) = state.known.get(uid) else {
            return BTreeSet::new();
        };
        let newest = serials.keys().next_back().copied();
        serials.iter().filter(|(_, revoked)| !**revoked).map(|(serial, _)| *serial).chain(newest).collect()
    }

    /// Whether any key of this ApiKey may still be let in.
    pub(super) fn may_be_live(&self, uid: &str) -> bool {
        self.lock().known.get(uid).is_some_and(|serials| serials.values().any(|revoked| !revoked))
    }

    pub(super) fn newest_version(&self, _uid: &str) -> u64 { 0 }
    pub(super) fn is_claimed_by_others(&self, _digest: &crate::key::Digest, _uid: &str) -> bool { false }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn insert(into: &mut HashMap<String, Serials>, record: &DynamicObject) {
    if let Some(Mention { uid, serial, revoked }) = mention(record) {
        into.entry(uid).or_default().insert(serial, revoked);
    }
}

fn mention(record: &DynamicObject) -> Option<Mention> {
    let uid = reference(record)?.uid;
    let serial = crate::lifecycle::serial_in(record.metadata.name.as_deref()?, &uid)?;
    let revoked = record.data.pointer("/spec/revoked").is_some_and(|revoked| !revoked.is_null());
    Some(Mention { uid, serial, revoked })
}

/// The ApiKey that a record belongs to.
pub(super) fn reference(record: &DynamicObject) -> Option<ApiKeyReference> {
    serde_json::from_value(record.data.pointer("/spec/apiKey")?.clone()).ok()
}
