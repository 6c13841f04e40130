//! What a decision needs to know of one key.

use jiff::Timestamp;

use super::RecordName;
use super::bucket::Claim;
use crate::address::AllowedAddresses;

/// What a decision needs to know of one key: a view into the keyring.
///
/// All texts are ASCII without spaces and control characters, fit for a header; `scopes` has single spaces in between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry<'k> {
    pub(super) claim: Claim<'k>,
    pub(super) allowed_addresses: Option<&'k AllowedAddresses>,
}

/// What the keys of one owner in one namespace mostly have in common: stored once for all of them.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Profile {
    /// Namespace, owner and scopes, one after the other.
    text: Box<str>,
    owner_start: u16,
    scopes_start: u16,
}

impl<'k> Entry<'k> {
    /// Namespace of the ApiKey.
    pub fn namespace(&self) -> &'k str {
        let profile = self.claim.profile();
        profile.text.get(..usize::from(profile.owner_start)).unwrap_or_default()
    }

    /// Name of the ApiKey.
    pub fn name(&self) -> &'k str {
        self.claim.tail().name
    }

    /// The person of responsibility; empty if there is none.
    pub fn owner(&self) -> &'k str {
        let profile = self.claim.profile();
        profile.text.get(usize::from(profile.owner_start)..usize::from(profile.scopes_start)).unwrap_or_default()
    }

    /// What the key is good for, separated by spaces; empty if nothing in particular.
    pub fn scopes(&self) -> &'k str {
        let profile = self.claim.profile();
        profile.text.get(usize::from(profile.scopes_start)..).unwrap_or_default()
    }

    /// Whether the key has this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().split_ascii_whitespace().any(|own| own == scope)
    }

    /// The client addresses that may use the key; absent means any.
    pub fn allowed_addresses(&self) -> Option<&'k AllowedAddresses> {
        self.allowed_addresses
    }

    /// The instant from which the key is refused; absent means never. Whole microseconds: what the record says beyond
    /// that is cut off.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.claim.not_after()
    }

    /// Whether that instant has come.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.claim.is_expired(now)
    }

    /// Refused for as long as this is true.
    pub fn is_suspended(&self) -> bool {
        self.claim.is_suspended()
    }

    /// Refused for ever.
    pub fn is_revoked(&self) -> bool {
        self.claim.is_revoked()
    }

    /// Name of the record.
    pub fn record_name(&self) -> RecordName {
        self.claim.record_name()
    }

    /// The record's number among all that this keyring and its clones have seen: 0, 1, 2 and so on. A record keeps its
    /// number while it is there, and no other ever gets it.
    pub fn slot(&self) -> u32 {
        self.claim.slot()
    }
}

impl Profile {
    /// The lengths are those that [`super::terms`] lets through: 63 and 128 octets at most.
    pub(super) fn new(namespace: &str, owner: &str, scopes: &[&str]) -> Self {
        let end = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        Self {
            text: [namespace, owner, &scopes.join(" ")].concat().into(),
            owner_start: end(namespace.len()),
            scopes_start: end(namespace.len() + owner.len()),
        }
    }
}
