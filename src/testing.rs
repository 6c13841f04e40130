//! Helpers for the tests of several modules.

pub mod running;
pub mod script;
