//! Reads what the Secret is called, and what it holds beside the key.

use std::collections::BTreeMap;

use serde_json::Value;

use super::reader::{Reader, entry, given};
use crate::secret_template::{SecretTemplate, SecretType, Text};
use crate::words::is_word;

/// Entries of a Secret that a template makes.
const MAX_DATA: usize = 16;

/// Labels, and as many annotations, of a template.
const MAX_LABELS: usize = 32;

const DATA_KEY_RULE: &str =
    "must be a Secret's data key: 1 to 253 letters, digits and -._, and not . or beginning with ..";

impl Reader {
    pub(super) fn secret_name(&mut self, within: &Value, path: &str) -> Option<String> {
        let rule = "must be a Secret's name: lower-case letters and digits, with - and . between them";
        self.text(within, path, "name", rule, is_dns_subdomain)
    }

    pub(super) fn data_key(&mut self, within: &Value, path: &str) -> Option<String> {
        self.text(within, path, "key", DATA_KEY_RULE, is_data_key)
    }

    pub(super) fn secret_template(&mut self, secret: &Value, key: &str) -> SecretTemplate {
        let path = "spec.secret.template";
        let template = self.fields(secret, "spec.secret", "template");
        let metadata = self.fields(template, path, "metadata");
        let secret_type = self.secret_type(template);
        let labels = self.labels(metadata);
        let annotations = self.annotations(metadata);
        let data = self.template_data(template, key);
        let demanded = secret_type.demands_one_of();
        let is_given =
            |name: &&str| *name == key || given(template, "data").is_some_and(|data| data.get(*name).is_some());
        if !demanded.is_empty() && !demanded.iter().any(is_given) {
            let (type_, names) = (secret_type.as_str(), demanded.join(" or "));
            self.refuse(path, format!("the type {type_} needs {names}: as spec.secret.key, or as an entry of data"));
        }
        SecretTemplate { labels, annotations, secret_type, data }
    }

    fn secret_type(&mut self, template: &Value) -> SecretType {
        let [first, second] = SecretType::ALL.map(SecretType::as_str);
        let rule = format!("must be {first} or {second}");
        let name = self.text(template, "spec.secret.template", "type", &rule, |name| SecretType::parse(name).is_some());
        name.as_deref().and_then(SecretType::parse).unwrap_or_default()
    }

    fn template_data(&mut self, template: &Value, key: &str) -> BTreeMap<String, Text> {
        let path = "spec.secret.template.data";
        let mut data = BTreeMap::new();
        for (name, text) in self.texts(template, path, "data", MAX_DATA) {
            let path = entry(path, &name);
            let fits = self.check(&name, &path, DATA_KEY_RULE, is_data_key);
            if fits && name == key {
                self.refuse(&path, "is the entry that holds the key; choose another name, or another spec.secret.key");
            }
            match Text::parse(&text) {
                Ok(text) => drop(data.insert(name, text)),
                Err(problem) => self.refuse(path, problem.to_string()),
            }
        }
        data
    }

    fn labels(&mut self, metadata: &Value) -> BTreeMap<String, String> {
        let path = "spec.secret.template.metadata.labels";
        let labels = self.texts(metadata, path, "labels", MAX_LABELS);
        for (name, value) in &labels {
            let path = entry(path, name);
            self.check_metadata_name(&path, name);
            let rule = "must be a label's value: at most 63 letters, digits and -._, the first and last of them a letter or \
                        digit";
            self.check(value, &path, rule, |value| value.is_empty() || is_qualified_part(value));
        }
        labels
    }

    fn annotations(&mut self, metadata: &Value) -> BTreeMap<String, String> {
        let path = "spec.secret.template.metadata.annotations";
        let annotations = self.texts(metadata, path, "annotations", MAX_LABELS);
        for (name, value) in &annotations {
            let path = entry(path, name);
            self.check_metadata_name(&path, name);
            if value.contains("$(") {
                self.refuse(
                    path,
                    "must not hold $(: annotations have no variables, as more people may read them than Secrets; write the \
                     value itself, or an entry of data",
                );
            }
        }
        annotations
    }

    fn check_metadata_name(&mut self, path: &str, name: &str) {
        let rule = "must be named as in Kubernetes: an optional DNS name and /, then 1 to 63 letters, digits and -._, the \
                    first and last of them a letter or digit";
        if self.check(name, path, rule, is_qualified_name) && is_reserved(name) {
            self.refuse(path, "is reserved for Keywright or Kubernetes; choose another name");
        }
    }
}

fn is_data_key(text: &str) -> bool {
    is_word(text, 253, b"-._") && text != "." && !text.starts_with("..")
}

/// Whether a text can be the name of a label or an annotation.
fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_qualified_part(name),
        None => is_qualified_part(text),
    }
}

/// Whether a text can be a label's value, and the last part of a label's name.
fn is_qualified_part(text: &str) -> bool {
    let is_outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    is_word(text, 63, b"-._") && is_outer(text.bytes().next()) && is_outer(text.bytes().last())
}

/// Whether a label or annotation says something that a template must not say of a Secret.
fn is_reserved(name: &str) -> bool {
    let prefix = name.split_once('/').map_or("", |(prefix, _)| prefix);
    prefix == "keywright.dev"
        || prefix.ends_with(".keywright.dev")
        || prefix == "kubernetes.io"
        || ["app.kubernetes.io/managed-by", "kubectl.kubernetes.io/last-applied-configuration"].contains(&name)
}

/// Whether a text is a DNS-1123 subdomain, as objects' names must be.
pub fn is_dns_subdomain(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(is_inner)
    };
    text.len() <= 253 && text.split('.').all(is_label)
}
