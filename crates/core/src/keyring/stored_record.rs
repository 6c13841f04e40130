//! A record, read once: typed, or what is wrong with it.

use jiff::Timestamp;
use serde_json::Value;

use super::shard::{Rank, second};
use super::terms::{self, RecordError, Terms};
use crate::key::Digest;
use crate::record_name::RecordName;

/// A record as a keyring takes it in.
pub struct StoredRecord<'v> {
    pub(super) rank: Rank,
    /// The digest that it claims, and what it says of that key.
    pub(super) claim: Result<(Digest, Result<Terms<'v>, RecordError>), RecordError>,
}

impl<'v> StoredRecord<'v> {
    /// Reads a record: `metadata.name`, `metadata.creationTimestamp`, and `spec`. One without a time counts as older than all
    /// that have one: whoever may rule can only close a key by it.
    ///
    /// # Errors
    /// If it is not named as a record, so that it counts for nothing. What else is wrong with it closes its key.
    pub fn read(name: &str, created: Option<Timestamp>, spec: &'v Value) -> Result<Self, RecordError> {
        let name: RecordName = name.parse().map_err(|_| RecordError::Name)?;
        let claim = terms::digest(spec).map(|digest| (digest, Terms::try_from(spec)));
        Ok(Self { rank: (created.map_or(0, second), name), claim })
    }

    /// The digest that it claims, where that can be read.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.claim.as_ref().ok().map(|(digest, _)| digest)
    }
}
