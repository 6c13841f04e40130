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
mod tests;
