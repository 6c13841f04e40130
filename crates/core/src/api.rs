//! The two kinds as Kubernetes sees them: fields, validation rules, printed columns and fixed names. No behaviour.

mod apikey;
mod record;
mod schema;

pub use apikey::{
    ApiKey, ApiKeySpec, ApiKeyStatus, Condition, ConditionStatus, ConditionType, KeySource, Reason, Retiring, Rotation,
    SecretEntry, SecretMetadata, SecretTarget, SecretTemplate,
};
pub use record::{ApiKeyRecord, ApiKeyRecordSpec, ApiKeyRecordStatus, ApiKeyReference, Revocation};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;

/// The API group of both kinds.
pub const GROUP: &str = "keywright.dev";

/// The one version of both kinds.
pub const VERSION: &str = "v1alpha1";

/// Finalizer of an ApiKey: the object stays until all its keys are revoked.
pub const FINALIZER: &str = "keywright.dev/revocation";

/// Annotation of an ApiKey: a new value asks for a rotation.
pub const ROTATE_ANNOTATION: &str = "keywright.dev/rotate";

/// Annotation of an ApiKey: the user who created it. The webhook sets it, and it is immutable.
pub const CREATED_BY_ANNOTATION: &str = "keywright.dev/created-by";

/// Annotation of a Secret: the prefix of the key in it, such as `keyw1_eVULq19j`.
pub const KEY_PREFIX_ANNOTATION: &str = "keywright.dev/key-prefix";
/// Annotation of a Secret: the serial of the key in it, from 1.
pub const SERIAL_ANNOTATION: &str = "keywright.dev/serial";
/// Annotation of a Secret: when the key in it expires (RFC 3339). Absent: never.
pub const EXPIRES_AT_ANNOTATION: &str = "keywright.dev/expires-at";

/// The label and the value by which the owner of a Secret lets ApiKeys of its namespace use a key in it.
pub const SOURCE: (&str, &str) = ("keywright.dev/source", "true");

/// Annotation of a Secret: the labels and annotations that `spec.secret.template` gave it, as JSON. Those that the template
/// no longer names are removed, and those of others stay.
pub const TEMPLATE_ANNOTATION: &str = "keywright.dev/template";

/// Annotation of a record: why its key was issued, one of the [`crate::lifecycle::Cause`]s.
pub const CAUSE_ANNOTATION: &str = "keywright.dev/cause";

/// Annotation of a record: when its key was issued (RFC 3339), by the clock that schedules the next rotation. The API
/// server's clock, which `metadata.creationTimestamp` is by, may be another one.
pub const ISSUED_AT_ANNOTATION: &str = "keywright.dev/issued-at";
/// Annotation of a record: when a newer key was in the Secret (RFC 3339). The overlap counts from then.
pub const REPLACED_AT_ANNOTATION: &str = "keywright.dev/replaced-at";

/// Annotation of a record: until when `spec.rotation.holdWhileInUse` keeps its replaced key valid (RFC 3339).
pub const HELD_UNTIL_ANNOTATION: &str = "keywright.dev/held-until";

/// The label and the value that every object created by Keywright has.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "keywright");

/// Both CustomResourceDefinitions as they are installed, `apikeys` first.
pub fn custom_resource_definitions() -> [CustomResourceDefinition; 2] {
    [schema::finish(ApiKey::crd(), &[apikey::same_secret_name()]), schema::finish(ApiKeyRecord::crd(), &[])]
}
