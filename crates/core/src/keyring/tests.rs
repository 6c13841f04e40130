use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{record_name, stored};

fn made_at<'r>(second: i64, name: &'r str, spec: &'r Value) -> StoredRecord<'r> {
    StoredRecord::read(name, Some(Timestamp::from_second(second).unwrap()), spec).unwrap()
}

fn digest(number: u32) -> Digest {
    Digest::of(&number.to_le_bytes())
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
    keyring.upsert(&stored(&record_name(7), &record())).unwrap();
    let entry = keyring.get(&digest(1)).unwrap();
    assert_eq!((entry.namespace(), entry.name()), ("team-a", "billing.v2"));
    assert_eq!((entry.owner(), entry.scopes()), ("jane@example.com", "orders:read orders:write"));
    assert_eq!(entry.allowed_addresses(), Some(&AllowedAddresses::parse(&["10.0.0.0/8"]).unwrap()));
    assert_eq!(entry.not_after(), Some("2030-01-02T03:04:05Z".parse().unwrap()));
    assert!(entry.is_suspended() && entry.is_revoked());
    assert!(entry.has_scope("orders:read") && entry.has_scope("orders:write"));
    assert!(!entry.has_scope("orders") && !entry.has_scope("orders:read orders:write"));
    assert_eq!((entry.record_name().to_string(), entry.slot()), (record_name(7), 0));
    assert_eq!(keyring.get(&digest(2)), Err(Untrusted::Absent));
    assert_eq!(keyring.len(), 1);
}

/// Whoever waits for a record to be enforced is told at once of what counts here.
#[test]
fn what_a_record_says_of_its_key_counts_as_a_change_and_the_same_again_does_not() {
    let mut keyring = Keyring::default();
    let name = record_name(7);
    let mut changes = |spec: &Value, change: fn(&mut Keyring, &StoredRecord<'_>)| {
        let before = keyring.changes();
        change(&mut keyring, &stored(&name, spec));
        keyring.changes() - before
    };
    let replace = |keyring: &mut Keyring, record: &StoredRecord<'_>| drop(keyring.replace(record));
    let remove = |keyring: &mut Keyring, record: &StoredRecord<'_>| keyring.remove(record);
    assert_eq!(changes(&record(), replace), 1, "it is new");
    for (field, value) in [
        ("apiKey", json!({ "namespace": "team-b", "name": "billing.v2", "uid": "b0e7" })),
        ("owner", json!("joe@example.com")),
        ("scopes", json!(["orders:read"])),
        ("allowedIPs", json!(["10.0.0.0/9"])),
        ("notAfter", json!("2029-01-02T03:04:05Z")),
        ("suspended", json!(false)),
        ("revoked", json!(null)),
        ("keyPrefix", json!(7)),
        ("digest", json!("?")),
        ("digest", json!(digest(2).to_string())),
    ] {
        let mut other = record();
        other[field] = value;
        assert!(changes(&other, replace) > 0, "{other}");
        assert_eq!(changes(&other, replace), 0, "{other} again");
        assert!(changes(&record(), replace) > 0, "{other} no more");
        assert_eq!(changes(&record(), replace), 0);
    }
    assert_eq!(changes(&record(), remove), 1);
    assert_eq!(changes(&record(), remove), 0, "it is gone");
}

#[test]
fn a_serial_of_any_size_is_kept() {
    let mut keyring = Keyring::default();
    for (number, serial) in (0..).zip([0, 1, 255, 256, u32::MAX]) {
        for api_key in [json!({ "namespace": "a", "name": "b", "uid": "c" }), json!(7)] {
            let spec = json!({ "digest": digest(number).to_string(), "apiKey": api_key });
            drop(keyring.upsert(&stored(&record_name(serial), &spec)));
            let names: Vec<_> = keyring.names_of(|slot| slot == number).collect();
            assert_eq!(names.iter().map(|(_, name)| name.to_string()).collect::<Vec<_>>(), [record_name(serial)]);
        }
    }
}

#[test]
fn a_record_that_is_read_anew_keeps_its_slot() {
    let spec = |number| json!({ "digest": digest(number).to_string(), "apiKey": 7 });
    let mut before = Keyring::default();
    for number in 0..100 {
        drop(before.upsert(&stored(&record_name(number), &spec(number))));
    }
    let mut after = before.successor();
    assert!(after.is_empty() && after.slots() == 100);
    for number in (50..150).rev() {
        drop(after.carry_over(&before, &stored(&record_name(number), &spec(number))));
    }
    let slot = |keyring: &Keyring, number| keyring.slot_of(&stored(&record_name(number), &spec(number)));
    assert!((50..100).all(|number| slot(&after, number) == Some(number) && slot(&before, number) == Some(number)));
    assert!((100..150).all(|number| slot(&after, number).unwrap() >= 100 && slot(&before, number).is_none()));
    assert_eq!(
        (slot(&after, 7), after.slot_of(&stored(&record_name(60), &spec(61))), after.slots()),
        (None, None, 150)
    );
    let mut named: Vec<_> = after.names_of(|slot| slot % 40 == 0).collect();
    named.sort_by_key(|(slot, _)| *slot);
    assert_eq!(named.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [80, 120]);
    assert_eq!(named[0].1.to_string(), record_name(80));
}

/// A key never lives longer than its record says; and not noticeably shorter.
#[test]
fn an_end_is_kept_to_the_microsecond_and_cut_off_below() {
    let cases = [
        ("2030-01-02T03:04:05Z", "2030-01-02T03:04:05Z"),
        ("2030-01-02T03:04:05.123456Z", "2030-01-02T03:04:05.123456Z"),
        ("2030-01-02T03:04:05.123456999Z", "2030-01-02T03:04:05.123456Z"),
        ("2030-01-02T05:04:05+02:00", "2030-01-02T03:04:05Z"),
        ("1969-12-31T23:59:59.999999001Z", "1969-12-31T23:59:59.999999Z"),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
        ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
        ("9999-12-30T22:00:00Z", "9999-12-30T22:00:00Z"),
    ];
    for (said, kept) in cases {
        let mut spec = record();
        spec["notAfter"] = json!(said);
        let mut keyring = Keyring::default();
        keyring.upsert(&stored(&record_name(1), &spec)).unwrap();
        assert_eq!(keyring.get(&digest(1)).unwrap().not_after(), Some(kept.parse().unwrap()), "{said}");
    }
}

#[test]
fn what_may_be_absent_may_be_absent() {
    let mut keyring = Keyring::default();
    let spec = json!({
        "digest": digest(1).to_string(),
        "apiKey": { "namespace": "a", "name": "b", "uid": "c" },
        "fieldOfALaterVersion": { "any": "thing" },
    });
    keyring.upsert(&stored(&record_name(1), &spec)).unwrap();
    let entry = keyring.get(&digest(1)).unwrap();
    assert_eq!((entry.owner(), entry.scopes()), ("", ""));
    assert_eq!((entry.not_after(), entry.is_suspended(), entry.is_revoked()), (None, false, false));
    assert!(entry.allowed_addresses().is_none() && !entry.has_scope(""));
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
        keyring.upsert(&stored(&record_name(2), &neighbour)).unwrap();
        keyring.upsert(&stored(&record_name(1), &record())).unwrap();
        let distrust = keyring.replace(&stored(&record_name(1), &spec)).unwrap_err();
        assert_eq!(distrust, RecordError::Unreadable(field), "{field}: {value}");
        assert_eq!(keyring.get(&digest(1)), Err(expected), "{field}: {value}");
        assert!(keyring.get(&digest(2)).is_ok(), "{field}: {value}");
    }
    for field in ["digest", "apiKey"] {
        let mut spec = record();
        spec.as_object_mut().unwrap().remove(field);
        assert_eq!(Keyring::default().upsert(&stored(&record_name(1), &spec)), Err(RecordError::Missing(field)));
    }
    assert_eq!(Keyring::default().upsert(&stored(&record_name(1), &Value::Null)), Err(RecordError::Missing("digest")));
}

/// The name of a record of another ApiKey.
fn name_of(uid: u32, serial: u32) -> String {
    format!("{uid:08x}-93d1-4f5e-8a6b-7c8d9e0f1a2b-{serial}")
}

/// Of two records that claim one key the one that is older rules, whatever either says and whichever came first; and
/// where it is gone, the other one does.
#[test]
fn the_oldest_claim_to_a_digest_rules_alone() {
    let spec = |owner: &str, field: &str, value: Value| {
        let api_key = json!({ "namespace": "a", "name": owner, "uid": "c" });
        let mut spec = json!({ "digest": digest(1).to_string(), "apiKey": api_key });
        spec[field] = value;
        spec
    };
    let kinds = [
        ("owner", json!("jane@example.com")),
        ("revoked", json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" })),
        ("suspended", json!(true)),
        ("allowedIPs", json!(["192.0.2.0/24"])),
        ("suspended", json!("?")),
    ];
    let ages = [
        ("seconds", Some(7), name_of(9, 9), Some(8), name_of(1, 1)),
        ("uids", Some(7), name_of(1, 9), Some(7), name_of(2, 1)),
        ("serials", Some(7), name_of(1, 9), Some(7), name_of(1, 10)),
        ("no time of creation", None, name_of(9, 9), Some(1), name_of(1, 1)),
    ];
    for (case, old_second, old_name, young_second, young_name) in &ages {
        for (old_field, old_value) in &kinds {
            for (young_field, young_value) in &kinds {
                let (old_spec, young_spec) =
                    (spec("old", old_field, old_value.clone()), spec("young", young_field, young_value.clone()));
                let created = |second: &Option<i64>| second.map(|second| Timestamp::from_second(second).unwrap());
                let old = StoredRecord::read(old_name, created(old_second), &old_spec).unwrap();
                let young = StoredRecord::read(young_name, created(young_second), &young_spec).unwrap();
                let case = format!("{case}: {old_spec} and {young_spec}");
                let alone = |record| {
                    let mut keyring = Keyring::default();
                    keyring.upsert(record).ok();
                    keyring.get(&digest(1)).map(|entry| (entry.name().to_owned(), entry.is_revoked()))
                };
                let contest = Contest { older: old.rank.1, younger: young.rank.1 };
                for records in [[&old, &young], [&young, &old]] {
                    let mut keyring = Keyring::default();
                    drop(keyring.upsert(records[0]));
                    let taken_in = keyring.upsert(records[1]);
                    assert!(taken_in.is_err() || taken_in == Ok(Some(contest)), "{case}: {taken_in:?}");
                    let found = |keyring: &Keyring| {
                        let entry = keyring.get(&digest(1));
                        entry.map(|entry| (entry.name().to_owned(), entry.is_revoked()))
                    };
                    assert_eq!((found(&keyring), keyring.len()), (alone(&old), 2), "{case}");
                    let mut without_young = keyring.clone();
                    without_young.remove(&young);
                    assert_eq!((found(&without_young), without_young.len()), (alone(&old), 1), "{case}");
                    keyring.remove(&old);
                    assert_eq!((found(&keyring), keyring.len()), (alone(&young), 1), "{case}");
                }
            }
        }
    }
}

/// Whoever may write specs may claim a digest any number of times, before and after its owner.
#[test]
fn any_number_of_claims_to_one_digest_touches_no_other_key() {
    let (empty, digests) = &*COLLIDING;
    let mut keyring = empty.clone();
    let spec = |number: usize| {
        let api_key = json!({ "namespace": "a", "name": format!("key-{number}"), "uid": "c" });
        json!({ "digest": digests[number].to_string(), "apiKey": api_key })
    };
    for number in 0..4 {
        keyring.upsert(&made_at(1000, &name_of(500 + number as u32, 1), &spec(number))).unwrap();
    }
    let strangers = |keyring: &Keyring| {
        (1..4).all(|number| keyring.get(&digests[number]).is_ok_and(|entry| entry.name() == format!("key-{number}")))
    };
    let before = keyring.clone();
    let mut last = None;
    for claim in 0..600_u32 {
        let second = if claim < 300 { 2000 + i64::from(claim) } else { 2000 - 2 * i64::from(claim) };
        keyring.upsert(&made_at(second, &name_of(claim % 400, claim), &spec(0))).unwrap();
        last = Some(keyring.clone());
        let owner = keyring.get(&digests[0]).unwrap().record_name().to_string();
        let oldest = if claim < 500 { name_of(500, 1) } else { name_of(claim % 400, claim) };
        assert_eq!(owner, oldest, "{claim}");
        assert!(strangers(&keyring), "{claim}");
    }
    let (branch, shard) = place(hash(&keyring.hasher, &digests[0]));
    assert_eq!((keyring.root[branch][shard].claims().count(), keyring.len()), (4, 604));
    for claim in (0..600_u32).rev() {
        let second = if claim < 300 { 2000 + i64::from(claim) } else { 2000 - 2 * i64::from(claim) };
        keyring.remove(&made_at(second, &name_of(claim % 400, claim), &spec(0)));
        assert!(strangers(&keyring), "{claim}");
    }
    assert_eq!((keyring.len(), keyring.aside.len()), (4, 0), "nothing is left of them");
    let state = |keyring: &Keyring| keyring.records().map(|(slot, name, _)| (slot, name)).collect::<BTreeSet<_>>();
    assert_eq!(state(&keyring), state(&before));
    assert_eq!(last.map(|keyring| keyring.len()), Some(604), "a clone stays as it was");
}

#[test]
fn a_record_that_is_not_named_like_one_is_not_read() {
    for name in ["r-1", "", &record_name(1).to_uppercase()] {
        assert_eq!(StoredRecord::read(name, None, &record()).err(), Some(RecordError::Name));
    }
}

#[test]
fn a_record_keeps_its_slot_and_no_other_gets_it() {
    let mut keyring = Keyring::default();
    let spec = |number| {
        let mut spec = record();
        spec["digest"] = json!(digest(number).to_string());
        spec
    };
    for number in 0..100 {
        keyring.upsert(&stored(&record_name(number), &spec(number))).unwrap();
    }
    let mut changed = spec(7);
    changed["suspended"] = json!("?");
    keyring.replace(&stored(&record_name(7), &changed)).unwrap_err();
    keyring.replace(&stored(&record_name(7), &spec(7))).unwrap();
    keyring.remove(&stored(&record_name(3), &spec(3)));
    let mut clone = keyring.clone();
    keyring.upsert(&stored(&record_name(3), &spec(3))).unwrap();
    clone.upsert(&stored(&record_name(200), &spec(200))).unwrap();
    assert_eq!(keyring.get(&digest(7)).unwrap().slot(), 7);
    assert_eq!(keyring.get(&digest(3)).unwrap().slot(), 100);
    assert_eq!(clone.get(&digest(200)).unwrap().slot(), 101);
    assert_eq!(keyring.slots(), 102);
    let slots: BTreeSet<u32> = keyring.records().map(|(slot, ..)| slot).collect();
    assert_eq!(slots, (0..101).filter(|slot| *slot != 3).collect());
    for (slot, name, entry) in keyring.records() {
        let entry = entry.unwrap();
        assert_eq!((entry.slot(), entry.record_name()), (slot, name));
        let number = if slot == 100 { 3 } else { slot };
        assert_eq!((name.to_string(), keyring.get(&digest(number))), (record_name(number), Ok(entry)));
    }
}

/// What a record of the model says.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Good,
    Suspended,
    Revoked,
    Unreadable,
    WithoutDigest,
}

/// A record of the model: when it was made, what it claims, and what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Version {
    created: Option<i64>,
    digest: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Change {
    /// The record with this number has a new version, or is gone.
    Record(u32, Option<Version>),
    /// All records are read anew, from this one on.
    List(usize),
}

/// Each record that there is, and its slot if it has one.
type Model = BTreeMap<u32, (Version, Option<u32>)>;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    use Kind::*;
    let kinds = [Good, Good, Good, Suspended, Revoked, Unreadable, WithoutDigest];
    let created = proptest::option::weighted(0.9, 0..4_i64);
    let version = (created, 0..4_usize, proptest::sample::select(kinds.to_vec()));
    let version = version.prop_map(|(created, digest, kind)| Version { created, digest, kind });
    let record = (0..9_u32, proptest::option::weighted(0.7, version));
    let record = record.prop_map(|(number, version)| Change::Record(number, version));
    let change = prop_oneof![12 => record, 1 => (0..9_usize).prop_map(Change::List)];
    proptest::collection::vec(change, 0..60)
}

/// Three records of each of three ApiKeys, in the order of their numbers.
fn name(number: u32) -> String {
    name_of(number / 3, number % 3)
}

/// Whether the record with this number is of a key that was made elsewhere.
fn is_submitted(number: u32) -> bool {
    number.is_multiple_of(4)
}

/// A record with some of the fields that vary in length, other ones for each number and digest.
fn spec_of(digest: &Digest, number: u32, kind: Kind) -> Value {
    let mut spec = json!({
        "digest": digest.to_string(),
        "apiKey": { "namespace": "a", "name": "n".repeat(number as usize + 1), "uid": "c" },
    });
    if !is_submitted(number) {
        spec["keyPrefix"] = json!("keyw1_eVULq19j");
    }
    if number.is_multiple_of(2) {
        spec["notAfter"] = json!(format!("203{number}-01-02T03:04:05Z"));
    }
    if number.is_multiple_of(3) {
        spec["allowedIPs"] = json!([format!("10.0.0.{number}")]);
    }
    match kind {
        Kind::Good => {}
        Kind::Suspended => spec["suspended"] = json!(true),
        Kind::Revoked => spec["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" }),
        Kind::Unreadable => spec["suspended"] = json!("?"),
        Kind::WithoutDigest => spec["digest"] = json!("?"),
    }
    spec
}

/// Hands over a record as the API server tells it.
fn told<T>(number: u32, version: Version, digests: &[Digest], f: impl FnOnce(&StoredRecord<'_>) -> T) -> T {
    let (name, spec) = (name(number), spec_of(&digests[version.digest], number, version.kind));
    let created = version.created.map(|second| Timestamp::from_second(second + 1).unwrap());
    f(&StoredRecord::read(&name, created, &spec).unwrap())
}

/// Makes a change as the API server tells it: a list, or ADDED, MODIFIED, or DELETED with the record's last version.
fn make(keyring: &mut Keyring, model: &mut Model, digests: &[Digest], change: Change) {
    match change {
        Change::List(from) => {
            let mut fresh = keyring.successor();
            let mut records: Vec<_> = model.iter().map(|(number, (version, _))| (*number, *version)).collect();
            let length = records.len().max(1);
            records.rotate_left(from % length);
            for (number, version) in records {
                told(number, version, digests, |record| fresh.carry_over(keyring, record).ok());
            }
            *keyring = fresh;
        }
        Change::Record(number, None) => {
            let version = model.remove(&number).map(|(version, _)| version);
            let version = version.unwrap_or(Version { created: None, digest: 0, kind: Kind::WithoutDigest });
            told(number, version, digests, |record| keyring.remove(record));
        }
        Change::Record(number, Some(version)) => {
            let before = model.get(&number).copied();
            told(number, version, digests, |record| match before {
                None => keyring.upsert(record).ok(),
                Some(_) => keyring.replace(record).ok(),
            });
            let slot = told(number, version, digests, |record| keyring.slot_of(record));
            // As long as a record can be found by what it says, it keeps its slot.
            let is_same = |before: Version| (before.created, before.digest) == (version.created, version.digest);
            if let Some((before, Some(slot_before))) = before
                && is_same(before)
                && version.kind != Kind::WithoutDigest
            {
                assert_eq!(slot, Some(slot_before));
            }
            model.insert(number, (version, slot));
        }
    }
}

/// The number of the record that rules a digest: the oldest, by a plain look at all of them.
fn ruling(model: &Model, digest: usize) -> Option<(u32, Kind)> {
    let claims = model.iter().map(|(number, (version, _))| (number, version));
    let claims = claims.filter(|(_, version)| version.kind != Kind::WithoutDigest && version.digest == digest);
    let oldest = claims.min_by_key(|(number, version)| (version.created.map_or(0, |second| second + 1), **number));
    oldest.map(|(number, version)| (*number, version.kind))
}

/// Whether the keyring has all records of the model, with the slots that they had from the start.
fn compare_records(keyring: &Keyring, model: &Model) -> Result<(), TestCaseError> {
    let claims = model.iter().filter(|(_, (version, _))| version.kind != Kind::WithoutDigest);
    let expected: BTreeMap<_, _> =
        claims.map(|(number, (version, slot))| (name(*number), (*slot, version.kind != Kind::Unreadable))).collect();
    let records = keyring.records();
    let records: BTreeMap<_, _> =
        records.map(|(slot, name, entry)| (name.to_string(), (Some(slot), entry.is_some()))).collect();
    prop_assert_eq!(records, expected);
    Ok(())
}

/// Whether the keyring says of each digest what the model says, in every detail.
fn compare(keyring: &Keyring, model: &Model, digests: &[Digest]) -> Result<(), TestCaseError> {
    let records = model.values().filter(|(version, _)| version.kind != Kind::WithoutDigest).count();
    prop_assert_eq!(keyring.len(), records);
    let of_submitted_keys = model.iter().filter(|(number, (version, _))| {
        is_submitted(**number) && !matches!(version.kind, Kind::Unreadable | Kind::WithoutDigest)
    });
    prop_assert_eq!(keyring.submitted, of_submitted_keys.count());
    for (number, digest) in digests.iter().enumerate() {
        match (keyring.get(digest), ruling(model, number)) {
            (Err(Untrusted::Absent), None) | (Err(Untrusted::Unreadable), Some((_, Kind::Unreadable))) => {}
            (Ok(entry), Some((number, kind))) if kind != Kind::Unreadable => {
                prop_assert_eq!(entry.record_name().to_string(), name(number));
                prop_assert_eq!(entry.name().len(), number as usize + 1);
                prop_assert_eq!(entry.is_revoked(), kind == Kind::Revoked);
                prop_assert_eq!(entry.is_suspended(), kind == Kind::Suspended);
                let not_after = format!("203{number}-01-02T03:04:05Z").parse().ok();
                prop_assert_eq!(entry.not_after(), not_after.filter(|_| number.is_multiple_of(2)));
                let list =
                    AllowedAddresses::parse(&[format!("10.0.0.{number}")]).ok().filter(|_| number.is_multiple_of(3));
                prop_assert_eq!(entry.allowed_addresses(), list.as_ref());
            }
            (got, expected) => prop_assert!(false, "{:?} instead of {:?}", got, expected),
        }
    }
    Ok(())
}

/// An empty keyring, and four digests that stand in one shard of it, whose table cannot tell them apart by their hashes.
static COLLIDING: LazyLock<(Keyring, Vec<Digest>)> = LazyLock::new(|| {
    let keyring = Keyring::default();
    let mut digests: HashMap<(usize, usize, u64), Vec<Digest>> = HashMap::new();
    for digest in (0..).map(digest) {
        let hash = hash(&keyring.hasher, &digest);
        // A table keeps the highest seven bits of a hash. The few rows here all stand where any search begins.
        let (branch, shard) = place(hash);
        let place = (branch, shard, hash >> 57);
        let colliding = digests.entry(place).or_default();
        colliding.push(digest);
        if colliding.len() == 4 {
            return (keyring, digests.remove(&place).unwrap());
        }
    }
    unreachable!("there are more digests than places")
});

/// Follows `changes`, and compares all that came of it only then: what happens to the original must not reach its
/// clones.
fn follow(mut keyring: Keyring, digests: &[Digest], changes: Vec<Change>) -> Result<(), TestCaseError> {
    let (mut model, mut past) = (Model::new(), Vec::new());
    for change in changes {
        make(&mut keyring, &mut model, digests, change);
        past.push((keyring.clone(), model.clone()));
    }
    past.iter().try_for_each(|(keyring, model)| compare(keyring, model, digests))?;
    compare_records(&keyring, &model)
}

proptest! {
    #[test]
    fn a_keyring_is_as_good_as_reading_all_records_anew(changes in changes()) {
        follow(Keyring::default(), &[0, 1, 2, 3].map(digest), changes)?;
    }

    #[test]
    fn so_is_one_whose_digests_cannot_be_told_apart_by_their_hashes(changes in changes()) {
        let (empty, digests) = &*COLLIDING;
        follow(empty.clone(), digests, changes)?;
    }
}
