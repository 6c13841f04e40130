//! Keywright's decisions: values and the time go in, values come out.
//!
//! This crate does no I/O and never waits, reads a clock or draws a random number. Time and randomness are arguments.
//!
//! - [`api`]: the two kinds as Kubernetes sees them.
//! - [`declaration`]: what an ApiKey's spec means. [`admission`] completes or refuses an ApiKey by it.
//! - [`secret_template`]: what a Secret holds beside the key.
//! - [`lifecycle`]: what the controller does next for an observed ApiKey.
//! - [`authority`]: what to do about the webhook's CA.
//! - [`election`]: which controller leads.
//! - [`fence`]: when no verifier accepts a revoked key any more.
//! - [`keyring`]: the records that are trusted now. [`verify`] decides a request from it, [`usage`] notes uses.
//! - [`proxy`]: which HTTP proxy a client takes to the API server.
//! - [`key`], [`address`], [`duration`], [`date_time`], [`words`]: the values that all of them use.

pub mod api;

pub mod address;
pub mod client_address;
pub mod credential;
pub mod date_time;
pub mod duration;
pub mod key;
pub mod proxy;
pub mod record_name;
pub mod resource_version;
pub mod secret_template;
pub mod words;

pub mod admission;
pub mod declaration;

pub mod authority;
pub mod election;
pub mod fence;
pub mod lifecycle;

pub mod keyring;
pub mod usage;
pub mod verify;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
