//! Results: tables for people, documents for programs.

mod table;

use serde_json::{Value, json};

use crate::failure::Failure;

pub use self::table::{Cell, Column, Table, coloured};

/// How a result is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// What people read.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    /// The objects, as JSON.
    Json,
    /// The objects, as YAML.
    Yaml,
    /// Their names, as kubectl takes them.
    Name,
}

impl Format {
    /// A document in this format. `None` for tables.
    ///
    /// # Errors
    /// If the document cannot be written as YAML.
    pub fn document(self, object: &Value) -> Result<Option<String>, Failure> {
        Ok(Some(match self {
            Self::Table | Self::Wide => return Ok(None),
            // `{:#}` of a `Value` ends in no newline.
            Self::Json => format!("{object:#}\n"),
            Self::Yaml => serde_yaml::to_string(object).map_err(|error| Failure::failed(error.to_string()))?,
            Self::Name => names(object),
        }))
    }
}

/// Objects as one `List`.
pub fn list(objects: Vec<Value>) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": objects})
}

/// An ApiKey as kubectl shows it: with its kind, which objects in a list do not have, and without the managed fields.
pub fn document_of(key: &keywright_core::api::ApiKey) -> Value {
    let mut object = serde_json::to_value(key).unwrap_or_default();
    if let Some(object) = object.as_object_mut() {
        object.insert("apiVersion".to_owned(), json!("keywright.dev/v1alpha1"));
        object.insert("kind".to_owned(), json!("ApiKey"));
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    object
}

fn names(object: &Value) -> String {
    let items = object.get("items").and_then(Value::as_array);
    let objects = items.map_or_else(|| std::slice::from_ref(object), Vec::as_slice);
    let name = |object: &Value| object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    objects.iter().map(|object| format!("apikey.keywright.dev/{}\n", name(object))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::fixtures::apikey;

    #[test]
    fn documents_are_what_programs_expect() {
        let object = document_of(&apikey(&json!({"metadata": {"managedFields": []}})));
        assert_eq!((&object["apiVersion"], &object["kind"]), (&json!("keywright.dev/v1alpha1"), &json!("ApiKey")));
        assert_eq!(object["metadata"].get("managedFields"), None);
        let written = |format: Format, object: &Value| format.document(object).unwrap();
        assert_eq!(written(Format::Name, &object).unwrap(), "apikey.keywright.dev/nightly-ci\n");
        let two = list(vec![object.clone(), object.clone()]);
        assert_eq!(written(Format::Name, &two).unwrap().lines().count(), 2);
        assert_eq!(serde_json::from_str::<Value>(&written(Format::Json, &two).unwrap()).unwrap(), two);
        assert_eq!(serde_yaml::from_str::<Value>(&written(Format::Yaml, &object).unwrap()).unwrap(), object);
        assert_eq!(written(Format::Wide, &object), None);
    }
}
