//! What a key costs in memory, and that a decision costs none. A test program of its own, as its allocator counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::IpAddr;

use allocation_counter::measure;
use jiff::Timestamp;
use keywright_core::client_address::{ClientAddressSource, Unresolved};
use keywright_core::credential::{Credential, CredentialError, credential};
use keywright_core::key::{Digest, Key};
use keywright_core::keyring::{Keyring, StoredRecord};
use keywright_core::usage::LastUses;
use keywright_core::verify::{InvalidRoute, Request, Route, check};
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

fn stored<'r>(name: &'r str, spec: &'r Value) -> StoredRecord<'r> {
    StoredRecord::read(name, Some(now()), spec).unwrap()
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
        keyring.upsert(&stored(&record_name(number), &spec(number, namespaces, digest))).unwrap();
    }
    keyring
}

/// What is live once a keyring of so many records is built, with room for their last uses, in octets.
fn live(records: usize, namespaces: usize) -> i64 {
    let (mut keyring, last_uses) = (None, LastUses::default());
    let fill = || last_uses.reach(keyring.insert(populated(records, namespaces)).slots());
    let live = measure(fill).bytes_current;
    assert_eq!(keyring.map(|keyring| keyring.len()), Some(records));
    live
}

/// The slope between a tenth of the records and all of them, so that what an empty keyring takes does not count. With
/// `KEYWRIGHT_TEST_RECORDS=1000000` it is that of the real thing, which takes a while in a debug build.
#[test]
fn a_key_takes_at_most_230_octets() {
    let records = std::env::var("KEYWRIGHT_TEST_RECORDS").map_or(260_000, |records| records.parse().unwrap());
    let (tenth, namespaces) = (records / 10, records / 1000);
    let octets = (live(records, namespaces) - live(tenth, namespaces)) as f64 / (records - tenth) as f64;
    println!("{octets:.1} octets for each key between {tenth} and {records}");
    assert!(octets <= 230.0, "{octets}");
}

struct Caller {
    keyring: Keyring,
    keys: Vec<String>,
    /// Each key as `Authorization` carries it.
    bearers: Vec<String>,
}

/// Where a request comes from: how that is found out, the connection's other end, and the lines of `X-Forwarded-For`.
struct Way {
    source: ClientAddressSource,
    peer: IpAddr,
    forwarded: &'static [&'static str],
}

impl Way {
    fn new(source: &str, peer: &str, forwarded: &'static [&'static str]) -> Self {
        Self { source: source.parse().unwrap(), peer: peer.parse().unwrap(), forwarded }
    }

    fn client_address(&self) -> Result<IpAddr, Unresolved> {
        self.source.resolve(self.peer, self.forwarded.iter().map(|line| line.as_bytes()))
    }
}

/// A new key; every third one is foreign.
fn key_text(number: usize) -> String {
    let key = Key::mint(&mut SysRng).unwrap();
    if number.is_multiple_of(3) { format!("live_{}", &key.digest().to_string()[7..]) } else { key.reveal().to_owned() }
}

impl Caller {
    /// 10,000 keys, a third of them of another maker's: one in two is as in the population, one in ten is unknown, and so on.
    fn new() -> Self {
        let mut keyring = Keyring::default();
        let keys: Vec<String> = (0..10_000).map(key_text).collect();
        for (number, key) in keys.iter().enumerate() {
            let mut spec = spec(number, 1000, Digest::of(key.as_bytes()).to_string());
            match number % 11 {
                0 => continue,
                1 => spec["suspended"] = json!(true),
                2 => spec["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" }),
                3 => spec["notAfter"] = json!("2026-01-01T00:00:00Z"),
                4 => spec["allowedIPs"] = json!(["192.0.2.0/24", "2001:db8::/32"]),
                5 => spec["owner"] = json!("two words"),
                _ => {}
            }
            keyring.upsert(&stored(&record_name(number), &spec)).ok();
        }
        let bearers = keys.iter().map(|key| format!("Bearer {key}")).collect();
        Self { keyring, keys, bearers }
    }

    /// The reasons why the keys are denied, each once, in alphabetical order; `allowed` among them. Each key is presented
    /// in either header. Counts what is allocated between the request's head and the decision.
    fn decide(&self, way: &Way, parameters: &[(&'static str, &'static str)]) -> (Vec<&'static str>, u64) {
        let mut reasons = vec![["allowed"; 2]; self.keys.len()];
        let allocated = measure(|| {
            for ((key, bearer), reasons) in self.keys.iter().zip(&self.bearers).zip(&mut reasons) {
                let route = || Route::read(parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())));
                let x_api_key = credential([].into_iter(), [key.as_bytes()].into_iter());
                let authorization = credential([bearer.as_bytes()].into_iter(), [].into_iter());
                *reasons = [x_api_key, authorization].map(|credential| self.reason(credential, route(), way));
            }
        });
        assert!(reasons.iter().all(|[x_api_key, authorization]| x_api_key == authorization));
        let mut reasons = reasons.concat();
        reasons.sort_unstable();
        reasons.dedup();
        (reasons, allocated.count_total)
    }

    fn reason(
        &self,
        credential: Result<Credential<'_>, CredentialError>,
        route: Result<Route<'_>, InvalidRoute>,
        way: &Way,
    ) -> &'static str {
        let request = Request { credential, route, client_address: &|| way.client_address() };
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
    let last_uses = LastUses::default();
    for slots in [1_000, 100_000, 1_000_000] {
        let before = measure(|| LastUses::default().reach(slots)).bytes_max;
        assert!(before <= 16 * u64::from(slots) + 16_384, "{before} octets for {slots}");
        last_uses.reach(slots);
        let noted = measure(|| (0..slots).for_each(|slot| last_uses.note(slot, 1 + slot % 7)));
        assert_eq!(noted.count_total, 0);
    }
}

#[test]
fn a_decision_allocates_nothing() {
    let caller = Caller::new();
    let state = ["absent", "expired", "revoked", "suspended", "unreadable"];
    let with = |more: &[&'static str]| {
        let mut reasons = [&state[..], more].concat();
        reasons.sort_unstable();
        reasons
    };
    let scope = ("scope", "orders:read");
    let four = [("namespace", "a"), ("namespace", "b"), ("namespace", "c"), ("namespace", "team-0004")];
    let direct = |address| Way::new("peer", address, &[]);
    let hops = |source, forwarded| Way::new(source, "10.0.0.5", forwarded);
    let proxies = |peer, forwarded| Way::new("xff-proxies=10.0.0.0/8,2001:db8:1::/48", peer, forwarded);
    let known = with(&["allowed", "not_allowed"]);
    let cases = [
        (direct("192.0.2.7"), vec![], known.clone()),
        (direct("2001:db8::7"), vec![], known.clone()),
        (direct("::ffff:192.0.2.7"), vec![scope], known.clone()),
        (direct("192.0.2.7"), vec![scope, ("scope", "orders:write")], with(&["allowed", "not_allowed", "scope"])),
        (direct("192.0.2.7"), [&four[..], &[scope]].concat(), with(&["allowed", "namespace"])),
        (direct("192.0.2.7"), vec![("namespace", "")], vec!["invalid_value"]),
        (direct("192.0.2.7"), vec![("scopes", "a")], vec!["unknown_parameter"]),
        (hops("xff-hops=1", &["198.51.100.1, 192.0.2.7"]), vec![], known.clone()),
        (hops("xff-hops=2", &["junk", "[2001:db8::7]:443,10.0.0.9:80"]), vec![scope], known.clone()),
        (hops("xff-hops=1", &[]), vec![], with(&["allowed", "xff_missing"])),
        (hops("xff-hops=3", &["192.0.2.7", "10.0.0.9"]), vec![], with(&["allowed", "xff_too_short"])),
        (hops("xff-hops=1", &["junk"]), vec![], with(&["allowed", "xff_malformed"])),
        (proxies("192.0.2.7", &["198.51.100.1"]), vec![], known.clone()),
        (proxies("10.0.0.5", &["198.51.100.1, 192.0.2.7", "10.1.1.1 , 2001:db8:1::1"]), vec![], known),
        (proxies("10.0.0.5", &["10.1.1.1"]), vec![], with(&["allowed", "xff_all_trusted"])),
        (proxies("10.0.0.5", &["\u{80}"]), vec![], with(&["allowed", "xff_bad_byte"])),
    ];
    for (way, parameters, expected) in cases {
        let (reasons, allocated) = caller.decide(&way, &parameters);
        assert_eq!((reasons, allocated), (expected, 0), "{} {:?} {parameters:?}", way.source, way.forwarded);
    }
    let malformed: [&[&[u8]]; 3] = [&[], &[b"hunter2"], &[b"a", b"b"]];
    let bearers: [&[&[u8]]; 3] = [&[b"Basic hunter2"], &[b"Bearer hunter2"], &[b"Bearer a", b"Bearer b"]];
    let way = direct("192.0.2.7");
    let allocated = measure(|| {
        for lines in malformed.into_iter().zip(bearers) {
            let x_api_key = credential([].into_iter(), lines.0.iter().copied());
            let authorization = credential(lines.1.iter().copied(), [].into_iter());
            for credential in [x_api_key, authorization] {
                let reason = caller.reason(credential, Route::read([].into_iter()), &way);
                assert!(["missing", "malformed"].contains(&reason));
            }
        }
    });
    assert_eq!(allocated.count_total, 0);
}
