//! Whether a key can be rotated, and what is lost by it.

use jiff::Zoned;
use keywright_core::api::{ApiKey, ROTATE_ANNOTATION};
use keywright_core::lifecycle::MAX_OLDER_KEYS;

use super::state::is_going;
use super::time::{self, Form};
use super::wait::{OlderKey, older_keys};

/// The value of the annotation that asks for a rotation.
pub fn request_of(key: &ApiKey) -> Option<&String> {
    key.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ROTATE_ANNOTATION))
}

/// Why no rotation can be asked for: what comes after the key's name.
pub fn refusal(key: &ApiKey) -> Option<&'static str> {
    if is_going(key) {
        return Some("is being revoked");
    }
    let made_elsewhere = "has a key that was made elsewhere: declare the digest of another key in another ApiKey";
    let in_a_source = "takes its key from a Secret of somebody else: write another key into that Secret";
    let has_source = key.spec.key_from.is_some();
    key.spec.key_hash.is_some().then_some(made_elsewhere).or(has_source.then_some(in_a_source))
}

/// The old key that another rotation would end at once.
pub fn ends_early(key: &ApiKey, now: &Zoned) -> Option<OlderKey> {
    let mut older = older_keys(key);
    older.retain(|old| old.ends > now.timestamp());
    (older.len() >= MAX_OLDER_KEYS).then(|| older.into_iter().next()).flatten()
}

/// What a rotation ends, in a sentence.
pub fn loss(old: &OlderKey, now: &Zoned) -> String {
    let used = match old.last_used_at {
        None => "never used since".to_owned(),
        Some(at) => format!("used {}", time::ago(at, now, Form::Short)),
    };
    let end = time::clock(old.ends, now);
    format!("old key {}, {used}, ends at once and not {end}: at most {MAX_OLDER_KEYS} old keys are let in.", old.shown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn the_key_that_a_rotation_ends_is_the_oldest_of_two_that_are_let_in() {
        let (over, later) = ("2026-11-29T13:04:00Z", "2026-11-29T14:02:00Z");
        for (ends, serial) in [
            (vec![], None),
            (vec![(2, later)], None),
            (vec![(2, later), (3, later)], Some(2)),
            (vec![(3, later), (2, later)], Some(2)),
            (vec![(2, over), (3, later)], None),
        ] {
            let retiring: Vec<_> =
                ends.iter().map(|(serial, end)| json!({"serial": serial, "retiresAt": end})).collect();
            let key = apikey(&json!({"status": {"retiring": retiring}}));
            assert_eq!(ends_early(&key, &now()).map(|old| old.serial), serial, "{ends:?}");
        }
        let old = OlderKey {
            serial: 2,
            shown: "keyw1_Aa11bb22".to_owned(),
            ends: later.parse().unwrap(),
            last_used_at: Some("2026-11-29T13:01:00Z".parse().unwrap()),
        };
        let said = "old key keyw1_Aa11bb22, used 4m ago, ends at once and not 15:02: at most 2 old keys are let in.";
        assert_eq!(loss(&old, &now()), said);
    }
}
