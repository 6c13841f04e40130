//! Carries out one write, and takes the API server's answer for an observation. Every create is a POST, every update
//! carries the resource version that was observed, every delete a uid: whatever changed since then is refused by the API
//! server and looked at again.

use k8s_openapi::api::core::v1::Secret;
use keywright_core::api::{ApiKeyRecord, ApiKeyReference, ApiKeyStatus};
use keywright_core::key::Key;
use keywright_core::lifecycle::{
    Finalizers, Held, NewKey, NewRecord, Obstacle, RecordUpdate, Removal, RevocationReason, SecretAttempt, SecretDraft,
    SecretUpdate, Write,
};
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject, PartialObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use rand::rngs::SysRng;
use serde_json::json;
use tracing::warn;

use super::cluster::Cluster;
use super::error::Error;
use super::observe::Observation;
use super::obstacle::{is_refusal, obstacle};
use crate::clock;

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

/// What a write has brought about that people are told of, or that is remembered.
pub(super) enum Effect {
    /// Nothing yet.
    None,
    /// The held key is in its Secret.
    KeyDelivered,
    /// The Secret holds what is declared, or the API server has refused that.
    SecretAttempted,
    /// Every key is revoked, and our finalizer is gone.
    KeysRevoked,
    /// The status is another than this.
    StatusChanged(Box<ApiKeyStatus>),
}

/// Carries out `write`, and has `observation` show what came of it. A key that it mints is in `held` before the record is
/// sent, so that a lost answer loses no key.
pub(super) async fn apply(
    cluster: &Cluster,
    observation: &mut Observation,
    write: Write,
    held: &mut Option<HeldKey>,
) -> Result<Effect, Error> {
    match write {
        Write::AddFinalizer(finalizers) => {
            set_finalizers(cluster, observation, finalizers).await?;
            Ok(Effect::None)
        }
        Write::RemoveFinalizer(finalizers) => {
            set_finalizers(cluster, observation, finalizers).await?;
            Ok(Effect::KeysRevoked)
        }
        Write::UpdateStatus(status) => {
            let before = Box::new(observation.observed.status.clone());
            write_status(cluster, observation, &status).await?;
            Ok(Effect::StatusChanged(before))
        }
        Write::CreateRecord(record) => {
            create_record(cluster, observation, &record, held).await?;
            Ok(Effect::None)
        }
        Write::UpdateRecord(update) => {
            observation.note_record(update_record(cluster, &update).await?);
            Ok(Effect::None)
        }
        Write::RemoveRecord(removal) => {
            remove_record(cluster, observation, removal).await?;
            Ok(Effect::None)
        }
        Write::CreateSecret(draft) | Write::ReplaceSecret(draft) => deliver(cluster, observation, &draft, held).await,
        Write::UpdateSecret(update) => update_declared(cluster, observation, &update).await,
    }
}

async fn create_record(
    cluster: &Cluster,
    observation: &mut Observation,
    record: &NewRecord,
    held: &mut Option<HeldKey>,
) -> Result<(), Error> {
    let object = match record.key {
        NewKey::Submitted(digest) => record.object(digest, None),
        NewKey::Minted => {
            let key = Key::mint(&mut SysRng).map_err(Error::random)?;
            let held = held.insert(HeldKey { serial: record.serial(), key, is_refused: false });
            record.object(held.key.digest(), Some(held.key.prefix()))
        }
    };
    let stored = cluster.records().create(&PostParams::default(), &object).await?;
    revoke_unless_alive(cluster, &observation.observed.reference, &stored).await?;
    observation.note_record(stored);
    observation.observed.held = held.as_ref().map(HeldKey::facts);
    if let NewKey::Submitted(digest) = record.key {
        // Two ApiKeys that both found the digest free have both made a record by now, or the later one will see the
        // earlier one's.
        observation.ask_ownership(cluster, digest).await?;
    }
    Ok(())
}

/// Revokes a new record whose ApiKey went while it was made, before anybody gets its key. Whoever has revoked the keys of the
/// ApiKey may have looked for records before this one was there: another controller, if this one was stopped in between.
async fn revoke_unless_alive(cluster: &Cluster, api_key: &ApiKeyReference, record: &ApiKeyRecord) -> Result<(), Error> {
    let present = cluster.api_keys(&api_key.namespace).get_metadata_opt(&api_key.name).await?;
    let is_there = |present: &PartialObjectMeta<DynamicObject>| present.metadata.uid.as_ref() == Some(&api_key.uid);
    match present.filter(is_there) {
        Some(present) if present.metadata.deletion_timestamp.is_none() => Ok(()),
        // The next look at it revokes the record.
        Some(_) => Err(Error::ApiKeyGone),
        None => {
            let revocation = RecordUpdate::revocation(record.clone(), RevocationReason::Orphaned, clock::now());
            update_record(cluster, &revocation).await?;
            Err(Error::ApiKeyGone)
        }
    }
}

/// Writes the Secret with the held key. One that is refused is no failure: the plan goes on from there.
async fn deliver(
    cluster: &Cluster,
    observation: &mut Observation,
    draft: &SecretDraft,
    held: &mut Option<HeldKey>,
) -> Result<Effect, Error> {
    let held = held.as_mut().ok_or(Error::NothingHeld)?;
    let secrets = cluster.secrets(&observation.observed.reference.namespace);
    let secret: Secret = draft.object(held.key.reveal());
    let answer = match draft.replaces() {
        false => secrets.create(&PostParams::default(), &secret).await,
        true => secrets.replace(&secret.name_any(), &PostParams::default(), &secret).await,
    };
    match answer.map_err(Error::from) {
        Ok(stored) => {
            observation.note_secret(stored);
            Ok(Effect::KeyDelivered)
        }
        Err(error) if matches!(&error, Error::Refused(status) if is_refusal(status)) => {
            // The refusal's own words may repeat the key; those for people come from a dry run with another one.
            warn!(
                code = error.code(),
                "the API server refused the Secret: revoking the undelivered key. Ready says why"
            );
            held.is_refused = true;
            observation.observed.held = Some(held.facts());
            Ok(Effect::None)
        }
        Err(error) => Err(error),
    }
}

async fn remove_record(cluster: &Cluster, observation: &mut Observation, removal: Removal) -> Result<(), Error> {
    let preconditions = Preconditions { uid: removal.uid, resource_version: removal.resource_version };
    cluster.records().delete(&removal.name, &DeleteParams::default().preconditions(preconditions)).await?;
    observation.note_no_record(&removal.name);
    Ok(())
}

/// Makes the Secret hold what is declared. A refusal is no failure: the plan goes on from there.
async fn update_declared(
    cluster: &Cluster,
    observation: &mut Observation,
    update: &SecretUpdate,
) -> Result<Effect, Error> {
    match update_secret(cluster, &observation.observed.reference.namespace, update).await {
        Ok(stored) => {
            observation.note_secret(stored);
            observation.observed.secret_attempt = SecretAttempt::Taken;
        }
        Err(error) if matches!(&error, Error::Refused(status) if is_refusal(status)) => {
            // The refusal's own words may repeat the key; those for people come from a dry run with another one.
            warn!(
                code = error.code(),
                "the API server refused to update the Secret; its key is not affected. Ready says why"
            );
            let words = match obstacle(cluster, observation).await? {
                Some(Obstacle::Refused(words) | Obstacle::Unknown(words)) => words,
                None => {
                    "the API server accepts a dry run but refuses the write. Check webhooks and policies on Secrets"
                        .to_owned()
                }
            };
            observation.observed.secret_attempt = SecretAttempt::refused(&words);
        }
        Err(error) => return Err(error),
    }
    Ok(Effect::SecretAttempted)
}

/// Changes the Secret around the key that is in it. Reads it anew, because its octets were not kept, and writes it back
/// under the resource version that was observed. Answers what is stored then.
pub(super) async fn update_secret(cluster: &Cluster, namespace: &str, update: &SecretUpdate) -> Result<Secret, Error> {
    let name = update.metadata.name.clone().unwrap_or_default();
    let stored = cluster.secret(namespace, &name).await?.ok_or(Error::SecretChanged)?;
    let secret = update.object(stored).ok_or(Error::SecretChanged)?;
    Ok(cluster.secrets(namespace).replace(&name, &PostParams::default(), &secret).await?)
}

/// Writes the status under the resource version that it was derived from.
pub(super) async fn write_status(
    cluster: &Cluster,
    observation: &mut Observation,
    status: &ApiKeyStatus,
) -> Result<(), Error> {
    let mut object = observation.object.clone();
    if let Some(fields) = object.data.as_object_mut() {
        fields.insert("status".into(), serde_json::to_value(status)?);
    }
    let api = cluster.api_keys(&observation.observed.reference.namespace);
    observation.note_api_key(api.replace_status(&object.name_any(), &PostParams::default(), &object).await?);
    Ok(())
}

/// Replaces a record's spec.
pub(super) async fn update_record(cluster: &Cluster, update: &RecordUpdate) -> Result<ApiKeyRecord, Error> {
    match (replace(cluster, &update.object()).await, update.object_for_older_definitions()) {
        (Err(Error::Refused(status)), Some(object)) if status.code == 422 => replace(cluster, &object).await,
        (answer, _) => answer,
    }
}

async fn replace(cluster: &Cluster, record: &ApiKeyRecord) -> Result<ApiKeyRecord, Error> {
    Ok(cluster.records().replace(&record.name_any(), &PostParams::default(), record).await?)
}

/// A merge patch, and not a PUT: fields that a later version added to the object stay as they are.
async fn set_finalizers(cluster: &Cluster, observation: &mut Observation, write: Finalizers) -> Result<(), Error> {
    let metadata = json!({"resourceVersion": write.resource_version, "finalizers": write.finalizers});
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    let api = cluster.api_keys(&observation.observed.reference.namespace);
    observation.note_api_key(api.patch(&observation.object.name_any(), &PatchParams::default(), &patch).await?);
    Ok(())
}
