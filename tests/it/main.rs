//! The integration tests: one binary, so that they share one control plane and are linked once.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a test, stopping with a message is how a failure is told"
)]

mod bed;
mod certificates;
mod chaos;
mod chart;
mod clocks;
mod crds;
mod documents;
mod fence;
mod foreign_keys;
mod house;
mod keys;
mod last_used;
mod mishaps;
mod obstacles;
mod overload;
mod ownership;
mod policies;
mod proxies;
mod rights;
mod rotation;
mod scene;
mod secret_template;
mod source;
mod tombstones;
mod verifier;
mod verifier_lease;
mod verifier_tls;
mod watches;
mod webhook;
