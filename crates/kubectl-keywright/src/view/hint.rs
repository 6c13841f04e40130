//! What about an active key a person should look at.

use jiff::{SignedDuration, Zoned};
use keywright_core::address::AllowedAddresses;
use keywright_core::api::{ApiKey, ConditionType};

use super::state::{ends_at, has_expired, is_let_in, is_true, last_used_at};

/// A key that was not used for as long as this is idle.
pub const IDLE: SignedDuration = SignedDuration::from_hours(90 * 24);

/// Something about an active key that a person should look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nobody has used it for 90 days.
    Unused,
    /// It never expires.
    NoEnd,
    /// It may be used from any address of a family.
    AnyAddress,
    /// Its end is near.
    ExpiresSoon,
    /// A caller still uses an older key.
    OldKeyInUse,
}

impl Hint {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Unused, Self::NoEnd, Self::AnyAddress, Self::ExpiresSoon, Self::OldKeyInUse];

    /// The hints about `key`. None about one that lets nobody in.
    pub fn of(key: &ApiKey, now: &Zoned) -> Vec<Self> {
        if !is_let_in(key, now) {
            return Vec::new();
        }
        Self::ALL.into_iter().filter(|hint| hint.is_about(key, now)).collect()
    }

    /// The hint, in two or three words.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::NoEnd => "no end",
            Self::AnyAddress => "any address",
            Self::ExpiresSoon => "expires soon",
            Self::OldKeyInUse => "old key in use",
        }
    }

    /// Why that matters, and what to do.
    pub fn why(self) -> &'static str {
        match self {
            Self::Unused => "No use in 90 days: revoke it?",
            Self::NoEnd => "It never expires: once leaked, it works for ever.",
            Self::AnyAddress => "Whoever has the key may use it from anywhere.",
            Self::ExpiresSoon => "Callers are refused from its end on: move the end, or replace the key.",
            Self::OldKeyInUse => "A caller still uses an old key: have it read the Secret again.",
        }
    }

    fn is_about(self, key: &ApiKey, now: &Zoned) -> bool {
        match self {
            Self::Unused => is_unused_for(key, IDLE, now),
            Self::NoEnd => ends_at(key).is_none(),
            Self::AnyAddress => is_for_anybody(key),
            Self::ExpiresSoon => is_true(key, &ConditionType::ExpiringSoon),
            Self::OldKeyInUse => is_true(key, &ConditionType::OldKeyStillInUse),
        }
    }
}

/// Whether nobody has used any of `key`'s keys for this long. One that was never used counts from its creation.
pub fn is_unused_for(key: &ApiKey, time: SignedDuration, now: &Zoned) -> bool {
    let created = key.metadata.creation_timestamp.as_ref().map(|created| created.0);
    let since = last_used_at(key).or(created);
    since.is_some_and(|since| now.timestamp().duration_since(since) >= time)
}

/// Whether a slip would break nothing, so that a revocation needs no name typed: nobody has used the key for 90 days, or
/// ever, or it has expired.
pub fn is_idle(key: &ApiKey, now: &Zoned) -> bool {
    last_used_at(key).is_none() || is_unused_for(key, IDLE, now) || has_expired(key, now)
}

/// Without a list, and with one that leaves out nobody of a family of addresses.
fn is_for_anybody(key: &ApiKey) -> bool {
    let Some(entries) = &key.spec.allowed_ips else { return true };
    AllowedAddresses::parse(entries).is_ok_and(|allowed| allowed.covers_ipv4() || allowed.covers_ipv6())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now, true_condition};

    #[test]
    fn each_hint_is_about_what_it_says() {
        use Hint::{AnyAddress, ExpiresSoon, NoEnd, OldKeyInUse, Unused};
        let quiet = json!({"expiresAt": "2027-11-29T13:00:00Z"});
        let here = json!({"allowedIPs": ["10.0.0.0/8"]});
        for (change, hints) in [
            (json!({}), vec![NoEnd, AnyAddress]),
            (json!({"status": quiet, "spec": here}), vec![]),
            (json!({"status": quiet, "spec": {"allowedIPs": ["10.0.0.0/8", "::/0"]}}), vec![AnyAddress]),
            (json!({"status": quiet, "spec": {"allowedIPs": ["0.0.0.0/1", "128.0.0.0/1"]}}), vec![AnyAddress]),
            (
                json!({"status": {"expiresAt": "2026-12-01T13:00:00Z"}, "spec": here, "conditions": [true_condition("ExpiringSoon")]}),
                vec![ExpiresSoon],
            ),
            (
                json!({"status": quiet, "spec": here, "conditions": [true_condition("OldKeyStillInUse")]}),
                vec![OldKeyInUse],
            ),
            (json!({"status": {"lastUsedAt": "2026-08-31T13:05:00Z"}}), vec![Unused, NoEnd, AnyAddress]),
            (json!({"status": {"lastUsedAt": "2026-08-31T13:05:01Z"}}), vec![NoEnd, AnyAddress]),
            (json!({"status": {"lastUsedAt": null}}), vec![NoEnd, AnyAddress]),
            (
                json!({"status": {"lastUsedAt": null}, "created": "2026-01-01T00:00:00Z"}),
                vec![Unused, NoEnd, AnyAddress],
            ),
            (json!({"reason": "Suspended"}), vec![]),
            (json!({"deleted": true}), vec![]),
            (json!({"status": {"expiresAt": "2026-11-29T13:05:00Z"}}), vec![]),
        ] {
            assert_eq!(Hint::of(&apikey(&change), &now()), hints, "{change}");
        }
    }

    #[test]
    fn an_idle_key_is_one_that_nobody_will_miss() {
        for (change, is_so) in [
            (json!({}), false),
            (json!({"status": {"lastUsedAt": null}}), true),
            (json!({"status": {"lastUsedAt": "2026-08-31T13:05:00Z"}}), true),
            (json!({"status": {"lastUsedAt": "2026-09-01T13:05:00Z"}}), false),
            (json!({"status": {"expiresAt": "2026-11-29T13:05:00Z"}}), true),
            (json!({"reason": "Suspended"}), false),
        ] {
            assert_eq!(is_idle(&apikey(&change), &now()), is_so, "{change}");
        }
    }
}
