//! Reads and checks an ApiKey's spec.
//!
//! Webhook and controller use this one reader. The webhook refuses a spec with its problems. The controller reads again,
//! because a spec can be older than a rule, or stored while the webhook was down. The CRD's rules refuse almost all bad
//! specs too, but CEL cannot express every rule (duplicates after canonicalisation), and its messages say less.

use std::collections::BTreeMap;
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::address::{AllowedAddresses, MAX_ENTRIES, Network, as_written};
use crate::date_time;
use crate::duration::{self, InvalidDuration, hint};
use crate::key::{Digest, begins_like_a_key, may_hold_a_key};
use crate::secret_template::{SecretTemplate, SecretType, Text};
use crate::words::{Owner, Scope, is_word};

/// A spec that can be acted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Declaration {
    /// `spec.owner`.
    pub owner: Option<String>,
    /// `spec.scopes`.
    pub scopes: Vec<String>,
    /// `spec.allowedIPs` in canonical form; `None` allows any address.
    pub allowed_ips: Option<Vec<String>>,
    /// `spec.suspended`.
    pub suspended: bool,
    /// When the keys expire, in whole seconds. `None`: never.
    pub expires_at: Option<Timestamp>,
    /// When a key is replaced, and how long it then stays valid.
    pub rotation: Rotation,
    /// Where the key comes from, and where it is delivered.
    pub delivery: Delivery,
}

impl Declaration {
    /// Whether the keys are neither suspended nor expired.
    pub fn lets_in_at(&self, now: Timestamp) -> bool {
        !self.suspended && self.expires_at.is_none_or(|expires_at| now < expires_at)
    }
}

/// When a key is replaced, and how long it then stays valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// `spec.rotation.every`: at what age a key is replaced. `None`: at none.
    pub every: Option<SignedDuration>,
    /// `spec.rotation.overlap`: how long a replaced key stays valid.
    pub overlap: SignedDuration,
    /// `spec.rotation.holdWhileInUse`: whether a replaced key stays valid for longer while it is used.
    pub hold_while_in_use: bool,
}

/// Where a key comes from, and where it is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Generated here, and delivered in this Secret under this data key.
    Secret {
        /// The Secret's name.
        name: String,
        /// The data key in the Secret.
        key: String,
        /// What else the Secret holds.
        template: SecretTemplate,
    },
    /// Made elsewhere. Only its digest is known, and nothing is delivered.
    Submitted(Digest),
    /// Made elsewhere, and read from this entry of somebody else's Secret.
    Source {
        /// The Secret's name.
        name: String,
        /// The data key in the Secret.
        key: String,
    },
}

/// A bad field, and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field path, such as `spec.allowedIPs[2]`.
    pub path: String,
    /// What is wrong and what to do.
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.rule)
    }
}

/// The default data key.
pub const DEFAULT_SECRET_KEY: &str = "api-key";

const LIFE_RULE: &str = "must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d";

const DEFAULT_OVERLAP: SignedDuration = SignedDuration::from_hours(24);

/// The longest list of scopes.
const MAX_SCOPES: usize = 32;

/// Entries of a Secret that a template makes.
const MAX_DATA: usize = 16;

/// Labels, and as many annotations, of a template.
const MAX_LABELS: usize = 32;

/// Characters of a template's entry or annotation.
const LONGEST_TEXT: usize = 4096;

const DATA_KEY_RULE: &str =
    "must be a Secret's data key: 1 to 253 letters, digits and -._, and not . or beginning with ..";

/// Reads the raw `spec` of the ApiKey `name`, which was created at `created`.
///
/// # Errors
/// All problems of the spec.
pub fn read(spec: &Value, name: &str, created: Timestamp) -> Result<Declaration, Vec<Problem>> {
    let mut reader = Reader { problems: Vec::new() };
    if spec.is_null() {
        reader.refuse("spec", "is missing");
    } else if !spec.is_object() {
        reader.refuse("spec", "must be an object");
    }
    let rule = "must be 1 to 128 characters, none of them a control character";
    reader.text(spec, "spec", "displayName", rule, |text| {
        (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control)
    });
    let rule = "must be at most 1024 characters, none of them a control character other than newline";
    reader.text(spec, "spec", "description", rule, |text| {
        text.chars().count() <= 1024 && !text.chars().any(|c| c.is_control() && c != '\n')
    });
    let declaration = Declaration {
        owner: reader.text(spec, "spec", "owner", Owner::RULE, |text| Owner::parse(text).is_some()),
        scopes: reader.scopes(spec),
        allowed_ips: reader.allowed_ips(spec),
        suspended: reader.boolean(spec, "spec", "suspended"),
        expires_at: reader.expiry(spec, created),
        rotation: reader.rotation(spec),
        delivery: reader.delivery(spec, name),
    };
    if reader.problems.is_empty() { Ok(declaration) } else { Err(reader.problems) }
}

/// Reads field by field and collects the problems, so that one bad field does not hide the next.
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn refuse(&mut self, path: impl Into<String>, rule: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), rule: rule.into() });
    }

    /// The string in a field. `None` if it is absent or null.
    fn string(&mut self, within: &Value, path: &str, name: &str) -> Option<String> {
        match given(within, name)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.refuse(format!("{path}.{name}"), format!("must be a string{}", quotes_for(other)));
                None
            }
        }
    }

    fn text(
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

    fn check(&mut self, text: &str, path: &str, rule: &str, fits: impl Fn(&str) -> bool) -> bool {
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

    fn object<'v>(&mut self, spec: &'v Value, name: &str, example: impl Fn(&Value) -> String) -> Option<&'v Value> {
        let value = given(spec, name)?;
        if !value.is_object() {
            self.refuse(format!("spec.{name}"), format!("must be an object: write {name}: {{{}}}", example(value)));
        }
        value.is_object().then_some(value)
    }

    /// The strings of a list. Only the first `most` are checked. `item` says whether a text may be in the list.
    fn list(&mut self, spec: &Value, name: &str, most: usize, item: impl Fn(&str) -> bool) -> Option<Vec<String>> {
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
    fn boolean(&mut self, within: &Value, path: &str, name: &str) -> bool {
        let path = format!("{path}.{name}");
        match given(within, name) {
            None => return false,
            Some(Value::Bool(value)) => return *value,
            Some(Value::String(_)) => self.refuse(path, "must be true or false, without quotes"),
            Some(_) => self.refuse(path, "must be true or false"),
        }
        false
    }

    fn scopes(&mut self, spec: &Value) -> Vec<String> {
        let is_scope = |text: &str| Scope::parse(text).is_some();
        let scopes = self.list(spec, "scopes", MAX_SCOPES, is_scope).unwrap_or_default();
        if scopes.len() > MAX_SCOPES {
            self.refuse("spec.scopes", format!("has {} items; write at most {MAX_SCOPES}", scopes.len()));
        }
        for (index, scope) in scopes.iter().take(MAX_SCOPES).enumerate() {
            let path = format!("spec.scopes[{index}]");
            if !self.check(scope, &path, Scope::RULE, is_scope) {
                continue;
            }
            if let Some(first) = scopes.iter().take(index).position(|earlier| earlier == scope) {
                self.refuse(path, format!("is the same as spec.scopes[{first}]; remove one of them"));
            }
        }
        scopes
    }

    fn allowed_ips(&mut self, spec: &Value) -> Option<Vec<String>> {
        let entries = self.list(spec, "allowedIPs", MAX_ENTRIES, |text| Network::parse(text).is_ok())?;
        match AllowedAddresses::parse(&entries) {
            Ok(allowed) => Some(allowed.canonical_entries()),
            Err(refusals) => {
                for refusal in refusals {
                    self.refuse(refusal.field_path("spec.allowedIPs"), refusal.to_string());
                }
                None
            }
        }
    }

    /// The duration in a field. `unit` is suggested for a number without one.
    fn duration(
        &mut self,
        within: &Value,
        (path, name): (&str, &str),
        at_least: SignedDuration,
        unit: char,
    ) -> Option<SignedDuration> {
        let path = format!("{path}.{name}");
        let (text, duration) = self.written_duration(within, &path, name, unit)?;
        let rule = match duration {
            Ok(duration) if duration >= at_least => return Some(duration),
            Ok(_) => format!("must be at least {}, not \"{}\"", duration::Display(at_least), as_written(&text)),
            Err(_) if name == "every" && is_never(&text) => {
                format!("must be a duration, not \"{}\": leave the field out for no rotation", as_written(&text))
            }
            Err(InvalidDuration::Malformed { nearest }) => {
                let rule = InvalidDuration::Malformed { nearest: None };
                format!("{rule}, not \"{}\"{}", as_written(&text), hint(nearest.as_deref()))
            }
            Err(problem) => format!("{problem}, not \"{}\"", as_written(&text)),
        };
        self.refuse(path, rule);
        None
    }

    /// The text in a field, and its duration. A number without a unit is refused here.
    fn written_duration(
        &mut self,
        within: &Value,
        path: &str,
        name: &str,
        unit: char,
    ) -> Option<(String, Result<SignedDuration, InvalidDuration>)> {
        let text = match given(within, name)? {
            Value::String(text) => text.clone(),
            Value::Number(number) if number.is_u64() => number.to_string(),
            other => {
                self.refuse(path, format!("must be a string{}", quotes_for(other)));
                return None;
            }
        };
        match duration::parse(&text) {
            Err(InvalidDuration::NoUnit) => {
                let guess = format!("{text}{unit}");
                let good = duration::parse(&guess).is_ok();
                self.refuse(path, format!("needs a unit: d, h, m or s{}", hint(good.then_some(&*guess))));
                None
            }
            duration => Some((text, duration)),
        }
    }

    /// The duration in `expiresIn`, if it is not `Never`.
    fn life(&mut self, spec: &Value) -> Option<SignedDuration> {
        let (path, name) = ("spec.expiresIn", "expiresIn");
        let (text, duration) = self.written_duration(spec, path, name, 'd')?;
        let rule = match duration {
            Ok(life) if life >= duration::SHORTEST_LIFE => return Some(life),
            Err(_) if is_never(&text) => {
                format!("{LIFE_RULE}, not \"{}\"{}", as_written(&text), hint(Some("Never")))
            }
            Err(InvalidDuration::Malformed { nearest: Some(nearest) }) => {
                format!("{LIFE_RULE}, not \"{}\"{}", as_written(&text), hint(Some(&nearest)))
            }
            Err(_) if let Some(time) = date_time::nearest(&text) => {
                format!("is a time and not a duration: write expiresAt: \"{time}\"")
            }
            _ => format!("{LIFE_RULE}, not \"{}\"", as_written(&text)),
        };
        self.refuse(path, rule);
        None
    }

    fn instant(&mut self, spec: &Value) -> Option<Timestamp> {
        let text = match given(spec, "expiresAt")? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let rule = match date_time::parse(&text) {
            Some(instant) => return Some(instant),
            None if is_never(&text) => "must be a time: write expiresIn: Never".to_owned(),
            None => match (date_time::nearest(&text), duration::parse(&text)) {
                (Some(time), _) => format!("must be an RFC 3339 time: quote it; did you mean \"{time}\"?"),
                (None, Ok(_)) => format!("must be a time, and this is a duration: write expiresIn: {text}"),
                (None, Err(InvalidDuration::Malformed { nearest: Some(life) })) => {
                    format!("must be a time, and this looks like a duration: write expiresIn: {life}")
                }
                _ => "must be an RFC 3339 time such as 2027-01-31T00:00:00Z".to_owned(),
            },
        };
        self.refuse("spec.expiresAt", rule);
        None
    }

    /// When the keys expire. Rounded down to whole seconds: a key must not live a fraction of a second too long.
    fn expiry(&mut self, spec: &Value, created: Timestamp) -> Option<Timestamp> {
        let at = self.instant(spec);
        let never = spec.get("expiresIn").and_then(Value::as_str) == Some("Never");
        let life = if never { None } else { self.life(spec) };
        if at.is_some() && (never || life.is_some()) {
            self.refuse("spec", "expiresIn and expiresAt exclude each other: keep one");
        }
        let instant = at.or_else(|| created.checked_add(life?).ok())?;
        Timestamp::from_second(instant.as_second()).ok()
    }

    fn rotation(&mut self, spec: &Value) -> Rotation {
        let Some(rotation) = self.object(spec, "rotation", |value| format!("every: {}", period_in(value))) else {
            return Rotation { every: None, overlap: DEFAULT_OVERLAP, hold_while_in_use: false };
        };
        let every = self.duration(rotation, ("spec.rotation", "every"), duration::SHORTEST_LIFE, 'd');
        let overlap = self.duration(rotation, ("spec.rotation", "overlap"), SignedDuration::ZERO, 'h');
        let longest = every.unwrap_or(duration::LONGEST);
        if overlap.is_some_and(|overlap| overlap > longest) {
            self.refuse("spec.rotation.overlap", "must not be longer than spec.rotation.every");
        }
        let overlap = overlap.unwrap_or(DEFAULT_OVERLAP.min(longest));
        let hold_while_in_use = self.boolean(rotation, "spec.rotation", "holdWhileInUse");
        Rotation { every, overlap, hold_while_in_use }
    }

    fn delivery(&mut self, spec: &Value, name: &str) -> Delivery {
        if let Some(source) = self.source(spec) {
            return source;
        }
        let secret = self.object(spec, "secret", |value| {
            let name = value.as_str().filter(|name| is_dns_subdomain(name) && !begins_like_a_key(name));
            format!("name: {}", name.unwrap_or("NAME"))
        });
        let secret = secret.unwrap_or(&Value::Null);
        if let Some(digest) = self.string(spec, "spec", "keyHash") {
            for other in ["secret", "rotation"].into_iter().filter(|other| given(spec, other).is_some()) {
                self.refuse(
                    "spec",
                    format!(
                        "keyHash excludes {other}: a key that was made elsewhere is neither delivered nor replaced"
                    ),
                );
            }
            match digest.parse::<Digest>() {
                Ok(digest) => match digest.worthlessness() {
                    None => return Delivery::Submitted(digest),
                    Some(worthless) => self.refuse("spec.keyHash", worthless.to_string()),
                },
                // The value is never repeated.
                Err(_) if begins_like_a_key(&digest) || may_hold_a_key(&digest) => {
                    self.refuse("spec.keyHash", "this looks like a key, not its digest; treat it as leaked");
                }
                Err(problem) => self.refuse("spec.keyHash", format!("{problem}{}", slip_in(&digest))),
            }
        }
        let name = self.secret_name(secret, "spec.secret").unwrap_or_else(|| name.to_owned());
        let key = self.data_key(secret, "spec.secret").unwrap_or_else(|| DEFAULT_SECRET_KEY.to_owned());
        let template = self.secret_template(secret, &key);
        Delivery::Secret { name, key, template }
    }

    /// Where a key that was made elsewhere is read from, if there is such a place.
    fn source(&mut self, spec: &Value) -> Option<Delivery> {
        let example = "secretRef: {name: NAME, key: ENTRY}";
        let source = self.object(spec, "keyFrom", |_| example.to_owned())?;
        for (other, why) in [("keyHash", "keep one"), ("secret", "the key is in a Secret already")] {
            if given(spec, other).is_some() {
                self.refuse("spec", format!("keyFrom excludes {other}: {why}"));
            }
        }
        if spec.pointer("/rotation/every").is_some_and(|every| !every.is_null()) {
            let rule = "excludes keyFrom: write another key into the source Secret to rotate";
            self.refuse("spec.rotation.every", rule);
        }
        let path = "spec.keyFrom.secretRef";
        let Some(entry) = given(source, "secretRef").filter(|entry| entry.is_object()) else {
            self.refuse(path, format!("must be an object: write keyFrom: {{{example}}}"));
            return Some(Delivery::Source { name: String::new(), key: String::new() });
        };
        for (name, example) in [("name", "the Secret"), ("key", "the entry in the Secret")] {
            if given(entry, name).is_none() {
                self.refuse(format!("{path}.{name}"), format!("is missing: name {example}"));
            }
        }
        let (name, key) = (self.secret_name(entry, path), self.data_key(entry, path));
        Some(Delivery::Source { name: name.unwrap_or_default(), key: key.unwrap_or_default() })
    }

    fn secret_name(&mut self, within: &Value, path: &str) -> Option<String> {
        let rule = "must be a Secret's name: lower-case letters and digits, with - and . between them";
        self.text(within, path, "name", rule, is_dns_subdomain)
    }

    fn data_key(&mut self, within: &Value, path: &str) -> Option<String> {
        self.text(within, path, "key", DATA_KEY_RULE, is_data_key)
    }

    fn secret_template(&mut self, secret: &Value, key: &str) -> SecretTemplate {
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

    /// The object in a field, or null.
    fn fields<'v>(&mut self, within: &'v Value, path: &str, name: &str) -> &'v Value {
        match given(within, name) {
            Some(value) if !value.is_object() => {
                self.refuse(format!("{path}.{name}"), "must be an object");
                &Value::Null
            }
            value => value.unwrap_or(&Value::Null),
        }
    }

    /// The texts of a map with at most `most` entries, but for those that may hold a key.
    fn texts(&mut self, within: &Value, path: &str, name: &str, most: usize) -> BTreeMap<String, String> {
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

/// The path of a map's entry.
fn entry(path: &str, name: &str) -> String {
    format!("{path}[\"{}\"]", as_written(name))
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

/// The value of a field. `None` if it is absent or null.
fn given<'v>(within: &'v Value, name: &str) -> Option<&'v Value> {
    within.get(name).filter(|value| !value.is_null())
}

/// A hint for values such as 12 or true, which YAML does not read as strings without quotes.
fn quotes_for(value: &Value) -> &'static str {
    if value.is_number() || value.is_boolean() { ": put it in quotes" } else { "" }
}

/// Whether a text is one of the words that people write for "never".
fn is_never(text: &str) -> bool {
    let word = text.trim().to_ascii_lowercase();
    ["never", "none", "no", "off", "forever", "infinite", "infinity", "unlimited"].contains(&&*word)
}

/// The period that stands in place of a `rotation` object, or an example.
fn period_in(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    match duration::parse(text) {
        Ok(_) => text.to_owned(),
        Err(InvalidDuration::Malformed { nearest: Some(nearest) }) => nearest,
        Err(_) => "30d".to_owned(),
    }
}

/// The hint for a text that was probably meant as a digest.
fn slip_in(text: &str) -> &'static str {
    let text = text.trim();
    let (start, digits) = text.split_once(':').unwrap_or(("", text));
    let is_hexadecimal = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match () {
        () if !is_hexadecimal => ", as printf %s \"$KEY\" | sha256sum prints them",
        () if start.is_empty() => ": put sha256: before them",
        () => ": write all of it in lower case, without spaces",
    }
}

/// Whether a text is a DNS-1123 subdomain, as objects' names must be.
fn is_dns_subdomain(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(is_inner)
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests;
