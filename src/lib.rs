//! Keywright: a Kubernetes operator that issues, delivers, verifies, rotates, expires and revokes API keys, which users
//! declare as [`ApiKey`](keywright_core::api::ApiKey)s. A key is stored in one Secret only. Its
//! [`ApiKeyRecord`](keywright_core::api::ApiKeyRecord) holds the digest.
//!
//! `keywright-core` decides. This package does the I/O: one module for each role, and modules that roles share. No role uses
//! another.
//!
//! # From `kubectl apply` to the Secret
//!
//! 1. The API server asks the [`webhook`], which completes the object, or refuses it with all problems.
//! 2. A watch wakes the [`controller`]. It observes the ApiKey, its Secret and its records.
//! 3. [`plan`](keywright_core::lifecycle::plan) says what to do next. The controller makes this one write, with a
//!    precondition, and observes again, until there is nothing left to write.
//!
//! The controller keeps no state of its progress. So after a crash it simply goes on.
//!
//! # From a request to its answer
//!
//! 1. The [`verifier`] holds a Lease, as the [`fence`](keywright_core::fence) says. Its feed folds the records into a
//!    [`Keyring`](keywright_core::keyring::Keyring).
//! 2. A codec decodes a proxy's question, over HTTP or gRPC.
//! 3. [`check`](keywright_core::verify::check) decides from the keyring and the time, without waiting or allocating.
//! 4. The codec encodes the answer. A permit is noted as a last use. [`usage`](keywright_core::usage) decides what the flush
//!    writes to the records, and when.

pub mod certificates;
pub mod controller;
pub mod verifier;
pub mod webhook;

pub mod serve;

pub mod args;
pub mod authority;
pub mod client;
pub mod clock;
pub mod lease;
pub mod pages;
pub mod telemetry;
pub mod x509;

#[cfg(test)]
mod testing;
