//! What the tests of several modules need.

pub mod running;
pub mod script;
