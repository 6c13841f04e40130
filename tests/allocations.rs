//! What a key costs in memory, and that a decision costs none. A test program of its own, as its allocator counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::IpAddr;

use allocation_counter::measure;
use jiff::Timestamp;
use keywright::key::{Credential, CredentialError, Key, credential};
use keywright::keyring::Keyring;
use keywright::usage::Marks;
use keywright::verify::{InvalidRoute, Request, Route, check};
use rand::rngs::SysRng;
use serde_json::{Value, json};

const OWNERS_IN_A_NAMESPACE: usize = 20;
const ADDRESS_LISTS: usize = 200;

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

/// The name of the record with this number, as if each were of an ApiKey of its own.
fn record_name(number: usize) -> String {
    let uid = format!("{:032x}", (number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
    format!("{}-{}-{}-{}-{}-1", &uid[..8], &uid[8..12], &uid[12..16], &uid[16..20], &uid[20..])
}

/// A record of a population as many teams may have it: 20 owners in a namespace have keys with one of three sets of
/// scopes; a tenth of the keys has an address list, of which there are 200; a third has an end.
fn spec(number: usize, namespaces: usize, digest: String) -> Value {
    // Strides that share no factor with the counts, so that the properties are spread over all combinations.
    let (namespace, owner) = (number % namespaces, number / 7 % OWNERS_IN_A_NAMESPACE);
    let scopes = [&["orders:read"][..], &["orders:read", "orders:write"], &["reports:read", "orders:read"]];
    let mut spec = json!({
        "digest": digest,
        "apiKey": { "namespace": format!("team-{namespace:04}"), "name": format!("billing-{:04}", number % 9973), "uid": "u" },
        "owner": format!("person-{owner:02}@team-{namespace:04}.example.com"),
        "scopes": scopes[number / 11 % scopes.len()],
    });
    if number.is_multiple_of(10) {
        let list = number / 10 % ADDRESS_LISTS;
        spec["allowedIPs"] = json!([format!("10.{list}.0.0/16"), format!("2001:db8:{list:x}::/48")]);
    }
    if number.is_multiple_of(3) {
        spec["notAfter"] = json!("2030-01-02T03:04:05Z");
    }
    spec
}

/// A keyring of that population. Hashing keys for it would take longer than all the rest.
fn populated(records: usize, namespaces: usize) -> Keyring {
    let mut keyring = Keyring::default();
    for number in 0..records {
        let spread = (number as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let digest = format!("sha256:{:032x}{spread:032x}", spread.rotate_left(61));
        keyring.upsert(&record_name(number), &spec(number, namespaces, digest)).unwrap();
    }
    keyring
}

/// What is live once a keyring of so many records is built, with room for their last uses, in octets.
fn live(records: usize, namespaces: usize) -> i64 {
    let (mut keyring, marks) = (None, Marks::default());
    let fill = || marks.reach(keyring.insert(populated(records, namespaces)).slots());
    let live = measure(fill).bytes_current;
    assert_eq!(keyring.map(|keyring| keyring.len()), Some(records));
    live
}

/// The slope between a tenth of the records and all of them, so that what an empty keyring takes does not count. With
/// `KEYWRIGHT_TEST_RECORDS=1000000` it is that of the real thing, which takes a while in a debug build.
#[test]
fn a_key_takes_at_most_96_octets() {
    let records = std::env::var("KEYWRIGHT_TEST_RECORDS").map_or(260_000, |records| records.parse().unwrap());
    let (tenth, namespaces) = (records / 10, records / 1000);
    let octets = (live(records, namespaces) - live(tenth, namespaces)) as f64 / (records - tenth) as f64;
    println!("{octets:.1} octets for each key between {tenth} and {records}");
    assert!(octets <= 96.0, "{octets}");
}

struct Caller {
    keyring: Keyring,
    keys: Vec<Key>,
}

impl Caller {
    /// 10,000 keys: one in two is as in the population, one in ten is unknown, and so on.
    fn new() -> Self {
        let mut keyring = Keyring::default();
        let keys: Vec<Key> = (0..10_000).map(|_| Key::mint(&mut SysRng).unwrap()).collect();
        for (number, key) in keys.iter().enumerate() {
            let mut spec = spec(number, 1000, key.digest().to_string());
            match number % 11 {
                0 => continue,
                1 => spec["suspended"] = json!(true),
                2 => spec["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" }),
                3 => spec["notAfter"] = json!("2026-01-01T00:00:00Z"),
                4 => spec["allowedIPs"] = json!(["192.0.2.0/24", "2001:db8::/32"]),
                5 => spec["owner"] = json!("two words"),
                _ => {}
            }
            keyring.upsert(&record_name(number), &spec).ok();
            if number % 11 == 6 {
                keyring.upsert(&record_name(number + keys.len()), &spec).ok();
            }
        }
        Self { keyring, keys }
    }

    /// The reasons why the keys are denied, each once, in alphabetical order; `allowed` among them. Counts what is
    /// allocated between the request's head and the decision.
    fn decide(&self, address: &str, parameters: &[(&'static str, &'static str)]) -> (Vec<&'static str>, u64) {
        let address: IpAddr = address.parse().unwrap();
        let mut reasons = vec!["allowed"; self.keys.len()];
        let allocated = measure(|| {
            for (key, reason) in self.keys.iter().zip(&mut reasons) {
                let route = || Route::read(parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())));
                let credential = credential([].into_iter(), [key.reveal().as_bytes()].into_iter());
                *reason = self.reason(credential, route(), address);
            }
        });
        reasons.sort_unstable();
        reasons.dedup();
        (reasons, allocated.count_total)
    }

    fn reason(
        &self,
        credential: Result<Credential<'_>, CredentialError>,
        route: Result<Route<'_>, InvalidRoute>,
        address: IpAddr,
    ) -> &'static str {
        let request = Request { credential, route, client_address: &|| Ok(address) };
        match check(&self.keyring, &request, now()) {
            Ok(permit) => {
                let entry = permit.entry();
                assert!(!entry.namespace().is_empty() && !entry.name().is_empty() && !entry.owner().is_empty());
                "allowed"
            }
            Err(denial) => denial.cause().unwrap_or(denial.reason()),
        }
    }
}

#[test]
fn noting_a_use_allocates_nothing_and_takes_at_most_16_octets_a_key() {
    let marks = Marks::default();
    for slots in [1_000, 100_000, 1_000_000] {
        let before = measure(|| Marks::default().reach(slots)).bytes_max;
        assert!(before <= 16 * u64::from(slots) + 16_384, "{before} octets for {slots}");
        marks.reach(slots);
        let noted = measure(|| (0..slots).for_each(|slot| marks.note(slot, 1 + slot % 7)));
        assert_eq!(noted.count_total, 0);
    }
}

#[test]
fn a_decision_allocates_nothing() {
    let caller = Caller::new();
    let state = ["absent", "ambiguous", "expired", "revoked", "suspended", "unreadable"];
    let with = |more: &[&'static str]| {
        let mut reasons = [&state[..], more].concat();
        reasons.sort_unstable();
        reasons
    };
    let scope = ("scope", "orders:read");
    let four = [("namespace", "a"), ("namespace", "b"), ("namespace", "c"), ("namespace", "team-0004")];
    let cases = [
        ("192.0.2.7", vec![], with(&["allowed", "not_allowed"])),
        ("2001:db8::7", vec![], with(&["allowed", "not_allowed"])),
        ("::ffff:192.0.2.7", vec![scope], with(&["allowed", "not_allowed"])),
        ("192.0.2.7", vec![scope, ("scope", "orders:write")], with(&["allowed", "not_allowed", "scope"])),
        ("192.0.2.7", [&four[..], &[scope]].concat(), with(&["allowed", "namespace"])),
        ("192.0.2.7", vec![("namespace", "")], vec!["invalid_value"]),
        ("192.0.2.7", vec![("scopes", "a")], vec!["unknown_parameter"]),
    ];
    for (address, parameters, expected) in cases {
        let (reasons, allocated) = caller.decide(address, &parameters);
        assert_eq!((reasons, allocated), (expected, 0), "{address} {parameters:?}");
    }
    let malformed: [&[&[u8]]; 3] = [&[], &[b"hunter2"], &[b"a", b"b"]];
    let allocated = measure(|| {
        for lines in malformed {
            let credential = credential([].into_iter(), lines.iter().copied());
            let reason = caller.reason(credential, Route::read([].into_iter()), [192, 0, 2, 7].into());
            assert!(["missing", "malformed"].contains(&reason));
        }
    });
    assert_eq!(allocated.count_total, 0);
}
