//! The Secret that a key is delivered in: how it is made, and whether the API server would take it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::core::Status;
use rand::rngs::SysRng;

use super::cluster::Cluster;
use super::error::Error;
use super::observe::Sight;
use keywright_core::api::{
    ApiKeyReference, EXPIRES_AT_ANNOTATION, GROUP, KEY_PREFIX_ANNOTATION, MANAGED_BY, SERIAL_ANNOTATION,
};
use keywright_core::declaration::Delivery;
use keywright_core::key::Key;
use keywright_core::lifecycle::{Marks, Obstacle};

/// The name and the data key of the Secret that the ApiKey declares.
pub(super) fn target(sight: &Sight) -> Result<(&str, &str), Error> {
    match sight.observed.declared.as_ref().map(|declaration| &declaration.delivery) {
        Ok(Delivery::Secret { name, key }) => Ok((name, key)),
        _ => Err(Error::NothingHeld),
    }
}

/// The Secret of an ApiKey with `value` in it and nothing else: a new one, or the one that is there with other data.
pub(super) fn secret_with(sight: &Sight, value: &str, marks: &Marks) -> Result<Secret, Error> {
    let (name, key) = target(sight)?;
    let mut metadata = sight.secret.clone().unwrap_or_default();
    metadata.name = Some(name.to_owned());
    metadata.owner_references = Some(vec![owner(&sight.observed.reference)]);
    mark(&mut metadata, marks);
    Ok(Secret {
        metadata,
        type_: Some("Opaque".into()),
        data: Some(BTreeMap::from([(key.to_owned(), ByteString(value.as_bytes().to_vec()))])),
        ..Secret::default()
    })
}

/// Writes into a Secret's metadata what it is to say of its key.
pub(super) fn mark(metadata: &mut ObjectMeta, marks: &Marks) {
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
    metadata.labels.get_or_insert_default().insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
}

/// Asks the API server whether it would take a Secret, where the next plan depends on it and it was not asked.
pub(super) async fn ask_obstacle(cluster: &Cluster, sight: &mut Sight) -> Result<(), Error> {
    if sight.observed.obstacle.is_none() && sight.observed.needs_to_know_obstacle() {
        sight.observed.obstacle = obstacle(cluster, sight).await?;
    }
    Ok(())
}

/// Whether the API server would take a Secret with a key in it: a quota, somebody's policy, somebody's webhook, or a
/// namespace that is going may refuse. A dry run of the very write, with a key that nobody will ever hold.
async fn obstacle(cluster: &Cluster, sight: &Sight) -> Result<Option<Obstacle>, Error> {
    let key = Key::mint(&mut SysRng).map_err(Error::random)?;
    let marks = Marks {
        key_prefix: Some(key.prefix().to_string()),
        serial: Some(sight.observed.newest_serial().saturating_add(1)),
        expires_at: None,
        managed: true,
    };
    let secret = secret_with(sight, key.reveal(), &marks)?;
    let secrets = cluster.secrets(&sight.observed.reference.namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let answer = match &sight.secret {
        None => secrets.create(&dry_run, &secret).await,
        Some(_) => secrets.replace(target(sight)?.0, &dry_run, &secret).await,
    };
    match answer.map_err(Error::from) {
        Err(Error::Refused(status)) if is_about_dry_runs(&status) => {
            Ok(Some(Obstacle::Unknown(status.message.clone())))
        }
        Err(Error::Refused(status)) if is_refusal(&status) => Ok(Some(Obstacle::Refused(status.message.clone()))),
        // Somebody else was faster: the next look shows it.
        Err(Error::Refused(status)) if status.code == 409 => Ok(None),
        answer => answer.map(|_| None),
    }
}

/// PURE. Whether an answer refuses the object, so that the same write would be refused again: in contrast to one that
/// says that the API server is busy, that somebody else was faster, or that this program's credentials are no good.
pub(super) fn is_refusal(status: &Status) -> bool {
    let is_of_admission = ["admission", "webhook", "denied request"].iter().any(|word| status.message.contains(word));
    match status.code {
        409 => false,
        401 | 408 | 429 | 500.. => is_of_admission,
        code => code >= 400,
    }
}

/// PURE. Whether an answer says that an admission webhook has side effects, so that a dry run tells nothing.
fn is_about_dry_runs(status: &Status) -> bool {
    status.code == 400 && status.message.contains("does not support dry run")
}

fn owner(reference: &ApiKeyReference) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/v1alpha1"),
        kind: "ApiKey".into(),
        name: reference.name.clone(),
        uid: reference.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_an_api_server_that_cannot_answer() {
        for (code, message, expected) in [
            (403, "exceeded quota: no-secrets", true),
            (422, "ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: no", true),
            (400, "admission webhook \"x\" denied the request: no", true),
            (404, "namespaces \"team-a\" not found", true),
            (413, "ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: too large", true),
            (401, "ValidatingAdmissionPolicy 'frozen' with binding 'frozen' denied request: no", true),
            (401, "Unauthorized", false),
            (429, "Too many requests, please try again later.", false),
            (429, "admission webhook \"x\" denied the request: slow down", true),
            (500, "Internal error occurred: failed calling webhook \"x\": connection refused", true),
            (500, "etcdserver: request timed out", false),
            (503, "admission webhook \"x\" denied the request: closed", true),
            (503, "the server is currently unable to handle the request", false),
            (504, "Timeout: request did not complete within the allotted timeout", false),
            (409, "secrets \"ci\" already exists", false),
            (409, "Operation cannot be fulfilled on secrets \"ci\"", false),
        ] {
            let status = Status { code, message: message.to_owned(), ..Status::default() };
            assert_eq!(is_refusal(&status), expected, "{code} {message}");
        }
    }
}
