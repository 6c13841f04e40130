//! What there is to know of one ApiKey, and the facts that follow from it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::enforcement::Enforcement;
use super::record::{Cause, Record, RevocationReason};
use super::rotate_request::RotateRequest;
use super::secret::SecretState;
use super::source::SourceProblem;
use crate::api::{ApiKeyReference, ApiKeyStatus, FINALIZER, Retiring};
use crate::declaration::{Declaration, Delivery, Problem};
use crate::key::{Digest, Prefix};
use crate::record_name::record_name;

/// At most one unrequested new key per ApiKey in this time, so that whoever deletes or overwrites a Secret in a loop
/// cannot make the operator mint in a loop.
pub(super) const MINT_PERIOD: SignedDuration = SignedDuration::from_mins(5);

/// What keeps a Secret from being changed, and what to do.
pub(super) const IS_IMMUTABLE: &str = "it is immutable: delete it, and the controller creates a new one";

/// A status that shows a higher serial than this is not believed: whoever edits it would leave no serial to go on with.
pub(super) const MAX_SHOWN_SERIAL: u32 = 1 << 31;

/// Everything that a decision about one ApiKey needs to know.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Which ApiKey this is.
    pub reference: ApiKeyReference,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// `metadata.resourceVersion`: the precondition of a write to the ApiKey.
    pub resource_version: String,
    /// Whether `metadata.deletionTimestamp` is set.
    pub is_deleting: bool,
    /// `metadata.finalizers`.
    pub finalizers: Vec<String>,
    /// The annotation `keywright.dev/rotate`.
    pub rotate_request: Option<RotateRequest>,
    /// The spec, or all that is wrong with it.
    pub declared: Result<Declaration, Vec<Problem>>,
    /// The status as stored. Anybody with rights on the status can edit it, so nothing in it revokes a key: its serial
    /// only keeps a serial from being used twice, and a delivered key from being taken for one that nobody holds.
    pub status: ApiKeyStatus,
    /// The Secret that the spec names.
    pub secret: SecretState,
    /// The digest of the key in the source that the spec names.
    pub source: Result<Digest, SourceProblem>,
    /// Whether the API server would take the Secret. Asked only after a key did not reach its Secret.
    pub obstacle: Option<Obstacle>,
    /// What came of the last try to make the Secret hold what is declared.
    pub secret_attempt: SecretAttempt,
    /// Who owns the digest that the spec submits, or that of the key in its source.
    pub ownership: Ownership,
    /// The records of this ApiKey, by ascending serial. Revoked ones may be left out below the newest.
    pub records: Vec<Record>,
    /// Whether the verifiers decide by what the records say.
    pub enforcement: Enforcement,
    /// The key that this process has announced in a record and not yet handed out.
    pub held: Option<Held>,
}

/// Why a Secret cannot be written, as the API server answers to a dry run of the very write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It refuses, in these words.
    Refused(String),
    /// It cannot say: an admission webhook does not support dry runs.
    Unknown(String),
}

/// What came of the last try to make this version of the Secret hold what this generation of the ApiKey declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretAttempt {
    /// There was none, or it is time for another one.
    #[default]
    None,
    /// The API server took it. If the Secret does not hold what is declared all the same, then others want it otherwise,
    /// and they are not fought.
    Taken,
    /// The API server refused it, in these words.
    Refused(String),
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

impl SecretAttempt {
    /// One that was refused in these words. It is remembered, and so it takes no more than a line or two of them.
    pub fn refused(words: &str) -> Self {
        const LONGEST: usize = 1024;
        Self::Refused(words.get(..words.floor_char_boundary(LONGEST)).unwrap_or_default().to_owned())
    }
}

impl Claim {
    /// Whether this is the claim of the record with this name.
    pub(super) fn is_of(&self, record: &str) -> bool {
        record_name(&self.uid, self.serial) == record
    }
}

impl Observed {
    pub(super) fn has_finalizer(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    }

    /// What holds a deletion up beside us.
    pub(super) fn other_finalizers(&self) -> Vec<String> {
        self.finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect()
    }

    /// Whether every record tells of the ApiKey's first key, and no status of anything: a pass that issues a key then
    /// issues the first.
    pub fn is_new(&self) -> bool {
        self.status.observed_generation.is_none() && self.records.iter().all(|record| record.cause == Cause::First)
    }

    /// Whether it has to be asked if the verifiers enforce this generation, which the records carry.
    pub(super) fn needs_to_know_enforcement(&self) -> bool {
        let is_reported = self.status.enforced_generation == Some(self.generation);
        self.enforcement == Enforcement::Unasked && self.declared.is_ok() && !is_reported
    }

    pub(super) fn live_records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.is_live())
    }

    /// Whether the controller would have made this record for this ApiKey.
    pub(super) fn made(&self, record: &Record) -> bool {
        record.spec.api_key == self.reference && record.name() == record_name(&self.reference.uid, record.spec.serial)
    }

    /// The record whose key is let in unless something in it says otherwise: of the key in the Secret or in the source, or
    /// of the submitted one.
    pub(super) fn in_force(&self) -> Option<&Record> {
        match self.declared.as_ref().ok()?.delivery {
            Delivery::Secret { .. } | Delivery::Source { .. } => self.current(),
            Delivery::Submitted(_) => self.live_records().next(),
        }
    }

    /// Whether the key is read from a source.
    pub fn has_source(&self) -> bool {
        self.declared.as_ref().is_ok_and(|declaration| matches!(declaration.delivery, Delivery::Source { .. }))
    }

    /// The digest that the ApiKey claims: the submitted one, or that of the key in its source.
    pub fn claimed_digest(&self) -> Option<Digest> {
        match self.declared.as_ref().ok()?.delivery {
            Delivery::Secret { .. } => None,
            Delivery::Submitted(digest) => Some(digest),
            Delivery::Source { .. } => self.source.ok(),
        }
    }

    /// Whether the source holds no key, or another one's: those that it held are on their way out.
    pub(super) fn has_lost_its_source(&self) -> bool {
        let is_refused = match &self.ownership {
            Ownership::Owned(claim) => claim.is_revoked || claim.uid != self.reference.uid,
            Ownership::Free | Ownership::Unasked => false,
        };
        self.has_source() && (self.source.is_err() || is_refused)
    }

    /// Whether no other key has been in force since this one was: it ended because the source was lost.
    pub(super) fn was_last_in_force(&self, record: &Record) -> bool {
        let serial = record.spec.serial;
        let is_later = |other: &Record| match (other.replaced_at, record.replaced_at) {
            (None, Some(_)) if other.is_live() => true,
            (None, _) => other.spec.serial > serial,
            (Some(_), None) => false,
            (Some(at), Some(own)) => (at, other.spec.serial) > (own, serial),
        };
        !self.records.iter().any(is_later)
    }

    /// The live records of other keys than `current` that are on their way out, by ascending serial. A source may hold an
    /// older key again.
    pub(super) fn older_than(&self, current: Option<&Record>) -> impl Iterator<Item = &Record> {
        let (current, has_source) = (current.map(|current| current.spec.serial), self.has_source());
        self.live_records().filter(move |record| match current {
            Some(current) if has_source => record.spec.serial != current,
            Some(current) => record.spec.serial < current,
            None => record.replaced_at.is_some(),
        })
    }

    /// Older keys that are still let in beside `current`, with their ends.
    pub(super) fn retiring_beside(&self, current: Option<&Record>, now: Timestamp) -> Vec<Retiring> {
        let retiring = self.older_than(current).filter_map(|record| {
            let retires_at = Time(record.not_after().filter(|not_after| *not_after > now)?);
            let (key_prefix, serial) = (record.shown(), record.spec.serial);
            Some(Retiring { key_prefix, serial, retires_at, last_used_at: record.last_used_at.map(Time) })
        });
        retiring.collect()
    }

    /// The live record of the key that is in the Secret or in the source. In the Secret, an older key that somebody put
    /// back is not it: that one ends with its overlap. A status that tells of a newer key than there are records is believed
    /// only where the record says that it was replaced, too: a status alone does not have a key replaced.
    pub(super) fn current(&self) -> Option<&Record> {
        if self.has_source() {
            let digest = self.source.ok()?.to_string();
            return self.live_records().find(|record| record.spec.digest == digest);
        }
        let SecretState::Ours { digest: Some(digest), .. } = &self.secret else {
            return None;
        };
        let (delivered, recorded) = (self.newest_delivered_serial(), self.newest_delivered_record());
        let digest = digest.to_string();
        let record = self.live_records().find(|record| record.spec.digest == digest && record.replaced_at.is_none())?;
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
        let says = self.secret.annotations().unwrap_or_default();
        let is_named =
            |record: &&Record| says.serial == Some(record.spec.serial) && says.key_prefix == record.spec.key_prefix;
        let marked = self.records.iter().find(is_named);
        let used = self.records.iter().filter(|record| record.last_used_at.is_some()).map(|record| record.spec.serial);
        let shown = self.status.serial.filter(|serial| *serial <= MAX_SHOWN_SERIAL);
        shown.max(marked.map(|record| record.spec.serial)).max(used.max()).unwrap_or(0)
    }

    /// The newest live record of a key that did not reach the Secret.
    pub(super) fn undelivered(&self) -> Option<&Record> {
        let current = self.current().map_or(0, |current| current.spec.serial);
        let delivered = self.newest_delivered_serial().max(current);
        self.live_records().filter(|record| record.spec.serial > delivered).last()
    }

    /// Whether the newest key did not reach the Secret, and the next one would need it: then the API server is to be
    /// asked for an [`Obstacle`] first.
    pub fn needs_to_know_obstacle(&self, now: Timestamp) -> bool {
        let newest = self.records.last().and_then(|record| record.spec.revoked.as_ref());
        let is_wanted = match &self.declared {
            Ok(declaration @ Declaration { delivery: Delivery::Secret { .. }, .. }) => {
                self.current().is_none_or(|current| {
                    declaration.lets_in_at(now) && self.cause_of_rotation(declaration, current, now).is_some()
                })
            }
            _ => false,
        };
        let has_place = matches!(self.secret, SecretState::Absent | SecretState::Ours { .. });
        newest.is_some_and(RevocationReason::is_undelivered) && !self.is_deleting && is_wanted && has_place
    }

    /// Why no key can be handed out at `now`.
    pub(super) fn obstacle_at(&self, now: Timestamp) -> Option<String> {
        if let SecretState::Ours { is_immutable: true, .. } = &self.secret {
            return Some(IS_IMMUTABLE.to_owned());
        }
        let refused = self.records.last().filter(|record| {
            let revoked = record.spec.revoked.as_ref();
            revoked.is_some_and(|revoked| revoked.reason == RevocationReason::DeliveryRefused.as_str())
        });
        // An API server that takes the dry run and refuses the write, again and again, costs a key every few minutes.
        let pause = |record: &Record| {
            let until = record.created().saturating_add(MINT_PERIOD).unwrap_or(now);
            ((SignedDuration::ZERO..MINT_PERIOD).contains(&now.duration_since(record.created()))).then_some(until)
        };
        let in_vain = self.newest_serial().saturating_sub(self.newest_delivered_serial());
        match &self.obstacle {
            Some(Obstacle::Refused(words)) => Some(words.clone()),
            Some(Obstacle::Unknown(words)) => {
                refused.and_then(pause).map(|until| format!("{words}; the next key is issued at {until}"))
            }
            None if in_vain >= 2 => refused.and_then(pause).map(|until| {
                format!(
                    "the API server accepts a dry run but refused the write twice; the next key is issued at {until}. \
                     Check webhooks and policies on Secrets"
                )
            }),
            None => None,
        }
    }

    pub(super) fn cause_of_next(&self) -> Cause {
        match &self.secret {
            _ if self.newest_delivered_serial() == 0 => Cause::First,
            SecretState::Ours { digest: Some(digest), .. } if self.is_of_a_lost_record(digest) => Cause::RecordLost,
            SecretState::Ours { .. } => Cause::SecretChanged,
            SecretState::Absent | SecretState::Foreign | SecretState::Leftover => Cause::SecretMissing,
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
    pub(super) fn budget_until(&self, now: Timestamp) -> Option<Timestamp> {
        let delivered = self.newest_delivered_serial();
        let recorded = self
            .records
            .iter()
            .filter(|record| record.cause.is_unrequested() && record.spec.serial <= delivered)
            .map(|record| record.created());
        // Whoever removes the records by hand, again and again, removes this evidence too; the status still has it.
        let removed = !self.records.iter().any(|record| record.spec.serial == delivered);
        let remembered = self.status.issued_at.as_ref().filter(|_| removed && delivered > 1).map(|time| time.0);
        let last = recorded.chain(remembered).max()?;
        // A time in the future is a clock that was set back; it must not stop the minting for longer than the period.
        (now.duration_since(last).abs() < MINT_PERIOD).then(|| last.saturating_add(MINT_PERIOD).unwrap_or(now))
    }
}
