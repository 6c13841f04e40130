//! The Secret of an ApiKey: what matters of one that is there, and how one is made.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::record::Record;
use crate::api::{
    ApiKeyReference, EXPIRES_AT_ANNOTATION, GROUP, KEY_PREFIX_ANNOTATION, MANAGED_BY, SERIAL_ANNOTATION,
    TEMPLATE_ANNOTATION, VERSION,
};
use crate::declaration::{Declaration, Delivery};
use crate::key::Digest;
use crate::secret_template::{SecretTemplate, Values};

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
        /// Whether its entries are those that are declared, as far as the key in it goes.
        has_declared_entries: bool,
        /// Whether it refuses every change of its entries.
        is_immutable: bool,
    },
}

impl SecretState {
    /// What matters of a stored Secret that is to hold this. Its octets become a digest and an answer, and are wiped.
    pub fn read(mut secret: Secret, api_key: &ApiKeyReference, contents: &SecretContents) -> Self {
        let mut data = secret.data.take().unwrap_or_default();
        let digest = data.get(&contents.data_key).map(|octets| Digest::of(&octets.0));
        let has_declared_entries = contents.are_in(&data) || contents.leave_alone(&secret.metadata);
        data.values_mut().for_each(|octets| octets.0.zeroize());
        let secret_type = contents.template.secret_type.as_str();
        let is_of_type = secret.type_.as_deref().is_none_or(|type_| type_ == secret_type);
        let owners = secret.metadata.owner_references.as_deref().unwrap_or_default();
        if owners.iter().any(|owner| is_namesake(owner, api_key)) {
            return Self::Leftover;
        }
        if !is_of_type || !owners.iter().any(|owner| is_controller(owner) && owner.uid == api_key.uid) {
            return Self::Foreign;
        }
        let is_immutable = secret.immutable == Some(true);
        Self::Ours { metadata: Box::new(secret.metadata), digest, has_declared_entries, is_immutable }
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

/// What a Secret is to hold: a key, and what the template makes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretContents {
    data_key: String,
    template: SecretTemplate,
    name: String,
    namespace: String,
    expires_at: String,
}

impl SecretContents {
    /// What is declared; `None` where no Secret is.
    pub fn declared(api_key: &ApiKeyReference, declaration: &Declaration) -> Option<Self> {
        let Delivery::Secret { key, template, .. } = &declaration.delivery else { return None };
        Some(Self {
            data_key: key.clone(),
            template: template.clone(),
            name: api_key.name.clone(),
            namespace: api_key.namespace.clone(),
            expires_at: declaration.expires_at.map_or_else(|| "Never".to_owned(), |at| at.to_string()),
        })
    }

    fn values<'v>(&'v self, key: &'v str) -> Values<'v> {
        Values { key, name: &self.name, namespace: &self.namespace, expires_at: &self.expires_at }
    }

    /// All entries, for this key.
    fn entries(&self, key: &str) -> BTreeMap<String, ByteString> {
        let values = self.values(key);
        let made = self.template.data.iter().map(|(name, text)| (name.clone(), text.render(values).into_bytes()));
        let entries = made.chain([(self.data_key.clone(), key.as_bytes().to_vec())]);
        entries.map(|(name, octets)| (name, ByteString(octets))).collect()
    }

    /// Whether these are all entries, for the key that is in them.
    pub(super) fn are_in(&self, data: &BTreeMap<String, ByteString>) -> bool {
        let key = data.get(&self.data_key).and_then(|octets| str::from_utf8(&octets.0).ok());
        let Some(values) = key.map(|key| self.values(key)) else { return false };
        let is_made = |name: &String, octets: &ByteString| {
            self.template.data.get(name).is_some_and(|text| text.is_rendered_in(&octets.0, values))
        };
        data.len() == self.template.data.len() + 1
            && data.iter().all(|(name, octets)| *name == self.data_key || is_made(name, octets))
    }

    /// Whether entries beside the key are nobody's business: no template adds any, and none did.
    pub(super) fn leave_alone(&self, metadata: &ObjectMeta) -> bool {
        let annotations = metadata.annotations.as_ref();
        self.template.is_empty() && annotations.is_none_or(|there| !there.contains_key(TEMPLATE_ANNOTATION))
    }

    /// Whether a Secret has the template's labels and annotations, and none of an earlier template.
    pub(super) fn are_noted_in(&self, metadata: &ObjectMeta) -> bool {
        let mut noted = metadata.clone();
        self.note_in(&mut noted);
        let said = |metadata: &ObjectMeta| {
            (metadata.labels.clone().unwrap_or_default(), metadata.annotations.clone().unwrap_or_default())
        };
        said(&noted) == said(metadata)
    }

    /// Gives a Secret the template's labels and annotations, takes those of an earlier template away, and leaves all
    /// others.
    fn note_in(&self, metadata: &mut ObjectMeta) {
        let (labels, annotations) =
            (metadata.labels.get_or_insert_default(), metadata.annotations.get_or_insert_default());
        let before = annotations.remove(TEMPLATE_ANNOTATION);
        let before: Named = before.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        labels.retain(|name, _| !before.labels.contains(name));
        annotations.retain(|name, _| !before.annotations.contains(name));
        labels.extend(self.template.labels.clone());
        annotations.extend(self.template.annotations.clone());
        let named = Named {
            labels: self.template.labels.keys().cloned().collect(),
            annotations: self.template.annotations.keys().cloned().collect(),
        };
        let text = serde_json::to_string(&named).ok().filter(|_| !self.template.is_empty());
        annotations.extend(text.map(|text| (TEMPLATE_ANNOTATION.to_owned(), text)));
    }
}

/// The labels and annotations that a template gave a Secret, as the Secret keeps them.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Named {
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    labels: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    annotations: BTreeSet<String>,
}

/// A Secret that hands a key out. Whole, but for the key.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretDraft {
    /// With the resource version, if there is a Secret to be replaced.
    pub metadata: ObjectMeta,
    contents: SecretContents,
}

impl SecretDraft {
    /// A Secret of this name, in place of the one that is there.
    pub(super) fn new(
        api_key: &ApiKeyReference,
        name: &str,
        contents: SecretContents,
        present: &SecretState,
        annotations: &SecretAnnotations,
    ) -> Self {
        let mut metadata = match present {
            SecretState::Ours { metadata, .. } => ObjectMeta::clone(metadata),
            _ => ObjectMeta::default(),
        };
        metadata.name = Some(name.to_owned());
        // Those of a Secret that is there stay as they are: an API server may refuse to change them to anybody who has no
        // right to delete the Secret (the admission plugin OwnerReferencesPermissionEnforcement).
        metadata.owner_references.get_or_insert_with(|| vec![owner(api_key)]);
        contents.note_in(&mut metadata);
        annotations.write(&mut metadata);
        Self { metadata, contents }
    }

    /// The object to write: this key, what the template makes of it, and nothing else.
    pub fn object(&self, key: &str) -> Secret {
        Secret {
            metadata: self.metadata.clone(),
            type_: Some(self.contents.template.secret_type.as_str().into()),
            data: Some(self.contents.entries(key)),
            ..Secret::default()
        }
    }

    /// Whether it is to replace a Secret that is there.
    pub fn replaces(&self) -> bool {
        self.metadata.resource_version.is_some()
    }
}

/// A change of a Secret that leaves the key in it.
#[derive(Clone, Debug, PartialEq)]
pub struct SecretUpdate {
    /// With the resource version that was observed.
    pub metadata: ObjectMeta,
    /// The key, and what its Secret is to hold. `None` leaves the entries as they are.
    entries: Option<(Digest, SecretContents)>,
}

impl SecretUpdate {
    /// What a Secret says of its key, and nothing else.
    pub(super) fn of_annotations(metadata: ObjectMeta) -> Self {
        Self { metadata, entries: None }
    }

    /// What makes `present` say and hold what is declared; `None` where it does. It may say wrong things of its key: that
    /// alone is no reason for a write here.
    pub(super) fn to_declared(
        present: &SecretState,
        contents: SecretContents,
        annotations: &SecretAnnotations,
    ) -> Option<Self> {
        let SecretState::Ours { metadata, digest, has_declared_entries, .. } = present else { return None };
        if *has_declared_entries && contents.are_noted_in(metadata) {
            return None;
        }
        let mut declared = ObjectMeta::clone(metadata);
        contents.note_in(&mut declared);
        annotations.write(&mut declared);
        let entries = digest.filter(|_| !has_declared_entries).map(|digest| (digest, contents));
        Some(Self { metadata: declared, entries })
    }

    /// Whether it changes entries, which an immutable Secret refuses.
    pub(super) fn changes_entries(&self) -> bool {
        self.entries.is_some()
    }

    /// The object to write, made of the Secret as it was read anew; `None` if another key is in that one.
    pub fn object(&self, mut stored: Secret) -> Option<Secret> {
        if let Some((digest, contents)) = &self.entries {
            let mut data = stored.data.take().unwrap_or_default();
            let key = data.get(&contents.data_key).filter(|octets| Digest::of(&octets.0) == *digest);
            let entries = key.and_then(|octets| Some(contents.entries(str::from_utf8(&octets.0).ok()?)));
            data.values_mut().for_each(|octets| octets.0.zeroize());
            stored.data = Some(entries?);
        }
        Some(Secret { metadata: self.metadata.clone(), ..stored })
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
