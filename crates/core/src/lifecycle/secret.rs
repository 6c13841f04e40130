//! The Secret of an ApiKey: what matters of one that is there, and how one is made.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use zeroize::Zeroize;

use super::record::Record;
use crate::api::{
    ApiKeyReference, EXPIRES_AT_ANNOTATION, GROUP, KEY_PREFIX_ANNOTATION, MANAGED_BY, SERIAL_ANNOTATION, VERSION,
};
use crate::key::Digest;

/// The Secret that an ApiKey names.
#[derive(Clone, Debug, PartialEq)]
pub enum SecretState {
    /// There is none, or none is wanted.
    Absent,
    /// Something else owns that name. It is not touched.
    Foreign,
    /// It belonged to another ApiKey of this name, and the garbage collector is about to remove it.
    Leftover,
    /// The ApiKey controls it.
    Ours {
        /// As stored: the precondition of the next write, and what that writes back.
        metadata: Box<ObjectMeta>,
        /// The digest of what lies under the data key.
        digest: Option<Digest>,
        /// Whether it refuses every change.
        is_immutable: bool,
    },
}

impl SecretState {
    /// What matters of a stored Secret whose key is to lie under `data_key`. Its octets become a digest and are wiped.
    pub fn read(mut secret: Secret, api_key: &ApiKeyReference, data_key: &str) -> Self {
        let mut data = secret.data.take().unwrap_or_default();
        let digest = data.get(data_key).map(|octets| Digest::of(&octets.0));
        data.values_mut().for_each(|octets| octets.0.zeroize());
        let is_opaque = secret.type_.as_deref().is_none_or(|type_| type_ == "Opaque");
        let owners = secret.metadata.owner_references.as_deref().unwrap_or_default();
        if owners.iter().any(|owner| is_namesake(owner, api_key)) {
            return Self::Leftover;
        }
        if !is_opaque || !owners.iter().any(|owner| is_controller(owner) && owner.uid == api_key.uid) {
            return Self::Foreign;
        }
        let is_immutable = secret.immutable == Some(true);
        Self::Ours { metadata: Box::new(secret.metadata), digest, is_immutable }
    }

    /// What it says of its key.
    pub fn annotations(&self) -> Option<SecretAnnotations> {
        match self {
            Self::Ours { metadata, .. } => Some(SecretAnnotations::read(metadata)),
            _ => None,
        }
    }
}

/// Whether an ApiKey of this name and another uid is the controller: one that is gone, so that the garbage collector
/// will come for what it leaves behind.
fn is_namesake(owner: &OwnerReference, api_key: &ApiKeyReference) -> bool {
    is_controller(owner) && owner.name == api_key.name && owner.uid != api_key.uid
}

fn is_controller(owner: &OwnerReference) -> bool {
    owner.kind == "ApiKey" && owner.api_version.split('/').next() == Some(GROUP) && owner.controller == Some(true)
}

/// What a Secret says of the key in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretAnnotations {
    /// `keywright.dev/key-prefix`.
    pub key_prefix: Option<String>,
    /// `keywright.dev/serial`.
    pub serial: Option<u32>,
    /// `keywright.dev/expires-at`.
    pub expires_at: Option<String>,
    /// The label `app.kubernetes.io/managed-by: keywright`.
    pub is_managed: bool,
}

impl SecretAnnotations {
    /// What is right for this record's key.
    pub(super) fn of(record: &Record) -> Self {
        Self {
            key_prefix: record.spec.key_prefix.clone(),
            serial: Some(record.spec.serial),
            expires_at: record.not_after().map(|time| time.to_string()),
            is_managed: true,
        }
    }

    fn read(metadata: &ObjectMeta) -> Self {
        let annotation = |name: &str| metadata.annotations.as_ref()?.get(name).cloned();
        let label = metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY.0));
        Self {
            key_prefix: annotation(KEY_PREFIX_ANNOTATION),
            serial: annotation(SERIAL_ANNOTATION).and_then(|serial| serial.parse().ok()),
            expires_at: annotation(EXPIRES_AT_ANNOTATION),
            is_managed: label.is_some_and(|value| value == MANAGED_BY.1),
        }
    }

    /// Writes them into a Secret's metadata, and leaves everything else there.
    pub fn write(&self, metadata: &mut ObjectMeta) {
        let annotations = metadata.annotations.get_or_insert_default();
        for (name, value) in [
            (KEY_PREFIX_ANNOTATION, self.key_prefix.clone()),
            (SERIAL_ANNOTATION, self.serial.map(|serial| serial.to_string())),
            (EXPIRES_AT_ANNOTATION, self.expires_at.clone()),
        ] {
            match value {
                Some(value) => annotations.insert(name.into(), value),
                None => annotations.remove(name),
            };
        }
        metadata.labels.get_or_insert_default().insert(MANAGED_BY.0.into(), MANAGED_BY.1.into());
    }
}

/// A Secret that hands a key out. Whole, but for the key.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretDraft {
    /// With the resource version, if there is a Secret to be replaced.
    pub metadata: ObjectMeta,
    /// What the key lies under.
    pub data_key: String,
}

impl SecretDraft {
    /// A Secret of this name, in place of the one that is there.
    pub(super) fn new(
        api_key: &ApiKeyReference,
        (name, data_key): (&str, &str),
        present: &SecretState,
        annotations: &SecretAnnotations,
    ) -> Self {
        let mut metadata = match present {
            SecretState::Ours { metadata, .. } => ObjectMeta::clone(metadata),
            _ => ObjectMeta::default(),
        };
        metadata.name = Some(name.to_owned());
        metadata.owner_references = Some(vec![owner(api_key)]);
        annotations.write(&mut metadata);
        Self { metadata, data_key: data_key.to_owned() }
    }

    /// The object to write, with this key in it and nothing else.
    pub fn object(&self, key: &str) -> Secret {
        Secret {
            metadata: self.metadata.clone(),
            type_: Some("Opaque".into()),
            data: Some(BTreeMap::from([(self.data_key.clone(), ByteString(key.as_bytes().to_vec()))])),
            ..Secret::default()
        }
    }

    /// Whether it is to replace a Secret that is there.
    pub fn replaces(&self) -> bool {
        self.metadata.resource_version.is_some()
    }
}

fn owner(api_key: &ApiKeyReference) -> OwnerReference {
    OwnerReference {
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "ApiKey".into(),
        name: api_key.name.clone(),
        uid: api_key.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
