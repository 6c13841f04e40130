//! What it has come to that somebody asked for: observed again and again, until it is done or cannot be.

use std::time::Duration;

use jiff::{Timestamp, Zoned};
use keywright_core::api::{ApiKey, ConditionStatus, ConditionType};
use keywright_core::lifecycle::awaited_in;

use super::rotation::Rotation;
use super::state::{capital, condition, has_expired, is_going, is_true};
use super::time;

/// How long a controller may take to look at an ApiKey before it is worth a word.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a wait has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is still to come: what is waited for.
    Waiting(String),
    /// It is in force at every verifier.
    Done(String),
    /// It will not come by waiting: why.
    Failed(String),
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `metadata.uid` of the ApiKey. Another one of its name is somebody else's.
    pub uid: String,
    /// `metadata.generation` after the write.
    pub generation: i64,
    /// What is to be true.
    pub change: Change,
}

/// What is to be true of an ApiKey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its first key is known to every verifier.
    Created,
    /// What is declared is enforced by every verifier.
    Edited,
    /// A rotation is done.
    Rotated(Rotation),
}

impl Wanted {
    /// That what was written to `key`, as the API server has answered, is in force.
    pub fn of(key: &ApiKey, change: Change) -> Self {
        let (uid, generation) = (key.metadata.uid.clone(), key.metadata.generation);
        Self { uid: uid.unwrap_or_default(), generation: generation.unwrap_or(1), change }
    }
}

/// What has come of a new or changed ApiKey, which is now as `observed`, or gone.
pub fn in_force(observed: Option<&ApiKey>, wanted: &Wanted, waited: Duration, now: &Zoned) -> Progress {
    let Some(key) = observed.filter(|key| key.metadata.uid.as_deref() == Some(&wanted.uid)) else {
        return Progress::Failed("It was deleted meanwhile, and its keys are revoked.".to_owned());
    };
    match () {
        () if is_going(key) => Progress::Failed("It is being revoked: somebody has deleted it.".to_owned()),
        () if is_up_to_date(key, wanted, &ConditionType::Stalled) && is_true(key, &ConditionType::Stalled) => {
            Progress::Failed(said_by(key, &ConditionType::Stalled))
        }
        () if is_done(key, wanted) && wanted.change == Change::Created && has_expired(key, now) => {
            Progress::Failed("It has expired: no verifier lets its key in.".to_owned())
        }
        () if is_done(key, wanted) => Progress::Done(done(key, &wanted.change, waited, now)),
        () if condition(key, &ConditionType::Ready).is_none() && waited >= PATIENCE => {
            Progress::Waiting("Waiting for Keywright's controller, which has not looked at it yet".to_owned())
        }
        () => Progress::Waiting(awaited(key, now)),
    }
}

/// What has come of the deletion of the ApiKey with this uid, which is now as `observed`, or gone.
pub fn revoked(observed: Option<&ApiKey>, uid: &str, waited: Duration, now: &Zoned) -> Progress {
    match observed.filter(|key| key.metadata.uid.as_deref() == Some(uid)) {
        None => Progress::Done(format!("Revoked in {}. No verifier accepts it any more.", seconds(waited))),
        Some(key) => Progress::Waiting(awaited(key, now)),
    }
}

/// A time that somebody waited: `1.4 s`, `42 s`, `2 min 5 s`.
pub fn seconds(waited: Duration) -> String {
    let (whole, tenths) = (waited.as_secs(), waited.subsec_millis() / 100);
    match (whole / 60, whole % 60, tenths) {
        (0, 0..10, 1..) => format!("{whole}.{tenths} s"),
        (0, second, _) => format!("{second} s"),
        (minute, 0, _) => format!("{minute} min"),
        (minute, second, _) => format!("{minute} min {second} s"),
    }
}

fn is_done(key: &ApiKey, wanted: &Wanted) -> bool {
    let Some(status) = &key.status else { return false };
    let is_ready = is_up_to_date(key, wanted, &ConditionType::Ready) && is_true(key, &ConditionType::Ready);
    let is_enforced = status.enforced_generation.is_some_and(|enforced| enforced >= wanted.generation);
    let has_changed = match &wanted.change {
        Change::Created => status.serial.is_some(),
        Change::Edited => true,
        Change::Rotated(rotation) => rotation.is_done(key),
    };
    is_ready && is_enforced && has_changed
}

/// Whether a condition is about what was asked for, or about something later.
fn is_up_to_date(key: &ApiKey, wanted: &Wanted, type_: &ConditionType) -> bool {
    let seen = condition(key, type_).and_then(|condition| condition.observed_generation);
    seen.is_some_and(|seen| seen >= wanted.generation)
}

fn done(key: &ApiKey, change: &Change, waited: Duration, now: &Zoned) -> String {
    let waited = seconds(waited);
    match change {
        Change::Created => format!("Known to every verifier after {waited}."),
        Change::Edited => format!("In force everywhere after {waited}."),
        Change::Rotated(rotation) => {
            let ended = rotation.ended_early(key, now);
            let early = if ended.is_empty() { String::new() } else { format!(" Ended early: {}.", ended.join(", ")) };
            format!("Rotated in {waited}: {}{early}", new_key(key, now))
        }
    }
}

/// Where the new key is, and how long an old one is let in.
fn new_key(key: &ApiKey, now: &Zoned) -> String {
    let status = key.status.as_ref();
    let shown = status.and_then(|status| status.key_prefix.as_deref()).unwrap_or("a new key");
    let place = match status.and_then(|status| status.secret_name.as_deref()) {
        Some(secret) => format!("{shown} is in Secret {secret}."),
        None => format!("{shown} is let in."),
    };
    let ends: Vec<Timestamp> =
        status.into_iter().flat_map(|status| &status.retiring).map(|retiring| retiring.retires_at.0).collect();
    match (ends.len(), ends.iter().max()) {
        (_, None) => place,
        (1, Some(end)) => format!("{place} Old key ends {}.", time::clock(*end, now)),
        (number, Some(end)) => format!("{place} {number} old keys end by {}.", time::clock(*end, now)),
    }
}

/// What an ApiKey waits for, by its own account.
fn awaited(key: &ApiKey, now: &Zoned) -> String {
    let Some(ready) = condition(key, &ConditionType::Ready) else {
        return "Waiting for the controller".to_owned();
    };
    match awaited_in(&ready.message) {
        Some(awaited) => {
            format!("Waiting for {}, until {} at most", awaited.verifiers, time::exact_clock(awaited.latest, now))
        }
        None if ready.status == ConditionStatus::True => "Waiting for the controller".to_owned(),
        None if ready.message.starts_with("waiting") => capital(&ready.message),
        None => format!("Waiting: {}", ready.message),
    }
}

fn said_by(key: &ApiKey, type_: &ConditionType) -> String {
    condition(key, type_).map_or_else(String::new, |said| format!("{}: {}.", said.reason, said.message))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::view::fixtures::{apikey, now};
    use keywright_core::api::ROTATE_ANNOTATION;

    const UID: &str = "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b";
    const WAITED: Duration = Duration::from_millis(1234);

    fn wanted(change: Change) -> Wanted {
        Wanted { uid: UID.to_owned(), generation: 3, change }
    }

    fn come_of(key: &Value, change: Change) -> Progress {
        in_force(Some(&apikey(key)), &wanted(change), WAITED, &now())
    }

    #[test]
    fn done_is_what_every_verifier_says() {
        for (key, is_done) in [
            (json!({"generation": 3}), true),
            (json!({"generation": 4}), true),
            (json!({"generation": 3, "reason": "Suspended"}), true),
            (json!({"generation": 2}), false),
            (json!({"generation": 3, "status": {"enforcedGeneration": 2}}), false),
            (json!({"generation": 3, "status": {"enforcedGeneration": null}}), false),
            (json!({"generation": 3, "status": {"serial": null}}), false),
            (json!({"generation": 3, "reason": "Issuing"}), false),
            (json!({"generation": 3, "reason": null}), false),
            // Nobody had it.
            (json!({"generation": 3, "status": {"expiresAt": "2026-11-29T13:05:00Z"}}), false),
        ] {
            let expected = Progress::Done("Known to every verifier after 1.2 s.".to_owned());
            assert_eq!(come_of(&key, Change::Created) == expected, is_done, "{key}");
        }
    }

    #[test]
    fn a_rotation_is_done_when_its_request_is_or_a_later_one() {
        let rotated = |annotation: &str, carried_out: &str, serial: u32| {
            let retiring = json!([{"serial": 2, "retiresAt": "2026-11-29T14:02:00Z"}]);
            let status = json!({
                "rotateRequest": carried_out, "serial": serial, "keyPrefix": "keyw1_Hh22kk33", "retiring": retiring,
            });
            let metadata = json!({"annotations": {ROTATE_ANNOTATION: annotation}});
            let key = json!({"generation": 3, "reason": "Rotating", "status": status, "metadata": metadata});
            come_of(&key, Change::Rotated(rotation()))
        };
        let message = "Rotated in 1.2 s: keyw1_Hh22kk33 is in Secret nightly-ci. Old key ends 15:02.";
        for (annotation, carried_out, serial, is_done) in [
            ("two", "two", 3, true),
            ("two", "one", 2, false),
            // The one before was on its way.
            ("two", "one", 3, false),
            ("three", "three", 3, true),
            ("three", "one", 3, false),
            // Somebody has set the annotation back.
            ("one", "one", 2, false),
        ] {
            let progress = rotated(annotation, carried_out, serial);
            let expected = Progress::Done(message.to_owned());
            assert_eq!(progress == expected, is_done, "{annotation} {carried_out} {serial} {progress:?}");
        }
    }

    /// Asked of key no. 2.
    fn rotation() -> Rotation {
        Rotation { request: "two".to_owned(), serial: Some(2), older: Vec::new() }
    }

    #[test]
    fn a_key_that_a_rotation_has_ended_is_named() {
        let retiring = |serials: [(u32, &str, &str); 2]| {
            let one = |(serial, shown, end)| json!({"serial": serial, "keyPrefix": shown, "retiresAt": end});
            json!(serials.map(one))
        };
        let (over, later) = ("2026-11-29T13:04:00Z", "2026-11-29T14:02:00Z");
        for (end, early) in [(later, " Ended early: keyw1_Aa11bb22."), (over, "")] {
            let before = retiring([(2, "keyw1_Cc33dd44", later), (1, "keyw1_Aa11bb22", end)]);
            let before = apikey(&json!({"status": {"serial": 3, "retiring": before}}));
            let after = retiring([(2, "keyw1_Cc33dd44", later), (3, "keyw1_Ee55ff66", later)]);
            let status = json!({"rotateRequest": "two", "serial": 4, "keyPrefix": "keyw1_Hh22kk33", "retiring": after});
            let change = Change::Rotated(Rotation::asked_of(&before, "two"));
            let progress = come_of(&json!({"generation": 3, "reason": "Rotating", "status": status}), change);
            let said = "Rotated in 1.2 s: keyw1_Hh22kk33 is in Secret nightly-ci. 2 old keys end by 15:02.";
            assert_eq!(progress, Progress::Done(format!("{said}{early}")));
        }
    }

    #[test]
    fn a_final_failure_ends_the_wait_at_once_and_an_older_one_does_not() {
        let taken =
            |generation: i64| json!({"generation": generation, "reason": "DigestTaken", "message": "it is taken"});
        assert_eq!(come_of(&taken(3), Change::Created), Progress::Failed("DigestTaken: it is taken.".to_owned()));
        assert!(matches!(come_of(&taken(2), Change::Edited), Progress::Waiting(_)));
        let gone = in_force(None, &wanted(Change::Edited), WAITED, &now());
        assert!(matches!(gone, Progress::Failed(_)), "{gone:?}");
        assert!(matches!(come_of(&json!({"deleted": true}), Change::Edited), Progress::Failed(_)));
        let namesake = json!({"generation": 3, "metadata": {"uid": "another"}});
        assert!(matches!(come_of(&namesake, Change::Edited), Progress::Failed(_)));
    }

    #[test]
    fn a_wait_says_for_whom_and_how_long_at_most() {
        let pending =
            "waiting for the verifiers' acknowledgement, until 2026-11-29T13:32:10Z at the latest: verifier-1";
        for (message, said) in [
            (pending, "Waiting for verifier-1, until 14:32:10 at most"),
            (
                "waiting: another controller may be issuing the key",
                "Waiting: another controller may be issuing the key",
            ),
            ("Secret \"x\" cannot be written: no", "Waiting: Secret \"x\" cannot be written: no"),
        ] {
            let key = json!({"generation": 3, "reason": "Issuing", "message": message});
            assert_eq!(come_of(&key, Change::Created), Progress::Waiting(said.to_owned()));
        }
        let unseen = apikey(&json!({"reason": null}));
        let late = in_force(Some(&unseen), &wanted(Change::Created), PATIENCE, &now());
        let said = "Waiting for Keywright's controller, which has not looked at it yet";
        assert_eq!(late, Progress::Waiting(said.to_owned()));
    }

    #[test]
    fn a_key_is_revoked_when_its_apikey_is_gone() {
        let done = Progress::Done("Revoked in 1.2 s. No verifier accepts it any more.".to_owned());
        assert_eq!(revoked(None, UID, WAITED, &now()), done);
        let namesake = apikey(&json!({"metadata": {"uid": "another"}}));
        assert_eq!(revoked(Some(&namesake), UID, WAITED, &now()), done);
        let message = "all keys are revoked; waiting for the verifiers' acknowledgement, until 2026-11-29T13:32:10Z at the latest: verifier-1, verifier-2";
        let going = apikey(&json!({"deleted": true, "reason": "Revoking", "message": message}));
        let said = "Waiting for verifier-1, verifier-2, until 14:32:10 at most";
        assert_eq!(revoked(Some(&going), UID, WAITED, &now()), Progress::Waiting(said.to_owned()));
    }

    #[test]
    fn a_time_waited_is_short() {
        for (milliseconds, said) in
            [(40, "0 s"), (1400, "1.4 s"), (3000, "3 s"), (42_700, "42 s"), (120_000, "2 min"), (125_000, "2 min 5 s")]
        {
            assert_eq!(seconds(Duration::from_millis(milliseconds)), said);
        }
    }
}
