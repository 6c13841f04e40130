//! What an ApiKeyRecord says of its key, read from its spec.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use serde_json::Value;

use crate::address::AllowedAddresses;
use crate::api::{ApiKeyReference, Revocation};
use crate::key::{Digest, Prefix};
use crate::words::{Namespace, Owner, Scope, is_word};

/// Why a record's key is refused, whatever else the record says. Repeats no value, as it may be a key in the wrong
/// place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record is not named as the controller names it, so that another hand has made it.
    #[error("the record's name is not <ApiKey uid>-<serial>: it counts for nothing and should be deleted")]
    Name,
    /// A field that has to be there is not.
    #[error("spec.{0} is missing: the key is refused until the record is complete")]
    Missing(&'static str),
    /// A field holds what it cannot hold.
    #[error("spec.{0} cannot be read: the key is refused until the record is corrected")]
    Unreadable(&'static str),
}

/// What a record says of its key.
pub(super) struct Terms<'v> {
    /// Namespace of the ApiKey: at most 63 octets.
    pub(super) namespace: String,
    /// Name of the ApiKey: at most 253 octets.
    pub(super) name: String,
    /// At most 128 octets; empty if there is none.
    pub(super) owner: &'v str,
    /// With single spaces in between.
    pub(super) scopes: String,
    pub(super) allowed_addresses: Option<AllowedAddresses>,
    pub(super) not_after: Option<Timestamp>,
    pub(super) is_suspended: bool,
    pub(super) is_revoked: bool,
    /// Whether the key was made elsewhere, as nothing of it is shown.
    pub(super) is_submitted: bool,
}

impl<'v> TryFrom<&'v Value> for Terms<'v> {
    type Error = RecordError;

    /// Reads a record's spec. Fields that a decision does not need are not looked at.
    fn try_from(spec: &'v Value) -> Result<Self, RecordError> {
        let api_key: ApiKeyReference = required(spec, "apiKey")?;
        check("apiKey", Namespace::parse(&api_key.namespace).is_some() && is_word(&api_key.name, 253, b"-."))?;
        let owner: Option<&str> = optional(spec, "owner")?;
        check("owner", owner.is_none_or(|owner| Owner::parse(owner).is_some()))?;
        let scopes: Vec<&str> = optional(spec, "scopes")?.unwrap_or_default();
        check("scopes", scopes.iter().all(|scope| Scope::parse(scope).is_some()))?;
        let prefix: Option<&str> = optional(spec, "keyPrefix")?;
        check("keyPrefix", prefix.is_none_or(|prefix| prefix.parse::<Prefix>().is_ok()))?;
        let allowed_ips: Option<Vec<&str>> = optional(spec, "allowedIPs")?;
        let not_after: Option<Time> = optional(spec, "notAfter")?;
        let revoked: Option<Revocation> = optional(spec, "revoked")?;
        Ok(Self {
            namespace: api_key.namespace,
            name: api_key.name,
            owner: owner.unwrap_or_default(),
            scopes: scopes.join(" "),
            allowed_addresses: allowed_ips.as_deref().map(allowed_addresses).transpose()?,
            not_after: not_after.map(|time| time.0),
            is_suspended: optional(spec, "suspended")?.unwrap_or_default(),
            is_revoked: revoked.is_some(),
            is_submitted: prefix.is_none(),
        })
    }
}

/// The digest that a record claims.
pub(super) fn digest(spec: &Value) -> Result<Digest, RecordError> {
    let digest: &str = required(spec, "digest")?;
    digest.parse().map_err(|_| RecordError::Unreadable("digest"))
}

/// The CRD's schema says the same of these texts; here it keeps a record from writing headers of its own, or from
/// having two scopes where it says one.
fn check(field: &'static str, is_fit: bool) -> Result<(), RecordError> {
    if is_fit { Ok(()) } else { Err(RecordError::Unreadable(field)) }
}

fn allowed_addresses(entries: &[&str]) -> Result<AllowedAddresses, RecordError> {
    AllowedAddresses::parse(entries).map_err(|_| RecordError::Unreadable("allowedIPs"))
}

fn required<'v, T: Deserialize<'v>>(spec: &'v Value, field: &'static str) -> Result<T, RecordError> {
    optional(spec, field)?.ok_or(RecordError::Missing(field))
}

/// An explicit `null` is not absence: the API server never stores one, so something else is wrong.
fn optional<'v, T: Deserialize<'v>>(spec: &'v Value, field: &'static str) -> Result<Option<T>, RecordError> {
    spec.get(field).map(T::deserialize).transpose().map_err(|_| RecordError::Unreadable(field))
}
