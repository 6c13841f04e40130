//! As much of a stored object as a watch or a sweep goes by. Whatever else an object holds, and tenants can have it hold
//! much, is passed over as it is read and never in memory.

use std::marker::PhantomData;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PartialObjectMeta;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use keywright_core::api::{ApiKey, ApiKeyReference};

/// An ApiKey as the store of what is watched holds it: without annotations, labels, finalizers, owners and field
/// managers.
pub(super) type Watched = PartialObjectMeta<ApiKey>;

/// What a watch goes on from.
pub(super) trait Versioned {
    /// `metadata.resourceVersion`.
    fn resource_version(&self) -> &str;
}

/// What is read of an ApiKey.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ApiKeyHead {
    metadata: ApiKeyMetadata,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiKeyMetadata {
    name: String,
    namespace: Option<String>,
    uid: Option<String>,
    #[serde(default)]
    resource_version: String,
    generation: Option<i64>,
    deletion_timestamp: Option<Time>,
}

impl Versioned for ApiKeyHead {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl From<ApiKeyHead> for Watched {
    fn from(ApiKeyHead { metadata }: ApiKeyHead) -> Self {
        let metadata = ObjectMeta {
            name: Some(metadata.name),
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: Some(metadata.resource_version),
            generation: metadata.generation,
            deletion_timestamp: metadata.deletion_timestamp,
            ..ObjectMeta::default()
        };
        Self { types: None, metadata, _phantom: PhantomData }
    }
}

/// What is read of a record.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RecordHead {
    pub(super) metadata: RecordMetadata,
    pub(super) spec: RecordSpec,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecordMetadata {
    pub(super) name: String,
    pub(super) uid: Option<String>,
    #[serde(default)]
    pub(super) resource_version: String,
    pub(super) creation_timestamp: Option<Time>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecordSpec {
    #[serde(default)]
    pub(super) digest: String,
    pub(super) api_key: ApiKeyReference,
    /// Absent: the key is not revoked.
    pub(super) revoked: Option<RevokedHead>,
    #[serde(default)]
    key_prefix: Present,
    #[serde(default)]
    owner: Present,
    #[serde(default)]
    scopes: Present,
    #[serde(default, rename = "allowedIPs")]
    allowed_ips: Present,
    #[serde(default)]
    not_after: Present,
    #[serde(default)]
    suspended: Present,
    #[serde(default)]
    rotate_request: Present,
}

/// That a key is revoked, and when: `None` where the time cannot be read.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RevokedHead {
    #[serde(default, deserialize_with = "lenient")]
    pub(super) at: Option<Timestamp>,
}

/// Whether a field is there, whatever it holds.
#[derive(Clone, Copy, Debug, Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    Ok(String::deserialize(deserializer)?.parse().ok())
}

impl Versioned for RecordHead {
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl RecordSpec {
    /// Whether the key was generated here; otherwise its digest was submitted.
    pub(super) fn is_generated(&self) -> bool {
        self.key_prefix.0
    }

    /// Whether it holds more than a tombstone needs.
    pub(super) fn has_rules(&self) -> bool {
        let rules = [self.owner, self.scopes, self.allowed_ips, self.not_after, self.suspended, self.rotate_request];
        rules.iter().any(|rule| rule.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn record(spec: Value) -> RecordHead {
        serde_json::from_value(json!({"metadata": {"name": "u-1", "uid": "r", "resourceVersion": "7"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn of_a_record_it_is_known_what_it_is_for_and_whether_it_holds_more() {
        let api_key = json!({"namespace": "n", "name": "a", "uid": "u"});
        let tombstone = json!({
            "digest": "sha256:00", "keyPrefix": "keyw1_abcdefgh", "apiKey": api_key, "serial": 1,
            "revoked": {"at": "2026-11-29T00:00:00Z", "reason": "Deleted"},
        });
        let slim = record(tombstone.clone()).spec;
        assert!(slim.is_generated() && !slim.has_rules());
        assert_eq!(slim.revoked.unwrap().at, Some("2026-11-29T00:00:00Z".parse().unwrap()));
        for (field, value) in [
            ("owner", json!("a")),
            ("scopes", json!(["a"])),
            ("allowedIPs", json!(["::/0"])),
            ("notAfter", json!("2026-11-29T00:00:00Z")),
            ("suspended", json!(true)),
            ("rotateRequest", json!("x")),
        ] {
            let mut fat = tombstone.clone();
            fat.as_object_mut().unwrap().insert(field.into(), value);
            assert!(record(fat).spec.has_rules(), "{field}");
        }
        let live = record(json!({"digest": "sha256:00", "apiKey": api_key, "serial": 1})).spec;
        assert!(live.revoked.is_none() && !live.is_generated() && !live.has_rules());
        let odd = record(json!({"apiKey": api_key, "revoked": {"at": "yesterday", "reason": "Deleted"}})).spec;
        assert_eq!(odd.revoked.unwrap().at, None, "it is revoked all the same");
    }

    #[test]
    fn of_an_api_key_nothing_is_kept_that_tenants_can_fill() {
        let read: ApiKeyHead = serde_json::from_value(json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 3,
                "deletionTimestamp": "2026-11-29T00:00:00Z",
                "labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["example.org/hold"],
                "managedFields": [{"manager": "kubectl"}], "ownerReferences": [],
            },
        }))
        .unwrap();
        let kept = serde_json::to_value(Watched::from(read).metadata).unwrap();
        let expected = json!({
            "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 3,
            "deletionTimestamp": "2026-11-29T00:00:00Z",
        });
        assert_eq!(kept, expected);
    }
}
