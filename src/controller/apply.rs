//! Carries out one write, and takes the API server's answer for an observation. Every create is a POST, every update
//! carries the resource version that was observed, every delete a uid: whatever changed since then is refused by the API
//! server and looked at again.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use rand::rngs::SysRng;
use serde_json::json;
use tracing::warn;

use super::cluster::Cluster;
use super::error::Error;
use super::observe::Sight;
use super::secret::{is_refusal, mark, secret_with, target};
use keywright_core::api::{ApiKeyRecord, ApiKeyRecordSpec, ApiKeyStatus, CAUSE_ANNOTATION, FINALIZER, MANAGED_BY};
use keywright_core::key::{Digest, Key, Prefix};
use keywright_core::lifecycle::{Cause, Held, Marks, Rules, Write, record_name};

/// A key on its way from its record to its Secret: the one place where one is kept.
pub(super) struct HeldKey {
    serial: u32,
    key: Key,
    is_refused: bool,
}

impl HeldKey {
    pub(super) fn facts(&self) -> Held {
        Held { serial: self.serial, digest: self.key.digest(), prefix: self.key.prefix(), is_refused: self.is_refused }
    }
}

/// Carries out `write`, and has `sight` show what came of it. A key that it mints is in `held` before the record is sent,
/// so that a lost answer loses no key.
pub(super) async fn apply(
    cluster: &Cluster,
    sight: &mut Sight,
    write: Write,
    held: &mut Option<HeldKey>,
) -> Result<(), Error> {
    match write {
        Write::AddFinalizer => set_finalizer(cluster, sight, true).await,
        Write::RemoveFinalizer => set_finalizer(cluster, sight, false).await,
        Write::UpdateStatus { status } => write_status(cluster, sight, &status).await,
        Write::CreateRecord { serial, submitted, cause, rules } => {
            let (digest, prefix) = match submitted {
                Some(digest) => (digest, None),
                None => {
                    let key = Key::mint(&mut SysRng).map_err(Error::random)?;
                    let held = held.insert(HeldKey { serial, key, is_refused: false });
                    (held.key.digest(), Some(held.key.prefix()))
                }
            };
            let record = record(sight, serial, digest, prefix, cause, rules);
            sight.note_record(cluster.records().create(&PostParams::default(), &record).await?);
            sight.observed.held = held.as_ref().map(HeldKey::facts);
            if submitted.is_some() {
                // Two ApiKeys that both found the digest free have both made a record by now, or the later one will see
                // the earlier one's.
                sight.ask_ownership(cluster, digest).await?;
            }
            Ok(())
        }
        Write::UpdateRecord { name, resource_version, spec } => {
            let metadata = sight.records.get(&name).cloned().unwrap_or_default();
            let before = sight.observed.records.iter().find(|record| record.name == name).map(|record| &record.spec);
            let stored = update_record(cluster, metadata, &resource_version, *spec, before).await?;
            sight.note_record(stored);
            Ok(())
        }
        Write::RemoveRecord { name, resource_version } => {
            let uid = sight.records.get(&name).and_then(|metadata| metadata.uid.clone());
            let preconditions = Preconditions { uid, resource_version: Some(resource_version) };
            cluster.records().delete(&name, &DeleteParams::default().preconditions(preconditions)).await?;
            sight.note_no_record(&name);
            Ok(())
        }
        Write::CreateSecret { marks } => {
            let secrets = cluster.secrets(&sight.observed.reference.namespace);
            let secret = secret_with(sight, reveal(held)?, &marks)?;
            let answer = secrets.create(&PostParams::default(), &secret).await;
            deliver(sight, held, answer)
        }
        Write::ReplaceSecret { resource_version, marks } => {
            let secrets = cluster.secrets(&sight.observed.reference.namespace);
            let mut secret = secret_with(sight, reveal(held)?, &marks)?;
            secret.metadata.resource_version = Some(resource_version);
            let answer = secrets.replace(&secret.name_any(), &PostParams::default(), &secret).await;
            deliver(sight, held, answer)
        }
    }
}

/// Takes in the answer to a Secret with the held key. One that was refused is no failure: the plan goes on from there.
fn deliver(
    sight: &mut Sight,
    held: &mut Option<HeldKey>,
    answer: kube::Result<k8s_openapi::api::core::v1::Secret>,
) -> Result<(), Error> {
    let refused = |error: &Error| matches!(error, Error::Refused(status) if is_refusal(status));
    match answer.map_err(Error::from) {
        Ok(stored) => {
            let key = target(sight)?.1.to_owned();
            sight.note_secret(stored, &key);
            Ok(())
        }
        Err(error) if refused(&error) => {
            // The refusal's own words may repeat the key; those for people come from a dry run with another one.
            warn!(code = error.code(), "the Secret was refused: the key in it is given up");
            if let Some(held) = held {
                held.is_refused = true;
                sight.observed.held = Some(held.facts());
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Has the Secret say of its key what is right, and leaves the key. Reads it anew, because its octets were not kept, and
/// writes it back under the resource version that was observed. Answers the version that came of it.
pub(super) async fn mark_secret(cluster: &Cluster, sight: &Sight, marks: &Marks) -> Result<Option<String>, Error> {
    let secrets = cluster.secrets(&sight.observed.reference.namespace);
    let mut secret = secrets.get(target(sight)?.0).await?;
    mark(&mut secret.metadata, marks);
    secret.metadata.resource_version = sight.secret.as_ref().and_then(|metadata| metadata.resource_version.clone());
    let stored = secrets.replace(&secret.name_any(), &PostParams::default(), &secret).await?;
    Ok(stored.resource_version())
}

/// Writes the status under the resource version that it was derived from.
pub(super) async fn write_status(cluster: &Cluster, sight: &mut Sight, status: &ApiKeyStatus) -> Result<(), Error> {
    let mut object = sight.object.clone();
    if let Some(fields) = object.data.as_object_mut() {
        fields.insert("status".into(), serde_json::to_value(status)?);
    }
    let api = cluster.api_keys(&sight.observed.reference.namespace);
    sight.note_api_key(api.replace_status(&object.name_any(), &PostParams::default(), &object).await?);
    Ok(())
}

/// Replaces the spec of the record with this metadata and this resource version. `before` is its spec as it stands: a
/// definition that is older than this controller may not let a tombstone drop what it does not need, and revoking must
/// not fail for that.
pub(super) async fn update_record(
    cluster: &Cluster,
    mut metadata: ObjectMeta,
    resource_version: &str,
    spec: ApiKeyRecordSpec,
    before: Option<&ApiKeyRecordSpec>,
) -> Result<ApiKeyRecord, Error> {
    metadata.resource_version = Some(resource_version.to_owned());
    let revoked = spec.revoked.clone();
    let record = ApiKeyRecord { metadata, spec, status: None };
    match (replace(cluster, &record).await, before) {
        (Err(Error::Refused(status)), Some(before)) if status.code == 422 && revoked.is_some() => {
            let spec = ApiKeyRecordSpec { revoked, ..before.clone() };
            replace(cluster, &ApiKeyRecord { spec, ..record }).await
        }
        (answer, _) => answer,
    }
}

async fn replace(cluster: &Cluster, record: &ApiKeyRecord) -> Result<ApiKeyRecord, Error> {
    Ok(cluster.records().replace(&record.name_any(), &PostParams::default(), record).await?)
}

/// A merge patch, and not a PUT: fields that a later version added to the object stay as they are.
async fn set_finalizer(cluster: &Cluster, sight: &mut Sight, present: bool) -> Result<(), Error> {
    let others = sight.object.finalizers().iter().map(String::as_str).filter(|finalizer| *finalizer != FINALIZER);
    let finalizers: Vec<_> = others.chain(present.then_some(FINALIZER)).collect();
    let patch = json!({"metadata": {"resourceVersion": sight.object.resource_version(), "finalizers": finalizers}});
    let api = cluster.api_keys(&sight.observed.reference.namespace);
    let stored = api.patch(&sight.object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
    sight.note_api_key(stored);
    Ok(())
}

fn record(
    sight: &Sight,
    serial: u32,
    digest: Digest,
    prefix: Option<Prefix>,
    cause: Cause,
    rules: Rules,
) -> ApiKeyRecord {
    let reference = &sight.observed.reference;
    let spec = ApiKeyRecordSpec {
        rotate_request: sight.observed.rotate_request.map(|request| request.to_string()),
        ..rules.announce(reference.clone(), serial, digest, prefix)
    };
    let mut record = ApiKeyRecord::new(&record_name(&reference.uid, serial), spec);
    record.metadata.labels = Some(BTreeMap::from([(MANAGED_BY.0.into(), MANAGED_BY.1.into())]));
    record.metadata.annotations = Some(BTreeMap::from([(CAUSE_ANNOTATION.into(), cause.to_string())]));
    record
}

fn reveal(held: &Option<HeldKey>) -> Result<&str, Error> {
    held.as_ref().map(|held| held.key.reveal()).ok_or(Error::NothingHeld)
}
