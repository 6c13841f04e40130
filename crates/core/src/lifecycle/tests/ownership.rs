//! Many ApiKeys, few digests: whoever first claimed a digest is let in exactly while its own ApiKey says so, and what was
//! revoked is never let in again. Passes are interleaved write by write, crash anywhere, and sweeps come in between.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::plan::DELIVERY_GRACE;
use super::super::tombstones::Tombstone;
use super::super::*;
use super::from_source;
use crate::api::{ApiKeyRecord, ApiKeyReference, ApiKeyStatus, FINALIZER, Reason};
use crate::declaration;
use crate::key::{Digest, Prefix};
use crate::keyring::{Keyring, StoredRecord};

const RETENTION: SignedDuration = SignedDuration::from_hours(24);
const DIGESTS: usize = 3;
const NAMES: usize = 4;

/// An ApiKey, and the Secret of its name.
#[derive(Clone, Debug)]
struct Declared {
    uid: String,
    spec: Value,
    created: Timestamp,
    version: u64,
    deleting: bool,
    finalizer: bool,
    status: ApiKeyStatus,
    secret: SecretState,
    /// What its source holds, if its spec names one.
    source: Result<Digest, SourceProblem>,
}

#[derive(Default)]
struct Cluster {
    seconds: i64,
    version: u64,
    uids: u64,
    minted: u64,
    api_keys: BTreeMap<usize, Declared>,
    records: BTreeMap<String, Record>,
    /// Passes under way: what each has observed, and the version of its ApiKey.
    passes: BTreeMap<usize, (Observed, u64)>,
    keyring: Keyring,
    /// Digests of keys that were revoked, until their tombstones are gone.
    revoked: BTreeSet<String>,
    generated: Vec<String>,
}

#[derive(Clone, Debug)]
enum Action {
    /// Submit one of the digests; beyond them, one of a generated key if there is any, then generate a key, and then have
    /// the key in a source.
    Declare(usize, usize),
    /// Put one of the digests into the source, or nothing.
    Fill(usize, usize),
    Delete(usize),
    Suspend(usize, bool),
    /// One write of a pass, on what it has observed at its beginning.
    Step(usize),
    /// A pass to its end.
    Pass(usize),
    /// Whatever passes were under way are forgotten.
    RestartController,
    RestartVerifier,
    Sweep,
    Wait(i64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..NAMES, 0..DIGESTS + 4).prop_map(|(name, digest)| Action::Declare(name, digest)),
        3 => (0..NAMES, 0..DIGESTS + 1).prop_map(|(name, digest)| Action::Fill(name, digest)),
        3 => (0..NAMES).prop_map(Action::Delete),
        1 => (0..NAMES, any::<bool>()).prop_map(|(name, suspended)| Action::Suspend(name, suspended)),
        12 => (0..NAMES).prop_map(Action::Step),
        6 => (0..NAMES).prop_map(Action::Pass),
        1 => Just(Action::RestartController),
        1 => Just(Action::RestartVerifier),
        2 => Just(Action::Sweep),
        2 => prop_oneof![Just(0), Just(1), Just(30), Just(RETENTION.as_secs())].prop_map(Action::Wait),
    ]
}

impl Cluster {
    fn now(&self) -> Timestamp {
        "2026-11-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(self.seconds)
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn take(&mut self, action: Action) {
        match action {
            Action::Declare(name, digest) => self.declare(name, digest),
            Action::Fill(name, digest) => {
                if let Some(api_key) = self.api_keys.get_mut(&name) {
                    api_key.source = submitted(digest).ok_or(SourceProblem::Missing);
                }
            }
            Action::Delete(name) => {
                let version = self.next_version();
                if let Some(api_key) = self.api_keys.get_mut(&name) {
                    (api_key.deleting, api_key.version) = (true, version);
                    if !api_key.finalizer {
                        self.api_keys.remove(&name);
                    }
                }
            }
            Action::Suspend(name, suspended) => {
                let version = self.next_version();
                if let Some(api_key) = self.api_keys.get_mut(&name) {
                    api_key.spec["suspended"] = json!(suspended);
                    api_key.version = version;
                }
            }
            Action::Step(name) => drop(self.step(name)),
            Action::Pass(name) => self.pass(name),
            Action::RestartController => self.passes.clear(),
            Action::RestartVerifier => {
                self.keyring = Keyring::default();
                // In the order of their names, which is not the one in which they came.
                let records: Vec<_> = self.records.values().cloned().collect();
                records.iter().for_each(|record| self.tell(record));
            }
            Action::Sweep => self.sweep(),
            Action::Wait(seconds) => self.seconds += seconds,
        }
        self.check();
    }

    fn declare(&mut self, name: usize, digest: usize) {
        if self.api_keys.contains_key(&name) {
            return;
        }
        let spec = match digest {
            digest if let Some(digest) = submitted(digest) => json!({"keyHash": digest.to_string()}),
            DIGESTS if !self.generated.is_empty() => json!({"keyHash": self.generated[self.generated.len() / 2]}),
            digest if digest <= DIGESTS + 1 => json!({}),
            _ => from_source(json!({"overlap": "20s"})),
        };
        self.uids += 1;
        let hash = Digest::of(&self.uids.to_be_bytes()).to_string();
        let digits = &hash["sha256:".len()..];
        let uid = format!("{}-0000-4000-8000-{}", &digits[..8], &digits[8..20]);
        let (created, version) = (self.now(), self.next_version());
        let (status, secret) = (ApiKeyStatus::default(), SecretState::Absent);
        let source = submitted(digest % (DIGESTS + 1)).ok_or(SourceProblem::Missing);
        let declared =
            Declared { uid, spec, created, version, deleting: false, finalizer: true, status, secret, source };
        self.api_keys.insert(name, declared);
    }

    /// Tells the verifier of a record that is new, or has changed in anything but its digest.
    fn tell(&mut self, record: &Record) {
        let spec = serde_json::to_value(&record.spec).unwrap();
        let stored = StoredRecord::read(record.name(), Some(record.created()), &spec).unwrap();
        assert!(self.keyring.upsert(&stored).is_ok());
    }

    fn tell_removal(&mut self, record: &Record) {
        let spec = serde_json::to_value(&record.spec).unwrap();
        self.keyring.remove(&StoredRecord::read(record.name(), Some(record.created()), &spec).unwrap());
    }

    /// The oldest record of a digest.
    fn ruling(&self, digest: &str) -> Option<&Record> {
        let claims = self.records.values().filter(|record| record.spec.digest == digest);
        claims.min_by_key(|record| (record.created(), record.spec.api_key.uid.clone(), record.spec.serial))
    }

    fn ownership(&self, api_key: &Declared) -> Ownership {
        let Some(digest) = api_key.claimed() else { return Ownership::Unasked };
        self.ruling(&digest).map_or(Ownership::Free, |record| {
            Ownership::Owned(Claim {
                created: record.created(),
                uid: record.spec.api_key.uid.clone(),
                serial: record.spec.serial,
                is_revoked: !record.is_live(),
            })
        })
    }

    fn observe(&self, name: usize) -> Option<(Observed, u64)> {
        let api_key = self.api_keys.get(&name)?;
        let object = format!("key-{name}");
        let reference = ApiKeyReference { namespace: "team-a".into(), name: object.clone(), uid: api_key.uid.clone() };
        let own = self.records.values().filter(|record| record.spec.api_key.uid == api_key.uid);
        let mut records: Vec<_> = own.cloned().collect();
        records.sort_by_key(|record| record.spec.serial);
        let observed = Observed {
            generation: 1,
            created: api_key.created,
            resource_version: api_key.version.to_string(),
            is_deleting: api_key.deleting,
            finalizers: api_key.finalizer.then(|| FINALIZER.to_owned()).into_iter().collect(),
            rotate_request: None,
            declared: declaration::read(&api_key.spec, &object, api_key.created),
            status: api_key.status.clone(),
            secret: api_key.secret.clone(),
            source: api_key.source,
            obstacle: None,
            secret_attempt: SecretAttempt::None,
            ownership: self.ownership(api_key),
            records,
            enforcement: Enforcement::Unasked,
            held: None,
            reference,
        };
        Some((observed, api_key.version))
    }

    /// Goes on with the pass over this ApiKey, or begins one. Answers whether it has come to its end.
    fn step(&mut self, name: usize) -> bool {
        let Some((mut observed, version)) = self.passes.remove(&name).or_else(|| self.observe(name)) else {
            return true;
        };
        match plan(&observed, self.now()) {
            Plan::Done => true,
            Plan::AskVerifiers(_) => {
                observed.enforcement = Enforcement::Complete { verifiers: 1 };
                self.passes.insert(name, (observed, version));
                false
            }
            Plan::Rest(finding) => {
                let status = render(&observed, &finding, self.now());
                let next = self.next_version();
                // Refused where the ApiKey has changed since it was observed.
                if let Some(api_key) = self.api_keys.get_mut(&name).filter(|api_key| api_key.version == version) {
                    api_key.status = status;
                    api_key.version = next;
                    return true;
                }
                false
            }
            Plan::Write(write) => {
                if self.write(name, version, &mut observed, write) {
                    let version = self.api_keys.get(&name).map_or(version, |api_key| api_key.version.max(version));
                    self.passes.insert(name, (observed, version));
                }
                false
            }
        }
    }

    /// Carries a write out where its precondition holds.
    fn write(&mut self, name: usize, version: u64, observed: &mut Observed, write: Write) -> bool {
        let next = self.next_version();
        match write {
            Write::RemoveFinalizer(_) => {
                let is_current = self.api_keys.get(&name).is_some_and(|api_key| api_key.version == version);
                if is_current {
                    self.api_keys.remove(&name);
                }
                // Nothing is left of the ApiKey to be observed.
                false
            }
            Write::CreateRecord(record) => {
                let record = self.new_record(observed, &record, next);
                if self.records.contains_key(record.name()) {
                    return false;
                }
                self.tell(&record);
                self.records.insert(record.name().to_owned(), record.clone());
                observed.records.push(record);
                // As `apply` does.
                if let Some(api_key) = self.api_keys.get(&name).filter(|api_key| api_key.uid == observed.reference.uid)
                {
                    observed.ownership = self.ownership(api_key);
                }
                true
            }
            Write::UpdateRecord(update) => {
                let Some(record) = self.stored(update.metadata.name.as_deref(), &update.metadata.resource_version)
                else {
                    return false;
                };
                if update.spec.revoked.is_some() && record.is_live() {
                    self.revoke(&record);
                }
                let record = self.replaced(update.object(), next);
                let own = observed.records.iter_mut().find(|own| own.name() == record.name());
                *own.unwrap() = record;
                true
            }
            Write::RemoveRecord(removal) => {
                let Some(record) = self.stored(Some(&removal.name), &removal.resource_version) else { return false };
                assert!(record.is_live(), "a tombstone is removed by sweeps alone");
                let ruling = self.ruling(&record.spec.digest).map(Record::name);
                assert_ne!(ruling, Some(&*removal.name), "the owner's record");
                self.tell_removal(&record);
                self.records.remove(&removal.name);
                observed.records.retain(|own| own.name() != removal.name);
                true
            }
            Write::CreateSecret(draft) | Write::ReplaceSecret(draft) => {
                let Some(api_key) = self.api_keys.get_mut(&name) else { return false };
                let delivered = observed.held.as_ref().map(|held| held.digest);
                let mut stored = draft.object("its key is not known here");
                stored.metadata.resource_version = Some(next.to_string());
                let contents = SecretContents::declared(&observed.reference, observed.declared.as_ref().unwrap());
                api_key.secret = SecretState::read(stored, &observed.reference, &contents.unwrap());
                if let SecretState::Ours { digest, .. } = &mut api_key.secret {
                    *digest = delivered;
                }
                observed.secret = api_key.secret.clone();
                self.generated.extend(delivered.map(|digest| digest.to_string()));
                true
            }
            Write::AddFinalizer(_) | Write::UpdateStatus(_) | Write::UpdateSecret(_) => panic!("not in this world"),
        }
    }

    /// The record of this name, if that is its version.
    fn stored(&self, name: Option<&str>, version: &Option<String>) -> Option<Record> {
        self.records.get(name?).filter(|record| record.metadata.resource_version == *version).cloned()
    }

    /// Stores a record in place of the one of its name, and tells the verifier.
    fn replaced(&mut self, mut object: ApiKeyRecord, version: u64) -> Record {
        object.metadata.resource_version = Some(version.to_string());
        let record = Record::from(object);
        self.tell(&record);
        self.records.insert(record.name().to_owned(), record.clone());
        record
    }

    fn new_record(&mut self, observed: &mut Observed, record: &NewRecord, version: u64) -> Record {
        self.minted += 1;
        let mut stored = match record.key {
            NewKey::Submitted(digest) => record.object(digest, None),
            NewKey::Minted => {
                let digest = Digest::of(&self.minted.to_be_bytes());
                let prefix: Prefix = format!("keyw1_{:08}", self.minted).parse().unwrap();
                observed.held = Some(Held { serial: record.serial(), digest, prefix, is_refused: false });
                record.object(digest, Some(prefix))
            }
        };
        stored.metadata.resource_version = Some(version.to_string());
        stored.metadata.creation_timestamp = Some(Time(self.now()));
        Record::from(stored)
    }

    /// A key is about to be revoked.
    fn revoke(&mut self, record: &Record) {
        let owner = self.api_keys.values().find(|api_key| api_key.uid == record.spec.api_key.uid);
        let is_submitted = owner.is_some_and(|owner| owner.spec.get("keyHash").is_some());
        assert!(!is_submitted || owner.is_none_or(|owner| owner.deleting), "nobody else revokes a key: {record:?}");
        if self.ruling(&record.spec.digest).is_some_and(|ruling| ruling.name() == record.name()) {
            self.revoked.insert(record.spec.digest.clone());
        }
    }

    fn pass(&mut self, name: usize) {
        for _ in 0..40 {
            if self.step(name) {
                return;
            }
        }
        panic!("no rest: {:#?}", self.observe(name));
    }

    fn sweep(&mut self) {
        let orphaned = |record: &&Record| {
            record.is_live() && !self.api_keys.values().any(|api_key| api_key.uid == record.spec.api_key.uid)
        };
        let orphans: Vec<_> = self.records.values().filter(orphaned).cloned().collect();
        for orphan in orphans {
            self.revoke(&orphan);
            let update = RecordUpdate::revocation(as_stored(orphan), RevocationReason::Orphaned, self.now());
            let version = self.next_version();
            self.replaced(update.object(), version);
        }
        let is_over = |record: &&Record| {
            let revoked_at = record.spec.revoked.as_ref().map(|revoked| revoked.at.0);
            revoked_at.is_some_and(|revoked_at| {
                let is_generated = record.spec.key_prefix.is_some();
                let tombstone = Tombstone { name: record.name(), namespace: "team-a", revoked_at, is_generated };
                tombstone.is_over(RETENTION, self.now())
            })
        };
        let over: Vec<_> = self.records.values().filter(is_over).cloned().collect();
        for record in over {
            if self.api_keys.values().any(|api_key| api_key.claimed().as_ref() == Some(&record.spec.digest)) {
                continue;
            }
            self.tell_removal(&record);
            self.records.remove(record.name());
            if self.ruling(&record.spec.digest).is_none() {
                self.revoked.remove(&record.spec.digest);
            }
        }
    }

    fn lets_in(&self, digest: &str) -> bool {
        let entry = self.keyring.get(&digest.parse().unwrap());
        entry.is_ok_and(|entry| !entry.is_revoked() && !entry.is_suspended())
    }

    /// What holds after every write.
    fn check(&self) {
        for digest in &self.revoked {
            assert!(!self.lets_in(digest), "a revoked key is let in: {digest}");
        }
        let digests: BTreeSet<_> = self.records.values().map(|record| &record.spec.digest).collect();
        for digest in digests {
            let ruling = self.ruling(digest).unwrap();
            assert_eq!(self.lets_in(digest), ruling.is_live() && !ruling.spec.suspended, "the oldest alone rules");
        }
    }

    /// What holds once every pass has come to its end.
    fn check_rest(&mut self) {
        // Twice: who owns a digest can change with the pass of another ApiKey, which then wakes the others.
        for name in (0..NAMES).chain(0..NAMES) {
            self.passes.remove(&name);
            self.pass(name);
        }
        let mut owners = BTreeMap::new();
        for api_key in self.api_keys.values() {
            let Some(digest) = api_key.claimed() else { continue };
            let ruling = self.ruling(&digest).unwrap();
            let is_own = ruling.spec.api_key.uid == api_key.uid;
            let reason = |status: &ApiKeyStatus| status.conditions[0].reason.clone();
            let suspended = api_key.spec.get("suspended") == Some(&json!(true));
            let expected = match (is_own, ruling.is_live()) {
                (true, true) if suspended => Reason::Suspended,
                (true, true) if !api_key.status.retiring.is_empty() => Reason::Rotating,
                (true, true) => Reason::Active,
                (false, true) => Reason::DigestTaken,
                (_, false) => Reason::DigestRevoked,
            };
            assert_eq!(reason(&api_key.status), expected, "{digest} {:#?}", self.records);
            if is_own && ruling.is_live() {
                assert_eq!(self.lets_in(&digest), !suspended, "its own ApiKey says so");
                assert!(owners.insert(digest, ()).is_none(), "one owner");
            }
        }
        let live: Vec<_> = self.records.values().filter(|record| record.is_live()).collect();
        for record in live {
            let own = self.api_keys.values().any(|api_key| api_key.uid == record.spec.api_key.uid);
            assert!(own, "a live key of nobody: {record:#?}");
        }
    }
}

impl Declared {
    /// The digest that it submits, or that its source holds.
    fn claimed(&self) -> Option<String> {
        if self.spec.get("keyFrom").is_some() {
            return self.source.ok().map(|digest| digest.to_string());
        }
        self.spec.get("keyHash").and_then(Value::as_str).map(str::to_owned)
    }
}

/// One of the digests that people submit.
fn submitted(number: usize) -> Option<Digest> {
    (number < DIGESTS).then(|| Digest::of(&[number as u8]))
}

fn as_stored(record: Record) -> ApiKeyRecord {
    ApiKeyRecord { metadata: record.metadata, spec: record.spec, status: None }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn whoever_first_claimed_a_digest_owns_it(story in proptest::collection::vec(action(), 1..60)) {
        let mut cluster = Cluster::default();
        for action in story {
            cluster.take(action);
        }
        cluster.take(Action::Wait(DELIVERY_GRACE.as_secs()));
        cluster.check_rest();
    }
}
