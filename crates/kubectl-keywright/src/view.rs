//! What people see of an ApiKey: objects and the time go in, words come out.
//!
//! Commands and page say the same words, because both take them from here. Nothing in here does I/O or reads a clock: the
//! time is an argument, as a [`jiff::Zoned`], because people read times in their own zone.
//!
//! - [`state`]: in what state a key is, in a word and a sentence.
//! - [`hint`]: what about an active key a person should look at.
//! - [`row`]: what a list shows, and its order.
//! - [`wait`]: what it has come to that somebody asked for.
//! - [`rotation`]: whether a key can be rotated, what is lost by it, and when it is done.
//! - [`time`], [`escape`]: times for people, and texts that a terminal can bear.

pub mod escape;
pub mod hint;
pub mod rotation;
pub mod row;
pub mod state;
pub mod time;
pub mod wait;

#[cfg(test)]
pub(crate) mod fixtures;
