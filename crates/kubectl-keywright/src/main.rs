//! `kubectl keywright`: API keys for people, on their own rights.

fn main() {}
