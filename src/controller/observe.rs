//! Reads everything that a decision about one ApiKey needs, each object by name and from the API server itself: a read
//! by name without a resource version is answered from etcd, never from a cache that lags.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKeyRecord, ApiKeyReference, ApiKeyStatus, ROTATE_ANNOTATION};
use keywright_core::declaration::{self, Declaration, Delivery, Problem};
use keywright_core::key::Digest;
use keywright_core::lifecycle::{
    Claim, Enforcement, Held, Observed, Ownership, Record, RotateRequest, SecretAttempt, SecretContents, SecretState,
    SourceProblem, read_source,
};
use keywright_core::record_name::{record_name, serial_in};
use kube::ResourceExt;
use kube::api::{DynamicObject, ObjectMeta};
use serde_json::Value;

use super::cluster::Cluster;
use super::error::Error;
use super::heads::RecordHead;
use super::index::RecordIndex;

/// An ApiKey as stored, and what there is to know about it. The API server's answer to a write is an observation too, so
/// that a pass reads everything once.
pub(super) struct Observation {
    pub(super) object: DynamicObject,
    pub(super) observed: Observed,
    /// Other ApiKeys that have a record with the digest that is this one's, as was last asked.
    pub(super) losers: Vec<ApiKeyReference>,
    /// Another look at the source was asked for since it was read.
    pub(super) is_outdated: bool,
}

/// Records are read this many at a time.
const PARALLEL_READS: usize = 8;

/// Others with a claim to one digest that are woken at a time.
const LOSERS_AT_A_TIME: usize = 100;

/// How well a pass looks for records.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// An ApiKey that is new to the index, to its status and to its namespace's Secrets has none yet. Should there be one
    /// all the same, then the POST of a first record is refused, as both have one name.
    First,
    /// After a write that failed: everything is read.
    Again,
}

/// Observes the ApiKey of that name; `None`: there is no such ApiKey.
pub(super) async fn observe(
    cluster: &Cluster,
    index: &RecordIndex,
    (namespace, name): (&str, &str),
    held: Option<Held>,
    look: Look,
) -> Result<Option<Observation>, Error> {
    let Some(object) = cluster.api_keys(namespace).get_opt(name).await? else { return Ok(None) };
    let reference = reference(&object, namespace, name);
    let declared = declared(&object);
    let is_deleting = object.metadata.deletion_timestamp.is_some();
    let status = status(&object);
    let mut serials = index.serials(&reference.uid);
    serials.extend(held.as_ref().map(|held| held.serial).into_iter().chain(status.serial));
    let declaration = declared.as_ref().ok().filter(|_| !is_deleting);
    // Whether a submitted digest is this ApiKey's own is told by its record.
    let is_delivered = declaration.is_some_and(|declared| matches!(declared.delivery, Delivery::Secret { .. }));
    let is_new = is_delivered && serials.is_empty() && status == ApiKeyStatus::default();
    let (secret, records) = if look == Look::First && is_new {
        let secret = secret(cluster, &reference, declaration).await?;
        let records = match secret {
            SecretState::Absent => Vec::new(),
            _ => records(cluster, &reference.uid, serials).await?,
        };
        (secret, records)
    } else {
        futures::try_join!(secret(cluster, &reference, declaration), records(cluster, &reference.uid, serials))?
    };
    let source = source(cluster, &reference, declaration).await?;
    let observed = Observed {
        generation: object.metadata.generation.unwrap_or_default(),
        created: created(&object.metadata),
        resource_version: object.resource_version().unwrap_or_default(),
        is_deleting,
        finalizers: object.finalizers().to_vec(),
        rotate_request: rotate_request(&object),
        declared,
        status,
        secret,
        source,
        obstacle: None,
        secret_attempt: SecretAttempt::None,
        ownership: Ownership::Unasked,
        records: records.into_iter().map(Record::from).collect(),
        enforcement: Enforcement::Unasked,
        held,
        reference,
    };
    Ok(Some(Observation { object, observed, losers: Vec::new(), is_outdated: false }))
}

impl Observation {
    /// Takes in the ApiKey that the API server answered with.
    pub(super) fn note_api_key(&mut self, object: DynamicObject) {
        self.observed.generation = object.metadata.generation.unwrap_or_default();
        self.observed.resource_version = object.resource_version().unwrap_or_default();
        self.observed.finalizers = object.finalizers().to_vec();
        let request = rotate_request(&object);
        self.is_outdated |= request != self.observed.rotate_request && self.observed.has_source();
        self.observed.rotate_request = request;
        self.observed.declared = declared(&object);
        self.observed.status = status(&object);
        self.object = object;
    }

    /// Takes in a record that the API server answered with.
    pub(super) fn note_record(&mut self, stored: ApiKeyRecord) {
        let record = Record::from(stored);
        let records = &mut self.observed.records;
        match records.iter_mut().find(|present| present.name() == record.name()) {
            Some(present) => *present = record,
            None => records.push(record),
        }
        records.sort_by_key(|record| record.spec.serial);
        self.observed.enforcement = Enforcement::Unasked;
    }

    /// Takes in that a record is gone.
    pub(super) fn note_no_record(&mut self, name: &str) {
        self.observed.records.retain(|record| record.name() != name);
    }

    /// Takes in the Secret that the API server answered with.
    pub(super) fn note_secret(&mut self, stored: Secret) {
        let declaration = self.observed.declared.as_ref().ok();
        let contents = declaration.and_then(|declared| SecretContents::declared(&self.observed.reference, declared));
        if let Some(contents) = contents {
            self.observed.secret = SecretState::read(stored, &self.observed.reference, &contents);
        }
    }

    /// Asks who owns a digest.
    pub(super) async fn ask_ownership(&mut self, cluster: &Cluster, digest: Digest) -> Result<(), Error> {
        let own = &self.observed.reference.uid;
        let (mut oldest, mut others) = (None::<Claim>, Vec::new());
        let mut pages = cluster.record_pages().matching(&format!("spec.digest={digest}"));
        while let Some(page) = pages.next::<RecordHead>().await? {
            for record in page.items {
                let Some(claim) = claim(&record) else { continue };
                if claim.uid != *own && !claim.is_revoked && others.len() < LOSERS_AT_A_TIME {
                    others.push(record.spec.api_key);
                }
                oldest = oldest.into_iter().chain([claim]).min();
            }
        }
        self.losers = if oldest.as_ref().is_some_and(|oldest| oldest.uid == *own) { others } else { Vec::new() };
        self.observed.ownership = oldest.map_or(Ownership::Free, Ownership::Owned);
        Ok(())
    }

    /// The digest whose owner is to be asked for: the ApiKey is not known to own it, or something hints at somebody else
    /// since then.
    pub(super) fn contested_digest(&self, index: &RecordIndex) -> Option<Digest> {
        let digest = self.observed.claimed_digest().filter(|_| !self.observed.is_deleting)?;
        let is_settled =
            self.own_record(digest).is_some_and(|own| self.observed.status.serial == Some(own.spec.serial))
                && !index.is_claimed_by_others(&digest, &self.observed.reference.uid);
        (self.observed.ownership == Ownership::Unasked && !is_settled).then_some(digest)
    }

    /// The live record of this ApiKey that has the digest.
    pub(super) fn own_record(&self, digest: Digest) -> Option<&Record> {
        let digest = digest.to_string();
        self.observed.records.iter().find(|record| record.spec.revoked.is_none() && record.spec.digest == digest)
    }
}

/// A record's claim to its digest; `None` if it is not named as a record is, so that it counts for nothing.
fn claim(record: &RecordHead) -> Option<Claim> {
    Some(Claim {
        created: record.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        serial: serial_in(&record.metadata.name, &record.spec.api_key.uid)?,
        uid: record.spec.api_key.uid.clone(),
        is_revoked: record.spec.revoked.is_some(),
    })
}

fn declared(object: &DynamicObject) -> Result<Declaration, Vec<Problem>> {
    declaration::read(object.data.get("spec").unwrap_or(&Value::Null), &object.name_any(), created(&object.metadata))
}

fn rotate_request(object: &DynamicObject) -> Option<RotateRequest> {
    object.annotations().get(ROTATE_ANNOTATION).map(|value| RotateRequest::read(value))
}

/// When an object was created; before everything else where it does not say.
fn created(metadata: &ObjectMeta) -> Timestamp {
    metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

fn reference(object: &DynamicObject, namespace: &str, name: &str) -> ApiKeyReference {
    ApiKeyReference { namespace: namespace.to_owned(), name: name.to_owned(), uid: object.uid().unwrap_or_default() }
}

/// The stored status. What a later version wrote and this one cannot read costs everything but the serial, without
/// which a delivered key would look like one that nobody holds.
fn status(object: &DynamicObject) -> ApiKeyStatus {
    let stored = object.data.get("status").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let serial = stored.get("serial").and_then(Value::as_u64).and_then(|serial| serial.try_into().ok());
    serde_json::from_value(stored).unwrap_or_else(|_| ApiKeyStatus { serial, ..ApiKeyStatus::default() })
}

async fn secret(
    cluster: &Cluster,
    reference: &ApiKeyReference,
    declaration: Option<&Declaration>,
) -> Result<SecretState, Error> {
    let Some(declaration) = declaration else { return Ok(SecretState::Absent) };
    let contents = SecretContents::declared(reference, declaration);
    let (Delivery::Secret { name, .. }, Some(contents)) = (&declaration.delivery, contents) else {
        return Ok(SecretState::Absent);
    };
    let stored = cluster.secret(&reference.namespace, name).await?;
    Ok(stored.map_or(SecretState::Absent, |secret| SecretState::read(secret, reference, &contents)))
}

/// The digest of the key in the source, if one is declared.
async fn source(
    cluster: &Cluster,
    reference: &ApiKeyReference,
    declaration: Option<&Declaration>,
) -> Result<Result<Digest, SourceProblem>, Error> {
    let Some(Delivery::Source { name, key }) = declaration.map(|declaration| &declaration.delivery) else {
        return Ok(Err(SourceProblem::Missing));
    };
    Ok(read_source(cluster.secret(&reference.namespace, name).await?, key))
}

/// The records with these serials, and any that follow the newest of them, by ascending serial.
async fn records(cluster: &Cluster, uid: &str, serials: BTreeSet<u32>) -> Result<Vec<ApiKeyRecord>, Error> {
    let mut next = serials.last().copied().unwrap_or(0);
    let mut wanted: Vec<u32> = serials.into_iter().collect();
    let mut records = Vec::new();
    loop {
        // After the highest serial there is none.
        let following = next.checked_add(1);
        next = following.unwrap_or(next);
        wanted.extend(following);
        let read: Vec<Option<ApiKeyRecord>> = stream::iter(wanted.drain(..))
            .map(|serial| record(cluster, uid, serial))
            .buffered(PARALLEL_READS)
            .try_collect()
            .await?;
        let followed = following.is_some() && read.last().is_some_and(Option::is_some);
        records.extend(read.into_iter().flatten());
        if !followed {
            return Ok(records);
        }
    }
}

async fn record(cluster: &Cluster, uid: &str, serial: u32) -> Result<Option<ApiKeyRecord>, Error> {
    Ok(cluster.records().get_opt(&record_name(uid, serial)).await?)
}
