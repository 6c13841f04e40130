//! PURE. What to do next for one ApiKey: everything observed and the time go in, a [`Plan`] comes out.
//!
//! A plan holds at most one write. After it the world is observed again, so that "crashed after this write" and "came
//! this far" are the same input, and nothing has to remember how far it came.
//!
//! One thing cannot be observed: a key between its record and its Secret exists in memory alone ([`Observed::held`]).
//! When that memory is lost, the record is of a key that nobody holds; it is revoked and the next serial is issued.

mod status;

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{ApiKeyRecordSpec, ApiKeyReference, ApiKeyStatus, Revocation};
use crate::declaration::{Declaration, Delivery, Problem};
use crate::key::{Digest, Prefix};

pub use status::{Announcement, announcements};

/// How long another controller's unfinished issue is left alone. With two controllers at work each would otherwise
/// revoke the other's record in the moment between its creation and the Secret's, again and again.
pub const DELIVERY_GRACE: SignedDuration = SignedDuration::from_secs(3);

/// At most one unrequested new key per ApiKey in this time, so that whoever deletes or overwrites a Secret in a loop
/// cannot make the operator mint in a loop.
pub const MINT_PERIOD: SignedDuration = SignedDuration::from_mins(5);

/// How soon a taken Secret name is tried again; there is no watch on Secrets.
pub const NAME_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// Everything that a decision about one ApiKey needs to know.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Which ApiKey this is.
    pub reference: ApiKeyReference,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Whether our finalizer is among `metadata.finalizers`.
    pub finalizer: bool,
    /// The digest of the annotation `keywright.dev/rotate`, as records keep it.
    pub rotate_request: Option<String>,
    /// The spec, or all that is wrong with it.
    pub declared: Result<Declaration, Vec<Problem>>,
    /// The status as stored: its serial tells which keys were handed out; nothing else in it decides anything.
    pub status: ApiKeyStatus,
    /// The Secret that the spec names.
    pub secret: Secret,
    /// Why the Secret cannot be created, in the API server's words. Asked only after a key did not reach its Secret.
    pub obstacle: Option<String>,
    /// The records of this ApiKey, by ascending serial. Revoked ones may be left out below the newest.
    pub records: Vec<Record>,
    /// The key that this process has announced in a record and not yet handed out.
    pub held: Option<Held>,
}

/// The Secret of an ApiKey, as far as it matters.
#[derive(Clone, Debug, PartialEq)]
pub enum Secret {
    /// There is none, or none is wanted.
    Absent,
    /// Something else owns that name. It is not touched.
    Foreign,
    /// The ApiKey controls it.
    Ours {
        /// The precondition of the next write.
        resource_version: String,
        /// The digest of what lies under the data key.
        digest: Option<Digest>,
        /// What its annotations say, and whether its labels are as they should be.
        marks: Marks,
        /// Whether it refuses every change.
        immutable: bool,
    },
}

/// What a Secret says of the key in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// `keywright.dev/key-prefix`.
    pub key_prefix: Option<String>,
    /// `keywright.dev/serial`.
    pub serial: Option<u32>,
    /// `keywright.dev/expires-at`.
    pub expires_at: Option<String>,
    /// `app.kubernetes.io/managed-by: keywright`.
    pub managed: bool,
}

/// One stored record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// `metadata.name`.
    pub name: String,
    /// The precondition of the next write.
    pub resource_version: String,
    /// `metadata.creationTimestamp`: when the key was issued.
    pub created: Timestamp,
    /// Why it was issued.
    pub cause: Cause,
    /// When a verifier last let its key in.
    pub last_used_at: Option<Timestamp>,
    /// What it says.
    pub spec: ApiKeyRecordSpec,
}

impl Record {
    fn live(&self) -> bool {
        self.spec.revoked.is_none()
    }

    fn not_after(&self) -> Option<Timestamp> {
        self.spec.not_after.as_ref().map(|time| time.0)
    }
}

/// A key in memory: what may be known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// Its record's serial.
    pub serial: u32,
    /// Its digest.
    pub digest: Digest,
    /// How people recognise it.
    pub prefix: Prefix,
}

/// Why a key was issued; kept in the annotation [`crate::api::CAUSE_ANNOTATION`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is the ApiKey's first.
    First,
    /// The Secret was gone.
    SecretMissing,
    /// The Secret held something else.
    SecretChanged,
    /// The record of the key in the Secret was revoked or removed by hand.
    RecordLost,
}

impl Cause {
    const ALL: [Self; 4] = [Self::First, Self::SecretMissing, Self::SecretChanged, Self::RecordLost];

    /// The word in the annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "First",
            Self::SecretMissing => "SecretMissing",
            Self::SecretChanged => "SecretChanged",
            Self::RecordLost => "RecordLost",
        }
    }

    /// Whether nobody asked for this key, so that it counts against the mint budget.
    fn unrequested(self) -> bool {
        self != Self::First
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Cause {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == text).ok_or(())
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// One write, after which the world is observed again.
    Write(Write),
    /// Nothing to write but the status, where it differs.
    Settled {
        /// The status as it should be.
        status: Box<ApiKeyStatus>,
        /// When time alone will change the answer.
        wake: Option<Timestamp>,
    },
    /// The ApiKey is going and needs nothing more from us.
    Done,
}

/// One write, with its precondition.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Put the finalizer on the ApiKey, before anything exists that it guards.
    AddFinalizer,
    /// Take it off: every key is revoked.
    RemoveFinalizer,
    /// Announce a key. For a key that is made here, minting it is part of this write.
    CreateRecord {
        /// Which key of the ApiKey it is.
        serial: u32,
        /// The digest of a key that was made elsewhere.
        submitted: Option<Digest>,
        /// Why.
        cause: Cause,
        /// What the record says of the key, but for `digest` and `keyPrefix`.
        rules: Rules,
    },
    /// Make a record say what is declared.
    UpdateRecord {
        /// The record.
        name: String,
        /// Only this version of it.
        resource_version: String,
        /// What it is to say.
        spec: Box<ApiKeyRecordSpec>,
    },
    /// Hand the held key out in a new Secret.
    CreateSecret {
        /// What the Secret says of its key.
        marks: Marks,
    },
    /// Hand the held key out in the Secret that is there.
    ReplaceSecret {
        /// Only this version of it.
        resource_version: String,
        /// What the Secret says of its key.
        marks: Marks,
    },
    /// Correct what the Secret says of its key, and leave the key.
    MarkSecret {
        /// Only this version of it.
        resource_version: String,
        /// What the Secret says of its key.
        marks: Marks,
    },
}

/// What a record says that follows the ApiKey's spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// `spec.owner`.
    pub owner: Option<String>,
    /// `spec.scopes`.
    pub scopes: Vec<String>,
    /// `spec.allowedIPs`, canonical.
    pub allowed_ips: Option<Vec<String>>,
    /// `spec.notAfter`.
    pub not_after: Option<Timestamp>,
    /// `spec.suspended`.
    pub suspended: bool,
}

impl Rules {
    fn declared(declaration: &Declaration) -> Self {
        Self {
            owner: declaration.owner.clone(),
            scopes: declaration.scopes.clone(),
            allowed_ips: declaration.allowed_ips.clone(),
            not_after: declaration.expires_at,
            suspended: declaration.suspended,
        }
    }

    /// The record's spec with these rules in place of its own.
    pub fn apply(self, mut spec: ApiKeyRecordSpec) -> ApiKeyRecordSpec {
        spec.owner = self.owner;
        spec.scopes = self.scopes;
        spec.allowed_ips = self.allowed_ips;
        spec.not_after = self.not_after.map(Time);
        spec.suspended = self.suspended;
        spec
    }
}

/// Why a record was revoked; stands in `spec.revoked.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationReason {
    /// Its ApiKey is being deleted.
    Deleted,
    /// Its ApiKey is gone, and nobody revoked it on the way.
    Orphaned,
    /// Its key never reached the Secret: nobody holds it.
    NotDelivered,
    /// A newer key took its place, and the overlap is over.
    Replaced,
    /// It is not a record that the controller would have made.
    Tampered,
}

impl RevocationReason {
    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "Deleted",
            Self::Orphaned => "Orphaned",
            Self::NotDelivered => "NotDelivered",
            Self::Replaced => "Replaced",
            Self::Tampered => "Tampered",
        }
    }
}

/// The record's spec as a tombstone.
pub fn revoked(spec: &ApiKeyRecordSpec, reason: RevocationReason, now: Timestamp) -> ApiKeyRecordSpec {
    let revoked = Some(Revocation { at: Time(whole_seconds(now)), reason: reason.as_str().to_owned() });
    ApiKeyRecordSpec { revoked, ..spec.clone() }
}

/// Whether a tombstone has stood long enough to be removed.
pub fn tombstone_is_over(spec: &ApiKeyRecordSpec, retention: SignedDuration, now: Timestamp) -> bool {
    spec.revoked.as_ref().is_some_and(|revocation| now.duration_since(revocation.at.0) >= retention)
}

/// `<ApiKey uid>-<serial>`.
pub fn record_name(uid: &str, serial: u32) -> String {
    format!("{uid}-{serial}")
}

/// The serial in a record's name, where the name is one that [`record_name`] gives for this uid.
pub fn serial_in(name: &str, uid: &str) -> Option<u32> {
    let serial = name.strip_prefix(uid)?.strip_prefix('-')?.parse().ok()?;
    (record_name(uid, serial) == name).then_some(serial)
}

/// What to do next for one ApiKey.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let now = whole_seconds(now);
    if observed.deleting {
        return plan_deletion(observed, now);
    }
    if let Some(stray) = observed.live_records().find(|record| !observed.made(record)) {
        return revoke(stray, RevocationReason::Tampered, now);
    }
    let declaration = match &observed.declared {
        Ok(declaration) => declaration,
        Err(problems) => return plan_invalid(observed, problems, now),
    };
    if !observed.finalizer {
        return Plan::Write(Write::AddFinalizer);
    }
    // What is declared reaches the keys that are out before anything new is made: a narrowing never waits.
    if let Some(write) = observed.live_records().find_map(|record| align(observed, declaration, record)) {
        return Plan::Write(write);
    }
    match &declaration.delivery {
        Delivery::Submitted(digest) => plan_submitted(observed, declaration, *digest, now),
        Delivery::Secret { .. } => plan_delivered(observed, declaration, now),
    }
}

fn plan_deletion(observed: &Observed, now: Timestamp) -> Plan {
    if let Some(record) = observed.live_records().next() {
        return revoke(record, RevocationReason::Deleted, now);
    }
    if observed.finalizer { Plan::Write(Write::RemoveFinalizer) } else { Plan::Done }
}

/// Rules that cannot be read must not be replaced by the last ones that could: the keys are refused until a person has
/// mended the spec, and work again then.
fn plan_invalid(observed: &Observed, problems: &[Problem], now: Timestamp) -> Plan {
    match observed.live_records().find(|record| !record.spec.suspended) {
        Some(record) => update(record, ApiKeyRecordSpec { suspended: true, ..record.spec.clone() }),
        None => status::invalid(observed, problems, now),
    }
}

/// The write that makes a live record say what is declared, where it says something else.
fn align(observed: &Observed, declaration: &Declaration, record: &Record) -> Option<Write> {
    let mut rules = Rules::declared(declaration);
    if record.spec.serial < observed.newest_serial() {
        // Only the newest key follows the declared expiry into the future. An older one can end sooner and never later,
        // or a longer overlap would bring back a key that was already refused.
        let successor = observed.current().filter(|current| current.spec.serial > record.spec.serial);
        let overlap_ends = successor.and_then(|current| current.created.checked_add(declaration.overlap).ok());
        rules.not_after = [rules.not_after, record.not_after(), overlap_ends].into_iter().flatten().min();
    }
    let aligned = rules.apply(record.spec.clone());
    (aligned != record.spec).then(|| write_record(record, aligned))
}

fn plan_submitted(observed: &Observed, declaration: &Declaration, digest: Digest, now: Timestamp) -> Plan {
    let wanted = digest.to_string();
    if let Some(stray) = observed.live_records().find(|record| record.spec.digest != wanted) {
        return revoke(stray, RevocationReason::Tampered, now);
    }
    if let Some(current) = observed.live_records().next() {
        return status::in_force(observed, declaration, current, now);
    }
    if !observed.records.is_empty() || observed.status.serial.is_some() {
        let rule =
            "this key was revoked, and a revoked key is never accepted again: create another ApiKey for another key";
        return status::invalid(observed, &[Problem { path: "spec.keyHash".into(), rule: rule.into() }], now);
    }
    let rules = Rules::declared(declaration);
    Plan::Write(Write::CreateRecord { serial: 1, submitted: Some(digest), cause: Cause::First, rules })
}

fn plan_delivered(observed: &Observed, declaration: &Declaration, now: Timestamp) -> Plan {
    if let Some(record) = observed.undelivered() {
        return plan_undelivered(observed, declaration, record, now);
    }
    if observed.secret == Secret::Foreign {
        return status::name_taken(observed, declaration, now);
    }
    if let Some(current) = observed.current() {
        return plan_current(observed, declaration, current, now);
    }
    // Nothing is minted that has no place to go: every try would leave a tombstone.
    if let Some(obstacle) = observed.obstacle() {
        return status::obstructed(observed, declaration, obstacle, now);
    }
    let cause = observed.cause_of_next();
    match observed.budget_until(now).filter(|_| cause.unrequested()) {
        Some(until) => status::over_budget(observed, declaration, until, now),
        None => Plan::Write(Write::CreateRecord {
            serial: observed.newest_serial().saturating_add(1),
            submitted: None,
            cause,
            rules: Rules::declared(declaration),
        }),
    }
}

/// A record whose key has not reached the Secret.
fn plan_undelivered(observed: &Observed, declaration: &Declaration, record: &Record, now: Timestamp) -> Plan {
    let held = observed
        .held
        .as_ref()
        .filter(|held| held.serial == record.spec.serial && held.digest.to_string() == record.spec.digest);
    match (held, &observed.secret) {
        (Some(_), Secret::Absent) => Plan::Write(Write::CreateSecret { marks: marks(record) }),
        (Some(_), Secret::Ours { resource_version, .. }) => {
            Plan::Write(Write::ReplaceSecret { resource_version: resource_version.clone(), marks: marks(record) })
        }
        (None, _) if (SignedDuration::ZERO..DELIVERY_GRACE).contains(&now.duration_since(record.created)) => {
            status::issuing(observed, declaration, record.created.saturating_add(DELIVERY_GRACE).unwrap_or(now), now)
        }
        _ => revoke(record, RevocationReason::NotDelivered, now),
    }
}

/// The key in the Secret is in force; what is left is to tidy up around it.
fn plan_current(observed: &Observed, declaration: &Declaration, current: &Record, now: Timestamp) -> Plan {
    let over = |record: &&Record| {
        record.spec.serial < current.spec.serial && record.not_after().is_some_and(|not_after| now >= not_after)
    };
    if let Some(record) = observed.live_records().find(over) {
        return revoke(record, RevocationReason::Replaced, now);
    }
    match &observed.secret {
        Secret::Ours { resource_version, marks: said, immutable: false, .. } if *said != marks(current) => {
            Plan::Write(Write::MarkSecret { resource_version: resource_version.clone(), marks: marks(current) })
        }
        _ => status::in_force(observed, declaration, current, now),
    }
}

impl Observed {
    fn live_records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.live())
    }

    /// Whether the controller would have made this record for this ApiKey.
    fn made(&self, record: &Record) -> bool {
        let replaced =
            self.status.serial == Some(record.spec.serial) && self.status.key_prefix != record.spec.key_prefix;
        record.spec.api_key == self.reference
            && record.name == record_name(&self.reference.uid, record.spec.serial)
            && !replaced
    }

    /// The live record of the key that is in the Secret. An older key that somebody put back is not it: that one ends
    /// with its overlap.
    fn current(&self) -> Option<&Record> {
        let Secret::Ours { digest: Some(digest), .. } = &self.secret else {
            return None;
        };
        let (digest, delivered) = (digest.to_string(), self.newest_delivered_serial());
        self.live_records().find(|record| record.spec.digest == digest && record.spec.serial >= delivered)
    }

    /// The highest serial that a key was ever given, as far as anything still tells.
    fn newest_serial(&self) -> u32 {
        let newest_record = self.records.iter().map(|record| record.spec.serial).max();
        newest_record.unwrap_or(0).max(self.newest_delivered_serial())
    }

    /// The highest serial of a key that is known to have been handed out. What the Secret says of its key counts, so
    /// that a lost status does not make a delivered key look like one that nobody holds; and as anybody with rights on
    /// Secrets can edit that, only where it names a record exactly.
    fn newest_delivered_serial(&self) -> u32 {
        let marked = match &self.secret {
            Secret::Ours { marks, .. } => self
                .records
                .iter()
                .find(|record| marks.serial == Some(record.spec.serial) && marks.key_prefix == record.spec.key_prefix),
            _ => None,
        };
        self.status.serial.max(marked.map(|record| record.spec.serial)).unwrap_or(0)
    }

    /// The newest live record of a key that did not reach the Secret.
    fn undelivered(&self) -> Option<&Record> {
        let current = self.current().map_or(0, |current| current.spec.serial);
        let delivered = self.newest_delivered_serial().max(current);
        self.live_records().filter(|record| record.spec.serial > delivered).last()
    }

    /// Whether the newest key did not reach the Secret.
    pub fn failed_to_deliver(records: &[Record]) -> bool {
        let newest = records.last().and_then(|record| record.spec.revoked.as_ref());
        newest.is_some_and(|revocation| revocation.reason == RevocationReason::NotDelivered.as_str())
    }

    fn obstacle(&self) -> Option<&str> {
        match &self.secret {
            Secret::Ours { immutable: true, .. } => Some("it is immutable; delete it, and a new one is made"),
            _ => self.obstacle.as_deref(),
        }
    }

    fn cause_of_next(&self) -> Cause {
        match &self.secret {
            _ if self.newest_delivered_serial() == 0 => Cause::First,
            Secret::Ours { digest: Some(digest), .. } if self.is_of_a_lost_record(digest) => Cause::RecordLost,
            Secret::Ours { .. } => Cause::SecretChanged,
            Secret::Absent | Secret::Foreign => Cause::SecretMissing,
        }
    }

    /// Whether the Secret still holds what a record was made for, and the record is revoked or gone.
    fn is_of_a_lost_record(&self, digest: &Digest) -> bool {
        let digest = digest.to_string();
        let delivered = self.newest_delivered_serial();
        self.records.iter().any(|record| record.spec.digest == digest)
            || !self.records.iter().any(|record| record.spec.serial == delivered)
    }

    /// Until when no unrequested key may be made. A key that never reached its Secret does not count.
    fn budget_until(&self, now: Timestamp) -> Option<Timestamp> {
        let delivered = self.newest_delivered_serial();
        let recorded = self
            .records
            .iter()
            .filter(|record| record.cause.unrequested() && record.spec.serial <= delivered)
            .map(|record| record.created);
        // Whoever removes the records by hand, again and again, removes this evidence too; the status still has it.
        let removed = !self.records.iter().any(|record| record.spec.serial == delivered);
        let remembered = self.status.issued_at.as_ref().filter(|_| removed && delivered > 1).map(|time| time.0);
        let last = recorded.chain(remembered).max()?;
        // A time in the future is a clock that was set back; it must not stop the minting for longer than the period.
        (now.duration_since(last).abs() < MINT_PERIOD).then(|| last.saturating_add(MINT_PERIOD).unwrap_or(now))
    }
}

fn revoke(record: &Record, reason: RevocationReason, now: Timestamp) -> Plan {
    update(record, revoked(&record.spec, reason, now))
}

fn update(record: &Record, spec: ApiKeyRecordSpec) -> Plan {
    Plan::Write(write_record(record, spec))
}

fn write_record(record: &Record, spec: ApiKeyRecordSpec) -> Write {
    Write::UpdateRecord {
        name: record.name.clone(),
        resource_version: record.resource_version.clone(),
        spec: Box::new(spec),
    }
}

/// What the Secret is to say of this record's key.
fn marks(record: &Record) -> Marks {
    Marks {
        key_prefix: record.spec.key_prefix.clone(),
        serial: Some(record.spec.serial),
        expires_at: record.not_after().map(|time| time.to_string()),
        managed: true,
    }
}

/// Kubernetes stores whole seconds; anything finer would differ from what is read back.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests;
