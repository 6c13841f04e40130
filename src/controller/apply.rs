//! Carries out one write. Every create is a POST, every update carries the resource version that was observed, every
//! delete a uid: whatever changed since then is refused by the API server and looked at again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use rand::rngs::SysRng;
use serde_json::json;

use super::Error;
use super::cluster::Cluster;
use super::observe::Sight;
use super::secret::own_secret;
use crate::api::{
    ApiKeyRecord, ApiKeyRecordSpec, ApiKeyStatus, CAUSE_ANNOTATION, EXPIRES_AT_ANNOTATION, FINALIZER,
    KEY_PREFIX_ANNOTATION, MANAGED_BY, SERIAL_ANNOTATION,
};
use crate::declaration::Delivery;
use crate::key::{Digest, Key};
use crate::lifecycle::{Cause, Held, Marks, Rules, Write, record_name};

/// A key on its way from its record to its Secret: the one place where one is kept.
pub(super) struct HeldKey {
    serial: u32,
    key: Key,
}

impl HeldKey {
    pub(super) fn facts(&self) -> Held {
        Held { serial: self.serial, digest: self.key.digest(), prefix: self.key.prefix() }
    }
}

/// Carries out `write`. A key that it mints is in `held` before the record is sent, so that a lost answer loses no key.
pub(super) async fn apply(
    cluster: &Cluster,
    sight: &Sight,
    write: Write,
    held: &mut Option<HeldKey>,
) -> Result<(), Error> {
    match write {
        Write::AddFinalizer => set_finalizer(cluster, sight, true).await,
        Write::RemoveFinalizer => set_finalizer(cluster, sight, false).await,
        Write::CreateRecord { serial, submitted, cause, rules } => {
            let (digest, prefix) = match submitted {
                Some(digest) => (digest, None),
                None => {
                    let held = held.insert(HeldKey { serial, key: Key::mint(&mut SysRng).map_err(Error::random)? });
                    (held.key.digest(), Some(held.key.prefix().to_string()))
                }
            };
            let record = record(sight, serial, digest, prefix, cause, rules);
            cluster.records().create(&PostParams::default(), &record).await?;
            Ok(())
        }
        Write::UpdateRecord { name, resource_version, spec } => {
            update_record(cluster, &name, &resource_version, *spec).await
        }
        Write::CreateSecret { marks } => {
            let secret = secret(sight, ObjectMeta::default(), &marks, held.as_ref())?;
            cluster.secrets(&sight.observed.reference.namespace).create(&PostParams::default(), &secret).await?;
            Ok(())
        }
        Write::ReplaceSecret { resource_version, marks } => {
            rewrite_secret(cluster, sight, &resource_version, |stored| {
                secret(sight, stored.metadata, &marks, held.as_ref())
            })
            .await
        }
        Write::MarkSecret { resource_version, marks } => {
            rewrite_secret(cluster, sight, &resource_version, |mut stored| {
                mark(&mut stored.metadata, &marks);
                Ok(stored)
            })
            .await
        }
    }
}

/// Writes the status under the resource version that it was derived from.
pub(super) async fn write_status(cluster: &Cluster, sight: &Sight, status: &ApiKeyStatus) -> Result<(), Error> {
    let mut object = sight.object.clone();
    if let Some(fields) = object.data.as_object_mut() {
        fields.insert("status".into(), serde_json::to_value(status)?);
    }
    let api = cluster.api_keys(&sight.observed.reference.namespace);
    api.replace_status(&object.name_any(), &PostParams::default(), &object).await?;
    Ok(())
}

/// Removes a tombstone, if it is still the one that was seen.
pub(super) async fn delete_record(records: &Api<DynamicObject>, record: &DynamicObject) -> Result<(), Error> {
    let preconditions = Preconditions { uid: record.uid(), resource_version: record.resource_version() };
    records.delete(&record.name_any(), &DeleteParams::default().preconditions(preconditions)).await?;
    Ok(())
}

/// Replaces the spec of the record with this resource version.
pub(super) async fn update_record(
    cluster: &Cluster,
    name: &str,
    resource_version: &str,
    spec: ApiKeyRecordSpec,
) -> Result<(), Error> {
    let records = cluster.records();
    let mut record = records.get(name).await?;
    record.metadata.resource_version = Some(resource_version.to_owned());
    record.spec = spec;
    records.replace(name, &PostParams::default(), &record).await?;
    Ok(())
}

/// A merge patch, and not a PUT: fields that a later version added to the object stay as they are.
async fn set_finalizer(cluster: &Cluster, sight: &Sight, present: bool) -> Result<(), Error> {
    let others = sight.object.finalizers().iter().map(String::as_str).filter(|finalizer| *finalizer != FINALIZER);
    let finalizers: Vec<_> = others.chain(present.then_some(FINALIZER)).collect();
    let patch = json!({"metadata": {"resourceVersion": sight.object.resource_version(), "finalizers": finalizers}});
    let api = cluster.api_keys(&sight.observed.reference.namespace);
    api.patch(&sight.object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

fn record(
    sight: &Sight,
    serial: u32,
    digest: Digest,
    key_prefix: Option<String>,
    cause: Cause,
    rules: Rules,
) -> ApiKeyRecord {
    let spec = ApiKeyRecordSpec {
        digest: digest.to_string(),
        key_prefix,
        api_key: sight.observed.reference.clone(),
        serial,
        owner: None,
        scopes: Vec::new(),
        allowed_ips: None,
        not_after: None,
        suspended: false,
        revoked: None,
        rotate_request: sight.observed.rotate_request.clone(),
    };
    let mut record = ApiKeyRecord::new(&record_name(&sight.observed.reference.uid, serial), rules.apply(spec));
    record.metadata.labels = Some(managed_by());
    record.metadata.annotations = Some(BTreeMap::from([(CAUSE_ANNOTATION.into(), cause.to_string())]));
    record
}

/// The Secret with the held key in it, and nothing else.
fn secret(sight: &Sight, metadata: ObjectMeta, marks: &Marks, held: Option<&HeldKey>) -> Result<Secret, Error> {
    let target = sight.observed.declared.as_ref().ok().map(|declaration| &declaration.delivery);
    let (Some(Delivery::Secret { name, key }), Some(held)) = (target, held) else { return Err(Error::NothingHeld) };
    let mut secret = own_secret(&sight.observed.reference, metadata, name, key, held.key.reveal());
    mark(&mut secret.metadata, marks);
    Ok(secret)
}

/// Reads the Secret anew, because its octets were not kept, and writes it back changed under the resource version that
/// was observed.
async fn rewrite_secret(
    cluster: &Cluster,
    sight: &Sight,
    resource_version: &str,
    change: impl FnOnce(Secret) -> Result<Secret, Error>,
) -> Result<(), Error> {
    let target = sight.observed.declared.as_ref().ok().map(|declaration| &declaration.delivery);
    let Some(Delivery::Secret { name, .. }) = target else {
        return Err(Error::NothingHeld);
    };
    let secrets = cluster.secrets(&sight.observed.reference.namespace);
    let mut secret = change(secrets.get(name).await?)?;
    secret.metadata.resource_version = Some(resource_version.to_owned());
    secrets.replace(name, &PostParams::default(), &secret).await?;
    Ok(())
}

fn mark(metadata: &mut ObjectMeta, marks: &Marks) {
    let annotations = metadata.annotations.get_or_insert_default();
    for (name, value) in [
        (KEY_PREFIX_ANNOTATION, marks.key_prefix.clone()),
        (SERIAL_ANNOTATION, marks.serial.map(|serial| serial.to_string())),
        (EXPIRES_AT_ANNOTATION, marks.expires_at.clone()),
    ] {
        match value {
            Some(value) => annotations.insert(name.into(), value),
            None => annotations.remove(name),
        };
    }
    metadata.labels.get_or_insert_default().extend(managed_by());
}

fn managed_by() -> BTreeMap<String, String> {
    BTreeMap::from([(MANAGED_BY.0.into(), MANAGED_BY.1.into())])
}
