//! Records: what one says, how the next one is made, and how one ends.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::rotate_request::RotateRequest;
use super::tombstones;
use crate::api::{
    ApiKeyRecord, ApiKeyRecordSpec, ApiKeyReference, CAUSE_ANNOTATION, HELD_UNTIL_ANNOTATION, ISSUED_AT_ANNOTATION,
    MANAGED_BY, REPLACED_AT_ANNOTATION, Revocation,
};
use crate::declaration::Declaration;
use crate::key::{Digest, Prefix};
use crate::record_name::record_name;

/// One stored record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// As stored: the precondition of the next write, and what that writes back.
    pub metadata: ObjectMeta,
    /// Why it was issued.
    pub cause: Cause,
    /// When it was issued, by the controller's clock. Old records do not say.
    pub issued_at: Option<Timestamp>,
    /// When a newer key was in the Secret: its overlap began.
    pub replaced_at: Option<Timestamp>,
    /// Until when it is held, as it was used near its end.
    pub held_until: Option<Timestamp>,
    /// When a verifier last let its key in.
    pub last_used_at: Option<Timestamp>,
    /// What it says.
    pub spec: ApiKeyRecordSpec,
}

impl From<ApiKeyRecord> for Record {
    /// A record that does not say why it was issued counts as the ApiKey's first.
    fn from(record: ApiKeyRecord) -> Self {
        let annotation = |name: &str| record.metadata.annotations.as_ref()?.get(name);
        let time = |name: &str| annotation(name).and_then(|time| time.parse().ok());
        Self {
            cause: annotation(CAUSE_ANNOTATION).and_then(|cause| cause.parse().ok()).unwrap_or(Cause::First),
            issued_at: time(ISSUED_AT_ANNOTATION),
            replaced_at: time(REPLACED_AT_ANNOTATION),
            held_until: time(HELD_UNTIL_ANNOTATION),
            last_used_at: record.status.and_then(|status| status.last_used_at).map(|time| time.0),
            metadata: record.metadata,
            spec: record.spec,
        }
    }
}

impl Record {
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// `metadata.creationTimestamp`: when the key was issued. Before everything else where it is not told.
    pub fn created(&self) -> Timestamp {
        self.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
    }

    /// What is shown of its key: the prefix, or of a submitted key the start of the digest.
    pub(super) fn shown(&self) -> Option<String> {
        let digest_start = || Some(self.spec.digest.parse::<Digest>().ok()?.start().to_string());
        self.spec.key_prefix.clone().or_else(digest_start)
    }

    pub(super) fn is_live(&self) -> bool {
        self.spec.revoked.is_none()
    }

    pub(super) fn not_after(&self) -> Option<Timestamp> {
        self.spec.not_after.as_ref().map(|time| time.0)
    }

    /// The record with another spec.
    pub(super) fn with(&self, spec: ApiKeyRecordSpec) -> RecordUpdate {
        RecordUpdate { metadata: self.metadata.clone(), before: self.spec.clone(), spec }
    }

    /// The record of a key that a newer one in the Secret has replaced at this time.
    pub(super) fn replaced(&self, spec: ApiKeyRecordSpec, at: Timestamp) -> RecordUpdate {
        let mut update = self.with(spec);
        let annotations = update.metadata.annotations.get_or_insert_default();
        annotations.insert(REPLACED_AT_ANNOTATION.into(), at.to_string());
        update
    }

    /// The record of a key that was replaced and has its place again.
    pub(super) fn reinstated(&self, spec: ApiKeyRecordSpec) -> RecordUpdate {
        let mut update = self.with(spec);
        let annotations = update.metadata.annotations.get_or_insert_default();
        annotations.retain(|name, _| ![REPLACED_AT_ANNOTATION, HELD_UNTIL_ANNOTATION].contains(&&**name));
        update
    }

    /// The record of a replaced key that ends at this time instead of earlier.
    pub(super) fn held(&self, until: Timestamp) -> RecordUpdate {
        let mut update = self.with(ApiKeyRecordSpec { not_after: Some(Time(until)), ..self.spec.clone() });
        let annotations = update.metadata.annotations.get_or_insert_default();
        annotations.insert(HELD_UNTIL_ANNOTATION.into(), until.to_string());
        update
    }

    /// The record as a tombstone.
    pub(super) fn revoked(&self, reason: RevocationReason, now: Timestamp) -> RecordUpdate {
        self.with(revoked(&self.spec, reason, now))
    }
}

/// The record of a key that is to be announced. Whole, but for the key that is minted on the way.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecord {
    /// Where the key comes from.
    pub key: NewKey,
    /// Why it is issued.
    pub cause: Cause,
    /// When, by the controller's clock.
    issued_at: Timestamp,
    /// `digest` and `keyPrefix` are those of the key.
    spec: ApiKeyRecordSpec,
}

/// Where the key of a new record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewKey {
    /// It is to be minted.
    Minted,
    /// It was made elsewhere, and this is its digest.
    Submitted(Digest),
}

impl NewRecord {
    pub(super) fn new(
        api_key: &ApiKeyReference,
        serial: u32,
        key: NewKey,
        cause: Cause,
        rotate_request: Option<&RotateRequest>,
        declaration: &Declaration,
        now: Timestamp,
    ) -> Self {
        let spec = ApiKeyRecordSpec {
            digest: String::new(),
            key_prefix: None,
            api_key: api_key.clone(),
            serial,
            owner: None,
            scopes: Vec::new(),
            allowed_ips: None,
            not_after: None,
            suspended: false,
            revoked: None,
            rotate_request: rotate_request.map(|request| request.digest.to_string()),
        };
        Self { key, cause, issued_at: now, spec: declared(declaration, spec) }
    }

    /// Which key of the ApiKey it is.
    pub fn serial(&self) -> u32 {
        self.spec.serial
    }

    /// The object to create, once its key is there. A key that was made elsewhere has no prefix that is known.
    pub fn object(&self, digest: Digest, prefix: Option<Prefix>) -> ApiKeyRecord {
        let spec = ApiKeyRecordSpec {
            digest: digest.to_string(),
            key_prefix: prefix.map(|prefix| prefix.to_string()),
            ..self.spec.clone()
        };
        let mut record = ApiKeyRecord::new(&record_name(&spec.api_key.uid, spec.serial), spec);
        record.metadata.labels = Some(BTreeMap::from([(MANAGED_BY.0.into(), MANAGED_BY.1.into())]));
        record.metadata.annotations = Some(BTreeMap::from([
            (CAUSE_ANNOTATION.into(), self.cause.to_string()),
            (ISSUED_AT_ANNOTATION.into(), self.issued_at.to_string()),
        ]));
        record
    }
}

/// What is declared, in place of what the spec of a record says.
pub(super) fn declared(declaration: &Declaration, spec: ApiKeyRecordSpec) -> ApiKeyRecordSpec {
    ApiKeyRecordSpec {
        owner: declaration.owner.clone(),
        scopes: declaration.scopes.clone(),
        allowed_ips: declaration.allowed_ips.clone(),
        not_after: declaration.expires_at.map(Time),
        suspended: declaration.suspended,
        ..spec
    }
}

/// A record with another spec, under the version that was observed.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordUpdate {
    /// As stored, with the precondition.
    pub metadata: ObjectMeta,
    /// What it is to say.
    pub spec: ApiKeyRecordSpec,
    before: ApiKeyRecordSpec,
}

impl RecordUpdate {
    /// The end of a record's key.
    pub fn revocation(record: ApiKeyRecord, reason: RevocationReason, now: Timestamp) -> Self {
        let spec = revoked(&record.spec, reason, now);
        Self { metadata: record.metadata, before: record.spec, spec }
    }

    /// The object to write.
    pub fn object(&self) -> ApiKeyRecord {
        ApiKeyRecord { metadata: self.metadata.clone(), spec: self.spec.clone(), status: None }
    }

    /// A tombstone that holds all that the record did: for an API server whose definitions are older than this program,
    /// and may not let it drop what it does not need. Revoking must not fail for that.
    pub fn object_for_older_definitions(&self) -> Option<ApiKeyRecord> {
        let revoked = Some(self.spec.revoked.clone()?);
        let spec = ApiKeyRecordSpec { revoked, ..self.before.clone() };
        Some(ApiKeyRecord { metadata: self.metadata.clone(), spec, status: None })
    }
}

/// Why a key was issued; kept in the annotation [`CAUSE_ANNOTATION`].
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
    /// A new value of the annotation `keywright.dev/rotate` asked for it.
    RotationRequested,
    /// The last key has reached the age of `spec.rotation.every`.
    RotationScheduled,
    /// The source holds another key.
    SourceChanged,
}

impl Cause {
    const ALL: [Self; 7] = [
        Self::First,
        Self::SecretMissing,
        Self::SecretChanged,
        Self::RecordLost,
        Self::RotationRequested,
        Self::RotationScheduled,
        Self::SourceChanged,
    ];

    /// The word in the annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "First",
            Self::SecretMissing => "SecretMissing",
            Self::SecretChanged => "SecretChanged",
            Self::RecordLost => "RecordLost",
            Self::RotationRequested => "RotationRequested",
            Self::RotationScheduled => "RotationScheduled",
            Self::SourceChanged => "SourceChanged",
        }
    }

    /// Whether nobody asked for this key, so that it counts against the mint budget.
    pub(super) fn is_unrequested(self) -> bool {
        matches!(self, Self::SecretMissing | Self::SecretChanged | Self::RecordLost)
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
    /// A newer key took its place, and the overlap is over; or too many newer ones did.
    Replaced,
    /// It is not a record that the controller would have made.
    Tampered,
}

impl RevocationReason {
    /// Whether `revocation` says that nobody ever held the key.
    pub(super) fn is_undelivered(revocation: &Revocation) -> bool {
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
pub(super) fn revoked(spec: &ApiKeyRecordSpec, reason: RevocationReason, now: Timestamp) -> ApiKeyRecordSpec {
    let revoked = Some(Revocation { at: Time(whole_seconds(now)), reason: reason.as_str().to_owned() });
    let revoked = ApiKeyRecordSpec { revoked, ..spec.clone() };
    tombstones::slim(&revoked).unwrap_or(revoked)
}

/// Kubernetes stores whole seconds; anything finer would differ from what is read back.
pub(super) fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
