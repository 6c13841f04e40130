//! What a decision needs to know of one key.

use jiff::Timestamp;

use super::shard::Claim;
use crate::address::AllowedAddresses;
use crate::key::Digest;
use crate::record_name::RecordName;

/// What a decision needs to know of one key: a view into the keyring.
///
/// All texts are ASCII without spaces and control characters, fit for a header; `scopes` has single spaces in between.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry<'k>(Claim<'k>);

impl<'k> Entry<'k> {
    /// What the record says of its key; `None` if it cannot be read.
    pub(super) fn of(claim: Claim<'k>) -> Option<Self> {
        claim.is_readable().then_some(Self(claim))
    }

    /// The digest of the key.
    pub fn digest(&self) -> Digest {
        self.0.digest()
    }

    /// Namespace of the ApiKey.
    pub fn namespace(&self) -> &'k str {
        self.0.namespace()
    }

    /// Name of the ApiKey.
    pub fn name(&self) -> &'k str {
        self.0.name()
    }

    /// `spec.owner`; empty if there is none.
    pub fn owner(&self) -> &'k str {
        self.0.owner()
    }

    /// What the key is good for, separated by spaces; empty if nothing in particular.
    pub fn scopes(&self) -> &'k str {
        self.0.scopes()
    }

    /// Whether the key has this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes().split_ascii_whitespace().any(|own| own == scope)
    }

    /// The client addresses that may use the key; absent means any.
    pub fn allowed_addresses(&self) -> Option<&'k AllowedAddresses> {
        self.0.allowed_addresses()
    }

    /// The instant from which the key is refused; absent means never. Whole microseconds: what the record says beyond
    /// that is cut off.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.0.not_after()
    }

    /// Refused for as long as this is true.
    pub fn is_suspended(&self) -> bool {
        self.0.is_suspended()
    }

    /// Refused for ever.
    pub fn is_revoked(&self) -> bool {
        self.0.is_revoked()
    }

    /// Name of the record.
    pub fn record_name(&self) -> RecordName {
        self.0.record_name()
    }

    /// The record's number among all that this keyring and its clones have seen: 0, 1, 2 and so on. A record keeps its
    /// number while it is there, and no other ever gets it.
    pub fn slot(&self) -> u32 {
        self.0.slot()
    }
}
