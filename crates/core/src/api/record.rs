//! `ApiKeyRecord`: what is stored about a key. Never the key itself.

#![allow(clippy::duplicated_attributes, reason = "each printed column is an attribute of the same name")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::schema;

/// One key of an ApiKey, as the verifiers see it. Its name is `<ApiKey uid>-<serial>`, so that two controllers cannot
/// issue the same key twice: only one can create the record. It has no owner reference, because the garbage collector
/// deletes an object whose owner is in another namespace.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    crates(kube_core = "::kube_core"),
    group = "keywright.dev",
    version = "v1alpha1",
    kind = "ApiKeyRecord",
    plural = "apikeyrecords",
    shortname = "kwr",
    namespaced,
    status = "ApiKeyRecordStatus",
    derive = "PartialEq",
    doc = "The hashed record of one key, written by Keywright's controller and read by its verifiers. \
        printf %s \"$KEY\" | sha256sum gives the digest to look a leaked key up by.",
    selectable = ".spec.digest",
    selectable = ".spec.apiKey.uid",
    printcolumn(name = "Key", type_ = "string", json_path = ".spec.keyPrefix"),
    printcolumn(name = "ApiKey Namespace", type_ = "string", json_path = ".spec.apiKey.namespace"),
    printcolumn(name = "ApiKey Name", type_ = "string", json_path = ".spec.apiKey.name"),
    printcolumn(name = "Serial", type_ = "integer", json_path = ".spec.serial"),
    printcolumn(name = "Not After", type_ = "string", json_path = ".spec.notAfter"),
    printcolumn(name = "Revoked", type_ = "date", json_path = ".spec.revoked.at"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".spec.digest", priority = 1)
)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("self.digest == oldSelf.digest && self.apiKey == oldSelf.apiKey && self.serial == oldSelf.serial")
        .message("digest, apiKey and serial are immutable"),
    validation = Rule::new("has(self.keyPrefix) == has(oldSelf.keyPrefix) && (!has(self.keyPrefix) || self.keyPrefix == oldSelf.keyPrefix)")
        .message("keyPrefix is immutable"),
    validation = Rule::new(SAME_ROTATE_REQUEST).message("rotateRequest is immutable"),
    validation = Rule::new("!has(oldSelf.revoked) || (has(self.revoked) && self.revoked == oldSelf.revoked)")
        .message("revoked cannot be unset or changed: a revoked key stays revoked"),
)]
pub struct ApiKeyRecordSpec {
    /// The SHA-256 digest of the whole key.
    #[schemars(length(max = 71))]
    #[x_kube(validation = Rule::new("self.matches('^sha256:[0-9a-f]{64}$')").message("digest must be sha256: and 64 lower-case hexadecimal digits"))]
    pub digest: String,

    /// `keyw1_` and the first 8 characters of the random part. Absent for a key that was made elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 14))]
    pub key_prefix: Option<String>,

    /// The ApiKey that the key belongs to.
    pub api_key: ApiKeyReference,

    /// The number of the key: 1 for the ApiKey's first, then counting up.
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub serial: u32,

    /// The person responsible for the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub owner: Option<String>,

    /// What the key may be used for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "scopes")]
    pub scopes: Vec<String>,

    /// The client addresses that may use the key, in canonical form. Absent: any address.
    #[serde(rename = "allowedIPs", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "allowed_ips")]
    pub allowed_ips: Option<Vec<String>>,

    /// When the key expires. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub not_after: Option<Time>,

    /// While true, verifiers refuse the key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,

    /// Set once and never removed: verifiers refuse the key for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revocation>,

    /// The SHA-256 digest of the ApiKey's annotation `keywright.dev/rotate` when the key was issued: this request is
    /// done. Old records hold the annotation's value itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub rotate_request: Option<String>,
}

/// The value in an old record may be replaced by its digest. A tombstone may lose it.
const SAME_ROTATE_REQUEST: &str = "has(self.rotateRequest) \
    ? has(oldSelf.rotateRequest) && (self.rotateRequest == oldSelf.rotateRequest \
        || !oldSelf.rotateRequest.matches('^sha256:[0-9a-f]{64}$')) \
    : !has(oldSelf.rotateRequest) || has(self.revoked)";

fn scopes(generator: &mut SchemaGenerator) -> Schema {
    schema::written_as_a_whole(schema::scopes(generator))
}

fn allowed_ips(generator: &mut SchemaGenerator) -> Schema {
    schema::written_as_a_whole(schema::allowed_ips(generator))
}

/// The ApiKey that a key belongs to.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ApiKeyReference {
    /// The ApiKey's namespace.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// The ApiKey's name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// The ApiKey's uid. An ApiKey that is created again under the same name has another one.
    #[schemars(length(max = 36))]
    pub uid: String,
}

/// When and why a key was revoked.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Revocation {
    /// When the key was revoked.
    #[schemars(length(max = 64))]
    pub at: Time,
    /// Why the key was revoked: one word such as `Deleted`.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// What the verifiers report.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyRecordStatus {
    /// When a verifier last allowed the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
}
