//! `kubectl keywright`: API keys for people, on their own rights.
//!
//! - [`args`]: the commands and their flags.
//! - [`commands`]: each reads, asks the pure part what to say, and prints.
//! - [`view`]: what people see of an ApiKey. Commands and page share it. [`decision`]: what a verifier would decide.
//!   [`canary`]: what the answers to a canary key say of a route.
//! - [`session`]: what every command works with. [`cluster`]: the user's cluster. [`change`]: writes, and what has come of them. [`workloads`]: who mounts a Secret there.
//! - [`failure`]: what went wrong, in a sentence, and its exit code.
//! - [`ui`]: the page in the user's browser, and the server behind it.
//! - [`interrupt`]: Ctrl-C. [`output`]: tables and documents. [`terminal`]: colours, prompts, progress. [`private_file`]: for keys and tokens.

pub mod args;
pub mod canary;
pub mod change;
pub mod cluster;
pub mod commands;
pub mod decision;
pub mod events;
pub mod failure;
pub mod interrupt;
pub mod output;
pub mod private_file;
pub mod session;
pub mod terminal;
pub mod ui;
pub mod view;
pub mod workloads;
