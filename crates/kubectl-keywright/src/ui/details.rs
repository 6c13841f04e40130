//! Everything about one key, and what its revocation would stop.

use jiff::{Timestamp, Zoned};
use keywright_core::api::{ApiKey, CREATED_BY_ANNOTATION, ConditionType};
use keywright_core::declaration::DEFAULT_SECRET_KEY;
use serde::Serialize;

use crate::events::Happening;
use crate::failure::ApiError;
use crate::view::hint::is_idle;
use crate::view::rotation::{refusal, schedule};
use crate::view::state::{State, capital, is_true};
use crate::workloads::Workloads;

/// What the details show beside what the row says.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Details {
    sentence: String,
    serial: Option<u32>,
    suspended: bool,
    /// Whether a rotation may be asked for.
    rotates: bool,
    delivery: String,
    rotation: Option<String>,
    scopes: Vec<String>,
    created_by: Option<String>,
    in_force: bool,
    in_force_words: &'static str,
    retiring: Vec<OldKey>,
    conditions: Vec<Condition>,
    events: Vec<Event>,
    /// What stands in place of no events.
    events_words: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct OldKey {
    key: Option<String>,
    ends: i64,
    in_use: bool,
}

#[derive(Debug, PartialEq, Serialize)]
struct Condition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
    reason: String,
    message: String,
    since: i64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Event {
    at: Option<i64>,
    reason: String,
    note: String,
    warning: bool,
}

/// What stops working when a key is revoked.
#[derive(Debug, PartialEq, Serialize)]
pub struct Users {
    /// Nobody would miss it, so its name need not be typed.
    idle: bool,
    /// What mounts its Secret.
    mounted: Vec<String>,
    /// Why workloads may be missing.
    gaps: Option<String>,
    /// Old keys that go too.
    retiring: usize,
}

impl Details {
    /// Those of `key`, with what has happened to it.
    pub fn of(key: &ApiKey, events: Result<Vec<Happening>, ApiError>, now: &Zoned) -> Self {
        let (spec, status) = (&key.spec, key.status.clone().unwrap_or_default());
        let state = State::of(key, now);
        let is_ready = is_true(key, &ConditionType::Ready);
        let in_force = is_ready && state.everywhere;
        let is_old_in_use = is_true(key, &ConditionType::OldKeyStillInUse);
        let old_key = |retiring: keywright_core::api::Retiring| OldKey {
            in_use: is_old_in_use && retiring.last_used_at.is_some(),
            key: retiring.key_prefix,
            ends: retiring.retires_at.0.as_second(),
        };
        let (events, events_words) = match events {
            Ok(events) => (events.into_iter().map(Event::from).collect(), "None in the last hour.".to_owned()),
            Err(error) => {
                let namespace = key.metadata.namespace.as_deref().unwrap_or_default();
                (Vec::new(), format!("Not shown: {}.", error.why_hidden("events", namespace)))
            }
        };
        Self {
            sentence: state.sentence,
            serial: status.serial,
            suspended: spec.suspended,
            rotates: refusal(key).is_none(),
            delivery: delivery(key),
            rotation: schedule(key, now).map(|schedule| capital(&schedule)),
            scopes: spec.scopes.clone(),
            created_by: key.metadata.annotations.as_ref().and_then(|all| all.get(CREATED_BY_ANNOTATION)).cloned(),
            in_force,
            in_force_words: match () {
                () if in_force => "In force everywhere",
                // It will never be.
                () if is_true(key, &ConditionType::Stalled) => "",
                () => "Not yet everywhere",
            },
            retiring: status.retiring.into_iter().map(old_key).collect(),
            conditions: status.conditions.into_iter().map(Condition::from).collect(),
            events,
            events_words,
        }
    }
}

impl From<Happening> for Event {
    fn from(happening: Happening) -> Self {
        let Happening { at, reason, note, is_warning } = happening;
        Self { at: at.map(Timestamp::as_second), reason, note, warning: is_warning }
    }
}

impl From<keywright_core::api::Condition> for Condition {
    fn from(condition: keywright_core::api::Condition) -> Self {
        Self {
            type_: type_of(&condition),
            status: format!("{:?}", condition.status),
            reason: condition.reason.to_string(),
            message: condition.message,
            since: condition.last_transition_time.0.as_second(),
        }
    }
}

fn type_of(condition: &keywright_core::api::Condition) -> String {
    match &condition.type_ {
        ConditionType::Other(word) => word.clone(),
        known => format!("{known:?}"),
    }
}

impl Users {
    /// Those of `key`, whose namespace has these workloads.
    pub fn of(key: &ApiKey, workloads: &Workloads, namespace: &str, now: &Zoned) -> Self {
        let secret = key.status.as_ref().and_then(|status| status.secret_name.as_deref());
        let mounted = secret.map_or_else(Vec::new, |secret| workloads.using(secret));
        let gaps = secret.and_then(|_| workloads.gaps(namespace));
        Self {
            idle: is_idle(key, now),
            mounted: mounted.into_iter().map(str::to_owned).collect(),
            gaps,
            retiring: key.status.as_ref().map_or(0, |status| status.retiring.len()),
        }
    }
}

fn delivery(key: &ApiKey) -> String {
    let spec = &key.spec;
    if spec.key_hash.is_some() {
        return "None: only its digest is kept".to_owned();
    }
    if let Some(source) = &spec.key_from {
        return format!("Read from Secret {}, entry {}", source.secret_ref.name, source.secret_ref.key);
    }
    let secret = spec.secret.as_ref();
    let name = secret.and_then(|secret| secret.name.as_deref()).or(key.metadata.name.as_deref()).unwrap_or_default();
    let entry = secret.and_then(|secret| secret.key.as_deref()).unwrap_or(DEFAULT_SECRET_KEY);
    format!("Secret {name}, entry {entry}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now, true_condition};

    #[test]
    fn the_details_say_what_is_delivered_and_what_is_old() {
        let key = apikey(&json!({
            "reason": "Rotating",
            "spec": {"rotation": {"every": "30d", "overlap": "1d"}, "secret": {"key": "TOKEN"}},
            "status": {
                "nextRotationAt": "2026-12-11T14:00:00Z",
                "retiring": [
                    {"keyPrefix": "keyw1_Aa00bB11", "serial": 1, "retiresAt": "2026-11-30T10:05:00Z", "lastUsedAt": "2026-11-29T13:00:00Z"},
                    {"serial": 2, "retiresAt": "2026-11-30T10:05:00Z"},
                ],
            },
            "conditions": [true_condition("OldKeyStillInUse"), true_condition("Shielded")],
        }));
        let details = Details::of(&key, Err(ApiError::Unreachable("refused".to_owned())), &now());
        assert_eq!(details.delivery, "Secret nightly-ci, entry TOKEN");
        assert_eq!(details.rotation.as_deref(), Some("Every 30d, overlap 1d, next in 12 days"));
        assert_eq!(details.retiring.iter().map(|old| old.in_use).collect::<Vec<_>>(), [true, false]);
        let types: Vec<_> = details.conditions.iter().map(|condition| &*condition.type_).collect();
        assert_eq!(types, ["Active", "Ready", "Stalled", "OldKeyStillInUse", "Shielded"]);
        assert_eq!((details.in_force, &*details.events_words), (true, "Not shown: no answer (refused)."));
    }

    #[test]
    fn nothing_is_said_to_be_in_force_that_is_not() {
        for (change, in_force) in [
            (json!({}), true),
            (json!({"generation": 2, "status": {"enforcedGeneration": 1}}), false),
            (json!({"reason": "Issuing"}), false),
            (json!({"reason": null}), false),
        ] {
            assert_eq!(Details::of(&apikey(&change), Ok(Vec::new()), &now()).in_force, in_force, "{change}");
        }
    }
}
