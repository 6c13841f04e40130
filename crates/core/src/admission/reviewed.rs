//! What a review is about: the parts of an ApiKey that are checked, of the new object or of the old one.

use serde_json::Value;

use super::review::Object;
use crate::declaration::DEFAULT_SECRET_KEY;
use crate::secret_template::SecretType;

/// The parts of an ApiKey that are checked: of the new object, or of the old one.
pub(super) struct ApiKey<'a> {
    pub(super) name: &'a str,
    pub(super) created_by: Option<&'a str>,
    pub(super) spec: Value,
}

impl<'a> ApiKey<'a> {
    /// The object's metadata, with a null spec.
    pub(super) fn of(object: &'a Object<'_>) -> Self {
        let Object { metadata, .. } = object;
        Self { name: &metadata.name, created_by: metadata.created_by(), spec: Value::Null }
    }

    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.spec.pointer(field).and_then(Value::as_str)
    }

    pub(super) fn secret_name(&self) -> &str {
        self.text("/secret/name").unwrap_or(self.name)
    }

    pub(super) fn secret_key(&self) -> &str {
        self.text("/secret/key").unwrap_or(DEFAULT_SECRET_KEY)
    }

    pub(super) fn secret_type(&self) -> &str {
        self.text("/secret/template/type").unwrap_or(SecretType::default().as_str())
    }

    pub(super) fn has_owner(&self) -> bool {
        self.spec.get("owner").is_some_and(|owner| !owner.is_null())
    }
}
