//! Keywright's decisions: values and the time go in, values come out.
//!
//! Nothing in here waits, reads a clock, draws a random number, or talks to anybody. What is random or depends on the
//! time is an argument.
//!
//! - [`api`]: the two kinds as Kubernetes sees them.
//! - [`declaration`]: what an ApiKey's spec means. [`admission`] completes or refuses an ApiKey by it.
//! - [`lifecycle`]: what the controller does next for an ApiKey, as it has been observed.
//! - [`election`]: who leads.
//! - [`keyring`]: the records that are trusted now. [`verify`] decides a request by it, [`usage`] notes who was let in.
//! - [`key`], [`address`], [`duration`], [`date_time`], [`resource_version`]: the values that all of them speak of.

pub mod api;

pub mod address;
pub mod date_time;
pub mod duration;
pub mod key;
pub mod resource_version;

pub mod admission;
pub mod declaration;

pub mod election;
pub mod lifecycle;

pub mod keyring;
pub mod usage;
pub mod verify;

#[cfg(any(test, feature = "testing"))]
pub mod testing;
