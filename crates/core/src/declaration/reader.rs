//! Reads fields of any kind, and collects what is wrong with them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::problem::Problem;
use crate::address::as_written;
use crate::key::may_hold_a_key;

/// Characters of a template's entry or annotation.
pub(super) const LONGEST_TEXT: usize = 4096;

/// Reads field by field and collects the problems, so that one bad field does not hide the next.
pub(super) struct Reader {
    pub(super) problems: Vec<Problem>,
}

impl Reader {
    pub(super) fn refuse(&mut self, path: impl Into<String>, rule: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), rule: rule.into() });
    }

    /// The string in a field. `None` if it is absent or null.
    pub(super) fn string(&mut self, within: &Value, path: &str, name: &str) -> Option<String> {
        match given(within, name)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.refuse(format!("{path}.{name}"), format!("must be a string{}", quotes_for(other)));
                None
            }
        }
    }

    pub(super) fn text(
        &mut self,
        within: &Value,
        path: &str,
        name: &str,
        rule: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let text = self.string(within, path, name)?;
        self.check(&text, &format!("{path}.{name}"), rule, fits);
        Some(text)
    }

    pub(super) fn check(&mut self, text: &str, path: &str, rule: &str, fits: impl Fn(&str) -> bool) -> bool {
        if may_hold_a_key(text) {
            self.refuse(path, "this looks like a key, and no field may hold one; treat it as leaked");
            return false;
        }
        let good = fits(text);
        if !good {
            self.refuse(path, format!("{rule}, not \"{}\"", as_written(text)));
        }
        good
    }

    pub(super) fn object<'v>(
        &mut self,
        spec: &'v Value,
        name: &str,
        example: impl Fn(&Value) -> String,
    ) -> Option<&'v Value> {
        let value = given(spec, name)?;
        if !value.is_object() {
            self.refuse(format!("spec.{name}"), format!("must be an object: write {name}: {{{}}}", example(value)));
        }
        value.is_object().then_some(value)
    }

    /// The strings of a list. Only the first `most` are checked. `item` says whether a text may be in the list.
    pub(super) fn list(
        &mut self,
        spec: &Value,
        name: &str,
        most: usize,
        item: impl Fn(&str) -> bool,
    ) -> Option<Vec<String>> {
        let path = format!("spec.{name}");
        let values = match given(spec, name)? {
            Value::Array(values) => values,
            Value::String(text) if !may_hold_a_key(text) => {
                let items: Vec<_> = text.split([',', ' ']).filter(|item| !item.is_empty()).take(4).collect();
                let example = items.join(", ");
                let good =
                    !items.is_empty() && items.iter().all(|text| item(text)) && example.len() >= text.trim().len();
                let remedy = if good { format!(": write {name}: [{example}]") } else { String::new() };
                self.refuse(path, format!("must be a list of strings{remedy}"));
                return None;
            }
            _ => {
                self.refuse(path, "must be a list of strings");
                return None;
            }
        };
        let mut fit = true;
        for (index, value) in values.iter().take(most).enumerate().filter(|(_, value)| !value.is_string()) {
            self.refuse(format!("{path}[{index}]"), format!("must be a string{}", quotes_for(value)));
            fit = false;
        }
        fit.then(|| values.iter().map(|value| value.as_str().unwrap_or_default().to_owned()).collect())
    }

    /// The truth value in a field. False if it is absent or null.
    pub(super) fn boolean(&mut self, within: &Value, path: &str, name: &str) -> bool {
        let path = format!("{path}.{name}");
        match given(within, name) {
            None => return false,
            Some(Value::Bool(value)) => return *value,
            Some(Value::String(_)) => self.refuse(path, "must be true or false, without quotes"),
            Some(_) => self.refuse(path, "must be true or false"),
        }
        false
    }

    /// The object in a field, or null.
    pub(super) fn fields<'v>(&mut self, within: &'v Value, path: &str, name: &str) -> &'v Value {
        match given(within, name) {
            Some(value) if !value.is_object() => {
                self.refuse(format!("{path}.{name}"), "must be an object");
                &Value::Null
            }
            value => value.unwrap_or(&Value::Null),
        }
    }

    /// The texts of a map with at most `most` entries, but for those that may hold a key.
    pub(super) fn texts(&mut self, within: &Value, path: &str, name: &str, most: usize) -> BTreeMap<String, String> {
        let values = match given(within, name) {
            None => return BTreeMap::new(),
            Some(Value::Object(values)) if values.len() <= most => values,
            Some(Value::Object(values)) => {
                self.refuse(path, format!("has {} entries; write at most {most}", values.len()));
                return BTreeMap::new();
            }
            Some(_) => {
                self.refuse(path, "must be a map of strings");
                return BTreeMap::new();
            }
        };
        let mut texts = BTreeMap::new();
        for (name, value) in values {
            let path = entry(path, name);
            let Value::String(text) = value else {
                self.refuse(path, format!("must be a string{}", quotes_for(value)));
                continue;
            };
            let length = text.chars().count();
            if length > LONGEST_TEXT {
                self.refuse(path, format!("has {length} characters; write at most {LONGEST_TEXT}"));
            } else if self.check(text, &path, "", |_| true) {
                texts.insert(name.clone(), text.clone());
            }
        }
        texts
    }
}

/// The value of a field. `None` if it is absent or null.
pub(super) fn given<'v>(within: &'v Value, name: &str) -> Option<&'v Value> {
    within.get(name).filter(|value| !value.is_null())
}

/// A hint for values such as 12 or true, which YAML does not read as strings without quotes.
pub(super) fn quotes_for(value: &Value) -> &'static str {
    if value.is_number() || value.is_boolean() { ": put it in quotes" } else { "" }
}

/// The path of a map's entry.
pub(super) fn entry(path: &str, name: &str) -> String {
    format!("{path}[\"{}\"]", as_written(name))
}
