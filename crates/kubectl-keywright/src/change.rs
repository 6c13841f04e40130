//! Writes to ApiKeys. No answer is no refusal: what has come of a write is looked up.

use std::time::Duration;

use keywright_core::api::ApiKey;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::cluster::{Answer, Cluster};
use crate::failure::ApiError;
use crate::view::state::is_going;

/// How often a change is tried that somebody else is faster than.
const ATTEMPTS: usize = 5;
/// How long is looked for what has come of a write.
const LOOKING: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Why no answer says that something was written.
#[derive(Debug)]
pub enum NotWritten {
    /// The API server has refused it.
    Refused(ApiError),
    /// Nobody knows.
    Unknown(ApiError),
    /// Another ApiKey has the name by now.
    Replaced,
}

impl NotWritten {
    /// Whether somebody else has written at the same time.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(error) if error.is_conflict())
    }
}

/// Creates an ApiKey.
///
/// # Errors
/// See [`NotWritten`]. An ApiKey without a digest is not recognised again: a Secret of somebody else's ApiKey must not be taken for its own.
pub async fn create(cluster: &Cluster, namespace: &str, object: &Value) -> Result<Answer<ApiKey>, NotWritten> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (name, digest) = (text("/metadata/name").unwrap_or_default(), text("/spec/keyHash"));
    let created = cluster.create::<ApiKey>(namespace, object, false).await;
    let is_ours = |stored: &ApiKey| digest.is_some() && stored.spec.key_hash.as_deref() == digest;
    or_stored(cluster, (namespace, name), created, is_ours).await
}

/// Changes this version of an ApiKey by a merge patch.
///
/// # Errors
/// See [`NotWritten`]; [`NotWritten::is_conflict`] if it has changed meanwhile.
pub async fn patch(cluster: &Cluster, seen: &ApiKey, change: &Value) -> Result<Answer<ApiKey>, NotWritten> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (namespace, name) = (text(&seen.metadata.namespace), text(&seen.metadata.name));
    let mut versioned = json!({"metadata": {"resourceVersion": seen.metadata.resource_version}});
    merge(&mut versioned, change);
    let patched = cluster.patch::<ApiKey>(&namespace, &name, &versioned).await;
    let is_ours = |stored: &ApiKey| {
        let stored_value = serde_json::to_value(stored).unwrap_or_default();
        stored.metadata.uid == seen.metadata.uid && says(&stored_value, change)
    };
    or_stored(cluster, (&namespace, &name), patched, is_ours).await
}

/// Changes the ApiKey with this uid by a merge patch, whatever else is written to it. `decide` judges the version that is
/// changed: after a conflict, another one.
///
/// # Errors
/// See [`NotWritten`]; and what `decide` has against it.
pub async fn edit<E: From<NotWritten>>(
    cluster: &Cluster,
    (namespace, name): (&str, &str),
    uid: &str,
    decide: impl Fn(&ApiKey) -> Result<Value, E>,
) -> Result<Answer<ApiKey>, E> {
    let mut attempts = 0;
    loop {
        let seen: ApiKey = cluster.get(namespace, name).await.map_err(NotWritten::Refused)?;
        if seen.metadata.uid.as_deref() != Some(uid) {
            return Err(NotWritten::Replaced.into());
        }
        attempts += 1;
        match patch(cluster, &seen, &decide(&seen)?).await {
            Err(error) if error.is_conflict() && attempts < ATTEMPTS => {}
            done => return Ok(done?),
        }
    }
}

/// Deletes the ApiKey with this uid; what the API server warns of.
///
/// # Errors
/// See [`NotWritten`].
pub async fn delete(cluster: &Cluster, (namespace, name): (&str, &str), uid: &str) -> Result<Vec<String>, NotWritten> {
    match cluster.delete::<ApiKey>(namespace, name, uid).await {
        Ok(answer) => Ok(answer.warnings),
        // Somebody else was faster: what was asked for is so.
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) if error.is_conflict() => Err(NotWritten::Replaced),
        Err(error) if error.leaves_open() => match look(cluster, namespace, name).await {
            Some(found) if !found.as_ref().is_some_and(|key| is_still_there(key, uid)) => Ok(Vec::new()),
            _ => Err(NotWritten::Unknown(error)),
        },
        Err(error) => Err(NotWritten::Refused(error)),
    }
}

/// The answer to a write, or if there is none, what is stored, if that is what was written.
async fn or_stored(
    cluster: &Cluster,
    (namespace, name): (&str, &str),
    answer: Result<Answer<ApiKey>, ApiError>,
    is_ours: impl Fn(&ApiKey) -> bool,
) -> Result<Answer<ApiKey>, NotWritten> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(error) if error.leaves_open() => match look(cluster, namespace, name).await.flatten() {
            Some(stored) if is_ours(&stored) => Ok(Answer { value: stored, warnings: Vec::new() }),
            _ => Err(NotWritten::Unknown(error)),
        },
        Err(error) => Err(NotWritten::Refused(error)),
    }
}

/// What is there now; nothing, if the API server does not say so in time.
async fn look(cluster: &Cluster, namespace: &str, name: &str) -> Option<Option<ApiKey>> {
    let looking = async {
        loop {
            match cluster.find(namespace, name).await {
                Ok(found) => return found,
                Err(_) => sleep(PAUSE).await,
            }
        }
    };
    timeout(LOOKING, looking).await.ok()
}

/// Whether this is the ApiKey with this uid, and nobody has deleted it.
fn is_still_there(key: &ApiKey, uid: &str) -> bool {
    key.metadata.uid.as_deref() == Some(uid) && !is_going(key)
}

/// Puts the fields of `change` into `object`, deeply.
fn merge(object: &mut Value, change: &Value) {
    match (object, change) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                merge(fields.entry(name.clone()).or_insert(Value::Null), change);
            }
        }
        (object, change) => *object = change.clone(),
    }
}

/// Whether an object already says what a merge patch wants. What is empty may be absent.
fn says(stored: &Value, wanted: &Value) -> bool {
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    match wanted {
        Value::Object(fields) => {
            fields.iter().all(|(name, wanted)| says(stored.get(name).unwrap_or(&Value::Null), wanted))
        }
        wanted => stored == wanted || is_empty(stored) && is_empty(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::fixtures::apikey;

    #[test]
    fn a_change_is_known_again_by_what_it_wanted() {
        let stored = json!({"metadata": {"annotations": {"a": "1", "b": "2"}}, "spec": {"allowedIPs": ["10.0.0.0/8"]}});
        for (wanted, is_so) in [
            (json!({"metadata": {"annotations": {"a": "1"}}}), true),
            (json!({"metadata": {"annotations": {"a": "2"}}}), false),
            (json!({"spec": {"allowedIPs": ["10.0.0.0/8"]}}), true),
            (json!({"spec": {"allowedIPs": null}}), false),
            (json!({"spec": {"suspended": false, "expiresIn": null, "scopes": []}}), true),
            (json!({"spec": {"suspended": true}}), false),
        ] {
            assert_eq!(says(&stored, &wanted), is_so, "{wanted}");
        }
    }

    #[test]
    fn a_change_keeps_the_version_beside_its_own_metadata() {
        let mut patch = json!({"metadata": {"resourceVersion": "7"}});
        merge(&mut patch, &json!({"metadata": {"annotations": {"a": "1"}}, "spec": {"expiresIn": null}}));
        let whole =
            json!({"metadata": {"resourceVersion": "7", "annotations": {"a": "1"}}, "spec": {"expiresIn": null}});
        assert_eq!(patch, whole);
    }

    #[test]
    fn a_key_whose_deletion_was_lost_is_known_by_its_uid() {
        for (key, uid, is_so) in
            [(json!({}), None, true), (json!({}), Some("another"), false), (json!({"deleted": true}), None, false)]
        {
            let key = apikey(&key);
            let own = key.metadata.uid.clone().unwrap();
            assert_eq!(is_still_there(&key, uid.unwrap_or(&own)), is_so);
        }
    }
}
