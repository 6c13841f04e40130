//! What the annotation `keywright.dev/rotate` asks for.

use crate::key::{Digest, may_hold_a_key};

/// Bytes of a request that a status shows.
const LONGEST_SHOWN: usize = 256;

/// What the annotation `keywright.dev/rotate` asks for. Its value may be as long as a tenant likes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotateRequest {
    /// What the record of the key says that this request leads to.
    pub digest: Digest,
    /// What the status says once it is carried out: the value, or its digest if the value is too long or may hold a key.
    pub shown: String,
}

impl RotateRequest {
    /// The request that is this value of the annotation.
    pub fn read(value: &str) -> Self {
        let digest = Digest::of(value.as_bytes());
        let is_shown = value.len() <= LONGEST_SHOWN && !may_hold_a_key(value);
        Self { digest, shown: if is_shown { value.to_owned() } else { digest.to_string() } }
    }

    /// Whether it is the request that a record says its key was issued under. Old records hold the value itself.
    pub(super) fn is(&self, stored: Option<&str>) -> bool {
        stored.is_some_and(|stored| stored.parse().unwrap_or_else(|_| Digest::of(stored.as_bytes())) == self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_shown_unless_it_is_long_or_may_hold_a_key() {
        let key = format!("keyw1_{}", "a".repeat(49));
        for (value, is_shown) in
            [("2026-11-30", true), ("", true), (&"x".repeat(256), true), (&"x".repeat(257), false), (&key, false)]
        {
            let RotateRequest { digest, shown } = RotateRequest::read(value);
            assert_eq!(digest, Digest::of(value.as_bytes()));
            assert_eq!(shown, if is_shown { value.to_owned() } else { digest.to_string() });
        }
    }
}
