//! PURE. What to do next for one ApiKey: everything observed and the time go in, a [`Plan`] comes out.
//!
//! A plan holds at most one write. After it the world is observed again, so that "crashed after this write" and "came
//! this far" are the same input, and nothing has to remember how far it came.
//!
//! One thing cannot be observed: a key between its record and its Secret exists in memory alone ([`Observed::held`]).
//! When that memory is lost, the record is of a key that nobody holds; it is revoked and the next serial is issued.

mod status;
pub mod tombstones;

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{ApiKeyRecordSpec, ApiKeyReference, ApiKeyStatus, Reason, Revocation};
use crate::declaration::{Declaration, Delivery, Problem};
use crate::key::{Digest, Prefix};

pub use status::{Announcement, announcements};

/// How long another controller's unfinished issue is left alone. With two controllers at work each would otherwise
/// revoke the other's record in the moment between its creation and the Secret's, again and again.
pub const DELIVERY_GRACE: SignedDuration = SignedDuration::from_secs(3);

/// At most one unrequested new key per ApiKey in this time, so that whoever deletes or overwrites a Secret in a loop
/// cannot make the operator mint in a loop.
pub const MINT_PERIOD: SignedDuration = SignedDuration::from_mins(5);

/// How soon a Secret that cannot be written is tried again; there is no watch on Secrets.
pub const SECRET_RETRY: SignedDuration = SignedDuration::from_secs(30);

/// How long after an ApiKey's creation a Secret of its namesake may still be there: the garbage collector needs a moment.
pub const LEFTOVER_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// A status that shows a higher serial than this is not believed: whoever edits it would leave no serial to go on with.
const MAX_SHOWN_SERIAL: u32 = 1 << 31;

/// Live keys of one ApiKey. Beyond it the oldest retired key ends before its overlap does.
pub const MAX_LIVE_KEYS: usize = 16;

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
    /// The others among `metadata.finalizers`: what holds a deletion up beside us.
    pub other_finalizers: Vec<String>,
    /// The digest of the annotation `keywright.dev/rotate`, whose value may be as long as a tenant likes.
    pub rotate_request: Option<Digest>,
    /// The spec, or all that is wrong with it.
    pub declared: Result<Declaration, Vec<Problem>>,
    /// The status as stored. Anybody with rights on the status can edit it, so nothing in it revokes a key: its serial
    /// only keeps a serial from being used twice, and a delivered key from being taken for one that nobody holds.
    pub status: ApiKeyStatus,
    /// The Secret that the spec names.
    pub secret: Secret,
    /// Whether the API server would take the Secret. Asked only after a key did not reach its Secret.
    pub obstacle: Option<Obstacle>,
    /// Who owns the digest that the spec submits.
    pub ownership: Ownership,
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
    /// It belonged to another ApiKey of this name, and the garbage collector is about to remove it.
    Leftover,
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

/// Why a Secret cannot be written, as the API server answers to a dry run of the very write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It refuses, in these words.
    Refused(String),
    /// It cannot say: an admission webhook does not support dry runs.
    Unknown(String),
}

/// Who owns a digest: of all records that have it the oldest rules alone, live or revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// No digest is submitted, or nothing says that its owner has changed since it was last asked.
    #[default]
    Unasked,
    /// No record has it.
    Free,
    /// The oldest record that has it.
    Owned(Claim),
}

/// A record's claim to its digest. The smallest one is the oldest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// `metadata.creationTimestamp` of the record.
    pub created: Timestamp,
    /// The uid of its ApiKey.
    pub uid: String,
    /// Its serial.
    pub serial: u32,
    /// Whether it is a tombstone.
    pub is_revoked: bool,
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
    /// Whether the API server refused the Secret with this key in it.
    pub is_refused: bool,
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
        /// What the Secret should say of its key where it says something else: written after the status and tried once
        /// for each version of the Secret, so that nobody is fought over it.
        marks: Option<Marks>,
    },
    /// The ApiKey is going and needs nothing more from us.
    Done,
}

/// One write, with its precondition.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Put the finalizer on the ApiKey, before anything exists that it guards.
    AddFinalizer,
    /// Say that every key is revoked while others hold the deletion up.
    UpdateStatus {
        /// The status as it should be.
        status: Box<ApiKeyStatus>,
    },
    /// Take the finalizer off: every key is revoked.
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
    /// Take back a claim to a digest that has another owner. It leaves no tombstone: it never counted.
    RemoveRecord {
        /// The record.
        name: String,
        /// Only this version of it.
        resource_version: String,
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

    /// The spec of a new record, with the ApiKey and the key that it is of.
    pub fn announce(
        self,
        api_key: ApiKeyReference,
        serial: u32,
        digest: Digest,
        prefix: Option<Prefix>,
    ) -> ApiKeyRecordSpec {
        self.apply(ApiKeyRecordSpec {
            digest: digest.to_string(),
            key_prefix: prefix.map(|prefix| prefix.to_string()),
            api_key,
            serial,
            owner: None,
            scopes: Vec::new(),
            allowed_ips: None,
            not_after: None,
            suspended: false,
            revoked: None,
            rotate_request: None,
        })
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
    /// The same, as the API server refused the Secret.
    DeliveryRefused,
    /// A newer key took its place, and the overlap is over.
    Replaced,
    /// It is not a record that the controller would have made.
    Tampered,
}

impl RevocationReason {
    /// Whether `revocation` says that nobody ever held the key.
    fn is_undelivered(revocation: &Revocation) -> bool {
        [Self::NotDelivered, Self::DeliveryRefused].iter().any(|reason| reason.as_str() == revocation.reason)
    }

    /// The word in the record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "Deleted",
            Self::Orphaned => "Orphaned",
            Self::NotDelivered => "NotDelivered",
            Self::DeliveryRefused => "DeliveryRefused",
            Self::Replaced => "Replaced",
            Self::Tampered => "Tampered",
        }
    }
}

/// The record's spec as a tombstone.
pub fn revoked(spec: &ApiKeyRecordSpec, reason: RevocationReason, now: Timestamp) -> ApiKeyRecordSpec {
    let revoked = Some(Revocation { at: Time(whole_seconds(now)), reason: reason.as_str().to_owned() });
    let revoked = ApiKeyRecordSpec { revoked, ..spec.clone() };
    tombstones::slim(&revoked).unwrap_or(revoked)
}

impl Claim {
    /// Whether this is the claim of the record with this name.
    fn is_of(&self, record: &str) -> bool {
        record_name(&self.uid, self.serial) == record
    }
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
    // The last chance to say so: without our finalizer, the object may be gone at any moment.
    if !observed.other_finalizers.is_empty()
        && let Some(status) = status::held_up(observed, now)
    {
        return Plan::Write(Write::UpdateStatus { status: Box::new(status) });
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
    let own = observed.live_records().next();
    match (&observed.ownership, own) {
        (Ownership::Owned(owner), Some(own)) if !owner.is_of(&own.name) => {
            Plan::Write(Write::RemoveRecord { name: own.name.clone(), resource_version: own.resource_version.clone() })
        }
        (_, Some(own)) => status::in_force(observed, declaration, own, now),
        (Ownership::Owned(owner), None) if !owner.is_revoked => {
            status::not_ours(observed, declaration, Reason::DigestTaken, now)
        }
        (Ownership::Owned(_), None) => status::not_ours(observed, declaration, Reason::DigestRevoked, now),
        (_, None) if !observed.records.is_empty() => {
            status::not_ours(observed, declaration, Reason::DigestRevoked, now)
        }
        (Ownership::Free, None) => Plan::Write(Write::CreateRecord {
            serial: 1,
            submitted: Some(digest),
            cause: Cause::First,
            rules: Rules::declared(declaration),
        }),
        (Ownership::Unasked, None) => status::issuing(observed, declaration, now + SignedDuration::from_secs(1), now),
    }
}

fn plan_delivered(observed: &Observed, declaration: &Declaration, now: Timestamp) -> Plan {
    if let Some(record) = observed.undelivered() {
        return plan_undelivered(observed, declaration, record, now);
    }
    match &observed.secret {
        Secret::Foreign => return status::name_taken(observed, declaration, now),
        Secret::Leftover => return status::leftover(observed, declaration, now),
        Secret::Absent | Secret::Ours { .. } => {}
    }
    if let Some(current) = observed.current() {
        return plan_current(observed, declaration, current, now);
    }
    // Nothing is minted that has no place to go: every try would leave a tombstone.
    if let Some(obstacle) = observed.obstacle_at(now) {
        return status::obstructed(observed, declaration, &obstacle, now);
    }
    let cause = observed.cause_of_next();
    if let Some(until) = observed.budget_until(now).filter(|_| cause.unrequested()) {
        return status::over_budget(observed, declaration, until, now);
    }
    if observed.live_records().count() >= MAX_LIVE_KEYS
        && let Some(oldest) = observed.live_records().next()
    {
        return revoke(oldest, RevocationReason::Replaced, now);
    }
    Plan::Write(Write::CreateRecord {
        serial: observed.newest_serial().saturating_add(1),
        submitted: None,
        cause,
        rules: Rules::declared(declaration),
    })
}

/// A record whose key has not reached the Secret.
fn plan_undelivered(observed: &Observed, declaration: &Declaration, record: &Record, now: Timestamp) -> Plan {
    let held = observed
        .held
        .as_ref()
        .filter(|held| held.serial == record.spec.serial && held.digest.to_string() == record.spec.digest);
    match (held, &observed.secret) {
        (Some(Held { is_refused: true, .. }), _) => revoke(record, RevocationReason::DeliveryRefused, now),
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
    status::in_force(observed, declaration, current, now)
}

impl Observed {
    fn live_records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.live())
    }

    /// Whether the controller would have made this record for this ApiKey.
    fn made(&self, record: &Record) -> bool {
        record.spec.api_key == self.reference && record.name == record_name(&self.reference.uid, record.spec.serial)
    }

    /// The live record of the key that is in the Secret. An older key that somebody put back is not it: that one ends
    /// with its overlap. A status that tells of a newer key than there are records is believed only where the record says
    /// that it was replaced, too: a status alone does not have a key replaced.
    fn current(&self) -> Option<&Record> {
        let Secret::Ours { digest: Some(digest), .. } = &self.secret else {
            return None;
        };
        let (delivered, recorded) = (self.newest_delivered_serial(), self.newest_delivered_record());
        let digest = digest.to_string();
        let record = self.live_records().find(|record| record.spec.digest == digest)?;
        let is_newest =
            record.spec.serial >= delivered || (record.spec.serial >= recorded && !self.was_replaced(record));
        is_newest.then_some(record)
    }

    /// Whether the record has another end than the ApiKey: that of an overlap.
    fn was_replaced(&self, record: &Record) -> bool {
        self.declared.as_ref().is_ok_and(|declaration| declaration.expires_at != record.not_after())
    }

    /// The serial of the newest record whose key was handed out, as far as anything still tells.
    fn newest_delivered_record(&self) -> u32 {
        let delivered = self.newest_delivered_serial();
        let was_delivered = |record: &&Record| {
            record.spec.serial <= delivered
                && !record.spec.revoked.as_ref().is_some_and(RevocationReason::is_undelivered)
        };
        self.records.iter().filter(was_delivered).map(|record| record.spec.serial).max().unwrap_or(0)
    }

    /// The highest serial that a key was ever given, as far as anything still tells.
    pub fn newest_serial(&self) -> u32 {
        let newest_record = self.records.iter().map(|record| record.spec.serial).max();
        newest_record.unwrap_or(0).max(self.newest_delivered_serial())
    }

    /// The highest serial of a key that is known to have been handed out. What the Secret says of its key counts, and so
    /// does every use, so that a lost status does not make a delivered key look like one that nobody holds; and as
    /// anybody with rights on Secrets can edit what they say, only where it names a record exactly.
    fn newest_delivered_serial(&self) -> u32 {
        let marked = match &self.secret {
            Secret::Ours { marks, .. } => self
                .records
                .iter()
                .find(|record| marks.serial == Some(record.spec.serial) && marks.key_prefix == record.spec.key_prefix),
            _ => None,
        };
        let used = self.records.iter().filter(|record| record.last_used_at.is_some()).map(|record| record.spec.serial);
        let shown = self.status.serial.filter(|serial| *serial <= MAX_SHOWN_SERIAL);
        shown.max(marked.map(|record| record.spec.serial)).max(used.max()).unwrap_or(0)
    }

    /// The newest live record of a key that did not reach the Secret.
    fn undelivered(&self) -> Option<&Record> {
        let current = self.current().map_or(0, |current| current.spec.serial);
        let delivered = self.newest_delivered_serial().max(current);
        self.live_records().filter(|record| record.spec.serial > delivered).last()
    }

    /// Whether the newest key did not reach the Secret, and the next one would need it: then the API server is to be
    /// asked for an [`Obstacle`] first.
    pub fn needs_to_know_obstacle(&self) -> bool {
        let newest = self.records.last().and_then(|record| record.spec.revoked.as_ref());
        let is_wanted = matches!(&self.declared, Ok(Declaration { delivery: Delivery::Secret { .. }, .. }));
        let has_place = matches!(self.secret, Secret::Absent | Secret::Ours { .. });
        newest.is_some_and(RevocationReason::is_undelivered)
            && !self.deleting
            && is_wanted
            && has_place
            && self.current().is_none()
    }

    /// Why no key can be handed out at `now`.
    fn obstacle_at(&self, now: Timestamp) -> Option<String> {
        if let Secret::Ours { immutable: true, .. } = &self.secret {
            return Some("it is immutable; delete it, and a new one is made".to_owned());
        }
        let refused = self.records.last().filter(|record| {
            let revoked = record.spec.revoked.as_ref();
            revoked.is_some_and(|revoked| revoked.reason == RevocationReason::DeliveryRefused.as_str())
        });
        // An API server that takes the dry run and refuses the write, again and again, costs a key every few minutes.
        let pause = |record: &Record| {
            let until = record.created.saturating_add(MINT_PERIOD).unwrap_or(now);
            ((SignedDuration::ZERO..MINT_PERIOD).contains(&now.duration_since(record.created))).then_some(until)
        };
        let in_vain = self.newest_serial().saturating_sub(self.newest_delivered_serial());
        match &self.obstacle {
            Some(Obstacle::Refused(words)) => Some(words.clone()),
            Some(Obstacle::Unknown(words)) => {
                refused.and_then(pause).map(|until| format!("{words}; the next key is issued at {until}"))
            }
            None if in_vain >= 2 => refused.and_then(pause).map(|until| {
                format!("it was refused twice, although dry runs are not; the next key is issued at {until}")
            }),
            None => None,
        }
    }

    fn cause_of_next(&self) -> Cause {
        match &self.secret {
            _ if self.newest_delivered_serial() == 0 => Cause::First,
            Secret::Ours { digest: Some(digest), .. } if self.is_of_a_lost_record(digest) => Cause::RecordLost,
            Secret::Ours { .. } => Cause::SecretChanged,
            Secret::Absent | Secret::Foreign | Secret::Leftover => Cause::SecretMissing,
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
mod tests;
