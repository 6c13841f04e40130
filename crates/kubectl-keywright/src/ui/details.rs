//! Everything about one key, and what its revocation would stop.

use jiff::{Timestamp, Zoned};
use k8s_openapi::api::core::v1::Event;
use keywright_core::api::{ApiKey, CREATED_BY_ANNOTATION, ConditionType, Rotation};
use keywright_core::declaration::DEFAULT_SECRET_KEY;
use kube::api::ListParams;
use serde::Serialize;

use crate::cluster::Cluster;
use crate::failure::ApiError;
use crate::view::hint::is_idle;
use crate::view::rotation::refusal;
use crate::view::state::{State, is_true};
use crate::view::time::{self, Form};
use crate::workloads::Workloads;

/// Events that are shown: the newest.
const MOST_EVENTS: usize = 20;

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
    events: Vec<Happening>,
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

/// An Event about the key.
#[derive(Debug, PartialEq, Serialize)]
pub struct Happening {
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
    /// What the user may not see.
    refused: Vec<String>,
    /// Old keys that go too.
    retiring: usize,
}

impl Details {
    /// Those of `key`, with what has happened to it.
    pub fn of(key: &ApiKey, events: Result<Vec<Happening>, String>, now: &Zoned) -> Self {
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
            Ok(events) => (events, "None in the last hour.".to_owned()),
            Err(words) => (Vec::new(), words),
        };
        Self {
            sentence: state.sentence,
            serial: status.serial,
            suspended: spec.suspended,
            rotates: refusal(key).is_none(),
            delivery: delivery(key),
            rotation: spec
                .rotation
                .as_ref()
                .and_then(|rotation| rotation_words(rotation, status.next_rotation_at.map(|at| at.0), now)),
            scopes: spec.scopes.clone(),
            created_by: key.metadata.annotations.as_ref().and_then(|all| all.get(CREATED_BY_ANNOTATION)).cloned(),
            in_force,
            in_force_words: if in_force { "In force everywhere" } else { "Not yet everywhere" },
            retiring: status.retiring.into_iter().map(old_key).collect(),
            conditions: status.conditions.into_iter().map(Condition::from).collect(),
            events,
            events_words,
        }
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
        let refused = match (secret, &workloads.unseen[..]) {
            (None, _) | (_, []) => Vec::new(),
            (_, unseen) => vec![format!("You may not see {} in {namespace}.", unseen.join(", "))],
        };
        Self {
            idle: is_idle(key, now),
            mounted: mounted.into_iter().map(str::to_owned).collect(),
            refused,
            retiring: key.status.as_ref().map_or(0, |status| status.retiring.len()),
        }
    }
}

/// What has happened to the ApiKey with this uid, newest first; or why that is not known.
///
/// # Errors
/// A sentence for the user.
pub async fn events(cluster: &Cluster, namespace: &str, uid: &str) -> Result<Vec<Happening>, String> {
    let selected = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    match cluster.list::<Event>(Some(namespace), &selected).await {
        Ok(mut events) => {
            events.sort_by_key(|event| std::cmp::Reverse(happened_at(event)));
            events.truncate(MOST_EVENTS);
            Ok(events.into_iter().map(Happening::from).collect())
        }
        Err(error) if error.is_forbidden() => Err(format!("Not shown: you may not list events in {namespace}.")),
        Err(ApiError::Unreachable(why)) => Err(format!("Not shown: the API server is unreachable: {why}.")),
        Err(error) => Err(format!("Not shown: {}", cluster.attempt("list", "events", namespace, "").sentence(&error))),
    }
}

impl From<Event> for Happening {
    fn from(event: Event) -> Self {
        Self {
            at: happened_at(&event).map(Timestamp::as_second),
            reason: event.reason.unwrap_or_default(),
            note: event.message.unwrap_or_default(),
            warning: event.type_.as_deref() == Some("Warning"),
        }
    }
}

fn happened_at(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    let once = event.event_time.as_ref().map(|time| time.0);
    series.or(last).or(once).or(event.metadata.creation_timestamp.as_ref().map(|time| time.0))
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

fn rotation_words(rotation: &Rotation, next: Option<Timestamp>, now: &Zoned) -> Option<String> {
    let every = rotation.every.as_ref()?;
    let overlap = rotation.overlap.as_ref().map(|overlap| format!(", overlap {overlap}")).unwrap_or_default();
    let next = next.map(|next| format!(", next {}", time::until(next, now, Form::Long))).unwrap_or_default();
    Some(format!("Every {every}{overlap}{next}"))
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
        let details = Details::of(&key, Err("Not shown: you may not list events in team-a.".to_owned()), &now());
        assert_eq!(details.delivery, "Secret nightly-ci, entry TOKEN");
        assert_eq!(details.rotation.as_deref(), Some("Every 30d, overlap 1d, next in 12 days"));
        assert_eq!(details.retiring.iter().map(|old| old.in_use).collect::<Vec<_>>(), [true, false]);
        let types: Vec<_> = details.conditions.iter().map(|condition| &*condition.type_).collect();
        assert_eq!(types, ["Active", "Ready", "Stalled", "OldKeyStillInUse", "Shielded"]);
        assert_eq!((details.in_force, &*details.events_words), (true, "Not shown: you may not list events in team-a."));
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
