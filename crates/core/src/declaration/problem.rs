//! What is wrong with a spec.

use std::fmt;

/// A bad field, and the rule that it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field path, such as `spec.allowedIPs[2]`.
    pub path: String,
    /// What is wrong and what to do.
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.rule)
    }
}
