//! PURE. What an ApiKey's spec declares, read once, with nothing left to check behind it.
//!
//! The one reading of a spec: the webhook refuses with these problems, and the controller reads again, because a spec
//! can be older than the rules or have been stored while the webhook was not there. The CRD's rules refuse almost all
//! of it too; CEL cannot say everything (duplicates after canonicalisation), and says it in fewer words.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::address::{AllowedAddresses, printable};
use crate::duration;
use crate::key::Digest;

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
    /// From when on the keys are refused, in whole seconds; `None` is never.
    pub expires_at: Option<Timestamp>,
    /// How long a replaced key stays valid.
    pub overlap: SignedDuration,
    /// Where the key comes from and goes to.
    pub delivery: Delivery,
}

/// Where a key comes from and goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Made here, and handed over in this Secret under this data key.
    Secret {
        /// The Secret's name.
        name: String,
        /// The data key.
        key: String,
    },
    /// Made elsewhere; only its digest is known, and nothing is handed over.
    Submitted(Digest),
}

/// A field that cannot be acted on, and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `spec.allowedIPs[2]`, say.
    pub path: String,
    /// What is wrong and what to do.
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.rule)
    }
}

/// The data key where none is given.
pub const DEFAULT_SECRET_KEY: &str = "api-key";

/// What an owner may be, in words. [`is_owner`] is the same in code.
pub const OWNER_RULE: &str = "must be 1 to 128 letters, digits and ._@:/+=-";

const DEFAULT_OVERLAP: SignedDuration = SignedDuration::from_hours(24);

/// The longest list of scopes.
const MAX_SCOPES: usize = 32;

/// Reads the raw `spec` of the ApiKey called `name` and created at `created`, or says everything that is wrong with it.
pub fn read(spec: &Value, name: &str, created: Timestamp) -> Result<Declaration, Vec<Problem>> {
    let mut reader = Reader { problems: Vec::new() };
    if !spec.is_object() {
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
        owner: reader.text(spec, "spec", "owner", OWNER_RULE, is_owner),
        scopes: reader.scopes(spec),
        allowed_ips: reader.allowed_ips(spec),
        suspended: reader.field(spec, "spec", "suspended", "true or false").unwrap_or_default(),
        expires_at: reader.expiry(spec, created),
        overlap: reader.overlap(spec),
        delivery: reader.delivery(spec, name),
    };
    if reader.problems.is_empty() { Ok(declaration) } else { Err(reader.problems) }
}

/// Reads field by field, so that one bad field does not hide the next, and collects what is wrong.
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn refuse(&mut self, path: impl Into<String>, rule: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), rule: rule.into() });
    }

    /// A field of any type; absent and null are the same.
    fn field<T: DeserializeOwned>(&mut self, within: &Value, path: &str, name: &str, expected: &str) -> Option<T> {
        let value = within.get(name).filter(|value| !value.is_null())?;
        let read = serde_json::from_value(value.clone()).ok();
        if read.is_none() {
            // YAML reads an unquoted 12 or true as something else than a string.
            let quotes = value.is_number() || value.is_boolean();
            let remedy = if quotes && expected == "a string" { ": put it in quotes" } else { "" };
            self.refuse(format!("{path}.{name}"), format!("must be {expected}{remedy}"));
        }
        read
    }

    fn text(
        &mut self,
        within: &Value,
        path: &str,
        name: &str,
        rule: &str,
        fits: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let text = self.field::<String>(within, path, name, "a string")?;
        if !fits(&text) {
            self.refuse(format!("{path}.{name}"), format!("{rule}, not \"{}\"", printable(&text)));
        }
        Some(text)
    }

    fn scopes(&mut self, spec: &Value) -> Vec<String> {
        let scopes: Vec<String> = self.field(spec, "spec", "scopes", "a list of strings").unwrap_or_default();
        if scopes.len() > MAX_SCOPES {
            self.refuse("spec.scopes", format!("has {} items; write at most {MAX_SCOPES}", scopes.len()));
        }
        for (index, scope) in scopes.iter().take(MAX_SCOPES).enumerate() {
            let path = format!("spec.scopes[{index}]");
            if !is_word(scope, 64, "._:/-") {
                self.refuse(path, format!("must be 1 to 64 letters, digits and ._:/-, not \"{}\"", printable(scope)));
            } else if let Some(first) = scopes.iter().take(index).position(|earlier| earlier == scope) {
                self.refuse(path, format!("is the same as spec.scopes[{first}]; remove one of them"));
            }
        }
        scopes
    }

    fn allowed_ips(&mut self, spec: &Value) -> Option<Vec<String>> {
        let entries: Vec<String> = self.field(spec, "spec", "allowedIPs", "a list of strings")?;
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

    fn duration(&mut self, within: &Value, path: &str, name: &str, at_least: SignedDuration) -> Option<SignedDuration> {
        let text = self.field::<String>(within, path, name, "a string")?;
        match duration::parse(&text) {
            Ok(duration) if duration >= at_least => Some(duration),
            Ok(_) => {
                let rule = format!("must be at least {}, not \"{}\"", duration::Display(at_least), printable(&text));
                self.refuse(format!("{path}.{name}"), rule);
                None
            }
            Err(problem) => {
                self.refuse(format!("{path}.{name}"), format!("{problem}, not \"{}\"", printable(&text)));
                None
            }
        }
    }

    /// `expiresIn` where it is not `Never`.
    fn life(&mut self, spec: &Value) -> Option<SignedDuration> {
        let text = self.field::<String>(spec, "spec", "expiresIn", "a string")?;
        let life = duration::parse(&text).ok().filter(|life| *life >= duration::SHORTEST_LIFE);
        if life.is_none() {
            let rule = "must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d";
            self.refuse("spec.expiresIn", format!("{rule}, not \"{}\"", printable(&text)));
        }
        life
    }

    /// Whole seconds, rounded down: a key is refused a fraction of a second early rather than late.
    fn expiry(&mut self, spec: &Value, created: Timestamp) -> Option<Timestamp> {
        let at = self.field::<Time>(spec, "spec", "expiresAt", "an RFC 3339 time such as 2027-01-31T00:00:00Z");
        let never = spec.get("expiresIn").and_then(Value::as_str) == Some("Never");
        let life = if never { None } else { self.life(spec) };
        if at.is_some() && (never || life.is_some()) {
            self.refuse("spec", "expiresIn and expiresAt exclude each other: keep one");
        }
        let instant = at.map(|time| time.0).or_else(|| created.checked_add(life?).ok())?;
        Timestamp::from_second(instant.as_second()).ok()
    }

    fn overlap(&mut self, spec: &Value) -> SignedDuration {
        let Some(rotation) = self.field::<Value>(spec, "spec", "rotation", "an object") else {
            return DEFAULT_OVERLAP;
        };
        let every = self.duration(&rotation, "spec.rotation", "every", duration::SHORTEST_LIFE);
        let overlap = self.duration(&rotation, "spec.rotation", "overlap", SignedDuration::ZERO);
        let longest = every.unwrap_or(duration::LONGEST);
        if overlap.is_some_and(|overlap| overlap > longest) {
            self.refuse("spec.rotation.overlap", "must not be longer than spec.rotation.every");
        }
        overlap.unwrap_or(DEFAULT_OVERLAP.min(longest))
    }

    fn delivery(&mut self, spec: &Value, name: &str) -> Delivery {
        let given = |field: &str| spec.get(field).is_some_and(|value| !value.is_null());
        let secret: Value = self.field(spec, "spec", "secret", "an object").unwrap_or_default();
        if let Some(digest) = self.field::<String>(spec, "spec", "keyHash", "a string") {
            for other in ["secret", "rotation"].into_iter().filter(|other| given(other)) {
                self.refuse(
                    "spec",
                    format!(
                        "keyHash excludes {other}: a key that was made elsewhere is neither delivered nor replaced"
                    ),
                );
            }
            match digest.parse::<Digest>() {
                Ok(digest) => return Delivery::Submitted(digest),
                Err(problem) => self.refuse("spec.keyHash", problem.to_string()),
            }
        }
        let name_rule = "must be a Secret's name: lower-case letters and digits, with - and . between them";
        let key_rule = "must be a Secret's data key: 1 to 253 letters, digits and -._, and not . or beginning with ..";
        let is_key = |text: &str| is_word(text, 253, "-._") && text != "." && !text.starts_with("..");
        Delivery::Secret {
            name: self
                .text(&secret, "spec.secret", "name", name_rule, is_dns_subdomain)
                .unwrap_or_else(|| name.to_owned()),
            key: self
                .text(&secret, "spec.secret", "key", key_rule, is_key)
                .unwrap_or_else(|| DEFAULT_SECRET_KEY.to_owned()),
        }
    }
}

/// Whether an ApiKey may have this owner.
pub fn is_owner(text: &str) -> bool {
    is_word(text, 128, "._@:/+=-")
}

/// A DNS-1123 subdomain, as the API server wants objects' names.
fn is_dns_subdomain(text: &str) -> bool {
    let is_inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    let is_label = |label: &str| {
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(is_inner)
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

/// 1 to `longest` ASCII letters, digits and `others`.
fn is_word(text: &str, longest: usize, others: &str) -> bool {
    (1..=longest).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn created() -> Timestamp {
        "2026-11-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_empty_spec_is_a_key_for_anybody_that_never_expires() {
        assert_eq!(
            read(&json!({}), "ci", created()),
            Ok(Declaration {
                owner: None,
                scopes: vec![],
                allowed_ips: None,
                suspended: false,
                expires_at: None,
                overlap: SignedDuration::from_hours(24),
                delivery: Delivery::Secret { name: "ci".into(), key: "api-key".into() },
            })
        );
    }

    #[test]
    fn expiry_counts_from_creation_and_is_cut_to_whole_seconds() {
        let expires = |spec| read(&spec, "ci", created()).unwrap().expires_at.map(|at| at.to_string());
        assert_eq!(expires(json!({"expiresIn": "1d12h"})).as_deref(), Some("2026-11-02T12:00:00Z"));
        assert_eq!(expires(json!({"expiresIn": "Never"})), None);
        assert_eq!(
            expires(json!({"expiresAt": "2026-12-01T01:00:00.9+01:00"})).as_deref(),
            Some("2026-12-01T00:00:00Z")
        );
    }

    #[test]
    fn overlap_is_a_day_or_the_shorter_period() {
        let overlap = |rotation| read(&json!({ "rotation": rotation }), "ci", created()).unwrap().overlap;
        assert_eq!(overlap(json!({"every": "30d"})), SignedDuration::from_hours(24));
        assert_eq!(overlap(json!({"every": "1h"})), SignedDuration::from_hours(1));
        assert_eq!(overlap(json!({"overlap": "0s"})), SignedDuration::ZERO);
    }

    #[test]
    fn every_problem_is_said_with_its_path() {
        let said = |spec: Value| {
            read(&spec, "ci", created()).unwrap_err().iter().map(|problem| problem.path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(said(json!("text")), ["spec"]);
        for (spec, path) in [
            (json!({"displayName": "a\tb"}), "spec.displayName"),
            (json!({"displayName": 7}), "spec.displayName"),
            (json!({"description": "a\rb"}), "spec.description"),
            (json!({"owner": "a b"}), "spec.owner"),
            (json!({"scopes": ["ok", "not ok"]}), "spec.scopes[1]"),
            (json!({"scopes": "all"}), "spec.scopes"),
            (json!({"scopes": ["a", "b", "a"]}), "spec.scopes[2]"),
            (json!({"scopes": (0..33).map(|n| n.to_string()).collect::<Vec<_>>()}), "spec.scopes"),
            (json!({"allowedIPs": ["10.0.0.0/8", "10.0.0.1/8"]}), "spec.allowedIPs[1]"),
            (json!({"allowedIPs": []}), "spec.allowedIPs"),
            (json!({"allowedIPs": "10.0.0.1"}), "spec.allowedIPs"),
            (json!({"allowedIPs": ["10.0.0.1", "10.0.0.1/32"]}), "spec.allowedIPs[1]"),
            (json!({"suspended": "yes"}), "spec.suspended"),
            (json!({"expiresIn": "30s"}), "spec.expiresIn"),
            (json!({"expiresIn": "soon"}), "spec.expiresIn"),
            (json!({"expiresAt": "soon"}), "spec.expiresAt"),
            (json!({"expiresIn": "1d", "expiresAt": "2027-01-01T00:00:00Z"}), "spec"),
            (json!({"rotation": {"every": "1s"}}), "spec.rotation.every"),
            (json!({"rotation": {"every": "1h", "overlap": "2h"}}), "spec.rotation.overlap"),
            (json!({"secret": {"name": "a/b"}}), "spec.secret.name"),
            (json!({"secret": {"name": "Ci"}}), "spec.secret.name"),
            (json!({"secret": {"name": "a..b"}}), "spec.secret.name"),
            (json!({"secret": {"name": "-a"}}), "spec.secret.name"),
            (json!({"secret": {"name": "a".repeat(254)}}), "spec.secret.name"),
            (json!({"secret": {"key": ""}}), "spec.secret.key"),
            (json!({"secret": {"key": "."}}), "spec.secret.key"),
            (json!({"secret": {"key": "..a"}}), "spec.secret.key"),
            (json!({"keyHash": "sha256:00"}), "spec.keyHash"),
            (json!({"keyHash": format!("sha256:{}", "0".repeat(64)), "secret": {}}), "spec"),
            (json!({"keyHash": format!("sha256:{}", "0".repeat(64)), "rotation": {}}), "spec"),
        ] {
            assert_eq!(said(spec.clone()), [path], "{spec}");
        }
        assert_eq!(said(json!({"owner": "a b", "expiresIn": "x"})), ["spec.owner", "spec.expiresIn"]);
    }

    #[test]
    fn a_problem_names_the_rule_and_what_was_written() {
        for (spec, said) in [
            (json!({"owner": "Ada L"}), r#"spec.owner: must be 1 to 128 letters, digits and ._@:/+=-, not "Ada L""#),
            (json!({"owner": 7}), "spec.owner: must be a string: put it in quotes"),
            (json!({"owner": ["ada"]}), "spec.owner: must be a string"),
            (
                json!({"displayName": "a\tb"}),
                r#"spec.displayName: must be 1 to 128 characters, none of them a control character, not "a\tb""#,
            ),
            (
                json!({"expiresIn": "never"}),
                r#"spec.expiresIn: must be Never or a duration such as 1d, 30d, 90d or 1d12h, from 1m to 3650d, not "never""#,
            ),
            (
                json!({"rotation": {"every": "1w"}}),
                r#"spec.rotation.every: must be numbers with the units d, h, m or s, such as 90d, 1d12h or 10m, not "1w""#,
            ),
            (json!({"rotation": {"every": "1s"}}), r#"spec.rotation.every: must be at least 1m, not "1s""#),
            (
                json!({"secret": {"name": "Ci"}}),
                r#"spec.secret.name: must be a Secret's name: lower-case letters and digits, with - and . between them, not "Ci""#,
            ),
            (json!({"scopes": ["a", "a"]}), "spec.scopes[1]: is the same as spec.scopes[0]; remove one of them"),
        ] {
            let problems = read(&spec, "ci", created()).unwrap_err();
            assert_eq!(problems.iter().map(Problem::to_string).collect::<Vec<_>>(), [said]);
        }
    }
}
