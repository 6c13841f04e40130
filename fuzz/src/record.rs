use std::net::{IpAddr, Ipv4Addr};

use jiff::Timestamp;
use keywright_core::credential;
use keywright_core::key::Digest;
use keywright_core::keyring::{Keyring, StoredRecord};
use keywright_core::verify::{self, Permit, Request, Route};
use serde_json::{Value, json};

use crate::address::{contains, range};
use crate::{assert_fit_to_print, keys, now};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

/// The input is the JSON of one record's spec, or of a list of them.
pub fn record(data: &[u8]) {
    let Ok(input) = serde_json::from_slice::<Value>(data) else { return };
    let mut specs = match input {
        Value::Array(specs) => specs,
        spec => vec![spec],
    };
    specs.truncate(16);
    side_by_side(&specs);
    one_after_the_other(&specs);
}

/// Each spec is a record of its own. They come in another order than they were made in, but for the neighbour, which is older
/// than them all.
fn side_by_side(specs: &[Value]) {
    let mut keyring = Keyring::default();
    let neighbour = keyring.upsert(&stored(&name(0), 0, &spec(keys::LISTED)));
    assert_eq!(neighbour, Ok(None));
    let age = |index: usize| (index * 7 % 16) as i64;
    for (index, spec) in specs.iter().enumerate() {
        if let Err(distrust) = keyring.upsert(&stored(&name(index + 1), 1 + age(index), spec)) {
            assert_fit_to_print(&distrust.to_string());
        }
        let Some(claimed) = digest(spec) else { continue };
        let claims = specs[..=index].iter().enumerate().filter(|(_, spec)| digest(spec) == Some(claimed));
        let oldest = claims.min_by_key(|(index, _)| age(*index)).map(|(_, spec)| spec);
        let alone = |spec| Keyring::default().upsert(&stored(&name(1), 1, spec));
        let is_neighbours = claimed == Digest::of(keys::LISTED.as_bytes());
        let is_readable = is_neighbours || oldest.is_some_and(|spec| alone(spec).is_ok());
        assert_eq!(keyring.get(&claimed).is_ok(), is_readable, "the oldest of the claims to {claimed} in {specs:?}");
    }
    let is_of_submitted =
        |spec: &Value| spec.get("keyPrefix").is_none() && Keyring::default().upsert(&stored(&name(1), 1, spec)).is_ok();
    assert_eq!(keyring.has_submitted(), specs.iter().any(is_of_submitted), "{specs:?}");
    let neighbour = check(&keyring, keys::LISTED).unwrap_or_else(|denial| panic!("{denial:?} because of {specs:?}"));
    assert_permits(&spec(keys::LISTED), &neighbour);
    if let Ok(permit) = check(&keyring, keys::OPEN) {
        let claims =
            specs.iter().enumerate().filter(|(_, spec)| digest(spec) == Some(Digest::of(keys::OPEN.as_bytes())));
        match claims.min_by_key(|(index, _)| age(*index)) {
            Some((_, oldest)) => assert_permits(oldest, &permit),
            None => panic!("{permit:?} from nothing"),
        }
    }
}

/// Each spec takes the place of the one before, and nothing of that one is left.
fn one_after_the_other(specs: &[Value]) {
    let mut keyring = Keyring::default();
    for spec in specs {
        let taken_in = keyring.replace(&stored(&name(1), 1, spec));
        let mut fresh = Keyring::default();
        assert_eq!(taken_in, fresh.upsert(&stored(&name(1), 1, spec)), "{spec}");
        assert_eq!(keyring.len(), fresh.len(), "{spec}");
        assert_eq!(keyring.has_submitted(), fresh.has_submitted(), "{spec}");
        for digest in specs.iter().filter_map(digest) {
            assert_eq!(keyring.get(&digest).err(), fresh.get(&digest).err(), "{digest} after {spec}");
        }
    }
    keyring.remove(&stored(&name(1), 1, specs.last().unwrap_or(&Value::Null)));
    assert!(keyring.is_empty() && !keyring.has_submitted(), "{specs:?}");
}

/// A good spec for `key`, which may be a foreign one.
pub(crate) fn spec(key: &str) -> Value {
    let mut spec = json!({
        "digest": Digest::of(key.as_bytes()).to_string(),
        "apiKey": { "namespace": "team-a", "name": "billing", "uid": "4a1ebd0c-8a4f-44f1-9f5c-0c2bd2b6a7ae" },
        "serial": 1,
        "owner": "jane@example.com",
        "scopes": ["orders:read", "orders:write"],
    });
    if key.starts_with("keyw") {
        spec["keyPrefix"] = json!(&key[..14]);
    }
    spec
}

pub(crate) fn name(number: usize) -> String {
    format!("4a1ebd0c-8a4f-44f1-9f5c-0c2bd2b6a7ae-{}", number + 1)
}

fn digest(spec: &Value) -> Option<Digest> {
    spec.get("digest")?.as_str()?.parse().ok()
}

fn stored<'r>(name: &'r str, second: i64, spec: &'r Value) -> StoredRecord<'r> {
    StoredRecord::read(name, Timestamp::from_second(second).ok(), spec).expect("a record's name")
}

fn check<'k>(keyring: &'k Keyring, key: &str) -> Result<Permit<'k>, verify::Denial> {
    let credential = credential::credential([].into_iter(), [key.as_bytes()].into_iter());
    let request = Request { credential, route: Ok(Route::default()), client_address: &|| Ok(CLIENT) };
    verify::check(keyring, &request, now())
}

/// Nothing in the record speaks against the permit, and it says of the key what the record says.
fn assert_permits(spec: &Value, permit: &Permit<'_>) {
    assert_eq!(spec.get("revoked"), None, "{spec}");
    assert!(spec.get("suspended").is_none_or(|suspended| *suspended == json!(false)), "{spec}");
    let is_over =
        |time: &Value| time.as_str().and_then(|time| time.parse::<Timestamp>().ok()).is_none_or(|t| t <= now());
    assert!(!spec.get("notAfter").is_some_and(is_over), "{spec}");
    if let Some(entries) = spec.get("allowedIPs") {
        let networks = entries.as_array().into_iter().flatten().filter_map(|entry| {
            let (address, length) = entry.as_str()?.split_once('/').unwrap_or((entry.as_str()?, "32"));
            Some(range(address.parse().ok()?, length.parse().ok()?))
        });
        assert!(contains(&networks.collect::<Vec<_>>(), CLIENT), "{spec}");
    }
    let entry = permit.entry();
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let scopes: Vec<_> =
        spec.get("scopes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let expected = [text("/apiKey/namespace"), text("/apiKey/name"), text("/owner"), scopes.join(" ")];
    assert_eq!(
        [entry.namespace(), entry.name(), entry.owner(), entry.scopes()],
        expected.each_ref().map(|text| &**text)
    );
    let is_fit = |text: &String| text.bytes().all(|octet| (b' '..=b'~').contains(&octet));
    assert!(expected.iter().all(is_fit) && !expected[..3].concat().contains(' '), "{spec}");
    assert!(scopes.iter().all(|scope| !scope.contains(' ') && !scope.is_empty()), "{spec}");
}
