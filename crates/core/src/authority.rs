//! What to do about the webhook's certificate authority (CA), from the times that its certificates state.

use jiff::{SignedDuration, Timestamp};

/// How long a CA is valid: ten years. Only `keywright certificates` renews it, and an installation that works may not run
/// it for years. With one year, every edit of an ApiKey would fail after that. The risk is small: only the API server
/// trusts it, for one webhook, and `--rotate` replaces it at any time.
pub const LIFETIME: SignedDuration = SignedDuration::from_hours(3650 * 24);

/// How long a replica's certificate is valid. It is renewed after two thirds, so a broken Secret may last for more than two
/// days. The private key never leaves the replica's memory, so a shorter life would not protect more.
pub const CERTIFICATE_LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What to do about the Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// Change nothing.
    Keep,
    /// Remove expired certificates from the bundle.
    Prune,
    /// Replace the CA: this was requested, or it is in the last third of its life.
    Roll,
}

/// What one run of `keywright certificates` may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mandate {
    /// Whether it writes the webhook configurations. If not, a valid CA stays, because the next one must be trusted before it
    /// signs.
    pub publishes: bool,
    /// Whether a new CA was requested.
    pub rotates: bool,
}

impl Upkeep {
    /// What to do at `now` about a CA that is to be renewed at `renewal_at`. `has_expired`: a certificate in its bundle has.
    pub fn of(renewal_at: Timestamp, has_expired: bool, mandate: Mandate, now: Timestamp) -> Self {
        if mandate.publishes && (mandate.rotates || now >= renewal_at) {
            Self::Roll
        } else if has_expired {
            Self::Prune
        } else {
            Self::Keep
        }
    }
}

/// When to renew a certificate of this life: after two thirds of it.
pub fn renewal_at(from: Timestamp, to: Timestamp) -> Timestamp {
    from + (to.duration_since(from) / 3) * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_authority_comes_when_it_is_due_or_asked_for_and_can_be_made_known() {
        let [from, renewal, to] = ["2026-01-01T00:00:00Z", "2028-01-01T00:00:00Z", "2029-01-01T00:00:00Z"]
            .map(|time| time.parse::<Timestamp>().unwrap());
        assert!(renewal_at(from, to).duration_since(renewal).abs() < SignedDuration::from_hours(24));
        for publishes in [false, true] {
            for rotates in [false, true] {
                for has_expired in [false, true] {
                    for (now, is_due) in [(from, false), (renewal, true), (to, true)] {
                        let expected = match (publishes && (rotates || is_due), has_expired) {
                            (true, _) => Upkeep::Roll,
                            (false, true) => Upkeep::Prune,
                            (false, false) => Upkeep::Keep,
                        };
                        assert_eq!(Upkeep::of(renewal, has_expired, Mandate { publishes, rotates }, now), expected);
                    }
                }
            }
        }
    }
}
