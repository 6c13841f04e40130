use std::cell::Cell;
use std::iter::empty;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::credential::credential;
use crate::key::Digest;
use crate::testing::{KEY, OTHER_KEY, record_name, stored};

const NOW: &str = "2026-11-23T12:00:00Z";
const HERE: &str = "192.0.2.7";

/// A request and the one record, each property good or bad.
#[derive(Clone, Copy, Debug)]
struct Case {
    route: bool,
    credential: Option<CredentialError>,
    known: bool,
    revoked: bool,
    suspended: bool,
    expired: bool,
    namespace: bool,
    scope: bool,
    address: Address,
}

#[derive(Clone, Copy, Debug)]
enum Address {
    Any,
    Allowed,
    NotAllowed,
    Unresolved,
}

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let credentials = [
            None,
            Some(CredentialError::Missing),
            Some(CredentialError::Ambiguous),
            Some(CredentialError::Duplicate),
            Some(CredentialError::Malformed),
        ];
        let addresses = [Address::Any, Address::Allowed, Address::NotAllowed, Address::Unresolved];
        (0..128_u8).flat_map(move |bits| {
            credentials.into_iter().flat_map(move |credential| {
                addresses.into_iter().map(move |address| {
                    let bit = |place: u8| bits >> place & 1 == 1;
                    Self {
                        route: bit(0),
                        credential,
                        known: bit(1),
                        revoked: bit(2),
                        suspended: bit(3),
                        expired: bit(4),
                        namespace: bit(5),
                        scope: bit(6),
                        address,
                    }
                })
            })
        })
    }

    /// The reasons against it, in the order of the contract.
    fn reasons(&self) -> Vec<&'static str> {
        let is_missing = self.credential == Some(CredentialError::Missing);
        let is_address_bad = matches!(self.address, Address::NotAllowed | Address::Unresolved);
        let all = [
            (!self.route, "route"),
            (is_missing, "missing"),
            (self.credential.is_some() && !is_missing, "malformed"),
            (!self.known, "unknown"),
            (self.revoked, "revoked"),
            (self.suspended, "suspended"),
            (self.expired, "expired"),
            (!self.namespace, "namespace"),
            (!self.scope, "scope"),
            (is_address_bad, "address"),
        ];
        all.iter().filter(|(applies, _)| *applies).map(|(_, reason)| *reason).collect()
    }

    fn spec(&self) -> Value {
        let mut spec = json!({
            "digest": Digest::of(if self.known { KEY } else { OTHER_KEY }.as_bytes()).to_string(),
            "apiKey": { "namespace": "team-a", "name": "billing", "uid": "c" },
            "scopes": ["orders:read", "orders:write"],
            "suspended": self.suspended,
            "notAfter": if self.expired { NOW } else { "2026-11-23T12:00:00.000001Z" },
        });
        if self.revoked {
            spec["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
        }
        match self.address {
            Address::Any => {}
            Address::Allowed | Address::Unresolved => spec["allowedIPs"] = json!(["192.0.2.0/24"]),
            Address::NotAllowed => spec["allowedIPs"] = json!(["198.51.100.0/24"]),
        }
        spec
    }

    fn route(&self) -> Result<Route<'static>, InvalidRoute> {
        if !self.route {
            return Err(InvalidRoute::UnknownParameter);
        }
        let namespace = if self.namespace { "team-a" } else { "team-c" };
        let scope = if self.scope { "orders:write" } else { "admin" };
        route(&[("namespace", "team-b"), ("scope", "orders:read"), ("namespace", namespace), ("scope", scope)])
    }

    fn credential(&self) -> Result<Credential<'static>, CredentialError> {
        self.credential.map_or_else(presented, Err)
    }
}

fn presented() -> Result<Credential<'static>, CredentialError> {
    credential(empty(), [KEY.as_bytes()].into_iter())
}

fn route(parameters: &[(&'static str, &'static str)]) -> Result<Route<'static>, InvalidRoute> {
    Route::read(parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())))
}

fn keyring(spec: &Value) -> Keyring {
    let mut keyring = Keyring::default();
    keyring.upsert(&stored(&record_name(1), spec)).unwrap();
    keyring
}

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

#[test]
fn every_combination_is_denied_for_the_first_reason_against_it_or_allowed() {
    let mut allowed = 0;
    for case in Case::all() {
        let keyring = keyring(&case.spec());
        let asked = Cell::new(false);
        let client_address = || {
            asked.set(true);
            let is_known = !matches!(case.address, Address::Unresolved);
            if is_known { Ok(HERE.parse().unwrap()) } else { Err(Unresolved::TooShort) }
        };
        let request = Request { credential: case.credential(), route: case.route(), client_address: &client_address };
        let decision = check(&keyring, &request, now());
        let reason = decision.as_ref().err().map(|denial| denial.reason());
        assert_eq!(reason, case.reasons().first().copied(), "{case:?}");
        let has_list = !matches!(case.address, Address::Any);
        let is_last = matches!(reason, None | Some("address"));
        assert_eq!(asked.get(), has_list && is_last, "{case:?}: the address is asked for only where it matters");
        allowed += usize::from(decision.is_ok());
    }
    assert_eq!(allowed, 2, "with any address, and with an allowed one");
}

#[test]
fn a_permit_tells_whose_key_it_is_and_a_denial_no_more_than_it_knows() {
    let case = Case::all().find(|case| case.reasons().is_empty() && matches!(case.address, Address::Allowed));
    let keyring = keyring(&case.unwrap().spec());
    let here = || Ok(HERE.parse().unwrap());
    let request = Request { credential: presented(), route: route(&[]), client_address: &here };
    let permit = check(&keyring, &request, now()).unwrap();
    assert_eq!((permit.entry().namespace(), permit.entry().name()), ("team-a", "billing"));
    assert_eq!(permit.shown().as_str(), "keyw1_eVULq19j", "of the key presented, as the record has none");
    assert_eq!(permit.client_address(), Some(HERE.parse().unwrap()));

    let elsewhere = || Ok("192.0.3.7".parse().unwrap());
    let request = Request { client_address: &elsewhere, ..request };
    let denial = check(&keyring, &request, now()).unwrap_err();
    assert_eq!(denial.cause(), Some("not_allowed"));

    let nowhere = || Err(Unresolved::AllTrusted);
    let request = Request { client_address: &nowhere, ..request };
    let denial = check(&keyring, &request, now()).unwrap_err();
    assert_eq!(denial.cause(), Some("xff_all_trusted"));
}

#[test]
fn a_foreign_key_is_looked_up_only_while_a_record_of_a_submitted_key_is_there() {
    const FOREIGN: &str = "live_0123456789abcdef";
    let decide = |keyring: &Keyring, key: &str| {
        let credential = credential(empty(), [key.as_bytes()].into_iter());
        let request = Request { credential, route: route(&[]), client_address: &|| Ok(HERE.parse().unwrap()) };
        check(keyring, &request, now()).map(|permit| permit.shown().to_string()).map_err(Denial::reason)
    };
    let spec = |key: &str| {
        let digest = Digest::of(key.as_bytes()).to_string();
        json!({ "digest": digest, "apiKey": { "namespace": "team-a", "name": "billing", "uid": "c" } })
    };
    let mut generated = spec(KEY);
    generated["keyPrefix"] = json!("keyw1_eVULq19j");
    let mut keyring = keyring(&generated);
    assert_eq!(decide(&keyring, KEY).as_deref(), Ok("keyw1_eVULq19j"));
    assert_eq!(decide(&keyring, FOREIGN), Err("malformed"));

    let (name, other) = (record_name(2), spec(OTHER_KEY));
    keyring.upsert(&stored(&name, &other)).unwrap();
    assert_eq!(decide(&keyring, OTHER_KEY).as_deref(), Ok("keyw1_x3dylZ3l"), "of the key that was presented");
    assert_eq!(decide(&keyring, FOREIGN), Err("unknown"));
    assert_eq!(decide(&keyring, "live_0123456789"), Err("malformed"));

    let (foreign_name, mut foreign) = (record_name(3), spec(FOREIGN));
    keyring.upsert(&stored(&foreign_name, &foreign)).unwrap();
    assert_eq!(decide(&keyring, FOREIGN).as_deref(), Ok(&Digest::of(FOREIGN.as_bytes()).to_string()[..19]));
    keyring.remove(&stored(&name, &other));
    foreign["revoked"] = json!({ "at": "2026-01-01T00:00:00Z", "reason": "Deleted" });
    keyring.replace(&stored(&foreign_name, &foreign)).unwrap();
    assert_eq!(decide(&keyring, FOREIGN), Err("revoked"), "a tombstone is a record too");
    keyring.remove(&stored(&foreign_name, &foreign));
    assert_eq!(decide(&keyring, FOREIGN), Err("malformed"));
}

#[test]
fn route_parameters_are_the_two_known_ones_with_a_value_each() {
    let good: &[&[(&str, &str)]] = &[
        &[],
        &[("namespace", "team-a")],
        &[("scope", "a"), ("namespace", "x"), ("scope", "b.c/d:e_F-1"), ("namespace", "y")],
    ];
    let bad: &[(&'static str, &'static str)] = &[
        ("namespace", ""),
        ("scope", ""),
        ("scope", "a b"),
        ("scope", "a,b"),
        ("scope", "%zz"),
        ("namespace", "team\u{fffd}"),
        ("namespace", "*"),
    ];
    for parameters in good {
        let expected = |name: &str| parameters.iter().filter(|(own, _)| *own == name).count();
        let route = route(parameters).unwrap();
        assert_eq!(
            (route.namespaces.iter().count(), route.scopes.iter().count()),
            (expected("namespace"), expected("scope"))
        );
    }
    for parameter in bad {
        let asked = if parameter.0 == "scope" { Parameter::Scope } else { Parameter::Namespace };
        let invalid = match parameter.1.contains(',') {
            true => InvalidRoute::Comma(asked),
            false => InvalidRoute::InvalidValue(asked),
        };
        assert_eq!(route(&[("scope", "ok"), *parameter]), Err(invalid), "{parameter:?}");
    }
    for name in ["", "Namespace", "namespaces", "scopes", "key", "namespace "] {
        assert_eq!(route(&[(name, "a")]), Err(InvalidRoute::UnknownParameter), "{name:?}");
    }
}

#[test]
fn every_reason_is_listed() {
    let address = Denial::Address(AddressDenial::Unresolved(Unresolved::Missing));
    let (unknown, route) =
        (Denial::Unknown(Untrusted::Absent), Denial::Route(InvalidRoute::InvalidValue(Parameter::Scope)));
    let all = [
        Denial::Missing,
        Denial::Malformed,
        unknown,
        Denial::Revoked,
        Denial::Suspended,
        Denial::Expired,
        Denial::Namespace,
        Denial::Scope,
        address,
        route,
        Denial::Stale,
    ];
    assert_eq!(all.map(Denial::reason), Denial::REASONS);
}

/// Whether a key with this list and these scopes passes here, at `seconds` before (or after) its end, on a route
/// that accepts these namespaces and demands these scopes.
fn passes(networks: &[String], scopes: &[String], seconds: i64, namespaces: &[String], demanded: &[String]) -> bool {
    let not_after = now() - jiff::SignedDuration::from_secs(seconds);
    let keyring = keyring(&json!({
        "digest": Digest::of(KEY.as_bytes()).to_string(),
        "apiKey": { "namespace": "n1", "name": "billing", "uid": "c" },
        "scopes": scopes,
        "allowedIPs": networks,
        "notAfter": not_after.to_string(),
    }));
    let pair = |name: &'static str| move |value: &String| (Cow::from(name), Cow::from(value.clone()));
    let here = || Ok(HERE.parse().unwrap());
    let parameters = namespaces.iter().map(pair("namespace")).chain(demanded.iter().map(pair("scope")));
    let request = Request { credential: presented(), route: Route::read(parameters), client_address: &here };
    check(&keyring, &request, now()).is_ok()
}

fn subset(of: &'static [&'static str], least: usize) -> impl Strategy<Value = Vec<String>> {
    proptest::sample::subsequence(of.to_vec(), least..=of.len())
        .prop_map(|chosen| chosen.into_iter().map(str::to_owned).collect())
}

fn with(list: &[String], more: &str) -> Vec<String> {
    let mut list = list.to_vec();
    if !list.iter().any(|own| own == more) {
        list.push(more.to_owned());
    }
    list
}

proptest! {
    /// A longer address list, more scopes of the key and more accepted namespaces let nobody out; a later hour
    /// and more demanded scopes let nobody in.
    #[test]
    fn more_leave_never_takes_leave_away(
        networks in subset(&["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"], 1),
        scopes in subset(&["a", "b", "c"], 0),
        seconds in -2..2_i64,
        namespaces in subset(&["n1", "n2", "n3"], 0),
        demanded in subset(&["a", "b", "d"], 0),
        network in proptest::sample::select(vec!["10.0.0.0/8", "192.0.2.7/32", "::/0"]),
        word in proptest::sample::select(vec!["a", "b", "c", "d"]),
    ) {
        let before = passes(&networks, &scopes, seconds, &namespaces, &demanded);
        prop_assert!(before <= passes(&with(&networks, network), &scopes, seconds, &namespaces, &demanded));
        prop_assert!(before <= passes(&networks, &with(&scopes, word), seconds, &namespaces, &demanded));
        prop_assert!(before >= passes(&networks, &scopes, seconds + 1, &namespaces, &demanded));
        prop_assert!(before >= passes(&networks, &scopes, seconds, &namespaces, &with(&demanded, word)));
        if !namespaces.is_empty() {
            prop_assert!(before <= passes(&networks, &scopes, seconds, &with(&namespaces, "n1"), &demanded));
        }
    }
}
