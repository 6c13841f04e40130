//! A row of the page's list: as small as it can be, because there may be thousands.

use jiff::{Timestamp, Zoned};
use keywright_core::api::ApiKey;
use serde::Serialize;
use std::time::Duration;

use crate::view::escape::escape;
use crate::view::row::Row;
use crate::view::state::Tone;
use crate::view::wait::{self, Change, Progress, Wanted};

/// A row of the page's list. What is as usual is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`: who types over what is shown says which one that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    namespace: String,
    name: String,
    /// Without characters that turn it round: it stands in questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    display: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    created: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<String>,
    state: String,
    tone: Tone,
    /// Not every verifier enforces what is declared.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lagging: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hints: Vec<&'static str>,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<String>,
    /// Why it will not come by waiting.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

impl Listed {
    /// The row of `key`.
    pub fn of(key: &ApiKey, now: &Zoned) -> Self {
        let (pending, failed) = match progress(key, now) {
            Progress::Waiting(what) => (Some(what), None),
            Progress::Failed(why) => (None, Some(why)),
            Progress::Done(_) => (None, None),
        };
        let row = Row::of(key, now);
        let seconds = |time: Timestamp| time.as_second();
        Self {
            uid: row.uid,
            generation: key.metadata.generation,
            namespace: row.namespace,
            name: row.name,
            display: row.display_name.map(|name| escape(&name).into_owned()),
            description: row.description,
            owner: row.owner,
            key: row.key,
            created: row.created.map_or(0, seconds),
            used: row.last_used.map(seconds),
            expires: row.expires.map(seconds),
            ips: row.allowed_ips,
            state: row.state.word,
            tone: row.state.tone,
            lagging: !row.state.everywhere,
            hints: row.hints.into_iter().map(|hint| hint.word()).collect(),
            pending,
            failed,
        }
    }
}

/// What has come of the newest change, or of the deletion.
fn progress(key: &ApiKey, now: &Zoned) -> Progress {
    let created = key.metadata.creation_timestamp.as_ref().map(|created| now.timestamp().duration_since(created.0));
    let waited = created.and_then(|waited| waited.try_into().ok()).unwrap_or(Duration::ZERO);
    if key.metadata.deletion_timestamp.is_some() {
        return wait::revoked(Some(key), key.metadata.uid.as_deref().unwrap_or_default(), waited, now);
    }
    wait::in_force(Some(key), &Wanted::of(key, Change::Created), waited, now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::view::fixtures::{apikey, now};

    #[test]
    fn a_row_says_what_the_list_shows() {
        let listed = serde_json::to_value(Listed::of(&apikey(&json!({})), &now())).unwrap();
        let expected = json!({
            "uid": "0b0e7a4c-93d1-4f5e-8a6b-7c8d9e0f1a2b", "generation": 1, "namespace": "team-a", "name": "nightly-ci", "display": "Nightly CI",
            "owner": "ann@x", "key": "keyw1_7Tq2mZx9", "created": 1_795_698_000, "used": 1_795_957_260, "state": "Active", "tone": "good",
            "hints": ["no end", "any address"],
        });
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_name_that_turns_itself_round_is_written_out() {
        let key = apikey(&json!({"spec": {"displayName": "a\u{202e}gnp.exe"}}));
        let listed = serde_json::to_value(Listed::of(&key, &now())).unwrap();
        assert_eq!(listed["display"], "a\\u{202e}gnp.exe");
    }

    #[test]
    fn a_row_says_what_is_waited_for_and_why_waiting_is_vain() {
        let waiting = "all keys are revoked; waiting for the verifiers' acknowledgement, until 2026-11-29T13:32:10Z at the latest: verifier-1";
        for (change, pending, failed) in [
            (json!({}), None, None),
            (
                json!({"deleted": true, "reason": "Revoking", "message": waiting}),
                Some("Waiting for verifier-1, until 14:32:10 at most"),
                None,
            ),
            (json!({"reason": "DigestTaken", "message": "it is taken"}), None, Some("DigestTaken: it is taken.")),
        ] {
            let listed = Listed::of(&apikey(&change), &now());
            assert_eq!((listed.pending.as_deref(), listed.failed.as_deref()), (pending, failed), "{change}");
        }
    }

    #[test]
    fn a_usual_row_is_small() {
        let change = json!({"spec": {"description": "Builds and tests every night", "allowedIPs": ["10.0.0.0/8", "2001:db8::/48"]}});
        let row = serde_json::to_vec(&Listed::of(&apikey(&change), &now())).unwrap();
        assert!(row.len() <= 400, "{} bytes: {}", row.len(), String::from_utf8_lossy(&row));
    }
}
