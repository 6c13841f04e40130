//! PURE. The records trusted now: from a key's digest to what a decision needs to know of the key.
//!
//! A [`Keyring`] is a persistent value: a clone shares everything with its original, and a change copies one shard.
//! So the feed keeps a working copy, publishes clones of it, and no reader ever waits.
//!
//! Every doubt about a record closes that record's key, and no other: a record that cannot be read, and two records
//! that claim the same digest, refuse.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde_json::Value;

use crate::address::AllowedAddresses;
use crate::api::{ApiKeyReference, Revocation};
use crate::key::{Digest, Prefix};

/// The records trusted now.
#[derive(Clone, Default)]
pub struct Keyring {
    /// Every record that claims a digest; never empty.
    claims: Shards<Digest, Arc<[Claim]>>,
    /// The digest that a record claims, by the record's name.
    digests: Shards<Arc<str>, Digest>,
}

/// What a decision needs to know of one key.
///
/// All texts are ASCII without spaces and control characters, fit for a header; `scopes` has single spaces in between.
#[derive(Debug, PartialEq)]
pub struct Entry {
    /// Namespace of the ApiKey.
    pub namespace: Box<str>,
    /// Name of the ApiKey.
    pub name: Box<str>,
    /// The person of responsibility; empty if there is none.
    pub owner: Box<str>,
    /// What the key is good for, separated by spaces; empty if nothing in particular.
    pub scopes: Box<str>,
    /// How people recognise the key; absent for a key that was made elsewhere.
    pub prefix: Option<Prefix>,
    /// The client addresses that may use the key; absent means any.
    pub allowed_addresses: Option<Box<AllowedAddresses>>,
    /// The instant from which the key is refused; absent means never.
    pub not_after: Option<Timestamp>,
    /// Refused for as long as this is true.
    pub suspended: bool,
    /// Refused for ever.
    pub revoked: bool,
}

/// Why the keyring vouches for no key with a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untrusted {
    /// No record claims it.
    Absent,
    /// The record that claims it cannot be read.
    Unreadable,
    /// Several records claim it and none of them is revoked. Picking one would let whoever writes a second record
    /// widen what the first one allows.
    Ambiguous,
}

/// Why a record's key is refused, whatever else the record says. Repeats no value, as it may be a key in the wrong
/// place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// A field that has to be there is not.
    #[error("spec.{0} is missing: the key is refused until the record is complete")]
    Missing(&'static str),
    /// A field holds what it cannot hold.
    #[error("spec.{0} cannot be read: the key is refused until the record is corrected")]
    Unreadable(&'static str),
    /// Another record claims the same key.
    #[error("spec.digest is claimed by record {0} too: the key is refused until one of the two is gone")]
    Ambiguous(Arc<str>),
}

/// One record's claim to a digest.
#[derive(Clone)]
struct Claim {
    record: Arc<str>,
    /// `None`: the record cannot be read.
    entry: Option<Arc<Entry>>,
}

/// A map in 1024 parts, each shared with every clone until it is changed: at 100 000 keys a change copies about 100
/// entries. The hash is seeded, because the digest of a key made elsewhere is its maker's choice.
#[derive(Clone)]
struct Shards<K, V> {
    shards: Box<[Arc<HashMap<K, V>>]>,
    hasher: RandomState,
}

const SHARDS: usize = 1024;

impl Keyring {
    /// Takes in a record that is new or has changed: `record` is its object name, `spec` what the API server sent.
    ///
    /// # Errors
    /// Why the record's key is refused for now. The keyring has taken that in.
    pub fn upsert(&mut self, record: &str, spec: &Value) -> Result<(), Distrust> {
        self.remove(record);
        let digest: &str = required(spec, "digest")?;
        let digest: Digest = digest.parse().map_err(|_| Distrust::Unreadable("digest"))?;
        let (entry, readable) = match Entry::try_from(spec) {
            Ok(entry) => (Some(Arc::new(entry)), Ok(())),
            Err(distrust) => (None, Err(distrust)),
        };
        let record: Arc<str> = record.into();
        self.digests.insert(Arc::clone(&record), digest);
        let claim = Claim { record, entry };
        let claims: Arc<[Claim]> = self.claims_to(&digest).iter().cloned().chain([claim]).collect();
        self.claims.insert(digest, claims);
        readable?;
        match (self.get(&digest), self.claims_to(&digest)) {
            (Err(Untrusted::Ambiguous), [rival, ..]) => Err(Distrust::Ambiguous(Arc::clone(&rival.record))),
            _ => Ok(()),
        }
    }

    /// Forgets a record that is gone. Does nothing if there is none of that name.
    pub fn remove(&mut self, record: &str) {
        let Some(digest) = self.digests.remove(record) else {
            return;
        };
        let claims = self.claims_to(&digest).iter();
        let others: Arc<[Claim]> = claims.filter(|claim| &*claim.record != record).cloned().collect();
        if others.is_empty() {
            self.claims.remove(&digest);
        } else {
            self.claims.insert(digest, others);
        }
    }

    /// What there is to know of the key with this digest. Of several claims, one that is revoked wins: a revoked key
    /// stays revoked.
    ///
    /// # Errors
    /// If no entry can be relied on; the key is then to be refused.
    pub fn get(&self, digest: &Digest) -> Result<&Entry, Untrusted> {
        let claims = self.claims_to(digest);
        let mut entries = claims.iter().filter_map(|claim| claim.entry.as_deref());
        match (entries.find(|entry| entry.revoked), claims) {
            (Some(revoked), _) => Ok(revoked),
            (None, []) => Err(Untrusted::Absent),
            (None, [claim]) => claim.entry.as_deref().ok_or(Untrusted::Unreadable),
            (None, _) => Err(Untrusted::Ambiguous),
        }
    }

    /// Number of records with a readable digest.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether there are no such records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn claims_to(&self, digest: &Digest) -> &[Claim] {
        self.claims.get(digest).map(Arc::as_ref).unwrap_or_default()
    }
}

impl TryFrom<&Value> for Entry {
    type Error = Distrust;

    /// Reads a record's spec. Fields that a decision does not need are not looked at.
    fn try_from(spec: &Value) -> Result<Self, Distrust> {
        let api_key: ApiKeyReference = required(spec, "apiKey")?;
        check("apiKey", is_word(&api_key.namespace, 63, b"-") && is_word(&api_key.name, 253, b"-."))?;
        let owner: Option<&str> = optional(spec, "owner")?;
        check("owner", owner.is_none_or(|owner| is_word(owner, 128, b"._@:/+=-")))?;
        let scopes: Vec<&str> = optional(spec, "scopes")?.unwrap_or_default();
        check("scopes", scopes.iter().all(|scope| is_word(scope, 64, b"._:/-")))?;
        let prefix: Option<&str> = optional(spec, "keyPrefix")?;
        let allowed_ips: Option<Vec<&str>> = optional(spec, "allowedIPs")?;
        let not_after: Option<Time> = optional(spec, "notAfter")?;
        let revoked: Option<Revocation> = optional(spec, "revoked")?;
        Ok(Self {
            namespace: api_key.namespace.into(),
            name: api_key.name.into(),
            owner: owner.unwrap_or_default().into(),
            scopes: scopes.join(" ").into(),
            prefix: prefix.map(str::parse).transpose().map_err(|_| Distrust::Unreadable("keyPrefix"))?,
            allowed_addresses: allowed_ips.as_deref().map(allowed_addresses).transpose()?,
            not_after: not_after.map(|time| time.0),
            suspended: optional(spec, "suspended")?.unwrap_or_default(),
            revoked: revoked.is_some(),
        })
    }
}

impl Entry {
    /// Whether the key has this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.split_ascii_whitespace().any(|own| own == scope)
    }
}

impl Untrusted {
    /// The word that stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Unreadable => "unreadable",
            Self::Ambiguous => "ambiguous",
        }
    }
}

/// Whether `text` is 1 to `longest` ASCII letters, digits and octets of `marks`.
pub(crate) fn is_word(text: &str, longest: usize, marks: &[u8]) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || marks.contains(&octet))
}

/// The CRD's schema says the same of these texts; here it keeps a record from writing headers of its own, or from
/// having two scopes where it says one.
fn check(field: &'static str, is_fit: bool) -> Result<(), Distrust> {
    if is_fit { Ok(()) } else { Err(Distrust::Unreadable(field)) }
}

fn allowed_addresses(entries: &[&str]) -> Result<Box<AllowedAddresses>, Distrust> {
    AllowedAddresses::parse(entries).map(Box::new).map_err(|_| Distrust::Unreadable("allowedIPs"))
}

fn required<'v, T: Deserialize<'v>>(spec: &'v Value, field: &'static str) -> Result<T, Distrust> {
    optional(spec, field)?.ok_or(Distrust::Missing(field))
}

/// An explicit `null` is not absence: the API server never stores one, so something else is wrong.
fn optional<'v, T: Deserialize<'v>>(spec: &'v Value, field: &'static str) -> Result<Option<T>, Distrust> {
    spec.get(field).map(T::deserialize).transpose().map_err(|_| Distrust::Unreadable(field))
}

impl<K: Eq + Hash + Clone, V: Clone> Shards<K, V> {
    fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards.get(self.index(key))?.get(key)
    }

    fn insert(&mut self, key: K, value: V) {
        let index = self.index(&key);
        if let Some(shard) = self.shards.get_mut(index) {
            Arc::make_mut(shard).insert(key, value);
        }
    }

    fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let index = self.index(key);
        let shard = self.shards.get_mut(index)?;
        if !shard.contains_key(key) {
            return None;
        }
        Arc::make_mut(shard).remove(key)
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len()).sum()
    }

    fn index<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }
}

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        Self { shards: vec![Arc::default(); SHARDS].into(), hasher: RandomState::new() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::of(&[number])
    }

    fn record() -> Value {
        json!({
            "digest": digest(1).to_string(),
            "keyPrefix": "keyw1_eVULq19j",
            "apiKey": { "namespace": "team-a", "name": "billing.v2", "uid": "b0e7" },
            "serial": 1,
            "owner": "jane@example.com",
            "scopes": ["orders:read", "orders:write"],
            "allowedIPs": ["10.0.0.0/8"],
            "notAfter": "2030-01-02T03:04:05Z",
            "suspended": true,
            "revoked": { "at": "2026-01-01T00:00:00Z", "reason": "Deleted" },
            "rotateRequest": "",
        })
    }

    #[test]
    fn a_record_is_read_whole() {
        let mut keyring = Keyring::default();
        keyring.upsert("r-1", &record()).unwrap();
        let expected = Entry {
            namespace: "team-a".into(),
            name: "billing.v2".into(),
            owner: "jane@example.com".into(),
            scopes: "orders:read orders:write".into(),
            prefix: Some("keyw1_eVULq19j".parse().unwrap()),
            allowed_addresses: Some(Box::new(AllowedAddresses::parse(&["10.0.0.0/8"]).unwrap())),
            not_after: Some("2030-01-02T03:04:05Z".parse().unwrap()),
            suspended: true,
            revoked: true,
        };
        assert_eq!(keyring.get(&digest(1)), Ok(&expected));
        assert_eq!(keyring.get(&digest(2)), Err(Untrusted::Absent));
        assert_eq!(keyring.len(), 1);
    }

    #[test]
    fn what_may_be_absent_may_be_absent() {
        let mut keyring = Keyring::default();
        let spec = json!({
            "digest": digest(1).to_string(),
            "apiKey": { "namespace": "a", "name": "b", "uid": "c" },
            "fieldOfALaterVersion": { "any": "thing" },
        });
        keyring.upsert("r-1", &spec).unwrap();
        let entry = keyring.get(&digest(1)).unwrap();
        assert_eq!((&*entry.owner, &*entry.scopes, entry.prefix), ("", "", None));
        assert_eq!((entry.not_after, entry.suspended, entry.revoked), (None, false, false));
        assert!(entry.allowed_addresses.is_none() && !entry.has_scope(""));
    }

    /// One field changed to what it cannot be: that key is refused and told apart, and its neighbour stays good.
    #[test]
    fn a_record_that_cannot_be_read_refuses_its_own_key_alone() {
        let cases = [
            ("digest", json!(null), Untrusted::Absent),
            ("digest", json!(7), Untrusted::Absent),
            ("digest", json!("sha256:abc"), Untrusted::Absent),
            ("digest", json!(digest(1).to_string().to_uppercase()), Untrusted::Absent),
            ("apiKey", json!(null), Untrusted::Unreadable),
            ("apiKey", json!("a/b"), Untrusted::Unreadable),
            ("apiKey", json!({ "namespace": "a", "uid": "c" }), Untrusted::Unreadable),
            ("apiKey", json!({ "namespace": "", "name": "b", "uid": "c" }), Untrusted::Unreadable),
            ("apiKey", json!({ "namespace": "a", "name": "b\r\nx: y", "uid": "c" }), Untrusted::Unreadable),
            ("owner", json!("bob\r\nX-Admin: 1"), Untrusted::Unreadable),
            ("owner", json!("bob smith"), Untrusted::Unreadable),
            ("owner", json!("b\u{f6}b"), Untrusted::Unreadable),
            ("owner", json!(""), Untrusted::Unreadable),
            ("owner", json!("x".repeat(129)), Untrusted::Unreadable),
            ("owner", json!(["bob"]), Untrusted::Unreadable),
            ("scopes", json!("orders:read"), Untrusted::Unreadable),
            ("scopes", json!(["orders:read admin"]), Untrusted::Unreadable),
            ("scopes", json!(["a\u{0}"]), Untrusted::Unreadable),
            ("scopes", json!([""]), Untrusted::Unreadable),
            ("scopes", json!([1]), Untrusted::Unreadable),
            ("keyPrefix", json!("keyw1_eVULq19jg"), Untrusted::Unreadable),
            ("keyPrefix", json!(1), Untrusted::Unreadable),
            ("allowedIPs", json!([]), Untrusted::Unreadable),
            ("allowedIPs", json!(null), Untrusted::Unreadable),
            ("allowedIPs", json!("10.0.0.0/8"), Untrusted::Unreadable),
            ("allowedIPs", json!(["10.0.0.1/8"]), Untrusted::Unreadable),
            ("allowedIPs", json!(["10.0.0.0/8", "010.0.0.0/8"]), Untrusted::Unreadable),
            ("notAfter", json!("tomorrow"), Untrusted::Unreadable),
            ("notAfter", json!(1893553445), Untrusted::Unreadable),
            ("notAfter", json!(null), Untrusted::Unreadable),
            ("suspended", json!("false"), Untrusted::Unreadable),
            ("suspended", json!(null), Untrusted::Unreadable),
            ("revoked", json!(false), Untrusted::Unreadable),
            ("revoked", json!(null), Untrusted::Unreadable),
            ("revoked", json!({}), Untrusted::Unreadable),
        ];
        let mut neighbour = record();
        neighbour["digest"] = json!(digest(2).to_string());
        for (field, value, expected) in cases {
            let mut spec = record();
            spec[field] = value.clone();
            let mut keyring = Keyring::default();
            keyring.upsert("r-2", &neighbour).unwrap();
            keyring.upsert("r-1", &record()).unwrap();
            let distrust = keyring.upsert("r-1", &spec).unwrap_err();
            assert_eq!(distrust, Distrust::Unreadable(field), "{field}: {value}");
            assert_eq!(keyring.get(&digest(1)), Err(expected), "{field}: {value}");
            assert!(keyring.get(&digest(2)).is_ok(), "{field}: {value}");
        }
        for field in ["digest", "apiKey"] {
            let mut spec = record();
            spec.as_object_mut().unwrap().remove(field);
            assert_eq!(Keyring::default().upsert("r-1", &spec), Err(Distrust::Missing(field)));
        }
        assert_eq!(Keyring::default().upsert("r-1", &Value::Null), Err(Distrust::Missing("digest")));
    }

    #[test]
    fn the_second_claim_to_a_digest_is_told_with_the_first() {
        let mut keyring = Keyring::default();
        let mut spec = record();
        spec.as_object_mut().unwrap().remove("revoked");
        keyring.upsert("r-1", &spec).unwrap();
        assert_eq!(keyring.upsert("r-2", &spec), Err(Distrust::Ambiguous("r-1".into())));
        assert_eq!(keyring.get(&digest(1)), Err(Untrusted::Ambiguous));
        assert_eq!(keyring.upsert("r-2", &record()), Ok(()));
        assert!(keyring.get(&digest(1)).is_ok_and(|entry| entry.revoked));
    }

    /// What a record of the model says.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Good,
        Revoked,
        Unreadable,
        WithoutDigest,
    }

    /// A record's name, and its new digest and kind, or `None` if it is removed.
    type Change = (u8, Option<(u8, Kind)>);

    type Model = BTreeMap<u8, (u8, Kind)>;

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let kinds = [Kind::Good, Kind::Good, Kind::Revoked, Kind::Unreadable, Kind::WithoutDigest];
        let version = (0..4_u8, proptest::sample::select(kinds.to_vec()));
        proptest::collection::vec((0..6_u8, proptest::option::weighted(0.7, version)), 0..60)
    }

    fn make(keyring: &mut Keyring, model: &mut Model, (name, version): Change) {
        let record = format!("r-{name}");
        model.remove(&name);
        let Some((number, kind)) = version else {
            return keyring.remove(&record);
        };
        let mut spec = json!({
            "digest": digest(number).to_string(),
            "apiKey": { "namespace": "a", "name": record, "uid": "c" },
        });
        match kind {
            Kind::Good => {}
            Kind::Revoked => spec["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" }),
            Kind::Unreadable => spec["suspended"] = json!("?"),
            Kind::WithoutDigest => spec["digest"] = json!("?"),
        }
        if kind != Kind::WithoutDigest {
            model.insert(name, (number, kind));
        }
        keyring.upsert(&record, &spec).ok();
    }

    /// What is to be said of a digest, from all records at once. `Ok` names the record, which for several that are
    /// revoked may be any.
    fn expected(model: &Model, number: u8) -> Result<Vec<String>, Untrusted> {
        let claims: Vec<_> = model.iter().filter(|(_, (claimed, _))| *claimed == number).collect();
        let named = |kind| claims.iter().filter(move |(_, (_, own))| *own == kind).map(|(name, _)| format!("r-{name}"));
        let revoked: Vec<String> = named(Kind::Revoked).collect();
        match claims.len() {
            0 => Err(Untrusted::Absent),
            _ if !revoked.is_empty() => Ok(revoked),
            1 => named(Kind::Good).next().map(|name| vec![name]).ok_or(Untrusted::Unreadable),
            _ => Err(Untrusted::Ambiguous),
        }
    }

    proptest! {
        #[test]
        fn a_keyring_is_as_good_as_reading_all_records_anew(changes in changes()) {
            let (mut keyring, mut model) = (Keyring::default(), Model::new());
            let mut past = Vec::new();
            for change in changes {
                make(&mut keyring, &mut model, change);
                past.push((keyring.clone(), model.clone()));
            }
            // Clones are looked at last: what happens to the original must not reach them.
            for (keyring, model) in past {
                prop_assert_eq!(keyring.len(), model.len());
                for number in 0..4 {
                    match (keyring.get(&digest(number)), expected(&model, number)) {
                        (Ok(entry), Ok(names)) => prop_assert!(names.contains(&entry.name.to_string())),
                        (Err(untrusted), Err(expected)) => prop_assert_eq!(untrusted, expected),
                        (got, expected) => prop_assert!(false, "{:?} instead of {:?}", got, expected),
                    }
                }
            }
        }
    }
}
