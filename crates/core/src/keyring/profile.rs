//! What many keys have in common: stored once for all of them.

use std::hint::black_box;
use std::sync::Arc;

use crate::address::AllowedAddresses;

/// What the keys of one owner in one namespace mostly have in common.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Profile {
    /// Namespace, owner and scopes, one after the other.
    text: Arc<str>,
    owner_start: u16,
    scopes_start: u16,
    allowed_addresses: Option<Arc<AllowedAddresses>>,
}

impl Profile {
    /// The lengths are those that [`super::terms`] lets through: 63 and 128 octets at most.
    pub(super) fn new(namespace: &str, owner: &str, scopes: &[&str]) -> Self {
        let end = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        Self {
            text: [namespace, owner, &scopes.join(" ")].concat().into(),
            owner_start: end(namespace.len()),
            scopes_start: end(namespace.len() + owner.len()),
            allowed_addresses: None,
        }
    }

    /// The same for keys with such a list. It has the text in common with this one.
    pub(super) fn with_allowed_addresses(&self, list: Arc<AllowedAddresses>) -> Self {
        Self { text: Arc::clone(&self.text), allowed_addresses: Some(list), ..*self }
    }

    /// Looks at its texts.
    pub(super) fn look(&self) {
        black_box(self.text.as_bytes().first().copied());
    }

    pub(super) fn namespace(&self) -> &str {
        self.text.get(..usize::from(self.owner_start)).unwrap_or_default()
    }

    pub(super) fn owner(&self) -> &str {
        self.text.get(usize::from(self.owner_start)..usize::from(self.scopes_start)).unwrap_or_default()
    }

    pub(super) fn scopes(&self) -> &str {
        self.text.get(usize::from(self.scopes_start)..).unwrap_or_default()
    }

    /// The client addresses that may use the keys; absent means any.
    pub(super) fn allowed_addresses(&self) -> Option<&AllowedAddresses> {
        self.allowed_addresses.as_deref()
    }
}
