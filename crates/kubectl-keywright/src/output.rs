//! Results: tables for people, documents for programs.

mod table;

use serde_json::{Value, json};

use crate::failure::Failure;
use crate::view::escape::is_unseen;

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
            Self::Json => written_out(&format!("{object:#}\n"), json_escape),
            Self::Yaml => yaml(object)?,
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

/// YAML. What holds something that is not seen is written as JSON, which is YAML and can write that out.
fn yaml(object: &Value) -> Result<String, Failure> {
    let yaml = serde_yaml::to_string(object).map_err(|error| Failure::failed(error.to_string()))?;
    match yaml.contains(is_hidden) {
        // Its first line tells programs that it is to be read as YAML: JSON has other escapes.
        true => Ok(format!("---\n{}", written_out(&format!("{object:#}\n"), yaml_escape))),
        false => Ok(yaml),
    }
}

/// Outside of strings JSON is ASCII, so that what is not seen is in a string.
fn written_out(json: &str, escaped: fn(char) -> String) -> String {
    json.chars().map(|character| if is_hidden(character) { escaped(character) } else { character.into() }).collect()
}

fn is_hidden(character: char) -> bool {
    character != '\n' && is_unseen(character)
}

/// `\u009b`, and beyond the Basic Multilingual Plane a surrogate pair.
fn json_escape(character: char) -> String {
    character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// The same, but YAML has no surrogates.
fn yaml_escape(character: char) -> String {
    match u32::from(character) {
        code @ ..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
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
    #[test]
    fn documents_are_safe_for_a_terminal_and_say_the_same() {
        for (text, json, yaml) in [
            ("Schlüssel\nfür 鍵", "Schlüssel\\nfür 鍵", "text: |-\n  Schlüssel\n  für 鍵\n"),
            ("\u{9b}2J\u{7f}", "\\u009b2J\\u007f", "\\x9B2J\\x7F"),
            ("a\u{202e}b\u{200b}", "a\\u202eb\\u200b", "a\\u202eb\\u200b"),
            ("a\u{e0041}", "a\\udb40\\udc41", "a\\U000e0041"),
            ("a\tb\u{1b}[2J", "a\\tb\\u001b[2J", "a\\tb\\e[2J"),
        ] {
            let object = json!({"text": text});
            let written = |format: Format| format.document(&object).unwrap().unwrap();
            let (as_json, as_yaml) = (written(Format::Json), written(Format::Yaml));
            assert!(as_json.contains(json) && as_yaml.contains(yaml), "{as_json}{as_yaml}");
            assert!(!as_json.contains(is_hidden) && !as_yaml.contains(is_hidden), "{as_json}{as_yaml}");
            assert_eq!(serde_json::from_str::<Value>(&as_json).unwrap(), object);
            assert_eq!(serde_yaml::from_str::<Value>(&as_yaml).unwrap(), object);
        }
    }

    #[test]
    fn a_name_of_a_field_is_safe_as_well() {
        let object = json!({"metadata": {"annotations": {"a\u{202e}\u{9b}": "b"}}});
        for format in [Format::Json, Format::Yaml] {
            let written = format.document(&object).unwrap().unwrap();
            assert!(!written.contains(is_hidden), "{written}");
            assert_eq!(serde_yaml::from_str::<Value>(&written).unwrap(), object);
        }
    }
}
