//! What the tests of several packages need of a keyring.

#![allow(clippy::expect_used, reason = "in a test, stopping with a message is how a failure is told")]

use jiff::Timestamp;
use serde_json::Value;

use crate::keyring::StoredRecord;

/// The name of a record of one ApiKey with this serial.
pub fn record_name(serial: u32) -> String {
    format!("0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b-{serial}")
}

/// A record that is as old as all others of this kind.
pub fn stored<'r>(name: &'r str, spec: &'r Value) -> StoredRecord<'r> {
    let created = Timestamp::from_second(1_767_225_600).expect("2026-01-01 is a time");
    StoredRecord { name, created: Some(created), spec }
}
