//! What a person has typed: the spec that it makes, and the problems that it has, by the core's own parsers.

use jiff::Timestamp;
use keywright_core::address::{AllowedAddresses, ListRefusal};
use keywright_core::declaration::{self, DEFAULT_SECRET_KEY};
use keywright_core::key::Digest;
use keywright_core::words::Owner;
use keywright_core::{date_time, duration};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Problems of one list that are shown at once.
const MOST: usize = 3;
/// What stands for a digest that is not there yet.
const DIGEST_TO_COME: &str = "sha256:(known once the key is made)";

/// What is typed into the dialog that creates a key.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NewKey {
    /// Where.
    pub namespace: String,
    /// The object's name, where it was typed. Otherwise it is made of the displayed one.
    pub name: Option<String>,
    /// The name for people.
    pub display_name: String,
    description: String,
    /// Who answers for it. Empty: whoever creates it.
    pub owner: String,
    expires: String,
    addresses: String,
    /// How it gets to whoever uses it.
    #[serde(default)]
    pub deliver: Deliver,
}

/// How a key gets to whoever uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Deliver {
    /// Keywright makes it and puts it into a Secret.
    #[default]
    Secret,
    /// It is made here, shown once, and only its digest is kept.
    Once,
}

/// What is typed to change a key. What is absent stays.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Edit {
    /// The ApiKey that is meant, and no other one of its name.
    pub uid: String,
    /// `metadata.generation` of what the person has seen, where what is there is typed over.
    pub generation: Option<i64>,
    description: Option<String>,
    expires: Option<String>,
    addresses: Option<String>,
    suspended: Option<bool>,
}

/// What is wrong with a field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The field: `name`, `display_name`, `description`, `owner`, `expires`, `addresses`. Empty: the whole.
    pub field: &'static str,
    /// What is wrong, and what to do.
    pub words: String,
    /// The entry of a list, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// What was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
    /// Nothing is wrong yet: it is still empty.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub missing: bool,
}

/// What a form comes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Checked {
    /// The object's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// When the key would end, in seconds.
    pub expires_at: Option<i64>,
    /// The object, for Git.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub manifest: String,
    /// `spec`, or the change of it.
    #[serde(skip)]
    pub spec: Value,
}

impl NewKey {
    /// Reads the form. `digest` is that of the key that was made for it, if one was.
    pub fn check(&self, digest: Option<&Digest>, now: Timestamp) -> Checked {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => object_name(&self.display_name),
        };
        let (spec, mut problems) = self.spec(&name, digest);
        let shown = json!({"secret": {"name": name}});
        problems.extend(read(&spec, &name, now));
        match () {
            () if self.display_name.is_empty() && self.name.is_none() => {
                problems.push(Problem {
                    field: "display_name",
                    words: "Give it a name.".to_owned(),
                    missing: true,
                    ..Problem::default()
                });
            }
            () if name.is_empty() => {
                problems.push(Problem::of("name", "It needs an object name: press Edit and give it one."))
            }
            // A Secret's name has the grammar of an ApiKey's.
            () => problems
                .extend(read(&shown, &name, now).into_iter().map(|problem| Problem { field: "name", ..problem })),
        }
        let expires_at = declaration::read(
            &json!({"expiresIn": spec.get("expiresIn"), "expiresAt": spec.get("expiresAt")}),
            &name,
            now,
        );
        let expires_at = expires_at.ok().and_then(|read| read.expires_at);
        if expires_at.is_some_and(|end| end <= now) {
            problems.push(Problem::of("expires", "The end has passed: choose a later one."));
        }
        let expires_at = expires_at.map(Timestamp::as_second);
        let manifest = serde_yaml::to_string(&self.object(&name, &spec)).unwrap_or_default();
        Checked { name, problems, expires_at, manifest, spec }
    }

    /// The object as it is sent.
    pub fn object(&self, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "keywright.dev/v1alpha1",
            "kind": "ApiKey",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        })
    }

    fn spec(&self, name: &str, digest: Option<&Digest>) -> (Value, Vec<Problem>) {
        let mut spec = Map::new();
        for (field, text) in
            [("displayName", &self.display_name), ("description", &self.description), ("owner", &self.owner)]
        {
            if !text.is_empty() && (field != "displayName" || text != name) {
                spec.insert(field.to_owned(), json!(text));
            }
        }
        let field = if date_time::parse(&self.expires).is_some() { "expiresAt" } else { "expiresIn" };
        spec.insert(field.to_owned(), json!(self.expires));
        let (entries, problems) = addresses(&self.addresses);
        if !entries.is_empty() {
            spec.insert("allowedIPs".to_owned(), json!(entries));
        }
        if self.deliver == Deliver::Once {
            let digest = digest.map_or_else(|| DIGEST_TO_COME.to_owned(), Digest::to_string);
            spec.insert("keyHash".to_owned(), json!(digest));
        }
        (spec.into(), problems)
    }
}

impl Edit {
    /// Reads the form: a merge patch of the spec.
    pub fn check(&self, now: Timestamp) -> Checked {
        let mut spec = Map::new();
        let mut problems = Vec::new();
        if let Some(text) = &self.description {
            spec.insert("description".to_owned(), if text.is_empty() { Value::Null } else { json!(text) });
        }
        if let Some(suspended) = self.suspended {
            spec.insert("suspended".to_owned(), json!(suspended));
        }
        if let Some(text) = &self.addresses {
            let (entries, refused) = addresses(text);
            problems.extend(refused);
            spec.insert("allowedIPs".to_owned(), if entries.is_empty() { Value::Null } else { json!(entries) });
        }
        if let Some(text) = &self.expires {
            let (expires_in, expires_at) = new_end(text, now);
            spec.insert("expiresIn".to_owned(), expires_in);
            spec.insert("expiresAt".to_owned(), expires_at);
        }
        let spec = Value::Object(spec);
        problems.extend(read(&spec, "", now));
        let expires_at =
            declaration::read(&spec, "", now).ok().and_then(|read| read.expires_at).map(Timestamp::as_second);
        Checked { problems, expires_at, spec, ..Checked::default() }
    }
}

impl Problem {
    /// A problem of a field.
    pub fn of(field: &'static str, words: &str) -> Self {
        Self { field, words: words.to_owned(), ..Self::default() }
    }

    /// The problem that the path of a field has: `spec.owner`.
    pub fn at(path: &str, rule: &str) -> Self {
        let (field, label) = match path.split(['.', '[']).nth(1).unwrap_or_default() {
            "displayName" => ("display_name", "The name"),
            "description" => ("description", "The description"),
            "owner" => ("owner", "The owner"),
            "expiresIn" | "expiresAt" => ("expires", "The end"),
            "allowedIPs" => ("addresses", "The list"),
            "name" | "secret" => ("name", "The object name"),
            _ => ("", path),
        };
        let rule = rule.trim_end_matches('.');
        match rule.strip_prefix("this looks like") {
            Some(what) => Self::of(field, &format!("{label} looks like{what}.")),
            None => Self::of(field, &format!("{label} {rule}.")),
        }
    }
}

/// The owner that a new key has unless somebody types another: the user, where that is a word that fits.
pub fn usual_owner(user: &str) -> Option<&str> {
    Owner::parse(user).map(Owner::as_str)
}

/// How a container takes the key from its Secret.
pub fn snippet(secret: &str) -> String {
    format!(
        "env:\n  - name: API_KEY\n    valueFrom:\n      secretKeyRef:\n        name: {secret}\n        key: {DEFAULT_SECRET_KEY}\n"
    )
}

/// An object name for a displayed one: `Nightly CI` is `nightly-ci`.
fn object_name(display_name: &str) -> String {
    let lower = display_name.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut name = words.collect::<Vec<_>>().join("-");
    name.truncate(63);
    name.trim_end_matches('-').to_owned()
}

/// The canonical entries in a text, and what is wrong with it.
fn addresses(text: &str) -> (Vec<String>, Vec<Problem>) {
    let entries: Vec<_> =
        text.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty()).collect();
    match AllowedAddresses::parse(&entries) {
        Ok(allowed) => (allowed.canonical_entries(), Vec::new()),
        Err(_) if entries.is_empty() => (Vec::new(), Vec::new()),
        Err(refusals) => {
            let problems = refusals.iter().take(MOST).map(address_problem).collect();
            (entries.into_iter().map(str::to_owned).collect(), problems)
        }
    }
}

fn address_problem(refusal: &ListRefusal) -> Problem {
    let (words, suggestion) = match refusal {
        ListRefusal::Entry { index, refusal } => {
            let said = refusal.to_string();
            let said = said.strip_prefix(&format!("\"{}\" ", refusal.entry())).unwrap_or(&said);
            let (problem, remedy) = said.rsplit_once("; ").unwrap_or((said, ""));
            let entry = index + 1;
            match refusal.suggestion() {
                Some(suggestion) => (format!("Entry {entry} {problem}."), Some(suggestion.to_owned())),
                None => (format!("Entry {entry} {problem}: {remedy}."), None),
            }
        }
        ListRefusal::Duplicate { index, first, network } => {
            (format!("Entries {} and {} are both {network}: remove one of them.", first + 1, index + 1), None)
        }
        other => (format!("The addresses: {other}."), None),
    };
    Problem { field: "addresses", words, index: refusal.index(), suggestion, missing: false }
}

/// What the core says, but for addresses, which have been looked at, and for a digest that is still to come.
fn read(spec: &Value, name: &str, now: Timestamp) -> Vec<Problem> {
    let mut read = spec.clone();
    if let Some(fields) = read.as_object_mut() {
        fields.remove("allowedIPs");
        fields.remove("keyHash");
    }
    let problems = declaration::read(&read, name, now).err().unwrap_or_default();
    let mut problems: Vec<_> = problems.iter().map(|problem| Problem::at(&problem.path, &problem.rule)).collect();
    for problem in problems.iter_mut().filter(|problem| problem.field == "expires") {
        if spec.get("expiresIn").is_some_and(|text| text == "") {
            problem.words = "Choose a date and a time.".to_owned();
        }
    }
    problems
}

/// `expiresIn` and `expiresAt` for a new end: a life counts from now, not from the creation.
fn new_end(text: &str, now: Timestamp) -> (Value, Value) {
    match duration::parse(text).ok().and_then(|life| now.checked_add(life).ok()) {
        Some(end) => (Value::Null, json!(end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())),
        None if date_time::parse(text).is_some() => (Value::Null, json!(text)),
        None => (json!(text), Value::Null),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-29T13:05:00Z".parse().unwrap()
    }

    fn form(change: &Value) -> NewKey {
        let mut form = json!({
            "namespace": "team-a", "name": null, "display_name": "Nightly CI", "description": "", "owner": "ann@x", "expires": "90d",
            "addresses": "", "deliver": "secret",
        });
        for (field, value) in change.as_object().unwrap() {
            form[field] = value.clone();
        }
        serde_json::from_value(form).unwrap()
    }

    #[test]
    fn a_form_becomes_an_object() {
        let checked = form(&json!({"addresses": "10.0.0.0/8 ,2001:DB8::1\n"})).check(None, now());
        assert_eq!(checked.problems, []);
        assert_eq!(checked.expires_at, Some(now().as_second() + 90 * 86_400));
        let manifest = "apiVersion: keywright.dev/v1alpha1\nkind: ApiKey\nmetadata:\n  name: nightly-ci\n  namespace: team-a\nspec:\n  \
            allowedIPs:\n  - 10.0.0.0/8\n  - 2001:db8::1/128\n  displayName: Nightly CI\n  expiresIn: 90d\n  owner: ann@x\n";
        assert_eq!(checked.manifest, manifest);
    }

    #[test]
    fn a_key_that_is_shown_once_leaves_its_digest() {
        let once = form(&json!({"deliver": "once", "expires": "Never"}));
        assert_eq!(once.check(None, now()).spec["keyHash"], DIGEST_TO_COME);
        let digest = Digest::of(b"key");
        let checked = once.check(Some(&digest), now());
        assert_eq!((&checked.spec["keyHash"], checked.expires_at), (&json!(digest.to_string()), None));
        assert_eq!(checked.problems, []);
    }

    #[test]
    fn each_problem_stands_at_its_field() {
        for (change, field, words, suggestion) in [
            (
                json!({"addresses": "10.0.0.1/8, 2001:db8::1"}),
                "addresses",
                "Entry 1 has host bits set.",
                Some("10.0.0.0/8"),
            ),
            (
                json!({"addresses": "10.0.0.1, 10.0.0.1/32"}),
                "addresses",
                "Entries 1 and 2 are both 10.0.0.1/32: remove one of them.",
                None,
            ),
            (
                json!({"addresses": "home"}),
                "addresses",
                "Entry 1 has a character that no IP address or CIDR has: write an address such as 192.0.2.1 or a CIDR such as 192.0.2.0/24.",
                None,
            ),
            (json!({"display_name": ""}), "display_name", "Give it a name.", None),
            (json!({"display_name": "鍵"}), "name", "It needs an object name: press Edit and give it one.", None),
            (
                json!({"owner": "ann b"}),
                "owner",
                "The owner must be 1 to 128 ASCII letters, digits and ._@:/+=-, without spaces, not \"ann b\".",
                None,
            ),
            (json!({"expires": ""}), "expires", "Choose a date and a time.", None),
        ] {
            let problems = form(&change).check(None, now()).problems;
            let [problem] = &problems[..] else { panic!("{change}: {problems:?}") };
            let said = (problem.field, &*problem.words, problem.suggestion.as_deref());
            assert_eq!(said, (field, words, suggestion), "{change}");
        }
        let named = form(&json!({"name": "Nightly CI"})).check(None, now()).problems;
        assert_eq!(named.iter().map(|problem| problem.field).collect::<Vec<_>>(), ["name"], "{named:?}");
        let key = format!("keyw1_{}", "a".repeat(49));
        let leaked = serde_json::to_string(&form(&json!({"owner": key})).check(None, now()).problems).unwrap();
        assert!(leaked.contains("looks like a key") && !leaked.contains(&key), "{leaked}");
    }

    #[test]
    fn an_object_name_is_made_of_the_displayed_one() {
        let long = "x".repeat(80);
        for (display_name, name) in [
            ("Nightly CI", "nightly-ci"),
            ("  A/B  test_2 ", "a-b-test-2"),
            ("Zoë", "zo"),
            ("鍵", ""),
            (&long, &long[..63]),
        ] {
            assert_eq!(object_name(display_name), name);
        }
    }

    #[test]
    fn a_change_says_what_goes_and_what_comes() {
        let edit = |change: Value| serde_json::from_value::<Edit>(change).unwrap().check(now());
        for (change, spec) in [
            (json!({"uid": "u", "expires": "30d"}), json!({"expiresIn": null, "expiresAt": "2026-12-29T13:05:00Z"})),
            (json!({"uid": "u", "expires": "Never"}), json!({"expiresIn": "Never", "expiresAt": null})),
            (
                json!({"uid": "u", "expires": "2027-01-31T00:00:00Z"}),
                json!({"expiresIn": null, "expiresAt": "2027-01-31T00:00:00Z"}),
            ),
            (json!({"uid": "u", "addresses": " "}), json!({"allowedIPs": null})),
            (json!({"uid": "u", "addresses": "10.0.0.7"}), json!({"allowedIPs": ["10.0.0.7/32"]})),
            (json!({"uid": "u", "description": ""}), json!({"description": null})),
            (json!({"uid": "u", "suspended": true}), json!({"suspended": true})),
        ] {
            let checked = edit(change.clone());
            assert_eq!((checked.spec, checked.problems), (spec, vec![]), "{change}");
        }
        assert_eq!(edit(json!({"uid": "u", "expires": ""})).problems[0].words, "Choose a date and a time.");
    }
}
