//! The end-to-end tests: the chart, installed by helm from the built image on a whole cluster, and Pods that use it.
//!
//! They need root, as a node does (`tests/testbed/node.sh` says what else); `make e2e` builds all of it. One cluster with
//! one installation serves the run, and is gone with it. The tests take turns, as each disturbs what the others rely on.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a test, stopping with a message is how a failure is told"
)]

mod availability;
mod chart;
mod delivery;
mod machine;
mod revocation;
mod testbed;
mod webhook;
