//! The Secret that a key is delivered in: how it is made, and whether the API server would take it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};

use super::Error;
use super::cluster::Cluster;
use crate::api::{ApiKeyReference, GROUP};

/// A Secret of an ApiKey, with `value` under `key`.
pub(super) fn own_secret(
    reference: &ApiKeyReference,
    metadata: ObjectMeta,
    name: &str,
    key: &str,
    value: &str,
) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: Some(vec![owner(reference)]),
            ..metadata
        },
        type_: Some("Opaque".into()),
        data: Some(BTreeMap::from([(key.to_owned(), ByteString(value.as_bytes().to_vec()))])),
        ..Secret::default()
    }
}

/// Why the API server would not create the Secret: a quota, a policy, a namespace that is going. A dry run, with nothing
/// under the data key.
pub(super) async fn refusal_of_secret(
    cluster: &Cluster,
    reference: &ApiKeyReference,
    name: &str,
    key: &str,
) -> Result<Option<String>, Error> {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let secret = own_secret(reference, ObjectMeta::default(), name, key, "");
    match cluster.secrets(&reference.namespace).create(&dry_run, &secret).await.map_err(Error::from) {
        Err(Error::Refused(status)) if matches!(status.code, 400 | 403 | 422) => Ok(Some(status.message.clone())),
        Err(Error::Refused(status)) if status.code == 409 => Ok(None),
        answer => answer.map(|_| None),
    }
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
