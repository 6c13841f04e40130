//! Fixtures for the tests of several packages.

#![allow(clippy::expect_used, reason = "in a test, stopping with a message is how a failure is told")]

use jiff::Timestamp;
use serde_json::Value;

use crate::fence::{Holder, Precondition, Stored};
use crate::keyring::StoredRecord;

/// A valid key.
pub const KEY: &str = "keyw1_eVULq19jgYgonBwBS9PnYuwEwkbytwZtG3LkFawtUJJ3cXN0G";

/// Another valid key.
pub const OTHER_KEY: &str = "keyw1_x3dylZ3lzYKIhQQXeAJ94cGS4sbYtvgcYDsSikFczMP1KVy2b";

/// The name of the record with this serial, of one ApiKey.
pub fn record_name(serial: u32) -> String {
    format!("0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b-{serial}")
}

/// A record. All of these have the same age.
pub fn stored<'r>(name: &'r str, spec: &'r Value) -> StoredRecord<'r> {
    let created = Timestamp::from_second(1_767_225_600).expect("2026-01-01 is a time");
    StoredRecord::read(name, Some(created), spec).expect("a record's name")
}

/// A Lease of this holder as the API server stores it first.
pub fn stored_lease(holder: &Holder) -> Stored {
    Stored {
        name: holder.identity.clone(),
        at: Precondition { uid: "a".into(), version: "1".parse().expect("a version") },
        holder: holder.holder.clone(),
        duration: holder.duration(),
        applied: None,
        is_going: false,
    }
}
