//! Reads and checks an ApiKey's spec.
//!
//! Webhook and controller use this one reader. The webhook refuses a spec with its problems. The controller reads again,
//! because a spec can be older than a rule, or stored while the webhook was down. The CRD's rules refuse almost all bad
//! specs too, but CEL cannot express every rule (duplicates after canonicalisation), and its messages say less.

mod problem;
mod reader;
mod secret;
mod times;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use self::reader::{Reader, given};
use crate::address::{AllowedAddresses, MAX_ENTRIES, Network};
use crate::duration::{self, InvalidDuration};
use crate::key::{Digest, begins_like_a_key, may_hold_a_key};
use crate::secret_template::SecretTemplate;
use crate::words::{Owner, Scope};

pub use self::problem::Problem;
pub use self::secret::is_dns_subdomain;

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

/// The default data key.
pub const DEFAULT_SECRET_KEY: &str = "api-key";

const DEFAULT_OVERLAP: SignedDuration = SignedDuration::from_hours(24);

/// The longest list of scopes.
const MAX_SCOPES: usize = 32;

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

impl Reader {
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

#[cfg(test)]
mod tests;
