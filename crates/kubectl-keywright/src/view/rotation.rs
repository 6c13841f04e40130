//! Whether a key can be rotated, what is lost by it, and when it is done.

use jiff::{Timestamp, Zoned};
use keywright_core::api::{ApiKey, ConditionType, ROTATE_ANNOTATION, Reason};
use keywright_core::lifecycle::{MAX_OLDER_KEYS, RotateRequest};

use super::state::{condition, is_going};
use super::time::{self, Form};

/// A rotation that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// [`RotateRequest::shown`] of the annotation's value.
    pub request: String,
    /// The serial of the key that is to be replaced.
    pub serial: Option<u32>,
    /// The keys that are older than that one.
    pub older: Vec<OlderKey>,
}

/// A key that is let in until the end of its overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderKey {
    /// Its serial.
    pub serial: u32,
    /// What a status shows of it.
    pub shown: String,
    /// The end of its overlap.
    pub ends: Timestamp,
    /// When a verifier last let it in, as far as is known.
    pub last_used_at: Option<Timestamp>,
}

impl Rotation {
    /// What was asked of `key` by this value of the annotation.
    pub fn asked_of(key: &ApiKey, value: &str) -> Self {
        let serial = key.status.as_ref().and_then(|status| status.serial);
        Self { request: RotateRequest::read(value).shown, serial, older: older_keys(key) }
    }

    /// Whether the key is the new one. Somebody who asks later replaces the annotation; then the answer to that is the answer
    /// to both.
    pub fn is_done(&self, key: &ApiKey) -> bool {
        let Some(status) = &key.status else { return false };
        let newest = request_of(key).map(|value| RotateRequest::read(value).shown);
        let is_answered = |request: &String| status.rotate_request.as_ref() == Some(request);
        is_answered(&self.request) || (newest.is_some_and(|newest| is_answered(&newest)) && status.serial > self.serial)
    }

    /// The older keys that have ended before their overlap did.
    pub fn ended_early(&self, key: &ApiKey, now: &Zoned) -> Vec<&str> {
        let left = older_keys(key);
        let has_ended =
            |old: &&OlderKey| old.ends > now.timestamp() && left.iter().all(|left| left.serial != old.serial);
        self.older.iter().filter(has_ended).map(|old| &*old.shown).collect()
    }
}

/// The older keys in their overlap, or just past it; the oldest first.
fn older_keys(key: &ApiKey) -> Vec<OlderKey> {
    let retiring = key.status.iter().flat_map(|status| &status.retiring);
    let mut older: Vec<_> = retiring
        .map(|old| OlderKey {
            serial: old.serial,
            shown: old.key_prefix.clone().unwrap_or_else(|| format!("key no. {}", old.serial)),
            ends: old.retires_at.0,
            last_used_at: old.last_used_at.as_ref().map(|at| at.0),
        })
        .collect();
    older.sort_unstable_by_key(|old| old.serial);
    older
}

/// The value of the annotation that asks for a rotation.
pub fn request_of(key: &ApiKey) -> Option<&String> {
    key.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ROTATE_ANNOTATION))
}

/// A value of the annotation that asks for one more rotation: only another value than before does.
pub fn new_request(key: &ApiKey, now: &Zoned) -> String {
    let request = now.timestamp().to_string();
    if request_of(key) == Some(&request) { format!("{request} again") } else { request }
}

/// What is declared of rotation: `every 30d, overlap 1d, next in 12 days`.
pub fn schedule(key: &ApiKey, now: &Zoned) -> Option<String> {
    let declared = key.spec.rotation.as_ref()?;
    let every = declared.every.as_ref().map_or_else(|| "on request".to_owned(), |every| format!("every {every}"));
    let overlap = declared.overlap.as_ref().map(|overlap| format!(", overlap {overlap}")).unwrap_or_default();
    let next = key.status.as_ref().and_then(|status| status.next_rotation_at.as_ref());
    let next = next.map(|next| format!(", next {}", time::until(next.0, now, Form::Long))).unwrap_or_default();
    Some(format!("{every}{overlap}{next}"))
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

/// Whether a rotation was asked for that is still to come.
pub fn is_pending(key: &ApiKey) -> bool {
    let asked = request_of(key).map(|value| RotateRequest::read(value).shown);
    let done = key.status.as_ref().and_then(|status| status.rotate_request.as_ref());
    asked.is_some_and(|asked| done != Some(&asked))
}

/// Why a rotation waits for a person: what comes after the key's name.
pub fn obstacle(key: &ApiKey) -> Option<&'static str> {
    match condition(key, &ConditionType::Active).map(|active| &active.reason) {
        Some(Reason::Suspended) => Some("is suspended: its rotation waits until it is resumed"),
        Some(Reason::Expired) => Some("has expired: its rotation waits until its end is moved"),
        _ => None,
    }
}

/// The old key that another rotation would end at once. One that is still to come makes an old key more.
pub fn ends_early(key: &ApiKey, now: &Zoned) -> Option<OlderKey> {
    let mut older = older_keys(key);
    older.retain(|old| old.ends > now.timestamp());
    let number = older.len() + usize::from(is_pending(key));
    (number >= MAX_OLDER_KEYS).then(|| older.into_iter().next()).flatten()
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
    fn every_request_is_a_new_one() {
        let first = new_request(&apikey(&json!({})), &now());
        let annotated = apikey(&json!({"metadata": {"annotations": {ROTATE_ANNOTATION: first}}}));
        assert_ne!(new_request(&annotated, &now()), first);
    }

    #[test]
    fn a_schedule_says_what_is_declared_and_what_comes_next() {
        for (rotation, next, said) in [
            (json!(null), json!(null), None),
            (json!({"overlap": "1h"}), json!(null), Some("on request, overlap 1h")),
            (json!({"every": "30d"}), json!("2026-12-11T14:00:00Z"), Some("every 30d, next in 12 days")),
        ] {
            let key = apikey(&json!({"spec": {"rotation": rotation}, "status": {"nextRotationAt": next}}));
            assert_eq!(schedule(&key, &now()).as_deref(), said);
        }
    }

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
        for (done, serial) in [(json!(null), Some(2)), (json!("one"), Some(2)), (json!("two"), None)] {
            let retiring = json!([{"serial": 2, "retiresAt": later}]);
            let metadata = json!({"annotations": {ROTATE_ANNOTATION: "two"}});
            let key = json!({"metadata": metadata, "status": {"retiring": retiring, "rotateRequest": done}});
            assert_eq!(ends_early(&apikey(&key), &now()).map(|old| old.serial), serial, "{done}");
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
