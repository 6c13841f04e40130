//! `kubectl keywright`: API keys for people, on their own rights.
//!
//! - [`args`]: the commands and their flags.
//! - [`commands`]: each reads, asks [`view`] what to say, and prints.
//! - [`view`]: what people see of an ApiKey. Commands and page share it.
//! - [`cluster`]: the user's kubeconfig. [`failure`]: what went wrong, in a sentence, and its exit code.
//! - [`output`]: tables and documents. [`terminal`]: colours, prompts, progress.

pub mod view;
