//! PURE. The decision: may the caller of this request in?
//!
//! [`check`] is synchronous, allocates nothing and knows no transport. Its one way to say yes is a [`Permit`], which
//! nothing else can make.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::Timestamp;

use crate::address::client::Unresolved;
use crate::key::{Credential, CredentialError, Prefix};
use crate::keyring::{Entry, Keyring, Untrusted, is_word};

/// What a codec has read out of a request.
pub struct Request<'r> {
    /// The key that the request presents.
    pub credential: Result<Credential<'r>, CredentialError>,
    /// What whoever configured the proxy demands.
    pub route: Result<Route<'r>, InvalidRoute>,
    /// Whose address the request comes from. Asked only about a key with an address list, so that a header that gives
    /// no answer shuts out nobody else.
    pub client_address: &'r dyn Fn() -> Result<IpAddr, Unresolved>,
}

/// What a route demands of a key. The default demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route<'r> {
    /// The key's namespace has to be one of these; empty means any.
    namespaces: Values<'r>,
    /// The key has to have all of these.
    scopes: Values<'r>,
}

/// The values of one parameter. The first few need no memory of their own: few routes demand more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Values<'r> {
    few: [Option<Cow<'r, str>>; 4],
    more: Vec<Cow<'r, str>>,
}

/// Why a route's parameters are unusable. The fault is in the proxy's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRoute {
    /// A parameter other than `namespace` and `scope`: perhaps one of them misspelt, which must not demand nothing.
    UnknownParameter,
    /// A value that is empty, or that no namespace and no scope can have.
    InvalidValue(Parameter),
    /// Several values in one, with commas between them, where each should have a parameter of its own.
    Comma(Parameter),
}

/// What a route may demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// `namespace`.
    Namespace,
    /// `scope`.
    Scope,
}

/// Proof that a request may pass.
#[derive(Debug)]
pub struct Permit<'k> {
    entry: Entry<'k>,
    prefix: Prefix,
    client_address: Option<IpAddr>,
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It carries no key.
    Missing,
    /// What it carries is not one key.
    Malformed,
    /// The keyring does not vouch for the key.
    Unknown(Untrusted),
    /// The key was revoked.
    Revoked,
    /// The key is suspended.
    Suspended,
    /// The key's time is over.
    Expired,
    /// The key belongs to a namespace that the route does not accept.
    Namespace,
    /// The key lacks a scope that the route demands.
    Scope,
    /// The key must not be used from this address.
    Address(AddressDenial),
    /// The route's parameters are unusable.
    Route(InvalidRoute),
    /// The records are not known, or too old to rely on.
    Stale,
}

/// Why a key must not be used from where the request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressDenial {
    /// The address is not in the key's list.
    NotAllowed(IpAddr),
    /// Nobody can tell the address.
    Unresolved(Unresolved),
}

/// Decides whether `request` may pass at `now`, from the records in `keyring`.
///
/// # Errors
/// The first reason against it: the route's own fault, then the shape of the credential, known, not revoked, not
/// suspended, not expired, namespace, scope, address.
pub fn check<'k>(keyring: &'k Keyring, request: &Request<'_>, now: Timestamp) -> Result<Permit<'k>, Denial> {
    let route = request.route.as_ref().map_err(|invalid| Denial::Route(*invalid))?;
    let key = &request.credential.as_ref().map_err(|error| Denial::from(*error))?.key;
    let entry = keyring.get(key.digest()).map_err(Denial::Unknown)?;
    check_state(entry, now)?;
    check_route(entry, route)?;
    let client_address = check_address(entry, request.client_address)?;
    Ok(Permit { entry, prefix: key.prefix(), client_address })
}

fn check_state(entry: Entry<'_>, now: Timestamp) -> Result<(), Denial> {
    if entry.is_revoked() {
        Err(Denial::Revoked)
    } else if entry.is_suspended() {
        Err(Denial::Suspended)
    } else if entry.not_after().is_some_and(|not_after| now >= not_after) {
        Err(Denial::Expired)
    } else {
        Ok(())
    }
}

fn check_route(entry: Entry<'_>, route: &Route<'_>) -> Result<(), Denial> {
    let mut namespaces = route.namespaces.iter().peekable();
    if namespaces.peek().is_some() && !namespaces.any(|namespace| namespace == entry.namespace()) {
        Err(Denial::Namespace)
    } else if !route.scopes.iter().all(|scope| entry.has_scope(scope)) {
        Err(Denial::Scope)
    } else {
        Ok(())
    }
}

/// The client's address, where the key has a list that it had to be checked against.
fn check_address(
    entry: Entry<'_>,
    client_address: &dyn Fn() -> Result<IpAddr, Unresolved>,
) -> Result<Option<IpAddr>, Denial> {
    let Some(allowed) = entry.allowed_addresses() else {
        return Ok(None);
    };
    let address = client_address().map_err(|unresolved| Denial::Address(AddressDenial::Unresolved(unresolved)))?;
    if allowed.contains(address) { Ok(Some(address)) } else { Err(Denial::Address(AddressDenial::NotAllowed(address))) }
}

impl<'r> Route<'r> {
    /// Reads decoded parameters, in any order. Both names may stand there more than once.
    ///
    /// # Errors
    /// See [`InvalidRoute`].
    pub fn read(parameters: impl Iterator<Item = (Cow<'r, str>, Cow<'r, str>)>) -> Result<Self, InvalidRoute> {
        let mut route = Self::default();
        for (name, value) in parameters {
            let (parameter, values) = match &*name {
                "namespace" => (Parameter::Namespace, &mut route.namespaces),
                "scope" => (Parameter::Scope, &mut route.scopes),
                _ => return Err(InvalidRoute::UnknownParameter),
            };
            // What a codec could not decode shows up here: as %, as a space or as U+FFFD.
            if !is_word(&value, 64, b"._:/-") {
                let comma = value.contains(',');
                return Err(if comma { InvalidRoute::Comma(parameter) } else { InvalidRoute::InvalidValue(parameter) });
            }
            values.push(value);
        }
        Ok(route)
    }
}

impl<'r> Values<'r> {
    fn push(&mut self, value: Cow<'r, str>) {
        match self.few.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(value),
            None => self.more.push(value),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        self.few.iter().flatten().chain(&self.more).map(|value| &**value)
    }
}

impl<'k> Permit<'k> {
    /// The entry that the permit rests on.
    pub fn entry(&self) -> Entry<'k> {
        self.entry
    }

    /// How people recognise the key.
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// The client's address, if the key has an address list.
    pub fn client_address(&self) -> Option<IpAddr> {
        self.client_address
    }
}

impl Denial {
    /// Every value of [`Denial::reason`], each at [`Denial::number`].
    pub const REASONS: [&'static str; 11] = [
        "missing",
        "malformed",
        "unknown",
        "revoked",
        "suspended",
        "expired",
        "namespace",
        "scope",
        "address",
        "route",
        "stale",
    ];

    /// The word that stands in log and metrics.
    pub fn reason(self) -> &'static str {
        Self::REASONS.get(self.number()).copied().unwrap_or_default()
    }

    /// Where [`Denial::reason`] stands in [`Denial::REASONS`].
    pub fn number(self) -> usize {
        match self {
            Self::Missing => 0,
            Self::Malformed => 1,
            Self::Unknown(_) => 2,
            Self::Revoked => 3,
            Self::Suspended => 4,
            Self::Expired => 5,
            Self::Namespace => 6,
            Self::Scope => 7,
            Self::Address(_) => 8,
            Self::Route(_) => 9,
            Self::Stale => 10,
        }
    }

    /// Whether the key has a record that can be read, so that the denial is about that one and not about junk.
    pub fn is_of_known_key(self) -> bool {
        match self {
            Self::Revoked | Self::Suspended | Self::Expired | Self::Namespace | Self::Scope | Self::Address(_) => true,
            Self::Missing | Self::Malformed | Self::Unknown(_) | Self::Route(_) | Self::Stale => false,
        }
    }

    /// What the log adds to the reason, where there is more to say.
    pub fn cause(self) -> Option<&'static str> {
        match self {
            Self::Unknown(untrusted) => Some(untrusted.as_str()),
            Self::Address(AddressDenial::Unresolved(unresolved)) => Some(unresolved.as_str()),
            Self::Address(AddressDenial::NotAllowed(_)) => Some("not_allowed"),
            Self::Route(InvalidRoute::UnknownParameter) => Some("unknown_parameter"),
            Self::Route(InvalidRoute::InvalidValue(_) | InvalidRoute::Comma(_)) => Some("invalid_value"),
            _ => None,
        }
    }

    /// What to do, for whoever configured the proxy.
    pub fn remedy(self) -> Option<&'static str> {
        let Self::Route(invalid) = self else { return None };
        Some(match invalid {
            InvalidRoute::UnknownParameter => "ask with the parameters namespace and scope only",
            InvalidRoute::InvalidValue(Parameter::Namespace) => "namespace: write the name of one namespace",
            InvalidRoute::InvalidValue(Parameter::Scope) => "scope: write 1 to 64 letters, digits and ._:/-",
            InvalidRoute::Comma(Parameter::Namespace) => "namespace: repeat the parameter instead of a comma",
            InvalidRoute::Comma(Parameter::Scope) => "scope: repeat the parameter instead of a comma",
        })
    }
}

impl From<CredentialError> for Denial {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::Missing => Self::Missing,
            CredentialError::Ambiguous | CredentialError::Duplicate | CredentialError::Malformed => Self::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::iter::empty;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::key::{Digest, credential};
    use crate::testing::{record_name, stored};

    const KEY: &str = "keyw1_eVULq19jgYgonBwBS9PnYuwEwkbytwZtG3LkFawtUJJ3cXN0G";
    const OTHER_KEY: &str = "keyw1_x3dylZ3lzYKIhQQXeAJ94cGS4sbYtvgcYDsSikFczMP1KVy2b";
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
        keyring.upsert(stored(&record_name(1), spec)).unwrap();
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
            let request =
                Request { credential: case.credential(), route: case.route(), client_address: &client_address };
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
        assert_eq!(permit.prefix().as_str(), "keyw1_eVULq19j", "of the key presented, as the record has none");
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
    fn passes(
        networks: &[String],
        scopes: &[String],
        seconds: i64,
        namespaces: &[String],
        demanded: &[String],
    ) -> bool {
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
}
