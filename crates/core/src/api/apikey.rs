//! `ApiKey`: a key that a user declares.

#![allow(clippy::duplicated_attributes, reason = "each printed column is an attribute of the same name")]

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::ValidationRule;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube_derive::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;

/// The declaration of one API key. Deleting it revokes its keys at once and for good.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    crates(kube_core = "::kube_core"),
    group = "keywright.dev",
    version = "v1alpha1",
    kind = "ApiKey",
    plural = "apikeys",
    shortname = "kwk",
    category = "keywright",
    namespaced,
    status = "ApiKeyStatus",
    derive = "PartialEq",
    doc = "An API key: declared here, delivered in a Secret, revoked when this object is deleted.",
    selectable = ".spec.keyHash",
    selectable = ".spec.keyFrom.secretRef.name",
    selectable = ".spec.owner",
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner", description = "The responsible person"),
    printcolumn(
        name = "Key",
        type_ = "string",
        json_path = ".status.keyPrefix",
        description = "What people recognise the key by: its first characters, or those of its digest"
    ),
    printcolumn(name = "Created", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Last Used", type_ = "date", json_path = ".status.lastUsedAt"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expires"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Active\")].reason"),
    printcolumn(name = "Secret", type_ = "string", json_path = ".status.secretName", priority = 1),
    printcolumn(name = "Allowed IPs", type_ = "string", json_path = ".spec.allowedIPs", priority = 1),
    printcolumn(name = "Display Name", type_ = "string", json_path = ".spec.displayName", priority = 1)
)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.expiresIn) && has(self.expiresAt))")
        .message("expiresIn and expiresAt exclude each other: keep one"),
    validation = Rule::new("!has(self.keyHash) || !has(self.secret)")
        .message("keyHash excludes secret: a key that was made elsewhere is not delivered"),
    validation = Rule::new("!has(self.keyHash) || !has(self.rotation)")
        .message("keyHash excludes rotation: a key that was made elsewhere cannot be replaced here"),
    // Not at the field: the API server repeats a refused field in its message, and a key must not be repeated.
    validation = Rule::new("!has(self.keyHash) || !self.keyHash.lowerAscii().startsWith('keyw')")
        .message("this looks like a key, not its digest; treat it as leaked").field_path(".keyHash"),
    validation = Rule::new("!has(self.keyHash) || self.keyHash.lowerAscii().startsWith('keyw') || self.keyHash.matches('^sha256:[0-9a-f]{64}$')")
        .message("keyHash must be sha256: and 64 lower-case hexadecimal digits").field_path(".keyHash"),
    validation = Rule::new("!has(self.keyHash) || !self.keyHash.matches('^sha256:(0{64}|f{64})$')")
        .message("keyHash is a placeholder and no digest: write what printf %s \"$KEY\" | sha256sum prints").field_path(".keyHash"),
    // Of nothing, and of the newline that echo writes.
    validation = Rule::new("!has(self.keyHash) || !(self.keyHash in [\
        'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855', \
        'sha256:01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b'])")
        .message("keyHash is the digest of an empty key: set KEY, and write what printf %s \"$KEY\" | sha256sum prints").field_path(".keyHash"),
    validation = Rule::new("has(self.keyHash) == has(oldSelf.keyHash) && (!has(self.keyHash) || self.keyHash == oldSelf.keyHash)")
        .message("keyHash is immutable: create another ApiKey for another key"),
    validation = Rule::new("!has(self.keyFrom) || !has(self.keyHash)")
        .message("keyFrom excludes keyHash: keep one"),
    validation = Rule::new("!has(self.keyFrom) || !has(self.secret)")
        .message("keyFrom excludes secret: the key is in a Secret already"),
    validation = Rule::new("!has(self.keyFrom) || !has(self.rotation) || !has(self.rotation.every)")
        .message("keyFrom excludes rotation.every: write another key into the source Secret to rotate"),
    validation = Rule::new("has(self.keyFrom) == has(oldSelf.keyFrom) && (!has(self.keyFrom) || self.keyFrom == oldSelf.keyFrom)")
        .message("keyFrom is immutable: create another ApiKey for another source"),
    validation = Rule::new(SAME_SECRET_KEY)
        .message("secret.key is immutable: create another ApiKey for another data key"),
    validation = Rule::new(SAME_SECRET_TYPE)
        .message("secret.template.type is immutable: create another ApiKey for another type"),
)]
pub struct ApiKeySpec {
    /// A name for people. Default: the object's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[^\\\\p{Cc}]*$')").message("displayName must not hold control characters"))]
    pub display_name: Option<String>,

    /// What this key is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^([^\\\\p{Cc}]|\\n)*$')").message("description must not hold control characters other than newline"))]
    pub description: Option<String>,

    /// The person responsible for this key. Default: the user who creates the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._@:/+=-]{1,128}$')").message("owner must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces"))]
    pub owner: Option<String>,

    /// How long the key is valid, counted from this object's creation: `Never`, or a duration such as `1d`, `30d`, `90d`
    /// or `1d12h`, from 1m to 3650d. Without `expiresIn` and `expiresAt` the key never expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new(format!("self == 'Never' || {}", lifetime("self"))).message("expiresIn must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d"), validation = schema::has_never_as_written(), validation = schema::has_unit(), validation = schema::has_known_units(), validation = schema::has_bare_units())]
    pub expires_in: Option<String>,

    /// When the key expires (RFC 3339), such as `2027-01-31T00:00:00Z`.
    // A text: the API server accepts times that no `Timestamp` can hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub expires_at: Option<String>,

    /// The client addresses that may use the key: IPv4 and IPv6 addresses and CIDRs. Default: any address.
    #[serde(rename = "allowedIPs", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::allowed_ips")]
    pub allowed_ips: Option<Vec<String>>,

    /// What the key may be used for. A route can require scopes, and the key must have all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::scopes")]
    pub scopes: Vec<String>,

    /// While true, verifiers refuse the key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,

    /// When a new key replaces the old one. The annotation `keywright.dev/rotate` asks for it at once: whenever its value
    /// changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,

    /// The Secret that receives the key. Default: the Secret with this object's name, data key `api-key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretTarget>,

    /// The SHA-256 digest of a key that was made elsewhere. No Secret is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 71))]
    pub key_hash: Option<String>,

    /// Where a key that was made elsewhere is read from. Its Secret is never written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_from: Option<KeySource>,
}

/// When a new key replaces the old one.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new(overlap_within_every()).message("overlap must not be longer than every"),
)]
pub struct Rotation {
    /// At what age a new key replaces the old one, from 1m to 3650d. A spread of a tenth of it, at most an hour, keeps many
    /// keys from being replaced at the same time. Default: no scheduled rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new(lifetime("self")).message("every must be a duration such as 30d or 12h, from 1m to 3650d"), validation = schema::has_unit(), validation = schema::has_known_units(), validation = schema::has_bare_units())]
    pub every: Option<String>,

    /// How long the old key stays valid after the new one is in the Secret, from 0s to `every`. Default: 24h, or `every`
    /// if that is shorter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    #[x_kube(validation = Rule::new(format!("{} && {} <= 3650 * 86400", schema::is_duration("self"), schema::seconds("self"))).message("overlap must be a duration such as 24h or 0s, at most 3650d"), validation = schema::has_unit(), validation = schema::has_known_units(), validation = schema::has_bare_units())]
    pub overlap: Option<String>,

    /// Keep an older key valid while it is used: a use in the last quarter of its time moves its end by a quarter of the
    /// overlap, until it has had four overlaps. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold_while_in_use: bool,
}

/// The Secret that receives the key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(self.?key.orValue('api-key') in self.?template.?data.orValue({}))")
        .message("template.data must not name the entry that holds the key: choose another name, or another secret.key"),
    validation = Rule::new("self.?template.?type.orValue('Opaque') != 'kubernetes.io/basic-auth' \
        || self.?key.orValue('api-key') in ['username', 'password'] \
        || ['username', 'password'].exists(name, name in self.?template.?data.orValue({}))")
        .message("the type kubernetes.io/basic-auth needs username or password: as secret.key, or as an entry of template.data"),
)]
pub struct SecretTarget {
    /// The Secret's name. Default: the ApiKey's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()").message("secret.name must be a Secret's name: lower-case letters, digits, - and ."))]
    pub name: Option<String>,

    /// The data key in the Secret. Default: `api-key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("secret.key must be letters, digits and -._"))]
    pub key: Option<String>,

    /// What the Secret holds beside the key. A change rewrites the Secret and makes no new key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<SecretTemplate>,
}

/// What a Secret holds beside the key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
pub struct SecretTemplate {
    /// Labels and annotations of the Secret. Those that others added stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<SecretMetadata>,

    /// The type of the Secret: `Opaque`, or `kubernetes.io/basic-auth`, which needs a `username` or a `password`. Immutable.
    /// Default: `Opaque`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::secret_type")]
    pub secret_type: Option<String>,

    /// Further entries of the Secret, each made from a text. In it, `$(KEY)` stands for the key, `$(NAME)` and
    /// `$(NAMESPACE)` for those of the ApiKey, `$(PREFIX)` for `status.keyPrefix`, `$(EXPIRES_AT)` for the expiry (an RFC
    /// 3339 time, or `Never`), and `$$` for a dollar. At most 16 entries of 4096 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::template_data")]
    pub data: BTreeMap<String, String>,
}

/// Labels and annotations of a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
pub struct SecretMetadata {
    /// Labels of the Secret, at most 32. Not under `keywright.dev/` or `kubernetes.io/`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::template_labels")]
    pub labels: BTreeMap<String, String>,

    /// Annotations of the Secret, at most 32. Not under `keywright.dev/` or `kubernetes.io/`, and without variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::template_annotations")]
    pub annotations: BTreeMap<String, String>,
}

/// Where a key that was made elsewhere is read from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
pub struct KeySource {
    /// The entry of a Secret in the same namespace. The Secret must have the label `keywright.dev/source: "true"`. Another
    /// value in it is a rotation.
    pub secret_ref: SecretEntry,
}

/// An entry of a Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(crates(kube_core = "::kube_core"))]
pub struct SecretEntry {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("!format.dns1123Subdomain().validate(self).hasValue()").message("secretRef.name must be a Secret's name: lower-case letters, digits, - and ."))]
    pub name: String,

    /// The data key in the Secret.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')").message("secretRef.key must be letters, digits and -._"))]
    pub key: String,
}

/// A rule over the whole object, because the default of `spec.secret.name` is the object's name.
pub(super) fn same_secret_name() -> ValidationRule {
    ValidationRule {
        rule: SAME_SECRET_NAME.to_owned(),
        message: Some("spec.secret.name is immutable: create another ApiKey for another Secret".to_owned()),
        ..ValidationRule::default()
    }
}

const SAME_SECRET_NAME: &str = "(has(self.spec.secret) && has(self.spec.secret.name) ? self.spec.secret.name : self.metadata.name) \
    == (has(oldSelf.spec.secret) && has(oldSelf.spec.secret.name) ? oldSelf.spec.secret.name : oldSelf.metadata.name)";

const SAME_SECRET_KEY: &str = "(has(self.secret) && has(self.secret.key) ? self.secret.key : 'api-key') \
    == (has(oldSelf.secret) && has(oldSelf.secret.key) ? oldSelf.secret.key : 'api-key')";

// Of two types each is what the other is not; a comparison of texts would cost too much.
const SAME_SECRET_TYPE: &str = "(self.?secret.?template.?type.orValue('Opaque') == 'Opaque') \
    == (oldSelf.?secret.?template.?type.orValue('Opaque') == 'Opaque')";

/// CEL: `overlap` is no longer than `every`. Other rules check that both are durations.
fn overlap_within_every() -> String {
    let bad = |field: &str| format!("!{}", schema::is_duration(field));
    let (every, overlap) = ("self.every", "self.overlap");
    format!(
        "!has({every}) || !has({overlap}) || {} || {} || {} <= {}",
        bad(every),
        bad(overlap),
        schema::seconds(overlap),
        schema::seconds(every),
    )
}

/// CEL: a duration from 1m to 3650d.
fn lifetime(text: &str) -> String {
    let (is_duration, seconds) = (schema::is_duration(text), schema::seconds(text));
    format!("({is_duration} && {seconds} >= 60 && {seconds} <= 3650 * 86400)")
}

/// The observed state of the key.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiKeyStatus {
    /// The generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,

    /// `Active`, `Ready`, `Stalled` and `ExpiringSoon`; and `OldKeyStillInUse`, while an older key is valid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// `keyw1_` and the first 8 characters of the random part. Of a key that was made elsewhere `sha256:` and the first 12
    /// digits of its digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,

    /// The number of the current key: 1 for the first, then counting up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<u32>,

    /// When the current key was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_at: Option<Time>,

    /// When every key of this ApiKey expires. Absent: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,

    /// `expiresAt` as text, or `Never`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,

    /// When a verifier last allowed a key of this ApiKey. May be late by the verifiers' granularity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,

    /// The Secret that holds the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,

    /// Older keys that are still valid.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retiring: Vec<Retiring>,

    /// The value of the annotation `keywright.dev/rotate` that was last carried out. Its SHA-256 digest, if the value has
    /// more than 256 bytes or may hold a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotate_request: Option<String>,

    /// When the next scheduled rotation is due. Absent: the key ends before that, or no rotation is scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_rotation_at: Option<Time>,

    /// The newest generation that every verifier enforces, as far as is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enforced_generation: Option<i64>,
}

/// An older key that is still valid.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Retiring {
    /// As `status.keyPrefix`, of the older key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// The serial of the older key.
    pub serial: u32,
    /// When the older key expires.
    pub retires_at: Time,
    /// When a verifier last allowed the older key. May be late by the verifiers' granularity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
}

/// One condition, as in `metav1.Condition`.
// The CRD does not enumerate types or reasons, and unknown ones are read and kept: controller and CRD can be of
// different versions, and a status must be writable and readable with either.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The condition's name, such as `Ready`.
    #[serde(rename = "type")]
    #[schemars(schema_with = "schema::condition_type")]
    pub type_: ConditionType,
    /// `True`, `False` or `Unknown`.
    pub status: ConditionStatus,
    /// Why the condition has this status: one CamelCase word.
    #[schemars(schema_with = "schema::condition_reason")]
    pub reason: Reason,
    /// Why the condition has this status: a sentence for people.
    #[schemars(length(max = 32_768))]
    pub message: String,
    /// When `status` last changed.
    pub last_transition_time: Time,
    /// The generation of the spec that the condition describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
}

/// The types of an ApiKey's conditions.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum ConditionType {
    /// Whether verifiers accept the key. A route or a client address may still be refused.
    Active,
    /// Whether the declared state is in force.
    Ready,
    /// Whether the controller needs a person to go on.
    Stalled,
    /// Whether the key expires within 7 days, or within the last tenth of a shorter life.
    ExpiringSoon,
    /// Whether an older key is still used although the new one has been in the Secret for a while.
    OldKeyStillInUse,
    /// A type of another version: read, and never written.
    #[serde(untagged)]
    Other(String),
}

/// The status of a condition.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// The controller does not know.
    Unknown,
}

/// Why a condition has its status.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Verifiers accept the key.
    Active,
    /// Verifiers accept the key, and an older key until that retires.
    Rotating,
    /// `spec.suspended` is true: verifiers refuse the key.
    Suspended,
    /// The key has expired: verifiers refuse it.
    Expired,
    /// The key is not yet in its Secret.
    Issuing,
    /// The ApiKey is being deleted, and its keys are being revoked.
    Revoking,
    /// The key must be issued again, but the last one was issued too recently.
    MintBudget,
    /// The spec cannot be acted on.
    Invalid,
    /// The Secret exists and belongs to something else.
    SecretNameTaken,
    /// Another ApiKey claimed the submitted digest first.
    DigestTaken,
    /// The submitted digest is that of a revoked key.
    DigestRevoked,
    /// The source Secret holds no key that can be used.
    SourceUnusable,
    /// `ExpiringSoon` is false: the expiry is far away, or there is none.
    NotExpiringSoon,
    /// `ExpiringSoon` is true.
    ExpiringSoon,
    /// `Stalled` is false: nothing needs a person.
    NotStalled,
    /// `OldKeyStillInUse` is true.
    OldKeyStillInUse,
    /// `OldKeyStillInUse` is false.
    OldKeyNotInUse,
    /// A reason of another version: read, and never written.
    #[serde(untagged)]
    Other(String),
}

impl Reason {
    /// The word in conditions, Events, logs and metrics.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Active => "Active",
            Self::Rotating => "Rotating",
            Self::Suspended => "Suspended",
            Self::Expired => "Expired",
            Self::Issuing => "Issuing",
            Self::Revoking => "Revoking",
            Self::MintBudget => "MintBudget",
            Self::Invalid => "Invalid",
            Self::SecretNameTaken => "SecretNameTaken",
            Self::DigestTaken => "DigestTaken",
            Self::DigestRevoked => "DigestRevoked",
            Self::SourceUnusable => "SourceUnusable",
            Self::NotExpiringSoon => "NotExpiringSoon",
            Self::ExpiringSoon => "ExpiringSoon",
            Self::NotStalled => "NotStalled",
            Self::OldKeyStillInUse => "OldKeyStillInUse",
            Self::OldKeyNotInUse => "OldKeyNotInUse",
            Self::Other(word) => word,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_later_version_costs_nothing_of_a_status() {
        let condition = |type_: &str, reason: &str| {
            json!({
                "type": type_, "status": "True", "reason": reason, "message": "",
                "lastTransitionTime": "2026-11-29T00:00:00Z", "observedGeneration": 3,
            })
        };
        let stored = json!({
            "conditions": [condition("Active", "Shielded"), condition("InUse", "Active"), condition("Ready", "Expired")],
            "keyPrefix": "keyw1_abcdefgh", "serial": 7,
        });
        let read: ApiKeyStatus = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(read.serial, Some(7));
        assert_eq!(read.conditions[0].reason, Reason::Other("Shielded".into()));
        assert_eq!(read.conditions[1].type_, ConditionType::Other("InUse".into()));
        assert_eq!((&read.conditions[2].type_, &read.conditions[2].reason), (&ConditionType::Ready, &Reason::Expired));
        assert_eq!(serde_json::to_value(read).unwrap(), stored, "and nothing is lost when it is written back");
    }

    #[test]
    fn a_reason_is_written_as_its_word() {
        for reason in [Reason::DigestTaken, Reason::DigestRevoked, Reason::NotStalled, Reason::MintBudget] {
            assert_eq!(serde_json::to_value(&reason).unwrap(), reason.as_str());
        }
    }
}
