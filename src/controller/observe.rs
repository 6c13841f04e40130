//! Reads everything that a decision about one ApiKey needs, each object by name and from the API server itself: a read
//! by name without a resource version is answered from etcd, never from a cache that lags.

use std::collections::{BTreeSet, HashMap};

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret as KubernetesSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{DynamicObject, ObjectMeta};
use serde_json::Value;
use zeroize::Zeroize;

use super::cluster::Cluster;
use super::error::Error;
use super::heads::RecordHead;
use super::index::RecordIndex;
use keywright_core::api::{
    ApiKeyRecord, ApiKeyReference, ApiKeyStatus, CAUSE_ANNOTATION, EXPIRES_AT_ANNOTATION, FINALIZER, GROUP,
    KEY_PREFIX_ANNOTATION, MANAGED_BY, ROTATE_ANNOTATION, SERIAL_ANNOTATION,
};
use keywright_core::declaration::{self, Declaration, Delivery, Problem};
use keywright_core::key::Digest;
use keywright_core::lifecycle::{
    Cause, Claim, Held, Marks, Observed, Ownership, Record, Secret, record_name, serial_in,
};

/// An ApiKey as stored, and what there is to know about it. The API server's answer to a write is an observation too, so
/// that a pass reads everything once.
pub(super) struct Sight {
    pub(super) object: DynamicObject,
    pub(super) observed: Observed,
    /// The metadata of the records, by their names, for them to be written back.
    pub(super) records: HashMap<String, ObjectMeta>,
    /// The metadata of the Secret that the ApiKey controls, for it to be written back.
    pub(super) secret: Option<ObjectMeta>,
    /// Other ApiKeys that have a record with the digest that is this one's, as was last asked.
    pub(super) losers: Vec<ApiKeyReference>,
}

/// Records are read this many at a time.
const PARALLEL_READS: usize = 8;

/// Others with a claim to one digest that are woken at a time.
const LOSERS_AT_A_TIME: usize = 100;

/// Observes the ApiKey of that name; `None`: there is no such ApiKey.
pub(super) async fn observe(
    cluster: &Cluster,
    index: &RecordIndex,
    (namespace, name): (&str, &str),
    held: Option<Held>,
) -> Result<Option<Sight>, Error> {
    let Some(object) = cluster.api_keys(namespace).get_opt(name).await? else { return Ok(None) };
    let reference = reference(&object, namespace, name);
    let declared = declared(&object);
    let deleting = object.metadata.deletion_timestamp.is_some();
    let status = status(&object);
    let mut serials = index.serials(&reference.uid);
    serials.extend(held.as_ref().map(|held| held.serial).into_iter().chain(status.serial));
    let delivery = declared.as_ref().ok().map(|declaration| &declaration.delivery).filter(|_| !deleting);
    let (secret, records) =
        futures::try_join!(secret(cluster, &reference, delivery), records(cluster, &reference.uid, serials),)?;
    let (secret, secret_metadata) = secret;
    let (records, records_metadata) = records
        .into_iter()
        .map(known)
        .map(|(record, metadata)| {
            let name = record.name.clone();
            (record, (name, metadata))
        })
        .unzip();
    let observed = Observed {
        generation: object.metadata.generation.unwrap_or_default(),
        created: created(&object.metadata),
        deleting,
        finalizer: false,
        other_finalizers: Vec::new(),
        rotate_request: object.annotations().get(ROTATE_ANNOTATION).map(|request| Digest::of(request.as_bytes())),
        declared,
        status,
        secret,
        obstacle: None,
        ownership: Ownership::Unasked,
        records,
        held,
        reference,
    };
    let mut sight = Sight { object, observed, records: records_metadata, secret: secret_metadata, losers: Vec::new() };
    sight.note_finalizers();
    if let Some(digest) = sight.submitted_digest()
        && !sight.is_settled_owner(index, digest)
    {
        sight.ask_ownership(cluster, digest).await?;
    }
    Ok(Some(sight))
}

impl Sight {
    /// Takes in the ApiKey that the API server answered with.
    pub(super) fn note_api_key(&mut self, object: DynamicObject) {
        self.object = object;
        self.observed.generation = self.object.metadata.generation.unwrap_or_default();
        self.observed.declared = declared(&self.object);
        self.observed.status = status(&self.object);
        self.note_finalizers();
    }

    fn note_finalizers(&mut self) {
        let (own, others) = self.object.finalizers().iter().cloned().partition::<Vec<_>, _>(|name| name == FINALIZER);
        (self.observed.finalizer, self.observed.other_finalizers) = (!own.is_empty(), others);
    }

    /// Takes in a record that the API server answered with.
    pub(super) fn note_record(&mut self, stored: ApiKeyRecord) {
        let (record, metadata) = known(stored);
        self.records.insert(record.name.clone(), metadata);
        let records = &mut self.observed.records;
        match records.iter_mut().find(|present| present.name == record.name) {
            Some(present) => *present = record,
            None => records.push(record),
        }
        records.sort_by_key(|record| record.spec.serial);
    }

    /// Takes in that a record is gone.
    pub(super) fn note_no_record(&mut self, name: &str) {
        self.records.remove(name);
        self.observed.records.retain(|record| record.name != name);
    }

    /// Takes in the Secret that the API server answered with.
    pub(super) fn note_secret(&mut self, stored: KubernetesSecret, key: &str) {
        (self.observed.secret, self.secret) = recognise(stored, &self.observed.reference, key);
    }

    fn submitted_digest(&self) -> Option<Digest> {
        match &self.observed.declared {
            Ok(Declaration { delivery: Delivery::Submitted(digest), .. }) if !self.observed.deleting => Some(*digest),
            _ => None,
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

    /// Whether this ApiKey is known to own its digest, and nothing hints at somebody else since then.
    fn is_settled_owner(&self, index: &RecordIndex, digest: Digest) -> bool {
        let own = self.observed.records.iter().find(|record| record.spec.revoked.is_none());
        own.is_some_and(|own| self.observed.status.serial == Some(own.spec.serial))
            && !index.is_claimed_by_others(&digest, &self.observed.reference.uid)
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
    delivery: Option<&Delivery>,
) -> Result<(Secret, Option<ObjectMeta>), Error> {
    let Some(Delivery::Secret { name, key }) = delivery else { return Ok((Secret::Absent, None)) };
    let stored = cluster.secrets(&reference.namespace).get_opt(name).await?;
    Ok(stored.map_or((Secret::Absent, None), |secret| recognise(secret, reference, key)))
}

/// What matters of a Secret, and its metadata if the ApiKey controls it. Its octets become a digest here and are wiped.
fn recognise(mut secret: KubernetesSecret, reference: &ApiKeyReference, key: &str) -> (Secret, Option<ObjectMeta>) {
    let mut data = secret.data.take().unwrap_or_default();
    let digest = data.get(key).map(|octets| Digest::of(&octets.0));
    data.values_mut().for_each(|octets| octets.0.zeroize());
    let is_opaque = secret.type_.as_deref().is_none_or(|type_| type_ == "Opaque");
    let owners = secret.owner_references();
    if owners.iter().any(|owner| is_namesake(owner, reference)) {
        return (Secret::Leftover, None);
    }
    if !is_opaque || !owners.iter().any(|owner| is_controller(owner) && owner.uid == reference.uid) {
        return (Secret::Foreign, None);
    }
    let annotation = |name: &str| secret.annotations().get(name).cloned();
    let ours = Secret::Ours {
        resource_version: secret.resource_version().unwrap_or_default(),
        digest,
        marks: Marks {
            key_prefix: annotation(KEY_PREFIX_ANNOTATION),
            serial: annotation(SERIAL_ANNOTATION).and_then(|serial| serial.parse().ok()),
            expires_at: annotation(EXPIRES_AT_ANNOTATION),
            managed: secret.labels().get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1),
        },
        immutable: secret.immutable == Some(true),
    };
    (ours, Some(secret.metadata))
}

/// Whether an ApiKey of this name and another uid is the controller: one that is gone, so that the garbage collector
/// will come for what it leaves behind.
fn is_namesake(owner: &OwnerReference, reference: &ApiKeyReference) -> bool {
    is_controller(owner) && owner.name == reference.name && owner.uid != reference.uid
}

fn is_controller(owner: &OwnerReference) -> bool {
    owner.kind == "ApiKey" && owner.api_version.split('/').next() == Some(GROUP) && owner.controller == Some(true)
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

/// A stored record as a decision sees it, and its metadata.
pub(super) fn known(record: ApiKeyRecord) -> (Record, ObjectMeta) {
    let cause = record.annotations().get(CAUSE_ANNOTATION).and_then(|cause| cause.parse().ok());
    let known = Record {
        name: record.name_any(),
        resource_version: record.resource_version().unwrap_or_default(),
        created: created(&record.metadata),
        cause: cause.unwrap_or(Cause::First),
        last_used_at: record.status.and_then(|status| status.last_used_at).map(|time| time.0),
        spec: record.spec,
    };
    (known, record.metadata)
}
