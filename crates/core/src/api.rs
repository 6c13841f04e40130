//! What Kubernetes sees: the two kinds, their validation rules and printed columns, and the names that are fixed.
//! No behaviour.

mod apikey;
mod record;
mod schema;

pub use apikey::{
    ApiKey, ApiKeySpec, ApiKeyStatus, Condition, ConditionStatus, ConditionType, Reason, Retiring, Rotation,
    SecretTarget,
};
pub use record::{ApiKeyRecord, ApiKeyRecordSpec, ApiKeyRecordStatus, ApiKeyReference, Revocation};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_core::CustomResourceExt;

/// The API group of both kinds.
pub const GROUP: &str = "keywright.dev";

/// The one version of both kinds.
pub const VERSION: &str = "v1alpha1";

/// Holds an ApiKey back until all its keys are revoked.
pub const FINALIZER: &str = "keywright.dev/revocation";

/// Annotation of an ApiKey: whenever its value changes, the key is to be rotated.
pub const ROTATE_ANNOTATION: &str = "keywright.dev/rotate";

/// Annotation of an ApiKey: who created it. The webhook stamps it, and it is immutable.
pub const CREATED_BY_ANNOTATION: &str = "keywright.dev/created-by";

/// Annotations of a Secret: which key it holds.
pub const KEY_PREFIX_ANNOTATION: &str = "keywright.dev/key-prefix";
/// See [`KEY_PREFIX_ANNOTATION`].
pub const SERIAL_ANNOTATION: &str = "keywright.dev/serial";
/// See [`KEY_PREFIX_ANNOTATION`].
pub const EXPIRES_AT_ANNOTATION: &str = "keywright.dev/expires-at";

/// Annotation of a record: why its key was made, one of the [`crate::lifecycle::Cause`]s.
pub const CAUSE_ANNOTATION: &str = "keywright.dev/cause";

/// The label, and its value, of every object that Keywright creates.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "keywright");

/// Both CustomResourceDefinitions as they are installed, `apikeys` first.
pub fn custom_resource_definitions() -> [CustomResourceDefinition; 2] {
    [schema::finish(ApiKey::crd(), &[apikey::same_secret_name()]), schema::finish(ApiKeyRecord::crd(), &[])]
}
