//! Keywright: a Kubernetes operator that issues, delivers, verifies, expires and revokes API keys declared as
//! [`ApiKey`](keywright_core::api::ApiKey)s. No key is stored but in one Secret: an
//! [`ApiKeyRecord`](keywright_core::api::ApiKeyRecord) holds its digest.
//!
//! What to do is decided in `keywright-core`. This package does it: one module for each role of the program, and what
//! roles share. No role uses another.
//!
//! # From `kubectl apply` to the Secret
//!
//! 1. The API server asks the [`webhook`], which completes the object or refuses it with everything that is wrong.
//! 2. A watch wakes the [`controller`]. It observes the ApiKey, its Secret and its records.
//! 3. [`plan`](keywright_core::lifecycle::plan) says what to do next. The controller carries out that one write under a
//!    precondition, and observes again, until nothing is left to write.
//!
//! Nothing remembers how far a controller came: "crashed here" and "came this far" are the same input.
//!
//! # From a request to its answer
//!
//! 1. The [`verifier`]'s feed folds the records into a [`Keyring`](keywright_core::keyring::Keyring).
//! 2. A codec decodes what a proxy asks, over HTTP or gRPC.
//! 3. [`check`](keywright_core::verify::check) decides from the keyring and the time, without waiting or allocating.
//! 4. The codec encodes the answer. A permit leaves a mark in [`usage`](keywright_core::usage), which says what the flush
//!    writes back to the records, and when.

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
