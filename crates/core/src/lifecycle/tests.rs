//! A small world that carries plans out, is crashed after any write, and is meddled with by people. Whatever happens,
//! it has to come to rest, and the promises have to hold there.

mod enforcement;
mod ownership;
mod rotation;
mod source;
mod states;
mod template;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::messages::SECRET_RETRY;
use super::observed::{MAX_SHOWN_SERIAL, MINT_PERIOD};
use super::plan::{DELIVERY_GRACE, MAX_LIVE_KEYS};
use super::record::whole_seconds;
use super::*;
use crate::api::{
    ApiKeyRecord, ApiKeyRecordSpec, ApiKeyReference, ApiKeyStatus, ConditionStatus, ConditionType, FINALIZER, Reason,
    SERIAL_ANNOTATION,
};
use crate::declaration::{self, Declaration, Problem};
use crate::key::Digest;
use crate::record_name::{record_name, serial_in};

const UID: &str = "6a0a1c9e-0000-4000-8000-000000000001";

fn reference() -> ApiKeyReference {
    ApiKeyReference { namespace: "team-a".into(), name: "ci".into(), uid: UID.into() }
}

/// What is minted as the key of this number.
fn key_number(number: u64) -> String {
    format!("keyw1_{number:08}{:041}", 0)
}

/// The text with this digest: one of the keys up to `minted`, or somebody's own.
fn key_with(digest: &Digest, minted: u64) -> String {
    let minted = (1..=minted).map(key_number).find(|key| Digest::of(key.as_bytes()) == *digest);
    minted.unwrap_or_else(|| "somebody's own idea of a key".to_owned())
}

/// What is stored, and who knows what.
#[derive(Clone, Debug)]
struct World {
    now: Timestamp,
    created: Timestamp,
    spec: Value,
    generation: i64,
    deleting: bool,
    finalizer: bool,
    other_finalizers: Vec<String>,
    status: ApiKeyStatus,
    secret: SecretState,
    /// What the source holds.
    source: Result<Digest, SourceProblem>,
    /// The entries of the Secret.
    data: BTreeMap<String, ByteString>,
    /// What came of the last try to make the Secret hold what is declared, what it was about, and when it was.
    secret_attempt: Option<(SecretAttempt, (Option<String>, i64), Timestamp)>,
    /// The value of the annotation `keywright.dev/rotate`.
    rotate: Option<String>,
    /// What the API server says of a Secret with a key in it.
    obstacle: Option<Obstacle>,
    /// The oldest record of another ApiKey that has the submitted digest.
    rival: Option<Claim>,
    records: BTreeMap<u32, Record>,
    /// What the verifiers answer when they are asked.
    verifiers: Enforcement,
    /// What they have answered since the records were last written.
    enforcement: Enforcement,
    held: Option<Held>,
    version: u64,
    minted: u64,
    /// Digests that were in the Secret at some time: somebody may hold those keys.
    handed_out: BTreeSet<String>,
    writes: usize,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rest {
    Settled,
    Done,
    Crashed,
}

impl World {
    fn new(spec: Value) -> Self {
        let created = "2026-11-01T00:00:00Z".parse().unwrap();
        Self {
            now: created,
            created,
            spec,
            generation: 1,
            deleting: false,
            finalizer: false,
            other_finalizers: Vec::new(),
            status: ApiKeyStatus::default(),
            secret: SecretState::Absent,
            source: Err(SourceProblem::Missing),
            data: BTreeMap::new(),
            secret_attempt: None,
            rotate: None,
            obstacle: None,
            rival: None,
            records: BTreeMap::new(),
            verifiers: Enforcement::Complete { verifiers: 1 },
            enforcement: Enforcement::Unasked,
            held: None,
            version: 0,
            minted: 0,
            handed_out: BTreeSet::new(),
            writes: 0,
        }
    }

    fn observed(&self) -> Observed {
        let declared = declaration::read(&self.spec, "ci", self.created);
        let observed = Observed {
            reference: reference(),
            generation: self.generation,
            created: self.created,
            resource_version: "1".into(),
            is_deleting: self.deleting,
            finalizers: self
                .finalizer
                .then(|| FINALIZER.to_owned())
                .into_iter()
                .chain(self.other_finalizers.clone())
                .collect(),
            rotate_request: self.rotate.as_deref().map(RotateRequest::read),
            status: self.status.clone(),
            secret: self.read_secret(&declared),
            declared,
            source: self.source,
            obstacle: None,
            secret_attempt: self.recalled_attempt(),
            ownership: self.ownership(),
            records: self.records.values().cloned().collect(),
            enforcement: self.enforcement.clone(),
            held: self.held.clone(),
        };
        let obstacle = self.obstacle.clone().filter(|_| observed.needs_to_know_obstacle(self.now));
        Observed { obstacle, ..observed }
    }

    /// The Secret as it stands, read by what is declared now.
    fn read_secret(&self, declared: &Result<Declaration, Vec<Problem>>) -> SecretState {
        let mut secret = self.secret.clone();
        let contents = declared.as_ref().ok().and_then(|declared| SecretContents::declared(&reference(), declared));
        if let (SecretState::Ours { metadata, has_declared_entries, .. }, Some(contents)) = (&mut secret, contents) {
            *has_declared_entries = contents.are_in(&self.data) || contents.leave_alone(metadata);
        }
        secret
    }

    fn contents(&self) -> SecretContents {
        SecretContents::declared(&reference(), &self.observed().declared.unwrap()).unwrap()
    }

    /// The last try, if it was about this Secret and this generation. A refusal counts for a while.
    fn recalled_attempt(&self) -> SecretAttempt {
        match &self.secret_attempt {
            Some((SecretAttempt::Refused(_), _, at)) if self.now.duration_since(*at) >= SECRET_RETRY => {
                SecretAttempt::None
            }
            Some((attempt, about, _)) if *about == (self.secret_version(), self.generation) => attempt.clone(),
            _ => SecretAttempt::None,
        }
    }

    fn secret_version(&self) -> Option<String> {
        let SecretState::Ours { metadata, .. } = &self.secret else { return None };
        metadata.resource_version.clone()
    }

    fn ownership(&self) -> Ownership {
        let claimed = match (self.spec.get("keyHash").and_then(Value::as_str), self.has_source()) {
            (Some(digest), _) => digest.to_owned(),
            (None, true) if let Ok(digest) = self.source => digest.to_string(),
            _ => return Ownership::Unasked,
        };
        let own = self.records.values().filter(|record| record.spec.digest == claimed).map(|record| Claim {
            created: record.created(),
            uid: UID.into(),
            serial: record.spec.serial,
            is_revoked: !record.is_live(),
        });
        own.chain(self.rival.clone()).min().map_or(Ownership::Free, Ownership::Owned)
    }

    fn has_source(&self) -> bool {
        self.spec.get("keyFrom").is_some()
    }

    /// Whether the key was made elsewhere.
    fn is_submitted(&self) -> bool {
        self.spec.get("keyHash").is_some() || self.has_source()
    }

    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    /// The plan, once the verifiers were asked where it wants that.
    fn plan(&mut self) -> Plan {
        match plan(&self.observed(), self.now) {
            Plan::AskVerifiers(_) => {
                self.enforcement = self.verifiers.clone();
                let plan = plan(&self.observed(), self.now);
                assert!(!matches!(plan, Plan::AskVerifiers(_)), "they have answered: {self:#?}");
                plan
            }
            plan => plan,
        }
    }

    /// Runs until nothing is left to write, or until `crash_after` writes were carried out.
    fn run(&mut self, crash_after: Option<usize>) -> Rest {
        self.enforcement = Enforcement::Unasked;
        for step in 0..40 {
            if crash_after == Some(step) {
                self.held = None;
                return Rest::Crashed;
            }
            match self.plan() {
                Plan::AskVerifiers(_) => unreachable!(),
                Plan::Done => {
                    self.held = None;
                    return Rest::Done;
                }
                Plan::Rest(finding) => {
                    self.status = render(&self.observed(), &finding, self.now);
                    self.held = None;
                    let due = annotations_due(&self.observed(), &finding);
                    if let Some(update) = due.filter(|_| self.obstacle.is_none()) {
                        self.writes += 1;
                        self.store(&update);
                    }
                    return Rest::Settled;
                }
                Plan::Write(write) => self.carry_out(write),
            }
        }
        panic!("no rest: {self:#?}");
    }

    fn carry_out(&mut self, write: Write) {
        self.writes += 1;
        match write {
            Write::AddFinalizer(write) => self.set_finalizers(&write, true),
            Write::RemoveFinalizer(write) => {
                assert!(self.records.values().all(|record| !record.is_live()), "a finalizer goes last: {self:#?}");
                assert!(matches!(self.enforcement, Enforcement::Complete { .. }), "everywhere: {self:#?}");
                self.set_finalizers(&write, false);
            }
            Write::CreateRecord(record) => self.create_record(&record),
            Write::UpdateRecord(update) => self.update_record(update.object()),
            Write::CreateSecret(secret) => {
                assert_eq!(self.secret, SecretState::Absent);
                self.hand_out(&secret);
            }
            Write::ReplaceSecret(secret) => {
                self.assert_secret_version(secret.metadata.resource_version.as_deref());
                self.hand_out(&secret);
            }
            Write::UpdateSecret(update) => self.update_secret(&update),
            Write::UpdateStatus(status) => self.status = *status,
            Write::RemoveRecord(removal) => {
                let serial = serial_in(&removal.name, UID).unwrap();
                assert_eq!(self.records[&serial].metadata.resource_version, removal.resource_version);
                self.records.remove(&serial);
            }
        }
    }

    fn set_finalizers(&mut self, write: &Finalizers, with_ours: bool) {
        let (ours, others): (Vec<_>, Vec<_>) = write.finalizers.iter().cloned().partition(|name| name == FINALIZER);
        assert_eq!((ours.len(), &others), (usize::from(with_ours), &self.other_finalizers), "those of others stay");
        self.finalizer = with_ours;
    }

    /// Somebody else's rules may refuse it.
    fn update_secret(&mut self, update: &SecretUpdate) {
        let outcome = match &self.obstacle {
            Some(Obstacle::Refused(words) | Obstacle::Unknown(words)) => SecretAttempt::Refused(words.clone()),
            None => {
                self.store(update);
                SecretAttempt::Taken
            }
        };
        self.secret_attempt = Some((outcome, (self.secret_version(), self.generation), self.now));
    }

    fn store(&mut self, update: &SecretUpdate) {
        self.assert_secret_version(update.metadata.resource_version.as_deref());
        let version = self.next_version();
        let key = self.data.get("api-key").cloned();
        let stored = Secret { data: Some(self.data.clone()), ..Secret::default() };
        let Secret { metadata: written, data, .. } = update.object(stored).expect("the key that was observed");
        self.data = data.unwrap();
        assert_eq!(self.data.get("api-key").cloned(), key, "the key stays");
        let SecretState::Ours { metadata, is_immutable, .. } = &mut self.secret else { panic!("not ours") };
        assert!(!*is_immutable || !update.changes_entries(), "the API server refuses that");
        **metadata = ObjectMeta { resource_version: Some(version), ..written };
    }

    /// Somebody edits the Secret, if it is ours.
    fn edit_secret(&mut self, edit: impl FnOnce(&mut ObjectMeta, &mut Option<Digest>)) {
        let (version, minted) = (self.next_version(), self.minted);
        if let SecretState::Ours { metadata, digest, .. } = &mut self.secret {
            edit(metadata, digest);
            metadata.resource_version = Some(version);
            self.data.remove("api-key");
            let key = digest.map(|digest| ByteString(key_with(&digest, minted).into()));
            self.data.extend(key.map(|key| ("api-key".to_owned(), key)));
        }
    }

    fn create_record(&mut self, record: &NewRecord) {
        self.enforcement = Enforcement::Unasked;
        let serial = record.serial();
        assert!(self.finalizer, "a key without a finalizer could outlive its ApiKey");
        assert!(!self.records.contains_key(&serial), "a name that is taken: {self:#?}");
        self.minted += 1;
        let mut stored = match record.key {
            NewKey::Submitted(digest) => record.object(digest, None),
            NewKey::Minted => {
                let key = key_number(self.minted);
                let (digest, prefix) = (Digest::of(key.as_bytes()), key[..14].parse().unwrap());
                self.held = Some(Held { serial, digest, prefix, is_refused: false });
                record.object(digest, Some(prefix))
            }
        };
        stored.metadata.resource_version = Some(self.next_version());
        stored.metadata.creation_timestamp = Some(Time(whole_seconds(self.now)));
        self.records.insert(serial, Record::from(stored));
    }

    fn update_record(&mut self, object: ApiKeyRecord) {
        self.enforcement = Enforcement::Unasked;
        let version = self.next_version();
        let newest = self.records.keys().next_back().copied();
        let newest = self.current().map_or(newest, |current| Some(current.spec.serial));
        let record =
            self.records.values_mut().find(|record| Some(record.name()) == object.metadata.name.as_deref()).unwrap();
        assert_eq!(record.metadata.resource_version, object.metadata.resource_version);
        assert!(record.is_live(), "a tombstone is never written again");
        if object.spec.revoked.is_none() && newest > Some(record.spec.serial) {
            let never = || Timestamp::MAX;
            let ends = |spec: &ApiKeyRecordSpec| spec.not_after.as_ref().map_or_else(never, |time| time.0);
            let is_held = self.spec["rotation"]["holdWhileInUse"] == json!(true);
            assert!(
                is_held || ends(&object.spec) <= ends(&record.spec),
                "an older key never lives longer than it was to"
            );
        }
        *record = Record { last_used_at: record.last_used_at, ..Record::from(object) };
        record.metadata.resource_version = Some(version);
    }

    fn assert_secret_version(&self, expected: Option<&str>) {
        let SecretState::Ours { metadata, .. } = &self.secret else { panic!("not ours: {:?}", self.secret) };
        assert_eq!(metadata.resource_version.as_deref(), expected);
    }

    fn hand_out(&mut self, draft: &SecretDraft) {
        if self.obstacle.is_some() {
            self.held.as_mut().unwrap().is_refused = true;
            return;
        }
        assert_ne!(self.enforcement, Enforcement::Unasked, "verifiers are asked before a key is handed out");
        let held = self.held.clone().unwrap();
        let record = &self.records[&held.serial];
        assert!(record.is_live() && record.spec.digest == held.digest.to_string(), "announced before it is handed out");
        self.handed_out.insert(held.digest.to_string());
        let mut stored = draft.object(&key_with(&held.digest, self.minted));
        stored.metadata.resource_version = Some(self.next_version());
        self.data = stored.data.clone().unwrap();
        self.secret = SecretState::read(stored, &reference(), &self.contents());
        assert_eq!(self.secret.annotations().unwrap().serial, Some(held.serial));
        let SecretState::Ours { digest, has_declared_entries, .. } = &self.secret else { panic!("{:?}", self.secret) };
        assert_eq!((*digest, *has_declared_entries), (Some(held.digest), true), "all of it in one write");
    }

    fn reason(&self) -> Reason {
        self.status.conditions.iter().find(|condition| condition.type_ == ConditionType::Active).unwrap().reason.clone()
    }

    fn current(&self) -> Option<Record> {
        self.observed().current().cloned()
    }

    /// What holds whenever the world is at rest.
    fn check_rest(&mut self, rest: Rest) {
        let live: Vec<_> = self.records.values().filter(|record| record.is_live()).cloned().collect();
        if rest == Rest::Done {
            assert!(live.is_empty(), "a deleted ApiKey leaves no key behind: {self:#?}");
            return;
        }
        let reason = self.reason();
        for record in &live {
            assert!(
                self.is_submitted()
                    || self.handed_out.contains(&record.spec.digest)
                    || reason == Reason::Issuing
                    || reason == Reason::Invalid
                    || self.now.duration_since(record.created()) < DELIVERY_GRACE,
                "a live key that nobody holds: {self:#?}"
            );
            let suspended = self.spec.get("suspended") == Some(&json!(true));
            assert_eq!(record.spec.suspended, suspended || reason == Reason::Invalid, "{self:#?}");
        }
        if matches!(reason, Reason::Active | Reason::Rotating | Reason::Suspended | Reason::Expired)
            && self.spec.get("keyHash").is_none()
        {
            let current = self.current().unwrap();
            assert_eq!(self.status.serial, Some(current.spec.serial));
            let start_of_digest = current.spec.digest.get(..19).map(str::to_owned);
            assert_eq!(self.status.key_prefix, current.spec.key_prefix.clone().or(start_of_digest));
            let is_older =
                |serial: u32| serial < current.spec.serial || self.has_source() && serial > current.spec.serial;
            let older = live.iter().filter(|record| is_older(record.spec.serial));
            assert!(older.clone().all(|record| record.spec.not_after.is_some()), "an older key always ends: {self:#?}");
            // Another controller that is handing a key out writes all of the Secret.
            if self.observed().undelivered().is_none() && !self.has_source() {
                self.check_secret();
            }
        }
        // A second pass over an unchanged world writes nothing, not even the status.
        let (writes, status) = (self.writes, self.status.clone());
        assert_eq!(self.run(None), rest);
        assert_eq!((self.writes, &self.status), (writes, &status), "a pass at rest changes nothing");
    }
}

impl World {
    /// The Secret holds what is declared for the key in it, or the status says why not.
    fn check_secret(&self) {
        let contents = self.contents();
        let SecretState::Ours { metadata, has_declared_entries, is_immutable, .. } = self.observed().secret else {
            panic!("{self:#?}")
        };
        let is_declared = has_declared_entries && contents.are_noted_in(&metadata);
        let message = &self.status.conditions[1].message;
        assert!(is_declared || message.contains("cannot be written: "), "{self:#?}");
        assert!(is_declared || is_immutable == message.contains("delete it"), "{self:#?}");
    }
}

/// An enum, and all of its variants.
macro_rules! every {
    ($(#[$about:meta])* enum $name:ident as $all:ident { $($variant:ident,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        enum $name { $($variant,)* }
        const $all: &[$name] = &[$($name::$variant,)*];
    };
}

every! {
    /// What people and time do.
    enum Meddling as MEDDLINGS {
    DeleteSecret,
    ChangeSecret,
    ChangeEntries,
    PutOldKeyBack,
    TakeSecretName,
    FreeSecretName,
    SpoilAnnotations,
    ChangeTemplate,
    RefuseOrTakeSecrets,
    RevokeNewestByHand,
    DeleteNewestRecord,
    EditRecordByHand,
    PlantRecord,
    LoseStatus,
    Suspend,
    Resume,
    Narrow,
    ExpireSoon,
    ExpireLate,
    SpoilSpec,
    MendSpec,
    ShortenOverlap,
    AskForRotation,
    ScheduleRotations,
    ChangeSource,
    PutOldSourceBack,
    LoseSource,
    WaitSeconds,
    WaitMinutes,
    WaitDays,
    Delete,
}
}

impl World {
    fn meddle(&mut self, meddling: Meddling) {
        match meddling {
            Meddling::DeleteSecret => self.secret = SecretState::Absent,
            Meddling::ChangeSecret => {
                self.edit_secret(|_, digest| *digest = Some(Digest::of(b"somebody's own idea of a key")));
            }
            Meddling::PutOldKeyBack => {
                let mut digests = self.records.values().map(|record| &record.spec.digest);
                let known = digests.find(|digest| self.handed_out.contains(*digest)).cloned();
                self.edit_secret(|_, digest| *digest = known.and_then(|digest| digest.parse().ok()));
            }
            Meddling::TakeSecretName => self.secret = SecretState::Foreign,
            Meddling::FreeSecretName if self.secret == SecretState::Foreign => self.secret = SecretState::Absent,
            Meddling::SpoilAnnotations => self.edit_secret(|metadata, _| {
                metadata.labels = None;
                metadata.annotations = Some([(SERIAL_ANNOTATION.to_owned(), "4000000000".to_owned())].into());
            }),
            Meddling::ChangeEntries => {
                self.edit_secret(|_, _| {});
                self.data.insert("extra".to_owned(), ByteString(b"somebody's own entry".to_vec()));
            }
            Meddling::ChangeTemplate if !self.is_submitted() => {
                let note = format!("$(KEY) {} $(EXPIRES_AT)", self.next_version());
                let metadata =
                    json!({"labels": {"team": "a"}, "annotations": {"example.org/note": note.replace('$', "")}});
                let template = json!({"data": {"note": note}, "metadata": metadata});
                let is_there = !self.spec["secret"]["template"].is_null();
                self.edit("secret", if is_there { Value::Null } else { json!({ "template": template }) });
            }
            Meddling::RefuseOrTakeSecrets => {
                let refused = Obstacle::Refused("frozen".into());
                self.obstacle = if self.obstacle.is_none() { Some(refused) } else { None };
            }
            Meddling::RevokeNewestByHand => {
                let (version, now) = (self.next_version(), self.now);
                if let Some(record) = self.records.values_mut().rfind(|record| record.is_live()) {
                    record.spec = record.revoked(RevocationReason::Tampered, now).spec;
                    record.metadata.resource_version = Some(version);
                }
            }
            Meddling::DeleteNewestRecord => drop(self.records.pop_last()),
            Meddling::EditRecordByHand => {
                let version = self.next_version();
                if let Some(record) = self.records.values_mut().rfind(|record| record.is_live()) {
                    record.spec.allowed_ips = Some(vec!["0.0.0.0/0".into()]);
                    record.metadata.resource_version = Some(version);
                }
            }
            Meddling::PlantRecord => self.plant_record(),
            Meddling::LoseStatus => self.status = ApiKeyStatus::default(),
            Meddling::Suspend => self.edit("suspended", json!(true)),
            Meddling::Resume => self.edit("suspended", Value::Null),
            Meddling::Narrow => self.edit("allowedIPs", json!(["192.0.2.0/24"])),
            Meddling::ExpireSoon => self.edit("expiresAt", json!(self.now.to_string())),
            Meddling::ExpireLate => self.edit("expiresAt", json!("2036-01-01T00:00:00Z")),
            Meddling::SpoilSpec => self.edit("allowedIPs", json!(["10.0.0.1/8"])),
            Meddling::MendSpec => self.edit("allowedIPs", Value::Null),
            Meddling::ShortenOverlap if self.spec.get("keyHash").is_none() => {
                self.edit("rotation", json!({"overlap": "0s"}));
            }
            Meddling::AskForRotation => self.ask_for_rotation(),
            Meddling::ScheduleRotations if !self.is_submitted() => {
                self.edit("rotation", json!({"every": "5h", "overlap": "1h"}));
            }
            Meddling::ChangeSource => self.source = Ok(Digest::of(self.next_version().as_bytes())),
            Meddling::PutOldSourceBack => {
                self.source =
                    self.records.values().next().map_or(self.source, |first| Ok(first.spec.digest.parse().unwrap()));
            }
            Meddling::LoseSource => self.source = Err(SourceProblem::Missing),
            Meddling::WaitSeconds => self.wait(SignedDuration::from_secs(5)),
            Meddling::WaitMinutes => self.wait(SignedDuration::from_mins(6)),
            Meddling::WaitDays => self.wait(SignedDuration::from_hours(72)),
            Meddling::Delete => self.deleting = true,
            Meddling::FreeSecretName
            | Meddling::ChangeTemplate
            | Meddling::ShortenOverlap
            | Meddling::ScheduleRotations => {}
        }
    }

    fn edit(&mut self, field: &str, value: Value) {
        self.spec[field] = value;
        self.generation += 1;
    }

    /// Somebody writes a value that was never there.
    fn ask_for_rotation(&mut self) {
        self.rotate = Some(format!("request {}", self.next_version()));
    }

    fn wait(&mut self, time: SignedDuration) {
        self.now = self.now.checked_add(time).unwrap();
    }

    /// Somebody with rights on records tries to let a key of their own in.
    fn plant_record(&mut self) {
        let newest = self.records.keys().next_back().copied().max(self.status.serial);
        let serial = newest.map_or(1, |newest| newest + 1);
        let template = self.records.values().next_back().cloned();
        let Some(mut record) = template else { return };
        record.metadata.name = Some(record_name(UID, serial));
        record.spec.serial = serial;
        record.spec.revoked = None;
        record.spec.digest = Digest::of(b"a planted key").to_string();
        record.metadata.resource_version = Some(self.next_version());
        self.records.insert(serial, record);
    }
}

fn specs() -> [Value; 4] {
    [
        json!({}),
        json!({"expiresIn": "1d", "allowedIPs": ["2001:DB8::/32"], "scopes": ["read"], "owner": "ada", "rotation": {"overlap": "1h"}}),
        json!({"keyHash": Digest::of(b"made elsewhere").to_string()}),
        from_source(json!({"overlap": "1h"})),
    ]
}

/// A spec whose key is in a source.
fn from_source(rotation: Value) -> Value {
    json!({"keyFrom": {"secretRef": {"name": "vault", "key": "token"}}, "rotation": rotation})
}

/// A world with its key handed out.
fn issued(spec: Value) -> World {
    let mut world = World::new(spec);
    world.source = Ok(Digest::of(b"made elsewhere"));
    assert_eq!(world.run(None), Rest::Settled);
    world
}

#[test]
fn a_key_is_issued_in_three_writes_and_a_status() {
    let world = issued(json!({}));
    assert_eq!(world.writes, 3);
    assert_eq!((world.reason(), world.status.serial), (Reason::Active, Some(1)));
    assert_eq!(world.status.expires.as_deref(), Some("Never"));
    assert_eq!(world.status.secret_name.as_deref(), Some("ci"));
}

/// Every pair of interventions, with a crash after every write of the run that follows each of them.
#[test]
fn the_world_comes_to_rest_whatever_happens_and_wherever_it_crashes() {
    let mut runs = 0;
    for spec in specs() {
        for &first in MEDDLINGS {
            for &second in MEDDLINGS {
                for crash in 0..8 {
                    let mut world = issued(spec.clone());
                    world.meddle(first);
                    world.run(Some(crash));
                    world.meddle(second);
                    world.run(Some(crash));
                    world.wait(DELIVERY_GRACE);
                    let rest = world.run(None);
                    world.check_rest(rest);
                    runs += 1;
                }
            }
        }
    }
    assert_eq!(runs, 4 * 31 * 31 * 8);
}

/// A crash after each write of the first issue: the key of a lost memory is revoked, and the next serial is handed out.
#[test]
fn a_crash_while_issuing_leaves_no_key_that_nobody_holds() {
    for crash in 0..=3 {
        let mut world = World::new(json!({}));
        world.run(Some(crash));
        world.wait(DELIVERY_GRACE);
        let rest = world.run(None);
        world.check_rest(rest);
        assert_eq!(world.reason(), Reason::Active, "crash after {crash} writes");
        let lost_record = crash == 2;
        assert_eq!(world.status.serial, Some(if lost_record { 2 } else { 1 }), "crash after {crash} writes");
    }
}

#[test]
fn a_crash_while_deleting_ends_in_the_same_place() {
    for crash in 0..4 {
        let mut world = issued(json!({}));
        world.meddle(Meddling::DeleteSecret);
        world.run(None);
        world.meddle(Meddling::Delete);
        world.run(Some(crash));
        assert_eq!(world.run(None), Rest::Done);
        assert!(!world.finalizer && world.records.values().all(|record| !record.is_live()));
    }
}

#[test]
fn a_missing_secret_gets_a_new_key_and_the_old_one_lives_on_for_the_overlap() {
    let mut world = issued(json!({"rotation": {"overlap": "1h"}}));
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::Rotating));
    assert_eq!(world.status.retiring[0].retires_at.0, world.created + SignedDuration::from_hours(1));
    world.wait(SignedDuration::from_hours(1));
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    assert_eq!(world.records[&1].spec.revoked.as_ref().unwrap().reason, "Replaced");
}

#[test]
fn an_old_key_put_back_into_the_secret_is_replaced() {
    let mut world = issued(json!({"rotation": {"overlap": "1h"}}));
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    world.wait(MINT_PERIOD);
    world.meddle(Meddling::PutOldKeyBack);
    world.run(None);
    assert_eq!((world.status.serial, world.reason()), (Some(3), Reason::Rotating));
}

#[test]
fn an_unrequested_key_is_made_once_in_five_minutes() {
    let mut world = issued(json!({}));
    for _ in 0..100 {
        world.meddle(Meddling::ChangeSecret);
        world.run(None);
    }
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::MintBudget));
    world.wait(MINT_PERIOD);
    world.run(None);
    assert_eq!(world.status.serial, Some(3));
}

#[test]
fn removing_the_records_does_not_widen_the_mint_budget() {
    let mut world = issued(json!({}));
    for _ in 0..100 {
        world.meddle(Meddling::DeleteNewestRecord);
        world.run(None);
    }
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::MintBudget));
}

#[test]
fn a_key_that_never_reached_its_secret_costs_no_budget() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::DeleteSecret);
    world.run(Some(1));
    world.wait(DELIVERY_GRACE);
    world.run(None);
    assert_eq!((world.status.serial, world.reason()), (Some(3), Reason::Rotating));
}

#[test]
fn another_controllers_fresh_record_is_left_alone_for_a_moment() {
    let mut world = World::new(json!({}));
    world.run(Some(2));
    assert_eq!(world.run(None), Rest::Settled);
    assert_eq!(world.reason(), Reason::Issuing);
    assert!(world.records[&1].is_live());
}

#[test]
fn a_record_revoked_by_hand_is_never_restored() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::RevokeNewestByHand);
    world.run(None);
    assert!(!world.records[&1].is_live());
    assert_eq!((world.status.serial, world.reason()), (Some(2), Reason::Active));
}

#[test]
fn a_submitted_key_that_was_revoked_is_never_accepted_again() {
    let mut world = issued(specs()[2].clone());
    let digest = world.spec["keyHash"].as_str().unwrap().to_owned();
    assert_eq!((world.reason(), world.status.key_prefix.as_deref()), (Reason::Active, Some(&digest[..19])));
    world.meddle(Meddling::RevokeNewestByHand);
    world.run(None);
    assert_eq!(world.reason(), Reason::DigestRevoked);
    assert!(world.records.values().all(|record| !record.is_live()));
}

#[test]
fn a_foreign_secret_is_never_touched_and_nothing_is_minted() {
    let mut world = World::new(json!({}));
    world.meddle(Meddling::TakeSecretName);
    world.run(None);
    assert_eq!((world.reason(), world.minted, &world.secret), (Reason::SecretNameTaken, 0, &SecretState::Foreign));
    let Plan::Rest(Finding { wake, .. }) = world.plan() else { panic!("not at rest") };
    assert_eq!(wake, Some(world.now + SECRET_RETRY));
    world.meddle(Meddling::FreeSecretName);
    world.run(None);
    assert_eq!((world.reason(), world.minted), (Reason::Active, 1));
}

#[test]
fn one_key_is_made_in_vain_and_none_while_the_api_server_refuses() {
    for spoil in [Meddling::DeleteSecret, Meddling::ChangeSecret, Meddling::RevokeNewestByHand] {
        let mut world = issued(json!({}));
        world.obstacle = Some(Obstacle::Refused("exceeded quota".into()));
        world.meddle(spoil);
        for _ in 0..100 {
            world.run(None);
            world.wait(SignedDuration::from_mins(10));
            assert_eq!((world.reason(), world.minted), (Reason::Issuing, 2), "{spoil:?}");
        }
        assert_eq!(world.records[&2].spec.revoked.as_ref().unwrap().reason, "DeliveryRefused");
        let ready = &world.status.conditions[1];
        let is_let_in = spoil != Meddling::RevokeNewestByHand;
        let meanwhile = if is_let_in { "; keyw1_00000001 is let in until a new key takes its place" } else { "" };
        assert_eq!(ready.message, format!("Secret \"ci\" cannot be written: exceeded quota{meanwhile}"));
        let Plan::Rest(Finding { wake, .. }) = world.plan() else { panic!("not at rest") };
        assert_eq!(wake, Some(world.now + SECRET_RETRY));
        let stalled = &world.status.conditions[2];
        assert_eq!((stalled.status, &stalled.reason), (ConditionStatus::False, &Reason::NotStalled));
        assert!(stalled.message.contains("Ready"), "{}", stalled.message);
        let before = issued(json!({})).status;
        let said = announcements(&before, &world.status, None);
        assert!(said.iter().any(|event| event.reason == "SecretRefused" && event.warning), "{said:?}");
        assert!(announcements(&world.status, &world.status, None).is_empty());
        world.obstacle = None;
        world.run(None);
        assert!(matches!(world.reason(), Reason::Active | Reason::Rotating), "{world:#?}");
        assert_eq!(world.minted, 3);
    }
}

#[test]
fn a_webhook_without_dry_runs_costs_a_key_in_five_minutes() {
    let mut world = World::new(json!({}));
    world.obstacle = Some(Obstacle::Unknown("webhook x does not support dry run".into()));
    for minutes in 0..50 {
        world.run(None);
        assert_eq!(world.reason(), Reason::Issuing);
        assert!(world.minted <= 1 + minutes / 5, "{} keys in {minutes} minutes", world.minted);
        world.wait(SignedDuration::from_mins(1));
    }
    assert!(world.minted > 5, "it is tried again, as the webhook may take it by now");
}

#[test]
fn an_api_server_that_takes_dry_runs_and_refuses_the_write_costs_a_key_in_five_minutes() {
    let mut world = World::new(json!({}));
    for minutes in 0..50 {
        for _ in 0..10 {
            // The dry run passes; the write does not.
            world.obstacle = None;
            while let Plan::Write(write) = world.plan() {
                world.obstacle = matches!(write, Write::CreateSecret(_)).then(|| Obstacle::Refused("no".into()));
                world.carry_out(write);
                world.obstacle = None;
            }
            world.held = None;
        }
        assert!(world.minted <= 3 + minutes / 5, "{} keys in {minutes} minutes", world.minted);
        world.wait(SignedDuration::from_mins(1));
    }
}

#[test]
fn nothing_is_minted_for_an_immutable_secret_and_what_it_says_is_kept_right() {
    let mut world = issued(json!({"expiresIn": "1d"}));
    let SecretState::Ours { is_immutable, .. } = &mut world.secret else { panic!("not ours") };
    *is_immutable = true;
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    world.meddle(Meddling::ExpireLate);
    world.spec["expiresIn"] = Value::Null;
    world.run(None);
    let says = world.secret.annotations().unwrap();
    assert_eq!(says.expires_at.as_deref(), Some("2036-01-01T00:00:00Z"), "metadata of immutable Secrets may change");
    world.meddle(Meddling::ChangeSecret);
    world.run(None);
    assert_eq!((world.reason(), world.minted), (Reason::Issuing, 1));
}

#[test]
fn what_the_secret_says_never_comes_before_the_status() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::SpoilAnnotations);
    world.meddle(Meddling::Suspend);
    let Plan::Write(write) = world.plan() else { panic!("nothing to write") };
    world.carry_out(write);
    let Plan::Rest(finding) = world.plan() else { panic!("not at rest") };
    assert_eq!(finding.reason, Reason::Suspended);
    let due = annotations_due(&world.observed(), &finding).unwrap();
    assert_eq!(due.metadata.annotations.unwrap()[SERIAL_ANNOTATION], "1");
}

#[test]
fn the_secret_of_an_earlier_namesake_is_waited_for() {
    let mut world = World::new(json!({}));
    world.secret = SecretState::Leftover;
    let mut looks = Vec::new();
    loop {
        world.run(None);
        if world.reason() != Reason::Issuing {
            break;
        }
        assert_eq!(world.status.conditions[2].status, ConditionStatus::False, "no person is asked for");
        let Plan::Rest(Finding { wake, .. }) = world.plan() else { panic!("not at rest") };
        world.now = wake.unwrap();
        looks.push(world.now.duration_since(world.created).as_secs());
    }
    assert_eq!(looks, [1, 3, 7, 15, 30]);
    assert_eq!((world.reason(), world.minted), (Reason::SecretNameTaken, 0));
    world.secret = SecretState::Absent;
    world.run(None);
    assert_eq!((world.reason(), world.minted), (Reason::Active, 1));
}

#[test]
fn nothing_that_stands_in_a_status_revokes_or_replaces_a_key() {
    let world = issued(json!({"expiresIn": "1d"}));
    let expires: Timestamp = "2026-11-01T00:00:01Z".parse().unwrap();
    let edits: [fn(&mut ApiKeyStatus); 9] = [
        |status| status.serial = Some(u32::MAX),
        |status| status.key_prefix = Some("keyw1_00000000".into()),
        |status| status.key_prefix = None,
        |status| status.serial = Some(99),
        |status| status.serial = Some(0),
        |status| status.serial = None,
        |status| status.issued_at = None,
        |status| status.conditions.clear(),
        |status| *status = ApiKeyStatus::default(),
    ];
    for (number, edit) in edits.into_iter().enumerate() {
        let mut edited = world.clone();
        edit(&mut edited.status);
        edited.status.expires_at = Some(Time(expires));
        edited.wait(SignedDuration::from_hours(1));
        edited.run(None);
        assert_eq!((edited.minted, edited.records[&1].is_live()), (1, true), "edit {number}");
        assert_eq!(edited.records[&1].spec, world.records[&1].spec, "edit {number}");
        assert_eq!(edited.reason(), Reason::Active, "edit {number}");
        assert_eq!((edited.status.serial, &edited.status.key_prefix), (Some(1), &world.status.key_prefix));
    }
}

#[test]
fn no_status_leaves_an_apikey_without_a_serial_to_go_on_with() {
    for shown in [u32::MAX, u32::MAX - 1, MAX_SHOWN_SERIAL] {
        let mut world = issued(json!({}));
        for _ in 0..3 {
            world.status.serial = Some(shown);
            world.meddle(Meddling::DeleteSecret);
            world.wait(MINT_PERIOD);
            world.run(None);
            assert!(matches!(world.reason(), Reason::Active | Reason::Rotating), "{shown}: {world:#?}");
            let newest = *world.records.keys().next_back().unwrap();
            assert!(newest < u32::MAX - 1, "{shown}: {newest}");
        }
    }
}

#[test]
fn a_key_that_was_used_is_no_undelivered_one_even_without_status_and_secret() {
    let mut world = issued(json!({"rotation": {"overlap": "1h"}}));
    world.records.get_mut(&1).unwrap().last_used_at = Some(world.now);
    world.meddle(Meddling::LoseStatus);
    world.meddle(Meddling::DeleteSecret);
    world.wait(DELIVERY_GRACE);
    world.run(None);
    assert_eq!((world.reason(), world.status.serial), (Reason::Rotating, Some(2)));
    assert!(world.records[&1].is_live(), "it lives on for the overlap");
}

#[test]
fn an_apikey_has_sixteen_live_keys_and_the_oldest_go_first() {
    let mut world = issued(json!({"rotation": {"overlap": "3650d"}}));
    for keys in 2..40 {
        world.meddle(Meddling::ChangeSecret);
        world.wait(MINT_PERIOD);
        world.run(None);
        let live: Vec<_> =
            world.records.values().filter(|record| record.is_live()).map(|record| record.spec.serial).collect();
        assert_eq!(live, (1..=keys).skip((keys as usize).saturating_sub(MAX_LIVE_KEYS)).collect::<Vec<_>>());
        assert_eq!(world.status.serial, Some(keys));
    }
    world.meddle(Meddling::Delete);
    assert_eq!(world.run(None), Rest::Done);
}

#[test]
fn a_deletion_that_others_hold_up_says_that_the_keys_are_revoked() {
    for others in [vec![], vec!["example.org/hold".to_owned(), "foregroundDeletion".to_owned()]] {
        let mut world = issued(json!({}));
        let before = world.status.clone();
        world.other_finalizers.clone_from(&others);
        world.meddle(Meddling::Delete);
        assert_eq!(world.run(None), Rest::Done);
        assert!(!world.finalizer && !world.records[&1].is_live());
        if others.is_empty() {
            assert_eq!(world.status, before, "nobody is there to read it");
            continue;
        }
        assert_eq!(world.reason(), Reason::Revoking);
        assert_eq!(world.status.conditions[0].status, ConditionStatus::False);
        let message = &world.status.conditions[0].message;
        assert!(message.contains("example.org/hold") && message.contains("foregroundDeletion"), "{message}");
    }
}

#[test]
fn a_submitted_digest_has_one_owner() {
    let spec = specs()[2].clone();
    let claim = |seconds, is_revoked| Claim {
        created: "2026-11-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds),
        uid: "5a0a1c9e-0000-4000-8000-000000000001".into(),
        serial: 3,
        is_revoked,
    };
    for (is_revoked, reason) in [(false, Reason::DigestTaken), (true, Reason::DigestRevoked)] {
        let mut world = World::new(spec.clone());
        world.rival = Some(claim(-60, is_revoked));
        world.run(None);
        assert_eq!((world.reason(), world.records.len()), (reason.clone(), 0), "no record");
        let answers: Vec<_> = world.status.conditions[..3].iter().map(|condition| condition.status).collect();
        assert_eq!(answers, [ConditionStatus::False, ConditionStatus::False, ConditionStatus::True]);
        let said = announcements(&ApiKeyStatus::default(), &world.status, None);
        assert_eq!(
            said.iter().map(|event| (event.reason, event.warning)).collect::<Vec<_>>(),
            [(reason.as_str(), true)]
        );
        assert!(!format!("{:?}", world.status).contains("5a0a1c9e"), "whose it is, is nobody's business");

        // Both found the digest free; the one of the same second with the smaller uid is the owner.
        let mut world = issued(spec.clone());
        assert_eq!(world.reason(), Reason::Active);
        world.rival = Some(claim(0, is_revoked));
        world.run(None);
        assert_eq!((world.reason(), world.records.len()), (reason.clone(), 0), "the loser leaves no tombstone");
        assert_eq!(world.status.serial, None);

        let mut world = issued(spec.clone());
        world.rival = Some(claim(1, is_revoked));
        world.run(None);
        assert_eq!((world.reason(), world.records.len()), (Reason::Active, 1), "a younger claim counts for nothing");
    }
}

#[test]
fn an_invalid_spec_refuses_the_key_until_it_is_mended() {
    let mut world = issued(json!({}));
    world.meddle(Meddling::SpoilSpec);
    world.run(None);
    assert_eq!(world.reason(), Reason::Invalid);
    assert!(world.records[&1].spec.suspended);
    let message = &world.status.conditions[0].message;
    assert!(message.starts_with("spec.allowedIPs[0]: "), "{message}");
    world.meddle(Meddling::MendSpec);
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    assert!(!world.records[&1].spec.suspended);
    let mut never_valid = World::new(json!({"allowedIPs": ["10.0.0.1/8"]}));
    never_valid.run(None);
    assert_eq!((never_valid.reason(), never_valid.minted), (Reason::Invalid, 0));
}

#[test]
fn an_expired_key_is_shown_so_at_the_very_second_and_can_come_back() {
    let mut world = issued(json!({"expiresIn": "10m"}));
    let wake = |world: &World| match world.clone().plan() {
        Plan::Rest(finding) => finding.wake,
        other => panic!("not at rest: {other:?}"),
    };
    assert_eq!(wake(&world), Some(world.created + SignedDuration::from_mins(9)), "the last tenth");
    world.wait(SignedDuration::from_mins(9));
    world.run(None);
    assert_eq!(world.status.conditions[3].status, ConditionStatus::True);
    assert_eq!(wake(&world), Some(world.created + SignedDuration::from_mins(10)));
    world.wait(SignedDuration::from_secs(59));
    world.run(None);
    assert_eq!(world.reason(), Reason::Active);
    world.wait(SignedDuration::from_secs(1));
    world.run(None);
    assert_eq!((world.reason(), wake(&world)), (Reason::Expired, None));
    assert_eq!(world.status.conditions[1].status, ConditionStatus::True, "declared to expire, so Ready");
    world.spec = json!({"expiresIn": "20m"});
    world.run(None);
    assert_eq!((world.reason(), world.status.serial), (Reason::Active, Some(1)));
}

#[test]
fn the_last_use_that_is_shown_never_goes_backwards() {
    let shown = |world: &World| world.status.last_used_at.as_ref().map(|time| time.0);
    let mut world = issued(json!({}));
    assert_eq!(shown(&world), None);
    let [early, late, later] = [1, 2, 3].map(|hours| Some(world.created + SignedDuration::from_hours(hours)));
    // A verifier may be late, and a record's status be lost.
    for (told, expected) in [(early, early), (late, late), (early, late), (None, late)] {
        world.records.get_mut(&1).unwrap().last_used_at = told;
        world.run(None);
        assert_eq!(shown(&world), expected, "{told:?}");
    }
    for &meddling in MEDDLINGS.iter().filter(|meddling| **meddling != Meddling::LoseStatus) {
        let mut world = world.clone();
        world.meddle(meddling);
        world.run(None);
        assert_eq!(shown(&world), late, "{meddling:?}");
    }
    // A record takes its time with it; and an older key that is still in use counts as well as its successor.
    world.records.clear();
    world.run(None);
    assert_eq!(shown(&world), late);
    let mut world = issued(json!({"rotation": {"overlap": "1h"}}));
    world.meddle(Meddling::DeleteSecret);
    world.run(None);
    for (first, second, expected) in [(later, early, later), (None, late, later)] {
        world.records.get_mut(&1).unwrap().last_used_at = first;
        world.records.get_mut(&2).unwrap().last_used_at = second;
        world.run(None);
        assert_eq!(shown(&world), expected);
    }
}

#[test]
fn events_tell_what_changed_and_nothing_twice() {
    let said = |before: &World, after: &World| {
        let cause = after.current().map(|record| record.cause);
        announcements(&before.status, &after.status, cause).into_iter().map(|event| event.reason).collect::<Vec<_>>()
    };
    let new = World::new(json!({}));
    let world = issued(json!({}));
    assert_eq!(said(&new, &world), ["Issued"]);
    assert!(said(&world, &world).is_empty());
    for (meddling, reason) in [
        (Meddling::DeleteSecret, "SecretRecreated"),
        (Meddling::RevokeNewestByHand, "SecretRecreated"),
        (Meddling::Suspend, "Suspended"),
        (Meddling::ExpireSoon, "Expired"),
        (Meddling::TakeSecretName, "SecretNameTaken"),
        (Meddling::SpoilSpec, "Invalid"),
    ] {
        let mut after = world.clone();
        after.meddle(meddling);
        after.run(None);
        assert_eq!(said(&world, &after), [reason], "{meddling:?}");
    }
}

#[test]
fn names_of_records_are_read_back_exactly() {
    assert_eq!(serial_in(&record_name(UID, 7), UID), Some(7));
    for name in [format!("{UID}-07"), format!("{UID}-+7"), format!("{UID}-"), format!("{UID}7"), "other-7".into()] {
        assert_eq!(serial_in(&name, UID), None, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Long stories, where the pairs above are short ones.
    #[test]
    fn long_stories_end_well(
        spec in 0usize..3,
        story in proptest::collection::vec((0usize..MEDDLINGS.len(), proptest::option::of(0usize..6)), 1..14),
    ) {
        let mut world = issued(specs()[spec].clone());
        for (meddling, crash) in story {
            let mut revoked: Vec<_> = world.records.values().filter(|record| !record.is_live()).cloned().collect();
            world.meddle(MEDDLINGS[meddling]);
            revoked.retain(|record| world.records.contains_key(&record.spec.serial));
            let rest = world.run(crash);
            if rest != Rest::Crashed {
                world.check_rest(rest);
            }
            for record in revoked {
                prop_assert!(!world.records[&record.spec.serial].is_live(), "a revoked key stays revoked");
            }
        }
        world.wait(DELIVERY_GRACE);
        let rest = world.run(None);
        world.check_rest(rest);
        world.meddle(Meddling::Delete);
        prop_assert_eq!(world.run(None), Rest::Done);
        world.check_rest(Rest::Done);
    }
}
