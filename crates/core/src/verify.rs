//! The decision on a request: may it pass?
//!
//! [`check`] is synchronous, does not allocate, and knows no transport. To allow a request it returns a [`Permit`], which
//! nothing else can create.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::Timestamp;

use crate::client_address::Unresolved;
use crate::credential::{Credential, CredentialError};
use crate::key::{Presented, Shown};
use crate::keyring::{Entry, Keyring, Untrusted};
use crate::words::Scope;

/// What a codec has read from a request.
pub struct Request<'r> {
    /// The key in the request.
    pub credential: Result<Credential<'r>, CredentialError>,
    /// What the proxy's configuration requires of a key.
    pub route: Result<Route<'r>, InvalidRoute>,
    /// The client's address. Called only for a key with an address list, so that a bad header does not affect other keys.
    pub client_address: &'r dyn Fn() -> Result<IpAddr, Unresolved>,
}

/// What a route requires of a key. The default requires nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route<'r> {
    /// The key's namespace must be one of these. Empty: any.
    namespaces: Values<'r>,
    /// The key must have all of these.
    scopes: Values<'r>,
}

/// The values of one parameter. The first four need no allocation, and few routes have more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Values<'r> {
    few: [Option<Cow<'r, str>>; 4],
    more: Vec<Cow<'r, str>>,
}

/// Why a route's parameters are not valid. The proxy's configuration is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidRoute {
    /// A parameter other than `namespace` and `scope`. It may be one of them misspelt, so it must not be ignored.
    UnknownParameter,
    /// An empty value, or one that no namespace and no scope can have.
    InvalidValue(Parameter),
    /// Several values with commas between them. Each needs its own parameter.
    Comma(Parameter),
}

/// The parameters of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// `namespace`: a namespace that the route accepts.
    Namespace,
    /// `scope`: a scope that the key must have.
    Scope,
}

/// A key of a request that has a record which can be read.
#[derive(Clone, Copy, Debug)]
pub struct Known<'k, 'r> {
    key: Presented<'r>,
    entry: Entry<'k>,
}

/// Proof that a request may pass.
#[derive(Debug)]
pub struct Permit<'k> {
    entry: Entry<'k>,
    shown: Shown,
    client_address: Option<IpAddr>,
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The request carries no key.
    Missing,
    /// The request does not carry exactly one well-formed key. So is a foreign key where no record is of a submitted one.
    Malformed,
    /// The keyring has no trusted record of the key.
    Unknown(Untrusted),
    /// The key was revoked.
    Revoked,
    /// The key is suspended.
    Suspended,
    /// The key has expired.
    Expired,
    /// The key belongs to a namespace that the route does not accept.
    Namespace,
    /// The key lacks a scope that the route requires.
    Scope,
    /// The client's address is not in the key's list, or is not known.
    Address(AddressDenial),
    /// The route's parameters are not valid.
    Route(InvalidRoute),
    /// The records are not synced, or stale.
    Stale,
}

/// Why a key must not be used from the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressDenial {
    /// The address is not in the key's list.
    NotAllowed(IpAddr),
    /// The address is not known.
    Unresolved(Unresolved),
}

/// Decides whether `request` may pass at `now`, from the records in `keyring`.
///
/// # Errors
/// The first reason against it, in this order: invalid route, malformed credential, unknown, revoked, suspended, expired,
/// namespace, scope, address.
pub fn check<'k>(keyring: &'k Keyring, request: &Request<'_>, now: Timestamp) -> Result<Permit<'k>, Denial> {
    recognize(keyring, request)?.check(request, now)
}

/// The first half of [`check`]: whose key it is.
///
/// # Errors
/// An invalid route, a malformed credential or an unknown key: the request may be any junk.
#[inline]
pub fn recognize<'k, 'r>(keyring: &'k Keyring, request: &Request<'r>) -> Result<Known<'k, 'r>, Denial> {
    request.route()?;
    let key = request.credential.map_err(Denial::from)?.key;
    // Junk is not worth a hash while nobody has submitted a key.
    if key.is_foreign() && !keyring.has_submitted() {
        return Err(Denial::Malformed);
    }
    let entry = keyring.get(&key.digest()).map_err(Denial::Unknown)?;
    Ok(Known { key, entry })
}

impl<'r> Request<'r> {
    fn route(&self) -> Result<&Route<'r>, Denial> {
        self.route.as_ref().map_err(|invalid| Denial::Route(*invalid))
    }
}

impl<'k> Known<'k, '_> {
    /// The second half of [`check`]: whether the key may pass at `now`.
    ///
    /// # Errors
    /// The first reason against it, from revoked on.
    pub fn check(self, request: &Request<'_>, now: Timestamp) -> Result<Permit<'k>, Denial> {
        check_state(self.entry, now)?;
        check_route(self.entry, request.route()?)?;
        let client_address = check_address(self.entry, request.client_address)?;
        Ok(Permit { entry: self.entry, shown: self.shown(), client_address })
    }

    /// The key's entry in the keyring.
    pub fn entry(&self) -> Entry<'k> {
        self.entry
    }

    /// What is shown of the key.
    pub fn shown(&self) -> Shown {
        self.key.shown(&self.entry.digest())
    }
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

/// Checks the client's address. `None` if the key has no list.
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
    /// Reads decoded parameters, in any order. Both may be repeated.
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
            // Every namespace could be a scope. What a codec could not decode is refused too: it has a %, a space or U+FFFD.
            if Scope::parse(&value).is_none() {
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
    /// The key's entry in the keyring.
    pub fn entry(&self) -> Entry<'k> {
        self.entry
    }

    /// What is shown of the key.
    pub fn shown(&self) -> Shown {
        self.shown
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

    /// The word for log and metrics.
    pub fn reason(self) -> &'static str {
        Self::REASONS.get(self.number()).copied().unwrap_or_default()
    }

    /// The index of [`Denial::reason`] in [`Denial::REASONS`].
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

    /// A second word for the log, if there is more to say.
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

    /// What to change in the proxy's configuration.
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
