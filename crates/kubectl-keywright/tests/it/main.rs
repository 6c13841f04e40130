//! The plugin as people use it: the real program, on a real control plane with the real controller, verifier and webhook, as
//! somebody who has Keywright's tenant role in one namespace and no other right.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod arguments;
mod create;
mod faults;
mod kubectl;
mod list;
mod person;
mod revoke;
mod rights;
mod rotate;
mod route;
mod ui;
mod whose;
