//! Reads everything that a decision about one ApiKey needs, each object by name and from the API server itself: a read
//! by name without a resource version is answered from etcd, never from a cache that lags.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret as KubernetesSecret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;
use zeroize::Zeroize;

use super::Error;
use super::cluster::Cluster;
use super::index::RecordIndex;
use super::secret::refusal_of_secret;
use crate::api::{
    ApiKeyRecord, ApiKeyReference, ApiKeyStatus, CAUSE_ANNOTATION, EXPIRES_AT_ANNOTATION, FINALIZER, GROUP,
    KEY_PREFIX_ANNOTATION, MANAGED_BY, ROTATE_ANNOTATION, SERIAL_ANNOTATION,
};
use crate::declaration::{self, Declaration, Delivery};
use crate::key::Digest;
use crate::lifecycle::{Cause, Held, Marks, Observed, Record, Secret, record_name};

/// An ApiKey as stored, and what there is to know about it.
pub(super) struct Sight {
    pub(super) object: DynamicObject,
    pub(super) observed: Observed,
    pub(super) places: Places,
}

/// Records are read this many at a time.
const PARALLEL_READS: usize = 8;

/// Where an ApiKey's Secret and records are: known once it was read, and then as a rule still true.
#[derive(Clone, PartialEq)]
pub(super) struct Places {
    uid: String,
    /// The Secret's name and data key, where a Secret matters.
    secret: Option<(String, String)>,
}

/// Observes the ApiKey of that name; `None`: there is no such ApiKey. With the places of an earlier look, everything is
/// read at once instead of the ApiKey first; where they turn out to be others, the rest is read again.
pub(super) async fn observe(
    cluster: &Cluster,
    index: &RecordIndex,
    (namespace, name): (&str, &str),
    held: Option<Held>,
    places: Option<&Places>,
) -> Result<Option<Sight>, Error> {
    let api_keys = cluster.api_keys(namespace);
    let api_key = async { api_keys.get_opt(name).await.map_err(Error::from) };
    let serial = held.as_ref().map(|held| held.serial);
    let (object, early) = match places {
        Some(places) => {
            let (object, rest) = futures::try_join!(api_key, surroundings(cluster, index, namespace, places, serial))?;
            (object, Some((places, rest)))
        }
        None => (api_key.await?, None),
    };
    let Some(object) = object else { return Ok(None) };

    let reference = reference(&object, namespace, name);
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default();
    let status = status(&object);
    let declared = declaration::read(object.data.get("spec").unwrap_or(&Value::Null), name, created);
    let deleting = object.metadata.deletion_timestamp.is_some();
    let secret = match &declared {
        Ok(Declaration { delivery: Delivery::Secret { name, key }, .. }) if !deleting => {
            Some((name.clone(), key.clone()))
        }
        _ => None,
    };
    let places = Places { uid: reference.uid.clone(), secret };
    let known = |records: &[Record]| status.serial.is_none_or(|shown| records.iter().any(|r| r.spec.serial >= shown));
    let (secret, records) = match early {
        Some((guessed, (secret, records))) if *guessed == places && known(&records) => (secret, records),
        _ => surroundings(cluster, index, namespace, &places, serial.into_iter().chain(status.serial)).await?,
    };

    let obstacle = match (&places.secret, &secret) {
        (Some((name, key)), Secret::Absent) if Observed::failed_to_deliver(&records) => {
            refusal_of_secret(cluster, &reference, name, key).await?
        }
        _ => None,
    };

    let observed = Observed {
        generation: object.metadata.generation.unwrap_or_default(),
        created,
        deleting,
        finalizer: object.finalizers().iter().any(|finalizer| finalizer == FINALIZER),
        rotate_request: object
            .annotations()
            .get(ROTATE_ANNOTATION)
            .map(|value| Digest::of(value.as_bytes()).to_string()),
        declared,
        status,
        secret,
        obstacle,
        records,
        held,
        reference,
    };
    Ok(Some(Sight { object, observed, places }))
}

/// The Secret, and the records: those that the index mentions, those with these serials, and any that follow.
async fn surroundings(
    cluster: &Cluster,
    index: &RecordIndex,
    namespace: &str,
    places: &Places,
    more: impl IntoIterator<Item = u32>,
) -> Result<(Secret, Vec<Record>), Error> {
    let mut serials = index.serials(&places.uid);
    serials.extend(more);
    futures::try_join!(secret(cluster, namespace, places), records(cluster, &places.uid, serials))
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

async fn secret(cluster: &Cluster, namespace: &str, places: &Places) -> Result<Secret, Error> {
    let Some((name, key)) = &places.secret else { return Ok(Secret::Absent) };
    Ok(match cluster.secrets(namespace).get_opt(name).await? {
        None => Secret::Absent,
        Some(secret) => recognise(secret, &places.uid, key),
    })
}

/// What matters of a Secret. Its octets become a digest here and are wiped.
fn recognise(mut secret: KubernetesSecret, uid: &str, key: &str) -> Secret {
    let mut data = secret.data.take().unwrap_or_default();
    let digest = data.get(key).map(|octets| Digest::of(&octets.0));
    data.values_mut().for_each(|octets| octets.0.zeroize());
    let opaque = secret.type_.as_deref().is_none_or(|type_| type_ == "Opaque");
    if !opaque || !secret.owner_references().iter().any(|owner| controls(owner, uid)) {
        return Secret::Foreign;
    }
    let annotation = |name: &str| secret.annotations().get(name).cloned();
    Secret::Ours {
        resource_version: secret.resource_version().unwrap_or_default(),
        digest,
        marks: Marks {
            key_prefix: annotation(KEY_PREFIX_ANNOTATION),
            serial: annotation(SERIAL_ANNOTATION).and_then(|serial| serial.parse().ok()),
            expires_at: annotation(EXPIRES_AT_ANNOTATION),
            managed: secret.labels().get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1),
        },
        immutable: secret.immutable == Some(true),
    }
}

fn controls(owner: &OwnerReference, uid: &str) -> bool {
    owner.uid == uid
        && owner.kind == "ApiKey"
        && owner.api_version.split('/').next() == Some(GROUP)
        && owner.controller == Some(true)
}

/// The records with these serials, and any that follow the newest of them, by ascending serial.
async fn records(cluster: &Cluster, uid: &str, serials: BTreeSet<u32>) -> Result<Vec<Record>, Error> {
    let mut next = serials.last().copied().unwrap_or(0);
    let mut wanted: Vec<u32> = serials.into_iter().collect();
    let mut records = Vec::new();
    loop {
        next = next.saturating_add(1);
        wanted.push(next);
        let read: Vec<Option<Record>> = stream::iter(wanted.drain(..))
            .map(|serial| record(cluster, uid, serial))
            .buffered(PARALLEL_READS)
            .try_collect()
            .await?;
        let followed = read.last().is_some_and(Option::is_some);
        records.extend(read.into_iter().flatten());
        if !followed {
            return Ok(records);
        }
    }
}

async fn record(cluster: &Cluster, uid: &str, serial: u32) -> Result<Option<Record>, Error> {
    Ok(cluster.records().get_opt(&record_name(uid, serial)).await?.map(known))
}

/// A stored record as a decision sees it.
pub(super) fn known(record: ApiKeyRecord) -> Record {
    let cause = record.annotations().get(CAUSE_ANNOTATION).and_then(|cause| cause.parse().ok());
    Record {
        name: record.name_any(),
        resource_version: record.resource_version().unwrap_or_default(),
        created: record.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        cause: cause.unwrap_or(Cause::First),
        last_used_at: record.status.and_then(|status| status.last_used_at).map(|time| time.0),
        spec: record.spec,
    }
}
